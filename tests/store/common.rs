//! What the tests of the storage share.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use conclave::store::{self, Identity, Opened, Options, StoreError};
use conclave::tree::SEMANTICS;
use conclave::zab::{Entry, Position};
use conclave_proto::{
    Acl, CreateMode, Epoch, Op, Request, ServerId, SessionId, Txn, Xid, ZPath, Zxid,
};

/// The server whose directory it is.
pub(crate) fn identity() -> Identity {
    Identity { cluster: "test".into(), server: ServerId::new(1).expect("1 is an id") }
}

/// Small enough that every kind of growth happens in a test.
pub(crate) fn options() -> Options {
    Options { map_bytes: 1 << 30, segment_bytes: 16 << 10, ..Options::default() }
}

/// The nodes of a new tree.
pub(crate) const FOUNDED: u64 = 4;

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

/// Dice that fall the same way again.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// A transaction that creates a node named after it.
pub(crate) fn create_txn(zxid: Zxid) -> Txn {
    let path = ZPath::new(&format!("/node-{:06}", zxid.counter())).expect("a valid path");
    txn(Op::Create {
        path,
        data: Some(Bytes::from(format!("made by {zxid}"))),
        acl: Acl::open(),
        mode: CreateMode::PERSISTENT,
    })
}

/// A transaction of no session.
pub(crate) fn txn(op: Op) -> Txn {
    let request = Request { session: SessionId::NONE, xid: Xid(0), acked: Xid(0), op };
    Txn {
        semantics: SEMANTICS,
        time_ms: 1,
        origin: (identity().server, 0),
        identities: Arc::new([]),
        digest: (Zxid::ZERO, 0),
        request,
    }
}
