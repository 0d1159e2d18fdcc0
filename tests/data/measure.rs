//! Measurements, not run unless asked for: `cargo test --release --test data -- --ignored measure`.

use std::time::Duration;

use conclave_client::recipes::cache::{Cache, CacheItem};
use conclave_client::recipes::queue::Queue;
use tokio::time::{Instant, interval};

use crate::harness::Cluster;

const NODES: u32 = 100_000;
const ITEMS: u32 = 1_000_000;

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
#[ignore = "a measurement"]
async fn measure_a_cache_of_100k_nodes() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    client.create("/t", "").await.unwrap();
    let mut created = Vec::new();
    for number in 0..NODES {
        client.ready().await;
        created.push(client.create(format!("/t/{number:06}"), "x".repeat(64)).send());
    }
    for create in created {
        create.await.unwrap();
    }
    let reader = cluster.client().await;
    let before = resident_kib();
    let start = Instant::now();
    let cache = Cache::tree(&reader, "/t").await.unwrap();
    let time = start.elapsed();
    let memory = resident_kib() - before;
    assert_eq!(cache.read(|view| view.len()).unwrap(), NODES as usize + 1);
    println!("first complete view of {NODES} nodes of 64 bytes: {time:?}, {memory} KiB more");

    // 5000 writes a second for 10 s; each value tells when it was written.
    let mut changes = cache.changes().unwrap();
    let writing = tokio::spawn(async move {
        let mut tick = interval(Duration::from_millis(1));
        for number in 0..50_000_u32 {
            if number % 5 == 0 {
                tick.tick().await;
            }
            let now = start.elapsed().as_micros().to_string();
            let node = number.wrapping_mul(7919) % NODES;
            drop(client.set(format!("/t/{node:06}"), now).send());
        }
        client.sync().await.unwrap();
    });
    let mut lags = Vec::new();
    while lags.len() < 50_000 {
        match changes.next().await.unwrap().unwrap() {
            CacheItem::Changed { after: Some(node), .. } => {
                let then: u128 = std::str::from_utf8(node.bytes()).unwrap().parse().unwrap();
                lags.push(start.elapsed().as_micros() - then);
            }
            other @ (CacheItem::Changed { .. } | CacheItem::Gap) => panic!("{other:?}"),
        }
    }
    writing.await.unwrap();
    lags.sort_unstable();
    let at = |share: usize| lags[lags.len() * share / 1000 - 1];
    println!(
        "from the write's call to the change in the cache, in µs: p50 {}, p99 {}, p99.9 {}, max {}",
        at(500),
        at(990),
        at(999),
        at(1000)
    );
}

#[tokio::test]
#[ignore = "a measurement"]
async fn measure_a_queue_of_a_million() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let queue = Queue::sharded(&client, "/q", 8).unwrap();
    queue.make().await.unwrap();
    let start = Instant::now();
    let mut pushes = std::collections::VecDeque::new();
    for number in 0..ITEMS {
        client.ready().await;
        pushes.push_back(queue.send(number.to_string()).unwrap());
        if pushes.len() > 20_000 {
            pushes.pop_front().unwrap().await.unwrap();
        }
    }
    for push in pushes {
        push.await.unwrap();
    }
    println!("pushed {ITEMS} items in {:?}", start.elapsed());
    assert_eq!(queue.len().await.unwrap(), u64::from(ITEMS));
    let share: u32 = std::env::var("CONCLAVE_ITEMS").map_or(ITEMS, |items| items.parse().unwrap());
    let start = Instant::now();
    let mut consuming = Vec::new();
    for _ in 0..64 {
        let queue = queue.clone();
        consuming.push(tokio::spawn(async move {
            let mut consumer = queue.consumer();
            let mut slowest = Duration::ZERO;
            for _ in 0..share / 64 {
                let start = Instant::now();
                consumer.next().await.unwrap().done().await.unwrap();
                slowest = slowest.max(start.elapsed());
            }
            slowest
        }));
    }
    let mut slowest = Duration::ZERO;
    for consumer in consuming {
        slowest = slowest.max(consumer.await.unwrap());
    }
    let left = queue.len().await.unwrap();
    println!("64 consumers did {share} in {:?}, slowest {slowest:?}; {left} left", start.elapsed());
    assert_eq!(left, u64::from(ITEMS - share / 64 * 64));
}
