//! The log as it is written: whatever has queued up, with one write and one fdatasync.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use conclave_proto::Zxid;

use super::Home;
use super::disk::Uncached;
use super::error::{IoContext, StoreError};
use super::files::{Current, Promises, StateFile};
use super::segment::{BODY_BYTES, HEADER_BYTES, Header, encode_record, record_bytes};
use super::snapshot::{Installed, Received};
use super::spare::Spares;
use super::tail::Tail;
use crate::limits::DIFF_WINDOW_BYTES;
use crate::zab::{Entry, Position, Write};

/// The bytes gathered in memory after which they are written without waiting for the sync.
const BUFFER_BYTES: usize = 1 << 20;

/// Writes the log and the epochs. Owned by the log thread.
///
/// After an error nothing more may be written: the process has to end. A writer that failed
/// refuses to go on.
#[derive(Debug)]
pub struct LogWriter {
    home: Home,
    state: StateFile,
    spares: Spares,
    /// The segments before the active one, oldest first.
    older: VecDeque<Segment>,
    active: Active,
    /// The end of the active segment, with the records that are not written yet.
    tail: Tail,
    /// The end of everything taken.
    end: Position,
    failed: bool,
}

/// A segment that is full.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) size: u64,
    pub(super) base: Position,
}

/// The segment that is written to.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) file: Uncached,
    pub(super) segment: Segment,
    pub(super) generation: u64,
    pub(super) seed: u32,
    /// Everything below this offset is written.
    pub(super) written: u64,
    /// Everything below this offset is durable.
    pub(super) synced: u64,
}

impl LogWriter {
    pub(super) fn new(
        home: Home,
        state: StateFile,
        spares: Spares,
        older: VecDeque<Segment>,
        active: Active,
        end: Position,
    ) -> Result<LogWriter, StoreError> {
        let tail = Tail::of(&active.file.file, active.written, BUFFER_BYTES)
            .at("read", &active.segment.path)?;
        Ok(LogWriter { home, state, spares, older, active, tail, end, failed: false })
    }

    /// Take these writes, in order. They are durable after the next [`LogWriter::sync`].
    ///
    /// Appended entries are gathered in memory. An epoch or a truncation is durable on return, and
    /// so is everything before it: an epoch is never on the disk without the history it vouches
    /// for.
    ///
    /// # Errors
    /// If the disk fails.
    ///
    /// # Panics
    /// If an entry does not continue the log, or a truncation is not within it.
    pub fn apply(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        self.guarded(|log| writes.iter().try_for_each(|write| log.take(write)))
    }

    /// Whether these fit into the file that is written to: another one takes longer to begin.
    pub fn has_room(&self, writes: &[Write]) -> bool {
        let bytes = |write: &Write| match write {
            Write::Append(entries) => {
                entries.iter().map(|entry| record_bytes(entry.body.len()) as u64).sum()
            }
            Write::Truncate(_)
            | Write::AcceptedEpoch(_)
            | Write::CurrentEpoch(_)
            | Write::NeedsRepair => 0,
        };
        self.tail.end() + writes.iter().map(bytes).sum::<u64>() <= self.active.segment.size
    }

    /// Make everything taken so far durable: one write and one fdatasync for all of it.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        self.guarded(LogWriter::make_durable)
    }

    /// The state up to and including `checkpoint` is in the tree: drop what lies before it, except
    /// for a window that serves followers.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn trim(&mut self, checkpoint: Zxid) -> Result<(), StoreError> {
        self.guarded(|log| {
            while log.is_trimmable(checkpoint) {
                let oldest = log.older.pop_front().expect("there is one to trim");
                log.spares.recycle(&oldest)?;
            }
            Ok(())
        })
    }

    /// Whether the oldest segment lies before the checkpoint, and before the window that is kept.
    fn is_trimmable(&self, checkpoint: Zxid) -> bool {
        let next = self.older.get(1).unwrap_or(&self.active.segment);
        let later: u64 = self.older.iter().skip(1).map(|segment| segment.size).sum();
        let window = (DIFF_WINDOW_BYTES as u64).min(self.home.segment_bytes / 2);
        !self.older.is_empty()
            && next.base.zxid <= checkpoint
            && later + self.active.written >= window
    }

    /// Make a received snapshot the state, and let the log go on from its position; durable on
    /// return. After a crash there is either the old tree with the old log or the new with the new.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn install(&mut self, snapshot: Received) -> Result<Installed, StoreError> {
        self.guarded(|log| {
            let (tree, at) = (snapshot.number(), snapshot.at());
            log.roll(at, true, 0)?;
            // If this fails half-way, the new tree may be in force: it must not be removed.
            let installed = snapshot.into_installed();
            let current = Current { tree, log_floor: log.active.generation };
            current.write(&log.home.disk, &log.home.dir)?;
            while let Some(segment) = log.older.pop_front() {
                log.spares.recycle(&segment)?;
            }
            log.home.remove_trees_but(Some(tree))?;
            Ok(installed)
        })
    }

    /// Do this unless something failed before, and remember if it fails.
    fn guarded<T>(
        &mut self,
        act: impl FnOnce(&mut LogWriter) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if self.failed {
            let source =
                io::Error::other("an earlier write failed, and what is durable is unknown");
            return Err(source).at("write", &self.active.segment.path);
        }
        let result = act(self);
        self.failed = result.is_err();
        result
    }

    fn take(&mut self, write: &Write) -> Result<(), StoreError> {
        match write {
            Write::Append(entries) => entries.iter().try_for_each(|entry| self.append(entry)),
            Write::Truncate(position) => self.truncate(*position),
            Write::AcceptedEpoch(epoch) => {
                self.make_durable()?;
                let mut promises = self.state.promises();
                assert!(*epoch >= promises.accepted_epoch, "an accepted epoch is taken back");
                promises.accepted_epoch = *epoch;
                self.state.set(promises)
            }
            Write::CurrentEpoch(epoch) => {
                self.make_durable()?;
                let mut promises = self.state.promises();
                assert!(*epoch >= promises.current_epoch, "the current epoch is taken back");
                promises.current_epoch = *epoch;
                promises.accepted_epoch = promises.accepted_epoch.max(*epoch);
                promises.needs_repair = false;
                self.state.set(promises)
            }
            Write::NeedsRepair => {
                self.make_durable()?;
                self.state.set(Promises { needs_repair: true, ..self.state.promises() })
            }
        }
    }

    fn append(&mut self, entry: &Entry) -> Result<(), StoreError> {
        assert!(entry.continues(self.end), "{} does not continue {}", entry.zxid, self.end.zxid);
        assert!(entry.body.len() <= BODY_BYTES, "an entry of {} bytes", entry.body.len());
        let bytes = record_bytes(entry.body.len());
        if self.tail.end() + bytes as u64 > self.active.segment.size {
            self.roll(self.end, false, bytes)?;
        } else if self.tail.len() + bytes > BUFFER_BYTES {
            self.write_out()?;
        }
        let Active { seed, synced, .. } = self.active;
        self.tail.push(bytes, |out| encode_record(seed, entry, synced, out));
        self.end = entry.position();
        Ok(())
    }

    fn write_out(&mut self) -> Result<(), StoreError> {
        let Active { file, segment, written, .. } = &mut self.active;
        let end = self.tail.end();
        if end == *written {
            return Ok(());
        }
        let disk = &self.home.disk;
        self.tail.write(segment.size, |offset, pages| {
            disk.write_pages(file, &segment.path, offset, pages)
        })?;
        *written = end;
        self.spares.prepare(segment.size, end)
    }

    fn make_durable(&mut self) -> Result<(), StoreError> {
        self.write_out()?;
        if self.active.written > self.active.synced {
            self.home.disk.sync(&self.active.file.file, &self.active.segment.path)?;
            self.active.synced = self.active.written;
        }
        Ok(())
    }

    fn truncate(&mut self, position: Position) -> Result<(), StoreError> {
        if position == self.end {
            return Ok(());
        }
        assert!(
            position.zxid < self.end.zxid,
            "a log that ends at {} is cut at {}",
            self.end.zxid,
            position.zxid
        );
        self.roll(position, false, 0)
    }

    /// Go on in a new segment whose history begins at `base`; durable on return. Whatever the log
    /// holds after `base` is void from then on, and with `reset` everything it holds.
    pub(super) fn roll(
        &mut self,
        base: Position,
        reset: bool,
        room: usize,
    ) -> Result<(), StoreError> {
        self.make_durable()?;
        let generation = self.active.generation + 1;
        let new = self.spares.begin(generation, base, reset, room)?;
        self.tail.restart(new.written);
        self.end = base;
        self.older.push_back(std::mem::replace(&mut self.active, new).segment);
        while self.older.back().is_some_and(|segment| segment.base.zxid >= base.zxid && !reset) {
            let void = self.older.pop_back().expect("it has a last one");
            self.spares.recycle(&void)?;
        }
        Ok(())
    }
}

/// The file of the segment with this generation.
pub(super) fn segment_path(log_dir: &Path, generation: u64) -> PathBuf {
    log_dir.join(format!("{generation:016x}.log"))
}

/// The generation of the segment with this file name.
pub(super) fn generation_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    if digits.len() == 16 { u64::from_str_radix(digits, 16).ok() } else { None }
}

/// Where a segment begins to be written.
pub(super) fn activate(file: Uncached, path: PathBuf, header: &Header) -> Active {
    Active {
        file,
        segment: Segment { path, size: header.size, base: header.base },
        generation: header.generation,
        seed: header.seed(),
        written: HEADER_BYTES,
        synced: HEADER_BYTES,
    }
}
