//! A client's connection: its session, and its requests in the order in which they are answered.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;

use conclave_proto::{Fault, Identity, Op, Reply, Secret, SessionId, Xid, Zxid};

use crate::session::Claim;

use super::guests::Guest;
use super::local::Kept;

/// A client's connection.
#[derive(Debug)]
pub(super) struct Client {
    /// Who the client is.
    pub(super) identities: Arc<[Identity]>,
    /// The id and secret of the session it may open.
    pub(super) fresh: (SessionId, Secret),
    /// Whether its requests may be sent to a leader twice.
    pub(super) numbered: bool,
    /// Whether a server without a leader will do for it.
    pub(super) accepts_read_only: bool,
    /// How far it has come.
    pub(super) state: State,
    /// Its requests.
    pub(super) queue: Queue,
    /// What must be applied before its handshake or its first request can go on.
    pub(super) waits_for: Option<Zxid>,
    /// The last tick before its last sign of life.
    pub(super) seen_ms: u64,
    /// Whether its first request is a read that was left to the next turn.
    pub(super) is_put_off: bool,
    /// Whether its requests are being answered.
    pub(super) is_draining: bool,
    /// Whether it closes once it has all its answers: it was a guest, and has left.
    pub(super) is_over: bool,
    /// What it has been told in the latest turn in which it was told anything.
    pub(super) told: Cell<Told>,
    /// How often it has pinged since the last tick.
    pub(super) pings: usize,
    /// Whether the leader is still to be told of the last sign of life.
    pub(super) unreported: bool,
    /// The last sign of life of which it is known that the servers count from it.
    pub(super) counted_ms: Option<u64>,
}

/// The events that a client was told in a turn.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    /// The number of the turn.
    pub(super) turn: u64,
    /// How many.
    pub(super) events: usize,
}

/// How far a connection has come.
#[derive(Debug)]
pub(super) enum State {
    /// It has not said anything yet.
    Greeting,
    /// Its new session is being created.
    Opening {
        /// The mark of the write that creates it.
        tag: u64,
        /// The session's timeout, in ms.
        timeout_ms: u32,
        /// When it is refused at the latest.
        until_ms: u64,
    },
    /// The session it had elsewhere is being resumed.
    Resuming(Resuming),
    /// It has a session.
    Open(Open),
    /// It has a session that only this server knows.
    Local(Kept),
    /// It reads while there is no leader.
    Guest(Guest),
}

/// A session that is being resumed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resuming {
    /// Which.
    pub(super) session: SessionId,
    /// The proof.
    pub(super) secret: Secret,
    /// The last transaction that the client has seen.
    pub(super) last_zxid: Zxid,
    /// By which right, once that is known, and what must be applied here first.
    pub(super) granted: Option<(Grant, Zxid)>,
    /// When it is refused at the latest.
    pub(super) until_ms: u64,
}

/// By which right a session is resumed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Grant {
    /// The leader consents.
    Claim(Claim),
    /// Only this server knows it.
    Local,
}

/// An open session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    /// Which.
    pub(super) session: SessionId,
    /// By which right this server serves it.
    pub(super) claim: Claim,
    /// Its timeout, in ms.
    pub(super) timeout_ms: u32,
}

impl Client {
    /// Its session, once it has one.
    pub(super) fn open(&self) -> Option<Open> {
        match self.state {
            State::Open(open) => Some(open),
            State::Greeting
            | State::Opening { .. }
            | State::Resuming(_)
            | State::Local(_)
            | State::Guest(_) => None,
        }
    }

    /// Whether only this server knows its session.
    pub(super) fn is_local(&self) -> bool {
        matches!(self.state, State::Local(_))
    }

    /// The session in whose name it asks, whether that is open, local or a guest's.
    pub(super) fn session(&self) -> Option<SessionId> {
        match self.state {
            State::Open(Open { session, .. })
            | State::Local(Kept { session, .. })
            | State::Guest(Guest { session, .. }) => Some(session),
            State::Greeting | State::Opening { .. } | State::Resuming(_) => None,
        }
    }
}

/// The requests of a connection that are not answered yet, in order.
///
/// Writes are on their way as soon as they are asked, unless a read before them has something to
/// wait for other than the session's own writes: that read must not see writes asked after it.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// The number of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    /// How many reads in it wait for something other than the session's own writes.
    waiting: usize,
}

/// A request that is not answered yet.
#[derive(Debug)]
pub(super) struct Slot {
    /// Its number, for the answer.
    pub(super) xid: Xid,
    /// How far it has come.
    pub(super) state: SlotState,
}

/// How far a request has come.
#[derive(Debug)]
pub(super) enum SlotState {
    /// A write that is on its way.
    Sent,
    /// A write that must wait for a read before it, or until its session is opened.
    Held {
        /// What is asked.
        op: Op,
        /// Who asks: whatever the client shows later does not hold for this.
        identities: Arc<[Identity]>,
        /// What the client has received.
        acked: Xid,
        /// About how many bytes it takes.
        bytes: usize,
    },
    /// It has its answer, and waits for its turn.
    Answered(Answer),
    /// A read.
    Read {
        /// What is asked.
        op: Op,
        /// What it waits for.
        need: Need,
    },
}

/// The answer to a write.
#[derive(Debug)]
pub(super) struct Answer {
    /// The transaction that made it; `None` if there is none.
    pub(super) zxid: Option<Zxid>,
    /// The answer itself.
    pub(super) result: Result<Reply, Fault>,
}

/// What a read waits for, beside the session's earlier requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing.
    Nothing,
    /// The leader has to say what must be applied.
    Index,
    /// This must be applied.
    Applied(Zxid),
    /// It has waited for too long.
    GivenUp,
}

/// A write that need not wait any longer: its slot's number, and what is asked.
pub(super) struct Released {
    pub(super) slot: u64,
    pub(super) xid: Xid,
    pub(super) acked: Xid,
    pub(super) op: Op,
    /// Who asked when it was asked.
    pub(super) identities: Arc<[Identity]>,
    /// As many as it took while it waited.
    pub(super) held_bytes: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether a write that is asked now has to wait.
    pub(super) fn holds_writes(&self) -> bool {
        self.waiting > 0
    }

    /// Add a request; the number of its slot comes back.
    pub(super) fn push(&mut self, xid: Xid, state: SlotState) -> u64 {
        self.waiting += usize::from(state.is_barrier());
        self.slots.push_back(Slot { xid, state });
        self.first + self.slots.len() as u64 - 1
    }

    /// The first request.
    pub(super) fn front(&self) -> Option<&Slot> {
        self.slots.front()
    }

    /// Take out the first request.
    pub(super) fn pop(&mut self) -> Option<Slot> {
        let slot = self.slots.pop_front()?;
        self.first += 1;
        self.waiting -= usize::from(slot.state.is_barrier());
        Some(slot)
    }

    /// A write has its answer. If it is the first in the queue it is taken out.
    pub(super) fn answer(&mut self, slot: u64, answer: Answer) -> Option<(Xid, Answer)> {
        if slot == self.first {
            let slot = self.pop().expect("a write that is answered is in the queue");
            return Some((slot.xid, answer));
        }
        let slot = self.get_mut(slot).expect("a write that is answered is in the queue");
        slot.state = SlotState::Answered(answer);
        None
    }

    /// A read waits for something else from now on. Nothing happens if it has been answered, or is
    /// given up.
    pub(super) fn set_need(&mut self, slot: u64, need: Need) {
        if let Some(Slot { state: SlotState::Read { need: old, .. }, .. }) = self.get_mut(slot)
            && !matches!(old, Need::Nothing | Need::GivenUp)
        {
            *old = need;
        }
    }

    /// The writes that need not wait any longer.
    pub(super) fn release(&mut self) -> Vec<Released> {
        let mut released = Vec::new();
        for (place, slot) in self.slots.iter_mut().enumerate() {
            if slot.state.is_barrier() {
                break;
            }
            if let SlotState::Held { .. } = slot.state {
                let held = std::mem::replace(&mut slot.state, SlotState::Sent);
                let SlotState::Held { op, identities, acked, bytes } = held else {
                    unreachable!("it is held")
                };
                released.push(Released {
                    slot: self.first + place as u64,
                    xid: slot.xid,
                    acked,
                    op,
                    identities,
                    held_bytes: bytes,
                });
            }
        }
        released
    }

    /// About how many bytes the writes take that have to wait.
    pub(super) fn held_bytes(&self) -> usize {
        let held = |slot: &Slot| {
            if let SlotState::Held { bytes, .. } = slot.state { bytes } else { 0 }
        };
        self.slots.iter().map(held).sum()
    }

    fn get_mut(&mut self, slot: u64) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(slot.checked_sub(self.first)?).ok()?)
    }
}

impl SlotState {
    fn is_barrier(&self) -> bool {
        match self {
            SlotState::Read { need, .. } => *need != Need::Nothing,
            SlotState::Sent | SlotState::Held { .. } | SlotState::Answered(_) => false,
        }
    }
}
