//! Who waits for something that will not come: the session expires, or somebody deletes the node
//! that stands for who waits. All of them are told.

use std::future::Future;
use std::time::Duration;

use conclave_client::Client;
use conclave_client::recipes::assignment::{Order, Work};
use conclave_client::recipes::cache::Cache;
use conclave_client::recipes::config::{Place, Registry};
use conclave_client::recipes::discovery::{Discovery, Strategy};
use conclave_client::recipes::log::{Entry, Log};
use conclave_client::recipes::members::Group;
use conclave_client::recipes::partition::{Partitioner, Turn};
use conclave_client::recipes::queue::Queue;
use conclave_client::recipes::ring::LiveRing;
use conclave_client::recipes::two_phase::TwoPhase;
use conclave_client::recipes::{Barrier, DoubleBarrier, Election, Error, Loss, MultiLock, Mutex};
use conclave_client::recipes::{ReadWriteLock, Semaphore};
use tokio::task::JoinHandle;

use crate::chaos::Wire;
use crate::harness::{Cluster, eventually};
use crate::soon;

/// Those who wait, each with what it waits for; what comes of it is an error.
#[derive(Default)]
struct Waiting(Vec<(&'static str, JoinHandle<Error>)>);

impl Waiting {
    fn add<T>(
        &mut self,
        what: &'static str,
        waits: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) {
        let error = async move { waits.await.err().expect("it is not to be had") };
        self.0.push((what, tokio::spawn(error)));
    }

    /// None of them has got anything yet.
    fn check(&self) {
        for (what, waits) in &self.0 {
            assert!(!waits.is_finished(), "{what} does not wait");
        }
    }
}

/// Waits for what all the locks and the like are taken for.
async fn stand(client: &Client, waiting: &mut Waiting) {
    let c = client.clone();
    waiting.add("a mutex", async move { Mutex::new(&c, "/mutex")?.lock().await });
    let c = client.clone();
    waiting.add("a reader", async move { ReadWriteLock::new(&c, "/shared")?.read().await });
    let c = client.clone();
    waiting.add("a writer", async move { ReadWriteLock::new(&c, "/shared")?.write().await });
    let c = client.clone();
    waiting.add("a permit", async move { Semaphore::new(&c, "/semaphore", 1)?.acquire().await });
    let c = client.clone();
    waiting.add("several", async move { MultiLock::new(&c, ["/free", "/last"])?.lock().await });
    let c = client.clone();
    waiting.add("a candidate", async move { Election::new(&c, "/election")?.campaign("").await });
    let c = client.clone();
    waiting.add("to enter", async move { DoubleBarrier::new(&c, "/double", 2)?.enter().await });
    eventually("all stand in their lines", async || {
        let mut standing = 0;
        for path in ["/mutex", "/shared", "/semaphore/queue", "/last", "/election", "/double"] {
            let names = client.children(path).await.unwrap_or_default();
            standing += names.iter().filter(|name| *name != "ready" && *name != "leader").count();
        }
        // Those who hold, without a permit's, which is elsewhere, and those who wait.
        (standing == 4 + 7).then_some(())
    })
    .await;
}

/// Holds whatever is waited for.
async fn hold_all(client: &Client) -> Vec<Box<dyn std::any::Any>> {
    vec![
        Box::new(soon(Mutex::new(client, "/mutex").unwrap().lock()).await.unwrap()),
        Box::new(soon(ReadWriteLock::new(client, "/shared").unwrap().write()).await.unwrap()),
        Box::new(soon(Semaphore::new(client, "/semaphore", 1).unwrap().acquire()).await.unwrap()),
        Box::new(soon(Mutex::new(client, "/last").unwrap().lock()).await.unwrap()),
        Box::new(soon(Election::new(client, "/election").unwrap().campaign("")).await.unwrap()),
    ]
}

#[tokio::test]
async fn who_waits_when_the_session_expires_is_told() {
    let cluster = Cluster::start(1).await;
    let holder = cluster.client().await;
    let held = hold_all(&holder).await;
    Barrier::new(&holder, "/barrier").unwrap().raise().await.unwrap();
    let wire = Wire::to(&cluster.addresses()).await;
    let client = wire.client(Duration::from_secs(1)).await;
    let c = &client;
    let mut waiting = Waiting::default();
    stand(c, &mut waiting).await;
    let barrier = Barrier::new(c, "/barrier").unwrap();
    waiting.add("a barrier", async move { barrier.wait().await });
    let mut consumer = Queue::new(c, "/queue").unwrap().consumer();
    waiting.add("an item", async move { consumer.next().await });
    let mut worker = Work::new(c, "/work").unwrap().worker("a").await.unwrap();
    waiting.add("a worker", async move { worker.next().await });
    let transactions = TwoPhase::new(c, "/tx").unwrap();
    let mut participant = transactions.participant("a").await.unwrap();
    waiting.add("a participant", async move { participant.next().await });
    transactions.begin("t", &["nobody"], "").await.unwrap();
    waiting.add("all votes", async move { transactions.all_votes("t").await });
    let log = Log::new(c, "/log").unwrap();
    let mut follower = log.follow().await.unwrap();
    waiting.add("an operation", async move { follower.next().await.map(|_: Entry| ()) });
    let members = Group::new(c, "/group").unwrap().members().await.unwrap();
    let (mut ring, mut changes) =
        (LiveRing::new(members.clone()).unwrap(), members.changes().unwrap());
    waiting.add("a change of a ring", async move { ring.changed().await });
    waiting.add("a member", async move { changes.next().await.unwrap() });
    let member = Group::new(c, "/group-2").unwrap().join("a", "").await.unwrap();
    waiting.add("a member's end", async move { Err::<(), _>(member.ended().await) });
    let provider = Discovery::new(c, "/services").unwrap();
    let provider = provider.provider("db", Strategy::Random).await.unwrap();
    waiting.add("an instance", async move { provider.wait(Duration::from_secs(3600)).await });
    let mut parts = Partitioner::join(c, "/parts", "a", vec!["p".into()]).await.unwrap();
    soon(parts.next()).await.unwrap();
    waiting.add("a partition", async move {
        while let Turn::Lost { .. } = parts.next().await? {}
        Ok(())
    });
    let registry = Registry::new(c, "/config").unwrap();
    let setting = registry.setting::<u32>("limit").unwrap();
    let mut live = registry.follow(Place::new()).await.unwrap().live(&setting).unwrap();
    soon(live.next()).await.unwrap().unwrap();
    waiting.add("a value", async move { live.next().await.unwrap() });
    let cache = Cache::tree(c, "/data").await.unwrap();
    let mut changes = cache.changes().unwrap();
    waiting.add("a change", async move { changes.next().await.unwrap() });
    waiting.add("a cache's end", async move { Err::<(), _>(cache.ended().await) });
    client.sync().await.unwrap();
    waiting.check();

    wire.cut();
    eventually("the session has expired", async || {
        holder.exists("/group-2/a").await.unwrap().is_none().then_some(())
    })
    .await;
    wire.mend();
    for (what, waits) in waiting.0 {
        let error = soon(waits).await.unwrap();
        assert!(error.is_final(), "{what}: {error:?}");
    }
    drop(held);
}

#[tokio::test]
async fn who_waits_and_whose_node_is_deleted_is_told() {
    let cluster = Cluster::start(1).await;
    let (holder, client) = (cluster.client().await, cluster.client().await);
    let held = hold_all(&holder).await;
    let mut waiting = Waiting::default();
    stand(&client, &mut waiting).await;
    waiting.check();
    for path in ["/mutex", "/shared", "/semaphore/queue", "/last", "/election", "/double"] {
        for name in holder.children(path).await.unwrap() {
            let node = format!("{path}/{name}");
            let owner = holder.exists(&node).await.unwrap().map(|stat| stat.ephemeral_owner);
            if owner == Some(client.session()) {
                holder.delete(&node).await.unwrap();
            }
        }
    }
    for (what, waits) in waiting.0 {
        let error = soon(waits).await.unwrap();
        assert!(matches!(error, Error::Lost { loss: Loss::Deleted, .. }), "{what}: {error:?}");
    }
    drop(held);
}

#[tokio::test]
async fn the_task_that_was_assigned_first_is_begun_first() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let work = Work::new(&client, "/work").unwrap();
    let leadership = soon(Election::new(&client, "/election").unwrap().campaign("")).await.unwrap();
    let assigner = work.clone();
    let assigning = tokio::spawn(async move { assigner.assign(&leadership).await });
    let mut worker = work.worker("w").await.unwrap();
    for id in ["b", "a"] {
        work.submit(id, "").await.unwrap();
        let assignment = format!("/work/assigned/{id}");
        eventually("it is assigned", async || client.exists(&assignment).await.unwrap()).await;
    }
    for id in ["b", "a"] {
        let order = soon(worker.next()).await.unwrap();
        assert!(matches!(&order, Order::Begin(task) if task.id == id), "{order:?}");
    }
    assigning.abort();
}
