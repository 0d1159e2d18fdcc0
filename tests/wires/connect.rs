//! Clients of either protocol.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use conclave_proto::{EventKind, Op};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::answer::Answer;
use crate::certificates::Authority;
use crate::native::Native;
use crate::server::{DEADLINE, Server};
use crate::zookeeper::{Forms, ZooKeeper};

/// What bytes go over.
pub(crate) trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// Which protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Conclave's own.
    Native,
    /// ZooKeeper's, with the old or the new forms of its requests.
    ZooKeeper(Forms),
}

impl Wire {
    pub(crate) const ALL: [Wire; 3] =
        [Wire::Native, Wire::ZooKeeper(Forms::New), Wire::ZooKeeper(Forms::Old)];

    /// A client with a new session, over a stream to the port of this protocol.
    pub(crate) fn open(self, stream: Box<dyn Stream>) -> Box<dyn Client> {
        match self {
            Wire::Native => Box::new(Native::open(stream)),
            Wire::ZooKeeper(forms) => Box::new(ZooKeeper::open(stream, forms)),
        }
    }

    /// A client with a new session, in plaintext.
    pub(crate) fn dial(self, server: &Server) -> Box<dyn Client> {
        let address = match self {
            Wire::Native => server.client,
            Wire::ZooKeeper(_) => server.zookeeper,
        };
        self.open(Box::new(tcp(address)))
    }
}

pub(crate) fn tcp(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

/// A connection within TLS, with a certificate of that name if there is one.
pub(crate) fn tls(
    authority: &Authority,
    to: SocketAddr,
    name: Option<&str>,
) -> StreamOwned<ClientConnection, TcpStream> {
    let certificates = |file: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(authority.path(file)).unwrap().map(Result::unwrap).collect()
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates("ca.pem"));
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let config = match name {
        Some(name) => {
            let key = PrivateKeyDer::from_pem_file(authority.path(&format!("{name}.key")));
            let certificates = certificates(&format!("{name}.pem"));
            config.with_client_auth_cert(certificates, key.unwrap()).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    let session = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    StreamOwned::new(session, tcp(to))
}

/// A client of either protocol. Everything is asked and told in the words of neither.
pub(crate) trait Client {
    /// The number of its session.
    fn session(&self) -> u64;
    /// Asks, and waits for the answer.
    fn ask(&mut self, op: &Op) -> Answer;
    /// What it was told of its watches since this was asked last, by everything before now.
    fn told(&mut self) -> Vec<Told>;
}

/// A watch has fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) zxid: u64,
    pub(crate) kind: EventKind,
    pub(crate) path: String,
}
