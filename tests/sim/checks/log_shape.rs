//! Invariant 13: a log has no gap, and what is committed is never truncated.

use conclave::zab::{Entry, Write};

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
                let committed = disk.entries(to.zxid, end.zxid).find(|entry| is_in(history, entry));
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
            Write::AcceptedEpoch(_) | Write::CurrentEpoch(_) | Write::NeedsRepair => {}
        }
    }
}

fn is_in(history: &History, entry: &Entry) -> bool {
    history.position_at(entry.zxid) == entry.position()
}
