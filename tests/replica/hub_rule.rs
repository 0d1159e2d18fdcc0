//! The rule of the hub over whole servers: random histories in which clients write, watch, break
//! off and come back at other servers, while links are slow.
//!
//! Every watch is told exactly what happened after the read that set it, in order, once, and
//! before its client can see the change; what a client is told never goes back.

use bytes::Bytes;
use conclave_proto::request::{Page, ReadLevel};
use conclave_proto::{
    Acl, CreateMode, Event, EventKind, Op, ServerMessage, WatchId, WatchKind, Xid, ZPath, Zxid,
};
use proptest::prelude::*;

use crate::world::{World, server};

const PATHS: [&str; 5] = ["/", "/a", "/a/b", "/a/b/c", "/d"];
const CLIENTS: [&str; 3] = ["one", "two", "three"];

#[derive(Clone, Debug)]
enum Step {
    Create { client: usize, path: usize },
    Delete { client: usize, path: usize },
    Set { client: usize, path: usize },
    Watch { client: usize, path: usize, kind: WatchKind },
    Read { client: usize, path: usize, level: ReadLevel },
    Move { client: usize, to: u8 },
    Hold { from: u8, to: u8 },
    Release,
    Settle,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let client = || 0..CLIENTS.len();
    let path = || 0..PATHS.len();
    let kind = prop_oneof![
        Just(WatchKind::Data),
        Just(WatchKind::Exists),
        Just(WatchKind::Children),
        Just(WatchKind::Persistent),
        Just(WatchKind::PersistentRecursive),
    ];
    let level = prop_oneof![Just(ReadLevel::Local), Just(ReadLevel::Linearizable)];
    let step = prop_oneof![
        4 => (client(), 1..PATHS.len()).prop_map(|(client, path)| Step::Create { client, path }),
        2 => (client(), 1..PATHS.len()).prop_map(|(client, path)| Step::Delete { client, path }),
        4 => (client(), path()).prop_map(|(client, path)| Step::Set { client, path }),
        4 => (client(), path(), kind)
            .prop_map(|(client, path, kind)| Step::Watch { client, path, kind }),
        3 => (client(), path(), level)
            .prop_map(|(client, path, level)| Step::Read { client, path, level }),
        1 => (client(), 1..4u8).prop_map(|(client, to)| Step::Move { client, to }),
        1 => (1..4u8, 1..4u8).prop_map(|(from, to)| Step::Hold { from, to }),
        2 => Just(Step::Release),
        3 => Just(Step::Settle),
    ];
    prop::collection::vec(step, 0..60)
}

/// A watch that a client has set, and what it was told.
struct Set {
    client: usize,
    id: WatchId,
    path: ZPath,
    kind: WatchKind,
    xid: u64,
}

fn path(index: usize) -> ZPath {
    ZPath::new(PATHS[index]).unwrap()
}

/// Set a watch as its kind is usually set: by a read, if it is set once.
fn watching(id: WatchId, path: ZPath, kind: WatchKind) -> Op {
    let watch = Some(id);
    match kind {
        WatchKind::Data => Op::Get { path, watch },
        WatchKind::Exists => Op::Exists { path, watch },
        WatchKind::Children => Op::Children { path, watch, page: Page::default() },
        WatchKind::Persistent | WatchKind::PersistentRecursive => {
            Op::Watch { id, path, kind, since: None, with_value: false }
        }
    }
}

struct Run {
    world: World,
    set: Vec<Set>,
}

impl Run {
    /// Three servers, the clients, and one who is told of everything.
    fn begin() -> Run {
        let mut world = World::new(3);
        world.elect();
        world.dial("recorder", server(1), 60_000);
        for (place, name) in CLIENTS.iter().enumerate() {
            world.dial(name, server(u8::try_from(place).unwrap() + 1), 60_000);
        }
        world.settle();
        for index in 0..PATHS.len() {
            let id = WatchId(index as u64 + 1);
            world.ask(
                "recorder",
                ReadLevel::Local,
                watching(id, path(index), WatchKind::Persistent),
            );
        }
        world.settle();
        Run { world, set: Vec::new() }
    }

    fn step(&mut self, step: Step) {
        let local = ReadLevel::Local;
        match step {
            Step::Create { client, path: at } => {
                let (acl, mode) = (Acl::open(), CreateMode::PERSISTENT);
                let op = Op::Create { path: path(at), data: None, acl, mode };
                self.world.ask(CLIENTS[client], local, op);
            }
            Step::Delete { client, path: at } => {
                let op = Op::Delete { path: path(at), version: None };
                self.world.ask(CLIENTS[client], local, op);
            }
            Step::Set { client, path: at } => {
                let data = Some(Bytes::from_static(b"x"));
                let op = Op::SetData { path: path(at), data, version: None };
                self.world.ask(CLIENTS[client], local, op);
            }
            Step::Watch { client, path: at, kind } => {
                let id = WatchId(self.set.len() as u64 + 100);
                let xid = self.world.ask(CLIENTS[client], local, watching(id, path(at), kind));
                self.set.push(Set { client, id, path: path(at), kind, xid });
            }
            Step::Read { client, path: at, level } => {
                self.world.ask(CLIENTS[client], level, Op::Get { path: path(at), watch: None });
            }
            Step::Move { client, to } => self.come_back(client, to),
            Step::Hold { from, to } => self.world.hold(server(from), server(to), true),
            Step::Release => self.release(),
            Step::Settle => self.world.settle(),
        }
    }

    fn release(&mut self) {
        for from in 1..4 {
            for to in 1..4 {
                self.world.hold(server(from), server(to), false);
            }
        }
    }

    /// Break off once everything is answered, come back elsewhere, and set all watches again.
    fn come_back(&mut self, client: usize, to: u8) {
        self.release();
        self.world.settle();
        let name = CLIENTS[client];
        self.world.hang_up(name);
        // What is changed meanwhile has to be told later.
        let others = (client + 1) % CLIENTS.len();
        self.step(Step::Set { client: others, path: 1 });
        self.step(Step::Create { client: others, path: 4 });
        self.world.settle();
        let since = Some(self.world.clients[name].last_zxid);
        self.world.dial(name, server(to), 60_000);
        self.world.settle();
        for index in 0..self.set.len() {
            let Set { client: whose, id, kind, xid, .. } = self.set[index];
            let told = &self.world.clients[name].received;
            let answer = told.iter().position(|message| is_answer(message, xid));
            let spent = kind.is_one_shot() && events(told, id).next().is_some();
            if whose == client && answer.is_some_and(|at| armed(&told[at], kind)) && !spent {
                let path = self.set[index].path.clone();
                let op = Op::Watch { id, path, kind, since, with_value: false };
                self.world.ask_as(name, 0, ReadLevel::Local, op);
            }
        }
        self.world.settle();
    }

    fn check(mut self) {
        self.release();
        self.world.settle();
        let recorder = &self.world.clients["recorder"].received;
        let all: Vec<Event> = (1..=PATHS.len() as u64)
            .flat_map(|id| events(recorder, WatchId(id)).cloned())
            .collect();
        for name in CLIENTS {
            let mut seen = Zxid::ZERO;
            let mut catching_up = false;
            for message in &self.world.clients[name].received {
                // A client that comes back is first told, watch by watch, what it has missed.
                if let ServerMessage::Connected(_) = message {
                    catching_up = true;
                } else if let ServerMessage::Response(it) = message {
                    catching_up = it.xid == Xid(0);
                }
                let now = zxid(message).unwrap_or(seen);
                assert!(catching_up || now >= seen, "{name} goes back from {seen}: {message:?}");
                seen = seen.max(now);
            }
        }
        for set in &self.set {
            self.check_watch(set, &all);
        }
    }

    fn check_watch(&self, set: &Set, all: &[Event]) {
        let told = &self.world.clients[CLIENTS[set.client]].received;
        let Some(answer) = told.iter().find(|message| is_answer(message, set.xid)) else {
            return;
        };
        if !armed(answer, set.kind) {
            assert_eq!(events(told, set.id).count(), 0, "a watch that was not set is told");
            return;
        }
        let since = zxid(answer).expect("an answer has a zxid");
        let concerns = |event: &&Event| {
            let place = if set.kind == WatchKind::PersistentRecursive {
                event.path.is_within(&set.path)
            } else {
                event.path == set.path
            };
            place && event.zxid > since && set.kind.fires_on(event.kind)
        };
        let key = |event: &Event| (event.zxid, event.path.clone(), event.kind);
        let mut expected: Vec<(Zxid, ZPath, EventKind)> =
            all.iter().filter(concerns).map(key).collect();
        expected.sort();
        if set.kind.is_one_shot() {
            expected.truncate(1);
        }
        let got: Vec<_> = events(told, set.id).map(key).collect();
        assert!(got.is_sorted_by_key(|(zxid, _, _)| *zxid), "events out of order: {got:?}");
        let mut sorted = got.clone();
        sorted.sort();
        assert_eq!(sorted, expected, "{:?} on {} since {since}", set.kind, set.path);
        for (happened, ..) in got {
            let event = told.iter().position(|message| is_event(message, set.id, happened));
            let reveals = |message: &ServerMessage| matches!(message, ServerMessage::Response(it) if it.zxid >= happened && it.xid != Xid(0));
            let shown = told.iter().position(reveals).unwrap_or(usize::MAX);
            assert!(event < Some(shown), "the change at {happened} is seen before it is told");
        }
    }
}

/// Whether the answer says that the watch was set with the read.
fn armed(answer: &ServerMessage, kind: WatchKind) -> bool {
    let ok = matches!(answer, ServerMessage::Response(it) if it.result.is_ok());
    ok || kind == WatchKind::Exists
}

fn is_answer(message: &ServerMessage, xid: u64) -> bool {
    matches!(message, ServerMessage::Response(it) if it.xid == Xid(xid))
}

fn is_event(message: &ServerMessage, id: WatchId, at: Zxid) -> bool {
    matches!(message, ServerMessage::Event { watch, event, .. } if *watch == id && event.zxid == at)
}

fn events(told: &[ServerMessage], id: WatchId) -> impl Iterator<Item = &Event> {
    told.iter().filter_map(move |message| {
        let ServerMessage::Event { watch, event, .. } = message else { return None };
        (*watch == id).then_some(event)
    })
}

fn zxid(message: &ServerMessage) -> Option<Zxid> {
    match message {
        ServerMessage::Connected(it) => Some(it.zxid),
        ServerMessage::Response(it) => Some(it.zxid),
        ServerMessage::Event { event, .. } => Some(event.zxid),
        ServerMessage::Pong { zxid, .. } | ServerMessage::Gap { resumed_at: zxid, .. } => {
            Some(*zxid)
        }
        ServerMessage::Refused(_) | ServerMessage::GoAway { .. } => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_watch_is_told_exactly_what_happened(steps in steps()) {
        let mut run = Run::begin();
        for step in steps {
            run.step(step);
        }
        run.check();
    }
}
