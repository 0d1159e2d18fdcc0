//! A second opinion on what transactions do: the tree, the sessions and the events, written down
//! anew and as plainly as possible, with every version of every node kept, so that any read of the
//! past can be checked.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use conclave::tree::MemoryNodes;
use conclave_proto::request::{Condition, Test};
use conclave_proto::{
    CreateMode, ErrorCode, Event, EventKind, Fault, Lifetime, Op, Reply, SessionId, Stat, Txn,
    WatchKind, Xid, ZPath, Zxid,
};

/// A node at some time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ModelNode {
    pub(crate) data: Option<Bytes>,
    pub(crate) owner: SessionId,
    /// How long it outlives a session that expires, in ms, if it does.
    lingers: Option<u64>,
    czxid: Zxid,
    pub(crate) mzxid: Zxid,
    pub(crate) pzxid: Zxid,
    ctime_ms: i64,
    mtime_ms: i64,
    version: i32,
    aversion: i32,
    children: u32,
    created: i32,
}

/// A session that exists.
#[derive(Debug)]
struct ModelSession {
    last_xid: Xid,
    /// The transaction that ended it.
    ended: Option<Zxid>,
    /// What came of each of its numbered writes.
    outcomes: BTreeMap<Xid, (Zxid, Result<Reply, Fault>)>,
}

/// A transaction, as far as the checks ask.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) zxid: Zxid,
    pub(crate) session: SessionId,
    pub(crate) xid: Xid,
    /// What the client must be told.
    pub(crate) result: Result<Reply, Fault>,
}

/// Everything that was ever committed, and what came of it.
#[derive(Debug)]
pub(crate) struct Model {
    time_ms: i64,
    /// Each node's states, by the transaction that made it; `None`: it was deleted.
    nodes: BTreeMap<ZPath, Vec<(Zxid, Option<ModelNode>)>>,
    /// The names of all children a node ever had.
    children: BTreeMap<ZPath, BTreeSet<String>>,
    /// Every session there ever was.
    sessions: BTreeMap<SessionId, ModelSession>,
    done: Vec<Done>,
    /// Every change that watches may be told of, in order.
    pub(crate) events: Vec<Event>,
}

/// A transaction that is being carried out.
struct Draft<'a> {
    model: &'a Model,
    zxid: Zxid,
    session: SessionId,
    nodes: BTreeMap<ZPath, Option<ModelNode>>,
    events: Vec<Event>,
    time_ms: i64,
}

impl ModelNode {
    /// Whether the session that it stood for has expired.
    fn is_left(&self) -> bool {
        self.lingers.is_some() && self.owner == SessionId::NONE
    }

    /// Its statistics.
    pub(crate) fn stat(&self) -> Stat {
        Stat {
            czxid: self.czxid,
            mzxid: self.mzxid,
            pzxid: self.pzxid,
            ctime_ms: self.ctime_ms,
            mtime_ms: self.mtime_ms,
            version: self.version,
            // Each child is one change, or two if it is gone again; those that exist from the
            // beginning are none.
            cversion: 2 * self.created - self.children.cast_signed(),
            aversion: self.aversion,
            ephemeral_owner: self.owner,
            data_length: self.data.as_ref().map_or(0, |data| {
                u32::try_from(data.len()).expect("the simulator's values are short")
            }),
            num_children: self.children,
        }
    }
}

impl Model {
    /// The state before the first transaction: what exists from the beginning.
    pub(crate) fn new() -> Model {
        let mut nodes = BTreeMap::new();
        let mut children: BTreeMap<ZPath, BTreeSet<String>> = BTreeMap::new();
        for (path, found) in MemoryNodes::new().iter() {
            let node = ModelNode {
                data: found.data.clone(),
                version: found.version,
                aversion: found.aversion,
                children: found.num_children,
                ..ModelNode::default()
            };
            nodes.insert(path.clone(), vec![(Zxid::ZERO, Some(node))]);
            if let Some(parent) = path.parent() {
                children.entry(parent).or_default().insert(path.name().to_owned());
            }
        }
        Model {
            time_ms: 0,
            nodes,
            children,
            sessions: BTreeMap::new(),
            done: Vec::new(),
            events: Vec::new(),
        }
    }

    /// The node as it was after that transaction.
    pub(crate) fn node_at(&self, path: &ZPath, zxid: Zxid) -> Option<&ModelNode> {
        let states = self.nodes.get(path)?;
        let after = states.partition_point(|(made, _)| *made <= zxid);
        states[..after].last()?.1.as_ref()
    }

    /// The names of its children after that transaction, in order.
    pub(crate) fn children_at(&self, path: &ZPath, zxid: Zxid) -> Vec<&str> {
        let names = self.children.get(path).into_iter().flatten();
        let lives = |name: &&String| {
            let child = path.child(name).expect("the model has valid names only");
            self.node_at(&child, zxid).is_some()
        };
        names.filter(lives).map(String::as_str).collect()
    }

    /// The paths of all nodes after that transaction.
    pub(crate) fn paths_at(&self, zxid: Zxid) -> impl Iterator<Item = &ZPath> {
        self.nodes.keys().filter(move |path| self.node_at(path, zxid).is_some())
    }

    /// The transaction of that zxid.
    pub(crate) fn done(&self, zxid: Zxid) -> Option<&Done> {
        let at = self.done.binary_search_by_key(&zxid, |done| done.zxid).ok()?;
        Some(&self.done[at])
    }

    /// Whether the session exists now.
    pub(crate) fn has_session(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|record| record.ended.is_none())
    }

    /// The sessions that exist now.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = SessionId> {
        self.sessions.keys().copied().filter(|session| self.has_session(*session))
    }

    /// The transaction that ended the session.
    pub(crate) fn ended(&self, session: SessionId) -> Option<Zxid> {
        self.sessions.get(&session)?.ended
    }

    /// The transaction that carried out a numbered write, if one has.
    pub(crate) fn outcome(&self, session: SessionId, xid: Xid) -> Option<Zxid> {
        Some(self.sessions.get(&session)?.outcomes.get(&xid)?.0)
    }

    /// The events after the first `from` that such a watch is told of, with their places.
    pub(crate) fn events_for<'a>(
        &'a self,
        from: usize,
        path: &'a ZPath,
        kind: WatchKind,
    ) -> impl Iterator<Item = (usize, &'a Event)> {
        let events = self.events.iter().enumerate().skip(from);
        events.filter(move |(_, event)| matches(event, path, kind))
    }

    /// The place of the first event after that transaction.
    pub(crate) fn events_after(&self, zxid: Zxid) -> usize {
        self.events.partition_point(|event| event.zxid <= zxid)
    }

    /// The next transaction of the history.
    pub(crate) fn apply(&mut self, zxid: Zxid, txn: &Txn) -> &Done {
        self.time_ms = self.time_ms.max(txn.time_ms);
        let request = &txn.request;
        let (session, xid) = (request.session, request.xid);
        let mut done = Done { zxid, session, xid, result: Ok(Reply::Done) };
        if let Op::CreateSession { session, .. } = request.op {
            done.session = session;
            let new = ModelSession { last_xid: Xid(0), ended: None, outcomes: BTreeMap::new() };
            self.sessions.entry(session).or_insert(new);
        } else if let Op::Reap { .. } = request.op {
            assert_eq!(session, SessionId::NONE, "only the system reaps");
            done.result = self.carry_out(zxid, session, &request.op);
        } else if !self.has_session(session) {
            assert_ne!(session, SessionId::NONE, "the system has nothing to do in a simulation");
            done.result = Err(ErrorCode::SessionExpired.into());
        } else if xid != Xid(0) && xid <= self.sessions[&session].last_xid {
            // A retry: it was applied before, and is not applied again.
            let earlier = self.sessions[&session].outcomes.get(&xid);
            let (first, result) = earlier
                .unwrap_or_else(|| panic!("{xid:?} of {session} comes after later ones"))
                .clone();
            done = Done { zxid, session, xid, result };
            assert!(first < zxid, "a retry comes after the first attempt");
        } else {
            done.result = self.carry_out(zxid, session, &request.op);
            if xid != Xid(0)
                && let Some(record) = self.sessions.get_mut(&session)
            {
                record.last_xid = xid;
                record.outcomes.insert(xid, (zxid, done.result.clone()));
            }
        }
        self.done.push(done);
        self.done.last().expect("it was just added")
    }

    fn carry_out(&mut self, zxid: Zxid, session: SessionId, op: &Op) -> Result<Reply, Fault> {
        let time_ms = self.time_ms;
        let (nodes, events) = (BTreeMap::new(), Vec::new());
        let mut draft = Draft { model: self, zxid, session, nodes, events, time_ms };
        let reply = draft.carry_out(op)?;
        let Draft { nodes, events, .. } = draft;
        for (path, node) in nodes {
            if let Some(parent) = path.parent() {
                self.children.entry(parent).or_default().insert(path.name().to_owned());
            }
            self.nodes.entry(path).or_default().push((zxid, node));
        }
        self.events.extend(events);
        if matches!(op, Op::CloseSession | Op::ExpireSession) {
            let record = self.sessions.get_mut(&session).expect("it has just closed");
            record.ended = Some(zxid);
        }
        Ok(reply)
    }
}

impl Draft<'_> {
    fn node(&self, path: &ZPath) -> Result<ModelNode, ErrorCode> {
        let node = match self.nodes.get(path) {
            Some(node) => node.clone(),
            None => self.model.node_at(path, Zxid::MAX).cloned(),
        };
        node.ok_or(ErrorCode::NoNode)
    }

    fn tell(&mut self, path: &ZPath, kind: EventKind) {
        self.events.push(Event { zxid: self.zxid, path: path.clone(), kind });
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the clients use few of the operations")]
    fn carry_out(&mut self, op: &Op) -> Result<Reply, Fault> {
        match op {
            Op::Create { path, data, mode, .. } => Ok(self.create(path, data.clone(), *mode)?),
            Op::Delete { path, version } => Ok(self.delete(path, *version)?),
            Op::SetData { path, data, version } => Ok(self.set(path, data.clone(), *version)?),
            Op::Check { path, version } => {
                expect_version(&self.node(path)?, *version)?;
                Ok(Reply::Done)
            }
            Op::Multi { conditions, then, otherwise } => self.multi(conditions, then, otherwise),
            Op::Guard { path, token } => Ok(self.guard(path, *token)?),
            Op::Reap { path, seen } => Ok(self.reap(path, *seen)?),
            Op::CloseSession => Ok(self.close(false)?),
            Op::ExpireSession => Ok(self.close(true)?),
            op => panic!("the simulator's clients do not ask for {op:?}"),
        }
    }

    fn create(
        &mut self,
        path: &ZPath,
        data: Option<Bytes>,
        mode: CreateMode,
    ) -> Result<Reply, ErrorCode> {
        let above = path.parent().expect("clients do not create the root");
        let mut parent = self.node(&above)?;
        let path = if mode.sequential {
            ZPath::new(&format!("{path}{:010}", parent.created)).expect("it is a path")
        } else {
            path.clone()
        };
        if self.node(&path).is_ok() {
            return Err(ErrorCode::NodeExists);
        }
        if parent.owner != SessionId::NONE || parent.lingers.is_some() {
            return Err(ErrorCode::NoChildrenForEphemerals);
        }
        let lingers = match mode.lifetime {
            Lifetime::Lingering(ms) => Some(ms),
            Lifetime::Ephemeral | Lifetime::Persistent => None,
            Lifetime::Container | Lifetime::Ttl(_) => panic!("no client asks for these"),
        };
        let owned = mode.lifetime == Lifetime::Ephemeral || lingers.is_some();
        let node = ModelNode {
            data,
            owner: if owned { self.session } else { SessionId::NONE },
            lingers,
            czxid: self.zxid,
            mzxid: self.zxid,
            pzxid: self.zxid,
            ctime_ms: self.time_ms,
            mtime_ms: self.time_ms,
            ..ModelNode::default()
        };
        let stat = node.stat();
        self.nodes.insert(path.clone(), Some(node));
        parent.created += 1;
        parent.children += 1;
        parent.pzxid = self.zxid;
        self.nodes.insert(above.clone(), Some(parent));
        self.tell(&path, EventKind::Created);
        self.tell(&above, EventKind::ChildrenChanged);
        Ok(Reply::Created { path, stat })
    }

    fn delete(&mut self, path: &ZPath, version: Option<i32>) -> Result<Reply, ErrorCode> {
        let above = path.parent().expect("clients do not delete the root");
        let mut parent = self.node(&above)?;
        let node = self.node(path)?;
        expect_version(&node, version)?;
        if node.children > 0 {
            return Err(ErrorCode::NotEmpty);
        }
        self.nodes.insert(path.clone(), None);
        parent.children -= 1;
        parent.pzxid = self.zxid;
        self.nodes.insert(above.clone(), Some(parent));
        self.tell(path, EventKind::Deleted);
        self.tell(&above, EventKind::ChildrenChanged);
        Ok(Reply::Done)
    }

    fn set(
        &mut self,
        path: &ZPath,
        data: Option<Bytes>,
        version: Option<i32>,
    ) -> Result<Reply, ErrorCode> {
        let mut node = self.node(path)?;
        expect_version(&node, version)?;
        node.data = data;
        node.version += 1;
        node.mzxid = self.zxid;
        node.mtime_ms = self.time_ms;
        let stat = node.stat();
        self.nodes.insert(path.clone(), Some(node));
        self.tell(path, EventKind::DataChanged);
        Ok(Reply::Stat(stat))
    }

    fn multi(
        &mut self,
        conditions: &[Condition],
        then: &[Op],
        otherwise: &[Op],
    ) -> Result<Reply, Fault> {
        let held = conditions.iter().all(|condition| {
            let node = self.node(&condition.path).ok();
            match (&condition.test, node) {
                (Test::Missing, node) => node.is_none(),
                (_, None) => false,
                (Test::Exists, Some(_)) => true,
                (Test::Version(version), Some(node)) => node.version == *version,
                (Test::ChildVersion(version), Some(node)) => node.stat().cversion == *version,
                (Test::CreatedBy(zxid), Some(node)) => node.czxid == *zxid,
                (Test::Data(data), Some(node)) => node.data.as_ref() == Some(data),
                (Test::Stat(test), Some(node)) => test.holds(&node.stat()),
            }
        });
        let branch = if held { then } else { otherwise };
        let mut replies = Vec::new();
        for (index, op) in (0..).zip(branch) {
            replies.push(self.carry_out(op).map_err(|fault| Fault { code: fault.code, index })?);
        }
        Ok(Reply::Multi { held, replies })
    }

    /// Whether the node is the one of that transaction, and somebody holds it.
    fn guard(&self, path: &ZPath, token: Zxid) -> Result<Reply, ErrorCode> {
        match self.node(path) {
            Ok(node) if node.czxid == token && !node.is_left() => Ok(Reply::Done),
            Ok(_) | Err(_) => Err(ErrorCode::ConditionFailed),
        }
    }

    /// The leader thinks that a node has lingered for long enough.
    fn reap(&mut self, path: &ZPath, seen: (Zxid, Zxid)) -> Result<Reply, ErrorCode> {
        let node = self.node(path)?;
        if (node.pzxid, node.mzxid) != seen {
            return Err(ErrorCode::BadVersion);
        }
        let due_ms = node.lingers.map(|ms| node.mtime_ms.saturating_add_unsigned(ms));
        if !node.is_left() || due_ms.is_none_or(|due_ms| self.time_ms <= due_ms) {
            return Err(ErrorCode::ConditionFailed);
        }
        self.delete(path, None)
    }

    fn close(&mut self, has_expired: bool) -> Result<Reply, ErrorCode> {
        let model = self.model;
        let own = |path: &&ZPath| {
            let node = model.node_at(path, Zxid::MAX).expect("it exists");
            node.owner == self.session
        };
        let owned: Vec<ZPath> = model.paths_at(Zxid::MAX).filter(own).cloned().collect();
        for path in owned {
            let mut node = self.node(&path)?;
            if has_expired && node.lingers.is_some() {
                node.owner = SessionId::NONE;
                node.version += 1;
                node.mzxid = self.zxid;
                node.mtime_ms = self.time_ms;
                self.nodes.insert(path.clone(), Some(node));
                self.tell(&path, EventKind::DataChanged);
            } else {
                self.delete(&path, None)?;
            }
        }
        Ok(Reply::Done)
    }
}

fn expect_version(node: &ModelNode, version: Option<i32>) -> Result<(), ErrorCode> {
    if version.is_none_or(|version| version == node.version) {
        Ok(())
    } else {
        Err(ErrorCode::BadVersion)
    }
}

/// Whether a watch of that kind on that node is told of the event.
fn matches(event: &Event, path: &ZPath, kind: WatchKind) -> bool {
    let here = event.path == *path;
    match (kind, event.kind) {
        (WatchKind::Data, EventKind::DataChanged | EventKind::Deleted) => here,
        (WatchKind::Data, EventKind::Created | EventKind::ChildrenChanged) => false,
        (WatchKind::Exists, EventKind::Created | EventKind::DataChanged | EventKind::Deleted) => {
            here
        }
        (WatchKind::Exists, EventKind::ChildrenChanged) => false,
        (WatchKind::Children, EventKind::ChildrenChanged | EventKind::Deleted) => here,
        (WatchKind::Children, EventKind::Created | EventKind::DataChanged) => false,
        (WatchKind::Persistent, _) => here,
        (WatchKind::PersistentRecursive, EventKind::ChildrenChanged) => false,
        (
            WatchKind::PersistentRecursive,
            EventKind::Created | EventKind::DataChanged | EventKind::Deleted,
        ) => event.path.is_within(path),
    }
}
