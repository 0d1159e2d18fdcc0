//! Many names at once.

use bytes::{BufMut, Bytes, BytesMut};

/// The names of all children of a node, in order.
///
/// They share one piece of memory, so that a long list costs no allocation for each name, is cloned
/// for nothing, and can be put on ZooKeeper's wire as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    count: u32,
    packed: Bytes,
}

impl Names {
    /// How many there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Each name in turn: its length (4 bytes, big-endian), then its bytes.
    pub fn packed(&self) -> &Bytes {
        &self.packed
    }

    /// One after another.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let mut rest = &*self.packed;
        std::iter::from_fn(move || {
            let (length, after) = rest.split_first_chunk()?;
            let length = usize::try_from(u32::from_be_bytes(*length)).expect("a name is short");
            let (name, after) = after.split_at(length);
            rest = after;
            Some(std::str::from_utf8(name).expect("it was a text when it was packed"))
        })
    }
}

/// Names being packed.
#[derive(Debug, Default)]
pub struct NamesBuilder {
    count: u32,
    packed: BytesMut,
}

impl NamesBuilder {
    /// None yet, with room for about that many.
    pub fn with_capacity(count: usize) -> NamesBuilder {
        /// What most names are shorter than, in bytes.
        const NAME_BYTES: usize = 20;
        /// The most that is reserved before any name has come, in bytes.
        const AHEAD_BYTES: usize = 64 << 10;
        let bytes = count.saturating_mul(4 + NAME_BYTES).min(AHEAD_BYTES);
        NamesBuilder { count: 0, packed: BytesMut::with_capacity(bytes) }
    }

    /// How many bytes they take packed.
    pub fn bytes(&self) -> usize {
        self.packed.len()
    }

    /// Add the next name.
    pub fn push(&mut self, name: &str) {
        self.packed.put_u32(u32::try_from(name.len()).expect("a name is a part of a path"));
        self.packed.put_slice(name.as_bytes());
        self.count += 1;
    }

    /// All of them.
    pub fn finish(self) -> Names {
        Names { count: self.count, packed: self.packed.freeze() }
    }
}

impl<'a> FromIterator<&'a str> for Names {
    fn from_iter<I: IntoIterator<Item = &'a str>>(names: I) -> Names {
        let mut builder = NamesBuilder::default();
        names.into_iter().for_each(|name| builder.push(name));
        builder.finish()
    }
}
