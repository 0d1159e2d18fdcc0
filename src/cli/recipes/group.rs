//! The processes of a group.

use std::fs;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process_group};

/// Whether a process of this group still runs.
pub(super) fn runs(group: Pid) -> bool {
    match test_kill_process_group(group) {
        Err(Errno::SRCH) => false,
        // Those that have ended count, too, until somebody asks how they did: in a container,
        // perhaps nobody ever does.
        Ok(()) => has_living(group),
        // There are some, all of them another user's.
        Err(_) => true,
    }
}

fn has_living(group: Pid) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return true };
    let group = group.as_raw_pid().to_string();
    processes.flatten().any(|process| {
        fs::read_to_string(process.path().join("stat")).is_ok_and(|stat| lives_in(&stat, &group))
    })
}

/// Whether this line of `/proc/PID/stat` is of a process of the group that has not ended.
fn lives_in(stat: &str, group: &str) -> bool {
    // The name in parentheses may have anything in it.
    let Some((_, fields)) = stat.rsplit_once(") ") else { return false };
    let fields: Vec<_> = fields.split_ascii_whitespace().collect();
    let [state, _parent, its_group, ..] = fields[..] else { return false };
    // The first thread of a process may have ended before the others.
    let threads = fields.get(17).and_then(|threads| threads.parse().ok()).unwrap_or(1);
    its_group == group && (!matches!(state, "Z" | "X") || threads > 1)
}

#[cfg(test)]
mod tests {
    use super::lives_in;

    #[test]
    fn who_has_ended_does_not_run() {
        let stat = |state: &str, group: u32, threads: u32| {
            format!("7 (a ) Z 1 (b) {state} 1 {group} 5 0 -1 4 0 0 0 0 0 0 0 0 20 0 {threads} 0 99")
        };
        assert!(lives_in(&stat("S", 5, 1), "5"));
        assert!(lives_in(&stat("T", 5, 1), "5"));
        assert!(!lives_in(&stat("S", 6, 1), "5"));
        assert!(!lives_in(&stat("Z", 5, 1), "5"));
        assert!(lives_in(&stat("Z", 5, 2), "5"), "its other threads do");
    }
}
