//! Invariant 13: a log has no gap, and what is committed is never truncated.
//!
//! A server that has not promised the epoch in which something was committed is not one of the
//! quorum that holds it. It may still follow a leader of an earlier epoch, which will never be
//! established, and remove what that one does not have.

use conclave::zab::Write;

use super::History;
use crate::disk::Disk;

/// Looks at what a server is about to write.
pub(crate) fn check<S: Clone + Default>(
    server: usize,
    writes: &[Write],
    disk: &Disk<S>,
    history: &History,
) {
    let mut end = disk.pending_end();
    let (mut promised, _) = disk.pending_epochs();
    for write in writes {
        match write {
            Write::Append(entries) => {
                for entry in entries {
                    assert!(
                        entry.continues(end),
                        "server {} logs {} directly after {}",
                        server + 1,
                        entry.zxid,
                        end.zxid
                    );
                    end = entry.position();
                }
                assert!(!entries.is_empty(), "server {} writes no entries", server + 1);
            }
            Write::Truncate(to) => {
                let committed = disk.entries(to.zxid, end.zxid).find(|entry| {
                    let epoch = history.committed_in(entry.position());
                    epoch.is_some_and(|epoch| epoch <= promised)
                });
                if let Some(entry) = committed {
                    panic!(
                        "server {} truncates to {}, below the committed {}",
                        server + 1,
                        to.zxid,
                        entry.zxid
                    );
                }
                end = *to;
            }
            Write::AcceptedEpoch(epoch) => promised = *epoch,
            Write::CurrentEpoch(_) | Write::NeedsRepair => {}
        }
    }
}
