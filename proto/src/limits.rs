//! Every bound that both ends of a connection know.

/// The longest path, in bytes.
pub const PATH_BYTES: usize = 4096;
/// The most parts of a path.
pub const PATH_DEPTH: usize = 256;
/// The largest value of a node, in bytes.
pub const VALUE_BYTES: usize = 1 << 20;
/// The largest frame on a client connection, in bytes: a value and what goes with it.
pub const FRAME_BYTES: usize = VALUE_BYTES + (64 << 10);
/// The largest frame before a session is open, in bytes.
pub const HANDSHAKE_FRAME_BYTES: usize = 4 << 10;
/// The most operations in a multi, conditions included.
pub const MULTI_OPS: usize = 1000;
/// The most lines of an ACL.
pub const ACL_LINES: usize = 64;
/// The longest scheme or id of an identity, in bytes.
pub const IDENTITY_BYTES: usize = 1024;
/// The most lines of all ACLs of one request together.
pub const REQUEST_ACL_LINES: usize = 4096;
/// The most identities of one connection.
pub const IDENTITIES: usize = 64;
/// The longest credential, in bytes.
pub const CREDENTIAL_BYTES: usize = 4 << 10;
/// The longest sentence with which a server refuses a connection, in bytes.
pub const MESSAGE_BYTES: usize = 4 << 10;
/// The most requests of one session in flight: as many replies are remembered for its retries.
pub const IN_FLIGHT: usize = 1024;
/// The largest frame that a server sends to a client, in bytes: twice what it accepts, so that the
/// answer to every write fits.
pub const RESPONSE_FRAME_BYTES: usize = 2 * FRAME_BYTES;
/// The most entries of all listings in one answer together.
pub const RESPONSE_ELEMENTS: usize = 1 << 16;
/// The most entries of one page of a listing.
pub const PAGE_ENTRIES: usize = 10_000;
/// The bytes of entries after which a page ends.
pub const PAGE_BYTES: usize = 512 << 10;
/// The longest time to live of a node, in ms: ZooKeeper's 40 bits, some 34 years.
pub const TTL_MS: u64 = (1 << 40) - 1;
/// The most nodes one transaction deletes recursively.
pub const DELETE_MANY: u32 = 1000;

const _: () = assert!(PAGE_BYTES + VALUE_BYTES / 2 <= FRAME_BYTES);
const _: () = assert!(PAGE_ENTRIES <= RESPONSE_ELEMENTS);
const _: () = assert!(ACL_LINES <= REQUEST_ACL_LINES && IDENTITIES <= ACL_LINES);
const _: () = assert!(PATH_BYTES < HANDSHAKE_FRAME_BYTES + 1);
