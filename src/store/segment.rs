//! One file of the log: a header page, then records, then whatever was there before.
//!
//! ```text
//!   0      header: whose, generation, salt, position before the first record
//!   4096   record | record | record | old bytes ...
//!
//!   record: checksum of the rest of its head (4), length of the body (4), zxid (8), chain (4),
//!           offset below which this file was synced when the record was written (4), body, zeros
//!           up to a multiple of 8
//! ```
//!
//! A head's checksum is seeded with the segment's generation and salt, so that what an earlier use
//! of the file left behind is never taken for a record, and nobody can plant one in a value.

use std::fs::File;
use std::path::{Path, PathBuf};

use bytes::{BufMut, Bytes};
use conclave_proto::{ServerId, Zxid};

use super::Identity;
use super::codec::Reader;
use super::disk::Disk;
use super::error::{IoContext, StoreError};
use super::files::{Unsealed, of_other_format, put_position, seal, unseal};
use crate::limits::PEER_FRAME_BYTES;
use crate::zab::{Entry, Position};

const MAGIC: [u8; 8] = *b"CNCLSEGM";

/// Where the first record begins.
pub(super) const HEADER_BYTES: u64 = 4096;
const HEAD_BYTES: usize = 24;
const ALIGNMENT: usize = 8;
/// The longest body.
pub(super) const BODY_BYTES: usize = PEER_FRAME_BYTES;
/// How much is read at once.
const READ_BYTES: usize = 1 << 20;

/// What a segment says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) identity: Identity,
    /// Grows with each use of a file as a segment.
    pub(super) generation: u64,
    pub(super) salt: u32,
    /// Whether the history begins here, whatever earlier segments hold.
    pub(super) reset: bool,
    /// The position before the first record. What earlier segments hold after it is void.
    pub(super) base: Position,
    /// The length of the file.
    pub(super) size: u64,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut contents = Vec::new();
        contents.put_u64_le(self.generation);
        contents.put_u32_le(self.salt);
        contents.put_u8(self.reset.into());
        put_position(&mut contents, self.base);
        contents.put_u64_le(self.size);
        contents.put_u8(self.identity.server.get());
        contents.put_slice(self.identity.cluster.as_bytes());
        seal(MAGIC, &contents)
    }

    fn decode(path: &Path, bytes: &[u8]) -> Result<Header, StoreError> {
        let damaged = || StoreError::damaged(path, "its header does not match its checksum");
        let mut reader = match unseal(MAGIC, bytes) {
            Ok(reader) => reader,
            Err(Unsealed::Other(format)) => return Err(of_other_format(path, format)),
            Err(Unsealed::Damaged) => return Err(damaged()),
        };
        let mut parse = || {
            let generation = reader.u64()?;
            let salt = reader.u32()?;
            let reset = reader.u8()? != 0;
            let base = reader.position()?;
            let size = reader.u64()?;
            let server = ServerId::new(reader.u8()?)?;
            let cluster = std::str::from_utf8(reader.0).ok()?.to_owned();
            let identity = Identity { cluster, server };
            Some(Header { identity, generation, salt, reset, base, size })
        };
        parse().ok_or_else(damaged)
    }

    pub(super) fn seed(&self) -> u32 {
        crc32c::crc32c_append(
            crc32c::crc32c(&self.generation.to_le_bytes()),
            &self.salt.to_le_bytes(),
        )
    }
}

/// How many bytes a record with a body of that length takes.
pub(super) fn record_bytes(body: usize) -> usize {
    (HEAD_BYTES + body).next_multiple_of(ALIGNMENT)
}

/// Append a record to `out`.
pub(super) fn encode_record(seed: u32, entry: &Entry, synced: u64, out: &mut Vec<u8>) {
    let start = out.len();
    out.put_u32_le(0);
    out.put_u32_le(u32::try_from(entry.body.len()).expect("bodies are bounded"));
    out.put_u64_le(entry.zxid.bits());
    out.put_u32_le(entry.chain);
    out.put_u32_le(u32::try_from(synced).expect("segments are smaller than 4 GiB"));
    let crc = crc32c::crc32c_append(seed, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out.put_slice(&entry.body);
    out.resize(start + record_bytes(entry.body.len()), 0);
}

#[derive(Clone, Copy)]
struct Head {
    body: usize,
    zxid: Zxid,
    chain: u32,
    synced: u64,
}

fn decode_head(seed: u32, bytes: &[u8]) -> Option<Head> {
    let mut reader = Reader(bytes.get(..HEAD_BYTES)?);
    let crc = reader.u32()?;
    let body = usize::try_from(reader.u32()?).ok()?;
    let sound = body <= BODY_BYTES && crc == crc32c::crc32c_append(seed, &bytes[4..HEAD_BYTES]);
    let (zxid, chain, synced) = (reader.zxid()?, reader.u32()?, reader.u32()?.into());
    sound.then_some(Head { body, zxid, chain, synced })
}

/// Reads a segment from its first record on.
#[derive(Debug)]
pub(super) struct SegmentReader {
    disk: Disk,
    file: File,
    pub(super) path: PathBuf,
    pub(super) header: Header,
    pub(super) size: u64,
    seed: u32,
    /// Where the next record begins.
    pub(super) offset: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
}

/// What follows the last record that continues the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Nothing that was ever written to this segment.
    Clean,
    /// This many bytes that a crash left half written. No later record says that any of them was
    /// durable. If the records of the very last sync rot on the disk, that looks the same.
    Torn(u64),
    /// A record that was durable once: something later was written after it had been synced.
    Damaged,
}

impl SegmentReader {
    pub(super) fn open(disk: &Disk, path: &Path) -> Result<SegmentReader, StoreError> {
        let file = disk.open(path)?;
        let size = file.metadata().at("look at", path)?.len();
        let page = usize::try_from(HEADER_BYTES.min(size)).expect("a page");
        let mut bytes = vec![0; page];
        disk.read(&file, path, 0, &mut bytes)?;
        let header = Header::decode(path, &bytes)?;
        if size < header.size {
            let what = format_args!("it has {size} bytes, not {}", header.size);
            return Err(StoreError::damaged(path, what));
        }
        let (seed, offset) = (header.seed(), HEADER_BYTES);
        let path = path.to_owned();
        Ok(SegmentReader {
            disk: disk.clone(),
            file,
            path,
            header,
            size,
            seed,
            offset,
            buffer: Vec::new(),
            buffer_at: 0,
        })
    }

    /// The bytes from `offset` on, at least `len` of them; `None` if the file is shorter.
    fn bytes(&mut self, offset: u64, len: usize) -> Result<Option<&[u8]>, StoreError> {
        let end = offset + len as u64;
        if end > self.size {
            return Ok(None);
        }
        let buffered = self.buffer_at + self.buffer.len() as u64;
        if offset < self.buffer_at || end > buffered {
            let left = usize::try_from(self.size - offset).unwrap_or(usize::MAX);
            self.buffer.resize(len.max(READ_BYTES).min(left), 0);
            self.disk.read(&self.file, &self.path, offset, &mut self.buffer)?;
            self.buffer_at = offset;
        }
        let start = usize::try_from(offset - self.buffer_at).expect("it is within the buffer");
        Ok(Some(&self.buffer[start..]))
    }

    /// The next record, if it continues the history that ends at `previous`.
    pub(super) fn next(&mut self, previous: Position) -> Result<Option<Entry>, StoreError> {
        let (offset, seed) = (self.offset, self.seed);
        let Some(bytes) = self.bytes(offset, HEAD_BYTES)? else { return Ok(None) };
        let Some(head) = decode_head(seed, bytes) else { return Ok(None) };
        let whole = record_bytes(head.body);
        let Some(bytes) = self.bytes(offset, whole)? else { return Ok(None) };
        let body = &bytes[HEAD_BYTES..HEAD_BYTES + head.body];
        let entry =
            Entry { zxid: head.zxid, chain: head.chain, body: Bytes::copy_from_slice(body) };
        if !entry.continues(previous) {
            return Ok(None);
        }
        self.offset += whole as u64;
        Ok(Some(entry))
    }

    /// Find out what lies from the current offset on, where no record continues the history.
    pub(super) fn tail(&mut self) -> Result<Tail, StoreError> {
        let (end, seed) = (self.offset, self.seed);
        let mut torn = 0;
        let mut offset = end;
        while let Some(bytes) = self.bytes(offset, HEAD_BYTES)? {
            let mut seen = 0;
            while seen + HEAD_BYTES <= bytes.len() {
                let place = offset + seen as u64;
                if let Some(head) =
                    plausible(&bytes[seen..]).then(|| decode_head(seed, &bytes[seen..])).flatten()
                {
                    if head.synced > end {
                        return Ok(Tail::Damaged);
                    }
                    torn = place + record_bytes(head.body) as u64 - end;
                }
                seen += ALIGNMENT;
            }
            offset += seen as u64;
        }
        Ok(if torn == 0 { Tail::Clean } else { Tail::Torn(torn) })
    }

    pub(super) fn into_file(self) -> File {
        self.file
    }
}

/// Whether it is worth while to compute a checksum: most of a segment is zeros.
fn plausible(bytes: &[u8]) -> bool {
    bytes[..8] != [0; 8]
}
