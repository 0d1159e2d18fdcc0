//! Every rule of reading.

use conclave_proto::{ErrorCode, Fault, Identity, Op, Reply, SessionId};

use super::nodes::Nodes;

/// The answer to a read: `Get`, `Exists`, `Children`, `ListRecursive`, `GetAcl`, `Ephemerals`,
/// `CountDescendants` or `MultiRead`. Watches are not set here.
///
/// # Errors
/// What ZooKeeper would say; `BadArguments` for any other operation.
pub fn read(
    nodes: &impl Nodes,
    identities: &[Identity],
    session: SessionId,
    op: &Op,
) -> Result<Reply, Fault> {
    let _ = (nodes.meta(), identities, session, op);
    Err(ErrorCode::Unimplemented.into())
}
