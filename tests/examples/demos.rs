//! The demonstrations, each by the one command that the documentation names, on servers of which
//! the leader dies in the middle.

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::Program;
use crate::harness::{Cluster, DEADLINE};

/// Runs a demonstration to its end, and gives what it said; the leader dies when it says something
/// with these words in it.
async fn demonstrate(name: &str, command: &str, words: &str) -> Vec<String> {
    let mut cluster = Cluster::start(3).await;
    let dir = TempDir::new().unwrap();
    let mut program = Program::command(name, &cluster.addresses(), &[command]);
    program.env("TMPDIR", dir.path()).stdout(std::process::Stdio::piped());
    let mut program = Command::from(program).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let (mut said, mut killed) = (Vec::new(), false);
    let story = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if !killed && line.contains(words) {
                let leader = cluster.leader().await;
                cluster.kill(leader);
                killed = true;
            }
            said.push(line);
        }
        program.wait().await.unwrap()
    };
    let ended = timeout(DEADLINE, story).await;
    let ended = ended.unwrap_or_else(|_| panic!("{name} does not end: {said:#?}"));
    assert!(ended.success() && killed, "{ended}: {said:#?}");
    said
}

/// How many of the lines have these words in them.
fn count(said: &[String], words: &str) -> usize {
    said.iter().filter(|line| line.contains(words)).count()
}

#[tokio::test]
async fn primary_standby() {
    let said = demonstrate("primary_standby", "--demo", "answers SET colour").await;
    assert_eq!(count(&said, "is gone"), 1, "{said:#?}");
    let last: Vec<_> = said.iter().rev().take(2).rev().collect();
    assert!(last[0].ends_with("answers GET colour with VALUE green"), "{said:#?}");
    assert!(last[1].ends_with("answers GET shape with VALUE round"), "{said:#?}");
}

#[tokio::test]
async fn sharded_store() {
    let said = demonstrate("sharded_store", "demo", "1000 keys are written").await;
    assert_eq!(count(&said, "1000 keys are there"), 2, "{said:#?}");
}

#[tokio::test]
async fn file_store() {
    let said = demonstrate("file_store", "demo", "storage-2 has 0 files").await;
    let place = |line: &str| said.iter().position(|of| of == line).expect(line);
    let begin = place("once upon a time");
    assert!(begin < place("a writer came"), "{said:#?}");
    assert!(place("a writer came") < place("and wrote"), "{said:#?}");
    assert!(place("another came") < place("and wrote as well"), "{said:#?}");
    assert!(place("and a third") < place("who wrote the most"), "{said:#?}");
    assert!(place("who wrote the most") < place("of all of them"), "{said:#?}");
    assert_eq!(said.len(), begin + 8, "{said:#?}");
}

#[tokio::test]
async fn two_phase_commit() {
    let said = demonstrate("two_phase_commit", "demo", "bank a has 1000").await;
    assert_eq!((count(&said, ": booked -600"), count(&said, ": booked 590")), (1, 1), "{said:#?}");
    assert_eq!((count(&said, ": booked 10"), count(&said, ": booked ")), (1, 3), "{said:#?}");
    let ends = |words: &str| said.iter().filter(|line| line.ends_with(words)).count();
    assert_eq!((ends(": booked"), ends(": aborted")), (1, 1), "{said:#?}");
}

#[tokio::test]
async fn fleet() {
    let said = demonstrate("fleet", "demo", "canary sees 1.1").await;
    assert_eq!(count(&said, "1.1 is rolled out"), 1, "{said:#?}");
    assert_eq!(count(&said, "1.2 is taken back: a is not well with it"), 1, "{said:#?}");
    assert_eq!(count(&said, " runs 1.1: well"), 4, "{said:#?}");
}

#[tokio::test]
async fn services() {
    let said = demonstrate("services", "demo", "a falls ill").await;
    assert_eq!(count(&said, "a is not well, and has left"), 1, "{said:#?}");
    let answers = said.last().unwrap().strip_prefix("500 calls were answered by ").unwrap();
    let answers: std::collections::BTreeMap<String, usize> = serde_json::from_str(answers).unwrap();
    assert_eq!(answers.values().sum::<usize>(), 500, "{said:#?}");
    assert!(answers["a"] > answers["c"] && answers["b"] > answers["c"], "{said:#?}");
}
