//! The recipes on the command line while the leader of the servers is killed.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;

use serde_json::Value;
use tempfile::TempDir;

use super::chaos::Wire;
use super::harness::Cluster;
use super::held::{Aside, wait_until};
use super::{conclave, text};

/// A command that goes on until it is told to end, and says so.
const UNTIL_TOLD: &str =
    "trap 'echo told; exit 4' TERM; echo $CONCLAVE_TOKEN; while :; do sleep 0.1; done";

fn command(servers: &str, args: &[&str]) -> Command {
    let mut command = conclave();
    command.args(args).env("CONCLAVE_SERVERS", servers);
    command
}

/// Runs a command that succeeds, and gives what it printed.
fn ask(servers: &str, args: &[&str]) -> String {
    let output = command(servers, args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn json(servers: &str, args: &[&str]) -> Value {
    serde_json::from_str(&ask(servers, &[args, &["--json"]].concat())).unwrap()
}

/// Something that runs beside the test.
fn aside(servers: &str, args: &[&str]) -> Aside {
    Aside::of(command(servers, args))
}

/// Something that runs a script beside the test.
fn script(servers: &str, args: &[&str], script: &str) -> Aside {
    aside(servers, &[args, &["--", "sh", "-c", script]].concat())
}

/// `kill -9` for the leader; a new one leads when this returns.
async fn kill_the_leader(cluster: &mut Cluster) {
    let leader = cluster.leader().await;
    cluster.kill(leader);
    assert_ne!(cluster.leader().await, leader);
}

/// A network to the servers that can be cut. What it needs to run, a thread of its own has.
pub(super) fn wire(servers: &str) -> Wire {
    let (built, wire) = channel();
    let servers = servers.to_owned();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            built.send(Wire::to(&servers).await).unwrap();
            std::future::pending::<()>().await;
        });
    });
    wire.recv().unwrap()
}

#[tokio::test]
async fn a_lock_stays_with_its_holder_and_then_goes_to_who_waits() {
    let mut cluster = Cluster::start(3).await;
    let servers = &cluster.addresses();
    let mut holder = script(servers, &["lock", "a"], UNTIL_TOLD);
    let token: u64 = holder.line().parse().unwrap();
    let mut waiting = script(servers, &["lock", "a"], "echo $CONCLAVE_TOKEN");
    wait_until("it waits", || ask(servers, &["ls", "/locks/a"]).lines().count() == 2);
    kill_the_leader(&mut cluster).await;
    assert_eq!(json(servers, &["lock", "a", "--show"])["token"], token);
    let other = command(servers, &["lock", "a", "--wait", "1", "--", "true"]).status().unwrap();
    assert_eq!(other.code(), Some(124));
    assert!(holder.is_at_work() && waiting.is_at_work());
    holder.signal("TERM");
    assert_eq!((holder.line(), holder.code()), ("told".into(), Some(4)));
    assert!(waiting.line().parse::<u64>().unwrap() > token);
    assert_eq!(waiting.code(), Some(0));
    assert_eq!(ask(servers, &["lock", "a", "--show"]), "free\n");
}

#[tokio::test]
async fn who_leads_goes_on_leading_and_is_stopped_before_another_leads() {
    let mut cluster = Cluster::start(3).await;
    let servers = &cluster.addresses();
    let wire = wire(servers);
    let (home, history) = (TempDir::new().unwrap(), "history");
    let history = home.path().join(history);
    let write = |what: &str| format!("echo {what} >> {}", history.display());
    let begins = write("$NAME leads with $CONCLAVE_TOKEN");
    let ends = write("$NAME ends");
    let work = format!(
        "trap '{ends}; echo told; exit 0' TERM; {begins}; echo $CONCLAVE_TOKEN; \
         while :; do sleep 0.1; done"
    );
    let args = ["elect", "e", "--session-timeout", "2", "--timeout", "3600"];
    let candidate = |servers: &str, name: &str| {
        let mut candidate =
            command(servers, &[&args[..], &["--describe", name, "--", "sh", "-c", &work]].concat());
        candidate.env("NAME", name);
        Aside::of(candidate)
    };
    let mut first = candidate(&wire.addresses, "first");
    let token: u64 = first.line().parse().unwrap();
    let mut second = candidate(servers, "second");
    wait_until("it stands", || ask(servers, &["ls", "/elections/e"]).lines().count() == 3);

    kill_the_leader(&mut cluster).await;
    let leader = json(servers, &["elect", "e", "--show"]);
    assert_eq!((&leader["token"], &leader["description"]), (&token.into(), &"first".into()));
    assert!(first.is_at_work() && second.is_at_work());

    // Nobody tells it that another one leads: it knows by itself that it may be so.
    wire.cut();
    assert_eq!(first.line(), "told");
    let next: u64 = second.line().parse().unwrap();
    assert!(next > token, "{next} after {token}");
    // It stands again as soon as it can.
    wire.mend();
    wait_until("it stands", || ask(servers, &["ls", "/elections/e"]).lines().count() == 3);
    second.signal("TERM");
    assert_eq!((second.line(), second.code()), ("told".into(), Some(0)));
    let last: u64 = first.line().parse().unwrap();
    assert!(last > next, "{last} after {next}");
    first.signal("TERM");
    assert_eq!((first.line(), first.code()), ("told".into(), Some(0)));
    assert_eq!(
        lines(&history),
        [
            format!("first leads with {token}"),
            "first ends".into(),
            format!("second leads with {next}"),
            "second ends".into(),
            format!("first leads with {last}"),
            "first ends".into(),
        ]
    );
}

fn lines(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_candidate_whose_session_expires_while_it_waits_stands_again() {
    let cluster = Cluster::start(1).await;
    let servers = &cluster.addresses();
    let wire = wire(servers);
    let args = ["elect", "e", "--session-timeout", "2"];
    let mut first = script(servers, &args, UNTIL_TOLD);
    let token: u64 = first.line().parse().unwrap();
    let mut second = script(&wire.addresses, &args, UNTIL_TOLD);
    let candidates = || ask(servers, &["ls", "/elections/e"]).lines().count();
    wait_until("it stands", || candidates() == 3);
    wire.cut();
    wait_until("its session expires", || candidates() == 2);
    wire.mend();
    wait_until("it stands again", || candidates() == 3);
    first.signal("TERM");
    assert!(second.line().parse::<u64>().unwrap() > token);
    second.signal("TERM");
    assert_eq!((second.line(), second.code()), ("told".into(), Some(4)));
}

#[tokio::test]
async fn every_signal_that_is_said_to_be_is_passed_on() {
    let cluster = Cluster::start(1).await;
    let signals = ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2"];
    let traps: String = signals.map(|name| format!("trap 'echo {name}' {name}; ")).concat();
    let work = format!(
        "{traps} trap 'echo TERM; exit 4' TERM; echo ready; \
                        while :; do sleep 0.1; done"
    );
    for holds in [
        &["lock", "a"][..],
        &["elect", "a"],
        &["join", "a"],
        &["barrier", "meet", "a", "--count", "1"],
    ] {
        let mut holder = script(&cluster.addresses(), holds, &work);
        assert_eq!(holder.line(), "ready");
        for name in signals.into_iter().filter(|name| *name != "TERM") {
            holder.signal(name);
            assert_eq!(holder.line(), name, "{holds:?}");
        }
        holder.signal("TERM");
        assert_eq!((holder.line(), holder.code()), ("TERM".into(), Some(4)), "{holds:?}");
    }
}

#[tokio::test]
async fn members_and_instances_stay() {
    let mut cluster = Cluster::start(3).await;
    let servers = &cluster.addresses();
    let mut member = script(servers, &["join", "workers", "--name", "a"], UNTIL_TOLD);
    member.line();
    let billing = ["register", "billing", "b7", "10.0.0.7:80"];
    let mut instance = script(servers, &billing, UNTIL_TOLD);
    instance.line();
    let mut watch = aside(servers, &["members", "workers", "--watch"]);
    assert_eq!(watch.line(), "here     a");
    kill_the_leader(&mut cluster).await;
    assert_eq!(ask(servers, &["members", "workers"]), "a\n");
    assert_eq!(ask(servers, &["discover", "billing"]), "10.0.0.7:80\n");
    let mut other = aside(servers, &["join", "workers", "--name", "b"]);
    assert_eq!(watch.line(), "joined   b");
    assert!(member.is_at_work() && instance.is_at_work());
    member.signal("TERM");
    assert_eq!((member.line(), member.code()), ("told".into(), Some(4)));
    assert_eq!(watch.line(), "left     a");
    instance.signal("TERM");
    assert_eq!(instance.code(), Some(4));
    let gone = command(servers, &["discover", "billing"]).status().unwrap();
    assert_eq!(gone.code(), Some(1));
    other.signal("INT");
    assert_eq!(other.code(), Some(0));
}

#[tokio::test]
async fn barriers_open_for_all_who_wait() {
    let mut cluster = Cluster::start(3).await;
    let servers = &cluster.addresses();
    ask(servers, &["barrier", "raise", "migration"]);
    let mut waiting = aside(servers, &["barrier", "wait", "migration"]);
    let meet = ["barrier", "meet", "step", "--count", "2"];
    let mut first = script(servers, &meet, "echo in");
    wait_until("it comes", || {
        let inside = command(servers, &["ls", "/barriers/step"]).output().unwrap();
        !inside.stdout.is_empty()
    });
    kill_the_leader(&mut cluster).await;
    let raised = command(servers, &["barrier", "wait", "migration", "--within", "0"]).status();
    assert_eq!(raised.unwrap().code(), Some(124));
    assert!(waiting.is_at_work() && first.is_at_work());
    ask(servers, &["barrier", "lower", "migration"]);
    assert_eq!(waiting.code(), Some(0));
    let mut second = script(servers, &meet, "echo in; exit 3");
    assert_eq!((first.line(), second.line()), ("in".into(), "in".into()));
    assert_eq!((first.code(), second.code()), (Some(0), Some(3)));
}

#[tokio::test]
async fn no_item_is_lost_and_none_is_done_twice() {
    let mut cluster = Cluster::start(3).await;
    let servers = &cluster.addresses();
    for item in ["one", "two"] {
        ask(servers, &["queue", "push", "mail", item]);
    }
    let work = "cat; trap 'exit 0' TERM; echo; while :; do sleep 0.1; done";
    let mut busy = script(servers, &["queue", "pop", "mail"], work);
    assert_eq!(busy.line(), "one");
    let mut waiting = aside(servers, &["queue", "pop", "other", "--wait", "600"]);
    kill_the_leader(&mut cluster).await;
    assert_eq!(ask(servers, &["queue", "pop", "mail"]), "two");
    assert_eq!(ask(servers, &["queue", "len", "mail"]), "1\n", "what is in work is there");
    busy.signal("TERM");
    assert_eq!(busy.code(), Some(0));
    assert_eq!(ask(servers, &["queue", "len", "mail"]), "0\n");
    ask(servers, &["queue", "push", "other", "three\n"]);
    assert_eq!((waiting.line(), waiting.code()), ("three".into(), Some(0)));
}

#[tokio::test]
async fn a_watch_of_the_configuration_goes_on() {
    let mut cluster = Cluster::start(3).await;
    let servers = &cluster.addresses();
    ask(servers, &["config", "set", "limit", "1"]);
    let mut watch = aside(servers, &["config", "watch", "limit"]);
    assert_eq!(watch.line(), "1");
    kill_the_leader(&mut cluster).await;
    assert_eq!(ask(servers, &["config", "set", "limit", "2"]), "limit is at revision 2\n");
    assert_eq!(watch.line(), "2");
    assert_eq!(ask(servers, &["config", "get", "limit"]), "2\n");
    assert_eq!(ask(servers, &["config", "rollback", "limit", "1"]), "limit is at revision 3\n");
    assert_eq!(watch.line(), "1");
    assert_eq!(ask(servers, &["config", "history", "limit"]).lines().count(), 3);
    watch.signal("INT");
    assert_eq!(watch.code(), Some(0));
}
