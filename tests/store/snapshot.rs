//! Snapshots: what arrives is the state of one moment, whole, or nothing.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use conclave::store::{Opened, SnapshotWriter, StoreError};
use conclave::tree::{Node, Nodes, SessionRecord, apply};
use conclave::zab::Position;
use conclave_proto::{Acl, CreateMode, Lifetime, Op, Request, Secret, SessionId, Xid, ZPath, Zxid};
use tempfile::tempdir;

use crate::common::{Dice, epoch, next, open, txn};

const SESSION: SessionId = SessionId(77);

/// Applies one operation after another.
struct Tree {
    opened: Opened,
    at: Position,
}

impl Tree {
    fn new(dir: &Path) -> Tree {
        let mut tree = Tree { opened: open(dir), at: Position::default() };
        let secret = Secret::new([5; 16]);
        let mut open = txn(Op::CreateSession { session: SESSION, timeout_ms: 9000, secret });
        open.request.session = SESSION;
        tree.apply(open);
        tree
    }

    fn apply(&mut self, txn: conclave_proto::Txn) {
        let entry = next(self.at, epoch(1), 0);
        self.at = entry.position();
        let applied = apply(&mut self.opened.nodes, entry.zxid, entry.chain, &txn);
        assert!(applied.result.is_ok(), "{:?}: {:?}", txn.request.op, applied.result);
    }

    fn create(&mut self, path: &str, lifetime: Lifetime, data: &[u8]) {
        let mut txn = txn(Op::Create {
            path: ZPath::new(path).unwrap(),
            data: Some(Bytes::copy_from_slice(data)),
            acl: Acl::open(),
            mode: CreateMode { lifetime, ..CreateMode::default() },
        });
        let xid = Xid(self.at.zxid.counter());
        let acked = Xid(xid.0.saturating_sub(5));
        txn.request = Request { session: SESSION, xid, acked, op: txn.request.op };
        self.apply(txn);
    }

    fn delete(&mut self, path: &str) {
        self.apply(txn(Op::Delete { path: ZPath::new(path).unwrap(), version: None }));
    }

    fn checkpoint(&mut self) {
        let checkpoint = self.opened.nodes.freeze().unwrap().write().unwrap();
        self.opened.nodes.checkpointed(&checkpoint);
    }

    /// A tree with something of everything, part of it on the disk and part of it in memory.
    fn grow(&mut self, nodes: usize) {
        let mut dice = Dice(4);
        let long = "x".repeat(600);
        for parent in 0..10 {
            self.create(&format!("/p{parent}"), Lifetime::Persistent, b"");
            self.create(&format!("/p{parent}/{long}{parent}"), Lifetime::Ephemeral, b"long");
        }
        for number in 0..nodes {
            let parent = dice.below(10);
            let lifetime = match dice.below(12) {
                0 => Lifetime::Ephemeral,
                1 => Lifetime::Container,
                2 => Lifetime::Ttl(60_000),
                _ => Lifetime::Persistent,
            };
            self.create(&format!("/p{parent}/n{number}"), lifetime, &[7; 60]);
            if number == nodes / 2 {
                self.checkpoint();
            }
            if dice.below(10) == 0 {
                self.delete(&format!("/p{parent}/n{number}"));
            }
        }
        self.create("/large", Lifetime::Persistent, &vec![9; 1 << 20]);
    }

    fn chunks(&mut self) -> (Position, Vec<Bytes>) {
        let mut reader = self.opened.nodes.snapshot();
        // What happens from here on is not part of it, not even once it is on the disk.
        self.create("/later", Lifetime::Persistent, b"");
        self.checkpoint();
        let mut chunks = Vec::new();
        while let Some(chunk) = reader.next_chunk().unwrap() {
            assert!(chunk.len() <= conclave::limits::SNAPSHOT_CHUNK_BYTES);
            chunks.push(chunk);
        }
        self.delete("/later");
        (reader.at(), chunks)
    }
}

type Session = (SessionId, SessionRecord);

/// Everything that can be read of a state.
fn dump(nodes: &impl Nodes) -> (Vec<(ZPath, Node)>, Vec<Session>) {
    let mut found = Vec::new();
    let mut open = VecDeque::from([ZPath::root()]);
    while let Some(path) = open.pop_front() {
        for name in nodes.children(&path, None, usize::MAX) {
            open.push_back(path.child(&name).unwrap());
        }
        let node = nodes.node(&path).unwrap();
        found.push((path, node));
    }
    (found, nodes.sessions().map(|(id, record)| (id, record.clone())).collect())
}

fn trees(dir: &Path) -> usize {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("tree-")).count()
}

#[test]
fn a_snapshot_is_the_state_of_its_moment() {
    let (from, to) = (tempdir().unwrap(), tempdir().unwrap());
    let mut source = Tree::new(from.path());
    source.grow(100_000);
    let expected = dump(&source.opened.nodes);
    let meta = source.opened.nodes.meta();
    let (at, chunks) = source.chunks();
    assert_eq!(at.zxid, meta.applied_zxid);

    let mut target = Tree::new(to.path()).opened;
    let mut writer = target.home.receive().unwrap();
    for chunk in &chunks {
        writer.chunk(chunk).unwrap();
    }
    let received = writer.finish(at).unwrap();
    let installed = target.log.install(received).unwrap();
    target.nodes.replace(installed);
    for reopened in [false, true] {
        if reopened {
            drop(target);
            target = open(to.path());
            assert!(!target.durable.needs_repair);
            assert_eq!((target.durable.base, target.durable.applied), (at, at));
        }
        assert_eq!(target.nodes.meta(), meta);
        assert!(dump(&target.nodes) == expected, "the states differ");
        let (own, other) = (&target.nodes, &source.opened.nodes);
        assert_eq!(own.ephemerals(SESSION), other.ephemerals(SESSION));
        let count = own.ephemerals(SESSION).len();
        assert_eq!((own.ephemeral_count(SESSION), other.ephemeral_count(SESSION)), (count, count));
        assert_eq!(own.ephemerals_in_all(), other.ephemerals_in_all());
        assert_eq!(own.mortals(None, usize::MAX), other.mortals(None, usize::MAX));
    }
    assert_eq!(trees(to.path()), 1);
}

#[test]
fn a_transfer_that_begins_while_another_is_put_in_force_is_left_alone() {
    let (from, to) = (tempdir().unwrap(), tempdir().unwrap());
    let mut source = Tree::new(from.path());
    source.grow(300);
    let (at, chunks) = source.chunks();
    let mut target = open(to.path());
    let receive = |mut writer: SnapshotWriter| {
        chunks.iter().for_each(|chunk| writer.chunk(chunk).unwrap());
        writer.finish(at)
    };
    let first = receive(target.home.receive().unwrap()).unwrap();
    // The leader breaks off and begins anew, which the thread of the log does not know.
    let second = target.home.receive().unwrap();
    target.log.install(first).unwrap();
    let second = receive(second).unwrap();
    target.log.install(second).unwrap();
    assert_eq!(trees(to.path()), 1);
}

#[test]
fn a_transfer_that_was_given_up_comes_to_its_end_whatever_is_put_in_force_meanwhile() {
    let (from, to) = (tempdir().unwrap(), tempdir().unwrap());
    let mut source = Tree::new(from.path());
    source.grow(300);
    let (at, chunks) = source.chunks();
    let mut target = open(to.path());
    let write = |mut writer: SnapshotWriter| {
        chunks.iter().for_each(|chunk| writer.chunk(chunk).unwrap());
        writer
    };
    // Its thread has everything, and does not know yet that nobody wants it.
    let given_up = write(target.home.receive().unwrap());
    let wanted = write(target.home.receive().unwrap()).finish(at).unwrap();
    target.log.install(wanted).unwrap();
    assert_eq!(given_up.finish(at).unwrap().at(), at);
    assert_eq!(trees(to.path()), 1);
}

#[test]
fn a_damaged_snapshot_is_refused_and_leaves_nothing() {
    let (from, to) = (tempdir().unwrap(), tempdir().unwrap());
    let mut source = Tree::new(from.path());
    source.grow(300);
    let (at, chunks) = source.chunks();
    assert!(chunks.len() > 3);
    let target = open(to.path());
    let receive = |chunks: &[Bytes], at: Position| {
        let mut writer = target.home.receive().unwrap();
        chunks.iter().try_for_each(|chunk| writer.chunk(chunk)).and_then(|()| writer.finish(at))
    };
    let refused = |chunks: &[Bytes], at: Position| {
        let result = receive(chunks, at);
        assert!(matches!(result, Err(StoreError::Snapshot(_))), "{result:?}");
        assert_eq!(trees(to.path()), 1);
    };
    let mut dice = Dice(9);
    for _ in 0..200 {
        let mut damaged = chunks.clone();
        let place = usize::try_from(dice.below(chunks.len() as u64)).unwrap();
        let mut bytes = damaged[place].to_vec();
        let byte = usize::try_from(dice.below(bytes.len() as u64)).unwrap();
        bytes[byte] ^= 1 << dice.below(8);
        damaged[place] = bytes.into();
        refused(&damaged, at);
    }
    refused(&chunks[1..], at);
    refused(&chunks[..chunks.len() - 1], at);
    refused(&[&chunks[..2], &chunks[1..]].concat(), at);
    refused(&[], at);
    refused(&chunks, Position { zxid: Zxid::from_bits(5), chain: 0 });
    assert_eq!(receive(&chunks, at).unwrap().at(), at);
    assert_eq!(trees(to.path()), 1, "what was received and not installed is gone");
}

#[test]
fn an_interrupted_transfer_is_gone_after_the_next_start() {
    let (from, to) = (tempdir().unwrap(), tempdir().unwrap());
    let mut source = Tree::new(from.path());
    source.grow(300);
    let (_, chunks) = source.chunks();
    let target = open(to.path());
    let mut writer = target.home.receive().unwrap();
    writer.chunk(&chunks[0]).unwrap();
    // The process is killed here: what it leaves is copied before it can tidy up.
    let left = tempdir().unwrap();
    copy(to.path(), left.path());
    assert_eq!(trees(left.path()), 2);
    drop((writer, target));
    let opened = open(left.path());
    assert!(!opened.durable.needs_repair);
    assert_eq!(trees(left.path()), 1);
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
