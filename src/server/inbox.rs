//! Where everything that happens to a server waits for the next turn of its loop.
//!
//! One bell wakes the loop, and it is rung only when something comes to an empty queue. The loop's
//! task then stands behind every task that the same poll of the system made ready, so by the time
//! it runs they have all put their share into the queue: one turn takes it all.

use std::cell::RefCell;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use conclave_proto::ServerId;
use tokio::sync::{Notify, oneshot};

use crate::peers::Chunk;
use crate::replica::Input;
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
    pub(super) words: Vec<(Word, oneshot::Sender<String>)>,
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

    pub(super) fn ask_word(&self, word: Word, answer: oneshot::Sender<String>) {
        self.put(|waiting| waiting.words.push((word, answer)));
    }

    fn put(&self, add: impl FnOnce(&mut Waiting)) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.is_empty() {
            self.bell.notify_one();
        }
        add(&mut waiting);
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
pub(super) struct Mailbox<T> {
    items: Mutex<Vec<T>>,
}

impl<T> Mailbox<T> {
    pub(super) fn new() -> Mailbox<T> {
        Mailbox { items: Mutex::new(Vec::new()) }
    }

    /// Adds an item. True: the receiver may be asleep and must be woken.
    pub(super) fn put(&self, item: T) -> bool {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        items.push(item);
        items.len() == 1
    }

    /// Takes everything; `into` must be empty, and its memory is used again.
    pub(super) fn take(&self, into: &mut Vec<T>) {
        debug_assert!(into.is_empty(), "what was taken before is dealt with");
        mem::swap(&mut *self.items.lock().unwrap_or_else(PoisonError::into_inner), into);
    }
}
