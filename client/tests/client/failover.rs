//! Lost connections, other servers, and the end of sessions.

use std::time::Duration;

use bytes::BytesMut;
use conclave_client::proto::convert::encode_client;
use conclave_client::proto::message::{Connect, ServerLimits};
use conclave_client::proto::request::ReadLevel;
use conclave_client::proto::{ClientMessage, Op, ServerMessage, Xid};
use conclave_client::{Client, Error, ErrorCode, Reply, Stat, State};

use crate::fake::{
    Fake, LIMITS, SESSION, Unreachable, connected, connected_by, connected_within, data, get,
    secret, set, soon, z,
};

async fn next_state(states: &mut conclave_client::States) -> Option<State> {
    soon(states.next()).await
}

#[tokio::test]
async fn a_server_that_does_not_listen_is_passed_over() {
    let fake = Fake::start().await;
    let silent = Fake::start().await;
    let dead = silent.address();
    drop(silent);
    let servers = format!("{dead},{}", fake.address());
    let (client, _peer) = tokio::join!(soon(Client::connect(servers)), fake.open());
    let client = client.unwrap();
    assert_eq!(client.state(), State::Connected);
    assert_eq!(client.session(), SESSION);
    assert_eq!(client.session_timeout(), Duration::from_secs(10));
}

#[tokio::test]
async fn what_was_in_flight_is_sent_again_under_its_number() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let mut states = client.states();
    let first = client.set("/a", "1").send();
    let second = client.set("/a", "2").send();
    let third = client.get("/a").send();
    peer.expect(1, set("/a", "1")).await;
    peer.answer(1, 5, Ok(Reply::Stat(Stat::default()))).await;
    soon(first).await.unwrap();
    peer.expect(2, set("/a", "2")).await;
    peer.expect(3, get("/a")).await;
    drop(peer);

    let mut peer = fake.accept().await;
    let Connect { session, last_zxid, .. } = peer.connect().await;
    assert_eq!(session, Some((SESSION, secret())));
    assert_eq!(last_zxid, z(5));
    let fourth = client.get("/b").send();
    peer.connected(true).await;
    peer.expect(2, set("/a", "2")).await;
    peer.expect(3, get("/a")).await;
    peer.expect(4, get("/b")).await;
    peer.answer(2, 6, Ok(Reply::Stat(Stat::default()))).await;
    peer.answer(3, 6, data("2")).await;
    peer.answer(4, 6, data("b")).await;
    soon(second).await.unwrap();
    assert_eq!(soon(third).await.unwrap().text(), Ok("2"));
    assert_eq!(soon(fourth).await.unwrap().text(), Ok("b"));
    for state in [State::Connected, State::Suspended, State::Resumed] {
        assert_eq!(next_state(&mut states).await, Some(state));
    }
}

#[tokio::test]
async fn what_fits_the_limit_exactly_fits_it_again_when_more_is_answered() {
    let fake = Fake::start().await;
    let long = "x".repeat(300).leak();
    let largest = ClientMessage::Request {
        xid: Xid(2),
        acked: Xid(0),
        level: ReadLevel::Local,
        op: set("/b", long),
    };
    let mut frame = BytesMut::new();
    encode_client(&largest, &mut frame);
    let limits = ServerLimits { frame_bytes: u32::try_from(frame.len()).unwrap(), ..LIMITS };
    let (client, mut peer) = connected_within(&fake, limits).await;
    let get_a = client.get("/a").send();
    let set_b = client.set("/b", long.as_bytes()).send();
    peer.expect(1, get("/a")).await;
    peer.expect(2, set("/b", long)).await;
    peer.answer(1, 1, data("")).await;
    soon(get_a).await.unwrap();
    drop(peer);

    let mut peer = fake.accept().await;
    peer.connect().await;
    peer.connected_with(true, limits, 10_000).await;
    peer.expect(2, set("/b", long)).await;
    peer.answer(2, 2, Ok(Reply::Stat(Stat::default()))).await;
    soon(set_b).await.unwrap();
}

#[tokio::test]
async fn a_server_that_says_go_away_is_left_for_another() {
    let one = Fake::start().await;
    let other = Fake::start().await;
    let servers = format!("{},{}", one.address(), other.address());
    let connect = soon(Client::connect(servers));
    let accept = async {
        tokio::select! {
            peer = one.open() => (peer, &other),
            peer = other.open() => (peer, &one),
        }
    };
    let (client, (mut peer, next)) = tokio::join!(connect, accept);
    let client = client.unwrap();
    let get_a = client.get("/a").send();
    peer.expect(1, get("/a")).await;
    peer.send(ServerMessage::GoAway { backoff_ms: 1 }).await;
    peer.is_closed().await;
    let mut peer = next.resume().await;
    peer.expect(1, get("/a")).await;
    peer.answer(1, 1, data("a")).await;
    assert_eq!(soon(get_a).await.unwrap().text(), Ok("a"));
}

#[tokio::test]
async fn a_server_without_a_leader_is_left_and_the_request_asked_again() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let set_a = client.set("/a", "1").send();
    let get_a = client.get("/a").send();
    peer.expect(1, set("/a", "1")).await;
    peer.expect(2, get("/a")).await;
    peer.fault(1, 1, ErrorCode::Unavailable).await;
    peer.answer(2, 1, data("0")).await;
    peer.is_closed().await;
    let mut peer = fake.resume().await;
    peer.expect(1, set("/a", "1")).await;
    peer.expect(2, get("/a")).await;
    peer.answer(1, 2, Ok(Reply::Stat(Stat::default()))).await;
    peer.answer(2, 2, data("1")).await;
    soon(set_a).await.unwrap();
    assert_eq!(soon(get_a).await.unwrap().text(), Ok("1"));
}

#[tokio::test]
async fn a_read_that_no_server_can_answer_holds_up_nothing_once_its_time_is_over() {
    let fake = Fake::start().await;
    let timeout = Duration::from_secs(1);
    let builder = Client::builder().servers(fake.address()).operation_timeout(timeout);
    let (client, mut peer) = tokio::join!(soon(builder.connect()), fake.open());
    let client = client.unwrap();
    let of_another_history = client.get("/a").at_least(z(1 << 60)).send();
    peer.expect(1, get("/a")).await;
    let error = soon(of_another_history).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { sent: true, .. }), "{error}");
    let set_b = client.set("/b", "1").send();
    peer.expect(2, set("/b", "1")).await;
    peer.fault(1, 1, ErrorCode::Unavailable).await;
    peer.is_closed().await;
    let mut peer = fake.resume().await;
    let instead = peer.request().await;
    assert_eq!((instead.xid, instead.level, instead.op), (1, ReadLevel::Local, Op::WhoAmI));
    peer.expect(2, set("/b", "1")).await;
    peer.answer(1, 1, Ok(Reply::Identities(Vec::new()))).await;
    peer.answer(2, 2, Ok(Reply::Stat(Stat::default()))).await;
    soon(set_b).await.unwrap();
}

#[tokio::test]
async fn a_server_that_refuses_for_now_is_tried_again() {
    let fake = Fake::start().await;
    let script = async {
        let mut peer = fake.accept().await;
        peer.connect().await;
        peer.refuse(ErrorCode::Unavailable, "no leader").await;
        fake.open().await
    };
    let (client, _peer) = tokio::join!(soon(Client::connect(fake.address())), script);
    client.unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_left() {
    let fake = Fake::start().await;
    let builder =
        Client::builder().servers(fake.address()).session_timeout(Duration::from_millis(300));
    let script = async {
        let mut peer = fake.accept().await;
        assert_eq!(peer.connect().await.timeout_ms, 300);
        peer.connected_with(false, LIMITS, 300).await;
        peer
    };
    let (client, _frozen) = tokio::join!(soon(builder.connect()), script);
    let client = client.unwrap();
    let mut states = client.states();
    let mut peer = fake.resume().await;
    for state in [State::Connected, State::Suspended, State::Resumed] {
        assert_eq!(next_state(&mut states).await, Some(state));
    }
    let get_a = client.get("/a").send();
    peer.expect(1, get("/a")).await;
    peer.answer(1, 1, data("a")).await;
    soon(get_a).await.unwrap();
}

#[tokio::test]
async fn an_expired_session_ends_everything_with_a_reason() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let mut states = client.states();
    let watch = client.watch("/a", conclave_client::WatchKind::Persistent).send();
    peer.request().await;
    peer.answer(1, 1, Ok(Reply::Done)).await;
    let mut watch = soon(watch).await.unwrap();
    let set_a = client.set("/a", "1").send();
    peer.expect(2, set("/a", "1")).await;
    drop(peer);
    let mut peer = fake.accept().await;
    peer.connect().await;
    peer.refuse(ErrorCode::SessionExpired, "expired").await;
    peer.is_closed().await;
    let error = soon(set_a).await.unwrap_err();
    assert_eq!(error.to_string(), "set /a: the session has expired; open a new client");
    let end = soon(watch.next()).await.unwrap().unwrap_err();
    assert!(matches!(end, Error::SessionExpired { .. }), "{end}");
    assert_eq!(soon(watch.next()).await, None);
    let later = soon(client.get("/a").into_future()).await.unwrap_err();
    assert!(matches!(later, Error::SessionExpired { .. }), "{later}");
    for state in [State::Connected, State::Suspended, State::Expired] {
        assert_eq!(next_state(&mut states).await, Some(state));
    }
    assert_eq!(next_state(&mut states).await, None);
    assert_eq!(client.state(), State::Expired);
    soon(client.close()).await.unwrap();
}

#[tokio::test]
async fn a_session_that_was_closed_by_a_server_that_died_is_closed() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let set_a = client.set("/a", "1").send();
    let close = tokio::spawn(client.close());
    peer.expect(1, set("/a", "1")).await;
    peer.expect(2, Op::CloseSession).await;
    drop(peer);
    let mut peer = fake.accept().await;
    peer.connect().await;
    peer.refuse(ErrorCode::SessionExpired, "there is no such session").await;
    soon(close).await.unwrap().unwrap();
    let error = soon(set_a).await.unwrap_err();
    assert!(error.outcome_unknown(), "{error}");
}

#[tokio::test]
async fn a_new_session_instead_of_the_old_one_is_an_expiry() {
    let fake = Fake::start().await;
    let (client, peer) = connected(&fake).await;
    drop(peer);
    let mut peer = fake.accept().await;
    peer.connect().await;
    peer.connected(false).await;
    peer.is_closed().await;
    let error = soon(client.get("/a").into_future()).await.unwrap_err();
    assert!(matches!(error, Error::SessionExpired { .. }), "{error}");
}

#[tokio::test]
async fn identities_are_presented_again_on_every_connection() {
    let fake = Fake::start().await;
    let builder = Client::builder().servers(fake.address()).identity("digest", "user:password");
    let authenticate =
        Op::Authenticate { scheme: "digest".into(), credentials: "user:password".into() };
    let script = async {
        let mut peer = fake.open().await;
        peer.expect(1, authenticate.clone()).await;
        peer.answer(1, 1, Ok(Reply::Done)).await;
        peer
    };
    let (client, peer) = tokio::join!(soon(builder.connect()), script);
    let client = client.unwrap();
    drop(peer);
    let get_a = client.get("/a").send();
    let mut peer = fake.resume().await;
    peer.expect(0, authenticate).await;
    peer.expect(2, get("/a")).await;
    peer.answer(0, 1, Ok(Reply::Done)).await;
    peer.answer(2, 1, data("a")).await;
    soon(get_a).await.unwrap();
}

#[tokio::test]
async fn a_refused_identity_fails_the_connect() {
    let fake = Fake::start().await;
    let builder = Client::builder().servers(fake.address()).identity("digest", "user:wrong");
    let script = async {
        let mut peer = fake.open().await;
        peer.request().await;
        peer.fault(1, 1, ErrorCode::AuthFailed).await;
        peer.expect(2, Op::CloseSession).await;
    };
    let (client, ()) = tokio::join!(soon(builder.connect()), script);
    assert_eq!(client.unwrap_err().to_string(), "authenticate: the credentials were refused");
}

#[tokio::test]
async fn a_refusal_for_good_is_told_at_once() {
    let fake = Fake::start().await;
    let script = async {
        let mut peer = fake.accept().await;
        peer.connect().await;
        peer.refuse(ErrorCode::Unimplemented, "this server speaks version 2").await;
    };
    let address = fake.address();
    let (client, ()) = tokio::join!(soon(Client::connect(address.clone())), script);
    let expected = format!("{address} refused the client: this server speaks version 2");
    assert_eq!(client.unwrap_err().to_string(), expected);
}

#[tokio::test]
async fn nobody_there_is_said_after_the_connect_timeout() {
    let silent = Fake::start().await;
    let address = silent.address();
    drop(silent);
    let builder = Client::builder().servers(&address).connect_timeout(Duration::from_millis(100));
    let error = soon(builder.connect()).await.unwrap_err().to_string();
    let expected = format!(
        "no session within 100ms from any of {address}; the last attempt failed with {address}: "
    );
    assert!(error.starts_with(&expected), "{error}");
    assert!(error.contains("refused"), "{error}");
}

#[tokio::test]
async fn servers_that_cannot_be_reached_leave_time_for_the_others_to_connect() {
    let silent = [Unreachable::start().await, Unreachable::start().await];
    let fake = Fake::start().await;
    let [first, second] = silent.each_ref().map(Unreachable::address);
    let servers = format!("{first},{second},{}", fake.address());
    let builder = Client::builder().servers(servers).connect_timeout(Duration::from_secs(2));
    // Each tries the servers in an order of its own.
    let connecting: Vec<_> = (0..16).map(|_| tokio::spawn(builder.clone().connect())).collect();
    let mut peers = Vec::new();
    let serve = async {
        loop {
            peers.push(fake.open().await);
        }
    };
    let connected = async {
        for client in connecting {
            soon(client).await.unwrap().unwrap();
        }
    };
    tokio::select! {
        () = serve => {}
        () = connected => {}
    }
}

#[tokio::test]
async fn a_list_of_servers_that_is_none_is_refused() {
    for servers in ["", "host", "host:", "host:port", "host:1,,host:2", "host:70000"] {
        let error = soon(Client::connect(servers)).await.unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{servers:?}: {error}");
    }
}

#[tokio::test]
async fn a_server_with_a_lower_limit_is_left_with_what_may_have_been_done() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let long = "x".repeat(1000).leak();
    let first = client.set("/a", long.as_bytes()).send();
    peer.expect(1, set("/a", long)).await;
    drop(peer);

    let mut peer = fake.accept().await;
    peer.connect().await;
    peer.connected_with(true, ServerLimits { frame_bytes: 500, ..LIMITS }, 10_000).await;
    let mut peer = {
        peer.is_closed().await;
        fake.resume().await
    };
    peer.expect(1, set("/a", long)).await;
    peer.answer(1, 5, Ok(Reply::Stat(Stat::default()))).await;
    soon(first).await.unwrap();
}

#[tokio::test]
async fn a_server_that_takes_nothing_any_more_is_left_though_much_waits_to_be_sent() {
    let fake = Fake::start().await;
    let (client, frozen) = connected_by(&fake, Client::builder(), LIMITS, 2_000).await;
    // More than what the system keeps for the two ends of a connection.
    let large = vec![0; 500_000];
    let writes: Vec<_> = (0..80).map(|_| client.set("/a", large.clone()).send()).collect();
    let mut peer = fake.resume().await;
    for xid in 1..=80 {
        assert_eq!(peer.request().await.xid, xid);
        peer.answer(xid, 5, Ok(Reply::Stat(Stat::default()))).await;
    }
    for write in writes {
        soon(write).await.unwrap();
    }
    drop(frozen);
}
