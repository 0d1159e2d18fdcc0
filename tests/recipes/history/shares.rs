//! Who has which partitions and tasks while processes pause, networks are cut, sessions expire and
//! servers die.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use conclave_client::recipes::assignment::{Order, Work};
use conclave_client::recipes::members::Group;
use conclave_client::recipes::partition::{Partitioner, Turn};
use conclave_client::recipes::{Election, Error, Token};
use conclave_client::{Client, Zxid};
use tokio::time::{sleep, timeout};

use super::goods::{Items, end, is_honest, nothing_is_left};
use super::together::program;
use super::{SESSION_TIMEOUT, operations, trouble};
use crate::chaos::{Dice, Wire, strike};
use crate::harness::{Cluster, eventually};

const SHARES: &str = "/shares/partitions";
const RECORD: &str = "/shares/record";
const WORK: &str = "/shares/work";
const ASSIGNERS: &str = "/shares/assigners";
const GROUP: &str = "/shares/group";
const PARTITIONS: usize = 6;
/// Members, workers, and as many who submit tasks.
const EACH: usize = 3;
/// About how many tasks wait at most.
const BACKLOG: usize = 100;
/// How long a program waits before it looks whether it is to go on.
const A_WHILE: Duration = Duration::from_millis(200);

/// The phases after the first, in which all work: those who submit stop first.
const DRAIN: u64 = 1;
const STOP: u64 = 2;

/// A write that a member has made while a partition was its own.
#[derive(Clone, Debug)]
struct Written {
    zxid: Zxid,
    member: usize,
    token: Token,
}

/// Says what is wrong with the writes to one partition.
fn check_writes(mut writes: Vec<Written>) -> Result<(), String> {
    writes.sort_by_key(|written| written.zxid);
    let mut owners = BTreeMap::new();
    for pair in writes.windows(2) {
        if pair[0].token > pair[1].token {
            return Err(format!("{:?} came after {:?}", pair[1], pair[0]));
        }
    }
    for written in &writes {
        let owner = *owners.entry(written.token).or_insert(written.member);
        if owner != written.member {
            return Err(format!("{written:?} has the token of {owner}"));
        }
    }
    Ok(())
}

#[derive(Default)]
struct Share {
    /// By partition.
    writes: Mutex<BTreeMap<String, Vec<Written>>>,
    /// Writes that came too late.
    refused: AtomicU64,
    tasks: Mutex<Items>,
    inside: Mutex<BTreeMap<String, Inside>>,
    phase: AtomicU64,
}

impl Share {
    fn is_in(&self, phase: u64) -> bool {
        self.phase.load(Ordering::Relaxed) >= phase
    }

    fn tasks(&self) -> MutexGuard<'_, Items> {
        self.tasks.lock().unwrap()
    }
}

/// A member that is in a group, until it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Inside {
    /// How often it had joined before.
    visit: u64,
    /// Until when its session is alive for certain.
    certain_until: Instant,
}

/// Says what is wrong with a group as it was shown between two looks at who is in it, the last one at
/// that moment: it has everybody who was in it at both, and whose session was alive for certain.
fn check_group(
    shown: &BTreeMap<String, String>,
    [before, after]: [&BTreeMap<String, Inside>; 2],
    now: Instant,
) -> Result<usize, String> {
    let mut count = 0;
    for (name, inside) in after {
        let stayed = before.get(name).is_some_and(|before| before.visit == inside.visit);
        if !stayed || inside.certain_until <= now {
            continue;
        }
        if shown.get(name) != Some(&inside.visit.to_string()) {
            return Err(format!("{name} is in, {inside:?}, and not in {shown:?}"));
        }
        count += 1;
    }
    Ok(count)
}

#[derive(Clone, Copy)]
enum Trade {
    Join,
    Member,
    Submit,
    Assign,
    Work,
}

struct Hand {
    trade: Trade,
    name: usize,
    wire: Wire,
    dice: Dice,
    share: Arc<Share>,
    number: u64,
}

impl Hand {
    fn is_over(&self) -> bool {
        self.share.is_in(if matches!(self.trade, Trade::Submit) { DRAIN } else { STOP })
    }

    async fn run(mut self) {
        while !self.is_over() {
            self.wire.mend();
            let client = self.wire.client(SESSION_TIMEOUT).await;
            while !self.is_over() {
                let outcome = match self.trade {
                    Trade::Join => self.join(&client).await,
                    Trade::Member => self.divide(&client).await,
                    Trade::Submit => self.submit(&client).await,
                    Trade::Assign => self.assign(&client).await,
                    Trade::Work => self.work(&client).await,
                };
                match outcome {
                    Ok(()) => {}
                    Err(error) if error.is_final() => break,
                    // The name may be that of its own earlier session yet.
                    Err(Error::Taken { .. }) => sleep(A_WHILE).await,
                    Err(error) => {
                        let is_fair = is_honest(&error) || matches!(error, Error::Ended { .. });
                        assert!(is_fair, "{error}");
                    }
                }
            }
        }
    }

    /// Is in a group for a while.
    async fn join(&mut self, client: &Client) -> Result<(), Error> {
        self.number += 1;
        let (name, visit) = (format!("member-{}", self.name), self.number);
        let group = Group::new(client, GROUP)?;
        let me = group.join(&name, visit.to_string()).await?;
        let note = |share: &Share| {
            let inside = Inside { visit, certain_until: client.certain_until() };
            share.inside.lock().unwrap().insert(name.clone(), inside);
        };
        for _ in 0..=self.dice.below(100) {
            note(&self.share);
            if self.is_over() || client.state().is_final() {
                break;
            }
            trouble(&self.wire, &mut self.dice, 200).await;
            sleep(Duration::from_millis(self.dice.below(20))).await;
        }
        // Before it goes.
        self.share.inside.lock().unwrap().remove(&name);
        me.leave().await
    }

    /// Is a member for a while, and writes to what it has.
    async fn divide(&mut self, client: &Client) -> Result<(), Error> {
        let name = format!("member-{}", self.name);
        let all = (0..PARTITIONS).map(|number| format!("p{number}"));
        let mut share = Partitioner::join(client, SHARES, &name, all).await?;
        let mut mine: BTreeMap<String, Token> = BTreeMap::new();
        for _ in 0..=self.dice.below(200) {
            if self.is_over() {
                break;
            }
            let patience = if mine.is_empty() { A_WHILE } else { Duration::from_millis(5) };
            match timeout(patience, share.next()).await {
                Ok(Ok(Turn::Begin { partition, token })) => drop(mine.insert(partition, token)),
                Ok(Ok(Turn::End { partition })) => {
                    mine.remove(&partition);
                    match share.release(&partition).await {
                        Err(Error::Lost { .. }) => {}
                        outcome => outcome?,
                    }
                }
                Ok(Ok(Turn::Lost { partition })) => drop(mine.remove(&partition)),
                Ok(Err(error)) => return Err(error),
                Err(_) => {}
            }
            trouble(&self.wire, &mut self.dice, 150).await;
            for (partition, token) in &mine {
                let record = format!("{RECORD}/{partition}");
                let write = client.multi().set(record, token.to_string(), None);
                match share.guard(partition, write).await {
                    Ok(outcome) => {
                        let (zxid, member, token) = (outcome.zxid, self.name, *token);
                        let mut writes = self.share.writes.lock().unwrap();
                        let writes = writes.entry(partition.clone()).or_default();
                        writes.push(Written { zxid, member, token });
                    }
                    Err(Error::Lost { .. }) => {
                        self.share.refused.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    async fn submit(&mut self, client: &Client) -> Result<(), Error> {
        if self.share.tasks().waiting() > BACKLOG {
            sleep(Duration::from_millis(20)).await;
            return Ok(());
        }
        self.number += 1;
        let task = format!("{}-{}", self.name, self.number);
        self.share.tasks().pushed.insert(task.clone(), false);
        match Work::new(client, WORK)?.submit(&task, task.clone()).await {
            Ok(is_new) => {
                assert!(is_new, "{task} was submitted by nobody else");
                self.share.tasks().pushed.insert(task, true);
            }
            Err(error) => {
                self.share.tasks().unsure += 1;
                return Err(error);
            }
        }
        trouble(&self.wire, &mut self.dice, 400).await;
        Ok(())
    }

    /// Assigns for a while, when it is elected.
    async fn assign(&mut self, client: &Client) -> Result<(), Error> {
        let candidate = Election::new(client, ASSIGNERS)?;
        let leadership = match candidate.campaign_within("", 5 * A_WHILE).await {
            Err(Error::Deadline { .. }) => return Ok(()),
            elected => elected?,
        };
        let work = Work::new(client, WORK)?;
        let time = Duration::from_millis(self.dice.below(4000));
        if let Ok(assigned) = timeout(time, work.assign(&leadership)).await {
            return assigned;
        }
        trouble(&self.wire, &mut self.dice, 8).await;
        leadership.resign().await
    }

    /// Works for a while.
    async fn work(&mut self, client: &Client) -> Result<(), Error> {
        let work = Work::new(client, WORK)?;
        let mut worker = work.worker(&format!("worker-{}", self.name)).await?;
        for _ in 0..=self.dice.below(100) {
            if self.is_over() {
                break;
            }
            let Ok(order) = timeout(A_WHILE, worker.next()).await else { continue };
            let Order::Begin(task) = order? else { continue };
            assert_eq!(task.data, task.id);
            self.share.tasks().handed.entry(task.id.clone()).or_default().insert(task.token);
            trouble(&self.wire, &mut self.dice, 150).await;
            match worker.done(&task).await {
                Ok(()) => {
                    self.share.tasks().done.entry(task.id).or_default().push(task.token);
                }
                Err(Error::Lost { .. }) => {
                    self.share.refused.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    self.share.tasks().perhaps.insert(task.id);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Starts so many of a trade.
async fn start(
    cluster: &Cluster,
    dice: &mut Dice,
    share: &Arc<Share>,
    (trade, count): (Trade, usize),
) -> Vec<std::thread::JoinHandle<()>> {
    let mut hands = Vec::new();
    for name in 0..count {
        let (wire, share) = (Wire::to(&cluster.addresses()).await, Arc::clone(share));
        let hand = Hand { trade, name, wire, dice: dice.split(), share, number: 0 };
        hands.push(program(hand, Hand::run));
    }
    hands
}

#[tokio::test]
async fn who_is_in_a_group_is_seen_and_who_is_dead_is_not() {
    let mut dice = Dice::new();
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let share = Arc::new(Share::default());
    let members = start(&cluster, &mut dice, &share, (Trade::Join, EACH)).await;
    let seen = Group::new(&client, GROUP).unwrap().members().await.unwrap();
    let shown = || -> BTreeMap<String, String> {
        let text = |data: bytes::Bytes| String::from_utf8(data.to_vec()).unwrap();
        seen.all().unwrap().into_iter().map(|(name, data)| (name, text(data))).collect()
    };
    let inside = || share.inside.lock().unwrap().clone();
    let (mut count, mut looks) = (0, 0);
    while count < usize::try_from(operations()).unwrap() {
        let before = inside();
        if let Err(error) = seen.sync().await {
            // A server was just struck; the session is a long one.
            assert!(!error.is_final(), "{error}");
            continue;
        }
        let (shown, after) = (shown(), inside());
        count += check_group(&shown, [&before, &after], now()).unwrap();
        looks += 1;
        if looks % 50 == 0 {
            strike(&mut cluster, &mut dice).await;
            eventually("all are in again", async || (inside().len() == EACH).then_some(())).await;
        }
        sleep(Duration::from_millis(2)).await;
    }
    share.phase.store(STOP, Ordering::Relaxed);
    end(members).await;
    println!("{count} members seen in {looks} looks");
    eventually("nobody is in", async || shown().is_empty().then_some(())).await;
}

#[tokio::test]
async fn each_partition_is_one_members_at_a_time_and_never_nobodys_for_long() {
    let mut dice = Dice::new();
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    client.create("/shares", "").await.unwrap();
    client.create(RECORD, "").await.unwrap();
    for number in 0..PARTITIONS {
        client.create(format!("{RECORD}/p{number}"), "").await.unwrap();
    }
    let share = Arc::new(Share::default());
    let members = start(&cluster, &mut dice, &share, (Trade::Member, EACH + 1)).await;
    let written =
        || -> Vec<usize> { share.writes.lock().unwrap().values().map(Vec::len).collect() };
    let goal = usize::try_from(operations()).unwrap();
    eventually("each has an owner", async || (written().len() == PARTITIONS).then_some(())).await;
    while written().iter().any(|count| *count < goal) {
        strike(&mut cluster, &mut dice).await;
        let now = written();
        let moves = || now.iter().zip(written()).all(|(now, later)| *now < later);
        eventually("each has an owner again", async || moves().then_some(())).await;
    }
    share.phase.store(STOP, Ordering::Relaxed);
    end(members).await;
    let writes = share.writes.lock().unwrap().clone();
    let tokens: BTreeSet<Token> = writes.values().flatten().map(|one| one.token).collect();
    println!(
        "{} writes to {PARTITIONS} partitions under {} tokens, {} refused",
        writes.values().map(Vec::len).sum::<usize>(),
        tokens.len(),
        share.refused.load(Ordering::Relaxed),
    );
    for writes in writes.into_values() {
        check_writes(writes).unwrap();
    }
    nothing_is_left(&client, &["owners", "members"].map(|name| format!("{SHARES}/{name}"))).await;
}

#[tokio::test]
async fn each_task_is_done_by_the_last_who_had_it() {
    let mut dice = Dice::new();
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let share = Arc::new(Share::default());
    let submitters = start(&cluster, &mut dice, &share, (Trade::Submit, EACH)).await;
    let mut others = start(&cluster, &mut dice, &share, (Trade::Assign, 2)).await;
    others.extend(start(&cluster, &mut dice, &share, (Trade::Work, EACH)).await);
    let done = || share.tasks().done.len();
    while done() < usize::try_from(operations()).unwrap() {
        strike(&mut cluster, &mut dice).await;
        let now = done();
        eventually("tasks are done", async || (done() > now).then_some(())).await;
    }
    share.phase.store(DRAIN, Ordering::Relaxed);
    end(submitters).await;
    let mut left = client.children(format!("{WORK}/tasks")).await.unwrap().len();
    while left > 0 {
        left = eventually("fewer tasks are left", async || {
            let now = client.children(format!("{WORK}/tasks")).await.unwrap().len();
            (now < left).then_some(now)
        })
        .await;
    }
    share.phase.store(STOP, Ordering::Relaxed);
    end(others).await;
    let tasks = share.tasks().clone();
    println!(
        "{} tasks done, {} perhaps, {} begun more than once, {} refused",
        tasks.done.len(),
        tasks.perhaps.len(),
        tasks.handed.values().filter(|tokens| tokens.len() > 1).count(),
        share.refused.load(Ordering::Relaxed),
    );
    tasks.check().unwrap();
    let directories = ["assigned", "workers"].map(|name| format!("{WORK}/{name}"));
    nothing_is_left(&client, &directories).await;
}

#[test]
fn the_checkers_see_what_two_had_and_what_is_lost() {
    let now = now();
    let inside = |visit, ms| Inside { visit, certain_until: now + Duration::from_millis(ms) };
    let is_in = |inside| BTreeMap::from([(String::from("a"), inside)]);
    let shown = BTreeMap::from([(String::from("a"), String::from("2"))]);
    let both = |before, after| check_group(&shown, [&is_in(before), &is_in(after)], now);
    assert_eq!(both(inside(2, 5), inside(2, 9)), Ok(1));
    assert_eq!(both(inside(1, 5), inside(3, 9)), Ok(0));
    assert_eq!(both(inside(3, 5), inside(3, 0)), Ok(0));
    assert!(both(inside(3, 5), inside(3, 9)).unwrap_err().contains("and not in"));

    let zxid = Zxid::from_bits;
    let written = |at, member, token| Written { zxid: zxid(at), member, token: Token::new(token) };
    check_writes(vec![written(2, 1, 1), written(5, 2, 4), written(3, 1, 1)]).unwrap();
    let why = check_writes(vec![written(2, 1, 1), written(5, 2, 4), written(6, 1, 1)]);
    assert!(why.unwrap_err().contains("came after"));
    let why = check_writes(vec![written(2, 1, 1), written(3, 2, 1)]);
    assert!(why.unwrap_err().contains("has the token of 1"));

    let text = |text: &str| String::from(text);
    let good = Items {
        pushed: [(text("a"), true), (text("b"), false)].into(),
        handed: [(text("a"), [Token::new(1), Token::new(2)].into())].into(),
        done: [(text("a"), vec![Token::new(2)])].into(),
        ..Items::default()
    };
    good.check().unwrap();
    let bad = |change: &dyn Fn(&mut Items), why: &str| {
        let mut tasks = good.clone();
        change(&mut tasks);
        let found = tasks.check().unwrap_err();
        assert!(found.contains(why), "{found}, and not: {why}");
    };
    bad(&|tasks| drop(tasks.done.remove("a")), "a is lost");
    bad(&|tasks| tasks.pushed.clear(), "never pushed");
    bad(&|tasks| tasks.done.get_mut("a").unwrap().push(Token::new(1)), "more than once");
    bad(&|tasks| drop(tasks.done.insert(text("a"), vec![Token::new(1)])), "handed out");
}
