//! Recipes: what programs build on znodes, each built once and with care.
//!
//! Every recipe stands on the public client alone. It survives a lost connection and a change of
//! leader, since the client sends again what has no answer and the servers do nothing twice. It
//! ends when its session expires, with an error that says so, and is made anew on a new client.
//! There are no callbacks: what goes on is told by futures and streams, and dropping a recipe
//! releases what it holds. What starts tasks is made in a tokio runtime; everything can be awaited
//! outside of it.
//!
//! | to | use |
//! |---|---|
//! | let one at a time do something | [`Mutex`] |
//! | let many read, or one write | [`ReadWriteLock`] |
//! | let a limited number do something at once | [`Semaphore`] |
//! | hold several locks, all or none | [`MultiLock`] |
//! | do something once in a while, without waiting | [`Lease`], [`MultiLease`] |
//! | have one leader, known to the others | [`Election`] |
//! | have standbys do what a primary does | [`Log`](log::Log) |
//! | wait for a signal, or for each other | [`Barrier`], [`DoubleBarrier`] |
//! | keep a copy of a part of the tree at hand | [`Cache`](cache::Cache) |
//! | keep the configuration, and follow it | [`config::Registry`] |
//! | show who is there, keep a node in place | [`members::Group`], [`members::KeptNode`] |
//! | give names | [`names::Names`] |
//! | find an instance of a service | [`discovery::Discovery`] |
//! | hand out work, each piece at least once | [`queue::Queue`] |
//! | divide partitions among members | [`partition::Partitioner`] |
//! | find the member that has a key | [`ring::Ring`], [`ring::LiveRing`] |
//! | give tasks to workers | [`assignment::Work`] |
//! | do something together or not at all | [`two_phase::TwoPhase`] |
//! | count, give out ids, share a value | [`counter::Counter`], [`counter::IdBlocks`], [`counter::SharedValue`] |
//!
//! # A lock alone is not enough
//!
//! A process that holds a lock can be paused: by the scheduler, by its hypervisor, by a page fault.
//! If the pause is longer than the session timeout, the lock goes to another process. The first one
//! wakes up in the middle of what it was doing and does not know. No lock service can prevent this,
//! since it cannot take back what a process is about to do; the thing that the lock protects must.
//!
//! - If that is kept in Conclave, write through [`Hold::guard`]: the write and the check that the
//!   lock is held are one transaction.
//! - If it is kept elsewhere, send the [`Token`] along, and let the other side refuse tokens that are
//!   less than the greatest it has seen ([`Fence`]).
//! - End what lasts when [`Hold::lost`] resolves. It does on suspicion, before the servers give the
//!   lock to another one; so a process that runs is never late, and one that is paused is stopped by
//!   the other two. So is one whose machine was suspended: the clock that it goes by has stood still,
//!   on Linux at least, and it resolves up to a session timeout late.

pub mod assignment;
mod barrier;
mod body;
pub mod cache;
pub mod config;
pub mod counter;
pub mod discovery;
mod doubt;
mod election;
mod error;
mod hold;
mod lease;
mod line;
pub mod log;
pub mod members;
mod multilock;
mod mutex;
pub mod names;
mod owned;
pub mod partition;
mod place;
pub mod queue;
pub mod ring;
mod rwlock;
mod semaphore;
mod support;
mod timer;
mod token;
pub mod two_phase;

pub use barrier::{Barrier, DoubleBarrier, Inside};
pub use election::{Election, Latch, Leader, Leadership, Observer};
pub use error::{Error, Loss, NameError};
pub use hold::Hold;
pub use lease::{Lease, LeaseHold, MultiLease};
pub use multilock::MultiLock;
pub use mutex::{Holder, Mutex};
pub use place::place;
pub use rwlock::{ReadWriteLock, WriteHold};
pub use semaphore::Semaphore;
pub use token::{Fence, StaleToken, Token};
