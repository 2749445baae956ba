//! L2 entries: "Cluster mapping" and "Extended L2 Entries" of the specification.

use crate::blocks::mask;
use crate::layer::Why;
use byteorder::{BigEndian, ByteOrder};

/// Bits 9 to 55: where a table or cluster lies in the file.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: the refcount is exactly one.
pub(super) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Subclusters of a cluster with extended L2 entries.
pub(super) const SUBCLUSTERS: u32 = 32;

/// What an entry of an L1 table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// Nothing that it would map was ever written.
    None,
    /// Where the L2 table lies.
    At(u64),
    /// The entry can't be right.
    Broken,
}

/// What the entries of one image may say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dialect {
    pub cluster_bits: u32,
    /// Version 3 has the zero bit.
    pub zero_bit: bool,
    /// 16-byte entries with a bitmap of subclusters.
    pub extended: bool,
    /// Offset 0 is a place: the data file has no header.
    pub data_file: bool,
}

/// Where a cluster, or a subcluster, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spot {
    /// In the backing file, or never written.
    Unallocated,
    /// Zeros.
    Zero,
    /// From here on in the data file, one to one.
    Data(u64),
    /// A compressed cluster.
    Packed { at: u64, len: u64 },
    /// The entry can't be right.
    Broken(Why),
}

/// What an L2 entry takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The cluster was never written.
    Nothing,
    /// It is zeros and has no place.
    Zero,
    /// This cluster of the file.
    Cluster(u64),
    /// A place in the data file.
    Elsewhere,
    /// Bytes of the file that a compressed cluster has.
    Packed { at: u64, len: u64 },
    /// The entry can't be right.
    Broken,
}

impl Dialect {
    /// Bytes of an entry.
    pub(super) fn entry_len(self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// log2 of the bytes that share one answer: a cluster or a subcluster.
    pub(super) fn grain_bits(self) -> u32 {
        if self.extended { self.cluster_bits.saturating_sub(5) } else { self.cluster_bits }
    }

    /// log2 of the entries of a table.
    pub(super) fn l2_bits(self) -> u32 {
        self.cluster_bits.saturating_sub(if self.extended { 4 } else { 3 })
    }

    /// log2 of the guest bytes that an L1 entry maps.
    pub(super) fn span_bits(self) -> u32 {
        self.cluster_bits.saturating_add(self.l2_bits())
    }

    /// What an L1 entry says. The specification: bits 0 to 8 and 56 to 62 are reserved.
    pub(super) fn table(self, entry: u64) -> Table {
        let table = entry & OFFSET;
        let reserved = entry & !(OFFSET | COPIED);
        match (table, reserved) {
            (0, 0) => Table::None,
            (_, 0) if table & mask(self.cluster_bits) == 0 => Table::At(table),
            _ => Table::Broken,
        }
    }

    /// Whether these bytes of an entry could be one of a file of `len` bytes.
    pub(super) fn can_be(self, bytes: &[u8], len: u64) -> bool {
        let word = |at: usize| bytes.get(at..at.saturating_add(8)).map_or(0, BigEndian::read_u64);
        match self.taken(word(0), if self.extended { word(8) } else { 0 }) {
            Taken::Nothing | Taken::Zero => true,
            Taken::Cluster(host) => host < len,
            Taken::Packed { at, .. } => at < len,
            Taken::Elsewhere | Taken::Broken => false,
        }
    }

    /// What of the file an entry takes, whatever it says of its zeros.
    pub(super) fn taken(self, entry: u64, bitmap: u64) -> Taken {
        if entry & COMPRESSED != 0 {
            return match self.packed(entry) {
                Spot::Packed { at, len } => Taken::Packed { at, len },
                _ => Taken::Broken,
            };
        }
        let flag = if self.zero_bit && !self.extended { ZERO } else { 0 };
        let (allocated, zeros) = (bitmap & 0xFFFF_FFFF, bitmap >> SUBCLUSTERS);
        let host = entry & OFFSET;
        let has_place = host != 0 || (self.data_file && entry & COPIED != 0);
        if entry & !(OFFSET | COPIED | flag) != 0
            || host & mask(self.cluster_bits) != 0
            || (self.extended && (allocated & zeros != 0 || (allocated != 0 && !has_place)))
        {
            return Taken::Broken;
        }
        match host {
            _ if self.data_file && has_place => Taken::Elsewhere,
            0 if entry & ZERO != 0 || zeros != 0 => Taken::Zero,
            0 => Taken::Nothing,
            host => Taken::Cluster(host),
        }
    }

    /// What `entry` and its `bitmap` say of subcluster `sub`, which is 0 without extended entries.
    pub(super) fn spot(self, entry: u64, bitmap: u64, sub: u32) -> Spot {
        if entry & COMPRESSED != 0 {
            return self.packed(entry);
        }
        let cluster_mask = mask(self.cluster_bits);
        let host = entry & OFFSET;
        let zero_bit = self.zero_bit && !self.extended;
        let reserved = entry & !(OFFSET | COPIED | if zero_bit { ZERO } else { 0 });
        if reserved != 0 || host & cluster_mask != 0 {
            return Spot::Broken(Why::Unmapped);
        }
        if zero_bit && entry & ZERO != 0 {
            return Spot::Zero;
        }
        let has_place = host != 0 || (self.data_file && entry & COPIED != 0);
        if !self.extended {
            return if has_place { Spot::Data(host) } else { Spot::Unallocated };
        }
        let bit = |n: u32| bitmap.checked_shr(n).unwrap_or(0) & 1 != 0;
        match (bit(sub), bit(sub.saturating_add(SUBCLUSTERS))) {
            (true, true) => Spot::Broken(Why::Unmapped),
            // An allocated subcluster of a cluster without a place contradicts itself.
            (true, false) if !has_place => Spot::Broken(Why::Unmapped),
            (true, false) => {
                let into = u64::from(sub).checked_shl(self.grain_bits()).unwrap_or(0);
                Spot::Data(host.saturating_add(into))
            }
            (false, true) => Spot::Zero,
            (false, false) => Spot::Unallocated,
        }
    }

    /// "Compressed Clusters Descriptor": the low `x` bits are a byte offset, those above it, up to bit 61, the
    /// number of further sectors.
    fn packed(self, entry: u64) -> Spot {
        if self.data_file || entry & COPIED != 0 {
            return Spot::Broken(Why::Unmapped);
        }
        let x = 62_u32.saturating_sub(self.cluster_bits.saturating_sub(8));
        let at = entry & !u64::MAX.checked_shl(x).unwrap_or(0);
        let sectors = (entry & !(COPIED | COMPRESSED)).checked_shr(x).unwrap_or(0);
        let len = sectors.saturating_add(1).saturating_mul(512).saturating_sub(at & 511);
        Spot::Packed { at, len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V3: Dialect = Dialect { cluster_bits: 16, zero_bit: true, extended: false, data_file: false };

    #[test]
    fn standard_entries() {
        let cases = [
            (0, Spot::Unallocated),
            (COPIED, Spot::Unallocated),
            (1, Spot::Zero),
            (COPIED | 0x50001, Spot::Zero),
            (COPIED | 0x50000, Spot::Data(0x50000)),
            (0x50000, Spot::Data(0x50000)),
            (COPIED | 0x50200, Spot::Broken(Why::Unmapped)),
            (COPIED | 0x50002, Spot::Broken(Why::Unmapped)),
            (1 << 56, Spot::Broken(Why::Unmapped)),
            (1 << 61, Spot::Broken(Why::Unmapped)),
            (COMPRESSED | 0x1_2345, Spot::Packed { at: 0x1_2345, len: 512 - 0x145 }),
            (COMPRESSED | 3 << 54 | 0x600, Spot::Packed { at: 0x600, len: 2048 }),
            (COMPRESSED | COPIED | 0x600, Spot::Broken(Why::Unmapped)),
        ];
        for (entry, spot) in cases {
            assert_eq!(V3.spot(entry, 0, 0), spot, "{entry:#x}");
        }
        let v2 = Dialect { zero_bit: false, ..V3 };
        assert_eq!(v2.spot(COPIED | 0x50001, 0, 0), Spot::Broken(Why::Unmapped));
        let external = Dialect { data_file: true, ..V3 };
        assert_eq!(external.spot(COPIED, 0, 0), Spot::Data(0));
        assert_eq!(external.spot(0, 0, 0), Spot::Unallocated);
        assert_eq!(external.spot(COMPRESSED | 0x600, 0, 0), Spot::Broken(Why::Unmapped));
    }

    #[test]
    fn extended_entries() {
        let dialect = Dialect { extended: true, ..V3 };
        let bitmap = 0b0011 | 0b1010 << 32;
        let spots: Vec<Spot> = (0..4).map(|sub| dialect.spot(COPIED | 0x50000, bitmap, sub)).collect();
        assert_eq!(spots, [Spot::Data(0x50000), Spot::Broken(Why::Unmapped), Spot::Unallocated, Spot::Zero]);
        assert_eq!(dialect.spot(0, 1, 0), Spot::Broken(Why::Unmapped));
        assert_eq!(dialect.spot(0x50000, 1 << 31, 31), Spot::Data(0x50000 + 31 * 2048));
        assert_eq!(dialect.spot(COMPRESSED | 0x600, u64::MAX, 7), Spot::Packed { at: 0x600, len: 512 });
    }
}
