//! Certificates for tests: an authority, and what it signs.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use tempfile::TempDir;

static AUTHORITIES: AtomicU32 = AtomicU32::new(0);

/// An authority and the directory where everything it makes is: `ca.pem`, and `NAME.pem` and
/// `NAME.key` for each certificate.
pub(crate) struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a certificate says.
#[derive(Clone, Default)]
pub(crate) struct Claims<'a> {
    /// Who it is, from the country to the name.
    pub(crate) subject: &'a [(DnType, &'a str)],
    /// `conclave://CLUSTER/ID`, for members.
    pub(crate) uri: Option<&'a str>,
    /// It has ended long ago.
    pub(crate) expired: bool,
    /// When it begins, since 1970.
    pub(crate) not_before: Option<Duration>,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // No two authorities have the same name.
        let number = AUTHORITIES.fetch_add(1, Ordering::Relaxed);
        params.distinguished_name.push(DnType::CommonName, format!("authority {number}"));
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Authority { dir, issuer }
    }

    /// Makes a certificate for this machine and its key.
    pub(crate) fn issue(&self, name: &str, claims: Claims<'_>) {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        if let Some(uri) = claims.uri {
            params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        }
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in claims.subject {
            params.distinguished_name.push(kind.clone(), *value);
        }
        if claims.expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        if let Some(since_1970) = claims.not_before {
            params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since_1970;
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
    }

    /// Makes the certificate of a member.
    pub(crate) fn issue_member(&self, name: &str, cluster: &str, id: u8) {
        let uri = format!("conclave://{cluster}/{id}");
        self.issue(name, Claims { uri: Some(&uri), ..Claims::default() });
    }

    /// One of the files.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }
}
