//! What all sparse VMDK extents share: a grain directory of grain tables of grains, over a parent.

use super::packed::{self, Packing, Wanted, marker};
use super::tally::{Look, Totals};
use crate::audit::{Codes, audit_runs, claim, parts};
use crate::cursor::same_layer;
use crate::entries::{Entries, Page};
use crate::layer::{Bytes, Fault, Layer, Loss, Place, Run, Trust, Unit, Why};
use crate::memo::Memo;
use crate::note::{Note, Sink, Use};
use crate::num::{round_up, wide};
use crate::{Error, Finding};
use std::fmt;
use std::ops::{ControlFlow, Range};
use std::sync::OnceLock;

/// The disk that shows where an extent has nothing.
#[derive(Clone)]
pub(super) enum Parent {
    /// There is none: never written.
    None,
    /// It was not given.
    Absent,
    /// The whole parent disk, and where this extent starts in it.
    Given(Bytes, u64),
}

impl Parent {
    /// What shows at `at` of the extent, up to `len` bytes.
    pub(super) fn show(&self, at: u64, len: u64, trust: Trust) -> Run<'_> {
        let (len, place) = match self {
            Self::None => (len, Place::Hole),
            Self::Absent => (len, Place::Lost(Loss { why: Why::Absent, at: 0 })),
            Self::Given(layer, base) => {
                let offset = at.saturating_add(*base);
                match layer.len().saturating_sub(offset) {
                    // A parent may be shorter than its child; there, nothing was ever written.
                    0 => (len, Place::Hole),
                    inside => (len.min(inside), Place::Below { layer: &**layer, offset }),
                }
            }
        };
        Run { len, place, trust }
    }
}

/// What a grain directory says of a grain table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// All of its grains are the parent's.
    None,
    /// Where it lies, in bytes.
    At(u64),
    /// Where it must lie by the layout that all writers use: the entry is damaged.
    Guessed(u64),
    /// Where it lies, but the header contradicts it.
    Doubtful(u64),
    /// The entry is not one of the specification.
    Broken,
}

/// What a grain table says of a grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grain {
    /// The parent has it.
    Parent,
    /// Zeros.
    Zero,
    /// Unmapped by the guest: readers disagree whether zeros or the parent show.
    Unmapped,
    /// Where it lies, in bytes.
    At(u64),
    /// The entry is not one of the specification.
    Broken,
}

/// How a kind of extent writes its tables.
pub(super) trait Dialect: fmt::Debug + Send + Sync {
    /// What people call an extent of the kind.
    const NAME: &'static str;
    /// Bytes of a directory entry.
    const DIRECTORY_ENTRY: u64;
    /// Bytes of a table entry.
    const TABLE_ENTRY: u64;
    /// The stable codes of damage.
    const CODES: Codes;
    /// The code of what the file holds and no table names.
    const UNNAMED: &'static str;

    /// Reads the directory entry at `at`.
    fn table(&self, page: &Page, at: u64) -> Result<Table, Loss>;
    /// Reads the table entry at `at`.
    fn grain(&self, page: &Page, at: u64) -> Result<Grain, Loss>;
    /// Whether a grain may lie at `host`: no writer puts one among the tables, between two grains, or further behind
    /// than a full extent reaches.
    fn plausible(&self, host: u64, shape: &Shape) -> bool;
    /// Whether the file holds grains or tables that the tables do not name: what is lost in them reads as if it had
    /// never been written.
    fn unnamed(&self, totals: &Totals, file: u64, shape: &Shape) -> Option<String>;
}

/// Where the tables of an extent are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Bytes of the extent's part of the disk.
    pub len: u64,
    /// log2 of the bytes of a grain.
    pub grain_bits: u32,
    /// log2 of the entries of a table.
    pub table_bits: u32,
    /// Where the directory lies, in bytes.
    pub directory: u64,
    /// Entries that the directory has.
    pub tables: u64,
}

/// A sparse extent as a layer.
pub(super) struct Sparse<D> {
    pub entries: Entries,
    pub shape: Shape,
    pub dialect: D,
    pub parent: Parent,
    /// At best.
    pub trust: Trust,
    /// What was seen in the header.
    pub findings: Vec<Finding>,
    /// What it holds beside its directory, tables and grains.
    pub areas: Vec<Area>,
    /// Where its grains are compressed.
    pub packing: Option<Packing>,
    /// What was seen of whole tables, by where they lie. Nothing else may use it.
    pub looks: Memo,
    /// What the file holds beyond what the tables name; `None` in it where that is nothing.
    pub unnamed: OnceLock<Option<String>>,
}

/// Where a structure of the extent lies, how many bytes it has, and what it is.
pub(super) type Area = (u64, u64, Use);

impl<D> fmt::Debug for Sparse<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VmdkSparse({} bytes, directory at {:#x})", self.shape.len, self.shape.directory)
    }
}

impl<D: Dialect> Sparse<D> {
    fn file(&self) -> &dyn Layer {
        &**self.entries.layer()
    }

    /// log2 of the bytes that a table maps.
    fn span_bits(&self) -> u32 {
        self.shape.grain_bits.saturating_add(self.shape.table_bits)
    }

    /// Entries of the directory that lie inside the file: hostile headers claim more than memory could count.
    fn tables(&self) -> u64 {
        let inside = self.file().len().saturating_sub(self.shape.directory);
        self.shape.tables.min(inside.div_ceil(D::DIRECTORY_ENTRY))
    }

    fn directory_entry_at(&self, index: u64) -> u64 {
        self.shape.directory.saturating_add(index.saturating_mul(D::DIRECTORY_ENTRY))
    }

    fn table_entry_at(&self, table: u64, at: u64) -> u64 {
        let index = (at & mask(self.span_bits())) >> self.shape.grain_bits;
        table.saturating_add(index.saturating_mul(D::TABLE_ENTRY))
    }

    /// The table that maps `at`, or the run where the directory alone tells.
    fn directory_run(&self, at: u64, want: u64) -> Result<(u64, u64, Trust), Run<'_>> {
        let bits = self.span_bits();
        let first = at >> bits;
        let span_end = |index: u64| index.saturating_add(1).saturating_mul(shl(1, bits));
        let rest = |index: u64| span_end(index).saturating_sub(at).min(want);
        if first >= self.tables() {
            return Err(Run::lost(want, Why::Unmapped, self.directory_entry_at(self.tables())));
        }
        let entry_at = self.directory_entry_at(first);
        let page = self.entries.page(entry_at);
        let table = self.table(&page, entry_at).map_err(|loss| Run::lost(rest(first), loss.why, loss.at))?;
        let trust = page.trust().max(self.trust);
        let (table, trust) = match table {
            Table::At(table) => (table, trust),
            Table::Guessed(table) => (table, trust.max(Trust::Inferred)),
            Table::Doubtful(table) => (table, Trust::Doubtful),
            Table::Broken => return Err(Run::lost(rest(first), Why::Unmapped, entry_at)),
            Table::None => {
                let mut last = first;
                loop {
                    let next = last.saturating_add(1);
                    let next_at = self.directory_entry_at(next);
                    let more = span_end(last).saturating_sub(at) < want && next < self.tables();
                    if !more || !page.covers(next_at) || self.table(&page, next_at) != Ok(Table::None) {
                        break;
                    }
                    last = next;
                }
                return Err(self.below_parent(at, rest(last), trust));
            }
        };
        if table >= self.file().len() {
            return Err(Run::lost(rest(first), Why::Unmapped, table));
        }
        Ok((table, rest(first), trust))
    }

    fn below_parent(&self, at: u64, len: u64, trust: Trust) -> Run<'_> {
        self.parent.show(at, len, trust)
    }

    /// How many bytes from `at` on are of one piece with `first`, as far as the page tells.
    fn merged(&self, page: &Page, table: u64, at: u64, want: u64, first: Grain) -> u64 {
        let grain = shl(1, self.shape.grain_bits);
        let start = at & !mask(self.shape.grain_bits);
        let mut len = start.saturating_add(grain).saturating_sub(at);
        while len < want {
            let next_at = at.saturating_add(len);
            let entry_at = self.table_entry_at(table, next_at);
            if !page.covers(entry_at) {
                break;
            }
            let goes_on = match (first, self.dialect.grain(page, entry_at)) {
                (Grain::At(host), Ok(Grain::At(next))) if self.packing.is_none() => {
                    host.checked_add(next_at.saturating_sub(start)) == Some(next)
                }
                (Grain::Parent | Grain::Zero | Grain::Unmapped, Ok(next)) => next == first,
                _ => false,
            };
            if !goes_on {
                break;
            }
            len = len.saturating_add(grain);
        }
        len.min(want)
    }

    fn table(&self, page: &Page, entry_at: u64) -> Result<Table, Loss> {
        self.dialect.table(page, entry_at)
    }

    /// What a whole table looks like.
    pub(super) fn look(&self, table: u64) -> Look {
        let block = self.looks.get(table, || Look::of(&self.entries, table, &self.dialect, &self.shape).into_block());
        Look::from_block(&block)
    }

    /// What the file holds that no table names, if anything.
    pub(super) fn unnamed(&self) -> Option<&str> {
        let count = || {
            let totals = Totals::of(self)?;
            self.dialect.unnamed(&totals, self.file().len(), &self.shape)
        };
        self.unnamed.get_or_init(|| if self.packing.is_some() { None } else { count() }).as_deref()
    }

    /// Places of all tables that the directory names, in its order.
    pub(super) fn named_tables(&self) -> impl Iterator<Item = u64> + '_ {
        let needed = self.shape.len.div_ceil(shl(1, self.span_bits()).max(1));
        (0..self.tables().min(needed)).filter_map(|index| {
            let at = self.directory_entry_at(index);
            match self.table(&self.entries.page(at), at) {
                Ok(Table::At(table) | Table::Guessed(table) | Table::Doubtful(table)) => Some(table),
                _ => None,
            }
        })
    }

    /// The table that maps `at`, if the directory names one inside the file.
    pub(super) fn table_of(&self, at: u64) -> Option<u64> {
        self.directory_run(at, 1).ok().map(|(table, ..)| table)
    }

    /// The run at `at` by these tables alone, however many grains they leave out.
    pub(super) fn told(&self, at: u64, want: u64) -> Run<'_> {
        match self.directory_run(at, want) {
            Ok((table, want, trust)) => self.mapped_run(at, want, table, trust),
            Err(run) => run,
        }
    }

    /// Whether a place is what shows where the extent has nothing.
    pub(super) fn is_absent(&self, place: Place<'_>) -> bool {
        match place {
            Place::Hole | Place::Lost(Loss { why: Why::Absent, .. }) => true,
            Place::Below { layer, .. } => !same_layer(layer, self.file()),
            _ => false,
        }
    }

    fn mapped_run(&self, at: u64, want: u64, table: u64, trust: Trust) -> Run<'_> {
        let entry_at = self.table_entry_at(table, at);
        if entry_at >= self.file().len() {
            return Run::lost(want, Why::Unmapped, table);
        }
        let page = self.entries.page(entry_at);
        // One entry that can't be is damage that reaches further than the entry.
        let doubt = if self.look(table).odd > 0 { Trust::Doubtful } else { Trust::Sound };
        let trust = trust.max(page.trust()).max(doubt);
        let grain = match self.dialect.grain(&page, entry_at) {
            Ok(grain) => grain,
            Err(loss) => {
                let end = at | mask(self.shape.grain_bits);
                return Run::lost(end.saturating_sub(at).saturating_add(1).min(want), loss.why, loss.at);
            }
        };
        let len = self.merged(&page, table, at, want, grain);
        match grain {
            Grain::Parent => self.below_parent(at, len, trust),
            Grain::Zero => Run { len, place: Place::Zero, trust },
            Grain::Unmapped => {
                // Without a parent both readings are zeros.
                let doubt = if matches!(self.parent, Parent::None) { Trust::Inferred } else { Trust::Doubtful };
                Run { len, place: Place::Zero, trust: trust.max(doubt) }
            }
            Grain::Broken => Run::lost(len, Why::Unmapped, entry_at),
            Grain::At(host) => {
                if let Some(packing) = &self.packing {
                    let start = at & !mask(self.shape.grain_bits);
                    let wanted = Wanted { start, grain: shl(1, self.shape.grain_bits), disk: self.shape.len };
                    return packing.run(self.file(), at, len, host, (entry_at, trust), wanted);
                }
                let offset = host.saturating_add(at & mask(self.shape.grain_bits));
                match self.file().len().saturating_sub(offset) {
                    0 => Run::lost(len, Why::Truncated, entry_at),
                    inside => {
                        let place = Place::Below { layer: self.file(), offset };
                        Run { len: len.min(inside), place, trust }
                    }
                }
            }
        }
    }
}

impl<D: Dialect> Sparse<D> {
    /// The bytes of the disk that a part of the audit is about. The last one has all that no table maps.
    pub(super) fn span(&self, part: u32) -> Range<u64> {
        let each = shl(1, self.span_bits()).saturating_mul(wide(TABLES_A_PART));
        let start = each.saturating_mul(part.into()).min(self.shape.len);
        let is_last = part.saturating_add(1) >= self.parts();
        let end = if is_last { self.shape.len } else { start.saturating_add(each) };
        start..end.min(self.shape.len)
    }

    /// One finding for all packed grains of `range` whose records do not say that they are theirs.
    fn audit_heads(&self, range: Range<u64>, sink: Sink<'_>) -> ControlFlow<()> {
        let Some(packing) = self.packing.as_ref().filter(|packing| packing.markers) else {
            return ControlFlow::Continue(());
        };
        let mut odd = 0_u64;
        let mut first = None;
        let mut at = range.start;
        while at < range.end {
            let run = self.run(at, range.end.saturating_sub(at));
            if let Place::Coded(unit) = run.place
                && packing.place(&packing.head(self.file(), unit.packed_at)) != Some(unit.start)
            {
                odd = odd.saturating_add(1);
                first = first.or(Some(unit.packed_at));
            }
            at = at.saturating_add(run.len.max(1));
        }
        let Some(first) = first else { return ControlFlow::Continue(()) };
        let text = format!("{odd} packed grains say that they lie where no grain does");
        sink(Note::Finding(Finding::new(packed::HEAD, first..first.saturating_add(8), Trust::Doubtful, text)))
    }

    /// Claims the marker that a stream has before a table or directory at `at`.
    fn claim_marker(&self, at: u64, kind: u32, sink: Sink<'_>) -> ControlFlow<()> {
        match at.checked_sub(512) {
            Some(before) if self.packing.is_some() && packed::marker_at(self.file(), before) == Some(kind) => {
                claim(self.file(), before, 512, Use::Metadata, sink)
            }
            _ => ControlFlow::Continue(()),
        }
    }

    /// The parent, if there is one.
    pub(super) fn parent(&self) -> Option<&dyn Layer> {
        match &self.parent {
            Parent::Given(layer, _) => Some(&**layer),
            _ => None,
        }
    }
}

/// A part of an audit is at most this many tables.
const TABLES_A_PART: usize = 64;

impl<D: Dialect> Layer for Sparse<D> {
    fn len(&self) -> u64 {
        self.shape.len
    }

    fn about(&self) -> String {
        let kind = D::NAME;
        if matches!(self.parent, Parent::None) { kind.into() } else { format!("{kind} delta over its parent") }
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let run = self.told(at, want);
        if run.trust == Trust::Sound && self.is_absent(run.place) && self.unnamed().is_some() {
            return Run { trust: Trust::Inferred, ..run };
        }
        run
    }

    fn decode(&self, unit: &Unit<'_>, packed: &[u8], out: &mut [u8]) -> Result<Trust, Fault> {
        match &self.packing {
            Some(packing) => packed::decode(packing.markers, shl(1, self.shape.grain_bits), unit, packed, out),
            None => Err(Fault::all(Why::Unmapped, unit.packed_at)),
        }
    }

    fn parts(&self) -> u32 {
        parts(self.tables().min(self.shape.len.div_ceil(shl(1, self.span_bits()))), TABLES_A_PART)
    }

    fn audit(&self, part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        let span = shl(1, self.span_bits());
        if part == 0 {
            let len = self.tables().min(self.shape.len.div_ceil(span)).saturating_mul(D::DIRECTORY_ENTRY);
            // A directory has whole sectors in all kinds of extents.
            claim(self.file(), self.shape.directory, round_up(len, 512), Use::Metadata, &mut *sink)?;
            self.claim_marker(self.shape.directory, marker::DIRECTORY, &mut *sink)?;
            for (at, len, of) in &self.areas {
                claim(self.file(), *at, *len, *of, sink)?;
            }
            for finding in &self.findings {
                sink(Note::Finding(finding.clone()))?;
            }
            if let Some(text) = self.unnamed() {
                sink(Note::Finding(Finding::new(D::UNNAMED, 0..0, Trust::Inferred, text)))?;
            }
        }
        let Range { start, end } = self.span(part);
        let parent = self.parent();
        let mut at = start;
        while at < end {
            let next = match self.directory_run(at, end.saturating_sub(at)) {
                Ok((table, len, _)) => {
                    let table_len = shl(D::TABLE_ENTRY, self.shape.table_bits);
                    claim(self.file(), table, table_len, Use::Metadata, &mut *sink)?;
                    self.claim_marker(table, marker::TABLE, &mut *sink)?;
                    at.saturating_add(len)
                }
                Err(run) => at.saturating_add(run.len),
            };
            audit_runs(self, at..next, parent, D::CODES, &mut *sink)?;
            self.audit_heads(at..next, &mut *sink)?;
            at = next.max(at.saturating_add(1));
        }
        ControlFlow::Continue(())
    }
}

pub(super) fn shl(n: u64, bits: u32) -> u64 {
    n.checked_shl(bits).unwrap_or(0)
}

fn mask(bits: u32) -> u64 {
    !u64::MAX.checked_shl(bits).unwrap_or(0)
}

/// log2 of the bytes of a grain of `sectors`, which must be a power of two up to 64 MiB.
pub(super) fn power(name: &'static str, at: u64, sectors: u64) -> Result<u32, Error> {
    if !sectors.is_power_of_two() || sectors > 1 << 17 {
        return Err(Error::corrupt(name, at, format!("{sectors} sectors (a power of two up to 131072)")));
    }
    Ok(sectors.trailing_zeros().saturating_add(9))
}
