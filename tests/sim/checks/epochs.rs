//! Invariant 11: the accepted epoch is never behind the current one, and neither ever goes back.

use conclave::zab::Write;

use crate::disk::Disk;

/// Looks at what a server is about to write.
pub(crate) fn check<S: Clone + Default>(server: usize, writes: &[Write], disk: &Disk<S>) {
    let names_one =
        |write: &Write| matches!(write, Write::AcceptedEpoch(_) | Write::CurrentEpoch(_));
    if !writes.iter().any(names_one) {
        return;
    }
    let (mut accepted, mut current) = disk.pending_epochs();
    for write in writes {
        match write {
            Write::AcceptedEpoch(epoch) => {
                assert!(
                    *epoch >= accepted,
                    "server {} takes its accepted epoch back from {accepted} to {epoch}",
                    server + 1
                );
                accepted = *epoch;
            }
            Write::CurrentEpoch(epoch) => {
                assert!(
                    *epoch >= current,
                    "server {} takes its current epoch back from {current} to {epoch}",
                    server + 1
                );
                current = *epoch;
            }
            Write::Append(_) | Write::Truncate(_) | Write::NeedsRepair => {}
        }
        assert!(
            accepted >= current,
            "server {} has accepted epoch {accepted} but is in epoch {current}",
            server + 1
        );
    }
}
