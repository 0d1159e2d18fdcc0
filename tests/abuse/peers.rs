//! Strangers on the port where servers link.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use conclave::peers::handshake::{Hello, VERSION};
use conclave_proto::ServerId;

use crate::ports::Ports;
use crate::server::{DEADLINE, Server};

/// A server that waits for two others.
fn lonely() -> (Server, Ports) {
    let ports = Ports::claim();
    let peer = ports.first();
    let address = format!("127.0.0.1:{peer}");
    let members: Vec<String> =
        (1..=3).zip(peer..).map(|(id, port)| format!("{id}=127.0.0.1:{port}")).collect();
    let mut flags = vec!["--peer", &address];
    for member in &members {
        flags.extend(["--member", member]);
    }
    (Server::start_with(&flags), ports)
}

fn server(id: u8) -> ServerId {
    ServerId::new(id).unwrap()
}

fn hello(from: ServerId, to: ServerId, cluster: &str) -> Hello {
    Hello::new(from, to, cluster, &[1, 2, 3].map(server), 7)
}

/// Sends bytes to the port and returns what comes back until it is closed.
fn say(port: u16, bytes: &[u8]) -> Bytes {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).ok();
    answer.into()
}

/// The verdict in an answer: the byte after the length and eight bytes of magic.
fn verdict(mut answer: Bytes) -> u8 {
    answer.advance(4 + 8);
    answer.get_u8()
}

#[test]
fn strangers_are_refused() {
    let (lonely, ports) = lonely();
    let port = ports.first();
    for (count, (hello, code, words)) in (1..).zip([
        (hello(server(2), server(1), "another"), 2, "different names"),
        (hello(server(2), server(3), "conclave"), 3, "another server is at this address"),
        (hello(server(9), server(1), "conclave"), 4, "not among `members`"),
        // Even this server itself is none of the others.
        (hello(server(1), server(1), "conclave"), 4, "not among `members`"),
        (Hello { version: 0, ..hello(server(2), server(1), "conclave") }, 1, "too far apart"),
        (
            Hello { voters: vec![server(1), server(2)], ..hello(server(2), server(1), "conclave") },
            6,
            "different voters",
        ),
        (
            Hello { version: 9, oldest: 9, ..hello(server(2), server(1), "conclave") },
            1,
            "too far apart",
        ),
    ]) {
        assert_eq!(verdict(say(port, &hello.encode())), code, "{hello:?}");
        lonely.wait_for_metric("conclave_links_refused_total", count);
        assert!(lonely.log().contains(words), "{words} is not in {}", lonely.log());
    }
}

/// The frame says more than it did.
fn with_more(mut frame: BytesMut) -> BytesMut {
    frame.put_slice(b"more");
    let length = u32::try_from(frame.len() - 4).unwrap();
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame
}

#[test]
fn who_speaks_a_later_version_is_told_so_whatever_else_it_says() {
    let (lonely, ports) = lonely();
    let port = ports.first();
    let later =
        |version| Hello { version, oldest: version, ..hello(server(2), server(1), "conclave") };
    assert_eq!(verdict(say(port, &with_more(later(7).encode()))), 1);
    // What nobody can read but those who speak it.
    let strange = b"\0\0\0\x0bCONCLAVE\0\x08?";
    assert!(say(port, strange).is_empty());
    lonely.wait_for_metric("conclave_links_refused_total", 2);
    for version in [7, 8] {
        let words = format!(
            "this server speaks version {VERSION}, the other one version {version}; upgrade this"
        );
        assert!(lonely.log().contains(&words), "{words} is not in {}", lonely.log());
    }
    // More is not said in a version that both know.
    let known = with_more(hello(server(2), server(1), "conclave").encode());
    assert!(say(port, &known).is_empty());
    let both = Hello { version: VERSION + 1, ..hello(server(2), server(1), "conclave") };
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.write_all(&with_more(both.encode())).unwrap();
    let mut answer = vec![0; 4 + 8 + 1];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(verdict(answer.into()), 0);
}

#[test]
fn garbage_is_refused() {
    let (lonely, ports) = lonely();
    let port = ports.first();
    let whole = hello(server(2), server(1), "conclave").encode();
    let mut twice = whole.to_vec();
    twice.extend_from_slice(&whole);
    let openings: [&[u8]; 5] =
        [b"GET / HTTP/1.1\r\n\r\n", &[0, 0, 0, 2, 1, 2], &[0xff; 64], &[0, 0, 0, 0], &twice];
    for (count, opening) in (1..).zip(openings) {
        assert!(say(port, opening).is_empty(), "{opening:?} was answered");
        lonely.wait_for_metric("conclave_links_refused_total", count);
    }
    assert_eq!(lonely.get("/health"), "ok\n");
}

#[test]
fn a_peer_that_sends_garbage_is_cut_off() {
    let (lonely, ports) = lonely();
    let port = ports.first();
    for (count, garbage) in (1..).zip([
        &[0xff_u8; 16][..],
        &[0, 0, 0, 0],
        &[0, 0, 0, 1, 99],
        &[0, 0, 0, 3, 1, 0xff, 0xff],
        &[0, 0, 0, 2, 2, 0],
    ]) {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let hello = hello(server(2), server(1), "conclave").encode();
        socket.write_all(&hello).unwrap();
        let mut welcome = vec![0; 4 + 8 + 1 + 2 + 1 + 1 + "conclave".len() + 8];
        socket.read_exact(&mut welcome).unwrap();
        assert_eq!(verdict(welcome.into()), 0);
        socket.write_all(garbage).unwrap();
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).ok();
        assert!(rest.is_empty());
        lonely.wait_for_metric("conclave_links_malformed_total", count);
    }
    assert_eq!(lonely.get("/health"), "ok\n");
}

#[test]
fn a_member_that_cannot_be_reached_is_named() {
    let (lonely, ports) = lonely();
    let address = format!("127.0.0.1:{}", ports.first() + 1);
    let said = format!("cannot reach server 2 at {address}: ");
    crate::server::wait_for("a line about it", || lonely.log().contains(&said).then_some(()));
}

/// It is about to die, or something stands before it: nobody has to correct anything.
#[test]
fn a_member_that_breaks_off_the_handshake_is_one_that_cannot_be_reached() {
    let (lonely, ports) = lonely();
    let port = ports.first() + 1;
    let dying = TcpListener::bind(("127.0.0.1", port)).unwrap();
    dying.set_nonblocking(true).unwrap();
    let said = format!("cannot reach server 2 at 127.0.0.1:{port}: ");
    crate::server::wait_for("a line about it", || {
        drop(dying.accept());
        lonely.log().contains(&said).then_some(())
    });
    assert!(!lonely.log().contains("cannot link"), "{}", lonely.log());
}

#[test]
fn who_is_refused_again_and_again_does_not_fill_the_log() {
    let (lonely, ports) = lonely();
    for _ in 0..50 {
        let stranger = hello(server(9), server(1), "conclave").encode();
        assert_eq!(verdict(say(ports.first(), &stranger)), 4);
    }
    lonely.wait_for_metric("conclave_links_refused_total", 50);
    assert_eq!(lonely.log().matches("not among `members`").count(), 1, "{}", lonely.log());
}
