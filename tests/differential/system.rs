//! One of the two that are compared, as its clients see it.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::jute::{In, Out};
use crate::op::{Field, Op};
use crate::script::{Action, Step};

/// The timeout that sessions ask for, in ms: none ends by itself.
const SESSION_TIMEOUT_MS: i32 = 120_000;
/// The code after which the server ends the connection.
const AUTH_FAILED: i32 = -115;
/// Where it stands, for who looks for its place.
const BARRIER_PLACE: usize = 1000;
/// The number of the request after which everything that happened has been told.
const BARRIER_XID: i32 = i32::MAX;

/// What a client hears.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Heard {
    /// The answer to a handshake.
    Greeting { bytes: usize, timeout_ms: i32, session: i64, password: usize, read_only: bool },
    /// The answer to the request of that place in the burst (or to the one after it).
    Answer { place: usize, xid: i32, zxid: i64, code: i32, fields: Vec<Field> },
    /// A watch has fired.
    Event { zxid: i64, kind: i32, state: i32, path: String },
    /// The connection has ended.
    End,
    /// Nothing, for too long.
    Silence,
}

/// The servers of one kind, and the sessions with them.
#[derive(Debug)]
pub(crate) struct System {
    addresses: Vec<String>,
    sessions: Vec<Session>,
}

#[derive(Debug, Default)]
struct Session {
    connection: Option<BufReader<TcpStream>>,
    /// 0: there is none.
    id: i64,
    password: Vec<u8>,
    /// The zxids of the answers so far.
    seen: Vec<i64>,
    /// What was heard in this step.
    heard: Vec<Heard>,
    /// The requests of this step whose answers have not come, and the place of the first.
    waiting: Vec<(i32, Op)>,
    answered: usize,
    /// What was asked ends the connection.
    ending: bool,
    patience: Duration,
}

impl System {
    /// Its sessions wait that long for an answer.
    pub(crate) fn new(addresses: Vec<String>, sessions: usize, patience: Duration) -> System {
        let sessions = (0..sessions).map(|_| Session { patience, ..Session::default() }).collect();
        System { addresses, sessions }
    }

    /// Sends what the step asks, opening a session first if there is none.
    pub(crate) fn begin(&mut self, step: &Step, home: &str) {
        let address = &self.addresses[step.session % self.addresses.len()];
        let session = &mut self.sessions[step.session];
        match &step.action {
            Action::Reconnect { keep, right, read_only } => {
                let old = session.connection.take().filter(|_| *keep);
                session.connect(address, *right, *read_only);
                if let Some(old) = old {
                    // It is the server that ends it.
                    let new = session.connection.replace(old);
                    while session.hear() {}
                    session.connection = new;
                }
            }
            Action::Requests(ops) => {
                if session.connection.is_none() {
                    session.connect(address, true, true);
                }
                session.ask(ops, home);
            }
        }
    }

    /// Waits for the answers, and for what all sessions are told meanwhile.
    pub(crate) fn finish(&mut self, home: &str) -> Vec<Vec<Heard>> {
        for session in &mut self.sessions {
            while !session.waiting.is_empty() && session.hear() {}
            session.waiting.clear();
        }
        // On several servers, what is committed on one may still be on its way to another: a write
        // is answered after all that were committed before it, even if it is refused. (ZooKeeper's
        // `sync` sometimes comes too early.)
        let path = String::from("~");
        let several = self.addresses.len() > 1;
        for (place, session) in self.sessions.iter_mut().enumerate() {
            let mut barriers = vec![Op::GetChildren2 { path: path.clone(), watch: false }];
            if several {
                barriers.insert(0, Op::Delete { path: "/".into(), version: -1 });
            }
            if place == 0 {
                // What no answer has shown is not left behind unseen.
                barriers.push(Op::GetAllChildrenNumber { path: path.clone() });
            }
            session.answered = BARRIER_PLACE;
            if session.ending {
                // The server may or may not read what is sent now.
                while session.hear() {}
            }
            if session.connection.is_some() {
                let requests = barriers.into_iter().map(|op| (BARRIER_XID, op)).collect();
                session.send(requests, home, 0);
            }
        }
        self.sessions.iter_mut().map(Session::rest).collect()
    }
}

impl Session {
    fn connect(&mut self, address: &str, right: bool, read_only: bool) {
        let Ok(mut socket) = TcpStream::connect(address) else {
            return self.heard.push(Heard::End);
        };
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(self.patience)).unwrap();
        let mut password = self.password.clone();
        password.resize(16, 0);
        password[3] ^= u8::from(!right);
        let seen = self.seen.last().copied().unwrap_or(0);
        let hello = Out::default().int(0).long(seen).int(SESSION_TIMEOUT_MS).long(self.id);
        let hello = hello.buffer(Some(&password));
        let hello = if read_only { hello.bool(false) } else { hello };
        socket.write_all(&hello.framed()).unwrap();
        let mut socket = BufReader::new(socket);
        let body = match frame(&mut socket) {
            Ok(body) => body,
            Err(end) => return self.heard.push(end),
        };
        let mut input = In(&body);
        let _version = input.int();
        let timeout_ms = input.int().unwrap_or(-1);
        let session = input.long().unwrap_or(-1);
        let password = input.buffer().flatten().unwrap_or_default().to_vec();
        let read_only = input.bool().unwrap_or(false);
        let length = password.len();
        let bytes = body.len();
        self.ending = false;
        self.heard.push(Heard::Greeting {
            bytes,
            timeout_ms,
            session,
            password: length,
            read_only,
        });
        if !matches!(session, -1 | 0) {
            (self.id, self.password) = (session, password);
            self.connection = Some(socket);
        } else if right {
            self.id = 0;
        }
    }

    fn ask(&mut self, ops: &[Op], home: &str) {
        let back = match ops {
            [Op::SetWatches { back, .. }] => *back,
            _ => 0,
        };
        let since = self.seen.iter().rev().nth(back).copied().unwrap_or(0);
        self.answered = 0;
        let numbered = |(op, place): (&Op, i32)| (op.fixed_xid().unwrap_or(place), op.clone());
        self.send(ops.iter().zip(1..).map(numbered).collect(), home, since);
    }

    fn send(&mut self, requests: Vec<(i32, Op)>, home: &str, since: i64) {
        let Some(connection) = &mut self.connection else { return };
        let frames = requests.iter().map(|(xid, op)| {
            op.write(Out::default().int(*xid).int(op.opcode()), home, since).framed()
        });
        let frames: Vec<u8> = frames.flatten().collect();
        self.waiting = requests;
        // If the server has closed the connection, reading tells.
        connection.get_mut().write_all(&frames).ok();
    }

    /// Hears one more thing, unless the connection has ended.
    fn hear(&mut self) -> bool {
        let Some(connection) = &mut self.connection else { return false };
        let body = match frame(connection) {
            Ok(body) => body,
            Err(end) => {
                self.connection = None;
                self.heard.push(end);
                return false;
            }
        };
        let heard = self.understand(&body).unwrap_or_else(|| Heard::Answer {
            place: self.answered,
            xid: 0,
            zxid: 0,
            code: 0,
            fields: vec![Field::Is("not understood", format!("{body:?}"))],
        });
        self.heard.push(heard);
        true
    }

    fn understand(&mut self, body: &[u8]) -> Option<Heard> {
        let mut input = In(body);
        let (xid, zxid, code) = (input.int()?, input.long()?, input.int()?);
        if xid == -1 {
            let (kind, state, path) = (input.int()?, input.int()?, input.text()?);
            return Some(Heard::Event { zxid, kind, state, path });
        }
        if self.waiting.is_empty() {
            return None;
        }
        let (expected, op) = self.waiting.remove(0);
        let place = self.answered;
        self.answered += 1;
        if expected != xid {
            return None;
        }
        let fields = if code == 0 || !input.is_empty() { op.read(input.0)? } else { Vec::new() };
        if xid != BARRIER_XID && zxid > 0 && !matches!(op, Op::Unknown(_)) {
            self.seen.push(zxid);
        }
        if matches!(op, Op::CloseSession) {
            self.id = 0;
        }
        let is_last = matches!(op, Op::CloseSession | Op::Unknown(_)) || code == AUTH_FAILED;
        self.ending |= is_last;
        Some(Heard::Answer { place, xid, zxid, code, fields })
    }

    /// Everything that was heard in this step.
    fn rest(&mut self) -> Vec<Heard> {
        while !self.waiting.is_empty() && self.hear() {}
        self.waiting.clear();
        std::mem::take(&mut self.heard)
    }
}

/// The next frame, or why there is none.
fn frame(socket: &mut impl Read) -> Result<Vec<u8>, Heard> {
    let mut read = |bytes: &mut [u8]| {
        socket.read_exact(bytes).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Heard::Silence,
            _ => Heard::End,
        })
    };
    let mut length = [0; 4];
    read(&mut length)?;
    let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    read(&mut body)?;
    Ok(body)
}
