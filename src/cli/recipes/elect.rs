//! `conclave elect`.

use std::process::ExitCode;

use anyhow::ensure;
use conclave_client::Client;
use conclave_client::recipes::{Election, Error, Leader};
use serde_json::json;
use tokio::time::sleep;

use super::child::{End, Signals, exit_code, run_while_held};
use super::{
    AGAIN, EXIT_CODES, Holding, Program, code, environment, failed, give_up, part, path_of,
};
use crate::cli::{Output, say, tell};

/// Run a command while being the leader, of all who run this
///
/// Waits until it leads, runs COMMAND, and resigns when COMMAND ends, with its exit code. COMMAND
/// finds the fencing token in CONCLAVE_TOKEN: a number that only grows, and that whatever the
/// leader changes outside of Conclave should check.
///
/// If the leadership is lost (no server can be reached for too long), COMMAND gets SIGTERM, and
/// SIGKILL before anybody else can lead; then this stands for election again. COMMAND is killed as
/// well when this program is killed or frozen. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2
/// are passed on.
///
/// All this is for COMMAND and what it has started in its process group, and the leadership lasts
/// until all of that has ended. If COMMAND itself has, the first signal that asks for an end is
/// passed on to the others, and the second kills them. When standard input is a terminal there is
/// no such group: then it is for COMMAND alone.
#[derive(Debug, clap::Args)]
#[command(after_help = help())]
pub(in crate::cli) struct Elect {
    /// The election: a name below /elections, or a path
    name: String,
    /// End when the leadership is lost, with exit code 123, instead of standing again
    #[arg(long)]
    once: bool,
    /// Say who leads, and run nothing
    #[arg(long, conflicts_with_all = ["command", "once", "watch"])]
    show: bool,
    /// Say who leads whenever that changes, until Ctrl-C, and run nothing
    #[arg(long, conflicts_with_all = ["command", "once"])]
    watch: bool,
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
  conclave elect scheduler -- ./scheduler           # on each of three machines
  conclave elect scheduler --describe 10.0.0.7:8080 -- ./scheduler
  conclave elect scheduler --watch                  # who leads, as it changes

{EXIT_CODES}"
    )
}

impl Elect {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<ExitCode> {
        self.work().await.or_else(|error| Ok(failed(&error)))
    }

    async fn work(&self) -> anyhow::Result<ExitCode> {
        let path = path_of("/elections", &self.name)?;
        let only_looks = self.show || self.watch;
        let prints = only_looks || !self.output.json;
        ensure!(prints, "--json is for --show and --watch: nothing else is printed");
        if !only_looks {
            self.program.check()?;
        }
        let mut signals = Signals::catch()?;
        // Before it has stood once, what fails may be what was typed.
        let (mut has_stood, mut has_led) = (false, false);
        loop {
            let client = match signals.or(self.holding.connect()).await {
                Ok(Ok(client)) => client,
                Ok(Err(error)) if !has_stood => return Err(error),
                // It stands again as soon as there are servers.
                Ok(Err(error)) => {
                    tell(&format!("conclave: {error:#}; trying again"));
                    match signals.or(sleep(AGAIN)).await {
                        Ok(()) => continue,
                        Err(code) => return Ok(code),
                    }
                }
                Err(code) => return Ok(code),
            };
            let outcome = if only_looks {
                self.look(&client, &path, &mut signals).await.map(Some)
            } else {
                self.lead(&client, &path, &mut signals, &mut has_led).await
            };
            part(client).await;
            has_stood = true;
            match outcome {
                Ok(Some(code)) => return Ok(code),
                Ok(None) => {}
                Err(error) if has_led || is_over(&error) => {
                    tell(&format!("conclave: {error:#}; trying again"));
                    if let Err(code) = signals.or(sleep(AGAIN)).await {
                        return Ok(code);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Leads until the command ends, as often as it takes. `None`: with another session.
    async fn lead(
        &self,
        client: &Client,
        path: &str,
        signals: &mut Signals,
        has_led: &mut bool,
    ) -> anyhow::Result<Option<ExitCode>> {
        let election = Election::new(client, path)?;
        loop {
            let campaign = election.campaign(self.holding.description());
            let leadership = match signals.or(campaign).await {
                Ok(leadership) => leadership?,
                Err(code) => return Ok(Some(code)),
            };
            *has_led = true;
            let environment = environment(leadership.token(), path, &self.holding.servers);
            let held = (client, leadership.hold());
            let end = run_while_held(&self.program, environment, held, signals, false).await?;
            match end {
                End::Done(status) => {
                    let by = (client, &self.holding.servers);
                    let resigned = give_up(by, signals, leadership.resign()).await;
                    if let Err(error) = resigned {
                        tell(&format!("conclave: when COMMAND had ended: {error}"));
                        return Ok(Some(ExitCode::from(code::LOST)));
                    }
                    return Ok(Some(exit_code(status)));
                }
                End::Lost(loss) => {
                    tell(&format!("conclave: {path} is lost, and COMMAND stopped: {loss}"));
                    if self.once {
                        return Ok(Some(ExitCode::from(code::LOST)));
                    }
                    drop(leadership);
                }
                End::Revoked => unreachable!("a leadership is not asked for"),
            }
        }
    }

    async fn look(
        &self,
        client: &Client,
        path: &str,
        signals: &mut Signals,
    ) -> anyhow::Result<ExitCode> {
        let election = Election::new(client, path)?;
        if self.show {
            return Ok(match signals.or(election.leader()).await {
                Ok(leader) => {
                    self.print(leader?.as_ref());
                    ExitCode::SUCCESS
                }
                Err(code) => code,
            });
        }
        let mut observer = match signals.or(election.observe()).await {
            Ok(observer) => observer?,
            Err(_) => return Ok(ExitCode::SUCCESS),
        };
        loop {
            match signals.or(observer.next()).await {
                Ok(leader) => self.print(leader?.as_ref()),
                Err(_) => return Ok(ExitCode::SUCCESS),
            }
        }
    }

    fn print(&self, leader: Option<&Leader>) {
        let value = |leader: &Leader| String::from_utf8_lossy(&leader.value).into_owned();
        match (leader, self.output.json) {
            (None, false) => say!("nobody leads"),
            (None, true) => say!("{}", json!({ "leads": false })),
            (Some(leader), false) => {
                say!("{} leads, token {}", value(leader), leader.token);
            }
            (Some(leader), true) => say!(
                "{}",
                json!({
                    "leads": true,
                    "token": leader.token.get(),
                    "session": leader.session.to_string(),
                    "description": value(leader),
                })
            ),
        }
    }
}

/// Whether the session has ended, which says nothing against the next one.
fn is_over(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Error>().is_some_and(Error::is_final)
}
