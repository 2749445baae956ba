//! One state of an image, the current one or a snapshot's, as a layer.

use super::census::{Census, Plan};
use super::entry::{Dialect, Spot, Table};
use super::header::Compression;
use super::mend::Mend;
use crate::audit::{Codes, audit_runs, claim, parts};
use crate::blocks::{mask, shl};
use crate::codec::{Cut, Zstd, inflate};
use crate::entries::{Entries, Page};
use crate::layer::{Bytes, Fault, Layer, Loss, MAX_UNIT, Place, Run, Trust, Unit, Why};
use crate::memo::Memo;
use crate::note::{Note, Sink, Use};
use crate::num::wide;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

/// Another file that an image needs.
#[derive(Clone)]
pub(super) enum Other {
    /// The image needs none.
    None,
    /// It was not given. Where the image names it.
    Absent(u64),
    /// It.
    Given(Bytes),
}

/// All states of an image, and what comparing them shows: worked out once, when somebody first asks for bytes.
pub(super) struct Whole {
    plan: Plan,
    known: OnceLock<(Census, Mend)>,
}

impl Whole {
    pub(super) fn new(plan: Plan) -> Self {
        Self { plan, known: OnceLock::new() }
    }

    pub(super) fn known(&self) -> (&Census, &Mend) {
        let (census, mend) = self.known.get_or_init(|| {
            let census = Census::new(&self.plan);
            let mend = Mend::new(&self.plan, &census);
            (census, mend)
        });
        (census, mend)
    }

    /// What bytes that no table names are worth: they may have had an entry that is lost.
    fn hole(&self) -> Trust {
        let (census, _) = self.known();
        // What no counter tells of is free where nothing else is wrong.
        let none = if census.damaged { census.orphans.is_empty() } else { census.counted.is_empty() };
        if census.complete && none { Trust::Sound } else { Trust::Inferred }
    }
}

/// The guest's disk in one state.
pub(super) struct Qcow2 {
    pub whole: Arc<Whole>,
    /// Which of the states; 0 is the current one.
    pub number: usize,
    pub tables: Entries,
    pub units: Memo,
    pub l1_table_offset: u64,
    /// Entries of the L1 table that lie inside the file.
    pub l1_size: u64,
    pub len: u64,
    pub dialect: Dialect,
    pub compression: Compression,
    pub zstd: Zstd,
    /// Whether allocated clusters are encrypted.
    pub sealed: bool,
    pub backing: Other,
    /// Has the guest's clusters instead of the file itself.
    pub data_file: Other,
    /// At best.
    pub trust: Trust,
    /// What the file holds beside the tables and clusters of its states.
    pub metadata: Vec<Metadata>,
}

/// A structure that its image's audit claims.
#[derive(Clone, Copy, Debug)]
pub(super) enum Metadata {
    /// Where it lies, and its bytes.
    Range(u64, u64),
    /// A table of this many entries of 8 bytes, each with the place of a cluster: of refcounts, of a bitmap.
    Clusters(u64, u64),
}

impl fmt::Debug for Qcow2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Qcow2({} bytes, l1 at {:#x})", self.len, self.l1_table_offset)
    }
}

/// Where one guest offset is looked up.
struct Lookup {
    /// The L2 table.
    table: u64,
    /// Its entry for the offset.
    entry: u64,
    sub: u32,
}

impl Qcow2 {
    fn file(&self) -> &dyn Layer {
        &**self.tables.layer()
    }

    /// log2 of the guest bytes that one L1 entry maps.
    fn l1_span_bits(&self) -> u32 {
        self.dialect.span_bits()
    }

    /// What was put back of the current state.
    fn mend(&self) -> Option<&Mend> {
        (self.number == 0).then(|| self.whole.known().1)
    }

    fn cluster_size(&self) -> u64 {
        shl(1, self.dialect.cluster_bits)
    }

    fn l1_entry_at(&self, index: u64) -> u64 {
        self.l1_table_offset.saturating_add(index.saturating_mul(8))
    }

    fn lookup(&self, table: u64, at: u64) -> Lookup {
        let Dialect { cluster_bits, .. } = self.dialect;
        let index = (at & mask(self.l1_span_bits())) >> cluster_bits;
        let entry = table.saturating_add(index.saturating_mul(self.dialect.entry_len()));
        let sub = if self.dialect.extended { (at & mask(cluster_bits)) >> self.dialect.grain_bits() } else { 0 };
        Lookup { table, entry, sub: u32::try_from(sub).unwrap_or(0) }
    }

    fn spot(&self, page: &Page, lookup: &Lookup) -> Result<Spot, Loss> {
        let entry = page.be64(lookup.entry)?;
        let bitmap = if self.dialect.extended { page.be64(lookup.entry.saturating_add(8))? } else { 0 };
        Ok(self.dialect.spot(entry, bitmap, lookup.sub))
    }

    /// What the entry says, or what was put in its place, and how far to believe it.
    fn answer(&self, page: &Page, lookup: &Lookup, at: u64) -> Result<(Spot, Trust), Loss> {
        let told = self.spot(page, lookup);
        if let Some(mend) = self.mend().filter(|mend| !mend.clusters.is_empty())
            && matches!(told, Ok(Spot::Unallocated | Spot::Broken(_)) | Err(_))
            && let Some(placed) = mend.clusters.get(&(at >> self.dialect.cluster_bits))
        {
            return Ok((self.dialect.spot(placed.entry, placed.bitmap, lookup.sub), placed.trust));
        }
        let spot = told?;
        let (census, _) = self.whole.known();
        let range = match spot {
            Spot::Data(host) if matches!(self.data_file, Other::None) => self.whole.plan.span(host, 1),
            Spot::Packed { at, len } => self.whole.plan.span(at, len),
            _ => 0..0,
        };
        let shared = census.shared.ones(range).next().is_some();
        Ok((spot, if shared { Trust::Doubtful } else { Trust::Sound }))
    }

    /// The run at `at` as far as the L1 table tells; the L2 table that maps it otherwise.
    fn l1_run(&self, at: u64, want: u64) -> Result<(u64, u64, Trust), Run<'_>> {
        let bits = self.l1_span_bits();
        let span_end = |index: u64| index.saturating_add(1).saturating_mul(shl(1, bits));
        let rest = |index: u64| span_end(index).saturating_sub(at).min(want);
        let first = at >> bits;
        let mended = |index: u64| self.mend().and_then(|mend| mend.tables.get(&index));
        if let Some((table, trust)) = mended(first) {
            return Ok((*table, rest(first), self.trust.max(*trust)));
        }
        if first >= self.l1_size {
            // Nothing says where these bytes are, nor that there are none.
            let next = self.mend().and_then(|mend| mend.tables.range(first..).next());
            let len = next.map_or(want, |(next, _)| shl(*next, bits).saturating_sub(at).min(want));
            return Err(Run::lost(len, Why::Unmapped, self.l1_entry_at(self.l1_size)));
        }
        let entry_at = self.l1_entry_at(first);
        let page = self.tables.page(entry_at);
        let entry = page.be64(entry_at).map_err(|loss| Run::lost(rest(first), loss.why, loss.at))?;
        let trust = page.trust().max(self.trust);
        match self.dialect.table(entry) {
            Table::None => {
                let mut last = first;
                loop {
                    let next = last.saturating_add(1);
                    let next_at = self.l1_entry_at(next);
                    let none = page.be64(next_at).is_ok_and(|entry| self.dialect.table(entry) == Table::None);
                    let more = span_end(last).saturating_sub(at) < want && next < self.l1_size;
                    if !more || !page.covers(next_at) || !none || mended(next).is_some() {
                        break;
                    }
                    last = next;
                }
                if self.mend().is_some_and(|mend| mend.l1_lost) {
                    return Err(Run::lost(rest(last), Why::Unmapped, entry_at));
                }
                Err(self.below_parent(at, rest(last), trust.max(self.whole.hole())))
            }
            Table::Broken => Err(Run::lost(rest(first), Why::Unmapped, entry_at)),
            Table::At(table) if table >= self.file().len() => Err(Run::lost(rest(first), Why::Unmapped, table)),
            Table::At(table) => Ok((table, rest(first), trust)),
        }
    }

    /// What this image leaves to its backing file.
    fn below_parent(&self, at: u64, len: u64, trust: Trust) -> Run<'_> {
        let (len, place) = match &self.backing {
            Other::None => (len, Place::Hole),
            Other::Absent(name_at) => (len, Place::Lost(Loss { why: Why::Absent, at: *name_at })),
            Other::Given(parent) => match parent.len().saturating_sub(at) {
                // A backing file may be shorter than its overlay; there, nothing was ever written.
                0 => (len, Place::Hole),
                inside => (len.min(inside), Place::Below { layer: &**parent, offset: at }),
            },
        };
        Run { len, place, trust }
    }

    /// Guest data at `host`. An L2 entry at `entry` says so.
    ///
    /// A file that ends inside a cluster has lost the rest of it: QEMU writes whole clusters, and what it reads
    /// as zeros behind the end of a file can't be told from a cut.
    fn data(&self, host: u64, len: u64, entry: u64, trust: Trust) -> Run<'_> {
        let layer = match &self.data_file {
            Other::None => self.file(),
            Other::Given(layer) => &**layer,
            Other::Absent(name_at) => return Run::lost(len, Why::Absent, *name_at),
        };
        match layer.len().saturating_sub(host) {
            0 => Run::lost(len, Why::Truncated, entry),
            inside => Run { len: len.min(inside), place: Place::Below { layer, offset: host }, trust },
        }
    }

    fn packed(&self, at: u64, packed: (u64, u64), want: u64, entry: u64, trust: Trust) -> Run<'_> {
        let start = at & !mask(self.dialect.cluster_bits);
        let len = start.saturating_add(self.cluster_size()).saturating_sub(at).min(want);
        if let Compression::Unknown(_) = self.compression {
            return Run::lost(len, Why::Unsupported, 104);
        }
        let (packed_at, packed_len) = packed;
        // The last sector may be cut short by the end of the file: the stream ends somewhere inside it.
        let inside = self.file().len().saturating_sub(packed_at).min(packed_len);
        if inside == 0 {
            return Run::lost(len, Why::Truncated, entry);
        }
        let unit = Unit {
            from: self.file(),
            packed_at,
            packed_len: u32::try_from(inside).unwrap_or(MAX_UNIT).min(MAX_UNIT),
            start,
            len: u32::try_from(self.cluster_size()).unwrap_or(MAX_UNIT),
            memo: &self.units,
        };
        Run { len, place: Place::Coded(unit), trust }
    }

    /// How many bytes from `at` on are of one piece with `first`, as far as the page tells.
    fn merged(&self, page: &Page, table: u64, at: u64, want: u64, (first, trust): (Spot, Trust)) -> u64 {
        let bits = self.dialect.grain_bits();
        let grain = shl(1, bits);
        let start = at & !mask(bits);
        let mut len = start.saturating_add(grain).saturating_sub(at);
        while len < want {
            let lookup = self.lookup(table, at.saturating_add(len));
            if !page.covers(lookup.entry) {
                break;
            }
            let into = at.saturating_add(len).saturating_sub(start);
            let goes_on = match (first, self.answer(page, &lookup, at.saturating_add(len))) {
                (Spot::Data(host), Ok((Spot::Data(next), next_trust))) => {
                    host.checked_add(into) == Some(next) && trust == next_trust
                }
                (Spot::Unallocated | Spot::Zero, Ok((next, _))) => next == first,
                _ => false,
            };
            if !goes_on {
                break;
            }
            len = len.saturating_add(grain);
        }
        len.min(want)
    }
}

impl Layer for Qcow2 {
    fn len(&self) -> u64 {
        self.len
    }

    fn about(&self) -> String {
        "QCOW2 disk".into()
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let (table, want, trust) = match self.l1_run(at, want) {
            Ok(found) => found,
            Err(run) => return run,
        };
        let lookup = self.lookup(table, at);
        if lookup.entry >= self.file().len() {
            return Run::lost(want, Why::Unmapped, lookup.table);
        }
        let page = self.tables.page(lookup.entry);
        let (census, mend) = self.whole.known();
        // One entry that can't be is damage that reaches further than the entry; so is a second owner of the table.
        let doubt = census.is_odd(table) || census.shared.has(table >> self.dialect.cluster_bits);
        let trust = trust.max(page.trust()).max(if doubt { Trust::Doubtful } else { Trust::Sound });
        let answer = match self.answer(&page, &lookup, at) {
            Ok(answer) => answer,
            Err(loss) => {
                let cluster_end = at | mask(self.dialect.cluster_bits);
                return Run::lost(cluster_end.saturating_sub(at).saturating_add(1).min(want), loss.why, loss.at);
            }
        };
        let len = self.merged(&page, table, at, want, answer);
        let (spot, told) = answer;
        let trust = trust.max(told);
        match spot {
            Spot::Unallocated if mend.emptied.binary_search(&table).is_ok() => {
                Run::lost(len, Why::Unmapped, lookup.table)
            }
            Spot::Unallocated => {
                let thinned = mend.thinned.binary_search(&table).is_ok();
                let doubt = if thinned { Trust::Doubtful } else { self.whole.hole() };
                self.below_parent(at, len, trust.max(doubt))
            }
            Spot::Zero => Run { len, place: Place::Zero, trust },
            Spot::Broken(why) => Run::lost(len, why, lookup.entry),
            Spot::Data(_) | Spot::Packed { .. } if self.sealed => Run::lost(len, Why::Sealed, 32),
            Spot::Data(host) => {
                let into = at & mask(self.dialect.grain_bits());
                self.data(host.saturating_add(into), len, lookup.entry, trust)
            }
            Spot::Packed { at: packed_at, len: packed_len } => {
                self.packed(at, (packed_at, packed_len), want, lookup.entry, trust)
            }
        }
    }

    fn decode(&self, unit: &Unit<'_>, packed: &[u8], out: &mut [u8]) -> Result<Trust, Fault> {
        let decoded = match self.compression {
            Compression::Deflate => inflate(packed, out),
            Compression::Zstd => self.zstd.decode(packed, out),
            Compression::Unknown(_) => return Err(Fault::all(Why::Unsupported, 104)),
        };
        decoded.map_err(|Cut(good)| Fault::after(good, Why::Undecodable, unit.packed_at))
    }

    fn parts(&self) -> u32 {
        parts(self.l1_size.min(self.len.div_ceil(shl(1, self.l1_span_bits()))), L1_ENTRIES_A_PART)
    }

    fn audit(&self, part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        let each = wide(L1_ENTRIES_A_PART);
        let first = u64::from(part).saturating_mul(each);
        let last = first.saturating_add(each).min(self.l1_size);
        if part == 0 {
            let needed = self.len.div_ceil(shl(1, self.l1_span_bits()));
            let len = self.l1_size.min(needed).saturating_mul(8);
            claim(self.file(), self.l1_table_offset, len, Use::Metadata, &mut *sink)?;
            if let Some(mend) = self.mend() {
                for finding in &mend.findings {
                    sink(Note::Finding(finding.clone()))?;
                }
            }
            self.metadata.iter().try_for_each(|what| self.claim_metadata(*what, &mut *sink))?;
        }
        if part.saturating_add(1) >= self.parts() {
            // What no L1 entry maps is one run.
            let start = self.l1_size.saturating_mul(shl(1, self.l1_span_bits())).min(self.len);
            audit_runs(self, start..self.len, None, CODES, sink)?;
        }
        for index in first..last {
            let start = index.saturating_mul(shl(1, self.l1_span_bits()));
            if start >= self.len {
                break;
            }
            self.audit_table(start, sink)?;
        }
        ControlFlow::Continue(())
    }
}

/// A part of an audit is at most this many L2 tables.
const L1_ENTRIES_A_PART: usize = 64;

impl Qcow2 {
    fn claim_metadata(&self, what: Metadata, sink: Sink<'_>) -> ControlFlow<()> {
        let (at, entries) = match what {
            Metadata::Range(at, len) => return claim(self.file(), at, len, Use::Metadata, sink),
            Metadata::Clusters(at, entries) => (at, entries),
        };
        claim(self.file(), at, entries.saturating_mul(8), Use::Metadata, sink)?;
        // A damaged table has no say in what can be read: it only claims less.
        let mut page = self.tables.page(at);
        for entry_at in (0..entries).map(|index| at.saturating_add(index.saturating_mul(8))) {
            if entry_at >= self.file().len() {
                break;
            }
            if !page.covers(entry_at) {
                page = self.tables.page(entry_at);
            }
            let block = page.be64(entry_at).unwrap_or(0);
            if block != 0 && block & mask(self.dialect.cluster_bits) == 0 {
                claim(self.file(), block, self.cluster_size(), Use::Metadata, sink)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Claims the L2 table that maps `start` and what it maps.
    fn audit_table(&self, start: u64, sink: Sink<'_>) -> ControlFlow<()> {
        let end = start.saturating_add(shl(1, self.l1_span_bits())).min(self.len);
        if let Ok((table, ..)) = self.l1_run(start, 1) {
            claim(self.file(), table, self.cluster_size(), Use::Metadata, sink)?;
        }
        let parent = match &self.backing {
            Other::Given(parent) => Some(&**parent),
            _ => None,
        };
        audit_runs(self, start..end, parent, CODES, sink)
    }
}

const CODES: Codes = Codes { range: "QCOW2-L2-RANGE", entry: "QCOW2-L2-ENTRY" };
