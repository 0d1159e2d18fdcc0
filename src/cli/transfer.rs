//! What `import` and `export` have in common.

use std::process::ExitCode;

use conclave_client::ZPath;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::say;

/// The file in a directory that holds the data of the directory's own node.
pub(super) const NODE_DATA_FILE: &str = ".conclave-node";
/// The file at the top of an export with the ACLs of those nodes that have one of their own.
pub(super) const ACLS_FILE: &str = ".conclave-acl";
/// What is in a directory while an export into it has not ended: a directory, with the files that are
/// being written.
pub(super) const UNFINISHED: &str = ".conclave-export";

/// A progress bar on standard error, if a person is looking there; `None`: nobody knows how many.
pub(super) fn progress(total: Option<usize>, hidden: bool) -> ProgressBar {
    if hidden {
        return ProgressBar::hidden();
    }
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(u64::try_from(total).unwrap_or(u64::MAX)),
            "{bar:40} {pos}/{len}  {per_sec}  {eta} left",
        ),
        None => (ProgressBar::no_length(), "{pos}  {per_sec}  {elapsed}"),
    };
    bar.with_style(ProgressStyle::with_template(template).expect("a valid template"))
}

/// Whether a node is one of those that the servers keep for themselves, of which each ensemble has
/// its own. Who names one of them as the top of the tree means it.
pub(super) fn is_of_the_servers(path: &ZPath, top: &ZPath) -> bool {
    let system = ZPath::new("/zookeeper").expect("it is a path");
    path.is_within(&system) && !top.is_within(&system)
}

/// What could not be taken over, by name.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    named: Vec<String>,
    /// How many there were beyond those.
    more: u64,
}

impl LeftOut {
    /// Keeps a line for the end: what it is, and why.
    pub(super) fn add(&mut self, line: String) {
        /// Memory stays bounded.
        const NAMED: usize = 10_000;
        if self.named.len() < NAMED {
            self.named.push(line);
        } else {
            self.more += 1;
        }
    }

    /// How many.
    pub(super) fn count(&self) -> u64 {
        self.named.len() as u64 + self.more
    }

    /// Names them to a person.
    pub(super) fn print(&self) {
        for line in &self.named {
            say!("left out: {line}");
        }
        if self.more > 0 {
            say!("left out: {} more", self.more);
        }
    }

    /// Adds them to a report for programs.
    pub(super) fn add_to(&self, report: &mut Map<String, Value>) {
        report.insert("left_out".into(), json!(self.named));
        report.insert("left_out_more".into(), json!(self.more));
    }

    /// How a command ends that did all the rest.
    pub(super) fn exit_code(&self) -> ExitCode {
        if self.named.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(3) }
    }
}
