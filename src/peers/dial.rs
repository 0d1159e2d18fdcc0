//! The links on which a server sends: it dials, and dials again.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::net::{self, ReadHalf, WriteHalf};

use super::handshake::{Hello, Welcome};
use super::{DRAIN_DEADLINE, Inner, Link, Outbound, Peer};

/// How long a dial and its handshake may take.
const DIAL_DEADLINE: Duration = Duration::from_secs(2);
/// The first pause between two dials, in ms.
const FIRST_PAUSE_MS: u64 = 20;
/// The longest pause between two dials, in ms.
const LONGEST_PAUSE_MS: u64 = 1000;

/// After so many dials in vain it is worth a line that a server cannot be reached: some seconds,
/// for servers are often started one after the other.
const TELLING_FAILURES: u32 = 10;

/// Keeps the link to one server up.
pub(super) async fn keep(inner: Rc<Inner>, peer: Rc<Peer>) {
    let mut pauses = Pauses::new(inner.settings.seed ^ u64::from(peer.id.get()));
    let mut complaint = String::new();
    let mut failures = 0_u32;
    loop {
        let dialled = timeout(DIAL_DEADLINE, dial(&inner, &peer)).await;
        match dialled.unwrap_or_else(|_| Err(Failure::Unreachable("it does not answer".into()))) {
            Ok((reading, writing, instance)) => {
                complaint.clear();
                failures = 0;
                pauses.restart();
                hold(&inner, &peer, (reading, writing), instance).await;
                tracing::info!(peer = %peer.id, "lost the link to server {}", peer.id);
            }
            Err(Failure::Unreachable(why)) => {
                tracing::debug!(peer = %peer.id, address = peer.address, why, "cannot dial");
                failures = failures.saturating_add(1);
                if failures == TELLING_FAILURES {
                    tracing::warn!(peer = %peer.id, address = peer.address,
                        "cannot reach server {} at {}: {why}; it is dialled until it answers",
                        peer.id, peer.address);
                }
            }
            Err(Failure::Refused(why)) => {
                if complaint != why {
                    tracing::error!(peer = %peer.id, address = peer.address,
                        "cannot link with server {} at {}: {why}", peer.id, peer.address);
                    inner.counters.refused.set(inner.counters.refused.get() + 1);
                    complaint = why;
                }
            }
        }
        // Cut short when the peer dials us: then it is there.
        timeout(pauses.next(), peer.dial.notified()).await.ok();
    }
}

enum Failure {
    /// Nobody is there: it may come.
    Unreachable(String),
    /// Somebody is there, but not the one we want: a person must do something.
    Refused(String),
}

async fn dial(inner: &Inner, peer: &Peer) -> Result<(ReadHalf, WriteHalf, u64), Failure> {
    let settings = &inner.settings;
    let unreachable = |error: io::Error| Failure::Unreachable(error.to_string());
    // The name is resolved anew at every dial.
    let socket = TcpStream::connect(&peer.address).await.map_err(unreachable)?;
    net::keep_alive(&socket, DRAIN_DEADLINE).map_err(unreachable)?;
    let (mut reading, writing) = match &settings.keys {
        None => net::plain(socket),
        Some(keys) => {
            let config = keys.now().dialler(&settings.cluster, peer.id).map_err(unreachable)?;
            let remedy = "; correct `members`, `cluster`, or the certificates (`tls`)";
            net::dial(socket, config).await.map_err(|error| failed(&error, remedy))?
        }
    };
    let hello =
        Hello::new(settings.me, peer.id, &settings.cluster, &settings.voters, settings.instance);
    writing.send_all(hello.encode()).await.map_err(unreachable)?;
    let welcome = Welcome::read(&mut reading, &hello).await.map_err(|error| failed(&error, ""))?;
    Ok((reading, writing, welcome.instance))
}

/// What a failed handshake means: it goes on being tried if only the connection broke.
fn failed(error: &io::Error, remedy: &str) -> Failure {
    if error.kind() == io::ErrorKind::InvalidData {
        return Failure::Refused(format!("{error}{remedy}"));
    }
    Failure::Unreachable(error.to_string())
}

/// Has the link with that process until it breaks.
async fn hold(
    inner: &Inner,
    peer: &Peer,
    (mut reading, writing): (ReadHalf, WriteHalf),
    instance: u64,
) {
    let cut = Rc::new(Notify::new());
    let (number, socket) = (inner.next_number(), Rc::new(writing));
    let link = Link { number, instance, socket, cut: cut.clone() };
    // Whoever is at the address that the server has in the list of members is that server.
    let twin = peer.inbound.borrow_mut().take_if(|linked| linked.instance != instance);
    if let Some(twin) = twin {
        twin.task.abort();
        inner.report(peer);
    }
    *peer.outbound.borrow_mut() =
        Outbound { link: Some(link), waiting: BytesMut::new(), draining: false };
    tracing::debug!(peer = %peer.id, "linked with server {}", peer.id);
    inner.report(peer);
    // The peer says nothing on this link: whatever can be read is its end.
    let mut nothing = [0; 1];
    tokio::select! {
        _ = reading.read(&mut nothing) => {}
        () = cut.notified() => {}
    }
    *peer.outbound.borrow_mut() = Outbound::default();
    inner.report(peer);
}

/// The pauses between dials: doubling, with dice so that two servers do not keep in step.
struct Pauses {
    bound_ms: u64,
    dice: u64,
}

impl Pauses {
    fn new(seed: u64) -> Pauses {
        Pauses { bound_ms: FIRST_PAUSE_MS, dice: seed | 1 }
    }

    fn restart(&mut self) {
        self.bound_ms = FIRST_PAUSE_MS;
    }

    /// Half of the bound, and a random part of the other half.
    fn next(&mut self) -> Duration {
        // Xorshift: no secret hangs on it.
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        let half = self.bound_ms / 2;
        let pause = half + self.dice % half;
        self.bound_ms = (self.bound_ms * 2).min(LONGEST_PAUSE_MS);
        Duration::from_millis(pause)
    }
}
