//! Every bound is a refusal, and nothing that comes from the network makes the machine panic.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use conclave::limits;
use conclave::tree::{self, Applied, MemoryNodes, Nodes};
use conclave_proto::request::{Condition, Entry, Page, Test};
use conclave_proto::{
    Acl, CreateMode, ErrorCode, Fault, Identity, Lifetime, Op, Perms, Reply, Secret, SessionId,
    WatchId, WatchKind, Xid, ZPath, convert,
};

use crate::world::{World, path, txn, zxid};

const CLIENT: SessionId = SessionId(1);

/// A tree with one session, that is not audited at each step: it may grow large.
struct Large(MemoryNodes);

impl Large {
    fn new() -> Large {
        let mut large = Large(MemoryNodes::new());
        let secret = Secret::new([0; 16]);
        large.apply(0, Op::CreateSession { session: CLIENT, timeout_ms: 1000, secret });
        large
    }

    fn apply(&mut self, xid: u64, op: Op) -> Applied {
        let session = if matches!(op, Op::CreateSession { .. }) { SessionId::NONE } else { CLIENT };
        let mut txn = txn(session, op);
        txn.request.xid = Xid(xid);
        let next = zxid(self.0.meta().applied_zxid.counter() + 1);
        tree::apply(&mut self.0, next, 0, &txn)
    }

    fn fails(&mut self, op: Op) -> ErrorCode {
        self.apply(0, op).result.unwrap_err().code
    }

    fn create(&mut self, at: &str, size: usize) {
        self.apply(0, create(at, size)).result.unwrap();
    }

    fn read(&self, op: &Op) -> Result<Reply, Fault> {
        tree::read(&self.0, &[], CLIENT, op)
    }

    fn page(&self, op: &Op) -> (Vec<Entry>, bool) {
        match self.read(op) {
            Ok(Reply::Children { entries, more, .. }) => (entries, more),
            other => panic!("not a listing: {other:?}"),
        }
    }
}

fn create(at: &str, size: usize) -> Op {
    let data = Some(Bytes::from(vec![b'x'; size]));
    Op::Create { path: path(at), data, acl: Acl::open(), mode: CreateMode::PERSISTENT }
}

fn children(at: &str, limit: u32, with_data: bool) -> Op {
    let page = Page { limit, with_data, ..Page::default() };
    Op::Children { path: path(at), watch: None, page }
}

fn get(at: &str) -> Op {
    Op::Get { path: path(at), watch: None }
}

/// To look for what is left of a tree costs as much as the tree had nodes.
#[test]
fn a_transaction_does_not_delete_the_same_tree_for_ever() {
    let mut large = Large::new();
    large.create("/a", 0);
    (1..500).for_each(|child| large.create(&format!("/a/{child}"), 0));
    let tree = |times: usize| {
        let again = [create("/a", 0), Op::DeleteTree { path: path("/a"), limit: 0 }];
        let then = again.into_iter().cycle().skip(1).take(2 * times).collect();
        Op::Multi { conditions: vec![], then, otherwise: vec![] }
    };
    let times = limits::TREE_NODES / 500;
    assert_eq!(large.fails(tree(times + 1)), ErrorCode::TooLarge);
    let applied = large.apply(0, tree(times));
    assert!(applied.result.is_ok(), "{:?}", applied.result);
    assert!(applied.nodes >= limits::TREE_NODES);
}

#[test]
fn every_part_of_a_transaction_costs_something() {
    let mut tree = Large::new();
    let parts = [
        Op::SetAcl { path: path("/"), acl: Acl::open(), version: None },
        Op::Check { path: path("/"), version: None },
        Op::SetData { path: path("/"), data: None, version: None },
        Op::DeleteIfExists { path: path("/none"), version: None },
    ];
    for part in parts {
        let then = vec![part.clone(); limits::MULTI_OPS];
        let op = Op::Multi { conditions: vec![], then, otherwise: vec![] };
        let applied = tree.apply(0, op);
        assert!(applied.result.is_ok(), "{part:?}");
        assert!(applied.nodes >= limits::MULTI_OPS, "{part:?} costs {}", applied.nodes);
    }
    let condition = Condition { path: path("/"), test: Test::Missing };
    let conditions = vec![condition; limits::MULTI_OPS];
    let op = Op::Multi { conditions, then: vec![], otherwise: vec![] };
    assert!(tree.apply(0, op).nodes >= limits::MULTI_OPS);
}

#[test]
fn a_value_has_a_largest_size() {
    let mut tree = Large::new();
    tree.create("/a", limits::VALUE_BYTES);
    assert_eq!(tree.fails(create("/b", limits::VALUE_BYTES + 1)), ErrorCode::TooLarge);
    let data = Some(Bytes::from(vec![0; limits::VALUE_BYTES + 1]));
    let set = Op::SetData { path: path("/a"), data, version: None };
    assert_eq!(tree.fails(set), ErrorCode::TooLarge);
}

#[test]
fn the_acls_of_a_transaction_are_no_larger_than_a_request_that_says_them() {
    let mut tree = Large::new();
    let identity = |number| {
        let user = format!("{number}{}", "u".repeat(limits::IDENTITY_BYTES - 10));
        Identity { scheme: "digest".into(), id: format!("{user}:x") }
    };
    let auth = Identity { scheme: "auth".into(), id: String::new() };
    let acl: Arc<[Acl]> = [Acl { perms: Perms::ALL, identity: auth }].into();
    let create = |number| {
        let (path, acl, mode) = (path(&format!("/{number}")), acl.clone(), CreateMode::PERSISTENT);
        Op::Create { path, data: None, acl, mode }
    };
    let mut make = |nodes: std::ops::Range<usize>| {
        let then = nodes.map(create).collect();
        let op = Op::Multi { conditions: vec![], then, otherwise: vec![] };
        let mut txn = txn(CLIENT, op);
        txn.identities = (0..limits::ACL_LINES).map(identity).collect();
        let next = zxid(tree.0.meta().applied_zxid.counter() + 1);
        tree::apply(&mut tree.0, next, 0, &txn).result.map(drop).map_err(|fault| fault.code)
    };
    let fitting = limits::FRAME_BYTES / limits::ACL_LINES / (limits::IDENTITY_BYTES + 20);
    assert_eq!(make(0..fitting), Ok(()));
    assert_eq!(make(100..200), Err(ErrorCode::TooLarge));
}

#[test]
fn an_acl_has_a_largest_size() {
    let mut tree = Large::new();
    let acl = |lines| vec![Acl::open()[0].clone(); lines];
    let mode = CreateMode::PERSISTENT;
    let with =
        |at: &str, acl: Vec<Acl>| Op::Create { path: path(at), data: None, acl: acl.into(), mode };
    tree.apply(0, with("/a", acl(limits::ACL_LINES))).result.unwrap();
    assert_eq!(tree.fails(with("/b", acl(limits::ACL_LINES + 1))), ErrorCode::InvalidAcl);
    let mut long = acl(1);
    long[0].identity = conclave_proto::Identity {
        scheme: "sasl".to_owned(),
        id: "x".repeat(limits::IDENTITY_BYTES + 1),
    };
    assert_eq!(tree.fails(with("/b", long)), ErrorCode::InvalidAcl);
    let mut unknown = acl(1);
    unknown[0].perms = Perms(32);
    assert_eq!(tree.fails(with("/b", unknown)), ErrorCode::InvalidAcl);
}

#[test]
fn a_multi_has_a_most() {
    let mut tree = Large::new();
    let check = Op::Check { path: ZPath::root(), version: None };
    let multi = |then: usize, otherwise: usize| Op::Multi {
        conditions: Vec::new(),
        then: vec![check.clone(); then],
        otherwise: vec![check.clone(); otherwise],
    };
    tree.apply(0, multi(limits::MULTI_OPS, 0)).result.unwrap();
    assert_eq!(tree.fails(multi(limits::MULTI_OPS, 1)), ErrorCode::TooLarge);
    let read = Op::MultiRead(vec![get("/"); limits::MULTI_OPS + 1]);
    assert_eq!(tree.read(&read).unwrap_err().code, ErrorCode::TooLarge);
}

#[test]
fn a_number_does_not_make_a_path_too_long() {
    let mut tree = Large::new();
    let sequential = |length: usize| Op::Create {
        path: path(&format!("/{}", "x".repeat(length - 1))),
        data: None,
        acl: Acl::open(),
        mode: CreateMode::PERSISTENT_SEQUENTIAL,
    };
    tree.apply(0, sequential(limits::PATH_BYTES - 10)).result.unwrap();
    assert_eq!(tree.fails(sequential(limits::PATH_BYTES - 9)), ErrorCode::BadArguments);
}

#[test]
fn a_number_has_ten_digits() {
    let mut tree = Large::new();
    tree.create("/a", 0);
    let mut node = tree.0.node(&path("/a")).unwrap();
    node.children_created = 9_999_999_999;
    tree.0.put_node(&path("/a"), node);
    let mode = CreateMode::PERSISTENT_SEQUENTIAL;
    let next = || Op::Create { path: path("/a/n-"), data: None, acl: Acl::open(), mode };
    let Ok(Reply::Created { path: last, .. }) = tree.apply(0, next()).result else {
        panic!("the last number is a number")
    };
    assert_eq!(last, path("/a/n-9999999999"));
    assert_eq!(tree.fails(next()), ErrorCode::SequenceOverflow);
    tree.create("/a/without", 0);
}

#[test]
fn a_session_has_a_most_ephemeral_nodes() {
    let mut tree = Large::new();
    let create = |name: &str, lifetime| {
        let mode = CreateMode { lifetime, ..CreateMode::default() };
        Op::Create { path: path(name), data: None, acl: Acl::open(), mode }
    };
    let ephemeral = |name: &str| create(name, Lifetime::Ephemeral);
    for n in 1..limits::EPHEMERALS_PER_SESSION {
        tree.apply(0, ephemeral(&format!("/{n}"))).result.unwrap();
    }
    tree.apply(0, create("/lingers", Lifetime::Lingering(1))).result.unwrap();
    assert_eq!(tree.fails(ephemeral("/more")), ErrorCode::TooLarge);
    assert_eq!(tree.fails(create("/more", Lifetime::Lingering(1))), ErrorCode::TooLarge);
    tree.create("/persistent", 0);

    // What a transaction deletes makes room in it, and what it creates takes room.
    let delete = |name: &str| Op::Delete { path: path(name), version: None };
    let multi = |then| Op::Multi { conditions: vec![], then, otherwise: vec![] };
    let swap = vec![delete("/1"), ephemeral("/more")];
    tree.apply(0, multi(swap)).result.unwrap();
    let two = vec![delete("/2"), ephemeral("/a"), ephemeral("/b")];
    assert_eq!(tree.fails(multi(two)), ErrorCode::TooLarge);
    tree::audit(&tree.0).unwrap();

    tree.apply(0, Op::CloseSession).result.unwrap();
    tree.apply(
        0,
        Op::CreateSession { session: CLIENT, timeout_ms: 1, secret: Secret::new([0; 16]) },
    );
    tree.apply(0, ephemeral("/1")).result.unwrap();
    tree::audit(&tree.0).unwrap();
}

#[test]
fn a_recursive_delete_has_a_most() {
    let mut tree = Large::new();
    tree.create("/a", 0);
    for n in 0..limits::DELETE_MANY + 5 {
        tree.create(&format!("/a/{n}"), 0);
    }
    let delete = Op::DeleteRecursive { path: path("/a"), limit: u32::MAX };
    let all = Reply::DeletedMany { deleted: limits::DELETE_MANY, more: true };
    assert_eq!(tree.apply(0, delete.clone()).result, Ok(all));
    let rest = Reply::DeletedMany { deleted: 6, more: false };
    assert_eq!(tree.apply(0, delete).result, Ok(rest));
    tree::audit(&tree.0).unwrap();
}

#[test]
fn a_page_has_a_most_entries() {
    let mut tree = Large::new();
    tree.create("/a", 0);
    for n in 0..=limits::PAGE_ENTRIES {
        tree.create(&format!("/a/{n}"), 0);
    }
    for limit in [0, 1, 3, u32::MAX - 1] {
        let most = if limit == 0 { limits::PAGE_ENTRIES } else { limit as usize };
        let most = most.min(limits::PAGE_ENTRIES);
        let (entries, more) = tree.page(&children("/a", limit, false));
        assert_eq!((entries.len(), more), (most, true));
        let page = Page { limit, ..Page::default() };
        let (entries, more) = tree.page(&Op::ListRecursive { path: path("/a"), page });
        assert_eq!((entries.len(), more), (most, true));
    }
    let whole = Op::Children { path: path("/a"), watch: None, page: Page::WHOLE };
    let Ok(Reply::Names { names, stat }) = tree.read(&whole) else { panic!("not a listing") };
    assert_eq!(names.count() as usize, limits::PAGE_ENTRIES + 1);
    assert_eq!(names.iter().count(), stat.num_children as usize);
}

#[test]
fn a_page_has_a_most_bytes() {
    let mut tree = Large::new();
    tree.create("/a", 0);
    for n in 0..limits::PAGE_BYTES / 256 {
        tree.create(&format!("/a/{n:0256}"), 0);
    }
    let (entries, more) = tree.page(&children("/a", 0, false));
    let bytes: usize = entries.iter().map(|entry| entry.name.len()).sum();
    assert!(more && bytes <= limits::PAGE_BYTES && bytes > limits::PAGE_BYTES / 2, "{bytes}");
}

#[test]
fn a_page_has_at_least_one_entry() {
    let mut tree = Large::new();
    tree.create("/a", 0);
    for name in ["/a/1", "/a/2", "/a/3"] {
        tree.create(name, limits::VALUE_BYTES);
    }
    let (entries, more) = tree.page(&children("/a", 0, true));
    assert_eq!((entries.len(), more), (1, true));
    let (entries, more) = tree.page(&children("/a", 0, false));
    assert_eq!((entries.len(), more), (3, false));
}

#[test]
fn a_multi_read_fits_a_frame() {
    let mut tree = Large::new();
    tree.create("/a", limits::VALUE_BYTES);
    tree.create("/b", 10);
    let missing = get("/missing");
    let Ok(Reply::MultiRead(results)) =
        tree.read(&Op::MultiRead(vec![missing, get("/a"), get("/b"), get("/a"), get("/b")]))
    else {
        panic!("a multi-read is answered as a whole")
    };
    let codes: Vec<_> =
        results.into_iter().map(|result| result.map(|_| ()).map_err(|fault| fault.code)).collect();
    let too_large = Err(ErrorCode::TooLarge);
    assert_eq!(codes, [Err(ErrorCode::NoNode), Ok(()), Ok(()), too_large, too_large]);
}

#[test]
fn counting_has_an_end() {
    let mut tree = Large::new();
    tree.create("/a", 0);
    for n in 0..limits::COUNT_NODES {
        tree.create(&format!("/a/{n}"), 0);
    }
    let count = |at| Op::CountDescendants { path: path(at) };
    assert_eq!(tree.read(&count("/a")), Ok(Reply::Count(limits::COUNT_NODES)));
    tree.create("/a/one-more", 0);
    assert_eq!(tree.read(&count("/a")).unwrap_err().code, ErrorCode::TooLarge);
    assert_eq!(tree.read(&count("/")), Ok(Reply::Count(limits::COUNT_NODES + 5)));
}

#[test]
fn counting_for_a_quota_has_an_end() {
    let mut tree = Large::new();
    tree.create("/a", 0);
    for n in 0..limits::QUOTA_NODES {
        tree.create(&format!("/a/{n}"), 0);
    }
    tree.create("/a/one-more", 0);
    tree.create("/zookeeper/quota/a", 0);
    let stats = "/zookeeper/quota/a/zookeeper_stats";
    assert_eq!(tree.fails(create(stats, 0)), ErrorCode::TooLarge);
    let delete = Op::Delete { path: path("/a/one-more"), version: None };
    assert!(tree.apply(0, delete).result.is_ok());
    // Once, but not twice in one transaction.
    let remove = Op::Delete { path: path(stats), version: None };
    let then = vec![create(stats, 0), remove, create(stats, 0)];
    let multi = Op::Multi { conditions: vec![], then, otherwise: vec![] };
    assert_eq!(tree.fails(multi), ErrorCode::TooLarge);
    tree.create(stats, 0);
    // What is counted already is not counted again by those who write there.
    tree.create("/a/one-more", 0);
    let again = Op::SetData { path: path(stats), data: None, version: None };
    let multi = Op::Multi { conditions: vec![], then: vec![again; 3], otherwise: vec![] };
    assert!(tree.apply(0, multi).result.is_ok());
    let Ok(Reply::Data { data, stat }) = tree.read(&get(stats)) else { panic!("it is there") };
    let expected = format!("count={},bytes=0", limits::QUOTA_NODES + 2);
    assert_eq!((data, stat.version), (Some(Bytes::from(expected)), 3));
}

#[test]
fn a_list_of_ephemerals_fits_a_frame() {
    let mut tree = Large::new();
    let mode = CreateMode::EPHEMERAL;
    for n in 0..=limits::VALUE_BYTES / 1024 {
        let path = path(&format!("/{n:01023}"));
        tree.apply(0, Op::Create { path, data: None, acl: Acl::open(), mode }).result.unwrap();
    }
    let all = Op::Ephemerals { prefix: "/".to_owned() };
    assert_eq!(tree.read(&all).unwrap_err().code, ErrorCode::TooLarge);
    let one = Op::Ephemerals { prefix: format!("/{:01023}", 7) };
    assert!(matches!(tree.read(&one), Ok(Reply::Paths(paths)) if paths.len() == 1));
    assert!(tree.apply(0, Op::CloseSession).result.is_ok());
    tree::audit(&tree.0).unwrap();
}

#[test]
fn so_many_outcomes_are_kept() {
    let mut tree = Large::new();
    let set = || Op::SetData { path: ZPath::root(), data: None, version: None };
    let last = limits::IN_FLIGHT as u64 + 1;
    for xid in 1..=last {
        tree.apply(xid, set()).result.unwrap();
    }
    assert_eq!(tree.0.session(CLIENT).unwrap().outcomes.len(), limits::IN_FLIGHT);
    let kept = tree.apply(2, set());
    assert!(kept.duplicate && kept.result.is_ok());
    assert_eq!(tree.apply(1, set()).result.unwrap_err().code, ErrorCode::OutcomeUnknown);
}

#[test]
fn so_many_bytes_of_outcomes_are_kept() {
    let mut tree = Large::new();
    let path = path(&format!("/{}", "x".repeat(4000)));
    let mode = CreateMode::PERSISTENT;
    let create = Op::Create { path: path.clone(), data: None, acl: Acl::open(), mode };
    let pair = [create, Op::Delete { path, version: None }];
    let then: Vec<Op> = pair.into_iter().cycle().take(limits::MULTI_OPS / 20).collect();
    let many = Op::Multi { conditions: Vec::new(), then, otherwise: Vec::new() };
    let last = 2 * limits::OUTCOME_BYTES as u64 / 100_000;
    for xid in 1..=last {
        tree.apply(xid, many.clone()).result.unwrap();
    }
    let mut value = BytesMut::new();
    for outcome in tree.0.session(CLIENT).unwrap().outcomes.iter() {
        convert::encode_result(&outcome.result, &mut value);
    }
    assert!(value.len() <= limits::OUTCOME_BYTES, "{} bytes", value.len());
    assert!(value.len() > limits::OUTCOME_BYTES / 2, "{} bytes", value.len());
    let kept = tree.apply(last, many.clone());
    assert!(kept.duplicate && kept.result.is_ok());
    assert_eq!(tree.apply(1, many).result.unwrap_err().code, ErrorCode::OutcomeUnknown);
}

#[test]
fn what_is_not_a_write_is_not_applied_and_what_is_not_a_read_is_not_read() {
    let mut tree = Large::new();
    let root = ZPath::root;
    let no_reads = [
        Op::Sync { path: root() },
        Op::Unwatch { id: WatchId(1) },
        Op::Authenticate { scheme: "digest".to_owned(), credentials: Bytes::new().into() },
        Op::WhoAmI,
        Op::Watch {
            id: WatchId(1),
            path: root(),
            kind: WatchKind::Data,
            since: None,
            with_value: false,
        },
    ];
    for op in no_reads {
        assert_eq!(tree.fails(op.clone()), ErrorCode::BadArguments, "{op:?}");
        assert_eq!(tree.read(&op).unwrap_err().code, ErrorCode::BadArguments, "{op:?}");
    }
    assert_eq!(tree.fails(get("/")), ErrorCode::BadArguments);
    assert_eq!(tree.read(&create("/a", 0)).unwrap_err().code, ErrorCode::BadArguments);
    assert_eq!(tree.read(&Op::CloseSession).unwrap_err().code, ErrorCode::BadArguments);
}

#[test]
fn a_client_opens_no_session_but_its_own() {
    let mut tree = Large::new();
    let secret = Secret::new([0; 16]);
    let open = |session| Op::CreateSession { session, timeout_ms: 1, secret };
    let asked = |session| txn(CLIENT, open(session));
    let applied = tree::apply(&mut tree.0, zxid(2), 0, &asked(SessionId(2)));
    assert_eq!(applied.result, Err(ErrorCode::BadArguments.into()));
    assert_eq!(tree.fails(open(SessionId::NONE)), ErrorCode::BadArguments);
}

#[test]
#[should_panic(expected = "upgrade")]
fn rules_of_the_future_are_not_guessed() {
    let mut txn = txn(SessionId::NONE, create("/a", 0));
    txn.semantics = tree::SEMANTICS + 1;
    tree::apply(&mut MemoryNodes::new(), zxid(1), 0, &txn);
}

#[test]
#[should_panic(expected = "comes after")]
fn no_transaction_is_applied_twice() {
    let mut nodes = MemoryNodes::new();
    let txn = txn(SessionId::NONE, create("/a", 0));
    tree::apply(&mut nodes, zxid(1), 0, &txn);
    tree::apply(&mut nodes, zxid(1), 0, &txn);
}

/// A value of a few bytes comes out of a large batch; to keep it must not keep the batch.
#[test]
fn a_node_does_not_keep_the_message_it_came_in() {
    let message = Bytes::from(vec![7; 1 << 20]);
    let data = Some(message.slice(10..13));
    let (a, acl, mode) = (path("/a"), Acl::open(), CreateMode::PERSISTENT);
    let mut world = World::new();
    for op in [
        Op::Create { path: a.clone(), data: data.clone(), acl, mode },
        Op::SetData { path: a.clone(), data: data.clone(), version: None },
    ] {
        assert!(world.apply(&txn(SessionId::NONE, op)).result.is_ok());
        let kept = world.nodes.node(&a).unwrap().data;
        assert_eq!(kept, data);
        assert!(!message.as_ptr_range().contains(&kept.unwrap().as_ptr()));
    }
}

/// Who finds a node that it wanted to create is shown its statistics only if it may read it.
#[test]
fn create_if_missing_shows_nothing_that_one_may_not_read() {
    let mut large = Large::new();
    let identity = Identity { scheme: "digest".into(), id: "x:y".into() };
    let acl = [Acl { perms: Perms::ALL, identity }].into();
    let mode = CreateMode::PERSISTENT;
    let hidden = Op::Create { path: path("/s"), data: None, acl, mode };
    assert!(large.apply(0, hidden).result.is_ok());
    let again = Op::CreateIfMissing { path: path("/s"), data: None, acl: Acl::open(), mode };
    assert_eq!(large.fails(again), ErrorCode::NoAuth);
}

/// What a transaction deletes of another session's makes no room for its own.
#[test]
fn the_end_of_others_ephemeral_nodes_makes_no_room() {
    let mut large = Large::new();
    let other = SessionId(2);
    let (timeout_ms, secret) = (1000, Secret::new([1; 16]));
    large.apply(0, Op::CreateSession { session: other, timeout_ms, secret });
    let ephemeral = |at: String| Op::Create {
        path: path(&at),
        data: None,
        acl: Acl::open(),
        mode: CreateMode::EPHEMERAL,
    };
    let next = zxid(large.0.meta().applied_zxid.counter() + 1);
    let of_other = txn(other, ephemeral("/other".into()));
    assert!(tree::apply(&mut large.0, next, 0, &of_other).result.is_ok());
    for number in 0..limits::EPHEMERALS_PER_SESSION {
        assert!(large.apply(0, ephemeral(format!("/{number}"))).result.is_ok());
    }
    let delete = |at: &str| Op::Delete { path: path(at), version: None };
    let both = |first| {
        let then = vec![first, ephemeral("/more".into())];
        Op::Multi { conditions: vec![], then, otherwise: vec![] }
    };
    assert_eq!(large.fails(both(delete("/other"))), ErrorCode::TooLarge);
    assert!(large.apply(0, both(delete("/0"))).result.is_ok());
}

/// What the transaction has deleted before is not in the way of what it deletes with a tree, and all
/// trees of a transaction together are as many as one may be.
#[test]
fn the_trees_of_a_transaction_are_counted_together() {
    let most = limits::DELETE_MANY as usize;
    let mut large = Large::new();
    for top in ["/a", "/b"] {
        large.create(top, 0);
        for number in 0..most - 1 {
            large.create(&format!("{top}/{number:06}"), 0);
        }
    }
    let tree = |at: &str| Op::DeleteTree { path: path(at), limit: 0 };
    let multi = |then| Op::Multi { conditions: vec![], then, otherwise: vec![] };
    assert_eq!(large.fails(multi(vec![tree("/a"), tree("/b")])), ErrorCode::NotEmpty);
    let delete =
        |number: usize| Op::Delete { path: path(&format!("/a/{number:06}")), version: None };
    // The first ones are gone already; the last ones are found all the same.
    let some: Vec<Op> = (0..50)
        .map(delete)
        .chain([Op::DeleteTree { path: path("/a"), limit: limits::DELETE_MANY - 50 }])
        .collect();
    assert!(large.apply(0, multi(some)).result.is_ok());
    assert!(large.0.node(&path("/a")).is_none());
}

/// What the client has received makes room for other outcomes.
#[test]
fn outcomes_that_are_forgotten_leave_room() {
    let mut large = Large::new();
    let long = |xid: u64| format!("/{}{xid}", "x".repeat(4000));
    for xid in 1..=2 * limits::OUTCOME_BYTES as u64 / 4000 {
        let mut txn = txn(CLIENT, create(&long(xid), 0));
        (txn.request.xid, txn.request.acked) = (Xid(xid), Xid(xid.saturating_sub(10)));
        let next = zxid(large.0.meta().applied_zxid.counter() + 1);
        assert!(tree::apply(&mut large.0, next, 0, &txn).result.is_ok());
        let kept = large.0.session(CLIENT).unwrap().outcomes.len() as u64;
        assert_eq!(kept, xid.min(10), "{xid}");
    }
}

/// A numbered node that is in the way is not the one that was asked for.
#[test]
fn create_if_missing_of_a_numbered_node_finds_nothing() {
    let mut large = Large::new();
    for at in ["/p", "/p/n", "/p/n0000000002"] {
        large.create(at, 0);
    }
    let mode = CreateMode { sequential: true, ..CreateMode::PERSISTENT };
    let numbered = Op::CreateIfMissing { path: path("/p/n"), data: None, acl: Acl::open(), mode };
    assert_eq!(large.fails(numbered), ErrorCode::NodeExists);
}

/// A quota counts though a node above it has none, and only the path to it is there.
#[test]
fn a_quota_counts_below_a_node_that_has_none() {
    let mut large = Large::new();
    let copy = "/zookeeper/quota/a";
    for at in ["/a", "/a/b", copy, &format!("{copy}/b"), &format!("{copy}/b/zookeeper_stats")] {
        large.create(at, 0);
    }
    large.create("/a/b/c", 5);
    let usage = large.read(&get(&format!("{copy}/b/zookeeper_stats")));
    let Ok(Reply::Data { data: Some(data), .. }) = usage else { panic!("{usage:?}") };
    assert_eq!(data, "count=2,bytes=5");
}
