//! Invariant 3: every entry in any log was proposed by the leader of its epoch.

use std::collections::BTreeMap;

use conclave::zab::Entry;
use conclave_proto::{Epoch, Zxid};

/// Every entry that a leader ever added, by epoch and counter: its chain, and when.
#[derive(Debug, Default)]
pub(crate) struct Origins(BTreeMap<Epoch, Vec<(u32, u64)>>);

impl Origins {
    /// A server that leads or just led `leading` adds entries to its log.
    pub(crate) fn appended(
        &mut self,
        server: usize,
        leading: &[Epoch],
        entries: &[Entry],
        now: u64,
    ) {
        for entry in entries {
            match self.chain_of(entry.zxid) {
                Some(chain) => assert_eq!(
                    chain,
                    entry.chain,
                    "server {} logs another {} than its leader proposed",
                    server + 1,
                    entry.zxid
                ),
                None => self.proposed(server, leading, entry, now),
            }
        }
    }

    /// The chain of the entry of that zxid, if a leader ever proposed it.
    pub(crate) fn chain_of(&self, zxid: Zxid) -> Option<u32> {
        self.find(zxid).map(|(chain, _)| chain)
    }

    /// When the entry of that zxid was proposed.
    pub(crate) fn time_of(&self, zxid: Zxid) -> Option<u64> {
        self.find(zxid).map(|(_, time)| time)
    }

    fn find(&self, zxid: Zxid) -> Option<(u32, u64)> {
        let at = usize::try_from(zxid.counter()).expect("a counter fits").checked_sub(1)?;
        self.0.get(&zxid.epoch())?.get(at).copied()
    }

    fn proposed(&mut self, server: usize, leading: &[Epoch], entry: &Entry, now: u64) {
        assert!(
            leading.contains(&entry.zxid.epoch()),
            "server {} invents {}: it does not lead that epoch",
            server + 1,
            entry.zxid
        );
        let chains = self.0.entry(entry.zxid.epoch()).or_default();
        assert_eq!(
            entry.zxid.counter(),
            chains.len() as u64 + 1,
            "leader {} leaves a gap before {}",
            server + 1,
            entry.zxid
        );
        chains.push((entry.chain, now));
    }
}
