//! What is wrong with a request is said, and whether the connection can go on.

use bytes::Bytes;
use conclave_proto::convert::{
    DecodeError, decode_client, decode_server, encode_client, encode_server,
};
use conclave_proto::limits::{
    ACL_LINES, CREDENTIAL_BYTES, IDENTITY_BYTES, MULTI_OPS, PATH_BYTES, REQUEST_ACL_LINES,
    RESPONSE_ELEMENTS, VALUE_BYTES,
};
use conclave_proto::request::{Condition, Entry, Page, ReadLevel, Test};
use conclave_proto::{
    Acl, ClientMessage, CreateMode, ErrorCode, Identity, Op, Perms, Reply, Response, Secret,
    ServerMessage, SessionId, Stat, Xid, ZPath, Zxid,
};
use expect_test::{Expect, expect};

use crate::hostile::{field, request};
use crate::round_trip::bytes;

fn path() -> ZPath {
    ZPath::new("/app").unwrap()
}

/// A request with this operation, as a client that checks nothing would send it.
fn sent(op: Op) -> Bytes {
    let (xid, acked, level) = (Xid(7), Xid(0), ReadLevel::Local);
    bytes(|out| encode_client(&ClientMessage::Request { xid, acked, level, op }, out))
}

/// Puts `xid = 7` in front of what `request` made.
fn numbered(op: u8, content: &[u8]) -> Bytes {
    let request = request(op, content);
    let body = request.iter().skip_while(|byte| **byte != 0x2a).copied();
    field(2, &[8, 7].into_iter().chain(body).collect::<Vec<_>>()).into()
}

fn check(frames: impl IntoIterator<Item = Bytes>, expected: Expect) {
    let said: String = frames
        .into_iter()
        .map(|frame| match decode_client(frame) {
            Ok(message) => format!("{message:?}\n"),
            Err(DecodeError::Malformed(what)) => format!("close: {what}\n"),
            Err(DecodeError::BadRequest { xid, fault, detail }) => {
                format!("answer {} with {fault:?}: {detail}\n", xid.0)
            }
        })
        .collect();
    expected.assert_eq(&said);
}

/// A request that can be read, but not carried out, is answered.
#[test]
fn bad_requests_are_answered() {
    check(
        [
            numbered(4, &field(1, b"app")),
            numbered(4, &field(1, b"/app/")),
            numbered(4, &field(1, b"/\xff")),
            numbered(4, &[]),
            numbered(4, &field(1, "/a".repeat(300).as_bytes())),
            numbered(4, &field(1, "/a".repeat(PATH_BYTES).as_bytes())),
            // An operation of a later release, none at all, and a read level of a later release.
            numbered(99, &field(1, b"/app")),
            field(2, &[8, 7]).into(),
            field(2, &[8, 7, 24, 9, 0x2a, 0]).into(),
            // A lifetime and a kind of watch of a later release.
            numbered(1, &[&field(1, b"/app")[..], &[32, 9]].concat()),
            numbered(12, &[&field(2, b"/app")[..], &[24, 9]].concat()),
            numbered(12, &field(2, b"/app")),
            // A condition without a test, permissions of a later release, an ACL for nobody.
            numbered(9, &field(1, &field(1, b"/app"))),
            numbered(8, &[field(1, b"/app"), field(2, &[8, 0x80, 2])].concat()),
            numbered(8, &[field(1, b"/app"), field(2, &[8, 1])].concat()),
        ],
        expect![[r#"
            answer 7 with BadArguments: a path starts with '/'
            answer 7 with BadArguments: a path does not end with '/'
            answer 7 with BadArguments: a path: invalid utf-8 sequence of 1 bytes from index 1
            answer 7 with BadArguments: a path starts with '/'
            answer 7 with TooLarge: a path has at most 256 parts, this one has 300
            answer 7 with TooLarge: a path of 8192 bytes, where at most 4096 are allowed
            answer 7 with Unimplemented: this server does not know the operation
            answer 7 with Unimplemented: this server does not know the operation
            answer 7 with BadArguments: 9 is not a read level
            answer 7 with BadArguments: 9 is not a lifetime
            answer 7 with BadArguments: 9 is not a kind of watch
            answer 7 with BadArguments: 0 is not a kind of watch
            answer 7 with BadArguments: a condition's test is missing or of an unknown kind
            answer 7 with InvalidAcl: unknown permissions 256
            answer 7 with InvalidAcl: a line of the ACL names nobody
        "#]],
    );
}

#[test]
fn limits_are_enforced() {
    let value = |extra: usize| Some(Bytes::from(vec![0; VALUE_BYTES + extra]));
    let acl = |lines: usize| vec![Acl::open()[0].clone(); lines].into();
    let create = |data, acl| Op::Create { path: path(), data, acl, mode: CreateMode::PERSISTENT };
    let multi = |conditions, then| Op::Multi { conditions, then, otherwise: Vec::new() };
    let check_op = Op::Check { path: path(), version: None };
    let exists = Condition { path: path(), test: Test::Exists };
    let equal = Condition { path: path(), test: Test::Data(vec![0; VALUE_BYTES + 1].into()) };
    let long = Identity { scheme: "x".into(), id: "x".repeat(IDENTITY_BYTES + 1) };
    let page = Page { after: Some("x".repeat(PATH_BYTES + 1)), ..Page::default() };
    let credentials = |extra: usize| Op::Authenticate {
        scheme: "digest".into(),
        credentials: vec![0; CREDENTIAL_BYTES + extra].into(),
    };
    check(
        [
            sent(create(value(1), Acl::open())),
            sent(Op::SetData { path: path(), data: value(1), version: None }),
            sent(create(None, acl(ACL_LINES + 1))),
            sent(create(None, [Acl { perms: Perms::ALL, identity: long }].into())),
            sent(multi(vec![exists; 1], vec![check_op; MULTI_OPS])),
            sent(multi(vec![equal], Vec::new())),
            sent(multi(
                Vec::new(),
                vec![create(None, acl(ACL_LINES)); REQUEST_ACL_LINES / ACL_LINES + 1],
            )),
            sent(Op::MultiRead(vec![Op::Get { path: path(), watch: None }; MULTI_OPS + 1])),
            sent(Op::Children { path: path(), watch: None, page }),
            sent(Op::Ephemerals { prefix: "x".repeat(PATH_BYTES + 1) }),
            sent(credentials(1)),
        ],
        expect![[r#"
            answer 7 with TooLarge: a value of 1048577 bytes, where at most 1048576 are allowed
            answer 7 with TooLarge: a value of 1048577 bytes, where at most 1048576 are allowed
            answer 7 with TooLarge: an ACL of 65 lines, where at most 64 are allowed
            answer 7 with TooLarge: an identity of 1025 bytes, where at most 1024 are allowed
            answer 7 with TooLarge: too many operations in one request
            answer 7 with TooLarge: a value of 1048577 bytes, where at most 1048576 are allowed
            answer 7 with TooLarge: too many lines of access control lists in one request
            answer 7 with TooLarge: too many operations in one request
            answer 7 with TooLarge: a page's start of 4097 bytes, where at most 4096 are allowed
            answer 7 with TooLarge: a prefix of 4097 bytes, where at most 4096 are allowed
            answer 7 with TooLarge: a credential of 4097 bytes, where at most 4096 are allowed
        "#]],
    );
    for op in [create(value(0), acl(ACL_LINES)), credentials(0)] {
        assert!(decode_client(sent(op)).is_ok());
    }
}

/// Multis do not nest, and only servers open sessions and reap nodes.
#[test]
fn operations_are_only_where_they_may_be() {
    let multi = |then| Op::Multi { conditions: Vec::new(), then, otherwise: Vec::new() };
    check(
        [
            sent(multi(vec![multi(Vec::new())])),
            sent(multi(vec![Op::Get { path: path(), watch: None }])),
            sent(multi(vec![Op::CloseSession])),
            sent(Op::MultiRead(vec![Op::Delete { path: path(), version: None }])),
            sent(Op::MultiRead(vec![Op::MultiRead(Vec::new())])),
            sent(Op::CreateSession {
                session: SessionId(1),
                timeout_ms: 1,
                secret: Secret::new([1; 16]),
            }),
            sent(Op::Reap { path: path(), seen: (Zxid::ZERO, Zxid::ZERO) }),
        ],
        expect![[r#"
            answer 7 with BadArguments: only create, delete, set_data, set_acl, check, require, create_if_missing, delete_if_exists and delete_tree may be inside a multi
            answer 7 with BadArguments: only create, delete, set_data, set_acl, check, require, create_if_missing, delete_if_exists and delete_tree may be inside a multi
            answer 7 with BadArguments: only create, delete, set_data, set_acl, check, require, create_if_missing, delete_if_exists and delete_tree may be inside a multi
            answer 7 with BadArguments: only get, exists and children may be inside a multi-read
            answer 7 with BadArguments: only get, exists and children may be inside a multi-read
            answer 7 with Unimplemented: this server does not know the operation
            answer 7 with Unimplemented: this server does not know the operation
        "#]],
    );
}

/// What is no message ends the connection: what follows it cannot be trusted.
#[test]
fn malformed_messages_end_the_connection() {
    check(
        [
            Bytes::new(),
            Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n"),
            field(9, b"a message of a later release").into(),
            field(1, &field(2, &field(2, b"short secret"))).into(),
            field(2, &[0x2a, 200]).into(),
            field(2, &[8, 0xff]).into(),
            request(9, &[0x0f; 3000]).into(),
        ],
        expect![[r#"
            close: the message is missing or of an unknown kind
            close: failed to decode Protobuf message: invalid wire type value: 7
            close: the message is missing or of an unknown kind
            close: a secret has 16 bytes
            close: failed to decode Protobuf message: ClientRequest.op: ClientMessage.kind: invalid varint
            close: failed to decode Protobuf message: ClientRequest.xid: ClientMessage.kind: invalid varint
            close: a field of an unknown type
        "#]],
    );
}

/// A listing that no client would take is not sent.
#[test]
fn answers_that_are_too_large_become_errors() {
    let answer = |reply| {
        let response = Response { xid: Xid(7), zxid: Zxid::ZERO, result: Ok(reply) };
        let frame = bytes(|out| encode_server(&ServerMessage::Response(response), out));
        let Ok(ServerMessage::Response(response)) = decode_server(frame) else {
            panic!("a response");
        };
        response.result
    };
    let listing = |entries, data: Option<Bytes>| Reply::Children {
        entries: vec![Entry { name: "x".into(), stat: None, data }; entries],
        more: false,
        stat: Stat::default(),
    };
    let value = Some(Bytes::from(vec![0; VALUE_BYTES]));
    let too_large = Err(ErrorCode::TooLarge.into());
    assert!(answer(listing(RESPONSE_ELEMENTS, None)).is_ok());
    assert_eq!(answer(listing(RESPONSE_ELEMENTS + 1, None)), too_large);
    assert!(answer(listing(2, value.clone())).is_ok());
    assert_eq!(answer(listing(3, value.clone())), too_large);
    assert_eq!(answer(Reply::MultiRead(vec![Ok(listing(2, value)); 2])), too_large);
    assert_eq!(answer(Reply::Paths(vec![path(); RESPONSE_ELEMENTS + 1])), too_large);
}
