//! A queue: nodes in the order in which they were made, each waiting for those before it.

use bytes::Bytes;
use conclave_proto::{CreateMode, ErrorCode, EventKind, SessionId, WatchKind, ZPath, Zxid};
use tokio::sync::oneshot;

use super::body::{Body, NO_BODY};
use super::error::{Error, Loss};
use super::owned::{Owned, RELEASED, forget};
use super::place::Place;
use super::timer::sleep;
use crate::dice::Dice;
use crate::{List, Page, Pending, Stake, WatchItem};

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
    /// Whether it goes by when they were made, and by whom: each must be a session's.
    pub(super) with_stat: bool,
}

/// One who waits in the queue, or is served.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The order: what comes first is served first.
    key: (u64, u64),
    pub(super) name: String,
    /// What its node holds, if the recipe goes by that.
    pub(super) data: Option<Bytes>,
    /// What made its node, if the recipe goes by that.
    pub(super) made_by: Option<Zxid>,
}

/// Who blocks a place.
struct Blocker<'a> {
    /// The nearest of them. Nothing changes for the place while it is there.
    nearest: &'a Entry,
    is_only: bool,
    /// How many there are from the nearest to the place, these two included.
    length: u32,
}

impl Entry {
    /// Whether it is that with this path in its queue.
    pub(super) fn is(&self, path: &ZPath) -> bool {
        self.name == path.name()
    }
}

/// How a node went, or changed, that blocks a place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Departure {
    /// It was released, and nobody was before it.
    First,
    /// It was deleted.
    Deleted,
    /// Something has happened to it.
    Unclear,
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
        self.join(body, false).await
    }

    /// As [`enter`](Line::enter), for one who does nothing until nobody is before the place.
    pub(super) async fn enter_to_wait(&self, body: Body) -> Result<(Owned, Vec<Entry>), Error> {
        self.join(body, true).await
    }

    async fn join(&self, body: Body, in_line: bool) -> Result<(Owned, Vec<Entry>), Error> {
        let (told, outcome) = oneshot::channel();
        let line = self.clone();
        self.place.runtime.spawn(async move {
            // One who does not listen any more drops the node, which gives up the place.
            drop(told.send(line.create(body, in_line).await));
        });
        outcome.await.unwrap_or_else(|_| Err(self.shut_down()))
    }

    async fn create(&self, body: Body, in_line: bool) -> Result<(Owned, Vec<Entry>), Error> {
        let Place { client, .. } = &self.place;
        let mode = CreateMode { in_line, ..self.place.mode(true) };
        let path = self.new_path()?;
        loop {
            let create = client.create(&path, body.encode()).acl(self.place.acl.clone());
            let created = create.mode(mode).send();
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

    /// Waits until nobody at all is before this place, and notes that. One who leaves wakes one and
    /// no more.
    pub(super) async fn wait_alone(
        &self,
        owned: &Owned,
        mine: &ZPath,
        entries: Vec<Entry>,
    ) -> Result<(), Error> {
        self.wait(owned, mine, entries, |_| Ok(true)).await?;
        self.note_first(owned, mine);
        Ok(())
    }

    /// Notes that nobody is before this place.
    pub(super) fn note_first(&self, owned: &Owned, mine: &ZPath) {
        // In a random order somebody may come before it yet.
        if !self.random {
            owned.is_first(mine);
        }
    }

    /// Waits until nobody blocks this place. One who leaves wakes those whom it was the nearest to
    /// block, and no others.
    ///
    /// # Why a departure can be enough
    ///
    /// When the nearest one that blocks this place, by a listing that was read after this place was
    /// taken, goes later and says that it was the first ([`RELEASED`]), nobody blocks this place, and
    /// nothing needs to be read. The same is true if it was the only one in the listing, whatever
    /// it says:
    ///
    /// - What says so is the very transaction that deletes the node, on the condition that it is
    ///   still the one of who asks for that; and who asks was told that it had its turn before.
    /// - Nobody can have come in between. The servers number nodes in the order of history and never
    ///   give a number of a directory twice, so that whoever comes after a place is behind it. (The
    ///   numbers begin again if the directory is deleted; then this place was deleted with it. And
    ///   the order must be that of the numbers: a random one is always read again.)
    /// - Nobody who does not block begins to: a writer may become a reader, but not the other way.
    /// - This place was not deleted with its session, for the session is certain to be alive when the
    ///   departure is told. If it is not, the line is read again, which the servers refuse to
    ///   sessions that are over. If it was deleted by hand at the same time, that is as if it had been
    ///   its turn before: `owned` is told as any holder is.
    ///
    /// One who gives up its place, or whose session ends, or who holds a lock together with others,
    /// says nothing: then the line is read. What was lost or late is no danger: an event that is told
    /// later, after a reconnection for instance, does not have what the node held last.
    pub(super) async fn wait(
        &self,
        owned: &Owned,
        mine: &ZPath,
        mut entries: Vec<Entry>,
        blocks: impl Fn(&Entry) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let mut since = owned.token().zxid();
        while let Some(blocker) = self.blocker(owned, mine, &entries, &blocks)? {
            let is_last = match self.departure(owned, blocker.nearest, since).await? {
                Departure::First => true,
                Departure::Deleted => blocker.is_only,
                Departure::Unclear => false,
            };
            if is_last && !self.random && owned.is_held() {
                return Ok(());
            }
            since = self.place.client.last_zxid();
            entries = self.front(mine, blocker.length).await?;
        }
        Ok(())
    }

    /// Waits until something happens to a node that was listed after `since`.
    async fn departure(
        &self,
        owned: &Owned,
        entry: &Entry,
        since: Zxid,
    ) -> Result<Departure, Error> {
        let path = self.path(entry)?;
        let mut watch = self.place.client.watch(path, WatchKind::Data).with_value();
        if self.with_data {
            // What it holds counts, and may have changed since.
            watch = watch.since(since);
        }
        let mut watch = match watch.await {
            Ok(watch) => watch,
            Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(Departure::Deleted),
            Err(error) => return Err(error.into()),
        };
        let item = tokio::select! {
            item = watch.next() => item.transpose()?,
            error = owned.ended() => return Err(error),
            error = self.oddity(|| self.check(entry)) => return Err(error),
        };
        Ok(match item {
            Some(WatchItem::Event { kind: EventKind::Deleted, .. }) => Departure::Deleted,
            Some(WatchItem::Event { value: Some(value), .. }) if value == RELEASED => {
                Departure::First
            }
            Some(WatchItem::Event { .. } | WatchItem::Gap { .. }) | None => Departure::Unclear,
        })
    }

    /// Makes this check whenever a session timeout has passed, for which most do not wait; resolves if
    /// it finds a node that no recipe has made, which nobody would ever delete.
    pub(super) async fn oddity<C>(&self, check: impl Fn() -> C) -> Error
    where
        C: Future<Output = Result<(), Error>>,
    {
        let client = &self.place.client;
        loop {
            sleep(client, client.session_timeout()).await;
            // What cannot be read now is told of by its watch, and the session.
            if let Err(error @ (Error::Malformed { .. } | Error::Foreign { .. })) = check().await {
                return error;
            }
        }
    }

    /// Makes sure that a node is one that a recipe has made, if it is there and may be read.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is not; otherwise as a read.
    async fn check(&self, entry: &Entry) -> Result<(), Error> {
        let path = self.path(entry)?;
        match self.place.client.get(&path).await {
            Ok(node) if node.data.as_ref().and_then(Body::decode).is_some() => Ok(()),
            Ok(_) => Err(self.place.malformed(&path, NO_BODY)),
            Err(error) if matches!(error.code(), Some(ErrorCode::NoNode | ErrorCode::NoAuth)) => {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes sure that all nodes are such as a recipe makes, if the queue goes by what they hold.
    ///
    /// # Errors
    /// [`Error::Malformed`] for one that is not; otherwise as [`list`](Line::list).
    pub(super) async fn check_all(&self) -> Result<(), Error> {
        for entry in self.list().await? {
            if entry.data.as_ref().and_then(Body::decode).is_none() {
                return Err(self.place.malformed(&self.path(&entry)?, NO_BODY));
            }
        }
        Ok(())
    }

    /// How many nodes of the queue these are.
    ///
    /// # Errors
    /// [`Error::Foreign`] if one is none.
    pub(super) fn count(&self, names: &[String]) -> Result<u64, Error> {
        match names.iter().find(|name| self.key(name).is_none()) {
            Some(name) => Err(self.place.foreign(name)),
            None => Ok(names.len() as u64),
        }
    }

    /// What a new node is asked for as, to which the servers append its number.
    pub(super) fn new_path(&self) -> Result<ZPath, Error> {
        self.place.child(&format!("{}-", self.kind))
    }

    /// Whether nobody is in the queue. One read if nobody is.
    ///
    /// # Errors
    /// If its first node is none that a recipe has made; otherwise as [`list`](Line::list).
    pub(super) async fn is_free(&self) -> Result<bool, Error> {
        match self.list().await?.first() {
            Some(first) => self.check(first).await.map(|()| false),
            None => Ok(true),
        }
    }

    /// Who blocks this place; `None` if nobody does.
    fn blocker<'a>(
        &self,
        owned: &Owned,
        mine: &ZPath,
        entries: &'a [Entry],
        blocks: impl Fn(&Entry) -> Result<bool, Error>,
    ) -> Result<Option<Blocker<'a>>, Error> {
        let Some(place) = entries.iter().position(|entry| entry.is(mine)) else {
            return Err(owned.lost(Loss::Deleted));
        };
        let mut found: Option<Blocker<'a>> = None;
        for (index, entry) in entries[..place].iter().enumerate().rev() {
            if !blocks(entry)? {
                continue;
            }
            if let Some(blocker) = &mut found {
                blocker.is_only = false;
                break;
            }
            let length = u32::try_from(place - index + 1).unwrap_or(u32::MAX);
            found = Some(Blocker { nearest: entry, is_only: true, length });
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
                let owner = entry.stat.map(|stat| stat.ephemeral_owner);
                let key = self.key(&entry.name).filter(|_| owner != Some(SessionId::NONE));
                let key = key.ok_or_else(|| self.place.foreign(&entry.name))?;
                let made_by = entry.stat.map(|stat| stat.czxid);
                entries.push(Entry { key, name: entry.name, data: entry.data, made_by });
            }
            let Some(last) = last.filter(|_| page.more) else { break };
            page = self.pages().after(last).await?;
        }
        entries.sort_unstable_by_key(|entry| entry.key);
        Ok(entries)
    }

    pub(super) fn path(&self, entry: &Entry) -> Result<ZPath, Error> {
        self.place.child(&entry.name)
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
