//! Frames.

use bytes::{BufMut, BytesMut};
use conclave_proto::frame::{FrameError, next_frame, write_frame};
use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    /// However the bytes of a connection are cut up on their way, the same frames come out.
    #[test]
    fn frames_come_back(
        frames in vec(vec(any::<u8>(), 0..50), 0..8),
        piece in 1..40usize,
    ) {
        let mut sent = BytesMut::new();
        for frame in &frames {
            write_frame(&mut sent, |out| out.put_slice(frame));
        }
        let mut received = BytesMut::new();
        let mut out = Vec::new();
        for piece in sent.chunks(piece) {
            received.put_slice(piece);
            while let Some(frame) = next_frame(&mut received, 50).unwrap() {
                out.push(frame.to_vec());
            }
        }
        prop_assert_eq!(out, frames);
        prop_assert!(received.is_empty());
    }
}

/// A frame that is too long is refused by its header, before the rest has come.
#[test]
fn a_long_frame_is_refused_at_once() {
    let mut received = BytesMut::from(&[0, 0, 0, 51][..]);
    let error = FrameError::TooLong { length: 51, max: 50 };
    assert_eq!(next_frame(&mut received, 50), Err(error));
    assert_eq!(error.to_string(), "a frame of 51 bytes, where at most 50 are allowed");

    let mut received = BytesMut::from(&[0xff; 4][..]);
    assert_eq!(
        next_frame(&mut received, 50),
        Err(FrameError::TooLong { length: u32::MAX, max: 50 })
    );
}

/// A frame's bytes are lent from what was received.
#[test]
fn frames_share_memory() {
    let mut received = BytesMut::from(&[0, 0, 0, 2, 7, 8, 0][..]);
    let memory = received.as_ptr_range();
    let frame = next_frame(&mut received, 50).unwrap().unwrap();
    assert_eq!(&frame[..], [7, 8]);
    assert!(memory.contains(&frame.as_ptr()));
    assert_eq!(&received[..], [0]);
}
