//! Where the tables of a hosted extent lie, whatever its directory says.
//!
//! Observed in the extents of VMware, QEMU and VirtualBox that are not streams: each copy of the tables is a
//! directory, padded to a sector, with all its tables back to back behind it, the redundant copy first. So a lost
//! directory can be computed, and a directory is recognised by its numbers, which go up by the sectors of a table.

use super::hosted::Hosted;
use super::sparse::Shape;
use super::tally::Look;
use crate::entries::Entries;
use crate::num::round_up;
use byteorder::{ByteOrder, LittleEndian};

/// The tables of one copy, back to back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    directory: u64,
    first: u64,
    /// Bytes of a table.
    step: u64,
    count: u64,
}

impl Row {
    /// Where the tables of a directory at `directory` lie if it is laid out as all are.
    pub(super) fn behind(directory: u64, shape: &Shape) -> Self {
        let first = directory.saturating_add(round_up(shape.tables.saturating_mul(4), 512));
        Self { directory, first, step: 4_u64.checked_shl(shape.table_bits).unwrap_or(0), count: shape.tables }
    }

    /// Where the table behind the directory entry at `entry` lies.
    pub(super) fn table(&self, entry: u64) -> Option<u64> {
        let index = entry.checked_sub(self.directory)? >> 2;
        (index < self.count).then(|| self.first.saturating_add(index.saturating_mul(self.step)))
    }

    /// Where the last table ends.
    pub(super) fn end(&self) -> u64 {
        self.first.saturating_add(self.count.saturating_mul(self.step))
    }

    /// The row of a directory, if that is how the extent is laid out: most of its entries say so, or they say what
    /// can't be, and where the tables would lie is what only tables look like.
    pub(super) fn find(entries: &Entries, shape: &Shape, dialect: &Hosted) -> Option<Self> {
        const SAMPLES: u64 = 64;
        let file = entries.layer().len();
        let row = Self::behind(shape.directory, shape);
        if shape.tables == 0 || row.end() > file {
            return None;
        }
        let each = shape.tables.div_ceil(SAMPLES).max(1);
        let (mut asked, mut agree, mut tables, mut others, mut elsewhere) = (0_u64, 0_u64, 0_u64, 0_u64, 0_u64);
        let mut index = 0;
        while index < shape.tables {
            asked = asked.saturating_add(1);
            let at = shape.directory.saturating_add(index.saturating_mul(4));
            let said = entries.page(at).le32(at).map_or(0, |sector| u64::from(sector).saturating_mul(512));
            let here = row.table(at).unwrap_or_default();
            if said == here {
                agree = agree.saturating_add(1);
            } else {
                let look = Look::of(entries, here, dialect, shape);
                tables = tables.saturating_add(u64::from(look.odd == 0 && look.said > 0));
                others = others.saturating_add(u64::from(look.odd > 0));
                let named = said != 0 && said < file && {
                    let look = Look::of(entries, said, dialect, shape);
                    look.odd == 0 && look.said > 0
                };
                elsewhere = elsewhere.saturating_add(u64::from(named));
            }
            index = index.saturating_add(each);
        }
        let proven = tables > 0 && others.saturating_mul(4) <= tables && elsewhere == 0;
        (agree.saturating_mul(2) > asked || proven).then_some(row)
    }
}

/// A directory that was recognised by its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Directory {
    /// Where it lies.
    pub at: u64,
    /// Its entries.
    pub tables: u64,
}

impl Directory {
    /// Sectors of a table of 512 entries: no writer makes others.
    const STEP: u32 = 4;

    /// The directory at `at`, whose bytes and what follows them is `bytes`.
    pub(super) fn recognise(at: u64, bytes: &[u8]) -> Option<Self> {
        let mut numbers = bytes.chunks_exact(4).map(LittleEndian::read_u32);
        let first = numbers.next()?;
        let mut tables = 1_u64;
        let mut last = first;
        for number in numbers {
            if number != last.saturating_add(Self::STEP) {
                break;
            }
            last = number;
            tables = tables.saturating_add(1);
        }
        let own = at >> 9;
        let sectors = tables.saturating_mul(4).div_ceil(512);
        let used = usize::try_from(tables.saturating_mul(4)).ok()?;
        let padded = usize::try_from(sectors.saturating_mul(512)).ok()?;
        let padding = bytes.get(used..padded)?;
        let right = u64::from(first) == own.saturating_add(sectors) && padding.iter().all(|byte| *byte == 0);
        (right && at.is_multiple_of(512)).then_some(Self { at, tables })
    }

    /// Where its tables end, and the second copy starts.
    pub(super) fn end(&self) -> u64 {
        let directory = round_up(self.tables.saturating_mul(4), 512);
        let tables = self.tables.saturating_mul(u64::from(Self::STEP)).saturating_mul(512);
        self.at.saturating_add(directory).saturating_add(tables)
    }
}

/// What of two looks at copies of a table is believed: the one in which nothing is odd, if the other has that.
pub(super) fn judge(first: Look, second: Look) -> Option<bool> {
    match (first.odd, second.odd) {
        (0, 1..) => Some(true),
        (1.., 0) => Some(false),
        _ => None,
    }
}

/// Entries of directories that are not where their tables are, among the first million.
pub(super) fn guessed(entries: &Entries, shape: &Shape, dialect: &Hosted) -> u64 {
    const MOST: u64 = 1 << 20;
    let Some(row) = dialect.row else { return 0 };
    let mut count = 0_u64;
    for index in 0..shape.tables.min(MOST) {
        let at = shape.directory.saturating_add(index.saturating_mul(4));
        let said = entries.page(at).le32(at).ok().map(|sector| u64::from(sector).saturating_mul(512));
        count = count.saturating_add(u64::from(said != row.table(at)));
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(numbers: &[u32]) -> Vec<u8> {
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    #[test]
    fn a_directory_is_recognised_by_its_numbers() {
        let right = sector(&[22, 26, 30]);
        assert_eq!(Directory::recognise(21 * 512, &right), Some(Directory { at: 21 * 512, tables: 3 }));
        assert_eq!(Directory { at: 21 * 512, tables: 3 }.end(), (22 + 12) * 512);
        assert_eq!(Directory::recognise(21 * 512, &sector(&[22])), Some(Directory { at: 21 * 512, tables: 1 }));
        for (at, wrong) in [(20, &[22, 26][..]), (21, &[22, 27]), (21, &[0]), (21, &[26, 30])] {
            assert_eq!(Directory::recognise(at * 512, &sector(wrong)), None, "{wrong:?}");
        }
        let long: Vec<u32> = (0..200).map(|i| 23 + 4 * i).collect();
        assert_eq!(Directory::recognise(21 * 512, &sector(&long)).map(|it| it.tables), Some(200));
        assert_eq!(Directory::recognise(21 * 512, &sector(&long)[..512]), None, "its end is not seen");
    }
}
