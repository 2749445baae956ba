//! Disks of equal blocks behind one table, over a parent: what VHD, VHDX and VDI share.
//!
//! The table is never read as a whole for a run: entries come in bounded pages through the case's cache. When the
//! image is joined, a table of up to [`MAX_COMPARED`] entries is read once to find blocks that lie in one place,
//! of which at most one owner can be right.

use crate::audit::{Codes, audit_runs, claim, parts};
use crate::entries::{Entries, Page};
use crate::layer::{Bytes, Layer, Loss, Place, Run, Trust, Why};
use crate::note::{Finding, Note, Sink, Use};
use crate::num::wide;
use std::fmt;
use std::ops::{ControlFlow, Range};

/// The disk that shows where an image has nothing.
#[derive(Clone, Debug)]
pub enum Parent {
    /// There is none: never written.
    None,
    /// It was not given. Where the image names it.
    Absent(u64),
    /// The whole parent disk.
    Given(Bytes),
}

impl Parent {
    /// The parent of an image that wants none, or one that it names at `named_at`.
    #[must_use]
    pub fn of(named_at: Option<u64>, others: &[Option<Bytes>]) -> Self {
        match (named_at, others.first()) {
            (None, _) => Self::None,
            (Some(_), Some(Some(layer))) => Self::Given(layer.clone()),
            (Some(at), _) => Self::Absent(at),
        }
    }

    /// What an image leaves to its parent.
    #[must_use]
    pub fn run(&self, at: u64, len: u64, trust: Trust) -> Run<'_> {
        let (len, place) = match self {
            Self::None => (len, Place::Hole),
            Self::Absent(named_at) => (len, Place::Lost(Loss { why: Why::Absent, at: *named_at })),
            Self::Given(parent) => match parent.len().saturating_sub(at) {
                // A parent may be shorter than its child; there, nothing was ever written.
                0 => (len, Place::Hole),
                inside => (len.min(inside), Place::Below { layer: &**parent, offset: at }),
            },
        };
        Run { len, place, trust }
    }

    /// The parent, if it was given.
    #[must_use]
    pub fn layer(&self) -> Option<&dyn Layer> {
        match self {
            Self::Given(parent) => Some(&**parent),
            Self::None | Self::Absent(_) => None,
        }
    }
}

/// What a table says of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// The parent has it.
    Parent,
    /// Zeros.
    Zero,
    /// Its content is undefined: zeros stand for it.
    Undefined,
    /// The file has it, from this byte on.
    At(u64),
    /// The same, but something else of the image contradicts it.
    Doubtful(u64),
    /// The file has it from the byte `at` on, but for the sectors whose bit in the bitmap at `bitmap` is clear:
    /// those the parent has.
    Mixed {
        /// Where the block lies.
        at: u64,
        /// Where its first bit lies, in bytes.
        bitmap: u64,
    },
    /// The entry is not one of the specification.
    Broken,
}

impl Block {
    /// Where the block lies in the file, if it does.
    fn host(self) -> Option<u64> {
        match self {
            Self::At(at) | Self::Doubtful(at) | Self::Mixed { at, .. } => Some(at),
            Self::Parent | Self::Zero | Self::Undefined | Self::Broken => None,
        }
    }
}

/// How a format writes its table.
pub trait Dialect: fmt::Debug + Send + Sync {
    /// What people call such a disk.
    const NAME: &'static str;
    /// The stable codes of damage.
    const CODES: Codes;
    /// The code of two blocks in one place.
    const SHARED: &'static str;
    /// Whether the highest bit of a byte of a bitmap stands for its first sector.
    const HIGH_FIRST: bool;

    /// Where the entry of a block lies.
    fn entry_at(&self, block: u64) -> u64;
    /// Reads the entry at `at` of a block from its page.
    fn block(&self, entries: &Entries, page: &Page, at: u64, block: u64) -> Result<Block, Loss>;
    /// log2 of the bytes that a bit of a block's bitmap stands for.
    fn bit(&self) -> u32 {
        9
    }
    /// Bytes of metadata right before each block.
    fn head(&self) -> u64 {
        0
    }
    /// What else of the file is there for this block and those behind it.
    fn beside(&self, entries: &Entries, block: u64) -> Option<Area> {
        let _ = (entries, block);
        None
    }
}

/// Where a structure of the image lies.
pub type Area = Range<u64>;

/// A disk of blocks as a layer.
pub struct Blocks<D> {
    entries: Entries,
    dialect: D,
    shape: Shape,
    parent: Parent,
    trust: Trust,
    areas: Vec<Area>,
    /// Where blocks lie that others overlap, ascending.
    shared: Vec<u64>,
}

/// The measures of a disk of blocks.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bytes of the disk.
    pub len: u64,
    /// log2 of the bytes of a block.
    pub bits: u32,
    /// Blocks that the table has entries for.
    pub blocks: u64,
}

/// Entries of a table that are compared with each other: enough for a VHD of any size, and for 64 TiB in the
/// blocks that Hyper-V makes.
pub const MAX_COMPARED: u64 = 4 << 20;

impl<D> fmt::Debug for Blocks<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blocks({:?})", self.shape)
    }
}

impl<D: Dialect> Blocks<D> {
    /// The disk whose table `entries` has, with at best `trust`. `areas` are the structures of the image, where no
    /// block can lie.
    #[must_use]
    pub fn new(entries: Entries, dialect: D, shape: Shape, parent: Parent, trust: Trust, areas: Vec<Area>) -> Self {
        let mut this = Self { entries, dialect, shape, parent, trust, areas, shared: Vec::new() };
        this.shared = this.find_shared();
        this
    }

    fn file(&self) -> &dyn Layer {
        &**self.entries.layer()
    }

    /// Entries that lie inside the file and that the disk needs.
    fn blocks(&self) -> u64 {
        self.shape.blocks.min(self.shape.len.div_ceil(shl(1, self.shape.bits)))
    }

    fn find_shared(&self) -> Vec<u64> {
        let size = shl(1, self.shape.bits).saturating_add(self.dialect.head());
        let mut hosts = Vec::new();
        if self.blocks() <= MAX_COMPARED {
            let mut page: Option<Page> = None;
            for block in 0..self.blocks() {
                let at = self.dialect.entry_at(block);
                if at >= self.file().len() {
                    break;
                }
                let page = match &mut page {
                    Some(page) if page.covers(at) => page,
                    page => page.insert(self.entries.page(at)),
                };
                hosts.extend(self.block(page, at, block).ok().and_then(Block::host));
            }
        }
        hosts.sort_unstable();
        let mut shared: Vec<u64> = Vec::new();
        let mut last: Option<u64> = None;
        for host in hosts {
            if let Some(before) = last.filter(|before| host < before.saturating_add(size)) {
                shared.extend([before, host]);
            }
            last = Some(host);
        }
        shared.dedup();
        shared
    }

    /// What the table says of a block, without places where no block can lie.
    fn block(&self, page: &Page, at: u64, block: u64) -> Result<Block, Loss> {
        let found = self.dialect.block(&self.entries, page, at, block)?;
        let Some(host) = found.host() else { return Ok(found) };
        let Some(start) = host.checked_sub(self.dialect.head()) else { return Ok(Block::Broken) };
        let Some(end) = host.checked_add(shl(1, self.shape.bits)) else { return Ok(Block::Broken) };
        let hits = self.areas.iter().any(|area| start < area.end && area.start < end);
        Ok(if hits { Block::Broken } else { found })
    }

    /// How many bytes from `at` on are of one piece with `first`, the block at `index`, as far as the page tells.
    fn merged(&self, page: &Page, index: u64, at: u64, want: u64, first: Block) -> u64 {
        let size = shl(1, self.shape.bits);
        let start = index.saturating_mul(size);
        let mut len = start.saturating_add(size).saturating_sub(at);
        let mut next = index.saturating_add(1);
        while len < want && next < self.blocks() {
            let entry_at = self.dialect.entry_at(next);
            if !page.covers(entry_at) {
                break;
            }
            let goes_on = match (first, self.block(page, entry_at, next)) {
                (Block::At(host), Ok(Block::At(next_host))) => {
                    let into = next.saturating_mul(size).saturating_sub(start);
                    host.checked_add(into) == Some(next_host) && self.is_shared(host) == self.is_shared(next_host)
                }
                (Block::Parent | Block::Zero | Block::Undefined, Ok(found)) => found == first,
                _ => false,
            };
            if !goes_on {
                break;
            }
            len = len.saturating_add(size);
            next = next.saturating_add(1);
        }
        len.min(want)
    }

    fn is_shared(&self, host: u64) -> bool {
        self.shared.binary_search(&host).is_ok()
    }

    fn data(&self, host: u64, into: u64, len: u64, entry_at: u64, trust: Trust) -> Run<'_> {
        let trust = if self.is_shared(host) { Trust::Doubtful } else { trust };
        let offset = host.saturating_add(into);
        match self.file().len().saturating_sub(offset) {
            0 => Run::lost(len, Why::Truncated, entry_at),
            inside => Run { len: len.min(inside), place: Place::Below { layer: self.file(), offset }, trust },
        }
    }

    /// A part of a block of which the parent has some sectors. `rest` is what is asked of the block.
    fn mixed_run(&self, at: u64, rest: u64, (host, bitmap): (u64, u64), entry_at: u64, trust: Trust) -> Run<'_> {
        let into = at & mask(self.shape.bits);
        let bit = into >> self.dialect.bit();
        let byte_at = |bit: u64| bitmap.saturating_add(bit >> 3);
        let page = self.entries.page(byte_at(bit));
        let trust = trust.max(page.trust());
        let end_of = |bit: u64| bit.saturating_add(1) << self.dialect.bit();
        let get = |bit: u64| {
            let byte = page.bytes(byte_at(bit), 1)?.first().copied().unwrap_or(0);
            let shift = u32::try_from(bit & 7).unwrap_or(0);
            let shift = if D::HIGH_FIRST { 7_u32.saturating_sub(shift) } else { shift };
            Ok::<bool, Loss>(byte.checked_shr(shift).unwrap_or(0) & 1 == 1)
        };
        let here = match get(bit) {
            Ok(here) => here,
            Err(loss) => {
                let len = end_of(bit | 7).saturating_sub(into).min(rest);
                return Run::lost(len, loss.why, loss.at);
            }
        };
        let mut last = bit;
        while end_of(last).saturating_sub(into) < rest {
            let next = last.saturating_add(1);
            if !page.covers(byte_at(next)) || get(next) != Ok(here) {
                break;
            }
            last = next;
        }
        let len = end_of(last).saturating_sub(into).min(rest);
        if here { self.data(host, into, len, entry_at, trust) } else { self.parent.run(at, len, trust) }
    }
}

impl<D: Dialect> Layer for Blocks<D> {
    fn len(&self) -> u64 {
        self.shape.len
    }

    fn about(&self) -> String {
        let kind = D::NAME;
        if matches!(self.parent, Parent::None) { kind.into() } else { format!("{kind} delta over its parent") }
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let index = at >> self.shape.bits;
        let entry_at = self.dialect.entry_at(index);
        if index >= self.blocks() {
            // Nothing says where these bytes are, nor that there are none.
            return Run::lost(want, Why::Unmapped, entry_at);
        }
        let rest = (at | mask(self.shape.bits)).saturating_sub(at).saturating_add(1).min(want);
        let page = self.entries.page(entry_at);
        let trust = self.trust.max(page.trust());
        let block = match self.block(&page, entry_at, index) {
            Ok(block) => block,
            Err(loss) => return Run::lost(rest, loss.why, loss.at),
        };
        let len = self.merged(&page, index, at, want, block);
        match block {
            Block::Parent => self.parent.run(at, len, trust),
            Block::Zero => Run { len, place: Place::Zero, trust },
            Block::Undefined => Run { len, place: Place::Zero, trust: trust.max(Trust::Inferred) },
            Block::Broken => Run::lost(len, Why::Unmapped, entry_at),
            Block::At(host) => self.data(host, at & mask(self.shape.bits), len, entry_at, trust),
            Block::Doubtful(host) => self.data(host, at & mask(self.shape.bits), len, entry_at, Trust::Doubtful),
            Block::Mixed { at: host, bitmap } => self.mixed_run(at, rest, (host, bitmap), entry_at, trust),
        }
    }

    fn parts(&self) -> u32 {
        parts(self.blocks(), BLOCKS_A_PART)
    }

    fn audit(&self, part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        if part == 0 {
            for area in &self.areas {
                let len = area.end.saturating_sub(area.start);
                claim(self.file(), area.start, len, Use::Metadata, &mut *sink)?;
            }
            self.audit_shared(&mut *sink)?;
        }
        let each = wide(BLOCKS_A_PART);
        let first = u64::from(part).saturating_mul(each);
        let last = first.saturating_add(each).min(self.blocks());
        let head = self.dialect.head();
        for index in first..last {
            let at = self.dialect.entry_at(index);
            if at >= self.file().len() {
                break;
            }
            if let Ok(Some(host)) = self.block(&self.entries.page(at), at, index).map(Block::host) {
                claim(self.file(), host.saturating_sub(head), head, Use::Metadata, &mut *sink)?;
            }
            if let Some(area) = self.dialect.beside(&self.entries, index) {
                let len = area.end.saturating_sub(area.start);
                claim(self.file(), area.start, len, Use::Metadata, &mut *sink)?;
            }
        }
        let start = first.saturating_mul(shl(1, self.shape.bits)).min(self.shape.len);
        let is_last = part.saturating_add(1) >= self.parts();
        let end = if is_last { self.shape.len } else { last.saturating_mul(shl(1, self.shape.bits)) };
        audit_runs(self, start..end.min(self.shape.len), self.parent.layer(), D::CODES, sink)
    }
}

/// A part of an audit is at most this many blocks.
const BLOCKS_A_PART: usize = 4096;

impl<D: Dialect> Blocks<D> {
    fn audit_shared(&self, sink: Sink<'_>) -> ControlFlow<()> {
        let Some(first) = self.shared.first() else { return ControlFlow::Continue(()) };
        let text = format!("{} blocks lie in places that others have too; at most one of each can be right", {
            self.shared.len()
        });
        sink(Note::Finding(Finding::new(D::SHARED, *first..first.saturating_add(1), Trust::Doubtful, text)))
    }
}

/// `n << bits`, 0 where that is none.
#[must_use]
pub fn shl(n: u64, bits: u32) -> u64 {
    n.checked_shl(bits).unwrap_or(0)
}

/// The lowest `bits` bits.
#[must_use]
pub fn mask(bits: u32) -> u64 {
    !u64::MAX.checked_shl(bits).unwrap_or(0)
}
