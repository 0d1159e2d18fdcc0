//! The log as it is written.

use conclave_proto::Zxid;

use super::error::StoreError;
use super::snapshot::{Installed, Received};
use crate::zab::Write;

/// Writes the log and the epochs. Owned by the log thread.
///
/// After an error nothing more may be written: the process has to end.
#[derive(Debug)]
pub struct LogWriter {}

impl LogWriter {
    /// Take these writes, in order. They are durable after the next [`LogWriter::sync`].
    ///
    /// Appended entries are gathered in memory. An epoch or a truncation is durable on return, and
    /// so is everything before it: an epoch is never on the disk without the history it vouches
    /// for.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn apply(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let _ = writes;
        unimplemented!()
    }

    /// Make everything taken so far durable: one write and one fdatasync for all of it.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        unimplemented!()
    }

    /// The state up to and including `checkpoint` is in the tree: drop what lies before it, except
    /// for a window that serves followers.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn trim(&mut self, checkpoint: Zxid) -> Result<(), StoreError> {
        let _ = checkpoint;
        unimplemented!()
    }

    /// Make a received snapshot the state, and let the log go on from its position; durable on
    /// return. After a crash there is either the old tree with the old log or the new with the new.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn install(&mut self, snapshot: Received) -> Result<Installed, StoreError> {
        let _ = snapshot;
        unimplemented!()
    }
}
