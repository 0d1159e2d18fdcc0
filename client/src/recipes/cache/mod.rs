//! Caches: a copy of a node, of its children or of all that is below it, kept up to date by one
//! persistent watch, and never behind without saying so.
//!
//! ```no_run
//! use conclave_client::Client;
//! use conclave_client::recipes::cache::{Cache, CacheItem};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
//! let cache = Cache::tree(&client, "/app").await?;
//!
//! // Reading takes no round trip.
//! if let Some(node) = cache.get("/app/config")? {
//!     println!("{:?}", node.data);
//! }
//!
//! // What there is now, and then each change of it.
//! let (count, mut changes) = cache.follow(|view| view.len())?;
//! println!("{count} nodes");
//! while let Some(item) = changes.next().await {
//!     match item? {
//!         CacheItem::Changed { path, after: Some(node), .. } => println!("{path}: {node:?}"),
//!         CacheItem::Changed { path, after: None, .. } => println!("{path} is gone"),
//!         CacheItem::Gap => {
//!             let count;
//!             (count, changes) = cache.follow(|view| view.len())?;
//!             println!("{count} nodes now");
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! A cache shows, for every node in its scope, data that the node had, and goes forward only. A
//! change by this client is in it after [`Cache::flush`], a change that anybody was told of after
//! [`Cache::sync`]. Nodes that the session may not read are not in it. A node of which the ACL is
//! changed so that the session may not read it any more stays as it was, since the servers tell of it
//! no more, not even that it is deleted: until everything is read again.
//!
//! - *Lost connection*: the cache goes on showing what it knows, and its [status](Cache::status)
//!   is [`CacheStatus::Behind`]. Afterwards it is told what it has missed, change by change. If the
//!   servers no longer remember all of that, it reads everything again, replaces the view as a
//!   whole, and tells those who follow it of a [`CacheItem::Gap`].
//! - *Expired session*: the cache ends. From then on every call fails with
//!   [`Error::Ended`]; it never shows what nobody keeps up to date any more.
//! - *Paused process*: when it goes on it is behind what the servers have until it is told. Whoever
//!   decides by a cache what must not be decided twice makes the write conditional on the node being
//!   [unchanged](CachedNode::unchanged).
//! - *Dead leader*: as a lost connection, at most.
//! - *Two holders by mistake*: nothing is held.
//!
//! # Cost
//!
//! One watch. To begin with, one round trip for the watch, one for the node and one for each page
//! of 10,000 nodes or 512 KiB; then no requests at all: changes come with their data. Memory: some
//! 250 bytes for each node beside its data; twice that while everything is read again. A cache of
//! children watches what is below them too: it is not for directories with much traffic below.

mod run;
mod view;

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};

use conclave_proto::{ZPath, Zxid};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::run::Runner;
pub use self::view::{CachedNode, View};
use super::Error;
use super::place::runtime;
use super::support::later;
use crate::{Client, IntoPath};

/// The changes that wait for one who follows a cache and does not read them; then there is a gap.
const FOLLOWED: usize = 4096;

const NAME: &str = "the cache";

/// What of the tree a cache shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Node,
    Children,
    Tree,
}

/// How a cache is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheStatus {
    /// It shows all that the server it is connected to has told.
    Current,
    /// There is no connection, or everything is being read again: it will catch up.
    Behind,
    /// It has ended, for this reason.
    Ended(Error),
}

/// What those who follow a cache are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheItem {
    /// A node was created, changed or deleted.
    Changed {
        /// The transaction that did it.
        zxid: Zxid,
        /// The node.
        path: ZPath,
        /// What it was before; `None` if it did not exist.
        before: Option<CachedNode>,
        /// What it is now; `None` if it was deleted.
        after: Option<CachedNode>,
    },
    /// Changes are missing here: the servers did not remember them, or more came than were read.
    /// Read the cache again; what changes from here on is told.
    ///
    /// What is told next may be older than what the cache shows by then. Whoever must not go back
    /// [follows](Cache::follow) the cache anew, which gives a new stream from the very state that was
    /// read, or compares the `zxid` of a change with the node's [`mzxid`](CachedNode::mzxid).
    Gap,
}

/// A copy of a part of the tree; see [the module](self). Clones are handles of the same copy,
/// which ends with the last of them.
#[derive(Clone)]
pub struct Cache {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    shared: Arc<Shared>,
    changes: broadcast::WeakSender<CacheItem>,
    flushes: mpsc::UnboundedSender<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the handles and the task that keeps the copy share.
struct Shared {
    root: ZPath,
    scope: Scope,
    view: RwLock<View>,
    phase: watch::Sender<Phase>,
}

/// How far the task has come.
#[derive(Clone, Debug)]
enum Phase {
    Reading,
    Following,
    Ended(Error),
}

impl Cache {
    /// A copy of one node. It need not exist.
    pub fn node(client: &Client, path: impl IntoPath) -> OpenCache<'_> {
        OpenCache::new(client, path.into_path(), Scope::Node)
    }

    /// A copy of the children of a node, not of the node. It need not exist.
    pub fn children(client: &Client, path: impl IntoPath) -> OpenCache<'_> {
        OpenCache::new(client, path.into_path(), Scope::Children)
    }

    /// A copy of a node and of all that is below it. It need not exist.
    pub fn tree(client: &Client, path: impl IntoPath) -> OpenCache<'_> {
        OpenCache::new(client, path.into_path(), Scope::Tree)
    }

    /// The node that it is a copy of, or of whose children.
    pub fn path(&self) -> &ZPath {
        &self.inner.shared.root
    }

    /// Whose session it reads with.
    pub(super) fn client(&self) -> &Client {
        &self.inner.client
    }

    /// A node, if it exists.
    ///
    /// # Errors
    /// If the path is outside of what the cache shows, or the cache has ended.
    pub fn get(&self, path: impl IntoPath) -> Result<Option<CachedNode>, Error> {
        let path = path.into_path()?;
        let Shared { root, scope, .. } = &*self.inner.shared;
        let shows = match scope {
            Scope::Node => path == *root,
            Scope::Children => path.parent().as_ref() == Some(root),
            Scope::Tree => path.is_within(root),
        };
        if !shows {
            return Err(Error::Config(format!("{path} is outside of the cache at {root}")));
        }
        self.read(|view| view.get(&path).cloned())
    }

    /// Looks at everything at once. Nothing changes meanwhile, so that it should be short.
    ///
    /// # Errors
    /// If the cache has ended.
    pub fn read<T>(&self, read: impl FnOnce(&View) -> T) -> Result<T, Error> {
        let view = self.inner.shared.view.read().unwrap_or_else(PoisonError::into_inner);
        self.inner.shared.alive()?;
        Ok(read(&view))
    }

    /// Looks at everything, and follows all changes from this very state on.
    ///
    /// # Errors
    /// If the cache has ended.
    pub fn follow<T>(&self, read: impl FnOnce(&View) -> T) -> Result<(T, CacheChanges), Error> {
        let view = self.inner.shared.view.read().unwrap_or_else(PoisonError::into_inner);
        self.inner.shared.alive()?;
        let receiver = match self.inner.changes.upgrade() {
            Some(changes) => changes.subscribe(),
            // It has ended this moment: the receiver will say so.
            None => broadcast::channel(1).1,
        };
        let shared = Arc::clone(&self.inner.shared);
        let changes = CacheChanges { receiver, shared, has_ended: false };
        Ok((read(&view), changes))
    }

    /// Each change from now on.
    ///
    /// # Errors
    /// If the cache has ended.
    pub fn changes(&self) -> Result<CacheChanges, Error> {
        self.follow(|_| ()).map(|((), changes)| changes)
    }

    /// Waits until everything that this client has seen or done is in the cache. No round trip.
    ///
    /// # Errors
    /// If the cache ends.
    pub async fn flush(&self) -> Result<(), Error> {
        let (done, is_done) = oneshot::channel();
        // If the task is gone, so is the other end.
        drop(self.inner.flushes.send(done));
        match is_done.await {
            Ok(()) => self.inner.shared.alive(),
            Err(_) => Err(self.ended().await),
        }
    }

    /// Waits until everything that was acknowledged to anybody before now is in the cache. One
    /// round trip.
    ///
    /// # Errors
    /// If no server answers in time, or the cache ends.
    pub async fn sync(&self) -> Result<(), Error> {
        self.inner.client.sync().await?;
        self.flush().await
    }

    /// How the cache is doing.
    pub fn status(&self) -> CacheStatus {
        match &*self.inner.shared.phase.borrow() {
            Phase::Ended(why) => CacheStatus::Ended(why.clone()),
            Phase::Reading => CacheStatus::Behind,
            Phase::Following if self.inner.client.state().is_connected() => CacheStatus::Current,
            Phase::Following => CacheStatus::Behind,
        }
    }

    /// Waits until the cache ends, and says why: its session expired, the client was closed, or
    /// the session lost the permission to read.
    pub async fn ended(&self) -> Error {
        let mut phase = self.inner.shared.phase.subscribe();
        let ended = phase.wait_for(|phase| matches!(phase, Phase::Ended(_))).await;
        match ended.as_deref() {
            Ok(Phase::Ended(why)) => why.clone(),
            // The sender lives as long as this handle.
            Ok(Phase::Reading | Phase::Following) | Err(_) => self.inner.shared.closed(),
        }
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shared { root, scope, .. } = &*self.inner.shared;
        f.debug_struct("Cache").field("path", root).field("scope", scope).finish_non_exhaustive()
    }
}

impl Shared {
    fn alive(&self) -> Result<(), Error> {
        match &*self.phase.borrow() {
            Phase::Ended(why) => Err(why.clone()),
            Phase::Reading | Phase::Following => Ok(()),
        }
    }

    fn ended(&self, why: Error) -> Error {
        Error::Ended { recipe: NAME, path: self.root.clone(), why: Box::new(why) }
    }

    fn closed(&self) -> Error {
        let operation = crate::Operation { name: "follow", path: None, index: None };
        self.ended(Error::Client(crate::Error::Closed { operation }))
    }
}

/// A cache that is not there yet; `.await` it. It is complete when it is given out. It fails if it
/// cannot be read within the [operation timeout](crate::Builder::operation_timeout), and outside of a
/// tokio runtime.
#[must_use = "a cache is made by .await"]
pub struct OpenCache<'a> {
    client: &'a Client,
    path: Result<ZPath, crate::Error>,
    scope: Scope,
    with_data: bool,
    sessions_of: Option<&'static str>,
}

impl<'a> OpenCache<'a> {
    fn new(client: &'a Client, path: Result<ZPath, crate::Error>, scope: Scope) -> OpenCache<'a> {
        OpenCache { client, path, scope, with_data: true, sessions_of: None }
    }

    /// Keeps the nodes' names and versions and not their data.
    pub fn without_data(mut self) -> Self {
        self.with_data = false;
        self
    }

    /// All nodes, of children, are sessions', as this recipe makes them. One that is not ends the cache
    /// with [`Error::Foreign`], whenever it comes. A node that comes is shown one round trip later.
    pub(super) fn of_sessions(mut self, recipe: &'static str) -> Self {
        self.sessions_of = Some(recipe);
        self
    }
}

impl<'a> IntoFuture for OpenCache<'a> {
    type Output = Result<Cache, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(open(self.client, self.path, self.scope, (self.with_data, self.sessions_of)))
    }
}

async fn open(
    client: &Client,
    path: Result<ZPath, crate::Error>,
    scope: Scope,
    options: (bool, Option<&'static str>),
) -> Result<Cache, Error> {
    let runtime = runtime(NAME)?;
    let shared = Arc::new(Shared {
        root: path?,
        scope,
        view: RwLock::default(),
        phase: watch::Sender::new(Phase::Reading),
    });
    let changes = broadcast::Sender::new(FOLLOWED);
    let (flushes, asked) = mpsc::unbounded_channel();
    let weak = changes.downgrade();
    let mut runner = Runner::start(client, Arc::clone(&shared), options, changes, asked).await?;
    runner.fill(Some(later(Instant::now(), client.operation_timeout()))).await?;
    let task = runtime.spawn(runner.run());
    let client = client.clone();
    Ok(Cache { inner: Arc::new(Inner { client, shared, changes: weak, flushes, task }) })
}

/// The changes of a cache, as a stream.
pub struct CacheChanges {
    receiver: broadcast::Receiver<CacheItem>,
    shared: Arc<Shared>,
    /// Whether the end was told.
    has_ended: bool,
}

impl CacheChanges {
    /// The next change. The last item is the error that ended the cache; then comes `None`.
    pub async fn next(&mut self) -> Option<Result<CacheItem, Error>> {
        match self.receiver.recv().await {
            Ok(item) => Some(Ok(item)),
            Err(broadcast::error::RecvError::Lagged(_)) => {
                // What waits is older than what the cache shows and will be read from it.
                self.receiver = self.receiver.resubscribe();
                Some(Ok(CacheItem::Gap))
            }
            Err(broadcast::error::RecvError::Closed) => {
                let ended = self.shared.alive().err()?;
                (!std::mem::replace(&mut self.has_ended, true)).then_some(Err(ended))
            }
        }
    }
}

impl std::fmt::Debug for CacheChanges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CacheChanges").finish_non_exhaustive()
    }
}
