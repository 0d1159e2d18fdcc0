//! Values that never appear in a log.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value, or a part of one, that prints as `***`, also when it is part of another value that is
/// printed, and does not appear in errors.
///
/// ```
/// use conclave_client::recipes::config::Secret;
///
/// #[derive(Debug, serde::Serialize, serde::Deserialize)]
/// struct Database {
///     user: String,
///     password: Secret<String>,
/// }
///
/// let database: Database = serde_json::from_str(r#"{"user": "app", "password": "hunter2"}"#)?;
/// assert_eq!(format!("{database:?}"), r#"Database { user: "app", password: *** }"#);
/// assert_eq!(database.password.expose(), "hunter2");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// A secret.
    pub const fn new(value: T) -> Secret<T> {
        Secret(value)
    }

    /// What it is, for use.
    pub const fn expose(&self) -> &T {
        &self.0
    }

    /// What it is, for use.
    pub fn into_exposed(self) -> T {
        self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<T> fmt::Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<T> From<T> for Secret<T> {
    fn from(value: T) -> Secret<T> {
        Secret(value)
    }
}

/// As it is: this is how it is stored.
impl<T: Serialize> Serialize for Secret<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Secret<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Secret<T>, D::Error> {
        // What the deserializer has to say could tell the secret.
        let value = T::deserialize(deserializer);
        value.map(Secret).map_err(|_| D::Error::custom("a secret is not of its type"))
    }
}
