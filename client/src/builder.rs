//! How a client is described and connected.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle as Runtime;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::chroot::{Chroot, IntoPath};
use crate::dial::Dialer;
use crate::driver::{Attempt, Driver};
use crate::error::Operation;
use crate::handle::Handle;
use crate::limits::SERVERS;
use crate::session::Config;
use crate::shared::Shared;
use crate::tls::{Connector, Tls};
use crate::{Client, Error};

/// Describes a client; made by [`Client::builder`].
#[derive(Clone)]
#[must_use = "a client is made by .connect()"]
pub struct Builder {
    servers: String,
    session_timeout: Duration,
    connect_timeout: Duration,
    operation_timeout: Duration,
    chroot: String,
    read_only: bool,
    identities: Vec<(String, Bytes)>,
    tls: Option<Tls>,
}

impl Builder {
    pub(crate) fn new() -> Builder {
        Builder {
            servers: String::new(),
            session_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(30),
            chroot: String::from("/"),
            read_only: false,
            identities: Vec::new(),
            tls: None,
        }
    }

    /// The servers, `host:port` separated by commas. The client connects to one of them, chosen at
    /// random, and to another one when that one fails. Names are resolved at every attempt; of
    /// several addresses of a name each is tried, in any order, and has a part of the attempt's time.
    pub fn servers(mut self, servers: impl Into<String>) -> Builder {
        self.servers = servers.into();
        self
    }

    /// How long the session outlives its last sign of life; the servers may choose a longer or
    /// shorter time. 10 s unless said.
    pub fn session_timeout(mut self, timeout: Duration) -> Builder {
        self.session_timeout = timeout;
        self
    }

    /// How long [`connect`](Builder::connect) tries to open a session: each server for an equal part
    /// of it, though for 3 s at most and 100 ms at least, before it turns to the next one. 10 s
    /// unless said. [Identities](Builder::identity) are presented after that, and each of them may
    /// take as long as an [operation](Builder::operation_timeout).
    pub fn connect_timeout(mut self, timeout: Duration) -> Builder {
        self.connect_timeout = timeout;
        self
    }

    /// How long an operation waits for its answer, through reconnections, before it fails with
    /// [`Error::Timeout`]. 30 s unless said.
    pub fn operation_timeout(mut self, timeout: Duration) -> Builder {
        self.operation_timeout = timeout;
        self
    }

    /// All paths lie below this one. The node need not exist yet.
    pub fn chroot(mut self, path: impl Into<String>) -> Builder {
        self.chroot = path.into();
        self
    }

    /// Whether a server that cannot reach a quorum will do, to begin with. It answers reads from
    /// what it knows, which may be out of date, and refuses writes and linearizable reads; the
    /// session expires when there is a quorum again. A session that a quorum has opened is never
    /// continued like that. False unless said.
    pub fn read_only(mut self, accepted: bool) -> Builder {
        self.read_only = accepted;
        self
    }

    /// Adds an identity; see [`Client::authenticate`].
    pub fn identity(mut self, scheme: impl Into<String>, credentials: impl Into<Bytes>) -> Builder {
        self.identities.push((scheme.into(), credentials.into()));
        self
    }

    /// Connects within TLS. Plaintext unless said.
    pub fn tls(mut self, tls: Tls) -> Builder {
        self.tls = Some(tls);
        self
    }

    /// Opens a session. Must be called within a tokio runtime, which drives the client.
    ///
    /// # Errors
    /// If the description is not valid, the caller is not in a tokio runtime, no server opens a
    /// session within the connect timeout, or an identity is refused.
    pub async fn connect(self) -> Result<Client, Error> {
        let runtime = Runtime::try_current()
            .map_err(|_| Error::Config("a client is to be connected in a tokio runtime".into()))?;
        let chroot = Chroot::at(self.chroot.as_str().into_path()?);
        let servers = self.server_names()?;
        let session_timeout_ms = millis("session timeout", self.session_timeout)?;
        let config = Config {
            session_timeout_ms,
            operation_timeout_ms: millis("operation timeout", self.operation_timeout)?.into(),
            read_only: self.read_only,
        };
        let attempt = attempt(self.session_timeout, self.connect_timeout, servers.len());
        let shared = Arc::new(Shared::new(self.operation_timeout, runtime.clone()));
        let dialer = Dialer::new(servers, seed()?);
        let connector = self.tls.map(Connector::new).transpose()?;
        let (ready, is_ready) = oneshot::channel();
        let driver = Driver::new(Arc::clone(&shared), config, dialer, connector, attempt, ready);
        let client = Client { handle: Arc::new(Handle { shared: Arc::clone(&shared) }), chroot };
        runtime.spawn(driver.run());
        match timeout(self.connect_timeout, is_ready).await {
            Ok(Ok(opened)) => opened?,
            // The driver is gone only if the runtime is being shut down.
            Ok(Err(_)) => return Err(Error::Closed { operation: Operation::new("connect", None) }),
            Err(_) => {
                let (servers, after) = (self.servers, self.connect_timeout);
                return Err(Error::Connect { servers, after, last: shared.last_failure() });
            }
        }
        for (scheme, credentials) in self.identities {
            client.authenticate(&scheme, credentials).await?;
        }
        Ok(client)
    }

    fn server_names(&self) -> Result<Vec<String>, Error> {
        let names: Vec<String> =
            self.servers.split(',').map(|name| name.trim().to_owned()).collect();
        for name in &names {
            let port = name.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none() {
                return Err(Error::Config(format!(
                    "{name:?} is not a server: it should be host:port, and several of them \
                     separated by commas"
                )));
            }
        }
        if names.len() > SERVERS {
            return Err(Error::Config(format!("more than {SERVERS} servers")));
        }
        Ok(names)
    }
}

fn attempt(session_timeout: Duration, connect_timeout: Duration, servers: usize) -> Attempt {
    let servers = u32::try_from(servers).unwrap_or(u32::MAX).max(1);
    let open = Duration::from_secs(3);
    // Each server has its turn, though all the others cannot be reached.
    let reach = (connect_timeout / servers).clamp(Duration::from_millis(100), open);
    let share = session_timeout / servers.saturating_mul(2);
    let resume = share.clamp(Duration::from_millis(200), Duration::from_secs(2));
    Attempt { reach, open, resume }
}

fn millis(what: &str, duration: Duration) -> Result<u32, Error> {
    match u32::try_from(duration.as_millis()) {
        Ok(millis) if millis > 0 => Ok(millis),
        _ => Err(Error::Config(format!("a {what} of {duration:?} is not possible"))),
    }
}

fn seed() -> Result<u64, Error> {
    getrandom::u64().map_err(|error| Error::Config(format!("no randomness: {error}")))
}
