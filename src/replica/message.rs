//! What one server says to another, beside the broadcast's own messages.
//!
//! Every message names the epoch in which it was said; a server that is in another one, or not yet
//! in sync, ignores it, but a leader that has yet to begin keeps what it is told as such. A link may
//! lose any suffix of what was sent on it: each kind of message is either asked again or told again,
//! and doing either twice is harmless.

use std::sync::Arc;

use conclave_proto::{Epoch, Fault, Identity, Request, Secret, SessionId, Zxid};

use crate::session::Claim;
use crate::zab;

/// What one server says to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMessage {
    /// The broadcast's own.
    Zab(zab::Message),
    /// To the leader: writes of the sender's clients.
    Forward(Forward),
    /// From the leader: some forwarded writes did not arrive.
    Resend {
        /// The leader's epoch.
        epoch: Epoch,
        /// The stream they belong to.
        stream: u64,
        /// The first that is missing.
        first: u64,
    },
    /// From the leader: it takes this stream for one that is over. What comes of it is ignored.
    Retired {
        /// The leader's epoch.
        epoch: Epoch,
        /// The stream.
        stream: u64,
    },
    /// From the leader: it did not propose these writes, and never will.
    Rejected {
        /// The leader's epoch.
        epoch: Epoch,
        /// The stream they came on: whoever has sent them again since, on another one, does not know
        /// yet what becomes of them.
        stream: u64,
        /// The marks that the receiver gave them, and why.
        requests: Vec<(u64, Fault)>,
    },
    /// To the leader: which sessions are alive, and what the leader should know of the sender.
    Touch(Touch),
    /// From the leader: say at once which sessions are alive.
    Poll {
        /// The leader's epoch.
        epoch: Epoch,
        /// The leader's clock, to be sent back in [`Touch::polled_ms`].
        now_ms: u64,
    },
    /// From the leader: a quorum has confirmed that it led when it had taken a report into account.
    Counted {
        /// The leader's epoch.
        epoch: Epoch,
        /// The number of the report.
        report: u64,
        /// The sessions of which the sign of life came too late: their end was proposed.
        refused: Vec<SessionId>,
    },
    /// To the leader: a client of the sender wants to resume a session.
    Attach {
        /// The leader's epoch.
        epoch: Epoch,
        /// The sender's mark for the client's connection.
        conn: u64,
        /// The session.
        session: SessionId,
        /// What the client gave as proof.
        secret: Secret,
    },
    /// From the leader: it may not, since there is no such session, or the secret is wrong. Otherwise
    /// the session moves, by a transaction.
    Gone {
        /// The leader's epoch.
        epoch: Epoch,
        /// The receiver's mark for the client's connection.
        conn: u64,
        /// The session.
        session: SessionId,
    },
    /// To the leader: what has to be applied before a linearizable read that was asked by now?
    ReadIndex {
        /// The leader's epoch.
        epoch: Epoch,
        /// The sender's number for the question, growing by one from a random place.
        read: u64,
    },
    /// From the leader: this.
    ReadAt {
        /// The leader's epoch.
        epoch: Epoch,
        /// The receiver's number for the question; earlier ones are answered too.
        read: u64,
        /// What has to be applied.
        commit: Zxid,
    },
}

impl PeerMessage {
    /// Whether servers say this to each other again and again while nothing happens, and nothing but
    /// the passing of time comes of it.
    pub fn is_routine(&self) -> bool {
        use zab::{FromFollower, FromLeader, Message};
        match self {
            PeerMessage::Zab(Message::FromLeader { body, .. }) => {
                matches!(body, FromLeader::Heartbeat { .. })
            }
            PeerMessage::Zab(Message::FromFollower { body, .. }) => {
                matches!(body, FromFollower::HeartbeatAck { .. })
            }
            PeerMessage::Touch(_) | PeerMessage::Poll { .. } | PeerMessage::Counted { .. } => true,
            PeerMessage::Zab(Message::Ballot(_) | Message::Join { .. })
            | PeerMessage::Forward(_)
            | PeerMessage::Resend { .. }
            | PeerMessage::Retired { .. }
            | PeerMessage::Rejected { .. }
            | PeerMessage::Attach { .. }
            | PeerMessage::Gone { .. }
            | PeerMessage::ReadIndex { .. }
            | PeerMessage::ReadAt { .. } => false,
        }
    }
}

/// Writes on their way to the leader.
///
/// The writes of one stream are numbered without gaps, and the leader takes them in that order
/// only: so a session's request is never proposed if one before it was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The leader's epoch.
    pub epoch: Epoch,
    /// The sender's name for the stream.
    pub stream: u64,
    /// The number of the first of `requests` in the stream, which starts with 0.
    pub first: u64,
    /// The writes.
    pub requests: Vec<Forwarded>,
}

/// One write on its way to the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// The sender's mark, which comes back in [`conclave_proto::Txn::origin`].
    pub tag: u64,
    /// Who asks.
    pub identities: Arc<[Identity]>,
    /// By which right the sender asks for the session. A leader that knows of a later claim refuses
    /// whatever was asked under this one, and nothing else: what a client asks on one connection is
    /// refused from some point on, or not at all. `None` for a session that is not there yet.
    pub claim: Option<Claim>,
    /// What is asked.
    pub request: Request,
}

/// What a follower tells its leader regularly, and at once when it is polled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touch {
    /// The leader's epoch.
    pub epoch: Epoch,
    /// The leader's clock in the latest [`PeerMessage::Poll`], 0 before the first: every sign of
    /// life up to then has been reported.
    pub polled_ms: u64,
    /// The sender's stream of forwarded writes.
    pub stream: u64,
    /// How many writes it has sent on that stream.
    pub forwarded: u64,
    /// How its disk is.
    pub strain: Strain,
    /// Whether it has any clients: if not, nobody there waits to be told of a commit.
    pub has_clients: bool,
    /// If the sender asks whether these signs of life count: its number for this report, growing by
    /// one from a random place.
    pub report: Option<u64>,
    /// The sessions that gave a sign of life since the last report.
    pub sessions: Vec<Touched>,
}

/// What a server's disk cannot do for the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strain {
    /// It is short of space: writes that need some are refused.
    pub low_space: bool,
    /// Its checkpoints are so far behind what is applied that the changes in memory grow too large:
    /// writes wait.
    pub is_behind: bool,
}

/// A session that is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touched {
    /// The session.
    pub session: SessionId,
    /// How long ago it gave its last sign of life, in ms.
    pub age_ms: u32,
    /// By which right the sender serves it.
    pub claim: Claim,
}
