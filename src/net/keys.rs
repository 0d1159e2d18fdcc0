//! Certificates and keys: read from files, and read again when the files change.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use conclave_proto::ServerId;
use prometheus_client::metrics::counter::Counter;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::verify_server_cert_signed_by_trust_anchor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{
    NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore,
    ServerConfig, SignatureScheme,
};

use super::certificate::{Certificate, member_name};

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Less than this before its end, a certificate is worth a warning.
const SHORT: Duration = Duration::from_secs(14 * DAY_S);
const DAY_S: u64 = 24 * 3600;

/// The files, all of them in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate, with those between it and the CA after it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The certificates of the authorities that others are checked against.
    pub ca: Option<PathBuf>,
}

/// Whether clients have to show certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// They are not asked.
    None,
    /// They may.
    Optional,
    /// Without one, there is no connection.
    #[default]
    Required,
}

/// Who connects with these keys.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// Clients.
    Clients(ClientAuth),
    /// The other members: each end shows the certificate of a member.
    Members {
        /// The name of the ensemble.
        cluster: String,
        /// This server.
        me: ServerId,
    },
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}; {remedy}", path.display())]
pub struct KeysError {
    path: PathBuf,
    problem: String,
    remedy: &'static str,
}

/// A certificate, its key, and whom it trusts.
pub struct Keys {
    server: Arc<ServerConfig>,
    provider: Arc<CryptoProvider>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    not_after: Duration,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("key", &"***").finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads the files and makes sure that they can be used.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn read(files: &Files, purpose: &Purpose) -> Result<Keys, KeysError> {
        let provider = Arc::new(ring::default_provider());
        let chain = read_certificates(&files.cert)?;
        let own = Certificate::read(&chain[0])
            .map_err(|why| wrong(&files.cert, why, "give a certificate of X.509 version 3"))?;
        check_validity(&files.cert, &own)?;
        let key = read_key(&files.key)?;
        let mut roots = RootCertStore::empty();
        for ca in files.ca.as_deref().map(read_certificates).transpose()?.unwrap_or_default() {
            let path = files.ca.as_deref().unwrap_or(&files.cert);
            let remedy = "give the certificates of authorities";
            roots.add(ca).map_err(|error| wrong(path, error.to_string(), remedy))?;
        }
        let roots = Arc::new(roots);
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider knows TLS 1.3");
        let verifier =
            || WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let verifier = match purpose {
            Purpose::Clients(ClientAuth::None) => Ok(WebPkiClientVerifier::no_client_auth()),
            Purpose::Clients(ClientAuth::Optional) => verifier().allow_unauthenticated().build(),
            Purpose::Clients(ClientAuth::Required) | Purpose::Members { .. } => verifier().build(),
        };
        let remedy = "name a file with the certificates of the authorities";
        let ca = files.ca.as_deref().unwrap_or(&files.cert);
        let verifier = verifier.map_err(|error| wrong(ca, error.to_string(), remedy))?;
        if let Purpose::Members { cluster, me } = purpose {
            check_member(&files.cert, &own, cluster, *me)?;
            check_signature(&chain, &roots, &provider, &*verifier).map_err(|error| {
                let remedy = "the other servers would refuse it: have it signed by the configured \
                              CA, for servers and clients alike (serverAuth, clientAuth)";
                wrong(&files.cert, error.to_string(), remedy)
            })?;
        }
        let remedy = "give the certificate and the key that belong together";
        let mut server = builder
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| wrong(&files.cert, error.to_string(), remedy))?;
        // Whoever comes back is checked again: a certificate may have ended since.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let server = Arc::new(server);
        Ok(Keys { server, provider, chain, key, roots, not_after: own.not_after })
    }

    /// How this side accepts.
    pub(super) fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// How this side dials a member: it shows its own certificate, and goes on only if the other
    /// side has the certificate of exactly that member.
    ///
    /// # Errors
    /// If the key cannot be used, which it could be when it was read.
    pub fn dialler(&self, cluster: &str, to: ServerId) -> io::Result<Arc<ClientConfig>> {
        let verifier = MemberVerifier {
            roots: self.roots.clone(),
            provider: self.provider.clone(),
            cluster: cluster.to_owned(),
            member: to,
        };
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(io::Error::other)?;
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(Arc::new(config))
    }

    /// Until when the certificate is valid, since 1970.
    pub fn not_after(&self) -> Duration {
        self.not_after
    }
}

/// What has become of changed files.
#[derive(Clone, Debug, Default)]
pub struct CertCounters {
    /// They were taken.
    pub reloaded: Counter,
    /// They could not be used; the earlier ones stay.
    pub rejected: Counter,
}

/// Keys that follow their files.
#[derive(Clone, Debug)]
pub struct WatchedKeys(watch::Receiver<Arc<Keys>>);

impl WatchedKeys {
    /// Reads the files, and reads them again whenever they have changed, on a thread of its own. Files
    /// that cannot be used are told of, change nothing, and are tried again.
    ///
    /// # Errors
    /// If they cannot be used at the start.
    pub fn start(
        files: Files,
        purpose: Purpose,
        counters: CertCounters,
    ) -> Result<WatchedKeys, KeysError> {
        // Looked at before they are read, so that no change is missed.
        let seen = Stamps::of(&files);
        let keys = Keys::read(&files, &purpose)?;
        warn_of(&files, &keys);
        let (sender, receiver) = watch::channel(Arc::new(keys));
        let path = files.cert.clone();
        thread::Builder::new()
            .name("certificates".into())
            .spawn(move || follow(&files, &purpose, seen, &sender, &counters))
            .map_err(|error| wrong(&path, error.to_string(), "let this user have more threads"))?;
        Ok(WatchedKeys(receiver))
    }

    /// The latest ones.
    pub fn now(&self) -> Arc<Keys> {
        self.0.borrow().clone()
    }
}

/// What tells whether files have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamps(Vec<Option<(u64, u64, i64, i64)>>);

impl Stamps {
    fn of(files: &Files) -> Stamps {
        let stamp = |path: &PathBuf| {
            let of = fs::metadata(path).ok()?;
            Some((of.ino(), of.size(), of.mtime(), of.mtime_nsec()))
        };
        Stamps(
            [Some(&files.cert), Some(&files.key), files.ca.as_ref()]
                .into_iter()
                .flatten()
                .map(stamp)
                .collect(),
        )
    }
}

fn follow(
    files: &Files,
    purpose: &Purpose,
    mut tried: Stamps,
    keys: &watch::Sender<Arc<Keys>>,
    counters: &CertCounters,
) {
    let mut before = tried.clone();
    let mut rejected_because = None;
    while !keys.is_closed() {
        thread::sleep(LOOK_INTERVAL);
        let now = Stamps::of(files);
        let is_settled = now == before;
        before = now.clone();
        // Files that are still being replaced, one after the other, do not fit together yet.
        // And those that were rejected may be usable without a change: that from which on they are valid has
        // come, or this user may read them.
        let is_known = now == tried;
        if !is_settled || is_known && rejected_because.is_none() {
            continue;
        }
        tried = now;
        let path = files.cert.display();
        match Keys::read(files, purpose) {
            Ok(fresh) => {
                tracing::info!("{path} has changed: new connections use the new certificate");
                warn_of(files, &fresh);
                keys.send_replace(Arc::new(fresh));
                counters.reloaded.inc();
                rejected_because = None;
            }
            Err(error) => {
                let because = Some(error.to_string());
                if is_known && because == rejected_because {
                    continue;
                }
                rejected_because = because;
                tracing::error!(
                    "{path}, its key or its CA has changed, but cannot be used, so the earlier \
                     certificate stays in use: {error}"
                );
                counters.rejected.inc();
            }
        }
    }
}

/// Accepts a server only if it is that member.
#[derive(Debug)]
struct MemberVerifier {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    cluster: String,
    member: ServerId,
}

/// Its certificate is another's.
#[derive(Debug, thiserror::Error)]
#[error("its certificate is not that of {wanted}, it names {found}")]
struct WrongMember {
    wanted: String,
    found: String,
}

impl ServerCertVerifier for MemberVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let certificate =
            Certificate::read(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        if certificate.is_of(&self.cluster, self.member) {
            return Ok(ServerCertVerified::assertion());
        }
        let wanted = member_name(&self.cluster, self.member);
        let wrong = WrongMember { wanted, found: certificate.uris() };
        Err(CertificateError::Other(OtherError(Arc::new(wrong))).into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken between servers".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, KeysError> {
    let remedy = "give a file with certificates in PEM (-----BEGIN CERTIFICATE-----)";
    let pem = read_file(path)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(wrong(path, "there is no certificate in it", remedy))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(wrong(path, error.to_string(), remedy)),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, KeysError> {
    let pem = read_file(path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        let remedy = "give a file with a private key in PEM, without a password \
                      (-----BEGIN PRIVATE KEY-----)";
        wrong(path, error.to_string(), remedy)
    })
}

fn read_file(path: &Path) -> Result<Vec<u8>, KeysError> {
    let remedy = "correct the name, and let this user read the file";
    fs::read(path).map_err(|error| wrong(path, error.to_string(), remedy))
}

fn check_validity(path: &Path, certificate: &Certificate) -> Result<(), KeysError> {
    let now = Duration::from_secs(UnixTime::now().as_secs());
    if now > certificate.not_after {
        let days = (now - certificate.not_after).as_secs() / DAY_S;
        let problem = format!("the certificate has expired, {days} days ago");
        return Err(wrong(path, problem, "give one that is valid"));
    }
    if now < certificate.not_before {
        let problem = "the certificate is not valid yet";
        return Err(wrong(path, problem, "wait, or correct the clock of this machine"));
    }
    Ok(())
}

fn check_member(
    path: &Path,
    own: &Certificate,
    cluster: &str,
    me: ServerId,
) -> Result<(), KeysError> {
    if own.is_of(cluster, me) {
        return Ok(());
    }
    let wanted = member_name(cluster, me);
    let problem = format!("as an alternative name it has {}, not URI:{wanted}", own.uris());
    let remedy = "servers know each other by that name: make the certificate with it \
                  (docs/OPERATING.md shows how), or correct `cluster` or `id`";
    Err(wrong(path, problem, remedy))
}

/// The others check this server's certificate against the same authorities, when they dial and when
/// they are dialled.
fn check_signature(
    chain: &[CertificateDer<'_>],
    roots: &RootCertStore,
    provider: &CryptoProvider,
    verifier: &dyn ClientCertVerifier,
) -> Result<(), Error> {
    let (own, intermediates) = (&chain[0], &chain[1..]);
    let now = UnixTime::now();
    verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(own)?,
        roots,
        intermediates,
        now,
        provider.signature_verification_algorithms.all,
    )?;
    verifier.verify_client_cert(own, intermediates, now).map(|_| ())
}

/// What whoever runs the server should know of the files, although they can be used.
fn warn_of(files: &Files, keys: &Keys) {
    if fs::metadata(&files.key).is_ok_and(|of| of.mode() & 0o007 != 0) {
        tracing::warn!(
            "{} is a private key that everybody on this machine may read: chmod 0600",
            files.key.display()
        );
    }
    let left = keys.not_after.saturating_sub(Duration::from_secs(UnixTime::now().as_secs()));
    if left < SHORT {
        tracing::warn!(
            "the certificate {} ends in {} days: put a new one in its place, it is taken while \
             the server runs",
            files.cert.display(),
            left.as_secs() / DAY_S
        );
    }
}

fn wrong(path: &Path, problem: impl Into<String>, remedy: &'static str) -> KeysError {
    KeysError { path: path.into(), problem: problem.into(), remedy }
}
