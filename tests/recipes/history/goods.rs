//! What queues, counters and ids do while processes pause, networks are cut, sessions expire and
//! servers die.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use conclave_client::Client;
use conclave_client::recipes::counter::{Counter, IdBlocks, SharedValue};
use conclave_client::recipes::queue::{Consumer, Item, Push, Queue};
use conclave_client::recipes::{Error, Token};
use tokio::time::{sleep, timeout};

use super::{SESSION_TIMEOUT, operations, trouble};
use crate::chaos::{Dice, Wire, strike};
use crate::harness::{Cluster, eventually};

const QUEUE: &str = "/goods/queue";
const COUNTER: &str = "/goods/counter";
const IDS: &str = "/goods/ids";
const VALUE: &str = "/goods/value";
/// About how many items wait at most.
const BACKLOG: usize = 200;
/// Programs of each kind.
const EACH: usize = 3;

/// What became of items, or tasks.
#[derive(Clone, Default)]
pub(super) struct Items {
    /// Whether the push was acknowledged; otherwise it may have been done.
    pub(super) pushed: BTreeMap<String, bool>,
    /// How many pushes had no answer.
    pub(super) unsure: usize,
    /// The tokens under which each was handed out.
    pub(super) handed: BTreeMap<String, BTreeSet<Token>>,
    /// The token under which each was done.
    pub(super) done: BTreeMap<String, Vec<Token>>,
    /// Those that may have been done: no server said whether.
    pub(super) perhaps: BTreeSet<String>,
}

impl Items {
    /// How many are waiting, about.
    pub(super) fn waiting(&self) -> usize {
        self.pushed.len().saturating_sub(self.unsure + self.done.len() + self.perhaps.len())
    }

    /// Says what is wrong after all are done.
    pub(super) fn check(&self) -> Result<(), String> {
        for (item, is_certain) in &self.pushed {
            let is_done = self.done.contains_key(item) || self.perhaps.contains(item);
            if *is_certain && !is_done {
                return Err(format!("{item} is lost"));
            }
        }
        for (item, tokens) in &self.done {
            let handed = self.handed.get(item).cloned().unwrap_or_default();
            if !self.pushed.contains_key(item) {
                return Err(format!("{item} was never pushed"));
            }
            if tokens.len() != 1 {
                return Err(format!("{item} was done more than once: {tokens:?}"));
            }
            if handed.last() != tokens.last() {
                return Err(format!("{item} was done with {tokens:?}, and handed out: {handed:?}"));
            }
        }
        Ok(())
    }
}

/// Numbers that were given out.
#[derive(Default)]
pub(super) struct Numbers {
    pub(super) given: Vec<i64>,
    /// Additions that may have been done.
    perhaps: i64,
}

impl Numbers {
    /// Says what is wrong if the counter is at `end` now.
    pub(super) fn check(&self, end: i64) -> Result<(), String> {
        let all: BTreeSet<i64> = self.given.iter().copied().collect();
        let given = i64::try_from(self.given.len()).unwrap_or(i64::MAX);
        if all.len() != self.given.len() {
            return Err(format!(
                "{} of {given} numbers were given twice",
                self.given.len() - all.len()
            ));
        }
        if all.last().is_some_and(|last| *last > end) {
            return Err(format!("{all:?} was given, and the counter is at {end}"));
        }
        if end < given || end > given + self.perhaps {
            return Err(format!("the counter is at {end}: {given} and {} perhaps", self.perhaps));
        }
        Ok(())
    }
}

#[derive(Default)]
struct Goods {
    items: Mutex<Items>,
    counter: Mutex<Numbers>,
    value: Mutex<Numbers>,
    ids: Mutex<BTreeSet<i64>>,
    ids_given: AtomicU64,
    /// Until when there is work: those who push and count stop first.
    phase: AtomicU64,
}

/// The phases after the first, in which all work.
const DRAIN: u64 = 1;
const STOP: u64 = 2;

#[derive(Clone, Copy)]
enum Trade {
    Push(usize),
    Consume,
    Count,
}

/// Of two shards, each of them a queue.
fn queue(client: &Client) -> Queue {
    Queue::sharded(client, QUEUE, 2).unwrap()
}

struct Program {
    trade: Trade,
    wire: Wire,
    dice: Dice,
    goods: Arc<Goods>,
    number: u64,
}

impl Program {
    fn spawn(self) -> JoinHandle<()> {
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(self.run());
        })
    }

    fn is_over(&self) -> bool {
        let until = if matches!(self.trade, Trade::Consume) { STOP } else { DRAIN };
        self.goods.phase.load(Ordering::Relaxed) >= until
    }

    async fn run(mut self) {
        while !self.is_over() {
            self.wire.mend();
            let client = self.wire.client(SESSION_TIMEOUT).await;
            let mut consumer = queue(&client).consumer();
            while !self.is_over() {
                let outcome = match self.trade {
                    Trade::Push(program) => self.push(&client, program).await,
                    Trade::Consume => self.consume(&mut consumer).await,
                    Trade::Count => self.count(&client).await,
                };
                match outcome {
                    Ok(()) => self.trouble().await,
                    Err(error) if error.is_final() => break,
                    Err(error) => assert!(is_honest(&error), "{error}"),
                }
            }
        }
    }

    /// The process is paused, or its network is cut.
    async fn trouble(&mut self) {
        let shown = trouble(&self.wire, &mut self.dice, 300).await;
        if (3..=6).contains(&shown) {
            self.wire.cut();
            self.wire.mend();
        }
    }

    async fn push(&mut self, client: &Client, program: usize) -> Result<(), Error> {
        if self.goods.items.lock().unwrap().waiting() > BACKLOG {
            // Consumers are slower than producers.
            sleep(Duration::from_millis(10)).await;
            return Ok(());
        }
        self.number += 1;
        let item = format!("{program}-{}", self.number);
        let push = Push::new().priority(u32::try_from(self.dice.below(3)).unwrap());
        let push = if self.dice.below(2) == 0 { push.id(item.clone()) } else { push };
        self.goods.items.lock().unwrap().pushed.insert(item.clone(), false);
        let pushed = queue(client).push_with(item.clone(), push).await;
        let mut items = self.goods.items.lock().unwrap();
        match &pushed {
            Ok(is_new) => {
                assert!(is_new, "nobody else has the id {item}");
                items.pushed.insert(item, true);
            }
            Err(_) => items.unsure += 1,
        }
        pushed.map(drop)
    }

    async fn consume(&mut self, consumer: &mut Consumer) -> Result<(), Error> {
        let Ok(item) = timeout(Duration::from_millis(300), consumer.next()).await else {
            return Ok(());
        };
        let item: Item = item?;
        let (text, token) = (String::from_utf8(item.data().to_vec()).unwrap(), item.token());
        self.goods.items.lock().unwrap().handed.entry(text.clone()).or_default().insert(token);
        match self.dice.below(20) {
            0 => drop(item),
            1 => item.release().await?,
            _ => {
                self.trouble().await;
                let done = item.done().await;
                let mut items = self.goods.items.lock().unwrap();
                match done {
                    Ok(()) => items.done.entry(text).or_default().push(token),
                    Err(Error::Lost { .. }) => {}
                    Err(error) => {
                        items.perhaps.insert(text);
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    async fn count(&mut self, client: &Client) -> Result<(), Error> {
        let added = Counter::new(client, COUNTER)?.add(1).await;
        note(&self.goods.counter, added)?;
        let mut after = 0;
        let value = SharedValue::new(client, VALUE)?;
        let add = |old: Option<&bytes::Bytes>| {
            let old = old.map_or(0, |old| std::str::from_utf8(old).unwrap().parse().unwrap());
            after = old + 1;
            Some(after.to_string().into())
        };
        let changed = value.update(add).await.map(drop);
        note(&self.goods.value, changed.map(|()| after))?;
        let ids = IdBlocks::new(client, IDS, 3)?;
        for _ in 0..4 {
            let id = ids.next().await?;
            self.goods.ids_given.fetch_add(1, Ordering::Relaxed);
            assert!(self.goods.ids.lock().unwrap().insert(id), "{id} was given twice");
        }
        Ok(())
    }
}

pub(super) fn note(numbers: &Mutex<Numbers>, outcome: Result<i64, Error>) -> Result<(), Error> {
    let mut numbers = numbers.lock().unwrap();
    match outcome {
        Ok(number) => {
            numbers.given.push(number);
            Ok(())
        }
        Err(error) => {
            // Nothing was added if somebody else was always faster.
            if !matches!(error, Error::Conflict { .. }) {
                numbers.perhaps += 1;
            }
            Err(error)
        }
    }
}

/// Whether it is an error that may happen to those who do everything right.
pub(super) fn is_honest(error: &Error) -> bool {
    error.outcome_unknown()
        || matches!(error, Error::Lost { .. } | Error::Conflict { .. })
        || matches!(error, Error::Client(error) if error.code().is_none())
}

#[tokio::test]
async fn nothing_is_lost_or_given_twice() {
    let mut dice = Dice::new();
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let queue = queue(&client);
    queue.make().await.unwrap();
    let goods = Arc::new(Goods::default());
    let (mut makers, mut consumers) = (Vec::new(), Vec::new());
    for program in 0..EACH {
        for trade in [Trade::Push(program), Trade::Consume, Trade::Count] {
            let (wire, goods) = (Wire::to(&cluster.addresses()).await, Arc::clone(&goods));
            let programs = match trade {
                Trade::Push(_) | Trade::Count => &mut makers,
                Trade::Consume => &mut consumers,
            };
            programs.push(Program { trade, wire, dice: dice.split(), goods, number: 0 }.spawn());
        }
    }
    let goal = usize::try_from(operations()).unwrap();
    let progress = || {
        let done = goods.items.lock().unwrap().done.len();
        let counted = goods.counter.lock().unwrap().given.len();
        [done, counted, goods.value.lock().unwrap().given.len()]
    };
    while progress().iter().any(|count| *count < goal) {
        strike(&mut cluster, &mut dice).await;
        let now = progress();
        let moves = || now.iter().zip(progress()).all(|(now, later)| *now < later);
        eventually("all get on", async || moves().then_some(())).await;
    }
    goods.phase.store(DRAIN, Ordering::Relaxed);
    // What is being pushed still comes.
    end(makers).await;
    let mut left = queue.len().await.unwrap();
    while left > 0 {
        left = eventually("the queue gets shorter", async || {
            let now = queue.len().await.unwrap();
            (now < left).then_some(now)
        })
        .await;
    }
    goods.phase.store(STOP, Ordering::Relaxed);
    end(consumers).await;
    let (checked, done, perhaps) = {
        let items = goods.items.lock().unwrap();
        (items.check(), items.done.len(), items.perhaps.len())
    };
    checked.unwrap();
    let counted = Counter::new(&client, COUNTER).unwrap().get().await.unwrap();
    goods.counter.lock().unwrap().check(counted).unwrap();
    let value = SharedValue::new(&client, VALUE).unwrap().get().await.unwrap().value.unwrap();
    let value = std::str::from_utf8(&value).unwrap().parse().unwrap();
    goods.value.lock().unwrap().check(value).unwrap();
    println!(
        "{done} items done and {perhaps} perhaps, {counted} counted, {value} changes, {} ids",
        goods.ids_given.load(Ordering::Relaxed)
    );
    let directories = ["items", "taken", "ids"]
        .into_iter()
        .flat_map(|kind| (0..2).map(move |shard| format!("{QUEUE}/shard-{shard:03}/{kind}")));
    nothing_is_left(&client, &directories.collect::<Vec<_>>()).await;
}

/// Waits until none of these directories has a node.
pub(super) async fn nothing_is_left(client: &Client, directories: &[String]) {
    for directory in directories {
        eventually("nothing is left", async || {
            client.children(directory.as_str()).await.unwrap().is_empty().then_some(())
        })
        .await;
    }
}

pub(super) async fn end(programs: Vec<JoinHandle<()>>) {
    // Who waits here must not keep the client from its heartbeats.
    eventually("all programs end", async || {
        programs.iter().all(|program| program.is_finished()).then_some(())
    })
    .await;
    for program in programs {
        program.join().unwrap();
    }
}

#[test]
fn the_checkers_see_what_is_lost_or_doubled() {
    let token = Token::new;
    let good = || Items {
        pushed: [(String::from("a"), true), (String::from("b"), false)].into(),
        unsure: 1,
        handed: [(String::from("a"), [token(1), token(4)].into())].into(),
        done: [(String::from("a"), vec![token(4)])].into(),
        perhaps: BTreeSet::new(),
    };
    good().check().unwrap();
    let lost = Items { done: BTreeMap::new(), ..good() };
    assert!(lost.check().unwrap_err().contains("lost"));
    let twice = Items { done: [(String::from("a"), vec![token(1), token(4)])].into(), ..good() };
    assert!(twice.check().unwrap_err().contains("more than once"));
    let stale = Items { done: [(String::from("a"), vec![token(1)])].into(), ..good() };
    assert!(stale.check().unwrap_err().contains("handed out"));
    let made_up = Items { pushed: BTreeMap::new(), ..good() };
    assert!(made_up.check().unwrap_err().contains("never"));

    let numbers = |given: &[i64], perhaps| Numbers { given: given.to_vec(), perhaps };
    numbers(&[1, 2, 4], 1).check(4).unwrap();
    assert!(numbers(&[1, 2, 2], 0).check(3).unwrap_err().contains("twice"));
    assert!(numbers(&[1, 2], 0).check(3).is_err(), "added without a word");
    assert!(numbers(&[1, 3], 1).check(2).is_err(), "an addition was undone");
}
