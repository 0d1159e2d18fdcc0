//! The servers of both kinds, as processes on this machine.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{panicking, sleep};
use std::time::Duration;

use tempfile::TempDir;

/// Whoever is `super` has the password "test".
const SUPER_DIGEST: &str = "super:D/InIHSb7yEEbrWz8b9l71RjZJU=";
/// How long both bear with a server that says nothing, in ms: it is not their patience that is
/// compared, and a busy machine may pause one of them for seconds.
const SILENCE_MS: u32 = 10_000;
/// How many lines of a server's log are shown when a test fails.
const LINES: usize = 30;
/// How often it is tried whether a server serves, and how long between.
const TRIES: usize = 600;
const POLL: Duration = Duration::from_millis(100);

/// Running servers; they end with this value.
#[derive(Debug)]
pub(crate) struct Servers {
    processes: Vec<Child>,
    pub(crate) addresses: Vec<String>,
    dir: TempDir,
}

impl Servers {
    /// Starts Apache ZooKeeper.
    pub(crate) fn zookeeper(count: usize, class_path: &str) -> Servers {
        Servers::start(count, |dir, ports, id| {
            let mut command = Command::new("java");
            command
                .args([
                    "-Xmx500m",
                    "-Dzookeeper.forceSync=no",
                    "-Dzookeeper.extendedTypesEnabled=true",
                ])
                .args(["-Dzookeeper.admin.enableServer=false", "-Dzookeeper.skipACL=no"])
                .arg(format!("-Dzookeeper.DigestAuthenticationProvider.superDigest={SUPER_DIGEST}"))
                .args(["-cp", class_path, "org.apache.zookeeper.server.quorum.QuorumPeerMain"])
                .arg(configure_zookeeper(dir, ports, id));
            command
        })
    }

    /// Starts Conclave.
    pub(crate) fn conclave(count: usize) -> Servers {
        Servers::start(count, |dir, ports, id| {
            let config = dir.join("conclave.toml");
            let mut text = format!(
                "id = {id}\ndata_dir = {:?}\nzookeeper = {:?}\nclient = {:?}\npeer = {:?}\n\
                 admin_enabled = false\nwords = ['srvr']\nsuper_digest = {SUPER_DIGEST:?}\n\
                 storage.reserve_mb = 1\ntiming.silence_ms = {SILENCE_MS}\n",
                dir.join("data"),
                ports.client(id),
                ports.native(id),
                ports.peer(id)
            );
            for member in 1..=count {
                text += &format!("[[members]]\nid = {member}\npeer = {:?}\n", ports.peer(member));
            }
            fs::write(&config, text).unwrap();
            let mut command = Command::new(env!("CARGO_BIN_EXE_conclave"));
            command.arg("serve").arg("--config").arg(config);
            command
        })
    }

    fn start(count: usize, command: impl Fn(&Path, &Ports, usize) -> Command) -> Servers {
        // In memory, if the system has such a place: it is not the disk that is tested.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = tempfile::tempdir_in(place).unwrap();
        let ports = Ports::free(count);
        let mut servers = Servers { processes: Vec::new(), addresses: Vec::new(), dir };
        for id in 1..=count {
            let home = servers.dir.path().join(id.to_string());
            fs::create_dir_all(&home).unwrap();
            let log = File::create(home.join("log")).unwrap();
            let mut command = command(&home, &ports, id);
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            servers.processes.push(command.spawn().unwrap());
            servers.addresses.push(ports.client(id));
        }
        servers.wait_until_serving();
        servers
    }

    fn wait_until_serving(&self) {
        for (place, address) in self.addresses.iter().enumerate() {
            let serves = (0..TRIES).any(|_| {
                let serves = mode(address).is_some();
                if !serves {
                    sleep(POLL);
                }
                serves
            });
            let log = self.dir.path().join((place + 1).to_string()).join("log");
            let log = fs::read_to_string(log).unwrap_or_default();
            assert!(serves, "the server on {address} does not serve:\n{log}");
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for (process, id) in self.processes.iter_mut().zip(1..).filter(|_| panicking()) {
            let log = self.dir.path().join(format!("{id}/log"));
            let log = fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(LINES)..].join("\n");
            match process.try_wait() {
                Ok(Some(status)) => println!("server {id} has ended, {status}:\n{last}"),
                _ => println!("server {id} runs:\n{last}"),
            }
        }
        for process in &mut self.processes {
            process.kill().ok();
            process.wait().ok();
        }
    }
}

/// What a server says of its role, if it serves.
fn mode(address: &str) -> Option<String> {
    let mut socket = TcpStream::connect(address).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    socket.write_all(b"srvr").ok()?;
    let mut text = String::new();
    socket.read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Mode: ")).map(str::to_owned)
}

/// Three ports for each server.
struct Ports(Vec<u16>);

impl Ports {
    fn free(count: usize) -> Ports {
        let bind = |_| TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners: Vec<_> = (0..3 * count).map(bind).collect();
        Ports(listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect())
    }

    fn get(&self, id: usize, which: usize) -> u16 {
        self.0[3 * (id - 1) + which]
    }

    fn client(&self, id: usize) -> String {
        format!("127.0.0.1:{}", self.get(id, 0))
    }

    fn native(&self, id: usize) -> String {
        format!("127.0.0.1:{}", self.get(id, 1))
    }

    fn peer(&self, id: usize) -> String {
        format!("127.0.0.1:{}", self.get(id, 2))
    }
}

fn configure_zookeeper(dir: &Path, ports: &Ports, id: usize) -> PathBuf {
    let data = dir.join("data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("myid"), id.to_string()).unwrap();
    let mut text = format!(
        "tickTime=1000\ninitLimit=10\nsyncLimit={}\nmaxClientCnxns=0\ndataDir={}\n\
         clientPort={}\nminSessionTimeout=1000\nmaxSessionTimeout=600000\n\
         4lw.commands.whitelist=srvr\n",
        SILENCE_MS / 1000,
        data.display(),
        ports.get(id, 0)
    );
    let count = ports.0.len() / 3;
    for member in (1..=count).filter(|_| count > 1) {
        let (peer, election) = (ports.get(member, 2), ports.get(member, 1));
        text += &format!("server.{member}=127.0.0.1:{peer}:{election}\n");
    }
    let config = dir.join("zoo.cfg");
    fs::write(&config, text).unwrap();
    config
}
