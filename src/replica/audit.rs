//! What an audit log should tell of this server.

use std::sync::Arc;

use conclave_proto::{Acl, ErrorCode, Fault, Identity, Op, Reply, SessionId, Txn, ZPath, Zxid};

use crate::tree::{Applied, Nodes, masked};

use super::{Notice, Replica};

/// A client asked to change a node's ACL, and the request has its place in the history. Every server
/// tells of it when it applies it; after a restart, perhaps again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AclChange {
    /// The transaction.
    pub zxid: Zxid,
    /// The leader's clock when it took the request, ms since 1970.
    pub time_ms: i64,
    /// Whose request it was.
    pub session: SessionId,
    /// Who that was; hashes of passwords are hidden.
    pub identities: Arc<[Identity]>,
    /// The node.
    pub path: ZPath,
    /// What it was to be; hashes of passwords are hidden.
    pub acl: Vec<Acl>,
    /// Why it was not done.
    pub error: Option<ErrorCode>,
}

/// A client has shown who it is, or has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authentication {
    /// Where it connects from.
    pub address: String,
    /// Its session.
    pub session: Option<SessionId>,
    /// The scheme of the identity it claims.
    pub scheme: String,
    /// The identity, as far as it is no secret.
    pub id: String,
    /// Whether it has it now.
    pub accepted: bool,
}

impl<N: Nodes> Replica<N> {
    /// Tell of every change of an ACL in a transaction that was applied just now.
    pub(super) fn tell_acl_changes(&mut self, txn: &Txn, applied: &Applied) {
        let (mut alone, mut parts): (Option<&Op>, &[Op]) = (None, &[]);
        if let Op::SetAcl { .. } = txn.request.op {
            alone = Some(&txn.request.op);
        } else if let Op::Multi { then, otherwise, .. } = &txn.request.op {
            parts = match &applied.result {
                Ok(Reply::Multi { held: true, .. }) => then,
                Ok(_) => otherwise,
                // Which of both was tried is not known any more; the refused part is in it.
                Err(Fault { index, .. }) => {
                    let refused = |ops: &[Op]| {
                        let op = ops.get(*index as usize);
                        op.is_some_and(|op| matches!(op, Op::SetAcl { .. }))
                    };
                    if refused(then) { then } else { otherwise }
                }
            };
        }
        if applied.duplicate {
            return;
        }
        let error = applied.result.as_ref().err().map(|fault| fault.code);
        let mut identities = None;
        for op in alone.into_iter().chain(parts) {
            let Op::SetAcl { path, acl, .. } = op else { continue };
            // They may be long, and a transaction may have a thousand such changes.
            let identities = identities.get_or_insert_with(|| -> Arc<[Identity]> {
                txn.identities.iter().map(public).collect()
            });
            let identities = identities.clone();
            let change = AclChange {
                zxid: applied.zxid,
                time_ms: txn.time_ms,
                session: txn.request.session,
                identities,
                path: path.clone(),
                acl: masked(acl),
                error,
            };
            self.out.notices.push(Notice::AclChange(Box::new(change)));
        }
    }
}

/// The identity without the hash of a password.
pub(super) fn public(identity: &Identity) -> Identity {
    let Identity { scheme, id } = identity;
    let id = match scheme.as_str() {
        "digest" => id.split(':').next().unwrap_or_default(),
        _ => id,
    };
    Identity { scheme: scheme.clone(), id: id.to_owned() }
}
