//! A lock that one at a time holds.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::request::Test;
use conclave_proto::{Acl, ErrorCode, SessionId};

use super::body::{Body, NO_BODY};
use super::error::{Error, Loss};
use super::hold::{Hold, within};
use super::line::Line;
use super::owned::{Owned, REVOKED};
use super::place::Place;
use super::token::Token;
use crate::{Client, IntoPath};

/// What the nodes of a mutex are called.
pub(super) const LOCK: &str = "lock";

/// A lock that one at a time holds: fair, re-entrant, revocable.
///
/// ```no_run
/// use conclave_client::Client;
/// use conclave_client::recipes::{Error, Mutex};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
/// let mut mutex = Mutex::new(&client, "/locks/nightly-report")?.describe("host 1");
///
/// let hold = mutex.lock().await?;
/// println!("it is mine; my token is {}", hold.token());
/// tokio::select! {
///     () = write_the_report(hold.token().get()) => {}
///     loss = hold.lost() => println!("stopped in the middle: {loss}"),
/// }
/// hold.release().await?;
/// # Ok(())
/// # }
/// # async fn write_the_report(token: u64) {}
/// ```
///
/// A handle is one owner. While its lock is held, [`lock`](Mutex::lock) gives another [`Hold`] of
/// the same lock at once, and the lock is released with the last of them. Two parts of a program
/// that exclude each other have a handle each; they may share the client.
///
/// # Guarantees
///
/// | when | what happens |
/// |---|---|
/// | the connection is lost | the lock, or the place in the queue, is kept while the client looks for another server. What was asked is settled by the number of the request: no node is left that nobody knows of |
/// | the session expires | the lock is lost, and goes to the next. [`Hold::lost`] has resolved before, `lock` and `release` fail |
/// | the process is paused | if it is paused for longer than the session timeout it loses the lock without knowing. Writes through [`Hold::guard`] fail; others must be stopped by the [`Token`] |
/// | a leader dies | as if the connection was lost; sessions get their whole timeout again |
/// | two think they hold it | possible only as above, after the end of a session; their tokens differ, and the later one's is greater |
/// | a node is deleted by hand | its holder loses the lock ([`Loss::Deleted`]), who waits is told so |
///
/// Fair: whoever asked first gets it first, in the order in which the servers were asked.
///
/// # Cost
///
/// To lock a free one: one round trip and one write; if its directory is not there, which goes soon
/// after the last one has left, two round trips and one write more. To wait: one round trip more,
/// before it is one's turn; when the holder releases it, word of that is all that it takes. (If the one before gives
/// up, or its session expires, one more, to see who else is before.) To release: one round trip and one
/// write. A contender has one node, one watch on it, and one on the node before it: when the lock is
/// released the next contender is told and no other.
///
/// Behind two others, who have to release it first, the servers take up to 10 ms to note a place:
/// they write it along with something else. What is asked with the same client meanwhile is answered
/// after that.
pub struct Mutex {
    line: Line,
    description: Bytes,
    held: Weak<Owned>,
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The fencing token.
    pub token: Token,
    /// The session; none if it has expired and the lock is kept back for the lock-delay.
    pub session: SessionId,
    /// What the holder [says](Mutex::describe) of itself.
    pub description: Bytes,
}

impl Mutex {
    /// The lock whose queue is in the directory `path`. The directory is made when it is needed and
    /// goes when nobody does any more. Nothing else may be in it.
    ///
    /// # Errors
    /// If it is not a path, or the caller is not in a tokio runtime.
    pub fn new(client: &Client, path: impl IntoPath) -> Result<Mutex, Error> {
        let place = Place::new(client, path, "a mutex")?;
        let line = Line::new(place, LOCK);
        Ok(Mutex { line, description: Bytes::new(), held: Weak::new() })
    }

    /// What others are told of the holder, the host's name for instance.
    pub fn describe(mut self, description: impl Into<Bytes>) -> Mutex {
        self.description = description.into();
        self
    }

    /// Who may do what with the nodes; everybody everything unless said. What is missing above the
    /// directory is everybody's.
    pub fn acl(mut self, acl: impl Into<Arc<[Acl]>>) -> Mutex {
        self.line.place.acl = acl.into();
        self
    }

    /// How long nobody gets the lock after its holder's session has expired (not after it was
    /// released): the time that writes which are under way may take to arrive. The servers keep it,
    /// by the leader's clock: if another one comes to lead whose clock is ahead, it is shorter by as
    /// much. None unless said.
    ///
    /// One who waits and whose session expires counts like a holder, since nobody can know whether
    /// it was just about to become one.
    pub fn lock_delay(mut self, delay: Duration) -> Mutex {
        self.line.place.lock_delay = delay;
        self
    }

    /// Waits for the lock. If the future is dropped, the place in the queue is given up.
    ///
    /// # Errors
    /// If the session ends, the node is deleted by hand, or the directory has other nodes in it.
    pub async fn lock(&mut self) -> Result<Hold, Error> {
        if let Some(owned) = self.held()? {
            return Ok(Hold { owned });
        }
        let body = Body::new("", self.description.clone());
        let (owned, entries) = self.line.enter_to_wait(body).await?;
        self.line.wait_alone(&owned, owned.path(), entries).await?;
        Ok(self.hold(owned))
    }

    /// Waits for the lock, but not longer than `time`.
    ///
    /// # Errors
    /// [`Error::Deadline`]; otherwise as [`lock`](Mutex::lock).
    pub async fn lock_within(&mut self, time: Duration) -> Result<Hold, Error> {
        let place = self.line.place.clone();
        within(time, &place, self.lock()).await
    }

    /// Takes the lock if it is free. Two reads if it is not.
    ///
    /// # Errors
    /// As [`lock`](Mutex::lock).
    pub async fn try_lock(&mut self) -> Result<Option<Hold>, Error> {
        if let Some(owned) = self.held()? {
            return Ok(Some(Hold { owned }));
        }
        if !self.line.is_free().await? {
            return Ok(None);
        }
        let (owned, entries) = self.line.enter(Body::new("", self.description.clone())).await?;
        if entries.first().is_none_or(|first| !first.is(owned.path())) {
            return Ok(None);
        }
        self.line.note_first(&owned, owned.path());
        Ok(Some(self.hold(owned)))
    }

    /// Who holds the lock now; `None` if nobody does.
    ///
    /// # Errors
    /// As [`lock`](Mutex::lock).
    pub async fn holder(&self) -> Result<Option<Holder>, Error> {
        for entry in self.line.list().await? {
            let path = self.line.path(&entry)?;
            match self.line.place.client.get(&path).await {
                Ok(node) => {
                    let body = node.data.as_ref().and_then(Body::decode);
                    let body = body.ok_or_else(|| self.line.place.malformed(&path, NO_BODY))?;
                    return Ok(Some(Holder {
                        token: node.stat.czxid.into(),
                        session: node.stat.ephemeral_owner,
                        description: body.text,
                    }));
                }
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// How many hold the lock or wait for it.
    ///
    /// # Errors
    /// As [`lock`](Mutex::lock).
    pub async fn contenders(&self) -> Result<usize, Error> {
        Ok(self.line.list().await?.len())
    }

    /// Asks who holds the lock to release it: [`Hold::revoked`] resolves there. Answer: the token of
    /// the holder who was asked, `None` if nobody holds it.
    ///
    /// # Errors
    /// As [`lock`](Mutex::lock).
    pub async fn revoke(&self) -> Result<Option<Token>, Error> {
        let client = &self.line.place.client;
        while let Some(first) = self.line.list().await?.first() {
            let path = self.line.path(first)?;
            let node = match client.get(&path).await {
                Ok(node) => node,
                Err(error) if error.code() == Some(ErrorCode::NoNode) => continue,
                Err(error) => return Err(error.into()),
            };
            let body = node.data.as_ref().and_then(Body::decode);
            let body = body.ok_or_else(|| self.line.place.malformed(&path, NO_BODY))?;
            let data = Body { word: REVOKED.to_owned(), ..body }.encode();
            let czxid = node.stat.czxid;
            let multi = client.multi().when(&path, Test::CreatedBy(czxid));
            if multi.set(&path, data, None).await?.held {
                return Ok(Some(czxid.into()));
            }
        }
        Ok(None)
    }

    /// What this handle holds already, unless it is lost.
    fn held(&self) -> Result<Option<Arc<Owned>>, Error> {
        let Some(owned) = self.held.upgrade() else { return Ok(None) };
        match owned.loss() {
            None => Ok(Some(owned)),
            // Its node is there yet: this handle would wait for itself.
            Some(loss @ Loss::Unwatched(_)) => Err(owned.lost(loss)),
            Some(_) => Ok(None),
        }
    }

    fn hold(&mut self, owned: Owned) -> Hold {
        let hold = Hold::new(owned);
        self.held = Arc::downgrade(&hold.owned);
        hold
    }
}
