//! A check of the whole state, from scratch.

use std::collections::{BTreeMap, BTreeSet};

use conclave_proto::{Lifetime, SessionId, ZPath};

use super::apply::reserved_children;
use super::digest::digest_of_session;
use super::draft::Tally;
use super::nodes::{Index, Meta, Nodes};
use super::walk::{Level, Walk};

/// Look at every node and session and compare what [`Meta`] and the indexes say with what is
/// there: for tests, simulations, and a state that was just restored. Reads everything.
///
/// # Errors
/// What is wrong, in a sentence.
pub fn audit(nodes: &impl Nodes) -> Result<(), String> {
    let mut audit = Audit {
        nodes,
        found: Meta::default(),
        ephemerals: BTreeMap::new(),
        mortals: BTreeSet::new(),
    };
    let mut walk = Walk::new(&ZPath::root());
    audit.visit(&ZPath::root())?;
    while let Some(path) = walk.next(nodes) {
        audit.visit(&path)?;
        walk.enter(path);
    }
    audit.sessions()?;
    audit.mortals()?;
    let meta = nodes.meta();
    let Meta { nodes, bytes, digest, quotas, .. } = audit.found;
    if (meta.nodes, meta.bytes, meta.digest, meta.quotas) != (nodes, bytes, digest, quotas) {
        return Err(format!(
            "the state has {nodes} nodes, {bytes} bytes, {quotas} quotas and the digest \
             {digest:016x}, not {meta:?}"
        ));
    }
    Ok(())
}

struct Audit<'a, N> {
    nodes: &'a N,
    found: Meta,
    ephemerals: BTreeMap<SessionId, BTreeSet<ZPath>>,
    mortals: BTreeSet<ZPath>,
}

impl<N: Nodes> Audit<'_, N> {
    fn visit(&mut self, path: &ZPath) -> Result<(), String> {
        let node = self.nodes.node(path).ok_or_else(|| format!("{path} is listed, but missing"))?;
        let Tally { nodes, bytes, digest, quotas } = Tally::of(path, &node);
        self.found.nodes += nodes;
        self.found.bytes += bytes;
        self.found.quotas += quotas;
        self.found.digest = self.found.digest.wrapping_add(digest);

        let mut children = 0;
        let mut level = Level::new(path.clone(), "");
        while level.next_name(self.nodes).is_some() {
            children += 1;
        }
        if node.num_children != children {
            return Err(format!("{path} has {children} children, but counts {node:?}"));
        }
        if u64::from(children - reserved_children(path)) > node.children_created {
            return Err(format!("{path} has more children than were ever created: {node:?}"));
        }
        let is_ephemeral = node.lifetime.is_ephemeral();
        let is_left = matches!(node.lifetime, Lifetime::Lingering(_));
        let is_owned = node.owner != SessionId::NONE;
        if (is_ephemeral != is_owned && !is_left) || (is_ephemeral && children > 0) {
            return Err(format!("{path} is neither a proper ephemeral nor another node: {node:?}"));
        }
        match Index::of(node.owner, node.lifetime) {
            Index::None => {}
            Index::Ephemerals(owner) => {
                self.ephemerals.entry(owner).or_default().insert(path.clone());
            }
            Index::Mortals => {
                self.mortals.insert(path.clone());
            }
        }
        Ok(())
    }

    fn mortals(&self) -> Result<(), String> {
        let listed: BTreeSet<ZPath> = self.nodes.mortals(None, usize::MAX).into_iter().collect();
        if listed == self.mortals {
            return Ok(());
        }
        Err(format!("the mortal nodes are {:?}, but listed are {listed:?}", self.mortals))
    }

    fn sessions(&mut self) -> Result<(), String> {
        let mut counted = 0;
        for (id, record) in self.nodes.sessions() {
            let digest = digest_of_session(id, record);
            self.found.digest = self.found.digest.wrapping_add(digest);
            let owned = self.ephemerals.remove(&id).unwrap_or_default();
            let listed: BTreeSet<ZPath> = self.nodes.ephemerals(id).into_iter().collect();
            if owned != listed {
                return Err(format!("session {id} owns {owned:?}, but listed are {listed:?}"));
            }
            let count = self.nodes.ephemeral_count(id);
            if owned.len() != count {
                return Err(format!("session {id} owns {owned:?}, but counted are {count}"));
            }
            counted += count;
        }
        let in_all = self.nodes.ephemerals_in_all();
        if counted != in_all {
            return Err(format!("sessions own {counted} nodes, but counted are {in_all} in all"));
        }
        match self.ephemerals.first_key_value() {
            Some((id, paths)) => Err(format!("session {id} does not exist, but owns {paths:?}")),
            None => Ok(()),
        }
    }
}
