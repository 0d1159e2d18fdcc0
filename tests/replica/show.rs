//! What clients are told, in a line.

use bytes::Bytes;
use conclave_proto::{EventKind, Fault, Reply, ServerMessage};

pub(crate) fn message(message: &ServerMessage) -> String {
    match message {
        ServerMessage::Connected(it) => {
            let how = if it.resumed { "resumed" } else { "opened" };
            let (session, server) = (it.session, it.server);
            let only = if it.read_only { ", to read only" } else { "" };
            format!("{how} {session} at {server}, {} ms, zxid {}{only}", it.timeout_ms, it.zxid)
        }
        ServerMessage::Refused(it) => format!("refused: {:?}: {}", it.code, it.message),
        ServerMessage::Response(it) => {
            format!("#{} {} at {}", it.xid.0, result(&it.result), it.zxid)
        }
        ServerMessage::Event { watch, event, value } => {
            let what = match event.kind {
                EventKind::Created => "created",
                EventKind::Deleted => "deleted",
                EventKind::DataChanged => "changed",
                EventKind::ChildrenChanged => "children changed",
            };
            let value = value.as_ref().map_or(String::new(), |value| format!(" = {}", text(value)));
            format!("watch {}: {} {what}{value} at {}", watch.0, event.path, event.zxid)
        }
        ServerMessage::Gap { watch, resumed_at } => {
            format!("watch {}: gap up to {resumed_at}", watch.0)
        }
        ServerMessage::Pong { zxid, counted_ms_ago: None } => format!("pong {zxid}"),
        ServerMessage::Pong { zxid, counted_ms_ago: Some(ago) } => {
            format!("pong {zxid}, alive for certain {ago} ms ago")
        }
        ServerMessage::GoAway { .. } => "go away".to_owned(),
    }
}

fn result(result: &Result<Reply, Fault>) -> String {
    match result {
        Ok(it) => reply(it),
        Err(fault) => format!("{:?}", fault.code),
    }
}

fn reply(reply: &Reply) -> String {
    match reply {
        Reply::Done => "done".to_owned(),
        Reply::Created { path, .. } => format!("created {path}"),
        Reply::Stat(stat) => format!("version {}", stat.version),
        Reply::Data { data, stat } => {
            let data = data.as_ref().map_or("null".to_owned(), text);
            format!("{data} version {}", stat.version)
        }
        Reply::Children { entries, .. } => {
            let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
            format!("[{}]", names.join(" "))
        }
        Reply::Names { names, .. } => {
            format!("[{}]", names.iter().collect::<Vec<_>>().join(" "))
        }
        Reply::Paths(paths) => {
            let paths: Vec<&str> = paths.iter().map(|path| path.as_str()).collect();
            format!("[{}]", paths.join(" "))
        }
        Reply::Acl { .. }
        | Reply::Count(_)
        | Reply::DeletedMany { .. }
        | Reply::Multi { .. }
        | Reply::MultiRead(_)
        | Reply::Identities(_) => format!("{reply:?}"),
    }
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
