//! The client's recipes on real servers.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and says what the servers said"
)]

mod bad_input;
mod barrier;
mod by_hand;
#[path = "../data/chaos.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod chaos;
mod doubt;
mod election;
#[path = "../cluster/harness.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod harness;
mod history;
mod lease;
mod members;
mod mutex;
mod place;
#[path = "../common/ports.rs"]
mod ports;
mod shared;
mod waiting;

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
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

/// Lets the future go on until it has to wait again, and what it asked be done. Whether it goes on
/// after that.
async fn step(client: &Client, future: Pin<&mut impl Future>) -> bool {
    let mut future = future;
    let goes_on = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await;
    for _ in 0..3 {
        // What is asked on the same client before this is done before it.
        client.sync().await.unwrap();
    }
    goes_on
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
