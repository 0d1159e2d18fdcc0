//! The watches of one connection, as ZooKeeper's clients know them: by path and kind.
//!
//! A client has at most one watch of a kind on a path, so its number follows from the two: a hash
//! with a key of its own, which nobody can aim at. What is set is known from what the replica says,
//! in the order in which it says it.

use std::collections::BTreeMap;
use std::hash::Hasher;

use conclave_proto::{WatchId, WatchKind, ZPath};
use siphasher::sip::SipHasher13;

/// The kinds of watch that a client can have beside each other on one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// Set by getData or exists.
    Data,
    /// Set by getChildren.
    Children,
    /// Set by addWatch, for a node and its children's coming and going.
    Persistent,
    /// Set by addWatch, for a node and everything below it.
    Recursive,
}

impl Slot {
    pub(super) const ALL: [Slot; 4] =
        [Slot::Data, Slot::Children, Slot::Persistent, Slot::Recursive];

    pub(super) fn of(kind: WatchKind) -> Slot {
        match kind {
            WatchKind::Data | WatchKind::Exists => Slot::Data,
            WatchKind::Children => Slot::Children,
            WatchKind::Persistent => Slot::Persistent,
            WatchKind::PersistentRecursive => Slot::Recursive,
        }
    }

    /// The slot of the watch with that number.
    pub(super) fn in_number(id: WatchId) -> Option<Slot> {
        Slot::ALL.into_iter().find(|slot| slot.number() == id.0 & SLOT_BITS)
    }

    fn number(self) -> u64 {
        match self {
            Slot::Data => 0,
            Slot::Children => 1,
            Slot::Persistent => 2,
            Slot::Recursive => 3,
        }
    }

    fn bit(self) -> u8 {
        1 << self.number()
    }
}

/// The bits of a [`WatchId`] that hold the slot.
const SLOT_BITS: u64 = 3;

/// A watch that is asked for.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) path: ZPath,
    pub(super) kind: WatchKind,
}

/// The watches that are set.
#[derive(Debug)]
pub(super) struct Watches {
    key: (u64, u64),
    /// One bit for each slot of a path; there are none without.
    set: BTreeMap<ZPath, u8>,
}

impl Watches {
    pub(super) fn new(key: u64) -> Watches {
        Watches { key: (key, !key), set: BTreeMap::new() }
    }

    /// The number of a watch.
    pub(super) fn id(&self, path: &ZPath, slot: Slot) -> WatchId {
        let mut hasher = SipHasher13::new_with_keys(self.key.0, self.key.1);
        hasher.write(path.as_str().as_bytes());
        WatchId(hasher.finish() & !SLOT_BITS | slot.number())
    }

    /// A watch is set now.
    pub(super) fn add(&mut self, Wanted { path, kind }: Wanted) {
        *self.set.entry(path).or_default() |= Slot::of(kind).bit();
    }

    /// A watch is gone. Whether there was one.
    pub(super) fn remove(&mut self, path: &ZPath, slot: Slot) -> bool {
        let was_set = self.has(path, slot);
        if let Some(set) = self.set.get_mut(path) {
            *set &= !slot.bit();
            if *set == 0 {
                self.set.remove(path);
            }
        }
        was_set
    }

    /// Whether the client is told what the watch of that number has seen on that path. One that fires
    /// once is not known to it if it came with a read whose answer it was refused for its form.
    pub(super) fn is_told(&self, id: WatchId, path: &ZPath) -> bool {
        match Slot::in_number(id) {
            Some(slot @ (Slot::Data | Slot::Children)) => self.has(path, slot),
            Some(Slot::Persistent | Slot::Recursive) | None => true,
        }
    }

    /// The watch of that number on that path has fired; if it was to do so once, it is gone.
    pub(super) fn fired(&mut self, id: WatchId, path: &ZPath) {
        match Slot::in_number(id) {
            Some(slot @ (Slot::Data | Slot::Children)) => {
                self.remove(path, slot);
            }
            Some(Slot::Persistent | Slot::Recursive) | None => {}
        }
    }

    /// Whether there is a watch in that slot.
    pub(super) fn has(&self, path: &ZPath, slot: Slot) -> bool {
        self.set.get(path).is_some_and(|set| set & slot.bit() != 0)
    }

    /// The paths that are watched, in order.
    pub(super) fn paths(&self) -> impl Iterator<Item = &ZPath> {
        self.set.keys()
    }
}
