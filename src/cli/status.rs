//! `conclave status`.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::connect::Servers;
use super::{Output, say, tell};

/// How long a server may take to say how it is.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);
/// Where a server's administration is, unless said otherwise: so many ports after the clients'.
const ADMIN_OFFSET: u16 = 2;
/// How often --wait looks.
const POLL: Duration = Duration::from_millis(100);

/// Show every server: its role, how far it is, what it holds
///
/// Each server is asked on its administration port: 2 after the port for clients, unless --admin
/// names others. The exit code is 3 if none of those that answer leads.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    servers: Servers,
    /// Where the servers are administered, host:port separated by commas
    #[arg(long, env = "CONCLAVE_ADMIN", value_name = "ADDRESSES", value_delimiter = ',')]
    admin: Vec<String>,
    /// Print the number of the leader, and nothing else
    #[arg(long)]
    leader: bool,
    /// Wait until all servers serve, one of them leads, and all have what it had when it was first
    /// asked
    #[arg(long, conflicts_with = "leader")]
    wait: bool,
    #[command(flatten)]
    output: Output,
}

/// What a server says of itself, as far as it matters here: docs/OPERATING.md has it all.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct MemberStatus {
    pub(super) id: u8,
    role: String,
    leader: Option<u8>,
    epoch: u32,
    applied_zxid: String,
    followers: Vec<FollowerStatus>,
    sessions: u64,
    local_sessions: u64,
    watches: u64,
    nodes: u64,
    tree_used_bytes: u64,
    disk_free_bytes: u64,
}

/// A server as its leader sees it.
#[derive(Clone, Debug, Deserialize)]
struct FollowerStatus {
    id: u8,
    in_sync: bool,
    acked_zxid: String,
    lag: u64,
}

impl MemberStatus {
    /// Whether it leads, with a quorum.
    pub(super) fn leads(&self) -> bool {
        self.role == "leading"
    }

    /// Whether it accepts clients' requests.
    pub(super) fn serves(&self) -> bool {
        matches!(self.role.as_str(), "leading" | "following" | "observing")
    }
}

/// A server's address, and what it says of itself or why it does not.
pub(super) type Answer = (String, Result<(MemberStatus, Value), String>);

fn ask(admin: &str) -> anyhow::Result<(MemberStatus, Value)> {
    // A proxy of the environment is for the web, and reaches no loopback address of this machine.
    let config = ureq::Agent::config_builder().timeout_global(Some(ANSWER_DEADLINE)).proxy(None);
    let agent: ureq::Agent = config.build().into();
    let body = agent.get(format!("http://{admin}/status")).call()?.body_mut().read_to_string()?;
    let value: Value = serde_json::from_str(&body)?;
    let status = MemberStatus::deserialize(&value).context("an answer that is no status")?;
    Ok((status, value))
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let addresses = admin_addresses(&args)?;
    let deadline = Instant::now() + args.servers.timeout();
    let mut answers = ask_all(&addresses).await;
    let mut goal = None;
    while args.wait
        && let Some(missing) = missing(&answers, &mut goal)
    {
        ensure!(Instant::now() < deadline, "{missing}:\n{}", table(&answers));
        sleep(POLL).await;
        answers = ask_all(&addresses).await;
    }
    if args.leader {
        let leads = |(_, answer): &Answer| {
            answer.as_ref().ok().filter(|(status, _)| status.leads()).map(|(status, _)| status.id)
        };
        match answers.iter().find_map(leads) {
            Some(leader) => say!("{leader}"),
            None => tell("conclave: no server that answers leads"),
        }
    } else if args.output.json {
        for (address, answer) in &answers {
            match answer {
                Ok((_, value)) => say!("{value}"),
                Err(error) => say!("{}", json!({ "admin": address, "error": error })),
            }
        }
    } else {
        say!("{}", table(&answers));
    }
    let led = answers.iter().flat_map(|(_, answer)| answer).any(|(status, _)| status.leads());
    Ok(if led { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

/// Asks all servers at once how they are, each on a thread of its own, which ends within the
/// deadline for an answer.
pub(super) async fn ask_all(addresses: &[String]) -> Vec<Answer> {
    let asked: Vec<_> = addresses.iter().map(|address| ask_aside(address.clone())).collect();
    let mut answers = Vec::with_capacity(asked.len());
    for (address, answer) in addresses.iter().zip(asked) {
        let answer = match answer {
            Ok(answer) => answer.await.map_err(anyhow::Error::from).flatten(),
            Err(error) => Err(error.into()),
        };
        answers.push((address.clone(), answer.map_err(|error| format!("{error:#}"))));
    }
    answers
}

type Asked = oneshot::Receiver<anyhow::Result<(MemberStatus, Value)>>;

fn ask_aside(admin: String) -> std::io::Result<Asked> {
    let (reply, answer) = oneshot::channel();
    // Nobody may wait for the answer any more.
    let ask = move || reply.send(ask(&admin)).ok();
    thread::Builder::new().name("status".into()).spawn(ask)?;
    Ok(answer)
}

/// What is missing until all serve and have what the leader had when it was first seen: the goal,
/// which stays where it is while there are more writes.
fn missing(answers: &[Answer], goal: &mut Option<Position>) -> Option<&'static str> {
    let servers: Vec<&MemberStatus> =
        answers.iter().flat_map(|(_, answer)| answer).map(|(status, _)| status).collect();
    if servers.len() < answers.len() || !servers.iter().all(|server| server.serves()) {
        return Some("not every server serves");
    }
    let Some(leader) = servers.iter().find(|server| server.leads()) else {
        return Some("none of the servers that were asked leads: ask all of them (--servers)");
    };
    let goal = *goal.get_or_insert_with(|| position(&leader.applied_zxid));
    let has_goal = |zxid: &str| position(zxid) >= goal;
    let all_have = servers.iter().all(|server| has_goal(&server.applied_zxid))
        && leader.followers.iter().all(|one| one.in_sync && has_goal(&one.acked_zxid));
    (!all_have).then_some("not every server is up to date")
}

/// A place in the history: the epoch, and the counter in it.
type Position = (u64, u64);

/// Where a zxid is; one that cannot be read is at the beginning.
fn position(zxid: &str) -> Position {
    let parts = zxid.split_once('.');
    parts
        .and_then(|(epoch, counter)| Some((epoch.parse().ok()?, counter.parse().ok()?)))
        .unwrap_or_default()
}

fn admin_addresses(args: &Args) -> anyhow::Result<Vec<String>> {
    if !args.admin.is_empty() {
        return Ok(args.admin.clone());
    }
    let admin = |address: &str| {
        let (host, port) = address.rsplit_once(':')?;
        let port: u16 = port.parse().ok()?;
        Some(format!("{host}:{}", port.checked_add(ADMIN_OFFSET)?))
    };
    args.servers
        .addresses()
        .map(|address| admin(address).with_context(|| format!("{address:?} is not HOST:PORT")))
        .collect()
}

fn table(answers: &[Answer]) -> String {
    let leader = answers.iter().flat_map(|(_, answer)| answer).find(|(status, _)| status.leads());
    let mut text = format!(
        "{:<4} {:<10} {:>6} {:>7} {:>14} {:>9} {:>9} {:>9} {:>10} {:>9} {:>9}",
        "id",
        "role",
        "leader",
        "epoch",
        "applied",
        "lag",
        "sessions",
        "watches",
        "nodes",
        "tree MiB",
        "free GiB"
    );
    for (address, answer) in answers {
        text.push('\n');
        match answer {
            Ok((status, _)) => text += &row(status, leader.map(|(status, _)| status)),
            Err(error) => text += &format!("{:<4} {address}: {error}", "?"),
        }
    }
    text
}

fn row(status: &MemberStatus, leader: Option<&MemberStatus>) -> String {
    let seen = leader.and_then(|leader| leader.followers.iter().find(|f| f.id == status.id));
    let lag = match seen {
        _ if status.leads() => "-".into(),
        Some(follower) if follower.in_sync => follower.lag.to_string(),
        Some(_) => "syncing".into(),
        None => "?".into(),
    };
    format!(
        "{:<4} {:<10} {:>6} {:>7} {:>14} {lag:>9} {:>9} {:>9} {:>10} {:>9} {:>9}",
        status.id,
        status.role,
        status.leader.map_or("-".into(), |id| id.to_string()),
        status.epoch,
        status.applied_zxid,
        format!("{}/{}", status.local_sessions, status.sessions),
        status.watches,
        status.nodes,
        status.tree_used_bytes >> 20,
        gib(status.disk_free_bytes),
    )
}

/// Bytes as GiB with one decimal.
fn gib(bytes: u64) -> String {
    let tenths = ((bytes >> 20) * 10) >> 10;
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(id: u8, role: &str, applied: &str, followers: &Value) -> Answer {
        let value = json!({
            "id": id, "role": role, "leader": 1, "epoch": 1, "applied_zxid": applied,
            "followers": followers, "sessions": 0, "local_sessions": 0, "watches": 0, "nodes": 0,
            "tree_used_bytes": 0, "disk_free_bytes": 0,
        });
        (id.to_string(), Ok((MemberStatus::deserialize(&value).unwrap(), value)))
    }

    fn follower(acked: &str, lag: u64) -> Value {
        json!([{ "id": 2, "in_sync": true, "acked_zxid": acked, "lag": lag }])
    }

    #[test]
    fn who_has_what_the_leader_had_is_up_to_date_although_there_are_more_writes() {
        let mut goal = None;
        let mut look = |leader: &str, acked: &str, lag, applied: &str| {
            let leader = server(1, "leading", leader, &follower(acked, lag));
            missing(&[leader, server(2, "following", applied, &json!([]))], &mut goal)
        };
        assert_eq!(look("1.10", "1.9", 1, "1.8"), Some("not every server is up to date"));
        assert_eq!(look("1.20", "1.12", 8, "1.9"), Some("not every server is up to date"));
        assert_eq!(look("1.30", "1.22", 8, "1.12"), None);
        assert_eq!(look("2.1", "2.0", 1, "2.0"), None, "the next epoch is later");
    }
}
