//! Frames of ZooKeeper's protocol in the wrong order, too many of them, and spoiled ones.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use conclave::limits::{IDENTITIES, IN_FLIGHT, MULTI_OPS, WATCHES_PER_SESSION};
use conclave_proto::{Acl, CreateMode, Op};

use crate::client::{Client, create, path};
use crate::frames::{Frames, framed};
use crate::server::Server;

const DEADLINE: Duration = Duration::from_secs(10);
const THROTTLED: i32 = -127;
const AUTH_FAILED: i32 = -115;
const SESSION_EXPIRED: i32 = -112;
const UNIMPLEMENTED: i32 = -6;
const MARSHALLING_ERROR: i32 = -5;

fn dial(server: &Server) -> TcpStream {
    let socket = TcpStream::connect(server.zookeeper).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

fn hello() -> Vec<u8> {
    let timeout = 10_000_i32.to_be_bytes();
    framed(&[&[0; 12][..], &timeout, &[0; 8], &16_i32.to_be_bytes(), &[0; 17]].concat())
}

/// A connection with a session.
fn open(server: &Server) -> TcpStream {
    let mut socket = dial(server);
    socket.write_all(&hello()).unwrap();
    assert_eq!(receive(&mut socket).unwrap().len(), 37);
    socket
}

/// The next frame; `None`: the server has closed.
fn receive(socket: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    match socket.read_exact(&mut length) {
        Ok(()) => {}
        Err(error)
            if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) =>
        {
            return None;
        }
        Err(error) => panic!("the server says nothing: {error}"),
    }
    let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    socket.read_exact(&mut body).unwrap();
    Some(body)
}

fn request(xid: i32, kind: i32, body: &[u8]) -> Vec<u8> {
    framed(&[&xid.to_be_bytes()[..], &kind.to_be_bytes(), body].concat())
}

fn text(text: &str) -> Vec<u8> {
    [&i32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}

/// Sends a request and returns the code of the answer; `None`: the server has closed.
fn ask(socket: &mut TcpStream, xid: i32, kind: i32, body: &[u8]) -> Option<i32> {
    // A server that has closed takes nothing: that shows when its answer is read.
    socket.write_all(&request(xid, kind, body)).ok();
    let answer = receive(socket)?;
    assert_eq!(answer[..4], xid.to_be_bytes());
    Some(i32::from_be_bytes(answer[12..16].try_into().unwrap()))
}

/// A client that keeps to the rules, with an ephemeral node, beside others that do not.
struct Bystander(TcpStream);

impl Bystander {
    fn start(server: &Server) -> Bystander {
        let mut bystander = Bystander(open(server));
        bystander.create("/bystander");
        bystander
    }

    /// Creates an ephemeral node.
    fn create(&mut self, path: &str) {
        let acl =
            [&1_i32.to_be_bytes()[..], &31_i32.to_be_bytes(), &text("world"), &text("anyone")];
        let ephemeral = 1_i32.to_be_bytes();
        let body = [&text(path)[..], &text("data"), &acl.concat(), &ephemeral].concat();
        assert_eq!(ask(&mut self.0, 1, 1, &body), Some(0));
    }

    /// Whether nobody has changed its node.
    fn still_has(&mut self, data: &str) {
        let get = [&text("/bystander")[..], &[0]].concat();
        self.0.write_all(&request(4, 4, &get)).unwrap();
        let answer = receive(&mut self.0).unwrap();
        assert!(answer[16..].starts_with(&text(data)));
    }

    fn is_undisturbed(&mut self) {
        let get = [&text("/bystander")[..], &[0]].concat();
        assert_eq!(ask(&mut self.0, 2, 4, &get), Some(0));
        let set = [&text("/bystander")[..], &text("more"), &(-1_i32).to_be_bytes()].concat();
        assert_eq!(ask(&mut self.0, 3, 5, &set), Some(0));
    }
}

#[test]
fn spoiled_frames_disturb_nobody() {
    let server = Server::start();
    let mut bystander = Bystander::start(&server);
    let mut frames = Frames::new(4);
    let before = server.resident_bytes();
    for round in 0..600 {
        let mut socket = if round % 6 == 0 { dial(&server) } else { open(&server) };
        let bytes: Vec<u8> = (0..10).flat_map(|_| frames.bad()).collect();
        // The server may close before it has everything.
        socket.write_all(&bytes).ok();
        socket.shutdown(Shutdown::Write).ok();
        let mut rest = Vec::new();
        match socket.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "round {round}"),
        }
        if round % 20 == 0 {
            bystander.is_undisturbed();
        }
    }
    bystander.is_undisturbed();
    assert!(server.resident_bytes() < before + (64 << 20), "memory for bytes that mean nothing");
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn what_comes_in_the_wrong_order_ends_the_connection() {
    let server = Server::start();
    let mut bystander = Bystander::start(&server);
    let get = [&text("/")[..], &[0]].concat();
    let auth = [&[0; 4][..], &text("digest"), &text("u:p")].concat();
    // Before the handshake nothing is understood, and nothing is answered.
    for (kind, body) in [(4, &get), (100, &auth), (11, &Vec::new()), (-11, &Vec::new())] {
        let mut socket = dial(&server);
        assert_eq!(ask(&mut socket, 1, kind, body), None, "request {kind}");
    }
    // A second handshake is no request that there is.
    let mut socket = open(&server);
    socket.write_all(&hello()).unwrap();
    let answer = receive(&mut socket).unwrap();
    assert_eq!(answer[12..], UNIMPLEMENTED.to_be_bytes());
    assert_eq!(receive(&mut socket), None);
    // Nor is it one that comes in the same packet as the first.
    let mut socket = dial(&server);
    socket.write_all(&[hello(), hello()].concat()).unwrap();
    assert_eq!(receive(&mut socket).unwrap().len(), 37);
    assert_eq!(receive(&mut socket).unwrap()[12..], UNIMPLEMENTED.to_be_bytes());
    assert_eq!(receive(&mut socket), None);
    // Behind the end of the session nothing is done.
    let mut socket = open(&server);
    let set = [&text("/bystander")[..], &text("late"), &(-1_i32).to_be_bytes()].concat();
    socket.write_all(&[request(1, -11, &[]), request(2, 5, &set)].concat()).unwrap();
    assert_eq!(receive(&mut socket).unwrap()[12..], [0; 4]);
    let late = receive(&mut socket);
    assert!(late.is_none_or(|answer| answer[12..] == SESSION_EXPIRED.to_be_bytes()));
    bystander.still_has("data");
    bystander.is_undisturbed();
}

#[test]
fn words_stand_in_front_of_everything_or_nowhere() {
    let server = Server::start();
    let mut bystander = Bystander::start(&server);
    // A word may come in pieces.
    let mut socket = dial(&server);
    socket.write_all(b"sr").unwrap();
    bystander.is_undisturbed();
    socket.write_all(b"vr").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("Mode: standalone"), "{answer}");
    // Behind a handshake, behind a request, and within one that waits for its rest.
    for before in [hello(), [hello(), request(1, 11, &[])].concat()] {
        let mut socket = dial(&server);
        socket.write_all(&[&before[..], b"srvr"].concat()).unwrap();
        let mut answer = Vec::new();
        match socket.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        assert!(!String::from_utf8_lossy(&answer).contains("Mode"));
    }
    let mut socket = open(&server);
    let get = request(1, 4, &[&text("/srvr")[..], &[0]].concat());
    socket.write_all(&get[..14]).unwrap();
    bystander.is_undisturbed();
    socket.write_all(&get[14..]).unwrap();
    assert_eq!(receive(&mut socket).unwrap()[12..], (-101_i32).to_be_bytes());
}

/// Whoever asks for something long has all of it, even if he has nothing more to say, and those who do
/// not read it do not fill the memory.
#[test]
fn what_waits_for_askers_of_words_is_bounded() {
    let server = Server::start_with(&["--set", "words=['dump']", "--set", "outbox_mb=65"]);
    let mut owner = Client::open(server.client);
    let long = |number| format!("/{number:05}{}", "x".repeat(3900));
    let ephemeral = |number| Op::Create {
        path: path(&long(number)),
        data: None,
        acl: Acl::open(),
        mode: CreateMode::EPHEMERAL,
    };
    for first in (0..5000).step_by(100) {
        let asked: Vec<_> =
            (first..first + 100).map(|number| owner.ask(ephemeral(number))).collect();
        asked.into_iter().for_each(|xid| drop(owner.answer(xid).unwrap()));
    }
    let ask = || {
        let mut socket = dial(&server);
        socket.write_all(b"dump").unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        socket
    };
    let mut answer = String::new();
    ask().read_to_string(&mut answer).unwrap();
    assert!(answer.len() > 5000 * 3900 && answer.ends_with(&format!("{}\n", long(4999))));
    let _silent: Vec<_> = (0..10).map(|_| ask()).collect();
    server.wait_for_metric("conclave_slow_consumers_total", 1);
    owner.call(create("/others", 0)).unwrap();
}

#[test]
fn monitors_read_what_there_is() {
    let server = Server::start_with(&["--set", "words=['mntr']"]);
    let monitored = |key: &str| {
        let mut socket = dial(&server);
        socket.write_all(b"mntr").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let line = answer.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('\t'));
        line.map(str::to_owned).unwrap_or_else(|| panic!("{key} is not in {answer}"))
    };
    let mut socket = open(&server);
    let nodes: u64 = monitored("zk_znode_count").parse().unwrap();
    // Two ephemeral nodes, and a watch on one of them.
    for (xid, path) in [(1, "/a"), (2, "/b")] {
        let acl =
            [&1_i32.to_be_bytes()[..], &31_i32.to_be_bytes(), &text("world"), &text("anyone")];
        let body = [&text(path)[..], &[0; 4], &acl.concat(), &1_i32.to_be_bytes()].concat();
        socket.write_all(&request(xid, 1, &body)).unwrap();
        assert_eq!(receive(&mut socket).unwrap()[12..16], [0; 4]);
    }
    socket.write_all(&request(3, 3, &[&text("/a")[..], &[1]].concat())).unwrap();
    receive(&mut socket).unwrap();
    assert_eq!(monitored("zk_znode_count"), (nodes + 2).to_string());
    for (key, value) in [
        ("zk_server_state", "standalone"),
        ("zk_ephemerals_count", "2"),
        ("zk_watch_count", "1"),
        ("zk_global_sessions", "1"),
        ("zk_outstanding_requests", "0"),
    ] {
        assert_eq!(monitored(key), value, "{key}");
    }
    let open: usize = monitored("zk_open_file_descriptor_count").parse().unwrap();
    // That of the question is closed by now, and the one through which they were counted.
    assert!((server.open_files()..server.open_files() + 3).contains(&open), "{open}");
    // The session ends, and its nodes with it.
    socket.write_all(&request(4, -11, &[])).unwrap();
    receive(&mut socket).unwrap();
    assert_eq!(monitored("zk_ephemerals_count"), "0");
    assert_eq!(monitored("zk_znode_count"), nodes.to_string());
}

#[test]
fn numbers_that_promise_too_much_are_errors_and_the_connection_goes_on() {
    let server = Server::start();
    let before = server.resident_bytes();
    let mut socket = open(&server);
    let mut xid = 0;
    for number in [-2, i32::MIN, 1 << 20, i32::MAX] {
        let number = number.to_be_bytes();
        for (kind, parts) in [
            // A path, data, an ACL, and lists of paths of that size.
            (4, vec![&number[..]]),
            (5, vec![&[0, 0, 0, 2, b'/', b'a'][..], &number]),
            (7, vec![&[0, 0, 0, 2, b'/', b'a'][..], &number]),
            (101, vec![&[0; 8][..], &number]),
            (105, vec![&[0; 24][..], &number]),
            (14, vec![&[0, 0, 0, 1, 0, 0, 0, 0, 0][..], &number]),
            (22, vec![&[0, 0, 0, 4, 0, 0, 0, 0, 0][..], &number]),
            (103, vec![&number[..]]),
            (502, vec![&[0, 0, 0, 2, b'/', b'a', 0, 0, 0, 0][..], &number]),
        ] {
            xid += 1;
            let xid = if matches!(kind, 101 | 105) { -8 } else { xid };
            let code = ask(&mut socket, xid, kind, &parts.concat());
            assert_eq!(code, Some(MARSHALLING_ERROR), "request {kind} with {number:?}");
        }
    }
    assert!(server.resident_bytes() < before + (16 << 20), "memory for what never came");
    assert_eq!(ask(&mut socket, -2, 11, &[]), Some(0));
}

#[test]
fn listings_that_look_at_every_child_are_made_one_at_a_time() {
    let server = Server::start();
    let mut bystander = Bystander::start(&server);
    let mut setter = Client::open(server.client);
    setter.call(create("/many", 0)).unwrap();
    let then = (0..MULTI_OPS).map(|n| create(&format!("/many/{n}"), 0)).collect();
    setter.call(Op::Multi { conditions: vec![], then, otherwise: vec![] }).unwrap();
    let mut greedy = open(&server);
    // Whose requests are small may soon have many in flight.
    let exists = request(1, 3, &[&text("/many")[..], &[0]].concat());
    greedy.write_all(&exists.repeat(5_000)).unwrap();
    (0..5_000).for_each(|_| drop(receive(&mut greedy).unwrap()));
    let ephemeral_ones = request(2, 500, &[&text("/many")[..], &[0, 2]].concat());
    greedy.write_all(&ephemeral_ones.repeat(IN_FLIGHT)).unwrap();
    let count = |answer: &[u8]| i32::from_be_bytes(answer[16..20].try_into().unwrap());
    assert_eq!(count(&receive(&mut greedy).unwrap()), 0);
    bystander.create("/many/ephemeral");
    let answers = (1..IN_FLIGHT).map(|_| count(&receive(&mut greedy).unwrap()));
    assert_eq!(answers.last(), Some(1), "others wait until all are made");
}

#[test]
fn a_flood_of_watches_is_refused_at_the_limit() {
    let server = Server::start();
    let mut bystander = Bystander::start(&server);
    let before = server.resident_bytes();
    let mut socket = open(&server);
    // Two requests of 60,000 watches each.
    let codes = [0, 60_000].map(|first| {
        let paths: Vec<u8> =
            (first..first + 60_000).flat_map(|number| text(&format!("/{number:06}"))).collect();
        let count = 60_000_i32.to_be_bytes();
        let empty = [0; 4];
        let body = [&[0; 8][..], &empty, &count, &paths, &empty].concat();
        ask(&mut socket, -8, 101, &body)
    });
    assert_eq!(codes, [Some(0), Some(THROTTLED)]);
    bystander.is_undisturbed();
    let each = (server.resident_bytes() - before) / WATCHES_PER_SESSION as u64;
    assert!(each < 1024, "{each} bytes for a watch");
    // The client may go on with what it has.
    assert_eq!(ask(&mut socket, -2, 11, &[]), Some(0));
    drop(socket);
    bystander.is_undisturbed();
}

#[test]
fn a_flood_of_attempts_to_authenticate_is_refused() {
    let server = Server::start();
    let mut bystander = Bystander::start(&server);
    let auth = |scheme: &str, who: &str| [&[0; 4][..], &text(scheme), &text(who)].concat();
    // Whoever says the same again is who they were before.
    let mut socket = open(&server);
    for _ in 0..2_000 {
        assert_eq!(ask(&mut socket, -4, 100, &auth("digest", "u:p")), Some(0));
    }
    // One identity is the address.
    for number in 2..IDENTITIES {
        assert_eq!(ask(&mut socket, -4, 100, &auth("digest", &format!("{number}:p"))), Some(0));
    }
    assert_eq!(ask(&mut socket, -4, 100, &auth("digest", "last:p")), Some(AUTH_FAILED));
    assert_eq!(receive(&mut socket), None);
    // Each wrong attempt ends its connection.
    for scheme in ["nonsense", "x509", "sasl", "super", "world", ""] {
        let mut socket = open(&server);
        assert_eq!(ask(&mut socket, -4, 100, &auth(scheme, "u:p")), Some(AUTH_FAILED), "{scheme}");
        assert_eq!(receive(&mut socket), None);
    }
    bystander.is_undisturbed();
}

#[test]
fn a_flood_of_sessions_disturbs_nobody() {
    let server = Server::start();
    let mut bystander = Bystander::start(&server);
    let before = server.resident_bytes();
    // Their clients go without a word, and their sessions stay until they expire.
    for round in 0..20 {
        let sockets: Vec<TcpStream> = (0..100)
            .map(|_| {
                let mut socket = dial(&server);
                socket.write_all(&hello()).unwrap();
                socket
            })
            .collect();
        for mut socket in sockets {
            assert_eq!(receive(&mut socket).unwrap().len(), 37, "round {round}");
        }
        bystander.is_undisturbed();
    }
    let each = server.resident_bytes().saturating_sub(before) / 2_000;
    assert!(each < 16 << 10, "{each} bytes for a session that is left behind");
}

/// ZooKeeper computes a session's password from its number, which everybody can read in the
/// session's ephemeral nodes: 16 bytes of Java's random numbers.
fn password_of_zookeeper(session: u64) -> Vec<u8> {
    const MASK: u64 = (1 << 48) - 1;
    const MULTIPLIER: u64 = 0x5_DEEC_E66D;
    let mut state = (session ^ 0xB341_5C00 ^ MULTIPLIER) & MASK;
    let mut next = || {
        state = (state.wrapping_mul(MULTIPLIER) + 0xB) & MASK;
        u32::try_from(state >> 16).unwrap().to_le_bytes()
    };
    [next(), next(), next(), next()].concat()
}

#[test]
fn the_password_of_a_session_cannot_be_computed() {
    // The example is ZooKeeper's own arithmetic: the first number of `new java.util.Random(0)`.
    assert_eq!(password_of_zookeeper(0xB341_5C00)[..4], 0xBB20_B460_u32.to_le_bytes());
    let server = Server::start();
    let mut socket = dial(&server);
    socket.write_all(&hello()).unwrap();
    let greeting = receive(&mut socket).unwrap();
    let session = &greeting[8..16];
    let guess = password_of_zookeeper(u64::from_be_bytes(session.try_into().unwrap()));
    assert_ne!(guess, greeting[20..36]);
    let mut thief = dial(&server);
    let (timeout, length) = (10_000_i32.to_be_bytes(), 16_i32.to_be_bytes());
    let hello = [&[0; 12][..], &timeout, session, &length, &guess, &[0]].concat();
    thief.write_all(&framed(&hello)).unwrap();
    assert_eq!(receive(&mut thief).unwrap()[4..16], [0; 12]);
    assert_eq!(receive(&mut thief), None);
    assert_eq!(ask(&mut socket, -2, 11, &[]), Some(0));
}

#[test]
fn an_address_is_the_sockets_and_cannot_be_claimed() {
    let server = Server::start();
    for claim in ["PROXY TCP4 10.0.0.1 127.0.0.1 1 2\r\n", "X-Forwarded-For: 10.0.0.1\r\n\r\n"] {
        let mut socket = dial(&server);
        socket.write_all(&[claim.as_bytes(), &hello()].concat()).ok();
        assert_eq!(receive(&mut socket), None);
    }
    let mut socket = open(&server);
    let auth = [&[0; 4][..], &text("ip"), &text("10.0.0.1")].concat();
    assert_eq!(ask(&mut socket, -4, 100, &auth), Some(0));
    socket.write_all(&request(1, 107, &[])).unwrap();
    let who = receive(&mut socket).unwrap();
    let expected = [&1_i32.to_be_bytes()[..], &text("ip"), &text("127.0.0.1")].concat();
    assert_eq!(who[16..], expected);
}

#[test]
fn no_secret_is_in_the_log_however_much_is_logged() {
    let server = Server::start_with(&["--log", "trace"]);
    crate::server::wait_for("the server to serve", || {
        server.get("/ready").starts_with("ready").then_some(())
    });
    let mut socket = dial(&server);
    socket.write_all(&hello()).unwrap();
    let greeting = receive(&mut socket).unwrap();
    let auth = |scheme, secret| [&[0; 4][..], &text(scheme), &text(secret)].concat();
    assert_eq!(ask(&mut socket, -4, 100, &auth("digest", "ann:hunter2")), Some(0));
    let acl = [&1_i32.to_be_bytes()[..], &31_i32.to_be_bytes(), &text("auth"), &text("")].concat();
    let body = [&text("/secret")[..], &text("treasure"), &acl, &[0; 4]].concat();
    assert_eq!(ask(&mut socket, 1, 1, &body), Some(0));
    let mut stranger = open(&server);
    let get = [&text("/secret")[..], &[0]].concat();
    assert_eq!(ask(&mut stranger, 1, 4, &get), Some(-102));
    assert_eq!(ask(&mut stranger, -4, 100, &auth("nonsense", "hunter3")), Some(AUTH_FAILED));
    assert_eq!(ask(&mut socket, 2, -11, &[]), Some(0));
    let log = server.log();
    let password = &greeting[20..36];
    let in_hex: String = password.iter().map(|byte| format!("{byte:02x}")).collect();
    let in_decimal = format!("{password:?}");
    // The hash of ann:hunter2 is as good as the password to whoever has time.
    let hash = "240ZrNAp19hVR268gAPjmV7OW08=";
    for secret in ["hunter2", "hunter3", "treasure", hash, &in_hex, &in_decimal] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}
