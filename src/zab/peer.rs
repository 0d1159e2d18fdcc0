//! The machine itself: takes each [`Input`], changes roles, and makes the [`Ready`].

use bytes::Bytes;
use conclave_proto::{Epoch, ServerId, Zxid};

use super::core::{Attempt, Core, EarlyJoin};
use super::election::Looking;
use super::following::Following;
use super::leading::Leading;
use super::log::Position;
use super::message::{Ballot, FromFollower, FromLeader, Input, Message, Notice, Ready};
use super::role::{Next, Role};
use super::{Config, Durable};

/// A server's part in the broadcast.
#[derive(Debug)]
pub struct Peer {
    core: Core,
    role: Role,
    /// What the last notice said.
    view: RoleView,
}

/// What a server does in the ensemble: what its last notice said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleView {
    /// It has no leader.
    Looking,
    /// It follows a leader and votes.
    Following {
        /// The leader.
        leader: ServerId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// It follows a leader without a vote.
    Observing {
        /// The leader.
        leader: ServerId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// It leads.
    Leading {
        /// Its epoch.
        epoch: Epoch,
    },
}

/// A server as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowerView {
    /// Which.
    pub id: ServerId,
    /// Whether it is in sync and serves.
    pub in_sync: bool,
    /// The last entry that is on its disk, as far as the leader knows.
    pub acked: Zxid,
    /// How many entries of the leader's log it has not acknowledged; those that the leader no
    /// longer holds in memory are not counted.
    pub lag: u64,
}

/// Why a proposal was refused. None of these is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This server does not lead.
    #[error("this server does not lead")]
    NotLeading,
    /// Too much is in flight already: propose again once something is committed.
    #[error("too many proposals are in flight")]
    Full,
    /// The leader starts its next epoch: propose again after [`Notice::Leading`].
    #[error("the leader is starting its next epoch")]
    Rolling,
    /// The leader is handing over: the next leader will take it.
    #[error("the leader is handing over")]
    HandingOver,
}

impl Peer {
    /// A server that finds this on its disk.
    ///
    /// # Panics
    /// If what was found contradicts itself; storage verifies that it does not.
    pub fn new(config: Config, durable: Durable) -> Peer {
        let mut core = Core::new(config, durable);
        let mut looking = Looking::new(&mut core);
        let next = looking.consider(&mut core);
        let mut peer = Peer { core, role: Role::Looking(looking), view: RoleView::Looking };
        peer.become_next(next);
        peer.check();
        peer
    }

    /// Takes note of something that happened.
    ///
    /// # Panics
    /// If an invariant of the protocol is broken; no message can do that.
    pub fn step(&mut self, input: Input) {
        let next = match input {
            Input::Tick => self.on_tick(),
            Input::Message { from, message } => self.on_message(from, message),
            Input::LinkUp(server) => {
                self.on_link_up(server);
                Next::Stay
            }
            Input::LinkDown(server) => self.on_link_down(server),
            Input::Written(token) => {
                self.core.written(token);
                Next::Stay
            }
            Input::SnapshotInstalled { sync, at } => self.on_installed(sync, at),
            Input::SnapshotFailed { with, sync } => self.on_snapshot_failed(with, sync),
            Input::HandOver => self.on_hand_over(),
        };
        self.become_next(next);
        self.check();
    }

    /// Appends an entry with this body to the history.
    ///
    /// # Errors
    /// If this server does not lead, or not now.
    pub fn propose(&mut self, body: Bytes) -> Result<Zxid, ProposeError> {
        let Role::Leading(leading) = &mut self.role else { return Err(ProposeError::NotLeading) };
        let RoleView::Leading { epoch: told } = self.view else {
            return Err(ProposeError::NotLeading);
        };
        if leading.stage.established() != Some(told) {
            // It leads, as far as anybody was told: it is between two epochs.
            return Err(ProposeError::Rolling);
        }
        leading.propose(&mut self.core, body)
    }

    /// Whether nobody waits for anything at this server: a follower, for as long as it follows, or
    /// the leader itself. Such a follower learns what is committed only from what it is told anyway,
    /// which is the next proposal or heartbeat; and if the others are a majority without it, it is sent
    /// proposals only every few ticks, all that there have been. Where the leader is idle and all
    /// followers but one, that one's acknowledgements may wait. Saves messages, wake-ups and syncs.
    pub fn set_idle(&mut self, server: ServerId, idle: bool) {
        let Role::Leading(leading) = &mut self.role else { return };
        if server == self.core.id() {
            leading.idle = idle;
        } else if let Some(follower) = leading.followers.get_mut(&server) {
            follower.idle = idle;
        }
    }

    /// Something is about to be sent to the leader: what it is to be told of this follower's disk, and
    /// could wait, goes with it.
    pub fn acknowledge(&mut self) {
        match &mut self.role {
            Role::Following(following) | Role::Observing(following) => {
                following.acknowledge(&mut self.core);
            }
            Role::Looking(_) | Role::Leading(_) => {}
        }
    }

    /// Asks a quorum whether this server still leads. [`Notice::ReadConfirmed`] answers for this
    /// number and every lower one; if the server stops leading instead, it never does.
    /// `None` if this server does not lead.
    pub fn confirm_leadership(&mut self) -> Option<u64> {
        let Role::Leading(leading) = &mut self.role else { return None };
        leading.stage.established()?;
        leading.read_due = true;
        Some(leading.round + 1)
    }

    /// Takes what has to be done because of everything since the last call. Feed all inputs there
    /// are, then call it once: what piled up leaves in one batch.
    pub fn ready(&mut self) -> Ready {
        loop {
            let next = self.flush();
            if next == Next::Stay {
                break;
            }
            self.become_next(next);
        }
        self.core.out.committed = self.core.log.deliver(self.core.config.deliver_entries);
        self.core.out.more = self.core.log.deliverable().is_some();
        self.announce();
        let mut keep_after = Zxid::MAX;
        if let Role::Leading(leading) = &mut self.role {
            leading.order_snapshots(&mut self.core);
            leading.limit_window(&mut self.core);
            keep_after = leading.needs_log_after();
        }
        self.core.log.trim(keep_after);
        self.core.seal();
        self.check();
        std::mem::take(&mut self.core.out)
    }

    /// What this server does.
    pub fn role(&self) -> RoleView {
        self.view
    }

    /// Whether anything follows once this server's own writes so far are on the disk. It does not
    /// for a leader that is not enough of a majority with what the others have acknowledged, unless
    /// a follower that is not idle would be: that one is to be told.
    pub fn awaits_disk(&self) -> bool {
        match &self.role {
            Role::Leading(leading) => leading.awaits_disk(&self.core),
            Role::Looking(_) | Role::Following(_) | Role::Observing(_) => true,
        }
    }

    /// The epoch in which this server is the established leader, if it has yet to say so as well: it
    /// does with [`Notice::Leading`], once it has delivered the end of its history. Its followers may
    /// have begun to serve.
    pub fn established(&self) -> Option<Epoch> {
        match &self.role {
            Role::Leading(leading) => leading.stage.established(),
            Role::Looking(_) | Role::Following(_) | Role::Observing(_) => None,
        }
    }

    /// How many entries of the log are not delivered yet.
    pub fn undelivered(&self) -> usize {
        self.core.log.waiting().0
    }

    /// The last entry known to be committed; on a follower, of those that its own disk has. It may
    /// know of more than its leader does.
    pub fn committed(&self) -> Zxid {
        self.core.log.committed()
    }

    /// The end of the log, durable or not.
    pub fn last(&self) -> Position {
        self.core.log.last()
    }

    /// The servers that follow, if this one leads.
    pub fn followers(&self) -> Vec<FollowerView> {
        match &self.role {
            Role::Leading(leading) => leading.views(&self.core),
            Role::Looking(_) | Role::Following(_) | Role::Observing(_) => Vec::new(),
        }
    }

    fn on_tick(&mut self) -> Next {
        let core = &mut self.core;
        core.now += 1;
        let (now, early) = (core.now, std::mem::take(&mut core.early));
        let (fresh, stale) = early.into_iter().partition(|(_, early)| now - early.at < 2);
        core.early = fresh;
        let next = match &mut self.role {
            Role::Looking(looking) => looking.on_tick(core),
            Role::Following(following) | Role::Observing(following) => following.on_tick(core),
            Role::Leading(leading) => leading.on_tick(core),
        };
        for (server, _) in stale {
            self.show_standing(server);
        }
        next
    }

    /// Someone asked to join this server, which does not lead: it had better know.
    fn show_standing(&mut self, server: ServerId) {
        let core = &mut self.core;
        let ballot = match &self.role {
            Role::Looking(looking) => looking.ballot(core),
            Role::Following(following) | Role::Observing(following) => following.ballot(core),
            Role::Leading(_) => return,
        };
        core.send(server, ballot);
    }

    fn on_message(&mut self, from: ServerId, message: Message) -> Next {
        let core = &mut self.core;
        if !core.is_member(from) {
            return Next::Stay;
        }
        core.heard.insert(from, core.now);
        match message {
            Message::Ballot(ballot) => self.on_ballot(from, ballot),
            Message::Join { join, accepted, damaged } => {
                let attempt = Attempt { join, accepted, damaged };
                match &mut self.role {
                    Role::Leading(leading) => leading.on_join(core, from, attempt),
                    Role::Looking(_) | Role::Following(_) | Role::Observing(_) => {
                        core.early.insert(from, EarlyJoin { attempt, at: core.now });
                        Next::Stay
                    }
                }
            }
            Message::FromLeader { epoch, sync, body } => self.on_leader(from, epoch, sync, body),
            Message::FromFollower { epoch, sync, body } => {
                self.on_follower(from, epoch, sync, body)
            }
        }
    }

    fn on_ballot(&mut self, from: ServerId, ballot: Ballot) -> Next {
        let core = &mut self.core;
        if !core.is_news(from, &ballot) {
            return Next::Stay;
        }
        if core.is_lost(ballot.current) {
            return Next::Look("this server is blank, and the ensemble is not");
        }
        match &mut self.role {
            Role::Looking(looking) => looking.on_ballot(core, from, ballot),
            Role::Following(following) | Role::Observing(following) => {
                following.on_ballot(core, from, &ballot)
            }
            Role::Leading(leading) => leading.on_ballot(core, from, &ballot),
        }
    }

    fn on_leader(&mut self, from: ServerId, epoch: Epoch, sync: u64, body: FromLeader) -> Next {
        match &mut self.role {
            Role::Following(following) | Role::Observing(following) => {
                following.on_message(&mut self.core, from, (epoch, sync), body)
            }
            // It speaks to a follower that is no more.
            Role::Looking(_) | Role::Leading(_) => Next::Stay,
        }
    }

    fn on_follower(&mut self, from: ServerId, epoch: Epoch, sync: u64, body: FromFollower) -> Next {
        if Zxid::from_bits(sync).epoch() != epoch {
            return Next::Stay;
        }
        match &mut self.role {
            Role::Leading(leading) => leading.on_message(&mut self.core, from, sync, body),
            // It speaks to a leader that is no more; silence will tell it, or a ballot.
            Role::Looking(_) | Role::Following(_) | Role::Observing(_) => Next::Stay,
        }
    }

    fn on_link_up(&mut self, server: ServerId) {
        let core = &mut self.core;
        if !core.is_member(server) {
            return;
        }
        core.linked.insert(server);
        match &mut self.role {
            Role::Looking(looking) => looking.on_link_up(core, server),
            Role::Following(following) | Role::Observing(following) => {
                following.on_link_up(core, server);
            }
            Role::Leading(leading) => leading.on_link_up(core, server),
        }
    }

    fn on_link_down(&mut self, server: ServerId) -> Next {
        let core = &mut self.core;
        core.linked.remove(&server);
        core.heard.remove(&server);
        core.early.remove(&server);
        match &mut self.role {
            Role::Looking(looking) => looking.on_link_down(core, server),
            Role::Following(following) | Role::Observing(following) => {
                following.on_link_down(server)
            }
            Role::Leading(leading) => {
                leading.forget(core, server);
                Next::Stay
            }
        }
    }

    fn on_installed(&mut self, sync: u64, at: Position) -> Next {
        let core = &mut self.core;
        core.install(at);
        match &mut self.role {
            Role::Following(following) | Role::Observing(following) => {
                following.on_installed(core, sync, at)
            }
            Role::Looking(looking) => looking.consider(core),
            Role::Leading(_) => Next::Look("a snapshot has taken the place of the log"),
        }
    }

    fn on_snapshot_failed(&mut self, with: ServerId, sync: u64) -> Next {
        match &mut self.role {
            Role::Following(following) | Role::Observing(following) => {
                following.on_snapshot_failed(with, sync)
            }
            Role::Leading(leading) => {
                leading.on_snapshot_failed(&mut self.core, with, sync);
                Next::Stay
            }
            Role::Looking(_) => Next::Stay,
        }
    }

    fn on_hand_over(&mut self) -> Next {
        let core = &mut self.core;
        match &mut self.role {
            Role::Leading(leading) if leading.stage.established().is_some() => {
                leading.hand_over_by.get_or_insert(core.now + core.silence());
                return Next::Stay;
            }
            Role::Leading(_) | Role::Looking(_) | Role::Following(_) | Role::Observing(_) => {}
        }
        core.leaving = true;
        core.notice(Notice::HandedOver);
        match &self.role {
            Role::Leading(_) => Next::Look("the server is about to stop"),
            Role::Looking(_) | Role::Following(_) | Role::Observing(_) => Next::Stay,
        }
    }

    /// Changes the role as long as the new one wants another.
    fn become_next(&mut self, mut next: Next) {
        loop {
            next = match next {
                Next::Stay => return,
                Next::Look(why) => self.look(why),
                Next::Follow(leader) => self.follow(leader),
                Next::Lead => self.lead(),
            };
        }
    }

    fn look(&mut self, why: &'static str) -> Next {
        self.leave();
        self.lose_leader(why);
        let mut looking = Looking::new(&mut self.core);
        let next = looking.consider(&mut self.core);
        self.role = Role::Looking(looking);
        next
    }

    fn follow(&mut self, leader: ServerId) -> Next {
        self.leave();
        let same = match self.view {
            RoleView::Following { leader: old, .. } | RoleView::Observing { leader: old, .. } => {
                old == leader
            }
            RoleView::Looking => true,
            RoleView::Leading { .. } => false,
        };
        if !same {
            self.lose_leader("another server leads");
        }
        let following = Following::new(&mut self.core, leader);
        self.role = if self.core.quorum.votes(self.core.id()) {
            Role::Following(following)
        } else {
            Role::Observing(following)
        };
        Next::Stay
    }

    fn lead(&mut self) -> Next {
        self.leave();
        if self.view != RoleView::Looking {
            self.lose_leader("leadership was handed to this server");
        }
        let core = &mut self.core;
        let mut leading = Leading::new(core);
        let mut next = leading.gather(core);
        for (server, early) in std::mem::take(&mut core.early) {
            if next == Next::Stay {
                next = leading.on_join(core, server, early.attempt);
            }
        }
        self.role = Role::Leading(leading);
        next
    }

    fn leave(&mut self) {
        match &mut self.role {
            Role::Looking(_) => {}
            Role::Following(following) | Role::Observing(following) => {
                following.leave(&mut self.core);
            }
            Role::Leading(leading) => leading.leave(&mut self.core),
        }
    }

    fn lose_leader(&mut self, why: &'static str) {
        self.view = RoleView::Looking;
        self.core.notice(Notice::Looking { why });
    }

    fn flush(&mut self) -> Next {
        let core = &mut self.core;
        match &mut self.role {
            Role::Looking(looking) => {
                looking.flush(core);
                Next::Stay
            }
            Role::Following(following) | Role::Observing(following) => following.flush(core),
            Role::Leading(leading) => leading.flush(core),
        }
    }

    /// Tells the world when this server has begun to serve.
    fn announce(&mut self) {
        let core = &mut self.core;
        let (view, notice) = match &self.role {
            Role::Looking(_) => return,
            Role::Following(following) => {
                let Some(epoch) = following.serving(core) else { return };
                let leader = following.leader;
                (RoleView::Following { leader, epoch }, Notice::Following { leader, epoch })
            }
            Role::Observing(following) => {
                let Some(epoch) = following.serving(core) else { return };
                let leader = following.leader;
                (RoleView::Observing { leader, epoch }, Notice::Following { leader, epoch })
            }
            Role::Leading(leading) => {
                let Some(epoch) = leading.stage.established() else { return };
                if core.log.deliverable().is_some_and(|next| next.epoch() < epoch) {
                    return;
                }
                (RoleView::Leading { epoch }, Notice::Leading { epoch })
            }
        };
        if view != self.view {
            self.view = view;
            core.notice(notice);
        }
    }

    /// The invariants that can be seen from one server alone.
    fn check(&self) {
        self.core.check();
        match &self.role {
            Role::Looking(_) => {}
            Role::Following(following) | Role::Observing(following) => following.check(&self.core),
            Role::Leading(leading) => leading.check(&self.core),
        }
    }
}
