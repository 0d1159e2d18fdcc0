//! `conclave compare`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::ValueEnum;
use serde::Serialize;

use super::java::ZooKeeper;
use super::report::{Row, print_heading, print_row};
use super::work::Kind;
use super::{Load, Target, measure};
use crate::cli::ensemble::{Ensemble, Layout};
use crate::cli::{Output, say};

/// Compare Conclave with Apache ZooKeeper on this machine
///
/// Starts both, gives both the same load in turn, and prints what each did and the ratio. Needs
/// Java and ZooKeeper's jars (Debian: libzookeeper-java libslf4j-java libnetty-java).
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: conclave compare set get --seconds 5 --rounds 3")]
pub(in crate::cli) struct Args {
    /// What to do; each with every combination of --shapes
    #[arg(value_enum, default_values_t = [Kind::Set, Kind::Get])]
    kinds: Vec<Kind>,
    /// Clients x operations in flight
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Shape::value_variants().to_vec())]
    shapes: Vec<Shape>,
    /// How many servers of each
    #[arg(long, value_name = "N", default_value_t = 3)]
    servers: u8,
    /// Seconds each measurement takes
    #[arg(long, value_name = "S", default_value_t = 5)]
    seconds: u64,
    /// How often each pair is measured; the ratio is the median
    #[arg(long, value_name = "R", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shape {
    #[value(name = "1x1")]
    One,
    #[value(name = "64x1")]
    Many,
    #[value(name = "256x1")]
    Crowd,
    #[value(name = "64x16")]
    Pipelined,
}

impl Shape {
    fn clients_and_depth(self) -> (u64, usize) {
        match self {
            Shape::One => (1, 1),
            Shape::Many => (64, 1),
            Shape::Crowd => (256, 1),
            Shape::Pipelined => (64, 16),
        }
    }
}

/// Conclave's figures divided by ZooKeeper's, the median of the rounds.
#[derive(Debug, Serialize)]
struct Ratio {
    kind: String,
    clients: u64,
    depth: usize,
    ops_per_second: f64,
    p99: f64,
    cpu_per_op: f64,
}

pub(in crate::cli) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let home = tempfile::Builder::new().prefix("conclave-compare-").tempdir()?;
    let (ours, theirs) = (home.path().join("conclave"), home.path().join("zookeeper"));
    let jars = args.zookeeper_jars.as_deref();
    let zookeeper = ZooKeeper::start(args.servers, &theirs, args.port_base + 100, jars).await?;
    let layout = Layout { servers: args.servers, dir: ours, port_base: args.port_base };
    let ensemble = Ensemble::start(layout).await?;
    let outcome = compare_all(&args, &ensemble, &zookeeper).await;
    ensemble.stop().await;
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn compare_all(
    args: &Args,
    ensemble: &Ensemble,
    zookeeper: &ZooKeeper,
) -> anyhow::Result<()> {
    if !args.output.json {
        print_heading();
    }
    let mut run = u64::from(std::process::id()) << 16;
    let mut ratios = Vec::new();
    for &kind in &args.kinds {
        for &shape in &args.shapes {
            let mut rounds = Vec::new();
            for _ in 0..args.rounds {
                run += 1;
                let (clients, depth) = shape.clients_and_depth();
                let theirs = Load {
                    target: Target::ZooKeeper,
                    servers: zookeeper.addresses().to_vec(),
                    kind,
                    clients,
                    depth,
                    value: Bytes::from(vec![b'x'; args.value_size]),
                    time: Duration::from_secs(args.seconds),
                    run,
                };
                let ours = ensemble.layout().connect_string();
                let ours = Load {
                    target: Target::Conclave,
                    servers: ours.split(',').map(str::to_owned).collect(),
                    ..theirs.clone()
                };
                let pids: Vec<_> =
                    ensemble.layout().ids().filter_map(|id| ensemble.pid(id)).collect();
                let theirs = measure(&theirs, &zookeeper.pids()).await?;
                show(args, &theirs)?;
                let ours = measure(&ours, &pids).await?;
                show(args, &ours)?;
                rounds.push((ours, theirs));
            }
            ratios.push(ratio(&rounds));
        }
    }
    print_ratios(args, &ratios)
}

fn show(args: &Args, row: &Row) -> anyhow::Result<()> {
    if args.output.json {
        say!("{}", serde_json::to_string(row)?);
    } else {
        print_row(row);
    }
    Ok(())
}

fn ratio(rounds: &[(Row, Row)]) -> Ratio {
    let median = |of: &dyn Fn(&Row) -> f64| {
        let mut all: Vec<_> = rounds.iter().map(|(ours, theirs)| of(ours) / of(theirs)).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let (row, _) = &rounds[0];
    Ratio {
        kind: row.kind.clone(),
        clients: row.clients,
        depth: row.depth,
        ops_per_second: median(&|row| row.ops_per_second),
        p99: median(&|row| row.p99_ms),
        cpu_per_op: median(&|row| row.servers.map_or(f64::NAN, |usage| usage.cpu_us_per_op)),
    }
}

fn print_ratios(args: &Args, ratios: &[Ratio]) -> anyhow::Result<()> {
    if args.output.json {
        for ratio in ratios {
            say!("{}", serde_json::to_string(ratio)?);
        }
        return Ok(());
    }
    say!("\nConclave / ZooKeeper, medians of {} rounds:\n", args.rounds);
    say!(
        "{:<10} {:>8} {:>6} {:>8} {:>8} {:>8}",
        "kind",
        "clients",
        "depth",
        "ops/s",
        "p99",
        "cpu/op"
    );
    for ratio in ratios {
        say!(
            "{:<10} {:>8} {:>6} {:>8.2} {:>8.2} {:>8.2}",
            ratio.kind,
            ratio.clients,
            ratio.depth,
            ratio.ops_per_second,
            ratio.p99,
            ratio.cpu_per_op
        );
    }
    Ok(())
}
