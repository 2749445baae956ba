//! What formatting writes: file system header, heartbeats, system files and resource headers.

use super::address::{self, Addresses};
use super::descriptor::{Descriptor, FileType, HEARTBEATS, Shape, ZLA_FILE_BLOCK};
use super::directory::{Directory, Entry};
use super::resource::{GROUPS_AT, Pool, Resource, put_lock, put16, put32, put64};
use super::volume::{Identity, Volume};
use super::{
    FORMAT_TIME, HEARTBEAT_GENERATION, HOST_ADDRESS, HOST_MAC, HOST_UUID, Node, ROOT, Version, Vmfs, VmfsSpec,
};
use crate::Device;
use std::collections::BTreeMap;

pub(super) const FS_HEADER: u64 = 0x20_0000;
const UNMAP_RECORDS: u64 = 1024;
const JOURNAL_BLOCK: u64 = 2 << 20;

/// (descriptor number, name) of the root and the system files.
pub(crate) fn names(shape: Shape) -> &'static [(u32, &'static str)] {
    const ALL: [(u32, &str); 10] = [
        (0, "root"),
        (1, ".fbb.sf"),
        (2, ".fdc.sf"),
        (3, ".pbc.sf"),
        (4, ".sbc.sf"),
        (5, ".vh.sf"),
        (6, ".pb2.sf"),
        (7, ".sdd.sf"),
        (8, ".jbc.sf"),
        (9, ".unmap.sf"),
    ];
    match (shape.six, shape.three) {
        (true, _) => &ALL,
        (_, false) => &ALL[..8],
        (_, true) => &ALL[..6],
    }
}

/// UUIDs begin with their time and end with the address of the host that made them.
pub(crate) fn uuid(seed: u32, part: u8) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid[..4].copy_from_slice(&FORMAT_TIME.to_le_bytes());
    let mut state = u64::from(seed) << 8 | u64::from(part);
    state = state.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5851_F42D_4C95_7F2D;
    uuid[4..10].copy_from_slice(&(state ^ state >> 31).to_le_bytes()[..6]);
    uuid[10..].copy_from_slice(&HOST_MAC);
    uuid
}

/// Blocks of each pool for a volume of `bytes`: ESXi's numbers for 2 GiB, or as many as a smaller volume has room for.
fn pools(spec: &VmfsSpec, shape: Shape, bytes: u64) -> BTreeMap<Pool, Resource> {
    let Shape { six, three, md } = shape;
    let scale = |full: u64, size: u64, share: u64, unit: u64| {
        let room = (bytes / share / size).next_multiple_of(unit);
        if bytes >= 2 << 30 { full } else { full.min(room).max(unit) }
    };
    let blocks = bytes / spec.file_block_size;
    let sub_block_size = if spec.dense_sub_blocks { 8 << 10 } else { 32 << 10 };
    let pool = |pool, geometry, total| (pool, Resource::new(pool, shape, geometry, total));
    if six {
        let clusters = blocks.div_ceil(address::SFB_PER_LFB);
        return BTreeMap::from([
            pool(Pool::LargeFileBlock, (16, 8, 2 * md), clusters),
            pool(Pool::FileBlock, (address::SFB_PER_LFB, 8, 0), blocks),
            pool(
                Pool::Descriptor,
                (256, 8, 2 * md),
                spec.descriptors.unwrap_or_else(|| scale(16384 * 4096 / md, 2 * md, 16, 256)),
            ),
            pool(Pool::SubBlock, (256, 8, 64 << 10), spec.sub_blocks.unwrap_or_else(|| scale(16384, 64 << 10, 4, 256))),
            pool(Pool::PointerBlock, (0, 8, 64 << 10), 0),
            pool(Pool::PointerBlock2, (32, 8, 64 << 10), scale(256, 64 << 10, 64, 32)),
            pool(
                Pool::Journal,
                (8, 4, JOURNAL_BLOCK),
                spec.journal_blocks.unwrap_or_else(|| if spec.local { 8 } else { scale(128, JOURNAL_BLOCK, 16, 8) }),
            ),
        ]);
    }
    if three {
        // Observed on a volume of 1 GiB: 256 descriptors, 1024 sub-blocks, 2 pointer blocks; all can be more.
        return BTreeMap::from([
            pool(Pool::FileBlock, (200, 32, 0), blocks),
            pool(Pool::Descriptor, (32, 32, 2048), spec.descriptors.unwrap_or(1024)),
            pool(Pool::SubBlock, (16, 32, 64 << 10), spec.sub_blocks.unwrap_or(1024)),
            pool(Pool::PointerBlock, (16, 32, 4096), spec.pointer_blocks.unwrap_or(1024)),
        ]);
    }
    // Observed: `.pbc.sf`, and `.sbc.sf` of 32 KiB sub-blocks, fill the 256 pointers of their descriptors.
    let direct = 256 * spec.file_block_size;
    let in_sub_blocks = if spec.dense_sub_blocks { 64 } else { 16 };
    let sub_blocks = Resource::new(Pool::SubBlock, shape, (in_sub_blocks, 64, sub_block_size), 0);
    let most_sub_blocks = if spec.dense_sub_blocks { 8192 } else { sub_blocks.fitting(direct) };
    let pointer_blocks = Resource::new(Pool::PointerBlock, shape, (16, 64, 4096), 0);
    let most_pointer_blocks = pointer_blocks.fitting(direct.min(256 << 20));
    let with = |mut resource: Resource, total| {
        resource.total = total;
        (resource.pool, resource)
    };
    BTreeMap::from([
        pool(Pool::FileBlock, (200, 64, 0), blocks),
        pool(Pool::Descriptor, (200, 64, 2048), spec.descriptors.unwrap_or_else(|| scale(20352, 2048, 32, 200))),
        with(sub_blocks, spec.sub_blocks.unwrap_or_else(|| scale(most_sub_blocks, sub_block_size, 32, 64))),
        with(pointer_blocks, spec.pointer_blocks.unwrap_or_else(|| scale(most_pointer_blocks, 4096, 16, 1024))),
        pool(Pool::PointerBlock2, (16, 64, 4096), scale(256, 4096, 64, 64)),
    ])
}

/// Makes an empty datastore on devices that may hold something.
pub(crate) fn format(spec: VmfsSpec, devices: Vec<Device>) -> Vmfs {
    let six = spec.version == Version::Six;
    assert!(
        spec.file_block_size == 1 << 20 || !six && [1 << 19, 2 << 20, 4 << 20, 8 << 20].contains(&spec.file_block_size),
        "a file block of {} bytes is not of this version",
        spec.file_block_size
    );
    assert!(spec.label.len() < 128, "a label takes at most 127 bytes");
    let md = if six { spec.metadata_alignment } else { 512 };
    assert!(!six || [4096, 8192, 16_384, 32_768, 65_536].contains(&md), "metadata is not aligned to {md} bytes");
    let three = spec.version == Version::Three;
    let shape = Shape { six, three, md };
    let identity = Identity {
        six,
        three,
        local: spec.local && six,
        uuid: uuid(spec.seed, 1),
        snapshot: 1,
        md,
        sector_size: spec.sector_size,
    };
    let volume = Volume::new(identity, devices);
    let pools = pools(&spec, shape, volume.len());
    let mut vmfs = Vmfs {
        shape,
        addresses: Addresses { six, dense: spec.dense_sub_blocks && !three },
        sub_block_size: pools[&Pool::SubBlock].size,
        volume,
        pools,
        system: BTreeMap::new(),
        nodes: BTreeMap::new(),
        clock: FORMAT_TIME + 3600,
        generation: 0,
        journal: None,
        deleted: Vec::new(),
        locks: BTreeMap::new(),
        spec,
    };
    vmfs.take_system_blocks();
    vmfs.make_system_files();
    vmfs.write_fs_header(identity);
    vmfs.write_heartbeats();
    if six {
        vmfs.write_unmap();
    }
    if vmfs.spec.crashed {
        vmfs.open_journal();
    }
    vmfs
}

impl Vmfs {
    fn system_len(&self, number: u32) -> u64 {
        match number {
            1 if self.six() => self.pool(Pool::LargeFileBlock).file_len(),
            1 => self.pool(Pool::FileBlock).file_len(),
            // Observed on VMFS3: whole blocks.
            2 if self.shape.three => self.pool(Pool::Descriptor).file_len().next_multiple_of(self.spec.file_block_size),
            2 => self.pool(Pool::Descriptor).file_len(),
            3 => self.pool(Pool::PointerBlock).file_len(),
            4 => self.pool(Pool::SubBlock).file_len(),
            5 => HEARTBEATS + self.shape.heartbeats().0 * self.shape.heartbeats().1,
            6 => self.pool(Pool::PointerBlock2).file_len(),
            8 => self.pool(Pool::Journal).file_len(),
            9 => GROUPS_AT + UNMAP_RECORDS * self.shape.md,
            // The directories take one block.
            _ => 1,
        }
    }

    /// Observed order: volume header, first block (above 16 KiB of alignment it must be several) of `.fdc.sf`, root, `.fbb.sf`, the rest of `.fdc.sf`, the others.
    fn take_system_blocks(&mut self) {
        let size = self.spec.file_block_size;
        let order: &[(u32, bool)] = &[
            (5, true),
            (2, false),
            (0, true),
            (1, true),
            (2, true),
            (3, true),
            (4, true),
            (6, true),
            (7, true),
            (8, true),
            (9, true),
        ];
        let known = names(self.shape);
        for &(number, whole) in order.iter().filter(|(n, _)| known.iter().any(|(k, _)| k == n)) {
            // The system files' own descriptors must be where nothing but the header leads to them.
            let bytes = if whole { self.system_len(number) } else { self.pool(Pool::Descriptor).body_at(10) };
            let want = bytes.div_ceil(size);
            let owner = address::descriptor(0, u64::from(number));
            while (self.system.entry(number).or_default().len() as u64) < want {
                let block = self.pool_mut(Pool::FileBlock).take(owner, 0);
                self.system.entry(number).or_default().push(block);
            }
        }
        // Nothing but system descriptors is in cluster 0; files begin a few clusters on where there are any.
        let fdc = self.pool_mut(Pool::Descriptor);
        let first = if fdc.clusters() > 8 { 4 * fdc.per_cluster } else { 16 };
        fdc.search_from(first);
    }

    fn make_system_files(&mut self) {
        for &(number, name) in names(self.shape) {
            let address = address::descriptor(0, u64::from(number));
            let directory = matches!(number, 0 | 7);
            self.pool_mut(Pool::Descriptor).claim(u64::from(number), 0, 0);
            let kind = if number == 0 { FileType::Directory } else { FileType::System };
            let mut fd = Descriptor {
                address,
                generation: 1,
                links: if directory { 2 } else { 1 },
                kind,
                flags: 0,
                len: self.system_len(number),
                block_size: self.spec.file_block_size,
                block_count: 0,
                time: FORMAT_TIME,
                mode: match number {
                    0 => 0o1755,
                    7 => 0o40700,
                    _ => 0o400,
                },
                zla: ZLA_FILE_BLOCK,
                tbz_blocks: 0,
                pointer_blocks: 0,
                large_blocks: 0,
                parent: 0,
                last_cluster: 0,
                pointers: BTreeMap::new(),
                resident: Vec::new(),
            };
            let blocks = self.system[&number].clone();
            let pointers: BTreeMap<u64, u64> =
                (0u64..).zip(blocks.iter().map(|&b| self.addresses.file_block(b, false))).collect();
            fd.block_count = blocks.len() as u64;
            let data = self.data_blocks(&pointers);
            let pointer_blocks = self.index_system(&mut fd, &pointers);
            let own = Entry { kind, address, generation: 1, name: b".".into() };
            let up = Entry { kind: FileType::Directory, address: ROOT, generation: 1, name: b"..".into() };
            let node = Node {
                fd,
                directory: directory.then(|| Directory::new(own, up)),
                content: None,
                blocks: data,
                pointer_blocks,
            };
            self.nodes.insert(address, node);
            if number > 0 {
                let entry = Entry { kind: FileType::System, address, generation: 1, name: name.into() };
                let root = self.nodes.get_mut(&ROOT).expect("the root is made first");
                root.directory.as_mut().expect("the root is a directory").insert(entry);
                root.fd.links += u32::from(directory);
            }
        }
    }

    fn write_fs_header(&mut self, identity: Identity) {
        let Shape { six, three, .. } = self.shape;
        let mut h = vec![0; 512];
        let (major, minor) = match (six, self.spec.local) {
            (true, _) => (24, 82),
            _ if three => (4, 31),
            (false, false) => (14, 81),
            (false, true) => (14, 60),
        };
        put32(&mut h, 0x000, if self.spec.local { 0x2FAB_F15F } else { 0x2FAB_F15E });
        put32(&mut h, 0x004, major);
        h[0x008] = minor;
        h[0x009..0x019].copy_from_slice(&uuid(self.spec.seed, 2));
        let dense = if self.addresses.dense || six { 4 } else { 0 };
        let kind = if six { 0x4000 | if self.spec.local { 0x2000 } else { 0 } } else { 0 };
        put32(&mut h, 0x019, 2 | dense | kind);
        h[0x01D..0x01D + self.spec.label.len()].copy_from_slice(self.spec.label.as_bytes());
        put32(&mut h, 0x09D, self.spec.sector_size);
        put64(&mut h, 0x0A1, self.spec.file_block_size);
        put32(&mut h, 0x0A9, FORMAT_TIME);
        put32(&mut h, 0x0AD, identity.snapshot);
        h[0x0B1..0x0C1].copy_from_slice(&identity.uuid);
        put32(&mut h, 0x0C1, identity.snapshot);
        put32(&mut h, 0x0D1, GROUPS_AT as u32);
        put32(&mut h, 0x0D5, self.pool(Pool::Descriptor).clusters_per_group as u32);
        put32(&mut h, 0x0D9, self.sub_block_size as u32);
        if three {
            self.volume.write(FS_HEADER, &h);
            return;
        }
        put32(&mut h, 0x0DD, if six { 64 } else { 8 });
        for (at, number) in [(0x0E1, 6), (0x105, 7), (0x17F, 9)] {
            if number == 9 && !six {
                continue;
            }
            let fd = address::descriptor(0, number);
            put64(&mut h, at, self.descriptor_lv(fd));
            put32(&mut h, at + 8, fd);
        }
        h[0x0ED..0x0FD].copy_from_slice(&HOST_UUID);
        put64(&mut h, 0x0FD, 1);
        if six {
            h[0x112] = 1;
            put32(&mut h, 0x130, self.spec.sector_size);
            put32(&mut h, 0x134, self.shape.md as u32);
            put16(&mut h, 0x138, 9);
            put16(&mut h, 0x13E, 16);
            put32(&mut h, 0x140, 44);
            put32(&mut h, 0x144, 1 << 20);
            put32(&mut h, 0x148, JOURNAL_BLOCK as u32);
            put32(&mut h, 0x14C, 16_000);
            put32(&mut h, 0x150, 4_000);
            // Observed on VMFS6, not on VMFS-L; its meaning is not known.
            h[0x18B] = if self.spec.local { 0 } else { 0x80 };
        }
        self.volume.write(FS_HEADER, &h);
    }

    /// All slots are free; one keeps what the host that unmounted the volume left.
    fn write_heartbeats(&mut self) {
        let (count, size) = self.shape.heartbeats();
        for n in 0..count {
            let lv = HEARTBEATS + n * size;
            let mut slot = vec![0; 512];
            put32(&mut slot, 0, 0xABCD_EF01);
            put64(&mut slot, 4, lv);
            if lv == self.shape.heartbeat_at() {
                put64(&mut slot, 0x0C, HEARTBEAT_GENERATION);
                put64(&mut slot, 0x14, 243_204_982_856);
                let (major, minor) = match (self.shape.six, self.shape.three) {
                    (true, _) => (24, 82),
                    (_, false) => (14, 81),
                    (_, true) => (4, 31),
                };
                put32(&mut slot, 0x30, major);
                slot[0x34] = minor;
                if self.shape.three {
                    self.volume.write(lv, &slot);
                    continue;
                }
                slot[0x35] = if self.spec.local { 1 } else { 3 };
                slot[0x36..0x36 + HOST_ADDRESS.len()].copy_from_slice(HOST_ADDRESS.as_bytes());
            }
            self.volume.write(lv, &slot);
        }
    }

    fn write_unmap(&mut self) {
        let mut h = vec![0; 0x34];
        put32(&mut h, 0x08, GROUPS_AT as u32);
        put32(&mut h, 0x0C, self.shape.md as u32);
        put32(&mut h, 0x14, UNMAP_RECORDS as u32);
        put32(&mut h, 0x20, 0x7266_6D64);
        put32(&mut h, 0x24, 1);
        put16(&mut h, 0x2E, 1);
        put32(&mut h, 0x30, 1);
        self.write_system(9, 0, &h);
        for n in 0..UNMAP_RECORDS {
            let at = GROUPS_AT + n * self.shape.md;
            let mut record = vec![0; 512];
            put_lock(&mut record, 0x10C0_0009, self.system_lv(9, at), 1);
            self.write_system(9, at, &record);
        }
    }

    /// Where the header of the small file blocks lies in `.fbb.sf`: one unit in, or where the groups leave room.
    fn child_header_at(&self) -> u64 {
        self.shape.md.min(GROUPS_AT / 2)
    }

    /// Whether a pool's clusters are made of another's blocks.
    fn is_child(&self, pool: Pool) -> bool {
        self.six() && pool == Pool::FileBlock
    }

    /// Where the header of a pool lies in its resource file.
    pub(super) fn resource_header_at(&self, pool: Pool) -> u64 {
        if self.is_child(pool) { self.child_header_at() } else { 0 }
    }

    /// Where the header of a cluster lies in its resource file.
    pub(super) fn cluster_header_at(&self, pool: Pool, cluster: u64) -> u64 {
        if self.is_child(pool) {
            return self.pool(Pool::LargeFileBlock).body_at(cluster);
        }
        self.pool(pool).header_at(cluster)
    }

    /// The clusters whose headers are on disk.
    pub(super) fn clusters_written(&self, resource: &Resource) -> Vec<u64> {
        let all = self.spec.all_cluster_headers;
        (0..resource.clusters()).filter(|&c| all || c < 8 || resource.is_cluster_used(c)).collect()
    }

    /// Headers of all resource files and of their clusters.
    pub(super) fn write_resources(&mut self) {
        let six = self.six();
        for (pool, number) in [
            (Pool::FileBlock, 1),
            (Pool::Descriptor, 2),
            (Pool::PointerBlock, 3),
            (Pool::SubBlock, 4),
            (Pool::PointerBlock2, 6),
            (Pool::LargeFileBlock, 1),
            (Pool::Journal, 8),
        ] {
            let Some(resource) = self.pools.get(&pool).cloned() else {
                continue;
            };
            let mut header = resource.file_header();
            if six && pool == Pool::LargeFileBlock {
                put32(&mut header, 0x34, self.child_header_at() as u32);
            }
            let parent = self.pools.get(&Pool::LargeFileBlock).cloned().filter(|_| pool == Pool::FileBlock);
            if let Some(parent) = &parent {
                put32(&mut header, 0x38, parent.per_cluster as u32);
                put32(&mut header, 0x3C, parent.clusters_per_group as u32);
                put32(&mut header, 0x40, parent.group_size() as u32);
                put32(&mut header, 0x54, resource.clusters() as u32);
            }
            self.write_system(number, self.resource_header_at(pool), &header);
            for cluster in self.clusters_written(&resource) {
                let at = self.cluster_header_at(pool, cluster);
                let lv = self.system_lv(number, at);
                let record = resource.cluster_header(cluster, lv);
                self.write_system(number, at, &record);
            }
        }
    }
}
