//! Tests of the replicated state machine: scripts that show each rule, tables of permissions, every
//! bound, and random histories compared with a simple model.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on fails"
)]

mod acl;
mod bounds;
mod digest;
mod model;
mod property;
mod script;
mod stored;
mod watch;
mod words;
mod world;
