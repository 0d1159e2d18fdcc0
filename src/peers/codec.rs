//! What servers say to each other, as bytes.
//!
//! The layout belongs to a version, which the handshake of a link settles. The bodies of log entries
//! share the memory of the input.

use bytes::{Bytes, BytesMut};
use conclave_proto::codec::{self, Part, Reader, Sink, choice, malformed, put_sized, record};
use conclave_proto::convert::DecodeError;
use conclave_proto::{Epoch, Request, ServerId, SessionId, Zxid};

use crate::limits::BATCH_ENTRIES;
use crate::replica::{
    Claim, Forward, Forwarded, MOVE, PeerMessage, SYSTEM, Strain, Touch, Touched,
};
use crate::zab::{Ballot, Entry, FromFollower, FromLeader, Message, Position, Standing, SyncStart};

/// Appends the message to `out`, without a frame.
pub fn encode(message: &PeerMessage, out: &mut BytesMut) {
    codec::encode(message, out);
}

/// The message in these bytes.
///
/// # Errors
/// [`DecodeError::Malformed`] if it is not exactly one message.
pub fn decode(bytes: &Bytes) -> Result<PeerMessage, DecodeError> {
    codec::decode(bytes)
}

choice!(PeerMessage {
    1 => Zab(message),
    2 => Forward(forward),
    3 => Resend { epoch, stream, first },
    4 => Rejected { epoch, stream, requests },
    5 => Touch(touch),
    6 => Poll { epoch, now_ms },
    7 => Attach { epoch, conn, session, secret },
    8 => Gone { epoch, conn, session },
    9 => ReadIndex { epoch, read },
    10 => ReadAt { epoch, read, commit },
    11 => Counted { epoch, report, refused },
    12 => Retired { epoch, stream },
});

choice!(Message {
    1 => Ballot(ballot),
    2 => Join { join, accepted, damaged },
    3 => FromLeader { epoch, sync, body },
    4 => FromFollower { epoch, sync, body },
});

choice!(FromLeader {
    1 => NewEpoch { join },
    2 => Fetch { after },
    3 => Sync { start, upto },
    4 => UpToDate { commit },
    5 => Propose { previous, entries, commit, delay_ack },
    6 => Commit { commit },
    7 => Heartbeat { round, commit },
    8 => Restart,
    9 => HandOver { to },
});

choice!(FromFollower {
    1 => AckEpoch { promised, current, last },
    2 => History { after, entries, last },
    3 => Diverged { have },
    4 => Ack { durable, synced },
    5 => Gap { last },
    6 => HeartbeatAck { round, received, durable, synced, active },
});

choice!(SyncStart {
    1 => After(position),
    2 => Snapshot(position),
});

choice!(Standing {
    1 => Looking { choice, electable },
    2 => Following { leader },
    3 => Leading { epoch, established },
});

record!(Ballot {
    life: u64, count: u64, standing: Standing, current: Epoch, last: Zxid, hears: Vec<ServerId>
});
record!(Position { zxid: Zxid, chain: u32 });
record!(Forward { epoch: Epoch, stream: u64, first: u64, requests: Vec<Forwarded> });
record!(Touch {
    epoch: Epoch, polled_ms: u64, stream: u64, forwarded: u64, strain: Strain,
    has_clients: bool, report: Option<u64>, sessions: Vec<Touched>
});
record!(Strain { low_space: bool, is_behind: bool });
record!(Touched { session: SessionId, age_ms: u32, claim: Claim });

impl Part for Entry {
    const SMALLEST: usize = 16;
    const MOST: usize = BATCH_ENTRIES;

    fn put(&self, out: &mut impl Sink) {
        self.zxid.put(out);
        self.chain.put(out);
        put_sized(&self.body, out);
    }

    fn take(from: &mut Reader<'_>) -> Result<Entry, DecodeError> {
        let (zxid, chain) = (Part::take(from)?, Part::take(from)?);
        Ok(Entry { zxid, chain, body: from.lend()? })
    }
}

impl Part for Forwarded {
    const SMALLEST: usize = 8 + 1 + 4 + Request::SMALLEST;
    const MOST: usize = BATCH_ENTRIES;

    fn put(&self, out: &mut impl Sink) {
        let Forwarded { tag, identities, claim, request } = self;
        tag.put(out);
        claim.put(out);
        identities.put(out);
        request.put(out);
    }

    fn take(from: &mut Reader<'_>) -> Result<Forwarded, DecodeError> {
        let tag = u64::take(from)?;
        if tag == SYSTEM || tag >= MOVE {
            return Err(malformed("a write that no client asked for"));
        }
        let (claim, identities) = (Part::take(from)?, Part::take(from)?);
        Ok(Forwarded { tag, identities, claim, request: Part::take(from)? })
    }
}

impl Part for Claim {
    const SMALLEST: usize = Zxid::SMALLEST;

    fn put(&self, out: &mut impl Sink) {
        self.0.put(out);
    }

    fn take(from: &mut Reader<'_>) -> Result<Claim, DecodeError> {
        Zxid::take(from).map(Claim)
    }
}
