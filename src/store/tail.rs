//! The end of the log's file in memory: what is not written yet, and before it what shares its first
//! page with it.
//!
//! Whole pages go past the system's cache, where nobody would read them: a copy of each record into
//! memory that has not been touched for long costs more than the rest of a write.

use std::io;
use std::os::unix::fs::FileExt;

use super::disk::PAGE_BYTES;

/// The last pages of a file that grows.
#[derive(Debug)]
pub(super) struct Tail {
    /// From `start` on the last pages of the file, without the zeros after them.
    bytes: Vec<u8>,
    /// Where a page of memory begins.
    start: usize,
    /// Where the pages lie in the file.
    offset: u64,
}

impl Tail {
    /// That of a file that ends at `end`, with room for as many bytes.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn of(file: &impl FileExt, end: u64, room: usize) -> io::Result<Tail> {
        let mut tail = Tail { bytes: Vec::new(), start: 0, offset: 0 };
        tail.reserve(room);
        let last = usize::try_from(end % PAGE_BYTES as u64).expect("it is less than a page");
        tail.restart(end - last as u64);
        tail.bytes.resize(tail.start + last, 0);
        file.read_exact_at(&mut tail.bytes[tail.start..], tail.offset)?;
        Ok(tail)
    }

    /// Go on in a file that ends at `end`, at the beginning of a page.
    pub(super) fn restart(&mut self, end: u64) {
        assert_eq!(end % PAGE_BYTES as u64, 0, "a file goes on within a page that is not here");
        self.bytes.truncate(self.start);
        self.offset = end;
    }

    /// The end of the file, once all is written.
    pub(super) fn end(&self) -> u64 {
        self.offset + self.len() as u64
    }

    /// How many bytes are in memory.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Add what `encode` appends, which is at most `bytes` long.
    pub(super) fn push(&mut self, bytes: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        self.reserve(bytes);
        let whole = self.bytes.capacity();
        encode(&mut self.bytes);
        assert_eq!(self.bytes.capacity(), whole, "more is appended than there is room for");
    }

    /// Make room for so many bytes and the zeros behind them, at the beginning of a page of memory.
    fn reserve(&mut self, bytes: usize) {
        if self.bytes.capacity() - self.bytes.len() >= bytes + PAGE_BYTES {
            return;
        }
        let mut larger: Vec<u8> = Vec::with_capacity(self.len() + bytes + 2 * PAGE_BYTES);
        let start = larger.as_ptr().align_offset(PAGE_BYTES);
        larger.resize(start, 0);
        larger.extend_from_slice(&self.bytes[self.start..]);
        (self.bytes, self.start) = (larger, start);
    }

    /// Have everything written, with zeros up to the end of the last page, but not beyond `limit`.
    pub(super) fn write<E>(
        &mut self,
        limit: u64,
        write: impl FnOnce(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = self.end();
        let whole = end.next_multiple_of(PAGE_BYTES as u64).min(limit);
        let zeros = usize::try_from(whole - end).expect("it is less than a page");
        let len = self.bytes.len();
        self.bytes.resize(len + zeros, 0);
        write(self.offset, &self.bytes[self.start..])?;
        // The last page is written again with what comes next, unless it is full.
        let full = self.start + (len - self.start) / PAGE_BYTES * PAGE_BYTES;
        self.bytes.copy_within(full..len, self.start);
        self.bytes.truncate(self.start + len - full);
        self.offset += (full - self.start) as u64;
        Ok(())
    }
}
