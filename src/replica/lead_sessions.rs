//! A leader's duties to sessions: to know who is alive and where, and to end those who are not.

use conclave_proto::{Epoch, Lifetime, Op, Request, Secret, ServerId, SessionId, Xid};

use crate::limits;
use crate::session::Claim;
use crate::tree::Nodes;

use super::lead::{Asker, Lead, MOVE, SYSTEM};
use super::local;
use super::machine::{Part, Replica};
use super::pending::Work;
use super::{Notice, PeerMessage, Touch, Touched};

/// A connection that wants to resume a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Its server.
    server: ServerId,
    /// The server's mark for it.
    conn: u64,
    session: SessionId,
    secret: Secret,
}

impl Lead {
    /// Take note of the signs of life that a server reports; those that do not count come back.
    fn touch(&mut self, server: ServerId, touched: &[Touched]) -> Vec<SessionId> {
        let mut refused = Vec::new();
        for &Touched { session, age_ms, claim } in touched {
            if !self.sessions.touch(session, server, age_ms, claim) {
                refused.push(session);
            }
        }
        refused
    }
}

impl<N: Nodes> Replica<N> {
    /// A follower's report.
    pub(super) fn take_touch(&mut self, from: ServerId, touch: Touch) {
        let Part::Leading(lead) = &mut self.part else { return };
        if lead.epoch != touch.epoch {
            return;
        }
        lead.set_strain(from, touch.strain);
        self.zab.set_idle(from, !touch.has_clients);
        let epoch = touch.epoch;
        let refused = lead.touch(from, &touch.sessions);
        if let Some(report) = touch.report {
            lead.asking.push(Asker::Report { server: from, report, refused });
        }
        lead.sessions.report(from, touch.polled_ms);
        let stream = lead.streams.entry(from).or_default();
        let name = touch.stream;
        match stream.received(name) {
            Some(received) if touch.forwarded > received => {
                stream.asked = true;
                let message = PeerMessage::Resend { epoch, stream: name, first: received };
                self.out.send.push((from, message));
            }
            Some(_) => {}
            // An earlier stream arrived so late that it was taken for a new one; or this report did.
            None => self.out.send.push((from, PeerMessage::Retired { epoch, stream: name })),
        }
    }

    /// A follower's client wants to resume a session.
    pub(super) fn take_attach(
        &mut self,
        from: ServerId,
        epoch: Epoch,
        conn: u64,
        session: SessionId,
        secret: Secret,
    ) {
        if self.leading(epoch).is_some() {
            self.take_candidate(Candidate { server: from, conn, session, secret });
        }
    }

    /// One of this server's own clients wants to resume a session.
    pub(super) fn attach_own(&mut self, conn: u64, session: SessionId, secret: Secret) {
        self.take_candidate(Candidate { server: self.config.zab.id, conn, session, secret });
    }

    /// The commit of the move will show that this server leads; to say that there is no such session
    /// it must make sure.
    fn take_candidate(&mut self, candidate: Candidate) {
        let right = self.secret_of(candidate.session) == Some(candidate.secret);
        let Part::Leading(lead) = &mut self.part else { return };
        if right {
            lead.movers.push_back(candidate);
        } else {
            lead.asking.push(Asker::Judge(candidate));
        }
    }

    /// Judge those for whom this server has applied enough.
    pub(super) fn judge_candidates(&mut self) {
        while let Part::Leading(lead) = &mut self.part
            && lead.candidates.front().is_some_and(|&(commit, _)| commit <= self.applied)
            && let Some((_, candidate)) = lead.candidates.pop_front()
        {
            self.judge(candidate);
        }
    }

    /// The secret of a session that is there or proposed.
    fn secret_of(&self, session: SessionId) -> Option<Secret> {
        let Part::Leading(lead) = &self.part else { return None };
        let applied = self.nodes.session(session).map(|record| record.secret);
        applied.or_else(|| lead.proposed_secret(session))
    }

    /// Let a session move, or say that there is no such session. This server led when it was asked:
    /// had it been replaced without its knowledge, the session might be there.
    fn judge(&mut self, candidate: Candidate) {
        let Candidate { session, secret, .. } = candidate;
        match (self.secret_of(session), &mut self.part) {
            (Some(right), Part::Leading(lead)) if right == secret => {
                lead.movers.push_back(candidate);
            }
            // A session that is known is none that only its server knows, whoever has found a secret
            // that looks like that of one.
            (None, Part::Leading(_)) if local::may_be_local(session, secret) => {
                self.mourn(candidate);
            }
            (_, Part::Leading(_)) => self.say_gone(candidate),
            (_, Part::Looking { .. } | Part::Following(_)) => {}
        }
    }

    /// Propose the moves of sessions, as far as there is room. They come before what else waits for
    /// it: a session that cannot move ends.
    pub(super) fn propose_moves(&mut self) {
        while let Part::Leading(lead) = &mut self.part
            && lead.has_window()
            && let Some(candidate) = lead.movers.pop_front()
        {
            self.propose_move(candidate);
        }
    }

    /// A session moves by a transaction, which does nothing but say so: to open it again. From the
    /// proposal on this leader refuses what was asked under an earlier claim, so that it is before
    /// the move in history, or never done. Later leaders, and the servers that are with them, have
    /// applied the move before they propose or forward anything.
    fn propose_move(&mut self, candidate: Candidate) {
        let Candidate { server, conn, session, secret } = candidate;
        if self.secret_of(session) != Some(secret) {
            return self.judge(candidate);
        }
        let applied = self.applied;
        let Part::Leading(lead) = &mut self.part else { return };
        if lead.sessions.has_moved_for(session, server, conn) {
            // It was asked for twice. A second move would end what the first one has begun.
            return;
        }
        if lead.sessions.is_closing(session) {
            // What ends must not be opened again.
            if lead.has_end_in_flight(session) {
                lead.candidates.push_back((lead.last_proposed(applied), candidate));
            } else {
                lead.put_off.push(candidate);
            }
            return;
        }
        let timeout_ms = lead.sessions.timeout_ms(session).expect("every session has a clock");
        let op = Op::CreateSession { session, timeout_ms, secret };
        let request = Request { session: SessionId::NONE, xid: Xid(0), acked: Xid(0), op };
        let work = Work { identities: [].into(), claim: None, request };
        let full = self.stamp((server, MOVE | conn), work).is_some();
        let Part::Leading(lead) = &mut self.part else { return };
        if full {
            lead.movers.push_front(candidate);
        } else {
            lead.sessions.attach(session, server, conn, Claim(lead.last_proposed(applied)));
        }
    }

    /// The move of a session is applied: to which connection of which server.
    pub(super) fn session_moved(&mut self, session: SessionId, (server, mark): (ServerId, u64)) {
        let claim = Claim(self.applied);
        if server == self.config.zab.id {
            self.granted(mark & !MOVE, session, claim);
        }
        self.close_earlier(session, claim);
        if let Part::Leading(lead) = &mut self.part {
            // An earlier leader may have proposed it.
            lead.sessions.attach(session, server, mark & !MOVE, claim);
        }
    }

    /// Tell whoever wants to resume a session that there is none.
    fn say_gone(&mut self, candidate: Candidate) {
        let Part::Leading(lead) = &self.part else { return };
        let Candidate { server, conn, session, .. } = candidate;
        if server == self.config.zab.id {
            self.refuse_to_resume(conn, session);
        } else {
            let message = PeerMessage::Gone { epoch: lead.epoch, conn, session };
            self.out.send.push((server, message));
        }
    }

    /// Nobody has opened this session, but a server may yet: have its end committed, then say that
    /// there is none.
    fn mourn(&mut self, candidate: Candidate) {
        let applied = self.applied;
        let Part::Leading(lead) = &mut self.part else { return };
        let session = candidate.session;
        if lead.ended.is_known(session, applied) {
            self.say_gone(candidate);
            return;
        }
        let mourners = lead.mourners.entry(session).or_default();
        mourners.push(candidate);
        if mourners.len() == 1 {
            self.admit_system(session, Op::ExpireSession);
        }
    }

    /// The end of a session is applied.
    pub(super) fn tell_of_end(&mut self, session: SessionId) {
        let Part::Leading(lead) = &mut self.part else { return };
        for candidate in lead.mourners.remove(&session).unwrap_or_default() {
            self.say_gone(candidate);
        }
    }

    pub(super) fn tick_of_leader(&mut self, elapsed_ms: u64) {
        if elapsed_ms == 0 {
            // One of several ticks that are made up for at once.
            return;
        }
        self.throttle();
        let Part::Leading(lead) = &mut self.part else { return };
        lead.movers.extend(lead.put_off.drain(..));
        // A server that was stopped could not hear anybody meanwhile: that time does not count.
        lead.sessions.advance(elapsed_ms.min(4 * u64::from(self.config.tick_ms)));
        let now_ms = lead.sessions.clock_ms();
        let mut due = lead.sessions.due(limits::EXPIRIES_PER_TICK);
        let (id, epoch) = (self.config.zab.id, lead.epoch);
        let asks_itself = due.poll.remove(&id);
        if asks_itself || now_ms >= lead.report_at_ms {
            self.touch_own();
        }
        if asks_itself && let Part::Leading(lead) = &mut self.part {
            let others = lead.sessions.due(limits::EXPIRIES_PER_TICK - due.expired.len());
            due.expired.extend(others.expired);
        }
        for server in due.poll {
            self.out.send.push((server, PeerMessage::Poll { epoch, now_ms }));
        }
        if !due.expired.is_empty() {
            self.out.notices.push(Notice::Expired { sessions: due.expired.len() });
        }
        for session in due.expired {
            self.admit_system(session, Op::ExpireSession);
        }
        self.reap();
        if let Part::Leading(lead) = &mut self.part {
            lead.pressed = true;
        }
    }

    /// The signs of life of this server's own clients.
    pub(super) fn touch_own(&mut self) {
        let (touched, signs) = self.take_unreported();
        let server = self.config.zab.id;
        let report_interval_ms = self.config.report_interval_ms();
        let Part::Leading(lead) = &mut self.part else { return };
        let refused = lead.touch(server, &touched);
        if !signs.is_empty() {
            let report = self.reports.add(signs);
            lead.asking.push(Asker::Report { server, report, refused });
        }
        lead.report_at_ms = lead.sessions.clock_ms() + report_interval_ms;
        lead.sessions.report(server, lead.sessions.clock_ms());
    }

    /// Ask for the end of container and TTL nodes that have outlived their purpose.
    fn reap(&mut self) {
        let (clock_ms, time_of_day_ms, applied) = (self.now_ms(), self.time_ms, self.applied);
        let Part::Leading(lead) = &mut self.part else { return };
        let now_ms = lead.sessions.clock_ms();
        if lead.pressed || !lead.has_room() || now_ms < lead.reap_at_ms {
            return;
        }
        lead.reap_at_ms = now_ms + limits::REAP_INTERVAL_MS;
        let time_ms = lead.tell_time(clock_ms, time_of_day_ms);
        let at_rest = lead.at_rest(now_ms, applied);
        let paths = self.nodes.mortals(lead.reap_after.as_ref(), limits::REAPS);
        lead.reap_after = if paths.len() < limits::REAPS { None } else { paths.last().cloned() };
        for path in paths {
            let node = self.nodes.node(&path).expect("a mortal node exists");
            let rests = node.lifetime != Lifetime::Container || node.pzxid <= at_rest;
            if node.is_due(time_ms) && rests {
                let seen = (node.pzxid, node.mzxid);
                self.admit_system(SessionId::NONE, Op::Reap { path, seen });
            }
        }
    }

    pub(super) fn admit_system(&mut self, session: SessionId, op: Op) {
        let request = Request { session, xid: Xid(0), acked: Xid(0), op };
        let work = Work { identities: [].into(), claim: None, request };
        let id = self.config.zab.id;
        if let Some(work) = self.propose((id, SYSTEM), work) {
            self.wait_for_room((id, SYSTEM), work);
        }
    }
}
