//! Links between servers that break, come back, or are not drained.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use conclave::limits::{PEER_OUTBOX_BYTES, SNAPSHOT_CHUNK_BYTES};
use conclave::net::Port;
use conclave::peers::handshake::{Hello, Refusal, VERSION, Welcome};
use conclave::peers::{Chunk, Event, Frame, Links, Settings};
use conclave::replica::PeerMessage;
use conclave_proto::{Epoch, ServerId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use crate::server::DEADLINE;

fn on_one_thread(test: impl Future<Output = ()>) {
    let runtime =
        Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
    runtime.block_on(async { timeout(DEADLINE, test).await.expect("it took too long") });
}

/// The voters of all ensembles here.
const VOTERS: [u8; 2] = [1, 2];

fn id(number: u8) -> ServerId {
    ServerId::new(number).unwrap()
}

async fn port() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// What a process of this number, which is server 2, says to server 1.
fn dials(instance: u64) -> Hello {
    Hello::new(id(2), id(1), "links", &VOTERS.map(id), instance)
}

/// What the process of number 2, which is server 2, answers.
fn welcome(hello: &Hello) -> Welcome {
    Welcome::to(hello, (id(2), 2), "links", &VOTERS.map(id), |_| true)
}

/// The links of server `me`, and what happens on them.
fn start(me: u8, listener: TcpListener, other: (u8, &str)) -> (Links, UnboundedReceiver<Event>) {
    let settings = Settings {
        cluster: "links".into(),
        me: id(me),
        others: vec![(id(other.0), other.1.to_owned())],
        voters: VOTERS.map(id).into(),
        instance: me.into(),
        seed: me.into(),
        keys: None,
    };
    let (tell, events) = unbounded_channel();
    let port = Port::plain(listener).unwrap();
    let links = Links::start(settings, Some(port), move |event| tell.send(event).unwrap_or(()));
    (links, events)
}

fn message(number: u64) -> PeerMessage {
    PeerMessage::Poll { epoch: Epoch::ZERO, now_ms: number }
}

async fn hears(events: &mut UnboundedReceiver<Event>, wanted: &str) {
    loop {
        let event = events.recv().await.expect("the links live");
        if format!("{event:?}").starts_with(wanted) {
            return;
        }
    }
}

#[test]
fn what_is_said_arrives_in_order() {
    on_one_thread(async {
        let ((first, one), (second, two)) = (port().await, port().await);
        let (links, mut events) = start(1, first, (2, &two));
        let (_other, mut heard) = start(2, second, (1, &one));
        hears(&mut events, "Up").await;
        hears(&mut heard, "Up").await;
        for number in 0..100_000 {
            links.send(id(2), &message(number));
            if number % 1000 == 0 {
                links.flush();
            }
        }
        links.flush();
        for number in 0..100_000 {
            let Some(Event::Said { from, frame: Frame::Message(said) }) = heard.recv().await else {
                panic!("the link broke")
            };
            assert_eq!((from, said), (id(1), message(number)));
        }
    });
}

#[test]
fn an_answer_of_a_later_version_is_known_for_one() {
    on_one_thread(async {
        let hello = dials(1);
        let words = format!(
            "this server speaks version {VERSION}, the other one version 7; upgrade this server"
        );
        let refusal = Welcome { verdict: Err(Refusal::Version), version: 7, ..welcome(&hello) };
        // The verdict follows the length and eight bytes of magic: there may be one that nobody knows.
        let mut unknown = refusal.encode();
        unknown[4 + 8] = 99;
        for frame in [refusal.encode(), unknown] {
            let why = Welcome::read(&mut &frame[..], &hello).await.unwrap_err().to_string();
            assert!(why.contains(&words), "{why}");
        }
        let older = Welcome { version: 0, ..refusal };
        let why = Welcome::read(&mut &older.encode()[..], &hello).await.unwrap_err().to_string();
        assert!(why.contains("the other one version 0; upgrade the other one"), "{why}");
    });
}

#[test]
fn a_server_that_comes_back_is_linked_again() {
    on_one_thread(async {
        let ((first, one), (second, two)) = (port().await, port().await);
        let (links, mut events) = start(1, first, (2, &two));
        // The other server is played by hand: it dials and is dialled, and dies.
        for number in 0..3 {
            let (mut dialled, _) = second.accept().await.unwrap();
            let hello = Hello::read(&mut dialled).await.unwrap();
            let welcome = welcome(&hello);
            dialled.write_all(&welcome.encode()).await.unwrap();
            let mut dialling = tokio::net::TcpStream::connect(&one).await.unwrap();
            let hello = dials(2);
            dialling.write_all(&hello.encode()).await.unwrap();
            Welcome::read(&mut dialling, &hello).await.unwrap();
            hears(&mut events, "Up").await;
            links.send(id(2), &message(number));
            links.flush();
            dialled.readable().await.unwrap();
            if number == 1 {
                drop(dialling);
                hears(&mut events, "Down").await;
            } else {
                drop(dialled);
                hears(&mut events, "Down").await;
            }
        }
    });
}

#[test]
fn a_server_that_takes_nothing_is_cut_off() {
    on_one_thread(async {
        let ((first, one), (second, two)) = (port().await, port().await);
        let (links, mut events) = start(1, first, (2, &two));
        let (mut deaf, _) = second.accept().await.unwrap();
        let hello = Hello::read(&mut deaf).await.unwrap();
        deaf.write_all(&welcome(&hello).encode()).await.unwrap();
        let mut dialling = tokio::net::TcpStream::connect(&one).await.unwrap();
        let hello = dials(2);
        dialling.write_all(&hello.encode()).await.unwrap();
        hears(&mut events, "Up").await;
        let bytes = Bytes::from(vec![7; SNAPSHOT_CHUNK_BYTES]);
        let mut index = 0;
        while links.counters().cut.get() == 0 {
            assert!(links.waiting(id(2)) <= PEER_OUTBOX_BYTES, "the outbox has no bound");
            links.send_chunk(id(2), &Chunk { sync: 1, index, last: false, bytes: bytes.clone() });
            links.flush();
            index += 1;
            tokio::task::yield_now().await;
        }
        hears(&mut events, "Down").await;
        assert_eq!(links.waiting(id(2)), 0);
        // It is dialled again.
        timeout(Duration::from_secs(10), second.accept()).await.unwrap().unwrap();
    });
}

#[test]
fn two_links_from_the_same_server_are_one() {
    on_one_thread(async {
        let ((first, one), (second, two)) = (port().await, port().await);
        let (_links, mut events) = start(1, first, (2, &two));
        let mut kept = Vec::new();
        let (mut dialled, _) = second.accept().await.unwrap();
        let hello = Hello::read(&mut dialled).await.unwrap();
        dialled.write_all(&welcome(&hello).encode()).await.unwrap();
        for round in 0..3 {
            let mut dialling = tokio::net::TcpStream::connect(&one).await.unwrap();
            let hello = dials(2);
            dialling.write_all(&hello.encode()).await.unwrap();
            Welcome::read(&mut dialling, &hello).await.unwrap();
            if round > 0 {
                // The earlier one counts as broken: what was sent on it may be lost.
                hears(&mut events, "Down").await;
            }
            hears(&mut events, "Up").await;
            kept.push(dialling);
        }
    });
}

/// A process with this number dials server 1 as server 2; its link, or why it is refused.
async fn dial(address: &str, instance: u64) -> Result<tokio::net::TcpStream, String> {
    let mut dialling = tokio::net::TcpStream::connect(address).await.unwrap();
    let hello = dials(instance);
    dialling.write_all(&hello.encode()).await.unwrap();
    let welcome = Welcome::read(&mut dialling, &hello).await;
    welcome.map(|_| dialling).map_err(|error| error.to_string())
}

/// Two servers were given one id, by a configuration that was copied, say.
#[test]
fn another_process_that_says_it_is_a_linked_server_is_refused() {
    on_one_thread(async {
        let (first, one) = port().await;
        let (_links, mut events) = start(1, first, (2, "127.0.0.1:1"));
        let linked = dial(&one, 7).await.unwrap();
        let said = dial(&one, 8).await.unwrap_err();
        assert!(said.contains("give each server its own `id`"), "{said}");
        hears(&mut events, "Refused").await;
        // The same process may dial again before its link is known to be broken.
        drop(dial(&one, 7).await.unwrap());
        drop(linked);
        // Once nobody is linked, it is somebody who was started anew.
        while dial(&one, 8).await.is_err() {
            tokio::task::yield_now().await;
        }
    });
}

/// Who is reached at the address in the list of members is believed, and not who came first.
#[test]
fn the_process_at_the_address_of_a_server_is_that_server() {
    on_one_thread(async {
        let ((first, one), (second, two)) = (port().await, port().await);
        let (_links, mut events) = start(1, first, (2, &two));
        let mut twin = dial(&one, 7).await.unwrap();
        let (mut dialled, _) = second.accept().await.unwrap();
        let hello = Hello::read(&mut dialled).await.unwrap();
        dialled.write_all(&welcome(&hello).encode()).await.unwrap();
        assert_eq!(twin.read(&mut [0]).await.unwrap_or(0), 0, "it is cut off");
        assert!(dial(&one, 7).await.is_err());
        let _linked = dial(&one, 2).await.unwrap();
        hears(&mut events, "Up").await;
    });
}
