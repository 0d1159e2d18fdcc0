//! Servers that break the protocol.

use conclave_client::Client;
use conclave_client::proto::message::Refused;
use conclave_client::proto::{ServerMessage, WatchId};
use conclave_client::{ErrorCode, EventKind, Reply, Stat};

use crate::fake::{Fake, Peer, connected, data, event, get, soon, z};

/// What a server can do wrong.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    Garbage,
    HugeFrame,
    EmptyFrame,
    AnswerNobodyAsked,
    AnswerOutOfTurn,
    UnnumberedAnswer,
    SecondHandshake,
    LateRefusal,
    PongWithoutPing,
}

const ALL: [Wrong; 9] = [
    Wrong::Garbage,
    Wrong::HugeFrame,
    Wrong::EmptyFrame,
    Wrong::AnswerNobodyAsked,
    Wrong::AnswerOutOfTurn,
    Wrong::UnnumberedAnswer,
    Wrong::SecondHandshake,
    Wrong::LateRefusal,
    Wrong::PongWithoutPing,
];

impl Wrong {
    /// Does it while the request 1 waits for its answer.
    async fn happen(self, peer: &mut Peer) {
        match self {
            Wrong::Garbage => peer.send_bytes(b"\0\0\0\x05\xff\xff\xff\xff\xff").await,
            Wrong::HugeFrame => peer.send_bytes(b"HTTP/1.1 400 Bad Request\r\n").await,
            Wrong::EmptyFrame => peer.send_bytes(&[0; 4]).await,
            Wrong::AnswerNobodyAsked => {
                peer.answer(1, 1, data("")).await;
                peer.answer(2, 1, data("")).await;
            }
            Wrong::AnswerOutOfTurn => peer.answer(9, 1, data("")).await,
            Wrong::UnnumberedAnswer => peer.answer(0, 1, Ok(Reply::Done)).await,
            Wrong::SecondHandshake => peer.connected(true).await,
            Wrong::LateRefusal => {
                let message = "no".to_owned();
                let refused = Refused { code: ErrorCode::Throttled, message, backoff_ms: 0 };
                peer.send(ServerMessage::Refused(refused)).await;
            }
            Wrong::PongWithoutPing => {
                peer.send(ServerMessage::Pong { zxid: z(1), counted_ms_ago: None }).await
            }
        }
    }
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_is_left_and_nothing_is_lost() {
    for wrong in ALL {
        let fake = Fake::start().await;
        let (client, mut peer) = connected(&fake).await;
        let first = client.get("/a").send();
        peer.expect(1, get("/a")).await;
        wrong.happen(&mut peer).await;
        peer.is_closed().await;
        let mut peer = fake.resume().await;
        let second = client.get("/b").send();
        if !matches!(wrong, Wrong::AnswerNobodyAsked) {
            peer.expect(1, get("/a")).await;
            peer.answer(1, 1, data("")).await;
        }
        peer.expect(2, get("/b")).await;
        peer.answer(2, 1, data("")).await;
        soon(first).await.unwrap_or_else(|error| panic!("{wrong:?}: {error}"));
        soon(second).await.unwrap_or_else(|error| panic!("{wrong:?}: {error}"));
    }
}

#[tokio::test]
async fn a_server_that_does_not_begin_with_the_handshake_is_left() {
    let fake = Fake::start().await;
    let script = async {
        for speaks_too_early in [true, false] {
            let mut peer = fake.accept().await;
            if !speaks_too_early {
                peer.connect().await;
            }
            peer.answer(0, 1, Ok(Reply::Stat(Stat::default()))).await;
        }
        fake.open().await
    };
    let (client, _peer) = tokio::join!(soon(Client::connect(fake.address())), script);
    client.unwrap();
}

#[tokio::test]
async fn events_of_watches_that_nobody_set_are_ignored() {
    let fake = Fake::start().await;
    let (client, mut peer) = connected(&fake).await;
    peer.tell(77, event(1, "/a", EventKind::Created)).await;
    peer.send(ServerMessage::Gap { watch: WatchId(78), resumed_at: z(1) }).await;
    let get_a = client.get("/a").send();
    peer.expect(1, get("/a")).await;
    peer.answer(1, 1, data("a")).await;
    soon(get_a).await.unwrap();
}
