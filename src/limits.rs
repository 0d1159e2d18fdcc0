//! Every bound of a server has its name here; those that clients know too are in
//! [`conclave_proto::limits`].

pub use conclave_proto::limits::*;

/// The bytes of log entries kept in memory to bring a follower up to date by DIFF.
pub const DIFF_WINDOW_BYTES: usize = 32 << 20;
/// The entries kept in memory to bring a follower up to date by DIFF.
pub const DIFF_WINDOW_ENTRIES: usize = 200_000;
/// The bytes of entries in one message between servers.
pub const BATCH_BYTES: usize = 1 << 20;
/// The entries in one message between servers.
pub const BATCH_ENTRIES: usize = 4096;
/// The entries that a server applies in one turn: others are served between two, and what belongs
/// to so many stays in the processor's cache.
pub const DELIVER_ENTRIES: usize = 256;
/// The nodes that the transactions of one turn change or count; others are left to the next one, but
/// for what one transaction may do alone.
pub const TURN_NODES: usize = 10_000;
/// So many transactions are applied before other servers and the disk are given what they are to do: it
/// takes less time than to look for more to do.
pub const APPLIED_BEFORE_OTHERS: usize = 8;
/// The bytes of changes that no checkpoint holds yet, beside those of two checkpoints, before writes
/// wait.
pub const UNWRITTEN_BYTES: u64 = 256 << 20;
/// The bytes of proposals that a leader has in flight before it makes requests wait.
pub const UNCOMMITTED_BYTES: usize = 64 << 20;
/// The proposals that a leader has in flight before it makes requests wait.
pub const UNCOMMITTED_ENTRIES: usize = 100_000;
/// The bytes of proposals that a leader sends to one follower ahead of its acknowledgements.
pub const FOLLOWER_WINDOW_BYTES: usize = 16 << 20;
/// The proposals that a leader holds back for a follower whose answer nobody waits for.
pub const HELD_BACK_ENTRIES: usize = 64;
/// The messages of proposals whose acknowledgement a follower may delay.
pub const DELAYED_ACKS: usize = 64;
/// So many ticks pass before a follower whose answer nobody waits for is sent what was held back for
/// it, if nothing is late.
pub const SPARED_TICKS: u64 = 4;
/// So often within [`SPARED_AND_MISSED_TICKS`] a follower that is spared may turn out to be needed;
/// then none is spared for [`SPARE_NOBODY_TICKS`].
pub const SPARED_AND_MISSED: usize = 6;
/// See [`SPARED_AND_MISSED`].
pub const SPARED_AND_MISSED_TICKS: u64 = 100;
/// See [`SPARED_AND_MISSED`].
pub const SPARE_NOBODY_TICKS: u64 = 500;
/// The bytes of entries that a leader keeps for a follower that was in sync and is slower than the
/// others for a while; one that is further behind gets a snapshot.
pub const LAG_WINDOW_BYTES: usize = 128 << 20;
/// The bytes of entries that a leader keeps for a follower while it gets a snapshot; if they do not
/// suffice, the transfer begins again.
pub const SNAPSHOT_WINDOW_BYTES: usize = 512 << 20;
/// The largest frame between servers, in bytes.
pub const PEER_FRAME_BYTES: usize = 4 << 20;
/// The bytes waiting to be sent to one peer, after which the link is cut and made anew.
pub const PEER_OUTBOX_BYTES: usize = 64 << 20;
/// The bytes of one chunk of a snapshot.
pub const SNAPSHOT_CHUNK_BYTES: usize = 256 << 10;
/// The bytes waiting to be sent to one client, after which it is dropped as a slow consumer.
pub const CLIENT_OUTBOX_BYTES: usize = 8 << 20;
/// The bytes of answers to what a client asked at once that may wait beside that.
pub const CLIENT_ANSWERS_BYTES: usize = 56 << 20;
/// The least that may be configured for what waits to be sent to all clients, in MiB.
pub const LEAST_OUTBOX_MB: u32 = 65;
/// The bytes of events of the past that a watch is told when it is set: what is more is a gap. An
/// estimate.
pub const CATCH_UP_BYTES: usize = 6 << 20;
/// The bytes of answers to reads that one turn makes; other reads are left to the next one.
pub const TURN_ANSWERS_BYTES: usize = 8 << 20;
/// Nothing more is read from a client while requests of so many bytes have no answer.
pub const ASKED_BYTES: usize = 1 << 20;
/// The same for all clients of a server: a client is read no further than there is room left of this,
/// but for what it always may have. Requests that are larger than that wait for room of the same size.
pub const ALL_ASKED_BYTES: usize = PENDING_BYTES / 2;
/// The bytes of requests without an answer that a client always may have.
pub const ASKED_ALWAYS_BYTES: usize = 16 << 10;
/// The bytes of frames that have come in part or wait for room, of all clients of a server, but for
/// [`ASKED_ALWAYS_BYTES`] of each. When there are more, the client that has been sending its frame for
/// the longest time is dropped.
pub const UNFINISHED_BYTES: usize = 128 << 20;
/// The largest frame that a client of the ZooKeeper protocol may send, in bytes: the default of
/// ZooKeeper's `jute.maxbuffer`.
pub const JUTE_FRAME_BYTES: usize = 0xf_ffff;
/// The bytes of names in a listing that has no pages; a longer one is refused.
pub const WHOLE_LIST_BYTES: usize = 16 << 20;
/// The bytes of listings that a server keeps ready for those who ask for the same again.
pub const LISTINGS_KEPT_BYTES: usize = 4 << 20;
/// The watches of one session.
pub const WATCHES_PER_SESSION: usize = 100_000;
/// The watches of one server.
pub const WATCHES: usize = 10_000_000;
/// The bytes of the paths that one session watches.
pub const WATCHED_BYTES_PER_SESSION: usize = 64 << 20;
/// The bytes of the paths that are watched on one server.
pub const WATCHED_BYTES: usize = 1 << 30;
/// The watches of clients that are gone which one turn removes.
pub const TURN_UNWATCHED: usize = 2000;
/// The events that one turn tells clients: transactions after it are left to the next one.
pub const TURN_EVENTS: usize = 100_000;
/// The events that a client may be told in one turn, which is what one transaction may make beyond
/// that; one for whom there are more is dropped as a slow consumer.
pub const EVENTS_AT_ONCE: usize = 200_000;
/// The events that all clients may be told in one turn, but for what each of them always may.
pub const ALL_EVENTS_AT_ONCE: usize = 1_000_000;
/// The events that a client always may be told in one turn.
pub const EVENTS_ALWAYS: usize = 256;
/// When more transactions than that are committed and not applied, a client is told fewer events in a turn:
/// one for whom there are more is what a server may not keep up with.
pub const BACKLOG_ENTRIES: usize = 20_000;
/// See [`BACKLOG_ENTRIES`].
pub const EVENTS_WHEN_BEHIND: usize = 10_000;
/// The events remembered for watches that resume.
pub const EVENT_WINDOW: usize = 100_000;
/// The bytes of the paths and the ACLs of these events.
pub const EVENT_WINDOW_BYTES: usize = 32 << 20;
/// The connections of clients to one server.
pub const CONNECTIONS: usize = 20_000;
/// The connections from one address that have not opened a session yet.
pub const HANDSHAKES_PER_ADDRESS: usize = 4096;
/// The connections that may be in a TLS handshake at one port.
pub const TLS_HANDSHAKES: usize = 2048;
/// Those of them from one address.
pub const TLS_HANDSHAKES_PER_ADDRESS: usize = 1024;
/// The connections to the port of the servers that have not said yet whose they are.
pub const STRANGERS: usize = 64;
/// Those of them from one address.
pub const STRANGERS_PER_ADDRESS: usize = 16;
/// The connections to the port of administration.
pub const ADMIN_CONNECTIONS: usize = 64;
/// The passwords that are checked or wait for it.
pub const PASSWORD_CHECKS: usize = 1024;
/// Those of them from one address.
pub const PASSWORD_CHECKS_PER_ADDRESS: usize = 256;
/// The users whose passwords a server knows.
pub const USERS: usize = 10_000;
/// The records of the audit log that wait to be written; more are lost, and counted.
pub const AUDIT_QUEUE: usize = 8192;
/// The bytes of such records, each with all that its client is: more are lost, too.
pub const AUDIT_QUEUE_BYTES: usize = 64 << 20;
/// The attempts of one origin to be somebody that the audit log has of one minute; more are counted.
pub const AUDIT_ATTEMPTS: u64 = 100;
/// The origins whose attempts are counted one by one; those beyond are counted together.
pub const AUDIT_ORIGINS: usize = 10_000;
/// The bytes of such records that are written at once: no more than a file has at the least.
pub const AUDIT_BURST_BYTES: usize = 128 << 10;
/// The files of each half of the audit log: the newest, and those before it.
pub const AUDIT_FILES: usize = 4;
/// The most nodes that a read counts below another: counting stops the server.
pub const COUNT_NODES: u64 = 10_000;
/// The most nodes that are counted for the quotas that one transaction sets: it stops all servers.
pub const QUOTA_NODES: usize = 10_000;
/// The most nodes that one transaction looks at to delete them with their trees, those that it has
/// deleted already included: it stops all servers.
pub const TREE_NODES: usize = 10_000;
/// The ephemeral nodes of one session: all of them are deleted at once when it ends, and that stops
/// all servers.
pub const EPHEMERALS_PER_SESSION: usize = 50_000;
/// The sessions of the ensemble.
pub const SESSIONS: usize = 1_000_000;
/// The sessions that only one server knows; those beyond are opened for all of them.
pub const LOCAL_SESSIONS: usize = 100_000;
/// The ends of sessions that a leader remembers.
pub const ENDED_SESSIONS: usize = 65_536;
/// The shortest session timeout, in ms.
pub const SESSION_TIMEOUT_MIN_MS: u32 = 1_000;
/// The longest session timeout, in ms.
pub const SESSION_TIMEOUT_MAX_MS: u32 = 600_000;
/// The bytes of outcomes that are kept of one session's writes, for their retries.
pub const OUTCOME_BYTES: usize = 1 << 20;
/// The writes of one server's clients that have no answer yet; a client that asks beyond it is sent
/// to another server.
pub const PENDING_REQUESTS: usize = 200_000;
/// The bytes of such writes, and of those that wait behind a read. A new leader is sent all of them
/// at once.
pub const PENDING_BYTES: usize = 32 << 20;
/// Those of them that only writes of at most [`ASKED_ALWAYS_BYTES`] may take.
pub const PENDING_SMALL_BYTES: usize = 8 << 20;
/// The writes that wait at the leader because too much is in flight; more are refused.
pub const WAITING_REQUESTS: usize = 100_000;
/// The bytes of such writes.
pub const WAITING_BYTES: usize = 64 << 20;
/// The messages of followers that wait until a new leader has applied the end of its history.
pub const EARLY_MESSAGES: usize = 100_000;
/// The bytes of such messages.
pub const EARLY_BYTES: usize = 64 << 20;
/// The streams of forwarded writes that are over, remembered for each follower.
pub const RETIRED_STREAMS: usize = 256;
/// The sessions that a leader ends in one tick.
pub const EXPIRIES_PER_TICK: usize = 2048;
/// The container and TTL nodes that a leader looks at in one go.
pub const REAPS: usize = 1024;
/// How long it waits before the next ones, in ms.
pub const REAP_INTERVAL_MS: u64 = 500;
/// For how long a container has lost no child before it is reaped, in ms: that of a lock, say, is empty
/// between one holder and the next, who has looked for it a moment ago.
pub const CONTAINER_REST_MS: u64 = 10_000;
/// The sessions in one report of signs of life.
pub const TOUCHES: usize = 10_000;
/// The reports of signs of life of which it is not known yet whether they count.
pub const REPORTS: usize = 64;
/// The ticks remembered to say when a sign of life was given; reports are more frequent.
pub const TICKS: usize = 1024;
/// How long a read waits for this server to catch up before it is refused, in ms.
pub const READ_WAIT_MS: u64 = 5_000;
/// How long a client waits for its session before it is refused, in ms.
pub const CONNECT_WAIT_MS: u64 = 2_000;
/// How long a server is without a leader before it serves those who are content to read, in ms.
pub const READ_ONLY_AFTER_MS: u64 = 2_000;
/// How long a client that is refused, or sent away, is told to wait, in ms.
pub const BACKOFF_MS: u32 = 100;
/// The state digests kept to compare with the leader's.
pub const DIGEST_WINDOW: usize = 4096;

const _: () = assert!(BATCH_BYTES + FRAME_BYTES < PEER_FRAME_BYTES);
const _: () = assert!(FOLLOWER_WINDOW_BYTES + BATCH_BYTES + FRAME_BYTES < PEER_OUTBOX_BYTES);
const _: () = assert!(JUTE_FRAME_BYTES < FRAME_BYTES && JUTE_FRAME_BYTES <= VALUE_BYTES);
const _: () = assert!(WATCHES_PER_SESSION < EVENTS_AT_ONCE && EVENTS_AT_ONCE < ALL_EVENTS_AT_ONCE);
const _: () = assert!(WHOLE_LIST_BYTES < CLIENT_ANSWERS_BYTES);
const _: () = assert!(CATCH_UP_BYTES + VALUE_BYTES < CLIENT_OUTBOX_BYTES);
const _: () = assert!(ASKED_BYTES <= PENDING_BYTES / 32);
const _: () = assert!(ASKED_ALWAYS_BYTES < ASKED_BYTES && ASKED_BYTES < ALL_ASKED_BYTES);
const _: () = assert!(ALL_ASKED_BYTES < PENDING_BYTES - PENDING_SMALL_BYTES);
const _: () = assert!(TURN_ANSWERS_BYTES < CLIENT_ANSWERS_BYTES);
const _: () =
    assert!(CLIENT_OUTBOX_BYTES + CLIENT_ANSWERS_BYTES < (LEAST_OUTBOX_MB as usize) << 20);
const _: () = assert!(PENDING_BYTES <= PEER_OUTBOX_BYTES / 2);
const _: () = assert!(TLS_HANDSHAKES_PER_ADDRESS < TLS_HANDSHAKES);
const _: () = assert!(STRANGERS_PER_ADDRESS < STRANGERS);
const _: () = assert!(DIFF_WINDOW_BYTES < LAG_WINDOW_BYTES);
const _: () = assert!(LAG_WINDOW_BYTES < SNAPSHOT_WINDOW_BYTES);
