//! A port: where connections come from.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConnection;

use super::certificate::Certificate;
use super::crowd::Crowd;
use super::halves::{ReadHalf, WriteHalf, plain, secure};
use super::keys::WatchedKeys;

/// How long a handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// How long the other side may leave what it is sent without a word of having got it.
const SILENCE: Duration = Duration::from_secs(30);
/// How long to wait when the system has no room for another connection.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(50);
/// How often a silent connection is probed until it counts as gone.
const PROBES: u32 = 5;
/// The connections that are ready and wait for the thread that serves.
const READY: usize = 64;
/// How often at most a failed handshake is told of.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);

/// A connection that has come, and may be used.
#[derive(Debug)]
pub struct Incoming {
    /// Where it comes from.
    pub address: SocketAddr,
    /// What the other side says.
    pub reading: ReadHalf,
    /// What it is told.
    pub writing: WriteHalf,
    /// Who it is, if it has shown that.
    pub certificate: Option<Certificate>,
}

/// How many may be shaking hands at a port.
#[derive(Clone, Copy, Debug)]
pub struct HandshakeLimits {
    /// In all.
    pub total: usize,
    /// From one address.
    pub per_address: usize,
}

/// What has become of the handshakes.
#[derive(Clone, Debug, Default)]
pub struct HandshakeCounters {
    /// Those that failed, or were not finished in time.
    pub failed: Counter,
    /// Those for which there was no room.
    pub refused: Counter,
}

/// Where connections come from.
#[derive(Debug)]
pub struct Port {
    address: SocketAddr,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Plain(TcpListener),
    /// What the thread that shakes hands has made.
    Tls(mpsc::Receiver<Ready>),
}

/// A connection whose handshake is over, on its way to the thread that will have it.
#[derive(Debug)]
struct Ready {
    address: SocketAddr,
    socket: std::net::TcpStream,
    session: ServerConnection,
    certificate: Option<Certificate>,
}

impl Port {
    /// A port where everything is plaintext.
    ///
    /// # Errors
    /// If the listener is broken.
    pub fn plain(listener: TcpListener) -> io::Result<Port> {
        Ok(Port { address: listener.local_addr()?, source: Source::Plain(listener) })
    }

    /// A port where everything is within TLS. A new thread accepts and shakes hands.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn tls(
        listener: TcpListener,
        keys: WatchedKeys,
        limits: HandshakeLimits,
        counters: HandshakeCounters,
    ) -> io::Result<Port> {
        let address = listener.local_addr()?;
        let listener = listener.into_std()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (hand_over, ready) = mpsc::channel(READY);
        thread::Builder::new().name("handshakes".into()).spawn(move || {
            let gate = async move {
                let crowd = Crowd::new(limits.total, limits.per_address);
                match TcpListener::from_std(listener) {
                    Ok(listener) => guard(listener, &keys, &crowd, &counters, &hand_over).await,
                    Err(error) => tracing::error!(%error, "cannot accept connections"),
                }
            };
            runtime.block_on(LocalSet::new().run_until(gate));
        })?;
        Ok(Port { address, source: Source::Tls(ready) })
    }

    /// The address of the port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection that may be used.
    pub async fn accept(&mut self) -> Incoming {
        loop {
            let accepted = match &mut self.source {
                Source::Plain(listener) => listener.accept().await.map(|(socket, address)| {
                    prepare(&socket);
                    let (reading, writing) = plain(socket);
                    Incoming { address, reading, writing, certificate: None }
                }),
                Source::Tls(ready) => match ready.recv().await {
                    Some(ready) => ready.enter(),
                    None => std::future::pending().await,
                },
            };
            match accepted {
                Ok(incoming) => return incoming,
                Err(error) => complain(self.address, &error).await,
            }
        }
    }
}

impl Ready {
    /// Puts the connection on the thread that calls.
    fn enter(self) -> io::Result<Incoming> {
        let Ready { address, socket, session, certificate } = self;
        let (reading, writing) = secure(TcpStream::from_std(socket)?, session.into());
        Ok(Incoming { address, reading, writing, certificate })
    }
}

async fn complain(port: SocketAddr, error: &io::Error) {
    tracing::warn!(%error, "cannot accept a connection on {port}");
    sleep(NO_ROOM_PAUSE).await;
}

fn prepare(socket: &TcpStream) {
    // A connection that is gone already is found out by whoever uses it.
    keep_alive(socket, SILENCE).ok();
}

/// Prepares a socket: nothing waits for more to be sent, and another side whose machine is gone, or
/// that takes nothing, is found out after `silence` although it does not close anything.
///
/// # Errors
/// If the connection is broken.
pub fn keep_alive(socket: &TcpStream, silence: Duration) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let options = SockRef::from(socket);
    options.set_tcp_user_timeout(Some(silence))?;
    let probes = TcpKeepalive::new().with_time(silence).with_interval(silence / PROBES);
    options.set_tcp_keepalive(&probes)
}

/// Accepts and shakes hands, as long as somebody takes what is ready.
async fn guard(
    listener: TcpListener,
    keys: &WatchedKeys,
    crowd: &Crowd,
    counters: &HandshakeCounters,
    ready: &mpsc::Sender<Ready>,
) {
    let complaints = complaints();
    loop {
        let accepted = tokio::select! {
            () = ready.closed() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, address)) => {
                let Some(place) = crowd.admit(address.ip()) else {
                    counters.refused.inc();
                    continue;
                };
                prepare(&socket);
                let acceptor = TlsAcceptor::from(keys.now().server());
                let (ready, complaints) = (ready.clone(), complaints.clone());
                let failed = counters.failed.clone();
                spawn_local(async move {
                    match shake_hands(acceptor, socket, address).await {
                        // If nobody takes it, the server is about to end.
                        Ok(done) => drop(ready.send(done).await),
                        Err(why) => {
                            failed.inc();
                            complaints.try_send(format!("{address}: {why}")).ok();
                        }
                    }
                    drop(place);
                });
            }
            Err(error) => match listener.local_addr() {
                Ok(address) => complain(address, &error).await,
                Err(_) => return,
            },
        }
    }
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    socket: TcpStream,
    address: SocketAddr,
) -> Result<Ready, String> {
    let shaken = timeout(HANDSHAKE_DEADLINE, acceptor.accept(socket)).await;
    let stream = shaken
        .map_err(|_| format!("not done within {HANDSHAKE_DEADLINE:?}"))?
        .map_err(|error| error.to_string())?;
    let (socket, session) = stream.into_inner();
    let shown = session.peer_certificates().and_then(|chain| chain.first());
    let certificate = shown
        .map(|der| Certificate::read(der))
        .transpose()
        .map_err(|why| format!("its certificate cannot be read: {why}"))?;
    let socket = socket.into_std().map_err(|error| error.to_string())?;
    Ok(Ready { address, socket, session, certificate })
}

/// Tells of failed handshakes, without letting a storm of them fill the log.
fn complaints() -> mpsc::Sender<String> {
    let (complain, mut complaints) = mpsc::channel::<String>(1);
    spawn_local(async move {
        while let Some(complaint) = complaints.recv().await {
            tracing::info!("a TLS handshake failed with {complaint}");
            sleep(COMPLAINT_INTERVAL).await;
        }
    });
    complain
}
