//! Very many clients.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::client::{Client, create, get};
use crate::server::Server;

/// As many idle clients as the machine lets this process have, up to 10,000.
fn crowd() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).unwrap();
    let most = limit.maximum.map_or(usize::MAX, |files| usize::try_from(files).unwrap());
    10_000.min(most.saturating_sub(512))
}

#[test]
fn ten_thousand_idle_clients_are_cheap() {
    let server = Server::start();
    let mut witness = Client::open(server.client);
    witness.call(create("/witness", 100)).unwrap();
    let before = server.resident_bytes();
    let count = crowd();
    let crowd: Vec<Client> = (0..count).map(|_| Client::open(server.client)).collect();
    let each = server.resident_bytes().saturating_sub(before) / count as u64;
    assert!(each < 12 << 10, "an idle client costs {each} bytes");
    witness.call(get("/witness")).unwrap();
    assert_eq!(server.metric("conclave_connections"), count as u64 + 1);
    drop(crowd);
    witness.call(get("/witness")).unwrap();
    crate::server::wait_for("the connections to be gone", || {
        (server.metric("conclave_connections") == 1).then_some(())
    });
}
