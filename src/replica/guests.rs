//! Guests: clients that are content to read while this server has no leader.
//!
//! 1. A server that has had no leader for a while, and whose configuration allows it, begins to take
//!    guests. Clients that had said they would be content with that are sent away, so that they come
//!    back as guests.
//! 2. A guest has a session that only this server knows, or one that the ensemble knows and nobody
//!    can end at the moment. Either way its reads are answered from what is applied here, which
//!    others may have gone beyond, and its writes and linearizable reads are refused.
//! 3. When there is a leader the guests are sent away: what they know is not to be taken for the
//!    ensemble's latest.
//!
//! A client that numbers its requests resumes no session as a guest. It relies on more than reads:
//! that its ephemeral nodes are there, and that a refused write was not carried out before.

use std::collections::{BTreeMap, BTreeSet};

use conclave_proto::message::{Connect, Connected};
use conclave_proto::{ErrorCode, Op, Reply, Secret, ServerMessage, SessionId};

use crate::limits;
use crate::tree::Nodes;

use super::ConnId;
use super::client::{Answer, Client, State};
use super::connect::limits_of_a_connection;
use super::machine::{Part, Replica};

/// The sessions of guests that only this server knows.
#[derive(Debug, Default)]
pub(super) struct Guests(BTreeMap<SessionId, Secret>);

/// The session of a guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guest {
    /// Which.
    pub(super) session: SessionId,
    /// Its timeout, in ms.
    pub(super) timeout_ms: u32,
}

impl<N: Nodes> Replica<N> {
    /// Whether this server, having no leader, serves those who are content to read.
    pub(super) fn is_read_only(&self) -> bool {
        matches!(self.part, Part::Looking { guests: Some(_), .. })
    }

    /// Begin to take guests, if there has been no leader for long enough.
    pub(super) fn take_guests_if_due(&mut self) {
        let now_ms = self.now_ms();
        let Part::Looking { since_ms, guests: guests @ None } = &mut self.part else { return };
        let due = now_ms >= *since_ms + limits::READ_ONLY_AFTER_MS;
        if !due || !self.config.read_only || self.leaving {
            return;
        }
        *guests = Some(Guests::default());
        let content = self.clients.iter().filter(|(_, client)| {
            client.open().is_some() && client.accepts_read_only && !client.numbered
        });
        let content: Vec<ConnId> = content.map(|(&conn, _)| conn).collect();
        for conn in content {
            self.send_away(conn);
        }
    }

    /// The handshake of a client while this server takes guests.
    pub(super) fn welcome(&mut self, conn: ConnId, connect: &Connect) {
        let (min, max) = (self.config.session_timeout_min_ms, self.config.session_timeout_max_ms);
        let Some(client) = self.clients.get(&conn) else { return };
        let Part::Looking { guests: Some(Guests(known)), .. } = &mut self.part else { return };
        let fresh = client.fresh;
        let asked = connect.session.map(|(session, secret)| {
            let record = self.nodes.session(session).filter(|_| !client.numbered);
            let record = record.map(|record| (record.secret, record.timeout_ms));
            let own = known.get(&session).map(|&secret| (secret, connect.timeout_ms));
            let (_, timeout_ms) = record.or(own).filter(|&(right, _)| right == secret)?;
            Some((session, secret, timeout_ms))
        });
        if asked.is_none() && known.len() >= limits::CONNECTIONS {
            // Who has gone without a word may come back as another guest.
            let here = self.clients.values().filter_map(Client::session);
            let here: BTreeSet<SessionId> = here.collect();
            known.retain(|session, _| here.contains(session));
        }
        let why = if !connect.read_only {
            Some("this server reaches no quorum, so that one can only read here")
        } else if connect.last_zxid > self.applied {
            Some("this server is behind what the client has seen, and cannot catch up")
        } else if asked == Some(None) {
            // It may well exist: whoever could tell is out of reach.
            Some("this server does not know the session, and cannot ask")
        } else if asked.is_none() && known.len() >= limits::CONNECTIONS {
            Some("this server has too many guests")
        } else {
            None
        };
        if let Some(why) = why {
            self.refuse(conn, ErrorCode::Unavailable, why);
            return;
        }
        let resumed = asked.is_some();
        let (session, secret, timeout_ms) =
            asked.flatten().unwrap_or((fresh.0, fresh.1, connect.timeout_ms));
        if !resumed {
            known.insert(session, secret);
        }
        let timeout_ms = timeout_ms.clamp(min, max);
        let client = self.clients.get_mut(&conn).expect("it has just said something");
        client.state = State::Guest(Guest { session, timeout_ms });
        self.note_sign_of_life(conn);
        let connected = Connected {
            session,
            secret,
            timeout_ms,
            resumed,
            read_only: true,
            server: self.config.zab.id,
            zxid: self.applied,
            limits: limits_of_a_connection(),
        };
        self.tell(conn, ServerMessage::Connected(connected));
    }

    /// What a guest is answered to a request that takes a leader: a refusal, or that its session is
    /// over. `None`: it is not a guest's.
    pub(super) fn refusal_for_guest(&mut self, conn: ConnId, op: &Op) -> Option<Answer> {
        let State::Guest(guest) = self.clients.get(&conn)?.state else { return None };
        let mut result = Err(ErrorCode::NotReadOnly.into());
        if let (Op::CloseSession, Part::Looking { guests: Some(Guests(known)), .. }) =
            (op, &mut self.part)
            && known.remove(&guest.session).is_some()
        {
            result = Ok(Reply::Done);
        }
        Some(Answer { zxid: None, result })
    }

    /// There is a leader: the guests go where everything is known.
    pub(super) fn dismiss_guests(&mut self) {
        let is_guest = |state: &State| matches!(state, State::Guest(_));
        let guests = self.clients.iter().filter(|(_, client)| is_guest(&client.state));
        let guests: Vec<ConnId> = guests.map(|(&conn, _)| conn).collect();
        for conn in guests {
            self.send_away(conn);
        }
    }
}
