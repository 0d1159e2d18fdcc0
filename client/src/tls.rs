//! TLS: how a client makes sure of the servers, and shows them who it is.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, AlertDescription, CertificateError, ClientConfig, RootCertStore};

use crate::Error;

/// How a client makes sure of the servers, and shows them who it is: TLS 1.3.
///
/// All files are PEM. They are read again for every connection, so that renewed certificates are
/// used without a new client; files that cannot be used any more are left alone, with a warning.
///
/// ```no_run
/// # async fn example() -> Result<(), conclave_client::Error> {
/// use conclave_client::{Client, Tls};
///
/// let client = Client::builder()
///     .servers("one.example:7400,two.example:7400,three.example:7400")
///     .tls(Tls::new("/etc/conclave/ca.pem").certificate("alice.pem", "alice.key"))
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "it is given to Builder::tls"]
pub struct Tls {
    ca: PathBuf,
    certificate: Option<(PathBuf, PathBuf)>,
    server_name: Option<String>,
}

impl Tls {
    /// Servers must show a certificate that one of these authorities has signed, for the name or
    /// the address by which they are connected to.
    pub fn new(ca: impl Into<PathBuf>) -> Tls {
        Tls { ca: ca.into(), certificate: None, server_name: None }
    }

    /// Shows the servers a certificate, to which this private key belongs. The session then has the
    /// identity `x509` with the certificate's subject, which ACLs can name.
    pub fn certificate(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Tls {
        self.certificate = Some((cert.into(), key.into()));
        self
    }

    /// The name that the servers' certificates must have, in place of the one by which they are
    /// connected to.
    pub fn server_name(mut self, name: impl Into<String>) -> Tls {
        self.server_name = Some(name.into());
        self
    }

    /// Reads the files.
    fn read(&self) -> Result<Arc<ClientConfig>, Error> {
        let mut roots = RootCertStore::empty();
        for authority in read_certificates(&self.ca)? {
            roots.add(authority).map_err(|error| unusable(&self.ca, error))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| Error::Config(error.to_string()))?
            .with_root_certificates(roots);
        let mut config = match &self.certificate {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = read_certificates(cert)?;
                let pem = std::fs::read(key).map_err(|error| unusable(key, error))?;
                let key =
                    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| unusable(key, error))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| unusable(cert, error))?
            }
        };
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

/// What the next connection is made with.
#[derive(Debug)]
pub(crate) struct Connector {
    tls: Tls,
    config: Arc<ClientConfig>,
}

impl Connector {
    /// One that uses these files.
    ///
    /// # Errors
    /// If they cannot be used.
    pub(crate) fn new(tls: Tls) -> Result<Connector, Error> {
        let config = tls.read()?;
        Ok(Connector { tls, config })
    }

    /// The configuration as the files have it now.
    pub(crate) fn refresh(&mut self) -> Arc<ClientConfig> {
        match self.tls.read() {
            Ok(config) => self.config = config,
            Err(error) => tracing::warn!("the earlier certificates stay in use: {error}"),
        }
        Arc::clone(&self.config)
    }

    /// The name that the certificate of this server must have.
    ///
    /// # Errors
    /// If it is no name that a certificate can have.
    pub(crate) fn server_name(&self, server: &str) -> io::Result<ServerName<'static>> {
        let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
        let name = self.tls.server_name.as_deref().unwrap_or(host);
        let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
        ServerName::try_from(name)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = std::fs::read(path).map_err(|error| unusable(path, error))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(unusable(path, "there is no certificate in PEM in it"))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(unusable(path, error)),
    }
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::Config(format!("cannot use {}: {why}", path.display()))
}

/// What an error of a connection means, and what to do about it if it is one of TLS.
pub(crate) fn explain(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let advice = match inner {
        None => return error.to_string(),
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => {
            "its certificate is signed by none of the authorities that were given (the CA of Tls, \
             --tls-ca)"
        }
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => {
            "connect to a name that its certificate has, or say which one to expect (server_name \
             of Tls, --tls-server-name)"
        }
        Some(rustls::Error::InvalidMessage(_)) => "it does not speak TLS on this port",
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)) => {
            "it wants to see a certificate of this client (the certificate of Tls, --tls-cert and \
             --tls-key)"
        }
        Some(rustls::Error::AlertReceived(_)) => {
            "it does not accept this client's certificate; is it signed by the CA that the server \
             knows, and still valid?"
        }
        Some(_) => return error.to_string(),
    };
    format!("{error}: {advice}")
}
