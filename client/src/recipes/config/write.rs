//! How a change is made: first into the history, then into effect, each on the condition that
//! nothing has come in between.

use std::time::Duration;

use bytes::Bytes;
use conclave_proto::request::Test;
use conclave_proto::{ErrorCode, Stat, ZPath, Zxid};
use serde_json::Value;

use super::record::{Change, Head, REVISIONS, Record, SETTING_BYTES};
use super::schema::Schema;
use super::{Layer, Overlay, RECIPE, Registry, STAGED, VALUES};
use crate::recipes::Error;
use crate::recipes::support::{child, ensure};
use crate::recipes::timer::timeout;
use crate::{Multi, Node};

/// How often a change is tried again because something came in between.
const ATTEMPTS: usize = 64;

/// How long a proposal is left to its maker.
const PATIENCE: Duration = Duration::from_millis(500);

/// The number of a change of a setting in a layer: 1 for the first, and one more for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// Before the first change.
    pub const NONE: Revision = Revision(0);
}

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The nodes of a setting in a layer.
pub(super) struct Nodes {
    /// What holds.
    pub(super) live: ZPath,
    /// What some groups see.
    pub(super) staged: ZPath,
    /// The directory of the revisions.
    pub(super) history: ZPath,
    pub(super) schema: ZPath,
    /// What holds in the layer that is beneath all others.
    pub(super) default: ZPath,
}

impl Nodes {
    pub(super) fn of(registry: &Registry, layer: &Layer, name: &str) -> Result<Nodes, Error> {
        let values = |layer| child(&child(&registry.live_layer(layer)?, VALUES)?, name);
        let (live, default) = (values(layer)?, values(&Layer::Default)?);
        let staged = child(&child(&registry.live_layer(layer)?, STAGED)?, name)?;
        let history = child(&child(&registry.child("history")?, &layer.directory()?)?, name)?;
        let schema = child(&registry.child("schemas")?, name)?;
        Ok(Nodes { live, staged, history, schema, default })
    }

    pub(super) fn revision(&self, revision: u64) -> Result<ZPath, Error> {
        child(&self.history, &format!("{revision:020}"))
    }
}

/// A node's record, and what identifies this state of the node.
pub(super) struct Seen {
    pub(super) record: Record,
    pub(super) stat: Stat,
}

/// Whether a value is valid, beside fitting the schema.
pub(super) type Check<'a> = dyn Fn(&Value) -> Result<(), Error> + Send + Sync + 'a;

/// What a change is to be.
pub(super) struct Draft<'a> {
    pub(super) change: Change,
    pub(super) value: Bytes,
    /// If it is an overlay: whether what that makes of the default is valid.
    pub(super) overlay: Option<&'a Check<'a>>,
    pub(super) note: String,
    /// Fail unless it is made on this revision.
    pub(super) on: Option<Revision>,
    /// The staged value that is used up by it.
    pub(super) uses: Option<Stat>,
}

/// What one attempt came to.
enum Attempt {
    Done(Revision),
    /// Something came in between.
    Overtaken,
}

impl Registry {
    /// Reads a record; `None` if there is no node.
    pub(super) async fn seen(&self, path: &ZPath) -> Result<Option<Seen>, Error> {
        let Some(Node { data, stat }) = self.node(path).await? else { return Ok(None) };
        let record = Record::decode(path, data.as_ref())?;
        Ok(Some(Seen { record, stat }))
    }

    pub(super) async fn node(&self, path: &ZPath) -> Result<Option<Node>, Error> {
        match self.client.get(path).await {
            Ok(node) => Ok(Some(node)),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The schema that is stored for a setting, and what identifies its state.
    pub(super) async fn schema(&self, path: &ZPath) -> Result<Option<(Schema, Stat)>, Error> {
        let Some(node) = self.node(path).await? else { return Ok(None) };
        let schema = serde_json::from_slice(node.bytes()).map_err(|error| Error::Malformed {
            path: path.clone(),
            recipe: RECIPE,
            why: format!("it is no schema: {error}"),
        })?;
        Ok(Some((schema, node.stat)))
    }

    /// Makes a change, on the revision that is given, or else on whichever there is.
    pub(super) async fn commit(&self, nodes: &Nodes, draft: &Draft<'_>) -> Result<Revision, Error> {
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                // This server may not have seen yet what came in between.
                self.client.sync().await?;
            }
            if let Attempt::Done(revision) = self.attempt(nodes, draft).await? {
                return Ok(revision);
            }
        }
        Err(Error::Conflict { path: nodes.live.clone() })
    }

    /// Shows a value to these groups, in place of what they were shown before, unless what it was
    /// checked against changes meanwhile.
    pub(super) async fn stage(
        &self,
        nodes: &Nodes,
        draft: &Draft<'_>,
        groups: &[String],
    ) -> Result<(), Error> {
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                self.client.sync().await?;
            }
            let checked = self.check(nodes, &draft.value, draft.overlay).await?;
            let current = self.seen(&nodes.live).await?;
            let revision = current.as_ref().map_or(0, |seen| seen.record.head.revision);
            let data = self.record(draft, revision, groups.to_vec()).encode()?;
            let is_staged = self.client.exists(&nodes.staged).await?.is_some();
            let on = On { nodes, current: current.map(|seen| seen.stat), checked };
            let multi = on.conditions(self.client.multi());
            let multi = if is_staged {
                multi.set(&nodes.staged, data, None)
            } else {
                multi.create(&nodes.staged, data)
            };
            match multi.await {
                Ok(outcome) if outcome.held => return Ok(()),
                Ok(_) => {}
                Err(error) if error.code() == Some(ErrorCode::NodeExists) => {}
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                    for parent in nodes.staged.parent().iter() {
                        ensure(&self.client, parent).await?;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Conflict { path: nodes.staged.clone() })
    }

    /// Shows a staged value in another way, unless it, or what it is checked against, changes meanwhile.
    pub(super) async fn restage(
        &self,
        nodes: &Nodes,
        record: &Record,
        seen: &Stat,
        check: &Check<'_>,
    ) -> Result<(), Error> {
        let overlay = record.head.overlay.then_some(check);
        let checked = self.check(nodes, &record.value, overlay).await?;
        let multi = checked.conditions(nodes, self.client.multi());
        let multi = unchanged(multi, &nodes.staged, Some(seen));
        let outcome = multi.set(&nodes.staged, record.encode()?, None).await?;
        outcome.held.then_some(()).ok_or_else(|| Error::Conflict { path: nodes.staged.clone() })
    }

    fn record(&self, draft: &Draft<'_>, revision: u64, groups: Vec<String>) -> Record {
        let head = Head {
            revision,
            change: draft.change.clone(),
            author: self.author.clone(),
            note: draft.note.clone(),
            overlay: draft.overlay.is_some(),
            groups,
        };
        Record { head, value: draft.value.clone() }
    }

    /// Whether a value may be written, as far as can be seen now; and what was seen.
    async fn check(
        &self,
        nodes: &Nodes,
        value: &[u8],
        overlay: Option<&Check<'_>>,
    ) -> Result<Checked, Error> {
        let invalid = |why| Error::Invalid { path: nodes.live.clone(), why };
        if value.len() > SETTING_BYTES {
            let bytes = value.len();
            let why = format!("it has {bytes} bytes, and a setting has at most {SETTING_BYTES}");
            return Err(invalid(why));
        }
        let (schema, stat) = self.schema(&nodes.schema).await?.unzip();
        let schema = schema.unwrap_or_default();
        let mut checked = Checked { schema: stat, default: None };
        let value = serde_json::from_slice(value).map_err(|_| invalid("it is not JSON".into()))?;
        let Some(check) = overlay else {
            schema.check(&value).map_err(invalid)?;
            return Ok(checked);
        };
        if nodes.live == nodes.default {
            let why = "an overlay needs a layer beneath it, and there is none beneath the default";
            return Err(Error::Config(why.into()));
        }
        schema.check_overlay(&value).map_err(invalid)?;
        let default = self.seen(&nodes.default).await?;
        checked.default = Some(default.as_ref().map(|seen| seen.stat));
        if let Some(Seen { record, .. }) = default.filter(|seen| !seen.record.is_removal()) {
            let beneath = record.json(&nodes.default)?;
            let merged = Overlay::new(&value)?.over(Some(beneath));
            let over_default = |why| invalid(format!("over the default, {why}"));
            schema.check(&merged).map_err(over_default)?;
            check(&merged)?;
        }
        Ok(checked)
    }

    async fn attempt(&self, nodes: &Nodes, draft: &Draft<'_>) -> Result<Attempt, Error> {
        let checked = if draft.change == Change::Remove {
            let schema = self.schema(&nodes.schema).await?;
            Checked { schema: schema.map(|(_, stat)| stat), default: None }
        } else {
            self.check(nodes, &draft.value, draft.overlay).await?
        };
        if let Some(staged) = &draft.uses {
            let now = self.client.exists(&nodes.staged).await?;
            if now.map(|now| (now.czxid, now.version)) != Some((staged.czxid, staged.version)) {
                return Err(Error::Conflict { path: nodes.staged.clone() });
            }
        }
        let current = self.seen(&nodes.live).await?;
        let base = match &current {
            Some(seen) => seen.record.head.revision,
            None => match self.latest_without_value(nodes).await? {
                Some(latest) => latest,
                None => return Ok(Attempt::Overtaken),
            },
        };
        let is_first = current.is_none() && draft.on == Some(Revision::NONE);
        if !is_first && draft.on.is_some_and(|on| on.0 != base) {
            // Perhaps this server is behind the one that told of the revision.
            return self.conflict_unless_behind(nodes, draft, base).await;
        }
        let data = self.record(draft, base + 1, Vec::new()).encode()?;
        if current.is_none()
            && let Some(parent) = nodes.live.parent()
        {
            // A proposal is to be enacted at once.
            ensure(&self.client, &parent).await?;
        }
        let on = On { nodes, current: current.map(|seen| seen.stat), checked };
        let Some(proposed) = self.propose(&on, base + 1, data.clone()).await? else {
            return Ok(Attempt::Overtaken);
        };
        if !self.enact(&on, draft, &proposed, data).await? {
            return Ok(Attempt::Overtaken);
        }
        if let Some(old) = (base + 1).checked_sub(self.kept).filter(|old| *old > 0) {
            // What is not deleted now is deleted never; that does no harm.
            drop(self.client.delete(nodes.revision(old)?).await);
        }
        Ok(Attempt::Done(Revision(base + 1)))
    }

    async fn conflict_unless_behind(
        &self,
        nodes: &Nodes,
        draft: &Draft<'_>,
        base: u64,
    ) -> Result<Attempt, Error> {
        let latest = self.client.get(&nodes.live).linearizable().await;
        let current = match latest {
            Ok(node) => Record::decode(&nodes.live, node.data.as_ref())?.head.revision,
            Err(error) if error.code() == Some(ErrorCode::NoNode) => base,
            Err(error) => return Err(error.into()),
        };
        if draft.on == Some(Revision(current)) {
            return Ok(Attempt::Overtaken);
        }
        Err(Error::Conflict { path: nodes.live.clone() })
    }

    /// The latest change, also if its value was deleted by hand; 0 before the first.
    pub(super) async fn latest(&self, nodes: &Nodes) -> Result<u64, Error> {
        for _ in 0..ATTEMPTS {
            if let Some(seen) = self.seen(&nodes.live).await? {
                return Ok(seen.record.head.revision);
            }
            if let Some(latest) = self.latest_without_value(nodes).await? {
                return Ok(latest);
            }
        }
        Err(Error::Conflict { path: nodes.live.clone() })
    }

    /// The latest revision of the history where there is no value: the value was deleted by hand, or
    /// whoever proposed it first has died, or is at it, and has its time. `None` if it has come.
    async fn latest_without_value(&self, nodes: &Nodes) -> Result<Option<u64>, Error> {
        let names = self.names(&nodes.history).await?;
        let Some(last) = names.last() else { return Ok(Some(0)) };
        let Some(latest) = last.parse().ok().filter(|&latest| latest < REVISIONS) else {
            let path = child(&nodes.history, last).unwrap_or_else(|_| nodes.history.clone());
            return Err(Error::Foreign { path, recipe: RECIPE });
        };
        let (live, mut changed) = self.client.exists_and_watch(&nodes.live).await?;
        let has_come =
            live.is_some() || timeout(&self.client, PATIENCE, changed.next()).await.is_ok();
        Ok((!has_come).then_some(latest))
    }

    /// Puts the revision into the history; `None` if something came in between.
    async fn propose(
        &self,
        on: &On<'_>,
        revision: u64,
        data: Bytes,
    ) -> Result<Option<Proposed>, Error> {
        let path = on.nodes.revision(revision)?;
        let create = on.conditions(self.client.multi()).create(&path, data.clone());
        match create.await {
            Ok(outcome) => return Ok(outcome.held.then(|| Proposed::new(path, outcome.zxid))),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                ensure(&self.client, &on.nodes.history).await?;
                return Ok(None);
            }
            Err(error) if error.code() == Some(ErrorCode::NodeExists) => {}
            Err(error) => return Err(error.into()),
        }
        // Somebody has proposed this revision and not enacted it: it died, or is at it. Whoever
        // replaces the proposal takes the chance to enact it from the other one, which therefore
        // has its time first.
        let Some(other) = self.client.exists(&path).await? else { return Ok(None) };
        let (live, mut changed) = self.client.exists_and_watch(&on.nodes.live).await?;
        let is_as_seen = live.map(|stat| stat.mzxid) == on.current.map(|stat| stat.mzxid);
        if !is_as_seen || timeout(&self.client, PATIENCE, changed.next()).await.is_ok() {
            return Ok(None);
        }
        let replace = on
            .conditions(self.client.multi())
            .when(&path, Test::CreatedBy(other.czxid))
            .delete(&path, None)
            .create(&path, data);
        match replace.await {
            Ok(outcome) => Ok(outcome.held.then(|| Proposed::new(path, outcome.zxid))),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts a proposed revision into effect. False if something came in between.
    async fn enact(
        &self,
        on: &On<'_>,
        draft: &Draft<'_>,
        proposed: &Proposed,
        data: Bytes,
    ) -> Result<bool, Error> {
        let mut multi =
            on.conditions(self.client.multi()).when(&proposed.path, Test::CreatedBy(proposed.zxid));
        multi = match &on.current {
            Some(_) => multi.set(&on.nodes.live, data, None),
            None => multi.create(&on.nodes.live, data),
        };
        if let Some(staged) = &draft.uses {
            multi = multi
                .when(&on.nodes.staged, Test::CreatedBy(staged.czxid))
                .delete(&on.nodes.staged, staged.version);
        }
        match multi.await {
            Ok(outcome) => Ok(outcome.held),
            // NoNode: the directory was deleted by hand; the next attempt makes it again.
            Err(error)
                if matches!(error.code(), Some(ErrorCode::BadVersion | ErrorCode::NoNode)) =>
            {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// A revision in the history that is not in effect yet.
struct Proposed {
    path: ZPath,
    zxid: Zxid,
}

impl Proposed {
    fn new(path: ZPath, zxid: Zxid) -> Proposed {
        Proposed { path, zxid }
    }
}

/// In which state what a value was checked against was seen.
struct Checked {
    schema: Option<Stat>,
    /// The default's, if it was checked against that.
    default: Option<Option<Stat>>,
}

impl Checked {
    fn conditions<'m>(&self, nodes: &Nodes, multi: Multi<'m>) -> Multi<'m> {
        let multi = unchanged(multi, &nodes.schema, self.schema.as_ref());
        match &self.default {
            Some(default) => unchanged(multi, &nodes.default, default.as_ref()),
            None => multi,
        }
    }
}

/// What a change is made on.
struct On<'a> {
    nodes: &'a Nodes,
    current: Option<Stat>,
    checked: Checked,
}

impl On<'_> {
    fn conditions<'m>(&self, multi: Multi<'m>) -> Multi<'m> {
        let multi = unchanged(multi, &self.nodes.live, self.current.as_ref());
        self.checked.conditions(self.nodes, multi)
    }
}

/// On the condition that a node is still in the state in which it was seen.
fn unchanged<'m>(multi: Multi<'m>, path: &ZPath, seen: Option<&Stat>) -> Multi<'m> {
    match seen {
        Some(stat) => {
            multi.when(path, Test::CreatedBy(stat.czxid)).when(path, Test::Version(stat.version))
        }
        None => multi.when(path, Test::Missing),
    }
}
