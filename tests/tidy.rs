//! The rules of the source tree that the compiler does not know.

use std::fs;
use std::path::PathBuf;

/// The floors of `src`, the lowest first. A module names lower floors only, and itself.
const FLOORS: [&[&str]; 7] = [
    &["limits"],
    &["zab", "tree", "hub", "session"],
    &["replica"],
    &["net"],
    &["store", "wire", "peers"],
    &["server"],
    &["config", "cli"],
];

/// The floors that do no IO, have no clock and no dice, and are the same on every run.
const PURE_FLOORS: usize = 3;

/// What a pure floor never names.
const IMPURE: [&str; 14] = [
    "tokio",
    "heed",
    "prost",
    "std::net",
    "std::fs",
    "std::io",
    "std::thread",
    "std::time",
    "std::process",
    "std::env",
    "Mutex",
    "RwLock",
    "getrandom",
    "rand",
];

/// The one file with an unsafe block: LMDB maps its file into memory.
const UNSAFE: &str = "src/store/env.rs";

/// A file needs splitting before it is this long.
const LINES: usize = 800;

fn floor(module: &str) -> usize {
    let found = FLOORS.iter().position(|floor| floor.contains(&module));
    found.unwrap_or_else(|| panic!("src/{module} has no floor: give it one in FLOORS"))
}

/// Every hand-written source file below the folder, with its code: no comments.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("a folder can be listed").path();
            if path.is_dir() && !path.ends_with("generated") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file is readable");
                let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
                found.push((path, code.collect::<Vec<_>>().join("\n")));
            }
        }
    }
    assert!(!found.is_empty(), "{folder} has no sources");
    found
}

/// The word after each `prefix`.
fn named<'a>(code: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code.split(prefix)
        .skip(1)
        .map(move |rest| rest.split(|c| !is_part(c)).next().unwrap_or_default())
}

fn has_word(code: &str, word: &str) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(word).any(|(at, _)| {
        !is_part(code[..at].chars().next_back()) && !is_part(code[at + word.len()..].chars().next())
    })
}

#[test]
fn modules_name_lower_floors_only_and_the_lower_floors_are_pure() {
    for (path, code) in sources("src") {
        let text = path.to_str().expect("names are ASCII");
        let module = named(text, "src/").next().expect("it was found in src");
        if ["lib", "main"].contains(&module) {
            continue;
        }
        let (path, own) = (path.display(), floor(module));
        assert!(!code.contains("crate::{"), "{path}: one `use` for each module, for this test");
        for other in named(&code, "crate::").filter(|other| *other != module) {
            assert!(floor(other) < own, "{path}: {module} names {other}, which is not below it");
        }
        let impure = IMPURE.iter().find(|word| own < PURE_FLOORS && has_word(&code, word));
        assert!(impure.is_none(), "{path} names {impure:?}: it belongs above the line");
    }
}

#[test]
fn files_are_short_and_safe() {
    for (path, code) in ["src", "proto/src", "client", "tests"].into_iter().flat_map(sources) {
        let (lines, path) = (code.lines().count(), path.display());
        assert!(lines <= LINES, "{path} has {lines} lines: split it");
        let is_here = path.to_string() == "tests/tidy.rs";
        let is_unsafe = has_word(&code, "unsafe") && !is_here && path.to_string() != UNSAFE;
        assert!(!is_unsafe, "{path} has unsafe code");
    }
}

/// What recipes are made of.
const PARTS: [&str; 11] = [
    "body", "doubt", "error", "hold", "line", "mod", "owned", "place", "support", "timer", "token",
];

/// What recipes have of the client beside its public interface: themselves, and randomness.
const OF_THE_CLIENT: [&str; 2] = ["recipes", "dice"];

#[test]
fn recipes_stand_on_the_public_client_alone() {
    for (path, code) in sources("client/src") {
        let (is_recipe, path) = (path.starts_with("client/src/recipes"), path.display());
        let mut named = named(&code, "crate::");
        if is_recipe {
            // The names of modules are in lower case, and what is public is at the top.
            let is_module = |name: &str| name.starts_with(|c: char| c.is_lowercase());
            let inside = named.find(|name| is_module(name) && !OF_THE_CLIENT.contains(name));
            assert!(inside.is_none(), "{path} names {inside:?}, which other crates could not");
            assert!(!code.contains(".handle."), "{path} reaches into the client");
        } else if !path.to_string().ends_with("lib.rs") {
            assert!(
                named.all(|module| module != "recipes"),
                "{path} names the recipes, which are built on it"
            );
        }
    }
}

/// What every recipe says what happens when, in one of these words.
const EVENTS: [&[&str]; 5] = [
    &["connection"],
    &["session expires", "expired session"],
    &["process is paused", "paused process"],
    &["dead leader", "a leader dies", "leader of the servers dies"],
    &["by mistake", " think "],
];

#[test]
fn every_recipe_shows_how_it_is_used_what_it_guarantees_and_what_it_costs() {
    let folder = "client/src/recipes";
    let of = |folder: &str| fs::read_dir(folder).expect("it can be listed");
    let files = of(folder).map(|entry| entry.expect("an entry").path());
    let recipes = files.filter_map(|path| {
        let name = path.file_stem().and_then(|name| name.to_str()).expect("names are ASCII");
        let is_part = PARTS.contains(&name);
        let module = if path.is_dir() { path.join("mod.rs") } else { path.clone() };
        (!is_part).then_some(module)
    });
    let mut count = 0;
    for path in recipes {
        let text = fs::read_to_string(&path).expect("a source file is readable");
        let lines = text.lines().map(str::trim);
        let docs = lines.filter(|line| line.starts_with("//!") || line.starts_with("///"));
        let docs = docs.collect::<Vec<_>>().join("\n").to_lowercase();
        let place = |what: &str| docs.find(what);
        let (example, guarantees) = (place("```"), place("# guarantees"));
        let is_in_order = example.is_some() && example < guarantees && guarantees < place("# cost");
        assert!(is_in_order, "{}: an example, then # Guarantees, then # Cost", path.display());
        for words in EVENTS {
            let says = words.iter().any(|words| docs.contains(words));
            assert!(says, "{} says nothing of one of {words:?}", path.display());
        }
        count += 1;
    }
    assert!(count >= 18, "{count} recipes in {folder}");
}
