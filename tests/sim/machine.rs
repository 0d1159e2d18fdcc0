//! The seam between the world and what it runs: the broadcast alone, or whole servers.

use std::fmt::Debug;

use conclave::zab::{self, Durable, Entry, Position, SnapshotOrder, Write, WriteToken};
use conclave_proto::ServerId;

use crate::knobs::Knobs;
use crate::random::Random;
use crate::trace::Trace;

/// A server's state machine, as the world sees it.
pub(crate) trait Machine: Sized {
    /// What servers say to each other.
    type Message: Clone + Debug;
    /// What a checkpoint and a snapshot hold.
    type State: Clone + Default;
    /// What clients do to a server.
    type Request: Debug;
    /// What a server does to clients.
    type Answer;

    /// A process starts on what its disk holds.
    fn start(config: &Settings, disk: Durable, state: Self::State) -> Self;
    /// Something happens.
    fn step(&mut self, input: Input<Self::Message, Self::Request>);
    /// A snapshot is on the disk and is the state now.
    fn install(&mut self, sync: u64, at: Position, state: Self::State);
    /// What has to be done.
    fn ready(&mut self) -> Ready<Self::Message, Self::Answer>;
    /// What is applied.
    fn applied(&self) -> Position;
    /// The state after what is applied.
    fn state(&self) -> Self::State;
    /// A number that differs, in all likelihood, between any two states.
    fn digest(&self) -> u64;
    /// The broadcast's message in this one.
    fn broadcast(message: &Self::Message) -> Option<&zab::Message>;
}

/// How one process is started.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// For the broadcast.
    pub(crate) zab: zab::Config,
    /// The period of the tick, in ms.
    pub(crate) tick_ms: u32,
    /// Whether a new session is known to this server alone until it writes.
    pub(crate) local_sessions: bool,
    /// The bytes of answers to reads after which a turn leaves other reads to the next one.
    pub(crate) turn_answers_bytes: usize,
    /// The nodes that transactions change after which a turn leaves others to the next one.
    pub(crate) turn_nodes: usize,
    /// So many transactions are applied before what other servers and the disk are to do.
    pub(crate) applied_before_others: usize,
}

/// Something that happens to a server.
#[derive(Debug)]
pub(crate) enum Input<M, R> {
    /// A tick, with the server's two clocks.
    Tick { now_ms: u64, time_ms: i64 },
    /// A message.
    Message { from: ServerId, message: M },
    /// The link on which it sends is new.
    LinkUp(ServerId),
    /// A link broke.
    LinkDown(ServerId),
    /// Writes are durable.
    Written(WriteToken),
    /// A transfer failed.
    SnapshotFailed { with: ServerId, sync: u64 },
    /// A planned stop.
    HandOver,
    /// A client.
    Request(R),
}

/// What a server wants done, in the order of the fields.
pub(crate) struct Ready<M, A> {
    /// To be sent at once.
    pub(crate) send: Vec<(ServerId, M)>,
    /// Then written with one fsync.
    pub(crate) write: Vec<Write>,
    /// The name of these writes.
    pub(crate) token: WriteToken,
    /// To be sent once that is durable.
    pub(crate) send_after_write: Vec<(ServerId, M)>,
    /// What was applied, if the machine says it one by one.
    pub(crate) delivered: Vec<Entry>,
    /// For clients.
    pub(crate) answers: Vec<A>,
    /// Snapshots to transfer.
    pub(crate) snapshots: Vec<SnapshotOrder>,
    /// It has not done all that it could.
    pub(crate) more: bool,
    /// Facts.
    pub(crate) notices: Vec<zab::Notice>,
}

/// The clients of a world: who asks for what, and whether the answers are right.
pub(crate) trait Load<M: Machine>: Sized {
    /// Something of its own that it has put on the timeline.
    type Event: Debug;

    /// The load that this seed draws.
    fn new(random: &mut Random, knobs: &Knobs) -> Self;
    /// The world begins.
    fn start(&mut self, stage: &mut Stage<'_, M, Self>);
    /// The time has come for one of its events.
    fn event(&mut self, event: Self::Event, stage: &mut Stage<'_, M, Self>);
    /// A server said something.
    fn answer(&mut self, server: usize, answer: M::Answer, stage: &mut Stage<'_, M, Self>);
    /// What the broadcast at a server had to say.
    fn notice(&mut self, server: usize, notice: &zab::Notice, stage: &mut Stage<'_, M, Self>);
    /// A server's process ended, or its machine was given up.
    fn down(&mut self, server: usize, stage: &mut Stage<'_, M, Self>);
    /// This is committed, seen first at that server, proposed at that time; each entry once, in
    /// order.
    fn committed(
        &mut self,
        server: usize,
        entry: &Entry,
        proposed_at: u64,
        stage: &mut Stage<'_, M, Self>,
    );
    /// Faults are over: only these servers can be counted on from here. What is asked from now on
    /// must be answered.
    fn heal(&mut self, core: &[usize], stage: &mut Stage<'_, M, Self>);
    /// Whether everything asked since the healing was answered.
    fn settled(&self) -> bool;
    /// How long that may take beyond what the servers take to agree, in µs.
    fn patience(&self) -> u64;
    /// What is not answered.
    fn complaint(&self) -> String;
    /// The end: check what can only be checked then.
    fn finish(&mut self, servers: &mut dyn Iterator<Item = (usize, &M)>);
}

/// What the load can see and do.
pub(crate) struct Stage<'a, M: Machine, L: Load<M>> {
    /// Virtual time in µs.
    pub(crate) now: u64,
    /// The dice.
    pub(crate) random: &'a mut Random,
    /// The record.
    pub(crate) trace: &'a mut Trace,
    /// Which servers' processes run.
    pub(crate) running: &'a [bool],
    /// Which of them do not stand still.
    pub(crate) awake: &'a [bool],
    /// The end of the one history, as far as any server has delivered it.
    pub(crate) committed: Position,
    /// Events to put on the timeline, by time.
    pub(crate) later: &'a mut Vec<(u64, L::Event)>,
    /// What servers are to be told now; only [`Load::event`] may add to it.
    pub(crate) requests: &'a mut Vec<(usize, M::Request)>,
}
