//! A client of Conclave's own protocol.

use bytes::BytesMut;
use conclave_proto::convert::{decode_server, encode_client};
use conclave_proto::frame::{next_frame, write_frame};
use conclave_proto::message::{Connect, PROTOCOL_VERSION};
use conclave_proto::request::ReadLevel;
use conclave_proto::{
    ClientMessage, Event, Op, Response, ServerMessage, SessionId, WatchId, Xid, Zxid,
};

use crate::answer::{Answer, number};
use crate::connect::{Client, Stream, Told};

pub(crate) struct Native {
    stream: Box<dyn Stream>,
    received: BytesMut,
    session: SessionId,
    xid: u64,
    told: Vec<(WatchId, Event)>,
}

impl Native {
    pub(crate) fn open(stream: Box<dyn Stream>) -> Native {
        let (received, session) = (BytesMut::new(), SessionId::NONE);
        let mut client = Native { stream, received, session, xid: 0, told: Vec::new() };
        client.say(&ClientMessage::Connect(Connect {
            version: PROTOCOL_VERSION,
            session: None,
            timeout_ms: 600_000,
            last_zxid: Zxid::ZERO,
            read_only: false,
        }));
        match client.hear() {
            ServerMessage::Connected(connected) => client.session = connected.session,
            other => panic!("no session: {other:?}"),
        }
        client
    }

    fn say(&mut self, message: &ClientMessage) {
        let mut out = BytesMut::new();
        write_frame(&mut out, |out| encode_client(message, out));
        self.stream.write_all(&out).unwrap();
    }

    /// The next message that is not of a watch.
    fn hear(&mut self) -> ServerMessage {
        loop {
            if let Some(frame) = next_frame(&mut self.received, usize::MAX).unwrap() {
                match decode_server(frame).unwrap() {
                    ServerMessage::Event { watch, event, .. } => self.told.push((watch, event)),
                    message => return message,
                }
                continue;
            }
            let mut chunk = [0; 16 << 10];
            let read = self.stream.read(&mut chunk).unwrap();
            assert!(read > 0, "the server has closed");
            self.received.extend_from_slice(&chunk[..read]);
        }
    }
}

impl Client for Native {
    fn session(&self) -> u64 {
        self.session.0
    }

    fn ask(&mut self, op: &Op) -> Answer {
        self.xid += 1;
        let (xid, acked, level) = (Xid(self.xid), Xid(0), ReadLevel::Local);
        self.say(&ClientMessage::Request { xid, acked, level, op: op.clone() });
        match self.hear() {
            ServerMessage::Response(Response { xid: answered, zxid, result }) => {
                assert_eq!(answered, xid);
                let result = result.map_err(|fault| (number(fault.code), fault.index));
                Answer { zxid: zxid.bits(), result }
            }
            other => panic!("no answer: {other:?}"),
        }
    }

    fn told(&mut self) -> Vec<Told> {
        self.say(&ClientMessage::Ping);
        match self.hear() {
            ServerMessage::Pong { .. } => {}
            other => panic!("no pong: {other:?}"),
        }
        // Here each watch has a number and tells for itself; ZooKeeper's clients are told once,
        // however many of their watches a change fires.
        let mut told = Vec::new();
        let (mut last, mut by) = (None, Vec::new());
        for (watch, event) in self.told.drain(..) {
            if last.as_ref() != Some(&event) || by.contains(&watch) {
                let Event { zxid, path, kind } = event.clone();
                told.push(Told { zxid: zxid.bits(), kind, path: path.to_string() });
                last = Some(event);
                by.clear();
            }
            by.push(watch);
        }
        told
    }
}
