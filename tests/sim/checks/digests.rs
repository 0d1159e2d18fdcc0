//! Invariants 14 and 16: servers that have applied the same history have the same state, however
//! they came by it: transaction by transaction, from a checkpoint and a replay, or by a snapshot.

use std::collections::BTreeMap;

use conclave_proto::Zxid;

/// The digest of the state after each transaction at which somebody looked.
#[derive(Debug, Default)]
pub(crate) struct Digests(BTreeMap<Zxid, (u64, usize)>);

impl Digests {
    /// A server has this state after that transaction.
    pub(crate) fn compare(&mut self, server: usize, zxid: Zxid, digest: u64) {
        let (first, other) = *self.0.entry(zxid).or_insert((digest, server));
        assert_eq!(
            first,
            digest,
            "servers {} and {} have different states after {zxid}",
            other + 1,
            server + 1
        );
    }
}
