//! Identifiers. Each is a type of its own, so that none can be passed for another.

use std::fmt;

use bytes::Bytes;

/// The reign of one leader: 24 bits, so that it fits the upper part of a [`Zxid`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u32);

impl Epoch {
    /// Before any leader.
    pub const ZERO: Epoch = Epoch(0);
    /// The last epoch that fits.
    pub const MAX: Epoch = Epoch((1 << 24) - 1);

    /// The epoch of that number, or `None` if it does not fit 24 bits.
    pub const fn new(number: u32) -> Option<Epoch> {
        if number <= Self::MAX.0 { Some(Epoch(number)) } else { None }
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The epoch that follows, or `None` after the last.
    pub const fn next(self) -> Option<Epoch> {
        Epoch::new(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A position in the history: 24 bits of epoch, 40 bits of counter. `Ord` is the order of history.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Zxid(u64);

impl Zxid {
    /// Before the first transaction.
    pub const ZERO: Zxid = Zxid(0);
    /// After every transaction.
    pub const MAX: Zxid = Zxid(u64::MAX);
    /// The largest counter of one epoch.
    pub const MAX_COUNTER: u64 = (1 << 40) - 1;

    /// The position `counter` of `epoch`.
    ///
    /// # Panics
    /// If `counter` is over [`Zxid::MAX_COUNTER`].
    pub const fn new(epoch: Epoch, counter: u64) -> Zxid {
        assert!(counter <= Self::MAX_COUNTER, "a zxid's counter has 40 bits");
        Zxid((epoch.0 as u64) << 40 | counter)
    }

    /// The position with these 64 bits; every pattern is valid.
    pub const fn from_bits(bits: u64) -> Zxid {
        Zxid(bits)
    }

    /// Its 64 bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The epoch in which it was proposed.
    pub const fn epoch(self) -> Epoch {
        Epoch((self.0 >> 40) as u32)
    }

    /// Its place within the epoch; the first proposal has 1.
    pub const fn counter(self) -> u64 {
        self.0 & Self::MAX_COUNTER
    }

    /// The position that follows in the same epoch, or `None` when its counter is used up.
    pub const fn next(self) -> Option<Zxid> {
        if self.counter() == Self::MAX_COUNTER { None } else { Some(Zxid(self.0 + 1)) }
    }

    /// Whether `self` may directly follow `previous` in a log: the next counter of the same epoch,
    /// or the first of a later one.
    pub fn follows(self, previous: Zxid) -> bool {
        previous.next() == Some(self) || (self.epoch() > previous.epoch() && self.counter() == 1)
    }
}

impl fmt::Display for Zxid {
    /// `epoch.counter`, both decimal, as in `3.17`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch(), self.counter())
    }
}

impl fmt::Debug for Zxid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A member of the ensemble, 1 to 254.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(u8);

impl ServerId {
    /// The server of that number, or `None` unless it is 1 to 254 (255 is reserved: ZooKeeper
    /// marks the owners of TTL nodes with it).
    pub const fn new(number: u8) -> Option<ServerId> {
        if number >= 1 && number <= 254 { Some(ServerId(number)) } else { None }
    }

    /// Its number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A client's session. The upper 8 bits are the server that opened it, the rest is random.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

impl SessionId {
    /// No session: the system itself.
    pub const NONE: SessionId = SessionId(0);
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A request's number within its session, given by the client, growing by one with each write.
///
/// Zero marks a request that is never sent twice (those of the ZooKeeper wire).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xid(pub u64);

/// A watch's number within its session, chosen by the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub u64);

/// What proves that a session is one's own: 16 random bytes that never appear in a log.
#[derive(Clone, Copy)]
pub struct Secret([u8; 16]);

impl Secret {
    /// The secret of these bytes.
    pub const fn new(bytes: [u8; 16]) -> Secret {
        Secret(bytes)
    }

    /// Its bytes, for the wire and the disk.
    pub const fn expose(&self) -> &[u8; 16] {
        &self.0
    }
}

impl PartialEq for Secret {
    /// Takes the same time wherever the difference lies.
    fn eq(&self, other: &Secret) -> bool {
        self.0.iter().zip(&other.0).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
    }
}

impl Eq for Secret {}

/// What somebody shows to prove who they are: a user and a password, for instance. It is never
/// printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials(Bytes);

impl Credentials {
    /// The bytes themselves, for the wire and for those who check them.
    pub const fn expose(&self) -> &Bytes {
        &self.0
    }
}

impl From<Bytes> for Credentials {
    fn from(bytes: Bytes) -> Credentials {
        Credentials(bytes)
    }
}

impl From<Vec<u8>> for Credentials {
    fn from(bytes: Vec<u8>) -> Credentials {
        Credentials(bytes.into())
    }
}

impl From<String> for Credentials {
    fn from(text: String) -> Credentials {
        Credentials(text.into())
    }
}

impl From<&'static str> for Credentials {
    fn from(text: &'static str) -> Credentials {
        Credentials(text.into())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
