//! The load over Conclave's own protocol, with the client crate.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use conclave_client::{Client, Error, ErrorCode, WatchKind};
use tokio::time::Instant;

use super::crew::{Rounds, Shift};
use super::report::Tally;
use super::work::{
    CHILDREN, Kind, MULTI, NODES, ROOT, Step, Steps, created_path, listed_path, node_path,
    watched_path,
};
use super::{Load, join_all, locks};

/// Requests in flight while nodes are prepared.
const BULK: usize = 256;
/// Long enough that no session ends while the servers are busy.
const SESSION_TIMEOUT: Duration = Duration::from_secs(30);

/// A session with one server.
pub(super) async fn connect(load: &Load, servers: &str) -> anyhow::Result<Client> {
    let mut builder = Client::builder();
    if let Some(tls) = load.tls.clone() {
        builder = builder.tls(tls);
    }
    builder
        .servers(servers)
        .session_timeout(SESSION_TIMEOUT)
        .connect()
        .await
        .with_context(|| format!("opening a session with {servers}"))
}

/// Makes the nodes that the load works on.
pub(super) async fn prepare(load: &Load) -> anyhow::Result<()> {
    let client = connect(load, load.server_of(0)).await?;
    let parents = [ROOT.to_owned(), format!("{ROOT}/nodes"), format!("{ROOT}/created")];
    let nodes = (0..NODES).map(node_path);
    let children = (0..CHILDREN).map(|n| format!("{}/{n}", listed_path()));
    let paths = parents.into_iter().chain([listed_path(), watched_path()]);
    let paths: Vec<_> = paths.chain(nodes).chain(children).collect();
    for some in paths.chunks(BULK) {
        let creations: Vec<_> =
            some.iter().map(|path| client.create(path, load.value.clone()).send()).collect();
        for creation in creations {
            match creation.await {
                Err(error) if error.code() != Some(ErrorCode::NodeExists) => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
    }
    client.close().await?;
    Ok(())
}

/// What one thread does: opens its clients' sessions, runs their load when all threads are ready,
/// and closes them.
pub(super) async fn work(load: &Load, shift: Shift) -> anyhow::Result<Tally> {
    let first = shift.clients.start;
    let numbers = shift.clients.clone();
    let clients = open(load, numbers.clone()).await?;
    let (until, rounds) = shift.begin().await?;
    let tally = match load.kind {
        Kind::Connect => {
            let sessions = numbers.map(|n| open_and_close(load.clone(), n, until));
            join_all(sessions.map(tokio::spawn).collect()).await?
        }
        Kind::Watch => fan_out(load, &clients, first == 0, &rounds, until).await?,
        Kind::Locks => {
            let path = format!("{ROOT}/lock");
            locks::hand_over(&clients, &path, Instant::now()..until).await?
        }
        Kind::Failover
        | Kind::Freeze
        | Kind::HandOver
        | Kind::Succession
        | Kind::Resignation
        | Kind::Queue
        | Kind::Cache => {
            anyhow::bail!("{} has a loop of its own", load.kind.name())
        }
        Kind::Set | Kind::Create | Kind::Get | Kind::Mixed | Kind::Multi | Kind::Children => {
            let loads = clients.iter().zip(numbers);
            let loads = loads.map(|(client, n)| steady(load.clone(), client.clone(), n, until));
            join_all(loads.map(tokio::spawn).collect()).await?
        }
    };
    for client in clients {
        client.close().await?;
    }
    Ok(tally)
}

/// Opens the sessions of these clients.
pub(super) async fn open(load: &Load, numbers: Range<u64>) -> anyhow::Result<Vec<Client>> {
    let mut clients = Vec::new();
    if load.kind != Kind::Connect {
        for client in numbers {
            clients.push(connect(load, load.server_of(client)).await?);
        }
        // A session's writes go through every server; its reads do not, and another server may
        // not know yet of the nodes that were made.
        for client in &clients {
            client.sync().await?;
        }
    }
    Ok(clients)
}

/// Removes every node that the load made.
pub(super) async fn clean_up(load: &Load) -> anyhow::Result<()> {
    let client = connect(load, load.server_of(0)).await?;
    client.delete_recursive(ROOT).await?;
    client.close().await?;
    Ok(())
}

/// One client, with a task for each operation that it keeps in flight.
async fn steady(load: Load, client: Client, n: u64, until: Instant) -> anyhow::Result<Tally> {
    // One for all of them: a tally is far larger than everything else that an operation touches.
    let tally = Arc::new(Mutex::new(Tally::new()));
    let depth = load.depth as u64;
    let lanes = (n * depth..(n + 1) * depth)
        .map(|number| lane(load.clone(), client.clone(), number, until, tally.clone()));
    for lane in lanes.map(tokio::spawn).collect::<Vec<_>>() {
        lane.await?;
    }
    Arc::into_inner(tally).and_then(|tally| tally.into_inner().ok()).context("a lane has failed")
}

/// One of a client's lanes: always one operation in flight.
async fn lane(load: Load, client: Client, lane: u64, until: Instant, tally: Arc<Mutex<Tally>>) {
    let mut steps = Steps::new(load.kind, lane);
    loop {
        let started = Instant::now();
        if started >= until {
            return;
        }
        let outcome = perform(&load, &client, lane, steps.next()).await;
        let took = started.elapsed();
        tally.lock().unwrap_or_else(PoisonError::into_inner).record(took, outcome.is_ok());
    }
}

async fn perform(load: &Load, client: &Client, lane: u64, step: Step) -> Result<(), Error> {
    match step {
        Step::Set(n) => client.set(node_path(n), load.value.clone()).await.map(|_| ()),
        Step::Create(n) => {
            let path = created_path(load.run, lane, n);
            client.create(path, load.value.clone()).await.map(|_| ())
        }
        Step::Get(n) => client.get(node_path(n)).await.map(|_| ()),
        Step::Multi(first) => {
            let sets = (first..first + MULTI)
                .fold(client.multi(), |multi, n| multi.set(node_path(n), load.value.clone(), None));
            sets.await.map(|_| ())
        }
        Step::Children => client.children(listed_path()).await.map(|_| ()),
    }
}

async fn open_and_close(load: Load, n: u64, until: Instant) -> anyhow::Result<Tally> {
    let mut tally = Tally::new();
    while Instant::now() < until {
        let started = Instant::now();
        let closed = match connect(&load, load.server_of(n)).await {
            Ok(client) => client.close().await.is_ok(),
            Err(_) => false,
        };
        tally.record(started.elapsed(), closed);
    }
    Ok(tally)
}

/// One write wakes every client, again and again; what counts is each client's event.
async fn fan_out(
    load: &Load,
    clients: &[Client],
    writes: bool,
    rounds: &Rounds,
    until: Instant,
) -> anyhow::Result<Tally> {
    let writer = if writes { Some(connect(load, load.server_of(0)).await?) } else { None };
    let mut watches = Vec::new();
    for client in clients {
        watches.push(client.watch(watched_path(), WatchKind::Persistent).await?);
    }
    let mut sum = Tally::new();
    for round in 0.. {
        if writer.is_some() && Instant::now() >= until {
            rounds.end(round);
        }
        if !rounds.begin(round).await {
            break;
        }
        let begun = Instant::now();
        let waits: Vec<_> = watches
            .into_iter()
            .map(|mut watch| {
                tokio::spawn(async move {
                    let item = watch.next().await;
                    (watch, item.is_some_and(|item| item.is_ok()), begun.elapsed())
                })
            })
            .collect();
        if let Some(writer) = &writer {
            writer.set(watched_path(), load.value.clone()).await?;
        }
        watches = Vec::new();
        for wait in waits {
            let (watch, told, latency) = wait.await?;
            ensure!(told, "a watch ended");
            sum.record(latency, true);
            watches.push(watch);
        }
    }
    drop(watches);
    if let Some(writer) = writer {
        writer.close().await?;
    }
    Ok(sum)
}
