//! What is had for a bounded time, without waiting, and without a session.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::request::Test;
use conclave_proto::{Acl, CreateMode, ErrorCode, Lifetime, ZPath};
use tokio::time::Instant;

use super::body::{Body, NO_BODY};
use super::error::{Error, Loss};
use super::place::Place;
use super::support::{kept_ms, later};
use super::timer::sleep_until;
use super::token::Token;
use crate::{Client, IntoPath, Multi, MultiOutcome, Stake};

/// A lease: one at a time has it, for a bounded time. Nobody waits for it, and it does not depend on
/// the session: it outlives its holder until its time is over.
///
/// ```no_run
/// use std::time::Duration;
/// use conclave_client::Client;
/// use conclave_client::recipes::{Error, Lease};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
/// let lease = Lease::new(&client, "/leases/daily-cleanup", Duration::from_secs(3600))?;
/// match lease.acquire("host 1").await? {
///     Some(held) => println!("it is mine for an hour; my token is {}", held.token()),
///     None => println!("somebody else has done it in the last hour"),
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Guarantees
///
/// The servers count the time, by the leader's clock, from the transaction that gave or renewed the
/// lease; clients need no clock that agrees with anybody's. A lease ends up to a second later than
/// that, never earlier, unless the clock of the leader is put forward, or that of a new leader is
/// ahead of the old one's: then it ends earlier by the difference. Where that matters, keep the
/// servers' clocks together, or trust [`LeaseHold::guard`] and the [`Token`] alone.
///
/// | when | what happens |
/// |---|---|
/// | the connection is lost, the session expires | the lease goes on; another session can use its [`guard`](crate::Multi::guard) |
/// | the process is paused | the lease may be over when it wakes up: [`LeaseHold::is_held`] and [`LeaseHold::lost`] say so, by the time at which it was asked for; `guard` fails |
/// | a leader dies | the lease goes on |
/// | two think they have it | their tokens differ, and the later one's is greater |
///
/// # Cost
///
/// One round trip and one write to get, renew or release it; one round trip more if somebody else
/// has it. One node, no watches.
#[derive(Clone)]
pub struct Lease {
    /// The directory that the lease is in.
    place: Place,
    path: ZPath,
    time: Duration,
}

impl Lease {
    /// The lease that the node at `path` stands for.
    ///
    /// # Errors
    /// If it is not a path, or is the root, the time is less than a millisecond, or the caller is not
    /// in a tokio runtime.
    pub fn new(client: &Client, path: impl IntoPath, time: Duration) -> Result<Lease, Error> {
        let (place, path) = Place::of_node(client, path, "a lease")?;
        if time < Duration::from_millis(1) {
            return Err(Error::Config(format!("a lease of {time:?} is over before it begins")));
        }
        Ok(Lease { place, path, time })
    }

    /// Who may do what with the node; everybody everything unless said.
    pub fn acl(mut self, acl: impl Into<Arc<[Acl]>>) -> Lease {
        self.place.acl = acl.into();
        self
    }

    /// Takes the lease; `None` if somebody has it, the caller included. `holder` is what others are
    /// told of the holder.
    ///
    /// If the future is dropped, the lease may have been taken all the same; then nobody has it until
    /// its time is over.
    ///
    /// # Errors
    /// [`Error::Malformed`] if what is there is no lease, or was edited by hand: it has no end. If the
    /// servers refuse, or cannot be reached. After one whose [outcome is
    /// unknown](Error::outcome_unknown), too, the lease may be taken.
    pub async fn acquire(&self, holder: impl Into<Bytes>) -> Result<Option<LeaseHold>, Error> {
        let data = Body::new("", holder.into()).encode();
        let lifetime = Lifetime::Ttl(kept_ms(self.time));
        let mode = CreateMode { lifetime, ..CreateMode::default() };
        loop {
            let asked = Instant::now();
            let create = self.place.client.create(&self.path, data.clone());
            match create.mode(mode).acl(self.place.acl.clone()).await {
                Ok(created) => {
                    let stake = Stake { path: created.path, zxid: created.stat.czxid };
                    let (place, data) = (self.place.clone(), data);
                    let (time, until) = (self.time, later(asked, self.time));
                    return Ok(Some(LeaseHold { place, stake, data, time, until }));
                }
                Err(error) if error.code() == Some(ErrorCode::NodeExists) => {
                    // What is no lease would never be over.
                    self.holder().await?;
                    return Ok(None);
                }
                Err(error) if error.code() == Some(ErrorCode::NoNode) => {
                    self.place.make_persistent().await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What the holder says of itself; `None` if nobody has the lease.
    ///
    /// # Errors
    /// If the node was edited by hand.
    pub async fn holder(&self) -> Result<Option<(Token, Bytes)>, Error> {
        match self.place.client.get(&self.path).await {
            Ok(node) => match node.data.as_ref().and_then(Body::decode) {
                Some(body) => Ok(Some((node.stat.czxid.into(), body.text))),
                None => Err(self.place.malformed(&self.path, NO_BODY)),
            },
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A lease that is held until its time is over or it is released. Dropping it does not release it.
#[derive(Clone)]
pub struct LeaseHold {
    place: Place,
    stake: Stake,
    data: Bytes,
    time: Duration,
    until: Instant,
}

impl LeaseHold {
    /// The fencing token: greater than that of everybody who had it before.
    pub fn token(&self) -> Token {
        self.stake.zxid.into()
    }

    /// The node that stands for it.
    pub fn path(&self) -> &ZPath {
        &self.stake.path
    }

    /// Until when it is held for certain: its time, from when it was asked for or renewed.
    pub fn until(&self) -> std::time::Instant {
        self.until.into_std()
    }

    /// Whether it is held for certain at this moment.
    pub fn is_held(&self) -> bool {
        Instant::now() < self.until
    }

    /// Resolves when its time, as it is known when this is called, is over.
    pub async fn lost(&self) {
        sleep_until(&self.place.client, self.until).await;
    }

    /// Lets the time begin anew.
    ///
    /// # Errors
    /// [`Error::Lost`] if it is over.
    pub async fn renew(&mut self) -> Result<(), Error> {
        let asked = Instant::now();
        let multi = self.place.client.multi().set(&self.stake.path, self.data.clone(), None);
        self.guard(multi).await?;
        self.until = later(asked, self.time);
        Ok(())
    }

    /// Does these writes if the lease is still held when they are done, by the order of history.
    ///
    /// # Errors
    /// [`Error::Lost`] if it is over. Otherwise as the multi.
    pub async fn guard(&self, multi: Multi<'_>) -> Result<MultiOutcome, Error> {
        let stakes = std::slice::from_ref(&self.stake);
        let outcome = multi.guarded_by(&self.place.client, stakes).await?;
        outcome.ok_or_else(|| self.lost_error())
    }

    /// Gives it back before its time is over.
    ///
    /// # Errors
    /// [`Error::Lost`] if it was over before.
    pub async fn release(self) -> Result<(), Error> {
        let Stake { path, zxid } = &self.stake;
        let multi = self.place.client.multi().when(path, Test::CreatedBy(*zxid));
        let outcome = multi.delete(path, None).await?;
        if outcome.held { Ok(()) } else { Err(self.lost_error()) }
    }

    fn lost_error(&self) -> Error {
        Error::Lost { path: self.stake.path.clone(), token: self.token(), loss: Loss::Expired }
    }
}

impl fmt::Debug for LeaseHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseHold")
            .field("path", self.path())
            .field("token", &self.token())
            .finish_non_exhaustive()
    }
}

/// Leases of which so many can be held at once.
///
/// ```no_run
/// use std::time::Duration;
/// use conclave_client::Client;
/// use conclave_client::recipes::{Error, MultiLease};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
/// let leases = MultiLease::new(&client, "/leases/reindex", 3, Duration::from_secs(60))?;
/// if let Some(mut held) = leases.acquire("host 1").await? {
///     held.renew().await?;
///     held.release().await?;
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Guarantees
///
/// Those of [`Lease`], for so many at once. All who use them should name the same number.
///
/// # Cost
///
/// One read and one write to get one, and one write more for each that somebody else took at the same
/// moment. One node for each that is held, and their directory, which stays; no watches.
#[derive(Clone)]
pub struct MultiLease {
    place: Place,
    slots: Vec<Lease>,
}

impl MultiLease {
    /// So many leases, whose nodes are in the directory `path`.
    ///
    /// # Errors
    /// As [`Lease::new`], and if there are to be none.
    pub fn new(
        client: &Client,
        path: impl IntoPath,
        limit: u16,
        time: Duration,
    ) -> Result<MultiLease, Error> {
        let place = Place::new(client, path, "a multi-lease")?;
        if limit == 0 {
            return Err(Error::Config("a multi-lease of 0 leases is never to be had".into()));
        }
        let slots = (0..limit)
            .map(|slot| Lease::new(client, place.child(&format!("slot-{slot}"))?, time))
            .collect::<Result<_, _>>()?;
        Ok(MultiLease { place, slots })
    }

    /// Takes one of the leases; `None` if all are had.
    ///
    /// # Errors
    /// As [`Lease::acquire`], or if the directory has other nodes in it. What is no lease in the place
    /// of one is told when no other one is to be had.
    pub async fn acquire(&self, holder: impl Into<Bytes>) -> Result<Option<LeaseHold>, Error> {
        let (holder, taken) = (holder.into(), self.taken().await?);
        for lease in &self.slots {
            if !taken.contains_key(lease.path.name())
                && let Some(hold) = lease.acquire(holder.clone()).await?
            {
                return Ok(Some(hold));
            }
        }
        match taken.iter().find(|(_, is_lease)| !**is_lease) {
            // It would never be over.
            Some((name, _)) => Err(self.place.malformed(&self.place.child(name)?, NO_BODY)),
            None => Ok(None),
        }
    }

    /// The names of the slots that are taken, and whether it is a lease that takes each.
    async fn taken(&self) -> Result<BTreeMap<String, bool>, Error> {
        let mut taken = BTreeMap::new();
        let mut entries = self.place.client.list(&self.place.path).with_data().stream();
        while let Some(entry) = entries.next().await {
            let entry = match entry {
                Err(error) if error.code() == Some(ErrorCode::NoNode) => break,
                entry => entry?,
            };
            let slot = entry.name.strip_prefix("slot-");
            if slot.is_none_or(|slot| slot.parse::<u16>().is_err()) {
                return Err(self.place.foreign(&entry.name));
            }
            taken.insert(entry.name, entry.data.as_ref().and_then(Body::decode).is_some());
        }
        Ok(taken)
    }
}
