//! Every shape that a network can take: as long as some server and a majority hear each other,
//! there is a leader, and it stays.

use std::collections::BTreeSet;

use conclave::zab::RoleView;
use conclave_proto::{Epoch, ServerId};

use crate::world::World;

/// Ticks of a second: a leader is given up after ten.
const SECOND: u32 = 10;

fn id(number: u8) -> ServerId {
    ServerId::new(number).unwrap()
}

/// A server that lacks what the others have committed, as if it had been away.
const LATE: u8 = 1;

/// An ensemble that works, in which one server is late; then some links lose everything.
fn broken(servers: u8, lost: &BTreeSet<(u8, u8)>) -> World {
    let all: Vec<String> = (1..=servers).map(|id| id.to_string()).collect();
    let mut world = World::default();
    world.run(&format!("voters {}", all.join(" ")));
    world.run(&format!("start {}", all.join(" ")));
    world.run("tick 3");
    world.run(&format!("kill {LATE}"));
    world.run(&format!("propose {servers} a b c"));
    world.run("tick 1");
    for (from, to) in lost {
        world.run(&format!("cut {from} > {to}"));
    }
    world.run(&format!("start {LATE}"));
    world
}

/// Whether some server and a majority hear each other.
fn has_core(servers: u8, lost: &BTreeSet<(u8, u8)>) -> bool {
    (1..=servers).any(|a| {
        let heard = |b: &u8| a == *b || !(lost.contains(&(a, *b)) || lost.contains(&(*b, a)));
        (1..=servers).filter(heard).count() > usize::from(servers) / 2
    })
}

fn leaders(world: &World) -> Vec<(ServerId, Epoch)> {
    let led = |(id, role)| match role {
        RoleView::Leading { epoch } => Some((id, epoch)),
        RoleView::Looking | RoleView::Following { .. } | RoleView::Observing { .. } => None,
    };
    world.roles().into_iter().filter_map(led).collect()
}

/// Whether what is proposed now is committed.
fn serves(world: &mut World) -> bool {
    let before = world.committed();
    for (leader, _) in leaders(world) {
        world.run(&format!("propose {leader} x"));
    }
    world.run("tick 1");
    world.committed() > before
}

fn check(servers: u8, lost: &BTreeSet<(u8, u8)>) {
    let mut world = broken(servers, lost);
    world.run(&format!("tick {}", 5 * SECOND));
    if !has_core(servers, lost) {
        assert!(!serves(&mut world), "without {lost:?} there is no majority that could commit");
        return;
    }
    assert!(serves(&mut world), "without {lost:?} there is no leader after 5 s");
    let epoch = |world: &World| leaders(world).into_iter().map(|(_, epoch)| epoch).max();
    let before = epoch(&world);
    world.run(&format!("tick {}", 30 * SECOND));
    assert!(serves(&mut world), "without {lost:?} the leader is gone after 30 s");
    assert_eq!(epoch(&world), before, "without {lost:?} the leader changes");
}

#[test]
fn three_servers_have_a_leader_in_every_network_that_allows_one() {
    let links: Vec<(u8, u8)> =
        (1..=3).flat_map(|a| (1..=3).map(move |b| (a, b))).filter(|(a, b)| a != b).collect();
    for mask in 0..1_u32 << links.len() {
        check(3, &chosen(&links, mask));
    }
}

#[test]
fn five_servers_have_a_leader_in_every_network_that_allows_one() {
    let pairs: Vec<(u8, u8)> = (1..=5).flat_map(|a| (1..a).map(move |b| (a, b))).collect();
    for mask in 0..1_u32 << pairs.len() {
        let both = chosen(&pairs, mask);
        check(5, &both.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]).collect());
    }
}

#[test]
fn five_servers_have_a_leader_in_every_network_of_one_way_losses() {
    let pairs: Vec<(u8, u8)> = (1..=5).flat_map(|a| (1..a).map(move |b| (a, b))).collect();
    for mask in 0..1_u32 << pairs.len() {
        let lost = chosen(&pairs, mask);
        check(5, &lost);
        check(5, &lost.iter().map(|(a, b)| (*b, *a)).collect());
    }
}

fn chosen(links: &[(u8, u8)], mask: u32) -> BTreeSet<(u8, u8)> {
    links
        .iter()
        .enumerate()
        .filter(|(bit, _)| mask >> bit & 1 == 1)
        .map(|(_, link)| *link)
        .collect()
}

#[test]
fn the_late_server_is_late() {
    let mut world = broken(3, &BTreeSet::from([(1, 2), (2, 1), (1, 3), (3, 1)]));
    let lines = world.run("show");
    assert!(lines[0].ends_with("last 0.0, committed 0.0"), "{lines:?}");
    assert_eq!(world.committed().counter(), 3);
    assert!(leaders(&world).iter().any(|(leader, _)| *leader == id(3)));
}
