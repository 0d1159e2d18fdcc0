//! How fast a lock changes hands, and how long nobody leads when a leader ends.

use std::time::Duration;

use anyhow::Context;
use conclave_client::Client;
use conclave_client::recipes::{Election, Leadership, Mutex};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::report::Tally;
use super::work::ROOT;
use super::{Load, Row, join_all, native, observe};

/// The session timeout of leaders.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often a leader resigns in one measurement.
const RESIGNATIONS: usize = 50;

/// Every client takes the lock and releases it at once, again and again: an operation is a hand-over,
/// and its latency the time from asking for the lock to having it.
pub(super) async fn hand_over(clients: &[Client], until: Instant) -> anyhow::Result<Tally> {
    let contenders = clients.iter().map(|client| contend(client.clone(), until));
    join_all(contenders.map(tokio::spawn).collect()).await
}

async fn contend(client: Client, until: Instant) -> anyhow::Result<Tally> {
    let mut tally = Tally::new();
    let mut mutex = Mutex::new(&client, format!("{ROOT}/lock"))?;
    while Instant::now() < until {
        let asked = Instant::now();
        let hold = mutex.lock().await?;
        tally.record(asked.elapsed(), true);
        hold.release().await?;
    }
    Ok(tally)
}

/// Ends a leader again and again; an operation is one end, and its latency the time to the first
/// write of the next leader.
pub(super) async fn succession(load: &Load, pids: &[u32], kills: bool) -> anyhow::Result<Row> {
    native::prepare(load).await?;
    let run = async {
        let mut tally = Tally::new();
        let until = Instant::now() + load.time;
        let mut ends = 0;
        while ends == 0 || (Instant::now() < until && ends < RESIGNATIONS) {
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
    let (told, leads) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let leader = servers.clone();
    let first = std::thread::spawn(move || first_leader(&leader, told, ended));
    leads.await.context("the first leader")?;
    let mut standby = Box::pin(lead(&servers, "second"));
    // The standby is in the queue when it has to wait there.
    let candidates = native::connect(load, &servers).await?;
    while candidates.children(election_path()).await?.len() < 3 {
        tokio::select! {
            _ = &mut standby => anyhow::bail!("two lead"),
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
    }
    let began = Instant::now();
    end.send(if kills { End::Kill } else { End::Resign }).ok().context("the first leader leads")?;
    let leadership = standby.await?;
    let multi = candidates.multi().set(format!("{ROOT}/nodes"), "second", None);
    leadership.guard(multi).await?;
    let taken = began.elapsed();
    first.join().ok().context("the first leader's thread")??;
    leadership.resign().await?;
    candidates.close().await?;
    Ok(taken)
}

/// How a leader ends.
#[derive(Debug)]
enum End {
    Kill,
    Resign,
}

fn first_leader(
    servers: &str,
    told: oneshot::Sender<()>,
    ended: oneshot::Receiver<End>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (leadership, end) = runtime.block_on(async {
        let leadership = lead(servers, "first").await?;
        told.send(()).ok().context("the measurement has ended")?;
        anyhow::Ok((leadership, ended.await?))
    })?;
    match end {
        // A runtime that ends closes its connections and says nothing on them, as the death of a
        // process does.
        End::Kill => drop(runtime),
        End::Resign => runtime.block_on(leadership.resign())?,
    }
    Ok(())
}

async fn lead(servers: &str, name: &str) -> anyhow::Result<Leadership> {
    let builder = Client::builder().servers(servers).session_timeout(TIMEOUT);
    let client = builder.connect().await?;
    Ok(Election::new(&client, election_path())?.campaign(name.to_owned()).await?)
}

fn election_path() -> String {
    format!("{ROOT}/election")
}
