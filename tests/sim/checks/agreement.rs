//! Invariants 2 and 4: the committed prefixes of all servers agree, with each other and with every
//! one there ever was; delivery is contiguous and in order.

use conclave::zab::{Entry, Position};
use conclave_proto::{Epoch, Zxid};

/// The one history: everything that any server ever delivered.
///
/// An entry's chain covers its whole past, so two positions that are equal have equal pasts.
#[derive(Debug, Default)]
pub(crate) struct History {
    positions: Vec<Position>,
    /// What the first server that delivered each of them had promised by then.
    epochs: Vec<Epoch>,
}

impl History {
    /// How many entries it has.
    pub(crate) fn len(&self) -> usize {
        self.positions.len()
    }

    /// Its end.
    pub(crate) fn end(&self) -> Position {
        self.positions.last().copied().unwrap_or_default()
    }

    /// Its last position up to that zxid.
    pub(crate) fn position_at(&self, zxid: Zxid) -> Position {
        if zxid >= self.end().zxid {
            return self.end();
        }
        match self.positions.partition_point(|position| position.zxid <= zxid) {
            0 => Position::default(),
            after => self.positions[after - 1],
        }
    }

    /// The epoch in which this position was committed, or a later one; `None` if the history does not
    /// have it.
    pub(crate) fn committed_in(&self, position: Position) -> Option<Epoch> {
        let at = self.positions.binary_search_by_key(&position.zxid, |found| found.zxid).ok()?;
        (self.positions[at] == position).then_some(self.epochs[at])
    }

    /// Fails unless the history passes through this position.
    pub(crate) fn assert_contains(&self, server: usize, position: Position) {
        assert_eq!(
            self.position_at(position.zxid),
            position,
            "server {} holds as committed what the history does not have",
            server + 1
        );
    }

    /// A server that had delivered everything up to `last`, and has promised `epoch`, delivers an
    /// entry.
    pub(crate) fn delivered(&mut self, server: usize, epoch: Epoch, last: Position, entry: &Entry) {
        assert!(
            entry.continues(last),
            "server {} delivers {} directly after {}",
            server + 1,
            entry.zxid,
            last.zxid
        );
        if entry.zxid > self.end().zxid {
            assert!(
                entry.continues(self.end()),
                "server {} delivers {}, which does not continue the history at {}",
                server + 1,
                entry.zxid,
                self.end().zxid
            );
            self.positions.push(entry.position());
            self.epochs.push(epoch);
        } else {
            self.assert_contains(server, entry.position());
        }
    }
}
