//! What an export could not get.

use std::ops::Range;
use vdrecover_formats::{Gap, Trust};

/// Gaps that are kept one by one, 32 bytes each. A stripe set of 42 TiB without one member has 176 million.
pub(crate) const KEPT: usize = 1 << 20;

/// Gaps in order, merged where they touch, bounded in number, with exact sums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// The first [`KEPT`] gaps.
    pub(crate) gaps: Vec<Gap>,
    /// All gaps.
    pub(crate) count: u64,
    /// Bytes in them.
    pub(crate) bytes: u64,
    /// Where what is not in `gaps` starts.
    pub(crate) cut: Option<u64>,
    /// The gap met last.
    pub(crate) end: Option<Gap>,
    /// The worst met.
    pub(crate) trust: Trust,
}

impl Losses {
    /// The next gap, which lies behind all before.
    pub(crate) fn push(&mut self, gap: &Gap) {
        let Range { start, end } = gap.range;
        self.bytes = self.bytes.saturating_add(end.saturating_sub(start));
        let joined = self.end.as_ref().is_some_and(|last| last.range.end == start && last.loss.why == gap.loss.why);
        self.end = Some(gap.clone());
        match self.gaps.last_mut() {
            Some(last) if joined && self.cut.is_none() => last.range.end = end,
            _ if joined => {}
            _ => {
                self.count = self.count.saturating_add(1);
                if self.gaps.len() < KEPT {
                    self.gaps.push(gap.clone());
                } else {
                    self.cut.get_or_insert(start);
                }
            }
        }
    }
}
