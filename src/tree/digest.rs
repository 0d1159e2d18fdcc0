//! The digest of the state: by it, replicas notice that they differ.
//!
//! It is the wrapping sum of a 64-bit hash of each node and each session, so a change costs two
//! hashes (take away the old one, add the new one) whatever the size of the tree, and the order in
//! which the state was built does not matter. It finds damage and mistakes; it is not meant to
//! withstand somebody who looks for collisions.
//!
//! The digest is in logs and snapshots: what is hashed, and XXH3 itself, must stay as they are for
//! as long as [`super::SEMANTICS`] does.

use std::sync::LazyLock;

use conclave_proto::{Acl, Lifetime, SessionId, ZPath};
use xxhash_rust::xxh3::xxh3_64;

use super::acl;
use super::nodes::{Node, SessionRecord};

/// What a node adds to [`super::Meta::digest`].
pub fn digest_of_node(path: &ZPath, node: &Node) -> u64 {
    let (lifetime, ttl) = match node.lifetime {
        Lifetime::Persistent => (0, 0),
        Lifetime::Ephemeral => (1, 0),
        Lifetime::Container => (2, 0),
        Lifetime::Ttl(ms) => (3, ms),
        Lifetime::Lingering(ms) => (4, ms),
    };
    let mut fields = Fields::new([b'n', lifetime, node.data.is_some().into()]);
    fields.add(ttl);
    fields.add(xxh3_64(path.as_str().as_bytes()));
    fields.add(xxh3_64(node.data.as_deref().unwrap_or_default()));
    fields.add(digest_of_acl(&node.acl));
    fields.add(node.owner.0);
    fields.add(node.czxid.bits());
    fields.add(node.mzxid.bits());
    fields.add(node.pzxid.bits());
    fields.add(node.ctime_ms.cast_unsigned());
    fields.add(node.mtime_ms.cast_unsigned());
    fields.add(pair(node.version.cast_unsigned(), node.aversion.cast_unsigned()));
    fields.add(node.num_children.into());
    fields.add(node.children_created);
    fields.hash()
}

/// What a session adds to [`super::Meta::digest`].
///
/// The outcomes kept for its retries are left out: there may be a thousand, which would have to be
/// hashed at each write; each follows from a transaction that is covered by what it did to the
/// tree and to `last_xid`.
pub fn digest_of_session(id: SessionId, record: &SessionRecord) -> u64 {
    let mut fields = Fields::new([b's', 0, 0]);
    fields.add(id.0);
    fields.add(record.timeout_ms.into());
    fields.add(xxh3_64(record.secret.expose()));
    fields.add(record.last_xid.0);
    fields.hash()
}

fn digest_of_acl(acl: &[Acl]) -> u64 {
    static OPEN: LazyLock<u64> = LazyLock::new(|| digest_of_lines(&Acl::open()));
    if acl::is_open(acl) { *OPEN } else { digest_of_lines(acl) }
}

fn digest_of_lines(acl: &[Acl]) -> u64 {
    acl.iter().fold(0, |before, line| {
        let mut fields = Fields::new([b'a', line.perms.0, 0]);
        fields.add(before);
        fields.add(xxh3_64(line.identity.scheme.as_bytes()));
        fields.add(xxh3_64(line.identity.id.as_bytes()));
        fields.hash()
    })
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// Numbers to be hashed together, little-endian, one after another. Up to 128 bytes are hashed
/// fastest.
struct Fields {
    bytes: [u8; 14 * 8],
    used: usize,
}

impl Fields {
    /// The first number says what is hashed.
    fn new(kind: [u8; 3]) -> Fields {
        let mut fields = Fields { bytes: [0; 14 * 8], used: 8 };
        fields.bytes[..3].copy_from_slice(&kind);
        fields
    }

    fn add(&mut self, field: u64) {
        self.bytes[self.used..self.used + 8].copy_from_slice(&field.to_le_bytes());
        self.used += 8;
    }

    fn hash(&self) -> u64 {
        xxh3_64(&self.bytes[..self.used])
    }
}
