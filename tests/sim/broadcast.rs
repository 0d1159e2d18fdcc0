//! The broadcast alone: a [`Peer`] over opaque entries, with a state machine that only keeps count.

use std::collections::BTreeMap;

use bytes::Bytes;
use conclave::zab::{self, Durable, Entry, Message, Notice, Peer, Position};
use conclave_proto::{ServerId, Zxid};

use crate::knobs::{Knobs, MS};
use crate::machine::{Input, Load, Machine, Ready, Settings, Stage};
use crate::random::{Random, scramble};
use crate::world::id;

/// A server that runs the broadcast alone.
pub(crate) struct Broadcast {
    peer: Peer,
    tally: Tally,
    told: Vec<Told>,
    /// Nothing has happened since the last [`Ready`], but that writes for which nobody waited are
    /// on the disk.
    unmoved: bool,
}

/// The state: what was applied, and a hash of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    at: Position,
    hash: u64,
}

/// What is asked of a server.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Append these.
    Propose(Vec<Bytes>),
    /// Does it still lead, and what is committed?
    Confirm(u64),
    /// Does nobody wait for anything at that server?
    Idle(ServerId, bool),
    /// Something is about to be sent to the leader.
    Acknowledge,
}

/// What a server answers at once.
pub(crate) enum Told {
    /// The question has this number, if it leads.
    Confirming(u64, Option<u64>),
}

impl Machine for Broadcast {
    type Message = Message;
    type State = Tally;
    type Request = Ask;
    type Answer = Told;

    fn start(settings: &Settings, disk: Durable, state: Tally) -> Broadcast {
        assert_eq!(disk.applied, state.at, "a checkpoint says what it holds");
        let peer = Peer::new(settings.zab.clone(), disk);
        Broadcast { peer, tally: state, told: Vec::new(), unmoved: false }
    }

    fn step(&mut self, input: Input<Message, Ask>) {
        self.unmoved &= matches!(input, Input::Written(_)) && !self.peer.awaits_disk();
        let input = match input {
            Input::Tick { .. } => zab::Input::Tick,
            Input::Message { from, message } => zab::Input::Message { from, message },
            Input::LinkUp(server) => zab::Input::LinkUp(server),
            Input::LinkDown(server) => zab::Input::LinkDown(server),
            Input::Written(token) => zab::Input::Written(token),
            Input::SnapshotFailed { with, sync } => zab::Input::SnapshotFailed { with, sync },
            Input::HandOver => zab::Input::HandOver,
            Input::Request(ask) => return self.ask(ask),
        };
        self.peer.step(input);
    }

    fn install(&mut self, sync: u64, at: Position, state: Tally) {
        self.tally = state;
        self.unmoved = false;
        self.peer.step(zab::Input::SnapshotInstalled { sync, at });
    }

    fn ready(&mut self) -> Ready<Message, Told> {
        let ready = self.peer.ready();
        let moves = !ready.committed.is_empty() || !ready.send.is_empty();
        assert!(!self.unmoved || !moves, "a leader need not be told of its disk, and acts on it");
        self.unmoved = !ready.more;
        for entry in &ready.committed {
            self.tally.apply(entry);
        }
        Ready {
            send: ready.send,
            write: ready.write,
            token: ready.token,
            send_after_write: ready.send_after_write,
            delivered: ready.committed,
            answers: std::mem::take(&mut self.told),
            snapshots: ready.snapshots,
            more: ready.more,
            notices: ready.notices,
        }
    }

    fn applied(&self) -> Position {
        self.tally.at
    }

    fn state(&self) -> Tally {
        self.tally
    }

    fn digest(&self) -> u64 {
        self.tally.hash
    }

    fn broadcast(message: &Message) -> Option<&Message> {
        Some(message)
    }
}

impl Broadcast {
    fn ask(&mut self, ask: Ask) {
        match ask {
            Ask::Propose(bodies) => {
                for body in bodies {
                    if self.peer.propose(body).is_err() {
                        return;
                    }
                }
            }
            Ask::Confirm(question) => {
                let round = self.peer.confirm_leadership();
                self.told.push(Told::Confirming(question, round));
            }
            Ask::Idle(server, idle) => self.peer.set_idle(server, idle),
            Ask::Acknowledge => self.peer.acknowledge(),
        }
    }
}

impl Tally {
    fn apply(&mut self, entry: &Entry) {
        self.at = entry.position();
        let chain = u64::from(entry.chain);
        self.hash = scramble(self.hash.rotate_left(7) ^ entry.zxid.bits() ^ chain << 32);
    }
}

/// Proposals to whoever leads, and questions whether it still does.
#[derive(Debug)]
pub(crate) struct Proposals {
    gap: u64,
    confirm: u64,
    idle: u64,
    next: u64,
    /// Which proposals are committed, by number.
    committed: Vec<Option<Zxid>>,
    /// By server: whether it says that it leads.
    leads: Vec<bool>,
    /// What was committed when a question was asked.
    questions: BTreeMap<u64, Zxid>,
    /// The questions under way at each server, by round.
    rounds: Vec<BTreeMap<u64, u64>>,
    confirmed: u64,
    healed_at: Option<u64>,
    settled: bool,
}

impl Proposals {
    fn propose(&mut self, stage: &mut Stage<'_, Broadcast, Proposals>) {
        for server in 0..self.leads.len() {
            if !self.leads[server] {
                continue;
            }
            let count = if stage.random.chance(50) { stage.random.between(2, 20) } else { 1 };
            let bodies = (0..count).map(|_| self.body(stage.random)).collect();
            stage.requests.push((server, Ask::Propose(bodies)));
            if stage.random.chance(self.confirm) {
                let question = self.next;
                self.questions.insert(question, stage.committed.zxid);
                stage.requests.push((server, Ask::Confirm(question)));
            }
            if stage.random.chance(self.idle) {
                let other = stage.random.index(self.leads.len());
                stage.requests.push((server, Ask::Idle(id(other), stage.random.chance(700))));
                stage.requests.push((other, Ask::Acknowledge));
            }
        }
    }

    fn body(&mut self, random: &mut Random) -> Bytes {
        let number = self.next;
        self.next += 1;
        self.committed.push(None);
        let mut body = number.to_le_bytes().to_vec();
        body.resize(8 + random.index(16), 0xab);
        body.into()
    }

    fn forget(&mut self, server: usize) {
        self.leads[server] = false;
        for (_, question) in std::mem::take(&mut self.rounds[server]) {
            self.questions.remove(&question);
        }
    }
}

impl Load<Broadcast> for Proposals {
    type Event = ();

    fn new(random: &mut Random, knobs: &Knobs) -> Proposals {
        Proposals {
            gap: knobs.work,
            confirm: random.below(300),
            idle: random.below(100),
            next: 0,
            committed: Vec::new(),
            leads: Vec::new(),
            questions: BTreeMap::new(),
            rounds: Vec::new(),
            confirmed: 0,
            healed_at: None,
            settled: false,
        }
    }

    fn start(&mut self, stage: &mut Stage<'_, Broadcast, Proposals>) {
        self.leads = vec![false; stage.running.len()];
        self.rounds = vec![BTreeMap::new(); stage.running.len()];
        stage.later.push((stage.now, ()));
    }

    fn event(&mut self, (): (), stage: &mut Stage<'_, Broadcast, Proposals>) {
        if !self.settled {
            self.propose(stage);
            let gap = stage.random.around(self.gap).max(MS);
            stage.later.push((stage.now + gap, ()));
        }
    }

    fn answer(&mut self, server: usize, told: Told, _: &mut Stage<'_, Broadcast, Proposals>) {
        let Told::Confirming(question, round) = told;
        match round {
            Some(round) => {
                self.rounds[server].insert(round, question);
            }
            None => {
                self.questions.remove(&question);
            }
        }
    }

    fn notice(&mut self, server: usize, notice: &Notice, _: &mut Stage<'_, Broadcast, Proposals>) {
        match notice {
            Notice::Leading { .. } => self.leads[server] = true,
            Notice::Looking { .. } | Notice::Following { .. } => self.forget(server),
            Notice::HandedOver => {}
            Notice::ReadConfirmed { round, commit } => {
                let later = self.rounds[server].split_off(&(round + 1));
                for (_, question) in std::mem::replace(&mut self.rounds[server], later) {
                    let needed = self.questions.remove(&question).expect("it was asked");
                    assert!(
                        *commit >= needed,
                        "server {} confirms a read at {commit}, but {needed} was committed before",
                        server + 1
                    );
                    self.confirmed += 1;
                }
            }
        }
    }

    fn down(&mut self, server: usize, _: &mut Stage<'_, Broadcast, Proposals>) {
        self.forget(server);
    }

    fn committed(
        &mut self,
        _: usize,
        entry: &Entry,
        _: u64,
        _: &mut Stage<'_, Broadcast, Proposals>,
    ) {
        let number = entry.body[..8].try_into().expect("a proposal begins with its number");
        let number = u64::from_le_bytes(number);
        let slot = usize::try_from(number).ok().and_then(|at| self.committed.get_mut(at));
        let slot = slot.expect("only what was proposed is committed");
        if let Some(before) = slot.replace(entry.zxid) {
            panic!("proposal {number} is committed twice, at {before} and at {}", entry.zxid);
        }
        self.settled |= self.healed_at.is_some_and(|healed| number >= healed);
    }

    fn heal(&mut self, _: &[usize], stage: &mut Stage<'_, Broadcast, Proposals>) {
        self.healed_at = Some(self.next);
        self.gap = self.gap.min(300 * MS);
        stage.later.push((stage.now, ()));
    }

    fn settled(&self) -> bool {
        self.settled
    }

    fn patience(&self) -> u64 {
        0
    }

    fn complaint(&self) -> String {
        "no proposal is committed".to_owned()
    }

    fn finish(&mut self, _: &mut dyn Iterator<Item = (usize, &Broadcast)>) {}
}
