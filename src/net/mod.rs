//! Connections, in plaintext or within TLS 1.3: what the ports and links of a server are made of.
//!
//! A connection is two halves ([`ReadHalf`], [`WriteHalf`]) that look the same in either case. In
//! plaintext they are the halves of a socket and nothing more. Within TLS they share a
//! `rustls::Connection`, which does no IO: what is read goes through it, what is to be sent too.
//!
//! Handshakes cost a thousand times what a request does, and whoever reaches a port can ask for one.
//! So the thread that serves does none: each port with TLS has a thread of its own ([`Port`]), which
//! accepts, shakes hands, and hands over what is ready. A storm of handshakes delays others who
//! want to connect, and nobody who is connected.
//!
//! Who is on the other end is told by its [`Certificate`], after its signature was checked.

mod certificate;
mod crowd;
mod halves;
mod keys;
mod port;
mod tls;

pub use certificate::{Certificate, member_name};
pub use crowd::{Crowd, Place, origin};
pub use halves::{ReadHalf, WriteHalf, dial, plain};
pub use keys::{CertCounters, ClientAuth, Files, Keys, KeysError, Purpose, WatchedKeys};
pub use port::{HandshakeCounters, HandshakeLimits, Incoming, Port, keep_alive};
