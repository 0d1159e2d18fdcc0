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

use conclave_proto::{Acl, Identity, Lifetime, SessionId, ZPath};
use xxhash_rust::xxh3::xxh3_64;

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
    hash(
        [b'n', lifetime, node.data.is_some().into()],
        [
            ttl,
            xxh3_64(path.as_str().as_bytes()),
            xxh3_64(node.data.as_deref().unwrap_or_default()),
            digest_of_acl(&node.acl),
            node.owner.0,
            node.czxid.bits(),
            node.mzxid.bits(),
            node.pzxid.bits(),
            node.ctime_ms.cast_unsigned(),
            node.mtime_ms.cast_unsigned(),
            pair(node.version.cast_unsigned(), node.aversion.cast_unsigned()),
            node.num_children.into(),
            node.children_created,
        ],
    )
}

/// What a session adds to [`super::Meta::digest`].
///
/// The outcomes kept for its retries are left out: there may be a thousand, which would have to be
/// hashed at each write; each follows from a transaction that is covered by what it did to the
/// tree and to `last_xid`.
pub fn digest_of_session(id: SessionId, record: &SessionRecord) -> u64 {
    let secret = xxh3_64(record.secret.expose());
    hash([b's', 0, 0], [id.0, record.timeout_ms.into(), secret, record.last_xid.0])
}

fn digest_of_acl(acl: &[Acl]) -> u64 {
    static OPEN: LazyLock<u64> = LazyLock::new(|| digest_of_lines(&Acl::open()));
    if Acl::is_open(acl) { *OPEN } else { digest_of_lines(acl) }
}

fn digest_of_lines(acl: &[Acl]) -> u64 {
    acl.iter().fold(0, |before, line| {
        let Identity { scheme, id } = &line.identity;
        let fields = [before, xxh3_64(scheme.as_bytes()), xxh3_64(id.as_bytes())];
        hash([b'a', line.perms.0, 0], fields)
    })
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// The hash of some numbers, little-endian, one after another, the first of which says what it is
/// that is hashed. Up to 128 bytes are hashed fastest.
fn hash<const N: usize>(kind: [u8; 3], fields: [u64; N]) -> u64 {
    const { assert!(N < 16, "the numbers have room") };
    let [first, second, third] = kind;
    let mut bytes = [[0; 8]; 16];
    bytes[0] = [first, second, third, 0, 0, 0, 0, 0];
    for (bytes, field) in bytes[1..=N].iter_mut().zip(fields) {
        *bytes = field.to_le_bytes();
    }
    xxh3_64(bytes[..=N].as_flattened())
}
