//! ZooKeeper's protocol, byte by byte: what requests become, what answers look like, and what comes
//! of bytes that follow no protocol.

#![allow(clippy::unwrap_used)]

mod documented;
#[path = "../common/frames.rs"]
mod frames;
mod fuzz;
mod hostile;
mod keeper;
#[path = "../differential/random.rs"]
#[allow(dead_code, reason = "it has more than is needed here")]
mod random;
mod speech;
mod translate;
mod watches;
