//! The threads that wait for the disk, so that the loop never does.
//!
//! The log thread takes whatever has queued up since it last looked: one write and one fdatasync
//! for all of it, then one word to the loop. While it waits for the disk the next batch gathers,
//! so batches grow with the load and no timer is needed.

use std::sync::Arc;
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
        if self.mailbox.put(outcome) {
            self.bell.notify_one();
        }
    }

    pub(super) fn take(&self, into: &mut Vec<Outcome>) {
        self.mailbox.take(into);
    }
}

/// The log, as the loop sees it.
pub(super) enum Log {
    /// A thread looks after it.
    Threaded {
        /// What it has to do.
        jobs: Arc<Mailbox<Job>>,
        /// The thread.
        thread: Thread,
    },
    /// The loop itself writes and waits.
    Inline(Box<Scribe>),
}

impl Log {
    /// # Errors
    /// If there can be no thread.
    pub(super) fn start(scribe: Scribe, threaded: bool) -> io::Result<Log> {
        if !threaded {
            return Ok(Log::Inline(Box::new(scribe)));
        }
        let jobs = Arc::new(Mailbox::new());
        let queue = jobs.clone();
        let handle =
            thread::Builder::new().name("log".into()).spawn(move || run(scribe, &queue))?;
        Ok(Log::Threaded { jobs, thread: handle.thread().clone() })
    }

    pub(super) fn put(&mut self, job: Job) {
        match self {
            Log::Threaded { jobs, thread } => {
                if jobs.put(job) {
                    thread.unpark();
                }
            }
            Log::Inline(scribe) => scribe.perform(&mut vec![job]),
        }
    }
}

fn run(mut scribe: Scribe, queue: &Mailbox<Job>) {
    let mut jobs = Vec::new();
    loop {
        queue.take(&mut jobs);
        if jobs.is_empty() {
            thread::park();
        } else {
            scribe.perform(&mut jobs);
        }
    }
}

/// Who writes the log, wherever that is.
pub(super) struct Scribe {
    pub(super) writer: LogWriter,
    pub(super) clock: Clock,
    pub(super) outcomes: Outcomes,
    pub(super) metrics: Arc<Metrics>,
}

impl Scribe {
    /// Does what is asked; a failure ends the process.
    fn perform(&mut self, jobs: &mut Vec<Job>) {
        if let Err(error) = self.try_perform(jobs) {
            fatal(&error);
        }
    }

    fn try_perform(&mut self, jobs: &mut Vec<Job>) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        let began = self.clock.micros();
        for job in jobs.drain(..) {
            match job {
                Job::Write(token, writes) => {
                    self.writer.apply(&writes)?;
                    batch.add(token, &writes);
                }
                Job::Trim(checkpoint) => {
                    self.sync(&mut batch, began)?;
                    self.writer.trim(checkpoint)?;
                }
                Job::Install { sync, at, received } => {
                    self.sync(&mut batch, began)?;
                    let installed = Box::new(self.writer.install(*received)?);
                    self.outcomes.post(Outcome::Installed { sync, at, installed });
                }
            }
        }
        self.sync(&mut batch, began)
    }

    fn sync(&mut self, batch: &mut Batch, began: u64) -> Result<(), StoreError> {
        let batch = mem::take(batch);
        let Some(token) = batch.token else { return Ok(()) };
        self.writer.sync()?;
        self.outcomes.post(Outcome::Written { token, bytes: batch.bytes });
        #[expect(clippy::cast_precision_loss, reason = "a metric needs no 52 bits")]
        {
            let took = self.clock.micros() - began;
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
