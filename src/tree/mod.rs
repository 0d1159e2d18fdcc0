//! The tree of znodes and everything else that is replicated: a pure state machine.

mod nodes;

pub use nodes::{MemoryNodes, Meta, Node, Nodes, Outcome, SessionRecord};
