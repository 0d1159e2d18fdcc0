//! Nodes by hand where a recipe does not expect them, and what is missing that somebody was told of: in
//! lines, queues, logs, counters and barriers.

use conclave_client::recipes::counter::{Counter, IdBlocks};
use conclave_client::recipes::log::{Entry, Log};
use conclave_client::recipes::queue::{Push, Queue};
use conclave_client::recipes::{
    DoubleBarrier, Election, Error, MultiLock, Mutex, ReadWriteLock, Semaphore,
};
use conclave_client::{CreateMode, ZPath};

use crate::bad_input::{all_fail, make};
use crate::harness::{Cluster, eventually};
use crate::{short_lived, soon};

/// A restored node is made anew, by a transaction of its own; ids are before items.
#[tokio::test]
async fn an_item_with_an_id_that_was_restored() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let queue = Queue::new(&client, "/queue").unwrap();
    assert_eq!(queue.push_with("work", Push::new().id("a")).await, Ok(true));
    let items = client.list("/queue/items").await.unwrap().entries;
    for path in [String::from("/queue/ids/a"), format!("/queue/items/{}", items[0].name)] {
        let data = client.get(path.as_str()).await.unwrap().data.unwrap();
        client.delete(path.as_str()).await.unwrap();
        client.create(path.as_str(), data).await.unwrap();
    }
    assert_eq!(queue.push_with("again", Push::new().id("a")).await, Ok(false));
    let item = queue.consumer().try_next().await.unwrap().unwrap();
    assert_eq!((item.id(), item.data().as_ref()), (Some("a"), &b"work"[..]));
    item.done().await.unwrap();
    assert_eq!(queue.push_with("later", Push::new().id("a")).await, Ok(true));
}

/// Who waits behind one of them is told when that has lasted for a session timeout.
#[tokio::test]
async fn nodes_by_hand_under_names_that_the_recipes_use() {
    let cluster = Cluster::start(1).await;
    let client = short_lived(&cluster.addresses()).await;
    let c = &client;
    for path in [
        "/mutex/lock-0000000000",
        "/shared/rw-0000000000",
        "/election/candidate-0000000000",
        "/permits/permits/permit-0000000000",
        "/semaphore/queue/waiter-0000000000",
    ] {
        make(c, path, "").await;
        // So that the servers count on from there.
        let (directory, _) = path.rsplit_once('/').unwrap();
        let mode = CreateMode::EPHEMERAL_SEQUENTIAL;
        let next = c.create(format!("{directory}/x-"), "").mode(mode).await.unwrap();
        c.delete(&next.path).await.unwrap();
    }
    let (mut one, mut other) = (Mutex::new(c, "/mutex").unwrap(), Mutex::new(c, "/mutex").unwrap());
    all_fail!(|error: &Error| matches!(error, Error::Malformed { .. }), {
            "a mutex" => one.lock().await,
            "to try a mutex" => other.try_lock().await,
            "several locks" => MultiLock::new(c, ["/free", "/mutex"])?.lock().await,
            "to try several locks" => MultiLock::new(c, ["/free", "/mutex"])?.try_lock().await,
            "a reader" => ReadWriteLock::new(c, "/shared")?.read().await,
            "a writer" => ReadWriteLock::new(c, "/shared")?.write().await,
            "a candidate" => Election::new(c, "/election")?.campaign("").await,
            "a permit" => Semaphore::new(c, "/permits", 1)?.acquire().await,
            "to try for a permit" => Semaphore::new(c, "/permits", 1)?.try_acquire().await,
            "one who waits for a permit" => Semaphore::new(c, "/semaphore", 1)?.acquire().await,
            "to try to wait for a permit" => Semaphore::new(c, "/semaphore", 1)?.try_acquire().await,
    });
}

/// Who has been told something by a log, or a number by a counter, is not told that it never was.
#[tokio::test]
async fn what_was_told_and_is_deleted_by_hand() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let c = &client;
    let hold = soon(Mutex::new(c, "/primary").unwrap().lock()).await.unwrap();
    let operation = |log: &str, number: u64| format!("{log}/operations/{number:020}");
    let log = Log::new(c, "/log").unwrap();
    log.write(&hold).await.unwrap().append(["1", "2"]).await.unwrap();
    let mut follower = log.follow().await.unwrap();
    for number in 1..=2 {
        let told = soon(follower.next()).await.unwrap();
        assert_eq!(told, Entry::Operation { number, operation: number.to_string().into() });
    }
    c.delete(operation("/log", 2)).await.unwrap();
    let short = Log::new(c, "/short").unwrap();
    let mut writer = short.write(&hold).await.unwrap();
    writer.append(["1", "2"]).await.unwrap();
    writer.compact(2, "both").await.unwrap();
    let mut of_short = short.follow().await.unwrap();
    soon(of_short.next()).await.unwrap();
    c.delete("/short/state").await.unwrap();
    let counter = Counter::new(c, "/counter").unwrap();
    let ids = IdBlocks::new(c, "/ids", 1).unwrap();
    assert_eq!((counter.add(7).await, ids.next().await), (Ok(7), Ok(0)));
    let semaphore = Semaphore::new(c, "/semaphore", 5).unwrap();
    semaphore.set_limit(1).await.unwrap();
    let permit = soon(semaphore.acquire()).await.unwrap();
    for path in ["/counter", "/ids", "/semaphore/limit"] {
        c.delete(path).await.unwrap();
    }
    all_fail!(|error: &Error| matches!(error, Error::Gone { .. }), {
            "an operation that was told" => follower.next().await,
            "a state that was told" => of_short.next().await,
            "a counter" => counter.get().await,
            "to add to it" => counter.add(1).await,
            "to set it" => counter.compare_and_set(0, 1).await,
            "an id" => ids.next().await,
            "a limit" => semaphore.limit().await,
            "a permit" => semaphore.acquire().await,
    });
    // Their numbers go to others.
    log.write(&hold).await.unwrap().append(["another"]).await.unwrap();
    let ids = IdBlocks::new(c, "/more-ids", 1).unwrap();
    for id in 0..3 {
        assert_eq!(ids.next().await, Ok(id));
    }
    c.set("/more-ids", "1").await.unwrap();
    all_fail!(|error: &Error| matches!(error, Error::Malformed { .. }), {
            "another operation of that number" => follower.next().await,
            "ids that were given out" => ids.next().await,
    });
    semaphore.set_limit(1).await.unwrap();
    permit.release().await.unwrap();
    soon(semaphore.acquire()).await.unwrap().release().await.unwrap();
}

/// Who waits for others at a barrier is told of a node that keeps them from coming.
#[tokio::test]
async fn a_foreign_node_that_comes_to_those_who_wait_for_each_other() {
    let cluster = Cluster::start(1).await;
    let client = short_lived(&cluster.addresses()).await;
    let barrier = DoubleBarrier::new(&client, "/double", 2).unwrap();
    let waits = tokio::spawn(async move { barrier.enter().await });
    eventually("it has come", async || client.children("/double").await.ok()).await;
    client.create("/double/readme", "").await.unwrap();
    all_fail!(|error: &Error| matches!(error, Error::Foreign { .. }), {
            "to enter" => waits.await.unwrap(),
    });
}

/// What is left of a queue by hand is told of by a consumer that has nothing else to do, once.
#[tokio::test]
async fn a_queue_with_locks_of_nobody_and_ids_of_nothing() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let queue = Queue::new(&client, "/queue").unwrap();
    queue.push_with("work", Push::new().id("a")).await.unwrap();
    let item = client.children("/queue/items").await.unwrap().remove(0);
    let (item, lock) = (format!("/queue/items/{item}"), format!("/queue/taken/{item}"));
    client.create(&lock, "").await.unwrap();
    let mut consumer = queue.consumer();
    all_fail!(|error: &Error| matches!(error, Error::Foreign { path, .. } if path.as_str() == lock), {
            "an item" => consumer.next().await,
    });
    client.delete(&lock).await.unwrap();
    client.delete(&item).await.unwrap();
    assert_eq!(queue.push_with("again", Push::new().id("a")).await, Ok(false));
    let is_id = |path: &ZPath| path.as_str() == "/queue/ids/a";
    all_fail!(|error: &Error| matches!(error, Error::Malformed { path, .. } if is_id(path)), {
            "an id" => consumer.next().await,
    });
    assert_eq!(queue.remove("a").await, Ok(true));
    assert_eq!(queue.push_with("again", Push::new().id("a")).await, Ok(true));
    assert_eq!(soon(consumer.next()).await.unwrap().data().as_ref(), b"again");
}
