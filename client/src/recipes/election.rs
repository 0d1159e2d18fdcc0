//! Leader election.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::request::Test;
use conclave_proto::{Acl, ErrorCode, SessionId, WatchKind, ZPath};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::body::{Body, NO_BODY};
use super::error::{Error, Loss};
use super::hold::{Hold, within};
use super::line::Line;
use super::owned::{Claimed, Owned, claim, patience};
use super::place::Place;
use super::token::Token;
use crate::{Client, IntoPath, Multi, MultiOutcome, Stake, Watch};

/// The node that stands for the leadership.
const LEADER: &str = "leader";

/// An election: of the candidates, one at a time leads.
///
/// ```no_run
/// use conclave_client::Client;
/// use conclave_client::recipes::{Election, Error};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
/// let election = Election::new(&client, "/services/billing/election")?;
///
/// loop {
///     let leadership = election.campaign("10.0.0.7:8080").await?;
///     println!("I lead; my token is {}", leadership.token());
///     tokio::select! {
///         () = lead(leadership.token().get()) => return leadership.resign().await,
///         loss = leadership.lost() => println!("I lead no more: {loss}"),
///     }
/// }
/// # }
/// # async fn lead(token: u64) {}
/// ```
///
/// [`campaign`](Election::campaign) waits until this process leads. [`latch`](Election::latch) keeps
/// running for it in the background, and tells when it begins and ends.
/// [`observe`](Election::observe) follows who leads, for everybody else.
///
/// # Guarantees
///
/// At any point of history at most one leads, and each leader's [`Token`] is greater than all
/// before.
///
/// | when | what happens |
/// |---|---|
/// | the connection is lost | the leadership, or the candidacy, is kept while the client looks for another server |
/// | the session expires | the leadership goes to a successor. [`Leadership::lost`] has resolved before |
/// | the process is paused | if for longer than the session timeout, another one leads when it wakes up. Its writes through [`Leadership::guard`] fail; others must be stopped by the token |
/// | a leader of the servers dies | as if the connection was lost; sessions get their whole timeout again |
/// | two think they lead | possible only as above; the later one's token is greater |
/// | the leader's node is deleted by hand | it loses the leadership ([`Loss::Deleted`]), and the next one has it |
///
/// The successor is the candidate that has waited longest, or, if all say so, a [random
/// one](Election::random).
///
/// # Cost
///
/// A campaign takes two round trips and two writes, and one more round trip to wait for
/// its turn. A leader that resigns is followed after one write for its end and one for its successor. A
/// candidate has one node, a watch on it, and one on the node before it; the leader one node more. When
/// the leader ends, the next candidate is told and no other; each observer has one watch.
#[derive(Clone)]
pub struct Election {
    line: Line,
    /// How long the leader's node is kept after its session has expired.
    lock_delay: Duration,
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The fencing token.
    pub token: Token,
    /// The session; none if it has expired and nobody may lead before the lock-delay is over.
    pub session: SessionId,
    /// What it proclaims.
    pub value: Bytes,
}

impl Election {
    /// The election whose candidates are in the directory `path`. The directory is made when it is
    /// needed and goes when nobody does any more. Nothing else may be in it.
    ///
    /// # Errors
    /// If it is not a path, or the caller is not in a tokio runtime.
    pub fn new(client: &Client, path: impl IntoPath) -> Result<Election, Error> {
        let place = Place::new(client, path, "an election")?;
        let line = Line { others: &[LEADER], ..Line::new(place, "candidate") };
        Ok(Election { line, lock_delay: Duration::ZERO })
    }

    /// The successor is not the candidate that has waited longest but a random one of the 64, or so,
    /// that have: nobody is passed over by more than so many who came later. All candidates
    /// of an election should say the same.
    pub fn random(mut self) -> Election {
        self.line.random = true;
        self
    }

    /// Who may do what with the nodes; everybody everything unless said.
    pub fn acl(mut self, acl: impl Into<Arc<[Acl]>>) -> Election {
        self.line.place.acl = acl.into();
        self
    }

    /// How long nobody leads after the leader's session has expired (not after it resigned). The
    /// servers keep it, by the leader's clock. None unless said.
    pub fn lock_delay(mut self, delay: Duration) -> Election {
        self.lock_delay = delay;
        self
    }

    /// Stands for election, and waits until it leads and has proclaimed `value`. If the future is
    /// dropped, the candidacy is withdrawn.
    ///
    /// # Errors
    /// If the session ends, the candidate's node is deleted by hand, or the directory has other
    /// nodes in it.
    pub async fn campaign(&self, value: impl Into<Bytes>) -> Result<Leadership, Error> {
        let value = value.into();
        let (candidate, mut entries) = self.line.enter(Body::new("", value.clone())).await?;
        let leader = self.line.place.child(LEADER)?;
        loop {
            self.line.wait_alone(&candidate, candidate.path(), entries).await?;
            match self.take(&candidate, &leader, Body::new("", value.clone())).await? {
                Some(leader) => {
                    return Ok(Leadership { hold: Hold::new(candidate.with(leader.take())) });
                }
                None => self.vacancy(&candidate, &leader).await?,
            }
            entries = self.line.list().await?;
        }
    }

    /// As [`campaign`](Election::campaign), but not longer than `time`.
    ///
    /// # Errors
    /// [`Error::Deadline`]; otherwise as [`campaign`](Election::campaign).
    pub async fn campaign_within(
        &self,
        value: impl Into<Bytes>,
        time: Duration,
    ) -> Result<Leadership, Error> {
        within(time, &self.line.place, self.campaign(value)).await
    }

    /// Keeps standing for election in the background until the latch is dropped.
    pub fn latch(&self, value: impl Into<Bytes>) -> Latch {
        let (sender, changes) = watch::channel(Ok(None));
        let (election, value) = (self.clone(), value.into());
        let task = self.line.place.runtime.spawn(async move {
            let error = election.lead_again_and_again(value, &sender).await;
            drop(sender.send_replace(Err(error)));
        });
        Latch { changes, task: task.abort_handle() }
    }

    /// Who leads now, as far as the server knows that the client is connected to; `None` if nobody
    /// does.
    ///
    /// # Errors
    /// If the node that stands for the leadership was edited by hand; otherwise as a read.
    pub async fn leader(&self) -> Result<Option<Leader>, Error> {
        leader(&self.line.place).await
    }

    /// Follows who leads: the present one first, then each one that comes, and `None` when one
    /// goes.
    ///
    /// # Errors
    /// If the watch cannot be set.
    pub async fn observe(&self) -> Result<Observer, Error> {
        let place = self.line.place.clone();
        let path = place.child(LEADER)?;
        let watch = place.client.watch(&path, WatchKind::Persistent).await?;
        Ok(Observer { place, watch, is_stale: true, last: None })
    }

    /// Creates the leader's node, if there is none and this candidate still stands.
    async fn take(
        &self,
        candidate: &Owned,
        leader: &ZPath,
        body: Body,
    ) -> Result<Option<Claimed>, Error> {
        let place = Place { lock_delay: self.lock_delay, ..self.line.place.clone() };
        let Stake { path, zxid } = &candidate.stakes()[0];
        let (mode, acl) = (place.mode(false), place.acl.clone());
        let multi = place
            .client
            .multi()
            .when(leader, Test::Missing)
            .create_with(leader, body.encode(), mode, acl)
            .guard(path, *zxid)
            .send();
        match claim(vec![place.clone()], multi, body.tag).await {
            Err(error) if error.code() == Some(ErrorCode::ConditionFailed) => {
                Err(candidate.lost(Loss::Deleted))
            }
            outcome => outcome,
        }
    }

    /// Waits until the leader that stands in the way is gone.
    async fn vacancy(&self, candidate: &Owned, leader: &ZPath) -> Result<(), Error> {
        let place = &self.line.place;
        let (node, mut watch) = match place.client.get_and_watch(leader).await {
            Ok(found) => found,
            Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        // What is no leader's may stay for ever.
        node.data
            .as_ref()
            .and_then(Body::decode)
            .ok_or_else(|| place.malformed(leader, NO_BODY))?;
        tokio::select! {
            item = watch.next() => drop(item.transpose()?),
            error = candidate.ended() => return Err(error),
        }
        Ok(())
    }

    async fn lead_again_and_again(
        &self,
        value: Bytes,
        changes: &watch::Sender<Result<Option<Arc<Leadership>>, Error>>,
    ) -> Error {
        loop {
            let leadership = match self.campaign(value.clone()).await {
                Ok(leadership) => Arc::new(leadership),
                // Deleted by hand: stand again.
                Err(Error::Lost { loss: Loss::Deleted, .. }) => continue,
                // What will pass does not end the candidacy.
                Err(Error::Client(error)) => {
                    let what = "an election's latch has ended";
                    match patience(&self.line.place.client, error, what).await {
                        Ok(()) => continue,
                        Err(error) => return error.into(),
                    }
                }
                Err(error) => return error,
            };
            drop(changes.send_replace(Ok(Some(Arc::clone(&leadership)))));
            let loss = leadership.lost().await;
            drop(changes.send_replace(Ok(None)));
            // Others may still have it; it is over all the same.
            drop(leadership.hold.owned.release().await);
            if let Loss::Unwatched(_) = loss {
                // The next one would end like this.
                return leadership.hold.owned.lost(loss);
            }
        }
    }
}

async fn leader(place: &Place) -> Result<Option<Leader>, Error> {
    let path = place.child(LEADER)?;
    match place.client.get(&path).await {
        Ok(node) => match node.data.as_ref().and_then(Body::decode) {
            Some(Body { text: value, .. }) => {
                let (token, session) = (node.stat.czxid.into(), node.stat.ephemeral_owner);
                Ok(Some(Leader { token, session, value }))
            }
            None => Err(place.malformed(&path, NO_BODY)),
        },
        Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The leadership, until it is resigned, dropped, or lost with the session.
///
/// It is a [`Hold`], and everything said there holds for it.
#[must_use = "a leadership that is dropped is resigned"]
#[derive(Debug)]
pub struct Leadership {
    hold: Hold,
}

impl Leadership {
    /// The fencing token: greater than that of everybody who led before.
    pub fn token(&self) -> Token {
        self.hold.token()
    }

    /// The hold that it is.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// See [`Hold::is_held`].
    pub fn is_held(&self) -> bool {
        self.hold.is_held()
    }

    /// See [`Hold::lost`].
    pub fn lost(&self) -> impl Future<Output = Loss> + Send + 'static {
        self.hold.lost()
    }

    /// See [`Hold::guard`].
    ///
    /// # Errors
    /// [`Error::Lost`] if another one may lead already. Otherwise as the multi.
    pub async fn guard(&self, multi: Multi<'_>) -> Result<MultiOutcome, Error> {
        self.hold.guard(multi).await
    }

    /// Tells observers another value.
    ///
    /// # Errors
    /// [`Error::Lost`] if another one may lead already.
    pub async fn proclaim(&self, value: impl Into<Bytes>) -> Result<(), Error> {
        let owned = &self.hold.owned;
        let data = Body::new("", value.into()).encode();
        let multi = owned.place().client.multi().set(owned.path(), data, None);
        self.guard(multi).await.map(drop)
    }

    /// Ends the leadership and the candidacy; when this returns, another one may lead.
    ///
    /// # Errors
    /// [`Error::Lost`] if it was over before.
    pub async fn resign(self) -> Result<(), Error> {
        self.hold.release().await
    }
}

/// A candidacy that goes on: after each leadership it stands again. Dropping it withdraws it.
///
/// ```no_run
/// use conclave_client::Client;
/// use conclave_client::recipes::{Election, Error};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
/// let mut latch = Election::new(&client, "/services/billing/election")?.latch("10.0.0.7:8080");
/// loop {
///     match latch.changed().await? {
///         Some(leadership) => println!("I lead, with token {}", leadership.token()),
///         None => println!("I do not lead"),
///     }
/// }
/// # }
/// ```
#[must_use = "a latch that is dropped withdraws"]
pub struct Latch {
    changes: watch::Receiver<Result<Option<Arc<Leadership>>, Error>>,
    task: AbortHandle,
}

impl Latch {
    /// The leadership, if this process has it now for certain.
    pub fn leadership(&self) -> Option<Arc<Leadership>> {
        let now = self.changes.borrow().clone().ok().flatten();
        now.filter(|leadership| leadership.is_held())
    }

    /// Waits for the next change: the leadership when it begins, `None` when it ends. Changes that
    /// nobody waited for are left out; the last one is not.
    ///
    /// # Errors
    /// If it cannot go on: the session has ended, or the directory has other nodes in it.
    pub async fn changed(&mut self) -> Result<Option<Arc<Leadership>>, Error> {
        // The task ends only after it has said why.
        drop(self.changes.changed().await);
        self.changes.borrow_and_update().clone()
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A stream of leaders; see [`Election::observe`].
#[must_use = "an observer does nothing unless it is asked"]
pub struct Observer {
    place: Place,
    watch: Watch,
    /// Something has happened since the last reading.
    is_stale: bool,
    /// What was told last; the outer `None`: nothing yet.
    last: Option<Option<Leader>>,
}

impl Observer {
    /// Who leads, as soon as it is another one than was told before, or proclaims something else.
    /// Of several changes in short time only the last may be told.
    ///
    /// If the future is dropped, or fails for a reason that passes, no change is lost: the next call
    /// tells it.
    ///
    /// # Errors
    /// If the session ends, or the leader's node was edited by hand.
    pub async fn next(&mut self) -> Result<Option<Leader>, Error> {
        loop {
            if !self.is_stale {
                let item = self.watch.next().await.transpose()?;
                if item.is_none() {
                    return Err(Error::Config(String::from("the observer's watch has ended")));
                }
                self.is_stale = true;
            }
            let now = leader(&self.place).await?;
            self.is_stale = false;
            if self.last.as_ref() != Some(&now) {
                self.last = Some(now.clone());
                return Ok(now);
            }
        }
    }
}
