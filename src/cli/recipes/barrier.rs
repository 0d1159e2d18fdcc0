//! `conclave barrier`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use conclave_client::Client;
use conclave_client::recipes::{Barrier, DoubleBarrier};
use serde_json::json;
use tokio::time::timeout;

use super::child::{Signals, exit_code, run_beside};
use super::{Holding, Program, code, failed, part, path_of};
use crate::cli::nodes::Common;
use crate::cli::{say, tell};

const BARRIERS: &str = "/barriers";

/// Make programs wait for each other
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  conclave barrier raise migration                  # from now on everybody waits
  conclave barrier wait migration && ./serve        # elsewhere
  conclave barrier lower migration                  # and all go on
  conclave barrier meet step-1 --count 4 -- ./step  # begins when four have come,
                                                    # ends when all four are done

Exit codes:
  that of COMMAND, or 128 and the number of the signal that ended it
  124  still raised in the end, or not enough have come in time
  125  Conclave itself failed: no servers, no permission, a wrong name
  126  COMMAND cannot be run
  127  there is no COMMAND")]
pub(in crate::cli) struct BarrierArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Raise(Raise),
    Lower(Lower),
    Wait(Wait),
    Meet(Meet),
}

impl BarrierArgs {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<ExitCode> {
        let outcome = match self.command {
            Command::Raise(it) => it.common.with(async |client| it.work(client).await).await,
            Command::Lower(it) => it.common.with(async |client| it.work(client).await).await,
            Command::Wait(it) => it.common.with(async |client| it.work(client).await).await,
            Command::Meet(it) => it.run().await,
        };
        outcome.or_else(|error| Ok(failed(&error)))
    }
}

/// Raise a barrier: who comes to it waits, until somebody lowers it
#[derive(Debug, clap::Args)]
struct Raise {
    /// The barrier: a name below /barriers, or a path
    name: String,
    #[command(flatten)]
    common: Common,
}

impl Raise {
    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let raised = Barrier::new(client, path_of(BARRIERS, &self.name)?)?.raise().await?;
        if self.common.output.json {
            say!("{}", json!({ "raised": raised }));
        } else {
            say!("{}", if raised { "raised" } else { "it was raised already" });
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Lower a barrier: who waits at it goes on
#[derive(Debug, clap::Args)]
struct Lower {
    /// The barrier: a name below /barriers, or a path
    name: String,
    #[command(flatten)]
    common: Common,
}

impl Lower {
    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let lowered = Barrier::new(client, path_of(BARRIERS, &self.name)?)?.lower().await?;
        if self.common.output.json {
            say!("{}", json!({ "lowered": lowered }));
        } else {
            say!("{}", if lowered { "lowered" } else { "it was not raised" });
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Wait while a barrier is raised
///
/// The exit code is 124 if it still is in the end.
#[derive(Debug, clap::Args)]
struct Wait {
    /// The barrier: a name below /barriers, or a path
    name: String,
    /// Wait at most so many seconds; 0: say at once whether it is raised
    #[arg(long, value_name = "S")]
    within: Option<u64>,
    #[command(flatten)]
    common: Common,
}

impl Wait {
    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let path = path_of(BARRIERS, &self.name)?;
        let barrier = Barrier::new(client, &path)?;
        let mut signals = Signals::catch()?;
        // Asked first, since not even what is free comes within no time.
        match signals.or(barrier.is_raised()).await {
            Ok(Ok(true)) => {}
            Ok(is_raised) => return is_raised.map(|_| ExitCode::SUCCESS).map_err(Into::into),
            Err(code) => return Ok(code),
        }
        let within = self.within.map_or(Duration::MAX, Duration::from_secs);
        match signals.or(timeout(within, barrier.wait())).await {
            Ok(Ok(passed)) => {
                passed?;
                Ok(ExitCode::SUCCESS)
            }
            Ok(Err(_)) => {
                tell(&format!("conclave: the barrier {path} is still raised"));
                Ok(ExitCode::from(code::NOT_IN_TIME))
            }
            Err(code) => Ok(code),
        }
    }
}

/// Run a command when enough others have come, and end when all of them are done
///
/// Without COMMAND it ends as soon as enough have come. The exit code is that of COMMAND, 124 if not
/// enough have come in time, or 125 if Conclave failed.
#[derive(Debug, clap::Args)]
struct Meet {
    /// The barrier: a name below /barriers, or a path
    name: String,
    /// How many have to come
    #[arg(long, value_name = "N")]
    count: usize,
    /// Wait for the others at most so many seconds
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    within: Option<u64>,
    #[command(flatten)]
    holding: Holding,
    #[command(flatten)]
    program: Program,
}

impl Meet {
    async fn run(&self) -> anyhow::Result<ExitCode> {
        let path = path_of(BARRIERS, &self.name)?;
        let mut signals = Signals::catch()?;
        let client = match signals.or(self.holding.connect()).await {
            Ok(client) => client?,
            Err(code) => return Ok(code),
        };
        let outcome = self.meet(&client, &path, &mut signals).await;
        part(client).await;
        outcome
    }

    async fn meet(
        &self,
        client: &Client,
        path: &str,
        signals: &mut Signals,
    ) -> anyhow::Result<ExitCode> {
        let barrier = DoubleBarrier::new(client, path, self.count)?;
        let within = self.within.map_or(Duration::MAX, Duration::from_secs);
        let inside = match signals.or(timeout(within, barrier.enter())).await {
            Ok(Ok(inside)) => inside?,
            Ok(Err(_)) => {
                tell(&format!("conclave: not enough have come to {path} in time"));
                return Ok(ExitCode::from(code::NOT_IN_TIME));
            }
            Err(code) => return Ok(code),
        };
        let code = if self.program.command.is_empty() {
            ExitCode::SUCCESS
        } else {
            let environment = self.holding.servers.environment();
            exit_code(run_beside(&self.program, environment, None, signals).await?)
        };
        match signals.or(inside.leave()).await {
            Ok(left) => left.context("when COMMAND had ended").map(|()| code),
            Err(code) => Ok(code),
        }
    }
}
