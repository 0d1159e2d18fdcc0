//! What the tree does, written down in the most straightforward way: paths are strings, everything
//! is recomputed, a failed multi puts back a copy of the whole state.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use conclave_proto::request::{Condition, Test};
use conclave_proto::{
    Acl, CreateMode, ErrorCode, EventKind, Fault, Identity, Lifetime, Op, Perms, Reply, Stat, Txn,
    ZPath, Zxid,
};

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

type Events = Vec<(EventKind, String)>;

impl Model {
    pub(crate) fn new() -> Model {
        let root = Znode {
            data: Some(Bytes::new()),
            acl: Acl::open(),
            lifetime: Lifetime::Persistent,
            stat: Stat::default(),
            created: 0,
        };
        Model { nodes: BTreeMap::from([("/".to_owned(), root)]), ..Model::default() }
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
        let saved = self.clone();
        let mut events = Vec::new();
        let result = self.perform(zxid, asker, &txn.identities, &request.op, &mut events);
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

    fn perform(
        &mut self,
        zxid: Zxid,
        asker: u64,
        ids: &[Identity],
        op: &Op,
        events: &mut Events,
    ) -> Result<Reply, Fault> {
        let may = |node: &Znode, perm: Perms| asker == 0 || permitted(&node.acl, perm, ids);
        match op {
            Op::Create { path, data, acl, mode } => {
                let (made, events_of_it) = self.create(zxid, asker, ids, path, data, acl, *mode)?;
                events.extend(events_of_it);
                Ok(made)
            }
            Op::Delete { path, version } => {
                if path.is_root() {
                    return Err(ErrorCode::BadArguments.into());
                }
                let parent = self.nodes.get(&above(path.as_str())).ok_or(ErrorCode::NoNode)?;
                let granted = may(parent, Perms::DELETE);
                let node = self.nodes.get(path.as_str());
                match node {
                    _ if !granted => Err(ErrorCode::NoAuth.into()),
                    None => Err(ErrorCode::NoNode.into()),
                    Some(node) if version.is_some_and(|v| v != node.stat.version) => {
                        Err(ErrorCode::BadVersion.into())
                    }
                    Some(_) if !self.children(path.as_str()).is_empty() => {
                        Err(ErrorCode::NotEmpty.into())
                    }
                    Some(_) => {
                        self.remove(zxid, path.as_str(), events);
                        Ok(Reply::Done)
                    }
                }
            }
            Op::DeleteRecursive { path, limit } => {
                if path.is_root() {
                    return Err(ErrorCode::BadArguments.into());
                }
                self.nodes.get(path.as_str()).ok_or(ErrorCode::NoNode)?;
                let mut doomed = self.children_first(path.as_str());
                let all = doomed.len();
                doomed.truncate(if *limit == 0 { 1000 } else { *limit as usize });
                for path in &doomed {
                    if !may(&self.nodes[&above(path)], Perms::DELETE) {
                        return Err(ErrorCode::NoAuth.into());
                    }
                    self.remove(zxid, path, events);
                }
                let deleted = u32::try_from(doomed.len()).unwrap();
                Ok(Reply::DeletedMany { deleted, more: doomed.len() < all })
            }
            Op::SetData { path, data, version } => {
                let time_ms = self.time_ms;
                let node = self.nodes.get_mut(path.as_str()).ok_or(ErrorCode::NoNode)?;
                if !may(node, Perms::WRITE) {
                    return Err(ErrorCode::NoAuth.into());
                }
                if version.is_some_and(|v| v != node.stat.version) {
                    return Err(ErrorCode::BadVersion.into());
                }
                node.data = data.clone();
                node.stat.data_length = length(data);
                node.stat.version += 1;
                node.stat.mzxid = zxid;
                node.stat.mtime_ms = time_ms;
                events.push((EventKind::DataChanged, path.to_string()));
                Ok(Reply::Stat(node.stat))
            }
            Op::SetAcl { path, acl, version } => {
                let acl = resolved(acl, asker, ids)?;
                let node = self.nodes.get_mut(path.as_str()).ok_or(ErrorCode::NoNode)?;
                if !may(node, Perms::ADMIN) {
                    return Err(ErrorCode::NoAuth.into());
                }
                if version.is_some_and(|v| v != node.stat.aversion) {
                    return Err(ErrorCode::BadVersion.into());
                }
                node.acl = acl;
                node.stat.aversion += 1;
                Ok(Reply::Stat(node.stat))
            }
            Op::Check { path, version } => {
                let node = self.nodes.get(path.as_str()).ok_or(ErrorCode::NoNode)?;
                if !may(node, Perms::READ) {
                    return Err(ErrorCode::NoAuth.into());
                }
                match version {
                    Some(version) if *version != node.stat.version => {
                        Err(ErrorCode::BadVersion.into())
                    }
                    _ => Ok(Reply::Done),
                }
            }
            Op::Multi { conditions, then, otherwise } => {
                let mut held = true;
                for (index, condition) in (0..).zip(conditions) {
                    let node = self.nodes.get(condition.path.as_str());
                    if held && node.is_some_and(|node| !may(node, Perms::READ)) {
                        return Err(Fault { code: ErrorCode::NoAuth, index });
                    }
                    held = held && holds(node, condition);
                }
                let mut replies = Vec::new();
                for (index, op) in (0..).zip(if held { then } else { otherwise }) {
                    let reply = self.perform(zxid, asker, ids, op, events);
                    replies.push(reply.map_err(|fault| Fault { code: fault.code, index })?);
                }
                Ok(Reply::Multi { held, replies })
            }
            Op::CloseSession => {
                if asker == 0 {
                    return Err(ErrorCode::BadArguments.into());
                }
                for path in self.ephemerals(asker) {
                    self.remove(zxid, &path, events);
                }
                self.sessions.remove(&asker);
                Ok(Reply::Done)
            }
            Op::Reap { path, seen } => {
                if asker != 0 {
                    return Err(ErrorCode::NoAuth.into());
                }
                let node = self.nodes.get(path.as_str()).ok_or(ErrorCode::NoNode)?;
                if *seen != (node.stat.pzxid, node.stat.mzxid) {
                    return Err(ErrorCode::BadVersion.into());
                }
                let due = match node.lifetime {
                    Lifetime::Container => node.created > 0,
                    Lifetime::Ttl(ms) => {
                        self.time_ms - node.stat.mtime_ms > i64::try_from(ms).unwrap()
                    }
                    Lifetime::Persistent | Lifetime::Ephemeral => false,
                };
                if !due || !self.children(path.as_str()).is_empty() {
                    return Err(ErrorCode::ConditionFailed.into());
                }
                self.remove(zxid, path.as_str(), events);
                Ok(Reply::Done)
            }
            other => panic!("the model does not know {other:?}"),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the model has no types of its own")]
    fn create(
        &mut self,
        zxid: Zxid,
        asker: u64,
        ids: &[Identity],
        path: &ZPath,
        data: &Option<Bytes>,
        acl: &[Acl],
        mode: CreateMode,
    ) -> Result<(Reply, Events), ErrorCode> {
        let is_ephemeral = mode.lifetime == Lifetime::Ephemeral;
        if (is_ephemeral && asker == 0) || mode.lifetime == Lifetime::Ttl(0) {
            return Err(ErrorCode::BadArguments);
        }
        let acl = resolved(acl, asker, ids)?;
        if path.is_root() && !mode.sequential {
            return Err(ErrorCode::NodeExists);
        }
        let above = above(path.as_str());
        let parent = self.nodes.get(&above).ok_or(ErrorCode::NoNode)?;
        if asker != 0 && !permitted(&parent.acl, Perms::CREATE, ids) {
            return Err(ErrorCode::NoAuth);
        }
        let number = format!("{:010}", parent.created);
        let path = if mode.sequential { format!("{path}{number}") } else { path.to_string() };
        if self.nodes.contains_key(&path) {
            return Err(ErrorCode::NodeExists);
        }
        if parent.lifetime == Lifetime::Ephemeral {
            return Err(ErrorCode::NoChildrenForEphemerals);
        }
        let stat = Stat {
            czxid: zxid,
            mzxid: zxid,
            pzxid: zxid,
            ctime_ms: self.time_ms,
            mtime_ms: self.time_ms,
            ephemeral_owner: conclave_proto::SessionId(if is_ephemeral { asker } else { 0 }),
            data_length: length(data),
            ..Stat::default()
        };
        let data = data.clone();
        let node = Znode { data, acl, lifetime: mode.lifetime, stat, created: 0 };
        self.nodes.insert(path.clone(), node);
        let parent = self.nodes.get_mut(&above).unwrap();
        parent.created += 1;
        parent.stat.cversion += 1;
        parent.stat.num_children += 1;
        parent.stat.pzxid = zxid;
        let reply = Reply::Created { path: ZPath::new(&path).unwrap(), stat };
        let events = vec![(EventKind::Created, path), (EventKind::ChildrenChanged, above)];
        Ok((reply, events))
    }

    fn remove(&mut self, zxid: Zxid, path: &str, events: &mut Events) {
        self.nodes.remove(path).unwrap();
        let parent = self.nodes.get_mut(&above(path)).unwrap();
        parent.stat.cversion += 1;
        parent.stat.num_children -= 1;
        parent.stat.pzxid = zxid;
        events.push((EventKind::Deleted, path.to_owned()));
        events.push((EventKind::ChildrenChanged, above(path)));
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

fn resolved(acl: &[Acl], asker: u64, ids: &[Identity]) -> Result<Vec<Acl>, ErrorCode> {
    let mut lines = Vec::new();
    for line in acl {
        if line.identity.scheme == "auth" {
            let own = ids.iter().filter(|id| asker != 0 && id.scheme == "digest");
            let expanded: Vec<Acl> =
                own.map(|id| Acl { perms: line.perms, identity: id.clone() }).collect();
            if expanded.is_empty() {
                return Err(ErrorCode::InvalidAcl);
            }
            lines.extend(expanded);
        } else {
            lines.push(line.clone());
        }
    }
    if lines.is_empty() { Err(ErrorCode::InvalidAcl) } else { Ok(lines) }
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
    }
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
