//! Banks that transfer money between them: all book a transfer, or none does, whoever dies.
//!
//! Each bank keeps its book in a file and takes part in transactions. A coordinator runs them; if it
//! dies before it has decided, the banks find out that it is gone and decide by their votes.
//!
//! Start an ensemble with `conclave dev`, then this, which runs three banks and some transfers in one
//! process:
//!
//! ```text
//! cargo run -p conclave-client --example two_phase_commit -- demo
//! ```
//!
//! Or, in three terminals, with banks `a`, `b` and `c`:
//!
//! ```text
//! cargo run -p conclave-client --example two_phase_commit -- bank a --book /tmp/a.book
//! ```
//!
//! and in a fourth, what each bank gets or gives, which makes nothing together:
//!
//! ```text
//! cargo run -p conclave-client --example two_phase_commit -- transfer t1 a=-100 b=90 c=10
//! cargo run -p conclave-client --example two_phase_commit -- transfer t2 a=-100 b=100 --die voted
//! ```
//!
//! A coordinator can be told to die when it has `begun`, `proposed`, `voted` (all votes are there) or
//! `decided`.

#![allow(clippy::print_stdout, reason = "a program that talks to a person")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use conclave_client::Client;
use conclave_client::recipes::two_phase::{Decision, Task, Transaction, TwoPhase};
use tokio::time::{sleep, timeout};

/// How long the coordinator waits for votes.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long after its death the banks notice that a coordinator is gone.
const SESSION_TIMEOUT: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    let client = connect().await?;
    let transfers = TwoPhase::new(&client, "/transfers")?;
    match given[..] {
        ["bank", name, "--book", book] => bank(&transfers, name, book.into()).await?,
        ["transfer", id, ref changes @ .., "--die", step] => {
            transfer(&transfers, id, changes, step).await?;
        }
        ["transfer", id, ref changes @ ..] => transfer(&transfers, id, changes, "").await?,
        ["demo"] => demo(&transfers).await?,
        _ => bail!("say: bank NAME --book FILE, transfer ID BANK=CHANGE.. [--die STEP], or demo"),
    }
    client.close().await?;
    Ok(())
}

async fn connect() -> Result<Client> {
    let servers = std::env::var("CONCLAVE_SERVERS")
        .unwrap_or_else(|_| "127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420".into());
    let client = Client::builder().servers(&servers).session_timeout(SESSION_TIMEOUT);
    client.connect().await.with_context(|| format!("connecting to {servers}"))
}

/// Three banks, a transfer that they can book, and one that they cannot.
async fn demo(transfers: &TwoPhase) -> Result<()> {
    // Ids are for ever, and books are new.
    let id = |what: &str| format!("{what}-{}", std::process::id());
    let dir = std::env::temp_dir();
    let book = |name: &str| dir.join(id(&format!("book-{name}")));
    let story = async {
        transfer(transfers, &id("rent"), &["a=-600", "b=590", "c=10"], "").await?;
        transfer(transfers, &id("yacht"), &["a=-600", "b=600"], "").await?;
        while !(transfers.forget(&id("rent")).await? && transfers.forget(&id("yacht")).await?) {
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    };
    tokio::select! {
        ended = bank(transfers, "a", book("a")) => ended,
        ended = bank(transfers, "b", book("b")) => ended,
        ended = bank(transfers, "c", book("c")) => ended,
        ended = story => ended,
    }
}

/// A bank books what is decided.
async fn bank(transfers: &TwoPhase, name: &str, path: PathBuf) -> Result<()> {
    let mut book = Book::open(path)?;
    let mut participant = transfers.participant(name).await?;
    println!("bank {name} has {}", book.available());
    loop {
        match participant.next().await? {
            Task::Prepare(transfer) => {
                let change = change(&transfer, name)?;
                let can = book.available() + change >= 0;
                if can {
                    book.write(&transfer.id, "promised", change)?;
                }
                participant.vote(&transfer, can).await?;
            }
            Task::Commit(transfer) => {
                book.write(&transfer.id, "booked", change(&transfer, name)?)?;
                participant.done(&transfer).await?;
            }
            Task::Abort(transfer) => {
                book.write(&transfer.id, "aborted", 0)?;
                participant.done(&transfer).await?;
            }
        }
    }
}

/// What a transfer means to a bank.
fn change(transfer: &Transaction, name: &str) -> Result<i64> {
    let payload = std::str::from_utf8(&transfer.payload).context("what is proposed")?;
    let changes = changes(payload.split(' '))?;
    changes.get(name).copied().with_context(|| format!("{} does not concern {name}", transfer.id))
}

/// What each bank gets, by name.
fn changes<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<BTreeMap<&'a str, i64>> {
    let change = |word: &'a str| {
        let (bank, change) = word.split_once('=').with_context(|| format!("{word}: no change"))?;
        Ok((bank, change.parse().with_context(|| format!("{word}: no number"))?))
    };
    words.into_iter().map(change).collect()
}

/// The coordinator. It dies after the step that it is told.
async fn transfer(transfers: &TwoPhase, id: &str, words: &[&str], die: &str) -> Result<()> {
    let die_at = |step: &str| {
        if die == step {
            std::process::abort();
        }
    };
    let changes = changes(words.iter().copied())?;
    ensure!(changes.values().sum::<i64>() == 0, "{id} would make money, or lose some");
    let banks: Vec<&str> = changes.keys().copied().collect();
    die_at("begun");
    transfers.begin(id, &banks, words.join(" ")).await?;
    die_at("proposed");
    // Who says nothing for so long is against it.
    timeout(PATIENCE, transfers.all_votes(id)).await.unwrap_or(Ok(()))?;
    die_at("voted");
    let decision = transfers.decide(id).await?;
    die_at("decided");
    println!("{id}: {}", if decision == Decision::Commit { "booked" } else { "aborted" });
    Ok(())
}

/// A bank's book: a line for each step of a transfer, on disk before anybody is told of it.
struct Book {
    file: File,
    /// How far each transfer is, and what it changes.
    transfers: BTreeMap<String, (String, i64)>,
}

/// What a bank has at first.
const CAPITAL: i64 = 1000;

impl Book {
    fn open(path: PathBuf) -> Result<Book> {
        let mut transfers = BTreeMap::new();
        for line in fs::read_to_string(&path).unwrap_or_default().lines() {
            let [id, step, change] = line.split(' ').collect::<Vec<_>>()[..] else {
                bail!("{line:?} is no line of a book");
            };
            transfers.insert(id.to_owned(), (step.to_owned(), change.parse()?));
        }
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        Ok(Book { file, transfers })
    }

    /// What can be given away: what is promised is gone, what is promised to come is not there.
    fn available(&self) -> i64 {
        let counted = self.transfers.values().map(|(step, change)| match step.as_str() {
            "booked" => *change,
            "promised" => (*change).min(0),
            _ => 0,
        });
        CAPITAL + counted.sum::<i64>()
    }

    /// What is there already is not written again: a bank that comes back is told again.
    fn write(&mut self, id: &str, step: &str, change: i64) -> Result<()> {
        if self.transfers.get(id).is_none_or(|(last, _)| last != step) {
            self.file.write_all(format!("{id} {step} {change}\n").as_bytes())?;
            self.file.sync_data()?;
            self.transfers.insert(id.to_owned(), (step.to_owned(), change));
            println!("{id}: {step} {change}; {} are left", self.available());
        }
        Ok(())
    }
}
