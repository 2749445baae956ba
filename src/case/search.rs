//! Searching the free space of a tree for what is left of files that nothing names any more.

use crate::progress::Progress;
use crate::ranges::RangeSet;
use crate::sweep::{SweepOptions, sweep};
use std::sync::Arc;
use vdrecover_formats::format::{Clue, Holds, Sweep, score};
use vdrecover_formats::link::Opened;
use vdrecover_formats::{Bytes, Error, Finding, Format, Layer, Memo, Tree, Trust};

/// Clues of one search, 32 bytes each: a device of 64 TiB that is full has 4 million stretches of 16 MiB to tell of.
const CLUES: usize = 1 << 22;

/// What a search found.
#[derive(Debug)]
pub struct Searched {
    /// What was put together; all of it are finds. Their parents are nodes of the tree that was searched.
    pub tree: Arc<dyn Tree>,
    /// What could not be looked at.
    pub findings: Vec<Finding>,
}

/// Searches what `tree` has as free, on all cores; what comes out does not depend on how many. Space that is a hole
/// is not read. `None` if the tree knows no such search. The range and clues of `options` are not used.
#[must_use]
pub fn search(tree: &dyn Tree, options: &SweepOptions, progress: &Progress) -> Option<Searched> {
    let search = tree.search()?;
    // To the sweep a search is a format like any other, of which only the look is used.
    let format = Format {
        name: "search",
        about: "free space",
        holds: Holds::Files,
        spec: "",
        magics: &[],
        probe: never,
        open: refuse,
        sweep: Some(Sweep { look: search.look, build: refuse_all }),
    };
    let ranges = Some(RangeSet::build(search.free.clone()));
    let options = SweepOptions { ranges, clues: CLUES, ..options.clone() };
    let swept = sweep(&*search.layer, &[&format], &options, progress);
    let mut findings = swept.findings;
    if swept.lost_bytes > 0 {
        let text = format!("{} bytes of free space could not be read and were not searched", swept.lost_bytes);
        findings.push(Finding::new("SEARCH-GAPS", 0..0, Trust::Inferred, text));
    }
    if let Some(at) = swept.stopped_at {
        let text = format!("the search of free space was stopped at {at:#x}");
        findings.push(Finding::new("SEARCH-STOPPED", at..at, Trust::Inferred, text));
    }
    let clues: Vec<Clue> = swept.clues.into_iter().flat_map(|(_, clues)| clues).collect();
    Some(Searched { tree: (search.build)(&clues), findings })
}

fn never(_: &dyn Layer) -> u8 {
    score::NONE
}

fn refuse(_: &Bytes, _: &Memo) -> Result<Opened, Error> {
    Err(Error::NotFound)
}

fn refuse_all(_: &Bytes, _: &Memo, _: &[Clue]) -> Result<Opened, Error> {
    Err(Error::NotFound)
}
