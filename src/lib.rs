//! Conclave: a coordination service.
//!
//! The modules are floors; each names lower ones only, and those of one floor do not name each
//! other. Floors 0 to 2 take inputs and return outputs: no clock, socket, file, thread or die.
//!
//! | floor | modules | what |
//! |---|---|---|
//! | 6 | [`config`], the command line | start things |
//! | 5 | [`server`] | sockets, threads, the one clock |
//! | 4 | [`store`], [`peers`], [`wire`] | bytes: disk formats, links between servers, client formats |
//! | 3 | [`net`] | connections, in plaintext or within TLS |
//! | 2 | [`replica`] | a whole server without any IO: [`replica::Input`] in, [`replica::Ready`] out |
//! | 1 | [`zab`], [`tree`], [`hub`], [`session`] | pure machines that do not know each other |
//! | 0 | [`limits`], `conclave_proto` | the words |

pub mod config;
pub mod hub;
pub mod limits;
pub mod net;
pub mod peers;
pub mod replica;
pub mod server;
pub mod session;
pub mod store;
pub mod tree;
pub mod wire;
pub mod zab;
