//! Sessions and their retries, as far as they are replicated.
//!
//! Who is alive is not decided here: the leader does that, and asks to close whom it gives up.

use conclave_proto::{ErrorCode, Request, Secret, SessionId, Xid, Zxid};

use super::apply::Applied;
use super::digest::digest_of_session;
use super::nodes::{Nodes, SessionRecord};
use super::outcomes::{Outcome, Outcomes};

/// The number of requests that are never sent twice.
const UNNUMBERED: Xid = Xid(0);

/// Open a session, for itself or by the system; whether it is new. To be asked again for the same
/// one, with its secret, does no harm.
pub(super) fn open(
    nodes: &mut impl Nodes,
    asker: SessionId,
    id: SessionId,
    timeout_ms: u32,
    secret: Secret,
) -> Result<bool, ErrorCode> {
    if id == SessionId::NONE || (asker != SessionId::NONE && asker != id) {
        return Err(ErrorCode::BadArguments);
    }
    match nodes.session(id) {
        Some(record) if record.secret == secret => Ok(false),
        Some(_) => Err(ErrorCode::NodeExists),
        None => {
            let outcomes = Outcomes::default();
            let record = SessionRecord { timeout_ms, secret, last_xid: UNNUMBERED, outcomes };
            let added = digest_of_session(id, &record);
            nodes.insert_session(id, record);
            replace_in_digest(nodes, 0, added);
            Ok(true)
        }
    }
}

/// Remove a session, whose ephemeral nodes are gone.
pub(super) fn remove(nodes: &mut impl Nodes, id: SessionId) {
    let record = nodes.session(id).expect("a session that closes exists");
    let removed = digest_of_session(id, record);
    nodes.remove_session(id);
    replace_in_digest(nodes, removed, 0);
}

/// What came of the request when it was applied before; `None` if it is new.
pub(super) fn retry(record: &SessionRecord, zxid: Zxid, request: &Request) -> Option<Applied> {
    if request.xid == UNNUMBERED || request.xid > record.last_xid {
        return None;
    }
    let mut applied = match record.outcomes.get(request.xid) {
        Some(Outcome { zxid, result, .. }) => Applied::new(*zxid, result.clone()),
        None => Applied::new(zxid, Err(ErrorCode::OutcomeUnknown.into())),
    };
    applied.duplicate = true;
    Some(applied)
}

/// Keep the outcome of a numbered write for its retries; drop those that the client has received.
pub(super) fn remember(nodes: &mut impl Nodes, request: &Request, applied: &Applied) {
    if request.xid == UNNUMBERED {
        return;
    }
    let Some(record) = nodes.session_mut(request.session) else { return };
    let before = digest_of_session(request.session, record);
    record.outcomes.forget(request.acked);
    let (zxid, result) = (applied.zxid, applied.result.clone());
    record.outcomes.keep(Outcome { xid: request.xid, zxid, result });
    record.last_xid = request.xid;
    let after = digest_of_session(request.session, record);
    replace_in_digest(nodes, before, after);
}

fn replace_in_digest(nodes: &mut impl Nodes, before: u64, after: u64) {
    let mut meta = nodes.meta();
    meta.digest = meta.digest.wrapping_sub(before).wrapping_add(after);
    nodes.set_meta(meta);
}
