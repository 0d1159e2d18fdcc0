//! Any value that may occur.

use std::sync::Arc;

use bytes::Bytes;
use conclave_proto::message::{ClientMessage, Connect, Connected, Refused, ServerLimits};
use conclave_proto::request::{Condition, Entry, Page, ReadLevel, StatTest, Test};
use conclave_proto::{
    Acl, CreateMode, Epoch, ErrorCode, Event, EventKind, Fault, Identity, Lifetime, Op, Perms,
    Reply, Request, Response, Secret, ServerId, ServerMessage, SessionId, Stat, Txn, WatchId,
    WatchKind, Xid, ZPath, Zxid,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

pub(crate) fn path() -> impl Strategy<Value = ZPath> {
    vec("[a-z0-9_.é☃ -]{1,6}", 0..5).prop_filter_map("a part is . or ..", |parts| {
        ZPath::new(&format!("/{}", parts.join("/"))).ok()
    })
}

pub(crate) fn zxid() -> impl Strategy<Value = Zxid> {
    prop_oneof![
        any::<u64>().prop_map(Zxid::from_bits),
        (0..9u32, 0..1000u64)
            .prop_map(|(epoch, counter)| { Zxid::new(Epoch::new(epoch).unwrap(), counter) })
    ]
}

pub(crate) fn client_message() -> impl Strategy<Value = ClientMessage> {
    let connect =
        (any::<u32>(), option::of((session(), secret())), any::<u32>(), zxid(), any::<bool>())
            .prop_map(|(version, session, timeout_ms, last_zxid, read_only)| {
                let connect = Connect { version, session, timeout_ms, last_zxid, read_only };
                ClientMessage::Connect(connect)
            });
    let level = prop_oneof![
        Just(ReadLevel::Local),
        zxid().prop_map(ReadLevel::AtLeast),
        Just(ReadLevel::Linearizable),
    ];
    let request =
        (any::<u64>(), any::<u64>(), level, client_op()).prop_map(|(xid, acked, level, op)| {
            ClientMessage::Request { xid: Xid(xid), acked: Xid(acked), level, op }
        });
    prop_oneof![1 => connect, 20 => request, 1 => Just(ClientMessage::Ping)]
}

pub(crate) fn server_message() -> impl Strategy<Value = ServerMessage> {
    let server_limits = (any::<u32>(), any::<u32>())
        .prop_map(|(frame_bytes, in_flight)| ServerLimits { frame_bytes, in_flight });
    let connected =
        (session(), secret(), any::<u32>(), any::<(bool, bool)>(), server(), zxid(), server_limits)
            .prop_map(
                |(session, secret, timeout_ms, (resumed, read_only), server, zxid, limits)| {
                    ServerMessage::Connected(Connected {
                        session,
                        secret,
                        timeout_ms,
                        resumed,
                        read_only,
                        server,
                        zxid,
                        limits,
                    })
                },
            );
    let refused = (code(), ".{0,20}", any::<u32>()).prop_map(|(code, message, backoff_ms)| {
        ServerMessage::Refused(Refused { code, message, backoff_ms })
    });
    let response = (any::<u64>(), zxid(), result()).prop_map(|(xid, zxid, result)| {
        ServerMessage::Response(Response { xid: Xid(xid), zxid, result })
    });
    let event = (watch_id(), zxid(), path(), event_kind(), data()).prop_map(
        |(watch, zxid, path, kind, value)| ServerMessage::Event {
            watch,
            event: Event { zxid, path, kind },
            value,
        },
    );
    prop_oneof![
        connected,
        refused,
        response,
        event,
        (watch_id(), zxid())
            .prop_map(|(watch, resumed_at)| ServerMessage::Gap { watch, resumed_at }),
        (zxid(), any::<Option<u32>>())
            .prop_map(|(zxid, counted_ms_ago)| ServerMessage::Pong { zxid, counted_ms_ago }),
        any::<u32>().prop_map(|backoff_ms| ServerMessage::GoAway { backoff_ms }),
    ]
}

pub(crate) fn txn() -> impl Strategy<Value = Txn> {
    let stamp = (any::<u16>(), any::<i64>(), server(), any::<u64>());
    (stamp, vec(identity(), 0..3), zxid(), any::<u64>(), request()).prop_map(
        |((semantics, time_ms, server, mark), identities, zxid, digest, request)| Txn {
            semantics,
            time_ms,
            origin: (server, mark),
            identities: identities.into(),
            digest: (zxid, digest),
            request,
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    let op = prop_oneof![
        client_op().prop_filter("only writes are kept", Op::is_write),
        Just(Op::ExpireSession),
        (session(), any::<u32>(), secret()).prop_map(|(session, timeout_ms, secret)| {
            Op::CreateSession { session, timeout_ms, secret }
        }),
        (path(), zxid(), zxid())
            .prop_map(|(path, pzxid, mzxid)| Op::Reap { path, seen: (pzxid, mzxid) }),
    ];
    (session(), any::<u64>(), any::<u64>(), op).prop_map(|(session, xid, acked, op)| Request {
        session,
        xid: Xid(xid),
        acked: Xid(acked),
        op,
    })
}

fn identity() -> impl Strategy<Value = Identity> {
    ("[a-z0-9]{1,6}", ".{0,8}").prop_map(|(scheme, id)| Identity { scheme, id })
}

pub(crate) fn result() -> impl Strategy<Value = Result<Reply, Fault>> {
    prop_oneof![3 => reply().prop_map(Ok), 1 => fault().prop_map(Err)]
}

fn session() -> impl Strategy<Value = SessionId> {
    any::<u64>().prop_map(SessionId)
}

fn server() -> impl Strategy<Value = ServerId> {
    (1..=254u8).prop_map(|number| ServerId::new(number).unwrap())
}

fn secret() -> impl Strategy<Value = Secret> {
    any::<[u8; 16]>().prop_map(Secret::new)
}

fn watch_id() -> impl Strategy<Value = WatchId> {
    any::<u64>().prop_map(WatchId)
}

fn data() -> impl Strategy<Value = Option<Bytes>> {
    option::of(vec(any::<u8>(), 0..60).prop_map(Bytes::from))
}

fn version() -> impl Strategy<Value = Option<i32>> {
    option::of(any::<i32>())
}

fn acl() -> impl Strategy<Value = Arc<[Acl]>> {
    prop_oneof![Just(Acl::open()), lines().prop_map(Arc::from)]
}

fn lines() -> impl Strategy<Value = Vec<Acl>> {
    let line = (0..=u8::MAX, identity())
        .prop_map(|(perms, identity)| Acl { perms: Perms(perms), identity });
    vec(line, 0..4)
}

fn mode() -> impl Strategy<Value = CreateMode> {
    let lifetime = prop_oneof![
        Just(Lifetime::Persistent),
        Just(Lifetime::Ephemeral),
        Just(Lifetime::Container),
        any::<u64>().prop_map(Lifetime::Ttl),
        any::<u64>().prop_map(Lifetime::Lingering),
    ];
    (lifetime, any::<bool>(), any::<bool>(), any::<u64>()).prop_map(
        |(lifetime, sequential, in_line, first_child)| CreateMode {
            lifetime,
            sequential,
            in_line,
            first_child,
        },
    )
}

fn page() -> impl Strategy<Value = Page> {
    (option::of("[a-z/]{0,9}"), any::<u32>(), any::<bool>(), any::<bool>()).prop_map(
        |(after, limit, with_stat, with_data)| Page { after, limit, with_stat, with_data },
    )
}

/// What may be inside a multi.
fn plain_write() -> impl Strategy<Value = Op> {
    prop_oneof![
        (path(), data(), acl(), mode()).prop_map(|(path, data, acl, mode)| Op::Create {
            path,
            data,
            acl,
            mode
        }),
        (path(), version()).prop_map(|(path, version)| Op::Delete { path, version }),
        (path(), data(), version()).prop_map(|(path, data, version)| Op::SetData {
            path,
            data,
            version
        }),
        (path(), acl(), version()).prop_map(|(path, acl, version)| Op::SetAcl {
            path,
            acl,
            version
        }),
        (path(), version()).prop_map(|(path, version)| Op::Check { path, version }),
        condition().prop_map(Op::Require),
        (path(), data(), acl(), mode())
            .prop_map(|(path, data, acl, mode)| { Op::CreateIfMissing { path, data, acl, mode } }),
        (path(), version()).prop_map(|(path, version)| Op::DeleteIfExists { path, version }),
        (path(), any::<u32>()).prop_map(|(path, limit)| Op::DeleteTree { path, limit }),
        (path(), zxid()).prop_map(|(path, token)| Op::Guard { path, token }),
    ]
}

/// What may be inside a multi-read.
fn plain_read() -> impl Strategy<Value = Op> {
    let watch = || option::of(watch_id());
    prop_oneof![
        (path(), watch()).prop_map(|(path, watch)| Op::Get { path, watch }),
        (path(), watch()).prop_map(|(path, watch)| Op::Exists { path, watch }),
        (path(), watch(), page()).prop_map(|(path, watch, page)| Op::Children {
            path,
            watch,
            page
        }),
    ]
}

fn condition() -> impl Strategy<Value = Condition> {
    let test = prop_oneof![
        Just(Test::Exists),
        Just(Test::Missing),
        any::<i32>().prop_map(Test::Version),
        any::<i32>().prop_map(Test::ChildVersion),
        zxid().prop_map(Test::CreatedBy),
        vec(any::<u8>(), 0..30).prop_map(|data| Test::Data(data.into())),
        stat_test().prop_map(|test| Test::Stat(Box::new(test))),
    ];
    (path(), test).prop_map(|(path, test)| Condition { path, test })
}

fn stat_test() -> impl Strategy<Value = StatTest> {
    let zxids = [option::of(zxid()), option::of(zxid()), option::of(zxid())];
    let times = any::<[Option<i64>; 2]>();
    let rest = (option::of(any::<u64>().prop_map(SessionId)), any::<[Option<u32>; 2]>());
    (zxids, times, any::<[Option<i32>; 3]>(), rest).prop_map(|(zxids, times, versions, rest)| {
        StatTest {
            czxid: zxids[0],
            mzxid: zxids[1],
            pzxid: zxids[2],
            ctime_ms: times[0],
            mtime_ms: times[1],
            version: versions[0],
            cversion: versions[1],
            aversion: versions[2],
            ephemeral_owner: rest.0,
            data_length: rest.1[0],
            num_children: rest.1[1],
        }
    })
}

fn client_op() -> impl Strategy<Value = Op> {
    let multi = (vec(condition(), 0..4), vec(plain_write(), 0..4), vec(plain_write(), 0..4))
        .prop_map(|(conditions, then, otherwise)| Op::Multi { conditions, then, otherwise });
    prop_oneof![
        6 => plain_write(),
        4 => plain_read(),
        2 => multi,
        1 => vec(plain_read(), 0..4).prop_map(Op::MultiRead),
        7 => other_op(),
    ]
}

fn other_op() -> impl Strategy<Value = Op> {
    let kind = select(vec![
        WatchKind::Data,
        WatchKind::Exists,
        WatchKind::Children,
        WatchKind::Persistent,
        WatchKind::PersistentRecursive,
    ]);
    prop_oneof![
        (path(), any::<u32>()).prop_map(|(path, limit)| Op::DeleteRecursive { path, limit }),
        Just(Op::CloseSession),
        (path(), page()).prop_map(|(path, page)| Op::ListRecursive { path, page }),
        path().prop_map(|path| Op::GetAcl { path }),
        ".{0,20}".prop_map(|prefix| Op::Ephemerals { prefix }),
        path().prop_map(|path| Op::CountDescendants { path }),
        path().prop_map(|path| Op::Sync { path }),
        (watch_id(), path(), kind, option::of(zxid()), any::<bool>()).prop_map(
            |(id, path, kind, since, with_value)| Op::Watch { id, path, kind, since, with_value }
        ),
        watch_id().prop_map(|id| Op::Unwatch { id }),
        ("[a-z]{1,9}", vec(any::<u8>(), 0..30)).prop_map(|(scheme, credentials)| {
            Op::Authenticate { scheme, credentials: credentials.into() }
        }),
        Just(Op::WhoAmI),
    ]
}

fn stat() -> impl Strategy<Value = Stat> {
    let zxids = (zxid(), zxid(), zxid());
    let times = (any::<i64>(), any::<i64>());
    let versions = (any::<i32>(), any::<i32>(), any::<i32>());
    (zxids, times, versions, session(), any::<u32>(), any::<u32>()).prop_map(
        |(
            (czxid, mzxid, pzxid),
            (ctime_ms, mtime_ms),
            (version, cversion, aversion),
            ephemeral_owner,
            data_length,
            num_children,
        )| Stat {
            czxid,
            mzxid,
            pzxid,
            ctime_ms,
            mtime_ms,
            version,
            cversion,
            aversion,
            ephemeral_owner,
            data_length,
            num_children,
        },
    )
}

/// What may be inside the answer to a multi or a multi-read.
fn plain_reply() -> impl Strategy<Value = Reply> {
    let entry = ("[a-z]{1,9}", option::of(stat()), data()).prop_map(|(name, stat, data)| Entry {
        name,
        stat,
        data,
    });
    prop_oneof![
        Just(Reply::Done),
        (path(), stat()).prop_map(|(path, stat)| Reply::Created { path, stat }),
        stat().prop_map(Reply::Stat),
        (data(), stat()).prop_map(|(data, stat)| Reply::Data { data, stat }),
        (vec(entry, 0..4), any::<bool>(), stat())
            .prop_map(|(entries, more, stat)| Reply::Children { entries, more, stat }),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    let read = prop_oneof![plain_reply().prop_map(Ok), fault().prop_map(Err)];
    prop_oneof![
        5 => plain_reply(),
        1 => (lines(), stat()).prop_map(|(acl, stat)| Reply::Acl { acl, stat }),
        1 => vec(path(), 0..4).prop_map(Reply::Paths),
        1 => any::<u64>().prop_map(Reply::Count),
        1 => (any::<u32>(), any::<bool>())
            .prop_map(|(deleted, more)| Reply::DeletedMany { deleted, more }),
        1 => (any::<bool>(), vec(plain_reply(), 0..4))
            .prop_map(|(held, replies)| Reply::Multi { held, replies }),
        1 => vec(read, 0..4).prop_map(Reply::MultiRead),
        1 => vec(identity(), 0..4).prop_map(Reply::Identities),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    (code(), any::<u32>()).prop_map(|(code, index)| Fault { code, index })
}

fn event_kind() -> impl Strategy<Value = EventKind> {
    select(vec![
        EventKind::Created,
        EventKind::Deleted,
        EventKind::DataChanged,
        EventKind::ChildrenChanged,
    ])
}

fn code() -> impl Strategy<Value = ErrorCode> {
    select(ErrorCode::ALL)
}
