//! Valid frames of every request, and what is left of them when something went wrong on the way.
//!
//! It is the same run each time. `FUZZ_FRAMES` and `FUZZ_SEED` make it longer, or another one.

use bytes::{BufMut, BytesMut};
use conclave::wire::{Inbound, Wire};
use conclave_proto::message::ServerMessage;
use conclave_proto::{ClientMessage, ErrorCode, Fault, Reply, Response, Stat, Xid, Zxid};

use crate::frames::{Frames, REQUESTS};
use crate::speech::Talk;

/// How many frames one conversation has.
const FRAMES: usize = 8;

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// An answer that may come to anything that is asked.
fn answer(frames: &mut Frames) -> Result<Reply, Fault> {
    Err(match frames.0.below(4) {
        0 => return Ok(Reply::Done),
        1 => return Ok(Reply::Stat(Stat::default())),
        2 => Fault { code: ErrorCode::NoNode, index: 0 },
        _ => Fault { code: ErrorCode::NoAuth, index: 3 },
    })
}

/// Gives a wire these bytes and answers what it asks. Returns how many requests it understood.
fn converse(wire: &mut Wire, bytes: &[u8], frames: &mut Frames) -> usize {
    let (mut received, mut understood) = (BytesMut::new(), 0);
    let step = 1 + frames.0.below(bytes.len().max(1));
    for chunk in bytes.chunks(step) {
        received.put_slice(chunk);
        loop {
            match wire.next(&mut received) {
                Ok(Some(Inbound::Message(ClientMessage::Ping))) => understood += 1,
                Ok(Some(Inbound::Message(ClientMessage::Request { .. }) | Inbound::Known)) => {
                    understood += 1;
                    let result = answer(frames);
                    let response = Response { xid: Xid(0), zxid: Zxid::ZERO, result };
                    let mut out = BytesMut::new();
                    wire.write(&ServerMessage::Response(response), &mut out);
                    is_well_formed(&out);
                }
                Ok(Some(other)) => panic!("there is a session, and it says {other:?}"),
                Ok(None) => break,
                Err(_) => return understood,
            }
        }
    }
    understood
}

/// Whether it is a sequence of whole frames.
fn is_well_formed(mut out: &[u8]) {
    while let Some((length, rest)) = out.split_first_chunk() {
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap();
        assert!(length >= 16, "an answer has a header");
        out = &rest[length..];
    }
    assert!(out.is_empty());
}

/// The frames that are spoiled are good ones: each is understood as it is.
#[test]
fn what_is_not_spoiled_is_understood() {
    let mut frames = Frames::new(1);
    for (kind, _) in REQUESTS {
        for _ in 0..50 {
            let mut received = BytesMut::from(&frames.of(kind)[..]);
            let mut talk = Talk::open();
            let inbound = talk.wire.next(&mut received).unwrap().unwrap();
            let asks = matches!(inbound, Inbound::Message(_));
            // These are answered by the wire: there is nothing to ask for, or no such request.
            let is_known = matches!(kind, -1 | 0 | 13 | 16 | 17 | 20 | 99 | 102 | 504);
            let is_rearmed = matches!(kind, 101 | 105) && matches!(inbound, Inbound::Known);
            assert!(asks != is_known || is_rearmed, "request {kind} became {inbound:?}");
        }
    }
}

#[test]
fn what_is_spoiled_does_no_harm() {
    let mut frames = Frames::new(variable("FUZZ_SEED", 1));
    let mut understood = 0;
    for _ in 0..variable("FUZZ_FRAMES", 200_000) / FRAMES as u64 {
        let bytes: Vec<u8> = (0..FRAMES).flat_map(|_| frames.bad()).collect();
        understood += converse(&mut Talk::open().wire, &bytes, &mut frames);
    }
    assert!(understood > 10_000, "most of it is looked at: {understood}");
}

#[test]
fn what_is_spoiled_takes_no_more_memory_than_what_is_not() {
    let mut frames = Frames::new(variable("FUZZ_SEED", 2));
    for _ in 0..5_000 {
        let bytes: Vec<u8> = (0..FRAMES).flat_map(|_| frames.bad()).collect();
        let (mut wire, mut received) = (Talk::open().wire, BytesMut::from(&bytes[..]));
        let understand = || {
            while let Ok(Some(inbound)) = wire.next(&mut received) {
                drop(inbound);
            }
        };
        let most = allocation_counter::measure(understand).bytes_max;
        assert!(most <= 16 * bytes.len() as u64 + (8 << 10), "{most} bytes for {}", bytes.len());
    }
}

/// Handshakes, in which there is little that can be right.
#[test]
fn handshakes_that_are_spoiled_do_no_harm() {
    let mut frames = Frames::new(3);
    let good = crate::speech::framed(&crate::speech::connect_body().0);
    for _ in 0..20_000 {
        let mut bytes = good.to_vec();
        let at = frames.0.below(bytes.len());
        match frames.0.below(3) {
            0 => bytes[at] ^= 1 << frames.0.below(8),
            1 => bytes.truncate(at),
            _ => bytes = frames.bad(),
        }
        let mut received = BytesMut::from(&bytes[..]);
        match Talk::new().wire.next(&mut received) {
            Ok(Some(Inbound::Message(ClientMessage::Connect(_)) | Inbound::Word(_)) | None)
            | Err(_) => {}
            Ok(Some(other)) => panic!("{bytes:?} is {other:?}"),
        }
    }
}
