//! A leader's duties: to admit writes and stamp them, to watch over sessions, to say what a
//! linearizable read must see.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use conclave_proto::{
    CreateMode, Epoch, ErrorCode, Fault, Op, Request, Secret, ServerId, SessionId, Txn, Xid, ZPath,
    Zxid, codec,
};

use crate::limits;
use crate::session::{Claim, Sessions, Standing};
use crate::tree::{self, Nodes};
use crate::zab::{self, ProposeError, RoleView};

use super::client::Answer;
use super::lead_sessions::Candidate;
use super::local::Ended;
use super::machine::{Part, Replica};
use super::pending::Work;
use super::{Forward, Forwarded, PeerMessage, Strain};

/// The mark of a write that nobody waits for: the system's own.
pub(crate) const SYSTEM: u64 = 0;
/// The mark of a session's move to a connection is this and the connection's number; all other
/// marks are smaller.
pub(crate) const MOVE: u64 = 1 << 63;

/// What a leader remembers.
pub(super) struct Lead {
    pub(super) epoch: Epoch,
    /// The clocks of all sessions.
    pub(super) sessions: Sessions,
    /// What is proposed and not committed yet, oldest first.
    in_flight: VecDeque<Proposal>,
    in_flight_bytes: usize,
    /// What is admitted but cannot be proposed yet.
    pub(super) waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// Whether what waits is to be proposed as soon as there is room: it is more than places in
    /// lines, or has waited for a tick.
    pub(super) pressed: bool,
    /// The streams of writes from the followers.
    pub(super) streams: BTreeMap<ServerId, Stream>,
    /// The servers that are short of disk space.
    low_space: BTreeSet<ServerId>,
    /// The servers whose checkpoints are far behind.
    behind: BTreeSet<ServerId>,
    /// Whether writes wait for them.
    waits_for_checkpoints: bool,
    /// Those who want to resume sessions, and what this leader must have applied to judge them.
    pub(super) candidates: VecDeque<(Zxid, Candidate)>,
    /// Those whose session is to move to them, once that can be proposed.
    pub(super) movers: VecDeque<Candidate>,
    /// Those of them whose session is to end as soon as that can be proposed, until the next tick.
    pub(super) put_off: Vec<Candidate>,
    /// Those who want to resume sessions that no leader knows, until the end of these is
    /// committed.
    pub(super) mourners: BTreeMap<SessionId, Vec<Candidate>>,
    /// The sessions whose end this leader has proposed.
    pub(super) ended: Ended,
    /// The last time told by [`Lead::tell_time`], and when that was, by the clock that never goes
    /// back.
    time_ms: i64,
    told_at_ms: u64,
    /// Who asks for a read index, since the last round.
    pub(super) asking: Vec<Asker>,
    /// Whether the broadcast begins no round for the moment.
    mute: bool,
    /// The rounds that a quorum has to confirm, with those who asked.
    rounds: VecDeque<(u64, Vec<Asker>)>,
    /// What to tell followers of their writes that are refused, stream by stream.
    rejected: BTreeMap<(ServerId, u64), Vec<(u64, Fault)>>,
    /// When the signs of life of this server's own clients are taken into account the next time.
    pub(super) report_at_ms: u64,
    /// Where the search for nodes to reap goes on, and when.
    pub(super) reap_after: Option<ZPath>,
    pub(super) reap_at_ms: u64,
    /// What was applied at the times of such searches, the oldest first.
    applied_at: VecDeque<(u64, Zxid)>,
    /// Whether the broadcast takes no proposals for the moment.
    blocked: bool,
}

/// A write that is proposed.
struct Proposal {
    zxid: Zxid,
    txn: Txn,
    /// The claim under which it was asked.
    claim: Option<Claim>,
    bytes: usize,
}

/// A write that waits until it can be proposed.
pub(super) struct Waiting {
    origin: (ServerId, u64),
    work: Work,
    /// Since when.
    since_ms: u64,
}

/// A stream of forwarded writes, as its receiver sees it.
#[derive(Debug, Default)]
pub(super) struct Stream {
    name: Option<u64>,
    /// The streams that came before it from the same server, the latest last: what arrives late
    /// of them is not to be taken for something new.
    retired: VecDeque<u64>,
    /// The number of the next write.
    next: u64,
    /// Whether it was asked to begin again from `next`.
    pub(super) asked: bool,
}

/// Who asks for a read index.
#[derive(Debug)]
pub(super) enum Asker {
    /// This server, for its clients.
    Own(u64),
    /// A follower.
    Follower(ServerId, u64),
    /// This server, to judge somebody who wants to resume a session.
    Judge(Candidate),
    /// A server that has reported signs of life, all of which count but those of these sessions.
    Report {
        /// Which: it may be this one.
        server: ServerId,
        /// The number of the report.
        report: u64,
        /// The sessions whose signs do not count.
        refused: Vec<SessionId>,
    },
}

impl Stream {
    fn begin(&mut self, name: u64) {
        if self.retired.len() == limits::RETIRED_STREAMS {
            self.retired.pop_front();
        }
        self.retired.extend(self.name.replace(name));
        self.next = 0;
        self.asked = false;
    }

    /// How many writes of the stream of that name have arrived; `None` if it is over.
    pub(super) fn received(&self, name: u64) -> Option<u64> {
        match self.name {
            Some(current) if current == name => Some(self.next),
            Some(_) if self.retired.contains(&name) => None,
            Some(_) | None => Some(0),
        }
    }
}

impl Lead {
    /// Whether something has piled up that can be done now.
    pub(super) fn has_more(&self) -> bool {
        (self.pressed && !self.waiting.is_empty() && self.has_room())
            || (!self.movers.is_empty() && self.has_window())
            || (!self.asking.is_empty() && !self.mute)
            || !self.rejected.is_empty()
    }

    /// Whether the commit of that zxid shows that something this leader proposed is lost.
    pub(super) fn is_bypassed(&self, zxid: Zxid) -> bool {
        self.in_flight.front().is_some_and(|first| first.zxid < zxid)
    }

    /// The transaction that is committed at that zxid, if this leader proposed it.
    pub(super) fn take_committed(&mut self, zxid: Zxid) -> Option<Txn> {
        self.blocked = false;
        if self.in_flight.front()?.zxid != zxid {
            return None;
        }
        let proposal = self.in_flight.pop_front().expect("there is a first");
        self.in_flight_bytes -= proposal.bytes;
        Some(proposal.txn)
    }

    /// How a server's disk is.
    pub(super) fn set_strain(&mut self, server: ServerId, strain: Strain) {
        let note = |servers: &mut BTreeSet<ServerId>, is_so| {
            if is_so {
                servers.insert(server)
            } else {
                servers.remove(&server)
            };
        };
        note(&mut self.low_space, strain.low_space);
        note(&mut self.behind, strain.is_behind);
    }

    /// A session is proposed, or was committed by an earlier leader. It is known from its proposal
    /// on: a follower with a faster disk may apply it, and its client go on, before this server
    /// has applied it.
    pub(super) fn open(
        &mut self,
        session: SessionId,
        timeout_ms: u32,
        server: ServerId,
        zxid: Zxid,
    ) {
        if !self.sessions.knows(session) {
            self.sessions.open(session, timeout_ms, Some((server, Claim(zxid))));
        }
    }

    /// The secret of a session that is proposed and not applied here yet.
    pub(super) fn proposed_secret(&self, session: SessionId) -> Option<Secret> {
        if !self.sessions.knows(session) {
            return None;
        }
        self.in_flight.iter().find_map(|proposal| {
            if let Op::CreateSession { session: proposed, secret, .. } = proposal.txn.request.op {
                (proposed == session).then_some(secret)
            } else {
                None
            }
        })
    }

    /// The time of history, which is the time of day but never goes back, nor stands still: if an
    /// earlier leader's clock was ahead, what is to live for a minute still lives for a minute.
    pub(super) fn tell_time(&mut self, now_ms: u64, at_least_ms: i64) -> i64 {
        let passed_ms = i64::try_from(now_ms - self.told_at_ms).unwrap_or(i64::MAX);
        self.told_at_ms = now_ms;
        self.time_ms = self.time_ms.saturating_add(passed_ms).max(at_least_ms);
        self.time_ms
    }

    /// What was applied a container's time of rest ago, if it led then; `applied` is now.
    pub(super) fn at_rest(&mut self, now_ms: u64, applied: Zxid) -> Zxid {
        self.applied_at.push_back((now_ms, applied));
        let is_old = |at: &(u64, Zxid)| now_ms - at.0 >= limits::CONTAINER_REST_MS;
        while self.applied_at.get(1).is_some_and(is_old) {
            self.applied_at.pop_front();
        }
        self.applied_at.front().filter(|at| is_old(at)).map_or(Zxid::ZERO, |at| at.1)
    }

    /// Drop the writes of a server's clients that wait.
    fn forget_waiting_of(&mut self, server: ServerId) {
        self.keep_waiting(|(from, mark)| from != server || mark == SYSTEM);
    }

    /// Drop the writes that wait but for those of such origins.
    fn keep_waiting(&mut self, is_kept: impl Fn((ServerId, u64)) -> bool) {
        self.waiting.retain(|waiting| is_kept(waiting.origin));
        self.waiting_bytes = self.waiting.iter().map(|waiting| waiting.work.bytes()).sum();
    }

    /// Whether the end of that session is proposed, and not applied here yet.
    pub(super) fn has_end_in_flight(&self, session: SessionId) -> bool {
        self.in_flight.iter().any(|proposal| {
            let request = &proposal.txn.request;
            request.session == session && matches!(request.op, Op::CloseSession | Op::ExpireSession)
        })
    }

    /// Whether a write of that session may pass what waits: that is nothing, or kept back for
    /// company alone, and not the same session's.
    fn lets_pass(&self, session: SessionId) -> bool {
        let is_its = |waiting: &Waiting| waiting.work.request.session == session;
        self.waiting.is_empty() || (!self.pressed && !self.waiting.iter().any(is_its))
    }

    /// Whether a client's write may be proposed now.
    pub(super) fn has_room(&self) -> bool {
        self.has_window() && !self.waits_for_checkpoints
    }

    /// Whether the broadcast has room for a proposal.
    pub(super) fn has_window(&self) -> bool {
        !self.blocked
            && self.in_flight.len() < limits::UNCOMMITTED_ENTRIES
            && self.in_flight_bytes < limits::UNCOMMITTED_BYTES
    }

    /// The end of what this leader has proposed, or of what it has applied.
    pub(super) fn last_proposed(&self, applied: Zxid) -> Zxid {
        self.in_flight.back().map_or(applied, |proposal| proposal.zxid)
    }

    /// Whether this server and a quorum of the voters have disk space.
    fn has_space(&self, id: ServerId, voters: &[ServerId]) -> bool {
        let able = voters.iter().filter(|voter| !self.low_space.contains(voter)).count();
        !self.low_space.contains(&id) && able > voters.len() / 2
    }
}

impl<N: Nodes> Replica<N> {
    /// This server leads, or has begun a new epoch as leader. If it has done so with another's
    /// history, what it had proposed is lost, and it is a new leader like any other.
    pub(super) fn lead(&mut self, epoch: Epoch) {
        if let Part::Leading(lead) = &mut self.part
            && lead.in_flight.is_empty()
        {
            // What was said in the earlier epoch, and is still on its way, is not listened to.
            lead.epoch = epoch;
            lead.blocked = false;
            lead.sessions.restart();
            lead.keep_waiting(|(_, mark)| mark != SYSTEM);
            for (_, askers) in std::mem::take(&mut lead.rounds) {
                lead.asking.extend(askers);
            }
            let mourners = std::mem::take(&mut lead.mourners).into_values().flatten();
            lead.asking.extend(mourners.map(Asker::Judge));
            return self.read_on();
        }
        self.look();
        self.dismiss_guests();
        // So it knows every session there is, and every end.
        let end = self.zab.last().zxid;
        assert_eq!(self.applied, end, "it leads with a history that is not applied");
        let silence_ms = u64::from(self.config.zab.silence_ticks) * u64::from(self.config.tick_ms);
        let records = self.nodes.sessions().map(|(session, record)| (session, record.timeout_ms));
        let mut lead = Box::new(Lead {
            epoch,
            sessions: Sessions::new(self.config.zab.id, silence_ms, records),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            pressed: false,
            streams: BTreeMap::new(),
            low_space: BTreeSet::new(),
            behind: BTreeSet::new(),
            waits_for_checkpoints: false,
            candidates: VecDeque::new(),
            movers: VecDeque::new(),
            put_off: Vec::new(),
            mourners: BTreeMap::new(),
            ended: Ended::after(self.applied),
            time_ms: self.nodes.meta().time_ms,
            told_at_ms: self.now_ms(),
            asking: Vec::new(),
            mute: false,
            rounds: VecDeque::new(),
            rejected: BTreeMap::new(),
            report_at_ms: 0,
            reap_after: None,
            reap_at_ms: 0,
            applied_at: VecDeque::new(),
            blocked: false,
        });
        lead.set_strain(self.config.zab.id, self.strain);
        self.part = Part::Leading(lead);
        self.mark_all_unreported();
        self.touch_own();
        let tags: Vec<u64> = self.pendings.from(0).map(|(tag, _)| tag).collect();
        for tag in tags {
            self.admit_own(tag);
        }
        self.ask_to_resume_again();
        self.read_on();
        self.show_members();
    }

    /// Put the members as this server's configuration has them where ZooKeeper's clients look.
    fn show_members(&mut self) {
        let Some(text) = self.config.members_text.clone() else { return };
        let path = ZPath::new(tree::CONFIG).expect("it is a path");
        if self.nodes.node(&path).is_some_and(|node| node.data.as_ref() != Some(&text)) {
            let op = Op::SetData { path, data: Some(text), version: None };
            self.admit_system(SessionId::NONE, op);
        }
    }

    /// Take back the writes of own clients that this server, which leads no longer, has not got
    /// through.
    pub(super) fn take_back(&mut self, lead: Lead) {
        let id = self.config.zab.id;
        for Proposal { txn, claim, .. } in lead.in_flight {
            if txn.origin.0 == id
                && let Some(pending) = self.pendings.get_mut(txn.origin.1)
            {
                let (identities, request) = (txn.identities, txn.request);
                pending.work = Some(Work { identities, claim, request });
            }
        }
        for Waiting { origin, work, .. } in lead.waiting {
            if origin.0 == id
                && let Some(pending) = self.pendings.get_mut(origin.1)
            {
                // It was never proposed, so that it may well be sent to the next leader.
                pending.sent = None;
                pending.work = Some(work);
            }
        }
    }

    /// Admit a write of one of this server's own clients.
    pub(super) fn admit_own(&mut self, tag: u64) {
        let Some(pending) = self.pendings.get_mut(tag) else { return };
        let work = pending.work.take().expect("a write is admitted once");
        pending.sent = Some(0);
        let id = self.config.zab.id;
        self.admit((id, tag), work);
    }

    /// Propose a write, or let it wait until there is room, or until it has company.
    fn admit(&mut self, origin: (ServerId, u64), work: Work) {
        let can_wait = self.can_wait(&work.request.op);
        let Part::Leading(lead) = &mut self.part else { return };
        if !can_wait && lead.lets_pass(work.request.session) && lead.has_room() {
            // What was kept back for company goes along.
            lead.pressed = true;
            if let Some(work) = self.propose(origin, work) {
                self.wait_for_room(origin, work);
            }
            return;
        }
        // To end a session, or to open one, helps more than it burdens: for them there is more room.
        let room = if is_throttlable(&work.request.op) { 1 } else { 2 };
        let full = lead.waiting.len() >= room * limits::WAITING_REQUESTS
            || lead.waiting_bytes >= room * limits::WAITING_BYTES;
        if full && !self.is_under_way(&work.request) {
            self.reject(origin, ErrorCode::Throttled);
        } else if can_wait {
            self.hold_back(origin, work);
        } else {
            self.wait_for_room(origin, work);
        }
    }

    /// Whether a write is of no use before another one: it takes a place in a line behind at least
    /// two others, who leave by writes. Behind one alone, that write may be under way already.
    fn can_wait(&self, op: &Op) -> bool {
        let Op::Create { path, mode: CreateMode { in_line: true, .. }, .. } = op else {
            return false;
        };
        let parent = path.parent().and_then(|parent| self.nodes.node(&parent));
        parent.is_some_and(|parent| parent.num_children >= 2)
    }

    pub(super) fn wait_for_room(&mut self, origin: (ServerId, u64), work: Work) {
        self.hold_back(origin, work);
        if let Part::Leading(lead) = &mut self.part {
            lead.pressed = true;
        }
    }

    fn hold_back(&mut self, origin: (ServerId, u64), work: Work) {
        let since_ms = self.now_ms();
        let Part::Leading(lead) = &mut self.part else { return };
        lead.waiting_bytes += work.bytes();
        lead.waiting.push_back(Waiting { origin, work, since_ms });
    }

    /// Refuse the writes that have waited for too long: by the time they are done, their clients
    /// may have given them up.
    pub(super) fn throttle(&mut self) {
        let Some(throttle_ms) = self.config.throttle_ms else { return };
        let now_ms = self.now_ms();
        let Part::Leading(lead) = &mut self.part else { return };
        if !lead.pressed {
            // What is kept back for company does not wait for lack of room.
            return;
        }
        let late = |waiting: &Waiting| waiting.since_ms + u64::from(throttle_ms) < now_ms;
        let count = lead.waiting.partition_point(late);
        let mut kept = VecDeque::new();
        for waiting in lead.waiting.drain(..count).collect::<Vec<_>>() {
            let Waiting { origin, work, .. } = &waiting;
            let refused = origin.1 != SYSTEM
                && is_throttlable(&work.request.op)
                && !self.is_under_way(&work.request);
            if refused {
                self.take_from_waiting(work);
                self.reject(*origin, ErrorCode::Throttled);
            } else {
                kept.push_back(waiting);
            }
        }
        if let Part::Leading(lead) = &mut self.part {
            kept.append(&mut lead.waiting);
            lead.waiting = kept;
        }
    }

    fn take_from_waiting(&mut self, work: &Work) {
        if let Part::Leading(lead) = &mut self.part {
            lead.waiting_bytes -= work.bytes();
        }
    }

    /// Propose a write, or refuse it. It comes back if it cannot be proposed now.
    pub(super) fn propose(&mut self, origin: (ServerId, u64), work: Work) -> Option<Work> {
        if origin.1 != SYSTEM
            && let Err(code) = self.check_admission(origin.0, &work)
        {
            self.reject(origin, code);
            return None;
        }
        self.stamp(origin, work)
    }

    /// Stamp a write that may be proposed, and propose it. It comes back if that cannot be now.
    pub(super) fn stamp(&mut self, origin: (ServerId, u64), work: Work) -> Option<Work> {
        let meta = self.nodes.meta();
        let digest = (self.applied, meta.digest);
        let (now_ms, time_of_day_ms) = (self.now_ms(), self.time_ms);
        let Part::Leading(lead) = &mut self.part else { return Some(work) };
        // While the end of an epoch is applied, the broadcast has begun the next one already.
        if self.zab.role() != (RoleView::Leading { epoch: lead.epoch }) {
            lead.blocked = true;
            return Some(work);
        }
        let time_ms = lead.tell_time(now_ms, time_of_day_ms.max(meta.time_ms));
        let Work { identities, claim, request } = work;
        let txn = Txn { semantics: tree::SEMANTICS, time_ms, origin, identities, digest, request };
        let body: Bytes = codec::encode_txn(&txn);
        let bytes = body.len();
        match self.zab.propose(body) {
            Ok(zxid) => {
                if let Op::CreateSession { session, timeout_ms, .. } = txn.request.op {
                    lead.open(session, timeout_ms, origin.0, zxid);
                } else if matches!(txn.request.op, Op::CloseSession | Op::ExpireSession) {
                    lead.sessions.closing(txn.request.session);
                    lead.ended.add(zxid, txn.request.session);
                } else if txn.request.xid != Xid(0) {
                    lead.sessions.proposed(txn.request.session, txn.request.xid);
                }
                lead.in_flight_bytes += bytes;
                lead.in_flight.push_back(Proposal { zxid, txn, claim, bytes });
                None
            }
            Err(
                ProposeError::Full
                | ProposeError::Rolling
                | ProposeError::HandingOver
                | ProposeError::NotLeading,
            ) => {
                lead.blocked = true;
                Some(Work { identities: txn.identities, claim, request: txn.request })
            }
        }
    }

    /// Whether a write may be proposed.
    fn check_admission(&mut self, server: ServerId, work: &Work) -> Result<(), ErrorCode> {
        let request = &work.request;
        let Part::Leading(lead) = &mut self.part else { return Err(ErrorCode::Unavailable) };
        if let Op::CreateSession { session, .. } = request.op {
            if let Some(Claim(vouched)) = work.claim
                && !lead.sessions.knows(session)
            {
                if lead.mourners.contains_key(&session) {
                    return Err(ErrorCode::SessionExpired);
                }
                lead.ended.check(session, vouched)?;
            }
        } else if let Some(claim) = work.claim {
            match lead.sessions.standing(request.session, server, claim) {
                Standing::Owner => {}
                Standing::Moved => return Err(ErrorCode::SessionMoved),
                Standing::Gone => return Err(ErrorCode::SessionExpired),
            }
        }
        if matches!(request.op, Op::CreateSession { .. })
            && lead.sessions.count() >= limits::SESSIONS
        {
            return Err(ErrorCode::Throttled);
        }
        if !frees_space(&request.op)
            && !lead.has_space(self.config.zab.id, &self.config.zab.voters)
            && !self.is_under_way(request)
        {
            return Err(ErrorCode::NoSpace);
        }
        Ok(())
    }

    /// Whether the same numbered write was, or may have been, proposed before, so that it must not
    /// be refused: it may be carried out all the same.
    fn is_under_way(&self, request: &Request) -> bool {
        let Part::Leading(lead) = &self.part else { return false };
        request.xid != Xid(0)
            && (lead.sessions.was_proposed(request.session, request.xid)
                || self
                    .nodes
                    .session(request.session)
                    .is_some_and(|record| request.xid <= record.last_xid))
    }

    fn reject(&mut self, origin: (ServerId, u64), code: ErrorCode) {
        let (server, tag) = origin;
        let fault = Fault::from(code);
        assert!(tag != SYSTEM, "what the system asks is not refused");
        if server == self.config.zab.id {
            self.rejected(tag, Answer { zxid: None, result: Err(fault) });
        } else if let Part::Leading(lead) = &mut self.part {
            let stream = lead.streams.get(&server).and_then(|stream| stream.name);
            let stream = stream.expect("what a follower is refused has come on a stream");
            lead.rejected.entry((server, stream)).or_default().push((tag, fault));
        }
    }

    /// Whether writes wait: so few of the voters that are here keep up with their checkpoints that they
    /// are no quorum.
    fn weigh_checkpoints(&mut self) {
        let Part::Leading(lead) = &mut self.part else { return };
        if lead.behind.is_empty() {
            lead.waits_for_checkpoints = false;
            return;
        }
        let zab::Config { id, voters, .. } = &self.config.zab;
        let followers = self.zab.followers();
        let here =
            followers.iter().filter(|follower| follower.in_sync).map(|follower| &follower.id);
        let able = here.chain([id]).filter(|id| voters.contains(id) && !lead.behind.contains(id));
        lead.waits_for_checkpoints = able.count() <= voters.len() / 2;
    }

    pub(super) fn flush_as_leader(&mut self) {
        self.weigh_checkpoints();
        self.propose_moves();
        if let Part::Leading(lead) = &self.part {
            let judges = !lead.candidates.is_empty() || !lead.mourners.is_empty();
            self.zab.set_idle(self.config.zab.id, self.clients.is_empty() && !judges);
        }
        while let Part::Leading(lead) = &mut self.part
            && lead.pressed
            && lead.has_room()
            && let Some(Waiting { origin, work, since_ms }) = lead.waiting.pop_front()
        {
            lead.waiting_bytes -= work.bytes();
            if let Some(work) = self.propose(origin, work)
                && let Part::Leading(lead) = &mut self.part
            {
                lead.waiting_bytes += work.bytes();
                lead.waiting.push_front(Waiting { origin, work, since_ms });
            }
        }
        let Part::Leading(lead) = &mut self.part else { return };
        lead.pressed &= !lead.waiting.is_empty();
        for ((server, stream), requests) in std::mem::take(&mut lead.rejected) {
            let message = PeerMessage::Rejected { epoch: lead.epoch, stream, requests };
            self.out.send.push((server, message));
        }
        if let Some(question) = self.reading.take_question() {
            lead.asking.push(Asker::Own(question));
        }
        if !lead.asking.is_empty() {
            let round = self.zab.confirm_leadership();
            lead.mute = round.is_none();
            if let Some(round) = round {
                lead.rounds.push_back((round, std::mem::take(&mut lead.asking)));
            }
        }
    }

    /// A quorum has confirmed that this server still led when the round began.
    pub(super) fn confirmed(&mut self, round: u64, commit: Zxid) {
        let id = self.config.zab.id;
        while let Part::Leading(lead) = &mut self.part
            && lead.rounds.front().is_some_and(|&(asked, _)| asked <= round)
            && let Some((_, askers)) = lead.rounds.pop_front()
        {
            let epoch = lead.epoch;
            for asker in askers {
                match asker {
                    Asker::Own(question) => self.read_at(question, commit),
                    Asker::Report { server, report, refused } if server == id => {
                        self.counted(report, &refused);
                    }
                    Asker::Report { server, report, refused } => {
                        let message = PeerMessage::Counted { epoch, report, refused };
                        self.out.send.push((server, message));
                    }
                    Asker::Judge(candidate) => {
                        if let Part::Leading(lead) = &mut self.part {
                            lead.candidates.push_back((commit, candidate));
                        }
                    }
                    Asker::Follower(server, read) => {
                        let message = PeerMessage::ReadAt { epoch, read, commit };
                        self.out.send.push((server, message));
                    }
                }
            }
        }
    }

    pub(super) fn take_read_index(&mut self, from: ServerId, epoch: Epoch, read: u64) {
        if let Some(lead) = self.leading(epoch) {
            lead.asking.push(Asker::Follower(from, read));
        }
    }

    /// Writes that a follower's clients ask for.
    pub(super) fn take_forward(&mut self, from: ServerId, forward: Forward) {
        let Some(lead) = self.leading(forward.epoch) else { return };
        let Forward { epoch, stream: name, first, requests } = forward;
        let stream = lead.streams.entry(from).or_default();
        if stream.name != Some(name) {
            if stream.retired.contains(&name) {
                return;
            }
            stream.begin(name);
            // The follower sends all of them again, or nobody waits for them any more. Were there
            // two of one write, one could be refused and the other be carried out.
            lead.forget_waiting_of(from);
        }
        let stream = lead.streams.entry(from).or_default();
        if first > stream.next {
            if !std::mem::replace(&mut stream.asked, true) {
                let message = PeerMessage::Resend { epoch, stream: name, first: stream.next };
                self.out.send.push((from, message));
            }
            return;
        }
        let known = usize::try_from(stream.next - first).unwrap_or(usize::MAX);
        if known >= requests.len() {
            return;
        }
        stream.next = first + requests.len() as u64;
        stream.asked = false;
        for forwarded in requests.into_iter().skip(known) {
            let Forwarded { tag, identities, claim, request } = forwarded;
            let work = Work { identities, claim, request };
            self.admit((from, tag), work);
        }
    }

    pub(super) fn leading(&mut self, epoch: Epoch) -> Option<&mut Lead> {
        match &mut self.part {
            Part::Leading(lead) if lead.epoch == epoch => Some(lead),
            Part::Leading(_) | Part::Following(_) | Part::Looking { .. } => None,
        }
    }
}

/// Whether a client may be told to ask for this another time.
fn is_throttlable(op: &Op) -> bool {
    !matches!(op, Op::CreateSession { .. } | Op::CloseSession)
}

/// Whether a write helps to make the state smaller. To open a session does: without one nobody
/// could delete anything.
fn frees_space(op: &Op) -> bool {
    if let Op::Multi { then, otherwise, .. } = op {
        return then.iter().chain(otherwise).all(frees_space);
    }
    matches!(
        op,
        Op::Delete { .. }
            | Op::DeleteRecursive { .. }
            | Op::CreateSession { .. }
            | Op::CloseSession
            | Op::ExpireSession
            | Op::Reap { .. }
            | Op::Check { .. }
            | Op::Require(_)
            | Op::DeleteIfExists { .. }
            | Op::DeleteTree { .. }
            | Op::Guard { .. }
    )
}
