//! Values that say some fields only, and leave the others to the layers beneath.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::recipes::Error;

/// Some fields of a value, for a layer that overrides these alone.
///
/// It is merged into what the layers beneath say as a JSON merge patch (RFC 7396): objects field by
/// field, at every depth; everything else, arrays too, replaces what is beneath as a whole; `null`
/// removes a field. A field that is an object here and something else beneath replaces it.
///
/// `Debug` shows the names of its fields, not what is in them: it could be secret.
///
/// ```
/// use conclave_client::recipes::config::Overlay;
/// use serde_json::json;
///
/// let overlay = Overlay::new(&json!({"pool": {"size": 20}, "proxy": null}))?;
/// let beneath = json!({"pool": {"size": 10, "wait": 3}, "proxy": "p:80", "hosts": ["a", "b"]});
/// let merged = json!({"pool": {"size": 20, "wait": 3}, "hosts": ["a", "b"]});
/// assert_eq!(overlay.over(Some(beneath)), merged);
/// # Ok::<(), conclave_client::recipes::Error>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct Overlay(Map<String, Value>);

impl Overlay {
    /// An overlay of these fields: a [`Value`], or a structure that skips the fields that it leaves
    /// alone when it is serialized.
    ///
    /// # Errors
    /// [`Error::Config`] if it is no object, or is none in JSON.
    pub fn new(fields: &impl Serialize) -> Result<Overlay, Error> {
        let refused = |why: &dyn fmt::Display| Error::Config(format!("that is no overlay: {why}"));
        match serde_json::to_value(fields).map_err(|error| refused(&error))? {
            Value::Object(fields) => Ok(Overlay(fields)),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_) => Err(refused(&"it has no fields")),
        }
    }

    /// What is stored; `None` if it is none.
    pub(super) fn decode(json: &[u8]) -> Option<Overlay> {
        serde_json::from_slice(json).ok().map(Overlay)
    }

    /// Its fields, as JSON.
    pub fn to_json(&self) -> Value {
        Value::Object(self.0.clone())
    }

    /// What it makes of the value beneath, or of nothing.
    pub fn over(&self, beneath: Option<Value>) -> Value {
        merge(beneath, &self.0)
    }
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn merge(beneath: Option<Value>, fields: &Map<String, Value>) -> Value {
    let mut merged = match beneath {
        Some(Value::Object(beneath)) => beneath,
        Some(_) | None => Map::new(),
    };
    for (name, field) in fields {
        let beneath = merged.remove(name);
        let field = match field {
            Value::Null => continue,
            Value::Object(fields) => merge(beneath, fields),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => field.clone(),
        };
        merged.insert(name.clone(), field);
    }
    Value::Object(merged)
}
