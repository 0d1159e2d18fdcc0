//! What an election promises.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use conclave_client::recipes::{Election, Loss};

use crate::harness::{Cluster, eventually};
use crate::{short_lived, soon, step, waits};

const ELECTION: &str = "/services/a/election";

#[tokio::test]
async fn one_leads_and_the_next_one_follows() {
    let cluster = Cluster::start(1).await;
    let (client, other) = (cluster.client().await, cluster.client().await);
    let election = Election::new(&client, ELECTION).unwrap();
    let elsewhere = Election::new(&other, ELECTION).unwrap();
    let mut observer = elsewhere.observe().await.unwrap();
    assert_eq!(soon(observer.next()).await.unwrap(), None);
    let first = soon(election.campaign("one")).await.unwrap();
    let seen = soon(observer.next()).await.unwrap().unwrap();
    assert_eq!((seen.token, seen.session), (first.token(), client.session()));
    assert_eq!(seen.value, "one");
    let mut second = pin!(elsewhere.campaign("two"));
    assert!(waits(&other, &mut second).await);
    first.proclaim("one, really").await.unwrap();
    assert_eq!(soon(observer.next()).await.unwrap().unwrap().value, "one, really");
    let token = first.token();
    first.resign().await.unwrap();
    let second = soon(second).await.unwrap();
    assert!(second.token() > token);
    assert_eq!(election.leader().await.unwrap().unwrap().token, second.token());
    drop(second);
    while soon(observer.next()).await.unwrap().is_some() {}
}

#[tokio::test]
async fn the_end_of_a_session_is_the_end_of_its_leadership() {
    let cluster = Cluster::start(1).await;
    let (client, other) = (short_lived(&cluster.addresses()).await, cluster.client().await);
    let election = Election::new(&client, ELECTION).unwrap();
    let first = soon(election.campaign("one")).await.unwrap();
    let elsewhere = Election::new(&other, ELECTION).unwrap();
    let mut latch = elsewhere.latch("two");
    assert!(waits(&other, &mut pin!(latch.changed())).await);
    assert!(latch.leadership().is_none());
    client.close().await.unwrap();
    assert!(matches!(soon(first.lost()).await, Loss::Closed | Loss::Deleted));
    assert!(!first.is_held());
    let second = soon(latch.changed()).await.unwrap().unwrap();
    assert!(second.token() > first.token());
    assert!(latch.leadership().is_some());
    drop(latch);
}

#[tokio::test]
async fn a_random_successor_is_one_of_the_candidates() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let election = Election::new(&client, ELECTION).unwrap().random();
    let mut running = tokio::task::JoinSet::new();
    for number in 0..10 {
        let election = election.clone();
        running.spawn(async move {
            let leadership = election.campaign(number.to_string()).await.unwrap();
            let token = leadership.token();
            leadership.resign().await.unwrap();
            token
        });
    }
    let mut tokens = Vec::new();
    while let Some(token) = soon(running.join_next()).await {
        tokens.push(token.unwrap());
    }
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), 10, "everybody led, with a token of its own");
    assert_eq!(client.children(ELECTION).await.map_or(0, |names| names.len()), 0);
}

/// Others who come and come again do not keep a candidate waiting for ever.
#[tokio::test]
async fn a_random_order_passes_nobody_over_for_ever() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let election = Election::new(&client, ELECTION).unwrap().random();
    let led = Arc::new(AtomicU64::new(0));
    let mut others = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let (election, led) = (election.clone(), Arc::clone(&led));
        others.spawn(async move {
            loop {
                let leadership = election.campaign("other").await.unwrap();
                led.fetch_add(1, Ordering::Relaxed);
                leadership.resign().await.unwrap();
            }
        });
    }
    for _ in 0..20 {
        let before = led.load(Ordering::Relaxed);
        let leadership = soon(election.campaign("patient")).await.unwrap();
        let passed = led.load(Ordering::Relaxed) - before;
        // 64 who came later, those who were there before, and who comes while it takes its place.
        assert!(passed < 64 + 16, "{passed} led before it");
        leadership.resign().await.unwrap();
    }
}

#[tokio::test]
async fn a_campaign_that_is_given_up_as_it_is_won_leaves_no_leader() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let election = Election::new(&client, ELECTION).unwrap();
    let mut campaign = Box::pin(election.campaign("one"));
    // It is won, and does not know it yet, when it is dropped.
    while election.leader().await.unwrap().is_none() {
        assert!(step(&client, campaign.as_mut()).await, "it is not won yet");
    }
    drop(campaign);
    eventually("nobody leads", async || election.leader().await.unwrap().is_none().then_some(()))
        .await;
    soon(election.campaign("two")).await.unwrap().resign().await.unwrap();
}
