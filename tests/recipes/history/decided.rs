//! What transactions come to while coordinators and participants pause and die, networks are cut,
//! sessions expire and servers die.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use conclave_client::Client;
use conclave_client::recipes::Error;
use conclave_client::recipes::two_phase::{Decision, Participant, Task, Transaction, TwoPhase};
use tokio::time::{sleep, timeout};

use super::goods::{end, is_honest};
use super::together::program;
use super::{SESSION_TIMEOUT, operations, trouble};
use crate::chaos::{Dice, Wire, strike};
use crate::harness::{Cluster, DEADLINE, eventually};

const TRANSACTIONS: &str = "/decided/transactions";
/// Coordinators, and as many participants.
const EACH: usize = 3;

/// What became of the transactions.
#[derive(Clone, Default)]
struct Ledger {
    /// The participants of each one that may have begun.
    begun: BTreeMap<String, BTreeSet<String>>,
    /// The votes that were cast, or may have been: each one stands by its vote.
    votes: BTreeMap<(String, String), bool>,
    /// Who was told which decision.
    told: Vec<(String, String, Decision)>,
    /// Those that were forgotten.
    forgotten: BTreeSet<String>,
}

impl Ledger {
    fn decided(&self) -> BTreeMap<&str, Decision> {
        self.told.iter().map(|(id, _, decision)| (id.as_str(), *decision)).collect()
    }

    /// Says what is wrong with it.
    fn check(&self) -> Result<(), String> {
        let mut decisions = BTreeMap::new();
        for (id, who, decision) in &self.told {
            let (first, known) = decisions.entry(id).or_insert((who, decision));
            if *known != decision {
                return Err(format!("{id}: {first} was told {known:?}, and {who} {decision:?}"));
            }
            let Some(participants) = self.begun.get(id) else {
                return Err(format!("{id} was never begun, and {who} was told {decision:?}"));
            };
            let is_for = |name: &&String| {
                self.votes.get(&(id.clone(), (*name).clone())).copied().unwrap_or_default()
            };
            let against = participants.iter().find(|name| !is_for(name));
            if let (Decision::Commit, Some(against)) = (decision, against) {
                return Err(format!("{id} is committed, and {against} has not voted for it"));
            }
        }
        for id in &self.forgotten {
            let told = |name: &String| self.told.iter().any(|(of, who, _)| of == id && who == name);
            let missing = self.begun.get(id).into_iter().flatten().find(|name| !told(name));
            // One that never began can be forgotten.
            if let (Some(missing), true) = (missing, decisions.contains_key(id)) {
                return Err(format!("{id} was forgotten, and {missing} was never told"));
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Bank {
    ledger: Mutex<Ledger>,
    /// Until when there is work: coordinators stop first.
    phase: AtomicU64,
}

/// The phases after the first, in which all work.
const DRAIN: u64 = 1;
const STOP: u64 = 2;

struct Clerk {
    name: String,
    coordinates: bool,
    wire: Wire,
    dice: Dice,
    bank: Arc<Bank>,
    number: u64,
}

impl Clerk {
    fn is_over(&self) -> bool {
        let until = if self.coordinates { DRAIN } else { STOP };
        self.bank.phase.load(Ordering::Relaxed) >= until
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.bank.ledger.lock().unwrap()
    }

    async fn run(mut self) {
        while !self.is_over() {
            self.wire.mend();
            let client = self.wire.client(SESSION_TIMEOUT).await;
            while !self.is_over() {
                let transactions = TwoPhase::new(&client, TRANSACTIONS).unwrap();
                let outcome = if self.coordinates {
                    self.coordinate(&transactions).await
                } else {
                    self.participate(&transactions).await
                };
                match outcome {
                    Ok(()) => {}
                    Err(error) if error.is_final() => break,
                    Err(error) => assert!(is_honest(&error), "{}: {error}", self.name),
                }
            }
        }
    }

    /// Runs one transaction, and perhaps again if it does not know what became of it.
    async fn coordinate(&mut self, transactions: &TwoPhase) -> Result<(), Error> {
        self.number += 1;
        let id = format!("{}-{}", self.name, self.number);
        let all: Vec<String> = (0..EACH).map(|number| format!("participant-{number}")).collect();
        let (first, count) = (self.dice.below(EACH as u64), 1 + self.dice.below(EACH as u64));
        let some = all.iter().cycle().skip(usize::try_from(first).unwrap());
        let some: Vec<&str> =
            some.take(usize::try_from(count).unwrap()).map(String::as_str).collect();
        let names = some.iter().map(|name| (*name).to_owned()).collect();
        self.ledger().begun.insert(id.clone(), names);
        let time = if self.dice.below(5) == 0 {
            Duration::from_millis(self.dice.below(20))
        } else {
            DEADLINE
        };
        let running = async {
            let given = match self.dice.below(5) {
                // Whoever gives up is as good as dead.
                0 => Duration::from_millis(self.dice.below(20)),
                _ => DEADLINE + DEADLINE,
            };
            let disturbed = async {
                sleep(Duration::from_millis(self.dice.below(10))).await;
                trouble(&self.wire, &mut self.dice, 40).await;
            };
            let run = timeout(given, transactions.run(&id, &some, id.clone(), time));
            tokio::join!(run, disturbed).0
        };
        let decision = match running.await {
            Ok(decision) => decision?,
            Err(_) if self.dice.below(2) == 0 => return Ok(()),
            Err(_) => transactions.run(&id, &some, id.clone(), DEADLINE).await?,
        };
        let name = self.name.clone();
        self.ledger().told.push((id, name, decision));
        self.forget_some(transactions).await
    }

    /// Forgets what all are done with, of what it has begun.
    async fn forget_some(&mut self, transactions: &TwoPhase) -> Result<(), Error> {
        let prefix = format!("{}-", self.name);
        let begun: Vec<String> = {
            let ledger = self.ledger();
            let is_there =
                |id: &&String| id.starts_with(&prefix) && !ledger.forgotten.contains(*id);
            ledger.decided().keys().map(|id| String::from(*id)).filter(|id| is_there(&id)).collect()
        };
        for id in begun {
            if transactions.forget(&id).await? {
                self.ledger().forgotten.insert(id);
            }
        }
        Ok(())
    }

    /// Takes part for a while.
    async fn participate(&mut self, transactions: &TwoPhase) -> Result<(), Error> {
        let mut participant = transactions.participant(&self.name.clone()).await?;
        while !self.is_over() {
            let next = timeout(Duration::from_millis(300), participant.next());
            let Ok(task) = next.await else { continue };
            trouble(&self.wire, &mut self.dice, 200).await;
            match task? {
                Task::Prepare(transaction) => self.vote(&participant, &transaction).await?,
                Task::Commit(transaction) => {
                    self.told(&transaction, Decision::Commit);
                    if self.dice.below(20) == 0 {
                        // It is told again when it comes back.
                        return Ok(());
                    }
                    participant.done(&transaction).await?;
                }
                Task::Abort(transaction) => {
                    self.told(&transaction, Decision::Abort);
                    participant.done(&transaction).await?;
                }
            }
        }
        Ok(())
    }

    async fn vote(
        &mut self,
        participant: &Participant,
        transaction: &Transaction,
    ) -> Result<(), Error> {
        let new = self.dice.below(8) > 0;
        let key = (transaction.id.clone(), self.name.clone());
        let is_for = *self.ledger().votes.entry(key).or_insert(new);
        if self.dice.below(20) == 0 {
            // It is not known whether it has voted.
            let given = Duration::from_millis(self.dice.below(4));
            return timeout(given, participant.vote(transaction, is_for)).await.unwrap_or(Ok(()));
        }
        participant.vote(transaction, is_for).await
    }

    fn told(&self, transaction: &Transaction, decision: Decision) {
        assert_eq!(transaction.payload, transaction.id);
        let told = (transaction.id.clone(), self.name.clone(), decision);
        self.ledger().told.push(told);
    }
}

/// What becomes of those that nobody coordinates any more.
async fn settle(client: &Client, bank: &Bank) {
    let transactions = TwoPhase::new(client, TRANSACTIONS).unwrap();
    let begun = bank.ledger.lock().unwrap().begun.clone();
    for id in begun.keys() {
        if bank.ledger.lock().unwrap().forgotten.contains(id) {
            continue;
        }
        let decision = eventually("each is decided", async || {
            match transactions.decision(id).await {
                Ok(decision) => decision.map(Some),
                // It was never begun, or is forgotten.
                Err(Error::Gone { .. }) => Some(None),
                Err(error) => panic!("{id}: {error}"),
            }
        })
        .await;
        let told = decision.map(|decision| (id.clone(), String::from("all"), decision));
        bank.ledger.lock().unwrap().told.extend(told);
        eventually("each is forgotten", async || {
            transactions.forget(id).await.unwrap().then_some(())
        })
        .await;
        bank.ledger.lock().unwrap().forgotten.insert(id.clone());
    }
}

#[tokio::test]
async fn all_are_told_one_decision_and_none_commits_alone() {
    let mut dice = Dice::new();
    let mut cluster = Cluster::start(3).await;
    let bank = Arc::new(Bank::default());
    let (mut coordinators, mut participants) = (Vec::new(), Vec::new());
    for number in 0..EACH {
        for (name, coordinates) in [("coordinator", true), ("participant", false)] {
            let (wire, name) = (Wire::to(&cluster.addresses()).await, format!("{name}-{number}"));
            let (dice, bank) = (dice.split(), Arc::clone(&bank));
            let clerk = Clerk { name, coordinates, wire, dice, bank, number: 0 };
            let clerks = if coordinates { &mut coordinators } else { &mut participants };
            clerks.push(program(clerk, Clerk::run));
        }
    }
    let decided = || bank.ledger.lock().unwrap().decided().len();
    while decided() < usize::try_from(operations()).unwrap() {
        strike(&mut cluster, &mut dice).await;
        let now = decided();
        eventually("transactions go on", async || (decided() > now + EACH).then_some(())).await;
    }
    bank.phase.store(DRAIN, Ordering::Relaxed);
    end(coordinators).await;
    let client = cluster.client().await;
    settle(&client, &bank).await;
    bank.phase.store(STOP, Ordering::Relaxed);
    end(participants).await;
    let ledger = bank.ledger.lock().unwrap().clone();
    let committed = ledger.decided().values().filter(|how| **how == Decision::Commit).count();
    println!(
        "{} transactions begun, {} decided, {committed} of them to commit; told {} times",
        ledger.begun.len(),
        ledger.decided().len(),
        ledger.told.len(),
    );
    ledger.check().unwrap();
    assert!(committed > 0, "nothing was committed");
    assert_eq!(client.children(TRANSACTIONS).await.unwrap(), Vec::<String>::new());
}

#[test]
fn the_checker_sees_two_decisions_and_who_did_not_vote() {
    let text = |text: &str| String::from(text);
    let told = |who: &str, decision| (text("x"), text(who), decision);
    let good = Ledger {
        begun: [(text("x"), [text("a"), text("b")].into())].into(),
        votes: [((text("x"), text("a")), true), ((text("x"), text("b")), true)].into(),
        told: vec![told("a", Decision::Commit), told("b", Decision::Commit)],
        forgotten: [text("x")].into(),
    };
    good.check().unwrap();
    let bad = |change: &dyn Fn(&mut Ledger), why: &str| {
        let mut ledger = good.clone();
        change(&mut ledger);
        let found = ledger.check().unwrap_err();
        assert!(found.contains(why), "{found}, and not: {why}");
    };
    bad(&|ledger| ledger.told.push(told("c", Decision::Abort)), "a was told Commit, and c Abort");
    bad(&|ledger| ledger.votes.extend([((text("x"), text("b")), false)]), "b has not voted");
    bad(&|ledger| drop(ledger.votes.pop_first()), "a has not voted");
    bad(&|ledger| ledger.begun.clear(), "never begun");
    bad(&|ledger| drop(ledger.told.pop()), "b was never told");
}
