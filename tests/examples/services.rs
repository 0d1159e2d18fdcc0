//! A service whose instances die, freeze and fall ill, and its callers.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::TcpStream;
use std::process::Stdio;

use conclave_client::Client;

use crate::Program;
use crate::harness::{Cluster, eventually};
use crate::ports::Ports;

const EXAMPLE: &str = "services";

/// Who answered how many of so many calls.
fn call(servers: &str, count: usize) -> BTreeMap<String, usize> {
    let said = Program::ask(EXAMPLE, servers, &["call", "--count", &count.to_string()]);
    let last = said.lines().last().unwrap();
    let (_, answers) = last.split_once(" calls were answered by ").unwrap();
    let answers: BTreeMap<String, usize> = serde_json::from_str(answers).unwrap();
    assert_eq!(answers.values().sum::<usize>(), count, "{said}");
    answers
}

async fn registered(client: &Client, names: &[&str]) {
    eventually("these and no others are registered", async || {
        let there = client.children("/services/greeter").linearizable().await.unwrap_or_default();
        (there == names).then_some(())
    })
    .await;
}

#[tokio::test]
async fn callers_go_to_the_fastest_instance_that_is_well() {
    let mut cluster = Cluster::start(3).await;
    let (servers, ports) = (cluster.addresses(), Ports::claim());
    let address = |number: u16| format!("127.0.0.1:{}", ports.first() + number);
    let start = |(number, id, delay): (u16, &str, &str)| {
        let args = ["serve", id, &address(number), "--delay-ms", delay];
        Program::start(EXAMPLE, &servers, &args)
    };
    let mut instances = [(0, "a", "0"), (1, "b", "60"), (2, "c", "120")].map(start).into_iter();
    let (a, b, _c) =
        (instances.next().unwrap(), instances.next().unwrap(), instances.next().unwrap());
    let client = cluster.client().await;
    registered(&client, &["a", "b", "c"]).await;
    // One who calls all the time, whatever happens.
    let mut command = Program::command(EXAMPLE, &servers, &["call"]);
    let mut caller = Program(command.stdout(Stdio::null()).spawn().unwrap());

    let answers = call(&servers, 64);
    assert!(answers.get("a") > Some(&40), "most go to the fastest: {answers:?}");
    let leader = cluster.leader().await;
    cluster.kill(leader);
    let answers = call(&servers, 32);
    assert!(answers.get("a") > Some(&16), "{answers:?}");

    a.kill();
    // It is registered until its session ends, and is not noticed to be gone.
    let answers = call(&servers, 32);
    assert!(answers.get("b") > answers.get("c") && !answers.contains_key("a"), "{answers:?}");
    registered(&client, &["b", "c"]).await;
    b.signal("STOP");
    let answers = call(&servers, 8);
    assert_eq!(answers.keys().collect::<Vec<_>>(), ["c"]);
    registered(&client, &["c"]).await;
    b.signal("CONT");
    registered(&client, &["b", "c"]).await;

    let tell = |number: u16, how: &str| {
        let mut socket = TcpStream::connect(address(number)).unwrap();
        socket.write_all(format!("{how}\n").as_bytes()).unwrap();
        // It is told when it hangs up on us, or answers.
        std::io::Read::read(&mut socket, &mut [0; 64]).unwrap();
    };
    tell(1, "ILL");
    registered(&client, &["c"]).await;
    assert_eq!(call(&servers, 4).keys().collect::<Vec<_>>(), ["c"]);
    tell(1, "WELL");
    registered(&client, &["b", "c"]).await;
    assert!(caller.0.try_wait().unwrap().is_none(), "somebody's calls were not answered");
}
