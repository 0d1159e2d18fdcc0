//! What values of a setting look like, kept beside them so that every writer is held to it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a value must look like: a part of JSON Schema, in its words.
///
/// It is stored in the registry ([`Setting::set_schema`](super::Setting::set_schema)), and from then
/// on no program and no person writes a value through the library that does not fit, whatever types
/// they use.
///
/// ```
/// use conclave_client::recipes::config::Schema;
///
/// let schema: Schema = serde_json::from_str(
///     r#"{
///         "type": "object",
///         "required": ["host"],
///         "properties": {
///             "host": {"type": "string", "minLength": 1},
///             "port": {"type": "integer", "minimum": 1, "maximum": 65535},
///             "password": {"type": "string", "secret": true}
///         },
///         "additionalProperties": false
///     }"#,
/// )?;
/// assert!(schema.check(&serde_json::json!({"host": "db", "port": 5432})).is_ok());
/// let why = schema.check(&serde_json::json!({"host": "db", "port": 0})).unwrap_err();
/// assert_eq!(why, "/port is less than 1");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Schema {
    /// `object`, `array`, `string`, `integer`, `number`, `boolean` or `null`; any if absent.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// The only values allowed.
    #[serde(rename = "enum", skip_serializing_if = "Option::is_none")]
    pub one_of: Option<Vec<Value>>,
    /// The least number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum: Option<f64>,
    /// The greatest number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maximum: Option<f64>,
    /// The fewest characters of a string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_length: Option<usize>,
    /// The most characters of a string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// The fewest items of an array.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_items: Option<usize>,
    /// The most items of an array.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_items: Option<usize>,
    /// What each item of an array looks like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items: Option<Box<Schema>>,
    /// What fields of an object look like.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, Schema>,
    /// The fields that an object must have.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub required: BTreeSet<String>,
    /// Whether an object may have fields that are not in `properties`; it may unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub additional_properties: Option<bool>,
    /// It is shown as `***` in differences and listings.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub secret: bool,
}

/// What kind of value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Fields with names.
    Object,
    /// Items in a row.
    Array,
    /// Text.
    String,
    /// A number without fraction.
    Integer,
    /// Any number.
    Number,
    /// True or false.
    Boolean,
    /// Nothing.
    Null,
}

impl Schema {
    /// Whether a value fits.
    ///
    /// # Errors
    /// What is wrong first, with the place as a JSON pointer, and without the value.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        self.check_at(value, "", false)
    }

    /// Whether the fields of an overlay fit: a value that fits still does when it is merged in.
    pub(super) fn check_overlay(&self, overlay: &Value) -> Result<(), String> {
        self.check_at(overlay, "", true)
    }

    /// With `is_part`, an object may lack fields, and say `null` for those that are to be removed.
    fn check_at(&self, value: &Value, at: &str, is_part: bool) -> Result<(), String> {
        let place = if at.is_empty() { "the value" } else { at };
        if let Some(kind) = self.kind
            && !kind.fits(value)
        {
            return Err(format!("{place} is no {}", kind.name()));
        }
        let is_part = is_part && value.is_object();
        if !is_part && self.one_of.as_ref().is_some_and(|allowed| !allowed.contains(value)) {
            return Err(format!("{place} is none of the values allowed"));
        }
        match value {
            Value::Number(number) => self.check_number(number.as_f64(), place),
            Value::String(text) => {
                within(text.chars().count(), self.min_length, self.max_length, place, "characters")
            }
            Value::Array(items) => {
                within(items.len(), self.min_items, self.max_items, place, "items")?;
                let Some(schema) = &self.items else { return Ok(()) };
                items.iter().enumerate().try_for_each(|(index, item)| {
                    schema.check_at(item, &format!("{at}/{index}"), false)
                })
            }
            Value::Object(fields) => self.check_fields(fields, at, place, is_part),
            Value::Null | Value::Bool(_) => Ok(()),
        }
    }

    fn check_number(&self, number: Option<f64>, place: &str) -> Result<(), String> {
        let Some(number) = number else { return Ok(()) };
        match (self.minimum, self.maximum) {
            (Some(least), _) if number < least => Err(format!("{place} is less than {least}")),
            (_, Some(most)) if number > most => Err(format!("{place} is more than {most}")),
            (None | Some(_), None | Some(_)) => Ok(()),
        }
    }

    fn check_fields(
        &self,
        fields: &serde_json::Map<String, Value>,
        at: &str,
        place: &str,
        is_part: bool,
    ) -> Result<(), String> {
        let is_removed = |name: &String| is_part && fields.get(name).is_some_and(Value::is_null);
        let is_missing = |name: &String| {
            if is_part { is_removed(name) } else { !fields.contains_key(name) }
        };
        if let Some(missing) = self.required.iter().find(|name| is_missing(name)) {
            return Err(format!("{place} lacks the field {missing:?}"));
        }
        fields.iter().try_for_each(|(name, value)| match self.properties.get(name) {
            Some(_) if is_removed(name) => Ok(()),
            Some(schema) => schema.check_at(value, &format!("{at}/{}", escape(name)), is_part),
            None if self.additional_properties == Some(false) => {
                Err(format!("{place} has the unknown field {name:?}"))
            }
            None => Ok(()),
        })
    }

    /// The value with `***` for all that is secret.
    pub fn redact(&self, value: &Value) -> Value {
        if self.secret {
            return Value::from("***");
        }
        match value {
            Value::Object(fields) => fields
                .iter()
                .map(|(name, value)| {
                    let schema = self.properties.get(name);
                    let shown = schema.map_or_else(|| value.clone(), |schema| schema.redact(value));
                    (name.clone(), shown)
                })
                .collect(),
            Value::Array(items) => items
                .iter()
                .map(|item| self.items.as_ref().map_or_else(|| item.clone(), |s| s.redact(item)))
                .collect(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
        }
    }

    /// A value found at that place, a JSON pointer, with `***` for all that is secret.
    pub(super) fn redact_at(&self, pointer: &str, value: &Value) -> Value {
        let mut schema = self;
        for part in pointer.split('/').skip(1) {
            if schema.secret {
                break;
            }
            let name = part.replace("~1", "/").replace("~0", "~");
            let next = schema.properties.get(&name).or(schema.items.as_deref());
            let Some(next) = next else { return value.clone() };
            schema = next;
        }
        schema.redact(value)
    }
}

impl Kind {
    fn fits(self, value: &Value) -> bool {
        match self {
            Kind::Object => value.is_object(),
            Kind::Array => value.is_array(),
            Kind::String => value.is_string(),
            Kind::Integer => value.is_i64() || value.is_u64(),
            Kind::Number => value.is_number(),
            Kind::Boolean => value.is_boolean(),
            Kind::Null => value.is_null(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Object => "object",
            Kind::Array => "array",
            Kind::String => "string",
            Kind::Integer => "integer",
            Kind::Number => "number",
            Kind::Boolean => "boolean",
            Kind::Null => "null",
        }
    }
}

fn within(
    count: usize,
    least: Option<usize>,
    most: Option<usize>,
    place: &str,
    what: &str,
) -> Result<(), String> {
    match (least, most) {
        (Some(least), _) if count < least => Err(format!("{place} has fewer than {least} {what}")),
        (_, Some(most)) if count > most => Err(format!("{place} has more than {most} {what}")),
        (None | Some(_), None | Some(_)) => Ok(()),
    }
}

/// A name as a part of a JSON pointer.
pub(super) fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
