//! What servers say.

use bytes::Bytes;
use prost::Message;

use crate::error::{ErrorCode, Fault};
use crate::event::{Event, EventKind};
use crate::generated as wire;
use crate::generated::read_result::Result as ReadKind;
use crate::generated::reply::Kind;
use crate::generated::response::Result as ResponseKind;
use crate::generated::server_message::Kind as MessageKind;
use crate::ids::{SessionId, WatchId, Xid, Zxid};
use crate::limits;
use crate::message::{Connected, Refused, ServerLimits, ServerMessage};
use crate::node::Stat;
use crate::request::{Entry, Reply, Response};

use super::DecodeError;
use super::value::{
    Invalid, acl, acl_to_wire, code, code_to_wire, data, fault, fault_to_wire, identities,
    identities_to_wire, needed, path, path_to_wire, secret, secret_to_wire, server, stat,
    stat_to_wire, text, text_to_wire,
};

pub(super) fn server_to_wire(message: &ServerMessage) -> wire::ServerMessage {
    let kind = match message {
        ServerMessage::Connected(connected) => MessageKind::Connected(wire::Connected {
            session: connected.session.0,
            secret: secret_to_wire(&connected.secret),
            timeout_ms: connected.timeout_ms,
            resumed: connected.resumed,
            read_only: connected.read_only,
            server: connected.server.get().into(),
            zxid: connected.zxid.bits(),
            max_frame_bytes: connected.limits.frame_bytes,
            max_in_flight: connected.limits.in_flight,
        }),
        ServerMessage::Refused(refused) => MessageKind::Refused(wire::Refused {
            code: code_to_wire(refused.code).into(),
            message: text_to_wire(&refused.message),
            backoff_ms: refused.backoff_ms,
        }),
        ServerMessage::Response(response) => MessageKind::Response(response_to_wire(response)),
        ServerMessage::Event { watch, event, value } => {
            MessageKind::Event(event_to_wire(*watch, event, value.as_ref()))
        }
        ServerMessage::Gap { watch, resumed_at } => {
            MessageKind::Gap(wire::Gap { watch: watch.0, resumed_at: resumed_at.bits() })
        }
        ServerMessage::Pong { zxid, counted_ms_ago } => {
            MessageKind::Pong(wire::Pong { zxid: zxid.bits(), counted_ms_ago: *counted_ms_ago })
        }
        ServerMessage::GoAway { backoff_ms } => {
            MessageKind::GoAway(wire::GoAway { backoff_ms: *backoff_ms })
        }
    };
    wire::ServerMessage { kind: Some(kind) }
}

pub(super) fn server_from_wire(message: wire::ServerMessage) -> Result<ServerMessage, DecodeError> {
    Ok(match needed("the message", message.kind)? {
        MessageKind::Connected(connected) => ServerMessage::Connected(self::connected(&connected)?),
        MessageKind::Refused(refused) => ServerMessage::Refused(Refused {
            code: code(refused.code)?,
            message: text("a message", &refused.message, limits::MESSAGE_BYTES)?.into(),
            backoff_ms: refused.backoff_ms,
        }),
        MessageKind::Response(response) => ServerMessage::Response(self::response(response)?),
        MessageKind::Event(event) => self::event(event)?,
        MessageKind::Gap(wire::Gap { watch, resumed_at }) => {
            ServerMessage::Gap { watch: WatchId(watch), resumed_at: Zxid::from_bits(resumed_at) }
        }
        MessageKind::Pong(wire::Pong { zxid, counted_ms_ago }) => {
            ServerMessage::Pong { zxid: Zxid::from_bits(zxid), counted_ms_ago }
        }
        MessageKind::GoAway(wire::GoAway { backoff_ms }) => ServerMessage::GoAway { backoff_ms },
    })
}

fn connected(connected: &wire::Connected) -> Result<Connected, Invalid> {
    Ok(Connected {
        session: SessionId(connected.session),
        secret: secret(&connected.secret)?,
        timeout_ms: connected.timeout_ms,
        resumed: connected.resumed,
        read_only: connected.read_only,
        server: server(connected.server)?,
        zxid: Zxid::from_bits(connected.zxid),
        limits: ServerLimits {
            frame_bytes: connected.max_frame_bytes,
            in_flight: connected.max_in_flight,
        },
    })
}

fn response_to_wire(response: &Response) -> wire::Response {
    let result = match &response.result {
        Ok(reply) => {
            let wire = reply_to_wire(reply);
            if is_acceptable(reply, &wire) {
                ResponseKind::Reply(wire)
            } else {
                let advice = "the answer is too large for one frame; ask for less at a time";
                ResponseKind::Error(fault_to_wire(ErrorCode::TooLarge.into(), advice))
            }
        }
        Err(fault) => ResponseKind::Error(fault_to_wire(*fault, fault.code.describe())),
    };
    wire::Response { xid: response.xid.0, zxid: response.zxid.bits(), result: Some(result) }
}

fn response(response: wire::Response) -> Result<Response, Invalid> {
    let result = match needed("a result", response.result)? {
        ResponseKind::Reply(reply) => Ok(self::reply(reply)?),
        ResponseKind::Error(error) => Err(fault(&error)?),
    };
    Ok(Response { xid: Xid(response.xid), zxid: Zxid::from_bits(response.zxid), result })
}

/// Whether a client takes this answer. Only reads can be too large: the answer to a write has no
/// more parts than the write had.
fn is_acceptable(reply: &Reply, wire: &wire::Reply) -> bool {
    let elements = match reply {
        Reply::Children { entries, .. } => entries.len(),
        Reply::Names { names, .. } => names.count() as usize,
        Reply::Paths(paths) => paths.len(),
        Reply::MultiRead(results) => results.iter().map(elements_read).sum(),
        Reply::Done
        | Reply::Created { .. }
        | Reply::Stat(_)
        | Reply::Data { .. }
        | Reply::Acl { .. }
        | Reply::Count(_)
        | Reply::DeletedMany { .. }
        | Reply::Multi { .. }
        | Reply::Identities(_) => return true,
    };
    elements <= limits::RESPONSE_ELEMENTS
        && wire.encoded_len() <= limits::RESPONSE_FRAME_BYTES - RESPONSE_HEAD_BYTES
}

/// What surrounds a reply in its frame has fewer bytes than this.
const RESPONSE_HEAD_BYTES: usize = 64;

fn elements_read(result: &Result<Reply, Fault>) -> usize {
    match result {
        Ok(Reply::Children { entries, .. }) => 1 + entries.len(),
        Ok(Reply::Names { names, .. }) => 1 + names.count() as usize,
        Ok(_) | Err(_) => 1,
    }
}

pub(super) fn reply_to_wire(reply: &Reply) -> wire::Reply {
    let kind = match reply {
        Reply::Done => Kind::Done(wire::Empty {}),
        Reply::Created { path, stat } => Kind::Created(wire::Created {
            path: path_to_wire(path),
            stat: Some(stat_to_wire(stat)),
        }),
        Reply::Stat(stat) => Kind::Stat(stat_to_wire(stat)),
        Reply::Data { data, stat } => {
            Kind::Data(wire::Data { data: data.clone(), stat: Some(stat_to_wire(stat)) })
        }
        Reply::Children { entries, more, stat } => Kind::Children(wire::Listing {
            entries: entries.iter().map(entry_to_wire).collect(),
            more: *more,
            stat: Some(stat_to_wire(stat)),
        }),
        Reply::Names { names, stat } => Kind::Children(wire::Listing {
            entries: names.iter().map(name_to_wire).collect(),
            more: false,
            stat: Some(stat_to_wire(stat)),
        }),
        Reply::Acl { acl, stat } => {
            Kind::Acl(wire::AclReply { acl: acl_to_wire(acl), stat: Some(stat_to_wire(stat)) })
        }
        Reply::Paths(paths) => {
            Kind::Paths(wire::Paths { paths: paths.iter().map(path_to_wire).collect() })
        }
        Reply::Count(count) => Kind::Count(*count),
        Reply::DeletedMany { deleted, more } => {
            Kind::DeletedMany(wire::DeletedMany { deleted: *deleted, more: *more })
        }
        Reply::Multi { held, replies } => Kind::Multi(wire::MultiReply {
            held: *held,
            replies: replies.iter().map(reply_to_wire).collect(),
        }),
        Reply::MultiRead(results) => Kind::MultiRead(wire::MultiReadReply {
            results: results.iter().map(read_result_to_wire).collect(),
        }),
        Reply::Identities(identities) => {
            Kind::Identities(wire::Identities { identities: identities_to_wire(identities) })
        }
    };
    wire::Reply { kind: Some(kind) }
}

pub(super) fn reply(reply: wire::Reply) -> Result<Reply, Invalid> {
    Ok(match needed("a reply", reply.kind)? {
        Kind::Done(wire::Empty {}) => Reply::Done,
        Kind::Created(wire::Created { path, stat }) => {
            Reply::Created { path: self::path(&path)?, stat: needed_stat(stat)? }
        }
        Kind::Stat(stat) => Reply::Stat(self::stat(stat)),
        Kind::Data(wire::Data { data, stat }) => {
            Reply::Data { data: self::data(data)?, stat: needed_stat(stat)? }
        }
        Kind::Children(wire::Listing { entries, more, stat }) => Reply::Children {
            entries: entries.into_iter().map(entry).collect::<Result<_, _>>()?,
            more,
            stat: needed_stat(stat)?,
        },
        Kind::Acl(wire::AclReply { acl, stat }) => {
            Reply::Acl { acl: self::acl(acl)?, stat: needed_stat(stat)? }
        }
        Kind::Paths(wire::Paths { paths }) => {
            Reply::Paths(paths.iter().map(|path| self::path(path)).collect::<Result<_, _>>()?)
        }
        Kind::Count(count) => Reply::Count(count),
        Kind::DeletedMany(wire::DeletedMany { deleted, more }) => {
            Reply::DeletedMany { deleted, more }
        }
        Kind::Multi(wire::MultiReply { held, replies }) => Reply::Multi {
            held,
            replies: replies.into_iter().map(inner_reply).collect::<Result<_, _>>()?,
        },
        Kind::MultiRead(wire::MultiReadReply { results }) => {
            Reply::MultiRead(results.into_iter().map(read_result).collect::<Result<_, _>>()?)
        }
        Kind::Identities(wire::Identities { identities }) => {
            Reply::Identities(self::identities(identities)?)
        }
    })
}

/// The answer to an operation inside a multi or a multi-read.
fn inner_reply(reply: wire::Reply) -> Result<Reply, Invalid> {
    if matches!(reply.kind, Some(Kind::Multi(_) | Kind::MultiRead(_))) {
        return Err(Invalid::argument("the reply to a multi inside a multi"));
    }
    self::reply(reply)
}

fn read_result_to_wire(result: &Result<Reply, Fault>) -> wire::ReadResult {
    let result = match result {
        Ok(reply) => ReadKind::Reply(reply_to_wire(reply)),
        Err(fault) => ReadKind::Error(fault_to_wire(*fault, fault.code.describe())),
    };
    wire::ReadResult { result: Some(result) }
}

fn read_result(result: wire::ReadResult) -> Result<Result<Reply, Fault>, Invalid> {
    match needed("a read's result", result.result)? {
        ReadKind::Reply(reply) => Ok(Ok(inner_reply(reply)?)),
        ReadKind::Error(error) => Ok(Err(fault(&error)?)),
    }
}

fn entry_to_wire(entry: &Entry) -> wire::Entry {
    wire::Entry {
        name: text_to_wire(&entry.name),
        stat: entry.stat.as_ref().map(stat_to_wire),
        data: entry.data.clone(),
    }
}

fn name_to_wire(name: &str) -> wire::Entry {
    wire::Entry { name: text_to_wire(name), stat: None, data: None }
}

fn entry(entry: wire::Entry) -> Result<Entry, Invalid> {
    Ok(Entry {
        name: text("a name", &entry.name, limits::PATH_BYTES)?.into(),
        stat: entry.stat.map(stat),
        data: data(entry.data)?,
    })
}

fn needed_stat(stat: Option<wire::Stat>) -> Result<Stat, Invalid> {
    Ok(self::stat(needed("the statistics", stat)?))
}

fn event_to_wire(watch: WatchId, event: &Event, value: Option<&Bytes>) -> wire::Event {
    let kind = match event.kind {
        EventKind::Created => wire::EventKind::Created,
        EventKind::Deleted => wire::EventKind::Deleted,
        EventKind::DataChanged => wire::EventKind::DataChanged,
        EventKind::ChildrenChanged => wire::EventKind::ChildrenChanged,
    };
    wire::Event {
        watch: watch.0,
        zxid: event.zxid.bits(),
        path: path_to_wire(&event.path),
        kind: kind.into(),
        value: value.cloned(),
    }
}

fn event(event: wire::Event) -> Result<ServerMessage, Invalid> {
    let kind = match wire::EventKind::try_from(event.kind) {
        Ok(wire::EventKind::Created) => EventKind::Created,
        Ok(wire::EventKind::Deleted) => EventKind::Deleted,
        Ok(wire::EventKind::DataChanged) => EventKind::DataChanged,
        Ok(wire::EventKind::ChildrenChanged) => EventKind::ChildrenChanged,
        Ok(wire::EventKind::Unspecified) | Err(_) => {
            return Err(Invalid::argument(format!("{} is not a kind of event", event.kind)));
        }
    };
    let zxid = Zxid::from_bits(event.zxid);
    Ok(ServerMessage::Event {
        watch: WatchId(event.watch),
        event: Event { zxid, path: path(&event.path)?, kind },
        value: data(event.value)?,
    })
}
