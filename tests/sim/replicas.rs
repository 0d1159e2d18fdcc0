//! Whole servers: a [`Replica`] over a tree in memory.

use conclave::replica::{self, Config, ConnId, Notice, PeerMessage, Replica, Strain, ToClient};
use conclave::tree::{MemoryNodes, Nodes};
use conclave::zab::{self, Durable, Position};
use conclave_proto::ZPath;

use crate::machine::{Input, Machine, Ready, Settings};
use crate::random::scramble;

/// A whole server.
pub(crate) struct Whole {
    replica: Replica<MemoryNodes>,
    seed: u64,
    /// What it has said of its disk.
    strain: Strain,
}

impl Machine for Whole {
    type Message = PeerMessage;
    type State = MemoryNodes;
    type Request = replica::Input;
    type Answer = (ConnId, ToClient);

    fn start(settings: &Settings, disk: Durable, state: MemoryNodes) -> Whole {
        let blank = state.node(&ZPath::root()).is_none();
        let nodes = if blank { MemoryNodes::new() } else { state };
        let config = Config {
            zab: settings.zab.clone(),
            tick_ms: settings.tick_ms,
            session_timeout_min_ms: 1_000,
            session_timeout_max_ms: 60_000,
            super_digest: None,
            throttle_ms: None,
            read_only: false,
            local_sessions: settings.local_sessions,
            turn_answers_bytes: settings.turn_answers_bytes,
            turn_nodes: settings.turn_nodes,
            applied_before_others: settings.applied_before_others,
            members_text: None,
        };
        let seed = config.zab.seed;
        Whole { replica: Replica::new(config, disk, nodes), seed, strain: Strain::default() }
    }

    fn step(&mut self, input: Input<PeerMessage, replica::Input>) {
        if let Input::Tick { now_ms, .. } = input {
            self.strain(now_ms);
        }
        self.replica.step(match input {
            Input::Tick { now_ms, time_ms } => replica::Input::Tick { now_ms, time_ms },
            Input::Message { from, message } => replica::Input::Peer { from, message },
            Input::LinkUp(server) => replica::Input::LinkUp(server),
            Input::LinkDown(server) => replica::Input::LinkDown(server),
            Input::Written(token) => replica::Input::Written(token),
            Input::SnapshotFailed { with, sync } => replica::Input::SnapshotFailed { with, sync },
            Input::HandOver => replica::Input::HandOver,
            Input::Request(request) => request,
        });
    }

    fn install(&mut self, sync: u64, at: Position, state: MemoryNodes) {
        *self.replica.nodes_mut() = state;
        self.replica.install(sync, at);
    }

    fn ready(&mut self) -> Ready<PeerMessage, (ConnId, ToClient)> {
        let ready = self.replica.ready();
        Ready {
            send: ready.send,
            write: ready.write,
            token: ready.token,
            send_after_write: ready.send_after_write,
            delivered: Vec::new(),
            answers: ready.clients,
            snapshots: ready.snapshots,
            more: ready.more,
            notices: ready.notices.into_iter().filter_map(broadcast_notice).collect(),
        }
    }

    fn applied(&self) -> Position {
        let meta = self.replica.nodes().meta();
        Position { zxid: meta.applied_zxid, chain: meta.applied_chain }
    }

    fn state(&self) -> MemoryNodes {
        self.replica.nodes().clone()
    }

    fn digest(&self) -> u64 {
        let meta = self.replica.nodes().meta();
        scramble(meta.digest) ^ meta.nodes.rotate_left(32) ^ meta.bytes
    }

    fn broadcast(message: &PeerMessage) -> Option<&zab::Message> {
        if let PeerMessage::Zab(message) = message { Some(message) } else { None }
    }
}

impl Whole {
    /// Every eighth second, at random, its checkpoints are behind.
    fn strain(&mut self, now_ms: u64) {
        let is_behind = scramble(self.seed ^ (now_ms / 1_000)).is_multiple_of(8);
        let strain = Strain { is_behind, ..self.strain };
        if strain != self.strain {
            self.strain = strain;
            self.replica.step(replica::Input::Strain(strain));
        }
    }

    /// The tree.
    pub(crate) fn nodes(&self) -> &MemoryNodes {
        self.replica.nodes()
    }
}

fn broadcast_notice(notice: Notice) -> Option<zab::Notice> {
    match notice {
        Notice::Zab(notice) => Some(notice),
        Notice::Expired { .. }
        | Notice::OverQuota(_)
        | Notice::Authentication(_)
        | Notice::AclChange(_) => None,
        Notice::Diverged { .. } | Notice::NotUnderstood { .. } => panic!("{notice:?}"),
    }
}
