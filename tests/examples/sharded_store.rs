//! A store in shards that come and go, each of several replicas.

use crate::Program;
use crate::harness::{Cluster, eventually};
use crate::ports::Ports;

const EXAMPLE: &str = "sharded_store";

struct Store {
    servers: String,
    replicas: Vec<(String, Program)>,
    ports: Ports,
}

/// What `status` says of a replica.
struct Status {
    shard: String,
    address: String,
    is_primary: bool,
    keys: usize,
    reads: usize,
}

impl Store {
    fn start(servers: String, shards: &[&str]) -> Store {
        let mut store = Store { servers, replicas: Vec::new(), ports: Ports::claim() };
        for shard in shards {
            store.add(shard);
            store.add(shard);
        }
        store
    }

    /// One replica more.
    fn add(&mut self, shard: &str) {
        let number = u16::try_from(self.replicas.len()).unwrap();
        let address = format!("127.0.0.1:{}", self.ports.first() + number);
        let program = Program::start(EXAMPLE, &self.servers, &["replica", shard, &address]);
        self.replicas.push((address, program));
    }

    fn ask(&self, args: &[&str]) -> String {
        Program::ask(EXAMPLE, &self.servers, args)
    }

    fn spawn(&self, args: &[&str]) -> Program {
        Program::start(EXAMPLE, &self.servers, args)
    }

    fn status(&self) -> Vec<Status> {
        let said = self.ask(&["status"]);
        let status = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let [shard, address, role, keys, "keys", reads, "reads"] = words[..] else {
                return None;
            };
            Some(Status {
                shard: shard.into(),
                address: address.into(),
                is_primary: role == "primary",
                keys: keys.parse().unwrap(),
                reads: reads.parse().unwrap(),
            })
        };
        said.lines().filter_map(status).collect()
    }

    /// Waits until each of so many replicas has the keys of its shard and no others.
    async fn settles(&self, replicas: usize, keys: usize) -> Vec<Status> {
        eventually("every key is in one shard, and in all of its replicas", async || {
            let all = self.status();
            let primaries = all.iter().filter(|replica| replica.is_primary);
            let sum: usize = primaries.clone().map(|primary| primary.keys).sum();
            let is_alike = |replica: &Status| {
                let mut primaries = primaries.clone();
                primaries
                    .any(|primary| primary.shard == replica.shard && primary.keys == replica.keys)
            };
            (all.len() == replicas && sum == keys && all.iter().all(is_alike)).then_some(all)
        })
        .await
    }
}

/// How many keys of how many have moved, and to whom.
fn moved(said: &str) -> Vec<(usize, usize, String)> {
    let line = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
        [count, "of", all, "keys", "have", "moved", "to", shard] => {
            Some((count.parse().unwrap(), all.parse().unwrap(), shard.to_owned()))
        }
        _ => None,
    };
    said.lines().filter_map(line).collect()
}

#[tokio::test]
async fn only_the_keys_that_must_move_and_none_is_lost() {
    let mut cluster = Cluster::start(3).await;
    let mut store = Store::start(cluster.addresses(), &["a", "b"]);
    store.ask(&["reshard", "a", "b"]);
    store.ask(&["fill", "300"]);

    // A shard comes while the leader dies and others write.
    store.add("c");
    store.add("c");
    let leader = cluster.leader().await;
    let filling = store.spawn(&["fill", "500"]);
    cluster.kill(leader);
    let said = store.ask(&["reshard", "a", "b", "c"]);
    assert!(filling.succeeded());
    cluster.launch(leader);
    let moves = moved(&said);
    let [(count, all, to)] = &moves[..] else { panic!("they move to c alone: {said}") };
    assert_eq!(to, "c");
    let share = *count as f64 / *all as f64;
    assert!((0.2..0.47).contains(&share), "a third should move: {said}");
    store.ask(&["check", "500"]);
    let all = store.settles(6, 500).await;
    assert!(all.iter().all(|replica| replica.reads > 0), "reads are spread");

    // A shard goes, and its keys alone move.
    let of_b = all.iter().find(|replica| replica.shard == "b").unwrap().keys;
    let said = store.ask(&["reshard", "a", "c"]);
    assert_eq!(moved(&said).iter().map(|(count, _, _)| count).sum::<usize>(), of_b, "{said}");
    store.ask(&["check", "500"]);
    store.settles(4, 500).await;
}

#[tokio::test]
async fn replicas_come_and_go_and_nothing_acknowledged_is_lost() {
    let cluster = Cluster::start(3).await;
    let mut store = Store::start(cluster.addresses(), &["a", "b"]);
    store.ask(&["reshard", "a", "b"]);
    store.ask(&["fill", "200"]);
    let all = store.settles(4, 200).await;
    let primary = all.iter().find(|replica| replica.is_primary && replica.shard == "a").unwrap();

    let place = store.replicas.iter().position(|(address, _)| *address == primary.address);
    let (_, program) = &store.replicas[place.unwrap()];
    program.signal("KILL");
    store.ask(&["fill", "300"]);
    store.ask(&["check", "300"]);
    store.settles(3, 300).await;

    // A new one knows all that was before.
    store.add("a");
    store.add("a");
    store.settles(5, 300).await;
    // A primary dies in the middle of a move; its successor ends it.
    store.add("c");
    let (address, _) = &store.replicas[3];
    let primary =
        store.status().into_iter().find(|replica| replica.is_primary && replica.shard == "b");
    let primary = primary.unwrap().address;
    let is_last = *address == primary;
    let moving = store.spawn(&["reshard", "a", "b", "c"]);
    store.replicas[if is_last { 3 } else { 2 }].1.signal("KILL");
    assert!(moving.succeeded());
    store.ask(&["check", "300"]);
    store.settles(5, 300).await;
}
