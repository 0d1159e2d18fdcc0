//! Invariants 5 and 6: a server that begins to lead has delivered everything that was committed in
//! earlier epochs, and its disk holds all of it.
//!
//! Later epochs may have begun already: a server that stood still learns late that it was elected.

use conclave::zab::Position;
use conclave_proto::{Epoch, Zxid};

use super::History;
use crate::disk::Disk;

/// Looks at a server that says it leads.
pub(crate) fn check<S: Clone + Default>(
    server: usize,
    epoch: Epoch,
    delivered: Position,
    disk: &Disk<S>,
    history: &History,
) {
    let committed = history.position_at(Zxid::new(epoch, 0));
    assert_eq!(
        delivered,
        committed,
        "server {} leads epoch {epoch} before it has delivered everything committed",
        server + 1
    );
    assert!(
        disk.holds(committed),
        "server {} leads with a disk that lacks the committed {}",
        server + 1,
        committed.zxid
    );
}
