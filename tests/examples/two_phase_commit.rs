//! Banks that transfer money, and a coordinator that dies at every step.

use std::collections::BTreeMap;
use std::fs;

use tempfile::TempDir;

use crate::Program;
use crate::harness::{Cluster, eventually};

const EXAMPLE: &str = "two_phase_commit";

struct Banks {
    home: TempDir,
    servers: String,
    programs: BTreeMap<&'static str, Program>,
}

impl Banks {
    fn open(servers: String) -> Banks {
        let home = TempDir::new().unwrap();
        let mut banks = Banks { home, servers, programs: BTreeMap::new() };
        banks.start("a");
        banks.start("b");
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

    /// Transfers something from one to the other; whether the coordinator lived.
    fn transfer(&self, id: &str, amount: &str, more: &[&str]) -> bool {
        let args = [&["transfer", id, "a", "b", amount], more].concat();
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

    /// Both banks have booked it, or neither; whether they have.
    async fn outcome(&self, id: &str) -> bool {
        let (a, b) = (self.booked("a", id).await, self.booked("b", id).await);
        assert_eq!(a, -b, "{id}");
        b > 0
    }
}

#[tokio::test]
async fn both_banks_book_a_transfer_or_neither_whoever_dies() {
    let mut cluster = Cluster::start(3).await;
    let mut banks = Banks::open(cluster.addresses());
    assert!(banks.transfer("well", "10", &[]));
    assert!(banks.outcome("well").await);

    assert!(!banks.transfer("begun", "10", &["--die", "begun"]), "it did not die");

    assert!(!banks.transfer("proposed", "10", &["--die", "proposed"]), "it did not die");
    let leader = cluster.leader().await;
    cluster.kill(leader);
    // They decide without it, by their votes.
    banks.outcome("proposed").await;
    cluster.launch(leader);

    assert!(!banks.transfer("decided", "10", &["--die", "decided"]), "it did not die");
    banks.kill("b");
    banks.start("b");
    assert!(banks.outcome("decided").await);
    assert!(banks.transfer("last", "10", &[]));
    assert!(banks.outcome("last").await);
}

#[tokio::test]
async fn a_transfer_aborts_if_a_bank_votes_against_it_or_says_nothing() {
    let cluster = Cluster::start(1).await;
    let mut banks = Banks::open(cluster.addresses());
    assert!(banks.transfer("much", "1001", &[]));
    assert!(!banks.outcome("much").await);
    banks.kill("b");
    assert!(banks.transfer("alone", "10", &[]));
    banks.start("b");
    assert!(!banks.outcome("alone").await);
    assert!(banks.transfer("well", "1000", &[]));
    assert!(banks.outcome("well").await);
}
