//! The log as the protocol sees it.

use std::collections::VecDeque;

use bytes::Bytes;
use conclave_proto::Zxid;

use super::Durable;
use crate::limits::{BATCH_BYTES, BATCH_ENTRIES};

/// A place in a history. Two logs that have the same position have the same history up to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The transaction.
    pub zxid: Zxid,
    /// The checksum of the whole history up to it: see [`Entry::chain`].
    pub chain: u32,
}

/// One record of the history. The protocol does not look into its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub zxid: Zxid,
    /// CRC-32C over the previous entry's chain, this zxid (both little-endian) and the body.
    pub chain: u32,
    /// What it says.
    pub body: Bytes,
}

impl Entry {
    /// The entry that follows `previous` with this zxid and body.
    ///
    /// # Panics
    /// If `zxid` cannot follow the previous one.
    pub fn after(previous: Position, zxid: Zxid, body: Bytes) -> Entry {
        assert!(zxid.follows(previous.zxid), "{zxid} does not follow {}", previous.zxid);
        let chain = chain(previous, zxid, &body);
        Entry { zxid, chain, body }
    }

    /// Whether it is the undamaged successor of `previous`.
    pub fn continues(&self, previous: Position) -> bool {
        self.zxid.follows(previous.zxid) && self.chain == chain(previous, self.zxid, &self.body)
    }

    /// Its position.
    pub fn position(&self) -> Position {
        Position { zxid: self.zxid, chain: self.chain }
    }
}

fn chain(previous: Position, zxid: Zxid, body: &[u8]) -> u32 {
    let mut crc = crc32c::crc32c(&previous.chain.to_le_bytes());
    crc = crc32c::crc32c_append(crc, &zxid.bits().to_le_bytes());
    crc32c::crc32c_append(crc, body)
}

/// The history that this server has: a window of delivered entries, kept to bring followers up to
/// date, then those that are not delivered yet.
///
/// `base <= delivered <= committed <= last` and `delivered <= durable <= last` always hold.
#[derive(Debug)]
pub(super) struct Log {
    /// What precedes `entries`.
    base: Position,
    entries: VecDeque<Entry>,
    /// How many of `entries` are delivered.
    delivered: usize,
    /// The bytes of the delivered entries, and of the others.
    delivered_bytes: usize,
    waiting_bytes: usize,
    /// How far the log survives a crash.
    durable: Zxid,
    /// How far it is known to be committed.
    committed: Zxid,
    window_entries: usize,
    window_bytes: usize,
}

impl Log {
    /// What was found on the disk.
    pub(super) fn new(found: &mut Durable, window_entries: usize, window_bytes: usize) -> Log {
        let mut log = Log::starting_at(found.base, window_entries, window_bytes);
        for entry in std::mem::take(&mut found.entries) {
            assert!(entry.continues(log.last()), "{} does not continue the log", entry.zxid);
            log.append(entry);
        }
        if log.holds(found.applied) {
            log.committed = found.applied.zxid;
            log.durable = log.last().zxid;
            log.mark_delivered(usize::MAX, usize::MAX);
            log.commit(found.committed.min(log.durable));
        } else {
            // The log is damaged: the state is all there is.
            log = Log::starting_at(found.applied, window_entries, window_bytes);
        }
        log.trim(Zxid::MAX);
        log
    }

    fn starting_at(base: Position, window_entries: usize, window_bytes: usize) -> Log {
        Log {
            base,
            entries: VecDeque::new(),
            delivered: 0,
            delivered_bytes: 0,
            waiting_bytes: 0,
            durable: base.zxid,
            committed: base.zxid,
            window_entries,
            window_bytes,
        }
    }

    /// A snapshot has taken the place of everything.
    pub(super) fn install(&mut self, at: Position) {
        assert!(at.zxid >= self.committed, "a snapshot at {} loses {}", at.zxid, self.committed);
        *self = Log::starting_at(at, self.window_entries, self.window_bytes);
    }

    pub(super) fn base(&self) -> Position {
        self.base
    }

    pub(super) fn last(&self) -> Position {
        self.entries.back().map_or(self.base, Entry::position)
    }

    pub(super) fn durable(&self) -> Zxid {
        self.durable
    }

    pub(super) fn committed(&self) -> Zxid {
        self.committed
    }

    pub(super) fn delivered(&self) -> Position {
        match self.delivered.checked_sub(1) {
            Some(index) => self.entries[index].position(),
            None => self.base,
        }
    }

    /// The entries that are not delivered, and their bytes.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.entries.len() - self.delivered, self.waiting_bytes)
    }

    /// The bytes of the entries kept for followers only.
    pub(super) fn kept_bytes(&self) -> usize {
        self.delivered_bytes
    }

    /// Whether the history goes through this position.
    pub(super) fn holds(&self, position: Position) -> bool {
        self.at_or_before(position) == Some(position)
    }

    /// The last position that a history with this one may have in common with this log: itself,
    /// or else what this log has before it. `None` if that is no longer known here.
    pub(super) fn at_or_before(&self, position: Position) -> Option<Position> {
        let index = self.index_after(position.zxid);
        let found = match index.checked_sub(1) {
            Some(index) => self.entries[index].position(),
            None => self.base,
        };
        if found == position || found.zxid < position.zxid {
            return Some(found);
        }
        // The same zxid with another history, or the base is later than the position.
        match index.checked_sub(2) {
            Some(index) => Some(self.entries[index].position()),
            None if index == 1 => Some(self.base),
            None => None,
        }
    }

    /// The position of this zxid, if the log has it.
    pub(super) fn position(&self, zxid: Zxid) -> Option<Position> {
        let found = match self.index_after(zxid).checked_sub(1) {
            Some(index) => self.entries[index].position(),
            None => self.base,
        };
        (found.zxid == zxid).then_some(found)
    }

    /// How many entries follow this zxid.
    pub(super) fn count_after(&self, zxid: Zxid) -> usize {
        self.entries.len() - self.index_after(zxid)
    }

    /// The entries that follow `position`, as many as fit one message; `None` if the log does not
    /// go through it.
    pub(super) fn batch_after(&self, position: Position) -> Option<Vec<Entry>> {
        if !self.holds(position) {
            return None;
        }
        let start = self.index_after(position.zxid);
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let first = bytes == 0;
            bytes += entry.body.len().max(1);
            first || bytes <= BATCH_BYTES
        };
        Some(self.entries.range(start..).take(BATCH_ENTRIES).take_while(fits).cloned().collect())
    }

    pub(super) fn append(&mut self, entry: Entry) {
        assert!(entry.zxid.follows(self.last().zxid), "{} after {}", entry.zxid, self.last().zxid);
        self.waiting_bytes += entry.body.len();
        self.entries.push_back(entry);
    }

    /// Removes what follows `to`.
    pub(super) fn truncate(&mut self, to: Position) {
        assert!(self.holds(to), "truncation to {to:?}, which the log does not have");
        assert!(to.zxid >= self.committed, "truncation to {} loses {}", to.zxid, self.committed);
        let keep = self.index_after(to.zxid);
        for entry in self.entries.drain(keep..) {
            self.waiting_bytes -= entry.body.len();
        }
        self.durable = self.durable.min(to.zxid);
    }

    /// The disk has everything up to here.
    pub(super) fn persisted(&mut self, end: Zxid) {
        assert!(end <= self.last().zxid, "{end} is durable but not in the log");
        self.durable = end;
    }

    /// Everything up to here is committed.
    pub(super) fn commit(&mut self, zxid: Zxid) {
        assert!(zxid <= self.last().zxid, "{zxid} is committed but not in the log");
        self.committed = self.committed.max(zxid);
    }

    /// Takes entries that are committed and durable and were not taken before: about as many as
    /// one message holds, lest the server stand still while it applies a long backlog.
    pub(super) fn deliver(&mut self, most: usize) -> Vec<Entry> {
        let from = self.delivered;
        self.mark_delivered(most, BATCH_BYTES);
        self.entries.range(from..self.delivered).cloned().collect()
    }

    /// The first of what there is to [`Log::deliver`].
    pub(super) fn deliverable(&self) -> Option<Zxid> {
        let next = self.entries.get(self.delivered)?.zxid;
        (next <= self.committed.min(self.durable)).then_some(next)
    }

    fn mark_delivered(&mut self, entries: usize, bytes: usize) {
        let upto = self.committed.min(self.durable);
        let (first, start) = (self.delivered, self.delivered_bytes);
        while let Some(next) = self.entries.get(self.delivered)
            && next.zxid <= upto
            && self.delivered - first < entries
            && self.delivered_bytes - start < bytes
        {
            self.delivered += 1;
            self.delivered_bytes += next.body.len();
            self.waiting_bytes -= next.body.len();
        }
    }

    /// Forgets delivered entries that are beyond the window, up to `keep_after`.
    pub(super) fn trim(&mut self, keep_after: Zxid) {
        while self.delivered > self.window_entries || self.delivered_bytes > self.window_bytes {
            let Some(first) = self.entries.front() else { return };
            if self.delivered == 0 || first.zxid > keep_after {
                return;
            }
            self.base = first.position();
            self.delivered -= 1;
            self.delivered_bytes -= first.body.len();
            self.entries.pop_front();
        }
    }

    /// The number of entries at or before this zxid.
    fn index_after(&self, zxid: Zxid) -> usize {
        self.entries.partition_point(|entry| entry.zxid <= zxid)
    }

    pub(super) fn check(&self) {
        let delivered = self.delivered().zxid;
        let last = self.last().zxid;
        assert!(delivered <= self.committed && self.committed <= last, "{delivered}..{last}");
        assert!(delivered <= self.durable && self.durable <= last, "{delivered}..{last}");
        assert!(self.base.zxid <= delivered, "the log begins after what is delivered");
    }
}

#[cfg(test)]
mod tests {
    use conclave_proto::Epoch;

    use super::*;

    fn zxid(epoch: u32, counter: u64) -> Zxid {
        Zxid::new(Epoch::new(epoch).unwrap(), counter)
    }

    fn log(zxids: &[(u32, u64)], window: usize) -> Log {
        let mut log = Log::new(&mut Durable::default(), window, usize::MAX);
        for (epoch, counter) in zxids {
            let body = Bytes::from(format!("{epoch}.{counter}"));
            log.append(Entry::after(log.last(), zxid(*epoch, *counter), body));
        }
        log.persisted(log.last().zxid);
        log
    }

    #[test]
    fn the_last_common_position_is_found_by_history_and_not_by_zxid() {
        let ours = log(&[(1, 1), (1, 2), (3, 1)], 10);
        let theirs = log(&[(1, 1), (1, 2), (1, 3)], 10);
        assert_eq!(ours.at_or_before(ours.last()), Some(ours.last()));
        assert_eq!(ours.at_or_before(theirs.last()), ours.position(zxid(1, 2)));
        let other = Entry::after(Position::default(), zxid(1, 1), Bytes::from_static(b"other"));
        assert_eq!(ours.at_or_before(other.position()), Some(Position::default()));
        let impostor = Position { zxid: zxid(3, 1), chain: 7 };
        assert_eq!(ours.at_or_before(impostor), ours.position(zxid(1, 2)));
    }

    #[test]
    fn only_what_is_committed_and_durable_is_delivered_and_only_that_is_trimmed() {
        let mut log = log(&[(1, 1), (1, 2), (1, 3), (1, 4)], 1);
        log.commit(zxid(1, 3));
        log.persisted(zxid(1, 2));
        let delivered: Vec<Zxid> = log.deliver(10).iter().map(|entry| entry.zxid).collect();
        assert_eq!(delivered, [zxid(1, 1), zxid(1, 2)]);
        assert!(log.deliver(10).is_empty());
        log.trim(zxid(1, 0));
        assert_eq!(log.base().zxid, Zxid::ZERO, "someone still needs it");
        log.trim(Zxid::MAX);
        assert_eq!(log.base().zxid, zxid(1, 1));
        assert_eq!(log.at_or_before(Position { zxid: zxid(1, 1), chain: 7 }), None);
        assert_eq!(log.count_after(zxid(1, 1)), 3);
        log.check();
    }

    #[test]
    fn a_batch_is_bounded_by_its_bytes_but_never_empty() {
        let mut log = log(&[], 10);
        for counter in 1..=3 {
            let body = Bytes::from(vec![0; BATCH_BYTES * 2 / 3]);
            log.append(Entry::after(log.last(), zxid(1, counter), body));
        }
        assert_eq!(log.batch_after(Position::default()).unwrap().len(), 1);
        assert_eq!(log.batch_after(log.last()).unwrap().len(), 0);
        assert_eq!(log.batch_after(Position { zxid: zxid(1, 1), chain: 7 }), None);
    }

    #[test]
    #[should_panic(expected = "loses")]
    fn what_is_committed_is_never_truncated() {
        let mut log = log(&[(1, 1), (1, 2)], 10);
        log.commit(zxid(1, 2));
        let first = log.position(zxid(1, 1)).unwrap();
        log.truncate(first);
    }
}
