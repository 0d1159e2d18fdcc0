//! Waiting for each other.

use bytes::Bytes;
use conclave_proto::limits::MULTI_OPS;
use conclave_proto::request::Test;
use conclave_proto::{Acl, CreateMode, ErrorCode, ZPath, Zxid};
use std::sync::Arc;

use super::body::Body;
use super::error::Error;
use super::line::{Entry, Line};
use super::owned::Owned;
use super::place::Place;
use crate::{Client, IntoPath, Stake, Watch};

/// A barrier: while it is raised, everybody who comes to it waits.
///
/// ```no_run
/// use conclave_client::Client;
/// use conclave_client::recipes::{Barrier, Error};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
/// let migration = Barrier::new(&client, "/barriers/migration")?;
/// migration.raise().await?;
/// // Elsewhere:
/// migration.wait().await?;
/// // When it is done:
/// migration.lower().await?;
/// # Ok(())
/// # }
/// ```
///
/// # Guarantees
///
/// It stays raised until somebody lowers it, whoever raised it and whatever becomes of that one.
/// Whoever waits passes after it was lowered, also if its connection was lost or a leader of the
/// servers died meanwhile, and even if it is raised again at once. A wait ends with an error if the
/// session expires. A process that was paused passes late; nothing is held, so that nobody can hold
/// it twice. What was asked to raise or lower it is done once, however often it had to be sent.
///
/// # Cost
///
/// One round trip and one write to raise or lower it; one round trip, and one watch, to wait, and one
/// more when it was lowered. One node while it is raised, and the directory that it is in, which stays.
/// Everybody who waits is told when it is lowered, since all may go on.
#[derive(Clone)]
pub struct Barrier {
    place: Place,
    path: ZPath,
}

impl Barrier {
    /// The barrier that the node at `path` stands for.
    ///
    /// # Errors
    /// If it is not a path, or is the root, or the caller is not in a tokio runtime.
    pub fn new(client: &Client, path: impl IntoPath) -> Result<Barrier, Error> {
        let (place, path) = Place::of_node(client, path, "a barrier")?;
        Ok(Barrier { place, path })
    }

    /// Who may do what with the node; everybody everything unless said.
    pub fn acl(mut self, acl: impl Into<Arc<[Acl]>>) -> Barrier {
        self.place.acl = acl.into();
        self
    }

    /// Raises it; whether it was not raised before.
    ///
    /// # Errors
    /// If the servers refuse, or cannot be reached.
    pub async fn raise(&self) -> Result<bool, Error> {
        loop {
            let create = self.place.client.create(&self.path, "").acl(self.place.acl.clone());
            match create.await {
                Ok(_) => return Ok(true),
                Err(error) if error.code() == Some(ErrorCode::NodeExists) => return Ok(false),
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                    self.place.make_persistent().await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Lowers it; whether it was raised.
    ///
    /// # Errors
    /// As [`raise`](Barrier::raise).
    pub async fn lower(&self) -> Result<bool, Error> {
        match self.place.client.delete(&self.path).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it is raised. Includes what was acknowledged to anybody before.
    ///
    /// # Errors
    /// If the servers refuse, or cannot be reached.
    pub async fn is_raised(&self) -> Result<bool, Error> {
        Ok(self.place.client.exists(&self.path).linearizable().await?.is_some())
    }

    /// Waits while it is raised.
    ///
    /// # Errors
    /// If the session ends.
    pub async fn wait(&self) -> Result<(), Error> {
        let reading = self.place.client.exists_and_watch(&self.path).linearizable();
        let (Some(first), mut watch) = reading.await? else { return Ok(()) };
        loop {
            watch.next().await.transpose()?;
            let (now, next) = self.place.client.exists_and_watch(&self.path).await?;
            if now.is_none_or(|now| now.czxid != first.czxid) {
                return Ok(());
            }
            watch = next;
        }
    }
}

/// For how many a double barrier can be: a round begins with one transaction that asks after each.
const COUNT_MAX: usize = MULTI_OPS - 1;

/// The node that says that enough have come.
const READY: &str = "ready";

/// A double barrier: nobody goes in before enough have come, and nobody goes on before all of them
/// have left.
///
/// ```no_run
/// use conclave_client::Client;
/// use conclave_client::recipes::{DoubleBarrier, Error};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
/// let barrier = DoubleBarrier::new(&client, "/barriers/step", 4)?;
/// for step in 0..10 {
///     let inside = barrier.enter().await?;
///     println!("all four are in step {step}");
///     inside.leave().await?;
/// }
/// # Ok(())
/// # }
/// ```
///
/// It can be used again at once: who comes while others have not left waits for the next round.
///
/// # Guarantees
///
/// Nobody enters before `count` have come whose sessions live; nobody leaves before each of those
/// who entered has asked to, or its session has ended. If more than `count` come at once, all of
/// them are in.
///
/// | when | what happens |
/// |---|---|
/// | the connection is lost, a leader dies | who has come counts, who is inside stays inside |
/// | the session expires | it has not come, or has left, and does not block the others; [`enter`](DoubleBarrier::enter) and [`leave`](Inside::leave) fail |
/// | the process is paused | the others wait for it for as long as its session lives, and go on without it afterwards |
/// | the node `ready` is deleted by hand | a round may begin with those who are inside and have not left; their `leave` fails |
/// | two think it is their round | only after the end of a session: one that was paused may believe to be inside when the others are a round further; its `leave` fails |
///
/// # Cost
///
/// To enter: five round trips and one write, and one write for all. To leave: one write and four round
/// trips, and two more for each time that the oldest one inside ends. One node and two watches for
/// each; all who wait to enter are told at once, since all enter.
#[derive(Clone)]
pub struct DoubleBarrier {
    line: Line,
    count: usize,
}

/// A round.
struct Round {
    /// Those who were there when this happened are in. Their numbers would not tell: the directory is
    /// gone when nobody is in it, and the next one counts from the beginning.
    last: Zxid,
    stake: Stake,
}

impl Round {
    fn has(&self, entry: &Entry) -> bool {
        entry.made_by.is_some_and(|zxid| zxid <= self.last)
    }
}

impl DoubleBarrier {
    /// The barrier whose members are in the directory `path`, for `count` of them. Nothing else may
    /// be in the directory.
    ///
    /// # Errors
    /// If it is not a path, the count is 0 or above 999, or the caller is not in a tokio runtime.
    pub fn new(client: &Client, path: impl IntoPath, count: usize) -> Result<Self, Error> {
        if !(1..=COUNT_MAX).contains(&count) {
            let wrong = format!("a double barrier is for 1 to {COUNT_MAX}, and not for {count}");
            return Err(Error::Config(wrong));
        }
        let place = Place::new(client, path, "a double barrier")?;
        let line = Line { others: &[READY], with_stat: true, ..Line::new(place, "member") };
        Ok(DoubleBarrier { line, count })
    }

    /// Who may do what with the nodes; everybody everything unless said.
    pub fn acl(mut self, acl: impl Into<Arc<[Acl]>>) -> DoubleBarrier {
        self.line.place.acl = acl.into();
        self
    }

    /// Waits until enough have come. If the future is dropped, this one has not come.
    ///
    /// # Errors
    /// If the session ends, a node is deleted or edited by hand, or the directory has other nodes.
    pub async fn enter(&self) -> Result<Inside, Error> {
        let (owned, mut entries) = self.line.enter(Body::new("", Bytes::new())).await?;
        loop {
            let mine = self.mine(&owned, &entries)?;
            match self.round().await? {
                Some(round) if round.has(mine) => {
                    return Ok(Inside { barrier: self.clone(), owned, round });
                }
                // Others have not left, or nobody was left to end their round.
                Some(round) => match entries.first().filter(|entry| round.has(entry)) {
                    Some(oldest) => self.gone(&owned, oldest).await?,
                    None => self.end(&round).await?,
                },
                None if entries.len() >= self.count => self.begin(&entries).await?,
                None => self.begun(&owned).await?,
            }
            entries = self.line.list().await?;
        }
    }

    /// The member's own place. One of its name may be another's, in a directory that was made anew.
    fn mine<'a>(&self, owned: &Owned, entries: &'a [Entry]) -> Result<&'a Entry, Error> {
        let made_by = Some(owned.token().zxid());
        let is_mine = |entry: &&Entry| entry.is(owned.path()) && entry.made_by == made_by;
        let mine = entries.iter().find(is_mine);
        mine.ok_or_else(|| owned.lost(super::Loss::Deleted))
    }

    /// The round that goes on.
    async fn round(&self) -> Result<Option<Round>, Error> {
        let place = &self.line.place;
        let path = place.child(READY)?;
        let node = match place.client.get(&path).await {
            Ok(node) => node,
            Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let last = node.text().ok().and_then(|text| text.parse().ok());
        let last = last.ok_or_else(|| place.malformed(&path, "it is no number"))?;
        let stake = Stake { path, zxid: node.stat.czxid };
        Ok(Some(Round { last: Zxid::from_bits(last), stake }))
    }

    /// Lets everybody in who is there, unless one of those who are needed has gone meanwhile, with
    /// a round that somebody else began perhaps.
    async fn begin(&self, entries: &[Entry]) -> Result<(), Error> {
        let Some(last) = entries.last().and_then(|last| last.made_by) else { return Ok(()) };
        let place = &self.line.place;
        let mut multi = place.client.multi();
        for entry in entries.iter().take(self.count) {
            let made_by = entry.made_by.unwrap_or_default();
            multi = multi.when(self.line.path(entry)?, Test::CreatedBy(made_by));
        }
        let (ready, last) = (place.child(READY)?, last.bits().to_string());
        match multi.create_with(ready, last, CreateMode::PERSISTENT, place.acl.clone()).await {
            Err(error) if error.code() != Some(ErrorCode::NodeExists) => Err(error.into()),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    async fn end(&self, round: &Round) -> Result<(), Error> {
        let Stake { path, zxid } = &round.stake;
        let multi = self.line.place.client.multi().when(path, Test::CreatedBy(*zxid));
        multi.delete(path, None).await?;
        Ok(())
    }

    /// Waits until a round begins.
    async fn begun(&self, owned: &Owned) -> Result<(), Error> {
        let path = self.line.place.child(READY)?;
        let (stat, watch) = self.line.place.client.exists_and_watch(path).await?;
        if stat.is_some() {
            return Ok(());
        }
        tokio::select! {
            outcome = wait_for(watch, owned) => outcome,
            // Who begins the round would be told at once, and so would never begin it.
            error = self.line.oddity(|| async { self.line.list().await.map(drop) }) => Err(error),
        }
    }

    /// Waits until a node is gone, or something happens to it.
    async fn gone(&self, owned: &Owned, entry: &Entry) -> Result<(), Error> {
        match self.watch(entry).await? {
            Some(watch) => wait_for(watch, owned).await,
            None => Ok(()),
        }
    }

    /// A watch on the node of a member; `None` if it is gone, be there another one of its name.
    async fn watch(&self, entry: &Entry) -> Result<Option<Watch>, Error> {
        let path = self.line.path(entry)?;
        let (stat, watch) = self.line.place.client.exists_and_watch(path).await?;
        Ok(stat.filter(|stat| entry.made_by == Some(stat.czxid)).map(|_| watch))
    }
}

async fn wait_for(mut watch: Watch, owned: &Owned) -> Result<(), Error> {
    tokio::select! {
        item = watch.next() => drop(item.transpose()?),
        error = owned.ended() => return Err(error),
    }
    Ok(())
}

/// Being inside of a [`DoubleBarrier`]. Dropping it leaves without waiting for the others.
#[must_use = "what is dropped has left"]
pub struct Inside {
    barrier: DoubleBarrier,
    owned: Owned,
    round: Round,
}

impl Inside {
    /// Leaves, and waits until all who entered have left.
    ///
    /// The oldest one stays until all others are gone and ends the round; the others wait for it.
    ///
    /// # Errors
    /// As [`DoubleBarrier::enter`]. [`Error::Gone`] if the round was ended by hand: others may have been
    /// let in who have not met all who are inside.
    pub async fn leave(self) -> Result<(), Error> {
        let Inside { barrier, owned, round } = self;
        loop {
            // While this one is inside, no member ends its round.
            let (entries, now) = tokio::join!(barrier.line.list(), barrier.round());
            let entries = entries?;
            barrier.mine(&owned, &entries)?;
            if now?.is_none_or(|now| now.stake != round.stake) {
                return Err(Error::Gone { path: round.stake.path });
            }
            let inside: Vec<_> = entries.iter().take_while(|entry| round.has(entry)).collect();
            match inside.as_slice() {
                [only] if only.is(owned.path()) => {
                    // The other way round, this one would be counted among those who come next.
                    owned.release().await?;
                    return barrier.end(&round).await;
                }
                [first, .., last] if first.is(owned.path()) => {
                    barrier.gone(&owned, last).await?;
                }
                _ => break,
            }
        }
        owned.release().await?;
        loop {
            let entries = barrier.line.list().await?;
            let Some(oldest) = entries.first().filter(|entry| round.has(entry)) else {
                return Ok(());
            };
            if let Some(mut watch) = barrier.watch(oldest).await? {
                watch.next().await.transpose()?;
            }
        }
    }
}
