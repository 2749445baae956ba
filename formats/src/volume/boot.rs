//! The boot sector that MBR and GPT share: UEFI Specification 2.10, section 5.2, and what DOS made of it.

use crate::error::Error;
use crate::layer::{Layer, Trust};
use crate::link::Volume;
use crate::note::Finding;
use crate::read::read_exact;
use byteorder::{ByteOrder, LittleEndian};

/// Bytes of a sector here: an MBR has no other size.
pub(super) const SECTOR: u64 = 512;
/// The type of the entry that protects a GPT.
pub(super) const PROTECTIVE: u8 = 0xee;

/// A sector that ends in the boot signature.
#[derive(Clone, Debug)]
pub(super) struct BootSector {
    bytes: [u8; 512],
}

/// One of its four entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub status: u8,
    pub kind: u8,
    /// First sector, relative to what the sector is in.
    pub start: u64,
    pub sectors: u64,
}

impl Entry {
    pub(super) fn is_empty(self) -> bool {
        self.kind == 0 || self.sectors == 0
    }

    pub(super) fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn end(self) -> u64 {
        self.start.saturating_add(self.sectors)
    }
}

impl BootSector {
    /// Reads the sector at `at`, which must have the signature.
    pub(super) fn load(layer: &dyn Layer, at: u64) -> Result<Self, Error> {
        let mut bytes = [0; 512];
        read_exact(layer, at, &mut bytes).map_err(|gap| Error::Lost { what: "boot sector", gap })?;
        match bytes.get(510..) {
            Some([0x55, 0xaa]) => Ok(Self { bytes }),
            other => Err(Error::corrupt("boot sector: signature", at.saturating_add(510), format!("{other:02x?}"))),
        }
    }

    pub(super) fn entries(&self) -> [Entry; 4] {
        let mut entries = [Entry { status: 0, kind: 0, start: 0, sectors: 0 }; 4];
        let raw = self.bytes.get(446..510).unwrap_or_default();
        for (entry, raw) in entries.iter_mut().zip(raw.chunks_exact(16)) {
            if let [status, _, _, _, kind, _, _, _, tail @ ..] = raw {
                *entry = Entry {
                    status: *status,
                    kind: *kind,
                    start: LittleEndian::read_u32(tail).into(),
                    sectors: tail.get(4..).map_or(0, LittleEndian::read_u32).into(),
                };
            }
        }
        entries
    }

    pub(super) fn disk_signature(&self) -> u32 {
        self.bytes.get(440..444).map_or(0, LittleEndian::read_u32)
    }

    pub(super) fn is_protective(&self) -> bool {
        self.entries().iter().any(|entry| entry.kind == PROTECTIVE && entry.sectors > 0)
    }

    /// Whether it is the boot sector of a file system: FAT, NTFS and exFAT share the signature.
    fn has_parameter_block(&self) -> bool {
        let has = |at: usize, text: &[u8]| self.bytes.get(at..).is_some_and(|tail| tail.starts_with(text));
        let named = has(3, b"NTFS    ") || has(3, b"EXFAT   ") || has(54, b"FAT") || has(82, b"FAT");
        let sector = self.bytes.get(11..13).map_or(0, LittleEndian::read_u16);
        let cluster = self.bytes.get(13).copied().unwrap_or(0);
        named || (matches!(sector, 512 | 1024 | 2048 | 4096) && cluster.is_power_of_two())
    }

    /// Whether the four entries are a partition table of a device of `len` bytes. The signature alone says nothing:
    /// boot sectors of file systems have it too, with code or text where an MBR has its entries.
    pub(super) fn is_table(&self, len: u64) -> bool {
        let mut used: Vec<Entry> = Vec::new();
        for entry in self.entries() {
            if !matches!(entry.status, 0 | 0x80) {
                return false;
            }
            if entry.is_empty() {
                continue;
            }
            if entry.start == 0 && entry.kind != PROTECTIVE {
                return false;
            }
            used.push(entry);
        }
        let active = used.iter().filter(|entry| entry.status == 0x80).count();
        used.sort_by_key(|entry| entry.start);
        let apart = used.windows(2).all(|pair| match pair {
            // A hybrid's protective entry may cover the others.
            [a, b] => a.end() <= b.start || a.kind == PROTECTIVE || b.kind == PROTECTIVE,
            _ => true,
        });
        // The image of a device may be cut, so entries behind its end are nothing strange, unless the sector looks
        // like something else.
        let inside = used.iter().all(|entry| entry.end() <= len.div_ceil(SECTOR));
        !used.is_empty() && active <= 1 && apart && (inside || !self.has_parameter_block())
    }
}

/// What an MBR's partition type is called.
pub(super) fn type_name(kind: u8) -> &'static str {
    match kind {
        0x01 => "FAT12",
        0x04 | 0x06 => "FAT16",
        0x05 | 0x0f | 0x85 => "Extended",
        0x07 => "NTFS, exFAT or HPFS",
        0x0b | 0x0c => "FAT32",
        0x0e => "FAT16 LBA",
        0x11 | 0x14 | 0x16 | 0x17 | 0x1b | 0x1c | 0x1e => "Hidden FAT or NTFS",
        0x27 => "Windows recovery",
        0x42 => "Windows dynamic disk",
        0x82 => "Linux swap",
        0x83 => "Linux filesystem",
        0x8e => "Linux LVM",
        0xa5 => "FreeBSD",
        0xa6 => "OpenBSD",
        0xa8 => "macOS UFS",
        0xa9 => "NetBSD",
        0xaf => "HFS or HFS+",
        0xbf => "Solaris",
        0xee => "GPT protective",
        0xef => "EFI system",
        0xfb => "VMware VMFS",
        0xfc => "VMware vmkcore",
        0xfd => "Linux RAID",
        _ => "Unknown",
    }
}

/// `at` sectors and `len` sectors as a range of bytes.
pub(super) fn bytes(start: u64, sectors: u64, sector: u64) -> Option<std::ops::Range<u64>> {
    let from = start.checked_mul(sector)?;
    Some(from..from.checked_add(sectors.checked_mul(sector)?)?)
}

/// The name of partition number `number`.
pub(super) fn volume_name(number: usize) -> Vec<u8> {
    format!("p{number}").into_bytes()
}

/// What claims the same sectors.
pub(super) fn overlaps(volumes: &[Volume], code: &'static str) -> Vec<Finding> {
    let mut order: Vec<&Volume> = volumes.iter().collect();
    order.sort_by_key(|volume| volume.range.start);
    let mut findings = Vec::new();
    let mut end = 0;
    for volume in order {
        if volume.range.start < end {
            let text = format!("{} overlaps a partition that starts before it", volume.name.escape_ascii());
            findings.push(Finding::new(code, volume.range.clone(), Trust::Doubtful, text));
        }
        end = end.max(volume.range.end);
    }
    findings
}
