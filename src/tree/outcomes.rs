//! What came of a session's latest numbered writes: the answers to retries.

use std::collections::VecDeque;
use std::collections::vec_deque::Iter;

use conclave_proto::{Fault, Reply, Xid, Zxid};

use crate::limits;

/// What an answer and its numbers take on disk beside a path, in bytes; at least.
const ANSWER_BYTES: usize = 160;

/// What came of a numbered write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The write.
    pub xid: Xid,
    /// The transaction that carried it out.
    pub zxid: Zxid,
    /// The answer.
    pub result: Result<Reply, Fault>,
}

impl Outcome {
    /// About how many bytes it takes.
    fn bytes(&self) -> usize {
        match &self.result {
            Ok(reply) => bytes_of(reply),
            Err(_) => ANSWER_BYTES,
        }
    }
}

fn bytes_of(reply: &Reply) -> usize {
    if let Reply::Multi { replies, .. } = reply {
        ANSWER_BYTES + replies.iter().map(bytes_of).sum::<usize>()
    } else if let Reply::Created { path, .. } = reply {
        ANSWER_BYTES + path.as_str().len()
    } else {
        ANSWER_BYTES
    }
}

/// The outcomes of a session's latest numbered writes, in the order of the writes. Only so many are
/// kept, and so many bytes of them, whatever the client says that it has received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    kept: VecDeque<Outcome>,
    bytes: usize,
}

impl Outcomes {
    /// What came of that write, if it is kept.
    pub fn get(&self, xid: Xid) -> Option<&Outcome> {
        let place = self.kept.binary_search_by_key(&xid, |outcome| outcome.xid).ok()?;
        self.kept.get(place)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// All of them, the oldest first.
    pub fn iter(&self) -> Iter<'_, Outcome> {
        self.kept.iter()
    }

    /// Forget those of the writes up to this one.
    pub fn forget(&mut self, upto: Xid) {
        while let Some(old) = self.kept.pop_front_if(|old| old.xid <= upto) {
            self.bytes -= old.bytes();
        }
    }

    /// Keep the outcome of the latest write. The oldest ones make room for it.
    pub fn keep(&mut self, outcome: Outcome) {
        self.bytes += outcome.bytes();
        self.kept.push_back(outcome);
        while self.kept.len() > limits::IN_FLIGHT
            || (self.bytes > limits::OUTCOME_BYTES && self.kept.len() > 1)
        {
            let old = self.kept.pop_front().expect("there is more than one");
            self.bytes -= old.bytes();
        }
    }
}

impl FromIterator<Outcome> for Outcomes {
    fn from_iter<I: IntoIterator<Item = Outcome>>(outcomes: I) -> Outcomes {
        let mut kept = Outcomes::default();
        outcomes.into_iter().for_each(|outcome| kept.keep(outcome));
        kept
    }
}
