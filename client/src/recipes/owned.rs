//! Nodes that stand for what this process holds or waits for: watched over, and never left behind.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use conclave_proto::request::{Reply, Test};
use conclave_proto::{ErrorCode, EventKind, SessionId, ZPath, limits};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::warn;

use super::body::Body;
use super::doubt::{certainty, suspicion};
use super::error::{Error, Loss, loss_of};
use super::place::Place;
use super::timer::sleep;
use super::token::Token;
use crate::{Client, MultiOutcome, Operation, Pending, Stake, State, WatchItem};

/// The word in the body of a node whose holder is asked to release it.
pub(super) const REVOKED: &str = "revoked";

/// What a node holds at last that was the first of its line when it was released: in the transaction
/// that deletes it, so that who watches it is told. It is shorter than what any node holds, so that
/// no quota refuses it, nobody's [`Body`], and nothing that is typed by hand.
pub(super) const RELEASED: &[u8] = b"\0released";

/// How long to wait before a refused removal is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// How it stands with what is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) loss: Option<Loss>,
    /// Somebody asked the holder to release it.
    pub(super) revoked: bool,
}

impl Standing {
    /// How it was lost, if it is for good.
    fn end(&self) -> Option<Loss> {
        self.loss.filter(|loss| *loss != Loss::Suspected)
    }
}

/// Nodes that this process made and watches over. They are deleted when this is dropped, whatever
/// the connection is like then.
pub(super) struct Owned {
    place: Place,
    stakes: Vec<Stake>,
    /// Whether nobody is before each of them in its line, which stays so as long as it is there.
    firsts: Vec<AtomicBool>,
    standing: Arc<watch::Sender<Standing>>,
    watchers: Vec<AbortHandle>,
    /// Whether the nodes are somebody else's business now, or are being deleted.
    given_up: AtomicBool,
}

impl Owned {
    /// Watches over nodes that were just made. There is at least one; its token is theirs.
    pub(super) fn new(place: &Place, stakes: Vec<Stake>) -> Owned {
        assert!(!stakes.is_empty(), "something that is held has a node");
        let standing = Arc::new(watch::Sender::new(Standing::default()));
        let watchers = stakes
            .iter()
            .map(|stake| {
                let watcher = Watcher {
                    client: place.client.clone(),
                    stake: stake.clone(),
                    standing: Arc::clone(&standing),
                };
                place.runtime.spawn(watcher.run()).abort_handle()
            })
            .collect();
        let firsts = stakes.iter().map(|_| AtomicBool::new(false)).collect();
        let given_up = AtomicBool::new(false);
        Owned { place: place.clone(), stakes, firsts, standing, watchers, given_up }
    }

    /// The same nodes and others, which come first.
    pub(super) fn with(self, mut stakes: Vec<Stake>) -> Owned {
        self.given_up.store(true, Ordering::Relaxed);
        stakes.extend_from_slice(&self.stakes);
        let all = Owned::new(&self.place, stakes);
        for stake in self.said_first() {
            all.is_first(&stake.path);
        }
        all
    }

    /// What takes the place of nodes that the same transaction has deleted.
    pub(super) fn replaced_by(self, place: &Place, stakes: Vec<Stake>) -> Owned {
        self.given_up.store(true, Ordering::Relaxed);
        Owned::new(place, stakes)
    }

    /// Notes that nobody is before this node in its line, which is one of one at a time. Nobody
    /// can come before it any more, so that its release says as much ([`RELEASED`]).
    pub(super) fn is_first(&self, path: &ZPath) {
        for (stake, first) in self.stakes.iter().zip(&self.firsts) {
            if stake.path == *path {
                first.store(true, Ordering::Relaxed);
            }
        }
    }

    fn said_first(&self) -> impl Iterator<Item = &Stake> {
        let both = self.stakes.iter().zip(&self.firsts);
        both.filter(|(_, first)| first.load(Ordering::Relaxed)).map(|(stake, _)| stake)
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn stakes(&self) -> &[Stake] {
        &self.stakes
    }

    /// The path of the node that the token is of.
    pub(super) fn path(&self) -> &ZPath {
        &self.stakes[0].path
    }

    pub(super) fn token(&self) -> Token {
        self.stakes[0].zxid.into()
    }

    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Whether it is held for certain, at this moment.
    pub(super) fn is_held(&self) -> bool {
        self.standing.borrow().loss.is_none()
            && self.place.client.certain_until() > Instant::now().into_std()
    }

    /// How it was lost, if it is for good.
    pub(super) fn loss(&self) -> Option<Loss> {
        self.standing.borrow().end()
    }

    /// Waits until it is lost for good.
    pub(super) async fn ended(&self) -> Error {
        let mut standing = self.standing();
        let loss = match standing.wait_for(|standing| standing.end().is_some()).await {
            Ok(standing) => standing.end(),
            Err(_) => None,
        };
        self.lost(loss.unwrap_or(Loss::Released))
    }

    pub(super) fn lost(&self, loss: Loss) -> Error {
        Error::Lost { path: self.path().clone(), token: self.token(), loss }
    }

    /// Deletes the nodes; returns when they are gone.
    ///
    /// # Errors
    /// If it was lost before, or the servers refuse.
    pub(super) async fn release(&self) -> Result<(), Error> {
        let before = self.standing.borrow().end();
        let Some(removal) = self.give_up() else {
            return Err(self.lost(before.unwrap_or(Loss::Released)));
        };
        // The removal goes on if the caller does not wait for its end.
        match self.place.runtime.spawn(removal).await {
            Ok(Ok(Removal::Done)) => Ok(()),
            // It was there when it was released, as far as was known, and is not any more.
            Ok(Ok(Removal::Unclear)) if before.is_none() => Ok(()),
            Ok(Ok(Removal::Unclear | Removal::Late)) => {
                Err(self.lost(before.unwrap_or(Loss::Deleted)))
            }
            Ok(Err(error)) => Err(error.into()),
            // The runtime is being shut down, and the session with it.
            Err(_) => Err(self.lost(Loss::Closed)),
        }
    }

    /// Asks for the nodes' deletion, and gives what waits for it; `None` if it was asked before.
    fn give_up(
        &self,
    ) -> Option<impl Future<Output = Result<Removal, crate::Error>> + Send + 'static> {
        if self.given_up.swap(true, Ordering::Relaxed) {
            return None;
        }
        lose(&self.standing, Loss::Released);
        let (client, stakes) = (self.place.client.clone(), self.stakes.clone());
        // Asked now, so that what the caller asks next finds them gone.
        let firsts: Vec<ZPath> = self.said_first().map(|stake| stake.path.clone()).collect();
        let first = remove(&client, &stakes, &firsts);
        Some(async move { remove_surely(&client, &stakes, first).await })
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(removal) = self.give_up() {
            self.place.runtime.spawn(removal);
        }
        for watcher in &self.watchers {
            watcher.abort();
        }
    }
}

/// Says that something is lost, unless it was said before.
fn lose(standing: &watch::Sender<Standing>, loss: Loss) {
    standing.send_if_modified(|standing| {
        let is_new = standing.end().is_none();
        if is_new {
            standing.loss = Some(loss);
        }
        is_new
    });
}

/// Watches over one node and the session.
struct Watcher {
    client: Client,
    stake: Stake,
    standing: Arc<watch::Sender<Standing>>,
}

impl Watcher {
    async fn run(self) {
        // The session may come into doubt while a watch is still being set.
        let loss = tokio::select! {
            loss = self.follow() => loss,
            never = self.doubt() => match never {},
        };
        lose(&self.standing, loss);
    }

    /// Watches the node until it is lost, and begins again when the servers refuse that for now.
    async fn follow(&self) -> Loss {
        loop {
            match self.watch().await {
                Ok(loss) => return loss,
                // Whoever may not read its own node is told nothing of it.
                Err(error) if error.code() == Some(ErrorCode::NoAuth) => {
                    return self.session_end().await;
                }
                Err(error) => {
                    let what = "a node of a recipe is not watched any more";
                    if let Err(error) = patience(&self.client, error, what).await {
                        return loss_of(&error);
                    }
                }
            }
        }
    }

    /// Waits for the end of the session, which is all that is known of a node that cannot be read.
    async fn session_end(&self) -> Loss {
        let mut states = self.client.states();
        while let Some(state) = states.next().await {
            if state == State::Expired {
                return Loss::Expired;
            }
        }
        Loss::Closed
    }

    /// Suspects the session whenever it is not certain to be alive.
    async fn doubt(&self) -> Infallible {
        loop {
            suspicion(&self.client).await;
            self.suspect(Some(Loss::Suspected));
            certainty(&self.client).await;
            self.suspect(None);
        }
    }

    /// One watch for each change: nearly every node has one change only, its deletion, with which its
    /// watch goes by itself.
    async fn watch(&self) -> Result<Loss, crate::Error> {
        while !self.is_over() {
            let mut watch = match self.client.get_and_watch(&self.stake.path).await {
                Ok((node, watch)) if node.stat.czxid == self.stake.zxid => {
                    self.note_word(node.data.as_ref().and_then(Body::decode));
                    watch
                }
                Ok(_) => return Ok(Loss::Deleted),
                Err(error) if error.code() == Some(ErrorCode::NoNode) => return Ok(Loss::Deleted),
                Err(error) => return Err(error),
            };
            match watch.next().await.transpose()? {
                Some(WatchItem::Event { kind: EventKind::Deleted, .. }) => {
                    return Ok(Loss::Deleted);
                }
                Some(WatchItem::Event { .. } | WatchItem::Gap { .. }) => {}
                None => return Ok(Loss::Closed),
            }
        }
        Ok(Loss::Released)
    }

    fn is_over(&self) -> bool {
        self.standing.borrow().end().is_some()
    }

    fn note_word(&self, body: Option<Body>) {
        if body.is_some_and(|body| body.word == REVOKED) {
            self.standing
                .send_if_modified(|standing| !std::mem::replace(&mut standing.revoked, true));
        }
    }

    /// Suspects the session, or finds it alive again.
    fn suspect(&self, loss: Option<Loss>) {
        self.standing.send_if_modified(|standing| {
            let changes = standing.end().is_none() && standing.loss != loss;
            if changes {
                standing.loss = loss;
            }
            changes
        });
    }
}

/// Asks for the deletion of the nodes, all or none; some of them are the first of their lines.
fn remove(client: &Client, stakes: &[Stake], firsts: &[ZPath]) -> Pending<MultiOutcome> {
    let mut multi = client.multi();
    // Not all can say that they were the first if there are very many: who waits for the others looks.
    let mut room = limits::MULTI_OPS.saturating_sub(2 * stakes.len());
    for Stake { path, zxid } in stakes {
        multi = multi.when(path, Test::CreatedBy(*zxid));
        if room > 0 && firsts.contains(path) {
            room -= 1;
            multi = multi.set(path, RELEASED, None);
        }
        multi = multi.delete(path, None);
    }
    multi.send()
}

/// What has come of the removal of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removal {
    /// All of them were there.
    Done,
    /// Some were not; but an attempt before may have been carried out whose answer was lost.
    Unclear,
    /// Some of them were not there any more.
    Late,
}

/// Deletes the nodes, however long it takes.
async fn remove_surely(
    client: &Client,
    stakes: &[Stake],
    first: Pending<MultiOutcome>,
) -> Result<Removal, crate::Error> {
    let (mut next, mut is_first, mut may_be_done) = (first, true, false);
    let outcome = loop {
        let error = match next.await {
            Ok(outcome) => break outcome,
            Err(error) => error,
        };
        may_be_done |= error.outcome_unknown();
        // Who may delete the nodes may not be allowed to write them: then nothing is said.
        if !is_first || error.code().is_none() {
            patience(client, error, NOT_DELETED).await?;
        }
        is_first = false;
        next = remove(client, stakes, &[]);
    };
    if outcome.held {
        return Ok(Removal::Done);
    }
    if stakes.len() > 1 {
        for stake in stakes {
            let again = || remove(client, std::slice::from_ref(stake), &[]);
            surely(client, again(), again).await?;
        }
    }
    Ok(if may_be_done { Removal::Unclear } else { Removal::Late })
}

/// Waits for the end of a removal, which is asked for again when the servers refuse it for now.
pub(super) async fn surely(
    client: &Client,
    first: Pending<MultiOutcome>,
    again: impl Fn() -> Pending<MultiOutcome>,
) -> Result<MultiOutcome, crate::Error> {
    let mut next = first;
    loop {
        match next.await {
            Ok(outcome) => return Ok(outcome),
            Err(error) => patience(client, error, NOT_DELETED).await?,
        }
        next = again();
    }
}

/// Deletes a node on that condition, however long it takes. It takes its place in the order of what
/// is asked now; nobody waits for it.
pub(super) fn delete_in_background(runtime: &Handle, client: Client, path: ZPath, test: Test) {
    let first = delete_if(&client, &path, &test);
    runtime.spawn(async move {
        let again = || delete_if(&client, &path, &test);
        // Why it is not possible was said; the node goes with its session.
        drop(surely(&client, first, again).await);
    });
}

fn delete_if(client: &Client, path: &ZPath, test: &Test) -> Pending<MultiOutcome> {
    client.multi().when(path, test.clone()).delete(path, None).send()
}

/// What is wrong if a removal fails for good.
const NOT_DELETED: &str = "a node of a recipe could not be deleted";

/// Waits until it makes sense to try again, or gives the error back, and says what is wrong then.
pub(super) async fn patience(
    client: &Client,
    error: crate::Error,
    what: &str,
) -> Result<(), crate::Error> {
    let is_refused_for_now = matches!(
        error.code(),
        Some(ErrorCode::OutcomeUnknown | ErrorCode::Throttled | ErrorCode::Unavailable)
    );
    let has_to_wait =
        matches!(error, crate::Error::Timeout { .. } | crate::Error::Overloaded { .. });
    if is_refused_for_now || has_to_wait {
        client.ready().await;
        sleep(client, AGAIN).await;
        return Ok(());
    }
    if !matches!(error, crate::Error::SessionExpired { .. } | crate::Error::Closed { .. }) {
        warn!("{what}: {error}");
    }
    Err(error)
}

/// Waits for what comes of a multi that creates nodes which stand for something; `None` if its
/// conditions did not hold. `tag` is that of the nodes' bodies, and `places` are where they are made.
///
/// It is settled even if nobody waits for it: then nothing is left behind.
pub(super) async fn claim(
    places: Vec<Place>,
    multi: Pending<MultiOutcome>,
    tag: u64,
) -> Result<Option<Claimed>, Error> {
    let (told, outcome) = oneshot::channel();
    let place = places[0].clone();
    place.runtime.clone().spawn(async move {
        let result = match multi.await {
            Ok(MultiOutcome { held: false, .. }) => Ok(None),
            Ok(MultiOutcome { replies, .. }) => {
                Ok(Some(Claimed { place, stakes: created(replies) }))
            }
            Err(error) => {
                if error.outcome_unknown() {
                    for place in places {
                        place.runtime.clone().spawn(forget(place, tag));
                    }
                }
                Err(error.into())
            }
        };
        // One who does not listen any more drops what was claimed, which gives it up.
        drop(told.send(result));
    });
    outcome.await.unwrap_or_else(|_| {
        let operation = Operation { name: "multi", path: None, index: None };
        Err(crate::Error::Closed { operation }.into())
    })
}

/// Nodes that were made for somebody who has not taken charge of them yet. Dropped, they are deleted:
/// whoever waited for them may be gone when they come.
pub(super) struct Claimed {
    place: Place,
    stakes: Vec<Stake>,
}

impl Claimed {
    /// The nodes, which are the caller's to look after now.
    pub(super) fn take(mut self) -> Vec<Stake> {
        std::mem::take(&mut self.stakes)
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if !self.stakes.is_empty() {
            drop(Owned::new(&self.place, std::mem::take(&mut self.stakes)));
        }
    }
}

fn created(replies: Vec<Reply>) -> Vec<Stake> {
    let stake = |reply| {
        if let Reply::Created { path, stat } = reply {
            Some(Stake { path, zxid: stat.czxid })
        } else {
            None
        }
    };
    replies.into_iter().filter_map(stake).collect()
}

/// Deletes the node with this tag that a create whose outcome is unknown may have left in the
/// directory, now or later.
pub(super) async fn forget(place: Place, tag: u64) {
    loop {
        let result = find(&place, tag).await;
        let error = match result {
            Ok(Some(stake)) => {
                let stakes = [stake];
                let first = remove(&place.client, &stakes, &[]);
                match remove_surely(&place.client, &stakes, first).await {
                    Ok(_) => return,
                    Err(error) => error,
                }
            }
            // The listing was asked after the create, and so shows what has come of it.
            Ok(None) => return,
            Err(error) => error,
        };
        if error.code() == Some(ErrorCode::NoNode)
            || patience(&place.client, error, NOT_DELETED).await.is_err()
        {
            return;
        }
    }
}

async fn find(place: &Place, tag: u64) -> Result<Option<Stake>, crate::Error> {
    let session: SessionId = place.client.session();
    let mut entries = place.client.list(&place.path).with_data().with_stat().stream();
    while let Some(entry) = entries.next().await.transpose()? {
        let stat = entry.stat.filter(|stat| stat.ephemeral_owner == session);
        let body = entry.data.as_ref().and_then(Body::decode);
        if let (Some(stat), Some(body)) = (stat, body)
            && body.tag == tag
            && let Ok(path) = place.path.child(&entry.name)
        {
            return Ok(Some(Stake { path, zxid: stat.czxid }));
        }
    }
    Ok(None)
}
