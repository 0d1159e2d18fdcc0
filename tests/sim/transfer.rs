//! Checkpoints, and snapshots on their way from one server to another.

use std::rc::Rc;

use conclave::zab::{Position, SnapshotOrder};

use crate::knobs::{MS, SECOND};
use crate::machine::{Input, Load, Machine};
use crate::world::{Chunk, Event, Happening, Packet, World, id, index};

/// A snapshot that a server sends.
#[derive(Debug)]
pub(crate) struct Sending<S> {
    to: usize,
    sync: u64,
    state: Rc<S>,
    next: u32,
    count: u32,
}

/// A snapshot that a server receives.
#[derive(Debug)]
pub(crate) struct Receiving<S> {
    from: usize,
    sync: u64,
    at: Position,
    next: u32,
    state: Option<Rc<S>>,
    loaded: bool,
}

impl<M: Machine, L: Load<M>> World<'_, M, L> {
    /// A machine wants a snapshot sent, received or dropped.
    pub(crate) fn order_snapshot(&mut self, server: usize, order: SnapshotOrder) {
        self.trace.line(format_args!("s{} {order:?}", server + 1));
        match order {
            SnapshotOrder::Send { to, sync, at } => self.begin_sending(server, index(to), sync, at),
            SnapshotOrder::Receive { from, sync, at } => {
                self.servers[server].receiving = Some(Receiving {
                    from: index(from),
                    sync,
                    at,
                    next: 0,
                    state: None,
                    loaded: false,
                });
                self.look_again(server, sync, 0);
            }
            SnapshotOrder::Cancel { with, sync } => {
                let it = &mut self.servers[server];
                let with = index(with);
                it.sending.retain(|sending| sending.to != with || sending.sync != sync);
                it.receiving.take_if(|it| it.from == with && it.sync == sync);
            }
        }
    }

    fn begin_sending(&mut self, server: usize, to: usize, sync: u64, at: Position) {
        let machine = self.servers[server].machine.as_ref().expect("it has just ordered");
        assert_eq!(machine.applied(), at, "the cut of a snapshot is what is applied");
        let state = Rc::new(machine.state());
        let count = u32::try_from(self.random.between(1, 6)).expect("few");
        let it = &mut self.servers[server];
        it.sending.retain(|sending| sending.to != to);
        it.sending.push(Sending { to, sync, state, next: 0, count });
        let incarnation = it.incarnation;
        self.queue.at(self.now + 1, Event::SendChunk { server, incarnation, to, sync });
    }

    /// The time has come for the next piece.
    pub(crate) fn send_chunk(&mut self, server: usize, incarnation: u32, to: usize, sync: u64) {
        if !self.is_alive(server, incarnation) {
            return;
        }
        if self.servers[server].paused_until > 0 {
            let at = self.servers[server].paused_until + 1;
            self.queue.at(at, Event::SendChunk { server, incarnation, to, sync });
            return;
        }
        let sendings = &mut self.servers[server].sending;
        let Some(at) = sendings.iter().position(|it| it.to == to && it.sync == sync) else {
            return;
        };
        if !self.net.link(server, to).up {
            sendings.remove(at);
            self.transfer_failed(server, to, sync);
            return;
        }
        let sending = &mut sendings[at];
        let index = sending.next;
        sending.next += 1;
        let last = (sending.next == sending.count).then(|| sending.state.clone());
        if last.is_some() {
            sendings.remove(at);
        } else {
            let at = self.now + 1 + self.random.around(20 * MS);
            self.queue.at(at, Event::SendChunk { server, incarnation, to, sync });
        }
        self.send(server, to, Packet::Chunk(Chunk { sync, index, last }));
    }

    /// A piece has come.
    pub(crate) fn receive_chunk(&mut self, server: usize, from: usize, chunk: Chunk<M::State>) {
        let Some(receiving) = &mut self.servers[server].receiving else { return };
        if receiving.from != from || receiving.sync != chunk.sync || chunk.index < receiving.next {
            return;
        }
        if chunk.index > receiving.next {
            self.servers[server].receiving = None;
            self.transfer_failed(server, from, chunk.sync);
            return;
        }
        receiving.next += 1;
        receiving.state = chunk.last;
        if receiving.state.is_some() {
            let incarnation = self.servers[server].incarnation;
            let at = self.now + self.random.around(10 * self.knobs.disk.sync);
            self.queue.at(at, Event::Loaded { server, incarnation, sync: chunk.sync });
        }
    }

    /// A snapshot is complete and loaded beside the state.
    pub(crate) fn loaded(&mut self, server: usize, sync: u64) {
        if let Some(receiving) = &mut self.servers[server].receiving
            && receiving.sync == sync
        {
            receiving.loaded = true;
            self.install_if_ready(server);
        }
    }

    /// Installs a loaded snapshot once no write is under way any more: disk and machine change in
    /// one step, as the real server's loop does it.
    pub(crate) fn install_if_ready(&mut self, server: usize) {
        let idle = self.disks[server].is_idle();
        let ready = self.servers[server].receiving.take_if(|it| it.loaded && idle);
        let Some(Receiving { sync, at, state: Some(state), .. }) = ready else { return };
        self.trace.line(format_args!("s{} installs the snapshot at {}", server + 1, at.zxid));
        self.checks.installed(server, at);
        self.disks[server].install(at, M::State::clone(&state));
        let machine = self.servers[server].machine.as_mut().expect("only a machine receives");
        machine.install(sync, at, M::State::clone(&state));
        assert_eq!(machine.applied(), at, "an installed snapshot is what is applied");
        self.checks.digest(server, machine.digest());
    }

    /// Whether a transfer has moved since it was last looked at.
    pub(crate) fn check_stalled(
        &mut self,
        server: usize,
        incarnation: u32,
        sync: u64,
        received: u32,
    ) {
        if !self.is_alive(server, incarnation) {
            return;
        }
        let Some(receiving) = &self.servers[server].receiving else { return };
        let (from, next) = (receiving.from, receiving.next);
        if receiving.sync != sync || receiving.state.is_some() {
            return;
        }
        if next > received || self.servers[server].paused_until > 0 {
            self.look_again(server, sync, next);
        } else {
            self.servers[server].receiving = None;
            self.transfer_failed(server, from, sync);
        }
    }

    fn look_again(&mut self, server: usize, sync: u64, received: u32) {
        let incarnation = self.servers[server].incarnation;
        let at = self.now + 10 * SECOND;
        self.queue.at(at, Event::Stalled { server, incarnation, sync, received });
    }

    fn transfer_failed(&mut self, server: usize, with: usize, sync: u64) {
        self.trace.line(format_args!("s{} transfer {sync} with s{} fails", server + 1, with + 1));
        self.give(server, Happening::Input(Input::SnapshotFailed { with: id(with), sync }));
    }

    /// Opens a view for a checkpoint, which takes some time to become durable.
    pub(crate) fn begin_checkpoint(&mut self, server: usize, incarnation: u32) {
        if !self.is_alive(server, incarnation) {
            return;
        }
        let again = self.now + self.random.around(self.knobs.disk.checkpoint).max(SECOND);
        self.queue.at(again, Event::BeginCheckpoint { server, incarnation });
        let it = &self.servers[server];
        let Some(machine) = it.machine.as_ref().filter(|_| it.paused_until == 0) else { return };
        let at = machine.applied();
        if at.zxid > self.disks[server].checkpoint().zxid {
            let state = machine.state();
            let end = self.now + self.random.around(20 * self.knobs.disk.sync).min(SECOND / 2);
            self.queue.at(end, Event::Checkpoint { server, incarnation, at, state });
        }
    }

    /// A checkpoint is durable: the log below it may go, all of it or a part.
    pub(crate) fn end_checkpoint(
        &mut self,
        server: usize,
        incarnation: u32,
        at: Position,
        state: M::State,
    ) {
        let disk = &mut self.disks[server];
        if !self.servers[server].incarnation.eq(&incarnation)
            || self.servers[server].machine.is_none()
            || at.zxid <= disk.checkpoint().zxid
        {
            return;
        }
        let kept = match self.random.below(3) {
            0 => 0,
            1 => self.random.below(100),
            _ => u64::MAX,
        };
        disk.set_checkpoint(at, state, kept);
        self.trace.line(format_args!("s{} has a checkpoint at {}", server + 1, at.zxid));
    }
}
