//! Owner tables of VMFS6: which file has which resource.
//!
//! | offset in the metadata of a cluster | meaning | how sure |
//! | --- | --- | --- |
//! | 0x8E0, in a cluster of up to 32 resources 0x2E0 | u32 descriptor of the owner of each resource | real images |
//! | 0x26, in clusters of small file blocks | u16 entries, the first of which is not used | real images |
//! | 0x940, in clusters of small file blocks | entries: u32 descriptor, u16 blocks of it, u16 flag | real images |
//!
//! The owner of a descriptor is the folder that it is in; the ten system files have none. The owner of a sub-block or
//! of a pointer block of `.pb2.sf` is the file that uses it. Freed resources have none. Each cluster of small file
//! blocks counts the blocks of each owner, and the sum is that of the blocks in use. All of this holds on every
//! cluster of the real images.

use super::address::{Address, FdAddress, Spot};
use super::descriptor::{Descriptor, Origin, Shape, Type, read_poisoned};
use super::directory::is_head;
use super::ground::Ground;
use super::journal;
use super::page::Page;
use super::relic;
use super::resource::Resource;
use super::volume::{Space, Volume};
use crate::layer::Trust;
use crate::num::{narrow, wide};
use byteorder::{ByteOrder, LittleEndian};
use std::collections::BTreeMap;

/// Sub-blocks whose owners are kept, 128 GiB of them, and files whose blocks are counted.
const KEPT: usize = 1 << 21;
const COUNTED: usize = 1 << 20;
/// Sub-blocks of one file that are put together.
const PARTS: usize = 320;

/// Who has a resource. `None` where no table says.
#[must_use]
pub fn of(space: &Space, resource: &Resource, spot: Spot) -> Option<FdAddress> {
    /// Bytes before the table, for large clusters and for small ones.
    const LARGE: usize = 0x8E0;
    const SMALL: usize = 0x2E0;
    if !resource.owned || spot.resource >= resource.per_cluster {
        return None;
    }
    let (_, block, metadata) = resource.metadata(space, spot.cluster)?;
    let table = if resource.per_cluster > 32 { LARGE } else { SMALL };
    let at = metadata.checked_add(table)?.checked_add(narrow(spot.resource).checked_mul(4)?)?;
    FdAddress::of(LittleEndian::read_u32(block.good().get(at..at.checked_add(4)?)?))
}

/// How many blocks of a cluster of small file blocks each file has, in the order of the table.
#[must_use]
pub fn blocks(space: &Space, resource: &Resource, cluster: u64) -> Option<Vec<(FdAddress, u64)>> {
    const COUNT: usize = 0x26;
    const TABLE: usize = 0x940;
    let (_, block, metadata) = resource.metadata(space, cluster).filter(|_| resource.is_child())?;
    let metadata = block.good().get(metadata..)?;
    let count = usize::from(LittleEndian::read_u16(metadata.get(COUNT..COUNT.checked_add(2)?)?));
    let entries = metadata.get(TABLE..)?.chunks_exact(8).take(count).skip(1);
    let owner = |entry: &[u8]| {
        let address = FdAddress::of(LittleEndian::read_u32(entry.get(..4)?))?;
        Some((address, u64::from(LittleEndian::read_u16(entry.get(4..6)?))))
    };
    Some(entries.filter_map(owner).collect())
}

/// What files own: made of the tables once, when a descriptor is lost.
#[derive(Clone, Debug, Default)]
pub(super) struct Owned {
    subs: BTreeMap<FdAddress, Vec<Spot>>,
    blocks: BTreeMap<FdAddress, u64>,
    /// The last image of each that a journal has.
    images: BTreeMap<FdAddress, journal::Image>,
    /// There is more than is kept.
    pub(super) cut: bool,
}

impl Owned {
    pub(super) fn load(volume: &Volume) -> Self {
        let mut owned = Self::default();
        for image in journal::images(volume) {
            owned.images.insert(image.descriptor.address, image);
        }
        if let Some(sbc) = volume.pools.sbc.as_ref().filter(|sbc| sbc.owned) {
            let mut left = KEPT;
            for (cluster, resource) in owned.clusters(volume, sbc) {
                let spot = Spot { cluster, resource };
                let Some(file) = of(&volume.space, sbc, spot) else { continue };
                let parts = owned.subs.entry(file).or_default();
                // One more than are used says that there are too many.
                if parts.len() > PARTS {
                    continue;
                }
                parts.push(spot);
                let Some(less) = left.checked_sub(1) else {
                    owned.cut = true;
                    break;
                };
                left = less;
            }
        }
        if let Some(sfb) = &volume.sfb {
            let mut ground = Ground::of(sfb, volume.lv());
            for cluster in ground.clusters(sfb) {
                for (owner, count) in blocks(&volume.space, sfb, cluster).unwrap_or_default() {
                    if owned.blocks.len() >= COUNTED && !owned.blocks.contains_key(&owner) {
                        owned.cut = true;
                        continue;
                    }
                    let sum = owned.blocks.entry(owner).or_default();
                    *sum = sum.saturating_add(count);
                }
            }
            owned.cut |= ground.cut;
        }
        owned
    }

    /// All resources of the clusters that are there.
    fn clusters(&mut self, volume: &Volume, resource: &Resource) -> impl Iterator<Item = (u64, u64)> + use<> {
        let mut ground = Ground::of(resource, volume.lv());
        let clusters = ground.clusters(resource);
        self.cut |= ground.cut;
        let per_cluster = resource.per_cluster;
        clusters.into_iter().flat_map(move |cluster| (0..per_cluster).map(move |resource| (cluster, resource)))
    }

    /// Whether anything is left of a descriptor.
    pub(super) fn knows(&self, address: FdAddress) -> bool {
        self.images.contains_key(&address) || self.subs.contains_key(&address)
    }

    /// The image of a descriptor that a journal has at a place.
    pub(super) fn image(&self, address: FdAddress, journal: u64, at: u64) -> Option<&journal::Image> {
        self.images.get(&address).filter(|image| image.journal == journal && image.at == at)
    }

    /// How many small file blocks a file has by the tables.
    pub(super) fn blocks_of(&self, address: FdAddress) -> u64 {
        self.blocks.get(&address).copied().unwrap_or(0)
    }
}

/// The last image that a journal has of a descriptor that is in use and can't be read.
pub(super) fn image(volume: &Volume, at: u64, address: FdAddress) -> Option<Descriptor> {
    let image = volume.owned().images.get(&address).filter(|image| image.descriptor.at == at);
    let image = image.filter(|image| image.descriptor.links > 0)?;
    let origin = Origin::Journal { journal: image.journal, at: image.at };
    Some(Descriptor { origin, ..image.descriptor.clone() })
}

/// Makes a descriptor again that is in use and can't be read, and of which no journal has an image: out of the
/// sub-blocks that it owns. `None` if nothing is left of it.
pub(super) fn rebuild(volume: &Volume, at: u64, address: FdAddress) -> Option<Descriptor> {
    let owned = volume.owned();
    let parts = owned.subs.get(&address).filter(|parts| parts.len() <= PARTS)?;
    let sbc = volume.pools.sbc.as_ref()?;
    let header = &volume.space.header;
    let parent = volume.fdc.as_ref().and_then(|fdc| of(&volume.space, fdc, address.spot()));
    let mut found: Vec<(Spot, Content)> = Vec::new();
    for spot in parts {
        let body = sbc.body(*spot)?;
        let (bytes, _) = read_poisoned(&*sbc.file, body, narrow(sbc.size));
        found.push((*spot, content(volume, *spot, &bytes, parts)));
    }
    let metadata = at.saturating_add(header.md);
    let blank = Descriptor {
        parent,
        shape: Shape::Mapped { levels: 0, shift: header.sub_shift },
        pointers: vec![0; narrow(header.md).saturating_mul(2).saturating_sub(0x1600).max(2560)],
        pointers_at: metadata,
        content_at: metadata,
        content_len: 0,
        origin: Origin::Owners,
        trust: Trust::Inferred,
        ..relic::blank(header, at, address, Type::File)
    };
    let put = |pointers: &mut [u8], index: usize, spot: Spot| {
        let start = index.saturating_mul(8);
        if let Some(slot) = pointers.get_mut(start..start.saturating_add(8)) {
            LittleEndian::write_u64(slot, 2 | spot.cluster << 6 | spot.resource << 56);
        }
    };
    if found.iter().any(|(_, content)| *content == Content::Folder(None)) {
        // The header of a folder comes first. Blocks of entries know their own place; what says nothing comes last.
        found.sort_by_key(|(spot, content)| match content {
            Content::Folder(place) => (place.unwrap_or(0), *spot),
            _ => (u64::MAX, *spot),
        });
        let mut pointers = blank.pointers.clone();
        for (index, (spot, _)) in found.iter().enumerate() {
            put(&mut pointers, index, *spot);
        }
        let count = wide(found.len());
        let len = count.saturating_mul(sbc.size);
        return Some(Descriptor { kind: Type::Folder, len, blocks: count, mode: 0o040_755, pointers, ..blank });
    }
    let upper: Vec<_> = found.iter().filter(|(_, content)| matches!(content, Content::Upper { .. })).collect();
    let leaves: Vec<_> = found.iter().filter(|(_, content)| matches!(content, Content::Leaf { .. })).collect();
    let span = 1_u64.checked_shl(header.fan_shift.saturating_add(header.file_shift))?;
    let file = 1_u64.checked_shl(header.file_shift)?;
    let mut pointers = blank.pointers.clone();
    let (levels, len, sure) = match (upper.as_slice(), leaves.as_slice()) {
        // One table of tables maps 64 TiB: there can't be a second.
        ([(spot, Content::Upper { last })], _) => {
            put(&mut pointers, 0, *spot);
            (2, last.saturating_add(1).saturating_mul(span), true)
        }
        ([], []) => return None,
        ([], leaves) => {
            let mut len: u64 = 0;
            let mut dense = true;
            for (index, (spot, content)) in leaves.iter().enumerate() {
                put(&mut pointers, index, *spot);
                let Content::Leaf { last, full } = content else { continue };
                let start = wide(index).saturating_mul(span);
                len = start.saturating_add(last.saturating_add(1).saturating_mul(file));
                dense &= *full;
            }
            // Tables without holes can only follow each other. Where there are holes, a table of nothing may have
            // been left out, and of several the order is that in which they were taken.
            (1, len, dense && leaves.len() == 1)
        }
        _ => return None,
    };
    let trust = if sure && !owned.cut { Trust::Inferred } else { Trust::Doubtful };
    let blocks = owned.blocks_of(address);
    let shape = Shape::Mapped { levels, shift: header.file_shift };
    Some(Descriptor { len, blocks, shape, pointers, trust, ..blank })
}

/// What a sub-block holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// The header of a folder, or blocks of entries of which the first says that it lies there.
    Folder(Option<u64>),
    /// Pointers to data: the last one's number, and whether none before it is a hole.
    Leaf {
        last: u64,
        full: bool,
    },
    /// Pointers to pointer blocks of the same owner.
    Upper {
        last: u64,
    },
    Other,
}

pub(super) fn content(volume: &Volume, own: Spot, bytes: &[u8], parts: &[Spot]) -> Content {
    if is_head(bytes) {
        return Content::Folder(None);
    }
    let of_folder = || {
        let place = super::directory::place_of(bytes, volume.space.header.md);
        let number = |at: u64| at.checked_div(wide(bytes.len()).max(1)).unwrap_or(0).max(1);
        place.map_or(Content::Other, |at| Content::Folder(Some(number(at))))
    };
    match Page::of(&volume.space.header, volume.lv().len(), bytes) {
        Page::Data(pointers) => {
            let last = pointers.last().map_or(0, |pointer| pointer.slot);
            Content::Leaf { last, full: wide(pointers.len()) == last.saturating_add(1) }
        }
        Page::Pages(pages) => {
            let own = |address: &Address| matches!(address, Address::Sub(spot) if *spot != own && parts.contains(spot));
            let upper = pages.iter().all(|(_, address)| own(address));
            pages.last().filter(|_| upper).map_or_else(of_folder, |(last, _)| Content::Upper { last: *last })
        }
        Page::Other => of_folder(),
    }
}
