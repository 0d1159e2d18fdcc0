//! Paths: ZooKeeper's rules, and what can be made of a path.

use conclave_proto::ZPath;
use conclave_proto::limits::{PATH_BYTES, PATH_DEPTH};
use expect_test::expect;
use proptest::prelude::*;

use crate::values;

/// What is said of each text, one a line.
fn verdicts(texts: &[&str]) -> String {
    let verdict = |text: &&str| match ZPath::new(text) {
        Ok(path) => format!("{text:?}: depth {}, name {:?}\n", path.depth(), path.name()),
        Err(error) => format!("{text:?}: {error}\n"),
    };
    texts.iter().map(verdict).collect()
}

const TEXTS: [&str; 35] = [
    "/",
    "/app",
    "/app/members/lock-0000000007",
    "/a b",
    "/.a",
    "/a.",
    "/...",
    "/é/☃",
    "/\u{d7ff}",
    "/\u{f900}",
    "/\u{ffef}",
    "/\u{a0}",
    "",
    "app",
    " /app",
    "//",
    "/app/",
    "//app",
    "/app//members",
    "/.",
    "/..",
    "/app/./members",
    "/app/../members",
    "/app/..",
    "/a\0",
    "/a\u{1}",
    "/a\u{1f}",
    "/a\u{7f}",
    "/a\u{9f}",
    "/a\u{e000}",
    "/a\u{f8ff}",
    "/a\u{fff0}",
    "/a\u{ffff}",
    "/a\u{10000}",
    "/a/\u{1f980}",
];

#[test]
fn the_rules_are_zookeepers() {
    expect![[r#"
        "/": depth 0, name ""
        "/app": depth 1, name "app"
        "/app/members/lock-0000000007": depth 3, name "lock-0000000007"
        "/a b": depth 1, name "a b"
        "/.a": depth 1, name ".a"
        "/a.": depth 1, name "a."
        "/...": depth 1, name "..."
        "/é/☃": depth 2, name "☃"
        "/\u{d7ff}": depth 1, name "\u{d7ff}"
        "/豈": depth 1, name "豈"
        "/\u{ffef}": depth 1, name "\u{ffef}"
        "/\u{a0}": depth 1, name "\u{a0}"
        "": a path starts with '/'
        "app": a path starts with '/'
        " /app": a path starts with '/'
        "//": a path does not end with '/'
        "/app/": a path does not end with '/'
        "//app": a path has no empty part: '//' at byte 1
        "/app//members": a path has no empty part: '//' at byte 5
        "/.": a path has no '.' or '..' part
        "/..": a path has no '.' or '..' part
        "/app/./members": a path has no '.' or '..' part
        "/app/../members": a path has no '.' or '..' part
        "/app/..": a path has no '.' or '..' part
        "/a\0": the character '\0' at byte 2 is not allowed in a path
        "/a\u{1}": the character '\u{1}' at byte 2 is not allowed in a path
        "/a\u{1f}": the character '\u{1f}' at byte 2 is not allowed in a path
        "/a\u{7f}": the character '\u{7f}' at byte 2 is not allowed in a path
        "/a\u{9f}": the character '\u{9f}' at byte 2 is not allowed in a path
        "/a\u{e000}": the character '\u{e000}' at byte 2 is not allowed in a path
        "/a\u{f8ff}": the character '\u{f8ff}' at byte 2 is not allowed in a path
        "/a\u{fff0}": the character '\u{fff0}' at byte 2 is not allowed in a path
        "/a\u{ffff}": the character '\u{ffff}' at byte 2 is not allowed in a path
        "/a𐀀": the character '𐀀' at byte 2 is not allowed in a path
        "/a/🦀": the character '🦀' at byte 3 is not allowed in a path
    "#]]
    .assert_eq(&verdicts(&TEXTS));
}

#[test]
fn a_path_is_bounded() {
    let longest = format!("/{}", "a".repeat(PATH_BYTES - 1));
    assert!(ZPath::new(&longest).is_ok());
    let longer = ZPath::new(&format!("{longest}a")).unwrap_err();
    assert_eq!(longer.to_string(), "a path has at most 4096 bytes, this one has 4097");

    let deepest = "/a".repeat(PATH_DEPTH);
    let path = ZPath::new(&deepest).unwrap();
    assert_eq!(path.depth(), PATH_DEPTH);
    let deeper = path.child("a").unwrap_err();
    assert_eq!(deeper.to_string(), "a path has at most 256 parts, this one has 257");
}

#[test]
fn a_child_is_one_part() {
    let app = ZPath::new("/app").unwrap();
    assert_eq!(app.child("a").unwrap().as_str(), "/app/a");
    assert_eq!(ZPath::root().child("a").unwrap().as_str(), "/a");
    for name in ["", "a/b", "/", ".", "..", "\u{7f}"] {
        assert!(app.child(name).is_err(), "{name:?}");
    }
    assert_eq!(app.descendant("a/b").unwrap().as_str(), "/app/a/b");
    for relative in ["", "/a", "a/", "a//b", "../a"] {
        assert!(app.descendant(relative).is_err(), "{relative:?}");
    }
}

#[test]
fn the_root_is_above_all() {
    let root = ZPath::root();
    assert_eq!(root.parent(), None);
    assert_eq!(root.ancestors().count(), 0);
    assert_eq!((root.depth(), root.name()), (0, ""));
    let app = ZPath::new("/app").unwrap();
    assert!(app.is_within(&root) && root.is_within(&root) && !root.is_within(&app));
    assert!(!ZPath::new("/apple").unwrap().is_within(&app));
}

/// The rules, said in another way: part by part, character by character.
fn is_path(text: &str) -> bool {
    let allowed = |c: char| !matches!(c, '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..);
    let part = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(allowed);
    text == "/" || text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(part))
}

proptest! {
    #[test]
    fn every_text_is_judged_by_the_rules(text in "/?([./a\u{7f}é\u{e000}-\u{e001}\u{10000}]|/\\.|[a-z]{1,3}/){0,9}") {
        prop_assert_eq!(ZPath::new(&text).is_ok(), is_path(&text), "{:?}", text);
    }

    #[test]
    fn parent_and_child_are_inverse(path in values::path(), name in "[a-z.]{3,5}") {
        prop_assume!(name != "..");
        let child = path.child(&name).unwrap();
        prop_assert_eq!(child.parent(), Some(path.clone()));
        prop_assert_eq!(child.name(), &name);
        prop_assert_eq!(child.depth(), path.depth() + 1);
        prop_assert!(child.is_within(&path) && !path.is_within(&child));
        prop_assert_eq!(child.as_str().parse(), Ok(child.clone()));
    }

    /// The ancestors are the parents of parents, nearest first, and the path lies within each.
    #[test]
    fn ancestors_lead_to_the_root(path in values::path()) {
        let ancestors: Vec<ZPath> = path.ancestors().collect();
        prop_assert_eq!(ancestors.len(), path.depth());
        prop_assert_eq!(ancestors.last().cloned(), (!path.is_root()).then(ZPath::root));
        let mut below = path.clone();
        for above in ancestors {
            prop_assert_eq!(below.parent(), Some(above.clone()));
            prop_assert!(path.is_within(&above));
            below = above;
        }
    }
}
