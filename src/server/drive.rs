//! The loop: takes everything that has happened, lets the replica think once, and performs what
//! comes of it in its written order.

use std::collections::VecDeque;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use conclave_proto::ServerId;
use tokio::task::yield_now;

use crate::limits::UNWRITTEN_BYTES;
use crate::peers::Links;
use crate::replica::{ConnId, Input, Notice, PeerMessage, Ready, Replica, Strain};
use crate::store::{Home, StoreNodes, fatal, retire};
use crate::tree::{Excess, Measure};
use crate::wire::Word;
use crate::zab::{self, SnapshotOrder, WriteToken};

use super::admin::Report;
use super::audit::Record;
use super::clients::Clients;
use super::clock::Clock;
use super::disk::{self, Job, Log, Outcome, Outcomes};
use super::inbox::{Inbox, Waiting};
use super::metrics::Metrics;
use super::ports::Keychain;
use super::pulse::Pulse;
use super::settings::StorageSettings;
use super::transfers::Transfers;
use super::words::Shown;
use super::{EXIT_DIVERGED, Stop};

/// The tree's file is called almost full beyond this part of its map, in percent. The rest is for
/// pages that a checkpoint copies, and for those that are kept while a snapshot of them is sent.
const MAP_ALERT_PERCENT: u64 = 70;
/// The log speaks of quotas that are exceeded at most this often, in µs.
const QUOTA_LOG_US: u64 = 1_000_000;
/// With so few inputs in a turn, and so few transactions under way, the loop has nothing better to
/// do than wait for the disk.
const IDLE_INPUTS: usize = 16;
/// See [`IDLE_INPUTS`].
const IDLE_ENTRIES: usize = 2;
/// After turns of so many µs together, sockets, other servers and timers are looked at before the next
/// one. Without that, what follows a turn and comes before the next may be but a client that goes on
/// with what it has sent long ago.
const UNINTERRUPTED_US: u64 = 1_000;
/// How often the room on the disk is looked at and the gauges are set, in µs.
const LOOK_AROUND_US: u64 = 1_000_000;
/// How often the whole tree on disk is checked, the first time at the start, in µs.
const SCRUB_EVERY_US: u64 = 24 * 3600 * 1_000_000;

/// Everything that the loop owns or can reach.
pub(super) struct Drive {
    pub(super) replica: Replica<StoreNodes>,
    pub(super) inbox: Rc<Inbox>,
    pub(super) outcomes: Outcomes,
    pub(super) log: Log,
    pub(super) links: Links,
    pub(super) clients: Rc<Clients>,
    pub(super) transfers: Transfers,
    pub(super) home: Home,
    pub(super) clock: Clock,
    pub(super) pulse: Pulse,
    pub(super) metrics: Arc<Metrics>,
    pub(super) storage: StorageSettings,
    pub(super) keys: Keychain,
    pub(super) stop: Rc<Stop>,
    pub(super) shown: Shown,
    pub(super) state: DriveState,
}

/// What the loop remembers from turn to turn.
#[derive(Default)]
pub(super) struct DriveState {
    waiting: Waiting,
    taken: Vec<Outcome>,
    /// Everything up to here is on the disk.
    durable: WriteToken,
    /// What is sent once everything up to a token is on the disk.
    held: VecDeque<(WriteToken, Vec<(ServerId, PeerMessage)>)>,
    /// Nothing hangs on the writes under way: the loop need not be woken when they are done.
    patient: bool,
    /// Those who ask with a four-letter word.
    pub(super) words: VecDeque<(ConnId, Word)>,
    /// Whether a snapshot is being put in force. Until it is, the replica is told of nothing but
    /// writes: whatever it wanted written behind it would be meant for the log as it was.
    installing: bool,
    checkpointing: bool,
    last_checkpoint_us: u64,
    /// The bytes added to the log since the last checkpoint was begun.
    logged_bytes: u64,
    last_look_us: u64,
    next_scrub_us: u64,
    /// When the log last said that a quota is exceeded.
    over_quota_us: Option<u64>,
    strain: Strain,
    free_bytes: u64,
}

impl Drive {
    /// Turns for ever.
    pub(super) async fn run(mut self) {
        let bell = self.inbox.bell().clone();
        let mut uninterrupted_us = 0;
        loop {
            let begun = self.clock.micros();
            self.turn();
            uninterrupted_us += self.clock.micros() - begun;
            if self.log.is_unsynced() {
                // The loop will stand still for the disk. What has come in the meantime had better share
                // the sync than wait for this one and then for another.
                yield_now().await;
                if !self.inbox.is_empty() {
                    self.turn();
                }
                self.log.sync();
            }
            // If there is a backlog, the bell has rung already.
            if self.replica.has_backlog() || uninterrupted_us >= UNINTERRUPTED_US {
                uninterrupted_us = 0;
                yield_now().await;
            }
            bell.notified().await;
        }
    }

    fn turn(&mut self) {
        self.metrics.turns.inc();
        self.take_outcomes();
        if self.state.installing {
            return;
        }
        let mut waiting = mem::take(&mut self.state.waiting);
        self.inbox.take(&mut waiting);
        let inputs = waiting.inputs.len();
        let time_ms = self.clock.time_of_day_ms();
        for now_ms in self.pulse.ticks(self.clock.millis()) {
            self.replica.step(Input::Tick { now_ms, time_ms });
        }
        let mut stirs = !self.replica.has_leader();
        for input in waiting.inputs.drain(..) {
            stirs |= !matches!(&input, Input::Peer { message, .. } if message.is_routine());
            self.replica.step(input);
        }
        let mut ready = self.replica.ready();
        stirs |= !ready.write.is_empty() || !ready.clients.is_empty();
        let idle = inputs < IDLE_INPUTS && self.replica.undelivered() <= IDLE_ENTRIES;
        if self.replica.is_held() {
            // The rest is looked for at once, without the bell.
            ready.more = false;
            // The disk is to work while this server applies: not in the loop, which does.
            self.perform(ready, false);
            ready = self.replica.ready();
        }
        self.perform(ready, idle);
        if stirs {
            self.pulse.stir();
        } else {
            self.pulse.rest();
        }
        for (from, part) in waiting.parts.drain(..) {
            self.transfers.part(from, part);
        }
        self.look_after_storage();
        for answer in waiting.asking.drain(..) {
            // Whoever asked may be gone.
            answer.send(self.report()).ok();
        }
        self.state.words.extend(waiting.words.drain(..));
        self.answer_word();
        self.state.waiting = waiting;
    }

    /// What the threads have done since the last turn.
    fn take_outcomes(&mut self) {
        let mut taken = mem::take(&mut self.state.taken);
        self.outcomes.take(&mut taken);
        for outcome in taken.drain(..) {
            match outcome {
                Outcome::Written { token, bytes } => {
                    self.state.logged_bytes += bytes;
                    self.written(token);
                }
                Outcome::Installed { sync, at, installed } => {
                    self.replica.nodes_mut().replace(*installed);
                    self.replica.install(sync, at);
                    self.state.installing = false;
                    tracing::info!(at = %at.zxid, "the snapshot is in force");
                }
                Outcome::Checkpointed(checkpoint) => {
                    self.replica.nodes_mut().checkpointed(&checkpoint);
                    self.log.put(Job::Trim(checkpoint.at.zxid), false);
                    self.state.checkpointing = false;
                }
                Outcome::Taken { from, sync, chunks } => self.transfers.taken(from, sync, chunks),
                Outcome::Received { from, sync, at, received } => {
                    if self.transfers.received(from, sync) {
                        self.state.installing = true;
                        self.log.put(Job::Install { sync, at, received }, false);
                    } else {
                        retire(received);
                    }
                }
                Outcome::Spoilt { from, sync, why } => self.transfers.spoilt(from, sync, &why),
            }
        }
        self.state.taken = taken;
    }

    /// Everything up to `token` is on the disk: what was promised may be said.
    fn written(&mut self, token: WriteToken) {
        self.state.durable = token;
        while let Some((needed, _)) = self.state.held.front()
            && *needed <= token
        {
            let (_, messages) = self.state.held.pop_front().expect("it is in front");
            for (to, message) in messages {
                self.links.send(to, &message);
            }
        }
        self.replica.step(Input::Written(token));
    }

    /// Does what has to be done, in the order of the fields.
    fn perform(&mut self, ready: Ready, idle: bool) {
        let Ready { send, clients, write, token, send_after_write, snapshots, more, notices } =
            ready;
        // A server that is not what the others are must not say another word.
        notices.iter().for_each(stop_if_lost);
        for (to, message) in send {
            self.links.send(to, &message);
        }
        self.links.flush();
        for (conn, what) in &clients {
            self.clients.deliver(*conn, what);
        }
        self.clients.flush();
        self.replica.reuse(clients);
        if !write.is_empty() {
            self.log.put(Job::Write(token, write), idle);
        }
        if !send_after_write.is_empty() {
            self.send_when_durable(token, send_after_write);
        }
        self.await_writes();
        if more {
            self.inbox.bell().notify_one();
        }
        for order in snapshots {
            self.transfer(&order);
        }
        for notice in notices {
            self.tell(&notice);
        }
    }

    /// Has the log's thread wake the loop only if something hangs on its word.
    fn await_writes(&mut self) {
        let awaited = !self.state.held.is_empty() || self.replica.awaits_disk();
        if self.state.patient == awaited {
            self.state.patient = !awaited;
            self.outcomes.await_writes(awaited);
        }
    }

    fn send_when_durable(&mut self, token: WriteToken, messages: Vec<(ServerId, PeerMessage)>) {
        if token <= self.state.durable {
            for (to, message) in messages {
                self.links.send(to, &message);
            }
            self.links.flush();
        } else {
            self.state.held.push_back((token, messages));
        }
    }

    fn transfer(&mut self, order: &SnapshotOrder) {
        let begun = match *order {
            SnapshotOrder::Send { to, sync, at } => {
                let view = self.replica.nodes_mut().snapshot();
                assert_eq!(view.at(), at, "a snapshot is of the moment it is ordered");
                self.transfers.send(to, sync, view)
            }
            SnapshotOrder::Receive { from, sync, at } => self.transfers.receive(from, sync, at),
            SnapshotOrder::Cancel { with, sync } => {
                self.transfers.cancel(with, sync);
                Ok(())
            }
        };
        if let (Err(error), SnapshotOrder::Send { to: with, sync, .. })
        | (Err(error), SnapshotOrder::Receive { from: with, sync, .. }) = (begun, order)
        {
            tracing::error!(%error, "cannot start a thread for a snapshot");
            self.inbox.push(Input::SnapshotFailed { with: *with, sync: *sync });
        }
    }

    /// Says what has changed to whoever reads the log.
    fn tell(&mut self, notice: &Notice) {
        let notice = match notice {
            Notice::Zab(notice) => notice,
            Notice::Expired { sessions } => {
                self.metrics.sessions_expired.inc_by(*sessions as u64);
                return;
            }
            Notice::OverQuota(excess) => return self.tell_excess(excess),
            Notice::Authentication(authentication) => {
                return self.clients.audit.record(Record::authentication(authentication));
            }
            Notice::AclChange(change) => {
                return self.clients.audit.record(Record::acl_change(change));
            }
            // The server has stopped.
            Notice::Diverged { .. } | Notice::NotUnderstood { .. } => return,
        };
        match notice {
            zab::Notice::Looking { why } => {
                self.metrics.elections.inc();
                tracing::info!("looking for a leader: {why}");
            }
            zab::Notice::Following { leader, epoch } => {
                tracing::info!(%epoch, "following server {leader} in epoch {epoch}");
            }
            zab::Notice::Leading { epoch } => tracing::info!(%epoch, "leading in epoch {epoch}"),
            zab::Notice::HandedOver => self.stop.handed_over(),
            zab::Notice::ReadConfirmed { .. } => {}
        }
    }

    /// Says that a quota is exceeded, but not with every write that does it.
    fn tell_excess(&mut self, excess: &Excess) {
        self.metrics.quotas_exceeded.inc();
        let now = self.clock.micros();
        if self.state.over_quota_us.is_some_and(|last| now - last < QUOTA_LOG_US) {
            return;
        }
        self.state.over_quota_us = Some(now);
        let Excess { path, what, wanted, limit, hard } = excess;
        let what = match what {
            Measure::Nodes => "nodes",
            Measure::Bytes => "bytes",
        };
        let refused = if *hard { "refused" } else { "let through" };
        tracing::warn!(%path, wanted, limit, "a write beyond a quota of {what} is {refused}");
    }

    /// Begins a checkpoint if one is due, and looks at the room on the disk every now and then.
    fn look_after_storage(&mut self) {
        let now = self.clock.micros();
        let since = now - self.state.last_checkpoint_us;
        let dirty = self.replica.nodes().dirty_bytes() as u64;
        let due = dirty.max(self.state.logged_bytes) >= self.storage.checkpoint_bytes
            || (dirty > 0 && u128::from(since) >= self.storage.checkpoint_every.as_micros());
        if due && !self.state.checkpointing {
            self.state.last_checkpoint_us = now;
            self.state.logged_bytes = 0;
            if let Some(frozen) = self.replica.nodes_mut().freeze() {
                let frozen = Arc::new(frozen);
                self.state.checkpointing = true;
                let (outcomes, metrics) = (self.outcomes.clone(), self.metrics.clone());
                if let Err(error) = disk::checkpoint(frozen.clone(), self.clock, outcomes, metrics)
                {
                    tracing::error!(%error, "cannot start a thread for a checkpoint");
                    self.replica.nodes_mut().not_written(&frozen);
                    self.state.checkpointing = false;
                }
            }
        }
        self.look_for_checkpoints();
        if now - self.state.last_look_us >= LOOK_AROUND_US || self.state.last_look_us == 0 {
            self.state.last_look_us = now;
            self.look_for_room();
            self.set_gauges();
        }
        if now >= self.state.next_scrub_us {
            self.state.next_scrub_us = now + SCRUB_EVERY_US;
            if let Err(error) = disk::scrub(self.replica.nodes().scrub()) {
                tracing::error!(%error, "cannot start a thread to check the tree");
            }
        }
    }

    /// What a disk does not take would fill the memory: writes wait if that is so on too many servers.
    fn look_for_checkpoints(&mut self) {
        let most = UNWRITTEN_BYTES + 2 * self.storage.checkpoint_bytes;
        let most = if self.state.strain.is_behind { most - most / 8 } else { most };
        let is_behind = self.replica.nodes().unwritten_bytes() as u64 > most;
        if is_behind != self.state.strain.is_behind {
            self.strain(Strain { is_behind, ..self.state.strain });
            if is_behind {
                tracing::warn!(
                    most,
                    "checkpoints do not keep up with writes, which wait while no majority does; use a \
                     quicker disk for data_dir"
                );
            } else {
                tracing::info!("checkpoints keep up again");
            }
        }
    }

    fn strain(&mut self, strain: Strain) {
        self.state.strain = strain;
        self.inbox.push(Input::Strain(strain));
    }

    /// Writes are refused before the disk is full, and taken again once there is clearly room.
    fn look_for_room(&mut self) {
        let space = self.home.space().unwrap_or_else(|error| fatal(&error));
        self.state.free_bytes = space.free;
        let (used, reserved) = self.replica.nodes().map_usage();
        let full = used > reserved / 100 * MAP_ALERT_PERCENT;
        let reserve = self.storage.reserve_bytes;
        let needed = if self.state.strain.low_space { reserve + reserve / 4 } else { reserve };
        let low = full || space.free < needed;
        if low == self.state.strain.low_space {
            return;
        }
        self.strain(Strain { low_space: low, ..self.state.strain });
        match (low, full) {
            (true, true) => tracing::error!(
                used,
                reserved,
                "the tree fills its map: writes are refused; delete nodes or raise storage.map_gb"
            ),
            (true, false) => tracing::error!(
                free = space.free,
                reserve,
                "disk space is short: writes are refused while less than storage.reserve_mb is free; \
                 make room on the disks of data_dir and log_dir"
            ),
            (false, _) => tracing::info!(free = space.free, "there is room again"),
        }
    }

    fn set_gauges(&self) {
        let level = &self.metrics.level;
        let status = self.replica.status();
        level.set_status(&status);
        let set = |gauge: &prometheus_client::metrics::gauge::Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&level.dirty_bytes, self.replica.nodes().unwritten_bytes() as u64);
        set(&level.tree_used_bytes, self.replica.nodes().map_usage().0);
        set(&level.disk_free_bytes, self.state.free_bytes);
        set(&level.client_outbox_bytes, self.clients.waiting() as u64);
        set(&level.peer_outbox_bytes, self.links.waiting_in_all() as u64);
        set(&level.linked_peers, self.links.up() as u64);
        set(&level.checkpoints_behind, self.state.strain.is_behind.into());
        set(&level.low_space, self.state.strain.low_space.into());
        let today = u64::try_from(self.clock.time_of_day_ms()).unwrap_or_default();
        for (of, keys) in [("clients", &self.keys.clients), ("members", &self.keys.members)] {
            if let Some(keys) = keys {
                self.metrics.certificate_ends(
                    of,
                    keys.now().not_after(),
                    Duration::from_millis(today),
                );
            }
        }
        let links = self.links.counters();
        for (counter, count) in [
            (&self.metrics.links_cut, &links.cut),
            (&self.metrics.links_refused, &links.refused),
            (&self.metrics.links_malformed, &links.malformed),
        ] {
            counter.inc_by(count.get() - counter.get());
        }
    }

    fn report(&self) -> Report {
        let (used, reserved) = self.replica.nodes().map_usage();
        Report::new(
            &self.replica.status(),
            super::admin::Local {
                connections: self.clients.len(),
                linked_peers: self.links.up(),
                uptime_ms: self.clock.millis(),
                disk_free_bytes: self.state.free_bytes,
                tree_used_bytes: used,
                tree_reserved_bytes: reserved,
                low_space: self.state.strain.low_space,
            },
        )
    }
}

fn stop_if_lost(notice: &Notice) {
    match notice {
        Notice::Diverged { zxid, ours, leaders } => tracing::error!(
            "this server's state differs from the leader's after transaction {zxid} (digest \
             {ours:016x}, the leader has {leaders:016x}): a fault of the hardware or the software. \
             The server stops before it answers anybody. Keep a copy of its data directory for an \
             inquiry, empty the directory, and start it again with --lost-data: it fetches the state \
             from the leader"
        ),
        Notice::NotUnderstood { zxid, why } => tracing::error!(
            "transaction {zxid} cannot be carried out: {why}. The server stops. Upgrade it to the \
             version of the others and start it again: it goes on from there"
        ),
        Notice::Zab(_)
        | Notice::Expired { .. }
        | Notice::OverQuota(_)
        | Notice::Authentication(_)
        | Notice::AclChange(_) => return,
    }
    std::process::exit(EXIT_DIVERGED.into());
}
