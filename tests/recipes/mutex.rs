//! What a mutex promises.

use std::pin::{Pin, pin};
use std::time::Duration;

use conclave_client::recipes::{Error, Hold, Lease, Loss, Mutex, Token};
use conclave_client::{Client, ErrorCode, Test};

use crate::harness::Cluster;
use crate::{soon, waits};

const LOCK: &str = "/locks/a";

fn mutex(client: &Client) -> Mutex {
    Mutex::new(client, LOCK).unwrap()
}

/// How many nodes the lock has.
async fn nodes(client: &Client) -> usize {
    client.children(LOCK).await.map_or(0, |names| names.len())
}

#[tokio::test]
async fn one_at_a_time_in_the_order_of_asking() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let other = cluster.client().await;
    let (mut first, mut second, mut third) = (mutex(&client), mutex(&other), mutex(&client));
    let hold = soon(first.lock()).await.unwrap();
    let mut second = pin!(second.lock());
    assert!(waits(&other, &mut second).await);
    let mut third = pin!(third.lock());
    assert!(waits(&client, &mut third).await);
    assert!(hold.is_held());
    let token = hold.token();
    hold.release().await.unwrap();
    let hold = soon(&mut second).await.unwrap();
    assert!(hold.token() > token);
    assert!(waits(&client, &mut third).await);
    let token = hold.token();
    drop(hold);
    let hold = soon(third).await.unwrap();
    assert!(hold.token() > token);
    hold.release().await.unwrap();
    assert_eq!(nodes(&client).await, 0);
}

#[tokio::test]
async fn a_handle_that_holds_it_gets_it_again() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let (mut one, mut other) = (mutex(&client), mutex(&client));
    let outer = soon(one.lock()).await.unwrap();
    let inner = soon(one.lock()).await.unwrap();
    assert_eq!(outer.token(), inner.token());
    assert!(other.try_lock().await.unwrap().is_none());
    inner.release().await.unwrap();
    assert!(outer.is_held());
    assert!(other.try_lock().await.unwrap().is_none());
    outer.release().await.unwrap();
    assert!(other.try_lock().await.unwrap().is_some());
}

#[tokio::test]
async fn who_gives_up_leaves_nothing_behind() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let (mut one, mut other) = (mutex(&client), mutex(&client));
    let hold = soon(one.lock()).await.unwrap();
    let error = other.lock_within(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
    {
        let mut waiting = pin!(other.lock());
        assert!(waits(&client, &mut waiting).await);
    }
    crate::harness::eventually("the places are given up", async || {
        (nodes(&client).await == 1).then_some(())
    })
    .await;
    hold.release().await.unwrap();
    assert_eq!(nodes(&client).await, 0);
}

/// Whoever leaves first: the one behind waits for as long as anybody is before it, and no longer.
#[tokio::test]
async fn those_before_leave_in_any_order() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut handles = [mutex(&client), mutex(&client), mutex(&client), mutex(&client)];
        let [holder, before, nearest, last] = &mut handles;
        let hold = soon(holder.lock()).await.unwrap();
        // The holder drops its hold, those who wait drop what they wait for.
        let mut leaving: [Option<Pin<Box<dyn Future<Output = Hold>>>>; 3] = [
            Some(Box::pin(async move { hold })),
            Some(Box::pin(async { before.lock().await.unwrap() })),
            Some(Box::pin(async { nearest.lock().await.unwrap() })),
        ];
        for waiting in leaving.iter_mut().flatten().skip(1) {
            assert!(waits(&client, waiting).await);
        }
        let mut last = pin!(last.lock());
        assert!(waits(&client, &mut last).await);
        for (place, left) in order.into_iter().zip(1..) {
            drop(leaving[place].take());
            crate::harness::eventually("it has left", async || {
                (nodes(&client).await == 4 - left).then_some(())
            })
            .await;
            if left < 3 {
                assert!(waits(&client, &mut last).await, "{left} of {order:?} have left");
            }
        }
        soon(last).await.unwrap().release().await.unwrap();
    }
}

#[tokio::test]
async fn a_late_write_does_nothing() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    client.create("/data", "0").await.unwrap();
    let hold = soon(mutex(&client).lock()).await.unwrap();
    hold.guard(client.multi().set("/data", "1", None)).await.unwrap();
    client.delete(hold.path()).await.unwrap();
    let error = hold.guard(client.multi().set("/data", "2", None)).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    assert_eq!(client.get("/data").await.unwrap().text(), Ok("1"));
    assert_eq!(soon(hold.lost()).await, Loss::Deleted);
    let error = hold.release().await.unwrap_err();
    assert!(matches!(error, Error::Lost { loss: Loss::Deleted, .. }), "{error}");
}

#[tokio::test]
async fn the_holder_is_asked_to_release_it() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    assert_eq!(mutex(&client).revoke().await.unwrap(), None);
    let hold = soon(mutex(&client).describe("host 1").lock()).await.unwrap();
    let holder = mutex(&client).holder().await.unwrap().unwrap();
    assert_eq!((holder.token, holder.session), (hold.token(), client.session()));
    assert_eq!(holder.description, "host 1");
    let revoked = hold.revoked();
    assert_eq!(mutex(&client).revoke().await.unwrap(), Some(hold.token()));
    soon(revoked).await;
    assert!(hold.is_held(), "it is the holder's decision");
}

#[tokio::test]
async fn strange_nodes_are_told_of() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    client.create("/locks", "").await.unwrap();
    client.create(LOCK, "").await.unwrap();
    client.create(format!("{LOCK}/readme"), "").await.unwrap();
    let error = mutex(&client).lock().await.unwrap_err();
    assert!(matches!(&error, Error::Foreign { path, .. } if path.name() == "readme"), "{error}");
    client.delete(format!("{LOCK}/readme")).await.unwrap();

    let hold = soon(mutex(&client).lock()).await.unwrap();
    let mut waiting = mutex(&client);
    let mut waiting = pin!(waiting.lock());
    assert!(waits(&client, &mut waiting).await);
    let names = client.children(LOCK).await.unwrap();
    client.delete(format!("{LOCK}/{}", names[1])).await.unwrap();
    let error = soon(waiting).await.unwrap_err();
    assert!(matches!(error, Error::Lost { loss: Loss::Deleted, .. }), "{error}");

    client.set(hold.path(), "edited").await.unwrap();
    let error = mutex(&client).holder().await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    client.clone().close().await.unwrap();
    let error = mutex(&client).lock().await.unwrap_err();
    assert!(error.is_final(), "{error}");
    assert!(!hold.is_held() || soon(hold.lost()).await == Loss::Closed);
}

#[tokio::test]
async fn a_release_whose_answer_was_lost_is_no_loss() {
    let mut cluster = Cluster::start(1).await;
    let client = Client::builder()
        .servers(cluster.addresses())
        .session_timeout(Duration::from_secs(30))
        .operation_timeout(Duration::from_millis(300));
    let client = client.connect().await.unwrap();
    let hold = soon(mutex(&client).lock()).await.unwrap();
    // The release is asked, and asked again, while the server does not answer.
    cluster.pause(1);
    let releasing = tokio::spawn(hold.release());
    for _ in 0..2 {
        let unanswered = client.sync().await.unwrap_err();
        assert!(matches!(unanswered, conclave_client::Error::Timeout { .. }), "{unanswered}");
    }
    cluster.resume(1);
    soon(releasing).await.unwrap().unwrap();
    assert_eq!(nodes(&cluster.client().await).await, 0);
}

#[tokio::test]
async fn a_word_by_hand_is_no_release() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let hold = soon(mutex(&client).lock()).await.unwrap();
    let mut next = mutex(&client);
    let mut next = pin!(next.lock());
    assert!(waits(&client, &mut next).await);
    client.set(hold.path(), "released").await.unwrap();
    assert!(waits(&client, &mut next).await, "it is held");
    hold.release().await.unwrap();
    soon(next).await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_guard_says_which_condition_failed() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let hold = soon(mutex(&client).lock()).await.unwrap();
    client.create("/data", "0").await.unwrap();
    let stale = Token::new(1).zxid();
    let own = || client.multi().set("/data", "1", None).guard("/data", stale);
    for multi in [own(), own().when("/data", Test::Exists)] {
        let error = hold.guard(multi).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::ConditionFailed), "{error}");
    }
    let error = hold.guard(own()).await.unwrap_err();
    assert!(error.to_string().starts_with("operation 1 of a multi, guard /data"), "{error}");
    hold.confirm().await.unwrap();

    let lease = Lease::new(&client, "/lease", Duration::from_secs(3600)).unwrap();
    let lease = lease.acquire("").await.unwrap().unwrap();
    let error = lease.guard(own()).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::ConditionFailed), "{error}");
    // Who does not hold it any more is told that first.
    client.delete(hold.path()).await.unwrap();
    let error = hold.guard(own()).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error}");
}
