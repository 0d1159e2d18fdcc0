//! What holders did, and whether that is a history that the recipes allow: contenders whose
//! processes are paused, whose network is cut, who give up waiting, on servers that die and freeze.
//!
//! `CONCLAVE_OPERATIONS` says how often each recipe is acquired.

mod broken;
mod checker;
mod decided;
mod goods;
mod rounds;
mod shares;
mod shown;
mod together;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use conclave_client::recipes::{self, Election, Error, Fence, Hold, Leadership, Lease, LeaseHold};
use conclave_client::recipes::{MultiLease, MultiLock, ReadWriteLock, Semaphore, Token, WriteHold};
use conclave_client::{Client, ErrorCode, Multi, MultiOutcome};
use tokio::time::{Instant, sleep};

use crate::chaos::{Dice, Wire, strike};
use crate::harness::{Cluster, DEADLINE, eventually};
use broken::{Broken, Fault};
use checker::{History, Interval};

/// Contenders for each recipe, each with a thread, a session and a network of its own.
const CONTENDERS: u64 = 4;
/// The shortest that servers grant.
const SESSION_TIMEOUT: Duration = Duration::from_secs(1);
/// How many hold a permit of the semaphore, or one of several leases, at once.
const PERMITS: usize = 2;
/// How long a lease lasts that nobody releases.
const LEASE: Duration = Duration::from_millis(300);
/// After how many turns a contender looks for nodes that it has left behind.
const TIDY: u64 = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Recipe {
    Mutex,
    Election,
    RandomElection,
    ReadWriteLock,
    Semaphore,
    MultiLock,
    Lease,
    MultiLease,
    /// A lock that is wrong in this way.
    Broken(Fault),
}

const RECIPES: [Recipe; 8] = [
    Recipe::Mutex,
    Recipe::Election,
    Recipe::RandomElection,
    Recipe::ReadWriteLock,
    Recipe::Semaphore,
    Recipe::MultiLock,
    Recipe::Lease,
    Recipe::MultiLease,
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
            // It is the node itself.
            Recipe::Lease => Vec::new(),
            Recipe::Mutex
            | Recipe::Election
            | Recipe::RandomElection
            | Recipe::ReadWriteLock
            | Recipe::MultiLease
            | Recipe::Broken(_) => vec![dir],
        }
    }

    /// One in how many holders drops what it holds, and releases it by that if the recipe does so.
    fn drops(self) -> u64 {
        match self {
            // What is dropped lasts until its time is over.
            Recipe::Lease | Recipe::MultiLease => 100,
            Recipe::Broken(_) => u64::MAX,
            Recipe::Mutex
            | Recipe::Election
            | Recipe::RandomElection
            | Recipe::ReadWriteLock
            | Recipe::Semaphore
            | Recipe::MultiLock => 4,
        }
    }
}

/// Whatever is held.
enum Held {
    Hold(Hold),
    Write(WriteHold),
    Leadership(Leadership),
    Lease(LeaseHold),
    Broken(Broken),
}

impl Held {
    fn token(&self) -> Token {
        match self {
            Held::Hold(hold) => hold.token(),
            Held::Write(hold) => hold.token(),
            Held::Leadership(leadership) => leadership.token(),
            Held::Lease(lease) => lease.token(),
            Held::Broken(broken) => broken.token(),
        }
    }

    fn is_held(&self) -> bool {
        match self {
            Held::Hold(hold) => hold.is_held(),
            Held::Write(hold) => hold.is_held(),
            Held::Leadership(leadership) => leadership.is_held(),
            Held::Lease(lease) => lease.is_held(),
            Held::Broken(broken) => broken.is_held(),
        }
    }

    async fn guard(&self, multi: Multi<'_>) -> Result<MultiOutcome, Error> {
        match self {
            Held::Hold(hold) => hold.guard(multi).await,
            Held::Write(hold) => hold.guard(multi).await,
            Held::Leadership(leadership) => leadership.guard(multi).await,
            Held::Lease(lease) => lease.guard(multi).await,
            Held::Broken(_) => Ok(multi.await?),
        }
    }

    async fn release(self) -> Result<(), Error> {
        match self {
            Held::Hold(hold) => hold.release().await,
            Held::Write(hold) => hold.release().await,
            Held::Leadership(leadership) => leadership.resign().await,
            Held::Lease(lease) => lease.release().await,
            Held::Broken(broken) => broken.release().await,
        }
    }
}

/// What the contenders for one recipe did.
#[derive(Default)]
struct Record {
    acquired: AtomicU64,
    /// Writes that the storage refused, or the servers, since the hold was lost.
    stale: AtomicU64,
    history: Mutex<History>,
    /// The storage that the lock protects.
    fence: Mutex<Fence>,
    stop: AtomicBool,
}

impl Record {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn wrong(&self, what: String) {
        self.history.lock().unwrap().wrong.push(what);
    }
}

struct Contender {
    recipe: Recipe,
    wire: Wire,
    record: Arc<Record>,
    dice: Dice,
    /// Nobody waits for longer than this, unless a wake-up was lost.
    patience: Duration,
}

impl Contender {
    /// Contends on a thread of its own, so that it can be paused like a process.
    fn spawn(self) -> JoinHandle<()> {
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(self.run());
        })
    }

    async fn run(mut self) {
        let mut turns = 0;
        while !self.record.is_stopped() {
            let client = self.connect().await;
            while !self.record.is_stopped() {
                turns += 1;
                let outcome = match self.turn(&client).await {
                    Ok(()) if turns % TIDY == 0 => self.tidy(&client).await,
                    outcome => outcome,
                };
                match outcome {
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
        let patience =
            if gives_up { Duration::from_millis(self.dice.below(30)) } else { self.patience };
        let (held, at_once) = match self.acquire(client, patience).await {
            Err(error @ Error::Deadline { .. }) if !gives_up => {
                self.record.wrong(format!("lost wake-up: {error} after {patience:?}"));
                return Err(error);
            }
            acquired => acquired?,
        };
        self.record.acquired.fetch_add(1, Ordering::Relaxed);
        let start = Instant::now();
        trouble(&self.wire, &mut self.dice, 150).await;
        let written = self.write(client, &held, at_once).await;
        let end = Instant::now();
        if held.is_held() {
            let interval = Interval { start, end, token: held.token(), at_once };
            self.record.history.lock().unwrap().intervals.push(interval);
        }
        match self.dice.below(self.recipe.drops()) {
            0 => drop(held),
            _ => held.release().await?,
        }
        written
    }

    /// Makes sure that no node of this session is left while it holds nothing and waits for nothing:
    /// who is dropped deletes its node, if not at once.
    async fn tidy(&self, client: &Client) -> Result<(), Error> {
        let deadline = Instant::now() + self.patience;
        for dir in self.recipe.empties() {
            loop {
                let page = match client.list(&dir).with_stat().send().await {
                    Ok(page) => page,
                    Err(error) if error.code() == Some(ErrorCode::NoNode) => break,
                    Err(error) => return Err(error.into()),
                };
                let owner = |stat: &Option<conclave_client::Stat>| stat.map(|s| s.ephemeral_owner);
                let mine = page.entries.iter().find(|e| owner(&e.stat) == Some(client.session()));
                let Some(mine) = mine else { break };
                if Instant::now() > deadline {
                    self.record.wrong(format!("orphan node: {dir}/{}", mine.name));
                    break;
                }
                sleep(Duration::from_millis(10)).await;
            }
        }
        Ok(())
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
            Recipe::Lease => {
                let lease = Lease::new(client, &dir, LEASE)?;
                let take = async || lease.acquire("").await;
                (Held::Lease(poll(patience, &dir, take).await?), 1)
            }
            Recipe::MultiLease => {
                let limit = u16::try_from(PERMITS).unwrap();
                let leases = MultiLease::new(client, &dir, limit, LEASE)?;
                let take = async || leases.acquire("").await;
                (Held::Lease(poll(patience, &dir, take).await?), PERMITS)
            }
            Recipe::Broken(fault) => {
                (Held::Broken(Broken::acquire(fault, client, &dir, patience).await?), 1)
            }
        })
    }

    /// Writes to the storage, which knows tokens, and to Conclave, under guard.
    async fn write(&self, client: &Client, held: &Held, at_once: usize) -> Result<(), Error> {
        let token = held.token();
        if at_once == 1 {
            let admitted = self.record.fence.lock().unwrap().admit(token);
            if let Err(error) = admitted {
                self.record.stale.fetch_add(1, Ordering::Relaxed);
                if held.is_held() {
                    self.record.wrong(format!("token goes back: it is held, and {error}"));
                }
            }
        }
        let multi: Multi<'_> = client.multi().set(self.recipe.data(), token.to_string(), None);
        match held.guard(multi).await {
            Ok(outcome) if at_once == 1 => {
                self.record.history.lock().unwrap().writes.insert(outcome.zxid, token);
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

/// Tries again and again, for nobody is told when a lease is over.
async fn poll(
    patience: Duration,
    path: &str,
    mut take: impl AsyncFnMut() -> Result<Option<LeaseHold>, Error>,
) -> Result<LeaseHold, Error> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(held) = take().await? {
            return Ok(held);
        }
        if Instant::now() >= deadline {
            return Err(Error::Deadline { path: conclave_client::ZPath::new(path).unwrap() });
        }
        sleep(Duration::from_millis(2)).await;
    }
}

/// How often each recipe is used.
fn operations() -> u64 {
    let given = std::env::var("CONCLAVE_OPERATIONS").ok();
    given.and_then(|operations| operations.parse().ok()).unwrap_or(250)
}

/// Starts the contenders for these recipes.
async fn contend(
    cluster: &Cluster,
    recipes: &[Recipe],
    patience: Duration,
    dice: &mut Dice,
) -> (BTreeMap<Recipe, Arc<Record>>, Vec<JoinHandle<()>>) {
    let client = cluster.client().await;
    client.create("/data", "").await.unwrap();
    let (mut records, mut threads) = (BTreeMap::new(), Vec::new());
    for &recipe in recipes {
        client.create(recipe.data(), "").await.unwrap();
        let record = Arc::new(Record::default());
        for _ in 0..CONTENDERS {
            let (wire, record) = (Wire::to(&cluster.addresses()).await, Arc::clone(&record));
            let contender = Contender { recipe, wire, record, dice: dice.split(), patience };
            threads.push(contender.spawn());
        }
        records.insert(recipe, record);
    }
    (records, threads)
}

async fn stop(records: &BTreeMap<Recipe, Arc<Record>>, threads: Vec<JoinHandle<()>>) {
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
}

#[tokio::test]
async fn no_history_is_one_that_the_recipes_do_not_allow() {
    let mut dice = Dice::new();
    let mut cluster = Cluster::start(3).await;
    let (records, threads) = contend(&cluster, &RECIPES, DEADLINE, &mut dice).await;
    let goal = operations();
    let is_done = |record: &Record| record.acquired.load(Ordering::Relaxed) >= goal;
    while !records.values().all(|record| is_done(record)) {
        strike(&mut cluster, &mut dice).await;
        // Everybody gets on after each blow: nobody waits for something that has happened.
        let now = acquired(&records);
        let has_moved = || now.iter().zip(acquired(&records)).all(|(now, later)| *now < later);
        eventually("everybody gets on", async || has_moved().then_some(())).await;
    }
    stop(&records, threads).await;
    let client = cluster.client().await;
    let mut wrong = Vec::new();
    for (recipe, record) in &records {
        let (checked, held) = {
            let history = record.history.lock().unwrap();
            (history.check(), history.intervals.len())
        };
        wrong.extend(checked.err().map(|wrong| format!("{recipe:?}: {wrong}")));
        assert!(held > 0, "{recipe:?}: nobody held anything for certain");
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
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The checker sees what is wrong with locks that are wrong.
#[tokio::test]
async fn broken_locks_are_caught() {
    let mut dice = Dice::new();
    let cluster = Cluster::start(1).await;
    let recipes = Fault::ALL.map(Recipe::Broken);
    let patience = Duration::from_secs(3);
    let (records, threads) = contend(&cluster, &recipes, patience, &mut dice).await;
    for (recipe, record) in &records {
        let wrong =
            eventually("the fault is seen", async || record.history.lock().unwrap().check().err())
                .await;
        let Recipe::Broken(fault) = recipe else { unreachable!("all are broken") };
        println!("{fault:?}: {wrong}");
        assert!(fault.signs().iter().any(|sign| wrong.contains(sign)), "{fault:?}: {wrong}");
    }
    stop(&records, threads).await;
}

fn acquired(records: &BTreeMap<Recipe, Arc<Record>>) -> Vec<u64> {
    records.values().map(|record| record.acquired.load(Ordering::Relaxed)).collect()
}

/// A fault of one contender, three times in so many: its process is paused, or its network is cut. What
/// the dice showed.
async fn trouble(wire: &Wire, dice: &mut Dice, odds: u64) -> u64 {
    let shown = dice.below(odds);
    match shown {
        // The whole process stops: its runtime does nothing meanwhile.
        0 => std::thread::sleep(Duration::from_millis(500 + dice.below(2000))),
        1 | 2 => {
            wire.cut();
            // The network comes back while something is on its way.
            sleep(Duration::from_millis(dice.below(2000))).await;
            wire.mend();
        }
        _ => {}
    }
    shown
}
