//! One table for both wires: what each request of ZooKeeper's becomes is what the native protocol
//! says in its own words. From there on there is one set of rules.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use conclave::wire::{Inbound, Then, Wire};
use conclave_proto::convert::encode_client;
use conclave_proto::frame::write_frame;
use conclave_proto::message::{Connected, Refused, ServerMessage};
use conclave_proto::request::ReadLevel;
use conclave_proto::{
    Acl, ClientMessage, CreateMode, ErrorCode, Fault, Lifetime, Op, Reply, Secret, SessionId, Stat,
    Xid, ZPath, Zxid,
};

use crate::speech::{Body, Talk, connect_body, connected, framed, path};

fn create(text: &str, mode: CreateMode) -> Op {
    let path = ZPath::prefix(text).unwrap();
    Op::Create { path, data: Some(Bytes::from_static(b"d")), acl: Acl::open(), mode }
}

fn create_body(text: &str, flags: i32) -> Body {
    Body::new().text(text).text("d").open_acl().int(flags)
}

fn mode(lifetime: Lifetime, sequential: bool) -> CreateMode {
    CreateMode { lifetime, sequential, ..CreateMode::default() }
}

/// Requests as ZooKeeper's clients write them, and what they mean.
fn table() -> Vec<(i32, Body, Op)> {
    let p = || Body::new().text("/a");
    let header = |kind: i32| Body::new().int(kind).bool(false).int(-1);
    let end = |body: Body| body.int(-1).bool(true).int(-1);
    let joined = |bodies: Vec<Body>| {
        let parts: Vec<_> = bodies.iter().map(|body| &body.0[..]).collect();
        Body(BytesMut::from(&parts.concat()[..]))
    };
    let multi = vec![
        Op::Check { path: path("/a"), version: Some(3) },
        create("/a/q-", CreateMode::PERSISTENT_SEQUENTIAL),
        Op::Delete { path: path("/a"), version: None },
    ];
    let multi_body = joined(vec![
        header(13),
        p().int(3),
        header(15),
        create_body("/a/q-", 2),
        header(2),
        p().int(-1),
        Body::new(),
    ]);
    let reads = vec![Op::Get { path: path("/a"), watch: None }];
    vec![
        (1, create_body("/a", 0), create("/a", CreateMode::PERSISTENT)),
        (1, create_body("/a", 1), create("/a", CreateMode::EPHEMERAL)),
        (15, create_body("/a/", 2), create("/a/", CreateMode::PERSISTENT_SEQUENTIAL)),
        (15, create_body("/", 3), create("/", CreateMode::EPHEMERAL_SEQUENTIAL)),
        (19, create_body("/a", 4), create("/a", mode(Lifetime::Container, false))),
        (21, create_body("/a", 5).long(9), create("/a", mode(Lifetime::Ttl(9), false))),
        (21, create_body("/a", 6).long(9), create("/a", mode(Lifetime::Ttl(9), true))),
        (2, p().int(-1), Op::Delete { path: path("/a"), version: None }),
        (2, p().int(4), Op::Delete { path: path("/a"), version: Some(4) }),
        (3, p().bool(false), Op::Exists { path: path("/a"), watch: None }),
        (4, p().bool(false), Op::Get { path: path("/a"), watch: None }),
        (5, p().int(-1).int(0), Op::SetData { path: path("/a"), data: None, version: Some(0) }),
        (6, p(), Op::GetAcl { path: path("/a") }),
        (
            7,
            p().open_acl().int(1),
            Op::SetAcl { path: path("/a"), acl: Acl::open(), version: Some(1) },
        ),
        (9, p(), Op::Sync { path: ZPath::root() }),
        (
            14,
            end(multi_body),
            Op::Multi { conditions: Vec::new(), then: multi, otherwise: Vec::new() },
        ),
        (22, end(joined(vec![header(4), p().bool(false)])), Op::MultiRead(reads)),
        (103, p(), Op::Ephemerals { prefix: "/a".into() }),
        (104, p(), Op::CountDescendants { path: path("/a") }),
        (107, Body::new(), Op::WhoAmI),
        (-11, Body::new(), Op::CloseSession),
        (
            100,
            Body::new().int(0).text("digest").text("u:p"),
            Op::Authenticate { scheme: "digest".into(), credentials: "u:p".into() },
        ),
    ]
}

#[test]
fn both_wires_ask_the_same() {
    for (kind, body, op) in table() {
        assert_eq!(Talk::open().op(kind, body), op, "operation {kind}");

        let mut native = Wire::native();
        native.write(&ServerMessage::Connected(connected()), &mut BytesMut::new());
        let (xid, acked, level) = (Xid(1), Xid(0), ReadLevel::Local);
        let message = ClientMessage::Request { xid, acked, level, op };
        let mut bytes = BytesMut::new();
        write_frame(&mut bytes, |out| encode_client(&message, out));
        match native.next(&mut bytes).unwrap() {
            Some(Inbound::Message(came)) => assert_eq!(came, message),
            other => panic!("{other:?}"),
        }
    }
}

/// Nearly every node has it: it costs no memory.
#[test]
fn open_acls_are_one_and_the_same() {
    let mut talk = Talk::open();
    let body = Body::new().text("/a").open_acl().int(-1);
    let Some(Inbound::Message(ClientMessage::Request { op: Op::SetAcl { acl, .. }, .. })) =
        talk.asks(7, 7, body)
    else {
        panic!("a request")
    };
    assert!(Arc::ptr_eq(&acl, &Acl::open()));
}

/// The code that a request is answered with although nobody is asked.
fn refused(kind: i32, body: Body) -> (i32, Then) {
    let mut talk = Talk::open();
    assert!(matches!(talk.asks(4, kind, body), Some(Inbound::Known)), "request {kind}");
    let (frames, then) = talk.respond(Err(ErrorCode::BadArguments.into()));
    let mut frame = frames[0].clone();
    assert_eq!(frame.get_i32(), 4);
    frame.advance(8);
    assert_eq!(frame.len(), 4, "an error has no body");
    (frame.get_i32(), then)
}

#[test]
fn what_makes_no_sense_is_answered_in_its_turn() {
    let text = |text: &str| Body::new().text(text);
    for (kind, body, code) in [
        (1, create_body("a", 0), -8),
        (1, create_body("/a/", 0), -8),
        (1, create_body("/a", 7), -8),
        (1, create_body("/a", 5), -8),
        (21, create_body("/a", 5).long(0), -8),
        (21, create_body("/a", 0).long(10), -8),
        (1, text("/a").text("d").int(1).int(256).text("world").text("anyone").int(0), -114),
        (2, text("/a//b").int(0), -101),
        (3, text("a").bool(false), -101),
        (5, text("/a/").text("x").int(0), -8),
        (106, text("/a").int(2), -5),
        (18, text("/a").int(9), -5),
        (13, text("/a").int(0), -6),
        (16, Body::new(), -123),
        (4, text("/a"), -5),
        (4, text("/a").bool(false).int(0), -5),
        (7, text("/a").int(i32::MAX), -5),
        (7, text("/a").int(-2), -5),
        (5, text("/a").int(-7), -5),
        (14, Body::new().int(99).bool(false).int(-1), -5),
    ] {
        assert_eq!(refused(kind, body), (code, Then::GoOn), "request {kind}");
    }
    for kind in [10, 20, 99, 499, 508, -10, i32::MIN] {
        assert_eq!(refused(kind, Body::new()), (-6, Then::Close), "request {kind}");
    }
}

/// What a client is read no further for may take long, and its ping stands behind it.
#[test]
fn a_ping_is_taken_out_of_its_turn_and_nothing_else() {
    let (ping, get) = (Body::new().int(-2).int(11), Body::new().int(1).int(4).text("/a"));
    let mut received = framed(&ping.0);
    received.extend_from_slice(&framed(&get.bool(false).0));
    assert!(!Talk::new().wire.take_ping(&mut received), "there is no session yet");
    let mut talk = Talk::open();
    let whole = received.clone();
    assert!(!talk.wire.take_ping(&mut received.split_to(11)), "a part of one");
    received = whole;
    assert!(talk.wire.take_ping(&mut received));
    assert!(!talk.wire.take_ping(&mut received), "it is a read");
    let Ok(Some(Inbound::Message(ClientMessage::Request { op, .. }))) =
        talk.wire.next(&mut received)
    else {
        panic!("the read is not there")
    };
    assert!(matches!(op, Op::Get { .. }), "{op:?}");
    assert!(received.is_empty());
}

#[test]
fn a_part_of_a_multi_that_makes_no_sense_fails_in_its_place() {
    let body = Body::new().int(2).bool(false).int(-1).text("/a").int(-1);
    let body = body.int(5).bool(false).int(-1).text("b").text("").int(-1);
    let body = body.int(-1).bool(true).int(-1);
    let Op::Multi { then, .. } = Talk::open().op(14, body) else { panic!("no multi") };
    // No client may delete the root: this is refused as a path without a slash is.
    assert_eq!(then[1], Op::Delete { path: ZPath::root(), version: None });
}

#[test]
fn a_failed_multi_says_what_came_of_each_part() {
    let mut talk = Talk::open();
    let part = |body: Body, path| body.int(2).bool(false).int(-1).text(path).int(-1);
    let body = part(part(part(Body::new(), "/a"), "/b"), "/c").int(-1).bool(true).int(-1);
    talk.op(14, body);
    let fault = Fault { code: ErrorCode::NoNode, index: 1 };
    let (xid, _, code, mut body) = talk.answer(Err(fault));
    assert_eq!((xid, code), (1, 0));
    for expected in [0, -101, -2] {
        assert_eq!((body.get_i32(), body.get_u8(), body.get_i32()), (-1, 0, expected));
        assert_eq!(body.get_i32(), expected);
    }
    assert_eq!((body.get_i32(), body.get_u8(), body.get_i32()), (-1, 1, -1));
    assert!(body.is_empty());
}

#[test]
fn statistics_have_their_places() {
    let stat = Stat {
        czxid: Zxid::from_bits(1),
        mzxid: Zxid::from_bits(2),
        pzxid: Zxid::from_bits(11),
        ctime_ms: 3,
        mtime_ms: 4,
        version: 5,
        cversion: 6,
        aversion: 7,
        data_length: 9,
        num_children: 10,
        ..Stat::default()
    };
    let mut talk = Talk::open();
    talk.op(3, Body::new().text("/a").bool(false));
    let (_, zxid, code, body) = talk.answer(Ok(Reply::Stat(stat)));
    let expected = Body::new().long(1).long(2).long(3).long(4).int(5).int(6).int(7).long(0);
    let expected = expected.int(9).int(10).long(11);
    assert_eq!((zxid, code, &body[..]), (77, 0, &expected.0[..]));
}

#[test]
fn data_that_is_null_stays_null() {
    for data in [None, Some(Bytes::new())] {
        let mut talk = Talk::open();
        talk.op(4, Body::new().text("/a").bool(false));
        let length = if data.is_none() { -1 } else { 0 };
        let (.., mut body) = talk.answer(Ok(Reply::Data { data, stat: Stat::default() }));
        assert_eq!((body.get_i32(), body.len()), (length, 68));
    }
}

#[test]
fn handshakes_with_and_without_the_last_byte() {
    for with_byte in [true, false] {
        let mut body = connect_body();
        if !with_byte {
            body.0.truncate(44);
        }
        let length = if with_byte { 37 } else { 36 };
        let mut talk = Talk::new();
        assert!(matches!(talk.says(&body), Some(Inbound::Message(ClientMessage::Connect(_)))));
        let (frames, then) = talk.hears(&ServerMessage::Connected(connected()));
        assert_eq!((frames[0].len(), then), (length, Then::GoOn));
        assert_eq!(frames[0].last() == Some(&9), !with_byte, "the password, then a zero");

        let mut talk = Talk::new();
        talk.says(&body);
        let (frames, _) =
            talk.hears(&ServerMessage::Connected(Connected { read_only: true, ..connected() }));
        assert_eq!((frames[0].len(), frames[0].last() == Some(&1)), (length, with_byte));

        let mut talk = Talk::new();
        talk.says(&body);
        let refused =
            |code| ServerMessage::Refused(Refused { code, message: String::new(), backoff_ms: 0 });
        let (frames, then) = talk.hears(&refused(ErrorCode::SessionExpired));
        // No timeout, no session, no password.
        assert!(frames[0][4..16].iter().all(|byte| *byte == 0));
        assert_eq!((frames[0].len(), then), (length, Then::Close));

        let mut talk = Talk::new();
        talk.says(&body);
        assert_eq!(talk.hears(&refused(ErrorCode::Unavailable)), (Vec::new(), Then::Close));
    }
}

/// aiozk and zoonado ask for a new session with a password of one byte.
#[test]
fn passwords_of_any_length() {
    let password = |bytes: Option<&[u8]>, session: i64, last: &[u8]| {
        let mut body = Body::new().int(0).long(0).int(10_000).long(session);
        match bytes {
            Some(bytes) => {
                body = body.int(i32::try_from(bytes.len()).unwrap());
                body.0.put_slice(bytes);
            }
            None => body = body.int(-1),
        }
        body.0.put_slice(last);
        body
    };
    for bytes in [None, Some(&[][..]), Some(&[7]), Some(&[7; 15]), Some(&[7; 16]), Some(&[7; 20])] {
        for last in [&[][..], &[1]] {
            let connect = |session| match Talk::new().says(&password(bytes, session, last)) {
                Some(Inbound::Message(ClientMessage::Connect(connect))) => connect,
                other => panic!("{bytes:?} is {other:?}"),
            };
            let new = connect(0);
            assert_eq!((new.session, new.read_only), (None, last == [1]));
            let secret = if bytes == Some(&[7; 16]) { [7; 16] } else { [0; 16] };
            assert_eq!(connect(9).session, Some((SessionId(9), Secret::new(secret))));
        }
    }
}

#[test]
fn bad_credentials_end_the_connection() {
    let mut talk = Talk::open();
    talk.op(100, Body::new().int(0).text("nonsense").text("x"));
    let (frames, then) = talk.respond(Err(ErrorCode::AuthFailed.into()));
    assert_eq!((frames[0].clone().split_off(12).get_i32(), then), (-115, Then::Close));
    let mut talk = Talk::open();
    assert!(matches!(
        talk.asks(-4, 100, Body::new().int(0).text("digest").int(-1)),
        Some(Inbound::Known)
    ));
    let (frames, then) = talk.respond(Err(ErrorCode::BadArguments.into()));
    assert_eq!((frames[0].clone().split_off(12).get_i32(), then), (-115, Then::Close));
}
