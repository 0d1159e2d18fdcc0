//! The state: layers in memory over the tree on disk.
//!
//! The active layer takes changes; a frozen one is on its way to the disk. A read looks at the
//! active layer, at the frozen ones from the newest to the oldest, then at the disk.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use conclave_proto::names::{Names, NamesBuilder};
use conclave_proto::{SessionId, ZPath};

use super::env::{STARTS, Tree, View};
use super::error::{StoreError, fatal};
use super::key::{HashKey, NodeKeys, Scope, ShortHashes};
use super::layer::{Changes, Layer, NamesAfter, SESSION_COST};
use super::listings::{Known, Listings};
use super::pages;
use super::snapshot::{Installed, SnapshotReader};
use super::verify::verify;
use crate::tree::{Meta, Node, Nodes, SessionRecord};
use crate::zab::Position;

/// The state. Owned by the loop.
///
/// If the disk fails or proves to be damaged while the state is read, the process ends: see
/// [`fatal`].
#[derive(Debug)]
pub struct StoreNodes {
    active: Layer,
    /// Oldest first.
    frozen: Vec<Arc<Layer>>,
    /// How many of the frozen layers, from the oldest on, are handed out to be written.
    handed: usize,
    view: View,
    hash_key: HashKey,
    hashes: RefCell<ShortHashes>,
    /// And where the last key was written.
    keys: RefCell<(NodeKeys, Vec<u8>)>,
    sessions: BTreeMap<SessionId, Session>,
    /// How many ephemeral nodes they have together.
    ephemerals: usize,
    /// The sessions that changed or ended since the last freeze.
    touched: BTreeSet<SessionId>,
    /// The state as a whole at the last freeze.
    frozen_meta: Meta,
    listings: RefCell<Listings>,
    /// See [`Nodes::names_passed`].
    passed: Cell<u64>,
}

/// A session and whether it has changed since the last freeze.
#[derive(Debug)]
struct Session {
    /// Shared with frozen layers; copied when it changes after a freeze.
    record: Arc<SessionRecord>,
    touched: bool,
    /// How many ephemeral nodes it has.
    ephemerals: usize,
}

impl StoreNodes {
    /// The state that this tree holds; an empty tree holds nothing, not even the root.
    pub(super) fn load(tree: &Tree, fresh_key: HashKey) -> Result<StoreNodes, StoreError> {
        let view = tree.view()?;
        let (hash_key, meta) = view.meta()?.unwrap_or((fresh_key, Meta::default()));
        let counts = view.ephemeral_counts()?;
        let sessions = view.sessions()?.into_iter().map(|(id, record)| {
            let ephemerals = counts.get(&id).copied().unwrap_or(0);
            (id, Session { record: Arc::new(record), touched: false, ephemerals })
        });
        let sessions: BTreeMap<_, Session> = sessions.collect();
        Ok(StoreNodes {
            ephemerals: sessions.values().map(|session| session.ephemerals).sum(),
            active: Layer::new(meta, hash_key),
            frozen: Vec::new(),
            handed: 0,
            view,
            hash_key,
            hashes: RefCell::new(ShortHashes::new(hash_key)),
            keys: RefCell::new((NodeKeys::new(hash_key), Vec::new())),
            sessions,
            touched: BTreeSet::new(),
            frozen_meta: meta,
            listings: RefCell::default(),
            passed: Cell::default(),
        })
    }

    /// The bytes of changes that are not on their way to the disk yet: an estimate of the memory
    /// they take. Zero only if there is nothing to freeze.
    pub fn dirty_bytes(&self) -> usize {
        let frozen: usize = self.frozen[self.handed..].iter().map(|layer| layer.bytes()).sum();
        let meta = usize::from(self.active.meta != self.frozen_meta);
        frozen + self.active.bytes() + self.touched.len() * SESSION_COST + meta
    }

    /// The bytes of all changes that the tree on disk does not hold yet: an estimate of the memory they
    /// take.
    pub fn unwritten_bytes(&self) -> usize {
        self.layers().map(Layer::bytes).sum()
    }

    /// Freeze everything changed since the last freeze, to be written by another thread; `None` if
    /// there is nothing. What is frozen must be written in the order in which it was frozen.
    pub fn freeze(&mut self) -> Option<Frozen> {
        self.rotate();
        let layers = self.frozen[self.handed..].to_vec();
        if layers.is_empty() {
            return None;
        }
        self.handed = self.frozen.len();
        Some(Frozen { layers, tree: self.view.tree().clone(), hash_key: self.hash_key })
    }

    /// What was frozen last will not be written after all: the next freeze takes it along.
    pub fn not_written(&mut self, frozen: &Frozen) {
        let layers = frozen.layers.len();
        assert!(layers <= self.handed, "a checkpoint is given up that was not begun");
        self.handed -= layers;
    }

    /// The checkpoint is written: its layers are taken out and reads go to the disk.
    pub fn checkpointed(&mut self, checkpoint: &Checkpointed) {
        if *checkpoint.tree != *self.view.tree().path() {
            return;
        }
        assert!(checkpoint.layers <= self.handed, "a checkpoint is reported that was not begun");
        self.view = alive(self.view.tree().view());
        self.handed -= checkpoint.layers;
        retire(self.frozen.drain(..checkpoint.layers).collect::<Vec<_>>());
    }

    /// Open a view of the state exactly as it is now.
    pub fn snapshot(&mut self) -> SnapshotReader {
        self.rotate();
        let view = alive(self.view.tree().view());
        SnapshotReader::new(view, self.frozen.clone(), self.hash_key, self.active.meta)
    }

    /// Replace the state by a snapshot that has been installed. A checkpoint of the old state that
    /// is still being written does no harm; its [`StoreNodes::checkpointed`] is ignored.
    pub fn replace(&mut self, installed: Installed) {
        retire(std::mem::replace(self, *installed.nodes));
    }

    /// A check of the whole tree on disk as of the last checkpoint: damage that no read has met yet
    /// is found while other members still have what is lost.
    pub fn scrub(&self) -> Scrub {
        Scrub { tree: self.view.tree().clone() }
    }

    /// How much of its map the tree fills: used and reserved bytes. What is free within the file
    /// does not count.
    pub fn map_usage(&self) -> (u64, u64) {
        self.view.tree().usage()
    }

    pub(super) fn position(&self) -> Position {
        position(&self.active.meta)
    }

    /// Freeze the active layer, if it holds anything.
    fn rotate(&mut self) {
        let meta = self.active.meta;
        if self.active.bytes() == 0 && self.touched.is_empty() && meta == self.frozen_meta {
            return;
        }
        self.frozen_meta = meta;
        let next = self.active.next();
        let mut layer = std::mem::replace(&mut self.active, next);
        for id in std::mem::take(&mut self.touched) {
            let record = self.sessions.get_mut(&id).map(|session| {
                session.touched = false;
                Arc::clone(&session.record)
            });
            layer.sessions.insert(id, record);
        }
        self.frozen.push(Arc::new(layer));
    }

    /// The layers, the newest first.
    fn layers(&self) -> impl Iterator<Item = &Layer> {
        std::iter::once(&self.active).chain(self.frozen.iter().rev().map(|layer| &**layer))
    }

    /// What the newest layer that knows of it says of the node: nothing, that it is gone, or what it
    /// is.
    fn in_layers(&self, path: &ZPath) -> Option<Option<&Node>> {
        let hash = self.hashes.borrow_mut().of(path);
        self.layers().find_map(|layer| layer.node(hash, path))
    }

    /// Look something up under the key of a node.
    fn with_key<T>(&self, path: &ZPath, look: impl FnOnce(&[u8]) -> T) -> T {
        let (keys, key) = &mut *self.keys.borrow_mut();
        key.clear();
        keys.write(path, key);
        look(key)
    }

    /// The texts of a scope in order, after `after`, until `found` has enough: those on the disk,
    /// as changed by what `names` finds in each layer.
    fn texts<'a>(
        &'a self,
        scope: Scope,
        after: &str,
        names: impl Fn(&'a Layer) -> Option<NamesAfter<'a>>,
        mut found: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut changed: Vec<Peekable<_>> =
            self.layers().filter_map(names).map(Iterator::peekable).collect();
        let mut texts = self.view.texts(scope, after)?;
        let mut on_disk = texts.next()?;
        loop {
            // Once a layer has no more to say it is not asked any more.
            changed.retain_mut(|names| names.peek().is_some());
            let first = changed.iter_mut().filter_map(|names| names.peek()).map(|(name, _)| *name);
            let Some(text) = first.chain(on_disk).min() else { return Ok(()) };
            self.passed.set(self.passed.get() + 1);
            // The newest layer that knows the text decides; the disk is older than all.
            let mut there = None;
            for names in &mut changed {
                if let Some((_, now)) = names.next_if(|(name, _)| *name == text) {
                    there.get_or_insert(now);
                }
            }
            if there.unwrap_or(true) && found(text).is_break() {
                return Ok(());
            }
            if on_disk == Some(text) {
                on_disk = texts.next()?;
            }
        }
    }

    /// The same as pieces of memory of their own, at most `limit`.
    fn some_texts<'a>(
        &'a self,
        scope: Scope,
        after: &str,
        limit: usize,
        names: impl Fn(&'a Layer) -> Option<NamesAfter<'a>>,
    ) -> Vec<String> {
        let mut some = Vec::new();
        if limit > 0 {
            alive(self.texts(scope, after, names, |text| {
                some.push(text.to_owned());
                if some.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            }));
        }
        some
    }

    fn list(&self, path: &ZPath, expected: u32, most: usize) -> Option<Names> {
        let parent = path.as_str();
        let scope = Scope::children(&self.hash_key, parent);
        let mut names = NamesBuilder::with_capacity(expected as usize);
        alive(self.texts(
            scope,
            "",
            |layer| layer.children(parent, ""),
            |name| {
                names.push(name);
                if names.bytes() <= most {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            },
        ));
        (names.bytes() <= most).then(|| names.finish())
    }

    fn paths(&self, texts: Vec<String>) -> Vec<ZPath> {
        let path = |text: String| {
            ZPath::new(&text).map_err(|error| {
                self.view.damaged(format_args!("an index has {text:?} for a path: {error}"))
            })
        };
        texts.into_iter().map(|text| alive(path(text))).collect()
    }
}

/// Give back what may take long to free, without the caller's waiting for it: a hundred thousand nodes
/// take milliseconds, and the last hold on a file of many GB takes seconds. If there can be no thread,
/// it is done here.
pub fn retire<T: Send + 'static>(retired: T) {
    drop(std::thread::Builder::new().name("retire".into()).spawn(move || drop(retired)));
}

/// The value, or the end of the process.
fn alive<T>(result: Result<T, StoreError>) -> T {
    result.unwrap_or_else(|error| fatal(&error))
}

pub(super) fn position(meta: &Meta) -> Position {
    Position { zxid: meta.applied_zxid, chain: meta.applied_chain }
}

impl Nodes for StoreNodes {
    fn node(&self, path: &ZPath) -> Option<Node> {
        match self.in_layers(path) {
            Some(node) => node.cloned(),
            None => alive(self.with_key(path, |key| self.view.node(key, path))),
        }
    }

    fn contains(&self, path: &ZPath) -> bool {
        match self.in_layers(path) {
            Some(node) => node.is_some(),
            None => alive(self.with_key(path, |key| self.view.contains(key, path))),
        }
    }

    fn put_node(&mut self, path: &ZPath, node: Node) {
        let hash = self.hashes.get_mut().of(path);
        self.active.put(hash, path, node);
    }

    fn remove_node(&mut self, path: &ZPath) {
        let node = self.node(path).expect("only a node that exists is removed");
        let hash = self.hashes.get_mut().of(path);
        self.active.remove(hash, path, node.owner, node.lifetime);
    }

    fn names_passed(&self) -> u64 {
        self.passed.get()
    }

    fn children(&self, path: &ZPath, after: Option<&str>, limit: usize) -> Vec<String> {
        let (parent, after) = (path.as_str(), after.unwrap_or_default());
        let scope = Scope::children(&self.hash_key, parent);
        self.some_texts(scope, after, limit, |layer| layer.children(parent, after))
    }

    fn names(&self, path: &ZPath, node: &Node, most: usize) -> Option<Names> {
        let mut kept = self.listings.borrow_mut();
        match kept.get(path, node) {
            Some(Known::Names(names)) => return (names.packed().len() <= most).then_some(names),
            Some(Known::Above(bytes)) if bytes >= most => return None,
            Some(Known::Above(_)) | None => {}
        }
        let names = self.list(path, node.num_children, most);
        let known = names.clone().map_or(Known::Above(most), Known::Names);
        kept.keep(path, node, known);
        names
    }

    fn ephemerals(&self, session: SessionId) -> Vec<ZPath> {
        let scope = Scope::ephemerals(session);
        let names = |layer| Layer::ephemerals(layer, session);
        self.paths(self.some_texts(scope, "", usize::MAX, names))
    }

    fn ephemeral_count(&self, session: SessionId) -> usize {
        self.sessions.get(&session).map_or(0, |session| session.ephemerals)
    }

    fn set_ephemeral_count(&mut self, session: SessionId, count: usize) {
        let session = self.sessions.get_mut(&session);
        let session = session.expect("who owns an ephemeral node is a session");
        self.ephemerals = self.ephemerals - session.ephemerals + count;
        session.ephemerals = count;
    }

    fn ephemerals_in_all(&self) -> usize {
        self.ephemerals
    }

    fn mortals(&self, after: Option<&ZPath>, limit: usize) -> Vec<ZPath> {
        let after = after.map(ZPath::as_str).unwrap_or_default();
        let names = |layer| Layer::mortals(layer, after);
        self.paths(self.some_texts(Scope::mortals(), after, limit, names))
    }

    fn session(&self, id: SessionId) -> Option<&SessionRecord> {
        self.sessions.get(&id).map(|session| &*session.record)
    }

    fn session_mut(&mut self, id: SessionId) -> Option<&mut SessionRecord> {
        let session = self.sessions.get_mut(&id)?;
        if !session.touched {
            session.touched = true;
            self.touched.insert(id);
        }
        Some(Arc::make_mut(&mut session.record))
    }

    fn insert_session(&mut self, id: SessionId, record: SessionRecord) {
        let session = Session { record: Arc::new(record), touched: true, ephemerals: 0 };
        self.touched.insert(id);
        let old = self.sessions.insert(id, session);
        assert!(old.is_none(), "session {id} is inserted twice");
    }

    fn remove_session(&mut self, id: SessionId) {
        self.touched.insert(id);
        let old = self.sessions.remove(&id);
        let old = old.unwrap_or_else(|| panic!("session {id} is removed, but does not exist"));
        self.ephemerals -= old.ephemerals;
    }

    fn sessions(&self) -> Box<dyn Iterator<Item = (SessionId, &SessionRecord)> + '_> {
        Box::new(self.sessions.iter().map(|(id, session)| (*id, &*session.record)))
    }

    fn meta(&self) -> Meta {
        self.active.meta
    }

    fn set_meta(&mut self, meta: Meta) {
        self.active.meta = meta;
    }
}

/// Changes that are to be written to the tree.
#[derive(Debug)]
pub struct Frozen {
    layers: Vec<Arc<Layer>>,
    tree: Tree,
    hash_key: HashKey,
}

impl Frozen {
    /// Write them in one durable transaction. For the checkpoint thread.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn write(&self) -> Result<Checkpointed, StoreError> {
        let mut update = self.tree.write()?;
        let mut value = Vec::new();
        let mut changes = Changes::of(self.layers.clone(), &self.hash_key);
        while let Some((key, is_there)) = changes.next(&mut value) {
            if is_there {
                update.put(key, &value)?;
            } else {
                update.delete(key)?;
            }
        }
        update.commit()?;
        // The tree has proved to be of use. If this fails, it is looked at once more than needed.
        drop(std::fs::remove_file(self.tree.path().join(STARTS)));
        let last = self.layers.last().expect("nothing is frozen only if something changed");
        let at = position(&last.meta);
        Ok(Checkpointed { at, layers: self.layers.len(), tree: self.tree.path().into() })
    }
}

/// A checkpoint that has been written.
#[derive(Clone, Debug)]
pub struct Checkpointed {
    /// The last transaction that it holds.
    pub at: Position,
    layers: usize,
    tree: Arc<Path>,
}

/// See [`StoreNodes::scrub`].
#[derive(Debug)]
pub struct Scrub {
    tree: Tree,
}

impl Scrub {
    /// Read everything: about two seconds for a million nodes. For a thread of its own. While it
    /// runs, the tree's file grows with every checkpoint.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the tree is damaged, the others if the disk fails: the process
    /// has to end by [`fatal`].
    pub fn run(&self) -> Result<(), StoreError> {
        let mut view = self.tree.view()?;
        while !pages::check(self.tree.path(), Some(view.transaction()))? {
            view = self.tree.view()?;
        }
        verify(&view).map(drop)
    }
}
