//! Whether the server at the other end of a connection is alive, and for how long the session is.
//!
//! A ping is sent when a third of the session timeout has passed since the last proof of life, so
//! that the session stays certain; and earlier when a request waits for its answer while nothing
//! is heard: a server answers a ping at once, whatever its requests wait for, unless it is frozen
//! or cut off. Then it is left soon, while there is time to find another one.

/// The signs of life on one connection. Times are in ms.
pub(super) struct Pulse {
    timeout_ms: u64,
    /// When the latest message was sent that has been answered: the session lives from then on.
    proof_ms: u64,
    /// When anything was heard last.
    heard_ms: u64,
    /// When the ping was sent that has not been answered.
    ping_sent_ms: Option<u64>,
    ping_due: bool,
}

impl Pulse {
    /// A connection on which a handshake sent at `sent_ms` was answered at `now_ms`.
    pub(super) fn new(timeout_ms: u32, sent_ms: u64, now_ms: u64) -> Pulse {
        let timeout_ms = timeout_ms.into();
        Pulse {
            timeout_ms,
            proof_ms: sent_ms,
            heard_ms: now_ms,
            ping_sent_ms: None,
            ping_due: false,
        }
    }

    /// Something was heard.
    pub(super) fn heard(&mut self, now_ms: u64) {
        self.heard_ms = self.heard_ms.max(now_ms);
    }

    /// A message sent at `sent_ms` was answered.
    pub(super) fn proved(&mut self, sent_ms: u64) {
        self.proof_ms = self.proof_ms.max(sent_ms);
    }

    /// A pong was heard. False if no ping was sent.
    pub(super) fn pong(&mut self) -> bool {
        let Some(sent_ms) = self.ping_sent_ms.take() else { return false };
        self.proved(sent_ms);
        true
    }

    /// Until when the session is alive for certain.
    pub(super) fn certain_until_ms(&self) -> u64 {
        self.proof_ms + self.timeout_ms
    }

    /// Whether a ping is to be sent now, which the caller does.
    pub(super) fn take_ping(&mut self, now_ms: u64) -> bool {
        if !self.ping_due {
            return false;
        }
        self.ping_due = false;
        self.ping_sent_ms = Some(now_ms);
        true
    }

    /// The time is `now_ms`, and the oldest request without an answer was sent at `waiting_ms`.
    /// False if the server is to be given up.
    pub(super) fn tick(&mut self, now_ms: u64, waiting_ms: Option<u64>) -> bool {
        let is_due = self.next_tick(waiting_ms) <= now_ms;
        if self.ping_sent_ms.is_some() {
            return !is_due;
        }
        self.ping_due = is_due;
        true
    }

    /// When there is something to do next.
    pub(super) fn next_tick(&self, waiting_ms: Option<u64>) -> u64 {
        if let Some(sent_ms) = self.ping_sent_ms {
            return sent_ms.max(self.heard_ms) + self.patience_ms();
        }
        let renewal_ms = self.proof_ms + (self.timeout_ms / 3).max(1);
        match waiting_ms {
            Some(sent_ms) => {
                renewal_ms.min(sent_ms.max(self.heard_ms) + (self.timeout_ms / 12).max(1))
            }
            None => renewal_ms,
        }
    }

    /// How long to wait for a pong.
    fn patience_ms(&self) -> u64 {
        (self.timeout_ms / 6).max((self.timeout_ms / 3).min(500)).max(1)
    }
}
