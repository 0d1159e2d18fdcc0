//! What the log says when a server starts.
//!
//! Segments are read in the order of their generations. Each one's header names the position before
//! its first record; what an earlier segment holds after that position is void. So a truncation is
//! one new segment, and is in force as soon as that has its name.

use std::collections::VecDeque;
use std::path::PathBuf;

use conclave_proto::Zxid;

use super::Home;
use super::disk::list;
use super::error::StoreError;
use super::log::{Active, Segment, activate, generation_of};
use super::segment::{HEADER_BYTES, SegmentReader, Tail};
use crate::limits::{DIFF_WINDOW_BYTES, DIFF_WINDOW_ENTRIES};
use crate::zab::{Entry, Position};

/// The log as it was found.
#[derive(Debug)]
pub(super) struct Recovered {
    /// The segments before the last one, oldest first.
    pub(super) older: VecDeque<Segment>,
    /// The last one, as far as it continues the history.
    pub(super) active: Option<Active>,
    /// The position before `entries`.
    pub(super) base: Position,
    /// The end of the history as far as it is sound.
    pub(super) end: Position,
    pub(super) entries: Vec<Entry>,
    /// The generation of the newest segment, void or not.
    pub(super) generation: u64,
    /// The bytes that a crash left half written.
    pub(super) cut_bytes: u64,
    pub(super) damage: Option<String>,
    /// Whether the sound part of the history holds the tree's position.
    pub(super) reaches: bool,
    /// Files that hold nothing of the history.
    pub(super) void: Vec<PathBuf>,
    /// Files that nothing can be known of.
    pub(super) broken: Vec<PathBuf>,
}

/// Read the log. `applied` is the position of the tree; segments before `floor` do not count.
pub(super) fn read_log(
    home: &Home,
    floor: u64,
    applied: Position,
) -> Result<Recovered, StoreError> {
    let mut found = find(home, floor, applied.zxid)?;
    let mut reading = Reading::new(applied);
    let first = found.live.iter().rposition(|segment| segment.header.base.zxid <= applied.zxid);
    let mut cut_bytes = 0;
    if let Some(first) = first {
        // One more than is needed, for followers that are behind; if that one is damaged, it can be
        // done without.
        for first in [first.saturating_sub(1), first] {
            reading = Reading::new(applied);
            reading.begin(found.live[first].header.base);
            cut_bytes = reading.read(&mut found.live[first..])?;
            if reading.reached {
                break;
            }
        }
    }
    if !reading.reached {
        let problem = format!("the log does not reach the tree's {}", applied.zxid);
        reading.damage.get_or_insert(problem);
    }
    let active = found.live.pop().map(|last| {
        let offset = last.offset;
        let (path, header) = (last.path.clone(), last.header.clone());
        let file = home.disk.uncached(last.into_file(), &path);
        let mut active = activate(file, path, &header);
        active.written = offset;
        active.synced = offset;
        active
    });
    let older = found
        .live
        .into_iter()
        .map(|last| Segment { path: last.path.clone(), size: last.size, base: last.header.base })
        .collect();
    Ok(Recovered {
        older,
        active,
        base: reading.base,
        end: reading.end,
        entries: reading.history.into(),
        generation: found.generation,
        cut_bytes,
        damage: found.damage.or(reading.damage),
        reaches: reading.reached,
        void: found.void,
        broken: found.broken,
    })
}

/// The segments of a log's directory.
#[derive(Default)]
struct Found {
    /// Those that hold a part of the history, oldest first.
    live: Vec<SegmentReader>,
    void: Vec<PathBuf>,
    generation: u64,
    damage: Option<String>,
    /// Segments whose header is damaged.
    broken: Vec<PathBuf>,
}

fn find(home: &Home, floor: u64, applied: Zxid) -> Result<Found, StoreError> {
    let mut found = Found { generation: floor, ..Found::default() };
    for name in list(&home.log_dir)? {
        let Some(generation) = generation_of(&name) else { continue };
        let path = home.log_dir.join(&name);
        found.generation = found.generation.max(generation);
        if generation < floor {
            found.void.push(path);
            continue;
        }
        let segment = match SegmentReader::open(&home.disk, &path) {
            Ok(segment) if segment.header.generation == generation => segment,
            Ok(_) => {
                found.damage.get_or_insert(format!("{name} has another segment's header"));
                found.broken.push(path);
                continue;
            }
            Err(StoreError::Damaged { what, .. }) => {
                found.damage.get_or_insert(format!("{name}: {what}"));
                found.broken.push(path);
                continue;
            }
            Err(error) => return Err(error),
        };
        home.check_owner(&segment.header.identity, &home.log_dir)?;
        if segment.header.reset && generation != floor {
            // The snapshot it was begun for never came into force.
            found.void.push(path);
            continue;
        }
        let base = segment.header.base.zxid;
        if found.damage.is_some() {
            if base > applied {
                // What comes after a gap is not known to be a part of the history.
                continue;
            }
            // Nothing before this segment is needed.
            found.damage = None;
            found.live.clear();
        }
        while let Some(last) = found.live.pop_if(|last| last.header.base.zxid >= base) {
            found.void.push(last.path);
        }
        found.live.push(segment);
    }
    Ok(found)
}

/// The history while it is read.
struct Reading {
    history: VecDeque<Entry>,
    /// The bytes of the bodies in it.
    bytes: usize,
    base: Position,
    end: Position,
    applied: Position,
    /// Whether the history holds the tree's position.
    reached: bool,
    damage: Option<String>,
}

impl Reading {
    fn new(applied: Position) -> Reading {
        let history = VecDeque::new();
        let (base, end) = (applied, applied);
        Reading { history, bytes: 0, base, end, applied, reached: false, damage: None }
    }

    fn begin(&mut self, at: Position) {
        (self.base, self.end) = (at, at);
        self.reached = at == self.applied;
    }

    /// Read these segments as far as the history is sound. The result is what was cut off.
    fn read(&mut self, segments: &mut [SegmentReader]) -> Result<u64, StoreError> {
        match self.go_through(segments) {
            Err(StoreError::Damaged { path, what }) => {
                self.damage.get_or_insert(format!("{} {what}", path.display()));
                Ok(0)
            }
            result => result,
        }
    }

    fn go_through(&mut self, segments: &mut [SegmentReader]) -> Result<u64, StoreError> {
        for index in 0..segments.len() {
            let stop = segments.get(index + 1).map(|next| next.header.base);
            let segment = &mut segments[index];
            segment.offset = HEADER_BYTES;
            while Some(self.end) != stop {
                let Some(entry) = segment.next(self.end)? else { break };
                self.push(entry);
            }
            if self.damage.is_some() {
                return Ok(0);
            }
            if stop.is_none() {
                return self.finish(segment);
            }
            if Some(self.end) != stop {
                self.damage = Some(broken(segment, self.end));
                return Ok(0);
            }
        }
        Ok(0)
    }

    fn finish(&mut self, last: &mut SegmentReader) -> Result<u64, StoreError> {
        match last.tail()? {
            Tail::Clean => Ok(0),
            Tail::Torn(bytes) => Ok(bytes),
            Tail::Damaged => {
                self.damage = Some(broken(last, self.end));
                Ok(0)
            }
        }
    }

    fn push(&mut self, entry: Entry) {
        self.end = entry.position();
        if self.end.zxid == self.applied.zxid {
            self.reached = self.end == self.applied;
            if !self.reached {
                let zxid = self.applied.zxid;
                self.damage.get_or_insert(format!("log and tree differ at {zxid}"));
            }
        }
        self.bytes += entry.body.len();
        self.history.push_back(entry);
        while self.bytes > DIFF_WINDOW_BYTES || self.history.len() > DIFF_WINDOW_ENTRIES {
            let applied = self.applied.zxid;
            let Some(old) = self.history.pop_front_if(|old| old.zxid <= applied) else { break };
            self.bytes -= old.body.len();
            self.base = old.position();
        }
    }
}

fn broken(segment: &SegmentReader, end: Position) -> String {
    let name = segment.path.file_name().map(|name| name.to_string_lossy().into_owned());
    format!(
        "{}: the record after {} (byte {}) does not match its checksum, and later ones exist",
        name.unwrap_or_default(),
        end.zxid,
        segment.offset
    )
}
