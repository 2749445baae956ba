//! An input mapped into memory, because the user asked for it.
//!
//! A sector that can't be read, or a file that gets shorter, ends a program that looks at a mapping (SIGBUS), so
//! that only the search of a whole device looks at it. All other reads go the usual way.
#![allow(unsafe_code, reason = "a mapping of a file that others can change is unsafe by nature; see SAFETY")]

use anyhow::{Context, Result, ensure};
use memmap2::{Advice, Mmap};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use vdrecover_formats::num::{narrow, wide};
use vdrecover_formats::{Bytes, Fault, Layer, Run, Tag, Trust, adapt};

/// A source with its bytes in reach.
#[derive(Debug)]
pub(super) struct Mapped {
    map: Mmap,
    base: Bytes,
}

impl Mapped {
    /// Maps the file that `base` reads.
    pub(super) fn new(path: &Path, base: Bytes) -> Result<Self> {
        let refused = || format!("{}: mapping it into memory", path.display());
        let file = File::open(path).with_context(refused)?;
        // SAFETY: the mapping is read-only and private to this process, and nothing here keeps a reference to its
        // bytes beyond a look. Another process may change the file meanwhile; the bytes are only ever searched,
        // and what is found is read again through the source. A file cut short ends the program: the user chose
        // that with `--mmap`, whose help says so.
        let map = unsafe { Mmap::map(&file) }.with_context(refused)?;
        ensure!(wide(map.len()) == base.len(), "{}: only a plain file can be mapped", path.display());
        // Advice that is not taken costs nothing.
        let _ = map.advise(Advice::Sequential);
        Ok(Self { map, base })
    }
}

impl Layer for Mapped {
    fn len(&self) -> u64 {
        self.base.len()
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        // Where the source holds bytes itself, this layer does, so that a walk ends where the mapping is.
        let run = self.base.run(at, want);
        match run.place {
            vdrecover_formats::Place::Below { .. } => adapt::below(&*self.base, at, want),
            _ => run,
        }
    }

    fn fetch(&self, at: u64, buf: &mut [u8]) -> Result<Trust, Fault> {
        self.base.fetch(at, buf)
    }

    fn tag(&self) -> Option<Tag> {
        self.base.tag()
    }

    fn about(&self) -> String {
        self.base.about()
    }

    fn slice(&self, range: Range<u64>) -> Option<&[u8]> {
        self.map.get(narrow(range.start)..narrow(range.end))
    }

    fn advise(&self, soon: &[Range<u64>]) {
        self.base.advise(soon);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdrecover_formats::laws::{Effort, check_laws};

    #[test]
    fn a_mapped_file_reads_like_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let bytes: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let source = super::super::open(&path, Tag(0)).unwrap().mapped().unwrap();
        check_laws(&*source.bytes, Effort::default()).unwrap();
        assert_eq!(source.bytes.slice(1000..2000), Some(&bytes[1000..2000]));
        assert_eq!(source.bytes.slice(0..300_001), None);
        assert_eq!(source.bytes.tag(), Some(Tag(0)));
    }
}
