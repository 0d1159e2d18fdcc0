//! The storage: what is acknowledged survives, damage is noticed, and the state on disk is the
//! state in memory.

mod common;
mod lifecycle;
mod model;
