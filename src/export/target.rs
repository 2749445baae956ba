//! Writing pieces: sparse into a file of our own, in full anywhere else.

use super::image::{Encoder, Packer};
use rustix::fs::FallocateFlags;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use vdrecover_formats::num::wide;

/// The smallest zeros that are left out of a file: a page, and a block of most file systems.
const BLOCK: usize = 4096;
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// Where the bytes go.
pub(crate) enum Target<'a> {
    /// A file that we made: what is not written is a hole.
    Sparse(File),
    /// An image in a file of ours.
    Image {
        /// The file.
        file: File,
        /// What knows its layout.
        encoder: Box<dyn Encoder>,
        /// What packs its units, of this many bytes.
        packer: Packer,
        unit: u64,
    },
    /// A block device: zeros have to be written.
    Device(File),
    /// A pipe: everything, in order.
    Stream(&'a mut (dyn Write + Send)),
    /// Nowhere: only hashed.
    Nowhere,
}

/// Whether all of it is zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

/// Writes the blocks of `bytes` that are not zero; gives how many bytes that were.
pub(crate) fn write_sparse(file: &File, at: u64, bytes: &[u8]) -> io::Result<u64> {
    let mut written = 0;
    let mut pending = 0..0;
    // Blocks are those of the file, wherever a piece starts.
    let into = usize::try_from(at % wide(BLOCK)).unwrap_or(0);
    let mut start = 0;
    while start < bytes.len() {
        let end = (start + BLOCK - if start == 0 { into } else { 0 }).min(bytes.len());
        let block = &bytes[start..end];
        if *block != ZEROS[..block.len()] {
            if pending.end != start {
                written += put(file, at, bytes, &pending)?;
                pending.start = start;
            }
            pending.end = end;
        }
        start = end;
    }
    Ok(written + put(file, at, bytes, &pending)?)
}

fn put(file: &File, at: u64, bytes: &[u8], range: &Range<usize>) -> io::Result<u64> {
    file.write_all_at(&bytes[range.clone()], at + wide(range.start))?;
    Ok(wide(range.len()))
}

/// Makes a range of a device zero, by telling it where it can be told.
pub(crate) fn zero_device(file: &File, range: &Range<u64>) -> io::Result<()> {
    let len = range.end - range.start;
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    if rustix::fs::fallocate(file, flags, range.start, len).is_ok() {
        return Ok(());
    }
    let mut at = range.start;
    while at < range.end {
        let step = wide(ZEROS.len()).min(range.end - at);
        file.write_all_at(&ZEROS[..usize::try_from(step).unwrap_or(0)], at)?;
        at += step;
    }
    Ok(())
}

/// Writes `len` zeros into a stream.
pub(crate) fn stream_zeros(out: &mut dyn Write, len: u64) -> io::Result<()> {
    let mut left = len;
    while left > 0 {
        let step = wide(ZEROS.len()).min(left);
        out.write_all(&ZEROS[..usize::try_from(step).unwrap_or(0)])?;
        left -= step;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn blocks_of_zeros_are_left_out() {
        for shift in [0, 1, 4095] {
            let mut bytes = vec![0; 8 * BLOCK + 100];
            bytes[BLOCK + 5] = 1;
            bytes[2 * BLOCK + 5] = 1;
            *bytes.last_mut().unwrap() = 7;
            let file = tempfile::tempfile().unwrap();
            let written = write_sparse(&file, shift, &bytes).unwrap();
            assert!(written < 4 * wide(BLOCK), "{written}");
            let mut back = vec![9; bytes.len()];
            file.read_exact_at(&mut back, shift).unwrap();
            assert_eq!(back, bytes);
        }
        let file = tempfile::tempfile().unwrap();
        assert_eq!(write_sparse(&file, 0, &[0; 10_000]).unwrap(), 0);
        assert_eq!(write_sparse(&file, 0, &[]).unwrap(), 0);
        assert_eq!(file.metadata().unwrap().len(), 0);
    }
}
