//! How revisions are stored: a line that tells of the change, then the value.

use bytes::Bytes;
use conclave_proto::ZPath;
use conclave_proto::limits::VALUE_BYTES;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Overlay, RECIPE};
use crate::recipes::Error;

/// The longest head of a record, in bytes.
const HEAD_BYTES: usize = 4096;

/// The largest value of a setting, as JSON, in bytes: what a node holds, less what is kept with it.
pub const SETTING_BYTES: usize = VALUE_BYTES - HEAD_BYTES;

/// All revisions are less.
pub(super) const REVISIONS: u64 = u64::MAX;

/// What a change did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// A value was set.
    Set,
    /// The value was removed; lower layers show through.
    Remove,
    /// The value of an earlier revision was set again.
    Rollback {
        /// Which one.
        to: u64,
    },
    /// A value that a group had seen first was set for all.
    Promote,
}

/// What is known of a revision beside its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) revision: u64,
    pub(super) change: Change,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) author: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) note: String,
    /// Whether the value has some fields only, to be merged into what the layers beneath say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) overlay: bool,
    /// The groups that see it first; only of a staged value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) groups: Vec<String>,
}

/// A revision as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) head: Head,
    /// The value as JSON.
    pub(super) value: Bytes,
}

impl Record {
    pub(super) fn encode(&self) -> Result<Bytes, Error> {
        let mut data = serde_json::to_vec(&self.head)
            .map_err(|error| Error::Config(format!("the change cannot be written: {error}")))?;
        if data.len() >= HEAD_BYTES {
            let most = HEAD_BYTES - 1;
            return Err(Error::Config(format!(
                "author, note and groups of a change take {} bytes, and at most {most} fit",
                data.len()
            )));
        }
        data.push(b'\n');
        data.extend_from_slice(&self.value);
        Ok(data.into())
    }

    /// What a node holds.
    pub(super) fn decode(path: &ZPath, data: Option<&Bytes>) -> Result<Record, Error> {
        let malformed =
            |why: &str| Error::Malformed { path: path.clone(), recipe: RECIPE, why: why.into() };
        let data = data.ok_or_else(|| malformed("it has no data"))?;
        let end = data
            .iter()
            .take(HEAD_BYTES)
            .position(|&byte| byte == b'\n')
            .ok_or_else(|| malformed("it has no line that tells of the change"))?;
        // The message of the parser could tell what is no head but a value.
        let head: Head = serde_json::from_slice(&data[..end])
            .map_err(|_| malformed("its first line does not tell of a change"))?;
        if head.revision == REVISIONS {
            return Err(malformed("no other revision can follow its own"));
        }
        Ok(Record { head, value: data.slice(end + 1..) })
    }

    pub(super) fn is_removal(&self) -> bool {
        self.head.change == Change::Remove
    }

    /// The value, as JSON.
    pub(super) fn json(&self, path: &ZPath) -> Result<Value, Error> {
        // The message of the parser could tell what is in it.
        serde_json::from_slice(&self.value).map_err(|_| Error::Malformed {
            path: path.clone(),
            recipe: RECIPE,
            why: "a value is not JSON".into(),
        })
    }

    /// The overlay that it is, if it is one.
    pub(super) fn overlay(&self, path: &ZPath) -> Result<Option<Overlay>, Error> {
        if !self.head.overlay || self.is_removal() {
            return Ok(None);
        }
        let overlay = Overlay::decode(&self.value).ok_or_else(|| Error::Malformed {
            path: path.clone(),
            recipe: RECIPE,
            why: "an overlay is not an object of JSON".into(),
        })?;
        Ok(Some(overlay))
    }
}
