//! Who is alive: the clocks of all sessions, kept by the leader.
//!
//! A session ends only by a committed transaction; this module says for whom the leader must
//! propose one. It never says so early:
//!
//! * A new leader starts with every clock at its full timeout.
//! * A sign of life counts from the moment the client gave it to its server. Before a session
//!   expires its server is asked whether it has heard of the session meanwhile, so that a sign of
//!   life on its way to the leader counts too. Only a server that has been silent for long is not
//!   waited for.
//! * Time is what the leader has lived through: [`Sessions::advance`] is given less than the time
//!   of day says when the leader itself was stopped, since then it could not hear anybody. And a
//!   session is given up only for a silence that was complete at the tick before: what had arrived
//!   by then has been heard.

use std::collections::{BTreeMap, BTreeSet};

use conclave_proto::{ServerId, SessionId, Xid, Zxid};

/// The right of a server to serve a session: of two claims the later one holds. It is the
/// transaction that created the session, or the one by which the session moved to the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim(pub Zxid);

/// Every session of the ensemble, as its leader knows it.
#[derive(Debug)]
pub struct Sessions {
    /// The leader itself.
    home: ServerId,
    clock_ms: u64,
    /// What the clock showed before it last advanced.
    before_ms: u64,
    /// After this much silence a server is not asked before its sessions expire, in ms.
    silence_ms: u64,
    live: BTreeMap<SessionId, Live>,
    /// When to look at which session again. A sign of life does not move it: that is found out
    /// when its time comes.
    alarms: BTreeSet<(u64, SessionId)>,
    /// Those whose time has come, until their server has confirmed it.
    suspects: BTreeSet<SessionId>,
    servers: BTreeMap<ServerId, Reporter>,
    /// The signs of life since the clock last advanced, with their age: it stands still between
    /// two ticks, so they were given later than it shows.
    fresh: Vec<(SessionId, u32)>,
}

#[derive(Debug)]
struct Live {
    timeout_ms: u32,
    seen_ms: u64,
    owner: Option<(ServerId, Claim)>,
    /// The mark of the connection for which it moved there.
    moved_for: Option<u64>,
    /// The last numbered write that was proposed for it by this leader.
    proposed: Xid,
    /// Whether its end is proposed.
    closing: bool,
}

/// A server that reports signs of life.
#[derive(Clone, Copy, Debug)]
struct Reporter {
    /// It has reported everything up to here.
    covered_ms: u64,
    /// When it last reported.
    heard_ms: u64,
}

/// What has to be done about silent sessions.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// The end of these must be proposed.
    pub expired: Vec<SessionId>,
    /// These servers must be asked for their latest signs of life.
    pub poll: BTreeSet<ServerId>,
}

/// Whether a server serves a session rightly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does, as far as the leader knows.
    Owner,
    /// The session has moved on, by a later claim.
    Moved,
    /// There is no such session.
    Gone,
}

impl Sessions {
    /// The clocks of these sessions, all starting now, for the leader `home`. A server is lost
    /// after `silence_ms`.
    pub fn new(
        home: ServerId,
        silence_ms: u64,
        sessions: impl IntoIterator<Item = (SessionId, u32)>,
    ) -> Sessions {
        let mut new = Sessions {
            home,
            clock_ms: 0,
            before_ms: 0,
            silence_ms,
            live: BTreeMap::new(),
            alarms: BTreeSet::new(),
            suspects: BTreeSet::new(),
            servers: BTreeMap::new(),
            fresh: Vec::new(),
        };
        for (session, timeout_ms) in sessions {
            new.open(session, timeout_ms, None);
        }
        new
    }

    /// The time all of this is measured in, in ms.
    pub fn clock_ms(&self) -> u64 {
        self.clock_ms
    }

    /// How many sessions there are.
    pub fn count(&self) -> usize {
        self.live.len()
    }

    /// Give everybody the full timeout from now on.
    pub fn restart(&mut self) {
        self.alarms.clear();
        self.suspects.clear();
        for (&session, live) in &mut self.live {
            live.see(self.clock_ms, 0);
            self.fresh.push((session, 0));
            live.closing = false;
            self.alarms.insert((live.deadline(), session));
        }
    }

    /// Whether the end of the session is proposed, or is about to be.
    pub fn is_closing(&self, session: SessionId) -> bool {
        self.live.get(&session).is_some_and(|live| live.closing)
    }

    /// The timeout of a session, in ms.
    pub fn timeout_ms(&self, session: SessionId) -> Option<u32> {
        self.live.get(&session).map(|live| live.timeout_ms)
    }

    /// Whether there is such a session.
    pub fn knows(&self, session: SessionId) -> bool {
        self.live.contains_key(&session)
    }

    /// Let time pass.
    pub fn advance(&mut self, elapsed_ms: u64) {
        self.before_ms = self.clock_ms;
        self.clock_ms += elapsed_ms;
        for (session, age_ms) in std::mem::take(&mut self.fresh) {
            if let Some(live) = self.live.get_mut(&session) {
                live.see(self.clock_ms, age_ms);
            }
        }
    }

    /// A session was created, by a client of that server.
    pub fn open(&mut self, session: SessionId, timeout_ms: u32, owner: Option<(ServerId, Claim)>) {
        let seen_ms = self.clock_ms;
        let (moved_for, proposed, closing) = (None, Xid(0), false);
        let live = Live { timeout_ms, seen_ms, owner, moved_for, proposed, closing };
        let earlier = self.live.insert(session, live);
        assert!(earlier.is_none(), "session {session} was opened twice");
        self.fresh.push((session, 0));
        self.alarms.insert((seen_ms + u64::from(timeout_ms), session));
    }

    /// A session's end is committed.
    pub fn close(&mut self, session: SessionId) {
        self.live.remove(&session);
        self.suspects.remove(&session);
    }

    /// A session's end is proposed by its client: it will not expire.
    pub fn closing(&mut self, session: SessionId) {
        if let Some(live) = self.live.get_mut(&session) {
            live.closing = true;
        }
    }

    /// A proposed end was committed and was none: the session had asked for something else under
    /// that number before, say.
    pub fn stays(&mut self, session: SessionId) {
        if let Some(live) = self.live.get_mut(&session)
            && std::mem::take(&mut live.closing)
        {
            self.alarms.insert((live.deadline(), session));
        }
    }

    /// A server has reported all signs of life up to `covered_ms` of [`Sessions::clock_ms`].
    pub fn report(&mut self, server: ServerId, covered_ms: u64) {
        let heard_ms = self.clock_ms;
        let covered_ms = covered_ms.min(heard_ms);
        let reporter = self.servers.entry(server).or_insert(Reporter { covered_ms, heard_ms });
        reporter.heard_ms = heard_ms;
        reporter.covered_ms = reporter.covered_ms.max(covered_ms);
    }

    /// A session gave a sign of life to a server, `age_ms` ago. Whether that counts: it does unless
    /// the session's end is proposed.
    ///
    /// Whoever spoke to a server by an earlier connection was alive all the same: that the session
    /// moves on may be proposed and not be committed for long.
    pub fn touch(
        &mut self,
        session: SessionId,
        server: ServerId,
        age_ms: u32,
        claim: Claim,
    ) -> bool {
        let Some(live) = self.live.get_mut(&session).filter(|live| !live.closing) else {
            return false;
        };
        live.see(self.clock_ms, age_ms);
        self.fresh.push((session, age_ms));
        live.claimed(server, claim);
        true
    }

    /// A session moves to a server, for a connection of that mark, unless it has moved on by a later
    /// claim.
    pub fn attach(&mut self, session: SessionId, server: ServerId, mark: u64, claim: Claim) {
        let Some(live) = self.live.get_mut(&session) else { return };
        if live.claimed(server, claim) == Standing::Owner {
            live.moved_for = Some(mark);
            live.see(self.clock_ms, 0);
            self.fresh.push((session, 0));
        }
    }

    /// Whether the session has moved for that connection of that server, and not moved on since.
    pub fn has_moved_for(&self, session: SessionId, server: ServerId, mark: u64) -> bool {
        self.live.get(&session).is_some_and(|live| {
            live.moved_for == Some(mark) && live.owner.is_some_and(|(owner, _)| owner == server)
        })
    }

    /// Whether a write of the session may come by way of that server, which has this claim to it.
    /// Of two claims the later one has the session, whichever is heard of first.
    pub fn standing(&mut self, session: SessionId, server: ServerId, claim: Claim) -> Standing {
        match self.live.get_mut(&session) {
            Some(live) => live.claimed(server, claim),
            None => Standing::Gone,
        }
    }

    /// Remember that a numbered write is proposed.
    pub fn proposed(&mut self, session: SessionId, xid: Xid) {
        if let Some(live) = self.live.get_mut(&session) {
            live.proposed = live.proposed.max(xid);
        }
    }

    /// Whether a numbered write was proposed by this leader already.
    pub fn was_proposed(&self, session: SessionId, xid: Xid) -> bool {
        self.live.get(&session).is_some_and(|live| xid <= live.proposed)
    }

    /// What has to be done about sessions that were silent for too long, at most `limit` of them.
    pub fn due(&mut self, limit: usize) -> Due {
        while let Some(&(at_ms, session)) = self.alarms.first()
            && at_ms <= self.before_ms
        {
            self.alarms.pop_first();
            let Some(live) = self.live.get(&session) else { continue };
            if live.deadline() > self.before_ms {
                self.alarms.insert((live.deadline(), session));
            } else {
                self.suspects.insert(session);
            }
        }
        let witnesses = Witnesses {
            home: self.home,
            clock_ms: self.clock_ms,
            silence_ms: self.silence_ms,
            servers: &self.servers,
        };
        let mut due = Due::default();
        let mut cleared = Vec::new();
        for &session in &self.suspects {
            if due.expired.len() == limit {
                break;
            }
            let live = self.live.get_mut(&session).expect("close removes the suspect too");
            if live.closing {
                cleared.push(session);
            } else if live.deadline() > self.before_ms {
                self.alarms.insert((live.deadline(), session));
                cleared.push(session);
            } else {
                match live.witness(&witnesses) {
                    Some(server) => {
                        due.poll.insert(server);
                    }
                    None => {
                        live.closing = true;
                        due.expired.push(session);
                        cleared.push(session);
                    }
                }
            }
        }
        for session in &cleared {
            self.suspects.remove(session);
        }
        due
    }
}

impl Live {
    fn see(&mut self, clock_ms: u64, age_ms: u32) {
        self.seen_ms = self.seen_ms.max(clock_ms.saturating_sub(age_ms.into()));
    }

    fn deadline(&self) -> u64 {
        self.seen_ms + u64::from(self.timeout_ms)
    }

    /// A server claims the session. From a later claim on nothing is done by an earlier one, of the
    /// same server neither: whoever resumed the session was told what it has to see, and what was
    /// asked before and not proposed by then is not part of that.
    fn claimed(&mut self, server: ServerId, claim: Claim) -> Standing {
        match self.owner {
            Some((_, later)) if later > claim => Standing::Moved,
            Some(_) | None => {
                self.owner = Some((server, claim));
                Standing::Owner
            }
        }
    }

    /// The server that may know of a sign of life which the leader has not heard of.
    fn witness(&self, witnesses: &Witnesses<'_>) -> Option<ServerId> {
        let (owner, _) = self.owner?;
        if owner == witnesses.home {
            // What the leader itself has heard is known at once, however late it comes.
            let reporter = witnesses.servers.get(&owner);
            let heard_all = reporter.is_some_and(|it| it.covered_ms == witnesses.clock_ms);
            return (!heard_all).then_some(owner);
        }
        let reporter = witnesses.servers.get(&owner)?;
        let silent = witnesses.clock_ms - reporter.heard_ms > witnesses.silence_ms;
        (reporter.covered_ms < self.deadline() && !silent).then_some(owner)
    }
}

/// What is known of the servers that may have heard of a session.
struct Witnesses<'a> {
    home: ServerId,
    clock_ms: u64,
    silence_ms: u64,
    servers: &'a BTreeMap<ServerId, Reporter>,
}
