//! Recipes in which several work together: partitions, transactions, replicas, tasks.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use conclave_client::Client;
use conclave_client::recipes::assignment::{Order, Work};
use conclave_client::recipes::members::Group;
use conclave_client::recipes::partition::{Partitioner, Turn};
use conclave_client::recipes::ring::LiveRing;
use conclave_client::recipes::two_phase::{Decision, Participant, Task, Transaction, TwoPhase};
use conclave_client::recipes::{Election, Error};
use tokio::time::timeout;

use crate::chaos::{Dice, rounds, strike};
use crate::harness::{Cluster, DEADLINE, eventually};

#[tokio::test]
async fn partitions_follow_the_members_and_are_one_members_at_a_time() {
    let cluster = Cluster::start(1).await;
    let names = || (0..12).map(|number| format!("p{number}"));
    let client = cluster.client().await;
    let empty = Partitioner::join(&client, "/parts", "a", Vec::new()).await;
    assert!(matches!(empty, Err(Error::Config(_))));
    let mut first = Partitioner::join(&client, "/parts", "a", names()).await.unwrap();
    for _ in 0..12 {
        let turn = timeout(DEADLINE, first.next()).await.unwrap().unwrap();
        assert!(matches!(turn, Turn::Begin { .. }), "{turn:?}");
    }
    let other = cluster.client().await;
    let mut second = Partitioner::join(&other, "/parts", "b", names()).await.unwrap();
    for _ in 0..6 {
        let Turn::End { partition } = timeout(DEADLINE, first.next()).await.unwrap().unwrap()
        else {
            panic!("half of them are the other's")
        };
        first.release(&partition).await.unwrap();
        let turn = timeout(DEADLINE, second.next()).await.unwrap().unwrap();
        assert!(matches!(turn, Turn::Begin { partition: begun, .. } if begun == partition));
    }
    let all: BTreeSet<_> = first.held().into_iter().chain(second.held()).collect();
    assert_eq!((all.len(), second.held().len()), (12, 6));
    let mine = first.held()[0].to_owned();
    first.guard(&mine, client.multi().create("/guarded", "")).await.unwrap();
    client.delete(format!("/parts/owners/{mine}")).await.unwrap();
    let lost = timeout(DEADLINE, first.next()).await.unwrap().unwrap();
    assert_eq!(lost, Turn::Lost { partition: mine.clone() });
    let again = timeout(DEADLINE, first.next()).await.unwrap().unwrap();
    assert!(matches!(again, Turn::Begin { partition, .. } if partition == mine));
    assert!(matches!(first.release("none").await, Err(Error::Lost { .. })));
    // The other one is gone with its session.
    other.close().await.unwrap();
    assert!(second.next().await.unwrap_err().is_final());
    while first.held().len() < 12 {
        timeout(DEADLINE, first.next()).await.unwrap().unwrap();
    }
}

/// Drives the future, a step at a time, until it has made the node; then drops it, which was not
/// told of that yet.
pub(crate) async fn give_up_once_made(client: &Client, path: &str, future: impl Future) {
    let mut future = Box::pin(future);
    while client.exists(path).await.unwrap().is_none() {
        let pending = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await;
        assert!(pending, "it is not there yet");
        // What the step has asked is done before this is.
        client.sync().await.unwrap();
    }
}

#[tokio::test]
async fn a_partition_that_was_taken_while_nobody_listened_is_told_of_later() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let path = "/parts/owners/p";
    let mut share = Partitioner::join(&client, "/parts", "a", ["p".into()]).await.unwrap();
    give_up_once_made(&client, path, share.next()).await;
    let turn = timeout(DEADLINE, share.next()).await.unwrap().unwrap();
    assert!(matches!(&turn, Turn::Begin { partition, .. } if partition == "p"), "{turn:?}");
    share.release("p").await.unwrap();
    give_up_once_made(&client, path, share.next()).await;
    drop(share);
    eventually("nobody has it", async || {
        client.exists(path).await.unwrap().is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn who_gives_up_joining_a_group_is_no_member() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let group = Group::new(&client, "/group").unwrap();
    give_up_once_made(&client, "/group/a", group.join("a", "")).await;
    eventually("nobody is a member", async || {
        client.exists("/group/a").await.unwrap().is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_worker_of_the_same_name_has_later_tokens() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let work = Work::new(&client, "/work").unwrap();
    work.submit("t", "").await.unwrap();
    let election = Election::new(&client, "/work-election").unwrap();
    let (assigner, leadership) = (work.clone(), election.campaign("").await.unwrap());
    let assigning = tokio::spawn(async move { assigner.assign(&leadership).await });
    let paused = cluster.client().await;
    let mut worker = Work::new(&paused, "/work").unwrap().worker("w").await.unwrap();
    let Order::Begin(task) = timeout(DEADLINE, worker.next()).await.unwrap().unwrap() else {
        panic!("nothing was begun that could end")
    };
    // Nobody notices that it is gone for a while: a process of the same name takes its place.
    assigning.abort();
    drop(assigning.await);
    paused.close().await.unwrap();
    let mut next = work.worker("w").await.unwrap();
    let Order::Begin(again) = timeout(DEADLINE, next.next()).await.unwrap().unwrap() else {
        panic!("nothing was begun that could end")
    };
    assert_eq!(again.id, task.id);
    assert!(again.token > task.token, "a fence could not tell them apart");
    next.done(&again).await.unwrap();
}

#[tokio::test]
async fn a_live_ring_tells_what_moves() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let group = Group::new(&client, "/ring").unwrap();
    let _a = group.join("a", "").await.unwrap();
    let mut ring = LiveRing::new(group.members().await.unwrap()).unwrap();
    assert_eq!(ring.ring().owner("key"), Some("a"));
    let b = group.join("b", "").await.unwrap();
    let moves = timeout(DEADLINE, ring.changed()).await.unwrap().unwrap();
    assert!(moves.iter().all(|moved| moved.to.as_deref() == Some("b")) && !moves.is_empty());
    b.leave().await.unwrap();
    let back = timeout(DEADLINE, ring.changed()).await.unwrap().unwrap();
    assert_eq!(back.len(), moves.len());
}

/// Votes for everything and remembers what was decided.
async fn take_part(
    mut participant: Participant,
    decided: Arc<Mutex<Vec<(String, Decision)>>>,
) -> Result<(), Error> {
    loop {
        match participant.next().await? {
            Task::Prepare(transaction) => {
                let is_for = !transaction.payload.starts_with(b"refuse");
                participant.vote(&transaction, is_for).await?;
            }
            Task::Commit(transaction) => {
                decided.lock().unwrap().push((transaction.id.clone(), Decision::Commit));
                participant.done(&transaction).await?;
            }
            Task::Abort(transaction) => {
                decided.lock().unwrap().push((transaction.id.clone(), Decision::Abort));
                participant.done(&transaction).await?;
            }
        }
    }
}

#[tokio::test]
async fn a_transaction_has_one_decision_wherever_its_coordinator_dies() {
    let mut cluster = Cluster::start(3).await;
    let mut dice = Dice::new();
    let names = ["a", "b", "c"];
    let admin = cluster.client().await;
    let transactions = TwoPhase::new(&admin, "/tx").unwrap();
    let twice = transactions.begin("t", &["a", "a"], "").await;
    assert!(matches!(twice, Err(Error::Config(_))));
    let slash = transactions.begin("t", &["a/b"], "").await;
    assert!(matches!(slash, Err(Error::Name { .. })));
    assert!(matches!(transactions.decide("none").await, Err(Error::Gone { .. })));
    let decided: Vec<_> = names.map(|_| Arc::new(Mutex::new(Vec::new()))).into();
    let mut parts = Vec::new();
    for (name, decided) in names.iter().zip(&decided) {
        let transactions = TwoPhase::new(&cluster.client().await, "/tx").unwrap();
        let participant = transactions.participant(name).await.unwrap();
        parts.push(tokio::spawn(take_part(participant, Arc::clone(decided))));
    }
    let mut ids = Vec::new();
    for round in 0..4 * rounds() {
        let client = cluster.client().await;
        let doomed = TwoPhase::new(&client, "/tx").unwrap();
        let id = format!("t{round}");
        let payload = if dice.below(4) == 0 { "refuse" } else { "go" };
        match round % 4 {
            // Dead right after it has begun; after the votes; with the decision; not at all.
            0 => doomed.begin(&id, &names, payload).await.unwrap(),
            1 => {
                doomed.begin(&id, &names, payload).await.unwrap();
                eventually("all have voted", async || {
                    let nodes = admin.children(format!("/tx/{id}")).linearizable().await.unwrap();
                    let votes = nodes.iter().filter(|name| name.starts_with("vote.")).count();
                    (votes == 3).then_some(())
                })
                .await;
            }
            2 => {
                let run = doomed.run(&id, &names, payload, DEADLINE);
                drop(timeout(Duration::from_millis(dice.below(50)), run).await);
            }
            _ => {
                strike(&mut cluster, &mut dice).await;
                doomed.run(&id, &names, payload, DEADLINE).await.unwrap();
            }
        }
        client.close().await.unwrap();
        ids.push(id);
    }
    for id in &ids {
        eventually("all are done", async || match transactions.forget(id).await {
            Ok(done) => done.then_some(()),
            Err(Error::Gone { .. }) => Some(()),
            Err(error) => panic!("{error}"),
        })
        .await;
    }
    for part in &parts {
        part.abort();
    }
    let told = |of: &Arc<Mutex<Vec<(String, Decision)>>>| -> BTreeSet<(String, String)> {
        let told = of.lock().unwrap();
        told.iter().map(|(id, decision)| (id.clone(), format!("{decision:?}"))).collect()
    };
    // One decision for each, the same for all.
    assert!(decided.iter().all(|of| told(of) == told(&decided[0])));
    let of: BTreeSet<_> = told(&decided[0]).into_iter().map(|(id, _)| id).collect();
    assert!(of.len() == told(&decided[0]).len() && of.len() >= ids.len() - ids.len() / 4);
}

pub(crate) async fn prepared(participant: &mut Participant) -> Transaction {
    let task = timeout(DEADLINE, participant.next()).await.unwrap().unwrap();
    let Task::Prepare(transaction) = task else { panic!("it is not decided yet: {task:?}") };
    transaction
}

#[tokio::test]
async fn what_is_said_of_a_transaction_does_not_count_for_another_one_of_its_id() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let transactions = TwoPhase::new(&client, "/tx").unwrap();
    let mut participant = transactions.participant("a").await.unwrap();
    transactions.begin("t", &["a"], "old").await.unwrap();
    let old = prepared(&mut participant).await;
    // Its coordinator is paused before it decides; somebody else does, and all is done.
    let waker = cluster.client().await;
    let paused = TwoPhase::new(&waker, "/tx").unwrap();
    let mut late = Box::pin(paused.run("t", &["a"], "old", DEADLINE));
    for _ in 0..10 {
        let goes_on = poll_fn(|cx| Poll::Ready(late.as_mut().poll(cx).is_pending())).await;
        assert!(goes_on, "there is no vote");
        waker.sync().await.unwrap();
    }
    assert_eq!(transactions.decide("t").await.unwrap(), Decision::Abort);
    let task = timeout(DEADLINE, participant.next()).await.unwrap().unwrap();
    assert_eq!(task, Task::Abort(old.clone()));
    participant.done(&old).await.unwrap();
    assert!(transactions.forget("t").await.unwrap());
    transactions.begin("t", &["a"], "new").await.unwrap();
    let new = prepared(&mut participant).await;
    // What comes too late.
    let vote = participant.vote(&old, true).await;
    assert!(matches!(vote, Err(Error::Gone { .. })), "{vote:?}");
    participant.done(&old).await.unwrap();
    assert_eq!(client.children("/tx/t").await.unwrap(), ["coordinator"]);
    let decision = timeout(DEADLINE, late).await.unwrap();
    assert!(matches!(decision, Err(Error::Gone { .. })), "{decision:?}");
    assert_eq!(transactions.decision("t").await.unwrap(), None);
    // The new one goes on.
    participant.vote(&new, true).await.unwrap();
    assert_eq!(transactions.decide("t").await.unwrap(), Decision::Commit);
    let task = timeout(DEADLINE, participant.next()).await.unwrap().unwrap();
    assert_eq!(task, Task::Commit(new));
}

#[tokio::test]
async fn tasks_are_done_though_workers_and_assigners_go() {
    let cluster = Cluster::start(1).await;
    let admin = cluster.client().await;
    let work = Work::new(&admin, "/work").unwrap();
    assert!(matches!(work.submit("a/b", "").await, Err(Error::Name { .. })));
    for number in 0..30 {
        assert!(work.submit(&format!("t{number}"), "data").await.unwrap());
    }
    assert!(!work.submit("t0", "again").await.unwrap());
    let election = Election::new(&admin, "/work-election").unwrap();
    let leadership = election.campaign("").await.unwrap();
    let assigner = work.clone();
    let assigning = tokio::spawn(async move { assigner.assign(&leadership).await });
    // The first worker takes its share and vanishes.
    let doomed = cluster.client().await;
    let mut first = Work::new(&doomed, "/work").unwrap().worker("first").await.unwrap();
    let Order::Begin(_) = timeout(DEADLINE, first.next()).await.unwrap().unwrap() else {
        panic!("there are tasks")
    };
    let client = cluster.client().await;
    let mut second = Work::new(&client, "/work").unwrap().worker("second").await.unwrap();
    doomed.close().await.unwrap();
    assert!(first.next().await.unwrap_err().is_final());
    let mut done = 0;
    while !work.open().await.unwrap().is_empty() {
        match timeout(DEADLINE, second.next()).await.expect("an order").unwrap() {
            Order::Begin(task) => {
                second.done(&task).await.unwrap();
                done += 1;
            }
            Order::Stop(_) => {}
        }
    }
    assert_eq!(done, 30);
    assert!(!work.cancel("t1").await.unwrap());
    assigning.abort();
}
