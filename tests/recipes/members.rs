//! What kept nodes promise where others want the same place.

use std::time::Duration;

use conclave_client::recipes::Error;
use conclave_client::recipes::members::{Group, KeptNode, MemberChange};
use conclave_client::{Acl, Client, CreateMode, Lifetime, SessionId};

use crate::chaos::Wire;
use crate::harness::{Cluster, DEADLINE, eventually};
use crate::soon;

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn who_joins_again_has_the_new_data() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let group = Group::new(&client, "/group").unwrap();
    let _first = group.join("a", "old").await.unwrap();
    let _second = group.join("a", "new").await.unwrap();
    assert_eq!(client.get("/group/a").await.unwrap().text(), Ok("new"));
}

#[tokio::test]
async fn who_came_and_went_while_nobody_looked_is_not_told_of() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let group = Group::new(&client, "/group").unwrap();
    let _first = group.join("a", "1").await.unwrap();
    let wire = Wire::to(&cluster.addresses()).await;
    let far = wire.client(MINUTE).await;
    let members = Group::new(&far, "/group").unwrap().members().await.unwrap();
    let (_, mut changes) = members.follow().unwrap();
    wire.cut();
    group.join("b", "2").await.unwrap().leave().await.unwrap();
    let _last = group.join("c", "3").await.unwrap();
    wire.mend();
    let here = MemberChange::Here { name: "c".into(), data: "3".into() };
    assert_eq!(soon(changes.next()).await.unwrap(), Ok(here));
}

#[tokio::test]
async fn who_left_while_no_server_answered_is_gone_when_one_does() {
    let cluster = Cluster::start(1).await;
    let wire = Wire::to(&cluster.addresses()).await;
    let builder = Client::builder().servers(&wire.addresses).connect_timeout(DEADLINE);
    let builder = builder.operation_timeout(Duration::from_millis(100)).session_timeout(MINUTE);
    let client = builder.connect().await.unwrap();
    let kept = KeptNode::ephemeral(&client, "/kept", "").create().await.unwrap();
    wire.cut();
    let error = soon(kept.leave()).await.unwrap_err();
    assert!(matches!(error, Error::Client(conclave_client::Error::Timeout { .. })), "{error}");
    wire.mend();
    let other = cluster.client().await;
    eventually("it is gone", async || other.exists("/kept").await.unwrap().is_none().then_some(()))
        .await;
    client.close().await.unwrap();
}

#[tokio::test]
async fn a_member_that_is_edited_by_hand_says_again_what_it_is() {
    let cluster = Cluster::start(1).await;
    let (client, other) = (cluster.client().await, cluster.client().await);
    let group = Group::new(&client, "/group").unwrap();
    let me = group.join("me", "here").await.unwrap();
    let text = async || other.get("/group/me").await.unwrap().text().unwrap().to_owned();
    for said in ["here", "there"] {
        me.set(said).await.unwrap();
        other.set("/group/me", "somewhere else").await.unwrap();
        eventually("it is as it was", async || (text().await == said).then_some(())).await;
    }
    me.leave().await.unwrap();
}

#[tokio::test]
async fn a_node_with_a_time_to_live_is_anothers_who_has_made_it_anew() {
    let cluster = Cluster::start(1).await;
    let (client, other) = (cluster.client().await, cluster.client().await);
    let kept = KeptNode::ttl(&client, "/kept", "mine", MINUTE).create().await.unwrap();
    // As if its keeper had been paused for longer than its time.
    let mode = CreateMode { lifetime: Lifetime::Ttl(60_000), ..CreateMode::default() };
    let again = other.multi().delete("/kept", None);
    again.create_with("/kept", "another's", mode, Acl::open()).await.unwrap();
    let Error::Ended { why, .. } = soon(kept.ended()).await else { panic!("it is not kept") };
    assert!(matches!(*why, Error::Taken { owner: SessionId::NONE, .. }), "{why}");
    assert!(kept.set("mine again").await.is_err());
    assert!(kept.leave().await.is_err());
    assert_eq!(other.get("/kept").await.unwrap().text(), Ok("another's"));
    // After a restart it is the same node that is kept on.
    let after = KeptNode::ttl(&other, "/kept", "restarted", MINUTE).create().await.unwrap();
    after.set("restarted twice").await.unwrap();
    assert_eq!(other.get("/kept").await.unwrap().text(), Ok("restarted twice"));
    after.leave().await.unwrap();
    assert!(other.exists("/kept").await.unwrap().is_none());
}
