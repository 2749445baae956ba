//! A disk, or a volume of which the disk is not known, that is put together.

use super::signed;
use crate::guest::{Identity, Sort};
use crate::layer::Trust;
use crate::vmfs::pieces::{Piece, Source, lay};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A block of the volume that an anchor shows to be a block of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pin {
    pub(super) index: u64,
    pub(super) block: u64,
}

impl Pin {
    /// How far the block lies from where it would if the disk started at the volume's.
    pub(super) fn shift(self) -> i64 {
        signed(self.block).saturating_sub(signed(self.index))
    }
}

/// A disk, or a volume of which the disk is not known, that is put together.
pub(super) struct Candidate {
    pub(super) of: Identity,
    pub(super) sorts: BTreeSet<Sort>,
    pub(super) label: Vec<u8>,
    pub(super) pins: BTreeSet<Pin>,
    pub(super) anchors: usize,
    /// Bytes of the first blocks that lie before the first byte.
    pub(super) skew: u64,
    pub(super) len: Option<u64>,
    /// It is at least as long.
    pub(super) least: u64,
    /// One of several that claim the same places.
    pub(super) clone: bool,
    /// Some of it is joined by nothing but its names, and could be of a clone.
    pub(super) loose: bool,
    /// Leaves, and which block of the candidate their first slot is.
    pub(super) leaves: BTreeMap<usize, i64>,
    pub(super) pieces: Vec<Piece>,
}

pub(super) fn volume_ranges(candidate: &Candidate) -> impl Iterator<Item = Range<u64>> + '_ {
    candidate.pieces.iter().filter_map(|piece| match piece.source {
        Source::Volume(at) => Some(at..at.saturating_add(piece.len)),
        _ => None,
    })
}

/// Leaves out volumes that lie in a disk: they are found there.
pub(super) fn drop_nested(candidates: &mut Vec<Candidate>, block: u64) {
    let mut of_disks: Vec<Range<u64>> =
        candidates.iter().filter(|candidate| candidate.of.sort.is_disk()).flat_map(volume_ranges).collect();
    of_disks.sort_unstable_by_key(|range| range.start);
    let mut ends: Vec<(u64, u64)> = Vec::new();
    for range in of_disks {
        match ends.last_mut() {
            Some(last) if range.start <= last.1 => last.1 = last.1.max(range.end),
            _ => ends.push((range.start, range.end)),
        }
    }
    let covered = |number: u64| {
        let at = number.saturating_mul(block);
        let next = ends.partition_point(|range| range.1 <= at);
        ends.get(next).is_some_and(|range| range.0 <= at)
    };
    candidates.retain(|candidate| candidate.of.sort.is_disk() || !candidate.pins.iter().all(|pin| covered(pin.block)));
}

/// What two have is doubtful in both.
pub(super) fn doubt_shared(candidates: &mut [Candidate]) {
    let mut ranges: Vec<Range<u64>> = candidates.iter().flat_map(volume_ranges).collect();
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    let mut shared: Vec<Range<u64>> = Vec::new();
    let mut furthest = 0;
    for range in ranges {
        let end = range.end.min(furthest);
        if range.start < end {
            match shared.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(end),
                _ => shared.push(range.start..end),
            }
        }
        furthest = furthest.max(range.end);
    }
    if shared.is_empty() {
        return;
    }
    for candidate in candidates {
        let mut doubtful = Vec::new();
        for piece in &candidate.pieces {
            let Source::Volume(at) = piece.source else { continue };
            let end = at.saturating_add(piece.len);
            let first = shared.partition_point(|range| range.end <= at);
            for range in shared.iter().skip(first).take_while(|range| range.start < end) {
                let from = piece.at.saturating_add(range.start.saturating_sub(at));
                let upto = piece.at.saturating_add(range.end.min(end).saturating_sub(at));
                doubtful.extend(piece.cut(from, upto).map(|piece| Piece { trust: Trust::Doubtful, ..piece }));
            }
        }
        candidate.pieces = lay(&[doubtful, std::mem::take(&mut candidate.pieces)]);
    }
}
