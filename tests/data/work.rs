//! Queues, counters, members and service discovery.

use std::time::{Duration, SystemTime};

use conclave_client::recipes::counter::{Counter, IdBlocks, SharedValue};
use conclave_client::recipes::discovery::{Discovery, DownPolicy, Instance, Strategy};
use conclave_client::recipes::members::{Group, KeptNode, MemberChange};
use conclave_client::recipes::names::Names;
use conclave_client::recipes::queue::{Push, Queue};
use conclave_client::recipes::{Error, Loss};
use tokio::time::timeout;

use crate::chaos::Wire;
use crate::harness::{Cluster, DEADLINE, eventually};

#[tokio::test]
async fn a_counter_that_was_reset_by_another_can_be_added_to() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let counter = Counter::new(&client, "/counter").unwrap();
    counter.set(i64::MAX).await.unwrap();
    Counter::new(&client, "/counter").unwrap().set(0).await.unwrap();
    assert_eq!(counter.add(5).await.unwrap(), 5);
    counter.set(i64::MAX).await.unwrap();
    let error = counter.add(1).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
}

#[tokio::test]
async fn items_come_in_order_and_go_when_they_are_done() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let queue = Queue::new(&client, "/q/a").unwrap();
    let mut consumer = queue.consumer();
    assert!(consumer.try_next().await.unwrap().is_none());
    for text in ["one", "two", "three"] {
        queue.push(text).await.unwrap();
    }
    queue.push_with("first", Push::new()).await.unwrap();
    let first = consumer.next().await.unwrap();
    assert_eq!(first.data(), "one");
    let second = consumer.next().await.unwrap();
    assert_eq!(second.data(), "two");
    let token = first.token();
    drop(first);
    second.done().await.unwrap();
    // What was given back comes first, to whoever looks from the front.
    let again = queue.consumer().next().await.unwrap();
    assert!(again.data() == "one" && again.token() > token);
    again.done().await.unwrap();
    assert_eq!(queue.len().await.unwrap(), 2);

    let queue = Queue::new(&client, "/q/priority").unwrap();
    for (text, number) in [("late", 9), ("early", 1), ("late too", 9)] {
        queue.push_with(text, Push::new().priority(number)).await.unwrap();
    }
    let mut consumer = queue.consumer();
    for expected in ["early", "late", "late too"] {
        let item = consumer.next().await.unwrap();
        assert_eq!(item.data(), expected);
        item.done().await.unwrap();
    }
    assert!(queue.is_empty().await.unwrap());
    assert!(matches!(Queue::new(&client, "/"), Err(Error::Config(_))));
    let slash = queue.push_with("x", Push::new().id("a/b")).await;
    assert!(matches!(slash, Err(Error::Name { .. })));
}

#[tokio::test]
async fn items_where_a_consumer_does_not_look_are_told_of() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    for (path, pushed, looked) in [("/a", 1, 4), ("/b", 2, 1)] {
        Queue::sharded(&client, path, pushed).unwrap().push("x").await.unwrap();
        let mut consumer = Queue::sharded(&client, path, looked).unwrap().consumer();
        let error = timeout(DEADLINE, consumer.next()).await.unwrap().unwrap_err();
        assert!(matches!(&error, Error::Config(why) if why.contains("shards")), "{error}");
        let mut right = Queue::sharded(&client, path, pushed).unwrap().consumer();
        right.next().await.unwrap().done().await.unwrap();
        // Nothing is left there, and so nothing is wrong any more.
        Queue::sharded(&client, path, looked).unwrap().push("y").await.unwrap();
        assert_eq!(consumer.next().await.unwrap().data(), "y");
    }
}

#[tokio::test]
async fn items_are_handed_out_when_their_locks_were_deleted_by_hand() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let queue = Queue::new(&client, "/q").unwrap();
    for item in ["a", "b", "c"] {
        queue.push(item).await.unwrap();
    }
    let mut consumer = queue.consumer();
    // All of them were seen, and the first was taken.
    let first = consumer.next().await.unwrap();
    client.delete_recursive("/q/taken").await.unwrap();
    let mut again = Vec::new();
    for _ in 0..3 {
        again.push(timeout(DEADLINE, consumer.next()).await.unwrap().unwrap());
    }
    let order: Vec<_> = again.iter().map(|item| item.data().clone()).collect();
    assert_eq!(order, ["b", "c", "a"]);
    let lost = first.done().await.unwrap_err();
    assert!(matches!(lost, Error::Lost { loss: Loss::Deleted, .. }), "{lost}");
}

#[allow(clippy::disallowed_methods, reason = "a delayed queue goes by the clock of its users")]
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

#[tokio::test]
async fn delayed_items_wait_and_ids_are_in_the_queue_once() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let queue = Queue::sharded(&client, "/q", 4).unwrap();
    let due = now_ms() + 700;
    assert!(queue.push_with("b", Push::new().not_before(due).id("b")).await.unwrap());
    assert!(!queue.push_with("b2", Push::new().id("b")).await.unwrap());
    queue.push_with("a", Push::new().not_before(1)).await.unwrap();
    let mut consumer = queue.consumer().delayed(now_ms);
    let item = consumer.next().await.unwrap();
    assert_eq!((item.data().as_ref(), item.id()), (b"a".as_slice(), None));
    item.done().await.unwrap();
    let item = consumer.next().await.unwrap();
    assert!(now_ms() >= due && item.id() == Some("b"));
    item.done().await.unwrap();

    // Taken back, an item is not handed out, nor is it mistaken for the next one of its id.
    assert!(queue.push_with("c", Push::new().id("c")).await.unwrap());
    assert!(queue.remove("c").await.unwrap() && !queue.remove("c").await.unwrap());
    assert!(queue.push_with("c2", Push::new().id("c")).await.unwrap());
    let mut consumer = queue.consumer();
    let item = consumer.next().await.unwrap();
    assert_eq!(item.data(), "c2");
    item.done().await.unwrap();
    assert!(consumer.try_next().await.unwrap().is_none());
    assert!(queue.is_empty().await.unwrap());
}

#[tokio::test]
async fn what_is_no_item_is_told_once_and_an_item_of_a_dead_session_goes_on() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let queue = Queue::new(&client, "/q").unwrap();
    queue.make().await.unwrap();
    client.create("/q/items/foreign", "").await.unwrap();
    client.create(format!("/q/items/i{:020}-{:010}", 0, 0), "\u{1}").await.unwrap();
    queue.push("good").await.unwrap();
    let mut consumer = queue.consumer();
    assert!(matches!(consumer.next().await, Err(Error::Foreign { .. })));
    assert!(matches!(consumer.next().await, Err(Error::Malformed { .. })));
    let wire = Wire::to(&cluster.addresses()).await;
    let doomed = wire.client(Duration::from_secs(1)).await;
    let item = Queue::new(&doomed, "/q").unwrap();
    let mut first = item.consumer();
    let taken = loop {
        if let Ok(item) = first.next().await {
            break item;
        }
    };
    assert!(consumer.try_next().await.unwrap().is_none());
    wire.cut();
    let again = timeout(DEADLINE, consumer.next()).await.unwrap().unwrap();
    assert_eq!(again.data(), "good");
    wire.mend();
    assert!(taken.done().await.unwrap_err().is_final());
    // A lock deleted by hand: whoever had it is told.
    client.delete(again.path().as_str().replace("items", "taken")).await.unwrap();
    let lost = again.done().await.unwrap_err();
    assert!(matches!(lost, Error::Lost { loss: Loss::Deleted, .. }), "{lost}");
    consumer.next().await.unwrap().done().await.unwrap();
}

#[tokio::test]
async fn a_number_that_is_none_or_does_not_fit_is_told() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let counter = Counter::new(&client, "/n").unwrap();
    assert_eq!(counter.add(i64::MAX).await.unwrap(), i64::MAX);
    assert!(matches!(counter.add(1).await, Err(Error::Invalid { .. })));
    assert_eq!(counter.compare_and_set(1, 2).await.unwrap(), i64::MAX);
    assert_eq!(counter.compare_and_set(i64::MAX, 2).await.unwrap(), i64::MAX);
    assert_eq!(counter.get().await.unwrap(), 2);
    client.set("/n", "two").await.unwrap();
    assert!(matches!(counter.add(1).await, Err(Error::Malformed { .. })));
    assert!(matches!(IdBlocks::new(&client, "/ids", 0), Err(Error::Config(_))));
    let value = SharedValue::new(&client, "/v/w").unwrap();
    let seen = value.get().await.unwrap();
    value.compare_and_set(&seen, "a").await.unwrap();
    assert!(matches!(value.compare_and_set(&seen, "b").await, Err(Error::Conflict { .. })));
}

#[tokio::test]
async fn members_come_back_when_deleted_and_leave_with_their_sessions() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let group = Group::new(&client, "/group").unwrap();
    let members = group.members().await.unwrap();
    let mut changes = members.changes().unwrap();
    let me = group.join("me", "here").await.unwrap();
    assert!(matches!(group.join("a/b", "").await, Err(Error::Name { .. })));
    let Some(Ok(MemberChange::Here { name, data })) = changes.next().await else { panic!() };
    assert_eq!((name.as_str(), data.as_ref()), ("me", b"here".as_slice()));
    client.delete("/group/me").await.unwrap();
    assert!(matches!(changes.next().await, Some(Ok(MemberChange::Left { .. }))));
    assert!(matches!(changes.next().await, Some(Ok(MemberChange::Here { .. }))));

    // A name is one session's; the next one waits for it.
    let other = cluster.client().await;
    let second = Group::new(&other, "/group").unwrap();
    assert!(matches!(second.join("me", "").await, Err(Error::Taken { .. })));
    let waiting = tokio::spawn(second.joining("me", "two").wait(DEADLINE).create());
    me.leave().await.unwrap();
    let me = waiting.await.unwrap().unwrap();
    me.set("new").await.unwrap();
    let _party = [second.enter("").await.unwrap(), second.enter("").await.unwrap()];
    members.sync().await.unwrap();
    assert_eq!(
        (members.names().unwrap().len(), &members.all().unwrap()["me"][..]),
        (3, &b"new"[..])
    );
    other.close().await.unwrap();
    assert!(me.ended().await.is_final() && me.set("").await.unwrap_err().is_final());
    members.sync().await.unwrap();
    assert!(members.names().unwrap().is_empty());

    let names = Names::new(&client, "/names").unwrap();
    let bound = names.bind("a", "1").await.unwrap();
    assert!(matches!(names.set("a", "2").await, Err(Error::Taken { .. })));
    assert_eq!(names.resolve("a").await.unwrap().unwrap(), "1");
    bound.leave().await.unwrap();
    names.set("a", "2").await.unwrap();
    names.set("a", "3").await.unwrap();
    assert_eq!(names.resolve("a").await.unwrap().unwrap(), "3");
    assert!(names.remove("a").await.unwrap() && !names.remove("a").await.unwrap());

    let ttl = KeptNode::ttl(&client, "/ttl/a", "", Duration::from_secs(1)).create().await.unwrap();
    let before = client.exists("/ttl/a").await.unwrap().unwrap();
    eventually("it is refreshed", async || {
        let now = client.exists("/ttl/a").await.unwrap().unwrap();
        (now.czxid == before.czxid && now.version > before.version + 3).then_some(())
    })
    .await;
    ttl.leave().await.unwrap();
}

#[tokio::test]
async fn who_waits_for_an_instance_has_one_that_answers_again() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let discovery = Discovery::new(&client, "/services").unwrap();
    let _a = discovery.register("db", &Instance::new("a", "host-a:1")).await.unwrap();
    let policy = DownPolicy { failures: 1, pause: Duration::from_secs(3600) };
    let provider = discovery.provider("db", Strategy::Random).await.unwrap().down_policy(policy);
    provider.failed("a");
    let answers = async {
        // After the other has looked in vain.
        client.sync().await.unwrap();
        provider.succeeded("a", Duration::from_millis(1));
    };
    let (waited, ()) = tokio::join!(provider.wait(DEADLINE), answers);
    assert_eq!(waited.unwrap().id, "a");
}

#[tokio::test]
async fn an_instance_is_chosen_while_it_is_up() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let discovery = Discovery::new(&client, "/services").unwrap();
    let provider = discovery.provider("db", Strategy::RoundRobin).await.unwrap();
    assert!(matches!(provider.choose(), Err(Error::Empty { .. })));
    let instance = Instance::new("a", "host-a:1").meta("zone", "1");
    let (waited, a) = tokio::join!(provider.wait(DEADLINE), discovery.register("db", &instance));
    assert_eq!(waited.unwrap().id, "a");
    let _b = discovery.register("db", &Instance::new("b", "host-b:1")).await.unwrap();
    client.create("/services/db/foreign", "not an instance").await.unwrap();
    provider.cache().flush().await.unwrap();
    let chosen: Vec<_> = (0..4).map(|_| provider.choose().unwrap().id).collect();
    assert_eq!(chosen, ["b", "a", "b", "a"]);
    assert_eq!(provider.malformed().unwrap().len(), 1);

    let policy = DownPolicy { failures: 2, pause: Duration::from_millis(300) };
    let provider =
        discovery.provider("db", Strategy::LeastLatency).await.unwrap().down_policy(policy);
    provider.succeeded("a", Duration::from_millis(1));
    provider.succeeded("b", Duration::from_millis(9));
    assert_eq!(provider.choose().unwrap().id, "a");
    for id in ["a", "a", "b", "b"] {
        provider.failed(id);
    }
    assert!(matches!(provider.choose(), Err(Error::Empty { .. })));
    assert!(provider.wait(DEADLINE).await.is_ok());
    a.unwrap().leave().await.unwrap();
    provider.cache().sync().await.unwrap();
    let sticky = discovery.provider("db", Strategy::Sticky).await.unwrap();
    assert_eq!(sticky.choose().unwrap().id, "b");
    assert_eq!(discovery.services().await.unwrap(), ["db"]);
}
