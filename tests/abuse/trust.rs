//! Servers with certificates, and those who pretend to be one of them.

use std::future::Future;
use std::time::Duration;

use conclave::limits::{STRANGERS, STRANGERS_PER_ADDRESS};
use conclave::net::{
    self, CertCounters, ClientAuth, Files, HandshakeCounters, HandshakeLimits, Keys, Port, Purpose,
    WatchedKeys,
};
use conclave::peers::handshake::{Hello, Welcome};
use conclave::peers::{Event, Frame, Links, Settings};
use conclave::replica::PeerMessage;
use conclave_proto::{Epoch, ServerId};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{sleep, timeout};

use crate::certificates::{Authority, Claims};
use crate::server::DEADLINE;

const CLUSTER: &str = "trust";

fn on_one_thread(test: impl Future<Output = ()>) {
    let runtime =
        Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
    runtime.block_on(async { timeout(DEADLINE, test).await.expect("it took too long") });
}

fn id(number: u8) -> ServerId {
    ServerId::new(number).unwrap()
}

/// An authority that has signed for the members 1, 2 and 3, for one of another ensemble, and for
/// somebody who is no member.
fn authority() -> Authority {
    let authority = Authority::new();
    for id in 1..=3 {
        authority.issue_member(&id.to_string(), CLUSTER, id);
    }
    authority.issue_member("foreign-2", "elsewhere", 2);
    authority.issue("nobody", Claims::default());
    authority
}

fn files(authority: &Authority, name: &str) -> Files {
    let path = |end: &str| authority.path(&format!("{name}.{end}"));
    Files { cert: path("pem"), key: path("key"), ca: Some(authority.path("ca.pem")) }
}

fn keys(authority: &Authority, name: &str, purpose: Purpose) -> WatchedKeys {
    WatchedKeys::start(files(authority, name), purpose, CertCounters::default()).unwrap()
}

fn member(authority: &Authority, me: u8) -> WatchedKeys {
    let purpose = Purpose::Members { cluster: CLUSTER.into(), me: id(me) };
    keys(authority, &me.to_string(), purpose)
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// One server and what happens on its links.
struct Server {
    links: Links,
    events: UnboundedReceiver<Event>,
    handshakes: HandshakeCounters,
}

fn start(me: u8, listener: TcpListener, keys: Option<WatchedKeys>, other: (u8, &str)) -> Server {
    let limits = HandshakeLimits { total: STRANGERS, per_address: STRANGERS_PER_ADDRESS };
    let handshakes = HandshakeCounters::default();
    let port = match keys.clone() {
        Some(keys) => Port::tls(listener, keys, limits, handshakes.clone()),
        None => Port::plain(listener),
    };
    let settings = Settings {
        cluster: CLUSTER.into(),
        me: id(me),
        others: vec![(id(other.0), other.1.to_owned())],
        voters: vec![id(1), id(2)],
        instance: me.into(),
        seed: me.into(),
        keys,
    };
    let (tell, events) = unbounded_channel();
    let sink = move |event| tell.send(event).unwrap_or(());
    let links = Links::start(settings, Some(port.unwrap()), sink);
    Server { links, events, handshakes }
}

impl Server {
    /// Waits until so many links have failed, in either direction; none may stand before.
    async fn refuses(&mut self, count: u64) {
        loop {
            match self.events.try_recv() {
                Ok(Event::Refused { .. }) | Err(_) => {}
                Ok(event) => panic!("there is {event:?}"),
            }
            let failed = self.links.counters().refused.get() + self.handshakes.failed.get();
            if failed >= count {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn hears(&mut self, wanted: &str) -> Event {
        loop {
            let event = self.events.recv().await.expect("the links live");
            if format!("{event:?}").starts_with(wanted) {
                return event;
            }
        }
    }
}

#[test]
fn members_talk() {
    on_one_thread(async {
        let authority = authority();
        let ((first, one), (second, two)) = (listen().await, listen().await);
        let mut first = start(1, first, Some(member(&authority, 1)), (2, &two));
        let mut second = start(2, second, Some(member(&authority, 2)), (1, &one));
        first.hears("Up").await;
        second.hears("Up").await;
        let message = |now_ms| PeerMessage::Poll { epoch: Epoch::ZERO, now_ms };
        for number in 0..100_000 {
            first.links.send(id(2), &message(number));
            if number % 1000 == 0 {
                first.links.flush();
            }
        }
        first.links.flush();
        for number in 0..100_000 {
            let event = second.hears("Said").await;
            let Event::Said { from, frame: Frame::Message(said) } = event else { panic!() };
            assert_eq!((from, said), (id(1), message(number)));
        }
        drop(second.links);
    });
}

#[test]
fn whoever_has_not_the_certificate_of_a_member_is_not_that_member() {
    on_one_thread(async {
        let authority = authority();
        let stranger = self::authority();
        // They all say that they are server 2, and believe whatever they are shown.
        let lax = Purpose::Clients(ClientAuth::Optional);
        for impostor in [
            Some(member(&authority, 3)),
            Some(keys(&authority, "nobody", lax.clone())),
            Some(keys(&authority, "foreign-2", lax.clone())),
            Some(keys(&stranger, "2", lax.clone())),
            None,
        ] {
            let ((first, one), (second, two)) = (listen().await, listen().await);
            let mut honest = start(1, first, Some(member(&authority, 1)), (2, &two));
            let _impostor = start(2, second, impostor, (1, &one));
            honest.refuses(2).await;
        }
    });
}

#[test]
fn a_member_cannot_say_it_is_another() {
    on_one_thread(async {
        let authority = authority();
        let (first, one) = listen().await;
        let mut honest = start(1, first, Some(member(&authority, 1)), (2, "127.0.0.1:1"));
        for (name, says) in [("3", 2), ("nobody", 2), ("foreign-2", 2)] {
            let lax = Purpose::Clients(ClientAuth::Optional);
            let keys = Keys::read(&files(&authority, name), &lax).unwrap();
            let config = keys.dialler(CLUSTER, id(1)).unwrap();
            let socket = TcpStream::connect(&one).await.unwrap();
            let (mut reading, writing) = net::dial(socket, config).await.unwrap();
            let hello = Hello::new(id(says), id(1), CLUSTER, &[id(1), id(2)], 7);
            writing.send_all(hello.encode()).await.unwrap();
            let said = Welcome::read(&mut reading, &hello).await.unwrap_err().to_string();
            assert!(said.contains("certificate"), "{said}");
        }
        honest.refuses(3).await;
        // The one it really is, with the same words.
        let config = Keys::read(&files(&authority, "2"), &Purpose::Clients(ClientAuth::Optional));
        let config = config.unwrap().dialler(CLUSTER, id(1)).unwrap();
        let socket = TcpStream::connect(&one).await.unwrap();
        let (mut reading, writing) = net::dial(socket, config).await.unwrap();
        let hello = Hello::new(id(2), id(1), CLUSTER, &[id(1), id(2)], 7);
        writing.send_all(hello.encode()).await.unwrap();
        Welcome::read(&mut reading, &hello).await.unwrap();
    });
}

#[test]
fn a_server_does_not_begin_with_the_certificate_of_another() {
    let authority = authority();
    let me = |me| Purpose::Members { cluster: CLUSTER.into(), me: id(me) };
    for (name, wanted) in [("3", "names 3"), ("nobody", "no name"), ("foreign-2", "elsewhere")] {
        let error = Keys::read(&files(&authority, name), &me(2)).unwrap_err().to_string();
        assert!(error.contains("conclave://trust/2"), "{wanted}: {error}");
    }
    // Nor with one that the others would not accept.
    let stranger = self::authority();
    let mixed = Files { ca: Some(authority.path("ca.pem")), ..files(&stranger, "2") };
    let error = Keys::read(&mixed, &me(2)).unwrap_err().to_string();
    assert!(error.contains("UnknownIssuer") && error.contains("CA"), "{error}");
    assert!(Keys::read(&files(&authority, "2"), &me(2)).is_ok());
}

#[test]
fn strangers_who_say_nothing_leave_room_for_members() {
    on_one_thread(async {
        let authority = authority();
        let ((first, one), (second, two)) = (listen().await, listen().await);
        let mut honest = start(1, first, Some(member(&authority, 1)), (2, &two));
        let mut silent = Vec::new();
        for _ in 0..2 * STRANGERS {
            silent.push(TcpStream::connect(&one).await.unwrap());
        }
        let refused = (2 * STRANGERS - STRANGERS_PER_ADDRESS) as u64;
        while honest.handshakes.refused.get() < refused {
            sleep(Duration::from_millis(5)).await;
        }
        // From the same address as all of them, it has to wait until their time is over.
        let mut member = start(2, second, Some(member(&authority, 2)), (1, &one));
        honest.hears("Up").await;
        member.hears("Up").await;
    });
}
