//! Showing that one is there: a node that is kept in place, the members of a group.
//!
//! ```no_run
//! use conclave_client::Client;
//! use conclave_client::recipes::members::{Group, KeptNode};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), conclave_client::recipes::Error> {
//! let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
//! let group = Group::new(&client, "/groups/workers")?;
//! let me = group.join("worker-7", "10.0.0.7:8080").await?;
//!
//! let members = group.members().await?;
//! let (now, mut changes) = members.follow()?;
//! for (name, data) in now {
//!     println!("{name}: {data:?}");
//! }
//! while let Some(change) = changes.next().await {
//!     println!("{:?}", change?);
//! }
//! me.leave().await
//! # }
//! ```
//!
//! # Guarantees
//!
//! - *Lost connection, dead leader*: the node stays as long as the session lives.
//! - *Deleted or edited by somebody else*: it is created again, under the same name, or written again,
//!   as soon as the servers can; until then it is tried. (What a node with a time to live holds is not
//!   written again.)
//! - *Expired session*: the node is gone, as soon as the servers end the session; so is the
//!   membership, and [`KeptNode::ended`] tells its owner. A new client joins anew.
//! - *Paused process*: if for longer than the session timeout, it is no member any more and finds out
//!   when it goes on.
//! - *Two holders by mistake*: a name belongs to one session at a time; who comes second gets
//!   [`Error::Taken`], at once or after the time it is ready to [wait](Joining::wait).
//!
//! A node with a time to live ([`KeptNode::ttl`]) does not end with the session but when nobody has
//! refreshed it for that time: it outlives a restart, and whoever keeps one of its name next goes on with
//! it. Who was paused for longer than that, and finds another one in its place, ends with
//! [`Error::Taken`]. Two that begin while it is there both keep the same one: give each a name of its own.
//!
//! # Cost
//!
//! One node and one watch for each member, and a write and a read for each new value; none while nothing
//! happens, but for a node with a time to live: a write every third of it. Who looks at the members
//! has one cache.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::request::Test;
use conclave_proto::{ErrorCode, EventKind, SessionId, Stat, WatchKind, ZPath, Zxid};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::Error;
use super::cache::{Cache, CacheChanges, CacheItem, CachedNode, View};
use super::owned::patience;
use super::place::runtime;
use super::support::{child, ensure, kept_ms, later, own_node};
use super::timer::{sleep_until, timeout_at};
use crate::{Client, IntoPath, Lifetime, Watch, WatchItem};

const RECIPE: &str = "the kept node";

/// How often it is tried to create a node that others delete or create at the same time.
pub(super) const ATTEMPTS: usize = 64;

/// How long to wait before it is tried again to keep a node.
const AGAIN: Duration = Duration::from_millis(200);

/// What is wrong if a node that nobody wants any more cannot be deleted.
const LEFT_BEHIND: &str = "a node that was kept is left to its session";

/// A node that is there as long as this value and its session are: created again when somebody
/// deletes it. Dropping it deletes the node.
pub struct KeptNode {
    path: ZPath,
    orders: mpsc::UnboundedSender<Order>,
    ended: watch::Receiver<Option<Error>>,
}

enum Order {
    Set(Bytes, oneshot::Sender<Result<(), Error>>),
    Leave(oneshot::Sender<Result<(), Error>>),
}

/// A kept node that is not there yet; `.create().await` it.
#[derive(Clone)]
#[must_use = "a node is made by .create()"]
pub struct Joining {
    client: Client,
    path: Result<ZPath, Error>,
    data: Bytes,
    lifetime: Lifetime,
    patience: Duration,
}

impl KeptNode {
    /// A node that goes when the session ends. Its parent is made if it is missing.
    pub fn ephemeral(client: &Client, path: impl IntoPath, data: impl Into<Bytes>) -> Joining {
        let path = path.into_path().map_err(Error::from);
        Joining::new(client, path, data.into(), Lifetime::Ephemeral)
    }

    /// A node that goes when it was not refreshed for that time.
    pub fn ttl(
        client: &Client,
        path: impl IntoPath,
        data: impl Into<Bytes>,
        ttl: Duration,
    ) -> Joining {
        let path = path.into_path().map_err(Error::from);
        Joining::new(client, path, data.into(), Lifetime::Ttl(kept_ms(ttl)))
    }

    /// Where it is.
    pub fn path(&self) -> &ZPath {
        &self.path
    }

    /// Replaces its data.
    ///
    /// # Errors
    /// [`Error::Ended`] if it is not kept any more; otherwise if no server confirms it.
    pub async fn set(&self, data: impl Into<Bytes>) -> Result<(), Error> {
        self.order(|done| Order::Set(data.into(), done)).await
    }

    /// Deletes the node; it is gone when this returns.
    ///
    /// # Errors
    /// If no server confirms it in time. It is deleted all the same as soon as one answers; one with a
    /// time to live may be left to that.
    pub async fn leave(self) -> Result<(), Error> {
        self.order(Order::Leave).await
    }

    /// Waits until the node cannot be kept any more, and says why: the session is over, or
    /// somebody else has taken its place.
    pub async fn ended(&self) -> Error {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_else(|| self.gone()),
            Err(_) => self.gone(),
        }
    }

    async fn order(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<(), Error>>) -> Order,
    ) -> Result<(), Error> {
        let (done, outcome) = oneshot::channel();
        // If the task is gone, so is the other end.
        self.orders.send(order(done)).ok();
        match outcome.await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.ended().await),
        }
    }

    fn gone(&self) -> Error {
        let why = Box::new(Error::Gone { path: self.path.clone() });
        Error::Ended { path: self.path.clone(), recipe: RECIPE, why }
    }
}

impl std::fmt::Debug for KeptNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptNode").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Joining {
    fn new(
        client: &Client,
        path: Result<ZPath, Error>,
        data: Bytes,
        lifetime: Lifetime,
    ) -> Joining {
        Joining { client: client.clone(), path, data, lifetime, patience: Duration::ZERO }
    }

    /// Waits so long for a name that is taken: for one's own earlier session to end, for instance.
    pub fn wait(mut self, patience: Duration) -> Joining {
        self.patience = patience;
        self
    }

    /// Creates the node, and keeps it.
    ///
    /// # Errors
    /// [`Error::Taken`] if the name is another session's; [`Error::Name`] if it cannot be used;
    /// [`Error::Config`] if the caller is not in a tokio runtime.
    pub async fn create(self) -> Result<KeptNode, Error> {
        let runtime = runtime(RECIPE)?;
        let path = self.path?;
        let keeper = Keeper {
            client: self.client,
            path: path.clone(),
            data: self.data,
            lifetime: self.lifetime,
            made_by: None,
            written: None,
        };
        let (orders, ordered) = mpsc::unbounded_channel();
        let (has_ended, ended) = watch::channel(None);
        let (told, outcome) = oneshot::channel();
        let patience = later(Instant::now(), self.patience);
        runtime.spawn(keeper.begin(patience, ordered, told, has_ended));
        let node = KeptNode { path, orders, ended };
        match outcome.await {
            Ok(outcome) => outcome.map(|()| node),
            Err(_) => Err(node.gone()),
        }
    }
}

/// The task behind a kept node.
struct Keeper {
    client: Client,
    path: ZPath,
    data: Bytes,
    lifetime: Lifetime,
    /// What created the node that is kept; `None` if that is not known. Another one of the same name is
    /// left alone.
    made_by: Option<Zxid>,
    /// When it was written last; `None` before it is there.
    written: Option<Instant>,
}

impl Keeper {
    /// Creates the node, says so, and keeps it. If nobody listens any more, it is given up again.
    async fn begin(
        mut self,
        patience: Instant,
        orders: mpsc::UnboundedReceiver<Order>,
        mut told: oneshot::Sender<Result<(), Error>>,
        has_ended: watch::Sender<Option<Error>>,
    ) {
        let outcome = tokio::select! {
            outcome = self.create_watched(patience) => outcome,
            () = told.closed() => return self.withdraw().await,
        };
        let watch = match outcome {
            Ok(watch) => watch,
            Err(error) => {
                let may_be_there = error.outcome_unknown();
                // Who is gone needs no word.
                told.send(Err(error)).ok();
                if may_be_there {
                    self.withdraw().await;
                }
                return;
            }
        };
        // If nobody listens, nobody is there to give orders either, which ends it.
        told.send(Ok(())).ok();
        let why = self.run(watch, orders).await;
        let path = self.path.clone();
        let why = why.map(|why| Error::Ended { path, recipe: RECIPE, why: Box::new(why) });
        has_ended.send_replace(why);
    }

    async fn create_watched(&mut self, patience: Instant) -> Result<Watch, Error> {
        let watch = self.client.watch(&self.path, WatchKind::Persistent).await?;
        self.create(patience).await?;
        Ok(watch)
    }

    /// Deletes the node that an attempt to create or delete it, whose outcome is not known, may have
    /// left, now or later. One with a time to live may be from before, and ends by itself.
    async fn withdraw(&self) {
        if self.lifetime != Lifetime::Ephemeral {
            return;
        }
        loop {
            match self.delete().await {
                Err(Error::Client(error)) => {
                    if patience(&self.client, error, LEFT_BEHIND).await.is_err() {
                        return;
                    }
                }
                Ok(()) | Err(_) => return,
            }
        }
    }

    /// Keeps the node until told to stop (`None`), or until that is not possible.
    async fn run(
        &mut self,
        watch: Watch,
        mut orders: mpsc::UnboundedReceiver<Order>,
    ) -> Option<Error> {
        // Without a watch it is not known whether the node is there.
        let mut watch = Some(watch);
        let (mut again, mut told) = (Instant::now(), None);
        loop {
            let outcome = tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Set(data, done)) => {
                        let outcome = self.set(data).await;
                        let is_over = outcome.as_ref().err().filter(|error| error.is_final()).cloned();
                        done.send(outcome).ok();
                        is_over.map_or(Ok(()), Err)
                    }
                    Some(Order::Leave(done)) => {
                        let outcome = self.delete().await;
                        let may_be_there = outcome.is_err();
                        done.send(outcome).ok();
                        if may_be_there {
                            self.withdraw().await;
                        }
                        return None;
                    }
                    None => {
                        if self.lifetime == Lifetime::Ephemeral {
                            self.withdraw().await;
                        } else {
                            // What cannot be deleted now ends by itself.
                            drop(self.delete().await);
                        }
                        return None;
                    }
                },
                () = sleep_until(&self.client, again), if watch.is_none() => {
                    let created = self.create_watched(Instant::now()).await;
                    created.map(|created| watch = Some(created))
                }
                item = next(&mut watch), if watch.is_some() => match item {
                    Some(Ok(WatchItem::Event { kind: EventKind::Deleted, .. })) => {
                        self.create(Instant::now()).await
                    }
                    Some(Ok(_)) => self.restore().await,
                    Some(Err(error)) => Err(error.into()),
                    None => Err(Error::Gone { path: self.path.clone() }),
                },
                // Without a watch, too: else a node that nobody may watch would end.
                () = self.refresh_time(again) => self.set(self.data.clone()).await,
            };
            match outcome {
                Err(error) if error.is_final() || matches!(error, Error::Taken { .. }) => {
                    return Some(error);
                }
                Err(error) => {
                    // Once for each reason, however often it is tried.
                    if told.as_ref() != Some(&error) {
                        tracing::warn!("{} is not kept at the moment: {error}", self.path);
                    }
                    told = Some(error);
                    (watch, again) = (None, Instant::now() + AGAIN);
                }
                Ok(()) => told = None,
            }
        }
    }

    /// Waits until it is time to write the node again, and not before `again`.
    async fn refresh_time(&self, again: Instant) {
        match self.lifetime {
            Lifetime::Ttl(ttl) => {
                let due = self.written.map(|at| later(at, Duration::from_millis(ttl / 3)));
                sleep_until(&self.client, due.map_or(again, |due| due.max(again))).await;
            }
            Lifetime::Persistent
            | Lifetime::Ephemeral
            | Lifetime::Lingering(_)
            | Lifetime::Container => std::future::pending().await,
        }
    }

    /// Sees to it that the node is there and holds what it is to hold: somebody may have deleted or
    /// edited it. What one with a time to live holds is left alone: it may be kept by another one too.
    async fn restore(&mut self) -> Result<(), Error> {
        if let (Lifetime::Ephemeral, Some(made_by)) = (self.lifetime, self.made_by) {
            match self.client.get(&self.path).await {
                Ok(node) if node.stat.czxid == made_by => {
                    let is_right = node.data.as_ref() == Some(&self.data);
                    if is_right || self.write_to(made_by).await? {
                        return Ok(());
                    }
                }
                Err(error) if error.code() != Some(ErrorCode::NoNode) => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
        }
        self.create(Instant::now()).await
    }

    /// Sees to it that the node is there and is this one's.
    async fn create(&mut self, patience: Instant) -> Result<(), Error> {
        let mode = crate::CreateMode { lifetime: self.lifetime, ..Default::default() };
        for _ in 0..ATTEMPTS {
            if let Some(stat) = self.client.exists(&self.path).await? {
                if self.made_by == Some(stat.czxid) {
                    return Ok(());
                }
                if self.may_be_own(&stat) {
                    // It is from before: what it holds, too.
                    if self.write_to(stat.czxid).await? {
                        return Ok(());
                    }
                    continue;
                }
                self.wait_for_end(&stat, patience).await?;
            }
            let now = Instant::now();
            match self.client.create(&self.path, self.data.clone()).mode(mode).await {
                Ok(created) => {
                    (self.made_by, self.written) = (Some(created.stat.czxid), Some(now));
                    return Ok(());
                }
                Err(error) if error.code() == Some(ErrorCode::NodeExists) => {}
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                    let Some(parent) = self.path.parent() else { return Err(error.into()) };
                    ensure(&self.client, &parent).await?;
                }
                Err(error) => {
                    if error.outcome_unknown() {
                        self.made_by = None;
                    }
                    return Err(error.into());
                }
            }
        }
        Err(Error::Conflict { path: self.path.clone() })
    }

    /// Whether this session, or an earlier one, may have created the node to be kept.
    fn may_be_own(&self, stat: &Stat) -> bool {
        match self.lifetime {
            Lifetime::Ephemeral | Lifetime::Lingering(_) => {
                stat.ephemeral_owner == self.client.session()
            }
            // It may be from before a restart; but where one was kept already, another one is somebody
            // else's.
            Lifetime::Ttl(_) | Lifetime::Persistent | Lifetime::Container => {
                stat.ephemeral_owner == SessionId::NONE && self.made_by.is_none()
            }
        }
    }

    async fn wait_for_end(&self, stat: &Stat, patience: Instant) -> Result<(), Error> {
        let taken = || Error::Taken { path: self.path.clone(), owner: stat.ephemeral_owner };
        let wait = async {
            loop {
                let (now, mut change) = self.client.exists_and_watch(&self.path).await?;
                if now.is_none_or(|now| now.czxid != stat.czxid) {
                    return Ok(());
                }
                change.next().await.transpose()?;
            }
        };
        timeout_at(&self.client, patience, wait).await.unwrap_or_else(|_| Err(taken()))
    }

    async fn set(&mut self, data: Bytes) -> Result<(), Error> {
        let before = std::mem::replace(&mut self.data, data);
        let outcome = self.write().await;
        // What was refused is not what the node is to be created with again.
        if outcome.as_ref().is_err_and(|error| !error.outcome_unknown()) {
            self.data = before;
        }
        outcome
    }

    async fn write(&mut self) -> Result<(), Error> {
        if let Some(made_by) = self.made_by
            && self.write_to(made_by).await?
        {
            return Ok(());
        }
        self.create(Instant::now()).await
    }

    /// Writes to the node that this transaction has created, which is the one that is kept. False if it
    /// is not there any more.
    async fn write_to(&mut self, made_by: Zxid) -> Result<bool, Error> {
        let now = Instant::now();
        let multi = self.client.multi().when(&self.path, Test::CreatedBy(made_by));
        let is_there = multi.set(&self.path, self.data.clone(), None).await?.held;
        if is_there {
            (self.made_by, self.written) = (Some(made_by), Some(now));
        }
        Ok(is_there)
    }

    /// Deletes the node, if it is there and the one that is kept.
    async fn delete(&self) -> Result<(), Error> {
        let made_by = match self.made_by {
            Some(made_by) => made_by,
            // Asked after an attempt to create it, and so answered after it.
            None => match self.client.exists(&self.path).await? {
                Some(stat) if self.may_be_own(&stat) => stat.czxid,
                Some(_) | None => return Ok(()),
            },
        };
        let multi = self.client.multi().when(&self.path, Test::CreatedBy(made_by));
        multi.delete(&self.path, None).await?;
        Ok(())
    }
}

/// What comes next on the watch, if there is one.
async fn next(watch: &mut Option<Watch>) -> Option<Result<WatchItem, crate::Error>> {
    watch.as_mut()?.next().await
}

/// The recipe that a node is foreign to.
pub(super) const GROUP: &str = "a group";

/// A group: each member is a node, for as long as its session lives.
#[derive(Clone, Debug)]
pub struct Group {
    pub(super) client: Client,
    pub(super) path: ZPath,
}

impl Group {
    /// The group at that node, which need not exist. Nothing else may be in it.
    ///
    /// # Errors
    /// If it is not a path, or is the root.
    pub fn new(client: &Client, path: impl IntoPath) -> Result<Group, Error> {
        Ok(Group { client: client.clone(), path: own_node(path, GROUP)? })
    }

    /// Becomes a member under this name.
    ///
    /// # Errors
    /// [`Error::Taken`] if somebody else has the name.
    pub async fn join(&self, name: &str, data: impl Into<Bytes>) -> Result<KeptNode, Error> {
        self.joining(name, data).create().await
    }

    /// Becomes a member under this name, in a way that can be said more of.
    pub fn joining(&self, name: &str, data: impl Into<Bytes>) -> Joining {
        Joining::new(&self.client, child(&self.path, name), data.into(), Lifetime::Ephemeral)
    }

    /// Becomes a member without a name of its own: it gets one that nobody else has. A party.
    ///
    /// # Errors
    /// If no server confirms it.
    pub async fn enter(&self, data: impl Into<Bytes>) -> Result<KeptNode, Error> {
        let dice =
            getrandom::u64().map_err(|error| Error::Config(format!("no randomness: {error}")))?;
        self.join(&format!("{}-{dice:016x}", self.client.session()), data).await
    }

    /// Who is there, kept up to date.
    ///
    /// # Errors
    /// If it cannot be read; [`Error::Foreign`] if there is a node that is no session's, which would
    /// be a member for ever. If one comes later, that is what the members end with.
    pub async fn members(&self) -> Result<Members, Error> {
        Ok(Members { cache: Cache::children(&self.client, &self.path).of_sessions(GROUP).await? })
    }
}

/// Who is in a group, kept up to date.
#[derive(Clone, Debug)]
pub struct Members {
    pub(super) cache: Cache,
}

/// What happens in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// Somebody came, or has new data.
    Here {
        /// The name.
        name: String,
        /// The data.
        data: Bytes,
    },
    /// Somebody left, or is dead.
    Left {
        /// The name.
        name: String,
    },
    /// Changes are missing here. What comes next is later than what is shown.
    Gap {
        /// All members now with their data, by name.
        members: BTreeMap<String, Bytes>,
    },
}

impl Members {
    /// All members with their data, by name.
    ///
    /// # Errors
    /// If the session is over; [`Error::Foreign`] if a node has come that is no session's.
    pub fn all(&self) -> Result<BTreeMap<String, Bytes>, Error> {
        self.cache.read(by_name)
    }

    /// The names of all members, in order.
    ///
    /// # Errors
    /// As [`all`](Members::all).
    pub fn names(&self) -> Result<Vec<String>, Error> {
        self.cache.read(|view| view.iter().map(|(path, _)| path.name().to_owned()).collect())
    }

    /// All members with their data, by name, and each change from this very state on.
    ///
    /// # Errors
    /// As [`all`](Members::all).
    pub fn follow(&self) -> Result<(BTreeMap<String, Bytes>, MemberChanges), Error> {
        let (members, changes) = self.cache.follow(by_name)?;
        Ok((members, self.told_of(changes)))
    }

    /// Each change from now on. What [`all`](Members::all) shows when it is asked after this may be
    /// later than what is told then: see [`follow`](Members::follow).
    ///
    /// # Errors
    /// As [`all`](Members::all).
    pub fn changes(&self) -> Result<MemberChanges, Error> {
        self.cache.changes().map(|changes| self.told_of(changes))
    }

    fn told_of(&self, changes: CacheChanges) -> MemberChanges {
        MemberChanges { cache: self.cache.clone(), changes, has_ended: false }
    }

    /// Waits until everything that was acknowledged to anybody before now is seen here.
    ///
    /// # Errors
    /// If no server answers in time, or the session is over.
    pub async fn sync(&self) -> Result<(), Error> {
        self.cache.sync().await
    }
}

fn by_name(view: &View) -> BTreeMap<String, Bytes> {
    let data = |node: &CachedNode| node.data.clone().unwrap_or_default();
    view.iter().map(|(path, node)| (path.name().to_owned(), data(node))).collect()
}

/// The changes of a group, as a stream: each is later than those before.
#[derive(Debug)]
pub struct MemberChanges {
    cache: Cache,
    changes: CacheChanges,
    /// Whether the end was told.
    has_ended: bool,
}

impl MemberChanges {
    /// The next change. The last item is the error that ended it; then comes `None`.
    ///
    /// Safe to be cancelled.
    pub async fn next(&mut self) -> Option<Result<MemberChange, Error>> {
        if self.has_ended {
            return None;
        }
        Some(match self.changes.next().await? {
            Ok(CacheItem::Changed { path, after: Some(node), .. }) => Ok(MemberChange::Here {
                name: path.name().to_owned(),
                data: node.data.unwrap_or_default(),
            }),
            Ok(CacheItem::Changed { path, after: None, .. }) => {
                Ok(MemberChange::Left { name: path.name().to_owned() })
            }
            // What waits in the old stream may be older than what is shown.
            Ok(CacheItem::Gap) => self.cache.follow(by_name).map(|(members, changes)| {
                self.changes = changes;
                MemberChange::Gap { members }
            }),
            Err(error) => Err(error),
        })
        .inspect(|item| self.has_ended = item.is_err())
    }
}
