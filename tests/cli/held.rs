//! Commands that run another one while they hold something.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::{Dev, text};

const DEADLINE: Duration = Duration::from_secs(30);

/// A `conclave` that runs beside the test.
pub(super) struct Aside {
    process: Child,
    lines: Receiver<String>,
}

impl Aside {
    pub(super) fn start(dev: &Dev, args: &[&str]) -> Aside {
        Aside::of(dev.command(args))
    }

    pub(super) fn of(mut command: Command) -> Aside {
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let printed = BufReader::new(process.stdout.take().unwrap());
        let (print, lines) = channel();
        // It ends with the process, or when nobody listens any more.
        std::thread::spawn(move || {
            printed.lines().map_while(Result::ok).try_for_each(|line| print.send(line))
        });
        Aside { process, lines }
    }

    /// The next line that it, or what it runs, prints.
    pub(super) fn line(&mut self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("another line")
    }

    /// Whether it has printed nothing more, and goes on.
    pub(super) fn is_at_work(&mut self) -> bool {
        self.lines.try_recv().is_err() && self.process.try_wait().unwrap().is_none()
    }

    pub(super) fn signal(&self, signal: &str) {
        send(&self.process.id().to_string(), signal);
    }

    pub(super) fn code(&mut self) -> Option<i32> {
        let mut ended = None;
        wait_until("it ends", || {
            ended = self.process.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap().code()
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

pub(super) fn send(pid: &str, signal: &str) {
    assert!(Command::new("kill").args(["-s", signal, pid]).status().unwrap().success());
}

pub(super) fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z")
}

pub(super) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn the_exit_code_is_that_of_the_command_or_says_what_prevented_it() {
    let dev = Dev::start();
    let code = |args: &[&str]| dev.run(args).status.code();
    assert_eq!(code(&["lock", "a", "--", "sh", "-c", "exit 7"]), Some(7));
    assert_eq!(code(&["lock", "a", "--", "sh", "-c", "kill -9 $$"]), Some(128 + 9));
    assert_eq!(code(&["lock", "a", "--", "no-such-command"]), Some(127));
    assert_eq!(code(&["lock", "a", "--", "/"]), Some(126));
    assert_eq!(code(&["lock", "a/b", "--", "true"]), Some(125));
    assert_eq!(code(&["lock", "a"]), Some(125));
    let wrong = text(&dev.run(&["lock", "a/b", "--", "true"]).stderr);
    assert!(wrong.contains("say /a/b") && wrong.contains("has a slash in it"), "{wrong}");
    assert_eq!(code(&["elect", "a", "--", "sh", "-c", "exit 3"]), Some(3));
    assert_eq!(code(&["elect", "", "--", "true"]), Some(125));
    assert_eq!(code(&["lock", "a", "--json", "--", "true"]), Some(125), "nothing is printed");
    assert_eq!(code(&["elect", "a", "--json", "--", "true"]), Some(125), "nothing is printed");
    for mistaken in [
        &["lock", "a", "--wiat", "0", "--", "true"][..],
        &["elect"],
        &["join", "a", "--nmae", "b", "--", "true"],
        &["register", "a", "--", "true"],
        &["barrier", "meet", "a", "--", "true"],
        &["queue", "pop", "a", "--wiat", "0", "--", "true"],
    ] {
        assert_eq!(code(mistaken), Some(125), "{mistaken:?} is no exit code of COMMAND");
    }
    assert_eq!(code(&["queue", "push", "a", "--pirority", "1"]), Some(2));
    assert_eq!(code(&["lock", "--help"]), Some(0));
    let nobody = ["lock", "a", "--servers", "127.0.0.1:1", "--timeout", "1", "--", "true"];
    assert_eq!(code(&nobody), Some(125));
}

#[test]
fn a_lock_is_held_by_one_at_a_time_and_its_tokens_grow() {
    let dev = Dev::start();
    let (count, tokens) = (dev.home.path().join("count"), dev.home.path().join("tokens"));
    fs::write(&count, "0").unwrap();
    let script = format!(
        "n=$(cat {count}); echo $CONCLAVE_TOKEN >> {tokens}; echo $((n + 1)) > {count}",
        count = count.display(),
        tokens = tokens.display()
    );
    let args = ["lock", "/jobs/count", "--", "sh", "-c", &script];
    let mut all: Vec<_> = (0..8).map(|_| Aside::start(&dev, &args)).collect();
    for one in &mut all {
        assert_eq!(one.code(), Some(0));
    }
    assert_eq!(fs::read_to_string(count).unwrap(), "8\n");
    let tokens = fs::read_to_string(tokens).unwrap();
    let tokens: Vec<u64> = tokens.lines().map(|token| token.parse().unwrap()).collect();
    assert!(tokens.is_sorted_by(|one, next| one < next), "{tokens:?}");
    assert_eq!(dev.ask(&["lock", "/jobs/count", "--show"]), "free\n");
}

#[test]
fn a_lock_that_is_taken_is_shown_and_not_waited_for_longer_than_asked() {
    let dev = Dev::start();
    let script = "echo $CONCLAVE_TOKEN; exec cat /dev/zero > /dev/null";
    let args = ["lock", "a", "--describe", "me", "--revocable", "--", "sh", "-c", script];
    let mut holder = Aside::start(&dev, &args);
    let token: u64 = holder.line().parse().unwrap();
    let shown = dev.json(&["lock", "a", "--show"]);
    assert_eq!((&shown["description"], &shown["token"]), (&"me".into(), &token.into()));
    assert_eq!(dev.run(&["lock", "a", "--wait", "0", "--", "true"]).status.code(), Some(124));
    assert_eq!(dev.run(&["lock", "free", "--wait", "0", "--", "true"]).status.code(), Some(0));
    dev.ask(&["lock", "a", "--revoke"]);
    assert_eq!(holder.code(), Some(123));
    let nobody = dev.run(&["lock", "a", "--revoke"]);
    assert_eq!(nobody.status.code(), Some(1), "{}", text(&nobody.stderr));
}

#[test]
fn who_loses_a_lock_is_stopped_with_all_that_it_has_started() {
    let dev = Dev::start();
    let script = "sleep 1000 & echo $!; wait";
    let mut holder = Aside::start(&dev, &["lock", "a", "--", "sh", "-c", script]);
    let grandchild = holder.line();
    let node = dev.ask(&["ls", "/locks/a"]);
    dev.ask(&["delete", &format!("/locks/a/{}", node.trim())]);
    assert_eq!(holder.code(), Some(123));
    assert!(!runs(&grandchild), "it outlives the lock");
}

#[test]
fn neither_a_command_nor_what_it_has_started_outlives_the_process_that_holds_the_lock() {
    let dev = Dev::start();
    let script = "sleep 1000 & echo $!; echo $$; wait";
    let args = ["lock", "a", "--session-timeout", "2", "--", "sh", "-c", script];
    let mut holder = Aside::start(&dev, &args);
    let (grandchild, command) = (holder.line(), holder.line());
    holder.signal("KILL");
    wait_until("the command is killed", || !runs(&command));
    wait_until("what it has started is killed", || !runs(&grandchild));
    assert_eq!(dev.run(&["lock", "a", "--wait", "30", "--", "true"]).status.code(), Some(0));
}

/// The guardian that a holder has by now: a directory of `/proc`.
fn guardian(holder: u32) -> Option<PathBuf> {
    let children = fs::read_to_string(format!("/proc/{holder}/task/{holder}/children")).unwrap();
    let mut children = children.split_whitespace().map(|pid| Path::new("/proc").join(pid));
    children.find(|process| {
        let typed = fs::read_to_string(process.join("cmdline")).unwrap_or_default();
        typed.contains("guard-held")
    })
}

#[test]
fn a_guardian_that_is_killed_is_replaced_by_one_that_guards_from_the_start() {
    let dev = Dev::start();
    let script = "sleep 1000 & echo $!; wait";
    for lock in ["a", "b", "c", "d", "e", "f"] {
        let args = ["lock", lock, "--session-timeout", "2", "--", "sh", "-c", script];
        let mut holder = Aside::start(&dev, &args);
        let grandchild = holder.line();
        let id = holder.process.id();
        let first = guardian(id).unwrap();
        send(&first.file_name().unwrap().to_string_lossy(), "KILL");
        wait_until("another one guards", || guardian(id).is_some_and(|next| next != first));
        // At once: it has heard of nothing but what it was started with.
        holder.process.kill().unwrap();
        wait_until("what the command has started is killed", || !runs(&grandchild));
    }
}

#[test]
fn a_lock_is_held_until_all_that_a_command_has_started_has_ended() {
    let dev = Dev::start();
    let end = dev.home.path().join("end");
    let work = format!(
        "sh -c 'trap \"echo told\" TERM; echo ready; until test -e {}; do sleep 0.1; done'; true",
        end.display()
    );
    let mut holder = Aside::start(&dev, &["lock", "a", "--", "sh", "-c", &work]);
    assert_eq!(holder.line(), "ready");
    // It ends the shell at once; what the shell has started ends when it is ready to.
    holder.signal("TERM");
    assert_eq!(holder.line(), "told");
    assert_eq!(dev.run(&["lock", "a", "--wait", "1", "--", "true"]).status.code(), Some(124));
    fs::write(end, "").unwrap();
    assert_eq!(holder.code(), Some(128 + 15));
    assert_eq!(dev.run(&["lock", "a", "--wait", "30", "--", "true"]).status.code(), Some(0));
}

#[test]
fn what_a_command_has_left_behind_is_killed_by_the_second_signal() {
    let dev = Dev::start();
    let script = "sh -c 'trap \"\" TERM; echo started $$; exec sleep 1000' & echo $$; exit 3";
    let mut holder = Aside::start(&dev, &["lock", "a", "--", "sh", "-c", script]);
    let mut lines = [holder.line(), holder.line()];
    lines.sort_unstable();
    let [command, started] = lines;
    let started = started.strip_prefix("started ").unwrap();
    wait_until("the command ends", || !runs(&command));
    assert!(runs(started));
    wait_until("it ends", || {
        holder.signal("TERM");
        holder.process.try_wait().unwrap().is_some()
    });
    assert_eq!(holder.code(), Some(3));
    assert!(!runs(started));
}

/// A server that neither answers nor dies, as long as this value lives.
struct Frozen(String);

impl Frozen {
    fn new(dev: &Dev) -> Frozen {
        let pid = fs::read_to_string(dev.home.path().join("data/1/pid")).unwrap();
        send(pid.trim(), "STOP");
        Frozen(pid.trim().to_owned())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        send(&self.0, "CONT");
    }
}

#[test]
fn the_exit_code_of_a_command_does_not_wait_for_servers_that_are_away() {
    let dev = Dev::start();
    for (holds, timeout) in [("lock", "1"), ("lock", "3600"), ("elect", "1"), ("elect", "3600")] {
        let end = dev.home.path().join(format!("{holds}-{timeout}"));
        let work = format!("echo $$; until test -e {}; do sleep 0.1; done; exit 7", end.display());
        let name = format!("a{timeout}");
        let args = [holds, &name, "--session-timeout", "60", "--timeout", timeout, "--"];
        let mut holder = Aside::start(&dev, &[&args[..], &["sh", "-c", &work]].concat());
        let command = holder.line();
        let frozen = Frozen::new(&dev);
        fs::write(end, "").unwrap();
        wait_until("the command ends", || !runs(&command));
        if timeout == "3600" {
            wait_until("a signal ends it", || {
                holder.signal("INT");
                holder.process.try_wait().unwrap().is_some()
            });
        }
        assert_eq!(holder.code(), Some(7), "{holds} --timeout {timeout}");
        drop(frozen);
    }
}

#[test]
fn nobody_has_to_wait_to_be_rid_of_an_item_for_servers_that_are_away() {
    let dev = Dev::start();
    for (outcome, code) in [("exit 7", 7), ("true", 128 + 2)] {
        dev.ask(&["queue", "push", "a", "work"]);
        let end = dev.home.path().join(format!("{code}"));
        let work =
            format!("echo $$; until test -e {}; do sleep 0.1; done; {outcome}", end.display());
        let args = ["queue", "pop", "a", "--timeout", "3600", "--", "sh", "-c", &work];
        let mut consumer = Aside::start(&dev, &args);
        let command = consumer.line();
        let frozen = Frozen::new(&dev);
        fs::write(end, "").unwrap();
        wait_until("the command ends", || !runs(&command));
        wait_until("a signal ends it", || {
            consumer.signal("INT");
            consumer.process.try_wait().unwrap().is_some()
        });
        assert_eq!(consumer.code(), Some(code), "{outcome}");
        drop(frozen);
        // Whatever the servers took before: nobody has it any more.
        wait_until("it is free", || dev.ask(&["ls", "/queues/a/taken"]).is_empty());
    }
}

#[test]
fn a_command_finds_how_this_one_reached_the_servers() {
    let dev = Dev::start();
    dev.ask(&["queue", "push", "a", "work"]);
    let servers = dev.servers();
    for runs in [
        &["lock", "a"][..],
        &["elect", "a"],
        &["join", "a"],
        &["barrier", "meet", "a", "--count", "1"],
        &["queue", "pop", "a"],
    ] {
        let mut command = dev.command(runs);
        command.env_remove("CONCLAVE_SERVERS");
        command.args(["--servers", &servers, "--auth", "digest:ann:secret", "--"]);
        command.args(["sh", "-c", "echo $CONCLAVE_SERVERS $CONCLAVE_AUTH"]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(text(&output.stdout), format!("{servers} digest:ann:secret\n"), "{runs:?}");
    }
}

#[test]
fn a_candidate_without_servers_says_so_and_goes_on() {
    let dev = Dev::start();
    let mut command = Command::new("sh");
    command.env("CONCLAVE_SERVERS", dev.servers());
    command.args(["-c", "exec \"$@\" 2>&1", "sh", env!("CARGO_BIN_EXE_conclave")]);
    command.args(["elect", "e", "--session-timeout", "2", "--timeout", "1", "--"]);
    command.args(["sh", "-c", "echo leads; exec sleep 1000"]);
    let mut candidate = Aside::of(command);
    assert_eq!(candidate.line(), "leads");
    let frozen = Frozen::new(&dev);
    let tells =
        |line: &str| line.contains("are the servers running?") && line.ends_with("trying again");
    for _ in 0..2 {
        while !tells(&candidate.line()) {}
    }
    drop(frozen);
    while candidate.line() != "leads" {}
    candidate.signal("TERM");
    assert_eq!(candidate.code(), Some(128 + 15));
}

#[test]
fn a_signal_that_was_ignored_before_is_ignored() {
    let dev = Dev::start();
    let conclave = env!("CARGO_BIN_EXE_conclave");
    let script = "echo $$; trap 'exit 4' TERM; while :; do sleep 0.1; done";
    let mut nohup = Command::new("sh");
    nohup.env("CONCLAVE_SERVERS", dev.servers());
    nohup.args(["-c", "trap '' HUP; exec \"$@\"", "sh", conclave, "lock", "a", "--"]);
    nohup.args(["sh", "-c", script]);
    let mut holder = Aside::of(nohup);
    let command = holder.line();
    let mut nohup = Command::new("sh");
    nohup.env("CONCLAVE_SERVERS", dev.servers());
    nohup.args(["-c", "trap '' HUP; exec \"$@\"", "sh", conclave, "lock", "a", "--", "true"]);
    let mut waiting = Aside::of(nohup);
    wait_until("it waits", || dev.ask(&["ls", "/locks/a"]).lines().count() == 2);
    waiting.signal("HUP");
    holder.signal("HUP");
    send(&command, "HUP");
    assert_eq!(dev.run(&["lock", "a", "--wait", "1", "--", "true"]).status.code(), Some(124));
    assert!(holder.is_at_work() && waiting.is_at_work());
    holder.signal("TERM");
    assert_eq!(holder.code(), Some(4));
    assert_eq!(waiting.code(), Some(0));
}

#[test]
fn signals_are_passed_on_to_the_command() {
    let dev = Dev::start();
    let script =
        "trap 'echo told' USR1; trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let mut holder = Aside::start(&dev, &["lock", "a", "--", "sh", "-c", script]);
    assert_eq!(holder.line(), "ready");
    let mut waiting = Aside::start(&dev, &["lock", "a", "--", "true"]);
    holder.signal("USR1");
    assert_eq!(holder.line(), "told");
    wait_until("it waits", || dev.ask(&["ls", "/locks/a"]).lines().count() == 2);
    waiting.signal("TERM");
    assert_eq!(waiting.code(), Some(128 + 15));
    holder.signal("TERM");
    assert_eq!(holder.code(), Some(9));
}

#[test]
fn another_leads_when_the_leader_ends_dies_or_freezes() {
    let dev = Dev::start();
    let candidate = |name: &str| {
        let script = "echo $CONCLAVE_TOKEN; echo $$; exec sleep 1000";
        let args = ["elect", "e", "--once", "--session-timeout", "2", "--describe", name];
        Aside::start(&dev, &[&args[..], &["--", "sh", "-c", script]].concat())
    };
    let mut first = candidate("first");
    let token: u64 = first.line().parse().unwrap();
    let command = first.line();
    assert!(dev.ask(&["elect", "e", "--show"]).starts_with("first leads"));
    let mut second = candidate("second");
    wait_until("it stands", || dev.ask(&["ls", "/elections/e"]).lines().count() == 3);
    first.signal("STOP");
    let later: u64 = second.line().parse().unwrap();
    assert!(later > token, "{later} after {token}");
    assert!(!runs(&command), "its guardian does not need it to know that it is over");
    first.signal("CONT");
    assert_eq!(first.code(), Some(123));
    assert!(!runs(&command));
    let mut third = candidate("third");
    wait_until("it stands", || dev.ask(&["ls", "/elections/e"]).lines().count() == 3);
    second.signal("KILL");
    assert!(third.line().parse::<u64>().unwrap() > later);
    let mut observer = Aside::start(&dev, &["elect", "e", "--watch"]);
    assert!(observer.line().starts_with("third leads"));
    third.signal("TERM");
    assert_eq!(third.code(), Some(128 + 15));
    assert_eq!(observer.line(), "nobody leads");
    assert!(Path::new(&format!("/proc/{}", observer.process.id())).exists());
}

#[test]
fn who_loses_the_servers_is_stopped_without_waiting_for_them() {
    let dev = Dev::start();
    let script = "trap 'echo told; exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    let args = ["lock", "a", "--session-timeout", "2", "--timeout", "3600", "--"];
    let mut holder = Aside::start(&dev, &[&args[..], &["sh", "-c", script]].concat());
    assert_eq!(holder.line(), "ready");
    let _frozen = Frozen::new(&dev);
    assert_eq!(holder.line(), "told");
    assert_eq!(holder.code(), Some(123));
}
