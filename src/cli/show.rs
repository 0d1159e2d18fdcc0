//! How nodes and events look, to people and to programs.

use conclave_client::{EventKind, Stat, WatchItem};
use serde_json::{Value, json};

/// The statistics as JSON.
pub(super) fn stat_json(stat: &Stat) -> Value {
    json!({
        "czxid": stat.czxid.to_string(),
        "mzxid": stat.mzxid.to_string(),
        "pzxid": stat.pzxid.to_string(),
        "ctime_ms": stat.ctime_ms,
        "mtime_ms": stat.mtime_ms,
        "version": stat.version,
        "cversion": stat.cversion,
        "aversion": stat.aversion,
        "ephemeral_owner": owner(stat),
        "data_length": stat.data_length,
        "num_children": stat.num_children,
    })
}

fn owner(stat: &Stat) -> Option<String> {
    (stat.ephemeral_owner.0 != 0).then(|| stat.ephemeral_owner.to_string())
}

/// The statistics as lines for a person.
pub(super) fn stat_lines(stat: &Stat) -> String {
    format!(
        "created   {}  by {}\nchanged   {}  by {}\nversion   {}\nchildren  {}, changed {} times, last by {}\nACL       changed {} times\nephemeral {}\nsize      {} bytes",
        time(stat.ctime_ms),
        stat.czxid,
        time(stat.mtime_ms),
        stat.mzxid,
        stat.version,
        stat.num_children,
        stat.cversion,
        stat.pzxid,
        stat.aversion,
        owner(stat).map_or("no".into(), |session| format!("with session {session}")),
        stat.data_length,
    )
}

/// Data as a JSON value: text if it is UTF-8, else base-16 under another key.
pub(super) fn data_json(data: Option<&[u8]>) -> Value {
    match data.map(std::str::from_utf8) {
        None => Value::Null,
        Some(Ok(text)) => json!(text),
        Some(Err(_)) => json!({ "hex": hex(data.unwrap_or_default()) }),
    }
}

/// Data on one line, cut where it gets long.
pub(super) fn data_line(data: &[u8]) -> String {
    const LONGEST: usize = 60;
    match std::str::from_utf8(data) {
        Ok(text) => {
            let line = text.escape_debug().to_string();
            match line.char_indices().nth(LONGEST) {
                Some((cut, _)) => format!("{}…", &line[..cut]),
                None => line,
            }
        }
        Err(_) => format!("({} bytes)", data.len()),
    }
}

fn hex(data: &[u8]) -> String {
    data.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What happened, in a word.
pub(super) fn event_word(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Created => "created",
        EventKind::Deleted => "deleted",
        EventKind::DataChanged => "changed",
        EventKind::ChildrenChanged => "children",
    }
}

/// A watch's news as one line of JSON.
pub(super) fn watch_json(item: &WatchItem) -> Value {
    match item {
        WatchItem::Event { zxid, path, kind, value } => json!({
            "event": event_word(*kind),
            "path": path.as_str(),
            "zxid": zxid.to_string(),
            "data": data_json(value.as_deref()),
        }),
        WatchItem::Gap { resumed_at } => json!({ "gap": true, "zxid": resumed_at.to_string() }),
    }
}

/// A moment as a person reads it, in UTC.
pub(super) fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| format!("{ms} ms"), |at| at.to_string())
}
