//! Jute as a client writes and reads it. It shares nothing with the server's own, so that no
//! mistake is made on both sides and goes unseen.

/// Bytes being written.
#[derive(Debug, Default)]
pub(crate) struct Out(pub(crate) Vec<u8>);

impl Out {
    pub(crate) fn int(mut self, value: i32) -> Out {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn long(mut self, value: i64) -> Out {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn bool(mut self, value: bool) -> Out {
        self.0.push(u8::from(value));
        self
    }

    pub(crate) fn buffer(self, bytes: Option<&[u8]>) -> Out {
        let Some(bytes) = bytes else { return self.int(-1) };
        let mut out = self.count(bytes.len());
        out.0.extend(bytes);
        out
    }

    pub(crate) fn text(self, text: &str) -> Out {
        self.buffer(Some(text.as_bytes()))
    }

    pub(crate) fn count(self, count: usize) -> Out {
        self.int(i32::try_from(count).expect("tests write little"))
    }

    /// The bytes with their length before them.
    pub(crate) fn framed(self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("tests write little");
        [&length.to_be_bytes()[..], &self.0].concat()
    }
}

/// Bytes being read; `None` as soon as something is not there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct In<'a>(pub(crate) &'a [u8]);

impl<'a> In<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    pub(crate) fn int(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(self.take()?))
    }

    pub(crate) fn long(&mut self) -> Option<i64> {
        Some(i64::from_be_bytes(self.take()?))
    }

    pub(crate) fn bool(&mut self) -> Option<bool> {
        Some(self.take::<1>()? != [0])
    }

    /// A buffer; the inner `None` is null.
    pub(crate) fn buffer(&mut self) -> Option<Option<&'a [u8]>> {
        let length = self.int()?;
        if length == -1 {
            return Some(None);
        }
        let (first, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(Some(first))
    }

    pub(crate) fn text(&mut self) -> Option<String> {
        let bytes = self.buffer()?;
        Some(bytes.map_or("(null)".into(), |bytes| String::from_utf8_lossy(bytes).into_owned()))
    }

    pub(crate) fn count(&mut self) -> Option<usize> {
        usize::try_from(self.int()?).ok()
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}
