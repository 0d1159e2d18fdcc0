//! What a client may not do, what there is a most of, and what is given back.

use bytes::Bytes;
use conclave::hub::{Hub, Watch, Watcher};
use conclave::limits::{
    EVENTS_AT_ONCE, IDENTITIES, IN_FLIGHT, LOCAL_SESSIONS, PENDING_BYTES, PENDING_REQUESTS,
    TURN_EVENTS, VALUE_BYTES, WATCHED_BYTES, WATCHED_BYTES_PER_SESSION, WATCHES_PER_SESSION,
};
use conclave::replica::{ConnId, Input, PeerMessage, Strain, is_heavy};
use conclave_proto::message::{Connect, PROTOCOL_VERSION};
use conclave_proto::request::{Page, ReadLevel};
use conclave_proto::{
    Acl, ClientMessage, CreateMode, Credentials, Event, EventKind, Identity, Op, Perms, Secret,
    ServerMessage, SessionId, WatchId, WatchKind, Xid, ZPath, Zxid,
};
use sha1::{Digest, Sha1};

use crate::world::{World, server};

const BEHIND: Strain = Strain { low_space: false, is_behind: true };

fn path(text: &str) -> ZPath {
    ZPath::new(text).unwrap()
}

fn set(value: usize) -> Op {
    let data = Some(Bytes::from(vec![b'x'; value]));
    Op::SetData { path: ZPath::root(), data, version: None }
}

/// A server, and its client "a".
fn world_of_one() -> World {
    let mut world = World::new(1);
    world.elect();
    world.dial("a", server(1), 60_000);
    world.settle();
    world
}

/// A client connects, and says nothing yet.
fn connect(world: &mut World, name: &str, conn: ConnId) {
    world.client(name).conn = Some(conn);
    let fresh = (SessionId(77), Secret::new([7; 16]));
    let opened = Input::Opened { conn, identities: vec![], fresh, numbered: true };
    world.step(server(1), opened);
}

fn says(world: &World, what: &str) -> bool {
    world.log.iter().any(|line| line.contains(what))
}

/// A client that speaks another version of the protocol is told so, and not served.
#[test]
fn another_version_of_the_protocol_is_refused() {
    let mut world = world_of_one();
    let conn = ConnId(1_000);
    connect(&mut world, "b", conn);
    let (session, last_zxid) = (None, Zxid::ZERO);
    let version = PROTOCOL_VERSION + 1;
    let connect = Connect { version, session, timeout_ms: 1_000, last_zxid, read_only: false };
    world.step(server(1), Input::Client { conn, message: ClientMessage::Connect(connect) });
    world.settle();
    assert!(
        says(&world, "b: refused: Unimplemented") && says(&world, "b: closed"),
        "{:?}",
        world.log
    );
}

/// Nothing is asked without a session.
#[test]
fn who_asks_without_a_session_is_cut_off() {
    let mut world = World::new(1);
    world.elect();
    let conn = ConnId(1_000);
    connect(&mut world, "b", conn);
    let op = Op::Get { path: ZPath::root(), watch: None };
    let request =
        ClientMessage::Request { xid: Xid(1), acked: Xid(0), level: ReadLevel::Local, op };
    world.step(server(1), Input::Client { conn, message: request });
    world.settle();
    assert_eq!(world.log, ["b: closed"]);
}

/// What only servers may ask, no client may.
#[test]
fn what_the_system_asks_no_client_may() {
    let mut world = world_of_one();
    world.log.clear();
    let (session, timeout_ms, secret) = (SessionId(5), 1_000, Secret::new([1; 16]));
    let reap = Op::Reap { path: path("/x"), seen: (Zxid::ZERO, Zxid::ZERO) };
    let ops = [Op::ExpireSession, Op::CreateSession { session, timeout_ms, secret }, reap];
    for op in ops {
        world.ask("a", ReadLevel::Local, op);
        world.settle();
    }
    let refused = |line: &&String| line.contains("BadArguments");
    assert_eq!(world.log.iter().filter(refused).count(), 3, "{:?}", world.log);
    assert_eq!(world.status(server(1)).unwrap().sessions, 1);
}

#[test]
fn who_pings_without_end_is_cut_off() {
    let mut world = world_of_one();
    (0..IN_FLIGHT).for_each(|_| world.say("a", ClientMessage::Ping));
    world.settle();
    assert!(!says(&world, "a: closed"));
    world.say("a", ClientMessage::Ping);
    world.settle();
    assert!(says(&world, "a: closed"));
}

/// A server stood still, and the ticks that it missed come at once, before what its clients have said
/// meanwhile.
#[test]
fn ticks_that_come_at_once_end_no_session() {
    let mut world = World::new(1);
    world.elect();
    world.dial("a", server(1), 1_000);
    world.settle();
    world.pass(900);
    world.now_ms += 5_000;
    let (now_ms, time_ms) = (world.now_ms, i64::try_from(world.now_ms).unwrap());
    for _ in 0..20 {
        world.step(server(1), Input::Tick { now_ms, time_ms });
        world.settle();
    }
    world.say("a", ClientMessage::Ping);
    world.pass(700);
    assert!(!says(&world, "expired"), "{:?}", world.log);
}

/// What was said to an earlier life of this server, or of a report given up, makes no sign of life
/// count.
#[test]
fn a_word_about_another_report_counts_for_nothing() {
    let mut world = World::new(3);
    world.elect();
    let (leader, one) = (world.leader().unwrap(), server(1));
    world.dial("a", one, 60_000);
    world.settle();
    world.hold(leader, one, true);
    world.say("a", ClientMessage::Ping);
    world.pass(300);
    world.log.clear();
    let epoch = world.status(leader).unwrap().epoch;
    for report in [0, 1, 2, 1 << 32] {
        let message = PeerMessage::Counted { epoch, report, refused: vec![] };
        world.step(one, Input::Peer { from: leader, message });
    }
    world.say("a", ClientMessage::Ping);
    world.pass(50);
    assert!(says(&world, "a: pong") && !says(&world, "alive"), "{:?}", world.log);
}

/// So much waits at the leader that more is refused: but not the retry of what was done, nor that somebody
/// opens a session, or ends one.
#[test]
fn when_too_much_waits_retries_and_sessions_do_too() {
    let mut world = World::new(3);
    world.elect();
    let leader = world.leader().unwrap();
    let names = ["a", "b", "c", "r", "x"];
    for (number, name) in names.iter().enumerate() {
        world.dial(name, server(u8::try_from(number % 3).unwrap() + 1), 60_000);
        world.settle();
    }
    world.ask("r", ReadLevel::Local, set(1));
    world.settle();
    for id in world.ids() {
        world.step(id, Input::Strain(BEHIND));
    }
    world.settle();
    for name in &names[..3] {
        (0..24).for_each(|_| _ = world.ask(name, ReadLevel::Local, set(VALUE_BYTES)));
    }
    world.settle();
    world.log.clear();
    world.ask("x", ReadLevel::Local, set(1));
    world.settle();
    assert!(says(&world, "x: #1 Throttled"), "{:?}", world.log);
    world.ask_as("r", 1, ReadLevel::Local, set(1));
    world.dial("d", leader, 60_000);
    world.ask("x", ReadLevel::Local, Op::CloseSession);
    world.settle();
    assert_eq!(
        world.log.len(),
        1 + world.log.iter().filter(|it| !it.contains(": #1 ") && it.contains("Throttled")).count()
    );
    for id in world.ids() {
        world.step(id, Input::Strain(Strain::default()));
    }
    world.pass(100);
    assert!(says(&world, "r: #1 version 1 at"), "the retry");
    assert!(says(&world, "d: opened"), "a new session");
    assert!(says(&world, "x: #2 done"), "the end of one");
}

/// A server has as many writes without an answer as it may have: nobody opens a session there, who has one
/// that only this server knows is sent elsewhere when it writes, and so is who asks for more.
#[test]
fn a_server_takes_no_more_than_it_can_remember() {
    for local in [false, true] {
        let mut world = World::with(3, if local { "local-sessions" } else { "" });
        world.elect();
        let names: Vec<String> = (0..PENDING_BYTES / (16_000 * IN_FLIGHT) + 1)
            .map(|number| format!("{number}"))
            .collect();
        for name in names.iter().map(String::as_str).chain(["l", "m"]) {
            world.dial(name, server(1), 60_000);
            world.settle();
        }
        for name in names.iter().map(String::as_str).chain(["m"]) {
            world.ask(name, ReadLevel::Local, set(1));
            world.settle();
        }
        world.hold(server(1), server(2), true);
        world.hold(server(1), server(3), true);
        // In small pieces, so that nothing is kept for those who ask for little.
        let mut asked = 0;
        'all: for name in &names {
            for _ in 0..IN_FLIGHT {
                if asked >= PENDING_BYTES {
                    break 'all;
                }
                world.ask(name, ReadLevel::Local, set(16_000));
                asked += 16_000;
            }
        }
        world.settle();
        world.log.clear();
        let full = "n: refused: Throttled";
        world.dial("n", server(1), 60_000);
        world.settle();
        assert_eq!(says(&world, full), !local, "{:?}", world.log);
        for name in ["l", "m"] {
            world.ask(name, ReadLevel::Local, set(1));
            world.settle();
            assert!(says(&world, &format!("{name}: closed")), "{name}: {:?}", world.log);
        }
    }
}

/// Those beyond what one server may know alone are opened for all.
#[test]
fn sessions_that_one_server_knows_alone_have_a_most() {
    let mut world = World::with(1, "local-sessions");
    world.elect();
    for number in 0..=LOCAL_SESSIONS as u64 {
        let conn = ConnId(1_000_000 + number);
        let mut secret = [0; 16];
        secret[..8].copy_from_slice(&number.to_le_bytes());
        let fresh = (SessionId(1_000_000 + number), Secret::new(secret));
        world.step(server(1), Input::Opened { conn, identities: vec![], fresh, numbered: true });
        let (version, session, last_zxid) = (PROTOCOL_VERSION, None, Zxid::ZERO);
        let connect = Connect { version, session, timeout_ms: 60_000, last_zxid, read_only: false };
        world.step(server(1), Input::Client { conn, message: ClientMessage::Connect(connect) });
        if number == LOCAL_SESSIONS as u64 - 1 {
            world.settle();
            assert_eq!(world.status(server(1)).unwrap().sessions, 0);
        }
    }
    world.settle();
    assert_eq!(world.status(server(1)).unwrap().sessions, 1);
}

fn only(who: &str) -> std::sync::Arc<[Acl]> {
    let identity = Identity { scheme: "digest".into(), id: who.into() };
    [Acl { perms: Perms::ALL, identity }].into()
}

fn values(world: &mut World, name: &str) -> Vec<(Zxid, Option<Bytes>)> {
    let told = std::mem::take(&mut world.client(name).received);
    let event = |message| {
        let ServerMessage::Event { event, value, .. } = message else { return None };
        Some((event.zxid, value))
    };
    told.into_iter().filter_map(event).collect()
}

/// The value that goes with an event is one that the watcher may read: the ACL may have changed in the
/// same transaction, or since.
#[test]
fn no_value_goes_with_an_event_to_who_may_not_read_it() {
    let mut world = World::new(1);
    world.elect();
    for name in ["a", "b"] {
        world.dial(name, server(1), 60_000);
        world.settle();
    }
    let node = || path("/s");
    let data = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
    let (acl, mode) = (Acl::open(), CreateMode::PERSISTENT);
    world.ask("a", ReadLevel::Local, Op::Create { path: node(), data: data("open"), acl, mode });
    world.settle();
    let since = world.clients["b"].last_zxid;
    let watch = |id, since| Op::Watch {
        id: WatchId(id),
        path: node(),
        kind: WatchKind::Persistent,
        since,
        with_value: true,
    };
    world.ask("b", ReadLevel::Local, watch(1, None));
    world.settle();
    world.client("b").received.clear();
    let write = Op::SetData { path: node(), data: data("secret"), version: None };
    let hide = Op::SetAcl { path: node(), acl: only("x:y"), version: None };
    let op = Op::Multi { conditions: vec![], then: vec![write, hide], otherwise: vec![] };
    world.ask("a", ReadLevel::Local, op);
    world.settle();
    let told = values(&mut world, "b");
    assert!(told.iter().all(|(_, value)| value.is_none()), "{told:?}");
    world.client("b").received.clear();
    world.ask("b", ReadLevel::Local, watch(2, Some(since)));
    world.settle();
    let told = values(&mut world, "b");
    assert!(!told.is_empty() && told.iter().all(|(_, value)| value.is_none()), "{told:?}");
}

#[test]
fn each_part_of_a_read_sets_its_watch() {
    let mut world = world_of_one();
    let (x, y) = (path("/x"), path("/y"));
    let exists = |at: &ZPath, id| Op::Exists { path: at.clone(), watch: Some(WatchId(id)) };
    let get = Op::Get { path: ZPath::root(), watch: Some(WatchId(3)) };
    let ops = vec![exists(&x, 1), exists(&y, 2), get];
    world.ask("a", ReadLevel::Local, Op::MultiRead(ops));
    world.settle();
    world.log.clear();
    for at in [x, y] {
        let (acl, mode) = (Acl::open(), CreateMode::PERSISTENT);
        world.ask("a", ReadLevel::Local, Op::Create { path: at, data: None, acl, mode });
    }
    world.ask("a", ReadLevel::Local, set(1));
    world.settle();
    for id in 1..=3 {
        assert!(says(&world, &format!("a: watch {id}:")), "{:?}", world.log);
    }
}

/// What may look at thousands of nodes for a small answer waits for others.
#[test]
fn what_costs_much_is_heavy() {
    let root = ZPath::root;
    let list = |page| Op::Children { path: root(), watch: None, page };
    let all = Page { with_stat: true, ..Page::WHOLE };
    let kind = WatchKind::Persistent;
    let since = Some(Zxid::ZERO);
    let watch =
        |kind, since| Op::Watch { id: WatchId(1), path: root(), kind, since, with_value: false };
    let credentials = Credentials::from(Bytes::from_static(b"user:password"));
    for op in [
        Op::CountDescendants { path: root() },
        Op::Ephemerals { prefix: "/".into() },
        Op::Authenticate { scheme: "digest".into(), credentials },
        Op::MultiRead(vec![Op::Get { path: root(), watch: None }, list(Page::default())]),
        list(all),
        watch(kind, since),
        watch(WatchKind::PersistentRecursive, since),
    ] {
        assert!(is_heavy(&op), "{op:?}");
    }
    for op in [
        Op::Get { path: root(), watch: None },
        Op::MultiRead(vec![Op::Get { path: root(), watch: None }]),
        list(Page::WHOLE),
        list(Page::default()),
        watch(kind, None),
        watch(WatchKind::Data, since),
    ] {
        assert!(!is_heavy(&op), "{op:?}");
    }
}

/// Transactions of which many are told are left to later turns, and those are done.
#[test]
fn transactions_that_many_are_told_of_take_turns() {
    let mut world = World::new(1);
    world.elect();
    let names: Vec<String> = (0..10).map(|number| format!("{number}")).collect();
    for name in names.iter().map(String::as_str).chain(["w"]) {
        world.dial(name, server(1), 60_000);
        world.settle();
    }
    for name in &names {
        for id in 0..100 {
            let (kind, path) = (WatchKind::Persistent, ZPath::root());
            let op = Op::Watch { id: WatchId(id), path, kind, since: None, with_value: false };
            world.ask(name, ReadLevel::Local, op);
        }
        world.settle();
    }
    world.turns.clear();
    (0..300).for_each(|_| _ = world.ask("w", ReadLevel::Local, set(1)));
    world.settle();
    let answered: Vec<usize> = world.turns.iter().map(Vec::len).collect();
    assert_eq!(answered.iter().sum::<usize>(), 300);
    assert!(answered.iter().all(|&count| count <= TURN_EVENTS / 1000), "{answered:?}");
}

/// What is answered, fired or removed leaves room: for more writes, for more watches, for ever. (282, 213,
/// 215, 223, 224)
#[test]
fn what_is_over_leaves_room() {
    let mut world = world_of_one();
    for _ in 0..=PENDING_BYTES / VALUE_BYTES {
        world.ask("a", ReadLevel::Local, set(VALUE_BYTES));
        world.settle();
    }
    assert!(!says(&world, "closed"));

    let mut hub = Hub::new(Zxid::ZERO);
    let long = ZPath::new(&format!("/{}", "x".repeat(4000))).unwrap();
    let (id, watcher) = (WatchId(1), Watcher(1));
    let times = WATCHED_BYTES.max(WATCHED_BYTES_PER_SESSION) / 4000 + 2;
    let mut told = Vec::new();
    for number in 1..=times as u64 {
        let watch =
            |kind| Watch { id, path: long.clone(), kind, since: Zxid::ZERO, with_value: false };
        assert_eq!(hub.set(watcher, watch(WatchKind::Persistent)), Ok(()), "{number}");
        assert!(hub.unset(watcher, id));
        assert_eq!(hub.set(watcher, watch(WatchKind::Data)), Ok(()), "{number}");
        let zxid = Zxid::from_bits(number);
        let event = Event { zxid, path: long.clone(), kind: EventKind::DataChanged };
        hub.fire(&event, &Acl::open(), &mut told);
        told.clear();
    }
    assert_eq!(hub.watches(), 0);
}

#[test]
fn who_one_is_takes_a_proof_and_has_a_most() {
    let mut world = world_of_one();
    let mut show = |scheme: &str, credentials: String| {
        world.log.clear();
        let (scheme, credentials) = (scheme.into(), Credentials::from(Bytes::from(credentials)));
        world.ask("a", ReadLevel::Local, Op::Authenticate { scheme, credentials });
        world.settle();
        world.log.concat()
    };
    assert!(show("x509", "CN=root".into()).contains("AuthFailed"));
    assert!(show("ip", "127.0.0.1".into()).contains("AuthFailed"));
    for number in 0..IDENTITIES - 1 {
        for _ in 0..2 {
            assert!(!show("digest", format!("{number}:p")).contains("AuthFailed"), "{number}");
        }
    }
    assert!(show("digest", "more:p".into()).contains("AuthFailed"));
}

/// A server that is not what the leader is stops before it tells anybody.
#[test]
fn a_state_that_differs_stops_its_server() {
    let mut world = World::new(3);
    world.elect();
    let leader = world.leader().unwrap();
    let one = world.ids().into_iter().find(|&id| id != leader).unwrap();
    world.dial("a", leader, 60_000);
    world.settle();
    world.corrupt(one);
    for _ in 0..3 {
        world.ask("a", ReadLevel::Local, set(1));
        world.settle();
    }
    assert!(says(&world, &format!("server {one}: diverged at")), "{:?}", world.log);
}

/// What later rules are needed for is not done by others.
#[test]
fn what_is_by_later_rules_is_not_applied() {
    let mut world = world_of_one();
    world.crash(server(1));
    world.write_by_later_rules(server(1));
    world.start(server(1));
    world.pass(1_000);
    assert!(says(&world, "server 1: cannot apply"), "{:?}", world.log);
}

/// A server that is given a snapshot knows no session alone any more: its end may be among what was
/// skipped, and somebody may have been told of it.
#[test]
fn no_local_session_outlives_a_snapshot() {
    let mut world = World::with(3, "local-sessions");
    world.elect();
    let leader = world.leader().unwrap();
    world.dial("a", server(1), 60_000);
    world.dial("w", leader, 60_000);
    world.settle();
    let session = world.clients["a"].session;
    world.cut(server(1), server(2));
    world.cut(server(1), server(3));
    world.client("thief").session = session;
    world.dial("thief", server(2), 60_000);
    world.settle();
    assert!(says(&world, "thief: refused: SessionExpired"), "{:?}", world.log);
    for _ in 0..40 {
        world.ask("w", ReadLevel::Local, set(VALUE_BYTES));
        world.settle();
    }
    world.log.clear();
    world.heal(server(1), server(2));
    world.heal(server(1), server(3));
    world.pass(3_000);
    assert!(says(&world, "a: go away"), "there was a snapshot: {:?}", world.log);
    world.dial("a", server(1), 60_000);
    world.pass(100);
    assert!(says(&world, "a: refused: SessionExpired"), "{:?}", world.log);
}

/// Nobody is given an identity before there is a session.
#[test]
fn who_shows_something_without_a_session_is_cut_off() {
    let mut world = World::new(1);
    world.elect();
    let conn = ConnId(1_000);
    connect(&mut world, "b", conn);
    let claimed = Identity { scheme: "password".into(), id: "root".into() };
    let result = Ok(vec![claimed.clone()]);
    world.step(server(1), Input::Checked { conn, xid: Xid(1), claimed, result });
    world.settle();
    assert_eq!(world.log, ["b: closed"]);
}

/// One for whom there is more in one turn than a client that reads would let pile up is dropped.
#[test]
fn who_would_be_told_too_much_at_once_is_dropped() {
    let mut world = World::new(1);
    world.elect();
    for name in ["a", "b"] {
        world.dial(name, server(1), 60_000);
        world.settle();
    }
    for first in (0..WATCHES_PER_SESSION as u64).step_by(IN_FLIGHT) {
        for id in first..(first + IN_FLIGHT as u64).min(WATCHES_PER_SESSION as u64) {
            let (kind, path) = (WatchKind::Persistent, ZPath::root());
            let op = Op::Watch { id: WatchId(id), path, kind, since: None, with_value: false };
            world.ask("a", ReadLevel::Local, op);
        }
        world.settle();
    }
    world.log.clear();
    let then = vec![set(1); EVENTS_AT_ONCE / WATCHES_PER_SESSION + 1];
    world.ask("b", ReadLevel::Local, Op::Multi { conditions: vec![], then, otherwise: vec![] });
    world.settle();
    assert!(says(&world, "a: closed"));
    assert_eq!(world.client("b").received.len(), 2, "the other one is answered");
}

/// Small writes without an answer have a most, too.
#[test]
fn a_server_remembers_no_more_small_writes_than_it_may() {
    let mut world = World::new(3);
    world.elect();
    let names: Vec<String> =
        (0..PENDING_REQUESTS.div_ceil(IN_FLIGHT)).map(|it| it.to_string()).collect();
    for name in names.iter().map(String::as_str).chain(["last"]) {
        world.dial(name, server(1), 60_000);
        world.settle();
    }
    world.hold(server(1), server(2), true);
    world.hold(server(1), server(3), true);
    let delete = || Op::Delete { path: ZPath::new("/none").unwrap(), version: None };
    let mut left = PENDING_REQUESTS;
    for name in &names {
        for _ in 0..IN_FLIGHT.min(left) {
            world.ask(name, ReadLevel::Local, delete());
            left -= 1;
        }
    }
    world.settle();
    assert!(!says(&world, "closed"));
    world.ask("last", ReadLevel::Local, delete());
    world.settle();
    assert!(says(&world, "last: go away") && says(&world, "last: closed"));
}

/// A child that comes or goes leaves its parent's data what it was.
#[test]
fn data_goes_with_events_of_what_has_changed_alone() {
    let mut world = World::new(1);
    world.elect();
    for name in ["writer", "watcher"] {
        world.dial(name, server(1), 60_000);
        world.settle();
    }
    let (id, path, kind) = (WatchId(1), ZPath::root(), WatchKind::Persistent);
    let watch = Op::Watch { id, path, kind, since: None, with_value: true };
    world.ask("watcher", ReadLevel::Local, watch);
    world.settle();
    world.client("watcher").received.clear();
    let mode = CreateMode::PERSISTENT;
    let create = Op::Create { path: self::path("/a"), data: None, acl: Acl::open(), mode };
    for op in [set(10), create] {
        world.ask("writer", ReadLevel::Local, op);
        world.settle();
    }
    let lengths =
        values(&mut world, "watcher").into_iter().map(|(_, value)| value.map(|v| v.len()));
    assert_eq!(lengths.collect::<Vec<_>>(), [Some(10), None]);
}

/// An id is no secret (it is the owner of ephemeral nodes), and the ids of sessions that only their
/// server knows show a part of a hash of the secret: another secret may have the same.
#[test]
fn a_secret_that_only_looks_right_ends_no_session() {
    let mut world = World::new(3);
    world.elect();
    let (own, found) = (Secret::new([1; 16]), Secret::new([2; 16]));
    let hash = Sha1::digest(found.expose());
    let hash = hash.iter().take(7).fold(0, |bits, &byte| bits << 8 | u64::from(byte));
    let (conn, session) = (ConnId(1_000), SessionId(1 << 56 | hash));
    world.client("owner").conn = Some(conn);
    let opened = Input::Opened { conn, identities: vec![], fresh: (session, own), numbered: true };
    world.step(server(1), opened);
    let (version, timeout_ms, last_zxid) = (PROTOCOL_VERSION, 60_000, Zxid::ZERO);
    let connect = Connect { version, session: None, timeout_ms, last_zxid, read_only: false };
    world.step(server(1), Input::Client { conn, message: ClientMessage::Connect(connect) });
    world.settle();
    world.client("other").session = Some((session, found));
    world.dial("other", server(2), 60_000);
    world.pass(3_000);
    assert!(says(&world, "owner: opened") && says(&world, "other: refused: SessionExpired"));
    assert!(!says(&world, "owner: closed"), "{:?}", world.log);
}
