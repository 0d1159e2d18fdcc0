//! Opening a directory: form a new one, recover an old one.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use conclave_proto::Zxid;

use super::disk::list;
use super::env::{DAMAGE_MARK, STARTS, Tree, directory};
use super::error::{IoContext, StoreError};
use super::files::{Current, Owner, Promises, StateFile};
use super::home::Home;
use super::key::HashKey;
use super::log::{Active, LogWriter, Segment, generation_of};
use super::nodes::StoreNodes;
use super::pages;
use super::recovery::{Recovered, read_log};
use super::spare::Spares;
use super::{Identity, Opened, Options, RecoveryReport};
use crate::tree::found;
use crate::zab::{Durable, Entry, Position};

/// A tree of at most so many bytes is looked at whole at every start, which takes some 50 ms.
const CHECKED_BYTES: u64 = 64 << 20;

/// After so many starts without a checkpoint the tree is looked at before it is used: damage that
/// ends the process by a signal must not do so for ever.
const DOUBTFUL_STARTS: usize = 2;

/// Open the directory, which is created if it does not exist, and recover what it holds.
///
/// Until the last part of the result is dropped, no other process can open it.
///
/// # Errors
/// [`StoreError::Unusable`] if it belongs to another server, another cluster or a newer version, if
/// it is open already, or if it is damaged in a way that only a person can judge; the others if the
/// disk fails. Damage that the other members can repair is not an error: see
/// [`Durable::needs_repair`].
///
/// # Panics
/// If a segment of the log is to be 4 GiB or more.
pub fn open(dir: &Path, identity: &Identity, options: Options) -> Result<Opened, StoreError> {
    assert!(u32::try_from(options.segment_bytes).is_ok(), "offsets in a segment have 32 bits");
    let home = Home::claim(dir, identity, options)?;
    // A process that was killed may have renamed what is not durable yet. From here on it is relied
    // on.
    home.disk.sync_dir(&home.log_dir)?;
    home.disk.sync_dir(&home.dir)?;
    match owner(&home)? {
        Some(owner) if owner.formed => recover(home),
        _ => form(home),
    }
}

/// Whose the directories are; the one of the log must be of the same server.
fn owner(home: &Home) -> Result<Option<Owner>, StoreError> {
    let owner = Owner::read(&home.dir)?;
    match &owner {
        Some(owner) => owner.check(&home.dir, &home.identity)?,
        None => refuse_orphans(home)?,
    }
    Ok(owner)
}

/// A directory without an owner must not hold anybody's data.
fn refuse_orphans(home: &Home) -> Result<(), StoreError> {
    let is_data = |name: &String| name == "state" || name == "CURRENT";
    let is_segment = |name: &String| generation_of(name).is_some();
    if list(&home.dir)?.iter().any(is_data) {
        let why = "it holds data but its file `identity` is missing; copy that of a backup, or \
                   give an empty directory and start with --lost-data";
        return Err(StoreError::unusable(&home.dir, why));
    }
    if list(&home.log_dir)?.iter().any(is_segment) {
        let why = format!(
            "it holds a log, but the data directory {} is empty; give both as they were, or empty \
             both and start with --lost-data",
            home.dir.display()
        );
        return Err(StoreError::unusable(&home.log_dir, why));
    }
    Ok(())
}

/// Make the directory that of a server which has never run. A crash in between is no harm: until it
/// is marked as formed, all of it is made anew.
fn form(home: Home) -> Result<Opened, StoreError> {
    if home.lost && !home.repairable {
        let why = "its data is lost, and there are no other members that have it; restore a backup";
        return Err(StoreError::unusable(&home.dir, why));
    }
    let mut owner = Owner { identity: home.identity.clone(), formed: false };
    owner.write(&home.disk, &home.dir)?;
    home.remove_trees_but(None)?;
    remove_segments(&home)?;
    let (number, nodes) = found_tree(&home)?;
    let mut spares = Spares::open(&home)?;
    let active = spares.begin(1, Position::default(), false, 0)?;
    let mut state = StateFile::create(&home.disk, &home.dir)?;
    let mut report = RecoveryReport { new: true, ..RecoveryReport::default() };
    let durable = Durable { needs_repair: home.lost, ..Durable::default() };
    if home.lost {
        state.set(Promises { needs_repair: true, ..Promises::default() })?;
        report.damage.push("what this server had is lost".into());
    }
    Current { tree: number, log_floor: 0 }.write(&home.disk, &home.dir)?;
    owner.formed = true;
    owner.write(&home.disk, &home.dir)?;
    let end = Position::default();
    let log = LogWriter::new(home.clone(), state, spares, VecDeque::new(), active, end)?;
    Ok(Opened { log, nodes, durable, report, home })
}

fn remove_segments(home: &Home) -> Result<(), StoreError> {
    for name in list(&home.log_dir)? {
        if generation_of(&name).is_some() {
            home.disk.remove(&home.log_dir.join(name))?;
        }
    }
    Ok(())
}

/// Create a tree that holds the state before the first transaction; durable on return.
fn found_tree(home: &Home) -> Result<(u64, StoreNodes), StoreError> {
    let (number, path) = home.create_tree()?;
    let tree = Tree::open(home, &path)?;
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(std::io::Error::other).at("get a random key for", &path)?;
    let mut nodes = StoreNodes::load(&tree, HashKey(key))?;
    found(&mut nodes);
    let frozen = nodes.freeze().expect("the root is new");
    let checkpoint = frozen.write()?;
    nodes.checkpointed(&checkpoint);
    home.disk.sync_dir(&path)?;
    home.disk.sync_dir(&home.dir)?;
    Ok((number, nodes))
}

/// What recovery puts together.
struct Recovery {
    home: Home,
    state: StateFile,
    damage: Vec<String>,
}

fn recover(home: Home) -> Result<Opened, StoreError> {
    let has_log = list(&home.log_dir)?.iter().any(|name| generation_of(name).is_some());
    if !has_log {
        let first = if home.log_is_apart {
            "if it is a device of its own, mount it"
        } else {
            "if the log is kept elsewhere, name that directory as `log_dir`"
        };
        let why = format_args!(
            "it holds no log; {first}; if the log is lost, empty the data directory too and start \
             with --lost-data: the server then fetches everything from the others before it counts"
        );
        return Err(StoreError::unusable(&home.log_dir, why));
    }
    let state = StateFile::open(&home.disk, &home.dir)?;
    let mut recovery = Recovery { home, state, damage: Vec::new() };
    match recovery.open_tree()? {
        Some((current, nodes)) => recovery.with_tree(current, nodes),
        None => recovery.without_tree(),
    }
}

impl Recovery {
    /// The tree in force, unless it is damaged.
    fn open_tree(&mut self) -> Result<Option<(Current, StoreNodes)>, StoreError> {
        let home = &self.home;
        let Some(current) = Current::read(&home.dir)? else {
            self.damage.push("the file CURRENT is damaged or missing".into());
            return Ok(None);
        };
        home.remove_trees_but(Some(current.tree))?;
        let path = directory(&home.dir, current.tree);
        let load = || {
            check_tree(&path)?;
            let tree = Tree::open(home, &path)?;
            if tree.view()?.meta()?.is_none() {
                return Err(StoreError::damaged(&path, "the record of the whole state is missing"));
            }
            StoreNodes::load(&tree, HashKey([0; 16]))
        };
        match load() {
            Ok(nodes) => Ok(Some((current, nodes))),
            Err(StoreError::Damaged { what, .. }) => {
                self.damage.push(format!("the tree is damaged: {what}"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn with_tree(mut self, current: Current, nodes: StoreNodes) -> Result<Opened, StoreError> {
        let applied = nodes.position();
        let mut log = read_log(&self.home, current.log_floor, applied)?;
        self.damage.extend(log.damage.take());
        self.note_damage()?;
        for path in std::mem::take(&mut log.void) {
            self.home.disk.remove(&path)?;
        }
        if log.reaches {
            self.go_on(applied, nodes, log)
        } else {
            self.begin_anew(current.tree, applied, nodes, log.generation)
        }
    }

    /// The tree and the log fit together, perhaps up to a damaged record.
    fn go_on(
        self,
        applied: Position,
        nodes: StoreNodes,
        log: Recovered,
    ) -> Result<Opened, StoreError> {
        set_aside(&self.home, &log.broken)?;
        let mut spares = Spares::open(&self.home)?;
        let active = log.active.expect("a log that reaches the tree has a segment");
        // What the last process wrote may not be durable yet, and is relied on from here on.
        self.home.disk.sync(&active.file.file, &active.segment.path)?;
        let mut older = log.older;
        older.retain(|segment| segment.base.zxid < log.end.zxid);
        let unclean = log.cut_bytes > 0 || !self.damage.is_empty();
        let active = if unclean {
            // Nothing that was cut off may ever be taken for a record again.
            let new = spares.begin(log.generation + 1, log.end, false, 0)?;
            older.push_back(active.segment);
            new
        } else {
            active
        };
        let durable = (log.base, log.entries);
        self.finish(applied, nodes, durable, (spares, older, active, log.end), log.cut_bytes)
    }

    /// The log is of no use for the tree: keep its files for a person to look at, and let a new one
    /// begin where the tree ends.
    fn begin_anew(
        self,
        tree: u64,
        applied: Position,
        nodes: StoreNodes,
        generation: u64,
    ) -> Result<Opened, StoreError> {
        let mut spares = Spares::open(&self.home)?;
        let active = spares.begin(generation + 1, applied, true, 0)?;
        let current = Current { tree, log_floor: active.generation };
        current.write(&self.home.disk, &self.home.dir)?;
        let names = list(&self.home.log_dir)?;
        let is_old = |name: &&String| generation_of(name).is_some_and(|own| own <= generation);
        let old: Vec<_> =
            names.iter().filter(is_old).map(|name| self.home.log_dir.join(name)).collect();
        set_aside(&self.home, &old)?;
        let parts = (spares, VecDeque::new(), active, applied);
        self.finish(applied, nodes, (applied, Vec::new()), parts, 0)
    }

    /// The tree is lost: begin with an empty one.
    fn without_tree(mut self) -> Result<Opened, StoreError> {
        self.note_damage()?;
        let generation =
            list(&self.home.log_dir)?.iter().filter_map(|name| generation_of(name)).max();
        self.home.set_tree_aside()?;
        self.home.remove_trees_but(None)?;
        let (tree, nodes) = found_tree(&self.home)?;
        self.begin_anew(tree, Position::default(), nodes, generation.unwrap_or(0))
    }

    /// Remember durably that this server has lost something, before anything is built on the rest.
    fn note_damage(&mut self) -> Result<(), StoreError> {
        let mut promises = self.state.promises();
        if !self.home.repairable && (promises.needs_repair || !self.damage.is_empty()) {
            let found = match &self.damage[..] {
                [] => "it was to be repaired when it ran last".to_owned(),
                damage => format!("it is damaged ({})", damage.join("; ")),
            };
            let why = format_args!(
                "{found}, and there is no other member to repair it from; restore a backup"
            );
            return Err(StoreError::unusable(&self.home.dir, why));
        }
        if !self.damage.is_empty() && !promises.needs_repair {
            promises.needs_repair = true;
            self.state.set(promises)?;
        }
        Ok(())
    }

    fn finish(
        self,
        applied: Position,
        nodes: StoreNodes,
        (base, entries): (Position, Vec<Entry>),
        (spares, older, active, end): (Spares, VecDeque<Segment>, Active, Position),
        cut_bytes: u64,
    ) -> Result<Opened, StoreError> {
        let promises = self.state.promises();
        let durable = Durable {
            accepted_epoch: promises.accepted_epoch,
            current_epoch: promises.current_epoch,
            applied,
            base,
            entries,
            committed: Zxid::ZERO,
            needs_repair: promises.needs_repair,
        };
        let report = RecoveryReport { new: false, cut_bytes, damage: self.damage };
        let log = LogWriter::new(self.home.clone(), self.state, spares, older, active, end)?;
        Ok(Opened { log, nodes, durable, report, home: self.home })
    }
}

/// Refuse a tree that is known to be damaged, and look at all of it if there is reason for doubt.
fn check_tree(path: &Path) -> Result<(), StoreError> {
    let mark = path.join(DAMAGE_MARK);
    if mark.try_exists().at("look at", &mark)? {
        return Err(StoreError::damaged(path, "it was found damaged earlier"));
    }
    let starts = path.join(STARTS);
    let earlier = std::fs::read(&starts).map_or(0, |count| count.len());
    // Not synced, and no harm if it fails: it only has to outlive the process.
    drop(std::fs::write(&starts, vec![b'.'; earlier + 1]));
    let data = path.join("data.mdb");
    let is_small = data.metadata().is_ok_and(|data| data.len() <= CHECKED_BYTES);
    if is_small || earlier >= DOUBTFUL_STARTS || pages::is_short(path)? {
        pages::check(path, None)?;
    }
    Ok(())
}

/// Give these segments another name, under which a person can look at them; those of an earlier time
/// are removed.
fn set_aside(home: &Home, segments: &[PathBuf]) -> Result<(), StoreError> {
    if segments.is_empty() {
        return Ok(());
    }
    for name in list(&home.log_dir)?.iter().filter(|name| name.ends_with(".damaged")) {
        home.disk.remove(&home.log_dir.join(name))?;
    }
    for path in segments {
        home.disk.rename(path, &path.with_extension("log.damaged"))?;
    }
    home.disk.sync_dir(&home.log_dir)
}
