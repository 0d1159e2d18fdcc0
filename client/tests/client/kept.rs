//! Recipes that go on: kept nodes, observers and workers, when something is in their way.

use std::time::Duration;

use bytes::Bytes;
use conclave_client::proto::{Op, ServerMessage, WatchId};
use conclave_client::recipes::assignment::{Order, Work};
use conclave_client::recipes::members::KeptNode;
use conclave_client::recipes::{Election, Error};
use conclave_client::{ErrorCode, EventKind, Fault, Reply, Stat};

use crate::fake::{Asked, Fake, Peer, connected, created, data, event, soon};

/// Answers what comes before the next creation, of a node that is not there. Gives its number, and
/// the watch that was set last.
#[allow(clippy::wildcard_enum_match_arm, reason = "a script knows what it is asked")]
async fn creation(peer: &mut Peer) -> (u64, u64) {
    let mut watch = 0;
    loop {
        let Asked { xid, op, .. } = soon(peer.request()).await;
        match op {
            Op::Create { .. } => return (xid, watch),
            Op::Watch { id, .. } => {
                watch = id.0;
                peer.answer(xid, 5, Ok(Reply::Done)).await;
            }
            Op::Unwatch { .. } => peer.answer(xid, 5, Ok(Reply::Done)).await,
            _ => peer.fault(xid, 5, ErrorCode::NoNode).await,
        }
    }
}

/// What a keeper writes to its node, if this does.
fn written(op: &Op) -> Option<Bytes> {
    let Op::Multi { then, .. } = op else { return None };
    let [Op::SetData { data, .. }] = &then[..] else { return None };
    data.clone()
}

#[tokio::test]
async fn a_kept_node_is_created_again_however_often_that_is_refused() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    // For ever is a time like any other.
    let joining = KeptNode::ephemeral(&client, "/a", "").wait(Duration::MAX).create();
    let serving = async {
        let (xid, watch) = creation(&mut peer).await;
        peer.answer(xid, 5, created("/a")).await;
        peer.tell(watch, event(6, "/a", EventKind::Deleted)).await;
    };
    let (node, ()) = tokio::join!(soon(joining), serving);
    for refused_with in [ErrorCode::NoSpace, ErrorCode::OutcomeUnknown, ErrorCode::Throttled] {
        let (xid, _) = creation(&mut peer).await;
        peer.fault(xid, 7, refused_with).await;
    }
    let (xid, watch) = creation(&mut peer).await;
    peer.answer(xid, 8, created("/a")).await;
    peer.tell(watch, event(9, "/a", EventKind::Deleted)).await;
    creation(&mut peer).await;
    drop(node);
}

#[tokio::test]
async fn a_kept_node_forgets_a_value_that_was_refused() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let joining = KeptNode::ephemeral(&client, "/a", "good").create();
    let serving = async {
        let (xid, watch) = creation(&mut peer).await;
        peer.answer(xid, 5, created("/a")).await;
        watch
    };
    let (node, watch) = tokio::join!(soon(joining), serving);
    let node = node.unwrap();
    let refusing = async {
        let set = peer.request().await;
        assert_eq!(written(&set.op).as_deref(), Some(b"too much".as_slice()), "{set:?}");
        peer.fault(set.xid, 6, ErrorCode::QuotaExceeded).await;
    };
    let (outcome, ()) = tokio::join!(soon(node.set("too much")), refusing);
    assert_eq!(outcome.unwrap_err().code(), Some(ErrorCode::QuotaExceeded));
    peer.tell(watch, event(7, "/a", EventKind::Deleted)).await;
    let exists = soon(peer.request()).await;
    peer.fault(exists.xid, 7, ErrorCode::NoNode).await;
    let again = soon(peer.request()).await;
    let Op::Create { data, .. } = again.op else { panic!("it is created, not {again:?}") };
    assert_eq!(data.as_deref(), Some(b"good".as_slice()));
}

#[tokio::test]
async fn a_node_with_a_time_to_live_is_refreshed_whatever_happens_below_it() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let joining = KeptNode::ttl(&client, "/a", "", Duration::from_millis(600)).create();
    let serving = async {
        let (xid, watch) = creation(&mut peer).await;
        peer.answer(xid, 5, created("/a")).await;
        watch
    };
    let (node, watch) = tokio::join!(soon(joining), serving);
    soon(async {
        for zxid in 6.. {
            peer.tell(watch, event(zxid, "/a", EventKind::ChildrenChanged)).await;
            let Asked { xid, op, .. } = peer.request().await;
            if written(&op).is_some() {
                break;
            }
            peer.answer(xid, zxid, Ok(Reply::Stat(Stat::default()))).await;
        }
    })
    .await;
    drop(node);
}

#[tokio::test]
async fn a_node_with_a_time_to_live_is_refreshed_though_nobody_may_watch_it() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let joining = KeptNode::ttl(&client, "/a", "", Duration::from_millis(600)).create();
    let serving = async {
        let (xid, watch) = creation(&mut peer).await;
        peer.answer(xid, 5, created("/a")).await;
        peer.tell(watch, event(6, "/a", EventKind::ChildrenChanged)).await;
    };
    let (node, ()) = tokio::join!(soon(joining), serving);
    // Twice: what was refused is tried again.
    for _ in 0..2 {
        soon(async {
            loop {
                let Asked { xid, op, .. } = peer.request().await;
                let is_refreshed = written(&op).is_some();
                peer.fault(xid, 6, ErrorCode::Throttled).await;
                if is_refreshed {
                    break;
                }
            }
        })
        .await;
    }
    drop(node);
}

#[tokio::test]
async fn a_node_with_a_time_to_live_from_before_is_refreshed_at_once() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let joining = KeptNode::ttl(&client, "/a", "new", Duration::from_secs(3600)).create();
    let serving = async {
        let watch = peer.request().await;
        peer.answer(watch.xid, 5, Ok(Reply::Done)).await;
        let exists = peer.request().await;
        peer.answer(exists.xid, 5, Ok(Reply::Stat(Stat::default()))).await;
        let set = peer.request().await;
        assert_eq!(written(&set.op).as_deref(), Some(b"new".as_slice()), "{set:?}");
        peer.answer(set.xid, 6, Ok(Reply::Multi { held: true, replies: Vec::new() })).await;
    };
    let (node, ()) = tokio::join!(soon(joining), serving);
    drop(node.unwrap());
}

#[tokio::test]
async fn an_observer_tells_later_what_it_could_not_tell() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let election = Election::new(&client, "/e").unwrap();
    let serving = async {
        let asked = peer.request().await;
        let Op::Watch { id, path, .. } = asked.op else { panic!("a watch, not {asked:?}") };
        peer.answer(asked.xid, 5, Ok(Reply::Done)).await;
        (id.0, path.to_string())
    };
    let (observer, (watch, leader)) = tokio::join!(soon(election.observe()), serving);
    let mut observer = observer.unwrap();
    let nobody = async {
        let get = peer.request().await;
        peer.fault(get.xid, 5, ErrorCode::NoNode).await;
    };
    let (first, ()) = tokio::join!(soon(observer.next()), nobody);
    assert_eq!(first.unwrap(), None);

    // The one event is taken; reading fails, then is given up, then succeeds.
    peer.tell(watch, event(6, &leader, EventKind::Created)).await;
    let refusing = async {
        let get = peer.request().await;
        peer.fault(get.xid, 6, ErrorCode::Throttled).await;
    };
    let (refused, ()) = tokio::join!(soon(observer.next()), refusing);
    assert_eq!(refused.unwrap_err().code(), Some(ErrorCode::Throttled));
    let get = tokio::select! {
        told = observer.next() => panic!("nothing was answered, yet it told {told:?}"),
        get = soon(peer.request()) => get,
    };
    peer.answer(get.xid, 6, data("")).await;
    let answering = async {
        let get = peer.request().await;
        peer.answer(get.xid, 6, data("no leader writes this")).await;
    };
    let (told, ()) = tokio::join!(soon(observer.next()), answering);
    assert!(matches!(told, Err(Error::Malformed { .. })), "{told:?}");
}

/// Answers as a server does on which the assignment's directory is empty, only the task "kept"
/// exists, and everything can be created. Notes the watch of the assignments.
#[allow(clippy::wildcard_enum_match_arm, reason = "a script knows what it is asked")]
async fn serve_work(peer: &mut Peer, assignments: &mut u64) {
    loop {
        let Asked { xid, op, .. } = peer.request().await;
        let answer: Result<Reply, Fault> = match op {
            Op::Exists { path, .. } if path.as_str() == "/work/assigned" => {
                Ok(Reply::Stat(Stat::default()))
            }
            Op::Watch { id, path, .. } => {
                if path.as_str() == "/work/assigned" {
                    *assignments = id.0;
                }
                Ok(Reply::Done)
            }
            Op::Children { .. } => {
                Ok(Reply::Children { entries: Vec::new(), more: false, stat: Stat::default() })
            }
            Op::Create { path, .. } => Ok(Reply::Created { path, stat: Stat::default() }),
            Op::Get { path, .. } if path.as_str() == "/work/tasks/kept" => data("do it"),
            Op::Get { .. } | Op::Exists { .. } => Err(ErrorCode::NoNode.into()),
            other => panic!("a worker does not ask {other:?}"),
        };
        peer.answer(xid, 5, answer).await;
    }
}

#[tokio::test]
async fn a_worker_begins_what_is_behind_a_task_that_was_taken_back() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    let work = Work::new(&client, "/work").unwrap();
    let mut watch = 0;
    let worker = tokio::select! {
        worker = soon(work.worker("w")) => worker,
        () = serve_work(&mut peer, &mut watch) => unreachable!("it serves without end"),
    };
    let mut worker = worker.unwrap();
    for (zxid, task) in [(6, "cancelled"), (7, "kept")] {
        let event = event(zxid, &format!("/work/assigned/{task}"), EventKind::Created);
        let value = Some("w".into());
        peer.send(ServerMessage::Event { watch: WatchId(watch), event, value }).await;
    }
    let order = tokio::select! {
        order = soon(worker.next()) => order.unwrap(),
        () = serve_work(&mut peer, &mut watch) => unreachable!("it serves without end"),
    };
    assert!(matches!(&order, Order::Begin(task) if task.id == "kept"), "{order:?}");
}
