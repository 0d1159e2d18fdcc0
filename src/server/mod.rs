//! A running server.
//!
//! One thread owns the replica and every socket: the loop, a tokio runtime of that thread alone.
//! One thread writes the log, others make checkpoints and move snapshots while there is need.
//!
//! ```text
//!   clients ──▶ connection tasks ─┐                       ┌─▶ links to servers     (send)
//!   servers ──▶ link tasks ───────┼─▶ inbox ─▶ replica ──┼─▶ log thread           (write)
//!   clock ────▶ pulse ────────────┤        one turn      ├─▶ links, once durable  (send_after_write)
//!   threads ──▶ outcomes ─────────┘                       └─▶ clients' sockets     (clients)
//! ```
//!
//! A turn takes everything that has happened, steps the replica through it, asks once what has to
//! be done, and does that in its written order (`drive`). Under load every hop so carries a batch.

mod admin;
mod audit;
mod clients;
pub mod clock;
mod connection;
mod disk;
mod drive;
mod inbox;
mod listener;
mod metrics;
mod passwords;
mod ports;
mod pulse;
mod reader;
mod settings;
mod start;
mod transfers;
mod visitors;
mod words;

pub use passwords::{hash_password, is_password_hash};
pub use settings::{
    AuditSettings, Hidden, Member, Settings, StorageSettings, Timing, TlsSettings, User,
};
pub use start::{EXIT_CONFIG, EXIT_DATA, EXIT_DIVERGED, EXIT_UNAVAILABLE, StartError, run};

use start::Stop;
