//! The two halves of a connection, in plaintext or within TLS.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{IpAddr, Ipv4Addr, ServerName};
use tokio_rustls::rustls::{ClientConfig, Connection};

use super::tls;

/// The half that reads. Its end is the other side's; an error is everything else.
#[derive(Debug)]
pub enum ReadHalf {
    /// What comes is what was sent.
    Plain(OwnedReadHalf),
    /// What comes is encrypted.
    Tls(Box<tls::Reader>),
}

/// The half that writes. Dropping it tells the other side that nothing more will come.
#[derive(Debug)]
pub enum WriteHalf {
    /// What is sent leaves as it is.
    Plain(OwnedWriteHalf),
    /// What is sent is encrypted.
    Tls(Box<tls::Writer>),
}

/// The halves of a connection in plaintext.
pub fn plain(socket: TcpStream) -> (ReadHalf, WriteHalf) {
    let (reading, writing) = socket.into_split();
    (ReadHalf::Plain(reading), WriteHalf::Plain(writing))
}

/// The halves of a connection within TLS, whose handshake is over.
pub(super) fn secure(socket: TcpStream, session: Connection) -> (ReadHalf, WriteHalf) {
    let (reading, writing) = tls::split(socket, session);
    (ReadHalf::Tls(Box::new(reading)), WriteHalf::Tls(Box::new(writing)))
}

/// Shakes hands on a connection that this side has opened. Who the other side must be is in the
/// configuration, not in its name: see [`Keys::dialler`](super::Keys::dialler).
///
/// # Errors
/// If the connection breaks, or (`InvalidData`) one side does not accept the other.
pub async fn dial(
    socket: TcpStream,
    config: Arc<ClientConfig>,
) -> io::Result<(ReadHalf, WriteHalf)> {
    // Nobody looks at this name, and an address is not sent.
    let nobody = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0; 4])));
    let stream = TlsConnector::from(config).connect(nobody, socket).await?;
    let (socket, session) = stream.into_inner();
    Ok(secure(socket, session.into()))
}

impl AsyncRead for ReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ReadHalf::Plain(half) => Pin::new(half).poll_read(cx, into),
            ReadHalf::Tls(half) => Pin::new(&mut **half).poll_read(cx, into),
        }
    }
}

impl WriteHalf {
    /// Sends from `waiting` as much as the socket takes at once. True: everything is sent, also what
    /// an earlier call has left.
    ///
    /// # Errors
    /// If the connection is broken.
    pub fn send(&self, waiting: &mut BytesMut) -> io::Result<bool> {
        let half = match self {
            WriteHalf::Plain(half) => half,
            WriteHalf::Tls(half) => return half.send(waiting),
        };
        while !waiting.is_empty() {
            match half.try_write(waiting) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => waiting.advance(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Sends everything, waiting for the socket to take it.
    ///
    /// # Errors
    /// If the connection is broken.
    pub async fn send_all(&self, mut bytes: BytesMut) -> io::Result<()> {
        while !self.send(&mut bytes)? {
            self.writable().await?;
        }
        Ok(())
    }

    /// Waits until the socket takes something.
    ///
    /// # Errors
    /// If the connection is broken.
    pub async fn writable(&self) -> io::Result<()> {
        match self {
            WriteHalf::Plain(half) => half.writable().await,
            WriteHalf::Tls(half) => half.socket.writable().await,
        }
    }

    /// The socket itself, to set what the system should do with it.
    pub fn socket(&self) -> &TcpStream {
        match self {
            WriteHalf::Plain(half) => half.as_ref(),
            WriteHalf::Tls(half) => half.socket.as_ref(),
        }
    }
}
