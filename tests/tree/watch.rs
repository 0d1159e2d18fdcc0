//! Which events each kind of watch waits for.

use std::fmt::Write;

use conclave_proto::{EventKind, WatchKind};
use expect_test::expect;

#[test]
fn each_kind_of_watch_waits_for_its_events() {
    let kinds = [
        WatchKind::Data,
        WatchKind::Exists,
        WatchKind::Children,
        WatchKind::Persistent,
        WatchKind::PersistentRecursive,
    ];
    let events = [
        EventKind::Created,
        EventKind::Deleted,
        EventKind::DataChanged,
        EventKind::ChildrenChanged,
    ];
    let mut table = String::new();
    for kind in kinds {
        let once = if kind.is_one_shot() { "once: " } else { "" };
        let fires: Vec<_> = events.into_iter().filter(|event| kind.fires_on(*event)).collect();
        writeln!(table, "{kind:?} {once}{fires:?}").unwrap();
    }
    expect![[r#"
        Data once: [Deleted, DataChanged]
        Exists once: [Created, Deleted, DataChanged]
        Children once: [Deleted, ChildrenChanged]
        Persistent [Created, Deleted, DataChanged, ChildrenChanged]
        PersistentRecursive [Created, Deleted, DataChanged]
    "#]]
    .assert_eq(&table);
}
