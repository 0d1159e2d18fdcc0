//! Recipes: what programs build on znodes, each built once and with care.
//!
//! Every recipe stands on the public client alone. It survives a lost connection and a change of
//! leader, since the client sends again what has no answer and the servers do nothing twice. It
//! ends when its session expires, with an error that says so, and is made anew on a new client.
//! There are no callbacks: what goes on is told by futures and streams, and dropping a recipe
//! releases what it holds.
//!
//! | to | use |
//! |---|---|
//! | keep a copy of a part of the tree at hand | [`Cache`](cache::Cache) |

pub mod cache;
mod error;
mod support;
mod token;

pub use error::{Error, Loss, NameError};
pub use token::{Fence, StaleToken, Token};
