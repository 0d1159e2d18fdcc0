//! Watches have paths instead of numbers.

use bytes::{Buf, Bytes};
use conclave::wire::Inbound;
use conclave_proto::{
    ClientMessage, ErrorCode, Event, EventKind, Op, Reply, ServerMessage, Stat, WatchId, WatchKind,
    ZPath, Zxid,
};

use crate::speech::{Body, Talk};

const CHECK_WATCHES: i32 = 17;
const REMOVE_WATCHES: i32 = 18;

/// Whether the client has a watch of a kind on `/a`.
fn has(talk: &mut Talk, kind: i32) -> bool {
    let body = Body::new().text("/a").int(kind);
    assert!(matches!(talk.asks(9, CHECK_WATCHES, body), Some(Inbound::Known)));
    talk.answer(Err(ErrorCode::BadArguments.into())).2 == 0
}

fn watch_data(talk: &mut Talk) -> WatchId {
    let Op::Get { watch, .. } = talk.op(4, Body::new().text("/a").bool(true)) else {
        panic!("not a read")
    };
    talk.answer(Ok(Reply::Data { data: None, stat: Stat::default() }));
    watch.unwrap()
}

#[test]
fn a_watch_is_there_until_it_fires() {
    let mut talk = Talk::open();
    assert!(!has(&mut talk, 2));
    let id = watch_data(&mut talk);
    assert!(has(&mut talk, 2) && has(&mut talk, 3) && !has(&mut talk, 1));
    assert_eq!(talk.event(id, 80, EventKind::DataChanged, "/a"), 1);
    assert!(!has(&mut talk, 2));
}

#[test]
fn a_watch_that_fires_unseen_is_gone() {
    let mut talk = Talk::open();
    let id = watch_data(&mut talk);
    talk.wire.spend(id, &ZPath::new("/a").unwrap());
    assert!(!has(&mut talk, 3));
}

/// The client may have heard all of it before, since it asks from its last answer on.
#[test]
fn a_persistent_watch_that_is_set_again_is_told_the_latest_of_each_node() {
    let mut talk = Talk::open();
    let body = Body::new().long(50).texts(&[]).texts(&[]).texts(&[]).texts(&[]).texts(&["/a"]);
    let Some(Inbound::Message(ClientMessage::Request { op, .. })) = talk.asks(-8, 105, body) else {
        panic!("not a watch")
    };
    let Op::Watch { id, .. } = op else { panic!("not a watch") };
    for (at, kind, of) in [
        (60, EventKind::Deleted, "/a/b"),
        (61, EventKind::Created, "/a/b"),
        (62, EventKind::DataChanged, "/a/c"),
        (63, EventKind::DataChanged, "/a/b"),
        (64, EventKind::Deleted, "/a/c"),
    ] {
        assert_eq!(talk.event(id, at, kind, of), 0);
    }
    let (frames, _) = talk.respond(Ok(Reply::Done));
    let told = frames.into_iter().map(|frame| {
        let mut frame = frame.slice(16..);
        let kind = frame.get_i32();
        frame.advance(8);
        (kind, String::from_utf8(frame.to_vec()).unwrap())
    });
    assert_eq!(told.collect::<Vec<_>>(), [(3, "/a/b".into()), (2, "/a/c".into())]);
}

/// If the connection breaks before all of them are told what they missed, the next setWatches must
/// ask from where this one did.
#[test]
fn what_is_told_while_watches_are_set_again_says_nothing_of_how_far_it_goes() {
    let mut talk = Talk::open();
    let zxid = |frame: &Bytes| i64::from_be_bytes(*frame[4..].first_chunk().unwrap());
    let pong = ServerMessage::Pong { zxid: Zxid::from_bits(90), counted_ms_ago: None };
    let mut came =
        talk.asks(-8, 101, Body::new().long(50).texts(&["/a", "/b"]).texts(&[]).texts(&[]));
    while let Some(Inbound::Message(ClientMessage::Request { op, .. })) = came {
        let Op::Watch { id, path, .. } = op else { panic!("not a watch") };
        let event = Event { zxid: Zxid::from_bits(60), path, kind: EventKind::DataChanged };
        talk.hears(&ServerMessage::Event { watch: id, event, value: None });
        assert_eq!(zxid(&talk.hears(&pong).0[0]), 0);
        let (told, _) = talk.respond(Ok(Reply::Done));
        assert_eq!((told.len(), zxid(&told[0])), (1, -1));
        came = talk.more();
    }
    talk.answer(Err(ErrorCode::BadArguments.into()));
    assert_eq!(zxid(&talk.hears(&pong).0[0]), 90);
}

#[test]
fn a_read_that_fails_sets_no_watch_but_exists_does() {
    let mut talk = Talk::open();
    talk.op(4, Body::new().text("/a").bool(true));
    talk.answer(Err(ErrorCode::NoNode.into()));
    assert!(!has(&mut talk, 2));
    talk.op(3, Body::new().text("/a").bool(true));
    talk.answer(Err(ErrorCode::NoNode.into()));
    assert!(has(&mut talk, 2));
}

#[test]
fn what_several_watches_see_is_told_once() {
    let mut talk = Talk::open();
    let data = watch_data(&mut talk);
    let Op::Children { watch, .. } = talk.op(8, Body::new().text("/a").bool(true)) else {
        panic!("not a listing")
    };
    assert_ne!(watch, Some(data));
    let names = ["b"].into_iter().collect();
    talk.answer(Ok(Reply::Names { names, stat: Stat::default() }));
    assert_eq!(talk.event(data, 80, EventKind::Deleted, "/a"), 1);
    assert_eq!(talk.event(watch.unwrap(), 80, EventKind::Deleted, "/a"), 0);
    assert_eq!(watch_data(&mut talk), data);
    assert_eq!(talk.event(data, 81, EventKind::Deleted, "/a"), 1);
}

/// Whoever remembers the number of each event remembers -1 of those that come with this request.
#[test]
fn watches_are_set_again_since_a_number_below_zero() {
    let mut talk = Talk::open();
    let body = Body::new().long(-1).texts(&["/a"]).texts(&[]).texts(&[]);
    let came = talk.asks(-8, 101, body);
    let Some(Inbound::Message(ClientMessage::Request { op, .. })) = came else { panic!("no") };
    assert!(matches!(op, Op::Watch { since: Some(Zxid::ZERO), .. }), "{op:?}");
}

#[test]
fn many_watches_are_set_again_with_one_answer() {
    let mut talk = Talk::open();
    let body = Body::new().long(50).texts(&["/a", "bad", "/b"]).texts(&[]).texts(&["/a"]);
    let mut came = talk.asks(-8, 101, body);
    let mut kinds = Vec::new();
    while let Some(Inbound::Message(ClientMessage::Request { op, .. })) = came {
        let Op::Watch { id, path, kind, since, .. } = op else { panic!("not a watch") };
        assert_eq!(since, Some(Zxid::from_bits(50)));
        if kind == WatchKind::Children {
            assert_eq!(talk.event(id, 60, EventKind::ChildrenChanged, "/a"), 0, "not yet");
        }
        kinds.push((path.to_string(), kind));
        let told = talk.respond(Ok(Reply::Done)).0.len();
        assert_eq!(told, usize::from(kind == WatchKind::Children), "a part has no answer");
        came = talk.more();
    }
    assert!(matches!(came, Some(Inbound::Known)));
    let data = WatchKind::Data;
    let expected = [("/a".into(), data), ("/b".into(), data), ("/a".into(), WatchKind::Children)];
    assert_eq!(kinds, expected);
    let (xid, _, code, body) = talk.answer(Err(ErrorCode::BadArguments.into()));
    assert_eq!((xid, code, body.len()), (-8, 0, 0));
    // The one that had something to tell is spent, the other is there.
    assert!(has(&mut talk, 2) && !has(&mut talk, 1));
    assert!(talk.more().is_none());
}

#[test]
fn a_list_of_watches_that_is_cut_off_is_answered_with_an_error() {
    let mut talk = Talk::open();
    let body = Body::new().long(50).texts(&["/a", "/b"]).int(3).text("/c");
    let mut came = talk.asks(-8, 105, body);
    while let Some(Inbound::Message(_)) = came {
        talk.respond(Ok(Reply::Done));
        came = talk.more();
    }
    assert!(matches!(came, Some(Inbound::Known)));
    assert_eq!(talk.answer(Err(ErrorCode::BadArguments.into())).2, -5);
}

#[test]
fn watches_of_any_kind_are_removed_with_one_answer() {
    for found in [true, false] {
        let mut talk = Talk::open();
        if found {
            watch_data(&mut talk);
        }
        let mut came = talk.asks(3, REMOVE_WATCHES, Body::new().text("/a").int(3));
        let mut answers = Vec::new();
        let mut parts = 0;
        while let Some(Inbound::Message(_)) = came {
            parts += 1;
            let result = match found && parts == 2 {
                true => Ok(Reply::Done),
                false => Err(ErrorCode::NoWatcher.into()),
            };
            answers.extend(talk.respond(result).0);
            came = talk.more();
        }
        assert!(came.is_none());
        assert_eq!((parts, answers.len()), (4, 1));
        let code = answers[0].clone().split_off(12).get_i32();
        assert_eq!(code, if found { 0 } else { -121 });
        assert!(!has(&mut talk, 3));
    }
}

#[test]
fn persistent_watches_of_both_modes_stand_beside_each_other() {
    let mut talk = Talk::open();
    let mut ids = Vec::new();
    for mode in [0, 1] {
        let Op::Watch { id, kind, since, .. } = talk.op(106, Body::new().text("/a").int(mode))
        else {
            panic!("not a watch")
        };
        assert_eq!((kind.is_one_shot(), since), (false, None));
        ids.push(id);
        let (_, _, code, mut body) = talk.answer(Ok(Reply::Done));
        assert_eq!((code, body.get_i32(), body.len()), (0, 0, 0));
    }
    assert!(ids[0] != ids[1] && has(&mut talk, 4) && has(&mut talk, 5) && !has(&mut talk, 2));
    // What both see is told once.
    assert_eq!(talk.event(ids[0], 80, EventKind::DataChanged, "/a"), 1);
    assert_eq!(talk.event(ids[1], 80, EventKind::DataChanged, "/a"), 0);
    assert_eq!(talk.event(ids[1], 81, EventKind::Created, "/a/b"), 1);
    assert_eq!(talk.event(ids[0], 81, EventKind::ChildrenChanged, "/a"), 1);
    // Each is removed by itself.
    for (kind, id) in [(4, ids[0]), (5, ids[1])] {
        assert!(has(&mut talk, kind));
        let op = talk.op(REMOVE_WATCHES, Body::new().text("/a").int(kind));
        assert_eq!(op, Op::Unwatch { id });
        assert_eq!(talk.answer(Ok(Reply::Done)).2, 0);
        assert!(!has(&mut talk, kind));
    }
}

/// A request that sets watches again and breaks off is answered with why, which says nothing of the next.
#[test]
fn what_went_wrong_with_one_request_is_not_said_of_the_next() {
    let mut talk = Talk::open();
    // The second of its lists has a length below zero.
    let broken = Body::new().long(1).texts(&["/a"]).int(-7);
    talk.asks(-8, 101, broken);
    talk.respond(Err(ErrorCode::Throttled.into()));
    assert!(matches!(talk.more(), Some(Inbound::Known)));
    assert_eq!(talk.answer(Err(ErrorCode::BadArguments.into())).2, -5);
    talk.asks(-8, 101, Body::new().long(1).texts(&["/a"]).texts(&[]).texts(&[]));
    talk.respond(Ok(Reply::Done));
    assert!(matches!(talk.more(), Some(Inbound::Known)));
    assert_eq!(talk.answer(Err(ErrorCode::BadArguments.into())).2, 0);
}
