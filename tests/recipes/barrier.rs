//! What barriers promise.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use conclave_client::recipes::{Barrier, DoubleBarrier, Error};

use crate::harness::Cluster;
use crate::{soon, waits};

#[tokio::test]
async fn who_comes_waits_until_it_is_lowered() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let barrier = Barrier::new(&client, "/barriers/a").unwrap();
    soon(barrier.wait()).await.unwrap();
    assert!(barrier.raise().await.unwrap());
    assert!(!barrier.raise().await.unwrap());
    let mut waiting = pin!(barrier.wait());
    assert!(waits(&client, &mut waiting).await);
    client.set("/barriers/a", "edited").await.unwrap();
    assert!(waits(&client, &mut waiting).await);
    assert!(barrier.lower().await.unwrap());
    soon(waiting).await.unwrap();
    assert!(!barrier.lower().await.unwrap());
}

#[tokio::test]
async fn all_enter_and_all_leave_round_after_round() {
    const MEMBERS: usize = 5;
    const ROUNDS: usize = 20;
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let inside = Arc::new(AtomicUsize::new(0));
    let mut members = tokio::task::JoinSet::new();
    for _ in 0..MEMBERS {
        let barrier = DoubleBarrier::new(&client, "/barriers/d", MEMBERS).unwrap();
        let inside = Arc::clone(&inside);
        members.spawn(async move {
            for round in 0..ROUNDS {
                inside.fetch_add(1, Ordering::SeqCst);
                let entered = barrier.enter().await.unwrap();
                assert!(inside.load(Ordering::SeqCst) >= MEMBERS * (round + 1), "all have come");
                entered.leave().await.unwrap();
            }
        });
    }
    while let Some(member) = soon(members.join_next()).await {
        member.unwrap();
    }
    assert_eq!(inside.load(Ordering::SeqCst), MEMBERS * ROUNDS);
}

#[tokio::test]
async fn one_that_dies_blocks_nobody() {
    let cluster = Cluster::start(1).await;
    let (client, other) = (cluster.client().await, cluster.client().await);
    let barrier = DoubleBarrier::new(&client, "/barriers/d", 2).unwrap();
    let elsewhere = DoubleBarrier::new(&other, "/barriers/d", 2).unwrap();
    let (mine, theirs) = soon(async { tokio::join!(barrier.enter(), elsewhere.enter()) }).await;
    let (mine, theirs) = (mine.unwrap(), theirs.unwrap());
    let mut leaving = pin!(mine.leave());
    assert!(waits(&client, &mut leaving).await);
    drop(theirs);
    soon(leaving).await.unwrap();
    assert!(matches!(DoubleBarrier::new(&client, "/barriers/d", 0), Err(Error::Config(_))));
}
