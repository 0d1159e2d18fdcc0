//! The tree on disk, given what the tree in memory is given.

use std::collections::VecDeque;

use conclave::store::{self, Frozen, Identity, Opened, Options};
use conclave::tree::{self, Applied, MemoryNodes, Nodes};
use conclave_proto::{ServerId, Txn};
use tempfile::{TempDir, tempdir};

/// A tree on disk.
pub(crate) struct Stored {
    dir: TempDir,
    opened: Option<Opened>,
    frozen: VecDeque<Frozen>,
}

/// What happens to it between two transactions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pause {
    Nothing,
    /// What has changed is frozen; it is written later.
    Freeze,
    /// The oldest that is frozen is written.
    Write,
    /// Everything is written, and the directory opened again.
    Reopen,
}

fn open(dir: &TempDir) -> Opened {
    let identity = Identity { cluster: "test".into(), server: ServerId::new(1).unwrap() };
    store::open(dir.path(), &identity, Options { map_bytes: 1 << 30, ..Options::default() })
        .unwrap()
}

impl Stored {
    pub(crate) fn new() -> Stored {
        let dir = tempdir().unwrap();
        let opened = Some(open(&dir));
        Stored { dir, opened, frozen: VecDeque::new() }
    }

    fn nodes(&mut self) -> &mut store::StoreNodes {
        &mut self.opened.as_mut().unwrap().nodes
    }

    pub(crate) fn apply(&mut self, after: &MemoryNodes, applied: &Applied, txn: &Txn) {
        let (zxid, chain) = (after.meta().applied_zxid, after.meta().applied_chain);
        let own = tree::apply(self.nodes(), zxid, chain, txn);
        assert_eq!((own.result, own.changes), (applied.result.clone(), applied.changes.clone()));
    }

    pub(crate) fn pause(&mut self, pause: Pause) {
        match pause {
            Pause::Nothing => {}
            Pause::Freeze => {
                let frozen = self.nodes().freeze();
                self.frozen.extend(frozen);
            }
            Pause::Write => {
                if let Some(frozen) = self.frozen.pop_front() {
                    let checkpoint = frozen.write().unwrap();
                    self.nodes().checkpointed(&checkpoint);
                }
            }
            Pause::Reopen => {
                self.pause(Pause::Freeze);
                while !self.frozen.is_empty() {
                    self.pause(Pause::Write);
                }
                self.opened = None;
                self.opened = Some(open(&self.dir));
            }
        }
    }

    pub(crate) fn compare(&mut self, memory: &MemoryNodes) {
        let nodes = self.nodes();
        assert_eq!(nodes.meta(), memory.meta());
        for (path, node) in memory.iter() {
            assert_eq!(nodes.node(path).as_ref(), Some(node), "{path}");
        }
        tree::audit(nodes).unwrap();
    }
}
