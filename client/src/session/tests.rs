//! The session against a small model of the servers, over connections that break anywhere.
//!
//! Whatever breaks: every request is answered once and in order, every write is carried out once
//! and in order, a watch reports exactly what happened after it was set, and an event arrives
//! before any answer that knows of it.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail by a panic"
)]

use std::collections::{BTreeMap, VecDeque};

use conclave_proto::{EventKind, Stat, WatchKind, ZPath};

use super::*;
use crate::dice::Dice;

const TIMEOUT_MS: u32 = 9_000;
const PATHS: usize = 3;

fn session(operation_timeout_ms: u64) -> Session<u64, u64> {
    Session::new(Config { session_timeout_ms: TIMEOUT_MS, operation_timeout_ms, read_only: false })
}

fn path(number: usize) -> ZPath {
    ZPath::new(&format!("/{number}")).unwrap()
}

fn z(number: u64) -> Zxid {
    Zxid::from_bits(number)
}

/// The servers: what has happened, what the session has written, and its connection.
#[derive(Default)]
struct Servers {
    /// One entry a transaction: the paths that it changed, in order.
    history: Vec<Vec<usize>>,
    /// The transaction of each write, by its number.
    written: BTreeMap<u64, u64>,
    connection: Option<Wire>,
}

#[derive(Default)]
struct Wire {
    to_server: VecDeque<ClientMessage>,
    to_client: VecDeque<ServerMessage>,
    watches: BTreeMap<WatchId, (usize, WatchKind)>,
    asked: usize,
}

impl Servers {
    fn now(&self) -> u64 {
        self.history.len() as u64
    }

    /// The transactions that changed a path, once for each time, after one of them.
    fn changes(&self, of: usize, after: u64) -> impl Iterator<Item = u64> {
        (after + 1..).zip(&self.history[usize::try_from(after).unwrap()..]).flat_map(
            move |(zxid, paths)| paths.iter().filter(move |&&path| path == of).map(move |_| zxid),
        )
    }

    fn commit(&mut self, paths: Vec<usize>) -> u64 {
        self.history.push(paths.clone());
        let zxid = self.now();
        let Some(wire) = &mut self.connection else { return zxid };
        for changed in paths {
            let watches = wire.watches.clone();
            for (watch, (_, kind)) in watches.into_iter().filter(|(_, (path, _))| *path == changed)
            {
                wire.to_client.push_back(told(watch, changed, zxid));
                if kind.is_one_shot() {
                    wire.watches.remove(&watch);
                }
            }
        }
        zxid
    }

    /// The server hears the next message.
    fn hear(&mut self) {
        let Some(wire) = &mut self.connection else { return };
        match wire.to_server.pop_front() {
            None => {}
            Some(ClientMessage::Connect(connect)) => {
                assert!(connect.last_zxid <= z(self.now()), "that has not happened yet");
                let now = self.now();
                self.say(ServerMessage::Connected(Connected {
                    session: SessionId(1),
                    secret: Secret::new([1; 16]),
                    timeout_ms: TIMEOUT_MS,
                    resumed: connect.session.is_some(),
                    read_only: false,
                    server: ServerId::new(1).unwrap(),
                    zxid: z(now),
                    limits: ServerLimits { frame_bytes: 1 << 20, in_flight: 5 },
                }));
            }
            Some(ClientMessage::Ping) => {
                let zxid = z(self.now());
                self.say(ServerMessage::Pong { zxid, counted_ms_ago: Some(0) });
            }
            Some(ClientMessage::Request { xid, acked, op, .. }) => {
                wire.asked += 1;
                assert!(wire.asked <= 5, "more requests in flight than allowed");
                assert!(xid.0 == 0 || acked < xid, "an answer cannot be there before its request");
                let (zxid, reply) = self.carry_out(xid.0, op);
                let response = Response { xid, zxid: z(zxid), result: Ok(reply) };
                self.say(ServerMessage::Response(response));
            }
        }
    }

    fn carry_out(&mut self, xid: u64, op: Op) -> (u64, Reply) {
        match op {
            Op::SetData { path, .. } => {
                let done = self.written.get(&xid).copied();
                let zxid = done.unwrap_or_else(|| {
                    assert!(self.written.keys().all(|&before| before < xid), "out of order");
                    let zxid = self.commit(vec![number(&path)]);
                    self.written.insert(xid, zxid);
                    zxid
                });
                (zxid, Reply::Stat(Stat::default()))
            }
            Op::Get { path, watch } => {
                let wire = self.connection.as_mut().unwrap();
                if let Some(watch) = watch {
                    wire.watches.insert(watch, (number(&path), WatchKind::Data));
                }
                (self.now(), Reply::Data { data: None, stat: Stat::default() })
            }
            Op::Watch { id, path, kind, since, .. } => {
                let path = number(&path);
                let since = since.map_or(self.now(), Zxid::bits);
                let missed: Vec<u64> = self.changes(path, since).collect();
                let wire = self.connection.as_mut().unwrap();
                wire.watches.insert(id, (path, kind));
                for zxid in missed {
                    wire.to_client.push_back(told(id, path, zxid));
                    if kind.is_one_shot() {
                        wire.watches.remove(&id);
                        break;
                    }
                }
                (self.now(), Reply::Done)
            }
            other => panic!("{other:?} was not asked"),
        }
    }

    fn say(&mut self, message: ServerMessage) {
        self.connection.as_mut().unwrap().to_client.push_back(message);
    }
}

fn told(watch: WatchId, path: usize, zxid: u64) -> ServerMessage {
    let event = Event { zxid: z(zxid), path: self::path(path), kind: EventKind::DataChanged };
    ServerMessage::Event { watch, event, value: None }
}

fn number(path: &ZPath) -> usize {
    path.name().parse().unwrap()
}

/// What the test knows of a watch.
struct Watched {
    path: usize,
    kind: WatchKind,
    /// From where it was asked to report.
    since: Option<u64>,
    /// From where it does report, once that is known.
    set_at: Option<u64>,
    told: Vec<u64>,
    finished: bool,
}

struct World {
    dice: Dice,
    now_ms: u64,
    session: Session<u64, u64>,
    servers: Servers,
    /// What was asked, by its token, and what of it was answered.
    asked: Vec<Asked>,
    answered: usize,
    watches: Vec<Watched>,
}

#[derive(Clone, Copy)]
enum Asked {
    Set,
    Get,
    Watch(usize),
}

impl World {
    fn new(seed: u64) -> World {
        World {
            dice: Dice::new(seed),
            now_ms: 0,
            session: session(u64::MAX),
            servers: Servers::default(),
            asked: Vec::new(),
            answered: 0,
            watches: Vec::new(),
        }
    }

    fn step(&mut self) {
        match self.dice.below(20) {
            0..4 => self.ask(),
            4..8 => self.send(),
            8..12 => self.servers.hear(),
            12..16 => self.receive(),
            16 | 17 => {
                let paths = (0..=self.dice.below(4)).map(|_| self.dice.below(PATHS)).collect();
                self.servers.commit(paths);
            }
            18 => {
                // Long enough for a ping to be due.
                self.now_ms += u64::from(TIMEOUT_MS / 3);
                self.session.tick(self.now_ms);
            }
            _ => self.cut_or_connect(),
        }
        self.settle();
        if self.session.leaving().is_some() {
            self.session.disconnected();
            self.servers.connection = None;
        }
    }

    fn ask(&mut self) {
        let token = self.asked.len() as u64;
        let path = path(self.dice.below(PATHS));
        let watch = WatchId(self.watches.len() as u64);
        let since = match self.dice.below(2) {
            0 => None,
            _ => Some(z(self.dice.up_to(self.servers.now()))),
        };
        let (op, kind) = match self.dice.below(4) {
            0 => (Op::Get { path, watch: Some(watch) }, Some(WatchKind::Data)),
            1 => {
                let kind = WatchKind::Persistent;
                (Op::Watch { id: watch, path, kind, since, with_value: false }, Some(kind))
            }
            2 => (Op::Get { path, watch: None }, None),
            _ => (Op::SetData { path, data: None, version: None }, None),
        };
        let place = self.watches.len();
        self.asked.push(match (&op, kind) {
            (_, Some(_)) => Asked::Watch(place),
            (Op::SetData { .. }, None) => Asked::Set,
            (_, None) => Asked::Get,
        });
        if let (Some(kind), Op::Get { path, .. } | Op::Watch { path, .. }) = (kind, &op) {
            let path = number(path);
            let since = since.filter(|_| kind == WatchKind::Persistent).map(Zxid::bits);
            let (told, finished) = (Vec::new(), false);
            self.watches.push(Watched { path, kind, since, set_at: None, told, finished });
        }
        let sink = kind.map(|_| place as u64);
        self.session.submit(self.now_ms, op, ReadLevel::Local, sink, token);
    }

    fn send(&mut self) {
        let Some(wire) = &mut self.servers.connection else { return };
        if let Some(message) = self.session.next_message(self.now_ms) {
            wire.to_server.push_back(message.clone());
        }
    }

    fn receive(&mut self) {
        let Some(wire) = &mut self.servers.connection else { return };
        if let Some(message) = wire.to_client.pop_front() {
            if matches!(message, ServerMessage::Response(_)) {
                wire.asked -= 1;
            }
            self.session.receive(self.now_ms, message);
        }
    }

    fn cut_or_connect(&mut self) {
        match self.servers.connection.take() {
            Some(_) => self.session.disconnected(),
            None => {
                self.servers.connection = Some(Wire::default());
                self.session.connected(self.now_ms + 60_000);
            }
        }
    }

    /// Checks what the session has told its callers.
    fn settle(&mut self) {
        let mut effects = Vec::new();
        self.session.take_effects(&mut effects);
        for effect in effects {
            match effect {
                Effect::Complete(token, outcome) => {
                    self.completed(token, outcome.unwrap().zxid.bits())
                }
                Effect::Event(watch, event, _) => {
                    let watch = &mut self.watches[usize::try_from(watch).unwrap()];
                    assert!(!watch.finished, "an event after the last");
                    assert_eq!(event.path, path(watch.path));
                    watch.told.push(event.zxid.bits());
                }
                Effect::Finish(watch, failure) => {
                    assert_eq!(failure, None);
                    self.watches[usize::try_from(watch).unwrap()].finished = true;
                }
                Effect::State(State::Connected | State::Suspended | State::Resumed) => {}
                other => panic!("unexpected: {other:?}"),
            }
        }
    }

    fn completed(&mut self, token: u64, zxid: u64) {
        assert_eq!(token, self.answered as u64, "answers come in order, and once");
        self.answered += 1;
        match self.asked[usize::try_from(token).unwrap()] {
            Asked::Set => {}
            // Nothing that this answer knows of is still to be told.
            Asked::Get => self.watches.iter().for_each(|watch| {
                let Some(set_at) = watch.set_at else { return };
                let known = self.servers.changes(watch.path, set_at).filter(|&at| at <= zxid);
                let due =
                    if watch.kind.is_one_shot() { known.count().min(1) } else { known.count() };
                assert!(watch.told.len() >= due, "an answer came before an event it knows of");
            }),
            Asked::Watch(watch) => {
                let watch = &mut self.watches[watch];
                watch.set_at = watch.since.or(Some(zxid));
            }
        }
    }

    /// Lets everything come to an end, and compares.
    fn finish(mut self) {
        if self.servers.connection.is_none() {
            self.cut_or_connect();
        }
        for _ in 0..10_000 {
            self.send();
            self.servers.hear();
            self.receive();
            self.settle();
        }
        assert_eq!(self.answered, self.asked.len(), "every request is answered");
        let writes = self.asked.iter().filter(|asked| matches!(asked, Asked::Set)).count();
        assert_eq!(self.servers.written.len(), writes, "every write is carried out once");
        for watch in &self.watches {
            let set_at = watch.set_at.expect("every watch is set in the end");
            let mut expected: Vec<u64> = self.servers.changes(watch.path, set_at).collect();
            if watch.kind.is_one_shot() {
                expected.truncate(1);
            }
            assert_eq!(watch.told, expected, "a watch of {} set at {set_at}", watch.path);
            assert_eq!(watch.finished, watch.kind.is_one_shot() && !expected.is_empty());
        }
    }
}

#[test]
fn nothing_is_lost_or_repeated_over_connections_that_break_anywhere() {
    for seed in 0..2_000 {
        let mut world = World::new(seed);
        let run = std::panic::AssertUnwindSafe(|| {
            for _ in 0..400 {
                world.step();
            }
            world.finish();
        });
        if let Err(panic) = std::panic::catch_unwind(run) {
            println!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// An open session that was greeted at the time 0.
fn open() -> Session<u64, u64> {
    let mut session = session(60_000);
    session.connected(1_000);
    session.next_message(0);
    greet(&mut session, 0);
    session
}

fn greet(session: &mut Session<u64, u64>, now_ms: u64) {
    greet_as(session, now_ms, false);
}

fn greet_as(session: &mut Session<u64, u64>, now_ms: u64, read_only: bool) {
    let connected = Connected {
        session: SessionId(1),
        secret: Secret::new([1; 16]),
        timeout_ms: TIMEOUT_MS,
        resumed: session.facts().session == SessionId(1),
        read_only,
        server: ServerId::new(1).unwrap(),
        zxid: z(1),
        limits: ServerLimits { frame_bytes: 1 << 20, in_flight: 5 },
    };
    session.receive(now_ms, ServerMessage::Connected(connected));
}

fn next(session: &mut Session<u64, u64>, now_ms: u64) -> Option<ClientMessage> {
    session.next_message(now_ms).cloned()
}

fn get(session: &mut Session<u64, u64>, now_ms: u64, token: u64) {
    session.submit(now_ms, Op::WhoAmI, ReadLevel::Local, None, token);
}

fn answer(session: &mut Session<u64, u64>, now_ms: u64, xid: u64) {
    let response = Response { xid: Xid(xid), zxid: z(1), result: Ok(Reply::Identities(vec![])) };
    session.receive(now_ms, ServerMessage::Response(response));
}

fn pong(session: &mut Session<u64, u64>, now_ms: u64, counted_ms_ago: Option<u32>) {
    session.receive(now_ms, ServerMessage::Pong { zxid: z(1), counted_ms_ago });
}

/// The time comes, and a ping is sent.
fn ping(session: &mut Session<u64, u64>, at_ms: u64) {
    assert_eq!(session.next_tick(), Some(at_ms));
    session.tick(at_ms - 1);
    assert_eq!(next(session, at_ms - 1), None);
    session.tick(at_ms);
    assert_eq!(next(session, at_ms), Some(ClientMessage::Ping));
    assert_eq!(next(session, at_ms), None);
}

#[test]
fn a_quiet_connection_is_tried_in_time_to_find_another_server() {
    let mut session = open();
    ping(&mut session, 2_250);
    assert_eq!(session.next_tick(), Some(3_750));
    session.tick(3_749);
    assert_eq!(session.leaving(), None);
    session.tick(3_750);
    assert_eq!(session.leaving(), Some(Leave::Silent));
}

#[test]
fn a_connection_on_which_a_request_waits_is_tried_sooner() {
    let mut session = open();
    get(&mut session, 100, 0);
    next(&mut session, 100);
    ping(&mut session, 850);
    // The request takes its time, but the server is alive.
    pong(&mut session, 900, Some(0));
    ping(&mut session, 1_650);
    // So it is while it says anything at all.
    session.receive(3_000, told(WatchId(9), 0, 1));
    assert_eq!(session.next_tick(), Some(4_500));
    session.tick(4_500);
    assert_eq!(session.leaving(), Some(Leave::Silent));
}

#[test]
fn a_session_is_certain_as_far_as_the_servers_count() {
    let mut session = open();
    let until_ms = |session: &Session<u64, u64>| session.facts().certain_until_ms;
    assert_eq!(until_ms(&session), 9_000);
    // An answer does not show that the servers count from this request on.
    get(&mut session, 100, 0);
    next(&mut session, 150);
    answer(&mut session, 600, 1);
    assert_eq!(until_ms(&session), 9_000);
    ping(&mut session, 2_250);
    pong(&mut session, 2_300, Some(1_000));
    assert_eq!(until_ms(&session), 2_250 - 1_000 + 9_000);
    ping(&mut session, 4_500);
    pong(&mut session, 4_600, None);
    assert_eq!(until_ms(&session), 10_250);
    // There is less than half of the timeout left: it is asked more often, and with all there is
    // at hand again less often.
    ping(&mut session, 5_750);
    pong(&mut session, 5_800, Some(4_500));
    ping(&mut session, 6_500);
    pong(&mut session, 6_600, Some(100));
    assert_eq!(until_ms(&session), 6_500 - 100 + 9_000);
    assert_eq!(session.next_tick(), Some(8_750));
    // A later connection changes nothing before its first pong.
    session.disconnected();
    session.connected(60_000);
    next(&mut session, 9_000);
    greet(&mut session, 9_001);
    assert_eq!(until_ms(&session), 15_400);
    ping(&mut session, 10_900);
    pong(&mut session, 10_950, Some(0));
    assert_eq!(until_ms(&session), 19_900);
}

#[test]
fn a_session_without_a_quorum_is_never_certain() {
    let mut session = session(60_000);
    session.connected(1_000);
    session.next_message(0);
    greet_as(&mut session, 0, true);
    assert_eq!(session.facts().certain_until_ms, 0);
    assert!(session.is_open());
}

#[test]
fn what_has_timed_out_keeps_its_place_among_the_numbers() {
    let mut session = open();
    for token in 0..7 {
        get(&mut session, token, token);
    }
    while next(&mut session, 10).is_some() {}
    let mut effects = Vec::new();
    session.take_effects(&mut effects);
    effects.clear();
    assert_eq!(session.take_freed(), (0, 0));
    session.tick(60_000);
    session.take_effects(&mut effects);
    assert_eq!(effects, [Effect::Complete(0, Err(Failure::Timeout { sent: true }))]);
    effects.clear();
    session.tick(60_006);
    session.take_effects(&mut effects);
    let sent: Vec<bool> = effects
        .drain(..)
        .filter_map(|effect| match effect {
            Effect::Complete(_, Err(Failure::Timeout { sent })) => Some(sent),
            _ => None,
        })
        .collect();
    assert_eq!(sent, [true, true, true, true, false, false]);
    get(&mut session, 60_010, 7);
    session.disconnected();
    session.connected(70_000);
    next(&mut session, 60_010);
    greet(&mut session, 60_010);
    let again: Vec<u64> = std::iter::from_fn(|| next(&mut session, 60_010))
        .map(|message| match message {
            ClientMessage::Request { xid, .. } => xid.0,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(again, [1, 2, 3, 4, 5]);
    (1..=5).for_each(|xid| answer(&mut session, 60_010, xid));
    assert!(matches!(
        next(&mut session, 60_010),
        Some(ClientMessage::Request { xid: Xid(6), acked: Xid(5), .. })
    ));
    answer(&mut session, 60_010, 6);
    session.take_effects(&mut effects);
    assert!(matches!(effects.last(), Some(Effect::Complete(7, Ok(_)))), "{effects:?}");
    assert_eq!(session.take_freed().0, 8);
}

#[test]
fn a_read_that_nobody_waits_for_is_not_asked_again() {
    let mut session = open();
    let level = ReadLevel::AtLeast(z(1_000));
    let (watch, path) = (WatchId(7), path(0));
    let read = Op::Get { path: path.clone(), watch: Some(watch) };
    let write = Op::SetData { path, data: None, version: None };
    session.submit(0, read, level, Some(70), 0);
    session.submit(0, write.clone(), level, None, 1);
    while next(&mut session, 0).is_some() {}
    session.tick(60_000);
    let mut effects = Vec::new();
    session.take_effects(&mut effects);
    session.disconnected();
    session.connected(70_000);
    next(&mut session, 60_000);
    greet(&mut session, 60_000);
    let asked = std::iter::from_fn(|| next(&mut session, 60_000)).map(|message| match message {
        ClientMessage::Request { xid, level, op, .. } => (xid.0, level, op),
        other => panic!("{other:?}"),
    });
    assert_eq!(asked.collect::<Vec<_>>(), [(1, ReadLevel::Local, Op::WhoAmI), (2, level, write)]);
    effects.clear();
    session.take_effects(&mut effects);
    assert!(effects.contains(&Effect::Finish(70, None)), "{effects:?}");
    (1..=2).for_each(|xid| answer(&mut session, 60_000, xid));
    // The watch is not set again either.
    session.disconnected();
    session.connected(70_000);
    next(&mut session, 60_000);
    greet(&mut session, 60_000);
    assert_eq!(next(&mut session, 60_000), None);
}
