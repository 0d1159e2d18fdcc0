//! The commands that read and change single nodes.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use conclave_client::{Client, Created, ErrorCode, ZPath};
use serde_json::json;
use tokio::time::sleep;

use super::connect::{Servers, part};
use super::input::Value;
use super::recipes::{AGAIN, failed};
use super::show::{data_json, stat_json, stat_lines};
use super::{Output, printed, say, until_stopped};

/// How long a command's session outlives it, unless it says otherwise.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// What is common to all of them.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    #[command(flatten)]
    pub(super) servers: Servers,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Common {
    /// Opens a session, works with it, and ends it, whether the work succeeds or not.
    ///
    /// # Errors
    /// If no server answers, or the work fails.
    pub(super) async fn with<T>(
        &self,
        work: impl AsyncFnOnce(&Client) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.with_session(SESSION_TIMEOUT, work).await
    }

    /// The same, with a session that outlives its last sign of life by that long.
    async fn with_session<T>(
        &self,
        session_timeout: Duration,
        work: impl AsyncFnOnce(&Client) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let client = self.servers.connect(session_timeout).await?;
        let outcome = work(&client).await;
        part(client).await;
        outcome
    }
}

/// Create a node
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  conclave create /app/config '{\"size\": 3}'
  conclave create /app/members/member- --ephemeral --sequential
  conclave create --parents /app/keys/tls --file key.pem")]
pub(super) struct Create {
    /// Its path
    path: String,
    #[command(flatten)]
    value: Value,
    /// It is deleted when this command's session ends: the command then stays until Ctrl-C, or
    /// until the node is gone, which is a failure
    #[arg(long, short)]
    ephemeral: bool,
    /// Seconds after which an ephemeral node is deleted if this command dies without a word
    #[arg(long, value_name = "S", default_value_t = 10, requires = "ephemeral")]
    session_timeout: u64,
    /// A number that grows is appended to its name
    #[arg(long, short)]
    sequential: bool,
    /// Create the nodes above it too, where they are missing
    #[arg(long, short)]
    parents: bool,
    #[command(flatten)]
    common: Common,
}

impl Create {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let data = self.value.read()?;
        let session_timeout = Duration::from_secs(self.session_timeout);
        let work = async |client: &Client| self.work(client, data).await;
        self.common.with_session(session_timeout, work).await
    }

    async fn work(&self, client: &Client, data: Bytes) -> anyhow::Result<ExitCode> {
        let create = self.create(client, data);
        if self.ephemeral {
            // Others may see the node before this process is told of it.
            until_stopped(create).await?.transpose()?;
        } else {
            create.await?;
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn create(&self, client: &Client, data: Bytes) -> anyhow::Result<()> {
        if self.parents {
            let end = self.path.rfind('/').unwrap_or_default();
            let above = if end == 0 { "/" } else { &self.path[..end] };
            let above = ZPath::new(above).with_context(|| format!("the path {above:?}"))?;
            create_missing(client, &above).await?;
        }
        let mut create = client.create(&self.path, data);
        if self.ephemeral {
            create = create.ephemeral();
        }
        if self.sequential {
            create = create.sequential();
        }
        let Created { path, stat } = create.await?;
        if self.common.output.json {
            say!("{}", json!({ "path": path.as_str(), "stat": stat_json(&stat) }));
        } else {
            say!("{path}");
        }
        if self.ephemeral { gone(client, &path).await } else { Ok(()) }
    }
}

/// Waits until a node of this session is gone, which is an error.
async fn gone(client: &Client, path: &ZPath) -> anyhow::Result<()> {
    loop {
        match client.exists_and_watch(path).await {
            Ok((stat, mut watch)) => {
                let owner = stat.map(|stat| stat.ephemeral_owner);
                ensure!(owner == Some(client.session()), "{path} was deleted");
                // Whatever has happened, or may have: it is looked at again.
                watch.next().await;
            }
            Err(error) if client.state().is_final() => {
                return Err(error).with_context(|| format!("{path} is gone"));
            }
            // As long as the session may live, so may the node.
            Err(_) => sleep(AGAIN).await,
        }
    }
}

/// Creates a node and those above it, unless they are there. Who has only a part of the tree is not
/// asked for a permission above it.
pub(super) async fn create_missing(client: &Client, path: &ZPath) -> anyhow::Result<()> {
    match client.exists(path).await {
        Ok(None) => {}
        Ok(Some(_)) => return Ok(()),
        // It is there, but not for everybody to look at.
        Err(error) if error.code() == Some(ErrorCode::NoAuth) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let mut missing = vec![path.clone()];
    while let Some(path) = missing.last() {
        match client.create(path, "").await {
            Ok(_) => drop(missing.pop()),
            Err(error) if error.code() == Some(ErrorCode::NodeExists) => drop(missing.pop()),
            Err(error) => match path.parent() {
                Some(above) if error.code() == Some(ErrorCode::NoNode) => missing.push(above),
                _ => return Err(error.into()),
            },
        }
    }
    Ok(())
}

/// Print a node's data, as it is
#[derive(Debug, clap::Args)]
pub(super) struct Get {
    /// The node
    path: String,
    /// Include everything that was acknowledged to anybody before now
    #[arg(long, short)]
    linearizable: bool,
    #[command(flatten)]
    common: Common,
}

impl Get {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        self.common.with(async |client| self.work(client).await).await
    }

    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let mut get = client.get(&self.path);
        if self.linearizable {
            get = get.linearizable();
        }
        let node = get.await?;
        if self.common.output.json {
            let data = data_json(node.data.as_deref());
            say!("{}", json!({ "path": self.path, "data": data, "stat": stat_json(&node.stat) }));
        } else {
            print_data(node.bytes());
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Exact bytes to a pipe; to a person, a line.
pub(super) fn print_data(data: &[u8]) {
    let mut out = io::stdout();
    let end: &[u8] = if out.is_terminal() && !data.ends_with(b"\n") { b"\n" } else { b"" };
    printed(out.write_all(data).and_then(|()| out.write_all(end)).and_then(|()| out.flush()));
}

/// Replace a node's data
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  conclave set /app/config '{\"size\": 5}'
  conclave set /app/config --version 7 --file config.json   # only if nobody was faster")]
pub(super) struct Set {
    /// The node
    path: String,
    #[command(flatten)]
    value: Value,
    /// Only if the node has this version
    #[arg(long, short = 'V', value_name = "VERSION")]
    version: Option<i32>,
    #[command(flatten)]
    common: Common,
}

impl Set {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let data = self.value.read()?;
        self.common.with(async |client| self.work(client, data).await).await
    }

    async fn work(&self, client: &Client, data: Bytes) -> anyhow::Result<ExitCode> {
        let mut set = client.set(&self.path, data);
        if let Some(version) = self.version {
            set = set.version(version);
        }
        let stat = set.await?;
        if self.common.output.json {
            say!("{}", json!({ "path": self.path, "stat": stat_json(&stat) }));
        } else {
            say!("{} is at version {}", self.path, stat.version);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Delete a node
#[derive(Debug, clap::Args)]
pub(super) struct Delete {
    /// The node
    path: String,
    /// Only if the node has this version
    #[arg(long, short = 'V', value_name = "VERSION", conflicts_with = "recursive")]
    version: Option<i32>,
    /// Delete everything below it too
    #[arg(long, short)]
    recursive: bool,
    #[command(flatten)]
    common: Common,
}

impl Delete {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        self.common.with(async |client| self.work(client).await).await
    }

    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let deleted = if self.recursive {
            client.delete_recursive(&self.path).await?
        } else {
            let mut delete = client.delete(&self.path);
            if let Some(version) = self.version {
                delete = delete.version(version);
            }
            delete.await?;
            1
        };
        if self.common.output.json {
            say!("{}", json!({ "path": self.path, "deleted": deleted }));
        } else {
            say!("{deleted} deleted");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Print a node's statistics
#[derive(Debug, clap::Args)]
pub(super) struct Stat {
    /// The node
    path: String,
    #[command(flatten)]
    common: Common,
}

impl Stat {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        self.common.with(async |client| self.work(client).await).await
    }

    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let stat = client.exists(&self.path).await?;
        let stat = stat.with_context(|| format!("stat {}: the node does not exist", self.path))?;
        if self.common.output.json {
            say!("{}", json!({ "path": self.path, "stat": stat_json(&stat) }));
        } else {
            say!("{}", stat_lines(&stat));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Say whether a node exists; the exit code is 0 if so, 1 if not, 125 if nobody can say
#[derive(Debug, clap::Args)]
pub(super) struct Exists {
    /// The node
    path: String,
    #[command(flatten)]
    common: Common,
}

impl Exists {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let exists = self.common.with(async |client| self.work(client).await).await;
        // That nobody knows is not that there is none.
        exists.or_else(|error| Ok(failed(&error)))
    }

    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let exists = client.exists(&self.path).await?.is_some();
        if self.common.output.json {
            say!("{}", json!({ "path": self.path, "exists": exists }));
        } else {
            say!("{}", if exists { "yes" } else { "no" });
        }
        Ok(if exists { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Wait until the server at the other end knows everything that is committed now
#[derive(Debug, clap::Args)]
pub(super) struct Sync {
    #[command(flatten)]
    common: Common,
}

impl Sync {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        self.common.with(async |client| self.work(client).await).await
    }

    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let zxid = client.sync().await?;
        if self.common.output.json {
            say!("{}", json!({ "zxid": zxid.to_string() }));
        } else {
            say!("up to date at {zxid}");
        }
        Ok(ExitCode::SUCCESS)
    }
}
