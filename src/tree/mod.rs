//! The tree of znodes and everything else that is replicated: a pure state machine.

mod acl;
mod apply;
mod audit;
mod digest;
mod draft;
mod nodes;
mod read;
mod sessions;
mod walk;
mod watch;

pub use acl::{allows, share};
pub use apply::{Applied, Change, SEMANTICS, SessionChange, apply, found};
pub use audit::audit;
pub use digest::{digest_of_node, digest_of_session};
pub use nodes::{MemoryNodes, Meta, Node, Nodes, Outcome, SessionRecord};
pub use read::read;
pub use watch::changed_since;
