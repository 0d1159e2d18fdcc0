//! Banks that transfer money, and a coordinator that dies at every step.

use std::collections::BTreeMap;
use std::fs;

use tempfile::TempDir;

use crate::Program;
use crate::harness::{Cluster, eventually};

const EXAMPLE: &str = "two_phase_commit";
const NAMES: [&str; 3] = ["a", "b", "c"];

struct Banks {
    home: TempDir,
    servers: String,
    programs: BTreeMap<&'static str, Program>,
}

impl Banks {
    fn open(servers: String) -> Banks {
        let home = TempDir::new().unwrap();
        let mut banks = Banks { home, servers, programs: BTreeMap::new() };
        for name in NAMES {
            banks.start(name);
        }
        banks
    }

    fn start(&mut self, name: &'static str) {
        let book = self.home.path().join(name);
        let args = ["bank", name, "--book", book.to_str().unwrap()];
        self.programs.insert(name, Program::start(EXAMPLE, &self.servers, &args));
    }

    fn kill(&mut self, name: &str) {
        self.programs.remove(name).unwrap().kill();
    }

    /// Transfers something from the first to the two others; whether the coordinator lived.
    fn transfer(&self, id: &str, amount: i64, more: &[&str]) -> bool {
        let changes = [("a", -amount), ("b", amount - 1), ("c", 1)];
        let changes = changes.map(|(bank, change)| format!("{bank}={change}"));
        let changes = changes.each_ref().map(String::as_str);
        let args = [&["transfer", id], &changes[..], more].concat();
        Program::command(EXAMPLE, &self.servers, &args).status().unwrap().success()
    }

    /// What a bank has booked for a transfer, once it has come to an end there.
    async fn booked(&self, name: &str, id: &str) -> i64 {
        let path = self.home.path().join(name);
        let ended = async || {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            let ends = lines.filter(|line| line[0] == id && line[1] != "promised");
            let ends: Vec<i64> = ends.map(|line| line[2].parse().unwrap()).collect();
            assert!(ends.len() <= 1, "{id} ended twice: {text}");
            ends.first().copied()
        };
        eventually("the end of a transfer", ended).await
    }

    /// All banks have booked it, or none; whether they have.
    async fn outcome(&self, id: &str) -> bool {
        let mut booked = Vec::new();
        for name in NAMES {
            booked.push(self.booked(name, id).await);
        }
        assert_eq!(booked.iter().sum::<i64>(), 0, "{id}: {booked:?}");
        assert!(booked.iter().all(|change| (*change != 0) == (booked[0] != 0)), "{id}: {booked:?}");
        booked[0] != 0
    }
}

#[tokio::test]
async fn all_banks_book_a_transfer_or_none_whoever_dies() {
    let mut cluster = Cluster::start(3).await;
    let mut banks = Banks::open(cluster.addresses());
    assert!(banks.transfer("well", 10, &[]));
    assert!(banks.outcome("well").await);

    assert!(!banks.transfer("begun", 10, &["--die", "begun"]), "it did not die");

    assert!(!banks.transfer("proposed", 10, &["--die", "proposed"]), "it did not die");
    let leader = cluster.leader().await;
    cluster.kill(leader);
    // They decide without it, by their votes.
    banks.outcome("proposed").await;
    cluster.launch(leader);

    assert!(!banks.transfer("voted", 10, &["--die", "voted"]), "it did not die");
    assert!(banks.outcome("voted").await, "all were for it");

    assert!(!banks.transfer("decided", 10, &["--die", "decided"]), "it did not die");
    banks.kill("b");
    banks.start("b");
    assert!(banks.outcome("decided").await);

    // Who comes back runs it again, and finds out what was decided.
    assert!(banks.transfer("decided", 10, &[]));
    assert!(banks.outcome("decided").await);
    assert!(banks.transfer("begun", 10, &[]));
    assert!(banks.outcome("begun").await);
}

#[tokio::test]
async fn a_transfer_aborts_if_a_bank_votes_against_it_or_says_nothing() {
    let cluster = Cluster::start(1).await;
    let mut banks = Banks::open(cluster.addresses());
    assert!(!banks.transfer("much", 1001, &["--die", "voted"]), "it did not die");
    assert!(!banks.outcome("much").await);
    banks.kill("b");
    assert!(banks.transfer("alone", 10, &[]));
    banks.start("b");
    assert!(!banks.outcome("alone").await);
    assert!(banks.transfer("well", 1000, &[]));
    assert!(banks.outcome("well").await);
}
