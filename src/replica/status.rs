//! A server's view of itself and of the ensemble, for those who watch over it.

use conclave_proto::{Epoch, ServerId, Zxid};

use crate::tree::Nodes;
use crate::zab::{FollowerView, RoleView};

use super::Replica;

/// What a server does in the ensemble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It has no leader.
    Looking,
    /// It follows a leader and votes.
    Following,
    /// It follows a leader without a vote.
    Observing,
    /// It leads.
    Leading,
}

/// What a server knows of itself and the ensemble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Which server this is.
    pub id: ServerId,
    /// What it does.
    pub role: Role,
    /// Whether it has no leader and serves those who are content to read.
    pub read_only: bool,
    /// Who leads, as far as it knows.
    pub leader: Option<ServerId>,
    /// The leader's epoch; without a leader, the last one this server was part of.
    pub epoch: Epoch,
    /// The last transaction known to be committed; see [`crate::zab::Peer::committed`].
    pub committed: Zxid,
    /// The last transaction applied.
    pub applied: Zxid,
    /// The last transaction in the log.
    pub last: Zxid,
    /// The other servers, if this one leads.
    pub followers: Vec<Follower>,
    /// The sessions of the ensemble.
    pub sessions: usize,
    /// The sessions attached to this server.
    pub local_sessions: usize,
    /// Those of them, and of clients that may come back, which only this server knows.
    pub unopened_sessions: usize,
    /// The connections of clients.
    pub connections: usize,
    /// The watches set at this server.
    pub watches: usize,
    /// The nodes of the tree.
    pub nodes: u64,
    /// Those of them that end with a session.
    pub ephemerals: usize,
    /// The bytes of all paths and data.
    pub bytes: u64,
    /// The digest of the state after `applied`.
    pub digest: u64,
}

/// A server as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follower {
    /// Which.
    pub id: ServerId,
    /// Whether it is in sync.
    pub in_sync: bool,
    /// The last transaction that is on its disk, as far as the leader knows.
    pub acked: Zxid,
    /// How many transactions of the leader's log it has not acknowledged.
    pub lag: u64,
}

impl<N: Nodes> Replica<N> {
    /// What this server knows of itself and the ensemble.
    pub fn status(&self) -> Status {
        let meta = self.nodes.meta();
        let id = self.config.zab.id;
        let (role, leader, epoch) = match self.zab.role() {
            RoleView::Looking => (Role::Looking, None, meta.applied_zxid.epoch()),
            RoleView::Following { leader, epoch } => (Role::Following, Some(leader), epoch),
            RoleView::Observing { leader, epoch } => (Role::Observing, Some(leader), epoch),
            RoleView::Leading { epoch } => (Role::Leading, Some(id), epoch),
        };
        let follower = |view: FollowerView| {
            let FollowerView { id, in_sync, acked, lag } = view;
            Follower { id, in_sync, acked, lag }
        };
        Status {
            id,
            role,
            read_only: self.is_read_only(),
            leader,
            epoch,
            committed: self.zab.committed(),
            applied: self.applied,
            last: self.zab.last().zxid,
            followers: self.zab.followers().into_iter().map(follower).collect(),
            sessions: self.session_count,
            local_sessions: self.by_session.len(),
            unopened_sessions: self.locals.len(),
            connections: self.clients.len(),
            watches: self.hub.watches(),
            nodes: meta.nodes,
            ephemerals: self.nodes.ephemerals_in_all(),
            bytes: meta.bytes,
            digest: meta.digest,
        }
    }
}
