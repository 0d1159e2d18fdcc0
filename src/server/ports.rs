//! The ports of a server, and what it proves itself with there.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use crate::limits::{
    CONNECTIONS, STRANGERS, STRANGERS_PER_ADDRESS, TLS_HANDSHAKES, TLS_HANDSHAKES_PER_ADDRESS,
};
use crate::net::{HandshakeLimits, Port, Purpose, WatchedKeys};

use super::metrics::Metrics;
use super::settings::{Settings, TlsSettings};
use super::{StartError, listener};

/// Who connects to the port of ZooKeeper's protocol.
const ZOOKEEPER_CLIENTS: &str =
    "ZooKeeper's clients (key `zookeeper`; zookeeper_enabled = false turns them away)";
/// File descriptors kept for everything that is not a client: peers, files, administration.
const RESERVED_FILES: usize = 256;

/// How many connections of clients the files that this process may open suffice for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// The clients.
    pub(super) clients: usize,
    /// Beside them, those in a handshake at one of the ports with TLS.
    handshakes: usize,
}

impl Room {
    pub(super) fn of(settings: &Settings, files: usize) -> Room {
        let files = files.saturating_sub(RESERVED_FILES);
        let ports =
            usize::from(settings.tls.is_some()) + usize::from(settings.zookeeper_secure.is_some());
        let handshakes = TLS_HANDSHAKES.min(files / 8);
        Room { clients: CONNECTIONS.min(files - ports * handshakes), handshakes }
    }
}

/// What a server proves itself with.
#[derive(Clone, Debug, Default)]
pub(super) struct Keychain {
    /// To clients; `None`: they are served in plaintext.
    pub(super) clients: Option<WatchedKeys>,
    /// To the other servers; `None`: there are none, or the links are plaintext.
    pub(super) members: Option<WatchedKeys>,
}

impl Keychain {
    fn open(settings: &Settings, metrics: &Metrics) -> Result<Keychain, StartError> {
        let Some(TlsSettings { clients, client_auth, members }) = settings.tls.clone() else {
            return Ok(Keychain::default());
        };
        let watch =
            |files, purpose| WatchedKeys::start(files, purpose, metrics.certificates.clone());
        let purpose = Purpose::Members { cluster: settings.cluster.clone(), me: settings.id };
        Ok(Keychain {
            clients: Some(watch(clients, Purpose::Clients(client_auth))?),
            members: members.map(|files| watch(files, purpose)).transpose()?,
        })
    }
}

/// The ports of a server.
pub(super) struct Ports {
    pub(super) client: Port,
    pub(super) zookeeper: Option<Port>,
    pub(super) zookeeper_secure: Option<Port>,
    pub(super) peer: Option<Port>,
    pub(super) admin: Option<TcpListener>,
    pub(super) keys: Keychain,
}

impl Ports {
    /// Reads the certificates and opens the ports.
    pub(super) fn open(
        settings: &Settings,
        room: Room,
        metrics: &Metrics,
    ) -> Result<Ports, StartError> {
        let keys = Keychain::open(settings, metrics)?;
        let bind = |address, whom| {
            listener::bind(address).map_err(|source| StartError::Listen { address, whom, source })
        };
        let port = |listener, keys: Option<&WatchedKeys>, limits| match keys {
            None => Port::plain(listener),
            Some(keys) => Port::tls(listener, keys.clone(), limits, metrics.handshakes.clone()),
        };
        let clients = HandshakeLimits {
            total: room.handshakes,
            per_address: TLS_HANDSHAKES_PER_ADDRESS.min(room.handshakes.div_ceil(2)),
        };
        let members = HandshakeLimits { total: STRANGERS, per_address: STRANGERS_PER_ADDRESS };
        let open = |address: Option<SocketAddr>, whom, keys, limits| match address {
            None => Ok::<_, StartError>(None),
            Some(address) => Ok(Some(port(bind(address, whom)?, keys, limits)?)),
        };
        let alone = settings.members.len() == 1;
        let peer = (!alone).then_some(settings.peer);
        Ok(Ports {
            client: port(bind(settings.client, "clients")?, keys.clients.as_ref(), clients)?,
            zookeeper: open(settings.zookeeper, ZOOKEEPER_CLIENTS, None, clients)?,
            zookeeper_secure: open(
                settings.zookeeper_secure,
                "ZooKeeper's clients within TLS",
                keys.clients.as_ref(),
                clients,
            )?,
            peer: open(peer, "the other servers", keys.members.as_ref(), members)?,
            admin: settings.admin.map(|address| bind(address, "administration")).transpose()?,
            keys,
        })
    }
}
