//! The client's recipes on real servers.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and says what the servers said"
)]

mod barrier;
#[path = "../data/chaos.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod chaos;
mod election;
#[path = "../cluster/harness.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod harness;
mod history;
mod lease;
mod mutex;
#[path = "../common/ports.rs"]
mod ports;
mod shared;

use std::time::Duration;

use conclave_client::Client;
use tokio::time::timeout;

/// Waits for something that has to happen.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(harness::DEADLINE, what).await.expect("it happens in time")
}

/// A session that does not outlive its client for long.
async fn short_lived(servers: &str) -> Client {
    let builder = Client::builder().servers(servers).session_timeout(Duration::from_secs(1));
    builder.connect_timeout(harness::DEADLINE).connect().await.unwrap()
}

/// Whether the future has to wait.
async fn waits<T>(client: &Client, future: impl Future<Output = T> + Unpin) -> bool {
    let mut future = future;
    for _ in 0..10 {
        // What the future asked before is answered before this is.
        let other = client.sync();
        tokio::select! {
            biased;
            _ = &mut future => return false,
            _ = other => {}
        }
    }
    true
}
