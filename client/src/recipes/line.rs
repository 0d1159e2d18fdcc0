//! A queue: nodes in the order in which they were made, each waiting for one before it.

use conclave_proto::{ErrorCode, ZPath};
use tokio::sync::oneshot;

use super::body::Body;
use super::error::{Error, Loss};
use super::owned::{Owned, Stake, forget};
use super::place::Place;
use crate::dice::Dice;
use crate::{Page, Pending};

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
}

/// One who waits in the queue, or is served.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The order: what comes first is served first.
    key: (u64, u64),
    pub(super) path: ZPath,
}

/// This process's place in a queue; given up when it is dropped.
pub(super) struct Ticket {
    pub(super) owned: Owned,
    key: (u64, u64),
}

impl Line {
    /// Joins the queue at its end, and gives those who are in it.
    ///
    /// If the caller does not wait for the end of this, the place is given up again.
    pub(super) async fn enter(&self, body: Body) -> Result<(Ticket, Vec<Entry>), Error> {
        let (told, outcome) = oneshot::channel();
        let line = self.clone();
        self.place.runtime.spawn(async move {
            // One who does not listen any more drops the ticket, which gives up the place.
            drop(told.send(line.create(body).await));
        });
        outcome.await.unwrap_or_else(|_| Err(self.shut_down()))
    }

    async fn create(&self, body: Body) -> Result<(Ticket, Vec<Entry>), Error> {
        let Place { client, .. } = &self.place;
        let path = self.place.child(&format!("{}-", self.kind))?;
        loop {
            let create = client.create(&path, body.encode()).acl(self.place.acl.clone());
            let created = create.mode(self.place.mode(true)).send();
            // The listing sees what was asked before it: one round trip does for both.
            let listing = self.first_page();
            match created.await {
                Ok(created) => {
                    let ticket = self.ticket(&created.path, created.stat.czxid)?;
                    let entries = self.rest(listing.await?).await?;
                    return Ok((ticket, entries));
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

    pub(super) fn ticket(&self, path: &ZPath, zxid: conclave_proto::Zxid) -> Result<Ticket, Error> {
        let owned = Owned::new(&self.place, vec![Stake { path: path.clone(), zxid }]);
        let key = self.key(path.name()).ok_or_else(|| self.place.foreign(path.name()))?;
        Ok(Ticket { owned, key })
    }

    /// Waits until nobody blocks this place: the nearest one before it that does is waited for,
    /// and nobody else, so that one who leaves wakes one.
    pub(super) async fn wait(
        &self,
        ticket: &Ticket,
        mut entries: Vec<Entry>,
        blocks: impl Fn(&Entry) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        while let Some(blocker) = blocker(ticket, &entries, &blocks)? {
            let watching = self.place.client.exists_and_watch(&blocker.path);
            let (stat, mut watch) = watching.await?;
            if stat.is_some() {
                tokio::select! {
                    item = watch.next() => drop(item.transpose()?),
                    error = ticket.owned.ended() => return Err(error),
                }
            }
            if self.is_first(ticket).await? {
                return Ok(());
            }
            entries = self.list().await?;
        }
        Ok(())
    }

    /// Whether this place is plainly the first, which is told from the first name alone.
    async fn is_first(&self, ticket: &Ticket) -> Result<bool, Error> {
        if self.random || ticket.key.1 >= TEN_DIGITS {
            return Ok(false);
        }
        let page = self.place.client.list(&self.place.path).page_size(1).await?;
        let name = ticket.owned.path().name();
        Ok(page.entries.first().is_some_and(|first| first.name == name))
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
        self.place.client.list(&self.place.path).send()
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
                entries.push(Entry { key, path: self.place.child(&entry.name)? });
            }
            let Some(last) = last.filter(|_| page.more) else { break };
            page = self.place.client.list(&self.place.path).after(last).await?;
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

/// The nearest one before this place that blocks it.
fn blocker<'a>(
    ticket: &Ticket,
    entries: &'a [Entry],
    blocks: impl Fn(&Entry) -> Result<bool, Error>,
) -> Result<Option<&'a Entry>, Error> {
    let place = entries.partition_point(|entry| entry.key < ticket.key);
    if entries.get(place).is_none_or(|entry| entry.key != ticket.key) {
        return Err(ticket.owned.lost(Loss::Deleted));
    }
    for entry in entries[..place].iter().rev() {
        if blocks(entry)? {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Numbers in an order that looks random, and is the same for everybody.
fn shuffle(number: u64) -> u64 {
    Dice::new(number).up_to(u64::MAX)
}
