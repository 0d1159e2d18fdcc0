//! The threads that wait for the disk, so that the loop never does.
//!
//! The log thread takes whatever has queued up since it last looked: one write and one fdatasync
//! for all of it, then one word to the loop. While it waits for the disk the next batch gathers,
//! so batches grow with the load and no timer is needed.
//!
//! A loop with little to do writes itself as long as the disk is quick: for a lone write, waking the
//! log's thread and being woken by it costs more than the disk does. It stands still for that, so
//! it first looks whether more has come that can share the sync. And it is not woken for a write on
//! which nothing hangs: see [`Outcomes::await_writes`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::{io, mem};

use conclave_proto::{ServerId, Zxid};
use tokio::sync::Notify;

use crate::store::{
    Checkpointed, Frozen, Installed, LogWriter, Received, Scrub, SnapshotWriter, StoreError, fatal,
};
use crate::zab::{Position, Write, WriteToken};

use super::clock::Clock;
use super::inbox::Mailbox;
use super::metrics::Metrics;

/// A disk that takes longer for a write, on the average of the latest, is not quick, in µs.
const QUICK_US: u64 = 1_000;
/// Of how many writes that is the average, about.
const LATEST: u64 = 8;
/// A write counts as no slower than this, in µs: a single one says little of the next.
const SLOW_US: u64 = 4_000;
/// But for one that takes as long as this, in µs: the loop had better not stand still so long again.
const STALL_US: u64 = 20_000;

/// What the log is asked to do, in order.
#[derive(Debug)]
pub(super) enum Job {
    /// Make these durable.
    Write(WriteToken, Vec<Write>),
    /// Everything up to here is in the tree.
    Trim(Zxid),
    /// Put a received snapshot in force.
    Install {
        /// The number of the synchronisation.
        sync: u64,
        /// What the state will be.
        at: Position,
        /// The snapshot.
        received: Box<Received>,
    },
}

/// What the threads tell the loop.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Everything up to here is durable.
    Written {
        /// The last of the writes.
        token: WriteToken,
        /// The bytes that have been added to the log.
        bytes: u64,
    },
    /// A snapshot is in force on the disk.
    Installed {
        /// The number of the synchronisation.
        sync: u64,
        /// What the state is.
        at: Position,
        /// The tree.
        installed: Box<Installed>,
    },
    /// A checkpoint is written.
    Checkpointed(Checkpointed),
    /// So many chunks of a snapshot are taken.
    Taken {
        /// From whom they came.
        from: ServerId,
        /// The number of the synchronisation.
        sync: u64,
        /// How many so far.
        chunks: u32,
    },
    /// A snapshot has been received to the end.
    Received {
        /// From whom.
        from: ServerId,
        /// The number of the synchronisation.
        sync: u64,
        /// What the state will be.
        at: Position,
        /// The snapshot.
        received: Box<Received>,
    },
    /// A snapshot that came was damaged.
    Spoilt {
        /// From whom.
        from: ServerId,
        /// The number of the synchronisation.
        sync: u64,
        /// How.
        why: String,
    },
}

/// The way from the threads to the loop.
#[derive(Clone, Debug)]
pub(super) struct Outcomes {
    mailbox: Arc<Mailbox<Outcome>>,
    bell: Arc<Notify>,
}

impl Outcomes {
    pub(super) fn new(bell: Arc<Notify>) -> Outcomes {
        Outcomes { mailbox: Arc::new(Mailbox::new()), bell }
    }

    pub(super) fn post(&self, outcome: Outcome) {
        let urgent = !matches!(outcome, Outcome::Written { .. });
        if self.mailbox.put(outcome, urgent) {
            self.bell.notify_one();
        }
    }

    /// Whether the loop has to know at once that something is written.
    pub(super) fn await_writes(&self, awaited: bool) {
        if self.mailbox.set_patient(!awaited) {
            self.bell.notify_one();
        }
    }

    pub(super) fn take(&self, into: &mut Vec<Outcome>) {
        self.mailbox.take(into);
    }
}

/// The log, as the loop sees it.
pub(super) struct Log {
    desk: Arc<Desk>,
    /// Who looks after it; `None`: the loop itself writes and waits.
    thread: Option<Thread>,
    /// Whether the loop has taken writes that it has yet to sync.
    unsynced: bool,
}

/// Where the log is written: by the log's thread, or by the loop while that sleeps.
struct Desk {
    /// Locked by whoever writes.
    scribe: Mutex<Scribe>,
    /// What the thread has to do.
    jobs: Mailbox<Job>,
}

impl Log {
    /// # Errors
    /// If there can be no thread.
    pub(super) fn start(scribe: Scribe, threaded: bool) -> io::Result<Log> {
        let desk = Arc::new(Desk { scribe: Mutex::new(scribe), jobs: Mailbox::new() });
        if !threaded {
            return Ok(Log { desk, thread: None, unsynced: false });
        }
        let shared = desk.clone();
        let handle = thread::Builder::new().name("log".into()).spawn(move || shared.run())?;
        Ok(Log { desk, thread: Some(handle.thread().clone()), unsynced: false })
    }

    /// Has this done, after everything before it. If the loop is `idle`, it takes small writes
    /// itself, and has to [`sync`](Log::sync) them: waiting for a quick disk costs less than two
    /// threads that wake each other.
    pub(super) fn put(&mut self, job: Job, idle: bool) {
        let scribe = match &self.thread {
            None => Some(self.desk.scribe()),
            Some(_) if idle => self.desk.free_for(&job),
            Some(_) => None,
        };
        self.unsynced = scribe.is_some();
        if let Some(mut scribe) = scribe {
            scribe.take(job);
        } else if self.desk.jobs.put(job, true)
            && let Some(thread) = &self.thread
        {
            // It will sync what the loop has taken before, too.
            thread.unpark();
        }
    }

    /// Whether the loop has taken writes that wait for [`sync`](Log::sync).
    pub(super) fn is_unsynced(&self) -> bool {
        self.unsynced
    }

    /// Makes durable what the loop has taken.
    pub(super) fn sync(&mut self) {
        if mem::take(&mut self.unsynced) {
            self.desk.scribe().sync();
        }
    }
}

impl Desk {
    fn run(&self) {
        let mut jobs = Vec::new();
        loop {
            let mut scribe = self.scribe();
            self.jobs.take(&mut jobs);
            if jobs.is_empty() {
                drop(scribe);
                thread::park();
            } else {
                jobs.drain(..).for_each(|job| scribe.take(job));
                scribe.sync();
            }
        }
    }

    fn scribe(&self) -> MutexGuard<'_, Scribe> {
        self.scribe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pen, if nobody has it, nothing else comes first, and the job will not take long.
    fn free_for(&self, job: &Job) -> Option<MutexGuard<'_, Scribe>> {
        let Job::Write(_, writes) = job else { return None };
        let scribe = self.scribe.try_lock().ok()?;
        (self.jobs.is_empty() && scribe.is_quick_with(writes)).then_some(scribe)
    }
}

/// Who writes the log, wherever that is.
pub(super) struct Scribe {
    writer: LogWriter,
    clock: Clock,
    outcomes: Outcomes,
    metrics: Arc<Metrics>,
    /// What the next sync makes durable.
    batch: Batch,
    /// What the latest writes have taken on the average, in µs.
    average_us: u64,
}

impl Scribe {
    pub(super) fn new(
        writer: LogWriter,
        clock: Clock,
        outcomes: Outcomes,
        metrics: Arc<Metrics>,
    ) -> Scribe {
        Scribe { writer, clock, outcomes, metrics, batch: Batch::default(), average_us: 0 }
    }

    /// Whether these are nothing but entries, for a disk that has been quick.
    fn is_quick_with(&self, writes: &[Write]) -> bool {
        let appends = writes.iter().all(|write| matches!(write, Write::Append(_)));
        appends && self.writer.has_room(writes) && self.average_us <= QUICK_US
    }

    /// Does what is asked, but for the sync of what is written; a failure ends the process.
    fn take(&mut self, job: Job) {
        self.try_take(job).unwrap_or_else(|error| fatal(&error));
    }

    /// One write and one sync for everything taken; a failure ends the process.
    fn sync(&mut self) {
        self.try_sync().unwrap_or_else(|error| fatal(&error));
    }

    fn try_take(&mut self, job: Job) -> Result<(), StoreError> {
        match job {
            Job::Write(token, writes) => {
                self.writer.apply(&writes)?;
                self.batch.add(token, &writes);
            }
            Job::Trim(checkpoint) => {
                self.try_sync()?;
                self.writer.trim(checkpoint)?;
            }
            Job::Install { sync, at, received } => {
                self.try_sync()?;
                let installed = Box::new(self.writer.install(*received)?);
                self.outcomes.post(Outcome::Installed { sync, at, installed });
            }
        }
        Ok(())
    }

    fn try_sync(&mut self) -> Result<(), StoreError> {
        let batch = mem::take(&mut self.batch);
        let Some(token) = batch.token else { return Ok(()) };
        let began = self.clock.micros();
        self.writer.sync()?;
        self.outcomes.post(Outcome::Written { token, bytes: batch.bytes });
        let took = self.clock.micros() - began;
        let counted = if took < STALL_US { took.min(SLOW_US) } else { took };
        self.average_us = self.average_us - self.average_us / LATEST + counted / LATEST;
        #[expect(clippy::cast_precision_loss, reason = "a metric needs no 52 bits")]
        {
            self.metrics.sync_seconds.observe(took as f64 / 1e6);
            self.metrics.sync_entries.observe(batch.entries as f64);
        }
        self.metrics.log_bytes_written.inc_by(batch.bytes);
        Ok(())
    }
}

/// What one sync makes durable.
#[derive(Default)]
struct Batch {
    token: Option<WriteToken>,
    entries: usize,
    bytes: u64,
}

impl Batch {
    fn add(&mut self, token: WriteToken, writes: &[Write]) {
        self.token = Some(token);
        for write in writes {
            if let Write::Append(entries) = write {
                self.entries += entries.len();
                self.bytes += entries.iter().map(|entry| entry.body.len() as u64).sum::<u64>();
            }
        }
    }
}

/// Writes a checkpoint on a thread of its own, at most one at a time.
///
/// # Errors
/// If there can be no thread.
pub(super) fn checkpoint(
    frozen: Arc<Frozen>,
    clock: Clock,
    outcomes: Outcomes,
    metrics: Arc<Metrics>,
) -> io::Result<()> {
    let write = move || {
        let began = clock.micros();
        match frozen.write() {
            Ok(checkpointed) => {
                #[expect(clippy::cast_precision_loss, reason = "a metric needs no 52 bits")]
                let seconds = (clock.micros() - began) as f64 / 1e6;
                metrics.checkpoint_seconds.observe(seconds);
                outcomes.post(Outcome::Checkpointed(checkpointed));
            }
            Err(error) => fatal(&error),
        }
    };
    thread::Builder::new().name("checkpoint".into()).spawn(write).map(drop)
}

/// Checks the whole tree on a thread of its own; damage ends the process.
///
/// # Errors
/// If there can be no thread.
pub(super) fn scrub(scrub: Scrub) -> io::Result<()> {
    let check = move || {
        if let Err(error) = scrub.run() {
            fatal(&error);
        }
    };
    thread::Builder::new().name("scrub".into()).spawn(check).map(drop)
}

/// A chunk for the thread that receives a snapshot.
pub(super) struct Incoming {
    pub(super) last: bool,
    pub(super) bytes: bytes::Bytes,
}

/// Receives a snapshot on a thread of its own, until the channel ends or the snapshot does.
///
/// # Errors
/// If there can be no thread.
pub(super) fn receive(
    mut writer: SnapshotWriter,
    from: ServerId,
    sync: u64,
    at: Position,
    chunks: std::sync::mpsc::Receiver<Incoming>,
    outcomes: Outcomes,
) -> io::Result<()> {
    let receive = move || {
        for (chunk, taken) in chunks.iter().zip(1..) {
            if chunk.last {
                match writer.finish(at) {
                    Ok(received) => {
                        let received = Box::new(received);
                        outcomes.post(Outcome::Received { from, sync, at, received });
                    }
                    Err(error) => spoilt(&outcomes, from, sync, error),
                }
                return;
            }
            if let Err(error) = writer.chunk(&chunk.bytes) {
                spoilt(&outcomes, from, sync, error);
                return;
            }
            outcomes.post(Outcome::Taken { from, sync, chunks: taken });
        }
    };
    thread::Builder::new().name("snapshot-in".into()).spawn(receive).map(drop)
}

/// What came is damaged, which is the sender's or the network's doing; or the disk is, which ends
/// the process.
fn spoilt(outcomes: &Outcomes, from: ServerId, sync: u64, error: StoreError) {
    match error {
        StoreError::Snapshot(why) => outcomes.post(Outcome::Spoilt { from, sync, why }),
        StoreError::Io { .. }
        | StoreError::Tree { .. }
        | StoreError::Damaged { .. }
        | StoreError::Unusable { .. } => fatal(&error),
    }
}
