//! The layout of transactions.

use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::convert::DecodeError;
use crate::ids::{ServerId, SessionId, Xid, Zxid};
use crate::limits;
use crate::node::{Acl, CreateMode, Identity, Lifetime, Perms};
use crate::path::{PathError, ZPath};
use crate::request::{Condition, Op, Request, StatTest, Test, Txn, reads};

use super::{Part, Reader, Sink, choice, decode, encode, malformed, put_sized, record};

/// A transaction as the body of a log entry.
pub fn encode_txn(txn: &Txn) -> Bytes {
    let mut out = BytesMut::new();
    encode(txn, &mut out);
    out.freeze()
}

/// The transaction in a log entry's body.
///
/// # Errors
/// If it is not a valid transaction. The error names the rules it asks for.
pub fn decode_txn(body: &Bytes) -> Result<Txn, DecodeError> {
    decode(body).map_err(|error| match (error, body.first_chunk()) {
        (DecodeError::Malformed(why), Some(first)) => {
            malformed(format!("a transaction by rules {}: {why}", u16::from_be_bytes(*first)))
        }
        (error, _) => error,
    })
}

// The version of the rules comes first, whatever follows.
record!(Txn {
    semantics: u16,
    time_ms: i64,
    origin: (ServerId, u64),
    digest: (Zxid, u64),
    identities: Arc<[Identity]>,
    request: Request,
});

record!(Request { session: SessionId, xid: Xid, acked: Xid, op: Op });

record!(CreateMode { lifetime: Lifetime, sequential: bool, in_line: bool, first_child: u64 });

choice!(Lifetime {
    1 => Persistent,
    2 => Ephemeral,
    3 => Lingering(ms),
    4 => Container,
    5 => Ttl(ms),
});

choice!(Test {
    1 => Exists,
    2 => Missing,
    3 => Version(version),
    4 => ChildVersion(version),
    5 => CreatedBy(zxid),
    6 => Data(data),
    7 => Stat(stat),
});

record!(StatTest {
    czxid: Option<Zxid>,
    mzxid: Option<Zxid>,
    pzxid: Option<Zxid>,
    ctime_ms: Option<i64>,
    mtime_ms: Option<i64>,
    version: Option<i32>,
    cversion: Option<i32>,
    aversion: Option<i32>,
    ephemeral_owner: Option<SessionId>,
    data_length: Option<u32>,
    num_children: Option<u32>,
});

record!(Condition at most limits::MULTI_OPS, { path: ZPath, test: Test });

choice!(Op at most limits::MULTI_OPS, {
    1 => Create { mode, path by |from| new_path(from, mode), data, acl by acl },
    2 => Delete { path, version },
    3 => SetData { path, data, version },
    4 => SetAcl { path, acl by acl, version },
    5 => Check { path, version },
    6 => Require(condition),
    7 => CreateIfMissing { mode, path by |from| new_path(from, mode), data, acl by acl },
    8 => DeleteIfExists { path, version },
    9 => DeleteTree { path, limit },
    10 => Guard { path, token },
    11 => DeleteRecursive { path, limit },
    12 => Multi { conditions, then by inner, otherwise by inner },
    13 => CreateSession { session, timeout_ms, secret },
    14 => CloseSession,
    15 => ExpireSession,
    16 => Reap { path, seen },
} else reads!() => "only writes are kept and forwarded");

/// The numbers of what may be inside a multi. A multi is not, so that they do not nest.
const INNER: RangeInclusive<u8> = 1..=10;

/// The operations inside a multi.
fn inner(from: &mut Reader<'_>) -> Result<Vec<Op>, DecodeError> {
    let length = from.length::<Op>()?;
    from.list(length, |from| match from.rest.first() {
        Some(number) if !INNER.contains(number) => {
            Err(malformed(format!("a choice of Op that is not inside a multi: {number}")))
        }
        _ => Op::take(from),
    })
}

impl Part for ZPath {
    const SMALLEST: usize = 4;

    fn put(&self, out: &mut impl Sink) {
        put_sized(self.as_ref(), out);
    }

    fn take(from: &mut Reader<'_>) -> Result<ZPath, DecodeError> {
        path(from, ZPath::new)
    }
}

/// The path of a node that is to be created.
fn new_path(from: &mut Reader<'_>, mode: CreateMode) -> Result<ZPath, DecodeError> {
    path(from, if mode.sequential { ZPath::prefix } else { ZPath::new })
}

fn path(
    from: &mut Reader<'_>,
    check: impl FnOnce(&str) -> Result<ZPath, PathError>,
) -> Result<ZPath, DecodeError> {
    check(text(from, limits::PATH_BYTES)?).map_err(|error| malformed(error.to_string()))
}

/// A text of at most so many bytes.
fn text<'a>(from: &mut Reader<'a>, most: usize) -> Result<&'a str, DecodeError> {
    let bytes = from.sized()?;
    if bytes.len() > most {
        return Err(malformed(format!(
            "a text of {} bytes, where {most} are allowed",
            bytes.len()
        )));
    }
    std::str::from_utf8(bytes).map_err(|error| malformed(error.to_string()))
}

/// A value.
impl Part for Bytes {
    const SMALLEST: usize = 4;

    fn put(&self, out: &mut impl Sink) {
        put_sized(self, out);
    }

    fn take(from: &mut Reader<'_>) -> Result<Bytes, DecodeError> {
        let value = from.lend()?;
        if value.len() > limits::VALUE_BYTES {
            return Err(malformed(format!("a value of {} bytes", value.len())));
        }
        Ok(value)
    }
}

impl Part for Identity {
    const SMALLEST: usize = 8;
    const MOST: usize = limits::IDENTITIES;

    fn put(&self, out: &mut impl Sink) {
        put_sized(self.scheme.as_bytes(), out);
        put_sized(self.id.as_bytes(), out);
    }

    fn take(from: &mut Reader<'_>) -> Result<Identity, DecodeError> {
        let scheme = text(from, limits::IDENTITY_BYTES)?.into();
        Ok(Identity { scheme, id: text(from, limits::IDENTITY_BYTES)?.into() })
    }
}

/// What nearly every list of lines is: [`Acl::open`].
const OPEN: &[u8] = b"\0\0\0\x01\x1f\0\0\0\x05world\0\0\0\x06anyone";

fn acl(from: &mut Reader<'_>) -> Result<Arc<[Acl]>, DecodeError> {
    match from.rest.strip_prefix(OPEN) {
        Some(rest) => {
            from.rest = rest;
            Ok(Acl::open())
        }
        None => Part::take(from),
    }
}

record!(Acl at most limits::ACL_LINES, { perms: Perms, identity: Identity });
