//! Servers that are told nonsense before they start: one clear line and an exit code of its own.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use conclave_proto::{ErrorCode, Fault, Op, Reply, ServerMessage};

use crate::client::{Client, create, get, path};
use crate::server::{Server, fail, wait_for};

fn lines(said: &str) -> usize {
    said.lines().filter(|line| line.contains("ERROR")).count()
}

#[test]
fn a_configuration_with_an_unknown_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("conclave.toml");
    std::fs::write(&file, "id = 1\nheartbeet_ms = 3\n").unwrap();
    let (status, said) = fail(&dir.path().join("d"), &["--config", file.to_str().unwrap()]);
    assert_eq!(status.code(), Some(78), "{said}");
    assert!(said.contains("conclave.toml") && said.contains("`heartbeet_ms`"), "{said}");
    assert!(!dir.path().join("d").exists(), "nothing is touched before the configuration is right");
}

#[test]
fn a_configuration_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let (status, said) = fail(dir.path(), &["--config", "/nowhere/conclave.toml"]);
    assert_eq!(status.code(), Some(78), "{said}");
    assert!(said.contains("/nowhere/conclave.toml"), "{said}");
    assert_eq!(lines(&said), 1, "{said}");
}

/// One that votes and one that does not: without the first there is no majority that could bring
/// anything back.
#[test]
fn a_loss_that_the_others_cannot_repair() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("conclave.toml");
    let members = "id = 1\ncluster = \"c\"\n[[members]]\nid = 1\npeer = \"127.0.0.1:2\"\n\
                   [[members]]\nid = 2\npeer = \"127.0.0.1:1\"\nobserver = true\n";
    std::fs::write(&file, members).unwrap();
    let flags = ["--config", file.to_str().unwrap(), "--client", "127.0.0.1:0", "--no-admin"];
    let (status, said) = fail(&dir.path().join("d"), &[&flags[..], &["--lost-data"]].concat());
    assert_eq!(status.code(), Some(73), "{said}");
    assert!(said.contains("restore a backup"), "{said}");
}

#[test]
fn a_port_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (status, said) = fail(dir.path(), &["--client", &address, "--no-admin"]);
    assert_eq!(status.code(), Some(69), "{said}");
    assert!(said.contains(&address) && said.contains("another process uses the port"), "{said}");
    assert_eq!(lines(&said), 1, "{said}");
}

#[test]
fn a_directory_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--client", "127.0.0.1:0", "--no-admin"];
    let file = dir.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    let (status, said) = fail(&file, &flags);
    assert_eq!(status.code(), Some(73), "{said}");
    assert!(said.contains(file.to_str().unwrap()), "{said}");
    assert_eq!(lines(&said), 1, "{said}");

    // Where not even the administrator may create anything.
    let (status, said) = fail(Path::new("/proc/conclave"), &flags);
    assert_eq!(status.code(), Some(74), "{said}");
    assert!(said.contains("/proc/conclave"), "{said}");
    assert_eq!(lines(&said), 1, "{said}");

    let locked = dir.path().join("locked");
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o500)).unwrap();
    let probe = locked.join("probe");
    if std::fs::write(&probe, "").is_ok() {
        // The administrator may write everywhere: there is nothing to be refused.
        return;
    }
    let (status, said) = fail(&locked, &flags);
    assert_eq!(status.code(), Some(73), "{said}");
    assert!(said.contains(locked.to_str().unwrap()), "{said}");
}

#[test]
fn a_directory_of_another_server() {
    let dir = tempfile::tempdir().unwrap();
    let flags = |id: &'static str, cluster: &'static str| {
        ["--id", id, "--cluster", cluster, "--client", "127.0.0.1:0", "--no-admin"]
    };
    let first = Server::start_in(dir.path(), &flags("1", "one"));
    let (status, said) = fail(dir.path(), &flags("1", "one"));
    assert_eq!(status.code(), Some(73), "{said}");
    assert_eq!(lines(&said), 1, "{said}");
    drop(first);
    for (id, cluster) in [("2", "one"), ("1", "two")] {
        let (status, said) = fail(dir.path(), &flags(id, cluster));
        assert_eq!(status.code(), Some(73), "{said}");
        assert!(said.contains(dir.path().to_str().unwrap()), "{said}");
    }
    drop(Server::start_in(dir.path(), &flags("1", "one")));
}

/// What a later version has written is left as it is, and the line says what to run.
#[test]
fn a_directory_of_another_version() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--client", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    drop(Server::start_in(dir.path(), &flags));
    for (name, format, advice) in [
        ("identity", 3, "a later one"),
        ("CURRENT", 3, "a later one"),
        ("identity", 1, "export the tree"),
    ] {
        let file = dir.path().join(name);
        let ours = std::fs::read(&file).unwrap();
        let mut other = ours.clone();
        other[8] = format;
        let body = other.len() - 4;
        let crc = crc32c::crc32c(&other[..body]);
        other[body..].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(&file, &other).unwrap();
        let (status, said) = fail(dir.path(), &flags);
        assert_eq!(status.code(), Some(73), "{name}: {said}");
        let format = format!("its format is {format} ");
        assert!(said.contains(&format) && said.contains(advice), "{said}");
        assert_eq!(lines(&said), 1, "{said}");
        assert_eq!(std::fs::read(&file).unwrap(), other, "{name} is left as it is");
        std::fs::write(&file, ours).unwrap();
    }
    drop(Server::start_in(dir.path(), &flags));
}

/// A server that is short of space refuses writes with an error of its own; reads and deletes go on.
#[test]
fn a_disk_that_is_nearly_full() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--client", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let mut server = Server::start_in(dir.path(), &flags);
    Client::open(server.client).call(create("/kept", 100)).unwrap();
    assert_eq!(server.stop().code(), Some(0), "{}", server.log());
    // No disk has that much room.
    let flags = [&flags[..], &["--set", "storage.reserve_mb=4000000000"]].concat();
    let server = Server::start_in(dir.path(), &flags);
    server.wait_for_metric("conclave_low_space", 1);
    let mut client = Client::open(server.client);
    let code = |answer: Result<_, Fault>| answer.map(|_: Reply| ()).map_err(|fault| fault.code);
    wait_for("the leader to refuse", || {
        (code(client.call(create("/more", 100))) == Err(ErrorCode::NoSpace)).then_some(())
    });
    assert_eq!(code(client.call(get("/kept"))), Ok(()));
    let delete = Op::Delete { path: path("/kept"), version: None };
    assert_eq!(code(client.call(delete)), Ok(()));
    assert!(server.log().contains("disk space is short"), "{}", server.log());
}

#[test]
fn plaintext_over_a_network() {
    let dir = tempfile::tempdir().unwrap();
    let (status, said) = fail(dir.path(), &["--client", "0.0.0.0:0", "--no-admin"]);
    assert_eq!(status.code(), Some(78), "{said}");
    assert!(said.contains("insecure"), "{said}");
}

#[test]
fn a_server_that_is_asked_to_stop_says_goodbye() {
    let mut server = Server::start();
    let mut client = Client::open(server.client);
    client.call(create("/kept", 100)).unwrap();
    assert_eq!(server.stop().code(), Some(0), "{}", server.log());
    let Some(ServerMessage::GoAway { .. }) = client.last_words() else {
        panic!("the client was not told to go elsewhere")
    };
    assert!(server.log().contains("stopped"), "{}", server.log());
    // A healthy server has little to say.
    assert!(server.log().lines().count() <= 8, "{}", server.log());
}

/// Whatever the server has to say would be lost.
#[test]
fn a_level_of_the_log_that_there_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (status, said) = fail(&data, &["--log", "inform", "--client", "127.0.0.1:0", "--no-admin"]);
    assert_eq!(status.code(), Some(78), "{said}");
    assert!(said.contains("\"inform\" is not a level") && said.contains("use error, "), "{said}");
    assert!(!data.exists());
}

#[test]
fn a_flag_that_there_is_not() {
    let dir = tempfile::tempdir().unwrap();
    for wrong in [&["--clinet", "127.0.0.1:0"][..], &["--client", "nowhere"], &["--id"]] {
        let (status, said) = fail(&dir.path().join("data"), wrong);
        assert_eq!(status.code(), Some(78), "{said}");
        assert!(said.contains(wrong[0]), "{said}");
    }
    let mut help = Command::new(env!("CARGO_BIN_EXE_conclave"));
    assert!(help.args(["serve", "--help"]).stdout(Stdio::null()).status().unwrap().success());
}

/// A disk of its own, in memory.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None`: this user may not have one.
    fn mount(size: &str) -> Option<SmallDisk> {
        let at = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]).arg(at.path());
        let mounted = mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        mounted.then_some(SmallDisk(at))
    }

    fn data(&self) -> std::path::PathBuf {
        self.0.path().join("data")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.0.path()).status().unwrap();
    }
}

#[test]
fn a_disk_that_is_full_is_named_and_not_a_signal() {
    let Some(disk) = SmallDisk::mount("4k") else { return };
    let (status, said) = fail(&disk.data(), &["--client", "127.0.0.1:0", "--no-admin"]);
    assert_eq!(status.code(), Some(74), "{status}: {said}");
    assert!(said.contains("make room"), "{said}");
    assert_eq!(lines(&said), 1, "{said}");
    drop(disk);

    // The log has its room beforehand, and the tree finds none.
    let Some(disk) = SmallDisk::mount("140m") else { return };
    let flags = ["--client", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let few = ["--set", "storage.reserve_mb=0", "--set", "storage.checkpoint_mb=4"];
    let server = Server::start_in(&disk.data(), &[flags, few].concat());
    let mut client = Client::open(server.client);
    for number in 0..200 {
        client.ask(create(&format!("/{number}"), 1 << 20));
    }
    wait_for("the server to end", || server.log().contains("storage failed").then_some(()));
    assert!(server.log().contains("make room"), "{}", server.log());
}
