//! Apache ZooKeeper and Conclave are asked the same, and must answer the same.
//!
//! A script is drawn from a seed: what several sessions send, over sockets and in ZooKeeper's
//! protocol. Both systems are given it, step by step, and everything that the clients hear is
//! compared: results, codes, statistics, events, and the order of all of it. A script that shows a
//! difference is shortened before it is printed.
//!
//! Variables: `DIFFERENTIAL_REQUESTS` (how many; 10,000), `DIFFERENTIAL_SEED` (the first seed; each
//! run of some hundred requests has one), `ZOOKEEPER_JARS` (a directory of jars, in place of
//! Debian's packages). Without Java or ZooKeeper the tests say so and pass.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on fails, and says what it found"
)]

mod compare;
mod jute;
mod known;
mod op;
mod random;
mod script;
mod servers;
mod shorten;
mod system;
#[path = "../common/zookeeper.rs"]
mod zookeeper;

use std::fmt::Write;
use std::time::Duration;

use compare::Names;
use known::Known;
use op::Op;
use script::{Action, SESSIONS, Step};
use servers::Servers;
use system::{Heard, System};

/// The requests of one run, after which all sessions end.
const REQUESTS_PER_RUN: usize = 400;

/// How long an answer may take on a slow machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// Both, and how many runs they have been through.
struct Pair {
    zookeeper: Servers,
    conclave: Servers,
    runs: usize,
    known: Known,
}

/// Where they differ.
struct Difference {
    step: usize,
    text: String,
}

impl Pair {
    fn start(servers: usize) -> Result<Pair, String> {
        let class_path = zookeeper::class_path(&[])?;
        let zookeeper = Servers::zookeeper(servers, &class_path);
        let conclave = Servers::conclave(servers);
        Ok(Pair { zookeeper, conclave, runs: 0, known: Known::new() })
    }

    /// Gives both the script, below a node of their own.
    fn run(&mut self, steps: &[Step], patience: Duration) -> Result<(), Difference> {
        self.runs += 1;
        let home = format!("/run{:06}", self.runs);
        let mut systems = [&self.zookeeper, &self.conclave]
            .map(|servers| System::new(servers.addresses.clone(), SESSIONS, patience));
        let mut names = Names::new();
        for (number, step) in steps.iter().enumerate() {
            for system in &mut systems {
                system.begin(step, &home);
            }
            let heard = systems.each_mut().map(|system| system.finish(&home));
            if known::has_fallen_silent(&heard, &mut self.known) {
                // What that session would hear from now on cannot be compared any more.
                return Ok(());
            }
            for session in 0..SESSIONS {
                let [theirs, ours] = heard.each_ref().map(|heard| &heard[session][..]);
                let difference = |why: String| Difference {
                    step: number,
                    text: describe(&why, session, step, theirs, ours),
                };
                let ops = step.requests();
                let both = known::reconcile(ops, &home, theirs, ours, &mut self.known);
                names.compare(&both).map_err(difference)?;
                let (apart, secret) = (both.apart, both.secret);
                forget_watches(&mut systems, session, apart, &home);
                check_secret(&mut systems[1], session, &secret, &home).map_err(difference)?;
            }
        }
        Ok(())
    }
}

/// Removes the session's watches there, so that both have the same ones.
fn forget_watches(systems: &mut [System], session: usize, paths: Vec<String>, home: &str) {
    if paths.is_empty() {
        return;
    }
    let ops = paths.into_iter().map(|path| Op::RemoveWatches { path, kind: 3 }).collect();
    let step = Step { session, action: Action::Requests(ops) };
    for system in systems {
        system.begin(&step, home);
        system.finish(home);
    }
}

/// Whether the session may not read the nodes.
fn check_secret(
    conclave: &mut System,
    session: usize,
    paths: &[String],
    home: &str,
) -> Result<(), String> {
    for path in paths {
        let op = Op::GetData { path: path.clone(), watch: false };
        conclave.begin(&Step { session, action: Action::Requests(vec![op]) }, home);
        let heard = &conclave.finish(home)[session];
        if !matches!(heard[..], [Heard::Answer { code: known::NO_AUTH, .. }, ..]) {
            return Err(format!("{path} is not told of, and may be read"));
        }
    }
    Ok(())
}

fn describe(why: &str, session: usize, step: &Step, theirs: &[Heard], ours: &[Heard]) -> String {
    let mut text = format!("session {session}: {why}\n");
    let ops = if step.session == session { step.requests() } else { &[] };
    for place in 0..theirs.len().max(ours.len()) {
        let (theirs, ours) = (theirs.get(place), ours.get(place));
        if let Some(Heard::Answer { place, .. }) = theirs
            && let Some(op) = ops.get(*place)
        {
            writeln!(text, "  {op:?}").unwrap();
        }
        writeln!(text, "    ZooKeeper {}", show(theirs)).unwrap();
        writeln!(text, "    Conclave  {}", show(ours)).unwrap();
    }
    text
}

fn show(heard: Option<&Heard>) -> String {
    heard.map_or("says nothing".into(), |heard| format!("{heard:?}"))
}

fn show_script(steps: &[Step]) -> String {
    let mut text = String::new();
    for Step { session, action } in steps {
        match action {
            Action::Requests(ops) => {
                for op in ops {
                    writeln!(text, "  {session}: {op:?}").unwrap();
                }
            }
            Action::Reconnect { .. } => writeln!(text, "  {session}: {action:?}").unwrap(),
        }
    }
    text
}

fn variable(name: &str, default: usize) -> usize {
    let text = std::env::var(name);
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn compare_on(servers: usize, requests: usize) {
    let mut pair = match Pair::start(servers) {
        Ok(pair) => pair,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    let first = variable("DIFFERENTIAL_SEED", 1);
    let runs = requests.div_ceil(REQUESTS_PER_RUN);
    for seed in first..first + runs {
        let steps = script::draw(u64::try_from(seed).unwrap(), REQUESTS_PER_RUN);
        if let Err(difference) = pair.run(&steps, DEADLINE) {
            println!("seed {seed}, step {}: {}", difference.step, difference.text);
            println!("after:\n{}", show_script(&steps[..=difference.step]));
            let (steps, difference) = shorten::shorten(&mut pair, steps, difference);
            panic!(
                "seed {seed} ({servers} servers) makes a difference:\n{}{}",
                show_script(&steps),
                difference.text
            );
        }
    }
    println!(
        "{servers} servers: {requests} requests, the same answers; differences that are meant:"
    );
    for (name, times) in &pair.known {
        println!("  {name}: {times}");
    }
}

#[test]
fn one_server_answers_as_zookeeper_does() {
    compare_on(1, variable("DIFFERENTIAL_REQUESTS", 10_000));
}

#[test]
fn three_servers_answer_as_zookeeper_does() {
    compare_on(3, variable("DIFFERENTIAL_REQUESTS", 10_000) / 10);
}

#[test]
fn every_difference_that_is_meant_is_documented() {
    let text = std::fs::read_to_string("docs/COMPATIBILITY.md").unwrap();
    for name in known::NAMES {
        assert!(text.contains(name), "docs/COMPATIBILITY.md does not say why: {name}");
    }
}
