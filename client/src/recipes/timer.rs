//! Timers for whoever waits: the client's runtime drives them, so that the futures of a recipe can
//! be polled anywhere.

use std::time::Duration;

use tokio::time::{Instant, Sleep, Timeout};

use crate::Client;

pub(super) fn sleep(client: &Client, time: Duration) -> Sleep {
    let _runtime = client.runtime().enter();
    tokio::time::sleep(time)
}

pub(super) fn sleep_until(client: &Client, at: Instant) -> Sleep {
    let _runtime = client.runtime().enter();
    tokio::time::sleep_until(at)
}

pub(super) fn timeout<F: Future>(client: &Client, time: Duration, wait: F) -> Timeout<F> {
    let _runtime = client.runtime().enter();
    tokio::time::timeout(time, wait)
}

pub(super) fn timeout_at<F: Future>(client: &Client, at: Instant, wait: F) -> Timeout<F> {
    let _runtime = client.runtime().enter();
    tokio::time::timeout_at(at, wait)
}
