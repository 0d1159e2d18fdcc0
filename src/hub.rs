//! The watches of this server's clients: who is told what.
//!
//! What a session is told never goes back in zxid; a watch set by a read at `s` fires exactly once
//! for the first change after `s`, and before the client can see that change; it never fires for a
//! change at or before `s`. On one thread, four lines give all of this:
//!
//! 1. a transaction is applied, then its events are fired, before anything else happens;
//! 2. a watch is always set "since s": what has happened after `s` is told when it is set
//!    ([`Hub::missed`]), and nothing at or before `s` is ever told;
//! 3. a read is answered from the state after the last transaction that was fired;
//! 4. events and replies of a connection leave through one queue, in the order they were made.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;

use conclave_proto::{Acl, ErrorCode, Event, EventKind, WatchId, WatchKind, ZPath, Zxid};

use crate::limits;

/// Whoever has watches: a client's connection, by its number, which no other ever has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Watcher(pub u64);

/// A watch to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Its number; a watch of the same watcher that has it is replaced.
    pub id: WatchId,
    /// The node.
    pub path: ZPath,
    /// What it waits for.
    pub kind: WatchKind,
    /// It is never told of anything up to here.
    pub since: Zxid,
    /// Whether the node's data goes with its events.
    pub with_value: bool,
}

/// A watch that has to be told of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Whose.
    pub watcher: Watcher,
    /// Which.
    pub watch: WatchId,
    /// Whether the node's data goes with it.
    pub with_value: bool,
    /// Whether the watch is gone with it.
    pub is_last: bool,
}

/// A change of the past, and who may know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// What happened.
    pub event: Event,
    /// The node's ACL at the time.
    pub acl: Arc<[Acl]>,
}

/// The watches of one server, and the latest events for those that are set again.
#[derive(Debug)]
pub struct Hub {
    watchers: BTreeMap<Watcher, Own>,
    /// What those had who are forgotten, as far as it is not removed yet.
    leaving: VecDeque<(Watcher, Own)>,
    /// The watches on one node.
    exact: BTreeMap<ZPath, Spot>,
    /// The watches on a node and everything below it.
    recursive: BTreeMap<ZPath, Spot>,
    watches: usize,
    /// The bytes of the paths of all watches.
    bytes: usize,
    history: History,
}

/// The watches of one watcher.
#[derive(Debug, Default)]
struct Own {
    by_id: BTreeMap<WatchId, (ZPath, WatchKind)>,
    /// The bytes of their paths.
    bytes: usize,
}

impl Own {
    fn remove(&mut self, id: WatchId) -> Option<(ZPath, WatchKind)> {
        let removed = self.by_id.remove(&id)?;
        self.bytes -= removed.0.as_str().len();
        Some(removed)
    }
}

/// The watches in one place, those of a kind together: what is not waited for costs nothing. There may be a
/// hundred thousand, and all of them may go one by one.
type Spot = BTreeMap<Place, Armed>;

/// Where a watch stands there.
type Place = (WatchKind, Watcher, WatchId);

#[derive(Clone, Copy, Debug)]
struct Armed {
    since: Zxid,
    with_value: bool,
}

impl Armed {
    fn is_due(&self, event: &Event) -> bool {
        event.zxid > self.since
    }

    fn told(&self, &(kind, watcher, watch): &Place) -> Told {
        Told { watcher, watch, with_value: self.with_value, is_last: kind.is_one_shot() }
    }
}

/// The kinds of watches on one node.
const EXACT: [WatchKind; 4] =
    [WatchKind::Data, WatchKind::Exists, WatchKind::Children, WatchKind::Persistent];

/// All places of a kind.
fn all_of(kind: WatchKind) -> RangeInclusive<Place> {
    (kind, Watcher(0), WatchId(0))..=(kind, Watcher(u64::MAX), WatchId(u64::MAX))
}

impl Hub {
    /// No watches; the first event to come is after `at`.
    pub fn new(at: Zxid) -> Hub {
        Hub {
            watchers: BTreeMap::new(),
            leaving: VecDeque::new(),
            exact: BTreeMap::new(),
            recursive: BTreeMap::new(),
            watches: 0,
            bytes: 0,
            history: History::new(at),
        }
    }

    /// How many watches there are, with those of the forgotten that are not removed yet.
    pub fn watches(&self) -> usize {
        self.watches
    }

    /// Forget the past: the next event to come is after `at`.
    pub fn restart(&mut self, at: Zxid) {
        self.history = History::new(at);
    }

    /// Set a watch, or replace the one with its number.
    ///
    /// # Errors
    /// `Throttled` if the watcher, or the server, has as many as it may have, or on as long paths.
    pub fn set(&mut self, watcher: Watcher, watch: Watch) -> Result<(), ErrorCode> {
        self.unset(watcher, watch.id);
        let Watch { id, path, kind, since, with_value } = watch;
        let own = self.watchers.entry(watcher).or_default();
        let bytes = path.as_str().len();
        let own_is_full = own.by_id.len() >= limits::WATCHES_PER_SESSION
            || own.bytes + bytes > limits::WATCHED_BYTES_PER_SESSION;
        if own_is_full
            || self.watches >= limits::WATCHES
            || self.bytes + bytes > limits::WATCHED_BYTES
        {
            return Err(ErrorCode::Throttled);
        }
        own.by_id.insert(id, (path.clone(), kind));
        own.bytes += bytes;
        self.bytes += bytes;
        let armed = Armed { since, with_value };
        self.index(kind).entry(path).or_default().insert((kind, watcher, id), armed);
        self.watches += 1;
        Ok(())
    }

    /// Remove a watch. Whether there was one.
    pub fn unset(&mut self, watcher: Watcher, id: WatchId) -> bool {
        let Some((path, kind)) = self.watchers.get_mut(&watcher).and_then(|own| own.remove(id))
        else {
            return false;
        };
        self.disarm(watcher, id, &path, kind);
        true
    }

    /// A watcher is gone for ever: it is told nothing more. [`Hub::sweep`] removes its watches, of
    /// which there may be so many that nobody should wait for it.
    pub fn forget(&mut self, watcher: Watcher) {
        if let Some(own) = self.watchers.remove(&watcher) {
            self.leaving.push_back((watcher, own));
        }
    }

    /// Remove at most so many watches of those who are forgotten.
    pub fn sweep(&mut self, most: usize) {
        for _ in 0..most {
            let Some((watcher, own)) = self.leaving.front_mut() else { return };
            let watcher = *watcher;
            match own.by_id.pop_first() {
                Some((id, (path, kind))) => self.disarm(watcher, id, &path, kind),
                None => drop(self.leaving.pop_front()),
            }
        }
    }

    /// Whether anything is left to [`Hub::sweep`].
    pub fn is_sweeping(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// A change was applied just now: who is to be told is added to `told`.
    pub fn fire(&mut self, event: &Event, acl: &Arc<[Acl]>, told: &mut Vec<Told>) {
        if self.watches > 0 {
            if self.is_sweeping() {
                self.clear_way(&event.path);
            }
            self.fire_exact(event, told);
            self.fire_recursive(event, told);
        }
        self.history.add(event, acl);
    }

    /// What a watch would have been told after `since`, in order; `None` if that is not known.
    pub fn missed(&mut self, path: &ZPath, kind: WatchKind, since: Zxid) -> Option<Vec<Past>> {
        self.history.after(path, kind, since)
    }

    /// Remove the forgotten from where a change of that node looks for watchers, so that each is met
    /// there once at most.
    fn clear_way(&mut self, path: &ZPath) {
        let watchers = &self.watchers;
        let clear = |index: &mut BTreeMap<ZPath, Spot>, at: &str| {
            let Some(spot) = index.get_mut(at) else { return };
            spot.retain(|(_, watcher, _), _| watchers.contains_key(watcher));
            if spot.is_empty() {
                index.remove(at);
            }
        };
        clear(&mut self.exact, path.as_str());
        for above in with_parents(path) {
            clear(&mut self.recursive, above);
        }
    }

    fn fire_exact(&mut self, event: &Event, told: &mut Vec<Told>) {
        let Some(at) = self.exact.get_mut(&event.path) else { return };
        let first = told.len();
        let mut spent = 0;
        let kinds = || EXACT.into_iter().filter(|kind| kind.fires_on(event.kind));
        for kind in kinds() {
            let before = told.len();
            let due = at.range(all_of(kind)).filter(|(_, armed)| armed.is_due(event));
            told.extend(due.map(|(place, armed)| armed.told(place)));
            spent += if kind.is_one_shot() { told.len() - before } else { 0 };
        }
        if spent == 0 {
            return;
        }
        if spent == at.len() {
            self.exact.remove(&event.path);
        } else {
            for kind in kinds().filter(|kind| kind.is_one_shot()) {
                at.extract_if(all_of(kind), |_, armed| armed.is_due(event)).for_each(drop);
            }
        }
        for told in told[first..].iter().filter(|told| told.is_last) {
            let own = self.watchers.get_mut(&told.watcher).expect("it has this watch");
            own.remove(told.watch);
            self.watches -= 1;
            self.bytes -= event.path.as_str().len();
        }
    }

    fn fire_recursive(&self, event: &Event, told: &mut Vec<Told>) {
        if self.recursive.is_empty() || !WatchKind::PersistentRecursive.fires_on(event.kind) {
            return;
        }
        for path in with_parents(&event.path) {
            if let Some(at) = self.recursive.get(path) {
                let due = at.iter().filter(|(_, armed)| armed.is_due(event));
                told.extend(due.map(|(place, armed)| armed.told(place)));
            }
        }
    }

    fn index(&mut self, kind: WatchKind) -> &mut BTreeMap<ZPath, Spot> {
        match kind {
            WatchKind::PersistentRecursive => &mut self.recursive,
            WatchKind::Data | WatchKind::Exists | WatchKind::Children | WatchKind::Persistent => {
                &mut self.exact
            }
        }
    }

    fn disarm(&mut self, watcher: Watcher, id: WatchId, path: &ZPath, kind: WatchKind) {
        self.watches -= 1;
        self.bytes -= path.as_str().len();
        let index = self.index(kind);
        // Of one who is forgotten, a change may have cleared it away.
        let Some(at) = index.get_mut(path) else { return };
        at.remove(&(kind, watcher, id));
        if at.is_empty() {
            index.remove(path);
        }
    }
}

/// A path and all above it, upwards.
fn with_parents(path: &ZPath) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path.as_str()), |path| match path.rfind('/') {
        _ if *path == "/" => None,
        Some(0) => Some("/"),
        Some(slash) => Some(&path[..slash]),
        None => unreachable!("a path starts with a slash"),
    })
}

/// The latest events, and where to find those of a path.
///
/// Every change of the tree comes here, and nearly none of them is asked for again. So the paths are
/// kept as one piece of memory, which is written and forgotten in order: to forget a path of its own
/// means to touch memory that nobody has touched for long.
#[derive(Debug)]
struct History {
    /// Every event after this is in `events`.
    from: Zxid,
    events: VecDeque<Kept>,
    /// The paths of the events, one after another.
    paths: VecDeque<u8>,
    /// The bytes of their ACLs.
    acl_bytes: usize,
    /// How many events were dropped before the first of `events`.
    dropped: u64,
    /// The numbers of a path's events of a kind, some of which may have been dropped. It is made only
    /// as far as somebody asks, since most servers most of the time see no watch set again.
    index: BTreeMap<(ZPath, EventKind), Vec<u64>>,
    /// Where the index begins and ends.
    indexed: std::ops::Range<u64>,
    /// Where the path of the first of `events` begins, counting all bytes there ever were.
    start: u64,
}

/// An event without its path.
#[derive(Debug)]
struct Kept {
    zxid: Zxid,
    kind: EventKind,
    /// Where its path begins, counting all bytes there ever were, and how long it is.
    path: (u64, usize),
    acl: Arc<[Acl]>,
    /// The bytes of the ACL, if the event before has another one.
    acl_bytes: usize,
}

impl History {
    fn new(from: Zxid) -> History {
        History {
            from,
            events: VecDeque::new(),
            paths: VecDeque::new(),
            acl_bytes: 0,
            dropped: 0,
            index: BTreeMap::new(),
            indexed: 0..0,
            start: 0,
        }
    }

    fn add(&mut self, event: &Event, acl: &Arc<[Acl]>) {
        let text = event.path.as_str().as_bytes();
        // Nearly always an ACL is that of the event before, and the same piece of memory.
        let is_same = self.events.back().is_some_and(|last| Arc::ptr_eq(&last.acl, acl));
        let acl_bytes = if is_same { 0 } else { Acl::bytes_of(acl) };
        while self.events.len() == limits::EVENT_WINDOW
            || self.paths.len() + self.acl_bytes + text.len() + acl_bytes
                > limits::EVENT_WINDOW_BYTES
        {
            let oldest = self.events.pop_front().expect("the window has room for one event");
            self.paths.drain(..oldest.path.1);
            self.start += oldest.path.1 as u64;
            self.acl_bytes -= oldest.acl_bytes;
            // Other events of the same transaction may be left: they do not help, since the
            // history is complete only after it.
            self.from = oldest.zxid;
            self.dropped += 1;
        }
        let path = (self.start + self.paths.len() as u64, text.len());
        self.paths.extend(text);
        self.acl_bytes += acl_bytes;
        let (zxid, kind, acl) = (event.zxid, event.kind, acl.clone());
        self.events.push_back(Kept { zxid, kind, path, acl, acl_bytes });
    }

    fn path(&self, kept: &Kept) -> ZPath {
        let (start, len) = kept.path;
        let start = usize::try_from(start - self.start).expect("a place in memory");
        let bytes: Vec<u8> = self.paths.range(start..start + len).copied().collect();
        let text = std::str::from_utf8(&bytes).ok().and_then(|text| ZPath::new(text).ok());
        text.expect("what was a path is one")
    }

    fn after(&mut self, path: &ZPath, kind: WatchKind, since: Zxid) -> Option<Vec<Past>> {
        if since < self.from {
            return None;
        }
        self.extend_index();
        let first = self.dropped + self.events.partition_point(|kept| kept.zxid <= since) as u64;
        let mut numbers = match kind {
            WatchKind::PersistentRecursive => self.within(path, kind, first),
            WatchKind::Data | WatchKind::Exists | WatchKind::Children | WatchKind::Persistent => {
                self.exactly(path, kind, first)
            }
        };
        numbers.sort_unstable();
        let most = if kind.is_one_shot() { 1 } else { numbers.len() };
        let past = |number| {
            let kept = self.kept(number);
            let event = Event { zxid: kept.zxid, path: self.path(kept), kind: kept.kind };
            Past { event, acl: kept.acl.clone() }
        };
        Some(numbers.into_iter().take(most).map(past).collect())
    }

    /// The events from the number `first` on that a watch of this node waits for: of each kind all,
    /// or the first if one will do.
    fn exactly(&self, path: &ZPath, kind: WatchKind, first: u64) -> Vec<u64> {
        let lists = self.index.range((path.clone(), EventKind::Created)..);
        let lists = lists.take_while(|((at, _), _)| at == path);
        let mut numbers = Vec::new();
        for (_, found) in lists.filter(|((_, event), _)| kind.fires_on(*event)) {
            let later = &found[found.partition_point(|&number| number < first)..];
            let most = if kind.is_one_shot() { 1 } else { later.len() };
            numbers.extend(later.iter().take(most));
        }
        numbers
    }

    /// The same for this node and all below it.
    fn within(&self, path: &ZPath, kind: WatchKind, first: u64) -> Vec<u64> {
        // Paths below this one need not stand together in the order of strings ("/a-b" comes
        // between "/a" and "/a/b"), but all of them have it as a prefix.
        let lists = self.index.range((path.clone(), EventKind::Created)..);
        let lists = lists.take_while(|((at, _), _)| at.as_str().starts_with(path.as_str()));
        // Whoever was away for a moment must not have to look at all paths of a large tree.
        let end = self.dropped + self.events.len() as u64;
        let later = usize::try_from(end - first).expect("as many as there are events at most");
        if lists.clone().nth(later).is_some() {
            let is_meant = |kept: &Kept| kind.fires_on(kept.kind) && self.is_within(kept, path);
            return (first..end).filter(|&number| is_meant(self.kept(number))).collect();
        }
        let mut numbers = Vec::new();
        for (_, found) in
            lists.filter(|((at, event), _)| kind.fires_on(*event) && at.is_within(path))
        {
            numbers.extend(&found[found.partition_point(|&number| number < first)..]);
        }
        numbers
    }

    /// The event of that number, which has not been dropped.
    fn kept(&self, number: u64) -> &Kept {
        &self.events[usize::try_from(number - self.dropped).expect("a place in the window")]
    }

    /// Whether an event's path is `other`, or lies below it.
    fn is_within(&self, kept: &Kept, other: &ZPath) -> bool {
        let (start, len) = kept.path;
        let start = usize::try_from(start - self.start).expect("a place in memory");
        let above = if other.is_root() { "" } else { other.as_str() };
        let starts = len >= above.len()
            && self.paths.range(start..start + above.len()).copied().eq(above.bytes());
        starts && (len == above.len() || self.paths[start + above.len()] == b'/')
    }

    fn extend_index(&mut self) {
        let end = self.dropped + self.events.len() as u64;
        // At most as many of the index are dropped as there are: that bounds its bytes, too.
        if self.dropped > self.indexed.start + self.events.len() as u64 {
            self.index.clear();
            self.indexed = self.dropped..self.dropped;
        }
        let next = self.indexed.end.max(self.dropped);
        for number in next..end {
            let kept = self.kept(number);
            let key = (self.path(kept), kept.kind);
            self.index.entry(key).or_default().push(number);
        }
        self.indexed.end = end;
    }
}
