//! What differs between two values.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::Value;

use super::schema::{Schema, escape};

/// One place in which two values differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Where, as a JSON pointer; empty is the whole value.
    pub at: String,
    /// What is there in the first value, if anything.
    pub before: Option<Value>,
    /// What is there in the second value, if anything.
    pub after: Option<Value>,
}

impl fmt::Display for Difference {
    /// `/port: 1 → 2`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<Value>| value.as_ref().map_or("(none)".into(), Value::to_string);
        let at = if self.at.is_empty() { "/" } else { &self.at };
        write!(f, "{at}: {} → {}", show(&self.before), show(&self.after))
    }
}

/// Where two values differ, with `***` for what the schema calls secret.
pub(super) fn diff(
    before: Option<&Value>,
    after: Option<&Value>,
    schema: Option<&Schema>,
) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(before, after, "", &mut found);
    if let Some(schema) = schema {
        for Difference { at, before, after } in &mut found {
            for side in [before, after] {
                *side = side.take().map(|value| schema.redact_at(at, &value));
            }
        }
    }
    found
}

fn compare(before: Option<&Value>, after: Option<&Value>, at: &str, found: &mut Vec<Difference>) {
    match (before, after) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for name in names {
                let at = format!("{at}/{}", escape(name));
                compare(old.get(name), new.get(name), &at, found);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            for index in 0..old.len().max(new.len()) {
                compare(old.get(index), new.get(index), &format!("{at}/{index}"), found);
            }
        }
        (before, after) if before != after => {
            let (before, after) = (before.cloned(), after.cloned());
            found.push(Difference { at: at.to_owned(), before, after });
        }
        (None | Some(_), None | Some(_)) => {}
    }
}
