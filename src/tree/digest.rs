//! The digest of the state: by it, replicas notice that they differ.

use conclave_proto::{SessionId, ZPath};

use super::nodes::{Node, SessionRecord};

/// What a node adds to [`super::Meta::digest`].
pub fn digest_of_node(path: &ZPath, node: &Node) -> u64 {
    path.as_str().len() as u64 ^ node.mzxid.bits()
}

/// What a session adds to [`super::Meta::digest`].
pub fn digest_of_session(id: SessionId, record: &SessionRecord) -> u64 {
    id.0 ^ record.last_xid.0
}
