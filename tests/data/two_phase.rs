//! Two-phase commit when somebody interferes, and when a coordinator gives up.

use conclave_client::Client;
use conclave_client::recipes::Error;
use conclave_client::recipes::two_phase::{Participant, Task, Transaction, TwoPhase};
use tokio::time::timeout;

use crate::harness::{Cluster, DEADLINE};
use crate::together::{give_up_once_made, prepared};

async fn next(participant: &mut Participant) -> Result<Task, Error> {
    timeout(DEADLINE, participant.next()).await.expect("there is something to be told")
}

async fn aborted(participant: &mut Participant) -> Transaction {
    let task = next(participant).await.unwrap();
    let Task::Abort(transaction) = task else { panic!("nobody has decided to commit: {task:?}") };
    transaction
}

/// What is wrong is told, of this node.
async fn malformed(participant: &mut Participant, node: &str) {
    let error = next(participant).await.unwrap_err();
    assert!(matches!(&error, Error::Malformed { path, .. } if path.as_str() == node), "{error}");
}

/// A transaction of a coordinator that is dead already.
async fn orphan(cluster: &Cluster, id: &str) {
    let client = cluster.client().await;
    let transactions = TwoPhase::new(&client, "/tx").unwrap();
    transactions.begin(id, &["a", "b"], "").await.unwrap();
    client.close().await.unwrap();
}

#[tokio::test]
async fn a_node_that_is_no_transaction_is_told_once_and_stops_no_other() {
    let cluster = Cluster::start(1).await;
    let client: Client = cluster.client().await;
    let transactions = TwoPhase::new(&client, "/tx").unwrap();
    transactions.begin("a", &["a"], "").await.unwrap();
    client.create("/tx/note", "x").await.unwrap();
    transactions.begin("t", &["a"], "").await.unwrap();
    let mut participant = transactions.participant("a").await.unwrap();
    assert_eq!(prepared(&mut participant).await.id, "a");
    malformed(&mut participant, "/tx/note").await;
    let prepared = prepared(&mut participant).await;
    assert_eq!(prepared.id, "t");
    participant.vote(&prepared, true).await.unwrap();
    transactions.decide("t").await.unwrap();
    assert_eq!(next(&mut participant).await.unwrap(), Task::Commit(prepared));
    // Nor does it keep participants from deciding in the place of a coordinator that is gone.
    orphan(&cluster, "orphan").await;
    assert_eq!(aborted(&mut participant).await.id, "orphan");
    // What is wrong after another edit is told again.
    client.set("/tx/note", "y").await.unwrap();
    malformed(&mut participant, "/tx/note").await;
}

#[tokio::test]
async fn of_all_transactions_that_are_deleted_by_hand_each_is_told() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let transactions = TwoPhase::new(&client, "/tx").unwrap();
    let mut participant = transactions.participant("a").await.unwrap();
    let ids = ["t1", "t2", "t3"];
    for id in ids {
        transactions.begin(id, &["a", "b"], "").await.unwrap();
        let prepared = prepared(&mut participant).await;
        participant.vote(&prepared, true).await.unwrap();
    }
    client.delete_recursive("/tx").await.unwrap();
    for id in ids {
        let error = next(&mut participant).await.unwrap_err();
        assert!(matches!(&error, Error::Gone { path } if path.name() == id), "{error}");
    }
}

#[tokio::test]
async fn nobody_waits_for_a_coordinator_that_has_given_up() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let transactions = TwoPhase::new(&client, "/tx").unwrap();
    let mut participant = transactions.participant("a").await.unwrap();
    // Before it was told that the transaction is there.
    let run = transactions.run("early", &["a", "b"], "", DEADLINE);
    give_up_once_made(&client, "/tx/early", run).await;
    let task = next(&mut participant).await.unwrap();
    if let Task::Prepare(_) = task {
        assert_eq!(aborted(&mut participant).await.id, "early");
    }
    // While it waits for a vote.
    let coordinator = transactions.clone();
    let run = tokio::spawn(async move { coordinator.run("late", &["a", "b"], "", DEADLINE).await });
    let prepared = prepared(&mut participant).await;
    participant.vote(&prepared, true).await.unwrap();
    run.abort();
    assert_eq!(aborted(&mut participant).await, prepared);
}
