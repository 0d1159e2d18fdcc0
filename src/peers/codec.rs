//! What servers say to each other, as bytes.

use bytes::{Bytes, BytesMut};
use conclave_proto::convert::DecodeError;

use crate::replica::PeerMessage;

/// Appends a message to `out`, without a frame.
pub fn encode(message: &PeerMessage, out: &mut BytesMut) {
    let _ = (message, out);
    unimplemented!()
}

/// The message in a frame.
///
/// # Errors
/// If it is not a valid message.
pub fn decode(frame: Bytes) -> Result<PeerMessage, DecodeError> {
    let _ = frame;
    unimplemented!()
}
