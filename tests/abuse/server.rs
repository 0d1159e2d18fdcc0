//! A real server process on loopback, on ports that the system chooses.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long anything that must happen may take on a slow machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Server {
    running: Running,
    pub(crate) client: SocketAddr,
    pub(crate) zookeeper: SocketAddr,
    /// Where ZooKeeper's clients find TLS, if they do.
    pub(crate) zookeeper_secure: Option<SocketAddr>,
    pub(crate) admin: SocketAddr,
    _dir: Option<TempDir>,
}

struct Running {
    child: Child,
    log: Arc<Mutex<String>>,
}

/// Waits until `probe` gives something.
pub(crate) fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    #[expect(clippy::disallowed_methods, reason = "a deadline for the test itself")]
    let started = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(started.elapsed() < DEADLINE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn serve(dir: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_conclave"));
    command
        .arg("serve")
        .arg("--data-dir")
        .arg(dir)
        .args(["--zookeeper", "127.0.0.1:0"])
        .args(flags);
    command.env_remove("CONCLAVE_LOG").stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::piped());
    command
}

/// Runs a server that is not expected to start. Returns how it ended and what it said.
pub(crate) fn fail(dir: &Path, flags: &[&str]) -> (ExitStatus, String) {
    let mut child = serve(dir, flags).spawn().unwrap();
    let status = wait_for("the server to give up", || child.try_wait().unwrap());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (status, said)
}

impl Server {
    /// Starts a server that is alone, and waits until it serves.
    pub(crate) fn start() -> Server {
        let server = Server::start_with(&[]);
        wait_for("the server to serve", || server.get("/ready").starts_with("ready").then_some(()));
        server
    }

    /// Starts a server with more flags.
    pub(crate) fn start_with(flags: &[&str]) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let mut all = vec!["--client", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        all.extend(flags);
        let server = Server::start_in(dir.path(), &all);
        Server { _dir: Some(dir), ..server }
    }

    /// Starts a server in a directory that outlives it.
    pub(crate) fn start_in(dir: &Path, flags: &[&str]) -> Server {
        let mut child = serve(dir, flags).args(["--log-format", "json"]).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (copy, pipe) = (log.clone(), BufReader::new(child.stderr.take().unwrap()));
        thread::spawn(move || {
            for line in pipe.lines().map_while(Result::ok) {
                let mut log = copy.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let start = wait_for("the server to start", || {
            let log = log.lock().unwrap();
            let lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
            lines.into_iter().find(|line: &serde_json::Value| line["client"].is_string())
        });
        let address = |key: &str| start[key].as_str().unwrap().parse().ok();
        let client = address("client").unwrap();
        // Without administration, nobody asks for it.
        let admin = address("admin").unwrap_or(client);
        let zookeeper = address("zookeeper").unwrap();
        let zookeeper_secure = address("zookeeper_secure");
        Server {
            client,
            zookeeper,
            zookeeper_secure,
            admin,
            running: Running { child, log },
            _dir: None,
        }
    }

    /// What the server has logged.
    pub(crate) fn log(&self) -> String {
        self.running.log.lock().unwrap().clone()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.running.child.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Lets the server do nothing for a while.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks the server to stop, and waits until it has.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        wait_for("the server to stop", || self.running.child.try_wait().unwrap())
    }

    /// The body of a page of the administration.
    pub(crate) fn get(&self, page: &str) -> String {
        let mut socket = TcpStream::connect(self.admin).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(socket, "GET {page} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
    }

    /// The value of a metric.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics");
        let mut values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        values.next().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}"))
    }

    /// Waits until a metric has at least this value.
    pub(crate) fn wait_for_metric(&self, name: &str, least: u64) {
        wait_for(name, || (self.metric(name) >= least).then_some(()));
    }

    /// The files and sockets that the server has open.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.running.child.id())).unwrap().count()
    }

    /// The memory that the server occupies, in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most that it has ever occupied.
    pub(crate) fn peak_bytes(&self) -> u64 {
        self.status("VmHWM:")
    }

    fn status(&self, key: &str) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.running.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has stopped already needs not be killed.
        self.child.kill().ok();
        self.child.wait().unwrap();
    }
}
