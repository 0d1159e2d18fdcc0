//! A server with a leader: what it does with what the leader says.
//!
//! How it joins and is brought in sync is in [`super::recovery`]; how it takes part in the
//! broadcast, in [`super::broadcast`].

use conclave_proto::{Epoch, ServerId, Zxid};

use super::core::Core;
use super::log::Position;
use super::message::{Ballot, FromFollower, FromLeader, Message, Standing};
use super::role::Next;

/// A server with a leader.
#[derive(Debug)]
pub(super) struct Following {
    pub(super) leader: ServerId,
    /// The leader's life, if its ballots have told.
    pub(super) life: Option<u64>,
    /// The number of the attempt to join.
    pub(super) join: u64,
    pub(super) phase: Phase,
    /// When the leader last said something that belongs to this synchronisation.
    pub(super) heard: u64,
    /// When to ask again.
    pub(super) ask_at: u64,
}

/// How far a follower has come with its leader.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// It has asked to join.
    Joining,
    /// It has promised the epoch and shown its history.
    Promised {
        /// The number of the synchronisation, which contains the epoch.
        sync: u64,
        /// Whether the promise counts for this leader.
        counts: bool,
    },
    /// It receives a snapshot.
    Receiving {
        /// The number of the synchronisation.
        sync: u64,
        /// What the snapshot is.
        at: Position,
        /// The leader's history at the cut.
        upto: Position,
    },
    /// Its log is a beginning of the leader's, and grows.
    Streaming(Streaming),
}

/// A follower whose log is a beginning of the leader's.
#[derive(Clone, Debug)]
pub(super) struct Streaming {
    /// The number of the synchronisation.
    pub(super) sync: u64,
    /// The leader's history at the cut: once the log holds it, the leader is acknowledged.
    pub(super) upto: Position,
    /// Whether the epoch has been written since.
    pub(super) acknowledged: bool,
    /// What the leader says is committed as far as this server's disk has it.
    pub(super) commit: Zxid,
    /// What was committed when the leader said that all is in sync.
    pub(super) up_to_date: Option<Zxid>,
    /// The leader is to be told how far the log is.
    pub(super) ack_due: bool,
    /// How far it was told, or will be as soon as that is durable. The rest is not urgent.
    pub(super) acked: Zxid,
    /// A gap has been reported since the last tick.
    pub(super) gap_told: bool,
}

impl Following {
    /// Asks this server to lead us.
    pub(super) fn new(core: &mut Core, leader: ServerId) -> Following {
        let mut following = Following {
            leader,
            life: core.ballots.get(&leader).map(|(life, _)| *life),
            join: core.next_join(),
            phase: Phase::Joining,
            heard: core.now,
            ask_at: 0,
        };
        following.ask(core);
        following
    }

    fn ask(&mut self, core: &mut Core) {
        self.ask_at = core.now + core.heartbeat();
        let (accepted, damaged) = (core.accepted, core.damaged);
        core.send(self.leader, Message::Join { join: self.join, accepted, damaged });
    }

    /// The number of the synchronisation, once the leader has given one.
    pub(super) fn sync(&self) -> Option<u64> {
        match &self.phase {
            Phase::Joining => None,
            Phase::Promised { sync, .. } | Phase::Receiving { sync, .. } => Some(*sync),
            Phase::Streaming(streaming) => Some(streaming.sync),
        }
    }

    /// The leader says something.
    pub(super) fn on_message(
        &mut self,
        core: &mut Core,
        from: ServerId,
        (epoch, sync): (Epoch, u64),
        body: FromLeader,
    ) -> Next {
        if from != self.leader || Zxid::from_bits(sync).epoch() != epoch {
            return Next::Stay;
        }
        if self.sync() == Some(sync) {
            self.heard = core.now;
        } else if !matches!(body, FromLeader::NewEpoch { .. }) {
            return self.on_stranger(core, epoch);
        }
        match body {
            FromLeader::NewEpoch { join } => return self.on_new_epoch(core, epoch, sync, join),
            FromLeader::Sync { start, upto } => return self.on_sync(core, start, upto),
            FromLeader::Restart => return Next::Follow(self.leader),
            FromLeader::HandOver { to } if to != core.id() => return Next::Follow(to),
            FromLeader::HandOver { .. } if core.may_lead() => return Next::Lead,
            FromLeader::HandOver { .. } => {
                return Next::Look("leadership was handed over to a server that cannot lead");
            }
            FromLeader::Fetch { after } => self.on_fetch(core, after),
            FromLeader::UpToDate { commit } => self.on_up_to_date(commit),
            FromLeader::Propose { previous, entries, commit, delay_ack } => {
                self.on_propose(core, previous, entries, commit, delay_ack);
            }
            FromLeader::Commit { commit } => self.on_commit(commit),
            FromLeader::Heartbeat { round, commit } => self.on_heartbeat(core, round, commit),
        }
        Next::Stay
    }

    /// The leader speaks of another synchronisation than ours: an echo, unless ours is dead.
    pub(super) fn on_stranger(&self, core: &Core, epoch: Epoch) -> Next {
        if self.is_neglected(core) && epoch >= core.accepted {
            Next::Follow(self.leader)
        } else {
            Next::Stay
        }
    }

    /// Whether the leader should have said something by now.
    fn is_neglected(&self, core: &Core) -> bool {
        core.now - self.heard > 2 * core.heartbeat() + 2 && !matches!(self.phase, Phase::Joining)
    }

    /// A ballot: the leader's own says whether it still leads; others are told who does.
    pub(super) fn on_ballot(&self, core: &mut Core, from: ServerId, ballot: &Ballot) -> Next {
        if from == self.leader && self.life.is_some_and(|life| life != ballot.life) {
            // An echo of an earlier life; and if the leader has just restarted, its silence tells.
            return Next::Stay;
        }
        match ballot.standing {
            Standing::Looking { .. } if from == self.leader => {
                Next::Look("the leader looks for a leader itself")
            }
            Standing::Following { .. } if from == self.leader => {
                Next::Look("the leader follows another server")
            }
            Standing::Leading { epoch, .. } if from == self.leader => {
                // It speaks so to those who are not with it.
                self.on_stranger(core, epoch)
            }
            Standing::Looking { .. } => {
                let answer = self.ballot(core);
                core.send(from, answer);
                Next::Stay
            }
            Standing::Following { .. } | Standing::Leading { .. } => Next::Stay,
        }
    }

    pub(super) fn ballot(&self, core: &mut Core) -> Message {
        core.ballot(Standing::Following { leader: self.leader })
    }

    pub(super) fn on_tick(&mut self, core: &mut Core) -> Next {
        if core.now - self.heard > core.silence() {
            return Next::Look("the leader is silent");
        }
        match &mut self.phase {
            Phase::Joining if core.now >= self.ask_at => self.ask(core),
            Phase::Joining | Phase::Promised { .. } | Phase::Receiving { .. } => {}
            // Nothing that is committed reaches its clients any more: they are better off elsewhere.
            Phase::Streaming(_) if core.disk.stalls(core.now, 2 * core.silence()) => {
                return Next::Look("this server's disk stands still");
            }
            Phase::Streaming(streaming) => {
                streaming.gap_told = false;
                self.acknowledge(core);
            }
        }
        Next::Stay
    }

    pub(super) fn on_link_up(&mut self, core: &mut Core, server: ServerId) {
        if server == self.leader && matches!(self.phase, Phase::Joining) {
            self.ask(core);
        }
    }

    pub(super) fn on_link_down(&self, server: ServerId) -> Next {
        if server == self.leader { Next::Look("the link to the leader broke") } else { Next::Stay }
    }

    /// The role is over.
    pub(super) fn leave(&self, core: &mut Core) {
        match &self.phase {
            Phase::Receiving { sync, .. } => core.cancel_snapshot(self.leader, *sync),
            Phase::Joining | Phase::Promised { .. } | Phase::Streaming(_) => {}
        }
    }

    /// Says what has piled up.
    pub(super) fn flush(&mut self, core: &mut Core) -> Next {
        let leader = self.leader;
        let next = self.advance(core);
        if let Phase::Streaming(streaming) = &mut self.phase
            && std::mem::take(&mut streaming.ack_due)
        {
            streaming.acked = core.log.last().zxid;
            let ack =
                FromFollower::Ack { durable: streaming.acked, synced: streaming.acknowledged };
            core.promise_as_follower(leader, streaming.sync, ack);
        }
        next
    }

    /// The epoch in which this server is in sync with its leader and has delivered what was
    /// committed when it came in sync.
    pub(super) fn serving(&self, core: &Core) -> Option<Epoch> {
        let Phase::Streaming(streaming) = &self.phase else { return None };
        let reached = streaming.up_to_date.is_some_and(|c| core.log.delivered().zxid >= c);
        (reached && streaming.is_synced(core)).then(|| streaming.epoch())
    }

    pub(super) fn check(&self, core: &Core) {
        match &self.phase {
            Phase::Joining => {}
            Phase::Promised { sync, .. } | Phase::Receiving { sync, .. } => {
                assert_eq!(Zxid::from_bits(*sync).epoch(), core.accepted, "promised another epoch");
            }
            Phase::Streaming(streaming) => {
                assert_eq!(streaming.epoch(), core.accepted, "follows without a promise");
                assert!(!streaming.acknowledged || core.current == core.accepted, "wrong epoch");
            }
        }
    }
}

impl Streaming {
    pub(super) fn epoch(&self) -> Epoch {
        Zxid::from_bits(self.sync).epoch()
    }

    /// Whether the acknowledgement of the leader would survive a crash now.
    pub(super) fn is_synced(&self, core: &Core) -> bool {
        self.acknowledged
            && core.disk.current == self.epoch()
            && !core.damaged
            && core.log.durable() >= self.upto.zxid
    }
}
