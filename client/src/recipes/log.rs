//! An operation log: what a primary does, in order, for standbys to follow.
//!
//! ```no_run
//! use conclave_client::Client;
//! use conclave_client::recipes::log::{Entry, Log};
//! use conclave_client::recipes::{Election, Error};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Error> {
//! let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
//! let log = Log::new(&client, "/billing/log")?;
//!
//! // A standby, and the primary too, applies what is in the log and nothing else.
//! let mut follower = log.follow().await?;
//! tokio::spawn(async move {
//!     loop {
//!         match follower.next().await? {
//!             Entry::State { number, state } => println!("everything up to {number}: {state:?}"),
//!             Entry::Operation { number, operation } => println!("{number}: {operation:?}"),
//!         }
//!     }
//!     # #[allow(unreachable_code)]
//!     # Ok::<(), Error>(())
//! });
//!
//! // The primary writes as long as it leads.
//! let leadership = Election::new(&client, "/billing/election")?.campaign("10.0.0.7:80").await?;
//! let mut writer = log.write(leadership.hold()).await?;
//! let number = writer.append(["debit 1 from a", "credit 1 to b"]).await?;
//! println!("once the follower has come to {number}, both are done");
//! # Ok(())
//! # }
//! ```
//!
//! Who applies operations only as a [`Follower`] tells them cannot differ from the others: the
//! primary answers its client when its own follower has come to the operation's number.
//!
//! # Guarantees
//!
//! What [`append`](Writer::append) has acknowledged is in the log for ever, at its number, after
//! everything acknowledged before. Each follower is told the same operations in the same order,
//! none twice and none left out; at its beginning, and where it was too far behind, the
//! [state](Entry::State) that stands for those it is not told.
//!
//! - *Lost connection*: the client looks for another server; a follower goes on where it was.
//! - *Expired session*: a follower ends with [`Error::Ended`], `append` with [`Error::Lost`].
//! - *Paused process*: a primary that wakes up when another one leads appends nothing:
//!   the hold is checked in the very transaction that appends.
//! - *Dead leader* of the servers: as a lost connection.
//! - *Two holders by mistake*: only one of them can append, as above.
//! - *Deleted or edited by hand*: every follower that was told otherwise ends its work with an error
//!   ([`Follower::next`]); one that begins later cannot know.
//!
//! If an append fails and its [outcome is unknown](Error::outcome_unknown), its operations are in
//! the log or will never be; [`append`](Writer::append) again finds out where the log ends first.
//!
//! # Cost
//!
//! An append is one round trip and one write, for up to 998 operations under a leadership and 999
//! under a lock (1000, less what the [guard](Hold::guard) takes). Followers are told without
//! asking, and keep the operations since the last state in memory. A state is one value: 1 MiB at
//! most. A greater one is kept elsewhere, and its place is the state. One node for each operation
//! since the last state, one for the state, and two directories; a follower has one watch.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use conclave_proto::{ErrorCode, ZPath, Zxid};

use super::cache::{Cache, CacheChanges, CacheItem, CachedNode};
use super::support::{child, ensure, own_node};
use super::{Error, Hold};
use crate::{Client, IntoPath, Node};

const NAME: &str = "an operation log";
/// The node that holds the last state, as decimal digits, a line feed and what the user gave.
const STATE: &str = "state";
/// The node above those of the operations.
const OPERATIONS: &str = "operations";
/// All numbers of operations are less.
const NUMBERS: u64 = u64::MAX;

/// An operation log below a node.
#[derive(Clone, Debug)]
pub struct Log {
    client: Client,
    path: ZPath,
}

impl Log {
    /// The log below `path`, which is made by its first writer. Nothing else may be there.
    ///
    /// # Errors
    /// If it is not a path, or is the root.
    pub fn new(client: &Client, path: impl IntoPath) -> Result<Log, Error> {
        Ok(Log { client: client.clone(), path: own_node(path, NAME)? })
    }

    /// Follows the log: the last state first, if there is one, then every operation after it.
    ///
    /// # Errors
    /// If the log cannot be read, or somebody edited it by hand, as [`Follower::next`] says.
    pub async fn follow(&self) -> Result<Follower, Error> {
        let cache = Cache::tree(&self.client, &self.path).await?;
        let mut follower = Follower {
            log: self.clone(),
            changes: cache.changes()?,
            cache,
            next: 1,
            state: None,
            ready: BTreeMap::new(),
            told: BTreeMap::new(),
            stands_for: 0,
            passed: BTreeSet::new(),
            gone: None,
        };
        follower.read()?;
        Ok(follower)
    }

    /// Writes to the log while something is held: the leadership, or a lock that only a primary
    /// takes.
    ///
    /// # Errors
    /// If the log's nodes cannot be made.
    pub async fn write<'a>(&self, hold: &'a Hold) -> Result<Writer<'a>, Error> {
        for node in [OPERATIONS, STATE] {
            ensure(&self.client, &child(&self.path, node)?).await?;
        }
        Ok(Writer { log: self.clone(), hold, last: None })
    }

    /// Zeros in front, so that the order of names is that of numbers.
    fn operation(&self, number: u64) -> Result<ZPath, Error> {
        child(&child(&self.path, OPERATIONS)?, &format!("{number:020}"))
    }

    /// The number of the operation that this node holds, if it holds one.
    fn number(&self, path: &ZPath) -> Option<u64> {
        let below = path.as_str().strip_prefix(self.path.as_str())?.strip_prefix('/')?;
        number_of(below.strip_prefix(OPERATIONS)?.strip_prefix('/')?)
    }

    /// What a state's node holds; `None` if there has been no state yet.
    fn state(&self, node: Option<&CachedNode>) -> Result<Option<(u64, Bytes)>, Error> {
        let Some(data) = node.and_then(|node| node.data.clone()).filter(|data| !data.is_empty())
        else {
            return Ok(None);
        };
        let end = data.iter().position(|&byte| byte == b'\n');
        let number = end.and_then(|end| std::str::from_utf8(&data[..end]).ok()?.parse().ok());
        match (end, number.filter(|&number| number < NUMBERS)) {
            (Some(end), Some(number)) => Ok(Some((number, data.slice(end + 1..)))),
            _ => {
                let why = String::from("its first line is not the number of an operation");
                Err(Error::Malformed { path: child(&self.path, STATE)?, recipe: NAME, why })
            }
        }
    }
}

/// What a [`Follower`] is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Everything up to an operation: forget what was before, and take this.
    State {
        /// The number of the last operation that is in it.
        number: u64,
        /// What the writer gave to [`Writer::compact`].
        state: Bytes,
    },
    /// The next operation.
    Operation {
        /// Its number, one more than that before.
        number: u64,
        /// What it is.
        operation: Bytes,
    },
}

/// Is told the operations of a log in order.
pub struct Follower {
    log: Log,
    cache: Cache,
    changes: CacheChanges,
    /// The number of the next operation to tell.
    next: u64,
    /// A state that is to be told if the operations before it are not there.
    state: Option<(u64, Bytes)>,
    /// Operations that have come, and the transactions that appended them.
    ready: BTreeMap<u64, (Zxid, Bytes)>,
    /// Those that were told and that no state stands for yet: they must not go, nor come anew.
    told: BTreeMap<u64, Zxid>,
    /// The last operation that a state stands for.
    stands_for: u64,
    /// Operations that were gone when it was told that they had come. That they are gone, and the
    /// state that stands for them, is told next.
    passed: BTreeSet<u64>,
    /// The operation of which it was told last that it was deleted by hand.
    gone: Option<u64>,
}

impl Follower {
    /// The next operation, as soon as there is one.
    ///
    /// # Errors
    /// If the session has ended. If somebody edited the log by hand, once: [`Error::Gone`] for an
    /// operation, or a state, that was deleted, [`Error::Malformed`] for an operation that was changed,
    /// or has the number of one that was told before, [`Error::Foreign`] for a node that is none. What
    /// comes after a foreign node is told nevertheless; what comes after an operation that is not there,
    /// when a state stands for that. After any of the others the follower does not know any more what
    /// the log says: begin again with a new one.
    pub async fn next(&mut self) -> Result<Entry, Error> {
        loop {
            if let Some((made_by, operation)) = self.ready.remove(&self.next) {
                let number = self.next;
                self.next += 1;
                if number > self.stands_for {
                    self.told.insert(number, made_by);
                }
                return Ok(Entry::Operation { number, operation });
            }
            if let Some((number, state)) = self.state.take_if(|(number, _)| *number >= self.next) {
                self.next = number + 1;
                self.ready = self.ready.split_off(&self.next);
                return Ok(Entry::State { number, state });
            }
            let is_gone = self.ready.keys().next().is_some_and(|&first| first > self.next)
                && !self.passed.contains(&self.next);
            if is_gone && self.gone != Some(self.next) {
                // Operations come in order, and a state comes before what it stands for goes.
                self.gone = Some(self.next);
                return Err(Error::Gone { path: self.log.operation(self.next)? });
            }
            match self.changes.next().await {
                Some(Ok(CacheItem::Changed { path, after: Some(node), .. })) => {
                    self.take(&path, &node)?;
                }
                Some(Ok(CacheItem::Changed { path, after: None, .. })) => self.lose(&path)?,
                Some(Ok(CacheItem::Gap)) => self.read()?,
                Some(Err(error)) => return Err(error),
                None => return Err(self.cache.ended().await),
            }
        }
    }

    /// The number of the last operation that was acknowledged to anybody before now: when
    /// [`next`](Follower::next) has come to it, the follower has caught up. One round trip.
    ///
    /// # Errors
    /// If no server answers in time, or the session has ended.
    pub async fn end(&self) -> Result<u64, Error> {
        end(&self.log, &self.cache).await
    }

    fn take(&mut self, path: &ZPath, node: &CachedNode) -> Result<(), Error> {
        match self.log.number(path) {
            Some(_) if node.version > 0 => {
                let why = String::from("it was changed after it had been appended");
                return Err(Error::Malformed { path: path.clone(), recipe: NAME, why });
            }
            Some(number) if number >= self.next => match node.data.clone() {
                Some(operation) => drop(self.ready.insert(number, (node.czxid, operation))),
                None => drop(self.passed.insert(number)),
            },
            Some(number) if self.told.get(&number).is_some_and(|told| *told != node.czxid) => {
                let why = String::from("another operation had its number, and was deleted");
                return Err(Error::Malformed { path: path.clone(), recipe: NAME, why });
            }
            Some(_) => {}
            None if *path == child(&self.log.path, STATE)? => {
                self.state = self.log.state(Some(node))?;
                let number = self.state.as_ref().map_or(0, |(number, _)| *number);
                self.stands_for = self.stands_for.max(number);
                self.told = self.told.split_off(&(self.stands_for + 1));
            }
            None if *path != self.log.path && *path != child(&self.log.path, OPERATIONS)? => {
                return Err(Error::Foreign { path: path.clone(), recipe: NAME });
            }
            None => {}
        }
        Ok(())
    }

    /// A node is gone. A state comes before what it stands for goes, and stays.
    fn lose(&mut self, path: &ZPath) -> Result<(), Error> {
        let is_by_hand = match self.log.number(path) {
            Some(number) => {
                self.passed.remove(&number);
                number > self.stands_for
            }
            None => *path == child(&self.log.path, STATE)?,
        };
        if is_by_hand { Err(Error::Gone { path: path.clone() }) } else { Ok(()) }
    }

    /// Takes everything that the cache shows, and then says what is wrong with the first node that
    /// does not belong there: what is behind it will not be told of again.
    fn read(&mut self) -> Result<(), Error> {
        let (path, cache) = (self.log.path.clone(), self.cache.clone());
        let (nodes, changes) = cache.follow(|view| {
            let nodes = view.below(&path).map(|(path, node)| (path.clone(), node.clone()));
            nodes.collect::<Vec<_>>()
        })?;
        self.changes = changes;
        self.passed.clear();
        let (mut outcome, mut there) = (Ok(()), BTreeSet::new());
        for (path, node) in nodes {
            there.extend(self.log.number(&path));
            outcome = outcome.and(self.take(&path, &node));
        }
        match self.told.keys().find(|number| !there.contains(number)) {
            Some(number) => outcome.and(Err(Error::Gone { path: self.log.operation(*number)? })),
            None => outcome,
        }
    }
}

/// Appends to a log while something is held.
pub struct Writer<'a> {
    log: Log,
    hold: &'a Hold,
    /// The number of the last operation; `None`: it has to be found out.
    last: Option<u64>,
}

impl Writer<'_> {
    /// Appends operations, all or none. Answer: the number of the last one.
    ///
    /// # Errors
    /// [`Error::Lost`] if it is not held any more; then nothing was appended.
    /// [`Error::Conflict`] if somebody else appends under the same hold. [`Error::Config`] if there
    /// are no operations, or more than 1000 with those of the [guard](Hold::guard).
    pub async fn append(
        &mut self,
        operations: impl IntoIterator<Item = impl Into<Bytes>>,
    ) -> Result<u64, Error> {
        let operations: Vec<Bytes> = operations.into_iter().map(Into::into).collect();
        let (count, room) = (operations.len(), self.hold.room());
        if count == 0 || count > room {
            return Err(Error::Config(format!("{count} operations: 1 to {room} can be appended")));
        }
        let before = match self.last.take() {
            Some(last) => last,
            None => self.end().await?,
        };
        let after = before.checked_add(count as u64).filter(|&last| last < NUMBERS);
        let Some(last) = after else {
            let why = format!("it goes up to {before}, and no numbers are left");
            return Err(Error::Malformed { path: self.log.path.clone(), recipe: NAME, why });
        };
        let mut multi = self.log.client.multi();
        for (number, operation) in (before + 1..=last).zip(operations) {
            multi = multi.create(self.log.operation(number)?, operation);
        }
        match self.hold.guard(multi).await {
            Ok(_) => {
                self.last = Some(last);
                Ok(last)
            }
            Err(error) if error.code() == Some(ErrorCode::NodeExists) => {
                Err(Error::Conflict { path: self.log.path.clone() })
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the log shorter: `state` stands for every operation up to `number`. It should be done
    /// every few hundred operations, and after the follower that made the state has come to
    /// `number`. If there is a state of that operation or a later one already, it stays.
    ///
    /// # Errors
    /// [`Error::Lost`] if it is not held any more. [`Error::Config`] if the log has not come to
    /// `number`. [`Error::Conflict`] if somebody else makes the log shorter under the same hold.
    pub async fn compact(&mut self, number: u64, state: impl AsRef<[u8]>) -> Result<(), Error> {
        if self.last.is_none_or(|last| last < number) {
            self.last = Some(self.end().await?);
        }
        if let Some(last) = self.last.filter(|&last| last < number) {
            return Err(Error::Config(format!(
                "{} goes up to {last}: a state cannot stand for {number} operations",
                self.log.path
            )));
        }
        self.replace_state(number, state.as_ref()).await?;
        let client = self.log.client.clone();
        let names = client.children(child(&self.log.path, OPERATIONS)?).await?;
        let names = names.iter().filter_map(|name| number_of(name));
        let old: Vec<u64> = names.filter(|&old| old <= number).collect();
        for some in old.chunks(self.hold.room()) {
            let mut multi = client.multi();
            for &number in some {
                multi = multi.delete(self.log.operation(number)?, None);
            }
            self.hold.guard(multi).await?;
        }
        Ok(())
    }

    /// Writes a state, unless the one that is there stands for as many operations: those after it
    /// may be all that is left.
    async fn replace_state(&self, number: u64, state: &[u8]) -> Result<(), Error> {
        let client = &self.log.client;
        let node = child(&self.log.path, STATE)?;
        let Node { data, stat } = client.get(&node).linearizable().await?;
        let before = self.log.state(Some(&CachedNode::new(data, &stat)))?;
        let multi = if before.is_some_and(|(before, _)| before >= number) {
            client.multi()
        } else {
            let mut data = format!("{number}\n").into_bytes();
            data.extend_from_slice(state);
            client.multi().set(node, data, stat.version)
        };
        match self.hold.guard(multi).await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some(ErrorCode::BadVersion) => {
                Err(Error::Conflict { path: self.log.path.clone() })
            }
            Err(error) => Err(error),
        }
    }

    async fn end(&self) -> Result<u64, Error> {
        end(&self.log, &Cache::tree(&self.log.client, &self.log.path).await?).await
    }
}

/// The number of the operation of which the node has this name.
fn number_of(name: &str) -> Option<u64> {
    let is_one = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
    let number = is_one.then(|| name.parse().ok()).flatten();
    number.filter(|&number| number < NUMBERS)
}

/// The number of the last operation that was acknowledged to anybody before now.
async fn end(log: &Log, cache: &Cache) -> Result<u64, Error> {
    cache.sync().await?;
    cache.read(|view| {
        let last = view.below(&log.path).filter_map(|(path, _)| log.number(path)).max();
        let state = log.state(view.get(&child(&log.path, STATE)?))?;
        Ok(last.unwrap_or_default().max(state.map_or(0, |(number, _)| number)))
    })?
}
