//! A server's disk: what was synced stays, what was not is the volatile tail and may go.

use std::collections::VecDeque;

use conclave::zab::{Durable, Entry, Position, Write, WriteToken};
use conclave_proto::{Epoch, Zxid};

use crate::random::Random;

/// The disk of one server. `S` is the state that a checkpoint holds.
#[derive(Clone, Debug)]
pub(crate) struct Disk<S> {
    accepted: Epoch,
    current: Epoch,
    checkpoint: Position,
    state: S,
    base: Position,
    log: VecDeque<Entry>,
    needs_repair: bool,
    /// It has taken the place of another, and was not brought in sync since.
    replaces: bool,
    /// The writes of each `Ready` that are not synced yet.
    pending: VecDeque<(WriteToken, Vec<Write>)>,
    /// How many of them the sync under way covers.
    syncing: usize,
}

impl<S: Clone + Default> Disk<S> {
    /// A blank disk.
    pub(crate) fn blank() -> Disk<S> {
        Disk {
            accepted: Epoch::ZERO,
            current: Epoch::ZERO,
            checkpoint: Position::default(),
            state: S::default(),
            base: Position::default(),
            log: VecDeque::new(),
            needs_repair: false,
            replaces: false,
            pending: VecDeque::new(),
            syncing: 0,
        }
    }

    /// A blank disk in the place of another.
    pub(crate) fn replacement() -> Disk<S> {
        Disk { replaces: true, ..Disk::blank() }
    }

    /// The epochs that would survive a crash now: accepted, current.
    pub(crate) fn epochs(&self) -> (Epoch, Epoch) {
        (self.accepted, self.current)
    }

    /// The epochs once everything pending is written.
    pub(crate) fn pending_epochs(&self) -> (Epoch, Epoch) {
        let (mut accepted, mut current) = self.epochs();
        for write in self.pending.iter().flat_map(|(_, writes)| writes) {
            match write {
                Write::AcceptedEpoch(epoch) => accepted = *epoch,
                Write::CurrentEpoch(epoch) => current = *epoch,
                Write::Append(_) | Write::Truncate(_) | Write::NeedsRepair => {}
            }
        }
        (accepted, current)
    }

    /// The end of the log that would survive a crash now.
    pub(crate) fn end(&self) -> Position {
        self.log.back().map_or(self.base, Entry::position)
    }

    /// The end of the log once everything pending is written.
    pub(crate) fn pending_end(&self) -> Position {
        let writes = self.pending.iter().rev().flat_map(|(_, writes)| writes.iter().rev());
        writes.filter_map(end_after).next().unwrap_or_else(|| self.end())
    }

    /// Whether everything is synced.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// The position of the last durable checkpoint.
    pub(crate) fn checkpoint(&self) -> Position {
        self.checkpoint
    }

    /// The durable position at or directly before that zxid; `None` if the log no longer reaches
    /// back that far.
    pub(crate) fn position_at(&self, zxid: Zxid) -> Option<Position> {
        if zxid < self.base.zxid {
            return None;
        }
        let after = self.log.partition_point(|entry| entry.zxid <= zxid);
        Some(if after == 0 { self.base } else { self.log[after - 1].position() })
    }

    /// Whether the history up to this position would survive a crash now. What a checkpoint covers
    /// was committed when it was made, and the history of commits is checked elsewhere.
    pub(crate) fn holds(&self, position: Position) -> bool {
        match self.position_at(position.zxid) {
            Some(found) => found == position,
            None => position.zxid <= self.checkpoint.zxid,
        }
    }

    /// The durable entries after `from`, up to `to`.
    pub(crate) fn entries(&self, from: Zxid, to: Zxid) -> impl Iterator<Item = &Entry> {
        let start = self.log.partition_point(|entry| entry.zxid <= from);
        let end = self.log.partition_point(|entry| entry.zxid <= to);
        self.log.range(start..end.max(start))
    }

    /// Writes these, behind everything that is pending.
    pub(crate) fn enqueue(&mut self, token: WriteToken, writes: Vec<Write>) {
        self.pending.push_back((token, writes));
    }

    /// Begins to sync everything pending; false if there is nothing, or a sync is under way.
    pub(crate) fn start_sync(&mut self) -> bool {
        if self.syncing > 0 || self.pending.is_empty() {
            return false;
        }
        self.syncing = self.pending.len();
        true
    }

    /// The sync has come back: what it covered is durable now, up to this token.
    pub(crate) fn finish_sync(&mut self) -> WriteToken {
        let mut last = WriteToken(0);
        for _ in 0..std::mem::take(&mut self.syncing) {
            let (token, writes) = self.pending.pop_front().expect("a sync covers what is pending");
            writes.into_iter().for_each(|write| self.perform(write));
            last = token;
        }
        last
    }

    /// The power goes, or the process does: of what was pending, a random part of the oldest
    /// survives, at most this many thousandths.
    pub(crate) fn crash(&mut self, random: &mut Random, survive: u64) {
        self.syncing = 0;
        let writes = std::mem::take(&mut self.pending).into_iter().flat_map(|(_, writes)| writes);
        let writes: Vec<Write> = writes.collect();
        let atoms: usize = writes.iter().map(atoms).sum();
        let most = random.below(survive + 1);
        let mut left = usize::try_from(atoms as u64 * most / 1000).expect("a part of a usize");
        for write in writes {
            let Some(write) = first_atoms(write, &mut left) else { return };
            self.perform(write);
        }
    }

    /// A snapshot takes the place of the checkpoint and of the log, in one step.
    pub(crate) fn install(&mut self, at: Position, state: S) {
        assert!(self.is_idle(), "a snapshot is installed under writes that are not synced");
        self.checkpoint = at;
        self.state = state;
        self.base = at;
        self.log.clear();
    }

    /// A checkpoint is durable; of the log below it, at most this many entries are kept.
    pub(crate) fn set_checkpoint(&mut self, at: Position, state: S, kept: u64) {
        assert!(at.zxid > self.checkpoint.zxid, "a checkpoint went back to {}", at.zxid);
        assert!(self.holds(at), "a checkpoint at {} is ahead of the log", at.zxid);
        self.checkpoint = at;
        self.state = state;
        let below = self.log.partition_point(|entry| entry.zxid <= at.zxid);
        let kept = usize::try_from(kept).unwrap_or(usize::MAX);
        for entry in self.log.drain(..below.saturating_sub(kept)) {
            self.base = entry.position();
        }
    }

    /// Part of the log, or all there is, is damaged, and recovery notices.
    pub(crate) fn damage(&mut self, random: &mut Random) {
        if random.chance(300) {
            *self = Disk::blank();
        } else {
            let checkpoint = self.checkpoint.zxid;
            let below = self.log.partition_point(|entry| entry.zxid <= checkpoint);
            let kept = below + random.index(self.log.len() - below + 1);
            self.log.truncate(kept);
        }
        self.needs_repair = true;
    }

    /// Whether something that was acknowledged may be missing, which the server knows, or finds out
    /// before it counts in a quorum.
    pub(crate) fn lacks_something(&self) -> bool {
        self.needs_repair || self.replaces
    }

    /// Whether a quorum can count on it: nothing is missing, as far as anybody knows, and it has
    /// taken part. A server that has not may have to take itself for one that lost its disk.
    pub(crate) fn is_sound(&self) -> bool {
        !self.needs_repair && self.accepted > Epoch::ZERO
    }

    /// What a server that starts now finds.
    pub(crate) fn recover(&self) -> (Durable, S) {
        assert!(self.pending.is_empty(), "a server starts while its old process still writes");
        let durable = Durable {
            accepted_epoch: self.accepted,
            current_epoch: self.current,
            applied: self.checkpoint,
            base: self.base,
            entries: self.log.iter().cloned().collect(),
            committed: Zxid::ZERO,
            needs_repair: self.needs_repair,
        };
        (durable, self.state.clone())
    }

    fn perform(&mut self, write: Write) {
        match write {
            Write::Append(entries) => {
                for entry in entries {
                    let end = self.end();
                    assert!(
                        entry.continues(end),
                        "the log has a gap: {} after {end:?}",
                        entry.zxid
                    );
                    self.log.push_back(entry);
                }
            }
            Write::Truncate(to) => {
                assert!(
                    to.zxid >= self.checkpoint.zxid,
                    "truncation to {} goes below the checkpoint {}",
                    to.zxid,
                    self.checkpoint.zxid
                );
                while self.log.back().is_some_and(|entry| entry.zxid > to.zxid) {
                    self.log.pop_back();
                }
                assert_eq!(self.end(), to, "truncation to a position that the log does not have");
            }
            Write::AcceptedEpoch(epoch) => self.accepted = epoch,
            Write::CurrentEpoch(epoch) => {
                self.current = epoch;
                self.needs_repair = false;
                self.replaces = false;
            }
            Write::NeedsRepair => self.needs_repair = true,
        }
        assert!(
            self.accepted >= self.current,
            "accepted epoch {} is behind current epoch {}",
            self.accepted,
            self.current
        );
    }
}

/// Where the log ends after this write, if it says so.
fn end_after(write: &Write) -> Option<Position> {
    match write {
        Write::Append(entries) => entries.last().map(Entry::position),
        Write::Truncate(to) => Some(*to),
        Write::AcceptedEpoch(_) | Write::CurrentEpoch(_) | Write::NeedsRepair => None,
    }
}

/// The number of pieces that a crash can tear this into.
fn atoms(write: &Write) -> usize {
    match write {
        Write::Append(entries) => entries.len(),
        Write::Truncate(_)
        | Write::AcceptedEpoch(_)
        | Write::CurrentEpoch(_)
        | Write::NeedsRepair => 1,
    }
}

/// As much of a write as `left` pieces allow, which are used up; `None` if there are none left.
fn first_atoms(write: Write, left: &mut usize) -> Option<Write> {
    match write {
        Write::Append(mut entries) => {
            entries.truncate(*left);
            *left -= entries.len();
            (!entries.is_empty()).then_some(Write::Append(entries))
        }
        Write::Truncate(_)
        | Write::AcceptedEpoch(_)
        | Write::CurrentEpoch(_)
        | Write::NeedsRepair => {
            *left = left.checked_sub(1)?;
            Some(write)
        }
    }
}
