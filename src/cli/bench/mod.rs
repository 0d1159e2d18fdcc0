//! `conclave bench`.

mod cache;
mod compare;
mod contest;
mod crew;
mod failover;
mod jars;
mod java;
mod locks;
mod native;
mod queue;
mod report;
mod scratch;
mod usage;
mod work;
mod zookeeper;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use conclave_client::Tls;
use tokio::process::Command;
use tokio::time::Instant;

use super::connect::TlsArgs;
use super::ensemble::{Ensemble, Layout};
use super::{Output, try_say, until_stopped};
pub(super) use compare::{Args as CompareArgs, run as compare};
pub(super) use contest::{Args as CompareLocksArgs, run as compare_locks};
use crew::Crew;
use report::{Row, Tally, print_heading, print_row};
use scratch::Scratch;
use usage::Counters;
use work::Kind;

/// Two threads make more load than three servers on as many other cores can take.
const DEFAULT_THREADS: usize = 2;

/// Measure how fast servers are
///
/// Every client has a session of its own and keeps DEPTH operations in flight. Clients are spread
/// evenly over the servers. Times are what a client waits, from asking to the answer.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  conclave bench --spawn 3                          # an ensemble of its own, set and get
  conclave bench set --spawn 3 --clients 1          # what one durable write costs
  conclave bench get --clients 64 --depth 16        # against CONCLAVE_SERVERS
  conclave bench failover --spawn 3 --seconds 30    # the longest gap around kill -9
  conclave bench freeze hand-over --spawn 3         # around SIGSTOP, around a planned stop
  conclave bench locks succession resignation --spawn 3   # how fast locks and leaders change
  conclave bench queue cache --spawn 3              # a million items; a hundred thousand nodes
  conclave bench set --zookeeper 127.0.0.1:2181     # the same load on a ZooKeeper server")]
pub(super) struct Args {
    /// What to do, one after the other
    #[arg(value_enum, default_values_t = [Kind::Set, Kind::Get])]
    kinds: Vec<Kind>,
    /// Servers to measure, host:port separated by commas
    #[arg(long, env = "CONCLAVE_SERVERS", value_name = "SERVERS", value_delimiter = ',')]
    servers: Vec<String>,
    /// Start an ensemble of that many servers for this and end it afterwards
    #[arg(long, value_name = "N", conflicts_with = "zookeeper")]
    spawn: Option<u8>,
    /// Where --spawn keeps the servers' data, which stays there [default: a temporary directory,
    /// removed afterwards, or by the next run if this one is killed]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The first port of --spawn
    #[arg(long, value_name = "P", default_value_t = 7600)]
    port_base: u16,
    /// Measure ZooKeeper servers instead, over their own protocol
    #[arg(long, value_name = "SERVERS", value_delimiter = ',')]
    zookeeper: Vec<String>,
    /// Processes of the servers, if they run on this machine: their CPU and memory are shown
    #[arg(long, value_name = "PIDS", value_delimiter = ',')]
    pids: Vec<u32>,
    /// How many clients
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    clients: u64,
    /// How many operations each client keeps in flight
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    depth: u64,
    /// How many threads the clients share
    #[arg(long, value_name = "T", default_value_t = DEFAULT_THREADS, value_parser = parse_threads)]
    threads: usize,
    /// Bytes of each value
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    value_size: usize,
    /// How many items a queue has, or how many nodes a cache [default: 1000000, 100000]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    items: Option<u64>,
    /// How many directories the queue is spread over
    #[arg(long, default_value_t = 1, value_parser = parse_shards)]
    shards: usize,
    /// How long each measurement takes
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    output: Output,
}

/// Which wire the load speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    /// Conclave's own.
    Native,
    /// ZooKeeper's.
    ZooKeeper,
}

impl Wire {
    fn name(self) -> &'static str {
        match self {
            Wire::Native => "native",
            Wire::ZooKeeper => "zookeeper",
        }
    }
}

/// One measurement.
#[derive(Clone, Debug)]
struct Load {
    wire: Wire,
    servers: Vec<String>,
    tls: Option<Tls>,
    kind: Kind,
    clients: u64,
    depth: usize,
    value: Bytes,
    time: Duration,
    /// Makes the names of this measurement's nodes its own.
    run: u64,
    /// How many threads the clients share.
    threads: usize,
    /// How many items a queue has, or nodes a cache.
    items: u64,
    /// How many directories a queue is spread over.
    shards: usize,
}

impl Load {
    /// The server of one client.
    fn server_of(&self, client: u64) -> &str {
        let index = usize::try_from(client).unwrap_or(0) % self.servers.len();
        &self.servers[index]
    }

    /// How many threads it really runs on.
    fn threads_used(&self) -> usize {
        if self.kind.is_native() {
            return 1;
        }
        usize::try_from(self.clients).unwrap_or(usize::MAX).clamp(1, self.threads)
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    ensure!(
        args.value_size <= conclave::limits::VALUE_BYTES,
        "--value-size is {}: a value has at most {} bytes",
        args.value_size,
        conclave::limits::VALUE_BYTES
    );
    let Some(servers) = args.spawn else {
        return measure_all(&args, None).await;
    };
    let scratch;
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => {
            scratch = Scratch::new()?;
            scratch.path().to_owned()
        }
    };
    let layout = Layout { servers, dir, port_base: args.port_base };
    on_ensemble(layout, async |ensemble| measure_all(&args, Some(ensemble)).await).await
}

/// Does something with an ensemble that is started for it, and has ended when this returns: also
/// when it fails, or somebody asks this program to stop.
async fn on_ensemble<T>(
    layout: Layout,
    work: impl AsyncFnOnce(&mut Ensemble) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut ensemble = Ensemble::claim(layout)?;
    let outcome = until_stopped(async {
        ensemble.start_all().await?;
        work(&mut ensemble).await
    })
    .await;
    ensemble.stop().await;
    outcome?.context("stopped before everything was measured")?
}

/// Another program, which ends when this one does, however it ends.
fn held(program: impl AsRef<OsStr>) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    command.arg("run-held").arg(std::process::id().to_string()).arg("--").arg(program);
    command.kill_on_drop(true);
    Ok(command)
}

async fn measure_all(args: &Args, mut ensemble: Option<&mut Ensemble>) -> anyhow::Result<ExitCode> {
    let mut failed = false;
    if !args.output.json {
        print_heading()?;
    }
    for (&kind, run) in args.kinds.iter().zip(run_number()..) {
        let mut pids = args.pids.clone();
        if let Some(ensemble) = &ensemble {
            pids = ensemble.layout().ids().filter_map(|id| ensemble.pid(id)).collect();
        }
        let load = load(args, ensemble.as_deref(), kind, run)?;
        ensure!(
            load.wire == Wire::Native || !kind.is_native(),
            "{} is measured on Conclave alone",
            kind.name()
        );
        let rows = match kind {
            Kind::Failover | Kind::Freeze | Kind::HandOver => {
                let ensemble = ensemble.as_deref_mut();
                let ensemble =
                    ensemble.context("this ends or freezes servers: it needs --spawn")?;
                vec![failover::measure(&load, ensemble).await?]
            }
            Kind::Succession | Kind::Resignation => {
                vec![locks::succession(&load, &pids, kind == Kind::Succession).await?]
            }
            Kind::Queue => queue::measure(&load, &pids).await?,
            Kind::Cache => cache::measure(&load, &pids).await?,
            Kind::Set
            | Kind::Create
            | Kind::Get
            | Kind::Mixed
            | Kind::Multi
            | Kind::Children
            | Kind::Connect
            | Kind::Watch
            | Kind::Locks => vec![measure(&load, &pids).await?],
        };
        for row in rows {
            failed |= row.errors > 0 || row.operations == 0;
            if args.output.json {
                try_say!("{}", serde_json::to_string(&row)?)?;
            } else {
                print_row(&row)?;
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn parse_threads(text: &str) -> anyhow::Result<usize> {
    let threads = text.parse().ok().filter(|threads| (1..=64).contains(threads));
    threads.context("there are 1 to 64 threads")
}

fn parse_shards(text: &str) -> anyhow::Result<usize> {
    let shards = text.parse().ok().filter(|shards| (1..=1000).contains(shards));
    shards.context("there are 1 to 1000 shards")
}

/// A number that no earlier benchmark on the same servers has used.
fn run_number() -> u64 {
    u64::from(std::process::id()) << 16
}

fn load(args: &Args, ensemble: Option<&Ensemble>, kind: Kind, run: u64) -> anyhow::Result<Load> {
    let (wire, servers) = match ensemble {
        Some(ensemble) => {
            let servers = ensemble.layout().connect_string();
            (Wire::Native, servers.split(',').map(str::to_owned).collect())
        }
        None if !args.zookeeper.is_empty() => (Wire::ZooKeeper, args.zookeeper.clone()),
        None if !args.servers.is_empty() => (Wire::Native, args.servers.clone()),
        None => bail!("which servers? Say --spawn 3, --servers HOST:PORT,… or --zookeeper …"),
    };
    Ok(Load {
        wire,
        servers,
        // Servers of our own speak plaintext.
        tls: if ensemble.is_some() { None } else { args.tls.settings()? },
        kind,
        clients: args.clients,
        depth: usize::try_from(args.depth)?,
        value: Bytes::from(vec![b'x'; args.value_size]),
        time: Duration::from_secs(args.seconds),
        run,
        threads: args.threads,
        items: args.items.unwrap_or(if kind == Kind::Queue { 1_000_000 } else { 100_000 }),
        shards: args.shards,
    })
}

/// Prepares the nodes and the sessions, runs the load, and says what came of it.
async fn measure(load: &Load, pids: &[u32]) -> anyhow::Result<Row> {
    match load.wire {
        Wire::Native => native::prepare(load).await?,
        Wire::ZooKeeper => zookeeper::prepare(load).await?,
    }
    let crew = Crew::muster(load).await?;
    let (row, tally) = observe(load, pids, crew.run(load.time)).await?;
    match load.wire {
        Wire::Native => native::clean_up(load).await?,
        Wire::ZooKeeper => zookeeper::clean_up(load, &tally).await?,
    }
    Ok(row)
}

/// Runs a load and looks at the clock and the counters of the servers, and of this process, before
/// and after.
async fn observe(
    load: &Load,
    pids: &[u32],
    run: impl Future<Output = anyhow::Result<Tally>>,
) -> anyhow::Result<(Row, Tally)> {
    let own = [std::process::id()];
    let (before, own_before) = (Counters::of(pids), Counters::of(&own));
    let started = Instant::now();
    let tally = run.await?;
    let elapsed = started.elapsed();
    let mut row = Row::new(load, &tally, elapsed);
    row.load_cores = own_before.cores_until(Counters::of(&own), elapsed);
    row.load_mib = usage::rss_mib(own[0]);
    if !pids.is_empty() {
        let after = Counters::of(pids);
        row.servers = Some(before.usage_until(after, tally.operations(), pids));
    }
    Ok((row, tally))
}

/// The one in the middle.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Runs one task a client, all on this thread, and adds up what they measured.
async fn join_all(
    tasks: Vec<tokio::task::JoinHandle<anyhow::Result<Tally>>>,
) -> anyhow::Result<Tally> {
    let mut sum = Tally::new();
    for task in tasks {
        sum.add(task.await??);
    }
    Ok(sum)
}
