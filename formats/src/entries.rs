//! Entries of on-disk tables through the bounded cache, with damage confined to the entries that it hits.

use crate::layer::{Bytes, Loss, Trust, Why};
use crate::memo::{Block, Memo};
use crate::num::{narrow, wide};
use crate::read::read_block;
use byteorder::{BigEndian, ByteOrder, LittleEndian};
use std::sync::Arc;

/// Reads tables of a layer in pages of a bounded size, however large the tables are.
#[derive(Clone, Debug)]
pub struct Entries {
    layer: Bytes,
    memo: Memo,
}

/// What a good page holds: 8,192 entries of 8 bytes.
const PAGE: u64 = 64 << 10;
/// Around damage, pages shrink to the sector and then to the largest entry of any format, so that an unreadable
/// sector costs its own entries only.
const SIZES: [u64; 3] = [PAGE, 512, FINEST];
const FINEST: u64 = 16;

impl Entries {
    /// Tables of `layer`; the pages live in `memo`, which nothing else may use.
    #[must_use]
    pub fn new(layer: Bytes, memo: Memo) -> Self {
        Self { layer, memo }
    }

    /// The layer that holds the tables.
    #[must_use]
    pub fn layer(&self) -> &Bytes {
        &self.layer
    }

    /// The page around `at`. Pages are aligned to their size in the layer.
    #[must_use]
    pub fn page(&self, at: u64) -> Page {
        let mut page = None;
        for (level, size) in SIZES.into_iter().enumerate() {
            let start = at & !size.saturating_sub(1);
            // Page starts are multiples of 16: the level fits beside them in the key.
            let block = self.memo.get(start | wide(level), || {
                let len = self.layer.len().saturating_sub(start).min(size);
                read_block(&*self.layer, start, narrow(len))
            });
            let whole = block.fault.is_none();
            page = Some(Page { start, size, block });
            if whole {
                break;
            }
        }
        // `SIZES` is not empty; the lost page only satisfies the type.
        page.unwrap_or_else(|| Page { start: at, size: 0, block: Arc::new(Block::default()) })
    }
}

/// Some entries of a table.
#[derive(Clone, Debug)]
pub struct Page {
    start: u64,
    size: u64,
    block: Arc<Block>,
}

impl Page {
    /// Whether the page has the place `at`, be it readable or not.
    #[must_use]
    pub fn covers(&self, at: u64) -> bool {
        at.checked_sub(self.start).is_some_and(|into| into < self.size)
    }

    /// How far to believe what it holds.
    #[must_use]
    pub fn trust(&self) -> Trust {
        self.block.trust
    }

    /// The bytes at `at`. What is not there is a damaged table.
    pub fn bytes(&self, at: u64, len: usize) -> Result<&[u8], Loss> {
        let from = narrow(at.saturating_sub(self.start));
        let to = from.saturating_add(len);
        self.block.good().get(from..to).ok_or(Loss { why: Why::Unmapped, at })
    }

    /// The big-endian entry at `at`.
    pub fn be64(&self, at: u64) -> Result<u64, Loss> {
        self.bytes(at, 8).map(BigEndian::read_u64)
    }

    /// The little-endian entry at `at`.
    pub fn le64(&self, at: u64) -> Result<u64, Loss> {
        self.bytes(at, 8).map(LittleEndian::read_u64)
    }

    /// The big-endian entry of four bytes at `at`.
    pub fn be32(&self, at: u64) -> Result<u32, Loss> {
        self.bytes(at, 4).map(BigEndian::read_u32)
    }

    /// The little-endian entry of four bytes at `at`.
    pub fn le32(&self, at: u64) -> Result<u32, Loss> {
        self.bytes(at, 4).map(LittleEndian::read_u32)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::single_range_in_vec_init, reason = "tests")]
    use super::*;
    use crate::adapt::{Damaged, Memory};
    use crate::memo::Pool;

    #[test]
    fn damage_costs_the_entries_that_it_hits() {
        let bytes: Vec<u8> = (0..16_384_u64).flat_map(u64::to_le_bytes).collect();
        let layer = Damaged::new(Arc::new(Memory::new(bytes)), vec![70_000..70_001], Why::Unreadable);
        let entries = Entries::new(Arc::new(layer), Pool::new(1 << 20).share());
        for i in 0..16_384_u64 {
            let at = i * 8;
            let page = entries.page(at);
            assert!(page.covers(at));
            // Damage is rounded to 16 bytes: nothing that reads devices is finer than a sector.
            let hit = (70_000..70_016).contains(&at);
            assert_eq!(page.le64(at), if hit { Err(Loss { why: Why::Unmapped, at }) } else { Ok(i) });
        }
        assert!(entries.page(131_072).le64(131_072).is_err(), "behind the end");
    }
}
