//! What the disk of a guest says of itself, wherever a piece of it turns up: structures that name the volume or disk
//! that they are of, and their own place in it. A block of free space that holds one is *anchored*.
//!
//! | structure | names its volume by | its place in it | source of the facts |
//! | --- | --- | --- | --- |
//! | MBR | disk signature and table | 0 | public descriptions; only at the start of a block |
//! | GPT header, both copies | disk GUID | own LBA; CRC of header and table | UEFI 2.10, section 5 |
//! | NTFS boot sector, and its copy in the last sector | serial number | 0 or behind the last sector counted | the Linux NTFS documentation |
//! | NTFS `FILE` record | – | own number at 0x2C, through the runs of record 0 | the Linux NTFS documentation |
//! | FAT32 boot sector and its copy | volume id | 0, or the sector at 0x32 | Microsoft FAT specification 1.03 |
//! | exFAT boot sector and its copy | serial number | 0, or sector 12; checksum in sector 11 of each | Microsoft exFAT specification |
//! | ext2, 3, 4 superblock and its copies | UUID | group at 0x5A | the kernel's ext4 documentation |
//! | XFS superblock with AGF behind it | UUID | number of the AG in the AGF | the XFS disk structures document |
//! | Btrfs superblock and its copies | UUID of the device | own position at 0x30; CRC-32C | the kernel's Btrfs documentation |
//! | swap header | UUID | 0 | the kernel's `swap.h` |
//! | LVM2 label | UUID of the physical volume | own sector number | the on-disk format in LVM2's documentation |
//!
//! The sector is 512 bytes: disks of `ESXi` have no other. Nothing here proves that the bytes around an anchor are of
//! the same disk, and an image inside a guest's file has anchors too: whoever uses them has to compare.

mod class;
mod disk;
mod linux;
mod windows;

pub use class::{Class, Classes};
pub use windows::Record;

use crate::format::{Clue, Window};
use crate::layer::Layer;
use crate::num::{narrow, wide};
use crate::read::read_vec;
use byteorder::{BigEndian, ByteOrder, LittleEndian};
use std::fmt::{self, Write as _};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// A partition table lies at the start of a file, and so at the start of a block; none is smaller.
const BLOCK: u64 = 512 << 10;
/// Bytes in which no more than so many anchors are told: data that looks like anchors must not drown the others.
const CELL: u64 = 1 << 20;
const MOST: u32 = 16;
/// `FILE` records that go on where the one before ended are told once in so many bytes.
const UNIT: u32 = 18;

/// The kinds of clues.
const MBR: u32 = 1;
const GPT: u32 = 2;
const NTFS: u32 = 3;
const FILE: u32 = 4;
const FAT: u32 = 5;
const EXT: u32 = 6;
const XFS: u32 = 7;
const SWAP: u32 = 8;
const LVM: u32 = 9;
const EXFAT: u32 = 10;
const BTRFS: u32 = 11;
const CLASS: u32 = 16;

/// What an identity is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sort {
    /// A disk with a GPT.
    Gpt,
    /// A disk with an MBR.
    Mbr,
    /// NTFS.
    Ntfs,
    /// FAT32.
    Fat,
    /// exFAT.
    ExFat,
    /// ext2, ext3 or ext4.
    Ext,
    /// XFS.
    Xfs,
    /// A device of Btrfs.
    Btrfs,
    /// Swap space.
    Swap,
    /// A physical volume of LVM2.
    Lvm,
}

impl Sort {
    /// A word for names and reports.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Gpt => "gpt",
            Self::Mbr => "mbr",
            Self::Ntfs => "ntfs",
            Self::Fat => "fat32",
            Self::ExFat => "exfat",
            Self::Ext => "ext",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Swap => "swap",
            Self::Lvm => "lvm",
        }
    }

    /// Whether offsets are those of a whole disk.
    #[must_use]
    pub fn is_disk(self) -> bool {
        matches!(self, Self::Gpt | Self::Mbr)
    }
}

/// Which volume or disk. Clones share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// What it is.
    pub sort: Sort,
    /// GUID, UUID or serial number, behind it zeros.
    pub id: [u8; 16],
    /// Its length, and what else must agree: the same UUID with another geometry is another state of the volume.
    pub shape: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let len = match self.sort {
            Sort::Mbr | Sort::Fat | Sort::ExFat => 4,
            Sort::Ntfs => 8,
            _ => 16,
        };
        for byte in self.id.iter().take(len) {
            let _ = write!(text, "{byte:02x}");
        }
        f.write_str(&text)
    }
}

/// A part of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// A structure that says where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// Where it was seen.
    pub at: u64,
    /// Of which volume or disk it is.
    pub of: Identity,
    /// Where in that it lies. Several where copies are alike.
    pub offsets: Vec<u64>,
    /// Length of the volume or disk. `None` if it does not say.
    pub len: Option<u64>,
    /// Where its disk has the volume, as the volume says.
    pub hidden: Option<u64>,
    /// What the disk is divided into.
    pub parts: Vec<Part>,
    /// The volume's name.
    pub label: Vec<u8>,
    /// Cluster, first cluster of the `$MFT` and of its mirror, in bytes of the volume.
    pub mft: Option<(u64, u64, u64)>,
}

impl Anchor {
    fn new(at: u64, sort: Sort, id: &[u8], shape: u64) -> Self {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(id) {
            *to = *from;
        }
        let of = Identity { sort, id: bytes, shape };
        let (offsets, parts, label) = (Vec::new(), Vec::new(), Vec::new());
        Self { at, of, offsets, len: None, hidden: None, parts, label, mft: None }
    }
}

fn le(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes.get(at..at.saturating_add(len)).map_or(0, |bytes| LittleEndian::read_uint(bytes, len))
}

fn be(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes.get(at..at.saturating_add(len)).map_or(0, |bytes| BigEndian::read_uint(bytes, len))
}

fn has(bytes: &[u8], at: usize, text: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|bytes| bytes.starts_with(text))
}

/// What a name of fixed length holds.
fn label(bytes: &[u8], at: usize, len: usize) -> Vec<u8> {
    let bytes = bytes.get(at..at.saturating_add(len)).unwrap_or_default();
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    bytes.trim_ascii().to_vec()
}

fn clue_kind(bytes: &[u8], at: u64) -> Option<u32> {
    let boot = has(bytes, 510, &[0x55, 0xAA]);
    match bytes.first_chunk::<4>()? {
        b"EFI " if has(bytes, 0, b"EFI PART") => return Some(GPT),
        b"XFSB" => return Some(XFS),
        b"LABE" if has(bytes, 0, b"LABELONE") => return Some(LVM),
        b"FILE" => return windows::number(bytes).map(|_| FILE),
        _ => {}
    }
    if boot && has(bytes, 3, b"NTFS    ") {
        return Some(NTFS);
    }
    if boot && has(bytes, 0x52, b"FAT32   ") {
        return Some(FAT);
    }
    if boot && has(bytes, 3, b"EXFAT   ") {
        return Some(EXFAT);
    }
    if has(bytes, 0x40, b"_BHRfS_M") {
        return Some(BTRFS);
    }
    if has(bytes, 0x38, &[0x53, 0xEF]) && linux::is_ext(bytes) {
        return Some(EXT);
    }
    if has(bytes, 4086, b"SWAPSPACE2") {
        return Some(SWAP);
    }
    (boot && at & BLOCK.saturating_sub(1) == 0 && disk::is_mbr(bytes)).then_some(MBR)
}

/// Reports anchors, and what kind of content each MiB has.
pub fn look(window: &Window<'_>, tell: &mut dyn FnMut(Clue)) {
    let mut cells = class::Cells::new(window);
    let start = crate::num::round_up(window.at, SECTOR);
    let mut cell = (u64::MAX, 0_u32);
    let mut last: Option<(u64, u64, u64)> = None;
    for at in (start..window.at.saturating_add(wide(window.own))).step_by(narrow(SECTOR)) {
        let Some(bytes) = window.bytes.get(narrow(at.saturating_sub(window.at))..) else { break };
        let Some(kind) = clue_kind(bytes, at) else { continue };
        cells.anchored(at);
        if kind == FILE {
            let (number, size) = windows::number(bytes).unwrap_or_default();
            let goes_on = last.is_some_and(|(last_at, last_number, unit)| {
                let step = number.saturating_sub(last_number).saturating_mul(size);
                unit == at >> UNIT && number > last_number && last_at.saturating_add(step) == at
            });
            if goes_on {
                continue;
            }
            last = Some((at, number, at >> UNIT));
        }
        if cell.0 != at.checked_div(CELL).unwrap_or(0) {
            cell = (at.checked_div(CELL).unwrap_or(0), 0);
        }
        cell.1 = cell.1.saturating_add(1);
        if cell.1 <= MOST {
            tell(Clue { at, kind, len: SECTOR, value: 0 });
        }
    }
    cells.tell(CLASS, tell);
}

/// The classes of content that the clues tell of.
#[must_use]
pub fn classes(clues: &[Clue]) -> Classes {
    Classes::new(clues.iter().filter(|clue| clue.kind == CLASS))
}

/// Reads and checks the anchor that a clue points to. `None` if it is none: most of what looks like one at first.
#[must_use]
pub fn anchor(layer: &dyn Layer, clue: &Clue) -> Option<Anchor> {
    let at = clue.at;
    let read = |at: u64, len: usize| {
        let (bytes, seen) = read_vec(layer, at, len);
        seen.is_whole().then_some(bytes)
    };
    match clue.kind {
        MBR => disk::mbr(&read(at, 512)?, at),
        GPT => disk::gpt(layer, at),
        NTFS => windows::ntfs(&read_vec(layer, at, 1024).0, at),
        FAT => windows::fat(layer, &read(at, 512)?, at),
        EXFAT => windows::exfat(layer, at),
        BTRFS => linux::btrfs(&read(at, 4096)?, at),
        EXT => linux::ext(layer, &read(at, 1024)?, at),
        XFS => linux::xfs(layer, &read(at, 512)?, at),
        SWAP => linux::swap(&read(at, 4096)?, at),
        LVM => linux::lvm(&read(at, 512)?, at),
        _ => None,
    }
}

/// Reads and checks the `FILE` record that a clue points to.
#[must_use]
pub fn record(layer: &dyn Layer, clue: &Clue) -> Option<Record> {
    (clue.kind == FILE).then(|| windows::record(layer, clue.at)).flatten()
}

#[cfg(test)]
mod tests;
