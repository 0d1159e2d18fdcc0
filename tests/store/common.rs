//! What the tests of the storage share.

use std::path::Path;

use bytes::Bytes;
use conclave::store::{self, Identity, Opened, Options, StoreError};
use conclave::zab::{Entry, Position};
use conclave_proto::{Epoch, ServerId, Zxid};

/// The server whose directory it is.
pub(crate) fn identity() -> Identity {
    Identity { cluster: "test".into(), server: ServerId::new(1).expect("1 is an id") }
}

/// Small enough that every kind of growth happens in a test.
pub(crate) fn options() -> Options {
    Options { map_bytes: 1 << 30, segment_bytes: 16 << 10, ..Options::default() }
}

pub(crate) fn try_open(dir: &Path) -> Result<Opened, StoreError> {
    store::open(dir, &identity(), options())
}

pub(crate) fn open(dir: &Path) -> Opened {
    try_open(dir).expect("the directory opens")
}

pub(crate) fn epoch(number: u32) -> Epoch {
    Epoch::new(number).expect("a small epoch")
}

/// The next entry of this epoch, with a body of that length.
pub(crate) fn next(after: Position, epoch: Epoch, len: usize) -> Entry {
    let zxid = if after.zxid.epoch() == epoch && after.zxid != Zxid::ZERO {
        after.zxid.next().expect("a small counter")
    } else {
        Zxid::new(epoch, 1)
    };
    let fill = zxid.counter().to_le_bytes()[0];
    Entry::after(after, zxid, Bytes::from(vec![fill; len]))
}

/// So many entries, one after another.
pub(crate) fn entries(mut after: Position, epoch: Epoch, lens: &[usize]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for len in lens {
        let entry = next(after, epoch, *len);
        after = entry.position();
        entries.push(entry);
    }
    entries
}
