//! Committed transactions: applied, told to watchers, answered, in this order.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use conclave_proto::{Acl, EventKind, Op, Perms, ServerMessage, SessionId, Txn, Zxid, codec};

use crate::limits;
use crate::tree::{self, Applied, Change, Nodes, SessionChange};
use crate::zab;

use super::client::Answer;
use super::lead::MOVE;
use super::machine::{Part, Replica};
use super::pending::session_of;
use super::{ConnId, Notice, ToClient};

/// The digests of this server's latest states.
#[derive(Debug, Default)]
pub(super) struct Digests(VecDeque<(Zxid, u64)>);

impl Digests {
    pub(super) fn push(&mut self, zxid: Zxid, digest: u64) {
        if self.0.len() == limits::DIGEST_WINDOW {
            self.0.pop_front();
        }
        self.0.push_back((zxid, digest));
    }

    /// The digest after that transaction, if it is known. Later questions are about the same or
    /// later transactions: each leader stamps what it has applied, in the order of history.
    fn after(&mut self, zxid: Zxid) -> Option<u64> {
        while self.0.front().is_some_and(|&(earlier, _)| earlier < zxid) {
            self.0.pop_front();
        }
        self.0.front().filter(|&&(at, _)| at == zxid).map(|&(_, digest)| digest)
    }
}

impl<N: Nodes> Replica<N> {
    pub(super) fn apply(&mut self, entry: zab::Entry) {
        let zab::Entry { zxid, chain, body } = entry;
        if matches!(&self.part, Part::Leading(lead) if lead.is_bypassed(zxid)) {
            self.look();
        }
        let proposed = match &mut self.part {
            Part::Leading(lead) => lead.take_committed(zxid),
            Part::Looking { .. } | Part::Following(_) => None,
        };
        let txn = match proposed.map_or_else(|| codec::decode_txn(&body), Ok) {
            Ok(txn) if txn.semantics <= tree::SEMANTICS => txn,
            Ok(txn) => {
                let (needs, has) = (txn.semantics, tree::SEMANTICS);
                self.not_understood(zxid, format!("needs rules {needs}, this server has {has}"));
                return;
            }
            Err(error) => return self.not_understood(zxid, error.to_string()),
        };
        if !self.agrees(&txn) {
            return;
        }
        let session = session_of(&txn.request);
        let applied = tree::apply(&mut self.nodes, zxid, chain, &txn);
        self.applied = zxid;
        self.backlog.count_nodes(applied.nodes);
        self.digests.push(zxid, self.nodes.meta().digest);
        if let Some(SessionChange::Opened { session, timeout_ms }) = applied.session {
            self.session_opened(&txn, session, timeout_ms);
        } else if txn.origin.1 >= MOVE {
            self.session_moved(session, txn.origin);
        }
        for (index, change) in applied.changes.iter().enumerate() {
            self.fire(change, &applied.changes[index + 1..]);
        }
        self.settle(&txn, session, &applied);
        self.tell_acl_changes(&txn, &applied);
        if let (Some(excess), Part::Leading(_)) = (applied.excess, &self.part) {
            self.out.notices.push(Notice::OverQuota(excess));
        }
        if txn.origin.0 == self.config.zab.id {
            let answer = Answer { zxid: Some(applied.zxid), result: applied.result };
            self.answer_own(txn.origin.1, session, answer, applied.session);
        }
        if let Some(SessionChange::Closed(session)) = applied.session {
            self.session_count -= 1;
            if let Part::Leading(lead) = &mut self.part {
                lead.sessions.close(session);
            }
            if let Some(&conn) = self.by_session.get(&session) {
                self.close(conn);
            }
        }
        while let Some(&(waited_for, conn)) = self.by_zxid.first()
            && waited_for <= zxid
        {
            self.by_zxid.pop_first();
            self.wake(conn);
        }
    }

    /// Whether this server's state is what the leader's was after the same transaction.
    fn agrees(&mut self, txn: &Txn) -> bool {
        let (zxid, leaders) = txn.digest;
        match self.digests.after(zxid) {
            Some(ours) if ours != leaders => {
                self.halted = true;
                self.out.notices.push(Notice::Diverged { zxid, ours, leaders });
                false
            }
            Some(_) | None => true,
        }
    }

    fn not_understood(&mut self, zxid: Zxid, why: String) {
        self.halted = true;
        self.out.notices.push(Notice::NotUnderstood { zxid, why });
    }

    fn session_opened(&mut self, txn: &Txn, session: SessionId, timeout_ms: u32) {
        self.session_count += 1;
        if let Part::Leading(lead) = &mut self.part {
            lead.open(session, timeout_ms, txn.origin.0, self.applied);
        }
    }

    /// Tell those who wait for the beginning or the end of a session of which servers may know that
    /// the ensemble does not, and the leader if an end was none.
    fn settle(&mut self, txn: &Txn, session: SessionId, applied: &Applied) {
        if matches!(txn.request.op, Op::CreateSession { .. }) && applied.result.is_ok() {
            self.local_opened(session, self.applied);
        } else if matches!(txn.request.op, Op::CloseSession | Op::ExpireSession) {
            self.end_local(session);
            self.tell_of_end(session);
            if let Part::Leading(lead) = &mut self.part
                && applied.session.is_none()
                && !lead.has_end_in_flight(session)
            {
                lead.sessions.stays(session);
            }
        }
    }

    fn answer_own(
        &mut self,
        tag: u64,
        session: SessionId,
        answer: Answer,
        change: Option<SessionChange>,
    ) {
        if self.pendings.get_mut(tag).is_none_or(|pending| pending.session != session) {
            return;
        }
        if matches!(change, Some(SessionChange::Closed(_))) {
            // What was asked after the end of its session has no answer.
            self.answer_alone(tag, answer);
        } else {
            self.answer(tag, answer);
        }
    }

    /// Tell the watchers of a change that was applied just now, and of what came `later` in the
    /// same transaction.
    fn fire(&mut self, change: &Change, later: &[Change]) {
        let mut told = std::mem::take(&mut self.told);
        self.hub.fire(&change.event, &change.acl, &mut told);
        let mut said = None;
        // One client may have many watches on a node and many identities: it is asked about once.
        let mut rights: Option<Rights> = None;
        for told in told.drain(..) {
            let conn = ConnId(told.watcher.0);
            let Some(client) = self.clients.get(&conn) else { continue };
            if !self.backlog.may_tell(&client.told) {
                self.drop_overwhelmed(conn);
                continue;
            }
            let may_read = |acl| tree::allows(acl, Perms::READ, &client.identities);
            if rights.as_ref().is_none_or(|rights| rights.conn != conn) {
                rights = Some(Rights { conn, knows: may_read(&change.acl), sees: None });
            }
            let Some(rights) = &mut rights else { unreachable!("it has just been found out") };
            if !rights.knows {
                if told.is_last {
                    let spent = ToClient::Spent(told.watch, change.event.path.clone());
                    self.out.clients.push((conn, spent));
                }
                continue;
            }
            let value = if told.with_value && event_has_value(change.event.kind) {
                // What follows in the same transaction may have changed data and ACL again.
                let said = said.get_or_insert_with(|| self.said(change, later));
                said.as_ref()
                    .filter(|said| *rights.sees.get_or_insert_with(|| may_read(&said.acl)))
                    .and_then(|said| said.data.clone())
            } else {
                None
            };
            self.backlog.count_value(value.as_ref().map_or(0, Bytes::len));
            let event = change.event.clone();
            let message = ServerMessage::Event { watch: told.watch, event, value };
            self.out.clients.push((conn, ToClient::Message(message)));
        }
        // What one change made room for is not kept for ever.
        told.shrink_to(limits::TURN_EVENTS);
        self.told = told;
    }

    /// What a node holds, or held last if it was changed and deleted in one transaction.
    fn said(&self, change: &Change, later: &[Change]) -> Option<Said> {
        if let Some(node) = self.nodes.node(&change.event.path) {
            return Some(Said { data: node.data, acl: node.acl });
        }
        // The end of a session may delete so many nodes that to look for each among all takes seconds;
        // it changes the data of none.
        if change.event.kind != EventKind::DataChanged {
            return None;
        }
        let is_end = |later: &&Change| {
            later.event.kind == EventKind::Deleted && later.event.path == change.event.path
        };
        let end = later.iter().find(is_end)?;
        Some(Said { data: end.last.clone(), acl: end.acl.clone() })
    }
}

/// Whether a node's data goes with an event to those who want it: if a child has come or gone, it is what
/// it was.
pub(super) fn event_has_value(kind: EventKind) -> bool {
    kind != EventKind::ChildrenChanged
}

/// What a client may be told of a change.
struct Rights {
    conn: ConnId,
    /// That there was one.
    knows: bool,
    /// The data, once that is known.
    sees: Option<bool>,
}

/// What goes with an event to those who may read it.
struct Said {
    data: Option<Bytes>,
    acl: Arc<[Acl]>,
}
