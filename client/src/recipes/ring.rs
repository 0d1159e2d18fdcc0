//! A consistent-hash ring over the live members of a group: which member has which keys, and which
//! keys move when members come and go.
//!
//! ```no_run
//! use conclave_client::Client;
//! use conclave_client::recipes::members::Group;
//! use conclave_client::recipes::ring::LiveRing;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), conclave_client::recipes::Error> {
//! let client = Client::connect("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420").await?;
//! let group = Group::new(&client, "/groups/shards")?;
//! let _me = group.join("shard-1", "10.0.0.7:8080").await?;
//!
//! let mut live = LiveRing::new(group.members().await?)?;
//! println!("user-17 is at {:?}", live.ring().owner("user-17"));
//! loop {
//!     let moves = live.changed().await?;
//!     for moved in moves.iter().filter(|moved| moved.from.as_deref() == Some("shard-1")) {
//!         println!("hand the keys of {moved:?} over");
//!     }
//! }
//! # }
//! ```
//!
//! # Guarantees
//!
//! Everybody who sees the same members has the same ring, in any process and version of this
//! library. When a member comes, keys move to it alone; when one goes, its keys alone move.
//!
//! - *Lost connection, dead leader*: the ring stays as it is.
//! - *Expired session*: a member leaves the ring when the servers end its session; a
//!   [`LiveRing`] ends with [`Error::Ended`] when its own does.
//! - *Paused process*: it goes by an old ring until it is told.
//! - *Two holders by mistake*: two processes that have not been told the same yet may both take a key
//!   for theirs. Where that must not be, take the keys by a lock or as
//!   [partitions](super::partition), and give their token along.
//!
//! # Cost
//!
//! One cache of the members. Finding an owner takes a binary search and no round trip; a ring of
//! 100 members has 16,000 points of 16 bytes.

use std::collections::BTreeSet;

use xxhash_rust::xxh3::xxh3_64;

use super::Error;
use super::members::{MemberChanges, Members};

/// The points of each member on the ring, unless said.
const POINTS: u32 = 160;

/// Which member has which keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    members: Vec<String>,
    /// Where on the ring whose keys end: a key's owner is that of the first point at or after its
    /// place.
    points: Vec<(u64, usize)>,
}

/// Keys that have another owner in one ring than in another: those whose places are after `after`
/// and up to `upto`, which may be over the end and the beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The place before the first.
    pub after: u64,
    /// The last place.
    pub upto: u64,
    /// Who had them; `None` if there was nobody.
    pub from: Option<String>,
    /// Who has them; `None` if there is nobody.
    pub to: Option<String>,
}

impl Move {
    /// Whether a key is one of them.
    pub fn has(&self, key: impl AsRef<[u8]>) -> bool {
        let place = Ring::place(key);
        if self.after < self.upto {
            self.after < place && place <= self.upto
        } else {
            self.after < place || place <= self.upto
        }
    }
}

impl Ring {
    /// The ring of these members.
    ///
    /// ```
    /// use conclave_client::recipes::ring::Ring;
    /// let before = Ring::of(["a", "b", "c"]);
    /// let after = Ring::of(["a", "b", "c", "d"]);
    /// let moves = before.moves(&after);
    /// assert!(moves.iter().all(|moved| moved.to.as_deref() == Some("d")));
    /// ```
    pub fn of(members: impl IntoIterator<Item = impl Into<String>>) -> Ring {
        Ring::with_points(members, POINTS)
    }

    /// The ring of these members, with so many points for each: more are more even. All who share a
    /// ring must say the same.
    pub fn with_points(members: impl IntoIterator<Item = impl Into<String>>, points: u32) -> Ring {
        let members: BTreeSet<String> = members.into_iter().map(Into::into).collect();
        let members: Vec<String> = members.into_iter().collect();
        let mut places: Vec<(u64, usize)> = members
            .iter()
            .enumerate()
            .flat_map(|(index, member)| {
                (0..points.max(1)).map(move |number| {
                    (xxh3_64(format!("{member}\u{0}{number}").as_bytes()), index)
                })
            })
            .collect();
        places.sort_unstable();
        // Where two fall together, the first by name has it.
        places.dedup_by_key(|(place, _)| *place);
        Ring { members, points: places }
    }

    /// The members, in order.
    pub fn members(&self) -> &[String] {
        &self.members
    }

    /// Where on the ring a key is.
    pub fn place(key: impl AsRef<[u8]>) -> u64 {
        xxh3_64(key.as_ref())
    }

    /// Who has a key; `None` if there are no members.
    pub fn owner(&self, key: impl AsRef<[u8]>) -> Option<&str> {
        self.owner_at(Ring::place(key))
    }

    /// The first so many members for a key: its owner, and who has copies of it.
    pub fn owners(&self, key: impl AsRef<[u8]>, count: usize) -> Vec<&str> {
        let start = self.index_at(Ring::place(key));
        let mut found: Vec<&str> = Vec::new();
        for (_, member) in self.points.iter().cycle().skip(start).take(self.points.len()) {
            let member = self.members[*member].as_str();
            if found.len() == count {
                break;
            }
            if !found.contains(&member) {
                found.push(member);
            }
        }
        found
    }

    /// The keys that have another owner in `after`.
    pub fn moves(&self, after: &Ring) -> Vec<Move> {
        let ends: BTreeSet<u64> =
            self.points.iter().chain(&after.points).map(|(place, _)| *place).collect();
        let ends: Vec<u64> = ends.into_iter().collect();
        let Some(last) = ends.last() else { return Vec::new() };
        let mut moves: Vec<Move> = Vec::new();
        let mut before = *last;
        for end in ends {
            let (from, to) = (self.owner_at(end), after.owner_at(end));
            let start = std::mem::replace(&mut before, end);
            if from == to {
                continue;
            }
            match moves.last_mut() {
                Some(open)
                    if open.upto == start
                        && open.from.as_deref() == from
                        && open.to.as_deref() == to =>
                {
                    open.upto = end;
                }
                _ => {
                    let [from, to] = [from, to].map(|member| member.map(ToOwned::to_owned));
                    moves.push(Move { after: start, upto: end, from, to });
                }
            }
        }
        moves
    }

    fn owner_at(&self, place: u64) -> Option<&str> {
        let (_, member) = self.points.get(self.index_at(place))?;
        Some(&self.members[*member])
    }

    fn index_at(&self, place: u64) -> usize {
        let index = self.points.partition_point(|(point, _)| *point < place);
        if index == self.points.len() { 0 } else { index }
    }
}

/// The ring of those who are in a group now.
pub struct LiveRing {
    members: Members,
    changes: MemberChanges,
    points: u32,
    ring: Ring,
}

impl LiveRing {
    /// The ring of these members.
    ///
    /// # Errors
    /// If the session is over.
    pub fn new(members: Members) -> Result<LiveRing, Error> {
        LiveRing::with_points(members, POINTS)
    }

    /// As [`Ring::with_points`].
    ///
    /// # Errors
    /// If the session is over.
    pub fn with_points(members: Members, points: u32) -> Result<LiveRing, Error> {
        let changes = members.changes()?;
        let ring = Ring::with_points(members.names()?, points);
        Ok(LiveRing { members, changes, points, ring })
    }

    /// The ring as of the last change that was told.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Waits until members come or go, and tells what keys move. Several changes may be one.
    ///
    /// # Errors
    /// If the session is over.
    pub async fn changed(&mut self) -> Result<Vec<Move>, Error> {
        loop {
            self.changes.next().await.transpose()?;
            let (members, changes) = self.members.follow()?;
            self.changes = changes;
            let ring = Ring::with_points(members.into_keys(), self.points);
            if ring != self.ring {
                let moves = self.ring.moves(&ring);
                self.ring = ring;
                return Ok(moves);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moves_are_the_keys_whose_owners_differ_and_no_others() {
        let old = Ring::of(["a", "b", "c", "d"]);
        for new in [Ring::of(["a", "b", "c"]), Ring::of(["a", "b", "c", "d", "e"]), Ring::default()]
        {
            let moves = old.moves(&new);
            for key in (0..2000).map(|number: u32| number.to_string()) {
                let (from, to) = (old.owner(&key), new.owner(&key));
                let of: Vec<_> = moves.iter().filter(|moved| moved.has(&key)).collect();
                if from == to {
                    assert!(of.is_empty(), "{key} stays");
                } else {
                    assert!(of.len() == 1, "{key} moves once");
                    assert_eq!((of[0].from.as_deref(), of[0].to.as_deref()), (from, to));
                    assert!(from == Some("d") || to == Some("e") || new.members().is_empty());
                }
            }
        }
    }

    #[test]
    fn keys_are_spread_evenly_and_copies_are_at_different_members() {
        let ring = Ring::of((0..10).map(|number| format!("member-{number}")));
        let mut counts = std::collections::BTreeMap::new();
        for key in (0..10_000).map(|number: u32| number.to_string()) {
            let owners = ring.owners(&key, 3);
            assert!(owners.len() == 3 && ring.owner(&key) == Some(owners[0]));
            assert_eq!(owners.iter().collect::<BTreeSet<_>>().len(), 3);
            *counts.entry(owners[0].to_owned()).or_insert(0) += 1;
        }
        assert!(counts.values().all(|count| (600..1400).contains(count)), "{counts:?}");
        assert_eq!(Ring::of(["x"; 0]).owner("key"), None);
        assert_eq!(ring.owners("key", 99).len(), 10);
    }
}
