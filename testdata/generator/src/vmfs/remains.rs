//! What is left of a dead file: which of its bytes are still there, and who has the others.

use super::{Deleted, PointerBlock, Vmfs};
use std::ops::Range;

const SECTOR: usize = 512;

/// What became of bytes of a dead file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// They are there, and nobody else owns the block.
    Kept,
    /// They read as zeros now.
    Zeroed,
    /// Another file owns them, whatever they are, or they were written over; its path, or a system file's name.
    Overwritten(String),
}

/// What is left of a dead file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains {
    /// Whether its descriptor still says who it was.
    pub descriptor: bool,
    /// Whether its directory entry still is where it was.
    pub name: bool,
    /// Its pointer blocks.
    pub pointer_blocks: Vec<(PointerBlock, Fate)>,
    /// Its data, by ranges of the file that had blocks; neighbours of one fate are one.
    pub data: Vec<(Range<u64>, Fate)>,
}

impl Vmfs {
    /// What is left of a dead file on the datastore as it is now.
    pub fn remains(&mut self, dead: &Deleted) -> Remains {
        self.sync();
        let at = &dead.located;
        let md = if at.fd_len == 2048 { 512 } else { at.fd_len / 2 };
        let reused = self.nodes.keys().any(|&fd| self.descriptor_lv(fd).abs_diff(at.fd_lv) < at.fd_len);
        let record = self.volume.read(at.fd_lv, (md + 4) as usize);
        let descriptor = record[..4] == 0x10C0_0001u32.to_le_bytes()
            && record[4..12] == at.fd_lv.to_le_bytes()
            && record[md as usize..] == at.fd.to_le_bytes()
            && (!reused || self.nodes.contains_key(&at.fd) && dead.how == super::Deletion::NameOnly);
        let name = dead.path.rsplit('/').next().unwrap_or_default().as_bytes();
        let name = at.entry_lv.is_some_and(|lv| {
            // The name's place in an entry is 12 on VMFS5 and 24 on VMFS6.
            let skip = if at.fd_len == 2048 { 12 } else { 24 };
            self.volume.read(lv, 4) != [0; 4]
                && self.volume.read(lv + 4, 4) == at.fd.to_le_bytes()
                && self.volume.read(lv + skip, name.len()) == name
        });
        let owned = self.owned(dead);
        let tables = at.pointer_blocks.iter();
        let pointer_blocks = tables.map(|table| (*table, self.table_fate(&owned, dead, table))).collect();
        Remains { descriptor, name, pointer_blocks, data: self.data_fates(&owned, dead) }
    }

    /// What live files own, but for this one: bytes of the volume in order, and the path.
    fn owned(&self, dead: &Deleted) -> Vec<(Range<u64>, String)> {
        let paths = self.paths();
        let mut owned = Vec::new();
        for (&fd, node) in self.nodes.iter().filter(|(fd, node)| !is_pool(**fd) && !is_same(dead, **fd, node)) {
            let blocks = node.blocks.iter().map(|b| (b.lv, b.len));
            let tables = node.pointer_blocks.iter().map(|p| (p.lv, p.len));
            for (start, len) in blocks.chain(tables) {
                owned.push((start..start + len, paths.get(&fd).cloned().unwrap_or_default()));
            }
        }
        owned.sort_by_key(|(range, _)| range.start);
        owned
    }

    fn table_fate(&self, owned: &[(Range<u64>, String)], dead: &Deleted, table: &PointerBlock) -> Fate {
        if let Some((_, path)) = owner(owned, &(table.lv..table.lv + table.len)) {
            return Fate::Overwritten(path.clone());
        }
        let bytes = self.volume.read(table.lv, table.len as usize);
        if bytes.iter().all(|&b| b == 0) {
            return Fate::Zeroed;
        }
        if bytes == dead.table(table) { Fate::Kept } else { Fate::Overwritten(self.system_at(table.lv)) }
    }

    /// Name of the system file that a byte of the volume belongs to.
    fn system_at(&self, lv: u64) -> String {
        let block = lv / self.spec.file_block_size;
        let number = self.system.iter().find(|(_, blocks)| blocks.contains(&block)).map(|(&number, _)| number);
        let names = super::format::names(self.shape);
        names.iter().find(|(n, _)| Some(*n) == number).map_or_else(String::new, |(_, name)| (*name).into())
    }

    fn data_fates(&self, owned: &[(Range<u64>, String)], dead: &Deleted) -> Vec<(Range<u64>, Fate)> {
        let mut fates: Vec<(Range<u64>, Fate)> = Vec::new();
        let mut push = |range: Range<u64>, fate: Fate| match fates.last_mut() {
            Some((last, what)) if last.end == range.start && *what == fate => last.end = range.end,
            _ => fates.push((range, fate)),
        };
        let Some(content) = &dead.content else {
            return fates;
        };
        for block in &dead.located.blocks {
            let end = (block.offset + block.len).min(content.len());
            let mut at = block.offset;
            while at < end {
                let lv = block.lv + at - block.offset;
                let mut step = (end - at).min(1 << 20);
                if let Some((range, path)) = owner(owned, &(lv..lv + step)) {
                    if range.start <= lv {
                        step = step.min(range.end - lv);
                        push(at..at + step, Fate::Overwritten(path.clone()));
                        at += step;
                        continue;
                    }
                    step = range.start - lv;
                }
                let (have, right) = (self.volume.read(lv, step as usize), content.read(at, step as usize));
                let sectors = have.chunks(SECTOR).zip(right.chunks(SECTOR));
                for (have, right) in sectors {
                    let fate = if block.to_be_zeroed || have == right {
                        Fate::Kept
                    } else if have.iter().all(|&b| b == 0) {
                        Fate::Zeroed
                    } else {
                        Fate::Overwritten(self.system_at(lv))
                    };
                    push(at..at + have.len() as u64, fate);
                    at += have.len() as u64;
                }
            }
        }
        fates
    }
}

/// Whether a file is a resource file, of which only what is used belongs to somebody.
fn is_pool(fd: u32) -> bool {
    fd & 0x3F_FFC0 == 0 && matches!(fd >> 22, 1..=6 | 8 | 9)
}

/// The first that owns any of these bytes.
fn owner<'a>(owned: &'a [(Range<u64>, String)], lv: &Range<u64>) -> Option<&'a (Range<u64>, String)> {
    let first = owned.partition_point(|(range, _)| range.end <= lv.start);
    owned.get(first).filter(|(range, _)| range.start < lv.end)
}

/// Whether a live file is what lost nothing but its name.
fn is_same(dead: &Deleted, fd: u32, node: &super::Node) -> bool {
    dead.how == super::Deletion::NameOnly && dead.located.fd == fd && node.blocks == dead.located.blocks
}

impl Deleted {
    /// What a pointer block of the file held.
    #[must_use]
    pub fn table(&self, table: &PointerBlock) -> Vec<u8> {
        let mut bytes = vec![0; table.len as usize];
        // VMFS5 has 4 KiB of 32-bit pointers, VMFS6 64 KiB of 64-bit ones.
        let width = if table.len == 4096 { 4 } else { 8 };
        let per_block = table.len / width;
        let size = self.block_size();
        let mut put = |offset: u64, covers: u64, address: u64| {
            let at = ((offset - table.offset) / covers * width) as usize;
            bytes[at..at + width as usize].copy_from_slice(&address.to_le_bytes()[..width as usize]);
        };
        let span = table.offset..table.offset + per_block.pow(table.level + 1) * size;
        if table.level == 0 {
            for block in self.located.blocks.iter().filter(|b| span.contains(&b.offset)) {
                (0..block.len / size).for_each(|n| put(block.offset + n * size, size, block.address));
            }
        } else {
            let lower = self.located.pointer_blocks.iter().filter(|p| p.level + 1 == table.level);
            for below in lower.filter(|p| span.contains(&p.offset)) {
                put(below.offset, size * per_block, below.address);
            }
        }
        bytes
    }

    fn block_size(&self) -> u64 {
        self.located.blocks.iter().map(|b| b.len).min().unwrap_or(1 << 20)
    }
}
