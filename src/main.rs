//! The `conclave` binary.

use std::process::ExitCode;

use clap::Parser;

mod cli;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
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
