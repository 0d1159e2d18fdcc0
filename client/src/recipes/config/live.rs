//! Following the configuration as it is seen from one place.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;

use conclave_proto::{ErrorCode, ZPath};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::Record;
use super::write::{Nodes, Revision};
use super::{Layer, Overlay, Place, Registry, Setting};
use crate::recipes::Error;
use crate::recipes::cache::{Cache, CacheChanges, CacheItem, CacheStatus, CachedNode, View};
use crate::recipes::support::first_of;

/// All settings as they are seen from one place, kept up to date: reading one takes no round trip.
/// Clones share what they follow.
#[derive(Clone)]
pub struct Follower {
    registry: Registry,
    place: Place,
    /// The layers that count, the weakest first.
    layers: Vec<(Layer, Cache)>,
}

/// A value as it is seen from a place.
#[derive(Clone, PartialEq)]
pub struct Resolved<T> {
    /// The value.
    pub value: T,
    /// The strongest layer that says something.
    pub origin: Origin,
    /// If that is an overlay, what it is merged into, the strongest first: other overlays, and the
    /// first layer that has a whole value, if one has.
    pub beneath: Vec<Origin>,
    secret: bool,
}

/// Where a value, or a part of it, comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The layer.
    pub layer: Layer,
    /// The change that made it. Of a staged value: the one that it is to follow.
    pub revision: Revision,
    /// Whether this place sees it before others do.
    pub is_staged: bool,
}

impl<T: fmt::Debug> fmt::Debug for Resolved<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Resolved");
        if self.secret {
            debug.field("value", &"***");
        } else {
            debug.field("value", &self.value);
        }
        debug.field("origin", &self.origin).field("beneath", &self.beneath).finish()
    }
}

/// What a live stream tells.
#[derive(Clone, Debug, PartialEq)]
pub enum LiveItem<T> {
    /// From now on this is the value; `None`: it is not set.
    Value(Option<Resolved<T>>),
    /// Values may be missing here. The latest value follows, unless it is the one told last.
    Gap,
}

impl Follower {
    pub(super) async fn start(registry: &Registry, place: Place) -> Result<Follower, Error> {
        let mut layers = Vec::new();
        for layer in place.layers() {
            let cache = Cache::tree(&registry.client, registry.live_layer(&layer)?).await?;
            layers.push((layer, cache));
        }
        Ok(Follower { registry: registry.clone(), place, layers })
    }

    /// The place from which it sees.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The value of a setting, as far as is known here; `None` if it is not set.
    ///
    /// # Errors
    /// [`Error::Invalid`] or [`Error::Malformed`] if what is set is not usable, or overlays make
    /// nothing usable of it, and [`ErrorCode::NoAuth`](Error::code) if it may not be read: the layers
    /// below are not asked then. [`Error::Ended`] if the session is over.
    pub fn get<T>(&self, setting: &Setting<T>) -> Result<Option<Resolved<T>>, Error>
    where
        T: Serialize + DeserializeOwned,
    {
        let layers = self.sources(setting)?;
        let mut shown = Vec::new();
        for source in layers {
            let state = self.layers[source.layer].1.read(|view| State::of(view, &source.nodes))?;
            shown.push((source, state));
        }
        resolve(&self.place, &self.layers, setting, &shown)
    }

    /// The value of a setting, as a stream: what it is now, then what it becomes.
    ///
    /// # Errors
    /// [`Error::Ended`] if the session is over.
    pub fn live<T>(&self, setting: &Setting<T>) -> Result<Live<T>, Error>
    where
        T: Serialize + DeserializeOwned,
    {
        let (mut shown, mut changes) = (Vec::new(), Vec::new());
        for source in self.sources(setting)? {
            let (state, layer) =
                self.layers[source.layer].1.follow(|view| State::of(view, &source.nodes))?;
            shown.push((source, state));
            changes.push(layer);
        }
        let (follower, setting) = (self.clone(), setting.clone());
        let mut live = Live {
            follower,
            setting,
            shown,
            changes,
            told: None,
            waiting: VecDeque::new(),
            has_ended: false,
        };
        live.look();
        Ok(live)
    }

    /// Waits until everything that was acknowledged to anybody before now is seen here.
    ///
    /// # Errors
    /// If no server answers in time, or the session is over.
    pub async fn sync(&self) -> Result<(), Error> {
        self.registry.client.sync().await?;
        for (_, cache) in &self.layers {
            cache.flush().await?;
        }
        Ok(())
    }

    /// Whether it has ended, with its session.
    pub fn has_ended(&self) -> bool {
        self.layers.iter().any(|(_, cache)| matches!(cache.status(), CacheStatus::Ended(_)))
    }

    fn sources<T>(&self, setting: &Setting<T>) -> Result<Vec<Source>, Error>
    where
        T: Serialize + DeserializeOwned,
    {
        if !setting.is_of(&self.registry) {
            return Err(Error::Config(format!(
                "the setting {} is of another registry than {}",
                setting.name(),
                self.registry.root
            )));
        }
        let source = |(layer, (name, _)): (usize, &(Layer, Cache))| {
            Ok(Source { layer, nodes: Nodes::of(&self.registry, name, setting.name())? })
        };
        self.layers.iter().enumerate().map(source).collect()
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("place", &self.place).finish_non_exhaustive()
    }
}

/// Where a setting has its value in one of a follower's layers.
struct Source {
    layer: usize,
    nodes: Nodes,
}

/// What is there in one layer.
#[derive(Clone, Debug)]
struct State {
    live: Option<CachedNode>,
    staged: Option<CachedNode>,
    /// The number of the latest change that was seen; 0 before the first.
    revision: u64,
    /// What of the two is there and may not be read.
    hidden: BTreeSet<ZPath>,
}

impl State {
    fn of(view: &View, nodes: &Nodes) -> State {
        let node = |path| view.get(path).cloned();
        let (live, staged) = (node(&nodes.live), node(&nodes.staged).and_then(there));
        let revision = revision_of(nodes, live.as_ref()).unwrap_or_default();
        let hidden = [&nodes.live, &nodes.staged].into_iter().filter(|path| view.is_hidden(path));
        State { live, staged, revision, hidden: hidden.cloned().collect() }
    }

    /// Takes a change, and says whether values before it were not seen; `None` if it is of another
    /// node.
    fn take(&mut self, nodes: &Nodes, path: &ZPath, after: Option<CachedNode>) -> Option<bool> {
        self.hidden.remove(path);
        if *path == nodes.staged {
            self.staged = after.and_then(there);
            return Some(false);
        }
        if *path != nodes.live {
            return None;
        }
        self.live = after;
        // After a reconnection, events come with the data of now.
        let Some(now) = revision_of(nodes, self.live.as_ref()) else { return Some(false) };
        let before = std::mem::replace(&mut self.revision, now);
        Some(now > before + 1)
    }
}

/// A staged value that is there yet. Of one that was deleted before its change was told, as it is when it
/// is promoted, that was told without data.
fn there(node: CachedNode) -> Option<CachedNode> {
    node.data.is_some().then_some(node)
}

/// The number of the change that holds.
fn revision_of(nodes: &Nodes, live: Option<&CachedNode>) -> Option<u64> {
    let record = Record::decode(&nodes.live, live?.data.as_ref());
    record.ok().map(|record| record.head.revision)
}

/// What a layer says to somebody at that place: what is staged if the place is in its groups, else
/// what holds.
fn said(place: &Place, nodes: &Nodes, state: &State) -> Result<Option<(Record, bool)>, Error> {
    // What may not be read could be what counts.
    let check = |path: &ZPath| match state.hidden.get(path) {
        Some(path) => Err(crate::Error::Server {
            operation: crate::Operation { name: "get", path: Some(path.clone()), index: None },
            code: ErrorCode::NoAuth,
        }),
        None => Ok(()),
    };
    // Who is in no group need not know what is wrong with what is staged.
    if !place.groups.is_empty() {
        check(&nodes.staged)?;
    }
    if let Some(staged) = state.staged.as_ref().filter(|_| !place.groups.is_empty()) {
        let record = Record::decode(&nodes.staged, staged.data.as_ref())?;
        if place.is_in(&record.head.groups) {
            return Ok(Some((record, true)));
        }
    }
    check(&nodes.live)?;
    let Some(live) = &state.live else { return Ok(None) };
    let record = Record::decode(&nodes.live, live.data.as_ref())?;
    Ok((!record.is_removal()).then_some((record, false)))
}

/// The value that counts: that of the strongest layer that has one, with the overlays of those
/// above it merged in.
fn resolve<T: Serialize + DeserializeOwned>(
    place: &Place,
    layers: &[(Layer, Cache)],
    setting: &Setting<T>,
    shown: &[(Source, State)],
) -> Result<Option<Resolved<T>>, Error> {
    let (mut beneath, mut overlays, mut whole) = (Vec::new(), Vec::new(), None);
    let mut strongest = None;
    for (Source { layer, nodes }, state) in shown.iter().rev() {
        let Some((record, is_staged)) = said(place, nodes, state)? else { continue };
        let path = if is_staged { &nodes.staged } else { &nodes.live };
        let (layer, revision) = (layers[*layer].0.clone(), Revision(record.head.revision));
        let origin = Origin { layer, revision, is_staged };
        if strongest.is_none() {
            strongest = Some((origin, path));
        } else {
            beneath.push(origin);
        }
        let Some(overlay) = record.overlay(path)? else {
            whole = Some((record, path));
            break;
        };
        overlays.push(overlay);
    }
    let Some((origin, strongest)) = strongest else { return Ok(None) };
    let value = match whole {
        Some((record, path)) if overlays.is_empty() => setting.decode(path, &record.value)?,
        whole => {
            let whole = whole.map(|(record, path)| record.json(path)).transpose()?;
            let merge = |beneath, overlay: Overlay| Some(overlay.over(beneath));
            let merged = overlays.into_iter().rev().fold(whole, merge);
            setting.decode_json(strongest, &merged.unwrap_or_default())?
        }
    };
    Ok(Some(Resolved { value, origin, beneath, secret: setting.is_secret() }))
}

/// What identifies what was told: where it comes from, and what it is.
type Told = Result<Option<(Origin, Vec<Origin>, Vec<u8>)>, Error>;

/// The value of a setting as a stream.
pub struct Live<T> {
    follower: Follower,
    setting: Setting<T>,
    shown: Vec<(Source, State)>,
    /// The changes of each of the layers in `shown`.
    changes: Vec<CacheChanges>,
    told: Option<Told>,
    waiting: VecDeque<Result<LiveItem<T>, Error>>,
    has_ended: bool,
}

impl<T: Serialize + DeserializeOwned> Live<T> {
    /// What comes next. An error does not end the stream, unless the
    /// [follower has ended](Follower::has_ended): then `None` comes after it.
    ///
    /// Safe to be cancelled.
    pub async fn next(&mut self) -> Option<Result<LiveItem<T>, Error>> {
        loop {
            if let Some(item) = self.waiting.pop_front() {
                return Some(item);
            }
            if self.has_ended {
                return None;
            }
            let (layer, item) = first_of(self.changes.iter_mut().map(CacheChanges::next)).await;
            match item {
                Some(Ok(item)) => self.take(layer, item),
                Some(Err(error)) => {
                    self.has_ended = true;
                    return Some(Err(error));
                }
                None => self.has_ended = true,
            }
        }
    }

    fn take(&mut self, layer: usize, item: CacheItem) {
        match item {
            CacheItem::Changed { path, after, .. } => {
                let (source, state) = &mut self.shown[layer];
                if let Some(has_missed) = state.take(&source.nodes, &path, after) {
                    if has_missed {
                        self.waiting.push_back(Ok(LiveItem::Gap));
                    }
                    self.look();
                }
            }
            CacheItem::Gap => {
                let (source, state) = &mut self.shown[layer];
                let cache = &self.follower.layers[source.layer].1;
                // What waits may be older than what the cache shows. If it has ended, the changes
                // say so next.
                if let Ok(now) = cache.follow(|view| State::of(view, &source.nodes)) {
                    (*state, self.changes[layer]) = now;
                }
                self.waiting.push_back(Ok(LiveItem::Gap));
                self.look();
            }
        }
    }

    /// Tells what the value is now, unless that was told.
    fn look(&mut self) {
        let Live { follower, setting, shown, .. } = self;
        let now = resolve(&follower.place, &follower.layers, setting, shown);
        let identity = match &now {
            Ok(None) => Ok(None),
            Ok(Some(value)) => {
                // What was written can be written again.
                let json = serde_json::to_vec(&value.value).unwrap_or_default();
                Ok(Some((value.origin.clone(), value.beneath.clone(), json)))
            }
            Err(error) => Err(error.clone()),
        };
        if self.told.as_ref() != Some(&identity) {
            self.told = Some(identity);
            self.waiting.push_back(now.map(LiveItem::Value));
        }
    }
}
