//! Sectors that the device did not deliver.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{PoisonError, RwLock};

/// Most ranges that are remembered; a disk with more bad places than that is read sector by sector anyway.
const MOST: usize = 1 << 16;

/// What is known to be bad, as disjoint ranges of whole sectors. Bounded: what does not fit is tried again each
/// time that it is read, which gives the same answer and only costs time.
#[derive(Debug, Default)]
pub(super) struct BadRanges(RwLock<BTreeMap<u64, u64>>);

impl BadRanges {
    /// The first bad range that overlaps `range`, clipped to it.
    pub(super) fn first_in(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if known.is_empty() {
            return None;
        }
        let around = known.range(..=range.start).next_back().filter(|(_, end)| **end > range.start);
        let (start, end) = around.or_else(|| known.range(range.start..range.end).next())?;
        Some((*start).max(range.start)..(*end).min(range.end))
    }

    /// Remembers `range`, joined with what it touches.
    pub(super) fn insert(&self, range: Range<u64>) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Range { mut start, mut end } = range;
        while let Some((&s, &e)) = known.range(..=end).next_back() {
            if e < start {
                break;
            }
            known.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        if known.len() < MOST {
            known.insert(start, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::BadRanges;

    #[test]
    fn neighbours_join() {
        let bad = BadRanges::default();
        bad.insert(1024..1536);
        bad.insert(0..512);
        assert_eq!(bad.first_in(&(0..4096)), Some(0..512));
        assert_eq!(bad.first_in(&(512..1024)), None);
        bad.insert(512..1024);
        assert_eq!(bad.first_in(&(700..4096)), Some(700..1536));
        assert_eq!(bad.first_in(&(1536..4096)), None);
    }
}
