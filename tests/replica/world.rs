//! A few servers in memory, wired to each other, and their clients.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::BytesMut;
use conclave::limits;
use conclave::peers::codec;
use conclave::replica::{
    Config, ConnId, Input, Notice, PeerMessage, Ready, Replica, Role, Status, ToClient,
};
use conclave::tree::{self, MemoryNodes, Nodes};
use conclave::zab::{self, Durable, SnapshotOrder, Write, WriteToken};
use conclave_proto::message::{Connect, PROTOCOL_VERSION};
use conclave_proto::request::ReadLevel;
use conclave_proto::{
    ClientMessage, Identity, Op, Response, Secret, ServerId, ServerMessage, SessionId, Xid, Zxid,
};

/// The time between two ticks, in ms.
pub(crate) const TICK_MS: u64 = 50;

/// The servers, the links between them, and the clients.
pub(crate) struct World {
    servers: BTreeMap<ServerId, Server>,
    links: BTreeMap<(ServerId, ServerId), VecDeque<Parcel>>,
    cut: BTreeSet<(ServerId, ServerId)>,
    held: BTreeSet<(ServerId, ServerId)>,
    pub(crate) clients: BTreeMap<String, Client>,
    conns: u64,
    starts: u64,
    pub(crate) now_ms: u64,
    /// Whether servers without a leader serve those who are content to read.
    read_only: bool,
    /// Whether a new session is known to its server alone until it writes.
    local_sessions: bool,
    /// Whether a turn answers one read, applies one transaction and leaves the others to the next.
    small_turns: bool,
    /// Whether an epoch has four transactions.
    short_epochs: bool,
    /// Whether a turn is given one committed transaction to apply.
    slow_delivery: bool,
    /// The answers of each turn.
    pub(crate) turns: Vec<Vec<Response>>,
    /// How much each turn gave the disk to write.
    pub(crate) writes: Vec<usize>,
    /// What clients were told, and what servers noted, since this was last taken.
    pub(crate) log: Vec<String>,
}

enum Parcel {
    Message(PeerMessage),
    /// The sender's state, and the number of the synchronisation.
    Snapshot(Box<MemoryNodes>, u64, zab::Position),
}

struct Server {
    disk: Durable,
    /// The state at `disk.applied`: in memory, the checkpoint is where the server started.
    checkpoint: MemoryNodes,
    running: Option<Replica<MemoryNodes>>,
    paused: bool,
    /// Whether what was written since then is kept from being reported as durable.
    slow_disk: bool,
    unsynced: VecDeque<(WriteToken, Vec<(ServerId, PeerMessage)>)>,
}

/// A client, over all its connections.
pub(crate) struct Client {
    pub(crate) at: ServerId,
    pub(crate) conn: Option<ConnId>,
    pub(crate) session: Option<(SessionId, Secret)>,
    pub(crate) xid: u64,
    pub(crate) last_zxid: Zxid,
    pub(crate) numbered: bool,
    /// Whether a server without a leader will do.
    pub(crate) accepts_read_only: bool,
    pub(crate) identities: Vec<Identity>,
    /// Whether it pings all the time.
    pub(crate) stays: bool,
    /// Whether it has been answered on its connection.
    greeted: bool,
    pub(crate) received: Vec<ServerMessage>,
}

pub(crate) fn server(number: u8) -> ServerId {
    ServerId::new(number).expect("a small number")
}

impl World {
    /// `count` servers with empty disks.
    pub(crate) fn new(count: u8) -> World {
        World::with(count, "")
    }

    /// The same, with an option: `read-only` to serve those who are content to read while there is
    /// no leader, `local-sessions`, `small-turns` to answer one read and apply one
    /// transaction in a turn, `short-epochs` to have four transactions in an epoch, or
    /// `slow-delivery` to have one committed transaction in a turn.
    pub(crate) fn with(count: u8, option: &str) -> World {
        let mut checkpoint = MemoryNodes::default();
        tree::found(&mut checkpoint);
        let mut world = World {
            servers: BTreeMap::new(),
            links: BTreeMap::new(),
            cut: BTreeSet::new(),
            held: BTreeSet::new(),
            clients: BTreeMap::new(),
            conns: 0,
            starts: 0,
            now_ms: 1_000_000,
            read_only: option == "read-only",
            local_sessions: option == "local-sessions",
            small_turns: option == "small-turns",
            short_epochs: option == "short-epochs",
            slow_delivery: option == "slow-delivery",
            turns: Vec::new(),
            writes: Vec::new(),
            log: Vec::new(),
        };
        for number in 1..=count {
            let fresh = Server {
                disk: Durable::default(),
                checkpoint: checkpoint.clone(),
                running: None,
                paused: false,
                slow_disk: false,
                unsynced: VecDeque::new(),
            };
            world.servers.insert(server(number), fresh);
        }
        for number in 1..=count {
            world.start(server(number));
        }
        world
    }

    pub(crate) fn ids(&self) -> Vec<ServerId> {
        self.servers.keys().copied().collect()
    }

    /// Start a server from what is on its disk.
    pub(crate) fn start(&mut self, id: ServerId) {
        self.starts += 1;
        let voters = self.ids();
        let mut zab = zab::Config::new(id, voters, Vec::new(), self.starts);
        if self.short_epochs {
            zab.counter_limit = 4;
        }
        if self.slow_delivery {
            zab.deliver_entries = 1;
        }
        let config = Config {
            zab,
            tick_ms: u32::try_from(TICK_MS).unwrap(),
            session_timeout_min_ms: 1_000,
            session_timeout_max_ms: 60_000,
            super_digest: None,
            throttle_ms: Some(200),
            read_only: self.read_only,
            local_sessions: self.local_sessions,
            turn_answers_bytes: if self.small_turns { 1 } else { limits::TURN_ANSWERS_BYTES },
            turn_nodes: if self.small_turns { 1 } else { limits::TURN_NODES },
            applied_before_others: limits::APPLIED_BEFORE_OTHERS,
            members_text: None,
        };
        let server = self.servers.get_mut(&id).unwrap();
        assert!(server.running.is_none());
        let durable = server.disk.clone();
        server.running = Some(Replica::new(config, durable, server.checkpoint.clone()));
        for other in self.ids() {
            if other != id && self.servers[&other].running.is_some() {
                self.connect_servers(id, other);
            }
        }
    }

    fn connect_servers(&mut self, a: ServerId, b: ServerId) {
        for (from, to) in [(a, b), (b, a)] {
            self.links.insert((from, to), VecDeque::new());
            if !self.cut.contains(&(a, b)) {
                self.step(from, Input::LinkUp(to));
            }
        }
    }

    fn disconnect_servers(&mut self, a: ServerId, b: ServerId) {
        for (from, to) in [(a, b), (b, a)] {
            self.links.remove(&(from, to));
            self.step(from, Input::LinkDown(to));
        }
    }

    /// Kill a server: what is not on its disk is lost.
    pub(crate) fn crash(&mut self, id: ServerId) {
        let server = self.servers.get_mut(&id).unwrap();
        server.running = None;
        server.unsynced.clear();
        server.slow_disk = false;
        server.paused = false;
        for other in self.ids() {
            if other != id {
                self.disconnect_servers(id, other);
            }
        }
        for (name, client) in &mut self.clients {
            if client.at == id && client.conn.take().is_some() {
                self.log.push(format!("{name}: connection lost"));
            }
        }
    }

    /// Break the links between two servers.
    pub(crate) fn cut(&mut self, a: ServerId, b: ServerId) {
        self.cut.insert((a, b));
        self.cut.insert((b, a));
        self.disconnect_servers(a, b);
    }

    /// Mend the links between two servers.
    pub(crate) fn heal(&mut self, a: ServerId, b: ServerId) {
        self.cut.remove(&(a, b));
        self.cut.remove(&(b, a));
        self.connect_servers(a, b);
    }

    /// Keep what one server says to another on its way.
    pub(crate) fn hold(&mut self, from: ServerId, to: ServerId, hold: bool) {
        if hold {
            self.held.insert((from, to));
        } else {
            self.held.remove(&(from, to));
        }
    }

    /// Stop a server without its knowledge, or let it go on.
    pub(crate) fn pause(&mut self, id: ServerId, paused: bool) {
        self.servers.get_mut(&id).unwrap().paused = paused;
    }

    /// Keep a server's disk from finishing its writes.
    pub(crate) fn slow_disk(&mut self, id: ServerId, slow: bool) {
        self.servers.get_mut(&id).unwrap().slow_disk = slow;
    }

    /// Make a server's state durable: from there it starts the next time.
    pub(crate) fn checkpoint(&mut self, id: ServerId) {
        let server = self.servers.get_mut(&id).unwrap();
        let nodes = server.running.as_ref().expect("it runs").nodes().clone();
        let meta = nodes.meta();
        server.disk.applied = zab::Position { zxid: meta.applied_zxid, chain: meta.applied_chain };
        server.checkpoint = nodes;
    }

    pub(crate) fn status(&self, id: ServerId) -> Option<Status> {
        self.servers[&id].running.as_ref().map(Replica::status)
    }

    pub(crate) fn leader(&self) -> Option<ServerId> {
        let leads = |id: &ServerId| self.status(*id).is_some_and(|it| it.role == Role::Leading);
        self.ids().into_iter().find(leads)
    }

    pub(crate) fn step(&mut self, id: ServerId, input: Input) {
        let server = self.servers.get_mut(&id).unwrap();
        if let Some(replica) = &mut server.running
            && !server.paused
        {
            replica.step(input);
        }
    }

    /// Let time pass, and everything happen that happens meanwhile.
    pub(crate) fn pass(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        while self.now_ms < until {
            self.now_ms += TICK_MS;
            let time_ms = i64::try_from(self.now_ms).unwrap();
            for id in self.ids() {
                self.step(id, Input::Tick { now_ms: self.now_ms, time_ms });
            }
            let staying = self.clients.values().filter(|client| client.stays && client.greeted);
            let pings: Vec<_> =
                staying.filter_map(|client| Some((client.at, client.conn?))).collect();
            for (at, conn) in pings {
                self.step(at, Input::Client { conn, message: ClientMessage::Ping });
            }
            self.settle();
        }
    }

    /// Let time pass until some server leads and all that run are with it.
    pub(crate) fn elect(&mut self) {
        for _ in 0..400 {
            self.pass(TICK_MS);
            let all: Vec<Status> =
                self.ids().into_iter().filter_map(|id| self.status(id)).collect();
            let leaders = all.iter().filter(|it| it.role == Role::Leading).count();
            let lost = all.iter().filter(|it| it.role == Role::Looking).count();
            if leaders == 1 && lost == 0 {
                return;
            }
        }
        panic!("no leader after 20 s");
    }

    /// Let everything happen that needs no time.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            let mut busy = false;
            for id in self.ids() {
                busy |= self.turn(id);
            }
            if !busy {
                return;
            }
        }
        panic!("the servers do not come to rest");
    }

    /// One turn of a server: all its messages, then what it makes of them.
    pub(crate) fn turn(&mut self, id: ServerId) -> bool {
        if self.servers[&id].paused || self.servers[&id].running.is_none() {
            return false;
        }
        let mut busy = false;
        for from in self.ids() {
            if self.held.contains(&(from, id)) {
                continue;
            }
            let parcels: Vec<Parcel> = self
                .links
                .get_mut(&(from, id))
                .map(|link| link.drain(..).collect())
                .unwrap_or_default();
            for parcel in parcels {
                busy = true;
                match parcel {
                    Parcel::Message(message) => self.step(id, Input::Peer { from, message }),
                    Parcel::Snapshot(nodes, sync, at) => self.install(id, *nodes, sync, at),
                }
            }
        }
        let server = self.servers.get_mut(&id).unwrap();
        let ready = server.running.as_mut().unwrap().ready();
        busy | self.perform(id, ready)
    }

    fn install(&mut self, id: ServerId, nodes: MemoryNodes, sync: u64, at: zab::Position) {
        let server = self.servers.get_mut(&id).unwrap();
        server.disk.applied = at;
        server.disk.base = at;
        server.disk.entries.clear();
        server.checkpoint = nodes.clone();
        let replica = server.running.as_mut().unwrap();
        *replica.nodes_mut() = nodes;
        replica.install(sync, at);
    }

    fn perform(&mut self, id: ServerId, ready: Ready) -> bool {
        let mut busy = ready.more || !ready.clients.is_empty();
        let mut burst = BTreeMap::new();
        for (to, message) in ready.send {
            busy = true;
            let mut frame = BytesMut::new();
            codec::encode(&message, &mut frame);
            assert!(frame.len() < limits::PEER_FRAME_BYTES, "a frame of {} bytes", frame.len());
            let burst: &mut usize = burst.entry(to).or_default();
            *burst += frame.len();
            assert!(*burst < limits::PEER_OUTBOX_BYTES, "{burst} bytes at once break the link");
            self.post(id, to, Parcel::Message(message));
        }
        let server = self.servers.get_mut(&id).unwrap();
        let wrote = !ready.write.is_empty();
        self.writes.push(ready.write.len());
        for write in ready.write {
            server.write(write);
        }
        if wrote || !ready.send_after_write.is_empty() {
            server.unsynced.push_back((ready.token, ready.send_after_write));
        }
        for order in ready.snapshots {
            if let SnapshotOrder::Send { to, sync, at } = order {
                let nodes = server.running.as_ref().unwrap().nodes().clone();
                assert_eq!(nodes.meta().applied_zxid, at.zxid, "the cut is exact");
                let link = self.links.get_mut(&(id, to));
                if let Some(link) = link {
                    link.push_back(Parcel::Snapshot(Box::new(nodes), sync, at));
                }
            }
        }
        let answers = ready.clients.iter().filter_map(|(_, message)| match message {
            ToClient::Message(ServerMessage::Response(response)) => Some(response.clone()),
            ToClient::Message(_)
            | ToClient::Spent(..)
            | ToClient::Identities(_)
            | ToClient::Close
            | ToClient::Drop => None,
        });
        self.turns.push(answers.collect());
        for (conn, message) in ready.clients {
            self.deliver(conn, message);
        }
        for notice in ready.notices {
            self.note(id, &notice);
        }
        let server = self.servers.get_mut(&id).unwrap();
        if server.slow_disk {
            return busy;
        }
        let synced: Vec<_> = server.unsynced.drain(..).collect();
        for (token, sends) in synced {
            busy = true;
            self.step(id, Input::Written(token));
            for (to, message) in sends {
                self.post(id, to, Parcel::Message(message));
            }
        }
        busy
    }

    fn post(&mut self, from: ServerId, to: ServerId, parcel: Parcel) {
        if let Some(link) = self.links.get_mut(&(from, to))
            && !self.cut.contains(&(from, to))
        {
            link.push_back(parcel);
        }
    }

    fn note(&mut self, id: ServerId, notice: &Notice) {
        match notice {
            Notice::Zab(_) | Notice::Authentication(_) => {}
            Notice::AclChange(change) => {
                let (path, by) = (&change.path, change.session);
                self.log.push(format!("server {id}: {by} changes the ACL of {path}"));
            }
            Notice::Expired { sessions } => {
                self.log.push(format!("server {id}: {sessions} expired"))
            }
            Notice::OverQuota(excess) => {
                self.log.push(format!("server {id}: over the quota of {}", excess.path));
            }
            Notice::Diverged { zxid, .. } => {
                self.log.push(format!("server {id}: diverged at {zxid}"))
            }
            Notice::NotUnderstood { zxid, why } => {
                self.log.push(format!("server {id}: cannot apply {zxid}: {why}"));
            }
        }
    }

    fn deliver(&mut self, conn: ConnId, message: ToClient) {
        let Some((name, client)) =
            self.clients.iter_mut().find(|(_, client)| client.conn == Some(conn))
        else {
            return;
        };
        match message {
            ToClient::Close | ToClient::Drop => {
                client.conn = None;
                self.log.push(format!("{name}: closed"));
            }
            ToClient::Identities(_) => {}
            ToClient::Spent(watch, path) => {
                self.log.push(format!("{name}: watch {} of {path} has fired unseen", watch.0));
            }
            ToClient::Message(ServerMessage::Pong { .. }) if client.stays => {}
            ToClient::Message(message) => {
                client.take(&message);
                self.log.push(format!("{name}: {}", crate::show::message(&message)));
                client.received.push(message);
            }
        }
    }

    /// The client of that name, whether it has dialled or not.
    pub(crate) fn client(&mut self, name: &str) -> &mut Client {
        self.clients.entry(name.to_owned()).or_insert_with(Client::new)
    }

    /// Dial a server, to open a session or to resume the one it has.
    pub(crate) fn dial(&mut self, name: &str, at: ServerId, timeout_ms: u32) {
        self.hang_up(name);
        self.conns += 1;
        let conn = ConnId(self.conns);
        let byte = u8::try_from(self.conns % 256).unwrap();
        let fresh = (SessionId(u64::from(at.get()) << 56 | self.conns), Secret::new([byte; 16]));
        let client = self.clients.entry(name.to_owned()).or_insert_with(Client::new);
        client.at = at;
        client.conn = Some(conn);
        client.greeted = false;
        let (numbered, identities) = (client.numbered, client.identities.clone());
        let connect = Connect {
            version: PROTOCOL_VERSION,
            session: client.session,
            timeout_ms,
            last_zxid: client.last_zxid,
            read_only: client.accepts_read_only,
        };
        self.step(at, Input::Opened { conn, identities, fresh, numbered });
        self.step(at, Input::Client { conn, message: ClientMessage::Connect(connect) });
    }

    /// Close a client's connection without a word.
    pub(crate) fn hang_up(&mut self, name: &str) {
        if let Some(client) = self.clients.get_mut(name)
            && let Some(conn) = client.conn.take()
        {
            let at = client.at;
            self.step(at, Input::Closed(conn));
        }
    }

    /// Ask for something; the number of the request comes back.
    pub(crate) fn ask(&mut self, name: &str, level: ReadLevel, op: Op) -> u64 {
        let client = self.clients.get_mut(name).expect("the client has dialled");
        client.xid += 1;
        let xid = client.xid;
        self.ask_as(name, xid, level, op);
        xid
    }

    /// Ask for something under this number.
    pub(crate) fn ask_as(&mut self, name: &str, xid: u64, level: ReadLevel, op: Op) {
        let message = ClientMessage::Request { xid: Xid(xid), acked: Xid(0), level, op };
        self.say(name, message);
    }

    pub(crate) fn say(&mut self, name: &str, message: ClientMessage) {
        let client = &self.clients[name];
        if let Some(conn) = client.conn {
            self.step(client.at, Input::Client { conn, message });
        }
    }
}

impl Server {
    fn write(&mut self, write: Write) {
        let disk = &mut self.disk;
        match write {
            Write::Append(entries) => {
                for entry in &entries {
                    let last = disk.entries.last().map_or(disk.base, zab::Entry::position);
                    assert!(entry.continues(last), "{} does not follow {}", entry.zxid, last.zxid);
                    disk.entries.push(entry.clone());
                }
            }
            Write::Truncate(to) => disk.entries.retain(|entry| entry.zxid <= to.zxid),
            Write::AcceptedEpoch(epoch) => disk.accepted_epoch = epoch,
            Write::CurrentEpoch(epoch) => {
                disk.current_epoch = epoch;
                disk.needs_repair = false;
            }
            Write::NeedsRepair => disk.needs_repair = true,
        }
    }
}

impl Client {
    fn new() -> Client {
        let anyone = Identity { scheme: "world".into(), id: "anyone".into() };
        Client {
            at: server(1),
            conn: None,
            session: None,
            xid: 0,
            last_zxid: Zxid::ZERO,
            numbered: true,
            accepts_read_only: false,
            identities: vec![anyone],
            stays: false,
            greeted: false,
            received: Vec::new(),
        }
    }

    fn take(&mut self, message: &ServerMessage) {
        let seen = match message {
            ServerMessage::Connected(connected) => {
                self.greeted = true;
                self.session = Some((connected.session, connected.secret));
                connected.zxid
            }
            ServerMessage::Response(response) => response.zxid,
            ServerMessage::Event { event, .. } => event.zxid,
            ServerMessage::Pong { zxid, .. } | ServerMessage::Gap { resumed_at: zxid, .. } => *zxid,
            ServerMessage::Refused(_) | ServerMessage::GoAway { .. } => Zxid::ZERO,
        };
        self.last_zxid = self.last_zxid.max(seen);
    }
}

/// What a disk or a later version has done to a server.
impl World {
    /// A bit of a server's state is another one than it was.
    pub(crate) fn corrupt(&mut self, id: ServerId) {
        let nodes = self.servers.get_mut(&id).unwrap().running.as_mut().unwrap().nodes_mut();
        let mut meta = nodes.meta();
        meta.digest ^= 1;
        nodes.set_meta(meta);
    }

    /// A transaction by the rules of a later version follows what is on the disk of a server that is down.
    pub(crate) fn write_by_later_rules(&mut self, id: ServerId) {
        let disk = &mut self.servers.get_mut(&id).unwrap().disk;
        let last = disk.entries.last().expect("there is something").clone();
        let mut txn = conclave_proto::codec::decode_txn(&last.body).unwrap();
        txn.semantics += 1;
        let body = conclave_proto::codec::encode_txn(&txn);
        let zxid = Zxid::new(last.zxid.epoch(), last.zxid.counter() + 1);
        disk.entries.push(zab::Entry::after(last.position(), zxid, body));
    }
}
