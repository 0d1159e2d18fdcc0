//! What a benchmark found out, for people and for programs.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::cli::{Unprinted, try_say};

/// What one client, or all of them, measured.
#[derive(Debug)]
pub(super) struct Tally {
    /// The latency of each operation, in µs.
    latency: Histogram<u64>,
    /// The operations that failed.
    errors: u64,
    /// How many nodes each client has created that have to be removed.
    created: Vec<(u64, u64)>,
}

impl Tally {
    /// Nothing yet.
    pub(super) fn new() -> Tally {
        let minute_us = 60_000_000;
        let latency = Histogram::new_with_bounds(1, minute_us, 3).expect("valid bounds");
        Tally { latency, errors: 0, created: Vec::new() }
    }

    /// Counts an operation.
    pub(super) fn record(&mut self, latency: Duration, succeeded: bool) {
        if succeeded {
            let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
            self.latency.saturating_record(us.max(1));
        } else {
            self.errors += 1;
        }
    }

    /// Adds what another measured.
    pub(super) fn add(&mut self, other: Tally) {
        self.latency.add(&other.latency).expect("the same bounds");
        self.errors += other.errors;
        self.created.extend(other.created);
    }

    /// A client has created that many nodes.
    pub(super) fn created(&mut self, client: u64, nodes: u64) {
        self.created.push((client, nodes));
    }

    /// The clients that have created nodes, and how many.
    pub(super) fn creations(&self) -> &[(u64, u64)] {
        &self.created
    }

    /// The operations that succeeded.
    pub(super) fn operations(&self) -> u64 {
        self.latency.len()
    }

    /// The latency that this share of the operations did not exceed, in ms.
    pub(super) fn quantile_ms(&self, share: f64) -> f64 {
        Duration::from_micros(self.latency.value_at_quantile(share)).as_secs_f64() * 1e3
    }
}

/// The use of a machine by the servers while a benchmark ran.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Usage {
    /// Processor time of all servers, in µs for each operation.
    pub(super) cpu_us_per_op: f64,
    /// The memory of the largest server, in MiB.
    pub(super) rss_mib: f64,
    /// Context switches of all servers for each operation.
    pub(super) switches_per_op: f64,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// Which wire the load spoke.
    pub(super) wire: &'static str,
    pub(super) kind: String,
    pub(super) clients: u64,
    pub(super) depth: usize,
    pub(super) value_bytes: usize,
    pub(super) seconds: f64,
    pub(super) operations: u64,
    pub(super) errors: u64,
    pub(super) ops_per_second: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) p999_ms: f64,
    pub(super) max_ms: f64,
    /// How many cores the load itself took, and how many threads it had: if the two are about the
    /// same, the load was the limit.
    pub(super) load_cores: f64,
    pub(super) load_threads: usize,
    /// The memory of the load's own process when it was done, in MiB.
    pub(super) load_mib: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) servers: Option<Usage>,
}

impl Row {
    /// The line of what was measured in that time.
    pub(super) fn new(load: &super::Load, tally: &Tally, elapsed: Duration) -> Row {
        let seconds = elapsed.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let ops_per_second = tally.operations() as f64 / seconds;
        Row {
            wire: load.wire.name(),
            kind: load.kind.name(),
            clients: load.clients,
            depth: load.depth,
            value_bytes: load.value.len(),
            seconds,
            operations: tally.operations(),
            errors: tally.errors,
            ops_per_second,
            p50_ms: tally.quantile_ms(0.5),
            p99_ms: tally.quantile_ms(0.99),
            p999_ms: tally.quantile_ms(0.999),
            max_ms: tally.quantile_ms(1.0),
            load_cores: 0.0,
            load_threads: load.threads_used(),
            load_mib: 0.0,
            servers: None,
        }
    }
}

/// Prints the heading of the table.
pub(super) fn print_heading() -> Result<(), Unprinted> {
    try_say!(
        "{:<10} {:<9} {:>8} {:>6} {:>11} {:>9} {:>9} {:>9} {:>9} {:>7} {:>10} {:>8} {:>9} {:>5} {:>5}",
        "wire",
        "kind",
        "clients",
        "depth",
        "ops/s",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "errors",
        "cpu µs/op",
        "MiB",
        "switches",
        "load",
        "MiB"
    )
}

/// Prints a line of the table.
pub(super) fn print_row(row: &Row) -> Result<(), Unprinted> {
    let [cpu, rss, switches] = match &row.servers {
        Some(usage) => [
            format!("{:.1}", usage.cpu_us_per_op),
            format!("{:.0}", usage.rss_mib),
            format!("{:.2}", usage.switches_per_op),
        ],
        None => ["-".into(), "-".into(), "-".into()],
    };
    try_say!(
        "{:<10} {:<9} {:>8} {:>6} {:>11.0} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {:>7} {cpu:>10} {rss:>8} {switches:>9} {:>5.2} {:>5.0}",
        row.wire,
        row.kind,
        row.clients,
        row.depth,
        row.ops_per_second,
        row.p50_ms,
        row.p99_ms,
        row.p999_ms,
        row.max_ms,
        row.errors,
        row.load_cores,
        row.load_mib,
    )
}
