//! A key-value store with one primary and standbys.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::Program;
use crate::harness::{Cluster, DEADLINE, eventually};
use crate::ports::Ports;

/// Three servers of the store.
struct Store {
    programs: Vec<(String, Option<Program>)>,
    _ports: Ports,
}

impl Store {
    fn start(cluster: &Cluster) -> Store {
        let ports = Ports::claim();
        let servers = cluster.addresses();
        let start = |port: u16| {
            let address = format!("127.0.0.1:{port}");
            let args = ["--listen", &address, "--session-timeout", "2"];
            let program = Program::start("primary_standby", &servers, &args);
            (address, Some(program))
        };
        let programs = (0..3).map(|n| start(ports.first() + n)).collect();
        Store { programs, _ports: ports }
    }

    fn running(&self) -> Vec<&str> {
        let running = self.programs.iter().filter(|(_, program)| program.is_some());
        running.map(|(address, _)| address.as_str()).collect()
    }

    fn program(&mut self, address: &str) -> &mut Option<Program> {
        let place = self.programs.iter_mut().find(|(of, _)| of == address);
        &mut place.unwrap().1
    }

    /// Writes until it is acknowledged; the server that did so comes back.
    async fn set(&self, key: u64) -> String {
        let acknowledged = eventually("an acknowledged write", async || {
            for address in self.running() {
                let answer = ask(address, &format!("SET {key} value {key}")).await;
                if answer.is_some_and(|answer| answer.starts_with("OK ")) {
                    return Some(address.to_owned());
                }
            }
            None
        });
        acknowledged.await
    }

    /// Every server that runs has these keys.
    async fn check(&self, keys: u64) {
        for address in self.running() {
            for key in 0..keys {
                let expected = format!("VALUE value {key}");
                let has = async || {
                    let answer = ask(address, &format!("GET {key}")).await;
                    (answer.as_deref() == Some(&expected)).then_some(())
                };
                eventually("everything acknowledged is everywhere", has).await;
            }
        }
    }
}

/// One request on a connection of its own; `None` if there is no answer soon.
async fn ask(address: &str, request: &str) -> Option<String> {
    let mut connection = BufReader::new(TcpStream::connect(address).await.ok()?);
    ask_on(&mut connection, request).await
}

async fn ask_on(connection: &mut BufReader<TcpStream>, request: &str) -> Option<String> {
    connection.write_all(format!("{request}\n").as_bytes()).await.ok()?;
    let mut answer = String::new();
    let read = timeout(Duration::from_secs(1), connection.read_line(&mut answer)).await;
    read.ok()?.ok().filter(|&bytes| bytes > 0)?;
    Some(answer.trim_end().to_owned())
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_the_primary_or_the_leader_dies() {
    let mut cluster = Cluster::start(3).await;
    let mut store = Store::start(&cluster);
    for key in 0..200 {
        store.set(key).await;
    }
    let leader = cluster.leader().await;
    cluster.kill(leader);
    for key in 200..400 {
        store.set(key).await;
    }
    let primary = store.set(400).await;
    store.program(&primary).take().unwrap().kill();
    // More than are kept in the log: who follows is told the state.
    for key in 401..1200 {
        assert_ne!(store.set(key).await, primary);
    }
    cluster.launch(leader);
    store.check(1200).await;
}

#[tokio::test]
async fn a_primary_that_was_frozen_writes_nothing_when_another_one_leads() {
    let cluster = Cluster::start(3).await;
    let mut store = Store::start(&cluster);
    let old = store.set(0).await;
    let mut connection = BufReader::new(TcpStream::connect(&old).await.unwrap());
    assert!(ask_on(&mut connection, "SET 0 value 0").await.unwrap().starts_with("OK "));
    let frozen = store.program(&old).take().unwrap();
    frozen.signal("STOP");
    let new = store.set(1).await;
    assert_ne!(new, old);
    // What it finds first when it wakes up is a write.
    connection.write_all(b"SET 0 too late\n").await.unwrap();
    frozen.signal("CONT");
    let mut answer = String::new();
    let read = timeout(DEADLINE, connection.read_line(&mut answer)).await;
    read.expect("an answer, or the end of the connection").ok();
    assert!(!answer.starts_with("OK"), "{answer}");
    // It follows the new one, like every other.
    *store.program(&old) = Some(frozen);
    store.set(2).await;
    store.check(3).await;
}
