//! The `conclave` binary.

use std::process::ExitCode;

use clap::Parser;

mod cli;

/// A third more creations a second than with the C library's: see docs/decisions/0015-mimalloc.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::explain(&error),
    };
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            #[expect(
                clippy::print_stderr,
                reason = "the one place that tells the user what failed"
            )]
            {
                eprintln!("conclave: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
