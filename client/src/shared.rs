//! What the handles of one client and its driver share.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use conclave_proto::{ServerId, SessionId, WatchId, Zxid};
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::mailbox::lock;
use crate::queue::Queue;
use crate::session::Facts;
use crate::state::{State, StateBoard};

/// What the handles of one client and its driver share.
pub(crate) struct Shared {
    pub(crate) queue: Queue,
    pub(crate) states: StateBoard,
    pub(crate) operation_timeout: Duration,
    /// What drives the client.
    pub(crate) runtime: Handle,
    next_watch: AtomicU64,
    /// When the client was made: the zero of the driver's clock.
    started: Instant,
    session: AtomicU64,
    timeout_ms: AtomicU64,
    last_zxid: AtomicU64,
    server: AtomicU64,
    certain_until_ms: AtomicU64,
    /// What the last attempt to connect, or the last connection, failed on.
    last_failure: Mutex<String>,
}

impl Shared {
    pub(crate) fn new(operation_timeout: Duration, runtime: Handle) -> Shared {
        Shared {
            queue: Queue::new(),
            states: StateBoard::new(State::Suspended),
            operation_timeout,
            runtime,
            next_watch: AtomicU64::new(1),
            started: Instant::now(),
            session: AtomicU64::new(0),
            timeout_ms: AtomicU64::new(0),
            last_zxid: AtomicU64::new(0),
            server: AtomicU64::new(0),
            certain_until_ms: AtomicU64::new(0),
            last_failure: Mutex::new(String::from("no attempt was finished")),
        }
    }

    /// The driver's clock, in ms.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The instant of a time on the driver's clock.
    pub(crate) fn instant(&self, ms: u64) -> Instant {
        self.started + Duration::from_millis(ms)
    }

    pub(crate) fn new_watch(&self) -> WatchId {
        WatchId(self.next_watch.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn learn(&self, facts: Facts) {
        self.session.store(facts.session.0, Ordering::Relaxed);
        self.timeout_ms.store(facts.timeout_ms.into(), Ordering::Relaxed);
        self.last_zxid.store(facts.last_zxid.bits(), Ordering::Relaxed);
        self.server.store(facts.server.map_or(0, |server| server.get().into()), Ordering::Relaxed);
        self.certain_until_ms.store(facts.certain_until_ms, Ordering::Relaxed);
    }

    pub(crate) fn set_last_failure(&self, failure: String) {
        *lock(&self.last_failure) = failure;
    }

    pub(crate) fn last_failure(&self) -> String {
        lock(&self.last_failure).clone()
    }

    pub(crate) fn session(&self) -> SessionId {
        SessionId(self.session.load(Ordering::Relaxed))
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.load(Ordering::Relaxed))
    }

    pub(crate) fn last_zxid(&self) -> Zxid {
        Zxid::from_bits(self.last_zxid.load(Ordering::Relaxed))
    }

    pub(crate) fn server(&self) -> Option<ServerId> {
        u8::try_from(self.server.load(Ordering::Relaxed)).ok().and_then(ServerId::new)
    }

    pub(crate) fn certain_until(&self) -> Instant {
        self.instant(self.certain_until_ms.load(Ordering::Relaxed))
    }
}
