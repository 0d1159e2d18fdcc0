//! Invariant 20, watches: what a client is told is ordered, unique, complete, and told before any
//! answer that reveals it; after a reconnection too.

use conclave_proto::request::ReadLevel;
use conclave_proto::{ClientMessage, Event, Op, Response, WatchId, WatchKind, Xid, ZPath, Zxid};

use super::client::{Client, Sent};
use crate::model::Model;

/// A watch that a client has set.
#[derive(Debug)]
pub(crate) struct Watch {
    path: ZPath,
    kind: WatchKind,
    /// It has been told of every event before this place in the history of events.
    next: usize,
    /// It has been told of everything up to here.
    complete: Zxid,
    /// Whether it was set again and has no answer yet.
    rearming: bool,
}

impl Watch {
    fn set(path: &ZPath, kind: WatchKind, since: Zxid, model: &Model) -> Watch {
        let next = model.events_after(since);
        Watch { path: path.clone(), kind, next, complete: since, rearming: false }
    }

    /// Fails if anything up to `zxid` was not told, and goes on after it.
    fn reached(&mut self, id: WatchId, zxid: Zxid, model: &Model) {
        if zxid <= self.complete {
            return;
        }
        let due = model.events_for(self.next, &self.path, self.kind).next();
        if let Some((_, event)) = due
            && event.zxid <= zxid
        {
            panic!("{id:?} ({self:?}) was not told of {event:?} before {zxid} was seen");
        }
        self.complete = zxid;
        self.next = self.next.max(model.events_after(zxid));
    }
}

impl Client {
    /// The client has seen the state after that transaction.
    pub(super) fn saw(&mut self, zxid: Zxid, model: &Model) {
        self.seen = self.seen.max(zxid);
        for (id, watch) in &mut self.watches {
            if !watch.rearming {
                watch.reached(*id, zxid, model);
            }
        }
    }

    /// A read or a request for a watch was answered: if it has set a watch, remember it.
    pub(super) fn set_watch(&mut self, sent: &Sent, response: &Response, model: &Model) {
        let zxid = response.zxid;
        let (id, path, kind) = match (&sent.op, &response.result) {
            (Op::Get { path, watch: Some(id) }, Ok(_)) => (id, path, WatchKind::Data),
            (Op::Exists { path, watch: Some(id) }, _) => (id, path, WatchKind::Exists),
            (Op::Children { path, watch: Some(id), .. }, Ok(_)) => (id, path, WatchKind::Children),
            (Op::Watch { id, path, kind, .. }, Ok(_)) => (id, path, *kind),
            (Op::Unwatch { id }, result) => {
                let had = self.watches.remove(id).is_some();
                assert_eq!(result.is_ok(), had, "{id:?} is removed if it is there");
                return;
            }
            _ => return,
        };
        self.watches.insert(*id, Watch::set(path, kind, zxid, model));
    }

    /// A watch tells something.
    pub(super) fn told(&mut self, id: WatchId, event: &Event, model: &Model) {
        let watch = self.watches.get_mut(&id);
        let watch = watch.unwrap_or_else(|| panic!("{id:?} is not set, but told of {event:?}"));
        let due = model.events_for(watch.next, &watch.path, watch.kind).next();
        match due {
            Some((place, expected)) if expected == event => {
                watch.next = place + 1;
                let before = Zxid::from_bits(event.zxid.bits() - 1);
                watch.complete = watch.complete.max(before);
            }
            // A server that no longer knows what happened tells a one-shot watch what it sees: that
            // something must have.
            Some((_, expected))
                if watch.rearming
                    && watch.kind.is_one_shot()
                    && expected.zxid <= event.zxid
                    && watch.path == event.path => {}
            Some((_, expected)) => panic!("{id:?} is told of {event:?} and not of {expected:?}"),
            None => panic!("{id:?} ({watch:?}) is told of {event:?}, which did not happen"),
        }
        if watch.kind.is_one_shot() {
            self.watches.remove(&id);
        }
    }

    /// A watch goes on after a gap.
    pub(super) fn gap(&mut self, id: WatchId, resumed_at: Zxid, model: &Model) {
        let watch = self.watches.get_mut(&id).expect("a gap of a watch that is set");
        assert!(watch.rearming, "{id:?} has a gap without having been set again");
        let may_have_been =
            watch.kind == WatchKind::Exists && model.node_at(&watch.path, resumed_at).is_none();
        assert!(
            !watch.kind.is_one_shot() || may_have_been,
            "the state tells a one-shot watch what there is to tell"
        );
        assert!(resumed_at >= watch.complete, "{id:?} goes back to {resumed_at}");
        watch.complete = resumed_at;
        watch.next = model.events_after(resumed_at);
    }

    /// What sets its watches again on a new connection.
    pub(super) fn rearm(&mut self, model: &Model) -> Vec<(WatchId, ClientMessage)> {
        let mut messages = Vec::new();
        for (id, watch) in &mut self.watches {
            watch.rearming = true;
            watch.next = model.events_after(watch.complete);
            let (path, kind) = (watch.path.clone(), watch.kind);
            let since = Some(watch.complete);
            let op = Op::Watch { id: *id, path, kind, since, with_value: false };
            let level = ReadLevel::Local;
            let message = ClientMessage::Request { xid: Xid(0), acked: Xid(0), level, op };
            messages.push((*id, message));
        }
        messages
    }

    /// A watch is set again: what it had missed came before.
    pub(super) fn rearmed(&mut self, id: WatchId, response: &Response) {
        assert!(response.result.is_ok(), "{id:?} cannot be set again: {response:?}");
        // One that had something to tell is gone already.
        let Some(watch) = self.watches.get_mut(&id) else { return };
        watch.rearming = false;
    }
}
