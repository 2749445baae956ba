//! Claims on a device, as two bits a block.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use vdrecover_formats::num::{narrow, wide};

/// Smallest block: a sector.
const SMALLEST: u64 = 512;
/// Words of one plane in a chunk; a chunk is allocated when its first block is claimed.
const WORDS: usize = 4096;
/// Blocks in a chunk.
const CHUNK: u64 = (WORDS as u64) << 6;

/// Which blocks are claimed, and which by more than one: two bits a block, whatever the order and the number
/// of claims, so that any number of threads may claim at once with the same result.
///
/// 16 million scattered ranges cost 449 MiB in a tree of ranges and 8 MiB here. The block is the smallest
/// power of two, from 512 bytes on, with which all of the device fits the memory allowed.
#[derive(Debug)]
pub struct BlockMap {
    len: u64,
    shift: u32,
    chunks: Vec<OnceLock<Chunk>>,
}

#[derive(Debug)]
struct Chunk {
    claimed: Vec<AtomicU64>,
    shared: Vec<AtomicU64>,
}

/// Which of the two bits.
#[derive(Clone, Copy)]
enum Plane {
    Claimed,
    Shared,
}

impl BlockMap {
    /// For a device of `len` bytes, in at most about `memory` bytes.
    #[must_use]
    pub fn new(len: u64, memory: u64) -> Self {
        let blocks = memory.saturating_mul(4).max(CHUNK);
        let block = len.div_ceil(blocks).max(SMALLEST).checked_next_power_of_two().unwrap_or(1 << 63);
        let chunks = len.div_ceil(block).div_ceil(CHUNK);
        let chunks = (0..chunks).map(|_| OnceLock::new()).collect();
        Self { len, shift: block.trailing_zeros(), chunks }
    }

    /// Bytes a block: how exact the map is.
    #[must_use]
    pub fn block(&self) -> u64 {
        1 << self.shift
    }

    /// Claims every block that `range` touches. What was claimed before is shared from now on: two claims that
    /// meet inside a block share it too, so a shared block is a question for a second, exact look.
    pub fn claim(&self, range: Range<u64>) {
        let end = range.end.min(self.len);
        if range.start >= end {
            return;
        }
        let (mut block, last) = (range.start >> self.shift, (end - 1) >> self.shift);
        while block <= last {
            let word_end = block | 63;
            let upto = word_end.min(last);
            let count = upto - block + 1;
            let mask = (u64::MAX >> (64 - count)) << (block & 63);
            if let Some(slot) = self.chunks.get(narrow(block / CHUNK)) {
                let chunk = slot.get_or_init(Chunk::new);
                let word = narrow((block % CHUNK) >> 6);
                let before = chunk.claimed[word].fetch_or(mask, Ordering::Relaxed);
                if before & mask != 0 {
                    chunk.shared[word].fetch_or(before & mask, Ordering::Relaxed);
                }
            }
            block = upto + 1;
        }
    }

    /// Whether the block of byte `at` is claimed.
    #[must_use]
    pub fn is_claimed(&self, at: u64) -> bool {
        self.word(Plane::Claimed, at >> self.shift >> 6) >> ((at >> self.shift) & 63) & 1 == 1
    }

    /// Ranges that nothing claimed, ascending, in whole blocks; the last one ends with the device.
    pub fn unclaimed(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges(Plane::Claimed, false)
    }

    /// Ranges that something claimed, ascending, in whole blocks.
    pub fn claimed(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges(Plane::Claimed, true)
    }

    /// Ranges that were claimed more than once, ascending, in whole blocks.
    pub fn shared(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges(Plane::Shared, true)
    }

    /// Bytes in claimed blocks.
    #[must_use]
    pub fn claimed_bytes(&self) -> u64 {
        self.ranges(Plane::Claimed, true).map(|range| range.end - range.start).sum()
    }

    fn ranges(&self, plane: Plane, bit: bool) -> impl Iterator<Item = Range<u64>> + '_ {
        let blocks = self.len.div_ceil(self.block());
        let mut block = 0;
        std::iter::from_fn(move || {
            let start = self.find(plane, bit, block, blocks);
            let end = self.find(plane, !bit, start, blocks);
            block = end;
            let bytes = |block: u64| block.saturating_mul(self.block()).min(self.len);
            (start < blocks).then(|| bytes(start)..bytes(end))
        })
    }

    /// The first block from `from` on whose bit is `bit`; `blocks` where there is none.
    fn find(&self, plane: Plane, bit: bool, from: u64, blocks: u64) -> u64 {
        let mut block = from;
        while block < blocks {
            if bit && block.is_multiple_of(CHUNK) && self.chunk(block).is_none() {
                block = block.saturating_add(CHUNK);
                continue;
            }
            let word = self.word(plane, block >> 6);
            let word = if bit { word } else { !word } >> (block & 63);
            if word != 0 {
                return block.saturating_add(word.trailing_zeros().into()).min(blocks);
            }
            block = (block | 63) + 1;
        }
        blocks
    }

    fn chunk(&self, block: u64) -> Option<&Chunk> {
        self.chunks.get(narrow(block / CHUNK))?.get()
    }

    fn word(&self, plane: Plane, word: u64) -> u64 {
        let Some(chunk) = self.chunk(word << 6) else { return 0 };
        let words = match plane {
            Plane::Claimed => &chunk.claimed,
            Plane::Shared => &chunk.shared,
        };
        words[narrow(word % wide(WORDS))].load(Ordering::Relaxed)
    }
}

impl Chunk {
    fn new() -> Self {
        let plane = || (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        Self { claimed: plane(), shared: plane() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranges::RangeSet;

    #[test]
    fn agrees_with_exact_ranges_where_claims_are_aligned() {
        let map = BlockMap::new(1_000_000, 1 << 20);
        assert_eq!(map.block(), 512);
        let mut x = 7_u64;
        let mut claims = Vec::new();
        for _ in 0..300 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let start = (x >> 40) % 1950 * 512;
            claims.push(start..(start + (x >> 20) % 9 * 512).min(1_000_000));
        }
        for claim in &claims {
            map.claim(claim.clone());
        }
        let exact = RangeSet::build(claims.clone());
        assert_eq!(map.unclaimed().collect::<Vec<_>>(), exact.complement(1_000_000).as_slice());
        assert_eq!(map.shared().collect::<Vec<_>>(), RangeSet::shared(claims).as_slice());
        assert_eq!(map.claimed_bytes(), exact.total());
        assert!((0..1_000_000).step_by(512).all(|at| map.is_claimed(at) == exact.contains(at)));
    }

    #[test]
    fn rounds_claims_outward() {
        let map = BlockMap::new(10_000, 1 << 20);
        map.claim(1000..1100);
        map.claim(9_999..u64::MAX);
        assert_eq!(map.unclaimed().collect::<Vec<_>>(), [0..512, 1536..9728]);
        map.claim(5..5);
        assert!(!map.is_claimed(0));
    }

    #[test]
    fn memory_is_bounded_and_untouched_space_is_free() {
        let map = BlockMap::new(42 << 40, 64 << 20);
        assert_eq!(map.block(), 256 << 10);
        map.claim(1 << 40..(1 << 40) + 1);
        assert_eq!(map.chunks.iter().filter(|chunk| chunk.get().is_some()).count(), 1);
        let at = 1 << 40;
        assert_eq!(map.unclaimed().collect::<Vec<_>>(), [0..at, at + (256 << 10)..42 << 40]);
        assert_eq!(BlockMap::new(u64::MAX, 0).block(), 1 << 46);
        assert_eq!(BlockMap::new(0, 0).unclaimed().count(), 0);
    }

    #[test]
    fn threads_do_not_show() {
        let claims: Vec<_> = (0..4000_u64).map(|i| (i * 7919) % 900_000).map(|at| at..at + 3000).collect();
        let of = |threads: usize| {
            let map = BlockMap::new(1 << 20, 1 << 20);
            std::thread::scope(|scope| {
                for part in claims.chunks(claims.len().div_ceil(threads)) {
                    let map = &map;
                    scope.spawn(move || part.iter().for_each(|claim| map.claim(claim.clone())));
                }
            });
            (map.unclaimed().collect::<Vec<_>>(), map.shared().collect::<Vec<_>>())
        };
        assert_eq!(of(1), of(7));
    }
}
