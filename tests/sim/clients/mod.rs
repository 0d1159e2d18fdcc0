//! Clients of whole servers: their connections, what they ask, and whether the answers are right.

mod client;
mod reads;
mod watches;
mod work;

use std::collections::{BTreeMap, BTreeSet};

use conclave::replica::{ConnId, Input, ToClient};
use conclave::tree::Nodes;
use conclave::zab::{Entry, Notice};
use conclave_proto::codec::decode_txn;
use conclave_proto::{ClientMessage, Epoch, Op, Secret, ServerMessage, SessionId, Txn, Xid, Zxid};

use crate::knobs::{Knobs, MS, SECOND};
use crate::machine::{Load, Machine, Stage};
use crate::model::Model;
use crate::random::Random;
use crate::replicas::Whole;
use client::Client;

/// What a client, or the network between it and its server, does next.
#[derive(Debug)]
pub(crate) enum Event {
    /// A client looks at what there is to do.
    Think(usize),
    /// A client's message reaches its server.
    ToServer(usize, Option<ClientMessage>),
    /// A server's message reaches its client; `None`: the connection is closed.
    ToClient(usize, Option<ServerMessage>),
}

/// A connection.
#[derive(Debug)]
struct Conn {
    client: usize,
    server: usize,
    /// Whether the server has it open.
    accepted: bool,
    /// Whether the server has opened a session on it.
    attached: bool,
    /// When the last message in each direction arrives.
    last_to_server: u64,
    last_to_client: u64,
}

/// All clients, and what they know together.
#[derive(Debug)]
pub(crate) struct Clients {
    gap: u64,
    delay: u64,
    faults: u64,
    /// Whether links between servers lose nothing but the end of what was sent. What a server says
    /// of a session's life relies on it: that an earlier report has arrived if a later one has.
    streams: bool,
    servers: usize,
    clients: Vec<Client>,
    conns: Vec<Conn>,
    model: Model,
    /// Whose session it is.
    owners: BTreeMap<SessionId, usize>,
    /// Writes that were answered as not done. They must never be done.
    rejected: BTreeSet<(SessionId, Xid)>,
    /// Writes that their clients gave up when their sessions were resumed, with what the server had
    /// applied by then. They must never be done later.
    given_up: BTreeMap<(SessionId, Xid), Zxid>,
    /// Whether servers may keep sessions to themselves.
    local_sessions: bool,
    /// Sessions that had not been opened when their clients were told that they are over. They
    /// must never be opened.
    gone: BTreeSet<SessionId>,
    /// Who led an epoch, and since when it has led without interruption: a leader may begin several
    /// epochs in a row.
    leaders: BTreeMap<Epoch, (usize, u64)>,
    /// When each session that expired did so.
    expired: BTreeMap<SessionId, u64>,
    /// By server: since when it has led.
    leads_since: Vec<Option<u64>>,
    healed: bool,
    values: u64,
}

/// What a client acts on.
struct Scene<'a, 'b> {
    stage: &'a mut Stage<'b, Whole, Clients>,
    conns: &'a mut Vec<Conn>,
    model: &'a Model,
    owners: &'a mut BTreeMap<SessionId, usize>,
    rejected: &'a mut BTreeSet<(SessionId, Xid)>,
    given_up: &'a mut BTreeMap<(SessionId, Xid), Zxid>,
    local_sessions: bool,
    gone: &'a mut BTreeSet<SessionId>,
    servers: usize,
    delay: u64,
    values: &'a mut u64,
}

impl Clients {
    /// The sessions that no client has any more, and that have not ended.
    fn orphans(&self) -> impl Iterator<Item = SessionId> {
        self.model.sessions().filter(|session| {
            let owner = self.owners.get(session);
            owner.is_none_or(|client| self.clients[*client].session() != Some(*session))
        })
    }

    fn act(
        &mut self,
        client: usize,
        stage: &mut Stage<'_, Whole, Clients>,
        act: impl FnOnce(&mut Client, &mut Scene<'_, '_>),
    ) {
        let mut scene = Scene {
            stage,
            conns: &mut self.conns,
            model: &self.model,
            owners: &mut self.owners,
            rejected: &mut self.rejected,
            given_up: &mut self.given_up,
            local_sessions: self.local_sessions,
            gone: &mut self.gone,
            servers: self.servers,
            delay: self.delay,
            values: &mut self.values,
        };
        act(&mut self.clients[client], &mut scene);
    }

    fn think(&mut self, client: usize, stage: &mut Stage<'_, Whole, Clients>) {
        let gap = stage.random.around(self.gap).max(MS);
        stage.later.push((stage.now + gap, Event::Think(client)));
        let upset = self.faults > 0 && !self.healed && stage.random.below(self.faults) < gap;
        self.act(client, stage, |client, scene| {
            if upset {
                client.suffer(scene);
            }
            client.think(scene);
        });
    }

    fn arrive_at_server(
        &mut self,
        at: usize,
        message: Option<ClientMessage>,
        stage: &mut Stage<'_, Whole, Clients>,
    ) {
        let conn = &mut self.conns[at];
        let id = ConnId(at as u64);
        if !conn.accepted || !stage.running[conn.server] {
            return;
        }
        let Some(message) = message else {
            conn.accepted = false;
            stage.requests.push((conn.server, Input::Closed(id)));
            return;
        };
        let client = &mut self.clients[conn.client];
        if conn.attached && client.conn() == Some(at) && stage.awake[conn.server] {
            client.lived(conn.server, stage.now);
        }
        stage.requests.push((conn.server, Input::Client { conn: id, message }));
    }

    fn check_applied(
        &mut self,
        server: usize,
        zxid: Zxid,
        txn: &Txn,
        (proposed_at, now): (u64, u64),
    ) {
        let done = self.model.apply(zxid, txn).clone();
        assert!(
            !self.rejected.contains(&(done.session, done.xid)) || done.result.is_err(),
            "{zxid} does what server {} said was not done: {done:?}",
            server + 1
        );
        let given_up = self.given_up.get(&(done.session, done.xid));
        assert!(
            given_up.is_none_or(|seen| zxid <= *seen) || done.result.is_err(),
            "{zxid} does what its client gave up when it resumed its session at {given_up:?}: {done:?}"
        );
        assert!(
            !self.gone.contains(&done.session) || done.result.is_err(),
            "{zxid} is of a session whose client was told that it is over: {done:?}"
        );
        let Some(client) = self.owners.get(&done.session) else { return };
        let client = &self.clients[*client];
        if matches!(txn.request.op, Op::ExpireSession) && done.result.is_ok() {
            let leader = self.leaders.get(&zxid.epoch()).copied();
            let leader = leader.expect("an epoch has a leader");
            client.check_expiry(done.session, leader, proposed_at);
            self.expired.insert(done.session, now);
            client.check_assurance(&self.expired);
        }
    }
}

impl Scene<'_, '_> {
    /// A client dials a server.
    fn dial(&mut self, client: usize, server: usize) -> usize {
        let at = self.conns.len();
        let now = self.stage.now;
        let accepted = self.stage.running[server];
        self.conns.push(Conn {
            client,
            server,
            accepted,
            attached: false,
            last_to_server: now,
            last_to_client: now,
        });
        if accepted {
            let random = &mut self.stage.random;
            let number = (server as u64 + 1) << 56 | random.bits() >> 8;
            let mut secret = [0; 16];
            secret[..8].copy_from_slice(&random.bits().to_le_bytes());
            let opened = Input::Opened {
                conn: ConnId(at as u64),
                identities: Vec::new(),
                fresh: (SessionId(number), Secret::new(secret)),
                numbered: true,
            };
            self.stage.requests.push((server, opened));
        } else {
            self.stage.later.push((now + 10 * MS, Event::ToClient(at, None)));
        }
        at
    }

    fn send(&mut self, at: usize, message: Option<ClientMessage>) {
        let conn = &mut self.conns[at];
        let time = self.stage.now + 1 + self.stage.random.around(self.delay);
        conn.last_to_server = time.max(conn.last_to_server + 1);
        self.stage.later.push((conn.last_to_server, Event::ToServer(at, message)));
    }
}

impl Load<Whole> for Clients {
    type Event = Event;

    fn new(random: &mut Random, knobs: &Knobs) -> Clients {
        let count = random.between(1, 6);
        Clients {
            gap: (knobs.work * count * 2).min(SECOND),
            delay: *random.pick(&[100, MS, 20 * MS]),
            faults: if random.chance(333) { 0 } else { random.between(2, 30) * SECOND },
            streams: !knobs.net.datagrams,
            servers: 0,
            clients: (0..).take(usize::try_from(count).expect("few")).map(Client::new).collect(),
            conns: Vec::new(),
            model: Model::new(),
            owners: BTreeMap::new(),
            rejected: BTreeSet::new(),
            given_up: BTreeMap::new(),
            local_sessions: knobs.local_sessions,
            gone: BTreeSet::new(),
            leaders: BTreeMap::new(),
            expired: BTreeMap::new(),
            leads_since: Vec::new(),
            healed: false,
            values: 0,
        }
    }

    fn start(&mut self, stage: &mut Stage<'_, Whole, Clients>) {
        self.servers = stage.running.len();
        self.leads_since = vec![None; self.servers];
        for client in 0..self.clients.len() {
            stage.later.push((stage.random.below(SECOND), Event::Think(client)));
        }
    }

    fn event(&mut self, event: Event, stage: &mut Stage<'_, Whole, Clients>) {
        match event {
            Event::Think(client) => self.think(client, stage),
            Event::ToServer(at, message) => self.arrive_at_server(at, message, stage),
            Event::ToClient(at, message) => {
                let client = self.conns[at].client;
                if self.clients[client].conn() == Some(at) {
                    self.act(client, stage, |client, scene| client.hear(message, scene));
                }
            }
        }
    }

    fn answer(
        &mut self,
        server: usize,
        (id, what): (ConnId, ToClient),
        stage: &mut Stage<'_, Whole, Clients>,
    ) {
        let at = usize::try_from(id.0).expect("a connection's number fits");
        let conn = &mut self.conns[at];
        assert_eq!(conn.server, server, "a server speaks to another one's client");
        if !conn.accepted {
            return;
        }
        let message = match what {
            ToClient::Message(message) => Some(message),
            ToClient::Identities(_) | ToClient::Spent(..) => return,
            ToClient::Close | ToClient::Drop => {
                conn.accepted = false;
                None
            }
        };
        conn.attached |= matches!(message, Some(ServerMessage::Connected(_)));
        if let Some(ServerMessage::Pong { counted_ms_ago: Some(ago), .. }) = message
            && self.clients[conn.client].conn() == Some(at)
            && self.streams
        {
            let client = &mut self.clients[conn.client];
            client.assured(stage.now.saturating_sub(u64::from(ago) * MS));
            client.check_assurance(&self.expired);
        }
        let time = stage.now + 1 + stage.random.around(self.delay);
        conn.last_to_client = time.max(conn.last_to_client + 1);
        stage.later.push((conn.last_to_client, Event::ToClient(at, message)));
    }

    fn notice(&mut self, server: usize, notice: &Notice, stage: &mut Stage<'_, Whole, Clients>) {
        match notice {
            Notice::Leading { epoch } => {
                let since = *self.leads_since[server].get_or_insert(stage.now);
                self.leaders.insert(*epoch, (server, since));
            }
            Notice::Looking { .. } | Notice::Following { .. } => self.leads_since[server] = None,
            Notice::HandedOver | Notice::ReadConfirmed { .. } => {}
        }
    }

    fn down(&mut self, server: usize, stage: &mut Stage<'_, Whole, Clients>) {
        self.leads_since[server] = None;
        let noticed = stage.random.chance(700);
        for (at, conn) in self.conns.iter_mut().enumerate() {
            if conn.server == server && conn.accepted {
                conn.accepted = false;
                if noticed {
                    let time = conn.last_to_client.max(stage.now) + 1;
                    stage.later.push((time, Event::ToClient(at, None)));
                }
            }
        }
    }

    fn committed(
        &mut self,
        server: usize,
        entry: &Entry,
        proposed_at: u64,
        stage: &mut Stage<'_, Whole, Clients>,
    ) {
        let txn = decode_txn(&entry.body).expect("a committed entry is a transaction");
        self.check_applied(server, entry.zxid, &txn, (proposed_at, stage.now));
    }

    fn heal(&mut self, _: &[usize], _: &mut Stage<'_, Whole, Clients>) {
        self.healed = true;
        self.clients.iter_mut().for_each(Client::heal);
    }

    fn settled(&self) -> bool {
        self.clients.iter().all(Client::is_settled) && self.orphans().next().is_none()
    }

    fn patience(&self) -> u64 {
        3 * client::TIMEOUT_MAX
    }

    fn complaint(&self) -> String {
        let clients = self.clients.iter().filter(|client| !client.is_settled());
        let clients: Vec<&Client> = clients.collect();
        let orphans: Vec<SessionId> = self.orphans().collect();
        format!("these sessions do not expire: {orphans:?}; these clients wait: {clients:#?}")
    }

    fn finish(&mut self, servers: &mut dyn Iterator<Item = (usize, &Whole)>) {
        for (server, machine) in servers {
            let (nodes, at) = (machine.nodes(), machine.applied().zxid);
            for (path, node) in nodes.iter() {
                let expected = self.model.node_at(path, at);
                let expected = expected.map(|node| (node.stat(), node.data.clone()));
                let found = Some((node.stat(), node.data.clone()));
                assert_eq!(found, expected, "server {} has a wrong {path} at {at}", server + 1);
            }
            let count = self.model.paths_at(at).count() as u64;
            assert_eq!(nodes.meta().nodes, count, "server {} lacks nodes at {at}", server + 1);
        }
    }
}
