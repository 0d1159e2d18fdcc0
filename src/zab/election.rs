//! Phase 0: the search for a leader.
//!
//! Each server that looks for a leader tells all others what it has and whom it hears; again
//! whenever that changes, and regularly. Two servers that hear each other are neighbours. A server
//! that has a majority of looking neighbours, itself included, is electable. Everyone chooses the
//! best electable server among itself and its neighbours, by current epoch, end of log and id. A
//! server chosen by a majority tries to lead, and tells everyone; those who hear it join it.
//!
//! So the best of all electable servers is chosen by all its neighbours, whatever the shape of the
//! network: there is progress whenever some server and a majority hear each other. A server that
//! has a leader chooses nobody; so a server that alone cannot reach the leader has no majority and
//! disturbs nothing. Nothing here is a promise, and nothing here is needed for safety.

use std::collections::BTreeMap;

use conclave_proto::{Epoch, ServerId, Zxid};

use super::core::Core;
use super::message::{Ballot, Message, Standing};
use super::role::Next;

/// A server that looks for a leader.
#[derive(Debug)]
pub(super) struct Looking {
    /// The latest ballot of each server, and when it came.
    ballots: BTreeMap<ServerId, (Ballot, u64)>,
    choice: Option<ServerId>,
    electable: bool,
    /// Whom this server said it hears, when it last said anything.
    told_hears: Vec<ServerId>,
    /// Others are to be told.
    news: bool,
    /// Since when a majority has chosen this server.
    chosen_since: Option<u64>,
    /// How long to wait for the others, once chosen by a majority.
    settle: u64,
    /// Before this tick, this server does not try to lead again.
    rest_until: u64,
    next_ballot: u64,
}

impl Looking {
    pub(super) fn new(core: &mut Core) -> Looking {
        // Each attempt uses up an epoch: what keeps failing must not do so at full speed.
        let rest = match core.failures {
            0 => 0,
            failures => {
                let most = (core.heartbeat() << failures.min(16)).min(8 * core.silence());
                1 + core.dice.below(most)
            }
        };
        Looking {
            ballots: BTreeMap::new(),
            choice: None,
            electable: false,
            told_hears: Vec::new(),
            news: true,
            chosen_since: None,
            settle: 1 + core.dice.below(2),
            rest_until: core.now + rest,
            next_ballot: 0,
        }
    }

    /// Another server says where it stands.
    pub(super) fn on_ballot(&mut self, core: &mut Core, from: ServerId, ballot: Ballot) -> Next {
        let mutual = ballot.hears.contains(&core.id());
        match ballot.standing {
            Standing::Leading { .. } if mutual && core.quorum.votes(from) => {
                return Next::Follow(from);
            }
            Standing::Leading { .. } | Standing::Following { .. } => {}
            Standing::Looking { .. } => {
                // It does not know yet that its words arrive. One who is damaged tells it nothing by an
                // answer, and two of them would answer each other for ever.
                if !mutual && !core.damaged {
                    let answer = self.ballot(core);
                    core.send(from, answer);
                }
            }
        }
        let now = core.now;
        self.ballots.insert(from, (ballot, now));
        self.consider(core)
    }

    pub(super) fn on_link_up(&self, core: &mut Core, server: ServerId) {
        let ballot = self.ballot(core);
        core.send(server, ballot);
    }

    pub(super) fn on_link_down(&mut self, core: &mut Core, server: ServerId) -> Next {
        self.ballots.remove(&server);
        self.consider(core)
    }

    pub(super) fn on_tick(&mut self, core: &mut Core) -> Next {
        if core.now >= self.next_ballot {
            self.news = true;
        }
        self.consider(core)
    }

    /// Chooses again, and tries to lead once enough others have chosen this server.
    pub(super) fn consider(&mut self, core: &mut Core) -> Next {
        self.ballots.retain(|_, (_, tick)| core.is_fresh(*tick));
        let near: Vec<ServerId> = self.neighbours(core).map(|(id, _)| id).collect();
        let electable = core.may_lead()
            && core.now >= self.rest_until
            && core.quorum.is_majority(near.into_iter().chain([core.id()]));
        let choice = if core.votes() { self.best(core, electable) } else { None };
        if (electable, choice) != (self.electable, self.choice) {
            self.news = true;
        }
        self.electable = electable;
        self.choice = choice;
        self.try_to_lead(core)
    }

    fn try_to_lead(&mut self, core: &mut Core) -> Next {
        let me = core.id();
        let supporters: Vec<ServerId> =
            self.neighbours(core).filter(|(_, b)| chooses(b, me)).map(|(id, _)| id).collect();
        let chosen = self.choice == Some(me)
            && core.quorum.is_majority(supporters.iter().copied().chain([me]));
        if !chosen {
            self.chosen_since = None;
            return Next::Stay;
        }
        let since = *self.chosen_since.get_or_insert(core.now);
        // Nobody else can be heard from, so there is nothing to wait for.
        let unanimous = core.quorum.voters().all(|id| {
            let absent = !core.linked.contains(&id) && !self.ballots.contains_key(&id);
            id == me || supporters.contains(&id) || absent
        });
        if unanimous || core.now - since >= self.settle { Next::Lead } else { Next::Stay }
    }

    /// The voters that look for a leader and that this server hears and is heard by.
    fn neighbours<'a>(
        &'a self,
        core: &'a Core,
    ) -> impl Iterator<Item = (ServerId, &'a Ballot)> + 'a {
        self.ballots.iter().map(|(id, (ballot, _))| (*id, ballot)).filter(|(id, ballot)| {
            core.quorum.votes(*id)
                && ballot.hears.contains(&core.id())
                && matches!(ballot.standing, Standing::Looking { .. })
        })
    }

    fn best(&self, core: &Core, electable: bool) -> Option<ServerId> {
        let own = (core.current, core.log.last().zxid, core.id());
        let others = self.neighbours(core).filter(|(_, ballot)| is_electable(ballot));
        let others = others.map(|(id, ballot)| (ballot.current, ballot.last, id));
        let best: Option<(Epoch, Zxid, ServerId)> = others.chain(electable.then_some(own)).max();
        best.map(|(_, _, id)| id)
    }

    pub(super) fn ballot(&self, core: &mut Core) -> Message {
        core.ballot(Standing::Looking { choice: self.choice, electable: self.electable })
    }

    /// Tells the others, if there is something to tell.
    pub(super) fn flush(&mut self, core: &mut Core) {
        let hears: Vec<ServerId> = core
            .heard
            .iter()
            .filter(|(_, tick)| core.is_fresh(**tick))
            .map(|(id, _)| *id)
            .collect();
        if !self.news && hears == self.told_hears {
            return;
        }
        self.news = false;
        self.told_hears = hears;
        self.next_ballot = core.now + core.heartbeat();
        for server in core.others() {
            let ballot = self.ballot(core);
            core.send(server, ballot);
        }
    }
}

fn is_electable(ballot: &Ballot) -> bool {
    match ballot.standing {
        Standing::Looking { electable, .. } => electable,
        Standing::Following { .. } | Standing::Leading { .. } => false,
    }
}

fn chooses(ballot: &Ballot, server: ServerId) -> bool {
    match ballot.standing {
        Standing::Looking { choice, .. } => choice == Some(server),
        Standing::Following { .. } | Standing::Leading { .. } => false,
    }
}
