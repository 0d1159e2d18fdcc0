//! Power loss during a checkpoint: whatever part of it reached the disk, the tree is that of the
//! checkpoint before, whole.

use std::fs;
use std::path::Path;

use conclave::store::Opened;
use conclave::tree::{Nodes, apply};
use conclave::zab::{Entry, Position, Write};
use conclave_proto::{Op, ZPath};

use crate::common::{Dice, create_txn, entries, epoch, open, txn};
use crate::server::scratch;

const SECTOR: usize = 512;
/// LMDB's two meta pages, which are written last, each within one sector.
const METAS: usize = 2 * 4096;

fn checkpoint(opened: &mut Opened) {
    let checkpoint = opened.nodes.freeze().unwrap().write().unwrap();
    opened.nodes.checkpointed(&checkpoint);
}

/// Create nodes, and delete some of those created before.
fn change(opened: &mut Opened, entries: &[Entry]) {
    for entry in entries {
        let number = entry.zxid.counter();
        let delete = number.is_multiple_of(7) && number > 600;
        let txn = if delete {
            let path = ZPath::new(&format!("/node-{:06}", number - 600 + 1)).unwrap();
            txn(Op::Delete { path, version: None })
        } else {
            create_txn(entry.zxid)
        };
        apply(&mut opened.nodes, entry.zxid, entry.chain, &txn);
    }
}

#[test]
fn a_torn_checkpoint_leaves_the_one_before() {
    let dir = scratch();
    let data = dir.path().join("tree-1/data.mdb");
    let history = entries(Position::default(), epoch(1), &[0; 3000]);
    let mut opened = open(dir.path());
    opened.log.apply(&[Write::Append(history.clone())]).unwrap();
    opened.log.sync().unwrap();
    let mut dice = Dice(8);
    for part in history.chunks(300) {
        let (before, meta) = (fs::read(&data).unwrap(), opened.nodes.meta());
        change(&mut opened, part);
        checkpoint(&mut opened);
        let after = fs::read(&data).unwrap();
        for _ in 0..40 {
            let image = scratch();
            copy_log(dir.path(), image.path());
            fs::create_dir(image.path().join("tree-1")).unwrap();
            let bytes = torn(&before, &after, &mut dice);
            fs::write(image.path().join("tree-1/data.mdb"), bytes).unwrap();
            let found = open(image.path());
            assert_eq!(found.report.damage, Vec::<String>::new());
            assert_eq!(found.nodes.meta(), meta);
            found.nodes.scrub().run().unwrap();
        }
    }
}

/// The file as it was, with a random part of what was written since, but for the meta pages.
fn torn(before: &[u8], after: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = before.to_vec();
    bytes.resize(after.len().max(before.len()), 0);
    let odds = 1 + dice.below(4);
    for start in (METAS..after.len()).step_by(SECTOR) {
        let end = (start + SECTOR).min(after.len());
        if dice.below(odds) == 0 {
            bytes[start..end].copy_from_slice(&after[start..end]);
        }
    }
    bytes
}

/// Copy everything but the tree.
fn copy_log(from: &Path, to: &Path) {
    fs::create_dir(to.join("log")).unwrap();
    for name in ["identity", "CURRENT", "state"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
    for entry in fs::read_dir(from.join("log")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join("log").join(entry.file_name())).unwrap();
    }
}
