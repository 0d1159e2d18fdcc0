//! What becomes of an operation.

use std::time::Duration;

use conclave_proto::request::Reply;
use conclave_proto::{Fault, Zxid};

use crate::Error;
use crate::error::Operation;

/// What became of an operation.
pub(crate) type Outcome = Result<Answer, Failure>;

/// A server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    pub(crate) zxid: Zxid,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The servers refused.
    Fault(Fault),
    /// The operation timeout has passed.
    Timeout {
        /// Whether it was sent.
        sent: bool,
    },
    /// The session has expired.
    Expired,
    /// The client was closed.
    Closed {
        /// Whether a server has confirmed that the session has ended.
        confirmed: bool,
    },
    /// The queue is full.
    Overloaded,
    /// It is over the server's limit on a frame.
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        Failure::Fault(fault)
    }
}

impl Failure {
    /// The same for the caller, who is told what failed.
    pub(crate) fn into_error(self, operation: Operation, operation_timeout: Duration) -> Error {
        match self {
            Failure::Fault(fault) => Error::Server { operation, code: fault.code },
            Failure::Timeout { sent } => {
                Error::Timeout { operation, after: operation_timeout, sent }
            }
            Failure::Expired => Error::SessionExpired { operation },
            Failure::Closed { .. } => Error::Closed { operation },
            Failure::Overloaded => Error::Overloaded { operation },
            Failure::TooLarge { bytes, limit } => Error::TooLarge { operation, bytes, limit },
        }
    }
}
