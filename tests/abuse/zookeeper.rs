//! What can come to the port of ZooKeeper's protocol.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::server::Server;

const DEADLINE: Duration = Duration::from_secs(10);

fn dial(server: &Server) -> TcpStream {
    let socket = TcpStream::connect(server.zookeeper).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

fn frame(parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
}

fn receive(socket: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 4];
    socket.read_exact(&mut length).unwrap();
    let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    socket.read_exact(&mut body).unwrap();
    body
}

/// A connection with a session.
fn open(server: &Server) -> TcpStream {
    let mut socket = dial(server);
    let timeout = 10_000_i32.to_be_bytes();
    let hello = frame(&[&[0; 12], &timeout, &[0; 8], &16_i32.to_be_bytes(), &[0; 16], &[0]]);
    socket.write_all(&hello).unwrap();
    assert_eq!(receive(&mut socket).len(), 37);
    socket
}

/// Whether the server has closed the connection, perhaps after some last words.
fn is_closed(mut socket: TcpStream) -> bool {
    let mut rest = Vec::new();
    match socket.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn ping(socket: &mut TcpStream) {
    socket.write_all(&frame(&[&(-2_i32).to_be_bytes(), &11_i32.to_be_bytes()])).unwrap();
    let answer = receive(socket);
    assert_eq!((&answer[..4], answer.len()), (&(-2_i32).to_be_bytes()[..], 16));
}

#[test]
fn bad_bytes_end_their_own_connection_only() {
    let server = Server::start();
    let mut bystander = open(&server);
    for bytes in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0; 64], b"nope", b"\x7f\xff\xff\xff"]
    {
        let mut stranger = dial(&server);
        stranger.write_all(bytes).unwrap();
        assert!(is_closed(stranger), "{bytes:?} before a session");
    }
    let unknown = frame(&[&1_i32.to_be_bytes(), &99_i32.to_be_bytes()]);
    for bytes in [&b"ruok"[..], &[0xff; 64], &[0; 64], b"\x00\x10\x00\x00", &unknown] {
        let mut client = open(&server);
        client.write_all(bytes).unwrap();
        assert!(is_closed(client), "{bytes:?} with a session");
        ping(&mut bystander);
    }
}

#[test]
fn half_a_handshake_and_half_a_request_disturb_nobody() {
    let server = Server::start();
    let mut bystander = open(&server);
    let halves: Vec<TcpStream> = (0..50_usize)
        .map(|place| {
            let mut socket = if place % 2 == 0 { dial(&server) } else { open(&server) };
            socket.write_all(&[0, 0, 0, 44, 0, 0][..place % 6]).unwrap();
            socket
        })
        .collect();
    ping(&mut bystander);
    drop(halves);
    ping(&mut bystander);
}

#[test]
fn only_words_that_are_allowed_are_answered() {
    let server = Server::start_with(&["--set", "words=['ruok']"]);
    for (word, expected) in
        [("ruok", "imok"), ("wchp", "wchp is not executed because it is not in the whitelist.\n")]
    {
        let mut socket = dial(&server);
        socket.write_all(word.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, expected);
    }
}
