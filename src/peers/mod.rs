//! The links between servers.

pub mod codec;
