//! An ensemble of real server processes on this machine: what `dev` and `bench --spawn` run.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::net::TcpListener;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::status::{self, MemberStatus};

/// How long an ensemble may take until it serves.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long a server may take to leave.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// How long the servers of a `conclave dev` that was killed may take to leave their ports.
const PORTS_DEADLINE: Duration = Duration::from_secs(3);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(25);
/// Each server has this many ports.
const PORTS_PER_SERVER: u16 = 10;

/// Where an ensemble lives.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// How many servers.
    pub(super) servers: u8,
    /// Server i keeps what it has in `dir/i`.
    pub(super) dir: PathBuf,
    /// Server i listens on `port_base + 10 (i - 1)` and the ports after it.
    pub(super) port_base: u16,
}

impl Layout {
    /// The numbers of the servers.
    pub(super) fn ids(&self) -> impl Iterator<Item = u8> + use<> {
        1..=self.servers
    }

    /// The directory of one server.
    pub(super) fn server_dir(&self, id: u8) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// The configuration file of one server.
    pub(super) fn config_file(&self, id: u8) -> PathBuf {
        self.server_dir(id).join("conclave.toml")
    }

    /// The file with the process id of one server.
    pub(super) fn pid_file(&self, id: u8) -> PathBuf {
        self.server_dir(id).join("pid")
    }

    fn log_file(&self, id: u8) -> PathBuf {
        self.server_dir(id).join("log")
    }

    fn port(&self, id: u8, offset: u16) -> u16 {
        self.port_base + PORTS_PER_SERVER * u16::from(id - 1) + offset
    }

    /// Where clients connect, separated by commas.
    pub(super) fn connect_string(&self) -> String {
        self.addresses(0)
    }

    /// Where clients of ZooKeeper's protocol connect, separated by commas.
    pub(super) fn zookeeper_string(&self) -> String {
        self.addresses(3)
    }

    fn addresses(&self, offset: u16) -> String {
        let addresses: Vec<_> =
            self.ids().map(|id| format!("127.0.0.1:{}", self.port(id, offset))).collect();
        addresses.join(",")
    }

    /// Where one server is administered.
    pub(super) fn admin_address(&self, id: u8) -> String {
        format!("127.0.0.1:{}", self.port(id, 2))
    }

    /// The ports of all servers.
    pub(super) fn ports(&self) -> Range<u16> {
        self.port_base..self.port_base + PORTS_PER_SERVER * u16::from(self.servers)
    }

    /// Whether there are so many servers in an ensemble, and ports for them.
    ///
    /// # Errors
    /// If not.
    fn check(&self) -> anyhow::Result<()> {
        ensure!(
            matches!(self.servers, 1 | 3 | 5 | 7),
            "--servers is {}: an ensemble has 1, 3, 5 or 7 servers",
            self.servers
        );
        let needed = PORTS_PER_SERVER * u16::from(self.servers);
        ensure!(
            self.port_base.checked_add(needed).is_some() && self.port_base > 0,
            "--port-base is {}: there must be {needed} ports from there to 65535",
            self.port_base
        );
        Ok(())
    }

    /// Makes the directory, and keeps everybody else from starting servers in it while the file
    /// that is returned is open.
    fn claim(&self) -> anyhow::Result<File> {
        let dir = self.dir.display();
        fs::create_dir_all(&self.dir).with_context(|| format!("creating {dir}"))?;
        let path = self.dir.join("lock");
        let open = OpenOptions::new().create(true).append(true).open(&path);
        let mut file = open.with_context(|| format!("opening {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let owner = fs::read_to_string(&path).unwrap_or_default();
                bail!(
                    "process {} has servers in {dir}: stop it, or choose another --dir and \
                     --port-base",
                    owner.trim()
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("locking {}", path.display()));
            }
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(file)
    }

    /// Waits until nobody listens on the ports of the servers.
    async fn wait_for_ports(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PORTS_DEADLINE;
        // A server that is alone has no port for others.
        let offsets: &[u16] = if self.servers == 1 { &[0, 2, 3] } else { &[0, 1, 2, 3] };
        for id in self.ids() {
            for &offset in offsets {
                let port = self.port(id, offset);
                while let Err(error) = TcpListener::bind(("127.0.0.1", port)) {
                    ensure!(
                        error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline,
                        "cannot listen on 127.0.0.1:{port} ({error}): stop what uses it, or \
                         choose another --port-base"
                    );
                    sleep(POLL).await;
                }
            }
        }
        Ok(())
    }

    /// What each server says of itself; `None` for one that does not answer.
    async fn status(&self) -> Vec<Option<MemberStatus>> {
        let addresses: Vec<_> = self.ids().map(|id| self.admin_address(id)).collect();
        let answers = status::ask_all(&addresses).await.into_iter();
        answers.map(|(_, answer)| Some(answer.ok()?.0)).collect()
    }

    /// The number of the server that leads, as soon as one does.
    ///
    /// # Errors
    /// If none does within the deadline.
    pub(super) async fn leader(&self) -> anyhow::Result<u8> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let members = self.status().await;
            if let Some(leader) = members.iter().flatten().find(|status| status.leads()) {
                return Ok(leader.id);
            }
            ensure!(Instant::now() < deadline, "no server leads: {}", self.describe_logs());
            sleep(POLL).await;
        }
    }

    fn describe_logs(&self) -> String {
        format!("see the files {}/*/log", self.dir.display())
    }

    /// The configuration of one server, as a file that a person can read and start it with.
    fn config(&self, id: u8) -> anyhow::Result<String> {
        let data = std::path::absolute(self.server_dir(id))?;
        let data = data.to_str().with_context(|| format!("{} is not UTF-8", data.display()))?;
        let mut text = format!(
            "# Written by `conclave dev`; start this server alone with `conclave serve --config`.\n\
             id = {id}\n\
             cluster = \"dev\"\n\
             words = [\"*\"]\n\
             data_dir = {}\n\
             client = \"127.0.0.1:{}\"\n\
             zookeeper = \"127.0.0.1:{}\"\n\
             peer = \"127.0.0.1:{}\"\n\
             admin = \"127.0.0.1:{}\"\n",
            toml::Value::from(format!("{data}/data")),
            self.port(id, 0),
            self.port(id, 3),
            self.port(id, 1),
            self.port(id, 2),
        );
        for member in self.ids() {
            text += &format!(
                "\n[[members]]\nid = {member}\npeer = \"127.0.0.1:{}\"\n\
                 zookeeper = \"127.0.0.1:{}\"\n",
                self.port(member, 1),
                self.port(member, 3),
            );
        }
        Ok(text)
    }
}

/// Server processes that end when this value, or the process that holds it, does: each watches
/// its standard input, whose other end is here.
#[derive(Debug)]
pub(super) struct Ensemble {
    layout: Layout,
    servers: Vec<Server>,
    /// Nobody else starts servers in the directory while it is open.
    _claim: File,
}

#[derive(Debug)]
struct Server {
    id: u8,
    process: Child,
}

impl Ensemble {
    /// An ensemble whose directory nobody else has, before its servers are started.
    ///
    /// # Errors
    /// If there cannot be such an ensemble, or another process has servers in its directory.
    pub(super) fn claim(layout: Layout) -> anyhow::Result<Ensemble> {
        layout.check()?;
        let claim = layout.claim()?;
        Ok(Ensemble { layout, servers: Vec::new(), _claim: claim })
    }

    /// Starts every server and waits until all of them serve.
    ///
    /// # Errors
    /// If a file cannot be written, or a server ends or does not serve in time: with the last
    /// lines it logged. Those that have been started go on.
    pub(super) async fn start_all(&mut self) -> anyhow::Result<()> {
        self.layout.wait_for_ports().await?;
        for id in self.layout.ids() {
            self.restart(id)?;
        }
        self.wait_until_serving().await
    }

    /// Where it lives.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The process id of one server.
    pub(super) fn pid(&self, id: u8) -> Option<u32> {
        self.servers.iter().find(|server| server.id == id)?.process.id()
    }

    /// Ends one server at once, as `kill -9` does.
    ///
    /// # Errors
    /// If it cannot be ended.
    pub(super) async fn kill(&mut self, id: u8) -> anyhow::Result<()> {
        let server = self.servers.iter_mut().find(|server| server.id == id);
        let server = server.with_context(|| format!("server {id} is not running"))?;
        server.process.kill().await.with_context(|| format!("ending server {id}"))?;
        self.servers.retain(|server| server.id != id);
        Ok(())
    }

    /// Asks one server to stop, and waits until it has.
    ///
    /// # Errors
    /// If it is not running.
    pub(super) async fn end(&mut self, id: u8) -> anyhow::Result<()> {
        self.signal(id, Signal::TERM)?;
        let server = self.servers.iter_mut().find(|server| server.id == id);
        let server = server.with_context(|| format!("server {id} is not running"))?;
        server.process.wait().await.with_context(|| format!("ending server {id}"))?;
        self.servers.retain(|server| server.id != id);
        Ok(())
    }

    /// Sends one server a signal.
    ///
    /// # Errors
    /// If it is not running.
    pub(super) fn signal(&self, id: u8, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid(id).and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let pid = pid.with_context(|| format!("server {id} is not running"))?;
        kill_process(pid, signal).with_context(|| format!("signalling server {id}"))
    }

    /// Starts a server that does not run.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn restart(&mut self, id: u8) -> anyhow::Result<()> {
        let process = spawn(&self.layout, id)?;
        self.servers.push(Server { id, process });
        Ok(())
    }

    /// Waits until a server has ended by itself; says which, and how.
    pub(super) async fn next_end(&mut self) -> (u8, String) {
        loop {
            let mut ended = None;
            for server in &mut self.servers {
                if let Ok(Some(status)) = server.process.try_wait() {
                    ended = Some((server.id, status.to_string()));
                }
            }
            if let Some((id, how)) = ended {
                self.servers.retain(|server| server.id != id);
                return (id, how);
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Ends every server in good order, those that do not leave in time at once.
    pub(super) async fn stop(mut self) {
        for server in &mut self.servers {
            drop(server.process.stdin.take());
        }
        for server in &mut self.servers {
            if timeout(STOP_DEADLINE, server.process.wait()).await.is_err() {
                server.process.start_kill().ok();
                server.process.wait().await.ok();
            }
        }
    }

    /// Waits until every server serves.
    ///
    /// # Errors
    /// If one ends, or does not serve in time.
    pub(super) async fn wait_until_serving(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            for server in &mut self.servers {
                if let Some(status) = server.process.try_wait()? {
                    let log = last_lines(&self.layout.log_file(server.id), 5);
                    bail!("server {} ended ({status}); it said:\n{log}", server.id);
                }
            }
            let members = self.layout.status().await;
            if members.iter().all(|status| status.as_ref().is_some_and(MemberStatus::serves)) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "not every server serves after {} s: {}",
                START_DEADLINE.as_secs(),
                self.layout.describe_logs()
            );
            sleep(POLL).await;
        }
    }
}

fn spawn(layout: &Layout, id: u8) -> anyhow::Result<Child> {
    let dir = layout.server_dir(id);
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let config = layout.config_file(id);
    fs::write(&config, layout.config(id)?)
        .with_context(|| format!("writing {}", config.display()))?;
    let log = open_log(&layout.log_file(id))?;
    let program = std::env::current_exe().context("finding this program")?;
    Command::new(program)
        .arg("serve")
        .arg("--config")
        .arg(&config)
        .arg("--pid-file")
        .arg(layout.pid_file(id))
        .arg("--stop-with-stdin")
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C reaches this process alone, which then ends the servers in good order.
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting server {id}"))
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

/// The last lines of a log, for an error message.
pub(super) fn last_lines(path: &Path, count: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
