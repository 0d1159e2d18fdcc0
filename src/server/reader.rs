//! The reading half of a client's connection: what has come and is not cut into messages yet.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;

use bytes::{BufMut, BytesMut};
use conclave_proto::frame::{frame_bytes, missing_bytes};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::io::poll_read_buf;

use crate::limits::ASKED_ALWAYS_BYTES;
use crate::net::ReadHalf;
use crate::wire::{Malformed, Word};

use super::clients::Clients;
use super::connection::LINGER;

/// So much is read of a client that is not read on: it may be pings.
pub(super) const HEARD_BYTES: usize = 4 << 10;
/// The room made for what comes next.
const READ_BYTES: usize = 16 << 10;
/// The size of the buffer that all connections share.
pub(super) const SHARED_BYTES: usize = 64 << 10;

/// The reading half of a connection.
pub(super) struct Reader {
    socket: ReadHalf,
    /// What has come and is not cut into messages yet.
    pub(super) received: BytesMut,
    /// The room of the request that comes next, or goes on, if it is large.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

impl Reader {
    pub(super) fn new(socket: ReadHalf) -> Reader {
        Reader { socket, received: BytesMut::new(), room: None }
    }

    /// Waits for more.
    pub(super) async fn fill(&mut self, clients: &Clients) -> Result<(), End> {
        let read = if self.received.is_empty() {
            // Gives back what the last messages were cut from.
            self.received = BytesMut::new();
            let read = poll_fn(|cx| {
                let mut shared = clients.shared.borrow_mut();
                shared.reserve(READ_BYTES);
                poll_read_buf(Pin::new(&mut self.socket), cx, &mut *shared)
            });
            let read = read.await;
            self.received = clients.shared.borrow_mut().split();
            read
        } else {
            // A frame that has only come in part moves to memory of its own, which grows with what
            // really comes, not with what the frame's length claims, and not beyond that.
            let more = self.received.len().min(missing_bytes(&self.received));
            self.received.reserve(more.max(READ_BYTES));
            poll_fn(|cx| poll_read_buf(Pin::new(&mut self.socket), cx, &mut self.received)).await
        };
        came(read)
    }

    /// The bytes of the frame that comes next, if it is a large one.
    pub(super) fn large_frame(&self) -> Option<usize> {
        frame_bytes(&self.received).filter(|&bytes| bytes > ASKED_ALWAYS_BYTES)
    }

    /// The same, if all of it has come and it has no room yet.
    pub(super) fn lacks_room(&self) -> Option<usize> {
        let bytes = self.large_frame()?;
        (bytes <= self.received.len() && self.room.is_none()).then_some(bytes)
    }

    /// Waits for a little more.
    pub(super) async fn hear(&mut self) -> Result<(), End> {
        self.received.reserve(HEARD_BYTES);
        let mut room = (&mut self.received).limit(HEARD_BYTES);
        came(poll_fn(|cx| poll_read_buf(Pin::new(&mut self.socket), cx, &mut room)).await)
    }

    /// Reads until the client closes: the connection is over, but what it was last sent must not
    /// be lost because of bytes that nobody has read.
    pub(super) async fn discard(&mut self) {
        let deadline = async {
            loop {
                self.received = BytesMut::with_capacity(READ_BYTES);
                match poll_fn(|cx| {
                    poll_read_buf(Pin::new(&mut self.socket), cx, &mut self.received)
                })
                .await
                {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return,
                }
            }
        };
        // Whoever does not close in time is closed.
        timeout(LINGER, deadline).await.ok();
    }
}

/// What reading has come to.
fn came(read: io::Result<usize>) -> Result<(), End> {
    match read {
        Ok(1..) => Ok(()),
        Ok(0) | Err(_) => Err(End::Closed),
    }
}

/// Why a conversation is over.
pub(super) enum End {
    /// One of both has closed.
    Closed,
    /// What came does not follow the protocol.
    Malformed(Malformed),
    /// It was a word, to which there is one answer.
    Word(Word),
}

impl From<Malformed> for End {
    fn from(why: Malformed) -> End {
        End::Malformed(why)
    }
}
