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
//! - *Lost connection, dead leader*: what is owned stays, as long as the session lives.
//! - *Expired session*: [`Partitioner::next`] fails; others have the partitions when the servers
//!   end the session.
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

use conclave_proto::{ErrorCode, ZPath, Zxid};
use xxhash_rust::xxh3::xxh3_64;

use super::cache::{Cache, CacheChanges};
use super::members::{Group, KeptNode, MemberChanges, Members};
use super::support::{child, ensure};
use super::{Error, Loss, Token};
use crate::chroot::IntoPath;
use crate::{Client, Multi, MultiOutcome, Test};

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
    /// It is not this member's any more: somebody deleted its lock.
    Lost {
        /// Which one.
        partition: String,
    },
}

/// This member's share of the partitions. Dropping it leaves the group and gives them up.
pub struct Partitioner {
    client: Client,
    owners: ZPath,
    name: String,
    partitions: BTreeSet<String>,
    member: KeptNode,
    members: Members,
    member_changes: MemberChanges,
    locks: Cache,
    lock_changes: CacheChanges,
    held: BTreeMap<String, Held>,
    turns: VecDeque<Turn>,
}

struct Held {
    czxid: Zxid,
    is_asked_back: bool,
}

impl Partitioner {
    /// Becomes a member under this name.
    ///
    /// # Errors
    /// [`Error::Name`] if a name cannot be part of a path, [`Error::Taken`] if another session has
    /// it, [`Error::Config`] if there are no partitions.
    pub async fn join(
        client: &Client,
        path: impl IntoPath,
        name: &str,
        partitions: impl IntoIterator<Item = String>,
    ) -> Result<Partitioner, Error> {
        let path = path.into_path()?;
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
            owners,
            name: name.to_owned(),
            partitions,
            member,
            member_changes: members.changes()?,
            members,
            lock_changes: locks.changes()?,
            locks,
            held: BTreeMap::new(),
            turns: VecDeque::new(),
        })
    }

    /// What to do next, as soon as there is something.
    ///
    /// # Errors
    /// If the session is over: nothing is this member's any more.
    pub async fn next(&mut self) -> Result<Turn, Error> {
        loop {
            if let Some(turn) = self.turns.pop_front() {
                return Ok(turn);
            }
            self.look().await?;
            if !self.turns.is_empty() {
                continue;
            }
            tokio::select! {
                change = self.member_changes.next() => drop(change.transpose()?),
                change = self.lock_changes.next() => drop(change.transpose()?),
                why = self.member.ended() => return Err(why),
            }
        }
    }

    /// Gives a partition up, after [`Turn::End`] or at any time before.
    ///
    /// # Errors
    /// [`Error::Lost`] if it was not this member's any more.
    pub async fn release(&mut self, partition: &str) -> Result<(), Error> {
        let Some(held) = self.held.remove(partition) else {
            return Err(self.lost(partition, Zxid::ZERO));
        };
        let path = child(&self.owners, partition)?;
        let free = self.client.multi().when(&path, Test::CreatedBy(held.czxid));
        let outcome = free.delete(&path, None).await?;
        if outcome.held { Ok(()) } else { Err(self.lost(partition, held.czxid)) }
    }

    /// Does these writes if a partition is this member's when they are done.
    ///
    /// # Errors
    /// [`Error::Lost`] if it is not.
    pub async fn guard(&self, partition: &str, multi: Multi<'_>) -> Result<MultiOutcome, Error> {
        let Some(held) = self.held.get(partition) else {
            return Err(self.lost(partition, Zxid::ZERO));
        };
        let path = child(&self.owners, partition)?;
        let outcome = multi.when(path, Test::CreatedBy(held.czxid)).await?;
        if outcome.held { Ok(outcome) } else { Err(self.lost(partition, held.czxid)) }
    }

    /// The partitions that are this member's, in order.
    pub fn held(&self) -> Vec<&str> {
        self.held.keys().map(String::as_str).collect()
    }

    /// Compares what is with what should be, and does what this member can do.
    async fn look(&mut self) -> Result<(), Error> {
        let shares = divide(&self.members.names()?, &self.partitions);
        let locks: BTreeMap<String, Zxid> = self.locks.read(|view| {
            view.iter().map(|(path, node)| (path.name().to_owned(), node.czxid)).collect()
        })?;
        // The cache has come as far as the creation of every lock that is held.
        let is_lost = |name: &String, held: &Held| locks.get(name) != Some(&held.czxid);
        let lost: Vec<String> = self
            .held
            .iter()
            .filter(|(name, held)| is_lost(name, held))
            .map(|(name, _)| name.clone())
            .collect();
        for partition in lost {
            self.held.remove(&partition);
            self.turns.push_back(Turn::Lost { partition });
        }
        for partition in self.partitions.clone() {
            let is_mine = shares.get(&partition).is_some_and(|member| *member == self.name);
            match self.held.get_mut(&partition) {
                Some(held) if !is_mine && !held.is_asked_back => {
                    held.is_asked_back = true;
                    self.turns.push_back(Turn::End { partition });
                }
                // Members changed back before it was released: it may go on.
                Some(held) if is_mine && held.is_asked_back => {
                    held.is_asked_back = false;
                    let token = Token::from(held.czxid);
                    self.turns.push_back(Turn::Begin { partition, token });
                }
                Some(_) => {}
                None if is_mine && !locks.contains_key(&partition) => {
                    self.take(partition).await?;
                }
                None => {}
            }
        }
        Ok(())
    }

    async fn take(&mut self, partition: String) -> Result<(), Error> {
        let path = child(&self.owners, &partition)?;
        match self.client.create(path, self.name.clone()).ephemeral().await {
            Ok(created) => {
                let czxid = created.stat.czxid;
                // From here on the lock's absence in the cache means that it was deleted.
                self.locks.flush().await?;
                self.held.insert(partition.clone(), Held { czxid, is_asked_back: false });
                self.turns.push_back(Turn::Begin { partition, token: Token::from(czxid) });
                Ok(())
            }
            // Its owner has not released it yet, or the cache does not show it yet.
            Err(error) if error.code() == Some(ErrorCode::NodeExists) => self.locks.flush().await,
            Err(error) => Err(error.into()),
        }
    }

    fn lost(&self, partition: &str, czxid: Zxid) -> Error {
        let path = child(&self.owners, partition).unwrap_or_else(|_| self.owners.clone());
        Error::Lost { path, token: Token::from(czxid), loss: Loss::Deleted }
    }
}

impl Drop for Partitioner {
    fn drop(&mut self) {
        for (partition, held) in &self.held {
            if let Ok(path) = child(&self.owners, partition) {
                // What does not arrive goes with the session.
                let free = self.client.multi().when(&path, Test::CreatedBy(held.czxid));
                drop(free.delete(&path, None).send());
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
