//! What can be asked, and what is answered.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::Fault;
use crate::event::WatchKind;
use crate::ids::{Credentials, Secret, ServerId, SessionId, WatchId, Xid, Zxid};
use crate::names::Names;
use crate::node::{Acl, CreateMode, Identity, Stat};
use crate::path::ZPath;

/// One operation: everything that a client, or the ensemble itself, can ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Create a node. Answer: [`Reply::Created`].
    Create {
        /// Its path; with a sequential mode, the path to which the number is appended.
        path: ZPath,
        /// Its data; `None` is ZooKeeper's null, distinct from empty.
        data: Option<Bytes>,
        /// Who may do what with it.
        acl: Arc<[Acl]>,
        /// How long it lives and whether it is numbered.
        mode: CreateMode,
    },
    /// Delete a node without children. Answer: [`Reply::Done`].
    Delete {
        /// The node.
        path: ZPath,
        /// The version it must have; `None`: any.
        version: Option<i32>,
    },
    /// Delete a node and everything below it, deepest first, at most `limit` nodes in one
    /// transaction. Answer: [`Reply::DeletedMany`].
    DeleteRecursive {
        /// The node.
        path: ZPath,
        /// How many nodes at most; 0, or more than
        /// [`DELETE_MANY`](crate::limits::DELETE_MANY): that many.
        limit: u32,
    },
    /// Replace a node's data. Answer: [`Reply::Stat`].
    SetData {
        /// The node.
        path: ZPath,
        /// Its new data.
        data: Option<Bytes>,
        /// The version it must have; `None`: any.
        version: Option<i32>,
    },
    /// Replace a node's ACL. Answer: [`Reply::Stat`].
    SetAcl {
        /// The node.
        path: ZPath,
        /// Its new ACL.
        acl: Arc<[Acl]>,
        /// The ACL version it must have; `None`: any.
        version: Option<i32>,
    },
    /// Fail unless a node has a version; useful in a multi. Answer: [`Reply::Done`].
    Check {
        /// The node.
        path: ZPath,
        /// The version it must have; `None`: it must exist.
        version: Option<i32>,
    },
    /// Fail unless a condition holds; useful in a multi. Answer: [`Reply::Done`]; `NodeExists`,
    /// `NoNode`, `BadVersion` or `ConditionFailed`.
    Require(Condition),
    /// Create a node, or leave it as it is if it exists. Answer: [`Reply::Created`], with the
    /// node's statistics in either case.
    CreateIfMissing {
        /// Its path.
        path: ZPath,
        /// Its data; `None` is ZooKeeper's null, distinct from empty.
        data: Option<Bytes>,
        /// Who may do what with it.
        acl: Arc<[Acl]>,
        /// How long it lives and whether it is numbered.
        mode: CreateMode,
    },
    /// Delete a node without children, if it exists. Answer: [`Reply::Done`].
    DeleteIfExists {
        /// The node.
        path: ZPath,
        /// The version it must have; `None`: any.
        version: Option<i32>,
    },
    /// Delete a node and everything below it in one transaction, or nothing (`NotEmpty`) if that is
    /// more than `limit` nodes. Answer: [`Reply::DeletedMany`].
    DeleteTree {
        /// The node.
        path: ZPath,
        /// How many nodes at most; 0, or more than
        /// [`DELETE_MANY`](crate::limits::DELETE_MANY): that many. The trees of one multi share it.
        limit: u32,
    },
    /// Fail unless what a node stands for is still held: the node is the very one that this
    /// transaction created, and its session has not ended. Useful in a multi, to make writes depend
    /// on a lock. Answer: [`Reply::Done`], or `ConditionFailed`.
    Guard {
        /// The node.
        path: ZPath,
        /// The transaction that created it.
        token: Zxid,
    },
    /// All of `then` if every condition holds, else all of `otherwise`; nothing if one of them
    /// fails. Only `Create`, `Delete`, `SetData`, `SetAcl`, `Check`, `Require`, `CreateIfMissing`,
    /// `DeleteIfExists`, `DeleteTree` and `Guard` may be inside.
    /// Answer: [`Reply::Multi`].
    Multi {
        /// What must hold; empty: always true.
        conditions: Vec<Condition>,
        /// What is done if it holds.
        then: Vec<Op>,
        /// What is done otherwise.
        otherwise: Vec<Op>,
    },
    /// Open a session. The client does not ask this itself: its handshake does.
    /// Answer: [`Reply::Done`].
    CreateSession {
        /// The id, chosen by the server that the client is connected to.
        session: SessionId,
        /// How long it outlives its last sign of life, in ms.
        timeout_ms: u32,
        /// What proves it.
        secret: Secret,
    },
    /// End the request's session and delete its ephemeral nodes. Answer: [`Reply::Done`].
    CloseSession,
    /// The same because the session gave no sign of life; asked by the leader alone. Lingering nodes
    /// stay for a while. Answer: [`Reply::Done`].
    ExpireSession,
    /// Delete a container or TTL node if it has outlived its purpose; asked by the leader alone.
    /// Answer: [`Reply::Done`].
    Reap {
        /// The node.
        path: ZPath,
        /// The `pzxid` and `mzxid` the leader saw: nothing happens if either has changed.
        seen: (Zxid, Zxid),
    },

    /// Read a node's data. Answer: [`Reply::Data`].
    Get {
        /// The node.
        path: ZPath,
        /// Set this watch ([`WatchKind::Data`]) if the node exists.
        watch: Option<WatchId>,
    },
    /// Read a node's statistics; [`Reply::Stat`], or `NoNode`.
    Exists {
        /// The node.
        path: ZPath,
        /// Set this watch ([`WatchKind::Exists`]), whether the node exists or not.
        watch: Option<WatchId>,
    },
    /// List a node's children in the order of their names, a page at a time.
    /// Answer: [`Reply::Children`]; to [`Page::WHOLE`], [`Reply::Names`].
    Children {
        /// The node.
        path: ZPath,
        /// Set this watch ([`WatchKind::Children`]) if the node exists.
        watch: Option<WatchId>,
        /// Which page.
        page: Page,
    },
    /// List everything below a node, depth first, parents before children, names in order, a page
    /// at a time; paths are relative to the node. Answer: [`Reply::Children`].
    ListRecursive {
        /// The node.
        path: ZPath,
        /// Which page.
        page: Page,
    },
    /// Read a node's ACL. Answer: [`Reply::Acl`].
    GetAcl {
        /// The node.
        path: ZPath,
    },
    /// List the paths of the request's session's ephemeral nodes below a prefix.
    /// Answer: [`Reply::Paths`].
    Ephemerals {
        /// The prefix, compared as a string.
        prefix: String,
    },
    /// Count everything below a node. Answer: [`Reply::Count`].
    CountDescendants {
        /// The node.
        path: ZPath,
    },
    /// Several reads (`Get`, `Exists`, `Children`) of one moment. Answer: [`Reply::MultiRead`].
    MultiRead(Vec<Op>),
    /// Answered once this server has applied everything committed before the request reached the
    /// leader. Answer: [`Reply::Done`].
    Sync {
        /// Kept for ZooKeeper's sake; the whole tree is synchronised.
        path: ZPath,
    },
    /// Set a watch, or replace the one with this id. Answer: [`Reply::Done`], preceded by what has
    /// happened since `since`.
    Watch {
        /// The watch's id.
        id: WatchId,
        /// The node.
        path: ZPath,
        /// What it waits for.
        kind: WatchKind,
        /// Report what happened after this; `None`: from now on.
        since: Option<Zxid>,
        /// Whether events carry the node's new data.
        with_value: bool,
    },
    /// Remove a watch. Answer: [`Reply::Done`], or `NoWatcher`.
    Unwatch {
        /// The watch's id.
        id: WatchId,
    },
    /// Add an identity to the connection. Answer: [`Reply::Done`], or `AuthFailed`.
    Authenticate {
        /// The scheme, `digest` for instance.
        scheme: String,
        /// The credentials.
        credentials: Credentials,
    },
    /// The connection's identities. Answer: [`Reply::Identities`].
    WhoAmI,
}

/// The pattern of the operations that are no writes: each is one or the other, and what has no layout
/// in a log is what [`Op::is_write`] denies.
macro_rules! reads {
    () => {
        Op::Get { .. }
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
            | Op::WhoAmI
    };
}
pub(crate) use reads;

impl Op {
    /// Whether it changes the replicated state, and so goes through the leader and the log.
    pub fn is_write(&self) -> bool {
        match self {
            Op::Create { .. }
            | Op::Delete { .. }
            | Op::DeleteRecursive { .. }
            | Op::SetData { .. }
            | Op::SetAcl { .. }
            | Op::Check { .. }
            | Op::Require(_)
            | Op::CreateIfMissing { .. }
            | Op::DeleteIfExists { .. }
            | Op::DeleteTree { .. }
            | Op::Guard { .. }
            | Op::Multi { .. }
            | Op::CreateSession { .. }
            | Op::CloseSession
            | Op::ExpireSession
            | Op::Reap { .. } => true,
            reads!() => false,
        }
    }
}

/// What a multi can depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The node.
    pub path: ZPath,
    /// What must hold of it.
    pub test: Test,
}

/// What must hold of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// It exists.
    Exists,
    /// It does not exist.
    Missing,
    /// Its data version is this.
    Version(i32),
    /// Its number of child changes is this.
    ChildVersion(i32),
    /// It was created by this transaction: it is still the very same node.
    CreatedBy(Zxid),
    /// Its data is this.
    Data(Bytes),
    /// Its statistics are these.
    Stat(Box<StatTest>),
}

/// What a node's statistics must be: each field that is given is equal to the one of [`Stat`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatTest {
    /// The transaction that created it.
    pub czxid: Option<Zxid>,
    /// The transaction that last changed its data.
    pub mzxid: Option<Zxid>,
    /// The transaction that last created or deleted a child.
    pub pzxid: Option<Zxid>,
    /// When it was created, ms since 1970.
    pub ctime_ms: Option<i64>,
    /// When its data was last changed, ms since 1970.
    pub mtime_ms: Option<i64>,
    /// The number of changes of its data.
    pub version: Option<i32>,
    /// The number of child changes.
    pub cversion: Option<i32>,
    /// The number of changes of its ACL.
    pub aversion: Option<i32>,
    /// The session it dies with, [`SessionId::NONE`] if there is none.
    pub ephemeral_owner: Option<SessionId>,
    /// The length of its data in bytes.
    pub data_length: Option<u32>,
    /// The number of its children.
    pub num_children: Option<u32>,
}

impl StatTest {
    /// Whether these statistics pass.
    pub fn holds(&self, stat: &Stat) -> bool {
        fn is<T: PartialEq>(expected: Option<T>, actual: T) -> bool {
            expected.is_none_or(|expected| expected == actual)
        }
        is(self.czxid, stat.czxid)
            && is(self.mzxid, stat.mzxid)
            && is(self.pzxid, stat.pzxid)
            && is(self.ctime_ms, stat.ctime_ms)
            && is(self.mtime_ms, stat.mtime_ms)
            && is(self.version, stat.version)
            && is(self.cversion, stat.cversion)
            && is(self.aversion, stat.aversion)
            && is(self.ephemeral_owner, stat.ephemeral_owner)
            && is(self.data_length, stat.data_length)
            && is(self.num_children, stat.num_children)
    }
}

/// A page of a listing.
///
/// Of a node that the client may not read, an entry carries the name alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Start after this name (or, in a recursive listing, this relative path); `None`: at the first.
    pub after: Option<String>,
    /// How many entries at most; 0: as many as a reply may hold; [`Page::WHOLE`] has all of them.
    pub limit: u32,
    /// Whether entries carry their statistics.
    pub with_stat: bool,
    /// Whether entries carry their data.
    pub with_data: bool,
}

impl Page {
    /// All names in one answer, or none if they are too many: ZooKeeper's clients know no pages.
    /// The native protocol does not offer it.
    pub const WHOLE: Page =
        Page { after: None, limit: u32::MAX, with_stat: false, with_data: false };

    /// Whether it is [`Page::WHOLE`], or the same with statistics or data.
    pub const fn is_whole(&self) -> bool {
        self.limit == u32::MAX
    }
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The child's name, or its path relative to the listed node.
    pub name: String,
    /// Its statistics, if asked for.
    pub stat: Option<Stat>,
    /// Its data, if asked for.
    pub data: Option<Bytes>,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadLevel {
    /// What this server knows: never older than what the session has seen before. ZooKeeper's.
    #[default]
    Local,
    /// Not before this transaction is applied here.
    AtLeast(Zxid),
    /// Everything that was acknowledged to anybody before the read was asked.
    Linearizable,
}

/// What was asked, by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The session.
    pub session: SessionId,
    /// The number of the request in its session; zero: never retried.
    pub xid: Xid,
    /// The client has the replies to everything up to here and will not ask again.
    pub acked: Xid,
    /// What is asked.
    pub op: Op,
}

/// A write as the leader stamped it: all that a replica needs to apply it as every other does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn {
    /// The version of the rules to apply it by. A server that does not know it stops.
    pub semantics: u16,
    /// The leader's clock, ms since 1970; never goes back from one transaction to the next.
    pub time_ms: i64,
    /// The server that answers the client, and that server's own mark for the request.
    pub origin: (ServerId, u64),
    /// Who asks: what ACLs are checked against.
    pub identities: Arc<[Identity]>,
    /// The leader's state digest after the named transaction, for replicas to compare theirs.
    pub digest: (Zxid, u64),
    /// What is asked.
    pub request: Request,
}

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is done.
    Done,
    /// A node was created.
    Created {
        /// Its path, with its number if it is sequential.
        path: ZPath,
        /// Its statistics.
        stat: Stat,
    },
    /// A node's statistics.
    Stat(Stat),
    /// A node's data.
    Data {
        /// The data; `None` is ZooKeeper's null.
        data: Option<Bytes>,
        /// The node's statistics.
        stat: Stat,
    },
    /// A page of a listing.
    ///
    /// Of a node that the client may not read, an entry carries the name alone.
    Children {
        /// The entries, in order.
        entries: Vec<Entry>,
        /// Whether there are more after the last of these.
        more: bool,
        /// The listed node's statistics.
        stat: Stat,
    },
    /// The names of all children: a listing that is [`Page::WHOLE`].
    Names {
        /// The names, in order.
        names: Names,
        /// The listed node's statistics.
        stat: Stat,
    },
    /// A node's ACL.
    Acl {
        /// The ACL.
        acl: Vec<Acl>,
        /// The node's statistics.
        stat: Stat,
    },
    /// Paths, in order.
    Paths(Vec<ZPath>),
    /// A number of nodes.
    Count(u64),
    /// The outcome of a bounded recursive delete.
    DeletedMany {
        /// How many nodes were deleted.
        deleted: u32,
        /// Whether some are left.
        more: bool,
    },
    /// The outcome of a multi.
    Multi {
        /// Whether the conditions held, so that `then` was done and not `otherwise`.
        held: bool,
        /// The answers, one an operation.
        replies: Vec<Reply>,
    },
    /// The answers to a multi-read, one an operation.
    MultiRead(Vec<Result<Reply, Fault>>),
    /// Identities.
    Identities(Vec<Identity>),
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The request's number.
    pub xid: Xid,
    /// The transaction that made it, or the last one applied when it was read.
    pub zxid: Zxid,
    /// The answer.
    pub result: Result<Reply, Fault>,
}
