//! `conclave export`.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use conclave_client::{Client, Stat};
use serde_json::json;

use super::nodes::Common;
use super::say;
use super::transfer::{NODE_DATA_FILE, progress};

/// Write nodes to a directory tree
///
/// A node without children becomes a file with the node's data; a node with children, or without
/// any data, a directory; a node with both, a directory in which the file .conclave-node holds its
/// data. `conclave import` reads the same layout. Files that are right already are not written
/// again: started again after an interruption, it goes on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: conclave export /config backup/")]
pub(super) struct Export {
    /// The node
    path: String,
    /// The directory; made if it does not exist
    dir: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Default)]
struct Tally {
    nodes: u64,
    written: u64,
}

impl Export {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        self.common.with(async |client| self.work(client).await).await
    }

    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let count = client.count_descendants(&self.path).await?;
        let bar = progress(usize::try_from(count)?, self.common.output.json);
        let mut tally = Tally::default();
        let root = client.get(&self.path).await?;
        fs::create_dir_all(&self.dir)
            .with_context(|| format!("creating {}", self.dir.display()))?;
        if root.data.as_ref().is_some_and(|data| !data.is_empty()) {
            put(&self.dir.join(NODE_DATA_FILE), root.bytes(), &mut tally)?;
        }
        let mut entries = client.list_recursive(&self.path).with_stat().with_data().stream();
        while let Some(entry) = entries.next().await {
            let entry = entry.context("start the same command again to go on")?;
            bar.inc(1);
            tally.nodes += 1;
            let file = self.dir.join(&entry.name);
            let stat = entry.stat.unwrap_or_default();
            write(&file, entry.data.as_deref(), &stat, &mut tally)
                .with_context(|| format!("writing {}", file.display()))?;
        }
        bar.finish_and_clear();
        if self.common.output.json {
            say!("{}", json!({ "nodes": tally.nodes, "written": tally.written }));
        } else {
            say!(
                "{} nodes, {} files written to {}",
                tally.nodes,
                tally.written,
                self.dir.display()
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn write(file: &Path, data: Option<&[u8]>, stat: &Stat, tally: &mut Tally) -> anyhow::Result<()> {
    let Some(data) = data else { return Ok(fs::create_dir_all(file)?) };
    if stat.num_children == 0 {
        return put(file, data, tally);
    }
    fs::create_dir_all(file)?;
    if data.is_empty() {
        return Ok(());
    }
    put(&file.join(NODE_DATA_FILE), data, tally)
}

/// The file appears whole or not at all.
fn put(file: &Path, data: &[u8], tally: &mut Tally) -> anyhow::Result<()> {
    let is_right = fs::metadata(file).is_ok_and(|is| is.is_file() && is.len() == data.len() as u64)
        && fs::read(file)? == data;
    if is_right {
        return Ok(());
    }
    let dir = file.parent().context("a file is in a directory")?;
    let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
    temporary.write_all(data)?;
    temporary.persist(file)?;
    tally.written += 1;
    Ok(())
}
