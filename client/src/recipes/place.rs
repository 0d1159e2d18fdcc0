//! Where a recipe keeps its nodes.

use conclave_proto::{Acl, CreateMode, ErrorCode, Lifetime, PathError, ZPath};
use tokio::runtime::Handle;

use super::error::{Error, NameError};
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
    let area = area.into_path()?;
    let wrong = |why| Err(Error::Name { name: name.to_owned(), why });
    if name.is_empty() {
        return wrong(NameError::Empty);
    }
    if name.contains('/') {
        return wrong(NameError::Slash);
    }
    area.child(name).or_else(|why: PathError| wrong(NameError::Path(why)))
}

/// The directory of a recipe, and how its nodes are made.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) client: Client,
    pub(super) path: ZPath,
    /// The recipe's name, for messages.
    pub(super) recipe: &'static str,
    pub(super) acl: Vec<Acl>,
    /// What drives the tasks that outlive their callers: those that give nodes up.
    pub(super) runtime: Handle,
}

impl Place {
    /// The directory at that path, which need not exist.
    pub(super) fn new(
        client: &Client,
        path: impl IntoPath,
        recipe: &'static str,
    ) -> Result<Place, Error> {
        let path = path.into_path()?;
        if path.is_root() {
            return Err(Error::Config(format!("{recipe} needs a directory of its own, not /")));
        }
        let runtime = Handle::try_current()
            .map_err(|_| Error::Config(format!("{recipe} is to be made in a tokio runtime")))?;
        Ok(Place { client: client.clone(), path, recipe, acl: Acl::open(), runtime })
    }

    /// The path of a node in it.
    pub(super) fn child(&self, name: &str) -> Result<ZPath, Error> {
        self.path
            .child(name)
            .map_err(|why| Error::Name { name: name.to_owned(), why: NameError::Path(why) })
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
        CreateMode { lifetime: Lifetime::Ephemeral, sequential }
    }

    /// Makes the directory, which goes when its last node has, and what is above it.
    pub(super) async fn make(&self) -> Result<(), crate::Error> {
        let above: Vec<ZPath> = self.path.ancestors().filter(|path| !path.is_root()).collect();
        let mut made: Vec<_> = above
            .iter()
            .rev()
            .map(|path| self.client.create(path, "").acl(self.acl.clone()).send())
            .collect();
        made.push(self.client.create(&self.path, "").container().acl(self.acl.clone()).send());
        for made in made {
            match made.await {
                Ok(_) => {}
                Err(error) if error.code() == Some(ErrorCode::NodeExists) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
