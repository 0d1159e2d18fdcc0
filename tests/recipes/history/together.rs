//! What primaries append and followers are told, while processes pause, networks are cut, sessions
//! expire and servers die.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use conclave_client::Client;
use conclave_client::recipes::log::{Entry, Follower, Log, Writer};
use conclave_client::recipes::{Election, Error, Token};
use tokio::time::{sleep, timeout};

use super::goods::{end, is_honest};
use super::{SESSION_TIMEOUT, operations, trouble};
use crate::chaos::{Dice, Wire, strike};
use crate::harness::{Cluster, eventually};

const LOG: &str = "/together/log";
const ELECTION: &str = "/together/election";
/// Candidates, and as many who only follow.
const EACH: usize = 3;

/// Starts a program on a thread and a runtime of its own, so that it can be paused like a process.
pub(super) fn program<P: Send + 'static>(
    program: P,
    run: impl AsyncFnOnce(P) + Send + 'static,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(run(program));
    })
}

/// All operations up to one, in one number.
fn digest(before: u64, operation: &str) -> u64 {
    operation.bytes().fold(before ^ 0xcbf2_9ce4_8422_2325, |digest, byte| {
        (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What one follower was told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    State(u64, u64),
    Operation(u64, String),
}

/// What primaries did and followers were told.
#[derive(Clone, Default)]
struct Tale {
    acknowledged: BTreeMap<u64, String>,
    /// The operations of appends that failed since the leadership was lost.
    refused: BTreeSet<String>,
    /// Under which token each operation was appended, if it was.
    tokens: BTreeMap<String, Token>,
    /// Where the log ended after a leadership had begun.
    began: BTreeMap<Token, u64>,
    /// By follower.
    told: Vec<Vec<Told>>,
}

impl Tale {
    /// Says what is wrong with it.
    fn check(&self) -> Result<(), String> {
        let mut log = BTreeMap::new();
        for told in &self.told {
            read(told, &mut log)?;
        }
        let mut digests = vec![0];
        for (at, (number, operation)) in (1..).zip(&log) {
            if *number != at {
                return Err(format!("nobody was told of {at}"));
            }
            digests.push(digest(digests.last().copied().unwrap_or_default(), operation));
        }
        for told in self.told.iter().flatten() {
            let Told::State(number, state) = told else { continue };
            let made = usize::try_from(*number).ok().and_then(|at| digests.get(at));
            if made != Some(state) {
                return Err(format!("{told:?} does not stand for what was before it"));
            }
        }
        for (number, operation) in &self.acknowledged {
            if log.get(number) != Some(operation) {
                let found = log.get(number);
                return Err(format!(
                    "{operation} was acknowledged as {number}, which is {found:?}"
                ));
            }
        }
        self.check_log(&log)
    }

    /// Nothing is in it twice, or in spite of a refusal, or after a successor had begun.
    fn check_log(&self, log: &BTreeMap<u64, String>) -> Result<(), String> {
        let (mut all, mut last) = (BTreeSet::new(), Token::new(0));
        for (number, operation) in log {
            if !all.insert(operation) {
                return Err(format!("{operation} is in the log twice, the last time as {number}"));
            }
            if self.refused.contains(operation) {
                return Err(format!("{operation} was refused, and is {number}"));
            }
            let Some(token) = self.tokens.get(operation).copied() else {
                return Err(format!("{operation} was never appended, and is {number}"));
            };
            let mut later = self.began.iter().filter(|(successor, _)| **successor > token);
            if last > token || later.any(|(_, end)| end < number) {
                return Err(format!("{operation} is {number}: too late for {token}"));
            }
            last = token;
        }
        Ok(())
    }
}

/// Adds what one follower was told to what others were, if it is the same and in order.
fn read(told: &[Told], log: &mut BTreeMap<u64, String>) -> Result<(), String> {
    let mut last = 0;
    for entry in told {
        match entry {
            Told::State(number, _) if *number > last => last = *number,
            Told::Operation(number, operation) if *number == last + 1 => {
                let known = log.entry(*number).or_insert_with(|| operation.clone());
                if known != operation {
                    return Err(format!("{number} is {known} to one, and {operation} to another"));
                }
                last = *number;
            }
            Told::State(..) | Told::Operation(..) => {
                return Err(format!("after {last} came {entry:?}"));
            }
        }
    }
    Ok(())
}

#[derive(Default)]
struct Story {
    tale: Mutex<Tale>,
    /// Primaries go on no more.
    stop: AtomicBool,
    /// Where the log ends, when that is certain: followers go on to there.
    end: AtomicU64,
    states: AtomicU64,
}

impl Story {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn tale(&self) -> std::sync::MutexGuard<'_, Tale> {
        self.tale.lock().unwrap()
    }
}

/// A follower and what it has made of the log.
struct Reader {
    follower: Follower,
    story: Arc<Story>,
    /// Its place among those who were told.
    place: usize,
    number: u64,
    digest: u64,
}

impl Reader {
    async fn of(log: &Log, story: &Arc<Story>) -> Result<Reader, Error> {
        let follower = log.follow().await?;
        let mut tale = story.tale();
        tale.told.push(Vec::new());
        let place = tale.told.len() - 1;
        Ok(Reader { follower, story: Arc::clone(story), place, number: 0, digest: 0 })
    }

    async fn read(&mut self) -> Result<(), Error> {
        let told = match self.follower.next().await? {
            Entry::State { number, state } => {
                let state = std::str::from_utf8(&state).unwrap().parse().unwrap();
                (self.number, self.digest) = (number, state);
                Told::State(number, state)
            }
            Entry::Operation { number, operation } => {
                let operation = String::from_utf8(operation.to_vec()).unwrap();
                (self.number, self.digest) = (number, digest(self.digest, &operation));
                Told::Operation(number, operation)
            }
        };
        self.story.tale().told[self.place].push(told);
        Ok(())
    }

    async fn read_to(&mut self, number: u64) -> Result<(), Error> {
        while self.number < number {
            self.read().await?;
        }
        Ok(())
    }
}

struct Scribe {
    name: usize,
    leads: bool,
    wire: Wire,
    /// Over which it reads and writes the log, with a session that outlives the leadership.
    other: Wire,
    dice: Dice,
    story: Arc<Story>,
    operations: u64,
}

impl Scribe {
    fn is_over(&self) -> bool {
        if self.leads { self.story.is_over() } else { self.story.end.load(Ordering::Relaxed) > 0 }
    }

    async fn run(mut self) {
        let mut is_at_end = false;
        while !is_at_end {
            self.wire.mend();
            let client = self.wire.client(SESSION_TIMEOUT).await;
            let other = self.other.client(20 * SESSION_TIMEOUT).await;
            while !is_at_end {
                let outcome = if self.leads {
                    self.lead(&client, &other).await
                } else {
                    self.follow(&client).await
                };
                match outcome {
                    Ok(()) => is_at_end = self.is_over(),
                    Err(error) if error.is_final() => break,
                    // Those who only appended are done, also if the last of it failed.
                    Err(error) if self.leads => {
                        assert!(is_fair(&error), "{error}");
                        is_at_end = self.is_over();
                    }
                    Err(error) => assert!(is_fair(&error), "{error}"),
                }
            }
        }
    }

    /// Leads for a while, with one session, and writes with another.
    async fn lead(&mut self, client: &Client, other: &Client) -> Result<(), Error> {
        let election = Election::new(client, ELECTION)?;
        let leadership = election.campaign("").await?;
        let log = Log::new(other, LOG)?;
        let mut writer = log.write(leadership.hold()).await?;
        let mut reader = Reader::of(&log, &self.story).await?;
        let end = reader.follower.end().await?;
        self.story.tale().began.insert(leadership.token(), end);
        reader.read_to(end).await?;
        for _ in 0..=self.dice.below(16) {
            let end = self.append(&mut writer, leadership.token()).await?;
            trouble(&self.wire, &mut self.dice, 60).await;
            if let Some(end) = end.filter(|_| self.dice.below(8) == 0) {
                reader.read_to(end).await?;
                writer.compact(reader.number, reader.digest.to_string()).await?;
                self.story.states.fetch_add(1, Ordering::Relaxed);
            }
            sleep(Duration::from_millis(self.dice.below(20))).await;
        }
        match self.dice.below(4) {
            0 => drop(leadership),
            _ => leadership.resign().await?,
        }
        Ok(())
    }

    /// Appends some operations. Answer: the number of the last, if it was told in time.
    async fn append(
        &mut self,
        writer: &mut Writer<'_>,
        token: Token,
    ) -> Result<Option<u64>, Error> {
        let mut some = Vec::new();
        for _ in 0..=self.dice.below(3) {
            self.operations += 1;
            some.push(format!("{}-{}", self.name, self.operations));
        }
        let tokens = some.iter().map(|operation| (operation.clone(), token));
        self.story.tale().tokens.extend(tokens);
        let gives_up = self.dice.below(20) == 0;
        let patience = if gives_up { self.dice.below(4) } else { 120_000 };
        let appended = writer.append(some.clone());
        let Ok(appended) = timeout(Duration::from_millis(patience), appended).await else {
            return Ok(None);
        };
        let mut tale = self.story.tale();
        match &appended {
            Ok(last) => {
                let first = last + 1 - some.len() as u64;
                for (number, operation) in (first..).zip(some) {
                    let twice = tale.acknowledged.insert(number, operation);
                    assert_eq!(twice, None, "{number} was given twice");
                }
            }
            Err(Error::Lost { .. }) => tale.refused.extend(some),
            Err(_) => {}
        }
        appended.map(Some)
    }

    /// Follows for a while, or to the end.
    async fn follow(&mut self, client: &Client) -> Result<(), Error> {
        let mut reader = Reader::of(&Log::new(client, LOG)?, &self.story).await?;
        for _ in 0..=self.dice.below(200) {
            if self.is_over() {
                break;
            }
            if let Ok(read) = timeout(Duration::from_millis(50), reader.read()).await {
                read?;
            }
            trouble(&self.wire, &mut self.dice, 200).await;
        }
        if self.is_over() {
            reader.read_to(self.story.end.load(Ordering::Relaxed)).await?;
        }
        Ok(())
    }
}

/// Whether it is an error that may happen, and no conflict: nobody else has the same hold.
fn is_fair(error: &Error) -> bool {
    is_honest(error) && !matches!(error, Error::Conflict { .. })
}

#[tokio::test]
async fn all_are_told_one_log_that_only_the_primary_writes() {
    let mut dice = Dice::new();
    let mut cluster = Cluster::start(3).await;
    let story = Arc::new(Story::default());
    let (mut primaries, mut followers) = (Vec::new(), Vec::new());
    for name in 0..2 * EACH {
        let servers = cluster.addresses();
        let (wire, other) = (Wire::to(&servers).await, Wire::to(&servers).await);
        let leads = name < EACH;
        let (dice, story) = (dice.split(), Arc::clone(&story));
        let scribe = Scribe { name, leads, wire, other, dice, story, operations: 0 };
        let scribes = if leads { &mut primaries } else { &mut followers };
        scribes.push(program(scribe, Scribe::run));
    }
    let appended = || story.tale().acknowledged.len();
    while appended() < usize::try_from(operations()).unwrap() {
        strike(&mut cluster, &mut dice).await;
        let now = appended();
        eventually("somebody appends", async || (appended() > now).then_some(())).await;
    }
    story.stop.store(true, Ordering::Relaxed);
    end(primaries).await;
    let client = cluster.client().await;
    let mut last = Reader::of(&Log::new(&client, LOG).unwrap(), &story).await.unwrap();
    let length = last.follower.end().await.unwrap();
    story.end.store(length, Ordering::Relaxed);
    end(followers).await;
    last.read_to(length).await.unwrap();
    let tale = story.tale().clone();
    println!(
        "{} operations, {} of them acknowledged and {} refused; {} leaderships, {} states, {} followers",
        length,
        tale.acknowledged.len(),
        tale.refused.len(),
        tale.began.len(),
        story.states.load(Ordering::Relaxed),
        tale.told.len(),
    );
    tale.check().unwrap();
}

#[test]
fn the_checker_sees_what_followers_must_not_be_told() {
    let text = |text: &str| String::from(text);
    let told = |number, operation: &str| Told::Operation(number, text(operation));
    let both = digest(digest(0, "a"), "b");
    let good = Tale {
        acknowledged: [(1, text("a")), (3, text("c"))].into(),
        refused: [text("d")].into(),
        tokens: [("a", 1), ("b", 1), ("c", 5), ("d", 1)]
            .map(|(operation, token)| (text(operation), Token::new(token)))
            .into(),
        began: [(Token::new(1), 0), (Token::new(5), 2)].into(),
        told: vec![vec![told(1, "a"), told(2, "b")], vec![Told::State(2, both), told(3, "c")]],
    };
    good.check().unwrap();
    let bad = |change: &dyn Fn(&mut Tale), why: &str| {
        let mut tale = good.clone();
        change(&mut tale);
        let found = tale.check().unwrap_err();
        assert!(found.contains(why), "{found}, and not: {why}");
    };
    bad(&|tale| tale.told.push(vec![told(2, "b")]), "after 0 came");
    bad(&|tale| tale.told[0].push(told(2, "b")), "after 2 came");
    bad(&|tale| tale.told.push(vec![told(1, "b")]), "to another");
    bad(&|tale| tale.told[1].push(told(4, "a")), "twice");
    bad(&|tale| tale.told[1].push(told(4, "d")), "refused");
    bad(&|tale| tale.told[1].push(told(4, "e")), "never appended");
    bad(&|tale| drop(tale.told.remove(0)), "nobody was told of 1");
    bad(&|tale| tale.told[1][0] = Told::State(2, 0), "stand for");
    bad(&|tale| drop(tale.acknowledged.insert(4, text("f"))), "acknowledged as 4");
    bad(&|tale| tale.tokens.extend([(text("b"), Token::new(7))]), "too late");
    bad(&|tale| tale.began.extend([(Token::new(5), 1)]), "too late");
}
