//! Conclave's own protocol: length-prefixed frames of protobuf, see docs/PROTOCOL.md.

use std::sync::LazyLock;

use bytes::{Buf, Bytes, BytesMut};
use conclave_proto::convert::{self, DecodeError};
use conclave_proto::frame::{next_frame, write_frame};
use conclave_proto::{ClientMessage, ServerMessage};

use crate::limits::{FRAME_BYTES, HANDSHAKE_FRAME_BYTES};

use super::{Inbound, Malformed};

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// There is no session yet.
    New,
    /// There is one.
    Open,
}

/// Takes the next message from what has been received; `None`: more has to be received first.
///
/// # Errors
/// If the bytes do not follow the protocol.
pub(super) fn next(stage: Stage, received: &mut BytesMut) -> Result<Option<Inbound>, Malformed> {
    let max = match stage {
        Stage::New => HANDSHAKE_FRAME_BYTES,
        Stage::Open => FRAME_BYTES,
    };
    next_frame(received, max)?.map(decode).transpose()
}

/// Takes a ping, if that comes next.
pub(super) fn take_ping(received: &mut BytesMut) -> bool {
    static PING: LazyLock<BytesMut> = LazyLock::new(|| {
        let mut ping = BytesMut::new();
        write_frame(&mut ping, |out| convert::encode_client(&ClientMessage::Ping, out));
        ping
    });
    let takes = received.starts_with(&PING);
    if takes {
        received.advance(PING.len());
    }
    takes
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
pub(super) fn write(stage: &mut Stage, message: &ServerMessage, out: &mut BytesMut) {
    if matches!(message, ServerMessage::Connected(_)) {
        *stage = Stage::Open;
    }
    write_frame(out, |out| convert::encode_server(message, out));
}
