//! What servers keep in their logs and say to each other, as bytes.
//!
//! Numbers have a fixed width, most significant byte first; a list and a text have their length in
//! front (4 bytes), an option or a choice its number (1 byte). The layout of each type is written
//! down once and read in both directions, without anything in between: every write is encoded and
//! decoded by every server. The number of a choice is never given to another, and a changed layout
//! is a new choice.
//!
//! Nothing is believed: every number is checked, nothing is allocated that the bytes did not pay
//! for, and what is left over is an error. There is one encoding of each value, and no other bytes
//! are decoded to it. Values and bodies share the memory of the input.

mod txn;

use std::borrow::Cow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::convert::{DecodeError, error_of, number_of};
use crate::error::{ErrorCode, Fault};
use crate::ids::{Epoch, Secret, ServerId, SessionId, Xid, Zxid};
use crate::node::Perms;

pub use crate::{choice, record};
pub use txn::{decode_txn, encode_txn};

/// What has a layout.
pub trait Part: Sized {
    /// The fewest bytes that it takes.
    const SMALLEST: usize;
    /// The most that a list of it has.
    const MOST: usize = usize::MAX;

    /// Puts its bytes into `out`, the same whatever `out` is.
    fn put(&self, out: &mut impl Sink);

    /// Takes it off the front.
    ///
    /// # Errors
    /// [`DecodeError::Malformed`] if something else is there.
    fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

/// Where bytes go.
pub trait Sink {
    /// Takes them, after all before.
    fn put(&mut self, bytes: &[u8]);
}

/// Counts the bytes alone.
struct Length(usize);

impl Sink for Length {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

/// The room for the bytes that are still to come.
struct Room<'a>(&'a mut [u8]);

impl Sink for Room<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let (room, rest) = std::mem::take(&mut self.0).split_at_mut(bytes.len());
        room.copy_from_slice(bytes);
        self.0 = rest;
    }
}

/// What is left of an input.
#[derive(Debug)]
pub struct Reader<'a> {
    whole: &'a Bytes,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// All of it.
    pub fn new(whole: &'a Bytes) -> Reader<'a> {
        Reader { whole, rest: whole }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(too_short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(too_short)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// Bytes with their length in front.
    fn sized(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = u32::take(self)?;
        self.take(usize::try_from(length).map_err(|_| too_short())?)
    }

    /// Takes bytes with their length in front, which share the memory of the input.
    ///
    /// # Errors
    /// If the input ends before them.
    pub fn lend(&mut self) -> Result<Bytes, DecodeError> {
        let taken = self.sized()?;
        Ok(self.whole.slice_ref(taken))
    }

    /// Takes the length of a list of `T`.
    fn length<T: Part>(&mut self) -> Result<usize, DecodeError> {
        let length = usize::try_from(u32::take(self)?).map_err(|_| too_short())?;
        if length > self.rest.len() / T::SMALLEST {
            return Err(too_short());
        }
        if length > T::MOST {
            return Err(malformed(format!("a list of {length}, where {} are allowed", T::MOST)));
        }
        Ok(length)
    }

    /// Takes a list of that length, of which `one` takes each element.
    fn list<T>(
        &mut self,
        length: usize,
        one: impl Fn(&mut Reader<'a>) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let mut list = Vec::with_capacity(length);
        for _ in 0..length {
            list.push(one(self)?);
        }
        Ok(list)
    }
}

/// Appends it to `out`.
pub fn encode(part: &impl Part, out: &mut BytesMut) {
    let mut length = Length(0);
    part.put(&mut length);
    let start = out.len();
    // A slice takes single numbers far faster than a buffer that may have to grow.
    out.resize(start + length.0, 0);
    let mut room = Room(&mut out[start..]);
    part.put(&mut room);
    assert!(room.0.is_empty(), "a part has one encoding");
}

/// What exactly these bytes are.
///
/// # Errors
/// [`DecodeError::Malformed`] if they are something else.
pub fn decode<T: Part>(bytes: &Bytes) -> Result<T, DecodeError> {
    let mut from = Reader::new(bytes);
    let part = T::take(&mut from)?;
    if from.rest.is_empty() { Ok(part) } else { Err(malformed("bytes are left over")) }
}

/// Bytes with their length in front, for [`Reader::lend`].
pub fn put_sized(bytes: &[u8], out: &mut impl Sink) {
    put_length(bytes.len(), out);
    out.put(bytes);
}

fn put_length(length: usize, out: &mut impl Sink) {
    u32::try_from(length).expect("a message is far below 4 GiB").put(out);
}

/// The error of bytes that are not what they should be.
pub fn malformed(what: impl Into<Cow<'static, str>>) -> DecodeError {
    DecodeError::Malformed(what.into())
}

fn too_short() -> DecodeError {
    malformed("it ends too early")
}

/// Lays out a struct: its fields, one after the other. A list of it may be limited.
#[macro_export]
macro_rules! record {
    ($type:ident $(at most $most:expr,)? { $($field:ident: $part:ty),* $(,)? }) => {
        impl $crate::codec::Part for $type {
            const SMALLEST: usize = 0 $(+ <$part as $crate::codec::Part>::SMALLEST)*;
            $(const MOST: usize = $most;)?

            fn put(&self, out: &mut impl $crate::codec::Sink) {
                $(<$part as $crate::codec::Part>::put(&self.$field, out);)*
            }

            fn take(
                from: &mut $crate::codec::Reader<'_>,
            ) -> Result<$type, $crate::convert::DecodeError> {
                Ok($type { $($field: <$part as $crate::codec::Part>::take(from)?),* })
            }
        }
    };
}

/// Lays out an enum: the number of the variant, then its fields, one after the other. A list of it
/// may be limited, a field may be taken by a function, and some variants may be out of place.
#[macro_export]
macro_rules! choice {
    ($type:ident $(at most $most:expr,)? {
        $($number:literal => $variant:ident
            $(($($arg:ident),*))?
            $({ $($field:ident $(by $take:expr)?),* })?
        ),* $(,)?
    } $(else $unlaid:pat => $why:literal)?) => {
        impl $crate::codec::Part for $type {
            const SMALLEST: usize = 1;
            $(const MOST: usize = $most;)?

            fn put(&self, out: &mut impl $crate::codec::Sink) {
                match self {
                    $($type::$variant $(($($arg),*))? $({ $($field),* })? => {
                        out.put(&[$number]);
                        $($($crate::codec::Part::put($arg, out);)*)?
                        $($($crate::codec::Part::put($field, out);)*)?
                    })*
                    $($unlaid => unreachable!($why),)?
                }
            }

            fn take(
                from: &mut $crate::codec::Reader<'_>,
            ) -> Result<$type, $crate::convert::DecodeError> {
                match <u8 as $crate::codec::Part>::take(from)? {
                    $($number => {
                        $($(let $arg = $crate::codec::Part::take(from)?;)*)?
                        $($(let $field = $crate::choice!(@take from $($take)?)?;)*)?
                        Ok($type::$variant $(($($arg),*))? $({ $($field),* })?)
                    })*
                    other => Err($crate::codec::malformed(format!(
                        concat!("{} is not a choice of ", stringify!($type)), other
                    ))),
                }
            }
        }
    };
    (@take $from:ident) => { $crate::codec::Part::take($from) };
    (@take $from:ident $take:expr) => { $take($from) };
}

/// Lays out numbers: in their own width.
macro_rules! numbers {
    ($($type:ident),*) => {$(
        impl Part for $type {
            const SMALLEST: usize = size_of::<$type>();

            fn put(&self, out: &mut impl Sink) {
                out.put(&self.to_be_bytes());
            }

            fn take(from: &mut Reader<'_>) -> Result<$type, DecodeError> {
                Ok($type::from_be_bytes(from.array()?))
            }
        }
    )*};
}

numbers!(u8, u16, u32, u64, i32, i64);

/// Lays out what is a number of another name.
macro_rules! wrapped {
    ($($type:ident: $number:ty, $get:expr, $make:expr;)*) => {$(
        impl Part for $type {
            const SMALLEST: usize = size_of::<$number>();

            fn put(&self, out: &mut impl Sink) {
                let get: fn(&$type) -> $number = $get;
                get(self).put(out);
            }

            fn take(from: &mut Reader<'_>) -> Result<$type, DecodeError> {
                let make: fn($number) -> Option<$type> = $make;
                let number = <$number>::take(from)?;
                make(number).ok_or_else(|| {
                    malformed(format!(concat!("{} is no ", stringify!($type)), number))
                })
            }
        }
    )*};
}

wrapped! {
    bool: u8, |&is_so| is_so.into(), |number| (number < 2).then_some(number == 1);
    Epoch: u32, |epoch| epoch.get(), Epoch::new;
    Zxid: u64, |zxid| zxid.bits(), |bits| Some(Zxid::from_bits(bits));
    ServerId: u8, |server| server.get(), ServerId::new;
    SessionId: u64, |session| session.0, |number| Some(SessionId(number));
    Xid: u64, |xid| xid.0, |number| Some(Xid(number));
    Perms: u8, |perms| perms.0, |bits| Some(Perms(bits));
    ErrorCode: i32, |&error| number_of(error), error_of;
}

record!(Fault { code: ErrorCode, index: u32 });

impl Part for Secret {
    const SMALLEST: usize = 16;

    fn put(&self, out: &mut impl Sink) {
        out.put(self.expose());
    }

    fn take(from: &mut Reader<'_>) -> Result<Secret, DecodeError> {
        Ok(Secret::new(from.array()?))
    }
}

impl<A: Part, B: Part> Part for (A, B) {
    const SMALLEST: usize = A::SMALLEST + B::SMALLEST;

    fn put(&self, out: &mut impl Sink) {
        self.0.put(out);
        self.1.put(out);
    }

    fn take(from: &mut Reader<'_>) -> Result<(A, B), DecodeError> {
        Ok((A::take(from)?, B::take(from)?))
    }
}

impl<T: Part> Part for Box<T> {
    const SMALLEST: usize = T::SMALLEST;

    fn put(&self, out: &mut impl Sink) {
        T::put(self, out);
    }

    fn take(from: &mut Reader<'_>) -> Result<Box<T>, DecodeError> {
        T::take(from).map(Box::new)
    }
}

impl<T: Part> Part for Option<T> {
    const SMALLEST: usize = 1;

    fn put(&self, out: &mut impl Sink) {
        self.is_some().put(out);
        if let Some(part) = self {
            part.put(out);
        }
    }

    fn take(from: &mut Reader<'_>) -> Result<Option<T>, DecodeError> {
        if bool::take(from)? { T::take(from).map(Some) } else { Ok(None) }
    }
}

impl<T: Part> Part for Vec<T> {
    const SMALLEST: usize = 4;

    fn put(&self, out: &mut impl Sink) {
        put_list(self, out);
    }

    fn take(from: &mut Reader<'_>) -> Result<Vec<T>, DecodeError> {
        let length = from.length::<T>()?;
        from.list(length, T::take)
    }
}

impl<T: Part> Part for Arc<[T]> {
    const SMALLEST: usize = 4;

    fn put(&self, out: &mut impl Sink) {
        put_list(self, out);
    }

    fn take(from: &mut Reader<'_>) -> Result<Arc<[T]>, DecodeError> {
        match from.length::<T>()? {
            // Most clients have one identity: that needs no list before it is shared.
            1 => Ok(Arc::new([T::take(from)?])),
            length => from.list(length, T::take).map(Arc::from),
        }
    }
}

fn put_list<T: Part>(list: &[T], out: &mut impl Sink) {
    assert!(list.len() <= T::MOST, "a list of {}, where {} are allowed", list.len(), T::MOST);
    put_length(list.len(), out);
    for part in list {
        part.put(out);
    }
}
