//! Every bound of the client.

/// The operations of one client that have been made and not completed.
pub(crate) const QUEUE_OPS: usize = 65_536;
/// The bytes of operations that have been made and not completed. One operation may go beyond.
pub(crate) const QUEUE_BYTES: usize = 64 << 20;
/// The items that wait in a watch for a reader who does not read.
pub(crate) const WATCH_ITEMS: usize = 1024;
/// The bytes of values that wait in a watch for a reader who does not read.
pub(crate) const WATCH_BYTES: usize = 8 << 20;
/// The bytes encoded for a connection and not yet written, after which requests wait.
pub(crate) const OUTBOX_BYTES: usize = 256 << 10;
/// The bytes read from a connection at once.
pub(crate) const READ_BYTES: usize = 128 << 10;
/// The servers in a list.
pub(crate) const SERVERS: usize = 256;
