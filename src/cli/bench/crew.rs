//! The threads that the clients of a load share, so that the load is not the limit itself.
//!
//! Each thread opens the sessions of its clients and drives them to the end: a socket stays with
//! the thread that made it, and no thread has to wake another.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::runtime::Builder;
use tokio::sync::{Barrier, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::report::Tally;
use super::{Load, Wire, native, zookeeper};

/// The threads of one load, whose clients have all opened their sessions.
pub(super) struct Crew(Vec<Hand>);

/// One of the threads.
struct Hand {
    begin: oneshot::Sender<Instant>,
    outcome: oneshot::Receiver<anyhow::Result<Tally>>,
}

/// What a thread is told: which clients are its own, and how it keeps in step with the others.
pub(super) struct Shift {
    pub(super) clients: Range<u64>,
    pub(super) rounds: Arc<Rounds>,
    ready: oneshot::Sender<()>,
    begin: oneshot::Receiver<Instant>,
}

impl Shift {
    /// The sessions of this thread's clients are open: waits for the others, and says when to end.
    pub(super) async fn begin(self) -> anyhow::Result<(Instant, Arc<Rounds>)> {
        self.ready.send(()).ok().context("the benchmark has ended")?;
        Ok((self.begin.await.context("the benchmark has ended")?, self.rounds))
    }
}

/// Keeps the threads in step where all clients take part in the same round.
pub(super) struct Rounds {
    threads: Barrier,
    /// The first round that there is not.
    end: AtomicU64,
}

impl Rounds {
    /// There will be no round of this number. A thread that is late may still be at the beginning of the
    /// one before, in which it is needed.
    pub(super) fn end(&self, round: u64) {
        self.end.store(round, Ordering::Relaxed);
    }

    /// Waits until every thread is ready for this round, the first being 0. False: there is none.
    pub(super) async fn begin(&self, round: u64) -> bool {
        self.threads.wait().await;
        round < self.end.load(Ordering::Relaxed)
    }
}

impl Crew {
    /// Starts the threads. They have opened their clients' sessions when this returns.
    pub(super) async fn muster(load: &Load) -> anyhow::Result<Crew> {
        let threads = load.threads_used();
        let share = load.clients.div_ceil(threads as u64).max(1);
        let parts: Vec<Range<u64>> = (0..load.clients)
            .step_by(usize::try_from(share)?)
            .map(|first| first..(first + share).min(load.clients))
            .collect();
        let end = AtomicU64::new(u64::MAX);
        let rounds = Arc::new(Rounds { threads: Barrier::new(parts.len()), end });
        let mut hands = Vec::new();
        let mut all_ready = Vec::new();
        for clients in parts {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (ready, is_ready) = oneshot::channel();
            let (begin, begun) = oneshot::channel();
            let (done, outcome) = oneshot::channel();
            let shift = Shift { clients, rounds: rounds.clone(), ready, begin: begun };
            let load = load.clone();
            thread::spawn(move || {
                let tally = runtime.block_on(async {
                    match load.wire {
                        Wire::Native => native::work(&load, shift).await,
                        Wire::ZooKeeper => zookeeper::work(&load, shift).await,
                    }
                });
                // Nobody waits for it any more if another thread has failed.
                drop(done.send(tally));
            });
            all_ready.push(is_ready);
            hands.push(Hand { begin, outcome });
        }
        for (ready, number) in all_ready.into_iter().zip(0..) {
            if ready.await.is_err() {
                let Hand { outcome, .. } = hands.swap_remove(number);
                tally(outcome).await?;
                bail!("a thread of the load ended before it began");
            }
        }
        Ok(Crew(hands))
    }

    /// Has them all work for that long, and adds up what they measured.
    pub(super) async fn run(self, time: Duration) -> anyhow::Result<Tally> {
        let until = Instant::now() + time;
        let mut outcomes = JoinSet::new();
        for Hand { begin, outcome } in self.0 {
            // One that has ended says why when it is asked for its tally.
            begin.send(until).ok();
            outcomes.spawn(tally(outcome));
        }
        let mut sum = Tally::new();
        // The first that fails ends it: the others may be waiting for it.
        while let Some(outcome) = outcomes.join_next().await {
            sum.add(outcome??);
        }
        Ok(sum)
    }
}

async fn tally(outcome: oneshot::Receiver<anyhow::Result<Tally>>) -> anyhow::Result<Tally> {
    outcome.await.context("a thread of the load ended")?
}
