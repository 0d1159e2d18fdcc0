//! Ways through a subtree, in bounded steps.

use conclave_proto::ZPath;

use super::nodes::Nodes;

/// How many names are taken from the storage at once, at most.
const CHUNK: usize = 128;

/// The children of one node, one after another, in the order of their names.
pub(super) struct Level {
    path: ZPath,
    /// The names at hand, the next one last.
    names: Vec<String>,
    /// Where to go on when they are used up; `None`: there are no more.
    after: Option<String>,
    /// How many are taken at once.
    chunk: usize,
}

impl Level {
    /// The children of `path` after that name; the empty name comes before all others.
    pub(super) fn new(path: ZPath, after: &str) -> Level {
        Level { path, names: Vec::new(), after: Some(after.to_owned()), chunk: CHUNK }
    }

    /// The same, of which hardly more than `expected` will be asked for.
    pub(super) fn expecting(self, expected: usize) -> Level {
        Level { chunk: expected.clamp(1, CHUNK), ..self }
    }

    /// The next child's name.
    pub(super) fn next_name(&mut self, nodes: &impl Nodes) -> Option<String> {
        if self.names.is_empty() {
            let after = self.after.take()?;
            self.names = nodes.children(&self.path, Some(&after), self.chunk);
            if self.names.len() == self.chunk {
                self.after = self.names.last().cloned();
            }
            self.names.reverse();
        }
        self.names.pop()
    }

    /// The path of the child of that name.
    pub(super) fn child(&self, name: &str) -> ZPath {
        self.path.child(name).expect("what the tree holds are valid names")
    }

    /// The next child's path.
    fn next(&mut self, nodes: &impl Nodes) -> Option<ZPath> {
        self.next_name(nodes).map(|name| self.child(&name))
    }
}

/// The first `limit` nodes of the subtree of `top` to delete one by one: children before parents,
/// `top` last.
pub(super) fn deepest_first(nodes: &impl Nodes, top: &ZPath, limit: usize) -> Vec<ZPath> {
    let mut found = Vec::new();
    let mut levels = vec![Level::new(top.clone(), "")];
    while found.len() < limit {
        let Some(level) = levels.last_mut() else { break };
        match level.next(nodes) {
            Some(child) => levels.push(Level::new(child, "")),
            None => found.extend(levels.pop().map(|level| level.path)),
        }
    }
    found
}

/// Everything below a node: depth first, parents before children, names in order.
///
/// A node's children follow only if [`Walk::enter`] is called.
pub(super) struct Walk {
    levels: Vec<Level>,
}

impl Walk {
    /// Everything below `top`.
    pub(super) fn new(top: &ZPath) -> Walk {
        Walk { levels: vec![Level::new(top.clone(), "")] }
    }

    /// What follows `last` on the way through `top`, which is above it, as if that way had gone
    /// into exactly the nodes for which `enters` holds.
    pub(super) fn resume(top: &ZPath, last: &ZPath, enters: impl Fn(&ZPath) -> bool) -> Walk {
        let mut down: Vec<ZPath> =
            last.ancestors().take_while(|above| above.is_within(top)).collect();
        down.reverse();
        down.push(last.clone());
        let mut levels = Vec::new();
        for (above, below) in down.iter().zip(&down[1..]) {
            if above != top && !enters(above) {
                return Walk { levels };
            }
            levels.push(Level::new(above.clone(), below.name()));
        }
        if enters(last) {
            levels.push(Level::new(last.clone(), ""));
        }
        Walk { levels }
    }

    /// The next node.
    pub(super) fn next(&mut self, nodes: &impl Nodes) -> Option<ZPath> {
        loop {
            match self.levels.last_mut()?.next(nodes) {
                Some(path) => return Some(path),
                None => drop(self.levels.pop()),
            }
        }
    }

    /// Go into this node, which [`Walk::next`] has just returned.
    pub(super) fn enter(&mut self, path: ZPath) {
        self.levels.push(Level::new(path, ""));
    }
}
