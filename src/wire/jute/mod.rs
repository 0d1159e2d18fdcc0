//! ZooKeeper's client protocol.
//!
//! It is translated and nothing more: what a request becomes is an [`Op`] that the native protocol
//! has too, and what it is answered comes from the replica, so that there is one set of rules. What
//! this protocol says in another way is kept here, connection by connection:
//!
//! * Requests are answered in their order, and an answer can be read only by who knows the question:
//!   there is a queue of what the answers will look like. A request that needs no replica, or that
//!   cannot be understood, stands in the queue with the others.
//! * One request may be several operations (to set many watches again, to remove watches of any
//!   kind); the answer to the last one is the answer to all.
//! * Watches have no numbers, but paths and kinds (`watches`); what would be told by several
//!   watches of one client is told once.
//! * The answer to a failed request has no body, and a failed multi is a success with failures
//!   inside.
//!
//! docs/COMPATIBILITY.md says what differs from ZooKeeper, and why.

mod codec;
mod keeper;
mod numbers;
mod reply;
mod request;
mod watches;

use std::collections::{BTreeSet, VecDeque};

use bytes::{Buf, Bytes, BytesMut};
use conclave_proto::frame::{HEADER_BYTES, next_frame};
use conclave_proto::message::{Connect, PROTOCOL_VERSION};
use conclave_proto::request::{ReadLevel, Response};
use conclave_proto::{
    ClientMessage, ErrorCode, Event, EventKind, Fault, Op, Reply, Secret, ServerMessage, SessionId,
    WatchId, Xid, ZPath, Zxid,
};

use crate::limits::{HANDSHAKE_FRAME_BYTES, JUTE_FRAME_BYTES};

use super::words::{self, Traffic};
use super::{Inbound, Malformed, Then};
use codec::Body;
use keeper::Dialect;
use numbers::{Code, PING_XID, opcode};
use request::{Answer, Asked, Rearm};
use watches::{Slot, Watches};

/// What there is to know of a connection in order to understand and to be understood.
#[derive(Debug)]
pub struct Connection {
    stage: Stage,
    /// What waits for an answer, in order.
    pending: VecDeque<Pending>,
    /// A request of many operations, some of which are still to be asked.
    rest: Option<Rest>,
    watches: Watches,
    dialect: Dialect,
    /// The event that was sent last, unless something else was sent since then.
    last_event: Option<(Zxid, EventKind, ZPath)>,
    /// The watches that it was meant for.
    last_told: Vec<WatchId>,
    /// What the watch that is being set again has missed.
    missed: Vec<Event>,
    /// What went wrong with a request of many operations.
    failed: Option<Code>,
    /// Whether one of its operations succeeded.
    succeeded: bool,
    /// The server is about to stop: the connection ends when everything is answered.
    leaving: bool,
    session: Option<(SessionId, u32)>,
    /// What was received and sent.
    pub traffic: Traffic,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing has come.
    New,
    /// The handshake has come.
    Greeted { with_read_only: bool },
    /// There is a session.
    Open,
}

#[derive(Debug)]
struct Pending {
    xid: i32,
    answer: Answer,
}

/// What is left of a request of many operations.
#[derive(Debug)]
enum Rest {
    Rearm { xid: i32, rearm: Rearm },
    Unwatch { xid: i32, path: ZPath, slots: Vec<Slot> },
}

impl Connection {
    /// A new one; the key makes the numbers of its watches impossible to guess.
    pub fn new(key: u64) -> Connection {
        Connection {
            stage: Stage::New,
            pending: VecDeque::new(),
            rest: None,
            watches: Watches::new(key),
            dialect: Dialect::ZooKeeper,
            last_event: None,
            last_told: Vec::new(),
            missed: Vec::new(),
            failed: None,
            succeeded: false,
            leaving: false,
            session: None,
            traffic: Traffic::default(),
        }
    }

    /// Its session and the session's timeout in ms.
    pub fn session(&self) -> Option<(SessionId, u32)> {
        self.session
    }

    /// The paths that it watches, in order.
    pub fn watched(&self) -> Vec<ZPath> {
        self.watches.paths().cloned().collect()
    }

    /// Takes the next thing that the client says from what has been received; `None`: more has to
    /// be received first.
    ///
    /// # Errors
    /// If the bytes do not follow the protocol.
    pub fn next(&mut self, received: &mut BytesMut) -> Result<Option<Inbound>, Malformed> {
        match self.stage {
            Stage::New => {
                if let Some(word) = words::in_front(received) {
                    return Ok(Some(Inbound::Word(word)));
                }
                let Some(frame) = next_frame(received, HANDSHAKE_FRAME_BYTES)? else {
                    return Ok(None);
                };
                self.greet(frame).map(Some)
            }
            Stage::Greeted { .. } => Ok(None),
            Stage::Open => {
                if let Some(inbound) = self.go_on() {
                    return Ok(Some(inbound));
                }
                let Some(frame) = next_frame(received, JUTE_FRAME_BYTES)? else { return Ok(None) };
                self.request(frame).map(Some)
            }
        }
    }

    /// Whether the last request has more operations.
    pub fn goes_on(&self) -> bool {
        self.rest.is_some()
    }

    /// Takes a ping, if that comes next.
    pub fn take_ping(&mut self, received: &mut BytesMut) -> bool {
        let takes = self.stage == Stage::Open && received.starts_with(&PING_FRAME);
        if takes {
            received.advance(PING_FRAME.len());
            self.traffic.received += 1;
        }
        takes
    }

    fn greet(&mut self, frame: Bytes) -> Result<Inbound, Malformed> {
        let length = frame.len();
        let (connect, with_read_only) = read_connect(Body::new(frame)).map_err(|_| {
            Malformed(format!("a handshake of {length} bytes that cannot be understood"))
        })?;
        self.stage = Stage::Greeted { with_read_only };
        Ok(Inbound::Message(ClientMessage::Connect(connect)))
    }

    fn request(&mut self, frame: Bytes) -> Result<Inbound, Malformed> {
        self.traffic.received += 1;
        let length = frame.len();
        let mut body = Body::new(frame);
        let (Ok(xid), Ok(kind)) = (body.int(), body.int()) else {
            return Err(Malformed(format!("a request of {length} bytes")));
        };
        let asked = request::understand(kind, &mut body, &self.watches, self.dialect)
            .unwrap_or_else(|code| Asked::Known(Answer::Error { code, close: false }));
        let rest = match asked {
            Asked::Op(op, answer) => return Ok(self.ask(xid, op, answer)),
            Asked::Known(answer) => {
                if matches!(answer, Answer::Advertised { .. }) {
                    self.dialect = Dialect::Keeper;
                }
                return Ok(self.take_turn(xid, answer));
            }
            Asked::Ping => return Ok(Inbound::Message(ClientMessage::Ping)),
            Asked::Rearm(rearm) => Rest::Rearm { xid, rearm },
            Asked::Unwatch(path, slots) => Rest::Unwatch { xid, path, slots },
        };
        self.rest = Some(rest);
        Ok(self.go_on().expect("such a request has one operation at least"))
    }

    /// The next operation of a request of many.
    fn go_on(&mut self) -> Option<Inbound> {
        match self.rest.take()? {
            Rest::Rearm { xid, mut rearm } => Some(match rearm.next(&self.watches) {
                Ok(Some((op, wanted))) => {
                    self.rest = Some(Rest::Rearm { xid, rearm });
                    self.ask(xid, op, Answer::Rearmed(wanted))
                }
                Ok(None) => self.take_turn(xid, Answer::AllRearmed),
                Err(code) => self.take_turn(xid, Answer::Error { code, close: false }),
            }),
            Rest::Unwatch { xid, path, mut slots } => {
                let slot = slots.pop()?;
                let last = slots.is_empty();
                let op = Op::Unwatch { id: self.watches.id(&path, slot) };
                if !last {
                    self.rest = Some(Rest::Unwatch { xid, path: path.clone(), slots });
                }
                Some(self.ask(xid, op, Answer::Unwatched { path, slot, last }))
            }
        }
    }

    fn ask(&mut self, xid: i32, op: Op, answer: Answer) -> Inbound {
        self.pending.push_back(Pending { xid, answer });
        let (xid, acked, level) = (Xid(0), Xid(0), ReadLevel::Local);
        Inbound::Message(ClientMessage::Request { xid, acked, level, op })
    }

    fn take_turn(&mut self, xid: i32, answer: Answer) -> Inbound {
        self.pending.push_back(Pending { xid, answer });
        Inbound::Known
    }

    /// Appends what a client is to be told.
    pub fn write(&mut self, message: &ServerMessage, out: &mut BytesMut) -> Then {
        self.traffic.sent += 1;
        match message {
            ServerMessage::Connected(connected) => {
                reply::put_connected(Some(connected), self.knows_read_only(), out);
                self.stage = Stage::Open;
                self.session = Some((connected.session, connected.timeout_ms));
            }
            ServerMessage::Refused(refused) => {
                let greeted = matches!(self.stage, Stage::Greeted { .. });
                if greeted && refused.code == ErrorCode::SessionExpired {
                    reply::put_connected(None, self.knows_read_only(), out);
                }
                // Any other refusal is a closed connection: the client tries the next server.
                return Then::Close;
            }
            ServerMessage::Response(response) => {
                self.last_event = None;
                return self.respond(response, out);
            }
            ServerMessage::Event { watch, event, .. } => self.tell(*watch, event, out),
            ServerMessage::Pong { zxid, .. } => {
                let zxid = if self.is_rearming() { Zxid::ZERO } else { *zxid };
                reply::put_header(PING_XID, zxid, Code::OK, out);
            }
            // There is no word for either.
            ServerMessage::Gap { .. } => {}
            ServerMessage::GoAway { .. } => self.leaving = true,
        }
        self.then()
    }

    /// Whether nothing more is to be read from the client.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    fn then(&self) -> Then {
        if self.leaving && self.pending.is_empty() { Then::Close } else { Then::GoOn }
    }

    /// Whether watches are being set again that may yet have something to tell. Until then nothing
    /// may say how far the client has heard: if the connection breaks in between, its next setWatches
    /// asks from there.
    fn is_rearming(&self) -> bool {
        matches!(self.rest, Some(Rest::Rearm { .. }))
            || matches!(self.pending.front(), Some(Pending { answer: Answer::Rearmed(_), .. }))
    }

    fn knows_read_only(&self) -> bool {
        self.stage == Stage::Greeted { with_read_only: true }
    }

    /// A watch that fires once has fired for an event of which the client may not know.
    pub fn spend(&mut self, watch: WatchId, path: &ZPath) {
        self.watches.fired(watch, path);
    }

    fn tell(&mut self, watch: WatchId, event: &Event, out: &mut BytesMut) {
        if let Some(Pending { answer: Answer::Rearmed(wanted), .. }) = self.pending.front()
            && watch == self.watches.id(&wanted.path, Slot::of(wanted.kind))
        {
            self.missed.push(event.clone());
            return;
        }
        if !self.watches.is_told(watch, &event.path) {
            return;
        }
        self.watches.fired(watch, &event.path);
        let told = (event.zxid, event.kind, event.path.clone());
        // One change may fire several watches of a client, which is told once; a watch that fires
        // twice knows of two changes.
        if self.last_event.as_ref() != Some(&told) || self.last_told.contains(&watch) {
            let zxid = (!self.is_rearming()).then_some(event.zxid);
            reply::put_event(zxid, event, out);
            self.last_event = Some(told);
            self.last_told.clear();
        }
        self.last_told.push(watch);
    }

    fn respond(&mut self, response: &Response, out: &mut BytesMut) -> Then {
        let Some(Pending { xid, answer }) = self.pending.pop_front() else { return Then::Close };
        if self.pending.is_empty() {
            // A queue that was long once is not kept for ever.
            self.pending.shrink_to(QUEUE_KEPT);
        }
        // Who somebody is has nothing to do with the history.
        let is_history = !matches!(answer, Answer::Authenticated);
        let zxid = if is_history { response.zxid } else { Zxid::ZERO };
        let code = match (&answer, &response.result) {
            (Answer::Error { code, close }, _) => {
                // What went wrong with parts of it is not said of the next request of many.
                self.failed = None;
                reply::put_header(xid, zxid, *code, out);
                return if *close { Then::Close } else { self.then() };
            }
            (Answer::HasWatch(path, slots), _) => {
                let found = slots.iter().any(|slot| self.watches.has(path, *slot));
                if found { Code::OK } else { Code::NO_WATCHER }
            }
            (Answer::Sasl | Answer::Advertised { .. }, _) => {
                reply::put_reply(xid, zxid, &answer, &Reply::Done, out);
                return self.then();
            }
            (Answer::Rearmed(_) | Answer::AllRearmed | Answer::Unwatched { .. }, result) => {
                match self.part_done(answer, result, out) {
                    Some(code) => code,
                    None => return self.then(),
                }
            }
            (answer, Ok(reply)) if let Some(code) = reply::too_much(answer, reply) => code,
            (_, Ok(reply)) => {
                reply::put_reply(xid, zxid, &answer, reply, out);
                self.watch(answer, reply);
                return self.then();
            }
            (Answer::Multi(kinds), Err(fault)) if is_of_one_part(fault.code) => {
                reply::put_failed_multi(xid, zxid, kinds, *fault, out);
                return self.then();
            }
            (_, Err(fault)) => {
                self.watch_missing(answer, *fault);
                Code::of(fault.code)
            }
        };
        reply::put_header(xid, zxid, code, out);
        let closes = code.ends_connection() || code == Code::AUTH_FAILED;
        if closes { Then::Close } else { self.then() }
    }

    /// One operation of a request of many is done: the answer to the request, if it was the last.
    fn part_done(
        &mut self,
        answer: Answer,
        result: &Result<Reply, Fault>,
        out: &mut BytesMut,
    ) -> Option<Code> {
        match (answer, result) {
            (Answer::Rearmed(wanted), Ok(_)) => {
                let missed = std::mem::take(&mut self.missed);
                if missed.is_empty() || !wanted.kind.is_one_shot() {
                    self.watches.add(wanted);
                }
                latest(&missed).into_iter().for_each(|event| reply::put_event(None, event, out));
                None
            }
            (Answer::Rearmed(_), Err(fault)) => {
                self.missed = Vec::new();
                // A node that may not be read is as silent as it is to a new watch.
                if fault.code != ErrorCode::NoAuth {
                    self.failed = Some(Code::of(fault.code));
                }
                None
            }
            (Answer::Unwatched { path, slot, last }, _) => {
                self.succeeded |= self.watches.remove(&path, slot);
                if !last {
                    return None;
                }
                let any = std::mem::take(&mut self.succeeded);
                Some(if any { Code::OK } else { Code::NO_WATCHER })
            }
            _ => Some(self.failed.take().unwrap_or(Code::OK)),
        }
    }

    /// The watches that were wanted are set.
    fn watch(&mut self, answer: Answer, reply: &Reply) {
        match (answer, reply) {
            (Answer::MultiRead(_, reads), Reply::MultiRead(results)) => {
                for ((_, answer), result) in reads.into_iter().zip(results) {
                    match result {
                        Ok(reply) if reply::too_much(&answer, reply).is_some() => {}
                        Ok(reply) => self.watch(answer, reply),
                        Err(fault) => self.watch_missing(answer, *fault),
                    }
                }
            }
            (
                Answer::Stat(Some(wanted))
                | Answer::Data(Some(wanted))
                | Answer::Children { watch: Some(wanted), .. }
                | Answer::Filtered { watch: Some(wanted), .. }
                | Answer::Watching(wanted),
                _,
            ) => self.watches.add(wanted),
            _ => {}
        }
    }

    /// To ask for a node that does not exist sets the watch all the same.
    fn watch_missing(&mut self, answer: Answer, fault: Fault) {
        if let (Answer::Stat(Some(wanted)), ErrorCode::NoNode) = (answer, fault.code) {
            self.watches.add(wanted);
        }
    }
}

/// The last thing that happened to each node, and the last to its children, in order. A client asks
/// for what came after the last answer that it has had, and may have heard much of that before: so
/// it is told once more how things are, not of nodes that went and are there again.
fn latest(missed: &[Event]) -> Vec<&Event> {
    let mut seen = BTreeSet::new();
    let mut latest: Vec<&Event> = missed
        .iter()
        .rev()
        .filter(|event| seen.insert((&event.path, event.kind == EventKind::ChildrenChanged)))
        .collect();
    latest.reverse();
    latest
}

/// A ping as clients send it: a length, its own number, and what it is.
const PING_FRAME: [u8; 12] = {
    let ([a, b, c, d], [e, f, g, h]) = (PING_XID.to_be_bytes(), opcode::PING.to_be_bytes());
    [0, 0, 0, 8, a, b, c, d, e, f, g, h]
};

/// The most places for requests that an idle connection keeps.
const QUEUE_KEPT: usize = 64;

/// Whether an error says something of one operation of a multi, not of the whole.
fn is_of_one_part(code: ErrorCode) -> bool {
    !matches!(
        code,
        ErrorCode::SessionExpired
            | ErrorCode::SessionMoved
            | ErrorCode::Throttled
            | ErrorCode::Unavailable
            | ErrorCode::OutcomeUnknown
            | ErrorCode::NoSpace
            | ErrorCode::NotReadOnly
    )
}

/// A handshake, and whether it has the last field, which clients of before 3.4 do not know.
fn read_connect(mut body: Body) -> Result<(Connect, bool), Code> {
    // The version of the protocol: there is only one.
    body.int()?;
    let last_zxid = body.zxid()?;
    let timeout_ms = u32::try_from(body.int()?).unwrap_or(0);
    let session = SessionId(body.unsigned_long()?);
    let password = body.buffer()?.unwrap_or_default();
    let with_read_only = body.end().is_err();
    let read_only = with_read_only && body.bool()?;
    body.end()?;
    // A password of another length is a wrong one. A client without a session sends any.
    let secret = Secret::new(password[..].try_into().unwrap_or([0; 16]));
    let session = (session != SessionId::NONE).then_some((session, secret));
    let version = PROTOCOL_VERSION;
    Ok((Connect { version, session, timeout_ms, last_zxid, read_only }, with_read_only))
}

/// The bytes of a frame's length, which a four-letter word takes the place of.
const _: () = assert!(HEADER_BYTES == words::WORD_BYTES);
