//! What barriers promise.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use conclave_client::recipes::{Barrier, DoubleBarrier, Error};

use crate::harness::Cluster;
use crate::{soon, step, waits};

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

#[tokio::test]
async fn nobody_enters_with_those_who_are_about_to_leave() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let barrier = DoubleBarrier::new(&client, "/barriers/d", 2).unwrap();
    let (one, other) = soon(async { tokio::join!(barrier.enter(), barrier.enter()) }).await;
    let (one, other) = (one.unwrap(), other.unwrap());
    let (mut one, mut other) = (Box::pin(one.leave()), Box::pin(other.leave()));
    // Right when their round is over, somebody comes.
    while client.exists("/barriers/d/ready").await.unwrap().is_some() {
        step(&client, one.as_mut()).await;
        step(&client, other.as_mut()).await;
    }
    assert!(waits(&client, &mut pin!(barrier.enter())).await, "it is alone");
}

#[tokio::test]
async fn nobody_enters_with_those_who_have_left() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let barrier = DoubleBarrier::new(&client, "/barriers/d", 2).unwrap();
    let [mut one, mut other, mut late] = [(); 3].map(|()| Box::pin(barrier.enter()));
    assert!(step(&client, one.as_mut()).await);
    assert!(step(&client, other.as_mut()).await);
    // The third one sees that there are enough, and is slow to say so.
    assert!(step(&client, late.as_mut()).await);
    assert!(step(&client, late.as_mut()).await);
    let (one, other) = soon(async { tokio::join!(one, other) }).await;
    let (one, other) = (one.unwrap().leave(), other.unwrap().leave());
    let (one, other) = soon(async { tokio::join!(one, other) }).await;
    one.unwrap();
    other.unwrap();
    assert!(waits(&client, &mut late).await, "it is alone");
}

#[tokio::test]
async fn who_leaves_does_not_wait_for_those_who_come_to_the_next_directory() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let barrier = DoubleBarrier::new(&client, "/barriers/d", 2).unwrap();
    let (oldest, other) = soon(async { tokio::join!(barrier.enter(), barrier.enter()) }).await;
    let mut leaving = pin!(other.unwrap().leave());
    assert!(waits(&client, &mut leaving).await);
    soon(oldest.unwrap().leave()).await.unwrap();
    // The servers do that with a directory that nobody is in; the next one begins to count again.
    client.delete("/barriers/d").await.unwrap();
    let mut next = pin!(barrier.enter());
    assert!(waits(&client, &mut next).await, "it is alone");
    soon(leaving).await.unwrap();
}
