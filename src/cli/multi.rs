//! `conclave multi`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use conclave_client::{Acl, Client, CreateMode, Multi as Transaction, Reply, Test};
use serde_json::json;

use super::nodes::Common;
use super::show::stat_json;
use super::{input, say};

/// Do several writes in one transaction: all of them or none
///
/// The script has one operation a line; empty lines and lines that start with # are skipped. Data
/// is everything after the path, to the end of the line.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Operations:
  create PATH [DATA]                 delete PATH [VERSION]
  create-sequential PATH [DATA]      check PATH [VERSION]
  set PATH [DATA]                    set-version PATH VERSION [DATA]

Conditions come first; what follows `else` is done if one of them does not hold:
  if-exists PATH        if-missing PATH        if-version PATH VERSION        if-data PATH DATA

Example: move a node, unless somebody has changed it
  conclave multi <<END
  check /jobs/todo/7 0
  delete /jobs/todo/7
  create /jobs/done/7
  END")]
pub(super) struct Multi {
    /// Read the script from this file instead of standard input
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

impl Multi {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let script = input::read(self.file.as_deref())?;
        let script = String::from_utf8(script).context("the script is not UTF-8")?;
        self.common.with(async |client| self.work(client, &script).await).await
    }

    async fn work(&self, client: &Client, script: &str) -> anyhow::Result<ExitCode> {
        let outcome = parse(client, script)?.await?;
        if self.common.output.json {
            let replies: Vec<_> = outcome.replies.iter().map(reply_json).collect();
            let zxid = outcome.zxid.to_string();
            say!("{}", json!({ "held": outcome.held, "zxid": zxid, "replies": replies }));
        } else {
            if !outcome.held {
                say!("a condition did not hold");
            }
            for reply in &outcome.replies {
                say!("{}", reply_line(reply));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn parse<'a>(client: &'a Client, script: &str) -> anyhow::Result<Transaction<'a>> {
    let mut multi = client.multi();
    for (number, line) in script.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        multi = add(multi, line).with_context(|| format!("line {}: {line:?}", number + 1))?;
    }
    Ok(multi)
}

fn add<'a>(multi: Transaction<'a>, line: &str) -> anyhow::Result<Transaction<'a>> {
    let (word, rest) = split(line);
    let (path, rest) = split(rest);
    let data = rest.to_owned();
    Ok(match word {
        "else" => multi.otherwise(),
        _ if path.is_empty() => bail!("{word:?} needs a path"),
        "create" => multi.create(path, data),
        "create-sequential" => {
            multi.create_with(path, data, CreateMode::PERSISTENT_SEQUENTIAL, Acl::open())
        }
        "set" => multi.set(path, data, None),
        "set-version" => {
            let (expected, data) = split(rest);
            multi.set(path, data.to_owned(), version(expected)?)
        }
        "delete" => multi.delete(path, version(rest)?),
        "check" => multi.check(path, version(rest)?),
        "if-exists" => multi.when(path, Test::Exists),
        "if-missing" => multi.when(path, Test::Missing),
        "if-version" => {
            let expected = version(rest)?.context("if-version needs a version")?;
            multi.when(path, Test::Version(expected))
        }
        "if-data" => multi.when(path, Test::Data(data.into())),
        _ => bail!("{word:?} is no operation; `conclave multi --help` lists them"),
    })
}

fn split(line: &str) -> (&str, &str) {
    let (first, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    (first, rest.trim_start())
}

fn version(text: &str) -> anyhow::Result<Option<i32>> {
    if text.is_empty() {
        return Ok(None);
    }
    Ok(Some(text.parse().with_context(|| format!("{text:?} is no version"))?))
}

fn reply_line(reply: &Reply) -> String {
    if let Reply::Created { path, .. } = reply {
        return format!("created {path}");
    }
    if let Reply::Stat(stat) = reply {
        return format!("changed, at version {}", stat.version);
    }
    "done".into()
}

fn reply_json(reply: &Reply) -> serde_json::Value {
    if let Reply::Created { path, stat } = reply {
        return json!({ "path": path.as_str(), "stat": stat_json(stat) });
    }
    if let Reply::Stat(stat) = reply {
        return json!({ "stat": stat_json(stat) });
    }
    json!({})
}
