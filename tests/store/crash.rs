//! Power loss at every step: whatever subset of what was not synced reached the disk, the directory
//! opens, nothing acknowledged is missing, and nothing that never was is there.
//!
//! A shadow of the disk follows every step the storage makes. Before each step it builds images of
//! what a disk may hold if the power fails now: of each file what was synced, and of what was
//! written since a random subset of 512-byte sectors; of each directory what was synced, and of
//! what was changed since a random number of changes, from the first on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use conclave::store::{Probe, Step};
use tempfile::tempdir_in;

use crate::common::Dice;
use crate::server::{Allowed, Server, check, scratch};

const SECTOR: usize = 512;

/// A file as it is and as it would be after a crash.
#[derive(Clone, Debug, Default)]
struct Inode {
    durable: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
}

/// A change of a directory that is not durable yet.
#[derive(Clone, Debug)]
enum Change {
    Link(PathBuf, usize),
    Unlink(PathBuf),
    /// From, to.
    Rename(PathBuf, PathBuf, usize),
}

#[derive(Debug)]
struct Shadow {
    home: PathBuf,
    scratch: PathBuf,
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    pending_names: BTreeMap<PathBuf, Vec<Change>>,
    dice: Dice,
    /// What a crash may lead to now.
    allowed: Allowed,
    images_per_step: u64,
    images: u64,
}

impl Shadow {
    fn new(home: &Path, scratch: &Path, seed: u64, images_per_step: u64) -> Shadow {
        Shadow {
            home: home.to_owned(),
            scratch: scratch.to_owned(),
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: BTreeMap::new(),
            dice: Dice(seed),
            allowed: Allowed::default(),
            images_per_step,
            images: 0,
        }
    }

    fn change(&mut self, path: &Path, change: Change) {
        let parent = path.parent().unwrap().to_owned();
        settle(&mut self.names, &change);
        self.pending_names.entry(parent).or_default().push(change);
    }

    /// The step is about to be made.
    fn step(&mut self, step: &Step<'_>) {
        let images = if matches!(step, Step::Read(..)) { 0 } else { self.images_per_step };
        for _ in 0..images {
            self.check_image();
        }
        match *step {
            Step::Read(..) => {}
            Step::Create(path) => {
                self.inodes.push(Inode::default());
                self.change(path, Change::Link(path.into(), self.inodes.len() - 1));
            }
            Step::Write(path, offset, bytes) => {
                let inode = self.names[path];
                let offset = usize::try_from(offset).unwrap();
                self.inodes[inode].pending.push((offset, bytes.to_vec()));
            }
            Step::Sync(path) => {
                let inode = &mut self.inodes[self.names[path]];
                for (offset, bytes) in std::mem::take(&mut inode.pending) {
                    put(&mut inode.durable, offset, &bytes);
                }
            }
            Step::Rename(from, to) => {
                if let Some(inode) = self.names.get(from).copied() {
                    self.change(to, Change::Rename(from.into(), to.into(), inode));
                }
            }
            Step::Remove(path) => {
                if self.names.contains_key(path) {
                    self.change(path, Change::Unlink(path.into()));
                }
            }
            Step::SyncDir(dir) => {
                for change in self.pending_names.remove(dir).unwrap_or_default() {
                    settle(&mut self.durable_names, &change);
                }
            }
        }
    }

    /// Build an image, open it, and check that what it holds is allowed.
    fn check_image(&mut self) {
        self.images += 1;
        let context = format!("image {} (dice {})", self.images, self.dice.0);
        let image = tempdir_in(&self.scratch).unwrap();
        self.build(image.path());
        check(image.path(), &self.allowed.lock().unwrap(), &context);
    }

    fn build(&mut self, image: &Path) {
        let mut names = self.durable_names.clone();
        for changes in self.pending_names.values() {
            let settled = self.dice.below(changes.len() as u64 + 1);
            for change in &changes[..usize::try_from(settled).unwrap()] {
                settle(&mut names, change);
            }
        }
        fs::create_dir_all(image.join("log")).unwrap();
        for (path, inode) in names {
            let target = image.join(path.strip_prefix(&self.home).unwrap());
            fs::write(target, self.inodes[inode].after_crash(&mut self.dice)).unwrap();
        }
        // LMDB looks after its own files: what it has committed is durable.
        for entry in fs::read_dir(&self.home).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().starts_with("tree-") {
                let target = image.join(entry.file_name());
                fs::create_dir(&target).unwrap();
                if let Ok(data) = fs::read(entry.path().join("data.mdb")) {
                    fs::write(target.join("data.mdb"), data).unwrap();
                }
            }
        }
    }
}

impl Inode {
    fn after_crash(&self, dice: &mut Dice) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        // Sometimes none or all of it made it.
        let mood = dice.below(4);
        for (offset, written) in &self.pending {
            let mut at = 0;
            while at < written.len() {
                let len = (SECTOR - (offset + at) % SECTOR).min(written.len() - at);
                if mood == 0 || (mood > 1 && dice.below(2) == 0) {
                    put(&mut bytes, offset + at, &written[at..at + len]);
                }
                at += len;
            }
        }
        bytes
    }
}

fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset..end].copy_from_slice(bytes);
}

fn settle(names: &mut BTreeMap<PathBuf, usize>, change: &Change) {
    match change {
        Change::Link(path, inode) => drop(names.insert(path.clone(), *inode)),
        Change::Unlink(path) => drop(names.remove(path)),
        Change::Rename(from, to, inode) => {
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
    }
}

/// How many times as long a run is as the one that everybody makes.
fn scale() -> u64 {
    std::env::var("STORE_CRASH_SCALE").ok().and_then(|scale| scale.parse().ok()).unwrap_or(1)
}

/// How many images were checked.
fn run(seed: u64, acts: u64, images_per_step: u64) -> u64 {
    let scratch = scratch();
    let home = scratch.path().join("home");
    let shadow = Arc::new(Mutex::new(Shadow::new(&home, scratch.path(), seed, images_per_step)));
    let allowed = Arc::clone(&shadow.lock().unwrap().allowed);
    let watcher = Arc::clone(&shadow);
    let probe = Probe(Arc::new(move |step: &Step<'_>| {
        watcher.lock().unwrap().step(step);
        Ok(())
    }));
    let mut server = Server::new(scratch.path(), &home, seed, allowed, probe).unwrap();
    for _ in 0..acts {
        server.act().unwrap();
        server.settle();
        let mut shadow = shadow.lock().unwrap();
        for _ in 0..images_per_step {
            shadow.check_image();
        }
    }
    drop(server);
    shadow.lock().unwrap().images
}

#[test]
fn no_crash_loses_or_invents_anything() {
    for seed in 1..=2 * scale() {
        let images = run(seed * 7919, 60, 3);
        assert!(images > 500, "only {images} images");
    }
}
