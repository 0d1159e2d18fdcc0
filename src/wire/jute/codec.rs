//! Jute, the encoding: big-endian numbers, and lengths before everything that has one.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use conclave_proto::{Stat, Zxid};

use super::numbers::Code;

/// The bytes of a body, taken off the front. Whatever is missing, too long or negative is a
/// [`Code::MARSHALLING_ERROR`]; nothing is reserved for what has not come.
#[derive(Clone, Debug)]
pub(super) struct Body(Bytes);

impl Body {
    pub(super) fn new(bytes: Bytes) -> Body {
        Body(bytes)
    }

    pub(super) fn int(&mut self) -> Result<i32, Code> {
        self.0.try_get_i32().map_err(|_| Code::MARSHALLING_ERROR)
    }

    pub(super) fn long(&mut self) -> Result<i64, Code> {
        self.0.try_get_i64().map_err(|_| Code::MARSHALLING_ERROR)
    }

    pub(super) fn unsigned_long(&mut self) -> Result<u64, Code> {
        self.0.try_get_u64().map_err(|_| Code::MARSHALLING_ERROR)
    }

    /// The number of a transaction. Java's numbers have a sign: what is below zero comes before all.
    /// Clients that remember the number of each event have met -1 in what setWatches brought them.
    pub(super) fn zxid(&mut self) -> Result<Zxid, Code> {
        self.long().map(|number| Zxid::from_bits(u64::try_from(number).unwrap_or(0)))
    }

    pub(super) fn unsigned_int(&mut self) -> Result<u32, Code> {
        self.0.try_get_u32().map_err(|_| Code::MARSHALLING_ERROR)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Code> {
        self.0.try_get_u8().map_err(|_| Code::MARSHALLING_ERROR)
    }

    pub(super) fn bool(&mut self) -> Result<bool, Code> {
        self.byte().map(|byte| byte != 0)
    }

    /// Whether it goes on with these bytes; if so they are taken.
    pub(super) fn skip(&mut self, bytes: &[u8]) -> bool {
        let is_there = self.0.starts_with(bytes);
        if is_there {
            self.0.advance(bytes.len());
        }
        is_there
    }

    /// A buffer; `None` is null.
    pub(super) fn buffer(&mut self) -> Result<Option<Bytes>, Code> {
        let length = match self.int()? {
            -1 => return Ok(None),
            length => usize::try_from(length).map_err(|_| Code::MARSHALLING_ERROR)?,
        };
        if length > self.0.len() {
            return Err(Code::MARSHALLING_ERROR);
        }
        Ok(Some(self.0.split_to(length)))
    }

    /// A text; null is the empty one.
    pub(super) fn text(&mut self) -> Result<Text, Code> {
        let bytes = self.buffer()?.unwrap_or_default();
        match std::str::from_utf8(&bytes) {
            Ok(_) => Ok(Text(bytes)),
            Err(_) => Err(Code::MARSHALLING_ERROR),
        }
    }

    /// The number of elements of a vector, each of which has `smallest` bytes at least; null has
    /// none.
    pub(super) fn count(&mut self, smallest: usize) -> Result<usize, Code> {
        let count = match self.int()? {
            -1 => 0,
            count => usize::try_from(count).map_err(|_| Code::MARSHALLING_ERROR)?,
        };
        if count > self.0.len() / smallest {
            return Err(Code::MARSHALLING_ERROR);
        }
        Ok(count)
    }

    /// Nothing must be left.
    pub(super) fn end(&self) -> Result<(), Code> {
        if self.0.is_empty() { Ok(()) } else { Err(Code::MARSHALLING_ERROR) }
    }
}

/// The bytes of a node's statistics.
const STAT_BYTES: usize = 68;
/// The least that a text takes.
pub(super) const TEXT_BYTES: usize = 4;

/// A text that shares the memory of its frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text(Bytes);

impl Text {
    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("it was checked when it was read")
    }
}

pub(super) fn put_buffer(out: &mut BytesMut, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            put_length(out, bytes.len());
            out.put_slice(bytes);
        }
        None => out.put_i32(-1),
    }
}

pub(super) fn put_text(out: &mut BytesMut, text: &str) {
    put_buffer(out, Some(text.as_bytes()));
}

/// The length of what follows, or the number of its elements.
pub(super) fn put_length(out: &mut BytesMut, length: usize) {
    out.put_i32(i32::try_from(length).expect("whatever is sent is far below 2 GiB"));
}

pub(super) fn put_stat(out: &mut BytesMut, stat: &Stat) {
    // In one piece: a slice takes numbers far faster than a buffer that may have to grow.
    let mut bytes = [0; STAT_BYTES];
    let mut rest = &mut bytes[..];
    rest.put_u64(stat.czxid.bits());
    rest.put_u64(stat.mzxid.bits());
    rest.put_i64(stat.ctime_ms);
    rest.put_i64(stat.mtime_ms);
    rest.put_i32(stat.version);
    rest.put_i32(stat.cversion);
    rest.put_i32(stat.aversion);
    rest.put_u64(stat.ephemeral_owner.0);
    rest.put_u32(stat.data_length);
    rest.put_u32(stat.num_children);
    rest.put_u64(stat.pzxid.bits());
    out.put_slice(&bytes);
}
