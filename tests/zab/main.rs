//! The broadcast, told in scripts: each file of `scripts` is a scenario of commands (`> …`), each
//! followed by what came of it. Run with `UPDATE_EXPECT=1` to write down what comes of it now.

#![expect(clippy::unwrap_used, reason = "a script that cannot go on fails")]

mod graphs;
mod world;

use std::fmt::Write as _;
use std::path::Path;

use expect_test::expect_file;
use world::World;

/// Runs a script and compares all that comes of it with what the script says.
fn check(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zab/scripts").join(name);
    let script = std::fs::read_to_string(&path).unwrap();
    let mut world = World::default();
    let mut actual = String::new();
    for line in script.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            writeln!(actual, "{line}").unwrap();
            for line in world.run(command) {
                writeln!(actual, "{line}").unwrap();
            }
        } else if line.is_empty() || line.starts_with('#') {
            writeln!(actual, "{line}").unwrap();
        }
    }
    expect_file![path].assert_eq(&actual);
}

macro_rules! scripts {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { check(concat!(stringify!($name), ".txt")); })*
    };
}

scripts! {
    alone,
    broadcast,
    counts_when_in_sync,
    damage,
    diff,
    discovery,
    early_commit,
    election,
    epoch_roll,
    hand_over,
    hand_over_to_voters,
    idle,
    lag,
    leader_death,
    observer,
    partial_partition,
    reads,
    snap,
    snap_under_load,
    star,
    trunc,
    unfit_to_lead,
}
