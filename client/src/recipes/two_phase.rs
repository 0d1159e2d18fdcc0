//! Two-phase commit: several participants do something together, or none of them does, whoever dies
//! in between.
//!
//! ```no_run
//! use std::time::Duration;
//! use conclave_client::Client;
//! use conclave_client::recipes::two_phase::{Decision, Task, TwoPhase};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), conclave_client::recipes::Error> {
//! let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
//! let transactions = TwoPhase::new(&client, "/transfers")?;
//!
//! // A participant:
//! let mut participant = transactions.participant("bank-a").await?;
//! tokio::spawn(async move {
//!     loop {
//!         match participant.next().await? {
//!             Task::Prepare(transfer) => participant.vote(&transfer, true).await?,
//!             Task::Commit(transfer) | Task::Abort(transfer) => {
//!                 // Carry it out, or undo it; it may be asked again after a crash.
//!                 participant.done(&transfer).await?;
//!             }
//!         }
//!     }
//!     # #[allow(unreachable_code)]
//!     # Ok::<(), conclave_client::recipes::Error>(())
//! });
//!
//! // The coordinator:
//! let banks = ["bank-a", "bank-b"];
//! let decision = transactions.run("transfer-17", &banks, "10 from a to b", Duration::from_secs(5));
//! if decision.await? == Decision::Commit {
//!     println!("it is, or will be, carried out by both");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! There is one decision for each transaction, made in one write: to commit only if every participant
//! has voted for it, on the condition that nobody has decided before. Every participant is told the
//! decision until it has said that it is [done](Participant::done).
//!
//! - *Dead coordinator*, or one whose [`run`](TwoPhase::run) failed or was dropped: before it has
//!   decided, the participants decide: to commit if all have voted for it, else to abort. After that
//!   nothing depends on it. One that comes back
//!   [runs](TwoPhase::run) the transaction of the same id again and gets the same decision.
//! - *Dead participant*: before its vote, the coordinator aborts at its deadline. After that the
//!   participant is told the decision when it comes back under its name.
//! - *Lost connection, dead leader*: everything goes on; nothing is decided twice.
//! - *Expired session*: of the coordinator: as if it were dead. Of a participant: it makes a new
//!   client, and is told again what it has not said to be done.
//! - *Paused process*: a coordinator that wakes up late finds the decision made, or the transaction
//!   [forgotten](Error::Gone), also if another one has its id by then: what is said of one
//!   transaction never counts for another.
//! - *Two holders by mistake*: two coordinators of one id get the same decision. Two participants of
//!   one name are both told; the first vote counts.
//!
//! # Cost
//!
//! One node for a transaction, one for its coordinator, two for each participant; for each
//! participant two writes, for the coordinator two. Participants have one cache of all transactions,
//! so that those that are over should be [forgotten](TwoPhase::forget).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::request::Test;
use conclave_proto::{Acl, CreateMode, ErrorCode, Stat, WatchKind, ZPath, Zxid};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::Error;
use super::cache::{Cache, CacheChanges, CachedNode, View};
use super::owned::delete_in_background;
use super::place::runtime;
use super::support::{child, ensure, later, own_node};
use super::timer::timeout_at;
use crate::dice::Dice;
use crate::{Client, IntoPath, Multi, Node};

const RECIPE: &str = "two-phase commit";
const COORDINATOR: &str = "coordinator";
const YES: &str = "yes";
const NO: &str = "no";

/// The participants of a transaction, at most.
const PARTICIPANTS: usize = 200;

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// All participants carry it out.
    Commit,
    /// None does.
    Abort,
}

/// A transaction as a participant is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Its id.
    pub id: String,
    /// What it is about.
    pub payload: Bytes,
    /// The transaction of the servers that began it: another one may have the id later.
    made_by: Zxid,
}

/// What a participant is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Make sure that it can be carried out, whatever happens, and [vote](Participant::vote).
    Prepare(Transaction),
    /// Carry it out, and say that it is [done](Participant::done).
    Commit(Transaction),
    /// Undo what was prepared, if it was, and say that it is [done](Participant::done).
    Abort(Transaction),
}

/// The first line of a transaction's node; its payload follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    participants: Vec<String>,
    decision: Option<Decision>,
}

/// A transaction as it is stored.
#[derive(Clone, Debug)]
struct Stored {
    head: Head,
    payload: Bytes,
    made_by: Zxid,
    version: i32,
}

impl Stored {
    fn encode(head: &Head, payload: &Bytes) -> Result<Bytes, Error> {
        let mut data =
            serde_json::to_vec(head).map_err(|error| Error::Config(error.to_string()))?;
        data.push(b'\n');
        data.extend_from_slice(payload);
        Ok(data.into())
    }

    fn decode(path: &ZPath, node: &CachedNode) -> Result<Stored, Error> {
        let malformed = || Error::Malformed {
            path: path.clone(),
            recipe: RECIPE,
            why: "it does not begin with a transaction's participants".into(),
        };
        let data = node.data.as_ref().ok_or_else(malformed)?;
        let end = data.iter().position(|&byte| byte == b'\n').ok_or_else(malformed)?;
        let head = serde_json::from_slice(&data[..end]).map_err(|_| malformed())?;
        let payload = data.slice(end + 1..);
        Ok(Stored { head, payload, made_by: node.czxid, version: node.version })
    }
}

/// The transactions below a node.
#[derive(Clone, Debug)]
pub struct TwoPhase {
    client: Client,
    /// What drives the tasks that outlive their callers.
    runtime: Handle,
    root: ZPath,
}

impl TwoPhase {
    /// The transactions below that node, which need not exist. Nothing else may be below it.
    ///
    /// # Errors
    /// If it is not a path, or is the root, or the caller is not in a tokio runtime.
    pub fn new(client: &Client, path: impl IntoPath) -> Result<TwoPhase, Error> {
        let root = own_node(path, RECIPE)?;
        Ok(TwoPhase { client: client.clone(), runtime: runtime(RECIPE)?, root })
    }

    /// Begins a transaction, waits for the votes, and decides; or finds out what was decided, if
    /// there is one of that id already. It is aborted if votes are missing after `time`.
    ///
    /// If the caller does not wait for the end of this, that is as if the coordinator were dead: the
    /// participants decide.
    ///
    /// # Errors
    /// [`Error::Config`] if participants are missing or named twice, [`Error::Name`] if a name cannot
    /// be used. Any other error leaves it to the participants: run it again to be told.
    pub async fn run(
        &self,
        id: &str,
        participants: &[&str],
        payload: impl Into<Bytes>,
        time: Duration,
    ) -> Result<Decision, Error> {
        let deadline = later(Instant::now(), time);
        let path = child(&self.root, id)?;
        let mut coordinator = Coordinator::of(self, &path)?;
        let made = self.make(&path, participants, payload.into(), coordinator.tag.clone());
        let mut made_by = made.await?;
        // Votes that are missing at the deadline count against it.
        let votes = self.votes_of(&path, &mut made_by);
        timeout_at(&self.client, deadline, votes).await.unwrap_or(Ok(()))?;
        let decision = self.decision_of(&path, made_by).await?;
        coordinator.has_decided = true;
        Ok(decision)
    }

    /// Begins a transaction, unless there is one of that id already. Until this client's session
    /// ends, the participants wait for somebody to [decide](TwoPhase::decide).
    ///
    /// # Errors
    /// As [`run`](TwoPhase::run).
    pub async fn begin(
        &self,
        id: &str,
        participants: &[&str],
        payload: impl Into<Bytes>,
    ) -> Result<(), Error> {
        let path = child(&self.root, id)?;
        self.make(&path, participants, payload.into(), Bytes::new()).await.map(drop)
    }

    /// Begins a transaction and says which one it is; `None` if there is one of that id already.
    async fn make(
        &self,
        path: &ZPath,
        participants: &[&str],
        payload: Bytes,
        tag: Bytes,
    ) -> Result<Option<Zxid>, Error> {
        let names: BTreeSet<&str> = participants.iter().copied().collect();
        if names.is_empty() || names.len() != participants.len() || names.len() > PARTICIPANTS {
            return Err(Error::Config(format!(
                "a transaction has 1 to {PARTICIPANTS} participants, each named once"
            )));
        }
        for name in participants {
            vote_of(path, name)?;
        }
        let participants = participants.iter().map(|name| (*name).to_owned()).collect();
        let head = Head { participants, decision: None };
        let data = Stored::encode(&head, &payload)?;
        let coordinator = child(path, COORDINATOR)?;
        loop {
            let begin = self.client.multi().create(path, data.clone());
            let mode = CreateMode::EPHEMERAL;
            let begin = begin.create_with(&coordinator, tag.clone(), mode, Acl::open());
            match begin.await {
                Ok(outcome) => return Ok(Some(outcome.zxid)),
                Err(error) if error.code() == Some(ErrorCode::NodeExists) => return Ok(None),
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                    ensure(&self.client, &self.root).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until all that is needed to [decide](TwoPhase::decide) is there: everybody's vote, or
    /// one against it.
    ///
    /// # Errors
    /// [`Error::Gone`] if there is no such transaction. Any other error leaves it open.
    pub async fn all_votes(&self, id: &str) -> Result<(), Error> {
        self.votes_of(&child(&self.root, id)?, &mut None).await
    }

    /// Waits for the votes of one transaction, which is that of the first look if it is not given.
    async fn votes_of(&self, path: &ZPath, made_by: &mut Option<Zxid>) -> Result<(), Error> {
        let mut watch = self.client.watch(path, WatchKind::PersistentRecursive).await?;
        loop {
            let stored = self.same(path, made_by).await?;
            if stored.head.decision.is_some() {
                return Ok(());
            }
            let votes = self.votes(path, &stored).await?;
            if votes.values().any(|vote| !vote) || votes.len() == stored.head.participants.len() {
                return Ok(());
            }
            watch.next().await.transpose()?;
        }
    }

    /// Decides now: to commit if everybody has voted for it, else to abort. If somebody has decided
    /// before, that is the decision.
    ///
    /// # Errors
    /// [`Error::Gone`] if there is no such transaction. Any other error leaves it open.
    pub async fn decide(&self, id: &str) -> Result<Decision, Error> {
        self.decision_of(&child(&self.root, id)?, None).await
    }

    /// Decides one transaction, which is that of the first look if it is not given.
    async fn decision_of(
        &self,
        path: &ZPath,
        mut made_by: Option<Zxid>,
    ) -> Result<Decision, Error> {
        loop {
            let stored = self.same(path, &mut made_by).await?;
            if let Some(decision) = stored.head.decision {
                return Ok(decision);
            }
            let votes = self.votes(path, &stored).await?;
            let all = votes.len() == stored.head.participants.len() && votes.values().all(|v| *v);
            let decision = if all { Decision::Commit } else { Decision::Abort };
            if self.enact(self.client.multi(), path, &stored, decision).await? {
                return Ok(decision);
            }
            self.client.sync().await?;
        }
    }

    /// Writes the decision if it is the same transaction and has none yet. To commit, also on the
    /// condition that all votes are there, so that no error of ours can make it otherwise.
    async fn enact(
        &self,
        multi: Multi<'_>,
        path: &ZPath,
        stored: &Stored,
        decision: Decision,
    ) -> Result<bool, Error> {
        let head = Head { decision: Some(decision), ..stored.head.clone() };
        let mut multi = multi
            .when(path, Test::CreatedBy(stored.made_by))
            .when(path, Test::Version(stored.version));
        if decision == Decision::Commit {
            for name in &stored.head.participants {
                multi = multi.when(vote_of(path, name)?, Test::Data(YES.into()));
            }
        }
        let data = Stored::encode(&head, &stored.payload)?;
        match multi.set(path, data, None).await {
            Ok(outcome) => Ok(outcome.held),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                Err(Error::Gone { path: path.clone() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The decision, if it is made.
    ///
    /// # Errors
    /// [`Error::Gone`] if there is no such transaction.
    pub async fn decision(&self, id: &str) -> Result<Option<Decision>, Error> {
        Ok(self.stored(&child(&self.root, id)?).await?.head.decision)
    }

    /// Removes a transaction that every participant is done with. False if that is not so yet.
    ///
    /// # Errors
    /// [`Error::Foreign`] if there is a node below it that nobody of the recipe has made; if no server
    /// confirms it.
    pub async fn forget(&self, id: &str) -> Result<bool, Error> {
        let path = child(&self.root, id)?;
        loop {
            match self.try_forget(&path).await {
                Err(Error::Gone { .. }) => return Ok(true),
                // The coordinator's node went with its session, or all with somebody else's call.
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {}
                outcome => return outcome,
            }
        }
    }

    async fn try_forget(&self, path: &ZPath) -> Result<bool, Error> {
        let stored = self.stored(path).await?;
        let names = self.client.children(path).linearizable().await?;
        let names: BTreeSet<String> = names.into_iter().collect();
        let is_done = |name: &String| names.contains(&done(name));
        if stored.head.decision.is_none() || !stored.head.participants.iter().all(is_done) {
            return Ok(false);
        }
        let parts = stored.head.participants.iter();
        let own: BTreeSet<String> = parts.flat_map(|name| [vote(name), done(name)]).collect();
        let is_foreign = |name: &&String| !own.contains(*name) && *name != COORDINATOR;
        if let Some(name) = names.iter().find(is_foreign) {
            return Err(Error::Foreign { path: child(path, name)?, recipe: RECIPE });
        }
        // Only the very transaction that was looked at: if somebody else has forgotten it, another
        // one may have its id.
        let mut multi = self.client.multi().when(path, Test::CreatedBy(stored.made_by));
        for name in &names {
            multi = multi.delete(child(path, name)?, None);
        }
        multi.delete(path, None).await?;
        Ok(true)
    }

    /// Takes part under this name.
    ///
    /// # Errors
    /// If the name cannot be used, or the transactions cannot be read.
    pub async fn participant(&self, name: &str) -> Result<Participant, Error> {
        vote_of(&self.root, name)?;
        let cache = Cache::tree(&self.client, &self.root).await?;
        Ok(Participant {
            transactions: self.clone(),
            name: name.to_owned(),
            changes: cache.changes()?,
            cache,
            told: BTreeMap::new(),
            malformed: BTreeSet::new(),
            ready: VecDeque::new(),
        })
    }

    async fn stored(&self, path: &ZPath) -> Result<Stored, Error> {
        match self.client.get(path).linearizable().await {
            Ok(Node { data, stat }) => Stored::decode(path, &CachedNode::new(data, &stat)),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                Err(Error::Gone { path: path.clone() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The transaction that is given, or the one that is there, which is it from now on.
    async fn same(&self, path: &ZPath, made_by: &mut Option<Zxid>) -> Result<Stored, Error> {
        let stored = self.stored(path).await?;
        if *made_by.get_or_insert(stored.made_by) == stored.made_by {
            Ok(stored)
        } else {
            Err(Error::Gone { path: path.clone() })
        }
    }

    async fn votes(&self, path: &ZPath, stored: &Stored) -> Result<BTreeMap<String, bool>, Error> {
        let page = self.client.list(path).with_data().linearizable().await?;
        let cast = |name: &String| {
            let node = vote(name);
            let entry = page.entries.iter().find(|entry| entry.name == node)?;
            Some((name.clone(), entry.data.as_deref() == Some(YES.as_bytes())))
        };
        Ok(stored.head.participants.iter().filter_map(cast).collect())
    }
}

/// The node that says that somebody is going to decide a transaction. Dropped before that is so, it
/// is deleted, and the participants decide.
struct Coordinator {
    client: Client,
    runtime: Handle,
    path: ZPath,
    /// What is in the node if this one has made it: it may be that nobody knows whether it has.
    tag: Bytes,
    has_decided: bool,
}

impl Coordinator {
    fn of(transactions: &TwoPhase, path: &ZPath) -> Result<Coordinator, Error> {
        let TwoPhase { client, runtime, .. } = transactions.clone();
        let tag = format!("{}-{:016x}", client.session(), Dice::default().up_to(u64::MAX)).into();
        let path = child(path, COORDINATOR)?;
        Ok(Coordinator { client, runtime, path, tag, has_decided: false })
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        if !self.has_decided {
            let mine = Test::Data(self.tag.clone());
            delete_in_background(&self.runtime, self.client.clone(), self.path.clone(), mine);
        }
    }
}

fn vote_of(path: &ZPath, name: &str) -> Result<ZPath, Error> {
    child(path, name).and_then(|_| child(path, &vote(name)))
}

fn done_of(path: &ZPath, name: &str) -> Result<ZPath, Error> {
    child(path, &done(name))
}

/// What the node of a participant's vote is called.
fn vote(name: &str) -> String {
    format!("vote.{name}")
}

/// What the node is called that says that a participant is done.
fn done(name: &str) -> String {
    format!("done.{name}")
}

/// Somebody who takes part in transactions.
pub struct Participant {
    transactions: TwoPhase,
    name: String,
    cache: Cache,
    changes: CacheChanges,
    /// How far each transaction was told: to prepare, or the decision.
    told: Told,
    /// The nodes that are no transactions, and were told to be: by name, as they were then.
    malformed: BTreeSet<(String, Zxid)>,
    /// What is to be told.
    ready: VecDeque<Result<Task, Error>>,
}

/// By id, and by the transaction of the servers that began it.
type Told = BTreeMap<(String, Zxid), Option<Decision>>;

/// What a look at the transactions finds to do.
enum Found {
    Task(Transaction, Option<Decision>),
    /// Its coordinator is gone, and it is not decided.
    Orphan(String),
}

impl Participant {
    /// What to do next, as soon as there is something. After a crash, everything that was not said
    /// to be done is told again.
    ///
    /// # Errors
    /// If the session is over; [`Error::Malformed`], once, for a transaction that was edited by hand,
    /// or a node that is none; [`Error::Gone`], once, for one that was deleted by hand before it was
    /// decided: what was prepared for it is to be taken back. The others follow.
    pub async fn next(&mut self) -> Result<Task, Error> {
        loop {
            if let Some(told) = self.ready.pop_front() {
                return told;
            }
            self.look().await?;
            if self.ready.is_empty() {
                self.changes.next().await.transpose()?;
            }
        }
    }

    /// Votes for a transaction or against it. A vote against it may be followed by the decision at
    /// once; a vote that comes after the decision does not count.
    ///
    /// # Errors
    /// [`Error::Gone`] if somebody has deleted the transaction; if no server confirms it.
    pub async fn vote(&self, transaction: &Transaction, is_for: bool) -> Result<(), Error> {
        let path = child(&self.transactions.root, &transaction.id)?;
        let vote = vote_of(&path, &self.name)?;
        let client = &self.transactions.client;
        // The first vote counts, and none after the decision, which changes the version.
        let multi = client
            .multi()
            .when(&path, Test::CreatedBy(transaction.made_by))
            .when(&path, Test::Version(0))
            .when(&vote, Test::Missing);
        let counts = multi.create(&vote, if is_for { YES } else { NO }).await?.held;
        let is_it = |stat: Stat| stat.czxid == transaction.made_by;
        if !counts && !client.exists(&path).await?.is_some_and(is_it) {
            return Err(Error::Gone { path });
        }
        Ok(())
    }

    /// Says that the decision is carried out: it is told no more.
    ///
    /// # Errors
    /// If no server confirms it.
    pub async fn done(&mut self, transaction: &Transaction) -> Result<(), Error> {
        let path = child(&self.transactions.root, &transaction.id)?;
        let done = done_of(&path, &self.name)?;
        // If it is another transaction by now, this one is forgotten: all were done already, this
        // one under its name, too.
        let multi = self.transactions.client.multi();
        let multi = multi
            .when(&path, Test::CreatedBy(transaction.made_by))
            .when(&done, Test::Missing)
            .create(&done, "");
        multi.await?;
        Ok(())
    }

    async fn look(&mut self) -> Result<(), Error> {
        // Each look sees to everything that has changed before it.
        let (orphans, changes) = self.cache.clone().follow(|view| {
            self.forget_gone(view);
            self.find_all(view)
        })?;
        self.changes = changes;
        if orphans.is_empty() {
            return Ok(());
        }
        for id in orphans {
            self.settle(&id).await?;
        }
        // The decision is in the cache at the next look.
        self.cache.flush().await
    }

    /// Forgets the transactions that are not there any more. One with a decision is forgotten when
    /// all have done what it says; of any other one is told.
    fn forget_gone(&mut self, view: &View) {
        let root = &self.transactions.root;
        let is_there = |(id, made_by): &(String, Zxid)| {
            let node = child(root, id).ok().and_then(|path| view.get(&path));
            node.is_some_and(|node| node.czxid == *made_by)
        };
        for ((id, _), decision) in self.told.extract_if(.., |one, _| !is_there(one)) {
            if decision.is_none() {
                self.ready.push_back(child(root, &id).and_then(|path| Err(Error::Gone { path })));
            }
        }
    }

    /// Finds what is to be told. Answer: the transactions whose coordinators are gone.
    fn find_all(&mut self, view: &View) -> Vec<String> {
        let (mut orphans, mut malformed) = (Vec::new(), BTreeSet::new());
        for (id, node) in view.children(&self.transactions.root) {
            match find(view, &self.transactions.root, id, &self.name, &self.told) {
                Ok(None) => {}
                Ok(Some(Found::Orphan(id))) => orphans.push(id),
                Ok(Some(Found::Task(transaction, decision))) => {
                    self.told.insert((transaction.id.clone(), transaction.made_by), decision);
                    self.ready.push_back(Ok(match decision {
                        None => Task::Prepare(transaction),
                        Some(Decision::Commit) => Task::Commit(transaction),
                        Some(Decision::Abort) => Task::Abort(transaction),
                    }));
                }
                Err(error) => {
                    let edit = (id.to_owned(), node.mzxid);
                    if !self.malformed.contains(&edit) {
                        self.ready.push_back(Err(error));
                    }
                    malformed.insert(edit);
                }
            }
        }
        self.malformed = malformed;
        orphans
    }

    /// Decides in the place of a coordinator that is gone.
    async fn settle(&self, id: &str) -> Result<(), Error> {
        let path = child(&self.transactions.root, id)?;
        let coordinator = child(&path, COORDINATOR)?;
        let stored = match self.transactions.stored(&path).await {
            // The next look tells of it.
            Err(Error::Gone { .. } | Error::Malformed { .. }) => return Ok(()),
            stored => stored?,
        };
        if stored.head.decision.is_some() {
            return Ok(());
        }
        let votes = self.transactions.votes(&path, &stored).await?;
        let all = votes.len() == stored.head.participants.len() && votes.values().all(|v| *v);
        let decision = if all { Decision::Commit } else { Decision::Abort };
        let client = self.transactions.client.clone();
        let multi = client.multi().when(&coordinator, Test::Missing);
        match self.transactions.enact(multi, &path, &stored, decision).await {
            Ok(_) | Err(Error::Gone { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// What one transaction asks of a participant and was not told yet.
fn find(
    view: &View,
    root: &ZPath,
    id: &str,
    name: &str,
    told: &Told,
) -> Result<Option<Found>, Error> {
    let path = child(root, id)?;
    let Some(node) = view.get(&path) else { return Ok(None) };
    let Stored { head, payload, made_by, .. } = Stored::decode(&path, node)?;
    if !head.participants.iter().any(|participant| participant == name)
        || view.get(&done_of(&path, name)?).is_some()
    {
        return Ok(None);
    }
    let has_voted = view.get(&vote_of(&path, name)?).is_some();
    if head.decision.is_none() && view.get(&child(&path, COORDINATOR)?).is_none() {
        return Ok(Some(Found::Orphan(id.to_owned())));
    }
    let was_told = told.get(&(id.to_owned(), made_by)) == Some(&head.decision);
    if was_told || (head.decision.is_none() && has_voted) {
        return Ok(None);
    }
    Ok(Some(Found::Task(Transaction { id: id.to_owned(), payload, made_by }, head.decision)))
}
