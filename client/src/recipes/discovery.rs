//! Service discovery: instances register, clients choose one that is up.
//!
//! ```no_run
//! use std::time::Instant;
//! use conclave_client::Client;
//! use conclave_client::recipes::discovery::{Discovery, Instance, Strategy};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), conclave_client::recipes::Error> {
//! let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
//! let discovery = Discovery::new(&client, "/services")?;
//!
//! // An instance:
//! let me = Instance::new("billing-7", "10.0.0.7:8080").meta("zone", "a");
//! let registration = discovery.register("billing", &me).await?;
//!
//! // Somebody who needs one:
//! let provider = discovery.provider("billing", Strategy::LeastLatency).await?;
//! let billing = provider.choose()?;
//! let asked = Instant::now();
//! match ask(&billing.address).await {
//!     Ok(()) => provider.succeeded(&billing.id, asked.elapsed()),
//!     Err(()) => provider.failed(&billing.id),
//! }
//! # registration.leave().await
//! # }
//! # async fn ask(address: &str) -> Result<(), ()> { Ok(()) }
//! ```
//!
//! # Guarantees
//!
//! An instance is chosen only while its session lives, as far as the provider has been told, and
//! while it is not [down](DownPolicy) by what callers have told this provider.
//!
//! - *Lost connection, dead leader*: providers go on with the instances they know. Instances stay
//!   registered as long as their sessions live.
//! - *Expired session*: of an instance: it is chosen no more. Of the provider: every choice fails
//!   with [`Error::Ended`].
//! - *Paused process*: an instance that is paused is chosen until its session expires, or until it
//!   has [failed](Provider::failed) often enough for its callers.
//! - *Two holders by mistake*: an instance's name belongs to one session ([`Error::Taken`]).
//! - A node by hand that is no instance is left out, and told by [`Provider::malformed`].
//!
//! # Cost
//!
//! To register: as a [kept node](super::members::KeptNode). A provider has one cache, and so one
//! watch; a choice takes no round trip, and time in proportion to the number of instances.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use conclave_proto::ZPath;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Error;
use super::cache::{Cache, CachedNode};
use super::members::{Joining, KeptNode};
use super::support::{child, later, own_node};
use super::timer::{sleep_until, timeout};
use crate::dice::Dice;
use crate::{Client, IntoPath};

const RECIPE: &str = "service discovery";

/// What is known of an instance of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its name, unique among the instances of the service.
    pub id: String,
    /// Where it is, as its callers need it: `host:port`, or a URL.
    pub address: String,
    /// Whatever else there is to say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
}

impl Instance {
    /// An instance.
    pub fn new(id: impl Into<String>, address: impl Into<String>) -> Instance {
        Instance { id: id.into(), address: address.into(), meta: BTreeMap::new() }
    }

    /// With something more to say of it.
    pub fn meta(mut self, name: impl Into<String>, value: impl Into<String>) -> Instance {
        self.meta.insert(name.into(), value.into());
        self
    }
}

/// How one of several instances is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Any.
    Random,
    /// Each in its turn.
    RoundRobin,
    /// The same as long as it is up, then another.
    Sticky,
    /// The one that answers fastest by what [`Provider::succeeded`] has told; one of which nothing
    /// is known yet, first. Of every 16 choices one goes to any, to learn whether it is better.
    LeastLatency,
}

/// When an instance that fails its callers is not chosen for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DownPolicy {
    /// So many failures in a row...
    pub failures: u32,
    /// ...and it is not chosen for this long. After that one more failure suffices.
    pub pause: Duration,
}

impl Default for DownPolicy {
    /// Two failures, 30 s.
    fn default() -> DownPolicy {
        DownPolicy { failures: 2, pause: Duration::from_secs(30) }
    }
}

/// The services below a node.
#[derive(Clone, Debug)]
pub struct Discovery {
    client: Client,
    root: ZPath,
}

impl Discovery {
    /// The services below that node, which need not exist. Nothing else may be below it.
    ///
    /// # Errors
    /// If it is not a path, or is the root.
    pub fn new(client: &Client, path: impl IntoPath) -> Result<Discovery, Error> {
        Ok(Discovery { client: client.clone(), root: own_node(path, RECIPE)? })
    }

    /// Registers an instance for as long as the session lives or until it leaves. To say something
    /// new of it, [`KeptNode::set`] what [`describe`] makes of it.
    ///
    /// # Errors
    /// [`Error::Taken`] if another session has registered an instance of that name.
    pub async fn register(&self, service: &str, instance: &Instance) -> Result<KeptNode, Error> {
        self.registering(service, instance)?.create().await
    }

    /// As [`register`](Discovery::register), in a way that can be said more of: to
    /// [wait](Joining::wait) for the end of one's own earlier session, for instance.
    ///
    /// # Errors
    /// If a name cannot be used.
    pub fn registering(&self, service: &str, instance: &Instance) -> Result<Joining, Error> {
        let path = child(&child(&self.root, service)?, &instance.id)?;
        Ok(KeptNode::ephemeral(&self.client, path, describe(instance)?))
    }

    /// The names of all services that have, or had, instances.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn services(&self) -> Result<Vec<String>, Error> {
        match self.client.children(&self.root).await {
            Ok(names) => Ok(names),
            Err(error) if error.code() == Some(crate::ErrorCode::NoNode) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Chooses among the instances of a service.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn provider(&self, service: &str, strategy: Strategy) -> Result<Provider, Error> {
        let path = child(&self.root, service)?;
        let cache = Cache::children(&self.client, &path).await?;
        let (policy, notes, is_up) = (DownPolicy::default(), Mutex::default(), Notify::new());
        Ok(Provider { cache, strategy, policy, notes, is_up })
    }
}

/// What a registered node says of its instance.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn describe(instance: &Instance) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(instance).map_err(|error| Error::Config(error.to_string()))
}

/// Chooses among the instances of one service.
#[derive(Debug)]
pub struct Provider {
    cache: Cache,
    strategy: Strategy,
    policy: DownPolicy,
    notes: Mutex<Notes>,
    /// An instance that was down has answered.
    is_up: Notify,
}

/// What this provider has noted.
#[derive(Debug, Default)]
struct Notes {
    dice: Dice,
    last: Option<String>,
    choices: u64,
    of: BTreeMap<String, Note>,
}

/// What is noted of an instance.
#[derive(Debug, Default)]
struct Note {
    failures: u32,
    down_until: Option<Instant>,
    latency: Option<Duration>,
}

impl Provider {
    /// When an instance that fails is not chosen for a while.
    pub fn down_policy(mut self, policy: DownPolicy) -> Provider {
        self.policy = policy;
        self
    }

    /// All instances that are registered, down or not, by name.
    ///
    /// # Errors
    /// [`Error::Ended`] if the session is over.
    pub fn instances(&self) -> Result<Vec<Instance>, Error> {
        self.cache.read(|view| view.iter().filter_map(|entry| read(entry).ok()).collect())
    }

    /// The nodes that are no instances: somebody made them by hand.
    ///
    /// # Errors
    /// [`Error::Ended`] if the session is over.
    pub fn malformed(&self) -> Result<Vec<Error>, Error> {
        self.cache.read(|view| view.iter().filter_map(|entry| read(entry).err()).collect())
    }

    /// An instance that is up.
    ///
    /// # Errors
    /// [`Error::Empty`] if there is none; [`Error::Ended`] if the session is over.
    pub fn choose(&self) -> Result<Instance, Error> {
        let mut all = self.instances()?;
        let mut notes = self.notes();
        // They are in the order of their names.
        let place = |id: &str| all.binary_search_by(|instance| instance.id.as_str().cmp(id));
        notes.of.retain(|id, _| place(id).is_ok());
        let registered = all.len();
        let now = Instant::now();
        all.retain(|instance| {
            let note = notes.of.get(&instance.id);
            note.and_then(|note| note.down_until).is_none_or(|until| until <= now)
        });
        if all.is_empty() {
            let why = match registered {
                0 => "no instance is registered".into(),
                down => format!("all {down} instances are down"),
            };
            return Err(Error::Empty { path: self.cache.path().clone(), why });
        }
        let chosen = all.swap_remove(notes.choose(self.strategy, &all));
        notes.last = Some(chosen.id.clone());
        Ok(chosen)
    }

    /// An instance has answered, in that time.
    pub fn succeeded(&self, id: &str, latency: Duration) {
        let mut notes = self.notes();
        let note = notes.of.entry(id.to_owned()).or_default();
        note.failures = 0;
        if note.down_until.take().is_some() {
            self.is_up.notify_waiters();
        }
        // The newest counts for a quarter.
        note.latency = Some(
            note.latency
                .map_or(latency, |known| known.saturating_mul(3).saturating_add(latency) / 4),
        );
    }

    /// An instance has not answered, or not well.
    pub fn failed(&self, id: &str) {
        let mut notes = self.notes();
        let note = notes.of.entry(id.to_owned()).or_default();
        note.failures = note.failures.saturating_add(1);
        if note.failures >= self.policy.failures {
            note.down_until = Some(later(Instant::now(), self.policy.pause));
        }
    }

    /// Waits until there is an instance to choose, and chooses it.
    ///
    /// # Errors
    /// [`Error::Deadline`] if there is none in that time; [`Error::Ended`] if the session is over.
    pub async fn wait(&self, time: Duration) -> Result<Instance, Error> {
        let wait = async {
            loop {
                // What comes after the look is told.
                let (mut changes, is_up) = (self.cache.changes()?, self.is_up.notified());
                match self.choose() {
                    Err(Error::Empty { .. }) => {}
                    outcome => return outcome,
                }
                tokio::select! {
                    item = changes.next() => drop(item.transpose()?),
                    () = is_up => {}
                    () = self.next_up() => {}
                }
            }
        };
        let path = self.cache.path().clone();
        timeout(self.cache.client(), time, wait).await.unwrap_or(Err(Error::Deadline { path }))
    }

    /// The cache behind it.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Resolves when the first instance that is down is up again.
    async fn next_up(&self) {
        let until = self.notes().of.values().filter_map(|note| note.down_until).min();
        match until {
            Some(until) => sleep_until(self.cache.client(), until).await,
            None => std::future::pending().await,
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Notes {
    /// The place of the chosen one in a list that is not empty and in the order of names.
    fn choose(&mut self, strategy: Strategy, all: &[Instance]) -> usize {
        self.choices += 1;
        let last = self.last.as_deref().unwrap_or_default();
        match strategy {
            Strategy::Random => self.dice.below(all.len()),
            Strategy::RoundRobin => {
                all.iter().position(|instance| instance.id.as_str() > last).unwrap_or_default()
            }
            Strategy::Sticky => all
                .iter()
                .position(|instance| instance.id == last)
                .unwrap_or_else(|| self.dice.below(all.len())),
            Strategy::LeastLatency if self.choices.is_multiple_of(16) => self.dice.below(all.len()),
            Strategy::LeastLatency => {
                let latency =
                    |instance: &Instance| self.of.get(&instance.id).and_then(|note| note.latency);
                let places = 0..all.len();
                places.min_by_key(|place| latency(&all[*place])).unwrap_or_default()
            }
        }
    }
}

fn read((path, node): (&ZPath, &CachedNode)) -> Result<Instance, Error> {
    let malformed = |why| Error::Malformed { path: path.clone(), recipe: RECIPE, why };
    let instance: Instance = serde_json::from_slice(node.bytes())
        .map_err(|error| malformed(format!("it is no instance: {error}")))?;
    if instance.id != path.name() {
        return Err(malformed(format!("it is of the instance {:?}", instance.id)));
    }
    Ok(instance)
}
