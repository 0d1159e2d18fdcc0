//! Staged roll-out: `conclave config stage`, `staged`, `widen`, `promote` and `abandon`.

use std::process::ExitCode;

use anyhow::bail;
use conclave_client::Client;
use conclave_client::recipes::Error;
use conclave_client::recipes::config::{Schema, Setting, Staged};
use serde_json::{Value as Json, json};

use super::{Merging, Of, Secrets, content, none, plain, redacted, value_of};
use crate::cli::input::Value;
use crate::cli::say;

/// The groups that see a value before all others.
#[derive(Debug, clap::Args)]
struct Groups {
    /// A group that sees the value; any number of times
    #[arg(long, short, value_name = "NAME", required = true)]
    group: Vec<String>,
}

impl Groups {
    fn names(&self) -> Vec<&str> {
        self.group.iter().map(String::as_str).collect()
    }
}

/// Show a value of one layer to some groups only, before all others
///
/// Who follows with `--group` sees it in place of the layer's own. It is checked as every other
/// value. One that is staged already is replaced.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  conclave config stage limit 200 --group canary
  conclave config watch limit --group canary        # 200; without --group what it was
  conclave config widen limit --group eu
  conclave config promote limit                     # or: conclave config abandon limit")]
pub(super) struct Stage {
    #[command(flatten)]
    of: Of,
    #[command(flatten)]
    value: Value,
    /// The value is text, even if it looks like JSON
    #[arg(long, conflicts_with = "overlay")]
    text: bool,
    #[command(flatten)]
    merging: Merging,
    #[command(flatten)]
    groups: Groups,
    /// Why, for the history
    #[arg(long, default_value = "")]
    note: String,
}

impl Stage {
    pub(super) async fn run(&self) -> anyhow::Result<ExitCode> {
        let value = value_of(&self.value, self.text)?;
        self.of.common.with(async |client| self.work(client, &value).await).await
    }

    async fn work(&self, client: &Client, value: &Json) -> anyhow::Result<ExitCode> {
        let setting = self.of.setting(client)?.note(&self.note);
        let layer = self.of.layer()?;
        let groups = self.groups.names();
        match self.merging.overlay(value)? {
            Some(overlay) => setting.stage_overlay(&layer, &groups, &overlay).await?,
            None => setting.stage(&layer, &groups, value).await?,
        }
        print_groups(&self.of, &setting).await
    }
}

/// Print the value of one layer that is staged, and who sees it
///
/// The exit code is 1 if none is staged, and 125 if that could not be found out.
#[derive(Debug, clap::Args)]
pub(super) struct ShowStaged {
    #[command(flatten)]
    pub(super) of: Of,
    #[command(flatten)]
    secrets: Secrets,
}

impl ShowStaged {
    pub(super) async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let setting = self.of.setting(client)?;
        let schema = self.secrets.schema(&setting).await?;
        let Some(staged) = setting.staged(&self.of.layer()?).await? else {
            return Ok(none(&none_staged(&self.of)));
        };
        self.print(staged, schema.as_ref());
        Ok(ExitCode::SUCCESS)
    }

    fn print(&self, Staged { value, groups }: Staged<Json>, schema: Option<&Schema>) {
        let is_overlay = value.overlay.is_some();
        let shown = content(value.clone()).map(|value| redacted(&value, schema));
        if self.of.common.output.json {
            let line = json!({
                "name": self.of.name,
                "value": shown,
                "overlay": is_overlay,
                "groups": groups,
                "on": value.revision.0,
                "author": value.author,
                "note": value.note,
                "time_ms": value.time_ms,
            });
            say!("{line}");
            return;
        }
        let shown = shown.as_ref().map(plain).unwrap_or_default();
        let note =
            if value.note.is_empty() { String::new() } else { format!("  # {}", value.note) };
        say!(
            "{}  {}  {shown}  for {}, on revision {}{note}",
            crate::cli::show::time(value.time_ms),
            value.author,
            groups.join(", "),
            value.revision
        );
    }
}

/// Show the staged value of one layer to more groups
#[derive(Debug, clap::Args)]
pub(super) struct Widen {
    #[command(flatten)]
    pub(super) of: Of,
    #[command(flatten)]
    groups: Groups,
}

impl Widen {
    pub(super) async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let setting = self.of.setting(client)?;
        let widened = setting.widen(&self.of.layer()?, &self.groups.names()).await;
        explain(widened, &self.of)?;
        print_groups(&self.of, &setting).await
    }
}

/// Make the staged value of one layer everybody's
///
/// Fails if somebody has changed the layer since: stage the value again, on what it is now.
#[derive(Debug, clap::Args)]
pub(super) struct Promote {
    #[command(flatten)]
    pub(super) of: Of,
    /// Why, for the history, if not for the reason that it was staged for
    #[arg(long, default_value = "")]
    note: String,
}

impl Promote {
    pub(super) async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let setting = self.of.setting(client)?.note(&self.note);
        let promoted = setting.promote(&self.of.layer()?).await;
        self.of.print_revision(explain(promoted, &self.of)?);
        Ok(ExitCode::SUCCESS)
    }
}

/// Take the staged value of one layer back: all see again what the layer has
#[derive(Debug, clap::Args)]
pub(super) struct Abandon {
    #[command(flatten)]
    pub(super) of: Of,
}

impl Abandon {
    pub(super) async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let was_staged = self.of.setting(client)?.abandon(&self.of.layer()?).await?;
        if self.of.common.output.json {
            say!("{}", json!({ "name": self.of.name, "abandoned": was_staged }));
        } else {
            say!("{}", if was_staged { "abandoned".into() } else { none_staged(&self.of) });
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Says who sees the staged value now.
async fn print_groups(of: &Of, setting: &Setting<Json>) -> anyhow::Result<ExitCode> {
    let staged = setting.staged(&of.layer()?).await?;
    let groups = staged.map(|staged| staged.groups).unwrap_or_default();
    if of.common.output.json {
        say!("{}", json!({ "name": of.name, "groups": groups }));
    } else {
        say!("{} is staged for {}", of.name, groups.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

fn none_staged(of: &Of) -> String {
    format!("nothing is staged for {}", of.name)
}

/// What the library's errors mean to somebody who rolls something out.
fn explain<T>(outcome: Result<T, Error>, of: &Of) -> anyhow::Result<T> {
    match outcome {
        Ok(value) => Ok(value),
        Err(Error::Gone { .. }) => bail!(none_staged(of)),
        Err(error @ Error::Conflict { .. }) => {
            let advice = "look at it with `conclave config history`, and stage the value again";
            Err(anyhow::Error::new(error).context(advice))
        }
        Err(error) => Err(error.into()),
    }
}
