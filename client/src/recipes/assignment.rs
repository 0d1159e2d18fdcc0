//! Work assignment: an assigner gives each task to one live worker, and to another when that one is
//! gone.
//!
//! ```no_run
//! use conclave_client::Client;
//! use conclave_client::recipes::Election;
//! use conclave_client::recipes::assignment::{Order, Work};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), conclave_client::recipes::Error> {
//! let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
//! let work = Work::new(&client, "/work")?;
//! work.submit("resize-17", "photo 17").await?;
//!
//! // Each worker may also be the assigner, when it is elected.
//! let election = Election::new(&client, "/work-election")?;
//! let assigner = work.clone();
//! tokio::spawn(async move {
//!     let leadership = election.campaign("").await?;
//!     assigner.assign(&leadership).await
//! });
//!
//! let mut worker = work.worker("worker-7").await?;
//! loop {
//!     match worker.next().await? {
//!         Order::Begin(task) => {
//!             println!("{}: {:?}", task.id, task.data);
//!             worker.done(&task).await?;
//!         }
//!         Order::Stop(id) => println!("{id} is another's now, or was taken back"),
//!     }
//! }
//! # }
//! ```
//!
//! # Guarantees
//!
//! A task that was submitted is given to a live worker until one has [done](Worker::done) it: at
//! least once. It is one worker's at a time, by the order of history; `done` fails for all others.
//! Tasks go to whoever has the fewest. The assigner does nothing any more once its leadership is
//! lost: each of its writes is guarded by it.
//!
//! - *Lost connection, dead leader of the servers*: everything goes on.
//! - *Dead assigner*: what is assigned goes on; the next assigner sees to the rest.
//! - *Expired session* of a worker: its tasks go to others. When it is no longer alive for certain, a
//!   tenth of the session timeout before that can happen, [`Worker::next`] tells the worker to stop with
//!   each of them, though no server can be asked; if it turns out to be alive, to begin again, with the
//!   same tokens. When a server says that it is over, `next` fails.
//! - *Paused process*: a worker that wakes up late is told to stop, and cannot say that a task is
//!   done that is another's; what it does elsewhere should bear to be done twice.
//! - *Two holders by mistake*: possible only as above.
//! - *A task or assignment deleted by hand*: [`Order::Stop`]; a task without assignment is assigned.
//!
//! # Cost
//!
//! Two nodes for each task, one for each worker; four writes for a task. Everybody has a cache of the
//! assignments, the assigner of the tasks and workers, too; a worker reads each of its tasks.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use conclave_proto::request::Test;
use conclave_proto::{ErrorCode, ZPath, Zxid};

use super::cache::{Cache, View};
use super::doubt::{certainty, is_suspect, suspicion};
use super::members::{GROUP, Group, KeptNode};
use super::support::{child, ensure, own_node};
use super::{Error, Leadership, Loss, Token};
use crate::{Client, IntoPath};

const RECIPE: &str = "work assignment";

/// The tasks below a node, and who does them.
#[derive(Clone, Debug)]
pub struct Work {
    client: Client,
    tasks: ZPath,
    workers: ZPath,
    assigned: ZPath,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its id.
    pub id: String,
    /// What was submitted.
    pub data: Bytes,
    /// The fencing token: greater each time the task is assigned.
    pub token: Token,
}

/// What a worker is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Begin with a task.
    Begin(Task),
    /// Stop with the task of this id: it is not this worker's any more, as far as is known. It is
    /// another's, or was taken back, or the session is no longer alive for certain.
    Stop(String),
}

impl Work {
    /// The tasks below that node, which need not exist. Nothing else may be below it.
    ///
    /// # Errors
    /// If it is not a path, or is the root.
    pub fn new(client: &Client, path: impl IntoPath) -> Result<Work, Error> {
        let root = own_node(path, RECIPE)?;
        let [tasks, workers, assigned] =
            ["tasks", "workers", "assigned"].map(|name| child(&root, name));
        Ok(Work { client: client.clone(), tasks: tasks?, workers: workers?, assigned: assigned? })
    }

    /// Submits a task. False if there is one of that id already.
    ///
    /// # Errors
    /// [`Error::Name`] if the id cannot be part of a path; if no server confirms it.
    pub async fn submit(&self, id: &str, data: impl Into<Bytes>) -> Result<bool, Error> {
        let (path, data) = (child(&self.tasks, id)?, data.into());
        loop {
            match self.client.create(&path, data.clone()).await {
                Ok(_) => return Ok(true),
                Err(error) if error.code() == Some(ErrorCode::NodeExists) => return Ok(false),
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                    ensure(&self.client, &self.tasks).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The ids of all tasks that are not done.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn open(&self) -> Result<Vec<String>, Error> {
        match self.client.children(&self.tasks).linearizable().await {
            Ok(names) => Ok(names),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes a task back. True if it was there.
    ///
    /// # Errors
    /// If no server confirms it.
    pub async fn cancel(&self, id: &str) -> Result<bool, Error> {
        // The assigner takes the assignment away.
        match self.client.delete(child(&self.tasks, id)?).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives tasks to workers for as long as the leadership is held. Comes back with an error only.
    ///
    /// # Errors
    /// [`Error::Lost`] when the leadership is; [`Error::Foreign`] if there is, or comes, a worker that is
    /// no session's, and would have tasks for ever, or an assignment to nobody, which no assigner makes;
    /// if the session is over.
    pub async fn assign(&self, leadership: &Leadership) -> Result<(), Error> {
        for path in [&self.tasks, &self.workers, &self.assigned] {
            ensure(&self.client, path).await?;
        }
        let tasks = Cache::children(&self.client, &self.tasks).without_data().await?;
        let workers = Cache::children(&self.client, &self.workers);
        let workers = workers.without_data().of_sessions(GROUP).await?;
        let assigned = Cache::children(&self.client, &self.assigned).await?;
        loop {
            for cache in [&tasks, &workers, &assigned] {
                cache.flush().await?;
            }
            // Each pass sees to everything that has changed before it.
            let (tasks, mut task) = tasks.follow(names)?;
            let (workers, mut worker) = workers.follow(names)?;
            let (assigned, mut assignment) = assigned.follow(owners)?;
            self.assign_once(leadership, State { tasks, workers, assigned }).await?;
            tokio::select! {
                change = task.next() => drop(change.transpose()?),
                change = worker.next() => drop(change.transpose()?),
                change = assignment.next() => drop(change.transpose()?),
                loss = leadership.lost() => return Err(self.lost_leadership(leadership, loss)),
            }
        }
    }

    async fn assign_once(&self, leadership: &Leadership, state: State) -> Result<(), Error> {
        let State { tasks, workers, assigned } = state;
        let mut load: BTreeMap<&String, usize> = workers.iter().map(|worker| (worker, 0)).collect();
        let mut open: BTreeSet<&String> = BTreeSet::new();
        for task in &tasks {
            if let Some(load) = assigned.get(task).and_then(|(worker, _)| load.get_mut(worker)) {
                *load += 1;
            } else {
                open.insert(task);
            }
        }
        for (task, (worker, czxid)) in &assigned {
            if worker.is_empty() {
                let path = child(&self.assigned, task)?;
                return Err(Error::Foreign { path, recipe: RECIPE });
            }
            if !tasks.contains(task) || open.contains(task) {
                let path = child(&self.assigned, task)?;
                let away = self.client.multi().when(&path, Test::CreatedBy(*czxid));
                guarded(leadership, away.delete(&path, None)).await?;
            }
        }
        for task in open {
            let Some((worker, count)) = load.iter_mut().min_by_key(|(_, count)| **count) else {
                return Ok(());
            };
            let path = child(&self.assigned, task)?;
            let give = self
                .client
                .multi()
                .when(child(&self.tasks, task)?, Test::Exists)
                .when(&path, Test::Missing)
                .create(&path, worker.as_bytes().to_vec());
            if guarded(leadership, give).await? {
                *count += 1;
            }
        }
        Ok(())
    }

    fn lost_leadership(&self, leadership: &Leadership, loss: Loss) -> Error {
        Error::Lost { path: self.tasks.clone(), token: leadership.token(), loss }
    }

    /// Works, under this name.
    ///
    /// # Errors
    /// [`Error::Taken`] if another session has the name.
    pub async fn worker(&self, name: &str) -> Result<Worker, Error> {
        ensure(&self.client, &self.assigned).await?;
        let cache = Cache::children(&self.client, &self.assigned).await?;
        let member = Group::new(&self.client, &self.workers)?.join(name, "").await?;
        let (work, name) = (self.clone(), name.to_owned());
        let worker = Worker { work, name, member, cache, begun: BTreeMap::new() };
        worker.inherit().await?;
        Ok(worker)
    }
}

/// Does these writes under the leadership. False if a condition did not hold.
async fn guarded(leadership: &Leadership, multi: crate::Multi<'_>) -> Result<bool, Error> {
    leadership.guard(multi).await.map(|outcome| outcome.held)
}

struct State {
    tasks: BTreeSet<String>,
    workers: BTreeSet<String>,
    /// The worker of each task, and the assignment's transaction.
    assigned: BTreeMap<String, (String, Zxid)>,
}

fn names(view: &View) -> BTreeSet<String> {
    view.iter().map(|(path, _)| path.name().to_owned()).collect()
}

fn owners(view: &View) -> BTreeMap<String, (String, Zxid)> {
    view.iter()
        .map(|(path, node)| {
            // One by hand that names nobody is given to somebody else.
            let worker = String::from_utf8_lossy(node.bytes()).into_owned();
            (path.name().to_owned(), (worker, node.czxid))
        })
        .collect()
}

/// The tasks that are a worker's, and the transactions of their assignments.
fn mine(view: &View, worker: &str) -> BTreeMap<String, Zxid> {
    view.iter()
        .filter(|(_, node)| node.bytes() == worker.as_bytes())
        .map(|(path, node)| (path.name().to_owned(), node.czxid))
        .collect()
}

/// Somebody who does tasks. Dropping it lets others have them.
#[derive(Debug)]
pub struct Worker {
    work: Work,
    name: String,
    member: KeptNode,
    cache: Cache,
    /// The tasks that were begun, and the transactions of their assignments.
    begun: BTreeMap<String, Zxid>,
}

impl Worker {
    /// What was assigned to an earlier session of the same name, and was not given to anybody else
    /// yet, is assigned anew: its token must not be one that a process of that session may have.
    async fn inherit(&self) -> Result<(), Error> {
        self.cache.flush().await?;
        for (task, czxid) in self.cache.read(|view| mine(view, &self.name))? {
            let path = child(&self.work.assigned, &task)?;
            let again = self.work.client.multi().when(&path, Test::CreatedBy(czxid));
            again.delete(&path, None).create(&path, self.name.clone()).await?;
        }
        // So that no assignment is shown that is not there any more.
        self.cache.flush().await
    }

    /// What to do next, as soon as there is something: of several tasks the one that was assigned first.
    ///
    /// # Errors
    /// If the session is over: stop everything.
    pub async fn next(&mut self) -> Result<Order, Error> {
        loop {
            if self.work.client.state().is_final() {
                return Err(self.member.ended().await);
            }
            if is_suspect(&self.work.client) {
                if let Some((task, _)) = self.begun.pop_first() {
                    return Ok(Order::Stop(task));
                }
                tokio::select! {
                    () = certainty(&self.work.client) => continue,
                    why = self.member.ended() => return Err(why),
                }
            }
            let (mine, mut changes) = self.cache.follow(|view| mine(view, &self.name))?;
            let ended = self.begun.iter().find(|(task, czxid)| mine.get(*task) != Some(czxid));
            if let Some(task) = ended.map(|(task, _)| task.clone()) {
                self.begun.remove(&task);
                return Ok(Order::Stop(task));
            }
            let new = mine.into_iter().filter(|(id, _)| !self.begun.contains_key(id));
            // By age: otherwise one with a late id would wait for all that come after it.
            let mut new: Vec<(String, Zxid)> = new.collect();
            new.sort_by_key(|(_, czxid)| *czxid);
            let begun = tokio::select! {
                biased;
                task = self.begin(new) => task?,
                () = suspicion(&self.work.client) => continue,
            };
            if let Some(task) = begun {
                self.begun.insert(task.id.clone(), task.token.zxid());
                return Ok(Order::Begin(task));
            }
            tokio::select! {
                change = changes.next() => drop(change.transpose()?),
                () = suspicion(&self.work.client) => {}
                why = self.member.ended() => return Err(why),
            }
        }
    }

    /// Reads the first of the tasks that is there.
    async fn begin(&self, tasks: Vec<(String, Zxid)>) -> Result<Option<Task>, Error> {
        for (id, czxid) in tasks {
            match self.work.client.get(child(&self.work.tasks, &id)?).await {
                Ok(node) => {
                    let (data, token) = (node.data.unwrap_or_default(), Token::from(czxid));
                    return Ok(Some(Task { id, data, token }));
                }
                // It was taken back; the assigner will take the assignment away.
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Says that a task is done.
    ///
    /// # Errors
    /// [`Error::Lost`] if it is not this worker's any more.
    pub async fn done(&mut self, task: &Task) -> Result<(), Error> {
        let (path, assignment) =
            (child(&self.work.tasks, &task.id)?, child(&self.work.assigned, &task.id)?);
        let done = self
            .work
            .client
            .multi()
            .when(&assignment, Test::CreatedBy(task.token.zxid()))
            .when(&path, Test::Exists)
            .delete(&assignment, None)
            .delete(&path, None);
        let is_done = done.await?.held;
        self.begun.remove(&task.id);
        // So that the assignment is not taken for a new one.
        self.cache.flush().await?;
        if is_done {
            return Ok(());
        }
        Err(Error::Lost { path, token: task.token, loss: Loss::Deleted })
    }
}
