//! The replica, driven by scripts anyone can read: see `scripts/`.
//!
//! A line that starts with `>` is a command; what follows it is what came of it. `UPDATE_EXPECT=1`
//! rewrites the expectations.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod crossing;
mod fairness;
mod guarded;
mod hub_model;
mod hub_rule;
mod script;
mod sessions;
mod show;
mod world;

use bytes::Bytes;
use conclave::limits::{
    ACL_LINES, APPLIED_BEFORE_OTHERS, CATCH_UP_BYTES, CONNECTIONS, IDENTITY_BYTES, IN_FLIGHT,
    MULTI_OPS, PENDING_BYTES, PENDING_SMALL_BYTES, QUOTA_NODES, TURN_ANSWERS_BYTES, VALUE_BYTES,
};
use conclave::replica::{Forward, Input, PeerMessage, Strain};
use conclave_proto::request::{Page, ReadLevel};
use conclave_proto::{
    Acl, CreateMode, Epoch, Identity, Lifetime, Op, Perms, Reply, Response, ServerMessage, WatchId,
    WatchKind, ZPath, Zxid,
};

use expect_test::{ExpectFile, expect_file};
use world::{World, server};

fn check(script: &str, expected: &ExpectFile) {
    expected.assert_eq(&script::run(script));
}

macro_rules! scripts {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            let script = include_str!(concat!("scripts/", stringify!($name), ".txt"));
            check(script, &expect_file![concat!("scripts/", stringify!($name), ".txt")]);
        })*
    };
}

scripts! {
    behind
    behind_reads
    catch_up_permissions
    certainty
    containers
    deposed
    early_questions
    expiry
    forwarding
    greeted_late
    greeted_with_patience
    guest_leaves
    guest_of_a_session
    hand_over
    hub
    in_line
    local_sessions
    local_sessions_end
    lost_forward
    lost_index
    lost_report
    lost_zxid
    low_space
    mourned_twice
    moved
    moved_write
    never_proposed
    next_epoch
    no_clients
    no_guests
    one_server
    overtaken
    permissions
    read_only
    reads
    rearm
    resumed
    retries
    retries_without_room
    sessions_of_clients
    slow_leader
    throttled_retry
    too_late
    turns
    waiting_again
}

#[test]
fn a_client_may_have_as_many_requests_in_flight_as_it_was_told_and_still_ping() {
    let requests = vec!["set / x"; conclave::limits::IN_FLIGHT].join("; ");
    let setting = "> servers 3\n> a dial 1\n> crash 2\n> crash 3\n";
    let full = script::run(&format!("{setting}> a {requests}\n> a ping\n> pass 50\n"));
    assert!(full.ends_with("> a ping\n> pass 50\na: pong 1.1\n"), "{full}");
    let too_full = script::run(&format!("{setting}> a {requests}\n> a set / x\n"));
    assert!(too_full.ends_with("> a set / x\na: closed\n"), "{too_full}");
}

/// What has gathered at server 1 while it had no leader fits the links once it has one: see
/// `World::perform`.
fn gather(clients: usize, requests: usize, value: usize, identities: usize) {
    let mut world = World::new(3);
    world.elect();
    let names: Vec<String> = (0..clients).map(|number| format!("client {number}")).collect();
    let one = server(1);
    for name in &names {
        let identity = Identity { scheme: "x509".into(), id: "n".repeat(200) };
        world.client(name).identities = vec![identity; identities];
        world.dial(name, one, 60_000);
        world.settle();
    }
    world.cut(one, server(2));
    world.cut(one, server(3));
    world.pass(2_000);
    let value = Bytes::from(vec![0; value]);
    for name in &names {
        for _ in 0..requests {
            let op = Op::SetData { path: ZPath::root(), data: Some(value.clone()), version: None };
            world.ask(name, ReadLevel::Local, op);
        }
    }
    world.settle();
    world.log.clear();
    world.heal(one, server(2));
    world.heal(one, server(3));
    world.elect();
}

#[test]
fn writes_that_gather_without_a_leader_fit_the_frames() {
    gather(6, 1000, 10, 16);
}

#[test]
fn writes_that_gather_without_a_leader_fit_the_link() {
    gather(8, 12, VALUE_BYTES, 1);
}

#[test]
fn the_disk_gets_its_writes_before_much_is_applied() {
    let mut world = World::new(3);
    world.elect();
    let leader = world.leader().unwrap();
    world.dial("a", leader, 60_000);
    world.settle();
    let set = || Op::SetData { path: ZPath::root(), data: None, version: None };
    let others: Vec<_> = [1, 2, 3].map(server).into_iter().filter(|&id| id != leader).collect();
    for &other in &others {
        world.hold(other, leader, true);
    }
    for _ in 0..=APPLIED_BEFORE_OTHERS {
        world.ask("a", ReadLevel::Local, set());
    }
    world.settle();
    // What commits all of them comes together with one more.
    world.ask("a", ReadLevel::Local, set());
    for &other in &others {
        world.hold(other, leader, false);
    }
    (world.turns, world.writes) = (Vec::new(), Vec::new());
    world.settle();
    let answered = world.turns.iter().position(|answers| answers.len() > APPLIED_BEFORE_OTHERS);
    let wrote = world.writes.iter().position(|&writes| writes > 0);
    assert!(wrote.is_some() && wrote < answered, "written in {wrote:?}, applied in {answered:?}");
}

#[test]
fn writes_held_behind_a_read_have_a_most() {
    let mut world = World::new(3);
    world.elect();
    for name in ["a", "b"] {
        world.dial(name, server(1), 60_000);
        world.settle();
    }
    world.cut(server(1), server(2));
    world.cut(server(1), server(3));
    world.pass(2_000);
    let read = |world: &mut World, name| {
        let op = Op::Get { path: ZPath::root(), watch: None };
        world.ask(name, ReadLevel::Linearizable, op);
    };
    let value = Bytes::from(vec![0; VALUE_BYTES]);
    let write = |world: &mut World, name| {
        let data = Some(value.clone());
        world.ask(name, ReadLevel::Local, Op::SetData { path: ZPath::root(), data, version: None });
    };
    let is_closed = |world: &World, name| world.log.contains(&format!("{name}: closed"));
    read(&mut world, "a");
    let most = (PENDING_BYTES - PENDING_SMALL_BYTES) / VALUE_BYTES;
    (0..most).for_each(|_| write(&mut world, "a"));
    world.settle();
    assert!(!is_closed(&world, "a"), "{:?}", world.log);
    // Whoever asks for little has room all the same.
    read(&mut world, "b");
    let delete = || Op::Delete { path: ZPath::new("/none").unwrap(), version: None };
    (0..100).for_each(|_| _ = world.ask("b", ReadLevel::Local, delete()));
    world.settle();
    assert!(!is_closed(&world, "b"), "{:?}", world.log);
    write(&mut world, "a");
    world.settle();
    assert!(is_closed(&world, "a"), "{:?}", world.log);
    // What it had waiting is given up with it.
    (1..most).for_each(|_| write(&mut world, "b"));
    world.settle();
    assert!(!is_closed(&world, "b"), "{:?}", world.log);
}

#[test]
fn a_watch_from_the_past_is_told_no_more_than_an_outbox_holds() {
    let mut world = World::new(1);
    world.elect();
    for name in ["a", "b"] {
        world.dial(name, server(1), 60_000);
        world.settle();
    }
    let since = Some(world.clients["b"].last_zxid);
    let value = Bytes::from(vec![b'x'; VALUE_BYTES]);
    let set = |world: &mut World| {
        let data = Some(value.clone());
        world.ask("a", ReadLevel::Local, Op::SetData { path: ZPath::root(), data, version: None });
        world.settle();
    };
    let events_and_gaps = |world: &mut World| {
        let told = std::mem::take(&mut world.client("b").received);
        let events = told.iter().filter(|it| matches!(it, ServerMessage::Event { .. })).count();
        let gaps = told.iter().filter(|it| matches!(it, ServerMessage::Gap { .. })).count();
        (events, gaps)
    };
    (0..20).for_each(|_| set(&mut world));
    for (kind, told) in [
        (WatchKind::Persistent, (CATCH_UP_BYTES.div_ceil(value.len()), 1)),
        (WatchKind::PersistentRecursive, (CATCH_UP_BYTES.div_ceil(value.len()), 1)),
        (WatchKind::Data, (1, 0)),
    ] {
        let (id, path) = (WatchId(1), ZPath::root());
        let op = Op::Watch { id, path, kind, since, with_value: true };
        world.ask("b", ReadLevel::Local, op);
        world.settle();
        assert_eq!(events_and_gaps(&mut world), told, "{kind:?}");
        // What comes after the gap is told.
        set(&mut world);
        let next = usize::from(kind != WatchKind::Data);
        assert_eq!(events_and_gaps(&mut world), (next, 0), "{kind:?}");
    }
}

/// Ten clients have sessions at server 1; their names.
fn ten_clients(world: &mut World) -> Vec<String> {
    let names: Vec<String> = (0..10).map(|number| format!("client {number}")).collect();
    for name in &names {
        world.dial(name, server(1), 60_000);
        world.settle();
    }
    names
}

#[test]
fn watches_from_the_past_are_told_no_more_in_a_turn_than_its_answers_may_take() {
    let mut world = World::new(1);
    world.elect();
    let names = ten_clients(&mut world);
    let since = Some(world.clients[&names[9]].last_zxid);
    for _ in 0..10 {
        let data = Some(Bytes::from(vec![b'x'; VALUE_BYTES]));
        let set = Op::SetData { path: ZPath::root(), data, version: None };
        world.ask(&names[0], ReadLevel::Local, set);
        world.settle();
    }
    world.turns.clear();
    for name in &names {
        let (id, path, kind) = (WatchId(1), ZPath::root(), WatchKind::Persistent);
        let op = Op::Watch { id, path, kind, since, with_value: true };
        world.ask(name, ReadLevel::Local, op);
    }
    world.settle();
    let answered: Vec<usize> = world.turns.iter().map(Vec::len).collect();
    assert_eq!(answered.iter().sum::<usize>(), names.len());
    let most = TURN_ANSWERS_BYTES.div_ceil(CATCH_UP_BYTES);
    assert!(answered.iter().all(|&count| count <= most), "{answered:?}");
}

/// A leader that is short of space refuses each write as soon as it is let go, and goes on with the
/// read behind it.
#[test]
fn a_queue_of_any_length_is_answered_on_a_small_stack() {
    let world = || {
        let mut world = World::new(1);
        world.elect();
        world.dial("a", server(1), 60_000);
        world.settle();
        let strain = Strain { low_space: true, is_behind: false };
        world.step(server(1), Input::Strain(strain));
        let later = Zxid::from_bits(world.clients["a"].last_zxid.bits() + 1);
        world.dial("b", server(1), 60_000);
        for _ in 0..IN_FLIGHT / 2 {
            let get = Op::Get { path: ZPath::root(), watch: None };
            world.ask("a", ReadLevel::AtLeast(later), get);
            let set = Op::SetData { path: ZPath::root(), data: None, version: None };
            world.ask("a", ReadLevel::Local, set);
        }
        world.settle();
        let answers = &world.client("a").received;
        assert_eq!(answers.len(), 1 + IN_FLIGHT);
    };
    let thread = std::thread::Builder::new().stack_size(512 << 10).spawn(world).unwrap();
    thread.join().unwrap();
}

#[test]
fn guests_that_have_gone_without_a_word_leave_room_for_others() {
    let mut world = World::with(3, "read-only");
    world.elect();
    world.cut(server(1), server(2));
    world.cut(server(1), server(3));
    world.pass(5_000);
    for number in 0..=CONNECTIONS {
        let name = if number == 0 { "first" } else { "guest" };
        world.client(name).accepts_read_only = true;
        world.client(name).session = None;
        world.dial(name, server(1), 60_000);
        world.settle();
        assert!(world.client(name).conn.is_some(), "{number}: {:?}", world.log);
        world.log.clear();
    }
    // Who is there is still known.
    world.dial("first", server(1), 60_000);
    world.settle();
    assert!(world.client("first").conn.is_some(), "{:?}", world.log);
}

#[test]
fn a_write_that_waits_for_too_long_is_refused_but_not_the_end_of_a_session() {
    let mut world = World::new(3);
    world.elect();
    let names = ["a", "b", "c"];
    for (number, name) in (1..).zip(names) {
        world.dial(name, server(number), 60_000);
        world.settle();
    }
    // No disk but the leader's own: there is no quorum, and what is in flight has an end.
    world.slow_disk(server(1), true);
    world.slow_disk(server(2), true);
    let value = Bytes::from(vec![0; VALUE_BYTES]);
    for _ in 0..24 {
        for name in names {
            let op = Op::SetData { path: ZPath::root(), data: Some(value.clone()), version: None };
            world.ask(name, ReadLevel::Local, op);
        }
        world.settle();
    }
    for name in names {
        world.ask(name, ReadLevel::Local, Op::CloseSession);
    }
    world.log.clear();
    world.pass(400);
    let refused = world.log.iter().filter(|line| line.contains("Throttled")).count();
    assert_eq!(refused, 0, "each waits for its turn behind what is in flight: {:?}", world.log);

    world.slow_disk(server(1), false);
    world.slow_disk(server(2), false);
    world.settle();
    let counted = |what: &str| world.log.iter().filter(|line| line.contains(what)).count();
    let done = counted("version") + counted("done");
    assert_eq!((done + counted("Throttled"), counted("done")), (24 * 3 + 3, 3), "{:?}", world.log);
    assert!(counted("Throttled") > 0, "{:?}", world.log);
}

#[test]
fn a_read_index_that_answers_an_earlier_life_answers_nothing() {
    let mut world = World::new(3);
    world.elect();
    let (leader, one) = (world.leader().unwrap(), server(1));
    world.dial("a", one, 60_000);
    world.settle();
    world.hold(one, leader, true);
    let get = Op::Get { path: ZPath::root(), watch: None };
    world.ask("a", ReadLevel::Linearizable, get);
    world.settle();
    world.log.clear();
    let (epoch, commit) = (Epoch::new(1).unwrap(), Zxid::ZERO);
    for read in [0, 1, 1 << 32, u64::MAX] {
        let message = PeerMessage::ReadAt { epoch, read, commit };
        world.step(one, Input::Peer { from: leader, message });
        world.settle();
    }
    assert!(world.log.is_empty(), "{:?}", world.log);
    world.hold(one, leader, false);
    world.settle();
    assert_eq!(world.log.len(), 1, "{:?}", world.log);
}

#[test]
fn time_does_not_stand_still_after_a_clock_that_was_ahead() {
    let mut world = World::new(1);
    world.elect();
    world.dial("a", server(1), 60_000);
    world.settle();
    let create = |path: &str, lifetime| Op::Create {
        path: ZPath::new(path).unwrap(),
        data: None,
        acl: Acl::open(),
        mode: CreateMode { lifetime, ..CreateMode::default() },
    };
    let time_ms = 24 * 3600 * 1000;
    world.step(server(1), Input::Tick { now_ms: world.now_ms, time_ms });
    world.ask("a", ReadLevel::Local, create("/n", Lifetime::Persistent));
    world.settle();
    // Somebody puts the clock right.
    world.pass(100);
    world.ask("a", ReadLevel::Local, create("/lease", Lifetime::Ttl(1_000)));
    world.pass(900);
    let get = Op::Get { path: ZPath::new("/lease").unwrap(), watch: None };
    world.log.clear();
    world.ask("a", ReadLevel::Local, get.clone());
    world.settle();
    assert!(!world.log.concat().contains("NoNode"), "{:?}", world.log);
    world.pass(2_000);
    world.ask("a", ReadLevel::Local, get);
    world.settle();
    assert!(world.log.concat().contains("NoNode"), "{:?}", world.log);
}

/// What is late of an earlier stream is taken for a new one if nothing of it has arrived before. The
/// follower hears that its own is over, and begins another.
#[test]
fn a_forward_of_an_earlier_stream_that_arrives_late_stops_nobodys_writes() {
    let mut world = World::new(3);
    world.elect();
    let leader = world.leader().expect("it was elected");
    world.dial("a", server(1), 60_000);
    world.settle();
    let set = || Op::SetData { path: ZPath::root(), data: None, version: None };
    world.ask("a", ReadLevel::Local, set());
    world.settle();
    let epoch = world.status(leader).unwrap().epoch;
    let late = Forward { epoch, stream: 1, first: 0, requests: Vec::new() };
    world.step(leader, Input::Peer { from: server(1), message: PeerMessage::Forward(late) });
    world.settle();
    world.log.clear();
    world.ask("a", ReadLevel::Local, set());
    world.pass(10_000);
    assert_eq!(world.log, ["a: #2 version 2 at 1.3"]);
}

#[test]
fn a_turn_makes_no_more_answers_than_memory_is_meant_for() {
    let mut world = World::new(1);
    world.elect();
    let names = ten_clients(&mut world);
    let root = ZPath::root;
    let data = Some(Bytes::from(vec![0; VALUE_BYTES]));
    world.ask(&names[0], ReadLevel::Local, Op::SetData { path: root(), data, version: None });
    world.settle();
    // Some are answered at once, some wait for the leader's word, and some for a write.
    for name in &names {
        let get = || Op::Get { path: root(), watch: None };
        (0..20).for_each(|_| _ = world.ask(name, ReadLevel::Local, get()));
        let touch = Op::SetAcl { path: root(), acl: Acl::open(), version: None };
        world.ask(name, ReadLevel::Local, touch);
        (0..20).for_each(|_| _ = world.ask(name, ReadLevel::Local, get()));
        (0..20).for_each(|_| _ = world.ask(name, ReadLevel::Linearizable, get()));
    }
    world.settle();
    let most = TURN_ANSWERS_BYTES + VALUE_BYTES;
    let bytes = |response: &Response| match &response.result {
        Ok(Reply::Data { data: Some(data), .. }) => data.len(),
        Ok(_) | Err(_) => 0,
    };
    for turn in &world.turns {
        let answered: usize = turn.iter().map(bytes).sum();
        assert!(answered <= most, "{answered} bytes at once");
    }
    for name in &names {
        let xid = |message: &ServerMessage| {
            if let ServerMessage::Response(response) = message {
                Some(response.xid.0)
            } else {
                None
            }
        };
        let answered = world.client(name).received.iter().filter_map(xid);
        let first = if *name == names[0] { 2 } else { 1 };
        let asked: Vec<u64> = (first..first + 61).collect();
        let answered: Vec<u64> = answered.filter(|&xid| xid >= first).collect();
        assert_eq!(answered, asked, "{name}");
    }
}

#[test]
fn who_reads_one_node_does_not_wait_for_those_who_list_thousands() {
    let mut world = World::new(1);
    world.elect();
    let names = ten_clients(&mut world);
    world.dial("quick", server(1), 60_000);
    world.settle();
    let long = "n".repeat(1000);
    for batch in 0..2 {
        let child = |number| Op::Create {
            path: ZPath::new(&format!("/{long}-{batch}-{number}")).unwrap(),
            data: None,
            acl: Acl::open(),
            mode: CreateMode::PERSISTENT,
        };
        let then = (0..MULTI_OPS).map(child).collect();
        let op = Op::Multi { conditions: vec![], then, otherwise: vec![] };
        world.ask(&names[0], ReadLevel::Local, op);
        world.settle();
    }
    world.turns.clear();
    for name in &names {
        for _ in 0..4 {
            let list = Op::Children { path: ZPath::root(), watch: None, page: Page::WHOLE };
            world.ask(name, ReadLevel::Local, list);
        }
    }
    world.ask("quick", ReadLevel::Local, Op::Exists { path: ZPath::root(), watch: None });
    world.settle();
    let is_quick = |answer: &Response| matches!(answer.result, Ok(Reply::Stat(_)));
    let turn = world.turns.iter().position(|turn| turn.iter().any(is_quick));
    assert_eq!(turn, Some(0), "of {}", world.turns.len());
    assert!(world.turns.len() > 5, "the others wait for each other");
}

#[test]
fn a_turn_answers_one_heavy_read() {
    let mut world = World::new(1);
    world.elect();
    let names = ten_clients(&mut world);
    world.turns.clear();
    let root = ZPath::root;
    for name in &names {
        // Some at once, some behind a word of the leader, some behind a write that all wait for.
        let count = || Op::CountDescendants { path: root() };
        world.ask(name, ReadLevel::Local, count());
        world.ask(name, ReadLevel::Linearizable, count());
        let touch = Op::SetAcl { path: root(), acl: Acl::open(), version: None };
        world.ask(name, ReadLevel::Local, touch);
        world.ask(name, ReadLevel::Local, count());
        world.ask(
            name,
            ReadLevel::Local,
            Op::Children { path: root(), watch: None, page: Page::WHOLE },
        );
    }
    world.settle();
    let counts = |turn: &Vec<Response>| {
        turn.iter().filter(|answer| matches!(answer.result, Ok(Reply::Count(_)))).count()
    };
    let counts: Vec<usize> = world.turns.iter().map(counts).collect();
    assert!(counts.iter().all(|&count| count <= 1), "{counts:?}");
    assert_eq!(counts.iter().sum::<usize>(), 30);
    for name in &names {
        let answered = world.client(name).received.iter();
        let answered =
            answered.filter(|message| matches!(message, ServerMessage::Response(_))).count();
        assert_eq!(answered, 5, "{name}");
    }
}

#[test]
fn heavy_reads_are_answered_in_the_order_in_which_they_came() {
    let mut world = World::new(1);
    world.elect();
    let names = ten_clients(&mut world);
    let count = || Op::CountDescendants { path: ZPath::root() };
    for name in &names {
        world.client(name).received.clear();
        world.ask(name, ReadLevel::Local, count());
    }
    let mut answered: Vec<&str> = Vec::new();
    for _ in 0..3 * names.len() {
        world.turn(server(1));
        for name in &names {
            if !world.client(name).received.is_empty() {
                world.client(name).received.clear();
                answered.push(name);
                // Whoever has an answer asks again at once, and stands behind the others.
                world.ask(name, ReadLevel::Local, count());
            }
        }
    }
    let rounds: Vec<&[&str]> = answered.chunks(names.len()).collect();
    assert_eq!(rounds, [&names[..]; 3]);
}

#[test]
fn long_acls_and_identities_are_answers_like_others() {
    let mut world = World::new(1);
    world.elect();
    let names: Vec<String> = (0..10).map(|number| format!("client {number}")).collect();
    let id = |number: usize| format!("{number}{}", "n".repeat(IDENTITY_BYTES - 10));
    let identity = |number| Identity { scheme: "x509".into(), id: id(number) };
    let identities: Vec<Identity> = (0..ACL_LINES).map(identity).collect();
    for name in &names {
        world.client(name).identities = identities.clone();
        world.dial(name, server(1), 60_000);
        world.settle();
    }
    let acl =
        identities.iter().map(|identity| Acl { perms: Perms::ALL, identity: identity.clone() });
    let op = Op::SetAcl { path: ZPath::root(), acl: acl.collect(), version: None };
    world.ask(&names[0], ReadLevel::Local, op);
    world.settle();
    world.turns.clear();
    for name in &names {
        for _ in 0..100 {
            world.ask(name, ReadLevel::Local, Op::GetAcl { path: ZPath::root() });
            world.ask(name, ReadLevel::Local, Op::WhoAmI);
        }
    }
    world.settle();
    let answered: Vec<usize> = world.turns.iter().map(Vec::len).collect();
    assert_eq!(answered.iter().sum::<usize>(), 2_000);
    let most = TURN_ANSWERS_BYTES / (ACL_LINES * (IDENTITY_BYTES - 10)) + 1;
    assert!(answered.iter().all(|&count| count <= most), "{answered:?}");
}

#[test]
fn a_turn_counts_no_more_nodes_than_one_quota_may_need() {
    let mut world = World::new(3);
    world.elect();
    world.dial("a", server(1), 60_000);
    world.settle();
    let create = |at: &str| Op::Create {
        path: ZPath::new(at).unwrap(),
        data: None,
        acl: Acl::open(),
        mode: CreateMode::PERSISTENT,
    };
    world.ask("a", ReadLevel::Local, create("/many"));
    for batch in 0..QUOTA_NODES / MULTI_OPS {
        let then = (0..MULTI_OPS).map(|n| create(&format!("/many/{batch}-{n}"))).collect();
        let multi = Op::Multi { conditions: vec![], then, otherwise: vec![] };
        world.ask("a", ReadLevel::Local, multi);
    }
    world.ask("a", ReadLevel::Local, create("/zookeeper/quota/many"));
    world.settle();
    world.turns.clear();
    const USAGE: &str = "/zookeeper/quota/many/zookeeper_stats";
    for _ in 0..5 {
        world.ask("a", ReadLevel::Local, create(USAGE));
        let path = ZPath::new(USAGE).unwrap();
        world.ask("a", ReadLevel::Local, Op::Delete { path, version: None });
    }
    world.settle();
    let created = |response: &&Response| match &response.result {
        Ok(Reply::Created { path, .. }) => path.as_str() == USAGE,
        Ok(_) | Err(_) => false,
    };
    let created = world.turns.iter().map(|turn| turn.iter().filter(created).count());
    let created: Vec<usize> = created.filter(|&count| count > 0).collect();
    assert_eq!(created, [1; 5], "each in a turn of its own");
}
