//! Layers that are made of other layers, or of memory.

use crate::layer::{Bytes, Fault, Layer, Loss, Place, Run, Trust, Why};
use crate::num::{narrow, wide};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Bytes in memory.
#[derive(Clone)]
pub struct Memory(Arc<[u8]>);

impl Memory {
    /// A layer of these bytes.
    #[must_use]
    pub fn new(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({} bytes)", self.0.len())
    }
}

impl Layer for Memory {
    fn len(&self) -> u64 {
        wide(self.0.len())
    }

    fn about(&self) -> String {
        "memory".into()
    }

    fn run(&self, _: u64, want: u64) -> Run<'_> {
        Run::sound(want, Place::Own)
    }

    fn fetch(&self, at: u64, buf: &mut [u8]) -> Result<Trust, Fault> {
        let end = at.saturating_add(wide(buf.len()));
        let from = self.slice(at..end).ok_or(Fault::all(Why::Truncated, at))?;
        buf.copy_from_slice(from);
        Ok(Trust::Sound)
    }

    fn slice(&self, range: Range<u64>) -> Option<&[u8]> {
        self.0.get(narrow(range.start)..narrow(range.end))
    }
}

/// A part of a layer.
#[derive(Clone, Debug)]
pub struct Window {
    base: Bytes,
    start: u64,
    len: u64,
    name: Option<Box<str>>,
    dumped: bool,
}

impl Window {
    /// `len` bytes from `start` on. Where `base` ends before them, the rest is lost as truncated.
    #[must_use]
    pub fn new(base: Bytes, start: u64, len: u64) -> Self {
        let len = len.min(u64::MAX.saturating_sub(start));
        Self { base, start, len, name: None, dumped: false }
    }

    /// The same of a device: where `base` ends before them, the rest is outside of what was dumped.
    #[must_use]
    pub fn of_device(base: Bytes, start: u64, len: u64) -> Self {
        Self { dumped: true, ..Self::new(base, start, len) }
    }

    /// The same, called `name` by [`Layer::about`].
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into().into_boxed_str()), ..self }
    }
}

impl Layer for Window {
    fn len(&self) -> u64 {
        self.len
    }

    fn about(&self) -> String {
        self.name.as_deref().unwrap_or("part of the layer below").to_owned()
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let at = self.start.saturating_add(at);
        if self.dumped { within_dump(&*self.base, at, want) } else { below(&*self.base, at, want) }
    }
}

/// `want` bytes of a device at `offset`, of which `layer` is the part that was dumped.
#[must_use]
pub fn within_dump(layer: &dyn Layer, offset: u64, want: u64) -> Run<'_> {
    match layer.len().saturating_sub(offset) {
        0 => Run::lost(want, Why::Outside, layer.len()),
        inside => below(layer, offset, want.min(inside)),
    }
}

/// `want` bytes of `layer` at `offset`, or what the layer ends before.
#[must_use]
pub fn below(layer: &dyn Layer, offset: u64, want: u64) -> Run<'_> {
    match layer.len().saturating_sub(offset) {
        0 => Run::lost(want, Why::Truncated, offset),
        inside => Run::sound(want.min(inside), Place::Below { layer, offset }),
    }
}

/// Layers one behind the other.
#[derive(Clone, Debug)]
pub struct Concat {
    /// Each with where it starts; ascending.
    parts: Vec<(u64, Bytes)>,
    len: u64,
}

impl Concat {
    /// One layer of many. `None` if they are longer than the address space.
    #[must_use]
    pub fn new(layers: impl IntoIterator<Item = Bytes>) -> Option<Self> {
        let mut len: u64 = 0;
        let mut parts = Vec::new();
        for layer in layers.into_iter().filter(|layer| !layer.is_empty()) {
            let start = len;
            len = len.checked_add(layer.len())?;
            parts.push((start, layer));
        }
        Some(Self { parts, len })
    }
}

impl Layer for Concat {
    fn len(&self) -> u64 {
        self.len
    }

    fn about(&self) -> String {
        format!("{} layers one behind the other", self.parts.len())
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let behind = self.parts.partition_point(|(start, _)| *start <= at);
        match behind.checked_sub(1).and_then(|i| self.parts.get(i)) {
            Some((start, layer)) => below(&**layer, at.saturating_sub(*start), want),
            None => Run::lost(want, Why::Unmapped, at),
        }
    }
}

/// A layer with some ranges shadowed by newer copies that lie elsewhere: a log that was not replayed.
#[derive(Clone, Debug)]
pub struct Patch {
    base: Bytes,
    copies: Vec<Copied>,
    trust: Trust,
}

/// One shadowed range.
#[derive(Clone, Debug)]
pub struct Copied {
    /// First byte in the base.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// Has the newer bytes.
    pub from: Bytes,
    /// Where in `from`.
    pub offset: u64,
}

impl Patch {
    /// `base` with `copies` over it, which get `trust`. `None` if two of them overlap.
    #[must_use]
    pub fn new(base: Bytes, mut copies: Vec<Copied>, trust: Trust) -> Option<Self> {
        copies.retain(|copied| copied.len > 0);
        copies.sort_by_key(|copied| copied.at);
        let apart = |pair: &[Copied]| match pair {
            [a, b] => a.at.checked_add(a.len).is_some_and(|end| end <= b.at),
            _ => true,
        };
        copies.windows(2).all(apart).then_some(Self { base, copies, trust })
    }
}

impl Layer for Patch {
    fn len(&self) -> u64 {
        self.base.len()
    }

    fn about(&self) -> String {
        "newer copies over the layer below".into()
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let next = self.copies.partition_point(|copied| copied.at.saturating_add(copied.len) <= at);
        match self.copies.get(next) {
            Some(copied) if copied.at <= at => {
                let into = at.saturating_sub(copied.at);
                let run =
                    below(&*copied.from, copied.offset.saturating_add(into), want.min(copied.len.saturating_sub(into)));
                Run { trust: self.trust, ..run }
            }
            Some(copied) => below(&*self.base, at, want.min(copied.at.saturating_sub(at))),
            None => below(&*self.base, at, want),
        }
    }
}

/// A layer of which some ranges are known to be bad: a ddrescue mapfile, an overwritten block.
#[derive(Clone, Debug)]
pub struct Damaged {
    base: Bytes,
    lost: Vec<Range<u64>>,
    why: Why,
}

impl Damaged {
    /// `base` without `lost`, which may come in any order and overlap.
    #[must_use]
    pub fn new(base: Bytes, mut lost: Vec<Range<u64>>, why: Why) -> Self {
        lost.retain(|range| range.start < range.end);
        lost.sort_by_key(|range| range.start);
        lost.dedup_by(|next, range| {
            let touches = next.start <= range.end;
            if touches {
                range.end = range.end.max(next.end);
            }
            touches
        });
        Self { base, lost, why }
    }
}

impl Layer for Damaged {
    fn len(&self) -> u64 {
        self.base.len()
    }

    fn about(&self) -> String {
        "the layer below without what is known to be bad".into()
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let next = self.lost.partition_point(|range| range.end <= at);
        match self.lost.get(next) {
            Some(range) if range.start <= at => Run::lost(want.min(range.end.saturating_sub(at)), self.why, at),
            Some(range) => below(&*self.base, at, want.min(range.start.saturating_sub(at))),
            None => below(&*self.base, at, want),
        }
    }
}

/// A layer that is believed less than it says of itself, because of how it was chosen.
#[derive(Clone, Debug)]
pub struct Trusted {
    base: Bytes,
    trust: Trust,
}

impl Trusted {
    /// `base`, at best with `trust`.
    #[must_use]
    pub fn new(base: Bytes, trust: Trust) -> Self {
        Self { base, trust }
    }
}

impl Layer for Trusted {
    fn len(&self) -> u64 {
        self.base.len()
    }

    fn about(&self) -> String {
        format!("{}, {} as a choice", self.base.about(), self.trust.word())
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        Run { trust: self.trust, ..below(&*self.base, at, want) }
    }
}

/// A layer that has nothing: all of it is lost, or all of it is zero.
#[derive(Clone, Copy, Debug)]
pub struct Blank {
    len: u64,
    loss: Option<Loss>,
}

impl Blank {
    /// `len` bytes, none of which can be had.
    #[must_use]
    pub fn lost(len: u64, why: Why, at: u64) -> Self {
        Self { len, loss: Some(Loss { why, at }) }
    }

    /// `len` zeros.
    #[must_use]
    pub fn zero(len: u64) -> Self {
        Self { len, loss: None }
    }
}

impl Layer for Blank {
    fn len(&self) -> u64 {
        self.len
    }

    fn about(&self) -> String {
        if self.loss.is_some() { "nothing that can be had" } else { "zeros" }.into()
    }

    fn run(&self, _: u64, want: u64) -> Run<'_> {
        Run::sound(want, self.loss.map_or(Place::Zero, Place::Lost))
    }
}
