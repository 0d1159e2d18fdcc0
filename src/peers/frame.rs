//! What goes over a link once both ends know each other.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use conclave_proto::frame::{FrameError, next_frame, write_frame};

use crate::limits::{PEER_FRAME_BYTES, SNAPSHOT_CHUNK_BYTES};
use crate::replica::PeerMessage;

use super::codec;

/// The room made for what comes next on a link.
pub(super) const READ_BYTES: usize = 64 << 10;

const MESSAGE: u8 = 1;
const CHUNK: u8 = 2;
const CREDIT: u8 = 3;

/// What one server sends to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Something for the replica.
    Message(PeerMessage),
    /// A part of a snapshot.
    Chunk(Chunk),
    /// To the sender of a snapshot: so many of its chunks have been dealt with.
    Credit {
        /// The number of the synchronisation.
        sync: u64,
        /// How many chunks so far.
        chunks: u32,
    },
}

/// A part of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The number of the synchronisation.
    pub sync: u64,
    /// Its place in the snapshot, from 0.
    pub index: u32,
    /// Whether it is the last.
    pub last: bool,
    /// What the storage made.
    pub bytes: Bytes,
}

pub(super) fn write_message(out: &mut BytesMut, message: &PeerMessage) {
    write_frame(out, |out| {
        out.put_u8(MESSAGE);
        codec::encode(message, out);
    });
}

pub(super) fn write_chunk(out: &mut BytesMut, chunk: &Chunk) {
    write_frame(out, |out| {
        out.put_u8(CHUNK);
        out.put_u64(chunk.sync);
        out.put_u32(chunk.index);
        out.put_u8(chunk.last.into());
        out.extend_from_slice(&chunk.bytes);
    });
}

pub(super) fn write_credit(out: &mut BytesMut, sync: u64, chunks: u32) {
    write_frame(out, |out| {
        out.put_u8(CREDIT);
        out.put_u64(sync);
        out.put_u32(chunks);
    });
}

/// Takes the next whole frame from what has been received.
pub(super) fn next(received: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
    next_frame(received, PEER_FRAME_BYTES)
}

/// What a frame says.
pub(super) fn decode(mut frame: Bytes) -> Result<Frame, String> {
    match frame.try_get_u8().map_err(|_| "an empty frame".to_owned())? {
        MESSAGE => codec::decode(&frame).map(Frame::Message).map_err(|error| error.to_string()),
        CHUNK => decode_chunk(frame).ok_or_else(|| "a chunk of a wrong size".to_owned()),
        CREDIT => decode_credit(frame).ok_or_else(|| "a credit of a wrong size".to_owned()),
        kind => Err(format!("a frame of an unknown kind, {kind}")),
    }
}

fn decode_chunk(mut frame: Bytes) -> Option<Frame> {
    let sync = frame.try_get_u64().ok()?;
    let index = frame.try_get_u32().ok()?;
    let last = match frame.try_get_u8().ok()? {
        0 => false,
        1 => true,
        _ => return None,
    };
    (frame.len() <= SNAPSHOT_CHUNK_BYTES).then_some(Frame::Chunk(Chunk {
        sync,
        index,
        last,
        bytes: frame,
    }))
}

fn decode_credit(mut frame: Bytes) -> Option<Frame> {
    let sync = frame.try_get_u64().ok()?;
    let chunks = frame.try_get_u32().ok()?;
    frame.is_empty().then_some(Frame::Credit { sync, chunks })
}
