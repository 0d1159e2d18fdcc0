//! The command line as its users see it: what is typed, what is printed, how it exits.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::disallowed_methods, reason = "tests wait for real servers with a deadline")]
#![allow(clippy::print_stdout, reason = "a test that fails shows what the servers said")]

#[path = "../data/chaos.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod chaos;
mod ends;
mod failover;
#[path = "../cluster/harness.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod harness;
mod held;
mod operate;
#[path = "../common/ports.rs"]
mod ports;
mod recipes;
mod transfer;

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use ports::Ports;
use serde_json::Value;
use tempfile::TempDir;

/// The program, with no signal ignored, whatever those ignore who run the tests: a job in the background
/// of a shell ignores the keys of the terminal.
fn conclave() -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal", env!("CARGO_BIN_EXE_conclave")]);
    command
}

/// `conclave dev` with one server; it ends with this value.
struct Dev {
    process: Child,
    home: TempDir,
    ports: Ports,
}

impl Dev {
    fn start() -> Dev {
        let home = TempDir::new().unwrap();
        let ports = Ports::claim();
        let (process, _) = launch(&home.path().join("data"), ports.first());
        Dev { process, home, ports }
    }

    /// Where it listens.
    fn servers(&self) -> String {
        format!("127.0.0.1:{}", self.ports.first())
    }

    /// Runs a command against the server.
    fn run(&self, args: &[&str]) -> Output {
        self.run_with(args, "")
    }

    /// A command against the server.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = conclave();
        command.args(args).env("CONCLAVE_SERVERS", self.servers());
        command
    }

    /// Runs a command with something on its standard input.
    fn run_with(&self, args: &[&str], input: &str) -> Output {
        let mut command = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        command.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        command.wait_with_output().unwrap()
    }

    /// Runs a command that succeeds, and gives what it printed.
    fn ask(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a command that succeeds, and gives the JSON it printed.
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ask(&[args, &["--json"]].concat())).unwrap()
    }

    /// Runs a command that fails, and gives what it complained of.
    fn complain(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", text(&output.stdout));
        text(&output.stderr)
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        stop(&mut self.process);
    }
}

/// A process that does not outlive a test that fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Starts `conclave dev` and waits until it has said what to type next.
fn launch(dir: &Path, port: u16) -> (Child, String) {
    let mut process = Command::new(env!("CARGO_BIN_EXE_conclave"))
        .args(["dev", "--servers", "1", "--port-base", &port.to_string(), "--dir"])
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    for line in BufReader::new(process.stdout.take().unwrap()).lines() {
        said += &(line.unwrap() + "\n");
        if said.contains("Ctrl-C") {
            return (process, said);
        }
    }
    process.kill().ok();
    process.wait().ok();
    panic!("it ended early: {said}");
}

fn stop(process: &mut Child) {
    let pid = process.id().to_string();
    Command::new("kill").args(["-s", "INT", &pid]).status().unwrap();
    process.wait().unwrap();
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn nodes_are_made_read_changed_and_deleted() {
    let dev = Dev::start();
    assert_eq!(dev.ask(&["create", "/app", "one"]), "/app\n");
    assert_eq!(dev.ask(&["get", "/app"]), "one");
    assert_eq!(dev.ask(&["set", "/app", "two", "--version", "0"]), "/app is at version 1\n");
    assert_eq!(dev.json(&["get", "/app"])["data"], "two");
    assert_eq!(dev.json(&["stat", "/app"])["stat"]["version"], 1);
    let numbered = dev.ask(&["create", "/app/job-", "--sequential"]);
    assert_eq!(numbered, "/app/job-0000000000\n");
    dev.ask(&["create", "--parents", "/app/a/b/c", "deep"]);
    assert_eq!(dev.ask(&["ls", "/app"]), "a\njob-0000000000\n");
    assert_eq!(dev.ask(&["exists", "/app/a/b/c"]), "yes\n");
    assert_eq!(dev.ask(&["tree", "/app/a"]), "/app/a\n  b\n    c\n2 nodes\n");
    assert_eq!(dev.json(&["delete", "--recursive", "/app"])["deleted"], 5);
    assert_eq!(dev.run(&["exists", "/app"]).status.code(), Some(1));
}

#[test]
fn a_value_comes_from_a_file_or_from_standard_input_byte_for_byte() {
    let dev = Dev::start();
    let bytes: Vec<u8> = (0..=255).collect();
    let file = dev.home.path().join("value");
    fs::write(&file, &bytes).unwrap();
    dev.ask(&["create", "/bytes", "--file", file.to_str().unwrap()]);
    assert_eq!(dev.run(&["get", "/bytes"]).stdout, bytes);
    let output = dev.run_with(&["create", "/text", "-"], "from a pipe\n");
    assert!(output.status.success());
    assert_eq!(dev.ask(&["get", "/text"]), "from a pipe\n");
}

#[test]
fn what_fails_is_said_with_the_path_and_the_reason() {
    let dev = Dev::start();
    assert_eq!(dev.complain(&["get", "/no"]), "conclave: get /no: the node does not exist\n");
    let orphan = dev.complain(&["create", "/no/child"]);
    assert_eq!(orphan, "conclave: create /no/child: the node above it does not exist\n");
    let relative = dev.complain(&["get", "no"]);
    assert_eq!(relative, "conclave: \"no\" is not a path: a path starts with '/'\n");
    dev.ask(&["create", "/here"]);
    let stale = dev.complain(&["set", "/here", "x", "--version", "7"]);
    assert!(stale.contains("set /here: the node has changed"), "{stale}");
    let nobody = dev.complain(&["get", "/x", "--servers", "127.0.0.1:1", "--timeout", "1"]);
    assert!(nobody.contains("are the servers running?"), "{nobody}");
}

#[test]
fn a_multi_does_all_or_nothing() {
    let dev = Dev::start();
    let script = "# a move\ncreate /from value\ncreate /to\n";
    assert!(dev.run_with(&["multi"], script).status.success());
    let output = dev.run_with(&["multi"], "delete /from\nset-version /to 3 value\n");
    assert_eq!(
        text(&output.stderr),
        "conclave: operation 1 of a multi, set /to: the node has changed: its version is not the \
         expected one\n"
    );
    assert_eq!(dev.ask(&["get", "/from"]), "value", "nothing was done");
    let choice = "if-data /from other\ndelete /from\nelse\nset /to taken\n";
    let output = dev.run_with(&["multi"], choice);
    assert_eq!(text(&output.stdout), "a condition did not hold\nchanged, at version 1\n");
    let output = dev.run_with(&["multi"], "explode /from\n");
    assert!(text(&output.stderr).contains("line 1"), "{}", text(&output.stderr));
}

#[test]
fn a_directory_tree_goes_in_and_comes_out_again() {
    let dev = Dev::start();
    let (from, to) = (dev.home.path().join("from"), dev.home.path().join("to"));
    fs::create_dir_all(from.join("sub/empty")).unwrap();
    fs::write(from.join("file"), "contents").unwrap();
    fs::write(from.join("nothing"), "").unwrap();
    fs::write(from.join("sub/bytes"), [0, 255, 10]).unwrap();
    fs::write(from.join("sub/.conclave-node"), "the directory's own").unwrap();
    let (source, target) = (from.to_str().unwrap(), to.to_str().unwrap());
    let first = dev.json(&["import", source, "/deep/tree"]);
    assert_eq!(first["left_out"], serde_json::json!([]));
    fs::write(from.join("file"), "newer").unwrap();
    let second = dev.json(&["import", source, "/deep/tree"]);
    assert_eq!((&second["created"], &second["changed"]), (&0.into(), &1.into()), "{second}");
    assert_eq!(dev.ask(&["get", "/deep/tree/sub"]), "the directory's own");
    dev.ask(&["export", "/deep/tree", target]);
    let same = Command::new("diff").args(["-r", source, target]).output().unwrap();
    assert!(same.status.success(), "{}", text(&same.stdout));
    assert_eq!(dev.json(&["export", "--replace", "/deep/tree", target])["written"], 0);
}

#[test]
fn what_cannot_become_a_node_is_named_and_the_rest_is_loaded() {
    let dev = Dev::start();
    let from = dev.home.path().join("from");
    fs::create_dir_all(&from).unwrap();
    fs::write(from.join("large"), vec![0; conclave::limits::VALUE_BYTES + 1]).unwrap();
    fs::write(from.join("bad\u{1}name"), "").unwrap();
    fs::write(from.join("good"), "good").unwrap();
    std::os::unix::fs::symlink("good", from.join("link")).unwrap();
    let output = dev.run(&["import", from.to_str().unwrap(), "/in", "--json"]);
    assert_eq!(output.status.code(), Some(3));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["left_out"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(report["links"], 1, "{report}");
    assert_eq!(dev.ask(&["get", "/in/good"]), "good");
}

#[test]
fn a_watch_tells_each_change() {
    let dev = Dev::start();
    let watch = Command::new(env!("CARGO_BIN_EXE_conclave"))
        .args(["watch", "--recursive", "--values", "--count", "3", "/"])
        .env("CONCLAVE_SERVERS", dev.servers())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut watch = Killed(watch);
    let mut lines = BufReader::new(watch.0.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("Watching /"));
    dev.ask(&["create", "/new", "a"]);
    dev.ask(&["set", "/new", "b"]);
    dev.ask(&["delete", "/new"]);
    let told: Vec<_> = lines.map(Result::unwrap).collect();
    assert!(watch.0.wait().unwrap().success());
    assert!(told[0].starts_with("created   /new") && told[0].ends_with(" a"), "{told:?}");
    assert!(told[1].starts_with("changed   /new") && told[1].ends_with(" b"), "{told:?}");
    assert!(told[2].starts_with("deleted   /new"), "{told:?}");
}

#[test]
fn dev_keeps_its_data_and_says_what_to_type() {
    let home = TempDir::new().unwrap();
    let (dir, ports) = (home.path().join("data"), Ports::claim());
    let port = ports.first();
    let (mut process, said) = launch(&dir, port);
    assert!(said.contains(&format!("export CONCLAVE_SERVERS=127.0.0.1:{port}")), "{said}");
    let mut dev = Dev { process, home, ports };
    dev.ask(&["create", "/kept", "still here"]);
    let pid = fs::read_to_string(dir.join("1/pid")).unwrap();
    stop(&mut dev.process);
    assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists(), "its servers end with it");
    (process, _) = launch(&dir, port);
    dev.process = process;
    assert_eq!(dev.ask(&["get", "/kept"]), "still here");
    assert_eq!(dev.json(&["status"])["role"], "leading");
    assert_eq!(dev.ask(&["status", "--leader"]), "1\n");
}

#[test]
fn a_benchmark_of_each_kind_counts_operations_without_errors() {
    let dev = Dev::start();
    let kinds = ["set", "create", "get", "mixed", "multi", "children", "connect", "watch"];
    let shape = ["--clients", "2", "--depth", "2", "--seconds", "1", "--json"];
    let rows = dev.ask(&[&["bench"], &kinds[..], &shape].concat());
    for (row, kind) in rows.lines().zip(kinds) {
        let row: Value = serde_json::from_str(row).unwrap();
        assert_eq!(row["kind"], kind);
        assert!(row["operations"].as_u64() > Some(0) && row["errors"] == 0, "{row}");
    }
    assert_eq!(rows.lines().count(), kinds.len());
}

#[test]
fn a_comparison_with_zookeeper_gives_both_the_same_load() {
    if !Path::new("/usr/share/java/zookeeper.jar").exists() {
        return;
    }
    let ports = Ports::claim();
    let port = ports.first().to_string();
    let shape = ["--shapes", "2x1,2x4", "--rounds", "1", "--seconds", "1", "--warm-up", "0"];
    let kinds = ["get", "create", "connect", "--native", "--json", "--servers", "1"];
    let output = Command::new(env!("CARGO_BIN_EXE_conclave"))
        .args(["compare", "--port-base", &port])
        .args([&kinds[..], &shape].concat())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows: Vec<Value> =
        text(&output.stdout).lines().map(|row| serde_json::from_str(row).unwrap()).collect();
    let names: Vec<_> =
        rows.iter().map(|row| format!("{} {}", row["kind"], row["depth"])).collect();
    // Sessions are opened one at a time by each client.
    let expected = [r#""get" 1"#, r#""get" 4"#, r#""create" 1"#, r#""create" 4"#, r#""connect" 1"#];
    assert_eq!(names, expected.map(|name| [name; 2]).concat());
    for row in rows {
        for side in ["zookeeper", "conclave"] {
            assert!(row[side]["ops_per_second"].as_f64() > Some(0.0), "{row}");
        }
        assert!(row["ratio"]["ops_per_second"].as_f64() > Some(0.0), "{row}");
    }
}

#[test]
fn every_shell_gets_its_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_conclave")).args(["completions", shell]).output();
        assert!(text(&output.unwrap().stdout).contains("conclave"), "{shell}");
    }
}

#[test]
fn a_password_is_hashed_and_a_user_is_shown_to_the_servers() {
    let dev = Dev::start();
    let hashed = dev.run_with(&["password"], "wonderland\n");
    let hash = text(&hashed.stdout);
    assert!(hashed.status.success() && hash.starts_with("$argon2id$"), "{hash}");
    assert!(!hash.contains("wonderland"), "{hash}");
    assert!(dev.complain(&["password"]).contains("no password"));

    let auth = |auth| dev.command(&["ls", "/"]).env("CONCLAVE_AUTH", auth).output().unwrap();
    assert!(auth("digest:bob:builder").status.success());
    let refused = auth("password:alice:wonderland");
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("refused"), "{}", text(&refused.stderr));
    assert!(text(&auth("nonsense").stderr).contains("SCHEME:CREDENTIALS"));
}
