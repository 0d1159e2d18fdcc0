//! `conclave import`.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use bytes::Bytes;
use conclave_client::{Client, Created, ErrorCode, Pending, ZPath};
use indicatif::ProgressBar;
use serde_json::json;
use walkdir::{DirEntry, WalkDir};

use super::nodes::Common;
use super::say;
use super::transfer::{NODE_DATA_FILE, progress};

/// Operations in flight.
const IN_FLIGHT: usize = 256;
/// Bytes in flight.
const BYTES_IN_FLIGHT: usize = 8 << 20;
/// What is left out is named up to this many times, so that memory stays bounded.
const LEFT_OUT_NAMED: usize = 10_000;

/// Load a directory tree into nodes
///
/// A directory becomes a node without data, a file a node with the file's contents. What is there
/// already is brought up to date, and nothing is deleted: started again after an interruption, it
/// goes on. Symbolic links are skipped. What cannot become a node (too large, unreadable, a name that
/// no node can have) is named at the end, and the exit code is 3.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: conclave import /etc /config")]
pub(super) struct Import {
    /// The directory
    dir: PathBuf,
    /// The node to load it into; made if it does not exist
    path: String,
    /// Load what symbolic links point to
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    common: Common,
}

impl Import {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        ensure!(self.dir.is_dir(), "{} is not a directory", self.dir.display());
        let root = ZPath::new(&self.path).with_context(|| format!("the path {:?}", self.path))?;
        self.common.with(async |client| self.work(client, &root).await).await
    }

    async fn work(&self, client: &Client, root: &ZPath) -> anyhow::Result<ExitCode> {
        let total = self.walk().count();
        let bar = progress(total, self.common.output.json);
        let mut import = Load { client, bar, window: Window::default(), tally: Tally::default() };
        for above in root.ancestors().collect::<Vec<_>>().into_iter().rev() {
            if !above.is_root() {
                import.put(above, None).await?;
            }
        }
        for entry in self.walk() {
            import.bar.inc(1);
            match entry {
                Ok(entry) => self.load(&mut import, root, &entry).await?,
                Err(error) => import.leave_out(&error.to_string()),
            }
        }
        import.drain(0).await?;
        import.bar.finish_and_clear();
        let tally = import.tally;
        self.report(&tally);
        Ok(if tally.left_out.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(3) })
    }

    fn walk(&self) -> impl Iterator<Item = walkdir::Result<DirEntry>> + use<> {
        WalkDir::new(&self.dir).follow_links(self.follow).sort_by_file_name().into_iter()
    }

    async fn load(
        &self,
        import: &mut Load<'_>,
        root: &ZPath,
        entry: &DirEntry,
    ) -> anyhow::Result<()> {
        let name = entry.path().display();
        let relative = entry.path().strip_prefix(&self.dir).expect("the walk starts there");
        let is_node_data = relative.file_name().is_some_and(|name| name == NODE_DATA_FILE);
        let relative = if is_node_data { relative.parent().unwrap_or(relative) } else { relative };
        let path = match node_path(root, relative) {
            Ok(path) => path,
            Err(error) => {
                import.leave_out(&format!("{name}: {error:#}"));
                return Ok(());
            }
        };
        let kind = entry.file_type();
        if kind.is_dir() {
            return import.put(path, None).await;
        }
        if kind.is_symlink() {
            import.tally.links += 1;
            return Ok(());
        }
        if !kind.is_file() {
            import.leave_out(&format!("{name}: neither a file nor a directory"));
            return Ok(());
        }
        match read(entry.path()) {
            Ok(data) => import.put(path, Some(data)).await,
            Err(error) => {
                import.leave_out(&format!("{name}: {error:#}"));
                Ok(())
            }
        }
    }

    fn report(&self, tally: &Tally) {
        if self.common.output.json {
            say!(
                "{}",
                json!({
                    "created": tally.created,
                    "changed": tally.changed,
                    "unchanged": tally.unchanged,
                    "links": tally.links,
                    "left_out": tally.left_out,
                    "left_out_more": tally.left_out_more,
                })
            );
            return;
        }
        for line in &tally.left_out {
            say!("left out: {line}");
        }
        say!(
            "{} created, {} changed, {} as they were, {} left out",
            tally.created,
            tally.changed,
            tally.unchanged,
            tally.left_out.len() as u64 + tally.left_out_more
        );
        if tally.links > 0 {
            say!("{} symbolic links were not followed; --follow loads their targets", tally.links);
        }
    }
}

fn node_path(root: &ZPath, relative: &Path) -> anyhow::Result<ZPath> {
    if relative.as_os_str().is_empty() {
        return Ok(root.clone());
    }
    let relative = relative.to_str().context("the name is not UTF-8")?;
    Ok(root.descendant(relative)?)
}

fn read(path: &Path) -> anyhow::Result<Bytes> {
    let length = fs::metadata(path)?.len();
    let most = conclave::limits::VALUE_BYTES;
    ensure!(length <= most as u64, "{length} bytes; a node holds at most {most}");
    Ok(fs::read(path)?.into())
}

/// What has come of it so far.
#[derive(Debug, Default)]
struct Tally {
    created: u64,
    changed: u64,
    unchanged: u64,
    /// Symbolic links that were not followed.
    links: u64,
    /// The first of what was left out, by name.
    left_out: Vec<String>,
    /// How many there were beyond those.
    left_out_more: u64,
}

/// Creations under way, in the order they were asked.
#[derive(Default)]
struct Window {
    creations: VecDeque<(ZPath, Option<Bytes>, Pending<Created>)>,
    bytes: usize,
}

struct Load<'a> {
    client: &'a Client,
    bar: ProgressBar,
    window: Window,
    tally: Tally,
}

impl Load<'_> {
    /// Makes a node have this data; `None` is a directory, which only has to exist.
    async fn put(&mut self, path: ZPath, data: Option<Bytes>) -> anyhow::Result<()> {
        let create = self.client.create(&path, data.clone().unwrap_or_default());
        let create = if data.is_none() { create.without_data() } else { create };
        self.window.bytes += data.as_ref().map_or(0, Bytes::len);
        self.window.creations.push_back((path, data, create.send()));
        while self.window.creations.len() >= IN_FLIGHT || self.window.bytes >= BYTES_IN_FLIGHT {
            self.settle().await?;
        }
        Ok(())
    }

    async fn drain(&mut self, most: usize) -> anyhow::Result<()> {
        while self.window.creations.len() > most {
            self.settle().await?;
        }
        Ok(())
    }

    /// Waits for the oldest creation; brings the node up to date if it was there already.
    async fn settle(&mut self) -> anyhow::Result<()> {
        let Some((path, data, creation)) = self.window.creations.pop_front() else { return Ok(()) };
        self.window.bytes -= data.as_ref().map_or(0, Bytes::len);
        match creation.await {
            Ok(_) => self.tally.created += 1,
            Err(error) if error.code() == Some(ErrorCode::NodeExists) => {
                self.refresh(&path, data).await?;
            }
            Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                self.leave_out(&format!("{path}: the node above it was left out"));
            }
            Err(error) => {
                return Err(error).context("start the same command again to go on");
            }
        }
        Ok(())
    }

    async fn refresh(&mut self, path: &ZPath, data: Option<Bytes>) -> anyhow::Result<()> {
        let is = self.client.get(path).await?;
        match data {
            Some(data) if is.data.as_ref() != Some(&data) => {
                self.client.set(path, data).await?;
                self.tally.changed += 1;
            }
            Some(_) | None => self.tally.unchanged += 1,
        }
        Ok(())
    }

    fn leave_out(&mut self, what: &str) {
        if self.tally.left_out.len() < LEFT_OUT_NAMED {
            self.tally.left_out.push(what.to_owned());
        } else {
            self.tally.left_out_more += 1;
        }
    }
}
