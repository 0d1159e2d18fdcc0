//! Watches: exactly what happened, through reconnections, in bounded memory.

use std::time::Duration;

use conclave_client::proto::{Op, ServerMessage, WatchId};
use conclave_client::{
    Client, Error, ErrorCode, EventKind, Reply, State, Watch, WatchItem, WatchKind,
};
use tokio::time::Instant;

use crate::fake::{Fake, LIMITS, Peer, connected, connected_by, data, event, get, path, soon, z};

/// A watch of `/a` that was set at the transaction `zxid` by the request `xid`.
async fn watching(
    client: &Client,
    peer: &mut Peer,
    kind: WatchKind,
    xid: u64,
    zxid: u64,
) -> (Watch, u64) {
    let watch = client.watch("/a", kind).send();
    let Op::Watch { id, .. } = peer.request().await.op else { panic!("no watch") };
    peer.answer(xid, zxid, Ok(Reply::Done)).await;
    (soon(watch).await.unwrap(), id.0)
}

async fn next(watch: &mut Watch) -> Option<Result<WatchItem, Error>> {
    soon(watch.next()).await
}

async fn expect_event(watch: &mut Watch, zxid: u64, expected: &str) {
    match next(watch).await {
        Some(Ok(WatchItem::Event { zxid: at, path, .. })) => {
            assert_eq!((at, path.as_str()), (z(zxid), expected));
        }
        other => panic!("an event was expected, not {other:?}"),
    }
}

async fn expect_gap(watch: &mut Watch, zxid: u64) {
    let gap = WatchItem::Gap { resumed_at: z(zxid) };
    assert_eq!(next(watch).await.unwrap().unwrap(), gap);
}

/// The client sets the watch again, after this transaction.
async fn expect_set_again(peer: &mut Peer, watch: u64, kind: WatchKind, since: u64) {
    let (id, path, since) = (WatchId(watch), path("/a"), Some(z(since)));
    peer.expect(0, Op::Watch { id, path, kind, since, with_value: false }).await;
}

#[tokio::test]
async fn a_read_with_a_watch_reports_the_first_change_and_ends() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let read = client.get_and_watch("/a").send();
    let Op::Get { watch: Some(id), .. } = peer.request().await.op else { panic!("no watch") };
    peer.answer(1, 3, data("a")).await;
    peer.tell(id.0, event(4, "/a", EventKind::DataChanged)).await;
    let (node, mut watch) = soon(read).await.unwrap();
    assert_eq!(node.text(), Ok("a"));
    expect_event(&mut watch, 4, "/a").await;
    assert_eq!(next(&mut watch).await, None);
    // Nothing is left to remove.
    drop(watch);
    drop(client.get("/b").send());
    peer.expect(2, get("/b")).await;
}

#[tokio::test]
async fn a_missing_node_can_be_waited_for() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let read = client.exists_and_watch("/a").send();
    let Op::Exists { watch: Some(id), .. } = peer.request().await.op else { panic!("no watch") };
    peer.fault(1, 3, ErrorCode::NoNode).await;
    let (stat, mut watch) = soon(read).await.unwrap();
    assert_eq!(stat, None);
    drop(peer);
    let mut peer = fake.resume().await;
    expect_set_again(&mut peer, id.0, WatchKind::Exists, 3).await;
    peer.tell(id.0, event(5, "/a", EventKind::Created)).await;
    peer.answer(0, 5, Ok(Reply::Done)).await;
    expect_event(&mut watch, 5, "/a").await;
}

#[tokio::test]
async fn a_watch_that_could_not_be_set_is_not_set_again() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let read = client.get_and_watch("/a").send();
    peer.request().await;
    peer.fault(1, 3, ErrorCode::NoNode).await;
    assert_eq!(soon(read).await.unwrap_err().code(), Some(ErrorCode::NoNode));
    drop(peer);
    let mut peer = fake.resume().await;
    drop(client.get("/b").send());
    peer.expect(2, get("/b")).await;
}

#[tokio::test]
async fn a_dropped_watch_is_removed_from_the_server() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let (watch, id) = watching(&client, &mut peer, WatchKind::Persistent, 1, 3).await;
    drop(watch);
    peer.expect(2, Op::Unwatch { id: WatchId(id) }).await;
    peer.answer(2, 3, Ok(Reply::Done)).await;
    drop(client.get("/b").send());
    peer.expect(3, get("/b")).await;
    drop(peer);
    let mut peer = fake.resume().await;
    peer.expect(3, get("/b")).await;
}

#[tokio::test]
async fn a_watch_goes_on_where_it_stopped_before_anything_else_is_asked() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let kind = WatchKind::PersistentRecursive;
    let (mut watch, id) = watching(&client, &mut peer, kind, 1, 3).await;
    // Two events of one transaction, with a third that is lost.
    peer.tell(id, event(7, "/a/1", EventKind::Created)).await;
    peer.tell(id, event(7, "/a/2", EventKind::Created)).await;
    expect_event(&mut watch, 7, "/a/1").await;
    expect_event(&mut watch, 7, "/a/2").await;
    let get_b = client.get("/b").send();
    peer.expect(2, get("/b")).await;
    drop(peer);
    let mut peer = fake.resume().await;
    expect_set_again(&mut peer, id, kind, 6).await;
    peer.expect(2, get("/b")).await;
    for (zxid, name) in [(7, "/a/1"), (7, "/a/2"), (7, "/a/3"), (8, "/a/4")] {
        peer.tell(id, event(zxid, name, EventKind::Created)).await;
    }
    peer.answer(0, 8, Ok(Reply::Done)).await;
    peer.answer(2, 8, data("")).await;
    soon(get_b).await.unwrap();
    expect_event(&mut watch, 7, "/a/3").await;
    expect_event(&mut watch, 8, "/a/4").await;
}

#[tokio::test]
async fn a_quiet_watch_resumes_from_the_last_answer() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let kind = WatchKind::Persistent;
    let (mut watch, id) = watching(&client, &mut peer, kind, 1, 3).await;
    let get_b = client.get("/b").send();
    peer.expect(2, get("/b")).await;
    peer.answer(2, 1000, data("")).await;
    soon(get_b).await.unwrap();
    drop(peer);
    let mut peer = fake.resume().await;
    expect_set_again(&mut peer, id, kind, 1000).await;
    // The connection breaks again before the answer: it is asked the same again.
    drop(peer);
    let mut peer = fake.resume().await;
    expect_set_again(&mut peer, id, kind, 1000).await;
    peer.answer(0, 1001, Ok(Reply::Done)).await;
    peer.tell(id, event(1002, "/a", EventKind::DataChanged)).await;
    expect_event(&mut watch, 1002, "/a").await;
}

#[tokio::test]
async fn a_gap_is_passed_on() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let kind = WatchKind::Persistent;
    let (mut watch, id) = watching(&client, &mut peer, kind, 1, 3).await;
    drop(peer);
    let mut peer = fake.resume().await;
    expect_set_again(&mut peer, id, kind, 3).await;
    peer.send(ServerMessage::Gap { watch: WatchId(id), resumed_at: z(900) }).await;
    peer.answer(0, 900, Ok(Reply::Done)).await;
    peer.tell(id, event(901, "/a", EventKind::DataChanged)).await;
    expect_gap(&mut watch, 900).await;
    expect_event(&mut watch, 901, "/a").await;
}

#[tokio::test]
async fn a_watch_that_is_not_read_collapses_into_a_gap() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let (mut watch, id) = watching(&client, &mut peer, WatchKind::Persistent, 1, 3).await;
    let last = 30_000;
    for zxid in 4..=last {
        peer.tell(id, event(zxid, "/a", EventKind::DataChanged)).await;
    }
    // The answer comes after the events, so that all of them are there when it is.
    let get_b = client.get("/b").send();
    peer.expect(2, get("/b")).await;
    peer.answer(2, last, data("")).await;
    soon(get_b).await.unwrap();
    let Some(Ok(WatchItem::Gap { resumed_at })) = next(&mut watch).await else {
        panic!("a gap was expected")
    };
    let mut zxid = resumed_at.bits();
    assert!(last - zxid < 10_000, "what waits should be bounded");
    while zxid < last {
        zxid += 1;
        expect_event(&mut watch, zxid, "/a").await;
    }
}

#[tokio::test]
async fn a_burst_of_events_is_no_gap_for_a_reader_who_reads() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let (mut watch, id) = watching(&client, &mut peer, WatchKind::Persistent, 1, 3).await;
    let last = 100_000;
    let events = (4..=last).map(|zxid| ServerMessage::Event {
        watch: WatchId(id),
        event: event(zxid, "/a", EventKind::DataChanged),
        value: None,
    });
    let burst = peer.send_all(events);
    let read = async {
        for zxid in 4..=last {
            expect_event(&mut watch, zxid, "/a").await;
        }
    };
    tokio::join!(burst, read);
}

#[tokio::test]
async fn a_reader_who_takes_its_time_does_not_keep_a_pong_from_being_heard() {
    let fake = Fake::start().await;
    let timeout = Duration::from_millis(1_200);
    let builder = Client::builder().session_timeout(timeout);
    let (client, mut peer) = connected_by(&fake, builder, LIMITS, 1_200).await;
    let (mut watch, id) = watching(&client, &mut peer, WatchKind::Persistent, 1, 3).await;
    let last = 8_000;
    let events = (4..=last).map(|zxid| ServerMessage::Event {
        watch: WatchId(id),
        event: event(zxid, "/a", EventKind::DataChanged),
        value: None,
    });
    let serve = async {
        peer.send_all(events).await;
        // Pings are answered; nothing else comes.
        peer.request().await
    };
    let read = async {
        for zxid in 4..=last {
            expect_event(&mut watch, zxid, "/a").await;
            // All of it takes longer than a server may be silent.
            let busy_until = Instant::now() + timeout / 4_000;
            while Instant::now() < busy_until {
                std::hint::spin_loop();
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        asked = serve => panic!("{asked:?}"),
        () = read => {}
    }
    assert_eq!(client.state(), State::Connected);
}

#[tokio::test]
async fn a_watch_that_cannot_be_set_again_ends_with_the_reason() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let kind = WatchKind::Persistent;
    let (mut watch, id) = watching(&client, &mut peer, kind, 1, 3).await;
    drop(peer);
    let mut peer = fake.resume().await;
    expect_set_again(&mut peer, id, kind, 3).await;
    peer.fault(0, 3, ErrorCode::NoAuth).await;
    let error = next(&mut watch).await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "watch /a: the session has no permission for this");
    assert_eq!(next(&mut watch).await, None);
}

#[tokio::test]
async fn a_watch_ends_with_its_client() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let (mut watch, _) = watching(&client, &mut peer, WatchKind::Persistent, 1, 3).await;
    drop(client);
    peer.expect(2, Op::CloseSession).await;
    peer.answer(2, 3, Ok(Reply::Done)).await;
    assert!(matches!(next(&mut watch).await, Some(Err(Error::Closed { .. }))));
    assert_eq!(next(&mut watch).await, None);
}
