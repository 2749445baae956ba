//! Resource files: `.fdc.sf`, `.sbc.sf`, `.pbc.sf`, `.pb2.sf`, `.fbb.sf`, `.jbc.sf`.
//!
//! Each is an array of equal resources, grouped in clusters, grouped in cluster groups. A group starts with the
//! headers of its clusters; the resources follow, unless the resources are the volume's file blocks.
//!
//! | offset in the file's header | type | meaning | how sure |
//! | --- | --- | --- | --- |
//! | 0x00, 0x04 | u32 | resources in a cluster, clusters in a group | real images |
//! | 0x08 | u32 | offset of group 0 | real images |
//! | 0x0C | u32 | bytes of a resource, 0 for file blocks | real images |
//! | 0x10, 0x18 | u32 | bytes of a group, groups | real images |
//! | 0x14, 0x1C | u32 | resources, low and high half | real images |
//! | 0x20 | u32 | signature "rfmd", VMFS6 | real images |
//! | 0x30 | u32 | bits of a resource in the bitmap, VMFS6 | real images |
//! | 0x34 | u32 | offset of the header of the small file blocks, in `.fbb.sf` of VMFS6 | real images |
//! | 0x38, 0x3C, 0x40 | u32 | parent's resources in a cluster, clusters in a group, bytes of a group | real images |
//!
//! | cluster metadata | VMFS5 | VMFS6 | how sure |
//! | --- | --- | --- | --- |
//! | number | 0x00 u32 | 0x18 u64 | real images |
//! | resources, free ones | 0x04, 0x08 u32 | 0x20, 0x22 u16 | real images |
//! | bitmap, 1 = free | 0x10 | 0x80 | real images |
//!
//! Seen on real images: the last cluster can have fewer resources than the others; bits behind its last are 0, which
//! looks like "in use", and the count of free ones leaves them out. `.pbc.sf` of VMFS6 has clusters of 0 resources.
//! The cluster of large file blocks counts the volume's large blocks as its resources, not those of a full cluster.
//! No block that a file uses is ever free in the bitmap, and the count of free descriptors is that of the bitmap.

use super::address::{FdAddress, Spot};
use super::descriptor::{Descriptor, Origin, RawLock, Shape, Type};
use super::file::File;
use super::frame::{self, Kind};
use super::header::Header;
use super::remnant::Remnant;
use super::volume::{Pools, Space};
use crate::error::Error;
use crate::layer::{Layer, Place, Run, Trust, Why};
use crate::memo::Block;
use crate::num::{narrow, wide};
use crate::read::{read_block, read_exact};
use crate::record::Record;
use binrw::BinRead;
use byteorder::{ByteOrder, LittleEndian};
use std::sync::Arc;

/// Signature of a resource file's header on VMFS6: "rfmd".
pub(super) const SIGNATURE: u32 = 0x7266_6D64;
/// Signature of a cluster's metadata on VMFS6: "rcmd".
pub(super) const CLUSTER_SIGNATURE: u32 = 0x7263_6D64;
/// Flag: the resources are parts of another file's resources.
pub(super) const CHILD: u32 = 0x2;
/// Flag: each resource has an owner. Observed on `.fdc.sf`, `.sbc.sf`, `.pb2.sf`, the empty `.pbc.sf` and large file
/// blocks, and on no other.
pub(super) const OWNED: u32 = 0x4;

/// The header of a resource file as on disk. Fields from 0x20 on are of VMFS6 only.
#[derive(BinRead, Clone, Debug)]
#[br(little)]
#[expect(dead_code, reason = "the record as it is documented, of which not all is needed")]
pub(super) struct RawResource {
    pub resources_per_cluster: u32,
    pub clusters_per_group: u32,
    pub cluster_group_offset: u32,
    pub resource_size: u32,
    pub cluster_group_size: u32,
    pub num_resources_lo: u32,
    pub num_cluster_groups: u32,
    pub num_resources_hi: u32,
    pub signature: u32,
    pub version: u32,
    pub flags: u32,
    pub affinity_per_cluster: u16,
    pub affinity_per_resource: u16,
    pub bits_per_resource: u32,
    pub child_meta_offset: u32,
    pub parent_resources_per_cluster: u32,
    pub parent_clusters_per_group: u32,
    pub parent_cluster_group_size: u32,
}

impl Record for RawResource {
    const SIZE: usize = 0x44;
    const NAME: &'static str = "VMFS resource file header";
}

/// A resource file, opened.
#[derive(Clone, Debug)]
pub struct Resource {
    /// The file.
    pub file: Arc<File>,
    /// Resources in a cluster.
    pub per_cluster: u64,
    /// Clusters in a group.
    pub per_group: u64,
    /// Bytes of a resource; 0 where it is not in the file.
    pub size: u64,
    /// All resources.
    pub total: u64,
    /// Bits of a resource in the bitmap.
    pub bits: u64,
    /// Where the header of the resources lies that these are split into; 0 if they are not.
    pub child_at: u64,
    /// Groups, as the header counts them.
    said_groups: u64,
    group_at: u64,
    group_size: u64,
    header_size: u64,
    /// Clusters of the parent in one of its groups, times resources in a cluster, and bytes of the group.
    parent: Option<(u64, u64, u64)>,
    six: bool,
    pub(super) owned: bool,
    /// Bytes that the file can have at most: its length, and the volume's.
    room: u64,
    /// The header that all this is from.
    pub(super) raw: RawResource,
    /// The descriptor of the file, if that was made again.
    pub(super) made: Option<Descriptor>,
    /// What of it is not as it is written, in words.
    pub(super) told: Vec<String>,
}

/// A part of a resource file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The file's header, or those of clusters.
    Frame,
    /// The body of a resource.
    Body(Spot),
    /// Neither.
    Rest,
}

/// The state of one cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Where its header lies in the volume.
    pub at: u64,
    /// Which of its resources are free; as many as the cluster has resources.
    pub free: Vec<bool>,
    /// How many of them the header says are free.
    pub free_count: u64,
}

/// The checked header of a cluster.
struct Bitmap {
    at: u64,
    block: Arc<Block>,
    free_count: u64,
}

impl Resource {
    /// Opens a resource file by the fixed place of its descriptor, with the pools that were opened before it. What of
    /// it is lost is made again of the records in it, as far as they tell.
    pub fn open(space: &Arc<Space>, pools: &Arc<Pools>, address: FdAddress) -> Result<Self, Error> {
        let at = space.header.fixed(address).ok_or(Error::NotFound)?;
        let kind = Kind::of(&space.header, address).ok_or(Error::NotFound)?;
        let remnant = Remnant { space, pools, kind, address };
        let fd = space.descriptor(at, address);
        let mapped =
            |fd: &Descriptor| matches!(fd.shape, Shape::Mapped { shift, .. } if shift == space.header.file_shift);
        let mut told = Vec::new();
        let mut made = None;
        let fd = match fd {
            Ok(fd) if fd.kind == Type::System && mapped(&fd) => fd,
            bad => {
                let error = match bad {
                    Ok(fd) => {
                        let blocks = if mapped(&fd) { "" } else { ", not of file blocks" };
                        let found = format!("it is {}{blocks}: a system file of file blocks is wanted", fd.kind);
                        Error::corrupt("VMFS descriptor of a resource file", at, found)
                    }
                    Err(error) => error,
                };
                let fd = remnant.descriptor(at).ok_or_else(|| error.clone())?;
                told.push(format!(
                    "its descriptor can't be used ({error}): its blocks are those that its pointers have"
                ));
                made = Some(fd.clone());
                fd
            }
        };
        let mut file = Arc::new(File::new(Arc::clone(space), Arc::clone(pools), fd.clone()));
        if let Some((whole, text)) = remnant.filled(&file, None) {
            told.push(text);
            made = Some(whole.clone());
            file = Arc::new(File::new(Arc::clone(space), Arc::clone(pools), whole));
        }
        let mut resource = Self::at(&space.header, kind, file, 0, None)?;
        // What lies in the blocks of descriptors says which they are.
        if let Some((whole, text)) = remnant.filled(&resource.file, Some(&resource)) {
            told.push(text);
            made = Some(whole.clone());
            let file = Arc::new(File::new(Arc::clone(space), Arc::clone(pools), whole));
            resource = Self::at(&space.header, kind, file, 0, None)?;
        }
        if let Some(mut fd) = made {
            let len = frame::length(&space.header, &resource);
            fd.len = len.filter(|len| *len <= fd.len && fd.origin == Origin::Pointers).unwrap_or(fd.len);
            resource.file = Arc::new(File::new(Arc::clone(space), Arc::clone(pools), fd.clone()));
            resource.made = Some(fd);
        }
        told.append(&mut resource.told);
        resource.told = told;
        Ok(resource)
    }

    /// The resources whose header lies at `at` of a file.
    pub(super) fn at(
        header: &Header,
        kind: Kind,
        file: Arc<File>,
        at: u64,
        parent: Option<&RawResource>,
    ) -> Result<Self, Error> {
        let (raw, text) = frame::load(header, kind, &file, at, parent)?;
        // Where something of it is made up, nothing that it leads to is more than a choice.
        let file = if text.is_some() { Arc::new((*file).clone().trusted(Trust::Inferred)) } else { file };
        let told = text.into_iter().collect();
        Ok(Self { told, ..Self::by(header, file, &raw) })
    }

    /// The resources of a file with this header.
    pub(super) fn by(header: &Header, file: Arc<File>, raw: &RawResource) -> Self {
        let per_cluster = u64::from(raw.resources_per_cluster);
        let bits = if header.is_six() { u64::from(raw.bits_per_resource.max(1)) } else { 1 };
        let parent = header.is_six() && raw.flags & CHILD != 0;
        Self {
            per_cluster,
            per_group: u64::from(raw.clusters_per_group),
            size: u64::from(raw.resource_size),
            total: u64::from(raw.num_resources_hi) << 32 | u64::from(raw.num_resources_lo),
            bits,
            child_at: if header.is_six() { u64::from(raw.child_meta_offset) } else { 0 },
            said_groups: u64::from(raw.num_cluster_groups),
            group_at: u64::from(raw.cluster_group_offset),
            group_size: u64::from(raw.cluster_group_size),
            header_size: header.cluster_header_size(),
            parent: parent.then(|| {
                let clusters = u64::from(raw.parent_clusters_per_group);
                let resources = clusters.saturating_mul(u64::from(raw.parent_resources_per_cluster));
                (clusters, resources.max(1), u64::from(raw.parent_cluster_group_size))
            }),
            six: header.is_six(),
            owned: header.is_six() && raw.flags & OWNED != 0,
            room: file.len().min(file.volume_len()),
            file,
            raw: raw.clone(),
            made: None,
            told: Vec::new(),
        }
    }

    /// Clusters, by what the header says and the file can have.
    #[must_use]
    pub fn clusters(&self) -> u64 {
        let clusters = self.total.div_ceil(self.per_cluster.max(1));
        clusters.min(self.room.checked_div(self.header_size).unwrap_or(0))
    }

    /// Whether the resources and the groups that the header counts are of one file.
    #[must_use]
    pub fn counts_agree(&self) -> bool {
        let clusters = self.total.div_ceil(self.per_cluster.max(1));
        self.total > 0 && clusters.div_ceil(self.per_group.max(1)) == self.said_groups
    }

    /// Cluster groups.
    #[must_use]
    pub fn groups(&self) -> u64 {
        self.clusters().div_ceil(self.per_group.max(1))
    }

    /// The place of the resource of this number among all.
    #[must_use]
    pub fn spot(&self, number: u64) -> Option<Spot> {
        let (cluster, resource) = (number.checked_div(self.per_cluster)?, number.checked_rem(self.per_cluster)?);
        Some(Spot { cluster, resource })
    }

    /// Where a group starts in the file.
    #[must_use]
    pub fn group(&self, group: u64) -> u64 {
        self.group_at.saturating_add(group.saturating_mul(self.group_size))
    }

    /// Bytes of the cluster headers that a group starts with.
    #[must_use]
    pub fn headers_len(&self) -> u64 {
        self.per_group.saturating_mul(self.header_size)
    }

    /// Where a resource lies in the file, if all of it does.
    #[must_use]
    pub fn body(&self, spot: Spot) -> Option<u64> {
        let group = spot.cluster.checked_div(self.per_group)?;
        let cluster = spot.cluster.checked_rem(self.per_group)?;
        let index = cluster.checked_mul(self.per_cluster)?.checked_add(spot.resource)?;
        let at = self.group(group).checked_add(self.headers_len())?.checked_add(index.checked_mul(self.size)?)?;
        let inside = at.checked_add(self.size)? <= self.file.len();
        (spot.resource < self.per_cluster && self.size > 0 && inside).then_some(at)
    }

    /// Which part of the file `at` is in, and where that part ends.
    #[must_use]
    pub fn part(&self, at: u64) -> (Part, u64) {
        let rest = (Part::Rest, self.file.len());
        let Some(behind) = at.checked_sub(self.group_at) else { return (Part::Frame, self.group_at) };
        let number = behind.checked_div(self.group_size).unwrap_or(0);
        let group = self.group(number);
        let bodies = group.saturating_add(self.headers_len());
        if at < bodies {
            return (Part::Frame, bodies);
        }
        let index = at.saturating_sub(bodies).checked_div(self.size);
        let spot = index.and_then(|index| {
            let cluster = index.checked_div(self.per_cluster).filter(|cluster| *cluster < self.per_group)?;
            let cluster = number.checked_mul(self.per_group)?.checked_add(cluster)?;
            Some(Spot { cluster, resource: index.checked_rem(self.per_cluster)? })
        });
        let next = group.saturating_add(self.group_size.max(1));
        let end = |spot| Some((Part::Body(spot), self.body(spot)?.saturating_add(self.size).min(next)));
        spot.and_then(end).filter(|(_, end)| *end > at).unwrap_or((Part::Rest, next.max(at).min(rest.1)))
    }

    /// Where the header of a cluster lies in the file, if all of it does.
    #[must_use]
    pub fn header(&self, cluster: u64) -> Option<u64> {
        let at = if let Some((clusters, resources, group_size)) = self.parent {
            // The header of the cluster that splits a large block is that block's resource in the parent.
            let group = cluster.checked_div(resources)?.checked_mul(group_size)?;
            let index = clusters.checked_add(cluster.checked_rem(resources)?)?;
            self.group_at.checked_add(group)?.checked_add(index.checked_mul(self.header_size)?)?
        } else {
            let index = cluster.checked_rem(self.per_group)?.checked_mul(self.header_size)?;
            self.group(cluster.checked_div(self.per_group)?).checked_add(index)?
        };
        (at.checked_add(self.header_size)? <= self.file.len()).then_some(at)
    }

    /// The run at `at` of the file. A hole in a resource file is damage.
    #[must_use]
    pub fn run(&self, at: u64, want: u64) -> Run<'_> {
        let run = self.file.run(at, want);
        match run.place {
            Place::Hole | Place::Zero => Run::lost(run.len, Why::Unmapped, self.file.descriptor().at),
            _ => run,
        }
    }

    /// Where `at` of the file lies in the volume.
    #[must_use]
    pub fn position(&self, at: u64) -> Option<u64> {
        match self.run(at, 1).place {
            Place::Below { offset, .. } => Some(offset),
            _ => None,
        }
    }

    /// The state of a cluster. [`Error::NotFound`] if it was never made.
    pub fn cluster(&self, space: &Space, cluster: u64) -> Result<Cluster, Error> {
        let bitmap = self.bitmap(space, cluster)?;
        let free = (0..self.in_cluster(cluster)).map(|resource| self.bit(&bitmap, resource)).collect();
        Ok(Cluster { at: bitmap.at, free, free_count: bitmap.free_count })
    }

    /// Whether a resource is free, and where the header lies that says so. `None` if nothing says.
    #[must_use]
    pub fn is_free(&self, space: &Space, spot: Spot) -> Option<(bool, u64)> {
        let bitmap = self.bitmap(space, spot.cluster).ok()?;
        (spot.resource < self.in_cluster(spot.cluster)).then(|| (self.bit(&bitmap, spot.resource), bitmap.at))
    }

    /// Whether a resource is free, and how many of `most` from it on are as it is, within its cluster. `None` if
    /// nothing says.
    #[must_use]
    pub fn alike(&self, space: &Space, spot: Spot, most: u64) -> Option<(bool, u64)> {
        let bitmap = self.bitmap(space, spot.cluster).ok()?;
        let left = self.in_cluster(spot.cluster).checked_sub(spot.resource).filter(|left| *left > 0)?;
        let end = spot.resource.saturating_add(left.min(most));
        let free = self.bit(&bitmap, spot.resource);
        let same = (spot.resource..end).take_while(|resource| self.bit(&bitmap, *resource) == free).count();
        Some((free, wide(same)))
    }

    /// Where the header lies that has a large file block in use and not split into small ones. `None` otherwise.
    #[must_use]
    pub fn in_use_whole(&self, space: &Space, spot: Spot) -> Option<u64> {
        /// Third bit of a large file block: it is split.
        const SPLIT: u64 = 2;
        let bitmap = self.bitmap(space, spot.cluster).ok().filter(|_| self.bits > SPLIT)?;
        let at = self.bit_at(spot.resource);
        let whole = !Self::bit_of(&bitmap, at) && !Self::bit_of(&bitmap, at.saturating_add(SPLIT));
        (spot.resource < self.in_cluster(spot.cluster) && whole).then_some(bitmap.at)
    }

    /// The metadata of a cluster's header, checked: where it lies in the volume, and its bytes.
    pub(super) fn metadata(&self, space: &Space, cluster: u64) -> Option<(u64, Arc<Block>, usize)> {
        let bitmap = self.bitmap(space, cluster).ok()?;
        Some((bitmap.at, bitmap.block, narrow(self.header_size >> 1)))
    }

    /// Whether the resources are parts of those of another file: small blocks.
    #[must_use]
    pub fn is_child(&self) -> bool {
        self.parent.is_some()
    }

    /// Resources of a cluster. The last can be larger than what is left for it; its further bits say nothing.
    fn in_cluster(&self, cluster: u64) -> u64 {
        self.per_cluster.min(self.total.saturating_sub(cluster.saturating_mul(self.per_cluster)))
    }

    fn bit(&self, bitmap: &Bitmap, resource: u64) -> bool {
        Self::bit_of(bitmap, self.bit_at(resource))
    }

    /// The first bit of a resource, from the start of the cluster's header.
    fn bit_at(&self, resource: u64) -> u64 {
        // The bitmap of small file blocks has a second half, 256 bytes behind the first.
        let (half, i) = if self.parent.is_some() { (resource >> 8, resource & 0xFF) } else { (0, resource) };
        let start = if self.six { 0x80_u64 } else { 0x10 }.saturating_add(self.header_size >> 1).saturating_mul(8);
        start.saturating_add(half.saturating_mul(0x800)).saturating_add(i.saturating_mul(self.bits))
    }

    fn bit_of(bitmap: &Bitmap, bit: u64) -> bool {
        bitmap.block.good().get(narrow(bit >> 3)).is_some_and(|byte| byte >> (bit & 7) & 1 == 1)
    }

    /// Reads and checks the header of a cluster.
    fn bitmap(&self, space: &Space, cluster: u64) -> Result<Bitmap, Error> {
        const NAME: &str = "VMFS cluster header";
        let header = self.header(cluster).ok_or(Error::NotFound)?;
        let lost = || match read_exact(&*self.file, header, &mut vec![0; narrow(self.header_size)]) {
            Err(gap) => Error::Lost { what: NAME, gap },
            Ok(_) => Error::corrupt(NAME, header, "it is not mapped"),
        };
        let at = self.position(header).ok_or_else(lost)?;
        let block = space.clusters.get(at, || read_block(&*space.lv, at, narrow(self.header_size)));
        if block.good().len() < RawLock::SIZE {
            return Err(lost());
        }
        let lock = RawLock::parse(block.good(), at)?;
        if lock.magic == 0 && lock.at == 0 {
            return Err(Error::NotFound);
        }
        if lock.at != at {
            return Err(Error::corrupt("VMFS cluster header: position", at, format!("it says {:#x}", lock.at)));
        }
        let metadata = block.good().get(narrow(self.header_size >> 1)..).unwrap_or_default();
        if wide(metadata.len()) < self.header_size >> 1 {
            return Err(lost());
        }
        let field = |at: usize, len: usize| {
            metadata.get(at..at.saturating_add(len)).map_or(0, |bytes| LittleEndian::read_uint(bytes, len))
        };
        let (number, free_count) = if self.six {
            if field(0x10, 4) != u64::from(CLUSTER_SIGNATURE) {
                let found = format!("signature {:#010x}", field(0x10, 4));
                return Err(Error::corrupt(NAME, at.saturating_add(self.header_size >> 1), found));
            }
            (field(0x18, 8), field(0x22, 2))
        } else {
            (field(0, 4), field(8, 4))
        };
        if number != cluster {
            return Err(Error::corrupt("VMFS cluster header: number", at, format!("{number}, {cluster} is right")));
        }
        Ok(Bitmap { at, block, free_count })
    }
}
