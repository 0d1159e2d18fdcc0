//! Values as bytes. All numbers are little-endian unless they are part of a key.
//!
//! Every value begins with the CRC-32C of its key and of the rest of itself: LMDB has no checksums
//! of its own, and a value that is found under a wrong key is as wrong as a damaged one.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use conclave_proto::{Acl, Identity, Lifetime, Perms, Secret, SessionId, Xid, Zxid, convert};

use crate::tree::{Meta, Node, Outcome, Outcomes, SessionRecord};
use crate::zab::Position;

/// The version of the layout of values, their first byte after the checksum.
const VERSION: u8 = 1;
/// The checksum and the version.
const PREFIX: usize = 5;

const LIFETIME: u8 = 0b11;
const NULL_DATA: u8 = 1 << 2;
const HAS_CHILDREN: u8 = 1 << 3;
const HAS_ACL: u8 = 1 << 4;
const LONG_NAME: u8 = 1 << 5;
const LINGERS: u8 = 1 << 6;

/// Reads numbers off the front of a slice; `None` if it is too short.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    pub(super) fn zxid(&mut self) -> Option<Zxid> {
        self.u64().map(Zxid::from_bits)
    }

    pub(super) fn position(&mut self) -> Option<Position> {
        Some(Position { zxid: self.zxid()?, chain: self.u32()? })
    }

    /// A text with its length before it, as [`put_text`] writes it.
    fn text(&mut self) -> Option<&'a str> {
        let len = self.u16()?;
        std::str::from_utf8(self.take(len.into())?).ok()
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u16_le(u16::try_from(text.len()).expect("names and identities are at most 4 KiB"));
    out.put_slice(text.as_bytes());
}

/// Write the value that `fill` appends, with its checksum, in place of what `out` holds.
fn sealed(key: &[u8], out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    out.clear();
    out.put_u32_le(0);
    out.put_u8(VERSION);
    fill(out);
    let crc = checksum(key, &out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
}

fn checksum(key: &[u8], rest: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), rest)
}

/// What follows checksum and version, if the former is right and the latter known.
pub(super) fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Option<Reader<'a>> {
    let (prefix, rest) = value.split_at_checked(PREFIX)?;
    let crc = u32::from_le_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]);
    (crc == checksum(key, &value[4..]) && prefix[4] == VERSION).then_some(Reader(rest))
}

/// Encode a node. `long_name` is its name if the key does not hold it whole.
pub(super) fn encode_node(key: &[u8], node: &Node, long_name: Option<&str>, out: &mut Vec<u8>) {
    let has_children = node.children_created != 0 || node.num_children != 0;
    let (lifetime, ttl) = match node.lifetime {
        Lifetime::Persistent => (0, None),
        Lifetime::Ephemeral => (1, None),
        Lifetime::Container => (2, None),
        Lifetime::Ttl(ms) => (3, Some(ms)),
        Lifetime::Lingering(ms) => (1 | LINGERS, Some(ms)),
    };
    let mut flags = lifetime;
    for (flag, set) in [
        (NULL_DATA, node.data.is_none()),
        (HAS_CHILDREN, has_children),
        (HAS_ACL, !Acl::is_open(&node.acl)),
        (LONG_NAME, long_name.is_some()),
    ] {
        flags |= if set { flag } else { 0 };
    }
    sealed(key, out, |out| {
        out.put_u8(flags);
        if let Some(name) = long_name {
            put_text(out, name);
        }
        for zxid in [node.czxid, node.mzxid, node.pzxid] {
            out.put_u64_le(zxid.bits());
        }
        out.put_i64_le(node.ctime_ms);
        out.put_i64_le(node.mtime_ms);
        out.put_i32_le(node.version);
        out.put_i32_le(node.aversion);
        if node.lifetime.is_ephemeral() {
            out.put_u64_le(node.owner.0);
        }
        if let Some(ms) = ttl {
            out.put_u64_le(ms);
        }
        if has_children {
            out.put_u32_le(node.num_children);
            out.put_u64_le(node.children_created);
        }
        if flags & HAS_ACL != 0 {
            put_acl(out, &node.acl);
        }
        out.put_slice(node.data.as_deref().unwrap_or_default());
    });
}

fn put_acl(out: &mut Vec<u8>, acl: &[Acl]) {
    out.put_u16_le(u16::try_from(acl.len()).expect("an ACL has at most 64 lines"));
    for line in acl {
        out.put_u8(line.perms.0);
        put_text(out, &line.identity.scheme);
        put_text(out, &line.identity.id);
    }
}

/// Decode a node. All that have no ACL of their own share one.
pub(super) fn decode_node(key: &[u8], value: &[u8]) -> Option<Node> {
    let mut reader = unseal(key, value)?;
    let flags = reader.u8()?;
    if flags & LONG_NAME != 0 {
        reader.text()?;
    }
    let (czxid, mzxid, pzxid) = (reader.zxid()?, reader.zxid()?, reader.zxid()?);
    let (ctime_ms, mtime_ms) = (reader.i64()?, reader.i64()?);
    let (version, aversion) = (reader.i32()?, reader.i32()?);
    let (lifetime, owner) = match flags & LIFETIME {
        0 => (Lifetime::Persistent, SessionId::NONE),
        1 => {
            let owner = SessionId(reader.u64()?);
            let lingers = flags & LINGERS != 0;
            let lifetime =
                if lingers { Lifetime::Lingering(reader.u64()?) } else { Lifetime::Ephemeral };
            (lifetime, owner)
        }
        2 => (Lifetime::Container, SessionId::NONE),
        _ => (Lifetime::Ttl(reader.u64()?), SessionId::NONE),
    };
    let (num_children, children_created) =
        if flags & HAS_CHILDREN != 0 { (reader.u32()?, reader.u64()?) } else { (0, 0) };
    let acl = if flags & HAS_ACL != 0 { read_acl(&mut reader)? } else { Acl::open() };
    let data = (flags & NULL_DATA == 0).then(|| Bytes::copy_from_slice(reader.0));
    Some(Node {
        data,
        acl,
        lifetime,
        owner,
        czxid,
        mzxid,
        pzxid,
        ctime_ms,
        mtime_ms,
        version,
        aversion,
        num_children,
        children_created,
    })
}

fn read_acl(reader: &mut Reader<'_>) -> Option<Arc<[Acl]>> {
    let lines = reader.u16()?;
    (0..lines)
        .map(|_| {
            let perms = Perms(reader.u8()?);
            let (scheme, id) = (reader.text()?.to_owned(), reader.text()?.to_owned());
            Some(Acl { perms, identity: Identity { scheme, id } })
        })
        .collect()
}

/// The name that the value of a node carries because its key does not hold it whole.
pub(super) fn long_name<'a>(key: &[u8], value: &'a [u8]) -> Option<&'a str> {
    let mut reader = unseal(key, value)?;
    if reader.u8()? & LONG_NAME != 0 { reader.text() } else { None }
}

/// Encode the value of an index entry; `long_text` is its text if the key does not hold it whole.
pub(super) fn encode_index(key: &[u8], long_text: Option<&str>, out: &mut Vec<u8>) {
    sealed(key, out, |out| out.put_slice(long_text.unwrap_or_default().as_bytes()));
}

/// The text that the value of an index entry carries.
pub(super) fn long_text<'a>(key: &[u8], value: &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(unseal(key, value)?.0).ok()
}

pub(super) fn encode_session(key: &[u8], record: &SessionRecord, out: &mut Vec<u8>) {
    sealed(key, out, |out| {
        out.put_u32_le(record.timeout_ms);
        out.put_slice(record.secret.expose());
        out.put_u64_le(record.last_xid.0);
        out.put_u32_le(u32::try_from(record.outcomes.len()).expect("outcomes are bounded"));
        let mut result = BytesMut::new();
        for outcome in record.outcomes.iter() {
            result.clear();
            convert::encode_result(&outcome.result, &mut result);
            out.put_u64_le(outcome.xid.0);
            out.put_u64_le(outcome.zxid.bits());
            out.put_u32_le(u32::try_from(result.len()).expect("a reply is at most a frame"));
            out.put_slice(&result);
        }
    });
}

pub(super) fn decode_session(key: &[u8], value: &[u8]) -> Option<SessionRecord> {
    let mut reader = unseal(key, value)?;
    let timeout_ms = reader.u32()?;
    let secret = Secret::new(reader.array()?);
    let last_xid = Xid(reader.u64()?);
    let outcomes = (0..reader.u32()?)
        .map(|_| {
            let (xid, zxid) = (Xid(reader.u64()?), reader.zxid()?);
            let len = usize::try_from(reader.u32()?).ok()?;
            let result = convert::decode_result(Bytes::copy_from_slice(reader.take(len)?)).ok()?;
            Some(Outcome { xid, zxid, result })
        })
        .collect::<Option<Outcomes>>()?;
    Some(SessionRecord { timeout_ms, secret, last_xid, outcomes })
}

pub(super) fn encode_meta(key: &[u8], hash_key: &[u8; 16], meta: &Meta, out: &mut Vec<u8>) {
    sealed(key, out, |out| {
        out.put_slice(hash_key);
        out.put_u64_le(meta.applied_zxid.bits());
        out.put_u32_le(meta.applied_chain);
        out.put_i64_le(meta.time_ms);
        out.put_u64_le(meta.digest);
        out.put_u64_le(meta.nodes);
        out.put_u64_le(meta.bytes);
        out.put_u64_le(meta.quotas);
    });
}

pub(super) fn decode_meta(key: &[u8], value: &[u8]) -> Option<([u8; 16], Meta)> {
    let mut reader = unseal(key, value)?;
    let hash_key = reader.array()?;
    let meta = Meta {
        applied_zxid: reader.zxid()?,
        applied_chain: reader.u32()?,
        time_ms: reader.i64()?,
        digest: reader.u64()?,
        nodes: reader.u64()?,
        bytes: reader.u64()?,
        quotas: reader.u64()?,
    };
    Some((hash_key, meta))
}
