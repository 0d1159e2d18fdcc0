//! Local sessions: sessions that are not opened yet.
//!
//! 1. A server that is configured so keeps a new session to itself: to open it, to read, to watch
//!    and to close it takes no transaction. The session has the id, the secret and the timeout that
//!    it will have.
//! 2. Its first write waits until the session is opened by the ordinary transaction. From then on
//!    it is a session like any other.
//! 3. Whoever wants to resume such a session elsewhere is told that it has expired. That must stay
//!    true: the session's server, which may not know of it, must not open the session afterwards.
//!    So the leader first has the end of the session committed, though there is nothing to end.
//!    The server forgets the session when it applies that; and to open a session it must say how
//!    far it had applied the history when it still knew it. The leader knows every end that came
//!    after the beginning of its own reign, or after a later point if there were many
//!    ([`Ended`]), and refuses a session that was vouched for before its end, or before that point.
//!
//! The id shows the first bits of a hash of the secret, so that any server can tell who may ask for
//! the end of a session that only another one knows. Ids that are the same would be of the same
//! secret, as far as the hash goes: 56 bits of a random secret for each server. Should two be the
//! same even so, the one that is opened later ends, since its secret is another.

use std::collections::{BTreeMap, VecDeque};

use conclave_proto::message::Connect;
use conclave_proto::{ErrorCode, Op, Reply, Request, Secret, ServerId, SessionId, Xid, Zxid};
use sha1::{Digest, Sha1};

use crate::limits;
use crate::session::Claim;
use crate::tree::Nodes;

use super::ConnId;
use super::client::{Answer, Client, Open, Resuming, State};
use super::machine::{Part, Replica};
use super::pending::{Waiter, Work};

/// How many bits of an id come from the secret; those above name the server.
const HASH_BITS: u32 = 56;

/// A client's session that only this server knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    /// Which.
    pub(super) session: SessionId,
    /// Its timeout, in ms.
    pub(super) timeout_ms: u32,
}

/// The sessions that only this server knows.
#[derive(Debug, Default)]
pub(super) struct Locals {
    table: BTreeMap<SessionId, Local>,
    /// When to look at which session again. A sign of life does not move it: that is found out
    /// when its time comes.
    alarms: BTreeMap<u64, Vec<SessionId>>,
    /// Those that the leader has not opened, and may yet.
    again: Vec<SessionId>,
    /// Since when this server has been able to hear its clients.
    awake_ms: u64,
}

#[derive(Debug)]
struct Local {
    secret: Secret,
    timeout_ms: u32,
    /// The last sign of life on a connection that is closed.
    seen_ms: u64,
    /// Whether the client knows of it.
    greeted: bool,
    /// The mark of the write that opens it, once it has one.
    opening: Option<u64>,
}

impl Locals {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is such a session, with that secret.
    pub(super) fn has(&self, session: SessionId, secret: Secret) -> bool {
        self.table.get(&session).is_some_and(|local| local.secret == secret)
    }

    /// Whether it may be about to be opened for all servers.
    pub(super) fn is_opening(&self, session: SessionId) -> bool {
        self.table.get(&session).is_some_and(|local| local.opening.is_some())
    }

    /// Forget all of them.
    pub(super) fn clear(&mut self) {
        self.table.clear();
        self.alarms.clear();
        self.again.clear();
    }
}

/// The sessions whose end a leader has proposed.
#[derive(Debug)]
pub(super) struct Ended {
    /// Every end after this is known.
    since: Zxid,
    ends: BTreeMap<SessionId, Zxid>,
    order: VecDeque<(Zxid, SessionId)>,
}

impl Ended {
    /// None after that transaction.
    pub(super) fn after(since: Zxid) -> Ended {
        Ended { since, ends: BTreeMap::new(), order: VecDeque::new() }
    }

    /// The end of a session is proposed.
    pub(super) fn add(&mut self, zxid: Zxid, session: SessionId) {
        if self.order.len() == limits::ENDED_SESSIONS
            && let Some((oldest, forgotten)) = self.order.pop_front()
        {
            self.since = oldest;
            if self.ends.get(&forgotten) == Some(&oldest) {
                self.ends.remove(&forgotten);
            }
        }
        self.order.push_back((zxid, session));
        self.ends.insert(session, zxid);
    }

    /// Whether the end of that session is known, and applied by then.
    pub(super) fn is_known(&self, session: SessionId, applied: Zxid) -> bool {
        self.ends.get(&session).is_some_and(|&zxid| zxid <= applied)
    }

    /// Whether a session that only one server knew, which had applied the history up to
    /// `vouched`, may be opened.
    ///
    /// # Errors
    /// `SessionExpired` if it has ended; `Unavailable` if its server must say anew that it knows
    /// it, since it may have ended.
    pub(super) fn check(&self, session: SessionId, vouched: Zxid) -> Result<(), ErrorCode> {
        if self.ends.contains_key(&session) {
            Err(ErrorCode::SessionExpired)
        } else if vouched < self.since {
            Err(ErrorCode::Unavailable)
        } else {
            Ok(())
        }
    }
}

/// The id of a local session of that server.
fn id_of(server: ServerId, secret: Secret) -> SessionId {
    SessionId(u64::from(server.get()) << HASH_BITS | hash(secret))
}

/// Whether a session of that id and secret may be one that only its server knows.
pub(super) fn may_be_local(session: SessionId, secret: Secret) -> bool {
    session.0 & ((1 << HASH_BITS) - 1) == hash(secret)
}

fn hash(secret: Secret) -> u64 {
    let digest = Sha1::digest(secret.expose());
    digest.iter().take(HASH_BITS as usize / 8).fold(0, |bits, &byte| bits << 8 | u64::from(byte))
}

impl<N: Nodes> Replica<N> {
    /// Whether a new session is known to this server alone at first.
    pub(super) fn keeps_new_sessions(&self) -> bool {
        self.config.local_sessions && self.locals.len() < limits::LOCAL_SESSIONS
    }

    /// Begin a session that only this server knows. Its client is greeted once there is a leader,
    /// and this server has applied what the client has seen.
    pub(super) fn keep_session(&mut self, conn: ConnId, connect: &Connect) {
        let now_ms = self.now_ms();
        let (min, max) = (self.config.session_timeout_min_ms, self.config.session_timeout_max_ms);
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let (_, secret) = client.fresh;
        let session = id_of(self.config.zab.id, secret);
        let timeout_ms = connect.timeout_ms.clamp(min, max);
        let (seen_ms, greeted, opening) = (now_ms, false, None);
        let local = Local { secret, timeout_ms, seen_ms, greeted, opening };
        let earlier = self.locals.table.insert(session, local);
        assert!(earlier.is_none(), "the secret of session {session} is not random");
        let alarm_ms = now_ms + u64::from(timeout_ms);
        self.locals.alarms.entry(alarm_ms).or_default().push(session);
        let until_ms = now_ms + limits::CONNECT_WAIT_MS;
        let last_zxid = connect.last_zxid;
        client.state =
            State::Resuming(Resuming { session, secret, last_zxid, granted: None, until_ms });
        self.handshakes.insert(conn);
        self.ask_to_resume(conn);
    }

    /// A connection may speak for a session that only this server knew when it was asked.
    pub(super) fn resume_local(&mut self, conn: ConnId) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let State::Resuming(resuming) = &mut client.state else { return };
        let (session, secret) = (resuming.session, resuming.secret);
        match self.locals.table.get_mut(&session) {
            Some(local) if local.secret == secret => {
                let resumed = std::mem::replace(&mut local.greeted, true);
                let kept = Kept { session, timeout_ms: local.timeout_ms };
                self.attach(conn, State::Local(kept), secret, resumed);
            }
            // It was opened meanwhile, or has ended.
            Some(_) | None => {
                resuming.granted = None;
                self.ask_to_resume(conn);
            }
        }
    }

    /// A client that has written nothing ends its session, if that is so; whether it is. What was to
    /// open the session may still do that, even if nobody waits for it any more.
    pub(super) fn close_local(&mut self, conn: ConnId, xid: Xid) -> bool {
        let Some(client) = self.clients.get(&conn) else { return false };
        let State::Local(Kept { session, .. }) = client.state else { return false };
        if self.locals.is_opening(session) || !client.queue.is_empty() {
            return false;
        }
        self.locals.table.remove(&session);
        self.respond(conn, xid, Answer { zxid: None, result: Ok(Reply::Done) });
        self.close(conn);
        true
    }

    /// A client wants to write: have its session opened, if only this server knows it.
    pub(super) fn open_local(&mut self, conn: ConnId) {
        let Some(client) = self.clients.get(&conn) else { return };
        let State::Local(Kept { session, timeout_ms }) = client.state else { return };
        let local = self.locals.table.get_mut(&session).expect("who speaks for it ends with it");
        if let Some(pending) = local.opening.and_then(|tag| self.pendings.get_mut(tag)) {
            // It may have been asked for by an earlier connection, for which nobody would ask again.
            pending.waiter = Waiter::Local { conn, session };
            return;
        }
        if self.pendings.is_full(0) {
            self.send_away(conn);
            return;
        }
        local.opening = Some(self.pendings.next_tag());
        let op = Op::CreateSession { session, timeout_ms, secret: local.secret };
        let request = Request { session: SessionId::NONE, xid: Xid(0), acked: Xid(0), op };
        let vouched = Claim(self.applied);
        let identities = client.identities.clone();
        let work = Work { identities, claim: Some(vouched), request };
        // To create the same session twice does no harm.
        let bytes = work.bytes();
        self.pend(Waiter::Local { conn, session }, true, work, bytes);
    }

    /// A session is opened by that transaction: if only this server knew it, it is now like any
    /// other, and its writes leave.
    pub(super) fn local_opened(&mut self, session: SessionId, zxid: Zxid) {
        if self.locals.table.remove(&session).is_none() {
            return;
        }
        let Some(&conn) = self.by_session.get(&session) else { return };
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let State::Local(Kept { timeout_ms, .. }) = client.state else { return };
        let claim = Claim(zxid);
        client.state = State::Open(Open { session, claim, timeout_ms });
        let writes = client.queue.release();
        self.mark_unreported(conn);
        for write in writes {
            self.pendings.let_go(write.held_bytes);
            self.submit(conn, write);
        }
    }

    /// A session was not opened.
    pub(super) fn local_not_opened(&mut self, session: SessionId, code: ErrorCode) {
        if code == ErrorCode::Unavailable {
            self.locals.again.push(session);
        } else if matches!(code, ErrorCode::SessionExpired | ErrorCode::NodeExists) {
            self.end_local(session);
        } else if let Some(&conn) = self.by_session.get(&session) {
            // The client keeps its writes, and comes back with them.
            self.send_away(conn);
        }
    }

    /// A session has ended, if only this server knows it.
    pub(super) fn end_local(&mut self, session: SessionId) {
        if self.locals.table.remove(&session).is_some()
            && let Some(&conn) = self.by_session.get(&session)
        {
            self.close(conn);
        }
    }

    /// A connection is closed: from now on its session lives for its timeout.
    pub(super) fn leave_local(&mut self, client: &Client) {
        match client.state {
            State::Local(Kept { session, .. }) => {
                if let Some(local) = self.locals.table.get_mut(&session) {
                    local.seen_ms = local.seen_ms.max(client.seen_ms);
                }
            }
            State::Resuming(Resuming { session, .. }) => {
                if self.locals.table.get(&session).is_some_and(|local| !local.greeted) {
                    self.locals.table.remove(&session);
                }
            }
            State::Greeting | State::Opening { .. } | State::Open(_) | State::Guest(_) => {}
        }
    }

    /// Let time pass for the sessions that only this server knows: those that were silent for too
    /// long end, and those that the leader could not open yet are tried again.
    pub(super) fn tick_of_locals(&mut self, elapsed_ms: u64) {
        let now_ms = self.now_ms();
        let late_ms = 4 * u64::from(self.config.tick_ms);
        if elapsed_ms > late_ms {
            // A server that was stopped could not hear anybody meanwhile.
            self.locals.awake_ms = now_ms;
        }
        while let Some(alarm) = self.locals.alarms.first_entry()
            && *alarm.key() <= now_ms
        {
            for session in alarm.remove() {
                let Some(local) = self.locals.table.get(&session) else { continue };
                let conn = self.by_session.get(&session);
                let client = conn.and_then(|conn| self.clients.get(conn));
                let heard_ms = client.map_or(0, |client| client.seen_ms);
                // Who has not been greeted yet waits for a leader, and is there.
                let waits_ms = if local.greeted { 0 } else { now_ms };
                let seen_ms = local.seen_ms.max(heard_ms).max(self.locals.awake_ms).max(waits_ms);
                // What was said since the last tick may not have been heard yet.
                let deadline_ms = seen_ms + u64::from(local.timeout_ms) + late_ms;
                if deadline_ms > now_ms {
                    self.locals.alarms.entry(deadline_ms).or_default().push(session);
                } else {
                    self.end_local(session);
                }
            }
        }
        if !matches!(self.part, Part::Looking { .. }) {
            for session in std::mem::take(&mut self.locals.again) {
                if let Some(&conn) = self.by_session.get(&session) {
                    self.open_local(conn);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A leader that has forgotten an end knows that it has: who was vouched for before it must be
    /// vouched for anew. What is forgotten of a session's first end does not take its last one along.
    #[test]
    fn what_is_forgotten_of_ends_is_known_to_be() {
        let mut ended = Ended::after(Zxid::from_bits(10));
        let twice = SessionId(1);
        ended.add(Zxid::from_bits(11), twice);
        ended.add(Zxid::from_bits(12), SessionId(2));
        ended.add(Zxid::from_bits(13), twice);
        for number in 0..limits::ENDED_SESSIONS as u64 - 3 {
            ended.add(Zxid::from_bits(14 + number), SessionId(1_000 + number));
        }
        let other = SessionId(3);
        let at = Zxid::from_bits;
        assert_eq!(ended.check(other, at(9)), Err(ErrorCode::Unavailable));
        assert_eq!(ended.check(other, at(10)), Ok(()));
        assert_eq!(ended.check(SessionId(2), at(20)), Err(ErrorCode::SessionExpired));
        ended.add(at(1_000_000), SessionId(7));
        ended.add(at(1_000_001), SessionId(8));
        // 11 and 12 are forgotten.
        assert_eq!(ended.check(other, at(11)), Err(ErrorCode::Unavailable));
        assert_eq!(ended.check(other, at(12)), Ok(()));
        assert_eq!(ended.check(SessionId(2), at(12)), Ok(()));
        assert_eq!(ended.check(twice, at(12)), Err(ErrorCode::SessionExpired));
        assert!(!ended.is_known(twice, at(12)) && ended.is_known(twice, at(13)));
    }
}
