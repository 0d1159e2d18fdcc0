//! The only clock and the only entropy of a server: everything else is told.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use conclave_proto::{Secret, ServerId, SessionId};

/// A server's sense of time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
}

impl Clock {
    /// A clock that starts now.
    #[expect(clippy::disallowed_methods, reason = "this is the one clock")]
    pub fn start() -> Clock {
        Clock { started: Instant::now() }
    }

    /// Microseconds since the start; never goes back.
    pub fn micros(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Milliseconds since the start; never goes back.
    pub fn millis(&self) -> u64 {
        self.micros() / 1000
    }

    /// The time of day, ms since 1970.
    #[expect(clippy::disallowed_methods, reason = "this is the one clock")]
    pub fn time_of_day_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }
}

/// Random bytes of the operating system.
///
/// # Panics
/// If the operating system has none: nothing secret can be made then.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// A seed for dice.
pub(super) fn seed() -> u64 {
    u64::from_le_bytes(random())
}

/// The bytes of entropy that are fetched at a time: those of a dozen sessions.
const FETCHED_BYTES: usize = 512;

/// Random bytes of the operating system, fetched many at a time, since a call for some costs more
/// than they do. Nothing is handed out twice or kept.
pub(super) struct Entropy {
    bytes: [u8; FETCHED_BYTES],
    left: usize,
}

impl Entropy {
    /// Fetches nothing yet.
    pub(super) fn new() -> Entropy {
        Entropy { bytes: [0; FETCHED_BYTES], left: 0 }
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        const { assert!(N <= FETCHED_BYTES) };
        if self.left < N {
            self.bytes = random();
            self.left = FETCHED_BYTES;
        }
        let rest = self.left - N;
        let mut taken = [0; N];
        taken.swap_with_slice(&mut self.bytes[rest..self.left]);
        self.left = rest;
        taken
    }

    /// A number that nobody can guess.
    pub(super) fn number(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// An id and a secret for a session that this server might open.
    pub(super) fn fresh_session(&mut self, server: ServerId) -> (SessionId, Secret) {
        let low = self.number() >> 8;
        (SessionId(u64::from(server.get()) << 56 | low), Secret::new(self.take()))
    }
}
