//! Where a view of the tree on disk is known to hold nothing.
//!
//! Whoever creates a node looks first for one that is not there, and mostly close to where the last
//! one was not: names are the same but for a number, which rises. A search that finds nothing ends
//! at the next record there is, so that it has found more than it was asked for.

use xxhash_rust::xxh3::xxh3_64;

/// How many are kept.
const PLACES: usize = 4096;

/// Ranges of keys that hold nothing: the last one that was found for names that differ in their
/// number alone. Where two sorts of names share a place, the later one has it.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// Empty until the first one is found.
    places: Vec<Option<Gap>>,
}

/// Nothing is there from `start` on up to but without `end`, `None` being the end of all.
#[derive(Clone, Debug)]
struct Gap {
    start: Box<[u8]>,
    end: Option<Box<[u8]>>,
}

impl Gap {
    fn contains(&self, key: &[u8]) -> bool {
        *self.start <= *key && self.end.as_deref().is_none_or(|end| key < end)
    }
}

impl Gaps {
    /// Whether nothing is known to be there.
    pub(super) fn contain(&self, key: &[u8]) -> bool {
        let gap = self.places.get(place(key)).and_then(Option::as_ref);
        gap.is_some_and(|gap| gap.contains(key))
    }

    /// Nothing is there from `start` on up to `end`, `None` being the end of all.
    pub(super) fn add(&mut self, start: &[u8], end: Option<&[u8]>) {
        self.places.resize(PLACES, None);
        self.places[place(start)] = Some(Gap { start: start.into(), end: end.map(Box::from) });
    }
}

/// Where the gap at this key is kept.
fn place(key: &[u8]) -> usize {
    let number = key.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let hash = xxh3_64(&key[..key.len() - number]);
    usize::try_from(hash % PLACES as u64).expect("there are few places")
}
