//! docs/COMPATIBILITY.md says what is answered to everything that the protocol has: it is complete,
//! and says nothing of what is not there.

use std::collections::BTreeSet;

use bytes::Buf;
use conclave::wire::{Inbound, Then, Word};
use conclave_proto::ErrorCode;

use crate::speech::{Body, Talk};

/// The rows of the first table of a section, as their cells.
fn table(section: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string("docs/COMPATIBILITY.md").unwrap();
    let start = format!("\n## {section}\n");
    let text = text.split_once(&start).unwrap_or_else(|| panic!("no section {section}")).1;
    let lines = text.lines().skip_while(|line| !line.starts_with('|'));
    let rows = lines.take_while(|line| line.starts_with('|')).skip(2);
    let cells =
        |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().into()).collect();
    rows.map(cells).collect()
}

/// The numbers that a cell names: `8, 12` or `500–503, 505`. A minus is not a hyphen.
fn numbers(cell: &str) -> Vec<i32> {
    let number = |text: &str| text.trim().replace('−', "-").parse::<i32>().ok();
    let range = |text: &str| match text.split_once('–') {
        Some((first, last)) => number(first).zip(number(last)).map(|(a, b)| (a..=b).collect()),
        None => number(text).map(|number| vec![number]),
    };
    cell.split(',').filter_map(range).flatten().collect()
}

/// Whether a request of this number is known, whatever its body is.
fn is_known(kind: i32) -> bool {
    let mut talk = Talk::open();
    match talk.asks(1, kind, Body::new()) {
        Some(Inbound::Known) => {
            let (frames, then) = talk.respond(Err(ErrorCode::NoNode.into()));
            let unimplemented = (-6_i32).to_be_bytes();
            (&frames[0][12..16], then) != (&unimplemented[..], Then::Close)
        }
        _ => true,
    }
}

#[test]
fn every_request_is_documented() {
    let rows = table("Requests");
    let documented: BTreeSet<i32> = rows.iter().flat_map(|row| numbers(&row[0])).collect();
    let refused: BTreeSet<i32> = rows
        .iter()
        .filter(|row| row[2].contains("−6 and closed"))
        .flat_map(|row| numbers(&row[0]))
        .collect();
    for kind in -200..2000 {
        let expected = documented.contains(&kind) && !refused.contains(&kind);
        assert_eq!(is_known(kind), expected, "request {kind}");
    }
}

#[test]
fn every_error_is_documented() {
    // What the wire says by itself: it does not understand, and there is no reconfig.
    let mut sent = BTreeSet::from([-5, -123]);
    for &code in ErrorCode::ALL {
        let mut talk = Talk::open();
        talk.op(3, Body::new().text("/a").bool(false));
        let (frames, _) = talk.respond(Err(code.into()));
        sent.insert(frames[0].slice(12..).get_i32());
    }
    let number = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    let documented: BTreeSet<i32> = table("Errors")
        .iter()
        .flat_map(|row| row[0].split(',').map(|text| number(text.trim())).collect::<Vec<_>>())
        .filter(|text| text != "others")
        .flat_map(|text| numbers(&text))
        .collect();
    assert_eq!(sent, documented);
}

#[test]
fn every_word_is_documented() {
    let names = |row: &Vec<String>| -> Vec<String> {
        row[0].split(',').map(|word| word.trim().to_owned()).collect()
    };
    let documented: BTreeSet<String> = table("Four-letter words").iter().flat_map(names).collect();
    let known: BTreeSet<String> = Word::all().map(|word| word.as_str().to_owned()).collect();
    assert_eq!(documented, known);
}

#[test]
fn every_scheme_is_documented() {
    let rows = table("ACL schemes");
    let documented: Vec<_> = rows.iter().flat_map(|row| row[0].split(", ")).collect();
    let known = ["world", "auth", "ip", "digest", "super", "x509", "password", "sasl", "others"];
    assert_eq!(documented, known);
}

/// The keys that a configuration of ZooKeeper may well have.
#[test]
fn every_key_is_documented() {
    let keys: BTreeSet<String> = table("Keys of zoo.cfg")
        .iter()
        .flat_map(|row| row[0].split(", ").map(str::to_owned).collect::<Vec<_>>())
        .collect();
    for key in [
        "clientPort",
        "secureClientPort",
        "clientPortAddress",
        "dataDir",
        "dataLogDir",
        "tickTime",
        "initLimit",
        "syncLimit",
        "server.N",
        "minSessionTimeout",
        "maxSessionTimeout",
        "maxClientCnxns",
        "maxCnxns",
        "snapCount",
        "autopurge.*",
        "4lw.commands.whitelist",
        "enforceQuota",
        "extendedTypesEnabled",
        "jute.maxbuffer",
        "ssl.quorum.*",
        "DigestAuthenticationProvider.superDigest",
        "reconfigEnabled",
        "readonlymode.enabled",
        "localSessionsEnabled",
        "localSessionsUpgradingEnabled",
    ] {
        assert!(keys.contains(key), "{key} is not in the table");
    }
}
