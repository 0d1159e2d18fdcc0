//! What the handles of a client hand to its driver: one queue, in the order of the calls.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use conclave_proto::request::{Condition, ReadLevel};
use conclave_proto::{Op, WatchId, ZPath};
use tokio::sync::{Notify, oneshot};

use crate::limits::{QUEUE_BYTES, QUEUE_OPS};
use crate::mailbox::lock;
use crate::session::{Failure, Outcome};
use crate::watch::Inbox;

/// Where the outcome of one operation goes.
pub(crate) type Completion = oneshot::Sender<Outcome>;

/// Something for the driver to do.
pub(crate) enum Command {
    /// Carry this out.
    Submit(Submission),
    /// Forget this watch, here and at the server.
    Unwatch(WatchId),
    /// End the session.
    Close(Option<Completion>),
}

/// An operation to carry out.
pub(crate) struct Submission {
    pub(crate) op: Op,
    pub(crate) level: ReadLevel,
    /// Where the watch that it sets reports.
    pub(crate) watch: Option<Arc<Inbox>>,
    pub(crate) completion: Completion,
}

/// The queue.
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    room: Notify,
}

struct Inner {
    commands: VecDeque<Command>,
    /// Operations that have been submitted and not completed, and their bytes.
    ops: usize,
    bytes: usize,
    /// Somebody was told that there is no room.
    was_full: bool,
    /// Why nothing is accepted any more.
    ended: Option<Failure>,
    driver: Option<Waker>,
}

impl Inner {
    fn is_full(&self) -> bool {
        self.ops >= QUEUE_OPS || self.bytes >= QUEUE_BYTES
    }
}

impl Queue {
    pub(crate) fn new() -> Queue {
        Queue {
            inner: Mutex::new(Inner {
                commands: VecDeque::new(),
                ops: 0,
                bytes: 0,
                was_full: false,
                ended: None,
                driver: None,
            }),
            room: Notify::new(),
        }
    }

    /// Adds an operation, which takes its place in the order here and now.
    pub(crate) fn submit(&self, submission: Submission) -> Result<(), Failure> {
        let mut inner = lock(&self.inner);
        if let Some(failure) = &inner.ended {
            return Err(failure.clone());
        }
        if inner.is_full() {
            inner.was_full = true;
            return Err(Failure::Overloaded);
        }
        inner.ops += 1;
        inner.bytes += op_bytes(&submission.op);
        inner.commands.push_back(Command::Submit(submission));
        let driver = inner.driver.take();
        drop(inner);
        wake(driver);
        Ok(())
    }

    /// Adds what needs no answer, or is answered in its own way; there is always room for it.
    pub(crate) fn order(&self, command: Command) {
        let mut inner = lock(&self.inner);
        if let Some(failure) = &inner.ended {
            if let Command::Close(Some(completion)) = command {
                // Whoever asked may be gone.
                completion.send(Err(failure.clone())).ok();
            }
            return;
        }
        inner.commands.push_back(command);
        let driver = inner.driver.take();
        drop(inner);
        wake(driver);
    }

    /// Waits until there is room, or nothing is accepted any more.
    pub(crate) async fn room(&self) {
        loop {
            let room = self.room.notified();
            {
                let mut inner = lock(&self.inner);
                if inner.ended.is_some() || !inner.is_full() {
                    return;
                }
                inner.was_full = true;
            }
            room.await;
        }
    }

    /// Exchanges the waiting commands for the empty `into`; pending if there are none.
    pub(crate) fn poll_take(&self, cx: &mut Context<'_>, into: &mut VecDeque<Command>) -> Poll<()> {
        debug_assert!(into.is_empty(), "commands would be lost");
        let mut inner = lock(&self.inner);
        if inner.commands.is_empty() {
            match &mut inner.driver {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        std::mem::swap(&mut inner.commands, into);
        Poll::Ready(())
    }

    /// So many operations of so many bytes are completed.
    pub(crate) fn completed(&self, ops: usize, bytes: usize) {
        let mut inner = lock(&self.inner);
        inner.ops -= ops;
        inner.bytes -= bytes;
        let has_room = inner.was_full && !inner.is_full();
        if has_room {
            inner.was_full = false;
        }
        drop(inner);
        if has_room {
            self.room.notify_waiters();
        }
    }

    /// Accepts nothing any more, and gives back what waits.
    pub(crate) fn end(&self, failure: Failure) -> VecDeque<Command> {
        let mut inner = lock(&self.inner);
        inner.ended.get_or_insert(failure);
        let rest = std::mem::take(&mut inner.commands);
        drop(inner);
        self.room.notify_waiters();
        rest
    }
}

fn wake(driver: Option<Waker>) {
    if let Some(driver) = driver {
        driver.wake();
    }
}

/// The memory that an operation holds on to while it waits, roughly, in bytes.
pub(crate) fn op_bytes(op: &Op) -> usize {
    const FIXED: usize = 256;
    let of = |path: &ZPath| FIXED + path.as_str().len();
    match op {
        Op::Create { path, data, .. }
        | Op::CreateIfMissing { path, data, .. }
        | Op::SetData { path, data, .. } => of(path) + data.as_ref().map_or(0, bytes::Bytes::len),
        Op::Multi { conditions, then, otherwise } => {
            conditions.iter().map(|condition| of(&condition.path)).sum::<usize>()
                + then.iter().chain(otherwise).map(op_bytes).sum::<usize>()
        }
        Op::MultiRead(ops) => ops.iter().map(op_bytes).sum(),
        Op::Authenticate { credentials, .. } => FIXED + credentials.expose().len(),
        Op::Delete { path, .. }
        | Op::DeleteRecursive { path, .. }
        | Op::SetAcl { path, .. }
        | Op::Check { path, .. }
        | Op::Require(Condition { path, .. })
        | Op::DeleteIfExists { path, .. }
        | Op::DeleteTree { path, .. }
        | Op::Guard { path, .. }
        | Op::Reap { path, .. }
        | Op::Get { path, .. }
        | Op::Exists { path, .. }
        | Op::Children { path, .. }
        | Op::ListRecursive { path, .. }
        | Op::GetAcl { path }
        | Op::CountDescendants { path }
        | Op::Sync { path }
        | Op::Watch { path, .. } => of(path),
        Op::CreateSession { .. }
        | Op::CloseSession
        | Op::ExpireSession
        | Op::Ephemerals { .. }
        | Op::Unwatch { .. }
        | Op::WhoAmI => FIXED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever closes once more after that has failed is not told that all is well.
    #[test]
    fn what_closes_after_the_end_hears_how_it_was() {
        for failure in [Failure::Expired, Failure::Closed { confirmed: false }] {
            let queue = Queue::new();
            queue.end(failure.clone());
            let (completion, mut outcome) = oneshot::channel();
            queue.order(Command::Close(Some(completion)));
            assert_eq!(outcome.try_recv().unwrap().unwrap_err(), failure);
        }
    }
}
