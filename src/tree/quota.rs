//! Quotas: how many nodes and how many bytes of data there may be in a part of the tree.
//!
//! They are kept as ZooKeeper's clients know them. The quota of `/app` is a pair of nodes:
//!
//! | node | its data | written by |
//! |---|---|---|
//! | `/zookeeper/quota/app/zookeeper_limits` | what is allowed: [`Limits`] | clients |
//! | `/zookeeper/quota/app/zookeeper_stats` | what there is: [`Usage`] | the tree, whatever a client says |
//!
//! The usage is counted when its node is created, and kept up to date as long as that exists: what a
//! client writes there later changes its version alone. It holds the node itself and everything below
//! it. A quota counts whether or not there are others above and below it. Neither the root nor what is
//! in `/zookeeper` has one.
//!
//! A quota refuses the writes of others, and tells how much there is in what its reader may not read.
//! So to write to its nodes, and to those above them, needs ADMIN on the node that they are about
//! ([`governed_by`]), beside what their own ACLs say.
//!
//! A *hard* limit refuses what would exceed it; a *soft* one only lets it be known. What makes a
//! part of the tree smaller is never refused.

use bytes::Bytes;
use conclave_proto::{ErrorCode, ZPath};

use super::draft::Draft;
use super::nodes::{Node, Nodes};
use super::walk::Walk;
use crate::limits;

/// Below this node is, for the path of each quota, a copy of that path.
pub(super) const QUOTA: &str = "/zookeeper/quota";
const SYSTEM: &str = "/zookeeper/";
const LIMITS: &str = "/zookeeper_limits";
const STATS: &str = "/zookeeper_stats";

/// The longest text in which limits are looked for: every write below them reads it.
const LIMITS_BYTES: usize = 256;

/// What was, or would have been, more than a quota allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess {
    /// The node whose quota it is.
    pub path: ZPath,
    /// What there was too much of.
    pub what: Measure,
    /// How much there would be.
    pub wanted: i64,
    /// How much is allowed.
    pub limit: i64,
    /// Whether it was refused for that.
    pub hard: bool,
}

/// What a quota limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The number of nodes.
    Nodes,
    /// The bytes of their data.
    Bytes,
}

/// What there is, or a change of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) nodes: i64,
    pub(super) bytes: i64,
}

impl Usage {
    /// What a node adds.
    pub(super) fn of(node: &Node) -> Usage {
        Usage { nodes: 1, bytes: size(node.data.as_ref()) }
    }

    /// What a change of data adds.
    pub(super) fn of_change(before: Option<&Bytes>, after: Option<&Bytes>) -> Usage {
        Usage { nodes: 0, bytes: size(after) - size(before) }
    }

    pub(super) fn negated(self) -> Usage {
        Usage { nodes: -self.nodes, bytes: -self.bytes }
    }

    fn plus(self, other: Usage) -> Usage {
        Usage { nodes: self.nodes + other.nodes, bytes: self.bytes + other.bytes }
    }

    fn parse(node: &Node) -> Usage {
        let numbers = Numbers(text(node));
        Usage { nodes: numbers.get("count").unwrap_or(0), bytes: numbers.get("bytes").unwrap_or(0) }
    }

    fn text(self) -> Bytes {
        format!("count={},bytes={}", self.nodes, self.bytes).into()
    }
}

fn size(data: Option<&Bytes>) -> i64 {
    data.map_or(0, |data| i64::try_from(data.len()).expect("a value is at most 1 MiB"))
}

/// What is allowed, of one measure; `None`: anything.
struct Limits {
    soft: Option<i64>,
    hard: Option<i64>,
}

/// `name=number` pairs, with `,` or `;` between them. ZooKeeper's clients write another `=` after
/// the second pair, so that clients older than hard limits read no further.
struct Numbers<'a>(&'a str);

impl Numbers<'_> {
    fn get(&self, name: &str) -> Option<i64> {
        let pair = |pair: &str| {
            let mut parts = pair.split('=');
            (parts.next() == Some(name)).then(|| parts.next()?.parse().ok())?
        };
        self.0.split([',', ';']).find_map(pair)
    }

    fn limit(&self, name: &str) -> Option<i64> {
        self.get(name).filter(|&limit| limit >= 0)
    }

    fn limits(&self, measure: Measure) -> Limits {
        let (soft, hard) = match measure {
            Measure::Nodes => ("count", "countHardLimit"),
            Measure::Bytes => ("bytes", "byteHardLimit"),
        };
        Limits { soft: self.limit(soft), hard: self.limit(hard) }
    }
}

fn text(node: &Node) -> &str {
    let data = node.data.as_deref().unwrap_or_default();
    std::str::from_utf8(data).ok().filter(|text| text.len() <= LIMITS_BYTES).unwrap_or_default()
}

/// The node whose usage is kept at `path`, if that is such a place.
pub(super) fn counted_at(path: &ZPath) -> Option<ZPath> {
    let subject = path.as_str().strip_prefix(QUOTA)?.strip_suffix(STATS)?;
    // What only begins like the quotas' own directory, such as /zookeeper/quotas, has no subject.
    ZPath::new(subject).ok().filter(|subject| !is_system(subject.as_str()))
}

/// The node whose ACL says, beside its own, who may write to the node at `path`: the one that the
/// quota there is of, or of whose path the node is a copy; while that does not exist, the nearest
/// one above it. `None` if the node at `path` is no part of a quota.
pub(super) fn governed_by<N: Nodes>(draft: &Draft<'_, N>, path: &ZPath) -> Option<Node> {
    let copy = path.as_str().strip_prefix(QUOTA)?;
    let subject = [LIMITS, STATS].iter().find_map(|name| copy.strip_suffix(name)).unwrap_or(copy);
    let mut subject = match subject {
        "" => ZPath::root(),
        subject => ZPath::new(subject).ok()?,
    };
    loop {
        if let Some(node) = draft.node(&subject) {
            return Some(node);
        }
        subject = subject.parent()?;
    }
}

fn is_system(path: &str) -> bool {
    path == SYSTEM.trim_end_matches('/') || path.starts_with(SYSTEM)
}

/// What one transaction comes to.
pub(super) struct Ledger {
    /// How many nodes it may still count one by one.
    left: usize,
    /// How many quotas its changes were looked for in.
    entered: usize,
    /// The first quota that it exceeds.
    pub(super) excess: Option<Excess>,
}

impl Ledger {
    pub(super) fn new() -> Ledger {
        Ledger { left: limits::QUOTA_NODES, entered: 0, excess: None }
    }

    /// How many nodes were looked at: those counted one by one, and those of quotas.
    pub(super) fn looked_at(&self) -> usize {
        limits::QUOTA_NODES - self.left + self.entered
    }

    /// Enter a change of the node at `path` into every quota that it belongs to.
    ///
    /// # Errors
    /// `QuotaExceeded` if it grows beyond a hard limit; what is entered by then must not stay.
    pub(super) fn enter<N: Nodes>(
        &mut self,
        draft: &mut Draft<'_, N>,
        path: &ZPath,
        change: Usage,
    ) -> Result<(), ErrorCode> {
        if !draft.has_quotas() || change == Usage::default() || is_system(path.as_str()) {
            return Ok(());
        }
        let text = path.as_str();
        let ends = text.match_indices('/').map(|(slash, _)| slash).skip(1).chain([text.len()]);
        for end in ends {
            let subject = &text[..end];
            // Where the copy of the path ends, there are no quotas further down.
            let Ok(place) = ZPath::new(&format!("{QUOTA}{subject}")) else { break };
            if draft.node(&place).is_none() {
                break;
            }
            self.entered += 1;
            let Ok(stats_path) = ZPath::new(&format!("{place}{STATS}")) else { break };
            let Some(stats) = draft.node(&stats_path) else { continue };
            let usage = Usage::parse(&stats).plus(change);
            let limits = ZPath::new(&format!("{place}{LIMITS}")).ok();
            if let Some(limits) = limits.and_then(|path| draft.node(&path)) {
                self.check(subject, usage, change, &Numbers(self::text(&limits)))?;
            }
            draft.change(&stats_path, stats, |stats| stats.data = Some(usage.text()));
        }
        Ok(())
    }

    fn check(
        &mut self,
        subject: &str,
        usage: Usage,
        change: Usage,
        numbers: &Numbers<'_>,
    ) -> Result<(), ErrorCode> {
        let measures = [
            (Measure::Nodes, usage.nodes, change.nodes),
            (Measure::Bytes, usage.bytes, change.bytes),
        ];
        for (what, wanted, growth) in measures {
            let Limits { soft, hard } = numbers.limits(what);
            let exceeded = |limit: &i64| growth > 0 && wanted > *limit;
            let (limit, hard) = match (hard.filter(exceeded), soft.filter(exceeded)) {
                (Some(limit), _) => (limit, true),
                (None, Some(limit)) => (limit, false),
                (None, None) => continue,
            };
            if hard || self.excess.is_none() {
                let path = ZPath::new(subject).expect("it is above a path, or one");
                self.excess = Some(Excess { path, what, wanted, limit, hard });
            }
            if hard {
                return Err(ErrorCode::QuotaExceeded);
            }
        }
        Ok(())
    }

    /// What there is at `subject` and below it, one by one, as the data of its node.
    ///
    /// # Errors
    /// `TooLarge` beyond [`limits::QUOTA_NODES`].
    pub(super) fn count<N: Nodes>(
        &mut self,
        draft: &Draft<'_, N>,
        subject: &ZPath,
    ) -> Result<Bytes, ErrorCode> {
        let nodes = draft.base();
        let mut usage = nodes.node(subject).as_ref().map_or(Usage::default(), Usage::of);
        let mut walk = Walk::new(subject);
        while let Some(path) = walk.next(nodes) {
            self.left = self.left.checked_sub(1).ok_or(ErrorCode::TooLarge)?;
            let node = nodes.node(&path).expect("what is listed exists");
            usage = usage.plus(Usage::of(&node));
            if node.num_children > 0 {
                walk.enter(path);
            }
        }
        for (path, after) in draft.edits().filter(|(path, _)| path.is_within(subject)) {
            let before = nodes.node(path).as_ref().map_or(Usage::default(), Usage::of);
            let after = after.map_or(Usage::default(), Usage::of);
            usage = usage.plus(after).plus(before.negated());
        }
        Ok(usage.text())
    }
}
