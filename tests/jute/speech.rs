//! Speaking the protocol by hand.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use conclave::wire::{Inbound, Then, Wire};
use conclave_proto::message::{Connected, ServerLimits};
use conclave_proto::{
    ClientMessage, Event, EventKind, Fault, Op, Reply, Response, Secret, ServerId, ServerMessage,
    SessionId, WatchId, Xid, ZPath, Zxid,
};

pub(crate) fn path(text: &str) -> ZPath {
    ZPath::new(text).unwrap()
}

/// A request's body being written.
#[derive(Clone, Default)]
pub(crate) struct Body(pub(crate) BytesMut);

impl Body {
    pub(crate) fn new() -> Body {
        Body::default()
    }

    pub(crate) fn int(mut self, number: i32) -> Body {
        self.0.put_i32(number);
        self
    }

    pub(crate) fn long(mut self, number: i64) -> Body {
        self.0.put_i64(number);
        self
    }

    pub(crate) fn bool(mut self, value: bool) -> Body {
        self.0.put_u8(value.into());
        self
    }

    pub(crate) fn text(self, text: &str) -> Body {
        let mut body = self.int(i32::try_from(text.len()).unwrap());
        body.0.put_slice(text.as_bytes());
        body
    }

    pub(crate) fn texts(self, texts: &[&str]) -> Body {
        let count = i32::try_from(texts.len()).unwrap();
        texts.iter().fold(self.int(count), |body, text| body.text(text))
    }

    pub(crate) fn open_acl(self) -> Body {
        self.int(1).int(31).text("world").text("anyone")
    }
}

/// The bytes of a frame.
pub(crate) fn framed(body: &[u8]) -> BytesMut {
    let mut frame = BytesMut::new();
    frame.put_u32(u32::try_from(body.len()).unwrap());
    frame.put_slice(body);
    frame
}

pub(crate) fn connect_body() -> Body {
    let body = Body::new().int(0).long(0).int(30_000).long(0).int(16);
    body.long(0).long(0).bool(false)
}

/// A client of ZooKeeper as its server's wire sees it.
pub(crate) struct Talk {
    pub(crate) wire: Wire,
}

impl Talk {
    /// A connection on which nothing was said.
    pub(crate) fn new() -> Talk {
        Talk { wire: Wire::zookeeper(7) }
    }

    /// A connection with a session.
    pub(crate) fn open() -> Talk {
        let mut talk = Talk::new();
        assert!(talk.says(&connect_body()).is_some());
        talk.hears(&ServerMessage::Connected(connected()));
        talk
    }

    /// The client sends a frame; what the wire makes of it, once.
    pub(crate) fn says(&mut self, body: &Body) -> Option<Inbound> {
        self.wire.next(&mut framed(&body.0)).unwrap()
    }

    pub(crate) fn asks(&mut self, xid: i32, kind: i32, body: Body) -> Option<Inbound> {
        let mut frame = Body::new().int(xid).int(kind);
        frame.0.put_slice(&body.0);
        self.says(&frame)
    }

    /// The operation that a request becomes.
    pub(crate) fn op(&mut self, kind: i32, body: Body) -> Op {
        match self.asks(1, kind, body) {
            Some(Inbound::Message(ClientMessage::Request { op, .. })) => op,
            other => panic!("no operation, but {other:?}"),
        }
    }

    /// What the wire has left of a request of many operations.
    pub(crate) fn more(&mut self) -> Option<Inbound> {
        self.wire.next(&mut BytesMut::new()).unwrap()
    }

    /// The frames that the client gets for a message.
    pub(crate) fn hears(&mut self, message: &ServerMessage) -> (Vec<Bytes>, Then) {
        let mut out = BytesMut::new();
        let then = self.wire.write(message, &mut out);
        let mut frames = Vec::new();
        while !out.is_empty() {
            let length = usize::try_from(out.get_u32()).unwrap();
            frames.push(out.split_to(length).freeze());
        }
        (frames, then)
    }

    /// The answer to the oldest request, as its one frame: xid, zxid, error and body.
    pub(crate) fn answer(&mut self, result: Result<Reply, Fault>) -> (i32, u64, i32, Bytes) {
        let (frames, _) = self.respond(result);
        let [frame] = &frames[..] else { panic!("one answer, not {frames:?}") };
        let mut frame = frame.clone();
        (frame.get_i32(), frame.get_u64(), frame.get_i32(), frame)
    }

    pub(crate) fn respond(&mut self, result: Result<Reply, Fault>) -> (Vec<Bytes>, Then) {
        let response = Response { xid: Xid(0), zxid: Zxid::from_bits(77), result };
        self.hears(&ServerMessage::Response(response))
    }

    pub(crate) fn event(&mut self, watch: WatchId, at: u64, kind: EventKind, of: &str) -> usize {
        let event = Event { zxid: Zxid::from_bits(at), path: path(of), kind };
        self.hears(&ServerMessage::Event { watch, event, value: None }).0.len()
    }
}

pub(crate) fn connected() -> Connected {
    Connected {
        session: SessionId(0x0100_0000_0000_0001),
        secret: Secret::new([9; 16]),
        timeout_ms: 30_000,
        resumed: false,
        read_only: false,
        server: ServerId::new(1).unwrap(),
        zxid: Zxid::from_bits(5),
        limits: ServerLimits { frame_bytes: 1 << 20, in_flight: 1024 },
    }
}
