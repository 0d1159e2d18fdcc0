//! Real server processes on loopback, to be killed, frozen and started again.

#[path = "../common/certificates.rs"]
mod certificates;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use conclave_client::{Client, Error, Tls};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::ports::Ports;
use certificates::{Authority, Claims};

/// How long anything may take before a test gives up.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// An ensemble of processes; all of them end with this value.
pub(crate) struct Cluster {
    home: TempDir,
    servers: Vec<Server>,
    /// Who has signed the certificates, if everything is within TLS.
    authority: Option<Authority>,
    _ports: Ports,
}

struct Server {
    id: u8,
    client: u16,
    peer: u16,
    admin: u16,
    process: Option<Child>,
}

impl Cluster {
    /// Starts that many servers and waits until one of them leads and all of them serve.
    pub(crate) async fn start(count: u8) -> Cluster {
        Cluster::start_with(count, None).await
    }

    /// Does so with servers that have certificates, and talk within TLS alone.
    pub(crate) async fn start_secure(count: u8) -> Cluster {
        let authority = Authority::new();
        authority.issue("client", Claims::default());
        for id in 1..=count {
            authority.issue_member(&id.to_string(), "test", id);
        }
        Cluster::start_with(count, Some(authority)).await
    }

    async fn start_with(count: u8, authority: Option<Authority>) -> Cluster {
        let ports = Ports::claim();
        let servers = (1..=count)
            .zip((ports.first()..).step_by(3))
            .map(|(id, client)| {
                let (peer, admin) = (client + 1, client + 2);
                Server { id, client, peer, admin, process: None }
            })
            .collect();
        let home = TempDir::new().expect("a temporary directory");
        let mut cluster = Cluster { home, servers, authority, _ports: ports };
        for id in 1..=count {
            cluster.launch(id);
        }
        cluster.wait_until_serving().await;
        cluster
    }

    /// Starts a server that does not run.
    pub(crate) fn launch(&mut self, id: u8) {
        let dir = self.dir(id);
        fs::create_dir_all(&dir).unwrap();
        let config = dir.join("conclave.toml");
        fs::write(&config, self.config(id)).unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_conclave"))
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.server(id).process = Some(process);
    }

    /// Ends a server as `kill -9` does.
    pub(crate) fn kill(&mut self, id: u8) {
        let mut process = self.server(id).process.take().expect("the server runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Asks a server to end and waits until it has.
    pub(crate) async fn stop(&mut self, id: u8) {
        self.signal(id, "TERM");
        let mut process = self.server(id).process.take().expect("the server runs");
        let status = eventually("the server ends", async || process.try_wait().unwrap()).await;
        assert!(status.success(), "server {id} ended with {status}:\n{}", self.log(id));
    }

    /// Freezes a server.
    pub(crate) fn pause(&mut self, id: u8) {
        self.signal(id, "STOP");
    }

    /// Lets a frozen server go on.
    pub(crate) fn resume(&mut self, id: u8) {
        self.signal(id, "CONT");
    }

    /// Removes everything that a server which does not run has on its disk.
    pub(crate) fn wipe(&mut self, id: u8) {
        assert!(self.server(id).process.is_none(), "the server runs");
        fs::remove_dir_all(self.dir(id).join("data")).unwrap();
    }

    /// Where clients connect.
    pub(crate) fn addresses(&self) -> String {
        let all: Vec<_> =
            self.servers.iter().map(|server| format!("127.0.0.1:{}", server.client)).collect();
        all.join(",")
    }

    /// Where clients of one server connect.
    pub(crate) fn address(&self, id: u8) -> String {
        format!("127.0.0.1:{}", self.servers[usize::from(id) - 1].client)
    }

    /// A session with the ensemble.
    pub(crate) async fn client(&self) -> Client {
        self.connect(&self.addresses()).await
    }

    /// A session with some of the servers.
    pub(crate) async fn connect(&self, servers: &str) -> Client {
        let mut builder = Client::builder();
        if let Some(authority) = &self.authority {
            let (cert, key) = (authority.path("client.pem"), authority.path("client.key"));
            builder = builder.tls(Tls::new(authority.path("ca.pem")).certificate(cert, key));
        }
        builder
            .servers(servers)
            .session_timeout(Duration::from_secs(20))
            .operation_timeout(DEADLINE)
            .connect_timeout(DEADLINE)
            .connect()
            .await
            .unwrap()
    }

    /// Gives every server a new certificate, and waits until all of them have taken it for their
    /// clients and for each other.
    pub(crate) async fn renew_certificates(&self) {
        let name = "conclave_certificates_reloaded_total";
        let before: Vec<_> = self.ids().into_iter().map(|id| self.metric(id, name)).collect();
        for id in self.ids() {
            let authority = self.authority.as_ref().expect("there are certificates");
            authority.issue_member(&id.to_string(), "test", id);
        }
        eventually("the certificates are taken", async || {
            let mut taken = self.ids().into_iter().zip(&before);
            taken.all(|(id, before)| self.metric(id, name) >= before + 2.0).then_some(())
        })
        .await;
    }

    /// The numbers of the servers.
    pub(crate) fn ids(&self) -> Vec<u8> {
        self.servers.iter().map(|server| server.id).collect()
    }

    /// The server that leads and has a quorum, as soon as there is one.
    pub(crate) async fn leader(&self) -> u8 {
        eventually("a leader", async || {
            self.running().find(|&id| self.status(id).is_some_and(|s| s["role"] == "leading"))
        })
        .await
    }

    /// A running server that does not lead.
    pub(crate) async fn follower(&self) -> u8 {
        let leader = self.leader().await;
        self.running().find(|&id| id != leader).expect("more than one server runs")
    }

    /// Waits until every server that runs serves.
    pub(crate) async fn wait_until_serving(&self) {
        eventually("all servers serve", async || {
            self.running()
                .all(|id| self.status(id).is_some_and(|s| s["role"] != "looking"))
                .then_some(())
        })
        .await;
    }

    /// Waits until every server that runs has applied the same and has the same digest.
    pub(crate) async fn wait_until_equal(&self) {
        eventually("all servers are equal", async || {
            let states: Option<Vec<_>> = self
                .running()
                .map(|id| self.status(id).map(|s| (s["applied_zxid"].clone(), s["digest"].clone())))
                .collect();
            states?.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
        })
        .await;
    }

    /// What a server says of itself, if it answers.
    pub(crate) fn status(&self, id: u8) -> Option<Value> {
        serde_json::from_str(&self.ask(id, "status")?).ok()
    }

    /// One of a server's counters.
    pub(crate) fn metric(&self, id: u8, name: &str) -> f64 {
        let text = self.ask(id, "metrics").expect("the server answers");
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} is in:\n{text}")).parse().unwrap()
    }

    fn ask(&self, id: u8, what: &str) -> Option<String> {
        let server = &self.servers[usize::from(id) - 1];
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_millis(500)))
            .build()
            .into();
        let url = format!("http://127.0.0.1:{}/{what}", server.admin);
        agent.get(&url).call().ok()?.body_mut().read_to_string().ok()
    }

    /// What a server logged.
    pub(crate) fn log(&self, id: u8) -> String {
        fs::read_to_string(self.dir(id).join("log")).unwrap_or_default()
    }

    fn running(&self) -> impl Iterator<Item = u8> {
        self.servers.iter().filter(|server| server.process.is_some()).map(|server| server.id)
    }

    fn dir(&self, id: u8) -> PathBuf {
        self.home.path().join(id.to_string())
    }

    fn server(&mut self, id: u8) -> &mut Server {
        &mut self.servers[usize::from(id) - 1]
    }

    fn signal(&mut self, id: u8, signal: &str) {
        let pid = self.server(id).process.as_ref().expect("the server runs").id();
        let status = Command::new("kill").args(["-s", signal, &pid.to_string()]).status().unwrap();
        assert!(status.success(), "kill -s {signal} {pid}: {status}");
    }

    fn config(&self, id: u8) -> String {
        let server = &self.servers[usize::from(id) - 1];
        let mut text = format!(
            "id = {id}\ncluster = \"test\"\ndata_dir = {:?}\nclient = \"127.0.0.1:{}\"\n\
             zookeeper_enabled = false\n\
             peer = \"127.0.0.1:{}\"\nadmin = \"127.0.0.1:{}\"\n",
            self.dir(id).join("data"),
            server.client,
            server.peer,
            server.admin
        );
        for member in &self.servers {
            text +=
                &format!("[[members]]\nid = {}\npeer = \"127.0.0.1:{}\"\n", member.id, member.peer);
        }
        if let Some(authority) = &self.authority {
            let path = |file: String| authority.path(&file);
            text += &format!(
                "[tls]\ncert = {:?}\nkey = {:?}\nca = {:?}\n",
                path(format!("{id}.pem")),
                path(format!("{id}.key")),
                path("ca.pem".into()),
            );
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for server in &mut self.servers {
            if let Some(mut process) = server.process.take() {
                process.kill().ok();
                process.wait().ok();
            }
        }
        if std::thread::panicking() {
            for id in self.ids() {
                println!("--- server {id} said:\n{}", self.log(id));
            }
        }
    }
}

/// Waits until a condition gives something.
pub(crate) async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        sleep(POLL).await;
    }
}

/// A client creates so many nodes more than are waited for, and no more: on a quick machine those of some
/// seconds would be more than servers remember for watches.
const AHEAD: u64 = 1000;

/// Clients that create numbered nodes as fast as they can, and remember which were acknowledged.
pub(crate) struct Load {
    orders: tokio::sync::watch::Sender<Orders>,
    writers: Vec<tokio::task::JoinHandle<Result<u64, Error>>>,
    progress: Vec<std::sync::Arc<std::sync::atomic::AtomicU64>>,
}

/// What the clients of a load are to do.
#[derive(Clone, Copy)]
struct Orders {
    /// So many nodes are created by each.
    limit: u64,
    stop: bool,
}

impl Load {
    /// Starts that many clients.
    pub(crate) async fn start(cluster: &Cluster, clients: usize) -> Load {
        let (orders, given) = tokio::sync::watch::channel(Orders { limit: AHEAD, stop: false });
        let (mut writers, mut progress) = (Vec::new(), Vec::new());
        for number in 0..clients {
            let client = cluster.client().await;
            let acknowledged = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
            progress.push(std::sync::Arc::clone(&acknowledged));
            let mut given = given.clone();
            writers.push(tokio::spawn(async move {
                let parent = format!("/load-{number}");
                client.create(&parent, "").await?;
                let mut next = 0;
                loop {
                    let Orders { limit, stop } = *given.borrow_and_update();
                    if stop {
                        break;
                    }
                    if next == limit {
                        given.changed().await.expect("whoever gives orders waits for this");
                        continue;
                    }
                    client.create(format!("{parent}/{next}"), next.to_string()).await?;
                    next += 1;
                    acknowledged.store(next, std::sync::atomic::Ordering::Relaxed);
                }
                client.close().await?;
                Ok(next)
            }));
        }
        Load { orders, writers, progress }
    }

    /// Waits until every client has had that many more writes acknowledged.
    pub(crate) async fn advance(&self, writes: u64) {
        let now = || self.progress.iter().map(|p| p.load(std::sync::atomic::Ordering::Relaxed));
        let goals: Vec<_> = now().map(|done| done + writes).collect();
        let limit = goals.iter().max().map_or(0, |goal| goal + AHEAD);
        self.orders.send_modify(|orders| orders.limit = orders.limit.max(limit));
        eventually("writes go on", async || {
            now().zip(&goals).all(|(done, goal)| done >= *goal).then_some(())
        })
        .await;
    }

    /// Stops the clients, and checks that each acknowledged node is there, once and with its data,
    /// and that no other is.
    pub(crate) async fn finish(self, client: &Client) {
        self.orders.send_modify(|orders| orders.stop = true);
        for (number, writer) in self.writers.into_iter().enumerate() {
            let acknowledged = writer.await.unwrap().expect("no write fails");
            let parent = format!("/load-{number}");
            let mut found = 0;
            let mut entries = client.list(&parent).with_data().linearizable().stream();
            while let Some(entry) = entries.next().await {
                let entry = entry.unwrap();
                assert_eq!(entry.data.as_deref(), Some(entry.name.as_bytes()));
                assert!(entry.name.parse::<u64>().unwrap() < acknowledged, "{}", entry.name);
                found += 1;
            }
            assert_eq!(found, acknowledged, "nodes below {parent}");
        }
    }
}
