//! `conclave import`.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use conclave_client::{Acl, Client, CreateMode, Created, Error};
use conclave_client::{ErrorCode, Node, Pending, Stat, ZPath};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use walkdir::{DirEntry, WalkDir};

use super::acls::Acls;
use super::nodes::{Common, create_missing};
use super::say;
use super::transfer::{
    ACLS_FILE, LeftOut, NODE_DATA_FILE, UNFINISHED, is_of_the_servers, progress,
};

/// Looks in flight, and as many changes.
const IN_FLIGHT: usize = 256;
/// Bytes in flight.
const BYTES_IN_FLIGHT: usize = 8 << 20;
/// The digits of the number at the end of a sequential node's name.
const NUMBER_DIGITS: usize = 10;
/// The last number that a sequential node can have.
const LAST_NUMBER: u64 = 9_999_999_999;
/// What to do about an error of the way to the servers.
const AGAIN: &str = "start the same command again to go on";

/// Load a directory tree into nodes
///
/// A directory becomes a node with the data in its file .conclave-node, or without any, a file a node
/// with the file's contents. What is there already is brought up to date, and nothing is deleted:
/// started again after an interruption, it goes on. New nodes are persistent, and have the ACLs that
/// an export has written to .conclave-acl; all others let everybody do everything.
/// Symbolic links are skipped. What cannot become a node (too large, unreadable, a name that no node
/// can have, refused by the servers, in their own /zookeeper) is named at the end, and the exit code
/// is 3.
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
        self.check_ended()?;
        let root = ZPath::new(&self.path).with_context(|| format!("the path {:?}", self.path))?;
        self.common.with(async |client| self.work(client, &root).await).await
    }

    /// The ACLs of an export, and of each part of it, are known only when it has ended.
    fn check_ended(&self) -> anyhow::Result<()> {
        let dir = self.dir.canonicalize();
        let dir = dir.with_context(|| format!("reading {}", self.dir.display()))?;
        if let Some(top) = dir.ancestors().find(|above| above.join(UNFINISHED).exists()) {
            bail!(
                "an export into {} has not ended: start it again, or remove {UNFINISHED} from it to \
                 load what there is without the ACLs that are still missing, for everybody to read \
                 and change",
                top.display()
            );
        }
        Ok(())
    }

    async fn work(&self, client: &Client, root: &ZPath) -> anyhow::Result<ExitCode> {
        let bar = progress(Some(self.walk().count()), self.common.output.json);
        let mut import = Load::new(client, bar, Acls::read(&self.dir)?);
        // From here on the session sees nothing older.
        client.sync().await?;
        if let Some(above) = root.parent() {
            create_missing(client, &above).await?;
        }
        for entry in self.walk() {
            import.bar.inc(1);
            match entry {
                Ok(entry) => self.load(&mut import, root, &entry).await?,
                Err(error) => import.leave_out(error.to_string()),
            }
        }
        import.drain().await?;
        import.bar.finish_and_clear();
        self.report(&import.tally);
        Ok(import.tally.left_out.exit_code())
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
        let kind = entry.file_type();
        let relative = entry.path().strip_prefix(&self.dir).expect("the walk starts there");
        // The one came with its directory, the other before all.
        let is_read = entry.file_name() == NODE_DATA_FILE || relative == Path::new(ACLS_FILE);
        if is_read && kind.is_file() {
            return Ok(());
        }
        if relative.iter().any(|part| part == UNFINISHED) {
            if entry.file_name() == UNFINISHED {
                import.leave_out(format!("{name}: the export into this directory has not ended"));
            }
            return Ok(());
        }
        let path = match node_path(root, relative) {
            Ok(path) => path,
            Err(error) => {
                import.leave_out(format!("{name}: {error:#}"));
                return Ok(());
            }
        };
        if is_of_the_servers(&path, root) {
            if path.depth() == 1 {
                import.leave_out(format!("{path}: every ensemble has its own, and all below it"));
            }
            return Ok(());
        }
        if kind.is_dir() {
            let data = self.data_of(entry.path()).unwrap_or_else(|error| {
                import.leave_out(format!("{name}/{NODE_DATA_FILE}: {error:#}"));
                None
            });
            return import.put(relative, path, data, after_numbers(entry.path())).await;
        }
        if kind.is_symlink() {
            import.tally.links += 1;
            return Ok(());
        }
        if !kind.is_file() {
            import.leave_out(format!("{name}: neither a file nor a directory"));
            return Ok(());
        }
        match read(entry.path()) {
            Ok(data) => import.put(relative, path, Some(data), 0).await,
            Err(error) => {
                import.leave_out(format!("{name}: {error:#}"));
                Ok(())
            }
        }
    }

    /// The data of a directory's own node, if it is there.
    fn data_of(&self, dir: &Path) -> anyhow::Result<Option<Bytes>> {
        let file = dir.join(NODE_DATA_FILE);
        let look = if self.follow { fs::metadata(&file) } else { fs::symlink_metadata(&file) };
        if look.is_ok_and(|is| is.is_file()) { read(&file).map(Some) } else { Ok(None) }
    }

    fn report(&self, tally: &Tally) {
        let Tally { created, changed, unchanged, links, left_out } = tally;
        if self.common.output.json {
            let mut report = serde_json::Map::new();
            report.insert("created".into(), json!(created));
            report.insert("changed".into(), json!(changed));
            report.insert("unchanged".into(), json!(unchanged));
            report.insert("links".into(), json!(links));
            left_out.add_to(&mut report);
            say!("{}", Value::Object(report));
            return;
        }
        left_out.print();
        say!(
            "{created} created, {changed} changed, {unchanged} as they were, {} left out",
            left_out.count()
        );
        if *links > 0 {
            say!("{links} symbolic links were not followed; --follow loads their targets");
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

/// The number after those that the servers gave to the nodes in a directory, as ten digits at the end
/// of their names; 0 if there are none.
fn after_numbers(dir: &Path) -> u64 {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    names
        .filter_map(|entry| number_of(entry.file_name().to_str()?))
        .map(|number| (number + 1).min(LAST_NUMBER))
        .max()
        .unwrap_or_default()
}

fn number_of(name: &str) -> Option<u64> {
    let before = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &name[before.len()..];
    (digits.len() == NUMBER_DIGITS).then(|| digits.parse().ok()).flatten()
}

/// What has come of it so far.
#[derive(Debug, Default)]
struct Tally {
    created: u64,
    changed: u64,
    unchanged: u64,
    /// Symbolic links that were not followed.
    links: u64,
    left_out: LeftOut,
}

/// What a node becomes; without data it only has to exist.
struct Wanted {
    path: ZPath,
    acl: Arc<[Acl]>,
    data: Option<Bytes>,
    /// See [`CreateMode::first_child`].
    first_child: u64,
}

impl Wanted {
    fn bytes(&self) -> usize {
        self.data.as_ref().map_or(0, Bytes::len)
    }
}

/// What is under way for a node that is not right, or may not be.
enum Step {
    Create(Pending<Created>),
    Set(Pending<Stat>),
    /// It has data of the same length.
    Compare(Pending<Node>),
}

/// What became of a node.
enum Outcome {
    Created,
    Changed,
    Unchanged,
}

/// A look at each node, and then what it takes to make it right: most are right if the import was
/// interrupted, and a look costs no transaction. Both are many at a time, in the order of the walk.
struct Load<'a> {
    client: &'a Client,
    bar: ProgressBar,
    looks: VecDeque<(Wanted, Pending<Option<Stat>>)>,
    steps: VecDeque<(Wanted, Step)>,
    /// The bytes of both.
    bytes: usize,
    acls: Acls,
    tally: Tally,
}

impl<'a> Load<'a> {
    fn new(client: &'a Client, bar: ProgressBar, acls: Acls) -> Load<'a> {
        let (looks, steps) = (VecDeque::new(), VecDeque::new());
        Load { client, bar, looks, steps, bytes: 0, acls, tally: Tally::default() }
    }

    /// Makes a node be there, with this data if there is any.
    async fn put(
        &mut self,
        relative: &Path,
        path: ZPath,
        data: Option<Bytes>,
        first_child: u64,
    ) -> anyhow::Result<()> {
        let look = self.client.exists(&path).send();
        let acl = self.acls.of(relative);
        let wanted = Wanted { path, acl, data, first_child };
        self.bytes += wanted.bytes();
        self.looks.push_back((wanted, look));
        while self.looks.len() >= IN_FLIGHT {
            self.decide().await?;
        }
        while self.bytes >= BYTES_IN_FLIGHT {
            if self.steps.is_empty() { self.decide().await? } else { self.settle().await? }
        }
        Ok(())
    }

    async fn drain(&mut self) -> anyhow::Result<()> {
        while !self.looks.is_empty() {
            self.decide().await?;
        }
        while !self.steps.is_empty() {
            self.settle().await?;
        }
        Ok(())
    }

    /// Waits for the oldest look, and does what follows from it.
    async fn decide(&mut self) -> anyhow::Result<()> {
        let Some((wanted, look)) = self.looks.pop_front() else { return Ok(()) };
        // What may not be looked at is there.
        let (is_there, length) = match look.await {
            Ok(stat) => (stat.is_some(), stat.map(|stat| stat.data_length as usize)),
            Err(error) if error.code() == Some(ErrorCode::NoAuth) => (true, None),
            Err(error) => return Err(error).context(AGAIN),
        };
        let Wanted { path, acl, data, first_child } = &wanted;
        let mode = CreateMode { first_child: *first_child, ..CreateMode::PERSISTENT };
        let step = match data {
            None if is_there => {
                self.tally.unchanged += 1;
                return Ok(());
            }
            None => {
                let create = self.client.create(path, "").without_data();
                Step::Create(create.mode(mode).acl(acl.clone()).send())
            }
            Some(data) if !is_there => {
                let create = self.client.create(path, data.clone());
                Step::Create(create.mode(mode).acl(acl.clone()).send())
            }
            Some(data) if length == Some(data.len()) => Step::Compare(self.client.get(path).send()),
            Some(data) => Step::Set(self.client.set(path, data.clone()).send()),
        };
        self.steps.push_back((wanted, step));
        while self.steps.len() >= IN_FLIGHT {
            self.settle().await?;
        }
        Ok(())
    }

    /// Waits for the oldest step.
    async fn settle(&mut self) -> anyhow::Result<()> {
        let Some((wanted, step)) = self.steps.pop_front() else { return Ok(()) };
        self.bytes -= wanted.bytes();
        let outcome = match step {
            Step::Create(creation) => match creation.await {
                // Somebody else was faster.
                Err(error) if error.code() == Some(ErrorCode::NodeExists) => {
                    self.compare(&wanted, self.client.get(&wanted.path).send()).await
                }
                created => created.map(|_| Outcome::Created),
            },
            Step::Set(change) => change.await.map(|_| Outcome::Changed),
            Step::Compare(node) => self.compare(&wanted, node).await,
        };
        match outcome {
            Ok(Outcome::Created) => self.tally.created += 1,
            Ok(Outcome::Changed) => self.tally.changed += 1,
            Ok(Outcome::Unchanged) => self.tally.unchanged += 1,
            Err(error) if error.code().is_some_and(is_of_the_node) => {
                self.leave_out(error.to_string());
            }
            Err(error) => return Err(error).context(AGAIN),
        }
        Ok(())
    }

    async fn compare(&self, wanted: &Wanted, node: Pending<Node>) -> Result<Outcome, Error> {
        let Some(data) = &wanted.data else { return Ok(Outcome::Unchanged) };
        if node.await?.data.as_ref() == Some(data) {
            return Ok(Outcome::Unchanged);
        }
        self.client.set(&wanted.path, data.clone()).await?;
        Ok(Outcome::Changed)
    }

    fn leave_out(&mut self, line: String) {
        self.tally.left_out.add(line);
    }
}

/// Whether it is this node that cannot be, however often it is tried; others can.
fn is_of_the_node(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::NoAuth
            | ErrorCode::NoNode
            | ErrorCode::NoChildrenForEphemerals
            | ErrorCode::QuotaExceeded
            | ErrorCode::TooLarge
            | ErrorCode::InvalidAcl
    )
}
