//! Taking blocks, filling them, and pointing to them.

use super::address::{BlockKind, SFB_PER_LFB};
use super::content::{Addressing, Allocation, Content, Layout, Placement};
use super::descriptor::{
    Descriptor, ZLA_DOUBLE, ZLA_FILE_BLOCK, ZLA_POINTER, ZLA_POINTER2, ZLA_RESIDENT, ZLA_SUB_BLOCK,
};
use super::resource::Pool;
use super::{Block, PointerBlock, Vmfs};
use std::collections::{BTreeMap, BTreeSet};

/// What stale blocks hold: text that must never show up in a file.
const STALE: &[u8] = b"STALE BYTES OF A BLOCK THAT IS TO BE ZEROED: NOT FILE CONTENT\n";

impl Vmfs {
    /// Gives a descriptor its data: sets its addressing fields, takes and writes blocks.
    pub(super) fn store(
        &mut self,
        fd: &mut Descriptor,
        content: &Content,
        layout: &Layout,
    ) -> (Vec<Block>, Vec<PointerBlock>) {
        fd.len = content.len();
        let addressing = self.choose(content.len(), layout);
        if addressing == Addressing::Resident {
            assert!(
                content.len() <= self.shape.resident_max() && layout.to_be_zeroed.is_empty(),
                "{} bytes are not resident data",
                content.len()
            );
            fd.zla = ZLA_RESIDENT;
            fd.block_size = self.sub_block_size;
            fd.resident = content.read(0, content.len() as usize);
            return (Vec::new(), Vec::new());
        }
        let in_sub_blocks = addressing == Addressing::SubBlock;
        fd.block_size = if in_sub_blocks { self.sub_block_size } else { self.spec.file_block_size };
        if self.six() && !in_sub_blocks {
            fd.flags = 9;
        }
        let (wanted, zeroed) = wanted_blocks(content, layout, fd.block_size);
        assert!(!in_sub_blocks || zeroed.is_empty(), "a sub-block has no to-be-zeroed flag");
        let pointers = self.take_blocks(fd, &wanted, &zeroed, layout, in_sub_blocks);
        let blocks = self.data_blocks_of(&pointers, fd.block_size);
        for block in &blocks {
            if block.to_be_zeroed {
                self.volume.write(block.lv, STALE);
                self.volume.write(block.lv + block.len / 2, STALE);
            }
        }
        for (start, piece) in content.pieces() {
            self.write_pieces(&blocks, *start, piece);
        }
        fd.block_count = blocks.iter().map(|b| b.len / fd.block_size).sum();
        fd.tbz_blocks = blocks.iter().filter(|b| b.to_be_zeroed).map(|b| b.len / fd.block_size).sum();
        let taken = self.index(fd, addressing, &pointers);
        (blocks, taken)
    }

    /// Data blocks that a pointer array names, for file blocks.
    pub(super) fn data_blocks(&self, pointers: &BTreeMap<u64, u64>) -> Vec<Block> {
        self.data_blocks_of(pointers, self.spec.file_block_size)
    }

    /// Data blocks that a pointer array names; the slots of one large block become one.
    pub(super) fn data_blocks_of(&self, pointers: &BTreeMap<u64, u64>, size: u64) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        for (&slot, &address) in pointers {
            let (kind, lv) = self.resolve(address);
            let large = kind == BlockKind::LargeFileBlock;
            if large && blocks.last().is_some_and(|b| b.address == address) {
                continue;
            }
            blocks.push(Block {
                offset: slot * size,
                len: if large { SFB_PER_LFB * size } else { size },
                lv,
                address,
                kind,
                to_be_zeroed: self.is_to_be_zeroed(address),
            });
        }
        blocks
    }

    fn is_to_be_zeroed(&self, address: u64) -> bool {
        match address & 7 {
            1 | 7 if self.six() => address >> 7 & 0xFF != 0,
            1 => address >> 5 & 1 != 0,
            _ => false,
        }
    }

    /// Kind and volume position of what an address names.
    fn resolve(&self, address: u64) -> (BlockKind, u64) {
        let six = self.six();
        let size = self.spec.file_block_size;
        let sub = |kind, pool: Pool, number, cluster, resource| {
            let pool = self.pool(pool);
            (kind, self.system_lv(number, pool.body_at(cluster * pool.per_cluster + resource)))
        };
        let (cluster, resource) =
            if six { (address >> 6 & 0xF_FFFF_FFFF, address >> 56) } else { (address >> 6 & 0x3F_FFFF, address >> 28) };
        match address & 7 {
            1 if six => {
                let block = (address >> 15 & 0x7FFF_FFFF) * SFB_PER_LFB + (address >> 51);
                (BlockKind::FileBlock, block * size)
            }
            1 => (BlockKind::FileBlock, (address >> 6) * size),
            2 if !six && self.addresses.dense => {
                sub(BlockKind::SubBlock, Pool::SubBlock, 4, cluster, resource | (address >> 3 & 3) << 4)
            }
            2 => sub(BlockKind::SubBlock, Pool::SubBlock, 4, cluster, resource),
            3 => sub(BlockKind::PointerBlock, Pool::PointerBlock, 3, cluster, resource),
            5 => sub(BlockKind::PointerBlock2, Pool::PointerBlock2, 6, cluster, resource),
            7 => (BlockKind::LargeFileBlock, (address >> 15 & 0x7FFF_FFFF) * SFB_PER_LFB * size),
            other => panic!("{address:#x} has type {other}, which names no data"),
        }
    }

    fn choose(&self, len: u64, layout: &Layout) -> Addressing {
        if layout.addressing != Addressing::Auto {
            return layout.addressing;
        }
        let blocks = len.div_ceil(self.spec.file_block_size);
        let per_block = self.pointer_block_len() / self.shape.pointer_size();
        let resident = !self.shape.three && len <= self.shape.resident_max();
        let plain = layout.to_be_zeroed.is_empty() && layout.allocation != Allocation::LazyThick;
        if plain && resident {
            Addressing::Resident
        } else if plain && len <= self.sub_block_size {
            Addressing::SubBlock
        } else if blocks <= self.shape.slots() {
            Addressing::Direct
        } else if blocks <= self.shape.slots() * per_block {
            Addressing::Single
        } else {
            assert!(!self.shape.three, "VMFS3 has no file of {len} bytes");
            Addressing::Double
        }
    }

    pub(super) fn pointer_block_len(&self) -> u64 {
        if self.six() { 64 << 10 } else { 4096 }
    }

    /// Takes the wanted blocks and gives their addresses by slot.
    fn take_blocks(
        &mut self,
        fd: &mut Descriptor,
        wanted: &BTreeSet<u64>,
        zeroed: &BTreeSet<u64>,
        layout: &Layout,
        in_sub_blocks: bool,
    ) -> BTreeMap<u64, u64> {
        let addresses = self.addresses;
        let owner = fd.address;
        // Observed: thin disks carry flag 1 in the owner table of a small file block cluster.
        let flag = u16::from(layout.allocation == Allocation::Thin && fd.len > 1 << 30);
        let mut state = match layout.placement {
            Placement::Contiguous | Placement::From(_) | Placement::Gapped(_) => 0,
            Placement::Shuffled(seed) => seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
        };
        let pool = if in_sub_blocks { Pool::SubBlock } else { Pool::FileBlock };
        let mut resume = None;
        if let Placement::From(lv) = layout.placement {
            assert!(!in_sub_blocks, "sub-blocks cannot be placed");
            let first = lv / self.spec.file_block_size;
            resume = Some(self.pool_mut(pool).search_from(first));
        }
        let mut pointers = BTreeMap::new();
        for &slot in wanted {
            if pointers.contains_key(&slot) {
                continue;
            }
            let group = slot / SFB_PER_LFB;
            let inside = (group + 1) * SFB_PER_LFB * self.spec.file_block_size <= fd.len;
            if layout.large_blocks && inside {
                let large = self.take_large(owner);
                let slots = group * SFB_PER_LFB..(group + 1) * SFB_PER_LFB;
                let tbz = slots.clone().all(|s| zeroed.contains(&s));
                for s in slots {
                    pointers.insert(s, addresses.large_file_block(large, tbz));
                }
                fd.large_blocks += 1;
                continue;
            }
            let resource = self.pool_mut(pool);
            let n =
                if state == 0 { resource.take(owner, flag) } else { resource.take_shuffled(owner, flag, &mut state) };
            if let Placement::Gapped(gap) = layout.placement {
                resource.search_from(n + 1 + gap);
            }
            let (cluster, in_cluster) = (n / resource.per_cluster, n % resource.per_cluster);
            let address = if in_sub_blocks {
                addresses.in_cluster(BlockKind::SubBlock, cluster, in_cluster)
            } else {
                fd.last_cluster = cluster as u32;
                addresses.file_block(n, zeroed.contains(&slot))
            };
            pointers.insert(slot, address);
        }
        if let Some(next) = resume {
            self.pool_mut(pool).search_from(next);
        }
        pointers
    }

    /// Takes the last large block of which no small one is in use. Its small blocks count as used by the same owner.
    fn take_large(&mut self, owner: u32) -> u64 {
        let small = self.pool(Pool::FileBlock);
        let whole = small.total / SFB_PER_LFB;
        let free = (0..whole)
            .rev()
            .find(|&l| (0..SFB_PER_LFB).all(|s| !small.is_used(l * SFB_PER_LFB + s)))
            .unwrap_or_else(|| panic!("no large file block is free"));
        for s in 0..SFB_PER_LFB {
            self.pool_mut(Pool::FileBlock).claim(free * SFB_PER_LFB + s, owner, 0);
        }
        self.pool_mut(Pool::LargeFileBlock).claim(free, owner, 0);
        free
    }

    fn write_pieces(&mut self, blocks: &[Block], start: u64, piece: &[u8]) {
        let end = start + piece.len() as u64;
        let first = blocks.partition_point(|b| b.offset + b.len <= start);
        for block in blocks[first..].iter().take_while(|b| b.offset < end) {
            assert!(!block.to_be_zeroed, "content lies in the to-be-zeroed block at {:#x}", block.offset);
            let (from, to) = (start.max(block.offset), end.min(block.offset + block.len));
            self.volume.write(block.lv + from - block.offset, &piece[(from - start) as usize..(to - start) as usize]);
        }
    }

    /// Points a descriptor to its blocks, through pointer blocks where asked.
    fn index(
        &mut self,
        fd: &mut Descriptor,
        addressing: Addressing,
        pointers: &BTreeMap<u64, u64>,
    ) -> Vec<PointerBlock> {
        let second = addressing == Addressing::SinglePb2;
        fd.zla = match addressing {
            Addressing::SubBlock => ZLA_SUB_BLOCK,
            Addressing::Direct => ZLA_FILE_BLOCK,
            Addressing::Single => ZLA_POINTER,
            Addressing::SinglePb2 => ZLA_POINTER2,
            Addressing::Double => ZLA_DOUBLE,
            Addressing::Auto | Addressing::Resident => panic!("{addressing:?} has no pointers"),
        };
        let levels = match addressing {
            Addressing::Double => 2,
            Addressing::Single | Addressing::SinglePb2 => 1,
            _ => 0,
        };
        let mut made = Vec::new();
        let mut names = pointers.clone();
        let mut covers = fd.block_size;
        for level in 0..levels {
            (names, covers) = self.write_pointer_level(fd.address, second, level, &names, covers, &mut made);
        }
        fd.pointer_blocks = made.len() as u32;
        for (slot, address) in names {
            assert!(slot < self.shape.slots(), "slot {slot} is past the pointer array of {addressing:?}");
            fd.pointers.insert(slot as u32, address);
        }
        made
    }

    /// Writes the pointer blocks that hold `names`; gives their own addresses, and the bytes that each covers.
    fn write_pointer_level(
        &mut self,
        owner: u32,
        second: bool,
        level: u32,
        names: &BTreeMap<u64, u64>,
        covers: u64,
        made: &mut Vec<PointerBlock>,
    ) -> (BTreeMap<u64, u64>, u64) {
        let width = self.shape.pointer_size();
        let len = self.pointer_block_len();
        let per_block = len / width;
        // Observed: VMFS6 keeps pointer blocks of files in sub-blocks.
        let (kind, pool) = match (second, self.six()) {
            (true, _) => (BlockKind::PointerBlock2, Pool::PointerBlock2),
            (false, true) => (BlockKind::SubBlock, Pool::SubBlock),
            (false, false) => (BlockKind::PointerBlock, Pool::PointerBlock),
        };
        let mut upper: BTreeMap<u64, u64> = BTreeMap::new();
        for (&slot, &address) in names {
            let block = slot / per_block;
            let own = *upper.entry(block).or_insert_with(|| {
                let resource = self.pools.get_mut(&pool).unwrap_or_else(|| panic!("no {pool:?} pool"));
                let n = resource.take(owner, 0);
                self.addresses.in_cluster(kind, n / resource.per_cluster, n % resource.per_cluster)
            });
            let lv = self.resolve(own).1;
            if made.last().is_none_or(|p| p.address != own) {
                let offset = block * per_block * covers;
                made.push(PointerBlock { level, offset, lv, len, address: own, kind });
            }
            self.volume.write(lv + slot % per_block * width, &address.to_le_bytes()[..width as usize]);
        }
        (upper, covers * per_block)
    }

    /// Points a system file to its blocks. Observed: long ones use `.pbc.sf` on VMFS5 and `.pb2.sf` on VMFS6.
    pub(super) fn index_system(&mut self, fd: &mut Descriptor, pointers: &BTreeMap<u64, u64>) -> Vec<PointerBlock> {
        let addressing = match (pointers.len() as u64 <= self.shape.slots(), self.six()) {
            (true, _) => Addressing::Direct,
            (false, true) => Addressing::SinglePb2,
            (false, false) => Addressing::Single,
        };
        self.index(fd, addressing, pointers)
    }

    /// Marks a file's blocks free and leaves their bytes alone.
    pub(super) fn release(&mut self, blocks: &[Block], pointer_blocks: &[PointerBlock]) {
        let named = blocks.iter().map(|b| b.address).chain(pointer_blocks.iter().map(|p| p.address));
        for address in named.collect::<Vec<_>>() {
            let (kind, lv) = self.resolve(address);
            let pool = match kind {
                BlockKind::FileBlock => {
                    let n = lv / self.spec.file_block_size;
                    self.pool_mut(Pool::FileBlock).release(n);
                    continue;
                }
                BlockKind::LargeFileBlock => {
                    let first = lv / self.spec.file_block_size;
                    (0..SFB_PER_LFB).for_each(|s| self.pool_mut(Pool::FileBlock).release(first + s));
                    self.pool_mut(Pool::LargeFileBlock).release(first / SFB_PER_LFB);
                    continue;
                }
                BlockKind::SubBlock => Pool::SubBlock,
                BlockKind::PointerBlock => Pool::PointerBlock,
                _ => Pool::PointerBlock2,
            };
            let n = self.number_in_pool(pool, address);
            self.pool_mut(pool).release(n);
        }
    }

    fn number_in_pool(&self, pool: Pool, address: u64) -> u64 {
        let per_cluster = self.pool(pool).per_cluster;
        if self.six() {
            return (address >> 6 & 0xF_FFFF_FFFF) * per_cluster + (address >> 56);
        }
        let high = if pool == Pool::SubBlock && self.addresses.dense { (address >> 3 & 3) << 4 } else { 0 };
        (address >> 6 & 0x3F_FFFF) * per_cluster + (address >> 28 | high)
    }
}

/// The blocks to take, and those of them to flag as to be zeroed.
fn wanted_blocks(content: &Content, layout: &Layout, size: u64) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let span = |from: u64, to: u64| from / size..to.div_ceil(size);
    let filled: BTreeSet<u64> = content
        .pieces()
        .iter()
        .filter(|(_, piece)| !piece.is_empty())
        .flat_map(|(at, piece)| span(*at, at + piece.len() as u64))
        .collect();
    let mut zeroed: BTreeSet<u64> = layout.to_be_zeroed.iter().flat_map(|r| span(r.start, r.end)).collect();
    let mut wanted: BTreeSet<u64> = filled.union(&zeroed).copied().collect();
    if layout.allocation != Allocation::Thin {
        wanted.extend(span(0, content.len()));
    }
    if layout.allocation == Allocation::LazyThick {
        zeroed.extend(wanted.difference(&filled));
    }
    (wanted, zeroed)
}
