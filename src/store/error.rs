//! What can go wrong with the disk, and the one way in which that ends the process.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::env::DAMAGE_MARK;
use super::home::space_at;

/// The exit code of a server whose storage failed (`EX_IOERR` of sysexits.h).
pub const EXIT_STORAGE: i32 = 74;

/// The storage cannot do its work. Nothing is retried: what is durable is no longer known, so the
/// process ends and recovery finds out.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("cannot {what} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was tried: `write`, `sync`, …
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The database of the tree failed.
    #[error("the tree in {} failed to {what}: {source}{}", path.display(), tree_advice(source, path))]
    Tree {
        /// What was tried.
        what: &'static str,
        /// The directory of the database.
        path: PathBuf,
        /// Why it failed.
        source: heed::Error,
    },
    /// What the disk returns is not what was written to it.
    #[error("{} is damaged: {what}; start the server again: it repairs itself from the other members, if there are any", path.display())]
    Damaged {
        /// The file or directory.
        path: PathBuf,
        /// How that shows.
        what: String,
    },
    /// The directory cannot be used by this server; nothing was changed in it.
    #[error("cannot use {}: {why}", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// A snapshot that came from another server is not what that server sent.
    #[error("the snapshot received is damaged: {0}")]
    Snapshot(String),
}

fn advice(error: &io::Error) -> &'static str {
    let kind = error.kind();
    if kind == io::ErrorKind::StorageFull {
        " (make room, then start the server again)"
    } else if kind == io::ErrorKind::PermissionDenied {
        " (give the server's user access to it)"
    } else if kind == io::ErrorKind::ReadOnlyFilesystem {
        " (mount the file system for writing)"
    } else {
        ""
    }
}

/// With less room than this a disk counts as full if a write to it fails.
const FULL_BYTES: u64 = 1 << 20;

fn tree_advice(error: &heed::Error, path: &Path) -> &'static str {
    let is_full = || space_at(path).is_ok_and(|space| space.free < FULL_BYTES);
    if matches!(error, heed::Error::Mdb(heed::MdbError::MapFull)) {
        " (raise storage.map_gb, then start the server again)"
    } else if matches!(error, heed::Error::Io(error) if error.kind() == io::ErrorKind::OutOfMemory)
    {
        " (allow the process more address space, with ulimit -v, or lower storage.map_gb)"
    } else if matches!(error, heed::Error::Io(_)) && is_full() {
        // If the disk takes a part of a write, LMDB says no more than that it failed.
        " (the disk is full: make room, then start the server again)"
    } else {
        ""
    }
}

impl StoreError {
    /// Whether another try can only end in the same way until somebody gives the server another
    /// directory, or access to this one.
    pub fn is_unusable(&self) -> bool {
        use io::ErrorKind as Kind;
        let lasts = |error: &io::Error| {
            matches!(error.kind(), Kind::PermissionDenied | Kind::NotADirectory)
        };
        match self {
            StoreError::Unusable { .. } => true,
            StoreError::Io { source, .. }
            | StoreError::Tree { source: heed::Error::Io(source), .. } => lasts(source),
            StoreError::Tree { .. } | StoreError::Damaged { .. } | StoreError::Snapshot(_) => false,
        }
    }

    pub(super) fn damaged(path: &Path, what: impl fmt::Display) -> StoreError {
        StoreError::Damaged { path: path.to_owned(), what: what.to_string() }
    }

    pub(super) fn unusable(path: &Path, why: impl fmt::Display) -> StoreError {
        StoreError::Unusable { path: path.to_owned(), why: why.to_string() }
    }
}

/// Gives an [`io::Result`] its place.
pub(super) trait IoContext<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| {
            if what == "read" && is_lost(&source) {
                StoreError::damaged(path, format_args!("cannot be read: {source}"))
            } else {
                StoreError::Io { what, path: path.to_owned(), source }
            }
        })
    }
}

/// Gives a [`heed::Result`] its place.
pub(super) trait TreeContext<T> {
    fn in_tree(self, what: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T> TreeContext<T> for heed::Result<T> {
    fn in_tree(self, what: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| {
            if is_damage(&source) {
                StoreError::damaged(path, source)
            } else {
                StoreError::Tree { what, path: path.to_owned(), source }
            }
        })
    }
}

/// Whether a read failed because the disk, or the file system, does not have any more what was
/// written: to try again gives nothing else.
fn is_lost(error: &io::Error) -> bool {
    let lost = [Errno::IO, Errno::BADMSG, Errno::UCLEAN].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| lost.contains(&code))
}

fn is_damage(error: &heed::Error) -> bool {
    use heed::MdbError::{Corrupted, Invalid, PageNotFound, VersionMismatch};
    matches!(error, heed::Error::Mdb(Corrupted | Invalid | PageNotFound | VersionMismatch))
}

/// End the process: the storage has failed, and nothing this server says could be relied on.
///
/// A tree that was found damaged is marked, so that the next start does not trust it.
pub fn fatal(error: &StoreError) -> ! {
    if let StoreError::Damaged { path, what } = error
        && path.is_dir()
    {
        // If the mark cannot be made, the damage is found again.
        drop(std::fs::write(path.join(DAMAGE_MARK), what));
    }
    tracing::error!("storage failed, the server stops: {error}");
    std::process::exit(EXIT_STORAGE)
}
