//! The words of Conclave: what servers, clients and the command line say to each other.
//!
//! These are plain Rust types. How they become bytes is the business of [`convert`] (protobuf,
//! between clients and servers), of [`codec`] (between servers, and in their logs) and of the
//! ZooKeeper front end of the server; only `convert` names generated code.

pub mod codec;
pub mod convert;
pub mod error;
pub mod event;
pub mod frame;
pub mod ids;
pub mod limits;
pub mod message;
pub mod names;
pub mod node;
pub mod path;
pub mod request;

/// What prost makes of client.proto and outcome.proto; tests/generated.rs keeps it fresh.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines)]
mod generated {
    include!("generated/conclave.rs");
}

pub use error::{ErrorCode, Fault};
pub use event::{Event, EventKind, WatchKind};
pub use ids::{Credentials, Epoch, Secret, ServerId, SessionId, WatchId, Xid, Zxid};
pub use message::{ClientMessage, ServerMessage};
pub use names::Names;
pub use node::{Acl, CreateMode, Identity, Lifetime, Perms, Stat};
pub use path::{PathError, ZPath};
pub use request::{Op, Reply, Request, Response, Txn};
