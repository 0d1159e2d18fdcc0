//! Frees what a caller may keep for long from the large buffer in which it was received.

use bytes::Bytes;
use conclave_proto::ServerMessage;
use conclave_proto::request::{Reply, Response};

use crate::limits::READ_BYTES;

/// The message, with no small value in it that keeps a large buffer alive.
pub(crate) fn detach(mut message: ServerMessage) -> ServerMessage {
    if let ServerMessage::Response(Response { result: Ok(reply), .. }) = &mut message {
        detach_reply(reply);
    } else if let ServerMessage::Event { value, .. } = &mut message {
        detach_value(value);
    }
    message
}

fn detach_reply(reply: &mut Reply) {
    match reply {
        Reply::Data { data, .. } => detach_value(data),
        Reply::Children { entries, .. } => {
            entries.iter_mut().for_each(|entry| detach_value(&mut entry.data));
        }
        Reply::MultiRead(replies) => replies.iter_mut().flatten().for_each(detach_reply),
        Reply::Done
        | Reply::Created { .. }
        | Reply::Stat(_)
        | Reply::Names { .. }
        | Reply::Acl { .. }
        | Reply::Paths(_)
        | Reply::Count(_)
        | Reply::DeletedMany { .. }
        | Reply::Multi { .. }
        | Reply::Identities(_) => {}
    }
}

fn detach_value(value: &mut Option<Bytes>) {
    if let Some(value) = value
        && value.len() < READ_BYTES / 2
    {
        *value = Bytes::copy_from_slice(value);
    }
}
