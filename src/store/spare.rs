//! Files that wait to become segments: filled with zeros ahead of need, or used before.
//!
//! Writing within a file that is filled already is twice as fast to sync as growing one. Filling
//! goes on in a thread of its own, a slice at a time, so that no write waits for it, and past the
//! system's cache where that is possible: to copy zeros into it would cost more than the rest.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::Home;
use super::disk::{Disk, PAGE_BYTES, list};
use super::error::{IoContext, StoreError};
use super::log::{Active, Segment, activate, segment_path};
use super::segment::{HEADER_BYTES, Header};
use crate::zab::Position;

/// The size of the first segment of a log: each is four times as large as the one before it until
/// the full size is reached.
const FIRST_BYTES: u64 = 4 << 20;
/// How many files of full size are kept: with one to spare, a segment that is given back a little
/// late does not mean that another one is filled.
const KEPT: usize = 2;
/// How much is filled with zeros between two syncs.
const SLICE_BYTES: usize = 1 << 20;

/// The files that wait.
#[derive(Debug)]
pub(super) struct Spares {
    home: Home,
    ready: Vec<Spare>,
    filling: Option<Filling>,
    /// Names the next file.
    number: u64,
}

#[derive(Debug)]
struct Spare {
    path: PathBuf,
    size: u64,
}

/// A file that is being filled by a thread.
#[derive(Debug)]
struct Filling {
    thread: JoinHandle<Result<Spare, StoreError>>,
    stop: Arc<AtomicBool>,
}

impl Spares {
    /// What the log's directory holds; beyond a few files of full size it is removed.
    pub(super) fn open(home: &Home) -> Result<Spares, StoreError> {
        let mut spares = Spares { home: home.clone(), ready: Vec::new(), filling: None, number: 0 };
        for name in list(&home.log_dir)? {
            if !name.ends_with(".spare") {
                continue;
            }
            let path = home.log_dir.join(&name);
            let size = path.metadata().at("look at", &path)?.len();
            let digits = name.trim_end_matches(".spare");
            spares.number = spares.number.max(digits.parse().map_or(0, |number: u64| number + 1));
            spares.keep(Spare { path, size })?;
        }
        Ok(spares)
    }

    /// A segment is no longer needed: keep its file for another use.
    pub(super) fn recycle(&mut self, segment: &Segment) -> Result<(), StoreError> {
        let path = self.next_path();
        self.home.disk.rename(&segment.path, &path)?;
        // A new header must not come to lie under the old name.
        self.home.disk.sync_dir(&self.home.log_dir)?;
        self.keep(Spare { path, size: segment.size })
    }

    fn keep(&mut self, spare: Spare) -> Result<(), StoreError> {
        if spare.size == self.home.segment_bytes && self.ready.len() < KEPT {
            self.ready.push(spare);
            return Ok(());
        }
        self.home.disk.remove(&spare.path)
    }

    /// The active segment of that size is written up to there: have the next one ready in time.
    pub(super) fn prepare(&mut self, size: u64, written: u64) -> Result<(), StoreError> {
        if written < size / 4 * 3 || !self.ready.is_empty() || self.filling.is_some() {
            return Ok(());
        }
        let size = (size * 4).min(self.home.segment_bytes);
        let path = self.next_path();
        let stop = Arc::new(AtomicBool::new(false));
        let (disk, stopped) = (self.home.disk.clone(), Arc::clone(&stop));
        let fill = {
            let path = path.clone();
            move || fill(&disk, path, size, &stopped)
        };
        let thread = std::thread::Builder::new()
            .name("log-fill".into())
            .spawn(fill)
            .at("start a thread to fill", &path)?;
        self.filling = Some(Filling { thread, stop });
        Ok(())
    }

    /// Make a segment with room for a record of that many bytes, and put it in force.
    pub(super) fn begin(
        &mut self,
        generation: u64,
        base: Position,
        reset: bool,
        room: usize,
    ) -> Result<Active, StoreError> {
        let needed = HEADER_BYTES + room as u64;
        let spare = self.take(needed)?;
        let salt = getrandom::u32()
            .map_err(std::io::Error::other)
            .at("get a random salt for", &spare.path)?;
        let identity = self.home.identity.clone();
        let header = Header { identity, generation, salt, reset, base, size: spare.size };
        let disk = &self.home.disk;
        let file = disk.open_uncached(&spare.path)?;
        disk.write(&file.file, &spare.path, 0, &header.encode())?;
        disk.sync(&file.file, &spare.path)?;
        let path = segment_path(&self.home.log_dir, generation);
        disk.rename(&spare.path, &path)?;
        disk.sync_dir(&self.home.log_dir)?;
        Ok(activate(file, path, &header))
    }

    fn take(&mut self, needed: u64) -> Result<Spare, StoreError> {
        if self.filling.as_ref().is_some_and(|filling| filling.thread.is_finished()) {
            let filling = self.filling.take().expect("it is there");
            self.ready.push(filling.thread.join().expect("filling a file does not panic")?);
        }
        if let Some(place) = self.ready.iter().position(|spare| spare.size >= needed) {
            return Ok(self.ready.swap_remove(place));
        }
        // Nothing is ready: better a small one now than a large one later.
        let size =
            FIRST_BYTES.min(self.home.segment_bytes).max(needed.next_multiple_of(HEADER_BYTES));
        let path = self.next_path();
        fill(&self.home.disk, path, size, &AtomicBool::new(false))
    }

    fn next_path(&mut self) -> PathBuf {
        self.number += 1;
        self.home.log_dir.join(format!("{}.spare", self.number))
    }
}

impl Drop for Spares {
    /// Let the thread end, so that the directory belongs to nobody afterwards.
    fn drop(&mut self) {
        if let Some(filling) = self.filling.take() {
            filling.stop.store(true, Ordering::Relaxed);
            // What it found no longer matters; an unfinished file is thrown away at the next start.
            drop(filling.thread.join());
        }
    }
}

/// Create a file of zeros that lie on the disk, so that writing there later needs no allocation.
fn fill(disk: &Disk, path: PathBuf, size: u64, stop: &AtomicBool) -> Result<Spare, StoreError> {
    let file = disk.create(&path)?;
    let mut file = disk.uncached(file, &path);
    // What goes past the cache has to begin where a page does.
    let zeros = vec![0; SLICE_BYTES + PAGE_BYTES];
    let zeros = &zeros[zeros.as_ptr().align_offset(PAGE_BYTES)..];
    let mut filled = 0;
    while filled < size && !stop.load(Ordering::Relaxed) {
        let slice = usize::try_from(size - filled).unwrap_or(usize::MAX).min(SLICE_BYTES);
        disk.write_pages(&mut file, &path, filled, &zeros[..slice])?;
        disk.sync(&file.file, &path)?;
        filled += slice as u64;
    }
    Ok(Spare { path, size })
}
