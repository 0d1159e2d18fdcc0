//! `conclave config`.

mod rollout;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::Subcommand;
use conclave_client::Client;
use conclave_client::recipes::config::{
    Change, Follower, Layer, LiveItem, Origin, Overlay, Place, Registry, Resolved, Revision,
    Schema, Setting, Versioned,
};
use serde_json::{Value as Json, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use super::{AGAIN, failed, host};
use crate::cli::input::Value;
use crate::cli::nodes::Common;
use crate::cli::{say, tell, until_stopped};

/// Keep a configuration, and follow it
///
/// A setting has a name and a JSON value, for everybody or for an environment, a service or an
/// instance alone; who reads it sees the value of the most special of its layers, with the fields
/// that are set with --overlay alone merged into what the layers beneath say. Every change is
/// checked against the setting's schema, if it has one, and kept in its history. What the schema
/// calls a secret is printed as ***: `diff` never shows it, the others with --show-secrets.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  conclave config set db.pool '{\"size\": 10}'
  conclave config set db.pool '{\"size\": 20}' --service billing
  conclave config set db.pool '{\"size\": 30}' --overlay --instance billing-7
  conclave config get db.pool --environment prod --service billing --instance billing-7
  conclave config history db.pool
  conclave config rollback db.pool 1
  conclave config watch db.pool --service billing
  conclave config stage db.pool '{\"size\": 30}' --group canary
  conclave config promote db.pool
  conclave config schema db.pool '{\"properties\": {\"password\": {\"secret\": true}}}'")]
pub(in crate::cli) struct Config {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Get(Get),
    Set(Set),
    Edit(Edit),
    Remove(Remove),
    History(History),
    Diff(Diff),
    Rollback(Rollback),
    Watch(Watch),
    Stage(rollout::Stage),
    Staged(rollout::ShowStaged),
    Widen(rollout::Widen),
    Promote(rollout::Promote),
    Abandon(rollout::Abandon),
    Schema(SchemaArgs),
}

impl Config {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Get(it) => {
                let got = it.seen.of.common.with(async |client| it.work(client).await).await;
                answer(got)
            }
            Command::Set(it) => {
                let value = value_of(&it.value, it.text)?;
                it.of.common.with(async |client| it.work(client, &value).await).await
            }
            Command::Edit(it) => it.of.common.with(async |client| it.work(client).await).await,
            Command::Remove(it) => it.of.common.with(async |client| it.work(client).await).await,
            Command::History(it) => it.of.common.with(async |client| it.work(client).await).await,
            Command::Diff(it) => it.of.common.with(async |client| it.work(client).await).await,
            Command::Rollback(it) => it.of.common.with(async |client| it.work(client).await).await,
            Command::Watch(it) => {
                it.seen.of.common.with(async |client| it.work(client).await).await
            }
            Command::Stage(it) => it.run().await,
            Command::Staged(it) => {
                let got = it.of.common.with(async |client| it.work(client).await).await;
                answer(got)
            }
            Command::Widen(it) => it.of.common.with(async |client| it.work(client).await).await,
            Command::Promote(it) => it.of.common.with(async |client| it.work(client).await).await,
            Command::Abandon(it) => it.of.common.with(async |client| it.work(client).await).await,
            Command::Schema(it) => answer(it.run().await),
        }
    }
}

/// What comes of asking for something: that nobody knows is not that there is none.
fn answer(outcome: anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    outcome.or_else(|error| Ok(failed(&error)))
}

/// Says that there is none of what was asked for.
fn none(what: &str) -> ExitCode {
    tell(&format!("conclave: {what}"));
    ExitCode::FAILURE
}

/// Which setting, and for whom.
#[derive(Debug, clap::Args)]
struct Of {
    /// The setting's name
    name: String,
    /// In this environment
    #[arg(long, short, value_name = "NAME")]
    environment: Option<String>,
    /// For this service
    #[arg(long, short, value_name = "NAME")]
    service: Option<String>,
    /// For this instance
    #[arg(long, short, value_name = "NAME")]
    instance: Option<String>,
    /// The node that the configuration is below
    #[arg(long, value_name = "PATH", default_value = "/config")]
    root: String,
    #[command(flatten)]
    common: Common,
}

impl Of {
    fn registry(&self, client: &Client) -> anyhow::Result<Registry> {
        Ok(Registry::new(client, &self.root)?.author(author()))
    }

    fn setting(&self, client: &Client) -> anyhow::Result<Setting<Json>> {
        Ok(self.registry(client)?.setting(&self.name)?)
    }

    /// The layer that is changed.
    fn layer(&self) -> anyhow::Result<Layer> {
        match (&self.environment, &self.service, &self.instance) {
            (None, None, None) => Ok(Layer::Default),
            (Some(name), None, None) => Ok(Layer::environment(name)?),
            (None, Some(name), None) => Ok(Layer::service(name)?),
            (None, None, Some(name)) => Ok(Layer::instance(name)?),
            _ => bail!("one layer at a time: --environment, --service or --instance, or none"),
        }
    }

    /// From where it is looked at, by nobody's group.
    fn place(&self) -> anyhow::Result<Place> {
        let mut place = Place::new();
        if let Some(name) = &self.environment {
            place = place.environment(name)?;
        }
        if let Some(name) = &self.service {
            place = place.service(name)?;
        }
        if let Some(name) = &self.instance {
            place = place.instance(name)?;
        }
        Ok(place)
    }

    fn print_revision(&self, revision: Revision) {
        if self.common.output.json {
            say!("{}", json!({ "name": self.name, "revision": revision.0 }));
        } else {
            say!("{} is at revision {revision}", self.name);
        }
    }
}

/// What is shown of a value.
#[derive(Debug, clap::Args)]
struct Secrets {
    /// Print what the schema calls secret, too
    #[arg(long)]
    show_secrets: bool,
}

impl Secrets {
    /// The schema that says what is not to be shown.
    async fn schema(&self, setting: &Setting<Json>) -> anyhow::Result<Option<Schema>> {
        if self.show_secrets { Ok(None) } else { Ok(setting.schema().await?) }
    }
}

fn redacted(value: &Json, schema: Option<&Schema>) -> Json {
    schema.map_or_else(|| value.clone(), |schema| schema.redact(value))
}

/// A setting as it is seen from somewhere.
#[derive(Debug, clap::Args)]
struct Seen {
    #[command(flatten)]
    of: Of,
    /// See the values that are staged for this group; any number of times
    #[arg(long, short, value_name = "NAME")]
    group: Vec<String>,
    #[command(flatten)]
    secrets: Secrets,
}

impl Seen {
    async fn follow(&self, client: &Client) -> anyhow::Result<Follower> {
        let mut place = self.of.place()?;
        for group in &self.group {
            place = place.group(group)?;
        }
        Ok(self.of.registry(client)?.follow(place).await?)
    }

    fn print(&self, resolved: &Resolved<Json>, schema: Option<&Schema>) {
        let value = redacted(&resolved.value, schema);
        if !self.of.common.output.json {
            say!("{}", plain(&value));
            return;
        }
        let told = |Origin { layer, revision, is_staged }: &Origin| {
            json!({
                "layer": layer.to_string(),
                "revision": revision.0,
                "staged": is_staged,
            })
        };
        let mut line = told(&resolved.origin);
        line["name"] = self.of.name.as_str().into();
        line["value"] = value;
        line["beneath"] = resolved.beneath.iter().map(told).collect();
        say!("{line}");
    }
}

/// Whether a value is to be merged into others.
#[derive(Debug, clap::Args)]
struct Merging {
    /// Override these fields alone: merge them into what the layers beneath say. null removes one
    #[arg(long)]
    overlay: bool,
}

impl Merging {
    /// The overlay, if it is to be one.
    fn overlay(&self, value: &Json) -> anyhow::Result<Option<Overlay>> {
        Ok(if self.overlay { Some(Overlay::new(value)?) } else { None })
    }
}

/// What a change set, be it a value or an overlay.
fn content(versioned: Versioned<Json>) -> Option<Json> {
    versioned.value.or_else(|| Some(versioned.overlay?.to_json()))
}

/// What is given as a setting's value: JSON, or text. To be called while there is no session.
fn value_of(value: &Value, is_text: bool) -> anyhow::Result<Json> {
    let bytes = value.read()?;
    let text = std::str::from_utf8(&bytes).context("the value is not UTF-8")?;
    match serde_json::from_str(text) {
        Ok(value) if !is_text => Ok(value),
        _ => Ok(Json::String(text.to_owned())),
    }
}

/// Who makes a change, for the history.
fn author() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    format!("{}@{}", user.unwrap_or_else(|_| "somebody".into()), host())
}

/// Text without quotes, anything else as JSON.
fn plain(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Print the value that counts
///
/// With --environment, --service and --instance: as it is seen from there, the most special layer
/// first. Includes everything that was acknowledged to anybody before. The exit code is 1 if the
/// setting has no value, and 125 if that could not be found out. With --json it tells of each layer
/// from which a part of it comes.
#[derive(Debug, clap::Args)]
struct Get {
    #[command(flatten)]
    seen: Seen,
}

impl Get {
    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let Seen { of, secrets, .. } = &self.seen;
        let follower = self.seen.follow(client).await?;
        follower.sync().await?;
        let setting = of.setting(client)?;
        let schema = secrets.schema(&setting).await?;
        let Some(value) = follower.get(&setting)? else {
            return Ok(none(&format!("{} has no value", of.name)));
        };
        self.seen.print(&value, schema.as_ref());
        Ok(ExitCode::SUCCESS)
    }
}

/// Set a value in one layer
#[derive(Debug, clap::Args)]
struct Set {
    #[command(flatten)]
    of: Of,
    #[command(flatten)]
    value: Value,
    /// The value is text, even if it looks like JSON
    #[arg(long, conflicts_with = "overlay")]
    text: bool,
    #[command(flatten)]
    merging: Merging,
    /// Only if the layer is at this revision; 0: only if it never had a value
    #[arg(long, value_name = "N")]
    revision: Option<u64>,
    /// Why, for the history
    #[arg(long, default_value = "")]
    note: String,
}

impl Set {
    async fn work(&self, client: &Client, value: &Json) -> anyhow::Result<ExitCode> {
        let layer = self.of.layer()?;
        let setting = self.of.setting(client)?.note(&self.note);
        let on = self.revision.map(Revision);
        let revision = match (self.merging.overlay(value)?, on) {
            (Some(overlay), on) => setting.set_overlay(&layer, on, &overlay).await?,
            (None, Some(on)) => setting.compare_and_set(&layer, on, value).await?,
            (None, None) => setting.set(&layer, value).await?,
        };
        self.of.print_revision(revision);
        Ok(ExitCode::SUCCESS)
    }
}

/// Edit a value in one layer with $EDITOR
///
/// Nothing is changed if somebody else has changed it meanwhile; what was edited is kept in a file
/// then, as it is whenever it cannot be set. What was set with --overlay is edited, and set again,
/// as such.
#[derive(Debug, clap::Args)]
struct Edit {
    #[command(flatten)]
    of: Of,
    /// Why, for the history
    #[arg(long, default_value = "")]
    note: String,
}

impl Edit {
    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let layer = self.of.layer()?;
        let setting = self.of.setting(client)?.note(&self.note);
        let current = setting.get(&layer).await?;
        let revision = current.as_ref().map_or(Revision::NONE, |current| current.revision);
        let is_overlay = current.as_ref().is_some_and(|current| current.overlay.is_some());
        let before = current.and_then(content);
        let text = serde_json::to_string_pretty(&before)? + "\n";
        let file = tempfile::Builder::new().prefix("conclave-").suffix(".json").tempfile()?;
        fs::write(file.path(), &text)?;
        let set = async {
            let value = edited(file.path()).await?;
            if Some(&value) == before.as_ref() || (before.is_none() && value.is_null()) {
                say!("nothing is changed");
                return Ok(());
            }
            let change = async {
                if is_overlay {
                    setting.set_overlay(&layer, Some(revision), &Overlay::new(&value)?).await
                } else {
                    setting.compare_and_set(&layer, revision, &value).await
                }
            };
            let revision = until_stopped(change).await?.context("interrupted")??;
            self.of.print_revision(revision);
            anyhow::Ok(())
        };
        let Err(error) = set.await else { return Ok(ExitCode::SUCCESS) };
        if fs::read(file.path()).is_ok_and(|now| now != text.as_bytes()) {
            let (_, path) = file.keep()?;
            bail!("{error:#}; what was edited is kept in {}", path.display());
        }
        Err(error)
    }
}

/// Lets the user edit a file, and gives the value that is in it then.
async fn edited(file: &Path) -> anyhow::Result<Json> {
    // The terminal sends it to both. The editor knows what to make of it.
    let _interrupts = signal(SignalKind::interrupt())?;
    let editor = std::env::var("VISUAL").or_else(|_| std::env::var("EDITOR"));
    let editor = editor.unwrap_or_else(|_| "vi".into());
    let script = format!("{editor} \"$1\"");
    let status = tokio::process::Command::new("sh")
        .args(["-c", &script, "sh"])
        .arg(file)
        .status()
        .await
        .with_context(|| format!("running {editor}"))?;
    ensure!(status.success(), "{editor} ended with {status}; nothing is changed");
    let text = fs::read_to_string(file)?;
    serde_json::from_str(&text).context("what was edited is not JSON")
}

/// Remove a value from one layer, so that the one below it counts
#[derive(Debug, clap::Args)]
struct Remove {
    #[command(flatten)]
    of: Of,
}

impl Remove {
    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let revision = self.of.setting(client)?.remove(&self.of.layer()?, None).await?;
        self.of.print_revision(revision);
        Ok(ExitCode::SUCCESS)
    }
}

/// Print every change of one layer that is kept, the newest first
///
/// One that was edited by hand into something that is none is named, and the exit code is 1.
#[derive(Debug, clap::Args)]
struct History {
    #[command(flatten)]
    of: Of,
    #[command(flatten)]
    secrets: Secrets,
}

impl History {
    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let setting = self.of.setting(client)?;
        let schema = self.secrets.schema(&setting).await?;
        let mut code = ExitCode::SUCCESS;
        for versioned in setting.history(&self.of.layer()?).await? {
            match versioned {
                Ok(versioned) => self.print(versioned, schema.as_ref()),
                // Somebody edited it; those before it may be what is looked for.
                Err(error) => code = none(&error.to_string()),
            }
        }
        Ok(code)
    }

    fn print(&self, versioned: Versioned<Json>, schema: Option<&Schema>) {
        let is_overlay = versioned.overlay.is_some();
        let Versioned { revision, change, author, note, time_ms, .. } = versioned.clone();
        let value = content(versioned).map(|value| redacted(&value, schema));
        if self.of.common.output.json {
            let line = json!({
                "revision": revision.0,
                "change": change,
                "value": value,
                "overlay": is_overlay,
                "author": author,
                "note": note,
                "time_ms": time_ms,
            });
            say!("{line}");
            return;
        }
        let merged = if is_overlay { "  merged" } else { "" };
        let what = match change {
            Change::Set | Change::Remove => String::new(),
            Change::Rollback { to } => format!("  as it was at {to}"),
            Change::Promote => "  staged before".into(),
        };
        let value = value.as_ref().map_or_else(|| "(removed)".into(), plain);
        let note = if note.is_empty() { String::new() } else { format!("  # {note}") };
        say!(
            "{:>4}  {}  {author}  {value}{merged}{what}{note}",
            revision.0,
            crate::cli::show::time(time_ms)
        );
    }
}

/// Print in what two revisions of one layer differ
#[derive(Debug, clap::Args)]
struct Diff {
    #[command(flatten)]
    of: Of,
    /// The one
    before: u64,
    /// The other
    after: u64,
}

impl Diff {
    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let (before, after) = (Revision(self.before), Revision(self.after));
        let all = self.of.setting(client)?.diff(&self.of.layer()?, before, after).await?;
        for difference in &all {
            if self.of.common.output.json {
                let (before, after) = (&difference.before, &difference.after);
                say!("{}", json!({ "at": difference.at, "before": before, "after": after }));
            } else {
                say!("{difference}");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Set the value of an earlier revision of one layer again
#[derive(Debug, clap::Args)]
struct Rollback {
    #[command(flatten)]
    of: Of,
    /// Which revision
    to: u64,
    /// Why, for the history
    #[arg(long, default_value = "")]
    note: String,
}

impl Rollback {
    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let setting = self.of.setting(client)?.note(&self.note);
        let revision = setting.rollback(&self.of.layer()?, Revision(self.to)).await?;
        self.of.print_revision(revision);
        Ok(ExitCode::SUCCESS)
    }
}

/// Print the value that counts, and each value that it becomes, until Ctrl-C
#[derive(Debug, clap::Args)]
struct Watch {
    #[command(flatten)]
    seen: Seen,
}

impl Watch {
    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let Seen { of, secrets, .. } = &self.seen;
        let follower = self.seen.follow(client).await?;
        let setting = of.setting(client)?;
        // What cannot be read at all is a mistake; later on it may be an outage.
        secrets.schema(&setting).await?;
        let mut live = follower.live(&setting)?;
        let watch = async {
            while let Some(item) = live.next().await {
                match item {
                    // Asked each time, since what is secret may be said at any time.
                    Ok(item) => {
                        let schema = self.schema(&follower, &setting).await?;
                        self.print(&item, schema.as_ref());
                    }
                    Err(error) if follower.has_ended() => return Err(error.into()),
                    Err(error) => tell(&format!("conclave: {error}")),
                }
            }
            anyhow::Ok(())
        };
        until_stopped(watch).await?.transpose()?;
        Ok(ExitCode::SUCCESS)
    }

    /// The schema of now, waited for as long as values are followed: until it is known, nobody
    /// knows what may be printed.
    async fn schema(
        &self,
        follower: &Follower,
        setting: &Setting<Json>,
    ) -> anyhow::Result<Option<Schema>> {
        let mut told = String::new();
        loop {
            let error = match self.seen.secrets.schema(setting).await {
                Ok(schema) => return Ok(schema),
                Err(error) if follower.has_ended() => return Err(error),
                Err(error) => format!("conclave: {error:#}; nothing is printed until it is mended"),
            };
            if error != told {
                tell(&error);
                told = error;
            }
            sleep(AGAIN).await;
        }
    }

    fn print(&self, item: &LiveItem<Json>, schema: Option<&Schema>) {
        let of = &self.seen.of;
        match (item, of.common.output.json) {
            (LiveItem::Value(Some(resolved)), _) => self.seen.print(resolved, schema),
            (LiveItem::Value(None), true) => {
                say!("{}", json!({ "name": of.name, "value": null }))
            }
            (LiveItem::Value(None), false) => say!("(no value)"),
            (LiveItem::Gap, true) => say!("{}", json!({ "gap": true })),
            (LiveItem::Gap, false) => say!("(some values were not seen)"),
        }
    }
}

/// Say what values of a setting must look like, or print it
///
/// In the words of JSON Schema: type, enum, minimum, maximum, minLength, maxLength, minItems,
/// maxItems, items, properties, required, additionalProperties; and secret, for what is not to be
/// printed. Every later change in every layer is held to it. Without a schema it prints the one that
/// holds; the exit code is 1 if there is none. If anything fails, it is 125.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  conclave config schema limit '{\"type\": \"integer\", \"minimum\": 1}'
  conclave config schema db.pool --file pool.schema.json
  conclave config schema db.pool")]
struct SchemaArgs {
    #[command(flatten)]
    of: Of,
    #[command(flatten)]
    schema: Value,
}

impl SchemaArgs {
    async fn run(&self) -> anyhow::Result<ExitCode> {
        let given = self.schema.read()?;
        self.of.common.with(async |client| self.work(client, &given).await).await
    }

    async fn work(&self, client: &Client, given: &[u8]) -> anyhow::Result<ExitCode> {
        let (setting, name) = (self.of.setting(client)?, &self.of.name);
        ensure!(self.of.layer()? == Layer::Default, "a schema is for all layers of {name}");
        if given.is_empty() {
            let Some(schema) = setting.schema().await? else {
                return Ok(none(&format!("{name} has no schema")));
            };
            say!("{}", serde_json::to_string(&schema)?);
            return Ok(ExitCode::SUCCESS);
        }
        let schema: Schema = serde_json::from_slice(given).context("that is no schema")?;
        setting.set_schema(&schema).await?;
        if self.of.common.output.json {
            say!("{}", json!({ "name": name }));
        } else {
            say!("{name} is held to it from now on");
        }
        Ok(ExitCode::SUCCESS)
    }
}
