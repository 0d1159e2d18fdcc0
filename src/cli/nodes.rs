//! The commands that read and change single nodes.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use conclave_client::Client;
use serde_json::json;

use super::connect::Servers;
use super::show::{data_json, stat_json, stat_lines};
use super::{Output, say, until_stopped};

/// How long a command's session outlives it, unless it says otherwise.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// What is common to all of them.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    #[command(flatten)]
    servers: Servers,
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
        let closed = client.close().await;
        let value = outcome?;
        closed?;
        Ok(value)
    }
}

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
    /// # Errors
    /// If it cannot be read.
    pub(super) fn read(&self) -> anyhow::Result<Bytes> {
        if let Some(file) = &self.file {
            let data = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
            return Ok(data.into());
        }
        if self.data != "-" {
            return Ok(Bytes::copy_from_slice(self.data.as_bytes()));
        }
        let mut data = Vec::new();
        io::stdin().read_to_end(&mut data).context("reading standard input")?;
        Ok(data.into())
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
    /// It is deleted when this command's session ends: the command then stays until Ctrl-C
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
        let session_timeout = Duration::from_secs(self.session_timeout);
        self.common.with_session(session_timeout, async |client| self.work(client).await).await
    }

    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        if self.parents {
            create_parents(client, &self.path).await?;
        }
        let mut create = client.create(&self.path, self.value.read()?);
        if self.ephemeral {
            create = create.ephemeral();
        }
        if self.sequential {
            create = create.sequential();
        }
        let created = create.await?;
        if self.common.output.json {
            say!("{}", json!({ "path": created.path.as_str(), "stat": stat_json(&created.stat) }));
        } else {
            say!("{}", created.path);
        }
        if self.ephemeral {
            until_stopped(std::future::pending::<()>()).await?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn create_parents(client: &Client, path: &str) -> anyhow::Result<()> {
    use conclave_client::ErrorCode;
    let ends = path.match_indices('/').map(|(at, _)| at).filter(|&at| at > 0);
    for end in ends {
        match client.create(&path[..end], "").await {
            Ok(_) => {}
            Err(error) if error.code() == Some(ErrorCode::NodeExists) => {}
            Err(error) => return Err(error.into()),
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
            write_data(node.bytes())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Exact bytes to a pipe; to a person, a line.
pub(super) fn write_data(data: &[u8]) -> io::Result<()> {
    use std::io::IsTerminal as _;
    let mut out = io::stdout();
    out.write_all(data)?;
    if out.is_terminal() && !data.ends_with(b"\n") {
        out.write_all(b"\n")?;
    }
    out.flush()
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
        self.common.with(async |client| self.work(client).await).await
    }

    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let mut set = client.set(&self.path, self.value.read()?);
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

/// Say whether a node exists; the exit code is 0 if so, 1 if not
#[derive(Debug, clap::Args)]
pub(super) struct Exists {
    /// The node
    path: String,
    #[command(flatten)]
    common: Common,
}

impl Exists {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        self.common.with(async |client| self.work(client).await).await
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
