//! What a file holds, and how it is to be laid out.

use crate::Device;
use sha2::{Digest, Sha256};
use std::ops::Range;

/// A file's bytes: a length, and the pieces that are not holes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    len: u64,
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Content {
    /// `len` bytes, all of them holes until `with` says otherwise.
    #[must_use]
    pub fn sparse(len: u64) -> Self {
        Self { len, pieces: Vec::new() }
    }

    /// Exactly these bytes.
    #[must_use]
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self { len: bytes.len() as u64, pieces: vec![(0, bytes)] }
    }

    /// Adds bytes at `offset`. Pieces must be added in order and may not overlap.
    #[must_use]
    pub fn with(mut self, offset: u64, bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        let free = self.pieces.last().map_or(0, |(at, b)| at + b.len() as u64);
        assert!(offset >= free, "the piece at {offset:#x} overlaps what ends at {free:#x}");
        assert!(offset + bytes.len() as u64 <= self.len, "the piece at {offset:#x} passes the end");
        self.pieces.push((offset, bytes));
        self
    }

    /// `len` bytes that differ from sector to sector and from seed to seed.
    #[must_use]
    pub fn patterned(len: u64, seed: u64) -> Self {
        Self::bytes(pattern(len as usize, seed))
    }

    /// What `device` holds; its unallocated blocks become holes.
    #[must_use]
    pub fn device(device: &Device) -> Self {
        let mut content = Self::sparse(device.len());
        for (at, bytes) in device.blocks() {
            match content.pieces.last_mut() {
                Some((start, piece)) if *start + piece.len() as u64 == at => {
                    piece.extend_from_slice(bytes);
                }
                _ => content.pieces.push((at, bytes.to_vec())),
            }
        }
        content
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The (offset, bytes) pieces in order; everything else reads as zeros.
    #[must_use]
    pub fn pieces(&self) -> &[(u64, Vec<u8>)] {
        &self.pieces
    }

    /// The bytes at `at`, cut at the end of the file.
    #[must_use]
    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; self.len.saturating_sub(at).min(len as u64) as usize];
        let end = at + out.len() as u64;
        for (start, piece) in &self.pieces {
            let (from, to) = (at.max(*start), end.min(start + piece.len() as u64));
            if from < to {
                out[(from - at) as usize..(to - at) as usize]
                    .copy_from_slice(&piece[(from - start) as usize..(to - start) as usize]);
            }
        }
        out
    }

    /// Lower-case hexadecimal SHA-256 of the whole, holes as zeros.
    #[must_use]
    pub fn sha256(&self) -> String {
        let zeros = vec![0; 1 << 20];
        let mut hash = Sha256::new();
        let mut at = 0;
        let skip = |hash: &mut Sha256, mut len: u64| {
            while len > 0 {
                let part = len.min(zeros.len() as u64);
                hash.update(&zeros[..part as usize]);
                len -= part;
            }
        };
        for (start, piece) in &self.pieces {
            skip(&mut hash, start - at);
            hash.update(piece);
            at = start + piece.len() as u64;
        }
        skip(&mut hash, self.len - at);
        crate::hex(&hash.finalize())
    }

    /// The content as a device of the same length.
    #[must_use]
    pub fn to_device(&self) -> Device {
        let mut device = Device::new(self.len);
        for (at, bytes) in &self.pieces {
            device.write(*at, bytes);
        }
        device
    }
}

/// Bytes in which every sector begins with its own number, then repeats a seeded sequence.
#[must_use]
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(len.next_multiple_of(512));
    for sector in 0..(len.div_ceil(512) as u64) {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ sector;
        out.extend(format!("sector {sector:010} seed {seed:06}\n").as_bytes());
        while out.len() % 512 != 0 {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            let left = 512 - out.len() % 512;
            out.extend(&(state ^ (state >> 31)).to_le_bytes()[..left.min(8)]);
        }
    }
    out.truncate(len);
    out
}

/// Where a file's bytes or its pointers are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addressing {
    /// As ESXi chooses by length.
    #[default]
    Auto,
    /// In the descriptor itself (4305).
    Resident,
    /// In sub-blocks (2).
    SubBlock,
    /// In file blocks named by the descriptor (1).
    Direct,
    /// Through one level of pointer blocks (3).
    Single,
    /// Through one level of pointer blocks of `.pb2.sf` (5).
    SinglePb2,
    /// Through two levels of pointer blocks (4304).
    Double,
}

/// Which of a file's blocks are allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocation {
    /// Only blocks that a piece of the content touches.
    #[default]
    Thin,
    /// All; blocks without content are marked to be zeroed and hold stale bytes.
    LazyThick,
    /// All; blocks without content hold zeros.
    EagerThick,
}

/// In which order blocks are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// One after the other.
    #[default]
    Contiguous,
    /// One after the other from this byte of the volume on; file blocks only.
    From(u64),
    /// One after the other, with so many blocks left out between them.
    Gapped(u64),
    /// All over the volume, in an order that depends on the seed.
    Shuffled(u64),
}

/// How a file is laid out; the default is what ESXi does with a small file or a thin disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Where bytes or pointers are kept.
    pub addressing: Addressing,
    /// Which blocks are allocated.
    pub allocation: Allocation,
    /// In which order blocks are taken.
    pub placement: Placement,
    /// Use large file blocks (512 MiB, VMFS6) where a whole one fits.
    pub large_blocks: bool,
    /// Byte ranges whose blocks are allocated, flagged to be zeroed, and hold stale bytes that must not be read.
    /// Content may not lie in them.
    pub to_be_zeroed: Vec<Range<u64>>,
}

impl Layout {
    /// This layout with the given addressing.
    #[must_use]
    pub fn addressing(mut self, addressing: Addressing) -> Self {
        self.addressing = addressing;
        self
    }

    /// This layout with the given allocation.
    #[must_use]
    pub fn allocation(mut self, allocation: Allocation) -> Self {
        self.allocation = allocation;
        self
    }

    /// This layout with blocks taken in a shuffled order.
    #[must_use]
    pub fn shuffled(mut self, seed: u64) -> Self {
        self.placement = Placement::Shuffled(seed);
        self
    }

    /// This layout with blocks taken in order, with gaps of so many.
    #[must_use]
    pub fn gapped(mut self, gap: u64) -> Self {
        self.placement = Placement::Gapped(gap);
        self
    }

    /// This layout with blocks taken from a byte of the volume on.
    #[must_use]
    pub fn from(mut self, lv: u64) -> Self {
        self.placement = Placement::From(lv);
        self
    }

    /// This layout with large file blocks.
    #[must_use]
    pub fn large_blocks(mut self) -> Self {
        self.large_blocks = true;
        self
    }

    /// This layout with one more to-be-zeroed range.
    #[must_use]
    pub fn to_be_zeroed(mut self, range: Range<u64>) -> Self {
        self.to_be_zeroed.push(range);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_hash_as_zeros() {
        let holes = Content::sparse(3 << 20).with(1 << 20, *b"abc");
        let mut flat = vec![0; 3 << 20];
        flat[1 << 20..(1 << 20) + 3].copy_from_slice(b"abc");
        assert_eq!(holes.sha256(), Content::bytes(flat.clone()).sha256());
        assert_eq!(holes.read((1 << 20) - 1, 5), b"\0abc\0");
        assert_eq!(Content::device(&holes.to_device()).sha256(), holes.sha256());
    }

    #[test]
    fn sha256_of_nothing_is_the_known_one() {
        let known = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Content::default().sha256(), known);
    }
}
