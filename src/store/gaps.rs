//! Where a view of the tree on disk is known to hold nothing.
//!
//! Whoever creates a node looks first for one that is not there, and mostly close to where the last
//! one was not: names come with rising numbers. A search that finds nothing ends at the next record
//! there is, so that it has found more than it was asked for.

use std::collections::BTreeMap;
use std::ops::Bound;

/// How many are kept. Whoever creates nodes in order needs one at a time.
const MOST: usize = 1024;

/// Ranges of keys that hold nothing.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// From a key on, up to but without the other; without end if there is none.
    ends: BTreeMap<Box<[u8]>, Option<Box<[u8]>>>,
}

impl Gaps {
    /// Whether nothing is known to be there.
    pub(super) fn contain(&self, key: &[u8]) -> bool {
        let upto = (Bound::Unbounded, Bound::Included(key));
        let last = self.ends.range::<[u8], _>(upto).next_back();
        last.is_some_and(|(_, end)| end.as_deref().is_none_or(|end| key < end))
    }

    /// Nothing is there from `start` on up to `end`, `None` being the end of all.
    pub(super) fn add(&mut self, start: &[u8], end: Option<&[u8]>) {
        if self.ends.len() == MOST {
            self.ends.clear();
        }
        self.ends.insert(start.into(), end.map(Box::from));
    }
}
