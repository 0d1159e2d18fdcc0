//! A queue between the driver and one reader that is a stream.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Locks; a panic elsewhere while it was locked does not matter, as no update is left half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One reader's queue. What bounds it is up to the writer, who sees all that waits in it.
pub(crate) struct Mailbox<T>(Mutex<Inner<T>>);

struct Inner<T> {
    items: VecDeque<T>,
    finished: bool,
    reader: Option<Waker>,
}

impl<T> Mailbox<T> {
    pub(crate) fn new() -> Mailbox<T> {
        Mailbox(Mutex::new(Inner { items: VecDeque::new(), finished: false, reader: None }))
    }

    /// Lets the writer add to what waits, or replace it, unless the mailbox is finished.
    pub(crate) fn update(&self, change: impl FnOnce(&mut VecDeque<T>)) {
        let mut inner = lock(&self.0);
        if inner.finished {
            return;
        }
        change(&mut inner.items);
        Self::wake(inner);
    }

    /// Nothing will be added any more: the reader sees the end after what waits.
    pub(crate) fn finish(&self) {
        let mut inner = lock(&self.0);
        inner.finished = true;
        Self::wake(inner);
    }

    /// How many items wait.
    pub(crate) fn len(&self) -> usize {
        lock(&self.0).items.len()
    }

    /// Whether nothing will be added any more.
    pub(crate) fn is_finished(&self) -> bool {
        lock(&self.0).finished
    }

    /// The next item; `None` is the end.
    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut inner = lock(&self.0);
        if let Some(item) = inner.items.pop_front() {
            return Poll::Ready(Some(item));
        }
        if inner.finished {
            return Poll::Ready(None);
        }
        inner.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn wake(mut inner: MutexGuard<'_, Inner<T>>) {
        let reader = inner.reader.take();
        drop(inner);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}
