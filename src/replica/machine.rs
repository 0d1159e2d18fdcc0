//! The machine itself: takes each [`Input`], and makes a [`Ready`] of what came of them.

use std::collections::{BTreeMap, BTreeSet};

use conclave_proto::{ServerId, ServerMessage, SessionId, Zxid, codec};

use crate::hub::{Hub, Told};
use crate::limits;
use crate::tree::Nodes;
use crate::zab;

use super::apply::Digests;
use super::backlog::Backlog;
use super::client::Client;
use super::early::Early;
use super::follow::Follow;
use super::guests::Guests;
use super::lead::{Lead, MOVE};
use super::local::Locals;
use super::pending::{Pending, Pendings, mix};
use super::reports::{Parted, Reports, Ticks};
use super::requests::Reading;
use super::{Config, ConnId, Input, Notice, PeerMessage, Ready, Strain, ToClient};

/// A whole server, without its IO.
pub struct Replica<N> {
    pub(super) config: Config,
    pub(super) zab: zab::Peer,
    pub(super) nodes: N,
    /// The last transaction applied.
    pub(super) applied: Zxid,
    pub(super) digests: Digests,
    pub(super) hub: Hub,
    /// Scratch for [`Hub::fire`].
    pub(super) told: Vec<Told>,
    pub(super) part: Part,
    /// What is said to this server as the leader that it is about to be.
    pub(super) early: Early,
    /// How many sessions the ensemble has.
    pub(super) session_count: usize,

    pub(super) clients: BTreeMap<ConnId, Client>,
    /// The open sessions of this server's clients.
    pub(super) by_session: BTreeMap<SessionId, ConnId>,
    /// The sessions that only this server knows.
    pub(super) locals: Locals,
    /// The connections whose session is being created or resumed.
    pub(super) handshakes: BTreeSet<ConnId>,
    /// Those of them that may resume their session, and at most wait until enough is applied.
    pub(super) granted: BTreeSet<(SessionId, ConnId)>,
    /// Those that wait until a transaction is applied here.
    pub(super) by_zxid: BTreeSet<(Zxid, ConnId)>,
    pub(super) reading: Reading,
    /// What is left to the next turn.
    pub(super) backlog: Backlog,
    pub(super) reports: Reports,
    pub(super) pendings: Pendings,
    pub(super) ticks: Ticks,
    /// The connections that have pinged since the last tick.
    pub(super) pinged: Vec<ConnId>,
    /// The connections of whose life the leader is still to be told.
    pub(super) unreported: Vec<ConnId>,
    /// Signs of life of connections that were closed before the leader was told of them.
    pub(super) parted: Vec<Parted>,

    pub(super) now_ms: Option<u64>,
    pub(super) time_ms: i64,
    pub(super) strain: Strain,
    /// Whether the server is about to stop.
    pub(super) leaving: bool,
    /// Whether a fault was found that forbids to go on.
    pub(super) halted: bool,
    /// How many streams of forwarded writes there were.
    pub(super) streams: u64,
    /// What scatters the marks of connections: those of an earlier life of this server may still
    /// come back in transactions.
    pub(super) conn_marks: u64,
    pub(super) out: Out,
}

/// The server's part in the ensemble, with what belongs to it and dies with it.
pub(super) enum Part {
    /// It has no leader, since this moment.
    Looking {
        /// When that began.
        since_ms: u64,
        /// Those who are content to read; `None`: nobody is served.
        guests: Option<Guests>,
    },
    /// It follows or observes.
    Following(Follow),
    /// It leads.
    Leading(Box<Lead>),
}

/// What the log itself says is committed: a leader stamps into each transaction what it has applied.
fn committed_by(durable: &zab::Durable) -> Zxid {
    if durable.needs_repair {
        return Zxid::ZERO;
    }
    let last = durable.entries.last().map(|entry| codec::decode_txn(&entry.body));
    last.and_then(Result::ok).map_or(Zxid::ZERO, |txn| txn.digest.0)
}

/// What has piled up for the next [`Ready`].
#[derive(Debug, Default)]
pub(super) struct Out {
    pub(super) send: Vec<(ServerId, PeerMessage)>,
    pub(super) clients: Vec<(ConnId, ToClient)>,
    pub(super) notices: Vec<Notice>,
}

impl<N: Nodes> Replica<N> {
    /// A server that finds this on its disk; `nodes` is the state after `durable.applied`.
    pub fn new(config: Config, mut durable: zab::Durable, nodes: N) -> Replica<N> {
        let meta = nodes.meta();
        durable.committed = committed_by(&durable);
        assert_eq!(durable.applied.zxid, meta.applied_zxid, "log and state disagree");
        assert!(config.session_timeout_min_ms <= config.session_timeout_max_ms);
        assert!(config.tick_ms > 0, "time does not stand still");
        assert!(config.turn_answers_bytes > 0, "there is an answer in each turn");
        assert!(config.turn_nodes > 0, "a transaction is applied in each turn");
        let mut digests = Digests::default();
        digests.push(meta.applied_zxid, meta.digest);
        Replica {
            zab: zab::Peer::new(config.zab.clone(), durable),
            applied: meta.applied_zxid,
            digests,
            hub: Hub::new(meta.applied_zxid),
            told: Vec::new(),
            part: Part::Looking { since_ms: 0, guests: None },
            early: Early::default(),
            session_count: nodes.sessions().count(),
            nodes,
            clients: BTreeMap::new(),
            by_session: BTreeMap::new(),
            locals: Locals::default(),
            handshakes: BTreeSet::new(),
            granted: BTreeSet::new(),
            by_zxid: BTreeSet::new(),
            reading: Reading::new(config.zab.seed),
            backlog: Backlog::new(&config),
            reports: Reports::new(config.zab.seed),
            pendings: Pendings::new(config.zab.seed),
            ticks: Ticks::default(),
            pinged: Vec::new(),
            unreported: Vec::new(),
            parted: Vec::new(),
            now_ms: None,
            time_ms: 0,
            strain: Strain::default(),
            leaving: false,
            halted: false,
            streams: mix(!config.zab.seed),
            conn_marks: mix(mix(!config.zab.seed)) & !MOVE,
            out: Out::default(),
            config,
        }
    }

    /// Take note of something that happened. Drain all inputs there are, then call
    /// [`Replica::ready`] once.
    pub fn step(&mut self, input: Input) {
        if self.halted {
            return;
        }
        match input {
            Input::Tick { now_ms, time_ms } => self.tick(now_ms, time_ms),
            Input::Peer { from, message } => self.peer(from, message),
            Input::LinkUp(server) => {
                self.zab.step(zab::Input::LinkUp(server));
                self.link_up(server);
            }
            Input::LinkDown(server) => self.zab.step(zab::Input::LinkDown(server)),
            Input::Written(token) => self.zab.step(zab::Input::Written(token)),
            Input::SnapshotFailed { with, sync } => {
                self.zab.step(zab::Input::SnapshotFailed { with, sync });
            }
            Input::Opened { conn, identities, fresh, numbered } => {
                self.opened(conn, identities, fresh, numbered);
            }
            Input::Client { conn, message } => self.client(conn, message),
            Input::SignOfLife(conn) => {
                self.heard_from(conn, 0);
            }
            Input::Invalid { conn, xid, fault } => self.invalid(conn, xid, fault),
            Input::Checked { conn, xid, claimed, result } => {
                self.checked(conn, xid, &claimed, result);
            }
            Input::Closed(conn) => self.forget(conn),
            Input::Strain(strain) => self.set_strain(strain),
            Input::HandOver => self.hand_over(),
        }
    }

    /// What has to be done because of the inputs so far. Committed transactions are applied here.
    pub fn ready(&mut self) -> Ready {
        let mut ready = Ready::default();
        self.serve_backlog();
        while !self.halted {
            self.flush();
            let zab = self.zab.ready();
            let transfers = !zab.snapshots.is_empty();
            self.absorb(zab, &mut ready);
            // A snapshot is cut from the state as it is now, so nothing more may happen before.
            if transfers || self.is_held() || !self.has_more() {
                ready.more |= transfers;
                break;
            }
        }
        self.hub.sweep(limits::TURN_UNWATCHED);
        ready.more |= self.has_backlog();
        self.backlog.end_turn();
        ready.send.append(&mut self.out.send);
        ready.clients = std::mem::take(&mut self.out.clients);
        ready.notices.append(&mut self.out.notices);
        if self.halted {
            // What this server believes is not to be relied on: nobody is told any more of it.
            return Ready { notices: ready.notices, token: ready.token, ..Ready::default() };
        }
        ready
    }

    /// A snapshot received from the leader is on the disk and is the state now: the caller has just
    /// put it in place through [`Replica::nodes_mut`], and steps nothing in between.
    ///
    /// It takes the place of everything this server knew. Its clients go elsewhere, since it cannot
    /// tell them what happened between the two states.
    pub fn install(&mut self, sync: u64, at: zab::Position) {
        let meta = self.nodes.meta();
        assert_eq!(meta.applied_zxid, at.zxid, "the snapshot is not what was announced");
        let sent_away: Vec<ConnId> = self.clients.keys().copied().collect();
        for conn in sent_away {
            self.send_away(conn);
        }
        self.backlog.clear();
        // Their end may be among what was skipped.
        self.locals.clear();
        self.restart_stream();
        self.applied = at.zxid;
        self.digests = Digests::default();
        self.digests.push(meta.applied_zxid, meta.digest);
        self.hub.restart(at.zxid);
        self.session_count = self.nodes.sessions().count();
        self.zab.step(zab::Input::SnapshotInstalled { sync, at });
    }

    /// Take back [`Ready::clients`], to use its memory again.
    pub fn reuse(&mut self, mut clients: Vec<(ConnId, ToClient)>) {
        clients.clear();
        if self.out.clients.capacity() < clients.capacity() && self.out.clients.is_empty() {
            self.out.clients = clients;
        }
    }

    /// Whether reads, transactions or watches to be removed are left to the next turn, before which
    /// others had better have theirs.
    pub fn has_backlog(&self) -> bool {
        self.backlog.is_pending() || self.hub.is_sweeping()
    }

    /// Whether transactions that are committed are applied only by the next [`Replica::ready`], which
    /// is to be called as soon as what this one has come to is done.
    pub fn is_held(&self) -> bool {
        self.backlog.is_held()
    }

    /// Whether this server has a leader, perhaps itself.
    pub fn has_leader(&self) -> bool {
        !matches!(self.part, Part::Looking { .. })
    }

    /// Whether anything follows once the writes so far are on this server's disk; if not, it may be
    /// told so with whatever happens next.
    pub fn awaits_disk(&self) -> bool {
        self.zab.awaits_disk()
    }

    /// How many transactions of the log are not applied yet.
    pub fn undelivered(&self) -> usize {
        self.zab.undelivered()
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

    /// The clock, in ms; 0 before the first tick.
    pub(super) fn now_ms(&self) -> u64 {
        self.now_ms.unwrap_or(0)
    }

    /// Tell a client.
    pub(super) fn tell(&mut self, conn: ConnId, message: ServerMessage) {
        self.out.clients.push((conn, ToClient::Message(message)));
    }

    fn tick(&mut self, now_ms: u64, time_ms: i64) {
        let elapsed_ms = self.now_ms.map_or(0, |before| now_ms.saturating_sub(before));
        if let (None, Part::Looking { since_ms, .. }) = (self.now_ms, &mut self.part) {
            *since_ms = now_ms;
        }
        self.now_ms = Some(now_ms.max(self.now_ms()));
        self.ticks.add(self.now_ms());
        self.time_ms = time_ms;
        self.zab.step(zab::Input::Tick);
        match self.part {
            Part::Looking { since_ms, .. } => {
                self.take_guests_if_due();
                self.send_away_the_leaderless(since_ms);
            }
            Part::Following(_) => self.report_if_due(),
            Part::Leading(_) => self.tick_of_leader(elapsed_ms),
        }
        self.tick_of_locals(elapsed_ms);
        self.answer_pings();
        self.give_up_reads();
        self.give_up_handshakes();
    }

    pub(super) fn peer(&mut self, from: ServerId, message: PeerMessage) {
        if self.is_early(&message) {
            self.early.keep(from, message);
            return;
        }
        match message {
            PeerMessage::Zab(message) => self.zab.step(zab::Input::Message { from, message }),
            PeerMessage::Forward(forward) => self.take_forward(from, forward),
            PeerMessage::Touch(touch) => self.take_touch(from, touch),
            PeerMessage::Attach { epoch, conn, session, secret } => {
                self.take_attach(from, epoch, conn, session, secret);
            }
            PeerMessage::ReadIndex { epoch, read } => self.take_read_index(from, epoch, read),
            // The others come from the leader this server follows, or are out of date.
            PeerMessage::Resend { .. }
            | PeerMessage::Retired { .. }
            | PeerMessage::Rejected { .. }
            | PeerMessage::Poll { .. }
            | PeerMessage::Counted { .. }
            | PeerMessage::Gone { .. }
            | PeerMessage::ReadAt { .. } => self.hear_leader(from, message),
        }
    }

    /// Hand to the broadcast, or to the leader, what has piled up.
    fn flush(&mut self) {
        match &self.part {
            Part::Looking { .. } => {}
            Part::Following(_) => self.flush_as_follower(),
            Part::Leading(_) => self.flush_as_leader(),
        }
    }

    /// Whether something has piled up again.
    fn has_more(&self) -> bool {
        match &self.part {
            Part::Looking { .. } => false,
            Part::Following(follow) => {
                follow.next_tag < self.pendings.next_tag() || self.reading.is_dirty()
            }
            Part::Leading(lead) => lead.has_more() || self.reading.is_dirty(),
        }
    }

    fn absorb(&mut self, zab: zab::Ready, ready: &mut Ready) {
        let wrap = |(to, message)| (to, PeerMessage::Zab(message));
        ready.send.append(&mut self.out.send);
        ready.send.extend(zab.send.into_iter().map(wrap));
        ready.write.extend(zab.write);
        ready.token = zab.token;
        ready.send_after_write.extend(zab.send_after_write.into_iter().map(wrap));
        ready.snapshots.extend(zab.snapshots);
        ready.more = zab.more;
        // A snapshot is cut from the state after all of these, and a part in the ensemble begins, or
        // ends, with it.
        let is_change = |notice: &zab::Notice| !matches!(notice, zab::Notice::ReadConfirmed { .. });
        let all = !ready.snapshots.is_empty() || zab.notices.iter().any(is_change);
        let others_wait = !ready.send.is_empty() || !ready.write.is_empty();
        self.apply_committed(zab.committed, all, others_wait);
        if self.halted {
            return;
        }
        for notice in zab.notices {
            self.notice(&notice);
            ready.notices.push(Notice::Zab(notice));
        }
        self.judge_candidates();
    }

    fn notice(&mut self, notice: &zab::Notice) {
        match *notice {
            zab::Notice::Looking { .. } => {
                self.early = Early::default();
                self.look();
            }
            zab::Notice::Following { leader, epoch } => self.follow(leader, epoch),
            zab::Notice::Leading { epoch } => {
                self.lead(epoch);
                self.take_early();
            }
            zab::Notice::ReadConfirmed { round, commit } => self.confirmed(round, commit),
            zab::Notice::HandedOver => {}
        }
    }

    /// There is no leader any more.
    pub(super) fn look(&mut self) {
        let since_ms = self.now_ms();
        match std::mem::replace(&mut self.part, Part::Looking { since_ms, guests: None }) {
            looking @ Part::Looking { .. } => self.part = looking,
            Part::Following(_) => {}
            Part::Leading(lead) => self.take_back(*lead),
        }
        self.unsend();
    }

    /// Forget to whom writes were sent. The connections of those that must not be sent twice are
    /// closed: nobody knows what has come of them. What nobody waits for any more is not sent: its
    /// client may have gone on elsewhere, without it.
    pub(super) fn unsend(&mut self) {
        let first = self.pendings.first_tag();
        let unknown = |(_, pending): (u64, &mut Pending)| {
            let was_sent = pending.sent.take().is_some();
            (was_sent && !pending.retry).then_some(pending.waiter.conn())
        };
        let unknown: Vec<ConnId> = self.pendings.from(first).filter_map(unknown).collect();
        for conn in unknown {
            self.close(conn);
        }
        let clients = &self.clients;
        let abandoned = |(tag, pending): (u64, &mut Pending)| {
            (!clients.contains_key(&pending.waiter.conn())).then_some(tag)
        };
        let abandoned: Vec<u64> = self.pendings.from(first).filter_map(abandoned).collect();
        for tag in abandoned {
            self.pendings.take(tag);
        }
    }

    fn hand_over(&mut self) {
        self.leaving = true;
        let open = self.clients.iter().filter(|(_, client)| client.session().is_some());
        for (&conn, _) in open {
            let message = ServerMessage::GoAway { backoff_ms: 0 };
            self.out.clients.push((conn, ToClient::Message(message)));
        }
        self.zab.step(zab::Input::HandOver);
    }
}
