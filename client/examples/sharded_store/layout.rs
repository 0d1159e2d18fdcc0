//! Where everything is in Conclave, and which shards there are.

use std::collections::BTreeMap;

use conclave_client::Client;
use conclave_client::recipes::config::{
    Follower, Layer, LiveItem, Place, Registry, Revision, Setting,
};
use conclave_client::recipes::log::Log;
use conclave_client::recipes::members::Group;
use conclave_client::recipes::ring::Ring;
use conclave_client::recipes::{Election, Error, place};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Which shards there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shards {
    /// Those that serve.
    pub(crate) serving: Vec<String>,
    /// Those that are to serve when the keys have moved.
    pub(crate) next: Option<Vec<String>>,
    /// How far a replica of a shard must have followed its log to have what was moved to it.
    pub(crate) ready: BTreeMap<String, u64>,
}

/// The same as a ring, and when it was said.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) revision: u64,
    pub(crate) shards: Shards,
    pub(crate) ring: Ring,
    pub(crate) next: Option<Ring>,
}

impl View {
    fn new(revision: Revision, shards: Shards) -> View {
        let ring = Ring::of(shards.serving.clone());
        let next = shards.next.clone().map(Ring::of);
        View { revision: revision.0, shards, ring, next }
    }

    /// Whether a key is on its way to another shard.
    pub(crate) fn moves(&self, key: &str) -> bool {
        self.next.as_ref().is_some_and(|next| next.owner(key) != self.ring.owner(key))
    }
}

/// The shards as they are now, and as they become.
pub(crate) struct Views {
    follower: Follower,
    setting: Setting<Shards>,
    views: watch::Sender<View>,
}

impl Views {
    pub(crate) async fn follow(client: &Client) -> Result<Views, Error> {
        let follower = registry(client)?.follow(Place::new()).await?;
        let setting = setting(client)?;
        let views = watch::Sender::new(View::new(Revision::NONE, Shards::default()));
        let all = Views { follower, setting, views };
        all.sync().await?;
        Ok(all)
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<View> {
        self.views.subscribe()
    }

    pub(crate) fn now(&self) -> View {
        self.views.borrow().clone()
    }

    /// Waits until everything is seen that was said before now.
    pub(crate) async fn sync(&self) -> Result<(), Error> {
        self.follower.sync().await?;
        if let Some(seen) = self.follower.get(&self.setting)? {
            self.take(seen.origin.revision, seen.value);
        }
        Ok(())
    }

    /// Goes on until the session ends.
    pub(crate) async fn run(&self) -> Result<(), Error> {
        let mut live = self.follower.live(&self.setting)?;
        loop {
            match live.next().await {
                Some(Ok(LiveItem::Value(Some(seen)))) => {
                    self.take(seen.origin.revision, seen.value)
                }
                Some(Ok(LiveItem::Value(None) | LiveItem::Gap)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            }
        }
    }

    /// Nobody goes back to what was before.
    fn take(&self, revision: Revision, shards: Shards) {
        self.views.send_if_modified(|view| {
            let is_new = revision.0 > view.revision;
            if is_new {
                *view = View::new(revision, shards);
            }
            is_new
        });
    }
}

fn registry(client: &Client) -> Result<Registry, Error> {
    Registry::new(client, "/sharded/config")
}

/// What says which shards there are.
pub(crate) fn setting(client: &Client) -> Result<Setting<Shards>, Error> {
    let setting = registry(client)?.setting::<Shards>("shards")?;
    Ok(setting.validate(|shards| {
        let is_empty = |shards: &Vec<String>| shards.is_empty();
        if is_empty(&shards.serving) || shards.next.as_ref().is_some_and(is_empty) {
            return Err("there is a shard at least".into());
        }
        Ok(())
    }))
}

pub(crate) const LAYER: Layer = Layer::Default;

/// Where the parts of a shard are.
fn of_shard(shard: &str, part: &str) -> Result<String, Error> {
    Ok(format!("{}/{part}", place("/sharded/shards", shard)?))
}

pub(crate) fn election(client: &Client, shard: &str) -> Result<Election, Error> {
    Election::new(client, of_shard(shard, "election")?)
}

pub(crate) fn log(client: &Client, shard: &str) -> Result<Log, Error> {
    Log::new(client, of_shard(shard, "log")?)
}

/// The replicas of a shard, by address.
pub(crate) fn replicas(client: &Client, shard: &str) -> Result<Group, Error> {
    Group::new(client, of_shard(shard, "replicas")?)
}

/// Where the shards say that they have handed over what a move takes from them.
pub(crate) fn moves(revision: u64) -> String {
    format!("/sharded/moves/{revision}")
}

/// What a shard has handed over.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HandedOver {
    /// The keys it had.
    pub(crate) of: usize,
    /// To whom how many of them went, and the number of the last one in the other's log.
    pub(crate) to: BTreeMap<String, (usize, u64)>,
}
