//! What clients are answered and told.

use bytes::{BufMut, Bytes, BytesMut};
use conclave_proto::frame::write_frame;
use conclave_proto::message::Connected;
use conclave_proto::request::Entry;
use conclave_proto::{ErrorCode, Event, Fault, Identity, Reply, SessionId, Stat, ZPath, Zxid};

use super::codec::{put_buffer, put_length, put_stat, put_text};
use super::keeper::{Dialect, Filter, Only};
use super::numbers::{Code, NOTIFICATION_XID, SYNC_CONNECTED, event_type, opcode};
use super::request::Answer;

/// What events have in place of a zxid that says nothing, as ZooKeeper's do: −1.
const NO_ZXID: Zxid = Zxid::from_bits(u64::MAX);
/// The bytes of a session's password.
const PASSWORD_BYTES: usize = 16;

/// The answer to a handshake. `None`: the session has ended, or never was. Clients of before 3.4
/// neither send nor expect the last field.
pub(super) fn put_connected(
    connected: Option<&Connected>,
    with_read_only: bool,
    out: &mut BytesMut,
) {
    write_frame(out, |out| {
        // The version of the protocol.
        out.put_i32(0);
        out.put_u32(connected.map_or(0, |connected| connected.timeout_ms));
        out.put_u64(connected.map_or(0, |connected| connected.session.0));
        let none = [0; PASSWORD_BYTES];
        put_buffer(out, Some(connected.map_or(&none, |connected| connected.secret.expose())));
        if with_read_only {
            out.put_u8(connected.is_some_and(|connected| connected.read_only).into());
        }
    });
}

/// An answer without a body.
pub(super) fn put_header(xid: i32, zxid: Zxid, code: Code, out: &mut BytesMut) {
    write_frame(out, |out| header(xid, zxid, code, out));
}

/// An answer.
pub(super) fn put_reply(xid: i32, zxid: Zxid, answer: &Answer, reply: &Reply, out: &mut BytesMut) {
    write_frame(out, |out| {
        header(xid, zxid, Code::OK, out);
        body(answer, reply, out);
    });
}

/// The answer to a multi that has failed: what became of each of its operations.
pub(super) fn put_failed_multi(
    xid: i32,
    zxid: Zxid,
    kinds: &[i32],
    fault: Fault,
    out: &mut BytesMut,
) {
    write_frame(out, |out| {
        header(xid, zxid, Code::OK, out);
        for (place, _) in (0..).zip(kinds) {
            let code = match u32::cmp(&place, &fault.index) {
                std::cmp::Ordering::Less => ErrorCode::RolledBack,
                std::cmp::Ordering::Equal => fault.code,
                std::cmp::Ordering::Greater => ErrorCode::NotTried,
            };
            failure(Code::of(code), out);
        }
        end_of_multi(out);
    });
}

/// An event, and the zxid up to which the client has heard everything, if that is known.
pub(super) fn put_event(zxid: Option<Zxid>, event: &Event, out: &mut BytesMut) {
    write_frame(out, |out| {
        header(NOTIFICATION_XID, zxid.unwrap_or(NO_ZXID), Code::OK, out);
        out.put_i32(event_type(event.kind));
        out.put_i32(SYNC_CONNECTED);
        put_text(out, event.path.as_str());
    });
}

fn header(xid: i32, zxid: Zxid, code: Code, out: &mut BytesMut) {
    let mut bytes = [0; 16];
    let mut rest = &mut bytes[..];
    rest.put_i32(xid);
    rest.put_u64(zxid.bits());
    rest.put_i32(code.0);
    out.put_slice(&bytes);
}

/// The body of an answer; the replica has given the reply that belongs to the request.
fn body(answer: &Answer, reply: &Reply, out: &mut BytesMut) {
    if let Reply::Created { path, stat } = reply {
        put_text(out, path.as_str());
        if matches!(answer, Answer::Created { with_stat: true }) {
            put_stat(out, stat);
        }
    } else if let Reply::Stat(stat) = reply {
        put_stat(out, stat);
    } else if let Reply::Data { data, stat } = reply {
        put_buffer(out, data.as_deref());
        put_stat(out, stat);
    } else if let Reply::Acl { acl, stat } = reply {
        put_length(out, acl.len());
        for line in acl {
            out.put_i32(line.perms.0.into());
            put_text(out, &line.identity.scheme);
            put_text(out, &line.identity.id);
        }
        put_stat(out, stat);
    } else if let (Answer::Filtered { filter, .. }, Reply::Children { entries, stat, .. }) =
        (answer, reply)
    {
        filtered(*filter, entries, stat, out);
    } else if let (Answer::Tree { path, limit }, Reply::Children { entries, .. }) = (answer, reply)
    {
        tree(path, *limit, entries, out);
    } else if let Reply::Names { names, stat } = reply {
        out.put_u32(names.count());
        out.put_slice(names.packed());
        // A filter for which the names are enough lets all of them pass.
        if matches!(answer, Answer::Children { with_stat: true, .. } | Answer::Filtered { .. }) {
            put_stat(out, stat);
        }
    } else if let Reply::Paths(paths) = reply {
        put_length(out, paths.len());
        for path in paths {
            put_text(out, path.as_str());
        }
    } else if let Reply::Count(count) = reply {
        out.put_i32(i32::try_from(*count).unwrap_or(i32::MAX));
    } else if let Reply::Identities(identities) = reply {
        put_length(out, identities.len());
        for identity in identities {
            put_text(out, &identity.scheme);
            put_text(out, user(identity));
        }
    } else if let (Answer::Multi(kinds), Reply::Multi { replies, .. }) = (answer, reply) {
        for (kind, reply) in kinds.iter().zip(replies) {
            // Clients know only two forms of an answer to a creation, with statistics and without.
            let kind = match *kind {
                opcode::CREATE_CONTAINER | opcode::CREATE_TTL => opcode::CREATE2,
                kind => kind,
            };
            multi_header(kind, false, Code::OK, out);
            let with_stat = !matches!(kind, opcode::CREATE | opcode::CREATE_IF_NOT_EXISTS);
            body(&Answer::Created { with_stat }, reply, out);
        }
        end_of_multi(out);
    } else if let (Answer::MultiRead(dialect, reads), Reply::MultiRead(replies)) = (answer, reply) {
        reads_done(*dialect, reads, replies, out);
    } else {
        known_body(answer, out);
    }
}

/// The answers to several reads.
fn reads_done(
    dialect: Dialect,
    reads: &[(i32, Answer)],
    replies: &[Result<Reply, Fault>],
    out: &mut BytesMut,
) {
    for ((kind, answer), reply) in reads.iter().zip(replies) {
        let result = match reply {
            Ok(reply) => too_much(answer, reply).map_or(Ok(reply), Err),
            Err(fault) => Err(Code::of(fault.code)),
        };
        match (result, dialect) {
            (Ok(reply), _) => {
                multi_header(*kind, false, Code::OK, out);
                body(answer, reply, out);
            }
            (Err(code), Dialect::ZooKeeper) => failure(code, out),
            (Err(code), Dialect::Keeper) => multi_header(*kind, false, code, out),
        }
    }
    end_of_multi(out);
}

/// The body of an answer to which the replica has nothing to add.
fn known_body(answer: &Answer, out: &mut BytesMut) {
    if let Answer::Synced(path) = answer {
        put_text(out, path.as_str());
    } else if let Answer::Watching(_) = answer {
        out.put_i32(Code::OK.0);
    } else if let Answer::Sasl = answer {
        put_buffer(out, None);
    } else if let Answer::Advertised { data } = answer {
        if let Some(data) = data {
            put_buffer(out, Some(data));
        }
        let length = data.as_ref().map_or(0, Bytes::len);
        let data_length = u32::try_from(length).expect("it is a few bytes");
        put_stat(out, &Stat { data_length, ..Stat::default() });
    }
}

/// Why a reply cannot be the answer after all: a list is cut short, or has children of which the
/// client may not know what it has asked of them.
pub(super) fn too_much(answer: &Answer, reply: &Reply) -> Option<Code> {
    let Reply::Children { entries, more, .. } = reply else { return None };
    if let Answer::Tree { limit, .. } = answer {
        let full = entries.len() >= *limit as usize;
        return (*more && !full).then_some(Code::BAD_ARGUMENTS);
    }
    let with_more = matches!(answer, Answer::Filtered { filter: Filter { with: Some(_), .. }, .. });
    let hidden = with_more && entries.iter().any(|entry| entry.stat.is_none());
    hidden.then_some(Code::of(ErrorCode::NoAuth))
}

fn filtered(filter: Filter, entries: &[Entry], stat: &Stat, out: &mut BytesMut) {
    let is_ephemeral =
        |entry: &&Entry| entry.stat.map(|stat| stat.ephemeral_owner != SessionId::NONE);
    let wanted = |entry: &&Entry| match filter.only {
        Only::All => true,
        Only::Permanent => is_ephemeral(entry) == Some(false),
        Only::Ephemeral => is_ephemeral(entry) == Some(true),
    };
    let listed = || entries.iter().filter(wanted);
    let count = listed().count();
    put_length(out, count);
    listed().for_each(|entry| put_text(out, &entry.name));
    put_stat(out, stat);
    let Some((with_stat, with_data)) = filter.with else { return };
    put_length(out, if with_stat { count } else { 0 });
    for stat in listed().filter(|_| with_stat).filter_map(|entry| entry.stat) {
        put_stat(out, &stat);
    }
    put_length(out, if with_data { count } else { 0 });
    for entry in listed().filter(|_| with_data) {
        put_buffer(out, entry.data.as_deref());
    }
}

/// The paths of what is below that one, so many of them at most.
fn tree(path: &ZPath, limit: u32, entries: &[Entry], out: &mut BytesMut) {
    let below = entries.len().min(limit as usize);
    put_length(out, below);
    let above = if path.is_root() { "" } else { path.as_str() };
    for entry in &entries[..below] {
        put_text(out, &format!("{above}/{}", entry.name));
    }
}

/// The name of whoever this is: without the hash of the password.
fn user(identity: &Identity) -> &str {
    match identity.scheme.as_str() {
        "digest" => identity.id.split(':').next().unwrap_or_default(),
        _ => &identity.id,
    }
}

fn multi_header(kind: i32, done: bool, code: Code, out: &mut BytesMut) {
    let mut bytes = [0; 9];
    let mut rest = &mut bytes[..];
    rest.put_i32(kind);
    rest.put_u8(done.into());
    rest.put_i32(code.0);
    out.put_slice(&bytes);
}

fn failure(code: Code, out: &mut BytesMut) {
    multi_header(opcode::ERROR, false, code, out);
    out.put_i32(code.0);
}

fn end_of_multi(out: &mut BytesMut) {
    multi_header(opcode::ERROR, true, Code(-1), out);
}
