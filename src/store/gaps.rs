//! Where a view of the tree on disk is known to hold nothing.
//!
//! Whoever creates a node looks first for one that is not there, and mostly close to where the last
//! one was not: names are the same but for a number, which rises. A search that finds nothing ends
//! at the next record there is, so that it has found more than it was asked for.

use xxhash_rust::xxh3::xxh3_64;

/// How many are kept.
const PLACES: usize = 4096;
/// The most records that one of them passes over.
const PASSED: usize = 32;

/// Ranges of keys that hold nothing: the last one that was found for names that differ in their
/// number alone. Where two sorts of names share a place, the later one has it.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// Empty until the first one is found.
    places: Vec<Option<Gap>>,
}

/// Nothing is there from `start` on up to but without `end`, `None` being the end of all, except
/// for the keys in `but`, which are in order.
///
/// Numbers that are as long as they have to be need the exceptions: "1010" to "1019" lie between
/// "101" and "102", so that a gap without any ends after ten of them.
#[derive(Clone, Debug)]
struct Gap {
    start: Box<[u8]>,
    end: Option<Box<[u8]>>,
    but: Vec<Box<[u8]>>,
    /// Whether it has spared a search.
    used: bool,
}

impl Gap {
    fn contains(&self, key: &[u8]) -> bool {
        *self.start <= *key
            && self.end.as_deref().is_none_or(|end| key < end)
            && self.but.binary_search_by(|there| (**there).cmp(key)).is_err()
    }
}

impl Gaps {
    /// Whether nothing is known to be there.
    pub(super) fn contain(&mut self, key: &[u8]) -> bool {
        let gap = self.places.get_mut(place(key)).and_then(Option::as_mut);
        gap.is_some_and(|gap| {
            let contains = gap.contains(key);
            gap.used |= contains;
            contains
        })
    }

    /// Nothing is there from `start` on up to the first of `keys`: those of the records that come
    /// next, in order.
    pub(super) fn add<'k, E>(
        &mut self,
        start: &[u8],
        keys: impl IntoIterator<Item = Result<&'k [u8], E>>,
    ) -> Result<(), E> {
        self.places.resize(PLACES, None);
        let old = &mut self.places[place(start)];
        // Where names do not count up, whatever lies beyond the first record is of no use.
        let most = if old.as_ref().is_some_and(|old| old.used) { PASSED } else { 0 };
        let (mut but, mut end) = (Vec::new(), None);
        for key in keys {
            let key = key?;
            if but.len() == most || stem(key) != stem(start) {
                end = Some(key.into());
                break;
            }
            but.push(key.into());
        }
        *old = Some(Gap { start: start.into(), end, but, used: false });
        Ok(())
    }
}

/// A key without the number that it ends with.
fn stem(key: &[u8]) -> &[u8] {
    let number = key.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    &key[..key.len() - number]
}

/// Where the gap at this key is kept.
fn place(key: &[u8]) -> usize {
    usize::try_from(xxh3_64(stem(key)) % PLACES as u64).expect("there are few places")
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn search(gaps: &mut Gaps, there: &[&str], key: &str) {
        let after = there.iter().filter(|name| **name >= key).map(|name| name.as_bytes());
        gaps.add(key.as_bytes(), after.map(Ok::<_, Infallible>)).unwrap();
    }

    #[test]
    fn a_gap_ends_at_the_next_record() {
        let mut gaps = Gaps::default();
        search(&mut gaps, &["a-101", "a-102", "b"], "a-1010");
        assert!(gaps.contain(b"a-1010"));
        assert!(gaps.contain(b"a-1019"));
        assert!(!gaps.contain(b"a-101"));
        assert!(!gaps.contain(b"a-102"));
        assert!(!gaps.contain(b"a-1020"));
    }

    #[test]
    fn names_that_count_up_are_searched_past_shorter_ones() {
        let there = ["a-101", "a-102", "a-103", "a-x", "b"];
        let mut gaps = Gaps::default();
        search(&mut gaps, &there, "a-1010");
        assert!(gaps.contain(b"a-1011"));
        search(&mut gaps, &there, "a-1020");
        for missing in ["a-1020", "a-1029", "a-1030", "a-104", "a-9999"] {
            assert!(gaps.contain(missing.as_bytes()), "{missing}");
        }
        for name in ["a-101", "a-1019", "a-103", "a-x", "b"] {
            assert!(!gaps.contain(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_gap_without_an_end_reaches_to_the_end_of_all() {
        let mut gaps = Gaps::default();
        search(&mut gaps, &["a-1"], "a-2");
        assert!(gaps.contain(b"a-2"));
        search(&mut gaps, &["a-1", "a-3"], "a-2");
        assert!(gaps.contain(b"a-4"));
        assert!(!gaps.contain(b"a-3"));
    }
}
