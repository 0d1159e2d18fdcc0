//! The network: one link for each ordered pair of servers.

use std::collections::VecDeque;

use crate::knobs::{MS, NetKnobs, SECOND};
use crate::random::Random;

/// All links between `n` servers.
#[derive(Debug)]
pub(crate) struct Net<P> {
    knobs: NetKnobs,
    servers: usize,
    links: Vec<Link<P>>,
}

/// One direction between two servers.
#[derive(Debug)]
pub(crate) struct Link<P> {
    /// Whether there is a connection.
    pub(crate) up: bool,
    /// Grows with each connection.
    pub(crate) generation: u32,
    /// Nothing passes, and no connection can be made.
    pub(crate) cut: bool,
    /// What comes before this time is held back until then.
    clogged_until: u64,
    /// When the last message so far arrives, on a link that keeps their order.
    last_arrival: u64,
    /// What waits for the cut to end.
    held: VecDeque<P>,
}

/// When a message that was sent will arrive.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Arrivals {
    /// As usual, `None` if it is lost.
    pub(crate) first: Option<u64>,
    /// Once more.
    pub(crate) again: Option<u64>,
    /// Once more, whatever has become of the connection.
    pub(crate) replay: Option<u64>,
}

/// What to do with a message whose time has come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Passage {
    /// Hand it over.
    Arrives,
    /// It is lost.
    Lost,
    /// Its time comes later.
    Later(u64),
    /// It waits for the end of a cut.
    Held,
}

impl<P> Net<P> {
    /// A network without any connection yet.
    pub(crate) fn new(servers: usize, knobs: NetKnobs) -> Net<P> {
        let link = |_| Link {
            up: false,
            generation: 0,
            cut: false,
            clogged_until: 0,
            last_arrival: 0,
            held: VecDeque::new(),
        };
        Net { knobs, servers, links: (0..servers * servers).map(link).collect() }
    }

    /// The link between two servers.
    pub(crate) fn link(&mut self, from: usize, to: usize) -> &mut Link<P> {
        &mut self.links[from * self.servers + to]
    }

    /// Whether links keep the order of messages and lose none while they are up.
    pub(crate) fn is_stream(&self) -> bool {
        !self.knobs.datagrams
    }

    /// From now on links are fast streams.
    pub(crate) fn calm(&mut self) {
        self.knobs = NetKnobs {
            delay: self.knobs.delay.min(5 * MS),
            datagrams: false,
            loss: 0,
            duplicate: 0,
            replay: 0,
            clog: 0,
            reset: 0,
            partition: 0,
            shift: 0,
        };
    }

    /// When a message sent now will arrive.
    pub(crate) fn send(
        &mut self,
        now: u64,
        from: usize,
        to: usize,
        random: &mut Random,
    ) -> Arrivals {
        let NetKnobs { delay, datagrams, loss, duplicate, replay, .. } = self.knobs;
        let link = &mut self.links[from * self.servers + to];
        if !link.up {
            return Arrivals::default();
        }
        let lost = loss > 0 && random.chance(loss);
        let mut first = now + 1 + random.around(delay);
        if datagrams {
            return Arrivals {
                first: (!lost).then_some(first),
                again: (duplicate > 0 && random.chance(duplicate))
                    .then(|| first + random.around(delay)),
                replay: (replay > 0 && random.chance(replay))
                    .then(|| first + random.below(30 * SECOND)),
            };
        }
        if lost {
            first += 200 * MS;
        }
        first = first.max(link.last_arrival + 1);
        link.last_arrival = first;
        Arrivals { first: Some(first), again: None, replay: None }
    }

    /// Whether a message sent on that connection passes now.
    pub(crate) fn passage(
        &mut self,
        now: u64,
        from: usize,
        to: usize,
        generation: Option<u32>,
    ) -> Passage {
        let stream = self.is_stream();
        let link = self.link(from, to);
        if generation.is_some_and(|generation| generation != link.generation) {
            return Passage::Lost;
        }
        if link.cut {
            return if stream { Passage::Held } else { Passage::Lost };
        }
        if link.clogged_until > now {
            return Passage::Later(link.clogged_until);
        }
        Passage::Arrives
    }

    /// Keeps a message until the cut ends.
    pub(crate) fn hold(&mut self, from: usize, to: usize, packet: P) {
        self.link(from, to).held.push_back(packet);
    }

    /// Holds everything back until `until`.
    pub(crate) fn clog(&mut self, from: usize, to: usize, until: u64) {
        let link = self.link(from, to);
        link.clogged_until = link.clogged_until.max(until);
        link.last_arrival = link.last_arrival.max(until);
    }

    /// Cuts or mends a link; what was held leaves now, with the times at which it arrives.
    pub(crate) fn set_cut(&mut self, now: u64, from: usize, to: usize, cut: bool) -> Vec<(u64, P)> {
        let link = self.link(from, to);
        link.cut = cut;
        if cut {
            return Vec::new();
        }
        let held = std::mem::take(&mut link.held);
        let first = now + 1;
        link.last_arrival = link.last_arrival.max(first + held.len() as u64);
        (first..).zip(held).collect()
    }

    /// Ends the connection: what is under way is lost.
    pub(crate) fn drop_connection(&mut self, from: usize, to: usize) {
        let link = self.link(from, to);
        link.up = false;
        link.generation += 1;
        link.held.clear();
    }

    /// Makes a connection, unless the way is cut. What `from` sends arrives after `now`.
    pub(crate) fn connect(&mut self, now: u64, from: usize, to: usize) -> bool {
        let link = self.link(from, to);
        if link.cut || link.up {
            return false;
        }
        link.up = true;
        link.last_arrival = link.last_arrival.max(now);
        true
    }
}
