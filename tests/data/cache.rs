//! A cache is the tree, whatever happens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use conclave_client::recipes::Error;
use conclave_client::recipes::cache::{Cache, CacheChanges, CacheItem, CacheStatus, View};
use conclave_client::recipes::members::{Group, MemberChange};
use conclave_client::{Client, ErrorCode, ZPath};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::chaos::{Dice, Wire, rounds, strike};
use crate::harness::{Cluster, DEADLINE, eventually};

type Content = BTreeMap<String, Option<Bytes>>;

/// The data of every node of a cache.
fn content(view: &View) -> Content {
    view.iter().map(|(path, node)| (path.to_string(), node.data.clone())).collect()
}

/// The data of every node below `/t`, and of itself, as the servers have it.
async fn truth(client: &Client) -> Content {
    client.sync().await.unwrap();
    let mut found = Content::new();
    if let Ok(node) = client.get("/t").await {
        found.insert("/t".into(), node.data);
    }
    let mut entries = client.list_recursive("/t").with_data().stream();
    while let Some(entry) = entries.next().await {
        let entry = entry.unwrap();
        found.insert(format!("/t/{}", entry.name), entry.data);
    }
    found
}

/// Applies what a follower is told until it shows the same as the cache.
async fn converge(cache: &Cache, own: &mut Content, changes: &mut CacheChanges) {
    while cache.read(content).unwrap() != *own {
        match timeout(DEADLINE, changes.next()).await.expect("a change").unwrap().unwrap() {
            CacheItem::Changed { path, after: Some(node), .. } => {
                own.insert(path.to_string(), node.data);
            }
            CacheItem::Changed { path, after: None, .. } => {
                own.remove(path.as_str());
            }
            CacheItem::Gap => *own = cache.read(content).unwrap(),
        }
    }
}

/// Creates, changes and deletes nodes of a small tree at random.
fn scribble(client: Client, mut dice: Dice, stop: Arc<AtomicBool>) -> JoinHandle<u64> {
    tokio::spawn(async move {
        let mut written = 0;
        while !stop.load(Ordering::Relaxed) {
            let mut path = format!("/t/{}", dice.below(20));
            if dice.below(2) == 0 {
                path += &format!("/{}", dice.below(5));
            }
            let data = dice.below(1 << 40).to_string();
            let failure = match dice.below(8) {
                0 => client.delete(&path).await.err(),
                1 => client.multi().delete(&path, None).create(&path, data).await.err(),
                2..5 => client.create(&path, data).await.err(),
                _ => client.set(&path, data).await.err(),
            };
            match failure.map(|error| (error.code(), error)) {
                None => written += 1,
                Some((
                    Some(ErrorCode::NoNode | ErrorCode::NodeExists | ErrorCode::NotEmpty),
                    _,
                )) => {}
                Some((_, error)) => panic!("{error}"),
            }
        }
        written
    })
}

#[tokio::test]
async fn a_cache_is_the_tree_after_leader_kills_and_cut_connections() {
    let mut cluster = Cluster::start(3).await;
    let mut dice = Dice::new();
    let admin = cluster.client().await;
    admin.create("/t", "").await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for _ in 0..4 {
        writers.push(scribble(cluster.client().await, dice.split(), Arc::clone(&stop)));
    }
    let wire = Wire::to(&cluster.addresses()).await;
    let far = wire.client(Duration::from_secs(30)).await;
    let caches = [Cache::tree(&admin, "/t").await.unwrap(), Cache::tree(&far, "/t").await.unwrap()];
    let mut followers = Vec::new();
    for cache in &caches {
        followers.push(cache.follow(content).unwrap());
    }
    for _ in 0..rounds() {
        wire.cut();
        strike(&mut cluster, &mut dice).await;
        wire.mend();
        sleep(Duration::from_millis(dice.below(500))).await;
    }
    eventually("it links again", async || (wire.carried() > 1).then_some(())).await;
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        written += writer.await.unwrap();
    }
    assert!(written > 0, "nobody has written");
    let truth = truth(&admin).await;
    for (cache, (own, changes)) in caches.iter().zip(&mut followers) {
        cache.sync().await.unwrap();
        assert_eq!(cache.read(content).unwrap(), truth);
        assert_eq!(cache.status(), CacheStatus::Current);
        converge(cache, own, changes).await;
        assert_eq!(*own, truth);
        for (path, node) in cache.read(|view| view.iter().map(owned).collect::<Vec<_>>()).unwrap() {
            let stat = admin.exists(&path).await.unwrap().unwrap();
            assert!(node.version <= stat.version && node.czxid == stat.czxid, "{path}: {node:?}");
        }
    }
}

fn owned(
    (path, node): (&ZPath, &conclave_client::recipes::cache::CachedNode),
) -> (ZPath, conclave_client::recipes::cache::CachedNode) {
    (path.clone(), node.clone())
}

#[tokio::test]
async fn a_cache_that_was_away_for_too_long_reads_everything_again() {
    let cluster = Cluster::start(1).await;
    let admin = cluster.client().await;
    admin.create("/t", "").await.unwrap();
    let wire = Wire::to(&cluster.addresses()).await;
    let far = wire.client(Duration::from_secs(60)).await;
    let cache = Cache::tree(&far, "/t").await.unwrap();
    let mut changes = cache.changes().unwrap();
    let group = Group::new(&admin, "/group").unwrap();
    let me = group.join("me", "here").await.unwrap();
    let members = Group::new(&far, "/group").unwrap().members().await.unwrap();
    let (known, mut member_changes) = members.follow().unwrap();
    assert_eq!(known, BTreeMap::from([("me".into(), "here".into())]));
    wire.cut();
    eventually("the cache is behind", async || {
        (cache.status() == CacheStatus::Behind).then_some(())
    })
    .await;
    // More events than a server remembers.
    for _ in 0..110_000 {
        admin.ready().await;
        drop(admin.set("/t", "x").send());
    }
    admin.set("/t", "last").await.unwrap();
    wire.mend();
    cache.sync().await.unwrap();
    assert_eq!(cache.get("/t").unwrap().unwrap().bytes(), b"last");
    assert_eq!(changes.next().await.unwrap().unwrap(), CacheItem::Gap);
    // Who follows the members is told nothing that is older than what the gap shows.
    members.sync().await.unwrap();
    for data in ["new", "newer"] {
        me.set(data).await.unwrap();
    }
    members.sync().await.unwrap();
    let shown = member_changes.next().await.unwrap().unwrap();
    let now = BTreeMap::from([("me".into(), "newer".into())]);
    assert_eq!(shown, MemberChange::Gap { members: now });
    me.set("newest").await.unwrap();
    let next = member_changes.next().await.unwrap().unwrap();
    assert_eq!(next, MemberChange::Here { name: "me".into(), data: "newest".into() });
}

#[tokio::test]
async fn a_cache_ends_with_its_session_and_says_so() {
    let cluster = Cluster::start(1).await;
    let admin = cluster.client().await;
    admin.create("/t", "data").await.unwrap();
    let wire = Wire::to(&cluster.addresses()).await;
    let far = wire.client(Duration::from_secs(1)).await;
    far.create("/alive", "").ephemeral().await.unwrap();
    let cache = Cache::tree(&far, "/t").await.unwrap();
    let mut changes = cache.changes().unwrap();
    assert!(matches!(cache.get("/u"), Err(Error::Config(_))));
    wire.cut();
    eventually("the servers end the session", async || {
        admin.exists("/alive").await.unwrap().is_none().then_some(())
    })
    .await;
    wire.mend();
    let ended = timeout(DEADLINE, cache.ended()).await.unwrap();
    assert!(ended.is_final() && matches!(ended, Error::Ended { .. }), "{ended}");
    assert_eq!(cache.get("/t"), Err(ended.clone()));
    assert_eq!(cache.flush().await, Err(ended.clone()));
    assert!(cache.sync().await.unwrap_err().is_final());
    assert_eq!(changes.next().await, Some(Err(ended)));
    assert_eq!(changes.next().await, None);
}

/// What a cache shows can be the condition of a write, also where versions are not known any more.
#[tokio::test]
async fn a_write_that_depends_on_what_a_cache_shows() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    client.create("/t", "").await.unwrap();
    let cache = Cache::node(&client, "/t").await.unwrap();
    client.multi().set("/t", "a", None).set("/t", "b", None).await.unwrap();
    cache.flush().await.unwrap();
    let seen = cache.get("/t").unwrap().unwrap();
    let write = || client.multi().when("/t", seen.unchanged()).set("/t", "c", None);
    assert_eq!(seen.bytes(), b"b");
    assert!(write().await.unwrap().held, "it is unchanged");
    assert!(!write().await.unwrap().held, "it was changed");
}

#[tokio::test]
async fn a_node_and_children_are_cached_from_before_they_exist() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let node = Cache::node(&client, "/t").await.unwrap();
    let children = Cache::children(&client, "/t").without_data().await.unwrap();
    assert_eq!(node.get("/t").unwrap(), None);
    for path in ["/t", "/t/a", "/t/b", "/t/b/c"] {
        client.create(path, path).await.unwrap();
    }
    client.set("/t", "changed").await.unwrap();
    node.flush().await.unwrap();
    children.flush().await.unwrap();
    let cached = node.get("/t").unwrap().unwrap();
    assert_eq!((cached.bytes(), cached.version), (b"changed".as_slice(), 1));
    let names = children.read(|view| {
        view.iter().map(|(path, node)| (path.to_string(), node.data.clone())).collect()
    });
    assert_eq!(names, Ok(vec![("/t/a".to_owned(), None), ("/t/b".to_owned(), None)]));
    client.delete_recursive("/t").await.unwrap();
    children.flush().await.unwrap();
    node.flush().await.unwrap();
    assert!(children.read(View::is_empty).unwrap() && node.read(View::is_empty).unwrap());
}
