//! A client that says exactly what it is told to.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use bytes::BytesMut;
use conclave_proto::convert::{decode_server, encode_client};
use conclave_proto::frame::{next_frame, write_frame};
use conclave_proto::message::{Connect, Connected, PROTOCOL_VERSION};
use conclave_proto::request::ReadLevel;
use conclave_proto::{
    Acl, ClientMessage, CreateMode, Fault, Op, Reply, Secret, ServerMessage, SessionId, Xid, ZPath,
    Zxid,
};

use crate::server::DEADLINE;

pub(crate) struct Client {
    socket: TcpStream,
    received: BytesMut,
    xid: u64,
}

/// The handshake that opens a session, or resumes one.
pub(crate) fn connect(session: Option<(SessionId, Secret)>) -> ClientMessage {
    connect_for(600_000, session)
}

fn connect_for(timeout_ms: u32, session: Option<(SessionId, Secret)>) -> ClientMessage {
    ClientMessage::Connect(Connect {
        version: PROTOCOL_VERSION,
        session,
        timeout_ms,
        last_zxid: Zxid::ZERO,
        read_only: false,
    })
}

pub(crate) fn path(path: &str) -> ZPath {
    ZPath::new(path).unwrap()
}

pub(crate) fn create(at: &str, bytes: usize) -> Op {
    let data = Some(vec![b'x'; bytes].into());
    Op::Create { path: path(at), data, acl: Acl::open(), mode: CreateMode::PERSISTENT }
}

pub(crate) fn get(at: &str) -> Op {
    Op::Get { path: path(at), watch: None }
}

impl Client {
    /// A connection without a session.
    pub(crate) fn dial(address: SocketAddr) -> Client {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.set_write_timeout(Some(DEADLINE)).unwrap();
        socket.set_nodelay(true).unwrap();
        Client { socket, received: BytesMut::new(), xid: 0 }
    }

    /// A connection with a new session.
    pub(crate) fn open(address: SocketAddr) -> Client {
        Client::open_session(address).0
    }

    pub(crate) fn open_session(address: SocketAddr) -> (Client, Connected) {
        Client::open_for(address, 600_000)
    }

    /// A connection with a new session that ends after so many ms without a sign of life.
    pub(crate) fn open_for(address: SocketAddr, timeout_ms: u32) -> (Client, Connected) {
        let mut client = Client::dial(address);
        client.say(&connect_for(timeout_ms, None));
        match client.hear() {
            Some(ServerMessage::Connected(connected)) => (client, connected),
            other => panic!("no session: {other:?}"),
        }
    }

    /// Sends bytes as they are. A server that has closed already takes none: that is no failure.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).ok();
    }

    /// Says that nothing more will be sent.
    pub(crate) fn hang_up(&mut self) {
        self.socket.shutdown(Shutdown::Write).unwrap();
    }

    /// Sends a frame with this body.
    pub(crate) fn send_frame(&mut self, body: &[u8]) {
        let mut out = BytesMut::new();
        write_frame(&mut out, |out| out.extend_from_slice(body));
        self.send(&out);
    }

    pub(crate) fn say(&mut self, message: &ClientMessage) {
        let mut out = BytesMut::new();
        write_frame(&mut out, |out| encode_client(message, out));
        self.send(&out);
    }

    /// The next message; `None`: the server has closed.
    pub(crate) fn hear(&mut self) -> Option<ServerMessage> {
        loop {
            if let Some(frame) = next_frame(&mut self.received, usize::MAX).unwrap() {
                return Some(decode_server(frame).unwrap());
            }
            let mut chunk = [0; 16 << 10];
            match self.socket.read(&mut chunk) {
                Ok(0) => return None,
                Ok(read) => self.received.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("the server says nothing: {error}"),
            }
        }
    }

    /// Sends a request without waiting for its answer.
    pub(crate) fn ask(&mut self, op: Op) -> Xid {
        self.ask_at(ReadLevel::Local, op)
    }

    /// The same for a read that is to be so fresh.
    pub(crate) fn ask_at(&mut self, level: ReadLevel, op: Op) -> Xid {
        let xid = self.next_xid();
        self.say(&ClientMessage::Request { xid, acked: Xid(0), level, op });
        xid
    }

    /// The number that the next request has, if it is sent by other means.
    pub(crate) fn next_xid(&mut self) -> Xid {
        self.xid += 1;
        Xid(self.xid)
    }

    /// The answer to a request.
    pub(crate) fn answer(&mut self, to: Xid) -> Result<Reply, Fault> {
        loop {
            match self.hear() {
                Some(ServerMessage::Response(response)) => {
                    assert_eq!(response.xid, to, "answers come in the order of the requests");
                    return response.result;
                }
                Some(_) => {}
                None => panic!("closed before an answer"),
            }
        }
    }

    /// Asks and waits for the answer.
    pub(crate) fn call(&mut self, op: Op) -> Result<Reply, Fault> {
        let xid = self.ask(op);
        self.answer(xid)
    }

    /// Hears until the server closes, and returns the last message.
    pub(crate) fn last_words(&mut self) -> Option<ServerMessage> {
        let mut last = None;
        while let Some(message) = self.hear() {
            last = Some(message);
        }
        last
    }
}
