//! When a session can no longer be assumed to be alive, and what it holds to be held.

use std::time::Duration;

use tokio::time::Instant;

use super::timer::{sleep, sleep_until};
use crate::Client;

/// How long before the session's certain end it is suspected: time enough to stop.
fn margin(client: &Client) -> Duration {
    client.session_timeout() / 10
}

/// Whether the session is near the end of the time for which it is alive for certain, or beyond.
pub(super) fn is_suspect(client: &Client) -> bool {
    client.certain_until() <= Instant::now().into_std() + margin(client)
}

/// Waits until the session is suspected.
pub(super) async fn suspicion(client: &Client) {
    while !is_suspect(client) {
        sleep_until(client, Instant::from_std(client.certain_until() - margin(client))).await;
    }
}

/// Waits until the session is certain to be alive again, which may never be.
pub(super) async fn certainty(client: &Client) {
    while is_suspect(client) {
        sleep(client, margin(client) / 4).await;
    }
}
