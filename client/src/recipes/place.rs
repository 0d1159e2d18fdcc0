//! Where a recipe keeps its nodes.

use std::sync::Arc;
use std::time::Duration;

use conclave_proto::{Acl, CreateMode, Lifetime, ZPath};
use tokio::runtime::Handle;

use super::error::Error;
use super::support::{child, create_missing, kept_ms, own_node};
use crate::{Client, IntoPath};

/// The path of the node called `name` below `area`. Programs that let their users choose a name go
/// through this, so that no name leads elsewhere.
///
/// # Errors
/// If the name is empty, has a slash in it, or breaks the rules of paths.
///
/// ```
/// use conclave_client::recipes;
/// assert_eq!(recipes::place("/locks", "build")?.as_str(), "/locks/build");
/// assert!(recipes::place("/locks", "../secrets").is_err());
/// # Ok::<(), recipes::Error>(())
/// ```
pub fn place(area: impl IntoPath, name: &str) -> Result<ZPath, Error> {
    child(&area.into_path()?, name)
}

/// The directory of a recipe, and how its nodes are made.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) client: Client,
    pub(super) path: ZPath,
    /// The uppermost node of the recipe.
    pub(super) top: ZPath,
    /// The recipe's name, for messages.
    pub(super) recipe: &'static str,
    pub(super) acl: Arc<[Acl]>,
    /// What drives the tasks that outlive their callers: those that give nodes up.
    pub(super) runtime: Handle,
    /// How long what a session held is kept from others after the session expired.
    pub(super) lock_delay: Duration,
}

impl Place {
    /// The directory at that path, which need not exist.
    pub(super) fn new(
        client: &Client,
        path: impl IntoPath,
        recipe: &'static str,
    ) -> Result<Place, Error> {
        let path = own_node(path, recipe)?;
        Place::within(client, path.clone(), path, recipe)
    }

    /// The path of a node in it.
    pub(super) fn child(&self, name: &str) -> Result<ZPath, Error> {
        child(&self.path, name)
    }

    /// The directory of a recipe of one node at that path, which is not the recipe's own, and the
    /// path.
    pub(super) fn of_node(
        client: &Client,
        path: impl IntoPath,
        recipe: &'static str,
    ) -> Result<(Place, ZPath), Error> {
        let path = own_node(path, recipe)?;
        let above = path.parent().unwrap_or_else(ZPath::root);
        Ok((Place::within(client, above, path.clone(), recipe)?, path))
    }

    fn within(
        client: &Client,
        path: ZPath,
        top: ZPath,
        recipe: &'static str,
    ) -> Result<Place, Error> {
        let runtime = runtime(recipe)?;
        let (client, acl, lock_delay) = (client.clone(), Acl::open(), Duration::ZERO);
        Ok(Place { client, path, top, recipe, acl, runtime, lock_delay })
    }

    /// A directory in it, for a part of the recipe.
    pub(super) fn part(&self, name: &str) -> Result<Place, Error> {
        Ok(Place { path: self.child(name)?, ..self.clone() })
    }

    /// A node of the recipe that somebody edited.
    pub(super) fn malformed(&self, path: &ZPath, why: &str) -> Error {
        Error::Malformed { path: path.clone(), recipe: self.recipe, why: why.to_owned() }
    }

    /// A node in it that nobody of the recipe has made.
    pub(super) fn foreign(&self, name: &str) -> Error {
        match self.child(name) {
            Ok(path) => Error::Foreign { path, recipe: self.recipe },
            Err(error) => error,
        }
    }

    /// How nodes are made that stand for what a session holds or waits for.
    pub(super) fn mode(&self, sequential: bool) -> CreateMode {
        let lifetime = match kept_ms(self.lock_delay) {
            0 => Lifetime::Ephemeral,
            ms => Lifetime::Lingering(ms),
        };
        CreateMode { lifetime, sequential, ..CreateMode::default() }
    }

    /// Makes the directory, which goes when its last node has, and what is above it.
    pub(super) async fn make(&self) -> Result<(), crate::Error> {
        self.make_with(Lifetime::Container).await
    }

    /// Makes the directory, which stays, and what is above it.
    pub(super) async fn make_persistent(&self) -> Result<(), crate::Error> {
        self.make_with(Lifetime::Persistent).await
    }

    /// What is above the recipe's own nodes is everybody's, whoever makes it first.
    async fn make_with(&self, lifetime: Lifetime) -> Result<(), crate::Error> {
        let how = |path: &ZPath| {
            let lifetime = if *path == self.path { lifetime } else { Lifetime::Persistent };
            let is_own = path.is_within(&self.top);
            let acl = if is_own { self.acl.clone() } else { Acl::open() };
            (CreateMode { lifetime, ..CreateMode::default() }, acl)
        };
        create_missing(&self.client, &self.path, how).await
    }
}

/// What drives the tasks of a recipe that is made now.
pub(super) fn runtime(recipe: &str) -> Result<Handle, Error> {
    Handle::try_current()
        .map_err(|_| Error::Config(format!("{recipe} is to be made in a tokio runtime")))
}
