//! What a live volume has by now of the bytes that a dead file had.
//!
//! A file block belongs to whoever its bitmap says; a block of a resource file is shared by many, so that there the
//! bitmap of the resource decides: a sub-block that is free still holds what its last owner wrote, even though the
//! resource file that it lies in is alive. What no bitmap tells is nobody's.

use super::address::Spot;
use super::resource::{Part, Resource};
use super::volume::{Space, Volume};
use crate::layer::{Layer, Place};
use std::ops::Range;
use std::sync::Arc;

/// Pieces of resource files that are looked at, one file block each at worst: `.sbc.sf` of 64 TiB has 65536.
const PIECES: usize = 1 << 20;

/// The bitmaps of a live volume, asked by place in the logical volume.
#[derive(Debug)]
pub struct Heir {
    space: Arc<Space>,
    /// File blocks; small ones on VMFS6.
    blocks: Option<Resource>,
    /// Large file blocks.
    large: Option<Resource>,
    /// Where resource files with bodies lie: range of the volume, offset in the file, and which of `pools`.
    pieces: Vec<(Range<u64>, u64, usize)>,
    pools: Vec<Resource>,
    /// The resource files lie in more pieces: what lies in those counts as a block like any other.
    pub(super) cut: bool,
}

/// What the bitmaps say of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Where the bitmap lies that has it as used; `None` if it is free or nothing tells.
    pub by: Option<u64>,
    /// How many bytes from the place on this holds for.
    pub len: u64,
}

impl Heir {
    /// The heir of what lay where `volume` lies now.
    #[must_use]
    pub fn new(volume: &Volume) -> Self {
        let pools = [&volume.pools.sbc, &volume.pools.pbc, &volume.pools.pb2, &volume.fdc];
        let pools: Vec<Resource> = pools.into_iter().flatten().cloned().collect();
        let mut pieces = Vec::new();
        let (mut left, mut cut) = (PIECES, false);
        for (number, pool) in pools.iter().enumerate() {
            let len = pool.file.len().min(volume.lv().len());
            let mut at: u64 = 0;
            while at < len {
                let Some(less) = left.checked_sub(1) else {
                    cut = true;
                    break;
                };
                left = less;
                let run = pool.run(at, len.saturating_sub(at));
                if let Place::Below { offset, .. } = run.place {
                    pieces.push((offset..offset.saturating_add(run.len), at, number));
                }
                at = at.saturating_add(run.len.max(1));
            }
        }
        pieces.sort_unstable_by_key(|(range, at, number)| (range.start, *number, *at));
        let large = volume.sfb.as_ref().and(volume.fbb.clone());
        let blocks = volume.blocks().cloned();
        Self { space: Arc::clone(&volume.space), blocks, large, pieces, pools, cut }
    }

    /// The resource of a resource file that a place in the logical volume is in.
    #[must_use]
    pub fn resource(&self, at: u64) -> Option<(&Resource, Spot)> {
        let behind = self.pieces.partition_point(|(range, ..)| range.start <= at);
        let (range, file_at, number) = behind.checked_sub(1).and_then(|index| self.pieces.get(index))?;
        let pool = self.pools.get(*number).filter(|_| at < range.end)?;
        match pool.part(file_at.saturating_add(at.saturating_sub(range.start))).0 {
            Part::Body(spot) => Some((pool, spot)),
            Part::Frame | Part::Rest => None,
        }
    }

    /// The parts of a range of the logical volume in which no resource file lies.
    #[must_use]
    pub fn outside_of_resources(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut at = range.start;
        let first = self.pieces.partition_point(|(piece, ..)| piece.end <= range.start);
        let mut parts = Vec::new();
        for (piece, ..) in self.pieces.iter().skip(first).take_while(|(piece, ..)| piece.start < range.end) {
            if at < piece.start {
                parts.push(at..piece.start);
            }
            at = at.max(piece.end);
        }
        if at < range.end {
            parts.push(at..range.end);
        }
        parts
    }

    /// Who has the bytes at `at` of the logical volume, and for how many of `want` the answer is the same.
    #[must_use]
    pub fn at(&self, at: u64, want: u64) -> Holding {
        let first = self.one(at, want);
        let mut len = first.len.min(want);
        while len < want {
            let next = self.one(at.saturating_add(len), want.saturating_sub(len));
            if next.by != first.by {
                break;
            }
            len = len.saturating_add(next.len).min(want);
        }
        Holding { by: first.by, len }
    }

    fn one(&self, at: u64, want: u64) -> Holding {
        let behind = self.pieces.partition_point(|(range, ..)| range.start <= at);
        let piece = behind.checked_sub(1).and_then(|index| self.pieces.get(index));
        if let Some((range, file_at, number)) = piece.filter(|(range, ..)| at < range.end)
            && let Some(pool) = self.pools.get(*number)
        {
            let into = at.saturating_sub(range.start);
            let holding = self.in_pool(pool, file_at.saturating_add(into));
            return Holding { len: holding.len.min(range.end.saturating_sub(at)).max(1), ..holding };
        }
        let size = 1_u64.checked_shl(self.space.header.file_shift).unwrap_or(1);
        let len = size.saturating_sub(at & size.saturating_sub(1));
        // A block ends where a piece of a resource file begins.
        let next = self.pieces.get(behind).map_or(u64::MAX, |(range, ..)| range.start);
        let len = len.min(next.saturating_sub(at)).min(want).max(1);
        Holding { by: self.block(at), len }
    }

    fn block(&self, at: u64) -> Option<u64> {
        let blocks = self.blocks.as_ref()?;
        let number = at.checked_shr(self.space.header.file_shift)?;
        // A large block that is in use as a whole has none of its small ones in use.
        if let Some(large) = &self.large
            && let Some(whole) = large.spot(at.checked_shr(self.space.header.large_shift)?)
            && let Some(bitmap) = large.in_use_whole(&self.space, whole)
        {
            return Some(bitmap);
        }
        blocks.is_free(&self.space, blocks.spot(number)?).filter(|(free, _)| !free).map(|(_, bitmap)| bitmap)
    }

    fn in_pool(&self, pool: &Resource, at: u64) -> Holding {
        let (part, end) = pool.part(at);
        let by = match part {
            // Headers of the file and of its clusters are written when the volume is made.
            Part::Frame => pool.position(at),
            Part::Body(spot) => pool.is_free(&self.space, spot).filter(|(free, _)| !free).map(|(_, bitmap)| bitmap),
            Part::Rest => None,
        };
        Holding { by, len: end.saturating_sub(at).max(1) }
    }
}
