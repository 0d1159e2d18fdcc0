//! One client's connection: what is in flight on it, what waits to be sent, and its task.
//!
//! The task reads: it cuts what comes into messages and puts them into the inbox. The loop writes:
//! it puts what the replica says into the outbox of each client and, at the end of its turn, hands
//! each outbox to its socket with one system call. Only if a socket is full does a task wait for it.
//!
//! An idle connection has no buffer: what comes is read into one that all connections share, and
//! an outbox is given back when it is empty.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::ready;
use std::mem;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use conclave_proto::message::Refused;
use conclave_proto::{
    ClientMessage, Credentials, ErrorCode, Fault, Identity, Op, ServerMessage, WatchId, Xid, ZPath,
};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{sleep, timeout};

use crate::limits::{
    ALL_ASKED_BYTES, ASKED_ALWAYS_BYTES, ASKED_BYTES, CLIENT_ANSWERS_BYTES, CLIENT_OUTBOX_BYTES,
    IN_FLIGHT,
};
use crate::net::{Place, ReadHalf, WriteHalf};
use crate::replica::{ConnId, Input, is_heavy};
use crate::wire::words::{ConnectionFacts, Traffic};
use crate::wire::{Inbound, Malformed, Then, Wire};

use super::clients::Clients;
use super::clock::Clock;
use super::metrics::Kind;
use super::passwords;
use super::reader::{End, HEARD_BYTES, Reader};
use super::words;

/// How long a client may take until it has a session.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection that the server has closed waits for the client to close it too, so that
/// the last words are not lost.
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// How long a client may take nothing of what waits for it; then it is dropped.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// Nothing more is read from a client while this much waits to be sent to it.
const PAUSE_BYTES: usize = 1 << 20;
/// The bytes of answers that one turn should make for one client.
const BURST_BYTES: usize = 4 << 20;
/// The requests that a new connection may have in flight; doubled with every turn in which that is
/// not enough.
const FIRST_ALLOWANCE: usize = 4;
/// An outbox that has grown beyond this is given back when most of it is sent.
const KEPT_OUTBOX_BYTES: usize = 4 << 10;
/// The queue of requests in flight is given back when it is empty and has grown beyond this.
const KEPT_IN_FLIGHT: usize = 64;

/// A client's connection.
pub(super) struct Client {
    pub(super) id: ConnId,
    /// Where it comes from.
    address: SocketAddr,
    pub(super) state: RefCell<State>,
    /// Rung when reading may go on, or the handshake is over.
    pub(super) resume: Notify,
    /// Rung when nothing more is sent: the task that waits for the socket lets go of it.
    cut: Notify,
    pub(super) task: RefCell<Option<AbortHandle>>,
}

/// What changes about it.
pub(super) struct State {
    /// `None`: nothing more is sent.
    socket: Option<Rc<WriteHalf>>,
    wire: Wire,
    waiting: BytesMut,
    /// The most that it has held since it last gave memory back.
    most_waiting: usize,
    /// How much of it, and of others, is counted among that of all clients.
    counted: Held,
    /// A task is at it, because the socket was full.
    draining: bool,
    /// Close once everything in `waiting` is sent.
    ending: bool,
    /// Something has come in this turn.
    pub(super) dirty: bool,
    /// The replica knows the connection.
    pub(super) opened: bool,
    /// There is a session.
    connected: bool,
    /// The task waits for [`Client::resume`].
    paused: bool,
    /// Requests without an answer.
    asked: VecDeque<Asked>,
    /// Their bytes.
    asked_bytes: usize,
    /// The bytes of a frame that has come in part, but for what a client always may have.
    unfinished_bytes: usize,
    /// Since when there are any, in µs.
    unfinished_since_us: u64,
    /// The bytes of the client's identities, which go with each of its writes.
    identity_bytes: usize,
    /// Pings without an answer.
    pings: usize,
    /// How many may be without an answer.
    allowance: usize,
    /// The client wanted more than that in this turn.
    held_back: bool,
    /// The size of the largest recent answer.
    largest: usize,
    /// The bytes of answers since the outbox was last empty.
    answers: usize,
}

/// The bytes that are held for a client, or for all of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    /// They wait to be sent.
    pub(super) waiting: usize,
    /// They are of requests without an answer.
    pub(super) asked: usize,
    /// They are of frames that have come in part.
    pub(super) unfinished: usize,
}

struct Asked {
    kind: Option<Kind>,
    at_us: u64,
    /// Its bytes, and those of the identities that go with it.
    bytes: usize,
    /// What it takes of the room for large requests.
    _room: Option<OwnedSemaphorePermit>,
    /// It may cost far more than its answer shows, or make others cost more: nothing more is read
    /// until it has its answer.
    is_heavy: bool,
}

/// How writing to a socket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flushed {
    /// Everything is sent.
    All,
    /// The socket is full.
    Some,
    /// Everything is sent and nothing more will be, or the connection broke.
    Over,
}

impl Client {
    pub(super) fn new(id: ConnId, address: SocketAddr, socket: WriteHalf, wire: Wire) -> Client {
        let state = State {
            socket: Some(Rc::new(socket)),
            wire,
            waiting: BytesMut::new(),
            most_waiting: 0,
            counted: Held::default(),
            draining: false,
            ending: false,
            dirty: false,
            opened: false,
            connected: false,
            paused: false,
            asked: VecDeque::new(),
            asked_bytes: 0,
            unfinished_bytes: 0,
            unfinished_since_us: 0,
            identity_bytes: 0,
            pings: 0,
            allowance: FIRST_ALLOWANCE,
            held_back: false,
            largest: 0,
            answers: 0,
        };
        let (resume, cut, task) = (Notify::new(), Notify::new(), RefCell::new(None));
        Client { id, address, state: RefCell::new(state), resume, cut, task }
    }

    /// Nothing more is sent: the other end sees the connection's end once it has read the rest.
    /// False: it was closed before.
    pub(super) fn close(&self) -> bool {
        let mut state = self.state.borrow_mut();
        state.waiting = BytesMut::new();
        state.asked = VecDeque::new();
        state.asked_bytes = 0;
        state.unfinished_bytes = 0;
        self.cut.notify_one();
        state.socket.take().is_some()
    }

    /// Ends the connection with what the system still holds for the client: it is not even worth a
    /// word more.
    pub(super) fn reset(&self) {
        if let Some(socket) = &self.state.borrow().socket {
            socket.socket().set_zero_linger().ok();
        }
        self.close();
        if let Some(task) = &*self.task.borrow() {
            task.abort();
        }
    }

    /// How many of its requests have no answer.
    pub(super) fn queued(&self) -> usize {
        self.state.borrow().asked.len()
    }

    /// What is known of it, if it is one of ZooKeeper's.
    pub(super) fn facts(&self, with_watches: bool) -> Option<ConnectionFacts> {
        let state = self.state.borrow();
        let Wire::ZooKeeper(wire) = &state.wire else { return None };
        Some(ConnectionFacts {
            address: self.address,
            session: wire.session(),
            queued: state.asked.len(),
            traffic: wire.traffic,
            watched: if with_watches { wire.watched() } else { Vec::new() },
        })
    }
}

impl State {
    /// Puts a message into the outbox. False: the client does not read what it is sent.
    pub(super) fn append(&mut self, clients: &Clients, message: &ServerMessage) -> bool {
        if self.socket.is_none() || self.ending {
            return true;
        }
        let before = self.waiting.len();
        match message {
            ServerMessage::Response(response) => {
                let error = response.result.as_ref().err().map(|fault| fault.code);
                self.answered(clients, error);
            }
            ServerMessage::Pong { .. } => self.pings = self.pings.saturating_sub(1),
            ServerMessage::Connected(_) => self.connected = true,
            ServerMessage::Refused(_)
            | ServerMessage::Event { .. }
            | ServerMessage::Gap { .. }
            | ServerMessage::GoAway { .. } => {}
        }
        if self.wire.write(message, &mut self.waiting) == Then::Close {
            self.ending = true;
        }
        self.most_waiting = self.most_waiting.max(self.waiting.len());
        let size = self.waiting.len() - before;
        if matches!(message, ServerMessage::Response(_)) {
            self.largest = self.largest.max(size);
            self.answers += size;
        }
        !self.is_overfull() || self.write() == Flushed::All || !self.is_overfull()
    }

    /// Whether more waits than a client that reads would let pile up. Answers to what it asked at
    /// once do not count, up to a bound: their number is limited when they are large.
    fn is_overfull(&self) -> bool {
        self.waiting.len() > CLIENT_OUTBOX_BYTES + self.answers.min(CLIENT_ANSWERS_BYTES)
    }

    /// From now on so many bytes go with each write.
    pub(super) fn weigh_identities(&mut self, bytes: usize) {
        self.identity_bytes = bytes;
    }

    /// A watch that fires once has fired for an event of which the client may not know.
    pub(super) fn spend(&mut self, watch: WatchId, path: &ZPath) {
        self.wire.spend(watch, path);
    }

    fn ask(&mut self, clients: &Clients, asked: Asked) {
        self.asked_bytes += asked.bytes;
        self.asked.push_back(asked);
        clients.recount(self);
    }

    /// Counts the oldest request in flight as answered.
    fn answered(&mut self, clients: &Clients, error: Option<ErrorCode>) {
        let Some(asked) = self.asked.pop_front() else { return };
        self.asked_bytes -= asked.bytes;
        let took_us = clients.clock.micros().saturating_sub(asked.at_us);
        if let Wire::ZooKeeper(wire) = &mut self.wire {
            wire.traffic.answered(took_us);
            let mut all = clients.traffic.get();
            all.answered(took_us);
            all.received += 1;
            all.sent += 1;
            clients.traffic.set(all);
        }
        if let Some(kind) = asked.kind {
            clients.metrics.answered(kind, error, took_us);
        }
        if self.asked.is_empty() && self.asked.capacity() > KEPT_IN_FLIGHT {
            self.asked = VecDeque::new();
        }
    }

    /// Puts a text into the outbox as it is.
    pub(super) fn say(&mut self, text: &str) {
        self.waiting.extend_from_slice(text.as_bytes());
        self.most_waiting = self.most_waiting.max(self.waiting.len());
    }

    pub(super) fn reset_traffic(&mut self) {
        if let Wire::ZooKeeper(wire) = &mut self.wire {
            wire.traffic = Traffic::default();
        }
    }

    pub(super) fn end(&mut self) {
        self.ending = true;
    }

    /// The bytes that wait to be sent.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Counts what is held for the client: what was counted before, and what is now.
    pub(super) fn recount(&mut self) -> (Held, Held) {
        let (waiting, asked) = (self.waiting.len(), self.asked_bytes);
        let now = Held { waiting, asked, unfinished: self.unfinished_bytes };
        (mem::replace(&mut self.counted, now), now)
    }

    /// So many bytes of a frame have come that is not complete. Whether that is something new.
    pub(super) fn hold(&mut self, clock: &Clock, bytes: usize) -> bool {
        let bytes = bytes.saturating_sub(ASKED_ALWAYS_BYTES);
        let before = mem::replace(&mut self.unfinished_bytes, bytes);
        if before == 0 && bytes > 0 {
            self.unfinished_since_us = clock.micros();
        }
        before != bytes
    }

    /// Since when a frame of the client has come in part, in µs; `None`: none has, or little of it.
    pub(super) fn unfinished_since_us(&self) -> Option<u64> {
        (self.unfinished_bytes > 0).then_some(self.unfinished_since_us)
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining
    }

    /// Writes as much as the socket takes.
    pub(super) fn write(&mut self) -> Flushed {
        let Some(socket) = self.socket.clone() else { return Flushed::Over };
        let sent = socket.send(&mut self.waiting);
        self.give_back();
        match sent {
            Ok(true) => {}
            Ok(false) => return Flushed::Some,
            Err(_) => return Flushed::Over,
        }
        self.answers = 0;
        if self.ending { Flushed::Over } else { Flushed::All }
    }

    /// Gives back the memory of a large outbox, once most of it is sent: what is sent still takes it.
    fn give_back(&mut self) {
        if self.most_waiting > KEPT_OUTBOX_BYTES && self.waiting.len() < self.most_waiting / 2 {
            self.waiting = BytesMut::from(&self.waiting[..]);
            self.most_waiting = self.waiting.len();
        }
    }

    /// Grants a client that wants it more requests in flight while the answers are small, and fewer
    /// when they are large, so that one turn does not make more than the outbox holds.
    pub(super) fn adapt(&mut self) {
        let fitting = (BURST_BYTES / self.largest.max(1)).clamp(1, IN_FLIGHT);
        if mem::take(&mut self.held_back) {
            self.allowance *= 2;
        }
        self.allowance = self.allowance.min(fitting);
        self.largest -= self.largest / 8;
    }

    /// Lets the task read on if it waits and may.
    pub(super) fn wants_resume(&mut self, clients: &Clients) -> bool {
        let resume = self.paused && self.may_read(clients);
        if resume {
            self.paused = false;
        }
        resume
    }

    fn may_read(&self, clients: &Clients) -> bool {
        let left = ALL_ASKED_BYTES.saturating_sub(clients.asked());
        self.socket.is_none()
            || (!self.ending
                && !self.wire.is_leaving()
                && self.asked.back().is_none_or(|asked| !asked.is_heavy)
                && self.asked.len() + self.pings < self.allowance
                && self.asked_bytes < left.clamp(ASKED_ALWAYS_BYTES, ASKED_BYTES)
                && self.waiting.len() < PAUSE_BYTES)
    }

    /// Takes a ping that the client says next, of what has come, if there is room for another.
    fn take_ping(&mut self, received: &mut BytesMut) -> bool {
        let takes = self.pings < self.allowance && self.wire.take_ping(received);
        self.pings += usize::from(takes);
        takes
    }

    /// What the client says next, of what has come.
    fn next(&mut self, received: &mut BytesMut) -> Result<Option<Inbound>, Malformed> {
        self.wire.next(received)
    }
}

/// Sends the rest of an outbox when its socket takes it; drops the client if it takes nothing for
/// too long.
pub(super) fn drain(clients: &Rc<Clients>, client: &Rc<Client>) {
    client.state.borrow_mut().draining = true;
    let (clients, client) = (clients.clone(), client.clone());
    spawn_local(async move {
        loop {
            let Some(socket) = client.state.borrow().socket.clone() else { return };
            let writable = tokio::select! {
                writable = timeout(DRAIN_DEADLINE, socket.writable()) => writable,
                () = client.cut.notified() => return,
            };
            drop(socket);
            let Ok(writable) = writable else {
                clients.drop_unread(&client);
                return;
            };
            let mut state = client.state.borrow_mut();
            let flushed = if writable.is_ok() { state.write() } else { Flushed::Over };
            clients.recount(&mut state);
            if flushed == Flushed::Some {
                continue;
            }
            state.draining = false;
            drop(state);
            clients.settle(&client, flushed);
            return;
        }
    });
}

/// Ends a connection's task some time after the server has closed it.
pub(super) fn linger(client: &Rc<Client>) {
    let client = client.clone();
    spawn_local(async move {
        sleep(LINGER).await;
        if let Some(task) = &*client.task.borrow() {
            task.abort();
        }
    });
}

/// The task of a connection: everything a client says, until one of both closes. Its socket has its
/// place until then.
pub(super) async fn converse(
    clients: Rc<Clients>,
    client: Rc<Client>,
    socket: ReadHalf,
    identities: Vec<Identity>,
    stranger: Place,
    _place: Place,
) {
    let mut reader = Reader::new(socket);
    let handshake = greet(&clients, &client, &mut reader, identities);
    let greeted = timeout(HANDSHAKE_DEADLINE, handshake).await;
    drop(stranger);
    let said = match greeted {
        Ok(Ok(())) => listen(&clients, &client, &mut reader).await,
        Ok(Err(end)) => Err(end),
        Err(_) => Err(End::Malformed(Malformed("no session in time".into()))),
    };
    if let Err(End::Word(word)) = said {
        words::answer(&clients, &client, word);
        // Whoever has nothing more to say may still read.
        while client.state.borrow().socket.is_some() {
            client.resume.notified().await;
        }
        reader.discard().await;
    } else if let Err(End::Malformed(why)) = said {
        clients.metrics.malformed.inc();
        tracing::debug!(%why, "closing a client's connection");
        clients.refuse(&client, ErrorCode::BadArguments, &why.to_string());
        reader.discard().await;
    }
    clients.gone(&client);
}

/// Until there is a session.
async fn greet(
    clients: &Clients,
    client: &Client,
    reader: &mut Reader,
    identities: Vec<Identity>,
) -> Result<(), End> {
    let connect = loop {
        let said = client.state.borrow_mut().next(&mut reader.received)?;
        match said {
            Some(Inbound::Message(ClientMessage::Connect(connect))) => break connect,
            Some(Inbound::Word(word)) => return Err(End::Word(word)),
            Some(_) => return Err(Malformed("the first message is no handshake".into()).into()),
            None => reader.fill(clients).await?,
        }
    };
    let conn = client.id;
    let fresh = clients.entropy.borrow_mut().fresh_session(clients.id);
    client.state.borrow_mut().opened = true;
    let numbered = client.state.borrow().wire.is_numbered();
    clients.inbox.push(Input::Opened { conn, identities, fresh, numbered });
    clients.inbox.push(Input::Client { conn, message: ClientMessage::Connect(connect) });
    loop {
        {
            let mut state = client.state.borrow_mut();
            if state.connected || state.socket.is_none() {
                return Ok(());
            }
            state.paused = true;
        }
        client.resume.notified().await;
    }
}

/// From then on.
async fn listen(
    clients: &Rc<Clients>,
    client: &Rc<Client>,
    reader: &mut Reader,
) -> Result<(), End> {
    loop {
        let paused = {
            let mut state = client.state.borrow_mut();
            if state.socket.is_none() {
                break;
            }
            state.paused = !state.may_read(clients);
            state.held_back |= state.paused;
            state.paused
        };
        if paused {
            meanwhile(clients, client, reader, HEARD_BYTES, client.resume.notified()).await;
            continue;
        }
        if let Some(bytes) = reader.lacks_room()
            && !client.state.borrow().wire.goes_on()
        {
            clients.hold(client, reader.received.len());
            reader.room = wait_for_room(clients, client, reader, bytes).await;
            continue;
        }
        let before = reader.received.len();
        let said = client.state.borrow_mut().next(&mut reader.received)?;
        let bytes = before - reader.received.len();
        let unfinished = if said.is_none() { reader.received.len() } else { 0 };
        clients.hold(client, unfinished);
        match said {
            Some(inbound) => {
                let goes_on = client.state.borrow().wire.goes_on();
                let room = if goes_on { None } else { reader.room.take() };
                match credentials(&inbound) {
                    Some((xid, credentials)) => {
                        let check = check(clients, client, xid, &credentials, (bytes, room));
                        meanwhile(clients, client, reader, HEARD_BYTES, check).await;
                    }
                    None => admit(clients, client, inbound, (bytes, room))?,
                }
            }
            None => {
                fetch(clients, client, reader).await?;
                if unfinished > 0 {
                    clients.inbox.push(Input::SignOfLife(client.id));
                }
            }
        }
    }
    reader.discard().await;
    Ok(())
}

/// Waits for more of what the client says; while there is no room for a large request, it is left to
/// the system.
async fn fetch(clients: &Clients, client: &Client, reader: &mut Reader) -> Result<(), End> {
    let Some(bytes) = reader.large_frame() else { return reader.fill(clients).await };
    if reader.room.is_none() && !clients.has_room_for(bytes) {
        let before = reader.received.len();
        reader.room = wait_for_room(clients, client, reader, bytes).await;
        if reader.received.len() > before {
            return Ok(());
        }
    }
    let room = reader.room.take();
    let (filled, room) = {
        let mut fill = pin!(reader.fill(clients));
        tokio::select! {
            biased;
            filled = &mut fill => (filled, room),
            // Until all of it has come, which may be never, others have the room.
            () = ready(()) => {
                drop(room);
                (fill.await, None)
            }
        }
    };
    reader.room = room;
    filled
}

/// Waits until there is room for a large request.
async fn wait_for_room(
    clients: &Clients,
    client: &Client,
    reader: &mut Reader,
    bytes: usize,
) -> Option<OwnedSemaphorePermit> {
    let most = reader.received.len() + HEARD_BYTES;
    meanwhile(clients, client, reader, most, clients.room_for(bytes)).await
}

/// Waits for something on which hangs whether the client is read on. What it sends meanwhile shows that
/// it is there, up to so many bytes that have come in all, and pings that come next are answered: neither
/// side takes the other for dead.
async fn meanwhile<T>(
    clients: &Clients,
    client: &Client,
    reader: &mut Reader,
    most: usize,
    awaited: impl Future<Output = T>,
) -> T {
    let mut awaited = pin!(awaited);
    let mut is_over = false;
    loop {
        while client.state.borrow_mut().take_ping(&mut reader.received) {
            let message = ClientMessage::Ping;
            clients.inbox.push(Input::Client { conn: client.id, message });
        }
        let hears = !is_over && reader.received.len() < most;
        tokio::select! {
            biased;
            awaited = &mut awaited => return awaited,
            heard = reader.hear(), if hears => match heard {
                Ok(()) => clients.inbox.push(Input::SignOfLife(client.id)),
                // Whoever reads on will see it, too.
                Err(_) => is_over = true,
            },
        }
    }
}

/// The password in a request that has one to be checked.
fn credentials(inbound: &Inbound) -> Option<(Xid, Bytes)> {
    match inbound {
        Inbound::Message(ClientMessage::Request {
            xid,
            op: Op::Authenticate { scheme, credentials },
            ..
        }) if scheme == passwords::SCHEME => Some((*xid, credentials.expose().clone())),
        Inbound::Message(_) | Inbound::Invalid { .. } | Inbound::Known | Inbound::Word(_) => None,
    }
}

/// Checks a password. Meanwhile nothing more is read from this client, since whatever comes next is
/// asked in the new name. If too many wait for that, the client is sent away: what it has asked behind
/// it must not be carried out in another name.
async fn check(
    clients: &Rc<Clients>,
    client: &Rc<Client>,
    xid: Xid,
    credentials: &Bytes,
    (bytes, room): (usize, Option<OwnedSemaphorePermit>),
) {
    let kind =
        Kind::of(&Op::Authenticate { scheme: String::new(), credentials: Credentials::default() });
    let at_us = clients.clock.micros();
    let asked = Asked { kind: Some(kind), at_us, bytes, _room: room, is_heavy: true };
    client.state.borrow_mut().ask(clients, asked);
    let (id, result) = clients.passwords.check(client.address, credentials).await;
    if result == Err(ErrorCode::Throttled) {
        clients.send_away(client);
        return;
    }
    let claimed = Identity { scheme: passwords::SCHEME.into(), id };
    let result = result.map_err(Fault::from);
    clients.inbox.push(Input::Checked { conn: client.id, xid, claimed, result });
}

/// Puts what a client says into the inbox.
fn admit(
    clients: &Clients,
    client: &Client,
    inbound: Inbound,
    (bytes, room): (usize, Option<OwnedSemaphorePermit>),
) -> Result<(), Malformed> {
    let conn = client.id;
    let mut state = client.state.borrow_mut();
    let identity_bytes = state.identity_bytes;
    let ask = |state: &mut State, kind, bytes, is_heavy| {
        let at_us = clients.clock.micros();
        state.ask(clients, Asked { kind, at_us, bytes, _room: room, is_heavy });
    };
    match inbound {
        Inbound::Message(ClientMessage::Connect(_)) => {
            return Err(Malformed("a second handshake".into()));
        }
        Inbound::Message(message) => {
            match &message {
                ClientMessage::Request { op, .. } => {
                    let with_it = if op.is_write() { identity_bytes } else { 0 };
                    ask(&mut state, Some(Kind::of(op)), bytes + with_it, is_heavy(op));
                }
                ClientMessage::Ping | ClientMessage::Connect(_) => state.pings += 1,
            }
            clients.inbox.push(Input::Client { conn, message });
        }
        Inbound::Invalid { xid, code, detail } => {
            ask(&mut state, None, bytes, false);
            tracing::debug!(xid = xid.0, detail, "a request is refused");
            clients.metrics.invalid.inc();
            clients.inbox.push(Input::Invalid { conn, xid, fault: code.into() });
        }
        Inbound::Known => {
            ask(&mut state, None, bytes, false);
            let fault = ErrorCode::BadArguments.into();
            clients.inbox.push(Input::Invalid { conn, xid: Xid(0), fault });
        }
        Inbound::Word(word) => {
            return Err(Malformed(format!("the word {} in place of a request", word.as_str())));
        }
    }
    Ok(())
}

/// The message that refuses a connection.
pub(super) fn refusal(code: ErrorCode, message: &str, backoff_ms: u32) -> ServerMessage {
    ServerMessage::Refused(Refused { code, message: message.into(), backoff_ms })
}
