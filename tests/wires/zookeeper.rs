//! A client of ZooKeeper's protocol, which asks what the native protocol's operations ask.

use std::collections::BTreeMap;

use bytes::Bytes;
use conclave_proto::request::{Condition, Entry, Page, StatTest, Test};
use conclave_proto::{
    Acl, CreateMode, EventKind, Identity, Lifetime, Op, Perms, Reply, SessionId, Stat, WatchId,
    WatchKind, ZPath, Zxid,
};

use crate::answer::{Answer, Failure};
use crate::connect::{Client, Stream, Told};
use crate::jute::{In, Out};

/// Requests that came to the protocol in two forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forms {
    /// The first: without statistics in the answer.
    Old,
    /// With them.
    New,
}

pub(crate) struct ZooKeeper {
    stream: Box<dyn Stream>,
    forms: Forms,
    /// Whether it has asked for what ClickHouse Keeper adds.
    asked_keeper: bool,
    session: u64,
    xid: i32,
    told: Vec<Told>,
    /// What the native protocol's numbers of watches are here: a path and a type.
    watches: BTreeMap<WatchId, (ZPath, i32)>,
}

const NOTIFICATION: i32 = -1;
const PING: (i32, i32) = (-2, 11);
const REARM_XID: i32 = -8;
const ERROR: i32 = -1;
/// What stands for an operation of a multi that was not tried.
const NOT_TRIED: i32 = -2;

impl ZooKeeper {
    pub(crate) fn open(stream: Box<dyn Stream>, forms: Forms) -> ZooKeeper {
        let (told, watches) = (Vec::new(), BTreeMap::new());
        let asked_keeper = false;
        let mut client =
            ZooKeeper { stream, forms, asked_keeper, session: 0, xid: 0, told, watches };
        let hello = Out::default().int(0).long(0).int(600_000).long(0).buffer(Some(&[0; 16]));
        client.stream.write_all(&hello.bool(false).framed()).unwrap();
        let greeting = client.frame();
        let mut input = In(&greeting);
        assert_eq!((input.int(), input.int()), (Some(0), Some(600_000)));
        client.session = input.long().unwrap().cast_unsigned();
        client
    }

    fn frame(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).unwrap();
        let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
        self.stream.read_exact(&mut body).unwrap();
        body
    }

    fn send(&mut self, xid: i32, kind: i32, body: Out) {
        let frame = [Out::default().int(xid).int(kind).0, body.0].concat();
        self.stream.write_all(&Out(frame).framed()).unwrap();
    }

    /// The next frame that is not of a watch: number, zxid, code and body.
    fn hear(&mut self) -> (i32, u64, i32, Vec<u8>) {
        loop {
            let frame = self.frame();
            let mut input = In(&frame);
            let (xid, zxid) = (input.int().unwrap(), input.long().unwrap().cast_unsigned());
            let code = input.int().unwrap();
            if xid != NOTIFICATION {
                return (xid, zxid, code, input.0.to_vec());
            }
            let kind = match input.int().unwrap() {
                1 => EventKind::Created,
                2 => EventKind::Deleted,
                3 => EventKind::DataChanged,
                4 => EventKind::ChildrenChanged,
                other => panic!("an event of type {other}"),
            };
            assert_eq!((code, input.int()), (0, Some(3)), "the client is connected");
            let path = input.text().unwrap();
            assert!(input.is_empty());
            self.told.push(Told { zxid, kind, path });
        }
    }

    /// Asks for what ClickHouse Keeper adds, as whoever wants watches of several reads has to.
    fn ask_keeper(&mut self) {
        self.xid += 1;
        self.send(self.xid, 4, Out::default().text("/keeper/feature_flags").bool(false));
        let (xid, _, code, _) = self.hear();
        assert_eq!((xid, code), (self.xid, 0));
        self.asked_keeper = true;
    }

    /// Remembers what a watch is called here.
    fn note_watch(&mut self, op: &Op) {
        let (id, path, kind) = match op {
            Op::MultiRead(ops) => return ops.iter().for_each(|op| self.note_watch(op)),
            Op::Get { path, watch: Some(id) } | Op::Exists { path, watch: Some(id) } => {
                (id, path, 2)
            }
            Op::Children { path, watch: Some(id), .. } => (id, path, 1),
            Op::Watch { id, path, kind, .. } => {
                let kind = match kind {
                    WatchKind::Data | WatchKind::Exists => 2,
                    WatchKind::Children => 1,
                    WatchKind::Persistent => 4,
                    WatchKind::PersistentRecursive => 5,
                };
                (id, path, kind)
            }
            _ => return,
        };
        self.watches.insert(*id, (path.clone(), kind));
    }

    /// The number and the body of the request that asks this.
    fn request(&self, op: &Op) -> (i32, Out) {
        let out = Out::default();
        match op {
            Op::Get { path, watch } => (4, text(out, path).bool(watch.is_some())),
            Op::Exists { path, watch } => (3, text(out, path).bool(watch.is_some())),
            Op::Children { path, watch, page } if page.with_stat || page.with_data => {
                let out = text(out, path).bool(watch.is_some());
                (506, byte(out, 0).bool(page.with_stat).bool(page.with_data))
            }
            Op::Children { path, watch, .. } => {
                let kind = if self.forms == Forms::Old { 8 } else { 12 };
                (kind, text(out, path).bool(watch.is_some()))
            }
            Op::ListRecursive { path, .. } => (507, text(out, path).int(10_000)),
            Op::GetAcl { path } => (6, text(out, path)),
            Op::Ephemerals { prefix } => (103, out.text(prefix)),
            Op::CountDescendants { path } => (104, text(out, path)),
            Op::Sync { path } => (9, text(out, path)),
            Op::WhoAmI => (107, out),
            Op::CloseSession => (-11, out),
            Op::Authenticate { scheme, credentials } => {
                (100, out.int(0).text(scheme).buffer(Some(credentials.expose())))
            }
            Op::MultiRead(ops) => (22, self.parts(ops)),
            Op::Multi { then, .. } => (14, self.parts(then)),
            Op::Watch { path, kind, since: None, .. } => {
                let mode = match kind {
                    WatchKind::Persistent => 0,
                    WatchKind::PersistentRecursive => 1,
                    other => panic!("{other:?} watches are set by reads"),
                };
                (106, text(out, path).int(mode))
            }
            Op::Watch { path, kind, since: Some(since), .. } => self.rearm(path, *kind, *since),
            Op::Unwatch { id } => {
                let (path, kind) = self.watches.get(id).expect("the watch was set once");
                (18, text(out, path).int(*kind))
            }
            write => self.write(write),
        }
    }

    fn write(&self, op: &Op) -> (i32, Out) {
        let out = Out::default();
        match op {
            Op::Create { path, data, acl, mode } => create(self.forms, path, data, acl, *mode),
            Op::CreateIfMissing { path, data, acl, mode } => {
                (502, create(Forms::Old, path, data, acl, *mode).1)
            }
            Op::Delete { path, version } => (2, text(out, path).int(version.unwrap_or(-1))),
            Op::DeleteIfExists { path, version } => {
                (505, text(out, path).int(version.unwrap_or(-1)))
            }
            Op::DeleteTree { path, limit } => {
                (503, text(out, path).int(i32::try_from(*limit).unwrap()))
            }
            Op::SetData { path, data, version } => {
                (5, text(out, path).buffer(data.as_deref()).int(version.unwrap_or(-1)))
            }
            Op::SetAcl { path, acl, version } => {
                (7, put_acl(text(out, path), acl).int(version.unwrap_or(-1)))
            }
            Op::Check { path, version } => (13, text(out, path).int(version.unwrap_or(-1))),
            Op::Require(Condition { path, test: Test::Missing }) => (501, text(out, path).int(-1)),
            Op::Require(Condition { path, test: Test::Stat(test) }) => {
                (504, stat_test(text(out, path).int(-1), test))
            }
            other => panic!("ZooKeeper's protocol has nothing for {other:?}"),
        }
    }

    fn parts(&self, ops: &[Op]) -> Out {
        let mut out = Out::default();
        for op in ops {
            let (kind, body) = self.request(op);
            out = out.int(kind).bool(false).int(-1);
            out.0.extend(body.0);
        }
        out.int(-1).bool(true).int(-1)
    }

    fn rearm(&self, path: &ZPath, kind: WatchKind, since: Zxid) -> (i32, Out) {
        let list = match kind {
            WatchKind::Data => 0,
            WatchKind::Exists => 1,
            WatchKind::Children => 2,
            WatchKind::Persistent => 3,
            WatchKind::PersistentRecursive => 4,
        };
        let (request, lists) = match self.forms {
            Forms::Old if list < 3 => (101, 3),
            Forms::Old | Forms::New => (105, 5),
        };
        let out = Out::default().long(since.bits().cast_signed());
        let body = (0..lists).fold(out, |out, this| match this == list {
            true => text(out.int(1), path),
            false => out.int(0),
        });
        (request, body)
    }
}

impl Client for ZooKeeper {
    fn session(&self) -> u64 {
        self.session
    }

    fn ask(&mut self, op: &Op) -> Answer {
        let watches = self.watches.len();
        self.note_watch(op);
        if matches!(op, Op::MultiRead(_)) && self.watches.len() > watches && !self.asked_keeper {
            self.ask_keeper();
        }
        let (kind, body) = self.request(op);
        self.xid += 1;
        let xid = match kind {
            100 => -4,
            101 | 105 => REARM_XID,
            _ => self.xid,
        };
        self.send(xid, kind, body);
        let (answered, zxid, code, body) = self.hear();
        assert_eq!(answered, xid);
        if code != 0 {
            assert!(body.is_empty(), "an error has no body");
            return Answer { zxid, result: Err((code, 0)) };
        }
        let mut input = In(&body);
        let result = match op {
            Op::Multi { then, .. } => self.multi(then, &mut input),
            Op::MultiRead(ops) => Ok(Reply::MultiRead(self.multi_read(ops, &mut input))),
            op => Ok(self.reply(kind, op, &mut input)),
        };
        assert!(input.is_empty(), "{op:?}: {} bytes are left", input.0.len());
        Answer { zxid, result }
    }

    fn told(&mut self) -> Vec<Told> {
        self.send(PING.0, PING.1, Out::default());
        let (xid, ..) = self.hear();
        assert_eq!(xid, PING.0);
        std::mem::take(&mut self.told)
    }
}

impl ZooKeeper {
    fn reply(&self, kind: i32, op: &Op, input: &mut In<'_>) -> Reply {
        match op {
            Op::Create { .. } | Op::CreateIfMissing { .. } => {
                let path = ZPath::new(&input.text().unwrap()).unwrap();
                let stat = if matches!(kind, 1 | 502) { Stat::default() } else { stat(input) };
                Reply::Created { path, stat }
            }
            Op::SetData { .. } | Op::SetAcl { .. } | Op::Exists { .. } => Reply::Stat(stat(input)),
            Op::Get { .. } => Reply::Data { data: buffer(input), stat: stat(input) },
            Op::GetAcl { .. } => Reply::Acl { acl: get_acl(input), stat: stat(input) },
            Op::Children { page, .. } => children(kind, page, input),
            Op::ListRecursive { path, .. } => below(path, &texts(input)),
            Op::Ephemerals { .. } => {
                let paths = texts(input);
                Reply::Paths(paths.iter().map(|path| ZPath::new(path).unwrap()).collect())
            }
            Op::CountDescendants { .. } => Reply::Count(input.int().unwrap().try_into().unwrap()),
            Op::WhoAmI => {
                let who = |input: &mut In<'_>| Identity {
                    scheme: input.text().unwrap(),
                    id: input.text().unwrap(),
                };
                Reply::Identities((0..input.count().unwrap()).map(|_| who(input)).collect())
            }
            Op::Sync { path } => {
                assert_eq!(input.text().unwrap(), path.as_str());
                Reply::Done
            }
            Op::Watch { since: None, .. } => {
                assert_eq!(input.int(), Some(0));
                Reply::Done
            }
            _ => Reply::Done,
        }
    }

    /// The parts of a multi, or the one that failed.
    fn multi(&self, ops: &[Op], input: &mut In<'_>) -> Result<Reply, Failure> {
        let (mut replies, mut codes) = (Vec::new(), Vec::new());
        for op in ops {
            let (kind, done, code) = (input.int().unwrap(), input.bool().unwrap(), input.int());
            assert!(!done);
            if kind == ERROR {
                assert_eq!(input.int(), code, "the code stands there twice");
                codes.push(code.unwrap());
            } else {
                assert_eq!((kind, code), (self.kind_of_part(op), Some(0)));
                replies.push(self.reply(kind, op, input));
            }
        }
        assert_eq!((input.int(), input.bool(), input.int()), (Some(-1), Some(true), Some(-1)));
        let Some(failed) = codes.iter().position(|code| *code != 0) else {
            assert!(codes.is_empty());
            return Ok(Reply::Multi { held: true, replies });
        };
        assert!(replies.is_empty(), "nothing of it is done");
        assert!(codes[failed + 1..].iter().all(|code| *code == NOT_TRIED));
        Err((codes[failed], u32::try_from(failed).unwrap()))
    }

    /// How the answer to an operation of a multi is marked.
    fn kind_of_part(&self, op: &Op) -> i32 {
        match self.request(op).0 {
            19 | 21 => 15,
            kind => kind,
        }
    }

    fn multi_read(
        &self,
        ops: &[Op],
        input: &mut In<'_>,
    ) -> Vec<Result<Reply, conclave_proto::Fault>> {
        let read = |op: &Op, input: &mut In<'_>| {
            let (kind, done, code) = (input.int().unwrap(), input.bool().unwrap(), input.int());
            assert!(!done);
            let failed = if self.asked_keeper { code != Some(0) } else { kind == ERROR };
            if failed && !self.asked_keeper {
                assert_eq!(input.int(), code);
            } else {
                assert_eq!(kind, self.request(op).0);
            }
            if failed {
                return Err(crate::answer::code(code.unwrap()).into());
            }
            assert_eq!(code, Some(0));
            Ok(self.reply(kind, op, input))
        };
        let replies = ops.iter().map(|op| read(op, input)).collect();
        assert_eq!((input.int(), input.bool(), input.int()), (Some(-1), Some(true), Some(-1)));
        replies
    }
}

fn create(
    forms: Forms,
    path: &ZPath,
    data: &Option<Bytes>,
    acl: &[Acl],
    mode: CreateMode,
) -> (i32, Out) {
    let plain = if forms == Forms::Old { 1 } else { 15 };
    let (kind, flags, ttl) = match (mode.lifetime, mode.sequential) {
        (Lifetime::Persistent, false) => (plain, 0, None),
        (Lifetime::Ephemeral, false) => (plain, 1, None),
        (Lifetime::Persistent, true) => (plain, 2, None),
        (Lifetime::Ephemeral, true) => (plain, 3, None),
        (Lifetime::Container, _) => (19, 4, None),
        (Lifetime::Ttl(ms), sequential) => (21, if sequential { 6 } else { 5 }, Some(ms)),
        (Lifetime::Lingering(_), _) => panic!("ZooKeeper's protocol has no lingering nodes"),
    };
    let out = text(Out::default(), path).buffer(data.as_deref());
    let out = put_acl(out, acl).int(flags);
    (kind, ttl.into_iter().fold(out, |out, ms| out.long(ms.cast_signed())))
}

fn text(out: Out, path: &ZPath) -> Out {
    out.text(path.as_str())
}

/// Statistics, -1 where they may be anything.
fn stat_test(out: Out, test: &StatTest) -> Out {
    let zxid = |zxid: Option<Zxid>| zxid.map_or(-1, |zxid| zxid.bits().cast_signed());
    let count = |count: Option<u32>| count.map_or(-1, u32::cast_signed);
    let owner = test.ephemeral_owner.map_or(-1, |session| session.0.cast_signed());
    out.long(zxid(test.czxid))
        .long(zxid(test.mzxid))
        .long(test.ctime_ms.unwrap_or(-1))
        .long(test.mtime_ms.unwrap_or(-1))
        .int(test.version.unwrap_or(-1))
        .int(test.cversion.unwrap_or(-1))
        .int(test.aversion.unwrap_or(-1))
        .long(owner)
        .int(count(test.data_length))
        .int(count(test.num_children))
        .long(zxid(test.pzxid))
}

fn byte(mut out: Out, byte: u8) -> Out {
    out.0.push(byte);
    out
}

fn put_acl(out: Out, acl: &[Acl]) -> Out {
    acl.iter().fold(out.count(acl.len()), |out, Acl { perms, identity }| {
        out.int(perms.0.into()).text(&identity.scheme).text(&identity.id)
    })
}

fn buffer(input: &mut In<'_>) -> Option<Bytes> {
    input.buffer().unwrap().map(Bytes::copy_from_slice)
}

fn texts(input: &mut In<'_>) -> Vec<String> {
    (0..input.count().unwrap()).map(|_| input.text().unwrap()).collect()
}

fn get_acl(input: &mut In<'_>) -> Vec<Acl> {
    let line = |input: &mut In<'_>| Acl {
        perms: Perms(input.int().unwrap().try_into().unwrap()),
        identity: Identity { scheme: input.text().unwrap(), id: input.text().unwrap() },
    };
    (0..input.count().unwrap()).map(|_| line(input)).collect()
}

fn stat(input: &mut In<'_>) -> Stat {
    let zxid = |input: &mut In<'_>| Zxid::from_bits(input.long().unwrap().cast_unsigned());
    let (czxid, mzxid) = (zxid(input), zxid(input));
    let (ctime_ms, mtime_ms) = (input.long().unwrap(), input.long().unwrap());
    let mut int = || input.int().unwrap();
    let (version, cversion, aversion) = (int(), int(), int());
    let ephemeral_owner = SessionId(input.long().unwrap().cast_unsigned());
    let mut size = || u32::try_from(input.int().unwrap()).unwrap();
    let (data_length, num_children) = (size(), size());
    let pzxid = zxid(input);
    Stat {
        czxid,
        mzxid,
        pzxid,
        ctime_ms,
        mtime_ms,
        version,
        cversion,
        aversion,
        ephemeral_owner,
        data_length,
        num_children,
    }
}

fn children(kind: i32, page: &Page, input: &mut In<'_>) -> Reply {
    let names = texts(input);
    let of_parent = if kind == 8 { Stat::default() } else { stat(input) };
    let mut entries: Vec<Entry> =
        names.into_iter().map(|name| Entry { name, stat: None, data: None }).collect();
    if kind == 506 {
        let stats = input.count().unwrap();
        assert_eq!(stats, if page.with_stat { entries.len() } else { 0 });
        entries.iter_mut().take(stats).for_each(|entry| entry.stat = Some(stat(input)));
        let data = input.count().unwrap();
        assert_eq!(data, if page.with_data { entries.len() } else { 0 });
        entries.iter_mut().take(data).for_each(|entry| entry.data = buffer(input));
    }
    Reply::Children { entries, more: false, stat: of_parent }
}

/// Full paths, as names below it.
fn below(top: &ZPath, paths: &[String]) -> Reply {
    let entry = |path: &String| {
        let name = path.strip_prefix(top.as_str()).unwrap().trim_start_matches('/').to_owned();
        Entry { name, stat: None, data: None }
    };
    let entries = paths.iter().map(entry).collect();
    Reply::Children { entries, more: false, stat: Stat::default() }
}
