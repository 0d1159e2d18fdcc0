//! The examples as programs, on real servers of which the leader dies.
//!
//! They are those of the client crate: `cargo test` builds them before it runs this.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, waits with a deadline, and shows what was printed"
)]

mod demos;
mod file_store;
mod fleet;
#[path = "../cluster/harness.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod harness;
#[path = "../common/ports.rs"]
mod ports;
mod primary_standby;
mod services;
mod sharded_store;
mod two_phase_commit;

use std::path::Path;
use std::process::{Child, Command, Stdio};

/// An example that runs; it ends with this value.
struct Program(Child);

impl Program {
    /// Starts an example of which the servers are these.
    fn start(name: &str, servers: &str, args: &[&str]) -> Program {
        Program(Program::command(name, servers, args).spawn().unwrap())
    }

    fn command(name: &str, servers: &str, args: &[&str]) -> Command {
        let server = Path::new(env!("CARGO_BIN_EXE_conclave"));
        let path = server.with_file_name("examples").join(name);
        assert!(
            path.exists(),
            "there is no {}: cargo build --workspace --examples",
            path.display()
        );
        let mut command = Command::new(path);
        command.args(args).env("CONCLAVE_SERVERS", servers).stdin(Stdio::null());
        command
    }

    /// Runs an example that succeeds, and gives what it printed.
    fn ask(name: &str, servers: &str, args: &[&str]) -> String {
        let output = Program::command(name, servers, args).output().unwrap();
        let (said, complained) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{args:?}: {said}{complained}");
        said
    }

    /// Runs an example that fails, and gives what it complained of.
    fn complain(name: &str, servers: &str, args: &[&str]) -> String {
        let output = Program::command(name, servers, args).output().unwrap();
        assert!(!output.status.success(), "{args:?}: {}", text(&output.stdout));
        text(&output.stderr)
    }

    fn succeeded(mut self) -> bool {
        self.0.wait().unwrap().success()
    }

    fn signal(&self, signal: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    }

    /// Ends it as `kill -9` does.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
