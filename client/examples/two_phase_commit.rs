//! Banks that transfer money between them: both book a transfer, or neither does, whoever dies.
//!
//! Each bank keeps its book in a file and takes part in transactions. A coordinator runs them; if it
//! dies before it has decided, the banks find out that it is gone and decide by their votes.
//!
//! Start an ensemble with `conclave dev`, then, in two terminals, with banks `a` and `b`:
//!
//! ```text
//! cargo run -p conclave-client --example two_phase_commit -- bank a --book /tmp/a.book
//! ```
//!
//! and in a third:
//!
//! ```text
//! cargo run -p conclave-client --example two_phase_commit -- transfer t1 a b 100
//! cargo run -p conclave-client --example two_phase_commit -- transfer t2 a b 100 --die proposed
//! ```

#![allow(clippy::print_stdout, reason = "a program that talks to a person")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use conclave_client::Client;
use conclave_client::recipes::two_phase::{Decision, Task, Transaction, TwoPhase};

/// How long the coordinator waits for votes.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long after its death the banks notice that a coordinator is gone.
const SESSION_TIMEOUT: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    let servers = std::env::var("CONCLAVE_SERVERS")
        .unwrap_or_else(|_| "127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420".into());
    let client = Client::builder().servers(&servers).session_timeout(SESSION_TIMEOUT);
    let client = client.connect().await?;
    let transfers = TwoPhase::new(&client, "/transfers")?;
    match given[..] {
        ["bank", name, "--book", book] => bank(&transfers, name, book.into()).await?,
        ["transfer", id, from, to, amount] => {
            transfer(&transfers, id, (from, to, amount.parse()?), "").await?;
        }
        ["transfer", id, from, to, amount, "--die", step] => {
            transfer(&transfers, id, (from, to, amount.parse()?), step).await?;
        }
        _ => bail!("say: bank NAME --book FILE, or transfer ID FROM TO AMOUNT"),
    }
    client.close().await?;
    Ok(())
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
    let Transfer { from, to, amount } = Transfer::read(payload)?;
    match name {
        name if name == from => Ok(-amount),
        name if name == to => Ok(amount),
        _ => bail!("{} is none of this bank's business", transfer.id),
    }
}

struct Transfer<'a> {
    from: &'a str,
    to: &'a str,
    amount: i64,
}

impl Transfer<'_> {
    fn read(payload: &str) -> Result<Transfer<'_>> {
        let mut words = payload.split(' ');
        let (from, to, amount) = (words.next(), words.next(), words.next());
        let (Some(from), Some(to), Some(amount)) = (from, to, amount) else {
            bail!("{payload:?} is no transfer");
        };
        Ok(Transfer { from, to, amount: amount.parse()? })
    }
}

/// The coordinator. It dies after the step that it is told.
async fn transfer(
    transfers: &TwoPhase,
    id: &str,
    (from, to, amount): (&str, &str, u64),
    die: &str,
) -> Result<()> {
    let die_at = |step: &str| {
        if die == step {
            std::process::abort();
        }
    };
    die_at("begun");
    let payload = format!("{from} {to} {amount}");
    transfers.begin(id, &[from, to], payload.clone()).await?;
    die_at("proposed");
    // Goes on with what has begun.
    let decision = transfers.run(id, &[from, to], payload, PATIENCE).await?;
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
