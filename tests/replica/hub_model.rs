//! The hub against the simplest thing that could be right: a list of watches that is searched from
//! end to end, and a list of everything that ever happened.

use std::collections::BTreeMap;
use std::sync::Arc;

use conclave::hub::{Hub, Told, Watch, Watcher};
use conclave_proto::{
    Acl, Epoch, ErrorCode, Event, EventKind, Identity, Perms, WatchId, WatchKind, ZPath, Zxid,
};
use proptest::prelude::*;

const PATHS: [&str; 7] = ["/", "/a", "/a-b", "/a/b", "/a/b/c", "/ab", "/a/bc"];

#[derive(Clone, Debug)]
enum Step {
    Fire { path: usize, kind: EventKind, same_txn: bool },
    Set { watcher: usize, id: u64, path: usize, kind: WatchKind, back: u64, with_value: bool },
    Unset { watcher: usize, id: u64 },
    Forget { watcher: usize },
    Sweep { most: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let event = prop_oneof![
        Just(EventKind::Created),
        Just(EventKind::Deleted),
        Just(EventKind::DataChanged),
        Just(EventKind::ChildrenChanged),
    ];
    let kind = prop_oneof![
        Just(WatchKind::Data),
        Just(WatchKind::Exists),
        Just(WatchKind::Children),
        Just(WatchKind::Persistent),
        Just(WatchKind::PersistentRecursive),
    ];
    let path = 0..PATHS.len();
    let step = prop_oneof![
        4 => (path.clone(), event, any::<bool>())
            .prop_map(|(path, kind, same_txn)| Step::Fire { path, kind, same_txn }),
        3 => (0..3usize, 0..4u64, path, kind, 0..9u64, any::<bool>()).prop_map(
            |(watcher, id, path, kind, back, with_value)| {
                Step::Set { watcher, id, path, kind, back, with_value }
            }
        ),
        1 => (0..3usize, 0..4u64).prop_map(|(watcher, id)| Step::Unset { watcher, id }),
        1 => (0..3usize).prop_map(|watcher| Step::Forget { watcher }),
        1 => (0..4usize).prop_map(|most| Step::Sweep { most }),
    ];
    prop::collection::vec(step, 0..80)
}

/// Everything that is set, and everything that was.
#[derive(Default)]
struct Model {
    watches: BTreeMap<(Watcher, WatchId), Watch>,
    events: Vec<Event>,
}

impl Model {
    fn concerns(path: &ZPath, kind: WatchKind, since: Zxid, event: &Event) -> bool {
        let place = match kind {
            WatchKind::PersistentRecursive => event.path.is_within(path),
            WatchKind::Data | WatchKind::Exists | WatchKind::Children | WatchKind::Persistent => {
                event.path == *path
            }
        };
        place && event.zxid > since && kind.fires_on(event.kind)
    }

    fn fire(&mut self, event: &Event) -> Vec<Told> {
        let mut told = Vec::new();
        self.watches.retain(|&(watcher, watch), it| {
            let concerned = Model::concerns(&it.path, it.kind, it.since, event);
            if concerned {
                let is_last = it.kind.is_one_shot();
                told.push(Told { watcher, watch, with_value: it.with_value, is_last });
            }
            !(concerned && it.kind.is_one_shot())
        });
        self.events.push(event.clone());
        told
    }

    fn missed(&self, path: &ZPath, kind: WatchKind, since: Zxid) -> Vec<Event> {
        let most = if kind.is_one_shot() { 1 } else { usize::MAX };
        let concerned = |event: &&Event| Model::concerns(path, kind, since, event);
        self.events.iter().filter(concerned).take(most).cloned().collect()
    }
}

fn zxid(counter: u64) -> Zxid {
    Zxid::new(Epoch::new(1).unwrap(), counter)
}

fn run(steps: Vec<Step>) {
    let acl = Acl::open();
    let (mut hub, mut model) = (Hub::new(zxid(0)), Model::default());
    let mut last = 0;
    // Who is forgotten never comes back: it is another one who takes the place.
    let mut places = [0, 1, 2];
    for step in steps {
        match step {
            Step::Fire { path, kind, same_txn } => {
                last += u64::from(!same_txn || last == 0);
                let path = ZPath::new(PATHS[path]).unwrap();
                let event = Event { zxid: zxid(last), path, kind };
                let mut told = Vec::new();
                hub.fire(&event, &acl, &mut told);
                told.sort_by_key(|told| (told.watcher, told.watch));
                assert_eq!(told, model.fire(&event), "at {event:?}");
            }
            Step::Set { watcher, id, path, kind, back, with_value } => {
                let (watcher, id) = (Watcher(places[watcher]), WatchId(id));
                let path = ZPath::new(PATHS[path]).unwrap();
                let since = zxid(last.saturating_sub(back));
                let missed = hub.missed(&path, kind, since).expect("the history is short");
                let missed: Vec<Event> = missed.into_iter().map(|past| past.event).collect();
                assert_eq!(missed, model.missed(&path, kind, since));
                let watch = Watch { id, path, kind, since: zxid(last), with_value };
                model.watches.insert((watcher, id), watch.clone());
                hub.set(watcher, watch).expect("there is room");
            }
            Step::Unset { watcher, id } => {
                let (watcher, id) = (Watcher(places[watcher]), WatchId(id));
                let there = model.watches.remove(&(watcher, id)).is_some();
                assert_eq!(hub.unset(watcher, id), there);
            }
            Step::Forget { watcher } => {
                let gone = Watcher(places[watcher]);
                model.watches.retain(|(whose, _), _| *whose != gone);
                hub.forget(gone);
                places[watcher] += 3;
            }
            Step::Sweep { most } => {
                let before = hub.watches();
                hub.sweep(most);
                assert!(before - hub.watches() <= most);
            }
        }
        assert!(hub.watches() >= model.watches.len());
        assert!(hub.is_sweeping() || hub.watches() == model.watches.len());
    }
    while hub.is_sweeping() {
        hub.sweep(2);
    }
    assert_eq!(hub.watches(), model.watches.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn hub_does_as_its_model(steps in steps()) {
        run(steps);
    }
}

#[test]
fn history_reaches_back_as_far_as_its_window() {
    let acl = Acl::open();
    let mut hub = Hub::new(zxid(0));
    let window = conclave::limits::EVENT_WINDOW as u64;
    let path = ZPath::new("/a").unwrap();
    let fire = |hub: &mut Hub, at: u64| {
        let event = Event { zxid: zxid(at), path: path.clone(), kind: EventKind::DataChanged };
        hub.fire(&event, &acl, &mut Vec::new());
    };
    for at in 1..=window {
        fire(&mut hub, at);
    }
    let all = hub.missed(&path, WatchKind::Persistent, zxid(0)).expect("it is all there");
    assert_eq!(all.len(), conclave::limits::EVENT_WINDOW);
    for at in window + 1..=3 * window {
        fire(&mut hub, at);
    }
    assert_eq!(hub.missed(&path, WatchKind::Persistent, zxid(2 * window - 1)), None);
    let kept = hub.missed(&path, WatchKind::Persistent, zxid(2 * window)).expect("it is there");
    assert_eq!(kept.first().map(|past| past.event.zxid), Some(zxid(2 * window + 1)));
    assert_eq!(kept.len(), conclave::limits::EVENT_WINDOW);
}

#[test]
fn history_of_long_paths_is_shorter() {
    let acl = Acl::open();
    let mut hub = Hub::new(zxid(0));
    let path = ZPath::new(&format!("/{}", "a".repeat(1023))).unwrap();
    let window = conclave::limits::EVENT_WINDOW_BYTES as u64 / 1024;
    for at in 1..=2 * window {
        let event = Event { zxid: zxid(at), path: path.clone(), kind: EventKind::DataChanged };
        hub.fire(&event, &acl, &mut Vec::new());
    }
    assert_eq!(hub.missed(&path, WatchKind::Persistent, zxid(window - 1)), None);
    let kept = hub.missed(&path, WatchKind::Persistent, zxid(window)).expect("it is there");
    assert_eq!(kept.first().map(|past| past.event.zxid), Some(zxid(window + 1)));
    assert_eq!(kept.len() as u64, window);
}

/// As many watches of one node as one watcher may have, set in the least convenient order, beside
/// those of somebody else: they go without being searched for one by one.
#[test]
fn history_of_long_acls_is_shorter() {
    let mut hub = Hub::new(zxid(0));
    let path = ZPath::new("/a").unwrap();
    let identity = Identity { scheme: "digest".into(), id: format!("u:{}", "x".repeat(1 << 20)) };
    let long = || Arc::from([Acl { perms: Perms::ALL, identity: identity.clone() }]);
    let window = conclave::limits::EVENT_WINDOW_BYTES as u64 >> 20;
    let fire = |hub: &mut Hub, at: u64, acl: &Arc<[Acl]>| {
        let (path, kind) = (path.clone(), EventKind::DataChanged);
        hub.fire(&Event { zxid: zxid(at), path, kind }, acl, &mut Vec::new());
    };
    (1..=window).for_each(|at| fire(&mut hub, at, &long()));
    assert_eq!(hub.missed(&path, WatchKind::Persistent, zxid(0)), None);
    let from = zxid(window / 2);
    assert!(hub.missed(&path, WatchKind::Persistent, from).is_some());
    // One that several events share is kept once.
    let one = long();
    (1..=2 * window).for_each(|at| fire(&mut hub, window + at, &one));
    assert!(hub.missed(&path, WatchKind::Persistent, from).is_some());
}

#[test]
fn one_node_has_as_many_watches_as_there_may_be() {
    let acl = Acl::open();
    let mut hub = Hub::new(zxid(0));
    let (crowd, other) = (Watcher(1), Watcher(2));
    let most = conclave::limits::WATCHES_PER_SESSION as u64;
    let watch = |id: u64, kind: WatchKind| {
        let path = ZPath::new("/a").unwrap();
        Watch { id: WatchId(id), path, kind, since: zxid(0), with_value: false }
    };
    let set_all = |hub: &mut Hub, kind: WatchKind| {
        (0..most).rev().for_each(|id| hub.set(crowd, watch(id, kind)).expect("there is room"));
    };
    let fire = |hub: &mut Hub, at: u64| {
        let (path, kind) = (ZPath::new("/a").unwrap(), EventKind::DataChanged);
        let mut told = Vec::new();
        hub.fire(&Event { zxid: zxid(at), path, kind }, &acl, &mut told);
        assert!(told.is_sorted_by_key(|told| (told.watcher, told.watch)), "not in their order");
        told.len() as u64
    };
    hub.set(other, watch(0, WatchKind::Persistent)).unwrap();
    set_all(&mut hub, WatchKind::Data);
    let one_more = hub.set(crowd, watch(most, WatchKind::Data));
    assert_eq!(one_more, Err(ErrorCode::Throttled));
    assert_eq!((fire(&mut hub, 1), fire(&mut hub, 2)), (most + 1, 1));
    for _ in 0..10 {
        set_all(&mut hub, WatchKind::Persistent);
        assert!((0..most).all(|id| hub.unset(crowd, WatchId(id))));
        assert_eq!(hub.watches(), 1);
    }
    set_all(&mut hub, WatchKind::PersistentRecursive);
    hub.forget(crowd);
    assert_eq!(fire(&mut hub, 3), 1);
    hub.sweep(10);
    assert_eq!(hub.watches() as u64, most - 9, "they go a few at a time");
    hub.sweep(conclave::limits::WATCHES_PER_SESSION + 1);
    assert_eq!((hub.watches(), hub.is_sweeping()), (1, false));
}

#[test]
fn long_paths_are_watched_less_often() {
    let mut hub = Hub::new(zxid(0));
    let mut set = |watcher: u64, id: u64| {
        let path = ZPath::new(&format!("/{}/{id}", "x".repeat(4000))).unwrap();
        let (id, kind) = (WatchId(id), WatchKind::Exists);
        hub.set(Watcher(watcher), Watch { id, path, kind, since: zxid(0), with_value: false })
    };
    let most = (0..).take_while(|id| set(1, *id).is_ok()).count();
    assert!(most * 4000 <= conclave::limits::WATCHED_BYTES_PER_SESSION, "{most} long paths");
    assert_eq!(set(1, most as u64), Err(ErrorCode::Throttled));
    assert_eq!(set(2, 0), Ok(()), "others have a share of their own");
    // What is removed makes room.
    assert!(hub.unset(Watcher(1), WatchId(0)));
    let path = ZPath::new("/short").unwrap();
    let (id, kind) = (WatchId(0), WatchKind::Data);
    let short = Watch { id, path, kind, since: zxid(0), with_value: false };
    assert_eq!(hub.set(Watcher(1), short), Ok(()));
}
