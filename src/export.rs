//! Writing a layer, or a folder of a tree, to where the user wants it.
//!
//! An output gets its name when it is whole: until then it is `NAME.vdrecover-part`, with a journal beside it
//! from which an interrupted export goes on. What is lost is a hole in the output and a line in `NAME.map`.

pub mod domain;
mod evidence;
pub mod folder;
mod image;
mod images;
mod job;
mod journal;
mod losses;
mod map;
mod refused;
mod run;
mod slot;
mod steps;
mod target;
#[cfg(test)]
mod tests;

pub use evidence::Evidence;
pub use image::{Appliance, ImageKind, Packing};
pub use images::Images;
pub use job::digest;
pub use refused::Refused;
pub(crate) use steps::{PIECE, Step, Steps};
pub(crate) use target::stream_zeros;

use crate::digest::Digest;
use crate::progress::Progress;
use crate::stdout::Stdout;
use anyhow::Context as _;
use slot::Slot;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vdrecover_formats::adapt::{Blank, Concat};
use vdrecover_formats::{Bytes, Finding, Gap, Layer, Trust};

/// Where an output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dest {
    /// A new file, sparse where there is nothing to write.
    File(PathBuf),
    /// An existing block device, overwritten in place.
    Device(PathBuf),
    /// Standard output, or a pipe: all bytes in order.
    Pipe(Option<PathBuf>),
}

impl Dest {
    /// What the user means by `-o PATH`: `-` is standard output, a pipe or block device is written to, anything
    /// else is a file to be made.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        if path == Path::new("-") || path == Path::new("/dev/stdout") {
            return Self::Pipe(None);
        }
        match std::fs::metadata(path).map(|meta| meta.file_type()) {
            Ok(kind) if kind.is_block_device() => Self::Device(path.into()),
            Ok(kind) if kind.is_fifo() || kind.is_char_device() => Self::Pipe(Some(path.into())),
            _ => Self::File(path.into()),
        }
    }
}

/// Whether to hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hashing {
    /// No: hashing costs more than copying.
    Off,
    /// What is at most this long. Holes are hashed as zeros, no faster than data.
    UpTo(u64),
}

impl Default for Hashing {
    fn default() -> Self {
        Self::UpTo(64 << 30)
    }
}

/// How to export.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// Replace what is there; needed for every block device.
    pub force: bool,
    /// Threads; 0 for one a core.
    pub threads: usize,
    /// Whether to hash.
    pub hash: Hashing,
    /// What is exported, out of which input: names, lengths and times. An interrupted export goes on when it
    /// finds the same text, and starts anew when it finds another. `None`: it can't go on.
    pub identity: Option<String>,
    /// Where the mapfile goes. `None`: beside a file, and nowhere for anything else.
    pub map: Option<PathBuf>,
    /// Compare what is to be written with what is free before starting.
    pub check_space: bool,
    /// What a file is written as. Devices and pipes get raw bytes.
    pub kind: ImageKind,
    /// The machine, where that is an OVA; the layer then has its disks, as [`in_a_row`] puts them.
    pub appliance: Option<Arc<Appliance>>,
    /// Bytes of data between two points from which an interrupted export goes on.
    pub checkpoint: u64,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            force: false,
            threads: 0,
            hash: Hashing::default(),
            identity: None,
            map: None,
            check_space: true,
            kind: ImageKind::Raw,
            appliance: None,
            checkpoint: 256 << 20,
        }
    }
}

/// What was exported.
#[derive(Clone, Debug)]
pub struct Exported {
    /// Length of what was exported: of the output, unless that is an image.
    pub len: u64,
    /// Bytes written; the others are holes. For a pipe or a device, bytes that were read as data.
    pub data_bytes: u64,
    /// SHA-256 of what was exported, zeros and gaps included, or why there is none.
    pub digest: Digest,
    /// The files of an image: name, length, SHA-256. Empty where the output is what was exported, byte for byte.
    pub files: Vec<Written>,
    /// What is lost, merged, ascending: the first million.
    pub gaps: Vec<Gap>,
    /// How many gaps there are.
    pub gap_count: u64,
    /// Bytes in all of them.
    pub lost_bytes: u64,
    /// The worst that was met.
    pub trust: Trust,
    /// The mapfile, if one was written.
    pub map: Option<PathBuf>,
    /// Where an earlier, interrupted export had come to.
    pub resumed_at: u64,
    /// What else is to be said.
    pub findings: Vec<Finding>,
}

/// A file of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its path.
    pub path: PathBuf,
    /// Its length.
    pub len: u64,
    /// SHA-256 of it, or why there is none.
    pub digest: Digest,
}

impl Exported {
    /// Whether all of it is there and nothing speaks against it: exit code 0, else 1.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.gap_count == 0 && self.trust == Trust::Sound && self.findings.is_empty()
    }
}

/// Images have whole sectors: a disk that has not gets zeros behind it.
#[must_use]
pub fn whole_sectors(bytes: Bytes, kind: ImageKind) -> Bytes {
    const SECTOR: u64 = 512;
    let rest = bytes.len().next_multiple_of(SECTOR) - bytes.len();
    if kind == ImageKind::Raw || rest == 0 {
        return bytes;
    }
    match Concat::new(vec![Arc::clone(&bytes), Arc::new(Blank::zero(rest))]) {
        Some(whole) => Arc::new(whole),
        None => bytes,
    }
}

/// The disks of an OVA one behind the other, each filled up with zeros to where the next one may start. `None` if there
/// are none, or too many bytes of them.
#[must_use]
pub fn in_a_row(disks: &[Bytes]) -> Option<Bytes> {
    let unit = ImageKind::Ova.unit()?;
    let parts = disks.iter().flat_map(|disk| {
        let rest = disk.len().checked_next_multiple_of(unit).map_or(0, |end| end - disk.len());
        [Arc::clone(disk), Arc::new(Blank::zero(rest)) as Bytes]
    });
    let parts: Vec<Bytes> = parts.filter(|part| !part.is_empty()).collect();
    let row = Concat::new(parts).filter(|_| !disks.is_empty())?;
    Some(Arc::new(row))
}

/// Writes all of `layer` to `dest`. A failure has a [`Refused`] at its root where a caller may want to know.
pub fn export(
    layer: &dyn Layer,
    dest: &Dest,
    evidence: &Evidence,
    options: &ExportOptions,
    progress: &Progress,
) -> anyhow::Result<Exported> {
    match dest {
        Dest::File(path) => {
            evidence.check(path)?;
            anyhow::ensure!(!path.is_dir(), "{} is a folder; name the file to be made in it", path.display());
            job::to_slot(layer, &Slot::at(path, evidence)?, job::Part::Alone, evidence, options, progress)
        }
        Dest::Device(_) | Dest::Pipe(_) if options.kind != ImageKind::Raw => {
            anyhow::bail!("only a file can become a {}; name one, or take raw", options.kind.suffix())
        }
        Dest::Device(path) => {
            evidence.check(path)?;
            job::to_device(layer, path, evidence, options, progress)
        }
        Dest::Pipe(None) => job::to_pipe(layer, &mut Stdout, Path::new("standard output"), evidence, options, progress),
        Dest::Pipe(Some(path)) => {
            let open = || format!("cannot open {}", path.display());
            let mut out = OpenOptions::new().write(true).open(path).with_context(open)?;
            job::to_pipe(layer, &mut out, path, evidence, options, progress)
        }
    }
}

/// Writes a small output as a whole. It has another name until it is done.
pub fn write_small(
    path: &Path,
    evidence: &Evidence,
    force: bool,
    write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
) -> anyhow::Result<()> {
    evidence.check(path)?;
    let other = std::fs::metadata(path).is_ok_and(|meta| !meta.is_file());
    anyhow::ensure!(!other, "{} is there and no file; name a file to be made", path.display());
    let slot = Slot::at(path, evidence)?;
    if slot.exists() && !force {
        return Err(Refused::Exists(path.to_path_buf()).into());
    }
    let file = slot.lock_part()?;
    let mut out = io::BufWriter::new(&file);
    let done = file.set_len(0).and_then(|()| write(&mut out)).and_then(|()| out.flush()).and_then(|()| file.sync_all());
    if let Err(error) = done {
        slot.remove_part();
        return Err(refused::classify(error, path, 0, 0));
    }
    slot.commit(force)?;
    slot.sync_dir();
    Ok(())
}
