//! A server that leads, or tries to: what it does with what its followers say.
//!
//! How it becomes the established leader is in [`super::recovery`]; the broadcast is in
//! [`super::broadcast`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use conclave_proto::{Epoch, ServerId, Zxid};

use super::core::{Attempt, Core};
use super::log::Position;
use super::message::{Ballot, FromFollower, FromLeader, Notice, Standing};
use super::role::Next;
use crate::limits::{LAG_WINDOW_BYTES, SNAPSHOT_WINDOW_BYTES};

/// A server that leads, or tries to.
#[derive(Debug)]
pub(super) struct Leading {
    pub(super) stage: Stage,
    /// It was established in an earlier epoch, and was not told of any other leader since.
    pub(super) rolls: bool,
    /// When this stage last made progress; later, when a majority was last heard from.
    pub(super) since: u64,
    pub(super) followers: BTreeMap<ServerId, Follower>,
    /// The most that any follower of this epoch was told: it may have committed that, and shown it to
    /// clients, before this server knows of it.
    pub(super) told: Zxid,
    /// The damaged servers, with their lives, that had asked to join before the epoch began.
    pub(super) repaired: BTreeSet<(ServerId, u64)>,
    /// The number of the last synchronisation begun in this epoch.
    pub(super) syncs: u64,
    /// The number of the last heartbeat, and when the last ones were sent.
    pub(super) round: u64,
    pub(super) rounds_sent: VecDeque<(u64, u64)>,
    pub(super) heartbeat_at: u64,
    /// Heartbeats are to be sent: by the clock, or for a read.
    pub(super) heartbeat_due: bool,
    pub(super) read_due: bool,
    /// Rounds that answer for reads, with all that any server may have shown when they were sent.
    pub(super) reads: VecDeque<(u64, Zxid)>,
    /// When to give up finding someone to hand over to.
    pub(super) hand_over_by: Option<u64>,
    /// Since when its own disk has been behind what is committed.
    pub(super) behind_since: Option<u64>,
    pub(super) sparing: Sparing,
    /// See [`super::Peer::set_idle`].
    pub(super) idle: bool,
}

/// How far a leader has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for a majority to join, to learn which epochs are used up.
    Gathering,
    /// It waits for a majority to promise the new epoch.
    Promising {
        /// The new epoch.
        epoch: Epoch,
    },
    /// It fetches the history of the follower that has the longest.
    Fetching {
        /// The new epoch.
        epoch: Epoch,
        /// From whom.
        from: ServerId,
        /// What it asked for last.
        after: Position,
        /// Whether anything has come.
        begun: bool,
    },
    /// It brings a majority in sync with its history.
    Synchronising {
        /// The new epoch.
        epoch: Epoch,
        /// The end of its history.
        initial: Position,
    },
    /// It is established: a majority has acknowledged it, and its initial history is committed.
    Broadcasting {
        /// The epoch.
        epoch: Epoch,
    },
}

/// When a leader spares followers that nobody waits for.
#[derive(Debug, Default)]
pub(super) struct Sparing {
    /// The last tick that was looked at: several may have passed since.
    pub(super) tick: u64,
    /// The log's end at the last tick.
    pub(super) end_at_tick: Zxid,
    /// When one that was spared was needed, lately.
    pub(super) missed: VecDeque<u64>,
    /// None is spared before.
    pub(super) from: u64,
}

/// A server that joined this leader.
#[derive(Debug)]
pub(super) struct Follower {
    pub(super) attempt: Attempt,
    /// The number of its synchronisation; 0 before there is an epoch.
    pub(super) sync: u64,
    pub(super) state: Progress,
    /// How far its log is durable and equal to the leader's.
    pub(super) acked: Zxid,
    /// Whether it has acknowledged the leader.
    pub(super) synced: bool,
    /// Whether it knows that it is in sync.
    pub(super) active: bool,
    /// When it was last heard; for a heartbeat, when that was sent.
    pub(super) heard: u64,
    /// The last heartbeat that it answered.
    pub(super) round: u64,
    /// What was sent to it that it may not have received: a heartbeat and what went before.
    pub(super) probe: Option<(u64, Zxid)>,
    /// Whether it has yet to be sent the log's end for the first time: until then, the log is kept
    /// for it.
    pub(super) catching_up: bool,
    /// The most that it was told is committed as far as it has it. That may become more than the
    /// others have, if one of them leaves, and stays true.
    pub(super) told_commit: Zxid,
    /// See [`super::Peer::set_idle`].
    pub(super) idle: bool,
    /// Whether it is idle, and the others are a majority without it: it is sent what is new later.
    pub(super) spared: bool,
    /// Messages not acknowledged: where they end, and their bytes.
    pub(super) in_flight: VecDeque<(Zxid, usize)>,
    pub(super) in_flight_bytes: usize,
}

/// How far a follower has come, as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It has asked to join.
    Joined,
    /// It was asked to promise the epoch.
    Asked,
    /// It has promised, and shown its history.
    Promised {
        /// Whether the promise counts.
        counts: bool,
        /// Its current epoch.
        current: Epoch,
        /// The end of its log.
        last: Position,
    },
    /// It needs a snapshot.
    NeedsSnapshot,
    /// A snapshot is on its way.
    Snapshot {
        /// What it is.
        at: Position,
        /// The leader's history at the cut.
        upto: Position,
    },
    /// It is sent the log.
    Streaming {
        /// From where its log is made equal to the leader's.
        start: Position,
        /// The leader's history at the cut.
        upto: Position,
        /// Whether it has begun.
        begun: bool,
        /// The end of what was sent.
        sent: Position,
    },
}

impl Stage {
    /// The leader's epoch, once it has one.
    pub(super) fn epoch(self) -> Option<Epoch> {
        match self {
            Stage::Gathering => None,
            Stage::Promising { epoch }
            | Stage::Fetching { epoch, .. }
            | Stage::Synchronising { epoch, .. }
            | Stage::Broadcasting { epoch } => Some(epoch),
        }
    }

    /// The epoch of an established leader.
    pub(super) fn established(self) -> Option<Epoch> {
        match self {
            Stage::Broadcasting { epoch } => Some(epoch),
            Stage::Gathering
            | Stage::Promising { .. }
            | Stage::Fetching { .. }
            | Stage::Synchronising { .. } => None,
        }
    }
}

impl Follower {
    pub(super) fn new(core: &Core, attempt: Attempt) -> Follower {
        Follower {
            attempt,
            sync: 0,
            state: Progress::Joined,
            acked: Zxid::ZERO,
            synced: false,
            active: false,
            heard: core.now,
            round: 0,
            probe: None,
            catching_up: true,
            told_commit: Zxid::ZERO,
            idle: false,
            spared: false,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
        }
    }

    /// Whether it has shown its history and is being brought or kept in sync.
    pub(super) fn is_with_us(&self) -> bool {
        match self.state {
            Progress::Joined | Progress::Asked | Progress::NeedsSnapshot => false,
            Progress::Promised { .. } | Progress::Snapshot { .. } | Progress::Streaming { .. } => {
                true
            }
        }
    }

    /// The bytes of the log that are kept for it at most.
    pub(super) fn may_keep(&self) -> usize {
        match self.state {
            Progress::Streaming { .. } if !self.catching_up && !self.spared => LAG_WINDOW_BYTES,
            Progress::Streaming { .. }
            | Progress::Snapshot { .. }
            | Progress::Joined
            | Progress::Asked
            | Progress::Promised { .. }
            | Progress::NeedsSnapshot => SNAPSHOT_WINDOW_BYTES,
        }
    }

    /// What it is yet to be sent follows this, if it cannot do without.
    pub(super) fn needs_log_after(&self) -> Option<Zxid> {
        match self.state {
            Progress::Snapshot { at, .. } => Some(at.zxid),
            Progress::Streaming { start, .. } if self.catching_up => {
                Some(start.zxid.max(self.acked))
            }
            Progress::Streaming { sent, .. } => Some(sent.zxid),
            Progress::Joined
            | Progress::Asked
            | Progress::Promised { .. }
            | Progress::NeedsSnapshot => None,
        }
    }
}

impl Leading {
    /// Tries to lead: tells everyone, and waits for a majority to join.
    pub(super) fn new(core: &mut Core) -> Leading {
        let mut leading = Leading {
            stage: Stage::Gathering,
            rolls: false,
            since: core.now,
            followers: BTreeMap::new(),
            told: Zxid::ZERO,
            repaired: BTreeSet::new(),
            syncs: 0,
            round: 0,
            rounds_sent: VecDeque::new(),
            heartbeat_at: core.now + core.heartbeat(),
            heartbeat_due: false,
            read_due: false,
            reads: VecDeque::new(),
            hand_over_by: None,
            behind_since: None,
            sparing: Sparing::default(),
            idle: false,
        };
        leading.announce(core);
        leading
    }

    /// The servers that joined.
    pub(super) fn servers(&self) -> Vec<ServerId> {
        self.followers.keys().copied().collect()
    }

    /// Tells those who have not joined that this server leads.
    fn announce(&mut self, core: &mut Core) {
        for server in core.others() {
            if !self.followers.contains_key(&server) {
                self.show_standing(core, server);
            }
        }
    }

    fn show_standing(&self, core: &mut Core, server: ServerId) {
        let epoch = self.stage.epoch().unwrap_or(core.accepted);
        let established = self.stage.established().is_some();
        let ballot = core.ballot(Standing::Leading { epoch, established });
        core.send(server, ballot);
    }

    /// A follower says something.
    pub(super) fn on_message(
        &mut self,
        core: &mut Core,
        from: ServerId,
        sync: u64,
        body: FromFollower,
    ) -> Next {
        let Some(follower) = self.followers.get_mut(&from).filter(|f| f.sync == sync) else {
            // It follows a leader that we no longer are.
            core.send_as_leader(from, sync, FromLeader::Restart);
            return Next::Stay;
        };
        if !matches!(body, FromFollower::HeartbeatAck { .. }) {
            follower.heard = core.now;
        }
        match body {
            FromFollower::AckEpoch { promised, current, last } => {
                self.on_ack_epoch(core, from, promised, current, last);
            }
            FromFollower::History { after, entries, last } => {
                return self.on_history(core, from, after, entries, last);
            }
            FromFollower::Diverged { have } => self.on_diverged(core, from, have),
            FromFollower::Ack { durable, synced } => self.on_ack(core, from, durable, synced),
            FromFollower::Gap { last } => self.on_gap(core, from, last),
            FromFollower::HeartbeatAck { round, received, durable, synced, active } => {
                self.on_heartbeat_ack(core, from, round, received, active);
                self.on_ack(core, from, durable, synced);
            }
        }
        Next::Stay
    }

    /// Those who look for a leader are told that there is one.
    pub(super) fn on_ballot(&self, core: &mut Core, from: ServerId, ballot: &Ballot) -> Next {
        match ballot.standing {
            Standing::Looking { .. } => {
                self.show_standing(core, from);
                Next::Stay
            }
            Standing::Leading { epoch, established: true } => {
                let own = self.stage.established();
                let later = own.is_none_or(|own| epoch > own) && epoch >= core.accepted;
                if later { Next::Look("there is a later leader") } else { Next::Stay }
            }
            Standing::Leading { established: false, .. } => {
                let own = (core.current, core.log.last().zxid, core.id());
                let better = (ballot.current, ballot.last, from) > own;
                let mutual = ballot.hears.contains(&core.id());
                // Two at once only divide the others.
                if better && mutual && self.stage == Stage::Gathering {
                    Next::Follow(from)
                } else {
                    Next::Stay
                }
            }
            Standing::Following { .. } => Next::Stay,
        }
    }

    pub(super) fn on_tick(&mut self, core: &mut Core) -> Next {
        if core.now >= self.heartbeat_at {
            self.heartbeat_at = core.now + core.heartbeat();
            self.heartbeat_due = true;
            self.announce(core);
            self.fetch(core);
            for server in self.servers() {
                self.ask_again(core, server);
            }
        }
        self.drop_silent(core);
        let next = self.check_quorum(core);
        if next == Next::Stay { self.check_own_disk(core) } else { next }
    }

    fn ask_again(&mut self, core: &mut Core, server: ServerId) {
        match self.followers.get(&server).map(|follower| follower.state) {
            Some(Progress::Asked) => self.ask(core, server),
            Some(Progress::Streaming { .. } | Progress::Snapshot { .. }) => {
                self.tell_start(core, server);
            }
            Some(Progress::Joined | Progress::Promised { .. } | Progress::NeedsSnapshot) | None => {
            }
        }
    }

    fn drop_silent(&mut self, core: &mut Core) {
        let (now, silence) = (core.now, core.silence());
        let silent = self.followers.iter().filter(|(_, f)| now - f.heard > silence);
        let silent: Vec<ServerId> = silent.map(|(id, _)| *id).collect();
        for server in silent {
            self.restart(core, server);
        }
    }

    /// Gives up without a majority, before the others can have another leader for long.
    fn check_quorum(&mut self, core: &Core) -> Next {
        let waited = core.now - self.since;
        match self.stage {
            Stage::Gathering if waited > core.silence() => Next::Look("no majority joined in time"),
            Stage::Promising { .. } if waited > core.silence() => {
                Next::Look("no majority promised the epoch in time")
            }
            Stage::Fetching { from, .. }
                if waited > core.silence() || !self.followers.contains_key(&from) =>
            {
                Next::Look("the longer history did not come in time")
            }
            Stage::Gathering | Stage::Promising { .. } | Stage::Fetching { .. } => Next::Stay,
            Stage::Synchronising { .. } | Stage::Broadcasting { .. } => {
                let with_us = self.followers.iter().filter(|(_, f)| f.is_with_us());
                let heard = with_us.map(|(id, f)| (*id, f.heard)).chain([(core.id(), core.now)]);
                self.since = core.quorum.reached(heard).unwrap_or(0).max(self.since);
                if core.now - self.since > core.silence() {
                    Next::Look("no majority is heard from")
                } else {
                    Next::Stay
                }
            }
        }
    }

    /// A leader whose own disk stands still while the others go on is in their way: it could
    /// answer none of its own clients.
    fn check_own_disk(&mut self, core: &Core) -> Next {
        if let Stage::Synchronising { .. } = self.stage
            && core.disk.stalls(core.now, 2 * core.silence())
        {
            return Next::Look("this server's disk stands still");
        }
        if core.log.committed() <= core.log.durable() {
            self.behind_since = None;
            return Next::Stay;
        }
        let since = *self.behind_since.get_or_insert(core.now);
        if core.now - since > 2 * core.silence() {
            Next::Look("this server's disk stands still")
        } else {
            Next::Stay
        }
    }

    pub(super) fn on_link_up(&mut self, core: &mut Core, server: ServerId) {
        if self.followers.contains_key(&server) {
            self.send_again(core, server);
        } else {
            self.show_standing(core, server);
        }
    }

    /// Decides what what has piled up allows, and says what has to be said.
    pub(super) fn flush(&mut self, core: &mut Core) -> Next {
        if self.is_used_up(core) {
            return self.start_over(core, None);
        }
        if let Stage::Promising { epoch } = self.stage {
            let next = self.count_promises(core, epoch);
            if next != Next::Stay {
                return next;
            }
        }
        match self.stage {
            Stage::Synchronising { epoch, initial } => self.count_synced(core, epoch, initial),
            Stage::Broadcasting { .. } => self.count_acks(core),
            Stage::Gathering | Stage::Promising { .. } | Stage::Fetching { .. } => {}
        }
        self.send_heartbeats(core);
        self.stream(core);
        self.confirm_reads(core);
        self.try_to_hand_over(core)
    }

    /// The role is over.
    pub(super) fn leave(&mut self, core: &mut Core) {
        if self.stage.established().is_none() {
            core.failures += 1;
        }
        if self.hand_over_by.is_some() {
            core.leaving = true;
            core.notice(Notice::HandedOver);
        }
        for server in self.servers() {
            self.forget(core, server);
        }
    }

    pub(super) fn check(&self, core: &Core) {
        let last = core.log.last().zxid;
        for (id, follower) in &self.followers {
            assert!(follower.acked <= last, "{id} acknowledged what was never proposed");
        }
        assert!(self.stage.established().is_none() || self.told <= last, "told what is not there");
        match self.stage {
            Stage::Gathering => {}
            Stage::Promising { epoch } | Stage::Fetching { epoch, .. } => {
                assert_eq!(epoch, core.accepted, "leads an epoch that it did not promise");
            }
            Stage::Synchronising { epoch, initial } => {
                assert_eq!(epoch, core.accepted, "leads an epoch that it did not promise");
                assert_eq!(initial, core.log.last(), "the initial history has changed");
            }
            Stage::Broadcasting { epoch } => {
                assert_eq!((epoch, epoch), (core.accepted, core.current), "leads another epoch");
                assert!(last.epoch() < epoch || core.log.last().zxid.epoch() == epoch);
            }
        }
    }
}
