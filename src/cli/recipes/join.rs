//! `conclave join`, `conclave members`, `conclave register` and `conclave discover`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use bytes::Bytes;
use conclave_client::Client;
use conclave_client::recipes::discovery::{Discovery, Instance, Strategy};
use conclave_client::recipes::members::{Group, Joining, KeptNode, MemberChange};
use conclave_client::recipes::{self, Error};
use rustix::process::Signal;
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::child::{Signals, exit_code, run_beside, signal_code};
use super::{AGAIN, Holding, Program, failed, part, path_of};
use crate::cli::connect::PARTING;
use crate::cli::nodes::Common;
use crate::cli::show::{data_json, data_line};
use crate::cli::{say, tell, until_stopped};

const GROUPS: &str = "/groups";
const SERVICES: &str = "/services";

/// Be a member of a group, until Ctrl-C or until COMMAND ends
///
/// Who looks at the group sees the member as long as this runs and its session lives. If the
/// session expires, the member joins again as soon as it can; COMMAND goes on meanwhile.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  conclave join workers                              # under the host's name and process id
  conclave join workers --name worker-7 --data 10.0.0.7:8080 -- ./worker

The exit code is that of COMMAND, or 125 if Conclave failed.")]
pub(in crate::cli) struct Join {
    /// The group: a name below /groups, or a path
    group: String,
    /// Under which name [default: the host and the process id]
    #[arg(long)]
    name: Option<String>,
    /// What the others are told
    #[arg(long, default_value = "")]
    data: String,
    #[command(flatten)]
    holding: Holding,
    #[command(flatten)]
    program: Program,
}

impl Join {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<ExitCode> {
        let path = match path_of(GROUPS, &self.group) {
            Ok(path) => path,
            Err(error) => return Ok(failed(&error)),
        };
        let name = self.name.clone().unwrap_or_else(|| self.holding.description());
        let make =
            |client: &Client| Ok(Group::new(client, &path)?.joining(&name, self.data.clone()));
        keep(&self.holding, &self.program, make).await
    }
}

/// Register an instance of a service, until Ctrl-C or until COMMAND ends
///
/// `conclave discover` finds it as long as this runs and its session lives.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example: conclave register billing billing-7 10.0.0.7:8080 --meta zone=a -- ./billing

The exit code is that of COMMAND, or 125 if Conclave failed.")]
pub(in crate::cli) struct Register {
    /// The service: a name below /services
    service: String,
    /// The instance's name
    id: String,
    /// Where it is
    address: String,
    /// Something more to say of it, as NAME=VALUE; any number of times
    #[arg(long, value_name = "NAME=VALUE")]
    meta: Vec<String>,
    #[command(flatten)]
    holding: Holding,
    #[command(flatten)]
    program: Program,
}

impl Register {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<ExitCode> {
        let mut instance = Instance::new(&self.id, &self.address);
        for meta in &self.meta {
            let Some((name, value)) = meta.split_once('=') else {
                return Ok(failed(&anyhow!("--meta {meta}: say NAME=VALUE")));
            };
            instance = instance.meta(name, value);
        }
        let make = |client: &Client| {
            Discovery::new(client, SERVICES)?.registering(&self.service, &instance)
        };
        keep(&self.holding, &self.program, make).await
    }
}

/// Keeps something in place while a command runs, or until a signal comes.
async fn keep(
    holding: &Holding,
    program: &Program,
    make: impl Fn(&Client) -> Result<Joining, recipes::Error>,
) -> anyhow::Result<ExitCode> {
    let mut kept = Kept::default();
    let code = kept.keep(holding, program, make).await;
    kept.leave().await;
    code.or_else(|error| Ok(failed(&error)))
}

/// A session and what it keeps, as far as they are there.
#[derive(Default)]
struct Kept {
    client: Option<Client>,
    node: Option<KeptNode>,
}

impl Kept {
    async fn keep(
        &mut self,
        holding: &Holding,
        program: &Program,
        make: impl Fn(&Client) -> Result<Joining, recipes::Error>,
    ) -> anyhow::Result<ExitCode> {
        let mut signals = Signals::catch()?;
        // Without a command it goes on until somebody wishes it to end, also while it enters: others
        // may see it there before this process is told that it is.
        let stopped = |signal| {
            let is_wish = matches!(signal, Signal::INT | Signal::TERM);
            let is_end = is_wish && program.command.is_empty();
            if is_end { ExitCode::SUCCESS } else { signal_code(signal) }
        };
        tokio::select! {
            entered = self.enter(holding, &make) => entered?,
            signal = signals.next() => return Ok(stopped(signal)),
        }
        let run = async {
            if program.command.is_empty() {
                return Ok(stopped(signals.next().await));
            }
            let environment = holding.servers.environment();
            run_beside(program, environment, None, &mut signals).await.map(exit_code)
        };
        tokio::select! {
            code = run => code,
            never = self.maintain(holding, &make) => match never {},
        }
    }

    async fn enter(
        &mut self,
        holding: &Holding,
        make: impl Fn(&Client) -> Result<Joining, recipes::Error>,
    ) -> anyhow::Result<()> {
        let client = &*self.client.insert(holding.connect().await?);
        // An earlier session of the same member may still have to expire.
        let joining = make(client)?.wait(client.session_timeout());
        self.node = Some(joining.create().await?);
        Ok(())
    }

    /// Enters again whenever the session has ended.
    async fn maintain(
        &mut self,
        holding: &Holding,
        make: impl Fn(&Client) -> Result<Joining, recipes::Error>,
    ) -> Infallible {
        loop {
            if let Some(node) = &mut self.node {
                let why = node.ended().await;
                tell(&format!("conclave: {why}; entering again"));
            }
            self.leave().await;
            if let Err(error) = self.enter(holding, &make).await {
                tell(&format!("conclave: {error:#}; trying again"));
                sleep(AGAIN).await;
            }
        }
    }

    /// Ends both, so that nobody has to wait for the session to expire. If the servers do not answer
    /// in time, they find out by themselves.
    async fn leave(&mut self) {
        if let Some(node) = self.node.take() {
            timeout(PARTING, node.leave()).await.ok();
        }
        if let Some(client) = self.client.take() {
            part(client).await;
        }
    }
}

/// Say who is in a group
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  conclave members workers
  conclave members workers --watch --json | while read change; do ...")]
pub(in crate::cli) struct Members {
    /// The group: a name below /groups, or a path
    group: String,
    /// Go on and say who comes and who leaves, until Ctrl-C
    #[arg(long, short)]
    watch: bool,
    #[command(flatten)]
    common: Common,
}

impl Members {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<ExitCode> {
        let path = path_of(GROUPS, &self.group)?;
        self.common.with(async |client| self.work(client, &path).await).await
    }

    async fn work(&self, client: &Client, path: &str) -> anyhow::Result<ExitCode> {
        let members = Group::new(client, path)?.members().await?;
        let (mut known, mut changes) = members.follow()?;
        for (name, data) in &known {
            self.print("here", name, Some(data));
        }
        if !self.watch {
            return Ok(ExitCode::SUCCESS);
        }
        let watch = async {
            while let Some(change) = changes.next().await {
                let now = match change? {
                    MemberChange::Here { name, data } => {
                        let mut now = known.clone();
                        now.insert(name, data);
                        now
                    }
                    MemberChange::Left { name } => {
                        let mut now = known.clone();
                        now.remove(&name);
                        now
                    }
                    MemberChange::Gap { members } => members,
                };
                self.print_changes(&known, &now);
                known = now;
            }
            anyhow::Ok(())
        };
        until_stopped(watch).await?.transpose()?;
        Ok(ExitCode::SUCCESS)
    }

    fn print_changes(&self, before: &BTreeMap<String, Bytes>, now: &BTreeMap<String, Bytes>) {
        for name in before.keys().filter(|name| !now.contains_key(*name)) {
            self.print("left", name, None);
        }
        for (name, data) in now {
            match before.get(name) {
                None => self.print("joined", name, Some(data)),
                Some(old) if old != data => self.print("changed", name, Some(data)),
                Some(_) => {}
            }
        }
    }

    fn print(&self, what: &str, name: &str, data: Option<&Bytes>) {
        if self.common.output.json {
            let data = data_json(data.map(|data| &data[..]));
            say!("{}", json!({ "event": what, "name": name, "data": data }));
            return;
        }
        let data = data.filter(|data| !data.is_empty());
        let data = data.map_or_else(String::new, |data| format!("  {}", data_line(data)));
        if self.watch { say!("{what:<8} {name}{data}") } else { say!("{name}{data}") }
    }
}

/// Say where an instance of a service is
///
/// Chooses one at random of those that are registered. The exit code is 1 if there is none, and 125 if
/// Conclave failed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  curl http://$(conclave discover billing)/health
  conclave discover billing --all --json
  conclave discover billing --wait 30               # until one is there")]
pub(in crate::cli) struct Discover {
    /// The service: a name below /services
    service: String,
    /// All instances with their names, not one
    #[arg(long, conflicts_with = "wait")]
    all: bool,
    /// Wait so many seconds for one, if there is none
    #[arg(long, value_name = "S", default_value_t = 0)]
    wait: u64,
    #[command(flatten)]
    common: Common,
}

impl Discover {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<ExitCode> {
        let found = self.common.with(async |client| self.work(client).await).await;
        // That nobody knows is not that there is none.
        found.or_else(|error| Ok(failed(&error)))
    }

    async fn work(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let discovery = Discovery::new(client, SERVICES)?;
        let provider = discovery.provider(&self.service, Strategy::Random).await?;
        for error in provider.malformed()? {
            tell(&format!("conclave: {error}"));
        }
        if self.all {
            let instances = provider.instances()?;
            instances.iter().for_each(|instance| self.print(instance));
            return Ok(ExitCode::from(u8::from(instances.is_empty())));
        }
        match provider.wait(Duration::from_secs(self.wait)).await {
            Ok(instance) => {
                self.print(&instance);
                Ok(ExitCode::SUCCESS)
            }
            Err(Error::Deadline { .. }) => {
                tell(&format!("conclave: no instance of {} is registered", self.service));
                Ok(ExitCode::FAILURE)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn print(&self, instance: &Instance) {
        if self.common.output.json {
            let Instance { id, address, meta } = instance;
            say!("{}", json!({ "id": id, "address": address, "meta": meta }));
        } else if self.all {
            say!("{}  {}", instance.id, instance.address);
        } else {
            say!("{}", instance.address);
        }
    }
}
