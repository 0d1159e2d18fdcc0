//! `conclave completions`.

use std::io::{self, Write as _};
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
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "conclave", &mut script);
    super::printed(io::stdout().write_all(&script));
    Ok(ExitCode::SUCCESS)
}
