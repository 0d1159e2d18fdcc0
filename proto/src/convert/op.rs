//! What clients say.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::ErrorCode;
use crate::event::WatchKind;
use crate::generated as wire;
use crate::generated::client_message::Kind as MessageKind;
use crate::generated::condition::Test as TestKind;
use crate::generated::op::Kind;
use crate::ids::{SessionId, WatchId, Xid, Zxid};
use crate::limits;
use crate::message::{ClientMessage, Connect};
use crate::node::{Acl, CreateMode, Lifetime};
use crate::path::ZPath;
use crate::request::{Condition, Op, Page, ReadLevel, StatTest, Test};

use super::DecodeError;
use super::value::{
    Invalid, acl, acl_to_wire, at_most, data, needed, new_path, path, path_to_wire, secret,
    secret_to_wire, text, text_to_wire,
};

pub(super) fn client_to_wire(message: &ClientMessage) -> wire::ClientMessage {
    let kind = match message {
        ClientMessage::Connect(connect) => MessageKind::Connect(wire::Connect {
            version: connect.version,
            resume: connect.session.map(|(session, secret)| wire::Resume {
                session: session.0,
                secret: secret_to_wire(&secret),
            }),
            timeout_ms: connect.timeout_ms,
            last_zxid: connect.last_zxid.bits(),
            read_only: connect.read_only,
        }),
        ClientMessage::Request { xid, acked, level, op } => {
            let (level, at_least) = match level {
                ReadLevel::Local => (wire::ReadLevel::Local, Zxid::ZERO),
                ReadLevel::AtLeast(zxid) => (wire::ReadLevel::AtLeast, *zxid),
                ReadLevel::Linearizable => (wire::ReadLevel::Linearizable, Zxid::ZERO),
            };
            MessageKind::Request(wire::ClientRequest {
                xid: xid.0,
                acked: acked.0,
                level: level.into(),
                at_least: at_least.bits(),
                op: Some(op_to_wire(op)),
            })
        }
        ClientMessage::Ping => MessageKind::Ping(wire::Empty {}),
    };
    wire::ClientMessage { kind: Some(kind) }
}

pub(super) fn client_from_wire(message: wire::ClientMessage) -> Result<ClientMessage, DecodeError> {
    match needed("the message", message.kind)? {
        MessageKind::Connect(connect) => Ok(ClientMessage::Connect(self::connect(connect)?)),
        MessageKind::Request(request) => {
            let xid = Xid(request.xid);
            self::request(request).map_err(|invalid| DecodeError::BadRequest {
                xid,
                fault: invalid.code,
                detail: invalid.detail.into(),
            })
        }
        MessageKind::Ping(wire::Empty {}) => Ok(ClientMessage::Ping),
    }
}

fn connect(connect: wire::Connect) -> Result<Connect, Invalid> {
    let session = match connect.resume {
        Some(resume) => Some((SessionId(resume.session), secret(&resume.secret)?)),
        None => None,
    };
    Ok(Connect {
        version: connect.version,
        session,
        timeout_ms: connect.timeout_ms,
        last_zxid: Zxid::from_bits(connect.last_zxid),
        read_only: connect.read_only,
    })
}

fn request(request: wire::ClientRequest) -> Result<ClientMessage, Invalid> {
    let level = match wire::ReadLevel::try_from(request.level) {
        Ok(wire::ReadLevel::Local) => ReadLevel::Local,
        Ok(wire::ReadLevel::AtLeast) => ReadLevel::AtLeast(Zxid::from_bits(request.at_least)),
        Ok(wire::ReadLevel::Linearizable) => ReadLevel::Linearizable,
        Err(_) => {
            return Err(Invalid::argument(format!("{} is not a read level", request.level)));
        }
    };
    Ok(ClientMessage::Request {
        xid: Xid(request.xid),
        acked: Xid(request.acked),
        level,
        op: op(request.op.unwrap_or_default())?,
    })
}

/// An operation that only servers ask for becomes one of no kind, which every server refuses.
pub(super) fn op_to_wire(op: &Op) -> wire::Op {
    let kind = match op {
        Op::Create { path, data, acl, mode } => {
            Kind::Create(create_to_wire(path, data.as_ref(), acl, *mode))
        }
        Op::Delete { path, version } => Kind::Delete(delete_to_wire(path, *version)),
        Op::DeleteRecursive { path, limit } => Kind::DeleteRecursive(tree_to_wire(path, *limit)),
        Op::SetData { path, data, version } => {
            let path = path_to_wire(path);
            Kind::SetData(wire::SetData { path, data: data.clone(), version: *version })
        }
        Op::SetAcl { path, acl, version } => {
            let path = path_to_wire(path);
            Kind::SetAcl(wire::SetAcl { path, acl: acl_to_wire(acl), version: *version })
        }
        Op::Check { path, version } => {
            Kind::Check(wire::Check { path: path_to_wire(path), version: *version })
        }
        Op::Require(condition) => Kind::Require(condition_to_wire(condition)),
        Op::CreateIfMissing { path, data, acl, mode } => {
            Kind::CreateIfMissing(create_to_wire(path, data.as_ref(), acl, *mode))
        }
        Op::DeleteIfExists { path, version } => {
            Kind::DeleteIfExists(delete_to_wire(path, *version))
        }
        Op::DeleteTree { path, limit } => Kind::DeleteTree(tree_to_wire(path, *limit)),
        Op::Guard { path, token } => Kind::Guard(guard_to_wire(path, *token)),
        Op::Multi { conditions, then, otherwise } => Kind::Multi(wire::Multi {
            conditions: conditions.iter().map(condition_to_wire).collect(),
            then: then.iter().map(op_to_wire).collect(),
            otherwise: otherwise.iter().map(op_to_wire).collect(),
        }),
        Op::CreateSession { .. } | Op::ExpireSession | Op::Reap { .. } => return NOT_A_CLIENTS,
        Op::CloseSession => Kind::CloseSession(wire::Empty {}),
        Op::Get { path, watch } => {
            Kind::Get(wire::Get { path: path_to_wire(path), watch: watch.map(|id| id.0) })
        }
        Op::Exists { path, watch } => {
            Kind::Exists(wire::Exists { path: path_to_wire(path), watch: watch.map(|id| id.0) })
        }
        Op::Children { path, watch, page } => {
            let (path, page) = (path_to_wire(path), Some(page_to_wire(page)));
            Kind::Children(wire::Children { path, watch: watch.map(|id| id.0), page })
        }
        Op::ListRecursive { path, page } => {
            let (path, page) = (path_to_wire(path), Some(page_to_wire(page)));
            Kind::ListRecursive(wire::ListRecursive { path, page })
        }
        Op::GetAcl { path } => Kind::GetAcl(wire::GetAcl { path: path_to_wire(path) }),
        Op::Ephemerals { prefix } => {
            Kind::Ephemerals(wire::Ephemerals { prefix: text_to_wire(prefix) })
        }
        Op::CountDescendants { path } => {
            Kind::CountDescendants(wire::CountDescendants { path: path_to_wire(path) })
        }
        Op::MultiRead(reads) => {
            Kind::MultiRead(wire::MultiRead { reads: reads.iter().map(op_to_wire).collect() })
        }
        Op::Sync { path } => Kind::Sync(wire::Sync { path: path_to_wire(path) }),
        Op::Watch { id, path, kind, since, with_value } => {
            Kind::Watch(watch_to_wire(*id, path, *kind, *since, *with_value))
        }
        Op::Unwatch { id } => Kind::Unwatch(wire::Unwatch { watch: id.0 }),
        Op::Authenticate { scheme, credentials } => {
            let (scheme, credentials) = (text_to_wire(scheme), credentials.expose().clone());
            Kind::Authenticate(wire::Authenticate { scheme, credentials })
        }
        Op::WhoAmI => Kind::WhoAmI(wire::Empty {}),
    };
    wire::Op { kind: Some(kind) }
}

/// Any operation that a client may ask for.
pub(super) fn op(op: wire::Op) -> Result<Op, Invalid> {
    let Some(kind) = op.kind else {
        return Err(Invalid::new(
            ErrorCode::Unimplemented,
            "this server does not know the operation",
        ));
    };
    Ok(match kind {
        Kind::Create(create) => {
            let (path, data, acl, mode) = node_to_create(create)?;
            Op::Create { path, data, acl, mode }
        }
        Kind::Delete(wire::Delete { path, version }) => {
            Op::Delete { path: self::path(&path)?, version }
        }
        Kind::DeleteRecursive(wire::DeleteRecursive { path, limit }) => {
            Op::DeleteRecursive { path: self::path(&path)?, limit }
        }
        Kind::SetData(wire::SetData { path, data, version }) => {
            Op::SetData { path: self::path(&path)?, data: self::data(data)?, version }
        }
        Kind::SetAcl(wire::SetAcl { path, acl, version }) => {
            Op::SetAcl { path: self::path(&path)?, acl: Acl::share(&self::acl(acl)?), version }
        }
        Kind::Check(check) => Op::Check { path: path(&check.path)?, version: check.version },
        Kind::Require(condition) => Op::Require(self::condition(condition)?),
        Kind::CreateIfMissing(create) => {
            let (path, data, acl, mode) = node_to_create(create)?;
            Op::CreateIfMissing { path, data, acl, mode }
        }
        Kind::DeleteIfExists(wire::Delete { path, version }) => {
            Op::DeleteIfExists { path: self::path(&path)?, version }
        }
        Kind::DeleteTree(wire::DeleteRecursive { path, limit }) => {
            Op::DeleteTree { path: self::path(&path)?, limit }
        }
        Kind::Guard(guard) => self::guard(&guard)?,
        Kind::Multi(multi) => self::multi(multi)?,
        Kind::CloseSession(wire::Empty {}) => Op::CloseSession,
        Kind::Get(wire::Get { path, watch }) => {
            Op::Get { path: self::path(&path)?, watch: watch.map(WatchId) }
        }
        Kind::Exists(wire::Exists { path, watch }) => {
            Op::Exists { path: self::path(&path)?, watch: watch.map(WatchId) }
        }
        Kind::Children(wire::Children { path, watch, page }) => {
            let (path, watch) = (self::path(&path)?, watch.map(WatchId));
            Op::Children { path, watch, page: self::page(page)? }
        }
        Kind::ListRecursive(wire::ListRecursive { path, page }) => {
            Op::ListRecursive { path: self::path(&path)?, page: self::page(page)? }
        }
        Kind::GetAcl(wire::GetAcl { path }) => Op::GetAcl { path: self::path(&path)? },
        Kind::Ephemerals(wire::Ephemerals { prefix }) => {
            Op::Ephemerals { prefix: text("a prefix", &prefix, limits::PATH_BYTES)?.into() }
        }
        Kind::CountDescendants(wire::CountDescendants { path }) => {
            Op::CountDescendants { path: self::path(&path)? }
        }
        Kind::MultiRead(multi) => self::multi_read(multi)?,
        Kind::Sync(wire::Sync { path }) => Op::Sync { path: self::path(&path)? },
        Kind::Watch(watch) => self::watch(watch)?,
        Kind::Unwatch(wire::Unwatch { watch }) => Op::Unwatch { id: WatchId(watch) },
        Kind::Authenticate(wire::Authenticate { scheme, credentials }) => {
            at_most("a credential", credentials.len(), limits::CREDENTIAL_BYTES, "bytes")?;
            let scheme = text("a scheme", &scheme, limits::IDENTITY_BYTES)?.into();
            Op::Authenticate { scheme, credentials: credentials.into() }
        }
        Kind::WhoAmI(wire::Empty {}) => Op::WhoAmI,
    })
}

fn delete_to_wire(path: &ZPath, version: Option<i32>) -> wire::Delete {
    wire::Delete { path: path_to_wire(path), version }
}

fn tree_to_wire(path: &ZPath, limit: u32) -> wire::DeleteRecursive {
    wire::DeleteRecursive { path: path_to_wire(path), limit }
}

/// What stands for an operation that only servers ask.
const NOT_A_CLIENTS: wire::Op = wire::Op { kind: None };

fn guard_to_wire(path: &ZPath, token: Zxid) -> wire::Guard {
    wire::Guard { path: path_to_wire(path), token: token.bits() }
}

fn guard(guard: &wire::Guard) -> Result<Op, Invalid> {
    Ok(Op::Guard { path: path(&guard.path)?, token: Zxid::from_bits(guard.token) })
}

fn create_to_wire(
    path: &ZPath,
    data: Option<&Bytes>,
    acl: &[Acl],
    mode: CreateMode,
) -> wire::Create {
    let (lifetime, ttl_ms) = match mode.lifetime {
        Lifetime::Persistent => (wire::Lifetime::Persistent, 0),
        Lifetime::Ephemeral => (wire::Lifetime::Ephemeral, 0),
        Lifetime::Container => (wire::Lifetime::Container, 0),
        Lifetime::Ttl(ttl_ms) => (wire::Lifetime::Ttl, ttl_ms),
        Lifetime::Lingering(ms) => (wire::Lifetime::Lingering, ms),
    };
    wire::Create {
        path: path_to_wire(path),
        data: data.cloned(),
        acl: acl_to_wire(acl),
        lifetime: lifetime.into(),
        ttl_ms,
        sequential: mode.sequential,
        in_line: mode.in_line,
        first_child: mode.first_child,
    }
}

type NodeToCreate = (ZPath, Option<Bytes>, Arc<[Acl]>, CreateMode);

fn node_to_create(create: wire::Create) -> Result<NodeToCreate, Invalid> {
    let lifetime = match wire::Lifetime::try_from(create.lifetime) {
        Ok(wire::Lifetime::Persistent) => Lifetime::Persistent,
        Ok(wire::Lifetime::Ephemeral) => Lifetime::Ephemeral,
        Ok(wire::Lifetime::Container) => Lifetime::Container,
        Ok(wire::Lifetime::Ttl) => Lifetime::Ttl(create.ttl_ms),
        Ok(wire::Lifetime::Lingering) => Lifetime::Lingering(create.ttl_ms),
        Err(_) => {
            return Err(Invalid::argument(format!("{} is not a lifetime", create.lifetime)));
        }
    };
    let wire::Create { sequential, in_line, first_child, .. } = create;
    let mode = CreateMode { lifetime, sequential, in_line, first_child };
    Ok((
        new_path(&create.path, sequential)?,
        data(create.data)?,
        Acl::share(&acl(create.acl)?),
        mode,
    ))
}

fn multi(multi: wire::Multi) -> Result<Op, Invalid> {
    let wire::Multi { conditions, then, otherwise } = multi;
    at_most(
        "a multi",
        conditions.len() + then.len() + otherwise.len(),
        limits::MULTI_OPS,
        "operations",
    )?;
    Ok(Op::Multi {
        conditions: conditions.into_iter().map(condition).collect::<Result<_, _>>()?,
        then: then.into_iter().map(inner_write).collect::<Result<_, _>>()?,
        otherwise: otherwise.into_iter().map(inner_write).collect::<Result<_, _>>()?,
    })
}

/// An operation inside a multi.
fn inner_write(op: wire::Op) -> Result<Op, Invalid> {
    match &op.kind {
        None
        | Some(
            Kind::Create(_)
            | Kind::Delete(_)
            | Kind::SetData(_)
            | Kind::SetAcl(_)
            | Kind::Check(_)
            | Kind::Require(_)
            | Kind::CreateIfMissing(_)
            | Kind::DeleteIfExists(_)
            | Kind::DeleteTree(_)
            | Kind::Guard(_),
        ) => self::op(op),
        Some(_) => Err(Invalid::argument(
            "only create, delete, set_data, set_acl, check, require, create_if_missing, \
             delete_if_exists and delete_tree may be inside a multi",
        )),
    }
}

fn multi_read(multi: wire::MultiRead) -> Result<Op, Invalid> {
    at_most("a multi-read", multi.reads.len(), limits::MULTI_OPS, "operations")?;
    Ok(Op::MultiRead(multi.reads.into_iter().map(inner_read).collect::<Result<_, _>>()?))
}

/// An operation inside a multi-read.
fn inner_read(op: wire::Op) -> Result<Op, Invalid> {
    match &op.kind {
        None | Some(Kind::Get(_) | Kind::Exists(_) | Kind::Children(_)) => self::op(op),
        Some(_) => {
            Err(Invalid::argument("only get, exists and children may be inside a multi-read"))
        }
    }
}

fn condition_to_wire(condition: &Condition) -> wire::Condition {
    let test = match &condition.test {
        Test::Exists => TestKind::Exists(wire::Empty {}),
        Test::Missing => TestKind::Missing(wire::Empty {}),
        Test::Version(version) => TestKind::Version(*version),
        Test::ChildVersion(version) => TestKind::ChildVersion(*version),
        Test::CreatedBy(zxid) => TestKind::CreatedBy(zxid.bits()),
        Test::Data(data) => TestKind::Data(data.clone()),
        Test::Stat(stat) => TestKind::Stat(stat_test_to_wire(stat)),
    };
    wire::Condition { path: path_to_wire(&condition.path), test: Some(test) }
}

fn condition(condition: wire::Condition) -> Result<Condition, Invalid> {
    let test = match needed("a condition's test", condition.test)? {
        TestKind::Exists(wire::Empty {}) => Test::Exists,
        TestKind::Missing(wire::Empty {}) => Test::Missing,
        TestKind::Version(version) => Test::Version(version),
        TestKind::ChildVersion(version) => Test::ChildVersion(version),
        TestKind::CreatedBy(zxid) => Test::CreatedBy(Zxid::from_bits(zxid)),
        TestKind::Data(data) => {
            at_most("a value", data.len(), limits::VALUE_BYTES, "bytes")?;
            Test::Data(data)
        }
        TestKind::Stat(stat) => Test::Stat(Box::new(stat_test(&stat))),
    };
    Ok(Condition { path: path(&condition.path)?, test })
}

fn stat_test_to_wire(test: &StatTest) -> wire::StatTest {
    wire::StatTest {
        czxid: test.czxid.map(Zxid::bits),
        mzxid: test.mzxid.map(Zxid::bits),
        pzxid: test.pzxid.map(Zxid::bits),
        ctime_ms: test.ctime_ms,
        mtime_ms: test.mtime_ms,
        version: test.version,
        cversion: test.cversion,
        aversion: test.aversion,
        ephemeral_owner: test.ephemeral_owner.map(|session| session.0),
        data_length: test.data_length,
        num_children: test.num_children,
    }
}

fn stat_test(test: &wire::StatTest) -> StatTest {
    StatTest {
        czxid: test.czxid.map(Zxid::from_bits),
        mzxid: test.mzxid.map(Zxid::from_bits),
        pzxid: test.pzxid.map(Zxid::from_bits),
        ctime_ms: test.ctime_ms,
        mtime_ms: test.mtime_ms,
        version: test.version,
        cversion: test.cversion,
        aversion: test.aversion,
        ephemeral_owner: test.ephemeral_owner.map(SessionId),
        data_length: test.data_length,
        num_children: test.num_children,
    }
}

fn page_to_wire(page: &Page) -> wire::Page {
    wire::Page {
        after: page.after.as_deref().map(text_to_wire),
        limit: page.limit,
        with_stat: page.with_stat,
        with_data: page.with_data,
    }
}

fn page(page: Option<wire::Page>) -> Result<Page, Invalid> {
    let Some(wire::Page { after, limit, with_stat, with_data }) = page else {
        return Ok(Page::default());
    };
    let after = match after {
        Some(after) => Some(text("a page's start", &after, limits::PATH_BYTES)?.into()),
        None => None,
    };
    // The whole is not for this protocol, whose frames are bounded.
    let limit = limit.min(Page::WHOLE.limit - 1);
    Ok(Page { after, limit, with_stat, with_data })
}

fn watch_to_wire(
    id: WatchId,
    path: &ZPath,
    kind: WatchKind,
    since: Option<Zxid>,
    with_value: bool,
) -> wire::Watch {
    let kind = match kind {
        WatchKind::Data => wire::WatchKind::Data,
        WatchKind::Exists => wire::WatchKind::Exists,
        WatchKind::Children => wire::WatchKind::Children,
        WatchKind::Persistent => wire::WatchKind::Persistent,
        WatchKind::PersistentRecursive => wire::WatchKind::PersistentRecursive,
    };
    wire::Watch {
        watch: id.0,
        path: path_to_wire(path),
        kind: kind.into(),
        since: since.map(Zxid::bits),
        with_value,
    }
}

fn watch(watch: wire::Watch) -> Result<Op, Invalid> {
    let kind = match wire::WatchKind::try_from(watch.kind) {
        Ok(wire::WatchKind::Data) => WatchKind::Data,
        Ok(wire::WatchKind::Exists) => WatchKind::Exists,
        Ok(wire::WatchKind::Children) => WatchKind::Children,
        Ok(wire::WatchKind::Persistent) => WatchKind::Persistent,
        Ok(wire::WatchKind::PersistentRecursive) => WatchKind::PersistentRecursive,
        Ok(wire::WatchKind::Unspecified) | Err(_) => {
            return Err(Invalid::argument(format!("{} is not a kind of watch", watch.kind)));
        }
    };
    Ok(Op::Watch {
        id: WatchId(watch.watch),
        path: path(&watch.path)?,
        kind,
        since: watch.since.map(Zxid::from_bits),
        with_value: watch.with_value,
    })
}
