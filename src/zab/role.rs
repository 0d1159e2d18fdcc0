//! What a server can be. Each role has the data that it alone needs.

use conclave_proto::ServerId;

use super::election::Looking;
use super::following::Following;
use super::leading::Leading;

/// What a server does. A change of role throws the data of the old one away.
#[derive(Debug)]
pub(super) enum Role {
    /// It looks for a leader.
    Looking(Looking),
    /// It follows a leader, or tries to, and votes.
    Following(Following),
    /// The same without a vote.
    Observing(Following),
    /// It leads, or tries to.
    Leading(Leading),
}

/// What a role wants its server to do next. Only the peer changes roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Go on.
    Stay,
    /// Look for a leader.
    Look(&'static str),
    /// Join this leader, which may be the same as before.
    Follow(ServerId),
    /// Try to lead.
    Lead,
}
