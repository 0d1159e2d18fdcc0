//! `conclave password`.

use std::io::{BufRead, IsTerminal, stdin};
use std::process::ExitCode;

use anyhow::bail;
use conclave::server::hash_password;

use super::{Output, say, tell};

/// Hash a password for the configuration of the servers
///
/// Reads one line from the standard input and prints its slow, salted hash (argon2id), which goes
/// into every server's configuration:
///
///   users = [{ name = "alice", hash = "$argon2id$..." }]
///
/// Clients then authenticate with the scheme `password` and `alice:PASSWORD`, and ACLs can name
/// `password:alice`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if stdin().is_terminal() {
        tell("Type the password and press Enter. It is shown as you type; `read -rs` hides it:");
        tell("  read -rs p && printf %s \"$p\" | conclave password");
    }
    let mut line = String::new();
    stdin().lock().read_line(&mut line)?;
    let password = line.trim_end_matches(['\n', '\r']);
    if password.is_empty() {
        bail!("there is no password on the standard input");
    }
    let hash = hash_password(password.as_bytes());
    match args.output.json {
        true => say!("{}", serde_json::json!({ "hash": hash })),
        false => say!("{hash}"),
    }
    Ok(ExitCode::SUCCESS)
}
