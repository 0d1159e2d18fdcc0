//! Three real servers on loopback, and what happens to machines: they die, freeze and come back.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and says what the servers said"
)]

mod harness;
#[path = "../common/ports.rs"]
mod ports;

use std::process::{Command, Stdio};

use conclave_client::{Client, EventKind, Stat, State, Watch, WatchItem, WatchKind};
use harness::{Cluster, DEADLINE, Load, eventually};
use tokio::time::timeout;

/// Clients that write while something happens.
const CLIENTS: usize = 8;
/// Writes that each client must get through before, between and after.
const WRITES: u64 = 50;

/// A client with a session, an ephemeral node and a watch, all of which must survive.
struct Witness {
    client: Client,
    ephemeral: Stat,
    watch: Watch,
    changes: u64,
}

impl Witness {
    async fn new(cluster: &Cluster) -> Witness {
        let client = cluster.client().await;
        client.create("/watched", "0").await.unwrap();
        let watch = client.watch("/watched", WatchKind::Persistent).with_value().await.unwrap();
        let ephemeral = client.create("/member", "here").ephemeral().await.unwrap().stat;
        Witness { client, ephemeral, watch, changes: 0 }
    }

    /// The session goes on with its ephemeral node, and the watch tells each change once, in order.
    async fn check(&mut self, cluster: &Cluster) {
        let other = cluster.client().await;
        for _ in 0..3 {
            self.changes += 1;
            other.set("/watched", self.changes.to_string()).await.unwrap();
            let told = timeout(DEADLINE, self.watch.next()).await.expect("the watch fires");
            let told = told.expect("the watch goes on").unwrap();
            let WatchItem::Event { value, .. } = told else { panic!("{told:?}") };
            assert_eq!(value.as_deref(), Some(self.changes.to_string().as_bytes()));
        }
        let stat = other.exists("/member").linearizable().await.unwrap();
        assert_eq!(stat, Some(self.ephemeral), "the very same ephemeral node");
        assert!(self.client.state().is_connected(), "{:?}", self.client.state());
        other.close().await.unwrap();
    }
}

#[tokio::test]
async fn nothing_is_lost_when_the_leader_is_killed() {
    let mut cluster = Cluster::start(3).await;
    let mut witness = Witness::new(&cluster).await;
    let load = Load::start(&cluster, CLIENTS).await;
    for _ in 0..3 {
        load.advance(WRITES).await;
        let leader = cluster.leader().await;
        cluster.kill(leader);
        load.advance(WRITES).await;
        witness.check(&cluster).await;
        cluster.launch(leader);
        cluster.wait_until_serving().await;
    }
    load.finish(&witness.client).await;
    cluster.wait_until_equal().await;
}

#[tokio::test]
async fn within_tls_nothing_is_lost_when_the_leader_is_killed_and_certificates_are_renewed() {
    let mut cluster = Cluster::start_secure(3).await;
    let mut witness = Witness::new(&cluster).await;
    let load = Load::start(&cluster, CLIENTS).await;
    for _ in 0..2 {
        load.advance(WRITES).await;
        let leader = cluster.leader().await;
        cluster.kill(leader);
        load.advance(WRITES).await;
        witness.check(&cluster).await;
        cluster.launch(leader);
        cluster.wait_until_serving().await;
        cluster.renew_certificates().await;
    }
    load.finish(&witness.client).await;
    cluster.wait_until_equal().await;
}

#[tokio::test]
async fn a_killed_follower_comes_back_under_load() {
    let mut cluster = Cluster::start(3).await;
    let mut witness = Witness::new(&cluster).await;
    let load = Load::start(&cluster, CLIENTS).await;
    for _ in 0..3 {
        load.advance(WRITES).await;
        let follower = cluster.follower().await;
        cluster.kill(follower);
        load.advance(WRITES).await;
        witness.check(&cluster).await;
        cluster.launch(follower);
        load.advance(WRITES).await;
        cluster.wait_until_serving().await;
    }
    load.finish(&witness.client).await;
    cluster.wait_until_equal().await;
}

#[tokio::test]
async fn everything_is_there_after_all_servers_were_killed() {
    let mut cluster = Cluster::start(3).await;
    let mut witness = Witness::new(&cluster).await;
    let load = Load::start(&cluster, CLIENTS).await;
    load.advance(WRITES).await;
    for id in cluster.ids() {
        cluster.kill(id);
    }
    for id in cluster.ids() {
        cluster.launch(id);
    }
    load.advance(WRITES).await;
    witness.check(&cluster).await;
    load.finish(&witness.client).await;
    cluster.wait_until_equal().await;
}

#[tokio::test]
async fn servers_restart_one_after_the_other() {
    let mut cluster = Cluster::start(3).await;
    let mut witness = Witness::new(&cluster).await;
    let load = Load::start(&cluster, CLIENTS).await;
    for id in cluster.ids() {
        load.advance(WRITES).await;
        cluster.stop(id).await;
        load.advance(WRITES).await;
        cluster.launch(id);
        cluster.wait_until_serving().await;
        witness.check(&cluster).await;
    }
    load.finish(&witness.client).await;
    cluster.wait_until_equal().await;
}

#[tokio::test]
async fn an_empty_server_joins_while_writes_go_on() {
    let mut cluster = Cluster::start(3).await;
    let mut witness = Witness::new(&cluster).await;
    let follower = cluster.follower().await;
    cluster.kill(follower);
    cluster.wipe(follower);
    // More than the leader keeps to bring a follower up to date entry by entry.
    let value = vec![b'x'; 1 << 20];
    let bytes_needed = conclave::limits::DIFF_WINDOW_BYTES + conclave::limits::UNCOMMITTED_BYTES;
    for _ in 0..bytes_needed / value.len() + 1 {
        witness.client.create("/large-", value.clone()).sequential().await.unwrap();
    }
    let load = Load::start(&cluster, CLIENTS).await;
    load.advance(WRITES).await;
    cluster.launch(follower);
    load.advance(WRITES).await;
    cluster.wait_until_serving().await;
    assert!(
        cluster.metric(follower, "conclave_snapshots_received_total") > 0.0,
        "it came by a snapshot: {}",
        cluster.log(follower)
    );
    load.advance(WRITES).await;
    witness.check(&cluster).await;
    load.finish(&witness.client).await;
    cluster.wait_until_equal().await;
}

#[tokio::test]
async fn a_frozen_leader_is_replaced_and_follows_when_it_wakes() {
    let mut cluster = Cluster::start(3).await;
    let mut witness = Witness::new(&cluster).await;
    let load = Load::start(&cluster, CLIENTS).await;
    load.advance(WRITES).await;
    let frozen = cluster.leader().await;
    cluster.pause(frozen);
    load.advance(WRITES).await;
    let next = eventually("another leader", async || {
        let ids = cluster.ids().into_iter().filter(|&id| id != frozen);
        ids.into_iter().find(|&id| cluster.status(id).is_some_and(|s| s["role"] == "leading"))
    })
    .await;
    witness.check(&cluster).await;
    cluster.resume(frozen);
    eventually("the old leader follows", async || {
        let status = cluster.status(frozen)?;
        (status["role"] == "following" && status["leader"] == next).then_some(())
    })
    .await;
    load.advance(WRITES).await;
    witness.check(&cluster).await;
    load.finish(&witness.client).await;
    cluster.wait_until_equal().await;
}

#[tokio::test]
async fn an_ephemeral_node_goes_when_its_client_does() {
    let cluster = Cluster::start(3).await;
    let observer = cluster.client().await;
    let mut gone = observer.watch("/member", WatchKind::Persistent).await.unwrap();
    let mut mortal = Command::new(env!("CARGO_BIN_EXE_conclave"))
        .args(["create", "/member", "--ephemeral", "--session-timeout", "2"])
        .args(["--servers", &cluster.addresses()])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let told = timeout(DEADLINE, gone.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(told, WatchItem::Event { kind: EventKind::Created, .. }), "{told:?}");
    mortal.kill().unwrap();
    mortal.wait().unwrap();
    let told = timeout(DEADLINE, gone.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(told, WatchItem::Event { kind: EventKind::Deleted, .. }), "{told:?}");
    assert_eq!(observer.exists("/member").linearizable().await.unwrap(), None);
}

#[tokio::test]
async fn a_client_of_a_dead_server_goes_to_another() {
    let mut cluster = Cluster::start(3).await;
    let follower = cluster.follower().await;
    let servers = format!("{},{}", cluster.address(follower), cluster.addresses());
    let client = cluster.connect(&servers).await;
    client.create("/mine", "").ephemeral().await.unwrap();
    let server = client.server().expect("connected").get();
    let mut states = client.states();
    assert_eq!(states.next().await, Some(State::Connected));
    cluster.kill(server);
    assert_eq!(timeout(DEADLINE, states.next()).await.unwrap(), Some(State::Suspended));
    assert_eq!(timeout(DEADLINE, states.next()).await.unwrap(), Some(State::Resumed));
    assert!(client.exists("/mine").await.unwrap().is_some());
}
