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
mod reply;
mod txn;
mod value;

use std::borrow::Cow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use prost::Message;

use crate::error::{ErrorCode, Fault};
use crate::generated as wire;
use crate::ids::Xid;
use crate::message::{ClientMessage, ServerMessage};
use crate::node::Identity;
use crate::request::{Reply, Request, Txn};

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

/// A transaction as the body of a log entry.
pub fn encode_txn(txn: &Txn) -> Bytes {
    let mut out = BytesMut::new();
    append(&txn::txn_to_wire(txn), &mut out);
    out.freeze()
}

/// The transaction in a log entry's body.
///
/// # Errors
/// If it is not a valid transaction.
pub fn decode_txn(body: Bytes) -> Result<Txn, DecodeError> {
    bounds::check_txn(&body)?;
    txn::txn_from_wire(wire::Txn::decode(body)?)
}

/// Appends a write and the identities of its client to `out`: what a server forwards to the leader.
pub fn encode_request(request: &Request, identities: &[Identity], out: &mut BytesMut) {
    append(&txn::forwarded_to_wire(request, identities), out);
}

/// The forwarded write and the identities of its client.
///
/// # Errors
/// If it is not a valid write.
pub fn decode_request(bytes: Bytes) -> Result<(Request, Arc<[Identity]>), DecodeError> {
    bounds::check_forwarded(&bytes)?;
    txn::forwarded_from_wire(wire::Forwarded::decode(bytes)?)
}

/// Appends what came of a write to `out`: what the replicated state keeps to answer a retry.
pub fn encode_result(result: &Result<Reply, Fault>, out: &mut BytesMut) {
    append(&txn::outcome_to_wire(result), out);
}

/// What came of a write.
///
/// # Errors
/// If it is not a valid result.
pub fn decode_result(bytes: Bytes) -> Result<Result<Reply, Fault>, DecodeError> {
    bounds::check_outcome(&bytes)?;
    txn::outcome_from_wire(wire::Outcome::decode(bytes)?)
}

fn append(message: &impl Message, out: &mut BytesMut) {
    // A slice takes single bytes far faster than a buffer that may have to grow.
    let start = out.len();
    out.resize(start + message.encoded_len(), 0);
    message.encode_raw(&mut &mut out[start..]);
}
