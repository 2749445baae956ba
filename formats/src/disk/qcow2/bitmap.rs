//! Where persistent bitmaps are kept: the specification's section "Bitmaps". Their content is not read.

use super::header::Bitmaps;
use super::layer::Metadata;
use crate::layer::Layer;
use crate::num::round_up;
use crate::record::Record;
use binrw::BinRead;

/// The fixed part of a directory entry.
#[derive(BinRead, Debug)]
#[br(big)]
pub(super) struct Raw {
    bitmap_table_offset: u64,
    /// The flags (4 bytes), the type and the granularity (a byte each) follow.
    #[br(pad_after = 6)]
    bitmap_table_size: u32,
    name_size: u16,
    extra_data_size: u32,
}

impl Record for Raw {
    const SIZE: usize = 24;
    const NAME: &'static str = "qcow2 bitmap directory entry";
}

/// The specification's limit.
const MAX_BITMAPS: u32 = 65535;

/// The directory and the tables of all bitmaps that it lists.
pub(super) fn metadata(layer: &dyn Layer, bitmaps: Bitmaps) -> Vec<Metadata> {
    let end = bitmaps.directory.saturating_add(bitmaps.len).min(layer.len());
    let mut found = vec![Metadata::Range(bitmaps.directory, bitmaps.len)];
    let mut at = bitmaps.directory;
    for _ in 0..bitmaps.count.min(MAX_BITMAPS) {
        if Raw::end(at) > end {
            break;
        }
        let Ok(raw) = Raw::load(layer, at) else { break };
        found.push(Metadata::Clusters(raw.bitmap_table_offset, raw.bitmap_table_size.into()));
        let variable = u64::from(raw.name_size).saturating_add(raw.extra_data_size.into());
        at = round_up(Raw::end(at).saturating_add(variable), 8);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_size_of_the_specification() {
        assert_eq!(Raw::SIZE, 24);
        assert!(Raw::parse(&[0; 24], 0).is_ok() && Raw::parse(&[0; 23], 0).is_err());
    }
}
