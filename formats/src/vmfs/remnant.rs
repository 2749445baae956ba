//! The blocks of a resource file whose descriptor or pointers are lost, by what lies in them.
//!
//! `ESXi` lays these files out when it formats a volume, mostly in one row, and never moves them. So what lies between
//! two blocks that are as far apart in the file as in the volume is what lies between them in the volume. Headers of
//! clusters say where they lie and which they are; the first of a group stands for all blocks up to the next that is
//! known. Where the next system file starts, the one before it ends. Descriptors say which they are too: those of
//! `.fdc.sf` are looked for in the volume.

use super::address::FdAddress;
use super::descriptor::{Descriptor, Origin, RawLock, Shape};
use super::file::File;
use super::frame::{self, Kind};
use super::header::GROUP_AT;
use super::owner;
use super::relic;
use super::resource::Resource;
use super::volume::{Pools, Space, Volume};
use crate::layer::{Layer, Place, Trust};
use crate::num::{narrow, wide};
use crate::read::read_vec;
use crate::record::Record;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Blocks of a file that are put together again: all that 64 GiB have.
const BLOCKS: u64 = 1 << 16;
/// Blocks of the volume that are looked at for descriptors, from its start, where system files lie.
const SCAN: u64 = 1 << 14;
/// Groups that are looked for there.
const SEARCHED: u64 = 64;
/// How many of them are read.
const READ: u64 = 1 << 11;

/// A resource file and what it stands on.
pub(super) struct Remnant<'a> {
    pub space: &'a Arc<Space>,
    pub pools: &'a Arc<Pools>,
    pub kind: Kind,
    pub address: FdAddress,
}

impl Remnant<'_> {
    fn shift(&self) -> u32 {
        self.space.header.file_shift
    }

    fn block_size(&self) -> u64 {
        1_u64.checked_shl(self.shift()).unwrap_or(1)
    }

    /// Blocks of the volume.
    fn volume(&self) -> u64 {
        self.space.lv.len() >> self.shift().min(63)
    }

    /// The descriptor at `at`, of which only pointers are left. Not even those are needed: the first block of `.fdc.sf` is
    /// where it always is, those of others start with their first cluster.
    pub(super) fn descriptor(&self, at: u64) -> Option<Descriptor> {
        let header = &self.space.header;
        let blank = relic::blank(header, at, self.address, super::descriptor::Type::System);
        let pointers = relic::pointers(self.space, at);
        let levels = pointers.as_ref().and_then(|pointers| relic::levels(header, pointers));
        if let (Some(pointers), Some(levels)) = (pointers, levels) {
            let shape = Shape::Mapped { levels, shift: self.shift() };
            let fd = Descriptor { shape, pointers, ..blank };
            return relic::measured(self.space, self.pools, fd);
        }
        if let Some(fd) = self.by_owner(&blank) {
            return Some(fd);
        }
        let first = match self.address {
            FdAddress::FDC => header.fdc_at() >> self.shift().min(63),
            _ => self.base()?,
        };
        let pointers = self.pointer(first)?;
        let shape = Shape::Mapped { levels: 0, shift: self.shift() };
        Some(Descriptor { shape, pointers, len: self.block_size(), blocks: 1, ..blank })
    }

    /// The pointer to a block, as on disk.
    fn pointer(&self, block: u64) -> Option<Vec<u8>> {
        let width = self.space.header.width;
        width.to_block(block)?.to_le_bytes().get(..narrow(width.bytes())).map(<[u8]>::to_vec)
    }

    /// The file by the pointer block of `.pb2.sf` that the table of owners has as its own, if there is one and no more.
    fn by_owner(&self, fd: &Descriptor) -> Option<Descriptor> {
        let pb2 = self.pools.pb2.as_ref().filter(|pb2| pb2.owned)?;
        let spots = (0..pb2.total.min(SCAN)).filter_map(|number| pb2.spot(number));
        let mut own = spots.filter(|spot| owner::of(self.space, pb2, *spot) == Some(self.address));
        let spot = own.next().filter(|_| own.next().is_none())?;
        let raw = (5 | spot.cluster << 6 | spot.resource << 56).to_le_bytes();
        let shape = Shape::Mapped { levels: 1, shift: self.shift() };
        let mut pointers = raw.to_vec();
        pointers.resize(fd.pointers.len().max(pointers.len()), 0);
        let made = relic::measured(self.space, self.pools, Descriptor { shape, pointers, ..fd.clone() })?;
        Some(Descriptor { len: if fd.len > 0 { fd.len } else { made.len }, ..made })
    }

    /// The block of the volume that such a file starts in, by its first cluster.
    fn base(&self) -> Option<u64> {
        self.search(0, GROUP_AT)
    }

    /// The block of the volume in which the header of a cluster lies at `within`.
    fn search(&self, cluster: u64, within: u64) -> Option<u64> {
        let header = &self.space.header;
        let number = header.md.saturating_add(if header.is_six() { 0x18 } else { 0 });
        let [a, b, c, d, ..] = cluster.to_le_bytes();
        (0..self.volume().min(SCAN)).find(|block| {
            let at = block.saturating_mul(self.block_size()).saturating_add(within);
            self.is_cluster(at) && read_vec(&*self.space.lv, at.saturating_add(number), 4).0 == [a, b, c, d]
        })
    }

    /// Whether another system file starts with this block: they lie in a row.
    fn is_next(&self, block: u64) -> bool {
        let header = &self.space.header;
        let others = [
            FdAddress::FBB,
            FdAddress::PBC,
            FdAddress::SBC,
            FdAddress::PB2,
            FdAddress::SDD,
            FdAddress::JBC,
            FdAddress::UNMAP,
        ];
        others.into_iter().filter(|address| *address != self.address).any(|address| {
            let pointers = header.fixed(address).and_then(|at| relic::pointers(self.space, at));
            pointers.and_then(|pointers| relic::first(header, &pointers)) == Some(block)
        })
    }

    /// Whether a record with this magic that knows its place lies at `at` of the volume.
    fn lock(&self, at: u64) -> Option<RawLock> {
        let (bytes, seen) = read_vec(&*self.space.lv, at, RawLock::SIZE);
        RawLock::parse(&bytes, at).ok().filter(|lock| seen.is_whole() && lock.at == at)
    }

    fn is_cluster(&self, at: u64) -> bool {
        at < self.space.lv.len() && self.lock(at).is_some_and(|lock| lock.magic == self.kind.magic)
    }

    /// The descriptor of the file with the blocks that it lacks, as far as they can be had, and what was done. `None` if
    /// it lacks none, or none of them can be had.
    pub(super) fn filled(&self, file: &File, resource: Option<&Resource>) -> Option<(Descriptor, String)> {
        let is_fdc = self.address == FdAddress::FDC;
        let mut len = file.len();
        let made = file.descriptor().origin == Origin::Pointers;
        let said = resource.filter(|_| is_fdc || made).and_then(|own| frame::length(&self.space.header, own));
        if let Some(said) = said {
            let most = self.volume().saturating_mul(self.block_size());
            len = len.max(said.min(most));
        }
        // Nor are there more than the volume has.
        let count = len.div_ceil(self.block_size()).min(BLOCKS).min(self.volume());
        let mut blocks = Blocks { count, known: BTreeMap::new(), taken: BTreeSet::new() };
        if !self.read(file, &mut blocks)? && blocks.count <= file.len().div_ceil(self.block_size()) {
            return None;
        }
        let before = blocks.known.len();
        if is_fdc {
            let first = self.space.header.fdc_at();
            if self.is_cluster(first.saturating_add(self.space.header.fdc_offset())) {
                blocks.add(0, first >> self.shift().min(63));
            }
        } else if let Some((first, at)) = blocks.known.first_key_value().map(|(first, at)| (*first, *at))
            && let Some(start) = at.checked_sub(first)
            && self.is_cluster(start.saturating_mul(self.block_size()).saturating_add(GROUP_AT))
        {
            blocks.add(0, start);
        } else if blocks.known.is_empty() {
            let blank = Descriptor { pointers: Vec::new(), ..file.descriptor().clone() };
            if let Some(fd) = self.by_owner(&blank) {
                let text = "its pointers are lost; the table of owners has one pointer block as its own".into();
                return Some((Descriptor { trust: fd.trust.max(Trust::Inferred), ..fd }, text));
            }
            if let Some(base) = self.base() {
                blocks.add(0, base);
            }
        }
        blocks.close();
        if let Some(resource) = resource {
            self.anchor(resource, &mut blocks);
            if is_fdc && wide(blocks.known.len()) < blocks.count {
                self.scan(resource, &mut blocks);
            }
            blocks.close();
            if let Some((last, at)) = blocks.known.last_key_value().map(|(last, at)| (*last, *at)) {
                let end = at.saturating_add(blocks.count.saturating_sub(last));
                if last.saturating_add(1) < blocks.count && self.is_next(end) {
                    blocks.add(blocks.count.saturating_sub(1), end.saturating_sub(1));
                    blocks.close();
                }
            }
        }
        let found = blocks.known.len().checked_sub(before).filter(|found| *found > 0)?;
        let lost = narrow(blocks.count).saturating_sub(blocks.known.len());
        let width = narrow(self.space.header.width.bytes());
        let mut pointers = Vec::new();
        for index in 0..blocks.count {
            let pointer = blocks.known.get(&index).and_then(|block| self.pointer(*block));
            // What no pointer is, so that it is lost and not a hole.
            pointers.extend(pointer.unwrap_or_else(|| vec![0xFF; width]));
        }
        let text = format!(
            "{found} of its {} blocks have no usable pointer and are taken by the records in them and by their \
             neighbours, {lost} are lost",
            blocks.count
        );
        let descriptor = Descriptor {
            pointers,
            len,
            blocks: blocks.count,
            shape: Shape::Mapped { levels: 0, shift: self.shift() },
            trust: file.descriptor().trust.max(Trust::Inferred),
            ..file.descriptor().clone()
        };
        Some((descriptor, text))
    }

    /// Where the blocks of a file lie, and whether some are missing. A file without gaps is not written down. `None` if
    /// what is missing is only elsewhere: no guess stands in for what a longer dump would say.
    fn read(&self, file: &File, blocks: &mut Blocks) -> Option<bool> {
        let mut gaps = false;
        for keep in [false, true] {
            let mut at = 0;
            while at < file.len() {
                let run = file.run(at, file.len().saturating_sub(at));
                match run.place {
                    Place::Below { offset, .. } if keep => {
                        let first = at >> self.shift().min(63);
                        let from = offset >> self.shift().min(63);
                        for index in 0..run.len.div_ceil(self.block_size()) {
                            blocks.add(first.saturating_add(index), from.saturating_add(index));
                        }
                    }
                    Place::Below { .. } => {}
                    Place::Lost(loss) if loss.why.is_elsewhere() => return None,
                    _ => gaps = true,
                }
                at = at.saturating_add(run.len.max(1));
            }
            if !gaps && blocks.count <= file.len().div_ceil(self.block_size()) {
                break;
            }
        }
        Some(gaps)
    }

    /// Adds the blocks that groups start in, if they are where their neighbours let them be.
    fn anchor(&self, resource: &Resource, blocks: &mut Blocks) {
        for group in 0..resource.groups().min(BLOCKS) {
            let start = resource.group(group);
            let index = start >> self.shift().min(63);
            if index >= blocks.count || blocks.known.contains_key(&index) {
                continue;
            }
            let before = blocks.known.range(..index).next_back();
            let before = before.map(|(known, at)| at.saturating_add(index.saturating_sub(*known)));
            let behind = blocks.known.range(index..).next();
            let behind = behind.and_then(|(known, at)| at.checked_sub(known.saturating_sub(index)));
            let within = start.checked_rem(self.block_size()).unwrap_or(0);
            let place = |block: &u64| block.saturating_mul(self.block_size()).saturating_add(within);
            let found = [before, behind].into_iter().flatten().find(|block| self.is_cluster(place(block)));
            let searched =
                || self.search(group.saturating_mul(resource.per_group), within).filter(|_| group < SEARCHED);
            if let Some(block) = found.or_else(searched) {
                blocks.add(index, block);
                // Its group goes on behind it as far as anybody knows.
                blocks.close();
            }
        }
    }

    /// Looks for the blocks of `.fdc.sf` among those of the volume that are in use. A descriptor that was never used is
    /// not there at all on VMFS5, so that a block is known by any record in it.
    fn scan(&self, fdc: &Resource, blocks: &mut Blocks) {
        let bitmaps = Volume::block_bitmaps(self.space, self.pools);
        let is_free = |block: u64| {
            let bitmaps = bitmaps.as_ref()?;
            bitmaps.is_free(self.space, bitmaps.spot(block)?).map(|(free, _)| free)
        };
        let mut left = READ;
        for block in 0..self.volume().min(SCAN) {
            if wide(blocks.known.len()) >= blocks.count || left == 0 {
                break;
            }
            if blocks.taken.contains(&block) || is_free(block) == Some(true) {
                continue;
            }
            left = left.saturating_sub(1);
            if let Some(index) = self.index(fdc, block.saturating_mul(self.block_size())) {
                blocks.add(index, block);
            }
        }
    }

    /// Which block of `.fdc.sf` lies at `start` of the volume, by the first record in it that says.
    fn index(&self, fdc: &Resource, start: u64) -> Option<u64> {
        let header = &self.space.header;
        let (bytes, _) = read_vec(&*self.space.lv, start, narrow(self.block_size()));
        let step = narrow(header.descriptor_size().min(header.cluster_header_size()));
        let phase = narrow(frame::phase(header));
        let record = |within: usize| {
            let bytes = bytes.get(within..)?;
            let at = start.checked_add(wide(within))?;
            let lock = RawLock::parse(bytes, at).ok().filter(|lock| lock.at == at)?;
            let place = frame::place(header, fdc, &lock, bytes.get(narrow(header.md)..)?)?;
            let own = place.checked_sub(wide(within)).filter(|own| own.is_multiple_of(self.block_size()))?;
            Some(own >> self.shift().min(63))
        };
        (phase..bytes.len()).step_by(step.max(512)).find_map(record)
    }
}

/// Which block of the file is which of the volume.
struct Blocks {
    count: u64,
    known: BTreeMap<u64, u64>,
    taken: BTreeSet<u64>,
}

impl Blocks {
    fn add(&mut self, index: u64, block: u64) {
        if index < self.count && !self.known.contains_key(&index) && self.taken.insert(block) {
            self.known.insert(index, block);
        }
    }

    /// Fills what lies between two blocks that are as far apart in the file as in the volume.
    fn close(&mut self) {
        let known: Vec<(u64, u64)> = self.known.iter().map(|(index, block)| (*index, *block)).collect();
        for (before, behind) in known.iter().zip(known.iter().skip(1)) {
            let ((index, block), (next, end)) = (*before, *behind);
            if end.checked_sub(block) != next.checked_sub(index) {
                continue;
            }
            for step in 1..next.saturating_sub(index) {
                self.add(index.saturating_add(step), block.saturating_add(step));
            }
        }
    }
}
