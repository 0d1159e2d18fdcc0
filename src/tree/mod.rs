//! The tree of znodes and everything else that is replicated: a pure state machine.
//!
//! # The data
//!
//! A [`Node`] has a path, a value of at most 1 MiB (or none: ZooKeeper's null), an ACL, and counters.
//! A node is at once a file and a directory. How long it lives is its [`Lifetime`]: until it is
//! deleted; with its session (*ephemeral*, no children allowed); the same and a while longer if the
//! session expires (*lingering*); until its last child is gone (*container*); or until it has no
//! children and has not been written for a while (*TTL*). What has outlived its session or its
//! purpose is deleted by the leader, with an operation that checks everything again
//! ([`Node::is_due`] is the rule). A *sequential* node is an ordinary one whose name the
//! tree completes with the number of children its parent ever had.
//!
//! Four nodes exist by themselves and are neither created nor deleted: the root, and `/zookeeper`
//! with `config` and `quota` in it, which ZooKeeper's clients expect ([`found`]).
//!
//! Beside the nodes, the state holds the sessions ([`SessionRecord`]), because who owns an ephemeral
//! node and whether a retried write was applied must survive any server; and [`Meta`]: how far the
//! history is applied, the leader's clock, and a [digest](digest_of_node) of all of it.
//!
//! What happens to the counters:
//!
//! | | czxid, ctime | mzxid, mtime | version | aversion | pzxid | cversion |
//! |---|---|---|---|---|---|---|
//! | create it | now | now | 0 | 0 | now | 0 |
//! | set its data | | now | + 1 | | | |
//! | set its ACL | | | | + 1 | | |
//! | create or delete a child | | | | | now | + 1 |
//!
//! # The rules
//!
//! [`apply`] is the only thing that changes the state, and [`read`] the only thing that answers from
//! it, so each rule is in one place. `apply` is given a [`Txn`]: a client's request with what the
//! leader stamped on it (its zxid, the time, the identities of the asker). Nothing else goes in, so
//! every replica that applies the same history has the same state, gives the same answers, and
//! tells watchers the same. A request that fails is part of the history too: it has a zxid and
//! changes nothing else.
//!
//! A transaction writes to a draft that lies over the state. What it reads, it reads through the
//! draft; only if all of it succeeds does the draft become the state. So a multi is atomic without
//! any undoing, and the digest is counted in one place, from what really changed.
//!
//! # Quotas
//!
//! A part of the tree can have limits, and then what there is in it is counted ([`Excess`] says
//! what came of it). Both are the data of nodes in `/zookeeper/quota`, which clients of ZooKeeper
//! read and write; as long as there are none, no write looks for them.
//!
//! # Sessions and retries
//!
//! A write is done on behalf of a session or of the ensemble itself ([`SessionId::NONE`]), which
//! needs no permission. If the session does not exist, nothing is done. A session ends only by a
//! transaction, which deletes its ephemeral nodes as it removes the session: there is no moment in
//! history at which an ephemeral node has no session.
//!
//! A client numbers its writes. What came of the latest ones is part of the state, so a client that
//! lost an answer asks again, of any server, and gets the first answer with the first zxid; it is
//! never done twice. The client says which answers it has, and those are dropped.
//!
//! # Where it is kept
//!
//! The rules see the state through the trait [`Nodes`], which [`MemoryNodes`] implements for tests
//! and the simulator, and the store for real. [`audit`] compares all that is counted incrementally
//! with what is there.
//!
//! [`Lifetime`]: conclave_proto::Lifetime
//! [`Txn`]: conclave_proto::Txn
//! [`SessionId::NONE`]: conclave_proto::SessionId::NONE

mod acl;
mod apply;
mod audit;
mod digest;
mod draft;
mod nodes;
mod outcomes;
mod quota;
mod read;
mod sessions;
mod walk;
mod watch;

pub use acl::{allows, masked};
pub use apply::{Applied, CONFIG, Change, SEMANTICS, SessionChange, apply, found};
pub use audit::audit;
pub use digest::{digest_of_node, digest_of_session};
pub use nodes::{Index, MemoryNodes, Meta, Node, Nodes, SessionRecord};
pub use outcomes::{Outcome, Outcomes};
pub use quota::{Excess, Measure};
pub(crate) use read::payload;
pub use read::read;
pub use watch::changed_since;
