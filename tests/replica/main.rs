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
