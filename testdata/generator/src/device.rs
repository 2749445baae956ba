//! A sparse block device in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of one stored block.
pub const BLOCK: u64 = 4096;
const BLOCK_LEN: usize = BLOCK as usize;

type Block = Box<[u8; BLOCK_LEN]>;

/// A device of fixed length of which only the blocks that hold something are stored.
///
/// Writing zeros over nothing stores nothing, so that a device stays as sparse as its content is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Device {
    len: u64,
    blocks: BTreeMap<u64, Block>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device {{ len: {}, blocks: {} }}", self.len, self.blocks.len())
    }
}

impl Device {
    /// An empty device of `len` bytes; all of it reads as zeros.
    #[must_use]
    pub fn new(len: u64) -> Self {
        Self { len, blocks: BTreeMap::new() }
    }

    /// A device that holds exactly `bytes`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut device = Self::new(bytes.len() as u64);
        device.write(0, bytes);
        device
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the device has no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Stores `bytes` at byte `at`; panics past the end.
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        self.check(at, bytes.len() as u64);
        let mut done = 0;
        while done < bytes.len() {
            let pos = at + done as u64;
            let (index, inside) = (pos / BLOCK, (pos % BLOCK) as usize);
            let len = (BLOCK_LEN - inside).min(bytes.len() - done);
            let part = &bytes[done..done + len];
            if self.blocks.contains_key(&index) || part.iter().any(|&b| b != 0) {
                let block = self.blocks.entry(index).or_insert_with(|| Box::new([0; BLOCK_LEN]));
                block[inside..inside + len].copy_from_slice(part);
            }
            done += len;
        }
    }

    /// The `len` bytes at byte `at`; panics past the end.
    #[must_use]
    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        self.check(at, len as u64);
        let mut out = vec![0; len];
        if len == 0 {
            return out;
        }
        let last = (at + len as u64 - 1) / BLOCK;
        for (&index, block) in self.blocks.range(at / BLOCK..=last) {
            let start = index * BLOCK;
            let from = at.max(start);
            let to = (at + len as u64).min(start + BLOCK);
            out[(from - at) as usize..(to - at) as usize]
                .copy_from_slice(&block[(from - start) as usize..(to - start) as usize]);
        }
        out
    }

    /// Makes the bytes of `range` zero and frees the blocks that it covers whole.
    pub fn zero(&mut self, range: Range<u64>) {
        self.check(range.start, range.end - range.start);
        let touched: Vec<u64> =
            self.blocks.range(range.start / BLOCK..range.end.div_ceil(BLOCK)).map(|(&i, _)| i).collect();
        for index in touched {
            let start = index * BLOCK;
            let from = range.start.max(start) - start;
            let to = range.end.min(start + BLOCK) - start;
            if from == 0 && to == BLOCK {
                self.blocks.remove(&index);
            } else if let Some(block) = self.blocks.get_mut(&index) {
                block[from as usize..to as usize].fill(0);
            }
        }
    }

    /// Stores a little-endian `u16`.
    pub fn put_u16(&mut self, at: u64, value: u16) {
        self.write(at, &value.to_le_bytes());
    }

    /// Stores a little-endian `u32`.
    pub fn put_u32(&mut self, at: u64, value: u32) {
        self.write(at, &value.to_le_bytes());
    }

    /// Stores a little-endian `u64`.
    pub fn put_u64(&mut self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    /// Shortens or lengthens the device; what is cut off is gone.
    pub fn truncate(&mut self, len: u64) {
        if len < self.len {
            self.zero(len..self.len.next_multiple_of(BLOCK).min(self.len));
            self.blocks.split_off(&len.div_ceil(BLOCK));
        }
        self.len = len;
    }

    /// Copies everything `other` stores to byte `at` of this device.
    pub fn embed(&mut self, at: u64, other: &Self) {
        self.check(at, other.len);
        for (pos, bytes) in other.blocks() {
            self.write(at + pos, bytes);
        }
    }

    /// A copy of `range` as a device of its own.
    #[must_use]
    pub fn cut(&self, range: Range<u64>) -> Self {
        self.check(range.start, range.end - range.start);
        let mut out = Self::new(range.end - range.start);
        for (&index, _) in self.blocks.range(range.start / BLOCK..range.end.div_ceil(BLOCK)) {
            let from = (index * BLOCK).max(range.start);
            let to = ((index + 1) * BLOCK).min(range.end);
            out.write(from - range.start, &self.read(from, (to - from) as usize));
        }
        out
    }

    /// The stored blocks in order as (byte position, bytes); the last may be short. Blocks of zeros are left out.
    pub fn blocks(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.blocks.iter().filter_map(|(&index, block)| {
            let at = index * BLOCK;
            let len = self.len.saturating_sub(at).min(BLOCK) as usize;
            let bytes = &block[..len];
            bytes.iter().any(|&b| b != 0).then_some((at, bytes))
        })
    }

    /// Reads a file whole; holes cost no memory.
    pub fn load(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut device = Self::new(file.metadata()?.len());
        let mut buf = vec![0; 1 << 20];
        let mut at = 0;
        while at < device.len {
            let len = (device.len - at).min(buf.len() as u64) as usize;
            file.read_exact_at(&mut buf[..len], at)?;
            device.write(at, &buf[..len]);
            at += len as u64;
        }
        Ok(device)
    }

    /// Writes the device as a sparse file, replacing what is there.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let file = File::create(path)?;
        file.set_len(self.len)?;
        for (at, bytes) in self.blocks() {
            file.write_all_at(bytes, at)?;
        }
        Ok(())
    }

    fn check(&self, at: u64, len: u64) {
        assert!(
            at.checked_add(len).is_some_and(|end| end <= self.len),
            "bytes {at:#x}..+{len:#x} lie past the end of a device of {:#x} bytes",
            self.len
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_written_across_blocks() {
        let mut device = Device::new(10_000);
        device.write(4090, b"0123456789");
        assert_eq!(device.read(4088, 14), b"\0\x000123456789\0\0");
        assert_eq!(device.blocks().count(), 2);
    }

    #[test]
    fn zeros_take_no_room() {
        let mut device = Device::new(1 << 50);
        device.write(1 << 40, &vec![0; 100_000]);
        assert_eq!(device.blocks().count(), 0);
        device.write(1 << 40, &[7; 12_288]);
        device.zero((1 << 40) + 10..(1 << 40) + 8192);
        assert_eq!(device.blocks().count(), 2);
        assert_eq!(device.read(1 << 40, 12)[..], [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0]);
    }

    #[test]
    fn truncating_forgets_the_tail() {
        let mut device = Device::from_bytes(&[9; 9000]);
        device.truncate(5000);
        device.truncate(9000);
        assert_eq!(device.read(4999, 3), [9, 0, 0]);
        assert_eq!(device.read(8999, 1), [0]);
    }

    #[test]
    fn cutting_is_the_inverse_of_embedding() {
        let inner = Device::from_bytes(&(0..9000u32).map(|i| i as u8).collect::<Vec<_>>());
        let mut outer = Device::new(40_000);
        outer.embed(513, &inner);
        assert_eq!(outer.cut(513..9513), inner);
    }

    #[test]
    #[should_panic(expected = "past the end")]
    fn refuses_to_write_past_the_end() {
        Device::new(10).write(9, b"ab");
    }
}
