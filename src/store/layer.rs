//! Changes in memory that the tree on disk does not have yet.

use std::collections::{BTreeMap, btree_map};
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use conclave_proto::{Acl, Lifetime, SessionId, ZPath, Zxid};
use hashbrown::HashTable;

use super::codec;
use super::key::{HashKey, Key, NodeKeys, Scope};
use crate::tree::{Index, Meta, Node, SessionRecord};

/// What a change of one node costs in memory beside its path and data, in bytes: an estimate.
const NODE_COST: usize = 400;
/// The same for a session.
pub(super) const SESSION_COST: usize = 200;

/// What changed since some moment. `None` and `false` mean: it is gone.
#[derive(Debug)]
pub(super) struct Layer {
    /// In the order in which they changed first: close together in memory when all of them are
    /// written or freed.
    changes: Chunks,
    /// Where in `changes` each path is.
    places: HashTable<u32>,
    children: Listed,
    ephemerals: BTreeMap<SessionId, Names>,
    mortals: Names,
    /// Filled when the layer is frozen.
    pub(super) sessions: BTreeMap<SessionId, Option<Arc<SessionRecord>>>,
    /// The state as a whole at the end of the layer.
    pub(super) meta: Meta,
    /// The last transaction before the layer.
    since: Zxid,
    bytes: usize,
    /// The same for all layers of a tree, so that a path is hashed once for all of them.
    hash_key: HashKey,
}

/// What became of one node.
#[derive(Debug)]
struct Change {
    /// That of the path: kept, so that a table that grows need not read every path again.
    hash: u64,
    path: ZPath,
    node: Option<Node>,
    /// Whether the node was made within the layer, before which nothing was there: once it is gone,
    /// there is nothing to say of it. Locks and queues live from such nodes.
    is_new: bool,
}

impl Change {
    /// Whether there is nothing to say of it to what is below the layer.
    fn is_void(&self) -> bool {
        self.is_new && self.node.is_none()
    }
}

/// Changes that stay where they are however many come after them.
#[derive(Debug, Default)]
struct Chunks(Vec<Vec<Change>>);

impl Chunks {
    /// How many changes lie together.
    const SIZE: usize = 256;

    fn len(&self) -> usize {
        let last = self.0.last().map_or(0, Vec::len);
        self.0.len().saturating_sub(1) * Chunks::SIZE + last
    }

    fn get(&self, place: u32) -> &Change {
        let place = place as usize;
        &self.0[place / Chunks::SIZE][place % Chunks::SIZE]
    }

    fn get_mut(&mut self, place: u32) -> &mut Change {
        let place = place as usize;
        &mut self.0[place / Chunks::SIZE][place % Chunks::SIZE]
    }

    /// Where it lies from now on.
    fn push(&mut self, change: Change) -> u32 {
        let place = u32::try_from(self.len()).expect("a layer has not so many changes");
        match self.0.last_mut().filter(|chunk| chunk.len() < Chunks::SIZE) {
            Some(chunk) => chunk.push(change),
            None => {
                let mut chunk = Vec::with_capacity(Chunks::SIZE);
                chunk.push(change);
                self.0.push(chunk);
            }
        }
        place
    }

    /// All of them, each with its place.
    fn iter(&self) -> impl Iterator<Item = (u32, &Change)> {
        (0..).zip(self.0.iter().flatten())
    }
}

/// The children that changed, by their parents.
#[derive(Debug, Default)]
struct Listed {
    all: Vec<Children>,
    /// Where in `all` each parent's are.
    places: HashTable<u32>,
    /// Where they are that were asked for last, mostly those that are asked for next.
    last: usize,
}

impl Listed {
    /// Those of this parent, which has changed ones from now on.
    fn of(&mut self, parent: &str, hash_key: &HashKey) -> &mut Children {
        if self.all.get(self.last).is_none_or(|last| *last.parent != *parent) {
            self.last = self.place(parent, hash_key);
        }
        &mut self.all[self.last]
    }

    fn place(&mut self, parent: &str, hash_key: &HashKey) -> usize {
        let Listed { all, places, .. } = self;
        let hash = hash_key.short(parent);
        let is_it = |place: &u32| *all[*place as usize].parent == *parent;
        if let Some(place) = places.find(hash, is_it) {
            return *place as usize;
        }
        let place = u32::try_from(all.len()).expect("a layer has not so many parents");
        let (parent, places_of) = (parent.into(), Vec::new());
        all.push(Children { hash, parent, places: places_of, sorted: OnceLock::new() });
        places.insert_unique(hash, place, |place| all[*place as usize].hash);
        place as usize
    }

    /// Those of this parent, if any changed.
    fn get(&self, parent: &str, hash_key: &HashKey) -> Option<&Children> {
        let is_it = |place: &u32| *self.all[*place as usize].parent == *parent;
        let place = self.places.find(hash_key.short(parent), is_it)?;
        Some(&self.all[*place as usize])
    }
}

/// Paths that changed, in order: whether each is there now.
type Names = BTreeMap<ZPath, bool>;

/// The children of one node that changed.
#[derive(Debug)]
struct Children {
    /// That of the parent's path.
    hash: u64,
    parent: Box<str>,
    /// Where in `changes` they are, until somebody lists them: most never are while they are here,
    /// and to keep many in order is what would cost most of a create.
    places: Vec<u32>,
    /// All of them, in order.
    sorted: OnceLock<Names>,
}

impl Children {
    /// All of them, in order.
    fn sorted(&self, changes: &Chunks) -> &Names {
        let said = |place: &u32| Some(changes.get(*place)).filter(|change| !change.is_void());
        let named = |change: &Change| (change.path.clone(), change.node.is_some());
        self.sorted.get_or_init(|| self.places.iter().filter_map(said).map(named).collect())
    }
}

impl Layer {
    pub(super) fn new(meta: Meta, hash_key: HashKey) -> Layer {
        Layer {
            changes: Chunks::default(),
            places: HashTable::default(),
            children: Listed::default(),
            ephemerals: BTreeMap::default(),
            mortals: Names::default(),
            sessions: BTreeMap::default(),
            meta,
            since: meta.applied_zxid,
            bytes: 0,
            hash_key,
        }
    }

    /// What comes after this layer: nothing yet.
    pub(super) fn next(&self) -> Layer {
        Layer {
            // Likely about as many: to move them whenever the table is full costs more.
            places: HashTable::with_capacity(self.changes.len()),
            ..Layer::new(self.meta, self.hash_key)
        }
    }

    /// About how much memory it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.sessions.len() * SESSION_COST
    }

    /// What it says of the node whose path has this hash, by [`HashKey::short`]: nothing, that it is
    /// gone, or what it is.
    pub(super) fn node(&self, hash: u64, path: &ZPath) -> Option<Option<&Node>> {
        self.place(hash, path).map(|place| self.changes.get(place).node.as_ref())
    }

    fn place(&self, hash: u64, path: &ZPath) -> Option<u32> {
        let is_it = |place: &u32| {
            let change = self.changes.get(*place);
            change.hash == hash && change.path == *path
        };
        self.places.find(hash, is_it).copied()
    }

    pub(super) fn put(&mut self, hash: u64, path: &ZPath, node: Node) {
        let (owner, lifetime) = (node.owner, node.lifetime);
        self.bytes += size(&node);
        let Some(place) = self.place(hash, path) else {
            let place = self.insert(hash, path, Some(node));
            return self.index(place, owner, lifetime);
        };
        let change = self.changes.get_mut(place);
        let Some(old) = &mut change.node else {
            change.node = Some(node);
            return self.index(place, owner, lifetime);
        };
        // A node that changes keeps its index and its age, or else is removed and comes back.
        let same = (old.owner, old.lifetime, old.czxid) == (owner, lifetime, node.czxid);
        assert!(same, "{path} changes, but not what it was made as");
        self.bytes -= size(old);
        *old = node;
    }

    /// Mark the node as gone; `owner` and `lifetime` are those it had.
    pub(super) fn remove(&mut self, hash: u64, path: &ZPath, owner: SessionId, lifetime: Lifetime) {
        let place = match self.place(hash, path) {
            Some(place) => {
                let old = self.changes.get_mut(place).node.take();
                self.bytes -= old.as_ref().map_or(0, size);
                place
            }
            None => self.insert(hash, path, None),
        };
        self.index(place, owner, lifetime);
    }

    fn insert(&mut self, hash: u64, path: &ZPath, node: Option<Node>) -> u32 {
        self.bytes += NODE_COST + path.as_str().len();
        let is_new = node.as_ref().is_some_and(|node| node.czxid > self.since);
        let place = self.changes.push(Change { hash, path: path.clone(), node, is_new });
        let changes = &self.changes;
        self.places.insert_unique(hash, place, |place| changes.get(*place).hash);
        place
    }

    /// Note in every index that the node in that place has come or gone.
    fn index(&mut self, place: u32, owner: SessionId, lifetime: Lifetime) {
        let change = self.changes.get(place);
        let path = &change.path;
        let there = (!change.is_void()).then_some(change.node.is_some());
        if let Some((parent, _)) = path.split() {
            let children = self.children.of(parent, &self.hash_key);
            match children.sorted.get_mut() {
                Some(sorted) => note(sorted, path, there),
                None => children.places.push(place),
            }
        }
        match Index::of(owner, lifetime) {
            Index::None => {}
            Index::Ephemerals(owner) => {
                note(self.ephemerals.entry(owner).or_default(), path, there);
            }
            Index::Mortals => note(&mut self.mortals, path, there),
        }
    }

    /// The children of `parent` that changed, after the name `after`.
    pub(super) fn children(&self, parent: &str, after: &str) -> Option<NamesAfter<'_>> {
        let children = self.children.get(parent, &self.hash_key)?;
        let above = if parent == "/" { "" } else { parent };
        Some(names_after(
            children.sorted(&self.changes),
            &format!("{above}/{after}"),
            above.len() + 1,
        ))
    }

    /// The ephemeral nodes of a session that changed.
    pub(super) fn ephemerals(&self, session: SessionId) -> Option<NamesAfter<'_>> {
        self.ephemerals.get(&session).map(|names| names_after(names, "", 0))
    }

    /// The mortal nodes that changed, after `after`.
    pub(super) fn mortals(&self, after: &str) -> Option<NamesAfter<'_>> {
        (!self.mortals.is_empty()).then(|| names_after(&self.mortals, after, 0))
    }
}

/// Note whether a path is there, or that nothing is to be said of it.
fn note(names: &mut Names, path: &ZPath, there: Option<bool>) {
    match there {
        Some(there) => drop(names.insert(path.clone(), there)),
        None => drop(names.remove(path)),
    }
}

/// What a node's data and ACL take, in bytes.
fn size(node: &Node) -> usize {
    node.data.as_ref().map_or(0, bytes::Bytes::len) + Acl::bytes_of(&node.acl)
}

/// Texts that changed, in order.
#[derive(Debug)]
pub(super) struct NamesAfter<'a> {
    names: btree_map::Range<'a, ZPath, bool>,
    /// Where in a path the text begins.
    cut: usize,
}

impl<'a> Iterator for NamesAfter<'a> {
    type Item = (&'a str, bool);

    fn next(&mut self) -> Option<(&'a str, bool)> {
        self.names.next().map(|(path, there)| (&path.as_str()[self.cut..], *there))
    }
}

fn names_after<'a>(names: &'a Names, after: &str, cut: usize) -> NamesAfter<'a> {
    NamesAfter { names: names.range::<str, _>((Bound::Excluded(after), Bound::Unbounded)), cut }
}

/// What the tree on disk is to hold under one key.
#[derive(Debug)]
enum Record {
    Nothing,
    /// A node, by the numbers of its layer and of its place there, and whether its name does not
    /// fit the key.
    Node(usize, u32, bool),
    /// An index entry, and its text if that does not fit the key.
    Index(Option<Box<str>>),
    Session(Arc<SessionRecord>),
    Meta(Box<(HashKey, Meta)>),
}

impl Record {
    /// Write its value in place of what `out` holds; `false` if it is that there is none.
    fn encode(&self, key: &[u8], layers: &[Arc<Layer>], out: &mut Vec<u8>) -> bool {
        match self {
            Record::Nothing => return false,
            Record::Node(layer, place, is_long) => {
                let Change { path, node, .. } = layers[*layer].changes.get(*place);
                let Some(node) = node else { return false };
                let name = if *is_long { path.split().map(|(_, name)| name) } else { None };
                codec::encode_node(key, node, name, out);
            }
            Record::Index(text) => codec::encode_index(key, text.as_deref(), out),
            Record::Session(record) => codec::encode_session(key, record, out),
            Record::Meta(whole) => codec::encode_meta(key, &whole.0.0, &whole.1, out),
        }
        true
    }
}

/// A record and where its key is.
#[derive(Debug)]
struct Keyed {
    /// The first bytes of the key in which it differs from others.
    order: u64,
    start: usize,
    end: usize,
    record: Record,
}

/// How much of a key says which listing it belongs to, or more than that.
const SCOPE_BYTES: usize = 17;

/// What most keys fit in.
const USUAL_KEY_BYTES: usize = 48;

/// Everything that some layers change in the tree on disk, in order of the keys.
#[derive(Debug, Default)]
pub(super) struct Changes {
    layers: Vec<Arc<Layer>>,
    /// The keys, one after another in one piece of memory.
    keys: Vec<u8>,
    records: Vec<Keyed>,
    /// How many have been taken.
    taken: usize,
}

impl Changes {
    /// What these layers, oldest first, change.
    pub(super) fn of(layers: Vec<Arc<Layer>>, hash_key: &HashKey) -> Changes {
        let mut changes = Changes::default();
        let records = layers.iter().map(|layer| layer.changes.len() + 1).sum();
        changes.records.reserve(records);
        changes.keys.reserve(records * USUAL_KEY_BYTES);
        for (number, layer) in layers.iter().enumerate() {
            changes.add_nodes(number, layer, hash_key);
            let ephemerals = layer.ephemerals.iter();
            let ephemerals = ephemerals.map(|(owner, names)| (Scope::ephemerals(*owner), names));
            for (scope, names) in ephemerals.chain([(Scope::mortals(), &layer.mortals)]) {
                for (path, there) in names {
                    let text = path.as_str();
                    let long = scope.is_long(text).then(|| text.into());
                    let record = if *there { Record::Index(long) } else { Record::Nothing };
                    changes.add(&scope.key(hash_key, text), record);
                }
            }
            for (id, session) in &layer.sessions {
                let record = session.clone().map_or(Record::Nothing, Record::Session);
                changes.add(&Key::session(*id), record);
            }
        }
        if let Some(last) = layers.last() {
            changes.add(&Key::meta(), Record::Meta(Box::new((*hash_key, last.meta))));
        }
        changes.sort();
        changes.layers = layers;
        changes
    }

    fn add_nodes(&mut self, number: usize, layer: &Layer, hash_key: &HashKey) {
        let mut node_keys = NodeKeys::new(*hash_key);
        let said = layer.changes.iter().filter(|(_, change)| !change.is_void());
        for (place, Change { path, .. }) in said {
            let start = self.keys.len();
            let is_long = node_keys.write(path, &mut self.keys);
            self.push(start, Record::Node(number, place, is_long));
        }
    }

    fn add(&mut self, key: &[u8], record: Record) {
        let start = self.keys.len();
        self.keys.extend_from_slice(key);
        self.push(start, record);
    }

    /// Add a record whose key is that from `start` on.
    fn push(&mut self, start: usize, record: Record) {
        self.records.push(Keyed { order: 0, start, end: self.keys.len(), record });
    }

    fn sort(&mut self) {
        let key = |keyed: &Keyed| &self.keys[keyed.start..keyed.end];
        let scope =
            |keyed: &Keyed| &self.keys[keyed.start..keyed.end.min(keyed.start + SCOPE_BYTES)];
        self.records.sort_by(|a, b| scope(a).cmp(scope(b)));
        // Names of one listing mostly begin alike: what comes next is looked at first, as a number.
        for listed in self.records.chunk_by_mut(|a, b| scope(a) == scope(b)) {
            let first = key(&listed[0]);
            let alike =
                |keyed: &Keyed| key(keyed).iter().zip(first).take_while(|(a, b)| a == b).count();
            let shared = listed.iter().map(alike).min().unwrap_or_default();
            for keyed in listed.iter_mut() {
                keyed.order = first_bytes(&key(keyed)[shared..]);
            }
            listed.sort_by(|a, b| a.order.cmp(&b.order).then_with(|| key(a).cmp(key(b))));
        }
        // Of two records with one key the later layer's counts: it comes second.
        self.records.dedup_by(|later, earlier| {
            let same = key(later) == key(earlier);
            if same {
                std::mem::swap(later, earlier);
            }
            same
        });
    }

    /// The key of the first that has not been taken yet.
    pub(super) fn next_key(&self) -> Option<&[u8]> {
        let Keyed { start, end, .. } = self.records.get(self.taken)?;
        Some(&self.keys[*start..*end])
    }

    /// Take it: its key, and whether there is to be a value, which is written in place of what `out`
    /// holds.
    pub(super) fn next(&mut self, out: &mut Vec<u8>) -> Option<(&[u8], bool)> {
        let Keyed { start, end, record, .. } = self.records.get(self.taken)?;
        self.taken += 1;
        let key = &self.keys[*start..*end];
        Some((key, record.encode(key, &self.layers, out)))
    }
}

/// The first eight bytes as a number that is ordered as they are.
fn first_bytes(text: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let len = text.len().min(bytes.len());
    bytes[..len].copy_from_slice(&text[..len]);
    u64::from_be_bytes(bytes)
}
