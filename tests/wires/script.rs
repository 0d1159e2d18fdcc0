//! The tables: text files of commands and what comes of them.
//!
//! A line that starts with `>` is a command. Everything below it, up to the next command, comment
//! (`#`) or empty line, is what it printed: the answer, and what each session was told meanwhile.
//! `~` is a node that each run of a table has for itself. Zxids are numbered in the order in which
//! they are seen.
//!
//! | command | meaning |
//! |---|---|
//! | `NAME opens` | a session |
//! | `NAME OPERATION` | as in tests/tree/words.rs |
//! | `NAME watching READ` | and sets a watch |
//! | `NAME watch persistent PATH`, `… recursive PATH` | |
//! | `NAME marks`, `NAME rearms KIND PATH` | what happened since the mark is told |
//! | `NAME unwatch data PATH`, `… children PATH`, `… persistent PATH` | |
//! | `NAME auth SCHEME CREDENTIALS`, `NAME whoami`, `NAME sync PATH` | |

use std::collections::BTreeMap;
use std::fmt::Write;

use bytes::Bytes;
use conclave_proto::{Op, WatchId, WatchKind, ZPath, Zxid};
use expect_test::{ExpectFile, expect_file};

use crate::answer::{Answer, Names, code};
use crate::connect::{Client, Told, Wire};
use crate::server::Server;
use crate::words::Words;
use crate::world::path;
use crate::zookeeper::Forms;

macro_rules! tables {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            check(stringify!($name), &expect_file![concat!("scripts/", stringify!($name), ".txt")]);
        }
    )*};
}

tables! { nodes errors multi listing acl watches secrets quota keeper }

fn check(table: &str, file: &ExpectFile) {
    let server = Server::start();
    let [native, new, old] = Wire::ALL.map(|wire| {
        let home = format!("/{table}-of-{wire:?}").replace(['(', ')'], "-");
        Run::of(&file.data(), wire, &server, home)
    });
    for (zookeeper, forms) in [(new, Forms::New), (old, Forms::Old)] {
        let (native, zookeeper) = (native.show(forms), zookeeper.show(forms));
        if let Some((ours, theirs)) = first_difference(&native, &zookeeper) {
            panic!("the wires differ:\n  native     {ours}\n  ZooKeeper  {theirs}\n\n{zookeeper}");
        }
    }
    file.assert_eq(&native.show(Forms::New));
}

fn first_difference<'a>(a: &'a str, b: &'a str) -> Option<(&'a str, &'a str)> {
    let mut lines = a.lines().zip(b.lines());
    let found = lines.find(|(a, b)| a != b);
    found.or_else(|| (a.len() != b.len()).then_some(("more", "or less")))
}

/// What came of a table over one wire.
struct Run {
    home: String,
    lines: Vec<Line>,
}

enum Line {
    Text(String),
    Opened(String, u64),
    Done(Box<Done>),
}

impl Run {
    fn of(table: &str, wire: Wire, server: &Server, home: String) -> Run {
        let mut stage = Stage { wire, server, clients: BTreeMap::new(), marks: BTreeMap::new() };
        let mut lines = Vec::new();
        for line in table.lines() {
            if let Some(command) = line.strip_prefix('>') {
                lines.push(Line::Text(line.to_owned()));
                lines.extend(stage.run(&command.replace('~', &home)));
            } else if line.is_empty() || line.starts_with('#') {
                lines.push(Line::Text(line.to_owned()));
            }
        }
        Run { home, lines }
    }

    fn show(&self, forms: Forms) -> String {
        let (mut names, mut text) = (Names::default(), String::new());
        for line in &self.lines {
            match line {
                Line::Text(line) => writeln!(text, "{line}").unwrap(),
                Line::Opened(name, session) => names.name_session(*session, name),
                Line::Done(done) => {
                    let Done { op, answer, told } = &**done;
                    writeln!(text, "{}", names.show(op, answer, forms)).unwrap();
                    // ZooKeeper's wire does not say when a watch missed what it is told.
                    let resumes = matches!(op, Op::Watch { since: Some(_), .. });
                    for (name, Told { zxid, kind, path }) in told {
                        write!(text, "    {name}: {kind:?} {path}").unwrap();
                        if !resumes {
                            write!(text, " at {}", names.zxid(*zxid)).unwrap();
                        }
                        writeln!(text).unwrap();
                    }
                }
            }
        }
        text.replace(&self.home, "~")
    }
}

/// A command, and what came of it.
struct Done {
    op: Op,
    answer: Answer,
    told: Vec<(String, Told)>,
}

/// The sessions of a run, by their names.
struct Stage<'a> {
    wire: Wire,
    server: &'a Server,
    clients: BTreeMap<String, Box<dyn Client>>,
    marks: BTreeMap<String, Zxid>,
}

impl Stage<'_> {
    fn run(&mut self, command: &str) -> Option<Line> {
        let mut words = Words::new(command);
        let name = words.next().to_owned();
        if words.is("opens") {
            let client = self.wire.dial(self.server);
            let session = client.session();
            self.clients.insert(name.clone(), client);
            return Some(Line::Opened(name, session));
        }
        if words.is("marks") {
            let op = Op::Exists { path: ZPath::root(), watch: None };
            let answer = self.clients.get_mut(&name).unwrap().ask(&op);
            self.marks.insert(name, Zxid::from_bits(answer.zxid));
            return None;
        }
        let op = op(&mut words, self.marks.get(&name).copied());
        words.end();
        let client = self.clients.get_mut(&name).expect("a session is opened");
        let answer = client.ask(&op);
        let refused = answer
            .result
            .as_ref()
            .err()
            .is_some_and(|failure| code(failure.0) == conclave_proto::ErrorCode::AuthFailed);
        let mut told = Vec::new();
        if refused || matches!(op, Op::CloseSession) {
            // Over ZooKeeper's wire the connection ends with it.
            self.clients.remove(&name);
        }
        for (name, client) in &mut self.clients {
            told.extend(client.told().into_iter().map(|told| (name.clone(), told)));
        }
        Some(Line::Done(Box::new(Done { op, answer, told })))
    }
}

/// The operation that a command asks for, `since` the mark of who asks.
pub(crate) fn op(words: &mut Words<'_>, since: Option<Zxid>) -> Op {
    match () {
        () if words.is("watching") => watching(words.op()),
        () if words.is("watch") => {
            let kind = kind(words.next());
            let path = words.path();
            Op::Watch { id: id(&path, kind), path, kind, since: None, with_value: false }
        }
        () if words.is("rearms") => {
            let kind = kind(words.next());
            let path = words.path();
            assert!(since.is_some(), "a mark was set");
            Op::Watch { id: id(&path, kind), path, kind, since, with_value: false }
        }
        () if words.is("unwatch") => {
            let kind = kind(words.next());
            Op::Unwatch { id: id(&words.path(), kind) }
        }
        () if words.is("auth") => {
            let (scheme, credentials) = (words.next().to_owned(), words.next());
            let credentials = Bytes::copy_from_slice(credentials.as_bytes()).into();
            Op::Authenticate { scheme, credentials }
        }
        () if words.is("whoami") => Op::WhoAmI,
        () if words.is("sync") => Op::Sync { path: path(words.next()) },
        () => words.op(),
    }
}

fn kind(word: &str) -> WatchKind {
    match word {
        "data" => WatchKind::Data,
        "exists" => WatchKind::Exists,
        "children" => WatchKind::Children,
        "persistent" => WatchKind::Persistent,
        "recursive" => WatchKind::PersistentRecursive,
        other => panic!("what is a watch on {other}?"),
    }
}

/// The number of a watch: there is one for each path and slot, as in ZooKeeper's protocol.
fn id(path: &ZPath, kind: WatchKind) -> WatchId {
    let slot = match kind {
        WatchKind::Data | WatchKind::Exists => 0,
        WatchKind::Children => 1,
        WatchKind::Persistent => 2,
        WatchKind::PersistentRecursive => 3,
    };
    let sum = |sum: u64, byte: u8| sum.wrapping_mul(31).wrapping_add(byte.into());
    WatchId(path.as_str().bytes().fold(7, sum) << 2 | slot)
}

/// The same read, with a watch.
fn watching(op: Op) -> Op {
    match op {
        Op::Get { path, .. } => Op::Get { watch: Some(id(&path, WatchKind::Data)), path },
        Op::Exists { path, .. } => Op::Exists { watch: Some(id(&path, WatchKind::Exists)), path },
        Op::Children { path, page, .. } => {
            Op::Children { watch: Some(id(&path, WatchKind::Children)), path, page }
        }
        Op::MultiRead(ops) => Op::MultiRead(ops.into_iter().map(watching).collect()),
        other => panic!("{other:?} sets no watch"),
    }
}
