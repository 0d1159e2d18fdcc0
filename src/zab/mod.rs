//! The broadcast: makes the logs of all servers one history. This is Zab.
//!
//! A pure state machine: [`Peer`] is given [`Input`]s and leaves what has to be done in a
//! [`Ready`], whose fields are in the order in which they must be performed.
//!
//! ```text
//!   Looking ----> Leading:   gather -> promise -> (fetch) -> synchronise -> broadcast
//!      \--------> Following: join   -> promise ------------> synchronise -> stream
//! ```
//!
//! 0. **Election** finds a server that a majority can reach, with the longest history among such.
//!    It is only a candidate; nothing rests on this.
//! 1. **Discovery.** A majority promises the candidate a new epoch, and so not to follow any
//!    earlier leader; with the promises come their histories. The longest of them holds everything
//!    that was ever committed, and becomes the candidate's own.
//! 2. **Synchronisation.** Each follower's log is made equal to the leader's: what it has that the
//!    leader has not is removed, what it lacks is sent, or a snapshot of the state. Once a
//!    majority has that durably, and then the epoch, the leader is established, and its
//!    history is committed.
//! 3. **Broadcast.** The leader appends and streams; what a majority has durably is committed.
//!
//! Safety rests on three rules. A promise or acknowledgement leaves a server only once it would
//! survive a crash ([`Ready::send_after_write`]). Any two majorities share a server. And a server
//! that has promised an epoch acknowledges nothing of an earlier one. Time and chance decide only
//! how soon something happens.
//!
//! | file | what |
//! |---|---|
//! | peer | the machine: dispatch, change of roles, the batch |
//! | core | what a server has in every role: log, epochs, outbox |
//! | log, quorum | what is appended, durable, committed, delivered; who counts |
//! | election | phase 0 |
//! | recovery | phases 1 and 2, from both ends |
//! | broadcast | phase 3, from both ends |
//! | following, leading | the roles: their data, what they do with messages and ticks |
//!
//! docs/ZAB.md has the pictures, the table of every message in every state, and the differences
//! from ZooKeeper.

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

use crate::limits::{DELIVER_ENTRIES, DIFF_WINDOW_BYTES, DIFF_WINDOW_ENTRIES};

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
    /// The most entries that are delivered at once.
    pub deliver_entries: usize,
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
            deliver_entries: DELIVER_ENTRIES,
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
    /// What is known to be committed, if that is after `applied`: it is delivered before a leader
    /// is found. Zero if nothing is known.
    pub committed: Zxid,
    /// Part of what this server once acknowledged is damaged or gone. Until it has been brought in
    /// sync by a leader that was elected without its help, it must not count in any quorum: not in
    /// an election, not in discovery. [`Write::CurrentEpoch`] ends this state on the disk.
    pub needs_repair: bool,
}
