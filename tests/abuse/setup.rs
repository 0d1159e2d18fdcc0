//! Servers that are told nonsense before they start: one clear line and an exit code of its own.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use conclave_proto::ServerMessage;

use crate::client::{Client, create};
use crate::server::{Server, fail};

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
    assert!(matches!(status.code(), Some(73 | 74)), "{status}: {said}");
    assert!(said.contains(file.to_str().unwrap()), "{said}");
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
    assert!(matches!(status.code(), Some(73 | 74)), "{status}: {said}");
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
}
