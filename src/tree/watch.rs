//! What a watch that is set again has missed.

use conclave_proto::{EventKind, WatchKind, ZPath, Zxid};

use super::nodes::Nodes;

/// What a one-shot watch on `path` that was set at `since` would have been told by now, as far as
/// the state shows: ZooKeeper's rule for watches that are set again after a reconnect.
///
/// `None` if it has nothing to tell, so that it waits on; always `None` for persistent watches,
/// whose missed events the state does not show.
pub fn changed_since(
    nodes: &impl Nodes,
    path: &ZPath,
    kind: WatchKind,
    since: Zxid,
) -> Option<EventKind> {
    let node = nodes.node(path);
    match (kind, node) {
        (WatchKind::Persistent | WatchKind::PersistentRecursive, _) | (WatchKind::Exists, None) => {
            None
        }
        (WatchKind::Data | WatchKind::Children, None) => Some(EventKind::Deleted),
        (WatchKind::Exists, Some(node)) if node.czxid > since => Some(EventKind::Created),
        (WatchKind::Data | WatchKind::Exists, Some(node)) => {
            (node.mzxid > since).then_some(EventKind::DataChanged)
        }
        (WatchKind::Children, Some(node)) => {
            (node.pzxid > since).then_some(EventKind::ChildrenChanged)
        }
    }
}
