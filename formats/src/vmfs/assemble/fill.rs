//! What lies between the blocks of a disk that are known.

use super::bench::Bench;
use super::bond::Bonds;
use super::candidate::{Candidate, Pin};
use crate::layer::Trust;
use crate::vmfs::fragment::Fragments;
use crate::vmfs::pieces::{Piece, Source, lay};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

impl Bench<'_> {
    /// Makes the pieces.
    ///
    /// With `rivals`, more disks were deleted than are told apart, so that stretches which nothing but their names joins
    /// can be of two clones: all but the largest are doubtful.
    pub(super) fn fill(&mut self, candidates: &mut [Candidate], fragments: &Fragments, rivals: bool) {
        // Anchors of all, by block: one that says otherwise keeps a stretch from being filled. Volumes without a disk
        // may lie in one, and speak against it only if they are in several pieces themselves.
        let mut all: BTreeMap<u64, Vec<(usize, i64)>> = BTreeMap::new();
        for (i, candidate) in (0..).zip(candidates.iter()) {
            let shifts: BTreeSet<i64> = candidate.pins.iter().map(|pin| pin.shift()).collect();
            if candidate.of.sort.is_disk() || shifts.len() > 1 {
                for pin in &candidate.pins {
                    all.entry(pin.block).or_default().push((i, pin.shift()));
                }
            }
        }
        for (i, candidate) in (0..).zip(candidates.iter_mut()) {
            let mut bonds = Bonds::new(&candidate.pins);
            let mut mapped = Vec::new();
            for (leaf, base) in &candidate.leaves {
                let Some(leaf) = fragments.leaves.get(*leaf) else { continue };
                let start = u64::try_from(*base).unwrap_or(0);
                let covered = Pin { index: start, block: 0 }..Pin { index: start.saturating_add(self.fan), block: 0 };
                let shifts: Vec<i64> = candidate.pins.range(covered).map(|pin| pin.shift()).collect();
                for pair in shifts.windows(2) {
                    bonds.join(pair.first().copied(), pair.last().copied());
                }
                let pieces = Fragments::pieces(self.volume, leaf, start.saturating_mul(self.block));
                if !self.affords(pieces.len()) {
                    break;
                }
                mapped.push((shifts.first().copied(), pieces));
            }
            let mut pinned = Vec::new();
            let mut last: Option<Pin> = None;
            for pin in &candidate.pins {
                let mut stretch = Vec::new();
                self.stretch(pin.index, pin.block, 1, &mut stretch);
                if let Some(before) = last.replace(*pin).filter(|before| before.block < pin.block) {
                    let (index, block) = (before.index.saturating_add(1), before.block.saturating_add(1));
                    let mut inside = all.range(block..pin.block).flat_map(|(_, pins)| pins).peekable();
                    let count = pin.index.saturating_sub(index);
                    if before.shift() == pin.shift() {
                        if inside.all(|(of, shift)| *of == i && *shift == pin.shift()) {
                            let before = stretch.len();
                            self.stretch(index, block, count, &mut stretch);
                            if !self.affords(stretch.len().saturating_sub(before)) {
                                stretch.truncate(before);
                            }
                        }
                    } else if inside.peek().is_none() && self.skip(index, block..pin.block, count, &mut stretch) {
                        bonds.join(Some(before.shift()), Some(pin.shift()));
                    }
                }
                pinned.push((Some(pin.shift()), stretch));
            }
            let main = bonds.main(&candidate.pins);
            let mut trusted = |stretches: Vec<(Option<i64>, Vec<Piece>)>| -> Vec<Piece> {
                let mut trusted = Vec::new();
                for (shift, pieces) in stretches {
                    let loose = rivals && shift.is_some_and(|shift| bonds.root(shift) != main);
                    candidate.loose |= loose;
                    let trust = if loose { Trust::Doubtful } else { Trust::Inferred };
                    trusted.extend(pieces.into_iter().map(|piece| Piece { trust, ..piece }));
                }
                trusted
            };
            let (mapped, pinned) = (trusted(mapped), trusted(pinned));
            let end = candidate.pins.iter().map(|pin| pin.index.saturating_add(1).saturating_mul(self.block)).max();
            candidate.least = candidate.least.max(end.unwrap_or(0).saturating_sub(candidate.skew));
            let upto = candidate.len.map_or(u64::MAX, |len| len.saturating_add(candidate.skew));
            let pieces = lay(&[mapped, pinned]);
            let skew = candidate.skew;
            let moved = |piece: Piece| Piece { at: piece.at.saturating_sub(skew), ..piece };
            candidate.pieces = pieces.iter().filter_map(|piece| piece.cut(skew, upto)).map(moved).collect();
        }
    }

    /// Whether there is room for so many pieces more.
    pub(super) fn affords(&mut self, pieces: usize) -> bool {
        let left = self.left.checked_sub(pieces);
        if left.is_none() {
            self.cut.insert("pieces of disks");
        }
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }

    /// The free blocks of a stretch of the volume, if they are as many as are missing: those in between were somebody
    /// else's when the disk grew over them.
    pub(super) fn skip(&mut self, index: u64, blocks: Range<u64>, count: u64, pieces: &mut Vec<Piece>) -> bool {
        let (start, end) = (blocks.start.saturating_mul(self.block), blocks.end.saturating_mul(self.block));
        let first = self.free.partition_point(|range| range.end <= start);
        let inside = self.free.iter().skip(first).take_while(|range| range.start < end);
        let inside: Vec<Range<u64>> =
            inside.map(|range| range.start.max(start)..range.end.min(end)).take(self.left.saturating_add(1)).collect();
        let free: u64 = inside.iter().map(|range| range.end.saturating_sub(range.start)).sum();
        if free != count.saturating_mul(self.block) || !self.affords(inside.len()) {
            return false;
        }
        let mut at = index.saturating_mul(self.block);
        for range in inside {
            let len = range.end.saturating_sub(range.start);
            pieces.push(Piece { at, len, source: Source::Volume(range.start), trust: Trust::Inferred });
            at = at.saturating_add(len);
        }
        true
    }

    /// Blocks one behind the other, by whether they are free.
    pub(super) fn stretch(&self, index: u64, block: u64, count: u64, pieces: &mut Vec<Piece>) {
        let start = block.saturating_mul(self.block);
        let end = start.saturating_add(count.saturating_mul(self.block)).min(self.volume.lv().len());
        let to = |at: u64| index.saturating_mul(self.block).saturating_add(at.saturating_sub(start));
        let mut push = |from: u64, upto: u64, source: Source| {
            if from < upto {
                let len = upto.saturating_sub(from);
                pieces.push(Piece { at: to(from), len, source, trust: Trust::Inferred });
            }
        };
        let first = self.free.partition_point(|range| range.end <= start);
        let mut at = start;
        // One more than there is room for says that there is none.
        for range in self.free.iter().skip(first).take_while(|range| range.start < end).take(self.left.max(1)) {
            let from = range.start.max(start);
            push(at, from, Source::Taken(at));
            at = range.end.min(end);
            push(from, at, Source::Volume(from));
        }
        push(at, end, Source::Taken(at));
    }
}
