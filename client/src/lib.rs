//! The Rust client of Conclave.
