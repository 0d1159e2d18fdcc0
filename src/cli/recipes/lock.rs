//! `conclave lock`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use conclave_client::Client;
use conclave_client::recipes::{Error, Hold, Holder, Mutex};
use serde_json::json;

use super::child::{End, Signals, exit_code, run_while_held};
use super::{EXIT_CODES, Holding, Program, code, environment, failed, give_up, part, path_of};
use crate::cli::{Output, say, tell};

/// Run a command while holding a lock that one at a time holds
///
/// Waits for the lock in the order of asking, runs COMMAND, and releases it. COMMAND finds the
/// fencing token in CONCLAVE_TOKEN: a number that only grows. A lock alone cannot stop a machine
/// that was frozen and wakes up; send the token along to whatever the lock protects, and let that
/// refuse numbers less than the greatest it has seen.
///
/// If the lock is lost (no server can be reached for too long, or somebody deleted its node),
/// COMMAND gets SIGTERM, and SIGKILL before anybody else can have the lock. It is killed as well
/// when this program is killed or frozen. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are
/// passed on.
///
/// All this is for COMMAND and what it has started in its process group, and the lock is held until
/// all of that has ended. If COMMAND itself has, the first signal that asks for an end is passed on
/// to the others, and the second kills them. When standard input is a terminal there is no such
/// group: then it is for COMMAND alone.
#[derive(Debug, clap::Args)]
#[command(after_help = help())]
pub(in crate::cli) struct Lock {
    /// The lock: a name below /locks, or a path
    name: String,
    /// Wait for the lock at most so many seconds
    #[arg(long, value_name = "S")]
    wait: Option<u64>,
    /// Stop COMMAND with SIGTERM when somebody asks for the lock with --revoke
    #[arg(long)]
    revocable: bool,
    /// Say who holds the lock, and run nothing
    #[arg(long, conflicts_with_all = ["command", "wait", "revocable", "revoke"])]
    show: bool,
    /// Ask who holds the lock to release it, and run nothing; exit code 1 if nobody holds it
    #[arg(long, conflicts_with_all = ["command", "wait", "revocable"])]
    revoke: bool,
    #[command(flatten)]
    holding: Holding,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    program: Program,
}

fn help() -> String {
    format!(
        "\
Examples:
  conclave lock backup -- ./backup.sh
  conclave lock --wait 0 nightly -- make report     # not at all if somebody else is at it
  conclave lock backup --show
  conclave lock deploy -- sh -c 'put --fence $CONCLAVE_TOKEN release.tar'

{EXIT_CODES}"
    )
}

impl Lock {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<ExitCode> {
        self.work().await.or_else(|error| Ok(failed(&error)))
    }

    async fn work(&self) -> anyhow::Result<ExitCode> {
        let path = path_of("/locks", &self.name)?;
        ensure!(self.show || !self.output.json, "--json is for --show: nothing else is printed");
        if !self.show && !self.revoke {
            self.program.check()?;
        }
        let mut signals = Signals::catch()?;
        let client = match signals.or(self.holding.connect()).await {
            Ok(client) => client?,
            Err(code) => return Ok(code),
        };
        let outcome = self.with(&client, &path, &mut signals).await;
        part(client).await;
        outcome
    }

    async fn with(
        &self,
        client: &Client,
        path: &str,
        signals: &mut Signals,
    ) -> anyhow::Result<ExitCode> {
        let mut mutex = Mutex::new(client, path)?.describe(self.holding.description());
        if self.show {
            return Ok(match signals.or(mutex.holder()).await {
                Ok(holder) => {
                    self.print(holder?.as_ref());
                    ExitCode::SUCCESS
                }
                Err(code) => code,
            });
        }
        if self.revoke {
            let asked = match signals.or(mutex.revoke()).await {
                Ok(asked) => asked?,
                Err(code) => return Ok(code),
            };
            if asked.is_none() {
                tell(&format!("conclave: nobody holds {path}"));
                return Ok(ExitCode::FAILURE);
            }
            return Ok(ExitCode::SUCCESS);
        }
        let hold = match signals.or(self.acquire(&mut mutex)).await {
            Ok(Ok(hold)) => hold,
            Ok(Err(Error::Deadline { .. })) => {
                tell(&format!("conclave: {path} was not to be had in time"));
                return Ok(ExitCode::from(code::NOT_IN_TIME));
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(code) => return Ok(code),
        };
        let environment = environment(hold.token(), path, &self.holding.servers);
        let held = (client, &hold);
        let end = run_while_held(&self.program, environment, held, signals, self.revocable).await?;
        let by = (client, &self.holding.servers);
        Ok(match end {
            End::Done(status) => match give_up(by, signals, hold.release()).await {
                Ok(()) => exit_code(status),
                Err(error) => {
                    tell(&format!("conclave: when COMMAND had ended: {error}"));
                    ExitCode::from(code::LOST)
                }
            },
            End::Revoked => {
                tell(&format!("conclave: {path} was asked for, and COMMAND stopped"));
                if let Err(error) = give_up(by, signals, hold.release()).await {
                    tell(&format!("conclave: when COMMAND had ended: {error}"));
                }
                ExitCode::from(code::LOST)
            }
            End::Lost(loss) => {
                tell(&format!("conclave: {path} is lost, and COMMAND stopped: {loss}"));
                ExitCode::from(code::LOST)
            }
        })
    }

    async fn acquire(&self, mutex: &mut Mutex) -> Result<Hold, Error> {
        match self.wait {
            // Even a free lock is not had in no time.
            Some(0) => match mutex.try_lock().await? {
                Some(hold) => Ok(hold),
                None => mutex.lock_within(Duration::ZERO).await,
            },
            Some(seconds) => mutex.lock_within(Duration::from_secs(seconds)).await,
            None => mutex.lock().await,
        }
    }

    fn print(&self, holder: Option<&Holder>) {
        let description =
            |holder: &Holder| String::from_utf8_lossy(&holder.description).into_owned();
        match (holder, self.output.json) {
            (None, false) => say!("free"),
            (None, true) => say!("{}", json!({ "held": false })),
            (Some(holder), false) => {
                say!("held by {}, token {}", description(holder), holder.token);
            }
            (Some(holder), true) => say!(
                "{}",
                json!({
                    "held": true,
                    "token": holder.token.get(),
                    "session": holder.session.to_string(),
                    "description": description(holder),
                })
            ),
        }
    }
}
