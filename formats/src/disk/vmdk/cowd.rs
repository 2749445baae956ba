//! COWD, the sparse extent of ESX: libyal's "VMware Virtual Disk (VMDK) format", section "COWD sparse extent".

use super::sparse::{Dialect, Grain, Parent, Shape, Sparse, Table, power};
use crate::audit::Codes;
use crate::entries::{Entries, Page};
use crate::error::Error;
use crate::layer::{Layer, Loss, Trust};
use crate::note::{Finding, Use};
use crate::record::Record;
use binrw::BinRead;

pub(super) const MAGIC: &[u8] = b"COWD";
/// Entries of a grain table, always: 16 KiB.
const TABLE_BITS: u32 = 12;

/// The part of the header that reading needs. Offsets and sizes are in sectors.
#[derive(BinRead, Debug)]
#[br(little)]
pub(super) struct Raw {
    magic: [u8; 4],
    version: u32,
    flags: u32,
    capacity: u32,
    grain_size: u32,
    gd_offset: u32,
    gd_entries: u32,
}

impl Record for Raw {
    const SIZE: usize = 28;
    const NAME: &'static str = "COWD header";
}

/// The extent in `entries`' layer.
pub(super) fn load(entries: Entries, parent: Parent) -> Result<Sparse<Cowd>, Error> {
    let layer: &dyn Layer = &**entries.layer();
    let raw = Raw::load(layer, 0)?;
    if raw.magic != *MAGIC {
        return Err(Error::corrupt("COWD header: magic", 0, format!("{:02x?}", raw.magic)));
    }
    if raw.version != 1 {
        return Err(Error::unsupported(format!("COWD version {}", raw.version)));
    }
    let grain_bits = power("COWD header: grain_size", 16, raw.grain_size.into())?;
    let len = u64::from(raw.capacity).saturating_mul(512);
    let mut findings = Vec::new();
    let needed = len.div_ceil(super::sparse::shl(1, grain_bits.saturating_add(TABLE_BITS)));
    if u64::from(raw.gd_entries) < needed {
        let text = format!("the grain directory has {} entries, {needed} are needed", raw.gd_entries);
        findings.push(Finding::new("COWD-DIRECTORY-SHORT", 24..28, Trust::Sound, text));
    }
    if raw.flags != 3 {
        let text = format!("flags {:#x}: all known images have 0x3", raw.flags);
        findings.push(Finding::new("COWD-FLAGS", 8..12, Trust::Sound, text));
    }
    let shape = Shape {
        len,
        grain_bits,
        table_bits: TABLE_BITS,
        directory: u64::from(raw.gd_offset).saturating_mul(512),
        tables: raw.gd_entries.into(),
    };
    Ok(Sparse {
        entries,
        shape,
        dialect: Cowd,
        parent,
        trust: Trust::Sound,
        findings,
        areas: vec![(0, 2048, Use::Metadata)],
    })
}

/// The encoding of COWD tables: sector numbers, 0 for none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cowd;

impl Dialect for Cowd {
    const DIRECTORY_ENTRY: u64 = 4;
    const TABLE_ENTRY: u64 = 4;
    const CODES: Codes = Codes { range: "COWD-GRAIN-RANGE", entry: "COWD-ENTRY" };

    fn table(&self, page: &Page, at: u64) -> Result<Table, Loss> {
        page.le32(at).map(|sector| match sector {
            0 => Table::None,
            sector => Table::At(u64::from(sector).saturating_mul(512)),
        })
    }

    fn grain(&self, page: &Page, at: u64) -> Result<Grain, Loss> {
        page.le32(at).map(|sector| match sector {
            0 => Grain::Parent,
            sector => Grain::At(u64::from(sector).saturating_mul(512)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_their_size() {
        assert_eq!(Raw::SIZE, 28);
        assert!(Raw::parse(&[0; 28], 0).is_ok() && Raw::parse(&[0; 27], 0).is_err());
    }
}
