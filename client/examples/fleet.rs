//! A fleet whose configuration is rolled out in stages, and rolled back if it does harm.
//!
//! Each agent follows one setting, applies what it sees, and reports in a group what it runs and
//! how it is. A roll-out shows a new value to one group of agents after the other. It goes on when
//! all of them report that they run it and are well, and takes the value back as soon as one does
//! not.
//!
//! Start an ensemble with `conclave dev`, then this, which runs four agents in one process and rolls
//! out a release that is good and one that is not:
//!
//! ```text
//! cargo run -p conclave-client --example fleet -- demo
//! ```
//!
//! Or each agent in a terminal of its own, which keeps what it has applied in a file:
//!
//! ```text
//! cargo run -p conclave-client --example fleet -- agent a /tmp/a.log --group canary
//! cargo run -p conclave-client --example fleet -- agent b /tmp/b.log --group eu
//! cargo run -p conclave-client --example fleet -- agent c /tmp/c.log
//! cargo run -p conclave-client --example fleet -- rollout 1.1 6 canary eu
//! cargo run -p conclave-client --example fleet -- rollout 1.2 600 canary eu   # too many workers
//! cargo run -p conclave-client --example fleet -- rollback
//! cargo run -p conclave-client --example fleet -- status
//! ```
//!
//! The setting is one like every other: `conclave config history release --root /fleet/config`.

#![allow(clippy::print_stdout, reason = "a program that talks to a person")]

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use conclave_client::Client;
use conclave_client::recipes::config::{
    Change, Layer, LiveItem, Place, Registry, Revision, Setting,
};
use conclave_client::recipes::members::{Group, Members};
use conclave_client::recipes::{self, Mutex};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

const SESSION_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the agents of a stage may take to be well with a new release.
const STAGE: Duration = Duration::from_secs(20);
/// The workers that an agent has memory for.
const CAPACITY: u32 = 64;

/// What is rolled out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Release {
    version: String,
    workers: u32,
}

/// What an agent tells of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Report {
    groups: Vec<String>,
    runs: Option<Release>,
    /// What is wrong, if something is.
    trouble: Option<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    match given[..] {
        ["agent", name, file] => agent(name, file.into(), None).await,
        ["agent", name, file, "--group", group] => agent(name, file.into(), Some(group)).await,
        ["rollout", version, workers, ref stages @ ..] => {
            let release = Release { version: version.into(), workers: workers.parse()? };
            with_fleet(async |fleet| fleet.roll_out(&release, stages).await).await
        }
        ["rollback"] => with_fleet(async |fleet| fleet.roll_back().await).await,
        ["status"] => with_fleet(async |fleet| fleet.print().await).await,
        ["demo"] => demo().await,
        _ => bail!(
            "say: agent NAME FILE [--group GROUP], rollout VERSION WORKERS [GROUP..], rollback, \
             status, or demo"
        ),
    }
}

async fn connect() -> Result<Client> {
    let servers = std::env::var("CONCLAVE_SERVERS")
        .unwrap_or_else(|_| "127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420".into());
    let builder = Client::builder().servers(&servers).session_timeout(SESSION_TIMEOUT);
    builder.connect().await.with_context(|| format!("connecting to {servers}"))
}

/// The setting, with the rule that no value gets around. That a machine can do with it, only the
/// machine can say.
fn release(client: &Client) -> Result<Setting<Release>, recipes::Error> {
    let registry = Registry::new(client, "/fleet/config")?.author("fleet");
    Ok(registry.setting::<Release>("release")?.validate(|release| match release.workers {
        0 => Err("a release needs a worker".into()),
        _ => Ok(()),
    }))
}

/// Four agents, a release that is good, and one that is not.
async fn demo() -> Result<()> {
    let dir = std::env::temp_dir();
    let file = |name: &str| dir.join(format!("fleet-{}-{name}.log", std::process::id()));
    let story = async {
        let stages = ["canary", "eu"];
        let (good, bad) = (("1.1", 6), ("1.2", 600));
        for (version, workers) in [good, bad] {
            let release = Release { version: version.into(), workers };
            let rolled = with_fleet(async |fleet| {
                fleet.wait_for(4).await?;
                fleet.roll_out(&release, &stages).await
            });
            if let Err(error) = rolled.await {
                println!("{error:#}");
            }
        }
        with_fleet(async |fleet| fleet.print().await).await
    };
    tokio::select! {
        ended = agent("a", file("a"), Some("canary")) => ended,
        ended = agent("b", file("b"), Some("eu")) => ended,
        ended = agent("c", file("c"), None) => ended,
        ended = agent("d", file("d"), None) => ended,
        ended = story => ended,
    }
}

// ---- An agent.

/// Runs what it is told, in a new session whenever one has ended.
async fn agent(name: &str, file: PathBuf, group: Option<&str>) -> Result<()> {
    loop {
        let client = connect().await?;
        let ended = tokio::select! {
            ended = follow(&client, name, &file, group) => ended,
            stopped = tokio::signal::ctrl_c() => {
                stopped?;
                client.close().await?;
                return Ok(());
            }
        };
        let error = ended.err().context("it goes on until it fails")?;
        match error.downcast::<recipes::Error>() {
            Ok(error) if error.is_final() => println!("{name}: {error}; once more"),
            Ok(error) => return Err(error.into()),
            Err(error) => return Err(error),
        }
    }
}

/// Applies every release that is for this agent, and reports.
async fn follow(client: &Client, name: &str, file: &Path, group: Option<&str>) -> Result<()> {
    let mut place = Place::new().instance(name)?;
    if let Some(group) = group {
        place = place.group(group)?;
    }
    let groups: Vec<String> = group.into_iter().map(Into::into).collect();
    let mut report = Report { groups, runs: None, trouble: None };
    let joining = Group::new(client, "/fleet/agents")?.joining(name, encode(&report)?);
    let member = joining.wait(SESSION_TIMEOUT * 2).create().await?;

    let setting = release(client)?;
    let follower = setting_follower(client, place).await?;
    let mut live = follower.live(&setting)?;
    loop {
        match live.next().await {
            // What was staged is everybody's now, for instance.
            Some(Ok(LiveItem::Value(Some(seen)))) if report.runs.as_ref() == Some(&seen.value) => {}
            Some(Ok(LiveItem::Value(Some(seen)))) => {
                report.trouble = apply(name, file, &seen.value).err().map(|why| why.to_string());
                report.runs = Some(seen.value);
            }
            Some(Ok(LiveItem::Value(None))) => report.runs = None,
            // The latest value comes next.
            Some(Ok(LiveItem::Gap)) => continue,
            Some(Err(error)) if follower.has_ended() => return Err(error.into()),
            // Its workers go on. What can be used next is applied, even if they run it already.
            Some(Err(error)) => (report.runs, report.trouble) = (None, Some(error.to_string())),
            None => bail!("the configuration has ended"),
        }
        member.set(encode(&report)?).await?;
    }
}

async fn setting_follower(
    client: &Client,
    place: Place,
) -> Result<recipes::config::Follower, recipes::Error> {
    Registry::new(client, "/fleet/config")?.follow(place).await
}

/// Starts the workers of a release: here, writes down that it does.
fn apply(name: &str, file: &Path, release: &Release) -> Result<()> {
    let Release { version, workers } = release;
    println!("{name} runs {version} with {workers} workers");
    let mut log = OpenOptions::new().create(true).append(true).open(file)?;
    log.write_all(format!("{version} {workers}\n").as_bytes())?;
    ensure!(*workers <= CAPACITY, "no memory for {workers} workers, {CAPACITY} are the most");
    Ok(())
}

fn encode(report: &Report) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(report)?)
}

// ---- Who rolls out.

/// Does something with the fleet, in a session of its own.
async fn with_fleet(work: impl AsyncFnOnce(&Fleet) -> Result<()>) -> Result<()> {
    let client = connect().await?;
    let agents = Group::new(&client, "/fleet/agents")?.members().await?;
    let fleet = Fleet { release: release(&client)?, agents, client };
    let outcome = work(&fleet).await;
    // A session that is over has been reason enough to fail before.
    let closed = fleet.client.close().await;
    outcome?;
    Ok(closed?)
}

struct Fleet {
    client: Client,
    release: Setting<Release>,
    agents: Members,
}

impl Fleet {
    /// Shows a release to group after group, and then to all, as long as those who have it are well.
    async fn roll_out(&self, release: &Release, stages: &[&str]) -> Result<()> {
        // One at a time: a second one would stage its value over this one's.
        let mut turn = Mutex::new(&self.client, "/fleet/rollout")?;
        let turn = turn.lock().await?;
        let setting = self.release.clone().note(format!("release {}", release.version));
        let lost = turn.lost();
        let outcome = tokio::select! {
            outcome = self.go_through(&setting, release, stages) => outcome,
            loss = lost => bail!("stopped in the middle: {loss}; roll out again"),
        };
        turn.release().await?;
        outcome
    }

    async fn go_through(
        &self,
        setting: &Setting<Release>,
        release: &Release,
        stages: &[&str],
    ) -> Result<()> {
        for (number, stage) in stages.iter().enumerate() {
            if number == 0 {
                setting.stage(&Layer::Default, &[stage], release).await?;
            } else {
                setting.widen(&Layer::Default, &[stage]).await?;
            }
            println!("{stage} sees {}", release.version);
            if let Err(why) = self.all_run(release, Some(stage)).await {
                setting.abandon(&Layer::Default).await?;
                bail!("{} is taken back: {why:#}", release.version);
            }
        }
        let before = setting.get(&Layer::Default).await?.map(|current| current.revision);
        if stages.is_empty() {
            setting.set(&Layer::Default, release).await?;
        } else {
            setting.promote(&Layer::Default).await?;
        }
        println!("all see {}", release.version);
        if let Err(why) = self.all_run(release, None).await {
            if let Some(before) = before {
                setting.rollback(&Layer::Default, before).await?;
            }
            bail!("{} is rolled back: {why:#}", release.version);
        }
        println!("{} is rolled out", release.version);
        Ok(())
    }

    /// Waits until all agents of a group, or all there are, run a release and are well with it.
    async fn all_run(&self, release: &Release, group: Option<&str>) -> Result<()> {
        let wait = async {
            loop {
                let mut changes = self.agents.changes()?;
                let mut waiting = Vec::new();
                for (name, report) in self.reports()? {
                    let concerned =
                        group.is_none_or(|group| report.groups.iter().any(|of| of == group));
                    if !concerned {
                        continue;
                    }
                    if report.runs.as_ref() != Some(release) {
                        waiting.push(name);
                    } else if let Some(trouble) = report.trouble {
                        bail!("{name} is not well with it: {trouble}");
                    }
                }
                if waiting.is_empty() {
                    return Ok(());
                }
                changes.next().await.transpose()?;
            }
        };
        timeout(STAGE, wait).await.context("not everybody runs it in time")?
    }

    fn reports(&self) -> Result<BTreeMap<String, Report>> {
        let read = |(name, data): (String, bytes::Bytes)| {
            let report = serde_json::from_slice(&data);
            let report = report.with_context(|| format!("{name} reports nonsense"))?;
            Ok((name, report))
        };
        self.agents.all()?.into_iter().map(read).collect()
    }

    /// Sets what was set before the release that all have.
    async fn roll_back(&self) -> Result<()> {
        let mut turn = Mutex::new(&self.client, "/fleet/rollout")?;
        let turn = turn.lock().await?;
        let history = self.release.history(&Layer::Default).await?;
        let history = history.into_iter().collect::<Result<Vec<_>, _>>()?;
        let to = before(history.iter().map(|change| (change.revision, &change.change)));
        let to = to.context("there was no release before")?;
        let revision = self.release.rollback(&Layer::Default, to).await?;
        println!("as it was at revision {to}: now revision {revision}");
        turn.release().await?;
        let now = self.release.get(&Layer::Default).await?.and_then(|now| now.value);
        self.all_run(&now.context("the release before was none")?, None).await
    }

    /// Waits until so many agents are there.
    async fn wait_for(&self, count: usize) -> Result<()> {
        loop {
            let mut changes = self.agents.changes()?;
            if self.agents.names()?.len() >= count {
                return Ok(());
            }
            changes.next().await.transpose()?;
        }
    }

    async fn print(&self) -> Result<()> {
        self.agents.sync().await?;
        for (name, report) in self.reports()? {
            let runs = report.runs.map_or_else(|| "nothing".into(), |release| release.version);
            let trouble = report.trouble.unwrap_or_else(|| "well".into());
            println!("{name} {} runs {runs}: {trouble}", report.groups.join(","));
        }
        if let Some(staged) = self.release.staged(&Layer::Default).await? {
            println!("staged for {}", staged.groups.join(", "));
        }
        Ok(())
    }
}

/// The revision before the one that holds, the latest first: one that was rolled back to holds as
/// the one it was.
fn before<'a>(history: impl Iterator<Item = (Revision, &'a Change)>) -> Option<Revision> {
    let history: Vec<_> = history.collect();
    let mut holds = history.first()?.0;
    while let Some((_, Change::Rollback { to })) =
        history.iter().find(|(revision, _)| *revision == holds)
    {
        holds = Revision(*to);
    }
    history.iter().map(|(revision, _)| *revision).find(|revision| *revision < holds)
}
