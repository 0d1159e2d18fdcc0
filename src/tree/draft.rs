//! What a transaction is about to change: seen by the rest of the transaction, and by nobody else.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use conclave_proto::{Lifetime, SessionId, ZPath};

use super::digest::digest_of_node;
use super::nodes::{Node, Nodes};
use super::quota;

/// Changes laid over the state. If it is dropped, nothing has happened; [`Draft::commit`] makes
/// them real. This is all it takes for a multi to be atomic.
pub(super) struct Draft<'a, N> {
    nodes: &'a mut N,
    edits: BTreeMap<ZPath, Edit>,
    /// Whether there may be quotas.
    quotas: bool,
}

/// What becomes of one path.
struct Edit {
    /// What the node that was there before the transaction counted.
    before: Tally,
    /// Whose that node was, and how long it was to live.
    was: Option<(SessionId, Lifetime)>,
    /// The node that is there after it.
    after: Option<Node>,
}

/// What a node adds to [`super::Meta`].
#[derive(Clone, Copy, Default)]
pub(super) struct Tally {
    pub(super) nodes: u64,
    pub(super) bytes: u64,
    pub(super) digest: u64,
    pub(super) quotas: u64,
}

impl Tally {
    pub(super) fn of(path: &ZPath, node: &Node) -> Tally {
        let data = node.data.as_ref().map_or(0, bytes::Bytes::len);
        let bytes = (path.as_str().len() + data) as u64;
        let quotas = quota::counted_at(path).map_or(0, |_| 1);
        Tally { nodes: 1, bytes, digest: digest_of_node(path, node), quotas }
    }
}

impl<'a, N: Nodes> Draft<'a, N> {
    /// No changes yet.
    pub(super) fn new(nodes: &'a mut N) -> Draft<'a, N> {
        let quotas = nodes.meta().quotas > 0;
        Draft { nodes, edits: BTreeMap::new(), quotas }
    }

    /// The state as it was before the transaction.
    pub(super) fn base(&self) -> &N {
        self.nodes
    }

    /// The node there, as the transaction has left it so far.
    pub(super) fn node(&self, path: &ZPath) -> Option<Node> {
        match self.edits.get(path) {
            Some(edit) => edit.after.clone(),
            None => self.nodes.node(path),
        }
    }

    /// Whether there is a node, as the transaction has left it so far.
    pub(super) fn contains(&self, path: &ZPath) -> bool {
        match self.edits.get(path) {
            Some(edit) => edit.after.is_some(),
            None => self.nodes.contains(path),
        }
    }

    /// Whether there may be quotas.
    pub(super) fn has_quotas(&self) -> bool {
        self.quotas
    }

    /// What the transaction has changed so far: the paths, and the nodes that are there now.
    pub(super) fn edits(&self) -> impl Iterator<Item = (&ZPath, Option<&Node>)> {
        self.edits.iter().map(|(path, edit)| (path, edit.after.as_ref()))
    }

    /// Put a node where none is.
    pub(super) fn create(&mut self, path: &ZPath, node: Node) {
        self.quotas |= quota::counted_at(path).is_some();
        let nothing = Edit { before: Tally::default(), was: None, after: None };
        let edit = self.edits.entry(path.clone()).or_insert(nothing);
        assert!(edit.after.is_none(), "{path} is created, but exists");
        edit.after = Some(node);
    }

    /// Change `node`, which is the one that [`Draft::node`] shows there.
    pub(super) fn change(
        &mut self,
        path: &ZPath,
        node: Node,
        change: impl FnOnce(&mut Node),
    ) -> &Node {
        let after = &mut self.edit(path, &node).after;
        let after = after.insert(node);
        change(after);
        after
    }

    /// Remove `node`, which is the one that [`Draft::node`] shows there.
    pub(super) fn remove(&mut self, path: &ZPath, node: &Node) {
        self.edit(path, node).after = None;
    }

    fn edit(&mut self, path: &ZPath, now: &Node) -> &mut Edit {
        match self.edits.entry(path.clone()) {
            Entry::Occupied(edit) => edit.into_mut(),
            Entry::Vacant(edit) => edit.insert(Edit {
                before: Tally::of(path, now),
                was: Some((now.owner, now.lifetime)),
                after: None,
            }),
        }
    }

    /// Write the changes.
    pub(super) fn commit(self) {
        let mut meta = self.nodes.meta();
        for (path, Edit { before, was, after }) in self.edits {
            let tally = after.as_ref().map_or(Tally::default(), |node| Tally::of(&path, node));
            meta.nodes = meta.nodes - before.nodes + tally.nodes;
            meta.bytes = meta.bytes - before.bytes + tally.bytes;
            meta.quotas = meta.quotas - before.quotas + tally.quotas;
            meta.digest = meta.digest.wrapping_sub(before.digest).wrapping_add(tally.digest);
            match after {
                Some(node) => {
                    // One that was deleted and came back as another is not a node that changed.
                    if was.is_some_and(|was| was != (node.owner, node.lifetime)) {
                        self.nodes.remove_node(&path);
                    }
                    self.nodes.put_node(&path, node);
                }
                None if was.is_some() => self.nodes.remove_node(&path),
                None => {}
            }
        }
        self.nodes.set_meta(meta);
    }
}
