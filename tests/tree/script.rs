//! Scripts: text files of commands and what comes of them.
//!
//! A line that starts with `>` is a command. Everything below it, up to the next command, comment
//! (`#`) or empty line, is what it printed. `UPDATE_EXPECT=1 cargo test` writes that anew.
//!
//! | command | meaning |
//! |---|---|
//! | `open NAME [again with SECRET]` | open a session; the first one is session 1, and so on |
//! | `NAME is IDENTITY…` | the session's identities from now on |
//! | `after MS` | let the leader's clock go on (each write takes 10 ms by itself) |
//! | `NAME [# XID [acked XID]] WRITE` | a write of the session; `system` is the ensemble itself |
//! | `NAME READ` | a read of the session |
//! | `changed KIND PATH since ZXID` | what a watch that is set again is told |
//!
//! A write prints its zxid, its answer, and what watchers are told.

use std::collections::BTreeMap;
use std::fmt::Write;

use bytes::Bytes;
use conclave::tree::{self, Applied, Excess, SessionChange};
use conclave_proto::request::Entry;
use conclave_proto::{Acl, Fault, Identity, Op, Reply, Secret, SessionId, Stat, WatchKind, Xid};
use expect_test::{ExpectFile, expect_file};

use crate::words::Words;
use crate::world::{World, identity, txn};

fn check(file: &ExpectFile) {
    let mut stage = Stage::new();
    let mut text = String::new();
    let mut is_output = false;
    for line in file.data().lines() {
        if let Some(command) = line.strip_prefix('>') {
            let output = stage.run(command);
            write!(text, "{line}\n{output}").unwrap();
            is_output = true;
        } else if line.is_empty() || line.starts_with('#') {
            writeln!(text, "{line}").unwrap();
            is_output = false;
        } else {
            assert!(is_output, "not a command, comment or output: {line}");
        }
    }
    file.assert_eq(&text);
}

macro_rules! scripts {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            check(&expect_file![concat!("scripts/", stringify!($name), ".txt")]);
        }
    )*};
}

scripts! {
    stat sequential ephemeral mortal delete_recursive multi conditions retries sessions versions
    listing acl watches quota quota_rights tolerant lingering
}

/// The tree, and the sessions by their names.
struct Stage {
    world: World,
    sessions: BTreeMap<String, (SessionId, Vec<Identity>)>,
    clock: i64,
}

impl Stage {
    fn new() -> Stage {
        let system = ("system".to_owned(), (SessionId::NONE, Vec::new()));
        Stage { world: World::new(), sessions: BTreeMap::from([system]), clock: 0 }
    }

    fn run(&mut self, command: &str) -> String {
        let mut words = Words::new(command);
        match words.next() {
            "open" => self.open(&mut words),
            "after" => {
                self.clock += words.number::<i64>();
                String::new()
            }
            "changed" => self.changed(&mut words),
            name if words.is("is") => {
                let identities = words.rest().into_iter().map(identity).collect();
                self.sessions.get_mut(name).expect("a session").1 = identities;
                String::new()
            }
            name => self.request(name, &mut words),
        }
    }

    fn open(&mut self, words: &mut Words<'_>) -> String {
        let name = words.next().to_owned();
        let next = SessionId(self.sessions.len() as u64);
        let again = words.is("again");
        let secret = if again && words.is("with") { words.number() } else { 0 };
        let session = self.sessions.entry(name).or_insert((next, Vec::new())).0;
        let secret = Secret::new([secret; 16]);
        let op = Op::CreateSession { session, timeout_ms: 10_000, secret };
        self.write(SessionId::NONE, &[], (0, 0), op)
    }

    fn request(&mut self, name: &str, words: &mut Words<'_>) -> String {
        let (session, identities) = self.sessions.get(name).expect("a session is opened").clone();
        let mut numbers = (0, 0);
        if words.is("#") {
            numbers.0 = words.number();
            numbers.1 = if words.is("acked") { words.number() } else { 0 };
        }
        let op = words.op();
        words.end();
        if op.is_write() {
            return self.write(session, &identities, numbers, op);
        }
        match tree::read(&self.world.nodes, &identities, session, &op) {
            Ok(Reply::Stat(stat)) => show_stat(&stat),
            result => show_result(&result) + "\n",
        }
    }

    fn write(
        &mut self,
        session: SessionId,
        identities: &[Identity],
        numbers: (u64, u64),
        op: Op,
    ) -> String {
        self.clock += 10;
        let mut txn = txn(session, op);
        txn.time_ms = self.clock;
        txn.identities = identities.into();
        (txn.request.xid, txn.request.acked) = (Xid(numbers.0), Xid(numbers.1));
        let Applied { zxid, result, changes, session, duplicate, excess, .. } =
            self.world.apply(&txn);
        let again = if duplicate { "again, from " } else { "" };
        let mut text = format!("{again}{zxid} {}\n", show_result(&result));
        for change in changes {
            writeln!(text, "    {:?} {}", change.event.kind, change.event.path).unwrap();
            assert_eq!(change.event.zxid, zxid);
        }
        if let Some(Excess { path, what, wanted, limit, hard }) = excess {
            let kind = if hard { "hard" } else { "soft" };
            writeln!(text, "    {wanted} {what:?} at {path}, the {kind} limit is {limit}").unwrap();
        }
        match session {
            None => {}
            Some(SessionChange::Opened { session, timeout_ms }) => {
                writeln!(text, "    session {} lives for {timeout_ms} ms", session.0).unwrap();
            }
            Some(SessionChange::Closed(session)) => {
                writeln!(text, "    session {} is gone", session.0).unwrap();
            }
        }
        text
    }

    fn changed(&self, words: &mut Words<'_>) -> String {
        let kind = match words.next() {
            "data" => WatchKind::Data,
            "exists" => WatchKind::Exists,
            "children" => WatchKind::Children,
            "persistent" => WatchKind::Persistent,
            other => panic!("what is a watch on {other}?"),
        };
        let path = words.path();
        assert!(words.is("since"));
        let event = tree::changed_since(&self.world.nodes, &path, kind, words.zxid());
        event.map_or("nothing\n".to_owned(), |event| format!("{event:?}\n"))
    }
}

fn show_result(result: &Result<Reply, Fault>) -> String {
    match result {
        Ok(reply) => show(reply),
        Err(Fault { code, index: 0 }) => format!("{code:?}"),
        Err(Fault { code, index }) => format!("{code:?}, operation {index}"),
    }
}

fn show(reply: &Reply) -> String {
    match reply {
        Reply::Done => "done".to_owned(),
        Reply::Created { path, stat } => match (stat.version, stat.num_children) {
            (0, 0) => format!("created {path}"),
            (version, children) => {
                format!("found {path}, version {version}, {children} children")
            }
        },
        Reply::Stat(stat) => format!("version {}, aversion {}", stat.version, stat.aversion),
        Reply::Data { data, stat } => format!("{} (version {})", show_data(data), stat.version),
        Reply::Children { entries, more, .. } => {
            let lines = entries.iter().map(show_entry).chain(more.then(|| "…".to_owned()));
            let lines: Vec<String> = lines.collect();
            if lines.is_empty() { "nothing".to_owned() } else { lines.join("\n") }
        }
        Reply::Names { names, .. } => names.iter().collect::<Vec<_>>().join("\n"),
        Reply::Acl { acl, stat } => {
            let lines: Vec<String> = acl.iter().map(show_acl).collect();
            format!("{} (version {})", lines.join(" "), stat.aversion)
        }
        Reply::Paths(paths) => format!("{paths:?}"),
        Reply::Count(count) => format!("{count}"),
        Reply::DeletedMany { deleted, more: false } => format!("deleted {deleted}, all"),
        Reply::DeletedMany { deleted, more: true } => format!("deleted {deleted}, not all"),
        Reply::Multi { held, replies } => {
            let branch = if *held { "then" } else { "else" };
            if replies.is_empty() {
                return format!("{branch}: nothing");
            }
            let replies: Vec<String> = replies.iter().map(show).collect();
            format!("{branch}: {}", replies.join("; "))
        }
        Reply::MultiRead(results) => results.iter().map(show_result).collect::<Vec<_>>().join("; "),
        Reply::Identities(_) => unreachable!("the tree does not answer this"),
    }
}

fn show_stat(stat: &Stat) -> String {
    let Stat { czxid, mzxid, pzxid, ctime_ms, mtime_ms, .. } = stat;
    let Stat { version, cversion, aversion, ephemeral_owner, .. } = stat;
    let Stat { data_length, num_children, .. } = stat;
    let owner = match ephemeral_owner.0 {
        0 => String::new(),
        owner => format!(", of session {owner}"),
    };
    format!(
        "czxid {czxid} at {ctime_ms}, mzxid {mzxid} at {mtime_ms}, pzxid {pzxid}\n\
         version {version}, cversion {cversion}, aversion {aversion}\n\
         {data_length} bytes, {num_children} children{owner}\n"
    )
}

fn show_entry(entry: &Entry) -> String {
    let stat = entry.stat.map_or(String::new(), |stat| format!(" (version {})", stat.version));
    let data =
        entry.data.as_ref().map_or(String::new(), |_| " ".to_owned() + &show_data(&entry.data));
    format!("{}{data}{stat}", entry.name)
}

fn show_data(data: &Option<Bytes>) -> String {
    data.as_ref()
        .map_or("null".to_owned(), |data| format!("{:?}", std::str::from_utf8(data).unwrap()))
}

fn show_acl(line: &Acl) -> String {
    let letters = "rwcda".chars().enumerate();
    let perms: String =
        letters.filter(|(bit, _)| line.perms.0 & 1 << bit != 0).map(|(_, c)| c).collect();
    format!("{}={}:{}", perms, line.identity.scheme, line.identity.id)
}
