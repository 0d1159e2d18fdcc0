//! The task that keeps a copy up to date.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::task::Poll;
use std::time::Duration;

use conclave_proto::request::Entry;
use conclave_proto::{ErrorCode, EventKind, SessionId, WatchKind, ZPath};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::view::{CachedNode, Draft, Told, View, relative};
use super::{CacheItem, Phase, Scope, Shared};
use crate::recipes;
use crate::recipes::support::failed_with;
use crate::recipes::timer::sleep;
use crate::{Client, Error, Watch, WatchItem};

/// How long to wait before everything is read again when that failed.
const RETRY: Duration = Duration::from_millis(500);

/// Keeps the copy of one cache.
pub(super) struct Runner {
    client: Client,
    shared: Arc<Shared>,
    with_data: bool,
    sessions_of: Option<&'static str>,
    /// Nodes that came while everything was being read, to be looked at.
    came: Vec<ZPath>,
    watch: Watch,
    changes: broadcast::Sender<CacheItem>,
    flushes: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
}

/// How an attempt to read everything ended.
enum Attempt {
    Read(View),
    /// Events were lost meanwhile.
    Overtaken,
    /// There is a node that is no session's where all have to be.
    Foreign(ZPath),
}

impl Runner {
    /// Sets the watch.
    pub(super) async fn start(
        client: &Client,
        shared: Arc<Shared>,
        (with_data, sessions_of): (bool, Option<&'static str>),
        changes: broadcast::Sender<CacheItem>,
        flushes: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
    ) -> Result<Runner, recipes::Error> {
        let kind = match shared.scope {
            Scope::Node => WatchKind::Persistent,
            Scope::Children | Scope::Tree => WatchKind::PersistentRecursive,
        };
        let set = client.watch(&shared.root, kind);
        let watch = if with_data { set.with_value().await? } else { set.await? };
        let (client, came) = (client.clone(), Vec::new());
        Ok(Runner { client, shared, with_data, sessions_of, came, watch, changes, flushes })
    }

    /// Reads everything, as often as it takes, and shows it. What is only refused for now is tried
    /// again, until then if a time is given.
    pub(super) async fn fill(&mut self, until: Option<Instant>) -> Result<(), recipes::Error> {
        loop {
            match self.read_all().await {
                Ok(Attempt::Read(view)) => {
                    for path in std::mem::take(&mut self.came) {
                        self.check(&path, until).await?;
                    }
                    let mut shown =
                        self.shared.view.write().unwrap_or_else(PoisonError::into_inner);
                    *shown = view;
                    self.shared.phase.send_replace(Phase::Following);
                    // Nobody follows it, perhaps.
                    drop(self.changes.send(CacheItem::Gap));
                    return Ok(());
                }
                Ok(Attempt::Foreign(path)) => return Err(self.foreign(&path)),
                Ok(Attempt::Overtaken) => {
                    debug!("{} changes faster than it is read; once more", self.shared.root);
                }
                Err(error) if will_pass(&error) && is_time(until) => {
                    warn!("cannot read {} now: {error}", self.shared.root);
                    sleep(&self.client, RETRY).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Keeps the copy up to date until that is not possible any more.
    pub(super) async fn run(mut self) {
        let why = loop {
            let outcome = tokio::select! {
                // What has come is applied before anybody is told that it is.
                biased;
                item = self.watch.next() => self.hear(item).await,
                Some(done) = self.flushes.recv() => self.flush(done).await,
            };
            if let Err(error) = outcome {
                break error;
            }
        };
        // A foreign node is told of as when the cache begins.
        let is_foreign = matches!(why, recipes::Error::Foreign { .. });
        let why = if is_foreign { why } else { self.shared.ended(why) };
        self.shared.phase.send_replace(Phase::Ended(why));
    }

    /// Applies what has come meanwhile, since it may have come before the flush was asked for, and
    /// says so.
    async fn flush(&mut self, done: oneshot::Sender<()>) -> Result<(), recipes::Error> {
        while let Some(item) = self.at_hand().await {
            self.hear(item).await?;
        }
        // Whoever asked may have given up.
        done.send(()).ok();
        Ok(())
    }

    /// What the watch has told already; `None`: nothing more for now.
    async fn at_hand(&mut self) -> Option<Option<Result<WatchItem, Error>>> {
        let mut next = pin!(self.watch.next());
        poll_fn(|cx| match next.as_mut().poll(cx) {
            Poll::Ready(item) => Poll::Ready(Some(item)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    async fn hear(&mut self, item: Option<Result<WatchItem, Error>>) -> Result<(), recipes::Error> {
        match item {
            Some(Ok(WatchItem::Event { zxid, path, kind, value })) => {
                if let Some(told) = self.in_scope(Told { zxid, path, kind, value }) {
                    // One that has gone meanwhile was told without data, and is not shown at all.
                    if told.kind != EventKind::Created || self.check(&told.path, None).await? {
                        self.apply(told);
                    }
                }
                Ok(())
            }
            Some(Ok(WatchItem::Gap { resumed_at })) => {
                debug!("changes of {} up to {resumed_at} are missing", self.shared.root);
                self.shared.phase.send_replace(Phase::Reading);
                self.fill(None).await
            }
            Some(Err(error)) => Err(error.into()),
            None => Err(self.shared.closed()),
        }
    }

    /// Makes sure that a node that came is a session's, where all have to be: no event says so. False
    /// if it has gone.
    async fn check(&self, path: &ZPath, until: Option<Instant>) -> Result<bool, recipes::Error> {
        while self.sessions_of.is_some() {
            match self.client.exists(path).await {
                Ok(Some(stat)) if stat.ephemeral_owner == SessionId::NONE => {
                    return Err(self.foreign(path));
                }
                Ok(stat) => return Ok(stat.is_some()),
                Err(error) if will_pass(&error) && is_time(until) => {
                    sleep(&self.client, RETRY).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    fn foreign(&self, path: &ZPath) -> recipes::Error {
        let recipe = self.sessions_of.unwrap_or(super::NAME);
        recipes::Error::Foreign { path: path.clone(), recipe }
    }

    fn apply(&self, told: Told) {
        let Told { zxid, path, kind, value } = told;
        let mut view = self.shared.view.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, after)) = view.apply(zxid, &path, kind, value) {
            // Nobody follows it, perhaps.
            drop(self.changes.send(CacheItem::Changed { zxid, path, before, after }));
        }
    }

    /// The event, if the cache shows its node.
    fn in_scope(&self, told: Told) -> Option<Told> {
        let Shared { root, scope, .. } = &*self.shared;
        let shows = match scope {
            Scope::Node => told.path == *root && told.kind != EventKind::ChildrenChanged,
            Scope::Children => relative(root, &told.path).is_some_and(|name| !name.contains('/')),
            Scope::Tree => true,
        };
        shows.then_some(told)
    }

    /// Reads everything once, while it changes.
    async fn read_all(&mut self) -> Result<Attempt, Error> {
        let (client, shared) = (self.client.clone(), Arc::clone(&self.shared));
        let mut draft = Draft::new(shared.root.clone());
        self.came.clear();
        if shared.scope == Scope::Children {
            draft.take_root(None);
        } else {
            let read = client.get(&shared.root).send();
            let Some(node) = self.meanwhile(&mut draft, read).await? else {
                return Ok(Attempt::Overtaken);
            };
            draft.take_root(present(node)?.map(|node| {
                let data = if self.with_data { node.data } else { None };
                CachedNode::new(data, &node.stat)
            }));
        }
        if shared.scope == Scope::Node {
            return Ok(Attempt::Read(draft.finish()));
        }
        let mut after: Option<String> = None;
        loop {
            let mut list = match shared.scope {
                Scope::Tree => client.list_recursive(&shared.root),
                Scope::Children | Scope::Node => client.list(&shared.root),
            };
            list = list.with_stat();
            list = if self.with_data { list.with_data() } else { list };
            if let Some(after) = after.take() {
                list = list.after(after);
            }
            let Some(page) = self.meanwhile(&mut draft, list.send()).await? else {
                return Ok(Attempt::Overtaken);
            };
            let Some(page) = present(page)? else { break };
            let foreign = |entry: &&Entry| {
                entry.stat.is_some_and(|stat| stat.ephemeral_owner == SessionId::NONE)
            };
            if let Some(entry) = page.entries.iter().find(foreign)
                && self.sessions_of.is_some()
                && let Ok(path) = shared.root.child(&entry.name)
            {
                return Ok(Attempt::Foreign(path));
            }
            after = page.entries.last().filter(|_| page.more).map(|entry| entry.name.clone());
            draft.take_page(page.entries, page.more);
            if after.is_none() {
                break;
            }
        }
        Ok(Attempt::Read(draft.finish()))
    }

    /// Waits for an answer and hears the events that come before it; `None` if some are missing.
    async fn meanwhile<T>(
        &mut self,
        draft: &mut Draft,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<Option<Result<T, Error>>, Error> {
        let mut answer = pin!(answer);
        let answer = loop {
            let item = tokio::select! {
                biased;
                item = self.watch.next() => item,
                answer = &mut answer => break answer,
            };
            if !self.note(draft, item)? {
                return Ok(None);
            }
        };
        // What the answer shows may have come between the two looks, right before it.
        while let Some(item) = self.at_hand().await {
            if !self.note(draft, item)? {
                return Ok(None);
            }
        }
        Ok(Some(answer))
    }

    /// Tells the draft of an event; false if some are missing.
    fn note(
        &mut self,
        draft: &mut Draft,
        item: Option<Result<WatchItem, Error>>,
    ) -> Result<bool, Error> {
        match item {
            Some(Ok(WatchItem::Event { zxid, path, kind, value })) => {
                let told = self.in_scope(Told { zxid, path, kind, value });
                let is_checked = self.sessions_of.is_some();
                let came =
                    told.as_ref().filter(|told| is_checked && told.kind == EventKind::Created);
                self.came.extend(came.map(|told| told.path.clone()));
                Ok(told.is_none_or(|told| draft.hear(told)))
            }
            Some(Ok(WatchItem::Gap { .. })) => Ok(false),
            Some(Err(error)) => Err(error),
            None => {
                let operation = crate::Operation { name: "watch", path: None, index: None };
                Err(Error::Closed { operation })
            }
        }
    }
}

/// What was read, if there was something to read.
fn present<T>(read: Result<T, Error>) -> Result<Option<T>, Error> {
    if failed_with(&read, ErrorCode::NoNode) { Ok(None) } else { read.map(Some) }
}

/// Whether that time has not come yet.
fn is_time(until: Option<Instant>) -> bool {
    until.is_none_or(|until| Instant::now() < until)
}

/// Whether it is worth trying again: the session lives on, as far as is known.
fn will_pass(error: &Error) -> bool {
    matches!(error, Error::Timeout { .. } | Error::Overloaded { .. })
        || matches!(error.code(), Some(ErrorCode::Throttled | ErrorCode::Unavailable))
}
