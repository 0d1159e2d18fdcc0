//! Bytes that follow no protocol.

use bytes::{BufMut, BytesMut};
use conclave::wire::{Inbound, Wire};
use conclave_proto::{ErrorCode, Response, ServerMessage, Xid, Zxid};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::speech::{Body, Talk, connect_body, framed};

/// Gives a wire everything, answers whatever it asks, and returns how often it did.
fn feed(wire: &mut Wire, bytes: &[u8], step: usize) -> usize {
    let mut received = BytesMut::new();
    let mut asked = 0;
    for chunk in bytes.chunks(step.max(1)) {
        received.put_slice(chunk);
        loop {
            match wire.next(&mut received) {
                Ok(Some(Inbound::Message(_) | Inbound::Known | Inbound::Invalid { .. })) => {
                    asked += 1;
                    let response = Response {
                        xid: Xid(0),
                        zxid: Zxid::ZERO,
                        result: Err(ErrorCode::NoNode.into()),
                    };
                    wire.write(&ServerMessage::Response(response), &mut BytesMut::new());
                }
                Ok(Some(Inbound::Word(_))) | Err(_) => return asked,
                Ok(None) => break,
            }
        }
        // What waits for the rest of its frame takes the room of what came, not of what was claimed.
        assert!(received.capacity() <= 4 * bytes.len() + 1024);
    }
    asked
}

const OPCODES: [i32; 32] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 100, 101, 102, 103,
    104, 105, 106, 107, 500, -11, -1,
];

proptest! {
    #[test]
    fn any_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..2000), step in 1..300usize) {
        feed(&mut Wire::zookeeper(1), &bytes, step);
        feed(&mut Talk::open().wire, &bytes, step);
    }

    #[test]
    fn any_body_of_any_request_is_answered(
        requests in vec((prop::sample::select(&OPCODES[..]), vec(any::<u8>(), 0..200)), 1..20),
        step in 1..300usize,
    ) {
        let mut bytes = BytesMut::new();
        for (kind, body) in &requests {
            let mut frame = Body::new().int(1).int(*kind);
            frame.0.put_slice(body);
            bytes.put_slice(&framed(&frame.0));
        }
        let asked = feed(&mut Talk::open().wire, &bytes, step);
        prop_assert!(asked >= requests.len());
    }

    /// Small numbers make bodies that are nearly right.
    #[test]
    fn any_body_of_small_numbers_is_answered(
        kind in prop::sample::select(&OPCODES[..]),
        numbers in vec(-2..6i32, 0..60),
    ) {
        let body = numbers.iter().fold(Body::new().int(1).int(kind), |body, n| body.int(*n));
        prop_assert!(feed(&mut Talk::open().wire, &framed(&body.0), 1000) >= 1);
    }
}

/// The most memory that is taken at once to understand some bytes, beside what they came in.
fn memory(bytes: &[u8]) -> u64 {
    let mut wire = Talk::open().wire;
    let mut received = BytesMut::from(bytes);
    let understand = || {
        while let Ok(Some(inbound)) = wire.next(&mut received) {
            drop(inbound);
        }
    };
    allocation_counter::measure(understand).bytes_max
}

proptest! {
    /// Frames whose counts and lengths promise more than there is take no memory for it.
    #[test]
    fn memory_is_bounded_by_what_came(
        kind in prop::sample::select(&OPCODES[..]),
        numbers in vec(prop_oneof![-2..300i32, Just(i32::MAX), any::<i32>()], 0..40),
        filler in vec(prop::sample::select(&[0_u8, 1, 13, 255][..]), 0..20_000),
    ) {
        let mut body = numbers.iter().fold(Body::new().int(1).int(kind), |body, n| body.int(*n));
        body.0.put_slice(&filler);
        let frame = framed(&body.0);
        let most = 4 * frame.len() as u64 + (1 << 20);
        prop_assert!(memory(&frame) <= most, "{} bytes for {}", memory(&frame), frame.len());
    }
}

#[test]
fn lengths_that_cannot_be_end_the_connection() {
    for length in [-1, i32::MIN, 0x10_0000, i32::MAX] {
        let mut received = BytesMut::from(&length.to_be_bytes()[..]);
        assert!(Talk::open().wire.next(&mut received).is_err(), "a frame of {length} bytes");
        assert!(Talk::new().wire.next(&mut received).is_err(), "a handshake of {length} bytes");
    }
    let mut largest = framed(&vec![0; 0xf_ffff]);
    assert!(Talk::open().wire.next(&mut largest).unwrap().is_some());
}

#[test]
fn handshakes_that_are_cut_or_too_long_end_the_connection() {
    let body = connect_body();
    for length in (0..44).chain([46, 60]) {
        let mut bytes = body.0.to_vec();
        bytes.resize(length, 0);
        assert!(Talk::new().wire.next(&mut framed(&bytes)).is_err(), "{length} bytes");
    }
}

#[test]
fn a_request_without_a_header_ends_the_connection() {
    for length in 0..8 {
        let mut frame = framed(&vec![0; length]);
        assert!(Talk::open().wire.next(&mut frame).is_err(), "{length} bytes");
    }
}

#[test]
fn words_are_only_words_in_front() {
    let mut talk = Talk::new();
    let word = talk.wire.next(&mut BytesMut::from(&b"ruok"[..])).unwrap();
    assert!(matches!(word, Some(Inbound::Word(word)) if word.as_str() == "ruok"));
    assert!(Talk::open().wire.next(&mut BytesMut::from(&b"ruok"[..])).is_err());
    assert!(Talk::new().wire.next(&mut BytesMut::from(&b"nope"[..])).is_err());
}
