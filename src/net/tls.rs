//! The halves of a connection within TLS. They share what `rustls` knows of the connection; each
//! has its half of the socket.

use std::cell::RefCell;
use std::io::{self, BufRead, ErrorKind, IoSlice, Read, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::rustls::Connection;

/// The half that reads.
#[derive(Debug)]
pub struct Reader {
    socket: OwnedReadHalf,
    session: Rc<RefCell<Connection>>,
}

/// The half that writes. When it is dropped, the other end is told that nothing more will come.
#[derive(Debug)]
pub struct Writer {
    pub(super) socket: OwnedWriteHalf,
    session: Rc<RefCell<Connection>>,
}

/// Both halves of a connection whose handshake is over.
pub(super) fn split(socket: TcpStream, session: Connection) -> (Reader, Writer) {
    let (reading, writing) = socket.into_split();
    let session = Rc::new(RefCell::new(session));
    (Reader { socket: reading, session: session.clone() }, Writer { socket: writing, session })
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Reader { socket, session } = &mut *self;
        let mut session = session.borrow_mut();
        loop {
            match take_plaintext(&mut session, into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                taken => return Poll::Ready(taken),
            }
            match session.read_tls(&mut Source { socket, cx }) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
            let processed = session.process_new_packets();
            // An alert that says why, or an answer to a change of keys. What the socket does not
            // take leaves with what is sent next.
            send_ciphertext(&mut session, socket.as_ref()).ok();
            processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }
}

/// Takes what has been decrypted. Nothing without an error is the end: the other side has said that
/// nothing more will come.
fn take_plaintext(session: &mut Connection, into: &mut ReadBuf<'_>) -> io::Result<()> {
    let before = into.filled().len();
    while into.remaining() > 0 {
        let mut reader = session.reader();
        let count = match reader.fill_buf() {
            Ok(chunk) => {
                let count = chunk.len().min(into.remaining());
                into.put_slice(&chunk[..count]);
                count
            }
            // What there is comes before the end, or the wait for more.
            Err(_) if into.filled().len() > before => 0,
            Err(error) => return Err(error),
        };
        if count == 0 {
            return Ok(());
        }
        reader.consume(count);
    }
    Ok(())
}

impl Writer {
    /// Sends as much as the socket takes. True: everything is sent.
    pub(super) fn send(&self, waiting: &mut BytesMut) -> io::Result<bool> {
        let mut session = self.session.borrow_mut();
        loop {
            match send_ciphertext(&mut session, self.socket.as_ref()) {
                Ok(()) if waiting.is_empty() => return Ok(true),
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
            // It takes only as much as it keeps until the socket takes it.
            let taken = session.writer().write(waiting)?;
            waiting.advance(taken);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut session = self.session.borrow_mut();
        session.send_close_notify();
        // If not even this fits, the closed connection says it.
        send_ciphertext(&mut session, self.socket.as_ref()).ok();
    }
}

fn send_ciphertext(session: &mut Connection, socket: &TcpStream) -> io::Result<()> {
    while session.wants_write() {
        if session.write_tls(&mut Sink(socket))? == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

/// A socket as something to read from that says when it has nothing.
struct Source<'a, 'c> {
    socket: &'a mut OwnedReadHalf,
    cx: &'a mut Context<'c>,
}

impl Read for Source<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut into = ReadBuf::new(into);
        match Pin::new(&mut *self.socket).poll_read(self.cx, &mut into) {
            Poll::Ready(Ok(())) => Ok(into.filled().len()),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

/// A socket as something to write to that says when it is full.
struct Sink<'a>(&'a TcpStream);

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
