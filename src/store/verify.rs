//! Whether a tree on disk is whole: every node is found from the root, every count, checksum and
//! index entry is right, and all of it together has the digest that the protocol computed.

use conclave_proto::ZPath;

use super::codec;
use super::env::View;
use super::error::{StoreError, TreeContext};
use super::key::{HashKey, Key, Scope};
use crate::tree::{self, Meta, Node, digest_of_node, digest_of_session};

/// What is added up on the way, to be compared at the end.
#[derive(Default)]
struct Sums {
    digest: u64,
    nodes: u64,
    /// Of the index entries there should be.
    expected: Index,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Index {
    entries: u64,
    keys: u64,
}

impl Index {
    fn add(&mut self, key: &[u8]) {
        self.entries += 1;
        self.keys = self.keys.wrapping_add(crc32c::crc32c(key).into());
    }
}

/// Read the whole tree.
///
/// # Errors
/// [`StoreError::Damaged`] says what does not match.
pub(super) fn verify(view: &View) -> Result<Meta, StoreError> {
    let Some((hash_key, meta)) = view.meta()? else {
        return Err(view.damaged("the record of the whole state is missing"));
    };
    let mut sums = Sums::default();
    let root = ZPath::root();
    let node = view.node(&Key::root(), &root)?.ok_or_else(|| view.damaged("it has no root"))?;
    sums.add(&hash_key, &root, &node);
    let mut parents = vec![(root, node.num_children)];
    while let Some((path, expected)) = parents.pop() {
        let found = children(view, &hash_key, &path, |child, node| {
            sums.add(&hash_key, &child, node);
            if node.num_children > 0 {
                parents.push((child, node.num_children));
            }
        })?;
        if found != expected {
            return Err(view.damaged(format_args!("{path} has {found} children, not {expected}")));
        }
    }
    for (id, record) in view.sessions()? {
        sums.digest = sums.digest.wrapping_add(digest_of_session(id, &record));
    }
    if (sums.nodes, sums.digest) != (meta.nodes, meta.digest) {
        return Err(view.damaged(format_args!(
            "it has {} nodes and digest {:016x}, not {} and {:016x}",
            sums.nodes, sums.digest, meta.nodes, meta.digest
        )));
    }
    if index(view)? != sums.expected {
        return Err(view.damaged("the indexes do not match the nodes"));
    }
    Ok(meta)
}

impl Sums {
    fn add(&mut self, hash_key: &HashKey, path: &ZPath, node: &Node) {
        self.nodes += 1;
        self.digest = self.digest.wrapping_add(digest_of_node(path, node));
        let scope = match tree::Index::of(node.owner, node.lifetime) {
            tree::Index::None => return,
            tree::Index::Ephemerals(owner) => Scope::ephemerals(owner),
            tree::Index::Mortals => Scope::mortals(),
        };
        self.expected.add(&scope.key(hash_key, path.as_str()));
    }
}

/// Visit the children of a node; how many there are.
fn children(
    view: &View,
    hash_key: &HashKey,
    path: &ZPath,
    mut visit: impl FnMut(ZPath, &Node),
) -> Result<u32, StoreError> {
    let scope = Scope::children(hash_key, path.as_str());
    let mut found = 0;
    for record in view.range(scope.prefix(), true)? {
        let (key, value) = record.in_tree("read", view.tree().path())?;
        if !key.starts_with(scope.prefix()) {
            break;
        }
        let name = scope.text(key, value);
        let child = name.and_then(|name| path.child(name).ok());
        let node = codec::decode_node(key, value);
        let (Some(child), Some(node)) = (child, node) else {
            return Err(
                view.damaged(format_args!("the record of a child of {path} does not match"))
            );
        };
        found += 1;
        visit(child, &node);
    }
    Ok(found)
}

/// Read the indexes.
fn index(view: &View) -> Result<Index, StoreError> {
    let mut index = Index::default();
    let end = Key::session(conclave_proto::SessionId(0));
    for record in view.range(Scope::index().prefix(), true)? {
        let (key, value) = record.in_tree("read", view.tree().path())?;
        if *key >= *end {
            break;
        }
        if codec::unseal(key, value).is_none() {
            return Err(view.damaged("the record of an index entry does not match"));
        }
        index.add(key);
    }
    Ok(index)
}
