//! The whole state on its way from one server to another.
//!
//! A snapshot is a stream of bytes, cut into chunks. The stream: magic, format, position; then
//! every record of the tree in the order of the keys, each as length of the key (2), length of the
//! value (4), key, value; then a length of zero, the number of records (8) and the CRC-32C of the
//! stream up to there. A chunk: CRC-32C of the rest (4), its number from 0 (4), a part of the stream.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::{BufMut, Bytes};

use super::codec::{self, Reader};
use super::env::{Pair, Tree, View};
use super::error::{StoreError, TreeContext};
use super::files::{FORMAT, put_position};
use super::home::Home;
use super::key::{HashKey, Key};
use super::layer::{Changes, Layer};
use super::nodes::{StoreNodes, position};
use super::verify::verify;
use crate::limits::{FRAME_BYTES, OUTCOME_BYTES, SNAPSHOT_CHUNK_BYTES};
use crate::tree::Meta;
use crate::zab::Position;

const MAGIC: [u8; 8] = *b"CNCLSNAP";
const CHUNK_HEAD: usize = 8;
/// Magic, format, position.
const STREAM_HEAD: usize = 8 + 4 + 12;
/// The lengths before each record.
const RECORD_HEAD: usize = 2 + 4;
/// What follows the last record: its zero length, the count and the checksum.
const STREAM_TAIL: usize = 2 + 8 + 4;
/// The longest value: a node's data and what goes with it, or a session's outcomes.
const VALUE_BYTES: usize = 64 << 20;
const _: () = assert!(OUTCOME_BYTES + 2 * FRAME_BYTES < VALUE_BYTES);

/// How many bytes of records go to the disk in one transaction of the receiver.
const BATCH_BYTES: usize = 8 << 20;

/// Reads the state of one moment as a stream of chunks. For a thread of its own.
///
/// While it lives the tree's file cannot reuse the pages of its moment and grows with every
/// checkpoint, so it should be read as fast as it can be sent, and dropped if that takes long.
#[derive(Debug)]
pub struct SnapshotReader {
    view: View,
    layers: Vec<Arc<Layer>>,
    hash_key: HashKey,
    at: Position,
    merge: Option<Merge>,
    /// The part of the stream that is not in a chunk yet.
    ahead: Vec<u8>,
    chunks: u32,
    done: bool,
}

/// The records on disk as changed by the layers, in order.
#[derive(Debug)]
struct Merge {
    changes: Changes,
    /// The last key read from the disk; empty if none was.
    cursor: Vec<u8>,
    records: u64,
    crc: u32,
}

impl SnapshotReader {
    pub(super) fn new(
        view: View,
        layers: Vec<Arc<Layer>>,
        hash_key: HashKey,
        meta: Meta,
    ) -> SnapshotReader {
        let (at, ahead) = (position(&meta), Vec::new());
        SnapshotReader { view, layers, hash_key, at, merge: None, ahead, chunks: 0, done: false }
    }

    /// The moment.
    pub fn at(&self) -> Position {
        self.at
    }

    /// The next chunk, at most `SNAPSHOT_CHUNK_BYTES`; `None` after the last.
    ///
    /// # Errors
    /// If the disk fails or the tree is damaged.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        let room = SNAPSHOT_CHUNK_BYTES - CHUNK_HEAD;
        if self.merge.is_none() {
            self.begin();
        }
        if !self.done && self.ahead.len() < room {
            self.fill(room)?;
        }
        if self.ahead.is_empty() {
            return Ok(None);
        }
        let len = self.ahead.len().min(room);
        let mut chunk = Vec::with_capacity(CHUNK_HEAD + len);
        chunk.put_u32_le(0);
        chunk.put_u32_le(self.chunks);
        chunk.extend(self.ahead.drain(..len));
        let crc = crc32c::crc32c(&chunk[4..]);
        chunk[..4].copy_from_slice(&crc.to_le_bytes());
        self.chunks += 1;
        Ok(Some(chunk.into()))
    }

    fn begin(&mut self) {
        self.ahead.put_slice(&MAGIC);
        self.ahead.put_u32_le(FORMAT);
        put_position(&mut self.ahead, self.at);
        let crc = crc32c::crc32c(&self.ahead);
        let changes = Changes::of(std::mem::take(&mut self.layers), &self.hash_key);
        self.merge = Some(Merge { changes, cursor: Vec::new(), records: 0, crc });
    }

    /// Extend `ahead` to at least `room` bytes, or to the end of the stream.
    fn fill(&mut self, room: usize) -> Result<(), StoreError> {
        let SnapshotReader { view, ahead, merge, .. } = self;
        let merge = merge.as_mut().expect("it has begun");
        let start = ahead.len();
        let mut value = Vec::new();
        let mut cursor = std::mem::take(&mut merge.cursor);
        // LMDB knows no empty key: begin with the first there is.
        let mut on_disk = match &*cursor {
            [] => view.range(&Key::meta(), true)?,
            last => view.range(last, false)?,
        };
        let mut record = on_disk.next().transpose().in_tree("read", view.tree().path())?;
        while ahead.len() < room {
            let changed = merge.changes.next_key();
            let key = changed.into_iter().chain(record.map(|(key, _)| key)).min();
            let Some(key) = key.map(<[u8]>::to_vec) else {
                self.done = true;
                break;
            };
            let of_disk = record.filter(|(own, _)| **own == *key);
            if of_disk.is_some() {
                record = on_disk.next().transpose().in_tree("read", view.tree().path())?;
            }
            if merge.changes.next_key().is_some_and(|own| *own == *key) {
                let taken = merge.changes.next(&mut value);
                if taken.is_some_and(|(_, is_there)| is_there) {
                    put_record(ahead, &key, &value);
                    merge.records += 1;
                }
            } else if let Some((_, value)) = of_disk {
                if codec::unseal(&key, value).is_none() {
                    return Err(view.damaged("a record does not match its checksum"));
                }
                put_record(ahead, &key, value);
                merge.records += 1;
            }
            if of_disk.is_some() {
                cursor = key;
            }
        }
        drop(on_disk);
        if self.done {
            ahead.put_u16_le(0);
            ahead.put_u64_le(merge.records);
            let crc = crc32c::crc32c_append(merge.crc, &ahead[start..]);
            ahead.put_u32_le(crc);
        } else {
            merge.crc = crc32c::crc32c_append(merge.crc, &ahead[start..]);
        }
        merge.cursor = cursor;
        Ok(())
    }
}

fn put_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    out.put_u16_le(u16::try_from(key.len()).expect("keys are short"));
    out.put_u32_le(u32::try_from(value.len()).expect("values are bounded"));
    out.put_slice(key);
    out.put_slice(value);
}

/// A tree that is not in force: its directory is removed unless it comes into force.
#[derive(Debug)]
struct NewTree {
    home: Home,
    number: u64,
    path: PathBuf,
    in_force: bool,
}

impl Drop for NewTree {
    fn drop(&mut self) {
        if !self.in_force {
            // If this fails, the next start removes it.
            drop(self.home.disk.remove(&self.path));
        }
        self.home.end_of_transfer(self.number);
    }
}

/// Writes a received snapshot into a new tree beside the current one. For a thread of its own.
/// Dropped before its end, it leaves nothing behind.
#[derive(Debug)]
pub struct SnapshotWriter {
    tree: Tree,
    new: NewTree,
    /// The part of the stream that is not on the disk yet.
    ahead: Vec<u8>,
    at: Option<Position>,
    chunks: u32,
    records: u64,
    crc: u32,
    done: bool,
}

fn refused<T>(why: &str) -> Result<T, StoreError> {
    Err(StoreError::Snapshot(why.into()))
}

impl SnapshotWriter {
    pub(super) fn create(home: Home) -> Result<SnapshotWriter, StoreError> {
        let (number, path) = home.create_tree_to_receive()?;
        let new = NewTree { home, number, path, in_force: false };
        let tree = Tree::open(&new.home, &new.path)?;
        let ahead = Vec::new();
        Ok(SnapshotWriter {
            tree,
            new,
            ahead,
            at: None,
            chunks: 0,
            records: 0,
            crc: 0,
            done: false,
        })
    }

    /// Take the next chunk.
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] if it is damaged or out of order: ask for the snapshot anew. The
    /// others if the disk fails.
    pub fn chunk(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        let mut reader = Reader(chunk);
        let (Some(crc), Some(number)) = (reader.u32(), reader.u32()) else {
            return refused("a chunk is cut short");
        };
        if chunk.len() > SNAPSHOT_CHUNK_BYTES || crc != crc32c::crc32c(&chunk[4..]) {
            return refused("a chunk does not match its checksum");
        }
        if number != self.chunks {
            return refused("a chunk is missing or came twice");
        }
        self.chunks += 1;
        self.ahead.extend_from_slice(reader.0);
        if self.at.is_none() {
            self.read_head()?;
        }
        if self.ahead.len() >= BATCH_BYTES { self.store() } else { Ok(()) }
    }

    /// That was the last chunk: verify the whole and make it durable. `at` is what it must be the
    /// state of.
    ///
    /// # Errors
    /// As [`SnapshotWriter::chunk`]; also if the snapshot is incomplete or not of `at`.
    pub fn finish(mut self, at: Position) -> Result<Received, StoreError> {
        if self.at != Some(at) {
            return refused("it is not of the position that was announced");
        }
        self.store()?;
        if !self.done || !self.ahead.is_empty() {
            return refused("it does not end where it should");
        }
        let nodes = match self.load(at) {
            Err(StoreError::Damaged { what, .. }) => return Err(StoreError::Snapshot(what)),
            result => result?,
        };
        let disk = &self.new.home.disk;
        disk.sync_dir(&self.new.path)?;
        disk.sync_dir(&self.new.home.dir)?;
        Ok(Received { nodes, at, new: self.new })
    }

    fn load(&self, at: Position) -> Result<Box<StoreNodes>, StoreError> {
        let meta = verify(&self.tree.view()?)?;
        if position(&meta) != at {
            return refused("its contents are not of the position it names");
        }
        StoreNodes::load(&self.tree, HashKey([0; 16])).map(Box::new)
    }

    fn read_head(&mut self) -> Result<(), StoreError> {
        let mut reader = Reader(&self.ahead);
        let mut parse = || Some((reader.array::<8>()?, reader.u32()?, reader.position()?));
        let Some((magic, format, at)) = parse() else { return refused("its head is cut short") };
        if magic != MAGIC || format != FORMAT {
            return refused("its format is another one; run the same version on all servers");
        }
        self.at = Some(at);
        self.crc = crc32c::crc32c(&self.ahead[..STREAM_HEAD]);
        self.ahead.drain(..STREAM_HEAD);
        Ok(())
    }

    /// Bring every whole record that has come to the disk.
    fn store(&mut self) -> Result<(), StoreError> {
        let mut update = self.tree.write()?;
        let mut used = 0;
        while let Some((key, value)) = next_record(&self.ahead[used..])? {
            if codec::unseal(key, value).is_none() {
                return refused("a record does not match its checksum");
            }
            if !update.append(key, value)? {
                return refused("its records are not in order");
            }
            used += RECORD_HEAD + key.len() + value.len();
            self.records += 1;
        }
        update.commit()?;
        self.crc = crc32c::crc32c_append(self.crc, &self.ahead[..used]);
        self.ahead.drain(..used);
        self.read_tail()
    }

    /// Take the end of the stream, if it has come.
    fn read_tail(&mut self) -> Result<(), StoreError> {
        let mut reader = Reader(&self.ahead);
        if reader.u16() != Some(0) {
            return Ok(());
        }
        let (Some(records), Some(crc)) = (reader.u64(), reader.u32()) else { return Ok(()) };
        let sum = crc32c::crc32c_append(self.crc, &self.ahead[..STREAM_TAIL - 4]);
        if (records, crc) != (self.records, sum) {
            return refused("records are missing");
        }
        self.ahead.drain(..STREAM_TAIL);
        self.done = true;
        Ok(())
    }
}

/// The record that the bytes begin with, if all of it is there; `None` also at the end of the
/// stream.
fn next_record(bytes: &[u8]) -> Result<Option<Pair<'_>>, StoreError> {
    let mut reader = Reader(bytes);
    let (Some(key), Some(value)) = (reader.u16(), reader.u32()) else { return Ok(None) };
    if key == 0 {
        return Ok(None);
    }
    let value = usize::try_from(value).unwrap_or(usize::MAX);
    if usize::from(key) > Key::MAX || value > VALUE_BYTES {
        return refused("a record is longer than records can be");
    }
    let record = reader.take(key.into()).and_then(|key| Some((key, reader.take(value)?)));
    Ok(record)
}

/// A snapshot that is complete and durable but not in force: see `LogWriter::install`. Dropped, it
/// leaves nothing behind.
#[derive(Debug)]
pub struct Received {
    nodes: Box<StoreNodes>,
    at: Position,
    new: NewTree,
}

impl Received {
    /// What it is the state of.
    pub fn at(&self) -> Position {
        self.at
    }

    pub(super) fn number(&self) -> u64 {
        self.new.number
    }

    pub(super) fn into_installed(mut self) -> Installed {
        self.new.in_force = true;
        Installed { nodes: self.nodes }
    }
}

/// A snapshot that is in force on the disk: see `StoreNodes::replace`.
#[derive(Debug)]
pub struct Installed {
    pub(super) nodes: Box<StoreNodes>,
}
