//! The links on which a server hears: it accepts them, once it is sure who dials.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use conclave_proto::ServerId;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::frame;
use super::handshake::{Hello, Welcome};
use super::{Event, Inbound, Inner, Peer, keep_alive, read_frames};

/// How long one who dials may take to say who it is.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How many may be about to say who they are.
const STRANGERS: usize = 64;
/// How long to wait when the system has no room for another connection.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(50);

/// Accepts links for ever.
pub(super) async fn accept(inner: Rc<Inner>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok(_) if inner.strangers.get() >= STRANGERS => {
                inner.counters.refused.set(inner.counters.refused.get() + 1);
            }
            Ok((socket, address)) => {
                inner.strangers.set(inner.strangers.get() + 1);
                spawn_local(welcome(inner.clone(), socket, address));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a link from a server");
                sleep(NO_ROOM_PAUSE).await;
            }
        }
    }
}

async fn welcome(inner: Rc<Inner>, mut socket: TcpStream, address: SocketAddr) {
    let greeted = timeout(HELLO_DEADLINE, greet(&inner, &mut socket)).await;
    inner.strangers.set(inner.strangers.get() - 1);
    match greeted.unwrap_or_else(|_| Err("it does not say who it is".into())) {
        Ok(from) => {
            let peer = inner.peers.get(&from).expect("a member was greeted").clone();
            supersede(inner, peer, socket);
        }
        Err(why) => {
            tracing::warn!(%address, "refused a link from {address}: {why}");
            inner.counters.refused.set(inner.counters.refused.get() + 1);
        }
    }
}

async fn greet(inner: &Inner, socket: &mut TcpStream) -> Result<ServerId, String> {
    keep_alive(socket).map_err(|error| error.to_string())?;
    let hello = Hello::read(socket).await?;
    let settings = &inner.settings;
    let known = |id| inner.peers.contains_key(&id);
    let welcome = Welcome::to(&hello, settings.me, &settings.cluster, known);
    socket.write_all(&welcome.encode()).await.map_err(|error| error.to_string())?;
    match welcome.verdict {
        Ok(()) => Ok(hello.from),
        Err(refusal) => {
            Err(format!("server {} of ensemble {:?}: {refusal}", hello.from, hello.cluster))
        }
    }
}

/// The new link takes the place of the old one, whose end may not have been noticed yet.
fn supersede(inner: Rc<Inner>, peer: Rc<Peer>, socket: TcpStream) {
    if let Some(old) = peer.inbound.borrow_mut().take() {
        old.task.abort();
    }
    inner.report(&peer);
    let number = inner.next_number();
    let task = spawn_local(hear(inner.clone(), peer.clone(), socket, number)).abort_handle();
    *peer.inbound.borrow_mut() = Some(Inbound { number, task });
    peer.dial.notify_one();
    inner.report(&peer);
}

async fn hear(inner: Rc<Inner>, peer: Rc<Peer>, mut socket: TcpStream, number: u64) {
    let from = peer.id;
    let heard = read_frames(&mut socket, |bytes| {
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
