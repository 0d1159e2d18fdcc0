//! Ensembles that `tests/interop/launcher` starts.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread::panicking;
use std::time::Duration;

use tempfile::TempDir;

use crate::eventually;
use crate::ports::Ports;
use crate::program::Program;

/// Names another launcher than Conclave's, such as one of Apache ZooKeeper: to see that what the
/// dialogues expect is what ZooKeeper does.
const LAUNCHER_VARIABLE: &str = "INTEROP_LAUNCHER";

/// Running servers; they end with this value.
pub(crate) struct Ensemble {
    dir: TempDir,
    addresses: Vec<String>,
    /// The server that was killed last.
    killed: Option<usize>,
    _ports: Ports,
}

impl Ensemble {
    /// Starts three servers, and waits until they serve.
    pub(crate) fn start() -> Ensemble {
        let ports = Ports::claim();
        let dir = TempDir::new().unwrap();
        let mut ensemble = Ensemble { dir, addresses: Vec::new(), killed: None, _ports: ports };
        let first = ensemble._ports.first().to_string();
        let answer = ensemble.launcher("start", &["3", &first]);
        let hosts = answer.lines().find_map(|line| line.strip_prefix("hosts="));
        let hosts = hosts.expect("the launcher says where the servers are");
        ensemble.addresses = hosts.split(',').map(str::to_owned).collect();
        ensemble
    }

    /// Where the servers listen.
    pub(crate) fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Does what a program or a dialogue asks for.
    pub(crate) fn obey(&mut self, order: &str) {
        match order {
            "kill the leader" => self.kill_leader(),
            "start the killed server" => {
                let killed = self.killed.take().expect("a server was killed before");
                self.launcher("startone", &[&killed.to_string()]);
            }
            _ => panic!("nobody knows how to {order}"),
        }
    }

    /// Runs a program that says behind `! ` what it wants done, and then hears that it is; it has to
    /// say that all is well, and to end so.
    pub(crate) fn obey_to_the_end(&mut self, command: &mut Command) {
        let mut program = Program::start(command);
        let mut said = String::new();
        while let Some(line) = program.hear(&said) {
            if let Some(order) = line.strip_prefix("! ") {
                self.obey(order);
                program.say("done");
            }
            said += &line;
            said.push('\n');
        }
        let status = program.end();
        assert!(status.success() && said.contains("all is well"), "{status}:\n{said}");
    }

    /// Ends the leader as `kill -9` does.
    fn kill_leader(&mut self) {
        let leader = eventually("a leader", || {
            let leads = |address: &String| mode(address).is_some_and(|mode| mode == "leader");
            self.addresses.iter().position(leads).map(|place| place + 1)
        });
        self.launcher("kill", &[&leader.to_string()]);
        self.killed = Some(leader);
    }

    fn launcher(&self, command: &str, arguments: &[&str]) -> String {
        let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/interop/launcher");
        let launcher = std::env::var_os(LAUNCHER_VARIABLE).map_or(own, PathBuf::from);
        let output = Command::new(launcher)
            .arg(command)
            .arg(self.dir.path().join("ensemble"))
            .args(arguments)
            .env("CONCLAVE", env!("CARGO_BIN_EXE_conclave"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "launcher {command}: {}: {said}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Ensemble {
    fn drop(&mut self) {
        for id in (1..=self.addresses.len()).filter(|_| panicking()) {
            let log = self.dir.path().join(format!("ensemble/{id}/log"));
            println!("--- server {id}:\n{}", std::fs::read_to_string(log).unwrap_or_default());
        }
        if !self.addresses.is_empty() {
            self.launcher("reset", &[]);
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
