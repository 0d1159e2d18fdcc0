//! Why a request was not carried out.

use std::fmt;

/// What was wrong. The set is closed; each wire has its own number for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorCode {
    /// The node does not exist.
    NoNode,
    /// The node exists already.
    NodeExists,
    /// The node's version is not the one the request expected.
    BadVersion,
    /// The node has children.
    NotEmpty,
    /// The parent is ephemeral and can have no children.
    NoChildrenForEphemerals,
    /// A required condition does not hold, or what a guard names is not held (any more).
    ConditionFailed,
    /// An earlier operation of the same multi succeeded, but was undone.
    RolledBack,
    /// A later operation of the same multi was never tried.
    NotTried,
    /// The request cannot be carried out as it stands: an invalid path, mode or value.
    BadArguments,
    /// The value, path or request is over a limit.
    TooLarge,
    /// The ACL is empty or names an unknown scheme.
    InvalidAcl,
    /// The session's identities do not have the permission.
    NoAuth,
    /// The credentials were refused.
    AuthFailed,
    /// The session has ended.
    SessionExpired,
    /// The session is attached to another server.
    SessionMoved,
    /// No such watch is set.
    NoWatcher,
    /// This server does not know that operation.
    Unimplemented,
    /// A quota of the tree would be exceeded.
    QuotaExceeded,
    /// The ensemble is short of disk space: only reads and deletes are accepted for now.
    NoSpace,
    /// Too many requests in flight, or too many sessions or watches; try again later.
    Throttled,
    /// The server is not serving: it has no leader or is catching up; try another.
    Unavailable,
    /// The parent's counter of sequential nodes is used up.
    SequenceOverflow,
    /// The retry came so late that the outcome is no longer known.
    OutcomeUnknown,
    /// The server is read-only (it cannot reach a quorum).
    NotReadOnly,
    /// Local sessions cannot own ephemeral nodes.
    EphemeralOnLocalSession,
}

impl ErrorCode {
    /// What happened, in a sentence for a person.
    pub fn describe(self) -> &'static str {
        match self {
            ErrorCode::NoNode => "the node does not exist",
            ErrorCode::NodeExists => "the node exists already",
            ErrorCode::BadVersion => "the node has changed: its version is not the expected one",
            ErrorCode::NotEmpty => "the node has children; delete them first",
            ErrorCode::NoChildrenForEphemerals => "an ephemeral node can have no children",
            ErrorCode::ConditionFailed => {
                "a condition does not hold, or what a guard names is not held"
            }
            ErrorCode::RolledBack => "undone, because a later operation of the multi failed",
            ErrorCode::NotTried => "not tried, because an earlier operation of the multi failed",
            ErrorCode::BadArguments => "the request is not valid",
            ErrorCode::TooLarge => "the request is over a limit of the server",
            ErrorCode::InvalidAcl => "the access control list is empty or not valid",
            ErrorCode::NoAuth => "the session has no permission for this",
            ErrorCode::AuthFailed => "the credentials were refused",
            ErrorCode::SessionExpired => "the session has ended; open a new one",
            ErrorCode::SessionMoved => "the session is attached to another server",
            ErrorCode::NoWatcher => "no such watch is set",
            ErrorCode::Unimplemented => "this server does not know that operation",
            ErrorCode::QuotaExceeded => "a quota would be exceeded",
            ErrorCode::NoSpace => {
                "the servers are short of disk space; only reads and deletes are accepted"
            }
            ErrorCode::Throttled => "too much at once; try again later",
            ErrorCode::Unavailable => "the server has no leader at the moment; try another",
            ErrorCode::SequenceOverflow => "the parent's counter of sequential nodes is used up",
            ErrorCode::OutcomeUnknown => "the retry came too late: the outcome is not known",
            ErrorCode::NotReadOnly => "the server is read-only: it cannot reach a quorum",
            ErrorCode::EphemeralOnLocalSession => "a local session cannot own ephemeral nodes",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe())
    }
}

/// A failed request: what was wrong, and with which operation of a multi.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{code}")]
pub struct Fault {
    /// What was wrong.
    pub code: ErrorCode,
    /// The place of the failed operation in its multi, from 0; 0 otherwise.
    pub index: u32,
}

impl From<ErrorCode> for Fault {
    fn from(code: ErrorCode) -> Fault {
        Fault { code, index: 0 }
    }
}
