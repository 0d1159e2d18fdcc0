//! Apache ZooKeeper servers on this machine, to compare with.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout};

use super::held;
use super::jars::{DEBIAN_JARS, NEEDED_JARS};
use super::zookeeper::Connection;
use crate::cli::ensemble::last_lines;

/// How long the servers may take until they serve.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long one attempt to open a session may take.
const TRY: Duration = Duration::from_secs(2);
/// How often it is tried.
const POLL: Duration = Duration::from_millis(100);

/// Each server has this many ports.
const PORTS_PER_SERVER: u16 = 3;

/// Server processes; they end with this value.
pub(super) struct ZooKeeper {
    servers: Vec<Child>,
    addresses: Vec<String>,
}

impl ZooKeeper {
    /// Starts that many servers with ZooKeeper's defaults and waits until they serve.
    ///
    /// # Errors
    /// If Java or the jars are missing, or the servers do not serve in time.
    pub(super) async fn start(
        count: u8,
        dir: &Path,
        port_base: u16,
        jars: Option<&Path>,
    ) -> anyhow::Result<ZooKeeper> {
        let needed = PORTS_PER_SERVER * u16::from(count);
        ensure!(
            port_base.checked_add(needed).is_some(),
            "ZooKeeper needs {needed} ports from {port_base} on, behind Conclave's: choose a lower \
             --port-base"
        );
        let class_path = class_path(jars, &[])?;
        let mut all = ZooKeeper { servers: Vec::new(), addresses: Vec::new() };
        for id in 1..=count {
            let config = configure(id, count, dir, port_base)?;
            let log = File::create(log_file(&home(id, dir)))?;
            let server = held("java")?
                .args(["-Xmx1000m", "-Dzookeeper.admin.enableServer=false", "-cp", &class_path])
                .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
                .arg(&config)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .context("starting java")?;
            all.servers.push(server);
            all.addresses.push(format!("127.0.0.1:{}", client_port(id, port_base)));
        }
        all.wait_until_serving(dir).await?;
        Ok(all)
    }

    /// Where clients connect.
    pub(super) fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// The servers' processes.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.servers.iter().filter_map(Child::id).collect()
    }

    async fn wait_until_serving(&mut self, dir: &Path) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        for address in &self.addresses {
            // A server that starts accepts connections before it says anything on them.
            while let Err(error) = timeout(TRY, Connection::open(address, (0, 0)))
                .await
                .unwrap_or_else(|late| Err(late.into()))
            {
                for (id, server) in (1..).zip(&mut self.servers) {
                    let log = log_file(&home(id, dir));
                    ensure!(
                        server.try_wait()?.is_none(),
                        "a ZooKeeper server ended (it needs Java; Debian: default-jre-headless); \
                         it said:\n{}",
                        last_lines(&log, 5)
                    );
                }
                ensure!(
                    Instant::now() < deadline,
                    "ZooKeeper does not serve on {address}: {error:#}"
                );
                sleep(POLL).await;
            }
        }
        Ok(())
    }
}

/// Of one server's three ports, the one for clients; the others follow.
fn client_port(id: u8, port_base: u16) -> u16 {
    port_base + PORTS_PER_SERVER * u16::from(id - 1)
}

/// Where one server keeps what it has.
fn home(id: u8, dir: &Path) -> PathBuf {
    dir.join(id.to_string())
}

fn log_file(home: &Path) -> PathBuf {
    home.join("zoo.log")
}

fn configure(id: u8, count: u8, dir: &Path, port_base: u16) -> anyhow::Result<PathBuf> {
    let home = home(id, dir);
    let data = home.join("data");
    fs::create_dir_all(&data)?;
    fs::write(data.join("myid"), id.to_string())?;
    let mut text = format!(
        "tickTime=2000\ninitLimit=10\nsyncLimit=5\nmaxClientCnxns=0\ndataDir={}\nclientPort={}\n",
        data.display(),
        client_port(id, port_base)
    );
    for member in 1..=count {
        let clients = client_port(member, port_base);
        let (peers, elections) = (clients + 1, clients + 2);
        text += &format!("server.{member}=127.0.0.1:{peers}:{elections}\n");
    }
    let config = home.join("zoo.cfg");
    fs::write(&config, text)?;
    Ok(config)
}

/// ZooKeeper's jars and those others, of that directory or of Debian's packages.
///
/// # Errors
/// If Debian's ZooKeeper is not installed.
pub(super) fn class_path(jars: Option<&Path>, others: &[&str]) -> anyhow::Result<String> {
    if let Some(dir) = jars {
        return Ok(format!("{}/*", dir.display()));
    }
    let jar = |name: &&str| format!("{DEBIAN_JARS}/{name}.jar");
    ensure!(
        Path::new(&jar(&"zookeeper")).exists(),
        "there is no ZooKeeper in {DEBIAN_JARS}: install Debian's packages libzookeeper-java, \
         libslf4j-java and libnetty-java, or name a directory of jars with --zookeeper-jars"
    );
    Ok(NEEDED_JARS.iter().chain(others).map(jar).collect::<Vec<_>>().join(":"))
}
