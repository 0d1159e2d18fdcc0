//! What servers keep to answer a retry.

use crate::error::Fault;
use crate::generated as wire;
use crate::generated::outcome::Result as OutcomeKind;
use crate::request::Reply;

use super::DecodeError;
use super::reply::{reply, reply_to_wire};
use super::value::{fault, fault_to_wire, needed};

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
