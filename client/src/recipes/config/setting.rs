//! One setting: reading it, changing it, and what it was before.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use conclave_proto::{ErrorCode, Stat, ZPath};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::diff::{Difference, diff};
use super::record::{Change, Head, Record};
use super::schema::Schema;
use super::write::{Check, Draft, Nodes, Revision, Seen};
use super::{Layer, Overlay, Registry};
use crate::recipes::Error;
use crate::recipes::support::{child, ensure};

/// How often an edit begins again because somebody was faster.
const EDITS: usize = 64;

type Validation<T> = Arc<dyn Fn(&T) -> Result<(), String> + Send + Sync>;

/// One setting of a registry, with values of type `T`. With [`serde_json::Value`] it is any JSON.
pub struct Setting<T> {
    registry: Registry,
    name: String,
    note: String,
    secret: bool,
    validation: Option<Validation<T>>,
}

impl<T> Clone for Setting<T> {
    fn clone(&self) -> Setting<T> {
        Setting {
            registry: self.registry.clone(),
            name: self.name.clone(),
            note: self.note.clone(),
            secret: self.secret,
            validation: self.validation.clone(),
        }
    }
}

impl<T> fmt::Debug for Setting<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setting").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A value and the change that made it.
#[derive(Clone, PartialEq)]
pub struct Versioned<T> {
    /// The value; `None` if the change removed it, or set an overlay.
    pub value: Option<T>,
    /// The overlay, if the change set one.
    pub overlay: Option<Overlay>,
    /// The change's number.
    pub revision: Revision,
    /// What the change did.
    pub change: Change,
    /// Who made it; empty if not said.
    pub author: String,
    /// Why; empty if not said.
    pub note: String,
    /// When, in ms since 1970 by the servers' clock.
    pub time_ms: i64,
    secret: bool,
}

impl<T: fmt::Debug> fmt::Debug for Versioned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Versioned");
        if self.secret {
            debug.field("value", &"***");
        } else {
            debug.field("value", &self.value);
        }
        debug
            .field("overlay", &self.overlay)
            .field("revision", &self.revision)
            .field("change", &self.change)
            .field("author", &self.author)
            .field("note", &self.note)
            .finish()
    }
}

/// A value that some groups see before all others.
#[derive(Clone, Debug, PartialEq)]
pub struct Staged<T> {
    /// The value.
    pub value: Versioned<T>,
    /// The groups that see it.
    pub groups: Vec<String>,
}

impl<T> Setting<T> {
    pub(super) fn new(registry: Registry, name: &str) -> Setting<T> {
        let (name, note) = (name.to_owned(), String::new());
        Setting { registry, name, note, secret: false, validation: None }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a value must pass, beside being of its type, before it is written. The error should
    /// tell what is wrong, and no secret.
    pub fn validate(
        mut self,
        validation: impl Fn(&T) -> Result<(), String> + Send + Sync + 'static,
    ) -> Setting<T> {
        self.validation = Some(Arc::new(validation));
        self
    }

    /// The value as a whole is a secret: errors, differences and `Debug` show `***`.
    pub fn secret(mut self) -> Setting<T> {
        self.secret = true;
        self
    }

    /// Why the changes are made that are made through this handle, for the history.
    pub fn note(mut self, note: impl Into<String>) -> Setting<T> {
        self.note = note.into();
        self
    }

    fn nodes(&self, layer: &Layer) -> Result<Nodes, Error> {
        Nodes::of(&self.registry, layer, &self.name)
    }
}

/// Reading and writing.
impl<T: Serialize + DeserializeOwned> Setting<T> {
    /// The value of a layer; `None` if it never had one. It is as fresh as this session's reads are.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is not of type `T`; [`Error::Malformed`] if somebody edited it by
    /// hand.
    pub async fn get(&self, layer: &Layer) -> Result<Option<Versioned<T>>, Error> {
        let nodes = self.nodes(layer)?;
        let seen = self.registry.seen(&nodes.live).await?;
        seen.map(|seen| self.versioned(&nodes.live, seen)).transpose()
    }

    /// Sets the value of a layer, whatever it was.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it does not pass the validation or does not fit the schema;
    /// [`Error::Conflict`] if others are always faster.
    pub async fn set(&self, layer: &Layer, value: &T) -> Result<Revision, Error> {
        self.change(layer, value, Change::Set, None).await
    }

    /// Sets the value of a layer if the layer is at that revision; [`Revision::NONE`] if it never
    /// had a value, or its value was deleted by hand.
    ///
    /// # Errors
    /// [`Error::Conflict`] if it is at another revision; as [`set`](Setting::set).
    pub async fn compare_and_set(
        &self,
        layer: &Layer,
        on: Revision,
        value: &T,
    ) -> Result<Revision, Error> {
        self.change(layer, value, Change::Set, Some(on)).await
    }

    /// Makes a layer override some fields only, whatever it said: those who see the layer see the
    /// overlay merged into what the layers beneath say, and what becomes of it as these change.
    ///
    /// What the layers beneath are is known to who sees them alone. Here it is checked that the
    /// overlay's fields fit the schema, and, if the default layer has a value, that the overlay makes
    /// a valid one of that. Who sees a value that is not valid in spite of it gets
    /// [`Error::Invalid`].
    ///
    /// # Errors
    /// [`Error::Invalid`] if that is not so; [`Error::Config`] in the default layer, which has none
    /// beneath it; [`Error::Conflict`] if the layer is not at that revision, if one is given.
    pub async fn set_overlay(
        &self,
        layer: &Layer,
        on: Option<Revision>,
        overlay: &Overlay,
    ) -> Result<Revision, Error> {
        let nodes = self.nodes(layer)?;
        let value = self.encode_overlay(&nodes.live, overlay)?;
        let (change, note) = (Change::Set, self.note.clone());
        let check = self.checks(&nodes);
        let draft = Draft { change, value, overlay: Some(&check), note, on, uses: None };
        self.registry.commit(&nodes, &draft).await
    }

    /// Changes the value of a layer from what it is to what `edit` makes of it, which is called
    /// again if somebody else is faster. If it gives `None`, nothing is changed.
    ///
    /// # Errors
    /// [`Error::Conflict`] if somebody is always faster; [`Error::Config`] if the layer has an
    /// overlay; as [`set`](Setting::set).
    pub async fn edit(
        &self,
        layer: &Layer,
        mut edit: impl FnMut(Option<T>) -> Option<T>,
    ) -> Result<Option<Revision>, Error> {
        for _ in 0..EDITS {
            let current = self.get(layer).await?;
            let on = current.as_ref().map_or(Revision::NONE, |current| current.revision);
            if current.as_ref().is_some_and(|current| current.overlay.is_some()) {
                let name = self.name();
                return Err(Error::Config(format!(
                    "{name} has an overlay for {layer}, no value to edit: set another overlay"
                )));
            }
            let Some(value) = edit(current.and_then(|current| current.value)) else {
                return Ok(None);
            };
            match self.compare_and_set(layer, on, &value).await {
                Ok(revision) => return Ok(Some(revision)),
                Err(Error::Conflict { .. }) => drop(self.registry.client.sync().await?),
                Err(error) => return Err(error),
            }
        }
        Err(Error::Conflict { path: self.nodes(layer)?.live })
    }

    /// Removes the value of a layer: those below show through.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the layer is not at that revision, if one is given.
    pub async fn remove(&self, layer: &Layer, on: Option<Revision>) -> Result<Revision, Error> {
        let (value, note) = (Bytes::new(), self.note.clone());
        let draft = Draft { change: Change::Remove, value, overlay: None, note, on, uses: None };
        self.registry.commit(&self.nodes(layer)?, &draft).await
    }

    async fn change(
        &self,
        layer: &Layer,
        value: &T,
        change: Change,
        on: Option<Revision>,
    ) -> Result<Revision, Error> {
        let nodes = self.nodes(layer)?;
        let value = self.encode(&nodes.live, value)?;
        let note = self.note.clone();
        let draft = Draft { change, value, overlay: None, note, on, uses: None };
        self.registry.commit(&nodes, &draft).await
    }
}

/// What it was before.
impl<T: Serialize + DeserializeOwned> Setting<T> {
    /// The revisions of a layer that are kept, the latest first. Values that are not of type `T`
    /// any more are errors of their own.
    ///
    /// They stay if the value itself was deleted by hand, and can be [set again](Setting::rollback);
    /// the latest may then be one whose writer died before it took effect.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn history(&self, layer: &Layer) -> Result<Vec<Result<Versioned<T>, Error>>, Error> {
        let nodes = self.nodes(layer)?;
        let latest = self.registry.latest(&nodes).await?;
        let mut entries =
            self.registry.client.list(&nodes.history).with_stat().with_data().stream();
        let mut found = Vec::new();
        while let Some(entry) = entries.next().await {
            let entry = match entry {
                Err(error) if error.code() == Some(ErrorCode::NoNode) => break,
                entry => entry?,
            };
            let path = child(&nodes.history, &entry.name)?;
            let record = Record::decode(&path, entry.data.as_ref());
            // One that was proposed and has not taken effect is none.
            let is_in_effect = |record: &Record| record.head.revision <= latest;
            if record.as_ref().map_or(true, is_in_effect) {
                let stat = entry.stat.unwrap_or_default();
                found.push(record.and_then(|record| self.versioned(&path, Seen { record, stat })));
            }
        }
        found.reverse();
        Ok(found)
    }

    /// A revision of a layer.
    ///
    /// # Errors
    /// [`Error::Gone`] if it is not kept any more or never was.
    pub async fn revision(&self, layer: &Layer, revision: Revision) -> Result<Versioned<T>, Error> {
        let path = self.nodes(layer)?.revision(revision.0)?;
        self.versioned(&path, self.past(layer, revision).await?)
    }

    /// In what two revisions of a layer differ, with `***` for what is secret.
    ///
    /// # Errors
    /// [`Error::Gone`] if one is not kept any more or never was.
    pub async fn diff(
        &self,
        layer: &Layer,
        before: Revision,
        after: Revision,
    ) -> Result<Vec<Difference>, Error> {
        let nodes = self.nodes(layer)?;
        let json = async |revision| {
            let Seen { record, .. } = self.past(layer, revision).await?;
            let path = nodes.revision(revision.0)?;
            if record.is_removal() { Ok(None) } else { record.json(&path).map(Some) }
        };
        let (before, after) = (json(before).await?, json(after).await?);
        let schema = self.registry.schema(&nodes.schema).await?.map(|(schema, _)| schema);
        let secret = Schema { secret: true, ..Schema::default() };
        let schema = if self.secret { Some(&secret) } else { schema.as_ref() };
        Ok(diff(before.as_ref(), after.as_ref(), schema))
    }

    /// Sets the value of an earlier revision again, or removes it if it was removed then. It
    /// becomes a new revision.
    ///
    /// # Errors
    /// [`Error::Gone`] if it is not kept any more or never was; [`Error::Invalid`] if it does not
    /// pass the validation or the schema of today.
    pub async fn rollback(&self, layer: &Layer, to: Revision) -> Result<Revision, Error> {
        let nodes = self.nodes(layer)?;
        let past = self.past(layer, to).await?.record;
        if past.is_removal() {
            return self.remove(layer, None).await;
        }
        if !past.head.overlay {
            self.decode(&nodes.live, &past.value)?;
        }
        let check = self.checks(&nodes);
        let draft = Draft {
            change: Change::Rollback { to: to.0 },
            value: past.value,
            overlay: past.head.overlay.then_some(&check),
            note: self.note.clone(),
            on: None,
            uses: None,
        };
        self.registry.commit(&nodes, &draft).await
    }

    async fn past(&self, layer: &Layer, revision: Revision) -> Result<Seen, Error> {
        let nodes = self.nodes(layer)?;
        let path = nodes.revision(revision.0)?;
        let latest = self.registry.latest(&nodes).await?;
        let seen = self.registry.seen(&path).await?;
        seen.filter(|_| revision.0 <= latest).ok_or(Error::Gone { path })
    }
}

/// Staged roll-out.
impl<T: Serialize + DeserializeOwned> Setting<T> {
    /// Shows a value to the instances of these groups only, in place of the one the layer has. A
    /// value that is staged already is replaced.
    ///
    /// # Errors
    /// As [`set`](Setting::set).
    pub async fn stage(&self, layer: &Layer, groups: &[&str], value: &T) -> Result<(), Error> {
        let nodes = self.nodes(layer)?;
        let value = self.encode(&nodes.live, value)?;
        self.show_to(groups, &nodes, value, None).await
    }

    /// Shows an overlay to the instances of these groups only, in place of what the layer has.
    ///
    /// # Errors
    /// As [`set_overlay`](Setting::set_overlay).
    pub async fn stage_overlay(
        &self,
        layer: &Layer,
        groups: &[&str],
        overlay: &Overlay,
    ) -> Result<(), Error> {
        let nodes = self.nodes(layer)?;
        let value = self.encode_overlay(&nodes.live, overlay)?;
        self.show_to(groups, &nodes, value, Some(&self.checks(&nodes))).await
    }

    async fn show_to(
        &self,
        groups: &[&str],
        nodes: &Nodes,
        value: Bytes,
        overlay: Option<&Check<'_>>,
    ) -> Result<(), Error> {
        let (change, note) = (Change::Set, self.note.clone());
        let draft = Draft { change, value, overlay, note, on: None, uses: None };
        self.registry.stage(nodes, &draft, &named(groups)?).await
    }

    /// Shows the staged value of a layer to the instances of these groups, too.
    ///
    /// # Errors
    /// [`Error::Gone`] if none is staged; [`Error::Conflict`] if it changes meanwhile;
    /// [`Error::Invalid`] if it does not fit the schema of today.
    pub async fn widen(&self, layer: &Layer, groups: &[&str]) -> Result<(), Error> {
        let nodes = self.nodes(layer)?;
        let Seen { mut record, stat } = self.staged_record(&nodes).await?;
        for group in named(groups)? {
            if !record.head.groups.contains(&group) {
                record.head.groups.push(group);
            }
        }
        self.registry.restage(&nodes, &record, &stat, &self.checks(&nodes)).await
    }

    /// The value of a layer that is staged, if one is.
    ///
    /// # Errors
    /// As [`get`](Setting::get).
    pub async fn staged(&self, layer: &Layer) -> Result<Option<Staged<T>>, Error> {
        let nodes = self.nodes(layer)?;
        let Some(seen) = self.registry.seen(&nodes.staged).await? else { return Ok(None) };
        let groups = seen.record.head.groups.clone();
        Ok(Some(Staged { value: self.versioned(&nodes.staged, seen)?, groups }))
    }

    /// Makes the staged value of a layer everybody's.
    ///
    /// # Errors
    /// [`Error::Gone`] if none is staged; [`Error::Conflict`] if the layer was changed since it was
    /// staged, or the staged value is changed meanwhile.
    pub async fn promote(&self, layer: &Layer) -> Result<Revision, Error> {
        let nodes = self.nodes(layer)?;
        let Seen { record, stat } = self.staged_record(&nodes).await?;
        let check = self.checks(&nodes);
        let draft = Draft {
            change: Change::Promote,
            value: record.value,
            overlay: record.head.overlay.then_some(&check),
            note: if self.note.is_empty() { record.head.note } else { self.note.clone() },
            on: Some(Revision(record.head.revision)),
            uses: Some(stat),
        };
        self.registry.commit(&nodes, &draft).await
    }

    /// Takes the staged value of a layer back. True if there was one.
    ///
    /// # Errors
    /// If no server confirms it.
    pub async fn abandon(&self, layer: &Layer) -> Result<bool, Error> {
        match self.registry.client.delete(self.nodes(layer)?.staged).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn staged_record(&self, nodes: &Nodes) -> Result<Seen, Error> {
        let seen = self.registry.seen(&nodes.staged).await?;
        seen.ok_or_else(|| Error::Gone { path: nodes.staged.clone() })
    }
}

/// The schema.
impl<T> Setting<T> {
    /// The schema that is stored for the setting, if there is one.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it was edited by hand into something that is none.
    pub async fn schema(&self) -> Result<Option<Schema>, Error> {
        let nodes = self.nodes(&Layer::Default)?;
        Ok(self.registry.schema(&nodes.schema).await?.map(|(schema, _)| schema))
    }

    /// Stores a schema for the setting, for all layers and all writers. Values that are there
    /// already are not looked at.
    ///
    /// # Errors
    /// If it cannot be written.
    pub async fn set_schema(&self, schema: &Schema) -> Result<(), Error> {
        let path = self.nodes(&Layer::Default)?.schema;
        let data: Bytes = serde_json::to_vec(schema)
            .map_err(|error| Error::Invalid { path: path.clone(), why: error.to_string() })?
            .into();
        for parent in path.parent().iter() {
            ensure(&self.registry.client, parent).await?;
        }
        match self.registry.client.create(&path, data.clone()).await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some(ErrorCode::NodeExists) => {
                self.registry.client.set(&path, data).await?;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// From and to JSON.
impl<T: Serialize + DeserializeOwned> Setting<T> {
    fn encode(&self, path: &ZPath, value: &T) -> Result<Bytes, Error> {
        self.check(path, value)?;
        let data = serde_json::to_vec(value).map_err(|error| self.invalid(path, &error))?;
        // What is written must be readable by whoever reads it.
        self.decode(path, &data)?;
        Ok(data.into())
    }

    fn encode_overlay(&self, path: &ZPath, overlay: &Overlay) -> Result<Bytes, Error> {
        let data = serde_json::to_vec(&overlay.to_json());
        Ok(data.map_err(|error| self.invalid(path, &error))?.into())
    }

    /// Whether what becomes of the default is valid.
    fn checks<'a>(&'a self, nodes: &'a Nodes) -> Box<Check<'a>> {
        Box::new(|merged| self.decode_json(&nodes.live, merged).map(drop))
    }

    /// The value of that JSON, if it is valid.
    pub(super) fn decode(&self, path: &ZPath, json: &[u8]) -> Result<T, Error> {
        let value = serde_json::from_slice(json).map_err(|error| self.invalid(path, &error))?;
        self.check(path, &value)?;
        Ok(value)
    }

    /// As [`decode`](Setting::decode), of JSON that is made of several values.
    pub(super) fn decode_json(&self, path: &ZPath, json: &Value) -> Result<T, Error> {
        let data = serde_json::to_vec(json).map_err(|error| self.invalid(path, &error))?;
        self.decode(path, &data)
    }

    pub(super) fn is_secret(&self) -> bool {
        self.secret
    }

    pub(super) fn is_of(&self, registry: &Registry) -> bool {
        self.registry.root == registry.root
    }

    fn check(&self, path: &ZPath, value: &T) -> Result<(), Error> {
        let checked = self.validation.as_ref().map_or(Ok(()), |validation| validation(value));
        checked.map_err(|why| Error::Invalid {
            path: path.clone(),
            why: if self.secret { "it does not pass the validation".into() } else { why },
        })
    }

    fn invalid(&self, path: &ZPath, error: &serde_json::Error) -> Error {
        // The message could tell a part of the value, which may be secret by a schema that is not
        // known here.
        let mut why = String::from("it is not of the setting's type");
        if !self.secret && error.line() > 0 {
            why += &format!(": line {}, column {} of its JSON", error.line(), error.column());
        }
        Error::Invalid { path: path.clone(), why }
    }

    fn versioned(&self, path: &ZPath, seen: Seen) -> Result<Versioned<T>, Error> {
        let Seen { record, stat: Stat { mtime_ms, .. } } = seen;
        let overlay = record.overlay(path)?;
        let has_value = !record.is_removal() && overlay.is_none();
        let value = has_value.then(|| self.decode(path, &record.value)).transpose()?;
        let Head { revision, change, author, note, .. } = record.head;
        Ok(Versioned {
            value,
            overlay,
            revision: Revision(revision),
            change,
            author,
            note,
            time_ms: mtime_ms,
            secret: self.secret,
        })
    }
}

/// The names of groups, each of them usable.
fn named(groups: &[&str]) -> Result<Vec<String>, Error> {
    if groups.is_empty() {
        return Err(Error::Config("a staged value needs at least one group".into()));
    }
    let check = |group: &&str| child(&ZPath::root(), group).map(|_| (*group).to_owned());
    groups.iter().map(check).collect()
}
