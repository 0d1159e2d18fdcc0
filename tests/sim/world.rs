//! The world: servers, their disks, the network between them, clients, and time. One thread, one
//! seed.

use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

use conclave::zab::{self, Notice, Position, WriteToken};
use conclave_proto::ServerId;

use crate::checks::Checks;
use crate::disk::Disk;
use crate::faults::Loss;
use crate::knobs::{Knobs, MS, SECOND};
use crate::machine::{Input, Load, Machine, Ready, Settings, Stage};
use crate::net::{Net, Passage};
use crate::queue::Queue;
use crate::random::Random;
use crate::trace::Trace;
use crate::transfer::{Receiving, Sending};

/// The time of day at which every simulation begins, in ms since 1970.
const GENESIS_MS: i64 = 1_700_000_000_000;

/// What travels between servers.
pub(crate) enum Packet<M: Machine> {
    /// A message of the machines.
    Message(M::Message),
    /// A piece of a snapshot.
    Chunk(Chunk<M::State>),
}

/// A piece of a snapshot.
pub(crate) struct Chunk<S> {
    /// The number of the synchronisation.
    pub(crate) sync: u64,
    /// Its place.
    pub(crate) index: u32,
    /// The whole state, in the last piece.
    pub(crate) last: Option<Rc<S>>,
}

/// A packet on its way.
pub(crate) struct Parcel<M: Machine> {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// The connection it was sent on; `None` if it may arrive on any.
    pub(crate) generation: Option<u32>,
    pub(crate) packet: Packet<M>,
}

/// What is on the timeline.
pub(crate) enum Event<M: Machine, L: Load<M>> {
    /// A packet arrives.
    Arrive(Parcel<M>),
    /// A server's clock ticks.
    Tick { server: usize, incarnation: u32 },
    /// A server that stopped short of doing all it could takes its next turn.
    Turn { server: usize, incarnation: u32 },
    /// A sync comes back.
    Synced { server: usize, incarnation: u32, failed: bool },
    /// A checkpoint is durable.
    Checkpoint { server: usize, incarnation: u32, at: Position, state: M::State },
    /// It is time to begin a checkpoint.
    BeginCheckpoint { server: usize, incarnation: u32 },
    /// The next piece of a snapshot leaves.
    SendChunk { server: usize, incarnation: u32, to: usize, sync: u64 },
    /// A received snapshot is loaded, or has had enough time to be.
    Loaded { server: usize, incarnation: u32, sync: u64 },
    /// Whether a transfer has come to a halt is looked at.
    Stalled { server: usize, incarnation: u32, sync: u64, received: u32 },
    /// A paused server goes on.
    Resume { server: usize, incarnation: u32 },
    /// A planned stop is over, whether or not the server was ready for it.
    Stop { server: usize, incarnation: u32 },
    /// A server that is down starts.
    Start { server: usize, loss: Loss },
    /// A connection's end is noticed, and everything under way on it is gone.
    Broken { from: usize, to: usize, generation: u32 },
    /// A server notices that a link broke.
    Notice { server: usize, incarnation: u32, peer: usize },
    /// A connection is tried.
    Dial { from: usize, to: usize, incarnation: u32 },
    /// The load's own.
    Load(L::Event),
    /// A fault strikes.
    Fault(crate::faults::Fault),
}

/// What a process is told; while it is paused, later.
pub(crate) enum Happening<M: Machine> {
    /// For its machine.
    Input(Input<M::Message, M::Request>),
    /// Writes are durable.
    Synced(WriteToken),
    /// A piece of a snapshot.
    Chunk(usize, Chunk<M::State>),
    /// A snapshot can be installed.
    Loaded(u64),
}

/// A server's process.
pub(crate) struct Server<M: Machine> {
    /// `None`: it is down.
    pub(crate) machine: Option<M>,
    /// Grows with each start.
    pub(crate) incarnation: u32,
    /// It does nothing until then; 0: it runs.
    pub(crate) paused_until: u64,
    /// Whether it is about to stop as planned.
    pub(crate) stopping: bool,
    /// What waits for the end of its pause.
    inbox: VecDeque<Happening<M>>,
    missed_ticks: u32,
    /// Its tick's period in µs of true time.
    pub(crate) tick: u64,
    /// Its monotonic clock runs at this rate, in thousandths.
    pub(crate) rate: u64,
    /// What its time of day is ahead, in ms.
    pub(crate) skew_ms: i64,
    durable: WriteToken,
    last_write: WriteToken,
    /// What leaves when writes are durable.
    waiting: VecDeque<(WriteToken, usize, M::Message)>,
    pub(crate) sending: Vec<Sending<M::State>>,
    pub(crate) receiving: Option<Receiving<M::State>>,
}

/// Everything there is.
pub(crate) struct World<'t, M: Machine, L: Load<M>> {
    pub(crate) knobs: Knobs,
    pub(crate) random: Random,
    pub(crate) trace: &'t mut Trace,
    pub(crate) now: u64,
    pub(crate) queue: Queue<Event<M, L>>,
    pub(crate) net: Net<Parcel<M>>,
    pub(crate) disks: Vec<Disk<M::State>>,
    pub(crate) servers: Vec<Server<M>>,
    pub(crate) running: Vec<bool>,
    pub(crate) awake: Vec<bool>,
    pub(crate) checks: Checks,
    pub(crate) load: L,
    /// Faults strike no more, except on the servers outside the core.
    pub(crate) healed: bool,
    later: Vec<(u64, L::Event)>,
    requests: Vec<(usize, M::Request)>,
}

impl<'t, M: Machine, L: Load<M>> World<'t, M, L> {
    /// The world of that seed, before anything has happened.
    pub(crate) fn new(seed: u64, trace: &'t mut Trace) -> World<'t, M, L> {
        let mut random = Random::new(seed);
        let knobs = Knobs::draw(&mut random);
        trace.line(format_args!("{knobs:?}"));
        let count = knobs.voters + knobs.observers;
        let mut world = World {
            net: Net::new(count, knobs.net.clone()),
            disks: (0..count).map(|_| Disk::blank()).collect(),
            servers: (0..count).map(|_| Server::down(&knobs, &mut random)).collect(),
            running: vec![false; count],
            awake: vec![false; count],
            checks: Checks::new(count, knobs.voters),
            load: L::new(&mut random, &knobs),
            knobs,
            random,
            trace,
            now: 0,
            queue: Queue::new(),
            healed: false,
            later: Vec::new(),
            requests: Vec::new(),
        };
        for server in 0..count {
            let at = world.random.below(2 * SECOND);
            world.queue.at(at, Event::Start { server, loss: Loss::None });
        }
        world.begin_faults();
        world.with_load(|load, stage| load.start(stage));
        world
    }

    /// Lets time pass until `until`, or until `done` says so, which it is asked every 100 ms;
    /// returns what it said last.
    pub(crate) fn run(&mut self, until: u64, done: impl Fn(&Self) -> bool) -> bool {
        let mut ask_at = self.now;
        while let Some(time) = self.queue.next_time().filter(|time| *time <= until) {
            if time >= ask_at {
                if done(self) {
                    return true;
                }
                ask_at = time + 100 * MS;
            }
            let (time, event) = self.queue.pop().expect("the queue has a next event");
            assert!(time >= self.now, "time goes back");
            self.now = time;
            self.happen(event);
        }
        self.now = until;
        done(self)
    }

    /// The end: what can only be checked now.
    pub(crate) fn finish(&mut self) {
        let machines = self.servers.iter().enumerate();
        let mut machines = machines.filter_map(|(at, it)| Some((at, it.machine.as_ref()?)));
        self.load.finish(&mut machines);
    }

    fn happen(&mut self, event: Event<M, L>) {
        self.trace.event(self.now, event.kind());
        match event {
            Event::Arrive(parcel) => self.arrive(parcel),
            Event::Tick { server, incarnation } => self.tick(server, incarnation),
            Event::Turn { server, incarnation } => {
                // A paused one takes it when it goes on.
                if self.is_alive(server, incarnation) && self.awake[server] {
                    self.perform(server);
                }
            }
            Event::Synced { server, incarnation, failed } => {
                self.synced(server, incarnation, failed);
            }
            Event::BeginCheckpoint { server, incarnation } => {
                self.begin_checkpoint(server, incarnation);
            }
            Event::Checkpoint { server, incarnation, at, state } => {
                self.end_checkpoint(server, incarnation, at, state);
            }
            Event::SendChunk { server, incarnation, to, sync } => {
                self.send_chunk(server, incarnation, to, sync);
            }
            Event::Loaded { server, incarnation, sync } => {
                if self.is_alive(server, incarnation) {
                    self.give(server, Happening::Loaded(sync));
                }
            }
            Event::Stalled { server, incarnation, sync, received } => {
                self.check_stalled(server, incarnation, sync, received);
            }
            Event::Resume { server, incarnation } => self.resume(server, incarnation),
            Event::Stop { server, incarnation } => {
                if self.is_alive(server, incarnation) {
                    self.crash(server);
                }
            }
            Event::Start { server, loss } => self.start(server, loss),
            Event::Broken { from, to, generation } => self.broken(from, to, generation),
            Event::Notice { server, incarnation, peer } => {
                if self.is_alive(server, incarnation) {
                    self.give(server, Happening::Input(Input::LinkDown(id(peer))));
                }
            }
            Event::Dial { from, to, incarnation } => self.dial(from, to, incarnation),
            Event::Load(event) => {
                self.with_load(|load, stage| load.event(event, stage));
                for (server, request) in std::mem::take(&mut self.requests) {
                    self.trace.line(format_args!("s{} <- client {request:?}", server + 1));
                    if self.running[server] {
                        self.give(server, Happening::Input(Input::Request(request)));
                    }
                }
            }
            Event::Fault(fault) => self.strike(fault),
        }
    }

    /// Whether that start of the server's process still runs (or is paused).
    pub(crate) fn is_alive(&self, server: usize, incarnation: u32) -> bool {
        let it = &self.servers[server];
        it.machine.is_some() && it.incarnation == incarnation
    }

    /// Lets the load act, and puts what it wants on the timeline.
    pub(crate) fn with_load<T>(
        &mut self,
        act: impl FnOnce(&mut L, &mut Stage<'_, M, L>) -> T,
    ) -> T {
        let mut stage = Stage {
            now: self.now,
            random: &mut self.random,
            trace: self.trace,
            running: &self.running,
            awake: &self.awake,
            committed: self.checks.history().end(),
            later: &mut self.later,
            requests: &mut self.requests,
        };
        let result = act(&mut self.load, &mut stage);
        for (time, event) in self.later.drain(..) {
            self.queue.at(time.max(self.now), Event::Load(event));
        }
        result
    }

    fn arrive(&mut self, parcel: Parcel<M>) {
        let (from, to) = (parcel.from, parcel.to);
        match self.net.passage(self.now, from, to, parcel.generation) {
            Passage::Lost => {}
            Passage::Held => self.net.hold(from, to, parcel),
            Passage::Later(time) => self.queue.at(time, Event::Arrive(parcel)),
            Passage::Arrives => {
                if self.servers[to].machine.is_none() {
                    return;
                }
                let happening = match parcel.packet {
                    Packet::Message(message) => {
                        self.trace.line(format_args!("s{} <- s{} {message:?}", to + 1, from + 1));
                        Happening::Input(Input::Message { from: id(from), message })
                    }
                    Packet::Chunk(chunk) => Happening::Chunk(from, chunk),
                };
                self.give(to, happening);
            }
        }
    }

    fn tick(&mut self, server: usize, incarnation: u32) {
        if !self.is_alive(server, incarnation) {
            return;
        }
        let it = &mut self.servers[server];
        self.queue.at(self.now + it.tick, Event::Tick { server, incarnation });
        if it.paused_until > 0 {
            it.missed_ticks += 1;
            return;
        }
        let tick = self.tick_input(server);
        self.give(server, Happening::Input(tick));
    }

    fn tick_input(&self, server: usize) -> Input<M::Message, M::Request> {
        let it = &self.servers[server];
        let now_ms = self.now * it.rate / 1000 / MS;
        let age = i64::try_from(now_ms).expect("a simulation is short");
        Input::Tick { now_ms, time_ms: GENESIS_MS + age + it.skew_ms }
    }

    /// A process is told something, or will be when its pause ends.
    pub(crate) fn give(&mut self, server: usize, happening: Happening<M>) {
        if self.servers[server].paused_until > 0 {
            self.servers[server].inbox.push_back(happening);
            return;
        }
        self.tell(server, happening);
        self.perform(server);
    }

    fn tell(&mut self, server: usize, happening: Happening<M>) {
        match happening {
            Happening::Input(input) => self.step(server, input),
            Happening::Synced(token) => {
                let it = &mut self.servers[server];
                it.durable = it.durable.max(token);
                self.release(server);
                self.step(server, Input::Written(token));
                self.install_if_ready(server);
            }
            Happening::Chunk(from, chunk) => self.receive_chunk(server, from, chunk),
            Happening::Loaded(sync) => self.loaded(server, sync),
        }
    }

    /// Gives a running machine an input.
    pub(crate) fn step(&mut self, server: usize, input: Input<M::Message, M::Request>) {
        if let Some(machine) = &mut self.servers[server].machine {
            machine.step(input);
        }
    }

    /// Does what a machine wants done, in the order it says.
    pub(crate) fn perform(&mut self, server: usize) {
        let Some(machine) = &mut self.servers[server].machine else { return };
        let ready = machine.ready();
        let Ready { send, write, token, send_after_write, delivered, answers, more, .. } = ready;
        if more {
            let incarnation = self.servers[server].incarnation;
            let turn = self.now + self.random.around(100);
            self.queue.at(turn, Event::Turn { server, incarnation });
        }
        self.checks.writes(server, &ready.notices, &write, &self.disks[server], self.now);
        for (to, message) in send {
            self.send_message(server, index(to), message);
        }
        if !write.is_empty() {
            self.trace.line(format_args!("s{} writes {token:?} {}", server + 1, Brief(&write)));
            self.write(server, token, write);
        }
        for (to, message) in send_after_write {
            let last = self.servers[server].last_write;
            self.servers[server].waiting.push_back((last, index(to), message));
        }
        self.release(server);
        self.deliver(server, &delivered);
        for order in ready.snapshots {
            self.order_snapshot(server, order);
        }
        for notice in ready.notices {
            self.notice(server, &notice);
        }
        for answer in answers {
            self.with_load(|load, stage| load.answer(server, answer, stage));
        }
    }

    fn write(&mut self, server: usize, token: WriteToken, write: Vec<zab::Write>) {
        assert!(token > self.servers[server].last_write, "write tokens grow");
        self.servers[server].last_write = token;
        self.disks[server].enqueue(token, write);
        self.start_sync(server);
    }

    fn start_sync(&mut self, server: usize) {
        if !self.disks[server].start_sync() {
            return;
        }
        let knobs = &self.knobs.disk;
        let mut delay = 1 + self.random.around(knobs.sync);
        if knobs.slow > 0 && self.random.chance(knobs.slow) {
            delay = self.random.below(10 * SECOND);
        }
        let failed = knobs.fail > 0 && self.random.chance(knobs.fail);
        let incarnation = self.servers[server].incarnation;
        self.queue.at(self.now + delay, Event::Synced { server, incarnation, failed });
    }

    fn synced(&mut self, server: usize, incarnation: u32, failed: bool) {
        if !self.is_alive(server, incarnation) {
            return;
        }
        if failed {
            // A failing disk ends the process; what of the writes got through is anybody's guess.
            self.trace.line(format_args!("s{} disk fails", server + 1));
            self.crash(server);
            self.restart_later(server);
            return;
        }
        let token = self.disks[server].finish_sync();
        self.start_sync(server);
        self.trace.line(format_args!("s{} durable {token:?}", server + 1));
        self.give(server, Happening::Synced(token));
    }

    /// Sends what has waited for writes that are durable now.
    fn release(&mut self, server: usize) {
        loop {
            let it = &mut self.servers[server];
            if it.waiting.front().is_none_or(|(token, ..)| *token > it.durable) {
                return;
            }
            let (_, to, message) = it.waiting.pop_front().expect("it has a front");
            self.send_message(server, to, message);
        }
    }

    fn send_message(&mut self, from: usize, to: usize, message: M::Message) {
        assert_ne!(from, to, "server {} sends to itself", from + 1);
        if let Some(message) = M::broadcast(&message) {
            self.checks.sends(from, to, message, &self.disks);
        }
        self.send(from, to, Packet::Message(message));
    }

    /// Puts a packet on the way.
    pub(crate) fn send(&mut self, from: usize, to: usize, packet: Packet<M>) {
        let arrivals = self.net.send(self.now, from, to, &mut self.random);
        let generation = self.net.link(from, to).generation;
        for (time, generation) in [(arrivals.again, Some(generation)), (arrivals.replay, None)] {
            if let Some(time) = time {
                let parcel = Parcel { from, to, generation, packet: packet.copy() };
                self.queue.at(time, Event::Arrive(parcel));
            }
        }
        if let Some(time) = arrivals.first {
            let parcel = Parcel { from, to, generation: Some(generation), packet };
            self.queue.at(time, Event::Arrive(parcel));
        }
    }

    fn deliver(&mut self, server: usize, delivered: &[zab::Entry]) {
        let machine = self.servers[server].machine.as_ref().expect("only a machine delivers");
        let from = self.checks.delivered(server).zxid;
        let to = machine.applied();
        if to.zxid == from {
            assert!(delivered.is_empty(), "what is delivered is applied");
            return;
        }
        let entries: Vec<zab::Entry> = if delivered.is_empty() {
            self.disks[server].entries(from, to.zxid).cloned().collect()
        } else {
            delivered.to_vec()
        };
        let new = self.checks.delivers(server, entries.iter(), &self.disks);
        assert_eq!(self.checks.delivered(server), to, "what is applied was delivered");
        self.checks.digest(server, machine.digest());
        self.trace.mix(to.zxid.bits());
        self.trace.mix(u64::from(to.chain));
        self.trace.line(format_args!("s{} applies up to {}", server + 1, to.zxid));
        for entry in &entries[entries.len() - new..] {
            let proposed = self.checks.proposed_at(entry.zxid);
            self.with_load(|load, stage| load.committed(server, entry, proposed, stage));
        }
    }

    fn notice(&mut self, server: usize, notice: &Notice) {
        self.trace.line(format_args!("s{} {notice:?}", server + 1));
        match notice {
            Notice::Leading { epoch } => self.checks.leads(server, *epoch, &self.disks[server]),
            Notice::HandedOver => {
                if self.servers[server].stopping {
                    let incarnation = self.servers[server].incarnation;
                    let at = self.now + self.random.below(20 * MS);
                    self.queue.at(at, Event::Stop { server, incarnation });
                }
            }
            Notice::Looking { .. } | Notice::Following { .. } | Notice::ReadConfirmed { .. } => {}
        }
        self.with_load(|load, stage| load.notice(server, notice, stage));
    }

    fn resume(&mut self, server: usize, incarnation: u32) {
        let it = &self.servers[server];
        if !self.is_alive(server, incarnation) || it.paused_until != self.now {
            return;
        }
        self.trace.line(format_args!("s{} goes on", server + 1));
        let it = &mut self.servers[server];
        it.paused_until = 0;
        self.awake[server] = true;
        let inbox = std::mem::take(&mut it.inbox);
        // A timer that was missed fires once or as often as it was missed, before or after the
        // messages that have come in: all of it is allowed.
        let missed = std::mem::take(&mut it.missed_ticks).min(200);
        let ticks = if self.random.chance(500) { missed.min(1) } else { missed };
        let ticks_first = self.random.chance(500);
        let one_by_one = self.random.chance(500);
        if ticks_first {
            self.late_ticks(server, ticks);
        }
        for happening in inbox {
            self.tell(server, happening);
            if one_by_one {
                self.perform(server);
            }
        }
        if !ticks_first {
            self.late_ticks(server, ticks);
        }
        self.perform(server);
    }

    fn late_ticks(&mut self, server: usize, ticks: u32) {
        for _ in 0..ticks {
            let tick = self.tick_input(server);
            self.give(server, Happening::Input(tick));
        }
    }

    /// A process starts.
    fn start(&mut self, server: usize, loss: Loss) {
        if self.servers[server].machine.is_some() {
            return;
        }
        self.lose(server, loss);
        let mut fresh = Server::down(&self.knobs, &mut self.random);
        fresh.incarnation = self.servers[server].incarnation + 1;
        let incarnation = fresh.incarnation;
        self.trace.line(format_args!("s{} starts, incarnation {incarnation}", server + 1));
        let (durable, state) = self.disks[server].recover();
        self.checks.started(server, &self.disks[server]);
        fresh.machine = Some(M::start(&self.settings(server), durable, state));
        self.queue.at(self.now + fresh.tick, Event::Tick { server, incarnation });
        let checkpoint = self.now + self.random.around(self.knobs.disk.checkpoint);
        self.queue.at(checkpoint, Event::BeginCheckpoint { server, incarnation });
        self.servers[server] = fresh;
        self.running[server] = true;
        self.awake[server] = true;
        self.perform(server);
        for peer in 0..self.servers.len() {
            if peer != server {
                self.dial_later(server, peer);
                self.dial_later(peer, server);
            }
        }
    }

    fn settings(&mut self, server: usize) -> Settings {
        let voters = self.knobs.voters;
        let seed = self.random.bits();
        Settings {
            zab: zab::Config {
                id: id(server),
                voters: (0..voters).map(id).collect(),
                observers: (voters..self.servers.len()).map(id).collect(),
                heartbeat_ticks: self.knobs.heartbeat_ticks,
                silence_ticks: self.knobs.silence_ticks,
                seed,
                counter_limit: self.knobs.counter_limit,
                window_entries: self.knobs.window_entries,
                window_bytes: 1 << 20,
                deliver_entries: self.knobs.deliver_entries,
            },
            tick_ms: u32::try_from(self.knobs.tick / MS).expect("a tick is short"),
            local_sessions: self.knobs.local_sessions && !seed.is_multiple_of(4),
            // One or a few of each in a turn, or as many as there are.
            turn_answers_bytes: [1, 100, 1000, 1 << 30][usize::from(seed.to_be_bytes()[0] % 4)],
            turn_nodes: [1, 5, 1 << 30, 1 << 30][usize::from(seed.to_be_bytes()[1] % 4)],
            applied_before_others: [0, 1, 8, 8][usize::from(seed.to_be_bytes()[2] % 4)],
        }
    }

    /// A process ends without notice.
    pub(crate) fn crash(&mut self, server: usize) {
        if self.servers[server].machine.take().is_none() {
            return;
        }
        self.trace.line(format_args!("s{} goes down", server + 1));
        let survive = self.random.below(3) * self.knobs.disk.survive / 2;
        self.disks[server].crash(&mut self.random, survive);
        let it = &mut self.servers[server];
        it.inbox.clear();
        it.waiting.clear();
        it.sending.clear();
        it.receiving = None;
        it.paused_until = 0;
        self.running[server] = false;
        self.awake[server] = false;
        self.checks.stopped(server);
        for peer in 0..self.servers.len() {
            if peer != server {
                self.break_link(server, peer);
                self.break_link(peer, server);
            }
        }
        self.with_load(|load, stage| load.down(server, stage));
    }

    /// A server that is down will start again.
    pub(crate) fn restart_later(&mut self, server: usize) {
        let delay = match self.random.below(4) {
            0 => self.random.below(20 * SECOND),
            1 => self.random.below(2 * SECOND),
            _ => self.random.below(300 * MS),
        };
        let loss = if self.random.chance(self.knobs.process.blank) {
            Loss::Blank
        } else if self.random.chance(self.knobs.process.damage) {
            Loss::Damage
        } else {
            Loss::None
        };
        self.queue.at(self.now + delay, Event::Start { server, loss });
    }

    /// A connection breaks; what is under way may still arrive before the receiver notices.
    pub(crate) fn break_link(&mut self, from: usize, to: usize) {
        let link = self.net.link(from, to);
        if !link.up {
            return;
        }
        link.up = false;
        let generation = link.generation;
        let delay = match self.random.below(4) {
            0 => 0,
            1 => self.random.below(5 * SECOND),
            _ => self.random.below(200 * MS),
        };
        self.queue.at(self.now + delay, Event::Broken { from, to, generation });
    }

    fn broken(&mut self, from: usize, to: usize, generation: u32) {
        if self.net.link(from, to).generation != generation {
            return;
        }
        self.net.drop_connection(from, to);
        for (server, peer) in [(from, to), (to, from)] {
            if self.running[server] {
                let incarnation = self.servers[server].incarnation;
                let at = self.now + self.random.below(2) * self.random.below(100 * MS);
                self.queue.at(at, Event::Notice { server, incarnation, peer });
            }
        }
        self.dial_later(from, to);
    }

    fn dial_later(&mut self, from: usize, to: usize) {
        if self.running[from] {
            let incarnation = self.servers[from].incarnation;
            let at = self.now + 100 * MS + self.random.below(300 * MS);
            self.queue.at(at, Event::Dial { from, to, incarnation });
        }
    }

    fn dial(&mut self, from: usize, to: usize, incarnation: u32) {
        if !self.is_alive(from, incarnation) || !self.running[to] {
            // Whoever starts dials, and is dialled.
            return;
        }
        if self.servers[from].paused_until > 0 || self.net.link(from, to).cut {
            self.dial_later(from, to);
        } else if self.net.connect(self.now, from, to) {
            self.trace.line(format_args!("s{} connects to s{}", from + 1, to + 1));
            self.give(from, Happening::Input(Input::LinkUp(id(to))));
        }
    }
}

impl<M: Machine> Packet<M> {
    fn copy(&self) -> Packet<M> {
        match self {
            Packet::Message(message) => Packet::Message(message.clone()),
            Packet::Chunk(Chunk { sync, index, last }) => {
                Packet::Chunk(Chunk { sync: *sync, index: *index, last: last.clone() })
            }
        }
    }
}

impl<M: Machine> Server<M> {
    fn down(knobs: &Knobs, random: &mut Random) -> Server<M> {
        let drift = knobs.process.drift;
        let rate = 1000 - drift + random.below(2 * drift + 1);
        Server {
            machine: None,
            incarnation: 0,
            paused_until: 0,
            stopping: false,
            inbox: VecDeque::new(),
            missed_ticks: 0,
            tick: knobs.tick * 1000 / rate,
            rate,
            skew_ms: 0,
            durable: WriteToken(0),
            last_write: WriteToken(0),
            waiting: VecDeque::new(),
            sending: Vec::new(),
            receiving: None,
        }
    }
}

impl<M: Machine, L: Load<M>> Event<M, L> {
    /// What kind of event it is and whom it is about, for the trace's hash.
    fn kind(&self) -> u64 {
        let (kind, server) = match self {
            Event::Arrive(parcel) => (1, parcel.from * 16 + parcel.to),
            Event::Tick { server, .. } => (2, *server),
            Event::Synced { server, .. } => (3, *server),
            Event::Checkpoint { server, .. } => (4, *server),
            Event::BeginCheckpoint { server, .. } => (5, *server),
            Event::SendChunk { server, .. } => (6, *server),
            Event::Loaded { server, .. } => (7, *server),
            Event::Stalled { server, .. } => (8, *server),
            Event::Resume { server, .. } => (9, *server),
            Event::Stop { server, .. } => (10, *server),
            Event::Start { server, .. } => (11, *server),
            Event::Broken { from, to, .. } => (12, from * 16 + to),
            Event::Notice { server, .. } => (13, *server),
            Event::Dial { from, to, .. } => (14, from * 16 + to),
            Event::Turn { server, .. } => (15, *server),
            Event::Load(_) => (16, 0),
            Event::Fault(_) => (17, 0),
        };
        kind << 16 | server as u64
    }
}

/// The id of the server with that index.
pub(crate) fn id(server: usize) -> ServerId {
    let number = u8::try_from(server + 1).expect("there are few servers");
    ServerId::new(number).expect("there are few servers")
}

/// The index of the server with that id.
pub(crate) fn index(id: ServerId) -> usize {
    usize::from(id.get()) - 1
}

/// Writes, in few words.
struct Brief<'a>(&'a [zab::Write]);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for write in self.0 {
            match write {
                zab::Write::Append(entries) => {
                    let zxids = entries.iter().map(|entry| entry.zxid.to_string());
                    write!(f, "append {} ", zxids.collect::<Vec<String>>().join(" "))?;
                }
                zab::Write::Truncate(to) => write!(f, "truncate {} ", to.zxid)?,
                zab::Write::AcceptedEpoch(epoch) => write!(f, "accepted {epoch} ")?,
                zab::Write::CurrentEpoch(epoch) => write!(f, "current {epoch} ")?,
                zab::Write::NeedsRepair => write!(f, "needs repair ")?,
            }
        }
        Ok(())
    }
}
