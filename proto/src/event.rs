//! What watchers are told.

use crate::ids::Zxid;
use crate::path::ZPath;

/// What happened to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// It was created.
    Created,
    /// It was deleted.
    Deleted,
    /// Its data changed.
    DataChanged,
    /// A child of it was created or deleted.
    ChildrenChanged,
}

/// One change of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The transaction that made it.
    pub zxid: Zxid,
    /// The node.
    pub path: ZPath,
    /// What happened.
    pub kind: EventKind,
}

/// What a watch waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WatchKind {
    /// Once: the node is changed or deleted.
    Data,
    /// Once: the node is created, changed or deleted. Set again from a zxid, it is taken to have
    /// found no node there; one that found a node is set again as [`WatchKind::Data`].
    Exists,
    /// Once: a child is created or deleted, or the node itself is deleted.
    Children,
    /// Each change of the node and of its set of children.
    Persistent,
    /// Each creation, change and deletion of the node and of everything below it.
    PersistentRecursive,
}

impl WatchKind {
    /// Whether the watch is gone after its first event.
    pub const fn is_one_shot(self) -> bool {
        matches!(self, WatchKind::Data | WatchKind::Exists | WatchKind::Children)
    }

    /// Whether a watch of this kind waits for this: on its node or, if it is recursive, on a node
    /// below it.
    pub const fn fires_on(self, event: EventKind) -> bool {
        match self {
            WatchKind::Data => matches!(event, EventKind::DataChanged | EventKind::Deleted),
            WatchKind::Exists => !matches!(event, EventKind::ChildrenChanged),
            WatchKind::Children => {
                matches!(event, EventKind::ChildrenChanged | EventKind::Deleted)
            }
            WatchKind::Persistent => true,
            // The creation or deletion of the child itself says it all.
            WatchKind::PersistentRecursive => !matches!(event, EventKind::ChildrenChanged),
        }
    }
}
