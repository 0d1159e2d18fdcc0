//! Every rule of writing, once.
//!
//! The rules are ZooKeeper's, in the order in which it checks them: the arguments, the ACL to be
//! written, whether the node exists whose ACL counts, permission, version, children.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use conclave_proto::request::{Condition, Test};
use conclave_proto::{
    Acl, CreateMode, ErrorCode, Event, EventKind, Fault, Lifetime, Op, Perms, Reply, SessionId,
    Txn, ZPath, Zxid,
};

use super::acl::Asker;
use super::draft::Draft;
use super::nodes::{Node, Nodes};
use super::quota::{self, Excess, Ledger, Usage};
use super::{sessions, walk};
use crate::limits;

/// The newest version of the rules that this code knows; the leader stamps it into [`Txn`]s.
pub const SEMANTICS: u16 = 1;

/// Nodes that exist by themselves: clients neither create nor delete them.
const RESERVED: [&str; 4] = ["/", "/zookeeper", "/zookeeper/config", quota::QUOTA];

/// Where ZooKeeper shows the members of the ensemble.
pub const CONFIG: &str = "/zookeeper/config";

/// What it says before there was a leader.
const CONFIG_TEXT: &[u8] = b"version=0";

/// Numbers of sequential nodes are below it.
const TEN_DIGITS: u64 = 10_000_000_000;

/// What came of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The transaction whose outcome this is: for a retry, the one that carried out the original.
    pub zxid: Zxid,
    /// The answer to who asked.
    pub result: Result<Reply, Fault>,
    /// What watchers may be told, in order. Empty if the request failed or was a retry.
    pub changes: Vec<Change>,
    /// The session that began or ended.
    pub session: Option<SessionChange>,
    /// Whether it was a retry of a write that had been applied before.
    pub duplicate: bool,
    /// A quota that it exceeded, or that it would have exceeded and was refused for.
    pub excess: Option<Excess>,
    /// How many nodes were looked at, for each part and condition of it, to be deleted, or to be counted
    /// for a quota, and how many changes made, whether or not it succeeded: what it has cost. An estimate.
    pub nodes: usize,
}

impl Applied {
    pub(super) fn new(zxid: Zxid, result: Result<Reply, Fault>) -> Applied {
        let (changes, session, duplicate, excess) = (Vec::new(), None, false, None);
        Applied { zxid, result, changes, session, duplicate, excess, nodes: 0 }
    }
}

/// A change of a node, and who may know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What watchers are told.
    pub event: Event,
    /// The node's ACL (its last one, if it is gone): whoever may not read the node is not told.
    pub acl: Arc<[Acl]>,
    /// What the node held last, if this is its deletion.
    pub last: Option<Bytes>,
}

/// A session began or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionChange {
    /// It exists from now on.
    Opened {
        /// Which.
        session: SessionId,
        /// How long it outlives its last sign of life, in ms.
        timeout_ms: u32,
    },
    /// It is gone, and its ephemeral nodes with it.
    Closed(SessionId),
}

/// Put in place what exists before the first transaction: the root, and the nodes that every
/// client of ZooKeeper finds there.
pub fn found(nodes: &mut impl Nodes) {
    let mut draft = Draft::new(nodes);
    for path in RESERVED {
        let path = ZPath::new(path).expect("a reserved path is a path");
        let data = if path.as_str() == CONFIG { CONFIG_TEXT } else { b"" };
        let mut node = new_node(Some(Bytes::from_static(data)), Acl::open(), Zxid::ZERO, 0);
        if path.as_str() == CONFIG {
            let lines = node.acl.iter();
            node.acl = lines.map(|line| Acl { perms: Perms::READ, ..line.clone() }).collect();
            node.version = -1;
            node.aversion = -1;
        }
        // These children were never created: so it is that ZooKeeper counts -1 and -2 changes.
        node.num_children = reserved_children(&path);
        draft.create(&path, node);
    }
    draft.commit();
}

/// How many children of a node exist without ever having been created.
pub(super) fn reserved_children(path: &ZPath) -> u32 {
    let children = RESERVED
        .iter()
        .filter(|child| ZPath::new(child).is_ok_and(|child| child.parent().as_ref() == Some(path)));
    u32::try_from(children.count()).expect("there are four of them")
}

/// Apply the transaction at `zxid`, the next one of the history; `chain` is the checksum of the
/// history up to it.
///
/// Whether the request succeeds or fails, the transaction is applied afterwards, and every replica
/// has the same state and the same answer.
///
/// # Panics
/// If `zxid` is applied already, or if the transaction follows rules newer than [`SEMANTICS`].
pub fn apply(nodes: &mut impl Nodes, zxid: Zxid, chain: u32, txn: &Txn) -> Applied {
    let mut meta = nodes.meta();
    assert!(
        txn.semantics <= SEMANTICS,
        "{zxid} follows the rules of version {}, this server knows {SEMANTICS}: upgrade it",
        txn.semantics
    );
    assert!(zxid > meta.applied_zxid, "{zxid} comes after {}", meta.applied_zxid);
    meta.applied_zxid = zxid;
    meta.applied_chain = chain;
    meta.time_ms = meta.time_ms.max(txn.time_ms);
    nodes.set_meta(meta);

    let request = &txn.request;
    if let Op::CreateSession { session, timeout_ms, secret } = request.op {
        let opened = sessions::open(nodes, request.session, session, timeout_ms, secret);
        let mut applied = Applied::new(zxid, opened.map(|_| Reply::Done).map_err(Fault::from));
        if opened == Ok(true) {
            applied.session = Some(SessionChange::Opened { session, timeout_ms });
        }
        return applied;
    }
    if request.session != SessionId::NONE {
        let Some(record) = nodes.session(request.session) else {
            return Applied::new(zxid, Err(ErrorCode::SessionExpired.into()));
        };
        if let Some(earlier) = sessions::retry(record, zxid, request) {
            return earlier;
        }
    }
    let mut applied = carry_out(nodes, zxid, txn);
    if matches!(request.op, Op::CloseSession | Op::ExpireSession) && applied.result.is_ok() {
        sessions::remove(nodes, request.session);
        applied.session = Some(SessionChange::Closed(request.session));
    }
    sessions::remember(nodes, request, &applied);
    applied
}

fn carry_out(nodes: &mut impl Nodes, zxid: Zxid, txn: &Txn) -> Applied {
    let mut work = Work {
        zxid,
        time_ms: nodes.meta().time_ms,
        session: txn.request.session,
        asker: Asker::of(txn),
        draft: Draft::new(nodes),
        ledger: Ledger::new(),
        trees_left: limits::DELETE_MANY as usize,
        looked_at: 0,
        ephemerals_made: 0,
        ephemerals_gone: 0,
        acl_bytes: 0,
        parts: 0,
        // Of a node and of its parent.
        changes: Vec::with_capacity(2),
    };
    let result = work.carry_out(&txn.request.op);
    let mut applied = Applied::new(zxid, result);
    applied.nodes = work.parts + work.changes.len() + work.looked_at + work.ledger.looked_at();
    applied.excess = work.ledger.excess.filter(|excess| excess.hard || applied.result.is_ok());
    if applied.result.is_ok() {
        work.draft.commit();
        applied.changes = work.changes;
    }
    applied
}

/// A transaction being carried out. What it has done so far is kept only if all of it succeeds.
struct Work<'a, N> {
    zxid: Zxid,
    time_ms: i64,
    session: SessionId,
    asker: Asker<'a>,
    draft: Draft<'a, N>,
    ledger: Ledger,
    /// How many nodes it may still delete with their trees.
    trees_left: usize,
    /// How many it has looked at for that.
    looked_at: usize,
    /// How many ephemeral nodes of the session it has created and deleted so far.
    ephemerals_made: usize,
    ephemerals_gone: usize,
    /// How many operations and conditions it has come to.
    parts: usize,
    /// The bytes of the ACLs that it has written so far.
    acl_bytes: usize,
    changes: Vec<Change>,
}

impl<N: Nodes> Work<'_, N> {
    fn carry_out(&mut self, op: &Op) -> Result<Reply, Fault> {
        self.parts += 1;
        match op {
            Op::Multi { conditions, then, otherwise } => self.multi(conditions, then, otherwise),
            Op::DeleteRecursive { path, limit } => Ok(self.delete_recursive(path, *limit)?),
            Op::CloseSession => Ok(self.close_session(false)?),
            Op::ExpireSession => Ok(self.close_session(true)?),
            Op::Reap { path, seen } => Ok(self.reap(path, *seen)?),
            Op::Create { path, data, acl, mode } => {
                Ok(self.create(path, data.as_ref(), acl, *mode)?)
            }
            Op::Delete { path, version } => Ok(self.delete(path, *version)?),
            Op::SetData { path, data, version } => {
                Ok(self.set_data(path, data.as_ref(), *version)?)
            }
            Op::SetAcl { path, acl, version } => Ok(self.set_acl(path, acl, *version)?),
            Op::Check { path, version } => Ok(self.check(path, *version)?),
            Op::Require(condition) => Ok(self.require(condition)?),
            Op::CreateIfMissing { path, data, acl, mode } => {
                Ok(self.create_if_missing(path, data.as_ref(), acl, *mode)?)
            }
            Op::DeleteIfExists { path, version } => Ok(self.delete_if_exists(path, *version)?),
            Op::DeleteTree { path, limit } => Ok(self.delete_tree(path, *limit)?),
            Op::Guard { path, token } => Ok(self.guard(path, *token)?),
            Op::CreateSession { .. }
            | Op::Get { .. }
            | Op::Exists { .. }
            | Op::Children { .. }
            | Op::ListRecursive { .. }
            | Op::GetAcl { .. }
            | Op::Ephemerals { .. }
            | Op::CountDescendants { .. }
            | Op::MultiRead(_)
            | Op::Sync { .. }
            | Op::Watch { .. }
            | Op::Unwatch { .. }
            | Op::Authenticate { .. }
            | Op::WhoAmI => Err(ErrorCode::BadArguments.into()),
        }
    }

    fn create(
        &mut self,
        path: &ZPath,
        data: Option<&Bytes>,
        acl: &[Acl],
        mode: CreateMode,
    ) -> Result<Reply, ErrorCode> {
        check_size(data)?;
        self.check_lifetime(mode.lifetime)?;
        if mode.first_child >= TEN_DIGITS {
            return Err(ErrorCode::BadArguments);
        }
        let acl = self.resolve(acl)?;
        // A sequential node that is asked for as `/` becomes a child of the root.
        let above = path.parent().unwrap_or_else(ZPath::root);
        let parent = self.existing(&above)?;
        self.asker.check(&parent.acl, Perms::CREATE)?;
        let path = match mode.sequential {
            true => numbered(path, parent.children_created)?,
            false => path.clone(),
        };
        if self.draft.contains(&path) {
            return Err(ErrorCode::NodeExists);
        }
        if parent.lifetime.is_ephemeral() {
            return Err(ErrorCode::NoChildrenForEphemerals);
        }
        if mode.lifetime.is_ephemeral() {
            self.check_ephemerals()?;
        }
        self.check_quota(&path)?;
        let data = match quota::counted_at(&path) {
            Some(subject) => Some(self.ledger.count(&self.draft, &subject)?),
            None => keep(data),
        };
        let mut node = new_node(data, acl, self.zxid, self.time_ms);
        (node.lifetime, node.children_created) = (mode.lifetime, mode.first_child);
        if mode.lifetime.is_ephemeral() {
            node.owner = self.session;
            self.ephemerals_made += 1;
        }
        let num_children = parent.num_children.checked_add(1);
        let children_created = parent.children_created.checked_add(1);
        let (Some(num_children), Some(children_created)) = (num_children, children_created) else {
            return Err(ErrorCode::SequenceOverflow);
        };

        self.ledger.enter(&mut self.draft, &path, Usage::of(&node))?;
        let stat = node.stat();
        self.tell(&path, &node, EventKind::Created);
        self.draft.create(&path, node);
        self.change_parent(&above, parent, |parent| {
            parent.num_children = num_children;
            parent.children_created = children_created;
        });
        Ok(Reply::Created { path, stat })
    }

    fn delete(&mut self, path: &ZPath, version: Option<i32>) -> Result<Reply, ErrorCode> {
        let above = deletable_parent(path)?;
        let parent = self.existing(&above)?;
        self.asker.check(&parent.acl, Perms::DELETE)?;
        let node = self.existing(path)?;
        self.check_quota(path)?;
        check_version(node.version, version)?;
        if node.num_children > 0 {
            return Err(ErrorCode::NotEmpty);
        }
        self.remove(path, &node, &above, parent);
        Ok(Reply::Done)
    }

    fn delete_recursive(&mut self, path: &ZPath, limit: u32) -> Result<Reply, ErrorCode> {
        deletable_parent(path)?;
        self.existing(path)?;
        let limit = if limit == 0 { limits::DELETE_MANY } else { limit.min(limits::DELETE_MANY) };
        let doomed = walk::deepest_first(self.draft.base(), path, limit as usize);
        for path in &doomed {
            self.delete(path, None)?;
        }
        let deleted = u32::try_from(doomed.len()).expect("the limit is a u32");
        Ok(Reply::DeletedMany { deleted, more: doomed.last() != Some(path) })
    }

    fn set_data(
        &mut self,
        path: &ZPath,
        data: Option<&Bytes>,
        version: Option<i32>,
    ) -> Result<Reply, ErrorCode> {
        check_size(data)?;
        let node = self.existing(path)?;
        self.asker.check(&node.acl, Perms::WRITE)?;
        self.check_quota(path)?;
        let data = match quota::counted_at(path) {
            Some(_) => node.data.clone(),
            None => keep(data),
        };
        let growth = Usage::of_change(node.data.as_ref(), data.as_ref());
        self.ledger.enter(&mut self.draft, path, growth)?;
        check_version(node.version, version)?;
        self.tell(path, &node, EventKind::DataChanged);
        let node = self.draft.change(path, node, |node| {
            node.data = data;
            node.mzxid = self.zxid;
            node.mtime_ms = self.time_ms;
            node.version = node.version.wrapping_add(1);
        });
        Ok(Reply::Stat(node.stat()))
    }

    fn set_acl(
        &mut self,
        path: &ZPath,
        acl: &[Acl],
        version: Option<i32>,
    ) -> Result<Reply, ErrorCode> {
        let acl = self.resolve(acl)?;
        let node = self.existing(path)?;
        self.asker.check(&node.acl, Perms::ADMIN)?;
        self.check_quota(path)?;
        check_version(node.aversion, version)?;
        let node = self.draft.change(path, node, |node| {
            node.acl = acl;
            node.aversion = node.aversion.wrapping_add(1);
        });
        Ok(Reply::Stat(node.stat()))
    }

    fn check(&mut self, path: &ZPath, version: Option<i32>) -> Result<Reply, ErrorCode> {
        let node = self.existing(path)?;
        self.asker.check(&node.acl, Perms::READ)?;
        check_version(node.version, version)?;
        Ok(Reply::Done)
    }

    fn require(&mut self, condition: &Condition) -> Result<Reply, ErrorCode> {
        if self.holds(condition)? {
            return Ok(Reply::Done);
        }
        Err(match (&condition.test, self.draft.node(&condition.path)) {
            (Test::Missing, _) => ErrorCode::NodeExists,
            (_, None) => ErrorCode::NoNode,
            (Test::Version(_) | Test::ChildVersion(_) | Test::Stat(_), _) => ErrorCode::BadVersion,
            (Test::Exists | Test::CreatedBy(_) | Test::Data(_), _) => ErrorCode::ConditionFailed,
        })
    }

    fn create_if_missing(
        &mut self,
        path: &ZPath,
        data: Option<&Bytes>,
        acl: &[Acl],
        mode: CreateMode,
    ) -> Result<Reply, ErrorCode> {
        match self.create(path, data, acl, mode) {
            Err(ErrorCode::NodeExists) if !mode.sequential => {
                let node = self.existing(path)?;
                self.asker.check(&node.acl, Perms::READ)?;
                Ok(Reply::Created { path: path.clone(), stat: node.stat() })
            }
            created => created,
        }
    }

    fn delete_if_exists(&mut self, path: &ZPath, version: Option<i32>) -> Result<Reply, ErrorCode> {
        match self.delete(path, version) {
            Err(ErrorCode::NoNode) => Ok(Reply::Done),
            deleted => deleted,
        }
    }

    fn delete_tree(&mut self, path: &ZPath, limit: u32) -> Result<Reply, ErrorCode> {
        deletable_parent(path)?;
        self.existing(path)?;
        let limit = match limit {
            0 => self.trees_left,
            limit => self.trees_left.min(limit as usize),
        };
        // Those that the transaction has deleted already may stand in the way of others.
        let enough = limit + 1 + self.draft.edits().count();
        let mut doomed = walk::deepest_first(self.draft.base(), path, enough);
        self.looked_at += doomed.len();
        if self.looked_at > limits::TREE_NODES {
            return Err(ErrorCode::TooLarge);
        }
        let known: BTreeSet<ZPath> = doomed.iter().cloned().collect();
        let edited = self.draft.edits().map(|(path, _)| path);
        doomed.extend(edited.filter(|at| at.is_within(path) && !known.contains(*at)).cloned());
        doomed.retain(|path| self.draft.node(path).is_some());
        if doomed.len() > limit {
            return Err(ErrorCode::NotEmpty);
        }
        self.trees_left -= doomed.len();
        doomed.sort_by_cached_key(|path| (Reverse(path.depth()), path.clone()));
        for path in &doomed {
            self.delete(path, None)?;
        }
        let deleted = u32::try_from(doomed.len()).expect("the limit is a u32");
        Ok(Reply::DeletedMany { deleted, more: false })
    }

    /// What stands for something that is held: a node of a session that lives, or one with a time
    /// to live that is not over.
    fn guard(&mut self, path: &ZPath, token: Zxid) -> Result<Reply, ErrorCode> {
        let Some(node) = self.draft.node(path) else { return Err(ErrorCode::ConditionFailed) };
        self.asker.check(&node.acl, Perms::READ)?;
        let is_left =
            matches!(node.lifetime, Lifetime::Lingering(_)) && node.owner == SessionId::NONE;
        if node.czxid == token && !is_left && !node.is_due(self.time_ms) {
            Ok(Reply::Done)
        } else {
            Err(ErrorCode::ConditionFailed)
        }
    }

    fn multi(
        &mut self,
        conditions: &[Condition],
        then: &[Op],
        otherwise: &[Op],
    ) -> Result<Reply, Fault> {
        if conditions.len() + then.len() + otherwise.len() > limits::MULTI_OPS {
            return Err(ErrorCode::TooLarge.into());
        }
        self.parts += conditions.len();
        let mut held = true;
        for (place, condition) in conditions.iter().enumerate() {
            held = held && self.holds(condition).map_err(|code| fault(code, place))?;
        }
        let branch = if held { then } else { otherwise };
        self.draft.expect(branch.len());
        self.changes.reserve(branch.len());
        let mut replies = Vec::with_capacity(branch.len());
        for (place, op) in branch.iter().enumerate() {
            if !may_be_in_multi(op) {
                return Err(fault(ErrorCode::BadArguments, place));
            }
            replies.push(self.carry_out(op).map_err(|failed| fault(failed.code, place))?);
        }
        Ok(Reply::Multi { held, replies })
    }

    fn holds(&self, condition: &Condition) -> Result<bool, ErrorCode> {
        let Some(node) = self.draft.node(&condition.path) else {
            return Ok(condition.test == Test::Missing);
        };
        self.asker.check(&node.acl, Perms::READ)?;
        Ok(match &condition.test {
            Test::Exists => true,
            Test::Missing => false,
            Test::Version(version) => node.version == *version,
            Test::ChildVersion(version) => node.stat().cversion == *version,
            Test::CreatedBy(zxid) => node.czxid == *zxid,
            Test::Data(data) => node.data.as_ref() == Some(data),
            Test::Stat(stat) => stat.holds(&node.stat()),
        })
    }

    /// Delete the session's ephemeral nodes; nobody's permission is asked. If it has expired, those
    /// that linger stay, as nobody's, from now on for as long as they are to. The caller removes
    /// the session in the same transaction.
    fn close_session(&mut self, has_expired: bool) -> Result<Reply, ErrorCode> {
        if self.session == SessionId::NONE {
            return Err(ErrorCode::BadArguments);
        }
        for path in self.draft.base().ephemerals(self.session) {
            let above = path.parent().expect("the root is not ephemeral");
            let node = self.draft.node(&path).expect("the index of ephemerals names nodes");
            if has_expired && matches!(node.lifetime, Lifetime::Lingering(_)) {
                self.tell(&path, &node, EventKind::DataChanged);
                self.draft.change(&path, node, |node| {
                    node.owner = SessionId::NONE;
                    node.mzxid = self.zxid;
                    node.mtime_ms = self.time_ms;
                    node.version = node.version.wrapping_add(1);
                });
                continue;
            }
            let parent = self.draft.node(&above).expect("every node has a parent");
            self.remove(&path, &node, &above, parent);
        }
        Ok(Reply::Done)
    }

    fn reap(&mut self, path: &ZPath, seen: (Zxid, Zxid)) -> Result<Reply, ErrorCode> {
        if self.session != SessionId::NONE {
            return Err(ErrorCode::NoAuth);
        }
        let node = self.existing(path)?;
        if (node.pzxid, node.mzxid) != seen {
            return Err(ErrorCode::BadVersion);
        }
        if !node.is_due(self.time_ms) {
            return Err(ErrorCode::ConditionFailed);
        }
        self.delete(path, None)
    }

    fn existing(&self, path: &ZPath) -> Result<Node, ErrorCode> {
        self.draft.node(path).ok_or(ErrorCode::NoNode)
    }

    /// Fail unless the asker may set the quota that the node at `path` is a part of, if it is.
    fn check_quota(&self, path: &ZPath) -> Result<(), ErrorCode> {
        match quota::governed_by(&self.draft, path) {
            Some(node) => self.asker.check(&node.acl, Perms::ADMIN),
            None => Ok(()),
        }
    }

    /// Fail if the session has as many ephemeral nodes as it may have.
    fn check_ephemerals(&self) -> Result<(), ErrorCode> {
        let before = self.draft.base().ephemeral_count(self.session);
        let most = limits::EPHEMERALS_PER_SESSION + self.ephemerals_gone;
        if before + self.ephemerals_made < most { Ok(()) } else { Err(ErrorCode::TooLarge) }
    }

    /// The ACL to be written when this one is asked for. All those of one transaction together are no
    /// larger than a request that says them in full.
    fn resolve(&mut self, acl: &[Acl]) -> Result<Arc<[Acl]>, ErrorCode> {
        let acl = self.asker.resolve(acl)?;
        self.acl_bytes += Acl::bytes_of(&acl);
        if self.acl_bytes > limits::FRAME_BYTES {
            return Err(ErrorCode::TooLarge);
        }
        Ok(acl)
    }

    fn check_lifetime(&self, lifetime: Lifetime) -> Result<(), ErrorCode> {
        let valid = match lifetime {
            Lifetime::Persistent | Lifetime::Container => true,
            // A session that asks exists: this is why none leaves an ephemeral node behind.
            Lifetime::Ephemeral => self.session != SessionId::NONE,
            Lifetime::Lingering(ms) => {
                self.session != SessionId::NONE && ms > 0 && ms <= limits::TTL_MS
            }
            Lifetime::Ttl(ms) => ms > 0 && ms <= limits::TTL_MS,
        };
        if valid { Ok(()) } else { Err(ErrorCode::BadArguments) }
    }

    fn remove(&mut self, path: &ZPath, node: &Node, above: &ZPath, parent: Node) {
        self.ledger
            .enter(&mut self.draft, path, Usage::of(node).negated())
            .expect("no quota refuses what makes the tree smaller");
        self.tell(path, node, EventKind::Deleted);
        if node.owner != SessionId::NONE && node.owner == self.session {
            self.ephemerals_gone += 1;
        }
        self.draft.remove(path, node);
        self.change_parent(above, parent, |parent| {
            parent.num_children =
                parent.num_children.checked_sub(1).expect("a parent counts its children");
        });
    }

    fn change_parent(&mut self, above: &ZPath, parent: Node, change: impl FnOnce(&mut Node)) {
        self.tell(above, &parent, EventKind::ChildrenChanged);
        self.draft.change(above, parent, |parent| {
            parent.pzxid = self.zxid;
            change(parent);
        });
    }

    fn tell(&mut self, path: &ZPath, node: &Node, kind: EventKind) {
        let event = Event { zxid: self.zxid, path: path.clone(), kind };
        let last = if kind == EventKind::Deleted { node.data.clone() } else { None };
        self.changes.push(Change { event, acl: node.acl.clone(), last });
    }
}

fn new_node(data: Option<Bytes>, acl: Arc<[Acl]>, zxid: Zxid, time_ms: i64) -> Node {
    Node {
        data,
        acl,
        lifetime: Lifetime::Persistent,
        owner: SessionId::NONE,
        czxid: zxid,
        mzxid: zxid,
        pzxid: zxid,
        ctime_ms: time_ms,
        mtime_ms: time_ms,
        version: 0,
        aversion: 0,
        num_children: 0,
        children_created: 0,
    }
}

/// The data that a node keeps when it is given this: a copy, since what a transaction holds is lent
/// from the message it came in, and would keep all of that in memory.
fn keep(data: Option<&Bytes>) -> Option<Bytes> {
    data.map(|data| Bytes::copy_from_slice(data))
}

fn may_be_in_multi(op: &Op) -> bool {
    matches!(
        op,
        Op::Create { .. }
            | Op::Delete { .. }
            | Op::SetData { .. }
            | Op::SetAcl { .. }
            | Op::Check { .. }
            | Op::Require(_)
            | Op::CreateIfMissing { .. }
            | Op::DeleteIfExists { .. }
            | Op::DeleteTree { .. }
            | Op::Guard { .. }
    )
}

/// The path with a number of ten digits: with more, the order of the names would not be that of
/// the numbers any more, and whoever came last would be the first.
fn numbered(path: &ZPath, number: u64) -> Result<ZPath, ErrorCode> {
    if number >= TEN_DIGITS {
        return Err(ErrorCode::SequenceOverflow);
    }
    ZPath::new(&format!("{path}{number:010}")).map_err(|_| ErrorCode::BadArguments)
}

fn deletable_parent(path: &ZPath) -> Result<ZPath, ErrorCode> {
    match path.parent() {
        Some(parent) if !is_reserved(path) => Ok(parent),
        _ => Err(ErrorCode::BadArguments),
    }
}

fn is_reserved(path: &ZPath) -> bool {
    RESERVED.contains(&path.as_str())
}

fn check_size(data: Option<&Bytes>) -> Result<(), ErrorCode> {
    let size = data.map_or(0, Bytes::len);
    if size <= limits::VALUE_BYTES { Ok(()) } else { Err(ErrorCode::TooLarge) }
}

fn check_version(actual: i32, expected: Option<i32>) -> Result<(), ErrorCode> {
    match expected {
        Some(expected) if expected != actual => Err(ErrorCode::BadVersion),
        _ => Ok(()),
    }
}

fn fault(code: ErrorCode, place: usize) -> Fault {
    Fault { code, index: u32::try_from(place).expect("a multi has at most MULTI_OPS parts") }
}
