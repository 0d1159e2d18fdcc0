//! What a read must have answered, if the state was that after a known transaction.

use conclave_proto::request::Entry;
use conclave_proto::{ErrorCode, Fault, Op, Reply, Zxid};

use crate::model::Model;

/// The answer, for the operations that the simulator's clients use; `None` for those whose answer
/// does not depend on the state.
#[expect(clippy::wildcard_enum_match_arm, reason = "the clients use few of the operations")]
pub(super) fn expected(model: &Model, op: &Op, zxid: Zxid) -> Option<Result<Reply, Fault>> {
    let node = |path| model.node_at(path, zxid).ok_or(Fault::from(ErrorCode::NoNode));
    Some(match op {
        Op::Get { path, .. } => {
            node(path).map(|node| Reply::Data { data: node.data.clone(), stat: node.stat() })
        }
        Op::Exists { path, .. } => node(path).map(|node| Reply::Stat(node.stat())),
        Op::Children { path, .. } => node(path).map(|node| {
            let names = model.children_at(path, zxid).into_iter();
            let entry = |name: &str| Entry { name: name.to_owned(), stat: None, data: None };
            Reply::Children { entries: names.map(entry).collect(), more: false, stat: node.stat() }
        }),
        Op::Sync { .. } => Ok(Reply::Done),
        _ => return None,
    })
}
