//! What clients ask for.

use bytes::Bytes;
use conclave_proto::request::{Condition, Page, ReadLevel, Test};
use conclave_proto::{Acl, CreateMode, Lifetime, Op, WatchId, WatchKind, ZPath, Zxid};

use super::Scene;
use super::client::Client;

/// What is below the root from the beginning, and no client's business.
const RESERVED: &str = "zookeeper";
/// The most watches of a client.
const WATCHES: usize = 12;
/// The most children a client lets grow below a node.
const CHILDREN: usize = 12;

impl Client {
    /// The next request, and how fresh its answer must be.
    pub(super) fn choose(&mut self, scene: &mut Scene<'_, '_>) -> (Op, ReadLevel) {
        let op = match scene.stage.random.below(100) {
            0..25 => set(scene),
            25..38 => create(scene),
            38..40 => guard(scene),
            40..52 => delete(scene),
            52..62 => multi(scene),
            62..66 => return (Op::Sync { path: ZPath::root() }, ReadLevel::Local),
            66..70 => self.watch(scene),
            _ => self.read(scene),
        };
        let level = match scene.stage.random.below(6) {
            0 => ReadLevel::Linearizable,
            1 => ReadLevel::AtLeast(scene.stage.committed.zxid),
            _ => ReadLevel::Local,
        };
        (op, level)
    }

    fn read(&mut self, scene: &mut Scene<'_, '_>) -> Op {
        let path = path(scene);
        let watched = self.watches.len() < WATCHES && scene.stage.random.chance(300);
        let watch = watched.then(|| self.new_watch());
        match scene.stage.random.below(3) {
            0 => Op::Get { path, watch },
            1 => Op::Exists { path, watch },
            _ => Op::Children { path: above(&path), watch, page: Page::default() },
        }
    }

    fn watch(&mut self, scene: &mut Scene<'_, '_>) -> Op {
        if self.watches.len() >= WATCHES || scene.stage.random.chance(200) {
            let ids: Vec<WatchId> = self.watches.keys().copied().collect();
            let unset = WatchId(u64::MAX);
            let id = if ids.is_empty() { unset } else { *scene.stage.random.pick(&ids) };
            return Op::Unwatch { id };
        }
        let path = path(scene);
        let (path, kind) = match scene.stage.random.below(4) {
            0 => (path, WatchKind::Exists),
            1 => (above(&path), WatchKind::Persistent),
            2 => (ZPath::root(), WatchKind::PersistentRecursive),
            _ => (above(&path), WatchKind::PersistentRecursive),
        };
        Op::Watch { id: self.new_watch(), path, kind, since: None, with_value: false }
    }

    fn new_watch(&mut self) -> WatchId {
        self.next_watch += 1;
        WatchId(self.next_watch)
    }
}

fn above(path: &ZPath) -> ZPath {
    path.parent().expect("clients use no root")
}

/// A path of the small tree that all clients share: two levels of four names.
fn path(scene: &mut Scene<'_, '_>) -> ZPath {
    const NAMES: [&str; 4] = ["a", "b", "c", "d"];
    let random = &mut scene.stage.random;
    let first = *random.pick(&NAMES);
    let text = if random.chance(400) {
        format!("/{first}")
    } else {
        format!("/{first}/{}", random.pick(&NAMES))
    };
    ZPath::new(&text).expect("it is a path")
}

fn value(scene: &mut Scene<'_, '_>) -> Option<Bytes> {
    *scene.values += 1;
    Some(scene.values.to_string().into())
}

fn set(scene: &mut Scene<'_, '_>) -> Op {
    let path = path(scene);
    let version = version(&path, scene);
    Op::SetData { path, data: value(scene), version }
}

/// Any version, mostly; or the one the node has, or another.
fn version(path: &ZPath, scene: &mut Scene<'_, '_>) -> Option<i32> {
    match scene.stage.random.below(4) {
        0 => scene.model.node_at(path, Zxid::MAX).map(|node| node.stat().version),
        1 => Some(7),
        _ => None,
    }
}

fn create(scene: &mut Scene<'_, '_>) -> Op {
    let path = path(scene);
    let mut mode = match scene.stage.random.below(8) {
        0 => CreateMode::EPHEMERAL,
        1 => CreateMode::EPHEMERAL_SEQUENTIAL,
        2 => CreateMode::PERSISTENT_SEQUENTIAL,
        3 => lingering(scene, false),
        4 => lingering(scene, true),
        _ => CreateMode::PERSISTENT,
    };
    mode.in_line = mode.sequential && scene.stage.random.below(2) == 0;
    if mode.sequential && scene.model.children_at(&above(&path), Zxid::MAX).len() > CHILDREN {
        return delete(scene);
    }
    Op::Create { path, data: value(scene), acl: Acl::open(), mode }
}

/// As locks are: it outlives its session for a while, if that expires.
fn lingering(scene: &mut Scene<'_, '_>, sequential: bool) -> CreateMode {
    let ms = scene.stage.random.between(1, 20) * 1000;
    CreateMode { lifetime: Lifetime::Lingering(ms), sequential, ..CreateMode::default() }
}

/// That a node which exists, or existed, is still held.
fn guard(scene: &mut Scene<'_, '_>) -> Op {
    let path = path(scene);
    let token = scene.model.node_at(&path, Zxid::MAX).map_or(Zxid::ZERO, |node| node.stat().czxid);
    Op::Guard { path, token }
}

fn delete(scene: &mut Scene<'_, '_>) -> Op {
    let mut path = path(scene);
    let mut siblings = scene.model.children_at(&above(&path), Zxid::MAX);
    siblings.retain(|name| *name != RESERVED);
    if !siblings.is_empty() {
        let name = *scene.stage.random.pick(&siblings);
        path = above(&path).child(name).expect("it is a path");
    }
    let version = version(&path, scene);
    Op::Delete { path, version }
}

fn multi(scene: &mut Scene<'_, '_>) -> Op {
    let ops = |scene: &mut Scene<'_, '_>| -> Vec<Op> {
        let count = scene.stage.random.between(1, 4);
        let one = |_| match scene.stage.random.below(5) {
            0 => set(scene),
            1 => create(scene),
            2 => delete(scene),
            3 => guard(scene),
            _ => Op::Check { path: path(scene), version: None },
        };
        (0..count).map(one).collect()
    };
    let then = ops(scene);
    let otherwise = ops(scene);
    let path = path(scene);
    let test = match scene.stage.random.below(3) {
        0 => Test::Exists,
        1 => Test::Missing,
        _ => Test::Version(1),
    };
    let conditional = scene.stage.random.chance(500);
    let conditions = if conditional { vec![Condition { path, test }] } else { Vec::new() };
    Op::Multi { conditions, then, otherwise }
}
