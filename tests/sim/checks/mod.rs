//! What must hold, whatever goes wrong: one property a file. The numbers are those of the table of
//! invariants in docs/ZAB.md.
//!
//! The checks see what servers write, send and deliver, and ask the disks, never the servers, what
//! would survive. A violation panics; the runner says which seed it was.

mod agreement;
mod applied_bounds;
mod digests;
mod durable_quorum;
mod epochs;
mod leader_completeness;
mod log_shape;
mod messages;
mod one_leader;
mod origin;

use conclave::zab::{Entry, Message, Notice, Position, Write};
use conclave_proto::{Epoch, Zxid};

use crate::disk::Disk;

pub(crate) use agreement::History;

/// The state of all checks of one run.
#[derive(Debug)]
pub(crate) struct Checks {
    voters: usize,
    history: History,
    leaders: one_leader::Leaders,
    origins: origin::Origins,
    promises: messages::Promises,
    digests: digests::Digests,
    /// By server: the epochs that it leads, or led at some time since it was last asked what is to
    /// be done.
    leading: Vec<Vec<Epoch>>,
    delivered: Vec<Position>,
}

impl Checks {
    /// Checks for this many servers, of which the first `voters` vote.
    pub(crate) fn new(servers: usize, voters: usize) -> Checks {
        Checks {
            voters,
            history: History::default(),
            leaders: one_leader::Leaders::default(),
            origins: origin::Origins::default(),
            promises: messages::Promises::default(),
            digests: digests::Digests::default(),
            leading: vec![Vec::new(); servers],
            delivered: vec![Position::default(); servers],
        }
    }

    /// The one history.
    pub(crate) fn history(&self) -> &History {
        &self.history
    }

    /// When an entry was proposed.
    pub(crate) fn proposed_at(&self, zxid: Zxid) -> u64 {
        self.origins.time_of(zxid).expect("only what was proposed is committed")
    }

    /// How far a server has delivered.
    pub(crate) fn delivered(&self, server: usize) -> Position {
        self.delivered[server]
    }

    /// A process starts on what its disk holds.
    pub(crate) fn started<S: Clone + Default>(&mut self, server: usize, disk: &Disk<S>) {
        let checkpoint = disk.checkpoint();
        self.history.assert_contains(server, checkpoint);
        self.delivered[server] = checkpoint;
        self.leading[server].clear();
    }

    /// A process ended.
    pub(crate) fn stopped(&mut self, server: usize) {
        self.leading[server].clear();
    }

    /// A server is about to write this, behind what is pending on its disk. In the course of what
    /// led to it, its role may have changed.
    pub(crate) fn writes<S: Clone + Default>(
        &mut self,
        server: usize,
        notices: &[Notice],
        writes: &[Write],
        disk: &Disk<S>,
        now: u64,
    ) {
        for notice in notices {
            if let Notice::Leading { epoch } = notice {
                self.leaders.established(server, *epoch);
                self.leading[server].push(*epoch);
            }
        }
        epochs::check(server, writes, disk);
        log_shape::check(server, writes, disk, &self.history);
        for write in writes {
            if let Write::Append(entries) = write {
                self.origins.appended(server, &self.leading[server], entries, now);
            }
        }
        for notice in notices {
            match notice {
                Notice::Leading { epoch } => self.leading[server] = vec![*epoch],
                Notice::Looking { .. } | Notice::Following { .. } => self.leading[server].clear(),
                Notice::HandedOver | Notice::ReadConfirmed { .. } => {}
            }
        }
    }

    /// A server sends a message, and what had to be durable for it must be.
    pub(crate) fn sends<S: Clone + Default>(
        &mut self,
        from: usize,
        to: usize,
        message: &Message,
        disks: &[Disk<S>],
    ) {
        let facts = messages::Facts {
            history: &self.history,
            origins: &self.origins,
            disks,
            voters: self.voters,
        };
        self.promises.sent(from, to, message, &facts);
    }

    /// A server delivers these, in order; returns how many of them are new to the history.
    pub(crate) fn delivers<'a, S: Clone + Default>(
        &mut self,
        server: usize,
        entries: impl Iterator<Item = &'a Entry>,
        disks: &[Disk<S>],
    ) -> usize {
        let known = self.history.len();
        let mut last = self.delivered[server];
        let (promised, _) = disks[server].epochs();
        for entry in entries {
            self.history.delivered(server, promised, last, entry);
            last = entry.position();
        }
        self.delivered[server] = last;
        applied_bounds::check(server, last, &disks[server]);
        let new = self.history.len() - known;
        if new > 0 {
            durable_quorum::check(self.history.end(), &disks[..self.voters], None);
        }
        new
    }

    /// A server has delivered everything it will for now; this is its state's digest.
    pub(crate) fn digest(&mut self, server: usize, digest: u64) {
        self.digests.compare(server, self.delivered[server].zxid, digest);
    }

    /// A snapshot became a server's state.
    pub(crate) fn installed(&mut self, server: usize, at: Position) {
        assert!(
            at.zxid >= self.delivered[server].zxid,
            "server {}: a snapshot at {} took it back from {}",
            server + 1,
            at.zxid,
            self.delivered[server].zxid
        );
        self.history.assert_contains(server, at);
        self.delivered[server] = at;
    }

    /// A server leads, and has delivered what it had to before.
    pub(crate) fn leads<S: Clone + Default>(&self, server: usize, epoch: Epoch, disk: &Disk<S>) {
        let delivered = self.delivered[server];
        leader_completeness::check(server, epoch, delivered, disk, &self.history);
    }

    /// The number of servers that make a quorum.
    pub(crate) fn quorum(&self) -> usize {
        self.voters / 2 + 1
    }
}
