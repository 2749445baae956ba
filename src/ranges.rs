//! Sets of bytes: exact ranges while they are few, bits a block when the input decides how many there are.

mod blocks;

pub use blocks::BlockMap;

use std::ops::Range;

/// Half-open ranges, ascending, neither touching nor overlapping. 16 bytes a range.
///
/// For what is counted in thousands: gaps, volumes, the unclaimed space of a device. What an image can blow
/// up to millions of scattered ranges goes into a [`BlockMap`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet(Vec<Range<u64>>);

impl RangeSet {
    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// `0..len`.
    #[must_use]
    pub fn all(len: u64) -> Self {
        Self(std::iter::once(0..len).filter(|range| range.end > 0).collect())
    }

    /// All of `ranges`, which may come in any order, overlap and be empty: one sort instead of many inserts.
    #[must_use]
    pub fn build(mut ranges: Vec<Range<u64>>) -> Self {
        ranges.retain(|range| range.start < range.end);
        ranges.sort_unstable_by_key(|range| (range.start, range.end));
        ranges.dedup_by(|next, range| {
            let touches = next.start <= range.end;
            if touches {
                range.end = range.end.max(next.end);
            }
            touches
        });
        Self(ranges)
    }

    /// What lies in two or more of `ranges`.
    #[must_use]
    pub fn shared(mut ranges: Vec<Range<u64>>) -> Self {
        ranges.retain(|range| range.start < range.end);
        ranges.sort_unstable_by_key(|range| (range.start, range.end));
        let mut furthest = 0;
        let mut twice = Vec::new();
        for range in ranges {
            twice.push(range.start..range.end.min(furthest));
            furthest = furthest.max(range.end);
        }
        Self::build(twice)
    }

    /// Adds `range`. At the end it costs nothing, elsewhere the ranges behind it are moved.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        let first = self.0.partition_point(|have| have.end < range.start);
        let behind = self.0.partition_point(|have| have.start <= range.end);
        let touched = &self.0[first..behind];
        let start = touched.first().map_or(range.start, |have| have.start.min(range.start));
        let end = touched.last().map_or(range.end, |have| have.end.max(range.end));
        self.0.splice(first..behind, std::iter::once(start..end));
    }

    /// What is in this set or in the other.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::build(self.0.iter().chain(&other.0).cloned().collect())
    }

    /// What is in both.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        let mut both = Vec::new();
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            let range = x.start.max(y.start)..x.end.min(y.end);
            if range.start < range.end {
                both.push(range);
            }
            if x.end <= y.end {
                a.next()
            } else {
                b.next()
            };
        }
        Self(both)
    }

    /// What of `0..len` is not in the set.
    #[must_use]
    pub fn complement(&self, len: u64) -> Self {
        let mut rest = Vec::new();
        let mut at = 0;
        for range in self.0.iter().take_while(|range| range.start < len) {
            if at < range.start {
                rest.push(at..range.start);
            }
            at = range.end;
        }
        if at < len {
            rest.push(at..len);
        }
        Self(rest)
    }

    /// Whether the byte `at` is in it.
    #[must_use]
    pub fn contains(&self, at: u64) -> bool {
        let next = self.0.partition_point(|range| range.end <= at);
        self.0.get(next).is_some_and(|range| range.start <= at)
    }

    /// Whether any byte of `range` is in it.
    #[must_use]
    pub fn touches(&self, range: &Range<u64>) -> bool {
        let next = self.0.partition_point(|have| have.end <= range.start);
        range.start < range.end && self.0.get(next).is_some_and(|have| have.start < range.end)
    }

    /// Bytes in it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> std::slice::Iter<'_, Range<u64>> {
        self.0.iter()
    }

    /// The ranges, ascending.
    #[must_use]
    pub fn as_slice(&self) -> &[Range<u64>] {
        &self.0
    }

    /// Number of ranges.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no byte in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Range<u64>> for RangeSet {
    fn from_iter<T: IntoIterator<Item = Range<u64>>>(ranges: T) -> Self {
        Self::build(ranges.into_iter().collect())
    }
}

impl<'a> IntoIterator for &'a RangeSet {
    type Item = &'a Range<u64>;
    type IntoIter = std::slice::Iter<'a, Range<u64>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "tests: sets of one range")]
    use super::*;

    fn set(ranges: &[Range<u64>]) -> RangeSet {
        ranges.iter().cloned().collect()
    }

    /// Fixed pseudo-random ranges.
    fn some(seed: u64, count: usize) -> Vec<Range<u64>> {
        let mut x = seed;
        let mut next = move || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (x >> 33) % 200
        };
        (0..count).map(|_| next()).map(|start| start..start + start % 7).collect()
    }

    #[test]
    fn insert_merges_neighbours() {
        let mut all = RangeSet::new();
        all.insert(10..20);
        all.insert(30..40);
        all.insert(5..5);
        assert_eq!(all.as_slice(), [10..20, 30..40]);
        all.insert(20..30);
        assert_eq!(all.as_slice(), [10..40]);
        all.insert(0..100);
        assert_eq!((all.as_slice(), all.total(), all.len()), (&[0..100][..], 100, 1));
    }

    #[test]
    fn agrees_with_a_set_of_bytes() {
        for seed in 0..50 {
            let (a, b) = (some(seed, 12), some(seed + 1000, 9));
            let mut one_by_one = RangeSet::new();
            for range in &a {
                one_by_one.insert(range.clone());
            }
            let (left, right) = (RangeSet::build(a.clone()), RangeSet::build(b.clone()));
            assert_eq!(one_by_one, left);
            let shared = RangeSet::shared(a.clone());
            let union = left.union(&right);
            let both = left.intersect(&right);
            let rest = left.complement(150);
            for at in 0..220 {
                let count = a.iter().filter(|range| range.contains(&at)).count();
                let in_b = b.iter().any(|range| range.contains(&at));
                assert_eq!(left.contains(at), count > 0);
                assert_eq!(left.touches(&(at..at + 1)), count > 0);
                assert_eq!(shared.contains(at), count > 1);
                assert_eq!(union.contains(at), count > 0 || in_b);
                assert_eq!(both.contains(at), count > 0 && in_b);
                assert_eq!(rest.contains(at), count == 0 && at < 150);
            }
        }
    }

    #[test]
    fn complement_of_nothing_and_of_all() {
        assert_eq!(set(&[]).complement(9).as_slice(), [0..9]);
        assert!(set(&[0..9]).complement(9).is_empty());
        assert!(set(&[]).complement(0).is_empty());
        assert_eq!(set(&[5..u64::MAX]).complement(u64::MAX).as_slice(), [0..5]);
    }
}
