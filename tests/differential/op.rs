//! Requests, and what their answers hold.

use crate::jute::{In, Out};

/// One request. Paths that begin with `~` lie below a node that each run has for itself.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Create {
        kind: i32,
        path: String,
        data: Data,
        acl: Vec<Line>,
        flags: i32,
        ttl: i64,
    },
    Delete {
        path: String,
        version: i32,
    },
    Exists {
        path: String,
        watch: bool,
    },
    GetData {
        path: String,
        watch: bool,
    },
    SetData {
        path: String,
        data: Data,
        version: i32,
    },
    GetAcl {
        path: String,
    },
    SetAcl {
        path: String,
        acl: Vec<Line>,
        version: i32,
    },
    GetChildren {
        path: String,
        watch: bool,
    },
    GetChildren2 {
        path: String,
        watch: bool,
    },
    Sync {
        path: String,
    },
    Check {
        path: String,
        version: i32,
    },
    Multi(Vec<Op>),
    MultiRead(Vec<Op>),
    Auth {
        scheme: &'static str,
        credentials: &'static str,
    },
    /// The lists are data, exist, child, and for the second form persistent and recursive; `back`
    /// is how many answers ago the client saw the zxid that it names.
    SetWatches {
        back: usize,
        lists: Vec<Vec<String>>,
    },
    AddWatch {
        path: String,
        mode: i32,
    },
    RemoveWatches {
        path: String,
        kind: i32,
    },
    CheckWatches {
        path: String,
        kind: i32,
    },
    GetEphemerals {
        prefix: String,
    },
    GetAllChildrenNumber {
        path: String,
    },
    WhoAmI,
    Ping,
    CloseSession,
    /// A number that no request has.
    Unknown(i32),
    /// A request whose last bytes are missing.
    Cut(Box<Op>, usize),
}

pub(crate) type Data = Option<&'static str>;

/// A line of an ACL: permissions, scheme and id.
pub(crate) type Line = (i32, &'static str, &'static str);

/// A part of an answer, by what may differ between two servers that agree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Field {
    /// The same everywhere.
    Is(&'static str, String),
    /// The zxid of a change.
    Zxid(&'static str, i64),
    /// A session, or none.
    Session(&'static str, i64),
    /// When the change with that zxid was made.
    Time { name: &'static str, zxid: i64, ms: i64 },
}

fn is(name: &'static str, value: impl ToString) -> Field {
    Field::Is(name, value.to_string())
}

/// What stands in for the answer to an operation of a multi that failed.
const FAILED: i32 = -1;
/// What stands before the answer of a create that has no statistics.
const CREATE: i32 = 1;

impl Op {
    pub(crate) fn opcode(&self) -> i32 {
        match self {
            Op::Create { kind, .. } => *kind,
            Op::Delete { .. } => 2,
            Op::Exists { .. } => 3,
            Op::GetData { .. } => 4,
            Op::SetData { .. } => 5,
            Op::GetAcl { .. } => 6,
            Op::SetAcl { .. } => 7,
            Op::GetChildren { .. } => 8,
            Op::Sync { .. } => 9,
            Op::Ping => 11,
            Op::GetChildren2 { .. } => 12,
            Op::Check { .. } => 13,
            Op::Multi(_) => 14,
            Op::CheckWatches { .. } => 17,
            Op::RemoveWatches { .. } => 18,
            Op::MultiRead(_) => 22,
            Op::Auth { .. } => 100,
            Op::SetWatches { lists, .. } if lists.len() == 3 => 101,
            Op::GetEphemerals { .. } => 103,
            Op::GetAllChildrenNumber { .. } => 104,
            Op::SetWatches { .. } => 105,
            Op::AddWatch { .. } => 106,
            Op::WhoAmI => 107,
            Op::CloseSession => -11,
            Op::Unknown(number) => *number,
            Op::Cut(op, _) => op.opcode(),
        }
    }

    /// The number that the request has on its connection, where the protocol leaves no choice.
    pub(crate) fn fixed_xid(&self) -> Option<i32> {
        match self.opcode() {
            11 => Some(-2),
            100 => Some(-4),
            101 | 105 => Some(-8),
            _ => None,
        }
    }

    pub(crate) fn write(&self, out: Out, home: &str, since: i64) -> Out {
        let at = |path: &str| path.replacen('~', home, 1);
        match self {
            Op::Create { kind, path, data, acl, flags, ttl } => {
                let out = out.text(&at(path)).buffer(data.map(str::as_bytes));
                let out = write_acl(out, acl).int(*flags);
                if *kind == 21 { out.long(*ttl) } else { out }
            }
            Op::Delete { path, version } | Op::Check { path, version } => {
                out.text(&at(path)).int(*version)
            }
            Op::Exists { path, watch }
            | Op::GetData { path, watch }
            | Op::GetChildren { path, watch }
            | Op::GetChildren2 { path, watch } => out.text(&at(path)).bool(*watch),
            Op::SetData { path, data, version } => {
                out.text(&at(path)).buffer(data.map(str::as_bytes)).int(*version)
            }
            Op::SetAcl { path, acl, version } => write_acl(out.text(&at(path)), acl).int(*version),
            Op::GetAcl { path }
            | Op::Sync { path }
            | Op::GetEphemerals { prefix: path }
            | Op::GetAllChildrenNumber { path } => out.text(&at(path)),
            Op::Multi(ops) | Op::MultiRead(ops) => {
                let out = ops.iter().fold(out, |out, op| {
                    op.write(out.int(op.opcode()).bool(false).int(-1), home, since)
                });
                out.int(-1).bool(true).int(-1)
            }
            Op::Auth { scheme, credentials } => {
                out.int(0).text(scheme).buffer(Some(credentials.as_bytes()))
            }
            Op::SetWatches { lists, .. } => lists.iter().fold(out.long(since), |out, list| {
                list.iter().fold(out.count(list.len()), |out, path| out.text(&at(path)))
            }),
            Op::AddWatch { path, mode: kind }
            | Op::RemoveWatches { path, kind }
            | Op::CheckWatches { path, kind } => out.text(&at(path)).int(*kind),
            Op::WhoAmI | Op::Ping | Op::CloseSession | Op::Unknown(_) => out,
            Op::Cut(op, bytes) => {
                let before = out.0.len();
                let mut out = op.write(out, home, since);
                let body = out.0.len() - before;
                out.0.truncate(before + body.saturating_sub(1 + bytes % body.max(1)));
                out
            }
        }
    }

    /// What the body of the answer says; `None` if it is not what it should be.
    pub(crate) fn read(&self, body: &[u8]) -> Option<Vec<Field>> {
        let mut input = In(body);
        let mut fields = Vec::new();
        self.read_part(&mut input, &mut fields)?;
        input.is_empty().then_some(fields)
    }

    fn read_part(&self, input: &mut In<'_>, fields: &mut Vec<Field>) -> Option<()> {
        match self {
            Op::Create { kind, .. } => {
                fields.push(is("path", input.text()?));
                if *kind != 1 {
                    read_stat(input, fields)?;
                }
            }
            Op::Exists { .. } | Op::SetData { .. } | Op::SetAcl { .. } => {
                read_stat(input, fields)?;
            }
            Op::GetData { .. } => {
                let data = input.buffer()?.map(String::from_utf8_lossy);
                fields.push(is("data", format!("{data:?}")));
                read_stat(input, fields)?;
            }
            Op::GetAcl { .. } => {
                let lines = read_list(input, |input| {
                    Some(format!("{:?}", (input.int()?, input.text()?, input.text()?)))
                })?;
                fields.push(is("acl", lines.join(" ")));
                read_stat(input, fields)?;
            }
            Op::GetChildren { .. } | Op::GetChildren2 { .. } => {
                fields.push(is("children", read_list(input, |input| input.text())?.join(" ")));
                if matches!(self, Op::GetChildren2 { .. }) {
                    read_stat(input, fields)?;
                }
            }
            Op::Sync { .. } => fields.push(is("path", input.text()?)),
            Op::Multi(ops) | Op::MultiRead(ops) => read_parts(ops, input, fields)?,
            Op::AddWatch { .. } => fields.push(is("added", input.int()?)),
            Op::GetEphemerals { .. } => {
                fields.push(is("paths", read_list(input, |input| input.text())?.join(" ")));
            }
            Op::GetAllChildrenNumber { .. } => fields.push(is("count", input.int()?)),
            Op::WhoAmI => {
                let who = |input: &mut In<'_>| Some(format!("{}:{}", input.text()?, input.text()?));
                fields.push(is("identities", read_list(input, who)?.join(" ")));
            }
            Op::Cut(op, _) => op.read_part(input, fields)?,
            Op::Delete { .. }
            | Op::Check { .. }
            | Op::Auth { .. }
            | Op::SetWatches { .. }
            | Op::RemoveWatches { .. }
            | Op::CheckWatches { .. }
            | Op::Ping
            | Op::CloseSession
            | Op::Unknown(_) => {}
        }
        Some(())
    }
}

fn write_acl(out: Out, acl: &[Line]) -> Out {
    acl.iter().fold(out.count(acl.len()), |out, (perms, scheme, id)| {
        out.int(*perms).text(scheme).text(id)
    })
}

/// Elements in the order of their names: servers give them in none.
fn read_list(
    input: &mut In<'_>,
    mut element: impl FnMut(&mut In<'_>) -> Option<String>,
) -> Option<Vec<String>> {
    let mut list = (0..input.count()?).map(|_| element(input)).collect::<Option<Vec<_>>>()?;
    list.sort();
    Some(list)
}

fn read_parts(ops: &[Op], input: &mut In<'_>, fields: &mut Vec<Field>) -> Option<()> {
    for op in ops {
        let (kind, done, code) = (input.int()?, input.bool()?, input.int()?);
        fields.push(is("part", format!("{kind} {done} {code}")));
        match (kind, op) {
            (FAILED, _) => fields.push(is("failed", input.int()?)),
            (CREATE, Op::Create { .. }) => fields.push(is("path", input.text()?)),
            _ => op.read_part(input, fields)?,
        }
    }
    let end = (input.int()?, input.bool()?, input.int()?);
    fields.push(is("end", format!("{end:?}")));
    Some(())
}

fn read_stat(input: &mut In<'_>, fields: &mut Vec<Field>) -> Option<()> {
    let (czxid, mzxid) = (input.long()?, input.long()?);
    fields.push(Field::Zxid("czxid", czxid));
    fields.push(Field::Zxid("mzxid", mzxid));
    fields.push(Field::Time { name: "ctime", zxid: czxid, ms: input.long()? });
    fields.push(Field::Time { name: "mtime", zxid: mzxid, ms: input.long()? });
    for name in ["version", "cversion", "aversion"] {
        fields.push(is(name, input.int()?));
    }
    fields.push(Field::Session("ephemeralOwner", input.long()?));
    for name in ["dataLength", "numChildren"] {
        fields.push(is(name, input.int()?));
    }
    fields.push(Field::Zxid("pzxid", input.long()?));
    Some(())
}
