//! One table for both wires: the same commands, given to one server in Conclave's own protocol and
//! in ZooKeeper's, must be answered the same, and the same must be told to whoever watches.
//!
//! `scripts/*.txt` are the tables; `UPDATE_EXPECT=1` writes what comes of the commands anew.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on fails"
)]

mod acl;
mod answer;
#[path = "../common/certificates.rs"]
#[allow(dead_code, reason = "it has more than is needed here")]
mod certificates;
mod connect;
#[path = "../differential/jute.rs"]
mod jute;
mod local;
mod minority;
mod native;
mod script;
#[path = "../abuse/server.rs"]
#[allow(dead_code, reason = "it has more than is needed here")]
mod server;
#[path = "../tree/words.rs"]
#[allow(dead_code, reason = "it has more than is needed here")]
mod words;
mod world;
mod zookeeper;
