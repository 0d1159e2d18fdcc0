//! The tree's file read page by page, without LMDB.
//!
//! LMDB trusts what it reads: a wrong page number or length can end the process by a signal, and a
//! wrong key can hide a record. So where damage is possible the whole structure is checked first,
//! and the checksum of every record with it: pages are within the file and used once, keys are in
//! order and where a search looks for them, counts are right, no page in use is listed as free.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::codec::{self, Reader};
use super::error::{IoContext, StoreError};
use super::key::Key;

const MAGIC: u32 = 0xBEEF_C0DE;
const PAGE_HEAD: usize = 16;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const OVERFLOW: u16 = 0x04;
const META: u16 = 0x08;
/// Flags that say where a page has been, not what it is.
const TRANSIENT: u16 = 0x10 | 0x4000 | 0x8000;
const BIG_DATA: u16 = 0x01;
const NO_PAGE: u64 = u64::MAX;
/// LMDB's own bound.
const MAX_DEPTH: u16 = 32;

/// Check the tree in this directory as the transaction `txn` left it; `None`: the last one. The
/// result is whether that transaction is still there: two later ones are enough to hide it.
///
/// # Errors
/// [`StoreError::Damaged`] says what is wrong.
pub(super) fn check(dir: &Path, txn: Option<u64>) -> Result<bool, StoreError> {
    let mut pages = Pages::open(dir)?;
    let Some(meta) = pages.meta(txn)? else { return Ok(false) };
    pages.size = meta.page_size;
    pages.used = vec![false; usize::try_from(meta.last_page + 1).unwrap_or(0)];
    pages.take(0, 2)?;
    let mut free = Vec::new();
    pages.walk(&meta.free, Keys::Numbers, &mut |_, value| {
        let mut reader = Reader(value);
        let count = reader.u64()?;
        (0..count).try_for_each(|_| reader.u64().map(|page| free.push(page)))
    })?;
    pages.walk(&meta.main, Keys::Bytes, &mut |key, value| codec::unseal(key, value).map(drop))?;
    for page in free {
        pages.take(page, 1)?;
    }
    Ok(true)
}

/// Whether the file is shorter than the pages it counts. That can be right, if the last ones are
/// free; if it is not, LMDB would end the process by a signal.
///
/// # Errors
/// [`StoreError::Damaged`] if that cannot be told.
pub(super) fn is_short(dir: &Path) -> Result<bool, StoreError> {
    let pages = Pages::open(dir)?;
    let meta = pages.meta(None)?.expect("the last transaction is always there");
    Ok(pages.len < (meta.last_page + 1) * meta.page_size as u64)
}

/// How the keys of a tree are ordered.
#[derive(Clone, Copy)]
enum Keys {
    Bytes,
    /// Of the machine's own byte order.
    Numbers,
}

/// Says whether a record, key and value, is right.
type Accept<'a> = dyn FnMut(&[u8], &[u8]) -> Option<()> + 'a;

/// What a meta page says.
struct Meta {
    page_size: usize,
    free: Root,
    main: Root,
    last_page: u64,
    txn: u64,
}

/// Where a tree begins, and how large it is.
struct Root {
    depth: u16,
    branches: u64,
    leaves: u64,
    overflow: u64,
    entries: u64,
    page: u64,
}

impl Root {
    /// The root and the field that its first four bytes are for.
    fn read(reader: &mut Reader<'_>) -> Option<(Root, u32)> {
        let pad = reader.u32()?;
        let _flags = reader.u16()?;
        let root = Root {
            depth: reader.u16()?,
            branches: reader.u64()?,
            leaves: reader.u64()?,
            overflow: reader.u64()?,
            entries: reader.u64()?,
            page: reader.u64()?,
        };
        Some((root, pad))
    }
}

fn read_meta(page: &[u8]) -> Option<Meta> {
    let mut reader = Reader(page);
    reader.take(10)?;
    let flags = reader.u16()?;
    reader.take(4)?;
    let magic = reader.u32()?;
    reader.take(4 + 8 + 8)?;
    let (free, page_size) = Root::read(&mut reader)?;
    let (main, _) = Root::read(&mut reader)?;
    let (last_page, txn) = (reader.u64()?, reader.u64()?);
    let page_size = usize::try_from(page_size).ok()?;
    let sound = magic == MAGIC && flags & META != 0 && (512..=65536).contains(&page_size);
    (sound && page_size.is_power_of_two()).then_some(Meta { page_size, free, main, last_page, txn })
}

/// The pages of a file, and which of them were met.
struct Pages {
    file: File,
    path: PathBuf,
    dir: PathBuf,
    len: u64,
    size: usize,
    used: Vec<bool>,
}

/// What is counted on the way through a tree.
#[derive(Default)]
struct Counts {
    branches: u64,
    leaves: u64,
    overflow: u64,
    entries: u64,
}

/// A page still to be visited: its number, how deep it lies, and the least key it may hold.
struct Visit {
    page: u64,
    depth: u16,
    at_least: Vec<u8>,
}

impl Pages {
    fn open(dir: &Path) -> Result<Pages, StoreError> {
        let path = dir.join("data.mdb");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::damaged(dir, "data.mdb is missing"));
            }
            Err(error) => return Err(error).at("open", &path),
        };
        let len = file.metadata().at("look at", &path)?.len();
        Ok(Pages { file, path, dir: dir.to_owned(), len, size: 0, used: Vec::new() })
    }

    fn damaged(&self, what: &str) -> StoreError {
        StoreError::damaged(&self.dir, format_args!("{what} in data.mdb"))
    }

    fn meta(&self, txn: Option<u64>) -> Result<Option<Meta>, StoreError> {
        let mut found: Option<Meta> = None;
        let mut offset = 0;
        for _ in 0..2 {
            let mut bytes = [0; 256];
            if offset + 256 <= self.len {
                self.file.read_exact_at(&mut bytes, offset).at("read", &self.path)?;
            }
            let Some(meta) = read_meta(&bytes) else {
                return Err(self.damaged("a meta page is damaged"));
            };
            offset = meta.page_size as u64;
            let newer = found.as_ref().is_none_or(|found| found.txn < meta.txn);
            if txn.map_or(newer, |txn| txn == meta.txn) {
                found = Some(meta);
            }
        }
        // A page beyond the end is possible, if it is free; a number like this is not.
        let last = |meta: &Meta| self.len / meta.page_size as u64 * 2 + 1024;
        if found.as_ref().is_some_and(|meta| meta.last_page > last(meta)) {
            return Err(self.damaged("a meta page counts pages that cannot be"));
        }
        Ok(found)
    }

    /// Note that these pages are met; each may be met once.
    fn take(&mut self, first: u64, count: u64) -> Result<(), StoreError> {
        let range = usize::try_from(first).ok().zip(usize::try_from(count).ok());
        let pages =
            range.and_then(|(first, count)| self.used.get_mut(first..first.checked_add(count)?));
        match pages {
            Some(pages) if !pages.contains(&true) => {
                pages.fill(true);
                Ok(())
            }
            Some(_) => Err(self.damaged("a page is used twice")),
            None => Err(self.damaged("a page number is beyond the last page")),
        }
    }

    fn read(&self, page: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        let offset = page * self.size as u64;
        if offset + len as u64 > self.len {
            return Err(self.damaged("a page in use is beyond the end of the file"));
        }
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).at("read", &self.path)?;
        let number = Reader(&bytes).u64();
        if number != Some(page) {
            return Err(self.damaged("a page has another one's number"));
        }
        Ok(bytes)
    }

    /// Go through a tree in the order of its keys; `accept` says whether a record is right.
    fn walk(&mut self, root: &Root, keys: Keys, accept: &mut Accept<'_>) -> Result<(), StoreError> {
        let mut counts = Counts::default();
        let mut last: Option<Vec<u8>> = None;
        let mut open = Vec::new();
        if root.page != NO_PAGE {
            open.push(Visit { page: root.page, depth: 1, at_least: Vec::new() });
        }
        while let Some(visit) = open.pop() {
            if last.as_ref().is_some_and(|last| *last >= visit.at_least) {
                return Err(self.damaged("a key is not where it is looked for"));
            }
            self.take(visit.page, 1)?;
            let bytes = self.read(visit.page, self.size)?;
            let nodes = self.nodes(&bytes)?;
            let is_leaf = visit.depth == root.depth;
            let flags = u16::from_le_bytes([bytes[10], bytes[11]]) & !TRANSIENT;
            if visit.depth > MAX_DEPTH || flags != if is_leaf { LEAF } else { BRANCH } {
                return Err(self.damaged("a page is not of the kind it should be"));
            }
            if is_leaf {
                counts.leaves += 1;
                for node in nodes {
                    let key = ordered(keys, node.key);
                    if last.as_ref().is_some_and(|last| *last >= key) || key < visit.at_least {
                        return Err(self.damaged("keys are not in order"));
                    }
                    let value = self.value(&node, &mut counts)?;
                    if accept(node.key, &value).is_none() {
                        return Err(self.damaged("a record does not match its checksum"));
                    }
                    counts.entries += 1;
                    last = Some(key);
                }
            } else {
                counts.branches += 1;
                let depth = visit.depth + 1;
                // The first key of a branch is not looked at: it inherits the branch's own bound.
                let children = nodes.iter().enumerate().map(|(place, node)| {
                    let at_least =
                        if place == 0 { visit.at_least.clone() } else { ordered(keys, node.key) };
                    Visit { page: node.page(), depth, at_least }
                });
                open.extend(children.rev());
            }
        }
        let expected = (root.branches, root.leaves, root.overflow, root.entries);
        if (counts.branches, counts.leaves, counts.overflow, counts.entries) != expected {
            return Err(self.damaged("pages or records are missing"));
        }
        Ok(())
    }

    /// The nodes of a branch or leaf page.
    fn nodes<'p>(&self, page: &'p [u8]) -> Result<Vec<Node<'p>>, StoreError> {
        let parse = || {
            let mut reader = Reader(page);
            reader.take(12)?;
            let (lower, upper) = (usize::from(reader.u16()?), usize::from(reader.u16()?));
            let pointers = lower.checked_sub(PAGE_HEAD)? / 2;
            (lower <= upper && upper <= page.len()).then_some(())?;
            (0..pointers).map(|_| Node::read(page, reader.u16()?.into())).collect()
        };
        let nodes: Option<Vec<_>> = parse();
        nodes.ok_or_else(|| self.damaged("a page is malformed"))
    }

    fn value(&mut self, node: &Node<'_>, counts: &mut Counts) -> Result<Vec<u8>, StoreError> {
        if node.flags & !BIG_DATA != 0 {
            return Err(self.damaged("a record has unknown flags"));
        }
        if node.flags & BIG_DATA == 0 {
            let value = node.rest.get(..node.size);
            return value.map(<[u8]>::to_vec).ok_or_else(|| self.damaged("a value is cut short"));
        }
        let first = Reader(node.rest).u64().ok_or_else(|| self.damaged("a value is cut short"))?;
        let pages = (PAGE_HEAD + node.size).div_ceil(self.size) as u64;
        self.take(first, pages)?;
        let mut bytes = self.read(first, PAGE_HEAD + node.size)?;
        let flags = u16::from_le_bytes([bytes[10], bytes[11]]) & !TRANSIENT;
        let own = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        if flags != OVERFLOW || u64::from(own) != pages {
            return Err(self.damaged("a large value is malformed"));
        }
        counts.overflow += pages;
        bytes.drain(..PAGE_HEAD);
        Ok(bytes)
    }
}

/// A key as bytes that sort as the tree does.
fn ordered(keys: Keys, key: &[u8]) -> Vec<u8> {
    match (keys, key.try_into()) {
        (Keys::Numbers, Ok(number)) => u64::from_ne_bytes(number).to_be_bytes().into(),
        (Keys::Numbers, Err(_)) | (Keys::Bytes, _) => key.into(),
    }
}

/// A key with a value, or with the page of a subtree.
struct Node<'p> {
    /// The length of the value.
    size: usize,
    flags: u16,
    key: &'p [u8],
    /// What follows the key on the page.
    rest: &'p [u8],
}

impl<'p> Node<'p> {
    fn read(page: &'p [u8], at: usize) -> Option<Node<'p>> {
        let mut reader = Reader(page.get(at..)?);
        (at >= PAGE_HEAD).then_some(())?;
        let (low, high) = (reader.u16()?, reader.u16()?);
        let flags = reader.u16()?;
        let key = usize::from(reader.u16()?);
        let key = if key <= Key::MAX { reader.take(key)? } else { return None };
        let size = usize::from(low) | usize::from(high) << 16;
        Some(Node { size, flags, key, rest: reader.0 })
    }

    /// In a branch, length and flags together are a page number.
    fn page(&self) -> u64 {
        self.size as u64 | u64::from(self.flags) << 32
    }
}
