//! An item that a consumer has taken, and its lock.

use bytes::Bytes;
use conclave_proto::{ZPath, Zxid};
use tokio::runtime::Handle;

use super::super::doubt::suspicion;
use super::super::owned::delete_in_background;
use crate::recipes::{Error, Loss, Token};
use crate::{Client, Multi, Test};

/// The lock of an item, which is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    pub(super) client: Client,
    pub(super) runtime: Handle,
    pub(super) path: ZPath,
    /// What it holds, so that nobody else's is given back.
    pub(super) tag: Bytes,
    pub(super) is_held: bool,
}

impl Lock {
    pub(super) fn forget(mut self) {
        self.is_held = false;
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.is_held {
            let (client, path) = (self.client.clone(), self.path.clone());
            let mine = Test::Data(self.tag.clone());
            delete_in_background(&self.runtime, client, path, mine);
        }
    }
}

/// An item that was taken. Dropping it gives it back.
#[derive(Debug)]
#[must_use = "an item that is dropped goes to the next consumer"]
pub struct Item {
    pub(super) lock: Lock,
    pub(super) path: ZPath,
    pub(super) made_by: Zxid,
    pub(super) id: Option<ZPath>,
    /// What made the node of the id: the same, unless both were restored from a backup.
    pub(super) id_made_by: Zxid,
    pub(super) data: Bytes,
    pub(super) token: Zxid,
}

impl Item {
    /// What was pushed.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The id it was pushed under.
    pub fn id(&self) -> Option<&str> {
        self.id.as_ref().map(ZPath::name)
    }

    /// Its node.
    pub fn path(&self) -> &ZPath {
        &self.path
    }

    /// The fencing token: when the item is taken again, by this or another consumer, it is greater.
    pub fn token(&self) -> Token {
        Token::from(self.token)
    }

    /// Resolves when the session is no longer alive for certain, a tenth of the session timeout before
    /// another consumer can have the item: stop working on it. It may turn out to be this consumer's
    /// still, which [`done`](Item::done) tells. That its lock was deleted by hand is told by that alone.
    pub fn lost(&self) -> impl Future<Output = Loss> + Send + 'static {
        let client = self.lock.client.clone();
        async move {
            suspicion(&client).await;
            Loss::Suspected
        }
    }

    /// It is done: it leaves the queue.
    ///
    /// # Errors
    /// [`Error::Lost`] if it was not this consumer's any more: another one has it, or had it; or it
    /// was taken back by its id, or deleted by hand. Any other error leaves it open: the item is
    /// given back, unless it is done.
    pub async fn done(self) -> Result<(), Error> {
        let mut multi = self.held().when(&self.path, Test::CreatedBy(self.made_by));
        if let Some(id) = &self.id {
            multi = multi.when(id, Test::CreatedBy(self.id_made_by)).delete(id, None);
        }
        let held = multi.delete(&self.lock.path, None).delete(&self.path, None).await?.held;
        if held {
            self.lock.forget();
            return Ok(());
        }
        let (has_id, lost) = (self.id.is_some(), self.gone());
        // Its id may have been removed meanwhile.
        if has_id && self.leave().await? { Ok(()) } else { Err(lost) }
    }

    /// Leaves the queue, whatever has become of its id. False if it was not this consumer's any more.
    pub(super) async fn leave(self) -> Result<bool, Error> {
        let multi = self.held().when(&self.path, Test::CreatedBy(self.made_by));
        let held = multi.delete(&self.lock.path, None).delete(&self.path, None).await?.held;
        if held {
            self.lock.forget();
        }
        Ok(held)
    }

    /// Whether it was taken back by its id, which the same transaction made as the item, or, when a
    /// backup was restored, an earlier one: if it is not there, or is that of a later item.
    pub(super) async fn is_taken_back(&mut self) -> Result<bool, Error> {
        let Some(id) = &self.id else { return Ok(false) };
        let stat = self.lock.client.exists(id).await?;
        self.id_made_by = stat.map_or(self.made_by, |stat| stat.czxid);
        Ok(stat.is_none() || self.id_made_by > self.made_by)
    }

    /// It goes back to the queue, to its old place; it is there when this returns.
    ///
    /// # Errors
    /// [`Error::Lost`] if it was not this consumer's any more.
    pub async fn release(self) -> Result<(), Error> {
        let held = self.held().delete(&self.lock.path, None).await?.held;
        if !held {
            return Err(self.gone());
        }
        self.lock.forget();
        Ok(())
    }

    /// What is done only while the lock is held.
    fn held(&self) -> Multi<'_> {
        self.lock.client.multi().when(&self.lock.path, Test::CreatedBy(self.token))
    }

    fn gone(&self) -> Error {
        Error::Lost { path: self.path.clone(), token: self.token(), loss: Loss::Deleted }
    }
}
