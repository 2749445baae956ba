//! File descriptors: 2 KiB on VMFS5, 8 KiB on VMFS6.

use super::resource::{put_lock, put32, put64};
use std::collections::BTreeMap;

/// File types as descriptors and directory entries store them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// A directory.
    Directory = 2,
    /// A regular file.
    File = 3,
    /// A symbolic link.
    Symlink = 4,
    /// A system file.
    System = 5,
    /// A raw device mapping.
    Rdm = 6,
}

/// Position of the first heartbeat slot.
pub(crate) const HEARTBEATS: u64 = 0x30_0000;
pub(crate) const ZLA_RDM: u32 = 0;
pub(crate) const ZLA_FILE_BLOCK: u32 = 1;
pub(crate) const ZLA_SUB_BLOCK: u32 = 2;
pub(crate) const ZLA_POINTER: u32 = 3;
pub(crate) const ZLA_POINTER2: u32 = 5;
pub(crate) const ZLA_DOUBLE: u32 = 4304;
pub(crate) const ZLA_RESIDENT: u32 = 4305;

/// Everything a descriptor records.
#[derive(Clone, Debug)]
pub(crate) struct Descriptor {
    pub(crate) address: u32,
    pub(crate) generation: u32,
    pub(crate) links: u32,
    pub(crate) kind: FileType,
    pub(crate) flags: u32,
    pub(crate) len: u64,
    pub(crate) block_size: u64,
    pub(crate) block_count: u64,
    pub(crate) time: u32,
    pub(crate) mode: u32,
    pub(crate) zla: u32,
    pub(crate) tbz_blocks: u64,
    pub(crate) pointer_blocks: u32,
    pub(crate) large_blocks: u32,
    pub(crate) parent: u32,
    pub(crate) last_cluster: u32,
    /// The pointer array by slot; missing slots are holes.
    pub(crate) pointers: BTreeMap<u32, u64>,
    /// Resident data, symbolic link text or a disk's identity.
    pub(crate) resident: Vec<u8>,
}

/// What sizes and offsets of metadata follow from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// The layout of VMFS6.
    pub(crate) six: bool,
    /// VMFS3, which is VMFS5 with fewer fields.
    pub(crate) three: bool,
    /// Bytes of one unit of metadata: a lock takes one, and what it guards starts the next.
    pub(crate) md: u64,
}

impl Shape {
    #[cfg(test)]
    pub(crate) const FIVE: Self = Self { six: false, three: false, md: 512 };

    pub(crate) fn size(self) -> u64 {
        if self.six { 2 * self.md } else { 2048 }
    }

    pub(crate) fn resident_at(self) -> u64 {
        self.md + 512
    }

    pub(crate) fn resident_max(self) -> u64 {
        if self.six { self.md - 512 } else { 1024 }
    }

    pub(crate) fn pointers_at(self) -> u64 {
        if self.six { 2 * self.md - self.slots() * 8 } else { 1024 }
    }

    /// Slots in a descriptor's own pointer array. That they fill half of a unit above 4 KiB is known from sources.
    pub(crate) fn slots(self) -> u64 {
        match (self.six, self.md) {
            (false, _) => 256,
            (true, 4096) => 320,
            (true, md) => md / 16,
        }
    }

    /// Slots for the heartbeats of hosts, and bytes of each.
    pub(crate) fn heartbeats(self) -> (u64, u64) {
        (if self.six { 1024 } else { 2048 }, self.md)
    }

    /// Position of the one heartbeat slot that was ever used.
    pub(crate) fn heartbeat_at(self) -> u64 {
        HEARTBEATS + self.md * if self.six { 64 } else { 528 }
    }

    /// Bytes of one pointer.
    pub(crate) fn pointer_size(self) -> u64 {
        if self.six { 8 } else { 4 }
    }

    /// The record as it stands at volume position `lv`.
    pub(crate) fn encode(self, fd: &Descriptor, lv: u64) -> Vec<u8> {
        let mut record = vec![0; self.size() as usize];
        put_lock(&mut record, 0x10C0_0001, lv, 3);
        if !matches!(fd.kind, FileType::System) {
            put64(&mut record, 0x0C, self.heartbeat_at());
            put64(&mut record, 0x14, super::HEARTBEAT_GENERATION);
        }
        let meta = &mut record[self.md as usize..];
        put32(meta, 0x00, fd.address);
        put32(meta, 0x04, fd.generation);
        put32(meta, 0x08, fd.links);
        put32(meta, 0x0C, fd.kind as u32);
        put32(meta, 0x10, fd.flags);
        put64(meta, 0x14, fd.len);
        put64(meta, 0x1C, fd.block_size);
        put32(meta, 0x24, fd.block_count as u32);
        if !self.three {
            put32(meta, 0x50, fd.block_count as u32);
        }
        for at in [0x2C, 0x30, 0x34] {
            put32(meta, at, fd.time);
        }
        // Observed on VMFS3: files carry their type here, folders do not.
        let kind = if self.three && fd.kind == FileType::File { 0o100_000 } else { 0 };
        put32(meta, 0x40, fd.mode | kind);
        put32(meta, 0x44, fd.zla);
        put32(meta, 0x48, fd.tbz_blocks as u32);
        put32(meta, 0x54, (fd.tbz_blocks >> 32) as u32);
        if self.six {
            put32(meta, 0x64, 0x6664_6D64);
            put32(meta, 0x70, fd.parent);
            put32(meta, 0x74, fd.last_cluster);
            put32(meta, 0x8C, fd.large_blocks);
        }
        if !self.three {
            put32(meta, 0x5C, fd.pointer_blocks);
            put32(meta, 0x68, fd.address);
            put32(meta, 0x6C, 20);
            meta[0x89] = fd.block_size.trailing_zeros() as u8;
        }
        let resident_at = self.resident_at() as usize;
        record[resident_at..resident_at + fd.resident.len()].copy_from_slice(&fd.resident);
        for (&slot, &address) in &fd.pointers {
            let at = (self.pointers_at() + u64::from(slot) * self.pointer_size()) as usize;
            if self.six {
                put64(&mut record, at, address);
            } else {
                put32(&mut record, at, address as u32);
            }
        }
        record
    }
}
