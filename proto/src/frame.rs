//! Frames: four bytes of length, most significant first, then that many bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The bytes of a frame's length.
pub const HEADER_BYTES: usize = 4;

/// Why the bytes of a connection cannot be cut into frames. The connection is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame is longer than the connection allows.
    #[error("a frame of {length} bytes, where at most {max} are allowed")]
    TooLong {
        /// Its length in bytes.
        length: u32,
        /// The most that is allowed, in bytes.
        max: usize,
    },
}

/// Takes the next whole frame from what has been received; `None`: more has to be received first.
///
/// Nothing is copied and nothing is reserved: the frame shares the memory of `received`. It keeps
/// that memory alive, so whoever keeps a small part of a frame for long should copy it.
///
/// # Errors
/// If the frame is longer than `max`; nothing is taken, and it is known before any of the frame's
/// bytes have come.
pub fn next_frame(received: &mut BytesMut, max: usize) -> Result<Option<Bytes>, FrameError> {
    let Some(header) = received.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes(*header);
    let frame = match usize::try_from(length) {
        Ok(frame) if frame <= max => frame,
        _ => return Err(FrameError::TooLong { length, max }),
    };
    if received.len() - HEADER_BYTES < frame {
        return Ok(None);
    }
    received.advance(HEADER_BYTES);
    Ok(Some(received.split_to(frame).freeze()))
}

/// The bytes of the first frame and its header, by what its length claims; `None` while that is not
/// known.
pub fn frame_bytes(received: &[u8]) -> Option<usize> {
    let header = received.first_chunk::<HEADER_BYTES>()?;
    let length = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX);
    Some(length.saturating_add(HEADER_BYTES))
}

/// How many bytes have to come until the first frame is complete, by what its length claims; 0 while
/// that is not known.
pub fn missing_bytes(received: &[u8]) -> usize {
    frame_bytes(received).map_or(0, |bytes| bytes.saturating_sub(received.len()))
}

/// Appends a frame that holds what `body` appends.
///
/// # Panics
/// If the body has 4 GiB or more; every message is bounded far below that.
pub fn write_frame(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    body(out);
    let length = u32::try_from(out.len() - start - HEADER_BYTES).expect("a frame is under 4 GiB");
    out[start..start + HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
}
