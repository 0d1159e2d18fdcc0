//! Temporary directories of runs that may be killed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::Context;
use rustix::process::geteuid;
use tempfile::TempDir;

/// What their names begin with.
const PREFIX: &str = "conclave-bench-";
/// The file in it that is locked as long as its run goes on.
const IN_USE: &str = "in-use";

/// The directory of one run, removed with this value. A run that is killed leaves it behind, and the
/// next one removes it.
pub(super) struct Scratch {
    home: TempDir,
    /// The kernel unlocks it when this process ends, however it ends.
    _in_use: File,
}

impl Scratch {
    /// A new one.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn new() -> anyhow::Result<Scratch> {
        let parent = std::env::temp_dir();
        // What cannot be removed now does no harm.
        remove_left_behind(&parent).ok();
        let home = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&parent);
        let home = home.with_context(|| format!("making a directory in {}", parent.display()))?;
        // It has its name only when it is locked: nobody else finds it free.
        let new = home.path().join("new");
        let in_use = File::create(&new)?;
        in_use.try_lock()?;
        fs::rename(&new, home.path().join(IN_USE))?;
        Ok(Scratch { home, _in_use: in_use })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.home.path()
    }
}

/// Removes the directories of this user's runs that go on no more.
fn remove_left_behind(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let is_named_so = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if !is_named_so || entry.metadata()?.uid() != geteuid().as_raw() {
            continue;
        }
        let Ok(in_use) = File::open(entry.path().join(IN_USE)) else { continue };
        if in_use.try_lock().is_ok() {
            fs::remove_dir_all(entry.path()).ok();
        }
    }
    Ok(())
}
