//! The Rust client of Conclave: sessions, znodes, watches.
//!
//! Conclave keeps a small tree of nodes (*znodes*) on an ensemble of servers, so that the programs
//! of a distributed system can agree on something: who is alive, who leads, what the configuration
//! is. What is written is on the disks of a majority before it is acknowledged, and every client
//! sees the changes in the same order.
//!
//! # Five minutes
//!
//! Start three servers with `conclave dev`. A [`Client`] is one session with them; it connects to
//! one of them and moves to another one when that one fails.
//!
//! ```no_run
//! use std::time::Duration;
//! use conclave_client::{Client, WatchItem, WatchKind};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder()
//!     .servers("127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420")
//!     .session_timeout(Duration::from_secs(10))
//!     .connect()
//!     .await?;
//!
//! // A node has a path, data, and statistics; its version grows with every change.
//! client.create("/app", "").await?;
//! client.create("/app/config", "colour = blue").await?;
//! let config = client.get("/app/config").await?;
//! println!("{} (version {})", config.text()?, config.stat.version);
//!
//! // Change it only if nobody else has.
//! client.set("/app/config", "colour = green").version(config.stat.version).await?;
//!
//! // An ephemeral node lives as long as the session: it shows that this program is alive.
//! // A sequential one gets a number: the lowest number is the oldest member.
//! client.create("/app/members", "").await?;
//! let me = client.create("/app/members/m-", "host 1").ephemeral().sequential().await?;
//! println!("I am {}", me.path);
//!
//! // A watch is a stream. It survives reconnections and says so if anything is missing.
//! let mut watch = client.watch("/app", WatchKind::PersistentRecursive).with_value().await?;
//! while let Some(item) = watch.next().await {
//!     match item? {
//!         WatchItem::Event { path, kind, value, .. } => println!("{path}: {kind:?} {value:?}"),
//!         WatchItem::Gap { .. } => println!("read everything again"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Requests
//!
//! A method such as [`Client::get`] describes a request. `.await` sends it and waits for the
//! answer; `.send()` sends it and gives a [`Pending`] to await later. The one rule of order: **a
//! request takes its place when it is sent, not when its future is polled.** The servers carry out
//! the requests of a session in this order, and a read sees every write before it. So many
//! requests can be in flight at once, which is the fast way to do many things:
//!
//! ```
//! # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
//! let writes: Vec<_> =
//!     (0..1000).map(|i| client.create(format!("/app/{i}"), "x").send()).collect();
//! for write in writes {
//!     write.await?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Requests wait in the client while the server has as many in flight as it accepts. When 65,536
//! of them or 64 MiB wait, further ones fail with [`Error::Overloaded`]; [`Client::ready`] waits
//! until there is room.
//!
//! # What a lost connection means
//!
//! Nothing, mostly. The client finds another server, resumes its session there, sets its watches
//! again where they stopped, and sends again every request that has no answer, under the number it
//! had: the servers remember what they have done under which number, so that a write is done once
//! even if it is sent twice. The caller only sees that an answer takes longer.
//!
//! If it takes longer than the [operation timeout](Builder::operation_timeout), the operation fails
//! with [`Error::Timeout`], which says whether it may have been done
//! ([`Error::outcome_unknown`]). If no server hears from the client for the whole session timeout,
//! the session expires: its ephemeral nodes are deleted, and every operation fails with
//! [`Error::SessionExpired`]. Make a new client then. [`Client::states`] tells how the session is
//! doing, and [`Client::certain_until`] until when it is alive for certain: what must not be done
//! by two at once must not be done after that.
//!
//! # How fresh a read is
//!
//! A read is answered by the server that the client is connected to. It never shows less than what
//! the session has seen before, but another client's write may have been acknowledged and not have
//! come to this server yet. [`Read::linearizable`] shows everything that was acknowledged to
//! anybody; [`Read::at_least`] everything up to a transaction, for instance one of which another
//! program has told.
//!
//! ```
//! # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
//! let newest = client.get("/app/config").linearizable().await?;
//! let as_new_as_that = client.get("/app/other").at_least(newest.stat.mzxid).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Several writes in one
//!
//! [`Client::multi`] does several writes together or none of them, and can make them depend on
//! conditions:
//!
//! ```
//! use conclave_client::Test;
//! # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
//! let outcome = client
//!     .multi()
//!     .when("/app/config", Test::Exists)
//!     .set("/app/config", "colour = red", None)
//!     .otherwise()
//!     .create("/app/config", "colour = red")
//!     .await?;
//! println!("it {}", if outcome.held { "was changed" } else { "was created" });
//! # Ok(())
//! # }
//! ```

mod builder;
mod chroot;
mod detach;
mod dial;
mod dice;
mod driver;
mod error;
mod handle;
mod limits;
mod list;
mod mailbox;
mod multi;
mod queue;
pub mod recipes;
mod request;
mod session;
mod shared;
mod state;
mod tls;
mod watch;

pub use builder::Builder;
pub use chroot::IntoPath;
pub use error::{Error, Operation};
pub use handle::Client;
pub use list::{Children, Entries, List, Page};
pub use multi::{Multi, MultiOutcome, MultiRead, Stake};
pub use request::{Create, Created, Node, Pending, Read, SetWatch, Write};
pub use state::{State, States};
pub use tls::Tls;
pub use watch::{Watch, WatchItem};

pub use conclave_proto as proto;
pub use conclave_proto::request::{Entry, Reply, Test};
pub use conclave_proto::{
    Acl, CreateMode, ErrorCode, EventKind, Fault, Identity, Lifetime, PathError, Perms, ServerId,
    SessionId, Stat, WatchKind, ZPath, Zxid,
};
