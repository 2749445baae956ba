//! Guest disks of nothing but the structures by which a recovery finds its way in a disk without a map, and a pattern
//! in each file block between them. No guest would mount them; `guest` makes real ones.
//!
//! Sources: ext4 on-disk format (kernel documentation), XFS Algorithms & Data Structures (version 4), the NTFS
//! documentation of the Linux-NTFS project, UEFI 2.10.

use crate::Device;
use crate::gpt::{Guid, MBR_LINUX, Partition, TYPE_BASIC, TYPE_ESP, TYPE_LINUX, write_gpt, write_mbr};
use crate::vmfs::pattern;
use std::ops::Range;

const MIB: u64 = 1 << 20;
/// Where the guest's only partition begins.
pub const PARTITION: u64 = MIB;

/// Kinds of guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// MBR and ext4: superblock, and backups that carry the number of their group.
    Ext,
    /// GPT with its backup, and NTFS: boot sector and its backup, `$MFT` in two runs of records that carry their number.
    Ntfs,
    /// MBR and XFS: superblock, AGF and AGI of each allocation group, which carry its number.
    Xfs,
}

/// A structure that says where in the guest it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// What it is.
    pub what: &'static str,
    /// Byte of the disk.
    pub at: u64,
    /// The number that it carries: group, record or allocation group.
    pub number: u64,
}

/// A guest's disk.
#[derive(Clone, Debug)]
pub struct Skeleton {
    /// Its bytes.
    pub device: Device,
    /// Its anchors by position.
    pub anchors: Vec<Anchor>,
}

impl Skeleton {
    /// A disk of `len` bytes, of at least 512 MiB. `pieces` are positions of the disk where a block of 1 MiB has a
    /// pattern with the block's number as its seed; they must be free of anchors.
    #[must_use]
    pub fn new(guest: Guest, len: u64, pieces: &[u64]) -> Self {
        let mut disk = Self { device: Device::new(len), anchors: Vec::new() };
        let size = len - 2 * MIB;
        match guest {
            Guest::Ext => disk.ext(size),
            Guest::Ntfs => disk.ntfs(size),
            Guest::Xfs => disk.xfs(size),
        }
        disk.anchors.sort_by_key(|anchor| anchor.at);
        for &at in pieces {
            let free = disk.anchors.iter().all(|a| a.at / MIB != at / MIB);
            assert!(free, "{at:#x} has anchors");
            disk.device.write(at, &pattern(MIB as usize, at / MIB));
        }
        disk
    }

    fn put(&mut self, what: &'static str, at: u64, number: u64, bytes: &[u8]) {
        self.device.write(at, bytes);
        self.anchors.push(Anchor { what, at, number });
    }

    fn mbr(&mut self, size: u64) {
        write_mbr(&mut self.device, 0x5EED_0001, &[(MBR_LINUX, PARTITION, size)]);
        self.anchors.push(Anchor { what: "MBR", at: 0, number: 0 });
    }

    fn ext(&mut self, size: u64) {
        const GROUP: u64 = 128 * MIB;
        self.mbr(size);
        let groups = size.div_ceil(GROUP);
        let is_power = |n: u64, of: u64| n == of.pow(n.ilog(of));
        for group in (0..groups).filter(|&g| g < 2 || [3, 5, 7].iter().any(|&of| is_power(g, of))) {
            let mut s = vec![0; 1024];
            put(&mut s, 0x00, &(groups as u32 * 8192).to_le_bytes());
            put(&mut s, 0x04, &((size / 4096) as u32).to_le_bytes());
            put(&mut s, 0x18, &2u32.to_le_bytes());
            put(&mut s, 0x1C, &2u32.to_le_bytes());
            put(&mut s, 0x20, &32_768u32.to_le_bytes());
            put(&mut s, 0x24, &32_768u32.to_le_bytes());
            put(&mut s, 0x28, &8192u32.to_le_bytes());
            put(&mut s, 0x38, &0xEF53u16.to_le_bytes());
            put(&mut s, 0x3A, &1u16.to_le_bytes());
            put(&mut s, 0x4C, &1u32.to_le_bytes());
            put(&mut s, 0x54, &11u32.to_le_bytes());
            put(&mut s, 0x58, &256u16.to_le_bytes());
            put(&mut s, 0x5A, &(group as u16).to_le_bytes());
            // File types and extents; few superblocks.
            put(&mut s, 0x60, &0x42u32.to_le_bytes());
            put(&mut s, 0x64, &1u32.to_le_bytes());
            put(&mut s, 0x68, b"SKELETON OF EXT4");
            put(&mut s, 0x78, b"skeleton");
            let start = PARTITION + group * GROUP;
            self.put("ext superblock", if group == 0 { start + 1024 } else { start }, group, &s);
            let mut table = Vec::new();
            for g in 0..groups {
                let first = (g * 32_768) as u32;
                for block in [first + 10, first + 11, first + 12] {
                    table.extend(block.to_le_bytes());
                }
                table.resize(table.len() + 20, 0);
            }
            self.put("ext group descriptors", start + 4096, group, &table);
        }
    }

    fn ntfs(&mut self, size: u64) {
        const CLUSTER: u64 = 4096;
        const RECORDS: u64 = 512;
        let part = Partition { kind: TYPE_BASIC, name: "Basic data partition", start: PARTITION, len: size };
        write_gpt(&mut self.device, Guid::seeded(77), &[part]);
        let end = self.device.len();
        for (what, at) in [("GPT header", 512), ("GPT backup header", end - 512)] {
            self.anchors.push(Anchor { what, at, number: 0 });
        }
        // Half of $MFT lies at a quarter of the volume, half behind its middle.
        let runs = [size / 4 / CLUSTER, (size / 2 + 64 * MIB) / CLUSTER];
        let half = RECORDS / 2;
        let mut boot = vec![0; 512];
        put(&mut boot, 0, b"\xEB\x52\x90NTFS    ");
        put(&mut boot, 0x0B, &512u16.to_le_bytes());
        boot[0x0D] = 8;
        boot[0x15] = 0xF8;
        put(&mut boot, 0x28, &(size / 512 - 1).to_le_bytes());
        put(&mut boot, 0x30, &runs[0].to_le_bytes());
        put(&mut boot, 0x38, &2u64.to_le_bytes());
        boot[0x40] = 0xF6;
        boot[0x44] = 1;
        put(&mut boot, 0x48, &0x5EED_5EED_5EED_5EEDu64.to_le_bytes());
        put(&mut boot, 510, &[0x55, 0xAA]);
        self.put("NTFS boot sector", PARTITION, 0, &boot);
        self.put("NTFS backup boot sector", PARTITION + size - 512, 0, &boot);
        for number in 0..RECORDS {
            let run = runs[usize::from(number >= half)];
            let at = PARTITION + run * CLUSTER + number % half * 1024;
            self.put("$MFT record", at, number, &file_record(number, &runs, half * 1024 / CLUSTER));
        }
        for number in 0..4 {
            self.put(
                "$MFTMirr record",
                PARTITION + 2 * CLUSTER + number * 1024,
                number,
                &file_record(number, &runs, 64),
            );
        }
    }

    fn xfs(&mut self, size: u64) {
        const GROUPS: u64 = 4;
        self.mbr(size);
        let blocks = size / 4096 / GROUPS;
        for group in 0..GROUPS {
            let start = PARTITION + group * blocks * 4096;
            let mut s = vec![0; 512];
            put(&mut s, 0, b"XFSB");
            put(&mut s, 4, &4096u32.to_be_bytes());
            put(&mut s, 8, &(blocks * GROUPS).to_be_bytes());
            put(&mut s, 32, b"SKELETON OF AXFS");
            put(&mut s, 84, &(blocks as u32).to_be_bytes());
            put(&mut s, 88, &(GROUPS as u32).to_be_bytes());
            put(&mut s, 100, &0xB4A4u16.to_be_bytes());
            put(&mut s, 102, &512u16.to_be_bytes());
            put(&mut s, 104, &256u16.to_be_bytes());
            put(&mut s, 106, &16u16.to_be_bytes());
            put(&mut s, 120, &[12, 9, 8, 4]);
            put(&mut s, 124, &[(64 - (blocks - 1).leading_zeros()) as u8]);
            self.put("XFS superblock", start, group, &s);
            for (what, magic, at) in [("XFS AGF", b"XAGF", 512), ("XFS AGI", b"XAGI", 1024)] {
                let mut s = vec![0; 512];
                put(&mut s, 0, magic);
                put(&mut s, 4, &1u32.to_be_bytes());
                put(&mut s, 8, &(group as u32).to_be_bytes());
                put(&mut s, 12, &(blocks as u32).to_be_bytes());
                self.put(what, start + at, group, &s);
            }
        }
    }
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    to[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A FILE record; that of `$MFT` itself says in which runs of clusters all lie.
fn file_record(number: u64, runs: &[u64], clusters: u64) -> Vec<u8> {
    let mut r = vec![0; 1024];
    put(&mut r, 0, b"FILE");
    put(&mut r, 0x04, &0x30u16.to_le_bytes());
    put(&mut r, 0x06, &3u16.to_le_bytes());
    put(&mut r, 0x10, &1u16.to_le_bytes());
    put(&mut r, 0x12, &1u16.to_le_bytes());
    put(&mut r, 0x14, &0x38u16.to_le_bytes());
    put(&mut r, 0x16, &1u16.to_le_bytes());
    put(&mut r, 0x1C, &1024u32.to_le_bytes());
    put(&mut r, 0x2C, &(number as u32).to_le_bytes());
    let mut end = 0x38;
    if number == 0 {
        let mut list = Vec::new();
        let mut before = 0;
        for &run in runs {
            list.push(0x42);
            list.extend(&(clusters as u16).to_le_bytes());
            list.extend(&((run - before) as u32).to_le_bytes());
            before = run;
        }
        list.resize((list.len() + 1).next_multiple_of(8), 0);
        let total = clusters * runs.len() as u64;
        put(&mut r, end, &0x80u32.to_le_bytes());
        put(&mut r, end + 0x04, &(0x40 + list.len() as u32).to_le_bytes());
        r[end + 0x08] = 1;
        put(&mut r, end + 0x18, &(total - 1).to_le_bytes());
        put(&mut r, end + 0x20, &0x40u16.to_le_bytes());
        for at in [0x28, 0x30, 0x38] {
            put(&mut r, end + at, &(total * 4096).to_le_bytes());
        }
        put(&mut r, end + 0x40, &list);
        end += 0x40 + list.len();
    }
    put(&mut r, end, &u32::MAX.to_le_bytes());
    put(&mut r, 0x18, &(end as u32 + 8).to_le_bytes());
    // The last two bytes of each sector are kept behind the head, and a number stands in their place.
    for (n, at) in [0x1FE, 0x3FE].into_iter().enumerate() {
        let kept = [r[at], r[at + 1]];
        put(&mut r, 0x32 + 2 * n, &kept);
        put(&mut r, at, &[1, 0]);
    }
    put(&mut r, 0x30, &[1, 0]);
    r
}

/// Who formatted a LUN without looking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intruder {
    /// A Linux host: GPT, ext4 over the whole LUN, of which superblock and group descriptors were written.
    Linux,
    /// A Windows host: GPT, NTFS over the whole LUN.
    Windows,
    /// An ESXi installer: GPT of small system partitions with FAT boot sectors, and nothing behind them.
    Installer,
}

/// Lets an intruder write over a whole LUN; gives the ranges whose bytes are no longer what they were.
pub fn intrude(lun: &mut Device, intruder: Intruder) -> Vec<Range<u64>> {
    let len = lun.len();
    let before = lun.clone();
    let part = |kind, name, start, len| Partition { kind, name, start, len };
    let partitions = match intruder {
        Intruder::Linux => vec![part(TYPE_LINUX, "data", MIB, len - 2 * MIB)],
        Intruder::Windows => vec![part(TYPE_BASIC, "Basic data partition", MIB, len - 2 * MIB)],
        // Places as an ESXi 7 installer has them: boot, two boot banks.
        Intruder::Installer => vec![
            part(TYPE_ESP, "BOOT", 64 * 512, 100 * MIB),
            part(TYPE_BASIC, "BOOTBANK1", 101 * MIB, 64 * MIB),
            part(TYPE_BASIC, "BOOTBANK2", 165 * MIB, 64 * MIB),
        ],
    };
    // Formatters clear both ends first.
    lun.zero(0..MIB);
    lun.zero(len - MIB..len);
    match intruder {
        Intruder::Linux | Intruder::Windows => {
            let guest = if intruder == Intruder::Linux { Guest::Ext } else { Guest::Ntfs };
            let skeleton = Skeleton::new(guest, len, &[]);
            for (at, bytes) in skeleton.device.blocks().filter(|(at, _)| *at >= MIB) {
                lun.write(at, bytes);
            }
        }
        Intruder::Installer => {
            for partition in &partitions {
                lun.zero(partition.start..partition.start + MIB);
                let mut boot = vec![0; 512];
                put(&mut boot, 0, b"\xEB\x3C\x90MSDOS5.0");
                put(&mut boot, 0x36, b"FAT16   ");
                put(&mut boot, 510, &[0x55, 0xAA]);
                lun.write(partition.start, &boot);
            }
        }
    }
    write_gpt(lun, Guid::seeded(99), &partitions);
    changes(&before, lun)
}

/// Ranges of 4 KiB blocks in which two devices differ.
#[must_use]
pub fn changes(a: &Device, b: &Device) -> Vec<Range<u64>> {
    const BLOCK: u64 = crate::device::BLOCK;
    let mut starts: Vec<u64> = a.blocks().chain(b.blocks()).map(|(at, _)| at).collect();
    starts.sort_unstable();
    starts.dedup();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for at in starts {
        let len = BLOCK.min(a.len().min(b.len()).saturating_sub(at)) as usize;
        if a.read(at, len) == b.read(at, len) {
            continue;
        }
        match ranges.last_mut() {
            Some(last) if last.end == at => last.end = at + len as u64,
            _ => ranges.push(at..at + len as u64),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_lie_where_they_say() {
        for guest in [Guest::Ext, Guest::Ntfs, Guest::Xfs] {
            let disk = Skeleton::new(guest, 3 << 30, &[700 * MIB]);
            assert!(disk.anchors.len() > 10);
            for anchor in &disk.anchors {
                let bytes = disk.device.read(anchor.at, 64);
                match anchor.what {
                    "$MFT record" | "$MFTMirr record" => {
                        assert_eq!(bytes[0x2C..0x30], (anchor.number as u32).to_le_bytes());
                    }
                    "XFS AGF" | "XFS AGI" => assert_eq!(bytes[8..12], (anchor.number as u32).to_be_bytes()),
                    _ => assert!(bytes.iter().any(|&b| b != 0) || anchor.at == 0),
                }
            }
        }
    }

    #[test]
    fn intruders_tell_what_they_changed() {
        for intruder in [Intruder::Linux, Intruder::Windows, Intruder::Installer] {
            let mut lun = Device::new(600 * MIB);
            lun.write(MIB, &vec![0x77; 16 << 20]);
            let before = lun.clone();
            let changed = intrude(&mut lun, intruder);
            assert_eq!(changed, changes(&before, &lun));
            assert!(changed.len() > 2, "{changed:x?}");
            assert_eq!(lun.read(512, 8), b"EFI PART");
        }
    }
}
