//! A value, or a number, that many programs change, each on what it has seen; and numbers that are
//! given out once.
//!
//! ```no_run
//! use conclave_client::Client;
//! use conclave_client::recipes::counter::{Counter, IdBlocks, SharedValue};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), conclave_client::recipes::Error> {
//! let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
//!
//! let orders = Counter::new(&client, "/counters/orders")?;
//! println!("{} orders", orders.add(1).await?);
//!
//! let ids = IdBlocks::new(&client, "/counters/ids", 1000)?;
//! println!("order {}", ids.next().await?); // One round trip for a thousand.
//!
//! let phase = SharedValue::new(&client, "/phase")?;
//! let seen = phase.get().await?;
//! phase.compare_and_set(&seen, "two").await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! A change is made on the value that was seen, or not at all: none is lost and none done twice.
//!
//! - *Lost connection, dead leader*: a change is sent again and done once. If no answer comes in
//!   time, the error says whether it may have been done ([`Error::outcome_unknown`]).
//! - *Expired session, paused process*: nothing is held; what was acknowledged stays. Of a block of
//!   ids, what was not given out is lost, so that there are gaps, and never the same id twice.
//! - *Two holders by mistake*: nothing is held.
//! - *A node edited by hand* into what is no number, or for ids into one that is less: [`Error::Malformed`].
//!   *Deleted by hand*: [`Error::Gone`] to all who have seen it, which a new handle has not: a counter
//!   begins again at 0, ids begin again at 0: do not.
//!
//! # Cost
//!
//! One node. A change is a read and a write, two round trips, or one if nobody else has changed it
//! since this handle did; one more of each for everybody who was faster. No watches.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::{ErrorCode, Stat, ZPath, Zxid};
use tokio::sync::Mutex;

use super::Error;
use super::support::{ensure, own_node};
use super::timer::sleep;
use crate::dice::Dice;
use crate::{Client, IntoPath, Node};

const RECIPE: &str = "a counter";

/// How often a change is tried again because somebody else was faster.
const ATTEMPTS: u32 = 1000;

/// A value that is changed by whoever has seen the latest.
#[derive(Clone, Debug)]
pub struct SharedValue {
    client: Client,
    path: ZPath,
}

/// A value, and what is needed to change it if it is still the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The value; `None` if there is none.
    pub value: Option<Bytes>,
    stat: Option<Stat>,
}

impl Seen {
    /// The transaction that created the node.
    fn made_by(&self) -> Option<Zxid> {
        self.stat.map(|stat| stat.czxid)
    }
}

impl SharedValue {
    /// The value at that node, which need not exist.
    ///
    /// # Errors
    /// If it is not a path, or is the root.
    pub fn new(client: &Client, path: impl IntoPath) -> Result<SharedValue, Error> {
        Ok(SharedValue { client: client.clone(), path: own_node(path, "a shared value")? })
    }

    /// The latest value that was acknowledged to anybody.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn get(&self) -> Result<Seen, Error> {
        match self.client.get(&self.path).linearizable().await {
            Ok(Node { data, stat }) => {
                Ok(Seen { value: Some(data.unwrap_or_default()), stat: Some(stat) })
            }
            Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                Ok(Seen { value: None, stat: None })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Changes the value if it is still what was seen, also if it was changed to something else
    /// and back.
    ///
    /// # Errors
    /// [`Error::Conflict`] if it is not.
    pub async fn compare_and_set(
        &self,
        seen: &Seen,
        value: impl Into<Bytes>,
    ) -> Result<Seen, Error> {
        let value = value.into();
        let conflict = || Error::Conflict { path: self.path.clone() };
        let Some(before) = &seen.stat else { return self.create(value).await };
        let set = self.client.multi().when(&self.path, crate::Test::CreatedBy(before.czxid));
        match set.set(&self.path, value.clone(), before.version).await {
            Ok(outcome) if outcome.held => match outcome.replies.into_iter().next() {
                Some(crate::Reply::Stat(stat)) => Ok(Seen { value: Some(value), stat: Some(stat) }),
                Some(_) | None => self.get().await,
            },
            Ok(_) => Err(conflict()),
            Err(error) if error.code() == Some(ErrorCode::BadVersion) => Err(conflict()),
            Err(error) => Err(error.into()),
        }
    }

    async fn create(&self, value: Bytes) -> Result<Seen, Error> {
        for _ in 0..2 {
            match self.client.create(&self.path, value.clone()).await {
                Ok(created) => {
                    return Ok(Seen { value: Some(value), stat: Some(created.stat) });
                }
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                    let Some(parent) = self.path.parent() else { return Err(error.into()) };
                    ensure(&self.client, &parent).await?;
                }
                Err(error) if error.code() == Some(ErrorCode::NodeExists) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Conflict { path: self.path.clone() })
    }

    /// Changes the value to what `change` makes of it, which is called again if somebody else is
    /// faster. If it gives `None`, nothing is changed.
    ///
    /// # Errors
    /// [`Error::Conflict`] if somebody is always faster; [`Error::Gone`] if the node is deleted by hand
    /// meanwhile; if no server confirms it.
    pub async fn update(
        &self,
        mut change: impl FnMut(Option<&Bytes>) -> Option<Bytes>,
    ) -> Result<Seen, Error> {
        let fallible = |value: Option<&Bytes>| Ok(change(value));
        self.try_update(self.get().await?, fallible).await
    }

    async fn try_update(
        &self,
        mut seen: Seen,
        mut change: impl FnMut(Option<&Bytes>) -> Result<Option<Bytes>, Error>,
    ) -> Result<Seen, Error> {
        let mut dice = Dice::default();
        for attempt in 0..ATTEMPTS {
            let Some(value) = change(seen.value.as_ref())? else { return Ok(seen) };
            match self.compare_and_set(&seen, value).await {
                Err(Error::Conflict { .. }) => {}
                outcome => return outcome,
            }
            // Many at once get out of each other's way.
            let time = Duration::from_millis(dice.up_to(u64::from(attempt.min(20))));
            sleep(&self.client, time).await;
            let now = self.get().await?;
            if seen.made_by().is_some_and(|made_by| now.made_by() != Some(made_by)) {
                return Err(Error::Gone { path: self.path.clone() });
            }
            seen = now;
        }
        Err(Error::Conflict { path: self.path.clone() })
    }
}

/// A whole number that many programs add to.
#[derive(Clone, Debug)]
pub struct Counter {
    value: SharedValue,
    /// What this handle has seen last.
    seen: Arc<Mutex<Option<Seen>>>,
    /// What made the node, once this handle has seen it.
    made_by: Arc<OnceLock<Zxid>>,
}

impl Counter {
    /// The counter at that node, which need not exist: then it is at 0.
    ///
    /// # Errors
    /// If it is not a path, or is the root.
    pub fn new(client: &Client, path: impl IntoPath) -> Result<Counter, Error> {
        let value = SharedValue::new(client, path)?;
        Ok(Counter { value, seen: Arc::default(), made_by: Arc::default() })
    }

    /// Its latest value that was acknowledged to anybody.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the node holds no number, [`Error::Gone`] if it was there and is not any
    /// more, or is another one.
    pub async fn get(&self) -> Result<i64, Error> {
        self.number(self.latest().await?.value.as_ref())
    }

    async fn latest(&self) -> Result<Seen, Error> {
        let now = self.value.get().await?;
        self.check(&now)?;
        Ok(now)
    }

    /// Makes sure that it is the node that was seen before.
    fn check(&self, now: &Seen) -> Result<(), Error> {
        let is_same = match now.made_by() {
            Some(made_by) => *self.made_by.get_or_init(|| made_by) == made_by,
            None => self.made_by.get().is_none(),
        };
        if is_same { Ok(()) } else { Err(Error::Gone { path: self.value.path.clone() }) }
    }

    /// Adds to it, which may be less than 0, and gives the new value.
    ///
    /// # Errors
    /// As [`get`](Counter::get); [`Error::Invalid`] if it would not fit 64 bits; [`Error::Conflict`] if
    /// others are always faster. [`Error::outcome_unknown`] says whether it may have been added.
    pub async fn add(&self, amount: i64) -> Result<i64, Error> {
        self.change(|value| {
            value.checked_add(amount).ok_or_else(|| Error::Invalid {
                path: self.value.path.clone(),
                why: format!("{value} and {amount} together do not fit 64 bits"),
            })
        })
        .await
    }

    /// Sets it, if it is at `expected`. Gives its value before, which is `expected` if it was set.
    ///
    /// # Errors
    /// As [`add`](Counter::add).
    pub async fn compare_and_set(&self, expected: i64, value: i64) -> Result<i64, Error> {
        let mut before = expected;
        let change = |data: Option<&Bytes>| {
            before = self.number(data)?;
            Ok((before == expected).then(|| value.to_string().into()))
        };
        let after = self.value.try_update(self.latest().await?, change).await?;
        self.check(&after)?;
        Ok(before)
    }

    /// Sets it, whatever it is.
    ///
    /// # Errors
    /// As [`add`](Counter::add).
    pub async fn set(&self, value: i64) -> Result<(), Error> {
        self.change(|_| Ok(value)).await.map(drop)
    }

    async fn change(&self, change: impl Fn(i64) -> Result<i64, Error>) -> Result<i64, Error> {
        // One at a time of this process: they would only be in each other's way.
        let mut seen = self.seen.lock().await;
        let step = |data: Option<&Bytes>| {
            let next = change(self.number(data)?)?;
            Ok(Some(next.to_string().into()))
        };
        let start = match seen.take() {
            // What is refused is refused for what it is at now, not for what it was.
            Some(seen) if step(seen.value.as_ref()).is_ok() => seen,
            Some(_) | None => self.latest().await?,
        };
        let after = self.value.try_update(start, step).await?;
        self.check(&after)?;
        let value = self.number(after.value.as_ref())?;
        *seen = Some(after);
        Ok(value)
    }

    fn number(&self, data: Option<&Bytes>) -> Result<i64, Error> {
        let Some(data) = data else { return Ok(0) };
        let number = std::str::from_utf8(data).ok().and_then(|text| text.parse().ok());
        number.ok_or_else(|| Error::Malformed {
            path: self.value.path.clone(),
            recipe: RECIPE,
            why: "it is no whole number of 64 bits".into(),
        })
    }
}

/// Ids that are given out once, a block of them for each round trip.
#[derive(Clone, Debug)]
pub struct IdBlocks {
    counter: Counter,
    size: i64,
    /// The next id, and the first that is not of the block.
    block: Arc<Mutex<(i64, i64)>>,
}

impl IdBlocks {
    /// The ids counted at that node, from 0 on, in blocks of that size.
    ///
    /// # Errors
    /// If it is not a path, or is the root, or the size is 0.
    pub fn new(client: &Client, path: impl IntoPath, size: u32) -> Result<IdBlocks, Error> {
        if size == 0 {
            return Err(Error::Config("a block of 0 ids is none".into()));
        }
        let counter = Counter::new(client, path)?;
        Ok(IdBlocks { counter, size: size.into(), block: Arc::default() })
    }

    /// An id that nobody else gets. Those of one handle and its clones grow.
    ///
    /// # Errors
    /// As [`Counter::add`], when a block is used up; [`Error::Malformed`] if the number was set back.
    pub async fn next(&self) -> Result<i64, Error> {
        let mut block = self.block.lock().await;
        if block.0 == block.1 {
            let end = self.counter.add(self.size).await?;
            let first = end - self.size;
            if first < block.1 {
                let path = self.counter.value.path.clone();
                let why = format!("ids up to {} were given out, and it says {first}", block.1 - 1);
                return Err(Error::Malformed { path, recipe: RECIPE, why });
            }
            *block = (first, end);
        }
        block.0 += 1;
        Ok(block.0 - 1)
    }
}
