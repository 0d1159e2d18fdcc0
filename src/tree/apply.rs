//! Every rule of writing, once.

use std::sync::Arc;

use conclave_proto::{Acl, ErrorCode, Event, Fault, Lifetime, Reply, SessionId, Txn, ZPath, Zxid};

use super::acl;
use super::nodes::{Node, Nodes};

/// The newest version of the rules that this code knows; the leader stamps it into [`Txn`]s.
pub const SEMANTICS: u16 = 1;

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
}

/// A change of a node, and who may know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What watchers are told.
    pub event: Event,
    /// The node's ACL (its last one, if it is gone): whoever may not read the node is not told.
    pub acl: Arc<[Acl]>,
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

/// Put in place what exists before the first transaction: the root.
pub fn found(nodes: &mut impl Nodes) {
    let root = Node {
        data: Some(bytes::Bytes::new()),
        acl: acl::share(&Acl::open()),
        lifetime: Lifetime::Persistent,
        owner: SessionId::NONE,
        czxid: Zxid::ZERO,
        mzxid: Zxid::ZERO,
        pzxid: Zxid::ZERO,
        ctime_ms: 0,
        mtime_ms: 0,
        version: 0,
        aversion: 0,
        num_children: 0,
        children_created: 0,
    };
    nodes.put_node(&ZPath::root(), root);
}

/// Apply the transaction at `zxid`, the next one of the history; `chain` is the checksum of the
/// history up to it.
///
/// Whether the request succeeds or fails, it is applied afterwards: every replica has the same
/// state and the same answer.
///
/// # Panics
/// If `zxid` is applied already, or if the transaction follows rules newer than [`SEMANTICS`].
pub fn apply(nodes: &mut impl Nodes, zxid: Zxid, chain: u32, txn: &Txn) -> Applied {
    let mut meta = nodes.meta();
    assert!(zxid > meta.applied_zxid, "{zxid} is applied after {}", meta.applied_zxid);
    meta.applied_zxid = zxid;
    meta.applied_chain = chain;
    meta.time_ms = meta.time_ms.max(txn.time_ms);
    nodes.set_meta(meta);
    Applied {
        zxid,
        result: Err(ErrorCode::Unimplemented.into()),
        changes: Vec::new(),
        session: None,
        duplicate: false,
    }
}
