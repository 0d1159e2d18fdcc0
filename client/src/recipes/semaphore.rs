//! A lock that a limited number hold at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::{Acl, CreateMode, ErrorCode};

use super::body::Body;
use super::error::{Error, Loss};
use super::hold::{Hold, within};
use super::line::Line;
use super::owned::{Owned, claim};
use super::place::Place;
use crate::{Client, IntoPath, Node, Stake, Watch};

const QUEUE: &str = "queue";
const PERMITS: &str = "permits";
const LIMIT: &str = "limit";

/// A semaphore: at most so many hold a permit at once, and the number can be changed.
///
/// ```no_run
/// use conclave_client::Client;
/// use conclave_client::recipes::{Error, Semaphore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
/// let workers = Semaphore::new(&client, "/limits/transcoders", 5)?;
/// let permit = workers.acquire().await?;
/// println!("one of at most five; my token is {}", permit.token());
/// permit.release().await?;
/// workers.set_limit(8).await?;
/// # Ok(())
/// # }
/// ```
///
/// A permit is a lease of its session: it ends when it is released or the session ends.
///
/// # Guarantees
///
/// Those of [`Mutex`](super::Mutex), for so many at once; permits are given in the order of asking,
/// and each one's [`Token`](super::Token) is greater than all before. The servers check in the very
/// transaction that gives a permit that the limit is still the one that was read. If the limit is
/// lowered, who has a permit keeps it, and nobody gets one until enough are released.
///
/// | when | what happens |
/// |---|---|
/// | the connection is lost, a leader dies | permits, and places in the queue, are kept |
/// | the session expires | its permits go to others; [`Hold::lost`] has resolved before |
/// | the process is paused | if for longer than the session timeout, others have its permits when it wakes up, so that more than the limit may be at work: [`Hold::guard`] fails |
/// | more than the limit think they have one | only after the end of a session; those who came later have greater tokens |
/// | a node is deleted by hand | its holder loses the permit, who waits is told so; without the limit's node nobody who has seen it gets a permit |
///
/// # Cost
///
/// Three round trips and two writes for a free permit: one to be first in the queue, one to see how
/// many there are and are held, one to go from the queue to the permits. One to release it. One node for
/// each who waits or holds a permit, with one watch on it; only the first in the queue watches the
/// permits and the limit, everybody else the one before. The node that holds the limit stays, and with it
/// the directory; the two within it, for the queue and the permits, go when nobody is in them.
#[derive(Clone)]
pub struct Semaphore {
    /// Of those who wait.
    line: Line,
    /// The permits, in the order in which they were given.
    permits: Line,
    place: Place,
    initial: u32,
    /// Whether the limit was there: then it must not be missing.
    has_limit: Arc<AtomicBool>,
}

impl Semaphore {
    /// The semaphore in the directory `path`. `limit` counts unless one is set already. Nothing else
    /// may be in the directory.
    ///
    /// # Errors
    /// If it is not a path, or the caller is not in a tokio runtime.
    pub fn new(client: &Client, path: impl IntoPath, limit: u32) -> Result<Semaphore, Error> {
        let place = Place::new(client, path, "a semaphore")?;
        let line = Line::new(place.part(QUEUE)?, "waiter");
        let permits = Line { with_data: true, ..Line::new(place.part(PERMITS)?, "permit") };
        let has_limit = Arc::default();
        Ok(Semaphore { line, permits, place, initial: limit, has_limit })
    }

    /// Who may do what with the nodes; everybody everything unless said.
    pub fn acl(mut self, acl: impl Into<Arc<[Acl]>>) -> Semaphore {
        let acl = acl.into();
        for place in [&mut self.line.place, &mut self.permits.place, &mut self.place] {
            place.acl = Arc::clone(&acl);
        }
        self
    }

    /// How long a permit is kept back after its holder's session has expired; see
    /// [`Mutex::lock_delay`](super::Mutex::lock_delay).
    pub fn lock_delay(mut self, delay: Duration) -> Semaphore {
        self.permits.place.lock_delay = delay;
        self
    }

    /// Waits for a permit. If the future is dropped, the place in the queue is given up.
    ///
    /// # Errors
    /// If the session ends, the node is deleted by hand, the limit was edited into something that is
    /// no number, or deleted ([`Error::Gone`], until somebody [sets](Semaphore::set_limit) it again), or
    /// the directory has other nodes in it.
    pub async fn acquire(&self) -> Result<Hold, Error> {
        let (mut waiter, entries) = self.line.enter(Body::new("", Bytes::new())).await?;
        self.line.wait_alone(&waiter, waiter.path(), entries).await?;
        loop {
            let (mut permits, mut limit) = match self.take(waiter).await? {
                Taken::Permit(hold) => return Ok(hold),
                Taken::Wait(waits) => {
                    let (owned, permits, limit) = *waits;
                    waiter = owned;
                    (permits, limit)
                }
            };
            tokio::select! {
                item = permits.next() => drop(item.transpose()?),
                item = limit.next() => drop(item.transpose()?),
                error = waiter.ended() => return Err(error),
                error = self.permits.oddity(|| self.permits.check_all()) => return Err(error),
            }
        }
    }

    /// As [`acquire`](Semaphore::acquire), but not longer than `time`.
    ///
    /// # Errors
    /// [`Error::Deadline`]; otherwise as [`acquire`](Semaphore::acquire).
    pub async fn acquire_within(&self, time: Duration) -> Result<Hold, Error> {
        within(time, &self.place, self.acquire()).await
    }

    /// Takes a permit if one is free and nobody waits.
    ///
    /// # Errors
    /// As [`acquire`](Semaphore::acquire).
    pub async fn try_acquire(&self) -> Result<Option<Hold>, Error> {
        if !self.line.is_free().await? {
            return Ok(None);
        }
        let (waiter, entries) = self.line.enter(Body::new("", Bytes::new())).await?;
        if entries.first().is_none_or(|first| !first.is(waiter.path())) {
            return Ok(None);
        }
        match self.take(waiter).await? {
            Taken::Permit(hold) => Ok(Some(hold)),
            Taken::Wait(_) => self.permits.check_all().await.map(|()| None),
        }
    }

    /// How many permits are held.
    ///
    /// # Errors
    /// If there are other nodes among them; otherwise as a read.
    pub async fn held(&self) -> Result<usize, Error> {
        Ok(self.permits.list().await?.len())
    }

    /// How many permits there are.
    ///
    /// # Errors
    /// If the limit was edited into something that is no number, or deleted ([`Error::Gone`]).
    pub async fn limit(&self) -> Result<u32, Error> {
        match self.place.client.get(self.place.child(LIMIT)?).await {
            Ok(node) => self.parse(&node),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => self.first_limit(),
            Err(error) => Err(error.into()),
        }
    }

    /// What the limit is to be that nobody has set yet.
    fn first_limit(&self) -> Result<u32, Error> {
        if self.has_limit.load(Ordering::Relaxed) {
            return Err(Error::Gone { path: self.place.child(LIMIT)? });
        }
        Ok(self.initial)
    }

    /// Changes how many permits there are.
    ///
    /// # Errors
    /// As a write.
    pub async fn set_limit(&self, limit: u32) -> Result<(), Error> {
        let path = self.place.child(LIMIT)?;
        loop {
            match self.place.client.set(&path, limit.to_string()).await {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                    self.make_limit(limit).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes a permit, if there is one, for the first in the queue, who leaves the queue with that.
    async fn take(&self, waiter: Owned) -> Result<Taken, Error> {
        let client = &self.place.client;
        loop {
            let limit = client.get_and_watch(self.place.child(LIMIT)?).into_future();
            // One round trip does for both.
            let (looked, limit) = tokio::join!(self.look(), limit);
            let Some((held, permits)) = looked? else {
                self.permits.place.make().await?;
                continue;
            };
            let (node, limit) = match limit {
                Ok(limit) => limit,
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                    self.make_limit(self.first_limit()?).await?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if held >= u64::from(self.parse(&node)?) {
                return Ok(Taken::Wait(Box::new((waiter, permits, limit))));
            }
            let Stake { path, zxid } = &waiter.stakes()[0];
            let body = Body::new("", Bytes::new());
            let (permits, permit) = (&self.permits.place, self.permits.new_path()?);
            // Only the first in the queue takes permits, so that there can be only fewer meanwhile.
            let multi = client
                .multi()
                .create_with(permit, body.encode(), permits.mode(true), permits.acl.clone())
                .guard(path, *zxid)
                .check(self.place.child(LIMIT)?, node.stat.version)
                .delete(path, None)
                .send();
            match claim(vec![permits.clone()], multi, body.tag).await {
                Ok(Some(permit)) => {
                    let owned = waiter.replaced_by(permits, permit.take());
                    return Ok(Taken::Permit(Hold::new(owned)));
                }
                Err(error) if error.code() == Some(ErrorCode::ConditionFailed) => {
                    return Err(waiter.lost(Loss::Deleted));
                }
                Err(error)
                    if !matches!(error.code(), Some(ErrorCode::NoNode | ErrorCode::BadVersion)) =>
                {
                    return Err(error);
                }
                // The limit was changed, or the directory went, in between.
                Ok(None) | Err(_) => {}
            }
        }
    }

    /// How many permits are held, and a watch on that; `None` if the directory is missing.
    async fn look(&self) -> Result<Option<(u64, Watch)>, Error> {
        match self.place.client.children_and_watch(&self.permits.place.path).await {
            Ok((permits, watch)) => Ok(Some((self.permits.count(&permits)?, watch))),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn make_limit(&self, limit: u32) -> Result<(), Error> {
        self.place.make().await?;
        let client = &self.place.client;
        let create = client.create(self.place.child(LIMIT)?, limit.to_string());
        match create.mode(CreateMode::PERSISTENT).acl(self.place.acl.clone()).await {
            Err(error) if error.code() != Some(ErrorCode::NodeExists) => Err(error.into()),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn parse(&self, node: &Node) -> Result<u32, Error> {
        self.has_limit.store(true, Ordering::Relaxed);
        let limit = node.text().ok().and_then(|text| text.trim().parse().ok());
        match (limit, self.place.child(LIMIT)) {
            (Some(limit), _) => Ok(limit),
            (None, Ok(path)) => Err(self.place.malformed(&path, "it is no number")),
            (None, Err(error)) => Err(error),
        }
    }
}

/// What comes of an attempt to take a permit.
enum Taken {
    Permit(Hold),
    /// All are taken. The watches tell when one is released, or their number changes.
    Wait(Box<(Owned, Watch, Watch)>),
}
