//! What of a datastore lies where, and which bytes of which files hang on it.
//!
//! A test damages a part, asks what hung on it, and has its answer without a reader's help.

use super::descriptor::{ZLA_DOUBLE, ZLA_POINTER, ZLA_POINTER2, ZLA_RDM, ZLA_RESIDENT};
use super::directory::{ENTRY5, ENTRY6};
use super::resource::Pool;
use super::{Node, ROOT, Vmfs, address, format};
use std::collections::BTreeMap;
use std::ops::Range;

/// Kinds of metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// The header of an LVM device, 512 bytes.
    LvmHeader,
    /// An LVM device's entry of its volume table, 512 bytes.
    LvmVolume,
    /// All of the LVM metadata of a device, from its header to its data.
    Lvm,
    /// The header of the volume, 512 bytes.
    FsHeader,
    /// All slots of heartbeats.
    Heartbeats,
    /// The journal of the host that did not unmount.
    Journal,
    /// A descriptor: its lock, its metadata, its pointers or resident data.
    Descriptor,
    /// A pointer block; level 0 names data, level 1 names pointer blocks.
    PointerBlock(u32),
    /// The header of a resource file, or of its child.
    ResourceHeader,
    /// The header of a cluster of this pool, with its number: lock, counts, bitmap, owners.
    Cluster(PoolKind, u64),
    /// The header of a VMFS6 directory, with the entries of itself and its parent.
    DirectoryHeader,
    /// The hash table of a VMFS6 directory.
    HashTable,
    /// The allocation map of a VMFS6 directory.
    AllocationMap,
    /// Entries of a directory: a block on VMFS6, all on VMFS5.
    Entries,
    /// Links of a VMFS6 directory.
    Links,
}

/// What a cluster is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PoolKind {
    /// File blocks, small ones on VMFS6: `.fbb.sf`.
    FileBlock,
    /// Sub-blocks: `.sbc.sf`.
    SubBlock,
    /// Pointer blocks: `.pbc.sf`.
    PointerBlock,
    /// Descriptors: `.fdc.sf`.
    Descriptor,
    /// Pointer blocks: `.pb2.sf`.
    PointerBlock2,
    /// Journal blocks: `.jbc.sf`.
    Journal,
    /// Large file blocks: `.fbb.sf`.
    LargeFileBlock,
}

/// A piece of metadata and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub what: What,
    /// Path or name of the file that it belongs to; empty for the root and for what belongs to none.
    pub path: String,
    /// Number of the device.
    pub device: usize,
    /// Bytes of the device.
    pub range: Range<u64>,
    /// Byte of the volume where it begins; `None` outside it.
    pub lv: Option<u64>,
}

/// How bytes of a file hang on something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// They lie there.
    Data,
    /// They lie there, in the descriptor.
    Resident,
    /// The descriptor's own pointers to them lie there.
    Pointers,
    /// Pointers to them lie there, in a pointer block.
    PointerBlock,
    /// The metadata of the descriptor lies there.
    Descriptor,
    /// The entry that names the file lies there; its bytes are not touched.
    Name,
}

/// Bytes of a file that hang on a range of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hangs {
    /// The file.
    pub path: String,
    /// How.
    pub by: By,
    /// Bytes of the file.
    pub range: Range<u64>,
}

fn meet(a: &Range<u64>, b: &Range<u64>) -> Option<Range<u64>> {
    let both = a.start.max(b.start)..a.end.min(b.end);
    (both.start < both.end).then_some(both)
}

impl Vmfs {
    /// All metadata, and where it lies.
    pub fn parts(&mut self) -> Vec<Part> {
        self.sync();
        let mut parts = Vec::new();
        for (device, (header, volume, data)) in self.volume.metadata(self.shape.md).into_iter().enumerate() {
            for (what, range) in [
                (What::LvmHeader, header..header + 512),
                (What::LvmVolume, volume..volume + 512),
                (What::Lvm, header..data),
            ] {
                parts.push(Part { what, path: String::new(), device, range, lv: None });
            }
        }
        for (what, path, lv) in self.volume_parts() {
            // No record crosses devices.
            let (device, at) = self.volume.locate(lv.start);
            parts.push(Part { what, path, device, range: at..at + (lv.end - lv.start), lv: Some(lv.start) });
        }
        parts
    }

    /// Metadata inside the volume as (kind, path, bytes of the volume), as it was last written.
    pub(super) fn volume_parts(&self) -> Vec<(What, String, Range<u64>)> {
        let (slots, slot) = self.shape.heartbeats();
        let mut parts = vec![
            (What::FsHeader, String::new(), format::FS_HEADER..format::FS_HEADER + 512),
            (What::Heartbeats, String::new(), 0x30_0000..0x30_0000 + slots * slot),
        ];
        if let Some(journal) = &self.journal {
            parts.push((What::Journal, String::new(), journal.range()));
        }
        let paths = self.paths();
        for (&address, node) in &self.nodes {
            let path = paths.get(&address).cloned().unwrap_or_else(|| format!("{address:#010x}"));
            let lv = self.descriptor_lv(address);
            parts.push((What::Descriptor, path.clone(), lv..lv + self.shape.size()));
            for table in &node.pointer_blocks {
                parts.push((What::PointerBlock(table.level), path.clone(), table.lv..table.lv + table.len));
            }
            for (what, at) in node.directory.iter().flat_map(|d| d.layout(self.shape, address == ROOT)) {
                for block in &node.blocks {
                    if let Some(both) = meet(&at, &(block.offset..block.offset + block.len)) {
                        let lv = block.lv + both.start - block.offset;
                        parts.push((what, path.clone(), lv..lv + both.end - both.start));
                    }
                }
            }
        }
        for (pool, number, kind) in [
            (Pool::FileBlock, 1, PoolKind::FileBlock),
            (Pool::LargeFileBlock, 1, PoolKind::LargeFileBlock),
            (Pool::Descriptor, 2, PoolKind::Descriptor),
            (Pool::PointerBlock, 3, PoolKind::PointerBlock),
            (Pool::SubBlock, 4, PoolKind::SubBlock),
            (Pool::PointerBlock2, 6, PoolKind::PointerBlock2),
            (Pool::Journal, 8, PoolKind::Journal),
        ] {
            let Some(resource) = self.pools.get(&pool) else {
                continue;
            };
            let name = paths[&address::descriptor(0, u64::from(number))].clone();
            let lv = self.system_lv(number, self.resource_header_at(pool));
            parts.push((What::ResourceHeader, name.clone(), lv..lv + 512));
            for cluster in self.clusters_written(resource) {
                let lv = self.system_lv(number, self.cluster_header_at(pool, cluster));
                parts.push((What::Cluster(kind, cluster), name.clone(), lv..lv + 2 * self.shape.md));
            }
        }
        parts
    }

    /// Path by descriptor, system files included; the root's is empty. What lost its name keeps its last path.
    pub(super) fn paths(&self) -> BTreeMap<u32, String> {
        let mut paths: BTreeMap<u32, String> =
            self.deleted.iter().map(|dead| (dead.located.fd, dead.path.clone())).collect();
        let mut todo = vec![(ROOT, String::new())];
        while let Some((address, path)) = todo.pop() {
            for entry in self.nodes[&address].directory.iter().flat_map(super::Directory::entries) {
                let name = String::from_utf8_lossy(&entry.name);
                todo.push((entry.address, if path.is_empty() { name.into() } else { format!("{path}/{name}") }));
            }
            paths.insert(address, path);
        }
        paths
    }

    /// The bytes of files that a reader cannot have without these bytes of a device and without second evidence,
    /// and the files that it cannot name. Headers of LVM, volume, resource files and clusters, locks, hash tables,
    /// links and maps count for nothing: all that they say can be had without them. Blocks to be zeroed hold nothing.
    pub fn depends(&mut self, device: usize, range: Range<u64>) -> Vec<Hangs> {
        self.sync();
        let mut lost = self.volume.logical(device, range);
        // What leads into a resource file goes first; each leads only into those after it.
        for number in [6, 3, 4, 2] {
            let address = address::descriptor(0, number);
            let Some(node) = self.nodes.get(&address) else {
                continue;
            };
            for (gone, by) in self.hanging(address, node, &lost) {
                if by == By::Data {
                    continue;
                }
                for block in &node.blocks {
                    if let Some(both) = meet(&gone, &(block.offset..block.offset + block.len)) {
                        let lv = block.lv + both.start - block.offset;
                        lost.push(lv..lv + both.end - both.start);
                    }
                }
            }
        }
        let paths = self.paths();
        let mut found = Vec::new();
        for (&address, node) in &self.nodes {
            let hanging = self.hanging(address, node, &lost);
            for entry in node.directory.iter().flat_map(super::Directory::entries) {
                let at = node.directory.as_ref().map_or(0, |d| d.entry_at(&entry.name, self.shape));
                let own = at..at + if self.six() { ENTRY6 } else { ENTRY5 };
                if hanging.iter().any(|(gone, _)| meet(gone, &own).is_some()) {
                    let range = 0..self.nodes[&entry.address].fd.len;
                    found.push(Hangs { path: paths[&entry.address].clone(), by: By::Name, range });
                }
            }
            if let Some(path) = paths.get(&address).filter(|_| node.content.is_some()) {
                found.extend(hanging.into_iter().map(|(range, by)| Hangs { path: path.clone(), by, range }));
            }
        }
        found.sort_by(|a, b| (&a.path, a.by, a.range.start).cmp(&(&b.path, b.by, b.range.start)));
        found.dedup_by(|next, last| {
            let joins = next.path == last.path && next.by == last.by && next.range.start <= last.range.end;
            if joins {
                last.range.end = last.range.end.max(next.range.end);
            }
            joins
        });
        found
    }

    /// Ranges of one file that hang on lost bytes of the volume.
    fn hanging(&self, address: u32, node: &Node, lost: &[Range<u64>]) -> Vec<(Range<u64>, By)> {
        let lv = self.descriptor_lv(address);
        let fd = &node.fd;
        let file = 0..fd.len;
        let width = self.shape.pointer_size();
        let per_block = self.pointer_block_len() / width;
        let mut found = Vec::new();
        let mut pointers = |at: u64, slots: u64, offset: u64, covers: u64, by: By, gone: &Range<u64>| {
            if let Some(both) = meet(gone, &(at..at + slots * width)) {
                let (first, end) = ((both.start - at) / width, (both.end - at).div_ceil(width));
                found.extend(meet(&(offset + first * covers..offset + end * covers), &file).map(|r| (r, by)));
            }
        };
        for gone in lost {
            let levels = match fd.zla {
                ZLA_DOUBLE => 2,
                ZLA_POINTER | ZLA_POINTER2 => 1,
                _ => 0,
            };
            if !matches!(fd.zla, ZLA_RDM | ZLA_RESIDENT) {
                let covers = fd.block_size * per_block.pow(levels);
                pointers(lv + self.shape.pointers_at(), self.shape.slots(), 0, covers, By::Pointers, gone);
            }
            for table in &node.pointer_blocks {
                let covers = fd.block_size * per_block.pow(table.level);
                pointers(table.lv, per_block, table.offset, covers, By::PointerBlock, gone);
            }
        }
        for gone in lost {
            let meta = lv + self.shape.md;
            if !file.is_empty() && meet(gone, &(meta..meta + 512)).is_some() {
                found.push((file.clone(), By::Descriptor));
            }
            let resident = lv + self.shape.resident_at();
            if fd.zla == ZLA_RESIDENT
                && let Some(both) = meet(gone, &(resident..resident + fd.len))
            {
                found.push((both.start - resident..both.end - resident, By::Resident));
            }
            for block in node.blocks.iter().filter(|block| !block.to_be_zeroed) {
                if let Some(both) = meet(gone, &(block.lv..block.lv + block.len)) {
                    let start = block.offset + both.start - block.lv;
                    found.extend(meet(&(start..start + both.end - both.start), &file).map(|r| (r, By::Data)));
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmfs::{Addressing, Content, Layout, Left, Version, VmfsSpec};
    use crate::vmfs::{Fate, Remains};

    fn store(version: Version) -> Vmfs {
        let mut store = Vmfs::new(VmfsSpec::new(version, 400 << 20));
        store.mkdir("dir");
        store.file("dir/small", Content::bytes(*b"small"), &Layout::default());
        let deep = Layout::default().addressing(Addressing::Double).shuffled(3);
        store.file("dir/deep", Content::patterned(5_000_000, 1), &deep);
        store
    }

    #[test]
    fn every_part_lies_where_its_record_says() {
        for version in [Version::Five, Version::Six] {
            let mut store = store(version);
            let parts = store.parts();
            let device = store.finish().remove(0);
            let records = parts.iter().filter(|p| matches!(p.what, What::Descriptor | What::Cluster(..)));
            for part in records.clone() {
                assert_eq!(
                    device.read(part.range.start + 4, 8),
                    part.lv.expect("in the volume").to_le_bytes(),
                    "{part:?}"
                );
            }
            assert!(records.count() > 15);
            assert!(parts.iter().any(|p| p.path == "dir" && p.what == What::Entries));
            assert!(parts.iter().any(|p| p.path == "dir/deep" && p.what == What::PointerBlock(1)));
        }
    }

    #[test]
    fn what_hangs_on_a_range_is_what_lies_behind_it() {
        for version in [Version::Five, Version::Six] {
            let mut store = store(version);
            let at = store.locate("dir/deep");
            let on = |store: &mut Vmfs, lv: u64, len: u64| {
                let (device, at) = store.device_position(lv);
                store.depends(device, at..at + len)
            };
            let hangs = |by, range| Hangs { path: "dir/deep".into(), by, range };
            let block = at.blocks[2];
            assert_eq!(on(&mut store, block.lv + 512, 512), [hangs(By::Data, block.offset + 512..block.offset + 1024)]);
            let leaf = at.pointer_blocks[0];
            let width = if version == Version::Six { 8 } else { 4 };
            assert_eq!(on(&mut store, leaf.lv + width, width), [hangs(By::PointerBlock, 1 << 20..2 << 20)]);
            let all = [hangs(By::PointerBlock, 0..5_000_000)];
            assert_eq!(on(&mut store, at.pointer_blocks[1].lv, 4096), all);
            assert_eq!(on(&mut store, at.entry_lv.expect("not the root"), 4), [hangs(By::Name, 0..5_000_000)]);
            let whole = on(&mut store, at.fd_lv, at.fd_len);
            assert_eq!(whole, [hangs(By::Pointers, 0..5_000_000), hangs(By::Descriptor, 0..5_000_000)]);
            // All of the device.
            let len = store.volume_len();
            let names: Vec<By> = on(&mut store, 0, len).into_iter().map(|h| h.by).collect();
            assert!(names.contains(&By::Resident), "{names:?}");
        }
    }

    #[test]
    fn what_remains_is_told_to_the_block() {
        for version in [Version::Five, Version::Six] {
            let mut store = store(version);
            let at = store.delete_leaving("dir/deep", Left::Kept, Left::Kept);
            let dead = store.deleted()[0].clone();
            let all = |fate| vec![(0..5_000_000, fate)];
            let remains = store.remains(&dead);
            // VMFS5 moves the last entry into the gap: this was the last, and stays behind the end.
            assert_eq!((remains.descriptor, remains.name), (true, version == Version::Five));
            assert_eq!(remains.data, all(Fate::Kept));
            assert!(remains.pointer_blocks.iter().all(|(_, fate)| *fate == Fate::Kept));
            // One block goes to a file that fills little of it.
            let block = at.blocks[1];
            let one = Layout::default().addressing(Addressing::Direct).from(block.lv);
            store.file("taker", Content::patterned(700, 9), &one);
            let Remains { data, descriptor, .. } = store.remains(&dead);
            let taken = (block.offset..block.offset + block.len, Fate::Overwritten("taker".into()));
            assert_eq!(data, [(0..block.offset, Fate::Kept), taken, (2 << 20..5_000_000, Fate::Kept)]);
            assert!(descriptor);

            let mut store = self::store(version);
            store.delete_leaving("dir/deep", Left::Zeroed, Left::Zeroed);
            let dead = store.deleted()[0].clone();
            let remains = store.remains(&dead);
            assert_eq!(remains.data, all(Fate::Zeroed));
            assert!(remains.pointer_blocks.iter().all(|(_, fate)| *fate == Fate::Zeroed));
        }
    }

    #[test]
    fn owners_agree_with_bitmaps_after_deletion() {
        let mut store = store(Version::Six);
        store.file("doomed", Content::patterned(9_000_000, 7), &Layout::default().addressing(Addressing::Single));
        store.file("small", Content::patterned(60_000, 8), &Layout::default());
        let owner = store.locate("doomed").fd;
        store.delete_as_esxi("doomed");
        store.delete_leaving("dir/deep", Left::Zeroed, Left::Kept);
        let parts = store.parts();
        let device = store.finish().remove(0);
        let word = |meta: &[u8], at: usize| u32::from_le_bytes([meta[at], meta[at + 1], meta[at + 2], meta[at + 3]]);
        let half = |meta: &[u8], at: usize| u32::from(u16::from_le_bytes([meta[at], meta[at + 1]]));
        let mut used = 0;
        for part in &parts {
            let What::Cluster(kind, cluster) = part.what else { continue };
            let meta = device.read(part.range.start + 4096, 4096);
            let (total, free) = (half(&meta, 0x20), half(&meta, 0x22));
            match kind {
                PoolKind::FileBlock => {
                    let count = half(&meta, 0x26) as usize;
                    let entries = (1..count).map(|n| (word(&meta, 0x940 + 8 * n), half(&meta, 0x944 + 8 * n)));
                    let entries: Vec<_> = entries.collect();
                    assert_eq!(entries.iter().map(|(_, blocks)| blocks).sum::<u32>(), total - free, "{part:?}");
                    assert!(entries.iter().all(|(fd, _)| *fd != owner));
                }
                PoolKind::SubBlock | PoolKind::PointerBlock2 | PoolKind::Descriptor => {
                    let table = if kind == PoolKind::PointerBlock2 { 0x2E0 } else { 0x8E0 };
                    // Observed: the system's own descriptors have no owner.
                    let system = if kind == PoolKind::Descriptor && cluster == 0 { 10 } else { 0 };
                    for r in system..total as usize {
                        let is_free = meta[0x80 + r / 8] >> (r % 8) & 1 == 1;
                        assert_eq!(word(&meta, table + 4 * r) == 0, is_free, "{part:?} {r}");
                        used += u32::from(!is_free);
                    }
                }
                _ => {}
            }
        }
        // Descriptors of the folder and two files, two sub-blocks of the folder's, one of a file's.
        assert_eq!(used, 6);
    }
}
