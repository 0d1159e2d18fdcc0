//! What server processes on this machine consume, as the kernel counts it.

use std::fs;
use std::time::Duration;

use super::report::Usage;

/// Clock ticks of `/proc/PID/stat`: 100 a second on every Linux that is in use.
const TICK_US: u64 = 10_000;
/// The fields of `/proc/PID/stat` after the program's name: user time is the 12th of them.
const USER_TIME: usize = 11;

/// Counters of some processes at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    cpu_us: u64,
    switches: u64,
}

impl Counters {
    /// The counters of these processes now; those that are gone count as nothing.
    pub(super) fn of(pids: &[u32]) -> Counters {
        let mut sum = Counters::default();
        for &pid in pids {
            sum.cpu_us += cpu_us(pid).unwrap_or(0);
            sum.switches += switches(pid).unwrap_or(0);
        }
        sum
    }

    /// What was used since, by the same processes, for each of that many operations.
    #[expect(clippy::cast_precision_loss, reason = "averages for people")]
    pub(super) fn usage_until(self, now: Counters, operations: u64, pids: &[u32]) -> Usage {
        let operations = operations.max(1) as f64;
        Usage {
            cpu_us_per_op: now.cpu_us.saturating_sub(self.cpu_us) as f64 / operations,
            rss_mib: pids.iter().map(|&pid| rss_mib(pid)).fold(0.0, f64::max),
            switches_per_op: now.switches.saturating_sub(self.switches) as f64 / operations,
        }
    }

    /// How many cores the same processes kept busy in that time.
    pub(super) fn cores_until(self, now: Counters, elapsed: Duration) -> f64 {
        let busy = Duration::from_micros(now.cpu_us.saturating_sub(self.cpu_us));
        busy.as_secs_f64() / elapsed.as_secs_f64()
    }
}

fn cpu_us(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<_> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let user: u64 = fields.get(USER_TIME)?.parse().ok()?;
    let system: u64 = fields.get(USER_TIME + 1)?.parse().ok()?;
    Some((user + system) * TICK_US)
}

/// Every thread has counters of its own.
fn switches(pid: u32) -> Option<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let status = fs::read_to_string(thread.ok()?.path().join("status")).ok()?;
        sum += value_of(&status, "voluntary_ctxt_switches:").unwrap_or(0);
        sum += value_of(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
    }
    Some(sum)
}

/// The memory of a process, in MiB; none if it is gone.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub(super) fn rss_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    value_of(&status, "VmRSS:").unwrap_or(0) as f64 / 1024.0
}

fn value_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}
