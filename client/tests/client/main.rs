//! The client against a server that follows a script.

mod failover;
mod fake;
mod hostile;
mod requests;
mod watches;
