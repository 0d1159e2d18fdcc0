//! What strikes, and when.

use conclave_proto::Epoch;

use crate::disk::Disk;
use crate::knobs::{Knobs, MS, SECOND};
use crate::machine::{Input, Load, Machine};
use crate::random::Random;
use crate::world::{Event, Happening, World};

/// A kind of fault. Each strikes again and again until the ensemble is healed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A process ends without notice.
    Crash,
    /// A process stands still.
    Pause,
    /// A server is asked to stop, hands over, ends and comes back.
    HandOver,
    /// A server's time of day jumps.
    Jump,
    /// A link holds everything back for a while.
    Clog,
    /// A connection breaks.
    Reset,
    /// The network falls apart.
    Partition,
    /// Another majority is connected, and nobody else to it: whoever has led is cut off from some
    /// who followed, and leads on until it notices.
    Shift,
    /// The network is whole again.
    Mend,
}

/// What a server's disk loses before it starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Nothing.
    None,
    /// An operator gives it a new one.
    Blank,
    /// Something is damaged, and recovery notices.
    Damage,
}

const RECURRING: [Fault; 8] = [
    Fault::Crash,
    Fault::Pause,
    Fault::HandOver,
    Fault::Jump,
    Fault::Clog,
    Fault::Reset,
    Fault::Partition,
    Fault::Shift,
];

impl Fault {
    /// The mean time between two of its kind; 0: never.
    fn period(self, knobs: &Knobs) -> u64 {
        match self {
            Fault::Crash => knobs.process.crash,
            Fault::Pause => knobs.process.pause,
            Fault::HandOver => knobs.process.hand_over,
            Fault::Jump => knobs.process.jump,
            Fault::Clog => knobs.net.clog,
            Fault::Reset => knobs.net.reset,
            Fault::Partition => knobs.net.partition,
            Fault::Shift => knobs.net.shift,
            Fault::Mend => 0,
        }
    }
}

impl<M: Machine, L: Load<M>> World<'_, M, L> {
    /// Puts the first fault of each kind on the timeline.
    pub(crate) fn begin_faults(&mut self) {
        for fault in RECURRING {
            self.strike_later(fault);
        }
    }

    fn strike_later(&mut self, fault: Fault) {
        let period = fault.period(&self.knobs);
        if period > 0 {
            let at = self.now + SECOND + self.random.around(period);
            self.queue.at(at, Event::Fault(fault));
        }
    }

    /// A fault strikes a random victim.
    pub(crate) fn strike(&mut self, fault: Fault) {
        if self.healed {
            return;
        }
        self.strike_later(fault);
        let server = self.random.index(self.servers.len());
        let other = self.random.index(self.servers.len());
        match fault {
            Fault::Crash => self.strike_down(server),
            Fault::Pause => {
                let time = match self.random.below(8) {
                    0 => self.random.below(60 * SECOND),
                    1..4 => self.random.below(8 * SECOND),
                    _ => self.random.below(SECOND),
                };
                self.pause(server, time);
            }
            Fault::HandOver => self.stop_as_planned(server),
            Fault::Jump => {
                let hour = 3_600_000;
                let ahead = i64::try_from(self.random.below(2 * hour)).expect("an hour fits");
                self.servers[server].skew_ms = ahead - 3_600_000;
            }
            Fault::Clog => {
                if server != other {
                    let until = self.now + self.random.below(5 * SECOND);
                    self.net.clog(server, other, until);
                }
            }
            Fault::Reset => {
                if server != other {
                    self.trace.line(format_args!("s{} -> s{} breaks", server + 1, other + 1));
                    self.break_link(server, other);
                    if self.random.chance(500) {
                        self.break_link(other, server);
                    }
                }
            }
            Fault::Partition => self.partition(),
            Fault::Shift => self.shift(),
            Fault::Mend => self.mend(),
        }
    }

    /// Crashes this server; now and then all of them at once, as when the power goes.
    fn strike_down(&mut self, server: usize) {
        let all = self.random.chance(50);
        for victim in 0..self.servers.len() {
            if (all || victim == server) && self.running[victim] {
                self.crash(victim);
                self.restart_later(victim);
            }
        }
    }

    fn pause(&mut self, server: usize, time: u64) {
        let now = self.now;
        let it = &mut self.servers[server];
        if it.machine.is_none() || it.paused_until > 0 {
            return;
        }
        it.paused_until = now + time + 1;
        self.awake[server] = false;
        let (at, incarnation) = (it.paused_until, it.incarnation);
        self.trace.line(format_args!("s{} stands still until {} µs", server + 1, at));
        self.queue.at(at, Event::Resume { server, incarnation });
    }

    fn stop_as_planned(&mut self, server: usize) {
        let it = &mut self.servers[server];
        if it.machine.is_none() || it.paused_until > 0 || it.stopping {
            return;
        }
        it.stopping = true;
        let incarnation = it.incarnation;
        self.trace.line(format_args!("s{} is asked to stop", server + 1));
        self.queue.at(self.now + 5 * SECOND, Event::Stop { server, incarnation });
        self.queue.at(self.now + 6 * SECOND, Event::Start { server, loss: Loss::None });
        self.give(server, Happening::Input(Input::HandOver));
    }

    /// Cuts links in one of the shapes that networks fall apart in, for up to 30 s.
    fn partition(&mut self) {
        let count = self.servers.len();
        let cuts = shape(count, &mut self.random);
        self.trace.line(format_args!("the network falls apart: {cuts:?}"));
        let breaks = self.random.chance(500);
        for (from, to) in cuts {
            self.net.set_cut(self.now, from, to, true);
            if breaks {
                self.break_link(from, to);
            }
        }
        let at = self.now + self.random.around(5 * SECOND).min(30 * SECOND) + 100 * MS;
        self.queue.at(at, Event::Fault(Fault::Mend));
    }

    /// Ends all cuts, and cuts off all but a majority.
    fn shift(&mut self) {
        self.mend();
        let voters = self.random.shuffled((0..self.knobs.voters).collect());
        let majority = &voters[..self.checks.quorum()];
        self.trace.line(format_args!("all but {majority:?} are cut off"));
        let breaks = self.random.chance(500);
        for (from, to) in pairs(self.servers.len()) {
            if majority.contains(&from) != majority.contains(&to) {
                self.net.set_cut(self.now, from, to, true);
                if breaks {
                    self.break_link(from, to);
                }
            }
        }
    }

    /// Ends all cuts.
    pub(crate) fn mend(&mut self) {
        self.trace.line(format_args!("the network is whole"));
        for from in 0..self.servers.len() {
            for to in 0..self.servers.len() {
                for (time, parcel) in self.net.set_cut(self.now, from, to, false) {
                    self.queue.at(time, Event::Arrive(parcel));
                }
            }
        }
    }

    /// A disk loses something, if the fault model allows it.
    pub(crate) fn lose(&mut self, server: usize, loss: Loss) {
        if self.healed {
            return;
        }
        match loss {
            Loss::None => {}
            Loss::Blank => {
                if self.may_be_blanked(server) {
                    self.trace.line(format_args!("s{} gets a blank disk", server + 1));
                    self.disks[server] = Disk::replacement();
                }
            }
            Loss::Damage => {
                if self.may_be_damaged(server) {
                    self.trace.line(format_args!("s{} finds its disk damaged", server + 1));
                    self.disks[server].damage(&mut self.random);
                }
            }
        }
    }

    /// Whether this server's disk may be damaged: a server that knows of its damage does not count
    /// in any quorum until it is repaired, so a quorum of sound ones must remain.
    fn may_be_damaged(&self, server: usize) -> bool {
        let sound = |other: &usize| *other != server && self.disks[*other].is_sound();
        server >= self.knobs.voters
            || (0..self.knobs.voters).filter(sound).count() >= self.checks.quorum()
    }

    /// Whether an operator may give this server a blank disk, and say nothing of it. It does not know
    /// then what it promised and acknowledged, until it hears any server that has ever been in sync.
    fn may_be_blanked(&self, server: usize) -> bool {
        let formed = |other: usize| self.disks[other].epochs().1 > Epoch::ZERO;
        let mut others = (0..self.knobs.voters).filter(|other| *other != server);
        self.may_be_damaged(server) && others.all(formed)
    }
}

/// The links that are cut, as pairs of sender and receiver.
pub(crate) fn shape(count: usize, random: &mut Random) -> Vec<(usize, usize)> {
    let order = random.shuffled((0..count).collect());
    let side = |server: usize, size: usize| order[..size].contains(&server);
    let kind = random.below(5);
    let odds = random.between(100, 500);
    let cut = |(from, to): (usize, usize), random: &mut Random| match kind {
        // One server alone.
        0 => side(from, 1) != side(to, 1),
        // Two halves.
        1 => side(from, count / 2) != side(to, count / 2),
        // One server does not hear the others, but is heard.
        2 => side(to, 1),
        // It is heard by nobody, but hears.
        3 => side(from, 1),
        // Any links, in both directions or one: who reaches whom is not transitive.
        _ => random.chance(odds),
    };
    pairs(count).filter(|pair| cut(*pair, random)).collect()
}

/// All links, as pairs of sender and receiver.
fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    let pairs = (0..count).flat_map(move |from| (0..count).map(move |to| (from, to)));
    pairs.filter(|(from, to)| from != to)
}
