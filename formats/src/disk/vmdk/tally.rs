//! What whole grain tables look like, and what all of them together leave out: a sparse extent has no checksums, but
//! its file is as long as its grains, each grain is named once, and no grain lies among the tables.

use super::sparse::{Dialect, Grain, Shape, Sparse, shl};
use crate::entries::Entries;
use crate::memo::Block;
use crate::num::wide;
use byteorder::{ByteOrder, LittleEndian};

/// One grain table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Entries that say anything.
    pub said: u64,
    /// Entries that name a grain.
    pub used: u64,
    /// Entries that say that a grain is zeros.
    pub zeros: u64,
    /// Entries that no writer makes, and those that name a grain that another one names too.
    pub odd: u64,
    /// The place of the last grain, 0 for none.
    pub highest: u64,
}

impl Look {
    /// Reads a table. What can't be read is lost by itself, and no sign of anything else.
    pub(super) fn of<D: Dialect>(entries: &Entries, table: u64, dialect: &D, shape: &Shape) -> Self {
        let mut look = Self::default();
        let mut places = Vec::new();
        let mut page = entries.page(table);
        for index in 0..shl(1, shape.table_bits) {
            let at = table.saturating_add(index.saturating_mul(D::TABLE_ENTRY));
            if at >= entries.layer().len() {
                break;
            }
            if !page.covers(at) {
                page = entries.page(at);
            }
            let Ok(grain) = dialect.grain(&page, at) else { continue };
            look.said = look.said.saturating_add(u64::from(grain != Grain::Parent));
            match grain {
                Grain::At(host) => {
                    look.used = look.used.saturating_add(1);
                    look.highest = look.highest.max(host);
                    if dialect.plausible(host, shape) {
                        places.push(host);
                    } else {
                        look.odd = look.odd.saturating_add(1);
                    }
                }
                Grain::Broken => look.odd = look.odd.saturating_add(1),
                Grain::Zero | Grain::Unmapped => look.zeros = look.zeros.saturating_add(1),
                Grain::Parent => {}
            }
        }
        let all = places.len();
        places.sort_unstable();
        places.dedup();
        look.odd = look.odd.saturating_add(wide(all.saturating_sub(places.len())));
        look
    }

    pub(super) fn into_block(self) -> Block {
        let mut bytes = vec![0; 40];
        LittleEndian::write_u64_into(&[self.said, self.used, self.zeros, self.odd, self.highest], &mut bytes);
        Block { bytes, ..Block::default() }
    }

    pub(super) fn from_block(block: &Block) -> Self {
        let mut fields = [0; 5];
        if let Some(bytes) = block.bytes.get(..40) {
            LittleEndian::read_u64_into(bytes, &mut fields);
        }
        let [said, used, zeros, odd, highest] = fields;
        Self { said, used, zeros, odd, highest }
    }
}

/// All tables of an extent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Tables that the directory names.
    pub tables: u64,
    /// Those of them that say nothing.
    pub silent: u64,
    /// Grains that they name.
    pub used: u64,
    /// Grains that they say are zeros.
    pub zeros: u64,
    /// The place of the last grain.
    pub highest: u64,
}

impl Totals {
    /// Entries that are counted at most: the tables of 4 TiB of 64 KiB grains, read in a fraction of a second.
    const MOST: u64 = 1 << 26;

    /// Counts. `None` where there is more than is worth it.
    pub(super) fn of<D: Dialect>(extent: &Sparse<D>) -> Option<Self> {
        let mut totals = Self::default();
        if extent.shape.tables > Self::MOST {
            return None;
        }
        for table in extent.named_tables() {
            totals.tables = totals.tables.saturating_add(1);
            if totals.tables > Self::MOST >> extent.shape.table_bits {
                return None;
            }
            let look = extent.look(table);
            totals.silent = totals.silent.saturating_add(u64::from(look.said == 0));
            totals.used = totals.used.saturating_add(look.used);
            totals.zeros = totals.zeros.saturating_add(look.zeros);
            totals.highest = totals.highest.max(look.highest);
        }
        Some(totals)
    }
}
