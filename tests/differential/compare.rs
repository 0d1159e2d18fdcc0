//! Whether two systems have said the same.
//!
//! Zxids, session ids and times differ from system to system; that they mean the same is shown by
//! a translation that must hold all through a run.

use std::collections::BTreeMap;

use crate::known::Reconciled;
use crate::op::Field;
use crate::system::Heard;

/// What one system's numbers are called by the other, as far as they have been seen.
#[derive(Debug)]
pub(crate) struct Names {
    /// From ZooKeeper's zxids to Conclave's. Both are histories, so their order is the same.
    zxids: BTreeMap<i64, i64>,
    sessions: BTreeMap<i64, i64>,
    /// When each change was made, by each system's own clock.
    times: [BTreeMap<i64, i64>; 2],
}

impl Names {
    pub(crate) fn new() -> Names {
        let nothing = BTreeMap::from([(0, 0)]);
        Names { zxids: nothing.clone(), sessions: nothing, times: Default::default() }
    }

    /// Compares what one session heard, without the differences that are meant.
    ///
    /// # Errors
    /// The first difference that has no name.
    pub(crate) fn compare(&mut self, both: &Reconciled<'_>) -> Result<(), String> {
        for place in 0..both.theirs.len().max(both.ours.len()) {
            let (Some(theirs), Some(ours)) = (both.theirs.get(place), both.ours.get(place)) else {
                return Err("one of them says less".into());
            };
            self.compare_one(theirs, ours)?;
        }
        Ok(())
    }

    fn compare_one(&mut self, theirs: &Heard, ours: &Heard) -> Result<(), String> {
        match (theirs, ours) {
            (Heard::Greeting { session, .. }, Heard::Greeting { session: own, .. }) => {
                let mut renamed = ours.clone();
                if let Heard::Greeting { session: renamed, .. } = &mut renamed {
                    *renamed = *session;
                }
                if *theirs != renamed || (*session == 0) != (*own == 0) {
                    return Err("the greetings differ".into());
                }
                self.same_session(*session, *own)
            }
            (
                Heard::Answer { place, xid, zxid, code, fields },
                Heard::Answer {
                    place: own_place,
                    xid: own_xid,
                    zxid: own_zxid,
                    code: own_code,
                    fields: own_fields,
                },
            ) => {
                if (place, xid, code) != (own_place, own_xid, own_code) {
                    return Err(format!("the code is {code} and {own_code}"));
                }
                if fields.len() != own_fields.len() {
                    return Err("the bodies differ".into());
                }
                for (theirs, ours) in fields.iter().zip(own_fields) {
                    self.same_field(theirs, ours)?;
                }
                self.not_before(*zxid, *own_zxid)
            }
            (
                Heard::Event { zxid, kind, state, path },
                Heard::Event { zxid: own_zxid, kind: own_kind, state: own_state, path: own_path },
            ) => {
                if (kind, state, path) != (own_kind, own_state, own_path) {
                    return Err("the events differ".into());
                }
                // Before 3.9 there was no zxid.
                if *zxid == -1 { Ok(()) } else { self.same_zxid(*zxid, *own_zxid) }
            }
            (Heard::End, Heard::End) => Ok(()),
            _ => Err("they say different things".into()),
        }
    }

    fn same_field(&mut self, theirs: &Field, ours: &Field) -> Result<(), String> {
        match (theirs, ours) {
            (Field::Is(..), Field::Is(..)) if theirs == ours => Ok(()),
            (Field::Zxid(name, a), Field::Zxid(same, b)) if name == same => self.same_zxid(*a, *b),
            (Field::Session(name, a), Field::Session(same, b)) if name == same => {
                self.same_session(*a, *b)
            }
            (Field::Time { .. }, Field::Time { .. }) => {
                self.is_time_of_change(0, theirs)?;
                self.is_time_of_change(1, ours)
            }
            _ => Err(format!("{theirs:?} is not {ours:?}")),
        }
    }

    /// A change has the same name in both histories, and the same changes before and after it.
    fn same_zxid(&mut self, theirs: i64, ours: i64) -> Result<(), String> {
        if *self.zxids.entry(theirs).or_insert(ours) != ours {
            return Err(format!("{theirs:#x} was {:#x}, is {ours:#x}", self.zxids[&theirs]));
        }
        let before = self.zxids.range(..theirs).next_back().is_none_or(|(_, b)| *b < ours);
        let after = self.zxids.range(theirs + 1..).next().is_none_or(|(_, b)| *b > ours);
        if before && after {
            return Ok(());
        }
        Err(format!("{theirs:#x} and {ours:#x} stand at different places of the two histories"))
    }

    /// What has been seen is at least as new as what either has shown before it. (Whether a request
    /// that is refused has a zxid is a system's own affair.)
    fn not_before(&self, theirs: i64, ours: i64) -> Result<(), String> {
        if theirs == -1 {
            // ZooKeeper says so with an unknown request, and ends the connection.
            return Ok(());
        }
        let before = self.zxids.range(..=theirs).next_back().is_none_or(|(_, b)| *b <= ours);
        let after = self.zxids.range(theirs + 1..).next().is_none_or(|(_, b)| *b > ours);
        if before && after {
            return Ok(());
        }
        Err(format!("the state at {theirs:#x} is not that at {ours:#x}"))
    }

    fn same_session(&mut self, theirs: i64, ours: i64) -> Result<(), String> {
        if *self.sessions.entry(theirs).or_insert(ours) == ours {
            return Ok(());
        }
        Err(format!("the session {theirs:#x} was {:#x}, is {ours:#x}", self.sessions[&theirs]))
    }

    fn is_time_of_change(&mut self, which: usize, field: &Field) -> Result<(), String> {
        let Field::Time { name, zxid, ms } = field else { return Ok(()) };
        let times = &mut self.times[which];
        let same = *times.entry(*zxid).or_insert(*ms) == *ms;
        let before = times.range(..*zxid).next_back().is_none_or(|(_, time)| time <= ms);
        let after = times.range(zxid + 1..).next().is_none_or(|(_, time)| time >= ms);
        if same && before && after {
            return Ok(());
        }
        Err(format!("{name} {ms} is not the time of {zxid:#x}"))
    }
}
