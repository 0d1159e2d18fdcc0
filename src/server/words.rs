//! Four-letter words: what is known of the server, put together when somebody asks.

use std::rc::Rc;

use conclave_proto::{SessionId, ZPath};

use crate::tree::{Nodes, SessionRecord};
use crate::wire::Word;
use crate::wire::words::{self, Facts, Traffic};

use super::clients::Clients;
use super::connection::Client;
use super::drive::Drive;
use super::settings::Settings;

/// What of the settings the words need.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    alone: bool,
    /// Lines of the configuration, by ZooKeeper's names.
    settings: Vec<(&'static str, String)>,
    max_files: u64,
}

impl Shown {
    pub(super) fn new(settings: &Settings, files: usize) -> Shown {
        let (min, max) = settings.timing.session_timeout_ms;
        let port = settings.zookeeper.map_or(0, |address| address.port());
        let address = settings.zookeeper.map(|address| address.ip().to_string());
        let log_dir = settings.log_dir.clone().unwrap_or_else(|| settings.data_dir.join("log"));
        let secure =
            settings.zookeeper_secure.map_or("-1".into(), |address| address.port().to_string());
        let lines = vec![
            ("clientPort", port.to_string()),
            ("clientPortAddress", address.unwrap_or_default()),
            ("secureClientPort", secure),
            ("dataDir", settings.data_dir.display().to_string()),
            ("dataLogDir", log_dir.display().to_string()),
            ("tickTime", settings.timing.tick.as_millis().to_string()),
            ("minSessionTimeout", min.to_string()),
            ("maxSessionTimeout", max.to_string()),
            ("serverId", settings.id.to_string()),
        ];
        let max_files = u64::try_from(files).unwrap_or(u64::MAX);
        Shown { alone: settings.members.len() == 1, settings: lines, max_files }
    }
}

/// Answers a word with which a connection began: these are the only words on it.
pub(super) fn answer(clients: &Rc<Clients>, client: &Rc<Client>, word: Word) {
    if clients.words.contains(&word) {
        clients.inbox.ask_word(client.id, word);
    } else {
        clients.say(client, &words::refusal(word));
    }
}

impl Drive {
    /// Answers the word that has waited for the longest time. There is one answer in a turn: it may be a
    /// long one, and what waits to be sent is bounded between two.
    pub(super) fn answer_word(&mut self) {
        if let Some((conn, word)) = self.state.words.pop_front()
            && let Some(client) = self.clients.get(conn)
        {
            self.clients.say(&client, &self.word(word));
        }
        if !self.state.words.is_empty() {
            self.inbox.bell().notify_one();
        }
    }

    fn word(&self, word: Word) -> String {
        let name = word.as_str();
        let lists_watches = matches!(name, "wchs" | "wchc" | "wchp");
        let lists_connections = lists_watches || matches!(name, "cons" | "stat");
        let facts = Facts {
            status: self.replica.status(),
            alone: self.shown.alone,
            settings: self.shown.settings.clone(),
            uptime_ms: self.clock.millis(),
            traffic: self.clients.traffic.get(),
            outstanding: self.clients.outstanding(),
            open_files: if name == "mntr" { open_files() } else { 0 },
            max_files: self.shown.max_files,
            data_bytes: self.replica.nodes().map_usage().0,
            connections: match lists_connections {
                true => self.clients.facts(lists_watches),
                false => Vec::new(),
            },
            sessions: if name == "dump" { self.sessions() } else { Vec::new() },
        };
        if name == "srst" {
            self.clients.traffic.set(Traffic::default());
        } else if name == "crst" {
            self.clients.reset_traffic();
        }
        words::answer(word, &facts)
    }

    fn sessions(&self) -> Vec<(SessionId, u32, Vec<ZPath>)> {
        let nodes = self.replica.nodes();
        let one = |(id, record): (SessionId, &SessionRecord)| {
            (id, record.timeout_ms, nodes.ephemerals(id))
        };
        nodes.sessions().map(one).collect()
    }
}

/// How many files the process has open; 0 where the system does not say.
fn open_files() -> u64 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |open| open.count() as u64)
}
