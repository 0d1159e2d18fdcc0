//! Clients that do not keep to the protocol.

use std::thread;

use bytes::{Bytes, BytesMut};
use conclave::limits::{
    ASKED_ALWAYS_BYTES, COUNT_NODES, IDENTITY_BYTES, IN_FLIGHT, MULTI_OPS, PENDING_BYTES,
    SESSION_TIMEOUT_MIN_MS, WATCHES_PER_SESSION,
};
use conclave_proto::convert::encode_client;
use conclave_proto::frame::write_frame;
use conclave_proto::limits::{FRAME_BYTES, HANDSHAKE_FRAME_BYTES, VALUE_BYTES};
use conclave_proto::request::ReadLevel;
use conclave_proto::{
    ClientMessage, ErrorCode, Op, Reply, Secret, ServerMessage, SessionId, WatchId, WatchKind, Xid,
    Zxid,
};

use crate::client::{Client, connect, create, get, path};
use crate::server::{Server, wait_for};

const MALFORMED: &str = "conclave_malformed_frames_total";
const INVALID: &str = "conclave_invalid_requests_total";
const UNFINISHED: &str = "conclave_unfinished_frames_total";

/// A client that keeps to the rules, beside one that does not.
struct Witness(Client);

impl Witness {
    fn start(server: &Server) -> Witness {
        let mut client = Client::open(server.client);
        client.call(create("/witness", 100)).unwrap();
        Witness(client)
    }

    fn is_undisturbed(&mut self) {
        let set = Op::SetData { path: path("/witness"), data: None, version: None };
        assert!(matches!(self.0.call(set), Ok(Reply::Stat(_))));
    }
}

fn is_refused(client: &mut Client) {
    let Some(ServerMessage::Refused(refused)) = client.last_words() else {
        panic!("closed without a word")
    };
    assert_eq!(refused.code, ErrorCode::BadArguments, "{}", refused.message);
}

#[test]
fn bytes_that_are_no_frames() {
    let server = Server::start();
    let mut witness = Witness::start(&server);
    let too_long = u32::try_from(HANDSHAKE_FRAME_BYTES + 1).unwrap().to_be_bytes();
    let openings: [&[u8]; 5] = [
        &too_long,
        &[0xff; 4],
        b"GET / HTTP/1.1\r\nHost: conclave\r\n\r\n",
        &[0, 0, 0, 3, 0xff, 0xff, 0xff],
        &[0, 0, 0, 0],
    ];
    for (count, opening) in (1..).zip(openings) {
        let mut client = Client::dial(server.client);
        client.send(opening);
        is_refused(&mut client);
        server.wait_for_metric(MALFORMED, count);
        witness.is_undisturbed();
    }
}

#[test]
fn frames_that_are_too_long_for_a_session() {
    let server = Server::start();
    let mut witness = Witness::start(&server);
    let mut client = Client::open(server.client);
    client.send(&u32::try_from(FRAME_BYTES + 1).unwrap().to_be_bytes());
    is_refused(&mut client);
    server.wait_for_metric(MALFORMED, 1);
    witness.is_undisturbed();
}

#[test]
fn a_frame_that_is_never_finished() {
    let server = Server::start();
    let mut witness = Witness::start(&server);
    let before = server.resident_bytes();
    // A hundred clients claim the largest frame and send little of it: what a frame claims is not
    // what it is given.
    let clients: Vec<Client> = (0..100)
        .map(|_| {
            let mut client = Client::open(server.client);
            client.send(&u32::try_from(FRAME_BYTES).unwrap().to_be_bytes());
            client.send(&[0; 100]);
            client
        })
        .collect();
    witness.is_undisturbed();
    assert!(server.resident_bytes() < before + (32 << 20), "memory for bytes that never came");
    drop(clients);
    witness.is_undisturbed();
    assert_eq!(server.metric(MALFORMED), 0, "to hang up is no offence");
}

/// Over a slow line a large request takes longer than the session's timeout, and no ping can be sent
/// within it.
#[test]
fn a_request_that_comes_slowly_keeps_its_session() {
    let server = Server::start();
    let mut witness = Witness::start(&server);
    let (mut slow, _) = Client::open_for(server.client, SESSION_TIMEOUT_MIN_MS);
    let (xid, op) = (slow.next_xid(), create("/slow", VALUE_BYTES));
    let request = ClientMessage::Request { xid, acked: Xid(0), level: ReadLevel::Local, op };
    let mut frame = BytesMut::new();
    write_frame(&mut frame, |out| encode_client(&request, out));
    // As long as it takes sessions that are silent to expire, one after the other.
    for expired in 1..=2 {
        let _silent = Client::open_for(server.client, SESSION_TIMEOUT_MIN_MS);
        while server.metric("conclave_sessions_expired_total") < expired {
            slow.send(&frame.split_to(1));
            witness.is_undisturbed();
        }
    }
    slow.send(&frame);
    slow.answer(xid).unwrap();
}

#[test]
fn more_unfinished_frames_than_a_server_has_room_for() {
    let server = Server::start();
    let mut witness = Witness::start(&server);
    let before = server.resident_bytes();
    let most = FRAME_BYTES - 1;
    let mut frame = vec![0; 4 + most];
    frame[..4].copy_from_slice(&u32::try_from(FRAME_BYTES).unwrap().to_be_bytes());
    // 400 MiB in all. Whoever has been at it the longest makes room for the others.
    let clients: Vec<Client> = (0..400)
        .map(|_| {
            let mut client = Client::open(server.client);
            client.send(&frame);
            client
        })
        .collect();
    wait_for("room to be made", || (server.metric(UNFINISHED) > 200).then_some(()));
    assert!(server.resident_bytes() < before + (320 << 20), "memory for what is never finished");
    witness.is_undisturbed();
    drop(clients);
    witness.is_undisturbed();
}

#[test]
fn messages_that_do_not_fit() {
    let server = Server::start();
    let mut witness = Witness::start(&server);
    // A request before the handshake.
    let mut client = Client::dial(server.client);
    client.ask(get("/"));
    is_refused(&mut client);
    // A second handshake.
    let mut client = Client::open(server.client);
    client.say(&connect(None));
    is_refused(&mut client);
    // A message of a kind that nobody knows: field 99, of no bytes.
    let mut client = Client::open(server.client);
    client.send_frame(&[0x9a, 0x06, 0]);
    is_refused(&mut client);
    server.wait_for_metric(MALFORMED, 3);
    witness.is_undisturbed();
}

/// The bytes of a request whose path is replaced by `bytes` of the same length.
fn with_path(xid: Xid, placeholder: &str, bytes: &[u8]) -> Vec<u8> {
    assert_eq!(placeholder.len(), bytes.len());
    let request = ClientMessage::Request {
        xid,
        acked: Xid(0),
        level: ReadLevel::Local,
        op: get(placeholder),
    };
    let mut out = BytesMut::new();
    encode_client(&request, &mut out);
    let at = out.windows(bytes.len()).position(|window| window == placeholder.as_bytes()).unwrap();
    out[at..at + bytes.len()].copy_from_slice(bytes);
    out.to_vec()
}

#[test]
fn requests_that_cannot_be_carried_out_are_answered_in_their_turn() {
    let server = Server::start();
    let mut client = Client::open(server.client);
    let first = client.ask(create("/a", 1));
    let paths: [&[u8]; 5] = [b"relativ", b"/a//b/c", b"/a/../b", b"/a\0bcde", b"/a\xff\xfebcd"];
    let bad: Vec<Xid> = paths
        .iter()
        .map(|bytes| {
            let xid = client.next_xid();
            client.send_frame(&with_path(xid, "/xxxxxx", bytes));
            xid
        })
        .collect();
    let last = client.ask(get("/a"));
    client.answer(first).unwrap();
    for xid in bad {
        assert_eq!(client.answer(xid).unwrap_err().code, ErrorCode::BadArguments);
    }
    client.answer(last).unwrap();
    server.wait_for_metric(INVALID, 5);
    assert_eq!(server.metric(MALFORMED), 0);
}

#[test]
fn a_value_over_the_limit() {
    let server = Server::start();
    let mut client = Client::open(server.client);
    let largest = client.call(create("/largest", VALUE_BYTES));
    assert!(matches!(largest, Ok(Reply::Created { .. })), "{largest:?}");
    let fault = client.call(create("/larger", VALUE_BYTES + 1)).unwrap_err();
    assert_eq!(fault.code, ErrorCode::TooLarge);
    client.call(get("/largest")).unwrap();
    assert_eq!(client.call(get("/larger")).unwrap_err().code, ErrorCode::NoNode);
}

#[test]
fn a_session_of_somebody_else() {
    let server = Server::start();
    let (mut owner, session) = Client::open_session(server.client);
    owner.call(create("/owned", 1)).unwrap();
    for stolen in [
        (session.session, Secret::new([0; 16])),
        (SessionId(session.session.0 ^ 1), session.secret),
        (SessionId::NONE, session.secret),
    ] {
        let mut thief = Client::dial(server.client);
        thief.say(&connect(Some(stolen)));
        let Some(ServerMessage::Refused(refused)) = thief.last_words() else {
            panic!("not refused")
        };
        assert_eq!(refused.code, ErrorCode::SessionExpired);
    }
    owner.call(get("/owned")).unwrap();
}

#[test]
fn a_client_that_never_reads_is_dropped_alone() {
    let server = Server::start();
    let mut writer = Client::open(server.client);
    writer.call(create("/big", 1)).unwrap();
    let before = server.open_files();
    let mut deaf = Client::open(server.client);
    let watch = Op::Watch {
        id: WatchId(1),
        path: path("/big"),
        kind: WatchKind::Persistent,
        since: None,
        with_value: true,
    };
    deaf.call(watch).unwrap();
    // Each change sends the deaf client half a MiB that it does not read.
    let dropped = (0..200).any(|_| {
        let data = Some(vec![b'y'; VALUE_BYTES / 2].into());
        writer.call(Op::SetData { path: path("/big"), data, version: None }).unwrap();
        server.metric("conclave_slow_consumers_total") == 1
    });
    assert!(dropped, "what a client does not read is kept for ever");
    wait_for("its socket to be closed", || (server.open_files() <= before).then_some(()));
    writer.call(get("/big")).unwrap();
}

#[test]
fn what_one_transaction_tells_a_client_is_bounded() {
    let server = Server::start();
    let mut witness = Witness::start(&server);
    let mut greedy = Client::open(server.client);
    let watch = |id| Op::Watch {
        id: WatchId(id),
        path: path("/witness"),
        kind: WatchKind::Persistent,
        since: None,
        with_value: false,
    };
    for batch in 0..WATCHES_PER_SESSION as u64 / 1000 {
        let asked: Vec<Xid> = (0..1000).map(|id| greedy.ask(watch(1000 * batch + id))).collect();
        asked.into_iter().for_each(|xid| assert_eq!(greedy.answer(xid), Ok(Reply::Done)));
    }
    let before = server.resident_bytes();
    // Five million events.
    let set = Op::SetData { path: path("/witness"), data: None, version: None };
    let multi = Op::Multi { conditions: vec![], then: vec![set; 50], otherwise: vec![] };
    witness.0.call(multi).unwrap();
    let grown = server.resident_bytes().saturating_sub(before) >> 20;
    assert!(grown < 256, "{grown} MiB for what nobody can read at once");
    server.wait_for_metric("conclave_slow_consumers_total", 1);
    wait_for("its watches to be gone", || (server.metric("conclave_watches") == 0).then_some(()));
    witness.is_undisturbed();
}

/// All of it is for one change, so for one turn.
#[test]
fn what_many_clients_are_told_at_once_leaves_before_it_is_all_made() {
    let server = Server::start_with(&["--set", "outbox_mb=65"]);
    wait_for("the server to serve", || server.get("/ready").starts_with("ready").then_some(()));
    let mut writer = Client::open(server.client);
    writer.call(create("/big", 1)).unwrap();
    let mut crowd: Vec<Client> = (0..400).map(|_| Client::open(server.client)).collect();
    for client in &mut crowd {
        let (id, path, kind) = (WatchId(1), path("/big"), WatchKind::Persistent);
        client.call(Op::Watch { id, path, kind, since: None, with_value: true }).unwrap();
    }
    let before = server.resident_bytes();
    let data = Some(vec![b'y'; VALUE_BYTES].into());
    writer.call(Op::SetData { path: path("/big"), data, version: None }).unwrap();
    let peak = server.peak_bytes();
    assert!(peak < before + (200 << 20), "{} MiB were made at once", (peak - before) >> 20);
    writer.call(get("/big")).unwrap();
}

/// Asks for more than sockets hold, without reading it.
fn ask_without_reading(client: &mut Client) {
    client.call(create("/big", VALUE_BYTES)).unwrap();
    for _ in 0..100 {
        client.ask(get("/big"));
    }
}

#[test]
fn a_client_that_leaves_without_reading_leaves_no_socket_behind() {
    let server = Server::start();
    let mut witness = Witness::start(&server);
    let before = server.open_files();
    let mut rude = Client::open(server.client);
    ask_without_reading(&mut rude);
    server.wait_for_metric("conclave_client_outbox_bytes", 1);
    rude.hang_up();
    wait_for("its socket to be closed", || (server.open_files() <= before).then_some(()));
    witness.is_undisturbed();
}

#[test]
fn a_session_that_ends_unread_leaves_no_socket_behind() {
    let server = Server::start();
    let mut witness = Witness::start(&server);
    let before = server.open_files();
    let (mut frozen, _) = Client::open_for(server.client, SESSION_TIMEOUT_MIN_MS);
    ask_without_reading(&mut frozen);
    wait_for("its session to end", || (server.metric("conclave_sessions") == 1).then_some(()));
    wait_for("its socket to be closed", || (server.open_files() <= before).then_some(()));
    witness.is_undisturbed();
}

#[test]
fn a_client_that_asks_without_reading_waits_alone() {
    let server = Server::start();
    let mut witness = Witness::start(&server);
    let mut greedy = Client::open(server.client);
    greedy.call(create("/big", VALUE_BYTES)).unwrap();
    let before = server.resident_bytes();
    let asked: Vec<Xid> = (0..200).map(|_| greedy.ask(get("/big"))).collect();
    witness.is_undisturbed();
    assert!(server.resident_bytes() < before + (64 << 20), "answers nobody reads pile up");
    for xid in asked {
        greedy.answer(xid).unwrap();
    }
    assert_eq!(server.metric("conclave_slow_consumers_total"), 0);
}

#[test]
fn what_costs_more_than_its_answer_shows_is_asked_one_at_a_time() {
    let server = Server::start();
    let mut witness = Witness::start(&server);
    let mut greedy = Client::open(server.client);
    greedy.call(create("/many", 0)).unwrap();
    for batch in 0..COUNT_NODES / MULTI_OPS as u64 {
        let then = (0..MULTI_OPS).map(|n| create(&format!("/many/{batch}-{n}"), 0)).collect();
        greedy.call(Op::Multi { conditions: vec![], then, otherwise: vec![] }).unwrap();
    }
    let delete = Op::Delete { path: path("/many/0-0"), version: None };
    greedy.call(delete).unwrap();
    ask_for_little(&mut greedy);
    let count = || Op::CountDescendants { path: path("/many") };
    let counted: Vec<Xid> = (0..IN_FLIGHT).map(|_| greedy.ask(count())).collect();
    assert_eq!(greedy.answer(counted[0]), Ok(Reply::Count(COUNT_NODES - 1)));
    witness.0.call(create("/many/one-more", 0)).unwrap();
    let counts = counted[1..].iter().map(|xid| greedy.answer(*xid));
    let before = counts.take_while(|count| *count == Ok(Reply::Count(COUNT_NODES - 1))).count();
    assert!(before < IN_FLIGHT / 4, "others wait until {before} are counted");
}

/// Asks so often for something small that many requests may be in flight.
fn ask_for_little(client: &mut Client) {
    let small: Vec<Xid> = (0..5_000).map(|_| client.ask(get("/zookeeper"))).collect();
    small.into_iter().for_each(|xid| drop(client.answer(xid).unwrap()));
}

#[test]
fn watches_from_the_past_are_set_one_at_a_time() {
    let server = Server::start();
    let mut witness = Witness::start(&server);
    let (mut greedy, connected) = Client::open_session(server.client);
    let then = (0..MULTI_OPS).map(|n| create(&format!("/{n}"), 0)).collect();
    greedy.call(Op::Multi { conditions: vec![], then, otherwise: vec![] }).unwrap();
    ask_for_little(&mut greedy);
    let watch = || Op::Watch {
        id: WatchId(1),
        path: path("/"),
        kind: WatchKind::PersistentRecursive,
        since: Some(connected.zxid),
        with_value: false,
    };
    let set: Vec<Xid> = (0..IN_FLIGHT).map(|_| greedy.ask(watch())).collect();
    witness.is_undisturbed();
    for xid in set {
        assert_eq!(greedy.answer(xid), Ok(Reply::Done));
    }
    assert_eq!(server.metric("conclave_slow_consumers_total"), 0);
}

#[test]
fn a_client_that_writes_much_at_once_is_read_no_faster_than_it_is_answered() {
    let server = Server::start();
    let mut witness = Witness::start(&server);
    let mut loader = Client::open(server.client);
    // Writes wait behind a read of what is not there yet until that is given up.
    let future = ReadLevel::AtLeast(Zxid::MAX);
    let read = loader.ask_at(future, get("/witness"));
    let writes = 2 * PENDING_BYTES / VALUE_BYTES;
    let sending = thread::spawn(move || {
        let data = Some(vec![b'x'; VALUE_BYTES].into());
        let set = Op::SetData { path: path("/witness"), data, version: None };
        let asked: Vec<Xid> = (0..writes).map(|_| loader.ask(set.clone())).collect();
        (loader, asked)
    });
    while !sending.is_finished() {
        witness.is_undisturbed();
    }
    let (mut loader, asked) = sending.join().unwrap();
    assert_eq!(loader.answer(read).unwrap_err().code, ErrorCode::Unavailable);
    for xid in asked {
        assert!(matches!(loader.answer(xid), Ok(Reply::Stat(_))));
    }
}

#[test]
fn clients_that_write_much_at_once_share_the_room_for_it() {
    let server = Server::start();
    let mut witness = Witness::start(&server);
    let data = Some(vec![b'x'; VALUE_BYTES / 4].into());
    let set = Op::SetData { path: path("/witness"), data, version: None };
    // More than there is room for, and none of them alone has more than one may.
    let loaders: Vec<_> = (0..40)
        .map(|_| {
            let mut loader = Client::open(server.client);
            let mut asked = vec![loader.ask_at(ReadLevel::AtLeast(Zxid::MAX), get("/witness"))];
            asked.extend((0..4).map(|_| loader.ask(set.clone())));
            (loader, asked)
        })
        .collect();
    witness.is_undisturbed();
    for (mut loader, asked) in loaders {
        let answers = asked.into_iter().map(|xid| loader.answer(xid).map(drop));
        let answers: Vec<_> = answers.map(|answer| answer.map_err(|fault| fault.code)).collect();
        assert_eq!(answers, [&[Err(ErrorCode::Unavailable)][..], &[Ok(()); 4]].concat());
    }
}

/// Each write goes with all identities of who asks for it.
#[test]
fn clients_of_many_identities_leave_room_for_others() {
    let server = Server::start();
    let mut witness = Witness::start(&server);
    let set = || Op::SetData { path: path("/witness"), data: None, version: None };
    let loaders: Vec<_> = (0..8)
        .map(|_| {
            let mut loader = Client::open(server.client);
            for number in 0..ASKED_ALWAYS_BYTES / IDENTITY_BYTES - 1 {
                let user = format!("{number}{}", "n".repeat(IDENTITY_BYTES - 50));
                let credentials = Bytes::from(format!("{user}:secret")).into();
                let op = Op::Authenticate { scheme: "digest".into(), credentials };
                assert_eq!(loader.call(op), Ok(Reply::Done));
            }
            // Whoever asks for little may have much in flight.
            let little: Vec<Xid> = (0..20 * IN_FLIGHT).map(|_| loader.ask(get("/none"))).collect();
            little.into_iter().for_each(|xid| _ = loader.answer(xid));
            let mut asked = vec![loader.ask_at(ReadLevel::AtLeast(Zxid::MAX), get("/witness"))];
            asked.extend((1..IN_FLIGHT).map(|_| loader.ask(set())));
            (loader, asked)
        })
        .collect();
    for _ in 0..100 {
        witness.is_undisturbed();
    }
    for (mut loader, asked) in loaders {
        let answers = asked.into_iter().map(|xid| loader.answer(xid).map(drop));
        let answers: Vec<_> = answers.map(|answer| answer.map_err(|fault| fault.code)).collect();
        let expected = [&[Err(ErrorCode::Unavailable)][..], &[Ok(()); IN_FLIGHT - 1]].concat();
        assert_eq!(answers, expected);
    }
}

#[test]
fn a_flood_of_pings_is_answered_and_disturbs_nobody() {
    let server = Server::start();
    let mut witness = Witness::start(&server);
    let mut client = Client::open(server.client);
    let mut ping = BytesMut::new();
    encode_client(&ClientMessage::Ping, &mut ping);
    for _ in 0..10_000 {
        client.send_frame(&ping);
    }
    for _ in 0..10_000 {
        assert!(matches!(client.hear(), Some(ServerMessage::Pong { .. })));
    }
    witness.is_undisturbed();
}

#[test]
fn a_connection_that_says_nothing_is_closed() {
    let server = Server::start();
    let mut client = Client::dial(server.client);
    client.send(&[0]);
    is_refused(&mut client);
    server.wait_for_metric(MALFORMED, 1);
}
