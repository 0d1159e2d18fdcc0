//! Listings, which may be longer than one answer, and what else takes several requests.

use std::collections::VecDeque;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use conclave_proto::limits::DELETE_MANY;
use conclave_proto::request::{self, Entry, ReadLevel, Reply};
use conclave_proto::{ErrorCode, Op, Stat, ZPath, Zxid};
use futures_core::Stream;

use crate::request::{Call, Pending};
use crate::watch::Watch;
use crate::{Client, Error};

/// A page of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The entries, in order.
    pub entries: Vec<Entry>,
    /// Whether there are more after the last of these.
    pub more: bool,
    /// The listed node's statistics.
    pub stat: Stat,
}

/// What is listed, and how.
#[derive(Clone)]
struct Target {
    path: Result<ZPath, Error>,
    recursive: bool,
}

impl Target {
    fn call<T>(
        &self,
        client: &Client,
        page: request::Page,
        convert: fn(Reply, Zxid, Option<Watch>) -> Option<T>,
    ) -> Call<T> {
        let recursive = self.recursive;
        let name = if recursive { "list what is below" } else { "list the children of" };
        let op = move |path| {
            if recursive {
                Op::ListRecursive { path, page }
            } else {
                Op::Children { path, watch: None, page }
            }
        };
        Call::new(client, name, self.path.clone(), op, convert)
    }
}

fn to_page(reply: Reply, _: Zxid, _: Option<Watch>) -> Option<Page> {
    if let Reply::Children { entries, more, stat } = reply {
        Some(Page { entries, more, stat })
    } else {
        None
    }
}

fn after(page: &Page) -> Option<String> {
    page.entries.last().filter(|_| page.more).map(|entry| entry.name.clone())
}

/// A listing that is not asked for yet; see [`Client::list`] and [`Client::list_recursive`].
#[must_use = "a request does nothing before .await, .send() or .stream()"]
pub struct List<'a> {
    client: &'a Client,
    target: Target,
    page: request::Page,
    level: ReadLevel,
}

impl<'a> List<'a> {
    pub(crate) fn new(client: &'a Client, path: Result<ZPath, Error>, recursive: bool) -> List<'a> {
        let target = Target { path, recursive };
        List { client, target, page: request::Page::default(), level: ReadLevel::Local }
    }

    /// Entries carry their statistics.
    pub fn with_stat(mut self) -> Self {
        self.page.with_stat = true;
        self
    }

    /// Entries carry their data.
    pub fn with_data(mut self) -> Self {
        self.page.with_data = true;
        self
    }

    /// Start after this name (in a recursive listing: this relative path).
    pub fn after(mut self, name: impl Into<String>) -> Self {
        self.page.after = Some(name.into());
        self
    }

    /// How many entries a page has at most; the servers have a limit of their own.
    pub fn page_size(mut self, entries: u32) -> Self {
        self.page.limit = entries;
        self
    }

    /// Everything that was acknowledged to anybody before now is in the answer.
    pub fn linearizable(mut self) -> Self {
        self.level = ReadLevel::Linearizable;
        self
    }

    /// Everything up to this transaction is in the answer.
    pub fn at_least(mut self, zxid: Zxid) -> Self {
        self.level = ReadLevel::AtLeast(zxid);
        self
    }

    /// Asks for one page.
    pub fn send(self) -> Pending<Page> {
        let mut call = self.target.call(self.client, self.page, to_page);
        call.level = self.level;
        call.send(self.client)
    }

    /// Asks for all pages, one after the other; the next one is asked for while one is read.
    ///
    /// If nodes come and go meanwhile, each one that was there throughout is in it once.
    pub fn stream(self) -> Entries {
        let client = self.client.clone();
        let (target, page) = (self.target.clone(), self.page.clone());
        Entries { client, target, page, next: Some(self.send()), entries: VecDeque::new() }
    }
}

impl IntoFuture for List<'_> {
    type Output = Result<Page, Error>;
    type IntoFuture = Pending<Page>;

    fn into_future(self) -> Pending<Page> {
        self.send()
    }
}

/// A listing as a stream of its entries; it ends after the first error.
#[must_use = "a stream does nothing unless it is read"]
pub struct Entries {
    client: Client,
    target: Target,
    page: request::Page,
    next: Option<Pending<Page>>,
    entries: VecDeque<Entry>,
}

impl Entries {
    /// The next entry; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Entry, Error>> {
        std::future::poll_fn(|cx| self.poll_entry(cx)).await
    }

    fn poll_entry(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Entry, Error>>> {
        loop {
            if let Some(entry) = self.entries.pop_front() {
                return Poll::Ready(Some(Ok(entry)));
            }
            let Some(next) = &mut self.next else { return Poll::Ready(None) };
            let page = ready!(Pin::new(next).poll(cx));
            self.next = None;
            match page {
                Ok(page) => self.take(page),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    fn take(&mut self, page: Page) {
        if let Some(after) = after(&page) {
            self.page.after = Some(after);
            let call = self.target.call(&self.client, self.page.clone(), to_page);
            self.next = Some(call.send(&self.client));
        }
        self.entries = page.entries.into();
    }
}

impl Stream for Entries {
    type Item = Result<Entry, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_entry(cx)
    }
}

/// The names of a node's children, not asked for yet; see [`Client::children`].
#[must_use = "a request does nothing before .await or .send()"]
pub struct Children<'a, T> {
    client: &'a Client,
    target: Target,
    level: ReadLevel,
    watches: bool,
    answer: fn(Vec<String>, Option<Watch>) -> Option<T>,
}

impl<'a> Children<'a, Vec<String>> {
    pub(crate) fn new(client: &'a Client, path: Result<ZPath, Error>) -> Self {
        let target = Target { path, recursive: false };
        let answer = |names, _| Some(names);
        Children { client, target, level: ReadLevel::Local, watches: false, answer }
    }
}

impl<'a> Children<'a, (Vec<String>, Watch)> {
    pub(crate) fn watching(client: &'a Client, path: Result<ZPath, Error>) -> Self {
        let target = Target { path, recursive: false };
        let answer = |names, watch: Option<Watch>| Some((names, watch?));
        Children { client, target, level: ReadLevel::Local, watches: true, answer }
    }
}

impl<T: Send + 'static> Children<'_, T> {
    /// Everything that was acknowledged to anybody before now is in the answer.
    pub fn linearizable(mut self) -> Self {
        self.level = ReadLevel::Linearizable;
        self
    }

    /// Everything up to this transaction is in the answer.
    pub fn at_least(mut self, zxid: Zxid) -> Self {
        self.level = ReadLevel::AtLeast(zxid);
        self
    }

    /// Asks. The place in the order is that of the first page.
    pub fn send(self) -> Pin<Box<dyn Future<Output = Result<T, Error>> + Send>> {
        let first = request::Page::default();
        let mut call = self.target.call(self.client, first, |reply, zxid, watch| {
            Some((to_page(reply, zxid, None)?, watch))
        });
        call.level = self.level;
        call.sets_watch = self.watches;
        let operation = call.operation.clone();
        let first = call.send(self.client);
        let (client, target, answer) = (self.client.clone(), self.target, self.answer);
        Box::pin(async move {
            let (mut page, watch) = first.await?;
            let mut after = after(&page);
            let mut names: Vec<String> = page.entries.drain(..).map(|entry| entry.name).collect();
            while after.is_some() {
                let next = request::Page { after, ..request::Page::default() };
                let page = target.call(&client, next, to_page).send(&client).await?;
                after = self::after(&page);
                names.extend(page.entries.into_iter().map(|entry| entry.name));
            }
            answer(names, watch).ok_or(Error::UnexpectedReply { operation })
        })
    }
}

impl<T: Send + 'static> IntoFuture for Children<'_, T> {
    type Output = Result<T, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        self.send()
    }
}

/// See [`Client::delete_recursive`].
pub(crate) fn delete_recursive(
    client: &Client,
    path: Result<ZPath, Error>,
) -> impl Future<Output = Result<u64, Error>> + Send + 'static {
    let first = delete_some(client, path.clone()).send(client);
    let client = client.clone();
    async move {
        let (deleted, mut more) = first.await?;
        let mut total = u64::from(deleted);
        while more {
            match delete_some(&client, path.clone()).send(&client).await {
                Ok((deleted, rest)) => {
                    total += u64::from(deleted);
                    more = rest;
                }
                // Somebody else deletes it too, and was faster.
                Err(Error::Server { code: ErrorCode::NoNode, .. }) => more = false,
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }
}

fn delete_some(client: &Client, path: Result<ZPath, Error>) -> Call<(u32, bool)> {
    let op = |path| Op::DeleteRecursive { path, limit: DELETE_MANY };
    Call::new(client, "delete all of", path, op, |reply, _, _| {
        if let Reply::DeletedMany { deleted, more } = reply { Some((deleted, more)) } else { None }
    })
}
