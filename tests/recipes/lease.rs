//! What leases promise.

use std::time::Duration;

use conclave_client::recipes::members::KeptNode;
use conclave_client::recipes::{Error, Lease, MultiLease, Mutex};

use crate::harness::{Cluster, eventually};
use crate::soon;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn one_has_it_whatever_becomes_of_its_session() {
    let cluster = Cluster::start(1).await;
    let (client, other) = (cluster.client().await, cluster.client().await);
    let lease = Lease::new(&client, "/leases/a", HOUR).unwrap();
    let elsewhere = Lease::new(&other, "/leases/a", HOUR).unwrap();
    let held = lease.acquire("host 1").await.unwrap().unwrap();
    assert!(held.is_held());
    client.close().await.unwrap();
    assert!(elsewhere.acquire("host 2").await.unwrap().is_none());
    let (token, holder) = elsewhere.holder().await.unwrap().unwrap();
    assert_eq!((token, &holder[..]), (held.token(), &b"host 1"[..]));
    other.create("/data", "").await.unwrap();
    let multi = other.multi().set("/data", "1", None);
    multi.guard(held.path(), held.token().zxid()).await.unwrap();
}

#[tokio::test]
async fn for_ever_is_a_time_like_any_other() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let lease = Lease::new(&client, "/leases/a", Duration::MAX).unwrap();
    let mut held = lease.acquire("").await.unwrap().unwrap();
    held.renew().await.unwrap();
    assert!(held.is_held());
    KeptNode::ttl(&client, "/kept", "", Duration::MAX).create().await.unwrap();
    let mut mutex = Mutex::new(&client, "/locks/a").unwrap().lock_delay(Duration::MAX);
    soon(mutex.lock()).await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn it_ends_with_its_time_or_when_it_is_released() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let lease = Lease::new(&client, "/leases/a", HOUR).unwrap();
    let mut held = lease.acquire("").await.unwrap().unwrap();
    held.renew().await.unwrap();
    let token = held.token();
    let copy = held.clone();
    held.release().await.unwrap();
    let error = copy.release().await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error}");

    let short = Lease::new(&client, "/leases/a", Duration::from_millis(50)).unwrap();
    let mut held = short.acquire("").await.unwrap().unwrap();
    assert!(held.token() > token);
    soon(held.lost()).await;
    assert!(!held.is_held());
    let next = eventually("its time is over", async || lease.acquire("").await.unwrap()).await;
    assert!(next.token() > held.token());
    let error = held.renew().await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    assert!(Lease::new(&client, "/leases/b", Duration::ZERO).is_err());
}

#[tokio::test]
async fn so_many_at_once() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let leases = MultiLease::new(&client, "/leases/many", 2, HOUR).unwrap();
    let one = leases.acquire("").await.unwrap().unwrap();
    let _two = leases.acquire("").await.unwrap().unwrap();
    assert!(leases.acquire("").await.unwrap().is_none());
    one.release().await.unwrap();
    assert!(leases.acquire("").await.unwrap().is_some());
    client.create("/leases/many/readme", "").await.unwrap();
    let error = leases.acquire("").await.unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }), "{error}");
}
