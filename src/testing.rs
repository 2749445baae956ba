//! What the unit tests share.

use std::io::Write;

/// Says that a test was skipped and why. The harness would hold back what goes through `eprintln`.
pub(crate) fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {why}");
}
