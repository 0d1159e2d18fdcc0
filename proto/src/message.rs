//! What a client and its server say to each other: the native protocol, as plain values.
//!
//! The first message on a connection is [`ClientMessage::Connect`]; the server answers
//! [`ServerMessage::Connected`] or [`ServerMessage::Refused`]. From then on both sides speak
//! whenever they like; responses come in the order of the requests.

use bytes::Bytes;

use crate::error::ErrorCode;
use crate::event::Event;
use crate::ids::{Secret, ServerId, SessionId, WatchId, Xid, Zxid};
use crate::request::{Op, ReadLevel, Response};

/// The version of the native protocol that this code speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// From a client to its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientMessage {
    /// Open a session, or resume one.
    Connect(Connect),
    /// Do this.
    Request {
        /// Its number: one more than the numbered request before it. After a reconnection every
        /// request without an answer is sent again, in order, under the number it had. Zero for
        /// the watches that a client sets again after a reconnection, before anything else; the
        /// answer to those has zero too.
        xid: Xid,
        /// The client has every reply up to here.
        acked: Xid,
        /// How fresh, if it is a read.
        level: ReadLevel,
        /// What.
        op: Op,
    },
    /// I am alive.
    Ping,
}

/// The handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// [`PROTOCOL_VERSION`].
    pub version: u32,
    /// The session to resume; `None` opens a new one.
    pub session: Option<(SessionId, Secret)>,
    /// How long the session shall outlive its last sign of life, in ms.
    pub timeout_ms: u32,
    /// The last transaction the client has seen: the server must not be behind it.
    pub last_zxid: Zxid,
    /// Whether a server that cannot reach a quorum will do.
    pub read_only: bool,
}

/// From a server to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerMessage {
    /// The session is open.
    Connected(Connected),
    /// No session on this connection, which closes now.
    Refused(Refused),
    /// The answer to a request.
    Response(Response),
    /// A watch has something to tell.
    Event {
        /// Which watch.
        watch: WatchId,
        /// What happened.
        event: Event,
        /// The node's new data, if the watch asked for it and there is any; not with `ChildrenChanged`.
        value: Option<Bytes>,
    },
    /// A watch could not be resumed where it left off: events up to here may be missing. Read
    /// again what you care about; the watch goes on from here.
    Gap {
        /// Which watch.
        watch: WatchId,
        /// Everything after this will be reported.
        resumed_at: Zxid,
    },
    /// The server got the ping.
    Pong {
        /// Every event up to here that the connection's watches wait for has been sent before.
        zxid: Zxid,
        /// At most so long ago, in ms, the session gave the latest sign of life that the servers
        /// are known to count from: until its timeout after that it does not expire. `None`: none
        /// is known on this connection.
        counted_ms_ago: Option<u32>,
    },
    /// The server is about to close: go to another one, after this many ms at least.
    GoAway {
        /// How long to wait before dialling.
        backoff_ms: u32,
    },
}

/// A session is open on this connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// The session.
    pub session: SessionId,
    /// What proves it.
    pub secret: Secret,
    /// How long it outlives its last sign of life, in ms, as the server decided.
    pub timeout_ms: u32,
    /// Whether it is the session asked for, not a new one.
    pub resumed: bool,
    /// Whether one can only read: the server has no leader. The session ends when it has one again.
    pub read_only: bool,
    /// Which server this is.
    pub server: ServerId,
    /// The last transaction applied here.
    pub zxid: Zxid,
    /// What a connection may send.
    pub limits: ServerLimits,
}

/// What a server accepts on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// The largest frame, in bytes.
    pub frame_bytes: u32,
    /// The most requests in flight.
    pub in_flight: u32,
}

/// Why there is no session on this connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What is wrong.
    pub code: ErrorCode,
    /// A sentence for a person.
    pub message: String,
    /// How long to wait before dialling again, in ms.
    pub backoff_ms: u32,
}
