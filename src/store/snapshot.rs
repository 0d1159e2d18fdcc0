//! The whole state on its way from one server to another.

use bytes::Bytes;

use super::error::StoreError;
use crate::zab::Position;

/// Reads the state of one moment as a stream of chunks. For a thread of its own.
///
/// While it lives the tree's file cannot reuse the pages of its moment and grows with every
/// checkpoint, so it should be read as fast as it can be sent and dropped if that takes long.
#[derive(Debug)]
pub struct SnapshotReader {}

impl SnapshotReader {
    /// The moment.
    pub fn at(&self) -> Position {
        unimplemented!()
    }

    /// The next chunk, at most `SNAPSHOT_CHUNK_BYTES`; `None` after the last.
    ///
    /// # Errors
    /// If the disk fails or the tree is damaged.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        unimplemented!()
    }
}

/// Writes a received snapshot into a new tree beside the current one. For a thread of its own.
/// Dropped before its end, it leaves nothing behind.
#[derive(Debug)]
pub struct SnapshotWriter {}

impl SnapshotWriter {
    /// Take the next chunk.
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] if it is damaged or out of order: ask for the snapshot anew. The
    /// others if the disk fails.
    pub fn chunk(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        let _ = chunk;
        unimplemented!()
    }

    /// That was the last chunk: verify the whole and make it durable.
    ///
    /// # Errors
    /// As [`SnapshotWriter::chunk`]; also if the snapshot is incomplete or is not of `at`.
    pub fn finish(self, at: Position) -> Result<Received, StoreError> {
        let _ = at;
        unimplemented!()
    }
}

/// A snapshot that is complete and durable but not in force: see `LogWriter::install`.
#[derive(Debug)]
pub struct Received {}

/// A snapshot that is in force on the disk: see `StoreNodes::replace`.
#[derive(Debug)]
pub struct Installed {}
