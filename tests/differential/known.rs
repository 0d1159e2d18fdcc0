//! The differences that are meant, each by its name. docs/COMPATIBILITY.md gives the reasons.

use std::collections::BTreeMap;

use crate::op::{Field, Op};
use crate::script;
use crate::system::Heard;

/// The names of the differences, as they stand in docs/COMPATIBILITY.md.
pub(crate) const NAMES: [&str; 9] = [
    "check-watches-of-others",
    "close-session-order",
    "exists-needs-read",
    "multi-create2-has-stat",
    "multi-impossible-flags",
    "path-rules-first",
    "set-watches-from-history",
    "set-watches-needs-read",
    "zookeeper-falls-silent",
];

/// How often each was seen.
pub(crate) type Known = BTreeMap<&'static str, usize>;

/// What one session heard in a step, without the differences that are meant.
#[derive(Debug)]
pub(crate) struct Reconciled<'a> {
    pub(crate) theirs: Vec<Heard>,
    pub(crate) ours: Vec<Heard>,
    /// Where the session's watches may not be the same any more.
    pub(crate) apart: Vec<String>,
    /// What the session must not be able to read: else the difference was none that is meant.
    pub(crate) secret: Vec<String>,
    known: &'a mut Known,
}

/// Whether ZooKeeper owes one of the sessions an answer while Conclave has given all of them.
pub(crate) fn has_fallen_silent([theirs, ours]: &[Vec<Vec<Heard>>; 2], known: &mut Known) -> bool {
    let silent = |heard: &[Vec<Heard>]| heard.concat().contains(&Heard::Silence);
    let found = silent(theirs) && !silent(ours);
    if found {
        *known.entry("zookeeper-falls-silent").or_default() += 1;
    }
    found
}

/// Takes the differences that are meant out of what both said.
pub(crate) fn reconcile<'a>(
    ops: &[Op],
    home: &str,
    theirs: &[Heard],
    ours: &[Heard],
    known: &'a mut Known,
) -> Reconciled<'a> {
    let (theirs, ours) = (theirs.to_vec(), ours.to_vec());
    let (apart, secret) = (Vec::new(), Vec::new());
    let mut both = Reconciled { theirs, ours, apart, secret, known };
    match ops {
        [Op::CloseSession] => both.sort_events(),
        [Op::SetWatches { lists, .. }] => both.catch_up(lists, home),
        _ => {
            for (place, op) in ops.iter().enumerate() {
                both.take_out(place, op);
            }
        }
    }
    both
}

impl Reconciled<'_> {
    fn found(&mut self, name: &'static str) {
        assert!(NAMES.contains(&name), "{name} is in the list of names");
        *self.known.entry(name).or_default() += 1;
    }

    /// The ephemeral nodes of a session vanish in no particular order.
    fn sort_events(&mut self) {
        if events(&self.theirs) == events(&self.ours) {
            return;
        }
        self.found("close-session-order");
        for heard in [&mut self.theirs, &mut self.ours] {
            heard.sort_by_key(|heard| match heard {
                Heard::Greeting { .. } => (0, 0, String::new()),
                Heard::Event { kind, path, .. } => (1, *kind, path.clone()),
                _ => (2, 0, String::new()),
            });
        }
    }

    /// Watches that are set again are told different things, each of them enough: Conclave tells
    /// change by change, ZooKeeper from the state alone, and without asking for permission.
    fn catch_up(&mut self, lists: &[Vec<String>], home: &str) {
        let (theirs, ours) = (events(&self.theirs), events(&self.ours));
        if theirs == ours {
            return;
        }
        for (kind, path) in theirs {
            // That there is a node whose absence the client only claims is nothing new.
            if kind != NODE_CREATED && ours.iter().all(|(_, told)| *told != path) {
                self.secret.push(path.replacen(home, "~", 1));
            }
        }
        let secret = self.secret.is_empty();
        self.found(if secret { "set-watches-from-history" } else { "set-watches-needs-read" });
        for heard in [&mut self.theirs, &mut self.ours] {
            heard.retain(|heard| !matches!(heard, Heard::Event { .. }));
        }
        self.apart.extend(lists.concat());
    }

    /// Takes a difference out of the answers to one request.
    fn take_out(&mut self, place: usize, op: &Op) {
        let (Some(theirs), Some(ours)) = (answer(&self.theirs, place), answer(&self.ours, place))
        else {
            return;
        };
        let ((their_code, their_body), (our_code, our_body)) = (theirs.clone(), ours.clone());
        if let Op::Multi(ops) = op {
            if their_body.len() < our_body.len() {
                self.found("multi-create2-has-stat");
                replace(&mut self.theirs, place, (their_code, without_stats(&their_body)));
                replace(&mut self.ours, place, (our_code, without_stats(&our_body)));
            }
            let (theirs, ours) = (failure(&their_body), failure(&our_body));
            if their_code == MARSHALLING_ERROR
                && ours.is_some()
                && ops.iter().any(script::has_impossible_flags)
            {
                self.found("multi-impossible-flags");
                replace(&mut self.theirs, place, (our_code, our_body.clone()));
            }
            if let (Some((at, theirs)), Some((same, ours))) = (theirs, ours)
                && at == same
                && let Some(name) = ops.get(at).and_then(|op| name_of(op, theirs, ours))
            {
                self.found(name);
                replace(&mut self.theirs, place, (our_code, our_body.clone()));
            }
        }
        if let Some(name) = name_of(op, their_code, our_code) {
            self.found(name);
            replace(&mut self.theirs, place, (our_code, our_body));
            if let Op::Exists { path, watch: true } = op {
                self.apart.push(path.clone());
            }
        } else if let Op::RemoveWatches { path, .. } = op
            && (their_code, our_code) == (0, NO_WATCHER)
            && self.apart.contains(path)
        {
            // The watch that only ZooKeeper has set in this step.
            self.found("exists-needs-read");
            replace(&mut self.theirs, place, (our_code, our_body));
        }
    }
}

const NODE_CREATED: i32 = 1;
const MARSHALLING_ERROR: i32 = -5;
const BAD_ARGUMENTS: i32 = -8;
const NO_NODE: i32 = -101;
pub(crate) const NO_AUTH: i32 = -102;
const INVALID_ACL: i32 = -114;
const NO_WATCHER: i32 = -121;

/// The name of the difference between two codes, if it has one.
fn name_of(op: &Op, theirs: i32, ours: i32) -> Option<&'static str> {
    match (op, theirs, ours) {
        (Op::Delete { path, .. }, NO_AUTH, NO_NODE)
            if script::BAD_PATHS.contains(&path.as_str()) =>
        {
            Some("path-rules-first")
        }
        (Op::Create { path, .. }, NO_NODE | NO_AUTH | INVALID_ACL, BAD_ARGUMENTS)
            if script::BAD_PATHS.contains(&path.as_str()) =>
        {
            Some("path-rules-first")
        }
        (Op::Exists { .. }, 0, NO_AUTH) => Some("exists-needs-read"),
        (Op::CheckWatches { .. }, 0, NO_WATCHER) => Some("check-watches-of-others"),
        _ => None,
    }
}

/// The kinds and paths of events.
fn events(heard: &[Heard]) -> Vec<(i32, String)> {
    let event = |heard: &Heard| match heard {
        Heard::Event { kind, path, .. } => Some((*kind, path.clone())),
        _ => None,
    };
    heard.iter().filter_map(event).collect()
}

/// The code and the body of the answer to a request.
type Answer = (i32, Vec<Field>);

fn answer(heard: &[Heard], wanted: usize) -> Option<Answer> {
    heard.iter().find_map(|heard| match heard {
        Heard::Answer { place, code, fields, .. } if *place == wanted => {
            Some((*code, fields.clone()))
        }
        _ => None,
    })
}

fn replace(heard: &mut [Heard], wanted: usize, answer: Answer) {
    for heard in heard {
        match heard {
            Heard::Answer { place, code, fields, .. } if *place == wanted => {
                (*code, *fields) = answer;
                return;
            }
            _ => {}
        }
    }
}

/// Which operation of a multi has failed, and why.
fn failure(fields: &[Field]) -> Option<(usize, i32)> {
    let codes = fields.iter().filter_map(|field| match field {
        Field::Is("failed", code) => code.parse().ok(),
        _ => None,
    });
    codes.enumerate().find(|(_, code)| *code != 0)
}

/// The answer to a multi without the statistics of nodes that were created.
fn without_stats(fields: &[Field]) -> Vec<Field> {
    let mut without = Vec::new();
    let mut created = false;
    for field in fields {
        match field {
            Field::Is("part", what) => {
                created = ["1 ", "15 "].iter().any(|kind| what.starts_with(kind));
                let what = if created { "created".into() } else { what.clone() };
                without.push(Field::Is("part", what));
            }
            Field::Is("path" | "end", _) => without.push(field.clone()),
            _ if !created => without.push(field.clone()),
            _ => {}
        }
    }
    without
}
