//! What clients ask: each request becomes an operation and what its answer will look like.

use std::sync::Arc;

use bytes::Bytes;
use conclave_proto::request::Page;
use conclave_proto::{Acl, CreateMode, Identity, Lifetime, Op, Perms, WatchKind, ZPath, Zxid};

use crate::limits;

use super::codec::{Body, TEXT_BYTES, Text};
use super::keeper::{self, Dialect, Filter};
use super::numbers::{Code, opcode};
use super::watches::{Slot, Wanted, Watches};

/// What a request comes to.
#[derive(Debug)]
pub(super) enum Asked {
    /// Ask the replica for this.
    Op(Op, Answer),
    /// Nothing has to be asked: this is the answer, in its turn.
    Known(Answer),
    /// A sign of life.
    Ping,
    /// Set these watches again, one after the other.
    Rearm(Rearm),
    /// Remove the watches in these slots.
    Unwatch(ZPath, Vec<Slot>),
}

/// What an answer looks like, when it comes.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// No body.
    Nothing,
    /// A path, and perhaps statistics.
    Created { with_stat: bool },
    /// Statistics. A watch is set if one was wanted.
    Stat(Option<Wanted>),
    /// Data and statistics.
    Data(Option<Wanted>),
    /// An ACL and statistics.
    Acl,
    /// Names, and perhaps statistics.
    Children { with_stat: bool, watch: Option<Wanted> },
    /// Names that are filtered, and perhaps more of each child.
    Filtered { filter: Filter, watch: Option<Wanted> },
    /// At most so many paths of what is below this one.
    Tree { path: ZPath, limit: u32 },
    /// Data of the wire's own, or that there is some.
    Advertised { data: Option<Bytes> },
    /// The path that was asked for.
    Synced(Text),
    /// Paths.
    Paths,
    /// A number.
    Count,
    /// Identities.
    Identities,
    /// One result for each of these operations.
    Multi(Vec<i32>),
    /// One result for each of these reads: their numbers, and what each looks like.
    MultiRead(Dialect, Vec<(i32, Answer)>),
    /// That a persistent watch is set.
    Watching(Wanted),
    /// One watch that was set again. The last one is followed by the answer to all.
    Rearmed(Wanted),
    /// That all of them are.
    AllRearmed,
    /// One slot that was emptied; whether it was the last one.
    Unwatched { path: ZPath, slot: Slot, last: bool },
    /// Whether there is a watch.
    HasWatch(ZPath, Vec<Slot>),
    /// Whether the credentials are good.
    Authenticated,
    /// An empty token.
    Sasl,
    /// An error, after which the connection may be closed.
    Error { code: Code, close: bool },
}

impl Answer {
    fn error(code: Code) -> Asked {
        Asked::Known(Answer::Error { code, close: false })
    }
}

/// Understand the body of a request.
///
/// # Errors
/// What is answered if it cannot be understood.
pub(super) fn understand(
    kind: i32,
    body: &mut Body,
    watches: &Watches,
    dialect: Dialect,
) -> Result<Asked, Code> {
    let asked = match kind {
        opcode::CREATE | opcode::CREATE2 | opcode::CREATE_CONTAINER | opcode::CREATE_TTL => {
            let op = create(kind, body)?;
            Asked::Op(op, Answer::Created { with_stat: kind != opcode::CREATE })
        }
        opcode::DELETE => Asked::Op(delete(body)?, Answer::Nothing),
        opcode::SET_DATA => Asked::Op(set_data(body)?, Answer::Stat(None)),
        opcode::SET_ACL => {
            let (path, acl) = (body.text()?, acl(body)?);
            let version = version(body.int()?);
            Asked::Op(Op::SetAcl { path: changed(&path)?, acl: acl?, version }, Answer::Stat(None))
        }
        opcode::EXISTS => exists(body, watches)?,
        opcode::GET_DATA => get_data(body, watches)?,
        opcode::GET_CHILDREN | opcode::GET_CHILDREN2 => {
            let (path, watch) = read(body, WatchKind::Children)?;
            let (op, answer) = read_children(kind, path, watch, watches);
            Asked::Op(op, answer)
        }
        opcode::GET_ACL => Asked::Op(Op::GetAcl { path: existing(&body.text()?)? }, Answer::Acl),
        opcode::SYNC => Asked::Op(Op::Sync { path: ZPath::root() }, Answer::Synced(body.text()?)),
        opcode::GET_EPHEMERALS => {
            let prefix = body.text()?.as_str().to_owned();
            Asked::Op(Op::Ephemerals { prefix }, Answer::Paths)
        }
        opcode::GET_ALL_CHILDREN_NUMBER => {
            Asked::Op(Op::CountDescendants { path: existing(&body.text()?)? }, Answer::Count)
        }
        opcode::MULTI => multi(body)?,
        opcode::MULTI_READ => multi_read(body, watches, dialect)?,
        opcode::AUTH => authenticate(body)?,
        opcode::WHO_AM_I => Asked::Op(Op::WhoAmI, Answer::Identities),
        opcode::CLOSE_SESSION => Asked::Op(Op::CloseSession, Answer::Nothing),
        opcode::PING => Asked::Ping,
        opcode::ADD_WATCH => add_watch(body, watches)?,
        opcode::REMOVE_WATCHES => unwatch(body)?,
        opcode::CHECK_WATCHES => has_watch(body)?,
        // The rest of the body is read as the watches are set.
        opcode::SET_WATCHES => return Ok(Asked::Rearm(Rearm::new(&REARMED, body)?)),
        opcode::SET_WATCHES2 => return Ok(Asked::Rearm(Rearm::new(&REARMED2, body)?)),
        opcode::SASL => {
            // A server without SASL answers with a token of its own, which is null.
            body.buffer()?;
            Asked::Known(Answer::Sasl)
        }
        opcode::RECONFIG => return Ok(Answer::error(Code::RECONFIG_DISABLED)),
        // Outside a multi it means nothing.
        opcode::CHECK => return Ok(Answer::error(Code::UNIMPLEMENTED)),
        _ => match keeper::understand(kind, body, watches)? {
            Some((op, answer)) => Asked::Op(op, answer),
            None => {
                let code = Code::UNIMPLEMENTED;
                return Ok(Asked::Known(Answer::Error { code, close: true }));
            }
        },
    };
    body.end()?;
    Ok(asked)
}

fn exists(body: &mut Body, watches: &Watches) -> Result<Asked, Code> {
    let (path, watch) = read(body, WatchKind::Exists)?;
    if keeper::advertised(path.as_str()).is_some() {
        return Ok(Asked::Known(Answer::Advertised { data: None }));
    }
    let (op, answer) = read_stat(path, watch, watches);
    Ok(Asked::Op(op, answer))
}

fn get_data(body: &mut Body, watches: &Watches) -> Result<Asked, Code> {
    let (path, watch) = read(body, WatchKind::Data)?;
    if let data @ Some(_) = keeper::advertised(path.as_str()) {
        return Ok(Asked::Known(Answer::Advertised { data }));
    }
    let (op, answer) = read_data(path, watch, watches);
    Ok(Asked::Op(op, answer))
}

fn read_stat(path: ZPath, watch: Option<Wanted>, watches: &Watches) -> (Op, Answer) {
    let id = watch.as_ref().map(|_| watches.id(&path, Slot::Data));
    (Op::Exists { path, watch: id }, Answer::Stat(watch))
}

fn read_data(path: ZPath, watch: Option<Wanted>, watches: &Watches) -> (Op, Answer) {
    let id = watch.as_ref().map(|_| watches.id(&path, Slot::Data));
    (Op::Get { path, watch: id }, Answer::Data(watch))
}

fn read_children(kind: i32, path: ZPath, watch: Option<Wanted>, watches: &Watches) -> (Op, Answer) {
    let id = watch.as_ref().map(|_| watches.id(&path, Slot::Children));
    let op = Op::Children { path, watch: id, page: Page::WHOLE };
    (op, Answer::Children { with_stat: kind == opcode::GET_CHILDREN2, watch })
}

fn create(kind: i32, body: &mut Body) -> Result<Op, Code> {
    let NewNode { path, data, acl, mode } = new_node(kind, body)?;
    Ok(Op::Create { path, data, acl, mode })
}

/// A node to be created.
pub(super) struct NewNode {
    pub(super) path: ZPath,
    pub(super) data: Option<Bytes>,
    pub(super) acl: Arc<[Acl]>,
    pub(super) mode: CreateMode,
}

pub(super) fn new_node(kind: i32, body: &mut Body) -> Result<NewNode, Code> {
    let path = body.text()?;
    let data = body.buffer()?;
    let acl = acl(body)?;
    let flags = body.int()?;
    let ttl = if kind == opcode::CREATE_TTL { Some(body.long()?) } else { None };
    let mode = create_mode(flags, ttl)?;
    let path = if mode.sequential {
        ZPath::prefix(path.as_str()).map_err(|_| Code::BAD_ARGUMENTS)?
    } else {
        changed(&path)?
    };
    Ok(NewNode { path, data, acl: acl?, mode })
}

fn create_mode(flags: i32, ttl: Option<i64>) -> Result<CreateMode, Code> {
    let ephemeral = Lifetime::Ephemeral;
    let (lifetime, sequential) = match flags {
        0 => (Lifetime::Persistent, false),
        1 => (ephemeral, false),
        2 => (Lifetime::Persistent, true),
        3 => (ephemeral, true),
        4 => (Lifetime::Container, false),
        5 | 6 => {
            let ms = ttl.and_then(|ms| u64::try_from(ms).ok()).filter(|&ms| ms > 0);
            return Ok(CreateMode {
                lifetime: Lifetime::Ttl(ms.ok_or(Code::BAD_ARGUMENTS)?),
                sequential: flags == 6,
                ..CreateMode::default()
            });
        }
        _ => return Err(Code::BAD_ARGUMENTS),
    };
    // A time to live for a node that has none.
    if ttl.is_some_and(|ms| ms >= 0) {
        return Err(Code::BAD_ARGUMENTS);
    }
    Ok(CreateMode { lifetime, sequential, ..CreateMode::default() })
}

fn delete(body: &mut Body) -> Result<Op, Code> {
    let (path, version) = to_delete(body)?;
    Ok(Op::Delete { path, version })
}

/// A node to be deleted, and the version it must have.
pub(super) fn to_delete(body: &mut Body) -> Result<(ZPath, Option<i32>), Code> {
    let (path, version) = (body.text()?, version(body.int()?));
    let path = if path.as_str().starts_with('/') { existing(&path)? } else { changed(&path)? };
    Ok((path, version))
}

fn set_data(body: &mut Body) -> Result<Op, Code> {
    let (path, data, version) = (body.text()?, body.buffer()?, version(body.int()?));
    Ok(Op::SetData { path: changed(&path)?, data, version })
}

fn check(body: &mut Body) -> Result<Op, Code> {
    let (path, version) = (body.text()?, version(body.int()?));
    Ok(Op::Check { path: changed(&path)?, version })
}

/// The path of a write: one that breaks the rules is a mistake of its own.
pub(super) fn changed(path: &Text) -> Result<ZPath, Code> {
    ZPath::new(path.as_str()).map_err(|_| Code::BAD_ARGUMENTS)
}

/// The path of a read: there is no node whose path breaks the rules.
pub(super) fn existing(path: &Text) -> Result<ZPath, Code> {
    ZPath::new(path.as_str()).map_err(|_| Code::NO_NODE)
}

fn version(number: i32) -> Option<i32> {
    (number != -1).then_some(number)
}

/// A path to read, and the watch to set if one is wanted.
pub(super) fn read(body: &mut Body, kind: WatchKind) -> Result<(ZPath, Option<Wanted>), Code> {
    let (path, watch) = (body.text()?, body.bool()?);
    let path = existing(&path)?;
    let watch = watch.then(|| Wanted { path: path.clone(), kind });
    Ok((path, watch))
}

/// What nearly every ACL is: [`Acl::open`].
const OPEN: &[u8] = b"\0\0\0\x01\0\0\0\x1f\0\0\0\x05world\0\0\0\x06anyone";

/// The least that a line of an ACL takes.
const ACL_LINE_BYTES: usize = 4 + 2 * TEXT_BYTES;

/// An ACL. That it says something impossible is found out (the inner result) only once the rest
/// of the request has been read.
fn acl(body: &mut Body) -> Result<Result<Arc<[Acl]>, Code>, Code> {
    if body.skip(OPEN) {
        return Ok(Ok(Acl::open()));
    }
    let count = body.count(ACL_LINE_BYTES)?;
    let mut lines = Vec::new();
    let mut fault = (count > limits::ACL_LINES).then_some(Code::INVALID_ACL);
    for _ in 0..count {
        let (perms, scheme, id) = (body.int()?, body.text()?, body.text()?);
        let long = |text: &Text| text.as_str().len() > limits::IDENTITY_BYTES;
        match u8::try_from(perms) {
            Ok(perms) if fault.is_none() && !long(&scheme) && !long(&id) => {
                let (scheme, id) = (scheme.as_str().to_owned(), id.as_str().to_owned());
                lines.push(Acl { perms: Perms(perms), identity: Identity { scheme, id } });
            }
            _ => fault = Some(Code::INVALID_ACL),
        }
    }
    Ok(fault.map_or_else(|| Ok(lines.into()), Err))
}

fn authenticate(body: &mut Body) -> Result<Asked, Code> {
    // An old field that nobody uses.
    body.int()?;
    let (scheme, credentials) = (body.text()?, body.buffer()?);
    if credentials.is_none() && scheme.as_str() == "digest" {
        // Elsewhere credentials that are not there are empty ones.
        return Ok(Asked::Known(Answer::Error { code: Code::AUTH_FAILED, close: true }));
    }
    let scheme = scheme.as_str().to_owned();
    let op = Op::Authenticate { scheme, credentials: credentials.unwrap_or_default().into() };
    Ok(Asked::Op(op, Answer::Authenticated))
}

/// What stands before each operation of a multi.
struct MultiHeader {
    kind: i32,
    done: bool,
}

impl MultiHeader {
    fn read(body: &mut Body) -> Result<MultiHeader, Code> {
        let header = MultiHeader { kind: body.int()?, done: body.bool()? };
        // An old field that nobody uses.
        body.int()?;
        Ok(header)
    }
}

fn multi(body: &mut Body) -> Result<Asked, Code> {
    let (mut then, mut kinds) = (Vec::new(), Vec::new());
    loop {
        let MultiHeader { kind, done } = MultiHeader::read(body)?;
        if done {
            break;
        }
        let op = match kind {
            opcode::CREATE | opcode::CREATE2 | opcode::CREATE_CONTAINER | opcode::CREATE_TTL => {
                create(kind, body)
            }
            opcode::DELETE => delete(body),
            opcode::SET_DATA => set_data(body),
            opcode::CHECK => check(body),
            kind if keeper::is_write(kind) => keeper::write(kind, body),
            _ => return Err(Code::MARSHALLING_ERROR),
        };
        if then.len() == limits::MULTI_OPS {
            return Err(Code::BAD_ARGUMENTS);
        }
        then.push(match op {
            Ok(op) => op,
            Err(code) => refused(code)?,
        });
        kinds.push(kind);
    }
    let op = Op::Multi { conditions: Vec::new(), then, otherwise: Vec::new() };
    Ok(Asked::Op(op, Answer::Multi(kinds)))
}

/// An operation that fails in the place of one that cannot be asked for: whether it comes to that
/// depends on those before it, which only the tree can tell.
fn refused(code: Code) -> Result<Op, Code> {
    match code {
        Code::BAD_ARGUMENTS => Ok(Op::Delete { path: ZPath::root(), version: None }),
        Code::NO_NODE => Ok(Op::Check { path: nowhere(), version: None }),
        Code::INVALID_ACL => {
            let (acl, mode) = ([].into(), CreateMode::PERSISTENT);
            Ok(Op::Create { path: nowhere(), data: None, acl, mode })
        }
        other => Err(other),
    }
}

/// Where there never is a node.
fn nowhere() -> ZPath {
    ZPath::new("/zookeeper/config/none").expect("it is a path")
}

fn multi_read(body: &mut Body, watches: &Watches, dialect: Dialect) -> Result<Asked, Code> {
    let (mut reads, mut answers) = (Vec::new(), Vec::new());
    loop {
        let MultiHeader { kind, done } = MultiHeader::read(body)?;
        if done {
            break;
        }
        let (op, answer) = match inner_read(kind, body, watches, dialect) {
            Ok(read) => read,
            Err(Code::NO_NODE) => (Op::Exists { path: nowhere(), watch: None }, Answer::Nothing),
            Err(other) => return Err(other),
        };
        if reads.len() == limits::MULTI_OPS {
            return Err(Code::BAD_ARGUMENTS);
        }
        reads.push(op);
        answers.push((kind, answer));
    }
    Ok(Asked::Op(Op::MultiRead(reads), Answer::MultiRead(dialect, answers)))
}

/// A read inside a request of several.
fn inner_read(
    kind: i32,
    body: &mut Body,
    watches: &Watches,
    dialect: Dialect,
) -> Result<(Op, Answer), Code> {
    let (mut op, mut answer) = match kind {
        opcode::FILTERED_LIST | opcode::FILTERED_LIST_WITH_STATS_AND_DATA => {
            keeper::list(kind, body, watches)?
        }
        opcode::GET_DATA => {
            let (path, watch) = read(body, WatchKind::Data)?;
            read_data(path, watch, watches)
        }
        opcode::EXISTS => {
            let (path, watch) = read(body, WatchKind::Exists)?;
            read_stat(path, watch, watches)
        }
        opcode::GET_CHILDREN | opcode::GET_CHILDREN2 => {
            let (path, watch) = read(body, WatchKind::Children)?;
            read_children(kind, path, watch, watches)
        }
        _ => return Err(Code::MARSHALLING_ERROR),
    };
    // ZooKeeper overlooks what such a read says of a watch.
    if dialect == Dialect::ZooKeeper
        && let Op::Get { watch, .. } | Op::Exists { watch, .. } | Op::Children { watch, .. } =
            &mut op
        && let Answer::Data(wanted)
        | Answer::Stat(wanted)
        | Answer::Children { watch: wanted, .. }
        | Answer::Filtered { watch: wanted, .. } = &mut answer
    {
        (*watch, *wanted) = (None, None);
    }
    Ok((op, answer))
}

fn add_watch(body: &mut Body, watches: &Watches) -> Result<Asked, Code> {
    let (path, mode) = (body.text()?, body.int()?);
    let kind = match mode {
        0 => WatchKind::Persistent,
        1 => WatchKind::PersistentRecursive,
        _ => return Err(Code::MARSHALLING_ERROR),
    };
    let path = changed(&path)?;
    let id = watches.id(&path, Slot::of(kind));
    let op = Op::Watch { id, path: path.clone(), kind, since: None, with_value: false };
    Ok(Asked::Op(op, Answer::Watching(Wanted { path, kind })))
}

/// A path, and the slots of the watches that are meant.
fn watches_meant(body: &mut Body) -> Result<(ZPath, Vec<Slot>), Code> {
    let (path, kind) = (body.text()?, body.int()?);
    let path = ZPath::new(path.as_str()).map_err(|_| Code::NO_WATCHER)?;
    let slots = match kind {
        1 => vec![Slot::Children],
        2 => vec![Slot::Data],
        3 => Slot::ALL.to_vec(),
        4 => vec![Slot::Persistent],
        5 => vec![Slot::Recursive],
        _ => return Err(Code::MARSHALLING_ERROR),
    };
    Ok((path, slots))
}

fn unwatch(body: &mut Body) -> Result<Asked, Code> {
    let (path, slots) = watches_meant(body)?;
    Ok(Asked::Unwatch(path, slots))
}

fn has_watch(body: &mut Body) -> Result<Asked, Code> {
    let (path, slots) = watches_meant(body)?;
    Ok(Asked::Known(Answer::HasWatch(path, slots)))
}

/// The kinds of watch in a setWatches, in the order of its lists.
static REARMED: [WatchKind; 3] = [WatchKind::Data, WatchKind::Exists, WatchKind::Children];
/// Those in a setWatches2.
static REARMED2: [WatchKind; 5] = [
    WatchKind::Data,
    WatchKind::Exists,
    WatchKind::Children,
    WatchKind::Persistent,
    WatchKind::PersistentRecursive,
];

/// A request to set watches again. It is read watch by watch, because a frame holds more watches
/// than a connection may have requests in flight.
#[derive(Debug)]
pub(super) struct Rearm {
    since: Zxid,
    kinds: &'static [WatchKind],
    /// How many are left of the first kind.
    left: usize,
    body: Body,
}

impl Rearm {
    fn new(kinds: &'static [WatchKind], body: &Body) -> Result<Rearm, Code> {
        let mut body = body.clone();
        let since = body.zxid()?;
        let left = body.count(TEXT_BYTES)?;
        Ok(Rearm { since, kinds, left, body })
    }

    /// The next watch; `None`: there are no more.
    ///
    /// # Errors
    /// If the rest cannot be understood.
    pub(super) fn next(&mut self, watches: &Watches) -> Result<Option<(Op, Wanted)>, Code> {
        loop {
            let Some(&kind) = self.kinds.first() else {
                self.body.end()?;
                return Ok(None);
            };
            if self.left == 0 {
                self.kinds = &self.kinds[1..];
                if !self.kinds.is_empty() {
                    self.left = self.body.count(TEXT_BYTES)?;
                }
                continue;
            }
            self.left -= 1;
            // Where there can be no node nothing ever happens.
            if let Ok(path) = ZPath::new(self.body.text()?.as_str()) {
                let id = watches.id(&path, Slot::of(kind));
                let since = Some(self.since);
                let op = Op::Watch { id, path: path.clone(), kind, since, with_value: false };
                return Ok(Some((op, Wanted { path, kind })));
            }
        }
    }
}
