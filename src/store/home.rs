//! The place where a server's data is kept.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::disk::{Disk, list};
use super::env::directory;
use super::error::{IoContext, StoreError};
use super::files::Owner;
use super::snapshot::SnapshotWriter;
use super::{Identity, Options};

/// How often a directory that is locked is tried again, and after how long.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The place where a server's data is kept. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Home {
    pub(super) dir: PathBuf,
    pub(super) log_dir: PathBuf,
    /// Whether the log has a directory of its own, perhaps on a device of its own.
    pub(super) log_is_apart: bool,
    pub(super) identity: Identity,
    pub(super) disk: Disk,
    pub(super) segment_bytes: u64,
    pub(super) map_bytes: usize,
    /// See [`Options::repairable`].
    pub(super) repairable: bool,
    /// See [`Options::lost`].
    pub(super) lost: bool,
    pub(super) lock: Arc<Lock>,
    next_tree: Arc<AtomicU64>,
    /// The trees that are being received.
    receiving: Arc<Mutex<BTreeSet<u64>>>,
}

/// Keeps other processes out of the directories.
#[derive(Debug)]
pub(super) struct Lock {
    _files: Vec<File>,
}

/// Room on a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What this process may still write.
    pub free: u64,
    /// The size of the file system.
    pub total: u64,
}

impl Home {
    /// Create the directories, unless they exist, and lock them.
    pub(super) fn claim(
        dir: &Path,
        identity: &Identity,
        options: Options,
    ) -> Result<Home, StoreError> {
        let disk = Disk::new(options.probe);
        let log_is_apart = options.log_dir.is_some();
        let log_dir = options.log_dir.unwrap_or_else(|| dir.join("log"));
        let mut files = Vec::new();
        for path in [dir, &log_dir] {
            disk.create_dir(path)?;
            files.push(lock(&disk, path)?);
        }
        Ok(Home {
            dir: dir.to_owned(),
            log_dir,
            log_is_apart,
            identity: identity.clone(),
            disk,
            segment_bytes: options.segment_bytes,
            map_bytes: options.map_bytes,
            repairable: options.repairable,
            lost: options.lost,
            lock: Arc::new(Lock { _files: files }),
            next_tree: Arc::new(AtomicU64::new(1)),
            receiving: Arc::default(),
        })
    }

    /// How much room there is, on the device of the tree or on that of the log, whichever has less.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub fn space(&self) -> Result<Space, StoreError> {
        let (tree, log) = (space_at(&self.dir)?, space_at(&self.log_dir)?);
        Ok(if log.free < tree.free { log } else { tree })
    }

    /// Begin to receive a snapshot. It is written beside the state in force.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn receive(&self) -> Result<SnapshotWriter, StoreError> {
        SnapshotWriter::create(self.clone())
    }

    /// Create the directory of a new tree; its number.
    pub(super) fn create_tree(&self) -> Result<(u64, PathBuf), StoreError> {
        self.create_tree_of(self.next_tree.fetch_add(1, Ordering::Relaxed))
    }

    /// Create the directory of a tree that is to be received. Until [`Home::end_of_transfer`] nobody
    /// removes it but who receives it, if nothing comes of it.
    pub(super) fn create_tree_to_receive(&self) -> Result<(u64, PathBuf), StoreError> {
        let number = self.next_tree.fetch_add(1, Ordering::Relaxed);
        self.receiving().insert(number);
        self.create_tree_of(number)
    }

    fn create_tree_of(&self, number: u64) -> Result<(u64, PathBuf), StoreError> {
        let path = directory(&self.dir, number);
        self.disk.create_dir(&path)?;
        Ok((number, path))
    }

    /// The tree is in force, or removed.
    pub(super) fn end_of_transfer(&self, tree: u64) {
        self.receiving().remove(&tree);
    }

    fn receiving(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.receiving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keep the newest tree, which is damaged, for a person to look at; an earlier one is removed.
    pub(super) fn set_tree_aside(&self) -> Result<(), StoreError> {
        let number = |name: &String| name.strip_prefix("tree-").and_then(|n| n.parse::<u64>().ok());
        if let Some(newest) = list(&self.dir)?.iter().filter_map(number).max() {
            let aside = self.dir.join("damaged-tree");
            self.disk.remove(&aside)?;
            self.disk.rename(&directory(&self.dir, newest), &aside)?;
        }
        Ok(())
    }

    /// Remove what interrupted transfers and earlier trees left; with `None`, every tree. What is
    /// being received is left alone.
    pub(super) fn remove_trees_but(&self, kept: Option<u64>) -> Result<(), StoreError> {
        let receiving = self.receiving();
        self.remove_trees(|number| Some(number) != kept && !receiving.contains(&number))
    }

    fn remove_trees(&self, doomed: impl Fn(u64) -> bool) -> Result<(), StoreError> {
        for name in list(&self.dir)? {
            let Some(number) = name.strip_prefix("tree-").and_then(|n| n.parse().ok()) else {
                continue;
            };
            self.next_tree.fetch_max(number + 1, Ordering::Relaxed);
            if doomed(number) {
                self.disk.remove(&self.dir.join(&name))?;
            }
        }
        Ok(())
    }

    /// Refuse what is somebody else's.
    pub(super) fn check_owner(&self, found: &Identity, dir: &Path) -> Result<(), StoreError> {
        Owner { identity: found.clone(), formed: true }.check(dir, &self.identity)
    }
}

/// The room on the device of that path.
pub(super) fn space_at(path: &Path) -> Result<Space, StoreError> {
    let stat = rustix::fs::statvfs(path).map_err(std::io::Error::from);
    let stat = stat.at("ask the size of", path)?;
    Ok(Space { free: stat.f_bavail * stat.f_frsize, total: stat.f_blocks * stat.f_frsize })
}

fn lock(disk: &Disk, dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("LOCK");
    let file = match disk.open(&path) {
        Ok(file) => file,
        Err(_) => disk.create(&path)?,
    };
    for tries in 0.. {
        match file.try_lock() {
            Ok(()) => break,
            // A process that has just been killed may take a moment to let go.
            Err(TryLockError::WouldBlock) if tries < LOCK_TRIES => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => {
                let why = "another process has it open; stop that one, or give this server its \
                           own directory";
                return Err(StoreError::unusable(dir, why));
            }
            Err(TryLockError::Error(error)) => return Err(error).at("lock", &path),
        }
    }
    Ok(file)
}
