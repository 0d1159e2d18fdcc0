//! How a client is described and connected.

use std::time::Duration;

use bytes::Bytes;

use crate::chroot::IntoPath;
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
        }
    }

    /// The servers, `host:port` separated by commas. The client connects to one of them, chosen at
    /// random, and to another one when that one fails. Names are resolved at every attempt.
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

    /// How long [`connect`](Builder::connect) tries. 10 s unless said.
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

    /// Whether a server that cannot reach a quorum will do. It answers reads from what it knows
    /// and refuses writes. False unless said.
    pub fn read_only(mut self, accepted: bool) -> Builder {
        self.read_only = accepted;
        self
    }

    /// Adds an identity; see [`Client::authenticate`].
    pub fn identity(mut self, scheme: impl Into<String>, credentials: impl Into<Bytes>) -> Builder {
        self.identities.push((scheme.into(), credentials.into()));
        self
    }

    /// Opens a session. Must be called within a tokio runtime, which drives the client.
    ///
    /// # Errors
    /// If the description is not valid, no server opens a session within the connect timeout, or
    /// an identity is refused.
    pub async fn connect(self) -> Result<Client, Error> {
        self.chroot.as_str().into_path()?;
        std::future::ready(Err(Error::Config("not served yet".into()))).await
    }
}
