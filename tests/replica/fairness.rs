//! Nobody waits for ever behind those who ask for much.

use bytes::Bytes;
use conclave::limits::{MULTI_OPS, VALUE_BYTES};
use conclave_proto::request::ReadLevel;
use conclave_proto::{Acl, Op, ZPath};

use crate::world::{World, server};

/// More values of a MiB than a turn answers.
const GREEDY: usize = 20;

fn get() -> Op {
    Op::Get { path: ZPath::root(), watch: None }
}

fn count() -> Op {
    Op::CountDescendants { path: ZPath::root() }
}

fn write() -> Op {
    Op::SetAcl { path: ZPath::root(), acl: Acl::open(), version: None }
}

/// Clients of one server that are about to ask for the root's MiB again and again; "heavy" and "patient"
/// have asked for a heavy read after them, and "patient" for a write after that.
fn greedy_world(servers: u8) -> (World, Vec<String>) {
    let mut world = World::new(servers);
    world.elect();
    let leader = world.leader().unwrap();
    let at = world.ids().into_iter().find(|&id| id != leader).unwrap_or(leader);
    let greedy: Vec<String> = (0..GREEDY).map(|number| format!("greedy {number}")).collect();
    for name in greedy.iter().map(String::as_str).chain(["heavy", "patient"]) {
        world.dial(name, at, 60_000);
        world.settle();
    }
    world.dial("writer", leader, 60_000);
    world.settle();
    let data = Some(Bytes::from(vec![0; VALUE_BYTES]));
    world.ask("writer", ReadLevel::Local, Op::SetData { path: ZPath::root(), data, version: None });
    world.settle();
    world.clients.values_mut().for_each(|client| client.received.clear());
    for name in &greedy {
        world.ask(name, ReadLevel::Local, get());
    }
    world.ask("heavy", ReadLevel::Local, count());
    world.ask("patient", ReadLevel::Local, count());
    world.ask("patient", ReadLevel::Local, write());
    (world, greedy)
}

/// A turn of each server, after which whoever has an answer asks again.
fn go_on(world: &mut World, greedy: &[String]) {
    for id in world.ids() {
        world.turn(id);
    }
    for name in greedy {
        if !world.client(name).received.is_empty() {
            world.client(name).received.clear();
            world.ask(name, ReadLevel::Local, get());
        }
    }
}

#[test]
fn many_light_reads_keep_no_heavy_one_waiting() {
    let (mut world, greedy) = greedy_world(1);
    for _ in 0..20 {
        go_on(&mut world, &greedy);
    }
    assert_eq!(world.client("heavy").received.len(), 1);
    assert_eq!(world.client("patient").received.len(), 2, "its count, and its write");
}

#[test]
fn a_read_that_waits_makes_no_server_fall_behind() {
    let (mut world, greedy) = greedy_world(3);
    let leader = world.leader().unwrap();
    let at = world.ids().into_iter().find(|&id| id != leader).unwrap();
    for turn in 0..200 {
        for _ in 0..20 {
            world.ask("writer", ReadLevel::Local, write());
        }
        go_on(&mut world, &greedy);
        let [ahead, behind] = [leader, at].map(|id| world.status(id).unwrap().applied.counter());
        assert!(ahead - behind < 500, "in turn {turn} the follower is at {behind}, not {ahead}");
    }
}

#[test]
fn one_who_repeats_a_heavy_read_keeps_no_light_one_waiting() {
    let mut world = World::with(1, "small-turns");
    world.elect();
    for name in ["heavy", "light"] {
        world.dial(name, server(1), 60_000);
        world.settle();
        world.client(name).received.clear();
    }
    world.ask("heavy", ReadLevel::Local, count());
    world.ask("light", ReadLevel::Local, Op::GetAcl { path: ZPath::root() });
    for _ in 0..20 {
        world.turn(server(1));
        if !world.client("heavy").received.is_empty() {
            world.client("heavy").received.clear();
            world.ask("heavy", ReadLevel::Local, count());
        }
    }
    assert_eq!(world.client("light").received.len(), 1);
}

/// How many answers these clients have had so far.
fn answers(world: &World, names: &[String]) -> usize {
    names.iter().map(|name| world.clients[name].received.len()).sum()
}

#[test]
fn a_change_of_leader_brings_no_more_answers_at_once_than_other_turns() {
    let (mut world, greedy) = greedy_world(3);
    let leader = world.leader().unwrap();
    let at = world.ids().into_iter().find(|&id| id != leader).unwrap();
    world.crash(leader);
    let mut most = 0;
    for _ in 0..10 {
        let before = answers(&world, &greedy);
        world.turn(at);
        most = most.max(answers(&world, &greedy) - before);
    }
    assert_eq!(answers(&world, &greedy), GREEDY);
    assert!(most < GREEDY / 2, "{most} answers of a MiB were made in one turn");
}

#[test]
fn small_answers_in_one_large_one_are_counted() {
    let mut world = World::new(1);
    world.elect();
    let names: Vec<String> = (0..200).map(|number| format!("client {number}")).collect();
    for name in &names {
        world.dial(name, server(1), 60_000);
        world.settle();
        world.client(name).received.clear();
    }
    let exists = Op::Exists { path: ZPath::root(), watch: None };
    for name in &names {
        world.ask(name, ReadLevel::Local, Op::MultiRead(vec![exists.clone(); MULTI_OPS]));
    }
    world.turn(server(1));
    let first = answers(&world, &names);
    assert!((1..names.len() / 2).contains(&first), "{first} answers of 1,000 parts in one turn");
    world.settle();
    assert_eq!(answers(&world, &names), names.len());
}
