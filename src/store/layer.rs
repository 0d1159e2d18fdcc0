//! Changes in memory that the tree on disk does not have yet.

#[expect(
    clippy::disallowed_types,
    reason = "its order never shows: whatever leaves it is sorted first; and its random seed keeps \
              clients from choosing paths that collide"
)]
use std::collections::HashMap;
use std::collections::{BTreeMap, btree_map};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use conclave_proto::{Acl, Lifetime, SessionId, ZPath};

use super::codec;
use super::key::{HashKey, Key, Scope, split};
use crate::tree::{Index, Meta, Node, SessionRecord};

#[expect(clippy::disallowed_types, reason = "see the import")]
type Map<K, V> = HashMap<K, V>;

/// What a change of one node costs in memory beside its path and data, in bytes: an estimate.
const NODE_COST: usize = 400;
/// The same for a session.
pub(super) const SESSION_COST: usize = 200;
/// Values shorter than this do not share the memory of the message they came in.
const COPIED_BYTES: usize = 4096;

/// The texts of one scope that changed: whether each is there now.
pub(super) type Names = BTreeMap<Box<str>, bool>;

/// What changed since some moment. `None` and `false` mean: it is gone.
#[derive(Debug, Default)]
pub(super) struct Layer {
    nodes: Map<ZPath, Option<Arc<Node>>>,
    /// Parent's path to names.
    children: Map<Box<str>, Names>,
    ephemerals: BTreeMap<SessionId, Names>,
    mortals: Names,
    /// Filled when the layer is frozen.
    pub(super) sessions: BTreeMap<SessionId, Option<Arc<SessionRecord>>>,
    /// The state as a whole at the end of the layer.
    pub(super) meta: Meta,
    bytes: usize,
}

impl Layer {
    pub(super) fn new(meta: Meta) -> Layer {
        Layer { meta, ..Layer::default() }
    }

    /// About how much memory it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.sessions.len() * SESSION_COST
    }

    /// What it says of the node: nothing, that it is gone, or what it is.
    pub(super) fn node(&self, path: &ZPath) -> Option<&Option<Arc<Node>>> {
        self.nodes.get(path)
    }

    pub(super) fn put(&mut self, path: &ZPath, mut node: Node) {
        // A value is a part of the message it came in. A small one is copied, lest it hold the
        // whole message in memory until the next checkpoint.
        node.data = node.data.map(|data| match data.len() {
            0..COPIED_BYTES => Bytes::copy_from_slice(&data),
            _ => data,
        });
        let (owner, lifetime) = (node.owner, node.lifetime);
        let data = node.data.as_ref().map_or(0, |data| data.len());
        let is_new = match self.nodes.get_mut(path) {
            Some(slot) => {
                let old = slot.replace(Arc::new(node));
                if let Some(old) = &old {
                    let same = (old.owner, old.lifetime) == (owner, lifetime);
                    assert!(same, "{path} changes, but not its owner and its lifetime");
                    self.bytes -= old.data.as_ref().map_or(0, |data| data.len());
                }
                // A node that changes keeps its index, or else is removed and comes back.
                old.is_none()
            }
            None => {
                self.nodes.insert(path.clone(), Some(Arc::new(node)));
                self.bytes += NODE_COST + path.as_str().len();
                true
            }
        };
        self.bytes += data;
        if is_new {
            self.index(path, owner, lifetime, true);
        }
    }

    /// Mark the node as gone; `owner` and `lifetime` are those it had.
    pub(super) fn remove(&mut self, path: &ZPath, owner: SessionId, lifetime: Lifetime) {
        match self.nodes.insert(path.clone(), None) {
            Some(Some(old)) => self.bytes -= old.data.as_ref().map_or(0, |data| data.len()),
            Some(None) => {}
            None => self.bytes += NODE_COST + path.as_str().len(),
        }
        self.index(path, owner, lifetime, false);
    }

    fn index(&mut self, path: &ZPath, owner: SessionId, lifetime: Lifetime, there: bool) {
        if let Some((parent, name)) = split(path) {
            match self.children.get_mut(parent) {
                Some(names) => names.insert(name.into(), there),
                None => self.children.entry(parent.into()).or_default().insert(name.into(), there),
            };
        }
        match Index::of(owner, lifetime) {
            Index::None => {}
            Index::Ephemerals(owner) => {
                self.ephemerals.entry(owner).or_default().insert(path.as_str().into(), there);
            }
            Index::Mortals => {
                self.mortals.insert(path.as_str().into(), there);
            }
        }
    }

    /// The children that changed, after `after`.
    pub(super) fn children(&self, parent: &str, after: &str) -> Option<NamesAfter<'_>> {
        self.children.get(parent).map(|names| names_after(names, after))
    }

    /// The ephemeral nodes of a session that changed.
    pub(super) fn ephemerals(&self, session: SessionId) -> Option<NamesAfter<'_>> {
        self.ephemerals.get(&session).map(|names| names_after(names, ""))
    }

    /// The mortal nodes that changed, after `after`.
    pub(super) fn mortals(&self, after: &str) -> Option<NamesAfter<'_>> {
        (!self.mortals.is_empty()).then(|| names_after(&self.mortals, after))
    }
}

/// Texts that changed, in order.
pub(super) type NamesAfter<'a> = btree_map::Range<'a, Box<str>, bool>;

fn names_after<'a>(names: &'a Names, after: &str) -> NamesAfter<'a> {
    names.range::<str, _>((Bound::Excluded(after), Bound::Unbounded))
}

/// What the tree on disk is to hold under one key.
#[derive(Debug)]
pub(super) enum Record {
    Nothing,
    /// A node, and its name if that does not fit the key.
    Node(Arc<Node>, Option<Box<str>>),
    /// An index entry, and its text if that does not fit the key.
    Index(Option<Box<str>>),
    Session(Arc<SessionRecord>),
    Meta(Box<(HashKey, Meta)>),
}

impl Record {
    /// Write its value in place of what `out` holds; `false` if it is that there is none.
    pub(super) fn encode(&self, key: &[u8], open: &[Acl], out: &mut Vec<u8>) -> bool {
        match self {
            Record::Nothing => return false,
            Record::Node(node, name) => codec::encode_node(key, node, name.as_deref(), open, out),
            Record::Index(text) => codec::encode_index(key, text.as_deref(), out),
            Record::Session(record) => codec::encode_session(key, record, out),
            Record::Meta(whole) => codec::encode_meta(key, &whole.0.0, &whole.1, out),
        }
        true
    }
}

/// Everything that these layers, oldest first, change in the tree on disk, in order of the keys.
pub(super) fn changes(layers: &[Arc<Layer>], hash_key: &HashKey) -> BTreeMap<Box<[u8]>, Record> {
    let mut changes = BTreeMap::new();
    for layer in layers {
        for (path, node) in &layer.nodes {
            let (key, name) = Key::node(hash_key, path);
            let record = match node {
                Some(node) => Record::Node(Arc::clone(node), name.map(Box::from)),
                None => Record::Nothing,
            };
            changes.insert(key.into(), record);
        }
        let ephemerals =
            layer.ephemerals.iter().map(|(session, names)| (Scope::ephemerals(*session), names));
        for (scope, names) in ephemerals.chain([(Scope::mortals(), &layer.mortals)]) {
            for (path, there) in names {
                let long = scope.is_long(path).then(|| path.clone());
                let record = if *there { Record::Index(long) } else { Record::Nothing };
                changes.insert(scope.key(hash_key, path).into(), record);
            }
        }
        for (id, session) in &layer.sessions {
            let record = session.clone().map_or(Record::Nothing, Record::Session);
            changes.insert(Key::session(*id).into(), record);
        }
    }
    if let Some(last) = layers.last() {
        changes.insert(Key::meta().into(), Record::Meta(Box::new((*hash_key, last.meta))));
    }
    changes
}

impl From<Key> for Box<[u8]> {
    fn from(key: Key) -> Box<[u8]> {
        (*key).into()
    }
}
