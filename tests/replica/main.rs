//! The replica, driven by scripts anyone can read: see `scripts/`.
//!
//! A line that starts with `>` is a command; what follows it is what came of it. `UPDATE_EXPECT=1`
//! rewrites the expectations.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod hub_model;
mod script;
mod sessions;
mod show;
mod world;

use expect_test::{ExpectFile, expect_file};

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
    certainty
    expiry
    forwarding
    hub
    one_server
    permissions
    reads
    rearm
    retries
    sessions_of_clients
    slow_leader
}

#[test]
fn a_client_may_have_as_many_requests_in_flight_as_it_was_told_and_still_ping() {
    let requests = vec!["set / x"; conclave::limits::IN_FLIGHT].join("; ");
    let setting = "> servers 3\n> a dial 1\n> crash 2\n> crash 3\n";
    let full = script::run(&format!("{setting}> a {requests}\n> a ping\n"));
    assert!(full.ends_with("> a ping\na: pong 1.1\n"), "{full}");
    let too_full = script::run(&format!("{setting}> a {requests}\n> a set / x\n"));
    assert!(too_full.ends_with("> a set / x\na: closed\n"), "{too_full}");
}
