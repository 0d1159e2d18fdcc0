//! What ClickHouse Keeper adds to the protocol, as ClickHouse writes and reads it.

use bytes::{Buf, Bytes};
use conclave::wire::Inbound;
use conclave_proto::request::{Condition, Entry, Page, StatTest, Test};
use conclave_proto::{
    Acl, CreateMode, ErrorCode, EventKind, Fault, Op, Reply, SessionId, Stat, WatchId, WatchKind,
    ZPath, Zxid,
};

use crate::speech::{Body, Talk, framed, path};

const STAT_BYTES: usize = 68;

fn read_text(body: &mut Bytes) -> String {
    let length = usize::try_from(body.get_i32()).unwrap();
    String::from_utf8(body.split_to(length).to_vec()).unwrap()
}

fn read_texts(body: &mut Bytes) -> Vec<String> {
    (0..body.get_i32()).map(|_| read_text(body)).collect()
}

fn stat(owner: u64, version: i32) -> Stat {
    Stat { ephemeral_owner: SessionId(owner), version, ..Stat::default() }
}

fn children(entries: Vec<Entry>) -> Result<Reply, Fault> {
    Ok(Reply::Children { entries, more: false, stat: stat(0, 9) })
}

fn entry(name: &str, stat: Option<Stat>, data: Option<&'static str>) -> Entry {
    let data = data.map(|data| Bytes::from_static(data.as_bytes()));
    Entry { name: name.into(), stat, data }
}

fn list(only: u8) -> Body {
    let mut body = Body::new().text("/a").bool(false);
    body.0.extend([only]);
    body
}

/// A permanent child, an ephemeral one, and one of which nothing more may be known.
fn mixed() -> Vec<Entry> {
    let known = |owner, version, data| (Some(stat(owner, version)), data);
    let (permanent, ephemeral) = (known(0, 1, Some("one")), known(7, 2, None));
    vec![
        entry("p", permanent.0, permanent.1),
        entry("e", ephemeral.0, ephemeral.1),
        entry("x", None, None),
    ]
}

#[test]
fn a_server_says_what_it_knows() {
    let mut talk = Talk::open();
    let get = Body::new().text("/keeper/feature_flags").bool(false);
    assert!(matches!(talk.asks(1, 4, get), Some(Inbound::Known)));
    let (_, _, code, mut body) = talk.answer(Err(ErrorCode::BadArguments.into()));
    assert_eq!((code, body.get_i32()), (0, 2));
    // The first addition is the highest bit; there are 15 of them.
    assert_eq!(body.split_to(2)[..], [0b1111_1111, 0b1111_1110]);
    assert_eq!(body.len(), STAT_BYTES);

    let exists = Body::new().text("/keeper/api_version").bool(false);
    assert!(matches!(talk.asks(2, 3, exists), Some(Inbound::Known)));
    let (_, _, code, body) = talk.answer(Err(ErrorCode::BadArguments.into()));
    assert_eq!((code, body.len()), (0, STAT_BYTES));

    // A request as long as that is read, and a longer one ends the connection.
    let get = Body::new().text("/keeper/max_request_size").bool(false);
    assert!(matches!(talk.asks(3, 4, get), Some(Inbound::Known)));
    let (_, _, code, mut body) = talk.answer(Err(ErrorCode::BadArguments.into()));
    assert_eq!((code, read_text(&mut body)), (0, "1048575".into()));
    let set = |frame: i32| {
        let (before, after) = (Body::new().int(4).int(5).text("/a"), [0; 4]);
        let length = frame - i32::try_from(before.0.len() + 4 + after.len()).unwrap();
        let mut body = before.int(length);
        body.0.extend(std::iter::repeat_n(0, usize::try_from(length).unwrap()));
        body.0.extend(after);
        framed(&body.0)
    };
    assert!(talk.wire.next(&mut set(1_048_575)).unwrap().is_some());
    assert!(Talk::open().wire.next(&mut set(1_048_576)).is_err());

    // Every other node is the tree's.
    let op = talk.op(4, Body::new().text("/keeper").bool(false));
    assert_eq!(op, Op::Get { path: path("/keeper"), watch: None });
}

#[test]
fn children_are_filtered() {
    for (only, expected) in [(0, vec!["p", "e", "x"]), (1, vec!["p"]), (2, vec!["e"])] {
        let mut talk = Talk::open();
        let page = Page { with_stat: only != 0, ..Page::WHOLE };
        assert_eq!(talk.op(500, list(only)), Op::Children { path: path("/a"), watch: None, page });
        let names = ["p", "e", "x"].into_iter().collect();
        let (_, _, code, mut body) = talk.answer(match only {
            0 => Ok(Reply::Names { names, stat: stat(0, 9) }),
            _ => children(mixed()),
        });
        assert_eq!(
            (code, read_texts(&mut body)),
            (0, expected.iter().map(|&n| n.into()).collect())
        );
        assert_eq!(body.len(), STAT_BYTES);
    }
    let mut talk = Talk::open();
    assert!(matches!(talk.asks(1, 500, list(3)), Some(Inbound::Known)), "no such filter");
}

#[test]
fn a_filtered_list_sets_its_watch() {
    let mut talk = Talk::open();
    let mut body = Body::new().text("/a").bool(true);
    body.0.extend([0]);
    let Op::Children { watch: Some(id), .. } = talk.op(500, body) else { panic!("no watch") };
    talk.answer(children(Vec::new()));
    // It is there to be set again under the same number.
    let again = Body::new().long(3).int(0).int(0).texts(&["/a"]);
    let op = talk.op(101, again);
    let Op::Watch { id: rearmed, kind: WatchKind::Children, .. } = op else { panic!("{op:?}") };
    assert_eq!(rearmed, id);
}

#[test]
fn statistics_and_data_follow_the_names() {
    for (with_stat, with_data) in [(true, true), (false, true), (true, false), (false, false)] {
        let mut talk = Talk::open();
        let page = Page { with_stat: true, with_data, ..Page::WHOLE };
        let op = talk.op(506, list(0).bool(with_stat).bool(with_data));
        assert_eq!(op, Op::Children { path: path("/a"), watch: None, page });
        let (_, _, code, mut body) = talk.answer(children(mixed()[..2].to_vec()));
        assert_eq!((code, read_texts(&mut body)), (0, vec!["p".to_owned(), "e".to_owned()]));
        body.advance(STAT_BYTES);
        let stats = usize::try_from(body.get_i32()).unwrap();
        assert_eq!(stats, if with_stat { 2 } else { 0 });
        body.advance(stats * STAT_BYTES);
        if with_data {
            assert_eq!(
                (body.get_i32(), read_text(&mut body), body.get_i32()),
                (2, "one".into(), -1)
            );
        } else {
            assert_eq!(body.get_i32(), 0);
        }
        assert!(body.is_empty());
    }
    // Who may not know all of it is not told a part.
    let mut talk = Talk::open();
    talk.op(506, list(0).bool(true).bool(true));
    assert_eq!(talk.answer(children(mixed())).2, -102);
}

#[test]
fn a_list_that_is_refused_sets_no_watch() {
    let mut talk = Talk::open();
    let mut body = Body::new().text("/a").bool(true);
    body.0.extend([0]);
    let op = talk.op(506, body.bool(true).bool(true));
    let Op::Children { watch: Some(watch), .. } = op else { panic!("no watch") };
    assert_eq!(talk.answer(children(mixed())).2, -102);
    // The tree has set it, since it has refused nothing.
    assert_eq!(talk.op(18, Body::new().text("/a").int(1)), Op::Unwatch { id: watch });
    assert_eq!(talk.answer(Ok(Reply::Done)).2, -121);
    assert_eq!(talk.event(watch, 99, EventKind::ChildrenChanged, "/a"), 0);
}

fn create_body(text: &str) -> Body {
    Body::new().text(text).text("d").open_acl().int(0)
}

fn create_if_missing(text: &str) -> Op {
    let (data, acl) = (Some(Bytes::from_static(b"d")), Acl::open());
    Op::CreateIfMissing { path: path(text), data, acl, mode: CreateMode::PERSISTENT }
}

fn missing(text: &str) -> Op {
    Op::Require(Condition { path: path(text), test: Test::Missing })
}

#[test]
fn writes_are_more_tolerant() {
    let a = || Body::new().text("/a");
    for (kind, body, op) in [
        (501, a().int(-1), missing("/a")),
        (502, create_body("/a"), create_if_missing("/a")),
        (503, a().int(100), Op::DeleteTree { path: path("/a"), limit: 100 }),
        (505, a().int(-1), Op::DeleteIfExists { path: path("/a"), version: None }),
        (505, a().int(3), Op::DeleteIfExists { path: path("/a"), version: Some(3) }),
    ] {
        let mut talk = Talk::open();
        assert_eq!(talk.op(kind, body), op);
        let created = Reply::Created { path: path("/a"), stat: Stat::default() };
        let (reply, length) = match kind {
            502 => (created, 6),
            503 => (Reply::DeletedMany { deleted: 3, more: false }, 0),
            _ => (Reply::Done, 0),
        };
        let (_, _, code, body) = talk.answer(Ok(reply));
        assert_eq!((code, body.len()), (0, length), "operation {kind}");
    }
    for (kind, body) in [(501, a().int(3)), (503, a().int(0)), (502, create_body("a"))] {
        let mut talk = Talk::open();
        assert!(matches!(talk.asks(1, kind, body), Some(Inbound::Known)), "operation {kind}");
        assert_eq!(talk.answer(Ok(Reply::Done)).2, -8);
    }
}

#[test]
fn they_may_be_in_a_multi() {
    let mut body = Body::new();
    for (kind, part) in [
        (501, Body::new().text("/a").int(-1)),
        (502, create_body("/b")),
        (505, Body::new().text("/c").int(-1)),
        (503, Body::new().text("/d").int(5)),
    ] {
        body = body.int(kind).bool(false).int(-1);
        body.0.extend_from_slice(&part.0);
    }
    let mut talk = Talk::open();
    let Op::Multi { then, .. } = talk.op(14, body.int(-1).bool(true).int(-1)) else {
        panic!("no multi")
    };
    let delete = Op::DeleteIfExists { path: path("/c"), version: None };
    let tree = Op::DeleteTree { path: path("/d"), limit: 5 };
    assert_eq!(then, [missing("/a"), create_if_missing("/b"), delete, tree]);

    let created = Reply::Created { path: path("/b"), stat: Stat::default() };
    let deleted = Reply::DeletedMany { deleted: 2, more: false };
    let replies = vec![Reply::Done, created, Reply::Done, deleted];
    let (_, _, _, mut body) = talk.answer(Ok(Reply::Multi { held: true, replies }));
    for kind in [501, 502, 505, 503] {
        assert_eq!((body.get_i32(), body.get_u8(), body.get_i32()), (kind, 0, 0));
        if kind == 502 {
            assert_eq!(read_text(&mut body), "/b");
        }
    }
    assert_eq!((body.get_i32(), body.get_u8(), body.get_i32(), body.len()), (-1, 1, -1, 0));
}

/// Statistics of which some are left open.
fn stat_body(czxid: i64, version: i32, owner: i64, children: i32) -> Body {
    let times = Body::new().long(czxid).long(-1).long(-1).long(-1).int(version).int(-1).int(-1);
    times.long(owner).int(-1).int(children).long(-1)
}

fn check_stat(version: i32, stat: &Body) -> Body {
    let mut body = Body::new().text("/a").int(version);
    body.0.extend_from_slice(&stat.0);
    body
}

#[test]
fn statistics_are_checked() {
    let open = StatTest::default();
    let versioned = StatTest { version: Some(3), ..StatTest::default() };
    let some = StatTest {
        czxid: Some(Zxid::from_bits(7)),
        version: Some(0),
        ephemeral_owner: Some(SessionId::NONE),
        num_children: Some(2),
        ..StatTest::default()
    };
    for (version, body, test) in [
        (-1, stat_body(-1, -1, -1, -1), open),
        (3, stat_body(-1, -1, -1, -1), versioned.clone()),
        (3, stat_body(-1, 3, -1, -1), versioned),
        (-1, stat_body(7, 0, 0, 2), some),
    ] {
        let mut talk = Talk::open();
        let expected = Condition { path: path("/a"), test: Test::Stat(Box::new(test)) };
        assert_eq!(talk.op(504, check_stat(version, &body)), Op::Require(expected));
        let (_, _, code, body) = talk.answer(Ok(Reply::Done));
        assert_eq!((code, body.len()), (0, 0));
    }
    // All eleven numbers, each in its place.
    let all = Body::new().long(1).long(2).long(3).long(4).int(5).int(6).int(7);
    let all = all.long(8).int(9).int(10).long(11);
    let Op::Require(Condition { test: Test::Stat(test), .. }) =
        Talk::open().op(504, check_stat(-1, &all))
    else {
        panic!("no check")
    };
    let zxid = |bits| Some(Zxid::from_bits(bits));
    let expected = StatTest {
        czxid: zxid(1),
        mzxid: zxid(2),
        ctime_ms: Some(3),
        mtime_ms: Some(4),
        version: Some(5),
        cversion: Some(6),
        aversion: Some(7),
        ephemeral_owner: Some(SessionId(8)),
        data_length: Some(9),
        num_children: Some(10),
        pzxid: zxid(11),
    };
    assert_eq!(*test, expected);
    // Two versions at once, and one number too few.
    for (body, code) in [
        (check_stat(2, &stat_body(-1, 3, -1, -1)), -8),
        (Body::new().text("/a").int(-1).long(-1), -5),
    ] {
        let mut talk = Talk::open();
        assert!(matches!(talk.asks(1, 504, body), Some(Inbound::Known)));
        assert_eq!(talk.answer(Ok(Reply::Done)).2, code);
    }
}

#[test]
fn several_reads_may_be_of_every_kind() {
    let mut body = Body::new();
    for (kind, part) in [
        (4, Body::new().text("/a").bool(false)),
        (3, Body::new().text("/b").bool(false)),
        (12, Body::new().text("/a").bool(false)),
        (500, list(2)),
        (506, list(0).bool(false).bool(true)),
        (3, Body::new().text("no path").bool(false)),
    ] {
        body = body.int(kind).bool(false).int(-1);
        body.0.extend_from_slice(&part.0);
    }
    let mut talk = Talk::open();
    let Op::MultiRead(reads) = talk.op(22, body.int(-1).bool(true).int(-1)) else {
        panic!("no reads")
    };
    assert_eq!(reads[1], Op::Exists { path: path("/b"), watch: None });
    assert_eq!(reads.len(), 6);

    let data = Reply::Data { data: Some(Bytes::from_static(b"d")), stat: Stat::default() };
    let gone = || Err(ErrorCode::NoNode.into());
    let few = || children(mixed()[..2].to_vec());
    let names = Reply::Names { names: ["p", "e"].into_iter().collect(), stat: stat(0, 9) };
    let replies = vec![Ok(data), gone(), Ok(names), few(), few(), gone()];
    let (_, _, code, mut body) = talk.answer(Ok(Reply::MultiRead(replies)));
    assert_eq!(code, 0);
    let header = |body: &mut Bytes| (body.get_i32(), body.get_u8(), body.get_i32());
    assert_eq!((header(&mut body), read_text(&mut body)), ((4, 0, 0), "d".into()));
    body.advance(STAT_BYTES);
    assert_eq!((header(&mut body), body.get_i32()), ((-1, 0, -101), -101));
    assert_eq!((header(&mut body), read_texts(&mut body).len()), ((12, 0, 0), 2));
    body.advance(STAT_BYTES);
    assert_eq!((header(&mut body), read_texts(&mut body)), ((500, 0, 0), vec!["e".to_owned()]));
    body.advance(STAT_BYTES);
    assert_eq!((header(&mut body), read_texts(&mut body).len()), ((506, 0, 0), 2));
    body.advance(STAT_BYTES);
    assert_eq!((body.get_i32(), body.get_i32()), (0, 2));
    assert_eq!((read_text(&mut body), body.get_i32()), ("one".into(), -1));
    assert_eq!((header(&mut body), body.get_i32()), ((-1, 0, -101), -101));
    assert_eq!((header(&mut body), body.len()), ((-1, 1, -1), 0));
}

/// Several reads in one request, with watches: of the first the node exists, of the second it does
/// not.
fn watched_reads() -> Body {
    let mut body = Body::new();
    for (kind, path) in [(4, "/a"), (3, "/b"), (4, "/c"), (12, "/a"), (500, "/d")] {
        body = body.int(kind).bool(false).int(-1).text(path).bool(true);
        if kind == 500 {
            body.0.extend([0]);
        }
    }
    body.int(-1).bool(true).int(-1)
}

#[test]
fn several_reads_set_watches_for_clickhouse_alone() {
    let mut talk = Talk::open();
    let Op::MultiRead(reads) = talk.op(22, watched_reads()) else { panic!("no reads") };
    assert!(reads.iter().all(|read| watch_in(read).is_none()), "{reads:?}");

    let mut talk = Talk::open();
    talk.asks(1, 4, Body::new().text("/keeper/feature_flags").bool(false));
    talk.answer(Err(ErrorCode::NoNode.into()));
    let Op::MultiRead(reads) = talk.op(22, watched_reads()) else { panic!("no reads") };
    let watches: Vec<_> = reads.iter().map(|read| watch_in(read).unwrap()).collect();
    let data = Reply::Data { data: None, stat: Stat::default() };
    let gone = || Err(ErrorCode::NoNode.into());
    let names = Reply::Names { names: ["p"].into_iter().collect(), stat: stat(0, 9) };
    let replies = vec![Ok(data), gone(), gone(), Ok(names.clone()), Ok(names)];
    assert_eq!(talk.answer(Ok(Reply::MultiRead(replies))).2, 0);
    // Whoever waits for a node to exist watches it; a read that fails sets no watch.
    let mut has = |path, kind| {
        talk.asks(2, 17, Body::new().text(path).int(kind));
        talk.answer(Err(ErrorCode::BadArguments.into())).2
    };
    let (children, data) = (1, 2);
    let found = [("/a", data), ("/a", children), ("/b", data), ("/d", children)];
    assert_eq!(found.map(|(path, kind)| has(path, kind)), [0; 4]);
    assert_eq!([("/c", data), ("/d", data)].map(|(path, kind)| has(path, kind)), [-121; 2]);
    // Each is told of its own.
    assert_eq!(talk.event(watches[1], 80, EventKind::Created, "/b"), 1);
    assert_eq!(talk.event(watches[4], 81, EventKind::ChildrenChanged, "/d"), 1);
}

fn watch_in(read: &Op) -> Option<WatchId> {
    let (Op::Get { watch, .. } | Op::Exists { watch, .. } | Op::Children { watch, .. }) = read
    else {
        panic!("no read: {read:?}")
    };
    *watch
}

/// A read that fails among others, to a client of ZooKeeper and to one that has asked for what
/// ClickHouse Keeper adds: each reads a form of its own.
#[test]
fn a_failed_read_has_the_form_that_its_client_reads() {
    for asks in ["/keeper/feature_flags", "/keeper/api_version", "/keeper/other"] {
        let mut talk = Talk::open();
        talk.asks(1, 4, Body::new().text(asks).bool(false));
        talk.answer(Err(ErrorCode::NoNode.into()));
        let mut body = Body::new().int(4).bool(false).int(-1).text("/a").bool(false);
        body = body.int(3).bool(false).int(-1).text("/b").bool(false);
        talk.op(22, body.int(-1).bool(true).int(-1));
        let gone = || Err(ErrorCode::NoNode.into());
        let (_, _, code, mut body) = talk.answer(Ok(Reply::MultiRead(vec![gone(), gone()])));
        assert_eq!(code, 0);
        for kind in [4, 3] {
            let header = (body.get_i32(), body.get_u8(), body.get_i32());
            if asks == "/keeper/other" {
                assert_eq!((header, body.get_i32()), ((-1, 0, -101), -101));
            } else {
                assert_eq!(header, (kind, 0, -101), "after {asks}");
            }
        }
        assert_eq!((body.get_i32(), body.get_u8(), body.get_i32(), body.len()), (-1, 1, -1, 0));
    }
}

#[test]
fn everything_below_a_node_has_its_full_path() {
    let below = vec![entry("b", None, None), entry("b/c", None, None)];
    let answer = |limit: i32, top: &str, more: bool| {
        let mut talk = Talk::open();
        talk.op(507, Body::new().text(top).int(limit));
        let entries = below.clone();
        talk.answer(Ok(Reply::Children { entries, more, stat: Stat::default() }))
    };
    let (_, _, code, mut body) = answer(100, "/a", false);
    assert_eq!((code, read_texts(&mut body)), (0, vec!["/a/b".into(), "/a/b/c".into()]));
    assert!(body.is_empty());
    for (limit, expected) in [(2, vec!["/b", "/b/c"]), (1, vec!["/b"]), (0, vec![])] {
        let (_, _, code, mut body) = answer(limit, "/", true);
        assert_eq!(
            (code, read_texts(&mut body)),
            (0, expected.into_iter().map(From::from).collect())
        );
    }
    // More than fits, and than was to be enough: a part would be taken for the whole.
    assert_eq!(answer(100, "/a", true).2, -8);

    let op = Talk::open().op(507, Body::new().text("/").int(-1));
    let Op::ListRecursive { path: top, page } = op else { panic!("{op:?}") };
    assert!(top == ZPath::root() && !page.is_whole() && page.limit > 0, "{page:?}");
}
