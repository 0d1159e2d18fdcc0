//! What a server needs to be told before it starts.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use conclave_proto::ServerId;
use serde::Deserialize;

use crate::net::{ClientAuth, Files};
use crate::wire::Word;

/// One server's settings: what the configuration comes down to once it is checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which server this is.
    pub id: ServerId,
    /// The name of its ensemble.
    pub cluster: String,
    /// Where the tree, the epochs and snapshots are kept.
    pub data_dir: PathBuf,
    /// Where the log is kept; `None`: in `data_dir`.
    pub log_dir: Option<PathBuf>,
    /// Where clients connect.
    pub client: SocketAddr,
    /// Where clients of ZooKeeper's protocol connect; `None`: nowhere.
    pub zookeeper: Option<SocketAddr>,
    /// Where clients of ZooKeeper's protocol connect within TLS; `None`: nowhere.
    pub zookeeper_secure: Option<SocketAddr>,
    /// Where the other servers connect; not opened in an ensemble of one.
    pub peer: SocketAddr,
    /// Where administration is served; `None`: nowhere.
    pub admin: Option<SocketAddr>,
    /// Every member of the ensemble, this server included.
    pub members: Vec<Member>,
    /// Whoever has this identity of the scheme `digest`, `user:hash`, may do everything.
    pub super_digest: Option<Hidden>,
    /// Whose passwords the server knows.
    pub users: Vec<User>,
    /// Where who did what is written down; `None`: nowhere.
    pub audit: Option<AuditSettings>,
    /// The longest that a write waits for its turn before it is refused, in ms; `None`: as long
    /// as it takes.
    pub throttle_ms: Option<u32>,
    /// The bytes that may wait to be sent to all clients, after which the one with most of them is
    /// dropped.
    pub outbox_bytes: usize,
    /// Whether clients that are content with it may read while no quorum can be reached.
    pub read_only: bool,
    /// Whether new sessions are known to their server alone until they write.
    pub local_sessions: bool,
    /// The four-letter words that are answered on the port of ZooKeeper's protocol.
    pub words: BTreeSet<Word>,
    /// How time passes.
    pub timing: Timing,
    /// How the disk is used.
    pub storage: StorageSettings,
    /// The server has run before and has lost what it had.
    pub lost_data: bool,
    /// Where the process id is written once the ports and the data are this server's.
    pub pid_file: Option<PathBuf>,
    /// What is served in plaintext although other machines can reach it, for people.
    pub exposed: Vec<String>,
    /// How clients and servers make sure of each other; `None`: everything is plaintext.
    pub tls: Option<TlsSettings>,
}

/// Somebody with a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name, which is the id of the identity.
    pub name: String,
    /// The password's slow, salted hash, as [`super::hash_password`] makes it.
    pub hash: Hidden,
    /// Whether this user may do everything.
    pub superuser: bool,
}

/// What must not be shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Hidden(String);

impl Hidden {
    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Hidden {
    fn from(text: String) -> Hidden {
        Hidden(text)
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where who did what is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditSettings {
    /// The newest file.
    pub file: PathBuf,
    /// The most that it and the older ones take, in bytes.
    pub max_bytes: u64,
}

/// A member of the ensemble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: ServerId,
    /// Where the other servers reach it, `host:port`; resolved each time it is dialled.
    pub peer: String,
    /// Whether it follows without a vote.
    pub observer: bool,
    /// Where ZooKeeper's clients reach it, `host:port`, if that is known.
    pub zookeeper: Option<String>,
}

/// How clients and servers make sure of each other.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// What clients are shown, and are checked by.
    pub clients: Files,
    /// Whether clients show certificates.
    pub client_auth: ClientAuth,
    /// What the other servers are shown, and are checked by; `None`: the server is alone.
    pub members: Option<Files>,
}

/// How time passes for a server.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The length of a tick.
    pub tick: Duration,
    /// Ticks between two heartbeats of a leader.
    pub heartbeat_ticks: u32,
    /// Ticks of silence after which a leader or a follower is given up.
    pub silence_ticks: u32,
    /// The bounds of a session's timeout, in ms.
    pub session_timeout_ms: (u32, u32),
}

/// How the disk is used.
#[derive(Clone, Copy, Debug)]
pub struct StorageSettings {
    /// Whether the log has a thread of its own, or is always written and synced inside the loop.
    pub log_thread: bool,
    /// The longest time between two checkpoints while there are writes.
    pub checkpoint_every: Duration,
    /// The bytes of changes, in memory or in the log, after which a checkpoint is made earlier.
    pub checkpoint_bytes: u64,
    /// Writes are refused while less space than this is free.
    pub reserve_bytes: u64,
    /// The most the tree may grow to on disk.
    pub map_bytes: usize,
}
