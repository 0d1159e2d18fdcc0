//! Several locks at once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::{Acl, ErrorCode, ZPath, limits};

use super::body::Body;
use super::error::Error;
use super::hold::{Hold, within};
use super::line::Line;
use super::mutex::LOCK;
use super::owned::{Owned, claim};
use super::place::Place;
use crate::{Client, IntoPath};

/// The locks of one multi-lock, at most. To leave takes a condition and a deletion for each, in one
/// transaction, and a [guard](Hold::guard) up to as many; something is left for what is guarded, and
/// for the word of those that were the first of their lines.
const LOCKS: usize = 400;
const _: () = assert!(2 * LOCKS < limits::MULTI_OPS);

/// Several locks that are held all or none, without deadlock.
///
/// ```no_run
/// use conclave_client::Client;
/// use conclave_client::recipes::{Error, MultiLock};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
/// let accounts = MultiLock::new(&client, ["/locks/account-1", "/locks/account-2"])?;
/// let hold = accounts.lock().await?;
/// println!("both are mine; my token is {}", hold.token());
/// hold.release().await?;
/// # Ok(())
/// # }
/// ```
///
/// They are ordinary [`Mutex`](super::Mutex)es: others may lock one of them alone. The places in all
/// queues are taken in one transaction, so that the order is the same in each of them: of two that
/// want some of the same locks, one is before the other everywhere, and they never wait for each
/// other. (One who holds a lock and then waits for another one can still make a deadlock.)
///
/// # Guarantees
///
/// Those of [`Mutex`](super::Mutex), for each of the locks; the [`Token`](super::Token) is the same
/// for all.
///
/// | when | what happens |
/// |---|---|
/// | the connection is lost, a leader dies | all locks, or all places in the queues, are kept |
/// | the session expires | all are lost at once; [`Hold::lost`](super::Hold::lost) has resolved before |
/// | the process is paused | if for longer than the session timeout, others have them when it wakes up: [`Hold::guard`](super::Hold::guard) fails unless it still holds all of them |
/// | two think they hold one of them | only after the end of a session; the later one's token is greater |
/// | one of the nodes is deleted by hand | all is lost |
///
/// # Cost
///
/// One round trip and one write to take the places, and, for each lock, one round trip to look at
/// its queue and those of waiting. If a directory is not there, which goes soon after the last one has
/// left: one round trip more for each of the locks, one for another attempt, and one write for each
/// directory that is missing. One round trip and one write to release all. For each lock one node and
/// two watches.
pub struct MultiLock {
    lines: Vec<Line>,
}

impl MultiLock {
    /// These locks; one that is named twice counts once.
    ///
    /// # Errors
    /// If there are none, or more than 400, one is not a path, or the caller is not in a tokio
    /// runtime.
    pub fn new<P: IntoPath>(
        client: &Client,
        paths: impl IntoIterator<Item = P>,
    ) -> Result<MultiLock, Error> {
        let mut lines = Vec::new();
        for path in paths {
            lines.push(Line::new(Place::new(client, path, "a mutex")?, LOCK));
        }
        lines.sort_by(|one, other| one.place.path.cmp(&other.place.path));
        lines.dedup_by(|one, other| one.place.path == other.place.path);
        if lines.is_empty() {
            return Err(Error::Config(String::from("a multi-lock needs a lock at least")));
        }
        if lines.len() > LOCKS {
            let count = lines.len();
            return Err(Error::Config(format!("{count} locks: a multi-lock has {LOCKS} at most")));
        }
        Ok(MultiLock { lines })
    }

    /// Who may do what with the nodes; everybody everything unless said.
    pub fn acl(mut self, acl: impl Into<Arc<[Acl]>>) -> MultiLock {
        let acl = acl.into();
        for line in &mut self.lines {
            line.place.acl = Arc::clone(&acl);
        }
        self
    }

    /// See [`Mutex::lock_delay`](super::Mutex::lock_delay).
    pub fn lock_delay(mut self, delay: Duration) -> MultiLock {
        for line in &mut self.lines {
            line.place.lock_delay = delay;
        }
        self
    }

    /// Waits for all locks. If the future is dropped, the places in the queues are given up.
    ///
    /// # Errors
    /// As [`Mutex::lock`](super::Mutex::lock).
    pub async fn lock(&self) -> Result<Hold, Error> {
        let owned = self.enter().await?;
        for (line, mine) in self.lines.iter().zip(mine(&owned)) {
            line.wait_alone(&owned, mine, line.list().await?).await?;
        }
        Ok(Hold::new(owned))
    }

    /// As [`lock`](MultiLock::lock), but not longer than `time`.
    ///
    /// # Errors
    /// [`Error::Deadline`]; otherwise as [`lock`](MultiLock::lock).
    pub async fn lock_within(&self, time: Duration) -> Result<Hold, Error> {
        within(time, &self.lines[0].place, self.lock()).await
    }

    /// Takes all locks if all are free.
    ///
    /// # Errors
    /// As [`lock`](MultiLock::lock).
    pub async fn try_lock(&self) -> Result<Option<Hold>, Error> {
        for line in &self.lines {
            if !line.is_free().await? {
                return Ok(None);
            }
        }
        let owned = self.enter().await?;
        for (line, mine) in self.lines.iter().zip(mine(&owned)) {
            if line.list().await?.first().is_none_or(|first| !first.is(mine)) {
                return Ok(None);
            }
        }
        Ok(Some(Hold::new(owned)))
    }

    /// Joins all queues at once.
    async fn enter(&self) -> Result<Owned, Error> {
        let place = &self.lines[0].place;
        loop {
            let body = Body::new("", Bytes::new());
            let mut multi = place.client.multi();
            for line in &self.lines {
                let (mode, acl) = (line.place.mode(true), line.place.acl.clone());
                multi = multi.create_with(line.new_path()?, body.encode(), mode, acl);
            }
            let places = self.lines.iter().map(|line| line.place.clone()).collect();
            match claim(places, multi.send(), body.tag).await {
                Ok(Some(places)) => return Ok(Owned::new(place, places.take())),
                Err(error) if error.code() != Some(ErrorCode::NoNode) => return Err(error),
                // Without conditions it is done or fails; so a directory is missing.
                Ok(None) | Err(_) => {
                    for line in &self.lines {
                        line.place.make().await?;
                    }
                }
            }
        }
    }
}

/// The nodes in the queues, in the order of the locks.
fn mine(owned: &Owned) -> impl Iterator<Item = &ZPath> {
    owned.stakes().iter().map(|stake| &stake.path)
}
