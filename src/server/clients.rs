//! All clients of a server.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use conclave_proto::{ErrorCode, Identity, ServerId, ServerMessage};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_local;

use crate::limits::{
    ALL_ASKED_BYTES, BACKOFF_MS, HANDSHAKES_PER_ADDRESS, IDENTITY_BYTES, UNFINISHED_BYTES,
};
use crate::net::{Certificate, Crowd, Incoming};
use crate::replica::{ConnId, Input, ToClient};
use crate::wire::words::{ConnectionFacts, Traffic};
use crate::wire::{Wire, Word};

use super::audit::{Audit, Claimed, Record};
use super::clock::{Clock, Entropy};
use super::connection::{self, Client, Flushed, Held, State, refusal};
use super::inbox::Inbox;
use super::metrics::Metrics;
use super::passwords::Passwords;
use super::reader::SHARED_BYTES;
use super::settings::Settings;

/// How long a client that is refused for lack of room should wait, in ms.
const NO_ROOM_BACKOFF_MS: u32 = 1000;

/// The clients of a server, and what their connections share.
pub(super) struct Clients {
    pub(super) id: ServerId,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) inbox: Rc<Inbox>,
    pub(super) audit: Audit,
    pub(super) passwords: Rc<Passwords>,
    /// The four-letter words that are answered.
    pub(super) words: BTreeSet<Word>,
    /// What ZooKeeper's clients have sent and received.
    pub(super) traffic: Cell<Traffic>,
    /// What new sessions are made of.
    pub(super) entropy: RefCell<Entropy>,
    /// What all connections read into.
    pub(super) shared: RefCell<BytesMut>,
    /// Their sockets, whether they have a place in the table or are about to be closed.
    sockets: Crowd,
    table: RefCell<Table>,
    /// Those for whom something has come in this turn.
    dirty: RefCell<Vec<Rc<Client>>>,
    /// What is held for all of them.
    held: Cell<Held>,
    /// As many bytes as may wait to be sent.
    most_waiting: usize,
    /// The bytes that large requests without an answer may have yet.
    room: Arc<Semaphore>,
    /// Those without a session.
    strangers: Crowd,
}

/// The clients by place; a [`ConnId`] is a place and how many connections came before.
#[derive(Default)]
struct Table {
    places: Vec<Option<Rc<Client>>>,
    free: Vec<usize>,
    accepted: u64,
}

const PLACE_BITS: u32 = 24;

impl Table {
    fn place(conn: ConnId) -> usize {
        usize::try_from(conn.0 & ((1 << PLACE_BITS) - 1)).expect("a place has 24 bits")
    }

    fn get(&self, conn: ConnId) -> Option<&Rc<Client>> {
        self.places.get(Table::place(conn))?.as_ref().filter(|client| client.id == conn)
    }

    fn insert(&mut self, make: impl FnOnce(ConnId) -> Client) -> Rc<Client> {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.accepted += 1;
        let client = Rc::new(make(ConnId(self.accepted << PLACE_BITS | place as u64)));
        self.places[place] = Some(client.clone());
        client
    }

    fn remove(&mut self, conn: ConnId) {
        if self.get(conn).is_some() {
            self.places[Table::place(conn)] = None;
            self.free.push(Table::place(conn));
        }
    }

    fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

impl Clients {
    pub(super) fn new(
        settings: &Settings,
        clock: Clock,
        metrics: Arc<Metrics>,
        inbox: Rc<Inbox>,
        guards: (Audit, Rc<Passwords>),
        limit: usize,
    ) -> Rc<Clients> {
        assert!(limit < 1 << PLACE_BITS, "a connection's place has {PLACE_BITS} bits");
        let (audit, passwords) = guards;
        Rc::new(Clients {
            id: settings.id,
            words: settings.words.clone(),
            traffic: Cell::default(),
            clock,
            metrics,
            inbox,
            audit,
            passwords,
            entropy: RefCell::new(Entropy::new()),
            shared: RefCell::new(BytesMut::with_capacity(SHARED_BYTES)),
            sockets: Crowd::shared(limit),
            table: RefCell::default(),
            dirty: RefCell::default(),
            held: Cell::default(),
            most_waiting: settings.outbox_bytes,
            room: Arc::new(Semaphore::new(ALL_ASKED_BYTES)),
            strangers: Crowd::new(limit, HANDSHAKES_PER_ADDRESS.min(limit.div_ceil(2))),
        })
    }

    /// A client has connected.
    pub(super) fn accept(self: &Rc<Self>, incoming: Incoming, mut wire: Wire) {
        let Incoming { address, reading, writing, certificate } = incoming;
        let place = self.sockets.admit(address.ip());
        let stranger = if place.is_some() { self.strangers.admit(address.ip()) } else { None };
        let (Some(place), Some(stranger)) = (place, stranger) else {
            self.metrics.connections_refused.inc();
            let message = refusal(
                ErrorCode::Throttled,
                "the server has as many connections as it takes, or as it takes from one address",
                NO_ROOM_BACKOFF_MS,
            );
            let mut out = BytesMut::new();
            wire.write(&message, &mut out);
            // If even this does not fit, the closed connection says it.
            writing.send(&mut out).ok();
            return;
        };
        self.metrics.connections_accepted.inc();
        let client = self.table.borrow_mut().insert(|id| Client::new(id, address, writing, wire));
        self.count();
        let mut identities = vec![Identity { scheme: "ip".into(), id: address.ip().to_string() }];
        let shown = certificate.and_then(x509);
        if let Some(Identity { scheme, id }) = shown.clone() {
            let address = address.to_string();
            self.audit.record(Record::Authenticated(Claimed {
                address,
                session: None,
                scheme,
                id,
            }));
        }
        identities.extend(shown);
        let (clients, known) = (self.clone(), client.clone());
        let task = connection::converse(clients, known, reading, identities, stranger, place);
        let task = spawn_local(task).abort_handle();
        *client.task.borrow_mut() = Some(task);
    }

    fn count(&self) {
        let open = self.table.borrow().len();
        self.metrics.connections.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    /// The client of a connection that has not been closed.
    pub(super) fn get(&self, conn: ConnId) -> Option<Rc<Client>> {
        self.table.borrow().get(conn).cloned()
    }

    /// What the replica has for a client; it leaves with [`Clients::flush`], or at once if there is no
    /// room for more.
    pub(super) fn deliver(self: &Rc<Self>, conn: ConnId, what: &ToClient) {
        let Some(client) = self.get(conn) else { return };
        let mut state = client.state.borrow_mut();
        match what {
            ToClient::Message(message) => {
                if !state.append(self, message) {
                    drop(state);
                    self.drop_unread(&client);
                    return;
                }
            }
            ToClient::Spent(watch, path) => {
                state.spend(*watch, path);
                return;
            }
            ToClient::Identities(bytes) => {
                state.weigh_identities(*bytes);
                return;
            }
            ToClient::Close => state.end(),
            ToClient::Drop => {
                drop(state);
                self.drop_unread(&client);
                return;
            }
        }
        self.recount(&mut state);
        let is_dirty = mem::replace(&mut state.dirty, true);
        drop(state);
        if !is_dirty {
            self.dirty.borrow_mut().push(client);
        }
        if self.waiting() > self.most_waiting {
            self.flush();
        }
    }

    /// Drops a client that does not read what it is sent.
    pub(super) fn drop_unread(&self, client: &Rc<Client>) {
        tracing::info!(
            waiting = client.state.borrow().waiting(),
            "dropping a client that does not read what it is sent"
        );
        self.metrics.slow_consumers.inc();
        client.reset();
        self.remove(client);
    }

    /// Sends what has come in this turn: one write to each client.
    pub(super) fn flush(self: &Rc<Self>) {
        let mut dirty = self.dirty.take();
        for client in dirty.drain(..) {
            let mut state = client.state.borrow_mut();
            state.dirty = false;
            state.adapt();
            if !state.is_draining() {
                let flushed = state.write();
                self.recount(&mut state);
                drop(state);
                self.settle(&client, flushed);
            } else {
                self.recount(&mut state);
            }
        }
        // Its memory is used again in the next turn.
        self.dirty.replace(dirty);
        self.make_room();
    }

    /// Brings what is counted of all clients up to date with one of them.
    pub(super) fn recount(&self, state: &mut State) {
        let (before, now) = state.recount();
        let Held { waiting, asked, unfinished } = self.held.get();
        self.held.set(Held {
            waiting: waiting - before.waiting + now.waiting,
            asked: asked - before.asked + now.asked,
            unfinished: unfinished - before.unfinished + now.unfinished,
        });
    }

    /// Drops those for whom most waits, as long as too much waits for all.
    fn make_room(&self) {
        while self.waiting() > self.most_waiting {
            let fullest = {
                let table = self.table.borrow();
                let clients = table.places.iter().flatten();
                clients.max_by_key(|client| client.state.borrow().waiting()).cloned()
            };
            let Some(fullest) = fullest else { return };
            self.drop_unread(&fullest);
        }
    }

    /// So many bytes of a frame have come from a client that is not complete. If there is too much of
    /// such frames, those go first that have taken the longest: they are the ones that may never be
    /// complete.
    pub(super) fn hold(&self, client: &Client, bytes: usize) {
        {
            let mut state = client.state.borrow_mut();
            if !state.hold(&self.clock, bytes) {
                return;
            }
            self.recount(&mut state);
        }
        while self.held.get().unfinished > UNFINISHED_BYTES {
            let oldest = {
                let table = self.table.borrow();
                let since = |client: &Rc<Client>| client.state.borrow().unfinished_since_us();
                let clients = table.places.iter().flatten();
                let sending = clients.filter_map(|client| Some((since(client)?, client)));
                sending.min_by_key(|&(since, _)| since).map(|(_, client)| client.clone())
            };
            let Some(oldest) = oldest else { return };
            tracing::info!("dropping a client whose request has been coming for too long");
            self.metrics.unfinished.inc();
            oldest.reset();
            self.remove(&oldest);
        }
    }

    /// Whether there is room for a large request of so many bytes now.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.room.available_permits() >= bytes
    }

    /// Waits for room for a large request of so many bytes, in the order in which they came. What does
    /// not fit at all is no request.
    pub(super) fn room_for(
        &self,
        bytes: usize,
    ) -> impl Future<Output = Option<OwnedSemaphorePermit>> + use<> {
        let room = self.room.clone();
        let bytes = u32::try_from(bytes.min(ALL_ASKED_BYTES)).expect("the room is less than 4 GiB");
        async move { room.acquire_many_owned(bytes).await.ok() }
    }

    /// Does what follows from writing to a client.
    pub(super) fn settle(self: &Rc<Self>, client: &Rc<Client>, flushed: Flushed) {
        match flushed {
            Flushed::All => {}
            Flushed::Some => connection::drain(self, client),
            Flushed::Over => {
                if client.close() {
                    self.remove(client);
                    connection::linger(client);
                    client.resume.notify_one();
                }
            }
        }
        if client.state.borrow_mut().wants_resume(self) {
            client.resume.notify_one();
        }
    }

    /// Tells a client why there will be no session, or none any more, and closes.
    pub(super) fn refuse(self: &Rc<Self>, client: &Rc<Client>, code: ErrorCode, message: &str) {
        self.dismiss(client, &refusal(code, message, 0));
    }

    /// Tells a client to go on elsewhere, and closes.
    pub(super) fn send_away(self: &Rc<Self>, client: &Rc<Client>) {
        self.dismiss(client, &ServerMessage::GoAway { backoff_ms: BACKOFF_MS });
    }

    fn dismiss(self: &Rc<Self>, client: &Rc<Client>, last_words: &ServerMessage) {
        let flushed = {
            let mut state = client.state.borrow_mut();
            state.append(self, last_words);
            state.end();
            if state.is_draining() { return } else { state.write() }
        };
        self.settle(client, flushed);
    }

    /// Says something that is no message, and closes.
    pub(super) fn say(self: &Rc<Self>, client: &Rc<Client>, text: &str) {
        let flushed = {
            let mut state = client.state.borrow_mut();
            state.say(text);
            state.end();
            let flushed = state.write();
            self.recount(&mut state);
            flushed
        };
        self.settle(client, flushed);
        self.make_room();
    }

    /// A connection's task is about to end.
    pub(super) fn gone(&self, client: &Rc<Client>) {
        client.close();
        self.remove(client);
    }

    fn remove(&self, client: &Rc<Client>) {
        self.table.borrow_mut().remove(client.id);
        self.recount(&mut client.state.borrow_mut());
        self.count();
        if mem::take(&mut client.state.borrow_mut().opened) {
            self.inbox.push(Input::Closed(client.id));
        }
    }

    /// The bytes that wait to be sent to all clients.
    pub(super) fn waiting(&self) -> usize {
        self.held.get().waiting
    }

    /// The bytes of all clients' requests that have no answer yet.
    pub(super) fn asked(&self) -> usize {
        self.held.get().asked
    }

    /// The requests of all clients that have no answer yet.
    pub(super) fn outstanding(&self) -> usize {
        self.table.borrow().places.iter().flatten().map(|client| client.queued()).sum()
    }

    /// What is known of each of ZooKeeper's clients.
    pub(super) fn facts(&self, with_watches: bool) -> Vec<ConnectionFacts> {
        let table = self.table.borrow();
        table.places.iter().flatten().filter_map(|client| client.facts(with_watches)).collect()
    }

    /// Forgets what each of them has sent and received.
    pub(super) fn reset_traffic(&self) {
        for client in self.table.borrow().places.iter().flatten() {
            client.state.borrow_mut().reset_traffic();
        }
    }

    /// How many clients there are.
    pub(super) fn len(&self) -> usize {
        self.table.borrow().len()
    }
}

/// Whom a certificate names.
fn x509(certificate: Certificate) -> Option<Identity> {
    let id = certificate.subject;
    if id.is_empty() || id.len() > IDENTITY_BYTES {
        tracing::info!(id, "a client's certificate names nobody that an ACL could name");
        return None;
    }
    Some(Identity { scheme: "x509".into(), id })
}
