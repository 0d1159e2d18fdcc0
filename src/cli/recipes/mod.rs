//! The recipes as commands, for scripts and for people.
//!
//! A name without a slash in front lies below the recipe's own node, like `/locks`; a path that
//! begins with a slash is taken as it is.

mod barrier;
mod child;
mod config;
mod elect;
mod group;
mod guard;
mod join;
mod lock;
mod queue;

use std::ffi::OsString;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use conclave_client::Client;
use conclave_client::recipes::{self, Token};
use tokio::time::{Instant, timeout};

use super::connect::{Servers, part};
use super::tell;
pub(super) use barrier::BarrierArgs;
use child::Signals;
pub(super) use child::{Args as ChildArgs, run as run_child};
pub(super) use config::Config;
pub(super) use elect::Elect;
pub(super) use guard::run as run_guard;
pub(super) use join::{Discover, Join, Members, Register};
pub(super) use lock::Lock;
pub(super) use queue::QueueArgs;

/// What ends with these is no outcome of the command that was to be run. They are those of
/// `timeout` and `env`, which scripts know already.
mod code {
    /// What was held was lost, and the command was stopped.
    pub(super) const LOST: u8 = 123;
    /// It was not to be had in time.
    pub(super) const NOT_IN_TIME: u8 = 124;
    /// Conclave itself failed.
    pub(super) const FAILED: u8 = 125;
    /// The command cannot be run.
    pub(super) const NOT_EXECUTABLE: u8 = 126;
    /// There is no such command.
    pub(super) const NOT_FOUND: u8 = 127;
    /// A signal ended it: this, and the signal's number.
    pub(super) const SIGNAL: u8 = 128;
}

/// How long to wait before the servers are asked again for what they did not do, be it a session.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// Explains the exit codes of the commands that run another one.
const EXIT_CODES: &str = "\
Exit codes:
  that of COMMAND, or 128 and the number of the signal that ended it
  123  it was lost while COMMAND ran, and COMMAND was stopped
  124  it was not to be had in time
  125  Conclave itself failed: no servers, no permission, a wrong name or option
  126  COMMAND cannot be run
  127  there is no COMMAND";

/// The session of a command that holds something while another one runs.
#[derive(Debug, clap::Args)]
struct Holding {
    #[command(flatten)]
    servers: Servers,
    /// Seconds after which others may have it if this machine or its network dies
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    session_timeout: u64,
    /// What others are told of who holds it [default: the host and the process id]
    #[arg(long, value_name = "TEXT")]
    describe: Option<String>,
}

impl Holding {
    async fn connect(&self) -> anyhow::Result<Client> {
        self.servers.connect(Duration::from_secs(self.session_timeout)).await
    }

    fn description(&self) -> String {
        self.describe.clone().unwrap_or_else(description)
    }
}

/// What tells this process from others.
fn description() -> String {
    format!("{}:{}", host(), std::process::id())
}

/// The name of this machine.
fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim_end().to_owned()
}

/// The path that a name stands for.
fn path_of(area: &str, name: &str) -> anyhow::Result<String> {
    if name.starts_with('/') {
        return Ok(name.to_owned());
    }
    match recipes::place(area, name) {
        Ok(path) => Ok(path.to_string()),
        Err(error) if name.contains('/') => bail!("{error}; if it is a path, say /{name}"),
        Err(error) => Err(error.into()),
    }
}

/// What a command finds in its environment.
type Environment = Vec<(&'static str, OsString)>;

/// What a command that runs under a hold finds there.
fn environment(token: Token, path: &str, servers: &Servers) -> Environment {
    let mut environment = servers.environment();
    environment.push(("CONCLAVE_TOKEN", token.to_string().into()));
    environment.push(("CONCLAVE_PATH", path.into()));
    environment
}

/// Whether the exit code of what was typed is that of another command.
pub(super) fn runs_another(typed: &[OsString]) -> bool {
    let commands: [&[&str]; 6] =
        [&["lock"], &["elect"], &["join"], &["register"], &["barrier"], &["queue", "pop"]];
    commands.iter().any(|command| {
        typed.len() >= command.len()
            && typed.iter().zip(*command).all(|(typed, name)| typed == name)
    })
}

/// The exit code that says that what was typed is wrong, and that no command was run.
pub(super) fn misused() -> ExitCode {
    ExitCode::from(code::FAILED)
}

/// Says what failed, with the exit code that is neither the command's nor an answer.
pub(super) fn failed(error: &anyhow::Error) -> ExitCode {
    tell(&format!("conclave: {error:#}"));
    ExitCode::from(code::FAILED)
}

/// Gives up what was held. If the servers do not answer in time, or a signal comes, nobody waits for
/// them any longer: what was held goes with the session, and COMMAND's exit code is known.
///
/// # Errors
/// If it was not held any more.
async fn give_up(
    (client, servers): (&Client, &Servers),
    signals: &mut Signals,
    release: impl Future<Output = Result<(), recipes::Error>>,
) -> Result<(), recipes::Error> {
    let certain_for = client.certain_until().saturating_duration_since(Instant::now().into_std());
    let release = timeout(certain_for.min(servers.timeout()), release);
    match signals.or(release).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(error))) if matches!(error, recipes::Error::Lost { .. }) || error.is_final() => {
            Err(error)
        }
        Ok(Ok(Err(error))) => {
            tell(&format!("conclave: when COMMAND had ended: {error}"));
            Ok(())
        }
        Ok(Err(_)) | Err(_) => {
            let seconds = client.session_timeout().as_secs();
            tell(&format!(
                "conclave: COMMAND has ended, and no server answers: others have to wait until the \
                 session expires, {seconds} s after the last sign of life"
            ));
            Ok(())
        }
    }
}

/// The command and its arguments.
#[derive(Clone, Debug, clap::Args)]
struct Program {
    /// What to run, and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Program {
    /// # Errors
    /// If there is none.
    fn check(&self) -> anyhow::Result<()> {
        self.command.first().context("what is to be run? Say -- COMMAND").map(drop)
    }
}
