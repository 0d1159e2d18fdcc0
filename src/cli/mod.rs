//! The command line: one file a command, or a family of them.

mod acls;
mod bench;
mod browse;
mod completions;
mod connect;
mod dev;
mod ensemble;
mod export;
mod import;
mod input;
mod mirror;
mod multi;
mod nodes;
mod password;
mod recipes;
mod serve;
mod show;
mod status;
mod transfer;

use std::io::{self, ErrorKind};
use std::process::{ExitCode, exit};
use std::thread;

use clap::{Parser, Subcommand};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Conclave: a coordination service.
///
/// `conclave dev` starts three servers on this machine and says what to type next. The commands
/// that read and change nodes find their servers in --servers or CONCLAVE_SERVERS; paths look like
/// /app/config. Every command explains itself: `conclave get --help`.
#[derive(Debug, Parser)]
#[command(name = "conclave", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Dev(dev::Args),
    Serve(Box<serve::Args>),
    Create(nodes::Create),
    Get(nodes::Get),
    Set(nodes::Set),
    Delete(nodes::Delete),
    Ls(browse::Ls),
    Tree(browse::Tree),
    Stat(nodes::Stat),
    Exists(nodes::Exists),
    Watch(browse::Watch),
    Sync(nodes::Sync),
    Multi(multi::Multi),
    Import(import::Import),
    Export(export::Export),
    Lock(recipes::Lock),
    Elect(recipes::Elect),
    Join(recipes::Join),
    Members(recipes::Members),
    Register(recipes::Register),
    Discover(recipes::Discover),
    Queue(recipes::QueueArgs),
    Barrier(recipes::BarrierArgs),
    Config(recipes::Config),
    RunHeld(recipes::ChildArgs),
    #[command(hide = true)]
    GuardHeld,
    Password(password::Args),
    Status(status::Args),
    Bench(bench::Args),
    Compare(bench::CompareArgs),
    CompareLocks(bench::CompareLocksArgs),
    Completions(completions::Args),
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// If it could not be done: a sentence for the person who asked.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Dev(args) => wait_for(dev::run(args)),
            Command::Serve(args) => serve::run(*args),
            Command::Create(command) => wait_for(command.run()),
            Command::Get(command) => wait_for(command.run()),
            Command::Set(command) => wait_for(command.run()),
            Command::Delete(command) => wait_for(command.run()),
            Command::Ls(command) => wait_for(command.run()),
            Command::Tree(command) => wait_for(command.run()),
            Command::Stat(command) => wait_for(command.run()),
            Command::Exists(command) => wait_for(command.run()),
            Command::Watch(command) => wait_for(command.run()),
            Command::Sync(command) => wait_for(command.run()),
            Command::Multi(command) => wait_for(command.run()),
            Command::Import(command) => wait_for(command.run()),
            Command::Export(command) => wait_for(command.run()),
            Command::Lock(command) => wait_for(command.run()),
            Command::Elect(command) => wait_for(command.run()),
            Command::Join(command) => wait_for(command.run()),
            Command::Members(command) => wait_for(command.run()),
            Command::Register(command) => wait_for(command.run()),
            Command::Discover(command) => wait_for(command.run()),
            Command::Queue(command) => wait_for(command.run()),
            Command::Barrier(command) => wait_for(command.run()),
            Command::Config(command) => wait_for(command.run()),
            Command::RunHeld(args) => recipes::run_child(&args),
            Command::GuardHeld => wait_for(recipes::run_guard()),
            Command::Password(args) => password::run(&args),
            Command::Status(args) => wait_for(status::run(args)),
            Command::Bench(args) => measure(bench::run(args)),
            Command::Compare(args) => measure(bench::compare(args)),
            Command::CompareLocks(args) => measure(bench::compare_locks(args)),
            Command::Completions(args) => completions::run(&args),
        }
    }
}

/// Says what is wrong with what was typed, or the help that was asked for.
pub(crate) fn explain(error: &clap::Error) -> ExitCode {
    // Nothing depends on whether anybody reads it.
    error.print().ok();
    let typed: Vec<_> = std::env::args_os().skip(1).collect();
    if error.use_stderr() && recipes::runs_another(&typed) {
        return recipes::misused();
    }
    if error.use_stderr() && typed.first().is_some_and(|command| command == "serve") {
        return serve::misused();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1))
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Output {
    /// Print JSON, one value a line, for programs
    #[arg(long)]
    json: bool,
}

/// Runs a command that talks to servers, on this thread. What keeps its session alive has another
/// one: this one may have to wait for a file, or for somebody who does not read what is printed.
fn wait_for(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (end, ended) = oneshot::channel::<()>();
    thread::scope(move |scope| {
        scope.spawn(move || {
            // It ends when its other end is dropped.
            runtime.block_on(ended).ok();
            // A name of a server that is not found yet interests nobody any more.
            runtime.shutdown_background();
        });
        let outcome = handle.block_on(command);
        drop(end);
        outcome
    })
}

/// Runs a command that measures, on this thread with all that belongs to it.
fn measure(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(command);
    runtime.shutdown_background();
    outcome.or_else(|error| {
        let Unprinted(why) = error.downcast()?;
        end_unprinted(&why)
    })
}

/// Runs something until it is done, or Ctrl-C or a request to terminate comes: then `None`.
async fn until_stopped<T>(work: impl Future<Output = T>) -> io::Result<Option<T>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = work => Ok(Some(done)),
        _ = interrupt.recv() => Ok(None),
        _ = terminate.recv() => Ok(None),
    }
}

/// Says something to the person at the terminal that is not what was asked for. Nothing depends on
/// whether anybody reads it.
fn tell(what: &str) {
    use std::io::Write as _;
    writeln!(io::stderr(), "{what}").ok();
}

/// What comes of printing what the user asked for. A closed pipe (`conclave ls | head`) ends the
/// program quietly, as it does other tools; anything else (a full disk) ends it, too, and is told
/// of, with a code that is no answer of any command.
fn printed(outcome: io::Result<()>) {
    if let Err(error) = outcome {
        end_unprinted(&error);
    }
}

fn end_unprinted(error: &io::Error) -> ! {
    if error.kind() == ErrorKind::BrokenPipe {
        exit(READER_LEFT);
    }
    tell(&format!("conclave: writing to standard output: {error}"));
    exit(NOT_PRINTED);
}

/// The exit code of a program that SIGPIPE ends.
const READER_LEFT: i32 = 141;
/// That of one whose output is lost: EX_IOERR.
const NOT_PRINTED: i32 = 74;

/// Prints a line of what the user asked for.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        $crate::cli::printed(writeln!(std::io::stdout(), $($text)*));
    }};
}
use say;

/// What was asked for could not be printed by a command that has others to end before it ends.
#[derive(Debug, thiserror::Error)]
#[error("writing to standard output")]
struct Unprinted(#[source] io::Error);

/// Prints a line of what the user asked for. If that fails, so does the command, and ends then as after
/// [`say`].
macro_rules! try_say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout(), $($text)*).map_err($crate::cli::Unprinted)
    }};
}
use try_say;
