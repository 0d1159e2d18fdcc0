//! Invariants 7, 8 and 10: a promise or an acknowledgement that is sent would survive a crash now,
//! and a leader speaks of nothing that was not proposed, or that would not be committed if whom it
//! tells had it.

use std::collections::{BTreeMap, BTreeSet};

use conclave::zab::{FromFollower, FromLeader, Message, Position, SyncStart};
use conclave_proto::{Epoch, Zxid};

use super::origin::Origins;
use super::{History, durable_quorum};
use crate::disk::Disk;

/// What leaders have asked their followers to hold before they acknowledge them, and who has. By
/// follower and number of the synchronisation.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    upto: BTreeMap<(usize, u64), Position>,
    synced: BTreeSet<(usize, u64)>,
}

/// What a message is checked against.
pub(crate) struct Facts<'a, S> {
    pub(crate) history: &'a History,
    pub(crate) origins: &'a Origins,
    pub(crate) disks: &'a [Disk<S>],
    pub(crate) voters: usize,
}

impl Promises {
    /// A server sends a message.
    pub(crate) fn sent<S: Clone + Default>(
        &mut self,
        from: usize,
        to: usize,
        message: &Message,
        facts: &Facts<'_, S>,
    ) {
        match message {
            Message::Ballot(_) | Message::Join { .. } => {}
            Message::FromLeader { sync, body, .. } => {
                self.leader_said(from, to, *sync, body, facts);
            }
            Message::FromFollower { epoch, sync, body } => {
                self.follower_said(from, *epoch, *sync, body, facts);
            }
        }
    }

    fn leader_said<S: Clone + Default>(
        &mut self,
        from: usize,
        to: usize,
        sync: u64,
        body: &FromLeader,
        facts: &Facts<'_, S>,
    ) {
        match body {
            FromLeader::Sync { start, upto } => {
                self.upto.insert((to, sync), *upto);
                facts.assert_proposed(from, *upto);
                match start {
                    SyncStart::After(at) => facts.assert_proposed(from, *at),
                    SyncStart::Snapshot(at) => {
                        facts.assert_proposed(from, *at);
                        facts.assert_committed(from, at.zxid);
                    }
                }
            }
            FromLeader::Propose { previous, entries, commit, .. } => {
                facts.assert_proposed(from, *previous);
                let mut last = *previous;
                for entry in entries {
                    assert!(entry.continues(last), "server {} proposes a gap", from + 1);
                    last = entry.position();
                }
                facts.assert_proposed(from, last);
                self.commit_told(from, to, sync, *commit, facts);
            }
            FromLeader::UpToDate { commit } => facts.assert_committed(from, *commit),
            FromLeader::Commit { commit } | FromLeader::Heartbeat { commit, .. } => {
                self.commit_told(from, to, sync, *commit, facts);
            }
            FromLeader::NewEpoch { .. }
            | FromLeader::Fetch { .. }
            | FromLeader::Restart
            | FromLeader::HandOver { .. } => {}
        }
    }

    /// A leader says what its follower may commit as far as it has it. Who has not acknowledged the
    /// leader must not count itself. Who has promised a later epoch does not listen, and then what
    /// the others had may be gone.
    fn commit_told<S: Clone + Default>(
        &self,
        from: usize,
        to: usize,
        sync: u64,
        commit: Zxid,
        facts: &Facts<'_, S>,
    ) {
        if self.synced.contains(&(to, sync)) {
            if facts.disks[to].epochs().0 <= Zxid::from_bits(sync).epoch() {
                facts.assert_committed_with(to, commit);
            }
        } else {
            facts.assert_committed(from, commit);
        }
    }

    fn follower_said<S: Clone + Default>(
        &mut self,
        from: usize,
        epoch: Epoch,
        sync: u64,
        body: &FromFollower,
        facts: &Facts<'_, S>,
    ) {
        let disk = &facts.disks[from];
        match body {
            FromFollower::AckEpoch { promised: true, .. } => assert!(
                disk.epochs().0 >= epoch,
                "server {} promises epoch {epoch}, but its disk has {}",
                from + 1,
                disk.epochs().0
            ),
            FromFollower::Ack { durable, synced }
            | FromFollower::HeartbeatAck { durable, synced, .. } => {
                facts.assert_durable(from, *durable);
                if *synced {
                    assert_eq!(
                        disk.epochs().1,
                        epoch,
                        "server {} acknowledges a leader whose epoch is not on its disk",
                        from + 1
                    );
                    let upto = self.upto.get(&(from, sync)).expect("it was synchronised");
                    assert!(
                        disk.holds(*upto),
                        "server {} acknowledges a leader whose history up to {} it lacks",
                        from + 1,
                        upto.zxid
                    );
                    self.synced.insert((from, sync));
                }
            }
            FromFollower::AckEpoch { promised: false, .. }
            | FromFollower::History { .. }
            | FromFollower::Diverged { .. }
            | FromFollower::Gap { .. } => {}
        }
    }
}

impl<S: Clone + Default> Facts<'_, S> {
    fn assert_proposed(&self, server: usize, at: Position) {
        assert!(
            at == Position::default() || self.origins.chain_of(at.zxid) == Some(at.chain),
            "server {} speaks of {}, which was not proposed",
            server + 1,
            at.zxid
        );
    }

    fn assert_committed(&self, server: usize, commit: Zxid) {
        if commit <= self.history.end().zxid {
            let known = self.history.position_at(commit).zxid;
            assert_eq!(known, commit, "server {} calls {commit} committed", server + 1);
            return;
        }
        let chain = self.origins.chain_of(commit);
        let chain = chain.expect("only what was proposed is called committed");
        durable_quorum::check(Position { zxid: commit, chain }, &self.disks[..self.voters], None);
    }

    /// As if `server` had everything that was proposed.
    fn assert_committed_with(&self, server: usize, commit: Zxid) {
        if self.history.position_at(commit).zxid == commit {
            return;
        }
        let chain = self.origins.chain_of(commit);
        let chain = chain.expect("only what was proposed is called committed");
        let at = Position { zxid: commit, chain };
        durable_quorum::check(at, &self.disks[..self.voters], Some(server));
    }

    fn assert_durable(&self, server: usize, zxid: Zxid) {
        let disk = &self.disks[server];
        assert!(
            disk.position_at(zxid).map_or(zxid <= disk.checkpoint().zxid, |at| at.zxid == zxid),
            "server {} acknowledges {zxid}, but its disk ends at {}",
            server + 1,
            disk.end().zxid
        );
    }
}
