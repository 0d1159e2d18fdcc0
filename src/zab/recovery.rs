//! Phases 1 and 2: discovery and synchronisation, from both ends.
//!
//! ```text
//!  follower                          leader
//!     | Join(accepted)                  |  a majority joined: epoch = highest accepted + 1,
//!     |-------------------------------->|  fsync it
//!     |                        NewEpoch |
//!     |<--------------------------------|
//!     | fsync the promise               |
//!     | AckEpoch(current, last)         |  a majority promised: fetch the longest history
//!     |-------------------------------->|  among them, if it is not its own
//!     |       Sync(start, upto), Propose|
//!     |<--------------------------------|
//!     | fsync the history,              |
//!     | then fsync the epoch            |
//!     | Ack(synced)                     |  a majority in sync, itself included and fsynced:
//!     |-------------------------------->|  the history is committed
//!     |                        UpToDate |
//!     |<--------------------------------|
//! ```

use conclave_proto::{Epoch, ServerId, Zxid};

use super::core::{Attempt, Core};
use super::following::{Following, Phase, Streaming};
use super::leading::{Follower, Leading, Progress, Stage};
use super::log::{Entry, Position};
use super::message::{FromFollower, FromLeader, Message, SnapshotOrder, SyncStart};
use super::role::Next;
use crate::limits::LAG_WINDOW_BYTES;

/// Why a leader is left whose history contradicts what is known to be committed.
const LACKS_COMMITTED: &str = "the leader's history lacks what is committed here";
/// Why a leader is left that says what no leader can say.
const UNKNOWN_EPOCH: &str = "the leader's history is of an epoch later than its own";
/// Why a leader gives up that cannot make a longer history its own.
const TOO_OLD: &str = "there is a longer history that parts too far back";

impl Following {
    /// The leader has an epoch: promise it, and show the history.
    pub(super) fn on_new_epoch(
        &mut self,
        core: &mut Core,
        epoch: Epoch,
        sync: u64,
        join: u64,
    ) -> Next {
        if join != self.join {
            return self.on_stranger(core, epoch);
        }
        let expected = match &self.phase {
            Phase::Joining => true,
            // Asked again, or anew because the leader had to take a later epoch.
            Phase::Promised { sync: ours, .. } => *ours == sync || epoch > core.accepted,
            Phase::Receiving { .. } | Phase::Streaming(_) => false,
        };
        if !expected || epoch < core.accepted {
            return Next::Stay;
        }
        if epoch > core.accepted {
            core.accept(epoch, self.leader);
        }
        // To promise the same epoch to two leaders would be no promise.
        let counts = core.votes() && core.promised_to == Some(self.leader);
        self.heard = core.now;
        self.phase = Phase::Promised { sync, counts };
        self.show_history(core, sync, counts);
        Next::Stay
    }

    pub(super) fn show_history(&self, core: &mut Core, sync: u64, counts: bool) {
        let (current, last) = (core.current, core.log.last());
        let body = FromFollower::AckEpoch { promised: counts, current, last };
        core.promise_as_follower(self.leader, sync, body);
    }

    /// The leader wants this history, for it is longer than its own. It is durable: that was
    /// promised with [`FromFollower::AckEpoch`], and has not changed since.
    pub(super) fn on_fetch(&self, core: &mut Core, after: Position) {
        if let Phase::Promised { sync, .. } = self.phase {
            let after = core.log.at_or_before(after).unwrap_or(core.log.base());
            let entries = core.log.batch_after(after).unwrap_or_default();
            let body = FromFollower::History { after, entries, last: core.log.last() };
            core.send_as_follower(self.leader, sync, body);
        }
    }

    /// The leader says how this history becomes a beginning of its own.
    pub(super) fn on_sync(&mut self, core: &mut Core, start: SyncStart, upto: Position) -> Next {
        let sync = match &mut self.phase {
            Phase::Promised { sync, .. } => *sync,
            Phase::Streaming(streaming) => {
                streaming.ack_due = true;
                return Next::Stay;
            }
            Phase::Joining | Phase::Receiving { .. } => return Next::Stay,
        };
        let (SyncStart::After(at) | SyncStart::Snapshot(at)) = start;
        if at.zxid < core.log.committed() {
            return Next::Look(LACKS_COMMITTED);
        }
        if at.zxid.epoch() > core.accepted {
            return Next::Look(UNKNOWN_EPOCH);
        }
        // What was acknowledged in this epoch, the leader of this epoch has.
        let acknowledged = core.current == core.accepted;
        let last = core.log.last();
        match start {
            SyncStart::After(after) => {
                let Some(have) = core.log.at_or_before(after) else {
                    return Next::Look(LACKS_COMMITTED);
                };
                if acknowledged && after != last {
                    return Next::Look(LACKS_COMMITTED);
                }
                if have != after {
                    core.send_as_follower(self.leader, sync, FromFollower::Diverged { have });
                    return Next::Stay;
                }
                core.truncate(after);
                self.phase = Phase::Streaming(Streaming::new(core, sync, upto));
            }
            SyncStart::Snapshot(at) => {
                if acknowledged && at.zxid < last.zxid {
                    return Next::Look(LACKS_COMMITTED);
                }
                let order = SnapshotOrder::Receive { from: self.leader, sync, at };
                core.out.snapshots.push(order);
                self.phase = Phase::Receiving { sync, at, upto };
            }
        }
        Next::Stay
    }

    /// The log and the state have been replaced by a snapshot.
    pub(super) fn on_installed(&mut self, core: &Core, sync: u64, at: Position) -> Next {
        match self.phase {
            Phase::Receiving { sync: ours, at: announced, upto }
                if ours == sync && announced == at =>
            {
                self.phase = Phase::Streaming(Streaming::new(core, sync, upto));
                Next::Stay
            }
            // One that came too late: what the leader was told of this log is no longer true.
            Phase::Joining
            | Phase::Promised { .. }
            | Phase::Receiving { .. }
            | Phase::Streaming(_) => Next::Follow(self.leader),
        }
    }

    pub(super) fn on_snapshot_failed(&mut self, with: ServerId, failed: u64) -> Next {
        match self.phase {
            Phase::Receiving { sync, .. } if with == self.leader && sync == failed => {
                Next::Follow(self.leader)
            }
            Phase::Joining
            | Phase::Promised { .. }
            | Phase::Receiving { .. }
            | Phase::Streaming(_) => Next::Stay,
        }
    }

    /// The leader is established and this server is in sync.
    pub(super) fn on_up_to_date(&mut self, commit: Zxid) {
        if let Phase::Streaming(streaming) = &mut self.phase {
            streaming.up_to_date.get_or_insert(commit);
        }
        self.on_commit(commit);
    }

    /// Acknowledges the leader once the log holds its initial history durably: first the history,
    /// then the epoch, then the acknowledgement.
    pub(super) fn advance(&mut self, core: &mut Core) -> Next {
        let Phase::Streaming(streaming) = &mut self.phase else { return Next::Stay };
        core.log.commit(streaming.commit.min(core.log.durable()));
        if !streaming.acknowledged && core.log.durable() >= streaming.upto.zxid {
            if !core.log.holds(streaming.upto) {
                return Next::Look("the history that the leader sent is not the one it announced");
            }
            let epoch = streaming.epoch();
            if core.current != epoch || core.damaged {
                core.adopt(epoch);
            }
            streaming.acknowledged = true;
            streaming.ack_due = true;
        }
        Next::Stay
    }
}

impl Streaming {
    fn new(core: &Core, sync: u64, upto: Position) -> Streaming {
        Streaming {
            sync,
            upto,
            acknowledged: false,
            commit: core.log.committed(),
            up_to_date: None,
            ack_due: true,
            acked: core.log.last().zxid,
            gap_told: false,
        }
    }
}

impl Leading {
    /// A server wants to follow.
    pub(super) fn on_join(&mut self, core: &mut Core, from: ServerId, attempt: Attempt) -> Next {
        if let Some(Follower { attempt: earlier, state, .. }) = self.followers.get(&from) {
            if earlier.join == attempt.join {
                if *state == Progress::Asked {
                    self.ask(core, from);
                }
                return Next::Stay;
            }
            if earlier.life() == attempt.life() && attempt.join < earlier.join {
                return Next::Stay;
            }
        }
        self.forget(core, from);
        self.followers.insert(from, Follower::new(core, attempt));
        match self.stage.epoch() {
            None => self.gather(core),
            // It must not follow this epoch; there must be a later one.
            Some(epoch) if attempt.accepted > epoch || !self.may_repair(from, attempt) => {
                self.start_over(core, Some(from))
            }
            Some(_) => {
                self.ask(core, from);
                Next::Stay
            }
        }
    }

    /// A damaged server may have promised, and forgotten, any epoch that was ever tried. In an
    /// epoch whose discovery began after its damage and without its help, that does no harm: any
    /// other majority that it was part of had another server in common with this one.
    fn may_repair(&self, server: ServerId, attempt: Attempt) -> bool {
        !attempt.damaged || self.repaired.contains(&(server, attempt.life()))
    }

    /// Begins a new epoch, with the log as it is. Everyone has to join again, except `keep`, who
    /// just did.
    pub(super) fn start_over(&mut self, core: &mut Core, keep: Option<ServerId>) -> Next {
        for server in self.servers().into_iter().filter(|server| Some(*server) != keep) {
            self.restart(core, server);
        }
        self.rolls |= self.stage.established().is_some();
        self.stage = Stage::Gathering;
        self.since = core.now;
        self.heartbeat_at = core.now + core.heartbeat();
        self.gather(core)
    }

    /// Once a majority has joined, an epoch can be chosen that none of them has promised away.
    pub(super) fn gather(&mut self, core: &mut Core) -> Next {
        let fit = self.followers.iter().filter(|(_, follower)| !follower.attempt.damaged);
        if !core.quorum.is_majority(fit.map(|(id, _)| *id).chain([core.id()])) {
            return Next::Stay;
        }
        let damaged = self.followers.iter().filter(|(_, follower)| follower.attempt.damaged);
        self.repaired = damaged.map(|(id, follower)| (*id, follower.attempt.life())).collect();
        let accepted = self.followers.values().map(|follower| follower.attempt.accepted);
        let highest = accepted.max().unwrap_or(Epoch::ZERO).max(core.accepted);
        let Some(epoch) = highest.next() else {
            return Next::Look("all epochs are used up");
        };
        core.accept(epoch, core.id());
        self.stage = Stage::Promising { epoch };
        self.since = core.now;
        self.syncs = 0;
        for server in self.servers() {
            self.ask(core, server);
        }
        Next::Stay
    }

    /// Asks a follower to promise the epoch, once this server's own promise is durable.
    pub(super) fn ask(&mut self, core: &mut Core, server: ServerId) {
        let Some(epoch) = self.stage.epoch() else { return };
        let Some(follower) = self.followers.get_mut(&server) else { return };
        if follower.sync == 0 {
            self.syncs += 1;
            follower.sync = Zxid::new(epoch, self.syncs).bits();
        }
        follower.state = Progress::Asked;
        let body = FromLeader::NewEpoch { join: follower.attempt.join };
        core.promise(server, Message::FromLeader { epoch, sync: follower.sync, body });
    }

    /// A follower has promised the epoch, and shows its history.
    pub(super) fn on_ack_epoch(
        &mut self,
        core: &mut Core,
        from: ServerId,
        counts: bool,
        current: Epoch,
        last: Position,
    ) {
        let Some(follower) = self.followers.get_mut(&from) else { return };
        match follower.state {
            Progress::Asked => follower.state = Progress::Promised { counts, current, last },
            // It has not heard from where to begin.
            Progress::Streaming { .. } | Progress::Snapshot { .. } => self.tell_start(core, from),
            Progress::Joined | Progress::Promised { .. } | Progress::NeedsSnapshot => return,
        }
        match self.stage {
            Stage::Synchronising { .. } | Stage::Broadcasting { .. } => self.start(core, from),
            Stage::Gathering | Stage::Promising { .. } | Stage::Fetching { .. } => {}
        }
    }

    /// Once a majority has promised the epoch, the longest history among theirs holds everything
    /// that may have been committed before it.
    pub(super) fn count_promises(&mut self, core: &mut Core, epoch: Epoch) -> Next {
        let mut promised: Vec<(Epoch, Zxid, ServerId)> = self
            .followers
            .iter()
            .filter(|(id, _)| core.quorum.votes(**id))
            .filter_map(|(id, follower)| match follower.state {
                Progress::Promised { counts: true, current, last } => {
                    Some((current, last.zxid, *id))
                }
                Progress::Promised { counts: false, .. }
                | Progress::Joined
                | Progress::Asked
                | Progress::NeedsSnapshot
                | Progress::Snapshot { .. }
                | Progress::Streaming { .. } => None,
            })
            .collect();
        // A blank server among others that are not has lost its disk, or is not needed.
        let current = promised.iter().map(|(current, ..)| *current).max().max(Some(core.current));
        if current > Some(Epoch::ZERO) {
            promised.retain(|(.., id)| self.followers[id].attempt.accepted > Epoch::ZERO);
        }
        let own = (core.disk.accepted == epoch).then(|| core.id());
        if !core.quorum.is_majority(promised.iter().map(|(_, _, id)| *id).chain(own)) {
            return Next::Stay;
        }
        self.since = core.now;
        let own = (core.current, core.log.last().zxid);
        let longer =
            promised.into_iter().max().filter(|(current, last, _)| (*current, *last) > own);
        match longer {
            // What it proposed meanwhile, and the reads that wait, are those of a deposed leader.
            Some(_) if self.rolls => return Next::Look("another server has led meanwhile"),
            Some((_, _, from)) => {
                let after = core.log.last();
                self.stage = Stage::Fetching { epoch, from, after, begun: false };
                self.fetch(core);
            }
            None => self.begin_synchronisation(core, epoch),
        }
        Next::Stay
    }

    /// Asks for the longer history, again if it was asked before.
    pub(super) fn fetch(&mut self, core: &mut Core) {
        let Stage::Fetching { from, after, .. } = self.stage else { return };
        if let Some(follower) = self.followers.get(&from) {
            core.send_as_leader(from, follower.sync, FromLeader::Fetch { after });
        }
    }

    /// The longer history comes, perhaps in parts.
    pub(super) fn on_history(
        &mut self,
        core: &mut Core,
        server: ServerId,
        after: Position,
        entries: Vec<Entry>,
        end: Position,
    ) -> Next {
        let Stage::Fetching { epoch, from, after: asked, begun } = self.stage else {
            return Next::Stay;
        };
        if server != from {
            return Next::Stay;
        }
        if begun && after != asked {
            // It was asked for twice. To ask again for each answer would never end.
            return Next::Stay;
        }
        if after.zxid > asked.zxid {
            // Without entries: its log does not reach back that far. Otherwise, an echo.
            let unreachable = entries.is_empty();
            return if unreachable { Next::Look(TOO_OLD) } else { Next::Stay };
        }
        let Some(common) = core.log.at_or_before(after) else {
            return Next::Look(TOO_OLD);
        };
        if common.zxid < core.log.committed() {
            return Next::Look("a longer history lacks what is committed here");
        }
        if common != after {
            self.stage = Stage::Fetching { epoch, from, after: common, begun };
            self.fetch(core);
            return Next::Stay;
        }
        if !begun {
            core.truncate(after);
        }
        for entry in entries {
            if entry.zxid > core.log.last().zxid {
                if !entry.continues(core.log.last()) || entry.zxid.epoch() > epoch {
                    return Next::Look("the longer history has a gap");
                }
                core.append(entry);
            }
        }
        self.since = core.now;
        if core.log.last() == end {
            self.begin_synchronisation(core, epoch);
        } else {
            self.stage = Stage::Fetching { epoch, from, after: core.log.last(), begun: true };
            self.fetch(core);
        }
        Next::Stay
    }

    /// From now on the log is this epoch's initial history: bring the followers in sync with it.
    fn begin_synchronisation(&mut self, core: &mut Core, epoch: Epoch) {
        self.stage = Stage::Synchronising { epoch, initial: core.log.last() };
        self.since = core.now;
        for server in self.servers() {
            self.start(core, server);
        }
    }

    /// Chooses how a follower that has shown its history is brought in sync.
    fn start(&mut self, core: &mut Core, server: ServerId) {
        if let Some(Follower { state: Progress::Promised { last, .. }, .. }) =
            self.followers.get(&server)
        {
            let last = *last;
            self.start_from(core, server, last);
        }
    }

    /// Chooses the last position before `theirs` that both histories may share; from there on the
    /// follower gets the log. If that is not known any more, it gets a snapshot.
    ///
    /// What the follower has after the shared position is not in this history, so it is not
    /// committed; and a snapshot is later than the shared position. So neither removes anything
    /// committed.
    fn start_from(&mut self, core: &mut Core, server: ServerId, theirs: Position) {
        let Some(follower) = self.followers.get_mut(&server) else { return };
        // What was sent from another start does not count.
        follower.in_flight.clear();
        follower.in_flight_bytes = 0;
        follower.probe = None;
        follower.state = match core.log.at_or_before(theirs) {
            Some(start) => {
                let upto = core.log.last();
                Progress::Streaming { start, upto, begun: false, sent: start }
            }
            None => Progress::NeedsSnapshot,
        };
        self.tell_start(core, server);
    }

    /// Says, again if need be, from where to begin.
    pub(super) fn tell_start(&mut self, core: &mut Core, server: ServerId) {
        let Some(follower) = self.followers.get(&server) else { return };
        let (start, upto) = match follower.state {
            Progress::Streaming { start, upto, begun: false, .. } => {
                (SyncStart::After(start), upto)
            }
            Progress::Snapshot { at, upto } => (SyncStart::Snapshot(at), upto),
            Progress::Streaming { begun: true, .. }
            | Progress::Joined
            | Progress::Asked
            | Progress::Promised { .. }
            | Progress::NeedsSnapshot => return,
        };
        core.send_as_leader(server, follower.sync, FromLeader::Sync { start, upto });
    }

    /// A follower does not have the position from which it was to begin.
    pub(super) fn on_diverged(&mut self, core: &mut Core, from: ServerId, have: Position) {
        if let Some(Follower { state: Progress::Streaming { start, begun: false, .. }, .. }) =
            self.followers.get(&from)
            && have.zxid < start.zxid
        {
            self.start_from(core, from, have);
        }
    }

    /// Orders the snapshots that are needed: the state is now exactly what is delivered, and what
    /// follows it stays in the log for those who get them.
    pub(super) fn order_snapshots(&mut self, core: &mut Core) {
        let (at, upto) = (core.log.delivered(), core.log.last());
        let needing: Vec<ServerId> = self
            .followers
            .iter()
            .filter(|(_, follower)| follower.state == Progress::NeedsSnapshot)
            .map(|(id, _)| *id)
            .collect();
        for server in needing {
            let Some(follower) = self.followers.get_mut(&server) else { continue };
            follower.state = Progress::Snapshot { at, upto };
            core.out.snapshots.push(SnapshotOrder::Send { to: server, sync: follower.sync, at });
            self.tell_start(core, server);
        }
    }

    pub(super) fn on_snapshot_failed(&mut self, core: &mut Core, with: ServerId, sync: u64) {
        let Some(follower) = self.followers.get(&with) else { return };
        if follower.sync == sync && matches!(follower.state, Progress::Snapshot { .. }) {
            self.restart(core, with);
        }
    }

    /// Writes the epoch once the initial history is durable, and is established once a majority,
    /// itself included, has acknowledged both.
    pub(super) fn count_synced(&mut self, core: &mut Core, epoch: Epoch, initial: Position) {
        if core.log.durable() < initial.zxid {
            return;
        }
        if core.current != epoch {
            core.adopt(epoch);
        }
        if core.disk.current != epoch {
            return;
        }
        let synced = self.followers.iter().filter(|(_, f)| f.synced).map(|(id, _)| *id);
        if !core.quorum.is_majority(synced.chain([core.id()])) {
            return;
        }
        core.log.commit(initial.zxid);
        core.failures = 0;
        self.stage = Stage::Broadcasting { epoch };
        self.told = initial.zxid;
        for server in self.servers() {
            self.tell_up_to_date(core, server);
        }
    }

    /// Tells a follower that it may serve, if it is so.
    pub(super) fn tell_up_to_date(&mut self, core: &mut Core, server: ServerId) {
        let Stage::Broadcasting { .. } = self.stage else { return };
        let Some(follower) = self.followers.get_mut(&server) else { return };
        if follower.synced && !follower.active {
            let commit = core.log.committed();
            follower.told_commit = follower.told_commit.max(commit);
            core.send_as_leader(server, follower.sync, FromLeader::UpToDate { commit });
        }
    }

    /// Drops a follower; it is not told.
    pub(super) fn forget(&mut self, core: &mut Core, server: ServerId) {
        if let Some(follower) = self.followers.remove(&server)
            && matches!(follower.state, Progress::Snapshot { .. })
        {
            core.cancel_snapshot(server, follower.sync);
        }
    }

    /// Drops a follower, and tells it to join again.
    pub(super) fn restart(&mut self, core: &mut Core, server: ServerId) {
        if let Some(follower) = self.followers.get(&server) {
            if follower.sync != 0 {
                core.send_as_leader(server, follower.sync, FromLeader::Restart);
            }
            self.forget(core, server);
        }
    }

    /// Gives up followers that are so far behind that the log kept for them grows over its limit.
    pub(super) fn limit_window(&mut self, core: &mut Core) {
        let kept = core.log.kept_bytes();
        if kept <= LAG_WINDOW_BYTES {
            return;
        }
        let first = self.needs_log_after();
        let is_slow = |follower: &Follower| {
            follower.needs_log_after() == Some(first) && kept > follower.may_keep()
        };
        let slow = self.followers.iter().filter(|(_, follower)| is_slow(follower));
        let slow: Vec<ServerId> = slow.map(|(id, _)| *id).collect();
        for server in slow {
            self.restart(core, server);
        }
    }

    /// After this, the log is still needed for those who have not been sent it.
    pub(super) fn needs_log_after(&self) -> Zxid {
        self.followers.values().filter_map(Follower::needs_log_after).min().unwrap_or(Zxid::MAX)
    }
}
