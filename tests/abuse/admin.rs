//! What can come to the port of administration.

use std::io::{Read, Write};
use std::net::TcpStream;

use conclave::limits::ADMIN_CONNECTIONS;

use crate::client::{Client, create};
use crate::server::{DEADLINE, Server, wait_for};

/// What is answered; nothing if the connection is closed.
fn ask(server: &Server) -> String {
    let mut socket = TcpStream::connect(server.admin).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut answer = Vec::new();
    let request = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    // A connection that is reset has no answer either.
    if socket.write_all(request).is_ok() {
        socket.read_to_end(&mut answer).ok();
    }
    String::from_utf8(answer).unwrap()
}

#[test]
fn visitors_who_never_finish_are_few_and_have_little_time() {
    let server = Server::start();
    let mut client = Client::open(server.client);
    let half = || {
        let mut socket = TcpStream::connect(server.admin).unwrap();
        socket.write_all(b"GET /health HT").unwrap();
        socket
    };
    let mut crowd: Vec<TcpStream> = (0..ADMIN_CONNECTIONS).map(|_| half()).collect();
    wait_for("there to be no room", || ask(&server).is_empty().then_some(()));
    client.call(create("/a", 100)).unwrap();
    // Byte for byte is no progress.
    let slow = crowd.first_mut().unwrap();
    wait_for("their time to be over", || {
        let closed = slow.write_all(b"x").is_err();
        (closed && ask(&server).ends_with("ok\n")).then_some(())
    });
}

#[test]
fn a_request_of_any_size_or_kind_is_answered_or_closed() {
    let server = Server::start();
    for request in [
        &b"\x00\xff\x13\x37\r\n\r\n"[..],
        b"POST /status HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nabcde",
        b"GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 127.0.0.1\r\n\r\n",
        &[b'A'; 2_000_000],
    ] {
        let mut socket = TcpStream::connect(server.admin).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        // It may be closed before all of it is written.
        socket.write_all(request).ok();
        let mut answer = [0; 12];
        if socket.read_exact(&mut answer).is_ok() {
            assert!(answer.starts_with(b"HTTP/1.1 4"), "{:?}", String::from_utf8_lossy(&answer));
        }
        assert!(ask(&server).ends_with("ok\n"));
    }
}
