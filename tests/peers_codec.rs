//! What servers say to each other survives its encoding; anything else is refused.

#![expect(clippy::unwrap_used, reason = "what is made here is valid")]

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use conclave::limits::BATCH_ENTRIES;
use conclave::peers::codec::{decode, encode};
use conclave::replica::{Claim, Forward, Forwarded, PeerMessage, Strain, Touch, Touched};
use conclave::zab::{
    Ballot, Entry, FromFollower, FromLeader, Message, Position, Standing, SyncStart,
};
use conclave_proto::{
    CreateMode, Epoch, ErrorCode, Fault, Identity, Op, Request, Secret, ServerId, SessionId, Xid,
    ZPath, Zxid,
};
use expect_test::expect;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn encoded(message: &PeerMessage) -> Bytes {
    let mut out = BytesMut::new();
    encode(message, &mut out);
    out.freeze()
}

fn epoch() -> impl Strategy<Value = Epoch> {
    (0..=Epoch::MAX.get()).prop_map(|number| Epoch::new(number).unwrap())
}

fn zxid() -> impl Strategy<Value = Zxid> {
    any::<u64>().prop_map(Zxid::from_bits)
}

fn server() -> impl Strategy<Value = ServerId> {
    (1..=254u8).prop_map(|number| ServerId::new(number).unwrap())
}

fn session() -> impl Strategy<Value = SessionId> {
    any::<u64>().prop_map(SessionId)
}

fn position() -> impl Strategy<Value = Position> {
    (zxid(), any::<u32>()).prop_map(|(zxid, chain)| Position { zxid, chain })
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let entry = (zxid(), any::<u32>(), vec(any::<u8>(), 0..40))
        .prop_map(|(zxid, chain, body)| Entry { zxid, chain, body: body.into() });
    vec(entry, 0..5)
}

fn standing() -> impl Strategy<Value = Standing> {
    prop_oneof![
        (option::of(server()), any::<bool>())
            .prop_map(|(choice, electable)| Standing::Looking { choice, electable }),
        server().prop_map(|leader| Standing::Following { leader }),
        (epoch(), any::<bool>())
            .prop_map(|(epoch, established)| Standing::Leading { epoch, established }),
    ]
}

fn ballot() -> impl Strategy<Value = Message> {
    (any::<u64>(), any::<u64>(), standing(), epoch(), zxid(), vec(server(), 0..7)).prop_map(
        |(life, count, standing, current, last, hears)| {
            Message::Ballot(Ballot { life, count, standing, current, last, hears })
        },
    )
}

fn from_leader() -> impl Strategy<Value = FromLeader> {
    let start = prop_oneof![
        position().prop_map(SyncStart::After),
        position().prop_map(SyncStart::Snapshot)
    ];
    prop_oneof![
        any::<u64>().prop_map(|join| FromLeader::NewEpoch { join }),
        position().prop_map(|after| FromLeader::Fetch { after }),
        (start, position()).prop_map(|(start, upto)| FromLeader::Sync { start, upto }),
        zxid().prop_map(|commit| FromLeader::UpToDate { commit }),
        (position(), entries(), zxid(), any::<bool>()).prop_map(
            |(previous, entries, commit, delay_ack)| {
                FromLeader::Propose { previous, entries, commit, delay_ack }
            }
        ),
        zxid().prop_map(|commit| FromLeader::Commit { commit }),
        (any::<u64>(), zxid()).prop_map(|(round, commit)| FromLeader::Heartbeat { round, commit }),
        Just(FromLeader::Restart),
        server().prop_map(|to| FromLeader::HandOver { to }),
    ]
}

fn from_follower() -> impl Strategy<Value = FromFollower> {
    prop_oneof![
        (any::<bool>(), epoch(), position()).prop_map(|(promised, current, last)| {
            FromFollower::AckEpoch { promised, current, last }
        }),
        (position(), entries(), position())
            .prop_map(|(after, entries, last)| FromFollower::History { after, entries, last }),
        position().prop_map(|have| FromFollower::Diverged { have }),
        (zxid(), any::<bool>()).prop_map(|(durable, synced)| FromFollower::Ack { durable, synced }),
        position().prop_map(|last| FromFollower::Gap { last }),
        (any::<u64>(), zxid(), zxid(), any::<bool>(), any::<bool>()).prop_map(
            |(round, received, durable, synced, active)| {
                FromFollower::HeartbeatAck { round, received, durable, synced, active }
            }
        ),
    ]
}

fn zab() -> impl Strategy<Value = Message> {
    prop_oneof![
        ballot(),
        (any::<u64>(), epoch(), any::<bool>())
            .prop_map(|(join, accepted, damaged)| Message::Join { join, accepted, damaged }),
        (epoch(), any::<u64>(), from_leader())
            .prop_map(|(epoch, sync, body)| Message::FromLeader { epoch, sync, body }),
        (epoch(), any::<u64>(), from_follower())
            .prop_map(|(epoch, sync, body)| Message::FromFollower { epoch, sync, body }),
    ]
}

fn claim() -> impl Strategy<Value = Claim> {
    zxid().prop_map(Claim)
}

fn forwarded() -> impl Strategy<Value = Forwarded> {
    let op = prop_oneof![
        vec(any::<u8>(), 0..100).prop_map(|data| Op::Create {
            path: ZPath::new("/locks/one").unwrap(),
            data: Some(data.into()),
            acl: conclave_proto::Acl::open(),
            mode: CreateMode::EPHEMERAL_SEQUENTIAL,
        }),
        (session(), any::<u32>(), any::<[u8; 16]>()).prop_map(|(session, timeout_ms, secret)| {
            Op::CreateSession { session, timeout_ms, secret: Secret::new(secret) }
        }),
        Just(Op::CloseSession),
    ];
    let identity = "[a-z]{1,8}".prop_map(|id| Identity { scheme: "ip".into(), id }).boxed();
    let who = (vec(identity, 0..3), proptest::option::of(claim()));
    (1..1_u64 << 63, who, session(), any::<u64>(), any::<u64>(), op).prop_map(
        |(tag, (identities, claim), session, xid, acked, op)| Forwarded {
            tag,
            identities: identities.into(),
            claim,
            request: Request { session, xid: Xid(xid), acked: Xid(acked), op },
        },
    )
}

fn touch() -> impl Strategy<Value = PeerMessage> {
    let touched = (session(), any::<u32>(), claim()).prop_map(|(session, age_ms, claim)| Touched {
        session,
        age_ms,
        claim,
    });
    let report = option::of(any::<u64>());
    let numbers = (epoch(), any::<u64>(), any::<u64>(), any::<u64>(), report);
    (numbers, any::<[bool; 3]>(), vec(touched, 0..5)).prop_map(|(numbers, flags, sessions)| {
        let (epoch, polled_ms, stream, forwarded, report) = numbers;
        let [low_space, is_behind, has_clients] = flags;
        PeerMessage::Touch(Touch {
            epoch,
            polled_ms,
            stream,
            forwarded,
            strain: Strain { low_space, is_behind },
            has_clients,
            report,
            sessions,
        })
    })
}

fn message() -> impl Strategy<Value = PeerMessage> {
    let fault = (any::<u32>()).prop_map(|index| Fault { code: ErrorCode::Throttled, index });
    prop_oneof![
        6 => zab().prop_map(PeerMessage::Zab),
        2 => (epoch(), any::<u64>(), any::<u64>(), vec(forwarded(), 0..4)).prop_map(
            |(epoch, stream, first, requests)| {
                PeerMessage::Forward(Forward { epoch, stream, first, requests })
            }
        ),
        1 => touch(),
        1 => (epoch(), any::<u64>(), any::<u64>())
            .prop_map(|(epoch, stream, first)| PeerMessage::Resend { epoch, stream, first }),
        1 => (epoch(), any::<u64>())
            .prop_map(|(epoch, stream)| PeerMessage::Retired { epoch, stream }),
        1 => (epoch(), any::<u64>(), vec((any::<u64>(), fault), 0..4)).prop_map(
            |(epoch, stream, requests)| PeerMessage::Rejected { epoch, stream, requests }
        ),
        1 => (epoch(), any::<u64>())
            .prop_map(|(epoch, now_ms)| PeerMessage::Poll { epoch, now_ms }),
        1 => (epoch(), any::<u64>(), session(), any::<[u8; 16]>()).prop_map(
            |(epoch, conn, session, secret)| {
                PeerMessage::Attach { epoch, conn, session, secret: Secret::new(secret) }
            }
        ),
        1 => (epoch(), any::<u64>(), session())
            .prop_map(|(epoch, conn, session)| PeerMessage::Gone { epoch, conn, session }),
        1 => (epoch(), any::<u64>())
            .prop_map(|(epoch, read)| PeerMessage::ReadIndex { epoch, read }),
        1 => (epoch(), any::<u64>(), vec(session(), 0..5))
            .prop_map(|(epoch, report, refused)| PeerMessage::Counted { epoch, report, refused }),
        1 => (epoch(), any::<u64>(), zxid())
            .prop_map(|(epoch, read, commit)| PeerMessage::ReadAt { epoch, read, commit }),
    ]
}

proptest! {
    #[test]
    fn every_message_comes_back(message in message()) {
        prop_assert_eq!(decode(&encoded(&message)), Ok(message));
    }

    /// A message that ends early, or goes on, is not one.
    #[test]
    fn other_lengths_are_refused(message in message(), cut in any::<prop::sample::Index>()) {
        let bytes = encoded(&message);
        let cut = cut.index(bytes.len());
        prop_assert!(decode(&bytes.slice(..cut)).is_err());
        prop_assert!(decode(&[&bytes[..], &[0]].concat().into()).is_err());
    }

    /// Damage either is noticed or makes another message; it does no harm.
    #[test]
    fn damage_does_no_harm(
        message in message(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = encoded(&message).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(other) = decode(&bytes.into()) {
            prop_assert_eq!(decode(&encoded(&other)), Ok(other));
        }
    }

    #[test]
    fn garbage_does_no_harm(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(message) = decode(&bytes.into()) {
            prop_assert_eq!(decode(&encoded(&message)), Ok(message));
        }
    }
}

fn proposal(entries: Vec<Entry>) -> PeerMessage {
    PeerMessage::Zab(Message::FromLeader {
        epoch: Epoch::new(3).unwrap(),
        sync: 9,
        body: FromLeader::Propose {
            previous: Position { zxid: Zxid::new(Epoch::new(3).unwrap(), 16), chain: 0xaabb_ccdd },
            entries,
            commit: Zxid::new(Epoch::new(3).unwrap(), 15),
            delay_ack: false,
        },
    })
}

/// The bodies of entries are what most of the bytes between servers are.
#[test]
fn bodies_share_the_memory_of_the_message() {
    let body = Bytes::from(vec![7; 1000]);
    let zxid = Zxid::new(Epoch::new(3).unwrap(), 17);
    let bytes = encoded(&proposal(vec![Entry { zxid, chain: 1, body }]));
    let memory = bytes.as_ptr_range();
    let PeerMessage::Zab(Message::FromLeader { body: FromLeader::Propose { entries, .. }, .. }) =
        decode(&bytes).unwrap()
    else {
        panic!("a proposal")
    };
    assert!(memory.contains(&entries[0].body.as_ptr()));
}

/// A list's length is not believed before it is known to fit, neither is a list over its limit.
#[test]
fn long_lists_are_refused() {
    let mut bytes = encoded(&proposal(Vec::new())).to_vec();
    let count = bytes.len() - 13;
    bytes[count..count + 4].copy_from_slice(&u32::MAX.to_be_bytes());
    expect!["malformed message: it ends too early"]
        .assert_eq(&decode(&bytes.clone().into()).unwrap_err().to_string());

    let many = u32::try_from(BATCH_ENTRIES + 1).unwrap();
    bytes[count..count + 4].copy_from_slice(&many.to_be_bytes());
    bytes.resize(bytes.len() + 16 * (BATCH_ENTRIES + 1), 0);
    expect!["malformed message: a list of 4097, where 4096 are allowed"]
        .assert_eq(&decode(&bytes.into()).unwrap_err().to_string());
}

/// Servers of different releases talk to each other: these bytes may not change.
#[test]
fn the_layout_is_fixed() {
    let zxid = Zxid::new(Epoch::new(3).unwrap(), 17);
    let entry = Entry { zxid, chain: 0x0102_0304, body: Bytes::from_static(b"body") };
    expect![[r#"
        01 03 00000003 0000000000000009 05
        0000030000000010 aabbccdd
        00000001 0000030000000011 01020304 00000004 626f6479
        000003000000000f 00"#]]
    .assert_eq(&grouped(
        &encoded(&proposal(vec![entry])),
        &[1, 1, 4, 8, 1, 0, 8, 4, 0, 4, 8, 4, 4, 4, 0, 8],
    ));

    let ack = PeerMessage::Zab(Message::FromFollower {
        epoch: Epoch::new(3).unwrap(),
        sync: 9,
        body: FromFollower::Ack { durable: zxid, synced: true },
    });
    expect!["01 04 00000003 0000000000000009 04 0000030000000011 01"]
        .assert_eq(&grouped(&encoded(&ack), &[1, 1, 4, 8, 1, 8, 1]));

    let forward = forward(7);
    expect!["02 00000003 0000000000000005 0000000000000006 00000001 0000000000000007 01000003 000000000400000001000000026970000000033a3a310000000000000008000000000000000100000000000000000e"].assert_eq(&grouped(&encoded(&forward), &[1, 4, 8, 8, 4, 8, 4]));
}

fn forward(tag: u64) -> PeerMessage {
    PeerMessage::Forward(Forward {
        epoch: Epoch::new(3).unwrap(),
        stream: 5,
        first: 6,
        requests: vec![Forwarded {
            tag,
            identities: Arc::new([Identity { scheme: "ip".into(), id: "::1".into() }]),
            claim: Some(Claim(Zxid::new(Epoch::new(3).unwrap(), 4))),
            request: Request {
                session: SessionId(8),
                xid: Xid(1),
                acked: Xid(0),
                op: Op::CloseSession,
            },
        }],
    })
}

/// The mark of what the leader itself asks for, which is never refused, is not for others.
#[test]
fn a_write_of_nobody_is_refused() {
    expect!["malformed message: a write that no client asked for"]
        .assert_eq(&decode(&encoded(&forward(0))).unwrap_err().to_string());
}

/// The bytes in hexadecimal, in groups of these sizes; 0 begins a line.
fn grouped(mut bytes: &[u8], sizes: &[usize]) -> String {
    let mut text = String::new();
    for &size in sizes {
        if size == 0 {
            text.pop();
            text.push('\n');
            continue;
        }
        let (group, rest) = bytes.split_at(size);
        bytes = rest;
        text.extend(group.iter().map(|byte| format!("{byte:02x}")));
        text.push(' ');
    }
    text.extend(bytes.iter().map(|byte| format!("{byte:02x}")));
    text.trim_end().to_owned()
}
