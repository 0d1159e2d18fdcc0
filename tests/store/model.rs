//! The state on disk against the state in memory, over random histories of changes, freezes,
//! checkpoints that finish late, and restarts.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use conclave::store::{Frozen, Opened};
use conclave::tree::{MemoryNodes, Meta, Node, Nodes, Outcome, Outcomes, SessionRecord};
use conclave_proto::{
    Acl, ErrorCode, Identity, Lifetime, Perms, Reply, Secret, SessionId, Xid, ZPath, Zxid,
};
use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

use crate::common::open;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// Create the node, or change its data if it is there.
    Put(usize, Lifetime, u64, Vec<u8>),
    Remove(usize),
    OpenSession(u64),
    UseSession(u64),
    CloseSession(u64),
    Advance,
    /// Freeze what has changed; it is written later.
    Freeze,
    /// Write the oldest that is frozen.
    Write,
    /// Write everything and open the directory again.
    Reopen,
    /// Read pages of the listing of this node.
    List(usize, Option<usize>, usize),
}

/// Paths of every shape: nested, and with names that no key holds and that begin alike.
fn paths() -> Vec<ZPath> {
    let long = "n".repeat(479);
    let mut paths = vec![ZPath::root()];
    for parent in ["/a", "/a/b", "/\u{e9}"] {
        paths.push(ZPath::new(parent).unwrap());
        let names = (0..6).map(|number| format!("c{number}"));
        let cut = ["", "a", "b", "zz", &"y".repeat(14), &"y".repeat(15), &"y".repeat(16)];
        let cut = cut.iter().map(|end| format!("{long}{end}"));
        let before =
            ["n".repeat(478), "n".repeat(480), format!("{}m{}", "n".repeat(478), "x".repeat(40))];
        for name in names.chain(cut).chain(before) {
            paths.push(ZPath::new(&format!("{parent}/{name}")).unwrap());
        }
    }
    paths
}

fn lifetime() -> impl Strategy<Value = Lifetime> {
    prop_oneof![
        4 => Just(Lifetime::Persistent),
        3 => Just(Lifetime::Ephemeral),
        1 => Just(Lifetime::Container),
        1 => (1..9_u64).prop_map(Lifetime::Ttl),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let count = paths().len();
    let path = 0..count;
    let data = proptest::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        12 => (path.clone(), lifetime(), 1..4_u64, data)
            .prop_map(|(path, lifetime, owner, data)| Step::Put(path, lifetime, owner, data)),
        6 => path.clone().prop_map(Step::Remove),
        2 => (1..5_u64).prop_map(Step::OpenSession),
        3 => (1..5_u64).prop_map(Step::UseSession),
        1 => (1..5_u64).prop_map(Step::CloseSession),
        2 => Just(Step::Advance),
        2 => Just(Step::Freeze),
        2 => Just(Step::Write),
        1 => Just(Step::Reopen),
        3 => (path.clone(), proptest::option::of(path), 1..8_usize)
            .prop_map(|(path, after, limit)| Step::List(path, after, limit)),
    ]
}

/// A node whose every field depends on how often something was written.
fn node(lifetime: Lifetime, owner: u64, data: &[u8], time: u64) -> Node {
    let ephemeral = lifetime == Lifetime::Ephemeral;
    let owner = if ephemeral { SessionId(owner) } else { SessionId::NONE };
    let guarded = Acl {
        perms: Perms::READ,
        identity: Identity { scheme: "digest".into(), id: format!("user{time}") },
    };
    Node {
        data: (data.len() % 5 != 4).then(|| Bytes::copy_from_slice(data)),
        acl: if time.is_multiple_of(3) { Arc::new([guarded]) } else { Acl::open() },
        lifetime,
        owner,
        czxid: Zxid::from_bits(time),
        mzxid: Zxid::from_bits(time + 1),
        pzxid: Zxid::from_bits(time + 2),
        ctime_ms: 3,
        mtime_ms: i64::MIN,
        version: -1,
        aversion: i32::MAX,
        num_children: u32::from(time.is_multiple_of(2)),
        children_created: time / 2,
    }
}

/// Both states, side by side.
struct Pair {
    dir: TempDir,
    opened: Option<Opened>,
    frozen: VecDeque<Frozen>,
    model: MemoryNodes,
    paths: Vec<ZPath>,
    time: u64,
}

impl Pair {
    fn new() -> Pair {
        let dir = tempdir().unwrap();
        let opened = Some(open(dir.path()));
        let (model, paths) = (MemoryNodes::new(), paths());
        Pair { dir, opened, frozen: VecDeque::new(), model, paths, time: 0 }
    }

    fn both(&mut self, act: impl Fn(&mut dyn Target)) {
        act(&mut self.model);
        act(&mut self.opened.as_mut().unwrap().nodes);
    }

    fn take(&mut self, step: Step) {
        self.time += 1;
        let time = self.time;
        match step {
            Step::Put(path, lifetime, owner, data) => {
                let path = self.paths[path].clone();
                let old = self.model.node(&path);
                let (lifetime, owner, czxid) = old
                    .map_or((lifetime, owner, Zxid::from_bits(time)), |old| {
                        (old.lifetime, old.owner.0, old.czxid)
                    });
                let node = Node { czxid, ..node(lifetime, owner, &data, time) };
                self.both(|nodes| nodes.put(&path, node.clone()));
            }
            Step::Remove(path) => {
                let path = self.paths[path].clone();
                if self.model.node(&path).is_some() {
                    self.both(|nodes| nodes.remove(&path, time));
                }
            }
            Step::OpenSession(id) => {
                if self.model.session(SessionId(id)).is_none() {
                    self.both(|nodes| nodes.open_session(SessionId(id)));
                }
            }
            Step::UseSession(id) => {
                if self.model.session(SessionId(id)).is_some() {
                    self.both(|nodes| nodes.use_session(SessionId(id), time));
                }
            }
            Step::CloseSession(id) => {
                if self.model.session(SessionId(id)).is_some() {
                    self.both(|nodes| nodes.close_session(SessionId(id)));
                }
            }
            Step::Advance => {
                let applied_zxid = Zxid::from_bits(time);
                let meta = Meta { applied_zxid, time_ms: 5, nodes: 4, bytes: 3, ..Meta::default() };
                self.both(|nodes| nodes.advance(meta));
            }
            Step::Freeze => self.freeze(),
            Step::Write => self.write(),
            Step::Reopen => {
                self.freeze();
                while !self.frozen.is_empty() {
                    self.write();
                }
                self.opened = None;
                self.opened = Some(open(self.dir.path()));
            }
            Step::List(path, after, limit) => {
                let path = &self.paths[path];
                let after = after.map(|after| self.paths[after].clone());
                let name = after.as_ref().map(ZPath::name);
                let nodes = &self.opened.as_ref().unwrap().nodes;
                let (model, limit) = (&self.model, limit);
                assert_eq!(nodes.children(path, name, limit), model.children(path, name, limit));
                // The parent says that its children may have changed, then that they have not.
                let parent = node(Lifetime::Persistent, 0, &[], self.time);
                for most in [usize::MAX, usize::MAX, limit * 8] {
                    let names = nodes.names(path, &parent, most);
                    assert_eq!(names, model.names(path, &parent, most), "at most {most} bytes");
                }
                let after = after.as_ref();
                assert_eq!(nodes.mortals(after, limit), model.mortals(after, limit));
            }
        }
    }

    fn freeze(&mut self) {
        self.frozen.extend(self.opened.as_mut().unwrap().nodes.freeze());
    }

    fn write(&mut self) {
        if let Some(frozen) = self.frozen.pop_front() {
            let checkpoint = frozen.write().unwrap();
            self.opened.as_mut().unwrap().nodes.checkpointed(&checkpoint);
        }
    }

    fn compare(&self) {
        let nodes = &self.opened.as_ref().unwrap().nodes;
        assert_eq!(nodes.meta(), self.model.meta());
        for path in &self.paths {
            assert_eq!(nodes.node(path), self.model.node(path), "{path}");
            assert_eq!(nodes.contains(path), self.model.contains(path), "{path}");
            let all = nodes.children(path, None, usize::MAX);
            assert_eq!(all, self.model.children(path, None, usize::MAX), "children of {path}");
        }
        for owner in (0..5).map(SessionId) {
            assert_eq!(nodes.ephemerals(owner), self.model.ephemerals(owner));
        }
        assert_eq!(nodes.mortals(None, usize::MAX), self.model.mortals(None, usize::MAX));
        assert!(nodes.sessions().eq(self.model.sessions()));
    }
}

/// What a step does to either state.
trait Target {
    fn put(&mut self, path: &ZPath, node: Node);
    fn remove(&mut self, path: &ZPath, time: u64);
    fn open_session(&mut self, id: SessionId);
    fn use_session(&mut self, id: SessionId, time: u64);
    fn close_session(&mut self, id: SessionId);
    fn advance(&mut self, meta: Meta);
}

impl<N: Nodes> Target for N {
    fn put(&mut self, path: &ZPath, node: Node) {
        // Its `mzxid` comes after the transaction's.
        let applied_zxid = Zxid::from_bits(node.mzxid.bits() - 1);
        self.put_node(path, node);
        self.set_meta(Meta { applied_zxid, ..self.meta() });
    }

    fn remove(&mut self, path: &ZPath, time: u64) {
        self.remove_node(path);
        self.set_meta(Meta { applied_zxid: Zxid::from_bits(time), ..self.meta() });
    }

    fn open_session(&mut self, id: SessionId) {
        let secret = Secret::new([3; 16]);
        let outcomes = Outcomes::default();
        let record = SessionRecord { timeout_ms: 1000, secret, last_xid: Xid(0), outcomes };
        self.insert_session(id, record);
    }

    fn use_session(&mut self, id: SessionId, time: u64) {
        let record = self.session_mut(id).unwrap();
        record.last_xid = Xid(time);
        let fault = ErrorCode::BadVersion.into();
        let result = if time.is_multiple_of(2) { Ok(Reply::Done) } else { Err(fault) };
        record.outcomes.forget(Xid(time.saturating_sub(3)));
        record.outcomes.keep(Outcome { xid: Xid(time), zxid: Zxid::from_bits(time), result });
    }

    fn close_session(&mut self, id: SessionId) {
        self.remove_session(id);
    }

    fn advance(&mut self, meta: Meta) {
        self.set_meta(meta);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_disk_agrees_with_memory(steps in proptest::collection::vec(step(), 1..120)) {
        let mut pair = Pair::new();
        for step in steps {
            pair.take(step);
        }
        pair.compare();
        pair.take(Step::Reopen);
        pair.compare();
    }
}
