//! What the header of a resource file has to say, by the headers of its clusters.
//!
//! Such a header has no second copy, and all that lies in the file is found through it: one damaged field of
//! `.fdc.sf`'s moves every name. But each of its numbers follows from others, and each cluster says where it lies, which
//! one it is and how many resources it has. On all real images:
//!
//! | file | first bytes of a cluster | VMFS5: resources x clusters of a group, bytes | VMFS6 |
//! | --- | --- | --- | --- |
//! | `.fdc.sf` | 0x10C00005 | 200 x 64, 2 KiB | 256 x 8, a descriptor |
//! | `.sbc.sf` | 0x10C00003 | 64 x 64 dense, 16 x 64 not | 256 x 8, a sub-block |
//! | `.pbc.sf` | 0x10C00004 | 16 x 64, 4 KiB | 0 x 8, 64 KiB |
//! | `.pb2.sf` | 0x10C00006 | 16 x 64, 4 KiB | 32 x 8, 64 KiB |
//! | `.fbb.sf` | 0x10C00002, large blocks 0x10C00008 | 200 x 64, none | 16 x 8, a cluster's header |
//! | small blocks | 0x10C00002 | | 512 x 8, none |
//! | `.jbc.sf` | 0x10C00007 | | 8 x 4, 2 MiB |
//!
//! - Group 0 starts at 64 KiB.
//! - A group has the headers of its clusters and then their resources, and nothing else.
//! - The file ends with its last resource.
//! - All clusters but the last count as many resources as the header says that a cluster has.
//!
//! A header is only doubted where one of these does not hold, and gives way only to one that more of them agree with.

use super::address::{FdAddress, Spot};
use super::descriptor::RawLock;
use super::file::File;
use super::header::{GROUP_AT, Header};
use super::resource::{CHILD, CLUSTER_SIGNATURE, OWNED, RawResource, Resource, SIGNATURE};
use crate::error::Error;
use crate::layer::Layer;
use crate::num::wide;
use crate::read::read_vec;
use crate::record::Record;
use byteorder::{ByteOrder, LittleEndian};
use std::sync::Arc;

/// What all volumes have of a kind of resource file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// First bytes of a cluster's header.
    pub magic: u32,
    /// Bytes of a resource in the file.
    pub size: u64,
    /// Resources in a cluster.
    per_cluster: u32,
    /// Clusters in a group.
    per_group: u32,
    /// Bits of a resource in the bitmap.
    bits: u32,
    /// Of the flags, the two that a reader needs.
    flags: u32,
    /// Whether clusters count their own resources.
    counts: bool,
    /// File blocks that a resource stands for, where it stands for any.
    stands: Option<u32>,
}

impl Kind {
    /// The kind of the file of this descriptor.
    pub(super) fn of(header: &Header, address: FdAddress) -> Option<Self> {
        let six = header.is_six();
        let of = |magic: u32, size: u64, per_cluster: u32, per_group: u32| Self {
            magic: 0x10C0_0000 | magic,
            size,
            per_cluster,
            per_group,
            bits: 1,
            flags: 0,
            counts: true,
            stands: None,
        };
        let sub = 1_u64.checked_shl(header.sub_shift).unwrap_or_default();
        let table = header.table_size();
        let group = if six { 8 } else { 64 };
        let owned = if six { OWNED } else { 0 };
        let pb2 = header.pb2() == Some(address) || address == FdAddress::PB2;
        Some(match address {
            FdAddress::FDC => {
                let clusters = u32::try_from(header.fdc_clusters()).unwrap_or(group);
                let size = header.descriptor_size();
                Self { flags: owned, ..of(5, size, if six { 256 } else { 200 }, clusters) }
            }
            FdAddress::SBC => {
                let per_cluster = if six {
                    256
                } else if header.is_dense() {
                    64
                } else {
                    16
                };
                Self { flags: owned, ..of(3, sub, per_cluster, group) }
            }
            FdAddress::PBC => Self { flags: owned, ..of(4, table, if six { 0 } else { 16 }, group) },
            _ if pb2 => Self { flags: owned, ..of(6, table, if six { 32 } else { 16 }, group) },
            FdAddress::FBB if six => {
                let large = header.large_shift;
                Self {
                    flags: owned,
                    bits: 3,
                    counts: false,
                    stands: Some(large),
                    ..of(8, header.cluster_header_size(), 16, group)
                }
            }
            FdAddress::FBB => Self { stands: Some(header.file_shift), ..of(2, 0, 200, group) },
            FdAddress::JBC => of(7, 2 << 20, 8, 4),
            _ => return None,
        })
    }

    /// Small file blocks, which split large ones.
    pub(super) fn small(header: &Header) -> Self {
        let per_cluster = 1_u32.checked_shl(29_u32.saturating_sub(header.file_shift)).unwrap_or(512);
        let of = Self {
            magic: 0x10C0_0002,
            size: 0,
            per_cluster,
            per_group: 8,
            bits: 2,
            flags: CHILD,
            counts: true,
            stands: None,
        };
        Self { stands: Some(header.file_shift), ..of }
    }

    /// The header that such a file has, with clusters of so many resources.
    fn usual(self, per_cluster: u32, parent: Option<&RawResource>) -> RawResource {
        RawResource {
            resources_per_cluster: per_cluster,
            clusters_per_group: self.per_group,
            cluster_group_offset: u32::try_from(GROUP_AT).unwrap_or_default(),
            resource_size: u32::try_from(self.size).unwrap_or_default(),
            cluster_group_size: 0,
            num_resources_lo: 0,
            num_cluster_groups: 0,
            num_resources_hi: 0,
            signature: SIGNATURE,
            version: 1,
            flags: self.flags,
            affinity_per_cluster: 0,
            affinity_per_resource: 0,
            bits_per_resource: self.bits,
            child_meta_offset: if self.bits == 3 { 0x1000 } else { 0 },
            parent_resources_per_cluster: parent.map_or(0, |parent| parent.resources_per_cluster),
            parent_clusters_per_group: parent.map_or(0, |parent| parent.clusters_per_group),
            parent_cluster_group_size: parent.map_or(0, |parent| parent.cluster_group_size),
        }
    }
}

/// Bytes of a group by the numbers of a header.
fn group_size(header: &Header, raw: &RawResource) -> u64 {
    let bodies = u64::from(raw.resources_per_cluster).saturating_mul(raw.resource_size.into());
    u64::from(raw.clusters_per_group).saturating_mul(header.cluster_header_size().saturating_add(bodies))
}

/// Resources that a file of this length has by the other numbers of its header.
fn resources(header: &Header, kind: Kind, raw: &RawResource, file: &File) -> u64 {
    if let Some(shift) = kind.stands {
        let size = 1_u64.checked_shl(shift).unwrap_or(u64::MAX);
        return file.volume_len().div_ceil(size);
    }
    let rest = file.len().saturating_sub(raw.cluster_group_offset.into());
    let group = u64::from(raw.cluster_group_size).max(1);
    let headers = u64::from(raw.clusters_per_group).saturating_mul(header.cluster_header_size());
    let in_group = u64::from(raw.clusters_per_group).saturating_mul(raw.resources_per_cluster.into());
    let (full, part) = (rest.checked_div(group).unwrap_or(0), rest.checked_rem(group).unwrap_or(0));
    let part = part.saturating_sub(headers).checked_div(raw.resource_size.into()).unwrap_or(0);
    full.saturating_mul(in_group).saturating_add(part.min(in_group))
}

/// Bytes that a file has by its header. Of bitmaps of blocks, all of their last group.
pub(super) fn length(header: &Header, resource: &Resource) -> Option<u64> {
    if resource.size == 0 || resource.bits > 1 {
        return Some(resource.group(resource.groups()));
    }
    let in_group = resource.per_group.checked_mul(resource.per_cluster)?;
    let full = resource.total.checked_div(in_group)?;
    let part = resource.total.checked_rem(in_group)?;
    let bodies = part.checked_mul(resource.size)?;
    let headers = resource.per_group.checked_mul(header.cluster_header_size())?;
    let tail = if part > 0 { headers.checked_add(bodies)? } else { 0 };
    resource.group(full).checked_add(tail)
}

/// What the header of a cluster says: its number and its resources.
fn cluster(header: &Header, kind: Kind, resource: &Resource, number: u64) -> Option<u64> {
    let at = resource.header(number)?;
    let position = resource.position(at)?;
    let size = header.cluster_header_size();
    let half = size >> 1;
    let (lock, seen) = read_vec(&*resource.file, at, RawLock::SIZE);
    let lock = RawLock::parse(&lock, at).ok().filter(|_| seen.is_whole())?;
    let (metadata, seen) = read_vec(&*resource.file, at.checked_add(half)?, 0x28);
    let field = |at: usize, len: usize| {
        metadata.get(at..at.saturating_add(len)).map_or(0, |bytes| LittleEndian::read_uint(bytes, len))
    };
    let (own, total) = if header.is_six() { (field(0x18, 8), field(0x20, 2)) } else { (field(0, 4), field(4, 4)) };
    let signed = !header.is_six() || field(0x10, 4) == u64::from(CLUSTER_SIGNATURE);
    let fits = lock.magic == kind.magic && lock.at == position && own == number && signed && seen.is_whole();
    fits.then_some(total)
}

/// How much speaks for a header: clusters that are where it has them, numbers that agree, and what of it is written. A
/// number that is changed has to make others agree, of which there are fewer than is written.
fn score(header: &Header, kind: Kind, file: &Arc<File>, raw: &RawResource, written: Option<&RawResource>) -> u64 {
    let resource = Resource::by(header, Arc::clone(file), raw);
    let fields = |raw: &RawResource| {
        let of_cluster = [raw.resources_per_cluster, raw.resource_size];
        let of_group = [raw.clusters_per_group, raw.cluster_group_offset, raw.cluster_group_size];
        of_cluster.into_iter().chain(of_group)
    };
    let kept = written.map_or(0, |written| fields(written).zip(fields(raw)).filter(|(a, b)| a == b).count());
    let mut score = wide(kept).saturating_mul(2);
    score =
        score.saturating_add(u64::from(group_size(header, raw) == u64::from(raw.cluster_group_size)).saturating_mul(3));
    score = score.saturating_add(u64::from(u64::from(raw.resource_size) == kind.size).saturating_mul(2));
    score = score.saturating_add(u64::from(u64::from(raw.cluster_group_offset) == GROUP_AT).saturating_mul(2));
    for number in samples(&resource) {
        let Some(total) = cluster(header, kind, &resource, number) else { continue };
        score = score.saturating_add(2);
        score = score.saturating_add(u64::from(kind.counts && total == resource.per_cluster).saturating_mul(2));
    }
    score
}

/// Clusters that are looked at: those of the first group, and the first of each of some others.
fn samples(resource: &Resource) -> impl Iterator<Item = u64> {
    let per_group = resource.per_group;
    (0..per_group.min(64)).chain((1..8).map(move |group| per_group.saturating_mul(group)))
}

/// Whether nothing speaks against a header at the first look.
fn is_sound(header: &Header, kind: Kind, file: &Arc<File>, raw: &RawResource, parent: Option<&RawResource>) -> bool {
    let resource = Resource::by(header, Arc::clone(file), raw);
    let counts = resource.counts_agree() || resource.total == 0 && kind.per_cluster == 0;
    let related = parent.is_none_or(|parent| {
        let said = (raw.parent_resources_per_cluster, raw.parent_clusters_per_group, raw.parent_cluster_group_size);
        said == (parent.resources_per_cluster, parent.clusters_per_group, parent.cluster_group_size)
    });
    let fits = |number: u64| match cluster(header, kind, &resource, number) {
        Some(total) => !kind.counts || total == resource.per_cluster || number.saturating_add(1) == resource.clusters(),
        // Never made, or lost itself, which is nothing that the file's header could be blamed for.
        None => false,
    };
    let second = if resource.clusters() > resource.per_group { resource.per_group } else { 0 };
    let flags = !header.is_six() || (raw.flags & (CHILD | OWNED) == kind.flags && raw.bits_per_resource == kind.bits);
    counts
        && related
        && flags
        && u64::from(raw.resource_size) == kind.size
        && u64::from(raw.cluster_group_offset) == GROUP_AT
        && group_size(header, raw) == u64::from(raw.cluster_group_size)
        && (resource.total == 0 || fits(0) && fits(second))
}

/// Whether a header can be used at all. `Err` says why not.
fn usable(header: &Header, raw: &RawResource, at: u64) -> Result<(), Error> {
    let corrupt = |found: String| Err(Error::corrupt(RawResource::NAME, at, found));
    if header.is_six() && raw.signature != SIGNATURE {
        return corrupt(format!("signature {:#010x}", raw.signature));
    }
    let per_cluster = u64::from(raw.resources_per_cluster);
    let bits = if header.is_six() { u64::from(raw.bits_per_resource.max(1)) } else { 1 };
    // The bitmap has to fit between the metadata's start and its end.
    let room = header.md.saturating_sub(if header.is_six() { 0x80 } else { 0x10 }).saturating_mul(8);
    // `.pbc.sf` of VMFS6 has none at all: pointer blocks are sub-blocks there.
    if per_cluster > 1 << 16
        || !(1..=1 << 16).contains(&raw.clusters_per_group)
        || raw.resource_size > 64 << 20
        || per_cluster.saturating_mul(bits) > room
    {
        return corrupt(format!(
            "{per_cluster} resources of {} bytes, {bits} bits each, in a cluster, {} clusters in a group",
            raw.resource_size, raw.clusters_per_group
        ));
    }
    Ok(())
}

/// The header at `at` of a resource file, and what is believed instead where its clusters stand against it.
pub(super) fn load(
    header: &Header,
    kind: Kind,
    file: &Arc<File>,
    at: u64,
    parent: Option<&RawResource>,
) -> Result<(RawResource, Option<String>), Error> {
    let read = RawResource::load(&**file, at);
    let (raw, why) = match read {
        Ok(raw) => match usable(header, &raw, at) {
            Ok(()) if is_sound(header, kind, file, &raw, parent) => return Ok((raw, None)),
            Ok(()) => (Some(raw), None),
            Err(why) => (Some(raw), Some(why)),
        },
        Err(why) => (None, Some(why)),
    };
    // What the first cluster counts, if it is where it always is.
    let first = Resource::by(header, Arc::clone(file), &kind.usual(kind.per_cluster, parent));
    let counted = cluster(header, kind, &first, 0).filter(|_| kind.counts).and_then(|total| u32::try_from(total).ok());
    let counted = counted.filter(|total| *total > 0).unwrap_or(kind.per_cluster);
    let mut tries = Vec::new();
    if let Some(raw) = &raw {
        let fixes: [fn(&mut RawResource, &RawResource); 6] = [
            |_, _| {},
            |raw, usual| raw.resources_per_cluster = usual.resources_per_cluster,
            |raw, usual| raw.clusters_per_group = usual.clusters_per_group,
            |raw, usual| raw.cluster_group_offset = usual.cluster_group_offset,
            |raw, usual| raw.resource_size = usual.resource_size,
            |raw, usual| raw.cluster_group_size = usual.cluster_group_size,
        ];
        for fix in fixes {
            let mut changed = raw.clone();
            let mut usual = kind.usual(counted, parent);
            usual.cluster_group_size = u32::try_from(group_size(header, raw)).unwrap_or(0);
            fix(&mut changed, &usual);
            tries.push(changed);
        }
    }
    for per_cluster in [counted, kind.per_cluster] {
        let mut usual = kind.usual(per_cluster, parent);
        usual.cluster_group_size = u32::try_from(group_size(header, &usual)).unwrap_or(0);
        tries.push(usual);
    }
    let mut best: Option<(u64, RawResource)> = None;
    for mut candidate in tries {
        candidate.signature = SIGNATURE;
        if header.is_six() {
            candidate.bits_per_resource = kind.bits;
            candidate.flags = candidate.flags & !(CHILD | OWNED) | kind.flags;
        }
        if let Some(parent) = parent {
            candidate.parent_resources_per_cluster = parent.resources_per_cluster;
            candidate.parent_clusters_per_group = parent.clusters_per_group;
            candidate.parent_cluster_group_size = parent.cluster_group_size;
        }
        if usable(header, &candidate, at).is_err() {
            continue;
        }
        let score = score(header, kind, file, &candidate, raw.as_ref());
        if best.as_ref().is_none_or(|(most, _)| score > *most) {
            best = Some((score, candidate));
        }
    }
    let Some((_, mut believed)) = best else {
        return Err(why.unwrap_or_else(|| Error::corrupt(RawResource::NAME, at, "nothing agrees with it")));
    };
    let resource = Resource::by(header, Arc::clone(file), &believed);
    let fitting = samples(&resource).filter(|number| cluster(header, kind, &resource, *number).is_some()).count();
    if let Some(why) = why.as_ref().filter(|_| fitting == 0 && kind.per_cluster > 0) {
        return Err(why.clone());
    }
    if !resource.counts_agree() {
        let total = resources(header, kind, &believed, file);
        let groups = total.div_ceil(u64::from(believed.resources_per_cluster).max(1));
        let groups = groups.div_ceil(u64::from(believed.clusters_per_group).max(1));
        believed.num_resources_lo = u32::try_from(total & u64::from(u32::MAX)).unwrap_or(0);
        believed.num_resources_hi = u32::try_from(total >> 32).unwrap_or(0);
        believed.num_cluster_groups = u32::try_from(groups).unwrap_or(0);
    }
    let text = match (why, &raw) {
        (Some(why), _) => Some(format!("{why}; it is made again by {fitting} headers of its clusters")),
        (None, Some(raw)) => differences(header, raw, &believed)
            .map(|text| format!("{text} by the other fields and {fitting} headers of its clusters")),
        (None, None) => None,
    };
    Ok((believed, text))
}

/// The fields that are believed to be others than they are.
fn differences(header: &Header, raw: &RawResource, believed: &RawResource) -> Option<String> {
    let fields = |raw: &RawResource| {
        let six = |value: u32| if header.is_six() { value } else { 0 };
        [
            ("resources in a cluster at 0x0", raw.resources_per_cluster),
            ("clusters in a group at 0x4", raw.clusters_per_group),
            ("offset of group 0 at 0x8", raw.cluster_group_offset),
            ("resource size at 0xc", raw.resource_size),
            ("group size at 0x10", raw.cluster_group_size),
            ("resources at 0x14", raw.num_resources_lo),
            ("groups at 0x18", raw.num_cluster_groups),
            ("upper half of resources at 0x1c", raw.num_resources_hi),
            ("flags at 0x28", six(raw.flags)),
            ("bits of a resource at 0x30", six(raw.bits_per_resource)),
            ("parent's resources in a cluster at 0x38", six(raw.parent_resources_per_cluster)),
            ("parent's clusters in a group at 0x3c", six(raw.parent_clusters_per_group)),
            ("parent's group size at 0x40", six(raw.parent_cluster_group_size)),
        ]
    };
    let changed: Vec<String> = fields(raw)
        .into_iter()
        .zip(fields(believed))
        .filter(|(said, believed)| said != believed)
        .map(|((name, said), (_, believed))| format!("{name}: {said:#x}, {believed:#x} is believed"))
        .collect();
    (!changed.is_empty()).then(|| changed.join("; "))
}

/// The place in the file of the first record that a block of `.fdc.sf` starts with, from the block's start.
pub(super) fn phase(header: &Header) -> u64 {
    let record = header.descriptor_size().max(header.cluster_header_size());
    header.fdc_offset().checked_rem(record).unwrap_or(0)
}

/// The place in `.fdc.sf` of the record whose bytes start here, if it says which it is.
pub(super) fn place(header: &Header, fdc: &Resource, lock: &RawLock, metadata: &[u8]) -> Option<u64> {
    let field = |at: usize, len: usize| {
        metadata.get(at..at.saturating_add(len)).map_or(0, |bytes| LittleEndian::read_uint(bytes, len))
    };
    match lock.magic {
        super::descriptor::MAGIC => {
            let address = u32::try_from(field(0, 4)).ok().and_then(FdAddress::of)?;
            let Spot { cluster, resource } = address.spot();
            fdc.body(Spot { cluster, resource })
        }
        super::rebuild::FDC_CLUSTER if header.is_six() && field(0x10, 4) != u64::from(CLUSTER_SIGNATURE) => None,
        super::rebuild::FDC_CLUSTER => fdc.header(if header.is_six() { field(0x18, 8) } else { field(0, 4) }),
        _ => None,
    }
}
