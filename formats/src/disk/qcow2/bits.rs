//! A bit for each cluster of a file.

use crate::num::{narrow, wide};
use std::ops::Range;

/// As many bits as a file has clusters. The caller has bounded their number.
#[derive(Clone, Debug, Default)]
pub(super) struct Bits {
    words: Vec<u64>,
    len: u64,
}

impl Bits {
    pub(super) fn new(len: u64) -> Self {
        Self { words: vec![0; narrow(len.div_ceil(64))], len }
    }

    fn word(n: u64) -> (usize, u64) {
        (narrow(n >> 6), 1_u64.checked_shl(u32::try_from(n & 63).unwrap_or(0)).unwrap_or(0))
    }

    pub(super) fn has(&self, n: u64) -> bool {
        let (word, bit) = Self::word(n);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Sets a bit. Whether it was set before. What lies behind the last bit is ignored.
    pub(super) fn set(&mut self, n: u64) -> bool {
        if n >= self.len {
            return false;
        }
        let (word, bit) = Self::word(n);
        let Some(word) = self.words.get_mut(word) else { return false };
        let before = *word & bit != 0;
        *word |= bit;
        before
    }

    pub(super) fn set_all(&mut self, range: Range<u64>) {
        for n in range.start..range.end.min(self.len) {
            self.set(n);
        }
    }

    /// The bits of `self` that are in none of `others`.
    pub(super) fn without(mut self, others: &[&Self]) -> Self {
        for other in others {
            for (word, other) in self.words.iter_mut().zip(&other.words) {
                *word &= !other;
            }
        }
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    pub(super) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).fold(0, u64::saturating_add)
    }

    /// The bits of `range` that are set, ascending.
    pub(super) fn ones(&self, range: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        let end = range.end.min(self.len);
        let first = narrow(range.start >> 6);
        let words = self.words.iter().enumerate().skip(first).take_while(move |(i, _)| wide(*i) << 6 < end);
        words.filter(|(_, word)| **word != 0).flat_map(move |(i, word)| {
            let word = *word;
            (0..64_u64)
                .filter(move |bit| word >> bit & 1 != 0)
                .map(move |bit| (wide(i) << 6).saturating_add(bit))
                .filter(move |n| *n >= range.start && *n < end)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn bits_of(len: u64, bit: u64) -> Bits {
        let mut bits = Bits::new(len);
        bits.set(bit);
        bits
    }

    #[test]
    fn bits_are_kept_and_listed() {
        let mut bits = Bits::new(130);
        assert!(!bits.set(0) && bits.set(0) && !bits.set(129) && !bits.set(130));
        bits.set_all(63..66);
        assert_eq!(bits.ones(0..999).collect::<Vec<_>>(), [0, 63, 64, 65, 129]);
        assert_eq!(bits.ones(64..129).collect::<Vec<_>>(), [64, 65]);
        assert_eq!((bits.count(), bits.has(64), bits.has(66), bits.has(1 << 40)), (5, true, false, false));
        let mut other = Bits::new(130);
        other.set_all(1..130);
        let rest = bits.without(&[&other]);
        assert_eq!(rest.ones(0..130).collect::<Vec<_>>(), [0]);
        assert!(!rest.is_empty() && rest.without(&[&bits_of(130, 0)]).is_empty());
    }
}
