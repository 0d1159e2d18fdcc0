//! One client: a session that outlives its connections, with requests in flight.
//!
//! Checks invariants 15 (what was acknowledged is there, once), 18 (no session expires early), 19
//! (each session's order) and 21 (linearizable requests) as answers arrive.

use std::collections::{BTreeMap, VecDeque};

use conclave_proto::message::{Connect, Connected, PROTOCOL_VERSION, Refused};
use conclave_proto::request::ReadLevel;
use conclave_proto::{
    ClientMessage, ErrorCode, Op, Response, Secret, ServerMessage, SessionId, WatchId, Xid, Zxid,
};

use super::watches::Watch;
use super::{Scene, reads};
use crate::knobs::{MS, SECOND};

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    number: usize,
    session: Option<Session>,
    link: Link,
    /// The server that it tried last.
    server: usize,
    /// It does nothing until then, for ever if it has gone away.
    paused_until: u64,
    /// It asks nothing until then, and only pings.
    quiet_until: u64,
    /// Requests without an answer, in order.
    queue: VecDeque<Sent>,
    next_xid: u64,
    acked: Xid,
    /// The last transaction it has seen the effect of.
    pub(super) seen: Zxid,
    /// The last write and the last read that were answered at the first attempt: number and zxid.
    last_write: Zxid,
    last_read: (Xid, Zxid),
    pub(super) watches: BTreeMap<WatchId, Watch>,
    pub(super) next_watch: u64,
    /// The watches it has set again and that have no answer yet.
    rearming: VecDeque<WatchId>,
    /// The latest signs of life that it gave to servers that serve its session: which, and when.
    lives: VecDeque<(usize, u64)>,
    /// Its session does not expire before this time, a server has said.
    safe_until: u64,
    healing: Healing,
}

#[derive(Clone, Copy, Debug)]
struct Session {
    id: SessionId,
    secret: Secret,
    timeout: u64,
}

/// Its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// None; it dials again at this time.
    Down { until: u64 },
    /// It has dialled, and waits for its session.
    Greeting { conn: usize, since: u64 },
    /// It has a session.
    Open { conn: usize, heard: u64, sent: u64 },
}

/// How far it has come since faults ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Healing {
    /// They have not.
    No,
    /// It has something to do that must be answered: what it asks as of this number.
    Since(Xid),
    /// That is answered.
    Done,
}

/// A request on its way.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) xid: Xid,
    pub(super) level: ReadLevel,
    pub(super) op: Op,
    /// What was committed when it was first sent.
    pub(super) floor: Zxid,
    /// Whether it was sent again.
    pub(super) again: bool,
}

/// The longest session timeout that a client asks for, in µs.
pub(super) const TIMEOUT_MAX: u64 = 20 * SECOND;
/// The most requests of a client in flight.
const IN_FLIGHT: usize = 16;

impl Client {
    /// A client that has not dialled yet.
    pub(super) fn new(number: usize) -> Client {
        Client {
            number,
            session: None,
            link: Link::Down { until: 0 },
            server: number,
            paused_until: 0,
            quiet_until: 0,
            queue: VecDeque::new(),
            next_xid: 1,
            acked: Xid(0),
            seen: Zxid::ZERO,
            last_write: Zxid::ZERO,
            last_read: (Xid(0), Zxid::ZERO),
            watches: BTreeMap::new(),
            next_watch: 1,
            rearming: VecDeque::new(),
            lives: VecDeque::new(),
            safe_until: 0,
            healing: Healing::No,
        }
    }

    /// Its connection.
    pub(super) fn conn(&self) -> Option<usize> {
        match self.link {
            Link::Down { .. } => None,
            Link::Greeting { conn, .. } | Link::Open { conn, .. } => Some(conn),
        }
    }

    /// Its session.
    pub(super) fn session(&self) -> Option<SessionId> {
        self.session.map(|session| session.id)
    }

    /// A server took note of a sign of its life.
    pub(super) fn lived(&mut self, server: usize, now: u64) {
        if self.lives.len() == 64 {
            self.lives.pop_front();
        }
        self.lives.push_back((server, now));
    }

    /// A server says that a sign of life of that time counts everywhere.
    pub(super) fn assured(&mut self, counted: u64) {
        let timeout = self.session.map_or(0, |session| session.timeout);
        self.safe_until = self.safe_until.max(counted + least(timeout));
    }

    /// Its session must not have expired as long as a server said that it would not.
    pub(super) fn check_assurance(&self, expired: &BTreeMap<SessionId, u64>) {
        if let Some(time) = self.session().and_then(|session| expired.get(&session)) {
            assert!(
                *time >= self.safe_until,
                "client {}: its session expired {} ms before it could, a server said",
                self.number + 1,
                (self.safe_until - time) / MS
            );
        }
    }

    /// Faults are over.
    pub(super) fn heal(&mut self) {
        (self.paused_until, self.quiet_until) = (0, 0);
        self.healing = Healing::Since(Xid(self.next_xid));
    }

    /// Whether it was served since faults ended.
    pub(super) fn is_settled(&self) -> bool {
        self.healing == Healing::Done && self.queue.is_empty()
    }

    /// Something goes wrong: its connection breaks, or it stands still, or it forgets everything.
    /// Or it has nothing to ask for a while.
    pub(super) fn suffer(&mut self, scene: &mut Scene<'_, '_>) {
        let (now, random) = (scene.stage.now, &mut scene.stage.random);
        match random.below(12) {
            0..5 => {
                let wait = random.below(SECOND);
                self.disconnect(now + wait, scene);
            }
            // Perhaps for longer than its session lives.
            10 => {
                self.paused_until = now + random.around(10 * SECOND).min(60 * SECOND);
                self.disconnect(now, scene);
            }
            11 => self.quiet_until = now + random.around(10 * SECOND),
            5..8 => self.paused_until = now + random.around(5 * SECOND).min(60 * SECOND),
            8 => {
                // The application dies and starts again: its old session is left to expire.
                self.disconnect(now, scene);
                self.forget_session();
            }
            _ => {
                if self.is_open() && !self.is_closing() {
                    self.request(Op::CloseSession, ReadLevel::Local, scene);
                }
            }
        }
    }

    /// Does what there is to do.
    pub(super) fn think(&mut self, scene: &mut Scene<'_, '_>) {
        let now = scene.stage.now;
        if self.paused_until > now {
            return;
        }
        let timeout = self.session.map_or(6 * SECOND, |session| session.timeout);
        match self.link {
            Link::Down { until } => {
                // What it has asked and has no answer to, it asks again even if it is done.
                let wants = self.healing != Healing::Done || !self.queue.is_empty();
                if until <= now && wants {
                    self.dial(scene);
                }
            }
            Link::Greeting { since, .. } => {
                if now > since + 3 * SECOND {
                    self.disconnect(now, scene);
                }
            }
            Link::Open { heard, sent, .. } => {
                if now > heard + timeout * 2 / 3 {
                    self.disconnect(now, scene);
                    return;
                }
                if now > sent + timeout / 4 {
                    self.tell(ClientMessage::Ping, scene);
                }
                if self.healing != Healing::Done && !self.is_closing() && self.quiet_until <= now {
                    self.work(scene);
                }
            }
        }
    }

    fn work(&mut self, scene: &mut Scene<'_, '_>) {
        let burst = match scene.stage.random.below(8) {
            0 => 8,
            1 | 2 => 3,
            _ => 1,
        };
        for _ in 0..burst {
            if self.queue.len() >= IN_FLIGHT {
                return;
            }
            let (op, level) = self.choose(scene);
            self.request(op, level, scene);
        }
    }

    fn dial(&mut self, scene: &mut Scene<'_, '_>) {
        // Once faults have ended it goes round, as clients do: dice may miss the one that serves.
        let dice = scene.stage.random.index(3);
        let step = if self.healing == Healing::No { dice } else { 1 };
        self.server = (self.server + step) % scene.servers;
        let conn = scene.dial(self.number, self.server);
        self.link = Link::Greeting { conn, since: scene.stage.now };
        let timeout_ms = *scene.stage.random.pick(&[4_000, 6_000, 10_000, 20_000]);
        let connect = Connect {
            version: PROTOCOL_VERSION,
            session: self.session.map(|session| (session.id, session.secret)),
            timeout_ms,
            last_zxid: self.seen,
            read_only: false,
        };
        scene.send(conn, Some(ClientMessage::Connect(connect)));
    }

    fn disconnect(&mut self, until: u64, scene: &mut Scene<'_, '_>) {
        if let Some(conn) = self.conn() {
            scene.send(conn, None);
        }
        self.link = Link::Down { until };
        self.rearming.clear();
    }

    fn forget_session(&mut self) {
        let fresh = Client::new(self.number);
        let (paused_until, healing) = (self.paused_until, self.healing);
        *self = Client { link: self.link, server: self.server, paused_until, healing, ..fresh };
        if let Healing::Since(xid) = &mut self.healing {
            *xid = Xid(1);
        }
    }

    fn is_open(&self) -> bool {
        matches!(self.link, Link::Open { .. })
    }

    fn is_closing(&self) -> bool {
        self.queue.back().is_some_and(|sent| matches!(sent.op, Op::CloseSession))
    }

    fn request(&mut self, op: Op, level: ReadLevel, scene: &mut Scene<'_, '_>) {
        let xid = Xid(self.next_xid);
        self.next_xid += 1;
        let floor = scene.stage.committed.zxid;
        let sent = Sent { xid, level, op, floor, again: false };
        self.send(&sent, scene);
        self.queue.push_back(sent);
    }

    fn send(&mut self, sent: &Sent, scene: &mut Scene<'_, '_>) {
        let Sent { xid, level, op, .. } = sent.clone();
        self.tell(ClientMessage::Request { xid, acked: self.acked, level, op }, scene);
    }

    fn tell(&mut self, message: ClientMessage, scene: &mut Scene<'_, '_>) {
        if let Link::Open { conn, sent, .. } = &mut self.link {
            *sent = scene.stage.now;
            scene.send(*conn, Some(message));
        }
    }

    /// Its server said something, or closed the connection.
    pub(super) fn hear(&mut self, message: Option<ServerMessage>, scene: &mut Scene<'_, '_>) {
        let now = scene.stage.now;
        scene.stage.trace.line(format_args!("client {} <- {message:?}", self.number + 1));
        if let Link::Open { heard, .. } = &mut self.link {
            *heard = now;
        }
        match message {
            None | Some(ServerMessage::GoAway { .. }) => {
                let wait = scene.stage.random.below(200 * MS);
                self.disconnect(now + wait, scene);
            }
            Some(ServerMessage::Connected(connected)) => self.connected(&connected, scene),
            Some(ServerMessage::Refused(refused)) => self.refused(&refused, scene),
            Some(ServerMessage::Response(response)) => self.response(&response, scene),
            Some(ServerMessage::Event { watch, event, .. }) => {
                self.told(watch, &event, scene.model);
            }
            Some(ServerMessage::Gap { watch, resumed_at }) => {
                self.gap(watch, resumed_at, scene.model);
            }
            Some(ServerMessage::Pong { zxid, .. }) => self.saw(zxid, scene.model),
        }
    }

    fn connected(&mut self, connected: &Connected, scene: &mut Scene<'_, '_>) {
        let Connected { session, secret, timeout_ms, resumed, server, zxid, .. } = *connected;
        let Link::Greeting { conn, .. } = self.link else { panic!("a session is opened twice") };
        assert_eq!(resumed, self.session.is_some(), "a session is resumed if there is one");
        assert!(
            zxid >= self.seen,
            "client {}: server {server} is at {zxid}, behind {}",
            self.number + 1,
            self.seen
        );
        let timeout = u64::from(timeout_ms) * MS;
        match self.session {
            Some(known) => assert_eq!(known.id, session, "another session is resumed"),
            None => {
                scene.owners.insert(session, self.number);
                // It may have expired by now, if its server stood still before it could say this.
                let created =
                    scene.model.has_session(session) || scene.model.ended(session).is_some();
                assert!(created || scene.local_sessions, "a session is created by a transaction");
            }
        }
        self.session = Some(Session { id: session, secret, timeout });
        let now = scene.stage.now;
        self.link = Link::Open { conn, heard: now, sent: now };
        for (id, message) in self.rearm(scene.model) {
            self.rearming.push_back(id);
            self.tell(message, scene);
        }
        if resumed && scene.stage.random.chance(300) {
            self.give_up(session, zxid, scene);
        }
        for at in 0..self.queue.len() {
            self.queue[at].again = true;
            let sent = self.queue[at].clone();
            self.send(&sent, scene);
        }
    }

    /// Asks for nothing again, and goes by what it sees, as ZooKeeper's clients do: what is not done
    /// when its session is resumed never is.
    fn give_up(&mut self, session: SessionId, zxid: Zxid, scene: &mut Scene<'_, '_>) {
        for sent in self.queue.drain(..).filter(|sent| sent.op.is_write()) {
            scene.given_up.insert((session, sent.xid), zxid);
        }
        if let Healing::Since(xid) = &mut self.healing {
            *xid = Xid(self.next_xid);
        }
    }

    fn refused(&mut self, refused: &Refused, scene: &mut Scene<'_, '_>) {
        let wait = scene.stage.random.below(500 * MS);
        self.disconnect(scene.stage.now + wait, scene);
        if refused.code == ErrorCode::SessionExpired {
            let session = self.session().expect("only a session expires");
            let unopened =
                !scene.model.has_session(session) && scene.model.ended(session).is_none();
            if scene.local_sessions && unopened {
                scene.gone.insert(session);
            }
            assert!(
                scene.model.ended(session).is_some() || scene.gone.contains(&session),
                "client {} is told that session {session} has ended, which it has not",
                self.number + 1
            );
            self.forget_session();
        }
    }

    fn response(&mut self, response: &Response, scene: &mut Scene<'_, '_>) {
        if response.xid == Xid(0) {
            let id = self.rearming.pop_front().expect("an answer to what was asked");
            self.rearmed(id, response);
            self.saw(response.zxid, scene.model);
            return;
        }
        let sent = self.queue.pop_front().expect("an answer to what was asked");
        assert_eq!(sent.xid, response.xid, "client {}: answers out of order", self.number + 1);
        self.acked = sent.xid;
        if sent.op.is_write() {
            self.check_write(&sent, response, scene);
            if matches!(sent.op, Op::CloseSession) && !is_refusal(response) {
                self.disconnect(scene.stage.now, scene);
                self.forget_session();
                return;
            }
        } else {
            self.check_read(&sent, response, scene);
        }
        if let Healing::Since(xid) = self.healing
            && sent.xid >= xid
            && sent.op.is_write()
            && !is_refusal(response)
        {
            self.healing = Healing::Done;
        }
    }

    fn check_write(&mut self, sent: &Sent, response: &Response, scene: &mut Scene<'_, '_>) {
        let session = self.session().expect("it has one");
        if is_expiry(response) && scene.model.ended(session).is_some() {
            // It says nothing of the write, which may have been the session's last.
            return;
        }
        let unopened = !scene.model.has_session(session) && scene.model.ended(session).is_none();
        if matches!(sent.op, Op::CloseSession) && unopened && scene.local_sessions {
            scene.gone.insert(session);
            return;
        }
        let Some(zxid) = scene.model.outcome(session, sent.xid) else {
            assert!(
                response.result.is_err(),
                "client {}: {sent:?} is acknowledged, but never happened: {response:?}",
                self.number + 1
            );
            assert!(
                is_refusal(response),
                "client {}: {sent:?} is refused for no reason: {response:?}",
                self.number + 1
            );
            scene.rejected.insert((session, sent.xid));
            return;
        };
        let done = scene.model.done(zxid).expect("it happened");
        assert_eq!(
            (response.zxid, &response.result),
            (zxid, &done.result),
            "client {}: {sent:?} has a wrong answer",
            self.number + 1
        );
        assert!(
            zxid > sent.floor,
            "client {}: {sent:?} took effect at {zxid}, before it was asked at {}",
            self.number + 1,
            sent.floor
        );
        assert!(zxid > self.last_write, "client {}: its writes are out of order", self.number + 1);
        self.last_write = zxid;
        assert!(
            sent.again || zxid > self.last_read.1,
            "client {}: an earlier read saw {sent:?}",
            self.number + 1
        );
        self.saw(zxid, scene.model);
    }

    fn check_read(&mut self, sent: &Sent, response: &Response, scene: &mut Scene<'_, '_>) {
        if is_refusal(response) {
            return;
        }
        let zxid = response.zxid;
        assert!(
            zxid >= self.seen,
            "client {}: it saw {} and then {sent:?} went back to {zxid}",
            self.number + 1,
            self.seen
        );
        let linearizable = sent.level == ReadLevel::Linearizable;
        if linearizable || matches!(sent.op, Op::Sync { .. }) {
            assert!(
                zxid >= sent.floor,
                "client {}: {sent:?} is stale: {} was committed before, it saw {zxid}",
                self.number + 1,
                sent.floor
            );
        }
        if let ReadLevel::AtLeast(least) = sent.level {
            assert!(zxid >= least, "client {}: {sent:?} saw only {zxid}", self.number + 1);
        }
        self.saw(zxid, scene.model);
        self.set_watch(sent, response, scene.model);
        if let Some(expected) = reads::expected(scene.model, &sent.op, zxid) {
            assert_eq!(
                response.result,
                expected,
                "client {}: {sent:?} has a wrong answer at {zxid}",
                self.number + 1
            );
        }
        if !sent.again {
            self.last_read = (sent.xid, zxid);
        }
    }

    /// The end of its session was proposed: not before its timeout has passed since the leader, of
    /// which it is told who it is and since when, began to lead, nor since the client spoke to it.
    pub(super) fn check_expiry(&self, session: SessionId, leader: (usize, u64), now: u64) {
        let Some(known) = self.session.filter(|known| known.id == session) else { return };
        let (leader, since) = leader;
        let least = least(known.timeout);
        assert!(
            now >= since + least,
            "client {}: its session expires {} ms after leader {} was elected",
            self.number + 1,
            (now - since) / MS,
            leader + 1
        );
        let mut lives = self.lives.iter().rev();
        if let Some((server, lived)) = lives.find(|(_, lived)| *lived <= now).copied()
            && server == leader
        {
            assert!(
                now >= lived + least,
                "client {}: its session expires {} ms after a sign of life at the leader",
                self.number + 1,
                (now - lived) / MS
            );
        }
    }
}

/// How long a session of that timeout lives at least: clocks differ by 5 % each way, and time goes by
/// in ticks.
fn least(timeout: u64) -> u64 {
    (timeout * 9 / 10).saturating_sub(200 * MS)
}

/// Whether the answer says that the session has ended.
fn is_expiry(response: &Response) -> bool {
    response.result.as_ref().err().is_some_and(|fault| fault.code == ErrorCode::SessionExpired)
}

/// Whether the answer says that the request was not carried out, and could be another time.
fn is_refusal(response: &Response) -> bool {
    response.result.as_ref().err().is_some_and(|fault| {
        matches!(
            fault.code,
            ErrorCode::Throttled
                | ErrorCode::Unavailable
                | ErrorCode::SessionMoved
                | ErrorCode::NoSpace
        )
    })
}
