//! The broadcast: makes the logs of all servers one history.
//!
//! A pure state machine: it is given [`Input`]s and leaves what has to be done in a [`Ready`],
//! whose fields are in the order in which they must be performed.

mod broadcast;
mod core;
mod election;
mod following;
mod leading;
mod log;
mod message;
mod peer;
mod quorum;
mod recovery;
mod role;

use conclave_proto::{Epoch, ServerId, Zxid};

pub use log::{Entry, Position};
pub use message::{
    Ballot, FromFollower, FromLeader, Input, Message, Notice, Ready, SnapshotOrder, Standing,
    SyncStart, Write, WriteToken,
};
pub use peer::{FollowerView, Peer, ProposeError, RoleView};

use crate::limits::{DIFF_WINDOW_BYTES, DIFF_WINDOW_ENTRIES};

/// What a server knows of its ensemble before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which server this is.
    pub id: ServerId,
    /// The servers that vote, this one included unless it observes.
    pub voters: Vec<ServerId>,
    /// The servers that follow the history without a vote.
    pub observers: Vec<ServerId>,
    /// Ticks between two heartbeats of a leader.
    pub heartbeat_ticks: u32,
    /// Ticks of silence after which a leader or a follower is given up.
    pub silence_ticks: u32,
    /// Where the dice for back-off start. It also names this life of the server, so it should
    /// differ from start to start.
    pub seed: u64,
    /// The counter at which a leader starts its next epoch.
    pub counter_limit: u64,
    /// The entries kept in memory, beyond those not yet delivered, to serve followers by DIFF.
    pub window_entries: usize,
    /// The bytes of such entries.
    pub window_bytes: usize,
}

impl Config {
    /// A server of this ensemble, with the usual settings.
    pub fn new(id: ServerId, voters: Vec<ServerId>, observers: Vec<ServerId>, seed: u64) -> Config {
        Config {
            id,
            voters,
            observers,
            heartbeat_ticks: 2,
            silence_ticks: 10,
            seed,
            counter_limit: Zxid::MAX_COUNTER - (1 << 20),
            window_entries: DIFF_WINDOW_ENTRIES,
            window_bytes: DIFF_WINDOW_BYTES,
        }
    }
}

/// What a server finds on its disk when it starts.
#[derive(Clone, Debug, Default)]
pub struct Durable {
    /// See [`Write::AcceptedEpoch`].
    pub accepted_epoch: Epoch,
    /// See [`Write::CurrentEpoch`].
    pub current_epoch: Epoch,
    /// The end of what the state machine has applied durably (its checkpoint).
    pub applied: Position,
    /// Where `entries` begin; at or before `applied`, so that a follower can be served by DIFF.
    pub base: Position,
    /// The log after `base`, oldest first.
    pub entries: Vec<Entry>,
    /// Part of what this server once acknowledged is damaged or gone. Until it has been brought in
    /// sync by a leader that was elected without its help, it must not count in any quorum: not in
    /// an election, not in discovery. [`Write::CurrentEpoch`] ends this state on the disk.
    pub needs_repair: bool,
}
