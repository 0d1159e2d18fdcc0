//! Where everything that happens to a server waits for the next turn of its loop.
//!
//! One bell wakes the loop, and it is rung only when something comes to an empty queue. The loop's
//! task then stands behind every task that the same poll of the system made ready, so by the time
//! it runs they have all put their share into the queue: one turn takes it all.

use std::cell::RefCell;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use conclave_proto::ServerId;
use tokio::sync::{Notify, oneshot};

use crate::peers::Chunk;
use crate::replica::{ConnId, Input};
use crate::wire::Word;

use super::admin::Report;

/// What waits on the loop's own thread.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    waiting: RefCell<Waiting>,
    bell: Arc<Notify>,
}

/// What one turn takes.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// For the replica, in order.
    pub(super) inputs: Vec<Input>,
    /// Parts of snapshots; they follow what the replica decides on `inputs`.
    pub(super) parts: Vec<(ServerId, Part)>,
    /// Those who want to know how the server is.
    pub(super) asking: Vec<oneshot::Sender<Report>>,
    /// Those who ask with a four-letter word.
    pub(super) words: Vec<(ConnId, Word)>,
}

/// A part of a snapshot, or the word that some were taken.
#[derive(Debug)]
pub(super) enum Part {
    /// From the sender of a snapshot.
    Chunk(Chunk),
    /// From its receiver.
    Credit {
        /// The number of the synchronisation.
        sync: u64,
        /// How many chunks were taken so far.
        chunks: u32,
    },
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.inputs.is_empty()
            && self.parts.is_empty()
            && self.asking.is_empty()
            && self.words.is_empty()
    }
}

impl Inbox {
    pub(super) fn push(&self, input: Input) {
        self.put(|waiting| waiting.inputs.push(input));
    }

    pub(super) fn push_part(&self, from: ServerId, part: Part) {
        self.put(|waiting| waiting.parts.push((from, part)));
    }

    pub(super) fn ask(&self, answer: oneshot::Sender<Report>) {
        self.put(|waiting| waiting.asking.push(answer));
    }

    pub(super) fn ask_word(&self, conn: ConnId, word: Word) {
        self.put(|waiting| waiting.words.push((conn, word)));
    }

    fn put(&self, add: impl FnOnce(&mut Waiting)) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.is_empty() {
            self.bell.notify_one();
        }
        add(&mut waiting);
    }

    /// Whether nothing has come.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Everything that has come, in exchange for an empty one whose memory is used again.
    pub(super) fn take(&self, into: &mut Waiting) {
        assert!(into.is_empty(), "a turn deals with everything it takes");
        mem::swap(&mut *self.waiting.borrow_mut(), into);
    }

    /// What rings when there is something to do.
    pub(super) fn bell(&self) -> &Arc<Notify> {
        &self.bell
    }
}

/// What waits between two threads; a lock is held for a push or a swap only.
#[derive(Debug)]
pub(super) struct Mailbox<T>(Mutex<Letters<T>>);

#[derive(Debug)]
struct Letters<T> {
    items: Vec<T>,
    /// The receiver has been called, and has not come yet.
    called: bool,
    /// The receiver has other reasons to come, and need not be called for what is not urgent.
    patient: bool,
}

impl<T> Mailbox<T> {
    pub(super) fn new() -> Mailbox<T> {
        Mailbox(Mutex::new(Letters { items: Vec::new(), called: false, patient: false }))
    }

    fn letters(&self) -> MutexGuard<'_, Letters<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item. True: the receiver may be asleep and must be woken.
    pub(super) fn put(&self, item: T, urgent: bool) -> bool {
        let mut letters = self.letters();
        letters.items.push(item);
        letters.call_if(urgent)
    }

    /// Whether the receiver leaves what is not urgent until it comes for other reasons. True: it
    /// has to come at once, for there is something.
    pub(super) fn set_patient(&self, patient: bool) -> bool {
        let mut letters = self.letters();
        letters.patient = patient;
        !letters.items.is_empty() && letters.call_if(false)
    }

    /// Takes everything; `into` must be empty, and its memory is used again.
    pub(super) fn take(&self, into: &mut Vec<T>) {
        debug_assert!(into.is_empty(), "what was taken before is dealt with");
        let mut letters = self.letters();
        letters.called = false;
        mem::swap(&mut letters.items, into);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.letters().items.is_empty()
    }
}

impl<T> Letters<T> {
    /// Whether the receiver is to be called now.
    fn call_if(&mut self, urgent: bool) -> bool {
        let call = !self.called && (urgent || !self.patient);
        self.called |= call;
        call
    }
}
