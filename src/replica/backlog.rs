//! What a turn leaves to the next one: reads, once its answers take as many bytes as those of one turn
//! may, heavy reads but for one, the transactions that these reads must not see, and transactions that
//! follow costly ones, or those that many were told of.
//!
//! Between two turns answers leave and other servers are heard: however many clients ask for much at
//! once, a bounded part of it is in memory, and nobody takes this server for dead. Of both kinds of
//! reads those put off are served before others, but for those who ask for one node, and one after
//! another. What one kind is answered takes nothing from the other, so neither can keep it waiting.

use std::cell::Cell;
use std::collections::VecDeque;

use conclave_proto::request::Page;
use conclave_proto::{Op, Reply, codec};

use crate::limits;
use crate::tree::{self, Nodes};
use crate::zab;

use super::client::Told;
use super::machine::Replica;
use super::{Config, ConnId};

/// Beside what a turn's answers may take, those to reads of one node may take this part of it.
const FOR_ONE: usize = 32;

/// What an answer takes beside what it carries, in bytes: an estimate.
const ANSWER_BYTES: usize = 64;

/// What a name that a listing passes counts, whether it is part of the answer or gone, in bytes: the time
/// for it, beside that for an answer.
const PASSED_BYTES: usize = 32;

/// Whether a request may have to look at thousands of nodes or events for a small answer, or makes
/// those behind it cost more.
pub fn is_heavy(op: &Op) -> bool {
    let lists = |ops: &[Op]| ops.iter().any(|op| matches!(op, Op::Children { .. }));
    // Of a directory's names alone, what is looked at is answered, or remembered to be too much.
    let looks_at_each = |page: &Page| page.is_whole() && *page != Page::WHOLE;
    matches!(op, Op::CountDescendants { .. } | Op::Ephemerals { .. } | Op::Authenticate { .. })
        || matches!(op, Op::ListRecursive { .. })
        || matches!(op, Op::MultiRead(ops) if lists(ops))
        || matches!(op, Op::Children { page, .. } if looks_at_each(page))
        // A watch that fires once is told one event.
        || matches!(op, Op::Watch { since: Some(_), kind, .. } if !kind.is_one_shot())
}

/// The connections whose first request is a read that was put off, in the order in which they were;
/// [`super::client::Client`] knows it too.
#[derive(Debug, Default)]
struct Line {
    conns: VecDeque<ConnId>,
    /// Whoever asks now is the one whose turn it is.
    serving: bool,
}

impl Line {
    /// Whether nobody comes before who asks now.
    fn is_free(&self) -> bool {
        self.serving || self.conns.is_empty()
    }

    /// This one is the first, if it is there at all.
    fn bring_forward(&mut self, conn: ConnId) {
        if let Some(place) = self.conns.iter().position(|&other| other == conn) {
            self.conns.remove(place);
            self.conns.push_front(conn);
        }
    }

    fn take_out(&mut self, conn: ConnId) {
        self.conns.retain(|&other| other != conn);
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Backlog {
    /// The bytes that the answers of one turn may take, but for that to a heavy read.
    most_answered: usize,
    /// Those of this turn's so far.
    answered: usize,
    /// Those of them to reads of one node.
    answered_of_one: usize,
    /// Whether the read that is being answered is a heavy one.
    is_heavy: bool,
    /// Whether this turn has answered a heavy read.
    was_heavy: bool,
    /// The nodes that the transactions of one turn may change or count.
    most_nodes: usize,
    /// Those of this turn's so far.
    nodes: usize,
    /// The number of this turn.
    turn: u64,
    /// The events that it has told clients, or found that they may not know, so far.
    events: usize,
    /// The bytes of data that went with them.
    values: usize,
    /// Those whose read is not a heavy one.
    light: Line,
    /// Those whose read is a heavy one, so that others do not stand behind it.
    heavy: Line,
    /// What is committed and not applied yet.
    entries: VecDeque<zab::Entry>,
    /// More of these than that are held until what others wait for has left.
    most_before_others: usize,
    /// They are held.
    is_held: bool,
}

impl Backlog {
    pub(super) fn new(config: &Config) -> Backlog {
        Backlog {
            most_answered: config.turn_answers_bytes,
            answered: 0,
            answered_of_one: 0,
            is_heavy: false,
            was_heavy: false,
            most_nodes: config.turn_nodes,
            nodes: 0,
            turn: 1,
            events: 0,
            values: 0,
            light: Line::default(),
            heavy: Line::default(),
            entries: VecDeque::new(),
            most_before_others: config.applied_before_others,
            is_held: false,
        }
    }

    /// Whether a read that is not a heavy one is answered in this turn.
    fn has_room_for_light(&self) -> bool {
        self.answered < self.most_answered && self.light.is_free()
    }

    /// Whether a heavy read is answered in this turn.
    fn has_room_for_heavy(&self) -> bool {
        !self.was_heavy && self.heavy.is_free()
    }

    /// Whether this read is answered in this turn: who asks for one node does not stand behind those
    /// who list thousands.
    pub(super) fn has_room_for(&self, op: &Op) -> bool {
        if is_heavy(op) {
            return self.has_room_for_heavy();
        }
        let is_of_one = matches!(op, Op::Get { .. } | Op::Exists { .. });
        self.has_room_for_light()
            || (is_of_one && self.answered_of_one < self.most_answered / FOR_ONE)
    }

    /// A read is about to be answered.
    pub(super) fn count_read(&mut self, op: &Op) {
        self.is_heavy = is_heavy(op);
        self.was_heavy |= self.is_heavy;
    }

    /// It has this answer.
    pub(super) fn count_answer(&mut self, reply: &Reply) {
        let bytes = ANSWER_BYTES + tree::payload(reply);
        self.count_missed(bytes);
        if matches!(reply, Reply::Data { .. } | Reply::Stat(_)) {
            self.answered_of_one += bytes;
        }
    }

    /// It is a watch that is set, and was told so many bytes of what it has missed.
    pub(super) fn count_missed(&mut self, bytes: usize) {
        if !self.is_heavy {
            self.answered += bytes;
        }
    }

    /// A read has passed so many names in listings.
    pub(super) fn count_passed(&mut self, names: u64) {
        let names = usize::try_from(names).unwrap_or(usize::MAX);
        self.count_missed(names.saturating_mul(PASSED_BYTES));
    }

    /// So many bytes of data go with an event.
    pub(super) fn count_value(&mut self, bytes: usize) {
        self.values += bytes;
    }

    /// A transaction has changed or counted so many nodes.
    pub(super) fn count_nodes(&mut self, nodes: usize) {
        self.nodes += nodes;
    }

    /// Whether a client that was `told` so much is looked at for another event in this turn: it is not if
    /// that is more than its share. So what one transaction makes for watchers is bounded, too.
    pub(super) fn may_tell(&mut self, told: &Cell<Told>) -> bool {
        let earlier = told.get();
        let events = if earlier.turn == self.turn { earlier.events } else { 0 };
        let left = limits::ALL_EVENTS_AT_ONCE.saturating_sub(self.events);
        let share = match self.entries.len() > limits::BACKLOG_ENTRIES {
            // Somebody is told so much that this server falls behind the others for good.
            true => limits::EVENTS_WHEN_BEHIND,
            false => left.clamp(limits::EVENTS_ALWAYS, limits::EVENTS_AT_ONCE),
        };
        if events >= share {
            return false;
        }
        told.set(Told { turn: self.turn, events: events + 1 });
        self.events += 1;
        true
    }

    /// Whether this turn has done as much as one should.
    fn has_done_enough(&self) -> bool {
        self.nodes >= self.most_nodes
            || self.events >= limits::TURN_EVENTS
            || self.values >= self.most_answered
    }

    /// Whether a read was put off.
    fn has_put_off(&self) -> bool {
        !self.light.conns.is_empty() || !self.heavy.conns.is_empty()
    }

    /// Whether something is left to the next turn.
    pub(super) fn is_pending(&self) -> bool {
        self.has_put_off() || !self.entries.is_empty()
    }

    /// Whether transactions are held until what others wait for has left.
    pub(super) fn is_held(&self) -> bool {
        self.is_held
    }

    /// The answers so far leave, and others have a turn.
    pub(super) fn end_turn(&mut self) {
        self.answered = 0;
        self.answered_of_one = 0;
        self.was_heavy = false;
        self.nodes = 0;
        self.events = 0;
        self.values = 0;
        self.turn += 1;
    }

    /// Forget everything: the state is another one, and every client is gone.
    pub(super) fn clear(&mut self) {
        self.light.conns.clear();
        self.heavy.conns.clear();
        self.entries.clear();
        self.is_held = false;
    }
}

impl<N: Nodes> Replica<N> {
    /// The first request of a connection is a read, perhaps a heavy one, and this turn has no room for
    /// its answer.
    pub(super) fn put_off(&mut self, conn: ConnId, is_heavy: bool) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        if !std::mem::replace(&mut client.is_put_off, true) {
            let line = if is_heavy { &mut self.backlog.heavy } else { &mut self.backlog.light };
            line.conns.push_back(conn);
        }
    }

    /// Serve those that were put off, as far as there is room. Whoever all transactions wait for comes
    /// first, but only every other turn: or who writes behind each read would be the only one served.
    pub(super) fn serve_backlog(&mut self) {
        if self.backlog.turn.is_multiple_of(2)
            && let Some(conn) = self.stands_in_the_way()
        {
            self.backlog.light.bring_forward(conn);
            self.backlog.heavy.bring_forward(conn);
        }
        self.serve_line(|backlog| &mut backlog.light, Backlog::has_room_for_light);
        self.serve_line(|backlog| &mut backlog.heavy, Backlog::has_room_for_heavy);
    }

    fn serve_line(&mut self, line: fn(&mut Backlog) -> &mut Line, has_room: fn(&Backlog) -> bool) {
        line(&mut self.backlog).serving = true;
        while has_room(&self.backlog)
            && let Some(conn) = line(&mut self.backlog).conns.pop_front()
        {
            if let Some(client) = self.clients.get_mut(&conn) {
                client.is_put_off = false;
                self.drain(conn);
            }
        }
        line(&mut self.backlog).serving = false;
    }

    /// Apply what is committed as far as one turn may, but nothing that a read was asked before which
    /// was put off. With `all`, nothing is left to the next turn.
    ///
    /// If `others_wait` for what this turn has come to, the disk for writes or servers for messages, and
    /// there is more than a little to apply, it is held: they had better do their part while this server
    /// applies. What was held once is applied the next time.
    pub(super) fn apply_committed(
        &mut self,
        entries: Vec<zab::Entry>,
        all: bool,
        others_wait: bool,
    ) {
        self.backlog.entries.extend(entries);
        let is_much = self.backlog.entries.len() > self.backlog.most_before_others;
        self.backlog.is_held = is_much && others_wait && !all && !self.backlog.is_held;
        if self.backlog.is_held {
            return;
        }
        while !self.halted {
            if let Some(conn) = self.stands_in_the_way() {
                if !all {
                    return;
                }
                self.clear_the_way(conn);
            } else if !all && self.backlog.has_done_enough() {
                return;
            } else if let Some(entry) = self.backlog.entries.pop_front() {
                self.apply(entry);
            } else {
                return;
            }
        }
    }

    /// Serve a connection before all others; if this turn has no room for its reads, its client goes
    /// elsewhere with them. What others have asked can wait, whatever this server becomes.
    fn clear_the_way(&mut self, conn: ConnId) {
        if let Some(client) = self.clients.get_mut(&conn) {
            client.is_put_off = false;
        }
        for line in [&mut self.backlog.light, &mut self.backlog.heavy] {
            line.take_out(conn);
            line.serving = true;
        }
        self.drain(conn);
        for line in [&mut self.backlog.light, &mut self.backlog.heavy] {
            line.serving = false;
        }
        if self.clients.get(&conn).is_some_and(|client| client.is_put_off) {
            self.send_away(conn);
        }
    }

    /// The connection on which the next transaction was asked, if a read was put off that was asked there
    /// before.
    fn stands_in_the_way(&mut self) -> Option<ConnId> {
        if !self.backlog.has_put_off() {
            return None;
        }
        let txn = codec::decode_txn(&self.backlog.entries.front()?.body).ok()?;
        let (server, tag) = txn.origin;
        let own = server == self.config.zab.id;
        let conn = self.pendings.get_mut(tag).filter(|_| own)?.waiter.conn();
        self.clients.get(&conn).filter(|client| client.is_put_off).map(|_| conn)
    }
}
