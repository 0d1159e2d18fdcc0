//! A follower's duties to its leader: to forward writes and to report signs of life.

use conclave_proto::{Epoch, ErrorCode, ServerId};

use crate::limits;
use crate::tree::Nodes;

use super::client::Answer;
use super::machine::{Part, Replica};
use super::pending::{Work, mix};
use super::reports::Sign;
use super::{Forward, Forwarded, PeerMessage, Strain, Touch};

/// What a follower, or observer, remembers of its leader.
#[derive(Debug)]
pub(super) struct Follow {
    /// Whom it follows.
    pub(super) leader: ServerId,
    /// The leader's epoch.
    pub(super) epoch: Epoch,
    /// The name of the stream of forwarded writes.
    stream: u64,
    /// The number that the next write on it will have.
    next: u64,
    /// The mark of the first write that is not sent yet.
    pub(super) next_tag: u64,
    /// The leader's clock when it last polled.
    polled_ms: u64,
    /// When the next report is due.
    report_at_ms: u64,
}

/// Writes for one message.
#[derive(Default)]
struct Batch {
    requests: Vec<Forwarded>,
    bytes: usize,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.requests.len() >= limits::BATCH_ENTRIES || self.bytes >= limits::BATCH_BYTES
    }
}

impl Follow {
    /// The message that sends these writes, the next ones of the stream.
    fn take_forward(&mut self, batch: &mut Batch) -> (ServerId, PeerMessage) {
        let Batch { requests, .. } = std::mem::take(batch);
        let (epoch, stream, first) = (self.epoch, self.stream, self.next);
        self.next += requests.len() as u64;
        (self.leader, PeerMessage::Forward(Forward { epoch, stream, first, requests }))
    }
}

impl<N: Nodes> Replica<N> {
    /// There is a leader, or the leader has begun a new epoch.
    pub(super) fn follow(&mut self, leader: ServerId, epoch: Epoch) {
        match &mut self.part {
            Part::Following(follow) if follow.leader == leader => {
                // Nothing that was sent is lost; what the leader ignored, because it was said in
                // the earlier epoch, it will miss and ask for.
                follow.epoch = epoch;
                self.mark_all_unreported();
            }
            Part::Looking { .. } | Part::Following(_) | Part::Leading(_) => {
                self.look();
                self.dismiss_guests();
                let stream = self.new_stream();
                self.part = Part::Following(Follow {
                    leader,
                    epoch,
                    stream,
                    next: 0,
                    next_tag: self.pendings.first_tag(),
                    polled_ms: 0,
                    report_at_ms: 0,
                });
                self.reports.give_up();
                self.mark_all_unreported();
            }
        }
        self.catch_up_with_leader();
    }

    /// There is a new link: the leader finds out from a report which writes were lost.
    pub(super) fn link_up(&mut self, server: ServerId) {
        if matches!(&self.part, Part::Following(follow) if follow.leader == server) {
            self.mark_all_unreported();
            self.catch_up_with_leader();
        }
    }

    fn catch_up_with_leader(&mut self) {
        self.report();
        self.ask_to_resume_again();
        self.read_on();
    }

    /// Everything that a leader tells its followers; from others, and from other epochs, it is
    /// ignored.
    pub(super) fn hear_leader(&mut self, from: ServerId, message: PeerMessage) {
        let Part::Following(follow) = &mut self.part else { return };
        let current = (follow.leader, follow.epoch);
        match message {
            PeerMessage::Resend { epoch, stream, first } if (from, epoch) == current => {
                self.resend(stream, first);
            }
            PeerMessage::Retired { epoch, stream }
                if (from, epoch, stream) == (follow.leader, follow.epoch, follow.stream) =>
            {
                self.restart_stream();
            }
            PeerMessage::Rejected { epoch, stream, requests }
                if (from, epoch, stream) == (follow.leader, follow.epoch, follow.stream) =>
            {
                for (tag, fault) in requests {
                    self.rejected(tag, Answer { zxid: None, result: Err(fault) });
                }
            }
            PeerMessage::Poll { epoch, now_ms } if (from, epoch) == current => {
                follow.polled_ms = now_ms;
                self.report();
            }
            PeerMessage::Counted { epoch, report, refused } if (from, epoch) == current => {
                self.counted(report, &refused);
            }
            PeerMessage::Gone { epoch, conn, session } if (from, epoch) == current => {
                self.refuse_to_resume(conn, session);
            }
            PeerMessage::ReadAt { epoch, read, commit } if (from, epoch) == current => {
                self.read_at(read, commit);
            }
            PeerMessage::Zab(_)
            | PeerMessage::Forward(_)
            | PeerMessage::Resend { .. }
            | PeerMessage::Retired { .. }
            | PeerMessage::Rejected { .. }
            | PeerMessage::Touch(_)
            | PeerMessage::Poll { .. }
            | PeerMessage::Counted { .. }
            | PeerMessage::Attach { .. }
            | PeerMessage::Gone { .. }
            | PeerMessage::ReadIndex { .. }
            | PeerMessage::ReadAt { .. } => {}
        }
    }

    /// The leader will never propose this write.
    pub(super) fn rejected(&mut self, tag: u64, answer: Answer) {
        let moved = |fault: &conclave_proto::Fault| fault.code == ErrorCode::SessionMoved;
        if answer.result.as_ref().is_err_and(moved) {
            // The client is served elsewhere, where the same write may still be carried out: here
            // nobody can say what comes of it.
            if let Some(pending) = self.pendings.take(tag) {
                self.close(pending.waiter.conn());
            }
        } else {
            self.answer(tag, answer);
        }
    }

    pub(super) fn flush_as_follower(&mut self) {
        self.forward();
        if let Part::Following(follow) = &self.part
            && let Some(read) = self.reading.take_question()
        {
            let message = PeerMessage::ReadIndex { epoch: follow.epoch, read };
            self.out.send.push((follow.leader, message));
        }
        if !self.out.send.is_empty() {
            self.zab.acknowledge();
        }
    }

    /// Send the leader the writes it has not been sent yet.
    fn forward(&mut self) {
        let Part::Following(follow) = &mut self.part else { return };
        if follow.next_tag == self.pendings.next_tag() {
            return;
        }
        let mut batch = Batch::default();
        let mut hole = false;
        for (tag, pending) in self.pendings.from(follow.next_tag) {
            let number = follow.next + batch.requests.len() as u64;
            hole = pending.sent.is_some_and(|before| before != number);
            if hole {
                break;
            }
            let work = pending.work.clone().expect("only a leader takes the work");
            pending.sent = Some(number);
            batch.bytes += work.bytes();
            let Work { identities, claim, request } = work;
            batch.requests.push(Forwarded { tag, identities, claim, request });
            if batch.is_full() {
                self.out.send.push(follow.take_forward(&mut batch));
            }
        }
        if !batch.requests.is_empty() {
            self.out.send.push(follow.take_forward(&mut batch));
        }
        follow.next_tag = self.pendings.next_tag();
        if hole {
            // One of those to be sent again has been answered meanwhile.
            self.restart_stream();
            self.forward();
        }
    }

    /// The leader has not received what was sent on this stream from that number on.
    fn resend(&mut self, stream: u64, first: u64) {
        let Part::Following(follow) = &mut self.part else { return };
        if stream != follow.stream || first >= follow.next {
            return;
        }
        let start = self.pendings.first_tag();
        let mut from = None;
        let mut number = first;
        for (tag, pending) in self.pendings.from(start) {
            match pending.sent {
                Some(sent) if sent == number => {
                    from = from.or(Some(tag));
                    number += 1;
                }
                Some(sent) if sent > number => break,
                Some(_) | None => {}
            }
        }
        match from {
            // They go under the numbers they had: the leader may have some of them by now.
            Some(tag) if number == follow.next => {
                follow.next = first;
                follow.next_tag = tag;
            }
            // One of those that the leader misses is answered already, by way of an earlier
            // leader: the numbers have a hole, so a new stream begins.
            Some(_) | None => self.restart_stream(),
        }
    }

    /// Begin to forward anew, with everything that has no answer yet.
    pub(super) fn restart_stream(&mut self) {
        self.unsend();
        let stream = self.new_stream();
        let next_tag = self.pendings.first_tag();
        if let Part::Following(follow) = &mut self.part {
            (follow.stream, follow.next, follow.next_tag) = (stream, 0, next_tag);
        }
    }

    fn new_stream(&mut self) -> u64 {
        self.streams = mix(self.streams);
        self.streams
    }

    pub(super) fn report_if_due(&mut self) {
        let Part::Following(follow) = &self.part else { return };
        if self.now_ms() >= follow.report_at_ms {
            self.report();
        }
    }

    /// Tell the leader who is alive, and what else it should know. Who has no leader keeps that.
    pub(super) fn report(&mut self) {
        if !matches!(self.part, Part::Following(_)) {
            return;
        }
        let (touched, mut signs) = self.take_unreported();
        let now_ms = self.now_ms();
        let (strain, has_clients) = (self.strain, !self.clients.is_empty());
        let Part::Following(follow) = &mut self.part else { return };
        follow.report_at_ms = now_ms + self.config.report_interval_ms();
        let mut parts = touched.chunks(limits::TOUCHES).peekable();
        loop {
            let sessions = parts.next().unwrap_or_default().to_vec();
            let last = parts.peek().is_none();
            let asked: Vec<Sign> = signs.drain(..sessions.len().min(signs.len())).collect();
            // Of those who are gone nobody asks whether their last sign of life counts.
            let report = (!asked.is_empty()).then(|| self.reports.add(asked));
            let touch = Touch {
                epoch: follow.epoch,
                polled_ms: if last { follow.polled_ms } else { 0 },
                stream: follow.stream,
                forwarded: follow.next,
                strain,
                has_clients,
                report,
                sessions,
            };
            self.out.send.push((follow.leader, PeerMessage::Touch(touch)));
            if last {
                return;
            }
        }
    }

    /// The state of this server's disk is another one.
    pub(super) fn set_strain(&mut self, strain: Strain) {
        self.strain = strain;
        match &mut self.part {
            Part::Looking { .. } => {}
            Part::Following(_) => self.report(),
            Part::Leading(lead) => lead.set_strain(self.config.zab.id, strain),
        }
    }
}
