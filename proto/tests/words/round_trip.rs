//! What is encoded comes back.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use conclave_proto::codec::{decode_txn, encode_txn};
use conclave_proto::convert::{
    decode_client, decode_result, decode_server, encode_client, encode_result, encode_server,
};
use conclave_proto::request::ReadLevel;
use conclave_proto::{Acl, ClientMessage, Op, Xid, ZPath};
use proptest::prelude::*;

use crate::golden::txn;
use crate::values;

/// The bytes that an encoder appends.
pub(crate) fn bytes(encode: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::from(&b"before"[..]);
    encode(&mut out);
    assert_eq!(&out[..6], b"before");
    out.freeze().slice(6..)
}

proptest! {
    #[test]
    fn client_messages(message in values::client_message()) {
        prop_assert_eq!(decode_client(bytes(|out| encode_client(&message, out))), Ok(message));
    }

    #[test]
    fn server_messages(message in values::server_message()) {
        prop_assert_eq!(decode_server(bytes(|out| encode_server(&message, out))), Ok(message));
    }

    #[test]
    fn transactions(txn in values::txn()) {
        prop_assert_eq!(decode_txn(&encode_txn(&txn)), Ok(txn));
    }

    #[test]
    fn results(result in values::result()) {
        prop_assert_eq!(decode_result(bytes(|out| encode_result(&result, out))), Ok(result));
    }
}

/// A value is the largest part of most messages: it is lent, not copied.
#[test]
fn a_value_shares_the_memory_of_its_frame() {
    let op = Op::SetData {
        path: ZPath::new("/config").unwrap(),
        data: Some(vec![7; 1000].into()),
        version: None,
    };
    let (xid, acked, level) = (Xid(1), Xid(0), ReadLevel::Local);
    let frame = bytes(|out| encode_client(&ClientMessage::Request { xid, acked, level, op }, out));
    let memory = frame.as_ptr_range();
    let Ok(ClientMessage::Request { op: Op::SetData { data: Some(data), .. }, .. }) =
        decode_client(frame)
    else {
        panic!("the request comes back")
    };
    assert!(memory.contains(&data.as_ptr()));
}

/// Nearly every node has it: it costs no memory.
#[test]
fn open_acls_are_one_and_the_same() {
    let path = ZPath::new("/a").unwrap();
    let open = Op::SetAcl { path, acl: Acl::open().to_vec().into(), version: None };
    let decoded = decode_txn(&encode_txn(&txn(open.clone()))).unwrap().request.op;
    assert!(matches!(decoded, Op::SetAcl { acl, .. } if Arc::ptr_eq(&acl, &Acl::open())));

    let (xid, acked, level) = (Xid(1), Xid(0), ReadLevel::Local);
    let message = ClientMessage::Request { xid, acked, level, op: open };
    let decoded = decode_client(bytes(|out| encode_client(&message, out))).unwrap();
    assert!(matches!(decoded,
        ClientMessage::Request { op: Op::SetAcl { acl, .. }, .. } if Arc::ptr_eq(&acl, &Acl::open())));
}
