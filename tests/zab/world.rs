//! A small ensemble whose links keep order and whose every step the script decides.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use bytes::Bytes;
use conclave::zab::{
    Config, Durable, Entry, FromFollower, FromLeader, Input, Message, Notice, Peer, Position,
    Ready, RoleView, SnapshotOrder, Standing, SyncStart, Write, WriteToken,
};
use conclave_proto::{Epoch, ServerId, Zxid};

/// The servers, their disks, and the links between them.
#[derive(Default)]
pub(crate) struct World {
    voters: Vec<ServerId>,
    observers: Vec<ServerId>,
    settings: BTreeMap<String, u64>,
    servers: BTreeMap<ServerId, Server>,
    links: BTreeMap<(ServerId, ServerId), VecDeque<Message>>,
    /// Links on which everything is lost, and nobody notices.
    cut: BTreeSet<(ServerId, ServerId)>,
    /// Links that hold their messages back.
    held: BTreeSet<(ServerId, ServerId)>,
    traced: bool,
    lives: u64,
    out: Vec<String>,
}

/// One server: its disk, and its process if it runs.
#[derive(Default)]
struct Server {
    disk: Durable,
    peer: Option<Peer>,
    delivered: Vec<Entry>,
    state: Position,
    slow: bool,
    /// Writes not on the disk yet, and what waits for them.
    pending: VecDeque<Pending>,
    /// The next snapshot comes damaged.
    spoilt: bool,
    /// The snapshot that it is to receive: from whom, number, state.
    receiving: Option<(ServerId, u64, Position)>,
    /// The snapshot takes its time.
    stalled: bool,
}

/// A batch of writes, and what is to be sent once they are durable.
type Pending = (WriteToken, Vec<Write>, Vec<(ServerId, Message)>);

fn id(word: &str) -> ServerId {
    ServerId::new(word.parse().unwrap()).unwrap()
}

fn ids(words: &[&str]) -> Vec<ServerId> {
    words.iter().map(|word| id(word)).collect()
}

impl World {
    /// Carries out one command, and says what came of it.
    pub(crate) fn run(&mut self, command: &str) -> Vec<String> {
        let words: Vec<&str> = command.split_whitespace().collect();
        let (verb, rest) = words.split_first().unwrap();
        match *verb {
            "voters" => self.voters = ids(rest),
            "observers" => self.observers = ids(rest),
            "set" => drop(self.settings.insert(rest[0].into(), rest[1].parse().unwrap())),
            "disk" => self.set_disk(rest),
            "damage" => self.lose_disk(id(rest[0]), true),
            "blank" => self.lose_disk(id(rest[0]), false),
            "start" => ids(rest).into_iter().for_each(|id| self.start(id)),
            "kill" => ids(rest).into_iter().for_each(|id| self.kill(id)),
            "tick" => self.tick(rest),
            "propose" => self.propose(id(rest[0]), &rest[1..]),
            "load" => self.load(id(rest[0]), rest[1].parse().unwrap(), rest[2].parse().unwrap()),
            "read" => self.read(id(rest[0])),
            "idle" => self.set_idle(id(rest[0]), id(rest[2]), true),
            "busy" => self.set_idle(id(rest[0]), id(rest[2]), false),
            "hand-over" => self.step(id(rest[0]), Input::HandOver),
            "break" => self.break_link(id(rest[0]), id(rest[1])),
            "cut" => self.cut(rest, true),
            "heal" => self.cut(rest, false),
            "hold" => drop(self.held.insert((id(rest[0]), id(rest[2])))),
            "drop" => self.links.entry((id(rest[0]), id(rest[2]))).or_default().clear(),
            "release" => drop(self.held.remove(&(id(rest[0]), id(rest[2])))),
            "slow" => self.servers.get_mut(&id(rest[0])).unwrap().slow = true,
            "write" => self.servers.get_mut(&id(rest[0])).unwrap().slow = false,
            "stall" => self.servers.get_mut(&id(rest[0])).unwrap().stalled = true,
            "install" => self.servers.get_mut(&id(rest[0])).unwrap().stalled = false,
            "spoil" => self.servers.get_mut(&id(rest[0])).unwrap().spoilt = true,
            "checkpoint" => self.checkpoint(id(rest[0])),
            "trace" => self.traced = rest[0] == "on",
            "show" => self.show(),
            "logs" => self.logs(),
            _ => panic!("no such command: {command}"),
        }
        self.settle();
        std::mem::take(&mut self.out)
    }

    /// What each running server does.
    pub(crate) fn roles(&self) -> Vec<(ServerId, RoleView)> {
        let role = |(id, server): (&ServerId, &Server)| Some((*id, server.peer.as_ref()?.role()));
        self.servers.iter().filter_map(role).collect()
    }

    /// The last entry that any server has delivered.
    pub(crate) fn committed(&self) -> Zxid {
        self.servers.values().map(|server| server.state.zxid).max().unwrap_or_default()
    }

    fn setting(&self, name: &str, usual: u64) -> u64 {
        self.settings.get(name).copied().unwrap_or(usual)
    }

    /// `disk 1 3 2 1.1=a 1.2=b 2.1=c`: server 1 finds accepted epoch 3, current epoch 2, this log.
    fn set_disk(&mut self, rest: &[&str]) {
        let epoch = |word: &str| Epoch::new(word.parse().unwrap()).unwrap();
        let mut disk = Durable {
            accepted_epoch: epoch(rest[1]),
            current_epoch: epoch(rest[2]),
            ..Durable::default()
        };
        for word in &rest[3..] {
            let (zxid, body) = word.split_once('=').unwrap();
            let (of, counter) = zxid.split_once('.').unwrap();
            let zxid = Zxid::new(epoch(of), counter.parse().unwrap());
            let last = disk.entries.last().map_or(disk.base, Entry::position);
            disk.entries.push(Entry::after(last, zxid, Bytes::from(body.to_owned())));
        }
        self.servers.entry(id(rest[0])).or_default().disk = disk;
    }

    /// All that the server ever acknowledged and promised is lost, whether storage knows it or not.
    fn lose_disk(&mut self, id: ServerId, needs_repair: bool) {
        let server = self.servers.get_mut(&id).unwrap();
        server.disk = Durable { needs_repair, ..Durable::default() };
        server.delivered.clear();
    }

    fn start(&mut self, id: ServerId) {
        self.lives += 1;
        let config = Config {
            heartbeat_ticks: 2,
            silence_ticks: 10,
            counter_limit: self.setting("counter-limit", 1 << 20),
            window_entries: usize::try_from(self.setting("window", 1 << 20)).unwrap(),
            ..Config::new(id, self.voters.clone(), self.observers.clone(), self.lives)
        };
        let server = self.servers.entry(id).or_default();
        server.delivered.retain(|entry| entry.zxid <= server.disk.applied.zxid);
        server.state = server.disk.applied;
        server.peer = Some(Peer::new(config, server.disk.clone()));
        self.perform(id);
        for other in self.running().into_iter().filter(|other| *other != id) {
            self.step(id, Input::LinkUp(other));
            self.step(other, Input::LinkUp(id));
        }
    }

    /// The process dies: what was not synced is lost, and everyone notices.
    fn kill(&mut self, id: ServerId) {
        let server = self.servers.get_mut(&id).unwrap();
        server.peer = None;
        server.pending.clear();
        server.receiving = None;
        self.links.retain(|(from, to), _| *from != id && *to != id);
        for other in self.running() {
            self.step(other, Input::LinkDown(id));
        }
    }

    fn running(&self) -> Vec<ServerId> {
        self.servers.iter().filter(|(_, s)| s.peer.is_some()).map(|(id, _)| *id).collect()
    }

    /// `tick 3`: three ticks for all; `tick 3 of 1 2`: for these.
    fn tick(&mut self, rest: &[&str]) {
        let who = if rest.len() > 2 { ids(&rest[2..]) } else { self.running() };
        for _ in 0..rest[0].parse::<u32>().unwrap() {
            for id in &who {
                self.step(*id, Input::Tick);
            }
            self.settle();
        }
    }

    fn propose(&mut self, id: ServerId, bodies: &[&str]) {
        let peer = self.servers.get_mut(&id).unwrap().peer.as_mut().unwrap();
        for body in bodies {
            let result = peer.propose(Bytes::from((*body).to_owned()));
            self.out.push(match result {
                Ok(zxid) => format!("{id}: proposed {body} as {zxid}"),
                Err(error) => format!("{id}: refused {body}: {error}"),
            });
        }
        self.perform(id);
    }

    /// `load 1 40 1000`: 40 proposals of a thousand bytes.
    fn load(&mut self, id: ServerId, count: usize, bytes: usize) {
        for _ in 0..count {
            let peer = self.servers.get_mut(&id).unwrap().peer.as_mut().unwrap();
            peer.propose(Bytes::from(vec![b'x'; bytes])).unwrap();
            self.perform(id);
            self.settle();
        }
    }

    fn set_idle(&mut self, id: ServerId, server: ServerId, idle: bool) {
        let peer = self.servers.get_mut(&id).unwrap().peer.as_mut().unwrap();
        peer.set_idle(server, idle);
        self.perform(id);
    }

    fn read(&mut self, id: ServerId) {
        let peer = self.servers.get_mut(&id).unwrap().peer.as_mut().unwrap();
        let round = peer.confirm_leadership();
        self.out.push(format!("{id}: read waits for round {round:?}"));
        self.perform(id);
    }

    /// A link breaks in both directions, what is on it is lost, and it is made anew at once.
    fn break_link(&mut self, a: ServerId, b: ServerId) {
        for (from, to) in [(a, b), (b, a)] {
            self.links.remove(&(from, to));
            self.step(from, Input::LinkDown(to));
        }
        self.step(a, Input::LinkUp(b));
        self.step(b, Input::LinkUp(a));
    }

    /// `cut 1 - 2`: both directions; `cut 1 > 2`: one.
    fn cut(&mut self, rest: &[&str], cut: bool) {
        let (a, b) = (id(rest[0]), id(rest[2]));
        let both = [(a, b), (b, a)];
        for link in &both[..if rest[1] == "-" { 2 } else { 1 }] {
            if cut {
                self.cut.insert(*link);
            } else {
                self.cut.remove(link);
            }
        }
    }

    /// The state is made durable; the log keeps what the window says.
    fn checkpoint(&mut self, id: ServerId) {
        let window = usize::try_from(self.setting("window", 1 << 20)).unwrap();
        let server = self.servers.get_mut(&id).unwrap();
        server.disk.applied = server.state;
        let entries = &mut server.disk.entries;
        let applied = entries.iter().filter(|entry| entry.zxid <= server.state.zxid).count();
        for entry in entries.drain(..applied.saturating_sub(window)) {
            server.disk.base = entry.position();
        }
    }

    fn step(&mut self, id: ServerId, input: Input) {
        let server = self.servers.get_mut(&id).unwrap();
        if let Some(peer) = &mut server.peer {
            let for_nothing = matches!(input, Input::Written(_)) && !peer.awaits_disk();
            let delivered = server.delivered.len();
            peer.step(input);
            self.perform(id);
            let delivers = self.servers[&id].delivered.len() > delivered;
            assert!(!for_nothing || !delivers, "{id}: the disk was awaited after all");
        }
    }

    /// Does what a server wants done.
    fn perform(&mut self, id: ServerId) {
        let server = self.servers.get_mut(&id).unwrap();
        let Some(peer) = &mut server.peer else { return };
        let Ready { send, write, token, send_after_write, committed, snapshots, more, notices } =
            peer.ready();
        assert!(!more, "these scripts are short");
        server.pending.push_back((token, write, send_after_write));
        for entry in committed {
            server.state = entry.position();
            server.delivered.push(entry);
        }
        self.out.extend(notices.iter().map(|notice| format!("{id}: {}", told(notice))));
        for (to, message) in send {
            self.links.entry((id, to)).or_default().push_back(message);
        }
        for order in snapshots {
            self.transfer(id, &order);
        }
    }

    /// Snapshots travel outside the links: the receiver takes the sender's state when it is asked
    /// to, if that is still what was announced.
    fn transfer(&mut self, id: ServerId, order: &SnapshotOrder) {
        let server = self.servers.get_mut(&id).unwrap();
        match *order {
            SnapshotOrder::Send { to, at, .. } => {
                assert_eq!(at, server.state, "a snapshot is cut at what is delivered");
                self.out.push(format!("{id}: sends a snapshot of {} to {to}", at.zxid));
            }
            SnapshotOrder::Receive { from, sync, at } => {
                server.receiving = Some((from, sync, at));
                self.out.push(format!("{id}: receives a snapshot of {} from {from}", at.zxid));
            }
            SnapshotOrder::Cancel { with, .. } => {
                server.receiving = None;
                self.out.push(format!("{id}: drops a snapshot to or from {with}"));
            }
        }
    }

    /// Lets everything happen that can happen without a tick.
    fn settle(&mut self) {
        loop {
            let running = self.running();
            let wrote = running.iter().any(|id| self.write(*id));
            let installed = running.iter().any(|id| self.install(*id));
            if !wrote && !installed && !self.deliver() {
                return;
            }
        }
    }

    fn write(&mut self, id: ServerId) -> bool {
        let server = self.servers.get_mut(&id).unwrap();
        if server.slow {
            return false;
        }
        let Some((token, writes, send)) = server.pending.pop_front() else { return false };
        let any = !writes.is_empty();
        for write in writes {
            match write {
                Write::Append(entries) => server.disk.entries.extend(entries),
                Write::Truncate(to) => server.disk.entries.retain(|e| e.zxid <= to.zxid),
                Write::AcceptedEpoch(epoch) => server.disk.accepted_epoch = epoch,
                Write::CurrentEpoch(epoch) => {
                    server.disk.current_epoch = epoch;
                    server.disk.needs_repair = false;
                }
                Write::NeedsRepair => server.disk.needs_repair = true,
            }
        }
        for (to, message) in send {
            self.links.entry((id, to)).or_default().push_back(message);
        }
        if any {
            self.step(id, Input::Written(token));
        }
        true
    }

    fn install(&mut self, id: ServerId) -> bool {
        let server = self.servers.get_mut(&id).unwrap();
        if !server.pending.is_empty() || server.stalled {
            return false;
        }
        let Some((from, sync, at)) = server.receiving.take() else { return false };
        if std::mem::take(&mut server.spoilt) {
            self.step(id, Input::SnapshotFailed { with: from, sync });
            return true;
        }
        let sender = &self.servers[&from];
        let delivered: Vec<Entry> =
            sender.delivered.iter().filter(|entry| entry.zxid <= at.zxid).cloned().collect();
        let server = self.servers.get_mut(&id).unwrap();
        server.delivered = delivered;
        server.state = at;
        server.disk.applied = at;
        server.disk.base = at;
        server.disk.entries.clear();
        self.step(id, Input::SnapshotInstalled { sync, at });
        true
    }

    /// Delivers the first message of each link that has one.
    fn deliver(&mut self) -> bool {
        let mut any = false;
        let links: Vec<(ServerId, ServerId)> = self.links.keys().copied().collect();
        for (from, to) in links {
            if self.held.contains(&(from, to)) {
                continue;
            }
            let Some(queue) = self.links.get_mut(&(from, to)) else { continue };
            let Some(message) = queue.pop_front() else { continue };
            any = true;
            let running = self.servers.get(&to).is_some_and(|server| server.peer.is_some());
            if self.cut.contains(&(from, to)) || !running {
                continue;
            }
            if self.traced {
                self.out.push(format!("{from} -> {to} {}", said(&message)));
            }
            self.step(to, Input::Message { from, message });
        }
        any
    }

    fn show(&mut self) {
        for (id, server) in &self.servers {
            let Some(peer) = &server.peer else {
                self.out.push(format!("{id}: down"));
                continue;
            };
            let role = match peer.role() {
                RoleView::Looking => "looking".to_owned(),
                RoleView::Following { leader, epoch } => format!("follows {leader} in {epoch}"),
                RoleView::Observing { leader, epoch } => format!("observes {leader} in {epoch}"),
                RoleView::Leading { epoch } => format!("leads {epoch}"),
            };
            let (last, committed) = (peer.last().zxid, peer.committed());
            let mut line = format!("{id}: {role}, last {last}, committed {committed}");
            for follower in peer.followers() {
                let sync = if follower.in_sync { "" } else { " not in sync" };
                write!(line, ", [{} lag {}{sync}]", follower.id, follower.lag).unwrap();
            }
            self.out.push(line);
        }
    }

    /// What each server's disk holds, and what it has delivered of that.
    fn logs(&mut self) {
        for (id, server) in &self.servers {
            let (accepted, current) = (server.disk.accepted_epoch, server.disk.current_epoch);
            let log = server.disk.entries.iter().map(name).collect::<Vec<_>>().join(" ");
            let state = server.delivered.iter().map(name).collect::<Vec<_>>().join(" ");
            self.out.push(format!(
                "{id}: accepted {accepted}, current {current}, base {}, log [{log}], state [{state}]",
                server.disk.base.zxid
            ));
        }
    }
}

fn name(entry: &Entry) -> String {
    format!("{}={}", entry.zxid, String::from_utf8_lossy(&entry.body))
}

fn told(notice: &Notice) -> String {
    match notice {
        Notice::Looking { why } => format!("looks for a leader: {why}"),
        Notice::Following { leader, epoch } => format!("follows {leader} in epoch {epoch}"),
        Notice::Leading { epoch } => format!("leads epoch {epoch}"),
        Notice::HandedOver => "has handed over".to_owned(),
        Notice::ReadConfirmed { round, commit } => {
            format!("reads up to round {round} are confirmed at {commit}")
        }
    }
}

fn said(message: &Message) -> String {
    match message {
        Message::Ballot(ballot) => {
            let hears: Vec<String> = ballot.hears.iter().map(ToString::to_string).collect();
            let standing = match ballot.standing {
                Standing::Looking { choice, electable } => {
                    let choice = choice.map_or("nobody".to_owned(), |choice| choice.to_string());
                    let electable = if electable { "electable, " } else { "" };
                    format!("{electable}chooses {choice}")
                }
                Standing::Following { leader } => format!("follows {leader}"),
                Standing::Leading { epoch, established } => {
                    format!(
                        "leads {epoch}{}",
                        if established { "" } else { ", not yet established" }
                    )
                }
            };
            let (current, last) = (ballot.current, ballot.last);
            format!("BALLOT {standing}; has ({current}, {last}), hears [{}]", hears.join(" "))
        }
        Message::Join { accepted, damaged, .. } => {
            format!("JOIN accepted {accepted}{}", if *damaged { ", damaged" } else { "" })
        }
        Message::FromLeader { epoch, body, .. } => format!("{} (epoch {epoch})", order(body)),
        Message::FromFollower { epoch, body, .. } => format!("{} (epoch {epoch})", answer(body)),
    }
}

fn order(body: &FromLeader) -> String {
    match body {
        FromLeader::NewEpoch { .. } => "NEWEPOCH".to_owned(),
        FromLeader::Fetch { after } => format!("FETCH after {}", after.zxid),
        FromLeader::Sync { start: SyncStart::After(after), upto } => {
            format!("SYNC after {} up to {}", after.zxid, upto.zxid)
        }
        FromLeader::Sync { start: SyncStart::Snapshot(at), upto } => {
            format!("SYNC with a snapshot of {} up to {}", at.zxid, upto.zxid)
        }
        FromLeader::UpToDate { commit } => format!("UPTODATE commit {commit}"),
        FromLeader::Propose { previous, entries, commit, delay_ack } => {
            let entries = entries.iter().map(name).collect::<Vec<_>>().join(" ");
            let ack = if *delay_ack { ", no hurry" } else { "" };
            format!("PROPOSE after {} [{entries}] commit {commit}{ack}", previous.zxid)
        }
        FromLeader::Commit { commit } => format!("COMMIT {commit}"),
        FromLeader::Heartbeat { round, commit } => format!("HEARTBEAT {round} commit {commit}"),
        FromLeader::Restart => "RESTART".to_owned(),
        FromLeader::HandOver { to } => format!("HANDOVER to {to}"),
    }
}

fn answer(body: &FromFollower) -> String {
    match body {
        FromFollower::AckEpoch { promised, current, last } => {
            let promised = if *promised { "" } else { "without a promise, " };
            format!("ACKEPOCH {promised}has ({current}, {})", last.zxid)
        }
        FromFollower::History { after, entries, last } => {
            let entries = entries.iter().map(name).collect::<Vec<_>>().join(" ");
            format!("HISTORY after {} [{entries}] to {}", after.zxid, last.zxid)
        }
        FromFollower::Diverged { have } => format!("DIVERGED has {}", have.zxid),
        FromFollower::Ack { durable, synced } => {
            format!("ACK {durable}{}", if *synced { ", in sync" } else { "" })
        }
        FromFollower::Gap { last } => format!("GAP after {}", last.zxid),
        FromFollower::HeartbeatAck { round, received, durable, .. } => {
            format!("HEARTBEATACK {round} received {received}, durable {durable}")
        }
    }
}
