//! What goes into and comes out of the protocol.

use bytes::Bytes;
use conclave_proto::{Epoch, ServerId, Zxid};

use super::log::{Entry, Position};

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// One tick of the clock has passed (`Config::tick_ms`).
    Tick,
    /// A message came.
    Message {
        /// From whom.
        from: ServerId,
        /// What.
        message: Message,
    },
    /// The link on which we send to this server is new: what was sent before may be lost.
    LinkUp(ServerId),
    /// The link on which we hear this server, or the one on which we send to it, broke.
    LinkDown(ServerId),
    /// Everything up to and including this [`Ready::token`] is on the disk.
    Written(WriteToken),
    /// A snapshot that was received from the leader is on the disk and is the state now; the log
    /// is empty and starts at this position.
    SnapshotInstalled {
        /// The number of the synchronisation, from [`SnapshotOrder::Receive`].
        sync: u64,
        /// Where the log goes on.
        at: Position,
    },
    /// A snapshot could not be sent or received; the synchronisation begins again.
    SnapshotFailed {
        /// The other end.
        with: ServerId,
        /// The number of the synchronisation.
        sync: u64,
    },
    /// Give leadership away, or leave: the server is about to stop.
    HandOver,
}

/// Names a batch of writes: they grow by one with each [`Ready`] that writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteToken(pub u64);

/// What has to be put on the disk, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Append these entries to the log.
    Append(Vec<Entry>),
    /// Remove everything after this position from the log.
    Truncate(Position),
    /// Remember that no leader of an earlier epoch than this will be followed.
    AcceptedEpoch(Epoch),
    /// Remember that the log is the history of this epoch's leader.
    CurrentEpoch(Epoch),
}

/// What has to be done, in the order of the fields.
#[derive(Debug, Default)]
pub struct Ready {
    /// Send these at once.
    pub send: Vec<(ServerId, Message)>,
    /// Then put these on the disk, all with one fsync, and report the token.
    pub write: Vec<Write>,
    /// The name of these writes (of the last ones, if there are none).
    pub token: WriteToken,
    /// Send these once the writes of this and every earlier `Ready` are durable.
    pub send_after_write: Vec<(ServerId, Message)>,
    /// Apply these, in order: they are committed.
    pub committed: Vec<Entry>,
    /// Snapshots to send or receive. A cut is the state right after `committed` is applied, so the
    /// view must be opened before the next [`Input`].
    pub snapshots: Vec<SnapshotOrder>,
    /// What changed, for those who log, measure and answer clients.
    pub notices: Vec<Notice>,
}

/// A snapshot to transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotOrder {
    /// Send the state as it is now to this server.
    Send {
        /// To whom.
        to: ServerId,
        /// The number of the synchronisation; each chunk carries it.
        sync: u64,
        /// What the state is.
        at: Position,
    },
    /// Expect a snapshot from the leader: throw away what may have come of an earlier one.
    Receive {
        /// From whom.
        from: ServerId,
        /// The number of the synchronisation.
        sync: u64,
        /// What the state will be.
        at: Position,
    },
    /// The synchronisation is over before its end: drop the transfer.
    Cancel {
        /// The other end.
        with: ServerId,
        /// The number of the synchronisation.
        sync: u64,
    },
}

/// A fact about this server's part in the ensemble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It looks for a leader; whatever was proposed or forwarded and not committed may be lost.
    Looking {
        /// Why, in a few words.
        why: &'static str,
    },
    /// It follows (or observes) this leader and is in sync with it.
    Following {
        /// The leader.
        leader: ServerId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// It leads: its whole log is committed and it may propose.
    Leading {
        /// Its epoch.
        epoch: Epoch,
    },
    /// It has handed over, or needs not to: the process may end.
    HandedOver,
    /// Every linearizable read asked before this number was given is covered by this commit.
    ReadConfirmed {
        /// The number that `Peer::confirm_leadership` returned.
        round: u64,
        /// What must be applied before the read.
        commit: Zxid,
    },
}

/// A message between two servers' protocol machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// To be defined with the protocol.
    Placeholder(Bytes, Position),
}
