//! What badly behaved clients, peers and configurations can do to a server: nothing. Each of them
//! gets a typed error or a closed connection and is counted; a well-behaved client goes on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admin;
#[path = "../common/certificates.rs"]
mod certificates;
mod client;
mod clients;
mod document;
#[path = "../common/frames.rs"]
#[allow(dead_code, reason = "it has more than is needed here")]
mod frames;
mod jute;
mod links;
mod many;
mod passwords;
mod peers;
#[path = "../common/ports.rs"]
mod ports;
#[path = "../differential/random.rs"]
#[allow(dead_code, reason = "it has more than is needed here")]
mod random;
mod server;
mod setup;
mod throttle;
mod tls;
mod trust;
mod zookeeper;
