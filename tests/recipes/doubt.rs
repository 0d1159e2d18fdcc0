//! Partitions and tasks of somebody whose session is in doubt: who has them is told to stop before
//! anybody else begins.

use std::collections::BTreeSet;
use std::time::Duration;

use conclave_client::recipes::assignment::{Order, Work};
use conclave_client::recipes::partition::{Partitioner, Turn, divide};
use conclave_client::recipes::queue::Queue;
use conclave_client::recipes::{Election, Loss, Token};
use conclave_client::{Client, ZPath};

use crate::chaos::Wire;
use crate::harness::{Cluster, eventually};
use crate::{soon, step, waits};

/// Long enough that a server starts anew within it.
const LONG: Duration = Duration::from_secs(5);

fn names() -> Vec<String> {
    vec![String::from("p1"), String::from("p2")]
}

async fn share(client: &Client) -> Partitioner {
    Partitioner::join(client, "/parts", "a", names()).await.unwrap()
}

async fn begin(share: &mut Partitioner) -> (String, Token) {
    let turn = soon(share.next()).await.unwrap();
    let Turn::Begin { partition, token } = turn else { panic!("nothing can end: {turn:?}") };
    (partition, token)
}

#[tokio::test]
async fn partitions_are_lost_while_the_network_is_cut() {
    let cluster = Cluster::start(1).await;
    let wire = Wire::to(&cluster.addresses()).await;
    let client = wire.client(Duration::from_secs(1)).await;
    let mut share = share(&client).await;
    let begun = BTreeSet::from([begin(&mut share).await.0, begin(&mut share).await.0]);
    wire.cut();
    let mut lost = BTreeSet::new();
    for _ in 0..2 {
        let Turn::Lost { partition } = soon(share.next()).await.unwrap() else {
            panic!("there is no doubt about the session")
        };
        lost.insert(partition);
        assert!(share.held().is_empty(), "nothing is this member's for certain");
    }
    assert_eq!(lost, begun);
    let other = cluster.client().await;
    eventually("others can have them", async || {
        other.children("/parts/owners").await.unwrap().is_empty().then_some(())
    })
    .await;
    wire.mend();
    assert!(soon(share.next()).await.unwrap_err().is_final());
}

#[tokio::test]
async fn a_partition_of_a_session_that_is_over_is_not_begun() {
    let cluster = Cluster::start(1).await;
    let wire = Wire::to(&cluster.addresses()).await;
    let client = wire.client(Duration::from_secs(1)).await;
    let mut share = share(&client).await;
    // The other one was taken with it, and was not told of yet.
    let (partition, _) = begin(&mut share).await;
    wire.cut();
    let other = cluster.client().await;
    eventually("others can have them", async || {
        other.children("/parts/owners").await.unwrap().is_empty().then_some(())
    })
    .await;
    assert_eq!(soon(share.next()).await.unwrap(), Turn::Lost { partition });
    wire.mend();
    assert!(soon(share.next()).await.unwrap_err().is_final());
}

#[tokio::test]
async fn a_partition_whose_lock_was_deleted_is_begun_with_a_new_token_only() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let mut share = share(&client).await;
    assert_eq!(begin(&mut share).await.0, "p1");
    let lock = ZPath::new("/parts/owners/p2").unwrap();
    let before = client.exists(&lock).await.unwrap().unwrap().czxid;
    client.delete(&lock).await.unwrap();
    let (partition, token) = begin(&mut share).await;
    assert!(partition == "p2" && token.zxid() > before, "{partition} with token {token}");
}

#[tokio::test]
async fn what_was_in_doubt_goes_on_if_the_session_is_alive() {
    let mut cluster = Cluster::start(1).await;
    let builder = Client::builder().servers(cluster.addresses()).session_timeout(LONG);
    let client = builder.connect().await.unwrap();
    let mut share = share(&client).await;
    let begun = BTreeSet::from([begin(&mut share).await, begin(&mut share).await]);
    let work = Work::new(&client, "/work").unwrap();
    work.submit("task", "").await.unwrap();
    let leadership = soon(Election::new(&client, "/election").unwrap().campaign("")).await.unwrap();
    let assigner = work.clone();
    let assigning = tokio::spawn(async move { assigner.assign(&leadership).await });
    let mut worker = work.worker("w").await.unwrap();
    let Order::Begin(task) = soon(worker.next()).await.unwrap() else { panic!("there is a task") };
    assigning.abort();
    cluster.kill(1);
    for _ in 0..2 {
        let turn = soon(share.next()).await.unwrap();
        assert!(matches!(turn, Turn::Lost { .. }), "{turn:?}");
    }
    assert_eq!(soon(worker.next()).await.unwrap(), Order::Stop(String::from("task")));
    // Sessions have their whole timeout again after the servers were away.
    cluster.launch(1);
    let again = BTreeSet::from([begin(&mut share).await, begin(&mut share).await]);
    assert_eq!(again, begun);
    assert_eq!(soon(worker.next()).await.unwrap(), Order::Begin(task.clone()));
    worker.done(&task).await.unwrap();
}

#[tokio::test]
async fn tasks_are_stopped_while_the_network_is_cut() {
    let cluster = Cluster::start(1).await;
    let admin = cluster.client().await;
    let work = Work::new(&admin, "/work").unwrap();
    work.submit("task", "").await.unwrap();
    let leadership = soon(Election::new(&admin, "/election").unwrap().campaign("")).await.unwrap();
    let assigner = work.clone();
    let assigning = tokio::spawn(async move { assigner.assign(&leadership).await });
    let wire = Wire::to(&cluster.addresses()).await;
    let client = wire.client(Duration::from_secs(1)).await;
    let mut worker = Work::new(&client, "/work").unwrap().worker("w").await.unwrap();
    let Order::Begin(task) = soon(worker.next()).await.unwrap() else { panic!("there is a task") };
    wire.cut();
    assert_eq!(soon(worker.next()).await.unwrap(), Order::Stop(task.id));
    wire.mend();
    assigning.abort();
}

#[tokio::test]
async fn an_item_is_lost_while_the_network_is_cut() {
    let cluster = Cluster::start(1).await;
    let wire = Wire::to(&cluster.addresses()).await;
    let client = wire.client(Duration::from_secs(1)).await;
    let queue = Queue::new(&client, "/queue").unwrap();
    queue.push("do it").await.unwrap();
    let item = soon(queue.consumer().next()).await.unwrap();
    let mut lost = Box::pin(item.lost());
    assert!(waits(&client, &mut lost).await);
    wire.cut();
    assert_eq!(soon(lost).await, Loss::Suspected);
}

#[tokio::test]
async fn two_members_of_one_session_do_not_have_the_same_partition() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let partitions = BTreeSet::from([String::from("p")]);
    // One who has the partition as soon as it is a member, too.
    let better = (0..).map(|number| format!("b{number}"));
    let is_better = |name: &String| divide(&["a".into(), name.clone()], &partitions)["p"] == *name;
    let better = better.into_iter().find(is_better).unwrap();
    let join = async |name: &str| {
        Partitioner::join(&client, "/parts", name, partitions.clone()).await.unwrap()
    };
    let mut first = join("a").await;
    {
        // It takes the partition, and is not told so.
        let mut next = Box::pin(first.next());
        while client.exists("/parts/owners/p").await.unwrap().is_none() {
            assert!(step(&client, next.as_mut()).await, "it is not there yet");
        }
    }
    client.delete("/parts/owners/p").await.unwrap();
    let mut second = join(&better).await;
    assert_eq!(begin(&mut second).await.0, "p");
    assert!(waits(&client, Box::pin(first.next())).await, "it is the other member's");
}
