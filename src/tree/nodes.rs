//! Where the state lives: the one trait between the rules and the storage.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use conclave_proto::names::{Names, NamesBuilder};
use conclave_proto::{Acl, Lifetime, Secret, SessionId, Stat, Xid, ZPath, Zxid};

use super::outcomes::Outcomes;

/// A znode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its data; `None` is ZooKeeper's null.
    pub data: Option<Bytes>,
    /// Who may do what with it.
    pub acl: Arc<[Acl]>,
    /// How long it lives.
    pub lifetime: Lifetime,
    /// The session that an ephemeral node dies with; otherwise none.
    pub owner: SessionId,
    /// The transaction that created it.
    pub czxid: Zxid,
    /// The transaction that last changed its data.
    pub mzxid: Zxid,
    /// The transaction that last added or removed a child.
    pub pzxid: Zxid,
    /// When it was created, ms since 1970.
    pub ctime_ms: i64,
    /// When its data last changed, ms since 1970.
    pub mtime_ms: i64,
    /// How often its data has changed.
    pub version: i32,
    /// How often its ACL has changed.
    pub aversion: i32,
    /// How many children it has.
    pub num_children: u32,
    /// How many children were ever created: the next sequential child's number.
    pub children_created: u64,
}

impl Node {
    /// Its statistics as clients see them.
    pub fn stat(&self) -> Stat {
        // ZooKeeper counts creations and derives the number of changes: each child that is gone
        // was one creation and one deletion.
        let changes = self.children_created.wrapping_mul(2).wrapping_sub(self.num_children.into());
        Stat {
            czxid: self.czxid,
            mzxid: self.mzxid,
            pzxid: self.pzxid,
            ctime_ms: self.ctime_ms,
            mtime_ms: self.mtime_ms,
            version: self.version,
            #[expect(clippy::cast_possible_truncation, reason = "wraps as ZooKeeper's does")]
            cversion: changes as i32,
            aversion: self.aversion,
            ephemeral_owner: self.owner,
            data_length: self
                .data
                .as_ref()
                .map_or(0, |data| u32::try_from(data.len()).expect("a value is at most 1 MiB")),
            num_children: self.num_children,
        }
    }

    /// Whether it is a container, TTL or left lingering node that has outlived its purpose at that
    /// time (ms since 1970): a container whose last child is gone, a TTL node without children that
    /// has not been written for as long as it was to live, and one that lingered long enough.
    pub fn is_due(&self, time_ms: i64) -> bool {
        let unchanged_ms = u64::try_from(time_ms.saturating_sub(self.mtime_ms)).unwrap_or(0);
        self.num_children == 0
            && match self.lifetime {
                Lifetime::Persistent | Lifetime::Ephemeral => false,
                Lifetime::Lingering(ms) => self.owner == SessionId::NONE && unchanged_ms > ms,
                // A new one is given the time to get its first child.
                Lifetime::Container => self.children_created > 0,
                Lifetime::Ttl(ms) => unchanged_ms > ms,
            }
    }
}

/// The index, beside that of its parent's children, in which a node is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    /// None.
    None,
    /// That of the session's ephemeral nodes.
    Ephemerals(SessionId),
    /// That of the nodes which the leader deletes when they have outlived their purpose.
    Mortals,
}

impl Index {
    /// The index of nodes with this owner and lifetime.
    pub fn of(owner: SessionId, lifetime: Lifetime) -> Index {
        match lifetime {
            Lifetime::Persistent => Index::None,
            // What a session has left lingering is nobody's.
            Lifetime::Lingering(_) if owner == SessionId::NONE => Index::Mortals,
            Lifetime::Ephemeral | Lifetime::Lingering(_) => Index::Ephemerals(owner),
            Lifetime::Container | Lifetime::Ttl(_) => Index::Mortals,
        }
    }
}

/// A session as the ensemble knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// How long it outlives its last sign of life, in ms.
    pub timeout_ms: u32,
    /// What proves it.
    pub secret: Secret,
    /// The last numbered write that was applied for it.
    pub last_xid: Xid,
    /// What came of its latest numbered writes, oldest first: the answers to retries.
    pub outcomes: Outcomes,
}

/// What is known of the state as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// The last transaction applied.
    pub applied_zxid: Zxid,
    /// The checksum of the history up to it.
    pub applied_chain: u32,
    /// The leader's clock at that transaction, ms since 1970.
    pub time_ms: i64,
    /// The digest of the whole state.
    pub digest: u64,
    /// The number of nodes.
    pub nodes: u64,
    /// The bytes of all paths and data.
    pub bytes: u64,
    /// The number of quotas, that is of nodes that say how much there is in a part of the tree.
    pub quotas: u64,
}

/// The state, as the rules see it: a sorted map of nodes, the sessions, and [`Meta`].
///
/// The methods do not fail: storage that cannot answer ends the process. An implementation derives
/// its indexes (children, ephemerals by owner, reapable nodes) from the nodes it is given.
pub trait Nodes {
    /// The node at that path.
    fn node(&self, path: &ZPath) -> Option<Node>;
    /// Whether there is a node at that path: for those who expect that there is none.
    fn contains(&self, path: &ZPath) -> bool;
    /// Put a node there, new or changed: one that changes keeps its owner and its lifetime, by which
    /// it is found, and its `czxid`; that of a new one is of the transaction that is being applied.
    /// `parent.num_children` is the caller's business.
    fn put_node(&mut self, path: &ZPath, node: Node);
    /// Remove the node there, which exists.
    fn remove_node(&mut self, path: &ZPath);
    /// The names of a node's children in byte order, after `after`, at most `limit`.
    fn children(&self, path: &ZPath, after: Option<&str>, limit: usize) -> Vec<String>;
    /// The names of all children of `node`, which is at `path`; `None` if packed they take more
    /// than `most` bytes.
    fn names(&self, path: &ZPath, node: &Node, most: usize) -> Option<Names>;
    /// How many names listings have passed so far, those of nodes that are gone included; 0 where to
    /// pass one costs nothing.
    fn names_passed(&self) -> u64 {
        0
    }
    /// The paths of a session's ephemeral nodes, in order.
    fn ephemerals(&self, session: SessionId) -> Vec<ZPath>;
    /// How many ephemeral nodes a session has, without looking for them.
    fn ephemeral_count(&self, session: SessionId) -> usize;
    /// Change it: like `parent.num_children`, it is the caller's business. It is no part of what is
    /// stored, but counted when the state is loaded.
    fn set_ephemeral_count(&mut self, session: SessionId, count: usize);
    /// How many ephemeral nodes all sessions have together.
    fn ephemerals_in_all(&self) -> usize;
    /// The paths of container and TTL nodes, in order, after `after`, at most `limit`.
    fn mortals(&self, after: Option<&ZPath>, limit: usize) -> Vec<ZPath>;
    /// The session of that id.
    fn session(&self, id: SessionId) -> Option<&SessionRecord>;
    /// The session of that id, to be changed.
    fn session_mut(&mut self, id: SessionId) -> Option<&mut SessionRecord>;
    /// Add a session, which does not exist yet.
    fn insert_session(&mut self, id: SessionId, record: SessionRecord);
    /// Remove a session, which exists.
    fn remove_session(&mut self, id: SessionId);
    /// Every session, in order of their ids.
    fn sessions(&self) -> Box<dyn Iterator<Item = (SessionId, &SessionRecord)> + '_>;
    /// The state as a whole.
    fn meta(&self) -> Meta;
    /// Change it.
    fn set_meta(&mut self, meta: Meta);
}

/// The state in memory: what tests and the simulator run on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryNodes {
    nodes: BTreeMap<ZPath, Node>,
    children: BTreeSet<(ZPath, String)>,
    ephemerals: BTreeSet<(SessionId, ZPath)>,
    ephemeral_counts: BTreeMap<SessionId, usize>,
    mortals: BTreeSet<ZPath>,
    sessions: BTreeMap<SessionId, SessionRecord>,
    meta: Meta,
}

impl MemoryNodes {
    /// The state before the first transaction: the root alone. (`default()` has not even that.)
    pub fn new() -> MemoryNodes {
        let mut nodes = MemoryNodes::default();
        super::found(&mut nodes);
        nodes
    }

    /// Every node, in the order of the paths as strings.
    pub fn iter(&self) -> impl Iterator<Item = (&ZPath, &Node)> {
        self.nodes.iter()
    }

    /// The children of the node there, after that name.
    fn children_after(&self, path: &ZPath, after: &str) -> impl Iterator<Item = &(ZPath, String)> {
        let start = (path.clone(), after.to_owned());
        self.children
            .range((Bound::Excluded(start), Bound::Unbounded))
            .take_while(move |(parent, _)| *parent == *path)
    }

    /// Enter or remove the node in the indexes that depend on how long it lives.
    fn index(&mut self, path: &ZPath, owner: SessionId, lifetime: Lifetime, present: bool) {
        match Index::of(owner, lifetime) {
            Index::None => {}
            Index::Ephemerals(owner) if present => {
                self.ephemerals.insert((owner, path.clone()));
            }
            Index::Ephemerals(owner) => {
                self.ephemerals.remove(&(owner, path.clone()));
            }
            Index::Mortals if present => {
                self.mortals.insert(path.clone());
            }
            Index::Mortals => {
                self.mortals.remove(path);
            }
        }
    }
}

/// The key of a node in the index of children; the root is nobody's child.
fn as_child(path: &ZPath) -> Option<(ZPath, String)> {
    path.parent().map(|parent| (parent, path.name().to_owned()))
}

impl Nodes for MemoryNodes {
    fn node(&self, path: &ZPath) -> Option<Node> {
        self.nodes.get(path).cloned()
    }

    fn contains(&self, path: &ZPath) -> bool {
        self.nodes.contains_key(path)
    }

    fn put_node(&mut self, path: &ZPath, node: Node) {
        let (owner, lifetime, czxid) = (node.owner, node.lifetime, node.czxid);
        match self.nodes.insert(path.clone(), node) {
            Some(old) => {
                let same = (old.owner, old.lifetime, old.czxid) == (owner, lifetime, czxid);
                assert!(same, "{path} changes, but not what it was made as");
            }
            None => {
                self.children.extend(as_child(path));
                self.index(path, owner, lifetime, true);
            }
        }
    }

    fn remove_node(&mut self, path: &ZPath) {
        let node = self.nodes.remove(path).expect("only a node that exists is removed");
        if let Some(child) = as_child(path) {
            self.children.remove(&child);
        }
        self.index(path, node.owner, node.lifetime, false);
    }

    fn children(&self, path: &ZPath, after: Option<&str>, limit: usize) -> Vec<String> {
        // The empty name, which nobody has, comes before all others.
        let children = self.children_after(path, after.unwrap_or_default());
        children.take(limit).map(|(_, name)| name.clone()).collect()
    }

    fn names(&self, path: &ZPath, node: &Node, most: usize) -> Option<Names> {
        let mut names = NamesBuilder::with_capacity(node.num_children as usize);
        for (_, name) in self.children_after(path, "") {
            names.push(name);
            if names.bytes() > most {
                return None;
            }
        }
        Some(names.finish())
    }

    fn ephemerals(&self, session: SessionId) -> Vec<ZPath> {
        self.ephemerals
            .range((session, ZPath::root())..)
            .take_while(|(owner, _)| *owner == session)
            .map(|(_, path)| path.clone())
            .collect()
    }

    fn ephemeral_count(&self, session: SessionId) -> usize {
        self.ephemeral_counts.get(&session).copied().unwrap_or(0)
    }

    fn set_ephemeral_count(&mut self, session: SessionId, count: usize) {
        self.ephemeral_counts.insert(session, count);
    }

    fn ephemerals_in_all(&self) -> usize {
        self.ephemeral_counts.values().sum()
    }

    fn mortals(&self, after: Option<&ZPath>, limit: usize) -> Vec<ZPath> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.mortals.range::<ZPath, _>((start, Bound::Unbounded)).take(limit).cloned().collect()
    }

    fn session(&self, id: SessionId) -> Option<&SessionRecord> {
        self.sessions.get(&id)
    }

    fn session_mut(&mut self, id: SessionId) -> Option<&mut SessionRecord> {
        self.sessions.get_mut(&id)
    }

    fn insert_session(&mut self, id: SessionId, record: SessionRecord) {
        let old = self.sessions.insert(id, record);
        assert!(old.is_none(), "session {id} is inserted twice");
    }

    fn remove_session(&mut self, id: SessionId) {
        let old = self.sessions.remove(&id);
        self.ephemeral_counts.remove(&id);
        assert!(old.is_some(), "session {id} is removed, but does not exist");
    }

    fn sessions(&self) -> Box<dyn Iterator<Item = (SessionId, &SessionRecord)> + '_> {
        Box::new(self.sessions.iter().map(|(id, record)| (*id, record)))
    }

    fn meta(&self) -> Meta {
        self.meta
    }

    fn set_meta(&mut self, meta: Meta) {
        self.meta = meta;
    }
}
