//! What can go wrong, told so that the caller knows what to do.

use std::fmt;
use std::time::Duration;

use conclave_proto::{ErrorCode, PathError, ZPath};

/// Why an operation, or a connection, failed.
///
/// `Display` gives a sentence with the operation and the path in it, for example
/// `create /a/b: the node exists already`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The servers did not carry out the operation. It has changed nothing, unless the code is
    /// [`ErrorCode::OutcomeUnknown`].
    #[error("{operation}: {}", reason(operation, *code))]
    Server {
        /// What was asked.
        operation: Operation,
        /// Why it was not done.
        code: ErrorCode,
    },
    /// A path that the caller gave breaks the rules of paths. Nothing was sent.
    #[error("{path:?} is not a path: {why}")]
    Path {
        /// What was given.
        path: String,
        /// What is wrong with it.
        why: PathError,
    },
    /// No answer came within the client's operation timeout.
    #[error("{operation}: no answer within {after:?}; {}", timeout_outcome(*.sent))]
    Timeout {
        /// What was asked.
        operation: Operation,
        /// The operation timeout.
        after: Duration,
        /// Whether it was sent. If it was, it may have been done or may still be done, later but
        /// never out of order. If not, it never will be.
        sent: bool,
    },
    /// The session has expired: its ephemeral nodes and watches are gone. Open a new client.
    #[error("{operation}: the session has expired; open a new client")]
    SessionExpired {
        /// What was asked.
        operation: Operation,
    },
    /// The client was closed before an answer came.
    #[error("{operation}: the client is closed")]
    Closed {
        /// What was asked.
        operation: Operation,
    },
    /// Too many operations wait for their answers; see [`Client::ready`](crate::Client::ready).
    /// Nothing was sent.
    #[error("{operation}: too many operations wait for their answers; await some of them first")]
    Overloaded {
        /// What was asked.
        operation: Operation,
    },
    /// The operation does not fit the servers' limit on the size of a request. Nothing was sent.
    #[error("{operation}: {bytes} bytes, but the servers accept requests of at most {limit}")]
    TooLarge {
        /// What was asked.
        operation: Operation,
        /// The size of the request.
        bytes: usize,
        /// The servers' limit.
        limit: usize,
    },
    /// The server answered with something that is no answer to this operation.
    #[error("{operation}: the server's answer is of a kind that does not fit the operation")]
    UnexpectedReply {
        /// What was asked.
        operation: Operation,
    },
    /// No server opened a session within the connect timeout.
    #[error(
        "no session within {after:?} from any of {servers}; the last attempt failed with {last}"
    )]
    Connect {
        /// The servers that were tried.
        servers: String,
        /// The connect timeout.
        after: Duration,
        /// What the last attempts failed on.
        last: String,
    },
    /// A server refused the client for a reason that no other server or later attempt will change.
    #[error("{server} refused the client: {message}")]
    Refused {
        /// Which server.
        server: String,
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        message: String,
    },
    /// The builder was given something it cannot work with.
    #[error("{0}")]
    Config(String),
}

impl Error {
    /// What the servers found wrong, if it was they who refused.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Error::Server { code, .. } | Error::Refused { code, .. } => Some(*code),
            Error::SessionExpired { .. } => Some(ErrorCode::SessionExpired),
            Error::TooLarge { .. } => Some(ErrorCode::TooLarge),
            Error::Path { .. }
            | Error::Timeout { .. }
            | Error::Closed { .. }
            | Error::Overloaded { .. }
            | Error::UnexpectedReply { .. }
            | Error::Connect { .. }
            | Error::Config(_) => None,
        }
    }

    /// Whether the operation may have been carried out, or may still be, in spite of this error.
    ///
    /// For a write this means: read, before you decide to repeat it.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Error::Timeout { sent, .. } => *sent,
            Error::Server { code, .. } => *code == ErrorCode::OutcomeUnknown,
            Error::SessionExpired { .. } | Error::Closed { .. } | Error::UnexpectedReply { .. } => {
                true
            }
            Error::Path { .. }
            | Error::Overloaded { .. }
            | Error::TooLarge { .. }
            | Error::Connect { .. }
            | Error::Refused { .. }
            | Error::Config(_) => false,
        }
    }
}

/// To create a node fails for want of another one: the one above it.
fn reason(operation: &Operation, code: ErrorCode) -> &'static str {
    if operation.name == "create" && code == ErrorCode::NoNode {
        return "the node above it does not exist";
    }
    code.describe()
}

fn timeout_outcome(sent: bool) -> &'static str {
    if sent { "it may have been done or may still be" } else { "it was not sent and will not be" }
}

/// What was asked, for messages: `create /a/b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its name, `create` for example.
    pub name: &'static str,
    /// The path as the caller gave it, if the operation has one.
    pub path: Option<ZPath>,
    /// Its place in its multi, from 0, if it is part of one. A failure that is not known to be of one
    /// part is of the whole multi.
    pub index: Option<usize>,
}

impl Operation {
    pub(crate) fn new(name: &'static str, path: Option<ZPath>) -> Operation {
        Operation { name, path, index: None }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(index) = self.index {
            write!(f, "operation {index} of a multi, ")?;
        }
        f.write_str(self.name)?;
        match &self.path {
            Some(path) => write!(f, " {path}"),
            None => Ok(()),
        }
    }
}
