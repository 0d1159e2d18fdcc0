//! Invariant 1: an epoch has at most one established leader, ever.

use std::collections::BTreeMap;

use conclave_proto::Epoch;

/// Who led which epoch.
#[derive(Debug, Default)]
pub(crate) struct Leaders(BTreeMap<Epoch, usize>);

impl Leaders {
    /// A server is established as leader.
    pub(crate) fn established(&mut self, server: usize, epoch: Epoch) {
        if let Some(other) = self.0.insert(epoch, server) {
            panic!(
                "server {} leads epoch {epoch}, which server {} led before",
                server + 1,
                other + 1
            );
        }
    }
}
