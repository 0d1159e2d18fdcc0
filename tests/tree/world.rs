//! A tree to which tests hand transactions, one zxid after another.

use conclave::tree::{self, Applied, MemoryNodes};
use conclave_proto::{Epoch, Identity, Op, Request, ServerId, SessionId, Txn, Xid, ZPath, Zxid};

/// A transaction by `session`; unnumbered, at no particular time.
pub(crate) fn txn(session: SessionId, op: Op) -> Txn {
    Txn {
        semantics: tree::SEMANTICS,
        time_ms: 0,
        origin: (ServerId::new(1).unwrap(), 0),
        identities: [].into(),
        digest: (Zxid::ZERO, 0),
        request: Request { session, xid: Xid(0), acked: Xid(0), op },
    }
}

/// The `n`th transaction.
pub(crate) fn zxid(n: u64) -> Zxid {
    Zxid::new(Epoch::new(1).unwrap(), n)
}

/// The tree, and how many transactions it has seen.
pub(crate) struct World {
    pub(crate) nodes: MemoryNodes,
    pub(crate) applied: u64,
}

impl World {
    pub(crate) fn new() -> World {
        World { nodes: MemoryNodes::new(), applied: 0 }
    }

    /// Apply the next transaction, and look at the whole state afterwards.
    pub(crate) fn apply(&mut self, txn: &Txn) -> Applied {
        self.applied += 1;
        let before = self.nodes.clone();
        let (zxid, chain) = (zxid(self.applied), u32::try_from(self.applied).unwrap() + 7);
        let applied = tree::apply(&mut self.nodes, zxid, chain, txn);
        let meta = tree::Nodes::meta(&self.nodes);
        assert_eq!((meta.applied_zxid, meta.applied_chain), (zxid, chain));
        tree::audit(&self.nodes).unwrap();
        if applied.result.is_err() || applied.duplicate {
            assert_eq!(before.iter().collect::<Vec<_>>(), self.nodes.iter().collect::<Vec<_>>());
            assert_eq!(applied.changes, []);
            assert_eq!(applied.session, None);
        }
        applied
    }
}

pub(crate) fn identity(text: &str) -> Identity {
    let (scheme, id) = text.split_once(':').expect("an identity is scheme:id");
    Identity { scheme: scheme.to_owned(), id: id.to_owned() }
}

pub(crate) fn path(text: &str) -> ZPath {
    ZPath::new(text).unwrap()
}
