//! The storage: what is acknowledged survives, damage is noticed, and the state on disk is the
//! state in memory.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
mod crash;
mod damage;
mod faults;
mod kill;
mod lifecycle;
mod model;
mod server;
mod snapshot;
mod tear;
