//! docs/OPERATING.md names every key of the configuration, every metric and every exit code.

use crate::server::{Server, fail};

const DOCUMENT: &str = include_str!("../../docs/OPERATING.md");

/// What stands between backquotes in the document, without labels and endings of lists.
fn names() -> Vec<&'static str> {
    let quoted = DOCUMENT.split('`').skip(1).step_by(2);
    quoted.map(|name| name.split('{').next().unwrap_or_default()).collect()
}

/// The keys that a table of the configuration takes, as the server itself says.
fn keys(table: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let (status, said) = fail(dir.path(), &["--set", &format!("{table}nothing_like_it=1")]);
    assert_eq!(status.code(), Some(78), "{said}");
    let (_, expected) = said.split_once("expected").unwrap_or_else(|| panic!("{said}"));
    expected.split('`').skip(1).step_by(2).map(|key| format!("{table}{key}")).collect()
}

#[test]
fn every_key_is_explained() {
    let names = names();
    let tables = ["audit.", "sessions.", "storage.", "timing.", "tls."];
    let mut all = keys("");
    all.extend(tables.iter().flat_map(|table| keys(table)));
    assert!(all.len() > 30, "{all:?}");
    for key in all {
        // A table is explained by its keys.
        let prefix = format!("{key}.");
        let known = names.iter().any(|name| *name == key || name.starts_with(&prefix));
        assert!(known, "the page says nothing of `{key}`");
    }
}

#[test]
fn every_metric_is_explained() {
    let server = Server::start();
    let names = names();
    let text = server.get("/metrics");
    let metrics = text.lines().filter_map(|line| line.strip_prefix("# TYPE conclave_"));
    let mut count = 0;
    for metric in metrics.filter_map(|line| line.split(' ').next()) {
        let known = names.iter().any(|name| name.strip_suffix("_total").unwrap_or(name) == metric);
        assert!(known, "the page says nothing of `{metric}`");
        count += 1;
    }
    assert!(count > 40, "{text}");
}

#[test]
fn every_exit_code_is_explained() {
    for code in [
        conclave::server::EXIT_CONFIG,
        conclave::server::EXIT_DATA,
        conclave::server::EXIT_DIVERGED,
        conclave::server::EXIT_UNAVAILABLE,
        u8::try_from(conclave::store::EXIT_STORAGE).unwrap(),
    ] {
        assert!(DOCUMENT.contains(&format!("\n| {code} | ")), "the page says nothing of {code}");
    }
}
