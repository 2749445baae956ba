//! Writing VMDK: a flat file with a descriptor, or one file with grains: in place, or packed as a stream.
//!
//! Source: VMware's "Virtual Disk Format 5.0", files of ESXi, and what `qemu-img` and readers of other ancestry take.
//! Sectors have 512 bytes, numbers are little-endian, grains have 64 KiB, and 512 grains a table.

mod sparse;
mod stream;

pub(crate) use sparse::Sparse;
pub(crate) use stream::Stream;

use crate::digest::hex;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Bytes in a grain.
pub(crate) const GRAIN: u64 = GRAIN_SECTORS * SECTOR;
const SECTOR: u64 = 512;
const GRAIN_SECTORS: u64 = 128;
/// Entries of a grain table, 4 bytes each.
const ENTRIES: u64 = 512;
const TABLE_SECTORS: u64 = ENTRIES * 4 / SECTOR;
/// The embedded descriptor: where, and how much room it has.
const DESCRIPTOR_AT: u64 = 1;
const DESCRIPTOR_SECTORS: u64 = 20;
/// Directories and tables hold sector numbers of 32 bits: no file is longer than 2 TiB.
const MAX_SECTORS: u64 = u32::MAX as u64;
/// A version of virtual hardware that every ESXi since 5.0 takes.
const HARDWARE: u32 = 8;

/// What a descriptor says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor<'a> {
    /// `createType`.
    pub(crate) kind: &'a str,
    /// The type of the extent.
    pub(crate) extent: &'a str,
    /// Its file.
    pub(crate) file: &'a str,
    pub(crate) sectors: u64,
    /// Ids are made of it: the same disk gets the same ones.
    pub(crate) seed: &'a [u8; 32],
}

impl Descriptor<'_> {
    pub(crate) fn text(&self) -> String {
        let Self { kind, extent, file, sectors, seed } = self;
        let cid = self.cid();
        // VMware puts the CID behind 12 other bytes.
        let long = hex(&seed[4..16]);
        // Public code that cites VMware's knowledge base; ESXi writes no other for these controllers.
        let (heads, per_track) = match sectors * SECTOR {
            ..0x4000_0000 => (64, 32),
            0x4000_0000..0x8000_0000 => (128, 32),
            _ => (255, 63),
        };
        let cylinders = (sectors / (heads * per_track)).max(1);
        format!(
            "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID={cid:08x}\nparentCID=ffffffff\n\
             isNativeSnapshot=\"no\"\ncreateType=\"{kind}\"\n\n# Extent description\n\
             RW {sectors} {extent} \"{file}\"\n\n# The Disk Data Base\n#DDB\n\n\
             ddb.adapterType = \"lsilogic\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
             ddb.geometry.heads = \"{heads}\"\nddb.geometry.sectors = \"{per_track}\"\n\
             ddb.longContentID = \"{long}{cid:08x}\"\nddb.virtualHWVersion = \"{HARDWARE}\"\n"
        )
    }

    /// The values that say "none" and "not set" are left out.
    fn cid(&self) -> u32 {
        let cid = u32::from_be_bytes([self.seed[0], self.seed[1], self.seed[2], self.seed[3]]);
        if cid == 0 || cid >= 0xFFFF_FFFE { 0x1234_5678 } else { cid }
    }

    /// Into the room that a file of grains has for it.
    fn embed(&self, file: &File, base: u64) -> io::Result<()> {
        let mut bytes = self.text().into_bytes();
        if bytes.len() as u64 > DESCRIPTOR_SECTORS * SECTOR {
            return Err(io::Error::other("the descriptor is longer than the room for it"));
        }
        bytes.resize(usize::try_from(DESCRIPTOR_SECTORS * SECTOR).unwrap_or_default(), 0);
        file.write_all_at(&bytes, base + DESCRIPTOR_AT * SECTOR)
    }
}

/// The name of a file as a descriptor can hold it; `None` if it can't.
pub(crate) fn plain_name(name: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(name).ok()?;
    (!name.contains(|c: char| c == '"' || c.is_control())).then_some(name)
}

/// `disk-flat.vmdk` for `disk.vmdk`.
pub(crate) fn flat_name(name: &[u8]) -> Vec<u8> {
    let stem = match name.len().checked_sub(5).and_then(|at| name.split_at_checked(at)) {
        Some((stem, suffix)) if suffix.eq_ignore_ascii_case(b".vmdk") && !stem.is_empty() => stem,
        _ => name,
    };
    [stem, b"-flat.vmdk"].concat()
}

/// Numbers in the header of a file of grains.
struct Header {
    version: u32,
    flags: u32,
    capacity: u64,
    redundant_at: u64,
    directory_at: u64,
    overhead: u64,
    packed: bool,
}

impl Header {
    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        out.extend(b"KDMV");
        out.extend(self.version.to_le_bytes());
        out.extend(self.flags.to_le_bytes());
        out.extend(self.capacity.to_le_bytes());
        out.extend(GRAIN_SECTORS.to_le_bytes());
        out.extend(DESCRIPTOR_AT.to_le_bytes());
        out.extend(DESCRIPTOR_SECTORS.to_le_bytes());
        out.extend(u32::try_from(ENTRIES).unwrap_or_default().to_le_bytes());
        out.extend(self.redundant_at.to_le_bytes());
        out.extend(self.directory_at.to_le_bytes());
        out.extend(self.overhead.to_le_bytes());
        // Shut down in order; then what tells a transfer as text.
        out.extend(b"\0\n \r\n");
        out.extend(u16::from(self.packed).to_le_bytes());
        out.resize(512, 0);
        out
    }
}

/// How many tables a disk has, and how many sectors a directory of them.
fn tables(capacity: u64) -> (u64, u64) {
    let tables = capacity.div_ceil(GRAIN_SECTORS * ENTRIES);
    (tables, (tables * 4).div_ceil(SECTOR))
}

/// A sector's number as a table holds it.
fn number(sector: u64) -> io::Result<u32> {
    u32::try_from(sector)
        .map_err(|_| io::Error::other("a VMDK with grains can't be longer than 2 TiB; write flat or qcow2"))
}

fn write_numbers(file: &File, at: u64, numbers: &[u32]) -> io::Result<()> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    file.write_all_at(&bytes, at)
}

fn read_numbers(file: &File, at: u64, count: usize) -> Option<Vec<u32>> {
    let mut bytes = vec![0; count * 4];
    file.read_exact_at(&mut bytes, at).ok()?;
    let fours = bytes.chunks_exact(4).filter_map(|four| four.try_into().ok());
    Some(fours.map(u32::from_le_bytes).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(flat_name(b"a.vmdk"), b"a-flat.vmdk");
        assert_eq!(flat_name(b"a.VMDK"), b"a-flat.vmdk");
        assert_eq!(flat_name(b".vmdk"), b".vmdk-flat.vmdk");
        assert_eq!(flat_name(b"disk"), b"disk-flat.vmdk");
        assert_eq!(plain_name("d\u{e4}sk.vmdk".as_bytes()), Some("d\u{e4}sk.vmdk"));
        assert_eq!(plain_name(b"a\"b"), None);
        assert_eq!(plain_name(b"a\nb"), None);
        assert_eq!(plain_name(b"\xff"), None);
    }

    #[test]
    fn ids_that_identify_nothing_are_not_given() {
        let text = |seed: u8| {
            let seed = &[seed; 32];
            Descriptor { kind: "vmfs", extent: "VMFS", file: "a-flat.vmdk", sectors: 4096, seed }.text()
        };
        assert!(text(0).contains("CID=12345678\n") && text(0xFF).contains("CID=12345678\n"));
        assert!(text(7).contains("CID=07070707\n"));
        assert!(text(7).contains("ddb.geometry.cylinders = \"2\"\nddb.geometry.heads = \"64\"\n"));
    }
}
