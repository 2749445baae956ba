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
//! | VMFS6 transaction, at position 0x20 | type | meaning | how sure |
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
//! - An older time or generation of a descriptor than at home: it was home.
//! - Anything else that differs from home, in the journal of a heartbeat in use: nobody can tell. It is not laid
//!   over, and the bytes that differ are Doubtful.

use super::address::{Address, FdAddress, Spot};
use super::descriptor::{Descriptor, MAGIC, Type};
use super::file::File;
use super::hash;
use super::heartbeat::Lock;
use super::volume::{Space, Volume};
use crate::adapt::{Copied, Memory, Patch, Window};
use crate::layer::{Bytes, Trust};
use crate::note::Finding;
use crate::num::{narrow, wide};
use crate::read::{Seen, read_vec};
use byteorder::{ByteOrder, LittleEndian};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Journals that are read: no cluster has more hosts on one volume.
const MOST: usize = 64;
/// Bytes of one journal that are read; the largest file block.
const LONGEST: u64 = 8 << 20;
/// Bytes of a page of VMFS6, and of its head.
const PAGE: u64 = 4096;
const PAGE_HEAD: u64 = 32;
/// Where positions start to count.
const FIRST: u64 = PAGE;
/// Bytes of the head of a record.
const HEAD5: u64 = 32;
const HEAD6: u64 = 0x28;
/// Bytes of a lock in a transaction's head.
const LOCK: u64 = 32;
/// Findings of one volume's journals that are told one by one.
const TOLD: usize = 32;
/// Differences nearer than this are one.
const NEAR: u64 = 16;

/// What is known of whether a record is home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is, or something newer is.
    Home,
    /// It is not: the volume is read with it.
    Newer,
    /// Nothing tells.
    Unsure,
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
    /// Its records, the oldest first.
    pub records: Vec<Record>,
}

/// A descriptor that a journal has.
#[derive(Clone, Debug)]
pub struct Image {
    /// The descriptor, as the journal has it. Its `at` is where it belongs in the volume.
    pub descriptor: Descriptor,
    /// Whether it is home.
    pub standing: Standing,
    /// Which journal, by its place in the volume.
    pub journal: u64,
    /// Where in that journal.
    pub at: u64,
    bytes: Arc<[u8]>,
}

/// An entry of a folder that a journal has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Name.
    pub name: Vec<u8>,
    /// Type, as on disk.
    pub kind: u32,
    /// Descriptor.
    pub address: FdAddress,
    /// Generation of the descriptor when the entry was made.
    pub generation: u32,
    /// Where the entry belongs in the volume.
    pub target: u64,
    /// Whether the record that has it is home.
    pub standing: Standing,
}

/// All journals of a volume: of heartbeats in use, and on VMFS6 those that the bitmap of journals has as used. Reads
/// them; bounded by 64 journals of 8 MiB.
#[must_use]
pub fn journals(volume: &Volume) -> Vec<Journal> {
    let mut found = Vec::new();
    let in_use = volume.heartbeats.in_use().filter(|beat| beat.journal_at != 0);
    for beat in in_use.take(MOST) {
        if let Some(bytes) = layer(volume, beat.journal, beat.journal_at) {
            found.push(Journal::load(volume, Some(beat.slot), beat.journal_at, bytes));
        }
    }
    let Some(jbc) = &volume.jbc else { return found };
    for cluster in 0..jbc.clusters() {
        let Ok(state) = jbc.cluster(&volume.space, cluster) else { continue };
        for (resource, _) in (0..).zip(&state.free).filter(|(_, free)| !**free) {
            if found.len() >= MOST {
                return found;
            }
            let Some(body) = jbc.body(Spot { cluster, resource }) else { continue };
            let Some(at) = jbc.position(body) else { continue };
            if found.iter().all(|journal| journal.at != at) {
                let file: Bytes = Arc::<File>::clone(&jbc.file);
                let bytes: Bytes = Arc::new(Window::new(file, body, jbc.size.min(LONGEST)));
                found.push(Journal::load(volume, None, at, bytes));
            }
        }
    }
    found
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
    let size = match space.header.width.decode(u64::from(journal)) {
        Address::File(_) if !space.header.is_six() => 1_u64.checked_shl(space.header.file_shift)?,
        _ => volume.jbc.as_ref().map_or(2 << 20, |jbc| jbc.size),
    };
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
    /// Nothing in the journal is newer.
    newest: bool,
}

/// The bytes of a journal with what is needed to read them.
struct Parser<'a> {
    bytes: &'a [u8],
    seen: Seen,
    volume: u64,
    /// The transaction of each page of VMFS6.
    pages: Vec<Option<u64>>,
}

impl Parser<'_> {
    fn number(&self, at: u64, len: usize) -> Option<u64> {
        number(self.bytes, at, len)
    }

    fn is_lost(&self, range: &Range<u64>) -> bool {
        self.seen.gaps.iter().any(|gap| gap.range.start < range.end && range.start < gap.range.end)
    }

    // VMFS5

    fn five(&self) -> Vec<Transaction> {
        let mut found: Vec<Transaction> = Vec::new();
        let mut at = 0;
        let mut end = None;
        while at < wide(self.bytes.len()) {
            let Some(record) = self.record5(at) else {
                at = at.saturating_add(16);
                continue;
            };
            let next = record.pieces.iter().fold(at, |_, piece| piece.at.saturating_add(piece.len));
            if end != Some(at) {
                // What lies behind a break was not overwritten yet by what lies before it. A break that is a bad
                // sector tells nothing.
                let newest = found.is_empty() || !self.seen.is_whole();
                found.push(Transaction { newest, ..Transaction::default() });
            }
            let first = found.last().and_then(|open| open.records.first()).map_or(at, |first| first.at);
            if let Some(open) = found.last_mut() {
                open.records.push(Record { transaction: first, ..record });
            }
            end = Some(next);
            at = next;
        }
        found.reverse();
        found
    }

    fn record5(&self, at: u64) -> Option<Record> {
        let head = self.number(at, 4)? == 1 && self.number(at.checked_add(4)?, 4)? < 64;
        let target = self.number(at.checked_add(0x10)?, 8)?;
        let len = self.number(at.checked_add(0x18)?, 8)?;
        let start = at.checked_add(HEAD5)?;
        let end = start.checked_add(len)?;
        let fits = (512..=1 << 20).contains(&len) && end <= wide(self.bytes.len());
        let aligned = target != 0 && (target | len).trailing_zeros() >= 9 && target.checked_add(len)? <= self.volume;
        let good = head && self.number(at.checked_add(8)?, 8)? == 0 && fits && aligned && !self.is_lost(&(at..end));
        let pieces = vec![Piece { target, len, at: start }];
        good.then_some(Record { at, transaction: at, target, pieces, standing: Standing::Unsure })
    }

    // VMFS6

    fn six(&mut self) -> Vec<Transaction> {
        let count = wide(self.bytes.len()).checked_div(PAGE).unwrap_or(0);
        self.pages = (0..count).map(|page| self.page(page)).collect();
        let mut found: BTreeMap<u64, Transaction> = BTreeMap::new();
        let mut head = None;
        let mut chain: Vec<(u64, u64)> = Vec::new();
        let mut at = FIRST.saturating_add(PAGE_HEAD);
        while at < wide(self.bytes.len()) {
            let page = at.checked_div(PAGE).unwrap_or(0);
            let start = page.saturating_mul(PAGE);
            let Some(number) = self.pages.get(narrow(page)).copied().flatten() else {
                at = start.saturating_add(PAGE);
                continue;
            };
            at = at.max(start.saturating_add(PAGE_HEAD));
            if at == FIRST.saturating_add(PAGE_HEAD)
                && let Some(found) = self.head(at, number)
            {
                at = found.first;
                head = Some((number, found));
                continue;
            }
            let Some((record, next)) = self.record6(at, number) else {
                at = at.saturating_add(8);
                continue;
            };
            chain.push((at, next.unwrap_or(0)));
            at = next.filter(|next| *next > at).unwrap_or(record.pieces.iter().fold(at, |_, piece| {
                // The last record does not know where it ends.
                piece.at.saturating_add(piece.len).saturating_add(7) & !7
            }));
            found.entry(number).or_default().records.push(record);
        }
        if let Some((number, head)) = head {
            let linked = chain.first().is_some_and(|(first, _)| *first == head.first)
                && chain
                    .windows(2)
                    .take_while(|pair| matches!(pair, [(_, next), _] if *next != 0))
                    .all(|pair| matches!(pair, [(_, next), (at, _)] if next == at))
                && chain.iter().any(|(_, next)| *next == 0);
            let open = found.entry(number).or_default();
            open.complete = head.complete && linked;
            open.locks = head.locks;
        }
        if let Some(mut last) = found.last_entry() {
            last.get_mut().newest = true;
        }
        found.into_values().collect()
    }

    /// The transaction that a page belongs to.
    fn page(&self, page: u64) -> Option<u64> {
        let at = page.checked_mul(PAGE)?;
        let good = self.bytes.get(narrow(at)..)?.starts_with(b"TO6J")
            && self.number(at.checked_add(4)?, 2)? == page
            && !self.is_lost(&(at..at.checked_add(PAGE_HEAD)?));
        if good { self.number(at.checked_add(0x18)?, 8) } else { None }
    }

    fn head(&self, at: u64, number: u64) -> Option<Head> {
        let field = |offset: u64, len: usize| self.number(at.checked_add(offset)?, len);
        let (locks_at, first, count) = (field(0x30, 4)?, field(0x34, 4)?, field(0x38, 2)?);
        let room = locks_at.checked_add(count.checked_mul(LOCK)?)? == first && first < PAGE;
        (field(0x28, 8)? == number && locks_at > PAGE_HEAD && room).then_some(())?;
        let mut locks = Vec::new();
        for i in 0..count {
            let lock = locks_at.checked_add(i.checked_mul(LOCK)?)?;
            let at = FIRST.checked_add(lock)?;
            if self.number(at, 4)? == lock && self.number(at.checked_add(9)?, 1)? == 2 {
                locks.push((self.number(at.checked_add(0xC)?, 8)?, self.number(at.checked_add(0x14)?, 8)?));
            }
        }
        let last = FIRST.checked_add(field(0x10, 4)?.checked_sub(1)?)?.checked_div(PAGE)?;
        let whole = (1..=last).all(|page| self.pages.get(narrow(page)).copied().flatten() == Some(number));
        let checksum = field(0, 8)?;
        let complete = whole
            && self.seen.is_whole()
            && checksum != 0
            && self.number(last.checked_mul(PAGE)?.checked_add(8)?, 8)? == checksum
            && wide(locks.len()) == count;
        Some(Head { first: FIRST.checked_add(first)?, locks, complete })
    }

    /// Whether a range of the journal lies in the body of one page of a transaction.
    fn is_in(&self, at: u64, len: u64, number: u64) -> bool {
        let (Some(page), Some(end)) = (at.checked_div(PAGE), at.checked_add(len)) else { return false };
        let start = page.saturating_mul(PAGE);
        at >= start.saturating_add(PAGE_HEAD)
            && end <= start.saturating_add(PAGE)
            && self.pages.get(narrow(page)).copied().flatten() == Some(number)
            && !self.is_lost(&(at..end))
    }

    /// The record at `at`, and where the next one is, if it says so.
    fn record6(&self, at: u64, number: u64) -> Option<(Record, Option<u64>)> {
        let position = at.checked_sub(FIRST)?;
        (self.number(at, 4)? == position && self.is_in(at, HEAD6, number)).then_some(())?;
        let field = |offset: u64, len: usize| self.number(at.checked_add(offset)?, len);
        let (next, kind, target, len) = (field(4, 4)?, field(8, 2)?, field(0xC, 8)?, field(0x14, 4)?);
        let room = target.checked_add(1 << 16)? <= self.volume;
        (target != 0 && target.trailing_zeros() >= 9 && room && len <= 1 << 16).then_some(())?;
        let body = at.checked_add(HEAD6)?;
        let pieces = match kind {
            0x104 => self.image(body, target, len, field(0x22, 2)?, number)?,
            0x105 => self.patches(body, target, len, number)?,
            _ => return None,
        };
        let record = Record { at, transaction: number, target, pieces, standing: Standing::Unsure };
        Some((record, FIRST.checked_add(next).filter(|_| next != 0)))
    }

    fn image(&self, list: u64, target: u64, len: u64, count: u64, number: u64) -> Option<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut done: u64 = 0;
        for i in 0..count.min(64) {
            let entry = list.checked_add(i.checked_mul(8)?)?;
            let at = FIRST.checked_add(self.number(entry, 4)?)?;
            let len = self.number(entry.checked_add(4)?, 4)?;
            if len == 0 {
                continue;
            }
            self.is_in(at, len, number).then_some(())?;
            pieces.push(Piece { target: target.checked_add(done)?, len, at });
            done = done.checked_add(len)?;
        }
        (done == len && len > 0).then_some(pieces)
    }

    fn patches(&self, list: u64, target: u64, len: u64, number: u64) -> Option<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut at = list;
        let mut left = len;
        while left > 0 {
            at = self.body(at);
            let offset = self.number(at, 4)?;
            let mut len = self.number(at.checked_add(4)?, 4)?;
            self.is_in(at, 8, number).then_some(())?;
            left = left.checked_sub(len.checked_add(8)?)?;
            let mut target = target.checked_add(offset)?;
            (offset.checked_add(len)? <= 1 << 16).then_some(())?;
            at = at.checked_add(8)?;
            while len > 0 {
                at = self.body(at);
                let in_page = PAGE.checked_sub(at.checked_rem(PAGE)?)?.min(len);
                self.is_in(at, in_page, number).then_some(())?;
                pieces.push(Piece { target, len: in_page, at });
                (target, at) = (target.checked_add(in_page)?, at.checked_add(in_page)?);
                len = len.checked_sub(in_page)?;
            }
        }
        Some(pieces)
    }

    /// The next place at or behind `at` that is not the head of a page.
    #[expect(clippy::unused_self, reason = "a question about positions of this journal")]
    fn body(&self, at: u64) -> u64 {
        if at & PAGE.saturating_sub(1) == 0 { at.saturating_add(PAGE_HEAD) } else { at }
    }
}

/// The head of a transaction.
struct Head {
    first: u64,
    locks: Vec<(u64, u64)>,
    complete: bool,
}

/// A part of a record that no later one of its journal has again and that differs from home.
struct Difference {
    record: usize,
    target: u64,
    len: u64,
    at: u64,
}

impl Journal {
    fn load(volume: &Volume, slot: Option<u64>, at: u64, bytes: Bytes) -> Self {
        let space = &volume.space;
        let (data, seen) = read_vec(&*bytes, 0, narrow(bytes.len().min(LONGEST)));
        let lost = seen.gaps.iter().map(|gap| gap.range.clone()).collect();
        let mut parser = Parser { bytes: &data, seen, volume: space.lv.len(), pages: Vec::new() };
        let mut transactions = if space.header.is_six() { parser.six() } else { parser.five() };
        let differences = differences(space, &data, &transactions);
        judge(space, &data, &mut transactions, &differences);
        let records = transactions.into_iter().flat_map(|transaction| transaction.records).collect();
        Self { slot, at, bytes, lost, records }
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
        for (i, (new, old)) in (0..).zip(new.iter().zip(&home)) {
            let at = part.target.saturating_add(i);
            if new == old && !seen.gaps.iter().any(|gap| gap.range.contains(&at)) {
                continue;
            }
            match &mut open {
                Some(range) if i <= range.end.saturating_add(NEAR) => range.end = i.saturating_add(1),
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
    let mut differs = std::collections::BTreeSet::new();
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
        let (newest, complete) = (transaction.newest, transaction.complete);
        for (record, image) in transaction.records.iter_mut().zip(&images) {
            let own = record.target.checked_sub(space.header.md);
            record.standing = if !newest || !differs.contains(&number) {
                Standing::Home
            } else {
                // The lock of the record itself says most, be it in the record or before it.
                let near: Vec<_> =
                    locks.iter().filter(|(at, _)| *at == record.target || Some(*at) == own).copied().collect();
                let by_lock =
                    if near.is_empty() { by_locks(space, &locks, complete) } else { by_locks(space, &near, complete) };
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

fn by_locks(space: &Space, locks: &[(u64, u64)], complete: bool) -> Standing {
    let mut held = complete && !locks.is_empty();
    let (mut home, mut newer) = (false, false);
    for (at, token) in locks {
        let Some(lock) = Lock::load(&*space.lv, *at) else {
            held = false;
            continue;
        };
        home |= lock.token > *token;
        newer |= lock.token < *token;
        held &= lock.token == *token && lock.mode != 0;
    }
    match (home, newer, held) {
        (true, false, _) => Standing::Home,
        (false, true, _) | (false, false, true) => Standing::Newer,
        _ => Standing::Unsure,
    }
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
    /// Both, told.
    pub findings: Vec<Finding>,
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
    for journal in journals(volume).iter().filter(|journal| journal.slot.is_some() || lost_slots) {
        let name =
            journal.slot.map_or("a journal without heartbeat".into(), |slot| format!("the journal of slot {slot}"));
        for range in &journal.lost {
            let at = space.physical(journal.at.saturating_add(range.start));
            let len = range.end.saturating_sub(range.start);
            let text = format!("{len} bytes of {name} can't be read: what they say was not written home");
            replay.tell("VMFS-JOURNAL-LOST", at, len, Trust::Doubtful, text);
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
                Standing::Home => {}
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
    if let Some(more) = replay.findings.len().checked_sub(TOLD).filter(|more| *more > 0) {
        let worst = replay.findings.iter().skip(TOLD).map(|finding| finding.trust).max().unwrap_or_default();
        let range = replay.findings.get(TOLD).map_or(0..0, |finding| finding.range.clone());
        replay.findings.truncate(TOLD);
        let text = format!("{more} more ranges differ between journals and where they belong");
        replay.findings.push(Finding::new("VMFS-JOURNAL-MORE", range, worst, text));
    }
    replay
}

impl Replay {
    fn tell(&mut self, code: &'static str, at: u64, len: u64, trust: Trust, text: String) {
        self.findings.push(Finding::new(code, at..at.saturating_add(len), trust, text));
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

// What journals know that nothing else does

/// All descriptors that the journals of a volume have whole, the oldest first: what they were, be it home or not.
#[must_use]
pub fn images(volume: &Volume) -> Vec<Image> {
    let mut found = Vec::new();
    let header = &volume.space.header;
    each(volume, &mut |journal, record, bytes| {
        let Some(at) = record.target.checked_sub(header.md) else { return };
        let whole = wide(bytes.len()) == header.descriptor_size().saturating_sub(header.md);
        let address = number(bytes, 0, 4).and_then(|raw| FdAddress::of(u32::try_from(raw).ok()?));
        if !whole || address.is_none() {
            return;
        }
        // The lock sector has a record of its own, or none: of it, only what makes it one is needed.
        let mut all = vec![0; narrow(header.md)];
        all.splice(..12, MAGIC.to_le_bytes().into_iter().chain(at.to_le_bytes()));
        all.extend(bytes);
        if let Ok(descriptor) = Descriptor::parse(header, at, &all, Trust::Inferred) {
            let (journal, standing) = (journal.at, record.standing);
            found.push(Image { descriptor, standing, journal, at: record.at, bytes: all.into() });
        }
    });
    found
}

impl Image {
    /// The content that the descriptor of the journal leads to. Resident content is the journal's.
    #[must_use]
    pub fn file(&self, volume: &Volume) -> File {
        let from: Bytes = Arc::new(Memory::new(Arc::clone(&self.bytes)));
        let copy = Copied { at: self.descriptor.at, len: from.len(), from, offset: 0 };
        let lv = Patch::new(Bytes::clone(&volume.space.lv), vec![copy], Trust::Inferred);
        let space = lv.map_or_else(|| Arc::clone(&volume.space), |lv| Arc::new(volume.space.over(Arc::new(lv))));
        File::new(space, Arc::clone(&volume.pools), self.descriptor.clone()).trusted(Trust::Inferred)
    }
}

/// All entries of folders that the journals of a volume have, the oldest first, each as often as it is there.
#[must_use]
pub fn names(volume: &Volume) -> Vec<Name> {
    let mut found = Vec::new();
    let six = volume.space.header.is_six();
    each(volume, &mut |_, record, bytes| {
        // Patches have targets of their own; entries lie whole in one of them.
        let mut at: usize = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let entry = if six { entry6(rest) } else { entry5(rest) };
            let Some((name, len)) = entry else {
                at = at.saturating_add(4);
                continue;
            };
            let target = record.target.saturating_add(wide(at));
            found.push(Name { target, standing: record.standing, ..name });
            at = at.saturating_add(len);
        }
    });
    found
}

/// Every range of the volume that a record has, as a record of its own, with its bytes.
fn each(volume: &Volume, take: &mut dyn FnMut(&Journal, &Record, &[u8])) {
    for journal in journals(volume) {
        let (data, _) = read_vec(&*journal.bytes, 0, narrow(journal.bytes.len().min(LONGEST)));
        for record in &journal.records {
            let mut open: Option<(u64, Vec<u8>)> = None;
            let mut give = |part: Option<(u64, Vec<u8>)>| {
                if let Some((target, bytes)) = part {
                    take(&journal, &Record { target, ..record.clone() }, &bytes);
                }
            };
            for piece in &record.pieces {
                let start = narrow(piece.at);
                let bytes = data.get(start..start.saturating_add(narrow(piece.len))).unwrap_or_default();
                match &mut open {
                    Some((target, have)) if target.saturating_add(wide(have.len())) == piece.target => {
                        have.extend(bytes);
                    }
                    _ => give(open.replace((piece.target, bytes.to_vec()))),
                }
            }
            give(open);
        }
    }
}

fn entry(bytes: &[u8], name: Range<usize>) -> Option<Name> {
    let word = |at| number(bytes, at, 4).and_then(|word| u32::try_from(word).ok());
    let (kind, address, generation) = (word(0)?, FdAddress::of(word(4)?)?, word(8)?);
    Type::of(kind)?;
    let raw = bytes.get(name)?;
    let len = raw.iter().position(|byte| *byte == 0)?;
    let (name, rest) = raw.split_at_checked(len)?;
    let plain = !name.is_empty() && name != b"." && name != b".." && generation != 0;
    let clean = name.iter().all(|byte| *byte >= b' ' && *byte != b'/') && rest.iter().all(|byte| *byte == 0);
    (plain && clean).then(|| Name {
        name: name.to_vec(),
        kind,
        address,
        generation,
        target: 0,
        standing: Standing::Unsure,
    })
}

fn entry5(bytes: &[u8]) -> Option<(Name, usize)> {
    Some((entry(bytes, 12..140)?, 140))
}

fn entry6(bytes: &[u8]) -> Option<(Name, usize)> {
    let found = entry(bytes, 0x18..0x118)?;
    // System files have none.
    let hash = number(bytes, 0xC, 4)?;
    (hash == hash::lookup8(&found.name) & 0xFFFF_FFFF).then_some((found, 288))
}
