//! What clients' bytes mean: one module for each protocol that a server speaks.

pub mod native;
