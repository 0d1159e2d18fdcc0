//! From TOML to values, and what is said of text that is none.

use conclave_proto::ServerId;
use serde::de::DeserializeOwned;

use super::{ConfigError, invalid};

pub(super) fn parse<T: DeserializeOwned>(origin: &str, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let place = error.span().and_then(|span| place(text, span.start));
        parse_error(origin, place.as_deref(), &error)
    })
}

/// Says what is wrong without the line itself, as the parser would show it.
pub(super) fn parse_error(
    origin: &str,
    place: Option<&str>,
    error: &toml::de::Error,
) -> ConfigError {
    let problem = without_value(error.message());
    let problem = match place {
        Some(place) => format!("{place}: {problem}"),
        None => {
            // There is no line to show, only the key: in `timing.tick_ms`.
            let whole = error.to_string();
            let key = whole.strip_prefix(error.message()).unwrap_or_default().trim();
            format!("{problem} {key}").trim_end().to_owned()
        }
    };
    ConfigError::Parse { origin: origin.into(), problem }
}

/// The number of the line, and the key at its beginning if there is one.
fn place(text: &str, position: usize) -> Option<String> {
    let number = text.get(..position)?.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or_default();
    let is_key = |key: &&str| {
        !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || matches!(c, '_' | '.'))
    };
    let key = line.split_once('=').map(|(key, _)| key.trim()).filter(is_key);
    Some(key.map_or(format!("line {number}"), |key| format!("line {number}, `{key}`")))
}

/// What serde says of a value of the wrong type, without the value; of an address, what it should be.
fn without_value(message: &str) -> String {
    if message.starts_with("invalid ")
        && let Some((found, expected)) = message.rsplit_once(", expected ")
        && let Some(value) = found.find(['"', '`'])
    {
        return format!("{}, expected {expected}", found[..value].trim_end());
    }
    if message == "invalid socket address syntax" {
        return "not an IP address and a port; write it as 127.0.0.1:7400, or [::1]:7400".into();
    }
    message.to_owned()
}

/// Puts the values of `over` in the place of those in `under`, table by table.
pub(super) fn merge(under: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) => merge(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

/// `host:port`.
pub(super) fn address(key: &str, text: &str) -> Result<String, ConfigError> {
    let parts = text.rsplit_once(':').map(|(host, port)| (host.len(), port.parse::<u16>()));
    if let Some((1.., Ok(1..))) = parts {
        return Ok(text.to_owned());
    }
    Err(invalid(key, format!("{text:?} is not an address"), "write it as host:port"))
}

pub(super) fn server_id(key: &str, number: u8) -> Result<ServerId, ConfigError> {
    ServerId::new(number)
        .ok_or_else(|| invalid(key, format!("{number} is not a server id"), "use 1 to 254"))
}
