//! What several recipes share.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use conclave_proto::limits::TTL_MS;
use conclave_proto::{Acl, CreateMode, ErrorCode, ZPath};
use tokio::time::Instant;

use super::Error;
use super::error::NameError;
use crate::{Client, IntoPath};

/// The path of a child, of which the caller gave the name.
pub(crate) fn child(parent: &ZPath, name: &str) -> Result<ZPath, Error> {
    let why = if name.is_empty() {
        NameError::Empty
    } else if name.contains('/') {
        NameError::Slash
    } else {
        match parent.child(name) {
            Ok(path) => return Ok(path),
            Err(error) => NameError::Path(error),
        }
    };
    Err(Error::Name { name: name.to_owned(), why })
}

/// The path of a recipe's own node, which is not the root: there is too much else below that.
pub(crate) fn own_node(path: impl IntoPath, recipe: &str) -> Result<ZPath, Error> {
    let path = path.into_path()?;
    if path.is_root() {
        return Err(Error::Config(format!("{recipe} needs a node of its own, not /")));
    }
    Ok(path)
}

/// Creates a persistent node and those above it, unless they are there. One round trip if it is.
pub(crate) async fn ensure(client: &Client, path: &ZPath) -> Result<(), crate::Error> {
    if client.exists(path).await?.is_some() {
        return Ok(());
    }
    let how = |_: &ZPath| (CreateMode::PERSISTENT, Acl::open());
    create_missing(client, path, how).await
}

/// Creates a node and those above it that are missing, in this way. Nothing is asked of those above one
/// that is there: they may be closed to the caller.
pub(crate) async fn create_missing(
    client: &Client,
    path: &ZPath,
    how: impl Fn(&ZPath) -> (CreateMode, Arc<[Acl]>),
) -> Result<(), crate::Error> {
    let mut missing = vec![path.clone()];
    while let Some(next) = missing.last().cloned() {
        let (mode, acl) = how(&next);
        match client.create(&next, "").mode(mode).acl(acl).await {
            Ok(_) => drop(missing.pop()),
            Err(error) if error.code() == Some(ErrorCode::NodeExists) => drop(missing.pop()),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                let Some(above) = next.parent() else { return Err(error) };
                missing.push(above);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits for the first of several that is there: which one it is, and what it is.
pub(crate) async fn first_of<F: Future>(all: impl Iterator<Item = F>) -> (usize, F::Output) {
    let mut all: Vec<_> = all.map(Box::pin).collect();
    poll_fn(|cx| {
        for (index, one) in all.iter_mut().enumerate() {
            if let Poll::Ready(output) = one.as_mut().poll(cx) {
                return Poll::Ready((index, output));
            }
        }
        Poll::Pending
    })
    .await
}

/// More time than any program has.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// That much later; [`Duration::MAX`] and the like are for ever.
pub(crate) fn later(from: Instant, time: Duration) -> Instant {
    from + time.min(FOR_EVER)
}

/// A time as the servers keep it, in ms: for ever is as long as they can.
pub(crate) fn kept_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min(TTL_MS)
}

/// Whether an operation failed for this reason.
pub(crate) fn failed_with<T>(outcome: &Result<T, crate::Error>, code: ErrorCode) -> bool {
    outcome.as_ref().is_err_and(|error| error.code() == Some(code))
}
