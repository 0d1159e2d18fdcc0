//! How soon a cache of many nodes is complete, and how far it is behind the writes.

use std::time::Duration;

use anyhow::{Context, ensure};
use conclave_client::Client;
use conclave_client::recipes::cache::{Cache, CacheChanges, CacheItem};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::report::{Row, Tally};
use super::work::ROOT;
use super::{Load, native, observe};

/// How many creations are on their way at once.
const CREATIONS: usize = 4096;
/// How many writes a second the cache follows.
const WRITES: u64 = 5000;
/// How often writes are sent: so many at once.
const TICK: Duration = Duration::from_millis(1);
const BATCH: u64 = 5;

/// Creates as many nodes as are asked for; measures how long a cache of them takes to be complete;
/// then writes to them, and measures the time from each write's call to its change in the cache.
pub(super) async fn measure(load: &Load, pids: &[u32]) -> anyhow::Result<Vec<Row>> {
    native::prepare(load).await?;
    let writer = native::connect(load, load.server_of(0)).await?;
    let reader = native::connect(load, load.server_of(1)).await?;
    writer.create(root(), "").await?;
    let (mut filled, _) = observe(load, pids, fill(load, &writer)).await?;
    filled.kind = String::from("fill");
    reader.sync().await?;
    let mut cache = None;
    let complete = async {
        let began = Instant::now();
        cache = Some(Cache::tree(&reader, root()).await?);
        let mut tally = Tally::new();
        tally.record(began.elapsed(), true);
        Ok(tally)
    };
    let (mut viewed, _) = observe(load, pids, complete).await?;
    viewed.kind = String::from("view");
    let cache = cache.context("it is complete")?;
    let nodes = cache.read(|view| view.len() as u64)?;
    ensure!(nodes == load.items + 1, "the cache has {nodes} of {} nodes", load.items + 1);
    let total = WRITES * load.time.as_secs();
    let began = Instant::now();
    let follow = async {
        let writing = write(load, &writer, began, total);
        let (tally, written) = tokio::join!(follow(cache.changes()?, began, total), writing);
        written?;
        tally
    };
    let (followed, _) = observe(load, pids, follow).await?;
    for client in [reader, writer] {
        client.close().await?;
    }
    native::clean_up(load).await?;
    Ok(vec![filled, viewed, followed])
}

fn root() -> String {
    format!("{ROOT}/tree")
}

fn path(number: u64) -> String {
    format!("{}/{number:08}", root())
}

async fn fill(load: &Load, client: &Client) -> anyhow::Result<Tally> {
    let mut tally = Tally::new();
    for first in (0..load.items).step_by(CREATIONS) {
        let some = first..load.items.min(first + CREATIONS as u64);
        let began = Instant::now();
        let create = |number| client.create(path(number), load.value.clone()).send();
        for created in some.map(create).collect::<Vec<_>>() {
            created.await?;
            tally.record(began.elapsed(), true);
        }
    }
    Ok(tally)
}

/// Writes at a steady rate; each value tells when it was written.
async fn write(load: &Load, client: &Client, began: Instant, total: u64) -> anyhow::Result<()> {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0..total {
        if number % BATCH == 0 {
            tick.tick().await;
        }
        // A large odd stride visits every node before it comes back to one.
        let node = path(number * 7919 % load.items);
        drop(client.set(node, began.elapsed().as_micros().to_string()).send());
    }
    client.sync().await?;
    Ok(())
}

async fn follow(mut changes: CacheChanges, began: Instant, total: u64) -> anyhow::Result<Tally> {
    let mut tally = Tally::new();
    for _ in 0..total {
        match changes.next().await.context("the cache has ended")?? {
            CacheItem::Changed { after: Some(node), .. } => {
                let then = Duration::from_micros(std::str::from_utf8(node.bytes())?.parse()?);
                tally.record(began.elapsed().saturating_sub(then), true);
            }
            CacheItem::Changed { path, after: None, .. } => anyhow::bail!("{path} was deleted"),
            CacheItem::Gap => anyhow::bail!("the cache was too far behind"),
        }
    }
    Ok(tally)
}
