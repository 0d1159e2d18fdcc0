//! A server that reaches no quorum, as ZooKeeper's clients meet it.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::connect::tcp;
use crate::jute::{In, Out};
use crate::server::{Server, wait_for};

const NOT_READ_ONLY: i32 = -119;

fn receive(socket: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    socket.read_exact(&mut length).ok()?;
    let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    socket.read_exact(&mut body).ok()?;
    Some(body)
}

/// A handshake, and what is answered; `None`: the server has closed.
fn greet(server: &Server, session: i64, read_only: Option<bool>) -> Option<(TcpStream, Vec<u8>)> {
    let mut socket = tcp(server.zookeeper);
    let hello = Out::default().int(0).long(0).int(30_000).long(session).buffer(Some(&[1; 16]));
    let hello = read_only.into_iter().fold(hello, Out::bool);
    socket.write_all(&hello.framed()).unwrap();
    let greeting = receive(&mut socket)?;
    Some((socket, greeting))
}

fn code(socket: &mut TcpStream, xid: i32, kind: i32, body: Out) -> i32 {
    let frame = [Out::default().int(xid).int(kind).0, body.0].concat();
    socket.write_all(&Out(frame).framed()).unwrap();
    let answer = receive(socket).unwrap();
    let mut input = In(&answer);
    assert_eq!(input.int(), Some(xid));
    input.long().unwrap();
    input.int().unwrap()
}

fn is_read_only(server: &Server) -> String {
    let mut socket = tcp(server.zookeeper);
    socket.write_all(b"isro").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    text
}

/// One server of three; the others do not run.
fn minority(more: &[&str]) -> Server {
    let members = ["1=127.0.0.1:1", "2=127.0.0.1:2", "3=127.0.0.1:3"];
    let mut flags = vec!["--peer", "127.0.0.1:0"];
    flags.extend(members.iter().flat_map(|member| ["--member", member]));
    flags.extend(more);
    Server::start_with(&flags)
}

#[test]
fn whoever_is_content_to_read_may_and_nobody_may_write() {
    let server = minority(&["--set", "read_only=true"]);
    let (mut socket, greeting) = wait_for("the server to serve", || greet(&server, 0, Some(true)));
    let mut input = In(&greeting);
    assert_eq!((input.int(), input.int()), (Some(0), Some(30_000)));
    assert_ne!(input.long(), Some(0), "there is a session");
    assert_eq!(greeting.last(), Some(&1), "in which one can only read");
    assert_eq!(is_read_only(&server), "ro");

    let path = |path: &str| Out::default().text(path);
    let acl = |out: Out| out.int(1).int(31).text("world").text("anyone");
    assert_eq!(code(&mut socket, 1, 3, path("/").bool(false)), 0);
    assert_eq!(code(&mut socket, 2, 12, path("/zookeeper").bool(true)), 0);
    assert_eq!(code(&mut socket, 3, 4, path("/none").bool(false)), -101);
    let create = || acl(path("/a").text("data")).int(0);
    let multi = Out::default().int(2).bool(false).int(-1).text("/a").int(-1);
    for (kind, body) in [
        (1, create()),
        (15, create()),
        (2, path("/a").int(-1)),
        (5, path("/").text("data").int(-1)),
        (7, acl(path("/")).int(-1)),
        (9, path("/")),
        (14, multi.int(-1).bool(true).int(-1)),
        (501, path("/a").int(-1)),
        (502, create()),
        (503, path("/a").int(5)),
        (505, path("/a").int(-1)),
    ] {
        assert_eq!(code(&mut socket, 4, kind, body), NOT_READ_ONLY, "request {kind}");
    }
    assert_eq!(code(&mut socket, -2, 11, Out::default()), 0);

    // Others go to the next server: whoever wants to write, does not know of this, or has a session
    // that may exist elsewhere and must not be said to have expired.
    assert!(greet(&server, 0, Some(false)).is_none());
    assert!(greet(&server, 0, None).is_none());
    assert!(greet(&server, 0x0200_0000_0000_0001, Some(true)).is_none());
    assert!(greet(&server, 0x0200_0000_0000_0001, Some(false)).is_none());
}

#[test]
fn without_that_mode_nobody_is_served() {
    let server = minority(&[]);
    assert!(greet(&server, 0, Some(true)).is_none());
    assert!(greet(&server, 0, Some(false)).is_none());
}
