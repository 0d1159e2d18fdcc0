//! What a command is given: on the command line, in a file, or on standard input.
//!
//! It is read before a session is opened: whoever types the input, or makes it, may take long, and
//! nobody is to be kept waiting for a signal, or the servers with a session, meanwhile.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use anyhow::Context;
use bytes::Bytes;

/// Where a value comes from.
#[derive(Debug, clap::Args)]
pub(super) struct Value {
    /// The data; `-` reads standard input
    #[arg(default_value = "", conflicts_with = "file")]
    data: String,
    /// Read the data from this file
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Value {
    /// The value. To be called while there is no session.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn read(&self) -> anyhow::Result<Bytes> {
        if self.file.is_none() && self.data != "-" {
            return Ok(Bytes::copy_from_slice(self.data.as_bytes()));
        }
        Ok(read(self.file.as_deref())?.into())
    }
}

/// What is in that file or, without one, on standard input. To be called while there is no session.
///
/// # Errors
/// If it cannot be read.
pub(super) fn read(file: Option<&Path>) -> anyhow::Result<Vec<u8>> {
    if let Some(file) = file {
        return fs::read(file).with_context(|| format!("reading {}", file.display()));
    }
    let mut data = Vec::new();
    io::stdin().read_to_end(&mut data).context("reading standard input")?;
    Ok(data)
}
