//! Disk images of other formats than raw: units that are not zero, packed by all threads, laid out in order.
//!
//! Zeros, holes and what is lost take no room in them: readers see zeros there, and the mapfile says which were lost.

mod pack;
mod qcow2;

pub(crate) use pack::Packer;

use pack::Method;
use qcow2::Qcow2;
use std::fmt::Debug;
use std::fs::File;
use std::io;

/// What a disk is written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageKind {
    /// Byte for byte, sparse.
    #[default]
    Raw,
    /// QCOW2, version 3.
    Qcow2(Packing),
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
        }
    }

    /// Bytes of the disk that are laid out at once; `None` for raw.
    pub(crate) fn unit(self) -> Option<u64> {
        match self {
            Self::Raw => None,
            Self::Qcow2(_) => Some(qcow2::CLUSTER),
        }
    }

    pub(crate) fn packer(self) -> Packer {
        Packer::new(match self {
            Self::Raw | Self::Qcow2(Packing::Plain) => Method::Plain,
            Self::Qcow2(Packing::Deflate) => Method::ShortDeflate,
            Self::Qcow2(Packing::Zstd) => Method::Zstd,
        })
    }

    /// The most bytes that an image with so much data can have.
    pub(crate) fn worst(self, data: u64) -> u64 {
        match self.unit() {
            None => data,
            // Tables are less than a thousandth, and a few clusters.
            Some(unit) => data.saturating_add(data >> 10).saturating_add(unit * 64),
        }
    }

    /// Starts the image of a disk, or goes on with it. `None` where that can't be: what is in `file` is of something
    /// else, or the disk is larger than the format allows.
    pub(crate) fn encoder(self, len: u64, file: &File, reached: Option<Reached<'_>>) -> Option<Box<dyn Encoder>> {
        match (self, reached) {
            (Self::Raw, _) => None,
            (Self::Qcow2(packing), None) => Some(Box::new(Qcow2::new(len, packing == Packing::Zstd)?)),
            (Self::Qcow2(packing), Some(reached)) => {
                let zstd = packing == Packing::Zstd;
                Some(Box::new(Qcow2::resume(len, zstd, file, reached.marks, reached.done)?))
            }
        }
    }
}
