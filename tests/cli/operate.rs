//! Ensembles that are started, started twice, damaged and stopped.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use super::held::{Aside, wait_until};
use super::{Dev, Ports, TempDir, text};

fn conclave(args: &[&str]) -> Command {
    let mut command = super::conclave();
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs a command that ends by itself; its exit code, and what it complained of.
fn run(args: &[&str]) -> (Option<i32>, String) {
    let home = TempDir::new().unwrap();
    let complaints = home.path().join("stderr");
    let mut command = conclave(args);
    command.stderr(File::create(&complaints).unwrap());
    (Aside::of(command).code(), fs::read_to_string(complaints).unwrap())
}

fn kill(pid: &str) {
    assert!(Command::new("kill").args(["-s", "KILL", pid]).status().unwrap().success());
}

/// `conclave dev` with three servers, as soon as it has said what to type next, and who leads.
fn three_servers(dir: &Path, ports: &Ports) -> (Aside, u8) {
    let mut dev = conclave(&["dev", "--port-base", &ports.first().to_string(), "--dir"]);
    dev.arg(dir);
    let mut dev = Aside::of(dev);
    let first = dev.line();
    let leader = first.strip_prefix("3 servers run; server ").unwrap();
    let leader = leader.strip_suffix(" leads.").unwrap().parse().unwrap();
    while !dev.line().contains("Ctrl-C") {}
    (dev, leader)
}

fn pid(dir: &Path, id: u8) -> String {
    fs::read_to_string(dir.join(format!("{id}/pid"))).unwrap().trim().to_owned()
}

#[test]
fn a_second_start_leaves_what_the_running_servers_have_alone() {
    let dev = Dev::start();
    let dir = dev.home.path().join("data");
    let [pid, config] = ["1/pid", "1/conclave.toml"].map(|name| dir.join(name));
    let files = || [&pid, &config].map(|file| fs::read_to_string(file).unwrap());
    let before = files();
    for port in [dev.ports.first(), dev.ports.first() + 50] {
        let again = ["dev", "--servers", "1", "--port-base", &port.to_string(), "--dir"];
        let (code, said) = run(&[&again[..], &[dir.to_str().unwrap()]].concat());
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&format!("process {}", dev.process.id())), "{said}");
        assert_eq!(files(), before);
    }
    let (pid, config) = (pid.to_str().unwrap(), config.to_str().unwrap());
    let serve = ["serve", "--config", config, "--pid-file", pid];
    assert_eq!(run(&serve).0, Some(69), "the ports are in use");
    assert_eq!(files(), before);
    let elsewhere = ["client", "zookeeper", "peer", "admin"]
        .map(|port| format!("--{port}=127.0.0.1:0"))
        .to_vec();
    let elsewhere: Vec<_> = serve.into_iter().chain(elsewhere.iter().map(String::as_str)).collect();
    assert_eq!(run(&elsewhere).0, Some(73), "the data is in use");
    assert_eq!(files(), before);
}

#[test]
fn dev_tells_of_every_server_that_ends_and_stops_when_asked_without_a_leader() {
    let (home, ports) = (TempDir::new().unwrap(), Ports::claim());
    let (mut dev, leader) = three_servers(home.path(), &ports);
    let follower = leader % 3 + 1;
    let pids = [1, 2, 3].map(|id| pid(home.path(), id));
    let pid = |id: u8| &pids[usize::from(id) - 1];
    for id in [leader, follower] {
        kill(pid(id));
    }
    for _ in [leader, follower] {
        while !dev.line().contains("has ended") {}
    }
    let last = pid(follower % 3 + 1);
    dev.signal("INT");
    assert_eq!(dev.code(), Some(0));
    assert!(!Path::new(&format!("/proc/{last}")).exists(), "its servers end with it");
}

#[test]
fn dev_that_is_stopped_while_it_starts_ends_its_servers_first() {
    let (home, ports) = (TempDir::new().unwrap(), Ports::claim());
    let mut dev = conclave(&["dev", "--port-base", &ports.first().to_string(), "--dir"]);
    dev.arg(home.path());
    let mut dev = Aside::of(dev);
    let (log, written) = (home.path().join("3/log"), home.path().join("1/pid"));
    wait_until("its servers start", || log.exists() && written.exists());
    dev.signal("INT");
    assert_eq!(dev.code(), Some(0));
    let gone = pid(home.path(), 1);
    assert!(!Path::new(&format!("/proc/{gone}")).exists(), "its servers end with it");
}

#[test]
fn dev_starts_again_at_once_after_it_was_killed() {
    let (home, ports) = (TempDir::new().unwrap(), Ports::claim());
    let (dev, _) = three_servers(home.path(), &ports);
    dev.signal("KILL");
    let (mut dev, _) = three_servers(home.path(), &ports);
    dev.signal("INT");
    assert_eq!(dev.code(), Some(0));
}

#[test]
fn servers_are_asked_how_they_are_without_a_proxy() {
    let dev = Dev::start();
    let mut status = dev.command(&["status", "--leader"]);
    for name in ["ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY"] {
        status.env(name, "http://127.0.0.1:1");
    }
    let answer = status.env_remove("NO_PROXY").env_remove("no_proxy").output().unwrap();
    assert_eq!(text(&answer.stdout), "1\n", "{}", text(&answer.stderr));
}

#[test]
fn who_asks_servers_of_which_none_leads_is_told_so() {
    let (home, ports) = (TempDir::new().unwrap(), Ports::claim());
    let (_dev, leader) = three_servers(home.path(), &ports);
    let address = |id: u8| format!("127.0.0.1:{}", ports.first() + 10 * u16::from(id - 1));
    let wait = |servers: &str| run(&["status", "--wait", "--timeout", "1", "--servers", servers]);
    let (code, said) = wait(&address(leader % 3 + 1));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("none of the servers that were asked leads"), "{said}");
    let (code, said) = wait(&[1, 2, 3].map(address).join(","));
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(&["status", "--leader", "--servers", &address(leader % 3 + 1)]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("no server that answers leads"), "{said}");
}

#[test]
fn numbers_that_lead_nowhere_are_refused() {
    let (code, said) = run(&["status", "--timeout", "18446744073709551615"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--timeout"), "{said}");
    let (code, said) = run(&["compare", "--port-base", "65500"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("--port-base"), "{said}");
}

/// Whether a process runs that was started with something of that directory.
fn is_in_use(dir: &Path) -> bool {
    let dir = dir.to_str().unwrap();
    let commands = fs::read_dir("/proc").unwrap().flatten().filter_map(|process| {
        let line = fs::read(process.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).into_owned())
    });
    commands.into_iter().any(|line| line.contains(dir))
}

#[test]
fn a_comparison_that_is_stopped_leaves_no_servers_behind() {
    if !Path::new("/usr/share/java/zookeeper.jar").exists() {
        return;
    }
    for signal in ["INT", "KILL"] {
        let (home, ports) = (TempDir::new().unwrap(), Ports::claim());
        let port = ports.first().to_string();
        let mut compare = conclave(&["compare", "get", "--servers", "1", "--port-base", &port]);
        compare.env("TMPDIR", home.path());
        let mut compare = Aside::of(compare);
        let log = |one: fs::DirEntry| one.path().join("zookeeper/1/zoo.log").exists();
        let is_there = || fs::read_dir(home.path()).unwrap().flatten().any(log);
        wait_until("ZooKeeper starts", || is_there() && is_in_use(home.path()));
        compare.signal(signal);
        assert_eq!(compare.code(), (signal == "INT").then_some(1));
        wait_until("its servers end", || !is_in_use(home.path()));
        if signal == "INT" {
            assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "its data is removed");
        }
    }
}
