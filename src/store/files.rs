//! The small files: whose directory it is (`identity`), what is in force (`CURRENT`), and the
//! promises of the protocol (`state`).

use std::fs::File;
use std::path::{Path, PathBuf};

use bytes::BufMut;
use conclave_proto::{Epoch, ServerId};

use super::Identity;
use super::codec::Reader;
use super::disk::{Disk, read_if_there};
use super::error::{IoContext, StoreError};
use crate::zab::Position;

/// The version of the formats on disk, and of what is kept in them, that this code reads and writes.
/// No release wrote an earlier one.
pub(super) const FORMAT: u32 = 2;

const IDENTITY_MAGIC: [u8; 8] = *b"CNCLIDNT";
const CURRENT_MAGIC: [u8; 8] = *b"CNCLCURR";
const STATE_MAGIC: [u8; 8] = *b"CNCLSTAT";

/// Why a small file could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unsealed {
    Damaged,
    /// It is of another format.
    Other(u32),
}

/// Magic, format, length, contents, checksum of all that.
pub(super) fn seal(magic: [u8; 8], contents: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(contents.len() + 20);
    out.put_slice(&magic);
    out.put_u32_le(FORMAT);
    out.put_u32_le(u32::try_from(contents.len()).expect("it is a small file"));
    out.put_slice(contents);
    let crc = crc32c::crc32c(&out);
    out.put_u32_le(crc);
    out
}

pub(super) fn unseal(magic: [u8; 8], bytes: &[u8]) -> Result<Reader<'_>, Unsealed> {
    let parse = || {
        let mut reader = Reader(bytes);
        let found: [u8; 8] = reader.array()?;
        let format = reader.u32()?;
        let len = usize::try_from(reader.u32()?).ok()?;
        let contents = reader.take(len)?;
        let crc = reader.u32()?;
        let sound = found == magic && crc == crc32c::crc32c(&bytes[..16 + len]);
        sound.then_some((format, contents))
    };
    match parse() {
        None => Err(Unsealed::Damaged),
        Some((format, _)) if format != FORMAT => Err(Unsealed::Other(format)),
        Some((_, contents)) => Ok(Reader(contents)),
    }
}

/// The line for a directory of another version.
pub(super) fn of_other_format(path: &Path, format: u32) -> StoreError {
    let advice = if format > FORMAT {
        "run the version that wrote it, or a later one"
    } else {
        "run the build that wrote it, export the tree with it, and import that into a new ensemble"
    };
    StoreError::unusable(
        path,
        format_args!("its format is {format} and this version reads {FORMAT}; {advice}"),
    )
}

/// Whose directory it is, and whether everything it needs was once in place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) identity: Identity,
    pub(super) formed: bool,
}

impl Owner {
    const NAME: &str = "identity";

    pub(super) fn write(&self, disk: &Disk, dir: &Path) -> Result<(), StoreError> {
        let mut contents = vec![self.formed.into(), self.identity.server.get()];
        contents.put_slice(self.identity.cluster.as_bytes());
        disk.replace(&dir.join(Self::NAME), &seal(IDENTITY_MAGIC, &contents))
    }

    /// `None` if the directory is nobody's.
    pub(super) fn read(dir: &Path) -> Result<Option<Owner>, StoreError> {
        let path = dir.join(Self::NAME);
        let Some(bytes) = read_if_there(&path)? else { return Ok(None) };
        let damaged = || {
            StoreError::unusable(
                dir,
                "its file `identity` is damaged; copy the one of a backup, or start with an empty \
                 directory and --lost-data: the server then fetches everything from the other \
                 members before it counts",
            )
        };
        let mut reader = match unseal(IDENTITY_MAGIC, &bytes) {
            Ok(reader) => reader,
            Err(Unsealed::Other(format)) => return Err(of_other_format(dir, format)),
            Err(Unsealed::Damaged) => return Err(damaged()),
        };
        let parse = |reader: &mut Reader<'_>| {
            let formed = reader.u8()? == 1;
            let server = ServerId::new(reader.u8()?)?;
            let cluster = std::str::from_utf8(reader.0).ok()?.to_owned();
            Some(Owner { identity: Identity { cluster, server }, formed })
        };
        parse(&mut reader).map(Some).ok_or_else(damaged)
    }

    /// Refuse a directory that is somebody else's.
    pub(super) fn check(&self, dir: &Path, expected: &Identity) -> Result<(), StoreError> {
        let (found, this) = (&self.identity, expected);
        if found.cluster != this.cluster {
            return Err(StoreError::unusable(
                dir,
                format_args!(
                    "it belongs to the cluster {:?} and this server is of {:?}; give the server a \
                     directory of its own",
                    found.cluster, this.cluster
                ),
            ));
        }
        if found.server != this.server {
            return Err(StoreError::unusable(
                dir,
                format_args!(
                    "it belongs to server {} and this is server {}; give each server a directory \
                     of its own",
                    found.server, this.server
                ),
            ));
        }
        Ok(())
    }
}

/// Which tree and which part of the log are in force: they change together, by replacing one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Current {
    /// The number of the tree's directory.
    pub(super) tree: u64,
    /// Segments of the log before this generation do not count.
    pub(super) log_floor: u64,
}

impl Current {
    const NAME: &str = "CURRENT";

    pub(super) fn write(&self, disk: &Disk, dir: &Path) -> Result<(), StoreError> {
        let mut contents = Vec::new();
        contents.put_u64_le(self.tree);
        contents.put_u64_le(self.log_floor);
        disk.replace(&dir.join(Self::NAME), &seal(CURRENT_MAGIC, &contents))
    }

    /// `None` if it is missing or damaged.
    pub(super) fn read(dir: &Path) -> Result<Option<Current>, StoreError> {
        let Some(bytes) = read_if_there(&dir.join(Self::NAME))? else { return Ok(None) };
        match unseal(CURRENT_MAGIC, &bytes) {
            Ok(mut reader) => {
                let numbers = reader.u64().zip(reader.u64());
                Ok(numbers.map(|(tree, log_floor)| Current { tree, log_floor }))
            }
            Err(Unsealed::Damaged) => Ok(None),
            Err(Unsealed::Other(format)) => Err(of_other_format(dir, format)),
        }
    }
}

/// The promises of the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Promises {
    pub(super) accepted_epoch: Epoch,
    pub(super) current_epoch: Epoch,
    pub(super) needs_repair: bool,
}

/// The file `state`: two copies of the promises, each with a number and a checksum.
///
/// A change is written to one copy, synced, then written to the other and synced. So at any moment
/// at most one copy is torn, and once a change is done both have it: a single damaged copy never
/// takes a promise back.
#[derive(Debug)]
pub(super) struct StateFile {
    disk: Disk,
    file: File,
    path: PathBuf,
    sequence: u64,
    /// Which copy surely holds the promises, 0 or 1: the other one is written first.
    sound: u64,
    promises: Promises,
}

const SLOT_SPACING: u64 = 4096;
const SLOT_BYTES: usize = 64;

impl StateFile {
    const NAME: &str = "state";

    /// Create the file of a server that has promised nothing.
    pub(super) fn create(disk: &Disk, dir: &Path) -> Result<StateFile, StoreError> {
        let path = dir.join(Self::NAME);
        let file = disk.create(&path)?;
        let promises = Promises::default();
        let disk = disk.clone();
        let mut state = StateFile { disk, file, path, sequence: 0, sound: 0, promises };
        state.set(promises)?;
        state.disk.sync_dir(dir)?;
        Ok(state)
    }

    /// Open the file and repair a copy that is damaged.
    pub(super) fn open(disk: &Disk, dir: &Path) -> Result<StateFile, StoreError> {
        let path = dir.join(Self::NAME);
        if !path.try_exists().at("look for", &path)? {
            return Err(StoreError::unusable(
                dir,
                "its file `state` is missing, and with it the promises this server made; start \
                 with an empty directory and --lost-data: the server then fetches everything from \
                 the other members before it counts",
            ));
        }
        let file = disk.open(&path)?;
        let slots = [read_slot(disk, &file, &path, 0)?, read_slot(disk, &file, &path, 1)?];
        let mut newest = None;
        for (copy, slot) in (0..).zip(slots) {
            match slot {
                Ok(slot) => newest = newest.max(Some((slot.sequence, copy, slot.promises))),
                Err(Unsealed::Other(format)) => return Err(of_other_format(dir, format)),
                Err(Unsealed::Damaged) => {}
            }
        }
        let Some((sequence, sound, promises)) = newest else {
            return Err(StoreError::unusable(
                dir,
                "both copies in its file `state` are damaged, and with them the promises this \
                 server made; start with an empty directory and --lost-data: the server then \
                 fetches everything from the other members before it counts",
            ));
        };
        let disk = disk.clone();
        let mut state = StateFile { disk, file, path, sequence, sound, promises };
        state.set(promises)?;
        Ok(state)
    }

    pub(super) fn promises(&self) -> Promises {
        self.promises
    }

    /// Make these the promises; durable on return.
    pub(super) fn set(&mut self, promises: Promises) -> Result<(), StoreError> {
        self.sequence += 1;
        self.promises = promises;
        let slot = Slot { sequence: self.sequence, promises }.encode();
        for copy in [1 - self.sound, self.sound] {
            self.disk.write(&self.file, &self.path, copy * SLOT_SPACING, &slot)?;
            self.disk.sync(&self.file, &self.path)?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    sequence: u64,
    promises: Promises,
}

impl Slot {
    fn encode(&self) -> Vec<u8> {
        let mut contents = Vec::new();
        contents.put_u64_le(self.sequence);
        contents.put_u32_le(self.promises.accepted_epoch.get());
        contents.put_u32_le(self.promises.current_epoch.get());
        contents.put_u8(self.promises.needs_repair.into());
        seal(STATE_MAGIC, &contents)
    }

    fn decode(bytes: &[u8]) -> Result<Slot, Unsealed> {
        let mut reader = unseal(STATE_MAGIC, bytes)?;
        let mut parse = || {
            let sequence = reader.u64()?;
            let accepted_epoch = Epoch::new(reader.u32()?)?;
            let current_epoch = Epoch::new(reader.u32()?)?;
            let needs_repair = reader.u8()? != 0;
            Some(Slot {
                sequence,
                promises: Promises { accepted_epoch, current_epoch, needs_repair },
            })
        };
        parse().ok_or(Unsealed::Damaged)
    }
}

fn read_slot(
    disk: &Disk,
    file: &File,
    path: &Path,
    copy: u64,
) -> Result<Result<Slot, Unsealed>, StoreError> {
    let at = copy * SLOT_SPACING;
    let size = file.metadata().at("look at", path)?.len();
    let mut bytes = [0; SLOT_BYTES];
    let there = usize::try_from(size.saturating_sub(at)).unwrap_or(SLOT_BYTES).min(SLOT_BYTES);
    match disk.read(file, path, at, &mut bytes[..there]) {
        Ok(()) => Ok(Slot::decode(&bytes[..there])),
        Err(StoreError::Damaged { .. }) => Ok(Err(Unsealed::Damaged)),
        Err(error) => Err(error),
    }
}

/// A position as bytes: twelve of them.
pub(super) fn put_position(out: &mut Vec<u8>, at: Position) {
    out.put_u64_le(at.zxid.bits());
    out.put_u32_le(at.chain);
}
