//! A directory that is made to hold a tree of nodes, and nothing else.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::transfer::{ACLS_FILE, NODE_DATA_FILE, UNFINISHED};

/// A directory while it is made so. Nodes come in the order of a walk: each before those below it,
/// and everything below it before the next one.
///
/// What was there before and is right stays as it is. What no node came for is removed when the walk
/// has left its directory, so that no more is remembered than what was in the directories which are
/// open.
pub(super) struct Mirror {
    /// The directories from the top down to that of the last node.
    open: Vec<Open>,
    /// Where files are written before they are moved to their places: they appear whole or not at
    /// all.
    unfinished: PathBuf,
    /// The file of ACLs, once one is known.
    acls: Option<BufWriter<File>>,
    written: u64,
}

/// A directory that is being filled.
struct Open {
    path: PathBuf,
    /// What was in it before, unless it is known to belong to it.
    stale: BTreeSet<OsString>,
}

impl Mirror {
    /// Makes the directory if it does not exist. If it is not empty, only what is left of an export
    /// that has not ended is replaced unasked.
    ///
    /// # Errors
    /// If there is something else in it, or it cannot be written.
    pub(super) fn begin(dir: &Path, replace: bool) -> anyhow::Result<Mirror> {
        let create = || format!("creating {}", dir.display());
        directories().recursive(true).create(dir).with_context(create)?;
        let mut stale = names(dir).with_context(|| format!("reading {}", dir.display()))?;
        let goes_on = stale.remove(&OsString::from(UNFINISHED));
        ensure!(
            goes_on || replace || stale.is_empty(),
            "{} is not empty; --replace removes from it what is not in the tree",
            dir.display()
        );
        let unfinished = dir.join(UNFINISHED);
        if !goes_on {
            directories().create(&unfinished).with_context(create)?;
        }
        let open = vec![Open { path: dir.into(), stale }];
        Ok(Mirror { open, unfinished, acls: None, written: 0 })
    }

    /// A directory with the data of its own node; the top has the empty path.
    pub(super) fn directory(&mut self, relative: &Path, data: &[u8]) -> io::Result<()> {
        self.enter(relative)?;
        if data.is_empty() { Ok(()) } else { self.put(NODE_DATA_FILE, data) }
    }

    /// A file, in the directory of that path.
    pub(super) fn file(&mut self, above: &Path, name: &str, data: &[u8]) -> io::Result<()> {
        self.enter(above)?;
        self.put(name, data)
    }

    /// A line of the file of ACLs.
    pub(super) fn acl(&mut self, line: &str) -> io::Result<()> {
        if self.acls.is_none() {
            self.acls = Some(BufWriter::new(create(&self.unfinished.join(ACLS_FILE))?));
        }
        self.acls.as_mut().map_or(Ok(()), |file| writeln!(file, "{line}"))
    }

    /// Removes what no node came for, and waits until all is on the disk.
    ///
    /// Answer: how many files were written.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        let top = self.open[0].path.clone();
        if let Some(mut acls) = self.acls.take() {
            acls.flush()?;
            fs::rename(self.unfinished.join(ACLS_FILE), top.join(ACLS_FILE))?;
            self.open[0].stale.remove(&OsString::from(ACLS_FILE));
        }
        while let Some(open) = self.open.pop() {
            open.close()?;
        }
        let top = File::open(top)?;
        rustix::fs::syncfs(&top)?;
        fs::remove_dir_all(self.unfinished)?;
        top.sync_all()?;
        Ok(self.written)
    }

    fn current(&mut self) -> &mut Open {
        self.open.last_mut().expect("the top is open until the end")
    }

    /// Leaves directories and opens others, until the one of that path is the current one.
    fn enter(&mut self, relative: &Path) -> io::Result<()> {
        let target = self.open[0].path.join(relative);
        while !target.starts_with(&self.current().path) {
            if let Some(left) = self.open.pop() {
                left.close()?;
            }
        }
        let rest = target.strip_prefix(&self.current().path).expect("it is below");
        for name in rest {
            let path = self.current().path.join(name);
            let was_there = self.current().stale.contains(name);
            let stale = self.make_directory(&path, was_there)?;
            self.current().stale.remove(name);
            self.open.push(Open { path, stale });
        }
        Ok(())
    }

    /// Makes a directory, and tells what was in it.
    ///
    /// A file gives way; if it was written in this walk, it is a node that has got children since,
    /// and the file keeps its data.
    fn make_directory(&self, path: &Path, was_there: bool) -> io::Result<BTreeSet<OsString>> {
        match fs::symlink_metadata(path) {
            Ok(is) if is.is_dir() => names(path),
            Ok(_) => {
                let kept = self.unfinished.join("file");
                fs::rename(path, &kept)?;
                directories().create(path)?;
                fs::rename(&kept, path.join(NODE_DATA_FILE))?;
                let stale = was_there.then(|| NODE_DATA_FILE.into());
                Ok(stale.into_iter().collect())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                directories().create(path)?;
                Ok(BTreeSet::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a file of the current directory have that data.
    fn put(&mut self, name: &str, data: &[u8]) -> io::Result<()> {
        let path = self.current().path.join(name);
        match fs::symlink_metadata(&path) {
            Ok(is) if is.is_dir() => fs::remove_dir_all(&path)?,
            Ok(is) if is.is_file() && is.len() == data.len() as u64 && fs::read(&path)? == data => {
                self.current().stale.remove(&OsString::from(name));
                return Ok(());
            }
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(_) | Err(_) => {}
        }
        let partial = self.unfinished.join("file");
        let mut file = create(&partial)?;
        file.write_all(data)?;
        fs::rename(partial, path)?;
        self.current().stale.remove(&OsString::from(name));
        self.written += 1;
        Ok(())
    }
}

impl Open {
    fn close(self) -> io::Result<()> {
        for name in self.stale {
            let path = self.path.join(name);
            if fs::symlink_metadata(&path)?.is_dir() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// A file for its owner alone: data is for those who may read its node, which a directory cannot know.
fn create(file: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)
}

/// Makes directories for their owner alone, as their names are, too, for those who may list the nodes.
fn directories() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}

fn names(dir: &Path) -> io::Result<BTreeSet<OsString>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_gets_children_during_the_walk_keeps_its_data() {
        let home = tempfile::tempdir().unwrap();
        let top = home.path().join("top");
        let mut mirror = Mirror::begin(&top, false).unwrap();
        mirror.directory(Path::new(""), b"").unwrap();
        mirror.file(Path::new(""), "leaf", b"its own").unwrap();
        mirror.file(Path::new("leaf"), "child", b"new").unwrap();
        mirror.file(Path::new("deleted/and/there/again"), "child", b"new").unwrap();
        assert_eq!(mirror.finish().unwrap(), 3);
        assert_eq!(fs::read(top.join("leaf").join(NODE_DATA_FILE)).unwrap(), b"its own");
        assert_eq!(fs::read(top.join("leaf/child")).unwrap(), b"new");
        assert_eq!(fs::read(top.join("deleted/and/there/again/child")).unwrap(), b"new");
        assert!(!top.join(UNFINISHED).exists());
    }
}
