//! How fast a large queue is filled and emptied.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::ensure;
use conclave_client::Client;
use conclave_client::recipes::queue::Queue;
use tokio::time::{Instant, timeout};

use super::report::{Row, Tally};
use super::work::ROOT;
use super::{Load, join_all, native, observe};

/// How many pushes are on their way at once.
const PUSHES: usize = 4096;
/// How long a consumer waits for an item before it looks whether all are done.
const PATIENCE: Duration = Duration::from_secs(1);

/// Pushes as many items as are asked for from one client; then all clients take items until they
/// have done as many, and nothing may be left.
pub(super) async fn measure(load: &Load, pids: &[u32]) -> anyhow::Result<Vec<Row>> {
    native::prepare(load).await?;
    let clients = native::open(load, 0..load.clients).await?;
    let queue = |client| Queue::sharded(client, format!("{ROOT}/queue"), load.shards);
    let full = queue(&clients[0])?;
    full.make().await?;
    let (mut pushed, _) = observe(load, pids, push(load, &clients[0], &full)).await?;
    pushed.kind = String::from("push");
    ensure!(full.len().await? == load.items, "{} of {} items", full.len().await?, load.items);
    let shares = clients.iter().zip(0..).map(|(client, n)| {
        let share = load.items / load.clients + u64::from(n < load.items % load.clients);
        anyhow::Ok(tokio::spawn(drain(queue(client)?, share)))
    });
    let shares = shares.collect::<anyhow::Result<_>>()?;
    let (drained, _) = observe(load, pids, join_all(shares)).await?;
    let left = full.len().await?;
    ensure!(left == 0, "{left} items are left, and every consumer has had its share");
    for client in clients {
        client.close().await?;
    }
    native::clean_up(load).await?;
    Ok(vec![pushed, drained])
}

async fn push(load: &Load, client: &Client, queue: &Queue) -> anyhow::Result<Tally> {
    let mut tally = Tally::new();
    let mut pushes = VecDeque::new();
    for _ in 0..load.items {
        client.ready().await;
        pushes.push_back((Instant::now(), queue.send(load.value.clone())?));
        if pushes.len() >= PUSHES
            && let Some((began, push)) = pushes.pop_front()
        {
            push.await?;
            tally.record(began.elapsed(), true);
        }
    }
    for (began, push) in pushes {
        push.await?;
        tally.record(began.elapsed(), true);
    }
    Ok(tally)
}

/// Takes so many items and says of each that it is done.
async fn drain(queue: Queue, share: u64) -> anyhow::Result<Tally> {
    let mut tally = Tally::new();
    let mut consumer = queue.consumer();
    for _ in 0..share {
        let began = Instant::now();
        let item = loop {
            match timeout(PATIENCE, consumer.next()).await {
                Ok(item) => break item?,
                Err(_) => ensure!(!queue.is_empty().await?, "items are lost"),
            }
        };
        item.done().await?;
        tally.record(began.elapsed(), true);
    }
    Ok(tally)
}
