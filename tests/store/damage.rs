//! Damage on the disk: it is noticed, in every file, and never read as data.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use conclave::store::{self, EXIT_STORAGE, Opened, Options, Probe, Step, StoreError, fatal};
use conclave::tree::{Nodes, apply};
use conclave::zab::{Entry, Position, Write};
use conclave_proto::ZPath;
use tempfile::TempDir;

use crate::common::{
    Dice, FOUNDED, create_txn, entries, epoch, identity, next, open, options, try_open,
};
use crate::server::scratch;

const LOGGED: usize = 440;
const APPLIED: usize = 150;
/// The size of a tree's file that is not looked at whole at each start.
const LARGE: u64 = 65 << 20;

/// What the log of every directory here holds.
fn history() -> Vec<Entry> {
    entries(Position::default(), epoch(1), &[100; LOGGED])
}

/// A directory with a log of several segments and a tree that has seen a part of it.
fn template() -> TempDir {
    let dir = scratch();
    let mut opened = open(dir.path());
    let history = history();
    for batch in history.chunks(20) {
        opened.log.apply(&[Write::Append(batch.to_vec())]).unwrap();
        opened.log.sync().unwrap();
    }
    opened.log.apply(&[Write::CurrentEpoch(epoch(1)), Write::AcceptedEpoch(epoch(4))]).unwrap();
    for (number, entry) in history[..APPLIED].iter().enumerate() {
        apply(&mut opened.nodes, entry.zxid, entry.chain, &create_txn(entry.zxid));
        if number == APPLIED / 2 {
            checkpoint(&mut opened);
        }
    }
    checkpoint(&mut opened);
    drop(opened);
    dir
}

fn checkpoint(opened: &mut Opened) {
    let checkpoint = opened.nodes.freeze().unwrap().write().unwrap();
    opened.nodes.checkpointed(&checkpoint);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A way to damage a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip(usize, u8),
    ZeroPage(usize),
    Truncate(usize),
    Remove,
}

impl Damage {
    fn random(dice: &mut Dice, len: usize) -> Damage {
        let place = usize::try_from(dice.below(len as u64)).unwrap();
        match dice.below(10) {
            0 => Damage::ZeroPage(place / 4096 * 4096),
            1 => Damage::Truncate(place),
            _ => Damage::Flip(place, 1 << dice.below(8)),
        }
    }

    fn apply(self, path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        match self {
            Damage::Flip(place, bit) => bytes[place] ^= bit,
            Damage::ZeroPage(start) => {
                let end = bytes.len().min(start + 4096);
                bytes[start..end].fill(0);
            }
            Damage::Truncate(len) => bytes.truncate(len),
            Damage::Remove => {
                fs::remove_file(path).unwrap();
                return;
            }
        }
        fs::write(path, bytes).unwrap();
    }
}

fn damaged(template: &Path, file: &Path, damage: Damage) -> TempDir {
    let dir = scratch();
    copy(template, dir.path());
    damage.apply(&dir.path().join(file));
    dir
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(dir.join("log"))
        .unwrap()
        .map(|entry| PathBuf::from("log").join(entry.unwrap().file_name()))
        .filter(|name| name.extension().is_some_and(|extension| extension == "log"))
        .collect();
    names.sort();
    names
}

/// Whether what was recovered is a part of the history that was written, and of the tree.
fn check(opened: &Opened, context: &str) {
    let history = history();
    let durable = &opened.durable;
    let positions = [Position::default()].into_iter().chain(history.iter().map(Entry::position));
    let start = positions.into_iter().position(|position| position == durable.base);
    let start = start.unwrap_or_else(|| panic!("{context}: the log has an invented base"));
    assert!(history[start..].starts_with(&durable.entries), "{context}: the log is wrong");
    assert_eq!(durable.current_epoch, epoch(1), "{context}");
    assert_eq!(durable.accepted_epoch, epoch(4), "{context}");
    let complete = start + durable.entries.len() == LOGGED && opened.nodes.meta().nodes > FOUNDED;
    assert!(complete || durable.needs_repair, "{context}: a loss is not noticed");
    assert_eq!(opened.report.damage.is_empty(), !durable.needs_repair, "{context}");
}

#[test]
fn a_damaged_log_is_noticed() {
    let template = template();
    let files = segments(template.path());
    assert!(files.len() > 2, "{files:?}");
    let mut dice = Dice(21);
    let mut noticed = 0;
    for round in 0..400 {
        let file = &files[round % files.len()];
        let len = fs::metadata(template.path().join(file)).unwrap().len();
        // What was written with the last sync cannot be told from what a crash tore.
        let is_last = round % files.len() == files.len() - 1;
        let end =
            if is_last { last_batch(template.path(), file) } else { usize::try_from(len).unwrap() };
        let remove = round % 100 == 99 && !is_last;
        let damage = if remove { Damage::Remove } else { Damage::random(&mut dice, end) };
        if is_last && matches!(damage, Damage::ZeroPage(_)) {
            continue;
        }
        let context = format!("{} after {damage:?}", file.display());
        let dir = damaged(template.path(), file, damage);
        let opened = open(dir.path());
        check(&opened, &context);
        noticed += u32::from(opened.durable.needs_repair);
        drop(opened);
        // The loss is remembered until a leader has brought the server up to date.
        let mut again = open(dir.path());
        let Some(remembered) = (!again.report.new).then_some(again.durable.needs_repair) else {
            panic!("{context}: the directory is new")
        };
        if !remembered {
            continue;
        }
        let end = again.durable.entries.last().map_or(again.durable.base, Entry::position);
        let repaired = next(end, epoch(5), 10);
        let writes = [Write::Append(vec![repaired.clone()]), Write::CurrentEpoch(epoch(5))];
        again.log.apply(&writes).unwrap();
        drop(again);
        let repaired_server = open(dir.path());
        assert!(!repaired_server.durable.needs_repair, "{context}");
        assert_eq!(repaired_server.durable.entries.last(), Some(&repaired), "{context}");
    }
    assert!(noticed > 150, "only {noticed}");
}

/// Where the last batch of twenty begins.
fn last_batch(template: &Path, file: &Path) -> usize {
    let bytes = fs::read(template.join(file)).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    used - 20 * 128
}

#[test]
fn a_damaged_copy_of_the_promises_takes_nothing_back() {
    let template = template();
    let mut dice = Dice(5);
    for _ in 0..60 {
        let copy = usize::try_from(dice.below(2)).unwrap() * 4096;
        let place = copy + usize::try_from(dice.below(37)).unwrap();
        let dir = damaged(template.path(), Path::new("state"), Damage::Flip(place, 16));
        check(&open(dir.path()), "one copy is damaged");
        let other = if copy == 0 { 4096 } else { 0 };
        Damage::Flip(other + 20, 1).apply(&dir.path().join("state"));
        check(&open(dir.path()), "the first copy was repaired, then the other one was damaged");
    }
    for damage in [Damage::Truncate(10), Damage::Truncate(0)] {
        let dir = damaged(template.path(), Path::new("state"), damage);
        let error = try_open(dir.path()).map(drop).unwrap_err();
        assert!(matches!(error, StoreError::Unusable { .. }), "{error}");
    }
}

#[test]
fn a_copy_of_the_promises_is_repaired_before_the_other_is_touched() {
    let template = template();
    for copy in [0, 4096] {
        let dir = damaged(template.path(), Path::new("state"), Damage::Flip(copy + 20, 1));
        let torn = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&torn);
        // The power fails while the first copy is written.
        let probe = Probe(Arc::new(move |step: &Step<'_>| {
            if let Step::Write(path, offset, _) = step
                && path.ends_with("state")
            {
                seen.store(*offset, Ordering::Relaxed);
                return Err(io::ErrorKind::Other.into());
            }
            Ok(())
        }));
        let options = Options { probe: Some(probe), ..options() };
        store::open(dir.path(), &identity(), options).map(drop).unwrap_err();
        let torn = usize::try_from(torn.load(Ordering::Relaxed)).unwrap();
        Damage::Flip(torn + 30, 1).apply(&dir.path().join("state"));
        check(&open(dir.path()), "a copy was torn while it was repaired");
    }
}

#[test]
fn a_damaged_pointer_or_owner_is_noticed() {
    let template = template();
    let len = |name: &str| usize::try_from(fs::metadata(template.path().join(name)).unwrap().len());
    for place in 0..len("CURRENT").unwrap() {
        let dir = damaged(template.path(), Path::new("CURRENT"), Damage::Flip(place, 2));
        // A flip in the number of the format may look like a later one.
        let Ok(opened) = try_open(dir.path()) else { continue };
        assert!(opened.durable.needs_repair, "byte {place}");
        assert_eq!(opened.nodes.meta().nodes, FOUNDED);
        assert_eq!(opened.durable.accepted_epoch, epoch(4));
    }
    for place in 0..len("identity").unwrap() {
        let dir = damaged(template.path(), Path::new("identity"), Damage::Flip(place, 2));
        let error = try_open(dir.path()).map(drop).unwrap_err();
        assert!(matches!(error, StoreError::Unusable { .. }), "byte {place}: {error}");
    }
}

/// Not a test of its own: the other half of the next one, which runs it in a process that may end.
#[test]
#[ignore = "run by a_damaged_tree_is_noticed"]
fn read_a_tree_that_may_be_damaged() {
    let Some(dir) = std::env::var_os("DAMAGED_TREE") else { return };
    let opened = match try_open(Path::new(&dir)) {
        Ok(opened) => opened,
        Err(error) => fatal(&error),
    };
    if let Err(error) = opened.nodes.scrub().run() {
        fatal(&error);
    }
    check(&opened, "the tree may be damaged");
    if opened.nodes.meta().nodes == FOUNDED {
        return;
    }
    for entry in &history()[..APPLIED] {
        let path = ZPath::new(&format!("/node-{:06}", entry.zxid.counter())).unwrap();
        let node = opened.nodes.node(&path).unwrap();
        assert_eq!(node.data, Some(Bytes::from(format!("made by {}", entry.zxid))));
    }
    let children = opened.nodes.children(&ZPath::root(), None, usize::MAX);
    // And the one that is there by itself.
    assert_eq!(children.len(), APPLIED + 1);
}

fn read_in_a_process(dir: &Path) -> Option<i32> {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "damage::read_a_tree_that_may_be_damaged", "--ignored"])
        .env("DAMAGED_TREE", dir)
        .output()
        .unwrap()
        .status
        .code()
}

#[test]
fn a_damaged_tree_is_noticed() {
    let template = template();
    let file = Path::new("tree-1/data.mdb");
    let len = usize::try_from(fs::metadata(template.path().join(file)).unwrap().len()).unwrap();
    let mut dice = Dice(77);
    let (mut noticed, mut ended) = (0, 0);
    for round in 0..150 {
        let damage = match round {
            0 => Damage::Remove,
            1 => Damage::Truncate(0),
            _ => Damage::random(&mut dice, len),
        };
        let dir = damaged(template.path(), file, damage);
        let data = dir.path().join(file);
        if round % 2 == 0 && data.exists() {
            // Too large to be looked at whole at each start.
            OpenOptions::new().write(true).open(data).unwrap().set_len(LARGE).unwrap();
        }
        // LMDB may end the process by a signal, which is `None`; then the third start finds out.
        let mut end = None;
        for _ in 0..4 {
            end = read_in_a_process(dir.path());
            assert!([Some(0), Some(EXIT_STORAGE), None].contains(&end), "{damage:?}: {end:?}");
            if end == Some(0) {
                break;
            }
            ended += 1;
        }
        assert_eq!(end, Some(0), "{damage:?}: the server does not come up again");
        noticed += u32::from(dir.path().join("damaged-tree").exists());
    }
    assert!(noticed > 40 && ended > 12, "only {noticed}, {ended}");
}

#[test]
fn a_tree_of_noise_is_noticed() {
    let template = template();
    let file = Path::new("tree-1/data.mdb");
    let len = usize::try_from(fs::metadata(template.path().join(file)).unwrap().len()).unwrap();
    let mut dice = Dice(78);
    let mut noticed = 0;
    for _ in 0..200 {
        let dir = damaged(template.path(), file, Damage::random(&mut dice, len));
        let data = dir.path().join(file);
        let left = fs::metadata(&data).unwrap().len();
        for _ in 0..dice.below(40) {
            let page = dice.below(left.max(1)) / 4096 * 4096;
            // The heads of pages and nodes, rather than the values.
            let place = usize::try_from(page + dice.below(64)).unwrap();
            if place < usize::try_from(left).unwrap() {
                Damage::Flip(place, 1 << dice.below(8)).apply(&data);
            }
        }
        let opened = open(dir.path());
        check(&opened, "a tree of noise");
        noticed += u32::from(opened.durable.needs_repair);
    }
    assert!(noticed > 150, "only {noticed}");
}
