//! Snapshots on their way between servers.
//!
//! The sender reads its view on a thread and sends chunks; the receiver writes them on a thread
//! and gives credit for each one written. At most [`WINDOW`] chunks are on their way, so neither
//! side gathers a snapshot in memory, and what the broadcast has to say is never far behind one.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::ServerId;
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::timeout;

use crate::peers::{Chunk, Links};
use crate::replica::Input;
use crate::store::{Home, SnapshotReader, StoreError, fatal};
use crate::zab::Position;

use super::disk::{self, Incoming, Outcomes};
use super::inbox::{Inbox, Part};
use super::metrics::Metrics;

/// The chunks that may be on their way.
const WINDOW: u32 = 16;
/// How long a receiver may take for none of the chunks on their way. The view that it is sent keeps
/// what the tree has given up since from being used again, so it is not kept for one whose disk hangs.
const CREDIT_DEADLINE: Duration = Duration::from_secs(60);
/// The chunks that the reading thread is ahead of the link.
const AHEAD: usize = 2;

/// The transfers of one server.
pub(super) struct Transfers {
    links: Links,
    inbox: Rc<Inbox>,
    outcomes: Outcomes,
    metrics: Arc<Metrics>,
    home: Home,
    sending: BTreeMap<ServerId, Sending>,
    receiving: Option<Receiving>,
}

struct Sending {
    sync: u64,
    credit: Rc<Credit>,
    task: AbortHandle,
}

#[derive(Default)]
struct Credit {
    chunks: Cell<u32>,
    grown: Notify,
}

struct Receiving {
    from: ServerId,
    sync: u64,
    next: u32,
    taken: u32,
    chunks: std_mpsc::Sender<Incoming>,
}

impl Transfers {
    pub(super) fn new(
        links: Links,
        inbox: Rc<Inbox>,
        outcomes: Outcomes,
        metrics: Arc<Metrics>,
        home: Home,
    ) -> Transfers {
        let (sending, receiving) = (BTreeMap::new(), None);
        Transfers { links, inbox, outcomes, metrics, home, sending, receiving }
    }

    /// Sends a view to a server.
    ///
    /// # Errors
    /// If there can be no thread.
    pub(super) fn send(&mut self, to: ServerId, sync: u64, view: SnapshotReader) -> io::Result<()> {
        self.cancel_sending(to);
        tracing::info!(peer = %to, at = %view.at().zxid, "sending server {to} a snapshot");
        let (chunks, ready) = mpsc::channel(AHEAD);
        thread::Builder::new().name("snapshot-out".into()).spawn(move || read(view, &chunks))?;
        let credit = Rc::new(Credit::default());
        let links = self.links.clone();
        let (inbox, metrics) = (self.inbox.clone(), self.metrics.clone());
        let grown = credit.clone();
        let task = spawn_local(async move {
            if forward(&links, to, sync, ready, &grown).await {
                metrics.snapshots_sent.inc();
            } else {
                inbox.push(Input::SnapshotFailed { with: to, sync });
                metrics.snapshots_failed.inc();
            }
        });
        let sending = Sending { sync, credit, task: task.abort_handle() };
        self.sending.insert(to, sending);
        Ok(())
    }

    /// Expects a snapshot from a server.
    ///
    /// # Errors
    /// If there can be no thread.
    pub(super) fn receive(&mut self, from: ServerId, sync: u64, at: Position) -> io::Result<()> {
        // The old transfer's channel ends with it, and with that its thread.
        self.receiving = None;
        tracing::info!(peer = %from, at = %at.zxid, "receiving a snapshot from server {from}");
        let writer = self.home.receive().unwrap_or_else(|error| fatal(&error));
        let (chunks, incoming) = std_mpsc::channel();
        disk::receive(writer, from, sync, at, incoming, self.outcomes.clone())?;
        self.receiving = Some(Receiving { from, sync, next: 0, taken: 0, chunks });
        Ok(())
    }

    /// Drops a transfer.
    pub(super) fn cancel(&mut self, with: ServerId, sync: u64) {
        if self.sending.get(&with).is_some_and(|sending| sending.sync == sync) {
            self.cancel_sending(with);
        }
        if self.is_receiving(with, sync) {
            self.receiving = None;
            self.metrics.snapshots_failed.inc();
        }
    }

    fn cancel_sending(&mut self, to: ServerId) {
        if let Some(sending) = self.sending.remove(&to)
            && !sending.task.is_finished()
        {
            sending.task.abort();
            self.metrics.snapshots_failed.inc();
        }
    }

    fn is_receiving(&self, from: ServerId, sync: u64) -> bool {
        self.receiving
            .as_ref()
            .is_some_and(|transfer| (transfer.from, transfer.sync) == (from, sync))
    }

    /// A part of a snapshot, or credit for some, came from a server.
    pub(super) fn part(&mut self, from: ServerId, part: Part) {
        match part {
            Part::Chunk(chunk) => self.chunk(from, chunk),
            Part::Credit { sync, chunks } => {
                if let Some(sending) = self.sending.get(&from)
                    && sending.sync == sync
                {
                    sending.credit.chunks.set(chunks);
                    sending.credit.grown.notify_one();
                }
            }
        }
    }

    fn chunk(&mut self, from: ServerId, chunk: Chunk) {
        let Some(transfer) = &mut self.receiving else { return };
        if (transfer.from, transfer.sync) != (from, chunk.sync) {
            return;
        }
        if chunk.index != transfer.next || chunk.index - transfer.taken > WINDOW {
            let why = format!("chunk {} came in the place of {}", chunk.index, transfer.next);
            self.spoilt(from, chunk.sync, &why);
            return;
        }
        transfer.next += 1;
        let incoming = Incoming { last: chunk.last, bytes: chunk.bytes };
        // A thread that is gone has said why.
        transfer.chunks.send(incoming).ok();
    }

    /// The receiving thread has written some chunks.
    pub(super) fn taken(&mut self, from: ServerId, sync: u64, chunks: u32) {
        if let Some(transfer) = &mut self.receiving
            && (transfer.from, transfer.sync) == (from, sync)
        {
            transfer.taken = chunks;
            self.links.send_credit(from, sync, chunks);
        }
    }

    /// The receiving thread is done: whether its snapshot is still wanted.
    pub(super) fn received(&mut self, from: ServerId, sync: u64) -> bool {
        let wanted = self.is_receiving(from, sync);
        if wanted {
            self.receiving = None;
            self.metrics.snapshots_received.inc();
        }
        wanted
    }

    /// What came cannot be used.
    pub(super) fn spoilt(&mut self, from: ServerId, sync: u64, why: &str) {
        if self.is_receiving(from, sync) {
            tracing::warn!(peer = %from, "the snapshot from server {from} cannot be used: {why}");
            self.receiving = None;
            self.metrics.snapshots_failed.inc();
            self.inbox.push(Input::SnapshotFailed { with: from, sync });
        }
    }
}

/// Reads a view to its end, or until nobody wants it.
fn read(mut view: SnapshotReader, chunks: &mpsc::Sender<Result<Option<Bytes>, StoreError>>) {
    loop {
        let chunk = view.next_chunk();
        let more = matches!(chunk, Ok(Some(_)));
        if chunks.blocking_send(chunk).is_err() || !more {
            return;
        }
    }
}

/// Sends the chunks as credit comes. False: the view cannot be read, or nobody takes it.
async fn forward(
    links: &Links,
    to: ServerId,
    sync: u64,
    mut chunks: mpsc::Receiver<Result<Option<Bytes>, StoreError>>,
    credit: &Credit,
) -> bool {
    let mut index: u32 = 0;
    loop {
        let (last, bytes) = match chunks.recv().await {
            Some(Ok(Some(bytes))) => (false, bytes),
            Some(Ok(None)) => (true, Bytes::new()),
            Some(Err(error)) => fatal(&error),
            None => return false,
        };
        while index.saturating_sub(credit.chunks.get()) >= WINDOW {
            if timeout(CREDIT_DEADLINE, credit.grown.notified()).await.is_err() {
                tracing::warn!(peer = %to, "server {to} does not take the snapshot it is sent");
                return false;
            }
        }
        links.send_chunk(to, &Chunk { sync, index, last, bytes });
        links.flush();
        index += 1;
        if last {
            return true;
        }
    }
}
