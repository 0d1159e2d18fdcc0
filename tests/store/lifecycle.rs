//! Opening, writing, closing and opening again.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use conclave::store::{self, Identity, Opened, Options, Probe, Step, StoreError};
use conclave::tree::{self, Nodes, Outcomes, SessionRecord};
use conclave::zab::{Position, Write};
use conclave_proto::{Acl, CreateMode, Op, Perms, Secret, ServerId, SessionId, Xid, ZPath, Zxid};
use tempfile::tempdir;

use crate::common::{FOUNDED, entries, epoch, identity, open, options, try_open, txn};

#[test]
fn a_new_directory_holds_what_is_there_by_itself() {
    let dir = tempdir().unwrap();
    let opened = open(dir.path());
    assert!(opened.report.new);
    assert_eq!(opened.durable.entries, []);
    assert!(opened.nodes.node(&ZPath::root()).is_some());
    assert_eq!(opened.nodes.meta().nodes, FOUNDED);
    drop(opened);
    let again = open(dir.path());
    assert!(!again.report.new);
    assert!(!again.durable.needs_repair);
    assert!(again.nodes.node(&ZPath::root()).is_some());
}

#[test]
fn what_was_synced_is_there_again() {
    let dir = tempdir().unwrap();
    let mut opened = open(dir.path());
    let written = entries(Position::default(), epoch(1), &[100; 500]);
    for batch in written.chunks(7) {
        opened.log.apply(&[Write::Append(batch.to_vec())]).unwrap();
        opened.log.sync().unwrap();
    }
    opened.log.apply(&[Write::AcceptedEpoch(epoch(3)), Write::CurrentEpoch(epoch(2))]).unwrap();
    drop(opened);
    let opened = open(dir.path());
    assert_eq!(opened.durable.entries, written);
    assert_eq!(opened.durable.accepted_epoch, epoch(3));
    assert_eq!(opened.durable.current_epoch, epoch(2));
    assert_eq!(opened.report.cut_bytes, 0);
}

#[test]
fn a_truncated_log_goes_on_from_there() {
    let dir = tempdir().unwrap();
    let mut opened = open(dir.path());
    let old = entries(Position::default(), epoch(1), &[200; 300]);
    let kept = old[120].position();
    let new = entries(kept, epoch(2), &[50; 300]);
    opened.log.apply(&[Write::Append(old.clone())]).unwrap();
    opened.log.sync().unwrap();
    opened.log.apply(&[Write::Truncate(kept), Write::Append(new.clone())]).unwrap();
    opened.log.sync().unwrap();
    drop(opened);
    for _ in 0..2 {
        let opened = open(dir.path());
        assert_eq!(opened.durable.entries, [&old[..=120], &new].concat());
    }
}

#[test]
fn a_checkpoint_holds_nodes_sessions_and_position() {
    let dir = tempdir().unwrap();
    let mut opened = open(dir.path());
    let log = entries(Position::default(), epoch(1), &[10; 2000]);
    opened.log.apply(&[Write::Append(log.clone())]).unwrap();
    opened.log.sync().unwrap();
    let session = SessionRecord {
        timeout_ms: 5000,
        secret: Secret::new([7; 16]),
        last_xid: Xid(4),
        outcomes: Outcomes::default(),
    };
    opened.nodes.insert_session(SessionId(9), session.clone());
    let mut meta = opened.nodes.meta();
    let at = log[1500].position();
    (meta.applied_zxid, meta.applied_chain) = (at.zxid, at.chain);
    opened.nodes.set_meta(meta);
    let frozen = opened.nodes.freeze().unwrap();
    let checkpoint = frozen.write().unwrap();
    opened.nodes.checkpointed(&checkpoint);
    assert_eq!(checkpoint.at, at);
    assert!(opened.nodes.freeze().is_none());
    opened.log.trim(at.zxid).unwrap();
    drop((opened, frozen));
    let opened = open(dir.path());
    assert_eq!(opened.durable.applied, at);
    assert_eq!(opened.nodes.meta(), meta);
    assert_eq!(opened.nodes.session(SessionId(9)), Some(&session));
    assert!(opened.durable.base.zxid > log[0].zxid, "the log was trimmed");
    let first = log.iter().position(|entry| entry.position() == opened.durable.base).unwrap() + 1;
    assert_eq!(opened.durable.entries, log[first..]);
}

#[test]
fn an_acl_counts_among_what_is_to_be_written() {
    let dir = tempdir().unwrap();
    let mut opened = open(dir.path());
    let before = opened.nodes.dirty_bytes();
    let line = |number| {
        let id = format!("{number}{}:x", "u".repeat(1000));
        Acl {
            perms: Perms::ALL,
            identity: conclave_proto::Identity { scheme: "digest".into(), id },
        }
    };
    let acl = (0..64).map(line).collect();
    let path = ZPath::new("/a").unwrap();
    let create = Op::Create { path, data: None, acl, mode: CreateMode::PERSISTENT };
    let zxid = Zxid::new(epoch(1), 1);
    tree::apply(&mut opened.nodes, zxid, 0, &txn(create)).result.unwrap();
    assert!(opened.nodes.dirty_bytes() > before + 64_000);
}

/// What a listing costs is told by the names that it passes, not by those that are left.
#[test]
fn names_that_are_gone_are_passed_until_a_checkpoint_forgets_them() {
    let dir = tempdir().unwrap();
    let mut opened = open(dir.path());
    let mut counter = 0;
    let mut apply = |opened: &mut Opened, op| {
        counter += 1;
        let zxid = Zxid::new(epoch(1), counter);
        tree::apply(&mut opened.nodes, zxid, 0, &txn(op)).result.unwrap();
    };
    let path = |number| ZPath::new(&format!("/{number:03}")).unwrap();
    for number in 0..100 {
        let (data, acl, mode) = (None, Acl::open(), CreateMode::PERSISTENT);
        apply(&mut opened, Op::Create { path: path(number), data, acl, mode });
    }
    let checkpoint = opened.nodes.freeze().unwrap().write().unwrap();
    opened.nodes.checkpointed(&checkpoint);
    for number in 0..99 {
        apply(&mut opened, Op::Delete { path: path(number), version: None });
    }
    let passed = |opened: &Opened| {
        let before = opened.nodes.names_passed();
        assert_eq!(opened.nodes.children(&ZPath::root(), None, 1), ["099"]);
        opened.nodes.names_passed() - before
    };
    assert_eq!(passed(&opened), 100);
    let checkpoint = opened.nodes.freeze().unwrap().write().unwrap();
    opened.nodes.checkpointed(&checkpoint);
    assert_eq!(passed(&opened), 1);
}

#[test]
fn what_a_checkpoint_did_not_write_the_next_one_does() {
    let dir = tempdir().unwrap();
    let mut opened = open(dir.path());
    let log = entries(Position::default(), epoch(1), &[10; 2]);
    opened.log.apply(&[Write::Append(log.clone())]).unwrap();
    opened.log.sync().unwrap();
    let session = || SessionRecord {
        timeout_ms: 5000,
        secret: Secret::new([7; 16]),
        last_xid: Xid(4),
        outcomes: Outcomes::default(),
    };
    let change = |opened: &mut Opened, id, at: Position| {
        opened.nodes.insert_session(SessionId(id), session());
        let mut meta = opened.nodes.meta();
        (meta.applied_zxid, meta.applied_chain) = (at.zxid, at.chain);
        opened.nodes.set_meta(meta);
        opened.nodes.freeze().unwrap()
    };
    let first = change(&mut opened, 8, log[0].position());
    opened.nodes.not_written(&first);
    let second = change(&mut opened, 9, log[1].position());
    let checkpoint = second.write().unwrap();
    opened.nodes.checkpointed(&checkpoint);
    drop((opened, first, second));
    let opened = open(dir.path());
    assert_eq!(opened.durable.applied, log[1].position());
    assert_eq!(opened.nodes.session(SessionId(8)), Some(&session()));
    assert_eq!(opened.nodes.session(SessionId(9)), Some(&session()));
}

#[test]
fn a_directory_serves_one_process_and_one_server() {
    let dir = tempdir().unwrap();
    let opened = open(dir.path());
    let refused = |result: Result<_, StoreError>, word: &str| {
        let error = result.map(|_: store::Opened| ()).unwrap_err();
        assert!(matches!(error, StoreError::Unusable { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    };
    refused(try_open(dir.path()), "another process");
    drop(opened);
    let other = Identity { server: ServerId::new(2).unwrap(), ..identity() };
    refused(store::open(dir.path(), &other, options()), "belongs to server 1 and this is server 2");
    let other = Identity { cluster: "other".into(), ..identity() };
    refused(store::open(dir.path(), &other, options()), "belongs to the cluster \"test\"");
}

#[test]
fn what_was_cut_off_never_comes_back() {
    let dir = tempdir().unwrap();
    let mut opened = open(dir.path());
    let kept = entries(Position::default(), epoch(1), &[100; 3]);
    opened.log.apply(&[Write::Append(kept.clone())]).unwrap();
    opened.log.sync().unwrap();
    let torn = entries(kept[2].position(), epoch(1), &[1000, 10, 10]);
    opened.log.apply(&[Write::Append(torn.clone())]).unwrap();
    opened.log.sync().unwrap();
    drop(opened);
    // Let it be that a crash came before the sync, and the first of the three is not whole.
    let segment = dir.path().join("log/0000000000000001.log");
    let mut bytes = fs::read(&segment).unwrap();
    let body = bytes.windows(1000).position(|window| *window == *torn[0].body).unwrap();
    bytes[body + 300] ^= 1;
    fs::write(&segment, bytes).unwrap();

    let mut opened = open(dir.path());
    assert!(opened.report.cut_bytes > 1000, "{:?}", opened.report);
    assert_eq!(opened.durable.entries, kept);
    // The very same entry is appended again; what followed it then does not follow it now.
    opened.log.apply(&[Write::Append(vec![torn[0].clone()])]).unwrap();
    opened.log.sync().unwrap();
    drop(opened);
    assert_eq!(open(dir.path()).durable.entries, [&kept[..], &torn[..1]].concat());
}

#[test]
fn a_writer_that_failed_refuses_to_go_on() {
    let dir = tempdir().unwrap();
    let fails = Arc::new(AtomicBool::new(false));
    let probe = Probe(Arc::new({
        let fails = Arc::clone(&fails);
        move |step: &Step<'_>| {
            let fails = fails.load(Ordering::Relaxed) && matches!(step, Step::Sync(_));
            if fails { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
        }
    }));
    let options = Options { probe: Some(probe), ..options() };
    let mut opened = store::open(dir.path(), &identity(), options).unwrap();
    let batch = entries(Position::default(), epoch(1), &[100; 3]);
    opened.log.apply(&[Write::Append(batch)]).unwrap();
    fails.store(true, Ordering::Relaxed);
    assert!(matches!(opened.log.sync(), Err(StoreError::Io { what: "sync", .. })));
    // A sync that succeeds now says nothing about what the failed one was for.
    fails.store(false, Ordering::Relaxed);
    opened.log.sync().unwrap_err();
    opened.log.apply(&[Write::CurrentEpoch(epoch(1))]).unwrap_err();
}

/// A directory with some entries, opened again while the disk has lost what these reads ask for.
fn open_with_lost(lost: impl Fn(&Path, u64) -> bool + Send + Sync + 'static) -> Opened {
    let dir = tempdir().unwrap();
    let mut opened = open(dir.path());
    let batch = entries(Position::default(), epoch(1), &[100; 3]);
    opened.log.apply(&[Write::Append(batch)]).unwrap();
    opened.log.sync().unwrap();
    drop(opened);
    let probe = Probe(Arc::new(move |step: &Step<'_>| {
        let lost = matches!(step, Step::Read(path, offset) if lost(path, *offset));
        if lost { Err(rustix::io::Errno::IO.into()) } else { Ok(()) }
    }));
    store::open(dir.path(), &identity(), Options { probe: Some(probe), ..options() }).unwrap()
}

#[test]
fn what_the_disk_cannot_read_any_more_is_damage() {
    let state = open_with_lost(|path, offset| path.ends_with("state") && offset == 0);
    assert!(!state.durable.needs_repair, "the other copy has it");
    assert_eq!(state.durable.entries.len(), 3);
    let is_log = |path: &Path| path.extension().is_some_and(|extension| extension == "log");
    for from in [0, 1] {
        let log = open_with_lost(move |path, offset| is_log(path) && offset >= from);
        assert!(log.durable.needs_repair);
        let damage = log.report.damage.join("; ");
        assert!(damage.contains("cannot be read"), "{damage}");
    }
}

#[test]
fn damage_that_nobody_can_repair_is_refused_and_left_as_it_is() {
    let dir = tempdir().unwrap();
    drop(open(dir.path()));
    let current = dir.path().join("CURRENT");
    fs::write(&current, b"nonsense").unwrap();
    let alone = Options { repairable: false, ..options() };
    let error = store::open(dir.path(), &identity(), alone).map(drop).unwrap_err();
    assert!(error.to_string().contains("restore a backup"), "{error}");
    assert!(dir.path().join("tree-1/data.mdb").exists());
    assert_eq!(fs::read(&current).unwrap(), b"nonsense");
    assert!(open(dir.path()).durable.needs_repair);
}

#[test]
fn promises_that_are_gone_are_not_made_up() {
    let dir = tempdir().unwrap();
    drop(open(dir.path()));
    fs::remove_file(dir.path().join("state")).unwrap();
    let error = store::open(dir.path(), &identity(), options()).map(drop).unwrap_err();
    assert!(matches!(error, StoreError::Unusable { .. }), "{error:?}");
    assert!(error.to_string().contains("`state` is missing"), "{error}");
    assert!(!dir.path().join("state").exists());
}

#[test]
fn a_server_that_lost_its_data_does_not_count_until_it_is_repaired() {
    let dir = tempdir().unwrap();
    let lost = || Options { lost: true, ..options() };
    let alone = Options { repairable: false, ..lost() };
    let error = store::open(dir.path(), &identity(), alone).map(drop).unwrap_err();
    assert!(error.to_string().contains("restore a backup"), "{error}");
    assert!(store::open(dir.path(), &identity(), lost()).unwrap().durable.needs_repair);
    let mut opened = open(dir.path());
    assert!(opened.durable.needs_repair, "it is remembered");
    opened.log.apply(&[Write::CurrentEpoch(epoch(1))]).unwrap();
    drop(opened);
    let again = store::open(dir.path(), &identity(), lost()).unwrap();
    assert!(!again.durable.needs_repair, "it has what it needs");
}

#[test]
fn a_log_directory_that_is_not_mounted_is_refused() {
    let (dir, log) = (tempdir().unwrap(), tempdir().unwrap());
    let apart = |log: &Path| Options { log_dir: Some(log.to_owned()), ..options() };
    drop(store::open(dir.path(), &identity(), apart(log.path())).unwrap());
    drop(store::open(dir.path(), &identity(), apart(log.path())).unwrap());
    let unmounted = tempdir().unwrap();
    let error =
        store::open(dir.path(), &identity(), apart(unmounted.path())).map(drop).unwrap_err();
    assert!(error.to_string().contains("mount it"), "{error}");
    let fresh = tempdir().unwrap();
    let error = store::open(fresh.path(), &identity(), apart(log.path())).map(drop).unwrap_err();
    assert!(error.to_string().contains("empty both"), "{error}");
}

#[test]
fn a_log_directory_that_is_not_named_any_more_is_asked_for() {
    let (dir, log) = (tempdir().unwrap(), tempdir().unwrap());
    let apart = || Options { log_dir: Some(log.path().to_owned()), ..options() };
    drop(store::open(dir.path(), &identity(), apart()).unwrap());
    let state = fs::read(dir.path().join("state")).unwrap();
    let error = store::open(dir.path(), &identity(), options()).map(drop).unwrap_err();
    assert!(error.to_string().contains("name that directory as `log_dir`"), "{error}");
    assert_eq!(fs::read(dir.path().join("state")).unwrap(), state);
    let opened = store::open(dir.path(), &identity(), apart()).unwrap();
    assert!(!opened.durable.needs_repair && opened.report.damage.is_empty());
}

#[test]
fn only_the_owner_can_read_the_data() {
    let dir = tempdir().unwrap();
    let home = dir.path().join("data");
    drop(open(&home));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for name in ["", "log", "tree-1"] {
        assert_eq!(mode(&home.join(name)), 0o700, "{name}");
    }
    for name in ["identity", "CURRENT", "state", "log/0000000000000001.log", "tree-1/data.mdb"] {
        assert_eq!(mode(&home.join(name)), 0o600, "{name}");
    }
}
