//! Where recipes keep their nodes: below nodes that are closed, and below a root of the client's own.

use conclave_client::recipes::{Mutex, Semaphore};
use conclave_client::{Acl, Client, ErrorCode, Perms};

use crate::harness::{Cluster, eventually};
use crate::soon;

/// Everybody may do this.
fn anyone(perms: Perms) -> Vec<Acl> {
    Acl::open().iter().map(|acl| Acl { perms, ..acl.clone() }).collect()
}

#[tokio::test]
async fn the_nodes_above_may_be_closed() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    client.create("/locks", "").await.unwrap();
    client.set_acl("/", anyone(Perms::READ)).await.unwrap();
    let mut mutex = Mutex::new(&client, "/locks/a").unwrap();
    for _ in 0..2 {
        soon(mutex.lock()).await.unwrap().release().await.unwrap();
        eventually("the directory has gone", async || {
            client.exists("/locks/a").await.unwrap().is_none().then_some(())
        })
        .await;
    }
    let refused = Mutex::new(&client, "/other/a").unwrap().lock().await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::NoAuth));
}

#[tokio::test]
async fn who_makes_the_first_lock_does_not_own_what_is_above() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let own = anyone(Perms(Perms::ALL.0 & !Perms::ADMIN.0));
    let acl = async |path: &str| client.get_acl(path).await.unwrap().0;
    let mut mutex = Mutex::new(&client, "/locks/deep/a").unwrap().acl(own.clone());
    let hold = soon(mutex.lock()).await.unwrap();
    assert_eq!(acl("/locks").await, *Acl::open());
    assert_eq!(acl("/locks/deep").await, *Acl::open());
    assert_eq!(acl("/locks/deep/a").await, own);
    assert_eq!(acl(hold.path().as_str()).await, own);
    // A directory within the recipe's own is the recipe's, too.
    let permits = Semaphore::new(&client, "/limits/a", 1).unwrap().acl(own.clone());
    let _permit = soon(permits.acquire()).await.unwrap();
    assert_eq!(acl("/limits").await, *Acl::open());
    for path in ["/limits/a", "/limits/a/queue", "/limits/a/permits"] {
        assert_eq!(acl(path).await, own, "{path}");
    }
}

#[tokio::test]
async fn the_clients_own_root_is_made() {
    let cluster = Cluster::start(1).await;
    let builder = Client::builder().servers(cluster.addresses()).chroot("/app");
    let client = builder.connect().await.unwrap();
    let hold = soon(Mutex::new(&client, "/locks/a").unwrap().lock()).await.unwrap();
    let servers_path = format!("/app{}", hold.path());
    assert!(cluster.client().await.exists(servers_path).await.unwrap().is_some());
    hold.release().await.unwrap();
}
