//! Between the words and their bytes: the only place that knows the protobuf encoding.
//!
//! Whatever is decoded here is valid: paths follow the rules, values and lists are within their
//! limits, operations are only nested as they may be. Nothing is allocated that the input did not
//! pay for: the number of elements of every list is counted before it is decoded.
//!
//! Decoded data shares the memory of the input. A value that is kept for long out of a large
//! input should be copied, or it keeps the whole input alive.

mod bounds;
mod op;
mod outcome;
mod reply;
mod value;

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use prost::Message;

use crate::error::{ErrorCode, Fault};
use crate::generated as wire;
use crate::ids::Xid;
use crate::message::{ClientMessage, ServerMessage};
use crate::request::Reply;

use value::Invalid;

/// Why bytes could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They are not what they should be, and what follows them cannot be trusted either.
    #[error("malformed message: {0}")]
    Malformed(Cow<'static, str>),
    /// They are a request, but not one that can be carried out. It is answered, and the
    /// connection goes on. Only [`decode_client`] says this.
    #[error("request {} is refused: {detail}", xid.0)]
    BadRequest {
        /// The request's number.
        xid: Xid,
        /// What is wrong with it.
        fault: ErrorCode,
        /// What exactly, for a person.
        detail: String,
    },
}

impl DecodeError {
    pub(crate) fn malformed(what: impl Into<Cow<'static, str>>) -> DecodeError {
        DecodeError::Malformed(what.into())
    }
}

impl From<prost::DecodeError> for DecodeError {
    fn from(error: prost::DecodeError) -> DecodeError {
        DecodeError::malformed(error.to_string())
    }
}

impl From<Invalid> for DecodeError {
    fn from(invalid: Invalid) -> DecodeError {
        DecodeError::Malformed(invalid.detail)
    }
}

/// Appends a client's message to `out`, without a frame.
///
/// An operation that only servers ask for is encoded as one that no server knows.
pub fn encode_client(message: &ClientMessage, out: &mut BytesMut) {
    append(&op::client_to_wire(message), out);
}

/// The client's message in a frame.
///
/// # Errors
/// [`DecodeError::BadRequest`] if it is a request that can only be refused, else
/// [`DecodeError::Malformed`].
pub fn decode_client(frame: Bytes) -> Result<ClientMessage, DecodeError> {
    bounds::check_client(&frame)?;
    op::client_from_wire(wire::ClientMessage::decode(frame)?)
}

/// Appends a server's message to `out`, without a frame.
///
/// A listing that is too large for a client to accept ([`crate::limits::RESPONSE_FRAME_BYTES`],
/// [`crate::limits::RESPONSE_ELEMENTS`]) is replaced by the error [`ErrorCode::TooLarge`].
pub fn encode_server(message: &ServerMessage, out: &mut BytesMut) {
    append(&reply::server_to_wire(message), out);
}

/// The server's message in a frame.
///
/// # Errors
/// If it is not a valid message.
pub fn decode_server(frame: Bytes) -> Result<ServerMessage, DecodeError> {
    bounds::check_server(&frame)?;
    reply::server_from_wire(wire::ServerMessage::decode(frame)?)
}

/// Appends what came of a write to `out`: what the replicated state keeps to answer a retry.
pub fn encode_result(result: &Result<Reply, Fault>, out: &mut BytesMut) {
    append(&outcome::outcome_to_wire(result), out);
}

/// What came of a write.
///
/// # Errors
/// If it is not a valid result.
pub fn decode_result(bytes: Bytes) -> Result<Result<Reply, Fault>, DecodeError> {
    bounds::check_outcome(&bytes)?;
    outcome::outcome_from_wire(wire::Outcome::decode(bytes)?)
}

/// The number of an error, the same everywhere.
pub(crate) fn number_of(code: ErrorCode) -> i32 {
    value::code_to_wire(code).into()
}

/// The error of that number.
pub(crate) fn error_of(number: i32) -> Option<ErrorCode> {
    value::code(number).ok()
}

fn append(message: &impl Message, out: &mut BytesMut) {
    // A slice takes single bytes far faster than a buffer that may have to grow.
    let start = out.len();
    out.resize(start + message.encoded_len(), 0);
    message.encode_raw(&mut &mut out[start..]);
}
