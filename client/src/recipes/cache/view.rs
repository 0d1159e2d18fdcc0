//! What a cache shows, and how events and listings come together in it.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;
use conclave_proto::request::{Entry, StatTest, Test};
use conclave_proto::{EventKind, Stat, ZPath, Zxid};

/// A node as a cache knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedNode {
    /// Its data; `None` is ZooKeeper's null, what a cache without data shows, and what is told of a
    /// node that was gone already when its change was told: its deletion is told next.
    pub data: Option<Bytes>,
    /// The transaction that created it.
    pub czxid: Zxid,
    /// The last transaction known to have changed its data. The data may be of a later one.
    pub mzxid: Zxid,
    /// The version of its data: never later than the data, so that a write conditional on it never
    /// undoes what was not seen. It can be earlier; then such a write fails, as it should. It stays so,
    /// until everything is read again, if one transaction has changed the data twice: make a write that
    /// is tried again conditional on the node being [unchanged](CachedNode::unchanged).
    pub version: i32,
}

impl CachedNode {
    pub(crate) fn new(data: Option<Bytes>, stat: &Stat) -> CachedNode {
        CachedNode { data, czxid: stat.czxid, mzxid: stat.mzxid, version: stat.version }
    }

    /// That the servers' node is still the one that is shown here, of the same
    /// [transaction](CachedNode::mzxid). If the data that is shown is later than that, this holds when
    /// the cache has been told of it.
    pub fn unchanged(&self) -> Test {
        let (czxid, mzxid) = (Some(self.czxid), Some(self.mzxid));
        Test::Stat(Box::new(StatTest { czxid, mzxid, ..StatTest::default() }))
    }

    /// Its data, empty if it has none.
    pub fn bytes(&self) -> &[u8] {
        self.data.as_deref().unwrap_or_default()
    }
}

/// What a cache shows: nodes by their paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    nodes: BTreeMap<ZPath, CachedNode>,
    /// Nodes that were there, and might not be read, when everything was read.
    hidden: BTreeSet<ZPath>,
}

/// A change of one node in a view: what it was, what it is.
pub(crate) type Change = (Option<CachedNode>, Option<CachedNode>);

impl View {
    /// A node, if it exists.
    pub fn get(&self, path: &ZPath) -> Option<&CachedNode> {
        self.nodes.get(path)
    }

    /// Whether there is a node that the session may not read, as far as is known: so it was when
    /// everything was read, and that it was created or deleted was not told since.
    pub fn is_hidden(&self, path: &ZPath) -> bool {
        self.hidden.contains(path)
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// All nodes, in the order of their paths as text.
    pub fn iter(&self) -> impl Iterator<Item = (&ZPath, &CachedNode)> {
        self.nodes.iter()
    }

    /// Every node below this one, in the order of their paths as text.
    pub fn below<'a>(&'a self, path: &ZPath) -> impl Iterator<Item = (&'a ZPath, &'a CachedNode)> {
        // The first text that can lie below; what follows is checked one by one.
        let from = if path.is_root() { String::from("/") } else { format!("{path}/") };
        self.nodes
            .range::<str, _>((Bound::Excluded(from.as_str()), Bound::Unbounded))
            .take_while(move |(below, _)| below.is_within(path))
    }

    /// The children of a node, in the order of their names. Takes as long as there are nodes below.
    pub fn children<'a>(&'a self, path: &ZPath) -> impl Iterator<Item = (&'a str, &'a CachedNode)> {
        self.below(path).filter_map(move |(below, node)| {
            let name = relative(path, below)?;
            (!name.contains('/')).then_some((name, node))
        })
    }

    /// Takes a node from an answer to a read. Events that came before the answer, and are in it
    /// already, change nothing when they are applied after this.
    pub(crate) fn take(&mut self, path: ZPath, node: CachedNode) {
        self.nodes.insert(path, node);
    }

    /// Applies an event. An event that is in the view already changes nothing, or is put right by
    /// the events of its transaction that follow it.
    pub(crate) fn apply(
        &mut self,
        zxid: Zxid,
        path: &ZPath,
        kind: EventKind,
        value: Option<Bytes>,
    ) -> Option<Change> {
        let was_hidden =
            matches!(kind, EventKind::Created | EventKind::Deleted) && self.hidden.remove(path);
        let known = self.nodes.get(path);
        let node = match (kind, known) {
            (EventKind::Deleted, Some(node)) if zxid >= node.czxid => {
                let before = self.nodes.remove(path);
                return Some((before, None));
            }
            (EventKind::Deleted, None) if was_hidden => return Some((None, None)),
            (EventKind::Created, known) if known.is_none_or(|node| node.czxid < zxid) => {
                CachedNode { data: value, czxid: zxid, mzxid: zxid, version: 0 }
            }
            (EventKind::DataChanged, Some(node)) if zxid > node.mzxid => CachedNode {
                data: value,
                czxid: node.czxid,
                mzxid: zxid,
                version: node.version.wrapping_add(1),
            },
            (
                EventKind::Created
                | EventKind::Deleted
                | EventKind::DataChanged
                | EventKind::ChildrenChanged,
                _,
            ) => return None,
        };
        let before = self.nodes.insert(path.clone(), node.clone());
        Some((before, Some(node)))
    }
}

/// An event as it waits to be applied.
pub(crate) struct Told {
    pub(crate) zxid: Zxid,
    pub(crate) path: ZPath,
    pub(crate) kind: EventKind,
    pub(crate) value: Option<Bytes>,
}

/// The events that may wait for one page.
const PENDING: usize = 65_536;

/// A view that is being read, a page at a time, while things change.
///
/// What has been read is kept up to date by the events. What has not been read yet will be read
/// with everything of which an event has told before its page was asked for, so that only the
/// events that come while a page is on its way need to wait for it.
pub(crate) struct Draft {
    root: ZPath,
    view: View,
    covered: Covered,
    pending: Vec<Told>,
}

/// How much has been read.
enum Covered {
    Nothing,
    Root,
    /// The root, and what is below it up to this relative path.
    UpTo(String),
    All,
}

impl Draft {
    pub(crate) fn new(root: ZPath) -> Draft {
        Draft { root, view: View::default(), covered: Covered::Nothing, pending: Vec::new() }
    }

    /// Hears an event. False if too many of them wait.
    pub(crate) fn hear(&mut self, told: Told) -> bool {
        if self.covers(&told.path) {
            self.view.apply(told.zxid, &told.path, told.kind, told.value);
            return true;
        }
        self.pending.push(told);
        self.pending.len() < PENDING
    }

    /// The root was read.
    pub(crate) fn take_root(&mut self, node: Option<CachedNode>) {
        if let Some(node) = node {
            self.view.take(self.root.clone(), node);
        }
        self.cover(Covered::Root);
    }

    /// A page was read. An entry without statistics may not be read by this session.
    pub(crate) fn take_page(&mut self, entries: Vec<Entry>, more: bool) {
        let last = entries.last().map(|entry| entry.name.clone());
        for entry in entries {
            let path = self.root.descendant(&entry.name);
            match (entry.stat, path) {
                (Some(stat), Ok(path)) => self.view.take(path, CachedNode::new(entry.data, &stat)),
                (None, Ok(path)) => drop(self.view.hidden.insert(path)),
                (_, Err(_)) => {}
            }
        }
        match last.filter(|_| more) {
            Some(last) => self.cover(Covered::UpTo(last)),
            None => self.cover(Covered::All),
        }
    }

    /// The view, once all is read.
    pub(crate) fn finish(mut self) -> View {
        self.cover(Covered::All);
        self.view
    }

    fn cover(&mut self, covered: Covered) {
        self.covered = covered;
        for told in std::mem::take(&mut self.pending) {
            if self.covers(&told.path) {
                self.view.apply(told.zxid, &told.path, told.kind, told.value);
            }
        }
    }

    fn covers(&self, path: &ZPath) -> bool {
        match &self.covered {
            Covered::Nothing => false,
            Covered::Root => *path == self.root,
            Covered::UpTo(last) => relative(&self.root, path)
                .is_none_or(|relative| listing_order(relative, last) != Ordering::Greater),
            Covered::All => true,
        }
    }
}

/// The order of a recursive listing: parents before children, names in order.
fn listing_order(a: &str, b: &str) -> Ordering {
    a.split('/').cmp(b.split('/'))
}

/// The path of a node relative to one above it.
pub(crate) fn relative<'a>(root: &ZPath, path: &'a ZPath) -> Option<&'a str> {
    let above = if root.is_root() { "" } else { root.as_str() };
    path.as_str().strip_prefix(above)?.strip_prefix('/').filter(|rest| !rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use conclave_proto::Epoch;

    fn z(counter: u64) -> Zxid {
        Zxid::new(Epoch::new(1).unwrap(), counter)
    }

    fn path(text: &str) -> ZPath {
        ZPath::new(text).unwrap()
    }

    fn entry(name: &str, czxid: u64, mzxid: u64, version: i32) -> Entry {
        let stat = Stat { czxid: z(czxid), mzxid: z(mzxid), version, ..Stat::default() };
        Entry { name: name.into(), stat: Some(stat), data: Some(name.to_owned().into()) }
    }

    fn told(zxid: u64, at: &str, kind: EventKind) -> Told {
        Told { zxid: z(zxid), path: path(at), kind, value: Some("new".into()) }
    }

    #[test]
    fn what_is_in_the_page_already_is_not_applied_twice() {
        let mut draft = Draft::new(path("/a"));
        draft.take_root(None);
        draft.hear(told(5, "/a/b", EventKind::DataChanged));
        draft.hear(told(9, "/a/b", EventKind::DataChanged));
        draft.take_page(vec![entry("b", 2, 5, 3)], false);
        let view = draft.finish();
        let node = view.get(&path("/a/b")).unwrap();
        assert_eq!((node.mzxid, node.version, node.bytes()), (z(9), 4, b"new".as_slice()));
    }

    #[test]
    fn a_node_deleted_after_the_page_is_gone_and_one_created_again_stays() {
        let mut draft = Draft::new(path("/"));
        draft.take_root(None);
        draft.hear(told(7, "/gone", EventKind::Deleted));
        draft.hear(told(4, "/again", EventKind::Deleted));
        draft.take_page(vec![entry("again", 5, 5, 0), entry("gone", 3, 3, 0)], false);
        let view = draft.finish();
        let names: Vec<_> = view.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(names, ["/again"]);
    }

    #[test]
    fn what_no_page_has_shown_yet_is_left_to_the_page() {
        let mut draft = Draft::new(path("/"));
        draft.take_root(None);
        draft.take_page(vec![entry("a", 1, 1, 0), entry("a/x", 1, 1, 0)], true);
        // Behind "a/x" in the order of listings, though before it as text.
        draft.hear(told(4, "/a-b", EventKind::Created));
        draft.take_page(vec![entry("a-b", 4, 4, 0), entry("c", 1, 1, 0)], false);
        let view = draft.finish();
        assert_eq!(view.len(), 4);
        assert_eq!(view.children(&path("/a")).map(|(name, _)| name).collect::<Vec<_>>(), ["x"]);
        let children: Vec<_> = view.children(&ZPath::root()).map(|(name, _)| name).collect();
        assert_eq!(children, ["a", "a-b", "c"]);
    }

    #[test]
    fn deleting_and_creating_in_one_transaction_ends_with_what_it_ended_with() {
        let mut view = View::default();
        view.take(path("/a"), CachedNode::new(None, &Stat { czxid: z(8), ..Stat::default() }));
        // Heard again after a reconnection: the view is of after the transaction already.
        view.apply(z(8), &path("/a"), EventKind::Deleted, None);
        view.apply(z(8), &path("/a"), EventKind::Created, Some("x".into()));
        assert_eq!(view.get(&path("/a")).unwrap().bytes(), b"x");
        view.apply(z(9), &path("/b"), EventKind::Created, None);
        view.apply(z(9), &path("/b"), EventKind::Deleted, None);
        assert_eq!(view.get(&path("/b")), None);
    }
}
