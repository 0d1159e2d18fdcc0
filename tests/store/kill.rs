//! A process that is killed: everything it had acknowledged is there afterwards.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use conclave::store::Opened;
use conclave::tree::{Nodes, apply};
use conclave::zab::{Entry, Position, Write};
use tempfile::tempdir;

use crate::common::{Dice, FOUNDED, create_txn, epoch, next, open};

const ROUNDS: u64 = 15;

/// The one history that every process of the test goes on with.
fn entry_after(at: Position) -> Entry {
    let len = usize::try_from(at.zxid.counter() * 37 % 900).unwrap();
    next(at, epoch(1), len)
}

fn end(opened: &Opened) -> Position {
    let durable = &opened.durable;
    durable.entries.last().map_or(durable.base, Entry::position)
}

/// Not a test of its own: the process that the next one kills.
#[test]
#[ignore = "run by nothing_acknowledged_is_lost_by_a_kill"]
fn write_until_killed() {
    let Some(dir) = std::env::var_os("KILLED_DIR") else { return };
    let mut opened = open(Path::new(&dir));
    let mut at = end(&opened);
    let mut dice = Dice(at.zxid.counter());
    let entries = std::mem::take(&mut opened.durable.entries);
    for entry in entries.iter().filter(|entry| entry.zxid > opened.durable.applied.zxid) {
        apply(&mut opened.nodes, entry.zxid, entry.chain, &create_txn(entry.zxid));
    }
    loop {
        let mut batch = Vec::new();
        for _ in 0..=dice.below(20) {
            let entry = entry_after(at);
            at = entry.position();
            batch.push(entry);
        }
        opened.log.apply(&[Write::Append(batch.clone())]).unwrap();
        opened.log.sync().unwrap();
        println!("\nacknowledged {}", at.zxid.counter());
        for entry in batch {
            apply(&mut opened.nodes, entry.zxid, entry.chain, &create_txn(entry.zxid));
        }
        if dice.below(10) == 0 {
            let checkpoint = opened.nodes.freeze().unwrap().write().unwrap();
            opened.nodes.checkpointed(&checkpoint);
            opened.log.trim(checkpoint.at.zxid).unwrap();
        }
    }
}

fn spawn(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::write_until_killed", "--ignored", "--nocapture"])
        .env("KILLED_DIR", dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn nothing_acknowledged_is_lost_by_a_kill() {
    let dir = tempdir().unwrap();
    let mut dice = Dice(3);
    let mut acknowledged = 0;
    let mut expected = vec![Position::default()];
    for round in 0..ROUNDS {
        let mut child = spawn(dir.path());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = usize::try_from(1 + dice.below(60)).unwrap();
        // Read until the process is gone: it must not see its output closed.
        let mut numbers = lines
            .map_while(Result::ok)
            .filter_map(|line| line.strip_prefix("acknowledged ")?.parse::<u64>().ok());
        for number in numbers.by_ref().take(wanted) {
            acknowledged = number;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged = numbers.last().unwrap_or(acknowledged);

        let opened = open(dir.path());
        assert_eq!(opened.report.damage, Vec::<String>::new(), "round {round}");
        let end = end(&opened);
        assert!(end.zxid.counter() >= acknowledged, "round {round}: {acknowledged} was lost");
        while expected.len() <= usize::try_from(end.zxid.counter()).unwrap() {
            let last = *expected.last().unwrap();
            expected.push(entry_after(last).position());
        }
        assert_eq!(Some(&end), expected.last(), "round {round}");
        let applied = opened.durable.applied;
        assert_eq!(applied, expected[usize::try_from(applied.zxid.counter()).unwrap()]);
        assert_eq!(opened.nodes.meta().nodes, FOUNDED + applied.zxid.counter());
    }
    assert!(acknowledged > 1000, "only {acknowledged}");
}
