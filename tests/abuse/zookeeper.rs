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

/// Everybody can read the number of a session in its ephemeral nodes; only its password counts.
#[test]
fn a_wrong_password_neither_opens_a_session_nor_disturbs_it() {
    let server = Server::start();
    let mut owner = dial(&server);
    let timeout = 10_000_i32.to_be_bytes();
    let length = 16_i32.to_be_bytes();
    let hello = frame(&[&[0; 12], &timeout, &[0; 8], &length, &[0; 16], &[0]]);
    owner.write_all(&hello).unwrap();
    let greeting = receive(&mut owner);
    let (session, mut password) = (&greeting[8..16], greeting[20..36].to_vec());
    password[7] ^= 1;
    for password in [&password[..], &[0; 16]] {
        let mut thief = dial(&server);
        let hello = frame(&[&[0; 12], &timeout, session, &length, password, &[0]]);
        thief.write_all(&hello).unwrap();
        let answer = receive(&mut thief);
        assert_eq!(answer[4..16], [0; 12], "no timeout and no session");
        assert!(is_closed(thief));
        ping(&mut owner);
    }
}

/// Sent to a follower of ZooKeeper 3.8, it makes the follower leave its leader.
#[test]
fn a_check_by_itself_is_an_error_and_no_more() {
    let server = Server::start();
    let mut client = open(&server);
    let root = [&1_i32.to_be_bytes()[..], b"/"].concat();
    let check = [&7_i32.to_be_bytes()[..], &13_i32.to_be_bytes(), &root, &[0xff; 4]];
    client.write_all(&frame(&check)).unwrap();
    let answer = receive(&mut client);
    assert_eq!((&answer[..4], &answer[12..]), (check[0], &(-6_i32).to_be_bytes()[..]));
    ping(&mut client);
}
