//! The replica, driven by scripts anyone can read: see `scripts/`.
//!
//! A line that starts with `>` is a command; what follows it is what came of it. `UPDATE_EXPECT=1`
//! rewrites the expectations.

mod hub_model;
mod script;
mod sessions;
mod show;
mod world;

use expect_test::expect_file;

fn check(script: &str, expected: &expect_test::ExpectFile) {
    expected.assert_eq(&script::run(script));
}

macro_rules! scripts {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            let path = concat!("scripts/", stringify!($name), ".txt");
            let script = include_str!(concat!("scripts/", stringify!($name), ".txt"));
            check(script, &expect_file![path]);
        })*
    };
}

scripts! {
    one_server
}
