//! A leader's duties: to admit writes and stamp them, to watch over sessions, to say what a
//! linearizable read must see.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use conclave_proto::{
    Epoch, ErrorCode, Fault, Op, Request, Secret, ServerId, SessionId, Txn, Xid, ZPath, Zxid,
    convert,
};

use crate::limits;
use crate::session::{Claim, Sessions, Standing};
use crate::tree::{self, Nodes};
use crate::zab::ProposeError;

use super::client::Answer;
use super::machine::{Part, Replica};
use super::pending::Work;
use super::{Forward, Notice, PeerMessage, Touch};

/// The mark of a write that nobody waits for: the system's own.
const SYSTEM: u64 = 0;

/// What a leader remembers.
pub(super) struct Lead {
    pub(super) epoch: Epoch,
    /// The clocks of all sessions.
    pub(super) sessions: Sessions,
    /// What is proposed and not committed yet, oldest first.
    in_flight: VecDeque<Proposal>,
    in_flight_bytes: usize,
    /// What is admitted but cannot be proposed yet.
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// The streams of writes from the followers.
    streams: BTreeMap<ServerId, Stream>,
    /// The servers that are short of disk space.
    low_space: BTreeSet<ServerId>,
    /// How often sessions have moved.
    moves: u64,
    /// The last time stamped into a transaction.
    time_ms: i64,
    /// Who asks for a read index, since the last round.
    asking: Vec<Asker>,
    /// Whether the broadcast begins no round for the moment.
    mute: bool,
    /// The rounds that a quorum has to confirm, with those who asked.
    rounds: VecDeque<(u64, Vec<Asker>)>,
    /// What to tell followers of their writes that are refused.
    rejected: BTreeMap<ServerId, Vec<(u64, Fault)>>,
    /// Where the search for nodes to reap goes on, and when.
    reap_after: Option<ZPath>,
    reap_at_ms: u64,
    /// Whether the broadcast takes no proposals for the moment.
    blocked: bool,
}

/// A write that is proposed.
struct Proposal {
    zxid: Zxid,
    txn: Txn,
    bytes: usize,
}

/// A write that waits until it can be proposed.
struct Waiting {
    origin: (ServerId, u64),
    work: Work,
}

/// A stream of forwarded writes, as its receiver sees it.
#[derive(Debug, Default)]
struct Stream {
    name: Option<u64>,
    /// The stream that came before it from the same server.
    retired: Option<u64>,
    /// The number of the next write.
    next: u64,
    /// Whether it was asked to begin again from `next`.
    asked: bool,
}

/// Who asks for a read index.
#[derive(Clone, Copy, Debug)]
enum Asker {
    /// This server, for its clients.
    Own(u64),
    /// A follower.
    Follower(ServerId, u64),
}

impl Lead {
    /// Whether something has piled up that can be done now.
    pub(super) fn has_more(&self) -> bool {
        (!self.waiting.is_empty() && self.has_room())
            || (!self.asking.is_empty() && !self.mute)
            || !self.rejected.is_empty()
    }

    /// The transaction that is committed at that zxid, if this leader proposed it.
    pub(super) fn take_committed(&mut self, zxid: Zxid) -> Option<Txn> {
        let first = self.in_flight.front()?;
        if first.zxid != zxid {
            assert!(zxid < first.zxid, "{zxid} is committed, but {} comes first", first.zxid);
            return None;
        }
        let proposal = self.in_flight.pop_front().expect("there is a first");
        self.in_flight_bytes -= proposal.bytes;
        self.blocked = false;
        Some(proposal.txn)
    }

    pub(super) fn set_low_space(&mut self, server: ServerId, low: bool) {
        if low {
            self.low_space.insert(server);
        } else {
            self.low_space.remove(&server);
        }
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
            self.sessions.open(session, timeout_ms, Some((server, Claim { zxid, count: 0 })));
        }
    }

    /// The secret of a session that is proposed and not applied here yet.
    fn proposed_secret(&self, session: SessionId) -> Option<Secret> {
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

    fn has_room(&self) -> bool {
        !self.blocked
            && self.in_flight.len() < limits::UNCOMMITTED_ENTRIES
            && self.in_flight_bytes < limits::UNCOMMITTED_BYTES
    }

    /// The end of what this leader has proposed.
    fn last_proposed(&self, applied: Zxid) -> Zxid {
        self.in_flight.back().map_or(applied, |proposal| proposal.zxid)
    }

    /// Whether this server and a quorum of the voters have disk space.
    fn has_space(&self, id: ServerId, voters: &[ServerId]) -> bool {
        let able = voters.iter().filter(|voter| !self.low_space.contains(voter)).count();
        !self.low_space.contains(&id) && able > voters.len() / 2
    }
}

impl<N: Nodes> Replica<N> {
    /// This server leads, or has begun a new epoch as leader.
    pub(super) fn lead(&mut self, epoch: Epoch) {
        if let Part::Leading(lead) = &mut self.part {
            // What was said in the earlier epoch, and is still on its way, is not listened to.
            lead.epoch = epoch;
            lead.blocked = false;
            lead.sessions.restart();
            for (_, askers) in std::mem::take(&mut lead.rounds) {
                lead.asking.extend(askers);
            }
            return;
        }
        self.look();
        let silence_ms = u64::from(self.config.zab.silence_ticks) * u64::from(self.config.tick_ms);
        let records = self.nodes.sessions().map(|(session, record)| (session, record.timeout_ms));
        let mut lead = Box::new(Lead {
            epoch,
            sessions: Sessions::new(silence_ms, records),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            streams: BTreeMap::new(),
            low_space: BTreeSet::new(),
            moves: 0,
            time_ms: self.nodes.meta().time_ms,
            asking: Vec::new(),
            mute: false,
            rounds: VecDeque::new(),
            rejected: BTreeMap::new(),
            reap_after: None,
            reap_at_ms: 0,
            blocked: false,
        });
        lead.set_low_space(self.config.zab.id, self.low_space);
        self.part = Part::Leading(lead);
        self.mark_all_unreported();
        self.touch_own();
        let tags: Vec<u64> = self.pendings.from(0).map(|(tag, _)| tag).collect();
        for tag in tags {
            self.admit_own(tag);
        }
        self.ask_to_resume_again();
        self.reading.ask_again();
    }

    /// Take back the writes of own clients that this server, which leads no longer, has not got
    /// through.
    pub(super) fn take_back(&mut self, lead: Lead) {
        let id = self.config.zab.id;
        for Proposal { txn, .. } in lead.in_flight {
            if txn.origin.0 == id
                && let Some(pending) = self.pendings.get_mut(txn.origin.1)
            {
                pending.work = Some(Work { identities: txn.identities, request: txn.request });
            }
        }
        for Waiting { origin, work } in lead.waiting {
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

    /// Propose a write, or let it wait until there is room.
    fn admit(&mut self, origin: (ServerId, u64), work: Work) {
        let Part::Leading(lead) = &mut self.part else { return };
        if lead.waiting.is_empty() && lead.has_room() {
            if let Some(work) = self.propose(origin, work) {
                self.wait_for_room(origin, work);
            }
            return;
        }
        let full = lead.waiting.len() >= limits::WAITING_REQUESTS
            || lead.waiting_bytes >= limits::WAITING_BYTES;
        if full && !self.is_under_way(&work.request) {
            self.reject(origin, ErrorCode::Throttled);
        } else {
            self.wait_for_room(origin, work);
        }
    }

    fn wait_for_room(&mut self, origin: (ServerId, u64), work: Work) {
        let Part::Leading(lead) = &mut self.part else { return };
        lead.waiting_bytes += work.bytes();
        lead.waiting.push_back(Waiting { origin, work });
    }

    /// Stamp a write and propose it, or refuse it. It comes back if it cannot be proposed now.
    fn propose(&mut self, origin: (ServerId, u64), work: Work) -> Option<Work> {
        if origin.1 != SYSTEM
            && let Err(code) = self.check_admission(origin.0, &work.request)
        {
            self.reject(origin, code);
            return None;
        }
        let digest = (self.applied, self.nodes.meta().digest);
        let Part::Leading(lead) = &mut self.part else { return Some(work) };
        lead.time_ms = lead.time_ms.max(self.time_ms);
        let Work { identities, request } = work;
        let txn = Txn {
            semantics: tree::SEMANTICS,
            time_ms: lead.time_ms,
            origin,
            identities,
            digest,
            request,
        };
        let body: Bytes = convert::encode_txn(&txn);
        let bytes = body.len();
        match self.zab.propose(body) {
            Ok(zxid) => {
                if let Op::CreateSession { session, timeout_ms, .. } = txn.request.op {
                    lead.open(session, timeout_ms, origin.0, zxid);
                } else if matches!(txn.request.op, Op::CloseSession) {
                    lead.sessions.closing(txn.request.session);
                } else if txn.request.xid != Xid(0) {
                    lead.sessions.proposed(txn.request.session, txn.request.xid);
                }
                lead.in_flight_bytes += bytes;
                lead.in_flight.push_back(Proposal { zxid, txn, bytes });
                None
            }
            Err(
                ProposeError::Full
                | ProposeError::Rolling
                | ProposeError::HandingOver
                | ProposeError::NotLeading,
            ) => {
                lead.blocked = true;
                Some(Work { identities: txn.identities, request: txn.request })
            }
        }
    }

    /// Whether a write may be proposed.
    fn check_admission(&self, server: ServerId, request: &Request) -> Result<(), ErrorCode> {
        let Part::Leading(lead) = &self.part else { return Err(ErrorCode::Unavailable) };
        if request.session != SessionId::NONE {
            match lead.sessions.standing(request.session, server) {
                Standing::Owner => {}
                Standing::Moved(_) => return Err(ErrorCode::SessionMoved),
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

    /// Whether the same numbered write was proposed before, so that it must not be refused: it may
    /// be carried out all the same.
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
            lead.rejected.entry(server).or_default().push((tag, fault));
        }
    }

    pub(super) fn flush_as_leader(&mut self) {
        while let Part::Leading(lead) = &mut self.part
            && lead.has_room()
            && let Some(Waiting { origin, work }) = lead.waiting.pop_front()
        {
            lead.waiting_bytes -= work.bytes();
            if let Some(work) = self.propose(origin, work)
                && let Part::Leading(lead) = &mut self.part
            {
                lead.waiting_bytes += work.bytes();
                lead.waiting.push_front(Waiting { origin, work });
            }
        }
        let Part::Leading(lead) = &mut self.part else { return };
        for (server, requests) in std::mem::take(&mut lead.rejected) {
            let message = PeerMessage::Rejected { epoch: lead.epoch, requests };
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
        while let Part::Leading(lead) = &mut self.part
            && lead.rounds.front().is_some_and(|&(asked, _)| asked <= round)
            && let Some((_, askers)) = lead.rounds.pop_front()
        {
            let epoch = lead.epoch;
            for asker in askers {
                match asker {
                    Asker::Own(question) => self.read_at(question, commit),
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
            if stream.retired == Some(name) {
                return;
            }
            let retired = stream.name;
            *stream = Stream { name: Some(name), retired, next: 0, asked: false };
        }
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
            let work = Work { identities: forwarded.identities, request: forwarded.request };
            self.admit((from, forwarded.tag), work);
        }
    }

    /// A follower's report.
    pub(super) fn take_touch(&mut self, from: ServerId, touch: Touch) {
        let Part::Leading(lead) = &mut self.part else { return };
        if lead.epoch != touch.epoch {
            return;
        }
        lead.set_low_space(from, touch.low_space);
        let epoch = touch.epoch;
        for touched in touch.sessions {
            let session = touched.session;
            let standing = lead.sessions.touch(session, from, touched.age_ms, touched.claim);
            if let Standing::Moved(claim) = standing {
                self.out.send.push((from, PeerMessage::Moved { epoch, session, claim }));
            }
        }
        lead.sessions.report(from, touch.polled_ms);
        let stream = lead.streams.entry(from).or_default();
        let received = if stream.name == Some(touch.stream) { stream.next } else { 0 };
        if touch.forwarded > received && stream.retired != Some(touch.stream) {
            stream.asked = true;
            let message = PeerMessage::Resend { epoch, stream: touch.stream, first: received };
            self.out.send.push((from, message));
        }
    }

    /// A follower's client wants to resume a session.
    pub(super) fn take_attach(
        &mut self,
        from: ServerId,
        epoch: Epoch,
        conn: u64,
        session: SessionId,
        secret: Secret,
    ) {
        if self.leading(epoch).is_some() {
            let (claim, zxid) = self.grant(from, session, secret);
            let message = PeerMessage::Attached { epoch, conn, session, claim, zxid };
            self.out.send.push((from, message));
        }
    }

    /// Let a session move to a server, if the secret is right; the server believes its own list
    /// of sessions once it has applied the zxid that comes with the claim.
    pub(super) fn grant(
        &mut self,
        server: ServerId,
        session: SessionId,
        secret: Secret,
    ) -> (Option<Claim>, Zxid) {
        let Part::Leading(lead) = &mut self.part else { return (None, self.applied) };
        let applied = self.nodes.session(session).map(|record| record.secret);
        let right = applied.or_else(|| lead.proposed_secret(session)) == Some(secret);
        // The server waits for whatever the session has asked for elsewhere, and for its end if
        // that is proposed.
        let zxid = lead.last_proposed(self.applied);
        if !right {
            return (None, zxid);
        }
        lead.moves += 1;
        // Later than any claim of an earlier leader, even if nothing has been proposed since.
        let since = zxid.max(Zxid::new(lead.epoch, 0));
        let claim = Claim { zxid: since, count: lead.moves };
        let epoch = lead.epoch;
        match lead.sessions.attach(session, server, claim) {
            Some(left) if left == self.config.zab.id => self.moved(session, claim),
            Some(left) => {
                self.out.send.push((left, PeerMessage::Moved { epoch, session, claim }));
            }
            None => {}
        }
        (Some(claim), zxid)
    }

    pub(super) fn tick_of_leader(&mut self, elapsed_ms: u64) {
        self.touch_own();
        let Part::Leading(lead) = &mut self.part else { return };
        // A server that was stopped could not hear anybody meanwhile: that time does not count.
        lead.sessions.advance(elapsed_ms.min(4 * u64::from(self.config.tick_ms)));
        let now_ms = lead.sessions.clock_ms();
        lead.sessions.report(self.config.zab.id, now_ms);
        let due = lead.sessions.due(limits::EXPIRIES_PER_TICK);
        let epoch = lead.epoch;
        for server in due.poll {
            self.out.send.push((server, PeerMessage::Poll { epoch, now_ms }));
        }
        if !due.expired.is_empty() {
            self.out.notices.push(Notice::Expired { sessions: due.expired.len() });
        }
        for session in due.expired {
            self.admit_system(session, Op::CloseSession);
        }
        self.reap();
    }

    /// The signs of life of this server's own clients.
    fn touch_own(&mut self) {
        let touched = self.take_unreported();
        let id = self.config.zab.id;
        let mut moved = Vec::new();
        if let Part::Leading(lead) = &mut self.part {
            for alive in touched {
                let standing = lead.sessions.touch(alive.session, id, alive.age_ms, alive.claim);
                if let Standing::Moved(claim) = standing {
                    moved.push((alive.session, claim));
                }
            }
        }
        for (session, claim) in moved {
            self.moved(session, claim);
        }
    }

    /// Ask for the end of container and TTL nodes that have outlived their purpose.
    fn reap(&mut self) {
        let Part::Leading(lead) = &mut self.part else { return };
        let now_ms = lead.sessions.clock_ms();
        if !lead.waiting.is_empty() || !lead.has_room() || now_ms < lead.reap_at_ms {
            return;
        }
        lead.reap_at_ms = now_ms + limits::REAP_INTERVAL_MS;
        let time_ms = self.time_ms.max(lead.time_ms);
        let paths = self.nodes.mortals(lead.reap_after.as_ref(), limits::REAPS);
        lead.reap_after = if paths.len() < limits::REAPS { None } else { paths.last().cloned() };
        for path in paths {
            let node = self.nodes.node(&path).expect("a mortal node exists");
            if node.is_due(time_ms) {
                let seen = (node.pzxid, node.mzxid);
                self.admit_system(SessionId::NONE, Op::Reap { path, seen });
            }
        }
    }

    fn admit_system(&mut self, session: SessionId, op: Op) {
        let request = Request { session, xid: Xid(0), acked: Xid(0), op };
        let work = Work { identities: [].into(), request };
        let id = self.config.zab.id;
        if let Some(work) = self.propose((id, SYSTEM), work) {
            self.wait_for_room((id, SYSTEM), work);
        }
    }

    fn leading(&mut self, epoch: Epoch) -> Option<&mut Lead> {
        match &mut self.part {
            Part::Leading(lead) if lead.epoch == epoch => Some(lead),
            Part::Leading(_) | Part::Following(_) | Part::Looking { .. } => None,
        }
    }
}

/// Whether a write can only make the state smaller.
fn frees_space(op: &Op) -> bool {
    if let Op::Multi { then, otherwise, .. } = op {
        return then.iter().chain(otherwise).all(frees_space);
    }
    matches!(
        op,
        Op::Delete { .. }
            | Op::DeleteRecursive { .. }
            | Op::CloseSession
            | Op::Reap { .. }
            | Op::Check { .. }
    )
}
