//! What a row of the table of formats is. The table itself is `FORMATS` in [`crate::table`].

use crate::error::Error;
use crate::layer::{Bytes, Layer};
use crate::link::Opened;
use crate::memo::Memo;
use crate::num::wide;
use crate::read::read;
use std::ops::Range;

/// One format.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// Short name, lower case.
    pub name: &'static str,
    /// In words, for people.
    pub about: &'static str,
    /// What comes out of it.
    pub holds: Holds,
    /// The specification that the reader follows, or where its facts come from.
    pub spec: &'static str,
    /// Bytes at fixed places, of which one at least is there in a sound image. Empty where none is fixed.
    pub magics: &'static [Magic],
    /// How much a layer looks like it, 0 to 255, from a few small reads. 0 is not at all.
    pub probe: fn(&dyn Layer) -> u8,
    /// Parses the head of an image. Reaches for no other image.
    pub open: fn(&Bytes, &Memo) -> Result<Opened, Error>,
    /// How it is found, or put together, where no head tells.
    pub sweep: Option<Sweep>,
}

/// What comes out of a format. What is no disk image lies *in* a disk, be that a raw file: the file is a disk
/// first, which others may use as their extent, and is looked into only if none does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holds {
    /// A disk.
    Disk,
    /// Parts of a disk.
    Volumes,
    /// Files.
    Files,
}

/// Fixed bytes at a fixed place.
#[derive(Clone, Copy, Debug)]
pub struct Magic {
    /// Where.
    pub at: u64,
    /// What.
    pub bytes: &'static [u8],
}

impl Magic {
    /// Whether the layer has it.
    #[must_use]
    pub fn is_in(&self, layer: &dyn Layer) -> bool {
        let mut buf = [0; 16];
        let len = self.bytes.len().min(buf.len());
        let Some(buf) = buf.get_mut(..len) else { return false };
        self.at.saturating_add(wide(len)) <= layer.len() && read(layer, self.at, buf).is_whole() && *buf == *self.bytes
    }
}

/// Probe scores. A score is a claim of evidence, so that the order of the table decides nothing.
pub mod score {
    /// Not this format.
    pub const NONE: u8 = 0;
    /// Nothing else fits: a raw image.
    pub const FALLBACK: u8 = 1;
    /// A weak signature that other formats share, such as the two bytes at the end of a boot sector.
    pub const WEAK: u8 = 64;
    /// The head is gone, and structures behind it are where they would be.
    pub const REMAINS: u8 = 96;
    /// The magic is there.
    pub const MAGIC: u8 = 128;
    /// The magic is there and a checksum or a second structure agrees.
    pub const PROVEN: u8 = 192;
}

/// A format's part of the one parallel pass over a device that repair, deep scan and carving share.
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    /// Reports the clues that start in the window's own part.
    pub look: fn(&Window<'_>, &mut dyn FnMut(Clue)),
    /// Puts the clues, sorted, together to an image. Pure: it may read the layer where the clues point.
    pub build: fn(&Bytes, &Memo, &[Clue]) -> Result<Opened, Error>,
    /// Where clues lie on most devices: all that is looked at where another format owns the device. Short, or empty.
    pub near: &'static [Range<u64>],
}

/// Bytes of a device in memory, read once for all formats.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// Where `bytes` starts.
    pub at: u64,
    /// The window and its margin.
    pub bytes: &'a [u8],
    /// How many of them are the window's own: what starts behind them belongs to the next.
    pub own: usize,
}

/// Something that a sweep saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Clue {
    /// Where, on the device.
    pub at: u64,
    /// Which structure, in the format's own numbering.
    pub kind: u32,
    /// Its length in bytes.
    pub len: u64,
    /// What it says.
    pub value: u64,
}
