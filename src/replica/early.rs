//! What followers say to a leader that has yet to apply the end of its history.
//!
//! A follower may have applied all of it long ago, and serve: what it asks at once would not be heard,
//! and it has no reason to ask again while the link holds. So it waits here until the leader begins, and
//! is then taken as if the link had been slow.

use conclave_proto::ServerId;

use crate::limits;
use crate::tree::Nodes;

use super::machine::{Part, Replica};
use super::pending::bytes_of;
use super::{Forward, PeerMessage, Touch, Touched};

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Early {
    messages: Vec<(ServerId, PeerMessage)>,
    bytes: usize,
}

impl Early {
    /// Keep a message if there is room; if not, it is lost.
    pub(super) fn keep(&mut self, from: ServerId, message: PeerMessage) {
        let bytes = self.bytes + bytes(&message);
        if self.messages.len() < limits::EARLY_MESSAGES && bytes <= limits::EARLY_BYTES {
            self.messages.push((from, message));
            self.bytes = bytes;
        }
    }
}

impl<N: Nodes> Replica<N> {
    /// Whether a message is for the leader of an epoch that this server is about to begin.
    pub(super) fn is_early(&self, message: &PeerMessage) -> bool {
        let (PeerMessage::Forward(Forward { epoch, .. })
        | PeerMessage::Touch(Touch { epoch, .. })
        | PeerMessage::Attach { epoch, .. }
        | PeerMessage::ReadIndex { epoch, .. }) = message
        else {
            return false;
        };
        let has_begun = matches!(&self.part, Part::Leading(lead) if lead.epoch == *epoch);
        !has_begun && self.zab.established() == Some(*epoch)
    }

    /// This server leads: take what was said before.
    pub(super) fn take_early(&mut self) {
        for (from, message) in std::mem::take(&mut self.early).messages {
            self.peer(from, message);
        }
    }
}

/// About how many bytes a message takes.
fn bytes(message: &PeerMessage) -> usize {
    let carried = if let PeerMessage::Forward(Forward { requests, .. }) = message {
        requests.iter().map(|write| bytes_of(&write.identities, &write.request.op)).sum()
    } else if let PeerMessage::Touch(Touch { sessions, .. }) = message {
        sessions.len() * size_of::<Touched>()
    } else {
        0
    };
    size_of::<PeerMessage>() + carried
}
