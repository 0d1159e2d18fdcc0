//! What happened, in two forms: a hash, always, and the last lines, when somebody will read them.

use std::collections::VecDeque;
use std::fmt;

use crate::random::scramble;

/// The lines that are kept to explain a failure, unless `SIM_TRACE` asks for another number.
pub(crate) const LINES: usize = 300;

/// The record of one run.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    hash: u64,
    events: u64,
    now_us: u64,
    keep: usize,
    lines: VecDeque<String>,
}

impl Trace {
    /// A record that keeps this many lines; with none, it only hashes.
    pub(crate) fn keeping(lines: usize) -> Trace {
        Trace { keep: lines, ..Trace::default() }
    }

    /// An event takes place.
    pub(crate) fn event(&mut self, now_us: u64, what: u64) {
        self.now_us = now_us;
        self.events += 1;
        self.mix(now_us);
        self.mix(what);
    }

    /// Something that came of it and that two runs of the same seed must agree on.
    pub(crate) fn mix(&mut self, value: u64) {
        self.hash = scramble(self.hash.rotate_left(5) ^ value);
    }

    /// A line for people; formatted only if somebody will read it.
    pub(crate) fn line(&mut self, text: fmt::Arguments<'_>) {
        if self.keep == 0 {
            return;
        }
        if self.lines.len() == self.keep {
            self.lines.pop_front();
        }
        let (seconds, micros) = (self.now_us / 1_000_000, self.now_us % 1_000_000);
        self.lines.push_back(format!("{seconds:>4}.{micros:06} {text}"));
    }

    /// The same for two runs of the same seed of the same code, and hardly for any others.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// How many events took place.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    /// How far virtual time has come.
    pub(crate) fn now_us(&self) -> u64 {
        self.now_us
    }

    /// The last lines.
    pub(crate) fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}
