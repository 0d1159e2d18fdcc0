//! What recipes do when a server does what real ones seldom do.

use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use conclave_client::proto::request::Entry;
use conclave_client::proto::{Op, ServerMessage, WatchId, Zxid};
use conclave_client::recipes::cache::Cache;
use conclave_client::recipes::config::{Follower, LiveItem, Place, Registry};
use conclave_client::recipes::queue::Queue;
use conclave_client::recipes::{Election, Error, Hold, Loss, Mutex};
use conclave_client::{Client, ErrorCode, EventKind, Reply, Stat};

use crate::fake::{Asked, Fake, LIMITS, Peer, connected, connected_by, event, path, soon, z};

const LOCK: &str = "/locks/a";
const NODE: &str = "/locks/a/lock-0000000000";
const CREATED_BY: Zxid = Zxid::from_bits(5);

/// A client, the server's end of its connection, and a lock that it was just given.
async fn locked(fake: &Fake) -> (Client, Peer, Hold) {
    let builder = Client::builder().operation_timeout(Duration::from_secs(3600));
    let (client, mut peer) = connected_by(fake, builder, LIMITS, 2_000).await;
    let mut mutex = Mutex::new(&client, LOCK).unwrap();
    let (hold, ()) = tokio::join!(soon(mutex.lock()), granting(&mut peer, &[NODE]));
    (client, peer, hold.unwrap())
}

/// Gives the last of these places in the lock's line, in which there are these.
async fn granting(peer: &mut Peer, nodes: &[&str]) {
    let create = peer.request().await;
    assert!(matches!(create.op, Op::Create { .. }), "{create:?}");
    let stat = Stat { czxid: CREATED_BY, ..Stat::default() };
    let mine = path(nodes.last().unwrap());
    peer.answer(create.xid, 5, Ok(Reply::Created { path: mine, stat })).await;
    let list = peer.request().await;
    assert!(matches!(list.op, Op::Children { .. }), "{list:?}");
    let entry = |node: &&str| Entry { name: path(node).name().into(), stat: None, data: None };
    let entries = nodes.iter().map(entry).collect();
    let stat = Stat::default();
    peer.answer(list.xid, 5, Ok(Reply::Children { entries, more: false, stat })).await;
}

/// The request that watches over the lock's node, and the watch's id.
async fn watching(peer: &mut Peer) -> (u64, u64) {
    let Asked { xid, op, .. } = soon(peer.request()).await;
    let Op::Get { watch: Some(id), path: watched } = op else { panic!("a watch, not {op:?}") };
    assert_eq!(watched, path(NODE));
    (xid, id.0)
}

#[tokio::test]
async fn a_lock_is_suspected_even_if_the_connection_breaks_before_it_is_watched() {
    let fake = Fake::start().await;
    let (client, mut peer, hold) = locked(&fake).await;
    watching(&mut peer).await;
    drop((peer, fake));
    assert_eq!(soon(hold.lost()).await, Loss::Suspected);
    assert!(!hold.is_held());
    drop(client);
}

#[tokio::test]
async fn a_lock_whose_watch_is_refused_for_now_is_watched_later() {
    let fake = Fake::start().await;
    let (_client, mut peer, hold) = locked(&fake).await;
    let (xid, _) = watching(&mut peer).await;
    peer.fault(xid, 5, ErrorCode::Throttled).await;
    let (xid, watch) = watching(&mut peer).await;
    assert!(hold.is_held());
    let stat = Stat { czxid: CREATED_BY, ..Stat::default() };
    peer.answer(xid, 6, Ok(Reply::Data { data: None, stat })).await;
    peer.tell(watch, event(7, NODE, EventKind::Deleted)).await;
    assert_eq!(soon(hold.lost()).await, Loss::Deleted);
    assert!(!hold.is_held());
    assert_eq!(z(5), hold.token().zxid());
}

#[tokio::test]
async fn a_lock_whose_watch_is_refused_for_good_is_lost_and_says_why() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let mut mutex = Mutex::new(&client, LOCK).unwrap();
    let (hold, ()) = tokio::join!(soon(mutex.lock()), granting(&mut peer, &[NODE]));
    let hold = hold.unwrap();
    let (xid, _) = watching(&mut peer).await;
    peer.fault(xid, 5, ErrorCode::BadArguments).await;
    let why = Loss::Unwatched(Some(ErrorCode::BadArguments));
    assert_eq!(soon(hold.lost()).await, why);
    assert!(!hold.is_held());
    // The same handle does not wait for itself, and what it holds can be given back.
    let again = soon(mutex.lock()).await;
    assert!(matches!(&again, Err(Error::Lost { loss, .. }) if *loss == why), "{again:?}");
    let removing = async {
        let remove = peer.request().await;
        assert!(matches!(remove.op, Op::Multi { .. }), "{remove:?}");
        peer.answer(remove.xid, 6, Ok(Reply::Multi { held: true, replies: Vec::new() })).await;
    };
    let (released, ()) = tokio::join!(soon(hold.release()), removing);
    released.unwrap();
}

#[tokio::test]
async fn who_waits_and_whose_watch_is_refused_for_good_is_told_why() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let mut mutex = Mutex::new(&client, LOCK).unwrap();
    let serving = async {
        granting(&mut peer, &["/locks/a/lock-0000000000", "/locks/a/lock-0000000001"]).await;
        for _ in 0..2 {
            let asked = peer.request().await;
            if let Op::Get { watch: Some(_), .. } = asked.op {
                peer.fault(asked.xid, 5, ErrorCode::BadArguments).await;
            } else {
                assert!(matches!(asked.op, Op::Watch { .. }), "{asked:?}");
                peer.answer(asked.xid, 5, Ok(Reply::Done)).await;
            }
        }
    };
    let (outcome, ()) = tokio::join!(soon(mutex.lock()), serving);
    let error = outcome.unwrap_err();
    let why = Loss::Unwatched(Some(ErrorCode::BadArguments));
    assert!(matches!(&error, Error::Lost { loss, .. } if *loss == why), "{error}");
}

#[tokio::test]
async fn a_lock_that_its_holder_may_not_read_ends_with_the_session() {
    let fake = Fake::start().await;
    let (client, mut peer, hold) = locked(&fake).await;
    let (xid, _) = watching(&mut peer).await;
    peer.fault(xid, 5, ErrorCode::NoAuth).await;
    let expiring = async {
        let asked = peer.request().await;
        peer.fault(asked.xid, 6, ErrorCode::SessionExpired).await;
    };
    let (asked, ()) = tokio::join!(soon(client.get("/a").into_future()), expiring);
    asked.unwrap_err();
    let loss = soon(async {
        loop {
            let loss = hold.lost().await;
            if loss != Loss::Suspected {
                break loss;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(loss.await, Loss::Expired);
}

#[tokio::test]
async fn a_latch_stands_again_after_what_passes() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let _latch = Election::new(&client, "/election").unwrap().latch("me");
    for refused_with in [ErrorCode::Throttled, ErrorCode::OutcomeUnknown] {
        let standing = loop {
            let asked = soon(peer.request()).await;
            if let Op::Create { .. } = asked.op {
                break asked;
            }
            peer.fault(asked.xid, 5, ErrorCode::NoNode).await;
        };
        peer.fault(standing.xid, 5, refused_with).await;
    }
}

#[tokio::test]
async fn an_item_is_given_back_however_often_that_is_refused() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let mut consumer = Queue::new(&client, "/q").unwrap().consumer();
    let serving = async {
        let name = "i00000000000000000000-0000000000".to_owned();
        let item = Entry { name, stat: None, data: None };
        for entries in [vec![item], vec![]] {
            let asked = peer.request().await;
            assert!(matches!(asked.op, Op::Children { .. }), "{asked:?}");
            let stat = Stat::default();
            let page = Reply::Children { entries, more: false, stat };
            peer.answer(asked.xid, 5, Ok(page)).await;
        }
        let take = peer.request().await;
        let lock = path("/q/taken/i00000000000000000000-0000000000");
        let replies = vec![Reply::Created { path: lock, stat: Stat::default() }];
        peer.answer(take.xid, 6, Ok(Reply::Multi { held: true, replies })).await;
        let read = peer.request().await;
        assert!(matches!(read.op, Op::Get { .. }), "{read:?}");
        let node = Reply::Data { data: Some(vec![0, 0].into()), stat: Stat::default() };
        peer.answer(read.xid, 6, Ok(node)).await;
    };
    let (item, ()) = tokio::join!(soon(consumer.next()), serving);
    drop(item.unwrap());
    let mut given_back = Vec::new();
    for refused_with in [ErrorCode::Throttled, ErrorCode::OutcomeUnknown] {
        let asked = soon(peer.request()).await;
        peer.fault(asked.xid, 7, refused_with).await;
        given_back.push(asked.op);
    }
    let asked = soon(peer.request()).await;
    assert!(matches!(&asked.op, Op::Multi { then, .. } if matches!(then[..], [Op::Delete { .. }])));
    assert!(given_back.iter().all(|before| *before == asked.op), "{given_back:?}");
}

#[tokio::test]
async fn a_lock_guards_what_a_client_with_another_root_writes() {
    let fake = Fake::start().await;
    let (client, mut peer, hold) = locked(&fake).await;
    let elsewhere = client.under("/elsewhere").unwrap();
    let (xid, _) = watching(&mut peer).await;
    peer.answer(xid, 6, Ok(Reply::Done)).await;
    let serving = async {
        let asked = peer.request().await;
        let Op::Multi { then, .. } = asked.op else { panic!("a multi, not {asked:?}") };
        let replies = vec![Reply::Done, Reply::Stat(Stat::default())];
        peer.answer(asked.xid, 6, Ok(Reply::Multi { held: true, replies })).await;
        then
    };
    let writing = hold.guard(elsewhere.multi().set("/a", "", None));
    let (outcome, then) = tokio::join!(soon(writing), serving);
    assert_eq!(outcome.unwrap().replies.len(), 1);
    assert_eq!(then[0], Op::Guard { path: path(NODE), token: CREATED_BY });
    assert!(matches!(&then[1], Op::SetData { path, .. } if path.as_str() == "/elsewhere/a"));
}

/// Takes the request for a cache's watch, and says which one it is.
async fn caching(peer: &mut Peer) -> u64 {
    let asked = soon(peer.request()).await;
    let Op::Watch { id, .. } = asked.op else { panic!("a watch, not {asked:?}") };
    peer.answer(asked.xid, 5, Ok(Reply::Done)).await;
    id.0
}

/// Answers a cache that reads everything below a node.
async fn answer_all(peer: &mut Peer, entries: Vec<Entry>) {
    let root = soon(peer.request()).await;
    assert!(matches!(root.op, Op::Get { .. }), "{root:?}");
    peer.answer(root.xid, 6, Ok(Reply::Data { data: None, stat: Stat::default() })).await;
    let list = soon(peer.request()).await;
    let page = Reply::Children { entries, more: false, stat: Stat::default() };
    peer.answer(list.xid, 6, Ok(page)).await;
}

/// Waits until the follower has seen everything up to that transaction.
async fn seen(follower: &Follower, peer: &mut Peer, zxid: u64) {
    let answering = async {
        let sync = peer.request().await;
        peer.answer(sync.xid, zxid, Ok(Reply::Done)).await;
    };
    let (synced, ()) = tokio::join!(soon(follower.sync()), answering);
    synced.unwrap();
}

#[tokio::test]
async fn a_setting_does_not_go_back_after_a_gap() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let registry = Registry::new(&client, "/config").unwrap();
    let setting = registry.setting::<u64>("limit").unwrap();
    let node = "/config/live/default/values/limit";
    let stored = |revision: u64| -> Bytes {
        format!("{{\"revision\":{revision},\"change\":\"set\"}}\n{revision}").into()
    };
    let entry = |revision: u64| {
        let stat = Stat { czxid: z(2), mzxid: z(10 * revision), ..Stat::default() };
        let name = "values/limit".to_owned();
        vec![Entry { name, stat: Some(stat), data: Some(stored(revision)) }]
    };
    let serving = async {
        let watch = caching(&mut peer).await;
        answer_all(&mut peer, entry(1)).await;
        watch
    };
    let (follower, watch) = tokio::join!(soon(registry.follow(Place::new())), serving);
    let follower = follower.unwrap();
    let mut live = follower.live(&setting).unwrap();
    // Everything is read again, and more is written before anybody looks.
    peer.send(ServerMessage::Gap { watch: WatchId(watch), resumed_at: z(60) }).await;
    answer_all(&mut peer, entry(6)).await;
    seen(&follower, &mut peer, 60).await;
    for revision in 7..=8 {
        let event = event(10 * revision, node, EventKind::DataChanged);
        let value = Some(stored(revision));
        peer.send(ServerMessage::Event { watch: WatchId(watch), event, value }).await;
    }
    seen(&follower, &mut peer, 80).await;
    let mut told = Vec::new();
    while told.last() != Some(&8) {
        match soon(live.next()).await.unwrap().unwrap() {
            LiveItem::Value(value) => told.push(value.unwrap().value),
            LiveItem::Gap => {}
        }
    }
    assert_eq!(told, [1, 8]);
    // And it goes on from there, with nothing in between.
    let event = event(90, node, EventKind::DataChanged);
    peer.send(ServerMessage::Event { watch: WatchId(watch), event, value: Some(stored(9)) }).await;
    let Some(Ok(LiveItem::Value(Some(value)))) = soon(live.next()).await else {
        panic!("a value is expected")
    };
    assert_eq!(value.value, 9);
}

#[tokio::test]
async fn a_cache_that_cannot_be_read_is_not_waited_for_for_ever() {
    let fake = Fake::start().await;
    let builder = Client::builder().servers(fake.address());
    let connecting = builder.operation_timeout(Duration::from_secs(1)).connect();
    let (client, mut peer) = tokio::join!(soon(connecting), fake.open());
    let client = client.unwrap();
    let refusing = async {
        caching(&mut peer).await;
        loop {
            let asked = peer.request().await;
            peer.fault(asked.xid, 5, ErrorCode::Throttled).await;
        }
    };
    let error = tokio::select! {
        opened = soon(Cache::tree(&client, "/a").into_future()) => opened.unwrap_err(),
        () = refusing => unreachable!("it has no end"),
    };
    assert_eq!(error.code(), Some(ErrorCode::Throttled), "{error}");
}
