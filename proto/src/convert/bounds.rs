//! Counts the elements of every list in a message before the message is decoded.
//!
//! An element of a list takes two bytes on the wire and a hundred in memory, so a hostile frame
//! could make the generated decoder ask for fifty times its size. This looks at the wire format
//! alone: it follows the fields that lead to lists, and allocates nothing.
//!
//! A small message is not counted: what it can ask for is little, and most messages are small.

use crate::error::ErrorCode;
use crate::ids::Xid;
use crate::limits;

use super::DecodeError;

/// How many elements the lists of one message may have, all lists of a kind together.
struct Budget {
    /// Operations and conditions of a multi, and the answers to them.
    ops: usize,
    /// Lines of ACLs, and identities.
    lines: usize,
    /// Entries and paths of listings.
    entries: usize,
}

impl Budget {
    const CLIENT: Budget =
        Budget { ops: limits::MULTI_OPS, lines: limits::REQUEST_ACL_LINES, entries: 0 };
    const ANSWER: Budget = Budget {
        ops: limits::MULTI_OPS,
        lines: limits::ACL_LINES,
        entries: limits::RESPONSE_ELEMENTS,
    };

    fn of(&mut self, list: List) -> &mut usize {
        match list {
            List::Ops => &mut self.ops,
            List::Lines => &mut self.lines,
            List::Entries => &mut self.entries,
        }
    }
}

#[derive(Clone, Copy)]
enum List {
    Ops,
    Lines,
    Entries,
}

/// A field by its number, and what it leads to.
type Field = (u32, Part);

enum Part {
    /// A message with these fields.
    Message(&'static [Field]),
    /// An element of a list, itself a message with these fields.
    Element(List, &'static [Field]),
}

use Part::{Element, Message};

// The fields of client.proto and outcome.proto that lead to lists.
static CLIENT_MESSAGE: [Field; 1] = [(REQUEST, Message(&CLIENT_REQUEST))];
static CLIENT_REQUEST: [Field; 1] = [(5, Message(&OP))];
static OP: [Field; 5] = [
    (1, Message(&[(3, Element(List::Lines, &[]))])),
    (25, Message(&[(3, Element(List::Lines, &[]))])),
    (8, Message(&[(2, Element(List::Lines, &[]))])),
    (9, Message(&MULTI)),
    (10, Message(&[(1, Element(List::Ops, &OP))])),
];
static MULTI: [Field; 3] =
    [(1, Element(List::Ops, &[])), (2, Element(List::Ops, &OP)), (3, Element(List::Ops, &OP))];
static SERVER_MESSAGE: [Field; 1] = [(2, Message(&[(3, Message(&REPLY))]))];
static OUTCOME: [Field; 1] = [(1, Message(&REPLY))];
static REPLY: [Field; 6] = [
    (5, Message(&[(1, Element(List::Entries, &[]))])),
    (6, Message(&[(1, Element(List::Lines, &[]))])),
    (7, Message(&[(1, Element(List::Entries, &[]))])),
    (10, Message(&[(2, Element(List::Ops, &REPLY))])),
    (11, Message(&[(1, Element(List::Ops, &[(1, Message(&REPLY))]))])),
    (12, Message(&[(1, Element(List::Lines, &[]))])),
];
/// `ClientMessage.request`.
const REQUEST: u32 = 2;
/// `ClientRequest.xid`.
const REQUEST_XID: u32 = 1;

/// A message up to this size, in bytes, is decoded without being counted first: its lists have at
/// most half as many elements, and take well under a MiB.
const UNCOUNTED_BYTES: usize = 2 << 10;

/// More nesting than any message has that is not refused anyway.
const DEPTH: u32 = 16;

pub(super) fn check_client(frame: &[u8]) -> Result<(), DecodeError> {
    count(frame, &CLIENT_MESSAGE, Budget::CLIENT).map_err(|refusal| match refusal {
        Refusal::Malformed(what) => DecodeError::malformed(what),
        Refusal::TooMany(what) => DecodeError::BadRequest {
            xid: xid(frame),
            fault: ErrorCode::TooLarge,
            detail: what.into(),
        },
    })
}

pub(super) fn check_server(frame: &[u8]) -> Result<(), DecodeError> {
    check(frame, &SERVER_MESSAGE, Budget::ANSWER)
}

pub(super) fn check_outcome(bytes: &[u8]) -> Result<(), DecodeError> {
    check(bytes, &OUTCOME, Budget::ANSWER)
}

fn check(bytes: &[u8], fields: &[Field], budget: Budget) -> Result<(), DecodeError> {
    count(bytes, fields, budget).map_err(|refusal| match refusal {
        Refusal::Malformed(what) | Refusal::TooMany(what) => DecodeError::malformed(what),
    })
}

enum Refusal {
    Malformed(&'static str),
    TooMany(&'static str),
}

fn count(message: &[u8], fields: &[Field], mut budget: Budget) -> Result<(), Refusal> {
    if message.len() <= UNCOUNTED_BYTES {
        return Ok(());
    }
    walk(message, fields, &mut budget, DEPTH)
}

fn walk(mut rest: &[u8], fields: &[Field], budget: &mut Budget, depth: u32) -> Result<(), Refusal> {
    let deeper = depth.checked_sub(1).ok_or(Refusal::Malformed("messages nested too deep"))?;
    while !rest.is_empty() {
        let (number, value) = field(&mut rest)?;
        let Value::Bytes(bytes) = value else { continue };
        match fields.iter().find(|(known, _)| *known == number) {
            None => {}
            Some((_, Message(fields))) => walk(bytes, fields, budget, deeper)?,
            Some((_, Element(list, fields))) => {
                let left = budget.of(*list);
                *left = left.checked_sub(1).ok_or(Refusal::TooMany(match list {
                    List::Ops => "too many operations in one request",
                    List::Lines => "too many lines of access control lists in one request",
                    List::Entries => "too many entries in one listing",
                }))?;
                walk(bytes, fields, budget, deeper)?;
            }
        }
    }
    Ok(())
}

/// The number of the request in a frame that has been walked without finding it malformed so far.
fn xid(mut frame: &[u8]) -> Xid {
    let mut xid = Xid(0);
    while let Ok((number, value)) = field(&mut frame) {
        if let (REQUEST, Value::Bytes(mut request)) = (number, value) {
            while let Ok((number, value)) = field(&mut request) {
                if let (REQUEST_XID, Value::Number(number)) = (number, value) {
                    xid = Xid(number);
                }
            }
        }
    }
    xid
}

enum Value<'a> {
    Number(u64),
    Fixed,
    Bytes(&'a [u8]),
}

/// Takes a field off the front.
fn field<'a>(rest: &mut &'a [u8]) -> Result<(u32, Value<'a>), Refusal> {
    let key = varint(rest)?;
    let number = u32::try_from(key >> 3).map_err(|_| Refusal::Malformed("a field's number"))?;
    let value = match key & 7 {
        0 => Value::Number(varint(rest)?),
        1 => take(rest, 8).map(|_| Value::Fixed)?,
        2 => {
            let length = varint(rest)?;
            Value::Bytes(take(rest, length)?)
        }
        5 => take(rest, 4).map(|_| Value::Fixed)?,
        _ => return Err(Refusal::Malformed("a field of an unknown type")),
    };
    Ok((number, value))
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> Result<&'a [u8], Refusal> {
    let cut = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
    let (taken, left) = cut.ok_or(Refusal::Malformed("a field longer than its message"))?;
    *rest = left;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> Result<u64, Refusal> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, left) = rest.split_first().ok_or(Refusal::Malformed("it ends too early"))?;
        *rest = left;
        number |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Ok(number);
        }
    }
    Err(Refusal::Malformed("a number of more than 64 bits"))
}
