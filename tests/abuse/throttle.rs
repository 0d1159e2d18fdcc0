//! A quorum that stands still, and clients that go on writing: more than is in flight is refused.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;

use conclave::limits::{ALL_ASKED_BYTES, IN_FLIGHT, UNCOMMITTED_ENTRIES};

use crate::frames::framed;
use crate::ports::Ports;
use crate::server::{DEADLINE, Server, wait_for};

const THROTTLED: i32 = -127;
const NO_NODE: i32 = -101;
const CREATE: i32 = 1;
const DELETE: i32 = 2;
const EXISTS: i32 = 3;
const SET_DATA: i32 = 5;

/// Three servers, of which the leader must not give up while the others are frozen.
struct Three {
    servers: Vec<Server>,
    _ports: Ports,
}

impl Three {
    fn start() -> Three {
        let ports = Ports::claim();
        let peer = |id: u16| format!("127.0.0.1:{}", ports.first() + id);
        let members: Vec<String> = (1..=3).map(|id| format!("{id}={}", peer(id))).collect();
        let start = |id: u16| {
            let (id, peer) = (id.to_string(), peer(id));
            let mut flags = vec!["--id", &id, "--peer", &peer];
            for member in &members {
                flags.extend(["--member", member]);
            }
            flags.extend(["--set", "throttle_ms=50", "--set", "timing.silence_ms=60000"]);
            Server::start_with(&flags)
        };
        let servers: Vec<Server> = (1..=3).map(start).collect();
        for server in &servers {
            let serves = || server.get("/ready").starts_with("ready").then_some(());
            wait_for("the server to serve", serves);
        }
        Three { servers, _ports: ports }
    }

    /// The leader and the others.
    fn roles(&self) -> (&Server, Vec<&Server>) {
        let leads = |server: &&Server| server.get("/status").contains("\"leading\"");
        let leader = wait_for("a leader", || self.servers.iter().find(leads));
        let others = self.servers.iter().filter(|server| !std::ptr::eq(*server, leader));
        (leader, others.collect())
    }
}

/// A client with a session.
struct Client(TcpStream);

impl Client {
    fn open(server: &Server) -> Client {
        let mut socket = TcpStream::connect(server.zookeeper).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.set_nodelay(true).unwrap();
        let timeout = 600_000_i32.to_be_bytes();
        let hello = [&[0; 12][..], &timeout, &[0; 8], &16_i32.to_be_bytes(), &[0; 17]].concat();
        socket.write_all(&framed(&hello)).unwrap();
        let mut client = Client(socket);
        assert_eq!(client.hear().len(), 37);
        client
    }

    fn hear(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).unwrap();
        let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
        self.0.read_exact(&mut body).unwrap();
        body
    }

    /// The code of the next answer.
    fn code(&mut self) -> i32 {
        i32::from_be_bytes(self.hear()[12..16].try_into().unwrap())
    }

    fn ask(&mut self, kind: i32, body: &[u8]) -> i32 {
        self.0.write_all(&request(kind, body)).unwrap();
        self.code()
    }
}

fn request(kind: i32, body: &[u8]) -> Vec<u8> {
    framed(&[&1_i32.to_be_bytes()[..], &kind.to_be_bytes(), body].concat())
}

fn text(text: &str) -> Vec<u8> {
    [&i32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}

fn create(path: &str) -> Vec<u8> {
    let acl = [&1_i32.to_be_bytes()[..], &31_i32.to_be_bytes(), &text("world"), &text("anyone")];
    [&text(path)[..], &text(""), &acl.concat(), &[0; 4]].concat()
}

fn set(path: &str) -> Vec<u8> {
    set_to(path, "x")
}

fn set_to(path: &str, data: &str) -> Vec<u8> {
    [&text(path)[..], &text(data), &(-1_i32).to_be_bytes()].concat()
}

#[test]
fn writes_that_wait_for_too_long_are_refused_until_there_is_room() {
    let three = Three::start();
    let (leader, others) = three.roles();
    let mut client = Client::open(leader);
    assert_eq!(client.ask(CREATE, &create("/n")), 0);
    let mut bystander = Client::open(leader);
    // A connection is granted more in flight, step by step, while its answers are short.
    let many = request(DELETE, &[&text("/none")[..], &(-1_i32).to_be_bytes()].concat());
    let many = many.repeat(IN_FLIGHT);
    let enough = UNCOMMITTED_ENTRIES / IN_FLIGHT * 5 / 4;
    let mut writers: Vec<Client> = (0..enough).map(|_| Client::open(leader)).collect();
    for writer in &mut writers {
        writer.0.write_all(&many).unwrap();
        assert!((0..IN_FLIGHT).all(|_| writer.code() == NO_NODE));
    }

    others.iter().for_each(|server| server.freeze());
    for writer in &mut writers {
        writer.0.write_all(&many).unwrap();
    }
    // A write is refused as soon as all that may be in flight is; before, it would wait with them.
    wait_for("all to be in flight that may be", || {
        let last = leader.metric("conclave_last_zxid");
        // It is asked later, so that it may be beyond what was the last.
        let in_flight = last.saturating_sub(leader.metric("conclave_committed_zxid"));
        (in_flight >= UNCOMMITTED_ENTRIES as u64).then_some(())
    });
    for _ in 0..3 {
        assert_eq!(client.ask(SET_DATA, &set("/n")), THROTTLED);
        assert_eq!(client.ask(EXISTS, &[&text("/n")[..], &[0]].concat()), 0, "reads go on");
        assert_eq!(bystander.ask(EXISTS, &[&text("/n")[..], &[0]].concat()), 0);
    }

    others.iter().for_each(|server| server.thaw());
    let mut done = 0;
    for writer in &mut writers {
        for _ in 0..IN_FLIGHT {
            match writer.code() {
                NO_NODE => done += 1,
                code => assert_eq!(code, THROTTLED),
            }
        }
    }
    assert!(done >= UNCOMMITTED_ENTRIES, "{done} writes were in flight");
    for client in [&mut client, &mut bystander] {
        assert_eq!(client.ask(SET_DATA, &set("/n")), 0, "what was refused may be asked again");
    }
}

#[test]
fn a_large_request_waits_for_room_and_small_ones_do_not() {
    const LARGE: usize = 1_000_000;
    let three = Three::start();
    let (leader, others) = three.roles();
    let mut bystander = Client::open(leader);
    assert_eq!(bystander.ask(CREATE, &create("/n")), 0);
    let mut late = Client::open(leader);
    let enough = ALL_ASKED_BYTES / LARGE;
    let mut writers: Vec<Client> = (0..enough).map(|_| Client::open(leader)).collect();

    others.iter().for_each(|server| server.freeze());
    let value = "x".repeat(LARGE);
    for writer in &mut writers {
        writer.0.write_all(&request(SET_DATA, &set_to("/n", &value))).unwrap();
    }
    wait_for("as much as there is room for to be in flight", || {
        let last = leader.metric("conclave_last_zxid");
        let in_flight = last.saturating_sub(leader.metric("conclave_committed_zxid"));
        (in_flight >= enough as u64).then_some(())
    });
    // It would be answered at once, having no sense. Its client is not read on before it has room.
    let mut sending = late.0.try_clone().unwrap();
    let nonsense = request(EXISTS, &[&text(&value)[..], &[0]].concat());
    let sending = thread::spawn(move || sending.write_all(&nonsense).unwrap());
    for _ in 0..100 {
        assert_eq!(bystander.ask(EXISTS, &[&text("/n")[..], &[0]].concat()), 0);
    }
    late.0.set_nonblocking(true).unwrap();
    let answer = late.0.peek(&mut [0]).map_err(|error| error.kind());
    assert_eq!(answer, Err(ErrorKind::WouldBlock), "there is no room for it");
    late.0.set_nonblocking(false).unwrap();

    others.iter().for_each(|server| server.thaw());
    for writer in &mut writers {
        assert_eq!(writer.code(), 0);
    }
    assert_eq!(late.code(), NO_NODE);
    sending.join().unwrap();
}
