//! The `conclave` binary.

use std::process::ExitCode;

use clap::Parser;

mod cli;

/// A fifth of the loop's time went to the C library's allocator, which keeps long lists of free
/// pieces under a load of small messages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
