//! `conclave completions`.

use std::io;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

/// Print a script that completes `conclave` commands in your shell
///
/// For instance: conclave completions bash >> ~/.bashrc
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    clap_complete::generate(args.shell, &mut super::Cli::command(), "conclave", &mut io::stdout());
    Ok(ExitCode::SUCCESS)
}
