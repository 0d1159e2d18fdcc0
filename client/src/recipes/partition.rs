//! A set of partitions divided among the live members of a group: each partition has one owner, and
//! everybody about the same number.
//!
//! ```no_run
//! use conclave_client::Client;
//! use conclave_client::recipes::partition::{Partitioner, Turn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), conclave_client::recipes::Error> {
//! let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
//! let names: Vec<String> = (0..32).map(|number| format!("p{number}")).collect();
//! let mut share = Partitioner::join(&client, "/partitions/orders", "worker-7", names).await?;
//! loop {
//!     match share.next().await? {
//!         Turn::Begin { partition, token } => println!("begin with {partition}, token {token}"),
//!         Turn::End { partition } => {
//!             println!("finish what is going on with {partition}");
//!             share.release(&partition).await?;
//!         }
//!         Turn::Lost { partition } => println!("stop {partition} at once"),
//!     }
//! }
//! # }
//! ```
//!
//! # Guarantees
//!
//! A partition is one member's at a time, as far as sessions are alive: its ephemeral node is a lock.
//! Each owner's token is greater than those before. When a member comes or goes, few partitions move
//! beside those that must, and nobody has more than the members' share, rounded up, once all have
//! released what they should. All members must give the same partitions.
//!
//! - *Lost connection, dead leader*: what is owned stays, as long as the session lives. When it is no
//!   longer alive for certain, a tenth of the session timeout before others can have its partitions,
//!   [`Turn::Lost`] tells of each of them, though no server can be asked. If it turns out to be alive,
//!   [`Turn::Begin`] tells of them again, with the same tokens.
//! - *Expired session*: [`Partitioner::next`] fails as soon as a server says so; others have the
//!   partitions when the servers end the session.
//! - *Paused process*: if for longer than the session timeout, others have its partitions when it
//!   goes on. Its writes through [`Partitioner::guard`] fail; others must be stopped by the token.
//! - *Two holders by mistake*: possible only as above.
//! - *A lock deleted by hand*: [`Turn::Lost`].
//!
//! # Cost
//!
//! A node and a cache of the members, a node for each partition and a cache of those; a write to
//! take or release one. All members hear of each change, and one of them acts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use conclave_proto::{ErrorCode, SessionId, ZPath, Zxid};
use tokio::runtime::Handle;
use xxhash_rust::xxh3::xxh3_64;

use super::cache::{Cache, CacheChanges, CachedNode};
use super::doubt::{certainty, is_suspect, suspicion};
use super::members::{Group, KeptNode, MemberChanges, Members};
use super::owned::delete_in_background;
use super::place::runtime;
use super::support::{child, ensure, own_node};
use super::{Error, Loss, Token};
use crate::{Client, IntoPath, Multi, MultiOutcome, Node, Stake, Test};

const RECIPE: &str = "a set of partitions";

/// What a member is told to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The partition is this member's.
    Begin {
        /// Which one.
        partition: String,
        /// The fencing token.
        token: Token,
    },
    /// Somebody else is to have it: finish, and [release](Partitioner::release) it.
    End {
        /// Which one.
        partition: String,
    },
    /// It is not this member's any more, as far as is known: somebody deleted its lock, or the session
    /// is no longer alive for certain. Stop at once: there is nothing to release.
    Lost {
        /// Which one.
        partition: String,
    },
}

/// This member's share of the partitions. Dropping it leaves the group and gives them up.
pub struct Partitioner {
    client: Client,
    runtime: Handle,
    owners: ZPath,
    name: String,
    partitions: BTreeSet<String>,
    member: KeptNode,
    members: Members,
    member_changes: MemberChanges,
    locks: Cache,
    lock_changes: CacheChanges,
    held: BTreeMap<String, Held>,
    /// Partitions of which it is not known whether this member has them: it has asked for them and was
    /// not told, or its session was in doubt.
    unsettled: BTreeSet<String>,
    /// Partitions that were begun and are lost, which is still to be told.
    lost: VecDeque<String>,
    /// Partitions of which something is to be told, if they are still held then.
    news: VecDeque<String>,
}

struct Held {
    czxid: Zxid,
    /// Whether it is for this member to have.
    is_mine: bool,
    told: Told,
}

/// What was told last of a partition that is held.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Begin,
    End,
}

impl Held {
    /// What is to be told of it.
    fn news(&self) -> Option<Told> {
        let news = if self.is_mine { Told::Begin } else { Told::End };
        (self.told != news).then_some(news)
    }
}

impl Partitioner {
    /// Becomes a member under this name.
    ///
    /// # Errors
    /// [`Error::Name`] if a name cannot be part of a path, [`Error::Taken`] if another session has
    /// it, [`Error::Config`] if there are no partitions, or the caller is not in a tokio runtime.
    pub async fn join(
        client: &Client,
        path: impl IntoPath,
        name: &str,
        partitions: impl IntoIterator<Item = String>,
    ) -> Result<Partitioner, Error> {
        let runtime = runtime(RECIPE)?;
        let path = own_node(path, RECIPE)?;
        let partitions: BTreeSet<String> = partitions.into_iter().collect();
        let owners = child(&path, "owners")?;
        if partitions.is_empty() {
            return Err(Error::Config("there are no partitions to divide".into()));
        }
        for partition in &partitions {
            child(&owners, partition)?;
        }
        ensure(client, &owners).await?;
        let group = Group::new(client, child(&path, "members")?)?;
        let member = group.join(name, "").await?;
        let members = group.members().await?;
        let locks = Cache::children(client, &owners).without_data().await?;
        Ok(Partitioner {
            client: client.clone(),
            runtime,
            owners,
            name: name.to_owned(),
            partitions,
            member,
            member_changes: members.changes()?,
            members,
            lock_changes: locks.changes()?,
            locks,
            held: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            lost: VecDeque::new(),
            news: VecDeque::new(),
        })
    }

    /// What to do next, as soon as there is something.
    ///
    /// Safe to be cancelled: a partition that was taken meanwhile is told of by the next call.
    ///
    /// # Errors
    /// If the session is over: nothing is this member's any more. [`Error::Foreign`] if a node that no
    /// member has made stands in the place of a partition's owner, or is among the members.
    pub async fn next(&mut self) -> Result<Turn, Error> {
        let client = self.client.clone();
        loop {
            if client.state().is_final() {
                return Err(self.member.ended().await);
            }
            let is_suspect = is_suspect(&client);
            if is_suspect {
                self.doubt();
            }
            if let Some(partition) = self.lost.pop_front() {
                return Ok(Turn::Lost { partition });
            }
            if is_suspect {
                tokio::select! {
                    () = certainty(&client) => continue,
                    why = self.member.ended() => return Err(why),
                }
            }
            if let Some(turn) = self.news()? {
                return Ok(turn);
            }
            tokio::select! {
                biased;
                looked = self.look() => looked?,
                () = suspicion(&client) => continue,
            }
            if !self.lost.is_empty() || !self.news.is_empty() {
                continue;
            }
            tokio::select! {
                change = self.member_changes.next() => drop(change.transpose()?),
                change = self.lock_changes.next() => drop(change.transpose()?),
                () = suspicion(&client) => {}
                why = self.member.ended() => return Err(why),
            }
        }
    }

    /// Nothing is this member's for certain, until the servers say that it is.
    fn doubt(&mut self) {
        self.news.clear();
        for (partition, held) in std::mem::take(&mut self.held) {
            self.unsettled.insert(partition.clone());
            self.note_lost(partition, &held);
        }
    }

    /// Who never heard that it has a partition need not hear that it is lost.
    fn note_lost(&mut self, partition: String, held: &Held) {
        if held.told != Told::Nothing {
            self.lost.push_back(partition);
        }
    }

    /// The next that is to be told of what is held; `None` also if it has to be looked at before.
    fn news(&mut self) -> Result<Option<Turn>, Error> {
        while let Some(partition) = self.news.front().cloned() {
            let held = self.held.get_mut(&partition);
            let Some((held, news)) = held.and_then(|held| held.news().map(|news| (held, news)))
            else {
                self.news.pop_front();
                continue;
            };
            let lock = child(&self.owners, &partition)?;
            let made_by = self.locks.read(|view| view.get(&lock).map(|node| node.czxid))?;
            if made_by != Some(held.czxid) {
                // It was deleted, or the cache does not show it yet.
                return Ok(None);
            }
            held.told = news;
            let token = Token::from(held.czxid);
            self.news.pop_front();
            return Ok(Some(match news {
                Told::Begin => Turn::Begin { partition, token },
                Told::Nothing | Told::End => Turn::End { partition },
            }));
        }
        Ok(None)
    }

    /// Gives a partition up, after [`Turn::End`] or at any time before: then it is begun again if it is
    /// this member's by its share.
    ///
    /// # Errors
    /// [`Error::Lost`] if it was not this member's any more. After any other error, or if it is
    /// cancelled, it can be released again; if it is gone after all, [`Turn::Lost`] says so.
    pub async fn release(&mut self, partition: &str) -> Result<(), Error> {
        let Some(Held { czxid, .. }) = self.held.get(partition) else {
            return Err(self.lost(partition, Zxid::ZERO));
        };
        let czxid = *czxid;
        let path = child(&self.owners, partition)?;
        let free = self.client.multi().when(&path, Test::CreatedBy(czxid));
        let outcome = free.delete(&path, None).await?;
        self.held.remove(partition);
        if outcome.held { Ok(()) } else { Err(self.lost(partition, czxid)) }
    }

    /// Does these writes if a partition is this member's when they are done.
    ///
    /// # Errors
    /// [`Error::Lost`] if it is not.
    pub async fn guard(&self, partition: &str, multi: Multi<'_>) -> Result<MultiOutcome, Error> {
        let Some(held) = self.held.get(partition) else {
            return Err(self.lost(partition, Zxid::ZERO));
        };
        let stake = Stake { path: child(&self.owners, partition)?, zxid: held.czxid };
        let outcome = multi.guarded_by(&self.client, &[stake]).await?;
        outcome.ok_or_else(|| self.lost(partition, held.czxid))
    }

    /// The partitions that are this member's, in order; none while its session is in doubt.
    pub fn held(&self) -> Vec<&str> {
        if is_suspect(&self.client) {
            return Vec::new();
        }
        self.held.keys().map(String::as_str).collect()
    }

    /// Compares what is with what should be, and does what this member can do.
    async fn look(&mut self) -> Result<(), Error> {
        self.settle().await?;
        // A lock that is held and missing in the cache from here on was deleted.
        self.locks.flush().await?;
        // Each look sees to everything that has changed before it.
        let (members, member_changes) = self.members.follow()?;
        let members: Vec<String> = members.into_keys().collect();
        let shares = divide(&members, &self.partitions);
        let (locks, lock_changes) = self.locks.follow(|view| {
            let lock = |(path, node): (&ZPath, &CachedNode)| (path.name().to_owned(), node.czxid);
            view.iter().map(lock).collect::<BTreeMap<String, Zxid>>()
        })?;
        (self.member_changes, self.lock_changes) = (member_changes, lock_changes);
        let is_lost = |name: &String, held: &Held| locks.get(name) != Some(&held.czxid);
        let lost: Vec<String> = self
            .held
            .iter()
            .filter(|(name, held)| is_lost(name, held))
            .map(|(name, _)| name.clone())
            .collect();
        for partition in lost {
            if let Some(held) = self.held.remove(&partition) {
                self.note_lost(partition, &held);
            }
        }
        self.news.clear();
        for partition in self.partitions.clone() {
            let is_mine = shares.get(&partition).is_some_and(|member| *member == self.name);
            match self.held.get_mut(&partition) {
                // It was taken, or is had again, and is not begun.
                Some(held) if !is_mine && held.told == Told::Nothing => {
                    let (path, mine) = (child(&self.owners, &partition)?, held.czxid);
                    let client = self.client.clone();
                    delete_in_background(&self.runtime, client, path, Test::CreatedBy(mine));
                    self.held.remove(&partition);
                }
                // Members may have changed back before it was released: then it may go on.
                Some(held) => {
                    held.is_mine = is_mine;
                    if held.news().is_some() {
                        self.news.push_back(partition);
                    }
                }
                None if is_mine && !locks.contains_key(&partition) => {
                    self.take(partition).await?;
                }
                None if is_mine => self.check_owner(&partition).await?,
                None => {}
            }
        }
        Ok(())
    }

    /// Finds out which of the partitions are this member's of which it does not know.
    async fn settle(&mut self) -> Result<(), Error> {
        while let Some(partition) = self.unsettled.first().cloned() {
            // Asked after the attempt, and so answered after it.
            match self.client.get(child(&self.owners, &partition)?).await {
                // Another member of the same session may have it.
                Ok(Node { data: Some(owner), stat })
                    if stat.ephemeral_owner == self.client.session()
                        && owner == self.name.as_bytes() =>
                {
                    self.begin(partition.clone(), stat.czxid);
                }
                Err(error) if error.code() != Some(ErrorCode::NoNode) => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
            self.unsettled.remove(&partition);
        }
        Ok(())
    }

    /// Makes sure that who has a partition can give it up: it is a session's.
    async fn check_owner(&self, partition: &str) -> Result<(), Error> {
        let path = child(&self.owners, partition)?;
        match self.client.exists(&path).await? {
            Some(stat) if stat.ephemeral_owner == SessionId::NONE => {
                Err(Error::Foreign { path, recipe: RECIPE })
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn take(&mut self, partition: String) -> Result<(), Error> {
        let path = child(&self.owners, &partition)?;
        self.unsettled.insert(partition.clone());
        let created = self.client.create(path, self.name.clone()).ephemeral().await;
        match created {
            Ok(created) => self.begin(partition.clone(), created.stat.czxid),
            // Its owner has not released it yet, or the cache does not show it yet.
            Err(error) if error.code() == Some(ErrorCode::NodeExists) => {}
            Err(error) => return Err(error.into()),
        }
        self.unsettled.remove(&partition);
        Ok(())
    }

    fn begin(&mut self, partition: String, czxid: Zxid) {
        let held = Held { czxid, is_mine: true, told: Told::Nothing };
        self.held.insert(partition.clone(), held);
        self.news.push_back(partition);
    }

    fn lost(&self, partition: &str, czxid: Zxid) -> Error {
        let path = child(&self.owners, partition).unwrap_or_else(|_| self.owners.clone());
        Error::Lost { path, token: Token::from(czxid), loss: Loss::Deleted }
    }
}

impl Drop for Partitioner {
    fn drop(&mut self) {
        let held = self.held.iter().map(|(name, held)| (name, Test::CreatedBy(held.czxid)));
        // The name is this member's as long as its session lives, so what holds it is, too.
        let unsettled =
            self.unsettled.iter().map(|name| (name, Test::Data(self.name.clone().into())));
        for (partition, mine) in held.chain(unsettled) {
            if let Ok(path) = child(&self.owners, partition) {
                delete_in_background(&self.runtime, self.client.clone(), path, mine);
            }
        }
    }
}

/// Who should have which partition: each the member that it fits best, by a hash, of those who do
/// not have their share yet.
pub fn divide(members: &[String], partitions: &BTreeSet<String>) -> BTreeMap<String, String> {
    let mut shares = BTreeMap::new();
    let most = partitions.len().div_ceil(members.len().max(1));
    let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
    for partition in partitions {
        let fit = |member: &&String| xxh3_64(format!("{member}\u{0}{partition}").as_bytes());
        let has_room = |member: &&String| counts.get(*member).is_none_or(|count| *count < most);
        if let Some(member) = members.iter().filter(has_room).max_by_key(fit) {
            *counts.entry(member).or_default() += 1;
            shares.insert(partition.clone(), member.clone());
        }
    }
    shares
}
