//! What will happen, in order of virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The future: events leave in order of (time, order of arrival).
///
/// The heap holds small keys only; the events themselves do not move until they leave.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    heap: BinaryHeap<Reverse<(u64, u64, usize)>>,
    slots: Vec<Option<E>>,
    free: Vec<usize>,
    sequence: u64,
}

impl<E> Queue<E> {
    /// Nothing will happen.
    pub(crate) fn new() -> Queue<E> {
        Queue { heap: BinaryHeap::new(), slots: Vec::new(), free: Vec::new(), sequence: 0 }
    }

    /// This will happen at that time (µs).
    pub(crate) fn at(&mut self, time_us: u64, event: E) {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                self.slots.len() - 1
            }
        };
        self.slots[slot] = Some(event);
        self.sequence += 1;
        self.heap.push(Reverse((time_us, self.sequence, slot)));
    }

    /// What happens next, and when.
    pub(crate) fn pop(&mut self) -> Option<(u64, E)> {
        let Reverse((time_us, _, slot)) = self.heap.pop()?;
        self.free.push(slot);
        Some((time_us, self.slots[slot].take().expect("a queued event is in its slot")))
    }

    /// When something happens next.
    pub(crate) fn next_time(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((time_us, ..))| *time_us)
    }
}
