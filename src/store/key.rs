//! Keys of the tree's one table. LMDB sorts them as bytes and takes at most 511 of them.
//!
//! | first byte | then | what |
//! |---|---|---|
//! | 0 | nothing | the state as a whole |
//! | 1 | nothing | the root node |
//! | 1 | keyed hash of the parent's path (16), name | any other node |
//! | 2 | session (8, big-endian), path | an ephemeral node of a session |
//! | 3 | path | a container or TTL node |
//! | 4 | session (8, big-endian) | a session |
//!
//! What all keys of one listing begin with is a [`Scope`]: children of a node, ephemeral nodes of
//! a session, mortal nodes. The text that follows is cut if it does not fit: its first bytes, then
//! the keyed hash of all of it, 511 bytes together; the value has the whole text.

use std::fmt;
use std::ops::Deref;

use conclave_proto::{SessionId, ZPath};
use siphasher::{sip, sip128};

use super::codec;

const HASH: usize = 16;

const META: u8 = 0;
const NODE: u8 = 1;
const EPHEMERAL: u8 = 2;
const MORTAL: u8 = 3;
const SESSION: u8 = 4;

/// What the hashes in a tree's keys depend on: random, so that nobody can choose paths that
/// collide. It is part of the tree, and a snapshot carries it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct HashKey(pub(super) [u8; HASH]);

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl HashKey {
    fn hash(&self, text: &str) -> [u8; HASH] {
        sip128::SipHasher13::new_with_key(&self.0).hash(text.as_bytes()).as_u128().to_le_bytes()
    }

    /// The hash by which tables in memory find a text.
    pub(super) fn short(&self, text: &str) -> u64 {
        sip::SipHasher13::new_with_key(&self.0).hash(text.as_bytes())
    }
}

/// A key.
pub(super) struct Key(Vec<u8>);

impl Key {
    /// The most bytes of a key.
    pub(super) const MAX: usize = 511;

    fn new(first: u8) -> Key {
        Key(vec![first])
    }

    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Of the state as a whole.
    pub(super) fn meta() -> Key {
        Key::new(META)
    }

    /// Of the root node.
    pub(super) fn root() -> Key {
        Key::new(NODE)
    }

    /// Of a session.
    pub(super) fn session(id: SessionId) -> Key {
        let mut key = Key::new(SESSION);
        key.push(&id.0.to_be_bytes());
        key
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Writes the keys of nodes. Most have their parent in common with the one before: it is hashed once.
#[derive(Debug)]
pub(super) struct NodeKeys {
    hash_key: HashKey,
    parent: String,
    /// Of the children of `parent`, if there has been one.
    scope: Option<Scope>,
}

impl NodeKeys {
    pub(super) fn new(hash_key: HashKey) -> NodeKeys {
        NodeKeys { hash_key, parent: String::new(), scope: None }
    }

    /// Append the key of that node to `out`; whether its name does not fit.
    pub(super) fn write(&mut self, path: &ZPath, out: &mut Vec<u8>) -> bool {
        let Some((parent, name)) = path.split() else {
            out.extend_from_slice(&Key::root());
            return false;
        };
        let known = self.scope.filter(|_| self.parent == parent);
        let scope = known.unwrap_or_else(|| {
            self.parent.clear();
            self.parent.push_str(parent);
            *self.scope.insert(Scope::children(&self.hash_key, parent))
        });
        scope.write(&self.hash_key, name, out);
        scope.is_long(name)
    }
}

/// The short hashes of paths. Of the last two they are known: a transaction comes back to the node that
/// it changes, and to its parent.
#[derive(Debug)]
pub(super) struct ShortHashes {
    hash_key: HashKey,
    last: Option<(ZPath, u64)>,
    last_but_one: Option<(ZPath, u64)>,
}

impl ShortHashes {
    pub(super) fn new(hash_key: HashKey) -> ShortHashes {
        ShortHashes { hash_key, last: None, last_but_one: None }
    }

    /// That of this path.
    pub(super) fn of(&mut self, path: &ZPath) -> u64 {
        if let Some((last, hash)) = &self.last
            && last == path
        {
            return *hash;
        }
        std::mem::swap(&mut self.last, &mut self.last_but_one);
        if let Some((last, hash)) = &self.last
            && last == path
        {
            return *hash;
        }
        let hash = self.hash_key.short(path.as_str());
        self.last = Some((path.clone(), hash));
        hash
    }
}

/// Whether the key is that of a session, and of which.
pub(super) fn as_session(key: &[u8]) -> Option<SessionId> {
    let (&SESSION, id) = key.split_first()? else { return None };
    Some(SessionId(u64::from_be_bytes(id.try_into().ok()?)))
}

/// Whether the key is that of a session's ephemeral node, and of which session.
pub(super) fn as_ephemeral(key: &[u8]) -> Option<SessionId> {
    let (&EPHEMERAL, rest) = key.split_first()? else { return None };
    Some(SessionId(u64::from_be_bytes(*rest.first_chunk()?)))
}

/// What the keys of one listing begin with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope {
    bytes: [u8; 1 + HASH],
    len: usize,
    /// Whether values are nodes, and not index entries.
    of_nodes: bool,
}

impl Scope {
    fn new(first: u8, rest: &[u8], of_nodes: bool) -> Scope {
        let mut bytes = [0; 1 + HASH];
        bytes[0] = first;
        bytes[1..=rest.len()].copy_from_slice(rest);
        Scope { bytes, len: 1 + rest.len(), of_nodes }
    }

    /// The children of the node with this path.
    pub(super) fn children(hash_key: &HashKey, parent: &str) -> Scope {
        Scope::new(NODE, &hash_key.hash(parent), true)
    }

    /// The ephemeral nodes of a session.
    pub(super) fn ephemerals(session: SessionId) -> Scope {
        Scope::new(EPHEMERAL, &session.0.to_be_bytes(), false)
    }

    /// Container and TTL nodes.
    pub(super) fn mortals() -> Scope {
        Scope::new(MORTAL, &[], false)
    }

    /// The index entries of all ephemeral nodes; those of mortal nodes come right after them.
    pub(super) fn index() -> Scope {
        Scope::new(EPHEMERAL, &[], false)
    }

    /// All sessions.
    pub(super) fn sessions() -> Scope {
        Scope::new(SESSION, &[], false)
    }

    pub(super) fn prefix(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// How much of a text that is too long the key holds as it is.
    fn kept(&self) -> usize {
        Key::MAX - HASH - self.len
    }

    /// Whether the key cannot hold the text whole. A key of 511 bytes is always that of a long one.
    pub(super) fn is_long(&self, text: &str) -> bool {
        self.len + text.len() >= Key::MAX
    }

    /// Append the key of this text to `out`.
    pub(super) fn write(&self, hash_key: &HashKey, text: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(self.prefix());
        if self.is_long(text) {
            out.extend_from_slice(&text.as_bytes()[..self.kept()]);
            out.extend_from_slice(&hash_key.hash(text));
        } else {
            out.extend_from_slice(text.as_bytes());
        }
    }

    /// The key of this text.
    pub(super) fn key(&self, hash_key: &HashKey, text: &str) -> Key {
        let mut key = Vec::with_capacity(Key::MAX.min(self.len + text.len()));
        self.write(hash_key, text, &mut key);
        Key(key)
    }

    /// Where to begin to look for texts after this one, which itself may be found there too.
    pub(super) fn seek(&self, after: &str) -> Key {
        let mut key = Key(self.prefix().to_vec());
        // Among texts that begin alike for as long as a cut key shows, the order of keys is not
        // that of texts: begin with the first of them.
        key.push(&after.as_bytes()[..after.len().min(self.kept())]);
        key
    }

    /// The text of the record with this key and value; `None` if they are damaged.
    pub(super) fn text<'r>(&self, key: &'r [u8], value: &'r [u8]) -> Option<&'r str> {
        if key.len() < Key::MAX {
            std::str::from_utf8(key.get(self.len..)?).ok()
        } else if self.of_nodes {
            codec::long_name(key, value)
        } else {
            codec::long_text(key, value)
        }
    }

    /// The part of the key that it shares with texts whose order the keys do not show; `None` if
    /// the text is shorter than that.
    pub(super) fn ambiguous<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        key.get(..self.len + self.kept())
    }
}

#[cfg(test)]
mod tests {
    use std::hash::Hasher;

    use siphasher::sip128::Hasher128;

    use super::*;

    #[test]
    fn a_text_hashed_at_once_has_the_hash_that_trees_on_disk_have() {
        let key = HashKey([7; HASH]);
        let text = "/a/path/of/any/length/up/to/some/blocks";
        for len in 0..text.len() {
            let mut hasher = sip128::SipHasher13::new_with_key(&key.0);
            hasher.write(&text.as_bytes()[..len]);
            assert_eq!(key.hash(&text[..len]), hasher.finish128().as_u128().to_le_bytes());
        }
    }
}
