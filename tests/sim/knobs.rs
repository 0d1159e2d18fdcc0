//! What a seed draws: the ensemble, its faults and its load. Every fault is off in a third of the
//! seeds, so that each is met alone, with each other one, and with all of them.

use crate::random::Random;

/// A thousandth of a second, in the µs of virtual time.
pub(crate) const MS: u64 = 1_000;
/// A second, in the µs of virtual time.
pub(crate) const SECOND: u64 = 1_000_000;

/// The setting of one run. Times are in µs, probabilities in thousandths; 0 turns a fault off.
#[derive(Clone, Debug)]
pub(crate) struct Knobs {
    /// Servers that vote: 1, 3, 5 or 7.
    pub(crate) voters: usize,
    /// Servers that only follow.
    pub(crate) observers: usize,
    /// The period of the tick.
    pub(crate) tick: u64,
    /// Ticks between heartbeats.
    pub(crate) heartbeat_ticks: u32,
    /// Ticks of silence until a server is given up.
    pub(crate) silence_ticks: u32,
    /// The last counter of an epoch; small ones make epochs roll.
    pub(crate) counter_limit: u64,
    /// The entries that servers keep in memory for DIFF; with few, SNAP is common.
    pub(crate) window_entries: usize,
    /// The most entries that a server applies in one turn.
    pub(crate) deliver_entries: usize,
    /// How long faults go on before the ensemble is healed.
    pub(crate) chaos: u64,
    /// The network.
    pub(crate) net: NetKnobs,
    /// The processes and their clocks.
    pub(crate) process: ProcessKnobs,
    /// The disks.
    pub(crate) disk: DiskKnobs,
    /// The mean time between two requests.
    pub(crate) work: u64,
    /// Most starts of servers are with local sessions.
    pub(crate) local_sessions: bool,
}

/// The faults of links.
#[derive(Clone, Debug)]
pub(crate) struct NetKnobs {
    /// The mean time a message takes.
    pub(crate) delay: u64,
    /// Messages may be lost, repeated and overtake each other without the link breaking.
    /// Otherwise a link is a stream, as TCP's are: what is lost is sent again, late, and everything
    /// behind it waits.
    pub(crate) datagrams: bool,
    /// How many messages are lost.
    pub(crate) loss: u64,
    /// How many arrive twice.
    pub(crate) duplicate: u64,
    /// How many arrive again much later, even on a newer connection.
    pub(crate) replay: u64,
    /// The mean time between two clogs (a link holds everything back, up to 5 s).
    pub(crate) clog: u64,
    /// The mean time between two broken links.
    pub(crate) reset: u64,
    /// The mean time between two partitions.
    pub(crate) partition: u64,
    /// The mean time until another majority is all that is connected.
    pub(crate) shift: u64,
}

/// The faults of processes and clocks.
#[derive(Clone, Debug)]
pub(crate) struct ProcessKnobs {
    /// The mean time between two crashes.
    pub(crate) crash: u64,
    /// The mean time between two pauses (up to 60 s).
    pub(crate) pause: u64,
    /// How many crashed servers come back with a blank disk, if that is survivable.
    pub(crate) blank: u64,
    /// How many find their disk damaged.
    pub(crate) damage: u64,
    /// The mean time between two planned stops.
    pub(crate) hand_over: u64,
    /// How far clocks run fast or slow.
    pub(crate) drift: u64,
    /// The mean time between two jumps of a server's time of day (up to 1 h).
    pub(crate) jump: u64,
}

/// The faults of disks.
#[derive(Clone, Debug)]
pub(crate) struct DiskKnobs {
    /// The mean time of an fsync.
    pub(crate) sync: u64,
    /// How many take up to 10 s.
    pub(crate) slow: u64,
    /// How many fail, which ends the process.
    pub(crate) fail: u64,
    /// How many crashes leave a part of what was not synced.
    pub(crate) survive: u64,
    /// The mean time between two checkpoints.
    pub(crate) checkpoint: u64,
}

impl Knobs {
    /// What this seed draws.
    pub(crate) fn draw(random: &mut Random) -> Knobs {
        let voters = *random.pick(&[1, 3, 3, 3, 5, 5, 7]);
        let chaos = match random.below(100) {
            0 => 540,
            1..7 => 180,
            7..35 => 60,
            _ => 20,
        } * SECOND;
        Knobs {
            voters,
            observers: knob(random, 0, |random| random.index(3)),
            tick: random.between(50, 100) * MS,
            heartbeat_ticks: *random.pick(&[1, 2, 2, 3]),
            silence_ticks: *random.pick(&[6, 8, 10, 20]),
            counter_limit: if random.chance(300) {
                random.between(20, 400)
            } else {
                conclave_proto::Zxid::MAX_COUNTER - (1 << 20)
            },
            window_entries: *random.pick(&[1, 20, 1000, 200_000]),
            deliver_entries: *random.pick(&[1, 3, 20, 4096]),
            chaos,
            net: NetKnobs::draw(random),
            process: ProcessKnobs::draw(random),
            disk: DiskKnobs::draw(random),
            work: *random.pick(&[10, 30, 100, 300, 2000]) * MS,
            // Whoever draws next draws the same again, so that it changes nothing else.
            local_sessions: random.clone().chance(250),
        }
    }
}

impl NetKnobs {
    fn draw(random: &mut Random) -> NetKnobs {
        NetKnobs {
            delay: *random.pick(&[200, MS, 5 * MS, 30 * MS, 100 * MS]),
            datagrams: random.chance(333),
            loss: knob(random, 0, |random| *random.pick(&[1, 10, 50, 300])),
            duplicate: knob(random, 0, |random| *random.pick(&[10, 100, 500])),
            replay: knob(random, 0, |random| *random.pick(&[5, 50, 500])),
            clog: knob(random, 0, |random| random.between(1, 20) * SECOND),
            reset: knob(random, 0, |random| random.between(1, 30) * SECOND),
            partition: knob(random, 0, |random| random.between(4, 40) * SECOND),
            // Hardly any other fault has a chance meanwhile, so most seeds are spared.
            shift: if random.chance(250) { random.between(8, 40) * 100 * MS } else { 0 },
        }
    }
}

impl ProcessKnobs {
    fn draw(random: &mut Random) -> ProcessKnobs {
        ProcessKnobs {
            crash: knob(random, 0, |random| random.between(3, 40) * SECOND),
            pause: knob(random, 0, |random| random.between(4, 40) * SECOND),
            blank: knob(random, 0, |random| *random.pick(&[100, 300, 600])),
            damage: knob(random, 0, |random| *random.pick(&[30, 100, 300])),
            hand_over: knob(random, 0, |random| random.between(5, 60) * SECOND),
            drift: knob(random, 0, |random| random.between(1, 50)),
            jump: knob(random, 0, |random| random.between(5, 60) * SECOND),
        }
    }
}

impl DiskKnobs {
    fn draw(random: &mut Random) -> DiskKnobs {
        DiskKnobs {
            sync: *random.pick(&[100, MS, 10 * MS, 100 * MS]),
            slow: knob(random, 0, |random| *random.pick(&[1, 5, 20])),
            fail: knob(random, 0, |random| *random.pick(&[1, 1, 3])),
            survive: knob(random, 0, |_| 666),
            checkpoint: knob(random, 60 * SECOND, |random| random.between(1, 20) * SECOND),
        }
    }
}

/// `off` in a third of the seeds.
fn knob<T>(random: &mut Random, off: T, on: impl FnOnce(&mut Random) -> T) -> T {
    if random.chance(333) { off } else { on(random) }
}
