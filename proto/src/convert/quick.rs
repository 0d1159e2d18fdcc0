//! The few messages that nearly all traffic consists of, without the generated types in between:
//! a read or a write of one node, and its answer.
//!
//! The bytes are those of the generated code. Whatever is not of the form that is written here (an
//! unknown field, one that comes twice or in another order, a value that is not allowed) is left
//! to it, to be understood or refused.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};

use crate::generated as wire;
use crate::ids::{WatchId, Xid, Zxid};
use crate::message::{ClientMessage, ServerMessage};
use crate::node::Stat;
use crate::request::{Op, ReadLevel, Reply, Response};

use super::value;

// The numbers of the fields in client.proto.
const REQUEST: u8 = 2;
const REQUEST_XID: u8 = 1;
const REQUEST_ACKED: u8 = 2;
const REQUEST_OP: u8 = 5;
const OP_SET_DATA: u8 = 3;
const OP_GET: u8 = 4;
const OP_EXISTS: u8 = 5;
/// Of all three of them.
const PATH: u8 = 1;
const SET_DATA_DATA: u8 = 2;
const SET_DATA_VERSION: u8 = 3;
/// Of a get and of an exists.
const WATCH: u8 = 2;
const RESPONSE: u8 = 2;
const RESPONSE_XID: u8 = 1;
const RESPONSE_ZXID: u8 = 2;
const RESPONSE_REPLY: u8 = 3;
const REPLY_STAT: u8 = 3;
const REPLY_DATA: u8 = 4;
const DATA_DATA: u8 = 1;
const DATA_STAT: u8 = 2;

/// Appends a client's message. False: it is none of these.
pub(super) fn encode_client(message: &ClientMessage, out: &mut BytesMut) -> bool {
    let ClientMessage::Request { xid, acked, level: ReadLevel::Local, op } = message else {
        return false;
    };
    let (kind, path, data, number) = if let Op::SetData { path, data, version } = op {
        let version = version.map(|version| (SET_DATA_VERSION, zigzag(version)));
        (OP_SET_DATA, path, data.as_deref(), version)
    } else if let Op::Get { path, watch } = op {
        (OP_GET, path, None, watch.map(|id| (WATCH, id.0)))
    } else if let Op::Exists { path, watch } = op {
        (OP_EXISTS, path, None, watch.map(|id| (WATCH, id.0)))
    } else {
        return false;
    };
    let path = path.as_str().as_bytes();
    let node_len = content_len(path.len())
        + data.map_or(0, |data| content_len(data.len()))
        + number.map_or(0, |(_, number)| 1 + encoded_len_varint(number));
    let op_len = content_len(node_len);
    let request_len = number_len(xid.0) + number_len(acked.0) + content_len(op_len);
    let mut out = grow(out, content_len(request_len));
    put_head(&mut out, REQUEST, request_len);
    put_number(&mut out, REQUEST_XID, xid.0);
    put_number(&mut out, REQUEST_ACKED, acked.0);
    put_head(&mut out, REQUEST_OP, op_len);
    put_head(&mut out, kind, node_len);
    put_bytes(&mut out, PATH, path);
    if let Some(data) = data {
        put_bytes(&mut out, SET_DATA_DATA, data);
    }
    if let Some((field, number)) = number {
        out.put_u8(number_key(field));
        encode_varint(number, &mut out);
    }
    true
}

/// The client's message, if it is one of these.
pub(super) fn decode_client(frame: &Bytes) -> Option<ClientMessage> {
    let mut request = whole(frame, REQUEST)?;
    let xid = take_number(&mut request, REQUEST_XID)?.unwrap_or(0);
    let acked = take_number(&mut request, REQUEST_ACKED)?.unwrap_or(0);
    let op = whole(request, REQUEST_OP)?;
    let op = if let Some(mut set) = whole(op, OP_SET_DATA) {
        let path = value::path(take_bytes(&mut set, PATH)?.unwrap_or_default()).ok()?;
        let data = take_bytes(&mut set, SET_DATA_DATA)?.map(|data| frame.slice_ref(data));
        let data = value::data(data).ok()?;
        let version = match take_number(&mut set, SET_DATA_VERSION)? {
            Some(number) => Some(unzigzag(u32::try_from(number).ok()?)),
            None => None,
        };
        set.is_empty().then_some(Op::SetData { path, data, version })?
    } else {
        let (mut read, is_get) = match whole(op, OP_GET) {
            Some(get) => (get, true),
            None => (whole(op, OP_EXISTS)?, false),
        };
        let path = value::path(take_bytes(&mut read, PATH)?.unwrap_or_default()).ok()?;
        let watch = take_number(&mut read, WATCH)?.map(WatchId);
        let op = if is_get { Op::Get { path, watch } } else { Op::Exists { path, watch } };
        read.is_empty().then_some(op)?
    };
    let (xid, acked, level) = (Xid(xid), Xid(acked), ReadLevel::Local);
    Some(ClientMessage::Request { xid, acked, level, op })
}

/// Appends a server's message. False: it is none of these.
pub(super) fn encode_server(message: &ServerMessage, out: &mut BytesMut) -> bool {
    let ServerMessage::Response(Response { xid, zxid, result: Ok(reply) }) = message else {
        return false;
    };
    let (kind, data, stat) = if let Reply::Data { data, stat } = reply {
        (REPLY_DATA, data.as_deref(), stat)
    } else if let Reply::Stat(stat) = reply {
        (REPLY_STAT, None, stat)
    } else {
        return false;
    };
    let stat = value::stat_to_wire(stat);
    let stat_len = stat.encoded_len();
    let data_len = data.map_or(0, |data| content_len(data.len())) + content_len(stat_len);
    let answer_len = if kind == REPLY_DATA { data_len } else { stat_len };
    let reply_len = content_len(answer_len);
    let response_len = number_len(xid.0) + number_len(zxid.bits()) + content_len(reply_len);
    let mut out = grow(out, content_len(response_len));
    put_head(&mut out, RESPONSE, response_len);
    put_number(&mut out, RESPONSE_XID, xid.0);
    put_number(&mut out, RESPONSE_ZXID, zxid.bits());
    put_head(&mut out, RESPONSE_REPLY, reply_len);
    put_head(&mut out, kind, answer_len);
    if let Some(data) = data {
        put_bytes(&mut out, DATA_DATA, data);
    }
    if kind == REPLY_DATA {
        put_head(&mut out, DATA_STAT, stat_len);
    }
    stat.encode_raw(&mut out);
    true
}

/// The server's message, if it is one of these.
pub(super) fn decode_server(frame: &Bytes) -> Option<ServerMessage> {
    let mut response = whole(frame, RESPONSE)?;
    let xid = take_number(&mut response, RESPONSE_XID)?.unwrap_or(0);
    let zxid = take_number(&mut response, RESPONSE_ZXID)?.unwrap_or(0);
    let reply = whole(response, RESPONSE_REPLY)?;
    let reply = if let Some(mut answer) = whole(reply, REPLY_DATA) {
        let data = take_bytes(&mut answer, DATA_DATA)?.map(|data| frame.slice_ref(data));
        let data = value::data(data).ok()?;
        Reply::Data { data, stat: stat(whole(answer, DATA_STAT)?)? }
    } else {
        Reply::Stat(stat(whole(reply, REPLY_STAT)?)?)
    };
    let (xid, zxid) = (Xid(xid), Zxid::from_bits(zxid));
    Some(ServerMessage::Response(Response { xid, zxid, result: Ok(reply) }))
}

fn stat(bytes: &[u8]) -> Option<Stat> {
    wire::Stat::decode(bytes).ok().map(value::stat)
}

// Writing. Every field's number is below 16, so that a key is one byte.

const fn number_key(field: u8) -> u8 {
    field << 3
}

const fn content_key(field: u8) -> u8 {
    field << 3 | 2
}

/// The bytes of a field with a content of so many.
fn content_len(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

/// The bytes of a field with a number, which is left out if it is 0.
fn number_len(number: u64) -> usize {
    if number == 0 { 0 } else { 1 + encoded_len_varint(number) }
}

/// So many more bytes of `out`, to be written.
fn grow(out: &mut BytesMut, bytes: usize) -> &mut [u8] {
    let start = out.len();
    out.resize(start + bytes, 0);
    &mut out[start..]
}

fn put_number(out: &mut &mut [u8], field: u8, number: u64) {
    if number != 0 {
        out.put_u8(number_key(field));
        encode_varint(number, out);
    }
}

fn put_bytes(out: &mut &mut [u8], field: u8, bytes: &[u8]) {
    put_head(out, field, bytes.len());
    out.put_slice(bytes);
}

/// What precedes a content of so many bytes.
fn put_head(out: &mut &mut [u8], field: u8, length: usize) {
    out.put_u8(content_key(field));
    encode_varint(length as u64, out);
}

fn zigzag(number: i32) -> u64 {
    u64::from(((number << 1) ^ (number >> 31)).cast_unsigned())
}

// Reading. `None` says that it is something else.

fn unzigzag(number: u32) -> i32 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

/// The content of a field that is all there is.
fn whole(mut bytes: &[u8], field: u8) -> Option<&[u8]> {
    let content = take_bytes(&mut bytes, field)??;
    bytes.is_empty().then_some(content)
}

/// The content of a field, if it is next.
fn take_bytes<'a>(rest: &mut &'a [u8], field: u8) -> Option<Option<&'a [u8]>> {
    if rest.first() != Some(&content_key(field)) {
        return Some(None);
    }
    *rest = &rest[1..];
    let length = usize::try_from(take_varint(rest)?).ok()?;
    let (content, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(Some(content))
}

/// The number in a field, if it is next.
fn take_number(rest: &mut &[u8], field: u8) -> Option<Option<u64>> {
    if rest.first() != Some(&number_key(field)) {
        return Some(None);
    }
    *rest = &rest[1..];
    take_varint(rest).map(Some)
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    prost::encoding::decode_varint(rest).ok()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::super::{op, reply};
    use super::*;
    use crate::ids::SessionId;
    use crate::path::ZPath;

    fn data() -> impl Strategy<Value = Option<Bytes>> {
        option::of(vec(any::<u8>(), 0..300).prop_map(Bytes::from))
    }

    prop_compose! {
        fn some_stat()(
            zxids in any::<[u64; 3]>(),
            times in any::<[i64; 2]>(),
            versions in any::<[i32; 3]>(),
            owner in any::<u64>(),
            sizes in any::<[u32; 2]>(),
        ) -> Stat {
            Stat {
                czxid: Zxid::from_bits(zxids[0]),
                mzxid: Zxid::from_bits(zxids[1]),
                pzxid: Zxid::from_bits(zxids[2]),
                ctime_ms: times[0],
                mtime_ms: times[1],
                version: versions[0],
                cversion: versions[1],
                aversion: versions[2],
                ephemeral_owner: SessionId(owner),
                data_length: sizes[0],
                num_children: sizes[1],
            }
        }
    }

    fn request() -> impl Strategy<Value = ClientMessage> {
        let path = "/[a-zé]{1,200}".prop_map(|path| ZPath::new(&path).expect("a path"));
        let op = (path, data(), option::of(any::<i32>()), option::of(any::<u64>()), 0..3);
        let op = op.prop_map(|(path, data, version, watch, kind)| match kind {
            0 => Op::SetData { path, data, version },
            1 => Op::Get { path, watch: watch.map(WatchId) },
            _ => Op::Exists { path, watch: watch.map(WatchId) },
        });
        let number = || prop_oneof![Just(0), any::<u64>()].prop_map(Xid);
        (number(), number(), op).prop_map(|(xid, acked, op)| {
            let level = ReadLevel::Local;
            ClientMessage::Request { xid, acked, level, op }
        })
    }

    fn response() -> impl Strategy<Value = ServerMessage> {
        let number = || prop_oneof![Just(0), any::<u64>()];
        let reply = prop_oneof![
            some_stat().prop_map(Reply::Stat),
            (data(), some_stat()).prop_map(|(data, stat)| Reply::Data { data, stat }),
        ];
        (number(), number(), reply).prop_map(|(xid, zxid, reply)| {
            let (xid, zxid) = (Xid(xid), Zxid::from_bits(zxid));
            ServerMessage::Response(Response { xid, zxid, result: Ok(reply) })
        })
    }

    /// What the generated code makes of it, where this module makes anything of it.
    fn check_decoding(frame: &Bytes) {
        if let Some(message) = decode_client(frame) {
            let generated = wire::ClientMessage::decode(frame.clone()).expect("a client's message");
            assert_eq!(Ok(message), op::client_from_wire(generated));
        }
        if let Some(message) = decode_server(frame) {
            let generated = wire::ServerMessage::decode(frame.clone()).expect("a server's message");
            assert_eq!(Ok(message), reply::server_from_wire(generated));
        }
    }

    proptest! {
        #[test]
        fn requests_are_as_the_generated_code_writes_them(message in request()) {
            let mut out = BytesMut::from(&b"before"[..]);
            prop_assert!(encode_client(&message, &mut out));
            let frame = out.split_off(6).freeze();
            let generated = op::client_to_wire(&message).encode_to_vec();
            prop_assert_eq!(&frame[..], &generated[..]);
            prop_assert_eq!(decode_client(&frame), Some(message));
        }

        #[test]
        fn answers_are_as_the_generated_code_writes_them(message in response()) {
            let mut out = BytesMut::from(&b"before"[..]);
            prop_assert!(encode_server(&message, &mut out));
            let frame = out.split_off(6).freeze();
            let generated = reply::server_to_wire(&message).encode_to_vec();
            prop_assert_eq!(&frame[..], &generated[..]);
            prop_assert_eq!(decode_server(&frame), Some(message));
        }

        #[test]
        fn what_is_damaged_is_read_as_the_generated_code_reads_it(
            request in request(),
            response in response(),
            damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            for mut frame in [
                op::client_to_wire(&request).encode_to_vec(),
                reply::server_to_wire(&response).encode_to_vec(),
            ] {
                for (at, byte) in &damage {
                    // Mostly among the keys and lengths at the front.
                    let span = frame.len().min(40);
                    frame[at.index(span)] = *byte;
                }
                check_decoding(&Bytes::from(frame));
            }
        }
    }
}
