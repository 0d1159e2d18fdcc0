//! Bytes from an enemy: no panic, and no more memory than they pay for.

use std::fmt::Debug;

use bytes::Bytes;
use conclave_proto::codec::{decode_txn, encode_txn};
use conclave_proto::convert::{
    decode_client, decode_result, decode_server, encode_client, encode_server,
};
use conclave_proto::limits::{
    ACL_LINES, FRAME_BYTES, MULTI_OPS, REQUEST_ACL_LINES, RESPONSE_FRAME_BYTES,
};
use conclave_proto::request::ReadLevel;
use conclave_proto::{
    Acl, ClientMessage, CreateMode, Op, Request, ServerId, SessionId, Txn, Xid, ZPath, Zxid,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use prost::encoding::encode_varint;

use crate::golden;
use crate::round_trip::bytes;
use crate::values;

/// Gives the bytes to every decoder.
fn decode_as_everything(input: &[u8]) {
    let input = Bytes::copy_from_slice(input);
    if let Ok(message) = decode_client(input.clone()) {
        assert_eq!(decode_client(bytes(|out| encode_client(&message, out))), Ok(message));
    }
    if let Ok(message) = decode_server(input.clone()) {
        assert_eq!(decode_server(bytes(|out| encode_server(&message, out))), Ok(message));
    }
    if let Ok(txn) = decode_txn(&input) {
        // There is one encoding of each transaction.
        assert_eq!(encode_txn(&txn), input);
    }
    drop(decode_result(input));
}

proptest! {
    #[test]
    fn garbage_does_no_harm(input in vec(any::<u8>(), 0..200)) {
        decode_as_everything(&input);
    }

    #[test]
    fn truncated_and_damaged_messages_do_no_harm(
        message in values::client_message(),
        answer in values::server_message(),
        txn in values::txn(),
        cut in any::<Index>(),
        damage in vec((any::<Index>(), any::<u8>()), 0..4),
    ) {
        let messages = [
            bytes(|out| encode_client(&message, out)),
            bytes(|out| encode_server(&answer, out)),
            encode_txn(&txn),
        ];
        for message in messages {
            let mut input = message.to_vec();
            decode_as_everything(&input[..cut.index(input.len())]);
            for (at, byte) in &damage {
                let at = at.index(input.len());
                input[at] = *byte;
            }
            decode_as_everything(&input);
        }
    }
}

/// A field of a message, as protobuf writes it.
pub(crate) fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_varint(u64::from(number) << 3 | 2, &mut out);
    encode_varint(content.len() as u64, &mut out);
    out.extend_from_slice(content);
    out
}

/// A request whose operation has this number and content.
pub(crate) fn request(op: u8, content: &[u8]) -> Vec<u8> {
    field(2, &field(5, &field(op, content)))
}

/// The most memory in use at once while the bytes are decoded.
fn peak<T, E: Debug>(input: &Bytes, decode: impl Fn(Bytes) -> Result<T, E>) -> u64 {
    let input = input.clone();
    allocation_counter::measure(|| drop(decode(input))).bytes_max
}

/// What a frame of this many bytes may ask for.
fn allowance(frame: usize) -> u64 {
    4 * frame as u64 + (1 << 20)
}

/// Each of these would take 50 times its size or more if it were simply decoded.
#[test]
fn a_request_cannot_ask_for_more_memory_than_it_pays_for() {
    let room = FRAME_BYTES - 64;
    let element =
        |number, content: &[u8]| field(number, content).repeat(room / (2 + content.len()));
    let create_with_two_lines = field(1, &field(3, &[]).repeat(2));
    let nested = (0..200).fold(Vec::new(), |inner, _| field(2, &field(9, &inner)));
    let frames = [
        request(9, &element(1, &[])),
        request(9, &element(2, &[])),
        request(9, &element(3, &field(1, &[]))),
        request(9, &element(2, &create_with_two_lines)),
        request(9, &field(2, &field(9, &element(2, &[])))),
        request(9, &field(2, &field(10, &element(1, &[])))),
        request(10, &element(1, &[])),
        request(1, &element(3, &[])),
        request(8, &element(2, &[])),
        request(9, &nested),
        // The same message again and again: lists grow with each.
        field(2, &field(5, &element(9, &field(2, &[])))),
        element(2, &field(5, &field(9, &field(2, &[])))),
    ];
    for (case, frame) in frames.into_iter().enumerate() {
        let frame = Bytes::from(frame);
        let used = peak(&frame, decode_client);
        assert!(
            used <= allowance(frame.len()),
            "case {case}: {} bytes ask for {used}",
            frame.len()
        );
        assert!(decode_client(frame).is_err(), "case {case}");
    }
}

/// Small frames are not counted, and need not be.
#[test]
fn small_frames_cannot_ask_for_much() {
    for size in [10, 100, 1000, 2000] {
        for (op, list) in [(9, 1), (9, 2), (10, 1), (1, 3), (8, 2)] {
            let frame = Bytes::from(request(op, &field(list, &[]).repeat(size / 2)));
            let used = peak(&frame, decode_client);
            assert!(used <= allowance(frame.len()), "{size} of {op}.{list}: {used}");
        }
    }
}

/// The largest requests there are stay within the same bounds.
#[test]
fn the_largest_requests_are_decoded_within_bounds() {
    let path = ZPath::new("/a").unwrap();
    let create = |lines: usize| Op::Create {
        path: path.clone(),
        data: None,
        acl: vec![Acl::open()[0].clone(); lines].into(),
        mode: CreateMode::PERSISTENT,
    };
    let many = REQUEST_ACL_LINES / ACL_LINES;
    let multis = [
        vec![Op::Delete { path: path.clone(), version: None }; MULTI_OPS],
        vec![create(ACL_LINES); many],
        vec![create(REQUEST_ACL_LINES / MULTI_OPS); MULTI_OPS],
    ];
    for then in multis {
        let op = Op::Multi { conditions: Vec::new(), then, otherwise: Vec::new() };
        let (xid, acked, level) = (Xid(1), Xid(0), ReadLevel::Local);
        let message = ClientMessage::Request { xid, acked, level, op };
        let frame = bytes(|out| encode_client(&message, out));
        let used = peak(&frame, decode_client);
        assert!(used <= allowance(frame.len()), "{} bytes ask for {used}", frame.len());
        assert_eq!(decode_client(frame), Ok(message));
    }
}

/// Servers are believed more than strangers, but not without bound.
#[test]
fn servers_cannot_ask_for_much_either() {
    let room = RESPONSE_FRAME_BYTES - 64;
    let elements = |number| field(number, &[]).repeat(room / 2);
    for (reply, list) in [(5, 1), (6, 1), (7, 1), (10, 2), (11, 1), (12, 1)] {
        let reply = field(reply, &elements(list));
        let answer = Bytes::from(field(2, &field(3, &reply)));
        let outcome = Bytes::from(field(1, &reply));
        assert!(peak(&answer, decode_server) <= allowance(answer.len()), "{list} of an answer");
        assert!(peak(&outcome, decode_result) <= allowance(outcome.len()), "{list} of an outcome");
    }
}

/// The transaction of this operation, with everything else as short as can be.
fn txn(op: &[u8]) -> Bytes {
    let set = Op::SetData { path: ZPath::root(), data: None, version: None };
    let whole = encode_txn(&Txn {
        semantics: 1,
        time_ms: 0,
        origin: (ServerId::new(1).unwrap(), 0),
        identities: [].into(),
        digest: (Zxid::ZERO, 0),
        request: Request { session: SessionId::NONE, xid: Xid(0), acked: Xid(0), op: set },
    });
    let before = &whole[..whole.len() - b"n....\x2f..".len()];
    [before, op].concat().into()
}

/// Nothing is believed of what is in a log, or comes from another server.
#[test]
fn a_transaction_cannot_ask_for_more_memory_than_it_pays_for() {
    const CREATE: u8 = 1;
    const GUARD: u8 = 10;
    const MULTI: u8 = 12;
    let room = FRAME_BYTES - 64;
    let count = |length: usize| u32::try_from(length).unwrap().to_be_bytes();
    let list =
        |length: usize, one: &[u8]| [&count(length)[..], &one.repeat(room / one.len())].concat();
    let line = [0; 9];
    let path = [0, 0, 0, 1, b'/'];
    let guard = [&[GUARD][..], &path, &[0; 8]].concat();
    // Persistent, of no data.
    let create = [&[CREATE, 1, 0, 0][..], &[0; 8], &path, &[0]].concat();
    let multi = |then: &[u8]| [&[MULTI, 0, 0, 0, 0][..], then].concat();
    let crowded = [&create[..], &count(ACL_LINES), &line.repeat(ACL_LINES)].concat();
    let nested = multi(&count(1)).repeat(room / 9);
    let many = room / crowded.len();
    for (case, op) in [
        [&create[..], &list(u32::MAX as usize, &line)].concat(),
        [&create[..], &list(room / line.len(), &line)].concat(),
        multi(&list(room / guard.len(), &guard)),
        multi(&list(MULTI_OPS + 1, &guard)),
        multi(&[&count(MULTI_OPS)[..], &crowded.repeat(many)].concat()),
        nested,
    ]
    .into_iter()
    .enumerate()
    {
        let body = txn(&op);
        let used = allocation_counter::measure(|| assert!(decode_txn(&body).is_err())).bytes_max;
        assert!(used <= allowance(body.len()), "case {case}: {} bytes ask for {used}", body.len());
    }
}

/// The same as in a client's request.
#[test]
fn a_transaction_has_in_a_multi_what_may_be_there() {
    let multi = |then| Op::Multi { conditions: Vec::new(), then, otherwise: Vec::new() };
    let taken = |op| decode_txn(&encode_txn(&golden::txn(multi(vec![op])))).is_ok();
    assert!(taken(Op::Delete { path: ZPath::root(), version: None }));
    assert!(!taken(Op::DeleteRecursive { path: ZPath::root(), limit: 0 }));
    assert!(!taken(multi(Vec::new())));
    assert!(!taken(Op::CloseSession));
}
