//! What a server has in every role: its log and epochs, and what is waiting to be done.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use conclave_proto::{Epoch, ServerId, Zxid};

use super::log::{Entry, Log, Position};
use super::message::{
    Ballot, FromFollower, FromLeader, Message, Notice, Ready, SnapshotOrder, Standing, Write,
    WriteToken,
};
use super::quorum::Quorum;
use super::{Config, Durable};

/// What a server has in every role.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) config: Config,
    pub(super) quorum: Quorum,
    pub(super) log: Log,
    /// No leader of an earlier epoch is followed.
    pub(super) accepted: Epoch,
    /// The log is the history of this epoch's leader, or a beginning of a later one's.
    pub(super) current: Epoch,
    pub(super) disk: Disk,
    /// See [`Durable::needs_repair`].
    pub(super) damaged: bool,
    /// The server is about to stop: it must not become leader.
    pub(super) leaving: bool,
    /// To whom the accepted epoch was promised, if that was in this life.
    pub(super) promised_to: Option<ServerId>,
    /// The ticks since the start.
    pub(super) now: u64,
    /// When each server was last heard.
    pub(super) heard: BTreeMap<ServerId, u64>,
    /// The servers to which there is a link, as far as is known.
    pub(super) linked: BTreeSet<ServerId>,
    /// Life and count of the latest ballot of each server: an earlier one is a straggler.
    pub(super) ballots: BTreeMap<ServerId, (u64, u64)>,
    /// Attempts to join that came while this server did not lead, and when.
    pub(super) early: BTreeMap<ServerId, EarlyJoin>,
    /// How often in a row this server tried to lead and failed.
    pub(super) failures: u32,
    pub(super) dice: Dice,
    pub(super) out: Ready,
    life: u64,
    ballot_count: u64,
    join_count: u32,
}

/// What a server says when it wants to join.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    pub(super) join: u64,
    pub(super) accepted: Epoch,
    pub(super) damaged: bool,
}

impl Attempt {
    /// Which life of the server this is an attempt of.
    pub(super) fn life(&self) -> u64 {
        self.join >> 32
    }
}

/// An attempt to join a server that does not lead (yet).
#[derive(Clone, Copy, Debug)]
pub(super) struct EarlyJoin {
    pub(super) attempt: Attempt,
    pub(super) at: u64,
}

impl Core {
    pub(super) fn new(config: Config, mut durable: Durable) -> Core {
        let log = Log::new(&mut durable, config.window_entries, config.window_bytes);
        assert!(
            durable.accepted_epoch >= durable.current_epoch,
            "the accepted epoch {} is behind the current epoch {}",
            durable.accepted_epoch,
            durable.current_epoch
        );
        let mut dice = Dice(config.seed);
        Core {
            quorum: Quorum::new(&config.voters),
            log,
            accepted: durable.accepted_epoch,
            current: durable.current_epoch,
            disk: Disk::new(&durable),
            damaged: durable.needs_repair,
            leaving: false,
            promised_to: None,
            now: 0,
            heard: BTreeMap::new(),
            linked: BTreeSet::new(),
            ballots: BTreeMap::new(),
            early: BTreeMap::new(),
            failures: 0,
            life: dice.next(),
            dice,
            out: Ready::default(),
            ballot_count: 0,
            join_count: 0,
            config,
        }
    }

    pub(super) fn id(&self) -> ServerId {
        self.config.id
    }

    /// Whether this server votes and is fit to.
    pub(super) fn votes(&self) -> bool {
        self.quorum.votes(self.id()) && !self.damaged
    }

    /// Whether this voter has never promised anything, as far as its disk knows: it is new, or its
    /// disk is.
    fn is_blank(&self) -> bool {
        self.quorum.votes(self.id()) && self.accepted == Epoch::ZERO && !self.damaged
    }

    /// Another server says in which epoch it is. If there has been one, but this server knows of
    /// none, it must have lost its disk, or it comes late to a new ensemble: what it may have
    /// promised and acknowledged, it does not know. True if that is news.
    pub(super) fn is_lost(&mut self, current: Epoch) -> bool {
        let lost = self.is_blank() && current > Epoch::ZERO;
        if lost {
            self.damaged = true;
            self.out.write.push(Write::NeedsRepair);
        }
        lost
    }

    /// Whether this server may try to lead.
    pub(super) fn may_lead(&self) -> bool {
        self.votes() && !self.leaving && !self.disk.stalls(self.now, self.silence())
    }

    /// All other servers.
    pub(super) fn others(&self) -> Vec<ServerId> {
        let all = self.config.voters.iter().chain(&self.config.observers);
        all.copied().filter(|id| *id != self.id()).collect()
    }

    pub(super) fn is_member(&self, server: ServerId) -> bool {
        server != self.id()
            && (self.quorum.votes(server) || self.config.observers.contains(&server))
    }

    /// The ticks after which a silent server is given up.
    pub(super) fn silence(&self) -> u64 {
        u64::from(self.config.silence_ticks.max(2))
    }

    /// The ticks between two heartbeats, and after which a question is asked again.
    pub(super) fn heartbeat(&self) -> u64 {
        u64::from(self.config.heartbeat_ticks.max(1))
    }

    /// The ticks for which it counts that a server was heard, while a leader is sought.
    pub(super) fn fresh(&self) -> u64 {
        (self.silence() / 3).max(3 * self.heartbeat()).max(4)
    }

    pub(super) fn send(&mut self, to: ServerId, message: Message) {
        self.out.send.push((to, message));
    }

    pub(super) fn send_as_leader(&mut self, to: ServerId, sync: u64, body: FromLeader) {
        let epoch = Zxid::from_bits(sync).epoch();
        self.send(to, Message::FromLeader { epoch, sync, body });
    }

    pub(super) fn send_as_follower(&mut self, to: ServerId, sync: u64, body: FromFollower) {
        let epoch = Zxid::from_bits(sync).epoch();
        self.send(to, Message::FromFollower { epoch, sync, body });
    }

    /// Sends this once everything decided so far is on the disk: it is a promise.
    pub(super) fn promise(&mut self, to: ServerId, message: Message) {
        self.out.send_after_write.push((to, message));
    }

    pub(super) fn promise_as_follower(&mut self, to: ServerId, sync: u64, body: FromFollower) {
        let epoch = Zxid::from_bits(sync).epoch();
        self.promise(to, Message::FromFollower { epoch, sync, body });
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        self.out.notices.push(notice);
    }

    pub(super) fn append(&mut self, entry: Entry) {
        self.log.append(entry.clone());
        match self.out.write.last_mut() {
            Some(Write::Append(entries)) => entries.push(entry),
            Some(
                Write::Truncate(_)
                | Write::AcceptedEpoch(_)
                | Write::CurrentEpoch(_)
                | Write::NeedsRepair,
            )
            | None => self.out.write.push(Write::Append(vec![entry])),
        }
    }

    /// Removes what follows `to` from the log.
    pub(super) fn truncate(&mut self, to: Position) {
        if to == self.log.last() {
            return;
        }
        self.log.truncate(to);
        self.disk.shorten(to.zxid);
        self.out.write.push(Write::Truncate(to));
    }

    /// Promises this server not to follow a leader of an earlier epoch.
    pub(super) fn accept(&mut self, epoch: Epoch, leader: ServerId) {
        assert!(epoch > self.accepted, "epoch {epoch} after {}", self.accepted);
        self.accepted = epoch;
        self.promised_to = Some(leader);
        self.out.write.push(Write::AcceptedEpoch(epoch));
    }

    /// The log is the history of this epoch's leader, durably.
    pub(super) fn adopt(&mut self, epoch: Epoch) {
        assert!(epoch >= self.current && epoch <= self.accepted, "epoch {epoch} out of order");
        self.current = epoch;
        self.out.write.push(Write::CurrentEpoch(epoch));
    }

    /// These writes are on the disk.
    pub(super) fn written(&mut self, token: WriteToken) {
        if let Some(done) = self.disk.written(token) {
            self.log.persisted(done.end);
            self.damaged &= !done.repaired;
        }
    }

    /// A snapshot has taken the place of log and state.
    pub(super) fn install(&mut self, at: Position) {
        self.log.install(at);
        self.disk.replace(at.zxid);
    }

    /// The writes so far are one batch: give it a name.
    pub(super) fn seal(&mut self) {
        if !self.out.write.is_empty() {
            let repaired =
                self.out.write.iter().any(|write| matches!(write, Write::CurrentEpoch(_)));
            let state = Written {
                end: self.log.last().zxid,
                accepted: self.accepted,
                current: self.current,
                repaired,
            };
            self.disk.begin(state, self.now);
        }
        self.out.token = self.disk.last_token;
    }

    /// The number of a new attempt to join.
    pub(super) fn next_join(&mut self) -> u64 {
        self.join_count += 1;
        (self.life << 32) | u64::from(self.join_count)
    }

    pub(super) fn is_fresh(&self, tick: u64) -> bool {
        self.now - tick <= self.fresh()
    }

    /// What this server says of itself while a leader is sought.
    pub(super) fn ballot(&mut self, standing: Standing) -> Message {
        self.ballot_count += 1;
        // Who cannot vote is nobody's neighbour, or others would count on it for a majority.
        let heard = self.heard.iter().filter(|(_, tick)| self.is_fresh(**tick) && !self.damaged);
        Message::Ballot(Ballot {
            life: self.life,
            count: self.ballot_count,
            standing,
            current: self.current,
            last: self.log.last().zxid,
            hears: heard.map(|(id, _)| *id).collect(),
        })
    }

    /// Whether this ballot is later than every one of that life seen before.
    pub(super) fn is_news(&mut self, from: ServerId, ballot: &Ballot) -> bool {
        let (life, count) = self.ballots.get(&from).copied().unwrap_or_default();
        let news = life != ballot.life || count < ballot.count;
        if news {
            self.ballots.insert(from, (ballot.life, ballot.count));
        }
        news
    }

    pub(super) fn cancel_snapshot(&mut self, with: ServerId, sync: u64) {
        self.out.snapshots.push(SnapshotOrder::Cancel { with, sync });
    }

    pub(super) fn check(&self) {
        self.log.check();
        assert!(self.accepted >= self.current, "accepted epoch behind current epoch");
        assert!(self.accepted >= self.disk.accepted, "accepted epoch behind the disk");
        assert!(self.log.last().zxid.epoch() <= self.accepted, "an entry of an unknown epoch");
    }
}

/// What is on the disk, and what is on its way there.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) accepted: Epoch,
    pub(super) current: Epoch,
    last_token: WriteToken,
    in_flight: VecDeque<(WriteToken, Written, u64)>,
}

/// What the disk holds once a batch is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    end: Zxid,
    accepted: Epoch,
    current: Epoch,
    repaired: bool,
}

impl Disk {
    fn new(durable: &Durable) -> Disk {
        Disk {
            accepted: durable.accepted_epoch,
            current: durable.current_epoch,
            last_token: WriteToken(0),
            in_flight: VecDeque::new(),
        }
    }

    fn begin(&mut self, state: Written, now: u64) {
        self.last_token.0 += 1;
        self.in_flight.push_back((self.last_token, state, now));
    }

    fn written(&mut self, token: WriteToken) -> Option<Written> {
        assert!(token <= self.last_token, "{token:?} was never handed out");
        let mut done: Option<Written> = None;
        while let Some((first, state, _)) = self.in_flight.front().copied()
            && first <= token
        {
            self.in_flight.pop_front();
            let repaired = state.repaired || done.is_some_and(|before| before.repaired);
            done = Some(Written { repaired, ..state });
        }
        if let Some(state) = done {
            self.accepted = state.accepted;
            self.current = state.current;
        }
        done
    }

    /// What is in flight beyond this will be removed again.
    fn shorten(&mut self, end: Zxid) {
        for (_, state, _) in &mut self.in_flight {
            state.end = state.end.min(end);
        }
    }

    /// Whatever is in flight, the log is something else now.
    fn replace(&mut self, end: Zxid) {
        for (_, state, _) in &mut self.in_flight {
            state.end = end;
        }
    }

    /// Whether a write has taken longer than so many ticks.
    pub(super) fn stalls(&self, now: u64, ticks: u64) -> bool {
        self.in_flight.front().is_some_and(|(_, _, since)| now - since > ticks)
    }
}

/// A small generator of random numbers (SplitMix64): the same seed gives the same numbers for ever.
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}
