//! The machine itself.

use bytes::Bytes;
use conclave_proto::{Epoch, ServerId, Zxid};

use super::log::Position;
use super::message::{Input, Ready};
use super::{Config, Durable};

/// A server's part in the broadcast.
#[derive(Debug)]
pub struct Peer {
    config: Config,
    last: Position,
    ready: Ready,
}

/// What a server does in the ensemble: what its last notice said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleView {
    /// It has no leader.
    Looking,
    /// It follows a leader and votes.
    Following {
        /// The leader.
        leader: ServerId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// It follows a leader without a vote.
    Observing {
        /// The leader.
        leader: ServerId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// It leads.
    Leading {
        /// Its epoch.
        epoch: Epoch,
    },
}

/// A server as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowerView {
    /// Which.
    pub id: ServerId,
    /// Whether it is in sync and serves.
    pub in_sync: bool,
    /// The last entry that is on its disk, as far as the leader knows.
    pub acked: Zxid,
    /// How many entries of the leader's log it has not acknowledged; those that the leader no
    /// longer holds in memory are not counted.
    pub lag: u64,
}

/// Why a proposal was refused. None of these is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This server does not lead.
    #[error("this server does not lead")]
    NotLeading,
    /// Too much is in flight already: propose again once something is committed.
    #[error("too many proposals are in flight")]
    Full,
    /// The leader starts its next epoch: propose again after [`super::Notice::Leading`].
    #[error("the leader is starting its next epoch")]
    Rolling,
    /// The leader is handing over: the next leader will take it.
    #[error("the leader is handing over")]
    HandingOver,
}

impl Peer {
    /// A server that finds this on its disk.
    pub fn new(config: Config, durable: Durable) -> Peer {
        let last = durable.entries.last().map_or(durable.base, |entry| entry.position());
        Peer { config, last, ready: Ready::default() }
    }

    /// Takes note of something that happened.
    pub fn step(&mut self, input: Input) {
        drop((input, &self.config));
    }

    /// Appends an entry with this body to the history.
    ///
    /// # Errors
    /// If this server does not lead, or not now.
    pub fn propose(&mut self, body: Bytes) -> Result<Zxid, ProposeError> {
        drop(body);
        Err(ProposeError::NotLeading)
    }

    /// Asks a quorum whether this server still leads. [`super::Notice::ReadConfirmed`] answers for
    /// this number and every lower one; if the server stops leading instead, it never does.
    /// `None` if this server does not lead.
    pub fn confirm_leadership(&mut self) -> Option<u64> {
        None
    }

    /// Takes what has to be done because of everything since the last call. Feed all inputs there
    /// are, then call it once: what piled up leaves in one batch.
    pub fn ready(&mut self) -> Ready {
        std::mem::take(&mut self.ready)
    }

    /// What this server does.
    pub fn role(&self) -> RoleView {
        RoleView::Looking
    }

    /// The last entry known to be committed.
    pub fn committed(&self) -> Zxid {
        Zxid::ZERO
    }

    /// The end of the log, durable or not.
    pub fn last(&self) -> Position {
        self.last
    }

    /// The servers that follow, if this one leads.
    pub fn followers(&self) -> Vec<FollowerView> {
        Vec::new()
    }
}
