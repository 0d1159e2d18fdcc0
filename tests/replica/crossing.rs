//! What is said by servers and clients, and crosses something else on its way.

use bytes::Bytes;
use conclave::replica::{Input, Role, Strain};
use conclave_proto::request::{Page, ReadLevel};
use conclave_proto::{
    Acl, CreateMode, Credentials, Identity, Op, Perms, ServerId, ServerMessage, ZPath,
};

use crate::world::{World, server};

const BEHIND: Strain = Strain { low_space: false, is_behind: true };
const FULL: Strain = Strain { low_space: true, is_behind: false };

/// The leader, and the two others.
fn roles(world: &World) -> [ServerId; 3] {
    let leader = world.leader().unwrap();
    let mut ids = world.ids();
    ids.retain(|&id| id != leader);
    [leader, ids[0], ids[1]]
}

fn set() -> Op {
    Op::SetData { path: ZPath::root(), data: None, version: None }
}

/// Nothing passes between the two, in either direction, or everything does.
fn hold(world: &mut World, a: ServerId, b: ServerId, held: bool) {
    world.hold(a, b, held);
    world.hold(b, a, held);
}

/// A write waits at the leader when the follower that has forwarded it takes the leader for dead, finds it
/// again, and forwards it once more. Whether it waits too long, or there is no space: what the leader says
/// of the first one, before the second one arrives, is not said of that.
fn refused_and_forwarded_again(waits_too_long: bool) {
    let mut world = World::new(3);
    world.elect();
    let [leader, follower, other] = roles(&world);
    world.dial("a", follower, 60_000);
    world.settle();
    for id in [leader, other, follower] {
        world.step(id, Input::Strain(BEHIND));
        world.settle();
    }
    hold(&mut world, follower, leader, true);
    let path = ZPath::new("/x-").unwrap();
    let mode = CreateMode::PERSISTENT_SEQUENTIAL;
    world.ask("a", ReadLevel::Local, Op::Create { path, data: None, acl: Acl::open(), mode });
    world.settle();
    until(&mut world, |world| world.status(follower).unwrap().role == Role::Looking);
    assert_eq!(world.leader(), Some(leader));
    let epoch = world.status(leader).unwrap().epoch;
    hold(&mut world, follower, leader, false);
    follow_again(&mut world, [leader, other, follower]);
    assert_eq!(world.status(follower).unwrap().epoch, epoch);
    world.hold(follower, leader, true);
    if waits_too_long {
        world.pass(400);
    } else {
        for id in [other, leader] {
            world.step(id, Input::Strain(FULL));
        }
        world.settle();
    }
    world.hold(follower, leader, false);
    for id in [follower, other, leader] {
        world.step(id, Input::Strain(Strain::default()));
    }
    world.pass(100);
    world.dial("b", other, 60_000);
    world.settle();
    let list = Op::Children { path: ZPath::root(), watch: None, page: Page::default() };
    world.ask("b", ReadLevel::Local, list);
    world.settle();
    let said = world.log.join("\n");
    let refused = said.contains("Throttled") || said.contains("NoSpace");
    assert_ne!(said.contains("x-0"), refused, "done or refused, one of them: {said}");
}

fn until(world: &mut World, is_so: impl Fn(&World) -> bool) {
    for _ in 0..100 {
        if is_so(world) {
            return;
        }
        world.pass(50);
    }
    panic!("it does not come to that");
}

/// Turn by turn, until the last one follows the first: what it says then is still on its way.
fn follow_again(world: &mut World, ids: [ServerId; 3]) {
    let [leader, other, follower] = ids;
    for _ in 0..100 {
        world.now_ms += 50;
        let (now_ms, time_ms) = (world.now_ms, i64::try_from(world.now_ms).unwrap());
        ids.into_iter().for_each(|id| world.step(id, Input::Tick { now_ms, time_ms }));
        for _ in 0..100 {
            for id in [leader, other, follower] {
                world.turn(id);
            }
            if world.status(follower).unwrap().role == Role::Following {
                return;
            }
        }
    }
    panic!("it does not follow");
}

#[test]
fn what_has_waited_too_long_is_refused_or_done() {
    refused_and_forwarded_again(true);
}

#[test]
fn what_is_refused_for_lack_of_space_is_not_done() {
    refused_and_forwarded_again(false);
}

/// The leader begins a new epoch when a follower asks it to resume a session; the follower asks again.
#[test]
fn a_session_that_is_asked_for_twice_stays() {
    let mut world = World::with(3, "short-epochs");
    world.elect();
    let [leader, follower, other] = roles(&world);
    world.dial("a", other, 60_000);
    world.settle();
    world.hang_up("a");
    world.dial("b", leader, 60_000);
    world.settle();
    world.ask("b", ReadLevel::Local, set());
    world.settle();
    world.hold(leader, follower, true);
    world.hold(leader, other, true);
    world.ask("b", ReadLevel::Local, set());
    world.ask("b", ReadLevel::Local, set());
    world.settle();
    // The epoch is used up, and the follower does not know it yet.
    world.dial("a", follower, 60_000);
    world.settle();
    world.hold(leader, follower, false);
    world.hold(leader, other, false);
    world.settle();
    world.pass(300);
    let is_connected = |message: &ServerMessage| matches!(message, ServerMessage::Connected(_));
    assert!(world.client("a").received.iter().any(is_connected));
    assert!(world.client("a").conn.is_some(), "{:?}", world.log);
}

/// A write that has to wait, for a read or for its session, is done in the name of when it was asked.
#[test]
fn who_a_client_shows_to_be_holds_for_what_it_asks_later() {
    for option in ["local-sessions", ""] {
        let mut world = World::with(3, option);
        world.elect();
        world.dial("a", server(1), 60_000);
        world.settle();
        world.ask("a", ReadLevel::Linearizable, Op::Exists { path: ZPath::root(), watch: None });
        let own = Identity { scheme: "auth".into(), id: String::new() };
        let create = |path| Op::Create {
            path: ZPath::new(path).unwrap(),
            data: None,
            acl: [Acl { perms: Perms::ALL, identity: own.clone() }].into(),
            mode: CreateMode::PERSISTENT,
        };
        world.ask("a", ReadLevel::Local, create("/before"));
        let credentials = Credentials::from(Bytes::from_static(b"user:password"));
        let show = Op::Authenticate { scheme: "digest".into(), credentials };
        world.ask("a", ReadLevel::Local, show);
        world.ask("a", ReadLevel::Local, create("/after"));
        world.settle();
        let said = world.log.join("\n");
        assert!(said.contains("#2 InvalidAcl") && said.contains("#4 created /after"), "{said}");
    }
}

/// An end that is none, because the session has asked for something else under that number, and a true one
/// behind it: the session is not opened again between the two.
#[test]
fn a_session_whose_end_is_under_way_is_not_resumed() {
    let mut world = World::with(3, "slow-delivery");
    world.elect();
    let [leader, ..] = roles(&world);
    world.dial("a", leader, 60_000);
    world.settle();
    world.ask_as("a", 5, ReadLevel::Local, set());
    world.settle();
    world.log.clear();
    world.ask_as("a", 5, ReadLevel::Local, Op::CloseSession);
    world.ask_as("a", 6, ReadLevel::Local, Op::CloseSession);
    let session = world.clients["a"].session;
    world.client("b").session = session;
    for _ in 0..50 {
        for id in world.ids() {
            world.turn(id);
        }
        if world.log.iter().any(|line| line.starts_with("a: #5")) {
            break;
        }
    }
    world.dial("b", leader, 60_000);
    world.pass(3_000);
    assert_eq!(world.status(leader).unwrap().sessions, 0, "{:?}", world.log);
}
