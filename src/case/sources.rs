//! Every file and device that the case has open, each once.

use crate::mapfile::{MapArg, Mapfile};
use crate::source::{self, Source, SourceKind};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use vdrecover_formats::{Bytes, Tag};

/// A source, by its device and inode.
type Opened = ((u64, u64), Arc<Source>);

/// The open sources. The one place in which an input is opened, and only to be read.
#[derive(Debug)]
pub struct Sources {
    maps: Vec<MapArg>,
    mmap: bool,
    open: Mutex<Vec<Opened>>,
}

impl Sources {
    /// No source yet. `maps` tells which ranges of which inputs are known to be bad; with `mmap` plain files are
    /// mapped into memory.
    #[must_use]
    pub fn new(maps: Vec<MapArg>, mmap: bool) -> Self {
        source::split::raise_file_limit();
        Self { maps, mmap, open: Mutex::default() }
    }

    /// Opens a file or device, or gives the one that is open already: a file named twice is one source.
    pub fn open(&self, path: &Path) -> Result<Arc<Source>> {
        let place = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
        let identity = place(path).with_context(|| path.display().to_string())?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, source)) = open.iter().find(|(known, _)| *known == identity) {
            return Ok(Arc::clone(source));
        }
        let tag = Tag(u32::try_from(open.len()).unwrap_or(u32::MAX));
        let mut source = source::open(path, tag)?;
        if self.mmap && matches!(source.kind, SourceKind::File) {
            source = source.mapped()?;
        }
        for arg in &self.maps {
            if place(&arg.image).is_ok_and(|mapped| mapped == identity) {
                source = source.with_map(&Mapfile::read(&arg.map)?, arg.shift);
            }
        }
        let source = Arc::new(source);
        open.push((identity, Arc::clone(&source)));
        Ok(source)
    }

    /// Closes the source that was opened last, if `bytes` are its own and nobody else has it: a file that is no image
    /// need not stay open. Tags are places in the order of opening, so that no other can be closed.
    pub(super) fn close_last(&self, bytes: &Bytes) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let last =
            open.last().filter(|(_, source)| Arc::ptr_eq(&source.bytes, bytes) && Arc::strong_count(source) == 1);
        if last.is_some() {
            open.pop();
        }
    }

    /// All that is open, in the order in which it was opened; a tag is an index into it.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Source>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().map(|(_, source)| Arc::clone(source)).collect()
    }
}
