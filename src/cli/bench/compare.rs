//! `conclave compare`.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{anyhow, bail, ensure};
use bytes::Bytes;
use serde::Serialize;
use tokio::time::timeout;

use super::java::ZooKeeper;
use super::report::Row;
use super::scratch::Scratch;
use super::work::Kind;
use super::{DEFAULT_THREADS, Load, Wire, measure, median, on_ensemble, parse_threads, run_number};
use crate::cli::ensemble::{Ensemble, Layout};
use crate::cli::{Output, Unprinted, tell, try_say};

/// What one measurement may take beside its own time: sessions are opened, nodes made and removed.
const PREPARATION: Duration = Duration::from_secs(60);
/// How often a measurement that fails is tried again. ZooKeeper's servers sometimes elect a leader once
/// more, above all if they have just started, and close every connection then.
const AGAIN: u32 = 2;
/// A load that keeps its threads this busy is what limits the servers.
const SATURATED: f64 = 0.9;
/// Its mark in the table.
const SATURATED_MARK: char = '*';

/// Compare Conclave with Apache ZooKeeper on this machine
///
/// Starts an ensemble of each, gives both the same load in turn over ZooKeeper's protocol, and
/// prints a line for each operation and shape: operations a second, latency in ms, the servers'
/// CPU in ms for 1000 operations, and Conclave's figures divided by ZooKeeper's. All are the
/// medians of the rounds. Needs Java and ZooKeeper's jars (Debian: libzookeeper-java
/// libslf4j-java libnetty-java).
///
/// The load runs on the same machine. A * marks a figure that the load has limited. A line that
/// cannot be measured is left out, and the exit code is 1 then. The servers keep what they have in a
/// temporary directory, removed afterwards, or by the next run if this one is killed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  conclave compare                                   # everything, about 18 minutes
  conclave compare set get --shapes 64x16 --rounds 1
  conclave compare set get --native                  # and over Conclave's own protocol
  conclave compare --json > figures.jsonl")]
pub(in crate::cli) struct Args {
    /// What to do; each with every one of --shapes
    #[arg(value_enum, default_values_t = Kind::COMPARABLE)]
    kinds: Vec<Kind>,
    /// Clients x operations in flight of each; connect and watch take those with one in flight
    #[arg(long, value_delimiter = ',', default_value = "1x1,1x16,64x1,64x16,256x1,256x16")]
    shapes: Vec<Shape>,
    /// Measure Conclave over its own protocol as well
    #[arg(long)]
    native: bool,
    /// How many servers of each
    #[arg(long, value_name = "N", default_value_t = 3)]
    servers: u8,
    /// Seconds each measurement takes
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Seconds of mixed load that each side gets before anything is measured: a Java program is
    /// slow until it has been compiled
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=3600))]
    warm_up: u64,
    /// How often each is measured
    #[arg(long, value_name = "R", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,
    /// How many threads the load has
    #[arg(long, value_name = "T", default_value_t = DEFAULT_THREADS, value_parser = parse_threads)]
    threads: usize,
    /// Bytes of each value
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    value_size: usize,
    /// The first port
    #[arg(long, value_name = "P", default_value_t = 7700)]
    port_base: u16,
    /// A directory with ZooKeeper's jars, instead of Debian's packages
    #[arg(long, value_name = "DIR")]
    zookeeper_jars: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// How many clients, and how many operations each has in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    clients: u64,
    depth: usize,
}

impl FromStr for Shape {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Shape> {
        let parts = text.split_once('x').and_then(|(clients, depth)| {
            Some(Shape { clients: clients.parse().ok()?, depth: depth.parse().ok()? })
        });
        match parts {
            Some(shape)
                if (1..=10_000).contains(&shape.clients) && (1..=1024).contains(&shape.depth) =>
            {
                Ok(shape)
            }
            _ => bail!(
                "a shape is CLIENTSxDEPTH, like 64x16, of at most 10000 clients and 1024 in flight"
            ),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.clients, self.depth)
    }
}

/// The two ensembles.
struct Sides<'a> {
    conclave: &'a Ensemble,
    zookeeper: ZooKeeper,
}

/// Which of them a load goes to, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    ZooKeeper,
    Conclave(Wire),
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::ZooKeeper => "ZooKeeper",
            Side::Conclave(Wire::ZooKeeper) => "Conclave",
            Side::Conclave(Wire::Native) => "Conclave natively",
        }
    }
}

/// What one side did: medians of the rounds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Figures {
    ops_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Of all servers together.
    cpu_ms_per_1000: f64,
    /// How busy the load's own threads were, from 0 to 1.
    load_busy: f64,
}

/// Conclave's figures divided by ZooKeeper's: medians of the rounds, each compared with its own.
#[derive(Clone, Copy, Debug, Serialize)]
struct Ratios {
    ops_per_second: f64,
    p50: f64,
    p99: f64,
    cpu: f64,
}

/// A line of the table.
#[derive(Debug, Serialize)]
struct Comparison {
    kind: String,
    clients: u64,
    depth: usize,
    /// The wire on which Conclave was driven.
    wire: &'static str,
    zookeeper: Figures,
    conclave: Figures,
    ratio: Ratios,
}

pub(in crate::cli) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    for kind in &args.kinds {
        ensure!(Kind::COMPARABLE.contains(kind), "{} is measured by `conclave bench`", kind.name());
    }
    let home = Scratch::new()?;
    let (ours, theirs) = (home.path().join("conclave"), home.path().join("zookeeper"));
    let jars = args.zookeeper_jars.as_deref();
    let layout = Layout { servers: args.servers, dir: ours, port_base: args.port_base };
    let complete = on_ensemble(layout, async |conclave| {
        let behind = conclave.layout().ports().end;
        let zookeeper = ZooKeeper::start(args.servers, &theirs, behind, jars).await?;
        compare_all(&args, &Sides { conclave, zookeeper }).await
    })
    .await?;
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether every line of the table could be measured.
async fn compare_all(args: &Args, sides: &Sides<'_>) -> anyhow::Result<bool> {
    let cells: Vec<(Kind, Shape)> = args
        .kinds
        .iter()
        .flat_map(|&kind| args.shapes.iter().map(move |&shape| (kind, shape)))
        .filter(|(kind, shape)| kind.is_pipelined() || shape.depth == 1)
        .collect();
    let mut progress = Progress::new(args, cells.len());
    warm_up(args, sides).await?;
    if !args.output.json {
        print_heading()?;
    }
    let mut complete = true;
    for (kind, shape) in cells {
        let comparisons = match compare(args, sides, kind, shape, &mut progress).await {
            Ok(comparisons) => comparisons,
            // What was measured before, and will be after it, is as true without it.
            Err(error) => {
                tell(&format!("{} {shape} is left out: {error:#}", kind.name()));
                complete = false;
                continue;
            }
        };
        for comparison in comparisons {
            if args.output.json {
                try_say!("{}", serde_json::to_string(&comparison)?)?;
            } else {
                print_comparison(&comparison)?;
            }
        }
    }
    Ok(complete)
}

async fn warm_up(args: &Args, sides: &Sides<'_>) -> anyhow::Result<()> {
    for side in [Side::ZooKeeper, Side::Conclave(Wire::ZooKeeper)] {
        let what = format!("warming up {}", side.name());
        tell(&what);
        let shape = Shape { clients: 64, depth: 16 };
        insist(&what, || {
            let (mut load, pids) = load(args, sides, side, (Kind::Mixed, shape), 0);
            load.time = Duration::from_secs(args.warm_up);
            (load, pids)
        })
        .await?;
    }
    Ok(())
}

/// Measures this load, and says so if that takes more than one attempt.
async fn insist(what: &str, load: impl Fn() -> (Load, Vec<u32>)) -> anyhow::Result<Row> {
    let mut again = AGAIN;
    loop {
        let (load, pids) = load();
        let error = match timeout(load.time + PREPARATION, measure(&load, &pids)).await {
            Ok(Ok(row)) => return Ok(row),
            Ok(Err(error)) => error,
            Err(_) => anyhow!("not done after {:?}", load.time + PREPARATION),
        };
        ensure!(again > 0, error.context(what.to_owned()));
        tell(&format!("{what} failed, once more: {error:#}"));
        again -= 1;
    }
}

/// Measures both sides in turn, as often as was asked. The one that begins changes with each round,
/// so that what the one leaves behind (dirty pages, a warm disk) is not always the other's burden.
async fn compare(
    args: &Args,
    sides: &Sides<'_>,
    kind: Kind,
    shape: Shape,
    progress: &mut Progress,
) -> anyhow::Result<Vec<Comparison>> {
    let mut order = vec![Side::ZooKeeper, Side::Conclave(Wire::ZooKeeper)];
    if args.native {
        order.push(Side::Conclave(Wire::Native));
    }
    let mut rows: Vec<(Side, Row)> = Vec::new();
    for _ in 0..args.rounds {
        for &side in &order {
            progress.next(kind, shape, side);
            let what = format!("{} {shape} on {}", kind.name(), side.name());
            let row =
                insist(&what, || load(args, sides, side, (kind, shape), progress.done)).await?;
            ensure!(row.errors == 0, "{what}: {} operations failed", row.errors);
            ensure!(row.operations > 0, "{what}: no operation was done in time");
            rows.push((side, row));
        }
        order.reverse();
    }
    let of = |side| rows.iter().filter(move |(of, _)| *of == side).map(|(_, row)| row);
    let theirs: Vec<&Row> = of(Side::ZooKeeper).collect();
    let wires = [Wire::ZooKeeper, Wire::Native].into_iter();
    let compared = wires.map(|wire| of(Side::Conclave(wire)).collect::<Vec<_>>());
    let compared = compared.filter(|ours| !ours.is_empty());
    Ok(compared.map(|ours| Comparison::new(&theirs, &ours)).collect())
}

fn load(
    args: &Args,
    sides: &Sides<'_>,
    side: Side,
    (kind, shape): (Kind, Shape),
    number: u64,
) -> (Load, Vec<u32>) {
    let layout = sides.conclave.layout();
    let split = |servers: String| servers.split(',').map(str::to_owned).collect();
    let (wire, servers) = match side {
        Side::ZooKeeper => (Wire::ZooKeeper, sides.zookeeper.addresses().to_vec()),
        Side::Conclave(Wire::ZooKeeper) => (Wire::ZooKeeper, split(layout.zookeeper_string())),
        Side::Conclave(Wire::Native) => (Wire::Native, split(layout.connect_string())),
    };
    let pids = match side {
        Side::ZooKeeper => sides.zookeeper.pids(),
        Side::Conclave(_) => layout.ids().filter_map(|id| sides.conclave.pid(id)).collect(),
    };
    let load = Load {
        wire,
        servers,
        tls: None,
        kind,
        clients: shape.clients,
        depth: shape.depth,
        value: Bytes::from(vec![b'x'; args.value_size]),
        time: Duration::from_secs(args.seconds),
        run: run_number() + number,
        threads: args.threads,
        items: 0,
        shards: 1,
    };
    (load, pids)
}

impl Comparison {
    /// The rounds of both, in the same order.
    fn new(theirs: &[&Row], ours: &[&Row]) -> Comparison {
        let ratio = |of: &dyn Fn(&Row) -> f64| {
            median(ours.iter().zip(theirs).map(|(ours, theirs)| of(ours) / of(theirs)))
        };
        Comparison {
            kind: ours[0].kind.clone(),
            clients: ours[0].clients,
            depth: ours[0].depth,
            wire: ours[0].wire,
            zookeeper: Figures::new(theirs),
            conclave: Figures::new(ours),
            ratio: Ratios {
                ops_per_second: ratio(&|row| row.ops_per_second),
                p50: ratio(&|row| row.p50_ms),
                p99: ratio(&|row| row.p99_ms),
                cpu: ratio(&cpu_ms_per_1000),
            },
        }
    }
}

impl Figures {
    fn new(rows: &[&Row]) -> Figures {
        let of = |of: &dyn Fn(&Row) -> f64| median(rows.iter().map(|row| of(row)));
        Figures {
            ops_per_second: of(&|row| row.ops_per_second),
            p50_ms: of(&|row| row.p50_ms),
            p99_ms: of(&|row| row.p99_ms),
            cpu_ms_per_1000: of(&cpu_ms_per_1000),
            load_busy: of(&load_busy),
        }
    }

    fn mark(&self) -> char {
        if self.load_busy >= SATURATED { SATURATED_MARK } else { ' ' }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn load_busy(row: &Row) -> f64 {
    row.load_cores / row.load_threads as f64
}

/// µs for one are ms for a thousand.
fn cpu_ms_per_1000(row: &Row) -> f64 {
    row.servers.map_or(f64::NAN, |usage| usage.cpu_us_per_op)
}

/// Says on standard error what is being measured.
struct Progress {
    done: u64,
    total: u64,
}

impl Progress {
    fn new(args: &Args, cells: usize) -> Progress {
        let total = cells as u64 * args.rounds * if args.native { 3 } else { 2 };
        let minutes = (total * (args.seconds + 1) + 2 * args.warm_up) / 60 + 1;
        tell(&format!("{total} measurements, about {minutes} min"));
        Progress { done: 0, total }
    }

    fn next(&mut self, kind: Kind, shape: Shape, side: Side) {
        self.done += 1;
        let Progress { done, total } = self;
        tell(&format!("[{done}/{total}] {} {shape} on {}", kind.name(), side.name()));
    }
}

fn print_heading() -> Result<(), Unprinted> {
    try_say!(
        "{:<9} {:>8} {:<9} {:^37} {:^37} {:^20}",
        "",
        "clients x",
        "Conclave's",
        "ZooKeeper",
        "Conclave",
        "Conclave / ZooKeeper",
    )?;
    let figures = format!("{:>10} {:>8} {:>8} {:>8}", "ops/s", "p50 ms", "p99 ms", "cpu ms/k");
    try_say!(
        "{:<9} {:>9} {:<10}{figures} {figures}  {:>6} {:>6} {:>6}",
        "operation",
        "in flight",
        "wire",
        "ops/s",
        "p99",
        "cpu",
    )
}

fn print_comparison(row: &Comparison) -> Result<(), Unprinted> {
    let shape = Shape { clients: row.clients, depth: row.depth };
    let side = |figures: &Figures| {
        let Figures { ops_per_second, p50_ms, p99_ms, cpu_ms_per_1000, .. } = figures;
        let mark = figures.mark();
        format!("{ops_per_second:>9.0}{mark} {p50_ms:>8.3} {p99_ms:>8.3} {cpu_ms_per_1000:>8.1}")
    };
    try_say!(
        "{:<9} {:>9} {:<10}{} {}  {:>6.2} {:>6.2} {:>6.2}",
        row.kind,
        shape.to_string(),
        row.wire,
        side(&row.zookeeper),
        side(&row.conclave),
        row.ratio.ops_per_second,
        row.ratio.p99,
        row.ratio.cpu,
    )
}
