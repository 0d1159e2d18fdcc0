//! What holders did, and whether that is a history that the recipes allow: contenders whose
//! processes are paused, whose network is cut, who give up waiting, on servers that die and freeze.
//!
//! `CONCLAVE_OPERATIONS` says how often each recipe is acquired.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use conclave_client::recipes::{self, Election, Error, Fence, Hold, Leadership, WriteHold};
use conclave_client::recipes::{MultiLock, ReadWriteLock, Semaphore, Token};
use conclave_client::{Client, ErrorCode, Multi, Zxid};
use tokio::time::{Instant, sleep};

use crate::chaos::{Dice, Wire, strike};
use crate::harness::{Cluster, DEADLINE, eventually};

/// Contenders for each recipe, each with a thread, a session and a network of its own.
const CONTENDERS: u64 = 4;
/// The shortest that servers grant.
const SESSION_TIMEOUT: Duration = Duration::from_secs(1);
/// How many hold a permit of the semaphore at once.
const PERMITS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Recipe {
    Mutex,
    Election,
    RandomElection,
    ReadWriteLock,
    Semaphore,
    MultiLock,
}

const RECIPES: [Recipe; 6] = [
    Recipe::Mutex,
    Recipe::Election,
    Recipe::RandomElection,
    Recipe::ReadWriteLock,
    Recipe::Semaphore,
    Recipe::MultiLock,
];

impl Recipe {
    fn dir(self) -> String {
        format!("/recipes/{self:?}")
    }

    /// The node that holders write to.
    fn data(self) -> String {
        format!("/data/{self:?}")
    }

    /// The directories that are empty when nobody is there.
    fn empties(self) -> Vec<String> {
        let dir = self.dir();
        match self {
            Recipe::Semaphore => vec![format!("{dir}/queue"), format!("{dir}/permits")],
            Recipe::MultiLock => vec![format!("{dir}-0"), format!("{dir}-1"), format!("{dir}-2")],
            Recipe::Mutex | Recipe::Election | Recipe::RandomElection | Recipe::ReadWriteLock => {
                vec![dir]
            }
        }
    }
}

/// Whatever is held.
enum Held {
    Hold(Hold),
    Write(WriteHold),
    Leadership(Leadership),
}

impl Held {
    fn hold(&self) -> &Hold {
        match self {
            Held::Hold(hold) => hold,
            Held::Write(hold) => hold,
            Held::Leadership(leadership) => leadership.hold(),
        }
    }

    async fn release(self) -> Result<(), Error> {
        match self {
            Held::Hold(hold) => hold.release().await,
            Held::Write(hold) => hold.release().await,
            Held::Leadership(leadership) => leadership.resign().await,
        }
    }
}

/// A time during which something was held for certain.
#[derive(Clone, Copy, Debug)]
struct Interval {
    start: Instant,
    end: Instant,
    token: Token,
    /// How many may be held at the same time as this.
    at_once: usize,
}

/// What the contenders for one recipe did.
#[derive(Default)]
struct Record {
    acquired: AtomicU64,
    /// Writes that the storage refused, or the servers, since the hold was lost.
    stale: AtomicU64,
    intervals: Mutex<Vec<Interval>>,
    /// Guarded writes in the order of history.
    writes: Mutex<BTreeMap<Zxid, Token>>,
    /// The storage that the lock protects.
    fence: Mutex<Fence>,
    stop: AtomicBool,
}

struct Contender {
    recipe: Recipe,
    wire: Wire,
    record: Arc<Record>,
    dice: Dice,
}

impl Contender {
    async fn run(mut self) {
        while !self.record.stop.load(Ordering::Relaxed) {
            let client = self.connect().await;
            while !self.record.stop.load(Ordering::Relaxed) {
                match self.turn(&client).await {
                    Ok(()) => {}
                    Err(error) if error.is_final() => break,
                    Err(Error::Deadline { .. } | Error::Lost { .. }) => {}
                    Err(Error::Client(error)) => assert_ne!(error.code(), Some(ErrorCode::NoAuth)),
                    Err(error) => panic!("{:?}: {error}", self.recipe),
                }
            }
        }
    }

    async fn connect(&self) -> Client {
        self.wire.mend();
        self.wire.client(SESSION_TIMEOUT).await
    }

    async fn turn(&mut self, client: &Client) -> Result<(), Error> {
        let gives_up = self.dice.below(10) == 0;
        let patience = if gives_up { Duration::from_millis(self.dice.below(30)) } else { DEADLINE };
        let (held, at_once) = self.acquire(client, patience).await?;
        self.record.acquired.fetch_add(1, Ordering::Relaxed);
        let start = Instant::now();
        match self.dice.below(150) {
            // The whole process stops: its runtime does nothing meanwhile.
            0 => std::thread::sleep(Duration::from_millis(500 + self.dice.below(2000))),
            1 | 2 => {
                self.wire.cut();
                sleep(Duration::from_millis(self.dice.below(2000))).await;
                self.wire.mend();
            }
            _ => {}
        }
        let written = self.write(client, &held, at_once).await;
        let end = Instant::now();
        if held.hold().is_held() {
            let token = held.hold().token();
            let interval = Interval { start, end, token, at_once };
            self.record.intervals.lock().unwrap().push(interval);
        }
        match self.dice.below(4) {
            0 => drop(held),
            _ => held.release().await?,
        }
        written
    }

    async fn acquire(
        &mut self,
        client: &Client,
        patience: Duration,
    ) -> Result<(Held, usize), Error> {
        let dir = self.recipe.dir();
        Ok(match self.recipe {
            Recipe::Mutex => {
                let mut mutex = recipes::Mutex::new(client, dir)?;
                (Held::Hold(mutex.lock_within(patience).await?), 1)
            }
            Recipe::Election => {
                let election = Election::new(client, dir)?;
                (Held::Leadership(election.campaign_within("", patience).await?), 1)
            }
            Recipe::RandomElection => {
                let election = Election::new(client, dir)?.random();
                (Held::Leadership(election.campaign_within("", patience).await?), 1)
            }
            Recipe::ReadWriteLock => {
                let lock = ReadWriteLock::new(client, dir)?;
                match self.dice.below(3) {
                    0 => (Held::Write(lock.write_within(patience).await?), 1),
                    1 => {
                        let writing = lock.write_within(patience).await?;
                        (Held::Hold(writing.downgrade().await?), usize::MAX)
                    }
                    _ => (Held::Hold(lock.read_within(patience).await?), usize::MAX),
                }
            }
            Recipe::Semaphore => {
                let limit = u32::try_from(PERMITS).unwrap();
                let semaphore = Semaphore::new(client, dir, limit)?;
                (Held::Hold(semaphore.acquire_within(patience).await?), PERMITS)
            }
            Recipe::MultiLock => {
                // Any two of three: the one in the middle is in all, so that they exclude all.
                let other = if self.dice.below(2) == 0 { 0 } else { 2 };
                let locks = [format!("{dir}-{other}"), format!("{dir}-1")];
                (Held::Hold(MultiLock::new(client, locks)?.lock_within(patience).await?), 1)
            }
        })
    }

    /// Writes to the storage, which knows tokens, and to Conclave, under guard.
    async fn write(&self, client: &Client, held: &Held, at_once: usize) -> Result<(), Error> {
        let hold = held.hold();
        let token = hold.token();
        if at_once == 1 {
            let admitted = self.record.fence.lock().unwrap().admit(token);
            let is_certain = hold.is_held();
            assert!(admitted.is_ok() || !is_certain, "{:?}: {admitted:?}", self.recipe);
            if admitted.is_err() {
                self.record.stale.fetch_add(1, Ordering::Relaxed);
            }
        }
        let multi: Multi<'_> = client.multi().set(self.recipe.data(), token.to_string(), None);
        match hold.guard(multi).await {
            Ok(outcome) if at_once == 1 => {
                self.record.writes.lock().unwrap().insert(outcome.zxid, token);
            }
            Ok(_) => {}
            Err(error) => {
                self.record.stale.fetch_add(1, Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Record {
    fn check(&self, recipe: Recipe) {
        let writes = self.writes.lock().unwrap();
        let tokens: Vec<Token> = writes.values().copied().collect();
        // Where the token is that of the place in the queue, this is fairness as well.
        assert!(tokens.is_sorted(), "{recipe:?}: a later holder's token is greater: {tokens:?}");
        let mut intervals = self.intervals.lock().unwrap().clone();
        assert!(!intervals.is_empty(), "{recipe:?}: nobody held anything for certain");
        intervals.sort_by_key(|interval| interval.start);
        let alone = intervals.iter().filter(|interval| interval.at_once == 1);
        let tokens: Vec<Token> = alone.map(|interval| interval.token).collect();
        assert!(tokens.is_sorted_by(|one, next| one < next), "{recipe:?}: {tokens:?}");
        let mut open: Vec<Interval> = Vec::new();
        for next in intervals {
            open.retain(|earlier| earlier.end > next.start);
            open.push(next);
            let at_once = open.iter().map(|interval| interval.at_once).min().unwrap();
            assert!(open.len() <= at_once, "{recipe:?}: too many at once: {open:?}");
        }
    }
}

fn operations() -> u64 {
    let given = std::env::var("CONCLAVE_OPERATIONS").ok();
    given.and_then(|operations| operations.parse().ok()).unwrap_or(250)
}

#[tokio::test]
async fn no_history_is_one_that_the_recipes_do_not_allow() {
    let mut dice = Dice::new();
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    client.create("/data", "").await.unwrap();
    let mut records = BTreeMap::new();
    let mut threads = Vec::new();
    for recipe in RECIPES {
        client.create(recipe.data(), "").await.unwrap();
        let record = Arc::new(Record::default());
        for _ in 0..CONTENDERS {
            let wire = Wire::to(&cluster.addresses()).await;
            let contender =
                Contender { recipe, wire, record: Arc::clone(&record), dice: dice.split() };
            threads.push(std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(contender.run());
            }));
        }
        records.insert(recipe, record);
    }
    let goal = operations();
    let is_done = |record: &Record| record.acquired.load(Ordering::Relaxed) >= goal;
    while !records.values().all(|record| is_done(record)) {
        strike(&mut cluster, &mut dice).await;
        // Everybody gets on after each blow: nobody waits for something that has happened.
        let now = acquired(&records);
        let has_moved = || now.iter().zip(acquired(&records)).all(|(now, later)| *now < later);
        eventually("everybody gets on", async || has_moved().then_some(())).await;
    }
    for record in records.values() {
        record.stop.store(true, Ordering::Relaxed);
    }
    eventually("all contenders end", async || {
        threads.iter().all(|t| t.is_finished()).then_some(())
    })
    .await;
    for thread in threads {
        thread.join().unwrap();
    }
    for (recipe, record) in &records {
        record.check(*recipe);
        let (acquired, stale) = (&record.acquired, &record.stale);
        println!("{recipe:?}: {acquired:?} times, {stale:?} writes refused");
        for dir in recipe.empties() {
            eventually("no node is left behind", async || {
                let left = client.children(&dir).await.map_or(0, |names| names.len());
                (left == 0).then_some(())
            })
            .await;
        }
    }
}

fn acquired(records: &BTreeMap<Recipe, Arc<Record>>) -> Vec<u64> {
    records.values().map(|record| record.acquired.load(Ordering::Relaxed)).collect()
}
