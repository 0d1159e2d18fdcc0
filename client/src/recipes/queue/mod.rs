//! A queue: first in first out, by priority, or by time; each item is done at least once.
//!
//! ```no_run
//! use conclave_client::Client;
//! use conclave_client::recipes::queue::{Push, Queue};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), conclave_client::recipes::Error> {
//! let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
//! let queue = Queue::new(&client, "/queues/mail")?;
//!
//! queue.push("to everybody").await?;
//! queue.push_with("to ann", Push::new().id("order-17")).await?; // Once, however often.
//!
//! let mut consumer = queue.consumer();
//! loop {
//!     let item = consumer.next().await?;
//!     send(item.data()).await;
//!     item.done().await?; // Dropped without this, it goes to the next one.
//! }
//! # }
//! # async fn send(mail: &[u8]) {}
//! ```
//!
//! An item is taken by an ephemeral node beside it, its lock; when it is done, both go in one
//! transaction. Items come in the order of their keys, then of their pushes: all keys are 0 unless
//! [`Push::priority`] or [`Push::not_before`] gives one. Several consumers at once take what
//! is near the front, each beginning somewhere else, and finish in any order. With [`Queue::sharded`] a queue is spread over several directories, which all
//! its users must say alike; then the order holds within each.
//!
//! # Guarantees
//!
//! Every item whose push was acknowledged is handed out until somebody has [done](Item::done) it:
//! at least once. It is out to one consumer at a time, as far as sessions are alive.
//!
//! - *Lost connection, dead leader*: items stay taken as long as the session lives. A push is sent
//!   again and done once. If its answer does not come in time ([`Error::outcome_unknown`]), an
//!   [id](Push::id) makes it safe to repeat it.
//! - *Expired session*: what was taken is free again. [`Item::lost`] has resolved before; [`Item::done`]
//!   fails with [`Error::Lost`].
//! - *Paused process*: if for longer than the session timeout, its items go to others while it still
//!   believes to have them: work on an item should bear to be done twice, or carry the
//!   [token](Item::token).
//! - *Two holders by mistake*: only the one whose lock it is can say that an item is done.
//! - A node by hand that is no item is told once by each consumer ([`Error::Foreign`]) and left
//!   alone; the items behind it are handed out. So are a lock that is no session's, and an id whose item
//!   was deleted by hand, when a consumer has nothing else to do.
//!
//! # Cost
//!
//! A push takes one round trip and one write; an item two, one to take it and one to finish, beside
//! a page of names now and then; one with an id a read more. Nodes: one for each item, one for each that is taken, one for
//! each id. A consumer that waits has one watch for each shard, and is woken by each push: with very many
//! consumers use shards. A million items are no trouble: nobody reads more than a page.

mod consumer;
mod item;

use bytes::{BufMut, Bytes, BytesMut};
use conclave_proto::{Acl, CreateMode, ErrorCode, ZPath};
use tokio::runtime::Handle;

pub use consumer::Consumer;
pub use item::Item;

use super::place::runtime;
use super::support::{child, ensure, own_node};
use super::{Error, NameError};
use crate::dice::Dice;
use crate::{Client, IntoPath, MultiOutcome, Pending, Test};

const RECIPE: &str = "a queue";

/// The directories of a shard.
const ITEMS: &str = "items";
const TAKEN: &str = "taken";
const IDS: &str = "ids";

/// What the directories of shards are called, before their numbers.
const SHARD: &str = "shard-";

/// What stands before the key in the name of an item.
const PREFIX: &str = "i";
/// The digits of a key, and of the number that the servers append, at least.
const DIGITS: usize = 20;
const NUMBER: usize = 10;

/// How an item is pushed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Push {
    key: u64,
    id: Option<String>,
}

impl Push {
    /// Behind all others.
    pub fn new() -> Push {
        Push::default()
    }

    /// Before all items of a greater number, behind all of a smaller one.
    pub fn priority(mut self, number: u32) -> Push {
        self.key = number.into();
        self
    }

    /// Not handed out before that time, in ms since 1970 by the consumers' clocks; for a queue
    /// whose consumers are [`delayed`](Consumer::delayed).
    pub fn not_before(mut self, time_ms: u64) -> Push {
        self.key = time_ms;
        self
    }

    /// Under this id: as long as an item of it is in the queue, or in work, no other is pushed; and
    /// it can be [removed](Queue::remove) by it.
    pub fn id(mut self, id: impl Into<String>) -> Push {
        self.id = Some(id.into());
        self
    }
}

/// A queue below a node; see [the module](self). Clones are handles of the same queue.
#[derive(Clone, Debug)]
pub struct Queue {
    client: Client,
    /// What drives the tasks that outlive their callers: those that give items back.
    runtime: Handle,
    root: ZPath,
    shards: Vec<Shard>,
}

#[derive(Clone, Debug)]
struct Shard {
    root: ZPath,
    items: ZPath,
    taken: ZPath,
    ids: ZPath,
}

impl Shard {
    fn at(root: ZPath) -> Result<Shard, Error> {
        let [items, taken, ids] = [ITEMS, TAKEN, IDS].map(|name| child(&root, name));
        Ok(Shard { root, items: items?, taken: taken?, ids: ids? })
    }

    /// Makes the directories.
    async fn make(&self, client: &Client) -> Result<(), Error> {
        for path in [&self.items, &self.taken, &self.ids] {
            ensure(client, path).await?;
        }
        Ok(())
    }
}

impl Queue {
    /// The queue at that node, which need not exist. Nothing else may be below it.
    ///
    /// # Errors
    /// If it is not a path, or is the root, or the caller is not in a tokio runtime.
    pub fn new(client: &Client, path: impl IntoPath) -> Result<Queue, Error> {
        Queue::with_shards(client, path, 1)
    }

    /// The queue at that node, spread over so many directories: each of them is a queue of its own,
    /// so that more can be in it and consumers are less in each other's way.
    ///
    /// # Errors
    /// As [`new`](Queue::new), and if there are to be no shards, or more than 1000.
    pub fn sharded(client: &Client, path: impl IntoPath, shards: usize) -> Result<Queue, Error> {
        Queue::with_shards(client, path, shards)
    }

    fn with_shards(client: &Client, path: impl IntoPath, shards: usize) -> Result<Queue, Error> {
        let path = own_node(path, RECIPE)?;
        if !(1..=1000).contains(&shards) {
            return Err(Error::Config(format!("{shards} shards: 1 to 1000 are possible")));
        }
        let runtime = runtime(RECIPE)?;
        let shards = if shards == 1 {
            vec![Shard::at(path.clone())?]
        } else {
            let shard = |number| Shard::at(child(&path, &format!("{SHARD}{number:03}"))?);
            (0..shards).map(shard).collect::<Result<_, Error>>()?
        };
        Ok(Queue { client: client.clone(), runtime, root: path, shards })
    }

    /// Puts an item behind all others.
    ///
    /// # Errors
    /// If no server confirms it; [`Error::outcome_unknown`] says whether it may be there.
    pub async fn push(&self, data: impl Into<Bytes>) -> Result<(), Error> {
        self.push_with(data, Push::new()).await.map(drop)
    }

    /// Puts an item where it belongs. False if its id is taken: by an item that is in the queue or in
    /// work, or by one whose node was deleted by hand; then [remove](Queue::remove) the id, too.
    ///
    /// # Errors
    /// As [`push`](Queue::push); [`Error::Name`] if the id cannot be part of a path.
    pub async fn push_with(&self, data: impl Into<Bytes>, push: Push) -> Result<bool, Error> {
        let data = data.into();
        let shard = self.shard_of(push.id.as_deref());
        loop {
            match self.send_to(shard, data.clone(), &push)?.await {
                Ok(outcome) => return Ok(outcome.held),
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                    shard.make(&self.client).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Puts an item behind all others, in the order of the calls, and does not wait: many can be on
    /// their way at once. The queue must [have been made](Queue::make); see also
    /// [`Client::ready`](crate::Client::ready).
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn send(&self, data: impl Into<Bytes>) -> Result<Pending<MultiOutcome>, Error> {
        self.send_to(self.shard_of(None), data.into(), &Push::new())
    }

    /// Makes the queue's directories, unless they are there.
    ///
    /// # Errors
    /// If no server confirms it.
    pub async fn make(&self) -> Result<(), Error> {
        for shard in &self.shards {
            shard.make(&self.client).await?;
        }
        Ok(())
    }

    /// Takes an item back by its id. True if there was one; if it is in work already, that goes on.
    ///
    /// # Errors
    /// If no server confirms it, or the id cannot be part of a path.
    pub async fn remove(&self, id: &str) -> Result<bool, Error> {
        let path = child(&self.shard_of(Some(id)).ids, id)?;
        match self.client.delete(path).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// How many items are in the queue, those in work included.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn len(&self) -> Result<u64, Error> {
        let mut total = 0;
        for shard in &self.shards {
            let stat = self.client.exists(&shard.items).linearizable().await?;
            total += u64::from(stat.map_or(0, |stat| stat.num_children));
        }
        Ok(total)
    }

    /// Whether no items are in the queue.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len().await? == 0)
    }

    /// Somebody who takes items.
    pub fn consumer(&self) -> Consumer {
        Consumer::new(self)
    }

    fn shard_of(&self, id: Option<&str>) -> &Shard {
        let place = match id {
            Some(id) => {
                let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                    (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
                });
                // As many as there are shards fit.
                usize::try_from(hash % self.shards.len() as u64).unwrap_or_default()
            }
            None => Dice::default().below(self.shards.len()),
        };
        &self.shards[place]
    }

    fn send_to(
        &self,
        shard: &Shard,
        data: Bytes,
        push: &Push,
    ) -> Result<Pending<MultiOutcome>, Error> {
        let item = shard
            .items
            .child(&format!("{PREFIX}{:0DIGITS$}-", push.key))
            .map_err(|why| Error::Name { name: PREFIX.into(), why: NameError::Path(why) })?;
        let mut multi = self.client.multi();
        if let Some(id) = &push.id {
            let path = child(&shard.ids, id)?;
            multi = multi.when(&path, Test::Missing).create(&path, "");
        }
        let data = encode(push.id.as_deref(), data)?;
        Ok(multi.create_with(item, data, CreateMode::PERSISTENT_SEQUENTIAL, Acl::open()).send())
    }
}

/// What an item's node holds: the length of its id, its id, the data.
fn encode(id: Option<&str>, data: Bytes) -> Result<Bytes, Error> {
    let id = id.unwrap_or_default();
    let length = u16::try_from(id.len())
        .map_err(|_| Error::Config(format!("an id of {} bytes is too long", id.len())))?;
    let mut encoded = BytesMut::with_capacity(2 + id.len() + data.len());
    encoded.put_u16(length);
    encoded.put_slice(id.as_bytes());
    encoded.put_slice(&data);
    Ok(encoded.freeze())
}

fn decode(mut data: Bytes) -> Option<(Option<String>, Bytes)> {
    let length = usize::from(u16::from_be_bytes([*data.first()?, *data.get(1)?]));
    let id = std::str::from_utf8(data.get(2..2 + length)?).ok()?;
    let id = (!id.is_empty()).then(|| id.to_owned());
    Some((id, data.split_off(2 + length)))
}

/// The key in an item's name; `None` if it is no item's.
fn key(name: &str) -> Option<u64> {
    let (key, number) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let is_number = number.len() >= NUMBER && number.bytes().all(|byte| byte.is_ascii_digit());
    (key.len() == DIGITS && is_number).then(|| key.parse().ok()).flatten()
}
