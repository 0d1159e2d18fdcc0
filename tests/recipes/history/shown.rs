//! What those who wait at a barrier, follow a setting or keep a cache are shown, while processes
//! pause, networks are cut, sessions expire and servers die.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use conclave_client::recipes::cache::{Cache, CacheChanges, CacheItem, CachedNode};
use conclave_client::recipes::config::{Layer, LiveItem, Place, Registry, Revision};
use conclave_client::recipes::{Barrier, Error};
use conclave_client::{Client, ZPath};
use tokio::time::{Instant, sleep, timeout};

use super::goods::{Numbers, end, is_honest, note};
use super::together::program;
use super::{SESSION_TIMEOUT, operations, trouble};
use crate::chaos::{Dice, Wire, strike};
use crate::harness::{Cluster, DEADLINE, eventually};

const BARRIER: &str = "/shown/barrier";
const CONFIG: &str = "/shown/config";
/// Nothing that has happened is told later than this.
const PATIENCE: Duration = Duration::from_secs(30);
/// Programs that change something, and as many that look.
const EACH: usize = 3;

/// What somebody did to the barrier, from when to when.
#[derive(Clone, Copy, Debug)]
struct Move {
    raises: bool,
    asked: Instant,
    answered: Instant,
    is_certain: bool,
}

/// Says what is wrong with somebody's wait from one moment to the other.
fn check_wait(moves: &[Move], came: Instant, passed: Instant) -> Result<(), String> {
    for raise in moves.iter().filter(|one| one.raises && one.is_certain && one.answered <= came) {
        let undoes = |one: &Move| !one.raises && one.answered >= raise.asked && one.asked <= passed;
        if !moves.iter().any(undoes) {
            return Err(format!("somebody passed at {passed:?}, in spite of {raise:?}"));
        }
    }
    Ok(())
}

/// What the stream of a setting told, by its revision and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Value(u64, u64),
    Gap,
}

/// Says what is wrong with a stream of a setting that counts its own changes.
fn check_stream(shown: &[Shown]) -> Result<(), String> {
    let mut before: Option<u64> = None;
    let mut has_gap = false;
    for one in shown {
        match (*one, before) {
            (Shown::Gap, _) => has_gap = true,
            (Shown::Value(revision, value), _) if revision != value => {
                return Err(format!("revision {revision} is {value}"));
            }
            (Shown::Value(revision, _), Some(before)) if revision <= before => {
                return Err(format!("{revision} came after {before}"));
            }
            (Shown::Value(revision, _), Some(before)) if revision > before + 1 && !has_gap => {
                return Err(format!("{revision} came after {before}, without a gap"));
            }
            (Shown::Value(revision, _), _) => (before, has_gap) = (Some(revision), false),
        }
    }
    Ok(())
}

#[derive(Default)]
struct Show {
    moves: Mutex<Vec<Move>>,
    waits: Mutex<Vec<(Instant, Instant)>>,
    edits: Mutex<Numbers>,
    streams: Mutex<Vec<Vec<Shown>>>,
    changes: AtomicU64,
    wrong: Mutex<Vec<String>>,
    /// Nothing is changed any more.
    stop: AtomicBool,
    /// Nobody looks any more.
    last: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Keep,
    Wait,
    Edit,
    Follow,
    Copy,
}

struct Player {
    part: Part,
    wire: Wire,
    dice: Dice,
    show: Arc<Show>,
}

impl Player {
    fn is_over(&self) -> bool {
        let (stop, last) = (&self.show.stop, &self.show.last);
        let over = if matches!(self.part, Part::Keep | Part::Edit) { stop } else { last };
        over.load(Ordering::Relaxed)
    }

    async fn run(mut self) {
        let mut is_done = false;
        while !is_done {
            self.wire.mend();
            let client = self.wire.client(SESSION_TIMEOUT).await;
            while !is_done {
                // The last look is one at what does not change any more.
                let is_last = self.is_over();
                let outcome = match self.part {
                    Part::Keep => self.keep(&client).await,
                    Part::Wait => self.wait(&client).await,
                    Part::Edit => self.edit(&client).await,
                    Part::Follow => self.follow(&client).await,
                    Part::Copy => self.copy(&client).await,
                };
                match outcome {
                    Ok(()) => is_done = is_last,
                    Err(error) if error.is_final() => break,
                    Err(error) => assert!(is_honest(&error), "{error}"),
                }
            }
        }
    }

    /// Raises the barrier and lowers it.
    async fn keep(&mut self, client: &Client) -> Result<(), Error> {
        let barrier = Barrier::new(client, BARRIER)?;
        for raises in [true, false] {
            let asked = Instant::now();
            let outcome =
                if raises { barrier.raise().await } else { barrier.lower().await }.map(drop);
            let answered = Instant::now();
            let is_certain = outcome.is_ok();
            self.show.moves.lock().unwrap().push(Move { raises, asked, answered, is_certain });
            outcome?;
            sleep(Duration::from_millis(self.dice.below(40))).await;
            trouble(&self.wire, &mut self.dice, 100).await;
        }
        Ok(())
    }

    async fn wait(&mut self, client: &Client) -> Result<(), Error> {
        let barrier = Barrier::new(client, BARRIER)?;
        let came = Instant::now();
        let passing = async { (timeout(DEADLINE, barrier.wait()).await, Instant::now()) };
        let disturbed = async {
            sleep(Duration::from_millis(self.dice.below(10))).await;
            trouble(&self.wire, &mut self.dice, 100).await;
        };
        let ((passed, at), ()) = tokio::join!(passing, disturbed);
        match passed {
            Ok(passed) => passed?,
            Err(_) => self.show.wrong.lock().unwrap().push("lost wake-up".into()),
        }
        self.show.waits.lock().unwrap().push((came, at));
        Ok(())
    }

    /// Adds one to the setting.
    async fn edit(&mut self, client: &Client) -> Result<(), Error> {
        let setting = Registry::new(client, CONFIG)?.keep(10).setting::<u64>("count")?;
        let mut after = 0;
        let changed = if self.dice.below(2) == 0 {
            let add = |now: Option<u64>| {
                after = now.unwrap_or_default() + 1;
                Some(after)
            };
            setting.edit(&Layer::Default, add).await.map(Option::unwrap)
        } else {
            let now = setting.get(&Layer::Default).await?;
            let on = now.as_ref().map_or(Revision::NONE, |now| now.revision);
            after = now.and_then(|now| now.value).unwrap_or_default() + 1;
            setting.compare_and_set(&Layer::Default, on, &after).await
        };
        if let Ok(Revision(revision)) = changed {
            assert_eq!(revision, after, "each change adds one");
        }
        note(&self.show.edits, changed.map(|_| i64::try_from(after).unwrap()))?;
        trouble(&self.wire, &mut self.dice, 100).await;
        sleep(Duration::from_millis(self.dice.below(40))).await;
        Ok(())
    }

    fn acknowledged(&self) -> u64 {
        let last = self.show.edits.lock().unwrap().given.iter().copied().max();
        u64::try_from(last.unwrap_or_default()).unwrap()
    }

    /// Follows the setting for a while, and then sees all that was acknowledged.
    async fn follow(&mut self, client: &Client) -> Result<(), Error> {
        let registry = Registry::new(client, CONFIG)?;
        let setting = registry.setting::<u64>("count")?;
        let follower = registry.follow(Place::new()).await?;
        let mut live = follower.live(&setting)?;
        let stream = {
            let mut streams = self.show.streams.lock().unwrap();
            streams.push(Vec::new());
            streams.len() - 1
        };
        let until = Instant::now() + Duration::from_millis(self.dice.below(3000));
        let mut goal = None;
        let mut told = 0;
        while goal.is_none_or(|goal| told < goal) {
            if goal.is_none() && Instant::now() > until {
                goal = Some(self.acknowledged());
                follower.sync().await?;
                let value = follower.get(&setting)?.map_or(0, |now| now.value);
                assert!(goal <= Some(value), "{value} is shown after the sync, not {goal:?}");
                continue;
            }
            let patience = if goal.is_some() { PATIENCE } else { Duration::from_millis(50) };
            let shown = match timeout(patience, live.next()).await {
                Err(_) if goal.is_some() => panic!("{told} was told last, and not {goal:?}"),
                Err(_) => continue,
                // Nobody has set it yet.
                Ok(Some(Ok(LiveItem::Value(None)))) if told == 0 => continue,
                Ok(Some(Ok(LiveItem::Value(now)))) => {
                    let now = now.expect("nobody removes it");
                    told = now.value;
                    Shown::Value(now.origin.revision.0, now.value)
                }
                Ok(Some(Ok(LiveItem::Gap))) => Shown::Gap,
                Ok(Some(Err(error))) => return Err(error),
                Ok(None) => panic!("the stream ended without a word"),
            };
            self.show.streams.lock().unwrap()[stream].push(shown);
            trouble(&self.wire, &mut self.dice, 200).await;
        }
        Ok(())
    }

    /// Keeps a copy of the tree from a cache's changes for a while; at the end it is as the cache.
    async fn copy(&mut self, client: &Client) -> Result<(), Error> {
        let cache = Cache::tree(client, CONFIG).await?;
        let mut copy = NodeCopy::of(&cache)?;
        let until = Instant::now() + Duration::from_millis(self.dice.below(3000));
        while Instant::now() < until {
            if let Ok(item) = timeout(Duration::from_millis(50), copy.changes.next()).await {
                copy.take(&cache, item.expect("it says why it ends")?)?;
                self.show.changes.fetch_add(1, Ordering::Relaxed);
            }
            trouble(&self.wire, &mut self.dice, 400).await;
        }
        cache.sync().await?;
        let NodeCopy { nodes, .. } = NodeCopy::of(&cache)?;
        while copy.nodes != nodes {
            // What the cache showed was told before.
            let next = timeout(PATIENCE, copy.changes.next()).await;
            let Ok(next) = next else {
                let NodeCopy { nodes: told, .. } = copy;
                panic!("the cache shows {nodes:?}, and told of {told:?}");
            };
            match next.expect("it says why it ends")? {
                CacheItem::Gap => return Ok(()),
                changed @ CacheItem::Changed { .. } => copy.take(&cache, changed)?,
            }
        }
        Ok(())
    }
}

/// What a cache shows, as far as its changes were told.
struct NodeCopy {
    nodes: BTreeMap<ZPath, CachedNode>,
    changes: CacheChanges,
}

impl NodeCopy {
    fn of(cache: &Cache) -> Result<NodeCopy, Error> {
        let all = cache.follow(|view| {
            let nodes = view.iter().map(|(path, node)| (path.clone(), node.clone()));
            nodes.collect()
        });
        all.map(|(nodes, changes)| NodeCopy { nodes, changes })
    }

    fn take(&mut self, cache: &Cache, item: CacheItem) -> Result<(), Error> {
        match item {
            CacheItem::Gap => *self = NodeCopy::of(cache)?,
            CacheItem::Changed { path, before, after, .. } => {
                let known = match after {
                    Some(node) => self.nodes.insert(path.clone(), node),
                    None => self.nodes.remove(&path),
                };
                assert_eq!(known, before, "{path}: a change is missing");
            }
        }
        Ok(())
    }
}

/// Everything that is there now, by path and version.
async fn walk(
    client: &Client,
    path: &str,
    into: &mut BTreeMap<String, (Option<bytes::Bytes>, i32)>,
) {
    let node = client.get(path).linearizable().await.unwrap();
    into.insert(path.to_owned(), (node.data, node.stat.version));
    for name in client.children(path).linearizable().await.unwrap() {
        Box::pin(walk(client, &format!("{path}/{name}"), into)).await;
    }
}

/// Starts players of these parts.
async fn play(
    cluster: &Cluster,
    parts: &[Part],
    dice: &mut Dice,
    show: &Arc<Show>,
) -> Vec<JoinHandle<()>> {
    let mut players = Vec::new();
    for _ in 0..EACH {
        for &part in parts {
            let (wire, dice) = (Wire::to(&cluster.addresses()).await, dice.split());
            let player = Player { part, wire, dice, show: Arc::clone(show) };
            players.push(program(player, Player::run));
        }
    }
    players
}

/// Strikes until enough was done, and all end.
async fn until_enough(
    cluster: &mut Cluster,
    dice: &mut Dice,
    show: &Show,
    done: impl Fn() -> usize,
    [changing, looking]: [Vec<JoinHandle<()>>; 2],
) {
    while done() < usize::try_from(operations()).unwrap() {
        strike(cluster, dice).await;
        let now = done();
        eventually("all get on", async || (done() > now + EACH).then_some(())).await;
    }
    show.stop.store(true, Ordering::Relaxed);
    end(changing).await;
    show.last.store(true, Ordering::Relaxed);
    end(looking).await;
    assert_eq!(*show.wrong.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn who_waits_passes_when_the_barrier_is_lowered_and_not_before() {
    let (mut dice, show) = (Dice::new(), Arc::new(Show::default()));
    let mut cluster = Cluster::start(3).await;
    let keepers = play(&cluster, &[Part::Keep], &mut dice, &show).await;
    let waiters = play(&cluster, &[Part::Wait], &mut dice, &show).await;
    let done = || show.waits.lock().unwrap().len();
    until_enough(&mut cluster, &mut dice, &show, done, [keepers, waiters]).await;
    let (moves, waits) = (show.moves.lock().unwrap().clone(), show.waits.lock().unwrap().clone());
    println!("{} passed, the barrier was raised and lowered {} times", waits.len(), moves.len());
    for (came, passed) in waits {
        check_wait(&moves, came, passed).unwrap();
    }
}

#[tokio::test]
async fn edits_are_exact_and_all_see_the_last() {
    let (mut dice, show) = (Dice::new(), Arc::new(Show::default()));
    let mut cluster = Cluster::start(3).await;
    let editors = play(&cluster, &[Part::Edit], &mut dice, &show).await;
    let watchers = play(&cluster, &[Part::Follow, Part::Copy], &mut dice, &show).await;
    let done = || show.edits.lock().unwrap().given.len();
    until_enough(&mut cluster, &mut dice, &show, done, [editors, watchers]).await;
    let client = cluster.client().await;
    let setting = Registry::new(&client, CONFIG).unwrap().setting::<u64>("count").unwrap();
    let last = setting.get(&Layer::Default).await.unwrap().unwrap();
    assert_eq!(last.value, Some(last.revision.0));
    show.edits.lock().unwrap().check(i64::try_from(last.revision.0).unwrap()).unwrap();
    let streams = show.streams.lock().unwrap().clone();
    let gaps = streams.iter().flatten().filter(|shown| **shown == Shown::Gap).count();
    println!(
        "{} edits, {} streams with {} items and {gaps} gaps, {} changes of caches",
        last.revision,
        streams.len(),
        streams.iter().map(Vec::len).sum::<usize>(),
        show.changes.load(Ordering::Relaxed),
    );
    for stream in streams {
        check_stream(&stream).unwrap();
    }
    let cache = Cache::tree(&client, CONFIG).await.unwrap();
    cache.sync().await.unwrap();
    let mut all = BTreeMap::new();
    walk(&client, CONFIG, &mut all).await;
    let shown = NodeCopy::of(&cache).unwrap().nodes.into_iter();
    let shown = shown.map(|(path, node)| (path.to_string(), (node.data, node.version)));
    assert_eq!(shown.collect::<BTreeMap<_, _>>(), all);
}

#[test]
fn the_checkers_see_who_passes_too_soon_and_what_is_left_out() {
    let begin = Instant::now();
    let at = |ms| begin + Duration::from_millis(ms);
    let step = |raises, asked, answered| {
        let (asked, answered) = (at(asked), at(answered));
        Move { raises, asked, answered, is_certain: true }
    };
    let moves = [step(true, 0, 2), step(false, 5, 7), step(true, 8, 9)];
    check_wait(&moves, at(3), at(6)).unwrap();
    check_wait(&moves, at(1), at(1)).unwrap();
    assert!(check_wait(&moves, at(3), at(4)).unwrap_err().contains("in spite"));
    assert!(check_wait(&moves, at(10), at(12)).unwrap_err().contains("in spite"));
    let unsure = moves.map(|one| Move { is_certain: false, ..one });
    check_wait(&unsure, at(10), at(12)).unwrap();

    let values = |values: &[u64]| values.iter().map(|v| Shown::Value(*v, *v)).collect::<Vec<_>>();
    check_stream(&values(&[4, 5, 6])).unwrap();
    check_stream(&[Shown::Value(4, 4), Shown::Gap, Shown::Value(7, 7)]).unwrap();
    assert!(check_stream(&values(&[4, 6])).unwrap_err().contains("without a gap"));
    assert!(check_stream(&values(&[5, 4])).unwrap_err().contains("4 came after 5"));
    assert!(check_stream(&[Shown::Value(4, 3)]).unwrap_err().contains("revision 4 is 3"));
}
