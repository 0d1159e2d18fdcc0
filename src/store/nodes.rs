//! The state: layers in memory over the tree on disk.

use conclave_proto::{SessionId, ZPath};

use super::error::StoreError;
use super::snapshot::{Installed, SnapshotReader};
use crate::tree::{Meta, Node, Nodes, SessionRecord};
use crate::zab::Position;

/// The state. Owned by the loop.
#[derive(Debug)]
pub struct StoreNodes {}

impl StoreNodes {
    /// The bytes of changes that no checkpoint holds yet.
    pub fn dirty_bytes(&self) -> usize {
        unimplemented!()
    }

    /// Freeze everything changed since the last checkpoint, to be written by another thread; `None`
    /// if there is nothing. Must not be called again before [`StoreNodes::checkpointed`].
    pub fn freeze(&mut self) -> Option<Frozen> {
        unimplemented!()
    }

    /// The checkpoint is written: its layers are dropped and reads go to the tree.
    pub fn checkpointed(&mut self, checkpoint: &Checkpointed) {
        let _ = checkpoint;
    }

    /// Open a view of the state exactly as it is now.
    pub fn snapshot(&mut self) -> SnapshotReader {
        unimplemented!()
    }

    /// Replace the state by a snapshot that has been installed. A checkpoint of the old state that
    /// is still being written does no harm; its [`StoreNodes::checkpointed`] is ignored.
    pub fn replace(&mut self, installed: Installed) {
        let _ = installed;
    }

    /// How much of the map the tree fills: used and reserved bytes.
    pub fn map_usage(&self) -> (u64, u64) {
        unimplemented!()
    }
}

/// Changes that are to be written to the tree.
#[derive(Debug)]
pub struct Frozen {}

impl Frozen {
    /// Write them in one durable transaction. For the checkpoint thread.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn write(&self) -> Result<Checkpointed, StoreError> {
        unimplemented!()
    }
}

/// A checkpoint that has been written.
#[derive(Clone, Copy, Debug)]
pub struct Checkpointed {
    /// The last transaction that it holds.
    pub at: Position,
}

impl Nodes for StoreNodes {
    fn node(&self, _path: &ZPath) -> Option<Node> {
        unimplemented!()
    }
    fn put_node(&mut self, _path: &ZPath, _node: Node) {
        unimplemented!()
    }
    fn remove_node(&mut self, _path: &ZPath) {
        unimplemented!()
    }
    fn children(&self, _path: &ZPath, _after: Option<&str>, _limit: usize) -> Vec<String> {
        unimplemented!()
    }
    fn ephemerals(&self, _session: SessionId) -> Vec<ZPath> {
        unimplemented!()
    }
    fn mortals(&self, _after: Option<&ZPath>, _limit: usize) -> Vec<ZPath> {
        unimplemented!()
    }
    fn session(&self, _id: SessionId) -> Option<&SessionRecord> {
        unimplemented!()
    }
    fn session_mut(&mut self, _id: SessionId) -> Option<&mut SessionRecord> {
        unimplemented!()
    }
    fn insert_session(&mut self, _id: SessionId, _record: SessionRecord) {
        unimplemented!()
    }
    fn remove_session(&mut self, _id: SessionId) {
        unimplemented!()
    }
    fn sessions(&self) -> Box<dyn Iterator<Item = (SessionId, &SessionRecord)> + '_> {
        unimplemented!()
    }
    fn meta(&self) -> Meta {
        unimplemented!()
    }
    fn set_meta(&mut self, _meta: Meta) {
        unimplemented!()
    }
}
