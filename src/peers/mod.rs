//! The links between servers.
//!
//! Each server dials every other one: on the link it dialled it sends, on those it accepted it
//! hears. So there are two links between two servers, and each has one writer:
//!
//! ```text
//!   server 1 ── dialled by 1 ──▶ server 2
//!   server 1 ◀── dialled by 2 ── server 2
//! ```
//!
//! A link begins with a handshake in which both ends say who they are and of which ensemble
//! ([`handshake`]); after that come frames. Two servers are linked when both links stand: that is
//! what [`Event::Up`] and [`Event::Down`] tell. With keys, a link is within TLS, and both ends have
//! to show the certificate of the member they say they are ([`crate::net`]). A link may lose any suffix of what was sent, but
//! nothing in the middle.
//!
//! What waits for a peer that does not drain its link is bounded: past the bound, or after a
//! deadline without progress, the link is cut and made anew.

pub mod codec;
mod dial;
mod frame;
pub mod handshake;
mod hear;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use conclave_proto::ServerId;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::timeout;

use crate::limits::{PEER_OUTBOX_BYTES, STRANGERS, STRANGERS_PER_ADDRESS};
use crate::net::{Crowd, Port, WatchedKeys, WriteHalf};
use crate::replica::PeerMessage;

pub use frame::{Chunk, Frame};

/// How long a link may make no progress while something waits to be sent.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// An outbox that has grown beyond this is given back when it is empty.
const KEPT_OUTBOX_BYTES: usize = 1 << 20;

/// Who this server is and whom it links with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name of the ensemble.
    pub cluster: String,
    /// This server.
    pub me: ServerId,
    /// The other servers and where to dial them, `host:port`.
    pub others: Vec<(ServerId, String)>,
    /// Those who vote, in the order of their numbers; two servers with other voters do not link.
    pub voters: Vec<ServerId>,
    /// A number that only this process has: two that say they are the same server are found out.
    pub instance: u64,
    /// Where the dice for back-off start.
    pub seed: u64,
    /// What this server shows the others, and checks them by; `None`: links are plaintext, and a
    /// server is believed who it says it is.
    pub keys: Option<WatchedKeys>,
}

/// What happens on the links.
#[derive(Debug)]
pub enum Event {
    /// Both links to this server stand; what was sent before may be lost.
    Up(ServerId),
    /// One of the links to this server broke.
    Down(ServerId),
    /// Somebody who dialled was turned away.
    Refused {
        /// From where.
        address: SocketAddr,
        /// Why.
        why: String,
    },
    /// A server said something.
    Said {
        /// Who.
        from: ServerId,
        /// What.
        frame: Frame,
    },
}

/// What the links have been through, for those who measure.
#[derive(Debug, Default)]
pub struct Counters {
    /// Handshakes refused, by either end.
    pub refused: Cell<u64>,
    /// Links closed because of bytes that are no frames or no messages.
    pub malformed: Cell<u64>,
    /// Links cut because the peer did not drain them.
    pub cut: Cell<u64>,
}

/// The links of one server. Lives on the thread of the loop.
#[derive(Clone)]
pub struct Links(Rc<Inner>);

struct Inner {
    settings: Settings,
    peers: BTreeMap<ServerId, Rc<Peer>>,
    sink: Box<dyn Fn(Event)>,
    counters: Counters,
    /// Accepted connections that have not said who they are.
    strangers: Crowd,
    /// The links made so far: each has a number of its own.
    links: Cell<u64>,
}

struct Peer {
    id: ServerId,
    address: String,
    outbound: RefCell<Outbound>,
    inbound: RefCell<Option<Inbound>>,
    /// What the owner was told last.
    up: Cell<bool>,
    /// Dial at once: the peer is there, for it has just dialled us.
    dial: Notify,
}

/// The link on which we send.
#[derive(Default)]
struct Outbound {
    link: Option<Link>,
    waiting: BytesMut,
    /// A task is at it, because the socket was full.
    draining: bool,
}

#[derive(Clone)]
struct Link {
    number: u64,
    /// The process that was dialled.
    instance: u64,
    socket: Rc<WriteHalf>,
    /// Told when the link is to be given up.
    cut: Rc<Notify>,
}

/// The link on which we hear.
struct Inbound {
    number: u64,
    /// The process that dialled.
    instance: u64,
    task: AbortHandle,
}

impl Links {
    /// Dials every other server and hears those who come to `port`, from now on. If there are keys,
    /// the port must be one that checks certificates with them.
    ///
    /// Must be called on a tokio `LocalRuntime`. `sink` is called from its tasks.
    pub fn start(settings: Settings, port: Option<Port>, sink: impl Fn(Event) + 'static) -> Links {
        let peer = |(id, address): &(ServerId, String)| {
            let peer = Peer {
                id: *id,
                address: address.clone(),
                outbound: RefCell::default(),
                inbound: RefCell::default(),
                up: Cell::new(false),
                dial: Notify::new(),
            };
            (*id, Rc::new(peer))
        };
        let inner = Rc::new(Inner {
            peers: settings.others.iter().map(peer).collect(),
            settings,
            sink: Box::new(sink),
            counters: Counters::default(),
            strangers: Crowd::new(STRANGERS, STRANGERS_PER_ADDRESS),
            links: Cell::new(0),
        });
        for peer in inner.peers.values() {
            spawn_local(dial::keep(inner.clone(), peer.clone()));
        }
        if let Some(port) = port {
            spawn_local(hear::accept(inner.clone(), port));
        }
        Links(inner)
    }

    /// Puts a message into the outbox of a server; it is lost if there is no link. It leaves with
    /// [`Links::flush`].
    pub fn send(&self, to: ServerId, message: &PeerMessage) {
        self.enqueue(to, |out| frame::write_message(out, message));
    }

    /// Puts a chunk of a snapshot into the outbox of a server.
    pub fn send_chunk(&self, to: ServerId, chunk: &Chunk) {
        self.enqueue(to, |out| frame::write_chunk(out, chunk));
    }

    /// Tells the sender of a snapshot how many of its chunks have been dealt with.
    pub fn send_credit(&self, to: ServerId, sync: u64, chunks: u32) {
        self.enqueue(to, |out| frame::write_credit(out, sync, chunks));
    }

    fn enqueue(&self, to: ServerId, write: impl FnOnce(&mut BytesMut)) {
        let Some(peer) = self.0.peers.get(&to) else { return };
        let mut outbound = peer.outbound.borrow_mut();
        let Some(link) = outbound.link.clone() else { return };
        write(&mut outbound.waiting);
        if outbound.waiting.len() > PEER_OUTBOX_BYTES {
            tracing::warn!(peer = %to, bytes = outbound.waiting.len(),
                "cutting the link to server {to}: it does not take what is sent to it");
            self.0.counters.cut.set(self.0.counters.cut.get() + 1);
            outbound.give_up(&link);
        }
    }

    /// Sends what waits: one write to each server.
    pub fn flush(&self) {
        for peer in self.0.peers.values() {
            if !peer.outbound.borrow().waiting.is_empty() {
                flush(&self.0, peer);
            }
        }
    }

    /// The bytes that wait to be sent to a server.
    pub fn waiting(&self, to: ServerId) -> usize {
        self.0.peers.get(&to).map_or(0, |peer| peer.outbound.borrow().waiting.len())
    }

    /// The bytes that wait to be sent to all servers.
    pub fn waiting_in_all(&self) -> usize {
        self.0.peers.values().map(|peer| peer.outbound.borrow().waiting.len()).sum()
    }

    /// How many servers this one is linked with.
    pub fn up(&self) -> usize {
        self.0.peers.values().filter(|peer| peer.up.get()).count()
    }

    /// What the links have been through.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }
}

impl Inner {
    fn next_number(&self) -> u64 {
        self.links.set(self.links.get() + 1);
        self.links.get()
    }

    /// Tells the owner when the state of a pair of links has changed.
    fn report(&self, peer: &Peer) {
        let up = peer.outbound.borrow().link.is_some() && peer.inbound.borrow().is_some();
        if peer.up.replace(up) != up {
            (self.sink)(if up { Event::Up(peer.id) } else { Event::Down(peer.id) });
        }
    }
}

impl Outbound {
    fn give_up(&mut self, link: &Link) {
        if self.link.as_ref().is_some_and(|current| current.number == link.number) {
            self.waiting = BytesMut::new();
            self.draining = false;
            self.link = None;
            link.cut.notify_one();
        }
    }

    /// Writes as much as the socket takes. False: some is left, and the socket is full.
    fn write(&mut self) -> bool {
        let Some(link) = self.link.clone() else { return true };
        match link.socket.send(&mut self.waiting) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(_) => self.give_up(&link),
        }
        if self.waiting.capacity() > KEPT_OUTBOX_BYTES {
            self.waiting = BytesMut::new();
        }
        true
    }
}

fn flush(inner: &Rc<Inner>, peer: &Rc<Peer>) {
    let mut outbound = peer.outbound.borrow_mut();
    if outbound.draining || outbound.write() {
        return;
    }
    outbound.draining = true;
    let link = outbound.link.clone().expect("a full socket is a link");
    spawn_local(drain(inner.clone(), peer.clone(), link));
}

/// Sends the rest when the socket takes it; gives the link up if it takes nothing for too long.
async fn drain(inner: Rc<Inner>, peer: Rc<Peer>, link: Link) {
    loop {
        let writable = timeout(DRAIN_DEADLINE, link.socket.writable()).await;
        let mut outbound = peer.outbound.borrow_mut();
        if outbound.link.as_ref().is_none_or(|current| current.number != link.number) {
            return;
        }
        if writable.is_err() {
            tracing::warn!(peer = %peer.id, bytes = outbound.waiting.len(),
                "cutting the link to server {}: nothing could be sent for {DRAIN_DEADLINE:?}",
                peer.id);
            inner.counters.cut.set(inner.counters.cut.get() + 1);
            outbound.give_up(&link);
            return;
        }
        if outbound.write() {
            outbound.draining = false;
            return;
        }
    }
}

/// Makes room for what comes next. Entries keep the memory that they came in, so it is filled to
/// its end before new memory is taken.
fn make_room(received: &mut BytesMut) {
    if received.capacity() - received.len() < frame::READ_BYTES / 4 {
        received.reserve(frame::READ_BYTES.max(received.len()));
    }
}

/// Reads frames from a link until it breaks, handing each to `hear`.
async fn read_frames(
    socket: &mut (impl AsyncRead + Unpin),
    mut hear: impl FnMut(Bytes) -> Result<(), String>,
) -> Result<(), String> {
    let mut received = BytesMut::new();
    loop {
        make_room(&mut received);
        match socket.read_buf(&mut received).await {
            Ok(0) => return Ok(()),
            Err(error) => {
                tracing::debug!(%error, "a link broke");
                return Ok(());
            }
            Ok(_) => {}
        }
        while let Some(frame) = frame::next(&mut received).map_err(|error| error.to_string())? {
            hear(frame)?;
        }
    }
}
