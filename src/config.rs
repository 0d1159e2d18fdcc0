//! The configuration file and the flags that override it: docs/OPERATING.md explains each key.

mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use conclave_proto::ServerId;
use serde::Deserialize;

use crate::limits::{self, IDENTITY_BYTES, SESSION_TIMEOUT_MAX_MS, SESSION_TIMEOUT_MIN_MS, USERS};
use crate::net::{ClientAuth, Files};
use crate::server::{
    AuditSettings, Hidden, Member, Settings, StorageSettings, Timing, TlsSettings, User,
    is_password_hash,
};
use crate::wire::Word;

use text::{address, merge, parse, parse_error, server_id};

/// A smaller map for the tree would not hold what a checkpoint and a snapshot need beside it.
const SMALLEST_MAP_GB: u32 = 4;
/// Half of the address space that a process has on today's machines.
const LARGEST_MAP_GB: u32 = 65_536;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, has an unknown key, or a value of the wrong type.
    #[error("the configuration in {origin} cannot be used: {problem}")]
    Parse {
        /// The file, or the flag.
        origin: String,
        /// Where and why. Values are not shown: they might be passwords.
        problem: String,
    },
    /// A value makes no sense, alone or with others.
    #[error("configuration key `{key}`: {problem}; {remedy}")]
    Invalid {
        /// Which key.
        key: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
}

/// The configuration of one server, as the file has it. Every key has a default except `data_dir`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which member this server is, 1 to 254.
    pub id: u8,
    /// The name of the ensemble: servers and data directories of another one are refused.
    pub cluster: String,
    /// Where the data is kept.
    pub data_dir: Option<PathBuf>,
    /// Where the log is kept, if not in `data_dir`: on a device of its own, say.
    pub log_dir: Option<PathBuf>,
    /// Where clients connect, `IP:PORT`.
    pub client: SocketAddr,
    /// Where clients of ZooKeeper's protocol connect, `IP:PORT`.
    pub zookeeper: SocketAddr,
    /// Whether ZooKeeper's protocol is served at all.
    pub zookeeper_enabled: bool,
    /// Where clients of ZooKeeper's protocol connect within TLS, `IP:PORT`; none: nowhere.
    pub zookeeper_secure: Option<SocketAddr>,
    /// Where the other servers connect, `IP:PORT`.
    pub peer: SocketAddr,
    /// Where administration is served, `IP:PORT`.
    pub admin: SocketAddr,
    /// Whether administration is served at all.
    pub admin_enabled: bool,
    /// Accept that clients and servers talk in plaintext over a network.
    pub insecure: bool,
    /// Talk within TLS; none: in plaintext.
    pub tls: Option<TlsConfig>,
    /// The members of the ensemble; none: this server is alone.
    pub members: Vec<MemberConfig>,
    /// Whoever has this identity of the scheme `digest`, `user:hash`, may do everything.
    pub super_digest: Option<Hidden>,
    /// Those who have passwords.
    pub users: Vec<UserConfig>,
    /// The audit log.
    pub audit: AuditConfig,
    /// The longest that a write waits for its turn before it is refused, in ms; 0: as long as it
    /// takes.
    pub throttle_ms: u32,
    /// The MiB that may wait to be sent to all clients, after which the one with most of them is dropped.
    pub outbox_mb: u32,
    /// Whether clients that are content with it may read while no quorum can be reached.
    pub read_only: bool,
    /// The four-letter words that are answered on the port of ZooKeeper's protocol; `*`: all.
    pub words: Vec<String>,
    /// How time passes.
    pub timing: TimingConfig,
    /// The bounds of session timeouts.
    pub sessions: SessionsConfig,
    /// How the disk is used.
    pub storage: StorageConfig,
}

/// One member of the ensemble.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct MemberConfig {
    /// Its id, 1 to 254.
    pub id: u8,
    /// Where the other servers reach it, `host:port`.
    pub peer: String,
    /// Whether it follows without a vote.
    #[serde(default)]
    pub observer: bool,
    /// Where ZooKeeper's clients reach it, `host:port`: they are told in `/zookeeper/config`.
    #[serde(default)]
    pub zookeeper: Option<String>,
}

/// Somebody with a password.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct UserConfig {
    /// The name.
    pub name: String,
    /// The password's hash, as `conclave password` makes it.
    pub hash: Hidden,
    /// Whether this user may do everything.
    #[serde(default)]
    pub superuser: bool,
}

/// The audit log.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// Whether there is one.
    pub enabled: bool,
    /// The newest file, if not `audit.log` in `data_dir`; `audit.acl.log` and older ones are beside it.
    pub file: Option<PathBuf>,
    /// The most that all of them take, in MiB.
    pub max_mb: u32,
}

/// How clients and servers make sure of each other. All files are PEM.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// The certificate, with those between it and its CA after it.
    pub cert: Option<PathBuf>,
    /// The private key of the certificate.
    pub key: Option<PathBuf>,
    /// The authorities that must have signed the certificates of clients and servers.
    pub ca: Option<PathBuf>,
    /// Whether clients show certificates.
    pub client_auth: ClientAuth,
    /// What the servers show each other, if it is not the same.
    pub members: Option<MemberTlsConfig>,
}

/// What the servers show each other.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberTlsConfig {
    /// The certificate.
    pub cert: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
    /// The authorities that must have signed the certificates of the servers.
    pub ca: PathBuf,
}

/// How time passes, in ms. The defaults suit a LAN.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimingConfig {
    /// The length of a tick.
    pub tick_ms: u32,
    /// The time between two heartbeats of a leader.
    pub heartbeat_ms: u32,
    /// The silence after which a leader or a follower is given up.
    pub silence_ms: u32,
}

/// The bounds of session timeouts, in ms.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionsConfig {
    /// A shorter timeout is raised to this.
    pub timeout_min_ms: u32,
    /// A longer timeout is lowered to this.
    pub timeout_max_ms: u32,
    /// Whether a new session is known to its server alone until it writes.
    pub local: bool,
}

/// How the disk is used.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// Whether the log is written by a thread of its own (the default) unless little is going on
    /// and the disk is quick, or always inside the loop: that saves a quarter of the CPU on a small
    /// machine, but reads then wait for the disk too.
    pub log_thread: bool,
    /// The longest time between two checkpoints while there are writes, in ms.
    pub checkpoint_ms: u32,
    /// The MiB of changes after which a checkpoint is made earlier.
    pub checkpoint_mb: u32,
    /// Writes are refused while less than this many MiB are free.
    pub reserve_mb: u32,
    /// The most the tree may grow to on disk, in GiB: address space, not disk or memory.
    pub map_gb: u32,
}

impl Default for Config {
    fn default() -> Config {
        let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        Config {
            id: 1,
            cluster: "conclave".into(),
            data_dir: None,
            log_dir: None,
            client: local(7400),
            zookeeper: local(2181),
            zookeeper_enabled: true,
            zookeeper_secure: None,
            peer: local(7401),
            admin: local(7402),
            admin_enabled: true,
            insecure: false,
            tls: None,
            members: Vec::new(),
            super_digest: None,
            users: Vec::new(),
            audit: AuditConfig::default(),
            throttle_ms: 0,
            outbox_mb: 1024,
            read_only: false,
            words: vec!["srvr".into(), "isro".into()],
            timing: TimingConfig::default(),
            sessions: SessionsConfig::default(),
            storage: StorageConfig::default(),
        }
    }
}

impl Default for AuditConfig {
    fn default() -> AuditConfig {
        AuditConfig { enabled: true, file: None, max_mb: 64 }
    }
}

impl Default for TimingConfig {
    fn default() -> TimingConfig {
        TimingConfig { tick_ms: 10, heartbeat_ms: 50, silence_ms: 1000 }
    }
}

impl Default for SessionsConfig {
    fn default() -> SessionsConfig {
        SessionsConfig {
            timeout_min_ms: SESSION_TIMEOUT_MIN_MS,
            timeout_max_ms: SESSION_TIMEOUT_MAX_MS,
            local: false,
        }
    }
}

impl Default for StorageConfig {
    fn default() -> StorageConfig {
        StorageConfig {
            log_thread: true,
            checkpoint_ms: 5000,
            checkpoint_mb: 32,
            reserve_mb: 256,
            map_gb: 64,
        }
    }
}

impl Config {
    /// Reads a configuration file, if there is one, and sets single keys over it, each written as
    /// `key=value` or `table.key=value`.
    ///
    /// # Errors
    /// If it cannot be read or understood.
    pub fn read(path: Option<&Path>, overrides: &[String]) -> Result<Config, ConfigError> {
        let Some(path) = path else { return parse("--set", &overrides.join("\n")) };
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let origin = path.display().to_string();
        // For its messages, which name the line.
        let config = parse(&origin, &text)?;
        if overrides.is_empty() {
            return Ok(config);
        }
        let mut table: toml::Table = parse(&origin, &text)?;
        merge(&mut table, parse("--set", &overrides.join("\n"))?);
        table.try_into().map_err(|error| parse_error("--set", None, &error))
    }

    /// Checks every value and works out what follows from them.
    ///
    /// # Errors
    /// The first value that cannot be used, and what to do about it.
    pub fn validate(self) -> Result<Settings, ConfigError> {
        let id = server_id("id", self.id)?;
        self.check_cluster()?;
        let Some(data_dir) = self.data_dir.clone() else {
            let remedy = "say where to keep the data: data_dir = \"/var/lib/conclave\" in the \
                          file, or --data-dir DIR";
            return Err(invalid("data_dir", "is missing", remedy));
        };
        self.check_directories(&data_dir)?;
        self.check_ports()?;
        let members = self.members(id)?;
        let exposed = self.exposed(members.len() > 1)?;
        Ok(Settings {
            id,
            users: self.users()?,
            audit: self.audit(&data_dir)?,
            log_dir: self.log_dir.clone(),
            data_dir,
            client: self.client,
            zookeeper: self.zookeeper_enabled.then_some(self.zookeeper),
            zookeeper_secure: self.zookeeper_secure,
            peer: self.peer,
            admin: self.admin_enabled.then_some(self.admin),
            tls: self.tls(members.len() > 1)?,
            members,
            timing: self.timing()?,
            storage: self.storage()?,
            lost_data: false,
            pid_file: None,
            exposed,
            super_digest: self.super_digest()?,
            throttle_ms: (self.throttle_ms > 0).then_some(self.throttle_ms),
            outbox_bytes: self.outbox_bytes()?,
            read_only: self.read_only,
            local_sessions: self.sessions.local,
            words: self.words()?,
            cluster: self.cluster,
        })
    }

    fn check_directories(&self, data_dir: &Path) -> Result<(), ConfigError> {
        let log_dir = self.log_dir.as_deref();
        for (key, dir) in [("data_dir", Some(data_dir)), ("log_dir", log_dir)] {
            if dir.is_some_and(|dir| dir.as_os_str().is_empty()) {
                return Err(invalid(key, "is empty", "name a directory, or leave the key out"));
            }
        }
        if log_dir == Some(data_dir) {
            let remedy = "name another directory, or leave it out: the log is then in `log` in \
                          `data_dir`";
            return Err(invalid("log_dir", "is the same as `data_dir`", remedy));
        }
        Ok(())
    }

    /// No two of this server's own addresses may be one.
    fn check_ports(&self) -> Result<(), ConfigError> {
        let addresses = [
            Some(("client", self.client)),
            self.zookeeper_enabled.then_some(("zookeeper", self.zookeeper)),
            self.zookeeper_secure.map(|address| ("zookeeper_secure", address)),
            (!self.members.is_empty()).then_some(("peer", self.peer)),
            self.admin_enabled.then_some(("admin", self.admin)),
        ];
        let mut seen = BTreeMap::new();
        // With port 0 the system chooses.
        for (key, address) in addresses.into_iter().flatten().filter(|(_, at)| at.port() != 0) {
            if let Some(other) = seen.insert(address, key) {
                let problem = format!("{address} is the address of `{other}`, too");
                return Err(invalid(key, problem, "give each an address of its own"));
            }
        }
        Ok(())
    }

    fn outbox_bytes(&self) -> Result<usize, ConfigError> {
        if self.outbox_mb < limits::LEAST_OUTBOX_MB {
            let why = "is no more than may wait for one client";
            return Err(invalid("outbox_mb", why, "make it 65 or more"));
        }
        Ok(usize::try_from(u64::from(self.outbox_mb) << 20).unwrap_or(usize::MAX))
    }

    fn check_cluster(&self) -> Result<(), ConfigError> {
        let fits = (1..=64).contains(&self.cluster.len());
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if fits && self.cluster.chars().all(plain) {
            return Ok(());
        }
        let problem = format!("{:?} is not a name", self.cluster);
        Err(invalid("cluster", problem, "use 1 to 64 letters, digits, dots, hyphens, underscores"))
    }

    fn members(&self, id: ServerId) -> Result<Vec<Member>, ConfigError> {
        if self.members.is_empty() {
            let peer = self.peer.to_string();
            return Ok(vec![Member { id, peer, observer: false, zookeeper: None }]);
        }
        let mut seen = BTreeSet::new();
        let mut members = Vec::with_capacity(self.members.len());
        for member in &self.members {
            let member_id = server_id("members.id", member.id)?;
            if !seen.insert(member_id) {
                let problem = format!("{member_id} is listed twice");
                return Err(invalid("members.id", problem, "give each server its own id"));
            }
            let peer = address("members.peer", &member.peer)?;
            if let Some(other) = members.iter().find(|other: &&Member| other.peer == peer) {
                let problem =
                    format!("{peer} is the address of server {} and {member_id}", other.id);
                let remedy = "give each server its own address";
                return Err(invalid("members.peer", problem, remedy));
            }
            let zookeeper = member.zookeeper.as_deref();
            let zookeeper = zookeeper.map(|text| address("members.zookeeper", text)).transpose()?;
            members.push(Member { id: member_id, peer, observer: member.observer, zookeeper });
        }
        if !seen.contains(&id) {
            let problem = format!("does not list this server, {id}");
            return Err(invalid("members", problem, "add it, or correct `id`"));
        }
        let voters = members.iter().filter(|member| !member.observer).count();
        if !(1..=7).contains(&voters) {
            let problem = format!("has {voters} servers that vote");
            let remedy = "use 1, 3, 5 or 7, and make the others observers (observer = true)";
            return Err(invalid("members", problem, remedy));
        }
        members.sort_by_key(|member| member.id);
        Ok(members)
    }

    /// What is plaintext and can be reached from other machines.
    fn exposed(&self, has_peers: bool) -> Result<Vec<String>, ConfigError> {
        let is_plain = self.tls.is_none();
        let addresses = [
            is_plain.then_some(("client", self.client)),
            self.zookeeper_enabled.then_some(("zookeeper", self.zookeeper)),
            (is_plain && has_peers).then_some(("peer", self.peer)),
            self.admin_enabled.then_some(("admin", self.admin)),
        ];
        let mut exposed = Vec::new();
        for (key, address) in addresses.into_iter().flatten() {
            if address.ip().is_loopback() {
                continue;
            }
            if !self.insecure {
                let problem = format!("{address} can be reached from other machines, in plaintext");
                let remedy = if is_plain {
                    "give certificates (table `tls`), or set insecure = true (--insecure) if the \
                     network is trusted, or listen on 127.0.0.1"
                } else {
                    "listen on 127.0.0.1, or set insecure = true (--insecure) if the network is \
                     trusted; ZooKeeper's clients find TLS on `zookeeper_secure`"
                };
                return Err(invalid(key, problem, remedy));
            }
            exposed.push(format!("{key} {address}"));
        }
        Ok(exposed)
    }

    fn tls(&self, has_peers: bool) -> Result<Option<TlsSettings>, ConfigError> {
        let Some(tls) = &self.tls else {
            let remedy = "give certificates (table `tls`), or leave it out";
            return match self.zookeeper_secure {
                Some(_) => Err(invalid("zookeeper_secure", "needs TLS", remedy)),
                None => Ok(None),
            };
        };
        let missing = |key| invalid(key, "is missing", "name a file in PEM");
        let cert = tls.cert.clone().ok_or_else(|| missing("tls.cert"))?;
        let key = tls.key.clone().ok_or_else(|| missing("tls.key"))?;
        let clients = Files { cert, key, ca: tls.ca.clone() };
        let client_auth = tls.client_auth;
        if client_auth != ClientAuth::None && clients.ca.is_none() {
            let remedy = "name the file with the authorities that sign the certificates of \
                          clients, or ask for none: tls.client_auth = \"none\"";
            return Err(invalid("tls.ca", "is missing", remedy));
        }
        let members = match &tls.members {
            Some(MemberTlsConfig { cert, key, ca }) => {
                Files { cert: cert.clone(), key: key.clone(), ca: Some(ca.clone()) }
            }
            None => clients.clone(),
        };
        if has_peers && members.ca.is_none() {
            let remedy = "servers always check each other: name the file with the authorities that \
                          sign their certificates, here or in `tls.members`";
            return Err(invalid("tls.ca", "is missing", remedy));
        }
        let members = has_peers.then_some(members);
        Ok(Some(TlsSettings { clients, client_auth, members }))
    }

    fn super_digest(&self) -> Result<Option<Hidden>, ConfigError> {
        let Some(digest) = &self.super_digest else { return Ok(None) };
        let well_formed = digest.reveal().split_once(':').is_some_and(|(user, hash)| {
            // The base64 form of 20 bytes.
            !user.is_empty() && hash.len() == 28 && hash.ends_with('=')
        });
        if well_formed {
            return Ok(Some(digest.clone()));
        }
        // It is not shown: it might be the password itself.
        let problem = "is not user:base64(sha1(user:password))";
        Err(invalid(
            "super_digest",
            problem,
            "hash it: printf user:password | openssl sha1 -binary | base64, and put user: before it",
        ))
    }

    fn users(&self) -> Result<Vec<User>, ConfigError> {
        if self.users.len() > USERS {
            let problem = format!("has more than {USERS} entries");
            return Err(invalid("users", problem, "give services certificates"));
        }
        let mut seen = BTreeSet::new();
        for UserConfig { name, hash, .. } in &self.users {
            if name.is_empty() || name.len() > IDENTITY_BYTES || name.contains(':') {
                let problem = format!("{name:?} is not a name");
                return Err(invalid("users.name", problem, "use a short one without a colon"));
            }
            if !seen.insert(name) {
                let problem = format!("{name:?} is listed twice");
                return Err(invalid("users.name", problem, "remove one of them"));
            }
            if !is_password_hash(hash.reveal()) {
                // It is not shown: it might be the password itself.
                let problem = format!("that of {name:?} is not an argon2id hash");
                return Err(invalid("users.hash", problem, "make one with `conclave password`"));
            }
        }
        let user = |UserConfig { name, hash, superuser }: &UserConfig| User {
            name: name.clone(),
            hash: hash.clone(),
            superuser: *superuser,
        };
        Ok(self.users.iter().map(user).collect())
    }

    fn audit(&self, data_dir: &Path) -> Result<Option<AuditSettings>, ConfigError> {
        let AuditConfig { enabled, file, max_mb } = &self.audit;
        if *max_mb == 0 {
            let remedy = "leave it out to get the default, or set audit.enabled = false";
            return Err(invalid("audit.max_mb", "0 makes no sense", remedy));
        }
        let file = file.clone().unwrap_or_else(|| data_dir.join("audit.log"));
        Ok(enabled.then(|| AuditSettings { file, max_bytes: u64::from(*max_mb) << 20 }))
    }

    fn words(&self) -> Result<BTreeSet<Word>, ConfigError> {
        let mut words = BTreeSet::new();
        for text in &self.words {
            match Word::parse(text) {
                Some(word) => words.extend([word]),
                None if text == "*" => words.extend(Word::all()),
                None => {
                    let problem = format!("{text:?} is not a four-letter word");
                    return Err(invalid(
                        "words",
                        problem,
                        "use words such as srvr, mntr, ruok, or *",
                    ));
                }
            }
        }
        Ok(words)
    }

    fn timing(&self) -> Result<Timing, ConfigError> {
        let TimingConfig { tick_ms, heartbeat_ms, silence_ms } = self.timing;
        if !(1..=1000).contains(&tick_ms) {
            let problem = format!("{tick_ms} ms is no useful tick");
            return Err(invalid("timing.tick_ms", problem, "choose 1 to 1000; 10 is good"));
        }
        if heartbeat_ms < tick_ms {
            let problem = format!("{heartbeat_ms} ms is shorter than a tick, {tick_ms} ms");
            return Err(invalid("timing.heartbeat_ms", problem, "choose a few ticks; 50 is good"));
        }
        if silence_ms < heartbeat_ms.saturating_mul(3) {
            let problem = format!("{silence_ms} ms is not three heartbeats of {heartbeat_ms} ms");
            let remedy = "choose ten heartbeats or more; 1000 is good on a LAN";
            return Err(invalid("timing.silence_ms", problem, remedy));
        }
        let SessionsConfig { timeout_min_ms, timeout_max_ms, local: _ } = self.sessions;
        if timeout_min_ms < 2 * tick_ms || timeout_min_ms > timeout_max_ms {
            let problem =
                format!("{timeout_min_ms} ms is not between two ticks and {timeout_max_ms} ms");
            let remedy = "keep it below sessions.timeout_max_ms and above two ticks";
            return Err(invalid("sessions.timeout_min_ms", problem, remedy));
        }
        Ok(Timing {
            tick: Duration::from_millis(tick_ms.into()),
            heartbeat_ticks: heartbeat_ms.div_ceil(tick_ms),
            silence_ticks: silence_ms.div_ceil(tick_ms),
            session_timeout_ms: (timeout_min_ms, timeout_max_ms),
        })
    }

    fn storage(&self) -> Result<StorageSettings, ConfigError> {
        let StorageConfig { log_thread, checkpoint_ms, checkpoint_mb, reserve_mb, map_gb } =
            self.storage;
        for (key, value) in
            [("storage.checkpoint_ms", checkpoint_ms), ("storage.checkpoint_mb", checkpoint_mb)]
        {
            if value == 0 {
                return Err(invalid(key, "0 makes no sense", "leave it out to get the default"));
            }
        }
        if map_gb < SMALLEST_MAP_GB {
            let why = "leaves no room for what a checkpoint changes";
            return Err(invalid("storage.map_gb", why, "make it 4 or more"));
        }
        if map_gb > LARGEST_MAP_GB {
            let why = "is more than the address space has room for";
            return Err(invalid("storage.map_gb", why, "make it 65536 or less"));
        }
        let map_bytes =
            usize::try_from(u64::from(map_gb) << 30).expect("the largest map has addresses");
        Ok(StorageSettings {
            log_thread,
            checkpoint_every: Duration::from_millis(checkpoint_ms.into()),
            checkpoint_bytes: u64::from(checkpoint_mb) << 20,
            reserve_bytes: u64::from(reserve_mb) << 20,
            map_bytes,
        })
    }
}

fn invalid(key: &str, problem: impl Into<String>, remedy: &'static str) -> ConfigError {
    ConfigError::Invalid { key: key.into(), problem: problem.into(), remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Settings, String> {
        let config = parse("the test", text).and_then(Config::validate);
        config.map_err(|error| error.to_string())
    }

    #[test]
    fn a_directory_is_enough_for_one_server() {
        let settings = settings("data_dir = '/d'").unwrap();
        assert_eq!(settings.id.get(), 1);
        assert_eq!(settings.members.len(), 1);
        assert!(settings.exposed.is_empty());
    }

    #[test]
    fn three_servers_know_each_other() {
        let text = "data_dir = '/d'\nid = 2\n\
                    members = [{id = 3, peer = 'c:7401'}, {id = 1, peer = 'a:7401'},\
                               {id = 2, peer = 'b:7401', observer = true}]";
        let ids: Vec<_> =
            settings(text).unwrap().members.iter().map(|m| (m.id.get(), m.observer)).collect();
        assert_eq!(ids, [(1, false), (2, true), (3, false)]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("", "`data_dir`: is missing"),
            ("data_dir = ''", "`data_dir`: is empty"),
            ("data_dir = '/d'\nlog_dir = ''", "`log_dir`: is empty"),
            ("data_dir = '/d'\nlog_dir = '/d'", "`log_dir`: is the same"),
            (
                "data_dir = '/d'\nadmin = '127.0.0.1:2181'",
                "`admin`: 127.0.0.1:2181 is the address of `zookeeper`",
            ),
            (
                "data_dir = '/d'\nmembers = [{id = 1, peer = 'a:1'}, {id = 2, peer = 'a:1'}]",
                "`members.peer`: a:1 is the address of server 1 and 2",
            ),
            ("data_dir = '/d'\ndata_dri = 1", "unknown field `data_dri`"),
            ("data_dir = '/d'\ntiming.tik = 1", "unknown field `tik`"),
            ("data_dir = '/d'\nid = 255", "`id`: 255 is not a server id"),
            ("data_dir = '/d'\nid = 'x'", "invalid type"),
            ("data_dir = '/d'\ncluster = 'a b'", "`cluster`"),
            ("data_dir = '/d'\nclient = 'nowhere'", "`client`: not an IP address and a port"),
            ("data_dir = '/d'\nclient = '0.0.0.0:1'", "insecure = true"),
            ("data_dir = '/d'\nzookeeper = '0.0.0.0:1'", "`zookeeper`: 0.0.0.0:1 can be reached"),
            ("data_dir = '/d'\nsuper_digest = 'super:secret'", "`super_digest`"),
            ("data_dir = '/d'\nzookeeper_secure = '127.0.0.1:1'", "needs TLS"),
            ("data_dir = '/d'\ntls.key = 'k'\ntls.ca = 'a'", "`tls.cert`"),
            ("data_dir = '/d'\ntls.cert = 'c'\ntls.ca = 'a'", "`tls.key`"),
            ("data_dir = '/d'\ntls.cert = 'c'\ntls.key = 'k'", "`tls.ca`"),
            ("data_dir = '/d'\ntls.client_auth = 'perhaps'", "unknown variant `perhaps`"),
            (
                "data_dir = '/d'\ntls = {cert = 'c', key = 'k', client_auth = 'none'}\n\
                 members = [{id = 1, peer = 'a:1'}, {id = 2, peer = 'b:1'}]",
                "servers always check each other",
            ),
            (
                "data_dir = '/d'\nzookeeper = '0.0.0.0:1'\ntls = {cert = 'c', key = 'k', ca = 'a'}",
                "`zookeeper`: 0.0.0.0:1",
            ),
            ("data_dir = '/d'\nwords = ['who?']", "`words`"),
            ("data_dir = '/d'\ntiming.tick_ms = 0", "`timing.tick_ms`"),
            ("data_dir = '/d'\ntiming.heartbeat_ms = 1", "`timing.heartbeat_ms`"),
            ("data_dir = '/d'\ntiming.silence_ms = 100", "`timing.silence_ms`"),
            ("data_dir = '/d'\nsessions.timeout_min_ms = 1", "`sessions.timeout_min_ms`"),
            ("data_dir = '/d'\nstorage.map_gb = 3", "`storage.map_gb`"),
            ("data_dir = '/d'\nstorage.map_gb = 65537", "`storage.map_gb`: is more than"),
            ("data_dir = '/d'\nmembers = [{id = 2, peer = 'a:1'}]", "does not list this server"),
            ("data_dir = '/d'\nmembers = [{id = 1, peer = 'a'}]", "host:port"),
            ("data_dir = '/d'\nmembers = [{id = 1, peer = ':1'}]", "host:port"),
            (
                "data_dir = '/d'\nmembers = [{id = 1, peer = 'a:1', zookeeper = 'a'}]",
                "`members.zookeeper`",
            ),
            (
                "data_dir = '/d'\nmembers = [{id = 1, peer = 'a:1'}, {id = 1, peer = 'b:1'}]",
                "listed twice",
            ),
            (
                "data_dir = '/d'\nmembers = [{id = 1, peer = 'a:1', observer = true}]",
                "0 servers that vote",
            ),
        ] {
            let error = settings(text).unwrap_err();
            assert!(error.contains(words), "{text:?} gave {error:?}, not {words:?}");
        }
    }

    #[test]
    fn what_cannot_be_parsed_is_named_by_its_line_and_not_shown() {
        for text in [
            "super_digest = \"super:hunter2",
            "super_digest = super:hunter2",
            "super_digest = 'super:hunter2' x",
            "super_digest = ['super:hunter2']",
            "super_digset = 'super:hunter2'",
            "users = 'alice:hunter2, expected or not'",
            "users = ['hunter2']",
            "users = [{name = 'alice', hash = 'hunter2', superusr = true}]",
            "users = [{name = 'alice', hash = {hunter2 = 1}}]",
            "client = 'hunter2'",
            "id = 'hunter2'",
        ] {
            for (text, line) in [(format!("# keys\n{text}\n"), "line 2, `"), (text.into(), "")] {
                let error = parse::<Config>("the test", &text).unwrap_err();
                let shown = format!("{error} {error:?}");
                assert!(!shown.contains("hunter2") && shown.contains(line), "{text:?}: {shown}");
            }
        }
        let error = Config::read(None, &["users='alice:hunter2'".into()]).unwrap_err();
        let problem = "the configuration in --set cannot be used: line 1, `users`: invalid \
                       type: string, expected a sequence";
        assert_eq!(error.to_string(), problem);
    }

    #[test]
    fn a_single_key_is_set_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("conclave.toml");
        std::fs::write(&file, "data_dir = '/d'\n[timing]\ntick_ms = 20\nsilence_ms = 900").unwrap();
        let set = |keys: &[&str]| {
            let keys: Vec<String> = keys.iter().map(|key| (*key).into()).collect();
            Config::read(Some(&file), &keys).map_err(|error| error.to_string())
        };
        let config = set(&["timing.silence_ms=2000", "id=7"]).unwrap();
        assert_eq!((config.id, config.timing.tick_ms, config.timing.silence_ms), (7, 20, 2000));
        assert_eq!(set(&[]).unwrap().timing.silence_ms, 900);
        assert!(set(&["timing.silent=1"]).unwrap_err().contains("unknown field `silent`"));
        let wrong = set(&["timing.tick_ms='hunter2'"]).unwrap_err();
        assert!(
            wrong.ends_with("invalid type: string, expected u32 in `timing.tick_ms`"),
            "{wrong}"
        );
        assert!(Config::read(None, &["nonsense".into()]).is_err());
    }

    #[test]
    fn plaintext_beyond_this_machine_is_said() {
        let text = "data_dir = '/d'\nclient = '0.0.0.0:1'\ninsecure = true";
        assert_eq!(settings(text).unwrap().exposed, ["client 0.0.0.0:1"]);
        let tls = "data_dir = '/d'\nclient = '0.0.0.0:1'\npeer = '0.0.0.0:2'\n\
                   tls = {cert = 'c', key = 'k', ca = 'a'}";
        assert!(settings(tls).unwrap().exposed.is_empty());
    }
}
