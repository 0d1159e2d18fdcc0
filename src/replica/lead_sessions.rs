//! A leader's duties to sessions: to know who is alive and where, and to end those who are not.

use conclave_proto::{Epoch, Op, Request, Secret, ServerId, SessionId, Xid, Zxid};

use crate::limits;
use crate::session::{Claim, Standing};
use crate::tree::Nodes;

use super::lead::{Asker, SYSTEM};
use super::local;
use super::machine::{Part, Replica};
use super::pending::Work;
use super::{ConnId, Notice, PeerMessage, Touch};

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

impl<N: Nodes> Replica<N> {
    /// A follower's report.
    pub(super) fn take_touch(&mut self, from: ServerId, touch: Touch) {
        let Part::Leading(lead) = &mut self.part else { return };
        if lead.epoch != touch.epoch {
            return;
        }
        lead.set_low_space(from, touch.low_space);
        self.zab.defer_commits(from, !touch.has_clients);
        let epoch = touch.epoch;
        let mut refused = Vec::new();
        let anybody = !touch.sessions.is_empty();
        for touched in touch.sessions {
            let session = touched.session;
            match lead.sessions.touch(session, from, touched.age_ms, touched.claim) {
                Standing::Owner => {}
                Standing::Moved(claim) => {
                    refused.push(session);
                    self.out.send.push((from, PeerMessage::Moved { epoch, session, claim }));
                }
                Standing::Closing | Standing::Gone => refused.push(session),
            }
        }
        // In a history that is not applied here yet a session's end may be.
        if anybody && self.applied >= lead.history_end {
            lead.asking.push(Asker::Report { server: from, report: touch.report, refused });
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
        if let Some(lead) = self.leading(epoch) {
            lead.asking.push(Asker::Judge(Candidate { server: from, conn, session, secret }));
        }
    }

    /// One of this server's own clients wants to resume a session.
    pub(super) fn attach_own(&mut self, conn: ConnId, session: SessionId, secret: Secret) {
        let server = self.config.zab.id;
        if let Part::Leading(lead) = &mut self.part {
            lead.asking.push(Asker::Judge(Candidate { server, conn: conn.0, session, secret }));
        }
    }

    /// Judge one of whom it was asked when this server still led and that was committed. To say that
    /// there is no such session it must have applied all of that.
    pub(super) fn judge_at(&mut self, candidate: Candidate, commit: Zxid) {
        if self.knows(candidate) {
            self.judge(candidate);
        } else if let Part::Leading(lead) = &mut self.part {
            lead.candidates.push_back((commit, candidate));
        }
    }

    /// Judge those for whom this server had to apply more.
    pub(super) fn judge_again(&mut self) {
        while let Part::Leading(lead) = &mut self.part
            && lead.candidates.front().is_some_and(|&(commit, _)| commit <= self.applied)
            && let Some((_, candidate)) = lead.candidates.pop_front()
        {
            self.judge(candidate);
        }
    }

    /// Whether the session is there or proposed, and the candidate's.
    fn knows(&self, candidate: Candidate) -> bool {
        let Candidate { session, secret, .. } = candidate;
        let Part::Leading(lead) = &self.part else { return false };
        let applied = self.nodes.session(session).map(|record| record.secret);
        applied.or_else(|| lead.proposed_secret(session)) == Some(secret)
    }

    /// Let a session move, or say that there is no such session. This server led when it was asked:
    /// had it been replaced without its knowledge, the session might have ended, or have asked for
    /// more elsewhere.
    fn judge(&mut self, candidate: Candidate) {
        let Candidate { server, session, secret, .. } = candidate;
        let right = self.knows(candidate);
        let Part::Leading(lead) = &mut self.part else { return };
        if !right && local::may_be_local(session, secret) {
            self.mourn(candidate);
            return;
        }
        // The server waits for whatever the session has asked for and is proposed, its end too. What
        // is not proposed by now never is.
        let zxid = lead.last_proposed(self.applied);
        let epoch = lead.epoch;
        let claim = right.then(|| {
            // Later than any claim of an earlier leader, even if nothing was proposed since.
            lead.moves += 1;
            Claim { zxid: zxid.max(Zxid::new(epoch, 0)), count: lead.moves }
        });
        let left = claim.and_then(|claim| lead.sessions.attach(session, server, claim));
        if let (Some(claim), Some(left)) = (claim, left) {
            if left == self.config.zab.id {
                self.moved(session, claim);
            } else {
                self.out.send.push((left, PeerMessage::Moved { epoch, session, claim }));
            }
        }
        self.answer_candidate(epoch, candidate, claim, zxid);
    }

    fn answer_candidate(
        &mut self,
        epoch: Epoch,
        candidate: Candidate,
        claim: Option<Claim>,
        zxid: Zxid,
    ) {
        let Candidate { server, conn, session, .. } = candidate;
        if server == self.config.zab.id {
            self.granted(ConnId(conn), session, claim, zxid);
        } else {
            let message = PeerMessage::Attached { epoch, conn, session, claim, zxid };
            self.out.send.push((server, message));
        }
    }

    /// Nobody has opened this session, but a server may yet: have its end committed, then say that
    /// there is none.
    fn mourn(&mut self, candidate: Candidate) {
        let applied = self.applied;
        let Part::Leading(lead) = &mut self.part else { return };
        let (epoch, session) = (lead.epoch, candidate.session);
        if lead.ended.is_known(session, applied) {
            self.answer_candidate(epoch, candidate, None, applied);
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
        let epoch = lead.epoch;
        for candidate in lead.mourners.remove(&session).unwrap_or_default() {
            self.answer_candidate(epoch, candidate, None, self.applied);
        }
    }

    pub(super) fn tick_of_leader(&mut self, elapsed_ms: u64) {
        if elapsed_ms == 0 {
            // One of several ticks that are made up for at once.
            return;
        }
        self.throttle();
        let Part::Leading(lead) = &mut self.part else { return };
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
    }

    /// The signs of life of this server's own clients.
    pub(super) fn touch_own(&mut self) {
        let (touched, signs) = self.take_unreported();
        let server = self.config.zab.id;
        let report_interval_ms = self.config.report_interval_ms();
        let mut moved = Vec::new();
        let mut refused = Vec::new();
        let Part::Leading(lead) = &mut self.part else { return };
        for alive in touched {
            match lead.sessions.touch(alive.session, server, alive.age_ms, alive.claim) {
                Standing::Owner => {}
                Standing::Moved(claim) => moved.push((alive.session, claim)),
                Standing::Closing | Standing::Gone => refused.push(alive.session),
            }
        }
        if !signs.is_empty() && self.applied >= lead.history_end {
            let report = self.reports.add(signs);
            lead.asking.push(Asker::Report { server, report, refused });
        }
        lead.report_at_ms = lead.sessions.clock_ms() + report_interval_ms;
        lead.sessions.report(server, lead.sessions.clock_ms());
        for (session, claim) in moved {
            self.moved(session, claim);
        }
    }

    /// Ask for the end of container and TTL nodes that have outlived their purpose.
    fn reap(&mut self) {
        let (clock_ms, time_of_day_ms) = (self.now_ms(), self.time_ms);
        let Part::Leading(lead) = &mut self.part else { return };
        let now_ms = lead.sessions.clock_ms();
        if !lead.waiting.is_empty() || !lead.has_room() || now_ms < lead.reap_at_ms {
            return;
        }
        lead.reap_at_ms = now_ms + limits::REAP_INTERVAL_MS;
        let time_ms = lead.tell_time(clock_ms, time_of_day_ms);
        let paths = self.nodes.mortals(lead.reap_after.as_ref(), limits::REAPS);
        lead.reap_after = if paths.len() < limits::REAPS { None } else { paths.last().cloned() };
        for path in paths {
            let node = self.nodes.node(&path).expect("a mortal node exists");
            if node.is_due(time_ms) {
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
