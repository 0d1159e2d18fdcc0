//! docs/PROTOCOL.md is true.

use bytes::BytesMut;
use conclave_proto::convert::{encode_client, encode_server};
use conclave_proto::frame::write_frame;
use conclave_proto::request::ReadLevel;
use conclave_proto::{
    ClientMessage, Epoch, ErrorCode, Op, Reply, Response, ServerMessage, Stat, Xid, ZPath, Zxid,
    limits,
};

const DOCUMENT: &str = include_str!("../../../docs/PROTOCOL.md");

/// The bytes on the left of an annotated example.
fn example(name: &str) -> String {
    let (_, after) = DOCUMENT.split_once(&format!("<!-- {name} -->\n```text\n")).unwrap();
    let (block, _) = after.split_once("```").unwrap();
    let bytes = block.lines().flat_map(|line| line.split('|').next());
    bytes.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}

fn framed(encode: impl FnOnce(&mut BytesMut)) -> String {
    let mut out = BytesMut::new();
    write_frame(&mut out, encode);
    out.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn its_example_is_what_is_sent() {
    let op = Op::SetData {
        path: ZPath::new("/app").unwrap(),
        data: Some("hi".into()),
        version: Some(3),
    };
    let (xid, acked, level) = (Xid(7), Xid(6), ReadLevel::Local);
    let request = ClientMessage::Request { xid, acked, level, op };
    assert_eq!(framed(|out| encode_client(&request, out)), example("request"));

    let zxid = |counter| Zxid::new(Epoch::new(3).unwrap(), counter);
    let stat = Stat {
        czxid: zxid(1),
        mzxid: zxid(17),
        pzxid: zxid(1),
        ctime_ms: 1_800_000_000_000,
        mtime_ms: 1_800_000_060_000,
        version: 4,
        data_length: 2,
        ..Stat::default()
    };
    let response = Response { xid, zxid: zxid(17), result: Ok(Reply::Stat(stat)) };
    let response = ServerMessage::Response(response);
    assert_eq!(framed(|out| encode_server(&response, out)), example("response"));
}

#[test]
fn its_errors_are_the_errors() {
    let rows: String = (1..)
        .zip(ErrorCode::ALL)
        .map(|(number, code)| {
            format!("| {number} | `{}` | {code} |\n", shouted(&format!("{code:?}")))
        })
        .collect();
    assert!(DOCUMENT.contains(&rows), "the table of errors should be\n{rows}");
}

/// `NoNode` as protobuf writes it, `NO_NODE`.
fn shouted(name: &str) -> String {
    let separated = name.char_indices().flat_map(|(at, letter)| {
        let separator = (at > 0 && letter.is_uppercase()).then_some('_');
        separator.into_iter().chain([letter.to_ascii_uppercase()])
    });
    separated.collect()
}

#[test]
fn its_limits_are_the_limits() {
    for (row, limit) in [
        ("client, until it has a session", limits::HANDSHAKE_FRAME_BYTES),
        ("client, afterwards", limits::FRAME_BYTES),
        ("server", limits::RESPONSE_FRAME_BYTES),
        ("a path", limits::PATH_BYTES),
        ("a path", limits::PATH_DEPTH),
        ("a value", limits::VALUE_BYTES),
        ("a multi or multi-read, conditions included", limits::MULTI_OPS),
        ("an ACL; the ACLs of one request together", limits::ACL_LINES),
        ("an ACL; the ACLs of one request together", limits::REQUEST_ACL_LINES),
        ("the scheme or the id of an identity", limits::IDENTITY_BYTES),
        ("a credential", limits::CREDENTIAL_BYTES),
        ("a page of a listing", limits::PAGE_ENTRIES),
        ("a page of a listing", limits::PAGE_BYTES),
        ("the entries in one answer", limits::RESPONSE_ELEMENTS),
        ("nodes that one recursive delete deletes", limits::DELETE_MANY as usize),
        ("requests in flight", limits::IN_FLIGHT),
    ] {
        let line = DOCUMENT.lines().find(|line| line.starts_with(&format!("| {row} |"))).unwrap();
        assert!(line.contains(&format!("`{limit}`")), "{line}: {limit}");
    }
}

/// Every operation has its row, under its number.
#[test]
fn its_operations_are_the_operations() {
    let schema = include_str!("../../client.proto");
    let (_, after) = schema.split_once("message Op {\n  oneof kind {\n").unwrap();
    let (operations, _) = after.split_once("  }\n").unwrap();
    for operation in operations.lines() {
        let words: Vec<&str> =
            operation.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        let [_, name, "=", number] = words[..] else { panic!("{operation}") };
        let row = format!("| `{name}` | {number} | ");
        assert!(DOCUMENT.contains(&row), "no row {row}");
    }
}
