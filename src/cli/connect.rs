//! How the commands reach the servers.

use std::time::Duration;

use anyhow::Context;
use conclave_client::Client;

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
    #[arg(long, value_name = "S", default_value_t = 10, global = true)]
    pub(super) timeout: u64,
}

impl Servers {
    /// Opens a session that outlives its last sign of life by that long.
    ///
    /// # Errors
    /// If no server answers in time.
    pub(super) async fn connect(&self, session_timeout: Duration) -> anyhow::Result<Client> {
        let timeout = self.timeout();
        Client::builder()
            .servers(&self.servers)
            .session_timeout(session_timeout)
            .connect_timeout(timeout)
            .operation_timeout(timeout)
            .connect()
            .await
            .with_context(|| {
                format!(
                    "no session with {}; are the servers running? (`conclave status`, and \
                     `conclave dev` starts three)",
                    self.servers
                )
            })
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
