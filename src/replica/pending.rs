//! The writes of this server's clients that have no answer yet.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use conclave_proto::request::{Condition, Test};
use conclave_proto::{Acl, Identity, Op, Request, SessionId};

use crate::limits;
use crate::session::Claim;

use super::ConnId;

/// Who waits for the answer to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    /// A request, in its place among the connection's requests.
    Request {
        /// The connection.
        conn: ConnId,
        /// The place, counted from the connection's first request.
        slot: u64,
    },
    /// A connection that opens a session.
    Handshake(ConnId),
    /// A connection whose local session is opened for all servers.
    Local {
        /// The connection.
        conn: ConnId,
        /// The session.
        session: SessionId,
    },
}

impl Waiter {
    /// The connection.
    pub(super) fn conn(self) -> ConnId {
        match self {
            Waiter::Request { conn, .. } | Waiter::Handshake(conn) | Waiter::Local { conn, .. } => {
                conn
            }
        }
    }
}

/// What is to be written, and in whose name.
#[derive(Clone, Debug)]
pub(super) struct Work {
    /// In whose name.
    pub(super) identities: Arc<[Identity]>,
    /// By which right the client's server asks for the session; `None` if it is not there yet, and
    /// for what the system asks. With a local session that is to be opened: what the server had
    /// applied when it said that nobody else knew the session.
    pub(super) claim: Option<Claim>,
    /// What.
    pub(super) request: Request,
}

impl Work {
    /// About how many bytes it takes on its way.
    pub(super) fn bytes(&self) -> usize {
        bytes_of(&self.identities, &self.request.op)
    }
}

/// About how many bytes a write in these names takes.
pub(super) fn bytes_of(identities: &[Identity], op: &Op) -> usize {
    64 + identities_bytes(identities) + op_bytes(op)
}

/// About how many bytes these names take in a write.
pub(super) fn identities_bytes(identities: &[Identity]) -> usize {
    identities.iter().map(|one| 8 + one.scheme.len() + one.id.len()).sum()
}

/// The session that the answer to a request is for.
pub(super) fn session_of(request: &Request) -> SessionId {
    if let Op::CreateSession { session, .. } = request.op { session } else { request.session }
}

fn op_bytes(op: &Op) -> usize {
    let data_bytes = |data: &Option<Bytes>| data.as_ref().map_or(0, Bytes::len);
    let condition_bytes = |condition: &Condition| {
        let test = match &condition.test {
            Test::Data(data) => data.len(),
            Test::Stat(stat) => size_of_val(&**stat),
            Test::Exists
            | Test::Missing
            | Test::Version(_)
            | Test::ChildVersion(_)
            | Test::CreatedBy(_) => 8,
        };
        condition.path.as_str().len() + test
    };
    if let Op::Create { path, data, acl, .. } | Op::CreateIfMissing { path, data, acl, .. } = op {
        path.as_str().len() + data_bytes(data) + Acl::bytes_of(acl)
    } else if let Op::Require(condition) = op {
        condition_bytes(condition)
    } else if let Op::SetData { path, data, .. } = op {
        path.as_str().len() + data_bytes(data)
    } else if let Op::SetAcl { path, acl, .. } = op {
        path.as_str().len() + Acl::bytes_of(acl)
    } else if let Op::Multi { conditions, then, otherwise } = op {
        conditions.iter().map(condition_bytes).sum::<usize>()
            + then.iter().chain(otherwise).map(|op| 16 + op_bytes(op)).sum::<usize>()
    } else if let Op::Delete { path, .. }
    | Op::DeleteRecursive { path, .. }
    | Op::DeleteIfExists { path, .. }
    | Op::DeleteTree { path, .. }
    | Op::Check { path, .. }
    | Op::Guard { path, .. }
    | Op::Reap { path, .. } = op
    {
        path.as_str().len()
    } else {
        64
    }
}

/// One such write.
#[derive(Debug)]
pub(super) struct Pending {
    /// Who waits for it.
    pub(super) waiter: Waiter,
    /// The session it is for; an answer to another one's write is not an answer to this.
    pub(super) session: SessionId,
    /// Whether it may be sent to a leader twice.
    pub(super) retry: bool,
    /// Its number in the stream to the leader, if it was sent to the present one.
    pub(super) sent: Option<u64>,
    /// What it is; `None` while this server leads and has made a proposal of it.
    pub(super) work: Option<Work>,
    bytes: usize,
}

/// All of them, in the order in which they were asked.
#[derive(Debug)]
pub(super) struct Pendings {
    /// The mark of the first in `ring`; marks grow by one.
    first: u64,
    ring: VecDeque<Option<Pending>>,
    bytes: usize,
    /// The bytes of the writes that wait behind a read and are not among them yet.
    held: usize,
}

impl Pendings {
    /// None yet. Marks that an earlier life of this server gave may still come back in
    /// transactions, so they start at a random place; 0 is never given.
    pub(super) fn new(seed: u64) -> Pendings {
        Pendings { first: 1 + (mix(seed) >> 2), ring: VecDeque::new(), bytes: 0, held: 0 }
    }

    /// Whether there is no room for another of so many bytes. Those who ask for little have room when
    /// those who ask for much have none.
    pub(super) fn is_full(&self, bytes: usize) -> bool {
        let kept = if bytes > limits::ASKED_ALWAYS_BYTES { limits::PENDING_SMALL_BYTES } else { 0 };
        self.ring.len() >= limits::PENDING_REQUESTS
            || self.bytes + self.held >= limits::PENDING_BYTES - kept
    }

    /// A write of so many bytes waits behind a read.
    pub(super) fn hold(&mut self, bytes: usize) {
        self.held += bytes;
    }

    /// Writes of so many bytes do not any more: they are added, or forgotten.
    pub(super) fn let_go(&mut self, bytes: usize) {
        self.held -= bytes;
    }

    /// The mark that the next one will have.
    pub(super) fn next_tag(&self) -> u64 {
        self.first + self.ring.len() as u64
    }

    /// Add one of about so many bytes; its mark comes back.
    pub(super) fn add(&mut self, waiter: Waiter, retry: bool, work: Work, bytes: usize) -> u64 {
        let tag = self.next_tag();
        let session = session_of(&work.request);
        self.bytes += bytes;
        let work = Some(work);
        self.ring.push_back(Some(Pending { waiter, session, retry, sent: None, work, bytes }));
        tag
    }

    /// The one with that mark.
    pub(super) fn get_mut(&mut self, tag: u64) -> Option<&mut Pending> {
        let place = usize::try_from(tag.checked_sub(self.first)?).ok()?;
        self.ring.get_mut(place)?.as_mut()
    }

    /// Take out the one with that mark.
    pub(super) fn take(&mut self, tag: u64) -> Option<Pending> {
        let place = usize::try_from(tag.checked_sub(self.first)?).ok()?;
        let taken = self.ring.get_mut(place)?.take()?;
        self.bytes -= taken.bytes;
        while let Some(None) = self.ring.front() {
            self.ring.pop_front();
            self.first += 1;
        }
        Some(taken)
    }

    /// Those from that mark on, with their marks.
    pub(super) fn from(&mut self, tag: u64) -> impl Iterator<Item = (u64, &mut Pending)> {
        let place = usize::try_from(tag.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let place = place.min(self.ring.len());
        let first = self.first;
        self.ring
            .range_mut(place..)
            .enumerate()
            .filter_map(move |(at, pending)| Some((first + (place + at) as u64, pending.as_mut()?)))
    }

    /// The mark of the first.
    pub(super) fn first_tag(&self) -> u64 {
        self.first
    }
}

/// Scatter the bits of a number (the finaliser of splitmix64).
pub(super) fn mix(seed: u64) -> u64 {
    let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
