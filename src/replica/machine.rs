//! The machine itself: takes each [`Input`], and makes a [`Ready`] of what came of them.

use crate::tree::Nodes;
use crate::zab;

use super::{Config, Input, Ready, Role, Status};

/// A whole server, without its IO.
pub struct Replica<N> {
    config: Config,
    nodes: N,
}

impl<N: Nodes> Replica<N> {
    /// A server that finds this on its disk; `nodes` is the state after `durable.applied`.
    pub fn new(config: Config, durable: zab::Durable, nodes: N) -> Replica<N> {
        assert_eq!(durable.applied.zxid, nodes.meta().applied_zxid, "log and state disagree");
        Replica { config, nodes }
    }

    /// Take note of something that happened. Drain all inputs there are, then call
    /// [`Replica::ready`] once.
    pub fn step(&mut self, input: Input) {
        drop(input);
    }

    /// What has to be done because of the inputs so far. Committed transactions are applied here.
    pub fn ready(&mut self) -> Ready {
        Ready::default()
    }

    /// A snapshot received from the leader is on the disk and is the state now: the caller has just
    /// put it in place through [`Replica::nodes_mut`], and steps nothing in between.
    pub fn install(&mut self, _sync: u64, at: zab::Position) {
        let applied = self.nodes.meta().applied_zxid;
        assert_eq!(applied, at.zxid, "the snapshot is not what was announced");
    }

    /// The state, to read.
    pub fn nodes(&self) -> &N {
        &self.nodes
    }

    /// The state, for its storage to look after between two inputs (checkpoints); its contents
    /// must not change but by [`Replica::install`].
    pub fn nodes_mut(&mut self) -> &mut N {
        &mut self.nodes
    }

    /// What this server knows of itself and the ensemble.
    pub fn status(&self) -> Status {
        let meta = self.nodes.meta();
        Status {
            id: self.config.zab.id,
            role: Role::Looking,
            leader: None,
            epoch: meta.applied_zxid.epoch(),
            committed: meta.applied_zxid,
            applied: meta.applied_zxid,
            last: meta.applied_zxid,
            followers: Vec::new(),
            sessions: 0,
            local_sessions: 0,
            connections: 0,
            watches: 0,
            nodes: meta.nodes,
            bytes: meta.bytes,
            digest: meta.digest,
        }
    }
}
