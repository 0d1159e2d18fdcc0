//! A key-value store of one primary and any number of standbys, as small as it can be and safe.
//!
//! Every server follows the same operation log and applies what is in it, and nothing else. The
//! primary is the one that appends: it answers a client when the operation is in the log and it has
//! applied it itself. When the primary dies, a standby is elected, catches up with the log, and
//! goes on. When the primary was only frozen and wakes up, it appends nothing: the log checks in
//! the very transaction that the hold under which it writes is still there.
//!
//! Start an ensemble with `conclave dev`, then this, which runs three servers in one process, writes,
//! and lets the primary go:
//!
//! ```text
//! cargo run -p conclave-client --example primary_standby -- --demo
//! ```
//!
//! Or, in three terminals, with ports 9001 to 9003:
//!
//! ```text
//! cargo run -p conclave-client --example primary_standby -- --listen 127.0.0.1:9001
//! ```
//!
//! Each line sent to a server is a request; try `nc 127.0.0.1 9001`:
//!
//! ```text
//! SET colour green    OK 1                     the primary: it is done, and will not be lost
//!                     PRIMARY 127.0.0.1:9002   a standby: ask that one
//!                     UNKNOWN why              it may be done or not: ask again
//!                     BUSY ask again           it is not done: too many wait
//! GET colour          VALUE green              any server; a standby may be a little behind
//! LAST                LAST 1                   the last operation that this server has applied
//! ```

#![allow(clippy::print_stdout, reason = "a program that talks to a person")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use conclave_client::Client;
use conclave_client::recipes::log::{Entry, Follower, Log, Writer};
use conclave_client::recipes::{Election, Error, Leadership};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

/// The operations that are appended together.
const BATCH: usize = 100;
/// The log is made shorter after so many operations.
const COMPACT: u64 = 500;

/// What the command line says.
#[derive(Clone)]
struct Args {
    servers: String,
    listen: String,
    name: String,
    session_timeout: Duration,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    if given == ["--demo"] {
        return demo().await;
    }
    let args = Args::parse(given.into_iter())?;
    let listener = TcpListener::bind(&args.listen).await.context("--listen")?;
    run(args, listener).await
}

/// Three servers, of which the primary leaves.
async fn demo() -> Result<()> {
    let mut servers = BTreeMap::new();
    for _ in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let listen = listener.local_addr()?.to_string();
        let args = ["--listen", &listen, "--session-timeout", "2"].map(ToOwned::to_owned);
        servers.insert(listen, tokio::spawn(run(Args::parse(args.into_iter())?, listener)));
    }
    let addresses: Vec<String> = servers.keys().cloned().collect();
    let primary = persist(&addresses, "SET colour green").await;
    servers.remove(&primary).context("it is one of them")?.abort();
    say(&format!("{primary} is gone"));
    let next = persist(&addresses, "SET shape round").await;
    for request in ["GET colour", "GET shape"] {
        say(&format!("{next} answers {request} with {}", ask(&next, request).await?));
    }
    Ok(())
}

/// Asks until somebody has done it.
async fn persist(addresses: &[String], request: &str) -> String {
    loop {
        for address in addresses {
            if let Ok(answer) = ask(address, request).await
                && answer.starts_with("OK")
            {
                say(&format!("{address} answers {request} with {answer}"));
                return address.clone();
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn ask(address: &str, request: &str) -> Result<String> {
    let mut connection = BufReader::new(TcpStream::connect(address).await?);
    connection.write_all(format!("{request}\n").as_bytes()).await?;
    let mut answer = String::new();
    connection.read_line(&mut answer).await?;
    Ok(answer.trim_end().to_owned())
}

async fn run(args: Args, listener: TcpListener) -> Result<()> {
    loop {
        let connect = Client::builder().servers(&args.servers);
        let client = connect.session_timeout(args.session_timeout).connect().await?;
        let ended = tokio::select! {
            ended = serve(&client, &args, &listener) => ended,
            stopped = tokio::signal::ctrl_c() => {
                stopped?;
                client.close().await?;
                return Ok(());
            }
        };
        match ended {
            Err(error) if error.is_final() => say(&format!("{error}; once more")),
            ended => return ended.context("could not go on"),
        }
    }
}

/// A request for an operation, and where its number goes.
type Request = (Bytes, oneshot::Sender<Result<u64, Error>>);

/// What the parts of a server share.
#[derive(Clone)]
struct Shared {
    values: Arc<Mutex<BTreeMap<String, String>>>,
    /// The last operation that is applied.
    applied: watch::Sender<u64>,
    /// Whether this server is the primary.
    leads: watch::Sender<bool>,
    election: Election,
    requests: mpsc::Sender<Request>,
}

impl Shared {
    /// Waits until everything up to this operation is applied.
    async fn has_applied(&self, number: u64) {
        // The sender is here.
        drop(self.applied.subscribe().wait_for(|&applied| applied >= number).await);
    }
}

/// Follows the log, stands for election, and answers clients, until the session ends.
async fn serve(client: &Client, args: &Args, listener: &TcpListener) -> Result<(), Error> {
    let log = Log::new(client, format!("/{}/log", args.name))?;
    let election = Election::new(client, format!("/{}/election", args.name))?;
    let (requests, mut queue) = mpsc::channel(BATCH);
    let shared = Shared {
        values: Arc::default(),
        applied: watch::Sender::new(0),
        leads: watch::Sender::new(false),
        election,
        requests,
    };
    let follower = log.follow().await?;
    tokio::select! {
        ended = apply(follower, &shared) => ended,
        ended = stand(args, &log, &shared, &mut queue) => ended,
        () = accept(listener, &shared) => Ok(()),
    }
}

/// Applies what is in the log.
async fn apply(mut follower: Follower, shared: &Shared) -> Result<(), Error> {
    loop {
        let entry = follower.next().await?;
        let mut values = shared.values.lock().unwrap_or_else(PoisonError::into_inner);
        let number = match entry {
            Entry::State { number, state } => {
                values.clear();
                for line in String::from_utf8_lossy(&state).lines() {
                    set(&mut values, line);
                }
                number
            }
            Entry::Operation { number, operation } => {
                set(&mut values, &String::from_utf8_lossy(&operation));
                number
            }
        };
        shared.applied.send_replace(number);
    }
}

fn set(values: &mut BTreeMap<String, String>, operation: &str) {
    let (key, value) = operation.split_once(' ').unwrap_or((operation, ""));
    values.insert(key.to_owned(), value.to_owned());
}

/// Is the primary whenever it is elected.
async fn stand(
    args: &Args,
    log: &Log,
    shared: &Shared,
    queue: &mut mpsc::Receiver<Request>,
) -> Result<(), Error> {
    loop {
        let leadership = shared.election.campaign(args.listen.clone()).await?;
        say(&format!("primary, with token {}", leadership.token()));
        shared.leads.send_replace(true);
        let outcome = tokio::select! {
            outcome = lead(&leadership, log, shared, queue) => outcome,
            loss = leadership.lost() => {
                say(&format!("no longer primary: {loss}"));
                Ok(())
            }
        };
        shared.leads.send_replace(false);
        match outcome {
            Err(error) if error.is_final() => return Err(error),
            Err(error) => say(&format!("stepping down: {error}")),
            Ok(()) => {}
        }
        // Nobody knows what has become of what waits: whoever asked is told so.
        while queue.try_recv().is_ok() {}
    }
}

/// Appends what clients ask for.
async fn lead(
    leadership: &Leadership,
    log: &Log,
    shared: &Shared,
    queue: &mut mpsc::Receiver<Request>,
) -> Result<(), Error> {
    let mut writer = log.write(leadership.hold()).await?;
    // What others have appended comes first: a state must not leave out what is in the log.
    let last = log.follow().await?.end().await?;
    shared.has_applied(last).await;
    let mut compacted = last;
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let operations: Vec<Bytes> = batch.iter().map(|(operation, _)| operation.clone()).collect();
        let outcome = writer.append(operations).await;
        let first = outcome.as_ref().map_or(0, |last| last + 1 - batch.len() as u64);
        for ((_, answer), number) in batch.drain(..).zip(first..) {
            // Whoever asked may be gone.
            drop(answer.send(outcome.clone().map(|_| number)));
        }
        outcome?;
        let applied = *shared.applied.borrow();
        if applied >= compacted + COMPACT {
            compact(&mut writer, shared).await?;
            compacted = applied;
        }
    }
    Ok(())
}

async fn compact(writer: &mut Writer<'_>, shared: &Shared) -> Result<(), Error> {
    let (number, state) = {
        let values = shared.values.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = values.iter().map(|(key, value)| format!("{key} {value}\n"));
        (*shared.applied.borrow(), lines.collect::<String>())
    };
    writer.compact(number, state).await
}

/// Answers clients.
async fn accept(listener: &TcpListener, shared: &Shared) {
    let mut clients = tokio::task::JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((socket, _)) => drop(clients.spawn(converse(socket, shared.clone()))),
            Err(error) => {
                say(&format!("cannot accept: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(mut socket: TcpStream, shared: Shared) -> std::io::Result<()> {
    let (reading, mut writing) = socket.split();
    let mut lines = BufReader::new(reading).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = answer(&line, &shared).await;
        writing.write_all(format!("{answer}\n").as_bytes()).await?;
    }
    Ok(())
}

async fn answer(line: &str, shared: &Shared) -> String {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("SET", operation) if !operation.is_empty() => write(operation, shared).await,
        ("GET", key) => {
            let values = shared.values.lock().unwrap_or_else(PoisonError::into_inner);
            values.get(key).map_or_else(|| "NONE".into(), |value| format!("VALUE {value}"))
        }
        ("LAST", "") => format!("LAST {}", *shared.applied.borrow()),
        _ => "ERROR say SET KEY VALUE, GET KEY or LAST".into(),
    }
}

async fn write(operation: &str, shared: &Shared) -> String {
    if !*shared.leads.borrow() {
        return match shared.election.leader().await {
            Ok(Some(leader)) => format!("PRIMARY {}", String::from_utf8_lossy(&leader.value)),
            Ok(None) => "NOBODY leads at the moment".into(),
            Err(error) => format!("ERROR {error}"),
        };
    }
    let (answer, outcome) = oneshot::channel();
    let request = (Bytes::copy_from_slice(operation.as_bytes()), answer);
    // What waited for room could come into the queue of a later leadership, when whoever asked has
    // long given up.
    match shared.requests.try_send(request) {
        Ok(()) => {}
        Err(TrySendError::Full(_)) => return "BUSY ask again".into(),
        Err(TrySendError::Closed(_)) => return "ERROR this server is stopping".into(),
    }
    match outcome.await {
        Ok(Ok(number)) => {
            shared.has_applied(number).await;
            format!("OK {number}")
        }
        Ok(Err(error)) => format!("UNKNOWN {error}"),
        Err(_) => "UNKNOWN this server is no longer the primary".into(),
    }
}

impl Args {
    fn parse(mut given: impl Iterator<Item = String>) -> Result<Args> {
        let mut args = Args {
            servers: std::env::var("CONCLAVE_SERVERS")
                .unwrap_or_else(|_| "127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420".into()),
            listen: String::new(),
            name: "store".into(),
            session_timeout: Duration::from_secs(5),
        };
        while let Some(flag) = given.next() {
            let value = given.next().with_context(|| format!("{flag} needs a value"))?;
            match flag.as_str() {
                "--servers" => args.servers = value,
                "--listen" => args.listen = value,
                "--name" => args.name = value,
                "--session-timeout" => args.session_timeout = Duration::from_secs(value.parse()?),
                _ => bail!("unknown argument {flag}"),
            }
        }
        if args.listen.is_empty() {
            bail!("say where to listen: --listen 127.0.0.1:9001; or --demo");
        }
        Ok(args)
    }
}

fn say(what: &str) {
    println!("{what}");
}
