//! How commands end: with which exit code, saying what, and when.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _, pipe};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::failover::wire;
use super::held::{Aside, runs, send, wait_until};
use super::ports::Ports;
use super::{Dev, Killed, conclave, text};

/// A command whose servers are not there.
fn to_nobody(args: &[&str]) -> Command {
    let mut command = conclave();
    command.args(args).args(["--servers", "127.0.0.1:1", "--timeout", "1"]);
    command
}

#[test]
fn a_value_is_read_before_there_is_a_session_that_could_expire_meanwhile() {
    for args in [
        &["create", "/x", "-"][..],
        &["set", "/x", "-"],
        &["multi"],
        &["queue", "push", "mail", "-"],
        &["config", "set", "limit", "-"],
        &["config", "stage", "limit", "-", "--group", "canary"],
        &["config", "schema", "limit", "-"],
    ] {
        // A directory cannot be read, which is said by whoever tries first.
        let output = to_nobody(args).stdin(File::open("/").unwrap()).output().unwrap();
        let said = text(&output.stderr);
        assert!(said.contains("reading standard input"), "{args:?}: {said}");
    }
}

#[test]
fn a_reader_who_is_slow_does_not_cost_the_session() {
    let dev = Dev::start();
    let keep = |path: &str| dev.command(&["create", path, "--ephemeral", "--session-timeout", "4"]);
    let exists = |path: &str| dev.run(&["exists", path]).status.code() == Some(0);
    let (reader, mut writer) = pipe().unwrap();
    // As much as a pipe takes: what is printed after it waits until somebody reads.
    writer.write_all(&[b'\n'; 65_536]).unwrap();
    let mut slow = Killed(keep("/slow").stdout(writer).spawn().unwrap());
    wait_until("it is there", || exists("/slow"));
    let mut frozen = Aside::of(keep("/frozen"));
    assert_eq!(frozen.line(), "/frozen");
    frozen.signal("STOP");
    wait_until("a session that says nothing expires", || !exists("/frozen"));
    assert!(exists("/slow"), "its session lives on, which is the older one");
    let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
    assert_eq!(lines.find(|line| !line.is_empty()).as_deref(), Some("/slow"));
    assert!(slow.0.try_wait().unwrap().is_none());
}

#[test]
fn that_nobody_knows_is_not_that_there_is_none() {
    let dev = Dev::start();
    for args in [
        &["exists", "/x"][..],
        &["config", "get", "limit"],
        &["config", "staged", "limit"],
        &["config", "schema", "limit"],
    ] {
        assert_eq!(dev.run(args).status.code(), Some(1), "{args:?}");
        assert_eq!(to_nobody(args).output().unwrap().status.code(), Some(125), "{args:?}");
    }
}

#[test]
fn only_who_finds_no_server_is_asked_whether_they_run() {
    let said = |args: &[&str]| text(&to_nobody(args).output().unwrap().stderr);
    let nobody = said(&["ls", "/"]);
    assert!(nobody.starts_with("conclave: no session within 1s from any of 127.0.0.1:1"));
    assert!(nobody.contains("are the servers running?"), "{nobody}");
    for args in [&["ls", "/", "--tls-ca", "/no/such/file"][..], &["ls", "/", "--auth", "nonsense"]]
    {
        let wrong = said(args);
        assert!(!wrong.contains("are the servers running?"), "{wrong}");
    }
    let dev = Dev::start();
    let refused = dev.complain(&["ls", "/", "--auth", "password:alice:wonderland"]);
    assert!(refused.contains("refused"), "{refused}");
    assert!(!refused.contains("are the servers running?"), "{refused}");
}

/// A server of names that answers nobody.
struct Silence {
    socket: UdpSocket,
    home: TempDir,
}

impl Silence {
    /// `None`: this user may not have one.
    fn begin() -> Option<Silence> {
        let own = Command::new("unshare").args(["-m", "true"]).stderr(Stdio::null()).status();
        if !own.is_ok_and(|status| status.success()) {
            return None;
        }
        let mut addresses = (1..255).map(|host| Ipv4Addr::new(127, 0, 53, host));
        let socket = addresses.find_map(|address| UdpSocket::bind((address, 53)).ok())?;
        let home = TempDir::new().unwrap();
        let nameserver = format!("nameserver {}\n", socket.local_addr().unwrap().ip());
        fs::write(home.path().join("resolv.conf"), nameserver).unwrap();
        Some(Silence { socket, home })
    }

    /// `conclave` where names are asked for here, and for minutes.
    fn conclave(&self, args: &[&str]) -> Command {
        let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script]).arg(self.home.path().join("resolv.conf"));
        command.args(["env", "--default-signal", env!("CARGO_BIN_EXE_conclave")]).args(args);
        command.env("RES_OPTIONS", "timeout:30 attempts:5");
        command
    }

    /// Waits until somebody asks for a name.
    fn is_asked(&self) {
        self.socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        self.socket.recv_from(&mut [0; 1024]).unwrap();
    }
}

#[test]
fn nobody_who_ends_waits_for_a_name_to_be_found() {
    let Some(silence) = Silence::begin() else { return };
    let name = "nowhere.example:7400";
    let ls = silence.conclave(&["ls", "/", "--servers", name, "--timeout", "1"]);
    assert_eq!(Aside::of(ls).code(), Some(1));
    silence.is_asked();

    // Nobody has asked this one yet.
    let Some(silence) = Silence::begin() else { return };
    let data = silence.home.path().join("data");
    let mut serve = silence.conclave(&["serve", "--client", "127.0.0.1:0", "--no-zookeeper"]);
    serve.args(["--no-admin", "--peer", "127.0.0.1:0", "--data-dir"]).arg(data);
    for member in ["1=127.0.0.1:1", "2=nowhere.example:1", "3=nowhere.example:2"] {
        serve.args(["--member", member]);
    }
    let mut serve = Aside::of(serve);
    silence.is_asked();
    serve.signal("TERM");
    assert_eq!(serve.code(), Some(0));
}

#[test]
fn a_reader_who_goes_away_ends_a_command_quietly() {
    let dev = Dev::start();
    dev.ask(&["create", "/x", "something"]);
    dev.ask(&["queue", "push", "mail", "something"]);
    for args in
        [&["get", "/x"][..], &["ls", "/"], &["queue", "pop", "mail"], &["completions", "bash"]]
    {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let output = dev.command(args).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(141), "{args:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "", "{args:?}");
    }
}

/// A benchmark of a server of its own, whose temporary directories are in that one.
fn bench(port: u16, seconds: &str, temporary: &Path) -> Command {
    let mut command = conclave();
    command.args(["bench", "get", "--clients", "1", "--spawn", "1", "--seconds", seconds]);
    command.args(["--port-base", &port.to_string()]).env("TMPDIR", temporary);
    command
}

#[test]
fn a_benchmark_that_nobody_reads_leaves_nothing_behind() {
    let (home, ports) = (TempDir::new().unwrap(), Ports::claim());
    let left = || fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().path());
    let unread = || {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let output = bench(ports.first() + 10, "1", home.path()).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(141), "{}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "");
    };
    unread();
    assert_eq!(left().count(), 0);
    // Who is killed leaves its directory behind, in which no server goes on.
    let mut killed = Aside::of(bench(ports.first(), "600", home.path()));
    assert!(killed.line().starts_with("wire"));
    let dir = left().next().unwrap();
    unread();
    assert!(dir.exists(), "its run goes on");
    let server = fs::read_to_string(dir.join("1/pid")).unwrap();
    killed.signal("KILL");
    wait_until("the server ends, too", || !runs(server.trim()));
    assert!(dir.exists());
    unread();
    assert_eq!(left().count(), 0, "the next run has removed it");
}

#[test]
fn what_cannot_be_printed_is_told_of() {
    let dev = Dev::start();
    dev.ask(&["create", "/x", "something"]);
    for args in [&["get", "/x"][..], &["exists", "/x"], &["completions", "bash"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = dev.command(args).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(74), "{args:?}");
        let said = text(&output.stderr);
        assert!(said.contains("standard output"), "{args:?}: {said}");
    }
}

#[test]
fn a_session_that_cannot_be_closed_takes_nothing_back_from_what_was_done() {
    let dev = Dev::start();
    let mut watch = Aside::start(&dev, &["watch", "/", "--timeout", "2"]);
    assert!(watch.line().starts_with("Watching /"));
    let server = fs::read_to_string(dev.home.path().join("data/1/pid")).unwrap();
    send(server.trim(), "STOP");
    watch.signal("INT");
    let code = watch.code();
    send(server.trim(), "CONT");
    assert_eq!(code, Some(0));
}

#[test]
fn who_keeps_an_ephemeral_node_ends_when_it_is_deleted() {
    let dev = Dev::start();
    let mut keeper = Aside::start(&dev, &["create", "/here", "--ephemeral"]);
    assert_eq!(keeper.line(), "/here");
    dev.ask(&["delete", "/here"]);
    assert_eq!(keeper.code(), Some(1));
    let mut keeper = Aside::start(&dev, &["create", "/here", "--ephemeral"]);
    assert_eq!(keeper.line(), "/here");
    keeper.signal("INT");
    assert_eq!(keeper.code(), Some(0));
    assert_eq!(dev.run(&["exists", "/here"]).status.code(), Some(1));
}

#[test]
fn who_keeps_an_ephemeral_node_ends_when_its_session_has_expired() {
    let dev = Dev::start();
    let wire = wire(&dev.servers());
    let args = ["create", "/here", "--ephemeral", "--session-timeout", "2"];
    let mut command = dev.command(&args);
    command.env("CONCLAVE_SERVERS", &wire.addresses);
    let mut keeper = Aside::of(command);
    assert_eq!(keeper.line(), "/here");
    wire.cut();
    wait_until("it expires", || dev.run(&["exists", "/here"]).status.code() == Some(1));
    wire.mend();
    assert_eq!(keeper.code(), Some(1));
}

/// `config edit` of a setting that is there, with a script for an editor.
fn edit(dev: &Dev, script: &str) -> Command {
    let editor = dev.home.path().join("editor");
    fs::write(&editor, script).unwrap();
    let mut command = dev.command(&["config", "edit", "limit"]);
    command
        .env_remove("VISUAL")
        .env("EDITOR", format!("sh {}", editor.display()))
        .env("TMPDIR", dev.home.path())
        .stdin(Stdio::null());
    command
}

#[test]
fn what_was_edited_is_kept_when_it_cannot_be_set() {
    let dev = Dev::start();
    dev.ask(&["config", "schema", "limit", r#"{"type": "integer", "minimum": 1}"#]);
    dev.ask(&["config", "set", "limit", "100"]);
    let kept = || {
        let files = fs::read_dir(dev.home.path()).unwrap().map(|file| file.unwrap().path());
        files.filter(|file| file.extension().is_some_and(|ext| ext == "json")).collect::<Vec<_>>()
    };
    let meanwhile = format!(
        "echo 300 > \"$1\"; {} config set limit 200 > /dev/null",
        env!("CARGO_BIN_EXE_conclave")
    );
    for script in ["echo '[1,' > \"$1\"", "echo 0 > \"$1\"", &meanwhile, "echo 7 > \"$1\"; exit 1"]
    {
        let output = edit(&dev, script).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{script}: {said}");
        let [file] = &kept()[..] else { panic!("{script}: {:?} are kept: {said}", kept()) };
        assert!(said.contains(file.to_str().unwrap()), "{script}: {said}");
        let text = fs::read_to_string(file).unwrap();
        assert!(script.contains(text.trim()), "{script}: {text}");
        fs::remove_file(file).unwrap();
    }
    for script in ["true", "exit 1", "echo 5 > \"$1\""] {
        edit(&dev, script).output().unwrap();
        assert!(kept().is_empty(), "{script}");
    }
    assert_eq!(dev.ask(&["config", "get", "limit"]), "5\n");
}

#[test]
fn an_interrupt_is_the_editors_business_while_it_runs() {
    let dev = Dev::start();
    dev.ask(&["config", "set", "limit", "100"]);
    let go = dev.home.path().join("go");
    let script = format!(
        "echo ready; until test -e {}; do sleep 0.1; done; echo 200 > \"$1\"",
        go.display()
    );
    let mut editing = Aside::of(edit(&dev, &script));
    assert_eq!(editing.line(), "ready");
    editing.signal("INT");
    fs::write(&go, "").unwrap();
    assert_eq!(editing.line(), "limit is at revision 2");
    assert_eq!(editing.code(), Some(0));
}
