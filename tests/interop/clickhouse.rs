//! ClickHouse, with Conclave in place of its Keeper.
//!
//! Two releases: the servers that Debian packages, of 2018, which replicate tables through
//! ZooKeeper's protocol alone; and the engine of a current one, as the Python module `chdb`, which
//! makes use of what ClickHouse Keeper adds.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;

use crate::ensemble::Ensemble;
use crate::ports::Ports;
use crate::{eventually, is_missing};

/// Names ClickHouse's server, if it is not where Debian's package has it.
const SERVER_VARIABLE: &str = "CLICKHOUSE_SERVER";
const SERVER: &str = "/usr/sbin/clickhouse-server";
/// Names a Python that has the module `chdb`.
const PYTHON_VARIABLE: &str = "CHDB_PYTHON";

/// How long a statement may take until it is given up, and asked once more.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait until a statement that has failed is tried again.
const PAUSE: Duration = Duration::from_millis(500);
/// How often that is done.
const TRIES: u32 = 60;

/// Two replicas of ClickHouse; they end with this value.
struct Replicas {
    servers: Vec<Child>,
    dir: TempDir,
    ports: Ports,
}

impl Replicas {
    fn start(program: &str, ensemble: &Ensemble) -> Replicas {
        let mut replicas =
            Replicas { servers: Vec::new(), dir: TempDir::new().unwrap(), ports: Ports::claim() };
        for replica in 1..=2 {
            let home = replicas.configure(replica, ensemble);
            let log = File::create(home.join("log")).unwrap();
            let mut command = Command::new(program);
            command.arg("--config-file=config.xml").current_dir(&home);
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            replicas.servers.push(command.spawn().unwrap());
        }
        for replica in 1..=2 {
            replicas.insists(replica, "select 1", "1");
        }
        replicas
    }

    /// Of the ports of a replica: 0 for queries, 1 for other queries, 2 for replication.
    fn port(&self, replica: u16, which: u16) -> u16 {
        self.ports.first() + 3 * (replica - 1) + which
    }

    fn configure(&self, replica: u16, ensemble: &Ensemble) -> PathBuf {
        let node = |address: &String| {
            let (host, port) = address.split_once(':').unwrap();
            format!("<node><host>{host}</host><port>{port}</port></node>")
        };
        let nodes: String = ensemble.addresses().iter().map(node).collect();
        let member = |replica| {
            let port = self.port(replica, 1);
            format!("<replica><host>127.0.0.1</host><port>{port}</port></replica>")
        };
        let home = self.dir.path().join(replica.to_string());
        fs::create_dir(&home).unwrap();
        let text = format!(
            "<yandex>
              <logger><level>information</level><console>1</console></logger>
              <http_port>{}</http_port><tcp_port>{}</tcp_port>
              <interserver_http_port>{}</interserver_http_port>
              <interserver_http_host>127.0.0.1</interserver_http_host>
              <listen_host>127.0.0.1</listen_host>
              <path>{home}/data/</path><tmp_path>{home}/tmp/</tmp_path>
              <users_config>users.xml</users_config><default_profile>default</default_profile>
              <mark_cache_size>100000000</mark_cache_size>
              <merge_tree>
                <zookeeper_session_expiration_check_period>
                  1
                </zookeeper_session_expiration_check_period>
              </merge_tree>
              <zookeeper>{nodes}<session_timeout_ms>6000</session_timeout_ms></zookeeper>
              <macros><replica>r{replica}</replica></macros>
              <distributed_ddl><path>/clickhouse/ddl</path></distributed_ddl>
              <remote_servers><both><shard>
                <internal_replication>true</internal_replication>{}{}
              </shard></both></remote_servers>
            </yandex>",
            self.port(replica, 0),
            self.port(replica, 1),
            self.port(replica, 2),
            member(1),
            member(2),
            home = home.display(),
        );
        fs::write(home.join("config.xml"), text).unwrap();
        let users = "<yandex><profiles><default/></profiles><quotas><default/></quotas>
            <users><default><password></password><networks><ip>127.0.0.1</ip></networks>
            <profile>default</profile><quota>default</quota></default></users></yandex>";
        fs::write(home.join("users.xml"), users).unwrap();
        home
    }

    /// What a replica answers to a statement; `None`: nothing, for it does not serve.
    fn ask(&self, replica: u16, statement: &str) -> Option<String> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port(replica, 0))).ok()?;
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = statement.len();
        write!(socket, "POST / HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{statement}").ok()?;
        let mut text = String::new();
        socket.read_to_string(&mut text).ok()?;
        let (_head, answer) = text.split_once("\r\n\r\n")?;
        Some(answer.trim_end().to_owned())
    }

    /// The statement is answered so.
    fn says(&self, replica: u16, statement: &str, expected: &str) {
        assert_eq!(self.ask(replica, statement).as_deref(), Some(expected), "{statement}");
    }

    /// The statement is answered so in the end: while a leader is missing, statements fail, and to
    /// insert the same rows once more does nothing if they are there.
    fn insists(&self, replica: u16, statement: &str, expected: &str) {
        self.repeats(replica, &[statement], expected);
    }

    /// The last one of the statements is answered so in the end. Those before it may well fail once
    /// they have been carried out.
    fn repeats(&self, replica: u16, statements: &[&str], expected: &str) {
        let mut answers = Vec::new();
        for _ in 0..TRIES {
            answers = statements.iter().map(|one| self.ask(replica, one)).collect();
            if answers.last().is_some_and(|last| last.as_deref() == Some(expected)) {
                return;
            }
            sleep(PAUSE);
        }
        panic!("replica {replica}, {statements:?}: not {expected:?}, but {answers:#?}");
    }

    /// Everything has come to a replica.
    fn has(&self, replica: u16, rows: &str) {
        self.insists(replica, "system sync replica r", "");
        self.insists(replica, "select count(), sum(k) from r", rows);
    }
}

impl Drop for Replicas {
    fn drop(&mut self) {
        for (replica, server) in (1..).zip(&mut self.servers) {
            server.kill().ok();
            server.wait().ok();
            if std::thread::panicking() {
                let log = self.dir.path().join(format!("{replica}/log"));
                println!("--- replica {replica}:\n{}", fs::read_to_string(log).unwrap_or_default());
            }
        }
    }
}

#[test]
fn clickhouse_replicates_through_the_deaths_of_leaders() {
    let program = std::env::var(SERVER_VARIABLE).unwrap_or_else(|_| SERVER.into());
    if is_missing(&program, "clickhouse-server") {
        return;
    }
    let mut ensemble = Ensemble::start();
    let replicas = Replicas::start(&program, &ensemble);
    let create = "create table r (k UInt64, v String) \
                  engine = ReplicatedMergeTree('/clickhouse/tables/r', '{replica}') order by k";
    for replica in 1..=2 {
        replicas.insists(replica, create, "");
    }
    let rows = |from: u64| {
        format!("insert into r (k, v) select number + {from}, 'v' from system.numbers limit 1000")
    };
    replicas.says(1, &rows(0), "");
    replicas.has(2, "1000\t499500");

    ensemble.obey("kill the leader");
    replicas.insists(2, &rows(1000), "");
    replicas.has(1, "2000\t1999000");
    let alter = "alter table r add column w UInt8 default 7";
    replicas.repeats(1, &[alter, "select sum(w) from r"], "14000");
    replicas.insists(2, "select sum(w) from r", "14000");
    ensemble.obey("start the killed server");

    ensemble.obey("kill the leader");
    replicas.insists(1, "alter table r delete where k < 10", "");
    for replica in 1..=2 {
        replicas.insists(replica, "select min(is_done) from system.mutations", "1");
        replicas.has(replica, "1990\t1998955");
    }
    let created = eventually("a statement reaches both replicas", || {
        let statement = "create table if not exists d on cluster both (a UInt8) engine = Memory";
        let told = replicas.ask(1, statement)?;
        (told.lines().count() == 2 && !told.contains("Exception")).then_some(told)
    });
    assert!(created.lines().all(|line| line.split('\t').nth(2) == Some("0")), "{created}");
    replicas.insists(2, "exists table d", "1");
    let active = "select total_replicas, active_replicas, is_readonly from system.replicas";
    replicas.insists(1, active, "2\t2\t0");
    for replica in 1..=2 {
        replicas.insists(replica, "drop table if exists r", "");
    }
    let left = "select count() from system.zookeeper where path = '/clickhouse/tables'";
    replicas.insists(1, left, "0");
}

/// The program tells what it wants of the ensemble, and ends well if all is well.
#[test]
fn the_engine_of_clickhouse_goes_on_when_the_leader_dies() {
    let Ok(python) = std::env::var(PYTHON_VARIABLE) else {
        return println!("skipped: {PYTHON_VARIABLE} names no Python with the module chdb");
    };
    let mut ensemble = Ensemble::start();
    let dir = TempDir::new().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/clickhouse.py");
    let mut command = Command::new(python);
    command.arg("-u").arg(script).arg(dir.path()).arg(ensemble.addresses().join(","));
    ensemble.obey_to_the_end(&mut command);
}
