//! A server that does what a test tells it.

use std::future::Future;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use conclave_client::proto::convert::{decode_client, encode_server};
use conclave_client::proto::frame::{next_frame, write_frame};
use conclave_client::proto::message::{Connect, Connected, Refused, ServerLimits};
use conclave_client::proto::request::{ReadLevel, Response};
use conclave_client::proto::{ClientMessage, Event, Op, Secret, ServerMessage, WatchId, Xid};
use conclave_client::{
    Builder, Client, ErrorCode, EventKind, Fault, Reply, ServerId, SessionId, Stat, ZPath, Zxid,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// How long anything in these tests may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The output of `future`, which has to come.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("this should not take so long")
}

pub(crate) const SESSION: SessionId = SessionId(0x0100_0000_0000_abcd);
pub(crate) const LIMITS: ServerLimits = ServerLimits { frame_bytes: 1 << 20, in_flight: 100 };

pub(crate) fn z(number: u64) -> Zxid {
    Zxid::from_bits(number)
}

pub(crate) fn path(text: &str) -> ZPath {
    ZPath::new(text).unwrap()
}

pub(crate) fn secret() -> Secret {
    Secret::new([7; 16])
}

pub(crate) fn event(number: u64, text: &str, kind: EventKind) -> Event {
    Event { zxid: z(number), path: path(text), kind }
}

pub(crate) fn data(text: &'static str) -> Result<Reply, Fault> {
    Ok(Reply::Data { data: Some(Bytes::from_static(text.as_bytes())), stat: Stat::default() })
}

pub(crate) fn created(text: &str) -> Result<Reply, Fault> {
    Ok(Reply::Created { path: path(text), stat: Stat::default() })
}

/// A listening server.
pub(crate) struct Fake(TcpListener);

impl Fake {
    pub(crate) async fn start() -> Fake {
        Fake(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub(crate) fn address(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> Peer {
        let (stream, _) = soon(self.0.accept()).await.unwrap();
        Peer { stream, received: BytesMut::new() }
    }

    /// The next connection, on which a new session is opened.
    pub(crate) async fn open(&self) -> Peer {
        let mut peer = self.accept().await;
        let connect = peer.connect().await;
        assert_eq!(connect.session, None, "a new session was expected");
        peer.connected(false).await;
        peer
    }

    /// The next connection, on which the session is resumed.
    pub(crate) async fn resume(&self) -> Peer {
        let mut peer = self.accept().await;
        let connect = peer.connect().await;
        assert_eq!(connect.session, Some((SESSION, secret())));
        peer.connected(true).await;
        peer
    }
}

/// A server that cannot be reached, and from which not even a refusal comes.
pub(crate) struct Unreachable {
    listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl Unreachable {
    pub(crate) async fn start() -> Unreachable {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        // Nobody accepts the connections, until the system takes no more.
        let mut waiting = Vec::new();
        let connect =
            || tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address));
        while let Ok(stream) = connect().await {
            waiting.push(stream.unwrap());
        }
        Unreachable { listener, _waiting: waiting }
    }

    pub(crate) fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }
}

/// A client of one server, and the server's end of its connection.
pub(crate) async fn connected(fake: &Fake) -> (Client, Peer) {
    let (client, peer) = tokio::join!(soon(Client::connect(fake.address())), fake.open());
    (client.unwrap(), peer)
}

/// A client with a session on a server of these limits, and the server's end of it.
pub(crate) async fn connected_within(fake: &Fake, limits: ServerLimits) -> (Client, Peer) {
    connected_by(fake, Client::builder(), limits, 10_000).await
}

/// A client that is made so, with a session of that timeout, and the server's end of its connection.
pub(crate) async fn connected_by(
    fake: &Fake,
    builder: Builder,
    limits: ServerLimits,
    timeout_ms: u32,
) -> (Client, Peer) {
    let script = async {
        let mut peer = fake.accept().await;
        peer.connect().await;
        peer.connected_with(false, limits, timeout_ms).await;
        peer
    };
    let connecting = builder.servers(fake.address()).connect();
    let (client, peer) = tokio::join!(soon(connecting), script);
    (client.unwrap(), peer)
}

/// The server's end of a connection.
pub(crate) struct Peer {
    stream: TcpStream,
    received: BytesMut,
}

/// A request as it came.
#[derive(Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) xid: u64,
    pub(crate) acked: u64,
    pub(crate) level: ReadLevel,
    pub(crate) op: Op,
}

impl Peer {
    /// The next message; `None` if the client has closed the connection.
    pub(crate) async fn receive(&mut self) -> Option<ClientMessage> {
        loop {
            if let Some(frame) = next_frame(&mut self.received, 2 << 20).unwrap() {
                return Some(decode_client(frame).unwrap());
            }
            match soon(self.stream.read_buf(&mut self.received)).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    pub(crate) async fn send(&mut self, message: ServerMessage) {
        let mut bytes = BytesMut::new();
        write_frame(&mut bytes, |body| encode_server(&message, body));
        self.send_bytes(&bytes).await;
    }

    /// Sends all of them at once.
    pub(crate) async fn send_all(&mut self, messages: impl Iterator<Item = ServerMessage>) {
        let mut bytes = BytesMut::new();
        for message in messages {
            write_frame(&mut bytes, |body| encode_server(&message, body));
        }
        self.send_bytes(&bytes).await;
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The handshake's first half.
    pub(crate) async fn connect(&mut self) -> Connect {
        match self.receive().await {
            Some(ClientMessage::Connect(connect)) => connect,
            other => panic!("a handshake was expected, not {other:?}"),
        }
    }

    /// The handshake's second half.
    pub(crate) async fn connected(&mut self, resumed: bool) {
        self.connected_with(resumed, LIMITS, 10_000).await;
    }

    pub(crate) async fn connected_with(
        &mut self,
        resumed: bool,
        limits: ServerLimits,
        timeout_ms: u32,
    ) {
        let connected = Connected {
            session: SESSION,
            secret: secret(),
            timeout_ms,
            resumed,
            read_only: false,
            server: ServerId::new(1).unwrap(),
            zxid: z(1),
            limits,
        };
        self.send(ServerMessage::Connected(connected)).await;
    }

    pub(crate) async fn refuse(&mut self, code: ErrorCode, message: &str) {
        let message = message.to_owned();
        self.send(ServerMessage::Refused(Refused { code, message, backoff_ms: 0 })).await;
    }

    /// The next request; pings are answered.
    pub(crate) async fn request(&mut self) -> Asked {
        loop {
            match self.receive().await {
                Some(ClientMessage::Request { xid, acked, level, op }) => {
                    return Asked { xid: xid.0, acked: acked.0, level, op };
                }
                Some(ClientMessage::Ping) => {
                    self.send(ServerMessage::Pong { zxid: z(0), counted_ms_ago: Some(0) }).await
                }
                other => panic!("a request was expected, not {other:?}"),
            }
        }
    }

    /// The next request has this number and asks this.
    pub(crate) async fn expect(&mut self, xid: u64, op: Op) {
        let asked = self.request().await;
        assert_eq!((asked.xid, asked.op), (xid, op));
    }

    pub(crate) async fn answer(&mut self, xid: u64, zxid: u64, result: Result<Reply, Fault>) {
        let response = Response { xid: Xid(xid), zxid: z(zxid), result };
        self.send(ServerMessage::Response(response)).await;
    }

    pub(crate) async fn fault(&mut self, xid: u64, zxid: u64, code: ErrorCode) {
        self.answer(xid, zxid, Err(code.into())).await;
    }

    pub(crate) async fn tell(&mut self, watch: u64, event: Event) {
        let watch = WatchId(watch);
        self.send(ServerMessage::Event { watch, event, value: None }).await;
    }

    /// The client has closed the connection, and said nothing more before.
    pub(crate) async fn is_closed(&mut self) {
        assert_eq!(self.receive().await, None);
    }
}

pub(crate) fn get(text: &str) -> Op {
    Op::Get { path: path(text), watch: None }
}

pub(crate) fn set(text: &str, data: &'static str) -> Op {
    let data = Some(Bytes::from_static(data.as_bytes()));
    Op::SetData { path: path(text), data, version: None }
}
