//! Journals: what hosts were about to write.
//!
//! A host has one journal, which its heartbeat names: a file block on VMFS5, a resource of `.jbc.sf` on VMFS6. It
//! holds one transaction at a time, from its start on; what lies behind is left of longer ones before.
//!
//! | VMFS5 record | type | meaning | how sure |
//! | --- | --- | --- | --- |
//! | 0x00, 0x04, 0x08 | u32, u32, u64 | 1, a small number, 0 | real images |
//! | 0x10, 0x18 | u64 | target in the volume, length | real images |
//! | 0x20 | length | the bytes; the next record follows | real images |
//!
//! What stands before the first record is not known: the first sector is blank on all real images.
//!
//! | VMFS6 page of 4 KiB | type | meaning | how sure |
//! | --- | --- | --- | --- |
//! | 0x00, 0x04 | "TO6J", u16 | number of the page, 0xFFFF in a page never used | real images |
//! | 0x08 | u64 | a checksum, of a kind not known | real images |
//! | 0x18 | u64 | number of the transaction | real images |
//!
//! Positions in a VMFS6 journal count from its second page, heads of pages included.
//!
//! | VMFS6 transaction, behind the head of its first page | type | meaning | how sure |
//! | --- | --- | --- | --- |
//! | 0x00 | u64 | checksum of its last page | one real transaction |
//! | 0x10 | u32 | position of its end | one real transaction |
//! | 0x28 | u64 | its number | one real transaction |
//! | 0x30, 0x34 | u32 | positions of the first lock and of the first record | one real transaction |
//! | 0x38 | u16 | locks | one real transaction |
//!
//! A lock has 32 bytes: start, end, u8 0, u8 2, u16 number, u64 position of the lock sector, u64 its token while held.
//!
//! | VMFS6 record | type | meaning | how sure |
//! | --- | --- | --- | --- |
//! | 0x00, 0x04 | u32 | own position, that of the next or 0 | real images |
//! | 0x08, 0x09 | u8 | 4 an image, 5 patches; 1 | real images |
//! | 0x0C | u64 | target in the volume | real images |
//! | 0x14 | u32 | bytes of the image, or of the list of patches | real images |
//! | 0x22 | u16 | pieces of an image | real images |
//! | 0x28 | u32, u32 | position and length of each piece, then the bytes; or patches | real images |
//!
//! A patch is u32 offset in the target, u32 length, bytes. A list that runs on into the next page is not seen on a
//! real image; it is read as if the page's head were not there.
//!
//! # What of it was written home
//!
//! A host takes a lock, writes the journal, writes home, gives the lock back, and each of the two counts up the lock's
//! token. On all real images (the volumes were in use when they were copied) each transaction whose lock is known has
//! a token one below that at home, and every byte of it is at home or was changed since. So:
//!
//! - A byte that is home already, or that a later record of the journal has again, needs nothing.
//! - What a journal has of an older transaction than its newest was home before that one began.
//! - A lock whose token at home is greater: the transaction was home when the lock was given back.
//! - A lock whose token at home is less: the transaction is newer than home. It is laid over the volume, Inferred.
//! - A VMFS6 transaction that is complete (its head knows the checksum of its last page) and whose locks are all
//!   still held at home with its own tokens: it was committed and not written home. It is laid over, Inferred. No
//!   image of such a crash is known; this follows from the order above.
//! - A VMFS6 transaction whose head counts pages that were not written: it was not finished, and does not count.
//! - An older time or generation of a descriptor than at home: it was home.
//! - Anything else that differs from home, in the journal of a heartbeat in use: nobody can tell. It is not laid
//!   over, and the bytes that differ are Doubtful.

mod known;
mod parse;

pub use known::{Image, Name, images, names};

use self::parse::Parser;
use super::address::{Address, Spot};
use super::file::File;
use super::ground::Ground;
use super::heartbeat::Lock;
use super::volume::{Space, Volume};
use crate::adapt::{Copied, Patch, Window};
use crate::layer::{Bytes, Trust};
use crate::note::Finding;
use crate::num::{narrow, wide};
use crate::read::read_vec;
use byteorder::{ByteOrder, LittleEndian};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// Journals that are read: no cluster has more hosts on one volume.
const MOST: usize = 64;
/// Pieces of records of all journals together. The journal of a host holds some hundreds.
const PIECES: usize = 1 << 19;
/// Differences of one journal that are told byte by byte; behind them, one a record.
const FINE: usize = 1 << 12;
/// Bytes of one journal that are read; the largest file block.
const LONGEST: u64 = 8 << 20;
/// Findings of one volume's journals that are told one by one.
const TOLD: usize = 32;
/// Differences nearer than this are one.
const NEAR: u64 = 16;

/// What is known of whether a record is home.
///
/// Ordered: what is made of several records is no surer than the last of theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It is, or something newer is.
    Home,
    /// It is not: the volume is read with it.
    Newer,
    /// Nothing tells.
    Unsure,
    /// Its transaction was not finished, and does not count.
    Torn,
}

/// Bytes of a record, and where they belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where they belong in the volume.
    pub target: u64,
    /// How many.
    pub len: u64,
    /// Where they lie in the journal.
    pub at: u64,
}

/// A record of a journal.
#[derive(Clone, Debug)]
pub struct Record {
    /// Where it lies in the journal.
    pub at: u64,
    /// The transaction that it belongs to: its number on VMFS6, else the place of its first record.
    pub transaction: u64,
    /// Where it belongs in the volume.
    pub target: u64,
    /// Its bytes, in the order of the record. An image is one range of the volume, patches are several.
    pub pieces: Vec<Piece>,
    /// Whether it is home.
    pub standing: Standing,
}

/// The journal of one host.
#[derive(Clone, Debug)]
pub struct Journal {
    /// Slot of the heartbeat that names it. `None` if only the bitmap of journals has it as used.
    pub slot: Option<u64>,
    /// Where it starts in the volume.
    pub at: u64,
    /// Its bytes.
    pub bytes: Bytes,
    /// Ranges of it that could not be read.
    pub lost: Vec<Range<u64>>,
    /// It has more records than any volume's journals have: the rest was not looked at.
    pub cut: bool,
    /// Its records, the oldest first.
    pub records: Vec<Record>,
}

/// All journals of a volume, each once: of heartbeats in use, and on VMFS6 those that the bitmap of journals has as
/// used. Reads them; bounded by 64 journals of 8 MiB.
#[must_use]
pub fn journals(volume: &Volume) -> Vec<Journal> {
    let mut found: Vec<Journal> = Vec::new();
    let mut left = PIECES;
    let mut add = |found: &mut Vec<Journal>, slot, at, bytes| {
        found.push(Journal::load(volume, slot, at, bytes, &mut left));
    };
    for beat in volume.heartbeats.in_use().filter(|beat| beat.journal_at != 0) {
        // Two slots that name one journal are no two journals.
        if found.len() >= MOST || found.iter().any(|journal| journal.at == beat.journal_at) {
            continue;
        }
        if let Some(bytes) = layer(volume, beat.journal, beat.journal_at) {
            add(&mut found, Some(beat.slot), beat.journal_at, bytes);
        }
    }
    let Some(jbc) = &volume.jbc else { return found };
    for cluster in Ground::of(jbc, volume.lv()).clusters(jbc) {
        let Ok(state) = jbc.cluster(&volume.space, cluster) else { continue };
        for (resource, _) in (0..).zip(&state.free).filter(|(_, free)| !**free) {
            if found.len() >= MOST {
                return found;
            }
            let Some(body) = jbc.body(Spot { cluster, resource }) else { continue };
            let Some(at) = jbc.position(body) else { continue };
            if found.iter().all(|journal| journal.at != at) {
                let file: Bytes = Arc::<File>::clone(&jbc.file);
                add(&mut found, None, at, Arc::new(Window::new(file, body, jbc.size.min(LONGEST))));
            }
        }
    }
    found
}

/// How many hosts have the volume in use beyond those whose journals are read.
pub(super) fn left_out(volume: &Volume) -> usize {
    let named: BTreeSet<u64> = volume.heartbeats.in_use().map(|beat| beat.journal_at).filter(|at| *at != 0).collect();
    named.len().saturating_sub(MOST)
}

/// Where the journal of an address lies. What the address says counts if it agrees with the position, which alone
/// says nothing of a journal whose file is in pieces.
fn layer(volume: &Volume, journal: u32, at: u64) -> Option<Bytes> {
    let space = &volume.space;
    if let Some(jbc) = &volume.jbc {
        let journal = u64::from(journal);
        let spot = Spot { cluster: journal >> 3 & 0x1FFF, resource: journal >> 26 };
        if let Some(body) = jbc.body(spot).filter(|body| jbc.position(*body) == Some(at)) {
            let file: Bytes = Arc::<File>::clone(&jbc.file);
            return Some(Arc::new(Window::new(file, body, jbc.size.min(LONGEST))));
        }
    }
    let block = 1_u64.checked_shl(space.header.file_shift)?;
    let size = match space.header.width.decode(u64::from(journal)) {
        Address::File(_) if !space.header.is_six() => block,
        _ => volume.jbc.as_ref().map_or(2 << 20, |jbc| jbc.size),
    };
    // It is a file block, so that no two can overlap.
    (space.header.is_six() || at.is_multiple_of(block)).then_some(())?;
    let len = size.min(LONGEST).min(space.lv.len().checked_sub(at)?);
    let bytes: Bytes = Arc::new(Window::new(Bytes::clone(&space.lv), at, len));
    (len > 0).then_some(bytes)
}

fn number(bytes: &[u8], at: u64, len: usize) -> Option<u64> {
    let start = narrow(at);
    Some(LittleEndian::read_uint(bytes.get(start..start.checked_add(len)?)?, len))
}

/// A transaction, as far as it is there.
#[derive(Debug, Default)]
struct Transaction {
    records: Vec<Record>,
    /// Lock sectors that it held: where, and with which token.
    locks: Vec<(u64, u64)>,
    /// Its head vouches for its end.
    complete: bool,
    /// Pages that its head counts were never written.
    torn: bool,
    /// Nothing in the journal is newer.
    newest: bool,
}

/// A part of a record that no later one of its journal has again and that differs from home.
struct Difference {
    record: usize,
    target: u64,
    len: u64,
    at: u64,
}

impl Journal {
    /// Reads it. `left` is how many pieces all journals together may still have.
    fn load(volume: &Volume, slot: Option<u64>, at: u64, bytes: Bytes, left: &mut usize) -> Self {
        let space = &volume.space;
        let (data, seen) = read_vec(&*bytes, 0, narrow(bytes.len().min(LONGEST)));
        let lost = seen.gaps.iter().map(|gap| gap.range.clone()).collect();
        let mut parser = Parser::new(&data, seen, space.lv.len(), *left);
        let mut transactions = if space.header.is_six() { parser.six() } else { parser.five() };
        let cut = parser.cut;
        *left = parser.left;
        let differences = differences(space, &data, &transactions);
        judge(space, &data, &mut transactions, &differences);
        let records = transactions.into_iter().flat_map(|transaction| transaction.records).collect();
        Self { slot, at, bytes, lost, cut, records }
    }

    /// The bytes of a record whose pieces make one range of the volume.
    fn whole(data: &[u8], record: &Record) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for piece in &record.pieces {
            (piece.target == record.target.checked_add(wide(bytes.len()))?).then_some(())?;
            let start = narrow(piece.at);
            bytes.extend(data.get(start..start.checked_add(narrow(piece.len))?)?);
        }
        Some(bytes)
    }
}

/// What of a journal differs from home, each byte by the last record that has it.
fn differences(space: &Space, data: &[u8], transactions: &[Transaction]) -> Vec<Difference> {
    let mut painted: BTreeMap<u64, Difference> = BTreeMap::new();
    let records = transactions.iter().flat_map(|transaction| &transaction.records);
    for (record, Record { pieces, .. }) in (0..).zip(records) {
        for piece in pieces {
            paint(&mut painted, Difference { record, target: piece.target, len: piece.len, at: piece.at });
        }
    }
    let mut found = Vec::new();
    for part in painted.into_values() {
        let (home, seen) = read_vec(&*space.lv, part.target, narrow(part.len));
        let start = narrow(part.at);
        let new = data.get(start..start.saturating_add(home.len())).unwrap_or_default();
        let mut open: Option<Range<u64>> = None;
        let near = if found.len() < FINE { NEAR } else { u64::MAX };
        for (i, (new, old)) in (0..).zip(new.iter().zip(&home)) {
            if new == old
                && !seen.has_gap(&(part.target.saturating_add(i)..part.target.saturating_add(i).saturating_add(1)))
            {
                continue;
            }
            match &mut open {
                Some(range) if i <= range.end.saturating_add(near) => range.end = i.saturating_add(1),
                _ => found.extend(open.replace(i..i.saturating_add(1)).map(|range| cut(&part, &range))),
            }
        }
        found.extend(open.map(|range| cut(&part, &range)));
    }
    found
}

fn cut(part: &Difference, range: &Range<u64>) -> Difference {
    Difference {
        record: part.record,
        target: part.target.saturating_add(range.start),
        len: range.end.saturating_sub(range.start),
        at: part.at.saturating_add(range.start),
    }
}

/// Adds a part to a map of parts that lie apart; what it covers of others goes.
fn paint(map: &mut BTreeMap<u64, Difference>, new: Difference) {
    let end = new.target.saturating_add(new.len);
    let mut hit: Vec<u64> = map.range(new.target..end).map(|(at, _)| *at).collect();
    let before = map.range(..new.target).next_back();
    hit.extend(before.filter(|(_, old)| old.target.saturating_add(old.len) > new.target).map(|(at, _)| *at));
    for at in hit {
        let Some(old) = map.remove(&at) else { continue };
        let left = new.target.saturating_sub(old.target);
        let right = end.saturating_sub(old.target);
        if left > 0 {
            map.insert(old.target, cut(&old, &(0..left)));
        }
        if right < old.len {
            map.insert(end, cut(&old, &(right..old.len)));
        }
    }
    map.insert(new.target, new);
}

/// Says of each record whether it is home.
fn judge(space: &Space, data: &[u8], transactions: &mut [Transaction], differences: &[Difference]) {
    let mut differs = BTreeSet::new();
    differs.extend(differences.iter().map(|part| part.record));
    let mut number: usize = 0;
    for transaction in transactions {
        let mut locks = transaction.locks.clone();
        let images: Vec<_> = transaction.records.iter().map(|record| Journal::whole(data, record)).collect();
        for (record, image) in transaction.records.iter().zip(&images) {
            let lock = image.as_ref().and_then(|image| Lock::parse(image, record.target));
            locks.extend(lock.map(|lock| (lock.at, lock.token)));
        }
        locks.sort_unstable();
        locks.dedup();
        let Transaction { newest, complete, torn, .. } = *transaction;
        let by_all = if newest && !torn { by_locks(space, &locks, complete) } else { None };
        let of = |at: u64| {
            let start = locks.partition_point(|(lock, _)| *lock < at);
            let end = locks.partition_point(|(lock, _)| *lock <= at);
            locks.get(start..end).unwrap_or_default()
        };
        for (record, image) in transaction.records.iter_mut().zip(&images) {
            let own = record.target.checked_sub(space.header.md);
            record.standing = if torn {
                Standing::Torn
            } else if !newest || !differs.contains(&number) {
                Standing::Home
            } else {
                // The lock of the record itself says most, be it in the record or before it.
                let mut near = of(record.target).to_vec();
                near.extend(own.map(of).unwrap_or_default());
                let by_lock = by_locks(space, &near, complete)
                    .filter(|standing| *standing != Standing::Unsure)
                    .or(by_all)
                    .unwrap_or(Standing::Unsure);
                let older = || image.as_ref().is_some_and(|image| is_older(space, record.target, image));
                match by_lock {
                    Standing::Unsure if older() => Standing::Home,
                    standing => standing,
                }
            };
            number = number.saturating_add(1);
        }
    }
}

/// What the locks of a transaction say. `None` if none of them can be read at home.
fn by_locks(space: &Space, locks: &[(u64, u64)], complete: bool) -> Option<Standing> {
    let mut held = complete;
    let (mut any, mut home, mut newer) = (false, false, false);
    for (at, token) in locks {
        let Some(lock) = Lock::load(&*space.lv, *at) else {
            held = false;
            continue;
        };
        any = true;
        home |= lock.token > *token;
        newer |= lock.token < *token;
        held &= lock.token == *token && lock.mode != 0;
    }
    any.then_some(match (home, newer, held) {
        (true, false, _) => Standing::Home,
        (false, true, _) | (false, false, true) => Standing::Newer,
        _ => Standing::Unsure,
    })
}

/// Whether the image of a descriptor's metadata is older than home.
fn is_older(space: &Space, target: u64, image: &[u8]) -> bool {
    let (home, seen) = read_vec(&*space.lv, target, 0x40);
    let field = |bytes: &[u8], at| number(bytes, at, 4).unwrap_or_default();
    let same = seen.is_whole() && field(image, 0) & 7 == 4 && field(&home, 0) == field(image, 0);
    let latest = |bytes: &[u8]| [0x2C, 0x30, 0x34].map(|at| field(bytes, at)).into_iter().max();
    let generations = field(&home, 4).cmp(&field(image, 4));
    // A slot that is given away again has another generation: what is deleted now was not deleted before.
    let deleted = field(&home, 8) == 0 && field(image, 8) != 0;
    same && (generations.is_gt() || generations.is_eq() && (latest(&home) > latest(image) || deleted))
}

/// What the journals of heartbeats in use say of the volume.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// What was not written home.
    newer: Vec<Copied>,
    /// What nobody can tell of.
    unsure: Vec<Range<u64>>,
    /// Both, told: the first of them.
    pub findings: Vec<Finding>,
    /// What was not told one by one: how much, where the first is, and the worst of it.
    more: (usize, Range<u64>, Trust),
}

/// Reads the journals of heartbeats in use. Without such, nothing is read.
pub(super) fn replay(volume: &Volume) -> Replay {
    let mut replay = Replay::default();
    // A slot that can't be read may be in use: then the journals in use count that no other slot names.
    let lost_slots = !volume.heartbeats.bad.is_empty();
    if volume.heartbeats.in_use().next().is_none() && !lost_slots {
        return replay;
    }
    let mut painted: BTreeMap<u64, Difference> = BTreeMap::new();
    let space = &volume.space;
    if let Some(more) = Some(left_out(volume)).filter(|more| *more > 0) {
        let text =
            format!("{more} more hosts have the volume in use than any volume has: their journals were not read");
        replay.tell("VMFS-JOURNAL-CUT", space.physical(space.header.heartbeats().start), 0, Trust::Doubtful, text);
    }
    for journal in journals(volume).iter().filter(|journal| journal.slot.is_some() || lost_slots) {
        let name =
            journal.slot.map_or("a journal without heartbeat".into(), |slot| format!("the journal of slot {slot}"));
        for range in &journal.lost {
            let at = space.physical(journal.at.saturating_add(range.start));
            let len = range.end.saturating_sub(range.start);
            let text = format!("{len} bytes of {name} can't be read: what they say was not written home");
            let own = journal.at.saturating_add(range.start)..journal.at.saturating_add(range.end);
            // What is only elsewhere contradicts nothing; what is there may still be older than it.
            let gone = super::elsewhere(volume.lv(), own).is_some();
            let trust = if gone { Trust::Inferred } else { Trust::Doubtful };
            replay.tell("VMFS-JOURNAL-LOST", at, len, trust, text);
        }
        if journal.cut {
            let text = format!("{name} has more records than journals have: the rest was not looked at");
            replay.tell("VMFS-JOURNAL-CUT", space.physical(journal.at), 0, Trust::Doubtful, text);
        }
        let (data, _) = read_vec(&*journal.bytes, 0, narrow(journal.bytes.len().min(LONGEST)));
        let transaction = Transaction { records: journal.records.clone(), ..Transaction::default() };
        for part in differences(space, &data, &[transaction]) {
            let Some(record) = journal.records.get(part.record) else { continue };
            let range = part.target..part.target.saturating_add(part.len);
            let at = space.physical(part.target);
            let taken = painted
                .range(..range.end)
                .next_back()
                .is_some_and(|(_, end)| end.target.saturating_add(end.len) > range.start);
            match record.standing {
                Standing::Home | Standing::Torn => {}
                Standing::Newer if !taken => {
                    let text = format!(
                        "{} bytes at {:#x} are newer in {name}, at {:#x} of it, than where they belong: they are read from there",
                        part.len, part.target, part.at
                    );
                    replay.tell("VMFS-JOURNAL-REPLAY", at, part.len, Trust::Inferred, text);
                    replay.newer.push(Copied {
                        at: part.target,
                        len: part.len,
                        from: Bytes::clone(&journal.bytes),
                        offset: part.at,
                    });
                    painted.insert(part.target, part);
                }
                Standing::Newer | Standing::Unsure => {
                    let text = format!(
                        "{} bytes at {:#x} are others in {name}, at {:#x} of it; which are newer can't be told",
                        part.len, part.target, part.at
                    );
                    replay.tell("VMFS-JOURNAL-UNSURE", at, part.len, Trust::Doubtful, text);
                    replay.unsure.push(range);
                }
            }
        }
    }
    if replay.more.0 > 0 {
        let (more, range, worst) = std::mem::take(&mut replay.more);
        let text = format!("{more} more ranges differ between journals and where they belong");
        replay.findings.push(Finding::new("VMFS-JOURNAL-MORE", range, worst, text));
    }
    replay
}

impl Replay {
    fn tell(&mut self, code: &'static str, at: u64, len: u64, trust: Trust, text: String) {
        let range = at..at.saturating_add(len);
        if self.findings.len() < TOLD {
            return self.findings.push(Finding::new(code, range, trust, text));
        }
        let (more, first, worst) = &mut self.more;
        if *more == 0 {
            *first = range;
        }
        *more = more.saturating_add(1);
        *worst = trust.max(*worst);
    }

    /// The volume with what is newer over it, and with what is unsure as Doubtful. `None` if there is neither.
    pub(super) fn over(&self, lv: &Bytes) -> Option<Bytes> {
        let mut over = Bytes::clone(lv);
        if !self.newer.is_empty() {
            over = Arc::new(Patch::new(over, self.newer.clone(), Trust::Inferred)?);
        }
        let mut unsure = self.unsure.clone();
        unsure.sort_by_key(|range| (range.start, range.end));
        unsure.dedup_by(|next, range| {
            let touches = next.start <= range.end;
            if touches {
                range.end = range.end.max(next.end);
            }
            touches
        });
        if !unsure.is_empty() {
            let below = Bytes::clone(&over);
            let same = unsure.iter().map(|range| Copied {
                at: range.start,
                len: range.end.saturating_sub(range.start),
                from: Bytes::clone(&below),
                offset: range.start,
            });
            over = Arc::new(Patch::new(Bytes::clone(&below), same.collect(), Trust::Doubtful)?);
        }
        (!self.newer.is_empty() || !unsure.is_empty()).then_some(over)
    }
}
