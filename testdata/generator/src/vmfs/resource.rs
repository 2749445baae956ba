//! Resource files (`.sf`): pools of blocks in clusters, each cluster with a header, a bitmap and, on VMFS6, owners.

use super::descriptor::Shape;
use std::collections::BTreeMap;

/// Position of the first cluster group in every resource file.
pub(crate) const GROUPS_AT: u64 = 0x1_0000;

/// Which pool it is, in the numbering of the cluster header magics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pool {
    FileBlock = 2,
    SubBlock = 3,
    PointerBlock = 4,
    Descriptor = 5,
    PointerBlock2 = 6,
    Journal = 7,
    LargeFileBlock = 8,
}

/// One resource: who owns which block of the pool, and the pool's geometry.
#[derive(Clone, Debug)]
pub(crate) struct Resource {
    pub(crate) pool: Pool,
    pub(crate) shape: Shape,
    pub(crate) per_cluster: u64,
    pub(crate) clusters_per_group: u64,
    /// Bytes of one block inside the resource file, 0 when the blocks are outside it.
    pub(crate) size: u64,
    pub(crate) total: u64,
    /// Owner by block number; 0 where none is recorded.
    used: BTreeMap<u64, Use>,
    next: u64,
}

#[derive(Clone, Copy, Debug)]
struct Use {
    owner: u32,
    flag: u16,
}

/// Owners that one SFB cluster can name.
const SFB_OWNERS: usize = 215;

impl Resource {
    pub(crate) fn new(pool: Pool, shape: Shape, geometry: (u64, u64, u64), total: u64) -> Self {
        let (per_cluster, clusters_per_group, size) = geometry;
        Self { pool, shape, per_cluster, clusters_per_group, size, total, used: BTreeMap::new(), next: 0 }
    }

    fn header_size(&self) -> u64 {
        2 * self.shape.md
    }

    pub(crate) fn clusters(&self) -> u64 {
        if self.per_cluster == 0 { 0 } else { self.total.div_ceil(self.per_cluster) }
    }

    fn groups(&self) -> u64 {
        if self.clusters_per_group == 0 { 0 } else { self.clusters().div_ceil(self.clusters_per_group) }
    }

    pub(crate) fn group_size(&self) -> u64 {
        self.clusters_per_group * (self.header_size() + self.per_cluster * self.size)
    }

    /// Length of the resource file: whole groups, the last cut behind its last block.
    pub(crate) fn file_len(&self) -> u64 {
        if self.total == 0 {
            return GROUPS_AT;
        }
        let groups = self.groups() - 1;
        let rest = self.total - groups * self.clusters_per_group * self.per_cluster;
        GROUPS_AT + groups * self.group_size() + self.clusters_per_group * self.header_size() + rest * self.size
    }

    /// The most blocks that a resource file of `len` bytes holds.
    pub(crate) fn fitting(&self, len: u64) -> u64 {
        let headers = self.clusters_per_group * self.header_size();
        let whole = (len - GROUPS_AT) / self.group_size();
        let rest = (len - GROUPS_AT) % self.group_size();
        whole * self.clusters_per_group * self.per_cluster + rest.saturating_sub(headers) / self.size
    }

    /// Position of block `n` inside the resource file.
    pub(crate) fn body_at(&self, n: u64) -> u64 {
        let (cluster, resource) = (n / self.per_cluster, n % self.per_cluster);
        let (group, k) = (cluster / self.clusters_per_group, cluster % self.clusters_per_group);
        GROUPS_AT
            + group * self.group_size()
            + self.clusters_per_group * self.header_size()
            + (k * self.per_cluster + resource) * self.size
    }

    /// Position of a cluster's header inside the resource file.
    pub(crate) fn header_at(&self, cluster: u64) -> u64 {
        let (group, k) = (cluster / self.clusters_per_group, cluster % self.clusters_per_group);
        GROUPS_AT + group * self.group_size() + k * self.header_size()
    }

    pub(crate) fn is_used(&self, n: u64) -> bool {
        self.used.contains_key(&n)
    }

    /// Whether any block of a cluster is in use.
    pub(crate) fn is_cluster_used(&self, cluster: u64) -> bool {
        self.in_cluster(cluster).next().is_some()
    }

    /// Whether `owner` may still be named in the cluster that holds block `n`.
    fn has_owner_slot(&self, n: u64, owner: u32) -> bool {
        if !(self.shape.six && self.pool == Pool::FileBlock) {
            return true;
        }
        let owners = self.owners(n / self.per_cluster);
        owners.len() < SFB_OWNERS || owners.contains_key(&owner)
    }

    /// Takes the next free block after the last one taken, so that freed blocks stay untouched as long as possible.
    pub(crate) fn take(&mut self, owner: u32, flag: u16) -> u64 {
        let mut n = self.next;
        for _ in 0..self.total {
            if n >= self.total {
                n = 0;
            }
            // The owner check is costly and only a cluster's first blocks can change its answer.
            if !self.is_used(n) && self.has_owner_slot(n, owner) {
                self.claim(n, owner, flag);
                self.next = n + 1;
                return n;
            }
            n += 1;
        }
        panic!("the {:?} pool of {} blocks is full", self.pool, self.total)
    }

    /// Takes `count` free blocks in a scattered order.
    pub(crate) fn take_shuffled(&mut self, owner: u32, flag: u16, state: &mut u64) -> u64 {
        for _ in 0..64 {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            let n = *state % self.total;
            if !self.is_used(n) && self.has_owner_slot(n, owner) {
                self.claim(n, owner, flag);
                return n;
            }
        }
        self.take(owner, flag)
    }

    /// Marks block `n` used.
    pub(crate) fn claim(&mut self, n: u64, owner: u32, flag: u16) {
        assert!(n < self.total, "block {n} is outside the {:?} pool of {}", self.pool, self.total);
        assert!(self.used.insert(n, Use { owner, flag }).is_none(), "{:?} {n} is taken twice", self.pool);
    }

    /// Moves the point from which free blocks are searched; gives where it was.
    pub(crate) fn search_from(&mut self, n: u64) -> u64 {
        std::mem::replace(&mut self.next, n)
    }

    /// Marks block `n` free.
    pub(crate) fn release(&mut self, n: u64) {
        assert!(self.used.remove(&n).is_some(), "{:?} {n} is freed twice", self.pool);
    }

    fn in_cluster(&self, cluster: u64) -> impl Iterator<Item = (u64, &Use)> {
        let first = cluster * self.per_cluster;
        self.used.range(first..first + self.per_cluster).map(move |(n, u)| (n - first, u))
    }

    fn owners(&self, cluster: u64) -> BTreeMap<u32, (u16, u16)> {
        let mut owners = BTreeMap::new();
        for (_, u) in self.in_cluster(cluster) {
            let entry: &mut (u16, u16) = owners.entry(u.owner).or_default();
            entry.0 += 1;
            entry.1 |= u.flag;
        }
        owners
    }

    /// The header at the start of the file. `child` gives (offset of the child's header, converted clusters).
    pub(crate) fn file_header(&self) -> Vec<u8> {
        let mut h = vec![0; 0x80];
        put32(&mut h, 0x00, self.per_cluster as u32);
        put32(&mut h, 0x04, self.clusters_per_group as u32);
        put32(&mut h, 0x08, GROUPS_AT as u32);
        put32(&mut h, 0x0C, self.size as u32);
        put32(&mut h, 0x10, self.group_size() as u32);
        put32(&mut h, 0x14, self.total as u32);
        put32(&mut h, 0x18, self.groups() as u32);
        put32(&mut h, 0x1C, (self.total >> 32) as u32);
        if self.shape.six {
            // Observed flags, affinity slots per cluster and per resource, and bits per resource.
            let (flags, slots, per_resource, bits) = match self.pool {
                Pool::LargeFileBlock => (0x35, 0x348, 0x34, 3),
                Pool::FileBlock => (0x2A, 0xD8, 1, 2),
                Pool::Journal => (0, self.per_cluster as u16, 1, 1),
                _ => (4, self.per_cluster as u16, 1, 1),
            };
            put32(&mut h, 0x20, 0x7266_6D64);
            put32(&mut h, 0x24, 1);
            put32(&mut h, 0x28, flags);
            put16(&mut h, 0x2C, slots);
            put16(&mut h, 0x2E, per_resource);
            put32(&mut h, 0x30, bits);
        }
        h
    }

    /// A cluster's header as it stands at volume position `lv`.
    pub(crate) fn cluster_header(&self, cluster: u64, lv: u64) -> Vec<u8> {
        let total = (self.total - cluster * self.per_cluster).min(self.per_cluster);
        let used = self.in_cluster(cluster).count() as u64;
        let first_free = (0..total).find(|&r| !self.is_used(cluster * self.per_cluster + r)).unwrap_or(0);
        let mut h = vec![0; self.header_size() as usize];
        put_lock(&mut h, 0x10C0_0000 | self.pool as u32, lv, 1 + used);
        let meta = self.header_size() as usize / 2;
        if !self.shape.six {
            put32(&mut h, meta, cluster as u32);
            put32(&mut h, meta + 4, total as u32);
            put32(&mut h, meta + 8, (total - used) as u32);
            put32(&mut h, meta + 12, first_free as u32);
            for r in (0..total).filter(|r| !self.is_used(cluster * self.per_cluster + r)) {
                h[meta + 0x10 + r as usize / 8] |= 1 << (r % 8);
            }
            return h;
        }
        put32(&mut h, meta + 0x10, 0x7263_6D64);
        put64(&mut h, meta + 0x18, cluster);
        put16(&mut h, meta + 0x20, total as u16);
        put16(&mut h, meta + 0x22, (total - used) as u16);
        put32(&mut h, meta + 0x30, 1);
        if used > 0 {
            put32(&mut h, meta + 0x58, used as u32);
            h[meta + 0x5C..meta + 0x62].copy_from_slice(&super::HOST_MAC);
            put32(&mut h, meta + 0x62, super::FORMAT_TIME);
        }
        match self.pool {
            Pool::FileBlock => self.put_sfb(&mut h[meta..], cluster, total),
            Pool::LargeFileBlock => {
                put16(&mut h, meta + 0x2A, 7);
                put16(&mut h, meta + 0x22, 0);
                for r in 0..total {
                    // 4 says: split into small blocks. 0 for a large block in use is not observed.
                    let value = if self.is_used(cluster * self.per_cluster + r) { 0u32 } else { 4 };
                    for bit in (0..3).filter(|b| value >> b & 1 == 1) {
                        let at = r as usize * 3 + bit;
                        h[meta + 0x80 + at / 8] |= 1 << (at % 8);
                    }
                    put64(&mut h, meta + 0xE0 + 8 * r as usize, 0xFF);
                }
            }
            _ => {
                put32(&mut h, meta + 0x7C, first_free as u32);
                for r in (0..total).filter(|r| !self.is_used(cluster * self.per_cluster + r)) {
                    h[meta + 0x80 + r as usize / 8] |= 1 << (r % 8);
                }
                let table = if self.per_cluster > 32 { 0x8E0 } else { 0x2E0 };
                for (r, u) in self.in_cluster(cluster) {
                    put32(&mut h, meta + table + 4 * r as usize, u.owner);
                }
            }
        }
        h
    }

    /// Bitmap halves, hints and the owner table of a small file block cluster.
    fn put_sfb(&self, meta: &mut [u8], cluster: u64, total: u64) {
        let first = cluster * self.per_cluster;
        for half in 0..2u64 {
            let base = 0x100 * half as usize;
            let mut hint = 0;
            for r in (half * 256..total.min(half * 256 + 256)).rev() {
                if !self.is_used(first + r) {
                    let bit = (r % 256) as usize * 2;
                    meta[base + 0x80 + bit / 8] |= 1 << (bit % 8);
                    hint = r % 256;
                }
            }
            // Observed: the hint of the first half is at +0x7C, that of the second at +0x100.
            put32(meta, if half == 0 { 0x7C } else { 0x100 }, hint as u32);
        }
        put16(meta, 0x2A, 0x100);
        let owners = self.owners(cluster);
        put16(meta, 0x26, if owners.is_empty() { 0 } else { owners.len() as u16 + 1 });
        for (n, (owner, (count, flag))) in owners.into_iter().enumerate() {
            let at = 0x948 + 8 * n;
            put32(meta, at, owner);
            put16(meta, at + 4, count);
            put16(meta, at + 6, flag);
        }
    }
}

/// The start of every lock record: magic, own position, and counters that the position makes unlike.
pub(crate) fn put_lock(record: &mut [u8], magic: u32, lv: u64, token: u64) {
    put32(record, 0, magic);
    put64(record, 4, lv);
    put64(record, 0x1C, token);
    put64(record, 0x38, 0x3_B000 + (lv >> 9) % 0x1000);
}

pub(crate) fn put16(to: &mut [u8], at: usize, value: u16) {
    to[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put32(to: &mut [u8], at: usize, value: u32) {
    to[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put64(to: &mut [u8], at: usize, value: u64) {
    to[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIX: Shape = Shape { six: true, three: false, md: 4096 };

    #[test]
    fn file_lengths_are_those_of_real_volumes() {
        let five = |pool, geometry, total| Resource::new(pool, Shape::FIVE, geometry, total).file_len();
        let six = |pool, geometry, total| Resource::new(pool, SIX, geometry, total).file_len();
        assert_eq!(five(Pool::Descriptor, (200, 64, 2048), 20352), 0x27F_0000);
        assert_eq!(five(Pool::SubBlock, (64, 64, 8192), 8192), 0x403_0000);
        assert_eq!(five(Pool::PointerBlock, (16, 64, 4096), 64512), 0x1000_0000);
        assert_eq!(five(Pool::PointerBlock2, (16, 64, 4096), 256), 0x12_0000);
        assert_eq!(five(Pool::FileBlock, (200, 64, 0), 2048), 0x2_0000);
        assert_eq!(six(Pool::Descriptor, (256, 8, 8192), 16384), 0x809_0000);
        assert_eq!(six(Pool::SubBlock, (256, 8, 65536), 16384), 0x4009_0000);
        assert_eq!(six(Pool::PointerBlock2, (32, 8, 65536), 256), 0x102_0000);
        assert_eq!(six(Pool::Journal, (8, 4, 2 << 20), 128), 0x1003_0000);
        assert_eq!(six(Pool::LargeFileBlock, (16, 8, 8192), 4), 0x2_8000);
        let fitting = |geometry, len| Resource::new(Pool::SubBlock, Shape::FIVE, geometry, 0).fitting(len);
        assert_eq!(fitting((16, 64, 4096), 128 << 20), 0x7DF0);
        assert_eq!(fitting((16, 64, 4096), 256 << 20), 64512);
        assert_eq!(fitting((16, 64, 32768), 128 << 20), 0xFF6);
    }

    #[test]
    fn counts_bitmap_and_owners_agree() {
        let mut sfb = Resource::new(Pool::FileBlock, SIX, (512, 8, 0), 1024);
        for n in [0, 1, 255, 256, 511] {
            sfb.claim(n, 0x0040_0004, 0);
        }
        sfb.claim(300, 0x0080_0004, 1);
        let h = sfb.cluster_header(0, 0x920_0000);
        let meta = &h[4096..];
        assert_eq!(u16::from_le_bytes([meta[0x22], meta[0x23]]), 506);
        let ones: u32 = meta[0x80..0xC0].iter().chain(&meta[0x180..0x1C0]).map(|b| b.count_ones()).sum();
        assert_eq!(ones, 506);
        assert_eq!(meta[0x26], 3);
        assert_eq!(meta[0x948..0x958], [4, 0, 0x40, 0, 5, 0, 0, 0, 4, 0, 0x80, 0, 1, 0, 1, 0]);
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn a_block_is_freed_once() {
        let mut pool = Resource::new(Pool::SubBlock, Shape::FIVE, (64, 64, 8192), 128);
        let n = pool.take(0, 0);
        pool.release(n);
        pool.release(n);
    }
}
