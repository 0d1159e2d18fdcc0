//! How clients come and go: handshakes, sessions that move, connections that are closed.

use conclave_proto::message::{Connect, Connected, PROTOCOL_VERSION, Refused, ServerLimits};
use conclave_proto::{
    ErrorCode, Identity, Op, Request, Secret, ServerMessage, SessionId, Xid, Zxid,
};
use std::cell::Cell;

use crate::hub::Watcher;
use crate::limits;
use crate::session::Claim;
use crate::tree::Nodes;

use super::client::{Answer, Client, Grant, Open, Queue, Resuming, State};
use super::local::Kept;
use super::machine::{Part, Replica};
use super::pending::{Waiter, Work, identities_bytes};
use super::{ConnId, PeerMessage, ToClient};

/// What clients are told that they may send.
pub(super) fn limits_of_a_connection() -> ServerLimits {
    let size = |limit: usize| u32::try_from(limit).expect("the limits are small");
    ServerLimits { frame_bytes: size(limits::FRAME_BYTES), in_flight: size(limits::IN_FLIGHT) }
}

impl<N: Nodes> Replica<N> {
    pub(super) fn opened(
        &mut self,
        conn: ConnId,
        identities: Vec<Identity>,
        fresh: (SessionId, Secret),
        numbered: bool,
    ) {
        self.out.clients.push((conn, ToClient::Identities(identities_bytes(&identities))));
        let client = Client {
            identities: identities.into(),
            fresh,
            numbered,
            accepts_read_only: false,
            state: State::Greeting,
            queue: Queue::default(),
            waits_for: None,
            seen_ms: self.now_ms(),
            is_put_off: false,
            is_over: false,
            is_draining: false,
            told: Cell::default(),
            pings: 0,
            unreported: false,
            counted_ms: None,
        };
        let first = self.clients.is_empty();
        let before = self.clients.insert(conn, client);
        assert!(before.is_none(), "connection {} was opened twice", conn.0);
        if first {
            // From now on somebody waits for every commit.
            self.report();
        }
    }

    /// The handshake.
    pub(super) fn connect(&mut self, conn: ConnId, connect: &Connect) {
        let until_ms = self.now_ms() + limits::CONNECT_WAIT_MS;
        let (min, max) = (self.config.session_timeout_min_ms, self.config.session_timeout_max_ms);
        let (read_only, keeps) = (self.is_read_only(), self.keeps_new_sessions());
        let Some(client) = self.clients.get_mut(&conn) else { return };
        client.accepts_read_only = connect.read_only;
        if !matches!(client.state, State::Greeting) {
            self.close(conn);
        } else if connect.version != PROTOCOL_VERSION {
            let speaks = format!("this server speaks version {PROTOCOL_VERSION} of the protocol");
            self.refuse(conn, ErrorCode::Unimplemented, speaks);
        } else if self.leaving {
            self.refuse(conn, ErrorCode::Unavailable, "this server is about to stop");
        } else if read_only {
            self.welcome(conn, connect);
        } else if let Some((session, secret)) = connect.session {
            let last_zxid = connect.last_zxid;
            client.state =
                State::Resuming(Resuming { session, secret, last_zxid, granted: None, until_ms });
            self.handshakes.insert(conn);
            self.ask_to_resume(conn);
        } else if keeps {
            self.keep_session(conn, connect);
        } else if self.pendings.is_full(0) {
            self.refuse(conn, ErrorCode::Throttled, "this server has too much to do");
        } else {
            let timeout_ms = connect.timeout_ms.clamp(min, max);
            let tag = self.pendings.next_tag();
            client.state = State::Opening { tag, timeout_ms, until_ms };
            let (session, secret) = client.fresh;
            let op = Op::CreateSession { session, timeout_ms, secret };
            let request = Request { session: SessionId::NONE, xid: Xid(0), acked: Xid(0), op };
            let work = Work { identities: client.identities.clone(), claim: None, request };
            self.handshakes.insert(conn);
            // To create the same session twice does no harm.
            let bytes = work.bytes();
            self.pend(Waiter::Handshake(conn), true, work, bytes);
        }
    }

    /// The session of a connection that opens one exists, or could not be created.
    pub(super) fn session_created(&mut self, conn: ConnId, answer: &Answer) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let State::Opening { timeout_ms, .. } = client.state else { return };
        if let Err(fault) = &answer.result {
            self.refuse(conn, fault.code, fault.code.describe());
            return;
        }
        let zxid = answer.zxid.expect("a session is created by a transaction");
        let (session, secret) = client.fresh;
        let claim = Claim(zxid);
        self.attach(conn, State::Open(Open { session, claim, timeout_ms }), secret, false);
    }

    /// Ask the leader for its consent to resume a session, unless only this server knows it.
    pub(super) fn ask_to_resume(&mut self, conn: ConnId) {
        let Some(client) = self.clients.get(&conn) else { return };
        let State::Resuming(Resuming { session, secret, granted: None, .. }) = client.state else {
            return;
        };
        let mark = conn.0 ^ self.conn_marks;
        match &self.part {
            Part::Looking { .. } => {}
            Part::Following(_) | Part::Leading(_) if self.locals.has(session, secret) => {
                self.grant(conn, session, Grant::Local, Zxid::ZERO);
            }
            Part::Following(follow) => {
                let message =
                    PeerMessage::Attach { epoch: follow.epoch, conn: mark, session, secret };
                self.out.send.push((follow.leader, message));
            }
            Part::Leading(_) => self.attach_own(mark, session, secret),
        }
    }

    /// The connection of this mark.
    fn conn_of(&self, mark: u64) -> ConnId {
        ConnId(mark ^ self.conn_marks)
    }

    /// Ask a new leader, or over a new link, for all that are not resumed yet.
    pub(super) fn ask_to_resume_again(&mut self) {
        let waiting: Vec<ConnId> = self.handshakes.iter().copied().collect();
        for conn in waiting {
            self.ask_to_resume(conn);
        }
    }

    /// The session has moved to the connection of this mark.
    pub(super) fn granted(&mut self, mark: u64, session: SessionId, claim: Claim) {
        self.grant(self.conn_of(mark), session, Grant::Claim(claim), claim.0);
    }

    /// The leader says that there is no such session.
    pub(super) fn refuse_to_resume(&mut self, mark: u64, session: SessionId) {
        let conn = self.conn_of(mark);
        if let Some(Client { state: State::Resuming(resuming), .. }) = self.clients.get(&conn)
            && resuming.session == session
        {
            self.refuse(conn, ErrorCode::SessionExpired, ErrorCode::SessionExpired.describe());
        }
    }

    /// The session may be resumed once that is applied here, and what the client has seen.
    fn grant(&mut self, conn: ConnId, session: SessionId, grant: Grant, zxid: Zxid) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let State::Resuming(resuming) = &mut client.state else { return };
        if resuming.session == session {
            resuming.granted = Some((grant, zxid.max(resuming.last_zxid)));
            self.granted.insert((session, conn));
            self.resume(conn);
        }
    }

    /// Resume the session, if everything that has to be applied first is applied.
    fn resume(&mut self, conn: ConnId) {
        let Some(client) = self.clients.get(&conn) else { return };
        let State::Resuming(resuming) = client.state else { return };
        let Some((grant, zxid)) = resuming.granted else { return };
        if zxid > self.applied {
            self.wait_for(conn, zxid);
            return;
        }
        let Resuming { session, secret, .. } = resuming;
        let claim = match grant {
            Grant::Claim(claim) => claim,
            Grant::Local => return self.resume_local(conn),
        };
        match self.nodes.session(session) {
            Some(record) if record.secret == secret => {
                let timeout_ms = record.timeout_ms;
                let open = Open { session, claim, timeout_ms };
                self.attach(conn, State::Open(open), secret, true);
            }
            Some(_) | None => {
                self.refuse(conn, ErrorCode::SessionExpired, ErrorCode::SessionExpired.describe());
            }
        }
    }

    /// From now on the connection speaks for the session.
    pub(super) fn attach(&mut self, conn: ConnId, state: State, secret: Secret, resumed: bool) {
        let (session, timeout_ms) = match state {
            State::Open(Open { session, timeout_ms, .. })
            | State::Local(Kept { session, timeout_ms }) => (session, timeout_ms),
            State::Greeting | State::Opening { .. } | State::Resuming(_) | State::Guest(_) => {
                unreachable!("there is no session to speak for")
            }
        };
        if let Some(&earlier) = self.by_session.get(&session)
            && earlier != conn
        {
            self.close(earlier);
        }
        self.by_session.insert(session, conn);
        self.handshakes.remove(&conn);
        self.granted.remove(&(session, conn));
        let client = self.clients.get_mut(&conn).expect("a connection that is attached is open");
        client.state = state;
        self.note_sign_of_life(conn);
        let connected = Connected {
            session,
            secret,
            timeout_ms,
            resumed,
            read_only: false,
            server: self.config.zab.id,
            zxid: self.applied,
            limits: limits_of_a_connection(),
        };
        self.tell(conn, ServerMessage::Connected(connected));
        if self.leaving {
            self.tell(conn, ServerMessage::GoAway { backoff_ms: 0 });
        }
    }

    /// What a connection waited for is applied: go on with its handshake or its requests.
    pub(super) fn wake(&mut self, conn: ConnId) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        client.waits_for = None;
        match client.state {
            State::Resuming(_) => self.resume(conn),
            State::Open(_) | State::Local(_) | State::Guest(_) => self.drain(conn),
            State::Greeting | State::Opening { .. } => {}
        }
    }

    pub(super) fn give_up_handshakes(&mut self) {
        let now_ms = self.now_ms();
        let clients = &self.clients;
        let overdue = |conn: &ConnId| match &clients[conn].state {
            State::Opening { until_ms, .. } => *until_ms <= now_ms,
            State::Resuming(resuming) => resuming.until_ms <= now_ms,
            State::Greeting | State::Open(_) | State::Local(_) | State::Guest(_) => false,
        };
        let overdue: Vec<ConnId> =
            self.handshakes.iter().filter(|conn| overdue(conn)).copied().collect();
        for conn in overdue {
            let why = match self.part {
                Part::Looking { .. } => "this server has no leader at the moment",
                Part::Following(_) | Part::Leading(_) => "this server is catching up",
            };
            self.refuse(conn, ErrorCode::Unavailable, why);
        }
    }

    /// A session has moved by this claim: whoever has it here by an earlier one is closed.
    pub(super) fn close_earlier(&mut self, session: SessionId, claim: Claim) {
        if let Some(&conn) = self.by_session.get(&session)
            && self.clients[&conn].open().is_some_and(|open| open.claim < claim)
        {
            self.close(conn);
        }
        let clients = &self.clients;
        let overtaken = |conn: &ConnId| match clients[conn].state {
            State::Resuming(Resuming { granted: Some((Grant::Claim(granted), _)), .. }) => {
                granted < claim
            }
            State::Resuming(_)
            | State::Greeting
            | State::Opening { .. }
            | State::Open(_)
            | State::Local(_)
            | State::Guest(_) => false,
        };
        let of_session = (session, ConnId(0))..=(session, ConnId(u64::MAX));
        let granted = self.granted.range(of_session).map(|&(_, conn)| conn);
        let overtaken: Vec<ConnId> = granted.filter(overtaken).collect();
        for conn in overtaken {
            self.close(conn);
        }
    }

    /// Without a leader for a third of a session's timeout, its client is better off elsewhere. A
    /// guest is sent away if it gives no sign of life.
    pub(super) fn send_away_the_leaderless(&mut self, since_ms: u64) {
        let now_ms = self.now_ms();
        let waited_ms = now_ms.saturating_sub(since_ms);
        let enough = |client: &Client| match client.state {
            State::Open(Open { timeout_ms, .. }) | State::Local(Kept { timeout_ms, .. }) => {
                waited_ms > u64::from(timeout_ms) / 3
            }
            State::Guest(guest) => now_ms - client.seen_ms > u64::from(guest.timeout_ms),
            State::Greeting | State::Opening { .. } | State::Resuming(_) => false,
        };
        let leaving: Vec<ConnId> = self
            .clients
            .iter()
            .filter(|(_, client)| enough(client))
            .map(|(&conn, _)| conn)
            .collect();
        for conn in leaving {
            self.send_away(conn);
        }
    }

    /// Send a client to another server.
    pub(super) fn send_away(&mut self, conn: ConnId) {
        self.tell(conn, ServerMessage::GoAway { backoff_ms: limits::BACKOFF_MS });
        self.close(conn);
    }

    pub(super) fn refuse(&mut self, conn: ConnId, code: ErrorCode, why: impl Into<String>) {
        let refused = Refused { code, message: why.into(), backoff_ms: limits::BACKOFF_MS };
        self.tell(conn, ServerMessage::Refused(refused));
        self.close(conn);
    }

    /// Close a connection.
    pub(super) fn close(&mut self, conn: ConnId) {
        if self.clients.contains_key(&conn) {
            self.forget(conn);
            self.out.clients.push((conn, ToClient::Close));
        }
    }

    /// Drop a connection whose client cannot keep up.
    pub(super) fn drop_overwhelmed(&mut self, conn: ConnId) {
        self.forget(conn);
        self.out.clients.push((conn, ToClient::Drop));
    }

    /// A connection is closed. Its session lives on until it is resumed, closed or expires.
    pub(super) fn forget(&mut self, conn: ConnId) {
        let Some(client) = self.clients.remove(&conn) else { return };
        self.remember_parted(&client);
        self.pendings.let_go(client.queue.held_bytes());
        self.hub.forget(Watcher(conn.0));
        self.handshakes.remove(&conn);
        if let State::Resuming(Resuming { session, .. }) = client.state {
            self.granted.remove(&(session, conn));
        }
        if let Some(zxid) = client.waits_for {
            self.by_zxid.remove(&(zxid, conn));
        }
        if let State::Opening { tag, .. } = client.state
            && self.pendings.get_mut(tag).is_some_and(|pending| pending.sent.is_none())
        {
            self.pendings.take(tag);
        }
        if let Some(session) = client.session()
            && self.by_session.get(&session) == Some(&conn)
        {
            self.by_session.remove(&session);
        }
        self.leave_local(&client);
    }
}
