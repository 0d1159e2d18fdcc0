//! The watches of a session: what has been delivered for each, and where to go on after a
//! reconnection.
//!
//! Two facts make resuming exact. Events of one watch come in the order of their transactions, so
//! when one of transaction z has come, all before z have. And a reply or pong at z comes after
//! every event up to z of every watch that is set, so a quiet watch resumes from the last reply
//! and not from its last event, which the servers may have forgotten.
//!
//! A transaction can have several events for one watch, and a connection can break between them.
//! The watch then resumes from before that transaction, and as many of its events as were delivered
//! are skipped.

use std::collections::BTreeMap;

use conclave_proto::{Event, Op, WatchId, WatchKind, ZPath, Zxid};

/// The watches of a session; `W` is where one reports.
pub(crate) struct Watches<W> {
    entries: BTreeMap<WatchId, Entry<W>>,
    /// Every event up to here of every watch that is set has been delivered.
    complete: Zxid,
}

struct Entry<W> {
    sink: W,
    path: ZPath,
    kind: WatchKind,
    with_value: bool,
    /// The server has answered the request that sets it.
    is_set: bool,
    /// Every event of this watch up to here has been delivered.
    floor: Zxid,
    /// The transaction of the last event, and how many of its events were delivered.
    last: (Zxid, u32),
    /// How many events of `last` come again after a reconnection and are to be skipped.
    skip: u32,
}

impl<W> Entry<W> {
    /// Whether an event has been delivered before.
    fn is_repeated(&mut self, zxid: Zxid) -> bool {
        if zxid <= self.floor || zxid < self.last.0 {
            return true;
        }
        if zxid == self.last.0 && self.skip > 0 {
            self.skip -= 1;
            return true;
        }
        self.skip = 0;
        false
    }

    fn delivered(&mut self, zxid: Zxid) {
        let count = if self.last.0 == zxid { self.last.1.saturating_add(1) } else { 1 };
        self.last = (zxid, count);
        self.floor = self.floor.max(before(zxid));
    }

    /// Prepares to receive again what came after the floor.
    fn resume(&mut self) {
        self.skip = if self.last.0 > self.floor { self.last.1 } else { 0 };
    }
}

/// What to do with an event.
pub(crate) enum Delivery<W> {
    /// Nothing: it is a repetition, or its watch has been removed.
    Nothing,
    /// Report it.
    Report(W),
    /// Report it; it is the last one of this watch.
    Last(W),
}

impl<W: Clone> Watches<W> {
    pub(crate) fn new() -> Watches<W> {
        Watches { entries: BTreeMap::new(), complete: Zxid::ZERO }
    }

    /// A request that sets a watch was made.
    pub(crate) fn add(&mut self, op: &Op, sink: W) {
        let (id, path, kind) = if let Op::Get { path, watch: Some(id) } = op {
            (id, path, WatchKind::Data)
        } else if let Op::Exists { path, watch: Some(id) } = op {
            (id, path, WatchKind::Exists)
        } else if let Op::Children { path, watch: Some(id), .. } = op {
            (id, path, WatchKind::Children)
        } else if let Op::Watch { id, path, kind, .. } = op {
            (id, path, *kind)
        } else {
            return;
        };
        let (since, with_value) = if let Op::Watch { since, with_value, .. } = op {
            (*since, *with_value)
        } else {
            (None, false)
        };
        let entry = Entry {
            sink,
            path: path.clone(),
            kind,
            with_value,
            is_set: false,
            floor: since.unwrap_or(Zxid::ZERO),
            last: (Zxid::ZERO, 0),
            skip: 0,
        };
        self.entries.insert(*id, entry);
    }

    /// The request that sets the watch, or sets it again, was carried out at `zxid`.
    pub(crate) fn set(&mut self, id: WatchId, zxid: Zxid) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.is_set = true;
            entry.floor = entry.floor.max(zxid);
        }
    }

    /// Forgets a watch.
    pub(crate) fn remove(&mut self, id: WatchId) -> Option<W> {
        self.entries.remove(&id).map(|entry| entry.sink)
    }

    /// Forgets all watches.
    pub(crate) fn remove_all(&mut self) -> impl Iterator<Item = W> + use<W> {
        std::mem::take(&mut self.entries).into_values().map(|entry| entry.sink)
    }

    /// Something happened.
    pub(crate) fn event(&mut self, id: WatchId, event: &Event) -> Delivery<W> {
        let Some(entry) = self.entries.get_mut(&id) else { return Delivery::Nothing };
        if entry.is_repeated(event.zxid) {
            return Delivery::Nothing;
        }
        entry.delivered(event.zxid);
        if !entry.kind.is_one_shot() {
            return Delivery::Report(entry.sink.clone());
        }
        self.remove(id).map_or(Delivery::Nothing, Delivery::Last)
    }

    /// The servers could not resume a watch exactly.
    pub(crate) fn gap(&mut self, id: WatchId, resumed_at: Zxid) -> Option<W> {
        let entry = self.entries.get_mut(&id)?;
        entry.floor = entry.floor.max(resumed_at);
        Some(entry.sink.clone())
    }

    /// Every watch is set, and all their events up to here have been delivered.
    pub(crate) fn complete_to(&mut self, zxid: Zxid) {
        self.complete = self.complete.max(zxid);
    }

    /// An event of `zxid` came while every watch is set.
    pub(crate) fn complete_before(&mut self, zxid: Zxid) {
        self.complete_to(before(zxid));
    }

    /// There is a new connection: what has to be set again on it.
    pub(crate) fn resume(&mut self) -> Vec<WatchId> {
        let complete = self.complete;
        let mut ids = Vec::new();
        for (id, entry) in &mut self.entries {
            if entry.is_set {
                entry.floor = entry.floor.max(complete);
                ids.push(*id);
            }
            entry.resume();
        }
        ids
    }

    /// The operation that sets a watch again; `None` if it has been removed meanwhile.
    pub(crate) fn set_again(&self, id: WatchId) -> Option<Op> {
        let entry = self.entries.get(&id)?;
        Some(Op::Watch {
            id,
            path: entry.path.clone(),
            kind: entry.kind,
            since: Some(entry.floor),
            with_value: entry.with_value,
        })
    }
}

fn before(zxid: Zxid) -> Zxid {
    Zxid::from_bits(zxid.bits().saturating_sub(1))
}
