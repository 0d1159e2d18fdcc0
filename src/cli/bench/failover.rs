//! How long writes pause when the leader dies, freezes, or is asked to stop.

use std::time::Duration;

use anyhow::ensure;
use rustix::process::Signal;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::report::{Row, Tally};
use super::work::{Kind, node_path};
use super::{Load, native};
use crate::cli::ensemble::Ensemble;

/// How long writes go on before and after a kill.
const CALM: Duration = Duration::from_secs(2);

/// Does away with the leader again and again while every client writes; a recorded latency is the
/// longest time without an acknowledged write of any client around that.
#[expect(clippy::wildcard_enum_match_arm, reason = "the others do not come here")]
pub(super) async fn measure(load: &Load, ensemble: &mut Ensemble) -> anyhow::Result<Row> {
    native::prepare(load).await?;
    let all = load.servers.join(",");
    let started = Instant::now();
    let mut tally = Tally::new();
    while started.elapsed() < load.time || tally.operations() == 0 {
        let writers = open_writers(load, &all).await?;
        sleep(CALM).await;
        let leader = ensemble.layout().leader().await?;
        match load.kind {
            Kind::Freeze => ensemble.signal(leader, Signal::STOP)?,
            Kind::HandOver => ensemble.end(leader).await?,
            _ => ensemble.kill(leader).await?,
        }
        sleep(CALM).await;
        tally.record(longest_gap(writers).await?, true);
        match load.kind {
            Kind::Freeze => ensemble.signal(leader, Signal::CONT)?,
            _ => ensemble.restart(leader)?,
        }
        ensemble.wait_until_serving().await?;
    }
    let row = Row::new(load, &tally, started.elapsed());
    native::clean_up(load).await?;
    Ok(row)
}

/// A task that writes until it is told to stop, and gives the moments of its acknowledgements.
struct Writer {
    stop: oneshot::Sender<()>,
    latest: watch::Receiver<Instant>,
    task: JoinHandle<anyhow::Result<Vec<Instant>>>,
}

async fn open_writers(load: &Load, servers: &str) -> anyhow::Result<Vec<Writer>> {
    let mut writers = Vec::new();
    for n in 0..load.clients {
        let client = native::connect(load, servers).await?;
        let value = load.value.clone();
        let (stop, mut stopped) = oneshot::channel();
        let (tell, latest) = watch::channel(Instant::now());
        let task = tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            while matches!(stopped.try_recv(), Err(TryRecvError::Empty)) {
                client.set(node_path(n), value.clone()).await?;
                let now = Instant::now();
                acknowledged.push(now);
                tell.send_replace(now);
            }
            client.close().await?;
            Ok(acknowledged)
        });
        writers.push(Writer { stop, latest, task });
    }
    Ok(writers)
}

/// All write until each of them is acknowledged something again: else the others would be done before
/// one that waits, and that would look like a pause of all.
async fn longest_gap(mut writers: Vec<Writer>) -> anyhow::Result<Duration> {
    let now = Instant::now();
    for writer in &mut writers {
        // If it has failed, its task says how.
        writer.latest.wait_for(|&latest| latest > now).await.ok();
    }
    let (stops, tasks): (Vec<_>, Vec<_>) =
        writers.into_iter().map(|writer| (writer.stop, writer.task)).unzip();
    drop(stops);
    let mut moments = Vec::new();
    for task in tasks {
        moments.extend(task.await??);
    }
    moments.sort_unstable();
    let gap = moments.windows(2).map(|pair| pair[1] - pair[0]).max();
    ensure!(gap.is_some(), "no write was acknowledged");
    Ok(gap.unwrap_or_default())
}
