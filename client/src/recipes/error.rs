//! What can go wrong with a recipe, and how a hold ends.

use std::fmt;

use conclave_proto::{ErrorCode, PathError, SessionId, ZPath};

use super::token::{StaleToken, Token};

/// Why a recipe failed.
///
/// `Display` gives a sentence with the node in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation of the client failed; among others, because the session has expired.
    #[error(transparent)]
    Client(#[from] crate::Error),
    /// A name that the caller gave cannot be the name of one node.
    #[error("{name:?} cannot be used as a name: {why}")]
    Name {
        /// What was given.
        name: String,
        /// What is wrong with it.
        why: NameError,
    },
    /// In the recipe's directory is a node that the recipe has not made. It is not touched: remove
    /// it, or give the recipe a directory of its own.
    #[error(
        "{path} is none of the nodes of {recipe}, which needs a directory of its own: remove it, or use \
         another directory"
    )]
    Foreign {
        /// The node.
        path: ZPath,
        /// Which recipe.
        recipe: &'static str,
    },
    /// A node of the recipe holds something that the recipe does not write: somebody edited it.
    #[error(
        "{path} does not hold what {recipe} writes there: {why}; put back what it held, or delete it"
    )]
    Malformed {
        /// The node.
        path: ZPath,
        /// Which recipe.
        recipe: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// What was held, or was waited for, is lost.
    #[error("{path} (token {token}) is lost: {loss}")]
    Lost {
        /// The node that stood for it.
        path: ZPath,
        /// Its fencing token.
        token: Token,
        /// How it was lost.
        loss: Loss,
    },
    /// A token from the past: somebody else has held it since.
    #[error(transparent)]
    StaleToken(#[from] StaleToken),
    /// The deadline passed first. Nothing is held, and the place in the queue is given up.
    #[error("{path} was not to be had before the deadline")]
    Deadline {
        /// What was waited for.
        path: ZPath,
    },
    /// The recipe was given something that it cannot work with.
    #[error("{0}")]
    Config(String),
    /// A value is not what it should be: it was refused and not written, or a stored one is not
    /// what its reader can use.
    #[error("the value of {path} is not valid: {why}")]
    Invalid {
        /// The node.
        path: ZPath,
        /// What is wrong with it.
        why: String,
    },
    /// A node that the recipe needs is not there (any more).
    #[error("{path} is gone: it was deleted, or never was there")]
    Gone {
        /// The node.
        path: ZPath,
    },
    /// Somebody else made a change in the meantime. Nothing was changed: read and decide again.
    #[error("{path} was changed by somebody else in the meantime: read it and decide again")]
    Conflict {
        /// The node.
        path: ZPath,
    },
    /// What was asked for belongs to somebody else.
    #[error("{path} is taken by {}", taker(*owner))]
    Taken {
        /// The node.
        path: ZPath,
        /// Whose it is; [`SessionId::NONE`] if no session's.
        owner: SessionId,
    },
    /// There is nothing to choose from.
    #[error("{path} has nothing to choose from: {why}")]
    Empty {
        /// The node.
        path: ZPath,
        /// Why not.
        why: String,
    },
    /// The recipe has ended; what it showed would not be true any more.
    #[error("{recipe} at {path} has ended: {why}")]
    Ended {
        /// The node.
        path: ZPath,
        /// Which recipe.
        recipe: &'static str,
        /// What ended it.
        why: Box<Error>,
    },
}

impl Error {
    /// Whether the session has expired or the client was closed: nothing works any more, and a new
    /// client is needed.
    pub fn is_final(&self) -> bool {
        match self {
            Error::Client(error) => {
                matches!(error, crate::Error::SessionExpired { .. } | crate::Error::Closed { .. })
            }
            Error::Lost { loss, .. } => matches!(loss, Loss::Expired | Loss::Closed),
            Error::Ended { why, .. } => why.is_final(),
            Error::Name { .. }
            | Error::Foreign { .. }
            | Error::Malformed { .. }
            | Error::StaleToken(_)
            | Error::Deadline { .. }
            | Error::Config(_)
            | Error::Invalid { .. }
            | Error::Gone { .. }
            | Error::Conflict { .. }
            | Error::Taken { .. }
            | Error::Empty { .. } => false,
        }
    }

    /// Whether what was asked may have been done, or may still be, in spite of this error.
    pub fn outcome_unknown(&self) -> bool {
        self.client().is_some_and(crate::Error::outcome_unknown)
    }

    /// The client's error behind it, if there is one.
    fn client(&self) -> Option<&crate::Error> {
        if let Error::Ended { why, .. } = self {
            return why.client();
        }
        if let Error::Client(error) = self { Some(error) } else { None }
    }

    /// What the servers found wrong, if it was they who refused.
    pub fn code(&self) -> Option<ErrorCode> {
        self.client().and_then(crate::Error::code)
    }
}

/// What is wrong with a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// It is empty.
    #[error("it is empty")]
    Empty,
    /// It has a slash in it, and so would be more than one node.
    #[error("it has a slash in it")]
    Slash,
    /// It breaks the rules of paths.
    #[error("{0}")]
    Path(PathError),
}

/// How something that was held is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Loss {
    /// The session is no longer alive for certain: for too long no server has confirmed it. It may
    /// yet be held, and [`Hold::confirm`](super::Hold::confirm) tells as soon as a server is found;
    /// until then act as if it were not.
    Suspected,
    /// The session has expired.
    Expired,
    /// The client was closed.
    Closed,
    /// The node that stood for it was deleted: by hand, or because the session was closed.
    Deleted,
    /// The holder itself released it.
    Released,
    /// The servers refuse for good to say what becomes of the node, for this reason if they gave one:
    /// nobody would notice its end. The node is there until it is released.
    Unwatched(Option<ErrorCode>),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Loss::Suspected => "the session is no longer alive for certain",
            Loss::Expired => "the session has expired",
            Loss::Closed => "the client is closed",
            Loss::Deleted => "the node was deleted",
            Loss::Released => "it was released",
            Loss::Unwatched(Some(code)) => {
                return write!(f, "the servers refuse to tell of the node's end: {code}");
            }
            Loss::Unwatched(None) => {
                "the servers' answer about the node's end cannot be understood"
            }
        })
    }
}

/// Who has taken something.
fn taker(owner: SessionId) -> String {
    if owner == SessionId::NONE {
        return "a node that is no session's".into();
    }
    format!("session {owner}")
}

/// How a hold ends when its watch ends with this.
pub(super) fn loss_of(error: &crate::Error) -> Loss {
    if matches!(error, crate::Error::SessionExpired { .. }) {
        Loss::Expired
    } else if matches!(error, crate::Error::Closed { .. }) {
        Loss::Closed
    } else {
        Loss::Unwatched(error.code())
    }
}
