//! Phase 3: the broadcast, from both ends.
//!
//! The leader appends proposals to its log and streams the log to each follower, whole batches at
//! a time, without waiting for answers. A follower appends, and once that is durable acknowledges
//! how far its log goes, at once if anybody waits for that. What a majority has durably, the leader
//! included only once its own disk has it, is committed. The leader tells each follower what the
//! others of a majority have, and the follower commits as much of it as its own disk has: it need
//! not wait until the leader has its acknowledgement and has said so.

use std::cmp::Reverse;

use bytes::Bytes;
use conclave_proto::{ServerId, Zxid};

use super::core::Core;
use super::following::{Following, Phase};
use super::leading::{Follower, Leading, Progress, Sparing, Stage};
use super::log::{Entry, Position};
use super::message::{FromFollower, FromLeader, Notice};
use super::peer::{FollowerView, ProposeError};
use super::role::Next;
use crate::limits::{
    BATCH_BYTES, DELAYED_ACKS, FOLLOWER_WINDOW_BYTES, HELD_BACK_ENTRIES, SPARE_NOBODY_TICKS,
    SPARED_AND_MISSED, SPARED_AND_MISSED_TICKS, SPARED_TICKS, UNCOMMITTED_BYTES,
    UNCOMMITTED_ENTRIES,
};

impl Leading {
    /// Appends a proposal to the log; [`Leading::stream`] sends it.
    pub(super) fn propose(&mut self, core: &mut Core, body: Bytes) -> Result<Zxid, ProposeError> {
        let Some(epoch) = self.stage.established() else { return Err(ProposeError::NotLeading) };
        if self.hand_over_by.is_some() {
            return Err(ProposeError::HandingOver);
        }
        let last = core.log.last();
        let counter = if last.zxid.epoch() == epoch { last.zxid.counter() + 1 } else { 1 };
        if counter > core.config.counter_limit.min(Zxid::MAX_COUNTER) {
            return Err(ProposeError::Rolling);
        }
        let (entries, bytes) = core.log.waiting();
        if entries >= UNCOMMITTED_ENTRIES || bytes + body.len() > UNCOMMITTED_BYTES {
            return Err(ProposeError::Full);
        }
        let zxid = Zxid::new(epoch, counter);
        core.append(Entry::after(last, zxid, body));
        Ok(zxid)
    }

    /// A follower's log is durable up to here.
    pub(super) fn on_ack(&mut self, core: &mut Core, from: ServerId, durable: Zxid, synced: bool) {
        if durable > core.log.last().zxid {
            return self.restart(core, from);
        }
        let Some(follower) = self.followers.get_mut(&from) else { return };
        let upto = match &mut follower.state {
            Progress::Streaming { begun, upto, .. } => {
                *begun = true;
                *upto
            }
            Progress::Snapshot { at, upto } if durable >= at.zxid => {
                let (start, upto) = (*at, *upto);
                follower.state = Progress::Streaming { start, upto, begun: true, sent: start };
                upto
            }
            Progress::Joined
            | Progress::Asked
            | Progress::Promised { .. }
            | Progress::NeedsSnapshot
            | Progress::Snapshot { .. } => return,
        };
        if durable > follower.acked {
            follower.acked = durable;
            follower.acknowledge();
        }
        if synced && durable >= upto.zxid && !follower.synced {
            follower.synced = true;
            self.tell_up_to_date(core, from);
        }
    }

    /// A follower lacks something of what it was sent.
    pub(super) fn on_gap(&mut self, core: &mut Core, from: ServerId, last: Position) {
        if core.log.holds(last) {
            self.rewind(from, last);
        } else {
            self.restart(core, from);
        }
    }

    pub(super) fn on_heartbeat_ack(
        &mut self,
        core: &mut Core,
        from: ServerId,
        round: u64,
        received: Zxid,
        active: bool,
    ) {
        let place = self.rounds_sent.binary_search_by_key(&round, |(sent, _)| *sent);
        let sent_at = place.map_or(0, |place| self.rounds_sent[place].1);
        let Some(follower) = self.followers.get_mut(&from) else { return };
        follower.heard = follower.heard.max(sent_at);
        follower.round = follower.round.max(round);
        follower.active |= active;
        self.tell_up_to_date(core, from);
        let Some(follower) = self.followers.get_mut(&from) else { return };
        let Progress::Streaming { begun: true, .. } = follower.state else { return };
        if let Some((asked, sent)) = follower.probe
            && round >= asked
        {
            follower.probe = None;
            if received < sent {
                self.send_after(core, from, received);
            }
        }
    }

    /// The link is new: what is not acknowledged may be lost.
    pub(super) fn send_again(&mut self, core: &mut Core, server: ServerId) {
        let Some(follower) = self.followers.get(&server) else { return };
        match follower.state {
            Progress::Streaming { start, .. } => {
                let acked = follower.acked.max(start.zxid);
                self.tell_start(core, server);
                self.send_after(core, server, acked);
            }
            Progress::Asked => self.ask(core, server),
            Progress::Snapshot { .. } => self.restart(core, server),
            Progress::Joined | Progress::Promised { .. } | Progress::NeedsSnapshot => {}
        }
    }

    fn send_after(&mut self, core: &mut Core, server: ServerId, zxid: Zxid) {
        match core.log.position(zxid) {
            Some(position) => self.rewind(server, position),
            None => self.restart(core, server),
        }
    }

    fn rewind(&mut self, server: ServerId, to: Position) {
        let Some(follower) = self.followers.get_mut(&server) else { return };
        if let Progress::Streaming { start, begun, sent, .. } = &mut follower.state
            && to.zxid < sent.zxid
            && to.zxid >= start.zxid
        {
            *begun = true;
            *sent = to;
            follower.probe = None;
            follower.in_flight.clear();
            follower.in_flight_bytes = 0;
        }
    }

    /// Commits what a majority has durably.
    pub(super) fn count_acks(&mut self, core: &mut Core) {
        if let Some(zxid) = self.acknowledged(core, core.log.durable()) {
            core.log.commit(zxid);
        }
    }

    /// What a majority has durably, if this server has everything up to `own`.
    fn acknowledged(&self, core: &Core, own: Zxid) -> Option<Zxid> {
        let synced = self.followers.iter().filter(|(_, follower)| follower.synced);
        let acked = synced.map(|(id, follower)| (*id, follower.acked));
        core.quorum.reached(acked.chain([(core.id(), own)]))
    }

    /// What is committed as far as this follower has it durably, if this server has everything up
    /// to `own`: what a majority would have if the follower had everything. One that does not count
    /// yet is told what is committed in any case.
    fn committed_with(&self, core: &Core, server: ServerId, own: Zxid) -> Zxid {
        let committed = core.log.committed();
        let counts = self.followers.get(&server).is_some_and(|follower| follower.synced);
        if !counts || self.stage.established().is_none() {
            return committed;
        }
        let others = self.followers.iter().filter(|(id, other)| **id != server && other.synced);
        let acked = others.map(|(id, other)| (*id, other.acked));
        let both = [(core.id(), own), (server, core.log.last().zxid)];
        core.quorum.reached(acked.chain(both)).map_or(committed, |reached| reached.max(committed))
    }

    /// Whether its own disk is all that something waits for: to be committed or to be applied, here
    /// or at a follower.
    pub(super) fn awaits_disk(&self, core: &Core) -> bool {
        let (durable, last) = (core.log.durable(), core.log.last().zxid);
        let has_news = |(id, follower): (&ServerId, &Follower)| {
            let tells = follower.synced && !follower.idle;
            tells && self.committed_with(core, *id, last) > follower.told_commit
        };
        self.stage.established().is_none()
            || core.log.committed() > durable
            || self.acknowledged(core, last) > Some(durable)
            || self.followers.iter().any(has_news)
    }

    /// Asks the followers whether they still follow: regularly, and for reads.
    pub(super) fn send_heartbeats(&mut self, core: &mut Core) {
        let reads = self.read_due && self.stage.established().is_some();
        if !self.heartbeat_due && !reads {
            return;
        }
        self.heartbeat_due = false;
        self.round += 1;
        let round = self.round;
        self.rounds_sent.push_back((round, core.now));
        while self.rounds_sent.front().is_some_and(|(_, at)| core.now - at > core.silence()) {
            self.rounds_sent.pop_front();
        }
        if reads {
            self.read_due = false;
            self.reads.push_back((round, self.told.max(core.log.committed())));
        }
        for server in self.servers() {
            let commit = self.committed_with(core, server, core.log.durable());
            let Some(follower) = self.followers.get_mut(&server).filter(|f| f.is_with_us()) else {
                continue;
            };
            follower.told_commit = follower.told_commit.max(commit);
            self.told = self.told.max(follower.told_commit);
            if let Progress::Streaming { sent, .. } = follower.state {
                follower.probe.get_or_insert((round, sent.zxid));
            }
            core.send_as_leader(server, follower.sync, FromLeader::Heartbeat { round, commit });
        }
    }

    /// Sends each follower what it has not been sent yet, as far as its window allows.
    pub(super) fn stream(&mut self, core: &mut Core) {
        self.choose_spared(core);
        let all = self.sparing.is_due(core) || self.hand_over_by.is_some();
        for server in self.servers() {
            let commit = self.committed_with(core, server, core.log.durable());
            let delay_ack = !self.awaits_ack(server);
            let Some(follower) = self.followers.get_mut(&server) else { continue };
            if follower.spared && !all {
                continue;
            }
            let streams = follower.stream(core, server, commit, delay_ack);
            self.told = self.told.max(follower.told_commit);
            if !streams {
                self.restart(core, server);
            }
        }
    }

    /// Whether anybody waits for what this follower acknowledges: clients of other servers, or a read.
    /// It commits itself what its own clients wait for.
    fn awaits_ack(&self, server: ServerId) -> bool {
        let mut others = self.followers.iter().filter(|(id, _)| **id != server);
        !self.idle
            || !self.reads.is_empty()
            || self.hand_over_by.is_some()
            || self.stage.established().is_none()
            || others.any(|(_, other)| !other.idle)
    }

    /// Chooses whom the broadcast can do without for a while: idle followers that are in sync while
    /// others are a majority with the leader. A majority takes those who are ahead, so that who has
    /// become slow is replaced; then those who are not idle, then those it took before.
    fn choose_spared(&mut self, core: &Core) {
        let mut ranked: Vec<_> = self.followers.iter_mut().collect();
        ranked.sort_by_key(|(id, follower)| {
            let counts = follower.keeps_up() && core.quorum.votes(**id);
            (!counts, Reverse(follower.acked), follower.idle, follower.spared)
        });
        let needed = ranked.len().min(core.quorum.voters().count() / 2);
        let (needed, others) = ranked.split_at_mut(needed);
        // A voter with clients answers them with what its own disk has: it waits for no other's if it
        // is the one that has become slow.
        let votes = |server: &ServerId| core.quorum.votes(*server);
        let is_awaited = !self.idle
            || needed.iter().any(|(_, follower)| !follower.idle)
            || others.iter().any(|(id, follower)| !follower.idle && !votes(id));
        if is_awaited && needed.iter().any(|(_, follower)| follower.idle && follower.spared) {
            self.sparing.missed(core.now);
        }
        let spares = core.now >= self.sparing.from;
        needed.iter_mut().for_each(|(_, follower)| follower.spared = false);
        for (_, follower) in others {
            let may_rest = follower.idle && follower.keeps_up() && follower.can_wait(core);
            follower.spared = spares && may_rest;
        }
    }

    /// Reads wait for a majority to answer a heartbeat that was sent after they were asked.
    pub(super) fn confirm_reads(&mut self, core: &mut Core) {
        if self.stage.established().is_none() {
            return;
        }
        let rounds = self.followers.iter().map(|(id, follower)| (*id, follower.round));
        let own = (core.id(), self.round);
        let Some(answered) = core.quorum.reached(rounds.chain([own])) else { return };
        let mut confirmed = None;
        while let Some((round, commit)) = self.reads.front().copied()
            && round <= answered
        {
            self.reads.pop_front();
            confirmed = Some((round, commit));
        }
        if let Some((round, commit)) = confirmed {
            core.notice(Notice::ReadConfirmed { round, commit });
        }
    }

    /// Once some follower has everything, it is told to lead, and the others to follow it.
    pub(super) fn try_to_hand_over(&mut self, core: &mut Core) -> Next {
        let (Some(by), Some(_)) = (self.hand_over_by, self.stage.established()) else {
            return Next::Stay;
        };
        let last = core.log.last().zxid;
        let fit = self.followers.iter().filter(|(id, f)| core.quorum.votes(**id) && f.synced);
        let heir = fit.clone().find(|(_, f)| f.acked == last).map(|(id, _)| *id);
        if heir.is_none() && fit.count() > 0 && core.now < by {
            return Next::Stay;
        }
        if let Some(to) = heir {
            for (server, follower) in &self.followers {
                core.send_as_leader(*server, follower.sync, FromLeader::HandOver { to });
            }
        }
        Next::Look("leadership was handed over")
    }

    pub(super) fn views(&self, core: &Core) -> Vec<FollowerView> {
        let view = |(id, follower): (&ServerId, &Follower)| FollowerView {
            id: *id,
            in_sync: follower.synced,
            acked: follower.acked,
            lag: core.log.count_after(follower.acked) as u64,
        };
        self.followers.iter().map(view).collect()
    }

    /// Whether the next proposal would not fit this epoch.
    pub(super) fn is_used_up(&self, core: &Core) -> bool {
        let last = core.log.last().zxid;
        let Stage::Broadcasting { epoch } = self.stage else { return false };
        last.epoch() == epoch && last.counter() >= core.config.counter_limit
    }
}

impl Sparing {
    /// Whether those who are spared are sent what was held back for them: every few ticks, and at once
    /// if a whole tick was not enough for the others.
    fn is_due(&mut self, core: &Core) -> bool {
        let last = std::mem::replace(&mut self.tick, core.now);
        if last == core.now {
            return false;
        }
        let before = std::mem::replace(&mut self.end_at_tick, core.log.last().zxid);
        let is_late = core.log.committed() < before;
        if is_late && core.log.durable() < before {
            // The majority waits for this server's own disk, and had better not need it.
            self.from = core.now + SPARE_NOBODY_TICKS;
        }
        is_late || core.now / SPARED_TICKS > last / SPARED_TICKS
    }

    /// One that was spared was needed. Where that happens often, disks or processors are so unsteady
    /// that the quickest majority is another one each time.
    fn missed(&mut self, now: u64) {
        self.missed.push_back(now);
        if self.missed.len() == SPARED_AND_MISSED {
            let first = self.missed.pop_front().expect("it is not empty");
            if now - first < SPARED_AND_MISSED_TICKS {
                self.missed.clear();
                self.from = now + SPARE_NOBODY_TICKS;
            }
        }
    }
}

impl Follower {
    /// What it has acknowledged is no longer in flight.
    fn acknowledge(&mut self) {
        while let Some((end, bytes)) = self.in_flight.front()
            && *end <= self.acked
        {
            self.in_flight_bytes -= bytes;
            self.in_flight.pop_front();
        }
    }

    /// Whether it is in sync, and has been sent the log's end.
    fn keeps_up(&self) -> bool {
        self.synced && self.active && !self.catching_up
    }

    /// Whether what it has yet to be sent is little enough to be held back.
    fn can_wait(&self, core: &Core) -> bool {
        let Progress::Streaming { sent, .. } = &self.state else { return false };
        core.log.count_after(sent.zxid) <= HELD_BACK_ENTRIES
    }

    /// Sends what it has not been sent, and what is committed as far as it has it. False if the log
    /// no longer holds what it has to be sent.
    fn stream(&mut self, core: &mut Core, server: ServerId, commit: Zxid, delay_ack: bool) -> bool {
        let Progress::Streaming { sent, .. } = &mut self.state else { return true };
        let last = core.log.last();
        while sent.zxid < last.zxid && self.in_flight_bytes < FOLLOWER_WINDOW_BYTES {
            let Some(entries) = core.log.batch_after(*sent) else { return false };
            let few = self.in_flight.len() < DELAYED_ACKS && self.in_flight_bytes < BATCH_BYTES;
            let delay_ack = delay_ack && few;
            let previous = *sent;
            let bytes = entries.iter().map(|entry| entry.body.len()).sum::<usize>().max(1);
            *sent = entries.last().map_or(last, Entry::position);
            self.in_flight.push_back((sent.zxid, bytes));
            self.in_flight_bytes += bytes;
            self.told_commit = self.told_commit.max(commit);
            let body = FromLeader::Propose { previous, entries, commit, delay_ack };
            core.send_as_leader(server, self.sync, body);
        }
        self.catching_up &= sent.zxid < last.zxid;
        if commit > self.told_commit && !self.idle {
            self.told_commit = commit;
            core.send_as_leader(server, self.sync, FromLeader::Commit { commit });
        }
        true
    }
}

impl Following {
    /// The leader's log goes on.
    pub(super) fn on_propose(
        &mut self,
        core: &mut Core,
        previous: Position,
        entries: Vec<Entry>,
        commit: Zxid,
        delay_ack: bool,
    ) {
        let leader = self.leader;
        let Phase::Streaming(streaming) = &mut self.phase else { return };
        streaming.commit = streaming.commit.max(commit);
        let mut before = previous;
        for entry in entries {
            let here = entry.position();
            if here.zxid > core.log.last().zxid {
                let known = here.zxid.epoch() <= core.accepted;
                if before != core.log.last() || !entry.continues(before) || !known {
                    // Something is missing, or damaged on its way.
                    if !std::mem::replace(&mut streaming.gap_told, true) {
                        let body = FromFollower::Gap { last: core.log.last() };
                        core.send_as_follower(leader, streaming.sync, body);
                    }
                    return;
                }
                core.append(entry);
            }
            before = here;
        }
        streaming.ack_due |= !delay_ack;
    }

    /// Tells the leader what is durable, if it was not urgent.
    pub(super) fn acknowledge(&mut self, core: &mut Core) {
        let Phase::Streaming(streaming) = &mut self.phase else { return };
        let durable = core.log.durable();
        if durable > streaming.acked {
            streaming.acked = durable;
            let ack = FromFollower::Ack { durable, synced: streaming.is_synced(core) };
            core.send_as_follower(self.leader, streaming.sync, ack);
        }
    }

    pub(super) fn on_commit(&mut self, commit: Zxid) {
        if let Phase::Streaming(streaming) = &mut self.phase {
            streaming.commit = streaming.commit.max(commit);
        }
    }

    /// Answers at once: as long as this is said, no later leader has this server's promise.
    pub(super) fn on_heartbeat(&mut self, core: &mut Core, round: u64, commit: Zxid) {
        let (sync, received, durable, synced, active) = match &mut self.phase {
            Phase::Joining => return,
            &mut Phase::Promised { sync, counts } => {
                // It waits for the leader to say how to get in sync.
                return self.show_history(core, sync, counts);
            }
            Phase::Receiving { sync, .. } => (*sync, Zxid::ZERO, Zxid::ZERO, false, false),
            Phase::Streaming(streaming) => {
                let (last, durable) = (core.log.last().zxid, core.log.durable());
                streaming.acked = streaming.acked.max(durable);
                // Whoever asks may wait for the rest.
                streaming.ack_due |= durable < last;
                let active = streaming.up_to_date.is_some();
                (streaming.sync, last, durable, streaming.is_synced(core), active)
            }
        };
        let body = FromFollower::HeartbeatAck { round, received, durable, synced, active };
        core.send_as_follower(self.leader, sync, body);
        self.on_commit(commit);
    }
}
