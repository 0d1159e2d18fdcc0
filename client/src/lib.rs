//! The Rust client of Conclave.

mod builder;
mod chroot;
mod detach;
mod dial;
mod dice;
mod driver;
mod error;
mod handle;
mod limits;
mod list;
mod mailbox;
mod multi;
mod queue;
mod request;
mod session;
mod shared;
mod state;
mod watch;

pub use builder::Builder;
pub use chroot::IntoPath;
pub use error::{Error, Operation};
pub use handle::Client;
pub use list::{Children, Entries, List, Page};
pub use multi::{Multi, MultiOutcome, MultiRead};
pub use request::{Create, Created, Node, Pending, Read, SetWatch, Write};
pub use state::{State, States};
pub use watch::{Watch, WatchItem};

pub use conclave_proto as proto;
pub use conclave_proto::request::{Entry, Reply, Test};
pub use conclave_proto::{
    Acl, CreateMode, ErrorCode, EventKind, Fault, Identity, Lifetime, PathError, Perms, ServerId,
    SessionId, Stat, WatchKind, ZPath, Zxid,
};
