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
//!   alone; the items behind it are handed out.
//!
//! # Cost
//!
//! A push takes one round trip and one write; an item two, one to take it and one to finish, beside
//! a page of names now and then; one with an id a read more. Nodes: one for each item, one for each that is taken, one for
//! each id. A consumer that waits has one watch, and is woken by each push: with very many consumers
//! use shards. A million items are no trouble: nobody reads more than a page.

mod item;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use conclave_proto::request::Entry;
use conclave_proto::{Acl, CreateMode, ErrorCode, EventKind, WatchKind, ZPath, Zxid};
use tokio::runtime::Handle;

pub use item::Item;

use super::place::runtime;
use super::support::{child, ensure};
use super::timer::timeout;
use super::{Error, NameError};
use crate::chroot::IntoPath;
use crate::dice::Dice;
use crate::request::Pending;
use crate::{Client, MultiOutcome, Node, Page, Reply, Test, Watch, WatchItem};

const RECIPE: &str = "a queue";

/// The items that a consumer looks at in one go, unless said.
const AHEAD: u32 = 64;

/// How many more items are looked at for each that is in work: so many a consumer can take, more or
/// less, before it comes to where another one has begun.
const SPREAD: u32 = 16;

/// The most items that are looked at in one go, unless more were asked for.
const PAGE: u32 = 2000;

/// How often in a row a consumer is too late for an item before it reads again what there is. A try
/// is a write, and costs more than a page of names.
const TOO_LATE: u32 = 2;

/// For so many items in work one consumer more begins where the front of the queue was, and not at
/// its very front, where the servers still pass over all that was there lately.
const FROM_THE_FRONT: usize = 4;

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
        Queue::with_shards(client, path.into_path()?, 1)
    }

    /// The queue at that node, spread over so many directories: each of them is a queue of its own,
    /// so that more can be in it and consumers are less in each other's way.
    ///
    /// # Errors
    /// As [`new`](Queue::new), and if there are to be no shards, or more than 1000.
    pub fn sharded(client: &Client, path: impl IntoPath, shards: usize) -> Result<Queue, Error> {
        Queue::with_shards(client, path.into_path()?, shards)
    }

    fn with_shards(client: &Client, path: ZPath, shards: usize) -> Result<Queue, Error> {
        if path.is_root() {
            return Err(Error::Config(format!("{RECIPE} needs a node of its own, not /")));
        }
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

    /// Puts an item where it belongs. False if there is one of its id already.
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
        let mut dice = Dice::default();
        let first = dice.below(self.shards.len());
        let shelves = self.shards.iter().cloned().map(Shelf::new).collect();
        Consumer {
            client: self.client.clone(),
            runtime: self.runtime.clone(),
            root: self.root.clone(),
            shelves,
            next: first,
            ahead: AHEAD,
            now_ms: None,
            is_made: false,
            dice,
        }
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

/// A text that is in front of the name of an item, and not far.
fn before(name: &str) -> &str {
    &name[..name.len() - 1]
}

/// What a consumer knows of a shard.
#[derive(Debug)]
struct Shelf {
    shard: Shard,
    /// The names of items that were seen and have not been tried yet.
    seen: VecDeque<String>,
    /// Nodes that are no items, or do not hold what items do, which were told of.
    malformed: BTreeSet<String>,
    /// How many items were in work when that was last seen.
    in_work: usize,
    /// Behind this name the items began when that was last seen; the empty one is before all.
    front: String,
}

impl Shelf {
    fn new(shard: Shard) -> Shelf {
        let (seen, malformed) = (VecDeque::new(), BTreeSet::new());
        Shelf { shard, seen, malformed, in_work: 0, front: String::new() }
    }
}

/// Takes items from a queue.
#[derive(Debug)]
pub struct Consumer {
    client: Client,
    runtime: Handle,
    root: ZPath,
    shelves: Vec<Shelf>,
    /// The shelf to look at first, so that none waits for ever.
    next: usize,
    ahead: u32,
    now_ms: Option<fn() -> u64>,
    /// Whether the directories are there.
    is_made: bool,
    dice: Dice,
}

/// What came of trying what was seen.
enum Tried {
    Item(Item),
    /// All of it is for later: for that time.
    Later(u64),
    /// Others were faster: what was seen is not worth a try any more.
    Beaten,
    /// There was nothing to try.
    Nothing,
}

/// What came of looking at a shelf.
enum Look {
    Item(Item),
    /// All that is there is taken, or is for later: for the earliest at that time.
    Nothing(Option<u64>),
}

impl Consumer {
    /// Keys are times, in ms since 1970, before which items are not handed out. The clock is the
    /// caller's; it should be right.
    pub fn delayed(mut self, now_ms: fn() -> u64) -> Consumer {
        self.now_ms = Some(now_ms);
        self
    }

    /// How many items it looks at in one go; 64 unless said, and more if many are in work. An item of
    /// a lower number than these that comes meanwhile waits until they are tried.
    pub fn ahead(mut self, items: u32) -> Consumer {
        self.ahead = items.max(1);
        self
    }

    /// The next item, as soon as there is one.
    ///
    /// Safe to be cancelled: an item that was taken meanwhile is given back.
    ///
    /// # Errors
    /// If the session is over or no server answers; [`Error::Foreign`] or [`Error::Malformed`] for a
    /// node that is no item, once for each, after which it can be asked again. [`Error::Config`] if
    /// there are items in shards of which this consumer does not know, and nothing else to do.
    pub async fn next(&mut self) -> Result<Item, Error> {
        loop {
            if let Some(item) = self.try_next().await? {
                return Ok(item);
            }
            let names = self.client.list(&self.root).send();
            // First the watches, then another look: what comes in between is seen or told.
            let mut watches = Vec::new();
            for shelf in &self.shelves {
                if !self.is_made {
                    shelf.shard.make(&self.client).await?;
                }
                let recursive = WatchKind::PersistentRecursive;
                watches.push(self.client.watch(&shelf.shard.root, recursive).await?);
            }
            self.is_made = true;
            let due = match self.look().await? {
                Look::Item(item) => return Ok(item),
                Look::Nothing(due) => due,
            };
            self.check_shards(names).await?;
            let wait = match (due, self.now_ms) {
                (Some(due), Some(now_ms)) => Duration::from_millis(due.saturating_sub(now_ms())),
                (Some(_) | None, Some(_) | None) => Duration::from_secs(3600),
            };
            if let Ok(outcome) = timeout(&self.client, wait, woken(&mut watches)).await {
                outcome?;
            }
        }
    }

    /// The next item, if there is one that is free.
    ///
    /// # Errors
    /// As [`next`](Consumer::next).
    pub async fn try_next(&mut self) -> Result<Option<Item>, Error> {
        match self.look().await? {
            Look::Item(item) => Ok(Some(item)),
            Look::Nothing(_) => Ok(None),
        }
    }

    /// Makes sure that no items are where this consumer does not look, as far as it may know: then
    /// others have said another number of shards, and nobody would miss the items.
    async fn check_shards(&self, names: Pending<Page>) -> Result<(), Error> {
        let Ok(page) = names.await else { return Ok(()) };
        let roots: BTreeSet<&ZPath> = self.shelves.iter().map(|shelf| &shelf.shard.root).collect();
        let mut others = Vec::new();
        for Entry { name, .. } in page.entries {
            if name == ITEMS {
                others.push(Shard::at(self.root.clone())?);
            } else if name.starts_with(SHARD) {
                others.push(Shard::at(child(&self.root, &name)?)?);
            }
        }
        for Shard { root, items, .. } in others {
            if roots.contains(&root) {
                continue;
            }
            let has_items = matches!(
                self.client.exists(&items).await,
                Ok(Some(stat)) if stat.num_children > 0
            );
            if has_items {
                let count = self.shelves.len();
                return Err(Error::Config(format!(
                    "{items} has items, and a queue of {count} shards does not look there: say as many \
                     shards as who pushes, and take all items before their number is changed"
                )));
            }
        }
        Ok(())
    }

    /// Looks at every shelf, from the front of each if nothing was left of the last page.
    async fn look(&mut self) -> Result<Look, Error> {
        let mut due: Option<u64> = None;
        for _ in 0..self.shelves.len() {
            let place = self.next % self.shelves.len();
            self.next = (place + 1) % self.shelves.len();
            match self.look_at(place).await? {
                Look::Item(item) => return Ok(Look::Item(item)),
                Look::Nothing(Some(time)) => due = Some(due.map_or(time, |due| due.min(time))),
                Look::Nothing(None) => {}
            }
        }
        Ok(Look::Nothing(due))
    }

    /// Tries what was seen of a shard, and then, from its front, what is there now.
    async fn look_at(&mut self, place: usize) -> Result<Look, Error> {
        // The page to read next begins behind this name; the empty one is before all.
        let mut next = Some(self.beginning(place));
        let mut from_the_front = next.as_deref() == Some("");
        // What others had, whether or not the servers still list their locks.
        let mut beaten = BTreeSet::new();
        loop {
            match self.try_seen(place, &mut beaten).await? {
                Tried::Item(item) => return Ok(Look::Item(item)),
                Tried::Later(due) => return Ok(Look::Nothing(Some(due))),
                Tried::Beaten => {
                    next = Some(self.beginning(place));
                    from_the_front = next.as_deref() == Some("");
                }
                Tried::Nothing => {}
            }
            let after = match next.take() {
                Some(after) => after,
                None if from_the_front => return Ok(Look::Nothing(None)),
                // What there is may be in front of where it began to look.
                None => {
                    from_the_front = true;
                    String::new()
                }
            };
            next = self.fill(place, after, &beaten).await?;
        }
    }

    /// Where to begin to look. Of many consumers a few begin at the very front, often enough that
    /// what was given back, or has a lower key, is found soon; the others where the front was.
    fn beginning(&mut self, place: usize) -> String {
        let shelf = &self.shelves[place];
        let is_one_of_few = self.dice.below(1 + shelf.in_work / FROM_THE_FRONT) == 0;
        if is_one_of_few || self.now_ms.is_some() { String::new() } else { shelf.front.clone() }
    }

    async fn try_seen(
        &mut self,
        place: usize,
        beaten: &mut BTreeSet<String>,
    ) -> Result<Tried, Error> {
        let mut late = 0;
        while late < TOO_LATE
            && let Some(name) = self.shelves[place].seen.pop_front()
        {
            let Some(key) = self.item_key(place, &name)? else { continue };
            if let Some(now_ms) = self.now_ms
                && key > now_ms()
            {
                // All behind it are later still.
                self.shelves[place].seen.clear();
                return Ok(Tried::Later(key));
            }
            if let Some(item) = self.take(place, &name).await? {
                return Ok(Tried::Item(item));
            }
            beaten.insert(name);
            late += 1;
            // Whoever has it goes on behind it, so try elsewhere.
            self.jump(place);
        }
        if late == 0 {
            return Ok(Tried::Nothing);
        }
        self.shelves[place].seen.clear();
        Ok(Tried::Beaten)
    }

    /// Goes on at a random place of what was seen, as far as that may be handed out in any order:
    /// what has the lowest key.
    fn jump(&mut self, place: usize) {
        let seen = &mut self.shelves[place].seen;
        let first = seen.front().and_then(|name| key(name));
        let alike = seen.iter().take_while(|name| key(name) == first).count();
        if alike > 1 && self.now_ms.is_none() {
            seen.make_contiguous()[..alike].rotate_left(self.dice.below(alike));
        }
    }

    /// Whether the node is an item, and of which key. One that is none is told of once.
    fn item_key(&mut self, place: usize, name: &str) -> Result<Option<u64>, Error> {
        let key = key(name);
        let shelf = &mut self.shelves[place];
        if key.is_none() && shelf.malformed.insert(name.to_owned()) {
            return Err(Error::Foreign { path: child(&shelf.shard.items, name)?, recipe: RECIPE });
        }
        Ok(key)
    }

    /// Reads a page; tells where the next one begins.
    ///
    /// Consumers that are at it at the same time shall not all try the same items. So the page is
    /// many times as long as there are items in work, and each begins at a random place of it. It has
    /// names alone: most of them are somebody else's.
    async fn fill(
        &mut self,
        place: usize,
        after: String,
        beaten: &BTreeSet<String>,
    ) -> Result<Option<String>, Error> {
        let shelf = &mut self.shelves[place];
        let spread = u32::try_from(shelf.in_work).unwrap_or(u32::MAX).saturating_mul(SPREAD);
        let length = self.ahead.saturating_add(spread).min(PAGE.max(self.ahead));
        let is_first = after <= shelf.front;
        let page = self.client.list(&shelf.shard.items).page_size(length);
        // What is taken already need not be tried. Locks have the names of their items.
        let taken = self.client.list(&shelf.shard.taken).after(&after);
        let (page, taken) = (page.after(after).send(), taken.send());
        let page = match page.await {
            Ok(page) => page,
            Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let taken: BTreeSet<String> = match taken.await {
            Ok(taken) => taken.entries.into_iter().map(|entry| entry.name).collect(),
            // Items by hand, or a directory that was deleted: it is needed to take them.
            Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                shelf.shard.make(&self.client).await?;
                BTreeSet::new()
            }
            Err(error) => return Err(error.into()),
        };
        if is_first {
            shelf.in_work = taken.len();
            let first = page.entries.iter().find(|entry| key(&entry.name).is_some());
            shelf.front = first.map_or_else(String::new, |first| before(&first.name).to_owned());
        }
        let next = page.entries.last().filter(|_| page.more).map(|entry| entry.name.clone());
        let is_unfit =
            |name: &String| [&taken, beaten, &shelf.malformed].iter().any(|all| all.contains(name));
        let names = page.entries.into_iter().map(|entry| entry.name);
        shelf.seen = names.filter(|name| !is_unfit(name)).collect();
        if !taken.is_empty() {
            self.jump(place);
        }
        Ok(next)
    }

    /// Locks an item; `None` if somebody else has, or it is done. Answer: the lock, its token, and what
    /// will come of reading the item as it is after that, so that one round trip does for both.
    async fn lock(
        &mut self,
        place: usize,
        name: &str,
    ) -> Result<Option<(item::Lock, Zxid, Pending<Node>)>, Error> {
        let shard = &self.shelves[place].shard;
        let path = child(&shard.items, name)?;
        let mut is_made = false;
        loop {
            let path_of_lock = child(&shard.taken, name)?;
            let tag: Bytes =
                format!("{}-{:016x}", self.client.session(), self.dice.up_to(u64::MAX)).into();
            let claim = self
                .client
                .multi()
                .when(&path, Test::Exists)
                .when(&path_of_lock, Test::Missing)
                .create_with(&path_of_lock, tag.clone(), CreateMode::EPHEMERAL, Acl::open())
                .send();
            // From here on the lock is given back when this is dropped.
            let (client, runtime) = (self.client.clone(), self.runtime.clone());
            let lock = item::Lock { client, runtime, path: path_of_lock, tag, is_held: true };
            let node = self.client.get(&path).send();
            let outcome = match claim.await {
                Ok(outcome) => outcome,
                // The directory was deleted by hand.
                Err(error) if error.code() == Some(ErrorCode::NoNode) && !is_made => {
                    lock.forget();
                    shard.make(&self.client).await?;
                    is_made = true;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if !outcome.held {
                lock.forget();
                return Ok(None);
            }
            let token = match outcome.replies.first() {
                Some(Reply::Created { stat, .. }) => stat.czxid,
                Some(_) | None => outcome.zxid,
            };
            return Ok(Some((lock, token, node)));
        }
    }

    /// Takes an item; `None` if somebody else has it, or it is done or was taken back.
    async fn take(&mut self, place: usize, name: &str) -> Result<Option<Item>, Error> {
        let Some((lock, token, node)) = self.lock(place, name).await? else { return Ok(None) };
        let shelf = &mut self.shelves[place];
        let path = child(&shelf.shard.items, name)?;
        let node = match node.await {
            Ok(node) => node,
            Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let Some((id, data)) = node.data.and_then(decode) else {
            shelf.malformed.insert(name.to_owned());
            let why = "it has no id in front of its data".into();
            return Err(Error::Malformed { path, recipe: RECIPE, why });
        };
        let id = id.map(|id| child(&shelf.shard.ids, &id)).transpose()?;
        let made_by = node.stat.czxid;
        let mut item = Item { lock, path, made_by, id, id_made_by: made_by, data, token };
        if item.is_taken_back().await? {
            item.leave().await?;
            return Ok(None);
        }
        Ok(Some(item))
    }
}

/// Waits until something has come, or is free again.
async fn woken(watches: &mut [Watch]) -> Result<(), Error> {
    let mut waiting: Vec<_> = watches.iter_mut().map(|watch| Box::pin(wakes(watch))).collect();
    std::future::poll_fn(|cx| {
        for next in &mut waiting {
            if let std::task::Poll::Ready(outcome) = next.as_mut().poll(cx) {
                return std::task::Poll::Ready(outcome);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

async fn wakes(watch: &mut Watch) -> Result<(), Error> {
    loop {
        match watch.next().await.transpose()? {
            // A new item, or one that was given back. That a lock was made concerns nobody.
            Some(WatchItem::Event { path, kind, .. }) => {
                let parent = path.parent();
                let of = parent.as_ref().map_or("", ZPath::name);
                if (of == ITEMS && kind == EventKind::Created)
                    || (of == TAKEN && kind == EventKind::Deleted)
                {
                    return Ok(());
                }
            }
            Some(WatchItem::Gap { .. }) | None => return Ok(()),
        }
    }
}
