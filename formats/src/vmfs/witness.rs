//! What the rest of a volume says of the blocks that a live file points to.
//!
//! | who says it | of what | how sure |
//! | --- | --- | --- |
//! | the bitmap of file blocks | the block is free: nobody should have it | real images |
//! | the bitmap of a resource file | the sub-block or pointer block is free | real images |
//! | the table of owners (VMFS6) | another file has the sub-block or pointer block | real images |
//! | whoever compared all files ([`crate::Tree::doubt`]) | another file, or a structure, is in the same place | |
//!
//! The first three are asked while a file is read, for exactly what is read: each is one look at a header that is kept
//! in memory. The last costs a look at all files, and counts once somebody took it. Where a bitmap can't be had,
//! nothing contradicts.

use super::address::{Address, FdAddress, Spot};
use super::owner;
use super::resource::Resource;
use super::volume::{Pools, Space, Volume};
use crate::layer::Trust;
use crate::tree::{Doubts, NodeId};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Who is asked about the blocks of live files.
#[derive(Debug)]
pub(super) struct Witness {
    space: Arc<Space>,
    pools: Arc<Pools>,
    /// File blocks; small ones on VMFS6.
    blocks: Option<Resource>,
    /// Large file blocks.
    large: Option<Resource>,
    doubts: OnceLock<Doubts>,
}

impl Witness {
    pub(super) fn new(volume: &Volume) -> Self {
        Self {
            space: Arc::clone(&volume.space),
            pools: Arc::clone(&volume.pools),
            blocks: volume.blocks().cloned(),
            large: volume.sfb.as_ref().and(volume.fbb.clone()),
            doubts: OnceLock::new(),
        }
    }

    /// Takes what a look at all files told. The first to tell is believed: all look at the same.
    pub(super) fn take(&self, doubts: Doubts) {
        let _ = self.doubts.set(doubts);
    }

    /// Whether all of a node is in doubt.
    pub(super) fn doubts(&self, user: FdAddress) -> bool {
        self.doubts.get().is_some_and(|doubts| doubts.nodes.contains(&NodeId(user.0.into())))
    }

    /// How far to believe that a live file has the bytes at `at` of the volume, and for how many of `len` that holds.
    pub(super) fn bytes(&self, at: u64, len: u64) -> (Trust, u64) {
        let (first, mut have) = self.one(at, len);
        while have < len {
            let (next, more) = self.one(at.saturating_add(have), len.saturating_sub(have));
            if next != first {
                break;
            }
            have = have.saturating_add(more);
        }
        (if first { Trust::Doubtful } else { Trust::Sound }, have.min(len))
    }

    /// Whether the bytes at `at` are in doubt, and for how many, at most `len` and at least one, that holds.
    fn one(&self, at: u64, len: u64) -> (bool, u64) {
        let mut len = len.max(1);
        if let Some(doubts) = self.doubts.get() {
            let next = doubts.ranges.get(doubts.ranges.partition_point(|range| range.end <= at));
            match next {
                Some(range) if range.start <= at => return (true, range.end.saturating_sub(at).min(len)),
                Some(range) => len = len.min(range.start.saturating_sub(at)),
                None => {}
            }
        }
        let (free, same) = self.free(at, len);
        (free, same.clamp(1, len))
    }

    /// Whether the bitmap has the block at `at` as free, and for how many of `len` bytes that holds.
    fn free(&self, at: u64, len: u64) -> (bool, u64) {
        let shift = self.space.header.file_shift;
        let size = 1_u64.checked_shl(shift).unwrap_or(1);
        let into = at & size.saturating_sub(1);
        let number = at.checked_shr(shift).unwrap_or(0);
        let Some((blocks, spot)) = self.blocks.as_ref().and_then(|blocks| Some((blocks, blocks.spot(number)?))) else {
            return (false, len);
        };
        let most = into.saturating_add(len).div_ceil(size);
        let bytes = |count: u64| count.saturating_mul(size).saturating_sub(into);
        let Some((free, count)) = blocks.alike(&self.space, spot, most) else {
            // Nothing tells of the rest of the cluster either.
            return (false, bytes(blocks.per_cluster.saturating_sub(spot.resource).max(1)));
        };
        (free && !self.is_whole(at), bytes(count))
    }

    /// Whether a large block is in use as a whole: the bits of its small ones say nothing then.
    fn is_whole(&self, at: u64) -> bool {
        let Some(large) = &self.large else { return false };
        let spot = at.checked_shr(self.space.header.large_shift).and_then(|number| large.spot(number));
        spot.is_some_and(|spot| large.in_use_whole(&self.space, spot).is_some())
    }

    /// How many blocks of a range of the volume its bitmap has as free, and the first of them.
    pub(super) fn free_blocks(&self, range: Range<u64>) -> Option<(u64, u64)> {
        let shift = self.space.header.file_shift;
        let (mut at, mut found): (u64, Option<(u64, u64)>) = (range.start, None);
        while at < range.end {
            let (free, len) = self.free(at, range.end.saturating_sub(at));
            let end = at.saturating_add(len.max(1)).min(range.end);
            if free {
                let first = at.checked_shr(shift)?;
                let last = end.saturating_sub(1).checked_shr(shift)?;
                let (count, _) = found.get_or_insert((0, first));
                *count = count.saturating_add(last.saturating_sub(first)).saturating_add(1);
            }
            at = end;
        }
        found
    }

    /// How far to believe that `user` has the sub-block or pointer block at `address`.
    pub(super) fn resource(&self, address: Address, user: FdAddress) -> Trust {
        let (pool, spot) = match address {
            Address::Sub(spot) => (&self.pools.sbc, spot),
            Address::Pointer(spot) => (&self.pools.pbc, spot),
            Address::Pointer2(spot) => (&self.pools.pb2, spot),
            _ => return Trust::Sound,
        };
        let agrees = pool.as_ref().is_none_or(|pool| self.agrees(pool, spot, user));
        if agrees { Trust::Sound } else { Trust::Doubtful }
    }

    fn agrees(&self, pool: &Resource, spot: Spot, user: FdAddress) -> bool {
        let Some((free, _)) = pool.is_free(&self.space, spot) else { return true };
        !free && (!pool.owned || owner::of(&self.space, pool, spot) == Some(user))
    }
}
