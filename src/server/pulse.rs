//! When the replica is told that time passes.
//!
//! A turn begins with the ticks that have passed since the last one, so a loop that turns for other
//! reasons need not be woken for each. One that has had nothing to do for a while is woken only so
//! often that nobody takes it for dead: what an idle server costs is, above all, being woken.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::settings::Timing;

/// A server rests once nothing has happened for so many ticks: whatever waits for ticks in the course of
/// a write is done by then.
const RESTLESS_TICKS: u64 = 10;
/// So often a leader that rests says that it is there, in the time after which it would be given up.
const SIGNS_OF_LIFE: u32 = 10;
/// A loop that is to be woken, and turns so many ticks too late, has stood still.
const LATE_TICKS: u64 = 4;

/// The passing of time, as the loop counts it. It has no clock, and is told the time.
pub(super) struct Pulse {
    tick_ms: u64,
    rest_ticks: u64,
    /// The ticks of one turn are no more than that: a server that stood still must not take its own
    /// absence for everybody else's.
    most: u64,
    /// When the last tick was; `None`: there was none yet.
    last_ms: Option<u64>,
    /// The last tick before something happened.
    stirred_ms: u64,
    pace: Rc<Pace>,
}

/// How often the loop is woken.
pub(super) struct Pace {
    tick: Duration,
    rest: Duration,
    resting: Cell<bool>,
    stirred: Notify,
}

impl Pulse {
    pub(super) fn new(timing: &Timing) -> Pulse {
        let rest_ticks = timing.heartbeat_ticks.max(timing.silence_ticks / SIGNS_OF_LIFE);
        let pace = Pace {
            tick: timing.tick,
            rest: timing.tick * rest_ticks,
            resting: Cell::new(false),
            stirred: Notify::new(),
        };
        Pulse {
            tick_ms: u64::try_from(timing.tick.as_millis()).expect("a tick is at most a second"),
            rest_ticks: rest_ticks.into(),
            most: u64::from((timing.silence_ticks / 2).max(1)),
            last_ms: None,
            stirred_ms: 0,
            pace: Rc::new(pace),
        }
    }

    pub(super) fn pace(&self) -> Rc<Pace> {
        self.pace.clone()
    }

    /// When the ticks were that have passed: what the replica is told before anything else. Each has its
    /// own time, unless the server stood still: then nobody could be heard meanwhile, and they all have
    /// the present one.
    pub(super) fn ticks(&mut self, now_ms: u64) -> impl Iterator<Item = u64> + use<> {
        let passed = self.last_ms.map_or(1, |last_ms| (now_ms - last_ms) / self.tick_ms);
        let slept = if self.pace.resting.get() { self.rest_ticks } else { 1 };
        let (before_ms, step_ms) = match self.last_ms {
            Some(last_ms) if passed <= slept + LATE_TICKS => (last_ms, self.tick_ms),
            Some(_) | None => (now_ms, 0),
        };
        self.last_ms = Some(before_ms + passed * step_ms);
        (1..=passed.min(self.most)).map(move |tick| before_ms + tick * step_ms)
    }

    /// Something has happened, or goes on.
    pub(super) fn stir(&mut self) {
        self.stirred_ms = self.now_ms();
        if self.pace.resting.replace(false) {
            self.pace.stirred.notify_one();
        }
    }

    /// Nothing has happened in this turn.
    pub(super) fn rest(&mut self) {
        let since_ms = self.now_ms() - self.stirred_ms;
        self.pace.resting.set(since_ms >= RESTLESS_TICKS * self.tick_ms);
    }

    /// The clock, as the ticks have it.
    fn now_ms(&self) -> u64 {
        self.last_ms.unwrap_or(0)
    }
}

/// Wakes the loop for ever.
pub(super) async fn beat(pace: Rc<Pace>, bell: Arc<Notify>) {
    loop {
        let period = if pace.resting.get() { pace.rest } else { pace.tick };
        // Whoever stirs does not wait for the end of a rest.
        if timeout(period, pace.stirred.notified()).await.is_err() {
            bell.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing {
        tick: Duration::from_millis(10),
        heartbeat_ticks: 5,
        silence_ticks: 100,
        session_timeout_ms: (1_000, 600_000),
    };

    fn ticks(pulse: &mut Pulse, now_ms: u64) -> Vec<u64> {
        pulse.ticks(now_ms).collect()
    }

    /// A server to which something happened at 5 ms, and nothing since.
    fn resting() -> Pulse {
        let mut pulse = Pulse::new(&TIMING);
        assert_eq!(ticks(&mut pulse, 5), [5]);
        pulse.stir();
        for turn in 1..=10 {
            assert!(!pulse.pace.resting.get(), "something may still wait for ticks");
            assert_eq!(ticks(&mut pulse, 5 + 10 * turn), [5 + 10 * turn]);
            pulse.rest();
        }
        assert!(pulse.pace.resting.get());
        pulse
    }

    #[test]
    fn no_time_is_lost_between_turns() {
        let mut pulse = Pulse::new(&TIMING);
        assert_eq!(ticks(&mut pulse, 5), [5]);
        assert!(ticks(&mut pulse, 14).is_empty());
        assert_eq!(ticks(&mut pulse, 19), [15]);
        assert_eq!(ticks(&mut pulse, 48), [25, 35, 45]);
        assert_eq!(ticks(&mut pulse, 55), [55]);
    }

    #[test]
    fn a_rest_is_made_up_for_tick_by_tick() {
        let mut pulse = resting();
        assert_eq!(ticks(&mut pulse, 205), (115..=205).step_by(10).collect::<Vec<_>>());
        pulse.rest();
        assert_eq!(ticks(&mut pulse, 240), [215, 225, 235]);
        pulse.stir();
        assert!(!pulse.pace.resting.get());
    }

    #[test]
    fn time_in_which_nobody_could_be_heard_is_no_time_that_has_passed_for_others() {
        let mut pulse = Pulse::new(&TIMING);
        ticks(&mut pulse, 5);
        // It was to be woken for each tick.
        assert_eq!(ticks(&mut pulse, 105), [105; 10]);
        assert_eq!(ticks(&mut pulse, 10_105), [10_105; 50]);
        assert_eq!(ticks(&mut pulse, 10_115), [10_115]);
        let mut pulse = resting();
        assert_eq!(ticks(&mut pulse, 305), [305; 20]);
    }
}
