//! Answers, as lines that are the same whatever the zxids, the times and the sessions are.

use std::collections::BTreeMap;

use bytes::Bytes;
use conclave_proto::request::Entry;
use conclave_proto::{Acl, ErrorCode, Op, Reply, Stat};

use crate::zookeeper::Forms;

/// An error as ZooKeeper's clients know it, and the operation of a multi that it is of.
pub(crate) type Failure = (i32, u32);

/// The answer to an operation.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) zxid: u64,
    pub(crate) result: Result<Reply, Failure>,
}

/// The numbers that ZooKeeper's protocol has for the errors that can be met here.
const NUMBERS: [(ErrorCode, i32); 15] = [
    (ErrorCode::NoNode, -101),
    (ErrorCode::NoAuth, -102),
    (ErrorCode::BadVersion, -103),
    (ErrorCode::NoChildrenForEphemerals, -108),
    (ErrorCode::NodeExists, -110),
    (ErrorCode::NotEmpty, -111),
    (ErrorCode::SessionExpired, -112),
    (ErrorCode::InvalidAcl, -114),
    (ErrorCode::AuthFailed, -115),
    (ErrorCode::NoWatcher, -121),
    (ErrorCode::QuotaExceeded, -125),
    (ErrorCode::BadArguments, -8),
    // These have no number of their own.
    (ErrorCode::TooLarge, -8),
    (ErrorCode::SequenceOverflow, -8),
    (ErrorCode::ConditionFailed, -103),
];

/// The number of an error.
pub(crate) fn number(code: ErrorCode) -> i32 {
    let found = NUMBERS.iter().find(|(known, _)| *known == code);
    found.unwrap_or_else(|| panic!("{code:?} is not expected here")).1
}

/// The error of a number.
pub(crate) fn code(number: i32) -> ErrorCode {
    let found = NUMBERS.iter().find(|(_, known)| *known == number);
    found.unwrap_or_else(|| panic!("{number} is not expected here")).0
}

/// Zxids and sessions by the order in which they were seen, and names.
#[derive(Debug, Default)]
pub(crate) struct Names {
    zxids: BTreeMap<u64, usize>,
    /// When the transactions were, in ms.
    times: BTreeMap<u64, i64>,
    sessions: BTreeMap<u64, String>,
}

impl Names {
    pub(crate) fn name_session(&mut self, session: u64, name: &str) {
        self.sessions.insert(session, name.to_owned());
    }

    pub(crate) fn zxid(&mut self, zxid: u64) -> String {
        let next = self.zxids.len() + 1;
        format!("#{}", self.zxids.entry(zxid).or_insert(next))
    }

    /// All that is written down about a node. The times must be those of its zxids.
    fn stat(&mut self, stat: &Stat) -> String {
        for (zxid, ms) in [(stat.czxid, stat.ctime_ms), (stat.mzxid, stat.mtime_ms)] {
            assert!(ms > 1_000_000_000_000, "{ms} is no time");
            assert_eq!(*self.times.entry(zxid.bits()).or_insert(ms), ms, "{zxid} has one time");
        }
        let owner = match stat.ephemeral_owner.0 {
            0 => String::new(),
            session => format!(", of {}", self.sessions[&session]),
        };
        format!(
            "v{} c{} a{}, {} bytes, {} children, created {}, changed {}, children changed {}{owner}",
            stat.version,
            stat.cversion,
            stat.aversion,
            stat.data_length,
            stat.num_children,
            self.zxid(stat.czxid.bits()),
            self.zxid(stat.mzxid.bits()),
            self.zxid(stat.pzxid.bits()),
        )
    }

    /// What an answer says, as far as these forms of the requests let it.
    pub(crate) fn show(&mut self, op: &Op, answer: &Answer, forms: Forms) -> String {
        let what = match &answer.result {
            Ok(reply) => self.reply(op, reply, forms),
            Err((code, 0)) => format!("error {code}"),
            Err((code, index)) => format!("error {code}, operation {index}"),
        };
        match op {
            // Who somebody is has no place in the history.
            Op::Authenticate { .. } => what,
            _ => format!("{what} at {}", self.zxid(answer.zxid)),
        }
    }

    fn reply(&mut self, op: &Op, reply: &Reply, forms: Forms) -> String {
        match reply {
            Reply::Done | Reply::DeletedMany { .. } => "done".into(),
            Reply::Created { path, stat } => {
                let is_known = matches!(op, Op::Create { .. }) && has_stat(op, forms);
                let stat = if is_known { format!(": {}", self.stat(stat)) } else { String::new() };
                format!("created {path}{stat}")
            }
            Reply::Stat(stat) => self.stat(stat),
            Reply::Data { data, stat } => format!("{}: {}", show_data(data), self.stat(stat)),
            Reply::Children { entries, more, stat } => {
                let shown: Vec<String> = entries.iter().map(|entry| self.entry(entry)).collect();
                let stat = match has_stat(op, forms) {
                    true => format!(": {}", self.stat(stat)),
                    false => String::new(),
                };
                assert!(!more);
                format!("[{}]{stat}", shown.join(", "))
            }
            Reply::Names { .. } => panic!("no client reads {reply:?}"),
            Reply::Acl { acl, stat } => {
                let lines: Vec<String> = acl.iter().map(show_line).collect();
                format!("{}: {}", lines.join(" "), self.stat(stat))
            }
            Reply::Paths(paths) => {
                let paths: Vec<&str> = paths.iter().map(|path| path.as_str()).collect();
                format!("[{}]", paths.join(", "))
            }
            Reply::Count(count) => format!("{count} nodes"),
            Reply::Multi { replies, .. } => {
                let Op::Multi { then, .. } = op else { panic!("{op:?} is no multi") };
                let parts = then.iter().zip(replies);
                let parts: Vec<_> = parts.map(|(op, reply)| self.reply(op, reply, forms)).collect();
                parts.join("; ")
            }
            Reply::MultiRead(results) => {
                let Op::MultiRead(ops) = op else { panic!("{op:?} is no multi") };
                let parts = ops.iter().zip(results).map(|(op, result)| match result {
                    Ok(reply) => self.reply(op, reply, forms),
                    Err(fault) => format!("error {}", number(fault.code)),
                });
                parts.collect::<Vec<_>>().join("; ")
            }
            Reply::Identities(identities) => {
                // ZooKeeper's clients are shown the user without the hash of the password.
                let user = |id: &str| id.split(':').next().unwrap_or_default().to_owned();
                let who = identities.iter().map(|who| match who.scheme.as_str() {
                    "digest" => format!("digest:{}", user(&who.id)),
                    scheme => format!("{scheme}:{}", who.id),
                });
                who.collect::<Vec<_>>().join(" ")
            }
        }
    }

    fn entry(&mut self, entry: &Entry) -> String {
        let stat = entry.stat.map_or(String::new(), |stat| format!(" ({})", self.stat(&stat)));
        let data = entry.data.as_ref().map_or(String::new(), |data| format!(" {data:?}"));
        format!("{}{data}{stat}", entry.name)
    }
}

/// Whether the answer has the statistics of the node that is created or listed.
fn has_stat(op: &Op, forms: Forms) -> bool {
    use conclave_proto::Lifetime;
    match op {
        Op::Create { mode, .. } => {
            forms == Forms::New || matches!(mode.lifetime, Lifetime::Container | Lifetime::Ttl(_))
        }
        Op::Children { page, .. } => forms == Forms::New || page.with_stat || page.with_data,
        _ => false,
    }
}

fn show_data(data: &Option<Bytes>) -> String {
    data.as_ref().map_or("null".into(), |data| format!("{:?}", std::str::from_utf8(data).unwrap()))
}

fn show_line(line: &Acl) -> String {
    let letters = "rwcda".chars().enumerate();
    let perms: String =
        letters.filter(|(bit, _)| line.perms.0 & 1 << bit != 0).map(|(_, c)| c).collect();
    format!("{perms}={}:{}", line.identity.scheme, line.identity.id)
}
