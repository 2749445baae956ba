//! What a case folder keeps.

use crate::progress::Progress;
use crate::source::Source;
use std::path::Path;
use vdrecover_formats::format::Clue;
use vdrecover_formats::{Bytes, Finding, Format};

/// What a sweep saw.
pub(super) struct Swept {
    pub(super) clues: Vec<(&'static Format, Vec<Clue>)>,
    pub(super) findings: Vec<Finding>,
}

pub(super) fn sweep(_: &Bytes, _: &Source, _: Option<&Path>, _: &Progress) -> Swept {
    Swept { clues: Vec::new(), findings: Vec::new() }
}
