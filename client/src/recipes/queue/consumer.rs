//! Who takes items from a queue.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::request::{self, Entry};
use conclave_proto::{Acl, CreateMode, ErrorCode, EventKind, SessionId, WatchKind, ZPath, Zxid};
use tokio::runtime::Handle;

use super::item::{Item, Lock};
use super::{ITEMS, Queue, RECIPE, SHARD, Shard, TAKEN, decode, key};
use crate::dice::Dice;
use crate::recipes::Error;
use crate::recipes::support::{child, first_of};
use crate::recipes::timer::timeout;
use crate::{Client, Node, Page, Pending, Reply, Test, Watch, WatchItem};

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
    /// Locks of nobody and ids of nothing that were told of.
    leftovers: BTreeSet<ZPath>,
    /// How many items were in work when that was last seen.
    in_work: usize,
    /// Behind this name the items began when that was last seen; the empty one is before all.
    front: String,
}

impl Shelf {
    fn new(shard: Shard) -> Shelf {
        let (seen, malformed, leftovers) = (VecDeque::new(), BTreeSet::new(), BTreeSet::new());
        Shelf { shard, seen, malformed, leftovers, in_work: 0, front: String::new() }
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
    pub(super) fn new(queue: &Queue) -> Consumer {
        let mut dice = Dice::default();
        let first = dice.below(queue.shards.len());
        let shelves = queue.shards.iter().cloned().map(Shelf::new).collect();
        Consumer {
            client: queue.client.clone(),
            runtime: queue.runtime.clone(),
            root: queue.root.clone(),
            shelves,
            next: first,
            ahead: AHEAD,
            now_ms: None,
            is_made: false,
            dice,
        }
    }

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
    /// node that is no item, once for each, after which it can be asked again. When there is nothing else
    /// to do, so for the lock of an item that no consumer has made, which would keep it for ever, and for
    /// an id whose item was deleted by hand; and [`Error::Config`] if there are items in shards of which
    /// this consumer does not know.
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
            self.check_leftovers().await?;
            let wait = match (due, self.now_ms) {
                (Some(due), Some(now_ms)) => Duration::from_millis(due.saturating_sub(now_ms())),
                (Some(_) | None, Some(_) | None) => Duration::from_secs(3600),
            };
            let woken = first_of(watches.iter_mut().map(wakes));
            if let Ok((_, outcome)) = timeout(&self.client, wait, woken).await {
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

    /// Makes sure that nobody waits for what will not come: for items whose locks no session has, and
    /// to push under an id whose item was deleted by hand. Each is told of once.
    async fn check_leftovers(&mut self) -> Result<(), Error> {
        for Shelf { shard, in_work, leftovers, .. } in &mut self.shelves {
            if *in_work > 0 {
                let mut locks = self.client.list(&shard.taken).with_stat().stream();
                while let Some(Entry { name, stat, .. }) = locks.next().await.transpose()? {
                    let is_foreign =
                        stat.is_some_and(|stat| stat.ephemeral_owner == SessionId::NONE);
                    let path = child(&shard.taken, &name)?;
                    if is_foreign && leftovers.insert(path.clone()) {
                        return Err(Error::Foreign { path, recipe: RECIPE });
                    }
                }
            }
            // Of one moment: an item and its id come and go together, or the id goes first.
            let ids = request::Page { limit: AHEAD, ..request::Page::default() };
            let both = self.client.multi_read().exists(&shard.items).children(&shard.ids, ids);
            if let [Ok(Reply::Stat(items)), Ok(Reply::Children { entries, .. })] = &both.await?[..]
                && items.num_children == 0
            {
                for Entry { name, .. } in entries {
                    let path = child(&shard.ids, name)?;
                    if leftovers.insert(path.clone()) {
                        let why = "the item of this id is gone".into();
                        return Err(Error::Malformed { path, recipe: RECIPE, why });
                    }
                }
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
    ) -> Result<Option<(Lock, Zxid, Pending<Node>)>, Error> {
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
            let lock = Lock { client, runtime, path: path_of_lock, tag, is_held: true };
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
