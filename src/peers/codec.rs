//! What servers say to each other, as bytes.
//!
//! Numbers have a fixed width, most significant byte first; a list has its length in front (4
//! bytes), an option or a choice its number (1 byte). The layout of each message is written down
//! once, here, and read in both directions. It belongs to a version, which the handshake of a link
//! settles: the number of a choice is never given to another, and a changed layout is a new choice.
//!
//! Nothing is believed: every number is checked, nothing is allocated that the bytes did not pay
//! for, and what is left over is an error. The bodies of log entries share the memory of the input.

use std::borrow::Cow;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use conclave_proto::convert::{self, DecodeError};
use conclave_proto::frame::write_frame;
use conclave_proto::{Epoch, Fault, Secret, ServerId, SessionId, Zxid};

use crate::limits::BATCH_ENTRIES;
use crate::replica::{
    Claim, Forward, Forwarded, MOVE, PeerMessage, SYSTEM, Strain, Touch, Touched,
};
use crate::zab::{Ballot, Entry, FromFollower, FromLeader, Message, Position, Standing, SyncStart};

/// Appends the message to `out`, without a frame.
pub fn encode(message: &PeerMessage, out: &mut BytesMut) {
    message.put(out);
}

/// The message in these bytes.
///
/// # Errors
/// [`DecodeError::Malformed`] if it is not exactly one message.
pub fn decode(mut bytes: Bytes) -> Result<PeerMessage, DecodeError> {
    let message = PeerMessage::take(&mut bytes)?;
    if !bytes.is_empty() {
        return Err(malformed("bytes are left over"));
    }
    Ok(message)
}

/// A part of a message.
trait Part: Sized {
    /// The fewest bytes that it takes.
    const SMALLEST: usize;
    /// The most that a list of it has.
    const MOST: usize = usize::MAX;

    fn put(&self, out: &mut BytesMut);

    fn take(from: &mut Bytes) -> Result<Self, DecodeError>;

    /// The bytes to make room for.
    fn size(&self) -> usize {
        Self::SMALLEST
    }
}

/// Lays out a struct: its fields, one after the other.
macro_rules! record {
    ($type:ident { $($field:ident: $part:ty),* }) => {
        impl Part for $type {
            const SMALLEST: usize = 0 $(+ <$part>::SMALLEST)*;

            fn put(&self, out: &mut BytesMut) {
                $(self.$field.put(out);)*
            }

            fn take(from: &mut Bytes) -> Result<$type, DecodeError> {
                Ok($type { $($field: <$part as Part>::take(from)?),* })
            }
        }
    };
}

/// Lays out an enum: the number of the variant, then its fields, one after the other.
macro_rules! choice {
    ($type:ident {
        $($number:literal => $variant:ident $(($($arg:ident),*))? $({ $($field:ident),* })?),* $(,)?
    }) => {
        impl Part for $type {
            const SMALLEST: usize = 1;

            fn put(&self, out: &mut BytesMut) {
                match self {
                    $($type::$variant $(($($arg),*))? $({ $($field),* })? => {
                        out.put_u8($number);
                        $($($arg.put(out);)*)?
                        $($($field.put(out);)*)?
                    })*
                }
            }

            fn take(from: &mut Bytes) -> Result<$type, DecodeError> {
                match u8::take(from)? {
                    $($number => {
                        $($(let $arg = Part::take(from)?;)*)?
                        $($(let $field = Part::take(from)?;)*)?
                        Ok($type::$variant $(($($arg),*))? $({ $($field),* })?)
                    })*
                    other => Err(malformed(format!(
                        concat!("{} is not a choice of ", stringify!($type)), other
                    ))),
                }
            }
        }
    };
}

choice!(PeerMessage {
    1 => Zab(message),
    2 => Forward(forward),
    3 => Resend { epoch, stream, first },
    4 => Rejected { epoch, requests },
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

    fn put(&self, out: &mut BytesMut) {
        // In one piece: this is most of what goes between servers.
        let mut head = [0; Self::SMALLEST];
        head[..8].copy_from_slice(&self.zxid.bits().to_be_bytes());
        head[8..12].copy_from_slice(&self.chain.to_be_bytes());
        head[12..].copy_from_slice(&length(self.body.len()).to_be_bytes());
        out.put_slice(&head);
        out.put_slice(&self.body);
    }

    fn take(from: &mut Bytes) -> Result<Entry, DecodeError> {
        let zxid = Zxid::take(from)?;
        let chain = u32::take(from)?;
        Ok(Entry { zxid, chain, body: take_sized(from)? })
    }

    fn size(&self) -> usize {
        Self::SMALLEST + self.body.len()
    }
}

impl Part for Forwarded {
    const SMALLEST: usize = 13;
    const MOST: usize = BATCH_ENTRIES;

    fn put(&self, out: &mut BytesMut) {
        self.tag.put(out);
        self.claim.put(out);
        write_frame(out, |out| convert::encode_request(&self.request, &self.identities, out));
    }

    fn take(from: &mut Bytes) -> Result<Forwarded, DecodeError> {
        let tag = u64::take(from)?;
        if tag == SYSTEM || tag >= MOVE {
            return Err(malformed("a write that no client asked for"));
        }
        let claim: Option<Claim> = Part::take(from)?;
        let (request, identities) = convert::decode_request(take_sized(from)?)?;
        Ok(Forwarded { tag, identities, claim, request })
    }
}

/// A refused write: its mark, and why.
impl Part for (u64, Fault) {
    const SMALLEST: usize = 12;

    fn put(&self, out: &mut BytesMut) {
        self.0.put(out);
        write_frame(out, |out| convert::encode_result(&Err(self.1), out));
    }

    fn take(from: &mut Bytes) -> Result<(u64, Fault), DecodeError> {
        let mark = u64::take(from)?;
        match convert::decode_result(take_sized(from)?)? {
            Ok(_) => Err(malformed("a refused write that was carried out")),
            Err(fault) => Ok((mark, fault)),
        }
    }
}

impl Part for Epoch {
    const SMALLEST: usize = 4;

    fn put(&self, out: &mut BytesMut) {
        self.get().put(out);
    }

    fn take(from: &mut Bytes) -> Result<Epoch, DecodeError> {
        Epoch::new(u32::take(from)?).ok_or_else(|| malformed("an epoch of more than 24 bits"))
    }
}

impl Part for Claim {
    const SMALLEST: usize = Zxid::SMALLEST;

    fn put(&self, out: &mut BytesMut) {
        self.0.put(out);
    }

    fn take(from: &mut Bytes) -> Result<Claim, DecodeError> {
        Ok(Claim(Zxid::take(from)?))
    }
}

impl Part for Zxid {
    const SMALLEST: usize = 8;

    fn put(&self, out: &mut BytesMut) {
        self.bits().put(out);
    }

    fn take(from: &mut Bytes) -> Result<Zxid, DecodeError> {
        Ok(Zxid::from_bits(u64::take(from)?))
    }
}

impl Part for ServerId {
    const SMALLEST: usize = 1;

    fn put(&self, out: &mut BytesMut) {
        out.put_u8(self.get());
    }

    fn take(from: &mut Bytes) -> Result<ServerId, DecodeError> {
        ServerId::new(u8::take(from)?).ok_or_else(|| malformed("no number of a server"))
    }
}

impl Part for SessionId {
    const SMALLEST: usize = 8;

    fn put(&self, out: &mut BytesMut) {
        self.0.put(out);
    }

    fn take(from: &mut Bytes) -> Result<SessionId, DecodeError> {
        Ok(SessionId(u64::take(from)?))
    }
}

impl Part for Secret {
    const SMALLEST: usize = 16;

    fn put(&self, out: &mut BytesMut) {
        out.put_slice(self.expose());
    }

    fn take(from: &mut Bytes) -> Result<Secret, DecodeError> {
        let mut bytes = [0; 16];
        from.try_copy_to_slice(&mut bytes).map_err(|_| too_short())?;
        Ok(Secret::new(bytes))
    }
}

impl Part for u8 {
    const SMALLEST: usize = 1;

    fn put(&self, out: &mut BytesMut) {
        out.put_u8(*self);
    }

    fn take(from: &mut Bytes) -> Result<u8, DecodeError> {
        from.try_get_u8().map_err(|_| too_short())
    }
}

impl Part for u32 {
    const SMALLEST: usize = 4;

    fn put(&self, out: &mut BytesMut) {
        out.put_u32(*self);
    }

    fn take(from: &mut Bytes) -> Result<u32, DecodeError> {
        from.try_get_u32().map_err(|_| too_short())
    }
}

impl Part for u64 {
    const SMALLEST: usize = 8;

    fn put(&self, out: &mut BytesMut) {
        out.put_u64(*self);
    }

    fn take(from: &mut Bytes) -> Result<u64, DecodeError> {
        from.try_get_u64().map_err(|_| too_short())
    }
}

impl Part for bool {
    const SMALLEST: usize = 1;

    fn put(&self, out: &mut BytesMut) {
        out.put_u8((*self).into());
    }

    fn take(from: &mut Bytes) -> Result<bool, DecodeError> {
        match u8::take(from)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(malformed(format!("{other} is neither true nor false"))),
        }
    }
}

impl<T: Part> Part for Option<T> {
    const SMALLEST: usize = 1;

    fn put(&self, out: &mut BytesMut) {
        self.is_some().put(out);
        if let Some(part) = self {
            part.put(out);
        }
    }

    fn take(from: &mut Bytes) -> Result<Option<T>, DecodeError> {
        if bool::take(from)? { Ok(Some(T::take(from)?)) } else { Ok(None) }
    }
}

impl<T: Part> Part for Vec<T> {
    const SMALLEST: usize = 4;

    fn put(&self, out: &mut BytesMut) {
        assert!(self.len() <= T::MOST, "a list of {} in a message to a peer", self.len());
        out.reserve(4 + self.iter().map(T::size).sum::<usize>());
        length(self.len()).put(out);
        for part in self {
            part.put(out);
        }
    }

    fn take(from: &mut Bytes) -> Result<Vec<T>, DecodeError> {
        let length = take_length(from)?;
        if length > from.len() / T::SMALLEST {
            return Err(too_short());
        }
        if length > T::MOST {
            return Err(malformed(format!("a list of {length}, where {} are allowed", T::MOST)));
        }
        let mut list = Vec::with_capacity(length);
        for _ in 0..length {
            list.push(T::take(from)?);
        }
        Ok(list)
    }
}

/// Some bytes, with their length in front.
fn take_sized(from: &mut Bytes) -> Result<Bytes, DecodeError> {
    let length = take_length(from)?;
    if length > from.len() { Err(too_short()) } else { Ok(from.split_to(length)) }
}

fn length(length: usize) -> u32 {
    u32::try_from(length).expect("a message is far below 4 GiB")
}

fn take_length(from: &mut Bytes) -> Result<usize, DecodeError> {
    let length = u32::take(from)?;
    usize::try_from(length).map_err(|_| too_short())
}

fn too_short() -> DecodeError {
    malformed("it ends too early")
}

fn malformed(what: impl Into<Cow<'static, str>>) -> DecodeError {
    DecodeError::Malformed(what.into())
}
