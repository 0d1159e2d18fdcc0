//! A server that does everything a storage is asked to do, and knows what its disk must hold.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use conclave::store::{self, Opened, Options, Probe, StoreError};
use conclave::tree::{Nodes, apply};
use conclave::zab::{Entry, Position, Write};
use conclave_proto::Epoch;
use tempfile::{TempDir, tempdir_in};

use crate::common::{Dice, FOUNDED, create_txn, entries, epoch, identity, next, options};

/// What a directory must hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) base: Position,
    pub(crate) entries: Vec<Entry>,
    pub(crate) accepted: Epoch,
    pub(crate) current: Epoch,
    pub(crate) applied: Position,
}

impl Model {
    pub(crate) fn end(&self) -> Position {
        self.entries.last().map_or(self.base, Entry::position)
    }

    /// Whether this is what was recovered.
    fn is(&self, opened: &Opened) -> bool {
        let durable = &opened.durable;
        let positions = std::iter::once(self.base).chain(self.entries.iter().map(Entry::position));
        let start = positions.into_iter().position(|position| position == durable.base);
        durable.accepted_epoch == self.accepted
            && durable.current_epoch == self.current
            && durable.applied == self.applied
            && opened.nodes.meta().nodes == FOUNDED + self.applied.zxid.counter()
            && start.is_some_and(|start| durable.entries == self.entries[start..])
    }
}

/// What a crash may lead to.
pub(crate) type Allowed = Arc<Mutex<Vec<Model>>>;

/// Open what a crash has left, check that it is allowed, append to it and open it once more.
pub(crate) fn check(dir: &Path, allowed: &[Model], context: &str) {
    let mut opened = match store::open(dir, &identity(), options()) {
        Ok(opened) => opened,
        Err(error) => panic!("{context}: {error}"),
    };
    assert_eq!(opened.report.damage, Vec::<String>::new(), "{context}: damage");
    let Some(model) = allowed.iter().find(|model| model.is(&opened)) else {
        let durable = &opened.durable;
        let end = durable.entries.last().map_or(durable.base, Entry::position);
        let expected: Vec<_> =
            allowed.iter().map(|model| (model.applied.zxid, model.end().zxid)).collect();
        panic!(
            "{context}: lost or invented something: epochs {} and {}, applied {}, log {} to {}; \
             allowed {expected:?}",
            durable.accepted_epoch,
            durable.current_epoch,
            durable.applied.zxid,
            durable.base.zxid,
            end.zxid,
        );
    };
    let mut model = model.clone();
    let entry = next(model.end(), model.current.max(epoch(1)), 33);
    model.entries.push(entry.clone());
    opened.log.apply(&[Write::Append(vec![entry])]).unwrap();
    opened.log.sync().unwrap();
    drop(opened);
    let opened = store::open(dir, &identity(), options()).unwrap();
    assert!(model.is(&opened), "{context}: what was appended after the crash is not there");
}

/// A directory that goes away; in memory, if that can be had: there is no need to wait for a real
/// disk thousands of times.
pub(crate) fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempdir_in(parent).unwrap()
}

/// A server whose disk is watched.
pub(crate) struct Server {
    opened: Opened,
    model: Model,
    allowed: Allowed,
    scratch: PathBuf,
    dice: Dice,
}

impl Server {
    /// A new server in `home`; it forgets what it may hold as soon as something else is done.
    pub(crate) fn new(
        scratch: &Path,
        home: &Path,
        seed: u64,
        allowed: Allowed,
        probe: Probe,
    ) -> Result<Server, StoreError> {
        *allowed.lock().unwrap() = vec![Model::default()];
        let options = Options { probe: Some(probe), ..options() };
        let opened = store::open(home, &identity(), options)?;
        let (model, scratch) = (Model::default(), scratch.to_owned());
        Ok(Server { opened, model, allowed, scratch, dice: Dice(seed) })
    }

    /// Do something.
    pub(crate) fn act(&mut self) -> Result<(), StoreError> {
        match self.dice.below(20) {
            _ if self.model.current == Epoch::ZERO => self.append(&[10, 20], Some(epoch(1))),
            0 => self.accept(),
            1 => self.truncate(),
            2 | 3 => self.checkpoint(),
            4 => self.install(),
            _ => {
                let lens: Vec<_> = (0..=self.dice.below(5))
                    .map(|_| usize::try_from(self.dice.below(900)).unwrap())
                    .collect();
                let current = (self.dice.below(8) == 0).then_some(self.model.current);
                self.append(&lens, current)
            }
        }
    }

    /// What the directory holds if nothing is going on.
    pub(crate) fn settle(&self) {
        *self.allowed.lock().unwrap() = vec![self.model.clone()];
    }

    fn accept(&mut self) -> Result<(), StoreError> {
        let mut after = self.model.clone();
        after.accepted = after.accepted.next().unwrap();
        let accepted = after.accepted;
        self.during(vec![after], |opened| opened.log.apply(&[Write::AcceptedEpoch(accepted)]))
    }

    /// Do this, which leads from the model as it is through these to the last of them.
    fn during(
        &mut self,
        stages: Vec<Model>,
        act: impl FnOnce(&mut Opened) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let last = stages.last().expect("it leads somewhere").clone();
        *self.allowed.lock().unwrap() = [vec![self.model.clone()], stages].concat();
        act(&mut self.opened)?;
        self.model = last;
        Ok(())
    }

    fn append(&mut self, lens: &[usize], current: Option<Epoch>) -> Result<(), StoreError> {
        let in_epoch = current.unwrap_or(self.model.current).max(epoch(1));
        let batch = entries(self.model.end(), in_epoch, lens);
        let mut stages = appended(&self.model, &batch);
        let mut writes = vec![Write::Append(batch)];
        if let Some(current) = current {
            let mut last = stages.last().unwrap_or(&self.model).clone();
            last.current = current;
            last.accepted = last.accepted.max(current);
            stages.push(last);
            writes.push(Write::CurrentEpoch(current));
        }
        self.during(stages, |opened| {
            opened.log.apply(&writes)?;
            opened.log.sync()
        })
    }

    fn truncate(&mut self) -> Result<(), StoreError> {
        let room = self.model.entries.iter().filter(|e| e.zxid > self.model.applied.zxid).count();
        let dropped = usize::try_from(self.dice.below(room as u64 + 1)).unwrap();
        let mut cut = self.model.clone();
        cut.entries.truncate(cut.entries.len() - dropped);
        let position = cut.end();
        self.during(vec![cut], |opened| {
            opened.log.apply(&[Write::Truncate(position)])?;
            opened.log.sync()
        })
    }

    /// Apply what is logged but not applied, up to some point, and write a checkpoint.
    fn checkpoint(&mut self) -> Result<(), StoreError> {
        let pending: Vec<_> = self
            .model
            .entries
            .iter()
            .filter(|e| e.zxid > self.model.applied.zxid)
            .cloned()
            .collect();
        let count = usize::try_from(self.dice.below(pending.len() as u64 + 1)).unwrap();
        let pending: Vec<_> = pending.into_iter().take(count).collect();
        let Some(last) = pending.last() else { return Ok(()) };
        let mut after = self.model.clone();
        after.applied = last.position();
        self.during(vec![after], |opened| {
            for entry in &pending {
                apply(&mut opened.nodes, entry.zxid, entry.chain, &create_txn(entry.zxid));
            }
            let checkpoint = opened.nodes.freeze().expect("something changed").write()?;
            opened.nodes.checkpointed(&checkpoint);
            opened.log.trim(checkpoint.at.zxid)
        })
    }

    /// Be brought up to date by a snapshot of a server that is ahead.
    fn install(&mut self) -> Result<(), StoreError> {
        let dir = tempdir_in(&self.scratch).unwrap();
        let mut source = store::open(dir.path(), &identity(), options()).unwrap();
        let ahead = Position { zxid: self.model.end().zxid, chain: 99 };
        let mut at = Position::default();
        while at.zxid <= ahead.zxid {
            let entry = next(at, epoch(1), 7);
            at = entry.position();
            apply(&mut source.nodes, entry.zxid, entry.chain, &create_txn(entry.zxid));
        }
        let mut reader = source.nodes.snapshot();
        let mut chunks: Vec<Bytes> = Vec::new();
        while let Some(chunk) = reader.next_chunk().unwrap() {
            chunks.push(chunk);
        }
        let mut after = self.model.clone();
        (after.base, after.applied, after.entries) = (at, at, Vec::new());
        self.during(vec![after], |opened| {
            let mut writer = opened.home.receive()?;
            for chunk in &chunks {
                writer.chunk(chunk)?;
            }
            let received = writer.finish(at)?;
            let installed = opened.log.install(received)?;
            opened.nodes.replace(installed);
            Ok(())
        })
    }
}

/// The model with one, two, … all of these entries appended.
fn appended(model: &Model, batch: &[Entry]) -> Vec<Model> {
    (1..=batch.len())
        .map(|count| {
            let mut stage = model.clone();
            stage.entries.extend_from_slice(&batch[..count]);
            stage
        })
        .collect()
}
