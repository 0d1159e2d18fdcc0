//! ACLs as a table: operation × permission × scheme, every cell over both wires, and what watchers
//! are told by the permission that is in force when their watch fires.

use std::sync::Arc;

use std::collections::BTreeSet;

use conclave::server::hash_password;
use conclave_proto::{Acl, ErrorCode, Identity, Op, Perms, Reply, Zxid};

use crate::answer::{Failure, number};
use crate::certificates::{Authority, Claims};
use crate::connect::{Client, Wire, tls};
use crate::script;
use crate::server::{Server, wait_for};
use crate::words::Words;
use crate::world::{identity, path};
use crate::zookeeper::Forms;

use rcgen::DnType;

/// Where a client of the table can be told apart: what it shows and says.
#[derive(Clone, Copy, Debug)]
struct Subject {
    certificate: Option<&'static str>,
    /// A scheme, and what it takes for credentials.
    says: Option<(&'static str, &'static str)>,
}

const ANYBODY: Subject = Subject { certificate: None, says: None };
const ME: Subject = Subject { certificate: None, says: Some(("digest", "me:pw")) };
const ALICE: Subject = Subject { certificate: Some("alice"), says: None };
const EVE: Subject = Subject { certificate: Some("eve"), says: Some(("digest", "eve:pw")) };
const USER: Subject = Subject { certificate: None, says: Some(("password", "ann:wonder")) };
const SUPER: Subject = Subject { certificate: None, says: Some(("digest", "super:test")) };

/// What a line of an ACL comes to for somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grants {
    /// The permissions that it lists.
    Listed,
    Nothing,
    Everything,
}

use Grants::{Everything, Listed, Nothing};

/// The schemes: to whom a grant is made, who asks, and what the grant comes to.
const SCHEMES: [(&str, &str, Subject, Grants); 14] = [
    ("world", "world:anyone", ANYBODY, Listed),
    ("digest", "digest:me:xlpJGzVhaayvpHfFn/RwowgwqI4=", ME, Listed),
    ("digest of another", "digest:me:xlpJGzVhaayvpHfFn/RwowgwqI4=", EVE, Nothing),
    ("auth", "auth:", ME, Listed),
    ("auth of another", "auth:", EVE, Nothing),
    ("ip", "ip:127.0.0.1", ANYBODY, Listed),
    ("ip of a network", "ip:127.0.0.0/8", ANYBODY, Listed),
    ("ip of another", "ip:10.0.0.1", ANYBODY, Nothing),
    ("x509", "x509:CN=alice", ALICE, Listed),
    ("x509 of another", "x509:CN=alice", EVE, Nothing),
    ("password", "password:ann", USER, Listed),
    ("password of another", "password:ann", EVE, Nothing),
    ("sasl, which nobody can show", "sasl:me@REALM", ME, Nothing),
    ("super", "digest:me:xlpJGzVhaayvpHfFn/RwowgwqI4=", SUPER, Everything),
];

/// What each operation on `~/n`, a node without children, needs: permissions of the node of which
/// one is enough, and permissions of its parent.
const OPERATIONS: [(&str, &str, &str); 35] = [
    ("get ~/n", "r", ""),
    ("watching get ~/n", "r", ""),
    ("exists ~/n", "r", ""),
    ("watching exists ~/n", "r", ""),
    ("ls ~/n", "r", ""),
    ("watching ls ~/n", "r", ""),
    ("ls ~/n stat data", "r", ""),
    ("tree ~/n", "r", ""),
    ("count ~/n", "r", ""),
    ("acl ~/n", "ra", ""),
    ("read get ~/n", "r", ""),
    ("read exists ~/n", "r", ""),
    ("read ls ~/n", "r", ""),
    ("set ~/n x", "w", ""),
    ("setacl ~/n r=world:anyone", "a", ""),
    ("create ~/n/child", "c", ""),
    ("create -s ~/n/child-", "c", ""),
    ("create -e ~/n/child", "c", ""),
    ("create -c ~/n/child", "c", ""),
    ("create -t 100000000 ~/n/child", "c", ""),
    ("ensure ~/n/child", "c", ""),
    ("delete ~/n", "", "d"),
    ("drop ~/n", "", "d"),
    ("prune ~/n 5", "", "d"),
    ("require ~/n is missing", "r", ""),
    ("require ~/n is stat children 0", "r", ""),
    ("multi then check ~/n", "r", ""),
    ("multi then set ~/n x", "w", ""),
    ("multi then create ~/n/child", "c", ""),
    ("multi then create -e ~/n/child", "c", ""),
    ("multi then ensure ~/n/child", "c", ""),
    ("multi then delete ~/n", "", "d"),
    ("multi then drop ~/n", "", "d"),
    ("multi then prune ~/n 5", "", "d"),
    ("multi then require ~/n is missing", "r", ""),
];

const LETTERS: [&str; 5] = ["r", "w", "c", "d", "a"];

fn perms(letters: &str) -> Perms {
    let bit = |letter| 1 << "rwcda".find(letter).expect("a permission");
    Perms(letters.chars().map(bit).sum())
}

fn acl(letters: &str, who: &str) -> Vec<Acl> {
    // An ACL must name somebody: who is given nothing is not named.
    let nobody = Identity { scheme: "sasl".into(), id: "nobody".into() };
    let who = if letters.is_empty() { nobody } else { identity(who) };
    vec![Acl { perms: perms(letters), identity: who }]
}

/// A server that knows its clients by their certificates, if they have some.
struct Stage {
    authority: Authority,
    server: Server,
    /// Who makes and changes the nodes of the tables.
    owner: Box<dyn Client>,
}

impl Stage {
    fn start() -> Stage {
        let authority = Authority::new();
        authority.issue("server", Claims::default());
        for name in ["alice", "eve"] {
            let subject = [(DnType::CommonName, name)];
            authority.issue(name, Claims { subject: &subject, ..Claims::default() });
        }
        let path = |file: &str| authority.path(file).to_str().unwrap().to_owned();
        let (cert, key, ca) = (path("server.pem"), path("server.key"), path("ca.pem"));
        let hash = hash_password(b"wonder");
        let users = format!("users=[{{ name = 'ann', hash = '{hash}' }}]");
        let server = Server::start_with(&[
            "--tls-cert",
            &cert,
            "--tls-key",
            &key,
            "--tls-ca",
            &ca,
            "--tls-client-auth",
            "optional",
            "--zookeeper-secure",
            "127.0.0.1:0",
            "--set",
            "super_digest='super:D/InIHSb7yEEbrWz8b9l71RjZJU='",
            "--set",
            &users,
        ]);
        wait_for("the server to serve", || server.get("/ready").starts_with("ready").then_some(()));
        let mut owner = open(&server, &authority, Wire::Native, SUPER);
        // What it writes for `auth:` is for `me`.
        authenticate(&mut *owner, "digest", "me:pw");
        Stage { authority, server, owner }
    }

    fn open(&self, wire: Wire, subject: Subject) -> Box<dyn Client> {
        open(&self.server, &self.authority, wire, subject)
    }

    /// Carries out all of this, or fails.
    fn own(&mut self, ops: Vec<Op>) {
        for ops in ops.chunks(1000) {
            let (conditions, otherwise) = (Vec::new(), Vec::new());
            let multi = Op::Multi { conditions, then: ops.to_vec(), otherwise };
            self.owner.ask(&multi).result.unwrap();
        }
    }
}

fn open(server: &Server, authority: &Authority, wire: Wire, who: Subject) -> Box<dyn Client> {
    let address = match wire {
        Wire::Native => server.client,
        Wire::ZooKeeper(_) => server.zookeeper_secure.expect("there is TLS"),
    };
    let mut client = wire.open(Box::new(tls(authority, address, who.certificate)));
    if let Some((scheme, credentials)) = who.says {
        authenticate(&mut *client, scheme, credentials);
    }
    client
}

fn authenticate(client: &mut dyn Client, scheme: &str, credentials: &str) {
    let credentials = credentials.to_owned().into();
    let op = Op::Authenticate { scheme: scheme.into(), credentials };
    client.ask(&op).result.unwrap();
}

fn op(text: &str) -> Op {
    let mut words = Words::new(text);
    let op = script::op(&mut words, None);
    words.end();
    op
}

fn create(at: &str, acl: impl Into<Arc<[Acl]>>) -> Op {
    let mode = conclave_proto::CreateMode::PERSISTENT;
    Op::Create { path: path(at), data: None, acl: acl.into(), mode }
}

/// The failure of a request, or of the one read in it.
fn failure(result: Result<Reply, Failure>) -> Option<i32> {
    match result {
        Ok(Reply::MultiRead(results)) => results[0].as_ref().err().map(|fault| number(fault.code)),
        Ok(_) => None,
        Err((code, _)) => Some(code),
    }
}

const ZOOKEEPER: Wire = Wire::ZooKeeper(Forms::New);

#[test]
fn each_operation_needs_its_permission_whatever_the_scheme() {
    each_operation_needs_its_permission(Wire::Native);
}

#[test]
fn each_operation_of_zookeepers_needs_its_permission_whatever_the_scheme() {
    each_operation_needs_its_permission(ZOOKEEPER);
}

/// Each permission alone, on the node alone and on its parent alone.
fn each_operation_needs_its_permission(wire: Wire) {
    let mut stage = Stage::start();
    for (row, (scheme, who, subject, grants)) in SCHEMES.into_iter().enumerate() {
        let cells: Vec<_> = OPERATIONS
            .iter()
            .flat_map(|operation| LETTERS.map(|letter| (operation, letter)))
            .flat_map(|(operation, letter)| [(operation, letter, ""), (operation, "", letter)])
            .enumerate()
            .map(|(cell, (operation, node, parent))| {
                (format!("/{row}/{cell}"), *operation, node, parent)
            })
            .collect();
        let mut ops = vec![create(&format!("/{row}"), Acl::open())];
        for (home, _, node, parent) in &cells {
            ops.push(create(home, acl(parent, who)));
            ops.push(create(&format!("{home}/n"), acl(node, who)));
        }
        stage.own(ops);
        let mut client = stage.open(wire, subject);
        for (home, (operation, of_node, of_parent), node, parent) in cells {
            let is_enough = |needed: &str, given: &str| !given.is_empty() && needed.contains(given);
            let expected = match grants {
                Listed => is_enough(of_node, node) || is_enough(of_parent, parent),
                Nothing => false,
                Everything => true,
            };
            let failure = failure(client.ask(&op(&operation.replace('~', &home))).result);
            let found = match failure {
                None => true,
                // What is asked for is there, which only they may know who may read it.
                Some(code) if code == number(ErrorCode::NodeExists) => true,
                Some(code) if code == number(ErrorCode::NoAuth) => false,
                Some(code) => panic!("{wire:?}, {scheme}, {operation}: error {code}"),
            };
            assert_eq!(
                found, expected,
                "{wire:?}, {scheme}: {operation} with {node:?} on the node, {parent:?} on its parent"
            );
        }
    }
}

const KINDS: [&str; 5] = ["data", "exists", "children", "persistent", "recursive"];

/// What happens to a node that is watched.
const CHANGES: [&str; 4] = ["set", "delete", "child", "create"];

/// What a watch of this kind on a node is told of a change, if it is told: a path.
fn event_of(kind: &str, change: &str) -> Option<&'static str> {
    match (kind, change) {
        ("data" | "exists" | "persistent" | "recursive", "set" | "delete") => Some(""),
        ("children", "delete" | "child") | ("persistent", "child") => Some(""),
        ("recursive", "child") => Some("/child"),
        ("exists" | "persistent" | "recursive", "create") => Some(""),
        _ => None,
    }
}

/// How a watch comes to know of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watching {
    /// It is there when the change is made.
    Already,
    /// It is set again afterwards, from before the change.
    Again,
}

/// Everybody may read when the watches are set; the ACL is another one when they fire.
fn watchers_are_told_by_the_permission_at_the_moment(wire: Wire, watching: Watching) {
    let mut stage = Stage::start();
    for (row, (scheme, who, subject, grants)) in SCHEMES.into_iter().enumerate() {
        let cells: Vec<_> = KINDS
            .iter()
            .flat_map(|kind| CHANGES.map(|change| (*kind, change)))
            .filter(|(kind, change)| *change != "create" || !matches!(*kind, "data" | "children"))
            .flat_map(|(kind, change)| ["r", "wcda"].map(|letters| (kind, change, letters)))
            .enumerate()
            .map(|(cell, (kind, change, letters))| {
                (format!("/{row}/{cell}"), kind, change, letters)
            })
            .collect();
        let mut client = stage.open(wire, subject);
        let mut ops = vec![create(&format!("/{row}"), Acl::open())];
        ops.extend(
            cells.iter().filter(|cell| cell.2 != "create").map(|cell| create(&cell.0, Acl::open())),
        );
        stage.own(ops);
        let mark = client.ask(&op("exists /")).zxid;
        if watching == Watching::Already {
            for (at, kind, ..) in &cells {
                client.ask(&watch(kind, at, None));
            }
        }
        let existing = || cells.iter().filter(|cell| cell.2 != "create");
        let secure = |(at, _, _, letters): &(String, &str, &str, &str)| Op::SetAcl {
            path: path(at),
            acl: acl(letters, who).into(),
            version: None,
        };
        stage.own(existing().map(secure).collect());
        let change = |(at, _, change, letters): &(String, &str, &str, &str)| match *change {
            "set" => op(&format!("set {at} x")),
            "delete" => op(&format!("delete {at}")),
            "child" => create(&format!("{at}/child"), acl(letters, who)),
            _ => create(at, acl(letters, who)),
        };
        stage.own(cells.iter().map(change).collect());
        client.ask(&op("sync /"));
        if watching == Watching::Again {
            for (at, kind, ..) in &cells {
                client.ask(&watch(kind, at, Some(Zxid::from_bits(mark)))).result.unwrap();
            }
        }
        let told: BTreeSet<String> = client.told().into_iter().map(|told| told.path).collect();
        for (at, kind, change, letters) in &cells {
            let may_read = match grants {
                Listed => letters.contains('r'),
                Nothing => false,
                Everything => true,
            };
            // That there is no node is no secret, and a client that waits for one to change would
            // do so for ever.
            let is_no_secret = watching == Watching::Again
                && *change == "delete"
                && matches!(*kind, "data" | "children");
            let event = event_of(kind, change);
            let expected = event.is_some() && (may_read || is_no_secret);
            let found = told.contains(&format!("{at}{}", event.unwrap_or_default()));
            assert_eq!(
                found, expected,
                "{wire:?}, {scheme}: a {kind} watch, {change}, with {letters:?} {watching:?}"
            );
        }
        let known: BTreeSet<_> = cells
            .iter()
            .flat_map(|cell| event_of(cell.1, cell.2).map(|below| format!("{}{below}", cell.0)))
            .collect();
        assert!(told.is_subset(&known), "{wire:?}, {scheme}: {told:?}");
    }
}

fn watch(kind: &str, at: &str, since: Option<Zxid>) -> Op {
    let command = match (kind, since) {
        (kind, Some(_)) => format!("rearms {kind} {at}"),
        ("data", None) => format!("watching get {at}"),
        ("exists", None) => format!("watching exists {at}"),
        ("children", None) => format!("watching ls {at}"),
        (kind, None) => format!("watch {kind} {at}"),
    };
    script::op(&mut Words::new(&command), since)
}

#[test]
fn watchers_who_lost_the_permission_are_told_nothing() {
    for wire in [Wire::Native, ZOOKEEPER] {
        watchers_are_told_by_the_permission_at_the_moment(wire, Watching::Already);
    }
}

#[test]
fn watchers_who_come_back_are_told_nothing_that_they_might_not_know() {
    for wire in [Wire::Native, ZOOKEEPER] {
        watchers_are_told_by_the_permission_at_the_moment(wire, Watching::Again);
    }
}
