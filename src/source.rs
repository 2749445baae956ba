//! What a user gives: files, block devices, the first part of a split image. Each becomes one layer.
//!
//! A source is opened read-only, and nothing in here takes flags from a caller: there is no way to ask for
//! another mode. Its length is what it was when it was opened. Bytes that are not there any more when they are
//! read are lost as truncated, bytes that the device does not deliver as unreadable; neither ends a run.

mod bad;
mod extents;
mod file;
mod input;
mod mmap;
pub(crate) mod split;

use crate::mapfile::Mapfile;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use vdrecover_formats::adapt::Damaged;
use vdrecover_formats::{Bytes, Finding, Tag, Trust, Why};

use file::FileLayer;
use input::Input;

/// An input that was opened, and what is known of it without looking into it.
#[derive(Clone, Debug)]
pub struct Source {
    /// As it was given; of a split image the first part.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: Bytes,
    /// What it is.
    pub kind: SourceKind,
    /// Length in bytes when it was opened; of a split image of all parts together.
    pub len: u64,
    /// Last change of its content; of a split image that of the part that changed last. A device has none.
    pub modified: Option<SystemTime>,
    /// Which file or device it is, whatever its path; of a split image the first part.
    pub identity: Identity,
    /// Smallest number of bytes that can be lost at once.
    pub sector: u32,
    /// Observations on the input itself.
    pub findings: Vec<Finding>,
}

/// Kinds of sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// A regular file.
    File,
    /// A block device.
    BlockDevice,
    /// Regular files that were joined, in order. A part that is missing has its path here too.
    Split {
        /// All parts, the first included.
        parts: Vec<PathBuf>,
    },
}

/// Tells whether two paths lead to the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// A file.
    File {
        /// Device that holds it.
        dev: u64,
        /// Its number there.
        ino: u64,
    },
    /// A device; any number of nodes may name it.
    Device {
        /// Its number.
        rdev: u64,
    },
}

/// Opens a file, a block device, or a split image by its first part.
///
/// A split image (`disk.001`, `disk.000`, `disk.00`, `disk.aa` and what follows it) is joined when further parts
/// lie beside the first. The layer that answers for the source's bytes carries `tag`.
///
/// # Errors
/// The input is missing, unreadable, empty, or of a kind that has no addressable bytes. A directory is refused
/// too: which of its files to open is the caller's question.
pub fn open(path: &Path, tag: Tag) -> Result<Source> {
    let first = Input::open(path)?;
    match split::join(path, &first, tag)? {
        split::Found::Set(source) => Ok(*source),
        split::Found::Single(findings) => Ok(single(path, first, tag, findings)),
    }
}

fn single(path: &Path, input: Input, tag: Tag, mut findings: Vec<Finding>) -> Source {
    let facts = input.facts.clone();
    let layer = FileLayer::new(input, Some(tag));
    findings.extend(holes(layer.has_holes(), facts.len));
    Source {
        path: path.to_owned(),
        bytes: Arc::new(layer),
        kind: if facts.device { SourceKind::BlockDevice } else { SourceKind::File },
        len: facts.len,
        modified: facts.modified,
        identity: facts.identity,
        sector: facts.sector,
        findings,
    }
}

/// The code of the finding on holes: a mapfile answers it.
const HOLES: &str = "SOURCE-HOLES";

fn holes(has_holes: bool, len: u64) -> Option<Finding> {
    let text = "input has holes and no mapfile: a hole may be a range that was never read";
    has_holes.then(|| Finding::new(HOLES, 0..len, Trust::Sound, text))
}

impl Source {
    /// When it was changed last, in nanoseconds since 1970; `None` before that, and where nobody knows.
    #[must_use]
    pub fn modified_nanos(&self) -> Option<u128> {
        Some(self.modified?.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_nanos())
    }

    /// Every file that it is made of and that is there.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let parts = match &self.kind {
            SourceKind::Split { parts } => parts.as_slice(),
            SourceKind::File | SourceKind::BlockDevice => std::slice::from_ref(&self.path),
        };
        parts.iter().map(PathBuf::as_path).filter(|path| path.exists())
    }

    /// The same source, mapped into memory for those who look at bytes without a copy.
    ///
    /// # Errors
    /// The file can't be mapped: it is a device or a split image, or the system refuses.
    pub fn mapped(mut self) -> Result<Self> {
        self.bytes = Arc::new(mmap::Mapped::new(&self.path, self.bytes)?);
        Ok(self)
    }

    /// The same source, less what a mapfile says was not read from the device.
    ///
    /// Positions in the map are the rescued device's; `shift` of them lie before the first byte of this source.
    #[must_use]
    pub fn with_map(mut self, map: &Mapfile, shift: u64) -> Self {
        self.findings.retain(|finding| finding.code != HOLES);
        if let Some(rest) = map.uncovered(shift, self.len).first() {
            let text = "the mapfile does not mention all of the input: what it leaves out counts as never read";
            self.findings.push(Finding::new("SOURCE-MAP-PART", rest.clone(), Trust::Inferred, text));
        }
        self.bytes = Arc::new(Damaged::new(self.bytes, map.lost(shift, self.len), Why::Unreadable));
        self
    }
}

#[cfg(test)]
mod tests;
