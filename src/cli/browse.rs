//! The commands that show more than one node.

use std::process::ExitCode;

use conclave_client::{Client, Stat, WatchItem, WatchKind};
use serde_json::json;

use super::nodes::Common;
use super::show::{data_json, data_line, event_word, stat_json, watch_json};
use super::{say, until_stopped};

/// List a node's children
#[derive(Debug, clap::Args)]
pub(super) struct Ls {
    /// The node
    #[arg(default_value = "/")]
    path: String,
    /// Show version, size, number of children and data of each; ? for what you may not read
    #[arg(long, short)]
    long: bool,
    #[command(flatten)]
    common: Common,
}

impl Ls {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        self.common.with(async |client| self.work(client).await).await
    }

    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let mut list = client.list(&self.path);
        if self.long {
            list = list.with_stat().with_data();
        }
        let mut entries = list.stream();
        while let Some(entry) = entries.next().await {
            let entry = entry?;
            let stat = entry.stat.as_ref();
            let data = entry.data.as_deref();
            match (self.common.output.json, self.long) {
                (true, false) => say!("{}", json!(entry.name)),
                (true, true) => {
                    let data = data_json(data);
                    say!(
                        "{}",
                        json!({ "name": entry.name, "stat": stat.map(stat_json), "data": data })
                    );
                }
                (false, false) => say!("{}", entry.name),
                (false, true) => {
                    let fact = |fact: fn(&Stat) -> String| stat.map_or("?".into(), fact);
                    say!(
                        "v{:<6} {:>8} B {:>6} children  {:<30} {}",
                        fact(|stat| stat.version.to_string()),
                        fact(|stat| stat.data_length.to_string()),
                        fact(|stat| stat.num_children.to_string()),
                        entry.name,
                        data_line(data.unwrap_or_default())
                    );
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Show everything below a node
#[derive(Debug, clap::Args)]
pub(super) struct Tree {
    /// The node
    #[arg(default_value = "/")]
    path: String,
    /// Show data too
    #[arg(long, short)]
    data: bool,
    #[command(flatten)]
    common: Common,
}

impl Tree {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        self.common.with(async |client| self.work(client).await).await
    }

    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let mut list = client.list_recursive(&self.path).with_stat();
        if self.data {
            list = list.with_data();
        }
        let mut entries = list.stream();
        if !self.common.output.json {
            say!("{}", self.path);
        }
        let mut count = 0_u64;
        while let Some(entry) = entries.next().await {
            let entry = entry?;
            count += 1;
            if self.common.output.json {
                let data = self.data.then(|| data_json(entry.data.as_deref()));
                let stat = entry.stat.as_ref().map(stat_json);
                say!("{}", json!({ "path": entry.name, "stat": stat, "data": data }));
                continue;
            }
            let depth = entry.name.matches('/').count() + 1;
            let name = entry.name.rsplit('/').next().unwrap_or_default();
            let data = entry.data.as_deref().filter(|data| !data.is_empty());
            let data = data.map_or_else(String::new, |data| format!("  {}", data_line(data)));
            say!("{:indent$}{name}{data}", "", indent = depth * 2);
        }
        if !self.common.output.json {
            say!("{count} nodes");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Print what happens to a node, as it happens, until Ctrl-C
#[derive(Debug, clap::Args)]
pub(super) struct Watch {
    /// The node; it need not exist
    path: String,
    /// Everything below it too
    #[arg(long, short)]
    recursive: bool,
    /// Show the new data with each change
    #[arg(long, short)]
    values: bool,
    /// Stop after so many events
    #[arg(long, short = 'n', value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    common: Common,
}

impl Watch {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        self.common.with(async |client| self.work(client).await).await
    }

    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let kind =
            if self.recursive { WatchKind::PersistentRecursive } else { WatchKind::Persistent };
        let mut watch = client.watch(&self.path, kind);
        if self.values {
            watch = watch.with_value();
        }
        let mut watch = watch.await?;
        let print = async {
            if !self.common.output.json {
                let below = if self.recursive { " and everything below it" } else { "" };
                say!("Watching {}{below}; Ctrl-C ends it.", self.path);
            }
            let mut left = self.count.unwrap_or(u64::MAX);
            while left > 0 {
                let Some(item) = watch.next().await else { break };
                self.print(&item?);
                left -= 1;
            }
            anyhow::Ok(())
        };
        until_stopped(print).await?.transpose()?;
        drop(watch);
        Ok(ExitCode::SUCCESS)
    }

    fn print(&self, item: &WatchItem) {
        if self.common.output.json {
            say!("{}", watch_json(item));
            return;
        }
        match item {
            WatchItem::Event { zxid, path, kind, value } => {
                let value = value.as_deref().map(|data| format!("  {}", data_line(data)));
                say!("{:<9} {path}  ({zxid}){}", event_word(*kind), value.unwrap_or_default());
            }
            WatchItem::Gap { resumed_at } => {
                say!("gap       events up to {resumed_at} may be missing: read again");
            }
        }
    }
}
