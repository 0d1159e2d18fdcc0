//! A queue: nodes in the order in which they were made, each waiting for one before it.

use bytes::Bytes;
use conclave_proto::{ErrorCode, ZPath, Zxid};
use tokio::sync::oneshot;

use super::body::Body;
use super::error::{Error, Loss};
use super::owned::{Owned, Stake, forget};
use super::place::Place;
use crate::dice::Dice;
use crate::{List, Page, Pending};

/// Numbers below this have ten digits, so that the order of their names is that of the numbers.
const TEN_DIGITS: u64 = 10_000_000_000;

/// A queue in a directory.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) place: Place,
    /// What the names of its nodes begin with, before a dash and their number.
    pub(super) kind: &'static str,
    /// Other nodes that the recipe keeps in the directory.
    pub(super) others: &'static [&'static str],
    /// Whether the order is not that of arrival but random.
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

    /// Waits until nobody blocks this place: the nearest one before it that does is waited for,
    /// and nobody else, so that one who leaves wakes one.
    pub(super) async fn wait(
        &self,
        owned: &Owned,
        mine: &ZPath,
        mut entries: Vec<Entry>,
        blocks: impl Fn(&Entry) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        while let Some(blocker) = self.blocker(owned, mine, &entries, &blocks)? {
            let (stat, mut watch) = self.place.client.exists_and_watch(&blocker.path).await?;
            if stat.is_some() {
                tokio::select! {
                    item = watch.next() => drop(item.transpose()?),
                    error = owned.ended() => return Err(error),
                }
            }
            if self.is_first(mine).await? {
                return Ok(());
            }
            entries = self.list().await?;
        }
        Ok(())
    }

    /// The nearest one before this place that blocks it.
    fn blocker<'a>(
        &self,
        owned: &Owned,
        mine: &ZPath,
        entries: &'a [Entry],
        blocks: impl Fn(&Entry) -> Result<bool, Error>,
    ) -> Result<Option<&'a Entry>, Error> {
        let Some(place) = entries.iter().position(|entry| entry.path == *mine) else {
            return Err(owned.lost(Loss::Deleted));
        };
        for entry in entries[..place].iter().rev() {
            if blocks(entry)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Whether this place is plainly the first, which is told from the first name alone.
    async fn is_first(&self, mine: &ZPath) -> Result<bool, Error> {
        let has_ten_digits = self.key(mine.name()).is_some_and(|(_, number)| number < TEN_DIGITS);
        if self.random || !has_ten_digits {
            return Ok(false);
        }
        let page = self.place.client.list(&self.place.path).page_size(1).await?;
        Ok(page.entries.first().is_some_and(|first| first.name == mine.name()))
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
        Some((if self.random { shuffle(number) } else { 0 }, number))
    }

    fn shut_down(&self) -> Error {
        let operation =
            crate::Operation { name: "create", path: Some(self.place.path.clone()), index: None };
        crate::Error::Closed { operation }.into()
    }
}

/// Numbers in an order that looks random, and is the same for everybody.
fn shuffle(number: u64) -> u64 {
    Dice::new(number).up_to(u64::MAX)
}
