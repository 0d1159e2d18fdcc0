//! What `import` and `export` have in common.

use indicatif::{ProgressBar, ProgressStyle};

/// The file in a directory that holds the data of the directory's own node.
pub(super) const NODE_DATA_FILE: &str = ".conclave-node";

/// A progress bar on standard error, if a person is looking there.
pub(super) fn progress(total: usize, hidden: bool) -> ProgressBar {
    if hidden {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len}  {per_sec}  {eta} left")
        .expect("a valid template");
    ProgressBar::new(u64::try_from(total).unwrap_or(u64::MAX)).with_style(style)
}
