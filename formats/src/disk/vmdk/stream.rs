//! A stream-optimized extent beyond what its tables say.
//!
//! Records of packed grains tell their own place and length, and in every real stream they come in the order of the
//! disk, each right behind the other or behind a marker and its table. So a lost directory costs nothing: a record is
//! found by bisection, in windows that are looked through from any sector on. And what the tables leave out shows:
//! between the record before a hole and the one after it nothing else may lie.

use super::packed::{self, Packing, Wanted, marker};
use super::sparse::Parent;
use crate::layer::{Bytes, Fault, Layer, Loss, Place, Run, Trust, Unit, Why};
use crate::memo::{Block, Memo};
use crate::note::{Finding, Note, Sink, Use};
use crate::num::{narrow, round_up, wide};
use crate::read::{read_exact, read_vec};
use byteorder::{ByteOrder, LittleEndian};
use std::fmt;
use std::ops::{ControlFlow, Range};

/// Bytes that are looked through at once.
const WINDOW: u64 = 1 << 20;
/// Windows without a record in a row, behind which no more are looked for.
const EMPTY: u64 = 128;
/// Markers in a row between two records. Observed: writers that write the tables of empty parts too, 2 TiB of them.
const MARKERS: usize = 1 << 16;

/// A packed grain's record: its head, as far as one can tell that it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Where it lies in the file.
    pub at: u64,
    /// Where its grain starts on the disk.
    pub start: u64,
    /// Where the next sector behind it starts.
    pub end: u64,
}

impl Record {
    /// Bytes of a head that `recognise` needs.
    pub(super) const HEAD: usize = 14;

    /// The record at `at`, if `bytes` starts like one: a place of a grain, a size that a grain can have, and the two
    /// bytes of a zlib stream's head.
    pub(super) fn recognise(at: u64, bytes: &[u8], grain: u64, disk: u64) -> Option<Self> {
        let head = bytes.get(..Self::HEAD)?;
        let (lba, rest) = head.split_at(8);
        let (size, zlib) = rest.split_at(4);
        let start = LittleEndian::read_u64(lba).checked_mul(512)?;
        let size = u64::from(LittleEndian::read_u32(size));
        let [cmf, flags] = zlib else { return None };
        let is_zlib =
            cmf & 0x8f == 8 && u16::from_be_bytes([*cmf, *flags]).checked_rem(31) == Some(0) && flags & 32 == 0;
        let right = is_zlib && start.checked_rem(grain) == Some(0) && start < disk && size > 6;
        let end = at.saturating_add(round_up(size.saturating_add(12), 512));
        (right && size <= grain.saturating_mul(2)).then_some(Self { at, start, end })
    }
}

/// Sectors that a special marker at the start of `bytes` and what belongs to it have, and its kind.
pub(super) fn special(bytes: &[u8]) -> Option<(u64, u32)> {
    let value = LittleEndian::read_u64(bytes.get(..8)?);
    let size = LittleEndian::read_u32(bytes.get(8..12)?);
    let kind = LittleEndian::read_u32(bytes.get(12..16)?);
    let right = size == 0 && kind <= marker::PROGRESS && value <= 1 << 17 && bytes.get(16..512).is_none_or(is_zero);
    let own = if kind == marker::END { 0 } else { value };
    (right && (kind != marker::END || value == 0)).then(|| (own.saturating_add(1), kind))
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// All records whose first sector lies in the first `own` bytes of `bytes`, which are those at `at`. Every sector is
/// asked: the size of a record may be damaged, and a head is too particular to be there by chance.
pub(super) fn records(at: u64, bytes: &[u8], own: usize, grain: u64, disk: u64, tell: &mut dyn FnMut(Record)) {
    // Windows need not start at a sector.
    let first = narrow(round_up(at, 512).saturating_sub(at));
    for into in (first..own).step_by(512) {
        let here = at.saturating_add(wide(into));
        if let Some(record) = Record::recognise(here, bytes.get(into..).unwrap_or_default(), grain, disk) {
            tell(record);
        }
    }
}

/// The records of a file, found without any table.
#[derive(Clone, Debug)]
struct Scan {
    file: Bytes,
    grain: u64,
    disk: u64,
    /// Where the first record may lie.
    from: u64,
    windows: Memo,
}

impl Scan {
    fn count(&self) -> u64 {
        self.file.len().div_ceil(WINDOW)
    }

    /// Place on the disk, place in the file and end of each record of a window, in ascending order.
    fn window(&self, number: u64) -> Vec<Record> {
        let block = self.windows.get(number, || {
            let start = number.saturating_mul(WINDOW);
            let own = start.saturating_add(WINDOW).min(self.file.len()).saturating_sub(start);
            let (bytes, _) = read_vec(&*self.file, start, narrow(own));
            let mut out = Vec::new();
            records(start, &bytes, narrow(own), self.grain, self.disk, &mut |record| {
                for field in [record.start, record.at, record.end] {
                    out.extend(field.to_le_bytes());
                }
            });
            Block { bytes: out, ..Block::default() }
        });
        let field = |row: &[u8], n: usize| row.get(n..).map_or(0, LittleEndian::read_u64);
        let row = |row: &[u8]| Record { start: field(row, 0), at: field(row, 8), end: field(row, 16) };
        block.bytes.chunks_exact(24).map(row).collect()
    }

    /// The first record in window `number` or behind it.
    fn first_from(&self, number: u64) -> Option<(u64, Record)> {
        let end = number.saturating_add(EMPTY).min(self.count());
        (number..end).find_map(|number| Some((number, *self.window(number).first()?)))
    }

    /// The last record at or before `at` on the disk, and the first behind it.
    fn around(&self, at: u64) -> (Option<Record>, Option<Record>) {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = low.saturating_add(high.saturating_sub(low) >> 1);
            match self.first_from(middle) {
                Some((number, record)) if record.start <= at => low = number.saturating_add(1),
                _ => high = middle,
            }
        }
        let behind = self.first_from(low).map(|(_, record)| record);
        let back = low.saturating_sub(EMPTY)..low;
        let Some(window) = back.rev().map(|number| self.window(number)).find(|window| !window.is_empty()) else {
            return (None, behind);
        };
        let split = window.partition_point(|record| record.start <= at);
        let before = split.checked_sub(1).and_then(|last| window.get(last)).copied();
        (before, window.get(split).copied().or(behind))
    }

    /// What follows at `at` in the file, past markers and what belongs to them.
    fn follows(&self, mut at: u64) -> Next {
        for _ in 0..MARKERS {
            // What ends behind the file is cut itself.
            let Some(left) = self.file.len().checked_sub(at) else { return Next::Garbage };
            let mut head = [0; 512];
            let len = narrow(left.min(512));
            if len < Record::HEAD {
                return if left == 0 { Next::Cut } else { Next::Garbage };
            }
            let Some(bytes) = head.get_mut(..len) else { return Next::Garbage };
            if read_exact(&*self.file, at, bytes).is_err() {
                return Next::Garbage;
            }
            if let Some(record) = Record::recognise(at, bytes, self.grain, self.disk) {
                return Next::Record(record);
            }
            match special(bytes) {
                Some((_, marker::END | marker::FOOTER | marker::DIRECTORY)) => return Next::End,
                Some((sectors, _)) => at = at.saturating_add(sectors.saturating_mul(512)),
                None => return Next::Garbage,
            }
        }
        Next::Garbage
    }
}

/// What lies behind a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Record(Record),
    /// The stream's end, or what comes when there are no more grains.
    End,
    /// The end of the file.
    Cut,
    Garbage,
}

/// A stream through its tables where they are, and through its records where they are not.
pub(super) struct Stream {
    /// Through the tables.
    tables: Option<Bytes>,
    parent: Parent,
    scan: Scan,
    packing: Packing,
    /// Whether a writer who put the directory before the grains ends its file with the last of them.
    ends_with_grains: bool,
    spans: Memo,
    findings: Vec<Finding>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VmdkStream({} bytes, tables: {:?})", self.scan.disk, self.tables)
    }
}

/// What a stream looks like.
#[derive(Clone)]
pub(super) struct Extent {
    pub parent: Parent,
    pub grain: u64,
    pub disk: u64,
    pub from: u64,
    pub ends_with_grains: bool,
}

/// What is between the records of one span of the disk.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    /// The first record of the span; 0 for none.
    first: u64,
    /// Where the next record behind the span starts on the disk; `u64::MAX` for none.
    next: u64,
    /// Whether nothing else lies between them.
    clean: bool,
}

/// Bytes of the disk that are checked together: what a table of 512 grains of 64 KiB maps.
const SPAN: u64 = 32 << 20;
/// Spans without any grain that are gone back over: 128 GiB. Behind a longer hole the tables are believed.
const BACK: u64 = 1 << 12;

impl Stream {
    /// `findings` are what its audit reports if it has no tables to do so.
    pub(super) fn new(
        file: &Bytes,
        tables: Option<Bytes>,
        packing: Packing,
        extent: Extent,
        memo: &Memo,
        findings: Vec<Finding>,
    ) -> Self {
        let Extent { parent, grain, disk, from, ends_with_grains } = extent;
        let scan = Scan { file: Bytes::clone(file), grain, disk, from, windows: memo.share() };
        Self { tables, parent, scan, packing, ends_with_grains, spans: memo.share(), findings }
    }

    fn start_of(&self, at: u64) -> u64 {
        at.saturating_sub(at.checked_rem(self.scan.grain).unwrap_or(0))
    }

    /// The rest of the grain at `at`, of up to `want` bytes.
    fn rest(&self, at: u64, want: u64) -> u64 {
        self.start_of(at).saturating_add(self.scan.grain).saturating_sub(at).min(want)
    }

    /// The run at `at` by the records alone.
    fn scanned(&self, at: u64, want: u64) -> Run<'_> {
        let start = self.start_of(at);
        let (before, behind) = self.scan.around(start);
        if let Some(record) = before.filter(|record| record.start == start) {
            let wanted = Wanted { start, grain: self.scan.grain, disk: self.scan.disk };
            let entry = (record.at, Trust::Inferred);
            return self.packing.run(&*self.scan.file, at, self.rest(at, want), record.at, entry, wanted);
        }
        let end = behind.map_or(self.scan.disk, |record| record.start);
        let len = end.saturating_sub(at).min(want).max(1);
        let from = before.map_or(self.scan.from, |record| record.end);
        let nothing = match (self.scan.follows(from), behind) {
            (Next::Record(next), Some(behind)) => next.at == behind.at,
            (Next::End, None) => true,
            (Next::Cut, None) => self.ends_with_grains,
            _ => false,
        };
        if nothing {
            return self.parent.show(at, len, Trust::Inferred);
        }
        let why = if behind.is_none() { Why::Truncated } else { Why::Unmapped };
        Run { len, place: Place::Lost(Loss { why, at: from }), trust: Trust::Inferred }
    }

    /// What the tables and the file say of one span.
    fn span(&self, tables: &dyn Layer, number: u64) -> Span {
        let block = self.spans.get(number, || {
            let span = self.look(tables, number);
            let mut bytes = vec![0; 24];
            LittleEndian::write_u64_into(&[span.first, span.next, span.clean.into()], &mut bytes);
            Block { bytes, ..Block::default() }
        });
        let mut fields = [0; 3];
        if let Some(bytes) = block.bytes.get(..24) {
            LittleEndian::read_u64_into(bytes, &mut fields);
        }
        let [first, next, clean] = fields;
        Span { first, next, clean: clean == 1 }
    }

    fn look(&self, tables: &dyn Layer, number: u64) -> Span {
        let mut at = number.saturating_mul(SPAN);
        let end = at.saturating_add(SPAN).min(self.scan.disk);
        let mut span = Span { clean: true, next: u64::MAX, ..Span::default() };
        let mut due: Option<Next> = None;
        while at < end {
            let run = tables.run(at, end.saturating_sub(at));
            if let Place::Coded(unit) = run.place {
                let follows = match due {
                    None => true,
                    Some(Next::Record(record)) => record.at == unit.packed_at,
                    Some(_) => false,
                };
                span.clean &= follows;
                span.first = if span.first == 0 { unit.packed_at } else { span.first };
                let mut head = [0; Record::HEAD];
                let record = read_exact(&*self.scan.file, unit.packed_at, &mut head).ok();
                let record = record
                    .and_then(|_| Record::recognise(unit.packed_at, &head, self.scan.grain, self.scan.disk))
                    .filter(|record| record.start == unit.start);
                due = Some(record.map_or(Next::Garbage, |record| self.scan.follows(record.end)));
            }
            at = at.saturating_add(run.len.max(1));
        }
        match due {
            Some(Next::Record(record)) => {
                span.next = record.start;
                // One of this span that no table names.
                span.clean &= record.start >= end;
            }
            Some(Next::Garbage) => span.clean = false,
            Some(Next::Cut) => span.clean &= self.ends_with_grains,
            Some(Next::End) | None => {}
        }
        span
    }

    /// What the stream starts with.
    fn head(&self) -> Before {
        match self.scan.follows(self.scan.from) {
            Next::Record(record) => Before::LeadsTo(record.start),
            Next::End => Before::LeadsTo(u64::MAX),
            Next::Cut if self.ends_with_grains => Before::LeadsTo(u64::MAX),
            Next::Cut | Next::Garbage => Before::Garbage,
        }
    }

    /// What the last record of the spans from `first` to before `number` leads to, if they have any.
    fn last_of(&self, tables: &dyn Layer, first: u64, number: u64) -> Option<Before> {
        let span = (first..number).rev().map(|number| self.span(tables, number)).find(|span| span.first != 0)?;
        Some(if span.clean { Before::LeadsTo(span.next) } else { Before::Garbage })
    }

    /// What the last record before span `number` leads to.
    fn before(&self, tables: &dyn Layer, number: u64) -> Before {
        /// Spans that are gone back over one by one; behind them, what was found is remembered.
        const NEAR: u64 = 256;
        const BEFORE: u64 = 1 << 63;
        let near = number.saturating_sub(number.checked_rem(NEAR).unwrap_or(0));
        if let Some(found) = self.last_of(tables, near, number) {
            return found;
        }
        let block = self.spans.get(BEFORE | near, || {
            let back = near.saturating_sub(BACK);
            let found = match self.last_of(tables, back, near) {
                Some(found) => found,
                None if back == 0 => self.head(),
                None => Before::Far,
            };
            Block { bytes: found.code().to_le_bytes().to_vec(), ..Block::default() }
        });
        Before::decode(block.bytes.get(..8).map_or(0, LittleEndian::read_u64))
    }

    /// How far from `at` on the file has nothing, where the tables say so; `None` where it may have something.
    fn confirmed(&self, tables: &dyn Layer, at: u64) -> Option<u64> {
        let number = at.checked_div(SPAN).unwrap_or(0);
        let span = self.span(tables, number);
        if !span.clean {
            return None;
        }
        let end = number.saturating_add(1).saturating_mul(SPAN);
        match self.before(tables, number) {
            Before::Far => Some(u64::MAX),
            Before::Garbage => None,
            Before::LeadsTo(start) if span.first == 0 => (start >= end).then(|| start.saturating_sub(at)),
            Before::LeadsTo(start) => self.starts(span.first, start).then(|| end.saturating_sub(at)),
        }
    }

    fn is_record(&self, at: u64) -> bool {
        let mut head = [0; Record::HEAD];
        read_exact(&*self.scan.file, at, &mut head).is_ok()
            && Record::recognise(at, &head, self.scan.grain, self.scan.disk).is_some()
    }

    /// Whether the record at `record` is the one whose grain starts at `start`.
    fn starts(&self, record: u64, start: u64) -> bool {
        let mut lba = [0; 8];
        read_exact(&*self.scan.file, record, &mut lba).is_ok()
            && LittleEndian::read_u64(&lba).checked_mul(512) == Some(start)
    }

    /// The run at `at` of a stream with tables.
    fn told<'a>(&'a self, tables: &'a dyn Layer, at: u64, want: u64) -> Run<'a> {
        let run = tables.run(at, want);
        match run.place {
            Place::Lost(Loss { why: why @ (Why::Unmapped | Why::Truncated | Why::Unreadable), at: cause }) => {
                let found = self.scanned(at, self.scan.disk.saturating_sub(at));
                let (len, end) = (found.len.min(run.len), at.saturating_add(found.len));
                // A file that ends with a grain may have been cut there: what it says lies behind is not nothing.
                let open_end = why == Why::Truncated && self.ends_with_grains && end >= self.scan.disk;
                match found.place {
                    Place::Coded(_) => Run { len, ..found },
                    // The table has a grain here, if it is the grain's record that is of another place.
                    place if is_absent(place) && !open_end && !self.is_record(cause) => Run { len, ..found },
                    _ => Run { len, ..run },
                }
            }
            place if !is_absent(place) || run.trust == Trust::Doubtful => run,
            _ => {
                if let Some(len) = self.confirmed(tables, at) {
                    return Run { len: run.len.min(len).max(1), ..run };
                }
                let found = self.scanned(at, run.len);
                match found.place {
                    Place::Coded(_) => Run { trust: Trust::Doubtful, ..found },
                    _ => Run { len: found.len.min(run.len), trust: Trust::Doubtful, ..run },
                }
            }
        }
    }
}

fn is_absent(place: Place<'_>) -> bool {
    matches!(place, Place::Hole | Place::Below { .. } | Place::Lost(Loss { why: Why::Absent, .. }))
}

/// What the records before a place lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// The record of the grain that starts there on the disk; `u64::MAX` for the end of the stream.
    LeadsTo(u64),
    /// Something that is neither a record nor a marker.
    Garbage,
    /// There are none near enough.
    Far,
}

impl Before {
    /// Grains start at sectors, so that odd numbers are free.
    fn code(self) -> u64 {
        match self {
            Self::LeadsTo(start) => start & !511,
            Self::Garbage => 1,
            Self::Far => 3,
        }
    }

    fn decode(code: u64) -> Self {
        match code {
            1 => Self::Garbage,
            3 => Self::Far,
            start if start == !511 => Self::LeadsTo(u64::MAX),
            start => Self::LeadsTo(start),
        }
    }
}

impl Layer for Stream {
    fn len(&self) -> u64 {
        self.scan.disk
    }

    fn about(&self) -> String {
        self.tables.as_ref().map_or_else(|| "VMDK stream without its directory".into(), |tables| tables.about())
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        match &self.tables {
            Some(tables) => self.told(&**tables, at, want),
            None => self.scanned(at, want),
        }
    }

    fn decode(&self, unit: &Unit<'_>, packed: &[u8], out: &mut [u8]) -> Result<Trust, Fault> {
        packed::decode(self.packing.markers, self.scan.grain, unit, packed, out)
    }

    fn parts(&self) -> u32 {
        self.tables.as_ref().map_or(1, |tables| tables.parts())
    }

    fn audit(&self, part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        if part == 0 {
            self.findings.iter().try_for_each(|finding| sink(Note::Finding(finding.clone())))?;
        }
        let Some(tables) = &self.tables else {
            return self.audit_records(0..self.scan.disk, sink);
        };
        tables.audit(part, &mut *sink)?;
        let each = self.scan.disk.div_ceil(self.parts().max(1).into());
        let start = each.saturating_mul(part.into()).min(self.scan.disk);
        self.audit_told(&**tables, start..start.saturating_add(each).min(self.scan.disk), sink)
    }
}

impl Stream {
    /// What the records alone give, in one finding, and claims of them.
    fn audit_records(&self, range: Range<u64>, sink: Sink<'_>) -> ControlFlow<()> {
        let (mut found, mut lost) = (0_u64, 0_u64);
        let mut at = range.start;
        while at < range.end {
            let run = self.run(at, range.end.saturating_sub(at));
            match run.place {
                Place::Coded(unit) => {
                    found = found.saturating_add(run.len);
                    let end = unit.packed_at.saturating_add(unit.packed_len.into()).min(self.scan.file.len());
                    let of = Use::Data(crate::tree::NodeId(0));
                    sink(Note::Claim { layer: &*self.scan.file, range: unit.packed_at..end, of })?;
                }
                Place::Lost(_) => lost = lost.saturating_add(run.len),
                _ => {}
            }
            at = at.saturating_add(run.len.max(1));
        }
        let text = format!("the directory is lost: {found} bytes were found by their records, {lost} were not");
        sink(Note::Finding(Finding::new("KDMV-RECORDS", range, Trust::Inferred, text)))
    }

    /// One finding for what the tables leave out.
    fn audit_told(&self, tables: &dyn Layer, range: Range<u64>, sink: Sink<'_>) -> ControlFlow<()> {
        let (mut found, mut doubtful) = (0_u64, 0_u64);
        let mut at = range.start;
        while at < range.end {
            let told = tables.run(at, range.end.saturating_sub(at));
            let run = self.run(at, told.len);
            match (told.place, run.place) {
                (Place::Coded(_), _) => {}
                (_, Place::Coded(_)) => found = found.saturating_add(run.len),
                _ if run.trust > told.trust => doubtful = doubtful.saturating_add(run.len),
                _ => {}
            }
            at = at.saturating_add(run.len.max(1));
        }
        if found == 0 && doubtful == 0 {
            return ControlFlow::Continue(());
        }
        let text = format!(
            "the file has {found} bytes of the disk that the tables leave out, and something that is no record where              {doubtful} more may be"
        );
        sink(Note::Finding(Finding::new("KDMV-RECORDS", range, Trust::Doubtful, text)))
    }
}

#[cfg(test)]
mod tests;
