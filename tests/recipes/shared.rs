//! What is shared: read/write locks, semaphores, several locks at once, and what is kept back.

use std::pin::pin;
use std::time::Duration;

use conclave_client::recipes::{Error, Loss, MultiLock, Mutex, ReadWriteLock, Semaphore};
use conclave_client::{ErrorCode, SessionId, Test};

use crate::chaos::Wire;
use crate::harness::{Cluster, eventually};
use crate::{short_lived, soon, waits};

#[tokio::test]
async fn readers_share_and_writers_do_not() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let lock = ReadWriteLock::new(&client, "/locks/rw").unwrap();
    let one = soon(lock.read()).await.unwrap();
    let two = soon(lock.read()).await.unwrap();
    let mut writing = pin!(lock.write());
    assert!(waits(&client, &mut writing).await);
    let mut late = pin!(lock.read());
    assert!(waits(&client, &mut late).await, "it came after a writer");
    one.release().await.unwrap();
    assert!(waits(&client, &mut writing).await);
    two.release().await.unwrap();
    let writing = soon(writing).await.unwrap();
    let mut next = pin!(lock.write());
    assert!(waits(&client, &mut next).await);
    assert!(waits(&client, &mut late).await);
    let reading = writing.downgrade().await.unwrap();
    let late = soon(late).await.unwrap();
    assert!(waits(&client, &mut next).await);
    reading.release().await.unwrap();
    late.release().await.unwrap();
    soon(next).await.unwrap().release().await.unwrap();
    let error = Mutex::new(&client, "/locks/rw").unwrap().lock().await;
    assert!(error.is_ok(), "nothing is left in the directory");
}

#[tokio::test]
async fn an_edited_node_is_told_of() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let lock = ReadWriteLock::new(&client, "/locks/rw").unwrap();
    let hold = soon(lock.write()).await.unwrap();
    client.set(hold.path(), "nonsense").await.unwrap();
    let error = lock.read().await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    let error = Mutex::new(&client, "/locks/rw").unwrap().lock().await.unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }), "{error}");
}

#[tokio::test]
async fn no_more_than_the_limit_and_the_limit_can_change() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let semaphore = Semaphore::new(&client, "/limits/a", 2).unwrap();
    let one = soon(semaphore.acquire()).await.unwrap();
    let two = soon(semaphore.acquire()).await.unwrap();
    assert!(two.token() > one.token());
    assert!(semaphore.try_acquire().await.unwrap().is_none());
    let mut third = pin!(semaphore.acquire());
    assert!(waits(&client, &mut third).await);
    let mut fourth = pin!(semaphore.acquire());
    assert!(waits(&client, &mut fourth).await);
    semaphore.set_limit(3).await.unwrap();
    let third = soon(third).await.unwrap();
    assert!(waits(&client, &mut fourth).await);
    semaphore.set_limit(1).await.unwrap();
    one.release().await.unwrap();
    two.release().await.unwrap();
    assert!(waits(&client, &mut fourth).await, "one is held and the limit is one");
    assert_eq!(semaphore.held().await.unwrap(), 1);
    third.release().await.unwrap();
    let fourth = soon(fourth).await.unwrap();
    client.set("/limits/a/limit", "many").await.unwrap();
    let error = semaphore.acquire().await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    drop(fourth);
}

#[tokio::test]
async fn all_locks_or_none() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let all = MultiLock::new(&client, ["/locks/b", "/locks/a", "/locks/b"]).unwrap();
    let mut one = Mutex::new(&client, "/locks/b").unwrap();
    let hold = soon(one.lock()).await.unwrap();
    assert!(all.try_lock().await.unwrap().is_none());
    let error = all.lock_within(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
    let mut other = Mutex::new(&client, "/locks/a").unwrap();
    eventually("the other lock is free", async || other.try_lock().await.unwrap().map(drop)).await;
    {
        let mut waiting = pin!(all.lock());
        assert!(waits(&client, &mut waiting).await);
        hold.release().await.unwrap();
        let both = soon(waiting).await.unwrap();
        assert!(other.try_lock().await.unwrap().is_none());
        client.create("/both", "").await.unwrap();
        both.guard(client.multi().set("/both", "1", None)).await.unwrap();
        both.release().await.unwrap();
    }
    soon(other.lock()).await.unwrap().release().await.unwrap();
    assert!(MultiLock::new(&client, Vec::<String>::new()).is_err());
}

#[tokio::test]
async fn as_many_locks_as_can_be_taken_at_once_can_be_released() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let names = |count| (0..count).map(|lock| format!("/locks/{lock}"));
    let error = MultiLock::new(&client, names(401)).err().unwrap();
    assert!(matches!(error, Error::Config(_)), "{error}");
    let hold = soon(MultiLock::new(&client, names(400)).unwrap().lock()).await.unwrap();
    client.create("/done", "").await.unwrap();
    let multi = client.multi().when("/done", Test::Version(0)).set("/done", "1", None);
    assert!(hold.guard(multi).await.unwrap().held);
    soon(hold.release()).await.unwrap();
    assert!(client.children("/locks/0").await.unwrap().is_empty());
    // What is asked after a release, or a drop, finds them free.
    let locks = MultiLock::new(&client, names(400)).unwrap();
    drop(soon(locks.lock()).await.unwrap());
    assert!(soon(locks.try_lock()).await.unwrap().is_some());
}

#[tokio::test]
async fn who_want_the_same_locks_never_wait_for_each_other() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..12 {
        let names = [number % 3, (number + 1) % 3].map(|lock| format!("/locks/{lock}"));
        let locks = MultiLock::new(&client, names).unwrap();
        tasks.spawn(async move {
            for _ in 0..20 {
                locks.lock().await.unwrap().release().await.unwrap();
            }
        });
    }
    while let Some(task) = soon(tasks.join_next()).await {
        task.unwrap();
    }
}

#[tokio::test]
async fn what_an_expired_session_held_is_kept_back() {
    let cluster = Cluster::start(1).await;
    let (client, other) = (short_lived(&cluster.addresses()).await, cluster.client().await);
    let delay = Duration::from_secs(3);
    let mut first = Mutex::new(&client, "/locks/a").unwrap().lock_delay(delay);
    let mut second = Mutex::new(&other, "/locks/a").unwrap().lock_delay(delay);
    // Released, it is free at once.
    soon(first.lock()).await.unwrap().release().await.unwrap();
    soon(second.try_lock()).await.unwrap().unwrap().release().await.unwrap();

    // The client's network is cut, so that its session expires.
    let wire = Wire::to(&cluster.addresses()).await;
    let cut_off = wire.client(Duration::from_secs(1)).await;
    let mut third = Mutex::new(&cut_off, "/locks/a").unwrap().lock_delay(delay);
    let hold = soon(third.lock()).await.unwrap();
    let mut waiting = pin!(second.lock());
    assert!(waits(&other, &mut waiting).await);
    wire.cut();
    assert_eq!(soon(hold.lost()).await, Loss::Suspected);
    let left = eventually("the session has expired", async || {
        let stat = other.exists(hold.path()).await.unwrap().expect("the node stays");
        (stat.ephemeral_owner == SessionId::NONE).then_some(stat)
    })
    .await;
    assert!(waits(&other, &mut waiting).await);
    let stale = other.multi().guard(hold.path(), hold.token().zxid()).send().await.unwrap_err();
    assert_eq!(stale.code(), Some(ErrorCode::ConditionFailed));
    let next = soon(waiting).await.unwrap();
    let taken = other.set(next.path(), "").await.unwrap().mtime_ms;
    assert!(taken - left.mtime_ms >= 3000, "kept back for {} ms", taken - left.mtime_ms);
    assert!(next.token() > hold.token());
}
