//! Disk images of other formats than raw: units that are not zero, packed by all threads, laid out in order.
//!
//! Zeros, holes and what is lost take no room in them: readers see zeros there, and the mapfile says which were lost.

mod ova;
mod ovf;
mod pack;
mod qcow2;
mod vmdk;

pub use ovf::Appliance;
pub(crate) use pack::Packer;
pub(crate) use vmdk::{Descriptor, flat_name, plain_name};

use ova::Ova;
use pack::Method;
use qcow2::Qcow2;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::sync::Arc;
use vmdk::{GRAIN, Sparse, Stream};

/// What a disk is written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageKind {
    /// Byte for byte, sparse.
    #[default]
    Raw,
    /// QCOW2, version 3.
    Qcow2(Packing),
    /// A VMDK as on a datastore: a descriptor, and the bytes in `NAME-flat.vmdk` beside it.
    VmdkFlat,
    /// A VMDK in one file, sparse inside: `monolithicSparse`.
    VmdkSparse,
    /// A VMDK in one file, packed, to be imported: `streamOptimized`.
    VmdkStream,
    /// An archive of a description and such streams.
    Ova,
}

/// How the clusters of a QCOW2 are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    #[default]
    Plain,
    /// Deflate, which every reader knows.
    Deflate,
    /// Zstandard, which QEMU knows since 5.1.
    Zstd,
}

/// Lays units out in a file.
pub(crate) trait Encoder: Debug + Send {
    /// Takes a unit that is not zero. Units come in ascending order, each whole: the last one is filled up with zeros.
    fn put(&mut self, file: &File, unit: u64, bytes: &[u8], packed: bool) -> io::Result<()>;

    /// Brings the file to where a later run can go on with it by these numbers, when it is on the disk.
    fn mark(&mut self, file: &File) -> io::Result<Vec<u64>>;

    /// Writes what makes it an image; how long it is. `seed` is of the content: made-up ids come from it.
    fn finish(&mut self, file: &File, seed: &[u8; 32]) -> io::Result<u64>;
}

/// Where an earlier run had come to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reached<'a> {
    pub(crate) marks: &'a [u64],
    /// Everything before is laid out.
    pub(crate) done: u64,
}

impl ImageKind {
    /// The suffix of its files.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2(_) => "qcow2",
            Self::VmdkFlat | Self::VmdkSparse | Self::VmdkStream => "vmdk",
            Self::Ova => "ova",
        }
    }

    /// Bytes of the disk that are laid out at once; `None` where its bytes are written as they are.
    pub(crate) fn unit(self) -> Option<u64> {
        match self {
            Self::Raw | Self::VmdkFlat => None,
            Self::Qcow2(_) => Some(qcow2::CLUSTER),
            Self::VmdkSparse | Self::VmdkStream | Self::Ova => Some(GRAIN),
        }
    }

    pub(crate) fn packer(self) -> Packer {
        Packer::new(match self {
            Self::Raw | Self::VmdkFlat | Self::VmdkSparse | Self::Qcow2(Packing::Plain) => Method::Plain,
            Self::VmdkStream | Self::Ova => Method::Zlib,
            Self::Qcow2(Packing::Deflate) => Method::ShortDeflate,
            Self::Qcow2(Packing::Zstd) => Method::Zstd,
        })
    }

    /// The most bytes that an image with so much data can have.
    pub(crate) fn worst(self, data: u64) -> u64 {
        match self.unit() {
            None => data,
            // Tables and what is before packed grains are less than a hundredth, and a few clusters.
            Some(unit) => data.saturating_add(data / 100).saturating_add(unit * 64),
        }
    }

    /// Starts the image of a disk, or goes on with it. `None` where that can't be: what is in `file` is of something
    /// else, or the disk is larger than the format allows.
    pub(crate) fn encoder(
        self,
        len: u64,
        name: &OsStr,
        appliance: Option<&Arc<Appliance>>,
        file: &File,
        reached: Option<Reached<'_>>,
    ) -> Option<Box<dyn Encoder>> {
        // No format counts less than sectors; the last unit is filled up with zeros anyway.
        let len = len.checked_next_multiple_of(512)?;
        // Readers of a file with grains don't look for this name.
        let name: String =
            name.to_string_lossy().chars().map(|c| if c == '"' || c.is_control() { '_' } else { c }).collect();
        Some(match (self, reached) {
            (Self::Raw | Self::VmdkFlat, _) => return None,
            (Self::Qcow2(packing), None) => Box::new(Qcow2::new(len, packing == Packing::Zstd)?),
            (Self::Qcow2(packing), Some(reached)) => {
                let zstd = packing == Packing::Zstd;
                Box::new(Qcow2::resume(len, zstd, file, reached.marks, reached.done)?)
            }
            (Self::VmdkSparse, None) => Box::new(Sparse::new(len, &name)?),
            (Self::VmdkSparse, Some(reached)) => {
                Box::new(Sparse::resume(len, &name, file, reached.marks, reached.done)?)
            }
            (Self::VmdkStream, None) => Box::new(Stream::new(len, &name, 0)?),
            (Self::VmdkStream, Some(reached)) => {
                let [end] = *reached.marks else { return None };
                Box::new(Stream::resume(len, &name, file, 0, end)?)
            }
            (Self::Ova, None) => Box::new(Ova::new(Arc::clone(appliance?))?),
            (Self::Ova, Some(reached)) => Box::new(Ova::resume(Arc::clone(appliance?), file, reached.marks)?),
        })
    }
}
