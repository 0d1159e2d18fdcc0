//! What servers keep and forward.

use std::sync::Arc;

use crate::error::Fault;
use crate::generated as wire;
use crate::generated::command::Op as OpKind;
use crate::generated::outcome::Result as OutcomeKind;
use crate::ids::{SessionId, Xid, Zxid};
use crate::node::Identity;
use crate::request::{Op, Reply, Request, Txn};

use super::DecodeError;
use super::op::{op, op_to_wire};
use super::reply::{reply, reply_to_wire};
use super::value::{
    Invalid, fault, fault_to_wire, identities, identities_to_wire, needed, path, path_to_wire,
    secret, secret_to_wire, server,
};

pub(super) fn txn_to_wire(txn: &Txn) -> wire::Txn {
    wire::Txn {
        semantics: txn.semantics.into(),
        time_ms: txn.time_ms,
        origin: txn.origin.0.get().into(),
        mark: txn.origin.1,
        identities: identities_to_wire(&txn.identities),
        digest_zxid: txn.digest.0.bits(),
        digest: txn.digest.1,
        command: Some(command_to_wire(&txn.request)),
    }
}

pub(super) fn txn_from_wire(txn: wire::Txn) -> Result<Txn, DecodeError> {
    let semantics = u16::try_from(txn.semantics)
        .map_err(|_| DecodeError::malformed(format!("semantics {} of a txn", txn.semantics)))?;
    Ok(Txn {
        semantics,
        time_ms: txn.time_ms,
        origin: (server(txn.origin)?, txn.mark),
        identities: identities(txn.identities)?.into(),
        digest: (Zxid::from_bits(txn.digest_zxid), txn.digest),
        request: command(txn.command)?,
    })
}

pub(super) fn forwarded_to_wire(request: &Request, identities: &[Identity]) -> wire::Forwarded {
    wire::Forwarded {
        command: Some(command_to_wire(request)),
        identities: identities_to_wire(identities),
    }
}

pub(super) fn forwarded_from_wire(
    forwarded: wire::Forwarded,
) -> Result<(Request, Arc<[Identity]>), DecodeError> {
    Ok((command(forwarded.command)?, identities(forwarded.identities)?.into()))
}

pub(super) fn outcome_to_wire(result: &Result<Reply, Fault>) -> wire::Outcome {
    let result = match result {
        Ok(reply) => OutcomeKind::Reply(reply_to_wire(reply)),
        // The sentence is for clients and can always be made again.
        Err(fault) => OutcomeKind::Error(fault_to_wire(*fault, "")),
    };
    wire::Outcome { result: Some(result) }
}

pub(super) fn outcome_from_wire(
    outcome: wire::Outcome,
) -> Result<Result<Reply, Fault>, DecodeError> {
    Ok(match needed("an outcome", outcome.result)? {
        OutcomeKind::Reply(reply) => Ok(self::reply(reply)?),
        OutcomeKind::Error(error) => Err(fault(&error)?),
    })
}

fn command_to_wire(request: &Request) -> wire::Command {
    let op = if let Op::CreateSession { session, timeout_ms, secret } = &request.op {
        OpKind::CreateSession(wire::CreateSession {
            session: session.0,
            timeout_ms: *timeout_ms,
            secret: secret_to_wire(secret),
        })
    } else if let Op::Reap { path, seen: (pzxid, mzxid) } = &request.op {
        OpKind::Reap(wire::Reap {
            path: path_to_wire(path),
            pzxid: pzxid.bits(),
            mzxid: mzxid.bits(),
        })
    } else if matches!(request.op, Op::ExpireSession) {
        OpKind::ExpireSession(wire::Empty {})
    } else {
        OpKind::Client(op_to_wire(&request.op))
    };
    wire::Command {
        session: request.session.0,
        xid: request.xid.0,
        acked: request.acked.0,
        op: Some(op),
    }
}

fn command(command: Option<wire::Command>) -> Result<Request, Invalid> {
    let command = needed("the command", command)?;
    let op = match needed("the command's operation", command.op)? {
        OpKind::Client(op) => self::op(op)?,
        OpKind::CreateSession(create) => Op::CreateSession {
            session: SessionId(create.session),
            timeout_ms: create.timeout_ms,
            secret: secret(&create.secret)?,
        },
        OpKind::ExpireSession(wire::Empty {}) => Op::ExpireSession,
        OpKind::Reap(reap) => Op::Reap {
            path: path(&reap.path)?,
            seen: (Zxid::from_bits(reap.pzxid), Zxid::from_bits(reap.mzxid)),
        },
    };
    Ok(Request {
        session: SessionId(command.session),
        xid: Xid(command.xid),
        acked: Xid(command.acked),
        op,
    })
}
