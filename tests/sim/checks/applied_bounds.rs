//! Invariant 12: nobody applies what its own disk would lose.

use conclave::zab::Position;

use crate::disk::Disk;

/// Looks at what a server has delivered.
pub(crate) fn check<S: Clone + Default>(server: usize, delivered: Position, disk: &Disk<S>) {
    assert!(
        disk.holds(delivered),
        "server {} delivers up to {}, but its disk holds only {}",
        server + 1,
        delivered.zxid,
        disk.end().zxid
    );
}
