//! `conclave export`.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use bytes::Bytes;
use conclave_client::{Acl, Client, Entry, ErrorCode, Pending, SessionId, Stat, ZPath};
use serde_json::{Value, json};

use super::acls;
use super::mirror::Mirror;
use super::nodes::Common;
use super::say;
use super::transfer::{
    ACLS_FILE, LeftOut, NODE_DATA_FILE, UNFINISHED, is_of_the_servers, progress,
};

/// Write nodes to a directory tree
///
/// A node without children becomes a file with the node's data; a node with children, or without
/// any data, a directory; a node with both, a directory in which the file .conclave-node holds its
/// data. The ACLs that do not let everybody do everything are in .conclave-acl. `conclave import`
/// reads the same layout. Ephemeral nodes are not in it, but counted, nor is /zookeeper, which every
/// ensemble has of its own. What is written meanwhile may be in it or not. What cannot become a file (not readable for this session, a
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

/// Nodes whose ACLs are asked for at one time.
const IN_FLIGHT: usize = 256;
/// The bytes of their data.
const BYTES_IN_FLIGHT: usize = 8 << 20;
/// What to do about an error of the way to the servers.
const AGAIN: &str = "start the same command again to go on";

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
        let (acl, _) = client.get_acl(top).await?;
        let bar = progress(None, self.common.output.json);
        let mut mirror = Mirror::begin(&self.dir, self.replace)?;
        mirror
            .directory(Path::new(""), own.bytes())
            .and_then(|()| acls::line("", &acl).map_or(Ok(()), |line| mirror.acl(&line)))
            .with_context(|| format!("writing {}", self.dir.display()))?;
        let mut walk = Walk { mirror, tally: Tally::default(), lost: None };
        let mut waiting: VecDeque<Found> = VecDeque::new();
        let mut bytes = 0;
        let mut entries = client.list_recursive(top).with_stat().with_data().stream();
        while let Some(entry) = entries.next().await {
            let entry = entry.context(AGAIN)?;
            bar.inc(1);
            let path = top.descendant(&entry.name).context("a path from the servers")?;
            if is_of_the_servers(&path, top) {
                continue;
            }
            let acl = client.get_acl(&path).send();
            let found = Found { path, entry, acl };
            bytes += found.bytes();
            waiting.push_back(found);
            while waiting.len() >= IN_FLIGHT || bytes >= BYTES_IN_FLIGHT {
                let Some(found) = waiting.pop_front() else { break };
                bytes -= found.bytes();
                walk.take(found).await?;
            }
        }
        for found in waiting {
            walk.take(found).await?;
        }
        bar.finish_and_clear();
        Ok((walk.mirror, walk.tally))
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

/// A node, while its ACL is asked for.
struct Found {
    path: ZPath,
    entry: Entry,
    acl: Pending<(Vec<Acl>, Stat)>,
}

impl Found {
    fn bytes(&self) -> usize {
        self.entry.data.as_ref().map_or(0, Bytes::len)
    }
}

/// The way through the tree.
struct Walk {
    mirror: Mirror,
    tally: Tally,
    /// The last node that was left out. So is what is below it.
    lost: Option<ZPath>,
}

impl Walk {
    async fn take(&mut self, found: Found) -> anyhow::Result<()> {
        let Found { path, entry, acl } = found;
        if self.lost.as_ref().is_some_and(|above| path.is_within(above)) {
            return Ok(());
        }
        let acl = match acl.await {
            Ok((acl, _)) => Some(acl),
            Err(error) if error.code() == Some(ErrorCode::NoAuth) => None,
            // It is gone since.
            Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(()),
            Err(error) => return Err(error).context(AGAIN),
        };
        let why = match (&entry.stat, acl) {
            (Some(stat), Some(acl)) => self
                .write(&entry, stat, &acl)
                .with_context(|| format!("writing the file of {path}"))?,
            (None, _) | (_, None) => Some("this session has no permission to read it"),
        };
        if let Some(why) = why {
            self.tally.left_out.add(format!("{path}: {why}; what is below it is left out too"));
            self.lost = Some(path);
        }
        Ok(())
    }

    /// Writes a node, or tells why it cannot be written. Ephemeral nodes are only counted.
    fn write(
        &mut self,
        entry: &Entry,
        stat: &Stat,
        acl: &[Acl],
    ) -> io::Result<Option<&'static str>> {
        if stat.ephemeral_owner != SessionId::NONE {
            self.tally.ephemeral += 1;
            return Ok(None);
        }
        let (above, name) = entry.name.rsplit_once('/').unwrap_or(("", &entry.name));
        if [ACLS_FILE, NODE_DATA_FILE, UNFINISHED].contains(&name) {
            return Ok(Some("a file of this name has another meaning"));
        }
        let mirror = &mut self.mirror;
        let written = match &entry.data {
            Some(data) if stat.num_children == 0 => mirror.file(Path::new(above), name, data),
            data => mirror.directory(Path::new(&entry.name), data.as_deref().unwrap_or_default()),
        };
        match written {
            Ok(()) => self.tally.nodes += 1,
            Err(error) if error.kind() == ErrorKind::InvalidFilename => {
                return Ok(Some("its name is too long for a file"));
            }
            Err(error) => return Err(error),
        }
        if let Some(line) = acls::line(&entry.name, acl) {
            self.mirror.acl(&line)?;
        }
        Ok(None)
    }
}
