//! A running server: one thread owns the replica and every socket, one writes the log, one makes
//! checkpoints.

pub mod clock;
mod settings;

pub use settings::{Member, Settings, StorageSettings, Timing};
