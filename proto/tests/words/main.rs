//! The words and their bytes: what is encoded comes back, what is not allowed is refused, and what
//! programs of other releases and in other languages rely on does not change.

#![expect(clippy::unwrap_used, reason = "what the tests make is valid")]

mod document;
mod frames;
mod golden;
mod hostile;
mod ids;
mod paths;
mod refusals;
mod round_trip;
mod values;
