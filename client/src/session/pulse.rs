//! Whether the server at the other end of a connection is alive, and until when the session is.
//!
//! An answer shows that this server is alive. It does not show that the session is: a server that
//! is cut off from the others answers as well, while they may let the session expire. So a pong
//! says which sign of life the servers count from, and only that extends the certainty.
//!
//! A ping is sent every quarter of the session timeout, more often while the session is certain for
//! less than half of it, and when a request waits for its answer while nothing is heard: a server
//! answers a ping at once, whatever its requests wait for, unless it is frozen or cut off. Then it
//! is left soon, while there is time to find another one.

use crate::limits::UNHEARD_MS;

/// The signs of life on one connection. Times are in ms.
pub(super) struct Pulse {
    timeout_ms: u64,
    /// Until when the session is alive for certain.
    certain_until_ms: u64,
    /// When anything was heard last.
    heard_ms: u64,
    /// When a ping, or the handshake, was sent last.
    asked_ms: u64,
    /// Whether it has not been answered.
    is_waiting: bool,
    is_due: bool,
}

impl Pulse {
    /// A connection on which a handshake sent at `sent_ms` was answered at `now_ms`. The session is
    /// new, or has been certain until `certain_until_ms` so far: its servers count from no later
    /// time before a pong says so.
    pub(super) fn new(
        timeout_ms: u32,
        sent_ms: u64,
        now_ms: u64,
        certain_until_ms: Option<u64>,
    ) -> Pulse {
        let timeout_ms = timeout_ms.into();
        Pulse {
            timeout_ms,
            certain_until_ms: certain_until_ms.unwrap_or(sent_ms + timeout_ms),
            heard_ms: now_ms,
            asked_ms: sent_ms,
            is_waiting: false,
            is_due: false,
        }
    }

    /// Something was heard.
    pub(super) fn heard(&mut self, now_ms: u64) {
        self.heard_ms = self.heard_ms.max(now_ms);
    }

    /// A pong was heard: when it was sent, the servers counted from a sign of life so long before.
    /// False if no ping was sent.
    pub(super) fn pong(&mut self, counted_ms_ago: Option<u32>) -> bool {
        if !std::mem::take(&mut self.is_waiting) {
            return false;
        }
        if let Some(ago) = counted_ms_ago {
            // The pong was sent after the ping was.
            let until_ms = (self.asked_ms + self.timeout_ms).saturating_sub(ago.into());
            self.certain_until_ms = self.certain_until_ms.max(until_ms);
        }
        true
    }

    /// Until when the session is alive for certain.
    pub(super) fn certain_until_ms(&self) -> u64 {
        self.certain_until_ms
    }

    /// Whether a ping is to be sent now.
    pub(super) fn owes_ping(&self) -> bool {
        self.is_due
    }

    /// Whether what the server says can wait to be heard: no pong is to come, which would be late,
    /// and it is not so long that the server takes the client for one that reads nothing.
    pub(super) fn can_wait(&self, now_ms: u64) -> bool {
        !self.is_waiting && now_ms < self.heard_ms + UNHEARD_MS
    }

    /// Whether a ping is to be sent now, which the caller does.
    pub(super) fn take_ping(&mut self, now_ms: u64) -> bool {
        let is_due = std::mem::take(&mut self.is_due);
        if is_due {
            self.asked_ms = now_ms;
            self.is_waiting = true;
        }
        is_due
    }

    /// The time is `now_ms`, and the oldest request without an answer was sent at `waiting_ms`.
    /// False if the server is to be given up.
    pub(super) fn tick(&mut self, now_ms: u64, waiting_ms: Option<u64>) -> bool {
        let has_come = self.next_tick(waiting_ms) <= now_ms;
        if self.is_waiting {
            return !has_come;
        }
        self.is_due = has_come;
        true
    }

    /// When there is something to do next.
    pub(super) fn next_tick(&self, waiting_ms: Option<u64>) -> u64 {
        if self.is_waiting {
            return self.asked_ms.max(self.heard_ms) + self.patience_ms();
        }
        let soon_ms = (self.timeout_ms / 12).max(1);
        let low_ms = self.certain_until_ms.saturating_sub(self.timeout_ms / 2);
        let regular_ms = self.asked_ms + self.timeout_ms / 4;
        let renewal_ms = regular_ms.min(low_ms).max(self.asked_ms + soon_ms);
        let doubt_ms = waiting_ms.map(|sent_ms| sent_ms.max(self.heard_ms) + soon_ms);
        doubt_ms.map_or(renewal_ms, |doubt_ms| doubt_ms.min(renewal_ms))
    }

    /// How long to wait for a pong.
    fn patience_ms(&self) -> u64 {
        (self.timeout_ms / 6).max((self.timeout_ms / 3).min(500)).max(1)
    }
}
