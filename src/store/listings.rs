//! Listings that are kept for those who ask for the same again.
//!
//! Many clients watch one node for its children, and all of them list it after each change. What
//! they are told depends on the node's `czxid` and `pzxid` alone: whatever adds or removes a child
//! sets the latter. So nothing has to be thrown away when the tree changes.

use std::collections::BTreeMap;

use conclave_proto::{Names, ZPath, Zxid};

use crate::limits;
use crate::tree::Node;

/// The latest listings, by path.
#[derive(Debug, Default)]
pub(super) struct Listings {
    kept: BTreeMap<ZPath, ((Zxid, Zxid), Known)>,
    bytes: usize,
}

/// What is known of a listing.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// All of it.
    Names(Names),
    /// Packed it takes more than so many bytes.
    Above(usize),
}

/// What one costs beside its names, in bytes: an estimate.
const COST: usize = 200;

impl Listings {
    /// What is known of the names of the children of `node`, which is at `path`.
    pub(super) fn get(&self, path: &ZPath, node: &Node) -> Option<Known> {
        let (of, known) = self.kept.get(path)?;
        (*of == (node.czxid, node.pzxid)).then(|| known.clone())
    }

    pub(super) fn keep(&mut self, path: &ZPath, node: &Node, known: Known) {
        let cost = |path: &ZPath, known: &Known| {
            let names = match known {
                Known::Names(names) => names.packed().len(),
                Known::Above(_) => 0,
            };
            COST + path.as_str().len() + names
        };
        let added = cost(path, &known);
        if added > limits::LISTINGS_KEPT_BYTES {
            return;
        }
        if let Some((path, (_, old))) = self.kept.remove_entry(path) {
            self.bytes -= cost(&path, &old);
        }
        if self.bytes + added > limits::LISTINGS_KEPT_BYTES {
            // Whoever is asked for often is soon back.
            self.kept.clear();
            self.bytes = 0;
        }
        self.bytes += added;
        self.kept.insert(path.clone(), ((node.czxid, node.pzxid), known));
    }
}
