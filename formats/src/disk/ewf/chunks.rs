//! The disk of an image, chunk by chunk.

use super::sections::{Copy, Image, Table};
use crate::audit::{Codes, audit_runs, claim};
use crate::codec::{Cut, inflate_zlib};
use crate::entries::Entries;
use crate::layer::{Fault, Layer, Loss, MAX_UNIT, Place, Run, Trust, Unit, Why};
use crate::memo::{Block, Memo};
use crate::note::{Finding, Note, Sink, Use};
use crate::num::{narrow, wide};
use crate::read::read_vec;
use byteorder::{ByteOrder, LittleEndian};
use libdeflater::adler32;
use std::fmt;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// An image as a layer.
pub(super) struct Ewf {
    pub file: Entries,
    pub image: Arc<Image>,
    /// Places of chunks, by the number of their table. Nothing else may use it.
    pub tables: Memo,
    /// Unpacked chunks. Nothing else may use it.
    pub units: Memo,
    /// At best.
    pub trust: Trust,
}

impl fmt::Debug for Ewf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ewf({} bytes, {} tables)", self.image.volume.len(), self.image.tables.len())
    }
}

/// Marks a chunk that is not packed, in a place of 8 bytes.
const PLAIN: u64 = 1 << 63;
const PACKED_BIT: u32 = 1 << 31;

/// Where a chunk lies.
struct Chunk {
    at: u64,
    len: u64,
    is_plain: bool,
    trust: Trust,
}

/// A copy of a table, and what is known of it.
struct Loaded {
    entries: Vec<u32>,
    base: u64,
    valid: bool,
}

impl Ewf {
    fn file(&self) -> &dyn Layer {
        &**self.file.layer()
    }

    fn chunk_len(&self) -> u64 {
        u64::from(self.image.volume.chunk_len).max(1)
    }

    /// Where a chunk starts on the disk.
    fn start(&self, chunk: u64) -> u64 {
        chunk.saturating_mul(self.chunk_len())
    }

    fn number(&self, at: u64) -> u64 {
        at.checked_div(self.chunk_len()).unwrap_or(0)
    }

    /// The table of a chunk.
    fn table(&self, chunk: u64) -> Option<(usize, &Table)> {
        let behind = self.image.tables.partition_point(|table| table.first <= chunk);
        let number = behind.checked_sub(1)?;
        let table = self.image.tables.get(number)?;
        (chunk < table.first.saturating_add(table.count.into())).then_some((number, table))
    }

    fn load(&self, table: &Table, copy: &Copy) -> Option<Loaded> {
        let len = narrow(u64::from(table.count).saturating_mul(4));
        let (bytes, seen) = read_vec(self.file(), copy.at, len.saturating_add(4));
        let (entries, sum) = bytes.split_at(len);
        let good = seen.gaps.first().map_or(wide(bytes.len()), |gap| gap.range.start.saturating_sub(copy.at));
        if good < wide(len) {
            return None;
        }
        let valid = !copy.summed || adler32(entries) == LittleEndian::read_u32(sum);
        let entries = entries.chunks_exact(4).map(LittleEndian::read_u32).collect();
        Some(Loaded { entries, base: copy.base, valid })
    }

    /// The places of a table's chunks, 8 bytes each, with the end of the last one.
    fn places(&self, number: usize, table: &Table) -> Arc<Block> {
        self.tables.get(wide(number), || {
            let copies: Vec<Loaded> = table.copies.iter().filter_map(|copy| self.load(table, copy)).collect();
            let differ = match copies.as_slice() {
                [a, b] => a.valid && b.valid && (&a.entries, a.base) != (&b.entries, b.base),
                _ => false,
            };
            let chosen = copies.iter().position(|copy| copy.valid);
            let trust = match chosen {
                _ if differ => Trust::Doubtful,
                Some(0) if copies.len() == table.copies.len() => Trust::Sound,
                Some(_) => Trust::Inferred,
                None => Trust::Doubtful,
            };
            let Some(chosen) = copies.get(chosen.unwrap_or(0)) else { return Block::default() };
            let mut places = Vec::with_capacity(chosen.entries.len().saturating_mul(8));
            let mut past = false;
            for (i, entry) in chosen.entries.iter().enumerate() {
                // EnCase 6 goes on above 2 GiB without the bit for packed chunks.
                let (offset, is_plain) =
                    if past { (*entry, true) } else { (entry & !PACKED_BIT, entry & PACKED_BIT == 0) };
                let next = chosen.entries.get(i.saturating_add(1));
                past = past || next.is_some_and(|next| next & !PACKED_BIT < offset && *next >= PACKED_BIT);
                let place = chosen.base.saturating_add(offset.into()).min(PLAIN.saturating_sub(1));
                places.extend((place | if is_plain { PLAIN } else { 0 }).to_le_bytes());
            }
            places.extend(table.end.to_le_bytes());
            Block { bytes: places, fault: None, trust }
        })
    }

    fn chunk(&self, chunk: u64) -> Result<Chunk, Loss> {
        let (number, table) = self.table(chunk).ok_or(Loss { why: self.image.why, at: self.file().len() })?;
        let places = self.places(number, table);
        let at = narrow(chunk.saturating_sub(table.first).saturating_mul(8));
        let entry_at = table.copies.first().map_or(0, |copy| copy.at).saturating_add(wide(at) >> 1);
        let lost = || Loss { why: Why::Unmapped, at: entry_at };
        let word = |at: usize| places.bytes.get(at..at.saturating_add(8)).map(LittleEndian::read_u64);
        let (place, next) = word(at).zip(word(at.saturating_add(8))).ok_or_else(lost)?;
        let (start, end) = (place & !PLAIN, next & !PLAIN);
        let len = end.checked_sub(start).filter(|len| *len > 0).ok_or_else(lost)?;
        // Packed bytes may exceed the chunk, but not by much.
        if start == 0 || len > self.chunk_len().saturating_mul(2).saturating_add(4096) {
            return Err(lost());
        }
        Ok(Chunk { at: start, len, is_plain: place & PLAIN != 0, trust: places.trust.max(table.trust) })
    }

    /// The part of a run that the imager could read, or not.
    fn readable(&self, at: u64, want: u64) -> Result<u64, u64> {
        let next = self.image.errors.partition_point(|range| range.end <= at);
        match self.image.errors.get(next) {
            Some(range) if range.start <= at => Err(want.min(range.end.saturating_sub(at))),
            Some(range) => Ok(want.min(range.start.saturating_sub(at))),
            None => Ok(want),
        }
    }
}

impl Layer for Ewf {
    fn len(&self) -> u64 {
        self.image.volume.len()
    }

    fn about(&self) -> String {
        "EWF disk".into()
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let want = match self.readable(at, want) {
            Ok(want) => want,
            Err(len) => return Run::lost(len, Why::Unreadable, at),
        };
        let number = self.number(at);
        let start = self.start(number);
        let unit_len = self.len().saturating_sub(start).min(self.chunk_len());
        let len = start.saturating_add(unit_len).saturating_sub(at).min(want);
        let chunk = match self.chunk(number) {
            Ok(chunk) => chunk,
            Err(_) if self.table(number).is_none() => {
                // Up to the next table there is nothing.
                let next = self.image.tables.partition_point(|table| table.first <= number);
                let end = self.image.tables.get(next).map_or(self.len(), |table| self.start(table.first));
                return Run::lost(end.saturating_sub(at).clamp(1, want), self.image.why, self.file().len());
            }
            Err(loss) => return Run::lost(len, loss.why, loss.at),
        };
        let inside = self.file().len().saturating_sub(chunk.at).min(chunk.len);
        if inside == 0 {
            return Run::lost(len, Why::Truncated, chunk.at);
        }
        let unit = Unit {
            from: self.file(),
            packed_at: chunk.at,
            packed_len: u32::try_from(inside).unwrap_or(MAX_UNIT).min(MAX_UNIT),
            start,
            len: u32::try_from(unit_len).unwrap_or(MAX_UNIT),
            memo: &self.units,
        };
        Run { len, place: Place::Coded(unit), trust: self.trust.max(chunk.trust) }
    }

    fn decode(&self, unit: &Unit<'_>, packed: &[u8], out: &mut [u8]) -> Result<Trust, Fault> {
        let fault = |good: usize| Fault::after(good, Why::Undecodable, unit.packed_at);
        let chunk = self.chunk(self.number(unit.start)).map_err(|loss| Fault::all(loss.why, loss.at))?;
        let whole = narrow(self.chunk_len());
        if chunk.is_plain {
            return plain(packed, out, whole).map_err(|Cut(good)| fault(good));
        }
        let decoded = inflate_zlib(packed, out);
        if decoded == Ok(Trust::Sound) || out.len() >= whole {
            return decoded.map_err(|Cut(good)| fault(good));
        }
        // Some imagers pack whole chunks only: the last one goes on behind the end of the disk.
        let mut bytes = vec![0; whole];
        let (good, trust) = match inflate_zlib(packed, &mut bytes) {
            Ok(trust) => (out.len(), trust),
            Err(Cut(good)) => (good.min(out.len()), Trust::Doubtful),
        };
        if let (Some(to), Some(from)) = (out.get_mut(..good), bytes.get(..good)) {
            to.copy_from_slice(from);
        }
        if good < out.len() { Err(fault(good)) } else { Ok(trust) }
    }

    fn parts(&self) -> u32 {
        u32::try_from(self.image.tables.len()).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// The first part is about all sections, the others each about a table.
    fn audit(&self, part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        let Some(number) = narrow(part.into()).checked_sub(1) else {
            for Range { start, end } in &self.image.areas {
                claim(self.file(), *start, end.saturating_sub(*start), Use::Metadata, &mut *sink)?;
            }
            let first = self.image.tables.first().map_or(self.len(), |table| self.start(table.first)).min(self.len());
            return audit_runs(self, 0..first, None, CODES, sink);
        };
        let Some(table) = self.image.tables.get(number) else { return ControlFlow::Continue(()) };
        let trust = self.places(number, table).trust;
        if trust > Trust::Sound {
            let at = table.copies.first().map_or(0, |copy| copy.at);
            let range = at..at.saturating_add(u64::from(table.count).saturating_mul(4));
            let text = "a table or its copy is damaged, or both differ";
            sink(Note::Finding(Finding::new("EWF-TABLE", range, trust, text)))?;
        }
        let end = self.image.tables.get(number.saturating_add(1)).map_or(self.len(), |next| self.start(next.first));
        audit_runs(self, self.start(table.first).min(self.len())..end.min(self.len()), None, CODES, sink)
    }
}

const CODES: Codes = Codes { range: "EWF-CHUNK-RANGE", entry: "EWF-CHUNK-ENTRY" };

/// A plain chunk, with its checksum behind it. The last one of a disk may be short, or not.
fn plain(packed: &[u8], out: &mut [u8], whole: usize) -> Result<Trust, Cut> {
    let len = if packed.len() >= whole.saturating_add(4) { whole } else { packed.len().min(out.len()) };
    let have = packed.get(..len.min(out.len())).unwrap_or_default();
    if let Some(to) = out.get_mut(..have.len()) {
        to.copy_from_slice(have);
    }
    if have.len() < out.len() {
        return Err(Cut(have.len()));
    }
    let sum = packed.get(len..).filter(|sum| sum.len() >= 4).map(LittleEndian::read_u32);
    let valid = sum == packed.get(..len).map(adler32);
    Ok(if valid { Trust::Sound } else { Trust::Doubtful })
}
