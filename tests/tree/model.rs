//! What the tree does, written down in the most straightforward way: paths are strings, everything
//! is recomputed, a failed multi puts back a copy of the whole state.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use conclave_proto::request::{Condition, StatTest, Test};
use conclave_proto::{
    Acl, CreateMode, ErrorCode, EventKind, Fault, Identity, Lifetime, Op, Perms, Reply, SessionId,
    Stat, Txn, ZPath, Zxid,
};

/// All numbers of sequential nodes are below it.
const NUMBERS: u64 = 10_000_000_000;

/// The changes of a node's children after so many were created and deleted.
#[allow(clippy::cast_possible_truncation, reason = "wraps as ZooKeeper's does")]
fn changes(created: u64) -> i32 {
    created.wrapping_mul(2) as i32
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) nodes: BTreeMap<String, Znode>,
    pub(crate) sessions: BTreeMap<u64, Session>,
    time_ms: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct Znode {
    pub(crate) data: Option<Bytes>,
    pub(crate) acl: Vec<Acl>,
    pub(crate) lifetime: Lifetime,
    pub(crate) stat: Stat,
    created: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Session {
    secret: [u8; 16],
    /// Every numbered write with its zxid and result.
    history: BTreeMap<u64, (Zxid, Result<Reply, Fault>)>,
    received: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) zxid: Zxid,
    pub(crate) result: Result<Reply, Fault>,
    pub(crate) events: Vec<(EventKind, String)>,
    pub(crate) duplicate: bool,
}

/// Who asks, in which transaction.
struct Ask<'a> {
    zxid: Zxid,
    session: u64,
    ids: &'a [Identity],
}

type Events = Vec<(EventKind, String)>;

impl Model {
    pub(crate) fn new() -> Model {
        let node = |children: u32, data: &'static str| Znode {
            data: Some(Bytes::from_static(data.as_bytes())),
            acl: Acl::open().to_vec(),
            lifetime: Lifetime::Persistent,
            stat: Stat {
                num_children: children,
                cversion: -i32::try_from(children).unwrap(),
                data_length: u32::try_from(data.len()).unwrap(),
                ..Stat::default()
            },
            created: 0,
        };
        let mut config = node(0, "version=0");
        config.acl[0].perms = Perms::READ;
        (config.stat.version, config.stat.aversion) = (-1, -1);
        let nodes = [
            ("/", node(1, "")),
            ("/zookeeper", node(2, "")),
            ("/zookeeper/config", config),
            ("/zookeeper/quota", node(0, "")),
        ];
        let nodes = nodes.into_iter().map(|(path, node)| (path.to_owned(), node)).collect();
        Model { nodes, ..Model::default() }
    }

    pub(crate) fn apply(&mut self, zxid: Zxid, txn: &Txn) -> Outcome {
        self.time_ms = self.time_ms.max(txn.time_ms);
        let request = &txn.request;
        let plain = |result| Outcome { zxid, result, events: Vec::new(), duplicate: false };
        if let Op::CreateSession { session, secret, .. } = &request.op {
            return plain(self.open(request.session.0, session.0, *secret.expose()));
        }
        let asker = request.session.0;
        if asker != 0 {
            let Some(session) = self.sessions.get(&asker) else {
                return plain(Err(ErrorCode::SessionExpired.into()));
            };
            if request.xid.0 > 0 && session.history.keys().any(|xid| *xid >= request.xid.0) {
                let mut outcome = plain(Err(ErrorCode::OutcomeUnknown.into()));
                let known = session.history.get(&request.xid.0);
                if let Some((zxid, result)) = known.filter(|_| request.xid.0 > session.received) {
                    (outcome.zxid, outcome.result) = (*zxid, result.clone());
                }
                outcome.duplicate = true;
                return outcome;
            }
        }
        let ask = Ask { zxid, session: asker, ids: &txn.identities };
        let saved = self.clone();
        let mut events = Vec::new();
        let result = self.perform(&ask, &request.op, &mut events);
        if result.is_err() {
            *self = saved;
            events.clear();
        }
        if let Some(session) = self.sessions.get_mut(&asker)
            && request.xid.0 > 0
        {
            session.received = session.received.max(request.acked.0);
            session.history.insert(request.xid.0, (zxid, result.clone()));
        }
        Outcome { zxid, result, events, duplicate: false }
    }

    fn open(&mut self, asker: u64, id: u64, secret: [u8; 16]) -> Result<Reply, Fault> {
        if id == 0 || ![0, id].contains(&asker) {
            return Err(ErrorCode::BadArguments.into());
        }
        let session = self.sessions.entry(id).or_insert(Session { secret, ..Session::default() });
        if session.secret == secret { Ok(Reply::Done) } else { Err(ErrorCode::NodeExists.into()) }
    }

    fn perform(&mut self, ask: &Ask<'_>, op: &Op, events: &mut Events) -> Result<Reply, Fault> {
        Ok(match op {
            Op::Create { path, data, acl, mode } => {
                self.create(ask, path, data, acl, *mode, events)?
            }
            Op::Delete { path, version } => self.delete(ask, path, *version, events)?,
            Op::DeleteRecursive { path, limit } => {
                self.delete_recursive(ask, path, *limit, events)?
            }
            Op::SetData { path, data, version } => {
                self.set_data(ask, path, data, *version, events)?
            }
            Op::SetAcl { path, acl, version } => self.set_acl(ask, path, acl, *version)?,
            Op::Check { path, version } => {
                let node = self.nodes.get(path.as_str()).ok_or(ErrorCode::NoNode)?;
                ask.needs(node, Perms::READ)?;
                is_version(node.stat.version, *version)?;
                Reply::Done
            }
            Op::Require(condition) => self.require(ask, condition)?,
            Op::CreateIfMissing { path, data, acl, mode } => {
                let created = self.create(ask, path, data, acl, *mode, events);
                match self.nodes.get(path.as_str()) {
                    Some(node) if created == Err(ErrorCode::NodeExists) && !mode.sequential => {
                        ask.needs(node, Perms::READ)?;
                        Reply::Created { path: path.clone(), stat: node.stat }
                    }
                    _ => created?,
                }
            }
            Op::DeleteIfExists { path, version } => {
                match self.delete(ask, path, *version, events) {
                    Err(ErrorCode::NoNode) => Reply::Done,
                    deleted => deleted?,
                }
            }
            Op::DeleteTree { path, limit } => self.delete_tree(ask, path, *limit, events)?,
            Op::Multi { conditions, then, otherwise } => {
                self.multi(ask, conditions, then, otherwise, events)?
            }
            Op::Guard { path, token } => self.guard(ask, path, *token)?,
            Op::CloseSession | Op::ExpireSession if ask.session == 0 => {
                return Err(ErrorCode::BadArguments.into());
            }
            Op::CloseSession => self.end(ask, false, events),
            Op::ExpireSession => self.end(ask, true, events),
            Op::Reap { path, seen } => self.reap(ask, path, *seen, events)?,
            other => unreachable!("no history has {other:?}"),
        })
    }

    fn require(&self, ask: &Ask<'_>, condition: &Condition) -> Result<Reply, ErrorCode> {
        let node = self.nodes.get(condition.path.as_str());
        if let Some(node) = node {
            ask.needs(node, Perms::READ)?;
        }
        if holds(node, condition) {
            return Ok(Reply::Done);
        }
        Err(match (node, &condition.test) {
            (Some(_), Test::Missing) => ErrorCode::NodeExists,
            (None, _) => ErrorCode::NoNode,
            (_, Test::Version(_) | Test::ChildVersion(_) | Test::Stat(_)) => ErrorCode::BadVersion,
            _ => ErrorCode::ConditionFailed,
        })
    }

    fn guard(&self, ask: &Ask<'_>, path: &ZPath, token: Zxid) -> Result<Reply, ErrorCode> {
        let node = self.nodes.get(path.as_str()).ok_or(ErrorCode::ConditionFailed)?;
        ask.needs(node, Perms::READ)?;
        let lingers = matches!(node.lifetime, Lifetime::Lingering(_));
        let is_left = lingers && node.stat.ephemeral_owner == SessionId::NONE;
        let is_over = self.is_due(node) && self.children(path.as_str()).is_empty();
        if node.stat.czxid != token || is_left || is_over {
            return Err(ErrorCode::ConditionFailed);
        }
        Ok(Reply::Done)
    }

    fn end(&mut self, ask: &Ask<'_>, expired: bool, events: &mut Events) -> Reply {
        for path in self.ephemerals(ask.session) {
            let node = self.nodes.get_mut(&path).unwrap();
            if expired && matches!(node.lifetime, Lifetime::Lingering(_)) {
                node.stat.ephemeral_owner = SessionId::NONE;
                node.stat.mzxid = ask.zxid;
                node.stat.mtime_ms = self.time_ms;
                node.stat.version += 1;
                events.push((EventKind::DataChanged, path.clone()));
                continue;
            }
            self.remove(ask.zxid, &path, events);
        }
        self.sessions.remove(&ask.session);
        Reply::Done
    }

    fn create(
        &mut self,
        ask: &Ask<'_>,
        path: &ZPath,
        data: &Option<Bytes>,
        acl: &[Acl],
        mode: CreateMode,
        events: &mut Events,
    ) -> Result<Reply, ErrorCode> {
        let is_ephemeral = mode.lifetime.is_ephemeral();
        let no_time = matches!(mode.lifetime, Lifetime::Ttl(0) | Lifetime::Lingering(0));
        let no_number = mode.first_child >= NUMBERS;
        if (is_ephemeral && ask.session == 0) || no_time || no_number {
            return Err(ErrorCode::BadArguments);
        }
        let acl = ask.resolved(acl)?;
        let above = above(path.as_str());
        let parent = self.nodes.get(&above).ok_or(ErrorCode::NoNode)?;
        ask.needs(parent, Perms::CREATE)?;
        if mode.sequential && parent.created >= NUMBERS {
            return Err(ErrorCode::SequenceOverflow);
        }
        let number = format!("{:010}", parent.created);
        let path = if mode.sequential { format!("{path}{number}") } else { path.to_string() };
        if self.nodes.contains_key(&path) {
            return Err(ErrorCode::NodeExists);
        }
        if parent.lifetime.is_ephemeral() {
            return Err(ErrorCode::NoChildrenForEphemerals);
        }
        self.may_set_quota(ask, &path)?;
        let stat = Stat {
            czxid: ask.zxid,
            mzxid: ask.zxid,
            pzxid: ask.zxid,
            ctime_ms: self.time_ms,
            mtime_ms: self.time_ms,
            ephemeral_owner: SessionId(if is_ephemeral { ask.session } else { 0 }),
            data_length: length(data),
            cversion: changes(mode.first_child),
            ..Stat::default()
        };
        let data = data.clone();
        let node = Znode { data, acl, lifetime: mode.lifetime, stat, created: mode.first_child };
        self.nodes.insert(path.clone(), node);
        self.settle(&path, (1, stat.data_length.into()))?;
        let stat = self.nodes[&path].stat;
        let parent = self.nodes.get_mut(&above).unwrap();
        parent.created += 1;
        parent.stat.cversion += 1;
        parent.stat.num_children += 1;
        parent.stat.pzxid = ask.zxid;
        let reply = Reply::Created { path: ZPath::new(&path).unwrap(), stat };
        events.extend([(EventKind::Created, path), (EventKind::ChildrenChanged, above)]);
        Ok(reply)
    }

    fn delete(
        &mut self,
        ask: &Ask<'_>,
        path: &ZPath,
        version: Option<i32>,
        events: &mut Events,
    ) -> Result<Reply, ErrorCode> {
        if path.is_root() {
            return Err(ErrorCode::BadArguments);
        }
        let parent = self.nodes.get(&above(path.as_str())).ok_or(ErrorCode::NoNode)?;
        ask.needs(parent, Perms::DELETE)?;
        let node = self.nodes.get(path.as_str()).ok_or(ErrorCode::NoNode)?;
        self.may_set_quota(ask, path.as_str())?;
        is_version(node.stat.version, version)?;
        if !self.children(path.as_str()).is_empty() {
            return Err(ErrorCode::NotEmpty);
        }
        self.remove(ask.zxid, path.as_str(), events);
        Ok(Reply::Done)
    }

    fn delete_recursive(
        &mut self,
        ask: &Ask<'_>,
        path: &ZPath,
        limit: u32,
        events: &mut Events,
    ) -> Result<Reply, ErrorCode> {
        if path.is_root() {
            return Err(ErrorCode::BadArguments);
        }
        self.nodes.get(path.as_str()).ok_or(ErrorCode::NoNode)?;
        let mut doomed = self.children_first(path.as_str());
        let all = doomed.len();
        doomed.truncate(if limit == 0 { 1000 } else { limit as usize });
        for path in &doomed {
            ask.needs(&self.nodes[&above(path)], Perms::DELETE)?;
            self.may_set_quota(ask, path)?;
            self.remove(ask.zxid, path, events);
        }
        let deleted = u32::try_from(doomed.len()).unwrap();
        Ok(Reply::DeletedMany { deleted, more: doomed.len() < all })
    }

    fn delete_tree(
        &mut self,
        ask: &Ask<'_>,
        path: &ZPath,
        limit: u32,
        events: &mut Events,
    ) -> Result<Reply, ErrorCode> {
        if path.is_root() {
            return Err(ErrorCode::BadArguments);
        }
        self.nodes.get(path.as_str()).ok_or(ErrorCode::NoNode)?;
        let mut doomed = self.children_first(path.as_str());
        if doomed.len() > (if limit == 0 { 1000 } else { limit as usize }) {
            return Err(ErrorCode::NotEmpty);
        }
        // Level by level, the deepest first.
        doomed.sort_by_key(|path| (std::cmp::Reverse(path.matches('/').count()), path.clone()));
        for path in &doomed {
            ask.needs(&self.nodes[&above(path)], Perms::DELETE)?;
            self.may_set_quota(ask, path)?;
            self.remove(ask.zxid, path, events);
        }
        Ok(Reply::DeletedMany { deleted: u32::try_from(doomed.len()).unwrap(), more: false })
    }

    fn set_data(
        &mut self,
        ask: &Ask<'_>,
        path: &ZPath,
        data: &Option<Bytes>,
        version: Option<i32>,
        events: &mut Events,
    ) -> Result<Reply, ErrorCode> {
        let node = self.nodes.get(path.as_str()).ok_or(ErrorCode::NoNode)?;
        ask.needs(node, Perms::WRITE)?;
        self.may_set_quota(ask, path.as_str())?;
        let node = self.nodes.get_mut(path.as_str()).unwrap();
        let is_version = is_version(node.stat.version, version);
        let before = node.stat.data_length;
        node.data = data.clone();
        node.stat.data_length = length(data);
        node.stat.version += 1;
        node.stat.mzxid = ask.zxid;
        node.stat.mtime_ms = self.time_ms;
        self.settle(path.as_str(), (0, i64::from(length(data)) - i64::from(before)))?;
        is_version?;
        events.push((EventKind::DataChanged, path.to_string()));
        Ok(Reply::Stat(self.nodes[path.as_str()].stat))
    }

    fn set_acl(
        &mut self,
        ask: &Ask<'_>,
        path: &ZPath,
        acl: &[Acl],
        version: Option<i32>,
    ) -> Result<Reply, ErrorCode> {
        let acl = ask.resolved(acl)?;
        let node = self.nodes.get(path.as_str()).ok_or(ErrorCode::NoNode)?;
        ask.needs(node, Perms::ADMIN)?;
        self.may_set_quota(ask, path.as_str())?;
        let node = self.nodes.get_mut(path.as_str()).unwrap();
        is_version(node.stat.aversion, version)?;
        node.acl = acl;
        node.stat.aversion += 1;
        Ok(Reply::Stat(node.stat))
    }

    fn multi(
        &mut self,
        ask: &Ask<'_>,
        conditions: &[Condition],
        then: &[Op],
        otherwise: &[Op],
        events: &mut Events,
    ) -> Result<Reply, Fault> {
        let mut held = true;
        for (index, condition) in (0..).zip(conditions) {
            let node = self.nodes.get(condition.path.as_str());
            if let Some(node) = node.filter(|_| held) {
                ask.needs(node, Perms::READ).map_err(|code| Fault { code, index })?;
            }
            held = held && holds(node, condition);
        }
        let mut replies = Vec::new();
        for (index, op) in (0..).zip(if held { then } else { otherwise }) {
            let reply = self.perform(ask, op, events);
            replies.push(reply.map_err(|fault| Fault { code: fault.code, index })?);
        }
        Ok(Reply::Multi { held, replies })
    }

    fn reap(
        &mut self,
        ask: &Ask<'_>,
        path: &ZPath,
        seen: (Zxid, Zxid),
        events: &mut Events,
    ) -> Result<Reply, ErrorCode> {
        if ask.session != 0 {
            return Err(ErrorCode::NoAuth);
        }
        let node = self.nodes.get(path.as_str()).ok_or(ErrorCode::NoNode)?;
        if seen != (node.stat.pzxid, node.stat.mzxid) {
            return Err(ErrorCode::BadVersion);
        }
        if !self.is_due(node) || !self.children(path.as_str()).is_empty() {
            return Err(ErrorCode::ConditionFailed);
        }
        self.remove(ask.zxid, path.as_str(), events);
        Ok(Reply::Done)
    }

    /// Whether its time is over, if it has no children.
    fn is_due(&self, node: &Znode) -> bool {
        let age_ms = self.time_ms - node.stat.mtime_ms;
        match node.lifetime {
            Lifetime::Container => node.created > 0,
            Lifetime::Ttl(ms) => age_ms > i64::try_from(ms).unwrap(),
            Lifetime::Lingering(ms) => {
                node.stat.ephemeral_owner == SessionId::NONE && age_ms > i64::try_from(ms).unwrap()
            }
            Lifetime::Persistent | Lifetime::Ephemeral => false,
        }
    }

    fn remove(&mut self, zxid: Zxid, path: &str, events: &mut Events) {
        self.nodes.remove(path).unwrap();
        self.settle(path, (0, 0)).unwrap();
        let parent = self.nodes.get_mut(&above(path)).unwrap();
        parent.stat.cversion += 1;
        parent.stat.num_children -= 1;
        parent.stat.pzxid = zxid;
        events.push((EventKind::Deleted, path.to_owned()));
        events.push((EventKind::ChildrenChanged, above(path)));
    }

    /// The nodes of a quota belong to who may administer what it is of, or what is above that.
    fn may_set_quota(&self, ask: &Ask<'_>, path: &str) -> Result<(), ErrorCode> {
        let Some(rest) = format!("{path}/").strip_prefix("/zookeeper/quota/").map(str::to_owned)
        else {
            return Ok(());
        };
        let mut parts: Vec<&str> = rest.trim_end_matches('/').split('/').collect();
        parts.pop_if(|last| ["zookeeper_limits", "zookeeper_stats"].contains(last));
        while !self.nodes.contains_key(&format!("/{}", parts.join("/"))) {
            parts.pop();
        }
        ask.needs(&self.nodes[&format!("/{}", parts.join("/"))], Perms::ADMIN)
    }

    /// Count everything that has a quota, and compare what has grown with its hard limits.
    fn settle(
        &mut self,
        path: &str,
        (grown_nodes, grown_bytes): (i64, i64),
    ) -> Result<(), ErrorCode> {
        for stats in self.nodes.keys().cloned().collect::<Vec<_>>() {
            let Some(subject) = stats
                .strip_prefix("/zookeeper/quota/")
                .and_then(|rest| rest.strip_suffix("/zookeeper_stats"))
            else {
                continue;
            };
            let subject = format!("/{subject}");
            let is_within =
                |path: &str| path == subject || path.starts_with(&format!("{subject}/"));
            let counted = || self.nodes.iter().filter(|(path, _)| is_within(path));
            let nodes = i64::try_from(counted().count()).unwrap();
            let bytes: i64 = counted().map(|(_, node)| i64::from(node.stat.data_length)).sum();
            let limits = self.nodes.get(&stats.replace("_stats", "_limits"));
            let limits = limits.and_then(|node| node.data.clone()).unwrap_or_default();
            let hard = |name: &str| {
                let text = std::str::from_utf8(&limits).unwrap();
                let (_, number) = text.split_once(&format!("{name}="))?;
                number.split(';').next()?.parse().ok().filter(|limit: &i64| *limit >= 0)
            };
            let is_over = |grown: i64, now, limit: Option<i64>| {
                grown > 0 && is_within(path) && limit.is_some_and(|limit| now > limit)
            };
            if is_over(grown_nodes, nodes, hard("countHardLimit"))
                || is_over(grown_bytes, bytes, hard("byteHardLimit"))
            {
                return Err(ErrorCode::QuotaExceeded);
            }
            let text = Some(Bytes::from(format!("count={nodes},bytes={bytes}")));
            let node = self.nodes.get_mut(&stats).unwrap();
            node.stat.data_length = length(&text);
            node.data = text;
        }
        Ok(())
    }

    /// The names of a node's children, in order.
    pub(crate) fn children(&self, path: &str) -> BTreeSet<String> {
        let names = self.nodes.keys().filter(|node| *node != "/" && above(node) == path);
        names.map(|node| node.rsplit('/').next().unwrap().to_owned()).collect()
    }

    fn children_first(&self, path: &str) -> Vec<String> {
        let children = self.children(path).into_iter();
        let below = children.flat_map(|name| self.children_first(&join(path, &name)));
        below.chain([path.to_owned()]).collect()
    }

    /// Everything below a node that those may list: parents first, names in order.
    pub(crate) fn parents_first(&self, path: &str, ids: &[Identity]) -> Vec<String> {
        let mut found = Vec::new();
        if permitted(&self.nodes[path].acl, Perms::READ, ids) {
            for name in self.children(path) {
                let child = join(path, &name);
                found.push(child.clone());
                found.extend(self.parents_first(&child, ids));
            }
        }
        found
    }

    /// A session's ephemeral nodes, in order.
    pub(crate) fn ephemerals(&self, session: u64) -> Vec<String> {
        let own = |node: &Znode| session != 0 && node.stat.ephemeral_owner.0 == session;
        self.nodes.iter().filter(|(_, node)| own(node)).map(|(path, _)| path.clone()).collect()
    }
}

/// The model knows `world` and names that must be equal; the other schemes are in the table of
/// permissions.
pub(crate) fn permitted(acl: &[Acl], perm: Perms, ids: &[Identity]) -> bool {
    let is_super = ids.iter().any(|id| id.scheme == "super");
    let granted = acl.iter().any(|line| {
        line.perms.contains(perm)
            && (line.identity.scheme == "world" || ids.contains(&line.identity))
    });
    is_super || granted
}

impl Ask<'_> {
    fn needs(&self, node: &Znode, perm: Perms) -> Result<(), ErrorCode> {
        let may = self.session == 0 || permitted(&node.acl, perm, self.ids);
        if may { Ok(()) } else { Err(ErrorCode::NoAuth) }
    }

    fn resolved(&self, acl: &[Acl]) -> Result<Vec<Acl>, ErrorCode> {
        let is_own = |id: &&Identity| self.session != 0 && id.scheme == "digest";
        let mut lines = Vec::new();
        for line in acl {
            let own: Vec<Identity> = self.ids.iter().filter(is_own).cloned().collect();
            match line.identity.scheme.as_str() {
                "auth" if own.is_empty() => return Err(ErrorCode::InvalidAcl),
                "auth" => {
                    lines.extend(own.into_iter().map(|identity| Acl { identity, ..*line }));
                }
                _ => lines.push(line.clone()),
            }
        }
        if lines.is_empty() { Err(ErrorCode::InvalidAcl) } else { Ok(lines) }
    }
}

fn is_version(actual: i32, expected: Option<i32>) -> Result<(), ErrorCode> {
    match expected {
        Some(expected) if expected != actual => Err(ErrorCode::BadVersion),
        _ => Ok(()),
    }
}

fn holds(node: Option<&Znode>, condition: &Condition) -> bool {
    match (&condition.test, node) {
        (Test::Missing, node) => node.is_none(),
        (_, None) => false,
        (Test::Exists, Some(_)) => true,
        (Test::Version(version), Some(node)) => node.stat.version == *version,
        (Test::ChildVersion(version), Some(node)) => node.stat.cversion == *version,
        (Test::CreatedBy(zxid), Some(node)) => node.stat.czxid == *zxid,
        (Test::Data(data), Some(node)) => node.data.as_ref() == Some(data),
        (Test::Stat(test), Some(node)) => has_stat(&node.stat, test),
    }
}

/// Fills in what the test leaves open, and compares the whole.
fn has_stat(stat: &Stat, test: &StatTest) -> bool {
    let expected = Stat {
        czxid: test.czxid.unwrap_or(stat.czxid),
        mzxid: test.mzxid.unwrap_or(stat.mzxid),
        pzxid: test.pzxid.unwrap_or(stat.pzxid),
        ctime_ms: test.ctime_ms.unwrap_or(stat.ctime_ms),
        mtime_ms: test.mtime_ms.unwrap_or(stat.mtime_ms),
        version: test.version.unwrap_or(stat.version),
        cversion: test.cversion.unwrap_or(stat.cversion),
        aversion: test.aversion.unwrap_or(stat.aversion),
        ephemeral_owner: test.ephemeral_owner.unwrap_or(stat.ephemeral_owner),
        data_length: test.data_length.unwrap_or(stat.data_length),
        num_children: test.num_children.unwrap_or(stat.num_children),
    };
    expected == *stat
}

fn above(path: &str) -> String {
    match path.rfind('/').unwrap() {
        0 => "/".to_owned(),
        slash => path[..slash].to_owned(),
    }
}

fn join(path: &str, name: &str) -> String {
    if path == "/" { format!("/{name}") } else { format!("{path}/{name}") }
}

fn length(data: &Option<Bytes>) -> u32 {
    data.as_ref().map_or(0, |data| u32::try_from(data.len()).unwrap())
}
