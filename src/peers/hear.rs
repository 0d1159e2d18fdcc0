//! The links on which a server hears: it accepts them, once it is sure who dials.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::net::{Incoming, Place, Port, keep_alive};

use super::frame;
use super::handshake::{Hello, Refusal, Welcome};
use super::{DRAIN_DEADLINE, Event, Inbound, Inner, Peer, read_frames};

/// How long one who dials may take to say who it is.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// How many reasons the log is told at most until they are forgotten, and when that is.
const COMPLAINTS: usize = 100;
const COMPLAINTS_KEPT: Duration = Duration::from_secs(60);

/// What the log has been told of those who were turned away. They come again and again, and some
/// mean to fill it.
#[derive(Default)]
struct Complaints {
    told: RefCell<BTreeSet<(IpAddr, String)>>,
    /// How many it was not told of.
    more: Cell<u64>,
}

impl Complaints {
    /// Whether the log has not been told that one from this address was turned away for this.
    fn is_news(&self, address: SocketAddr, why: &str) -> bool {
        let mut told = self.told.borrow_mut();
        let is_news = told.len() < COMPLAINTS && told.insert((address.ip(), why.to_owned()));
        self.more.set(self.more.get() + u64::from(!is_news));
        is_news
    }

    async fn forget_every_minute(self: Rc<Self>) {
        loop {
            sleep(COMPLAINTS_KEPT).await;
            self.told.take();
            let more = self.more.take();
            if more > 0 {
                tracing::warn!(more, "refused {more} more links in the last minute");
            }
        }
    }
}

impl Inner {
    /// Whether another process than the one that dials is linked as that server: the one at the
    /// server's address, or else the one that came first. If each took the place of the other,
    /// neither would get on.
    fn has_twin(&self, hello: &Hello) -> bool {
        let peer = &self.peers[&hello.from];
        let dialled = peer.outbound.borrow().link.as_ref().map(|link| link.instance);
        let heard = peer.inbound.borrow().as_ref().map(|linked| linked.instance);
        dialled.or(heard).is_some_and(|instance| instance != hello.instance)
    }
}

/// Accepts links for ever.
pub(super) async fn accept(inner: Rc<Inner>, mut port: Port) {
    let complaints = Rc::new(Complaints::default());
    spawn_local(complaints.clone().forget_every_minute());
    loop {
        let incoming = port.accept().await;
        match inner.strangers.admit(incoming.address.ip()) {
            Some(place) => {
                spawn_local(welcome(inner.clone(), incoming, place, complaints.clone()));
            }
            None => inner.counters.refused.set(inner.counters.refused.get() + 1),
        }
    }
}

async fn welcome(
    inner: Rc<Inner>,
    mut incoming: Incoming,
    place: Place,
    complaints: Rc<Complaints>,
) {
    let greeted = timeout(HELLO_DEADLINE, greet(&inner, &mut incoming)).await;
    drop(place);
    let address = incoming.address;
    match greeted.unwrap_or_else(|_| Err("it does not say who it is".into())) {
        Ok(hello) => {
            let peer = inner.peers.get(&hello.from).expect("a member was greeted").clone();
            supersede(inner, peer, incoming, hello.instance);
        }
        Err(why) => {
            if complaints.is_news(address, &why) {
                tracing::warn!(%address, "refused a link from {address}: {why}");
            }
            inner.counters.refused.set(inner.counters.refused.get() + 1);
            (inner.sink)(Event::Refused { address, why });
        }
    }
}

async fn greet(inner: &Inner, incoming: &mut Incoming) -> Result<Hello, String> {
    let Incoming { reading, writing, certificate, .. } = incoming;
    keep_alive(writing.socket(), DRAIN_DEADLINE).map_err(|error| error.to_string())?;
    let hello = Hello::read(reading).await.map_err(|error| error.to_string())?;
    let settings = &inner.settings;
    let known = |id| inner.peers.contains_key(&id);
    let me = (settings.me, settings.instance);
    let mut welcome = Welcome::to(&hello, me, &settings.cluster, &settings.voters, known);
    // With keys, who has shown no certificate is nobody.
    let is_proven = settings.keys.is_none()
        || certificate.as_ref().is_some_and(|shown| shown.is_of(&settings.cluster, hello.from));
    if welcome.verdict.is_ok() && !is_proven {
        welcome.verdict = Err(Refusal::Unproven);
    }
    if welcome.verdict.is_ok() && inner.has_twin(&hello) {
        welcome.verdict = Err(Refusal::Twin);
    }
    writing.send_all(welcome.encode()).await.map_err(|error| error.to_string())?;
    match welcome.verdict {
        Ok(()) => Ok(hello),
        Err(refusal) => {
            let why = refusal.describe(hello.version);
            Err(format!("server {} of ensemble {:?}: {why}", hello.from, hello.cluster))
        }
    }
}

/// The new link takes the place of the old one, whose end may not have been noticed yet.
fn supersede(inner: Rc<Inner>, peer: Rc<Peer>, incoming: Incoming, instance: u64) {
    if let Some(old) = peer.inbound.borrow_mut().take() {
        old.task.abort();
    }
    inner.report(&peer);
    let number = inner.next_number();
    let task = spawn_local(hear(inner.clone(), peer.clone(), incoming, number)).abort_handle();
    *peer.inbound.borrow_mut() = Some(Inbound { number, instance, task });
    peer.dial.notify_one();
    inner.report(&peer);
}

async fn hear(inner: Rc<Inner>, peer: Rc<Peer>, incoming: Incoming, number: u64) {
    let from = peer.id;
    // Nothing is said on this link, but it lasts as long as both its halves.
    let Incoming { mut reading, writing: _writing, .. } = incoming;
    let heard = read_frames(&mut reading, |bytes| {
        let frame = frame::decode(bytes)?;
        (inner.sink)(Event::Said { from, frame });
        Ok(())
    })
    .await;
    if let Err(why) = heard {
        tracing::error!(peer = %from, "cutting the link from server {from}, which sent {why}");
        inner.counters.malformed.set(inner.counters.malformed.get() + 1);
    }
    let mut inbound = peer.inbound.borrow_mut();
    if inbound.as_ref().is_some_and(|current| current.number == number) {
        *inbound = None;
        drop(inbound);
        inner.report(&peer);
    }
}
