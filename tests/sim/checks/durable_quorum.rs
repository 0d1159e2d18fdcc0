//! Invariant 9: what is committed would survive the loss of any minority: it is on the disks of a
//! quorum.

use conclave::zab::Position;

use crate::disk::Disk;

/// Asks the voters' disks, but not that of `assumed`, which counts as if it held everything.
pub(crate) fn check<S: Clone + Default>(
    committed: Position,
    voters: &[Disk<S>],
    assumed: Option<usize>,
) {
    // A server that knows its disk to be damaged counts in no quorum until it is repaired, so what
    // it once acknowledged is as safe as if it still held it.
    let holds = |(server, disk): &(usize, &Disk<S>)| {
        Some(*server) == assumed || disk.holds(committed) || disk.lacks_something()
    };
    let durable = voters.iter().enumerate().filter(holds).count();
    assert!(
        durable > voters.len() / 2,
        "{} is delivered but durable on only {durable} of {} disks",
        committed.zxid,
        voters.len()
    );
}
