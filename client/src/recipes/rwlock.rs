//! A lock that many readers or one writer hold.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::Acl;

use super::body::{Body, NO_BODY};
use super::error::Error;
use super::hold::{Hold, within};
use super::line::{Entry, Line};
use super::owned::{Owned, REVOKED};
use super::place::Place;
use crate::{Client, IntoPath};

const READ: &str = "read";
const WRITE: &str = "write";

/// A lock that many readers hold together, or one writer alone.
///
/// ```no_run
/// use conclave_client::Client;
/// use conclave_client::recipes::{Error, ReadWriteLock};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
/// let lock = ReadWriteLock::new(&client, "/locks/catalogue")?;
///
/// let reading = lock.read().await?;
/// reading.release().await?;
///
/// let writing = lock.write().await?;
/// writing.guard(client.multi().set("/catalogue", "new", None)).await?;
/// // Nobody writes between this and what follows.
/// let reading = writing.downgrade().await?;
/// # Ok(())
/// # }
/// ```
///
/// Fair: whoever asked first gets it first. A reader waits for the writers who asked before it, a
/// writer for everybody who did; so neither side starves the other. There is no way from reading to
/// writing: two readers who both wanted that would wait for each other.
///
/// # Guarantees
///
/// Those of [`Mutex`](super::Mutex), for a writer against everybody and for a reader against
/// writers. A writer's [`Token`](super::Token) is greater than that of everybody before it; the
/// tokens of readers who hold the lock together are in no order that matters, so a storage lets only
/// writes through its [`Fence`](super::Fence). A writer that becomes a reader keeps its token.
///
/// | when | what happens |
/// |---|---|
/// | the connection is lost, a leader dies | the lock, or the place in the queue, is kept |
/// | the session expires | it is lost; [`Hold::lost`] has resolved before |
/// | the process is paused | if for longer than the session timeout, a writer may be at it when a reader or another writer wakes up: [`Hold::guard`] fails, and what was read may be old |
/// | two think they write | only after the end of a session; the later one's token is greater |
/// | a node is deleted by hand | its holder loses the lock, who waits is told so |
///
/// # Cost
///
/// That of [`Mutex`](super::Mutex), and a writer who waits for readers has one round trip more for each
/// of them that it sees leave. When a writer releases the lock, all readers up to the next
/// writer are told, since all of them have it then. To downgrade takes one round trip and one write.
#[derive(Clone)]
pub struct ReadWriteLock {
    line: Line,
}

impl ReadWriteLock {
    /// The lock whose queue is in the directory `path`. The directory is made when it is needed and
    /// goes when nobody does any more. Nothing else may be in it.
    ///
    /// # Errors
    /// If it is not a path, or the caller is not in a tokio runtime.
    pub fn new(client: &Client, path: impl IntoPath) -> Result<ReadWriteLock, Error> {
        let place = Place::new(client, path, "a read/write lock")?;
        Ok(ReadWriteLock { line: Line { with_data: true, ..Line::new(place, "rw") } })
    }

    /// Who may do what with the nodes; everybody everything unless said.
    pub fn acl(mut self, acl: impl Into<Arc<[Acl]>>) -> ReadWriteLock {
        self.line.place.acl = acl.into();
        self
    }

    /// See [`Mutex::lock_delay`](super::Mutex::lock_delay).
    pub fn lock_delay(mut self, delay: Duration) -> ReadWriteLock {
        self.line.place.lock_delay = delay;
        self
    }

    /// Waits until this may read. If the future is dropped, the place in the queue is given up.
    ///
    /// # Errors
    /// If the session ends, the node is deleted by hand, or the directory has other nodes in it.
    pub async fn read(&self) -> Result<Hold, Error> {
        let (owned, entries) = self.line.enter(Body::new(READ, Bytes::new())).await?;
        let blocks = |entry: &Entry| Ok(self.word(entry)? != READ);
        self.line.wait(&owned, owned.path(), entries, blocks).await?;
        Ok(Hold::new(owned))
    }

    /// Waits until this may write. If the future is dropped, the place in the queue is given up.
    ///
    /// # Errors
    /// As [`read`](ReadWriteLock::read).
    pub async fn write(&self) -> Result<WriteHold, Error> {
        let (owned, entries) = self.line.enter(Body::new(WRITE, Bytes::new())).await?;
        self.line.wait_alone(&owned, owned.path(), entries).await?;
        Ok(WriteHold { hold: Hold::new(owned) })
    }

    /// As [`read`](ReadWriteLock::read), but not longer than `time`.
    ///
    /// # Errors
    /// [`Error::Deadline`]; otherwise as [`read`](ReadWriteLock::read).
    pub async fn read_within(&self, time: Duration) -> Result<Hold, Error> {
        within(time, &self.line.place, self.read()).await
    }

    /// As [`write`](ReadWriteLock::write), but not longer than `time`.
    ///
    /// # Errors
    /// [`Error::Deadline`]; otherwise as [`read`](ReadWriteLock::read).
    pub async fn write_within(&self, time: Duration) -> Result<WriteHold, Error> {
        within(time, &self.line.place, self.write()).await
    }

    /// What one in the queue wants.
    fn word(&self, entry: &Entry) -> Result<String, Error> {
        let body = entry.data.as_ref().and_then(Body::decode);
        match body {
            Some(body) if [READ, WRITE, REVOKED].contains(&body.word.as_str()) => Ok(body.word),
            _ => Err(self.line.place.malformed(&self.line.path(entry)?, NO_BODY)),
        }
    }
}

/// A lock held for writing. It is a [`Hold`], and everything said there holds for it.
#[must_use = "what is dropped is released"]
pub struct WriteHold {
    hold: Hold,
}

impl WriteHold {
    /// Goes on as a reader: readers who wait are let in, and no writer is before all readers, this
    /// one included, have released the lock.
    ///
    /// # Errors
    /// [`Error::Lost`] if it was lost before.
    pub async fn downgrade(self) -> Result<Hold, Error> {
        let owned: &Owned = &self.hold.owned;
        let data = Body::new(READ, Bytes::new()).encode();
        let multi = owned.place().client.multi().set(owned.path(), data, None);
        self.hold.guard(multi).await?;
        Ok(self.hold)
    }

    /// See [`Hold::release`].
    ///
    /// # Errors
    /// [`Error::Lost`] if it was lost before.
    pub async fn release(self) -> Result<(), Error> {
        self.hold.release().await
    }
}

impl Deref for WriteHold {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.hold
    }
}

impl fmt::Debug for WriteHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.hold.fmt(f)
    }
}
