//! Opening, writing, closing and opening again.

use conclave::store::{self, Identity, StoreError};
use conclave::tree::{Nodes, SessionRecord};
use conclave::zab::{Position, Write};
use conclave_proto::{Secret, ServerId, SessionId, Xid, ZPath};
use tempfile::tempdir;

use crate::common::{entries, epoch, identity, open, options, try_open};

#[test]
fn a_new_directory_holds_the_root_and_nothing_else() {
    let dir = tempdir().unwrap();
    let opened = open(dir.path());
    assert!(opened.report.new);
    assert_eq!(opened.durable.entries, []);
    assert!(opened.nodes.node(&ZPath::root()).is_some());
    assert_eq!(opened.nodes.meta().nodes, 1);
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
        outcomes: [].into(),
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
