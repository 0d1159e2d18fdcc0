//! What is on disks and on wires already: these bytes may not change.

use std::sync::Arc;

use conclave_proto::codec::encode_txn;
use conclave_proto::convert::{encode_client, encode_result, encode_server};
use conclave_proto::message::{Connect, Connected, ServerLimits};
use conclave_proto::request::{Condition, ReadLevel, StatTest, Test};
use conclave_proto::{
    Acl, ClientMessage, CreateMode, Epoch, ErrorCode, Event, EventKind, Fault, Identity, Lifetime,
    Op, Perms, Reply, Request, Response, Secret, ServerId, ServerMessage, SessionId, Stat, Txn,
    WatchId, Xid, ZPath, Zxid,
};
use expect_test::{Expect, expect};

use crate::round_trip::bytes;

fn check(bytes: &[u8], expected: Expect) {
    let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>();
    let lines: Vec<String> = bytes.chunks(24).map(|bytes| line(bytes).join(" ")).collect();
    expected.assert_eq(&lines.join("\n"));
}

fn path() -> ZPath {
    ZPath::new("/app/a").unwrap()
}

fn zxid(counter: u64) -> Zxid {
    Zxid::new(Epoch::new(3).unwrap(), counter)
}

fn stat() -> Stat {
    Stat {
        czxid: zxid(1),
        mzxid: zxid(2),
        pzxid: zxid(3),
        ctime_ms: 1_800_000_000_000,
        mtime_ms: 1_800_000_000_001,
        version: 4,
        cversion: -5,
        aversion: 6,
        ephemeral_owner: SessionId(7),
        data_length: 8,
        num_children: 9,
    }
}

fn request(op: Op, level: ReadLevel) -> ClientMessage {
    ClientMessage::Request { xid: Xid(300), acked: Xid(299), level, op }
}

#[test]
fn connect() {
    let connect = ClientMessage::Connect(Connect {
        version: 1,
        session: Some((SessionId(0x0102_0304_0506_0708), Secret::new([0xab; 16]))),
        timeout_ms: 10_000,
        last_zxid: zxid(1),
        read_only: true,
    });
    check(
        &bytes(|out| encode_client(&connect, out)),
        expect![[r#"
        0a 2b 08 01 12 1b 09 08 07 06 05 04 03 02 01 12 10 ab ab ab ab ab ab ab
        ab ab ab ab ab ab ab ab ab 18 90 4e 20 81 80 80 80 80 60 28 01"#]],
    );

    let connected = ServerMessage::Connected(Connected {
        session: SessionId(0x0102_0304_0506_0708),
        secret: Secret::new([0xab; 16]),
        timeout_ms: 10_000,
        resumed: true,
        read_only: false,
        server: ServerId::new(2).unwrap(),
        zxid: zxid(1),
        limits: ServerLimits { frame_bytes: 1 << 20, in_flight: 1024 },
    });
    check(
        &bytes(|out| encode_server(&connected, out)),
        expect![[r#"
        0a 30 09 08 07 06 05 04 03 02 01 12 10 ab ab ab ab ab ab ab ab ab ab ab
        ab ab ab ab ab 18 90 4e 20 01 28 02 30 81 80 80 80 80 60 38 80 80 40 40
        80 08"#]],
    );
}

#[test]
fn requests() {
    let set = Op::SetData { path: path(), data: Some("value".into()), version: Some(-1) };
    let set = request(set, ReadLevel::Local);
    check(
        &bytes(|out| encode_client(&set, out)),
        expect![[r#"
        12 1b 08 ac 02 10 ab 02 2a 13 1a 11 0a 06 2f 61 70 70 2f 61 12 05 76 61
        6c 75 65 18 01"#]],
    );

    let get = Op::Get { path: path(), watch: Some(WatchId(5)) };
    let get = request(get, ReadLevel::AtLeast(zxid(7)));
    check(
        &bytes(|out| encode_client(&get, out)),
        expect![[r#"
        12 1d 08 ac 02 10 ab 02 18 01 20 87 80 80 80 80 60 2a 0c 22 0a 0a 06 2f
        61 70 70 2f 61 10 05"#]],
    );

    let create = Op::Create {
        path: path(),
        data: None,
        acl: Acl::open(),
        mode: CreateMode {
            lifetime: Lifetime::Ttl(60_000),
            sequential: true,
            in_line: true,
            first_child: 9,
        },
    };
    let condition = Condition { path: path(), test: Test::CreatedBy(zxid(1)) };
    let multi = Op::Multi { conditions: vec![condition], then: vec![create], otherwise: vec![] };
    let multi = request(multi, ReadLevel::Linearizable);
    check(
        &bytes(|out| encode_client(&multi, out)),
        expect![[r#"
            12 4a 08 ac 02 10 ab 02 18 02 2a 40 4a 3e 0a 0f 0a 06 2f 61 70 70 2f 61
            30 81 80 80 80 80 60 12 2b 0a 29 0a 06 2f 61 70 70 2f 61 1a 13 08 1f 12
            0f 0a 05 77 6f 72 6c 64 12 06 61 6e 79 6f 6e 65 20 03 28 e0 d4 03 30 01
            38 01 40 09"#]],
    );
}

#[test]
fn answers() {
    let data = Reply::Data { data: Some("".into()), stat: stat() };
    let data = Response { xid: Xid(300), zxid: zxid(9), result: Ok(data) };
    check(
        &bytes(|out| encode_server(&ServerMessage::Response(data), out)),
        expect![[r#"
        12 48 08 ac 02 10 89 80 80 80 80 60 1a 3c 22 3a 0a 00 12 36 08 81 80 80
        80 80 60 10 82 80 80 80 80 60 18 83 80 80 80 80 60 20 80 c0 e2 85 e3 68
        28 82 c0 e2 85 e3 68 30 08 38 09 40 0c 49 07 00 00 00 00 00 00 00 50 08
        58 09"#]],
    );

    let error = Err(Fault { code: ErrorCode::NodeExists, index: 2 });
    let error = Response { xid: Xid(300), zxid: zxid(9), result: error };
    check(
        &bytes(|out| encode_server(&ServerMessage::Response(error), out)),
        expect![[r#"
        12 29 08 ac 02 10 89 80 80 80 80 60 22 1d 08 02 10 02 1a 17 74 68 65 20
        6e 6f 64 65 20 65 78 69 73 74 73 20 61 6c 72 65 61 64 79"#]],
    );

    let event = ServerMessage::Event {
        watch: WatchId(5),
        event: Event { zxid: zxid(9), path: path(), kind: EventKind::DataChanged },
        value: Some("value".into()),
    };
    check(
        &bytes(|out| encode_server(&event, out)),
        expect![[r#"
        1a 1a 08 05 10 89 80 80 80 80 60 1a 06 2f 61 70 70 2f 61 20 03 2a 05 76
        61 6c 75 65"#]],
    );
}

/// What comes before the operation in these transactions.
const STAMP_BYTES: usize = 76;

pub(crate) fn txn(op: Op) -> Txn {
    Txn {
        semantics: 1,
        time_ms: 1_800_000_000_000,
        origin: (ServerId::new(2).unwrap(), 0x1122),
        identities: [Identity { scheme: "ip".into(), id: "::1".into() }].into(),
        digest: (zxid(4), 0x0102_0304_0506_0708),
        request: Request { session: SessionId(7), xid: Xid(300), acked: Xid(299), op },
    }
}

#[test]
fn log_entries_and_outcomes() {
    let set = Op::SetData { path: path(), data: Some("value".into()), version: None };
    check(
        &encode_txn(&txn(set)),
        expect![[r#"
            00 01 00 00 01 a3 18 5c 50 00 02 00 00 00 00 00 00 11 22 00 00 03 00 00
            00 00 04 01 02 03 04 05 06 07 08 00 00 00 01 00 00 00 02 69 70 00 00 00
            03 3a 3a 31 00 00 00 00 00 00 00 07 00 00 00 00 00 00 01 2c 00 00 00 00
            00 00 01 2b 03 00 00 00 06 2f 61 70 70 2f 61 01 00 00 00 05 76 61 6c 75
            65 00"#]],
    );

    let secret = Secret::new([0xab; 16]);
    let open = Op::CreateSession { session: SessionId(7), timeout_ms: 10_000, secret };
    check(
        &encode_txn(&txn(open)),
        expect![[r#"
            00 01 00 00 01 a3 18 5c 50 00 02 00 00 00 00 00 00 11 22 00 00 03 00 00
            00 00 04 01 02 03 04 05 06 07 08 00 00 00 01 00 00 00 02 69 70 00 00 00
            03 3a 3a 31 00 00 00 00 00 00 00 07 00 00 00 00 00 00 01 2c 00 00 00 00
            00 00 01 2b 0d 00 00 00 00 00 00 00 07 00 00 27 10 ab ab ab ab ab ab ab
            ab ab ab ab ab ab ab ab ab"#]],
    );

    let reap = Op::Reap { path: path(), seen: (zxid(3), zxid(2)) };
    check(
        &encode_txn(&txn(reap)),
        expect![[r#"
            00 01 00 00 01 a3 18 5c 50 00 02 00 00 00 00 00 00 11 22 00 00 03 00 00
            00 00 04 01 02 03 04 05 06 07 08 00 00 00 01 00 00 00 02 69 70 00 00 00
            03 3a 3a 31 00 00 00 00 00 00 00 07 00 00 00 00 00 00 01 2c 00 00 00 00
            00 00 01 2b 10 00 00 00 06 2f 61 70 70 2f 61 00 00 03 00 00 00 00 03 00
            00 03 00 00 00 00 02"#]],
    );

    let created = Ok(Reply::Created { path: path(), stat: stat() });
    check(
        &bytes(|out| encode_result(&created, out)),
        expect![[r#"
        0a 42 12 40 0a 06 2f 61 70 70 2f 61 12 36 08 81 80 80 80 80 60 10 82 80
        80 80 80 60 18 83 80 80 80 80 60 20 80 c0 e2 85 e3 68 28 82 c0 e2 85 e3
        68 30 08 38 09 40 0c 49 07 00 00 00 00 00 00 00 50 08 58 09"#]],
    );

    let fault = Err(Fault { code: ErrorCode::NodeExists, index: 2 });
    check(&bytes(|out| encode_result(&fault, out)), expect!["12 04 08 02 10 02"]);
}

/// One of each kind.
fn conditions() -> Vec<Condition> {
    let stat = StatTest {
        czxid: Some(zxid(1)),
        mzxid: Some(zxid(2)),
        pzxid: Some(zxid(3)),
        ctime_ms: Some(4),
        mtime_ms: Some(5),
        version: Some(6),
        cversion: Some(7),
        aversion: Some(8),
        ephemeral_owner: Some(SessionId(9)),
        data_length: Some(10),
        num_children: Some(11),
    };
    let tests = [
        Test::Exists,
        Test::Missing,
        Test::Version(-2),
        Test::ChildVersion(3),
        Test::CreatedBy(zxid(4)),
        Test::Data("d".into()),
        Test::Stat(Box::default()),
        Test::Stat(stat.into()),
    ];
    tests.into_iter().map(|test| Condition { path: ZPath::root(), test }).collect()
}

/// Each kind of test, lifetime and ACL, so that no field changes its place and no choice its number.
#[test]
fn log_entries_of_transactions() {
    let identity = |scheme: &str, id: &str| Identity { scheme: scheme.into(), id: id.into() };
    let acl: Arc<[Acl]> = [
        Acl { perms: Perms::READ, identity: identity("ip", "::1") },
        Acl { perms: Perms::ALL, identity: identity("auth", "") },
    ]
    .into();
    let lifetimes = [
        Lifetime::Persistent,
        Lifetime::Ephemeral,
        Lifetime::Lingering(0x11),
        Lifetime::Container,
        Lifetime::Ttl(0x22),
    ];
    let mut then: Vec<Op> = lifetimes
        .into_iter()
        .map(|lifetime| {
            let mode = CreateMode { lifetime, sequential: true, in_line: false, first_child: 0x33 };
            Op::Create { path: path(), data: Some("v".into()), acl: acl.clone(), mode }
        })
        .collect();
    let root = ZPath::root;
    then.push(Op::SetAcl { path: root(), acl: Acl::open(), version: Some(5) });
    then.push(Op::DeleteTree { path: root(), limit: 0x44 });
    let otherwise = vec![Op::Guard { path: root(), token: zxid(6) }];
    let body = encode_txn(&txn(Op::Multi { conditions: conditions(), then, otherwise }));
    check(
        &body[STAMP_BYTES..],
        expect![[r#"
        0c 00 00 00 08 00 00 00 01 2f 01 00 00 00 01 2f 02 00 00 00 01 2f 03 ff
        ff ff fe 00 00 00 01 2f 04 00 00 00 03 00 00 00 01 2f 05 00 00 03 00 00
        00 00 04 00 00 00 01 2f 06 00 00 00 01 64 00 00 00 01 2f 07 00 00 00 00
        00 00 00 00 00 00 00 00 00 00 01 2f 07 01 00 00 03 00 00 00 00 01 01 00
        00 03 00 00 00 00 02 01 00 00 03 00 00 00 00 03 01 00 00 00 00 00 00 00
        04 01 00 00 00 00 00 00 00 05 01 00 00 00 06 01 00 00 00 07 01 00 00 00
        08 01 00 00 00 00 00 00 00 09 01 00 00 00 0a 01 00 00 00 0b 00 00 00 07
        01 01 01 00 00 00 00 00 00 00 00 33 00 00 00 06 2f 61 70 70 2f 61 01 00
        00 00 01 76 00 00 00 02 01 00 00 00 02 69 70 00 00 00 03 3a 3a 31 1f 00
        00 00 04 61 75 74 68 00 00 00 00 01 02 01 00 00 00 00 00 00 00 00 33 00
        00 00 06 2f 61 70 70 2f 61 01 00 00 00 01 76 00 00 00 02 01 00 00 00 02
        69 70 00 00 00 03 3a 3a 31 1f 00 00 00 04 61 75 74 68 00 00 00 00 01 03
        00 00 00 00 00 00 00 11 01 00 00 00 00 00 00 00 00 33 00 00 00 06 2f 61
        70 70 2f 61 01 00 00 00 01 76 00 00 00 02 01 00 00 00 02 69 70 00 00 00
        03 3a 3a 31 1f 00 00 00 04 61 75 74 68 00 00 00 00 01 04 01 00 00 00 00
        00 00 00 00 33 00 00 00 06 2f 61 70 70 2f 61 01 00 00 00 01 76 00 00 00
        02 01 00 00 00 02 69 70 00 00 00 03 3a 3a 31 1f 00 00 00 04 61 75 74 68
        00 00 00 00 01 05 00 00 00 00 00 00 00 22 01 00 00 00 00 00 00 00 00 33
        00 00 00 06 2f 61 70 70 2f 61 01 00 00 00 01 76 00 00 00 02 01 00 00 00
        02 69 70 00 00 00 03 3a 3a 31 1f 00 00 00 04 61 75 74 68 00 00 00 00 04
        00 00 00 01 2f 00 00 00 01 1f 00 00 00 05 77 6f 72 6c 64 00 00 00 06 61
        6e 79 6f 6e 65 01 00 00 00 05 09 00 00 00 01 2f 00 00 00 44 00 00 00 01
        0a 00 00 00 01 2f 00 00 03 00 00 00 00 06"#]],
    );
}

/// What stands in a log before the fields of an operation.
#[test]
fn the_numbers_of_operations() {
    let (data, acl, mode) = (None, Acl::open(), CreateMode::PERSISTENT);
    let condition = Condition { path: path(), test: Test::Exists };
    let (then, otherwise) = (Vec::new(), Vec::new());
    let (session, secret) = (SessionId(7), Secret::new([0xab; 16]));
    let ops = [
        Op::Create { path: path(), data: data.clone(), acl: acl.clone(), mode },
        Op::Delete { path: path(), version: None },
        Op::SetData { path: path(), data: data.clone(), version: None },
        Op::SetAcl { path: path(), acl: acl.clone(), version: None },
        Op::Check { path: path(), version: None },
        Op::Require(condition.clone()),
        Op::CreateIfMissing { path: path(), data, acl, mode },
        Op::DeleteIfExists { path: path(), version: None },
        Op::DeleteTree { path: path(), limit: 0 },
        Op::Guard { path: path(), token: zxid(1) },
        Op::DeleteRecursive { path: path(), limit: 0 },
        Op::Multi { conditions: vec![condition], then, otherwise },
        Op::CreateSession { session, timeout_ms: 1, secret },
        Op::CloseSession,
        Op::ExpireSession,
        Op::Reap { path: path(), seen: (zxid(3), zxid(2)) },
    ];
    for (op, number) in ops.into_iter().zip(1..) {
        let body = encode_txn(&txn(op.clone()));
        assert_eq!(body[STAMP_BYTES], number, "{op:?}");
    }
}

#[test]
fn the_numbers_of_errors() {
    let number = |code: &ErrorCode| {
        // An outcome of this error: error (2) = { code (1) }.
        let outcome = bytes(|out| encode_result(&Err((*code).into()), out));
        assert_eq!(&outcome[..3], [0x12, 2, 8]);
        format!("{} {code:?}: {code}\n", outcome[3])
    };
    let numbers: String = ErrorCode::ALL.iter().map(number).collect();
    expect![[r#"
        1 NoNode: the node does not exist
        2 NodeExists: the node exists already
        3 BadVersion: the node has changed: its version is not the expected one
        4 NotEmpty: the node has children; delete them first
        5 NoChildrenForEphemerals: an ephemeral node can have no children
        6 ConditionFailed: a condition does not hold, or what a guard names is not held
        7 RolledBack: undone, because a later operation of the multi failed
        8 NotTried: not tried, because an earlier operation of the multi failed
        9 BadArguments: the request is not valid
        10 TooLarge: the request is over a limit of the server
        11 InvalidAcl: the access control list is empty or not valid
        12 NoAuth: the session has no permission for this
        13 AuthFailed: the credentials were refused
        14 SessionExpired: the session has ended; open a new one
        15 SessionMoved: the session is attached to another server
        16 NoWatcher: no such watch is set
        17 Unimplemented: this server does not know that operation
        18 QuotaExceeded: a quota would be exceeded
        19 NoSpace: the servers are short of disk space; only reads and deletes are accepted
        20 Throttled: too much at once; try again later
        21 Unavailable: the server has no leader at the moment; try another
        22 SequenceOverflow: the parent's counter of sequential nodes is used up
        23 OutcomeUnknown: the retry came too late: the outcome is not known
        24 NotReadOnly: the server is read-only: it cannot reach a quorum
        25 EphemeralOnLocalSession: a local session cannot own ephemeral nodes
    "#]]
    .assert_eq(&numbers);
}
