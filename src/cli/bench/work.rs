//! What a benchmark does: the same operations whatever the wire.

use clap::ValueEnum;

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// Durable writes of existing nodes
    Set,
    /// Durable creation of new nodes
    Create,
    /// Reads on the server a client is connected to
    Get,
    /// 90 % reads, 10 % writes
    Mixed,
    /// Transactions of ten writes
    Multi,
    /// Listing a node of 100 children
    Children,
    /// Opening and closing sessions
    Connect,
    /// One write that wakes a watch of every client
    Watch,
    /// Writes while the leader is killed: the longest gap between two of them (needs --spawn)
    Failover,
    /// The same while the leader is frozen (SIGSTOP) and goes on later
    Freeze,
    /// The same while the leader is asked to stop and hands over
    HandOver,
    /// A lock that all clients contend for: hand-overs, and how long one waits for it
    Locks,
    /// From kill -9 of a leader's process to the next leader's first write, at a session timeout of
    /// 2 s
    Succession,
    /// The same for a leader's process that is asked to terminate
    Resignation,
    /// A queue that is filled, and then emptied by all clients
    Queue,
    /// A cache of many nodes: the time until it is complete, and how far it is behind 5000 writes a
    /// second
    Cache,
}

impl Kind {
    /// Every kind that any server can be measured with.
    pub(super) const COMPARABLE: [Kind; 8] = [
        Kind::Set,
        Kind::Create,
        Kind::Get,
        Kind::Mixed,
        Kind::Multi,
        Kind::Children,
        Kind::Connect,
        Kind::Watch,
    ];

    /// Whether each client can have several operations of this kind in flight.
    pub(super) fn is_pipelined(self) -> bool {
        match self {
            Kind::Set | Kind::Create | Kind::Get | Kind::Mixed | Kind::Multi | Kind::Children => {
                true
            }
            Kind::Connect
            | Kind::Watch
            | Kind::Failover
            | Kind::Freeze
            | Kind::HandOver
            | Kind::Locks
            | Kind::Succession
            | Kind::Resignation
            | Kind::Queue
            | Kind::Cache => false,
        }
    }

    /// Whether it is about what ZooKeeper's protocol has not: the client crate's recipes, or our own
    /// processes.
    pub(super) fn is_native(self) -> bool {
        matches!(
            self,
            Kind::Failover
                | Kind::Freeze
                | Kind::HandOver
                | Kind::Locks
                | Kind::Succession
                | Kind::Resignation
                | Kind::Queue
                | Kind::Cache
        )
    }

    /// Its name, as it is typed.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// One operation on one of a benchmark's nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Write the node of this number.
    Set(u64),
    /// Create a node of this number.
    Create(u64),
    /// Read the node of this number.
    Get(u64),
    /// Write ten nodes, from this number on, in one transaction.
    Multi(u64),
    /// List the node that has [`CHILDREN`] children.
    Children,
}

/// The nodes that sets and gets go to.
pub(super) const NODES: u64 = 1000;
/// The children of the node that is listed.
pub(super) const CHILDREN: u64 = 100;
/// The writes of one transaction.
pub(super) const MULTI: u64 = 10;

/// The sequence of one client's operations: without randomness, spread over the nodes.
#[derive(Clone, Debug)]
pub(super) struct Steps {
    kind: Kind,
    client: u64,
    next: u64,
}

impl Steps {
    /// The operations of that client.
    pub(super) fn new(kind: Kind, client: u64) -> Steps {
        Steps { kind, client, next: 0 }
    }

    /// How many there have been.
    pub(super) fn count(&self) -> u64 {
        self.next
    }

    /// The next one.
    pub(super) fn next(&mut self) -> Step {
        let n = self.next;
        self.next += 1;
        // A large odd stride visits every node before it comes back to one.
        let spread = (self.client * 131 + n * 7919) % NODES;
        match self.kind {
            Kind::Set => Step::Set(spread),
            Kind::Mixed if n.is_multiple_of(10) => Step::Set(spread),
            Kind::Get | Kind::Mixed => Step::Get(spread),
            Kind::Create => Step::Create(n),
            Kind::Multi => Step::Multi(spread % (NODES - MULTI)),
            Kind::Children => Step::Children,
            Kind::Connect
            | Kind::Watch
            | Kind::Failover
            | Kind::Freeze
            | Kind::HandOver
            | Kind::Locks
            | Kind::Succession
            | Kind::Resignation
            | Kind::Queue
            | Kind::Cache => {
                unreachable!("these have a loop of their own")
            }
        }
    }
}

/// Where everything a benchmark makes lies; it is deleted at the end.
pub(super) const ROOT: &str = "/conclave-bench";

/// The path of a node that is written and read.
pub(super) fn node_path(number: u64) -> String {
    format!("{ROOT}/nodes/{number}")
}

/// The path of the node that is listed.
pub(super) fn listed_path() -> String {
    format!("{ROOT}/listed")
}

/// The path of the node that is watched.
pub(super) fn watched_path() -> String {
    format!("{ROOT}/watched")
}

/// The path of a node that a client creates.
pub(super) fn created_path(run: u64, client: u64, number: u64) -> String {
    format!("{ROOT}/created/{run:x}-{client}-{number}")
}
