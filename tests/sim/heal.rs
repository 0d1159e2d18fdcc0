//! Invariant 22, liveness: when faults end for one random quorum, it elects a leader and serves
//! again in bounded time, whatever has become of the rest.

use crate::faults::Loss;
use crate::knobs::{MS, SECOND};
use crate::machine::{Load, Machine};
use crate::world::{Event, World};

impl<M: Machine, L: Load<M>> World<'_, M, L> {
    /// The time in which a healed quorum must serve again, in µs: what silence takes to be noticed,
    /// many times over, and time for slow disks and for a snapshot.
    pub(crate) fn patience(&self) -> u64 {
        20 * SECOND
            + self.load.patience()
            + 10 * u64::from(self.knobs.silence_ticks) * self.knobs.tick
    }

    /// Ends all faults for a random quorum of voters and returns it; the others stay broken.
    pub(crate) fn heal(&mut self) -> Vec<usize> {
        self.healed = true;
        let mut sound: Vec<usize> =
            (0..self.knobs.voters).filter(|server| self.disks[*server].is_sound()).collect();
        if sound.len() < self.checks.quorum() {
            // Nobody has ever led, so a server that is blank is only new.
            sound = (0..self.knobs.voters).collect();
        }
        let voters = self.random.shuffled(sound);
        let core = voters[..self.checks.quorum()].to_vec();
        self.trace.line(format_args!("healed: {core:?}"));
        self.mend();
        let was_stream = self.net.is_stream();
        self.net.calm();
        self.knobs.disk.sync = self.knobs.disk.sync.min(10 * MS);
        self.knobs.disk.slow = 0;
        self.knobs.disk.fail = 0;
        for server in 0..self.servers.len() {
            if core.contains(&server) {
                self.revive(server);
            } else {
                self.break_for_good(server);
            }
        }
        if !was_stream {
            // What was lost on the way is never sent again unless a link says that it is new.
            for from in 0..self.servers.len() {
                for to in (0..self.servers.len()).filter(|to| *to != from) {
                    self.break_link(from, to);
                }
            }
        }
        self.with_load(|load, stage| load.heal(&core, stage));
        core
    }

    /// Whether that quorum serves: its load is answered, and all of it has the whole history.
    pub(crate) fn serves(&self, core: &[usize]) -> bool {
        let end = self.checks.history().end();
        self.load.settled() && core.iter().all(|server| self.checks.delivered(*server) == end)
    }

    fn revive(&mut self, server: usize) {
        if self.servers[server].machine.is_none() {
            self.queue.at(self.now, Event::Start { server, loss: Loss::None });
        } else if self.servers[server].paused_until > 0 {
            self.servers[server].paused_until = self.now;
            let incarnation = self.servers[server].incarnation;
            self.queue.at(self.now, Event::Resume { server, incarnation });
        }
    }

    /// A server outside the core is down, or cut off in one direction or both, or well.
    fn break_for_good(&mut self, server: usize) {
        let (down, deaf, mute) = match self.random.below(6) {
            0 | 1 => (true, true, true),
            2 => (false, true, true),
            3 => (false, true, false),
            4 => (false, false, true),
            _ => (false, false, false),
        };
        self.trace.line(format_args!("s{}: down {down} deaf {deaf} mute {mute}", server + 1));
        for other in (0..self.servers.len()).filter(|other| *other != server) {
            if deaf {
                self.net.set_cut(self.now, other, server, true);
            }
            if mute {
                self.net.set_cut(self.now, server, other, true);
            }
        }
        if down {
            self.crash(server);
        }
    }
}
