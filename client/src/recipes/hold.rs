//! What is held: a lock, a permit, the leadership.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use conclave_proto::limits;

use super::error::{Error, Loss};
use super::owned::Owned;
use super::place::Place;
use super::timer::timeout;
use super::token::Token;
use crate::{Multi, MultiOutcome};

/// Something that is held until it is released, dropped, or lost with the session.
///
/// Dropping it releases it, too, and does not wait for that.
///
/// # What to do with one
///
/// That this value exists does not prove that the lock is held: the session may have expired while
/// the process was paused. Three things protect against that:
///
/// - what is written to Conclave goes through [`guard`](Hold::guard): the servers check that the
///   lock is held, in the very transaction;
/// - what is done elsewhere carries the [`token`](Hold::token), and the other side refuses old ones;
/// - what lasts is ended when [`lost`](Hold::lost) resolves, which it does on suspicion, before
///   anybody else can have the lock.
#[must_use = "what is dropped is released"]
pub struct Hold {
    pub(super) owned: Arc<Owned>,
}

impl Hold {
    pub(super) fn new(owned: Owned) -> Hold {
        Hold { owned: Arc::new(owned) }
    }

    /// The fencing token: greater than that of everybody who held it before.
    pub fn token(&self) -> Token {
        self.owned.token()
    }

    /// The node that stands for it.
    pub fn path(&self) -> &conclave_proto::ZPath {
        self.owned.path()
    }

    /// Whether it is held for certain at this moment. It may not be any more when the caller acts
    /// on the answer: that is what [`guard`](Hold::guard) and the [`token`](Hold::token) are for.
    pub fn is_held(&self) -> bool {
        self.owned.is_held()
    }

    /// Resolves when it can no longer be assumed to be held, and says why.
    ///
    /// With [`Loss::Suspected`] it comes a tenth of the session timeout before the servers can let
    /// the session expire, so that there is time to stop, as far as clocks run at the same speed. It
    /// may turn out that it is still held; then it can be asked again. After a pause of the whole
    /// process it resolves as soon as the process runs again, which may be too late. After the whole
    /// machine was suspended it can take a session timeout more: see
    /// [`Client::certain_until`](crate::Client::certain_until).
    pub fn lost(&self) -> impl Future<Output = Loss> + Send + 'static {
        let mut standing = self.owned.standing();
        async move {
            match standing.wait_for(|standing| standing.loss.is_some()).await {
                Ok(standing) => standing.loss.unwrap_or(Loss::Released),
                Err(_) => Loss::Released,
            }
        }
    }

    /// Resolves when somebody asks for it to be released (and when it is lost): see
    /// [`Mutex::revoke`](super::Mutex::revoke). The holder does so when it is ready, or not at all.
    pub fn revoked(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut standing = self.owned.standing();
        async move {
            // Without a sender it is released, which is what was asked for.
            let awaited = standing.wait_for(|standing| standing.revoked || standing.loss.is_some());
            drop(awaited.await);
        }
    }

    /// Does these writes if it is still held when they are done, by the order of history: a write
    /// that comes too late changes nothing.
    ///
    /// One round trip, as without the guard. Of the 1000 operations of a multi, the guard takes
    /// one for each node that is held (a [`MultiLock`](super::MultiLock) holds one for each lock,
    /// a leadership two, most others one), and twice as many in a multi with conditions.
    ///
    /// # Errors
    /// [`Error::Lost`] if it is not held any more. Otherwise as the multi, whose own guards and
    /// conditions fail as they do without this one.
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::recipes::Error> {
    /// # let mut mutex = conclave_client::recipes::Mutex::new(client, "/locks/report")?;
    /// let hold = mutex.lock().await?;
    /// hold.guard(client.multi().set("/report", "done by me", None)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn guard(&self, multi: Multi<'_>) -> Result<MultiOutcome, Error> {
        let holder = &self.owned.place().client;
        let outcome = multi.guarded_by(holder, self.owned.stakes()).await?;
        outcome.ok_or_else(|| self.owned.lost(self.owned.loss().unwrap_or(Loss::Deleted)))
    }

    /// How many operations a multi without conditions may have to be [guarded](Hold::guard).
    pub(super) fn room(&self) -> usize {
        limits::MULTI_OPS - self.owned.stakes().len()
    }

    /// Asks the servers whether it is still held: after [`Loss::Suspected`], for instance.
    ///
    /// # Errors
    /// [`Error::Lost`] if it is not. Any other error leaves it open.
    pub async fn confirm(&self) -> Result<(), Error> {
        self.guard(self.owned.place().client.multi()).await.map(drop)
    }

    /// Releases it; when this returns, the next one may have it. One round trip.
    ///
    /// If a lock was taken several times by its handle, it is released with the last of the holds.
    ///
    /// # Errors
    /// [`Error::Lost`] if it was not held any more: somebody else may have been at it meanwhile.
    pub async fn release(self) -> Result<(), Error> {
        match Arc::into_inner(self.owned) {
            Some(owned) => owned.release().await,
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("path", self.path()).field("token", &self.token()).finish()
    }
}

/// Gives up when the time is over.
pub(super) async fn within<T>(
    time: Duration,
    place: &Place,
    attempt: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match timeout(&place.client, time, attempt).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::Deadline { path: place.path.clone() }),
    }
}
