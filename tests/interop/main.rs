//! Clients of ZooKeeper that others have made, unchanged, against an ensemble whose leader dies.
//!
//! Each needs its client on the machine; without it, it says so and passes.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and says what it found"
)]

mod clickhouse;
mod dialogue;
mod ensemble;
#[path = "../common/ports.rs"]
mod ports;
mod program;
#[path = "../common/zookeeper.rs"]
mod zookeeper;

use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use dialogue::Line;
use ensemble::Ensemble;

/// How long anything may take before a test gives up.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Where Debian's package `zookeeper` has its shell.
const ZKCLI: &str = "/usr/share/zookeeper/bin/zkCli.sh";
/// Where Debian's package `zookeeper-bin` has the C client's shell.
const CLI_MT: &str = "/usr/lib/zookeeper/bin/cli_mt";

/// Waits until a condition gives something.
fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    for _ in 0..DEADLINE.as_millis() / POLL.as_millis() {
        if let Some(found) = condition() {
            return found;
        }
        sleep(POLL);
    }
    panic!("waited in vain for: {what}");
}

fn is_missing(program: &str, package: &str) -> bool {
    let is_missing = !Path::new(program).exists();
    if is_missing {
        println!("skipped: there is no {program} (Debian: {package})");
    }
    is_missing
}

/// Lines of `zkCli.sh`. An event comes in two of them, the first of which says nothing.
fn zkcli_line(line: String) -> Line {
    if line.is_empty() || line == "WATCHER::" || line.starts_with("SLF4J:") {
        return Line::Noise;
    }
    let Some(event) = line.strip_prefix("WatchedEvent state:") else { return Line::Answer(line) };
    let (state, event) = event.split_once(" type:").expect("an event has a type");
    let (kind, path) = event.split_once(" path:").expect("an event has a path");
    assert_ne!(state, "Expired", "the session is over");
    if kind == "None" { Line::Noise } else { Line::Event(format!("{kind} {path}")) }
}

#[test]
fn zkcli_knows_what_it_asks_for_and_goes_on_when_the_leader_dies() {
    if is_missing(ZKCLI, "zookeeper") {
        return;
    }
    let mut ensemble = Ensemble::start();
    let mut command = Command::new(ZKCLI);
    command.arg("-server").arg(ensemble.addresses().join(","));
    dialogue::hold("zkcli.txt", &mut command, zkcli_line, &mut ensemble);
}

/// Lines of `cli_mt`, which writes of a session in the midst of all else.
fn cli_mt_line(line: String) -> Line {
    let is_noise = |start| line.starts_with(start);
    if line.is_empty()
        || ["time = ", "Got a new session id"].into_iter().any(is_noise)
        || line.contains(":ZOO_")
    {
        return Line::Noise;
    }
    let Some(event) = line.strip_prefix("Watcher ") else { return Line::Answer(line) };
    let (kind, event) = event.split_once(" state = ").expect("an event has a state");
    assert!(!event.starts_with("EXPIRED"), "the session is over");
    match event.split_once(" for path ") {
        Some((_, path)) => Line::Event(format!("{kind} {path}")),
        None => Line::Noise,
    }
}

#[test]
fn the_c_client_goes_on_when_the_leader_dies() {
    if is_missing(CLI_MT, "zookeeper-bin") {
        return;
    }
    let mut ensemble = Ensemble::start();
    let mut command = Command::new(CLI_MT);
    command.arg("-h").arg(ensemble.addresses().join(","));
    dialogue::hold("cli_mt.txt", &mut command, cli_mt_line, &mut ensemble);
}

/// Runs a program of Java against an ensemble that it gives orders for. It needs these jars of
/// Debian's besides ZooKeeper's.
fn run_java(source: &str, jars: &[&str]) {
    let class_path = match zookeeper::class_path(jars) {
        Ok(class_path) => class_path,
        Err(why) => return println!("skipped: {why}"),
    };
    let modules = Command::new("java").arg("--list-modules").output().unwrap().stdout;
    if !String::from_utf8_lossy(&modules).contains("jdk.compiler") {
        return println!("skipped: this Java does not compile (Debian: openjdk-17-jdk-headless)");
    }
    let mut ensemble = Ensemble::start();
    let mut command = Command::new("java");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(source);
    command.args(["-cp", &class_path]).arg(source).arg(ensemble.addresses().join(","));
    ensemble.obey_to_the_end(&mut command);
}

#[test]
fn the_java_client_goes_on_when_the_leader_dies() {
    run_java("JavaClient.java", &[]);
}

#[test]
fn curators_recipes_go_on_when_the_leader_dies() {
    // Debian: libcurator-recipes-java.
    let jars = ["curator-recipes", "curator-framework", "curator-client", "guava"];
    run_java("CuratorRecipes.java", &jars);
}
