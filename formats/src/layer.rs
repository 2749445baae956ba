//! Addressable bytes, and where each of them comes from.

use crate::memo::Memo;
use crate::note::Sink;
use std::fmt::{self, Debug};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// A shared handle to a layer.
pub type Bytes = Arc<dyn Layer>;

/// An address space of bytes that knows where each of them comes from.
///
/// Read-only and shareable; its length is fixed for life. An implementation answers *where* ([`Layer::run`])
/// and, for what it holds or makes itself, *what* ([`Layer::fetch`], [`Layer::decode`]). Everything else,
/// reading, exporting, mounting, tracing, block status, is derived from that by [`crate::walk`] and
/// [`read()`](crate::read()).
///
/// The laws, checked by [`crate::laws::check_laws`]: runs tile `0..len()`; a read in pieces equals a read at
/// once, gaps included; nothing panics; time and memory are bounded; every thread gets the same answers.
pub trait Layer: Debug + Send + Sync {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there is nothing to read.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The run that starts at `at`, of 1 to `want` bytes, merged as far as one table block tells.
    ///
    /// Callers keep to `at < len()`, `want > 0` and `at + want <= len()`. The answer is total: what can't be
    /// mapped is [`Place::Lost`]. Data is never read here, tables may be. A run borrows layers, never table
    /// memory, so that tables can live in a bounded cache.
    fn run(&self, at: u64, want: u64) -> Run<'_>;

    /// Fills `buf` with the bytes of a [`Place::Own`] run. A fault tells the good prefix and how many bytes
    /// are lost after it; the rest of `buf` was not tried.
    fn fetch(&self, at: u64, buf: &mut [u8]) -> Result<Trust, Fault> {
        let _ = buf;
        Err(Fault::all(Why::Unmapped, at))
    }

    /// Decodes one whole unit of a [`Place::Coded`] run. Pure CPU. `packed` may be cut short by a gap; then
    /// the good prefix is what decodes from it.
    fn decode(&self, unit: &Unit<'_>, packed: &[u8], out: &mut [u8]) -> Result<Trust, Fault> {
        let _ = (packed, out);
        Err(Fault::all(Why::Unsupported, unit.packed_at))
    }

    /// What this layer is, in a word or two, for a person who follows a byte down: `VMFS file`, `partition`.
    fn about(&self) -> String {
        let name = std::any::type_name::<Self>();
        let name = name.split('<').next().unwrap_or(name);
        name.rsplit("::").next().unwrap_or(name).to_owned()
    }

    /// The case's name for this layer. Sources always have one: claims, provenance and reports refer to it.
    fn tag(&self) -> Option<Tag> {
        None
    }

    /// [`Place::Own`] bytes without a copy: memory, or a mapping that the user asked for.
    fn slice(&self, range: Range<u64>) -> Option<&[u8]> {
        let _ = range;
        None
    }

    /// These ranges will be wanted soon.
    fn advise(&self, soon: &[Range<u64>]) {
        let _ = soon;
    }

    /// How many independent parts [`Layer::audit`] has: the unit of progress, of threads and of shards.
    fn parts(&self) -> u32 {
        1
    }

    /// One part of a full pass over this layer's own structures: claims, free space, findings.
    fn audit(&self, part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        let _ = (part, sink);
        ControlFlow::Continue(())
    }
}

/// Consecutive bytes in one kind of place.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Bytes.
    pub len: u64,
    /// Where they are.
    pub place: Place<'a>,
    /// How far to believe the map. Says nothing of the bytes: none was read.
    pub trust: Trust,
}

impl<'a> Run<'a> {
    /// A run with a map that nothing contradicts.
    #[must_use]
    pub fn sound(len: u64, place: Place<'a>) -> Self {
        Self { len, place, trust: Trust::Sound }
    }

    /// `len` bytes that can't be had.
    #[must_use]
    pub fn lost(len: u64, why: Why, at: u64) -> Self {
        Self::sound(len, Place::Lost(Loss { why, at }))
    }
}

/// Where bytes are.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// The layer holds them itself: [`Layer::fetch`].
    Own,
    /// Further down, unchanged.
    Below {
        /// The layer that is asked next.
        layer: &'a dyn Layer,
        /// Where in it.
        offset: u64,
    },
    /// Made out of other bytes: deflate, zstd, LZNT1, parity. [`Layer::decode`].
    Coded(Unit<'a>),
    /// A table says that they are zero.
    Zero,
    /// Never written; reads as zeros.
    Hole,
    /// Can't be had.
    Lost(Loss),
}

/// What is decoded at once. The run that names it lies inside it.
#[derive(Clone, Copy, Debug)]
pub struct Unit<'a> {
    /// Has the packed bytes. Where they are scattered, a layer that gathers them.
    pub from: &'a dyn Layer,
    /// Where in `from`.
    pub packed_at: u64,
    /// How many bytes there; at most [`MAX_UNIT`].
    pub packed_len: u32,
    /// The first decoded byte, as an offset in the layer that decodes.
    pub start: u64,
    /// Decoded bytes; at most [`MAX_UNIT`].
    pub len: u32,
    /// The decoding layer's share of the case's cache, keyed by `start`.
    pub memo: &'a Memo,
}

impl Unit<'_> {
    /// Where its packed bytes lie in `from`, as far as there are any.
    #[must_use]
    pub fn packed(&self) -> Range<u64> {
        self.packed_at..self.packed_at.saturating_add(self.packed_len.into()).min(self.from.len())
    }
}

/// No unit is larger than this, packed or decoded: 4 MiB, twice the largest QCOW2 cluster.
pub const MAX_UNIT: u32 = 4 << 20;

/// Why bytes can't be had, and which structure says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The kind of loss.
    pub why: Why,
    /// Where the cause lies, as an offset in the layer below the one that reports it.
    pub at: u64,
}

/// Kinds of loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Why {
    /// The image ends before the place that its tables name.
    Truncated,
    /// The device did not deliver the bytes, or a mapfile says that it did not.
    Unreadable,
    /// They are on an extent, a member or a parent that was not given.
    Absent,
    /// The table that would say where they are is damaged.
    Unmapped,
    /// A newer owner has the place now.
    Overwritten,
    /// Compressed data that does not decode.
    Undecodable,
    /// Encrypted, and there is no key.
    Sealed,
    /// The format allows it, this program does not read it.
    Unsupported,
    /// More layers on top of each other than any real image has.
    TooDeep,
    /// Behind the end of a dump of a part of a device, or before its start: the device has them.
    Outside,
    /// On a LUN that a raw device mapping names and that was not given: they never were where the mapping is.
    NotGiven,
}

impl Why {
    /// Whether only the image lacks the bytes, and nothing that is there is wrong: they are outside of a dump, or on a
    /// device that was not given.
    #[must_use]
    pub fn is_elsewhere(self) -> bool {
        matches!(self, Self::Outside | Self::Absent)
    }

    /// The stable lower-case word of reports and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Unreadable => "unreadable",
            Self::Absent => "absent",
            Self::Unmapped => "unmapped",
            Self::Overwritten => "overwritten",
            Self::Undecodable => "undecodable",
            Self::Sealed => "sealed",
            Self::Unsupported => "unsupported",
            Self::TooDeep => "too-deep",
            Self::Outside => "outside",
            Self::NotGiven => "not-given",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the image ends before them",
            Self::Unreadable => "the device could not read them",
            Self::Absent => "they are on a file or device that was not given",
            Self::Unmapped => "the table that maps them is damaged",
            Self::Overwritten => "something newer was written over them",
            Self::Undecodable => "their compressed data is damaged",
            Self::Sealed => "they are encrypted",
            Self::Unsupported => "this feature is not supported",
            Self::TooDeep => "too many layers on top of each other",
            Self::Outside => "they are outside this dump",
            Self::NotGiven => "they are on a LUN that was not given",
        })
    }
}

/// How far to believe. Ordered: a stack is as good as its worst layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Trust {
    /// Passed every check that the formats offer.
    #[default]
    Sound,
    /// A reasoned choice stands behind it.
    Inferred,
    /// Something contradicts it.
    Doubtful,
}

impl Trust {
    /// The stable lower-case word of reports and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Sound => "sound",
            Self::Inferred => "inferred",
            Self::Doubtful => "doubtful",
        }
    }
}

/// A layer that the case knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(
    /// Number among the case's sources, in the order in which they were given.
    pub u32,
);

/// A read that did not deliver all: `good` bytes are right, the next `lost` can't be had, the rest was not tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Bytes at the start of the buffer that are right.
    pub good: usize,
    /// Bytes after them that are lost; at least one.
    pub lost: usize,
    /// Why.
    pub loss: Loss,
}

impl Fault {
    /// Nothing of it can be had.
    #[must_use]
    pub fn all(why: Why, at: u64) -> Self {
        Self { good: 0, lost: usize::MAX, loss: Loss { why, at } }
    }

    /// The first `good` bytes are right, the others are lost.
    #[must_use]
    pub fn after(good: usize, why: Why, at: u64) -> Self {
        Self { good, ..Self::all(why, at) }
    }
}

/// Bytes that could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Which, in the layer that was asked.
    pub range: Range<u64>,
    /// Why.
    pub loss: Loss,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { start, end } = self.range;
        write!(f, "{} bytes at {start:#x} are lost: {}", end.saturating_sub(start), self.loss.why)
    }
}
