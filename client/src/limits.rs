//! Every bound of the client.

/// The operations of one client that have been made and not completed.
pub(crate) const QUEUE_OPS: usize = 65_536;
/// The bytes of operations that have been made and not completed. One operation may go beyond.
pub(crate) const QUEUE_BYTES: usize = 64 << 20;
/// The items that wait in a watch for a reader who does not read.
pub(crate) const WATCH_ITEMS: usize = 8192;
/// The bytes of values that wait in a watch for a reader who does not read.
pub(crate) const WATCH_BYTES: usize = 8 << 20;
/// From so many waiting items on, nothing more is read from the connection as long as the reader of
/// the watch makes progress and no pong is to come.
pub(crate) const WATCH_ITEMS_PRESSING: usize = WATCH_ITEMS / 2;
/// For so long, in ms, what the server says may wait for the reader of a watch. Servers cut off a
/// client that takes nothing for 10 s.
pub(crate) const UNHEARD_MS: u64 = 1_000;
/// The bytes encoded for a connection and not yet written, after which requests wait. A ping does not.
pub(crate) const OUTBOX_BYTES: usize = 256 << 10;
/// The bytes read from a connection at once.
pub(crate) const READ_BYTES: usize = 64 << 10;
/// The servers in a list.
pub(crate) const SERVERS: usize = 256;
