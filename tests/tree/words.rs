//! The commands of scripts, read into operations.
//!
//! | operation | |
//! |---|---|
//! | `create [-e] [-l MS] [-s] [-c] [-t MS] [acl ACL] PATH [DATA]` | ephemeral, lingering, sequential, container, TTL |
//! | `delete PATH [VERSION]`, `check PATH [VERSION]` | |
//! | `rmr PATH LIMIT` | recursive delete |
//! | `set PATH DATA [VERSION]` | |
//! | `require TEST`, `ensure …` | fail unless; as `create`, unless it exists |
//! | `drop PATH [VERSION]`, `prune PATH LIMIT` | delete if it exists; with all below, or nothing |
//! | `setacl PATH ACL [VERSION]` | an ACL is `rwcda=scheme:id,…`, or `none` |
//! | `multi [if TEST, …] [then OP; …] [else OP; …]` | a test is `PATH is WHAT [VALUE]` |
//! | `close`, `expire`, `reap PATH PZXID MZXID` | |
//! | `guard PATH ZXID` | |
//! | `get PATH`, `exists PATH`, `acl PATH`, `count PATH`, `ephemerals PREFIX` | |
//! | `ls PATH [after NAME] [limit N] [stat] [data]`, `tree …` | children, or all below |
//! | `read OP; …` | several reads at once |
//!
//! DATA is a word, `null` or `empty`.

use std::collections::VecDeque;

use bytes::Bytes;
use conclave_proto::request::{Condition, Page, StatTest, Test};
use conclave_proto::{Acl, CreateMode, Epoch, Lifetime, Op, Perms, SessionId, ZPath, Zxid};

use crate::world::{identity, path};

/// What is left of a command.
pub(crate) struct Words<'a>(VecDeque<&'a str>);

impl<'a> Words<'a> {
    pub(crate) fn new(command: &'a str) -> Words<'a> {
        Words(command.split_whitespace().collect())
    }

    pub(crate) fn next(&mut self) -> &'a str {
        self.0.pop_front().expect("the command goes on")
    }

    /// Whether the next word is this one, which is then taken.
    pub(crate) fn is(&mut self, word: &str) -> bool {
        let found = self.0.front() == Some(&word);
        if found {
            self.0.pop_front();
        }
        found
    }

    pub(crate) fn rest(&mut self) -> Vec<&'a str> {
        self.0.drain(..).collect()
    }

    pub(crate) fn end(&self) {
        assert!(self.0.is_empty(), "what does {:?} mean?", self.0);
    }

    pub(crate) fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(&mut self) -> T {
        self.next().parse().expect("a number")
    }

    pub(crate) fn path(&mut self) -> ZPath {
        path(self.next())
    }

    pub(crate) fn zxid(&mut self) -> Zxid {
        let (epoch, counter) = self.next().split_once('.').expect("a zxid is epoch.counter");
        Zxid::new(Epoch::new(epoch.parse().unwrap()).unwrap(), counter.parse().unwrap())
    }

    pub(crate) fn op(&mut self) -> Op {
        match self.next() {
            "create" => self.create(),
            "delete" => Op::Delete { path: self.path(), version: self.version() },
            "rmr" => Op::DeleteRecursive { path: self.path(), limit: self.number() },
            "set" => Op::SetData { path: self.path(), data: self.data(), version: self.version() },
            "setacl" => {
                Op::SetAcl { path: self.path(), acl: self.acl().into(), version: self.version() }
            }
            "check" => Op::Check { path: self.path(), version: self.version() },
            "require" => Op::Require(self.condition()),
            "ensure" => self.create_if_missing(),
            "drop" => Op::DeleteIfExists { path: self.path(), version: self.version() },
            "prune" => Op::DeleteTree { path: self.path(), limit: self.number() },
            "multi" => Op::Multi {
                conditions: self.conditions(),
                then: if self.is("then") { self.ops() } else { Vec::new() },
                otherwise: if self.is("else") { self.ops() } else { Vec::new() },
            },
            "close" => Op::CloseSession,
            "expire" => Op::ExpireSession,
            "guard" => Op::Guard { path: self.path(), token: self.zxid() },
            "reap" => Op::Reap { path: self.path(), seen: (self.zxid(), self.zxid()) },
            "get" => Op::Get { path: self.path(), watch: None },
            "exists" => Op::Exists { path: self.path(), watch: None },
            "ls" => Op::Children { path: self.path(), watch: None, page: self.page() },
            "tree" => Op::ListRecursive { path: self.path(), page: self.page() },
            "acl" => Op::GetAcl { path: self.path() },
            "count" => Op::CountDescendants { path: self.path() },
            "ephemerals" => Op::Ephemerals { prefix: self.next().to_owned() },
            "read" => Op::MultiRead(self.ops()),
            other => panic!("what is {other}?"),
        }
    }

    fn create(&mut self) -> Op {
        let mut mode = CreateMode::PERSISTENT;
        let mut acl = Acl::open();
        loop {
            match () {
                () if self.is("-e") => mode.lifetime = Lifetime::Ephemeral,
                () if self.is("-c") => mode.lifetime = Lifetime::Container,
                () if self.is("-t") => mode.lifetime = Lifetime::Ttl(self.number()),
                () if self.is("-l") => mode.lifetime = Lifetime::Lingering(self.number()),
                () if self.is("-s") => mode.sequential = true,
                () if self.is("acl") => acl = self.acl().into(),
                () => break,
            }
        }
        Op::Create { path: self.path(), data: self.data(), acl, mode }
    }

    fn create_if_missing(&mut self) -> Op {
        match self.create() {
            Op::Create { path, data, acl, mode } => Op::CreateIfMissing { path, data, acl, mode },
            other => other,
        }
    }

    fn goes_on(&self) -> bool {
        !matches!(self.0.front(), None | Some(&(";" | "," | "then" | "else")))
    }

    fn data(&mut self) -> Option<Bytes> {
        let word = if self.goes_on() { self.next() } else { "empty" };
        match word {
            "null" => None,
            "empty" => Some(Bytes::new()),
            word => Some(Bytes::copy_from_slice(word.as_bytes())),
        }
    }

    fn version(&mut self) -> Option<i32> {
        self.goes_on().then(|| self.number())
    }

    fn acl(&mut self) -> Vec<Acl> {
        let word = self.next();
        let lines = word.split(',').filter(|line| *line != "none");
        lines
            .map(|line| {
                let (letters, who) = line.split_once('=').expect("a grant is perms=scheme:id");
                let bit = |letter| 1 << "rwcda".find(letter).expect("a permission");
                let perms = Perms(letters.chars().map(bit).sum());
                Acl { perms, identity: identity(who) }
            })
            .collect()
    }

    fn page(&mut self) -> Page {
        Page {
            after: self.is("after").then(|| self.next().to_owned()),
            limit: if self.is("limit") { self.number() } else { 0 },
            with_stat: self.is("stat"),
            with_data: self.is("data"),
        }
    }

    fn ops(&mut self) -> Vec<Op> {
        let mut ops = vec![self.op()];
        while self.is(";") {
            ops.push(self.op());
        }
        ops
    }

    fn conditions(&mut self) -> Vec<Condition> {
        let mut conditions = Vec::new();
        let mut more = self.is("if");
        while more {
            conditions.push(self.condition());
            more = self.is(",");
        }
        conditions
    }

    fn condition(&mut self) -> Condition {
        let path = self.path();
        assert!(self.is("is"));
        let test = match self.next() {
            "there" => Test::Exists,
            "missing" => Test::Missing,
            "version" => Test::Version(self.number()),
            "cversion" => Test::ChildVersion(self.number()),
            "from" => Test::CreatedBy(self.zxid()),
            "data" => Test::Data(self.data().expect("a condition has data")),
            "stat" => Test::Stat(Box::new(self.stat_test())),
            other => panic!("what is {other}?"),
        };
        Condition { path, test }
    }

    /// Pairs of a field and what it must be.
    fn stat_test(&mut self) -> StatTest {
        let mut test = StatTest::default();
        while self.goes_on() {
            match self.next() {
                "czxid" => test.czxid = Some(self.zxid()),
                "mzxid" => test.mzxid = Some(self.zxid()),
                "pzxid" => test.pzxid = Some(self.zxid()),
                "ctime" => test.ctime_ms = Some(self.number()),
                "mtime" => test.mtime_ms = Some(self.number()),
                "version" => test.version = Some(self.number()),
                "cversion" => test.cversion = Some(self.number()),
                "aversion" => test.aversion = Some(self.number()),
                "owner" => test.ephemeral_owner = Some(SessionId(self.number())),
                "length" => test.data_length = Some(self.number()),
                "children" => test.num_children = Some(self.number()),
                other => panic!("what is {other}?"),
            }
        }
        test
    }
}
