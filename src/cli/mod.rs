//! The command line: one file a command, or a family of them.

mod completions;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Conclave: a coordination service.
///
/// Start with `conclave dev`: three servers on this machine, and what to type next.
#[derive(Debug, Parser)]
#[command(name = "conclave", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one server of an ensemble
    Serve(Box<serve::Args>),
    /// Print a script that completes `conclave` commands in your shell
    Completions(completions::Args),
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// If it could not be done: a sentence for the person who asked.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Serve(args) => serve::run(*args),
            Command::Completions(args) => completions::run(&args),
        }
    }
}
