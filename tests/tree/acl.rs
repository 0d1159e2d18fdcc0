//! Who may do what, as tables: operation × permission, and scheme × identity.

use std::fmt::Write;

use conclave::tree::{self, MemoryNodes, Nodes};
use conclave_proto::{Acl, Identity, Op, Perms, SessionId};
use expect_test::expect_file;

use crate::words::Words;
use crate::world::{World, identity, path, txn};

const CLIENT: SessionId = SessionId(1);

/// The permissions, by their letters.
const PERMS: [(&str, Perms); 5] = [
    ("read", Perms::READ),
    ("write", Perms::WRITE),
    ("create", Perms::CREATE),
    ("delete", Perms::DELETE),
    ("admin", Perms::ADMIN),
];

/// What is tried on `/parent/node`, which has no children.
const OPERATIONS: [&str; 24] = [
    "get /parent/node",
    "exists /parent/node",
    "ls /parent/node",
    "tree /parent/node",
    "count /parent/node",
    "acl /parent/node",
    "check /parent/node",
    "require /parent/node is version 0",
    "ensure /parent/node/child",
    "drop /parent/node",
    "prune /parent/node 0",
    "create /parent/node/child",
    "create -s /parent/node/child-",
    "create -e /parent/node/child",
    "delete /parent/node",
    "rmr /parent/node 0",
    "set /parent/node x",
    "setacl /parent/node r=world:anyone",
    "multi then check /parent/node",
    "multi then create /parent/node/child",
    "multi then delete /parent/node",
    "multi then set /parent/node x",
    "multi then setacl /parent/node r=world:anyone",
    "multi if /parent/node is there",
];

const ME: &str = "digest:me:hash";

fn grant(perms: Perms, who: &str) -> Vec<Acl> {
    vec![Acl { perms, identity: identity(who) }]
}

/// A tree where both nodes grant what is said.
fn world(parent: Vec<Acl>, node: Vec<Acl>) -> World {
    let mut world = World::new();
    let secret = conclave_proto::Secret::new([0; 16]);
    let mut apply = |op| assert!(world.apply(&txn(SessionId::NONE, op)).result.is_ok());
    apply(Op::CreateSession { session: CLIENT, timeout_ms: 1000, secret });
    apply(Words::new("create /parent").op());
    apply(Words::new("create /parent/node").op());
    apply(Op::SetAcl { path: path("/parent"), acl: parent.into(), version: None });
    apply(Op::SetAcl { path: path("/parent/node"), acl: node.into(), version: None });
    world
}

fn is_allowed(world: &mut World, who: &[Identity], operation: &str) -> bool {
    let op = Words::new(operation).op();
    let result = if op.is_write() {
        let mut txn = txn(CLIENT, op);
        txn.identities = who.into();
        world.apply(&txn).result
    } else {
        tree::read(&world.nodes, who, CLIENT, &op)
    };
    match result {
        Ok(_) => true,
        Err(fault) => {
            assert_eq!(fault.code, conclave_proto::ErrorCode::NoAuth, "{operation}");
            false
        }
    }
}

/// Which single permission, on the node alone and on its parent alone, is enough.
#[test]
fn each_operation_needs_its_permission() {
    let mut table =
        "What one permission, on the node or on its parent, is enough for.\n\n".to_owned();
    for operation in OPERATIONS {
        let mut enough = Vec::new();
        for (name, perm) in PERMS {
            let me = [identity(ME)];
            let none = grant(Perms(0), ME);
            if is_allowed(&mut world(none.clone(), grant(perm, ME)), &me, operation) {
                enough.push(name.to_owned());
            }
            if is_allowed(&mut world(grant(perm, ME), none), &me, operation) {
                enough.push(format!("{name} of the parent"));
            }
        }
        writeln!(table, "{operation:46} {}", enough.join(", ")).unwrap();
    }
    expect_file!["permissions.txt"].assert_eq(&table);
}

/// Everything is refused to whom nothing is granted, and nothing to the system and `super`.
#[test]
fn those_without_a_grant_may_do_nothing_and_those_above_the_law_everything() {
    let nobody = || world(grant(Perms(0), ME), grant(Perms(0), ME));
    for operation in OPERATIONS {
        let others = [identity("digest:other:hash"), identity("ip:10.0.0.1")];
        assert!(!is_allowed(&mut nobody(), &others, operation), "{operation}");
        assert!(!is_allowed(&mut nobody(), &[], operation), "{operation}");
        assert!(is_allowed(&mut nobody(), &[identity("super:")], operation), "{operation}");
        let op = Words::new(operation).op();
        let needs_session = operation.contains("-e");
        if op.is_write() && !needs_session {
            assert!(nobody().apply(&txn(SessionId::NONE, op)).result.is_ok(), "{operation}");
        }
    }
}

/// Which identities the grants of each scheme name.
#[test]
fn each_scheme_names_its_own() {
    let grants = [
        "world:anyone",
        "digest:me:hash",
        "x509:CN=me",
        "sasl:me@REALM",
        "ip:10.1.2.3",
        "ip:10.1.0.0/16",
        "ip:10.1.2.3/16",
        "ip:0.0.0.0/0",
        "ip:::ffff:10.1.2.3",
        "ip:fe80::1",
        "ip:fe80::/10",
        "ip:::/0",
    ];
    let identities = [
        "digest:me:hash",
        "digest:me:other",
        "x509:CN=me",
        "sasl:me@REALM",
        "sasl:CN=me",
        "ip:10.1.2.3",
        "ip:10.1.99.99",
        "ip:10.2.2.3",
        "ip:::ffff:10.1.2.3",
        "ip:fe80::1",
        "ip:febf::1",
        "ip:fec0::1",
        "ip:not an address",
        "super:",
        "world:someone",
    ];
    let mut table = "Whom a grant names.\n".to_owned();
    for grant in grants {
        let acl = [Acl { perms: Perms::READ, identity: identity(grant) }];
        writeln!(table, "\n{grant}").unwrap();
        for who in identities {
            if tree::allows(&acl, Perms::READ, &[identity(who)]) {
                writeln!(table, "    {who}").unwrap();
            }
            assert_eq!(
                tree::allows(&acl, Perms::WRITE, &[identity(who)]),
                who == "super:",
                "{grant} grants reading alone"
            );
        }
    }
    expect_file!["schemes.txt"].assert_eq(&table);
}

/// Most nodes have the open ACL: it takes no memory of its own.
#[test]
fn open_acls_are_shared() {
    let mut nodes = MemoryNodes::new();
    for name in ["/a", "/b"] {
        let op = Words::new(&format!("create {name}")).op();
        let zxid = crate::world::zxid(nodes.meta().applied_zxid.counter() + 1);
        tree::apply(&mut nodes, zxid, 0, &txn(SessionId::NONE, op)).result.unwrap();
    }
    let acl = |name| nodes.node(&path(name)).unwrap().acl;
    assert!(std::sync::Arc::ptr_eq(&acl("/a"), &acl("/b")));
    assert!(std::sync::Arc::ptr_eq(&acl("/a"), &Acl::open()));
}

/// Whoever is told of a change gets the ACL that was in force with it.
#[test]
fn changes_carry_the_acl_that_says_who_may_know() {
    let mut world = world(grant(Perms::ALL, "sasl:parent"), grant(Perms::ALL, "sasl:node"));
    let applied = world.apply(&txn(SessionId::NONE, Words::new("delete /parent/node").op()));
    let who: Vec<_> =
        applied.changes.iter().map(|change| change.acl[0].identity.id.as_str()).collect();
    assert_eq!(who, ["node", "parent"]);
}
