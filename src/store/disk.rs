//! Every change of a file, other than LMDB's own, and every read that recovery rests on goes through
//! here, so that a test can watch the disk, copy it between two steps, and make a step fail.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;

use super::error::{IoContext, StoreError};

/// What the system's cache holds a file in, and what writing past it is aligned to, in bytes.
pub(super) const PAGE_BYTES: usize = 4096;

/// What is about to be done.
#[derive(Debug)]
pub enum Step<'a> {
    /// Read from there on.
    Read(&'a Path, u64),
    /// Create an empty file.
    Create(&'a Path),
    /// Write these bytes there.
    Write(&'a Path, u64, &'a [u8]),
    /// Make what was written to a file durable.
    Sync(&'a Path),
    /// Give a file another name, replacing what has it.
    Rename(&'a Path, &'a Path),
    /// Remove a file, or a directory with all it holds.
    Remove(&'a Path),
    /// Make a directory's entries durable.
    SyncDir(&'a Path),
}

/// Is told of each [`Step`] before it is done; an error is taken for that of the system call.
pub type Watch = dyn Fn(&Step<'_>) -> io::Result<()> + Send + Sync;

/// Where a test stands to watch the disk: see [`Step`].
#[derive(Clone)]
pub struct Probe(pub Arc<Watch>);

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Probe")
    }
}

/// The file system. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    probe: Option<Probe>,
}

/// A file that is written past the system's cache, if its file system can do that.
#[derive(Debug)]
pub(super) struct Uncached {
    /// The file, to be read, synced, and written through the cache.
    pub(super) file: File,
    direct: Option<File>,
}

impl Disk {
    pub(super) fn new(probe: Option<Probe>) -> Disk {
        Disk { probe }
    }

    fn step(&self, step: &Step<'_>) -> io::Result<()> {
        self.probe.as_ref().map_or(Ok(()), |probe| (probe.0)(step))
    }

    /// Create a directory that only this user can enter, unless it exists. That it is there is
    /// durable on return.
    pub(super) fn create_dir(&self, path: &Path) -> Result<(), StoreError> {
        if path.is_dir() {
            return Ok(());
        }
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        self.create_dir(parent)?;
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.at("create", path)?,
        }
        self.sync_dir(parent)
    }

    /// Create an empty file that only this user can read, replacing one that exists.
    pub(super) fn create(&self, path: &Path) -> Result<File, StoreError> {
        let create = || {
            self.step(&Step::Create(path))?;
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
        };
        create().at("create", path)
    }

    /// Open a file to read it, and to write whole pages past the system's cache.
    pub(super) fn open_uncached(&self, path: &Path) -> Result<Uncached, StoreError> {
        Ok(self.uncached(self.open(path)?, path))
    }

    /// Write whole pages of this file past the system's cache from now on.
    pub(super) fn uncached(&self, file: File, path: &Path) -> Uncached {
        let direct = OFlags::DIRECT.bits().cast_signed();
        let direct = OpenOptions::new().write(true).custom_flags(direct).open(path).ok();
        Uncached { file, direct }
    }

    /// Open a file to read and write it.
    pub(super) fn open(&self, path: &Path) -> Result<File, StoreError> {
        OpenOptions::new().read(true).write(true).open(path).at("open", path)
    }

    /// Fill the buffer with what is there.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the disk has lost it.
    pub(super) fn read(
        &self,
        file: &File,
        path: &Path,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), StoreError> {
        self.step(&Step::Read(path, offset))
            .and_then(|()| file.read_exact_at(buffer, offset))
            .at("read", path)
    }

    pub(super) fn write(
        &self,
        file: &File,
        path: &Path,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        self.step(&Step::Write(path, offset, bytes))
            .and_then(|()| file.write_all_at(bytes, offset))
            .at("write", path)
    }

    /// Write whole pages that begin where a page of memory does; through the cache if the file
    /// system refuses anything else, or this is not that.
    pub(super) fn write_pages(
        &self,
        uncached: &mut Uncached,
        path: &Path,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let Some(direct) = &uncached.direct else {
            return self.write(&uncached.file, path, offset, bytes);
        };
        let written = self
            .step(&Step::Write(path, offset, bytes))
            .and_then(|()| direct.write_all_at(bytes, offset));
        match written {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                uncached.direct = None;
                self.write_pages(uncached, path, offset, bytes)
            }
            result => result.at("write", path),
        }
    }

    /// fdatasync.
    pub(super) fn sync(&self, file: &File, path: &Path) -> Result<(), StoreError> {
        self.step(&Step::Sync(path)).and_then(|()| file.sync_data()).at("sync", path)
    }

    pub(super) fn sync_dir(&self, path: &Path) -> Result<(), StoreError> {
        let sync = || {
            self.step(&Step::SyncDir(path))?;
            File::open(path)?.sync_all()
        };
        sync().at("sync", path)
    }

    /// Durable after [`Disk::sync_dir`].
    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        self.step(&Step::Rename(from, to)).and_then(|()| fs::rename(from, to)).at("rename", from)
    }

    /// Remove a file or a whole directory, if it is there.
    pub(super) fn remove(&self, path: &Path) -> Result<(), StoreError> {
        let remove = || {
            self.step(&Step::Remove(path))?;
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
        };
        match remove() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.at("remove", path),
        }
    }

    /// Replace a small file as a whole; durable on return.
    pub(super) fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let parent = path.parent().expect("every file is in a directory");
        let new = path.with_extension("new");
        let file = self.create(&new)?;
        self.write(&file, &new, 0, bytes)?;
        self.sync(&file, &new)?;
        self.rename(&new, path)?;
        self.sync_dir(parent)
    }
}

/// The contents of a file; `None` if there is none.
pub(super) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).at("read", path),
    }
}

/// The names in a directory that are text.
pub(super) fn list(path: &Path) -> Result<Vec<String>, StoreError> {
    let list = || fs::read_dir(path)?.collect::<io::Result<Vec<_>>>();
    let entries = list().at("list", path)?;
    let mut names: Vec<_> =
        entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    Ok(names)
}
