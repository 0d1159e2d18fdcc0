//! How long writes pause when the leader dies, freezes, or is asked to stop.

use std::time::Duration;

use anyhow::ensure;
use rustix::process::Signal;
use tokio::sync::oneshot::{self, error::TryRecvError};
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
type Writer = (oneshot::Sender<()>, tokio::task::JoinHandle<anyhow::Result<Vec<Instant>>>);

async fn open_writers(load: &Load, servers: &str) -> anyhow::Result<Vec<Writer>> {
    let mut writers = Vec::new();
    for n in 0..load.clients {
        let client = native::connect(load, servers).await?;
        let value = load.value.clone();
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            while matches!(stopped.try_recv(), Err(TryRecvError::Empty)) {
                client.set(node_path(n), value.clone()).await?;
                acknowledged.push(Instant::now());
            }
            client.close().await?;
            Ok(acknowledged)
        });
        writers.push((stop, task));
    }
    Ok(writers)
}

async fn longest_gap(writers: Vec<Writer>) -> anyhow::Result<Duration> {
    let mut moments = Vec::new();
    for (stop, task) in writers {
        drop(stop);
        moments.extend(task.await??);
    }
    moments.sort_unstable();
    let gap = moments.windows(2).map(|pair| pair[1] - pair[0]).max();
    ensure!(gap.is_some(), "no write was acknowledged");
    Ok(gap.unwrap_or_default())
}
