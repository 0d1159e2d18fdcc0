//! A registry of configuration: typed settings in layers, with validation, history, staged roll-out
//! and a live stream of changes.
//!
//! ```no_run
//! use conclave_client::Client;
//! use conclave_client::recipes::config::{Layer, LiveItem, Overlay, Place, Registry, Secret};
//! use serde_json::json;
//!
//! #[derive(Debug, serde::Serialize, serde::Deserialize)]
//! struct Pool {
//!     size: u32,
//!     password: Secret<String>,
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
//! let registry = Registry::new(&client, "/config")?.author("ann");
//! let pool = registry
//!     .setting::<Pool>("db.pool")?
//!     .validate(|pool| if pool.size > 0 { Ok(()) } else { Err("size is 0".into()) });
//!
//! // Whoever changes it.
//! let value = Pool { size: 10, password: Secret::new("hunter2".into()) };
//! let first = pool.set(&Layer::Default, &value).await?;
//! let billing = Layer::service("billing")?;
//! pool.edit(&billing, |current| {
//!     let mut pool = current?;
//!     pool.size += 10;
//!     Some(pool)
//! })
//! .await?;
//! let one = Layer::instance("billing-7")?;
//! pool.set_overlay(&one, None, &Overlay::new(&json!({"size": 30}))?).await?;
//! pool.rollback(&Layer::Default, first).await?;
//!
//! // Whoever follows it.
//! let place = Place::new().environment("prod")?.service("billing")?.instance("billing-7")?;
//! let follower = registry.follow(place).await?;
//! let mut live = follower.live(&pool)?;
//! while let Some(item) = live.next().await {
//!     match item {
//!         Ok(LiveItem::Value(Some(pool))) => println!("from now on {:?}", pool.value),
//!         Ok(LiveItem::Value(None)) => println!("not set"),
//!         Ok(LiveItem::Gap) => println!("some changes were not seen; the latest follows"),
//!         Err(error) if follower.has_ended() => return Err(error.into()),
//!         Err(error) => println!("going on with the old value: {error}"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Layers
//!
//! A setting can have a value of its own in each [`Layer`]. A [`Place`] sees the one of its instance,
//! else of its service, else of its environment, else the default. A value replaces that of the
//! layers beneath as a whole, so that each is valid by itself.
//!
//! What overrides some fields only is an [`Overlay`] ([`Setting::set_overlay`]). It is merged into
//! what the layers beneath say: objects field by field, at every depth; everything else, arrays too,
//! as a whole; `null` removes a field. Nothing is merged unless it was set as an overlay: a map that
//! is set as a value has the keys that were set, and no others. An overlay must make a valid value of
//! the default, if there is one; what several layers make together is checked by who sees it, and
//! told as an error if it is not of the type or does not pass the validation.
//!
//! # Staged roll-out
//!
//! [`Setting::stage`] shows a new value of a layer to the instances of some groups only;
//! [`Setting::widen`] to those of more groups; [`Setting::promote`] makes it everybody's, and
//! [`Setting::abandon`] takes it back. If somebody changes the layer meanwhile, it cannot be
//! promoted any more.
//!
//! # Guarantees
//!
//! - A value is written only if it is of the setting's type, passes its validation, and fits the
//!   [`Schema`] that is stored for the setting at that very moment, if one is; an overlay only if
//!   what it makes of the default of that very moment does. So it is when a value is staged, and
//!   again when it is widened or promoted.
//! - Each change is made on the revision that its writer saw, or fails with
//!   [`Error::Conflict`]; each one has a number, and is in the history before it takes effect.
//! - A follower's stream shows the latest value, sooner or later, whatever happens. It shows every
//!   value that was set in between, too, or a [`LiveItem::Gap`] in their place; of those that were
//!   staged in between some may be left out. A value edited by hand into something that is none is
//!   told as an error, a staged one to who is in a group; the values after it follow. So is one that
//!   the session may not read, if that was so when the layer was read: it is not taken for none.
//! - Secrets ([`Secret`], `secret` in a schema, [`Setting::secret`]) are in no error or difference, and
//!   but for those that a schema alone calls so, in no `Debug` output. On the servers they are as readable as the nodes' access control lists say.
//! - *Lost connection, dead leader*: followers show what they know and catch up. A change that got no
//!   answer in time may have been made ([`Error::outcome_unknown`]).
//! - *Expired session*: followers end, with an error. What was written stays.
//! - *Paused process*: a writer that was overtaken gets [`Error::Conflict`]; a follower catches up.
//! - *Two holders by mistake*: nothing is held.
//!
//! # Cost
//!
//! A change takes five round trips: to read the schema and what holds, two writes of the value, first
//! to the history, then where it takes effect, and one that removes the oldest revision, if there are
//! more than are kept; an overlay one more, to read the default. Reading a layer is one round trip, for
//! a follower none. A follower keeps one cache, and so one watch, for each layer of its place. On the servers there are two nodes for each value
//! and one for each revision of its history, of which [`Registry::keep`] says how many there are.

mod diff;
mod live;
mod overlay;
mod record;
mod schema;
mod secret;
mod setting;
mod write;

use conclave_proto::ZPath;

pub use self::diff::Difference;
pub use self::live::{Follower, Live, LiveItem, Origin, Resolved};
pub use self::overlay::Overlay;
pub use self::record::{Change, SETTING_BYTES};
pub use self::schema::{Kind, Schema};
pub use self::secret::Secret;
pub use self::setting::{Setting, Staged, Versioned};
pub use self::write::Revision;
use super::support::{child, own_node};
use super::{Error, NameError};
use crate::{Client, ErrorCode, IntoPath};

const RECIPE: &str = "the configuration registry";

/// The directories of a layer: what holds, and what some groups see.
const VALUES: &str = "values";
const STAGED: &str = "staged";

/// Revisions of a setting's layer that are kept unless said.
const KEPT: u64 = 100;

/// For whom a value of a setting is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// Everybody.
    Default,
    /// Everybody in an environment, `prod` for instance.
    Environment(String),
    /// Every instance of a service.
    Service(String),
    /// One instance.
    Instance(String),
}

impl Layer {
    /// The layer of an environment.
    ///
    /// # Errors
    /// If the name is empty or cannot be part of a path.
    pub fn environment(name: impl Into<String>) -> Result<Layer, Error> {
        checked(Layer::Environment(name.into()))
    }

    /// The layer of a service.
    ///
    /// # Errors
    /// If the name is empty or cannot be part of a path.
    pub fn service(name: impl Into<String>) -> Result<Layer, Error> {
        checked(Layer::Service(name.into()))
    }

    /// The layer of an instance.
    ///
    /// # Errors
    /// If the name is empty or cannot be part of a path.
    pub fn instance(name: impl Into<String>) -> Result<Layer, Error> {
        checked(Layer::Instance(name.into()))
    }

    /// The name of its directory; fails if its own name cannot be used.
    fn directory(&self) -> Result<String, Error> {
        let (kind, name) = match self {
            Layer::Default => return Ok("default".into()),
            Layer::Environment(name) => ("environment", name),
            Layer::Service(name) => ("service", name),
            Layer::Instance(name) => ("instance", name),
        };
        child(&ZPath::root(), name)?;
        Ok(format!("{kind}.{name}"))
    }
}

impl std::fmt::Display for Layer {
    /// `default`, `environment prod`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Layer::Default => f.write_str("default"),
            Layer::Environment(name) => write!(f, "environment {name}"),
            Layer::Service(name) => write!(f, "service {name}"),
            Layer::Instance(name) => write!(f, "instance {name}"),
        }
    }
}

fn checked(layer: Layer) -> Result<Layer, Error> {
    layer.directory().map(|_| layer)
}

/// Who follows the configuration: the layers that count, and the groups of staged roll-outs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    environment: Option<Layer>,
    service: Option<Layer>,
    instance: Option<Layer>,
    groups: Vec<String>,
}

impl Place {
    /// One that sees the default layer alone.
    pub fn new() -> Place {
        Place::default()
    }

    /// In this environment.
    ///
    /// # Errors
    /// If the name is empty or cannot be part of a path; so for the others.
    pub fn environment(mut self, name: impl Into<String>) -> Result<Place, Error> {
        self.environment = Some(Layer::environment(name)?);
        Ok(self)
    }

    /// Of this service.
    ///
    /// # Errors
    /// As [`environment`](Place::environment).
    pub fn service(mut self, name: impl Into<String>) -> Result<Place, Error> {
        self.service = Some(Layer::service(name)?);
        Ok(self)
    }

    /// This very instance.
    ///
    /// # Errors
    /// As [`environment`](Place::environment).
    pub fn instance(mut self, name: impl Into<String>) -> Result<Place, Error> {
        self.instance = Some(Layer::instance(name)?);
        Ok(self)
    }

    /// In this group, which may see values before others; `canary` for instance.
    ///
    /// # Errors
    /// As [`environment`](Place::environment).
    pub fn group(mut self, name: impl Into<String>) -> Result<Place, Error> {
        let name = name.into();
        child(&ZPath::root(), &name)?;
        self.groups.push(name);
        Ok(self)
    }

    /// The layers that count, the weakest first.
    pub fn layers(&self) -> Vec<Layer> {
        let above = [&self.environment, &self.service, &self.instance];
        std::iter::once(Layer::Default).chain(above.into_iter().flatten().cloned()).collect()
    }

    fn is_in(&self, groups: &[String]) -> bool {
        self.groups.iter().any(|group| groups.contains(group))
    }
}

/// A registry of settings below a node; see [the module](self).
#[derive(Clone, Debug)]
pub struct Registry {
    client: Client,
    root: ZPath,
    author: String,
    kept: u64,
}

impl Registry {
    /// The registry below that node, which need not exist. Nothing else may be below it.
    ///
    /// # Errors
    /// If it is not a path, or is the root.
    pub fn new(client: &Client, path: impl IntoPath) -> Result<Registry, Error> {
        let root = own_node(path, RECIPE)?;
        Ok(Registry { client: client.clone(), root, author: String::new(), kept: KEPT })
    }

    /// Who makes the changes, for the history.
    pub fn author(mut self, author: impl Into<String>) -> Registry {
        self.author = author.into();
        self
    }

    /// How many revisions are kept of a setting in a layer, the current one included; 100 unless
    /// said. Each change removes the one that is then too many: where more were kept before, those
    /// older still stay.
    pub fn keep(mut self, revisions: u64) -> Registry {
        self.kept = revisions.max(1);
        self
    }

    /// A setting. It need not have a value.
    ///
    /// # Errors
    /// If the name is empty, has a slash in it or cannot be part of a path.
    pub fn setting<T>(&self, name: &str) -> Result<Setting<T>, Error> {
        if name.contains('/') {
            return Err(Error::Name { name: name.to_owned(), why: NameError::Slash });
        }
        child(&ZPath::root(), name)?;
        Ok(Setting::new(self.clone(), name))
    }

    /// The names of the settings that have, or had, a value in a layer.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn settings(&self, layer: &Layer) -> Result<Vec<String>, Error> {
        self.names(&child(&self.live_layer(layer)?, VALUES)?).await
    }

    /// The layers that have, or had, values.
    ///
    /// # Errors
    /// If they cannot be read, or there are nodes that are no layers ([`Error::Foreign`]).
    pub async fn layers(&self) -> Result<Vec<Layer>, Error> {
        let root = self.child("live")?;
        let names = self.names(&root).await?;
        let layer = |name: &String| {
            let layer = match name.split_once('.') {
                Some(("environment", name)) => Layer::Environment(name.to_owned()),
                Some(("service", name)) => Layer::Service(name.to_owned()),
                Some(("instance", name)) => Layer::Instance(name.to_owned()),
                None if name == "default" => Layer::Default,
                Some(_) | None => {
                    let path = child(&root, name)?;
                    return Err(Error::Foreign { path, recipe: RECIPE });
                }
            };
            Ok(layer)
        };
        names.iter().map(layer).collect()
    }

    /// Follows all settings as they are seen from a place.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn follow(&self, place: Place) -> Result<Follower, Error> {
        Follower::start(self, place).await
    }

    async fn names(&self, path: &ZPath) -> Result<Vec<String>, Error> {
        match self.client.children(path).await {
            Ok(names) => Ok(names),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    fn child(&self, name: &str) -> Result<ZPath, Error> {
        child(&self.root, name)
    }

    /// Where the values of a layer are.
    fn live_layer(&self, layer: &Layer) -> Result<ZPath, Error> {
        child(&self.child("live")?, &layer.directory()?)
    }
}
