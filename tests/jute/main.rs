//! ZooKeeper's protocol, byte by byte: what requests become, what answers look like, and what comes
//! of bytes that follow no protocol.

#![allow(clippy::unwrap_used)]

mod hostile;
mod keeper;
mod speech;
mod translate;
mod watches;
