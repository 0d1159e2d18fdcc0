//! What a transaction is about to change: seen by the rest of the transaction, and by nobody else.

use std::collections::BTreeMap;

use conclave_proto::{Lifetime, SessionId, ZPath, Zxid};

use super::digest::digest_of_node;
use super::nodes::{Node, Nodes};
use super::quota;

/// Changes laid over the state. If it is dropped, nothing has happened; [`Draft::commit`] makes
/// them real. This is all it takes for a multi to be atomic.
pub(super) struct Draft<'a, N> {
    nodes: &'a mut N,
    edits: Edits,
    /// Whether there may be quotas.
    quotas: bool,
}

/// How many edits are looked through one by one: nearly every transaction changes a node or two.
const FEW: usize = 16;

/// What becomes of each path, in the order in which the transaction came to it.
struct Edits {
    list: Vec<(ZPath, Edit)>,
    /// Where in the list each path is, once there are more than a few.
    places: BTreeMap<ZPath, usize>,
}

impl Edits {
    fn new() -> Edits {
        // A node and its parent.
        Edits { list: Vec::with_capacity(2), places: BTreeMap::new() }
    }

    fn place(&self, path: &ZPath) -> Option<usize> {
        if self.list.len() > FEW {
            self.places.get(path).copied()
        } else {
            self.list.iter().position(|(at, _)| at == path)
        }
    }

    fn get(&self, path: &ZPath) -> Option<&Edit> {
        self.place(path).map(|place| &self.list[place].1)
    }

    /// The edit of that path; if it has none yet, the one that is made now.
    fn entry(&mut self, path: &ZPath, new: impl FnOnce() -> Edit) -> &mut Edit {
        let place = self.place(path).unwrap_or_else(|| self.add(path, new()));
        &mut self.list[place].1
    }

    fn add(&mut self, path: &ZPath, edit: Edit) -> usize {
        let place = self.list.len();
        if place == FEW {
            let paths = self.list.iter().map(|(path, _)| path.clone());
            self.places = paths.zip(0..).collect();
        }
        if place >= FEW {
            self.places.insert(path.clone(), place);
        }
        self.list.push((path.clone(), edit));
        place
    }
}

/// What becomes of one path.
struct Edit {
    /// What the node that was there before the transaction counted.
    before: Tally,
    /// As what that node was made.
    was: Option<Made>,
    /// The node that is there after it.
    after: Option<Node>,
}

/// What a node is made as, and stays: whose it is, how long it is to live, and when it was made.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Made(SessionId, Lifetime, Zxid);

impl Made {
    fn of(node: &Node) -> Made {
        Made(node.owner, node.lifetime, node.czxid)
    }
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
        Draft { nodes, edits: Edits::new(), quotas }
    }

    /// So many parts of the transaction are to come.
    pub(super) fn expect(&mut self, parts: usize) {
        self.edits.list.reserve(parts.min(FEW));
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
        self.edits.list.iter().map(|(path, edit)| (path, edit.after.as_ref()))
    }

    /// Put a node where none is.
    pub(super) fn create(&mut self, path: &ZPath, node: Node) {
        self.quotas |= quota::counted_at(path).is_some();
        let nothing = || Edit { before: Tally::default(), was: None, after: None };
        let edit = self.edits.entry(path, nothing);
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
        self.edits.entry(path, || Edit {
            before: Tally::of(path, now),
            was: Some(Made::of(now)),
            after: None,
        })
    }

    /// Write the changes.
    pub(super) fn commit(self) {
        let mut meta = self.nodes.meta();
        for (path, Edit { before, was, after }) in self.edits.list {
            let tally = after.as_ref().map_or(Tally::default(), |node| Tally::of(&path, node));
            meta.nodes = meta.nodes - before.nodes + tally.nodes;
            meta.bytes = meta.bytes - before.bytes + tally.bytes;
            meta.quotas = meta.quotas - before.quotas + tally.quotas;
            meta.digest = meta.digest.wrapping_sub(before.digest).wrapping_add(tally.digest);
            let owner_before = was.map_or(SessionId::NONE, |Made(owner, ..)| owner);
            let owner = after.as_ref().map_or(SessionId::NONE, |node| node.owner);
            change_owner(self.nodes, owner_before, owner);
            match after {
                Some(node) => {
                    // One that was deleted and came back as another is not a node that changed.
                    if was.is_some_and(|was| was != Made::of(&node)) {
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

/// Count an ephemeral node for `after` that counted for `before`.
fn change_owner(nodes: &mut impl Nodes, before: SessionId, after: SessionId) {
    if before == after {
        return;
    }
    if before != SessionId::NONE {
        let rest = nodes.ephemeral_count(before).checked_sub(1);
        nodes.set_ephemeral_count(before, rest.expect("a session's ephemeral nodes are counted"));
    }
    if after != SessionId::NONE {
        nodes.set_ephemeral_count(after, nodes.ephemeral_count(after) + 1);
    }
}
