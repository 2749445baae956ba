//! The metadata region: \[MS-VHDX\] 2.6.

use crate::blocks::shl;
use crate::error::Error;
use crate::guid;
use crate::layer::{Layer, Trust};
use crate::link::{Fact, Value};
use crate::note::Finding;
use crate::num::narrow;
use crate::read::{read_exact, read_vec};
use crate::record::Record;
use binrw::BinRead;
use byteorder::{ByteOrder, LittleEndian};
use std::ops::Range;

/// Section 2.6.2.
mod item {
    pub(super) const PARAMETERS: [u8; 16] = *b"\x37\x67\xA1\xCA\x36\xFA\x43\x4D\xB3\xB6\x33\xF0\xAA\x44\xE7\x6B";
    pub(super) const SIZE: [u8; 16] = *b"\x24\x42\xA5\x2F\x1B\xCD\x76\x48\xB2\x11\x5D\xBE\xD8\x3B\xF4\xB8";
    pub(super) const DISK_ID: [u8; 16] = *b"\xAB\x12\xCA\xBE\xE6\xB2\x23\x45\x93\xEF\xC3\x09\xE0\x00\xC7\x46";
    pub(super) const LOGICAL: [u8; 16] = *b"\x1D\xBF\x41\x81\x6F\xA9\x09\x47\xBA\x47\xF2\x33\xA8\xFA\xAB\x5F";
    pub(super) const PHYSICAL: [u8; 16] = *b"\xC7\x48\xA3\xCD\x5D\x44\x71\x44\x9C\xC9\xE9\x88\x52\x51\xC5\x56";
    pub(super) const LOCATOR: [u8; 16] = *b"\x2D\x5F\xD3\xA8\x0B\xB3\x4D\x45\xAB\xF7\xD3\xD8\x48\x34\xAB\x0C";
}

/// Section 2.6.2.6.1: the one kind of locator that there is.
const LOCATOR_KIND: [u8; 16] = *b"\xB7\xEF\x4A\xB0\x9E\xD1\x81\x4A\xB7\x89\x25\xB8\xE9\x44\x59\x13";
const TABLE_LEN: usize = 64 << 10;

#[derive(BinRead, Debug)]
#[br(little)]
struct RawEntry {
    id: [u8; 16],
    offset: u32,
    length: u32,
    flags: u32,
}

impl Record for RawEntry {
    const SIZE: usize = 28;
    const NAME: &'static str = "VHDX metadata table entry";
}

/// What the metadata says.
#[derive(Clone, Debug)]
pub(super) struct Metadata {
    pub size: u64,
    pub block_bits: u32,
    pub sector_bits: u32,
    pub has_parent: bool,
    /// As [`guid::mixed`] writes it.
    pub parent_id: Option<String>,
    pub parent_name: Option<String>,
    /// Where the parent is named.
    pub locator_at: u64,
    leave_allocated: bool,
    physical: Option<u32>,
    disk_id: Option<[u8; 16]>,
}

impl Metadata {
    pub(super) fn load(layer: &dyn Layer, region: &Range<u64>, findings: &mut Vec<Finding>) -> Result<Self, Error> {
        const WHAT: &str = "VHDX metadata table";
        let at = region.start;
        // The table may be cut behind its last entry.
        let (bytes, _) = read_vec(layer, at, TABLE_LEN);
        if !bytes.starts_with(b"metadata") {
            let found = bytes.get(..8).unwrap_or_default().escape_ascii().to_string();
            return Err(Error::corrupt(WHAT, at, found));
        }
        // At most 2,047, which is all that the table has room for.
        let count = bytes.get(10..12).map_or(0, LittleEndian::read_u16);
        let mut entries = Vec::new();
        for entry in bytes.get(32..).unwrap_or_default().chunks_exact(32).take(count.into()) {
            entries.push(RawEntry::parse(entry, at)?);
        }
        let known = [item::PARAMETERS, item::SIZE, item::DISK_ID, item::LOGICAL, item::PHYSICAL, item::LOCATOR];
        if let Some(odd) = entries.iter().find(|entry| entry.flags & 4 != 0 && !known.contains(&entry.id)) {
            return Err(Error::unsupported(format!("VHDX metadata item {}", guid::mixed(&odd.id))));
        }
        let find = |id: [u8; 16]| {
            let entry = entries.iter().find(|entry| entry.id == id)?;
            let start = at.saturating_add(entry.offset.into());
            Some(start..start.saturating_add(entry.length.into()))
        };
        let number = |id, len: usize| -> Option<Result<u64, Error>> {
            let range = find(id)?;
            let mut bytes = [0; 8];
            let read = read_exact(layer, range.start, bytes.get_mut(..len)?);
            Some(read.map(|_| LittleEndian::read_u64(&bytes)).map_err(|gap| Error::Lost { what: WHAT, gap }))
        };
        let needed = |id, len| number(id, len).unwrap_or_else(|| Err(Error::corrupt(WHAT, at, "an item is missing")));
        let parameters = needed(item::PARAMETERS, 8)?;
        let (block, flags) = (parameters & 0xFFFF_FFFF, parameters >> 32);
        let size = needed(item::SIZE, 8)?;
        let sector = needed(item::LOGICAL, 4)?;
        if !block.is_power_of_two() || !(1 << 20..=256 << 20).contains(&block) {
            return Err(Error::corrupt("VHDX block size", at, format!("{block} (a power of two, 1 to 256 MiB)")));
        }
        if sector != 512 && sector != 4096 {
            return Err(Error::corrupt("VHDX logical sector size", at, format!("{sector} (512 or 4096)")));
        }
        // Section 2.6.2.2: at most 64 TiB, in whole sectors.
        if size > 64 << 40 || size.checked_rem(sector) != Some(0) {
            return Err(Error::corrupt("VHDX virtual disk size", at, format!("{size} in sectors of {sector}")));
        }
        if flags & !3 != 0 {
            let text = format!("reserved flags of the file parameters: {flags:#x}");
            findings.push(Finding::new("VHDX-PARAMETERS", region.clone(), Trust::Doubtful, text));
        }
        let has_parent = flags & 2 != 0;
        let locator = find(item::LOCATOR);
        if has_parent != locator.is_some() {
            let text = "the flag of a parent and its locator contradict each other";
            findings.push(Finding::new("VHDX-PARAMETERS", region.clone(), Trust::Doubtful, text));
        }
        let mut disk_id = [0; 16];
        let disk_id =
            find(item::DISK_ID).and_then(|range| read_exact(layer, range.start, &mut disk_id).ok().map(|_| disk_id));
        let keys = locator.as_ref().map(|range| keys(layer, range)).unwrap_or_default();
        let key = |name: &str| keys.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        Ok(Self {
            size,
            block_bits: block.trailing_zeros(),
            sector_bits: sector.trailing_zeros(),
            has_parent,
            parent_id: key("parent_linkage").map(|id| id.trim_matches(['{', '}']).to_ascii_uppercase()),
            parent_name: ["relative_path", "absolute_win32_path", "volume_path"].into_iter().find_map(key),
            locator_at: locator.map_or(at, |range| range.start),
            leave_allocated: flags & 1 != 0,
            physical: number(item::PHYSICAL, 4).and_then(Result::ok).and_then(|size| u32::try_from(size).ok()),
            disk_id,
        })
    }

    pub(super) fn facts(&self) -> Vec<Fact> {
        let mut facts = vec![
            Fact::new("size", Value::Bytes(self.size)),
            Fact::new("block_size", Value::Bytes(shl(1, self.block_bits))),
            Fact::new("logical_sector_size", Value::Bytes(shl(1, self.sector_bits))),
            Fact::new("fixed", Value::Flag(self.leave_allocated)),
            Fact::new("differencing", Value::Flag(self.has_parent)),
        ];
        facts.extend(self.physical.map(|size| Fact::new("physical_sector_size", Value::Bytes(size.into()))));
        facts.extend(self.disk_id.map(|id| Fact::new("virtual_disk_id", guid::mixed(&id))));
        facts.extend(self.parent_id.clone().map(|id| Fact::new("parent_id", id)));
        facts.extend(self.parent_name.clone().map(|name| Fact::new("parent_name", name)));
        facts
    }
}

/// The keys and values of a parent locator.
fn keys(layer: &dyn Layer, range: &Range<u64>) -> Vec<(String, String)> {
    // A locator has five short texts.
    const MAX: u64 = 1 << 20;
    let len = range.end.saturating_sub(range.start).min(MAX);
    let (bytes, seen) = read_vec(layer, range.start, narrow(len));
    if !seen.is_whole() || !bytes.starts_with(&LOCATOR_KIND) {
        return Vec::new();
    }
    let count = bytes.get(18..20).map_or(0, LittleEndian::read_u16);
    let text = |at: u32, len: u16| {
        let at = narrow(at.into());
        let units = bytes.get(at..at.saturating_add(len.into()))?.chunks_exact(2).map(LittleEndian::read_u16);
        Some(String::from_utf16_lossy(&units.collect::<Vec<u16>>()))
    };
    let entries = bytes.get(20..).unwrap_or_default().chunks_exact(12).take(count.into());
    let pair = |entry: &[u8]| {
        let key = text(LittleEndian::read_u32(entry), LittleEndian::read_u16(entry.get(8..)?))?;
        let value = text(LittleEndian::read_u32(entry.get(4..)?), LittleEndian::read_u16(entry.get(10..)?))?;
        Some((key, value))
    };
    // More than the format has of them are nothing but work.
    entries.take(64).filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_size_of_the_specification() {
        assert_eq!(RawEntry::SIZE, 28);
        assert!(RawEntry::parse(&[0; 28], 0).is_ok() && RawEntry::parse(&[0; 27], 0).is_err());
    }
}
