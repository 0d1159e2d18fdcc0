//! The digest sees every field, and is the same in every version and on every machine.

use std::collections::BTreeSet;

use bytes::Bytes;
use conclave::tree::{self, Node, Outcomes, SessionRecord};
use conclave_proto::{Acl, Lifetime, Perms, Secret, SessionId, Xid};

use crate::world::{identity, path, zxid};

fn node() -> Node {
    Node {
        data: Some(Bytes::from_static(b"hello")),
        acl: Acl::open(),
        lifetime: Lifetime::Persistent,
        owner: SessionId::NONE,
        czxid: zxid(1),
        mzxid: zxid(2),
        pzxid: zxid(3),
        ctime_ms: 4,
        mtime_ms: 5,
        version: 6,
        aversion: 7,
        num_children: 8,
        children_created: 9,
    }
}

fn session() -> SessionRecord {
    SessionRecord {
        timeout_ms: 1,
        secret: Secret::new([2; 16]),
        last_xid: Xid(3),
        outcomes: Outcomes::default(),
    }
}

/// Logs and snapshots carry digests: these numbers never change.
#[test]
fn a_digest_is_for_ever() {
    let open = tree::digest_of_node(&path("/a"), &node());
    let ttl = Node { data: None, lifetime: Lifetime::Ttl(10), ..node() };
    let ttl = tree::digest_of_node(&path("/a"), &ttl);
    let session = tree::digest_of_session(SessionId(1), &session());
    let digests = [open, ttl, session].map(|digest| format!("{digest:016x}"));
    assert_eq!(digests, ["f24226a94668202d", "b50702a2babe4e36", "1d47c5b41e55036c"]);
}

#[test]
fn every_field_of_a_node_counts() {
    let change = |change: fn(&mut Node)| {
        let mut node = node();
        change(&mut node);
        tree::digest_of_node(&path("/a"), &node)
    };
    let line = |perms, who| Acl { perms, identity: identity(who) };
    let with_acl =
        |acl: &[Acl]| tree::digest_of_node(&path("/a"), &Node { acl: acl.into(), ..node() });
    let digests = [
        change(|_| {}),
        change(|node| node.data = None),
        change(|node| node.data = Some(Bytes::new())),
        change(|node| node.data = Some(Bytes::from_static(b"hellp"))),
        change(|node| node.lifetime = Lifetime::Ephemeral),
        change(|node| node.lifetime = Lifetime::Container),
        change(|node| node.lifetime = Lifetime::Ttl(1)),
        change(|node| node.lifetime = Lifetime::Ttl(2)),
        change(|node| node.owner = SessionId(1)),
        change(|node| node.czxid = zxid(9)),
        change(|node| node.mzxid = zxid(9)),
        change(|node| node.pzxid = zxid(9)),
        change(|node| node.ctime_ms = -1),
        change(|node| node.mtime_ms = -1),
        change(|node| node.version = -1),
        change(|node| node.aversion = -1),
        change(|node| (node.version, node.aversion) = (node.aversion, node.version)),
        change(|node| node.num_children = 0),
        change(|node| node.children_created = 0),
        with_acl(&[line(Perms::ALL, "sasl:a")]),
        with_acl(&[line(Perms::READ, "sasl:a")]),
        with_acl(&[line(Perms::READ, "sasl:b")]),
        with_acl(&[line(Perms::READ, "x509:b")]),
        with_acl(&[line(Perms::READ, "x509:b"), line(Perms::READ, "sasl:b")]),
        with_acl(&[line(Perms::READ, "sasl:b"), line(Perms::READ, "x509:b")]),
        tree::digest_of_node(&path("/b"), &node()),
    ];
    assert_eq!(BTreeSet::from(digests).len(), digests.len(), "{digests:x?}");
}

#[test]
fn every_field_of_a_session_but_its_outcomes_counts() {
    let digests = [
        tree::digest_of_session(SessionId(1), &session()),
        tree::digest_of_session(SessionId(2), &session()),
        tree::digest_of_session(SessionId(1), &SessionRecord { timeout_ms: 9, ..session() }),
        tree::digest_of_session(SessionId(1), &SessionRecord { last_xid: Xid(9), ..session() }),
        tree::digest_of_session(
            SessionId(1),
            &SessionRecord { secret: Secret::new([9; 16]), ..session() },
        ),
    ];
    assert_eq!(BTreeSet::from(digests).len(), digests.len(), "{digests:x?}");
}
