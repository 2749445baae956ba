//! The volume's header, at 2 MiB of the logical volume.
//!
//! | offset | type | meaning | how sure |
//! | --- | --- | --- | --- |
//! | 0x000 | u32 | magic, 0x2FABF15E VMFS, 0x2FABF15F VMFS-L | real images |
//! | 0x004 | u32, u8 | version: 14.81 VMFS5, 14.60 VMFS5-L, 24.82 VMFS6; 24 and more has the layout of VMFS6 | real images |
//! | 0x009 | 16 | UUID, the name below /vmfs/volumes | real images |
//! | 0x019 | u32 | config flags; 0x4 = dense sub-blocks | real images |
//! | 0x01D | 128 | label | real images |
//! | 0x0A1 | u64 | file block size; 512 KiB on small VMFS5, 1 MiB, up to 8 MiB on VMFS3 | real images, 8 MiB sources |
//! | 0x0A9 | u32 | creation, Unix time | real images |
//! | 0x0B1 | 16, u32 | UUID and snapshot id of the logical volume; zero without one | real images |
//! | 0x0D1 | u32 | `.fdc.sf`: offset of its first cluster group | real images |
//! | 0x0D5 | u32 | `.fdc.sf`: clusters in a group | real images |
//! | 0x0D9 | u32 | sub-block size | real images |
//! | 0x0E1 | u64, u32 | position and address of the descriptor of `.pb2.sf` | real images |
//! | 0x105 | u64, u32 | position and address of the descriptor of `.sdd.sf` | real images |
//! | 0x112 | u8 | how eagerly freed blocks are unmapped: 1 = low on all VMFS6, 0 before | real images; 0 = none on VMFS6 sources |
//! | 0x134 | u32 | alignment of metadata, VMFS6; 0 before | real images: 4096 |
//! | 0x138 | u16 | log2 of large over small file block | real images: 9 |
//!
//! There is no second copy. The positions of the system files' descriptors follow from these numbers alone
//! ([`Header::fixed`]), so that the resource files can be opened before any of them is.

use super::address::{FdAddress, Spot, Width};
use super::volume::Pools;
use crate::error::Error;
use crate::layer::Layer;
use crate::num::round_up;
use crate::record::Record;
use binrw::BinRead;

/// Where the header lies in the logical volume.
pub const HEADER_AT: u64 = 0x20_0000;
/// First bytes of a VMFS volume.
pub const MAGIC: u32 = 0x2FAB_F15E;
/// First bytes of a VMFS-L volume.
pub const MAGIC_LOCAL: u32 = 0x2FAB_F15F;

/// Heartbeats start here.
pub(super) const HEARTBEATS_AT: u64 = 0x30_0000;
/// On VMFS3 and VMFS5 they end here.
const HEARTBEATS_END: u64 = 0x40_0000;
/// Config flag: sub-block numbers of six bits, and fixed places for all system files.
const DENSE: u32 = 0x4;
/// The version of every VMFS5 that was seen.
const VMFS5: u32 = 14;
/// First version with 64-bit pointers.
const VMFS6: u32 = 24;
/// The span of a cluster of small file blocks on VMFS6, and of one large file block.
const LARGE: u64 = 512 << 20;

/// The header as on disk.
#[derive(BinRead, Clone, Debug)]
#[br(little)]
#[expect(dead_code, reason = "the record as it is documented, of which not all is needed")]
pub(super) struct RawHeader {
    pub magic: u32,
    pub major_version: u32,
    pub minor_version: u8,
    pub uuid: [u8; 16],
    pub config: u32,
    pub label: [u8; 128],
    pub disk_block_size: u32,
    pub file_block_size: u64,
    pub creation_time: u32,
    pub snapshot_id: u32,
    pub lv_uuid: [u8; 16],
    pub lv_snapshot_id: u32,
    #[br(pad_before = 12)]
    pub fdc_cluster_group_offset: u32,
    pub fdc_clusters_per_group: u32,
    pub sub_block_size: u32,
    #[br(pad_before = 4)]
    pub pb2_vol_addr: u64,
    pub pb2_fd_addr: u32,
    #[br(pad_before = 24)]
    pub sdd_vol_addr: u64,
    pub sdd_fd_addr: u32,
    #[br(pad_before = 1)]
    pub unmap_priority: u8,
    #[br(pad_before = 33)]
    pub md_alignment: u32,
    pub sfb_to_lfb_shift: u16,
}

impl RawHeader {
    /// What it says of the volume's identity.
    pub(super) fn name(&self) -> Name {
        let label = self.label.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        let local = self.magic == MAGIC_LOCAL;
        Name { local, uuid: self.uuid, label, lv: (self.lv_uuid, self.lv_snapshot_id) }
    }
}

impl Record for RawHeader {
    const SIZE: usize = 0x13A;
    const NAME: &'static str = "VMFS header";
}

/// A checked header.
#[derive(Clone, Debug)]
pub struct Header {
    /// VMFS-L, the local kind of `ESXi`'s own partitions.
    pub local: bool,
    /// Major version, 24 and more is VMFS6.
    pub major: u32,
    /// Minor version.
    pub minor: u8,
    /// UUID.
    pub uuid: [u8; 16],
    /// Config flags.
    pub config: u32,
    /// Label.
    pub label: Vec<u8>,
    /// Creation, Unix time.
    pub created: u32,
    /// UUID of the logical volume.
    pub lv_uuid: [u8; 16],
    /// Snapshot id of the logical volume.
    pub lv_snapshot_id: u32,
    /// How pointers are written.
    pub width: Width,
    /// log2 of the file block size.
    pub file_shift: u32,
    /// log2 of the large file block size.
    pub large_shift: u32,
    /// log2 of the sub-block size.
    pub sub_shift: u32,
    /// Unit of metadata: a sector on VMFS5, 4 KiB and more on VMFS6.
    pub md: u64,
    /// log2 of how many pointers a pointer block has.
    pub fan_shift: u32,
    /// How eagerly freed blocks are given back to the storage, which then reads as zeros; 0 is not at all. `None` where
    /// the version does not do so by itself, or the header is lost.
    pub unmap_priority: Option<u8>,
    fdc_offset: u64,
    fdc_clusters: u64,
    pb2: (u64, FdAddress),
    sdd: (u64, FdAddress),
}

/// What a header says of the volume's identity, which nothing else does.
#[derive(Clone, Debug, Default)]
pub(super) struct Name {
    local: bool,
    uuid: [u8; 16],
    label: Vec<u8>,
    lv: ([u8; 16], u32),
}

/// Whether a header starts with this.
pub(super) fn is_magic(magic: u32) -> bool {
    matches!(magic, MAGIC | MAGIC_LOCAL)
}

/// What a header says of where things are, from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Whether the layout is that of VMFS6.
    pub six: bool,
    /// Unit of metadata.
    pub md: u64,
    /// log2 of the file block size.
    pub file_shift: u32,
    /// log2 of the sub-block size.
    pub sub_shift: u32,
    /// Whether sub-blocks have numbers of six bits.
    pub dense: bool,
    /// Where the first group of `.fdc.sf` starts in it.
    pub fdc_offset: u64,
    /// Clusters in a group of `.fdc.sf`.
    pub fdc_clusters: u64,
}

/// Offset of the first group of `.fdc.sf` on all real images.
pub(super) const GROUP_AT: u64 = 0x1_0000;

impl Geometry {
    /// A volume of this layout, as all real images have it.
    pub(super) const fn usual(six: bool, md: u64, file_shift: u32) -> Self {
        let (sub_shift, fdc_clusters) = if six { (16, 8) } else { (13, 64) };
        Self { six, md, file_shift, sub_shift, dense: true, fdc_offset: GROUP_AT, fdc_clusters }
    }

    /// The same with the sub-blocks that the header of `.sbc.sf` says. `None` where it can't be had.
    pub(super) fn with_subs_of(self, pools: &Pools) -> Option<Self> {
        let sbc = pools.sbc.as_ref()?;
        let fits = sbc.size.is_power_of_two() && (1 << 10..=1 << 20).contains(&sbc.size);
        let dense = self.six || sbc.per_cluster > 16;
        fits.then_some(Self { sub_shift: sbc.size.trailing_zeros(), dense, ..self })
    }
}

/// Whether a file system's header starts here, as far as its first fields tell.
pub(super) fn is_start(bytes: &[u8]) -> bool {
    let number = |at: usize| {
        let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk::<4>());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    };
    is_magic(number(0)) && (1..64).contains(&number(4)) && number(0x9D).is_power_of_two()
}

impl Header {
    /// Reads and checks the header of a logical volume.
    pub fn load(lv: &dyn Layer) -> Result<Self, Error> {
        let raw = RawHeader::load(lv, HEADER_AT)?;
        if !is_magic(raw.magic) {
            return Err(Error::corrupt("VMFS header: magic", HEADER_AT, format!("{:#010x}", raw.magic)));
        }
        Self::of(&raw)
    }

    /// Checks a header, whatever its magic is.
    pub(super) fn of(raw: &RawHeader) -> Result<Self, Error> {
        let bad = |what, offset: u64, found: String| Err(Error::corrupt(what, HEADER_AT.saturating_add(offset), found));
        let six = raw.major_version >= VMFS6;
        let file = raw.file_block_size;
        if !file.is_power_of_two() || !(512 << 10..=8 << 20).contains(&file) {
            return bad("VMFS header: file block size", 0xA1, format!("{file} (a power of two, 512 KiB to 8 MiB)"));
        }
        let sub = raw.sub_block_size;
        if !sub.is_power_of_two() || !(1 << 10..=1 << 20).contains(&sub) {
            return bad("VMFS header: sub-block size", 0xD9, format!("{sub} (a power of two, 1 KiB to 1 MiB)"));
        }
        let md = if six { u64::from(raw.md_alignment) } else { 512 };
        if six && (!md.is_power_of_two() || !(4 << 10..=64 << 10).contains(&md)) {
            return bad("VMFS header: metadata alignment", 0x134, format!("{md} (a power of two, 4 KiB to 64 KiB)"));
        }
        let (fdc_offset, fdc_clusters) =
            (u64::from(raw.fdc_cluster_group_offset), u64::from(raw.fdc_clusters_per_group));
        if fdc_offset > 16 << 20 || !(1..=1 << 16).contains(&fdc_clusters) {
            let found = format!("group 0 at {fdc_offset:#x}, {fdc_clusters} clusters in a group");
            return bad("VMFS header: .fdc.sf", 0xD1, found);
        }
        let fd = |raw, default| FdAddress::of(raw).unwrap_or(default);
        let width = if six {
            Width::Wide { per_cluster: LARGE.checked_div(file).unwrap_or(1) }
        } else {
            Width::Narrow { dense: raw.config & DENSE != 0 }
        };
        Ok(Self {
            local: raw.magic == MAGIC_LOCAL,
            major: raw.major_version,
            minor: raw.minor_version,
            uuid: raw.uuid,
            config: raw.config,
            label: raw.label.split(|byte| *byte == 0).next().unwrap_or_default().to_vec(),
            created: raw.creation_time,
            lv_uuid: raw.lv_uuid,
            lv_snapshot_id: raw.lv_snapshot_id,
            width,
            file_shift: file.trailing_zeros(),
            large_shift: file.trailing_zeros().saturating_add(u32::from(raw.sfb_to_lfb_shift.min(12))),
            sub_shift: sub.trailing_zeros(),
            md,
            fan_shift: if six { 13 } else { 10 },
            unmap_priority: six.then_some(raw.unmap_priority),
            fdc_offset,
            fdc_clusters,
            pb2: (raw.pb2_vol_addr, fd(raw.pb2_fd_addr, FdAddress::PB2)),
            sdd: (raw.sdd_vol_addr, fd(raw.sdd_fd_addr, FdAddress::SDD)),
        })
    }

    /// The header of a volume that has none: what can't be known is empty or zero.
    pub(super) fn assumed(from: &Geometry) -> Self {
        let large = u64::from(LARGE.trailing_zeros().saturating_sub(from.file_shift));
        let width = if from.six {
            Width::Wide { per_cluster: 1_u64.checked_shl(u32::try_from(large).unwrap_or(0)).unwrap_or(1) }
        } else {
            Width::Narrow { dense: from.dense }
        };
        let mut header = Self {
            local: false,
            major: if from.six { VMFS6 } else { VMFS5 },
            minor: 0,
            uuid: [0; 16],
            config: if from.dense { DENSE } else { 0 },
            label: Vec::new(),
            created: 0,
            lv_uuid: [0; 16],
            lv_snapshot_id: 0,
            width,
            file_shift: from.file_shift,
            large_shift: LARGE.trailing_zeros().max(from.file_shift),
            sub_shift: from.sub_shift,
            md: from.md,
            fan_shift: if from.six { 13 } else { 10 },
            unmap_priority: None,
            fdc_offset: from.fdc_offset,
            fdc_clusters: from.fdc_clusters,
            pb2: (0, FdAddress::PB2),
            sdd: (0, FdAddress::SDD),
        };
        // Real images, dense or not: the descriptors lie in one row. Only volumes that were made as VMFS3 differ.
        let first = header.fixed(FdAddress::ROOT).unwrap_or_default();
        let place =
            |address: FdAddress| first.saturating_add(address.spot().resource.saturating_mul(header.descriptor_size()));
        (header.pb2, header.sdd) = ((place(FdAddress::PB2), FdAddress::PB2), (place(FdAddress::SDD), FdAddress::SDD));
        header
    }

    /// What it says of the volume's identity.
    pub(super) fn name(&self) -> Name {
        let lv = (self.lv_uuid, self.lv_snapshot_id);
        Name { local: self.local, uuid: self.uuid, label: self.label.clone(), lv }
    }

    /// Makes it that of a volume without `.pb2.sf`.
    pub(super) fn without_pb2(&mut self) {
        self.pb2 = (0, FdAddress::PB2);
    }

    /// Gives it an identity.
    pub(super) fn called(&mut self, name: Name) {
        (self.local, self.uuid, self.label) = (name.local, name.uuid, name.label);
        (self.lv_uuid, self.lv_snapshot_id) = name.lv;
    }

    /// Whether both have things in the same places.
    pub(super) fn is_alike(&self, other: &Self) -> bool {
        self.geometry() == other.geometry()
    }

    /// The same, with things where another header has them.
    pub(super) fn shaped(&self, like: &Self) -> Self {
        let mut header = like.clone();
        header.called(self.name());
        if self.is_six() == like.is_six() {
            (header.major, header.minor) = (self.major, self.minor);
            (header.config, header.unmap_priority) = (self.config, self.unmap_priority);
        }
        if self.created <= like.created || like.created == 0 {
            header.created = self.created;
        }
        header
    }

    /// The fields in which another header, that is believed, has things in other places: name and offset of each, what
    /// it is here and what it is there.
    pub(super) fn differences(&self, believed: &Self) -> Vec<(&'static str, u64, u64, u64)> {
        let size = |shift: u32| 1_u64.checked_shl(shift).unwrap_or(0);
        let fields = |header: &Self| {
            let narrow = !header.is_six();
            let old = |value: u64| if narrow { value } else { 0 };
            [
                ("layout by the major version", 0x4, if narrow { 5 } else { 6 }),
                ("dense sub-blocks by the flags", 0x19, u64::from(header.is_dense())),
                ("file block size", 0xA1, size(header.file_shift)),
                ("offset of group 0 of .fdc.sf", 0xD1, header.fdc_offset),
                ("clusters in a group of .fdc.sf", 0xD5, header.fdc_clusters),
                ("sub-block size", 0xD9, size(header.sub_shift)),
                ("place of .pb2.sf", 0xE1, old(header.pb2.0)),
                ("descriptor of .pb2.sf", 0xE9, old(header.pb2.1.0.into())),
                ("place of .sdd.sf", 0x105, old(header.sdd.0)),
                ("descriptor of .sdd.sf", 0x10D, old(header.sdd.1.0.into())),
                ("metadata alignment", 0x134, header.md),
                ("large file block size", 0x138, if narrow { 0 } else { size(header.large_shift) }),
                ("creation", 0xA9, u64::from(header.created)),
            ]
        };
        let both = fields(self).into_iter().zip(fields(believed));
        let differ = both.filter(|((.., said), (.., believed))| said != believed);
        differ.map(|((name, at, said), (.., believed))| (name, at, said, believed)).collect()
    }

    /// Where the descriptors of `.pb2.sf` and `.sdd.sf` lie by this header, and which they are.
    pub(super) fn later(&mut self) -> [&mut (u64, FdAddress); 2] {
        [&mut self.pb2, &mut self.sdd]
    }

    /// Whether sub-blocks have numbers of six bits; VMFS6 has numbers of eight.
    pub(super) fn is_dense(&self) -> bool {
        self.width != Width::Narrow { dense: false }
    }

    /// Where the first group of `.fdc.sf` starts in it.
    pub(super) fn fdc_offset(&self) -> u64 {
        self.fdc_offset
    }

    /// Clusters in a group of `.fdc.sf`.
    pub(super) fn fdc_clusters(&self) -> u64 {
        self.fdc_clusters
    }

    /// What it says of where things are.
    pub(super) fn geometry(&self) -> Geometry {
        Geometry {
            six: self.is_six(),
            md: self.md,
            file_shift: self.file_shift,
            sub_shift: self.sub_shift,
            dense: self.is_dense(),
            fdc_offset: self.fdc_offset,
            fdc_clusters: self.fdc_clusters,
        }
    }

    /// Whether the layout is that of VMFS6.
    #[must_use]
    pub fn is_six(&self) -> bool {
        matches!(self.width, Width::Wide { .. })
    }

    /// Bytes of a descriptor.
    #[must_use]
    pub fn descriptor_size(&self) -> u64 {
        if self.is_six() { self.md.saturating_mul(2) } else { 2048 }
    }

    /// Bytes of a pointer block.
    #[must_use]
    pub fn table_size(&self) -> u64 {
        self.width.bytes().checked_shl(self.fan_shift).unwrap_or_default()
    }

    /// Bytes of a cluster's header in a resource file: its lock, then its metadata.
    #[must_use]
    pub fn cluster_header_size(&self) -> u64 {
        self.md.saturating_mul(2)
    }

    /// Where heartbeats lie.
    #[must_use]
    pub fn heartbeats(&self) -> std::ops::Range<u64> {
        let end =
            if self.is_six() { HEARTBEATS_AT.saturating_add(self.md.saturating_mul(1024)) } else { HEARTBEATS_END };
        HEARTBEATS_AT..end
    }

    /// Where `.fdc.sf` starts.
    #[must_use]
    pub fn fdc_at(&self) -> u64 {
        let unit = if self.is_six() { 1 << 20 } else { 1_u64.checked_shl(self.file_shift).unwrap_or_default() };
        round_up(self.heartbeats().end, unit)
    }

    /// The descriptor of `.pb2.sf`, if the volume has one: one that was made as VMFS3 and upgraded keeps it where
    /// the header says.
    #[must_use]
    pub fn pb2(&self) -> Option<FdAddress> {
        match self.width {
            Width::Wide { .. } => Some(FdAddress::PB2),
            Width::Narrow { .. } => Some(self.pb2.1).filter(|_| self.pb2.0 != 0),
        }
    }

    /// Where a descriptor lies whose place needs no resource file. All system files are such, and the root.
    #[must_use]
    pub fn fixed(&self, address: FdAddress) -> Option<u64> {
        let dense = self.is_dense();
        if !dense {
            for (at, fd) in [self.pb2, self.sdd] {
                if fd == address && at != 0 {
                    return Some(at);
                }
            }
        }
        let Spot { cluster, resource } = address.spot();
        let last = if dense { 10 } else { FdAddress::VH.spot().resource };
        if cluster != 0 || resource > last {
            return None;
        }
        let headers = self.fdc_clusters.saturating_mul(self.cluster_header_size());
        let before = resource.saturating_mul(self.descriptor_size());
        Some(self.fdc_at().saturating_add(self.fdc_offset).saturating_add(headers).saturating_add(before))
    }
}
