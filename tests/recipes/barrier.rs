//! What barriers promise.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use conclave_client::recipes::{Barrier, DoubleBarrier, Error, Loss};

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

#[tokio::test]
async fn who_waits_does_not_enter_with_those_who_come_to_the_next_directory() {
    let cluster = Cluster::start(1).await;
    let (client, other) = (cluster.client().await, cluster.client().await);
    for path in ["/barriers", "/barriers/d"] {
        client.create(path, "").await.unwrap();
    }
    let barrier = DoubleBarrier::new(&client, "/barriers/d", 2).unwrap();
    let mut waiting = Box::pin(barrier.enter());
    // It has come, and has asked whether a round goes on.
    assert!(step(&client, waiting.as_mut()).await);
    assert!(step(&client, waiting.as_mut()).await);
    assert_eq!(client.children("/barriers/d").await.unwrap().len(), 1);
    other.delete_recursive("/barriers/d").await.unwrap();
    let next = DoubleBarrier::new(&other, "/barriers/d", 2).unwrap();
    // One of them has the name that the first one had.
    let (one, another) = soon(async { tokio::join!(next.enter(), next.enter()) }).await;
    let (_one, _another) = (one.unwrap(), another.unwrap());
    let outcome = soon(waiting).await.map(drop);
    assert!(matches!(outcome, Err(Error::Lost { loss: Loss::Deleted, .. })), "{outcome:?}");
}

#[tokio::test]
async fn who_leaves_waits_for_nobody_who_has_the_name_of_one_who_was_inside() {
    let cluster = Cluster::start(1).await;
    let (client, other) = (cluster.client().await, cluster.client().await);
    let barrier = DoubleBarrier::new(&client, "/barriers/d", 2).unwrap();
    let mut first = Box::pin(barrier.enter());
    while client.children("/barriers/d").await.unwrap_or_default().is_empty() {
        assert!(step(&client, first.as_mut()).await);
    }
    let (oldest, late) = soon(async { tokio::join!(first, barrier.enter()) }).await;
    let (oldest, mut leaving) = (oldest.unwrap(), Box::pin(late.unwrap().leave()));
    let name = client.children("/barriers/d").await.unwrap().remove(0);
    // It has left, and has seen that the oldest one has not.
    while client.children("/barriers/d").await.unwrap().len() > 2 {
        assert!(step(&client, leaving.as_mut()).await);
    }
    assert!(step(&client, leaving.as_mut()).await);
    soon(oldest.leave()).await.unwrap();
    other.delete("/barriers/d").await.unwrap();
    let next = DoubleBarrier::new(&other, "/barriers/d", 1).unwrap();
    let _inside = soon(next.enter()).await.unwrap();
    assert_eq!(client.children("/barriers/d").await.unwrap()[0], name);
    soon(leaving).await.unwrap();
}
