//! How fast a lock changes hands, and how long nobody leads when a leader ends.

use std::ops::Range;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use conclave_client::Client;
use conclave_client::recipes::{Election, Leadership, Mutex};
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::report::Tally;
use super::work::{ROOT, node_path};
use super::{Load, Row, join_all, native, observe};

/// The session timeout of leaders.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often a leader ends in one measurement, at most.
const ENDS: usize = 50;
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Every client takes the lock and releases it at once, again and again, until the time is over: an
/// operation is a hand-over within that time, and its latency the time from asking for the lock to
/// having it.
pub(super) async fn hand_over(
    clients: &[Client],
    path: &str,
    time: Range<Instant>,
) -> anyhow::Result<Tally> {
    let contenders =
        clients.iter().map(|client| contend(client.clone(), path.to_owned(), time.clone()));
    join_all(contenders.map(tokio::spawn).collect()).await
}

async fn contend(client: Client, path: String, time: Range<Instant>) -> anyhow::Result<Tally> {
    let mut tally = Tally::new();
    let mut mutex = Mutex::new(&client, path)?;
    loop {
        let asked = Instant::now();
        if asked >= time.end {
            return Ok(tally);
        }
        let hold = mutex.lock().await?;
        if time.contains(&Instant::now()) {
            tally.record(asked.elapsed(), true);
        }
        hold.release().await?;
    }
}

/// Ends a leader's process again and again; an operation is one end, and its latency the time from
/// the signal to the answer of the next leader's first write.
pub(super) async fn succession(load: &Load, pids: &[u32], kills: bool) -> anyhow::Result<Row> {
    native::prepare(load).await?;
    let run = async {
        let mut tally = Tally::new();
        let until = Instant::now() + load.time;
        let mut ends = 0;
        while ends == 0 || (Instant::now() < until && ends < ENDS) {
            tally.record(one_succession(load, kills).await?, true);
            ends += 1;
        }
        Ok(tally)
    };
    let (row, _) = observe(load, pids, run).await?;
    native::clean_up(load).await?;
    Ok(row)
}

async fn one_succession(load: &Load, kills: bool) -> anyhow::Result<Duration> {
    let servers = load.servers.join(",");
    let observer = native::connect(load, &servers).await?;
    let election = Election::new(&observer, election_path())?;
    let mut leader = first_leader(&servers)?;
    while election.leader().await?.is_none() {
        let ended = leader.try_wait()?;
        ensure!(ended.is_none(), "the first leader's process ended: {ended:?}");
        sleep(POLL).await;
    }
    let mut standby = Box::pin(lead(&servers, "second"));
    // A node for each candidate, and that of the leader.
    while observer.children(election_path()).await?.len() < 3 {
        tokio::select! {
            _ = &mut standby => bail!("two lead"),
            () = sleep(POLL) => {}
        }
    }
    let began = Instant::now();
    let pid = leader.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let signal = if kills { Signal::KILL } else { Signal::TERM };
    rustix::process::kill_process(pid.context("the first leader runs")?, signal)?;
    let leadership = standby.await?;
    let multi = observer.multi().set(node_path(0), "second", None);
    leadership.guard(multi).await?;
    let taken = began.elapsed();
    leader.wait().await?;
    leadership.resign().await?;
    observer.close().await?;
    Ok(taken)
}

/// A process that leads: this program, as `conclave elect`.
fn first_leader(servers: &str) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("finding this program")?;
    Command::new(program)
        .args(["elect", &election_path(), "--servers", servers])
        .args(["--session-timeout", &TIMEOUT.as_secs().to_string(), "--", "sleep", "3600"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("starting the first leader")
}

async fn lead(servers: &str, name: &str) -> anyhow::Result<Leadership> {
    let builder = Client::builder().servers(servers).session_timeout(TIMEOUT);
    let client = builder.connect().await?;
    Ok(Election::new(&client, election_path())?.campaign(name.to_owned()).await?)
}

fn election_path() -> String {
    format!("{ROOT}/election")
}
