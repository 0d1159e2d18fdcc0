//! `conclave export`.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use conclave_client::{Client, Entry, SessionId, ZPath};
use serde_json::{Value, json};

use super::mirror::Mirror;
use super::nodes::Common;
use super::say;
use super::transfer::{LeftOut, NODE_DATA_FILE, UNFINISHED, is_of_the_servers, progress};

/// Write nodes to a directory tree
///
/// A node without children becomes a file with the node's data; a node with children, or without
/// any data, a directory; a node with both, a directory in which the file .conclave-node holds its
/// data. `conclave import` reads the same layout. ACLs and lifetimes are not in it, nor are
/// ephemeral nodes, which are counted, and /zookeeper, which every ensemble has of its own. What is
/// written meanwhile may be in it or not. What cannot become a file (not readable for this session, a
/// name that no file can have) is named at the end, and the exit code is 3.
///
/// The directory must be empty, or be given up with --replace; then, too, files that are right already
/// are not written again. The same command started again after an interruption goes on; until it has
/// ended, .conclave-export is in the directory.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  conclave export /config backup/
  conclave export --replace /config backup/")]
pub(super) struct Export {
    /// The node
    path: String,
    /// The directory; made if it does not exist
    dir: PathBuf,
    /// Remove everything from the directory that is not in the tree
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Default)]
struct Tally {
    nodes: u64,
    ephemeral: u64,
    left_out: LeftOut,
}

impl Export {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let top = ZPath::new(&self.path).with_context(|| format!("the path {:?}", self.path))?;
        let (mirror, tally) =
            self.common.with(async |client| self.work(client, &top).await).await?;
        let written = mirror.finish().with_context(|| format!("writing {}", self.dir.display()))?;
        self.report(&top, &tally, written);
        Ok(tally.left_out.exit_code())
    }

    async fn work(&self, client: &Client, top: &ZPath) -> anyhow::Result<(Mirror, Tally)> {
        // From here on the session sees nothing older.
        let own = client.get(top).linearizable().await?;
        let bar = progress(None, self.common.output.json);
        let mut mirror = Mirror::begin(&self.dir, self.replace)?;
        mirror
            .directory(Path::new(""), own.bytes())
            .with_context(|| format!("writing {}", self.dir.display()))?;
        let mut tally = Tally::default();
        let mut unreachable: Option<ZPath> = None;
        let mut entries = client.list_recursive(top).with_stat().with_data().stream();
        while let Some(entry) = entries.next().await {
            let entry = entry.context("start the same command again to go on")?;
            bar.inc(1);
            let path = top.descendant(&entry.name).context("a path from the servers")?;
            let skipped = unreachable.as_ref().is_some_and(|above| path.is_within(above));
            if skipped || is_of_the_servers(&path, top) {
                continue;
            }
            if let Some(why) = write(&mut mirror, &mut tally, &entry)
                .with_context(|| format!("writing {}", self.dir.join(&entry.name).display()))?
            {
                tally.left_out.add(format!("{path}: {why}; what is below it is left out too"));
                unreachable = Some(path);
            }
        }
        bar.finish_and_clear();
        Ok((mirror, tally))
    }

    fn report(&self, top: &ZPath, tally: &Tally, written: u64) {
        let Tally { nodes, ephemeral, left_out } = tally;
        if self.common.output.json {
            let mut report = serde_json::Map::new();
            report.insert("nodes".into(), json!(nodes));
            report.insert("written".into(), json!(written));
            report.insert("ephemeral".into(), json!(ephemeral));
            left_out.add_to(&mut report);
            say!("{}", Value::Object(report));
            return;
        }
        left_out.print();
        say!("{nodes} nodes, {written} files written to {}", self.dir.display());
        if *ephemeral > 0 {
            say!("{ephemeral} ephemeral nodes are not in it: they end with their sessions");
        }
        if top.is_root() {
            say!("/zookeeper is not in it: every ensemble has its own");
        }
    }
}

/// Writes a node, or tells why it cannot be written. Ephemeral nodes are only counted.
fn write(
    mirror: &mut Mirror,
    tally: &mut Tally,
    entry: &Entry,
) -> io::Result<Option<&'static str>> {
    let Some(stat) = &entry.stat else {
        return Ok(Some("this session has no permission to read it"));
    };
    if stat.ephemeral_owner != SessionId::NONE {
        tally.ephemeral += 1;
        return Ok(None);
    }
    let (above, name) = entry.name.rsplit_once('/').unwrap_or(("", &entry.name));
    if [NODE_DATA_FILE, UNFINISHED].contains(&name) {
        return Ok(Some("a file of this name has another meaning"));
    }
    let written = match &entry.data {
        Some(data) if stat.num_children == 0 => mirror.file(Path::new(above), name, data),
        data => mirror.directory(Path::new(&entry.name), data.as_deref().unwrap_or_default()),
    };
    match written {
        Ok(()) => {
            tally.nodes += 1;
            Ok(None)
        }
        Err(error) if error.kind() == ErrorKind::InvalidFilename => {
            Ok(Some("its name is too long for a file"))
        }
        Err(error) => Err(error),
    }
}
