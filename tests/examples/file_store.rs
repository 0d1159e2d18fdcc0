//! A file store: names and locks in Conclave, contents at storages that check tokens.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use crate::harness::Cluster;
use crate::ports::Ports;
use crate::{Program, text};

const EXAMPLE: &str = "file_store";

struct Store {
    servers: String,
    home: TempDir,
    ports: Ports,
    storages: Vec<Option<Program>>,
}

impl Store {
    fn start(servers: String) -> Store {
        let (home, ports) = (TempDir::new().unwrap(), Ports::claim());
        let mut store = Store { servers, home, ports, storages: vec![None, None] };
        store.start_storage(0);
        store.start_storage(1);
        store
    }

    fn start_storage(&mut self, number: u16) {
        let id = format!("s{number}");
        let dir = self.home.path().join(&id);
        let address = format!("127.0.0.1:{}", self.ports.first() + number);
        let args = ["storage", &id, dir.to_str().unwrap(), &address];
        self.storages[usize::from(number)] = Some(Program::start(EXAMPLE, &self.servers, &args));
    }

    fn command(&self, args: &[&str]) -> Command {
        Program::command(EXAMPLE, &self.servers, args)
    }

    fn ask(&self, args: &[&str]) -> String {
        Program::ask(EXAMPLE, &self.servers, args)
    }

    fn complain(&self, args: &[&str]) -> String {
        Program::complain(EXAMPLE, &self.servers, args)
    }

    /// Runs a command that reads this, and succeeds.
    fn feed(&self, args: &[&str], input: &str) {
        let mut command = self.command(args);
        let mut process = command.stdin(Stdio::piped()).spawn().unwrap();
        process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        assert!(process.wait().unwrap().success(), "{args:?}");
    }
}

#[tokio::test]
async fn several_processes_change_files_at_once_and_no_change_is_lost() {
    let mut cluster = Cluster::start(3).await;
    let store = Store::start(cluster.addresses());
    store.feed(&["create", "journal"], "begin\n");
    let again = store.complain(&["create", "journal"]);
    assert!(again.contains("journal is there already"), "{again}");

    let lines = |writer: usize| (0..15).map(move |line| format!("{writer} {line}"));
    let start = |writer: usize| {
        let lines: Vec<String> = lines(writer).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        Program(store.command(&[&["append", "journal"], &lines[..]].concat()).spawn().unwrap())
    };
    let writers: Vec<Program> = (0..4).map(start).collect();
    let leader = cluster.leader().await;
    cluster.kill(leader);
    // Readers see whole files at every moment.
    for _ in 0..5 {
        let seen = store.ask(&["read", "journal"]);
        assert!(seen.starts_with("begin\n") && seen.ends_with('\n'), "{seen}");
    }
    for writer in writers {
        assert!(writer.succeeded());
    }
    let contents = store.ask(&["read", "journal"]);
    assert_eq!(contents.lines().count(), 1 + 4 * 15, "{contents}");
    for writer in 0..4 {
        let of = format!("{writer} ");
        let written = contents.lines().filter(|line| line.starts_with(&of));
        assert!(written.eq(lines(writer)), "{contents}");
    }

    assert!(store.ask(&["list"]).starts_with("journal  "));
    store.ask(&["delete", "journal"]);
    assert_eq!(store.ask(&["list"]), "");
    let gone = store.complain(&["read", "journal"]);
    assert!(gone.contains("there is no file journal"), "{gone}");
    for name in ["", "a/b", ".new", "a b"] {
        let wrong = store.complain(&["read", name]);
        assert!(wrong.contains("cannot be"), "{wrong}");
    }
}

/// What a writer says in a file, over and over: other words in between would show.
fn words(writer: usize, round: usize) -> String {
    format!("{writer} {round}\n").repeat(5_000)
}

impl Store {
    /// Runs a command, with this to read, that may come too late or too early. What it printed, if it
    /// did not.
    fn attempt(&self, args: &[&str], input: &str) -> Option<String> {
        let mut command = self.command(args);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        // One that fails does not read.
        drop(process.stdin.take().unwrap().write_all(input.as_bytes()));
        let output = process.wait_with_output().unwrap();
        if output.status.success() {
            return Some(text(&output.stdout));
        }
        let why = text(&output.stderr);
        assert!(why.contains("is there already") || why.contains("there is no file"), "{why}");
        None
    }

    /// Creates, writes, reads and deletes a file that others have to do with, and writes one that is
    /// its own. How often each of the four was done.
    fn churn(&self, writer: usize) -> [usize; 4] {
        let own = format!("own-{writer}");
        self.feed(&["create", &own], "");
        let mut done = [0; 4];
        for round in 0..6 {
            let (shared, words) = (format!("shared-{}", round % 2), words(writer, round));
            done[0] += usize::from(self.attempt(&["create", &shared], &words).is_some());
            done[1] += usize::from(self.attempt(&["write", &shared], &words).is_some());
            if let Some(read) = self.attempt(&["read", &shared], "") {
                let first = read.lines().next().unwrap_or_default();
                assert!(read.lines().all(|line| line == first), "{shared} is of several writers");
                assert!(read.is_empty() || read.lines().count() == 5_000, "{shared} is torn");
                done[2] += 1;
            }
            self.feed(&["write", &own], &words);
            done[3] += usize::from(self.attempt(&["delete", &shared], "").is_some());
        }
        done
    }
}

#[tokio::test]
async fn files_come_and_go_at_once_and_are_of_one_writer_at_every_moment() {
    let mut cluster = Cluster::start(3).await;
    let store = Arc::new(Store::start(cluster.addresses()));
    let churn = |writer| {
        let store = Arc::clone(&store);
        tokio::task::spawn_blocking(move || store.churn(writer))
    };
    let writers: Vec<_> = (0..4).map(churn).collect();
    let leader = cluster.leader().await;
    cluster.kill(leader);
    let mut done = [0; 4];
    for writer in writers {
        for (all, some) in done.iter_mut().zip(writer.await.unwrap()) {
            *all += some;
        }
    }
    let [created, written, read, deleted] = done;
    println!("{created} files created, {written} written, {read} read, {deleted} deleted");
    assert!(created >= 2 && deleted >= 2, "files did not come and go");
    // What nobody else deletes is what its writer wrote last.
    for writer in 0..4 {
        let own = format!("own-{writer}");
        assert_eq!(store.ask(&["read", &own]), words(writer, 5));
        store.ask(&["delete", &own]);
    }
    let mut left = 0;
    for name in store.ask(&["list"]).lines().map(|line| line.split_once(' ').unwrap().0) {
        store.ask(&["delete", name]);
        left += 1;
    }
    assert_eq!(created, deleted + left, "each that was created was deleted once");
    assert_eq!(store.ask(&["list"]), "");
}

#[tokio::test]
async fn a_writer_that_was_paused_is_refused_by_the_storage() {
    let cluster = Cluster::start(3).await;
    let mut store = Store::start(cluster.addresses());
    store.feed(&["create", "f"], "one");

    let mut command = store.command(&["write", "f"]);
    let command = command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut paused = Program(command.spawn().unwrap());
    let mut complaints = BufReader::new(paused.0.stderr.take().unwrap());
    let mut line = String::new();
    complaints.read_line(&mut line).unwrap();
    assert!(line.starts_with("f is locked"), "{line}");
    paused.signal("STOP");
    // Its session ends, and the lock goes to another one.
    store.feed(&["write", "f"], "two");
    // What the storages know of tokens outlives them.
    for number in [0, 1] {
        store.storages[usize::from(number)].take().unwrap().kill();
        store.start_storage(number);
    }
    assert_eq!(store.ask(&["read", "f"]), "two");
    paused.0.stdin.take().unwrap().write_all(b"too late").unwrap();
    paused.signal("CONT");
    complaints.read_to_string(&mut line).unwrap();
    assert!(!paused.succeeded());
    assert!(line.contains("the storage refuses token"), "{line}");
    assert_eq!(store.ask(&["read", "f"]), "two");
}
