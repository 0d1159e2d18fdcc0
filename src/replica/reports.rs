//! Which signs of life count: what a client may rely on when it asks whether its session is safe.
//!
//! A sign of life counts once a leader, confirmed as such by a quorum afterwards, has taken it into
//! account. From then on the session has its whole timeout: this leader does not end it earlier, and
//! every later one starts with all clocks full.

use std::collections::VecDeque;

use conclave_proto::{ServerMessage, SessionId};

use crate::limits;
use crate::session::Claim;
use crate::tree::Nodes;

use super::client::{Client, Open, State};
use super::machine::Replica;
use super::pending::mix;
use super::{ConnId, Touched};

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

/// The last sign of life on a connection that is closed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parted {
    session: SessionId,
    claim: Claim,
    seen_ms: u64,
}

/// The reports to the leader of which it is not known yet whether they count.
#[derive(Debug)]
pub(super) struct Reports {
    next: u64,
    waiting: VecDeque<(u64, Vec<Sign>)>,
}

impl Reports {
    /// None yet. What was said of those of an earlier life of this server may still come, so the
    /// numbers start at a random place.
    pub(super) fn new(seed: u64) -> Reports {
        Reports { next: mix(seed) >> 2, waiting: VecDeque::new() }
    }

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

/// When the latest ticks were. Between two ticks the clock stands still.
#[derive(Debug, Default)]
pub(super) struct Ticks(VecDeque<u64>);

impl Ticks {
    /// It is now so late.
    pub(super) fn add(&mut self, now_ms: u64) {
        if self.0.back().is_none_or(|&last| last < now_ms) {
            if self.0.len() == limits::TICKS {
                self.0.pop_front();
            }
            self.0.push_back(now_ms);
        }
    }

    /// The tick that followed, by which whatever was noted at that time had happened; the same
    /// time if there was none yet, or if that is too long ago to be remembered.
    fn after(&self, noted_ms: u64) -> u64 {
        match self.0.partition_point(|&tick_ms| tick_ms <= noted_ms) {
            0 => noted_ms,
            place => self.0.get(place).copied().unwrap_or(noted_ms),
        }
    }
}

impl<N: Nodes> Replica<N> {
    /// A client gives a sign of life just now. What is noted is the time of the last tick; when it
    /// is reported it becomes that of the next one, so that it is later rather than earlier.
    pub(super) fn note_sign_of_life(&mut self, conn: ConnId) -> &mut Client {
        let now_ms = self.now_ms();
        let client = self.clients.get_mut(&conn).expect("who gives a sign of life is there");
        client.seen_ms = now_ms;
        // Of guests no leader is ever told.
        let is_guest = matches!(client.state, State::Guest(_));
        if !is_guest && !std::mem::replace(&mut client.unreported, true) {
            self.unreported.push(conn);
        }
        client
    }

    /// A connection is closed: what it was last heard to say counts all the same.
    pub(super) fn remember_parted(&mut self, client: &Client) {
        if client.unreported
            && let Some((session, claim)) = self.claim_of(client)
        {
            self.parted.push(Parted { session, claim, seen_ms: client.seen_ms });
        }
    }

    /// The session that a client has, or is about to have, and by which right. Nobody but this
    /// server has a claim to one that is about to be opened, so that the least will do.
    fn claim_of(&self, client: &Client) -> Option<(SessionId, Claim)> {
        match client.open() {
            Some(Open { session, claim, .. }) => Some((session, claim)),
            None => {
                let session = client.session().filter(|&session| self.locals.is_opening(session));
                session.map(|session| (session, Claim::default()))
            }
        }
    }

    /// The leader has not been told of a client's last sign of life, or too early.
    pub(super) fn mark_unreported(&mut self, conn: ConnId) {
        if let Some(client) = self.clients.get_mut(&conn)
            && !std::mem::replace(&mut client.unreported, true)
        {
            self.unreported.push(conn);
        }
    }

    pub(super) fn mark_all_unreported(&mut self) {
        self.unreported.clear();
        for (&conn, client) in &mut self.clients {
            client.unreported = client.open().is_some() || client.is_local();
            if client.unreported {
                self.unreported.push(conn);
            }
        }
    }

    /// The signs of life that the leader has not been told of; it is to be told of them now. The
    /// first ones are those of connections that are open.
    pub(super) fn take_unreported(&mut self) -> (Vec<Touched>, Vec<Sign>) {
        let age_ms =
            |now_ms: u64, seen_ms: u64| u32::try_from(now_ms - seen_ms).unwrap_or(u32::MAX);
        let now_ms = self.now_ms();
        let mut parted = std::mem::take(&mut self.parted);
        let mut touched = Vec::with_capacity(self.unreported.len() + parted.len());
        let mut signs = Vec::with_capacity(self.unreported.len());
        for conn in std::mem::take(&mut self.unreported) {
            let Some(client) = self.clients.get_mut(&conn) else { continue };
            client.unreported = false;
            let Some(Open { session, claim, .. }) = client.open() else {
                let client = &self.clients[&conn];
                if let Some((session, claim)) = self.claim_of(client) {
                    parted.push(Parted { session, claim, seen_ms: client.seen_ms });
                }
                continue;
            };
            let seen_ms = self.ticks.after(client.seen_ms);
            touched.push(Touched { session, age_ms: age_ms(now_ms, seen_ms), claim });
            signs.push(Sign { conn, session, seen_ms });
        }
        for Parted { session, claim, seen_ms } in parted {
            let age_ms = age_ms(now_ms, self.ticks.after(seen_ms));
            touched.push(Touched { session, age_ms, claim });
        }
        (touched, signs)
    }

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
