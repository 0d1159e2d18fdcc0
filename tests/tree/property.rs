//! Random histories: the tree and the model give the same answers, tell watchers the same, and end
//! in the same state, and every listing shows it.

use std::sync::Arc;

use bytes::Bytes;
use conclave::tree::{self, Applied};
use conclave_proto::request::{Condition, Page, StatTest, Test};
use conclave_proto::{
    Acl, CreateMode, ErrorCode, Identity, Lifetime, Op, Perms, Reply, Secret, SessionId, Txn, Xid,
    ZPath, Zxid,
};
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::select;

use crate::model::{self, Model};
use crate::stored::{Pause, Stored};
use crate::world::{World, identity, path, txn, zxid};

/// One transaction, but for what depends on those before it.
#[derive(Clone, Debug)]
struct Step {
    session: u64,
    number: Number,
    identities: Vec<Identity>,
    clock: i64,
    op: Op,
}

/// Whether a write is numbered.
#[derive(Clone, Copy, Debug)]
enum Number {
    Unnumbered,
    /// So much more than the session's last one; everything but the last few is received.
    New(u64),
    /// So many before the session's next one.
    Retry(u64),
}

fn paths() -> impl Strategy<Value = ZPath> {
    // Few, so that they often meet; `-` comes before `/`, so it tells orders apart.
    let ordinary =
        vec!["/", "/a", "/b", "/a-", "/a/a", "/a/b", "/a/b-", "/a/b/c", "/b/a", "/b/a/a"];
    prop_oneof![9 => select(ordinary), 1 => select(quotas())].prop_map(path)
}

/// The nodes of some quotas, each after the one above it.
fn quotas() -> Vec<&'static str> {
    vec![
        "/zookeeper/quota/a",
        "/zookeeper/quota/a/zookeeper_limits",
        "/zookeeper/quota/a/zookeeper_stats",
        "/zookeeper/quota/a/b",
        "/zookeeper/quota/a/b/zookeeper_stats",
        "/zookeeper/quota/a/b/zookeeper_limits",
        // These only look like it.
        "/zookeeper/quotas",
        "/zookeeper/quotas/zookeeper_stats",
        "/zookeeper/quota/zookeeper_stats",
    ]
}

fn data() -> impl Strategy<Value = Option<Bytes>> {
    let limits = "count=1,bytes=1=;byteHardLimit=7;countHardLimit=3";
    prop_oneof![
        9 => select(vec![None, Some(""), Some("x"), Some("hello")]),
        1 => select(vec![Some(limits), Some("count=2,bytes=-1=;countHardLimit=2")])
    ]
    .prop_map(|data| data.map(|data| Bytes::from_static(data.as_bytes())))
}

fn identities() -> impl Strategy<Value = Vec<Identity>> {
    select(vec![vec![], vec!["digest:ann:1"], vec!["digest:bob:2", "ip:10.0.0.1"], vec!["super:"]])
        .prop_map(|ids| ids.into_iter().map(identity).collect())
}

fn acls() -> impl Strategy<Value = Arc<[Acl]>> {
    let line = |perms, who| Acl { perms: Perms(perms), identity: identity(who) };
    prop_oneof![
        5 => Just(Acl::open()),
        1 => select::<Vec<Acl>>(vec![
            vec![],
            vec![line(1, "world:anyone")],
            vec![line(30, "world:anyone")],
            vec![line(31, "auth:")],
            vec![line(31, "digest:ann:1"), line(5, "world:anyone")],
            vec![line(2 + 4, "digest:bob:2"), line(8 + 16, "digest:ann:1")],
        ])
        .prop_map(Arc::from),
    ]
}

fn modes() -> impl Strategy<Value = CreateMode> {
    let lifetime = prop_oneof![
        4 => Just(Lifetime::Persistent),
        3 => Just(Lifetime::Ephemeral),
        2 => Just(Lifetime::Container),
        1 => select(vec![Lifetime::Ttl(0), Lifetime::Ttl(1), Lifetime::Ttl(50)]),
        2 => select(vec![Lifetime::Lingering(0), Lifetime::Lingering(1), Lifetime::Lingering(50)]),
    ];
    let first_child = prop_oneof![
        8 => Just(0),
        2 => select(vec![1, 7, 9_999_999_999, 10_000_000_000, u64::MAX]),
    ];
    (lifetime, any::<bool>(), first_child).prop_map(|(lifetime, sequential, first_child)| {
        CreateMode { lifetime, sequential, first_child, ..CreateMode::default() }
    })
}

fn versions() -> impl Strategy<Value = Option<i32>> {
    prop_oneof![4 => Just(None), 1 => (0..2).prop_map(Some)]
}

fn zxids() -> impl Strategy<Value = Zxid> {
    (1..40_u64).prop_map(zxid)
}

/// Operations that may be in a multi.
fn parts() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (paths(), data(), acls(), modes())
            .prop_map(|(path, data, acl, mode)| Op::Create { path, data, acl, mode }),
        2 => (paths(), versions()).prop_map(|(path, version)| Op::Delete { path, version }),
        2 => (paths(), data(), versions())
            .prop_map(|(path, data, version)| Op::SetData { path, data, version }),
        1 => (paths(), acls(), versions())
            .prop_map(|(path, acl, version)| Op::SetAcl { path, acl, version }),
        1 => (paths(), versions()).prop_map(|(path, version)| Op::Check { path, version }),
        1 => conditions().prop_map(Op::Require),
        1 => (paths(), data(), acls(), modes())
            .prop_map(|(path, data, acl, mode)| Op::CreateIfMissing { path, data, acl, mode }),
        1 => (paths(), versions())
            .prop_map(|(path, version)| Op::DeleteIfExists { path, version }),
        1 => (paths(), 0..4_u32).prop_map(|(path, limit)| Op::DeleteTree { path, limit }),
        1 => (paths(), zxids()).prop_map(|(path, token)| Op::Guard { path, token }),
    ]
}

fn conditions() -> impl Strategy<Value = Condition> {
    let test = prop_oneof![
        3 => Just(Test::Exists),
        3 => Just(Test::Missing),
        1 => (0..3).prop_map(Test::Version),
        1 => (0..3).prop_map(Test::ChildVersion),
        1 => zxids().prop_map(Test::CreatedBy),
        1 => Just(Test::Data(Bytes::from_static(b"x"))),
        2 => stats().prop_map(|test| Test::Stat(Box::new(test))),
    ];
    (paths(), test).prop_map(|(path, test)| Condition { path, test })
}

/// Of each field, mostly nothing, sometimes something that may well be so.
fn stats() -> impl Strategy<Value = StatTest> {
    fn rarely<T: std::fmt::Debug + Clone>(
        values: impl Strategy<Value = T>,
    ) -> impl Strategy<Value = Option<T>> {
        weighted(0.15, values)
    }
    let zxids = (rarely(zxids()), rarely(zxids()), rarely(zxids()));
    let times = (rarely(0..3_i64), rarely(0..3_i64));
    let versions = (rarely(0..3), rarely(-1..3), rarely(0..3));
    let rest = (rarely((0..3_u64).prop_map(SessionId)), rarely(0..2_u32), rarely(0..3_u32));
    (zxids, times, versions, rest).prop_map(|(zxids, times, versions, rest)| StatTest {
        czxid: zxids.0,
        mzxid: zxids.1,
        pzxid: zxids.2,
        ctime_ms: times.0,
        mtime_ms: times.1,
        version: versions.0,
        cversion: versions.1,
        aversion: versions.2,
        ephemeral_owner: rest.0,
        data_length: rest.1,
        num_children: rest.2,
    })
}

/// A node that goes and comes back as another, all at once.
fn replacement(path: ZPath, data: Option<Bytes>, mode: CreateMode) -> Op {
    let delete = Op::Delete { path: path.clone(), version: None };
    let mode = CreateMode { sequential: false, ..mode };
    let then = vec![delete, Op::Create { path, data, acl: Acl::open(), mode }];
    Op::Multi { conditions: Vec::new(), then, otherwise: Vec::new() }
}

fn ops() -> impl Strategy<Value = Op> {
    let secret = |byte| Secret::new([byte; 16]);
    prop_oneof![
        16 => parts(),
        6 => (vec(conditions(), 0..3), vec(parts(), 0..5), vec(parts(), 0..3))
            .prop_map(|(conditions, then, otherwise)| Op::Multi { conditions, then, otherwise }),
        2 => (paths(), data(), modes()).prop_map(|(path, data, mode)| replacement(path, data, mode)),
        1 => (paths(), 0..5_u32).prop_map(|(path, limit)| Op::DeleteRecursive { path, limit }),
        1 => Just(Op::CloseSession),
        1 => Just(Op::ExpireSession),
        2 => (1..4_u64, select(vec![0, 0, 0, 1])).prop_map(move |(session, byte)| Op::CreateSession {
            session: SessionId(session),
            timeout_ms: 1000,
            secret: secret(byte),
        }),
        2 => (paths(), zxids())
            .prop_map(|(path, pzxid)| Op::Reap { path, seen: (pzxid, pzxid) }),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let number = prop_oneof![
        2 => Just(Number::Unnumbered),
        4 => (1..3_u64).prop_map(Number::New),
        1 => (1..6_u64).prop_map(Number::Retry),
    ];
    (0..4_u64, number, identities(), 0..6_i64, ops()).prop_map(
        |(session, number, identities, clock, op)| Step { session, number, identities, clock, op },
    )
}

/// Both trees, and what it takes to number requests.
struct Twins {
    world: World,
    model: Model,
    clock: i64,
    last_xid: [u64; 4],
    /// The tree on disk, if it is to be looked at.
    stored: Option<Stored>,
}

impl Twins {
    /// With or without quotas.
    fn new(with_quotas: bool, stored: Option<Stored>) -> Twins {
        let (world, model) = (World::new(), Model::new());
        let mut twins = Twins { world, model, clock: 0, last_xid: [0; 4], stored };
        for session in 1..3 {
            let (session, secret) = (SessionId(session), Secret::new([0; 16]));
            let op = Op::CreateSession { session, timeout_ms: 1000, secret };
            twins.apply(&txn(SessionId::NONE, op));
        }
        for at in quotas().into_iter().filter(|_| with_quotas) {
            let data =
                Some(Bytes::from_static(b"count=1,bytes=-1=;byteHardLimit=6;countHardLimit=3"));
            let (acl, mode) = (Acl::open(), CreateMode::PERSISTENT);
            twins.apply(&txn(SessionId::NONE, Op::Create { path: path(at), data, acl, mode }));
        }
        twins
    }

    fn step(&mut self, step: Step) {
        self.clock += step.clock - 2; // The clock of a new leader may be behind.
        let last = &mut self.last_xid[usize::try_from(step.session).unwrap()];
        let xid = match step.number {
            Number::Unnumbered => 0,
            Number::New(gap) => *last + gap,
            Number::Retry(back) => (*last + 1).saturating_sub(back),
        };
        *last = xid.max(*last);
        let mut op = step.op;
        if let Op::Reap { path, seen } = &mut op
            && let Some(node) = self.model.nodes.get(path.as_str())
            && seen.0 > zxid(8)
        {
            *seen = (node.stat.pzxid, node.stat.mzxid);
        }
        let mut txn = txn(SessionId(step.session), op);
        txn.time_ms = self.clock;
        txn.identities = step.identities.into();
        txn.request.xid = Xid(xid);
        txn.request.acked = Xid(xid.saturating_sub(4));
        self.apply(&txn);
    }

    fn apply(&mut self, txn: &Txn) {
        let applied = self.world.apply(txn);
        if let Some(stored) = &mut self.stored {
            stored.apply(&self.world.nodes, &applied, txn);
        }
        let Applied { zxid, result, changes, duplicate, .. } = applied;
        let expected = self.model.apply(crate::world::zxid(self.world.applied), txn);
        let events =
            changes.iter().map(|change| (change.event.kind, change.event.path.to_string()));
        let got = model::Outcome { zxid, result, events: events.collect(), duplicate };
        assert_eq!(got, expected, "{txn:?}");
        self.compare_states();
    }

    fn compare_states(&self) {
        let nodes = self.world.nodes.iter().map(|(path, node)| {
            (path.as_str(), &node.data, node.acl.to_vec(), node.lifetime, node.stat())
        });
        let expected = self.model.nodes.iter().map(|(path, node)| {
            (path.as_str(), &node.data, node.acl.clone(), node.lifetime, node.stat)
        });
        assert_eq!(nodes.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        let sessions: Vec<u64> =
            tree::Nodes::sessions(&self.world.nodes).map(|(id, _)| id.0).collect();
        assert_eq!(sessions, self.model.sessions.keys().copied().collect::<Vec<_>>());
    }

    /// What each read shows of a node.
    fn compare_reads(&self, path: &ZPath, ids: &[Identity], limit: u32) {
        let read = |op| tree::read(&self.world.nodes, ids, SessionId(1), &op).map_err(|f| f.code);
        let node = self.model.nodes.get(path.as_str()).ok_or(ErrorCode::NoNode);
        let node = node.and_then(|node| {
            let readable = model::permitted(&node.acl, Perms::READ, ids);
            if readable { Ok(node) } else { Err(ErrorCode::NoAuth) }
        });
        let data = node.map(|node| Reply::Data { data: node.data.clone(), stat: node.stat });
        assert_eq!(read(Op::Get { path: path.clone(), watch: None }), data);
        let stat = node.map(|node| Reply::Stat(node.stat));
        assert_eq!(read(Op::Exists { path: path.clone(), watch: None }), stat);

        let names = node.map(|_| self.model.children(path.as_str()).into_iter().collect());
        let listed =
            all_pages(limit, |page| read(Op::Children { path: path.clone(), watch: None, page }));
        assert_eq!(listed, names, "children of {path}");
        let whole = Op::Children { path: path.clone(), watch: None, page: Page::WHOLE };
        let names = names.map(|names| Reply::Names {
            names: names.iter().map(String::as_str).collect(),
            stat: node.expect("it is listed").stat,
        });
        assert_eq!(read(whole), names, "all children of {path}");
        let above = path.as_str().trim_end_matches('/').len() + 1;
        let below = node.map(|_| self.model.parents_first(path.as_str(), ids));
        let below = below.map(|all| all.iter().map(|path| path[above..].to_owned()).collect());
        let listed = all_pages(limit, |page| read(Op::ListRecursive { path: path.clone(), page }));
        assert_eq!(listed, below, "everything below {path}");
        if ids.iter().any(|id| id.scheme == "super") {
            let count = below.map(|below| Reply::Count(below.len() as u64));
            assert_eq!(read(Op::CountDescendants { path: path.clone() }), count);
        }

        let own = self.model.ephemerals(1).into_iter().filter(|own| own.starts_with(path.as_str()));
        let own = own.map(|own| crate::world::path(&own)).collect();
        let prefix = path.to_string();
        assert_eq!(read(Op::Ephemerals { prefix }), Ok(Reply::Paths(own)));
    }
}

fn all_pages(
    limit: u32,
    read: impl Fn(Page) -> Result<Reply, ErrorCode>,
) -> Result<Vec<String>, ErrorCode> {
    let mut names = Vec::new();
    loop {
        let after = names.last().cloned();
        let page = Page { after, limit, ..Page::default() };
        let Reply::Children { entries, more, .. } = read(page)? else { panic!("not a listing") };
        assert!(limit == 0 || entries.len() <= limit as usize);
        names.extend(entries.into_iter().map(|entry| entry.name));
        if !more {
            return Ok(names);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_is_what_the_model_says(
        history in vec(steps(), 1..60),
        ids in identities(),
        limit in 0..4_u32,
        read_path in paths(),
        with_quotas in any::<bool>(),
    ) {
        let mut twins = Twins::new(with_quotas, None);
        for step in history {
            twins.step(step);
        }
        for known in twins.model.nodes.keys() {
            twins.compare_reads(&path(known), &ids, limit);
        }
        twins.compare_reads(&read_path, &ids, limit);
    }
}

fn pauses() -> impl Strategy<Value = Pause> {
    prop_oneof![
        40 => Just(Pause::Nothing),
        4 => Just(Pause::Freeze),
        4 => Just(Pause::Write),
        1 => Just(Pause::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_stored_is_what_is_in_memory(
        history in vec((steps(), pauses()), 1..60),
        with_quotas in any::<bool>(),
    ) {
        let mut twins = Twins::new(with_quotas, Some(Stored::new()));
        for (step, pause) in history {
            twins.step(step);
            let stored = twins.stored.as_mut().unwrap();
            stored.pause(pause);
            stored.compare(&twins.world.nodes);
        }
    }
}

/// What is on disk of the first of them must not come back.
#[test]
fn a_node_that_has_come_back_as_another_can_go() {
    let lifetimes = [Lifetime::Persistent, Lifetime::Container, Lifetime::Ttl(50)];
    for lifetime in lifetimes.into_iter().chain([Lifetime::Ephemeral, Lifetime::Lingering(50)]) {
        let mut twins = Twins::new(false, Some(Stored::new()));
        let mode = CreateMode { lifetime, ..CreateMode::default() };
        let create = Op::Create { path: path("/a"), data: None, acl: Acl::open(), mode };
        let delete = Op::Delete { path: path("/a"), version: None };
        for (op, pause) in [
            (create, Pause::Reopen),
            (replacement(path("/a"), None, mode), Pause::Nothing),
            (delete, Pause::Nothing),
            (Op::DeleteIfExists { path: path("/a"), version: None }, Pause::Reopen),
        ] {
            twins.apply(&txn(SessionId(1), op));
            let stored = twins.stored.as_mut().unwrap();
            stored.compare(&twins.world.nodes);
            stored.pause(pause);
            stored.compare(&twins.world.nodes);
        }
    }
}
