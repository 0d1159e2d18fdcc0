//! What clients' bytes mean: one module for each protocol that a server speaks.
//!
//! The set is closed, and each port speaks one of them. They only translate: what a request does is
//! decided behind them, once for all.

pub mod jute;
mod native;
pub mod words;

use bytes::BytesMut;
use conclave_proto::frame::FrameError;
use conclave_proto::{ClientMessage, ErrorCode, ServerMessage, WatchId, Xid, ZPath};

pub use words::Word;

/// The protocol of a connection, with what it has to remember.
#[derive(Debug)]
pub enum Wire {
    /// Conclave's own.
    Native(native::Stage),
    /// ZooKeeper's.
    ZooKeeper(Box<jute::Connection>),
}

/// What came from a client.
#[derive(Debug)]
pub enum Inbound {
    /// Something that can be acted on.
    Message(ClientMessage),
    /// A request that can only be refused, in its turn.
    Invalid {
        /// Its number.
        xid: Xid,
        /// What is wrong.
        code: ErrorCode,
        /// What exactly, for a person.
        detail: String,
    },
    /// A request whose answer the wire knows; it only has to take its turn.
    Known,
    /// A question of an administrator, in place of everything else.
    Word(Word),
}

/// What follows a message to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// More of the conversation.
    GoOn,
    /// The end, as soon as everything is sent.
    Close,
}

/// Why a connection is of no use any more: its bytes do not follow the protocol.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

impl From<FrameError> for Malformed {
    fn from(error: FrameError) -> Malformed {
        Malformed(error.to_string())
    }
}

impl Wire {
    /// Conclave's own protocol.
    pub fn native() -> Wire {
        Wire::Native(native::Stage::New)
    }

    /// ZooKeeper's; the key is random.
    pub fn zookeeper(key: u64) -> Wire {
        Wire::ZooKeeper(Box::new(jute::Connection::new(key)))
    }

    /// Takes the next thing that the client says from what has been received; `None`: more has to
    /// be received first.
    ///
    /// # Errors
    /// If the bytes do not follow the protocol.
    pub fn next(&mut self, received: &mut BytesMut) -> Result<Option<Inbound>, Malformed> {
        match self {
            Wire::Native(stage) => native::next(*stage, received),
            Wire::ZooKeeper(connection) => connection.next(received),
        }
    }

    /// Whether there is more of what the client said last: it is taken without anything more received.
    pub fn goes_on(&self) -> bool {
        match self {
            Wire::Native(_) => false,
            Wire::ZooKeeper(connection) => connection.goes_on(),
        }
    }

    /// Takes a ping, if that is what the client says next of what has been received. It has no order
    /// among requests, and may be taken while those wait.
    pub fn take_ping(&mut self, received: &mut BytesMut) -> bool {
        match self {
            Wire::Native(_) => native::take_ping(received),
            Wire::ZooKeeper(connection) => connection.take_ping(received),
        }
    }

    /// Appends a message to the client.
    pub fn write(&mut self, message: &ServerMessage, out: &mut BytesMut) -> Then {
        match self {
            Wire::Native(stage) => {
                native::write(stage, message, out);
                Then::GoOn
            }
            Wire::ZooKeeper(connection) => connection.write(message, out),
        }
    }

    /// A watch that fires once has fired for an event of which the client may not know.
    pub fn spend(&mut self, watch: WatchId, path: &ZPath) {
        match self {
            // Its clients know their watches by numbers, of which nothing is kept here.
            Wire::Native(_) => {}
            Wire::ZooKeeper(connection) => connection.spend(watch, path),
        }
    }

    /// Whether clients number their requests and send those without an answer again after a
    /// reconnection.
    pub fn is_numbered(&self) -> bool {
        matches!(self, Wire::Native(_))
    }

    /// Whether nothing more is to be read from the client.
    pub fn is_leaving(&self) -> bool {
        match self {
            Wire::Native(_) => false,
            Wire::ZooKeeper(connection) => connection.is_leaving(),
        }
    }
}
