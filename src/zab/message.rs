//! What goes into and comes out of the protocol.

use conclave_proto::{Epoch, ServerId, Zxid};

use super::log::{Entry, Position};

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// One tick of the clock has passed (how long it is, the driver decides).
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
    /// is empty and starts at this position. A snapshot is put in force in its turn among the
    /// writes: those ordered before are done, and this is told before any later one is reported.
    /// It holds even if the synchronisation has been cancelled meanwhile.
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
    /// Remember that this server has lost what it had: [`super::Durable::needs_repair`].
    NeedsRepair,
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
    /// There is more to be applied: ask for it, without waiting for an [`Input`], as soon as
    /// whatever else has come is dealt with.
    pub more: bool,
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
    /// Between all: where the sender stands in the search for a leader.
    Ballot(Ballot),
    /// Follower to leader: let me follow. Repeated until answered.
    Join {
        /// The number of this attempt: its upper half names the sender's life, its lower half grows.
        join: u64,
        /// The sender's accepted epoch.
        accepted: Epoch,
        /// It has lost part of what it promised or acknowledged: it can only follow in an epoch
        /// that begins after this, without its help.
        damaged: bool,
    },
    /// Leader to follower. Epoch and number let nothing that was said over an earlier connection,
    /// or in an earlier role, be taken for something said now.
    FromLeader {
        /// The leader's epoch.
        epoch: Epoch,
        /// The number that the leader gave to this synchronisation of this follower, unique over
        /// all epochs.
        sync: u64,
        /// What it says.
        body: FromLeader,
    },
    /// Follower to leader.
    FromFollower {
        /// The leader's epoch.
        epoch: Epoch,
        /// The number of the synchronisation, as the leader gave it.
        sync: u64,
        /// What it says.
        body: FromFollower,
    },
}

/// What a leader says to one follower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromLeader {
    /// Promise to follow no earlier epoch than this. A new synchronisation begins.
    NewEpoch {
        /// The attempt to join that it answers.
        join: u64,
    },
    /// Let me have your history, which is longer than mine.
    Fetch {
        /// What the leader has.
        after: Position,
    },
    /// Make your history mine (DIFF, TRUNC or SNAP, and NEWLEADER).
    Sync {
        /// From where.
        start: SyncStart,
        /// Acknowledge the leader once the log holds this durably.
        upto: Position,
    },
    /// I am established and you are in sync: serve.
    UpToDate {
        /// What is committed.
        commit: Zxid,
    },
    /// Append these.
    Propose {
        /// What precedes the entries.
        previous: Position,
        /// At least one.
        entries: Vec<Entry>,
        /// As in [`FromLeader::Commit`].
        commit: Zxid,
        /// Nobody waits for the acknowledgement: it may go with whatever else is said, or with the
        /// next tick.
        delay_ack: bool,
    },
    /// Everything up to here is committed as far as you have it durably: so many others have it
    /// that you make them a majority, if they are not one without you.
    Commit {
        /// How far the others have it.
        commit: Zxid,
    },
    /// I am alive; are you, and do you still follow me?
    Heartbeat {
        /// The number of the question.
        round: u64,
        /// As in [`FromLeader::Commit`].
        commit: Zxid,
    },
    /// This synchronisation is over, join again.
    Restart,
    /// I am leaving; from now on this server leads.
    HandOver {
        /// The new leader.
        to: ServerId,
    },
}

/// What a follower says to its leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromFollower {
    /// Promised, and durably so. This is my history.
    AckEpoch {
        /// Whether the promise was given to this leader and counts.
        promised: bool,
        /// The epoch whose leader's history the log was last made equal to.
        current: Epoch,
        /// The end of the log.
        last: Position,
    },
    /// My history after a position that we both may have.
    History {
        /// What precedes the entries: what was asked for, or the last thing before it that the
        /// follower has.
        after: Position,
        /// What follows; a part, if it is long.
        entries: Vec<Entry>,
        /// The end of the follower's history.
        last: Position,
    },
    /// I do not have the position from which you want to bring me in sync.
    Diverged {
        /// The last one before it that I have.
        have: Position,
    },
    /// My log equals yours up to here, and survives a crash.
    Ack {
        /// How far the log is durable.
        durable: Zxid,
        /// Whether the leader is acknowledged (ACK of NEWLEADER): the history and the epoch are
        /// durable.
        synced: bool,
    },
    /// What you proposed does not follow what I have.
    Gap {
        /// The end of my log.
        last: Position,
    },
    /// I am alive, and follow you.
    HeartbeatAck {
        /// The question that it answers.
        round: u64,
        /// How far the log equals the leader's.
        received: Zxid,
        /// As in [`FromFollower::Ack`].
        durable: Zxid,
        /// As in [`FromFollower::Ack`].
        synced: bool,
        /// Whether [`FromLeader::UpToDate`] has come.
        active: bool,
    },
}

/// How a follower's history is made equal to the leader's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncStart {
    /// Remove everything after this (TRUNC), which may be nothing; then take what is proposed (DIFF).
    After(Position),
    /// Take a snapshot of the state at this position (SNAP); then what is proposed.
    Snapshot(Position),
}

/// Where a server stands in the search for a leader. Nothing in it is a promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ballot {
    /// Names the sender's life: a random number drawn when it started.
    pub life: u64,
    /// Grows with each ballot of that life.
    pub count: u64,
    /// What the sender does.
    pub standing: Standing,
    /// The sender's current epoch.
    pub current: Epoch,
    /// The end of the sender's log.
    pub last: Zxid,
    /// From whom the sender has lately heard; nobody, if it must not vote.
    pub hears: Vec<ServerId>,
}

/// What a server does, as its ballots tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It looks for a leader.
    Looking {
        /// Whom it would follow: itself, perhaps.
        choice: Option<ServerId>,
        /// Whether it would lead, and hears and is heard by a quorum that looks for a leader too.
        electable: bool,
    },
    /// It has a leader that is alive.
    Following {
        /// The leader.
        leader: ServerId,
    },
    /// It leads, or tries to.
    Leading {
        /// Its epoch, once it has one.
        epoch: Epoch,
        /// Whether a quorum has acknowledged it.
        established: bool,
    },
}
