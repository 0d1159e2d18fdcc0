//! The client's side of a session, without any IO: what to send, what an answer means, what to do
//! again after a reconnection.
//!
//! Requests wait in `waiting` until the server's limit on requests in flight lets them be sent;
//! then they get their number and stay in `in_flight` until they are answered, in order. When the
//! connection is lost nothing is given up: on the next connection the identities are presented and
//! the watches set again, then every request in flight is sent again under the number it had (the
//! servers carry out a write with a known number once), then new ones follow. Only a read that had
//! to wait, and whose caller waits no longer, gives its number to one that need not.
//!
//! Time is given in ms on a clock of the driver's.

mod outcome;
mod pulse;
#[cfg(test)]
mod tests;
mod watches;

use std::collections::VecDeque;

use bytes::Bytes;
use conclave_proto::message::{Connect, Connected, PROTOCOL_VERSION, Refused, ServerLimits};
use conclave_proto::request::{ReadLevel, Reply, Response};
use conclave_proto::{
    ClientMessage, Credentials, ErrorCode, Event, Fault, Op, Secret, ServerId, ServerMessage,
    SessionId, WatchId, Xid, Zxid,
};

use crate::queue::op_bytes;
use crate::state::State;

pub(crate) use outcome::{Answer, Failure, Outcome};
use pulse::Pulse;
use watches::{Delivery, Watches};

/// What a session is told when it is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    /// The session timeout to ask for.
    pub(crate) session_timeout_ms: u32,
    /// How long an operation waits for its answer.
    pub(crate) operation_timeout_ms: u64,
    /// Whether a server without a quorum will do.
    pub(crate) read_only: bool,
}

/// What the driver has to do, in order. `T` is where the outcome of an operation goes, `W` where a
/// watch reports.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect<T, W> {
    /// Tell the outcome of an operation.
    Complete(T, Outcome),
    /// Report an event.
    Event(W, Event, Option<Bytes>),
    /// Report a gap.
    Gap(W, Zxid),
    /// The watch is at its end; without a failure it was told all it waited for.
    Finish(W, Option<Failure>),
    /// The session is in this state now.
    State(State),
    /// An identity was refused when it was presented again.
    IdentityRefused(String),
}

/// Why a connection is to be given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// The server does not want a session on it.
    Refused(Refused),
    /// The server is about to close; dial after this many ms at least.
    GoAway(u32),
    /// The server does not serve, or serves another connection of the session.
    NotServing(ErrorCode),
    /// The server did not answer the handshake or a ping in time.
    Silent,
    /// The server broke the protocol.
    Violation(&'static str),
    /// The session has ended.
    Ended,
}

/// What has been learnt of the session.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) session: SessionId,
    /// What the server granted; 0 before.
    pub(crate) timeout_ms: u32,
    /// The latest transaction seen.
    pub(crate) last_zxid: Zxid,
    /// The current server, or the last one.
    pub(crate) server: Option<ServerId>,
    /// Until when the session is alive for certain.
    pub(crate) certain_until_ms: u64,
}

/// A session.
pub(crate) struct Session<T, W> {
    config: Config,
    phase: Phase,
    secret: Option<Secret>,
    facts: Facts,
    /// The number of the last numbered request, and of the last one answered.
    last_xid: u64,
    acked: u64,
    /// Requests that have no number yet.
    waiting: VecDeque<Waiting<T>>,
    /// Requests that have a number and no answer, in the order of their numbers.
    in_flight: VecDeque<InFlight<T>>,
    /// How many at the front of `in_flight` have timed out and are kept for the order's sake.
    timed_out: usize,
    watches: Watches<W>,
    /// The identities to present on every connection.
    identities: Vec<(String, Credentials)>,
    /// A message that is not kept in `in_flight`, while it is being sent.
    scratch: ClientMessage,
    effects: Vec<Effect<T, W>>,
    /// The operations, and their bytes, that the queue need not count any more.
    freed: (usize, usize),
}

enum Phase {
    /// There is no connection.
    Away,
    /// The handshake goes on.
    Greeting { sent_ms: Option<u64>, deadline_ms: u64 },
    /// The session is open on a connection.
    Open(Connection),
    /// The connection is to be given up.
    Leaving(Leave),
    /// The session has ended, for this reason.
    Ended(Failure),
}

/// The connection on which the session is open.
struct Connection {
    limits: ServerLimits,
    /// What is sent before any numbered request, and what of it waits for its answer.
    prelude: VecDeque<Prelude>,
    prelude_sent: VecDeque<Prelude>,
    /// How many at the front of `in_flight` have been sent on this connection.
    sent: usize,
    /// The last number that was given before this connection: what has it may have been sent.
    old_xid: u64,
    pulse: Pulse,
}

impl Connection {
    fn has_prelude(&self) -> bool {
        !self.prelude.is_empty() || !self.prelude_sent.is_empty()
    }

    fn has_room(&self) -> bool {
        let in_flight = self.prelude_sent.len() + self.sent;
        u32::try_from(in_flight).is_ok_and(|in_flight| in_flight < self.limits.in_flight.max(1))
    }
}

/// A request that is not numbered.
enum Prelude {
    /// Presents the identity at this place.
    Identity(usize),
    /// Sets this watch again.
    Watch(WatchId),
}

struct Waiting<T> {
    op: Op,
    level: ReadLevel,
    token: Option<T>,
    deadline_ms: u64,
    /// What the queue counts it for, if it does.
    counted: Option<usize>,
}

struct InFlight<T> {
    xid: u64,
    message: ClientMessage,
    token: Option<T>,
    sent_ms: u64,
    deadline_ms: u64,
    counted: Option<usize>,
}

/// Asking.
impl<T, W: Clone> Session<T, W> {
    pub(crate) fn new(config: Config) -> Session<T, W> {
        Session {
            config,
            phase: Phase::Away,
            secret: None,
            facts: Facts::default(),
            last_xid: 0,
            acked: 0,
            waiting: VecDeque::new(),
            in_flight: VecDeque::new(),
            timed_out: 0,
            watches: Watches::new(),
            identities: Vec::new(),
            scratch: ClientMessage::Ping,
            effects: Vec::new(),
            freed: (0, 0),
        }
    }

    /// Takes an operation; its place in the order is after all before it.
    pub(crate) fn submit(
        &mut self,
        now_ms: u64,
        op: Op,
        level: ReadLevel,
        watch: Option<W>,
        token: T,
    ) {
        if let Some(sink) = watch {
            self.watches.add(&op, sink);
        }
        let counted = Some(op_bytes(&op));
        self.push(now_ms, op, level, Some(token), counted);
    }

    /// Forgets a watch, here and at the server.
    pub(crate) fn unwatch(&mut self, now_ms: u64, id: WatchId) {
        if self.watches.remove(id).is_some() {
            self.push(now_ms, Op::Unwatch { id }, ReadLevel::Local, None, None);
        }
    }

    /// Ends the session after everything that was submitted before; at once if it was never open.
    pub(crate) fn close(&mut self, now_ms: u64, token: Option<T>) {
        if self.is_new() {
            self.abandon();
        }
        self.push(now_ms, Op::CloseSession, ReadLevel::Local, token, None);
    }

    fn push(
        &mut self,
        now_ms: u64,
        op: Op,
        level: ReadLevel,
        token: Option<T>,
        counted: Option<usize>,
    ) {
        let deadline_ms = now_ms.saturating_add(self.config.operation_timeout_ms);
        self.waiting.push_back(Waiting { op, level, token, deadline_ms, counted });
        if let Phase::Ended(failure) = &self.phase {
            self.fail_all(failure.clone());
        }
    }
}

/// Connections.
impl<T, W: Clone> Session<T, W> {
    /// There is a connection: the handshake has to be done by `deadline_ms`.
    pub(crate) fn connected(&mut self, deadline_ms: u64) {
        if matches!(self.phase, Phase::Away) {
            self.phase = Phase::Greeting { sent_ms: None, deadline_ms };
        }
    }

    /// The connection is gone.
    pub(crate) fn disconnected(&mut self) {
        let was_open = match &self.phase {
            Phase::Ended(_) => return,
            Phase::Open(_) => true,
            Phase::Away | Phase::Greeting { .. } | Phase::Leaving(_) => false,
        };
        if was_open {
            self.effects.push(Effect::State(State::Suspended));
        }
        self.phase = Phase::Away;
    }

    /// Why the connection is to be given up, if it is.
    pub(crate) fn leaving(&self) -> Option<Leave> {
        match &self.phase {
            Phase::Leaving(leave) => Some(leave.clone()),
            Phase::Ended(_) => Some(Leave::Ended),
            Phase::Away | Phase::Greeting { .. } | Phase::Open(_) => None,
        }
    }

    /// Whether the session is open on a connection.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    /// Whether no server has opened the session yet.
    pub(crate) fn is_new(&self) -> bool {
        self.secret.is_none()
    }

    /// Why the session has ended, if it has.
    pub(crate) fn ended(&self) -> Option<&Failure> {
        if let Phase::Ended(failure) = &self.phase { Some(failure) } else { None }
    }

    /// What has been learnt of the session.
    pub(crate) fn facts(&self) -> Facts {
        self.facts
    }

    /// The server's limits on the connection; `None` before the handshake.
    pub(crate) fn limits(&self) -> Option<ServerLimits> {
        if let Phase::Open(connection) = &self.phase { Some(connection.limits) } else { None }
    }

    /// What to do, in order, since the last time.
    pub(crate) fn take_effects(&mut self, into: &mut Vec<Effect<T, W>>) {
        debug_assert!(into.is_empty(), "effects would be out of order");
        std::mem::swap(&mut self.effects, into);
    }

    /// How many operations, of how many bytes, are done with since the last time.
    pub(crate) fn take_freed(&mut self) -> (usize, usize) {
        std::mem::take(&mut self.freed)
    }

    /// Ends the session here without telling the servers, where it will expire.
    pub(crate) fn abandon(&mut self) {
        self.end(Failure::Closed { confirmed: false }, State::Closed);
    }

    /// Gives the connection up.
    fn leave(&mut self, leave: Leave) {
        if self.is_open() {
            self.effects.push(Effect::State(State::Suspended));
        }
        if !matches!(self.phase, Phase::Ended(_)) {
            self.phase = Phase::Leaving(leave);
        }
    }

    /// Ends the session.
    fn end(&mut self, failure: Failure, state: State) {
        if matches!(self.phase, Phase::Ended(_)) {
            return;
        }
        for sink in self.watches.remove_all() {
            self.effects.push(Effect::Finish(sink, Some(failure.clone())));
        }
        // Whoever sees an operation fail because the session has ended finds it ended.
        self.effects.push(Effect::State(state));
        self.facts.certain_until_ms = 0;
        self.phase = Phase::Ended(failure.clone());
        self.fail_all(failure);
    }

    fn fail_all(&mut self, failure: Failure) {
        for request in std::mem::take(&mut self.in_flight) {
            self.finish(request.token, request.counted, Err(failure.clone()));
        }
        for request in std::mem::take(&mut self.waiting) {
            self.finish(request.token, request.counted, Err(failure.clone()));
        }
        self.timed_out = 0;
    }

    fn finish(&mut self, token: Option<T>, counted: Option<usize>, outcome: Outcome) {
        if let Some(bytes) = counted {
            self.freed.0 += 1;
            self.freed.1 += bytes;
        }
        if let Some(token) = token {
            self.effects.push(Effect::Complete(token, outcome));
        }
    }
}

/// Sending.
impl<T, W: Clone> Session<T, W> {
    /// The next message to send, if there is one that may be sent now.
    pub(crate) fn next_message(&mut self, now_ms: u64) -> Option<&ClientMessage> {
        match &mut self.phase {
            Phase::Greeting { sent_ms: sent_ms @ None, .. } => {
                *sent_ms = Some(now_ms);
                self.scratch = self.greeting();
                Some(&self.scratch)
            }
            Phase::Open(connection) => {
                if connection.pulse.take_ping(now_ms) {
                    self.scratch = ClientMessage::Ping;
                    Some(&self.scratch)
                } else if connection.has_room() {
                    self.next_request(now_ms)
                } else {
                    None
                }
            }
            Phase::Away
            | Phase::Greeting { sent_ms: Some(_), .. }
            | Phase::Leaving(_)
            | Phase::Ended(_) => None,
        }
    }

    /// Whether the next message is a ping.
    pub(crate) fn owes_ping(&self) -> bool {
        matches!(&self.phase, Phase::Open(connection) if connection.pulse.owes_ping())
    }

    /// Whether what the server says can wait to be heard.
    pub(crate) fn can_wait(&self, now_ms: u64) -> bool {
        matches!(&self.phase, Phase::Open(connection) if connection.pulse.can_wait(now_ms))
    }

    /// The message that [`next_message`](Self::next_message) gave last is over the server's limit
    /// and was not sent.
    pub(crate) fn refuse_last(&mut self, bytes: usize, limit: usize) {
        let Phase::Open(connection) = &mut self.phase else { return };
        // The servers may have done what was sent before, and would take its number for a repetition.
        let is_old = self.last_xid == connection.old_xid;
        if connection.sent == 0 || connection.sent < self.in_flight.len() || is_old {
            self.leave(Leave::Violation("its limits are below those it had before"));
            return;
        }
        let Some(request) = self.in_flight.pop_back() else { return };
        connection.sent -= 1;
        self.last_xid -= 1;
        self.timed_out = self.timed_out.min(self.in_flight.len());
        self.forget_watch_of(&request.message);
        self.finish(request.token, request.counted, Err(Failure::TooLarge { bytes, limit }));
    }

    fn greeting(&self) -> ClientMessage {
        ClientMessage::Connect(Connect {
            version: PROTOCOL_VERSION,
            session: self.secret.map(|secret| (self.facts.session, secret)),
            timeout_ms: self.config.session_timeout_ms,
            last_zxid: self.facts.last_zxid,
            read_only: self.config.read_only,
        })
    }

    fn next_request(&mut self, now_ms: u64) -> Option<&ClientMessage> {
        let Phase::Open(connection) = &mut self.phase else { return None };
        while let Some(prelude) = connection.prelude.pop_front() {
            let op = match &prelude {
                Prelude::Identity(place) => {
                    let (scheme, credentials) = self.identities[*place].clone();
                    Some(Op::Authenticate { scheme, credentials })
                }
                Prelude::Watch(id) => self.watches.set_again(*id),
            };
            if let Some(op) = op {
                connection.prelude_sent.push_back(prelude);
                self.scratch = request(Xid(0), Xid(self.acked), ReadLevel::Local, op);
                return Some(&self.scratch);
            }
        }
        if connection.sent == self.in_flight.len() {
            let Waiting { op, level, token, deadline_ms, counted } = self.waiting.pop_front()?;
            self.last_xid += 1;
            let xid = self.last_xid;
            let message = request(Xid(xid), Xid(self.acked), level, op);
            let sent_ms = now_ms;
            let request = InFlight { xid, message, token, sent_ms, deadline_ms, counted };
            self.in_flight.push_back(request);
            connection.sent += 1;
            return self.in_flight.back().map(|request| &request.message);
        }
        let place = connection.sent;
        connection.sent += 1;
        if place < self.timed_out {
            self.give_up_waiting(place);
        }
        let again = &mut self.in_flight[place];
        again.sent_ms = now_ms;
        // As it was: with what has been answered since, it could be over the limit on a frame.
        Some(&again.message)
    }

    /// Puts a read that need not wait in the place of one that may have to wait for ever, for what
    /// is not in the servers' history, and whose caller has gone: all that was asked after it would
    /// wait with it. The number has to be used, since the next ones are.
    fn give_up_waiting(&mut self, place: usize) {
        let ClientMessage::Request { xid, acked, level, op } = &self.in_flight[place].message
        else {
            return;
        };
        let may_wait = *level != ReadLevel::Local || matches!(op, Op::Sync { .. });
        if may_wait && !op.is_write() {
            let instead = request(*xid, *acked, ReadLevel::Local, Op::WhoAmI);
            let message = std::mem::replace(&mut self.in_flight[place].message, instead);
            self.forget_watch_of(&message);
        }
    }

    fn forget_watch_of(&mut self, message: &ClientMessage) {
        if let Some(id) = watch_of(message)
            && let Some(sink) = self.watches.remove(id)
        {
            self.effects.push(Effect::Finish(sink, None));
        }
    }
}

/// Hearing.
impl<T, W: Clone> Session<T, W> {
    /// The server said something.
    pub(crate) fn receive(&mut self, now_ms: u64, message: ServerMessage) {
        if let Phase::Open(connection) = &mut self.phase {
            connection.pulse.heard(now_ms);
        }
        match (&mut self.phase, message) {
            (
                Phase::Greeting { sent_ms: Some(sent_ms), .. },
                ServerMessage::Connected(connected),
            ) => {
                let (sent_ms, so_far_ms) = (*sent_ms, self.facts.certain_until_ms);
                // One that only this server knows is over when there is a leader.
                let shows_nothing = !self.is_new() || connected.read_only;
                let certain_ms = Some(so_far_ms).filter(|_| shows_nothing);
                let timeout_ms = connected.timeout_ms.max(1);
                self.open(Pulse::new(timeout_ms, sent_ms, now_ms, certain_ms), connected);
            }
            (Phase::Greeting { .. }, ServerMessage::Refused(refused)) => self.refused(refused),
            (Phase::Open(_), ServerMessage::Response(response)) => self.response(response),
            (Phase::Open(connection), ServerMessage::Event { watch, event, value }) => {
                if !connection.has_prelude() {
                    self.watches.complete_before(event.zxid);
                }
                self.event(watch, event, value);
            }
            (Phase::Open(_), ServerMessage::Gap { watch, resumed_at }) => {
                if let Some(sink) = self.watches.gap(watch, resumed_at) {
                    self.effects.push(Effect::Gap(sink, resumed_at));
                }
            }
            (Phase::Open(connection), ServerMessage::Pong { zxid, counted_ms_ago }) => {
                if !connection.pulse.pong(counted_ms_ago) {
                    return self.leave(Leave::Violation("it answered a ping that was not sent"));
                }
                self.facts.certain_until_ms = connection.pulse.certain_until_ms();
                self.seen(zxid);
            }
            (Phase::Open(_) | Phase::Greeting { .. }, ServerMessage::GoAway { backoff_ms }) => {
                self.leave(Leave::GoAway(backoff_ms));
            }
            // What was on its way when the connection was given up.
            (Phase::Away | Phase::Leaving(_) | Phase::Ended(_), _) => {}
            (Phase::Greeting { .. }, _) => {
                self.leave(Leave::Violation("it did not begin with the handshake"));
            }
            (Phase::Open(_), ServerMessage::Connected(_) | ServerMessage::Refused(_)) => {
                self.leave(Leave::Violation("it repeated the handshake"));
            }
        }
    }

    fn open(&mut self, pulse: Pulse, connected: Connected) {
        let is_new = self.is_new();
        if !is_new && (!connected.resumed || connected.session != self.facts.session) {
            return self.end(Failure::Expired, State::Expired);
        }
        self.secret = Some(connected.secret);
        self.facts.session = connected.session;
        self.facts.timeout_ms = connected.timeout_ms.max(1);
        self.facts.server = Some(connected.server);
        self.facts.certain_until_ms = pulse.certain_until_ms();
        let identities = (0..self.identities.len()).map(Prelude::Identity);
        let watches = self.watches.resume().into_iter().map(Prelude::Watch);
        self.phase = Phase::Open(Connection {
            limits: connected.limits,
            prelude: identities.chain(watches).collect(),
            prelude_sent: VecDeque::new(),
            sent: 0,
            old_xid: self.last_xid,
            pulse,
        });
        let state = if is_new { State::Connected } else { State::Resumed };
        self.effects.push(Effect::State(state));
    }

    fn refused(&mut self, refused: Refused) {
        if refused.code == ErrorCode::SessionExpired && !self.is_new() {
            self.end(Failure::Expired, State::Expired);
        } else {
            self.leave(Leave::Refused(refused));
        }
    }

    fn event(&mut self, id: WatchId, event: Event, value: Option<Bytes>) {
        self.facts.last_zxid = self.facts.last_zxid.max(event.zxid);
        match self.watches.event(id, &event) {
            Delivery::Nothing => {}
            Delivery::Report(sink) => self.effects.push(Effect::Event(sink, event, value)),
            Delivery::Last(sink) => {
                self.effects.push(Effect::Event(sink.clone(), event, value));
                self.effects.push(Effect::Finish(sink, None));
            }
        }
    }

    fn response(&mut self, response: Response) {
        let Response { xid, zxid, result } = response;
        if let Err(Fault { code, .. }) = result {
            if code == ErrorCode::SessionExpired {
                return self.end(Failure::Expired, State::Expired);
            }
            if matches!(code, ErrorCode::Unavailable | ErrorCode::SessionMoved) {
                return self.leave(Leave::NotServing(code));
            }
        }
        if xid == Xid(0) {
            self.prelude_answer(zxid, result);
        } else {
            self.answer(xid, zxid, result);
        }
    }

    fn prelude_answer(&mut self, zxid: Zxid, result: Result<Reply, Fault>) {
        let Phase::Open(connection) = &mut self.phase else { return };
        let Some(prelude) = connection.prelude_sent.pop_front() else {
            return self.leave(Leave::Violation("it answered a request that was not sent"));
        };
        match (prelude, result) {
            (Prelude::Identity(_), Ok(_)) => {}
            (Prelude::Identity(place), Err(_)) => {
                let scheme = self.identities[place].0.clone();
                self.effects.push(Effect::IdentityRefused(scheme));
            }
            (Prelude::Watch(id), Ok(_)) => self.watches.set(id, zxid),
            (Prelude::Watch(id), Err(fault)) => {
                if let Some(sink) = self.watches.remove(id) {
                    self.effects.push(Effect::Finish(sink, Some(fault.into())));
                }
            }
        }
        self.seen(zxid);
    }

    fn answer(&mut self, xid: Xid, zxid: Zxid, result: Result<Reply, Fault>) {
        let Phase::Open(connection) = &mut self.phase else { return };
        let is_next = self.in_flight.front().is_some_and(|next| next.xid == xid.0);
        if !is_next || connection.sent == 0 || !connection.prelude_sent.is_empty() {
            return self.leave(Leave::Violation("it answered a request out of turn"));
        }
        let Some(request) = self.in_flight.pop_front() else { return };
        connection.sent -= 1;
        self.timed_out = self.timed_out.saturating_sub(1);
        self.acked = xid.0;
        self.note_what_was_set(&request.message, zxid, &result);
        self.seen(zxid);
        let is_close = matches!(
            (&request.message, &result),
            (ClientMessage::Request { op: Op::CloseSession, .. }, Ok(_))
        );
        let outcome = match result {
            Ok(reply) => Ok(Answer { reply, zxid }),
            Err(fault) => Err(fault.into()),
        };
        self.finish(request.token, request.counted, outcome);
        if is_close {
            self.end(Failure::Closed { confirmed: true }, State::Closed);
        }
    }

    /// Remembers the watch or the identity that an answered request has set.
    fn note_what_was_set(
        &mut self,
        message: &ClientMessage,
        zxid: Zxid,
        result: &Result<Reply, Fault>,
    ) {
        let ClientMessage::Request { op, .. } = message else { return };
        let is_set = match (op, result) {
            (_, Ok(_)) => true,
            (Op::Exists { .. }, Err(fault)) => fault.code == ErrorCode::NoNode,
            (_, Err(_)) => false,
        };
        match watch_of(message) {
            Some(id) if is_set => self.watches.set(id, zxid),
            Some(_) => self.forget_watch_of(message),
            None => {}
        }
        if let (Op::Authenticate { scheme, credentials }, true) = (op, is_set) {
            let identity = (scheme.clone(), credentials.clone());
            if !self.identities.contains(&identity) {
                self.identities.push(identity);
            }
        }
    }

    /// A reply or pong at `zxid` came.
    fn seen(&mut self, zxid: Zxid) {
        self.facts.last_zxid = self.facts.last_zxid.max(zxid);
        if let Phase::Open(connection) = &self.phase
            && !connection.has_prelude()
        {
            self.watches.complete_to(zxid);
        }
    }
}

/// Time.
impl<T, W: Clone> Session<T, W> {
    /// The time is now `now_ms`.
    pub(crate) fn tick(&mut self, now_ms: u64) {
        self.time_out_operations(now_ms);
        let waiting_ms = self.waiting_ms();
        match &mut self.phase {
            Phase::Greeting { deadline_ms, .. } if *deadline_ms <= now_ms => {
                self.leave(Leave::Silent);
            }
            Phase::Open(connection) => {
                if !connection.pulse.tick(now_ms, waiting_ms) {
                    self.leave(Leave::Silent);
                }
            }
            Phase::Away | Phase::Greeting { .. } | Phase::Leaving(_) | Phase::Ended(_) => {}
        }
    }

    /// When [`tick`](Self::tick) has something to do next.
    pub(crate) fn next_tick(&self) -> Option<u64> {
        let operation = match self.in_flight.get(self.timed_out) {
            Some(request) => Some(request.deadline_ms),
            None => self.waiting.front().map(|request| request.deadline_ms),
        };
        let connection = match &self.phase {
            Phase::Greeting { deadline_ms, .. } => Some(*deadline_ms),
            Phase::Open(connection) => Some(connection.pulse.next_tick(self.waiting_ms())),
            Phase::Away | Phase::Leaving(_) | Phase::Ended(_) => None,
        };
        match (operation, connection) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    /// When the oldest request was sent that has no answer on this connection.
    fn waiting_ms(&self) -> Option<u64> {
        let Phase::Open(connection) = &self.phase else { return None };
        if !connection.prelude_sent.is_empty() {
            return Some(0);
        }
        self.in_flight.front().filter(|_| connection.sent > 0).map(|request| request.sent_ms)
    }

    /// Deadlines are in the order of the requests, since every operation has the same time.
    fn time_out_operations(&mut self, now_ms: u64) {
        while let Some(request) = self.in_flight.get_mut(self.timed_out)
            && request.deadline_ms <= now_ms
        {
            self.timed_out += 1;
            let token = request.token.take();
            let is_close =
                matches!(&request.message, ClientMessage::Request { op: Op::CloseSession, .. });
            self.finish(token, None, Err(Failure::Timeout { sent: true }));
            if is_close {
                return self.end(Failure::Closed { confirmed: false }, State::Closed);
            }
        }
        while let Some(request) = self.waiting.pop_front_if(|next| next.deadline_ms <= now_ms) {
            if let Some(id) = watch_set_by(&request.op)
                && let Some(sink) = self.watches.remove(id)
            {
                self.effects.push(Effect::Finish(sink, None));
            }
            let failure = Failure::Timeout { sent: false };
            self.finish(request.token, request.counted, Err(failure));
            if matches!(request.op, Op::CloseSession) {
                return self.end(Failure::Closed { confirmed: false }, State::Closed);
            }
        }
    }
}

fn request(xid: Xid, acked: Xid, level: ReadLevel, op: Op) -> ClientMessage {
    ClientMessage::Request { xid, acked, level, op }
}

fn watch_of(message: &ClientMessage) -> Option<WatchId> {
    if let ClientMessage::Request { op, .. } = message { watch_set_by(op) } else { None }
}

fn watch_set_by(op: &Op) -> Option<WatchId> {
    if let Op::Get { watch, .. } | Op::Exists { watch, .. } | Op::Children { watch, .. } = op {
        *watch
    } else if let Op::Watch { id, .. } = op {
        Some(*id)
    } else {
        None
    }
}
