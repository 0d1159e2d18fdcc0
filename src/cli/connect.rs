//! How the commands reach the servers.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{anyhow, bail};
use conclave_client::{Client, Error, Tls};
use tokio::time::timeout;

/// How long the end of a session is waited for.
pub(super) const PARTING: Duration = Duration::from_secs(1);

/// Ends a session. One that cannot be ended soon expires, and what was done is done: nobody is kept
/// waiting for servers that are away.
pub(super) async fn part(client: Client) {
    timeout(PARTING, client.close()).await.ok();
}

/// As long as the servers can be told to take, in ms in 32 bits.
const LONGEST_TIMEOUT_S: u64 = 4_294_967;

/// Where the servers are.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Servers {
    /// The servers, host:port separated by commas
    #[arg(
        long,
        env = "CONCLAVE_SERVERS",
        value_name = "SERVERS",
        default_value = "127.0.0.1:7400",
        global = true
    )]
    pub(super) servers: String,
    /// Give up after so many seconds
    #[arg(
        long,
        value_name = "S",
        default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..=LONGEST_TIMEOUT_S),
        global = true
    )]
    pub(super) timeout: u64,
    /// Say who is asking: SCHEME:CREDENTIALS, for instance password:alice:secret or
    /// digest:alice:secret. Better in the environment than on the command line, which others see
    #[arg(
        long,
        env = "CONCLAVE_AUTH",
        value_name = "SCHEME:CREDENTIALS",
        hide_env_values = true,
        global = true
    )]
    auth: Option<String>,
    #[command(flatten)]
    tls: TlsArgs,
}

/// How the servers are made sure of.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "TLS")]
pub(super) struct TlsArgs {
    /// Connect within TLS: one of these authorities has signed the servers' certificates (PEM)
    #[arg(long, env = "CONCLAVE_TLS_CA", value_name = "FILE", global = true)]
    tls_ca: Option<PathBuf>,
    /// Show the servers this certificate (PEM)
    #[arg(long, env = "CONCLAVE_TLS_CERT", value_name = "FILE", global = true)]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate (PEM)
    #[arg(long, env = "CONCLAVE_TLS_KEY", value_name = "FILE", global = true)]
    tls_key: Option<PathBuf>,
    /// The name that the servers' certificates have, if it is not the one they are connected to by
    #[arg(long, env = "CONCLAVE_TLS_SERVER_NAME", value_name = "NAME", global = true)]
    tls_server_name: Option<String>,
}

impl TlsArgs {
    /// What to connect with; `None`: plaintext.
    ///
    /// # Errors
    /// If something is missing.
    pub(super) fn settings(&self) -> anyhow::Result<Option<Tls>> {
        let certificate = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => bail!("--tls-cert needs --tls-key, the certificate's private key"),
            (None, Some(_)) => bail!("--tls-key needs --tls-cert, the key's certificate"),
        };
        let Some(ca) = &self.tls_ca else {
            if certificate.is_some() || self.tls_server_name.is_some() {
                bail!("TLS needs --tls-ca: the authorities that sign the servers' certificates");
            }
            return Ok(None);
        };
        let mut tls = Tls::new(ca);
        if let Some((cert, key)) = certificate {
            tls = tls.certificate(cert, key);
        }
        if let Some(name) = &self.tls_server_name {
            tls = tls.server_name(name);
        }
        Ok(Some(tls))
    }
}

impl Servers {
    /// Opens a session that outlives its last sign of life by that long.
    ///
    /// # Errors
    /// If no server answers in time.
    pub(super) async fn connect(&self, session_timeout: Duration) -> anyhow::Result<Client> {
        let within = self.timeout();
        let mut builder = Client::builder();
        if let Some(tls) = self.tls.settings()? {
            builder = builder.tls(tls);
        }
        if let Some(auth) = &self.auth {
            let Some((scheme, credentials)) = auth.split_once(':') else {
                bail!("--auth is SCHEME:CREDENTIALS, for instance password:alice:secret");
            };
            builder = builder.identity(scheme, credentials.to_owned());
        }
        let connecting = builder
            .servers(&self.servers)
            .session_timeout(session_timeout)
            .connect_timeout(within)
            .operation_timeout(within)
            .connect();
        connecting.await.map_err(|error| {
            if !matches!(error, Error::Connect { .. }) {
                return error.into();
            }
            anyhow!(
                "{error}; are the servers running? (`conclave status` asks them, and `conclave dev` \
                 starts three)"
            )
        })
    }

    /// What another `conclave` needs in its environment to reach the same servers in the same way,
    /// wherever this one was told.
    pub(super) fn environment(&self) -> Vec<(&'static str, OsString)> {
        let TlsArgs { tls_ca, tls_cert, tls_key, tls_server_name } = &self.tls;
        let given = [
            ("CONCLAVE_SERVERS", Some(self.servers.clone().into())),
            ("CONCLAVE_AUTH", self.auth.clone().map(OsString::from)),
            ("CONCLAVE_TLS_CA", tls_ca.clone().map(OsString::from)),
            ("CONCLAVE_TLS_CERT", tls_cert.clone().map(OsString::from)),
            ("CONCLAVE_TLS_KEY", tls_key.clone().map(OsString::from)),
            ("CONCLAVE_TLS_SERVER_NAME", tls_server_name.clone().map(OsString::from)),
        ];
        given.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// How long anything may take.
    pub(super) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    /// The addresses, one by one.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &str> {
        self.servers.split(',').map(str::trim).filter(|address| !address.is_empty())
    }
}
