//! The log as the protocol sees it.

use bytes::Bytes;
use conclave_proto::Zxid;

/// A place in a history. Two logs that have the same position have the same history up to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The transaction.
    pub zxid: Zxid,
    /// The checksum of the whole history up to it: see [`Entry::chain`].
    pub chain: u32,
}

/// One record of the history. The protocol does not look into its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub zxid: Zxid,
    /// CRC-32C over the previous entry's chain, this zxid (both little-endian) and the body.
    pub chain: u32,
    /// What it says.
    pub body: Bytes,
}

impl Entry {
    /// The entry that follows `previous` with this zxid and body.
    ///
    /// # Panics
    /// If `zxid` cannot follow the previous one.
    pub fn after(previous: Position, zxid: Zxid, body: Bytes) -> Entry {
        assert!(zxid.follows(previous.zxid), "{zxid} does not follow {}", previous.zxid);
        let chain = chain(previous, zxid, &body);
        Entry { zxid, chain, body }
    }

    /// Whether it is the undamaged successor of `previous`.
    pub fn continues(&self, previous: Position) -> bool {
        self.zxid.follows(previous.zxid) && self.chain == chain(previous, self.zxid, &self.body)
    }

    /// Its position.
    pub fn position(&self) -> Position {
        Position { zxid: self.zxid, chain: self.chain }
    }
}

fn chain(previous: Position, zxid: Zxid, body: &[u8]) -> u32 {
    let mut crc = crc32c::crc32c(&previous.chain.to_le_bytes());
    crc = crc32c::crc32c_append(crc, &zxid.bits().to_le_bytes());
    crc32c::crc32c_append(crc, body)
}
