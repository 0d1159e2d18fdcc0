//! What a server keeps on its disk: the log, both epochs, and the tree.
//!
//! ```text
//!   entries ──> log (segments, one fdatasync for whatever has queued up) ──> acknowledged
//!   committed ──> active layer ──freeze──> frozen layers ──checkpoint──> LMDB
//!                      reads look here,      then here,          then here
//! ```
//!
//! A checkpoint is one LMDB transaction that holds an exact cut: nodes, sessions and the position
//! of the last transaction applied. Recovery opens it and replays the log from there. Every format
//! is described byte by byte in docs/STORAGE.md.

mod codec;
mod disk;
mod env;
mod error;
mod files;
mod gaps;
mod home;
mod key;
mod layer;
mod listings;
mod log;
mod nodes;
mod open;
mod pages;
mod recovery;
mod segment;
mod snapshot;
mod spare;
mod tail;
mod verify;

use std::path::PathBuf;

use conclave_proto::ServerId;

use crate::zab::Durable;

pub use disk::{Probe, Step, Watch};
pub use error::{EXIT_STORAGE, StoreError, fatal};
pub use home::{Home, Space};
pub use log::LogWriter;
pub use nodes::{Checkpointed, Frozen, Scrub, StoreNodes, retire};
pub use open::open;
pub use snapshot::{Installed, Received, SnapshotReader, SnapshotWriter};

/// Whose data a directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The name of the ensemble.
    pub cluster: String,
    /// The server.
    pub server: ServerId,
}

/// How the disk is used.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the log is kept; `None`: in the directory itself.
    pub log_dir: Option<PathBuf>,
    /// The address space reserved for the tree, and so the most it may grow to, in bytes.
    pub map_bytes: usize,
    /// The size of a segment of the log, in bytes. The first ones of a new log are smaller.
    pub segment_bytes: u64,
    /// Whether there are other members from which damage can be repaired. If not, a damaged
    /// directory is refused.
    pub repairable: bool,
    /// Whether the server has run before and has lost what it had. An empty directory is then that
    /// of a damaged server: see [`crate::zab::Durable::needs_repair`].
    pub lost: bool,
    /// Where a test watches the disk.
    pub probe: Option<Probe>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            log_dir: None,
            map_bytes: 64 << 30,
            segment_bytes: 64 << 20,
            repairable: true,
            lost: false,
            probe: None,
        }
    }
}

/// An open directory: each part is owned by one thread from here on.
#[derive(Debug)]
pub struct Opened {
    /// For the log thread.
    pub log: LogWriter,
    /// For the loop: the state as of the last checkpoint, `durable.applied`.
    pub nodes: StoreNodes,
    /// What the protocol finds on the disk.
    pub durable: Durable,
    /// What recovery did, to be logged.
    pub report: RecoveryReport,
    /// For everything else.
    pub home: Home,
}

/// What recovery found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The directory was empty: this server has never run.
    pub new: bool,
    /// The bytes at the end of the log that a crash had left half written, and that were cut off.
    pub cut_bytes: u64,
    /// What was found damaged, a sentence each. If there is any, `Durable::needs_repair` is set.
    pub damage: Vec<String>,
}
