//! The log: \[MS-VHDX\] 2.3. What is in it is newer than the file.

use super::header::is_valid;
use crate::adapt::{Blank, Copied};
use crate::error::Error;
use crate::layer::{Bytes, Layer};
use crate::num::{narrow, wide};
use crate::read::read_vec;
use crate::record::Record;
use binrw::BinRead;
use byteorder::{ByteOrder, LittleEndian};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// What everything in a log is a multiple of.
const SECTOR: usize = 4096;
/// Logs of real images have 1 MiB.
const MAX_LOG: u64 = 64 << 20;
/// Times the length of the log that entries together may have: a stale one may be overwritten in part, so that they
/// overlap, but what overlaps more than this is made to cost time.
const MAX_WORK: u64 = 16;
/// Entries that are tried as the last one.
const MAX_TRIES: usize = 64;

#[derive(BinRead, Clone, Copy, Debug)]
#[br(little)]
struct RawEntry {
    mark: [u8; 4],
    #[br(pad_before = 4)]
    length: u32,
    tail: u32,
    sequence: u64,
    descriptors: u32,
    #[br(pad_before = 4)]
    id: [u8; 16],
    flushed: u64,
    last: u64,
}

impl Record for RawEntry {
    const SIZE: usize = 64;
    const NAME: &'static str = "VHDX log entry";
}

/// What replaying the log changes.
#[derive(Debug)]
pub(super) struct Replay {
    /// Entries that were replayed.
    pub entries: u64,
    /// Bytes that the file had at least.
    pub flushed: u64,
    /// Bytes that the file has to have.
    pub last: u64,
    /// New bytes, which `pieces` point into.
    pub bytes: Vec<u8>,
    /// Where in the file, up to where, and from where in `bytes`; zeros where that is `None`.
    pub pieces: BTreeMap<u64, (u64, Option<u64>)>,
}

/// A whole entry.
struct Entry {
    raw: RawEntry,
    bytes: Vec<u8>,
}

/// Reads the active sequence of the log that `id` names, or says what is wrong with it.
pub(super) fn load(layer: &dyn Layer, range: &Range<u64>, id: &[u8; 16]) -> Result<Replay, String> {
    let len = range.end.saturating_sub(range.start);
    if len > MAX_LOG || len == 0 || len.checked_rem(wide(SECTOR)) != Some(0) {
        return Err(format!("a log of {len} bytes"));
    }
    // What can't be read reads as zeros: no entry with such bytes matches its checksum.
    let (log, _) = read_vec(layer, range.start, narrow(len));
    let ring = Ring { log: &log };
    let mut entries: BTreeMap<usize, Entry> = BTreeMap::new();
    let mut work: u64 = 0;
    for at in (0..log.len()).step_by(SECTOR) {
        let Some(raw) = ring.head(at, id) else { continue };
        work = work.saturating_add(raw.length.into());
        if work > len.saturating_mul(MAX_WORK) {
            return Err("its entries overlap".into());
        }
        entries.extend(ring.entry(at, raw).map(|entry| (at, entry)));
    }
    let mut heads: Vec<(u64, usize)> = entries.iter().map(|(at, entry)| (entry.raw.sequence, *at)).collect();
    heads.sort_unstable();
    let active = heads.iter().rev().take(MAX_TRIES).find_map(|(_, at)| sequence(&entries, *at, log.len()));
    let active = active.ok_or("no sequence of its entries is whole")?;
    let mut replay =
        Replay { entries: wide(active.len()), flushed: 0, last: 0, bytes: Vec::new(), pieces: BTreeMap::new() };
    for entry in active {
        replay.flushed = replay.flushed.max(entry.raw.flushed);
        replay.last = entry.raw.last;
        replay.apply(entry).map_err(|error| error.to_string())?;
    }
    Ok(replay)
}

/// The entries from the one that `head` calls the tail up to `head`, if their numbers follow each other.
fn sequence(entries: &BTreeMap<usize, Entry>, head: usize, len: usize) -> Option<Vec<&Entry>> {
    let mut at = narrow(entries.get(&head)?.raw.tail.into());
    let mut found: Vec<&Entry> = Vec::new();
    while found.len() < entries.len() {
        let entry = entries.get(&at)?;
        let follows = found.last().is_none_or(|last| last.raw.sequence.checked_add(1) == Some(entry.raw.sequence));
        if !follows {
            return None;
        }
        found.push(entry);
        if at == head {
            return Some(found);
        }
        at = at.checked_add(narrow(entry.raw.length.into()))?.checked_rem(len)?;
    }
    None
}

/// A log whose entries may go on at its start.
struct Ring<'a> {
    log: &'a [u8],
}

impl Ring<'_> {
    fn bytes(&self, at: usize, len: usize) -> Option<Vec<u8>> {
        if len > self.log.len() {
            return None;
        }
        let first = self.log.get(at..)?;
        let first = first.get(..len).unwrap_or(first);
        let rest = self.log.get(..len.saturating_sub(first.len()))?;
        Some([first, rest].concat())
    }

    /// The head of an entry at `at`, if it may be one of this log.
    fn head(&self, at: usize, id: &[u8; 16]) -> Option<RawEntry> {
        let raw = RawEntry::parse(self.log.get(at..)?, 0).ok()?;
        let len = narrow(raw.length.into());
        let is_entry = raw.mark == *b"loge" && raw.id == *id && raw.sequence > 0;
        let fits = len >= SECTOR && len <= self.log.len() && len.is_multiple_of(SECTOR);
        (is_entry && fits && raw.tail.is_multiple_of(4096)).then_some(raw)
    }

    fn entry(&self, at: usize, raw: RawEntry) -> Option<Entry> {
        let bytes = self.bytes(at, narrow(raw.length.into()))?;
        is_valid(&bytes).then_some(Entry { raw, bytes })
    }
}

impl Replay {
    fn apply(&mut self, entry: &Entry) -> Result<(), Error> {
        let bad = |found: &str| Error::corrupt("VHDX log entry", 0, format!("{}: {found}", entry.raw.sequence));
        let count = narrow(entry.raw.descriptors.into());
        let heads = count.checked_mul(32).and_then(|len| len.checked_add(RawEntry::SIZE)).ok_or_else(|| bad("size"))?;
        let descriptors = entry.bytes.get(RawEntry::SIZE..heads).ok_or_else(|| bad("its descriptors do not fit"))?;
        // Data sectors begin behind the sectors that have descriptors.
        let sectors = entry.bytes.get(heads.next_multiple_of(SECTOR)..).unwrap_or_default();
        let mut sectors = sectors.chunks_exact(SECTOR);
        for descriptor in descriptors.chunks_exact(32) {
            let (mark, middle) = descriptor.split_at(4);
            let word = |at: usize| descriptor.get(at..).map_or(0, LittleEndian::read_u64);
            if word(24) != entry.raw.sequence {
                return Err(bad("a descriptor of another entry"));
            }
            let at = word(16);
            match mark {
                b"zero" => self.write(at, word(8), None),
                b"desc" => {
                    let sector = sectors.next().ok_or_else(|| bad("its data does not fit"))?;
                    let number = |at: usize| sector.get(at..).map_or(0, LittleEndian::read_u32);
                    let (high, low) = (u64::from(number(4)), u64::from(number(SECTOR.saturating_sub(4))));
                    if !sector.starts_with(b"data") || high << 32 | low != entry.raw.sequence {
                        return Err(bad("a data sector of another entry"));
                    }
                    let from = wide(self.bytes.len());
                    // The descriptor keeps the bytes in whose place the sector has its mark and its number.
                    self.bytes.extend(descriptor.get(8..16).unwrap_or_default());
                    self.bytes.extend(sector.get(8..SECTOR.saturating_sub(4)).unwrap_or_default());
                    self.bytes.extend(middle.get(..4).unwrap_or_default());
                    self.write(at, wide(SECTOR), Some(from));
                }
                _ => return Err(bad("a descriptor of no known kind")),
            }
        }
        Ok(())
    }

    /// Puts `len` bytes at `at` over what was there.
    fn write(&mut self, at: u64, len: u64, from: Option<u64>) {
        let end = at.saturating_add(len);
        if at >= end {
            return;
        }
        let moved = |from: Option<u64>, by: u64| from.map(|from| from.saturating_add(by));
        if let Some((start, (old_end, old))) = self.pieces.range(..at).next_back().map(|(start, old)| (*start, *old))
            && old_end > at
        {
            self.pieces.insert(start, (at, old));
            if old_end > end {
                self.pieces.insert(end, (old_end, moved(old, end.saturating_sub(start))));
            }
        }
        let covered: Vec<u64> = self.pieces.range(at..end).map(|(start, _)| *start).collect();
        for start in covered {
            if let Some((old_end, old)) = self.pieces.remove(&start).filter(|(old_end, _)| *old_end > end) {
                self.pieces.insert(end, (old_end, moved(old, end.saturating_sub(start))));
            }
        }
        self.pieces.insert(at, (end, from));
    }
}

/// The pieces that lie in a file of `len` bytes, as copies out of `memory`.
pub(super) fn copies(pieces: &BTreeMap<u64, (u64, Option<u64>)>, memory: &Bytes, len: u64) -> Vec<Copied> {
    let zeros: Bytes = Arc::new(Blank::zero(u64::MAX));
    let inside = pieces.iter().filter(|(at, _)| **at < len);
    let copy = |(at, (end, from)): (&u64, &(u64, Option<u64>))| Copied {
        at: *at,
        len: (*end).min(len).saturating_sub(*at),
        from: if from.is_some() { memory.clone() } else { zeros.clone() },
        offset: from.unwrap_or(0),
    };
    inside.map(copy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_size_of_the_specification() {
        assert_eq!(RawEntry::SIZE, 64);
        assert!(RawEntry::parse(&[0; 64], 0).is_ok() && RawEntry::parse(&[0; 63], 0).is_err());
    }

    #[test]
    fn later_writes_cover_earlier_ones() {
        let mut replay = Replay { entries: 0, flushed: 0, last: 0, bytes: Vec::new(), pieces: BTreeMap::new() };
        replay.write(0, 100, Some(0));
        replay.write(200, 50, Some(100));
        replay.write(40, 20, None);
        replay.write(90, 120, Some(1000));
        let pieces: Vec<_> = replay.pieces.iter().map(|(at, (end, from))| (*at, *end, *from)).collect();
        assert_eq!(
            pieces,
            [(0, 40, Some(0)), (40, 60, None), (60, 90, Some(60)), (90, 210, Some(1000)), (210, 250, Some(110)),]
        );
        replay.write(0, 300, None);
        assert_eq!(replay.pieces.len(), 1);
    }
}
