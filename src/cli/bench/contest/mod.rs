//! `conclave compare-locks`.

mod foreign;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use conclave_client::Client;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::foreign::Foreign;
use super::java::ZooKeeper;
use super::locks;
use super::on_ensemble;
use super::scratch::Scratch;
use super::usage::Counters;
use crate::cli::ensemble::{Ensemble, Layout};
use crate::cli::{Output, tell, try_say};

/// Long enough that no session ends while the servers are busy.
const SESSION_TIMEOUT: Duration = Duration::from_secs(30);

/// Compare locks with those of other libraries, on this machine
///
/// Starts an ensemble of Conclave and one of Apache ZooKeeper, and lets as many contenders, each
/// with a session of its own, take one lock and release it at once, again and again: with kazoo's
/// Lock and Apache Curator's InterProcessMutex on ZooKeeper, and with the client crate's Mutex on
/// Conclave. Prints a line for each: hand-overs a second, how long a contender waited from asking
/// to having the lock, in ms, and the servers' CPU in µs for each hand-over. All are the medians of
/// the rounds. The time of warming up is not counted, for none of them.
///
/// Needs a JDK, ZooKeeper's and Curator's jars (Debian: default-jdk-headless libzookeeper-java
/// libcurator-recipes-java libguava-java libslf4j-java libnetty-java), and a Python with kazoo.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  python3 -m venv kazoo && kazoo/bin/pip install kazoo
  conclave compare-locks --python kazoo/bin/python
  conclave compare-locks curator conclave --rounds 1
  conclave compare-locks curator-on-conclave conclave   # the same servers, other libraries")]
pub(in crate::cli) struct Args {
    /// Whose locks
    #[arg(value_enum, default_values_t = [Library::Kazoo, Library::Curator, Library::Conclave])]
    libraries: Vec<Library>,
    /// How many contenders
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1000))]
    contenders: u64,
    /// How many servers of each
    #[arg(long, value_name = "N", default_value_t = 3)]
    servers: u8,
    /// Seconds each measurement takes
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Seconds of contention before each measurement
    #[arg(long, value_name = "S", default_value_t = 4, value_parser = clap::value_parser!(u64).range(0..=3600))]
    warm_up: u64,
    /// How often each is measured
    #[arg(long, value_name = "R", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,
    /// The first port
    #[arg(long, value_name = "P", default_value_t = 7800)]
    port_base: u16,
    /// A directory with ZooKeeper's and Curator's jars, instead of Debian's packages
    #[arg(long, value_name = "DIR")]
    jars: Option<PathBuf>,
    /// A Python with kazoo
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// Whose lock, and on which servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Library {
    /// kazoo's Lock on ZooKeeper
    Kazoo,
    /// Curator's InterProcessMutex on ZooKeeper
    Curator,
    /// The client crate's Mutex on Conclave
    Conclave,
    /// kazoo's Lock on Conclave, over ZooKeeper's protocol
    KazooOnConclave,
    /// Curator's InterProcessMutex on Conclave, over ZooKeeper's protocol
    CuratorOnConclave,
}

impl Library {
    fn describe(self) -> &'static str {
        match self {
            Library::Kazoo => "kazoo's Lock on ZooKeeper",
            Library::Curator => "Curator's InterProcessMutex on ZooKeeper",
            Library::Conclave => "Mutex on Conclave",
            Library::KazooOnConclave => "kazoo's Lock on Conclave",
            Library::CuratorOnConclave => "Curator's InterProcessMutex on Conclave",
        }
    }

    fn is_on_zookeeper(self) -> bool {
        matches!(self, Library::Kazoo | Library::Curator)
    }
}

/// What one contest came to.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Outcome {
    hand_overs: u64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

/// A line of the table: medians of the rounds.
#[derive(Debug, Serialize)]
struct Figures {
    lock: &'static str,
    contenders: u64,
    hand_overs_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// Of all servers, for each hand-over, the time of warming up included.
    cpu_us: f64,
}

/// The two ensembles; ZooKeeper's is there if a contest needs it.
struct Sides<'a> {
    conclave: &'a Ensemble,
    zookeeper: Option<ZooKeeper>,
}

impl Sides<'_> {
    /// Where the clients of a library connect, and the servers' processes.
    fn of(&self, library: Library) -> anyhow::Result<(Vec<String>, Vec<u32>)> {
        let layout = self.conclave.layout();
        if library.is_on_zookeeper() {
            let zookeeper = self.zookeeper.as_ref().context("ZooKeeper was started")?;
            return Ok((zookeeper.addresses().to_vec(), zookeeper.pids()));
        }
        let servers = match library {
            Library::Conclave => layout.connect_string(),
            Library::Kazoo
            | Library::Curator
            | Library::KazooOnConclave
            | Library::CuratorOnConclave => layout.zookeeper_string(),
        };
        let pids = layout.ids().filter_map(|id| self.conclave.pid(id)).collect();
        Ok((servers.split(',').map(str::to_owned).collect(), pids))
    }
}

pub(in crate::cli) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let home = Scratch::new()?;
    let foreign = Foreign::prepare(&args, home.path()).await?;
    let dir = home.path().join("conclave");
    let layout = Layout { servers: args.servers, dir, port_base: args.port_base };
    on_ensemble(layout, async |conclave| {
        let sides = Sides { conclave, zookeeper: None };
        contest_all(&args, &foreign, sides, home.path()).await
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}

async fn contest_all(
    args: &Args,
    foreign: &Foreign,
    mut sides: Sides<'_>,
    home: &Path,
) -> anyhow::Result<()> {
    if args.libraries.iter().any(|library| library.is_on_zookeeper()) {
        let (dir, behind) = (home.join("zookeeper"), sides.conclave.layout().ports().end);
        let zookeeper = ZooKeeper::start(args.servers, &dir, behind, args.jars.as_deref()).await?;
        sides.zookeeper = Some(zookeeper);
    }
    let mut outcomes = vec![Vec::new(); args.libraries.len()];
    for round in 1..=args.rounds {
        for (place, (outcomes, &library)) in outcomes.iter_mut().zip(&args.libraries).enumerate() {
            tell(&format!("[{round}/{}] {}", args.rounds, library.describe()));
            let (servers, pids) = sides.of(library)?;
            let before = Counters::of(&pids);
            // No two have the same: one may leave nodes there until its sessions expire.
            let path = format!("/contest-{round}-{place}");
            let outcome = if library == Library::Conclave {
                contend(args, &servers, &path).await
            } else {
                foreign.contend(args, library, &servers, &path).await
            };
            let outcome = outcome.with_context(|| library.describe())?;
            ensure!(outcome.hand_overs > 0, "{}: nobody got the lock", library.describe());
            // The time of warming up takes as much of the servers as the rest.
            let share = args.seconds + args.warm_up;
            let all = outcome.hand_overs * share / args.seconds;
            let cpu_us = before.usage_until(Counters::of(&pids), all, &pids).cpu_us_per_op;
            outcomes.push((outcome, cpu_us));
        }
    }
    let figures: Vec<_> = args
        .libraries
        .iter()
        .zip(&outcomes)
        .map(|(&library, outcomes)| Figures::new(args, library, outcomes))
        .collect();
    print(args, &figures)
}

/// Lets clients of this process contend for a mutex.
async fn contend(args: &Args, servers: &[String], path: &str) -> anyhow::Result<Outcome> {
    let mut clients = Vec::new();
    for server in servers.iter().cycle().take(usize::try_from(args.contenders)?) {
        let builder = Client::builder().servers(server).session_timeout(SESSION_TIMEOUT);
        clients.push(builder.connect().await?);
    }
    let from = Instant::now() + Duration::from_secs(args.warm_up);
    let until = from + Duration::from_secs(args.seconds);
    let tally = locks::hand_over(&clients, path, from..until).await?;
    for client in clients {
        client.close().await?;
    }
    Ok(Outcome {
        hand_overs: tally.operations(),
        p50_ms: tally.quantile_ms(0.5),
        p99_ms: tally.quantile_ms(0.99),
        max_ms: tally.quantile_ms(1.0),
    })
}

impl Figures {
    fn new(args: &Args, library: Library, outcomes: &[(Outcome, f64)]) -> Figures {
        let of = |of: &dyn Fn(&Outcome) -> f64| {
            super::median(outcomes.iter().map(|(outcome, _)| of(outcome)))
        };
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = |outcome: &Outcome| outcome.hand_overs as f64 / args.seconds as f64;
        Figures {
            lock: library.describe(),
            contenders: args.contenders,
            hand_overs_per_second: of(&rate),
            p50_ms: of(&|outcome| outcome.p50_ms),
            p99_ms: of(&|outcome| outcome.p99_ms),
            max_ms: of(&|outcome| outcome.max_ms),
            cpu_us: super::median(outcomes.iter().map(|(_, cpu)| *cpu)),
        }
    }
}

fn print(args: &Args, all: &[Figures]) -> anyhow::Result<()> {
    if !args.output.json {
        try_say!(
            "{:<42} {:>12} {:>9} {:>9} {:>9} {:>10}",
            "lock",
            "hand-overs/s",
            "p50 ms",
            "p99 ms",
            "max ms",
            "cpu µs"
        )?;
    }
    for figures in all {
        if args.output.json {
            try_say!("{}", serde_json::to_string(figures)?)?;
        } else {
            let Figures { lock, hand_overs_per_second, p50_ms, p99_ms, max_ms, cpu_us, .. } =
                figures;
            try_say!(
                "{lock:<42} {hand_overs_per_second:>12.0} {p50_ms:>9.2} {p99_ms:>9.2} {max_ms:>9.2} {cpu_us:>10.0}"
            )?;
        }
    }
    Ok(())
}
