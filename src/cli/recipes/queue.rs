//! `conclave queue`.

use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::Subcommand;
use conclave_client::Client;
use conclave_client::recipes::Error;
use conclave_client::recipes::queue::{Item, Push, Queue};
use serde_json::json;
use tokio::time::timeout;

use super::child::{Signals, exit_code, run_beside};
use super::{Program, code, failed, give_up, path_of};
use crate::cli::input::Value;
use crate::cli::nodes::{Common, print_data};
use crate::cli::show::data_json;
use crate::cli::{say, tell};

/// Put work into a queue, and take it out
///
/// Every item is handed out until somebody has done it: at least once.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct QueueArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Push(PushArgs),
    Pop(PopArgs),
    Len(LenArgs),
}

impl QueueArgs {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Push(args) => {
                let data = args.value.read()?;
                args.common.with(async |client| args.work(client, data).await).await
            }
            Command::Pop(args) => {
                let popped = args.common.with(async |client| args.work(client).await).await;
                // Not to be taken for an exit code of COMMAND.
                popped.or_else(|error| Ok(failed(&error)))
            }
            Command::Len(args) => args.common.with(async |client| args.work(client).await).await,
        }
    }
}

/// Put an item into a queue
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  conclave queue push mail 'to everybody'
  echo \"$order\" | conclave queue push orders - --id order-17   # once, however often")]
struct PushArgs {
    /// The queue: a name below /queues, or a path
    queue: String,
    #[command(flatten)]
    value: Value,
    /// Items of smaller numbers come first
    #[arg(long, default_value_t = 0)]
    priority: u32,
    /// Do nothing while an item of this id is in the queue or in work
    #[arg(long)]
    id: Option<String>,
    #[command(flatten)]
    common: Common,
}

impl PushArgs {
    async fn work(&self, client: &Client, data: Bytes) -> anyhow::Result<ExitCode> {
        let queue = Queue::new(client, path_of(QUEUES, &self.queue)?)?;
        let mut push = Push::new().priority(self.priority);
        if let Some(id) = &self.id {
            push = push.id(id);
        }
        let pushed = queue.push_with(data, push).await?;
        if self.common.output.json {
            say!("{}", json!({ "pushed": pushed }));
        } else {
            say!("{}", if pushed { "pushed" } else { "it is there already" });
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Take the next item out of a queue, and print it or give it to a command
///
/// Without COMMAND the item is printed, byte for byte, and leaves the queue. With COMMAND it is
/// COMMAND's standard input: it leaves the queue if COMMAND succeeds, and goes back otherwise, or
/// when this program dies. Then it is done again, so COMMAND should bear that; it finds a token that
/// grows in CONCLAVE_TOKEN. While COMMAND runs, signals are passed on to it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  conclave queue pop mail
  while conclave queue pop mail --wait 60 -- ./send-mail; do :; done

Exit codes:
  that of COMMAND, or 128 and the number of the signal that ended it, or this program: while it
       waited for an item, or, when COMMAND had succeeded, for servers that were away; then the item
       is handed out again, unless it has left the queue
  123  the item was lost while COMMAND ran, to its end, and is handed out again, unless somebody
       took it back: its session expired, or somebody else has it
  124  there was no item in time
  125  Conclave itself failed: no servers, no permission, a wrong name
  126  COMMAND cannot be run
  127  there is no COMMAND")]
struct PopArgs {
    /// The queue: a name below /queues, or a path
    queue: String,
    /// Wait so many seconds for an item, if there is none
    #[arg(long, value_name = "S", default_value_t = 0)]
    wait: u64,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    program: Program,
}

const QUEUES: &str = "/queues";

impl PopArgs {
    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let queue = Queue::new(client, path_of(QUEUES, &self.queue)?)?;
        let mut signals = Signals::catch()?;
        let mut consumer = queue.consumer();
        let item = match signals.or(consumer.try_next()).await {
            Err(code) => return Ok(code),
            Ok(first) => first?,
        };
        let item = match item {
            Some(item) => Some(item),
            None if self.wait == 0 => None,
            None => {
                let next = timeout(Duration::from_secs(self.wait), consumer.next());
                match signals.or(next).await {
                    Ok(item) => item.ok().transpose()?,
                    Err(code) => return Ok(code),
                }
            }
        };
        let Some(item) = item else { return Ok(ExitCode::from(code::NOT_IN_TIME)) };
        if self.program.command.is_empty() {
            self.print(&item);
            return match done(client, &mut signals, item).await {
                Ok(outcome) => settled(outcome, "the item was printed", ExitCode::SUCCESS),
                Err(code) => Ok(code),
            };
        }
        let mut environment = self.common.servers.environment();
        environment.push(("CONCLAVE_TOKEN", item.token().to_string().into()));
        let input = Some(item.data().clone());
        let status = run_beside(&self.program, environment, input, &mut signals).await?;
        let outcome = if status.success() {
            match done(client, &mut signals, item).await {
                Ok(outcome) => outcome,
                Err(code) => return Ok(code),
            }
        } else {
            give_up((client, &self.common.servers), &mut signals, item.release()).await
        };
        settled(outcome, "COMMAND had ended", exit_code(status))
    }

    fn print(&self, item: &Item) {
        if self.common.output.json {
            let (data, token) = (data_json(Some(item.data())), item.token().get());
            say!("{}", json!({ "data": data, "id": item.id(), "token": token }));
        } else {
            print_data(item.data());
        }
    }
}

/// Takes an item that is done out of its queue. A signal ends the wait for servers that are away:
/// then its exit code.
async fn done(
    client: &Client,
    signals: &mut Signals,
    item: Item,
) -> Result<Result<(), Error>, ExitCode> {
    signals.or(item.done()).await.inspect_err(|_| {
        let seconds = client.session_timeout().as_secs();
        tell(&format!(
            "conclave: no server answers: unless the item has left the queue, it is handed out again, \
             when the session expires at the latest, {seconds} s after the last sign of life"
        ));
    })
}

/// The exit code, if the item was this consumer's until the end.
fn settled(outcome: Result<(), Error>, when: &str, code: ExitCode) -> anyhow::Result<ExitCode> {
    match outcome {
        Ok(()) => Ok(code),
        Err(error) if matches!(error, Error::Lost { .. }) || error.is_final() => {
            tell(&format!("conclave: when {when}, the item was not held any more: {error}"));
            Ok(ExitCode::from(code::LOST))
        }
        Err(error) => Err(error.into()),
    }
}

/// Say how many items are in a queue
#[derive(Debug, clap::Args)]
struct LenArgs {
    /// The queue: a name below /queues, or a path
    queue: String,
    #[command(flatten)]
    common: Common,
}

impl LenArgs {
    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let items = Queue::new(client, path_of(QUEUES, &self.queue)?)?.len().await?;
        if self.common.output.json {
            say!("{}", json!({ "items": items }));
        } else {
            say!("{items}");
        }
        Ok(ExitCode::SUCCESS)
    }
}
