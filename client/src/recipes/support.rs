//! What several recipes share.

use conclave_proto::ErrorCode;

/// Whether an operation failed for this reason.
pub(crate) fn failed_with<T>(outcome: &Result<T, crate::Error>, code: ErrorCode) -> bool {
    outcome.as_ref().is_err_and(|error| error.code() == Some(code))
}
