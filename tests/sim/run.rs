//! Runs seeds, on several threads, and reports failures in a form that can be replayed.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use crate::knobs::SECOND;
use crate::machine::{Load, Machine};
use crate::trace::{self, Trace};
use crate::world::World;

/// What came of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// The hash of its trace.
    pub(crate) hash: u64,
    /// How many events took place.
    pub(crate) events: u64,
    /// How much virtual time passed, in µs.
    pub(crate) simulated_us: u64,
    /// How long after its healing the core served again, in µs of virtual time.
    pub(crate) recovery_us: u64,
    /// How many entries were committed.
    pub(crate) committed: u64,
}

/// Runs one seed; keeps the last `lines` of its trace.
///
/// # Panics
/// If a property is violated.
pub(crate) fn simulate<M: Machine, L: Load<M>>(seed: u64, lines: usize) -> Outcome {
    simulate_into::<M, L>(seed, &mut Trace::keeping(lines))
}

fn simulate_into<M: Machine, L: Load<M>>(seed: u64, trace: &mut Trace) -> Outcome {
    let mut world: World<'_, M, L> = World::new(seed, trace);
    world.run(world.knobs.chaos, |_| false);
    let core = world.heal();
    let healed = world.now;
    let deadline = healed + world.patience();
    assert!(
        world.run(deadline, |world| world.serves(&core)),
        "the healed quorum {core:?} does not serve within {} s: {}",
        (deadline - healed) / SECOND,
        world.load.complaint()
    );
    world.finish();
    let committed = world.checks.history().len() as u64;
    Outcome {
        hash: trace.hash(),
        events: trace.events(),
        simulated_us: trace.now_us(),
        recovery_us: trace.now_us() - healed,
        committed,
    }
}

/// Runs the regressions and then as many seeds as the environment asks for, `count` by default.
///
/// # Panics
/// If a seed fails; the message says which, why, and how to replay it.
pub(crate) fn seeds<M: Machine, L: Load<M>>(world: &str, regressions: &[u64], count: u64) {
    if let Some(wanted) = std::env::var("SIM_WORLD").ok().filter(|wanted| *wanted != world) {
        println!("{world}: skipped, SIM_WORLD={wanted}");
        return;
    }
    if let Some(seed) = variable("SIM_SEED") {
        return replay::<M, L>(world, seed);
    }
    let first = variable("SIM_START").unwrap_or(0);
    let count = variable("SIM_SEEDS").unwrap_or(count);
    let sum = run_all::<M, L>(world, regressions, first, count);
    println!("{world}: {sum}");
    let failures = sum.failures;
    assert!(failures.is_empty(), "{world}: {} seeds failed: {failures:?}", failures.len());
}

/// Runs one seed and prints the end of its trace if it fails.
fn replay<M: Machine, L: Load<M>>(world: &str, seed: u64) {
    let lines = variable("SIM_TRACE").unwrap_or(trace::LINES);
    let mut trace = Trace::keeping(lines);
    match catch_unwind(AssertUnwindSafe(|| simulate_into::<M, L>(seed, &mut trace))) {
        Ok(outcome) => {
            if std::env::var_os("SIM_TRACE").is_some() {
                trace.lines().for_each(|line| println!("{line}"));
            }
            println!("{world}: seed {seed} passes: {outcome:?}");
        }
        Err(panic) => {
            trace.lines().for_each(|line| println!("{line}"));
            panic!("{world}: seed {seed} fails: {}", reason(&*panic));
        }
    }
}

fn run_all<M: Machine, L: Load<M>>(
    world: &str,
    regressions: &[u64],
    first: u64,
    count: u64,
) -> Sum {
    let threads = variable("SIM_THREADS").unwrap_or(2).max(1);
    let clock = Clock::start();
    let next = AtomicU64::new(0);
    let stop_at_failure = std::env::var_os("SIM_STOP").is_some();
    let stop = AtomicBool::new(false);
    let total = Mutex::new(Sum::default());
    silence_expected_panics();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let seed = match usize::try_from(at).ok().and_then(|at| regressions.get(at)) {
                        Some(seed) => *seed,
                        None => first + at - regressions.len() as u64,
                    };
                    if at >= regressions.len() as u64 + count || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    EXPECTED.set(true);
                    let result = catch_unwind(|| simulate::<M, L>(seed, 0));
                    EXPECTED.set(false);
                    if result.is_err() && stop_at_failure {
                        stop.store(true, Ordering::Relaxed);
                    }
                    let mut sum = total.lock().expect("no one panics while holding it");
                    sum.add(world, seed, result.map_err(|panic| reason(&*panic)));
                    sum.wall = clock.elapsed();
                    sum.report(world, count);
                }
            });
        }
    });
    total.into_inner().expect("no one panics while holding it")
}

thread_local! {
    /// Whether this thread catches and reports its panics itself.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

fn silence_expected_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !EXPECTED.get() {
                usual(panic);
            }
        }));
    });
}

/// What came of many runs.
#[derive(Debug, Default)]
struct Sum {
    seeds: u64,
    failures: Vec<u64>,
    events: u64,
    committed: u64,
    simulated_us: u64,
    slowest_recovery_us: u64,
    wall: Duration,
    reported: u64,
}

impl Sum {
    fn add(&mut self, world: &str, seed: u64, result: Result<Outcome, String>) {
        self.seeds += 1;
        match result {
            Ok(outcome) => {
                self.events += outcome.events;
                self.committed += outcome.committed;
                self.simulated_us += outcome.simulated_us;
                self.slowest_recovery_us = self.slowest_recovery_us.max(outcome.recovery_us);
            }
            Err(reason) => {
                self.failures.push(seed);
                println!(
                    "{world}: seed {seed} fails: {reason}\n  replay: SIM_WORLD={world} \
                     SIM_SEED={seed} cargo test --release --test sim {world} -- --nocapture"
                );
            }
        }
    }

    /// A line now and then on a long run.
    fn report(&mut self, world: &str, count: u64) {
        let minute = self.wall.as_secs() / 30;
        if minute > self.reported {
            self.reported = minute;
            println!("{world}: {} of {count}: {self}", self.seeds);
        }
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let wall = self.wall.as_secs_f64();
        let hours = std::time::Duration::from_micros(self.simulated_us).as_secs_f64() / 3600.0;
        write!(
            f,
            "{} seeds, {} failed, {hours:.1} simulated hours in {wall:.1} s ({:.0} × real time), \
             {} events, {} commits, slowest recovery {:.1} s",
            self.seeds,
            self.failures.len(),
            hours * 3600.0 / wall.max(0.001),
            self.events,
            self.committed,
            Duration::from_micros(self.slowest_recovery_us).as_secs_f64(),
        )
    }
}

/// Measures how long the runs take; nothing in a run depends on it.
struct Clock(Instant);

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "the rate of a long run, for people")]
    fn start() -> Clock {
        Clock(Instant::now())
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(_) => panic!("{name}={text} is not a number"),
    }
}

fn reason(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (None, Some(text)) => (*text).to_owned(),
        (None, None) => "it panicked".to_owned(),
    }
}
