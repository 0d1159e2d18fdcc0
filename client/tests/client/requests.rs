//! Requests, their order, their answers and their errors.

use std::time::Duration;

use bytes::Bytes;
use conclave_client::proto::message::ServerLimits;
use conclave_client::proto::request::{Condition, Entry, Page, ReadLevel};
use conclave_client::proto::{CreateMode, Op};
use conclave_client::{Client, Error, ErrorCode, Fault, Reply, Stat, State, Test};
use tokio::time::Instant;

use crate::fake::{
    Fake, Peer, connected, connected_within, created, data, get, path, set, soon, z,
};

#[tokio::test]
async fn requests_are_ordered_when_they_are_sent_and_not_when_they_are_awaited() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let first = client.set("/a", "1").send();
    let second = client.set("/b", "2").send();
    let both = async { tokio::join!(client.set("/c", "3"), client.get("/c")) };
    let script = async {
        peer.expect(1, set("/a", "1")).await;
        peer.expect(2, set("/b", "2")).await;
        peer.expect(3, set("/c", "3")).await;
        peer.expect(4, get("/c")).await;
        for xid in 1..=3 {
            peer.answer(xid, xid, Ok(Reply::Stat(Stat::default()))).await;
        }
        peer.answer(4, 3, data("3")).await;
    };
    let ((third, fourth), ()) = tokio::join!(soon(both), script);
    soon(second).await.unwrap();
    soon(first).await.unwrap();
    third.unwrap();
    assert_eq!(fourth.unwrap().text(), Ok("3"));
    assert_eq!(client.last_zxid(), z(3));
}

#[tokio::test]
async fn a_dropped_future_does_not_take_its_request_back() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    drop(client.set("/a", "1").send());
    let get_b = client.get("/b").send();
    peer.expect(1, set("/a", "1")).await;
    peer.expect(2, get("/b")).await;
    peer.answer(1, 1, Ok(Reply::Stat(Stat::default()))).await;
    peer.answer(2, 1, data("")).await;
    soon(get_b).await.unwrap();
}

#[tokio::test]
async fn no_more_requests_are_in_flight_than_the_server_allows() {
    let fake = Fake::start().await;
    let limits = ServerLimits { frame_bytes: 1 << 20, in_flight: 3 };
    let (client, mut peer) = connected_within(&fake, limits).await;
    let pending: Vec<_> = (0..10).map(|_| client.get("/a").send()).collect();
    for xid in 1..=10 {
        let asked = peer.request().await;
        assert_eq!(asked.xid, xid);
        if xid >= 3 {
            assert_eq!(asked.acked, xid - 3, "request {xid} should have waited for an answer");
            peer.answer(xid - 2, 1, data("")).await;
        }
    }
    peer.answer(9, 1, data("")).await;
    peer.answer(10, 1, data("")).await;
    for get in pending {
        soon(get).await.unwrap();
    }
}

#[tokio::test]
async fn an_error_names_the_operation_and_the_path() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let script = async {
        peer.request().await;
        peer.fault(1, 1, ErrorCode::NodeExists).await;
        peer.request().await;
        peer.answer(2, 1, Err(Fault { code: ErrorCode::NotEmpty, index: 1 })).await;
        peer.request().await;
        peer.answer(3, 1, Ok(Reply::Count(3))).await;
    };
    let calls = async {
        let error = client.create("/a/b", "x").await.unwrap_err();
        assert_eq!(error.to_string(), "create /a/b: the node exists already");
        assert_eq!(error.code(), Some(ErrorCode::NodeExists));
        let error = client.multi().create("/x", "").delete("/y", None).await.unwrap_err();
        let expected =
            "operation 1 of a multi, delete /y: the node has children; delete them first";
        assert_eq!(error.to_string(), expected);
        let error = client.get("/a").await.unwrap_err();
        assert!(matches!(error, Error::UnexpectedReply { .. }), "{error}");
        let error = client.get("no/slash").await.unwrap_err();
        assert_eq!(error.to_string(), "\"no/slash\" is not a path: a path starts with '/'");
    };
    tokio::join!(soon(calls), script);
}

#[tokio::test]
async fn an_error_of_a_whole_multi_names_none_of_its_operations() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    // A fault that can be of all as well as of the first does not say which.
    let whole = [ErrorCode::OutcomeUnknown, ErrorCode::TooLarge, ErrorCode::NoSpace];
    for (xid, code) in (1..).zip(whole) {
        let multi = client.multi().create("/x", "").delete("/y", None).send();
        peer.request().await;
        peer.fault(xid, 1, code).await;
        let error = soon(multi).await.unwrap_err();
        assert_eq!(error.to_string(), format!("multi: {}", code.describe()));
    }
    let multi = client.multi().create("/x", "").delete("/y", None).send();
    peer.request().await;
    peer.answer(4, 1, Err(Fault { code: ErrorCode::TooLarge, index: 1 })).await;
    let error = soon(multi).await.unwrap_err().to_string();
    assert!(error.starts_with("operation 1 of a multi, delete /y: "), "{error}");
    let multi = client.multi().create("/x", "").delete("/y", None).send();
    peer.request().await;
    peer.fault(5, 1, ErrorCode::NodeExists).await;
    let error = soon(multi).await.unwrap_err().to_string();
    assert!(error.starts_with("operation 0 of a multi, create /x: "), "{error}");
    // It may be the condition that must not be read.
    let multi = client.multi().when("/c", Test::Exists).create("/x", "").send();
    peer.request().await;
    peer.fault(6, 1, ErrorCode::NoAuth).await;
    let error = soon(multi).await.unwrap_err();
    assert_eq!(error.to_string(), format!("multi: {}", ErrorCode::NoAuth.describe()));
}

#[tokio::test]
async fn options_of_requests_reach_the_server() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    drop(client.create("/a/n-", "x").ephemeral().sequential().send());
    drop(client.delete("/a").version(3).send());
    drop(client.get("/a").linearizable().send());
    drop(client.exists("/a").at_least(z(9)).send());
    drop(
        client
            .multi()
            .when("/a", Test::Missing)
            .create("/a", "")
            .otherwise()
            .set("/a", "", 1)
            .send(),
    );
    let Op::Create { mode, .. } = peer.request().await.op else { panic!("no create") };
    assert_eq!(mode, CreateMode::EPHEMERAL_SEQUENTIAL);
    peer.expect(2, Op::Delete { path: path("/a"), version: Some(3) }).await;
    assert_eq!(peer.request().await.level, ReadLevel::Linearizable);
    assert_eq!(peer.request().await.level, ReadLevel::AtLeast(z(9)));
    let Op::Multi { conditions, then, otherwise } = peer.request().await.op else {
        panic!("no multi")
    };
    assert_eq!(conditions, [Condition { path: path("/a"), test: Test::Missing }]);
    assert!(matches!(&then[..], [Op::Create { .. }]), "{then:?}");
    let set = Op::SetData { path: path("/a"), data: Some(Bytes::new()), version: Some(1) };
    assert_eq!(otherwise, [set]);
}

#[tokio::test]
async fn a_node_that_does_not_exist_is_an_answer_to_exists() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let script = async {
        peer.request().await;
        peer.fault(1, 1, ErrorCode::NoNode).await;
        peer.request().await;
        peer.fault(2, 1, ErrorCode::NoAuth).await;
    };
    let calls = async {
        assert_eq!(client.exists("/a").await.unwrap(), None);
        assert_eq!(client.exists("/a").await.unwrap_err().code(), Some(ErrorCode::NoAuth));
    };
    tokio::join!(soon(calls), script);
}

#[tokio::test]
async fn a_request_over_the_servers_limit_fails_alone() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let before = client.get("/a").send();
    let large = client.set("/a", vec![0; 2 << 20]).send();
    let after = client.get("/b").send();
    peer.expect(1, get("/a")).await;
    peer.expect(2, get("/b")).await;
    peer.answer(1, 1, data("a")).await;
    peer.answer(2, 1, data("b")).await;
    assert_eq!(soon(before).await.unwrap().text(), Ok("a"));
    assert_eq!(soon(large).await.unwrap_err().code(), Some(ErrorCode::TooLarge));
    assert_eq!(soon(after).await.unwrap().text(), Ok("b"));
}

#[tokio::test]
async fn an_operation_without_an_answer_times_out_and_its_outcome_is_unknown() {
    let fake = Fake::start().await;
    let builder =
        Client::builder().servers(fake.address()).operation_timeout(Duration::from_millis(200));
    let (client, mut peer) = tokio::join!(soon(builder.connect()), fake.open());
    let client = client.unwrap();
    let error = soon(client.set("/a", "1").into_future()).await.unwrap_err();
    assert!(error.outcome_unknown(), "{error}");
    let expected = "set /a: no answer within 200ms; it may have been done or may still be";
    assert_eq!(error.to_string(), expected);
    // The session goes on, and the late answer is taken for what it is.
    peer.expect(1, set("/a", "1")).await;
    peer.answer(1, 1, Ok(Reply::Stat(Stat::default()))).await;
    let get_b = client.get("/b").send();
    peer.expect(2, get("/b")).await;
    peer.answer(2, 1, data("b")).await;
    assert_eq!(soon(get_b).await.unwrap().text(), Ok("b"));
}

#[tokio::test]
async fn an_operation_that_was_never_sent_is_never_done() {
    let fake = Fake::start().await;
    let builder =
        Client::builder().servers(fake.address()).operation_timeout(Duration::from_millis(200));
    let (client, peer) = tokio::join!(soon(builder.connect()), fake.open());
    let client = client.unwrap();
    let mut states = client.states();
    drop(peer);
    while soon(states.next()).await != Some(State::Suspended) {}
    let error = soon(client.set("/a", "1").into_future()).await.unwrap_err();
    assert!(!error.outcome_unknown(), "{error}");
    let mut peer = fake.resume().await;
    let get_b = client.get("/b").send();
    peer.expect(1, get("/b")).await;
    peer.answer(1, 1, data("b")).await;
    soon(get_b).await.unwrap();
}

#[tokio::test]
async fn when_too_much_waits_an_operation_is_refused_until_there_is_room() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let mut pending = Vec::new();
    let refused = loop {
        let set = client.set("/a", vec![0; 1 << 19]);
        let mut set = set.send();
        match futures_now(&mut set) {
            Some(outcome) => break outcome.unwrap_err(),
            None => pending.push(set),
        }
        assert!(pending.len() < 1000, "there should be a limit");
    };
    assert!(matches!(refused, Error::Overloaded { .. }), "{refused}");
    let count = u64::try_from(pending.len()).unwrap();
    let script = async {
        for xid in 1..=count {
            assert_eq!(peer.request().await.xid, xid);
            peer.answer(xid, xid, Ok(Reply::Stat(Stat::default()))).await;
        }
    };
    tokio::join!(soon(client.ready()), script);
    for set in pending {
        soon(set).await.unwrap();
    }
    drop(client.get("/a").send());
    peer.expect(count + 1, get("/a")).await;
}

/// The output of a future that is ready.
fn futures_now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::Pin::new(future).poll(&mut cx) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

fn entries(names: &[&str], more: bool) -> Result<Reply, Fault> {
    let entries = names
        .iter()
        .map(|name| Entry { name: (*name).to_owned(), stat: None, data: None })
        .collect();
    Ok(Reply::Children { entries, more, stat: Stat::default() })
}

async fn serve_three_pages(peer: &mut Peer) {
    let pages = [(&["a", "b"][..], true), (&["c"], true), (&["d"], false)];
    let mut after: Option<String> = None;
    for (xid, (names, more)) in (1..).zip(pages) {
        let asked = peer.request().await;
        let (Op::Children { page, .. } | Op::ListRecursive { page, .. }) = asked.op else {
            panic!("a listing was expected")
        };
        assert_eq!(page.after, after);
        after = names.last().map(|name| (*name).to_owned());
        peer.answer(xid, 1, entries(names, more)).await;
    }
}

#[tokio::test]
async fn a_long_list_of_children_is_read_page_by_page() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let names = async { client.children("/dir").await.unwrap() };
    let (names, ()) = tokio::join!(soon(names), serve_three_pages(&mut peer));
    assert_eq!(names, ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn a_listing_is_streamed_page_by_page() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let mut stream = client.list_recursive("/dir").page_size(2).stream();
    let read = async {
        let mut names = Vec::new();
        while let Some(entry) = stream.next().await {
            names.push(entry.unwrap().name);
        }
        names
    };
    let (names, ()) = tokio::join!(soon(read), serve_three_pages(&mut peer));
    assert_eq!(names, ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn a_recursive_delete_goes_on_until_nothing_is_left() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let script = async {
        for (xid, more) in [(1, true), (2, true), (3, false)] {
            peer.request().await;
            peer.answer(xid, xid, Ok(Reply::DeletedMany { deleted: 1000, more })).await;
        }
    };
    let (deleted, ()) = tokio::join!(soon(client.delete_recursive("/dir")), script);
    assert_eq!(deleted.unwrap(), 3000);
}

#[tokio::test]
async fn a_chroot_is_put_before_paths_and_taken_from_answers() {
    let fake = Fake::start().await;
    let builder = Client::builder().servers(fake.address()).chroot("/app");
    let (client, mut peer) = tokio::join!(soon(builder.connect()), fake.open());
    let client = client.unwrap();
    let below = client.under("/x").unwrap();
    let create = client.create("/a", "").send();
    let root = client.get("/").send();
    let deeper = below.get("/b").send();
    let mut watch = below.watch("/", conclave_client::WatchKind::PersistentRecursive).send();
    let Op::Create { path: asked, .. } = peer.request().await.op else { panic!("no create") };
    assert_eq!(asked, path("/app/a"));
    peer.expect(2, get("/app")).await;
    peer.expect(3, get("/app/x/b")).await;
    let Op::Watch { path: asked, id, .. } = peer.request().await.op else { panic!("no watch") };
    assert_eq!(asked, path("/app/x"));
    peer.answer(1, 1, created("/app/a")).await;
    peer.answer(2, 1, data("")).await;
    peer.fault(3, 1, ErrorCode::NoNode).await;
    peer.answer(4, 1, Ok(Reply::Done)).await;
    let created = conclave_client::EventKind::Created;
    peer.tell(id.0, crate::fake::event(2, "/app/x/c", created)).await;
    assert_eq!(soon(create).await.unwrap().path, path("/a"));
    soon(root).await.unwrap();
    assert!(soon(deeper).await.unwrap_err().to_string().starts_with("get /b: "));
    let item = soon(soon(&mut watch).await.unwrap().next()).await.unwrap().unwrap();
    assert!(
        matches!(&item, conclave_client::WatchItem::Event { path, .. } if path.as_str() == "/c"),
        "{item:?}"
    );
}

#[tokio::test]
async fn several_reads_of_one_moment() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let read = client.multi_read().get("/a").exists("/b").children("/c", Page::default()).send();
    let Op::MultiRead(ops) = peer.request().await.op else { panic!("no multi-read") };
    assert_eq!(ops[0], get("/a"));
    assert_eq!(ops.len(), 3);
    let replies = vec![data("a"), Err(ErrorCode::NoNode.into()), entries(&["x"], false)];
    peer.answer(1, 1, Ok(Reply::MultiRead(replies.clone()))).await;
    assert_eq!(soon(read).await.unwrap(), replies);
}

#[tokio::test]
async fn closing_ends_the_session_after_what_was_asked_before() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let mut states = client.states();
    let other = client.clone();
    let set_a = client.set("/a", "1").send();
    let close = tokio::spawn(client.close());
    peer.expect(1, set("/a", "1")).await;
    peer.expect(2, Op::CloseSession).await;
    peer.answer(1, 1, Ok(Reply::Stat(Stat::default()))).await;
    peer.answer(2, 2, Ok(Reply::Done)).await;
    soon(set_a).await.unwrap();
    assert!(other.certain_until() > Instant::now().into_std());
    soon(close).await.unwrap().unwrap();
    assert!(other.certain_until() <= Instant::now().into_std());
    peer.is_closed().await;
    let error = soon(other.get("/a").into_future()).await.unwrap_err();
    assert_eq!(error.to_string(), "get /a: the client is closed");
    assert_eq!(soon(states.next()).await, Some(State::Connected));
    assert_eq!(soon(states.next()).await, Some(State::Closed));
    assert_eq!(soon(states.next()).await, None);
}

#[tokio::test]
async fn all_who_close_at_once_are_told_that_the_session_is_closed() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let other = client.clone();
    let close = tokio::spawn(client.close());
    peer.expect(1, Op::CloseSession).await;
    let close_too = tokio::spawn(other.close());
    peer.expect(2, Op::CloseSession).await;
    peer.answer(1, 1, Ok(Reply::Done)).await;
    soon(close).await.unwrap().unwrap();
    soon(close_too).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_close_that_nobody_confirms_fails_for_all() {
    let fake = Fake::start().await;
    let timeout = Duration::from_millis(200);
    let builder = Client::builder().servers(fake.address()).operation_timeout(timeout);
    let (client, mut peer) = tokio::join!(soon(builder.connect()), fake.open());
    let client = client.unwrap();
    let (first, second) = tokio::join!(soon(client.clone().close()), soon(client.close()));
    peer.expect(1, Op::CloseSession).await;
    assert!(matches!(first, Err(Error::Timeout { .. })), "{first:?}");
    assert!(matches!(second, Err(Error::Closed { .. })), "{second:?}");
}

#[tokio::test]
async fn dropping_the_last_clone_ends_the_session() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let clone = client.clone();
    drop(client);
    drop(clone.set("/a", "1").send());
    drop(clone);
    peer.expect(1, set("/a", "1")).await;
    peer.expect(2, Op::CloseSession).await;
}

#[tokio::test]
async fn ephemeral_nodes_are_listed_by_path_and_not_by_the_beginning_of_a_name() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let below = client.under("/app").unwrap();
    let asked = [
        (client.ephemerals("/").send(), "/"),
        (client.ephemerals("/app").send(), "/app/"),
        (below.ephemerals("/").send(), "/app/"),
        (below.ephemerals("/a").send(), "/app/a/"),
    ];
    for ((pending, prefix), xid) in asked.into_iter().zip(1..) {
        peer.expect(xid, Op::Ephemerals { prefix: prefix.to_owned() }).await;
        peer.answer(xid, 1, Ok(Reply::Paths(vec![path("/app/a/b")]))).await;
        soon(pending).await.unwrap();
    }
}
