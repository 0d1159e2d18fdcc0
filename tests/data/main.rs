//! The recipes about data on real servers that die and freeze, over a network that is cut.
//!
//! `CONCLAVE_ROUNDS` makes the runs longer, `CONCLAVE_SEED` repeats one as far as it depends on
//! dice.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and says what the servers said"
)]

mod cache;
mod chaos;
mod config;
#[path = "../cluster/harness.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod harness;
mod log;
mod overlay;
#[path = "../common/ports.rs"]
mod ports;
mod together;
mod two_phase;
mod work;
