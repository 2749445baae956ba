//! MBR and GPT partition tables (UEFI specification 2.10, section 5).

use crate::Device;

const SECTOR: u64 = 512;
const ENTRIES: u64 = 128;
const ENTRY: u64 = 128;

/// Partition type of a VMFS datastore: AA31E02A-400F-11DB-9590-000C2911D1B8, in on-disk byte order.
pub const TYPE_VMFS: Guid = Guid(*b"\x2A\xE0\x31\xAA\x0F\x40\xDB\x11\x95\x90\x00\x0C\x29\x11\xD1\xB8");
/// Partition type of Linux data: 0FC63DAF-8483-4772-8E79-3D69D8477DE4, in on-disk byte order.
pub const TYPE_LINUX: Guid = Guid(*b"\xAF\x3D\xC6\x0F\x83\x84\x72\x47\x8E\x79\x3D\x69\xD8\x47\x7D\xE4");
/// Partition type of Windows data: EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, in on-disk byte order.
pub const TYPE_BASIC: Guid = Guid(*b"\xA2\xA0\xD0\xEB\xE5\xB9\x33\x44\x87\xC0\x68\xB6\xB7\x26\x99\xC7");
/// Partition type of an EFI system: C12A7328-F81F-11D2-BA4B-00A0C93EC93B, in on-disk byte order.
pub const TYPE_ESP: Guid = Guid(*b"\x28\x73\x2A\xC1\x1F\xF8\xD2\x11\xBA\x4B\x00\xA0\xC9\x3E\xC9\x3B");
/// MBR partition type of a VMFS datastore.
pub const MBR_VMFS: u8 = 0xFB;
/// MBR partition type of Linux data.
pub const MBR_LINUX: u8 = 0x83;

/// A GUID as its 16 bytes on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// A version 4 GUID that depends on nothing but `seed`.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        let mut state = seed ^ 0x9E37_79B9_7F4A_7C13;
        let mut bytes = [0; 16];
        for half in bytes.chunks_exact_mut(8) {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            half.copy_from_slice(&(state ^ (state >> 29)).to_be_bytes());
        }
        bytes[7] = bytes[7] & 0x0F | 0x40;
        bytes[8] = bytes[8] & 0x3F | 0x80;
        Self(bytes)
    }
}

/// One partition.
#[derive(Clone, Debug)]
pub struct Partition<'a> {
    /// What it holds.
    pub kind: Guid,
    /// Its name, at most 36 UTF-16 units.
    pub name: &'a str,
    /// Its first byte, a sector multiple.
    pub start: u64,
    /// Its length in bytes, a sector multiple.
    pub len: u64,
}

/// Writes a protective MBR and both copies of the GPT; `disk` is the disk's identity.
pub fn write_gpt(device: &mut Device, disk: Guid, partitions: &[Partition<'_>]) {
    write_gpt_of(device, SECTOR, disk, partitions);
}

/// As [`write_gpt`], on a disk with sectors of `sector` bytes, 512 or 4096.
pub fn write_gpt_of(device: &mut Device, sector: u64, disk: Guid, partitions: &[Partition<'_>]) {
    let sectors = device.len() / sector;
    let table_len = ENTRIES * ENTRY / sector;
    assert!(sectors > 2 * table_len + 3, "a disk of {sectors} sectors has no room for a GPT");
    let mut table = vec![0; (ENTRIES * ENTRY) as usize];
    for (n, partition) in partitions.iter().enumerate() {
        let (first, last) = (partition.start / sector, (partition.start + partition.len) / sector - 1);
        assert!(
            first > table_len + 1 && last < sectors - table_len - 1,
            "partition {} meets the GPT itself",
            partition.name
        );
        let entry = &mut table[n * ENTRY as usize..][..ENTRY as usize];
        entry[..16].copy_from_slice(&partition.kind.0);
        entry[16..32].copy_from_slice(&Guid::seeded(first ^ u64::from(disk.0[0])).0);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        for (unit, slot) in partition.name.encode_utf16().zip(entry[56..].chunks_exact_mut(2)) {
            slot.copy_from_slice(&unit.to_le_bytes());
        }
    }
    let mut mbr = [0; SECTOR as usize];
    put_mbr_entry(&mut mbr, 0, 0xEE, 1, sectors - 1);
    mbr[510..].copy_from_slice(&[0x55, 0xAA]);
    device.write(0, &mbr);

    let header = |own: u64, other: u64, table_at: u64| {
        let mut h = [0; SECTOR as usize];
        h[..8].copy_from_slice(b"EFI PART");
        h[8..12].copy_from_slice(&0x0001_0000u32.to_le_bytes());
        h[12..16].copy_from_slice(&92u32.to_le_bytes());
        h[24..32].copy_from_slice(&own.to_le_bytes());
        h[32..40].copy_from_slice(&other.to_le_bytes());
        h[40..48].copy_from_slice(&(table_len + 2).to_le_bytes());
        h[48..56].copy_from_slice(&(sectors - table_len - 2).to_le_bytes());
        h[56..72].copy_from_slice(&disk.0);
        h[72..80].copy_from_slice(&table_at.to_le_bytes());
        h[80..84].copy_from_slice(&(ENTRIES as u32).to_le_bytes());
        h[84..88].copy_from_slice(&(ENTRY as u32).to_le_bytes());
        h[88..92].copy_from_slice(&crc32fast::hash(&table).to_le_bytes());
        let crc = crc32fast::hash(&h[..92]);
        h[16..20].copy_from_slice(&crc.to_le_bytes());
        h
    };
    let (last, backup) = (sectors - 1, sectors - 1 - table_len);
    device.write(sector, &header(1, last, 2));
    device.write(2 * sector, &table);
    device.write(backup * sector, &table);
    device.write(last * sector, &header(last, 1, backup));
}

/// Writes an MBR with up to four (type, first byte, length) partitions and a disk signature.
pub fn write_mbr(device: &mut Device, signature: u32, partitions: &[(u8, u64, u64)]) {
    assert!(partitions.len() <= 4, "an MBR holds four partitions, not {}", partitions.len());
    let mut mbr = device.read(0, SECTOR as usize);
    mbr[440..444].copy_from_slice(&signature.to_le_bytes());
    mbr[446..510].fill(0);
    for (n, &(kind, start, len)) in partitions.iter().enumerate() {
        put_mbr_entry(&mut mbr, n, kind, start / SECTOR, len / SECTOR);
    }
    mbr[510..].copy_from_slice(&[0x55, 0xAA]);
    device.write(0, &mbr);
}

fn put_mbr_entry(mbr: &mut [u8], n: usize, kind: u8, first: u64, count: u64) {
    let entry = &mut mbr[446 + 16 * n..][..16];
    entry[1..4].copy_from_slice(&chs(first));
    entry[4] = kind;
    entry[5..8].copy_from_slice(&chs(first + count - 1));
    entry[8..12].copy_from_slice(&u32::try_from(first).unwrap_or(u32::MAX).to_le_bytes());
    entry[12..16].copy_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

/// The cylinder-head-sector form for 255 heads of 63 sectors, saturated as usual.
fn chs(sector: u64) -> [u8; 3] {
    let (cylinder, rest) = (sector / (255 * 63), sector % (255 * 63));
    if cylinder > 1023 {
        return [0xFE, 0xFF, 0xFF];
    }
    [(rest / 63) as u8, (rest % 63 + 1) as u8 | ((cylinder >> 8) << 6) as u8, cylinder as u8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_copies_carry_right_checksums() {
        let mut device = Device::new(64 << 20);
        let part = Partition { kind: TYPE_VMFS, name: "datastore", start: 1 << 20, len: 32 << 20 };
        write_gpt(&mut device, Guid::seeded(1), &[part]);
        let sectors = device.len() / 512;
        for (own, table_at) in [(1, 2), (sectors - 1, sectors - 33)] {
            let mut header = device.read(own * 512, 92);
            let stored = u32::from_le_bytes(header[16..20].try_into().expect("four bytes"));
            header[16..20].fill(0);
            assert_eq!(stored, crc32fast::hash(&header));
            let table = device.read(table_at * 512, 128 * 128);
            assert_eq!(header[88..92], crc32fast::hash(&table).to_le_bytes());
            assert_eq!(table[32..40], 2048u64.to_le_bytes());
            assert_eq!(table[40..48], (2048u64 + 65_535).to_le_bytes());
        }
        assert_eq!(device.read(510, 2), [0x55, 0xAA]);
        assert_eq!(device.read(450, 1), [0xEE]);
    }

    #[test]
    fn mbr_entries_count_sectors() {
        let mut device = Device::new(8 << 20);
        write_mbr(&mut device, 0x1234_5678, &[(MBR_VMFS, 65_536, 1 << 20)]);
        assert_eq!(device.read(450, 1), [0xFB]);
        assert_eq!(device.read(454, 8), [128, 0, 0, 0, 0, 8, 0, 0]);
    }
}
