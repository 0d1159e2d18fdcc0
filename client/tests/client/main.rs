//! The client against a server that follows a script.

#![allow(clippy::unwrap_used, reason = "a test may fail by a panic")]

mod failover;
mod fake;
mod hostile;
mod kept;
mod recipes;
mod requests;
mod watches;
