//! The logical volume below VMFS: one or more devices, put together by their tables of physical extents.
//!
//! | offset in the device header | type | meaning | how sure |
//! | --- | --- | --- | --- |
//! | 0x00 | u32 | magic, 0xC001D00D | real images |
//! | 0x04, 0x08 | u32, u32 | version: 3 to 6, 21 | real images |
//! | 0x5A | u32 | disk block size | real images: 512 |
//! | 0x5E | u64 | bytes of the device | real images |
//! | 0x66 | u32 | volumes in the table behind the header; always 1 in practice | real images |
//! | 0x6A, 0x6E | u32, u32 | physical extents, the last of them | real images |
//! | 0x72 | u64 | generation: counts changes of this metadata | real images |
//! | 0x7A | u64 | where the first extent's data starts | real images |
//! | 0x82 | 16 | UUID | real images |
//! | 0x92, 0x9A | u64, u64 | made, changed; microseconds since 1970 | real images |
//! | 0xBE | u32 | pairs of bitmap and table here, 0 means 1 | real images |
//! | 0xC2 | u64 | the next, extended header; 0 = none | real 64 TiB device |
//! | 0xCA | u32 | alignment of metadata, version 6 | real images |
//! | 0xD2 | u32 | flags, 1 = VMFS-L | real images |
//!
//! The volume table starts a sector behind the header (version 6: one alignment unit), bitmap and table of extents
//! 512 KiB behind that. A table has 8192 entries of 128 bytes. Up to version 5 an entry covers 256 MiB, in version
//! 6 up to 16 TiB. Every 16 TiB a device keeps 16 MiB for metadata, so that no constant turns a logical into a
//! physical position: only the tables do.
//!
//! Where they are destroyed, what a fresh device has stands in for them, as inferred: its data starts at 17 MiB and
//! goes on without a gap but for the 16 MiB behind each 16 TiB (real images of all versions, real 64 TiB devices of
//! versions 5 and 6). Records of the file system say where in the volume they lie, so that this can be checked.

use super::uuid;
use crate::adapt::{below, within_dump};
use crate::error::Error;
use crate::layer::{Bytes, Layer, Run, Trust, Why};
use crate::link::Member;
use crate::note::Finding;
use crate::num::{narrow, wide};
use crate::read::{read, read_vec};
use crate::record::Record;
use binrw::BinRead;
use byteorder::{ByteOrder, LittleEndian};
use std::fmt;
use std::ops::Range;

/// Where the device header lies.
pub const HEADER_AT: u64 = 0x10_0000;
/// First bytes of the device header.
pub const MAGIC: u32 = 0xC001_D00D;
/// Bytes of a physical extent up to version 5, and the unit of [`VolumeEntry::first_pe`] in all.
pub const EXTENT: u64 = 256 << 20;

/// Where data starts on every device that was seen.
pub const DATA_AT: u64 = 0x110_0000;
/// What lies between two areas of metadata, and how long each is.
pub(super) const STRETCH: u64 = 1 << 44;
pub(super) const AREA: u64 = 16 << 20;

/// From the end of the header's block to the first bitmap.
const TO_BITMAP: u64 = 0x8_0000;
/// Entries of one table.
const ENTRIES: u64 = 8192;
/// Bytes of an entry.
const ENTRY: u64 = 128;
/// Pairs of bitmap and table that a header can have.
const MAX_MAPS: u64 = 8;
/// Headers of one device: one every 16 TiB, and a device has 64 TiB at most.
const MAX_HEADERS: usize = 16;
/// Volumes of one device.
const MAX_VOLUMES: u32 = 512;
/// Devices of one volume.
const MAX_DEVICES: u32 = 32;
/// No volume is larger: 64 TiB is the limit, and this leaves room for what is to come.
const MAX_LEN: u64 = 1 << 50;
/// Entries read of one device: 128 TiB of them.
const MAX_ENTRIES: usize = 1 << 19;

/// The device header as on disk.
#[derive(BinRead, Clone, Debug)]
#[br(little)]
#[expect(dead_code, reason = "the record as it is documented, of which not all is needed")]
pub(super) struct RawDevice {
    pub magic: u32,
    pub major_version: u32,
    pub minor_version: u32,
    #[br(pad_before = 78)]
    pub disk_block_size: u32,
    pub total_bytes: u64,
    pub num_volumes: u32,
    pub num_pes: u32,
    pub last_pe: u32,
    pub generation: u64,
    pub data_offset: u64,
    pub uuid: [u8; 16],
    pub init_time: u64,
    pub modification_time: u64,
    #[br(pad_before = 28)]
    pub num_pe_maps: u32,
    pub ext_metadata_offset: u64,
    pub md_alignment: u32,
    pub pes_of_256_mib: u32,
    pub flags: u32,
}

impl Record for RawDevice {
    const SIZE: usize = 0xD6;
    const NAME: &'static str = "LVM device header";
}

impl RawDevice {
    /// Whether the fields can be those of a header: what tells one from four bytes that happen to be its magic.
    pub(super) fn is_plausible(&self) -> bool {
        self.magic == MAGIC
            && (3..=6).contains(&self.major_version)
            && matches!(self.disk_block_size, 512 | 4096)
            && (0x100_0000..=0x1000_0000).contains(&self.data_offset)
            && (self.data_offset..=MAX_LEN).contains(&self.total_bytes)
    }
}

/// An entry of the volume table as on disk.
#[derive(BinRead, Clone, Debug)]
#[br(little)]
pub struct VolumeEntry {
    /// Bytes of the whole logical volume.
    pub logical_size: u64,
    /// Counts changes.
    pub generation: u64,
    /// 1 is normal.
    pub state: u32,
    /// Name: the UUID as text.
    pub name: [u8; 64],
    /// UUID, equal on all devices of the volume.
    pub uuid: [u8; 16],
    /// Snapshot id: a copy that got a new signature has another.
    pub snapshot_id: u32,
    /// Creation, microseconds since 1970.
    pub creation_time: u64,
    /// What this device's extent table calls the volume.
    pub volume_id: u32,
    /// Extents of 256 MiB on this device.
    pub num_pes: u32,
    /// First extent, numbered throughout the volume.
    pub first_pe: u64,
    /// Last extent.
    pub last_pe: u64,
    /// Change, microseconds since 1970.
    pub modification_time: u64,
    /// Devices of the volume.
    pub num_devices: u32,
}

impl VolumeEntry {
    /// Whether the numbers can be those of an entry.
    fn fits(&self) -> bool {
        let last = MAX_LEN.checked_div(EXTENT).unwrap_or(0);
        self.first_pe <= self.last_pe
            && self.last_pe < last
            && (self.last_pe.saturating_mul(EXTENT).saturating_add(1)..=MAX_LEN).contains(&self.logical_size)
            && self.num_devices <= MAX_DEVICES
    }

    /// Whether an entry stands by itself, without the header before it: all that it says twice agrees.
    fn is_plausible(&self) -> bool {
        let pes = self.last_pe.saturating_sub(self.first_pe).saturating_add(1);
        let named = self.name.starts_with(uuid(self.uuid).as_bytes());
        self.fits()
            && self.uuid != [0; 16]
            && self.num_devices > 0
            && pes == u64::from(self.num_pes)
            && (named || self.state == 1)
    }
}

impl Record for VolumeEntry {
    const SIZE: usize = 0x94;
    const NAME: &'static str = "LVM volume table entry";
}

/// A header that continues the tables of a device above 16 TiB, as on disk.
#[derive(BinRead, Clone, Debug)]
#[br(little)]
#[expect(dead_code, reason = "the record as it is documented, of which not all is needed")]
pub(super) struct RawExtension {
    pub magic: u32,
    pub num_pe_maps: u32,
    pub data_offset: u64,
    pub next_offset: u64,
}

impl Record for RawExtension {
    const SIZE: usize = 0x18;
    const NAME: &'static str = "LVM extended header";
}

/// An entry of an extent table as on disk.
#[derive(BinRead, Clone, Debug)]
#[br(little)]
#[expect(dead_code, reason = "the record as it is documented, of which not all is needed")]
pub(super) struct RawExtent {
    pub used: u8,
    pub id: u32,
    pub volume_id: u32,
    pub physical_offset: u64,
    pub logical_offset: u64,
    pub length: u64,
    pub version: u32,
}

impl Record for RawExtent {
    const SIZE: usize = 0x25;
    const NAME: &'static str = "LVM extent table entry";
}

/// A device of a logical volume.
#[derive(Clone)]
pub struct Device {
    /// Its bytes.
    pub bytes: Bytes,
    /// Version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
    /// Bytes that it says it has.
    pub total_bytes: u64,
    /// Where data starts.
    pub data_offset: u64,
    /// UUID.
    pub uuid: [u8; 16],
    /// When it was made, microseconds since 1970.
    pub made: u64,
    /// When its metadata was changed, microseconds since 1970.
    pub changed: u64,
    /// How often its metadata was changed.
    pub generation: u64,
    /// VMFS-L.
    pub local: bool,
    /// Its part of the volume.
    pub volume: VolumeEntry,
    /// Where its metadata lies: the headers and tables.
    pub metadata: Vec<Range<u64>>,
    /// What was seen on the way.
    pub findings: Vec<Finding>,
    /// Whether nothing says how many devices the volume has.
    pub(super) alone: bool,
    /// Whether the extents of all volumes are meant: the volume table is gone.
    any_volume: bool,
    pieces: Vec<Piece>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}, extents {}..={})", uuid(self.uuid), self.volume.first_pe, self.volume.last_pe)
    }
}

/// Runs of extents that are looked at for being where they should not be.
const MAX_ODD: usize = 64;

/// Consecutive bytes on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    logical: u64,
    physical: u64,
    len: u64,
    trust: Trust,
}

impl Piece {
    fn end(&self) -> u64 {
        self.logical.saturating_add(self.len)
    }

    fn continues(&self, next: &Self) -> bool {
        self.end() == next.logical
            && self.physical.checked_add(self.len) == Some(next.physical)
            && self.trust == next.trust
    }
}

impl Device {
    /// Reads the header, the first volume's entry and the tables of a device.
    pub fn load(bytes: &Bytes) -> Result<Self, Error> {
        let raw = RawDevice::load(&**bytes, HEADER_AT)?;
        if !raw.is_plausible() {
            let found = format!(
                "magic {:#010x}, version {}, disk block {}, data at {:#x} of {:#x}",
                raw.magic, raw.major_version, raw.disk_block_size, raw.data_offset, raw.total_bytes
            );
            return Err(Error::corrupt(RawDevice::NAME, HEADER_AT, found));
        }
        let md = if raw.major_version < 6 { 512 } else { u64::from(raw.md_alignment) };
        if !md.is_power_of_two() || !(512..=64 << 10).contains(&md) {
            let at = HEADER_AT.saturating_add(0xCA);
            return Err(Error::corrupt("LVM device header: alignment", at, format!("{md} (512 to 65536)")));
        }
        let mut findings = Vec::new();
        if raw.num_volumes != 1 {
            let text = format!("{} volumes on the device, the first is read", raw.num_volumes.min(MAX_VOLUMES));
            findings.push(Finding::new("LVM-VOLUMES", field(0x66, 4), Trust::Inferred, text));
        }
        if raw.total_bytes > bytes.len() {
            findings.push(short(bytes.len(), raw.total_bytes));
        }
        let volume_at = HEADER_AT.saturating_add(md);
        let volume = VolumeEntry::load(&**bytes, volume_at)?;
        if !volume.fits() {
            let found = format!(
                "extents {} to {}, {:#x} bytes, {} devices",
                volume.first_pe, volume.last_pe, volume.logical_size, volume.num_devices
            );
            return Err(Error::corrupt(VolumeEntry::NAME, volume_at, found));
        }
        let mut device = Self {
            bytes: Bytes::clone(bytes),
            major: raw.major_version,
            minor: raw.minor_version,
            total_bytes: raw.total_bytes,
            data_offset: raw.data_offset,
            uuid: raw.uuid,
            made: raw.init_time,
            changed: raw.modification_time,
            generation: raw.generation,
            local: raw.flags & 1 != 0,
            volume,
            metadata: Vec::new(),
            findings,
            alone: false,
            any_volume: false,
            pieces: Vec::new(),
        };
        device.load_extents(&raw, md);
        device.straighten();
        device.fill();
        Ok(device)
    }

    /// The volume table of a device whose header is destroyed, and the alignment that it lies at.
    fn table(layer: &dyn Layer) -> Option<(u64, VolumeEntry)> {
        let units = [512, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10];
        units.into_iter().find_map(|md| {
            let at = HEADER_AT.saturating_add(md);
            if VolumeEntry::end(at) > layer.len() {
                return None;
            }
            VolumeEntry::load(layer, at).ok().filter(VolumeEntry::is_plausible).map(|volume| (md, volume))
        })
    }

    /// Whether a volume table stands where it would, whatever is before it.
    pub(super) fn is_tabled(layer: &dyn Layer) -> bool {
        Self::table(layer).is_some()
    }

    /// A device whose header is destroyed, by the volume table behind it.
    #[must_use]
    pub(super) fn without_header(bytes: &Bytes) -> Option<Self> {
        let (md, volume) = Self::table(&**bytes)?;
        let (major, pes) = (if md == 512 { 5 } else { 6 }, volume.num_pes);
        // Version 6 has one entry for a long run, and one table has room for all of them.
        let maps = if major < 6 { u64::from(pes).div_ceil(ENTRIES).min(MAX_MAPS) } else { 1 };
        let raw = RawDevice {
            magic: MAGIC,
            major_version: major,
            minor_version: 0,
            disk_block_size: 512,
            total_bytes: bytes.len(),
            num_volumes: 1,
            num_pes: 0,
            last_pe: 0,
            generation: 0,
            data_offset: DATA_AT,
            uuid: [0; 16],
            init_time: 0,
            modification_time: 0,
            num_pe_maps: u32::try_from(maps).unwrap_or(1),
            ext_metadata_offset: 0,
            md_alignment: u32::try_from(md).unwrap_or(0),
            pes_of_256_mib: pes,
            flags: 0,
        };
        let text = format!(
            "the header of the device is destroyed; the table behind it says that extents {} to {} of volume {} are here",
            volume.first_pe,
            volume.last_pe,
            uuid(volume.uuid)
        );
        let mut device = Self::assumed(bytes, DATA_AT, 0);
        device.findings.push(Finding::new("LVM-HEADER", field(0, 512), Trust::Inferred, text));
        (device.major, device.volume, device.pieces, device.alone) = (major, volume, Vec::new(), false);
        device.load_extents(&raw, md);
        device.straighten();
        device.fill();
        device.settle();
        Some(device)
    }

    /// A device whose volume table is destroyed, by its header and its tables of extents. Only that of a volume's
    /// first part says enough: on a later one nothing else tells which part of the volume it has.
    #[must_use]
    pub(super) fn without_table(bytes: &Bytes) -> Option<Self> {
        let raw = RawDevice::load(&**bytes, HEADER_AT).ok().filter(RawDevice::is_plausible)?;
        let md = if raw.major_version < 6 { 512 } else { u64::from(raw.md_alignment) };
        if !md.is_power_of_two() || !(512..=64 << 10).contains(&md) {
            return None;
        }
        let mut device = Self::assumed(bytes, raw.data_offset, 0);
        (device.major, device.minor, device.uuid) = (raw.major_version, raw.minor_version, raw.uuid);
        (device.changed, device.generation) = (raw.modification_time, raw.generation);
        (device.total_bytes, device.made, device.local) = (raw.total_bytes, raw.init_time, raw.flags & 1 != 0);
        if raw.total_bytes > bytes.len() {
            device.findings.push(short(bytes.len(), raw.total_bytes));
        }
        let at = HEADER_AT.saturating_add(md);
        let text = "the volume table of the device is destroyed; which volume it has follows from the tables behind it";
        device.findings.push(Finding::new("LVM-VOLUME", at..at.saturating_add(512), Trust::Inferred, text));
        device.pieces = Vec::new();
        device.any_volume = true;
        device.load_extents(&raw, md);
        let pes = if raw.major_version < 6 { raw.num_pes } else { raw.pes_of_256_mib };
        let end = device.pieces.last().map_or(u64::from(pes).saturating_mul(EXTENT), Piece::end);
        let first = device.pieces.first().map_or(0, |piece| piece.logical);
        device.volume.first_pe = first.checked_div(EXTENT).unwrap_or(0);
        device.volume.last_pe = end.div_ceil(EXTENT).saturating_sub(1);
        device.volume.logical_size = end;
        device.straighten();
        device.fill();
        Some(device)
    }

    /// A device of which nothing tells what it is: `len` bytes of a volume that start at `data_offset`, as on a fresh
    /// device that has all of its volume.
    #[must_use]
    pub(super) fn assumed(bytes: &Bytes, data_offset: u64, len: u64) -> Self {
        let len = len.min(MAX_LEN);
        let volume = VolumeEntry {
            logical_size: len,
            generation: 0,
            state: 0,
            name: [0; 64],
            uuid: [0; 16],
            snapshot_id: 0,
            creation_time: 0,
            volume_id: 0,
            num_pes: 0,
            first_pe: 0,
            last_pe: len.div_ceil(EXTENT).saturating_sub(1),
            modification_time: 0,
            num_devices: 1,
        };
        let mut device = Self {
            bytes: Bytes::clone(bytes),
            major: 0,
            minor: 0,
            total_bytes: bytes.len(),
            data_offset,
            uuid: [0; 16],
            made: 0,
            changed: 0,
            generation: 0,
            local: false,
            volume,
            metadata: Vec::new(),
            findings: Vec::new(),
            alone: true,
            any_volume: false,
            pieces: Vec::new(),
        };
        device.pieces = device.by_rule(0..len).collect();
        device.settle();
        device
    }

    /// A dump of the volume itself: all of it in one piece, and no device.
    #[must_use]
    pub(super) fn none(bytes: &Bytes, len: u64) -> Self {
        let mut device = Self::assumed(bytes, 0, len);
        let len = device.volume.logical_size;
        device.pieces = vec![Piece { logical: 0, physical: 0, len, trust: Trust::Sound }];
        device.settle();
        device
    }

    /// A device that holds all that its pieces name: what its image has not is outside of the image.
    fn settle(&mut self) {
        self.total_bytes = self.total_bytes.max(self.end());
    }

    /// Whether the bytes of this device are a dump of the volume itself.
    pub(super) fn is_none(&self) -> bool {
        self.data_offset == 0
    }

    /// Where its last piece of the volume ends.
    pub(super) fn end(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.physical.saturating_add(piece.len)).max().unwrap_or(0)
    }

    /// Bytes of a volume that its image has room for, in whole extents.
    pub(super) fn room(&self) -> u64 {
        let len = self.bytes.len().saturating_sub(self.data_offset);
        len.saturating_sub(len.checked_rem(EXTENT).unwrap_or(0))
    }

    /// Where a fresh device has `range` of the volume.
    fn by_rule(&self, range: Range<u64>) -> impl Iterator<Item = Piece> {
        let start = self.volume.first_pe.saturating_mul(EXTENT);
        let (data, mut at) = (self.data_offset, range.start.max(start));
        std::iter::from_fn(move || {
            let into = at.saturating_sub(start);
            let areas = into.checked_div(STRETCH).unwrap_or(0);
            let rest = STRETCH.saturating_sub(into.checked_rem(STRETCH).unwrap_or(0));
            let len = range.end.saturating_sub(at).min(rest);
            let physical = data.saturating_add(into).saturating_add(areas.saturating_mul(AREA));
            let piece = Piece { logical: at, physical, len, trust: Trust::Inferred };
            at = at.saturating_add(len);
            (len > 0).then_some(piece)
        })
    }

    /// Where a fresh device has a piece, if in one piece.
    fn rule_of(&self, piece: &Piece) -> Option<u64> {
        let rule = self.by_rule(piece.logical..piece.end()).next()?;
        (rule.len == piece.len).then_some(rule.physical)
    }

    /// Doubts extents that are elsewhere than on a fresh device while most are as there. Where the tables have two in one
    /// place, or one behind the device's end, or the file system's header not where it is, the fresh place counts.
    fn straighten(&mut self) {
        let is_odd = |piece: &Piece| self.rule_of(piece).is_some_and(|rule| rule != piece.physical);
        let (odd, fresh): (Vec<Piece>, Vec<Piece>) = self.pieces.iter().partition(|piece| is_odd(piece));
        let bytes = |pieces: &[Piece]| pieces.iter().fold(0, |sum: u64, piece| sum.saturating_add(piece.len));
        let place = |physical: u64, piece: &Piece| physical..physical.saturating_add(piece.len);
        let clashes = |range: &Range<u64>, own: &Piece| {
            let others = self.pieces.iter().filter(|piece| *piece != own).map(|piece| place(piece.physical, piece));
            others.into_iter().any(|other| other.start < range.end && range.start < other.end)
        };
        let mut moved = Vec::new();
        // Damage is an extent or a few; a table of which all are odd is of another make.
        for piece in odd.iter().filter(|_| odd.len() <= MAX_ODD) {
            let Some(rule) = self.rule_of(piece) else { continue };
            let (there, here) = (place(rule, piece), place(piece.physical, piece));
            let behind = here.end > self.total_bytes && there.end <= self.total_bytes;
            let header = |base: u64| super::has_magic(&*self.bytes, base.saturating_add(super::header::HEADER_AT));
            let head = piece.logical == 0 && header(rule) && !header(piece.physical);
            let wrong = clashes(&here, piece) || behind || head;
            if wrong && !clashes(&there, piece) {
                moved.push((*piece, Piece { physical: rule, trust: Trust::Doubtful, ..*piece }));
            } else if wrong || bytes(&fresh) > bytes(&odd) {
                moved.push((*piece, Piece { trust: Trust::Doubtful, ..*piece }));
            }
        }
        if moved.is_empty() {
            return;
        }
        let elsewhere = moved.iter().filter(|(old, new)| old.physical != new.physical).count();
        let text = format!(
            "{} runs of extents are where no fresh device has them; {elsewhere} of them, which can't be where the tables \
             say, are read where it has them",
            moved.len()
        );
        let range = self.metadata.first().cloned().unwrap_or_default();
        for piece in &mut self.pieces {
            if let Some((_, new)) = moved.iter().find(|(old, _)| old == piece) {
                *piece = *new;
            }
        }
        self.findings.push(Finding::new("LVM-PE-PLACE", range, Trust::Doubtful, text));
    }

    /// Maps what the tables forgot as a fresh device has it, unless what they say differs from that.
    fn fill(&mut self) {
        let span = self.span().start..self.span().end.min(self.volume.logical_size);
        let fresh = |piece: &Piece| self.rule_of(piece) == Some(piece.physical);
        if span.is_empty() || !self.pieces.iter().all(fresh) {
            return;
        }
        let mut filled = Vec::new();
        let mut at = span.start;
        for piece in &self.pieces {
            filled.extend(self.by_rule(at..piece.logical.min(span.end)));
            filled.push(*piece);
            at = at.max(piece.end());
        }
        filled.extend(self.by_rule(at..span.end));
        let missed: u64 = filled.iter().filter(|piece| piece.trust != Trust::Sound).map(|piece| piece.len).sum();
        if missed > 0 {
            let text = format!(
                "the tables of extents forgot {missed} bytes of the volume; they are mapped as on a fresh device"
            );
            let range = self.metadata.first().cloned().unwrap_or_default();
            self.findings.push(Finding::new("LVM-PE-RULE", range, Trust::Inferred, text));
        }
        self.pieces = filled;
    }

    /// Gives all from this extent on to the devices behind it.
    pub(super) fn end_at(&mut self, extent: u64) {
        let end = extent.saturating_mul(EXTENT);
        self.pieces.retain(|piece| piece.logical < end);
        for piece in &mut self.pieces {
            piece.len = piece.len.min(end.saturating_sub(piece.logical));
        }
        self.volume.last_pe = extent.saturating_sub(1);
        self.total_bytes = self.bytes.len();
        self.settle();
    }

    /// Gives an assumed volume the length that its file system has.
    #[must_use]
    pub(super) fn of_len(&self, len: u64) -> Self {
        let mut device = Self { volume: VolumeEntry { logical_size: len, ..self.volume.clone() }, ..self.clone() };
        device.volume.last_pe = device.volume.last_pe.max(len.div_ceil(EXTENT).saturating_sub(1));
        device.pieces = if self.is_none() {
            vec![Piece { logical: 0, physical: 0, len, trust: Trust::Sound }]
        } else {
            self.by_rule(0..len).collect()
        };
        device.settle();
        device
    }

    /// Whether a layer is the second or a later device of a volume.
    pub(super) fn is_later(layer: &dyn Layer) -> bool {
        RawDevice::load(layer, HEADER_AT).is_ok_and(|raw| {
            let md = if raw.major_version < 6 { 512 } else { u64::from(raw.md_alignment) };
            let entry = VolumeEntry::load(layer, HEADER_AT.saturating_add(md));
            entry.is_ok_and(|entry| entry.first_pe != 0 && (2..=MAX_DEVICES).contains(&entry.num_devices))
        })
    }

    /// The device's place among the others of the volume.
    #[must_use]
    pub fn member(&self) -> Member {
        let mut set = self.volume.uuid.to_vec();
        set.extend(self.volume.snapshot_id.to_le_bytes());
        // Without a header a device has no id of its own, but its place in the volume is nobody else's.
        let id = if self.uuid == [0; 16] { self.volume.first_pe.to_le_bytes().to_vec() } else { self.uuid.to_vec() };
        let (first, count) = (self.volume.first_pe, self.volume.num_devices.max(1));
        let changed = self.changed.max(self.volume.modification_time);
        let (epoch, generation) = (self.volume.generation, self.generation);
        Member { set, first, count, id, epoch, generation, changed }
    }

    /// Which extent of its volume the device is, as far as it can tell alone, and which are then missing.
    pub(super) fn place(&self) -> String {
        let VolumeEntry { first_pe, last_pe, logical_size, num_devices: count, .. } = self.volume;
        let before = count.saturating_sub(1);
        let missing = if before > 1 { format!("extents 1 to {before} are") } else { "extent 1 is".to_owned() };
        let volume = uuid(self.volume.uuid);
        if count > 1 && last_pe.saturating_add(1).saturating_mul(EXTENT) >= logical_size {
            return format!("extent {count} of {count} of volume {volume}; {missing} missing");
        }
        format!(
            "a later one of {count} extents of volume {volume}, its pieces {first_pe} to {last_pe}; extent 1 is missing"
        )
    }

    /// Logical bytes that the volume table gives to this device.
    #[must_use]
    pub fn span(&self) -> Range<u64> {
        let end = self.volume.last_pe.saturating_add(1);
        self.volume.first_pe.saturating_mul(EXTENT)..end.saturating_mul(EXTENT)
    }

    fn load_extents(&mut self, raw: &RawDevice, md: u64) {
        let bitmap = if raw.major_version < 6 { 1024 } else { md.max(1024) };
        let pair = ENTRIES.saturating_mul(ENTRY).saturating_add(bitmap);
        let tables = |header: u64, maps: u32| {
            let first = header.saturating_add(md).saturating_add(TO_BITMAP);
            let maps = u64::from(maps.max(1)).min(MAX_MAPS);
            (0..maps).map(move |i| first.saturating_add(pair.saturating_mul(i)))
        };
        let mut maps: Vec<u64> = tables(HEADER_AT, raw.num_pe_maps).collect();
        self.metadata.push(HEADER_AT..maps.last().map_or(HEADER_AT, |at| at.saturating_add(pair)));
        let mut next = raw.ext_metadata_offset;
        let mut seen = Vec::new();
        while next != 0 && seen.len() < MAX_HEADERS && !seen.contains(&next) {
            seen.push(next);
            match RawExtension::load(&*self.bytes, next) {
                Ok(header) if header.magic == MAGIC => {
                    let before = maps.len();
                    maps.extend(tables(next, header.num_pe_maps));
                    let end = maps.get(before..).and_then(<[u64]>::last);
                    self.metadata.push(next..end.map_or(next, |at| at.saturating_add(pair)));
                    next = header.next_offset;
                }
                Ok(header) => {
                    self.doubt("LVM-EXT", next..next.saturating_add(4), format!("magic {:#010x}", header.magic));
                    break;
                }
                Err(error) => {
                    self.doubt("LVM-EXT", next..next.saturating_add(4), error.to_string());
                    break;
                }
            }
        }
        let mut pieces = Vec::new();
        for map in &maps {
            let (bits, seen) = read_vec(&*self.bytes, *map, narrow(ENTRIES >> 3));
            let bits = seen.is_whole().then_some(bits);
            self.load_table(map.saturating_add(bitmap), bits.as_deref(), &mut pieces);
        }
        let with_bits = pieces.len();
        if wide(with_bits) < u64::from(raw.num_pes) {
            // Fewer than the header counts: perhaps a bitmap lost bits, while every entry also says that it is used.
            let mut all = Vec::new();
            for map in &maps {
                self.load_table(map.saturating_add(bitmap), None, &mut all);
            }
            if all.len() > with_bits {
                let text = format!("{with_bits} extents by the bitmap, {} by their entries", all.len());
                self.doubt("LVM-PE-BITMAP", maps.first().map_or(0..0, |at| *at..at.saturating_add(bitmap)), text);
                pieces = all;
            }
        }
        pieces.sort_unstable();
        let mut overlaps: u32 = 0;
        for piece in pieces {
            match self.pieces.last_mut() {
                Some(last) if last.end() > piece.logical => overlaps = overlaps.saturating_add(1),
                Some(last) if last.continues(&piece) => last.len = last.len.saturating_add(piece.len),
                _ => self.pieces.push(piece),
            }
        }
        if overlaps > 0 {
            let at = maps.first().copied().unwrap_or_default();
            self.doubt("LVM-PE-OVERLAP", at..at.saturating_add(pair), format!("{overlaps} extents overlap others"));
        }
    }

    fn doubt(&mut self, code: &'static str, range: Range<u64>, text: String) {
        self.findings.push(Finding::new(code, range, Trust::Doubtful, text));
    }

    /// Reads the used entries of one table, of which `bits` says which are; without, all that say so themselves.
    fn load_table(&self, table: u64, bits: Option<&[u8]>, pieces: &mut Vec<Piece>) {
        /// Entries read at once.
        const CHUNK: u64 = 512;
        let mut buf = vec![0; narrow(CHUNK.saturating_mul(ENTRY))];
        for chunk in 0..ENTRIES.checked_div(CHUNK).unwrap_or(0) {
            let first = chunk.saturating_mul(CHUNK);
            let bits = bits.map(|bits| bits.get(narrow(first >> 3)..).unwrap_or_default());
            let some = bits.is_none_or(|bits| bits.iter().take(narrow(CHUNK >> 3)).any(|byte| *byte != 0));
            let at = table.saturating_add(first.saturating_mul(ENTRY));
            if !some || at >= self.bytes.len() {
                continue;
            }
            // A gap is zeroed, and so its entries are unused: what they map becomes `Unmapped`.
            read(&*self.bytes, at, &mut buf);
            for (i, entry) in buf.chunks_exact(narrow(ENTRY)).enumerate() {
                let bit = bits.is_none_or(|bits| bits.get(i >> 3).is_some_and(|byte| byte >> (i & 7) & 1 == 1));
                if !bit || entry.first() != Some(&1) || pieces.len() >= MAX_ENTRIES {
                    continue;
                }
                let Ok(raw) = RawExtent::parse(entry, at) else { continue };
                let fits = raw.logical_offset.checked_add(raw.length).is_some_and(|end| end <= MAX_LEN)
                    && raw.physical_offset.checked_add(raw.length).is_some_and(|end| end <= MAX_LEN);
                let ours = self.any_volume || raw.volume_id == self.volume.volume_id;
                if ours && raw.length > 0 && fits {
                    pieces.push(Piece {
                        logical: raw.logical_offset,
                        physical: raw.physical_offset,
                        len: raw.length,
                        trust: Trust::Sound,
                    });
                }
            }
        }
    }
}

/// Says how much of a device is there. That is no damage: a dump of its start has all that a listing needs.
fn short(have: u64, of: u64) -> Finding {
    let text = format!("the dump has {have} of the device's {of} bytes: the rest is outside this dump");
    Finding::new("LVM-SHORT", have..of, Trust::Sound, text)
}

fn field(offset: u64, len: u64) -> Range<u64> {
    let at = HEADER_AT.saturating_add(offset);
    at..at.saturating_add(len)
}

/// Whether a layer has the device header, and whether it stands.
pub(super) fn looks_like(layer: &dyn Layer) -> Option<bool> {
    let mut magic = [0; 4];
    if layer.len() < HEADER_AT.saturating_add(wide(RawDevice::SIZE)) || !read(layer, HEADER_AT, &mut magic).is_whole() {
        return None;
    }
    if LittleEndian::read_u32(&magic) != MAGIC {
        return None;
    }
    Some(RawDevice::load(layer, HEADER_AT).is_ok_and(|raw| raw.is_plausible()))
}

/// The logical volume: the devices' pieces, in the order of the volume.
#[derive(Clone)]
pub struct Logical {
    devices: Vec<Device>,
    /// Ascending and apart: the index of the device, and its piece.
    pieces: Vec<(usize, Piece)>,
    len: u64,
    /// Whether a device is missing.
    partial: bool,
}

impl fmt::Debug for Logical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Logical({} bytes on {:?})", self.len, self.devices)
    }
}

impl Logical {
    /// Puts devices together, in any order. Those of another volume, and second copies of one device, are left out.
    #[must_use]
    pub fn new(first: Device, others: impl IntoIterator<Item = Device>) -> Self {
        let set = first.member().set;
        let count = first.member().count;
        let len = first.volume.logical_size;
        let mut devices = vec![first];
        for device in others {
            let known = devices.iter().any(|known| known.member().id == device.member().id);
            if device.member().set == set && !known {
                devices.push(device);
            }
        }
        devices.sort_by_key(|device| (device.volume.first_pe, device.uuid));
        let mut pieces: Vec<(usize, Piece)> = Vec::new();
        for (i, device) in devices.iter().enumerate() {
            pieces.extend(device.pieces.iter().map(|piece| (i, *piece)));
        }
        pieces.sort_by_key(|(i, piece)| (piece.logical, *i));
        let mut apart: Vec<(usize, Piece)> = Vec::with_capacity(pieces.len());
        for (i, mut piece) in pieces {
            // Where two devices claim the same bytes, the one that comes first in the volume has them.
            let taken = apart.last().map_or(0, |(_, last)| last.end()).saturating_sub(piece.logical).min(piece.len);
            piece.logical = piece.logical.saturating_add(taken);
            piece.physical = piece.physical.saturating_add(taken);
            piece.len = piece.len.saturating_sub(taken);
            if piece.len > 0 {
                apart.push((i, piece));
            }
        }
        let partial = u64::from(count) > wide(devices.len());
        Self { devices, pieces: apart, len, partial }
    }

    /// The devices, in the order of the volume.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Whether a device is missing.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// A range that no piece covers: on a device that was not given, or forgotten by the tables.
    fn gap(&self, at: u64, want: u64) -> Run<'_> {
        let mut len = want;
        let mut inside = false;
        for span in self.devices.iter().map(Device::span) {
            if span.contains(&at) {
                inside = true;
                len = len.min(span.end.saturating_sub(at));
            } else if span.start > at && span.end > span.start {
                len = len.min(span.start.saturating_sub(at));
            }
        }
        let why = if self.partial && !inside { Why::Absent } else { Why::Unmapped };
        Run::lost(len, why, HEADER_AT)
    }
}

impl Layer for Logical {
    fn len(&self) -> u64 {
        self.len
    }

    fn about(&self) -> String {
        let bare = self.devices.iter().all(Device::is_none);
        if bare { "VMFS volume".into() } else { "VMFS volume (LVM)".into() }
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let next = self.pieces.partition_point(|(_, piece)| piece.end() <= at);
        match self.pieces.get(next) {
            Some((i, piece)) if piece.logical <= at => {
                let into = at.saturating_sub(piece.logical);
                let want = want.min(piece.len.saturating_sub(into));
                match self.devices.get(*i) {
                    Some(device) => {
                        let at = piece.physical.saturating_add(into);
                        // What the device should have and its image has not was not dumped.
                        let run = if at < device.total_bytes {
                            within_dump(&*device.bytes, at, want.min(device.total_bytes.saturating_sub(at)))
                        } else {
                            below(&*device.bytes, at, want)
                        };
                        Run { trust: run.trust.max(piece.trust), ..run }
                    }
                    None => Run::lost(want, Why::Unmapped, HEADER_AT),
                }
            }
            Some((_, piece)) => self.gap(at, want.min(piece.logical.saturating_sub(at))),
            None => self.gap(at, want),
        }
    }
}
