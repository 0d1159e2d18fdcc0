//! Names for addresses, or for whatever else is to be found under a name.
//!
//! ```no_run
//! use conclave_client::Client;
//! use conclave_client::recipes::names::Names;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), conclave_client::recipes::Error> {
//! let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
//! let names = Names::new(&client, "/names")?;
//!
//! let bound = names.bind("billing", "10.0.0.7:8080").await?; // As long as the session lives.
//! names.set("support", "10.0.0.1:80").await?; // Until it is removed.
//! println!("{:?}", names.resolve("billing").await?);
//! bound.leave().await
//! # }
//! ```
//!
//! # Guarantees
//!
//! - *Lost connection, dead leader*: names stay bound; what was asked is done once.
//! - *Expired session*: what it had bound is free, as soon as the servers end the session, and
//!   [`KeptNode::ended`] tells its owner. What was [set](Names::set) stays.
//! - *Paused process*: if for longer than the session timeout, its names are free, and it finds out
//!   when it goes on.
//! - *Two holders by mistake*: a name is one session's at a time, or nobody's; who comes second gets
//!   [`Error::Taken`].
//! - *Deleted or edited by hand*: what a session has bound is bound again; what was set is not.
//!
//! # Cost
//!
//! One round trip to resolve a name, none from [all names](Names::all). One node for each; for one that a
//! session has bound three round trips and one watch, for one that is set one round trip, two more if it is
//! set already.

use bytes::Bytes;
use conclave_proto::request::Test;
use conclave_proto::{ErrorCode, SessionId};

use super::Error;
use super::cache::Cache;
use super::members::{ATTEMPTS, Group, KeptNode, Members};
use super::support::{child, ensure};
use crate::{Client, IntoPath};

/// Names below a node; see [the module](self).
#[derive(Clone, Debug)]
pub struct Names {
    group: Group,
}

impl Names {
    /// The names below that node.
    ///
    /// # Errors
    /// As [`Group::new`].
    pub fn new(client: &Client, path: impl IntoPath) -> Result<Names, Error> {
        Ok(Names { group: Group::new(client, path)? })
    }

    /// Binds a name for as long as the session lives.
    ///
    /// # Errors
    /// [`Error::Taken`] if it is bound.
    pub async fn bind(&self, name: &str, value: impl Into<Bytes>) -> Result<KeptNode, Error> {
        self.group.join(name, value).await
    }

    /// Binds a name until it is removed; one that is bound so already is bound anew.
    ///
    /// # Errors
    /// [`Error::Taken`] if a session has bound it.
    pub async fn set(&self, name: &str, value: impl Into<Bytes>) -> Result<(), Error> {
        let (path, value) = (child(&self.group.path, name)?, value.into());
        let client = &self.group.client;
        for _ in 0..ATTEMPTS {
            match client.create(&path, value.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                    ensure(client, &self.group.path).await?;
                    continue;
                }
                Err(error) if error.code() == Some(ErrorCode::NodeExists) => {}
                Err(error) => return Err(error.into()),
            }
            let Some(stat) = client.exists(&path).await? else { continue };
            if stat.ephemeral_owner != SessionId::NONE {
                return Err(Error::Taken { path, owner: stat.ephemeral_owner });
            }
            let set = client.multi().when(&path, Test::CreatedBy(stat.czxid));
            if set.set(&path, value.clone(), None).await?.held {
                return Ok(());
            }
        }
        Err(Error::Conflict { path })
    }

    /// What a name is bound to; `None` if it is not. Shows what was acknowledged to anybody.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn resolve(&self, name: &str) -> Result<Option<Bytes>, Error> {
        let path = child(&self.group.path, name)?;
        match self.group.client.get(&path).linearizable().await {
            Ok(node) => Ok(Some(node.data.unwrap_or_default())),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a name that no session has bound. True if it was there.
    ///
    /// # Errors
    /// [`Error::Taken`] if a session has bound it.
    pub async fn remove(&self, name: &str) -> Result<bool, Error> {
        let path = child(&self.group.path, name)?;
        let client = &self.group.client;
        let Some(stat) = client.exists(&path).linearizable().await? else { return Ok(false) };
        if stat.ephemeral_owner != SessionId::NONE {
            return Err(Error::Taken { path, owner: stat.ephemeral_owner });
        }
        let delete = client.multi().when(&path, Test::CreatedBy(stat.czxid));
        Ok(delete.delete(&path, None).await?.held)
    }

    /// All names, kept up to date.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn all(&self) -> Result<Members, Error> {
        Ok(Members { cache: Cache::children(&self.group.client, &self.group.path).await? })
    }
}
