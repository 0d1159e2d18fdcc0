//! Tests of the replicated state machine: scripts that show each rule, a table of permissions, and
//! random histories compared with a simple model.

mod model;
mod property;
mod world;
