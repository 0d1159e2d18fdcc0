//! A queue: nodes in the order in which they were made, each waiting for those before it.

use bytes::Bytes;
use conclave_proto::{ErrorCode, EventKind, Stat, ZPath, Zxid};
use tokio::sync::oneshot;

use super::body::Body;
use super::error::{Error, Loss};
use super::owned::{Owned, Stake, forget};
use super::place::Place;
use crate::dice::Dice;
use crate::{List, Page, Pending, Watch, WatchItem};

/// Numbers below this have ten digits, so that the order of their names is that of the numbers.
const TEN_DIGITS: u64 = 10_000_000_000;

/// In a random order a place is as if it had been taken up to so many places later. So nobody is
/// passed over by more than these, however many come.
const RANDOM_PLACES: u64 = 64;

/// A queue in a directory.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) place: Place,
    /// What the names of its nodes begin with, before a dash and their number.
    pub(super) kind: &'static str,
    /// Other nodes that the recipe keeps in the directory.
    pub(super) others: &'static [&'static str],
    /// Whether the order is not that of arrival but random, among those who have waited longest.
    pub(super) random: bool,
    /// Whether the recipe goes by what the nodes hold.
    pub(super) with_data: bool,
    /// Whether it goes by when they were made.
    pub(super) with_stat: bool,
}

/// One who waits in the queue, or is served.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The order: what comes first is served first.
    key: (u64, u64),
    pub(super) path: ZPath,
    /// What its node holds, if the recipe goes by that.
    pub(super) data: Option<Bytes>,
    /// What made its node, if the recipe goes by that.
    pub(super) made_by: Option<Zxid>,
}

/// Those who block a place.
struct Blockers {
    nearest: Entry,
    /// The one before the nearest. Nothing changes for the place while it is there.
    other: Option<Entry>,
    /// How many there are from the nearest to the place, these two included.
    length: u32,
}

impl Blockers {
    fn is_only(&self, entry: &Entry) -> bool {
        self.other.is_none() && self.nearest.path == entry.path
    }
}

impl Line {
    /// The queue of those who want what is in `place`, in the order of arrival.
    pub(super) fn new(place: Place, kind: &'static str) -> Line {
        Line { place, kind, others: &[], random: false, with_data: false, with_stat: false }
    }

    /// Joins the queue at its end, and gives those who are in it.
    ///
    /// If the caller does not wait for the end of this, the place is given up again.
    pub(super) async fn enter(&self, body: Body) -> Result<(Owned, Vec<Entry>), Error> {
        let (told, outcome) = oneshot::channel();
        let line = self.clone();
        self.place.runtime.spawn(async move {
            // One who does not listen any more drops the node, which gives up the place.
            drop(told.send(line.create(body).await));
        });
        outcome.await.unwrap_or_else(|_| Err(self.shut_down()))
    }

    async fn create(&self, body: Body) -> Result<(Owned, Vec<Entry>), Error> {
        let Place { client, .. } = &self.place;
        let path = self.place.child(&format!("{}-", self.kind))?;
        loop {
            let create = client.create(&path, body.encode()).acl(self.place.acl.clone());
            let created = create.mode(self.place.mode(true)).send();
            // The listing sees what was asked before it: one round trip does for both.
            let listing = self.first_page();
            match created.await {
                Ok(created) => {
                    let stake = Stake { path: created.path, zxid: created.stat.czxid };
                    let owned = Owned::new(&self.place, vec![stake]);
                    let entries = self.rest(listing.await?).await?;
                    return Ok((owned, entries));
                }
                Err(error) if error.code() == Some(ErrorCode::NoNode) => self.place.make().await?,
                Err(error) => {
                    if error.outcome_unknown() {
                        self.place.runtime.spawn(forget(self.place.clone(), body.tag));
                    }
                    return Err(error.into());
                }
            }
        }
    }

    /// Waits until nobody blocks this place. One who leaves wakes two and no more: the next one, and
    /// the one behind it, which then makes sure that nobody else is left before it.
    ///
    /// # Why the departure of the last one is enough
    ///
    /// When only one blocks this place by a listing that was read after this place was taken, and
    /// that one's node is deleted later, nobody blocks it, and nothing needs to be read:
    ///
    /// - Nobody can have come in between. The servers number nodes in the order of history and never
    ///   give a number of a directory twice, so that whoever comes after this place is behind it. (The
    ///   numbers begin again if the directory is deleted; then this place was deleted with it. And
    ///   the order must be that of the numbers: a random one is always read again.)
    /// - Nobody who does not block begins to: a writer may become a reader, but not the other way.
    /// - This place was not deleted with its session, for the session is certain to be alive when the
    ///   departure is told. If it is not, the line is read again, which the servers refuse to
    ///   sessions that are over. If it was deleted by hand at the same time, that is as if it had been
    ///   its turn before: `owned` is told as any holder is.
    ///
    /// What was lost or late is no danger: a watch that may have missed something says so, and then
    /// the line is read again.
    pub(super) async fn wait(
        &self,
        owned: &Owned,
        mine: &ZPath,
        mut entries: Vec<Entry>,
        blocks: impl Fn(&Entry) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        while let Some(blockers) = self.blockers(owned, mine, &entries, &blocks)? {
            if let Some(other) = &blockers.other {
                self.departure(owned, self.watch(other)).await?;
            }
            let last = self.watch(&blockers.nearest);
            if blockers.other.is_some() {
                entries = self.front(mine, blockers.length).await?;
                let left = self.blockers(owned, mine, &entries, &blocks)?;
                if left.is_none_or(|left| !left.is_only(&blockers.nearest)) {
                    continue;
                }
            }
            if self.departure(owned, last).await? && !self.random && owned.is_held() {
                return Ok(());
            }
            entries = self.front(mine, blockers.length).await?;
        }
        Ok(())
    }

    fn watch(&self, entry: &Entry) -> Pending<(Option<Stat>, Watch)> {
        self.place.client.exists_and_watch(&entry.path).send()
    }

    /// Waits until something happens to a node; whether it is certain that it was deleted.
    async fn departure(
        &self,
        owned: &Owned,
        watch: Pending<(Option<Stat>, Watch)>,
    ) -> Result<bool, Error> {
        let (stat, mut watch) = watch.await?;
        if stat.is_none() {
            return Ok(true);
        }
        tokio::select! {
            item = watch.next() => {
                let item = item.transpose()?;
                Ok(matches!(item, Some(WatchItem::Event { kind: EventKind::Deleted, .. })))
            }
            error = owned.ended() => Err(error),
        }
    }

    /// Those who block this place; `None` if nobody does.
    fn blockers(
        &self,
        owned: &Owned,
        mine: &ZPath,
        entries: &[Entry],
        blocks: impl Fn(&Entry) -> Result<bool, Error>,
    ) -> Result<Option<Blockers>, Error> {
        let Some(place) = entries.iter().position(|entry| entry.path == *mine) else {
            return Err(owned.lost(Loss::Deleted));
        };
        let mut found: Option<Blockers> = None;
        for (index, entry) in entries[..place].iter().enumerate().rev() {
            if !blocks(entry)? {
                continue;
            }
            let Some(blockers) = &mut found else {
                let length = u32::try_from(place - index + 1).unwrap_or(u32::MAX);
                found = Some(Blockers { nearest: entry.clone(), other: None, length });
                // In a random order others may come in between.
                if self.random {
                    break;
                }
                continue;
            };
            blockers.other = Some(entry.clone());
            break;
        }
        Ok(found)
    }

    /// The queue from its front, up to this place at least: so many names if they are enough, and
    /// everybody if not.
    async fn front(&self, mine: &ZPath, length: u32) -> Result<Vec<Entry>, Error> {
        let has_ten_digits = self.key(mine.name()).is_some_and(|(_, number)| number < TEN_DIGITS);
        // Then the names before it are those of all lower numbers, and perhaps of some greater ones.
        if has_ten_digits && !self.random {
            match self.pages().page_size(length).await {
                Ok(page) if page.entries.iter().any(|entry| entry.name == mine.name()) => {
                    return self.rest(Page { more: false, ..page }).await;
                }
                Err(error) if error.code() != Some(ErrorCode::NoNode) => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
        }
        self.list().await
    }

    /// Everybody in the queue, in order.
    pub(super) async fn list(&self) -> Result<Vec<Entry>, Error> {
        match self.first_page().await {
            Ok(page) => self.rest(page).await,
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    fn first_page(&self) -> Pending<Page> {
        self.pages().send()
    }

    fn pages(&self) -> List<'_> {
        let mut pages = self.place.client.list(&self.place.path);
        if self.with_data {
            pages = pages.with_data();
        }
        if self.with_stat {
            pages = pages.with_stat();
        }
        pages
    }

    async fn rest(&self, mut page: Page) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::with_capacity(page.entries.len());
        loop {
            let last = page.entries.last().map(|entry| entry.name.clone());
            for entry in page.entries {
                if self.others.contains(&entry.name.as_str()) {
                    continue;
                }
                let key = self.key(&entry.name).ok_or_else(|| self.place.foreign(&entry.name))?;
                let path = self.place.child(&entry.name)?;
                let made_by = entry.stat.map(|stat| stat.czxid);
                entries.push(Entry { key, path, data: entry.data, made_by });
            }
            let Some(last) = last.filter(|_| page.more) else { break };
            page = self.pages().after(last).await?;
        }
        entries.sort_unstable_by_key(|entry| entry.key);
        Ok(entries)
    }

    /// The order of a node of the queue; `None` if it is none.
    fn key(&self, name: &str) -> Option<(u64, u64)> {
        let digits = name.strip_prefix(self.kind)?.strip_prefix('-')?;
        if digits.len() < 10 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let number = digits.parse().ok()?;
        let delay = if self.random { delay(number) } else { 0 };
        Some((number.saturating_add(delay), number))
    }

    fn shut_down(&self) -> Error {
        let operation =
            crate::Operation { name: "create", path: Some(self.place.path.clone()), index: None };
        crate::Error::Closed { operation }.into()
    }
}

/// By how many places one is put back in a random order: it looks random, and is the same for
/// everybody.
fn delay(number: u64) -> u64 {
    Dice::new(number).up_to(RANDOM_PLACES - 1)
}
