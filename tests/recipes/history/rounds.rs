//! Who was in a double barrier when, while processes pause, networks are cut and servers die.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use conclave_client::Client;
use conclave_client::recipes::{DoubleBarrier, Error};
use tokio::time::{Instant, sleep};

use super::{SESSION_TIMEOUT, operations, trouble};
use crate::chaos::{Dice, Wire, strike};
use crate::harness::{Cluster, eventually};

const BARRIER: &str = "/recipes/double";
/// So many have to come, of one more.
const COUNT: usize = 3;

/// One member's way through one round.
#[derive(Clone, Copy, Debug)]
struct Passage {
    member: usize,
    came: Instant,
    entered: Instant,
    /// When it asked to leave; or when its session was found to be over.
    asked: Instant,
    /// When it had left, if it has.
    left: Option<Instant>,
}

/// Says what is wrong with the passages of a barrier for `count`, of which `trials` came and did not
/// get in.
fn check(
    count: usize,
    passages: &[Passage],
    trials: &[(usize, Instant, Instant)],
) -> Result<(), String> {
    for one in passages {
        // Those who were there at some moment between its coming and its entering.
        let mut there: Vec<usize> = passages
            .iter()
            .map(|other| (other.member, other.came, other.left.unwrap_or(other.asked)))
            .chain(trials.iter().copied())
            .filter(|(_, came, gone)| *came <= one.entered && *gone >= one.came)
            .map(|(member, ..)| member)
            .collect();
        there.sort_unstable();
        there.dedup();
        if there.len() < count {
            return Err(format!("{one:?} entered, and only {there:?} had come"));
        }
        let Some(left) = one.left else { continue };
        // Whoever was inside at the same time was in the same round; and it was there, if its session
        // was alive to the end.
        let inside = |other: &&Passage| other.entered <= one.asked && other.asked >= one.entered;
        if let Some(other) =
            passages.iter().filter(inside).find(|o| o.left.is_some() && o.asked > left)
        {
            return Err(format!("{one:?} left, and {other:?} was still inside"));
        }
    }
    Ok(())
}

#[derive(Default)]
struct Log {
    passages: Mutex<Vec<Passage>>,
    /// Those who came and whose session ended before they were in.
    trials: Mutex<Vec<(usize, Instant, Instant)>>,
    stop: AtomicBool,
}

impl Log {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

struct Member {
    number: usize,
    wire: Wire,
    dice: Dice,
    log: Arc<Log>,
}

impl Member {
    async fn run(mut self) {
        while !self.log.is_over() {
            self.wire.mend();
            let client = self.wire.client(SESSION_TIMEOUT).await;
            while !self.log.is_over() {
                match self.pass(&client).await {
                    Ok(()) => {}
                    Err(error) if error.is_final() => break,
                    Err(Error::Lost { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    async fn pass(&mut self, client: &Client) -> Result<(), Error> {
        let (number, came) = (self.number, Instant::now());
        let barrier = DoubleBarrier::new(client, BARRIER, COUNT)?;
        let entered = tokio::select! {
            inside = barrier.enter() => inside,
            () = self.log_is_over() => {
                self.log.trials.lock().unwrap().push((number, came, Instant::now()));
                return Ok(());
            }
        };
        let inside = match entered {
            Ok(inside) => inside,
            Err(error) => {
                self.log.trials.lock().unwrap().push((number, came, Instant::now()));
                return Err(error);
            }
        };
        let entered = Instant::now();
        trouble(&self.wire, &mut self.dice, 200).await;
        let asked = Instant::now();
        let outcome = inside.leave().await;
        let left = outcome.is_ok().then(Instant::now);
        self.log.passages.lock().unwrap().push(Passage {
            member: number,
            came,
            entered,
            asked,
            left,
        });
        outcome
    }

    async fn log_is_over(&self) {
        while !self.log.is_over() {
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn nobody_is_in_alone_and_nobody_leaves_before_the_others_may() {
    let mut dice = Dice::new();
    let mut cluster = Cluster::start(3).await;
    let log = Arc::new(Log::default());
    let mut members = Vec::new();
    for number in 0..=COUNT {
        let (wire, log) = (Wire::to(&cluster.addresses()).await, Arc::clone(&log));
        let member = Member { number, wire, dice: dice.split(), log };
        members.push(std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(member.run());
        }));
    }
    let goal = usize::try_from(operations()).unwrap();
    let passed = || log.passages.lock().unwrap().len();
    while passed() < goal {
        strike(&mut cluster, &mut dice).await;
        let now = passed();
        eventually("rounds go on", async || (passed() > now + COUNT).then_some(())).await;
    }
    log.stop.store(true, Ordering::Relaxed);
    eventually("all members end", async || {
        members.iter().all(|member| member.is_finished()).then_some(())
    })
    .await;
    for member in members {
        member.join().unwrap();
    }
    let (passages, trials) =
        (log.passages.lock().unwrap().clone(), log.trials.lock().unwrap().clone());
    println!("{} passages, {} ended before they were in", passages.len(), trials.len());
    check(COUNT, &passages, &trials).unwrap();
    let client = cluster.client().await;
    eventually("nobody is left", async || {
        let left = client.children(BARRIER).await.unwrap_or_default();
        left.iter().all(|name| name == "ready").then_some(())
    })
    .await;
}

#[test]
fn the_checker_sees_who_is_alone_and_who_leaves_too_soon() {
    let begin = Instant::now();
    let at = |ms| begin + Duration::from_millis(ms);
    let passage = |member, [came, entered, asked, left]: [u64; 4]| Passage {
        member,
        came: at(came),
        entered: at(entered),
        asked: at(asked),
        left: Some(at(left)),
    };
    let good = [passage(1, [0, 5, 6, 9]), passage(2, [4, 6, 8, 9])];
    check(2, &good, &[]).unwrap();
    let alone = [passage(1, [0, 1, 2, 3]), passage(2, [4, 6, 8, 9])];
    assert!(check(2, &alone, &[]).unwrap_err().contains("had come"));
    check(2, &alone[..1], &[(2, at(0), at(7))]).unwrap();
    let soon = [passage(1, [0, 5, 6, 7]), passage(2, [4, 6, 8, 9])];
    assert!(check(2, &soon, &[]).unwrap_err().contains("still inside"));
}
