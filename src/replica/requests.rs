//! The requests of clients: each is answered in its turn.

use std::collections::VecDeque;

use bytes::Bytes;
use conclave_proto::request::ReadLevel;
use conclave_proto::{
    Acl, ClientMessage, ErrorCode, Event, Fault, Op, Perms, Reply, Request, Response,
    ServerMessage, WatchId, WatchKind, Xid, ZPath, Zxid,
};

use crate::hub::{Watch, Watcher};
use crate::limits;
use crate::tree::{self, Nodes};

use super::apply::event_has_value;
use super::backlog::is_heavy;
use super::client::{Answer, Client, Need, Released, Slot, SlotState};
use super::machine::{Part, Replica};
use super::pending::{Waiter, Work, bytes_of, mix};
use super::{ConnId, ToClient};

/// What an event costs a client's outbox beside its path and its data, in bytes: an estimate.
const EVENT_BYTES: usize = 40;

/// The reads that wait for a word of the leader.
///
/// They are asked about in batches: a question covers everything that was asked before it.
#[derive(Debug)]
pub(super) struct Reading {
    /// The number of the question that will be asked next.
    next: u64,
    /// The number of the first one.
    first: u64,
    /// Whether a read waits for it to be asked.
    dirty: bool,
    /// The reads, with the number of the question that covers them.
    asked: VecDeque<(u64, ConnId, u64)>,
    /// When reads that wait, for whatever, are given up.
    deadlines: VecDeque<(u64, ConnId, u64)>,
}

impl Reading {
    /// None yet. Answers to an earlier life of this server may still come, so the numbers start at a
    /// random place.
    pub(super) fn new(seed: u64) -> Reading {
        let first = mix(seed) >> 2;
        let (asked, deadlines) = (VecDeque::new(), VecDeque::new());
        Reading { next: first, first, dirty: false, asked, deadlines }
    }

    /// Whether there is a question to ask.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// The question to ask now, if there is one.
    pub(super) fn take_question(&mut self) -> Option<u64> {
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }

    /// There is a new leader, or a new link to it: ask again.
    pub(super) fn ask_again(&mut self) {
        self.dirty |= !self.asked.is_empty();
    }

    fn take_answered(&mut self, question: u64) -> Option<(ConnId, u64)> {
        let &(asked, conn, slot) = self.asked.front()?;
        let is_own = (self.first..self.next).contains(&question);
        if asked > question || !is_own {
            return None;
        }
        self.asked.pop_front();
        Some((conn, slot))
    }

    fn take_overdue(&mut self, now_ms: u64) -> Option<(ConnId, u64)> {
        let &(until_ms, conn, slot) = self.deadlines.front()?;
        if until_ms > now_ms {
            return None;
        }
        self.deadlines.pop_front();
        Some((conn, slot))
    }
}

impl<N: Nodes> Replica<N> {
    pub(super) fn client(&mut self, conn: ConnId, message: ClientMessage) {
        match message {
            ClientMessage::Connect(connect) => self.connect(conn, &connect),
            ClientMessage::Request { xid, acked, level, op } => {
                self.request(conn, xid, acked, level, op);
            }
            ClientMessage::Ping => {
                if let Some(client) = self.heard_from(conn, 0) {
                    client.pings += 1;
                    match client.pings {
                        1 => self.pinged.push(conn),
                        ..=limits::IN_FLIGHT => {}
                        _ => self.close(conn),
                    }
                }
            }
        }
    }

    /// A request that cannot be understood has its answer; it still comes in its turn.
    pub(super) fn invalid(&mut self, conn: ConnId, xid: Xid, fault: Fault) {
        if let Some(client) = self.heard_from(conn, 1) {
            let answer = Answer { zxid: None, result: Err(fault) };
            client.queue.push(xid, SlotState::Answered(answer));
            self.drain(conn);
        }
    }

    fn request(&mut self, conn: ConnId, xid: Xid, acked: Xid, level: ReadLevel, op: Op) {
        let (applied, has_room) = (self.applied, self.backlog.has_room_for(&op));
        let needs_leader =
            op.is_write() || level == ReadLevel::Linearizable || matches!(op, Op::Sync { .. });
        let refusal = match self.is_read_only() && needs_leader {
            true => self.refusal_for_guest(conn, &op),
            false => None,
        };
        let Some(client) = self.heard_from(conn, 1) else { return };
        if let Some(refusal) = refusal {
            client.is_over |= refusal.result.is_ok();
            client.queue.push(xid, SlotState::Answered(refusal));
            self.drain(conn);
            return;
        }
        if op.is_write() {
            if matches!(op, Op::CreateSession { .. } | Op::ExpireSession | Op::Reap { .. }) {
                let result = Err(ErrorCode::BadArguments.into());
                client.queue.push(xid, SlotState::Answered(Answer { zxid: None, result }));
                self.drain(conn);
            } else if client.is_local() {
                if !(matches!(op, Op::CloseSession) && self.close_local(conn, xid)) {
                    self.hold(conn, xid, acked, op);
                    self.open_local(conn);
                }
            } else if client.queue.holds_writes() {
                self.hold(conn, xid, acked, op);
            } else {
                let slot = client.queue.push(xid, SlotState::Sent);
                let identities = client.identities.clone();
                self.submit(conn, Released { slot, xid, acked, op, identities, held_bytes: 0 });
            }
            return;
        }
        if let Op::Authenticate { scheme, credentials } = &op {
            // At once, since whatever comes after it is done in the new name: a write may leave
            // before the requests that came before it are answered.
            let result = self.authenticate(conn, scheme, credentials.expose());
            if let Some(client) = self.clients.get_mut(&conn) {
                client.queue.push(xid, SlotState::Answered(Answer { zxid: None, result }));
            }
            self.drain(conn);
            return;
        }
        let need = match (level, &op) {
            (ReadLevel::Linearizable, _) | (_, Op::Sync { .. }) => Need::Index,
            (ReadLevel::AtLeast(zxid), _) if zxid > applied => Need::Applied(zxid),
            (ReadLevel::AtLeast(_) | ReadLevel::Local, _) => Need::Nothing,
        };
        if need == Need::Nothing && client.queue.is_empty() && has_room {
            self.perform(conn, xid, op);
            return;
        }
        let slot = client.queue.push(xid, SlotState::Read { op, need });
        if need != Need::Nothing {
            let until_ms = self.now_ms() + limits::READ_WAIT_MS;
            self.reading.deadlines.push_back((until_ms, conn, slot));
        }
        if need == Need::Index {
            self.reading.asked.push_back((self.reading.next, conn, slot));
            self.reading.dirty = true;
        }
        self.drain(conn);
    }

    /// The client of a connection that has a session and gives a sign of life just now, which
    /// comes with so many requests. One without a session, or with too many requests, breaks the
    /// protocol and is cut off.
    pub(super) fn heard_from(&mut self, conn: ConnId, requests: usize) -> Option<&mut Client> {
        let client = self.clients.get(&conn)?;
        if client.session().is_none() || client.queue.len() + requests > limits::IN_FLIGHT {
            self.close(conn);
            return None;
        }
        Some(self.note_sign_of_life(conn))
    }

    /// Let a write wait.
    fn hold(&mut self, conn: ConnId, xid: Xid, acked: Xid, op: Op) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let bytes = bytes_of(&client.identities, &op);
        if self.pendings.is_full(bytes) {
            self.send_away(conn);
            return;
        }
        let identities = client.identities.clone();
        client.queue.push(xid, SlotState::Held { op, identities, acked, bytes });
        self.pendings.hold(bytes);
    }

    /// Put a write on its way.
    pub(super) fn submit(&mut self, conn: ConnId, write: Released) {
        let Some(client) = self.clients.get(&conn) else { return };
        let Some(open) = client.open() else { return };
        let retry = client.numbered && write.xid != Xid(0);
        let request = Request {
            session: open.session,
            xid: if retry { write.xid } else { Xid(0) },
            acked: if retry { write.acked } else { Xid(0) },
            op: write.op,
        };
        let work = Work { identities: write.identities, claim: Some(open.claim), request };
        let bytes = work.bytes();
        if self.pendings.is_full(bytes) {
            // To refuse it would be to say that it is not done, which a server that has no word
            // from the leader cannot know of a request that may be a retry.
            self.send_away(conn);
            return;
        }
        let waiter = Waiter::Request { conn, slot: write.slot };
        self.pend(waiter, retry, work, bytes);
    }

    /// Remember a write of about so many bytes until it is answered, and propose it if this server
    /// leads.
    ///
    /// The answer may come at once, so whoever waits must be prepared for it: the mark is known
    /// beforehand by [`super::pending::Pendings::next_tag`].
    pub(super) fn pend(&mut self, waiter: Waiter, retry: bool, work: Work, bytes: usize) {
        let tag = self.pendings.add(waiter, retry, work, bytes);
        if matches!(self.part, Part::Leading(_)) {
            self.admit_own(tag);
        }
    }

    /// A write of this server's client has its answer, and what waited for that can go on.
    pub(super) fn answer(&mut self, tag: u64, answer: Answer) {
        if let Some(conn) = self.answer_alone(tag, answer) {
            self.drain(conn);
        }
    }

    /// The same, but nothing goes on. The connection whose turn it is comes back, if there is more
    /// to answer on it.
    pub(super) fn answer_alone(&mut self, tag: u64, answer: Answer) -> Option<ConnId> {
        match self.pendings.take(tag)?.waiter {
            Waiter::Handshake(conn) => {
                self.session_created(conn, &answer);
                None
            }
            Waiter::Local { session, .. } => {
                if let Err(fault) = answer.result {
                    self.local_not_opened(session, fault.code);
                }
                None
            }
            Waiter::Request { conn, slot } => {
                let client = self.clients.get_mut(&conn)?;
                let (xid, answer) = client.queue.answer(slot, answer)?;
                let more = !client.queue.is_empty();
                self.respond(conn, xid, answer);
                more.then_some(conn)
            }
        }
    }

    /// Answer whatever can be answered of a connection's requests, from the first on.
    pub(super) fn drain(&mut self, conn: ConnId) {
        // A write that is let go may have its answer at once, and what waited for that goes on below.
        let Some(client) = self.clients.get_mut(&conn) else { return };
        if std::mem::replace(&mut client.is_draining, true) {
            return;
        }
        self.drain_queue(conn);
        if let Some(client) = self.clients.get_mut(&conn) {
            client.is_draining = false;
            if client.is_over && client.queue.is_empty() {
                self.close(conn);
            }
        }
    }

    fn drain_queue(&mut self, conn: ConnId) {
        let complete_before = self.complete_before();
        while let Some(client) = self.clients.get_mut(&conn)
            && let Some(first) = client.queue.front()
        {
            let mut barrier = false;
            match &first.state {
                SlotState::Sent | SlotState::Held { .. } => return,
                SlotState::Answered(_) => {}
                SlotState::Read { need: Need::Index, .. } => return,
                &SlotState::Read { need: Need::Applied(zxid), .. }
                    if zxid > self.applied && zxid >= complete_before =>
                {
                    self.wait_for(conn, zxid);
                    return;
                }
                SlotState::Read { op, .. } if !self.backlog.has_room_for(op) => {
                    let is_heavy = is_heavy(op);
                    self.put_off(conn, is_heavy);
                    return;
                }
                SlotState::Read { need, .. } => barrier = *need != Need::Nothing,
            }
            let Slot { xid, state } = client.queue.pop().expect("there is a first");
            match state {
                SlotState::Answered(answer) => self.respond(conn, xid, answer),
                SlotState::Read { need: Need::GivenUp, .. } => {
                    let result = Err(ErrorCode::Unavailable.into());
                    self.respond(conn, xid, Answer { zxid: None, result });
                }
                SlotState::Read { op, .. } => self.perform(conn, xid, op),
                SlotState::Sent | SlotState::Held { .. } => unreachable!("these are not taken out"),
            }
            if barrier
                && let Some(client) = self.clients.get_mut(&conn)
                && !client.is_local()
            {
                for write in client.queue.release() {
                    self.pendings.let_go(write.held_bytes);
                    self.submit(conn, write);
                }
            }
        }
    }

    /// Everything before this is applied that ever will be: what a leader of an earlier epoch has named,
    /// and one in sync with a later leader does not have, was lost with the earlier one.
    fn complete_before(&self) -> Zxid {
        match &self.part {
            Part::Looking { .. } => Zxid::ZERO,
            Part::Following(follow) => Zxid::new(follow.epoch, 0),
            Part::Leading(lead) => Zxid::new(lead.epoch, 0),
        }
    }

    /// This server has just come in sync with a leader, or leads: questions that have no answer are
    /// asked again, and nobody waits any more for what was lost with an earlier leader.
    pub(super) fn read_on(&mut self) {
        self.reading.ask_again();
        let now = self.by_zxid.split_off(&(self.complete_before(), ConnId(0)));
        for (_, conn) in std::mem::replace(&mut self.by_zxid, now) {
            self.wake(conn);
        }
    }

    /// A transaction is to be applied before this connection can go on.
    pub(super) fn wait_for(&mut self, conn: ConnId, zxid: Zxid) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        if let Some(before) = client.waits_for.replace(zxid) {
            self.by_zxid.remove(&(before, conn));
        }
        self.by_zxid.insert((zxid, conn));
    }

    /// The leader has said what must be applied before the reads of a question.
    pub(super) fn read_at(&mut self, question: u64, commit: Zxid) {
        while let Some((conn, slot)) = self.reading.take_answered(question) {
            if let Some(client) = self.clients.get_mut(&conn) {
                client.queue.set_need(slot, Need::Applied(commit));
                self.drain(conn);
            }
        }
    }

    pub(super) fn give_up_reads(&mut self) {
        let now_ms = self.now_ms();
        while let Some((conn, slot)) = self.reading.take_overdue(now_ms) {
            if let Some(client) = self.clients.get_mut(&conn) {
                client.queue.set_need(slot, Need::GivenUp);
                self.drain(conn);
            }
        }
    }

    pub(super) fn respond(&mut self, conn: ConnId, xid: Xid, answer: Answer) {
        let zxid = answer.zxid.unwrap_or(self.applied);
        let response = Response { xid, zxid, result: answer.result };
        self.tell(conn, ServerMessage::Response(response));
    }

    /// Carry out a read whose turn has come, from the state as it is.
    fn perform(&mut self, conn: ConnId, xid: Xid, op: Op) {
        self.backlog.count_read(&op);
        let result = if let Op::Watch { id, path, kind, since, with_value } = op {
            self.watch(conn, id, path, kind, since, with_value)
        } else if let Op::Unwatch { id } = op {
            let removed = self.hub.unset(Watcher(conn.0), id);
            if removed { Ok(Reply::Done) } else { Err(ErrorCode::NoWatcher.into()) }
        } else if let Op::WhoAmI = op {
            let identities = self.clients.get(&conn).map(|client| client.identities.to_vec());
            Ok(Reply::Identities(identities.unwrap_or_default()))
        } else if let Op::Sync { .. } = op {
            Ok(Reply::Done)
        } else {
            self.read(conn, &op)
        };
        if let Ok(reply) = &result {
            self.backlog.count_answer(reply);
        }
        self.respond(conn, xid, Answer { zxid: None, result });
    }

    fn read(&mut self, conn: ConnId, op: &Op) -> Result<Reply, Fault> {
        let Some(client) = self.clients.get(&conn) else {
            return Err(ErrorCode::SessionExpired.into());
        };
        let Some(session) = client.session() else { return Err(ErrorCode::SessionExpired.into()) };
        let before = self.nodes.names_passed();
        let reply = tree::read(&self.nodes, &client.identities, session, op);
        self.backlog.count_passed(self.nodes.names_passed() - before);
        if let (Op::MultiRead(ops), Ok(Reply::MultiRead(replies))) = (op, &reply) {
            for (op, reply) in ops.iter().zip(replies) {
                self.watch_what_was_read(conn, op, reply)?;
            }
        } else {
            self.watch_what_was_read(conn, op, &reply)?;
        }
        reply
    }

    fn watch_what_was_read(
        &mut self,
        conn: ConnId,
        op: &Op,
        reply: &Result<Reply, Fault>,
    ) -> Result<(), ErrorCode> {
        let (id, path, kind) = if let Op::Get { path, watch: Some(id) } = op {
            (id, path, WatchKind::Data)
        } else if let Op::Exists { path, watch: Some(id) } = op {
            (id, path, WatchKind::Exists)
        } else if let Op::Children { path, watch: Some(id), .. } = op {
            (id, path, WatchKind::Children)
        } else {
            return Ok(());
        };
        let missing = |fault: &Fault| kind == WatchKind::Exists && fault.code == ErrorCode::NoNode;
        if reply.as_ref().err().is_some_and(|fault| !missing(fault)) {
            return Ok(());
        }
        let watch =
            Watch { id: *id, path: path.clone(), kind, since: self.applied, with_value: false };
        self.hub.set(Watcher(conn.0), watch)
    }

    /// Set a watch, after telling what it has missed.
    fn watch(
        &mut self,
        conn: ConnId,
        id: WatchId,
        path: ZPath,
        kind: WatchKind,
        since: Option<Zxid>,
        with_value: bool,
    ) -> Result<Reply, Fault> {
        let watcher = Watcher(conn.0);
        self.hub.unset(watcher, id);
        let Some(client) = self.clients.get(&conn) else {
            return Err(ErrorCode::SessionExpired.into());
        };
        // A new one-shot watch is the second half of a read. Others wait for what may come to be
        // readable, and each event asks who may know of it.
        if since.is_none() && matches!(kind, WatchKind::Data | WatchKind::Children) {
            let node = self.nodes.node(&path).ok_or(ErrorCode::NoNode)?;
            if !tree::allows(&node.acl, Perms::READ, &client.identities) {
                return Err(ErrorCode::NoAuth.into());
            }
        }
        let told =
            since.is_some_and(|since| self.catch_up(conn, id, &path, kind, since, with_value));
        if !(told && kind.is_one_shot()) {
            let since = since.unwrap_or(self.applied).max(self.applied);
            self.hub.set(watcher, Watch { id, path, kind, since, with_value })?;
        }
        Ok(Reply::Done)
    }

    /// Tell a watch what happened after `since`; whether there was anything that it may
    /// know. What is more than an outbox should hold is a gap.
    fn catch_up(
        &mut self,
        conn: ConnId,
        id: WatchId,
        path: &ZPath,
        kind: WatchKind,
        since: Zxid,
        with_value: bool,
    ) -> bool {
        let missed = match since < self.applied {
            true => self.hub.missed(path, kind, since),
            false => Some(Vec::new()),
        };
        // Where there is no node, the state does not show whether there was one: a client that waits
        // for the end of one would wait in vain.
        let shows_all =
            kind.is_one_shot() && (kind != WatchKind::Exists || self.nodes.node(path).is_some());
        if missed.is_none() && !shows_all {
            self.tell(conn, ServerMessage::Gap { watch: id, resumed_at: self.applied });
        }
        let missed = missed.unwrap_or_default();
        let mut told_bytes = 0;
        for past in missed {
            if !self.may_read(conn, &past.acl) {
                continue;
            }
            if told_bytes >= limits::CATCH_UP_BYTES {
                self.tell(conn, ServerMessage::Gap { watch: id, resumed_at: self.applied });
                break;
            }
            told_bytes += self.tell_event(conn, id, past.event, with_value);
        }
        self.backlog.count_missed(told_bytes);
        if told_bytes > 0 {
            return true;
        }
        // Where the events are not remembered, or were not for this client, the state tells of
        // changes.
        let node = self.nodes.node(path);
        let change = tree::changed_since(&self.nodes, path, kind, since);
        let change = change.filter(|_| node.is_none_or(|node| self.may_read(conn, &node.acl)));
        if let Some(what) = change {
            let event = Event { zxid: self.applied, path: path.clone(), kind: what };
            self.tell_event(conn, id, event, with_value);
        }
        change.is_some()
    }

    fn may_read(&self, conn: ConnId, acl: &[Acl]) -> bool {
        let client = self.clients.get(&conn);
        client.is_some_and(|client| tree::allows(acl, Perms::READ, &client.identities))
    }

    /// Tell a watch of an event of the past, with the node's data as it is now. What that costs, in
    /// bytes.
    fn tell_event(
        &mut self,
        conn: ConnId,
        watch: WatchId,
        event: Event,
        with_value: bool,
    ) -> usize {
        // Its ACL may be another one by now.
        let with_value = with_value && event_has_value(event.kind);
        let node = if with_value { self.nodes.node(&event.path) } else { None };
        let node = node.filter(|node| self.may_read(conn, &node.acl));
        let value = node.and_then(|node| node.data);
        let cost = EVENT_BYTES + event.path.as_str().len() + value.as_ref().map_or(0, Bytes::len);
        let message = ServerMessage::Event { watch, event, value };
        self.out.clients.push((conn, ToClient::Message(message)));
        cost
    }
}
