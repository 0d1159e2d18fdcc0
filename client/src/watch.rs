//! Watches: streams of what happens to nodes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use conclave_proto::{Event, EventKind, WatchId, ZPath, Zxid};
use futures_core::Stream;

use crate::Error;
use crate::chroot::Chroot;
use crate::error::Operation;
use crate::limits::{WATCH_BYTES, WATCH_ITEMS};
use crate::mailbox::Mailbox;
use crate::queue::Command;
use crate::session::Failure;
use crate::shared::Shared;

/// What a watch reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// Something happened to a node.
    Event {
        /// The transaction that did it. Never goes back from one item to the next.
        zxid: Zxid,
        /// The node.
        path: ZPath,
        /// What happened.
        kind: EventKind,
        /// The node's new data, if the watch asked for values and there is any; not if a child came or went.
        value: Option<Bytes>,
    },
    /// Events may be missing here: after a reconnection the servers no longer remembered all of
    /// them, or more of them came than were read. Read again what you care about; from here on
    /// nothing is missing.
    Gap {
        /// Every event after this transaction is reported.
        resumed_at: Zxid,
    },
}

/// A watch: a stream of what happens to a node, or to everything below it.
///
/// It survives reconnections and changes of servers: it goes on where it stopped, or says that
/// something is missing with a [`WatchItem::Gap`]. It does not grow without bound: if the items
/// are not read, they collapse into one gap.
///
/// The stream ends after the one event of a one-shot watch. Any other end is announced by an
/// error: the session expired, the client was closed (a watch alone does not keep it open), or the
/// servers refused to set the watch again.
///
/// Dropping it removes the watch from the server.
#[must_use = "a watch that is dropped is removed"]
pub struct Watch {
    pub(crate) id: WatchId,
    pub(crate) path: ZPath,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) chroot: Chroot,
    pub(crate) shared: Arc<Shared>,
}

impl Watch {
    /// The path that was asked to be watched.
    pub fn path(&self) -> &ZPath {
        &self.path
    }

    /// The next item; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<WatchItem, Error>> {
        std::future::poll_fn(|cx| self.poll_item(cx)).await
    }

    fn poll_item(&self, cx: &mut Context<'_>) -> Poll<Option<Result<WatchItem, Error>>> {
        self.inbox.0.poll_next(cx).map(|item| item.map(|item| self.to_caller(item)))
    }

    fn to_caller(&self, item: Result<WatchItem, Failure>) -> Result<WatchItem, Error> {
        match item {
            Ok(WatchItem::Event { zxid, path, kind, value }) => {
                Ok(WatchItem::Event { zxid, path: self.chroot.to_caller(path), kind, value })
            }
            Ok(WatchItem::Gap { resumed_at }) => Ok(WatchItem::Gap { resumed_at }),
            Err(failure) => {
                let operation = Operation::new("watch", Some(self.path.clone()));
                Err(failure.into_error(operation, self.shared.operation_timeout))
            }
        }
    }
}

impl Stream for Watch {
    type Item = Result<WatchItem, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_item(cx)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.inbox.0.is_finished() {
            self.shared.queue.order(Command::Unwatch(self.id));
        }
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("id", &self.id).field("path", &self.path).finish()
    }
}

/// Where the driver puts what a watch reports.
pub(crate) struct Inbox(Mailbox<Result<WatchItem, Failure>>);

impl Inbox {
    pub(crate) fn new() -> Inbox {
        Inbox(Mailbox::new())
    }

    /// How many items wait for the reader.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn event(&self, event: Event, value: Option<Bytes>) {
        self.0.update(|items| {
            // Only values can be large, so that the sum is taken only where there are any.
            let is_heavy = || items.iter().map(value_bytes).sum::<usize>() >= WATCH_BYTES;
            if items.len() >= WATCH_ITEMS || (value.is_some() && is_heavy()) {
                collapse(items, event.zxid);
            } else {
                let Event { zxid, path, kind } = event;
                items.push_back(Ok(WatchItem::Event { zxid, path, kind, value }));
            }
        });
    }

    pub(crate) fn gap(&self, resumed_at: Zxid) {
        self.0.update(|items| {
            if items.len() >= WATCH_ITEMS {
                collapse(items, resumed_at);
            } else {
                items.push_back(Ok(WatchItem::Gap { resumed_at }));
            }
        });
    }

    /// The end: after its event for a one-shot watch, otherwise with a reason.
    pub(crate) fn finish(&self, failure: Option<Failure>) {
        if let Some(failure) = failure {
            self.0.update(|items| items.push_back(Err(failure)));
        }
        self.0.finish();
    }
}

fn collapse(items: &mut VecDeque<Result<WatchItem, Failure>>, resumed_at: Zxid) {
    items.clear();
    items.push_back(Ok(WatchItem::Gap { resumed_at }));
}

fn value_bytes(item: &Result<WatchItem, Failure>) -> usize {
    match item {
        Ok(WatchItem::Event { value: Some(value), .. }) => value.len(),
        Ok(WatchItem::Event { value: None, .. } | WatchItem::Gap { .. }) | Err(_) => 0,
    }
}
