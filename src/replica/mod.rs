//! A whole server without any IO: [`Input`]s go in, a [`Ready`] comes out.
//!
//! It joins the machines of floor 1: the broadcast orders transactions, the tree applies them, the
//! sessions say who is alive, the hub tells watchers and answers clients in order of zxid.

mod apply;
mod audit;
mod authenticate;
mod backlog;
mod client;
mod connect;
mod early;
mod follow;
mod guests;
mod lead;
mod lead_sessions;
mod local;
mod machine;
mod message;
mod pending;
mod reports;
mod requests;
mod status;

use bytes::Bytes;
use conclave_proto::{
    ClientMessage, Fault, Identity, Secret, ServerId, ServerMessage, SessionId, WatchId, Xid,
    ZPath, Zxid,
};

use crate::tree::Excess;
use crate::zab::{self, SnapshotOrder, Write, WriteToken};

pub use crate::session::Claim;
pub use audit::{AclChange, Authentication};
pub use backlog::is_heavy;
pub(crate) use lead::{MOVE, SYSTEM};
pub use machine::Replica;
pub use message::{Forward, Forwarded, PeerMessage, Strain, Touch, Touched};
pub use status::{Follower, Role, Status};

/// A client's connection to this server, numbered by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Everything that can happen to a server.
#[derive(Clone, Debug)]
pub enum Input {
    /// A tick has passed.
    Tick {
        /// A clock that never goes back, in ms.
        now_ms: u64,
        /// The time of day, ms since 1970.
        time_ms: i64,
    },
    /// Another server said something.
    Peer {
        /// Who.
        from: ServerId,
        /// What.
        message: PeerMessage,
    },
    /// The link on which we send to this server is new: what was sent before may be lost.
    LinkUp(ServerId),
    /// The link on which we hear this server, or the one on which we send to it, broke.
    LinkDown(ServerId),
    /// Everything up to and including this [`Ready::token`] is on the disk.
    Written(WriteToken),
    /// A snapshot could not be sent or received.
    SnapshotFailed {
        /// The other end.
        with: ServerId,
        /// The number of the synchronisation.
        sync: u64,
    },
    /// A client connected.
    Opened {
        /// The connection.
        conn: ConnId,
        /// Who the client is, as far as the connection shows: `ip:…` for instance.
        identities: Vec<Identity>,
        /// A random id and secret, in case it opens a session.
        fresh: (SessionId, Secret),
        /// Whether the client numbers its requests and sends those without an answer again after
        /// a reconnection. If it does not, the connection is closed when the fate of one of its
        /// requests is not known.
        numbered: bool,
    },
    /// A client said something.
    Client {
        /// The connection.
        conn: ConnId,
        /// What.
        message: ClientMessage,
    },
    /// Something has come from a client that is not read on yet, perhaps because of what it waits for.
    SignOfLife(ConnId),
    /// A client asked something that cannot be understood or is over a limit, so that it has no
    /// [`ClientMessage`]: it takes its place among the requests and is answered in its turn.
    Invalid {
        /// The connection.
        conn: ConnId,
        /// The request's number.
        xid: Xid,
        /// What is wrong.
        fault: Fault,
    },
    /// A client asked to be given identities of a scheme that is checked outside, and this came of
    /// it; the request takes its place among the others and is answered in its turn.
    Checked {
        /// The connection.
        conn: ConnId,
        /// The request's number.
        xid: Xid,
        /// Whom it claims to be; with an empty id, nobody that could be named.
        claimed: Identity,
        /// The identities it has shown.
        result: Result<Vec<Identity>, Fault>,
    },
    /// A client's connection is closed.
    Closed(ConnId),
    /// The state of this server's disk is another one.
    Strain(Strain),
    /// The server is about to stop: give leadership away and send the clients elsewhere.
    HandOver,
}

/// Everything that has to be done, in the order of the fields.
#[derive(Debug, Default)]
pub struct Ready {
    /// Send these at once.
    pub send: Vec<(ServerId, PeerMessage)>,
    /// Tell clients, in order: nothing of it hangs on the writes that follow.
    pub clients: Vec<(ConnId, ToClient)>,
    /// Then put these on the disk, all with one fsync, and report the token.
    pub write: Vec<Write>,
    /// The name of these writes (of the last ones, if there are none).
    pub token: WriteToken,
    /// Send these once the writes of this and every earlier `Ready` are durable.
    pub send_after_write: Vec<(ServerId, PeerMessage)>,
    /// Snapshots to transfer; a view for one to send is opened before the next [`Input`].
    pub snapshots: Vec<SnapshotOrder>,
    /// There is more to do: call [`Replica::ready`] again, without waiting for an [`Input`], as
    /// soon as whatever else has come is dealt with.
    pub more: bool,
    /// Facts to log and measure.
    pub notices: Vec<Notice>,
}

/// What a client's connection has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToClient {
    /// Send this.
    Message(ServerMessage),
    /// Its watch of that number on that path, which fires once, has fired for an event of which it may
    /// not know: it is told nothing, and the watch is gone.
    Spent(WatchId, ZPath),
    /// Its identities take so many bytes: as many as each of its writes takes more than it shows.
    Identities(usize),
    /// Close once everything before is sent.
    Close,
    /// Close at once: there is more for it than a client that reads would let pile up.
    Drop,
}

/// A fact about the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The broadcast's own.
    Zab(zab::Notice),
    /// This server's state differs from the leader's after the same transaction: a fault of the
    /// hardware or of the software. The server must stop before it answers anybody.
    Diverged {
        /// After which transaction.
        zxid: Zxid,
        /// This server's digest.
        ours: u64,
        /// The leader's.
        leaders: u64,
    },
    /// A committed transaction cannot be carried out by this version of the software. The server
    /// must stop and be upgraded; it has not applied it.
    NotUnderstood {
        /// Which.
        zxid: Zxid,
        /// What is wrong with it.
        why: String,
    },
    /// The leader proposed the end of sessions that were silent for too long.
    Expired {
        /// How many.
        sessions: usize,
    },
    /// A write that this leader proposed went beyond a quota.
    OverQuota(Excess),
    /// A client has shown who it is, or has not.
    Authentication(Authentication),
    /// A client asked to change a node's ACL.
    AclChange(Box<AclChange>),
}

/// What a server knows before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// For the broadcast; its seed must differ from start to start, for it also names this
    /// server's streams and marks.
    pub zab: zab::Config,
    /// The time between two ticks, in ms.
    pub tick_ms: u32,
    /// The shortest session timeout granted, in ms.
    pub session_timeout_min_ms: u32,
    /// The longest session timeout granted, in ms.
    pub session_timeout_max_ms: u32,
    /// Whoever has this identity of the scheme `digest` (`user:hash`) may do everything.
    pub super_digest: Option<String>,
    /// The longest that a write waits for its turn at the leader before it is refused, in ms;
    /// `None`: as long as it takes.
    pub throttle_ms: Option<u32>,
    /// Whether clients that are content with it may read here while there is no leader.
    pub read_only: bool,
    /// Whether a new session is known to this server alone until it writes.
    pub local_sessions: bool,
    /// The bytes of answers to reads after which a turn leaves other reads to the next one; at least 1.
    pub turn_answers_bytes: usize,
    /// The nodes that transactions change or count after which a turn leaves other transactions to the
    /// next one; at least 1.
    pub turn_nodes: usize,
    /// So many committed transactions are applied before what other servers and the disk are to do; if
    /// there are more, those begin first.
    pub applied_before_others: usize,
    /// What `/zookeeper/config` shows of the members; `None`: whatever is there.
    pub members_text: Option<Bytes>,
}

impl Config {
    /// How often signs of life are reported to the leader, in ms. Four reports in the shortest
    /// timeout, and three signs of life: none is missed even if one of each is late.
    fn report_interval_ms(&self) -> u64 {
        u64::from(self.session_timeout_min_ms / 4)
    }
}
