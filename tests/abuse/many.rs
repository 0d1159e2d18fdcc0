//! Very many clients.

use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};

use conclave::limits::HANDSHAKES_PER_ADDRESS;
use conclave_proto::{ErrorCode, ServerMessage};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::client::{Client, create, get};
use crate::server::Server;

/// The tests here take turns: each wants most of the files that this process may open.
static TURN: Mutex<()> = Mutex::new(());

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
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
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

#[test]
fn a_storm_of_connections_that_say_nothing_is_refused() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let server = Server::start();
    let mut witness = Client::open(server.client);
    witness.call(create("/witness", 100)).unwrap();
    if crowd() < HANDSHAKES_PER_ADDRESS + 512 {
        // This machine does not let a process open that many.
        return;
    }
    let dial = || TcpStream::connect(server.client).unwrap();
    let crowd: Vec<TcpStream> = (0..HANDSHAKES_PER_ADDRESS).map(|_| dial()).collect();
    let Some(ServerMessage::Refused(refused)) = Client::dial(server.client).last_words() else {
        panic!("not refused")
    };
    assert_eq!(refused.code, ErrorCode::Throttled);
    assert!(refused.backoff_ms > 0);
    assert!(server.metric("conclave_connections_refused_total") > 0);
    witness.call(get("/witness")).unwrap();
    drop(crowd);
    // There is room again as soon as they are gone.
    crate::server::wait_for("room for a client", || {
        let mut client = Client::dial(server.client);
        client.say(&crate::client::connect(None));
        matches!(client.hear(), Some(ServerMessage::Connected(_))).then_some(())
    });
}
