//! Which server to try next, and when.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::dice::Dice;

/// The pause after the first failure of a server; it doubles with each further one.
const PAUSE_MS: u64 = 20;
/// The longest pause.
const PAUSE_MAX_MS: u64 = 2_000;
/// A connection that has lasted so long shows that its server was well.
const WELL_MS: u64 = 1_000;
/// The shortest time for which one address of a server is tried, unless the attempt ends.
const SHARE_MIN: Duration = Duration::from_millis(100);

/// Chooses servers: in a random order, each with a pause of its own that grows with its failures
/// and is partly random, so that the clients of a failed server do not all come at the same time.
pub(crate) struct Dialer {
    servers: Vec<Server>,
    next: usize,
    /// Nobody is dialled before.
    not_before_ms: u64,
    dice: Dice,
}

struct Server {
    name: String,
    not_before_ms: u64,
    failures: u32,
}

impl Dialer {
    pub(crate) fn new(names: Vec<String>, seed: u64) -> Dialer {
        let mut dice = Dice::new(seed);
        let mut servers: Vec<Server> =
            names.into_iter().map(|name| Server { name, not_before_ms: 0, failures: 0 }).collect();
        dice.shuffle(&mut servers);
        Dialer { servers, next: 0, not_before_ms: 0, dice }
    }

    /// The server to dial next, and when: the next one in the order that may be dialled now, or
    /// else the first that may.
    pub(crate) fn choose(&mut self, now_ms: u64) -> (usize, u64) {
        let count = self.servers.len();
        let order = (0..count).map(|step| (self.next + step) % count);
        let chosen = order
            .min_by_key(|&place| self.servers[place].not_before_ms.max(now_ms))
            .unwrap_or_default();
        self.next = (chosen + 1) % count;
        let at_ms = self.servers[chosen].not_before_ms.max(self.not_before_ms).max(now_ms);
        (chosen, at_ms)
    }

    /// The server's name.
    pub(crate) fn name(&self, server: usize) -> &str {
        &self.servers[server].name
    }

    /// What gives the order in which the addresses of a server are tried.
    pub(crate) fn dice(&mut self) -> Dice {
        self.dice.others()
    }

    /// It could not be reached, or the connection with it failed after it had lasted `lived_ms`;
    /// it is not to be dialled again before `backoff_ms` have passed.
    pub(crate) fn failed(&mut self, server: usize, now_ms: u64, lived_ms: u64, backoff_ms: u32) {
        let server = &mut self.servers[server];
        if lived_ms >= WELL_MS {
            server.failures = 0;
        }
        let pause = PAUSE_MAX_MS.min(PAUSE_MS << server.failures.min(16));
        server.failures = server.failures.saturating_add(1);
        let pause = pause / 2 + self.dice.up_to(pause / 2);
        server.not_before_ms = now_ms + pause.max(backoff_ms.into());
    }

    /// It sends its clients away: no server is to be dialled before `backoff_ms` have passed.
    pub(crate) fn sent_away(&mut self, server: usize, now_ms: u64, backoff_ms: u32) {
        self.not_before_ms = now_ms + u64::from(backoff_ms);
        self.servers[server].not_before_ms = self.not_before_ms + WELL_MS;
    }
}

/// A connection with a server.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, into),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// What it takes to connect within TLS.
pub(crate) struct Secure {
    pub(crate) config: Arc<ClientConfig>,
    /// The name that the server's certificate must have.
    pub(crate) name: io::Result<ServerName<'static>>,
}

/// Connects, at that instant and within that time. The name is resolved anew each time; `dice`
/// gives the order in which its addresses are tried.
pub(crate) async fn dial(
    name: String,
    secure: Option<Secure>,
    at: Instant,
    within: Duration,
    dice: Dice,
) -> io::Result<Stream> {
    sleep_until(at).await;
    let until = Instant::now() + within;
    let connected = timeout_at(until, connect(&name, secure, until, dice)).await;
    connected.unwrap_or_else(|_| Err(too_late(format!("no connection within {within:?}"))))
}

async fn connect(
    name: &str,
    secure: Option<Secure>,
    until: Instant,
    mut dice: Dice,
) -> io::Result<Stream> {
    let mut addresses: Vec<SocketAddr> = lookup_host(name).await?.collect();
    dice.shuffle(&mut addresses);
    let stream = reach(&addresses, until).await?;
    stream.set_nodelay(true)?;
    let Some(Secure { config, name }) = secure else { return Ok(Stream::Plain(stream)) };
    match TlsConnector::from(config).connect(name?, stream).await {
        Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(io::Error::new(
            error.kind(),
            "it closed the connection in the TLS handshake: perhaps it speaks no TLS on this port",
        )),
        Err(error) => Err(error),
    }
}

/// Connects with the first of the addresses that can be reached. One that says nothing at all
/// takes no more than its share of the time from the others.
async fn reach(addresses: &[SocketAddr], until: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for (address, to_try) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let left = until.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(to_try).unwrap_or(u32::MAX);
        let within = share.max(SHARE_MIN).min(left);
        match timeout(within, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => {
                let within_ms = within.as_millis();
                last = too_late(format!("no connection with {address} within {within_ms} ms"));
            }
        }
    }
    Err(last)
}

fn too_late(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpSocket;

    use super::*;

    fn dialer(servers: usize, seed: u64) -> Dialer {
        Dialer::new((0..servers).map(|number| number.to_string()).collect(), seed)
    }

    #[test]
    fn every_server_is_tried_at_once_before_any_is_tried_again() {
        for seed in 0..100 {
            let mut dialer = dialer(5, seed);
            let mut tried = Vec::new();
            for _ in 0..5 {
                let (server, at_ms) = dialer.choose(1_000);
                assert_eq!(at_ms, 1_000);
                tried.push(server);
                dialer.failed(server, 1_000, 0, 0);
            }
            tried.sort_unstable();
            assert_eq!(tried, [0, 1, 2, 3, 4]);
            let (_, at_ms) = dialer.choose(1_000);
            assert!((1_010..=1_020).contains(&at_ms), "{at_ms}");
        }
    }

    #[test]
    fn clients_begin_with_different_servers() {
        let firsts: Vec<String> = (0..30)
            .map(|seed| {
                let mut dialer = dialer(3, seed);
                let (server, _) = dialer.choose(0);
                dialer.name(server).to_owned()
            })
            .collect();
        for name in ["0", "1", "2"] {
            assert!(firsts.iter().any(|first| first == name), "{name} is never the first");
        }
    }

    #[test]
    fn pauses_grow_and_end_when_a_connection_was_well() {
        let mut dialer = dialer(1, 7);
        let mut now_ms = 0;
        for _ in 0..20 {
            dialer.failed(0, now_ms, 0, 0);
            let (_, at_ms) = dialer.choose(now_ms);
            assert!(at_ms > now_ms && at_ms <= now_ms + PAUSE_MAX_MS);
            now_ms = at_ms;
        }
        dialer.failed(0, now_ms, 0, 0);
        assert!(dialer.choose(now_ms).1 >= now_ms + PAUSE_MAX_MS / 2);
        dialer.failed(0, now_ms, WELL_MS, 0);
        assert!(dialer.choose(now_ms).1 <= now_ms + PAUSE_MS);
    }

    #[test]
    fn a_server_that_asks_for_a_pause_gets_it() {
        let mut dialer = dialer(2, 7);
        dialer.failed(0, 0, 0, 500);
        assert_eq!(dialer.choose(0), (1, 0));
        dialer.failed(1, 0, 0, 700);
        assert_eq!(dialer.choose(0), (0, 500));
        // One that sends its clients away makes them wait before they dial any other.
        dialer.sent_away(0, 1_000, 100);
        assert_eq!(dialer.choose(1_000), (1, 1_100));
    }

    #[tokio::test]
    async fn an_address_that_says_nothing_does_not_keep_the_others_from_being_tried() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = socket.listen(1).unwrap();
        let silent = full.local_addr().unwrap();
        // Nobody accepts the connections, until the system takes no more.
        let mut waiting = Vec::new();
        while let Ok(stream) = timeout(SHARE_MIN, TcpStream::connect(silent)).await {
            waiting.push(stream);
        }
        let well = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = well.local_addr().unwrap();
        let until = Instant::now() + Duration::from_secs(2);
        let stream = reach(&[silent, silent, address], until).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        let until = Instant::now() + Duration::from_millis(50);
        let error = reach(&[silent], until).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("no connection with {silent} within ")), "{error}");
        let error = reach(&[], until).await.unwrap_err();
        assert_eq!(error.to_string(), "its name has no address");
    }
}
