//! The bytes that a chain of pages maps, as a layer.

use super::is_free;
use crate::adapt::below;
use crate::layer::{Layer, Place, Run, Trust, Why};
use crate::memo::Block;
use crate::num::{narrow, wide};
use crate::read::read_block;
use crate::vmfs::page::Pointer;
use crate::vmfs::volume::Volume;
use byteorder::{ByteOrder, LittleEndian};
use std::fmt;
use std::sync::Arc;

/// A file of which only pages of pointers are left. A disk can have millions of blocks: its pages are read when they
/// are needed, and lie in the cache.
pub(super) struct Chained {
    volume: Volume,
    /// Which page maps which part: numbers, ascending, and where the pages lie in the volume.
    pages: Vec<(u64, u64)>,
    len: u64,
    /// What would have known what no page maps, in the volume.
    why_at: u64,
}

impl fmt::Debug for Chained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chained({} bytes, {} pages)", self.len, self.pages.len())
    }
}

/// Where one slot leads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Hole,
    Kept(u64),
    Taken(u64),
    Lost,
}

impl Chained {
    pub(super) fn new(volume: Volume, mut pages: Vec<(u64, u64)>, len: u64, why_at: u64) -> Self {
        pages.sort_unstable();
        pages.dedup_by_key(|(number, _)| *number);
        Self { volume, pages, len, why_at }
    }

    fn page(&self, at: u64) -> Arc<Block> {
        let space = &self.volume.space;
        // Not the share of tables: those may have been read through a resource file that ends within.
        space.pages.get(at, || read_block(&*space.lv, at, narrow(space.header.table_size())))
    }

    fn slot(&self, page: &Block, slot: u64) -> Slot {
        let header = &self.volume.space.header;
        let width = header.width.bytes();
        let start = narrow(slot.saturating_mul(width));
        let Some(raw) = page.good().get(start..start.saturating_add(narrow(width))) else { return Slot::Lost };
        let raw = LittleEndian::read_uint(raw, narrow(width));
        if raw == 0 {
            return Slot::Hole;
        }
        match Pointer::of(header, self.volume.lv().len(), slot, raw) {
            None => Slot::Lost,
            Some(Pointer { zero: true, .. }) => Slot::Hole,
            Some(Pointer { at, .. }) if is_free(&self.volume, at) == Some(false) => Slot::Taken(at),
            Some(Pointer { at, .. }) => Slot::Kept(at),
        }
    }
}

impl Layer for Chained {
    fn len(&self) -> u64 {
        self.len
    }

    fn about(&self) -> String {
        "VMFS blocks put together".into()
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let header = &self.volume.space.header;
        let block = 1_u64.unbounded_shl(header.file_shift).max(1);
        let span = block.unbounded_shl(header.fan_shift).max(1);
        let number = at.checked_div(span).unwrap_or(0);
        let inferred = |run: Run<'static>| Run { trust: Trust::Inferred, ..run };
        let next = self.pages.partition_point(|page| page.0 < number);
        let Some((_, page_at)) = self.pages.get(next).filter(|page| page.0 == number) else {
            let end = self.pages.get(next).map_or(self.len, |page| page.0.saturating_mul(span));
            return inferred(Run::lost(want.min(end.saturating_sub(at)).max(1), Why::Unmapped, self.why_at));
        };
        let page = self.page(*page_at);
        let into = at.checked_rem(span).unwrap_or(0);
        let first = into.checked_div(block).unwrap_or(0);
        let skip = into.checked_rem(block).unwrap_or(0);
        let slots = wide(page.bytes.len()).checked_div(header.width.bytes()).unwrap_or(0);
        let found = self.slot(&page, first);
        let mut len = block.saturating_sub(skip).min(want);
        let mut slot = first.saturating_add(1);
        while len < want && slot < slots {
            let behind = slot.saturating_sub(first).saturating_mul(block);
            let goes_on = match (found, self.slot(&page, slot)) {
                (Slot::Kept(at), Slot::Kept(next)) | (Slot::Taken(at), Slot::Taken(next)) => {
                    at.checked_add(behind) == Some(next)
                }
                (Slot::Hole, Slot::Hole) | (Slot::Lost, Slot::Lost) => true,
                _ => false,
            };
            if !goes_on {
                break;
            }
            len = len.saturating_add(block).min(want);
            slot = slot.saturating_add(1);
        }
        match found {
            Slot::Kept(at) => {
                Run { trust: Trust::Inferred, ..below(&*self.volume.space.lv, at.saturating_add(skip), len) }
            }
            Slot::Taken(at) => inferred(Run::lost(len, Why::Overwritten, at.saturating_add(skip))),
            Slot::Hole => inferred(Run::sound(len, Place::Hole)),
            Slot::Lost => inferred(Run::lost(len, Why::Unmapped, *page_at)),
        }
    }
}
