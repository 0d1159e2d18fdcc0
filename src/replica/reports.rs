//! Which signs of life count: what a client may rely on when it asks whether its session is safe.
//!
//! A sign of life counts once a leader, confirmed as such by a quorum afterwards, has taken it into
//! account. From then on the session has its whole timeout: this leader does not end it earlier, and
//! every later one starts with all clocks full.

use std::collections::VecDeque;

use conclave_proto::{ServerMessage, SessionId};

use crate::limits;
use crate::tree::Nodes;

use super::ConnId;
use super::machine::Replica;

/// A sign of life of one of this server's clients.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sign {
    /// The connection.
    pub(super) conn: ConnId,
    /// Its session.
    pub(super) session: SessionId,
    /// When it was given.
    pub(super) seen_ms: u64,
}

/// The reports to the leader of which it is not known yet whether they count.
#[derive(Debug, Default)]
pub(super) struct Reports {
    next: u64,
    waiting: VecDeque<(u64, Vec<Sign>)>,
}

impl Reports {
    /// These signs are reported now; the report's number comes back.
    pub(super) fn add(&mut self, signs: Vec<Sign>) -> u64 {
        if self.waiting.len() == limits::REPORTS {
            self.waiting.pop_front();
        }
        let number = self.next;
        self.next += 1;
        self.waiting.push_back((number, signs));
        number
    }

    /// Nothing is known of any of them, nor will be.
    pub(super) fn give_up(&mut self) {
        self.waiting.clear();
    }

    /// The report of that number. The earlier ones are given up.
    fn take(&mut self, number: u64) -> Option<Vec<Sign>> {
        while self.waiting.front().is_some_and(|&(earlier, _)| earlier < number) {
            self.waiting.pop_front();
        }
        self.waiting.pop_front_if(|(at, _)| *at == number).map(|(_, signs)| signs)
    }
}

impl<N: Nodes> Replica<N> {
    /// Answer the pings since the last tick, now that it is known what time it is. The server may
    /// have been stopped at any moment since, so that an answer given at once could take an old
    /// sign of life for a new one.
    pub(super) fn answer_pings(&mut self) {
        let (now_ms, zxid) = (self.now_ms(), self.applied);
        for conn in std::mem::take(&mut self.pinged) {
            let Some(client) = self.clients.get_mut(&conn) else { continue };
            let ago = client.counted_ms.map(|counted_ms| now_ms - counted_ms);
            let counted_ms_ago = ago.and_then(|ago| u32::try_from(ago).ok());
            for _ in 0..std::mem::take(&mut client.pings) {
                self.tell(conn, ServerMessage::Pong { zxid, counted_ms_ago });
            }
        }
    }

    /// A report counts, but for these sessions.
    pub(super) fn counted(&mut self, report: u64, refused: &[SessionId]) {
        for sign in self.reports.take(report).unwrap_or_default() {
            if let Some(client) = self.clients.get_mut(&sign.conn)
                && !refused.contains(&sign.session)
            {
                client.counted_ms = client.counted_ms.max(Some(sign.seen_ms));
            }
        }
    }
}
