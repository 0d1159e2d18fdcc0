//! What several clients do, drawn from a seed.
//!
//! There are few names, few versions and few users, so that things collide all the time.

use crate::op::{Data, Line, Op};
use crate::random::Dice;

/// What one session does next. Everything that follows from it has happened before the next step.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) session: usize,
    pub(crate) action: Action,
}

#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Send these at once, without waiting for answers.
    Requests(Vec<Op>),
    /// Connect again: with the earlier connection still there, with the right password, with the
    /// last field of a handshake.
    Reconnect { keep: bool, right: bool, read_only: bool },
}

impl Step {
    pub(crate) fn requests(&self) -> &[Op] {
        match &self.action {
            Action::Requests(ops) => ops,
            Action::Reconnect { .. } => &[],
        }
    }
}

/// How many sessions there are.
pub(crate) const SESSIONS: usize = 4;

/// The most requests that are sent at once.
const BURST: usize = 12;

const PATHS: [&str; 16] = [
    "~",
    "~/a",
    "~/a",
    "~/a",
    "~/b",
    "~/b",
    "~/a/a",
    "~/a/a",
    "~/a/b",
    "~/b/a",
    "~/a/a/a",
    "~/s",
    "~/s0000000000",
    "~/s0000000001",
    "~/a/0000000000",
    "~/e",
];

/// Containers have no children here, or a server might remove one at any time.
const CONTAINERS: [&str; 2] = ["~/c", "~/a/c"];

pub(crate) const BAD_PATHS: [&str; 9] =
    ["~/", "~//a", "~/./a", "~/a/..", "relative", "~/\u{1}", "~/\u{fffe}", "//", "~/a/."];

/// `/zookeeper/config` says where the servers are, which differs.
const SYSTEM_PATHS: [&str; 3] = ["/", "/zookeeper", "/zookeeper/quota"];

const VERSIONS: [i32; 8] = [-1, -1, -1, 0, 0, 1, 2, i32::MAX];

const DATA: [Data; 5] = [None, Some(""), Some("x"), Some("data"), Some("some more data")];

/// The hashes are of u1:p1 and u2:p2.
const USER1: &str = "u1:fpT/y03U+EjItKZOSLGvjnJlyng=";
const USER2: &str = "u2:o9NxcCGDPOlcV7JVhmKHOf5ctVE=";

const OPEN: &[Line] = &[(31, "world", "anyone")];

const ACLS: [&[Line]; 16] = [
    &[(1, "world", "anyone"), (31, "digest", USER1)],
    &[(31, "digest", USER1)],
    &[(31, "digest", USER1), (3, "digest", USER2)],
    &[(31, "auth", "")],
    &[(1, "world", "anyone"), (30, "auth", "")],
    &[(31, "ip", "127.0.0.1")],
    &[(29, "ip", "127.0.0.0/8"), (2, "digest", USER2)],
    &[(31, "ip", "10.0.0.0/8")],
    &[(7, "world", "anyone")],
    &[(15, "world", "anyone"), (16, "digest", USER1)],
    &[(31, "world", "anyone"), (31, "world", "anyone")],
    // What may not be.
    &[],
    &[(31, "world", "somebody")],
    &[(31, "nobody", "knows")],
    &[(31, "digest", "no hash")],
    &[(31, "ip", "300.1.1.1")],
];

const CREDENTIALS: [(&str, &str); 5] = [
    ("digest", "u1:p1"),
    ("digest", "u1:p1"),
    ("digest", "u2:p2"),
    ("digest", "super:test"),
    ("nonsense", "x"),
];

/// A kind of watch that one session sets on one path. ZooKeeper 3.8 keeps one for a path, 3.9
/// several beside each other: so each has one path for itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Habit {
    Once,
    Persistent,
    Recursive,
}

/// About that many requests, in steps.
pub(crate) fn draw(seed: u64, requests: usize) -> Vec<Step> {
    let mut author = Author { dice: Dice::new(seed), steps: Vec::new() };
    let (path, data, acl) = ("~".into(), None, OPEN.to_vec());
    let home = Op::Create { kind: 1, path, data, acl, flags: 0, ttl: 0 };
    author.add(0, Action::Requests(vec![home]));
    let mut drawn = 0;
    while drawn < requests {
        drawn += author.step();
    }
    for session in 0..SESSIONS {
        author.add(session, Action::Requests(vec![Op::CloseSession]));
    }
    author.steps
}

struct Author {
    dice: Dice,
    steps: Vec<Step>,
}

impl Author {
    fn add(&mut self, session: usize, action: Action) {
        self.steps.push(Step { session, action });
    }

    /// One step, or two; returns how many requests.
    fn step(&mut self) -> usize {
        let session = self.dice.below(SESSIONS);
        if self.dice.chance(4) {
            let right = !self.dice.chance(10);
            // ZooKeeper ends the earlier connection whatever the password.
            let keep = right && self.dice.chance(30);
            let read_only = self.dice.chance(70);
            self.add(session, Action::Reconnect { keep, right, read_only });
            if right && self.dice.chance(80) {
                let op = self.set_watches(session);
                self.add(session, Action::Requests(vec![op]));
            }
            return 2;
        }
        if self.dice.chance(8) {
            let op = self.lonely(session);
            self.add(session, Action::Requests(vec![op]));
            return 1;
        }
        let count = 1 + self.dice.below(BURST);
        let mut ops = Vec::new();
        while ops.len() < count && !ops.last().is_some_and(lingers) {
            ops.push(self.op(session));
        }
        self.add(session, Action::Requests(ops));
        count
    }

    /// A request that is sent alone, because it ends the connection, or has no fixed turn among
    /// others: ZooKeeper answers `auth` at once, Conclave answers pings when it looks at the clock.
    fn lonely(&mut self, session: usize) -> Op {
        match self.dice.weighted(&[(10, 'a'), (3, 'c'), (1, 'u'), (1, '.'), (4, '-')]) {
            'a' => {
                let (scheme, credentials) = *self.dice.pick(&CREDENTIALS);
                Op::Auth { scheme, credentials }
            }
            'c' => Op::CloseSession,
            'u' => Op::Unknown(*self.dice.pick(&[10, 99, 108, 999, -3])),
            '.' => Op::Ping,
            _ => {
                let op = self.op(session);
                Op::Cut(Box::new(op), self.dice.below(40))
            }
        }
    }

    fn op(&mut self, session: usize) -> Op {
        let kinds = [
            (24, 'c'),
            (12, 'd'),
            (14, 's'),
            (8, 'e'),
            (8, 'g'),
            (8, 'l'),
            (4, 'a'),
            (4, 'A'),
            (2, 'y'),
            (8, 'm'),
            (3, 'r'),
            (6, 'w'),
            (3, 'u'),
            (3, 'h'),
            (2, 'p'),
            (2, 'n'),
            (2, 'i'),
        ];
        match self.dice.weighted(&kinds) {
            'm' => {
                let count = self.dice.below(5);
                Op::Multi((0..count).map(|_| self.part()).collect())
            }
            'r' => {
                let count = self.dice.below(4);
                Op::MultiRead((0..count).map(|_| self.read_part()).collect())
            }
            'w' => self.add_watch(session),
            kind @ ('u' | 'h') => self.about_watch(session, kind == 'u'),
            'p' => {
                let prefix = *self.dice.pick(&["~", "~/", "~/a", "~/e", "/", "~/a/"]);
                Op::GetEphemerals { prefix: prefix.into() }
            }
            'n' => Op::GetAllChildrenNumber { path: (*self.dice.pick(&PATHS)).into() },
            'i' => Op::WhoAmI,
            'y' => Op::Sync { path: self.path() },
            'e' => self.watching(session, |path, watch| Op::Exists { path, watch }),
            'g' => self.watching(session, |path, watch| Op::GetData { path, watch }),
            'l' if self.dice.chance(50) => {
                self.watching(session, |path, watch| Op::GetChildren { path, watch })
            }
            'l' => self.watching(session, |path, watch| Op::GetChildren2 { path, watch }),
            'a' => Op::GetAcl { path: self.path() },
            'A' => {
                // The other paths are those of every run.
                let (path, acl) = ((*self.dice.pick(&PATHS)).into(), self.acl(0));
                Op::SetAcl { path, acl, version: *self.dice.pick(&VERSIONS) }
            }
            'c' => self.create(),
            'd' => self.delete(),
            _ => self.set_data(),
        }
    }

    fn part(&mut self) -> Op {
        match self.dice.weighted(&[(5, 'c'), (3, 'd'), (4, 's'), (4, '?')]) {
            'c' => self.create(),
            'd' => self.delete(),
            's' => self.set_data(),
            _ => Op::Check { path: self.path(), version: *self.dice.pick(&VERSIONS) },
        }
    }

    fn read_part(&mut self) -> Op {
        let path = self.path();
        if self.dice.chance(50) {
            Op::GetData { path, watch: false }
        } else {
            Op::GetChildren { path, watch: false }
        }
    }

    fn create(&mut self) -> Op {
        let (data, acl) = (*self.dice.pick(&DATA), self.acl(80));
        let kinds = [(40, 1), (30, 15), (10, 19), (10, 21), (2, 0)];
        match self.dice.weighted(&kinds) {
            kind @ (1 | 15) => {
                let flags = self.dice.weighted(&[(5, 0), (5, 1), (4, 2), (4, 3)]);
                let path = self.path();
                Op::Create { kind, path, data, acl, flags, ttl: 0 }
            }
            kind @ 19 => {
                let path = (*self.dice.pick(&CONTAINERS)).into();
                Op::Create { kind, path, data, acl, flags: 4, ttl: 0 }
            }
            kind @ 21 => {
                let flags = *self.dice.pick(&[5, 5, 6]);
                let ttl = *self.dice.pick(&[1_000_000_000, 3_600_000_000]);
                let path = self.path();
                Op::Create { kind, path, data, acl, flags, ttl }
            }
            _ => {
                // Flags and requests that do not go together.
                let kind = *self.dice.pick(&[1, 15, 21]);
                let flags = *self.dice.pick(&[5, 6, 7, -1, 100]);
                let ttl = *self.dice.pick(&[0, -1, -5, i64::MAX]);
                let path = self.path();
                Op::Create { kind, path, data, acl, flags, ttl }
            }
        }
    }

    fn delete(&mut self) -> Op {
        let path = if self.dice.chance(5) {
            (*self.dice.pick(&SYSTEM_PATHS)).into()
        } else if self.dice.chance(10) {
            (*self.dice.pick(&CONTAINERS)).into()
        } else {
            self.path()
        };
        Op::Delete { path, version: *self.dice.pick(&VERSIONS) }
    }

    fn set_data(&mut self) -> Op {
        let (path, data) = (self.path(), *self.dice.pick(&DATA));
        Op::SetData { path, data, version: *self.dice.pick(&VERSIONS) }
    }

    fn path(&mut self) -> String {
        let path = if self.dice.chance(2) {
            self.dice.pick(&BAD_PATHS)
        } else if self.dice.chance(1) {
            self.dice.pick(&SYSTEM_PATHS)
        } else {
            self.dice.pick(&PATHS)
        };
        (*path).into()
    }

    fn acl(&mut self, open: usize) -> Vec<Line> {
        let acl = if self.dice.chance(open) { OPEN } else { self.dice.pick(&ACLS) };
        acl.to_vec()
    }

    fn watching(&mut self, session: usize, op: impl Fn(String, bool) -> Op) -> Op {
        let path = self.path();
        let watch = habit(session, &path) == Habit::Once && self.dice.chance(50);
        op(path, watch)
    }

    fn add_watch(&mut self, session: usize) -> Op {
        if self.dice.chance(3) {
            return Op::AddWatch { path: self.path(), mode: *self.dice.pick(&[-1, 2, 77]) };
        }
        let path = self.path_with(session, |habit| habit != Habit::Once);
        let mode = if habit(session, &path) == Habit::Persistent { 0 } else { 1 };
        Op::AddWatch { path, mode }
    }

    /// To remove a watch, or to ask whether it is there.
    fn about_watch(&mut self, session: usize, remove: bool) -> Op {
        let path = *self.dice.pick(&PATHS);
        let kind = match habit(session, path) {
            Habit::Once => *self.dice.pick(&[1, 2, 3]),
            Habit::Persistent | Habit::Recursive => 3,
        };
        let path = path.into();
        if remove { Op::RemoveWatches { path, kind } } else { Op::CheckWatches { path, kind } }
    }

    fn set_watches(&mut self, session: usize) -> Op {
        let back = self.dice.below(20);
        let count = if self.dice.chance(50) { 3 } else { 5 };
        let lists = (0..count).map(|list| {
            let wanted =
                [Habit::Once, Habit::Once, Habit::Once, Habit::Persistent, Habit::Recursive];
            let mut paths: Vec<_> = (0..self.dice.below(4))
                .map(|_| self.path_with(session, |habit| habit == wanted[list]))
                .collect();
            paths.sort();
            paths.dedup();
            paths
        });
        Op::SetWatches { back, lists: lists.collect() }
    }

    fn path_with(&mut self, session: usize, fits: impl Fn(Habit) -> bool) -> String {
        let fitting: Vec<_> = PATHS.iter().filter(|path| fits(habit(session, path))).collect();
        (**self.dice.pick(&fitting)).into()
    }
}

/// Whether ZooKeeper gets the requests right that come after this one only once it is answered.
fn lingers(op: &Op) -> bool {
    match op {
        // Writes that follow are still checked against the old ACL.
        Op::SetAcl { .. } => true,
        // What comes before impossible flags is not done, but counted among the parent's changes.
        Op::Multi(ops) => ops.iter().any(has_impossible_flags),
        _ => false,
    }
}

/// Whether it is a create whose flags name no kind of node, or one that it cannot make.
pub(crate) fn has_impossible_flags(op: &Op) -> bool {
    match op {
        Op::Create { kind: 21, flags: 5 | 6, ttl, .. } => !(1..1 << 40).contains(ttl),
        Op::Create { kind: 21, .. } => true,
        Op::Create { flags, .. } => !(0..=4).contains(flags),
        _ => false,
    }
}

fn habit(session: usize, path: &str) -> Habit {
    let sum: usize = path.bytes().map(usize::from).sum();
    match (sum + session) % SESSIONS {
        0 => Habit::Persistent,
        1 => Habit::Recursive,
        _ => Habit::Once,
    }
}
