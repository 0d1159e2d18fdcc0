//! Four-letter words: what ZooKeeper's administrators type into a connection instead of a
//! handshake. The answers are made to be read by the programs that read ZooKeeper's.

use std::fmt::{Display, Write};
use std::net::SocketAddr;

use conclave_proto::{SessionId, ZPath};

use crate::replica::{Role, Status};

/// The bytes of a word.
pub const WORD_BYTES: usize = 4;

/// The version of ZooKeeper whose protocol is spoken, and our own.
const VERSION: &str =
    concat!("3.9.5-conclave-", env!("CARGO_PKG_VERSION"), ", built on 2026-01-01 00:00 UTC");

/// A four-letter word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Word(&'static str);

/// Every word that there is.
const WORDS: [&str; 18] = [
    "conf", "cons", "crst", "dirs", "dump", "envi", "gtmk", "hash", "isro", "mntr", "ruok", "srst",
    "srvr", "stat", "stmk", "wchc", "wchp", "wchs",
];

impl Word {
    /// The word that is written like this.
    pub fn parse(text: &str) -> Option<Word> {
        WORDS.into_iter().find(|word| *word == text).map(Word)
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Word> {
        WORDS.into_iter().map(Word)
    }

    /// How it is written.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

/// The word with which a new connection begins, if it is one. No length of a frame looks like that.
pub(super) fn in_front(received: &[u8]) -> Option<Word> {
    Word::parse(std::str::from_utf8(received.get(..WORD_BYTES)?).ok()?)
}

/// What there is to know in order to answer.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The replica's own view.
    pub status: Status,
    /// Whether the server is the whole ensemble.
    pub alone: bool,
    /// Lines of the configuration, by ZooKeeper's names.
    pub settings: Vec<(&'static str, String)>,
    /// Since when the server runs, in ms.
    pub uptime_ms: u64,
    /// What was received and sent by all of ZooKeeper's clients.
    pub traffic: Traffic,
    /// The requests without an answer.
    pub outstanding: usize,
    /// The files that the process has open.
    pub open_files: u64,
    /// The files that it may open.
    pub max_files: u64,
    /// The bytes of the tree's file.
    pub data_bytes: u64,
    /// Each connection of the port, if the word asks for them.
    pub connections: Vec<ConnectionFacts>,
    /// The sessions of the ensemble and their ephemeral nodes, if the word asks for them.
    pub sessions: Vec<(SessionId, u32, Vec<ZPath>)>,
}

/// What was received and sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages from clients.
    pub received: u64,
    /// Messages to clients.
    pub sent: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// How long they took together, in µs.
    pub took_us: u64,
    /// How long the fastest took, in µs.
    pub min_us: u64,
    /// How long the slowest took, in µs.
    pub max_us: u64,
}

impl Traffic {
    /// A request was answered.
    pub fn answered(&mut self, took_us: u64) {
        self.min_us = if self.answered == 0 { took_us } else { self.min_us.min(took_us) };
        self.max_us = self.max_us.max(took_us);
        self.answered += 1;
        self.took_us += took_us;
    }

    /// Minimum, average and maximum, in ms.
    fn latency(&self) -> (u64, f64, u64) {
        #[expect(clippy::cast_precision_loss, reason = "an average needs no 52 bits")]
        let average = self.took_us as f64 / self.answered.max(1) as f64 / 1000.0;
        (self.min_us / 1000, average, self.max_us / 1000)
    }
}

/// What there is to know of one connection.
#[derive(Clone, Debug)]
pub struct ConnectionFacts {
    /// Where the client is.
    pub address: SocketAddr,
    /// Its session and the session's timeout in ms, if it has one.
    pub session: Option<(SessionId, u32)>,
    /// Its requests without an answer.
    pub queued: usize,
    /// What was received and sent.
    pub traffic: Traffic,
    /// The paths that it watches, if the word asks for them.
    pub watched: Vec<ZPath>,
}

/// The answer to a word that is not allowed.
pub fn refusal(word: Word) -> String {
    format!("{} is not executed because it is not in the whitelist.\n", word.as_str())
}

/// The answer to a word.
pub fn answer(word: Word, facts: &Facts) -> String {
    let mut out = String::new();
    match word.as_str() {
        "ruok" => return "imok".into(),
        "envi" => environment(&mut out),
        "gtmk" | "stmk" => return "0".into(),
        _ if facts.status.role == Role::Looking && !facts.status.read_only => {
            return "This ZooKeeper instance is not currently serving requests\n".into();
        }
        "isro" if facts.status.read_only => return "ro".into(),
        "isro" => return "rw".into(),
        "srst" => return "Server stats reset.\n".into(),
        "crst" => return "Connection stats reset.\n".into(),
        "srvr" => server(&mut out, facts, false),
        "stat" => server(&mut out, facts, true),
        "mntr" => monitor(&mut out, facts),
        "conf" => {
            for (key, value) in &facts.settings {
                line(&mut out, format_args!("{key}={value}"));
            }
        }
        "cons" => {
            facts.connections.iter().for_each(|connection| details(&mut out, connection));
            out.push('\n');
        }
        "dirs" => {
            line(&mut out, format_args!("datadir_size: {}", facts.data_bytes));
        }
        "hash" => {
            let Status { applied, digest, .. } = &facts.status;
            line(&mut out, format_args!("{:x}:{digest:x}", applied.bits()));
        }
        "dump" => dump(&mut out, facts),
        "wchs" => watch_summary(&mut out, facts),
        "wchc" => watches_by_session(&mut out, facts),
        "wchp" => watches_by_path(&mut out, facts),
        _ => unreachable!("these are all words"),
    }
    out
}

fn line(out: &mut String, text: impl Display) {
    writeln!(out, "{text}").expect("a string takes everything");
}

fn mode(facts: &Facts) -> &'static str {
    match facts.status.role {
        _ if facts.alone => "standalone",
        _ if facts.status.read_only => "read-only",
        Role::Leading => "leader",
        Role::Observing => "observer",
        Role::Following | Role::Looking => "follower",
    }
}

fn environment(out: &mut String) {
    line(out, "Environment:");
    line(out, format_args!("zookeeper.version={VERSION}"));
    line(out, "host.name=localhost");
    line(out, format_args!("os.name={}", std::env::consts::OS));
    line(out, format_args!("os.arch={}", std::env::consts::ARCH));
}

fn server(out: &mut String, facts: &Facts, with_clients: bool) {
    line(out, format_args!("Zookeeper version: {VERSION}"));
    if with_clients {
        line(out, "Clients:");
        for connection in &facts.connections {
            brief(out, connection);
            line(out, ")");
        }
        out.push('\n');
    }
    let (min, average, max) = facts.traffic.latency();
    line(out, format_args!("Latency min/avg/max: {min}/{average:.4}/{max}"));
    line(out, format_args!("Received: {}", facts.traffic.received));
    line(out, format_args!("Sent: {}", facts.traffic.sent));
    line(out, format_args!("Connections: {}", facts.status.connections));
    line(out, format_args!("Outstanding: {}", facts.outstanding));
    line(out, format_args!("Zxid: 0x{:x}", facts.status.applied.bits()));
    line(out, format_args!("Mode: {}", mode(facts)));
    line(out, format_args!("Node count: {}", facts.status.nodes));
}

fn brief(out: &mut String, connection: &ConnectionFacts) {
    let ConnectionFacts { address, session, queued, traffic, .. } = connection;
    let Traffic { received, sent, .. } = traffic;
    let open = u8::from(session.is_some());
    write!(out, " /{address}[{open}](queued={queued},recved={received},sent={sent}")
        .expect("a string takes everything");
}

fn details(out: &mut String, connection: &ConnectionFacts) {
    brief(out, connection);
    let (min, average, max) = connection.traffic.latency();
    if let Some((session, timeout_ms)) = connection.session {
        write!(out, ",sid=0x{:x},to={timeout_ms}", session.0).expect("a string takes everything");
    }
    line(out, format_args!(",minlat={min},avglat={average:.0},maxlat={max})"));
}

fn monitor(out: &mut String, facts: &Facts) {
    let Facts { status, traffic, .. } = facts;
    let (min, average, max) = traffic.latency();
    let mut put = |key: &str, value: &dyn Display| line(out, format_args!("zk_{key}\t{value}"));
    put("version", &VERSION);
    put("server_state", &mode(facts));
    put("avg_latency", &format_args!("{average:.4}"));
    put("max_latency", &max);
    put("min_latency", &min);
    put("packets_received", &traffic.received);
    put("packets_sent", &traffic.sent);
    put("num_alive_connections", &status.connections);
    put("outstanding_requests", &facts.outstanding);
    put("znode_count", &status.nodes);
    put("watch_count", &status.watches);
    put("ephemerals_count", &status.ephemerals);
    put("approximate_data_size", &status.bytes);
    put("open_file_descriptor_count", &facts.open_files);
    put("max_file_descriptor_count", &facts.max_files);
    put("global_sessions", &status.sessions);
    put("local_sessions", &status.unopened_sessions);
    put("uptime", &facts.uptime_ms);
    if status.role == Role::Leading && !facts.alone {
        let synced = status.followers.iter().filter(|follower| follower.in_sync).count();
        put("learners", &status.followers.len());
        put("synced_followers", &synced);
    }
}

fn dump(out: &mut String, facts: &Facts) {
    line(out, "SessionTracker dump:");
    for (session, timeout_ms, _) in &facts.sessions {
        line(out, format_args!("0x{:x}\t{timeout_ms}ms", session.0));
    }
    line(out, "ephemeral nodes dump:");
    let owners = facts.sessions.iter().filter(|(_, _, paths)| !paths.is_empty());
    line(out, format_args!("Sessions with Ephemerals ({}):", owners.clone().count()));
    for (session, _, paths) in owners {
        line(out, format_args!("0x{:x}:", session.0));
        for path in paths {
            line(out, format_args!("\t{path}"));
        }
    }
}

/// Who watches what.
fn watched(facts: &Facts) -> impl Iterator<Item = (SessionId, &[ZPath])> {
    facts.connections.iter().filter_map(|connection| {
        let (session, _) = connection.session?;
        (!connection.watched.is_empty()).then_some((session, &connection.watched[..]))
    })
}

fn watch_summary(out: &mut String, facts: &Facts) {
    let paths = by_path(facts).len();
    let watchers = watched(facts).count();
    let total: usize = watched(facts).map(|(_, paths)| paths.len()).sum();
    line(out, format_args!("{watchers} connections watching {paths} paths"));
    line(out, format_args!("Total watches:{total}"));
}

fn watches_by_session(out: &mut String, facts: &Facts) {
    for (session, paths) in watched(facts) {
        line(out, format_args!("0x{:x}", session.0));
        for path in paths {
            line(out, format_args!("\t{path}"));
        }
    }
}

fn watches_by_path(out: &mut String, facts: &Facts) {
    for (path, sessions) in by_path(facts) {
        line(out, path);
        for session in sessions {
            line(out, format_args!("\t0x{:x}", session.0));
        }
    }
}

fn by_path(facts: &Facts) -> std::collections::BTreeMap<&ZPath, Vec<SessionId>> {
    let mut by_path = std::collections::BTreeMap::<_, Vec<_>>::new();
    for (session, paths) in watched(facts) {
        for path in paths {
            by_path.entry(path).or_default().push(session);
        }
    }
    by_path
}
