//! File descriptors: what other file systems call inodes.
//!
//! VMFS5: 2048 bytes, a lock sector, a metadata sector, 1024 bytes of pointers or content. VMFS6: a lock block and
//! a block with 512 bytes of metadata and, behind it, content or, at its end, pointers.
//!
//! | offset in the metadata | type | meaning | how sure |
//! | --- | --- | --- | --- |
//! | 0x00, 0x04 | u32 | own address, generation; zero in slots never used | real images |
//! | 0x08 | u32 | link count, 0 = deleted | real images |
//! | 0x0C | u32 | 2 folder, 3 file, 4 symlink, 5 system, 6 raw device mapping | real images |
//! | 0x14 | u64 | length | real images |
//! | 0x1C, 0x24 | u64 | block size, blocks | real images |
//! | 0x2C, 0x30, 0x34 | u32 | times of content, node, last read; Unix seconds | real images |
//! | 0x38, 0x3C, 0x40 | u32 | owner, group, mode | real images |
//! | 0x44 | u32 | what the pointers point to (ZLA) | real images |
//! | 0x64 | u32 | signature "fdmd", VMFS6 | real images |
//! | 0x70 | u32 | descriptor of the parent, VMFS6 | real images |
//! | 0x89 | u8 | log2 of the block size, absent on old versions | real images |
//!
//! Seen on real images: the count of blocks is that of the pointers to data that are not zero. Pointer blocks are not
//! counted, and resident files and mappings have 0.
//!
//! The lock sector starts with the magic and the record's own position in the volume. Locks are ignored: they never
//! limit reading. All that a reader needs lies behind it, so that a lock sector that is lost costs nothing: metadata that
//! name the address that is wanted stand for themselves.

use super::address::FdAddress;
use super::header::Header;
use crate::error::Error;
use crate::layer::{Layer, Trust};
use crate::num::{narrow, wide};
use crate::read::{Seen, read_vec};
use crate::record::Record;
use crate::tree::Kind;
use binrw::BinRead;

/// First bytes of a descriptor's lock sector.
pub const MAGIC: u32 = 0x10C0_0001;
/// Signature in the metadata of VMFS6: "fdmd".
const SIGNATURE: u32 = 0x6664_6D64;
/// Bytes of the metadata block in use on VMFS6; content follows.
const METADATA: u64 = 512;
/// No file is longer: 64 TiB is the limit, and this leaves room for what is to come.
const MAX_LEN: u64 = 1 << 50;

/// The start of any lock sector as on disk.
#[derive(BinRead, Clone, Debug)]
#[br(little)]
pub(super) struct RawLock {
    pub magic: u32,
    pub at: u64,
}

impl Record for RawLock {
    const SIZE: usize = 12;
    const NAME: &'static str = "VMFS lock";
}

/// The metadata of a descriptor as on disk.
#[derive(BinRead, Clone, Debug)]
#[br(little)]
#[expect(dead_code, reason = "the record as it is documented, of which not all is needed")]
pub(super) struct RawMetadata {
    pub address: u32,
    pub generation: u32,
    pub link_count: u32,
    pub kind: u32,
    pub flags: u32,
    pub file_length: u64,
    pub block_size: u64,
    pub num_blocks: u64,
    pub mtime: u32,
    pub ctime: u32,
    pub atime: u32,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub zero_level_addr_type: u32,
    #[br(pad_before = 28)]
    pub signature: u32,
    pub affinity_fd: u32,
    pub tbz_granularity_shift: u32,
    pub parent_fd: u32,
    #[br(pad_before = 21)]
    pub block_offset_shift: u8,
}

impl Record for RawMetadata {
    const SIZE: usize = 0x8A;
    const NAME: &'static str = "VMFS descriptor";
}

/// What a descriptor describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A folder.
    Folder,
    /// A file.
    File,
    /// A symbolic link.
    Symlink,
    /// A system file or folder.
    System,
    /// A raw device mapping.
    Mapping,
}

impl Type {
    /// A type read from disk, in a descriptor or in a folder's entry.
    #[must_use]
    pub fn of(raw: u32) -> Option<Self> {
        Some(match raw {
            2 => Self::Folder,
            3 => Self::File,
            4 => Self::Symlink,
            5 => Self::System,
            6 => Self::Mapping,
            _ => return None,
        })
    }
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Folder => "a folder",
            Self::File => "a file",
            Self::Symlink => "a symbolic link",
            Self::System => "a system file",
            Self::Mapping => "a raw device mapping",
        })
    }
}

/// Where a file's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The pointers point to data, through so many levels of pointer blocks.
    Mapped {
        /// 0, 1 or 2.
        levels: u32,
        /// log2 of what one pointer to data spans.
        shift: u32,
    },
    /// In the descriptor itself.
    Resident,
    /// On another device.
    Elsewhere,
}

/// Where what is known of a descriptor comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Its place.
    #[default]
    Disk,
    /// Its place, where only the lock sector is lost or another record's.
    Unlocked,
    /// Its place, where the metadata are lost: the pointers behind them, the folder's entry and the tables of owners.
    /// Length, times, owner and mode are not known.
    Pointers,
    /// Its place, where the pointers of a folder are lost: its first block, which says whose it is.
    Content,
    /// A journal, as its place is lost.
    Journal {
        /// Where the journal lies in the volume.
        journal: u64,
        /// Where in it.
        at: u64,
    },
    /// The tables that say which sub-blocks and file blocks it has, as its place is lost. Length and order are made up
    /// of those; generation, times, owner and mode are not known.
    Owners,
}

/// A checked descriptor.
#[derive(Clone, Debug)]
pub struct Descriptor {
    /// Where it lies in the volume.
    pub at: u64,
    /// Its address.
    pub address: FdAddress,
    /// Generation: counts how often the slot was used, and agrees with the folder's entry.
    pub generation: u32,
    /// Link count.
    pub links: u32,
    /// Type.
    pub kind: Type,
    /// Length in bytes.
    pub len: u64,
    /// How many blocks the descriptor counts.
    pub blocks: u64,
    /// Last change of the content, Unix seconds.
    pub modified: u32,
    /// Last change of the descriptor, Unix seconds.
    pub changed: u32,
    /// Last read, Unix seconds.
    pub accessed: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Mode, with the type bits that the disk has.
    pub mode: u32,
    /// Folder that has it, on VMFS6.
    pub parent: Option<FdAddress>,
    /// Where the bytes are.
    pub shape: Shape,
    /// The array of pointers; bytes that could not be read are 0xFF, which no pointer is.
    pub pointers: Vec<u8>,
    /// Where the array lies in the volume.
    pub pointers_at: u64,
    /// Where resident content lies in the volume.
    pub content_at: u64,
    /// How much there can be.
    pub content_len: u64,
    /// Where all this comes from.
    pub origin: Origin,
    /// How far to believe it.
    pub trust: Trust,
}

impl Descriptor {
    /// Reads the descriptor at `at` of a volume. It must say that it is `address`.
    pub fn load(lv: &dyn Layer, header: &Header, at: u64, address: FdAddress) -> Result<Self, Error> {
        let (bytes, seen) = read_poisoned(lv, at, narrow(header.descriptor_size()));
        let metadata = at.saturating_add(header.md);
        let needed = [at..at.saturating_add(wide(RawLock::SIZE)), metadata..RawMetadata::end(metadata)];
        let lost = |range: &std::ops::Range<u64>| {
            let hit = seen.gaps.iter().find(|gap| gap.range.start < range.end && range.start < gap.range.end);
            hit.map(|gap| Error::Lost { what: RawMetadata::NAME, gap: gap.clone() })
        };
        if let Some(error) = lost(&needed[1]) {
            return Err(error);
        }
        let found = match Self::parse(header, at, &bytes, seen.trust) {
            Ok(found) => found,
            Err(error) => {
                let error = lost(&needed[0]).unwrap_or(error);
                return Self::unlocked(header, at, &bytes, seen.trust, address).ok_or(error);
            }
        };
        if found.address != address {
            let text = format!("it says that it is {} and should be {address}", found.address);
            return Err(Error::corrupt("VMFS descriptor: address", metadata, text));
        }
        Ok(found)
    }

    /// A descriptor whose lock sector is lost: its metadata must agree with the address that is wanted and with
    /// themselves, because they don't say where they lie.
    fn unlocked(header: &Header, at: u64, bytes: &[u8], trust: Trust, address: FdAddress) -> Option<Self> {
        let found = Self::behind(header, at, bytes, trust).ok()?;
        let agrees = found.address == address && found.trust <= trust.max(Trust::Inferred);
        let trust = trust.max(Trust::Inferred);
        agrees.then_some(Self { origin: Origin::Unlocked, trust, ..found })
    }

    /// Parses and checks the bytes of a descriptor that were read at `at`.
    pub fn parse(header: &Header, at: u64, bytes: &[u8], trust: Trust) -> Result<Self, Error> {
        let lock = RawLock::parse(bytes, at)?;
        if lock.magic != MAGIC {
            return Err(Error::corrupt("VMFS descriptor: magic", at, format!("{:#010x}", lock.magic)));
        }
        if lock.at != at {
            return Err(Error::corrupt("VMFS descriptor: position", at, format!("it says {:#x}", lock.at)));
        }
        Self::behind(header, at, bytes, trust)
    }

    /// Parses and checks what lies behind the lock sector.
    fn behind(header: &Header, at: u64, bytes: &[u8], trust: Trust) -> Result<Self, Error> {
        let metadata = at.saturating_add(header.md);
        let raw = RawMetadata::parse(bytes.get(narrow(header.md)..).unwrap_or_default(), metadata)?;
        if raw.address == 0 {
            return Err(Error::NotFound);
        }
        let corrupt = |what, offset: u64, found: String| Error::corrupt(what, metadata.saturating_add(offset), found);
        let address = FdAddress::of(raw.address)
            .ok_or_else(|| corrupt("VMFS descriptor: address", 0, format!("{:#010x}", raw.address)))?;
        let kind = Type::of(raw.kind)
            .ok_or_else(|| corrupt("VMFS descriptor: type", 0x0C, format!("{} (2 to 6)", raw.kind)))?;
        if raw.file_length > MAX_LEN {
            return Err(corrupt("VMFS descriptor: length", 0x14, format!("{:#x}", raw.file_length)));
        }
        let mut trust = trust;
        if header.is_six() && raw.signature != SIGNATURE {
            trust = trust.max(Trust::Doubtful);
        }
        let shape = Self::shape(header, &raw, kind, &mut trust)
            .ok_or_else(|| corrupt("VMFS descriptor: ZLA", 0x44, format!("{}", raw.zero_level_addr_type)))?;
        if let Shape::Mapped { shift, .. } = shape
            && raw.link_count > 0
            && raw.num_blocks > raw.file_length.div_ceil(1_u64.checked_shl(shift).unwrap_or(1))
        {
            // No block lies wholly behind the end of a file on real images: the length or the count is wrong.
            trust = trust.max(Trust::Doubtful);
        }
        let (pointers, content) = Self::parts(header);
        Ok(Self {
            at,
            address,
            generation: raw.generation,
            links: raw.link_count,
            kind,
            len: raw.file_length,
            blocks: raw.num_blocks,
            modified: raw.mtime,
            changed: raw.ctime,
            accessed: raw.atime,
            uid: raw.uid,
            gid: raw.gid,
            mode: raw.mode,
            parent: FdAddress::of(raw.parent_fd).filter(|_| header.is_six()),
            shape,
            pointers: bytes.get(narrow(pointers)..).unwrap_or_default().to_vec(),
            pointers_at: at.saturating_add(pointers),
            content_at: at.saturating_add(content),
            content_len: header.descriptor_size().saturating_sub(content),
            origin: Origin::Disk,
            trust,
        })
    }

    /// Where in a descriptor its pointers lie, which go up to its end, and where content does.
    pub(super) fn parts(header: &Header) -> (u64, u64) {
        if header.is_six() {
            let pointers = if header.md <= 4096 { 2560 } else { header.md >> 1 };
            (header.md.saturating_mul(2).saturating_sub(pointers), header.md.saturating_add(METADATA))
        } else {
            (1024, 1024)
        }
    }

    fn shape(header: &Header, raw: &RawMetadata, kind: Type, trust: &mut Trust) -> Option<Shape> {
        let (levels, usual) = match raw.zero_level_addr_type {
            _ if kind == Type::Mapping => return Some(Shape::Elsewhere),
            4305 => return Some(Shape::Resident),
            1 => (0, header.file_shift),
            2 => (0, header.sub_shift),
            3 | 5 => (1, header.file_shift),
            4304 => (2, header.file_shift),
            // A file that ESXi deleted can keep nothing of what it was.
            0 if raw.file_length == 0 => (0, header.file_shift),
            _ => return None,
        };
        let sizes = [header.file_shift, header.sub_shift, header.large_shift];
        let by_size = raw.block_size.is_power_of_two().then(|| raw.block_size.trailing_zeros());
        let by_shift = Some(u32::from(raw.block_offset_shift)).filter(|shift| *shift != 0);
        let believed = [by_size, by_shift].into_iter().flatten().find(|shift| sizes.contains(shift));
        if believed.is_none() || by_shift.is_some_and(|shift| Some(shift) != by_size) {
            *trust = (*trust).max(Trust::Doubtful);
        }
        Some(Shape::Mapped { levels, shift: believed.unwrap_or(usual) })
    }

    /// Kind of the node.
    #[must_use]
    pub fn node_kind(&self) -> Kind {
        /// Type bits of a folder in a mode.
        const FOLDER: u32 = 0o040_000;
        match self.kind {
            Type::Folder => Kind::Dir,
            Type::System if self.mode & 0o170_000 == FOLDER => Kind::Dir,
            Type::File | Type::System => Kind::File,
            Type::Symlink => Kind::Symlink,
            Type::Mapping => Kind::Mapping,
        }
    }
}

/// Reads a table of pointers; bytes that can't be had are 0xFF, which no pointer is, so that they cost the blocks
/// that they would have mapped and no others.
pub(super) fn read_poisoned(layer: &dyn Layer, at: u64, len: usize) -> (Vec<u8>, Seen) {
    let (mut bytes, seen) = read_vec(layer, at, len);
    for gap in &seen.gaps {
        // A pointer that is cut by the gap is lost as a whole.
        let start = narrow(gap.range.start.saturating_sub(at)) & !7;
        let end = narrow(gap.range.end.saturating_sub(at).saturating_add(7)) & !7;
        let end = end.min(bytes.len());
        if let Some(bytes) = bytes.get_mut(start..end) {
            bytes.fill(0xFF);
        }
    }
    (bytes, seen)
}
