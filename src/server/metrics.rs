//! What a server counts, for Prometheus. docs/OPERATING.md explains each.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use conclave_proto::{ErrorCode, Op};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::net::{CertCounters, HandshakeCounters};
use crate::replica::{Role, Status};

/// The kinds of request, as the label `op` has them.
const OPS: [&str; 21] = [
    "create",
    "delete",
    "delete_recursive",
    "set_data",
    "set_acl",
    "check",
    "multi",
    "close_session",
    "get",
    "exists",
    "children",
    "list_recursive",
    "get_acl",
    "ephemerals",
    "count_descendants",
    "multi_read",
    "sync",
    "watch",
    "unwatch",
    "authenticate",
    "who_am_i",
];

/// A kind of request: its place in [`OPS`], small enough to be kept with each request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind(u8);

impl Kind {
    pub(super) fn of(op: &Op) -> Kind {
        Kind(match op {
            Op::Create { .. } | Op::CreateIfMissing { .. } => 0,
            Op::Delete { .. } | Op::DeleteIfExists { .. } => 1,
            Op::DeleteRecursive { .. } | Op::DeleteTree { .. } => 2,
            Op::SetData { .. } => 3,
            Op::SetAcl { .. } => 4,
            Op::Check { .. } | Op::Require(_) | Op::Guard { .. } => 5,
            Op::Multi { .. } => 6,
            // The other two are never asked by clients.
            Op::CloseSession | Op::ExpireSession | Op::CreateSession { .. } | Op::Reap { .. } => 7,
            Op::Get { .. } => 8,
            Op::Exists { .. } => 9,
            Op::Children { .. } => 10,
            Op::ListRecursive { .. } => 11,
            Op::GetAcl { .. } => 12,
            Op::Ephemerals { .. } => 13,
            Op::CountDescendants { .. } => 14,
            Op::MultiRead(_) => 15,
            Op::Sync { .. } => 16,
            Op::Watch { .. } => 17,
            Op::Unwatch { .. } => 18,
            Op::Authenticate { .. } => 19,
            Op::WhoAmI => 20,
        })
    }

    fn is_write(self) -> bool {
        self.0 < 8
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOp {
    op: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByError {
    error: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCertificate {
    of: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByClass {
    class: &'static str,
}

/// Everything a server counts.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    /// One for each of [`OPS`], so that counting needs no look-up.
    requests: Vec<Counter>,
    errors: Family<ByError, Counter>,
    write_seconds: Histogram,
    read_seconds: Histogram,
    pub(super) connections: Gauge,
    pub(super) connections_accepted: Counter,
    pub(super) connections_refused: Counter,
    pub(super) slow_consumers: Counter,
    pub(super) malformed: Counter,
    pub(super) unfinished: Counter,
    pub(super) invalid: Counter,
    pub(super) sync_seconds: Histogram,
    pub(super) sync_entries: Histogram,
    pub(super) log_bytes_written: Counter,
    pub(super) checkpoint_seconds: Histogram,
    pub(super) elections: Counter,
    pub(super) turns: Counter,
    pub(super) sessions_expired: Counter,
    pub(super) quotas_exceeded: Counter,
    pub(super) password_checks: Counter,
    pub(super) audit_lost: Counter,
    pub(super) snapshots_sent: Counter,
    pub(super) snapshots_received: Counter,
    pub(super) snapshots_failed: Counter,
    pub(super) links_cut: Counter,
    pub(super) links_refused: Counter,
    pub(super) links_malformed: Counter,
    pub(super) handshakes: HandshakeCounters,
    pub(super) certificates: CertCounters,
    certificate_days_left: Family<ByCertificate, Gauge<f64, AtomicU64>>,
    pub(super) level: Levels,
}

/// What is as it is at the moment, brought up to date once a second.
#[derive(Debug, Default)]
pub(super) struct Levels {
    pub(super) is_leader: Gauge,
    pub(super) has_leader: Gauge,
    pub(super) epoch: Gauge,
    pub(super) applied: Gauge<u64, AtomicU64>,
    pub(super) committed: Gauge<u64, AtomicU64>,
    pub(super) last: Gauge<u64, AtomicU64>,
    pub(super) sessions: Gauge,
    pub(super) unopened_sessions: Gauge,
    pub(super) watches: Gauge,
    pub(super) nodes: Gauge,
    pub(super) ephemerals: Gauge,
    pub(super) data_bytes: Gauge,
    pub(super) dirty_bytes: Gauge,
    pub(super) tree_used_bytes: Gauge,
    pub(super) disk_free_bytes: Gauge,
    pub(super) client_outbox_bytes: Gauge,
    pub(super) peer_outbox_bytes: Gauge,
    pub(super) linked_peers: Gauge,
    pub(super) low_space: Gauge,
    pub(super) checkpoints_behind: Gauge,
    pub(super) follower_lag: Gauge,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 18))
}

impl Metrics {
    pub(super) fn new() -> Arc<Metrics> {
        let mut registry = Registry::with_prefix("conclave");
        let requests = Family::<ByOp, Counter>::default();
        let by_op = OPS.iter().map(|op| requests.get_or_create(&ByOp { op }).clone()).collect();
        registry.register("requests", "Requests answered", requests);
        let latency = Family::<ByClass, Histogram>::new_with_constructor(seconds);
        let class = |class| latency.get_or_create(&ByClass { class }).clone();
        let (write_seconds, read_seconds) = (class("write"), class("read"));
        registry.register_with_unit(
            "request",
            "Time from a request's arrival to its answer",
            Unit::Seconds,
            latency.clone(),
        );
        let level = Levels::default();
        level.register(&mut registry);
        let metrics = Metrics {
            requests: by_op,
            write_seconds,
            read_seconds,
            errors: Family::default(),
            connections: Gauge::default(),
            connections_accepted: Counter::default(),
            connections_refused: Counter::default(),
            slow_consumers: Counter::default(),
            malformed: Counter::default(),
            unfinished: Counter::default(),
            invalid: Counter::default(),
            sync_seconds: seconds(),
            sync_entries: Histogram::new(exponential_buckets(1.0, 2.0, 14)),
            log_bytes_written: Counter::default(),
            checkpoint_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            elections: Counter::default(),
            turns: Counter::default(),
            sessions_expired: Counter::default(),
            quotas_exceeded: Counter::default(),
            password_checks: Counter::default(),
            audit_lost: Counter::default(),
            snapshots_sent: Counter::default(),
            snapshots_received: Counter::default(),
            snapshots_failed: Counter::default(),
            links_cut: Counter::default(),
            links_refused: Counter::default(),
            links_malformed: Counter::default(),
            handshakes: HandshakeCounters::default(),
            certificates: CertCounters::default(),
            certificate_days_left: Family::default(),
            level,
            registry: Registry::default(),
        };
        metrics.register(&mut registry);
        Arc::new(Metrics { registry, ..metrics })
    }

    fn register(&self, to: &mut Registry) {
        to.register("request_errors", "Requests answered with an error", self.errors.clone());
        for (name, help, counter) in [
            ("connections_accepted", "Clients accepted", &self.connections_accepted),
            ("connections_refused", "Clients refused before a session", &self.connections_refused),
            ("slow_consumers", "Clients dropped for not reading", &self.slow_consumers),
            ("malformed_frames", "Clients dropped for malformed bytes", &self.malformed),
            ("unfinished_frames", "Clients dropped for unfinished frames", &self.unfinished),
            ("invalid_requests", "Requests that could only be refused", &self.invalid),
            ("log_written_bytes", "Bytes of entries given to the log", &self.log_bytes_written),
            ("elections", "Times this server began to look for a leader", &self.elections),
            ("turns", "Turns of the loop", &self.turns),
            (
                "sessions_expired",
                "Sessions ended by this leader for silence",
                &self.sessions_expired,
            ),
            ("quotas_exceeded", "Writes beyond a quota, proposed here", &self.quotas_exceeded),
            ("password_checks", "Passwords hashed to be compared", &self.password_checks),
            ("audit_lost", "Records that the audit log has lost", &self.audit_lost),
            ("snapshots_sent", "Snapshots sent to the end", &self.snapshots_sent),
            ("snapshots_received", "Snapshots received and installed", &self.snapshots_received),
            ("snapshots_failed", "Snapshots broken off", &self.snapshots_failed),
            ("links_cut", "Links cut for not being drained", &self.links_cut),
            ("links_refused", "Handshakes between servers refused", &self.links_refused),
            ("links_malformed", "Links cut for malformed bytes", &self.links_malformed),
            ("tls_handshakes_failed", "TLS handshakes that failed", &self.handshakes.failed),
            ("tls_handshakes_refused", "No room for a handshake", &self.handshakes.refused),
            ("certificates_reloaded", "Changed certificates taken", &self.certificates.reloaded),
            (
                "certificates_rejected",
                "Changed certificates not taken",
                &self.certificates.rejected,
            ),
        ] {
            to.register(name, help, counter.clone());
        }
        let days_left = self.certificate_days_left.clone();
        to.register("certificate_days_left", "Days until a certificate ends", days_left);
        to.register("connections", "Clients connected", self.connections.clone());
        for (name, help, histogram) in [
            ("log_sync", "Time to write and sync one batch", &self.sync_seconds),
            ("checkpoint", "Time to write one checkpoint", &self.checkpoint_seconds),
        ] {
            to.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        to.register("log_sync_entries", "Entries in one batch", self.sync_entries.clone());
    }

    /// Counts a request that has been answered.
    pub(super) fn answered(&self, kind: Kind, error: Option<ErrorCode>, took_us: u64) {
        self.requests[usize::from(kind.0)].inc();
        if let Some(code) = error {
            self.errors.get_or_create(&ByError { error: format!("{code:?}") }).inc();
        }
        #[expect(clippy::cast_precision_loss, reason = "a latency needs no 52 bits")]
        let seconds = took_us as f64 / 1e6;
        if kind.is_write() {
            self.write_seconds.observe(seconds);
        } else {
            self.read_seconds.observe(seconds);
        }
    }

    /// Notes until when, since 1970, a certificate is valid.
    pub(super) fn certificate_ends(&self, of: &'static str, at: Duration, today: Duration) {
        let days = (at.as_secs_f64() - today.as_secs_f64()) / (24.0 * 3600.0);
        self.certificate_days_left.get_or_create(&ByCertificate { of }).set(days);
    }

    /// Everything, in the text format.
    pub(super) fn encode(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("a string takes everything");
        text
    }
}

impl Levels {
    /// Takes over what the replica knows.
    pub(super) fn set_status(&self, status: &Status) {
        let leading = status.role == Role::Leading;
        self.is_leader.set(leading.into());
        self.has_leader.set((status.role != Role::Looking).into());
        self.epoch.set(status.epoch.get().into());
        self.applied.set(status.applied.bits());
        self.committed.set(status.committed.bits());
        self.last.set(status.last.bits());
        let count = |gauge: &Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        count(&self.sessions, status.sessions as u64);
        count(&self.unopened_sessions, status.unopened_sessions as u64);
        count(&self.watches, status.watches as u64);
        count(&self.nodes, status.nodes);
        count(&self.ephemerals, status.ephemerals as u64);
        count(&self.data_bytes, status.bytes);
        let lag = status.followers.iter().map(|follower| follower.lag).max();
        count(&self.follower_lag, lag.unwrap_or_default());
    }

    fn register(&self, to: &mut Registry) {
        for (name, help, gauge) in [
            ("applied_zxid", "The last transaction applied, 64 bits", &self.applied),
            ("committed_zxid", "The last transaction known to be committed", &self.committed),
            ("last_zxid", "The last transaction in the log", &self.last),
        ] {
            to.register(name, help, gauge.clone());
        }
        for (name, help, gauge) in [
            ("is_leader", "1 if this server leads", &self.is_leader),
            ("has_leader", "1 if this server leads or follows", &self.has_leader),
            ("epoch", "The leader's epoch", &self.epoch),
            ("sessions", "Sessions of the ensemble", &self.sessions),
            ("unopened_sessions", "Sessions this server keeps to itself", &self.unopened_sessions),
            ("watches", "Watches set at this server", &self.watches),
            ("nodes", "Nodes of the tree", &self.nodes),
            ("ephemerals", "Nodes that end with a session", &self.ephemerals),
            ("data_bytes", "Bytes of all paths and data", &self.data_bytes),
            ("dirty_bytes", "Changes that no checkpoint holds yet", &self.dirty_bytes),
            ("tree_used_bytes", "Bytes of the tree's file in use", &self.tree_used_bytes),
            ("disk_free_bytes", "Room on the fuller of the two disks", &self.disk_free_bytes),
            ("client_outbox_bytes", "Waiting to be sent to clients", &self.client_outbox_bytes),
            ("peer_outbox_bytes", "Waiting to be sent to servers", &self.peer_outbox_bytes),
            ("linked_peers", "Servers this one is linked with", &self.linked_peers),
            ("low_space", "1 while this server is short of space", &self.low_space),
            (
                "checkpoints_behind",
                "1 while this server's checkpoints do not keep up with writes",
                &self.checkpoints_behind,
            ),
            ("follower_lag", "Transactions the slowest follower is behind", &self.follower_lag),
        ] {
            to.register(name, help, gauge.clone());
        }
    }
}
