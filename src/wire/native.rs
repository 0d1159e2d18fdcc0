//! Conclave's own protocol: length-prefixed frames of protobuf, see docs/PROTOCOL.md.

use bytes::{Bytes, BytesMut};
use conclave_proto::convert::{self, DecodeError};
use conclave_proto::frame::{FrameError, next_frame, write_frame};
use conclave_proto::{ClientMessage, ErrorCode, ServerMessage, Xid};

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

/// Takes the next message from what has been received, whose frames have at most `max` bytes;
/// `None`: more has to be received first.
///
/// # Errors
/// If the bytes do not follow the protocol.
pub fn next(received: &mut BytesMut, max: usize) -> Result<Option<Inbound>, Malformed> {
    next_frame(received, max)?.map(decode).transpose()
}

fn decode(frame: Bytes) -> Result<Inbound, Malformed> {
    match convert::decode_client(frame) {
        Ok(message) => Ok(Inbound::Message(message)),
        Err(DecodeError::BadRequest { xid, fault, detail }) => {
            Ok(Inbound::Invalid { xid, code: fault, detail })
        }
        Err(DecodeError::Malformed(why)) => Err(Malformed(why.into_owned())),
    }
}

/// Appends a message to a client, in its frame.
pub fn write(message: &ServerMessage, out: &mut BytesMut) {
    write_frame(out, |out| convert::encode_server(message, out));
}
